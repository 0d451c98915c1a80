//! What a frame's pixels are (PS3.3 C.7.6.3) and where its bytes lie (PS3.5 8.2, A.4).

use std::io::{Read, Seek};

use dicom_scp::dataset::{DataSet, Tag};

use super::super::object::{Item, Object, ObjectError, PixelKind, PixelLocation};
use super::{FRAME_BYTES_MAX, PIXELS_MAX, PreviewError, Reason};

const SAMPLES_PER_PIXEL: Tag = Tag(0x0028, 0x0002);
const PHOTOMETRIC_INTERPRETATION: Tag = Tag(0x0028, 0x0004);
const PLANAR_CONFIGURATION: Tag = Tag(0x0028, 0x0006);
const NUMBER_OF_FRAMES: Tag = Tag(0x0028, 0x0008);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);
const BITS_STORED: Tag = Tag(0x0028, 0x0101);
const HIGH_BIT: Tag = Tag(0x0028, 0x0102);
const PIXEL_REPRESENTATION: Tag = Tag(0x0028, 0x0103);
const EXTENDED_OFFSET_TABLE: Tag = Tag(0x7FE0, 0x0001);

/// The sequence delimiter behind the last fragment.
const DELIMITER_BYTES: u64 = 8;
/// Most fragments looked through to find a frame.
const FRAGMENTS_MAX: usize = 1 << 20;

/// Photometric interpretations that are rendered (PS3.3 C.7.6.3.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Photometric {
    Monochrome1,
    Monochrome2,
    Palette,
    Rgb,
    YbrFull,
    YbrFull422,
    /// YBR_PARTIAL_422 and _420 (retired): video range.
    YbrPartial,
    /// YBR_ICT and YBR_RCT: the decoder undoes them.
    YbrTransformed,
    Other,
}

/// How the frames of an object are to be read.
#[derive(Debug, Clone)]
pub(super) struct Description {
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) frames: u32,
    pub(super) samples_per_pixel: u32,
    pub(super) bits_allocated: u32,
    pub(super) bits_stored: u32,
    pub(super) high_bit: u32,
    pub(super) signed: bool,
    pub(super) planar: bool,
    pub(super) photometric: Photometric,
    pub(super) photometric_name: String,
    pub(super) kind: PixelKind,
}

impl Description {
    pub(super) fn of(header: &DataSet, kind: PixelKind) -> Result<Self, PreviewError> {
        let positive = |tag| header.int(tag).and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0);
        let rows = positive(ROWS).ok_or(PreviewError::Description("rows"))?;
        let columns = positive(COLUMNS).ok_or(PreviewError::Description("columns"))?;
        let samples_per_pixel = positive(SAMPLES_PER_PIXEL).unwrap_or(1);
        if rows > 0xFFFF || columns > 0xFFFF || samples_per_pixel > 4 {
            return Err(PreviewError::Description("size of a frame"));
        }
        if u64::from(rows) * u64::from(columns) > PIXELS_MAX {
            return Err(PreviewError::TooLarge);
        }
        let bits_allocated = match kind {
            PixelKind::Integer => positive(BITS_ALLOCATED).ok_or(PreviewError::Description("bits allocated"))?,
            PixelKind::Float => 32,
            PixelKind::Double => 64,
        };
        // Senders that get these two wrong mean the whole cell.
        let bits_stored = positive(BITS_STORED).filter(|bits| *bits <= bits_allocated).unwrap_or(bits_allocated);
        let high_bit = positive(HIGH_BIT).filter(|bit| (bits_stored - 1..bits_allocated).contains(bit));
        let photometric_name = header.text(PHOTOMETRIC_INTERPRETATION).unwrap_or_default();
        Ok(Self {
            rows,
            columns,
            frames: positive(NUMBER_OF_FRAMES).unwrap_or(1),
            samples_per_pixel,
            bits_allocated,
            bits_stored,
            high_bit: high_bit.unwrap_or(bits_stored - 1),
            signed: header.int(PIXEL_REPRESENTATION) == Some(1),
            planar: header.int(PLANAR_CONFIGURATION) == Some(1) && samples_per_pixel > 1,
            photometric: photometric(&photometric_name, samples_per_pixel),
            photometric_name,
            kind,
        })
    }

    /// Pixels of one frame.
    pub(super) fn pixels(&self) -> usize {
        // At most PIXELS_MAX.
        self.rows as usize * self.columns as usize
    }

    /// Samples of one frame.
    pub(super) fn samples(&self) -> usize {
        self.pixels() * self.samples_per_pixel as usize
    }

    /// Bytes of all frames when they are not compressed.
    pub(super) fn object_bytes(&self) -> u64 {
        self.native_bits().saturating_mul(u64::from(self.frames)).div_ceil(8)
    }

    /// Bits of one native frame. Subsampled colour has two samples a pixel (PS3.3 C.7.6.3.1.2).
    pub(super) fn native_bits(&self) -> u64 {
        let samples = match self.photometric {
            Photometric::YbrFull422 | Photometric::YbrPartial => 2 * self.pixels(),
            _ => self.samples(),
        };
        samples as u64 * u64::from(self.bits_allocated)
    }
}

fn photometric(name: &str, samples_per_pixel: u32) -> Photometric {
    match (name, samples_per_pixel) {
        ("MONOCHROME1", 1) => Photometric::Monochrome1,
        ("MONOCHROME2", 1) => Photometric::Monochrome2,
        ("PALETTE COLOR", 1) => Photometric::Palette,
        ("RGB", 3) => Photometric::Rgb,
        ("YBR_FULL", 3) => Photometric::YbrFull,
        ("YBR_FULL_422", 3) => Photometric::YbrFull422,
        ("YBR_PARTIAL_422" | "YBR_PARTIAL_420", 3) => Photometric::YbrPartial,
        ("YBR_ICT" | "YBR_RCT", 3) => Photometric::YbrTransformed,
        // Missing or nonsensical: the number of samples decides.
        ("RGB" | "", 1) => Photometric::Monochrome2,
        ("MONOCHROME1" | "MONOCHROME2" | "PALETTE COLOR" | "", 3) => Photometric::Rgb,
        _ => Photometric::Other,
    }
}

/// A run of numbers as a decoder leaves them.
#[derive(Debug, Clone)]
pub(super) enum Samples {
    /// Cells of `bits_allocated` bits, little endian, still to be masked and sign-extended.
    Bytes { data: Vec<u8>, cell_bytes: usize },
    /// IEEE 754 single precision, little endian.
    Floats(Vec<u8>),
    /// IEEE 754 double precision, little endian.
    Doubles(Vec<u8>),
    /// Finished integer values.
    Values(Vec<i32>),
}

/// One decoded frame.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) samples_per_pixel: u32,
    /// Whole planes one after the other instead of pixels.
    pub(super) planar: bool,
    pub(super) photometric: Photometric,
    pub(super) samples: Samples,
}

impl Frame {
    /// Where sample `channel` of pixel (x, y) is.
    pub(super) fn position(&self, x: u32, y: u32, channel: u32) -> usize {
        let pixel = y as usize * self.width as usize + x as usize;
        if self.planar {
            channel as usize * self.width as usize * self.height as usize + pixel
        } else {
            pixel * self.samples_per_pixel as usize + channel as usize
        }
    }

    /// Whether there are as many samples as the size promises; checked once, so that lookups need not be.
    pub(super) fn is_whole(&self) -> bool {
        let cells = match &self.samples {
            Samples::Bytes { data, cell_bytes } => data.len() / cell_bytes,
            Samples::Floats(data) => data.len() / 4,
            Samples::Doubles(data) => data.len() / 8,
            Samples::Values(values) => values.len(),
        };
        cells >= self.width as usize * self.height as usize * self.samples_per_pixel as usize
    }
}

/// The bytes of one frame of native pixel data, from its first whole byte (or 16-bit word, where bytes are swapped by
/// words), and the bits to skip in front. What a truncated file lacks is zero, as long as the frame begins in it.
pub(super) fn native<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    description: &Description,
    index: u32,
) -> Result<(Vec<u8>, u32), PreviewError> {
    let bits = description.native_bits();
    let begin = bits.checked_mul(u64::from(index)).ok_or(PreviewError::Description("frame offset"))?;
    let (begin_byte, skip) = (begin / 16 * 2, (begin % 16) as u32);
    let length = (u64::from(skip) + bits).div_ceil(8).next_multiple_of(2);
    if length > FRAME_BYTES_MAX {
        return Err(PreviewError::TooLarge);
    }
    let available = location.bytes.unwrap_or(0).saturating_sub(begin_byte).min(length);
    // Reserved in one go, since growing would hold the frame twice. What a lying header reserves is never touched.
    let mut bytes = Vec::with_capacity(available as usize);
    object.read_range(location.begin + begin_byte, available, |run| bytes.extend_from_slice(run))?;
    if bytes.len() as u64 <= u64::from(skip) / 8 {
        return Err(ObjectError::PixelData("frame lies behind the end of the file").into());
    }
    bytes.resize(length as usize, 0);
    Ok((bytes, skip))
}

/// Where the frames of encapsulated pixel data are, as far as that was looked for: once for an object, since without a table of offsets every
/// fragment is walked over.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    found: Option<Found>,
    walked: Option<Walked>,
}

#[derive(Debug)]
struct Found {
    /// Offset of the first item behind the table.
    first: u64,
    table: Option<Vec<u64>>,
}

#[derive(Debug)]
struct Walked {
    items: Vec<Item>,
    /// For each item the frame that it belongs to, none of the first few if they begin no image; nothing where nothing tells that.
    frames: Option<Vec<Option<u32>>>,
}

impl Fragments {
    /// The bytes of one frame: its fragments joined.
    pub(super) fn frame<R: Read + Seek>(
        &mut self,
        object: &mut Object<R>,
        location: &PixelLocation,
        frames: u32,
        index: u32,
    ) -> Result<Result<Vec<u8>, Reason>, PreviewError> {
        let found = self.find(object, location, frames)?;
        let first = found.first;
        if let Some(table) = &found.table
            && let Some(fragments) = from_table(object, first, table, index)?
        {
            return join(object, &fragments).map(Ok);
        }
        let walked = self.walk(object, first, frames)?;
        let Some(of) = &walked.frames else {
            return Ok(Err(Reason::Unsupported("fragments without a usable offset table".to_owned())));
        };
        // They are in order.
        let from = of.partition_point(|frame| *frame < Some(index));
        let to = of.partition_point(|frame| *frame <= Some(index));
        match &walked.items[from..to] {
            [] => Ok(Err(Reason::Unsupported("fewer frames in fragments than described".to_owned()))),
            chosen => join(object, chosen).map(Ok),
        }
    }

    /// Offset of what is behind all fragments.
    pub(super) fn end<R: Read + Seek>(
        &mut self,
        object: &mut Object<R>,
        location: &PixelLocation,
        frames: u32,
    ) -> Result<u64, PreviewError> {
        let first = self.find(object, location, frames)?.first;
        let walked = self.walk(object, first, frames)?;
        let end = walked.items.last().map_or(first, |last| last.begin + last.bytes);
        Ok(end + DELIMITER_BYTES)
    }

    fn find<R: Read + Seek>(
        &mut self,
        object: &mut Object<R>,
        location: &PixelLocation,
        frames: u32,
    ) -> Result<&Found, PreviewError> {
        let found = match self.found.take() {
            Some(found) => found,
            None => {
                let item = object.item_at(location.begin)?.ok_or(ObjectError::PixelData("no offset table"))?;
                Found { first: item.begin + item.bytes, table: offsets(object, item, frames)? }
            }
        };
        Ok(self.found.insert(found))
    }

    fn walk<R: Read + Seek>(
        &mut self,
        object: &mut Object<R>,
        first: u64,
        frames: u32,
    ) -> Result<&Walked, PreviewError> {
        let walked = match self.walked.take() {
            Some(walked) => walked,
            None => {
                let items = walk(object, first, None)?;
                let frames = assign(object, &items, frames)?;
                Walked { items, frames }
            }
        };
        Ok(self.walked.insert(walked))
    }
}

/// Offsets of the frames from the first item: the extended table of the header, or the basic one, if it is complete.
fn offsets<R: Read + Seek>(object: &mut Object<R>, table: Item, frames: u32) -> Result<Option<Vec<u64>>, PreviewError> {
    let words = |bytes: &[u8], width: usize| -> Vec<u64> {
        bytes
            .chunks_exact(width)
            .map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
            .collect()
    };
    // Each frame begins behind the one before it.
    let is_rising = |table: &[u64]| table.windows(2).all(|pair| pair[0] < pair[1]);
    let complete = |table: Vec<u64>| (table.len() == frames as usize && is_rising(&table)).then_some(table);
    if let Some(extended) = object.header.bytes(EXTENDED_OFFSET_TABLE)
        && let Some(table) = complete(words(extended, 8))
    {
        return Ok(Some(table));
    }
    if table.bytes != u64::from(frames) * 4 || frames as usize > FRAGMENTS_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; table.bytes as usize];
    let count = object.read_at(table.begin, &mut bytes)?;
    Ok(complete(words(&bytes[..count], 4)))
}

/// The fragments from this frame's offset to the next one's. `None` if the table does not point at items.
fn from_table<R: Read + Seek>(
    object: &mut Object<R>,
    first: u64,
    table: &[u64],
    index: u32,
) -> Result<Option<Vec<Item>>, PreviewError> {
    let Some(&begin) = table.get(index as usize) else { return Ok(None) };
    let end = table.get(index as usize + 1).copied();
    let Some(at) = first.checked_add(begin) else { return Ok(None) };
    let length = end.map(|end| end - begin);
    let fragments = walk(object, at, length)?;
    let walked = fragments.last().map(|last| last.begin + last.bytes - at);
    Ok(walked.filter(|walked| length.is_none_or(|length| length == *walked)).map(|_| fragments))
}

/// The items from `begin` on, over at most `length` bytes.
fn walk<R: Read + Seek>(object: &mut Object<R>, begin: u64, length: Option<u64>) -> Result<Vec<Item>, PreviewError> {
    let mut fragments = Vec::new();
    let mut at = begin;
    while length.is_none_or(|length| at - begin < length) {
        let Some(fragment) = object.item_at(at)? else { break };
        if fragments.len() == FRAGMENTS_MAX {
            return Err(PreviewError::TooLarge);
        }
        fragments.push(fragment);
        at = fragment.begin + fragment.bytes;
    }
    Ok(fragments)
}

/// Which frame each fragment belongs to when no table says so: all to a single frame, one to each when the numbers agree, otherwise to
/// that of the last start-of-image marker (PS3.5 A.4.1 leaves nothing else).
fn assign<R: Read + Seek>(
    object: &mut Object<R>,
    fragments: &[Item],
    frames: u32,
) -> Result<Option<Vec<Option<u32>>>, PreviewError> {
    if frames == 1 {
        return Ok(Some(vec![Some(0); fragments.len()]));
    }
    if fragments.len() == frames as usize {
        return Ok(Some((0..frames).map(Some).collect()));
    }
    let (mut begun, mut of) = (0_u32, Vec::with_capacity(fragments.len()));
    for fragment in fragments {
        let mut head = [0; 2];
        object.read_at(fragment.begin, &mut head)?;
        begun += u32::from(is_image_start(head));
        of.push(begun.checked_sub(1));
    }
    Ok((begun > 0).then_some(of))
}

/// JPEG and JPEG-LS begin with SOI, JPEG 2000 with SOC, JPEG XL codestreams with their own mark.
fn is_image_start(head: [u8; 2]) -> bool {
    matches!(head, [0xFF, 0xD8] | [0xFF, 0x4F] | [0xFF, 0x0A])
}

fn join<R: Read + Seek>(object: &mut Object<R>, fragments: &[Item]) -> Result<Vec<u8>, PreviewError> {
    let mut bytes = Vec::new();
    for fragment in fragments {
        if fragment.bytes > FRAME_BYTES_MAX - bytes.len() as u64 {
            return Err(PreviewError::TooLarge);
        }
        // One that is cut short by the end of the file stays so: decoders show what they can of it.
        object.read_range(fragment.begin, fragment.bytes, |run| bytes.extend_from_slice(run))?;
    }
    Ok(bytes)
}
