//! Frames as bytes: as they are stored, or decoded to native cells (PS3.5 8.1.1, 8.2), for whoever draws them himself.

use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_scp::{TransferSyntax, Uid};

use super::super::object::{Object, PixelKind, PixelLocation};
use super::codec;
use super::frame::{self, Description, Fragments, Frame, Samples};
use super::{PreviewError, Reason};

/// A side longer than any frame's: decoded at full resolution.
pub(super) const WHOLE_SIDE: u32 = u32::MAX;

/// How a frame is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As it is stored: the fragments of an encapsulated one joined; a native one in little endian order.
    Stored,
    /// Native cells, whatever it is stored in.
    Native,
}

/// The bytes of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameBytes {
    /// The transfer syntax that they are in; Explicit VR Little Endian for native cells of any origin.
    pub transfer_syntax: Uid,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What came of reading a frame.
pub type FrameOutcome = Result<FrameBytes, Reason>;

/// How many frames an object has; none where it has no pixel data.
///
/// # Errors
/// [`PreviewError`] when the object is damaged.
pub fn frames<R: Read + Seek>(source: &mut R) -> Result<Option<u32>, PreviewError> {
    let object = Object::open(source)?;
    let Some(location) = object.pixels else { return Ok(None) };
    Ok(Some(Description::of(&object.header, location.kind)?.frames))
}

/// Hands the frames with these indices, from 0, to `take`, in order, until it wants no more.
///
/// # Errors
/// [`PreviewError::Frame`] for one that there is not, before any is handed over; else when the object is damaged.
pub fn read_frames<R: Read + Seek>(
    source: &mut R,
    indices: &[u32],
    coding: Coding,
    mut take: impl FnMut(FrameOutcome) -> bool,
) -> Result<(), PreviewError> {
    let mut object = Object::open(source)?;
    let Some(location) = object.pixels else {
        take(Err(Reason::NoPixels));
        return Ok(());
    };
    let description = Description::of(&object.header, location.kind)?;
    if let Some(frame) = indices.iter().copied().find(|index| *index >= description.frames) {
        return Err(PreviewError::Frame { frames: description.frames, frame });
    }
    let mut fragments = Fragments::default();
    for index in indices {
        // As in `render`: what a panic leaves behind is dropped with it.
        let read =
            AssertUnwindSafe(|| read_frame(&mut object, &location, &description, &mut fragments, *index, coding));
        let outcome = catch_unwind(read).unwrap_or(Err(PreviewError::Panicked))?;
        if !take(outcome) {
            break;
        }
    }
    Ok(())
}

fn read_frame<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    description: &Description,
    fragments: &mut Fragments,
    index: u32,
    coding: Coding,
) -> Result<FrameOutcome, PreviewError> {
    let native = |bytes| FrameBytes { transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(), bytes };
    if location.bytes.is_some() {
        return Ok(Ok(native(cells(object, location, description, index)?)));
    }
    if coding == Coding::Stored {
        let transfer_syntax = object.transfer_syntax;
        let joined = fragments.frame(object, location, description.frames, index)?;
        return Ok(joined.map(|bytes| FrameBytes { transfer_syntax, bytes }));
    }
    let decoded = codec::decode(object, location, description, fragments, index, WHOLE_SIDE)?;
    Ok(decoded.map(|frame| native(packed(&frame, description))))
}

/// One native frame as it is, in little endian order. One of single bits begins with its first pixel in the lowest bit of its first byte, as
/// if there were no other.
fn cells<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    description: &Description,
    index: u32,
) -> Result<Vec<u8>, PreviewError> {
    let (mut bytes, skip_bits) = frame::native(object, location, description, index)?;
    if object.pixels_are_big_endian() {
        let word = object.pixel_word_bytes(location);
        bytes.chunks_exact_mut(word).for_each(<[u8]>::reverse);
    }
    let length = usize::try_from(description.native_bits().div_ceil(8)).map_err(|_| PreviewError::TooLarge)?;
    let (skip_bytes, shift) = (skip_bits as usize / 8, skip_bits % 8);
    bytes.drain(..skip_bytes);
    if shift > 0 {
        for at in 0..bytes.len() {
            let next = bytes.get(at + 1).copied().unwrap_or(0);
            bytes[at] = bytes[at] >> shift | next << (8 - shift);
        }
    }
    bytes.resize(length, 0);
    Ok(bytes)
}

/// A decoded frame as native pixel data would have it: cells as the header describes them, its planes apart if the header says so.
pub(super) fn packed(frame: &Frame, description: &Description) -> Vec<u8> {
    let cell_bytes = match description.kind {
        PixelKind::Integer => (description.bits_allocated as usize).div_ceil(8),
        PixelKind::Float => 4,
        PixelKind::Double => 8,
    };
    let cells = match &frame.samples {
        Samples::Bytes { data, cell_bytes: found } if *found == cell_bytes => data.clone(),
        Samples::Bytes { data, cell_bytes: found } => {
            data.chunks_exact(*found).flat_map(|cell| resized(cell, cell_bytes)).collect()
        }
        Samples::Values(values) => {
            values.iter().flat_map(|value| resized(&i64::from(*value).to_le_bytes(), cell_bytes)).collect()
        }
        Samples::Floats(data) | Samples::Doubles(data) => data.clone(),
    };
    let samples = frame.samples_per_pixel as usize;
    if samples > 1 && frame.planar != description.planar {
        return rearranged(&cells, samples, cell_bytes, description.planar);
    }
    cells
}

/// The lowest bytes of a number, or the number with zeros above it.
fn resized(cell: &[u8], bytes: usize) -> impl Iterator<Item = u8> + use<> {
    let mut out = [0; 8];
    let kept = cell.len().min(bytes).min(out.len());
    out[..kept].copy_from_slice(&cell[..kept]);
    out.into_iter().take(bytes)
}

/// From pixels to planes, or back.
fn rearranged(cells: &[u8], samples: usize, cell_bytes: usize, to_planes: bool) -> Vec<u8> {
    let pixels = cells.len() / cell_bytes / samples;
    let mut out = vec![0; pixels * samples * cell_bytes];
    for pixel in 0..pixels {
        for sample in 0..samples {
            let (apart, together) = (sample * pixels + pixel, pixel * samples + sample);
            let (from, to) = if to_planes { (together, apart) } else { (apart, together) };
            let (from, to) = (from * cell_bytes, to * cell_bytes);
            out[to..to + cell_bytes].copy_from_slice(&cells[from..from + cell_bytes]);
        }
    }
    out
}
