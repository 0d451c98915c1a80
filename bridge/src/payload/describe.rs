//! What a manifest says about an object beyond its name: a header for queries, and a digest of the pixels.

use std::io::{Read, Seek};

use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, Value};
use sha2::{Digest, Sha256};

use super::Sha256Digest;
use super::manifest::HEADER_BYTES_MAX;
use super::object::{Object, ObjectError, PixelKind, PixelLocation};

/// Values longer than this are left out of a manifest's header unless configured otherwise.
pub const HEADER_VALUE_BYTES_DEFAULT: usize = 1024;

const DIGEST_LABEL: &[u8] = b"pacs-bridge/pixel/1";

/// What a Part 10 file contains, as a manifest records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Transfer Syntax UID.
    pub transfer_syntax: Uid,
    /// The data set up to the pixel data in Explicit VR Little Endian, long values left out.
    pub header: Vec<u8>,
    /// Canonical digest of the pixel data (see [`describe`]); `None` where there is none.
    pub pixel_sha256: Option<Sha256Digest>,
}

/// Reads an object's header and digests its pixel data, in memory bounded by the header.
///
/// The digest is SHA-256 over `"pacs-bridge/pixel/1" 00 tag 00 coding 00 bytes`, where `tag` is `7FE00010`, `7FE00008` or
/// `7FE00009`; `coding` is `native` for every uncompressed transfer syntax and else the Transfer Syntax UID; and `bytes` is
///
/// - for native pixel data, the value field, words in little endian order;
/// - for encapsulated pixel data, the values of all fragments in order, without the offset table and without item headers.
///
/// It stays the same when other attributes change, when a native object moves between implicit, explicit, deflated and
/// big endian, when offset tables come and go, and when frames are cut into other fragments. It changes with the pixels
/// and with the compression, because two codings of one picture are not the same evidence.
///
/// # Errors
/// [`ObjectError`] when the file cannot be read as an object, or its fragments are damaged.
pub fn describe<R: Read + Seek>(source: &mut R, value_bytes_max: usize) -> Result<Described, ObjectError> {
    let mut object = Object::open(source)?;
    let pixel_sha256 = match object.pixels {
        Some(location) => Some(digest(&mut object, &location)?),
        None => None,
    };
    Ok(Described {
        transfer_syntax: object.transfer_syntax,
        header: shortened(&object.header, value_bytes_max, HEADER_BYTES_MAX),
        pixel_sha256,
    })
}

/// The whole header of an object: the data set up to its pixel data, with values that are longer than `value_bytes_max` named and left out
/// ([`Value::Skipped`]), and so the pixel data.
///
/// # Errors
/// [`ObjectError`] when the file cannot be read as an object.
pub fn header<R: Read + Seek>(source: &mut R, value_bytes_max: usize) -> Result<DataSet, ObjectError> {
    let object = Object::open(source)?;
    let mut header = named_long_values(&object.header, value_bytes_max);
    if let Some(location) = object.pixels {
        let tag = match location.kind {
            PixelKind::Integer => Tag(0x7FE0, 0x0010),
            PixelKind::Float => Tag(0x7FE0, 0x0008),
            PixelKind::Double => Tag(0x7FE0, 0x0009),
        };
        let length = location.bytes.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(u32::MAX);
        header.put(tag, Element { vr: location.vr, value: Value::Skipped { length } });
    }
    Ok(header)
}

fn named_long_values(header: &DataSet, value_bytes_max: usize) -> DataSet {
    let cut = |element: &Element| match &element.value {
        Value::Bytes(bytes) if bytes.len() > value_bytes_max => {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            Element { vr: element.vr, value: Value::Skipped { length } }
        }
        Value::Items(items) => {
            let items = items.iter().map(|item| named_long_values(item, value_bytes_max)).collect();
            Element { vr: element.vr, value: Value::Items(items) }
        }
        _ => element.clone(),
    };
    header.iter().map(|(tag, element)| (*tag, cut(element))).collect()
}

fn digest<R: Read + Seek>(object: &mut Object<R>, location: &PixelLocation) -> Result<Sha256Digest, ObjectError> {
    let tag: &[u8] = match location.kind {
        PixelKind::Integer => b"7FE00010",
        PixelKind::Float => b"7FE00008",
        PixelKind::Double => b"7FE00009",
    };
    let coding = if location.bytes.is_some() { "native" } else { object.transfer_syntax.as_str() }.to_owned();
    let mut digest = Sha256::new();
    for part in [DIGEST_LABEL, tag, coding.as_bytes()] {
        digest.update(part);
        digest.update([0]);
    }
    match location.bytes {
        Some(bytes) => {
            let word = if object.pixels_are_big_endian() { object.pixel_word_bytes(location) } else { 1 };
            object.read_range(location.begin, bytes, |run| {
                if word > 1 {
                    run.chunks_exact_mut(word).for_each(<[u8]>::reverse);
                }
                digest.update(&run);
            })?;
        }
        None => digest_fragments(object, location, &mut digest)?,
    }
    Ok(digest.finalize().into())
}

fn digest_fragments<R: Read + Seek>(
    object: &mut Object<R>,
    location: &PixelLocation,
    digest: &mut Sha256,
) -> Result<(), ObjectError> {
    let table = object.item_at(location.begin)?.ok_or(ObjectError::PixelData("no offset table"))?;
    let mut at = table.begin + table.bytes;
    while let Some(fragment) = object.item_at(at)? {
        object.read_range(fragment.begin, fragment.bytes, |run| digest.update(&run))?;
        at = fragment.begin + fragment.bytes;
    }
    Ok(())
}

/// The header with long values dropped, and then its largest elements until it is short enough altogether.
fn shortened(header: &DataSet, value_bytes_max: usize, bytes_max: usize) -> Vec<u8> {
    let mut kept = named_long_values(header, value_bytes_max);
    let mut encoded = kept.write(Encoding::ExplicitLe);
    while encoded.len() > bytes_max {
        let size = |(tag, element): (_, &Element)| {
            let alone: DataSet = [(tag, element.clone())].into_iter().collect();
            (alone.write(Encoding::ExplicitLe).len(), tag)
        };
        let largest = kept.iter().map(|(tag, element)| size((*tag, element))).max();
        let Some((_, tag)) = largest else { break };
        kept.remove(tag);
        encoded = kept.write(Encoding::ExplicitLe);
    }
    encoded
}
