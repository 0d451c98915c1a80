//! A series at a glance: which instances stand for it, and a grid of their thumbnails.

use super::picture::{Pixels, Rendered};

/// The position that best stands for a run of `count` instances: the middle one. `None` for an empty run.
#[must_use]
pub fn representative(count: usize) -> Option<usize> {
    (count > 0).then_some(count / 2)
}

/// Up to `wanted` positions spread evenly over a run of `count`, each at the middle of its share.
#[must_use]
pub fn evenly_spaced(count: usize, wanted: usize) -> Vec<usize> {
    let wanted = wanted.min(count);
    (0..wanted).map(|n| (2 * n + 1) * count / (2 * wanted)).collect()
}

/// A grid of thumbnails, filled from the top left as they come; holds only the grid itself.
#[derive(Debug)]
pub struct ContactSheet {
    columns: u32,
    rows: u32,
    tile: u32,
    filled: u32,
    canvas: Vec<u8>,
    coloured: bool,
}

/// Largest side of a sheet, in pixels.
const SHEET_SIDE_MAX: u32 = 4096;

impl ContactSheet {
    /// A sheet for `tiles` thumbnails of at most `tile` pixels a side, as square as it gets. At least one tile; what
    /// would be larger than 4096 pixels a side gets smaller tiles.
    #[must_use]
    pub fn new(tiles: u32, tile: u32) -> Self {
        let tiles = tiles.clamp(1, SHEET_SIDE_MAX);
        let columns = f64::from(tiles).sqrt().ceil() as u32;
        let rows = tiles.div_ceil(columns);
        let tile = tile.clamp(1, SHEET_SIDE_MAX / columns);
        let canvas = vec![0; columns as usize * rows as usize * (tile as usize).pow(2)];
        Self { columns, rows, tile, filled: 0, canvas, coloured: false }
    }

    /// Puts the next thumbnail in its place, centred on black. Returns false, and does nothing, once the sheet is full.
    pub fn add(&mut self, thumb: &Rendered) -> bool {
        if self.filled == self.columns * self.rows {
            return false;
        }
        if thumb.channels() == 3 && !self.coloured {
            self.canvas = self.canvas.iter().flat_map(|gray| [*gray; 3]).collect();
            self.coloured = true;
        }
        let thumb = thumb.fitted(self.tile);
        let left = self.filled % self.columns * self.tile + (self.tile - thumb.width) / 2;
        let top = self.filled / self.columns * self.tile + (self.tile - thumb.height) / 2;
        let channels = if self.coloured { 3 } else { 1 };
        let row_bytes = (thumb.width as usize * thumb.channels()).max(1);
        for (y, row) in (top..).zip(thumb.samples().chunks_exact(row_bytes)) {
            let at = (y as usize * self.columns as usize * self.tile as usize + left as usize) * channels;
            let out = &mut self.canvas[at..at + thumb.width as usize * channels];
            if thumb.channels() == channels {
                out.copy_from_slice(row);
            } else {
                out.chunks_exact_mut(3).zip(row).for_each(|(rgb, gray)| rgb.fill(*gray));
            }
        }
        self.filled += 1;
        true
    }

    /// The sheet as a picture. `None` if nothing was added.
    #[must_use]
    pub fn finish(self) -> Option<Rendered> {
        let channels = if self.coloured { 3 } else { 1 };
        (self.filled > 0).then(|| Rendered {
            width: self.columns * self.tile,
            height: self.rows * self.tile,
            pixels: Pixels::of(channels, self.canvas),
        })
    }
}
