//! Encoding a picture so that it fits.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::PreviewError;
use super::picture::{Pixels, Rendered};

/// An encoded preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// `image/jpeg` or `image/png`.
    pub media_type: &'static str,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The encoded picture.
    pub bytes: Vec<u8>,
}

/// JPEG qualities tried in order before the picture is made smaller.
const QUALITIES: [u8; 3] = [88, 75, 60];
/// Below this many pixels a PNG is small and keeps hard edges hard.
const PNG_PIXELS_MAX: u64 = 128 * 128;
/// A picture is not made smaller than this to fit.
const SIDE_MIN: u32 = 16;

/// Encodes a picture within `bytes_max` bytes: first with lower quality, then smaller.
///
/// # Errors
/// [`PreviewError::DoesNotFit`] if not even a tiny picture fits.
pub fn encode(rendered: &Rendered, bytes_max: usize) -> Result<Preview, PreviewError> {
    let mut picture = rendered.clone();
    loop {
        if u64::from(picture.width) * u64::from(picture.height) <= PNG_PIXELS_MAX {
            let bytes = png(&picture)?;
            if bytes.len() <= bytes_max {
                return Ok(Preview { media_type: "image/png", width: picture.width, height: picture.height, bytes });
            }
        }
        for quality in QUALITIES {
            let bytes = jpeg(&picture, quality)?;
            if bytes.len() <= bytes_max {
                return Ok(Preview { media_type: "image/jpeg", width: picture.width, height: picture.height, bytes });
            }
        }
        let side = picture.width.max(picture.height) / 4 * 3;
        if side < SIDE_MIN {
            return Err(PreviewError::DoesNotFit { bytes_max });
        }
        picture = rendered.fitted(side);
    }
}

fn colour_type(pixels: &Pixels) -> ExtendedColorType {
    match pixels {
        Pixels::Gray(_) => ExtendedColorType::L8,
        Pixels::Rgb(_) => ExtendedColorType::Rgb8,
    }
}

fn jpeg(picture: &Rendered, quality: u8) -> Result<Vec<u8>, PreviewError> {
    let mut out = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut out, quality)
        .write_image(picture.samples(), picture.width, picture.height, colour_type(&picture.pixels))
        .map_err(|error| PreviewError::Decode(error.to_string()))?;
    Ok(out.into_inner())
}

fn png(picture: &Rendered) -> Result<Vec<u8>, PreviewError> {
    let mut out = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut out, CompressionType::Best, FilterType::Adaptive)
        .write_image(picture.samples(), picture.width, picture.height, colour_type(&picture.pixels))
        .map_err(|error| PreviewError::Decode(error.to_string()))?;
    Ok(out.into_inner())
}
