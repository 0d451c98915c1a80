//! Whole Part 10 files, from bytes to bytes (PS3.10 7).
//!
//! Native objects come out in Explicit VR Little Endian, compressed ones in their own transfer syntax. Elements behind the pixel
//! data (signatures, padding, private groups) are all of kinds that are removed, so nothing of them is read.

use std::io::Read;

use dicom_scp::TransferSyntax;
use dicom_scp::dataset::{DataSet, Encoding, ReadEnd, ReadError, ReadOptions, Tag, Value, read};
use flate2::read::DeflateDecoder;

use super::refuse::{Pixels, Refusal};
use super::{Deidentifier, Reason, Report, compressed, is_deidentified, pixels};
use crate::archive::{FileMeta, Part10Error};

/// What a deflated data set may inflate to, in bytes.
const INFLATED_BYTES_MAX: u64 = 1 << 30;
const ELEMENTS_MAX: u32 = 1_000_000;
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
const SOP_CLASS_UID: Tag = Tag(0x0008, 0x0016);
const SOP_INSTANCE_UID: Tag = Tag(0x0008, 0x0018);
/// (7FE0,0010) OB of undefined length.
const ENCAPSULATED_HEAD: [u8; 12] = [0xE0, 0x7F, 0x10, 0x00, b'O', b'B', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF];
const ITEM: [u8; 4] = [0xFE, 0xFF, 0x00, 0xE0];
const SEQUENCE_DELIMITATION: [u8; 4] = [0xFE, 0xFF, 0xDD, 0xE0];

/// Why a file was not de-identified.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is no DICOM file.
    #[error(transparent)]
    Part10(#[from] Part10Error),
    /// Its transfer syntax is not one of the standard.
    #[error("unknown transfer syntax")]
    TransferSyntax,
    /// Its data set cannot be understood.
    #[error("data set cannot be read")]
    DataSet(#[from] ReadError),
    /// It ends within an element, or cannot be inflated.
    #[error("data set is truncated or damaged")]
    Truncated,
    /// Group 0002 and the data set name different objects.
    #[error("file meta information and data set differ")]
    Mismatch,
    /// It must not be de-identified.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A check found that it is not de-identified.
    #[error("not de-identified: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotDeidentified(Vec<Reason>),
}

/// A file taken apart.
struct Parts {
    transfer_syntax: TransferSyntax,
    data_set: DataSet,
    /// The fragments of encapsulated pixel data, the offset table first.
    fragments: Option<Vec<Vec<u8>>>,
}

impl Deidentifier {
    /// De-identifies a Part 10 file, and checks the result as [`super::file_is_deidentified`] does before giving it away.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn file(&self, bytes: &[u8]) -> Result<(Vec<u8>, Report), FileError> {
        let (bytes, report) = self.unchecked(bytes)?;
        check(&bytes)?;
        Ok((bytes, report))
    }

    fn unchecked(&self, bytes: &[u8]) -> Result<(Vec<u8>, Report), FileError> {
        let parts = Parts::of(bytes)?;
        let Some(mut fragments) = parts.fragments else {
            let (data_set, report) = self.data_set(&parts.data_set)?;
            return Ok((native(&data_set)?, report));
        };
        let (header, pixels, report) = self.header(&parts.data_set)?;
        if matches!(&pixels, Pixels::Blanked(blanking) if !blanking.is_nothing()) {
            return Err(Refusal::PixelData("regions of compressed pixels are not blanked; decompress first").into());
        }
        clean(&parts.transfer_syntax, &parts.data_set, &mut fragments)?;
        Ok((encapsulated(&parts.transfer_syntax, &header, &fragments)?, report))
    }
}

/// See [`super::file_is_deidentified`].
pub(super) fn check(bytes: &[u8]) -> Result<(), FileError> {
    let parts = Parts::of(bytes)?;
    let mut reasons = is_deidentified(&parts.data_set).err().unwrap_or_default();
    if let Some(mut fragments) = parts.fragments {
        let before = fragments.clone();
        match clean(&parts.transfer_syntax, &parts.data_set, &mut fragments) {
            Ok(()) if fragments == before => {}
            Ok(()) => reasons.push(Reason::PixelData),
            Err(refusal) => reasons.push(Reason::Refused(refusal)),
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(FileError::NotDeidentified(reasons)) }
}

/// Cleans what is behind the offset table. The table itself is emptied: it may be (PS3.5 A.4), and could hold anything.
fn clean(syntax: &TransferSyntax, header: &DataSet, fragments: &mut [Vec<u8>]) -> Result<(), Refusal> {
    if pixels::has_embedded_overlay(header) {
        return Err(Refusal::PixelData("overlays in the cells of compressed pixels"));
    }
    let Some((table, fragments)) = fragments.split_first_mut() else {
        return Err(Refusal::PixelData("no offset table"));
    };
    table.clear();
    compressed::clean(syntax.uid().as_str(), pixels::frames(header), fragments)
}

impl Parts {
    fn of(bytes: &[u8]) -> Result<Self, FileError> {
        let (meta, begin) = FileMeta::read(&mut &*bytes)?;
        let transfer_syntax = TransferSyntax::of(&meta.transfer_syntax).ok_or(FileError::TransferSyntax)?;
        let body = bytes.get(usize::try_from(begin).unwrap_or(usize::MAX)..).ok_or(FileError::Truncated)?;
        let inflated = if transfer_syntax.is_deflated() { Some(inflate(body)?) } else { None };
        let body = inflated.as_deref().unwrap_or(body);
        let data_set = read_to(body, &transfer_syntax, Tag(PIXEL_DATA.0, PIXEL_DATA.1 + 1))?.0;
        if data_set.uid(SOP_INSTANCE_UID) != Some(meta.sop_instance)
            || data_set.uid(SOP_CLASS_UID) != Some(meta.sop_class)
        {
            return Err(FileError::Mismatch);
        }
        let fragments = match data_set.get(PIXEL_DATA).map(|element| &element.value) {
            Some(Value::Skipped { .. } | Value::Items(_)) => {
                let (_, offset) = read_to(body, &transfer_syntax, PIXEL_DATA)?;
                Some(fragments(body.get(offset..).unwrap_or_default()).ok_or(FileError::Truncated)?)
            }
            _ => None,
        };
        refuse_swapped_cells(&transfer_syntax, &data_set)?;
        Ok(Self { transfer_syntax, data_set, fragments })
    }
}

/// The data set up to an element, and where that begins.
fn read_to(body: &[u8], syntax: &TransferSyntax, stop_at: Tag) -> Result<(DataSet, usize), FileError> {
    let options = ReadOptions {
        stop_at: Some(stop_at),
        value_bytes_max: u32::MAX - 1,
        elements_max: ELEMENTS_MAX,
        ..ReadOptions::default()
    };
    match read(body, syntax.encoding(), &options)? {
        (data_set, ReadEnd::Complete) => Ok((data_set, body.len())),
        (data_set, ReadEnd::Stopped { offset, .. }) => Ok((data_set, offset)),
        (_, ReadEnd::NeedMore { .. }) => Err(FileError::Truncated),
    }
}

fn inflate(body: &[u8]) -> Result<Vec<u8>, FileError> {
    let mut out = Vec::new();
    let read = DeflateDecoder::new(body).take(INFLATED_BYTES_MAX + 1).read_to_end(&mut out);
    match read {
        Ok(bytes) if bytes as u64 <= INFLATED_BYTES_MAX => Ok(out),
        _ => Err(FileError::Truncated),
    }
}

/// Big endian cells wider than the words of their VR: which way round they were written is not certain.
fn refuse_swapped_cells(syntax: &TransferSyntax, data_set: &DataSet) -> Result<(), Refusal> {
    let is_wide = data_set.int(Tag(0x0028, 0x0100)).is_some_and(|bits| bits > 16);
    match syntax.encoding() == Encoding::ExplicitBe && is_wide && data_set.contains(PIXEL_DATA) {
        true => Err(Refusal::PixelData("big endian cells of more than 16 bits")),
        false => Ok(()),
    }
}

/// The items of the encapsulated pixel data element at the front of `bytes`.
fn fragments(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    bytes.starts_with(&ENCAPSULATED_HEAD[..4]).then_some(())?;
    let mut rest = bytes.get(ENCAPSULATED_HEAD.len()..)?;
    let mut fragments = Vec::new();
    loop {
        let (head, behind) = (rest.get(..4)?, rest.get(8..)?);
        if head == SEQUENCE_DELIMITATION {
            return Some(fragments);
        }
        let length = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
        (head == ITEM).then_some(())?;
        fragments.push(behind.get(..length)?.to_vec());
        rest = behind.get(length..)?;
    }
}

fn native(data_set: &DataSet) -> Result<Vec<u8>, FileError> {
    let mut out = meta(&TransferSyntax::EXPLICIT_VR_LE, data_set)?;
    out.extend(data_set.write(Encoding::ExplicitLe));
    Ok(out)
}

fn encapsulated(syntax: &TransferSyntax, header: &DataSet, fragments: &[Vec<u8>]) -> Result<Vec<u8>, FileError> {
    let mut out = meta(syntax, header)?;
    out.extend(header.write(Encoding::ExplicitLe));
    out.extend(ENCAPSULATED_HEAD);
    for fragment in fragments {
        out.extend(ITEM);
        // Each is as long as it was when it was read.
        out.extend(u32::try_from(fragment.len()).map_err(|_| FileError::Truncated)?.to_le_bytes());
        out.extend(fragment);
    }
    out.extend(SEQUENCE_DELIMITATION);
    out.extend([0; 4]);
    Ok(out)
}

fn meta(syntax: &TransferSyntax, data_set: &DataSet) -> Result<Vec<u8>, FileError> {
    let sop_class = data_set.uid(SOP_CLASS_UID).ok_or(Refusal::Lacks("SOP Class UID (0008,0016)"))?;
    let sop_instance = data_set.uid(SOP_INSTANCE_UID).ok_or(Refusal::Lacks("SOP Instance UID (0008,0018)"))?;
    Ok(FileMeta { sop_class, sop_instance, transfer_syntax: *syntax.uid() }.encode())
}
