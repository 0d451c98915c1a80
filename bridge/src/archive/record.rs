//! How an object stands in the intake log (docs/FORMAT.md, section 5): enough to make its file and its row again.
//!
//! A segment is a page that names its sequence number, then records, each padded to whole pages. Each record's digest goes
//! over the digest before it, the first one's over the page's: what was left by an earlier use of the segment, or behind
//! records that were withdrawn and written over, does not follow and is the end of what counts.

use dicom_scp::Uid;
use sha2::{Digest, Sha256};

use super::{FileId, NewInstance};

/// Everything in a segment begins at a multiple of this, in bytes, so that no write needs what was there before.
pub(super) const PAGE_BYTES: u64 = 4096;

const SEGMENT_MAGIC: [u8; 8] = *b"PBSEGM01";
const RECORD_MAGIC: [u8; 8] = *b"PBRECD01";
/// Magic, length of the description, length of the object, digest.
const HEADER_BYTES: usize = 8 + 4 + 8 + 32;
const DESCRIPTION_BYTES_MAX: usize = 3 * 1024;

/// Digest of a record or a segment's page; the next record's goes over it.
pub(super) type Link = [u8; 32];

/// What the log says of an object besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) sop_class: Uid,
    pub(super) sop_instance: Uid,
    pub(super) transfer_syntax: Uid,
    pub(super) calling_ae: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub(super) received_ms: i64,
    /// Offset of the data set in the object's file, in bytes.
    pub(super) meta_bytes: u64,
    /// SHA-256 of the whole file.
    pub(super) file_sha256: [u8; 32],
    /// The file that the object is to have.
    pub(super) file: FileId,
}

/// First page of a segment in use, and what its first record follows. `nonce` is never used again, so that no record of an
/// earlier use can follow.
pub(super) fn segment_page(sequence: u64, nonce: [u8; 16]) -> (Vec<u8>, Link) {
    let mut page = Vec::with_capacity(PAGE_BYTES as usize);
    page.extend_from_slice(&SEGMENT_MAGIC);
    page.extend_from_slice(&sequence.to_le_bytes());
    page.extend_from_slice(&nonce);
    let link: Link = Sha256::digest(&page).into();
    page.extend_from_slice(&link);
    page.resize(PAGE_BYTES as usize, 0);
    (page, link)
}

/// The sequence number of a segment and what its first record follows, unless nothing in it counts.
pub(super) fn read_segment_page(page: &[u8]) -> Option<(u64, Link)> {
    let (head, link) = (page.get(..32)?, page.get(32..64)?.try_into().ok()?);
    let sequence = u64::from_le_bytes(head[8..16].try_into().ok()?);
    (head[..8] == SEGMENT_MAGIC && Link::from(Sha256::digest(head)) == link).then_some((sequence, link))
}

/// Bytes that a record of an object of `object_bytes` takes, or none if its description is longer than any can be.
pub(super) fn record_bytes(description: &[u8], object_bytes: u64) -> Option<u64> {
    let bytes = (HEADER_BYTES + description.len()) as u64 + object_bytes;
    (description.len() <= DESCRIPTION_BYTES_MAX).then(|| bytes.next_multiple_of(PAGE_BYTES))
}

/// What stands before the object's bytes, and what the next record follows.
pub(super) fn record_head(before: &Link, description: &[u8], object_bytes: u64) -> (Vec<u8>, Link) {
    let mut head = Vec::with_capacity(HEADER_BYTES + description.len());
    head.extend_from_slice(&RECORD_MAGIC);
    head.extend_from_slice(&u32::try_from(description.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&object_bytes.to_le_bytes());
    let link = link(before, &head, description);
    head.extend_from_slice(&link);
    head.extend_from_slice(description);
    (head, link)
}

fn link(before: &Link, fixed: &[u8], description: &[u8]) -> Link {
    Sha256::new().chain_update(before).chain_update(fixed).chain_update(description).finalize().into()
}

/// A record found in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) description: Description,
    /// Offset of the object's bytes from the record's start.
    pub(super) object_at: u64,
    pub(super) object_bytes: u64,
    /// Bytes from this record's start to the next one's.
    pub(super) record_bytes: u64,
    /// What the next record follows.
    pub(super) link: Link,
}

/// The record that begins with `page`, if it follows `before`. `left` is what the segment holds from there, in bytes.
pub(super) fn read_record(page: &[u8], before: &Link, left: u64) -> Option<Found> {
    let fixed = page.get(..20).filter(|fixed| fixed[..8] == RECORD_MAGIC)?;
    let length = u32::from_le_bytes(fixed[8..12].try_into().ok()?) as usize;
    let object_bytes = u64::from_le_bytes(fixed[12..20].try_into().ok()?);
    let description = page.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
    let link = link(before, fixed, description);
    if page.get(20..HEADER_BYTES)? != link {
        return None;
    }
    let record_bytes = record_bytes(description, object_bytes).filter(|bytes| *bytes <= left)?;
    let object_at = (HEADER_BYTES + length) as u64;
    Some(Found { description: Description::read(description)?, object_at, object_bytes, record_bytes, link })
}

impl Description {
    pub(super) fn of(new: &NewInstance) -> Self {
        Self {
            sop_class: new.sop_class,
            sop_instance: new.sop_instance,
            transfer_syntax: new.transfer_syntax,
            calling_ae: new.calling_ae.clone(),
            received_ms: new.received_ms,
            meta_bytes: new.meta_bytes,
            file_sha256: new.file_sha256,
            file: new.file.clone(),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(400);
        let texts = [self.sop_class.as_str(), self.sop_instance.as_str(), self.transfer_syntax.as_str()];
        for text in texts.into_iter().chain([self.calling_ae.as_str(), &self.file.name]) {
            // No UID, AE title or file name of ours comes near 255 bytes; one that did would not be read back and is refused.
            out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&self.file.shard.to_le_bytes());
        out.extend_from_slice(&self.received_ms.to_le_bytes());
        out.extend_from_slice(&self.meta_bytes.to_le_bytes());
        out.extend_from_slice(&self.file_sha256);
        out
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        let mut text = || {
            let (length, rest) = bytes.split_first()?;
            let text = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?.to_owned();
            bytes = &rest[usize::from(*length)..];
            Some(text)
        };
        let uids = [text()?, text()?, text()?];
        let (calling_ae, name) = (text()?, text()?);
        let [sop_class, sop_instance, transfer_syntax] = uids.map(|uid| Uid::new(&uid).ok());
        let eight = |at: usize| bytes.get(at..at + 8)?.try_into().ok();
        Some(Self {
            sop_class: sop_class?,
            sop_instance: sop_instance?,
            transfer_syntax: transfer_syntax?,
            calling_ae,
            file: FileId { shard: i64::from_le_bytes(eight(0)?), name },
            received_ms: i64::from_le_bytes(eight(8)?),
            meta_bytes: u64::from_le_bytes(eight(16)?),
            file_sha256: bytes.get(24..)?.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn description() -> Description {
        Description {
            sop_class: Uid::new("1.2.840.10008.5.1.4.1.1.2").unwrap(),
            sop_instance: Uid::new("1.2.3.4").unwrap(),
            transfer_syntax: Uid::new("1.2.840.10008.1.2.1").unwrap(),
            calling_ae: "CT 1".into(),
            received_ms: -5,
            meta_bytes: 340,
            file_sha256: [7; 32],
            file: FileId { shard: 12, name: "00ff".into() },
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_flipped_bit_passes() {
        let written = description().write();
        let (mut page, link) = record_head(&[9; 32], &written, 10_000);
        let used = page.len();
        page.resize(PAGE_BYTES as usize, 0);
        let found = read_record(&page, &[9; 32], 1 << 20).unwrap();
        assert_eq!((found.description, found.link), (description(), link));
        assert_eq!((found.object_at, found.object_bytes, found.record_bytes), (used as u64, 10_000, 12_288));
        assert_eq!(read_record(&page, &[8; 32], 1 << 20), None, "a record that follows another");
        assert_eq!(read_record(&page, &[9; 32], 12_287), None, "a record that leaves its segment");
        for bit in 0..used * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_record(&page, &[9; 32], 1 << 20), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_segment_page_says_its_sequence_or_nothing() {
        let (mut page, link) = segment_page(77, [1; 16]);
        assert_eq!(read_segment_page(&page), Some((77, link)));
        assert_ne!(segment_page(77, [2; 16]).1, link, "records of an earlier use must not follow");
        page[9] ^= 1;
        assert_eq!(read_segment_page(&page), None);
        assert_eq!(read_segment_page(&[0; 4096]), None);
    }
}
