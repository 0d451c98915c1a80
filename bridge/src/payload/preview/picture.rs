//! A rendered picture and the one way of making it smaller.

/// Pixel values, eight bits each, row by row without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pixels {
    /// One byte a pixel; 0 is black.
    Gray(Vec<u8>),
    /// Red, green, blue.
    Rgb(Vec<u8>),
}

/// A picture as a viewer would show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// The pixels.
    pub pixels: Pixels,
}

impl Rendered {
    /// Samples per pixel.
    pub(super) fn channels(&self) -> usize {
        match self.pixels {
            Pixels::Gray(_) => 1,
            Pixels::Rgb(_) => 3,
        }
    }

    /// The samples.
    pub(super) fn samples(&self) -> &[u8] {
        match &self.pixels {
            Pixels::Gray(samples) | Pixels::Rgb(samples) => samples,
        }
    }

    /// The same picture with both sides at most `side_max`, its shape kept.
    #[must_use]
    pub fn fitted(&self, side_max: u32) -> Self {
        let (width, height) = fit(self.width, self.height, 1.0, side_max);
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let (channels, samples) = (self.channels(), self.samples());
        let row = self.width as usize * channels;
        let scaled = scale(self.width, self.height, width, height, channels, |x, y, out| {
            let at = y as usize * row + x as usize * channels;
            out.copy_from_slice(&samples[at..at + channels]);
        });
        Self { width, height, pixels: Pixels::of(channels, scaled) }
    }
}

impl Pixels {
    pub(super) fn of(channels: usize, samples: Vec<u8>) -> Self {
        if channels == 1 { Self::Gray(samples) } else { Self::Rgb(samples) }
    }
}

/// The size to show `width` × `height` samples at, whose height is `aspect` times their width, within `side_max`.
/// The stretched side grows; then both shrink together if they must.
pub(super) fn fit(width: u32, height: u32, aspect: f64, side_max: u32) -> (u32, u32) {
    let (mut w, mut h) = (f64::from(width), f64::from(height));
    if aspect > 1.0 {
        h *= aspect
    } else {
        w /= aspect
    }
    let shrink = (f64::from(side_max) / w.max(h)).min(1.0);
    let size = |side: f64| (side * shrink).round().clamp(1.0, f64::from(side_max.max(1))) as u32;
    (size(w), size(h))
}

/// Resamples by averaging the source pixels that fall onto each output pixel (repeating them where it grows). The source
/// is asked pixel by pixel, so that values can be mapped on the way and no full-size picture is ever held.
pub(super) fn scale(
    width: u32,
    height: u32,
    out_width: u32,
    out_height: u32,
    channels: usize,
    mut pixel: impl FnMut(u32, u32, &mut [u8]),
) -> Vec<u8> {
    let mut out = Vec::with_capacity(out_width as usize * out_height as usize * channels);
    let mut sums = vec![0_u32; out_width as usize * channels];
    let mut sample = [0; 3];
    let columns: Vec<(u32, u32)> = (0..out_width).map(|x| span(x, width, out_width)).collect();
    for y in 0..out_height {
        let (top, bottom) = span(y, height, out_height);
        sums.fill(0);
        for source_y in top..bottom {
            for (cell, (left, right)) in sums.chunks_exact_mut(channels).zip(&columns) {
                for source_x in *left..*right {
                    pixel(source_x, source_y, &mut sample[..channels]);
                    for (sum, value) in cell.iter_mut().zip(&sample) {
                        *sum += u32::from(*value);
                    }
                }
            }
        }
        for (cell, (left, right)) in sums.chunks_exact(channels).zip(&columns) {
            let count = (right - left) * (bottom - top);
            out.extend(cell.iter().map(|sum| ((sum + count / 2) / count) as u8));
        }
    }
    out
}

/// The source positions averaged into output position `at`; at least one.
fn span(at: u32, source: u32, out: u32) -> (u32, u32) {
    let edge = |at: u32| (u64::from(at) * u64::from(source) / u64::from(out)) as u32;
    let begin = edge(at).min(source - 1);
    (begin, edge(at + 1).max(begin + 1))
}
