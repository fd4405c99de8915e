//! Pixels and their form as PNG.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mandelbrot::palette;
use crate::plan::Area;

/// A rectangle of pixels, each the number of a colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize] }
    }

    pub(crate) fn set(&mut self, x: u32, y: u32, color: u8) {
        let at = self.position(x, y);
        self.pixels[at] = color;
    }

    /// Lays `part` over the pixels of `area`.
    pub(crate) fn paste(&mut self, part: &Self, area: Area) -> anyhow::Result<()> {
        let fits = (part.width, part.height) == (area.width, area.height)
            && area.x + area.width <= self.width
            && area.y + area.height <= self.height;
        ensure!(fits, "a part of {}x{} pixels does not fit into {area:?}", part.width, part.height);
        let width = part.width as usize;
        for (y, row) in (area.y..).zip(part.pixels.chunks_exact(width)) {
            let at = self.position(area.x, y);
            self.pixels[at..at + width].copy_from_slice(row);
        }
        Ok(())
    }

    fn position(&self, x: u32, y: u32) -> usize {
        y as usize * self.width as usize + x as usize
    }

    pub(crate) fn to_png(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(palette());
        encoder.write_header()?.write_image_data(&self.pixels)?;
        Ok(bytes)
    }

    /// Only what [`Picture::to_png`] wrote.
    pub(crate) fn from_png(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info()?;
        let (width, height) = (reader.info().width, reader.info().height);
        ensure!(reader.info().color_type == png::ColorType::Indexed, "the colours of the PNG are not numbered");
        let mut picture = Self::new(width, height);
        reader.next_frame(&mut picture.pixels)?;
        Ok(picture)
    }

    /// PNG as text, for results are text.
    pub(crate) fn to_text(&self) -> anyhow::Result<String> {
        Ok(STANDARD.encode(self.to_png()?))
    }

    pub(crate) fn from_text(text: &str) -> anyhow::Result<Self> {
        Self::from_png(&png_of_text(text)?)
    }
}

/// The PNG that [`Picture::to_text`] made a text of.
pub(crate) fn png_of_text(text: &str) -> anyhow::Result<Vec<u8>> {
    STANDARD.decode(text).context("the result is not Base64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mandelbrot::render;
    use crate::plan::Plan;

    #[test]
    fn a_picture_survives_its_way_through_text() {
        let plan = Plan { width: 33, height: 21, tile: 8, iterations: 100 };
        let picture = render(plan, plan.strip(1));
        assert_eq!(Picture::from_text(&picture.to_text().unwrap()).unwrap(), picture);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let area = Area { x: 1, y: 0, width: 2, height: 2 };
        assert!(Picture::new(2, 2).paste(&Picture::new(2, 2), area).is_err());
        assert!(Picture::new(4, 4).paste(&Picture::new(1, 2), area).is_err());
    }
}
