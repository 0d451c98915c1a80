//! Finding one's way in a Part 10 file (PS3.10 7) without loading it: the header as a data set, and where pixel data is.
//!
//! Reads from a `Read + Seek` by offset, so that one frame of an object of any size costs only that frame. Deflated data
//! sets are inflated as far as needed. Must not know codecs, windows or the ledger.

use std::io::{self, Read, Seek, SeekFrom};

use dicom_scp::dataset::{self, DataSet, Encoding, ReadOptions, ScanError, Scanned, Scanner, Tag, VR};
use dicom_scp::{TransferSyntax, Uid};
use flate2::read::DeflateDecoder;

/// Longest value kept from a header: the largest palette has 128 KiB.
const HEADER_VALUE_BYTES_MAX: u32 = 1 << 20;
/// Longest single sequence before the pixel data, in bytes; per-frame functional groups of long series are large.
const HEADER_SEQUENCE_BYTES_MAX: usize = 64 << 20;
const HEADER_ELEMENTS_MAX: u32 = 1_000_000;
/// How far a deflated data set is inflated to reach a frame: a bomb ends here.
const INFLATED_BYTES_MAX: u64 = 2 << 30;
/// Longest file meta information that is searched for the transfer syntax.
const META_BYTES_MAX: u64 = 64 << 10;
/// Longest header that is read with every value, in bytes. A value may have 4 GiB, and an object as many as its sender liked.
const WHOLE_HEADER_BYTES_MAX: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };
const FIRST_RUN_BYTES: usize = 16 << 10;
const LARGEST_RUN_BYTES: usize = 16 << 20;

const RANGE_RUN_BYTES: usize = 256 << 10;

/// Implicit VR little endian with big endian pixel data, written by old GE systems.
pub(super) const GE_PRIVATE: Uid = Uid::literal("1.2.840.113619.5.2");

const TRANSFER_SYNTAX_UID: Tag = Tag(0x0002, 0x0010);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);
const FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0008);
const DOUBLE_FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0009);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

/// Why a file cannot be read as a DICOM object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The file itself could not be read.
    #[error("object could not be read")]
    Io(#[from] io::Error),
    /// It is no Part 10 file, or damaged in its meta information.
    #[error("not a dicom file: {0}")]
    NotDicom(&'static str),
    /// The data set's head cannot be understood.
    #[error("header could not be read")]
    Header(#[from] ScanError),
    /// Longer than is held in memory.
    #[error("header is longer than {bytes_max} bytes")]
    LongHeader {
        /// The limit.
        bytes_max: u64,
    },
    /// The pixel data element is damaged.
    #[error("pixel data is malformed: {0}")]
    PixelData(&'static str),
}

/// What kind of numbers the pixel data holds (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelKind {
    /// (7FE0,0010)
    Integer,
    /// (7FE0,0008)
    Float,
    /// (7FE0,0009)
    Double,
}

/// Where the pixel data's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelLocation {
    pub(super) kind: PixelKind,
    pub(super) vr: VR,
    /// Offset of the value from the begin of the (inflated) data set.
    pub(super) begin: u64,
    /// Length of the value; `None` when it is encapsulated.
    pub(super) bytes: Option<u64>,
    /// How its element and those around it are encoded, which need not be what the transfer syntax says.
    pub(super) encoding: Encoding,
}

/// An item of encapsulated pixel data: the offset table or a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    /// Offset of its value in the data set.
    pub(super) begin: u64,
    /// Length of its value.
    pub(super) bytes: u64,
}

/// An opened object: its header in memory, its pixel data by offset.
pub(super) struct Object<R> {
    pub(super) transfer_syntax: Uid,
    pub(super) big_endian: bool,
    pub(super) header: DataSet,
    /// `None` for objects without pixels.
    pub(super) pixels: Option<PixelLocation>,
    /// Offset of the first element that is not in the header, if there is one.
    pub(super) header_end: Option<u64>,
    body: Body<R>,
}

impl<R: Read + Seek> Object<R> {
    /// Reads meta information and header.
    pub(super) fn open(source: R) -> Result<Self, ObjectError> {
        Self::open_with(source, HEADER_VALUE_BYTES_MAX, u64::MAX)
    }

    /// The same, with a header that has every value, however long.
    pub(super) fn open_whole(source: R) -> Result<Self, ObjectError> {
        Self::open_with(source, u32::MAX - 1, WHOLE_HEADER_BYTES_MAX)
    }

    fn open_with(mut source: R, value_bytes_max: u32, bytes_max: u64) -> Result<Self, ObjectError> {
        let Start { transfer_syntax, begin } = find_start(&mut source)?;
        let mut scanner = Scanner::new(transfer_syntax, header_options(value_bytes_max), HEADER_SEQUENCE_BYTES_MAX);
        source.seek(SeekFrom::Start(begin))?;
        let mut run = vec![0; FIRST_RUN_BYTES];
        let (mut scanned, mut taken) = (Scanned::NeedMore, 0_u64);
        while scanned == Scanned::NeedMore {
            let count = source.read(&mut run)?;
            if count == 0 {
                break;
            }
            if taken > bytes_max {
                return Err(ObjectError::LongHeader { bytes_max });
            }
            taken += count as u64;
            scanned = scanner.push(&run[..count])?;
            // A growing run keeps the work linear when a single sequence is very long.
            let next = (run.len() * 2).min(LARGEST_RUN_BYTES);
            run.resize(next, 0);
        }
        let (header, _) = scanner.finish();
        if header.is_empty() {
            return Err(ObjectError::NotDicom("no data elements"));
        }
        let big_endian = transfer_syntax.encoding() == Encoding::ExplicitBe;
        let mut body = Body { source, begin, deflated: transfer_syntax.is_deflated() };
        let (pixels, header_end) = match scanned {
            Scanned::Stopped { tag, offset } => (locate(&mut body, tag, offset, big_endian)?, Some(offset)),
            Scanned::NeedMore => (None, None),
        };
        Ok(Self { transfer_syntax: *transfer_syntax.uid(), big_endian, header, pixels, header_end, body })
    }

    /// Reads up to `out.len()` bytes of the data set from `offset`; fewer only where it ends.
    pub(super) fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<usize, ObjectError> {
        Ok(self.body.read_at(offset, out)?)
    }

    /// Passes `bytes` bytes of the data set from `offset` to `take`, in runs of a multiple of 8 bytes except the last.
    /// Ends quietly where the data set does.
    pub(super) fn read_range(
        &mut self,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(&mut [u8]),
    ) -> Result<(), ObjectError> {
        let mut range = self.body.range(offset, bytes)?;
        let mut run = vec![0; RANGE_RUN_BYTES];
        loop {
            let count = read_fully(&mut range, &mut run)?;
            take(&mut run[..count]);
            if count < run.len() {
                return Ok(());
            }
        }
    }

    /// The item of encapsulated pixel data at `offset`; `None` at the sequence delimiter or the end. Items are little
    /// endian in every transfer syntax (PS3.5 A.4).
    pub(super) fn item_at(&mut self, offset: u64) -> Result<Option<Item>, ObjectError> {
        let mut head = [0; 8];
        if self.read_at(offset, &mut head)? < head.len() || head[..4] != [0xFE, 0xFF, 0x00, 0xE0] {
            return Ok(None);
        }
        let bytes = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        Ok(Some(Item { begin: offset + 8, bytes }))
    }

    /// The bytes of one word of this object's pixel data, the unit in which a big endian writer turned them round
    /// (PS3.5 7.3): that of the VR, and cells of 32 bits and more by their own size.
    pub(super) fn pixel_word_bytes(&self, location: &PixelLocation) -> usize {
        let bits = match location.kind {
            PixelKind::Integer => self.header.int(BITS_ALLOCATED).unwrap_or(16),
            PixelKind::Float => 32,
            PixelKind::Double => 64,
        };
        match (location.vr, bits) {
            (VR::OB | VR::UN, ..=8) => 1,
            (_, ..=16) => 2,
            (_, ..=32) => 4,
            _ => 8,
        }
    }

    /// Whether native pixel data has its most significant byte first.
    pub(super) fn pixels_are_big_endian(&self) -> bool {
        self.big_endian || self.transfer_syntax == GE_PRIVATE
    }
}

fn header_options(value_bytes_max: u32) -> ReadOptions {
    ReadOptions {
        stop_at: Some(FLOAT_PIXEL_DATA),
        value_bytes_max,
        elements_max: HEADER_ELEMENTS_MAX,
        ..ReadOptions::default()
    }
}

struct Start {
    transfer_syntax: TransferSyntax,
    begin: u64,
}

/// Finds the begin of the data set and how it is encoded. Files without preamble or meta information occur in archives
/// that were filled by hand; the data set itself then tells its encoding.
fn find_start<R: Read + Seek>(source: &mut R) -> Result<Start, ObjectError> {
    source.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    source.take(132 + META_BYTES_MAX).read_to_end(&mut head)?;
    let meta_at = if head.get(128..132) == Some(b"DICM") { 132 } else { 0 };
    let meta = &head[meta_at..];
    if meta.get(..2) != Some(&[0x02, 0x00]) {
        return Ok(Start { transfer_syntax: guess(meta)?, begin: meta_at as u64 });
    }
    let (elements, end) = read_meta(meta)?;
    let begin = (meta_at + end) as u64;
    let transfer_syntax = match elements.uid(TRANSFER_SYNTAX_UID) {
        Some(uid) => TransferSyntax::of(&uid).ok_or(ObjectError::NotDicom("unknown transfer syntax"))?,
        None => guess(&meta[end..])?,
    };
    Ok(Start { transfer_syntax, begin })
}

/// The elements of group 0002 and where they end. The group length is followed when it is there, because what comes
/// after may be deflated and look like anything.
fn read_meta(meta: &[u8]) -> Result<(DataSet, usize), ObjectError> {
    let unreadable = || ObjectError::NotDicom("unreadable file meta information");
    let declared = match meta.get(..12) {
        Some([0x02, 0, 0, 0, b'U', b'L', 4, 0, a, b, c, d]) => Some(12 + u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        _ => None,
    };
    let declared = declared.filter(|end| *end <= meta.len());
    let options = ReadOptions { stop_at: Some(Tag(0x0003, 0)), ..ReadOptions::default() };
    let bytes = &meta[..declared.unwrap_or(meta.len())];
    match dataset::read(bytes, Encoding::ExplicitLe, &options) {
        Ok((elements, dataset::ReadEnd::Complete)) => Ok((elements, bytes.len())),
        Ok((elements, dataset::ReadEnd::Stopped { offset, .. })) => Ok((elements, offset)),
        _ => Err(unreadable()),
    }
}

/// The encoding of a data set that nothing announces: by its first element's group and VR.
fn guess(bytes: &[u8]) -> Result<TransferSyntax, ObjectError> {
    match bytes.get(..6) {
        Some([0, group, _, _, a, b]) if *group > 0 && [*a, *b].iter().all(u8::is_ascii_uppercase) => {
            Ok(TransferSyntax::EXPLICIT_VR_BE)
        }
        Some([group, 0, _, _, a, b]) if *group > 0 => match [*a, *b].iter().all(u8::is_ascii_uppercase) {
            true => Ok(TransferSyntax::EXPLICIT_VR_LE),
            false => Ok(TransferSyntax::IMPLICIT_VR_LE),
        },
        _ => Err(ObjectError::NotDicom("neither meta information nor a data set at the begin")),
    }
}

/// Reads the head of the element at `offset`, if it is one of the three that hold pixels.
fn locate<R: Read + Seek>(
    body: &mut Body<R>,
    tag: Tag,
    offset: u64,
    big_endian: bool,
) -> Result<Option<PixelLocation>, ObjectError> {
    let kind = match tag {
        FLOAT_PIXEL_DATA => PixelKind::Float,
        DOUBLE_FLOAT_PIXEL_DATA => PixelKind::Double,
        PIXEL_DATA => PixelKind::Integer,
        _ => return Ok(None),
    };
    let mut head = [0; 12];
    let count = body.read_at(offset, &mut head)?;
    let explicit = head[4..6].iter().all(u8::is_ascii_uppercase);
    let (vr, at, size) = match explicit {
        true => (VR::from_binary([head[4], head[5]]).unwrap_or(VR::UN), 8, 12),
        false => (VR::OW, 4, 8),
    };
    if count < size {
        return Err(ObjectError::PixelData("element is cut short"));
    }
    let length = [head[at], head[at + 1], head[at + 2], head[at + 3]];
    let length = if big_endian { u32::from_be_bytes(length) } else { u32::from_le_bytes(length) };
    let bytes = (length != u32::MAX).then(|| u64::from(length));
    let encoding = match (big_endian, explicit) {
        (true, _) => Encoding::ExplicitBe,
        (false, true) => Encoding::ExplicitLe,
        (false, false) => Encoding::ImplicitLe,
    };
    Ok(Some(PixelLocation { kind, vr, begin: offset + size as u64, bytes, encoding }))
}

/// The data set's bytes by offset.
struct Body<R> {
    source: R,
    begin: u64,
    deflated: bool,
}

impl<R: Read + Seek> Body<R> {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        read_fully(&mut self.range(offset, out.len() as u64)?, out)
    }

    /// A reader of these bytes. Deflated data sets are inflated from their begin each time, which keeps no state; their
    /// pixel data is native, so one object asks only a few times.
    fn range(&mut self, offset: u64, bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        if !self.deflated {
            let Some(at) = self.begin.checked_add(offset) else { return Ok(Box::new(io::empty())) };
            self.source.seek(SeekFrom::Start(at))?;
            return Ok(Box::new((&mut self.source).take(bytes)));
        }
        if offset.saturating_add(bytes) > INFLATED_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "deflated data set is too long"));
        }
        self.source.seek(SeekFrom::Start(self.begin))?;
        let mut inflated = DeflateDecoder::new(&mut self.source);
        io::copy(&mut inflated.by_ref().take(offset), &mut io::sink())?;
        Ok(Box::new(inflated.take(bytes)))
    }
}

fn read_fully<R: Read>(source: &mut R, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match source.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
