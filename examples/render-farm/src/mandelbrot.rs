//! The work itself: which colour a pixel has.
//!
//! Only additions, multiplications and comparisons, which every machine rounds alike, so that a tile has the same pixels
//! wherever it was rendered.

use crate::picture::Picture;
use crate::plan::{Area, Plan};

/// A valley between two bulbs of the set, where a third of the pixels cost all iterations.
const CENTER: (f64, f64) = (-0.744_5, 0.121_5);
/// How much of the plane the picture's width shows.
const SPAN: f64 = 0.02;
/// Colours beside the black of the set itself.
const COLORS: u32 = 255;
/// The colours' corners; in between they blend, and behind the last one they begin again.
const CORNERS: [[i32; 3]; 5] = [[12, 18, 66], [24, 120, 190], [240, 248, 224], [250, 168, 32], [110, 20, 40]];

/// Renders one rectangle of the planned picture.
pub(crate) fn render(plan: Plan, area: Area) -> Picture {
    let step = SPAN / f64::from(plan.width);
    let left = CENTER.0 - step * f64::from(plan.width) / 2.0;
    let top = CENTER.1 - step * f64::from(plan.height) / 2.0;
    let mut picture = Picture::new(area.width, area.height);
    for y in 0..area.height {
        for x in 0..area.width {
            let point = (left + step * f64::from(area.x + x), top + step * f64::from(area.y + y));
            picture.set(x, y, color(point, plan.iterations));
        }
    }
    picture
}

/// 0 for a point that stays, else a colour by how many steps it takes to leave.
fn color((re, im): (f64, f64), iterations: u32) -> u8 {
    let (mut x, mut y) = (0.0, 0.0);
    for step in 0..iterations {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > 4.0 {
            return u8::try_from(1 + step % COLORS).expect("1 to 255");
        }
        y = 2.0 * x * y + im;
        x = xx - yy + re;
    }
    0
}

/// Red, green and blue of all 256 colours.
pub(crate) fn palette() -> Vec<u8> {
    let mut palette = vec![0; 3];
    for n in 0..COLORS as usize {
        let (corner, within) = (n * CORNERS.len() / 255, n * CORNERS.len() % 255);
        let (from, to) = (CORNERS[corner], CORNERS[(corner + 1) % CORNERS.len()]);
        let blend = |channel: usize| from[channel] + (to[channel] - from[channel]) * within as i32 / 255;
        palette.extend((0..3).map(|channel| u8::try_from(blend(channel)).expect("between two colours")));
    }
    palette
}
