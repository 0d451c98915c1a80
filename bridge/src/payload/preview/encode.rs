//! Encoding a picture so that it fits, and decoding what was encoded so.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, ImageReader, Limits};

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

/// Longest side of a preview that is decoded, in pixels: far more than any that is made.
const DECODED_SIDE_MAX: u32 = 2048;
/// Most memory for decoding one, in bytes.
const DECODED_BYTES_MAX: u64 = 64 << 20;

/// Decodes an encoded preview, which may have been made by somebody else: in grey if it is, else in colour.
///
/// # Errors
/// [`PreviewError`] when it is no picture of this media type, or too large for a preview.
pub fn decode(media_type: &str, bytes: &[u8]) -> Result<Rendered, PreviewError> {
    let format = match media_type {
        "image/jpeg" => ImageFormat::Jpeg,
        "image/png" => ImageFormat::Png,
        _ => return Err(PreviewError::Decode(format!("media type {media_type}"))),
    };
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(DECODED_SIDE_MAX), Some(DECODED_SIDE_MAX));
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits);
        reader.decode()
    }));
    let picture =
        decoded.map_err(|_| PreviewError::Panicked)?.map_err(|error| PreviewError::Decode(error.to_string()))?;
    let (width, height) = (picture.width(), picture.height());
    let pixels = match picture {
        DynamicImage::ImageLuma8(grey) => Pixels::Gray(grey.into_raw()),
        other => Pixels::Rgb(other.into_rgb8().into_raw()),
    };
    Ok(Rendered { width, height, pixels })
}

fn colour_type(pixels: &Pixels) -> ExtendedColorType {
    match pixels {
        Pixels::Gray(_) => ExtendedColorType::L8,
        Pixels::Rgb(_) => ExtendedColorType::Rgb8,
    }
}

/// A picture as JPEG of this quality, from 1 to 100.
///
/// # Errors
/// [`PreviewError::Decode`] for a picture that is none.
pub fn jpeg(picture: &Rendered, quality: u8) -> Result<Vec<u8>, PreviewError> {
    let mut out = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut out, quality)
        .write_image(picture.samples(), picture.width, picture.height, colour_type(&picture.pixels))
        .map_err(|error| PreviewError::Decode(error.to_string()))?;
    Ok(out.into_inner())
}

/// A picture as PNG.
///
/// # Errors
/// As [`jpeg`].
pub fn png(picture: &Rendered) -> Result<Vec<u8>, PreviewError> {
    let mut out = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut out, CompressionType::Best, FilterType::Adaptive)
        .write_image(picture.samples(), picture.width, picture.height, colour_type(&picture.pixels))
        .map_err(|error| PreviewError::Decode(error.to_string()))?;
    Ok(out.into_inner())
}
