//! Objects made of a description in the DICOM JSON model and the bulk data that it names (PS3.18 8.6.1.2 and annex F). Must not know where they
//! go.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR};
use dicom_scp::{Status, TransferSyntax, Uid};
use ihe_retrieve::media_type::MediaType;
use ihe_retrieve::multipart::PartHead;
use serde_json::{Map, Value as Json};

use super::from_json::{self, Bulk};
use super::store::Refusal;
use crate::archive::FileMeta;
use crate::http::Problem;

/// Longest description, in bytes: as values in memory it is several times as long.
const TEXT_BYTES_MAX: usize = 32 << 20;
/// Most objects and most values in it, at all levels. The shortest ones take a hundred times as much memory as they have characters.
const OBJECTS_MAX: usize = 1_000_000;
const VALUES_MAX: usize = 6_000_000;
/// Most bulk data beside it, in bytes: it is in memory until its objects are stored. What is named several times is as long several times.
const BULK_BYTES_MAX: usize = 256 << 20;

const SOP_CLASS: Tag = Tag(0x0008, 0x0016);
const SOP_INSTANCE: Tag = Tag(0x0008, 0x0018);
const NUMBER_OF_FRAMES: Tag = Tag(0x0028, 0x0008);
pub(super) const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
const ITEM: [u8; 4] = [0xFE, 0xFF, 0x00, 0xE0];
const SEQUENCE_DELIMITATION: [u8; 8] = [0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0];

/// A body as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Made {
    text: Option<Vec<u8>>,
    bulk: HashMap<String, Vec<BulkPart>>,
    /// Where the part that is coming goes; none: it is the description.
    coming: Option<String>,
    bulk_bytes: usize,
}

/// A part of bulk data.
#[derive(Debug)]
struct BulkPart {
    media_type: Option<MediaType>,
    octets: Vec<u8>,
}

/// An object that is described.
pub(super) struct Described {
    description: Map<String, Json>,
    bulk: Arc<HashMap<String, Vec<BulkPart>>>,
    /// Octets that this object and those after it may still take.
    left: Arc<AtomicUsize>,
}

/// An object that cannot be made of its description.
#[derive(Debug)]
pub(super) struct NotMade {
    /// What it would be, as far as that is known.
    pub(super) meta: Option<FileMeta>,
    pub(super) refusal: Refusal,
}

impl Made {
    /// A part begins. The first is the description (PS3.18 8.6.1.2.2).
    pub(super) fn begin(&mut self, head: PartHead) -> Result<(), Problem> {
        if self.text.is_none() {
            self.text = Some(Vec::new());
            return Ok(());
        }
        let named = head.content_location.or_else(|| head.content_id.map(|id| format!("cid:{id}")));
        let named = named.ok_or_else(|| Problem::bad_request("a part of bulk data has no Content-Location"))?;
        let part = BulkPart { media_type: head.content_type, octets: Vec::new() };
        self.bulk.entry(named.clone()).or_default().push(part);
        self.coming = Some(named);
        Ok(())
    }

    /// Octets of the part.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), Problem> {
        let Some(named) = &self.coming else {
            let text = self.text.get_or_insert_default();
            if text.len() + data.len() > TEXT_BYTES_MAX {
                return Err(Problem::too_large(TEXT_BYTES_MAX));
            }
            text.extend_from_slice(data);
            return Ok(());
        };
        self.bulk_bytes += data.len();
        if self.bulk_bytes > BULK_BYTES_MAX {
            return Err(Problem::too_large(BULK_BYTES_MAX));
        }
        if let Some(part) = self.bulk.get_mut(named).and_then(|parts| parts.last_mut()) {
            part.octets.extend_from_slice(data);
        }
        Ok(())
    }

    /// The objects, in the order of the description.
    pub(super) fn objects(self) -> Result<Vec<Described>, Problem> {
        let text = self.text.unwrap_or_default();
        if !is_small(&text) {
            let why = format!("the description has more than {OBJECTS_MAX} objects or {VALUES_MAX} values");
            return Err(Problem::bad_request(why));
        }
        let described: Vec<Map<String, Json>> = serde_json::from_slice(&text).map_err(|error| {
            Problem::bad_request(format!("the description is no array of DICOM JSON objects: {error}"))
        })?;
        let (bulk, left) = (Arc::new(self.bulk), Arc::new(AtomicUsize::new(BULK_BYTES_MAX)));
        let with_bulk = |description| Described { description, bulk: bulk.clone(), left: left.clone() };
        Ok(described.into_iter().map(with_bulk).collect())
    }
}

impl Described {
    /// The object's data set, ready to be written behind its group 0002.
    pub(super) fn made(self) -> Result<(FileMeta, Vec<u8>), Box<NotMade>> {
        let refuse = |meta: Option<FileMeta>, refusal| Box::new(NotMade { meta, refusal });
        let is_too_much = Cell::new(false);
        let find = |uri: &str| -> Option<Bulk> {
            let parts = self.bulk.get(uri)?;
            if !self.takes(parts) {
                is_too_much.set(true);
                return None;
            }
            Some(Bulk(parts.iter().map(|part| part.octets.as_slice()).collect::<Vec<_>>().concat()))
        };
        let read = from_json::read(&self.description, &find);
        let refused = |error: from_json::JsonError| match is_too_much.get() {
            true => too_much_bulk(),
            false => Refusal::cannot_understand(error.to_string()),
        };
        let (set, pixels) = read.map_err(|error| refuse(None, refused(error)))?;
        let pixels = pixels.map(|uri| self.pixels(&uri)).transpose();
        let syntax = match &pixels {
            Ok(Some(pixels)) => pixels.syntax,
            _ => TransferSyntax::EXPLICIT_VR_LE,
        };
        let uid = |tag: Tag, name: &str| {
            set.uid(tag).ok_or_else(|| refuse(None, Refusal::cannot_understand(format!("it has no {name}"))))
        };
        let meta = FileMeta {
            sop_class: uid(SOP_CLASS, "SOP Class UID")?,
            sop_instance: uid(SOP_INSTANCE, "SOP Instance UID")?,
            transfer_syntax: *syntax.uid(),
        };
        match pixels.and_then(|pixels| written(set, pixels)) {
            Ok(bytes) => Ok((meta, bytes)),
            Err(refusal) => Err(refuse(Some(meta), refusal)),
        }
    }

    /// Whether there is room for these octets, which are then counted.
    fn takes(&self, parts: &[BulkPart]) -> bool {
        let octets = parts.iter().map(|part| part.octets.len()).sum();
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(octets)).is_ok()
    }

    /// The parts that a description names as its pixel data.
    fn pixels(&self, uri: &str) -> Result<Pixels<'_>, Refusal> {
        let parts = self.bulk.get(uri).map(Vec::as_slice).unwrap_or_default();
        let first =
            parts.first().ok_or_else(|| Refusal::cannot_understand(format!("no part has Content-Location {uri}")))?;
        if !self.takes(parts) {
            return Err(too_much_bulk());
        }
        let syntax = syntax(first.media_type.as_ref())?;
        Ok(Pixels { syntax, parts })
    }
}

fn too_much_bulk() -> Refusal {
    Refusal::cannot_understand(format!("more than {BULK_BYTES_MAX} octets of bulk data are named"))
}

/// Whether a text has no more objects and values than may be, so that it can be read into memory.
fn is_small(text: &[u8]) -> bool {
    let (mut objects, mut values, mut quoted, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => objects += 1,
            b',' | b'[' if !quoted => values += 1,
            _ => {}
        }
    }
    objects <= OBJECTS_MAX && values <= VALUES_MAX
}

/// Pixel data as it came.
struct Pixels<'a> {
    syntax: TransferSyntax,
    parts: &'a [BulkPart],
}

/// The transfer syntax that a part's media type names, or stands for (PS3.18 table 8.7.3-2).
fn syntax(media_type: Option<&MediaType>) -> Result<TransferSyntax, Refusal> {
    let stated = media_type.and_then(|media_type| media_type.parameter("transfer-syntax"));
    let uid = match (stated, media_type.map_or("application/octet-stream", MediaType::essence)) {
        (Some(stated), _) => stated,
        (None, "application/octet-stream") => "1.2.840.10008.1.2.1",
        (None, "image/jpeg") => "1.2.840.10008.1.2.4.70",
        (None, "image/dicom-rle") => "1.2.840.10008.1.2.5",
        (None, "image/jls") => "1.2.840.10008.1.2.4.80",
        (None, "image/jp2") => "1.2.840.10008.1.2.4.90",
        (None, "image/jpx") => "1.2.840.10008.1.2.4.92",
        (None, other) => {
            return Err(Refusal::new(Status(0xC122), format!("{other} without a transfer-syntax")));
        }
    };
    let known = Uid::new(uid).ok().and_then(|uid| TransferSyntax::of(&uid));
    match known {
        // The octets are the same, and the data set is written here.
        Some(TransferSyntax::IMPLICIT_VR_LE) => Ok(TransferSyntax::EXPLICIT_VR_LE),
        Some(syntax) if syntax.is_encapsulated() || syntax == TransferSyntax::EXPLICIT_VR_LE => Ok(syntax),
        _ => Err(Refusal::new(Status(0xC122), format!("transfer syntax {uid} is not taken"))),
    }
}

/// The data set in its transfer syntax.
fn written(mut set: DataSet, pixels: Option<Pixels<'_>>) -> Result<Vec<u8>, Refusal> {
    let Some(Pixels { syntax, parts }) = pixels else { return Ok(set.write(Encoding::ExplicitLe)) };
    if !syntax.is_encapsulated() {
        let vr = set.get(PIXEL_DATA).map_or(VR::OW, |element| element.vr);
        let octets = parts.iter().map(|part| part.octets.as_slice()).collect::<Vec<_>>().concat();
        set.put(PIXEL_DATA, Element::bytes(vr, octets));
        return Ok(set.write(Encoding::ExplicitLe));
    }
    let frames = set.int(NUMBER_OF_FRAMES).unwrap_or(1);
    if usize::try_from(frames) != Ok(parts.len()) {
        let comment = format!("{} parts of compressed pixel data for {frames} frames", parts.len());
        return Err(Refusal::cannot_understand(comment));
    }
    set.remove(PIXEL_DATA);
    let (before, after): (Vec<_>, Vec<_>) =
        set.iter().map(|(tag, element)| (*tag, element.clone())).partition(|(tag, _)| *tag < PIXEL_DATA);
    let mut out = before.into_iter().collect::<DataSet>().write(Encoding::ExplicitLe);
    encapsulate(parts, &mut out)?;
    out.extend(after.into_iter().collect::<DataSet>().write(Encoding::ExplicitLe));
    Ok(out)
}

/// A fragment a frame, after an empty offset table (PS3.5 A.4).
fn encapsulate(parts: &[BulkPart], out: &mut Vec<u8>) -> Result<(), Refusal> {
    out.extend_from_slice(&[0xE0, 0x7F, 0x10, 0x00, b'O', b'B', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    out.extend_from_slice(&ITEM);
    out.extend_from_slice(&[0; 4]);
    for part in parts {
        let even = part.octets.len().next_multiple_of(2);
        let length = u32::try_from(even).map_err(|_| Refusal::cannot_understand("a frame of more than 4 GiB"))?;
        out.extend_from_slice(&ITEM);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&part.octets);
        out.resize(out.len() + even - part.octets.len(), 0);
    }
    out.extend_from_slice(&SEQUENCE_DELIMITATION);
    Ok(())
}
