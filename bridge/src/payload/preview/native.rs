//! Whole objects with their pixel data decoded: what a receiver without the codec gets (PS3.5 8.2, PS3.4 B.4.2). Read as they are made, a frame at
//! a time, so that a long one is never in memory.
//!
//! What is decoded has the numbers and colours that were coded, and the header says what they are now: colour that a decoder leaves as RGB is
//! called that, what was compressed with loss stays called so. UIDs stay, since nothing else changed (PS3.4 B.4.1.3, C.12.1.1.9 of PS3.3).

use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom_scp::TransferSyntax;
use dicom_scp::dataset::{self, DataSet, Element, Encoding, ReadEnd, ReadOptions, Tag, VR, Value};

use super::super::object::{Object, ObjectError, PixelKind, PixelLocation};
use super::codec;
use super::frame::{Description, Fragments, Frame, Photometric};
use super::stored::{WHOLE_SIDE, packed};
use super::{PreviewError, Reason};

/// Longest part of a data set behind its pixel data, in bytes: padding and signatures.
const TAIL_BYTES_MAX: u64 = 64 << 20;
/// Longest value of an element (PS3.5 7.1.1).
const VALUE_BYTES_MAX: u64 = 0xFFFF_FFFE;
/// Bytes of native pixel data that are turned round at once: a multiple of every word.
const RUN_BYTES: u64 = 256 << 10;

const PHOTOMETRIC_INTERPRETATION: Tag = Tag(0x0028, 0x0004);
const PLANAR_CONFIGURATION: Tag = Tag(0x0028, 0x0006);
const LOSSY_IMAGE_COMPRESSION: Tag = Tag(0x0028, 0x2110);
const ICON_IMAGE_SEQUENCE: Tag = Tag(0x0088, 0x0200);
const FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0008);
const DOUBLE_FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0009);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
/// Offset tables and lengths of fragments, which have no meaning where there are none.
const OF_FRAGMENTS: [Tag; 3] = [Tag(0x7FE0, 0x0001), Tag(0x7FE0, 0x0002), Tag(0x7FE0, 0x0003)];

/// Whether objects of a transfer syntax can be had with native pixel data, as far as that can be told without looking at one.
#[must_use]
pub fn is_decodable(transfer_syntax: &TransferSyntax) -> bool {
    !transfer_syntax.is_deflated() && codec::is_known(transfer_syntax.uid().as_str())
}

/// An object with native pixel data, whatever it is stored in, without its file meta information.
pub struct Native<R> {
    object: Object<R>,
    encoding: Encoding,
    pixels: Option<Pixels>,
    /// What was made, and how much of it was given.
    made: Vec<u8>,
    given: usize,
    next: Next,
}

struct Pixels {
    location: PixelLocation,
    description: Description,
    fragments: Fragments,
}

/// What is made next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// This frame. Each has as many bytes, and there are as many.
    Frame {
        index: u32,
        bytes: usize,
    },
    /// Pixel data from this offset of its value.
    Range {
        from: u64,
    },
    Tail,
    Nothing,
}

impl<R> std::fmt::Debug for Native<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Native").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<R: Read + Seek> Native<R> {
    /// Opens a file, and decodes its first frame, which tells whether it can be done. `encoding` is one of the little endian ones.
    ///
    /// # Errors
    /// [`PreviewError`] when the object is damaged; what is not decoded here although nothing is wrong with it is a [`Reason`].
    pub fn open(file: R, encoding: Encoding) -> Result<Result<Self, Reason>, PreviewError> {
        let object = Object::open_whole(file)?;
        let mut native = Self { object, encoding, pixels: None, made: Vec::new(), given: 0, next: Next::Tail };
        let Some(location) = native.object.pixels else {
            native.made = native.object.header.write(encoding);
            return Ok(Ok(native));
        };
        let begun = match location.bytes {
            Some(bytes) => native.begin_native(location, bytes)?,
            None => native.begin_decoded(location)?,
        };
        Ok(begun.map(|()| native))
    }

    /// Native already: only its encoding changes.
    fn begin_native(&mut self, location: PixelLocation, bytes: u64) -> Result<Result<(), Reason>, PreviewError> {
        let description = Description::of(&self.object.header, location.kind)?;
        self.pixels = Some(Pixels { location, description, fragments: Fragments::default() });
        self.next = Next::Range { from: 0 };
        Ok(self.begin(self.object.header.clone(), &location, location.vr, bytes))
    }

    fn begin_decoded(&mut self, location: PixelLocation) -> Result<Result<(), Reason>, PreviewError> {
        let description = Description::of(&self.object.header, location.kind)?;
        if description.bits_allocated == 1 {
            return Ok(Err(Reason::Unsupported("single bits in fragments".to_owned())));
        }
        let mut pixels = Pixels { location, description, fragments: Fragments::default() };
        let frame = match decode(&mut self.object, &mut pixels, 0)? {
            Ok(frame) => frame,
            Err(reason) => return Ok(Err(reason)),
        };
        let description = &pixels.description;
        let Ok(renamed) = renamed(frame.photometric) else {
            return Ok(Err(Reason::Unsupported(format!("decoded {}", description.photometric_name))));
        };
        let mut header = self.object.header.clone();
        if let Some(name) = renamed {
            header.put_text(PHOTOMETRIC_INTERPRETATION, VR::CS, name);
        }
        if frame.samples_per_pixel > 1 {
            header.put_u16(PLANAR_CONFIGURATION, u16::from(description.planar));
        }
        if codec::always_loses(self.object.transfer_syntax.as_str()) {
            header.put_text(LOSSY_IMAGE_COMPRESSION, VR::CS, "01");
        }
        let cells = packed(&frame, description);
        let total = (cells.len() as u64).saturating_mul(u64::from(description.frames));
        // PS3.5 A.1, A.2.
        let vr = if description.bits_allocated > 8 { VR::OW } else { VR::OB };
        if let Err(reason) = self.begin(header, &location, vr, total) {
            return Ok(Err(reason));
        }
        self.next = Next::Frame { index: 1, bytes: cells.len() };
        self.made.extend_from_slice(&cells);
        self.pixels = Some(pixels);
        Ok(Ok(()))
    }

    /// Writes everything up to the pixel data's value.
    fn begin(&mut self, mut header: DataSet, location: &PixelLocation, vr: VR, pixel_bytes: u64) -> Result<(), Reason> {
        let padded = pixel_bytes.next_multiple_of(2);
        let length = u32::try_from(padded).ok().filter(|_| padded <= VALUE_BYTES_MAX);
        let length = length.ok_or_else(|| Reason::Unsupported("longer than 4 GiB when it is decoded".to_owned()))?;
        for tag in OF_FRAGMENTS {
            header.remove(tag);
        }
        if header.items(ICON_IMAGE_SEQUENCE).is_some_and(|icons| icons.iter().any(lacks_values)) {
            // A small picture in fragments, which native objects do not have. It can be made again.
            header.remove(ICON_IMAGE_SEQUENCE);
        }
        self.made = header.write(self.encoding);
        let tag = match location.kind {
            PixelKind::Integer => PIXEL_DATA,
            PixelKind::Float => FLOAT_PIXEL_DATA,
            PixelKind::Double => DOUBLE_FLOAT_PIXEL_DATA,
        };
        self.made.extend(tag.0.to_le_bytes());
        self.made.extend(tag.1.to_le_bytes());
        if self.encoding == Encoding::ExplicitLe {
            self.made.extend(vr.to_bytes());
            self.made.extend([0, 0]);
        }
        self.made.extend(length.to_le_bytes());
        Ok(())
    }

    /// Makes the next bytes; says whether there was anything to make.
    fn make(&mut self) -> Result<bool, PreviewError> {
        self.made.clear();
        self.given = 0;
        match (self.next, &mut self.pixels) {
            (Next::Frame { index, bytes }, Some(pixels)) if index < pixels.description.frames => {
                let frame = decode(&mut self.object, pixels, index)?;
                let frame = frame.map_err(|reason| PreviewError::Decode(reason.to_string()))?;
                self.made = packed(&frame, &pixels.description);
                if self.made.len() != bytes {
                    return Err(PreviewError::Decode("frames of several sizes".to_owned()));
                }
                self.next = Next::Frame { index: index + 1, bytes };
            }
            (Next::Frame { bytes, .. }, Some(pixels)) => {
                let is_odd = bytes as u64 * u64::from(pixels.description.frames) % 2 == 1;
                self.made.extend(is_odd.then_some(0));
                self.next = Next::Tail;
            }
            (Next::Range { from }, Some(pixels)) => {
                let location = pixels.location;
                self.make_range(&location, from)?;
            }
            (Next::Nothing, _) => return Ok(false),
            (Next::Tail | Next::Frame { .. } | Next::Range { .. }, _) => {
                self.made = self.tail()?;
                self.next = Next::Nothing;
            }
        }
        Ok(true)
    }

    fn make_range(&mut self, location: &PixelLocation, from: u64) -> Result<(), PreviewError> {
        let all = location.bytes.unwrap_or_default();
        let wanted = RUN_BYTES.min(all - from);
        let made = &mut self.made;
        self.object.read_range(location.begin + from, wanted, |run| made.extend_from_slice(run))?;
        if (self.made.len() as u64) < wanted {
            return Err(ObjectError::PixelData("cut short").into());
        }
        if self.object.pixels_are_big_endian() {
            let word = self.object.pixel_word_bytes(location);
            self.made.chunks_exact_mut(word).for_each(<[u8]>::reverse);
        }
        let to = from + wanted;
        self.next = Next::Range { from: to };
        if to == all {
            self.made.extend((all % 2 == 1).then_some(0));
            self.next = Next::Tail;
        }
        Ok(())
    }

    /// What is behind the pixel data.
    fn tail(&mut self) -> Result<Vec<u8>, PreviewError> {
        let of_header = || TransferSyntax::of(&self.object.transfer_syntax).map_or(self.encoding, |it| it.encoding());
        let (begin, encoding) = match &mut self.pixels {
            None => (self.object.header_end, of_header()),
            Some(Pixels { location, description, fragments }) => {
                let begin = match location.bytes {
                    Some(bytes) => location.begin + bytes,
                    None => fragments.end(&mut self.object, location, description.frames)?,
                };
                (Some(begin), location.encoding)
            }
        };
        let Some(begin) = begin else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        self.object.read_range(begin, TAIL_BYTES_MAX, |run| bytes.extend_from_slice(run))?;
        if bytes.len() as u64 == TAIL_BYTES_MAX {
            return Err(PreviewError::TooLarge);
        }
        let options = ReadOptions { value_bytes_max: u32::MAX - 1, ..ReadOptions::default() };
        let (tail, end) = dataset::read(&bytes, encoding, &options)
            .map_err(|_| ObjectError::PixelData("what follows it cannot be read"))?;
        match end {
            ReadEnd::Complete => Ok(tail.write(self.encoding)),
            _ => Err(ObjectError::PixelData("what follows it is cut short").into()),
        }
    }
}

fn decode<R: Read + Seek>(
    object: &mut Object<R>,
    pixels: &mut Pixels,
    index: u32,
) -> Result<Result<Frame, Reason>, PreviewError> {
    let Pixels { location, description, fragments } = pixels;
    // As in `render`: what a panic leaves behind is dropped with it.
    let decode = AssertUnwindSafe(|| codec::decode(object, location, description, fragments, index, WHOLE_SIDE));
    catch_unwind(decode).unwrap_or(Err(PreviewError::Panicked))
}

/// Whether a value is left out of a data set, of its items too.
fn lacks_values(set: &DataSet) -> bool {
    set.iter().any(|(_, Element { value, .. })| match value {
        Value::Skipped { .. } => true,
        Value::Items(items) => items.iter().any(lacks_values),
        Value::Bytes(_) => false,
    })
}

/// What pixels are called that a decoder left, if that is another name than they had; an error where there is none (PS3.3 C.7.6.3.1.2).
fn renamed(decoded: Photometric) -> Result<Option<&'static str>, ()> {
    match decoded {
        Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::Palette => Ok(None),
        Photometric::Rgb => Ok(Some("RGB")),
        // Decoded samples are as many as pixels.
        Photometric::YbrFull | Photometric::YbrFull422 => Ok(Some("YBR_FULL")),
        Photometric::YbrPartial | Photometric::YbrTransformed | Photometric::Other => Err(()),
    }
}

impl<R: Read + Seek> Read for Native<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.made.len() {
            let is_more = self.make().map_err(|error| match error {
                PreviewError::Object(ObjectError::Io(error)) => error,
                other => io::Error::other(other),
            })?;
            if !is_more {
                return Ok(0);
            }
        }
        let count = out.len().min(self.made.len() - self.given);
        out[..count].copy_from_slice(&self.made[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}
