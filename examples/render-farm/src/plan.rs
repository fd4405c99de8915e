//! What is rendered, and how it is cut: a picture into strips, a strip into tiles.

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::{Deserialize, Serialize};

/// A picture before it is rendered.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Pixels from left to right.
    #[arg(long, default_value_t = 1920, value_parser = from_1_to(16_384))]
    pub(crate) width: u32,
    /// Pixels from top to bottom.
    #[arg(long, default_value_t = 1080, value_parser = from_1_to(16_384))]
    pub(crate) height: u32,
    /// Pixels of a tile's side.
    #[arg(long, default_value_t = 64, value_parser = from_1_to(1_024))]
    pub(crate) tile: u32,
    /// After so many steps a point is taken to stay for ever: the price of the darkest pixels.
    #[arg(long, default_value_t = 10_000, value_parser = from_1_to(10_000_000))]
    pub(crate) iterations: u32,
}

/// A rectangle of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Area {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// One piece of work for a renderer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) plan: Plan,
    pub(crate) area: Area,
}

impl Plan {
    pub(crate) fn strip_count(self) -> u32 {
        self.height.div_ceil(self.tile)
    }

    pub(crate) fn tile_count(self) -> u32 {
        self.strip_count() * self.width.div_ceil(self.tile)
    }

    /// A row of tiles; the last one may be lower than the others.
    pub(crate) fn strip(self, number: u32) -> Area {
        let y = number * self.tile;
        Area { x: 0, y, width: self.width, height: self.tile.min(self.height - y) }
    }

    pub(crate) fn pieces(self, strip: u32) -> impl Iterator<Item = Piece> {
        let strip = self.strip(strip);
        (0..self.width.div_ceil(self.tile)).map(move |column| {
            let x = column * self.tile;
            Piece { plan: self, area: Area { x, width: self.tile.min(self.width - x), ..strip } }
        })
    }

    /// As it is said on the command line.
    pub(crate) fn arguments(self) -> [String; 4] {
        let Self { width, height, tile, iterations } = self;
        [("width", width), ("height", height), ("tile", tile), ("iterations", iterations)]
            .map(|(name, value)| format!("--{name}={value}"))
    }
}

fn from_1_to(max: u64) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_is_in_exactly_one_tile() {
        let plan = Plan { width: 70, height: 45, tile: 16, iterations: 1 };
        let mut times = vec![0; 70 * 45];
        let pieces: Vec<_> = (0..plan.strip_count()).flat_map(|strip| plan.pieces(strip)).collect();
        assert_eq!(pieces.len(), plan.tile_count() as usize);
        for Piece { area, .. } in pieces {
            for y in area.y..area.y + area.height {
                for x in area.x..area.x + area.width {
                    times[(y * 70 + x) as usize] += 1;
                }
            }
        }
        assert!(times.iter().all(|times| *times == 1));
    }
}
