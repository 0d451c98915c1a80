//! From a frame's bytes to numbers, by transfer syntax (PS3.5 annex A).
//!
//! Native data, RLE, JPEG-LS and JPEG of 12 bits are decoded here; other JPEG by `jpeg-decoder`, JPEG 2000 and
//! HTJ2K by `openjp2` through `jpeg2k`, JPEG XL by `jxl-oxide`. Every decoder's idea of the size is checked against
//! the object's description before it is believed.

use std::io::{Read, Seek};

use super::super::object::{GE_PRIVATE, Object, PixelKind, PixelLocation};
use super::frame::{self, Description, Fragments, Frame, Photometric, Samples};
use super::{PreviewError, Reason, jpeg12, jpegls, rle};

/// Decodes frame `index`. Large JPEG 2000 frames are decoded at a lower resolution, still at least `side_max` long.
pub(super) fn decode<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    description: &Description,
    fragments: &mut Fragments,
    index: u32,
    side_max: u32,
) -> Result<Result<Frame, Reason>, PreviewError> {
    if description.photometric == Photometric::Other {
        let name = format!("photometric interpretation {}", description.photometric_name);
        return Ok(Err(Reason::Unsupported(name)));
    }
    let syntax = object.transfer_syntax;
    let codec = match Codec::of(syntax.as_str()) {
        Some(codec) if location.bytes.is_some() == (codec == Codec::Native) => codec,
        // Undefined length in a native syntax and the other way round occur; the length is what was really written.
        Some(_) if location.bytes.is_some_and(|bytes| bytes >= description.object_bytes()) => Codec::Native,
        Some(_) if location.bytes.is_some() => {
            return Err(PreviewError::Decode("compressed pixel data without fragments".to_owned()));
        }
        Some(Codec::Native) => Codec::EncapsulatedNative,
        Some(codec) => codec,
        None => return Ok(Err(Reason::Codec(syntax.as_str().to_owned()))),
    };
    if codec == Codec::Native {
        return native(object, location, description, index);
    }
    let bytes = match fragments.frame(object, location, description.frames, index)? {
        Ok(bytes) => bytes,
        Err(reason) => return Ok(Err(reason)),
    };
    let decoded = match codec {
        Codec::Native | Codec::EncapsulatedNative => Ok(plain(description, bytes)),
        Codec::Rle => rle_frame(&bytes, description),
        Codec::Jpeg => return jpeg(&bytes, description),
        Codec::JpegLs => jpeg_ls(&bytes, description),
        Codec::Jpeg2000 => jpeg_2000(&bytes, description, side_max),
        Codec::JpegXl => jpeg_xl(&bytes, description),
    };
    let frame = decoded.map_err(PreviewError::Decode)?;
    if frame.is_whole() { Ok(Ok(frame)) } else { Err(PreviewError::Decode("fewer samples than described".to_owned())) }
}

/// Whether frames of a transfer syntax are decoded here.
pub(super) fn is_known(syntax: &str) -> bool {
    Codec::of(syntax).is_some()
}

/// Whether a coding cannot but lose something: the sequential and progressive JPEG processes. Others may.
pub(super) fn always_loses(syntax: &str) -> bool {
    let process = syntax.strip_prefix("1.2.840.10008.1.2.4.").and_then(|process| process.parse::<u32>().ok());
    process.is_some_and(|process| (50..=56).contains(&process))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Native,
    EncapsulatedNative,
    Rle,
    Jpeg,
    JpegLs,
    Jpeg2000,
    JpegXl,
}

impl Codec {
    /// By the UID behind `1.2.840.10008.1.2` (PS3.6 table A-1).
    fn of(syntax: &str) -> Option<Self> {
        if syntax == GE_PRIVATE.as_str() {
            return Some(Self::Native);
        }
        match syntax.strip_prefix("1.2.840.10008.1.2")? {
            "" | ".1" | ".2" | ".1.99" => Some(Self::Native),
            ".1.98" => Some(Self::EncapsulatedNative),
            ".5" => Some(Self::Rle),
            // Sequential, progressive and lossless; hierarchical ones (.59 to .66) are not decoded by anything maintained.
            ".4.50" | ".4.51" | ".4.52" | ".4.53" | ".4.54" | ".4.55" | ".4.56" | ".4.57" | ".4.58" | ".4.70" => {
                Some(Self::Jpeg)
            }
            ".4.80" | ".4.81" => Some(Self::JpegLs),
            ".4.90" | ".4.91" | ".4.92" | ".4.93" | ".4.201" | ".4.202" | ".4.203" => Some(Self::Jpeg2000),
            ".4.110" | ".4.111" | ".4.112" => Some(Self::JpegXl),
            _ => None,
        }
    }
}

fn native<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    description: &Description,
    index: u32,
) -> Result<Result<Frame, Reason>, PreviewError> {
    let (mut bytes, skip_bits) = frame::native(object, location, description, index)?;
    if object.pixels_are_big_endian() {
        let word = object.pixel_word_bytes(location);
        bytes.chunks_exact_mut(word).for_each(<[u8]>::reverse);
    }
    if description.bits_allocated == 1 {
        return Ok(Ok(bits(description, &bytes, skip_bits)));
    }
    if !matches!(description.bits_allocated, 8 | 16 | 32) && description.kind != PixelKind::Double {
        return Ok(Err(Reason::Unsupported(format!("{} bits allocated", description.bits_allocated))));
    }
    // Cells are whole bytes now, and so is what to skip.
    bytes.drain(..skip_bits as usize / 8);
    Ok(Ok(plain(description, bytes)))
}

/// One bit a pixel, least significant first, frames not aligned to bytes (PS3.5 8.1.1, C.7.6.3.1).
fn bits(description: &Description, bytes: &[u8], skip: u32) -> Frame {
    let data = (0..description.samples())
        .map(|pixel| pixel + skip as usize)
        .map(|bit| bytes.get(bit / 8).map_or(0, |byte| byte >> (bit % 8) & 1))
        .collect();
    framed(description, Samples::Bytes { data, cell_bytes: 1 })
}

fn framed(description: &Description, samples: Samples) -> Frame {
    Frame {
        width: description.columns,
        height: description.rows,
        samples_per_pixel: description.samples_per_pixel,
        planar: description.planar,
        photometric: description.photometric,
        samples,
    }
}

/// Uncompressed cells.
fn plain(description: &Description, bytes: Vec<u8>) -> Frame {
    let subsampled = matches!(description.photometric, Photometric::YbrFull422 | Photometric::YbrPartial);
    let samples = match description.kind {
        PixelKind::Float => Samples::Floats(bytes),
        PixelKind::Double => Samples::Doubles(bytes),
        PixelKind::Integer if subsampled => {
            let data = spread_chroma(&bytes, description.pixels());
            return Frame { planar: false, ..framed(description, Samples::Bytes { data, cell_bytes: 1 }) };
        }
        PixelKind::Integer => {
            Samples::Bytes { data: bytes, cell_bytes: (description.bits_allocated / 8).max(1) as usize }
        }
    };
    framed(description, samples)
}

/// From Y1 Y2 Cb Cr for two pixels to Y Cb Cr for each (PS3.3 C.7.6.3.1.2, YBR_FULL_422).
fn spread_chroma(bytes: &[u8], pixels: usize) -> Vec<u8> {
    let spread = bytes.chunks_exact(4).flat_map(|pair| [pair[0], pair[2], pair[3], pair[1], pair[2], pair[3]]);
    let mut data: Vec<u8> = spread.take(pixels * 3).collect();
    data.resize(pixels * 3, 0);
    data
}

fn rle_frame(bytes: &[u8], description: &Description) -> Result<Frame, String> {
    let cell_bytes = (description.bits_allocated as usize).div_ceil(8);
    let data = rle::decode(bytes, description.pixels(), description.samples_per_pixel as usize, cell_bytes)?;
    let samples = match description.kind {
        PixelKind::Float => Samples::Floats(data),
        PixelKind::Double => Samples::Doubles(data),
        PixelKind::Integer => Samples::Bytes { data, cell_bytes },
    };
    // RLE has no subsampling: what is called YBR_FULL_422 is YBR_FULL in it (PS3.5 8.2.2).
    Ok(Frame { planar: false, photometric: unsubsampled(description.photometric), ..framed(description, samples) })
}

fn unsubsampled(photometric: Photometric) -> Photometric {
    if photometric == Photometric::YbrFull422 { Photometric::YbrFull } else { photometric }
}

fn jpeg_ls(bytes: &[u8], description: &Description) -> Result<Frame, String> {
    let decoded = jpegls::decode(bytes, description.pixels())?;
    check_size(description, decoded.width, decoded.height, decoded.components)?;
    let samples = Samples::Bytes { data: decoded.data, cell_bytes: decoded.cell_bytes };
    Ok(Frame { planar: false, photometric: unsubsampled(description.photometric), ..framed(description, samples) })
}

fn check_size(description: &Description, width: u32, height: u32, components: u32) -> Result<(), String> {
    if (width, height, components) == (description.columns, description.rows, description.samples_per_pixel) {
        return Ok(());
    }
    Err(format!(
        "decoder found {width} x {height} pixels of {components} samples, described are {} x {} of {}",
        description.columns, description.rows, description.samples_per_pixel
    ))
}

fn jpeg(bytes: &[u8], description: &Description) -> Result<Result<Frame, Reason>, PreviewError> {
    use jpeg_decoder::{CodingProcess, ColorTransform, Decoder, Error, PixelFormat, UnsupportedFeature};
    let failed = |error: Error| PreviewError::Decode(error.to_string());
    let mut decoder = Decoder::new(bytes);
    match decoder.read_info() {
        Err(Error::Unsupported(UnsupportedFeature::SamplePrecision(12))) => {
            return jpeg_twelve_bits(bytes, description).map(Ok).map_err(PreviewError::Decode);
        }
        Err(Error::Unsupported(what)) => return Ok(Err(Reason::Unsupported(format!("jpeg with {what:?}")))),
        result => result.map_err(failed)?,
    }
    let info = decoder.info().ok_or_else(|| PreviewError::Decode("jpeg without a frame".to_owned()))?;
    let (components, cell_bytes) = match info.pixel_format {
        PixelFormat::L8 => (1, 1),
        PixelFormat::L16 => (1, 2),
        PixelFormat::RGB24 => (3, 1),
        PixelFormat::CMYK32 => return Ok(Err(Reason::Unsupported("jpeg with four components".to_owned()))),
    };
    check_size(description, info.width.into(), info.height.into(), components).map_err(PreviewError::Decode)?;
    let lossless = info.coding_process == CodingProcess::Lossless;
    let luminance_chroma = components == 3 && !lossless && jpeg_is_ycc(bytes, description);
    decoder.set_color_transform(match (components, luminance_chroma) {
        (1, _) => ColorTransform::Grayscale,
        (_, true) => ColorTransform::YCbCr,
        // As coded; `None` would leave the components of a line one after the other.
        (_, false) => ColorTransform::RGB,
    });
    let data = match decoder.decode() {
        Err(Error::Unsupported(what)) => return Ok(Err(Reason::Unsupported(format!("jpeg with {what:?}")))),
        result => result.map_err(failed)?,
    };
    let photometric = match (components, lossless) {
        (3, true) => unsubsampled(description.photometric),
        (3, false) => Photometric::Rgb,
        _ => description.photometric,
    };
    let samples = Samples::Bytes { data: native_to_little_endian(data, cell_bytes), cell_bytes };
    let frame = Frame { planar: false, photometric, ..framed(description, samples) };
    if frame.is_whole() { Ok(Ok(frame)) } else { Err(PreviewError::Decode("fewer samples than described".to_owned())) }
}

fn jpeg_twelve_bits(bytes: &[u8], description: &Description) -> Result<Frame, String> {
    let decoded = jpeg12::decode(bytes, description.columns, description.rows, description.samples_per_pixel)?;
    check_size(description, decoded.width, decoded.height, decoded.planes.len() as u32)?;
    let photometric = match description.samples_per_pixel {
        3 if jpeg_is_ycc(bytes, description) => Photometric::YbrFull,
        3 => Photometric::Rgb,
        _ => description.photometric,
    };
    let half = 1 << 11;
    // Signed values were coded as the unsigned ones of the same bits.
    let sign =
        |value: &u16| if description.signed && *value >= half { i32::from(*value) - 4096 } else { i32::from(*value) };
    let values = decoded.planes.iter().flatten().map(sign).collect();
    Ok(Frame { planar: true, photometric, ..framed(description, Samples::Values(values)) })
}

fn native_to_little_endian(mut data: Vec<u8>, cell_bytes: usize) -> Vec<u8> {
    if cfg!(target_endian = "big") {
        data.chunks_exact_mut(cell_bytes).for_each(<[u8]>::reverse);
    }
    data
}

/// Whether a lossy colour JPEG holds luminance and chroma: its own markers say so, else the photometric interpretation.
/// Encoders disagree about the latter, which is why the markers come first.
fn jpeg_is_ycc(bytes: &[u8], description: &Description) -> bool {
    match jpeg_markers(bytes) {
        JpegMarkers { adobe: Some(transform), .. } => transform != 0,
        JpegMarkers { named_rgb: true, .. } => false,
        // Nobody subsamples green and blue.
        JpegMarkers { jfif: true, .. } | JpegMarkers { subsampled: true, .. } => true,
        _ => description.photometric != Photometric::Rgb,
    }
}

#[derive(Debug, Default)]
struct JpegMarkers {
    /// The transform flag of an Adobe APP14 segment.
    adobe: Option<u8>,
    jfif: bool,
    /// The components are called R, G and B.
    named_rgb: bool,
    /// The components have different resolutions.
    subsampled: bool,
}

fn jpeg_markers(bytes: &[u8]) -> JpegMarkers {
    let mut found = JpegMarkers::default();
    let mut at = 2;
    while let Some([0xFF, code, high, low]) = bytes.get(at..at + 4) {
        let length = usize::from(u16::from_be_bytes([*high, *low])).max(2);
        let segment = bytes.get(at + 4..at + 2 + length).unwrap_or_default();
        match code {
            0xEE if segment.starts_with(b"Adobe") => found.adobe = segment.get(11).copied(),
            0xE0 if segment.starts_with(b"JFIF") => found.jfif = true,
            0xC0..=0xC3 => {
                let names: Vec<u8> = (0..3).filter_map(|n| segment.get(6 + 3 * n).copied()).collect();
                found.named_rgb = names == *b"RGB";
                let sampling: Vec<u8> = (0..3).filter_map(|n| segment.get(7 + 3 * n).copied()).collect();
                found.subsampled = sampling.windows(2).any(|pair| pair[0] != pair[1]);
            }
            0xDA => break,
            _ => {}
        }
        at += 2 + length;
    }
    found
}

fn jpeg_2000(bytes: &[u8], description: &Description, side_max: u32) -> Result<Frame, String> {
    let longest = description.rows.max(description.columns);
    // Each level halves the sides; half the wanted size again is left for averaging.
    let levels = (longest / side_max.max(1)).checked_ilog2().unwrap_or(0).saturating_sub(1);
    if levels > 0
        && let Ok(frame) = jpeg_2000_reduced(bytes, description, levels)
    {
        return Ok(frame);
    }
    // A codestream may have fewer levels than wished for.
    jpeg_2000_reduced(bytes, description, 0)
}

fn jpeg_2000_reduced(bytes: &[u8], description: &Description, levels: u32) -> Result<Frame, String> {
    let siz = j2k_header(bytes).ok_or("jpeg 2000 codestream without a size")?;
    check_size(description, siz.width, siz.height, siz.components)?;
    let parameters = jpeg2k::DecodeParameters::new().reduce(levels);
    let image = jpeg2k::Image::from_bytes_with(bytes, parameters).map_err(|error| error.to_string())?;
    let components = image.components();
    let (width, height) = components.first().map(|c| (c.width(), c.height())).ok_or("jpeg 2000 without components")?;
    let expected = |side: u32| side.div_ceil(1 << levels);
    if (width, height) != (expected(siz.width), expected(siz.height)) {
        return Err("jpeg 2000 decoder returned another size".to_owned());
    }
    let mut values = Vec::with_capacity(width as usize * height as usize * components.len());
    for component in components.iter().take(description.samples_per_pixel as usize) {
        if (component.width(), component.height()) != (width, height) {
            return Err("jpeg 2000 with subsampled components".to_owned());
        }
        let precision = component.precision().clamp(1, 31);
        // Some encoders coded signed values as if they were unsigned: the top bit is the sign then.
        let sign_lost = description.signed && !component.is_signed();
        let half = 1_i32 << (precision - 1);
        let restore = |value: &i32| if sign_lost && *value >= half { *value - half - half } else { *value };
        values.extend(component.data().iter().map(restore));
    }
    let photometric = match description.photometric {
        Photometric::YbrTransformed => Photometric::Rgb,
        // The component transform of part 1 leaves RGB, whatever the attribute says.
        Photometric::YbrFull | Photometric::YbrFull422 if siz.transformed => Photometric::Rgb,
        other => unsubsampled(other),
    };
    let samples = Samples::Values(values);
    Ok(Frame { width, height, planar: true, photometric, ..framed(description, samples) })
}

struct J2kHeader {
    width: u32,
    height: u32,
    components: u32,
    /// A multiple component transformation was applied (COD, ISO/IEC 15444-1 A.6.1).
    transformed: bool,
}

/// Size and component transform from the codestream's main header, found in a JP2 wrapper too.
fn j2k_header(bytes: &[u8]) -> Option<J2kHeader> {
    let begin = bytes.windows(4).position(|window| window == [0xFF, 0x4F, 0xFF, 0x51])?;
    let siz = bytes.get(begin + 4..begin + 42)?;
    let word = |at: usize| u32::from_be_bytes([siz[at], siz[at + 1], siz[at + 2], siz[at + 3]]);
    let (width, height) = (word(4).checked_sub(word(12))?, word(8).checked_sub(word(16))?);
    let components = u32::from(u16::from_be_bytes([siz[36], siz[37]]));
    let mut at = begin + 2;
    let mut transformed = false;
    while let Some([0xFF, code, high, low]) = bytes.get(at..at + 4) {
        match code {
            // COD: length, Scod, progression order, layers (2), transformation.
            0x52 => transformed = bytes.get(at + 8) == Some(&1),
            0x90 => break,
            _ => {}
        }
        at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2);
    }
    Some(J2kHeader { width, height, components, transformed })
}

fn jpeg_xl(bytes: &[u8], description: &Description) -> Result<Frame, String> {
    let tracker = jxl_oxide::AllocTracker::with_limit(JXL_BYTES_MAX);
    let image = jxl_oxide::JxlImage::builder().alloc_tracker(tracker).read(bytes).map_err(|error| error.to_string())?;
    let components = if image.pixel_format().is_grayscale() { 1 } else { 3 };
    check_size(description, image.width(), image.height(), components)?;
    let bits = image.image_header().metadata.bit_depth.bits_per_sample().clamp(1, 31);
    let render = image.render_frame(0).map_err(|error| error.to_string())?;
    let mut stream = render.stream_no_alpha();
    let mut floats = vec![0_f32; description.samples()];
    if stream.channels() != components || stream.write_to_buffer(&mut floats) < floats.len() {
        return Err("jpeg xl decoder returned another size".to_owned());
    }
    let full = f64::from((1_u32 << bits) - 1);
    let half = 1_i64 << (bits - 1);
    let value = |sample: &f32| {
        let value = (f64::from(*sample) * full).round() as i64;
        // JPEG XL has no signed samples: two's complement travels as unsigned.
        (if description.signed && value >= half { value - 2 * half } else { value }) as i32
    };
    let samples = Samples::Values(floats.iter().map(value).collect());
    let photometric = match description.photometric {
        Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::Palette => description.photometric,
        _ => Photometric::Rgb,
    };
    Ok(Frame { planar: false, photometric, ..framed(description, samples) })
}

/// What the JPEG XL decoder may allocate for one frame.
const JXL_BYTES_MAX: usize = 1 << 30;
