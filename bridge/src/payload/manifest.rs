//! The manifest: everything a receiving site must know of a study to answer queries and to fetch, verify and open its
//! objects, before any pixel has arrived.
//!
//! Encoded as deterministic CBOR, one encoding per content; a decoder that accepts bytes accepts only what [`Manifest::encode`]
//! writes. It is sealed like an object. Headers are carried as bytes: this file must not know data sets, and not
//! where images are kept.

use alloy::primitives::B256;
use dicom_scp::Uid;

pub use super::cbor::CborError;
use super::cbor::{Reader, Writer};
use super::cid::{CID_BYTES, Cid};
use super::pieces::PieceMap;
use super::{ImageId, Sha256Digest};

/// The newest format version that is written and read. An earlier one is written where it says all there is to say, so that equal
/// manifests are equal bytes.
pub const FORMAT_VERSION: u64 = 4;
/// Longest encoding that is read, in bytes: a study of 100,000 objects with headers of 2 KiB fits.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest header kept for one object, in bytes.
pub const HEADER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most objects in one study.
pub const OBJECTS_MAX: usize = 1_000_000;
/// Most previews in one study.
pub const PREVIEWS_MAX: usize = 1_000_000;
/// Longest media type, in bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 64;

/// One version of a study's list of objects and previews.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Study Instance UID.
    pub study_uid: Uid,
    /// 1 for the first version, one more for each later one.
    pub version: u32,
    /// When this version was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// The objects, in the order in which they should be fetched.
    pub objects: Vec<ManifestObject>,
    /// The previews.
    pub previews: Vec<ManifestPreview>,
    /// The one series that it lists, in a manifest for those who may see no other.
    pub series: Option<Uid>,
}

/// One stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestObject {
    /// SOP Class UID.
    pub sop_class_uid: Uid,
    /// SOP Instance UID.
    pub sop_instance_uid: Uid,
    /// Series Instance UID.
    pub series_uid: Uid,
    /// Transfer Syntax UID of the data set.
    pub transfer_syntax: Uid,
    /// Length of the whole Part 10 file.
    pub file_bytes: u64,
    /// Digest of the whole Part 10 file.
    pub file_sha256: Sha256Digest,
    /// Digest of the data set bytes as received.
    pub dataset_sha256: Sha256Digest,
    /// Canonical digest of the pixel data (see [`super::describe::describe`]); `None` for objects without pixels.
    pub pixel_sha256: Option<Sha256Digest>,
    /// The data set up to the pixel data, Explicit VR Little Endian, long values dropped.
    pub header: Vec<u8>,
    /// The object's name on the ledger, also of one that is not there.
    pub image: ImageId,
    /// Which of the study's session keys seals it, or would.
    pub epoch: u32,
    /// Its pieces; none of an object that is not on the ledger, because its source keeps its bytes and hands them out itself.
    pub map: Option<PieceMap>,
    /// For an object whose sealed bytes are in IPFS: what its one piece on the ledger says of them.
    pub link: Option<Link>,
    /// Offset of the data set in the Part 10 file, in bytes.
    pub meta_bytes: u64,
    /// Whether the key of its series seals it, or would; else the session key itself does, as format version 1 had it.
    pub by_series: bool,
}

/// Sealed bytes in IPFS. Their image on the ledger is one piece, which holds their CID in its 36 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// Their name.
    pub cid: Cid,
    /// Their number.
    pub sealed_bytes: u64,
}

impl Link {
    /// The piece on the ledger.
    #[must_use]
    pub fn piece(&self) -> [u8; CID_BYTES] {
        self.cid.to_bytes()
    }

    /// The image on the ledger that says so.
    #[must_use]
    pub fn map(&self) -> PieceMap {
        let root = contracts::merkle::root([contracts::merkle::piece_hash(&self.piece())]).unwrap_or_default();
        PieceMap { pieces: 1, sealed_bytes: CID_BYTES as u64, piece_bytes: CID_BYTES as u32, root }
    }
}

/// What a preview shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PreviewKind {
    /// One instance: its frame, or its middle frame.
    Instance,
    /// A series, by one representative frame.
    Series,
    /// A series, by a grid of evenly spaced frames.
    ContactSheet,
}

impl PreviewKind {
    fn code(self) -> u8 {
        match self {
            Self::Instance => 1,
            Self::Series => 2,
            Self::ContactSheet => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Instance, Self::Series, Self::ContactSheet].into_iter().find(|kind| kind.code() == code)
    }
}

/// One preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPreview {
    /// The SOP Instance UID or Series Instance UID that it shows, by `kind`.
    pub subject: Uid,
    /// What it shows.
    pub kind: PreviewKind,
    /// `image/jpeg` or `image/png`.
    pub media_type: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Digest of the encoded picture.
    pub sha256: Sha256Digest,
    /// The preview's name on the ledger.
    pub image: ImageId,
    /// Which of the study's session keys seals it.
    pub epoch: u32,
    /// Its pieces; a preview has exactly one.
    pub map: PieceMap,
    /// The series whose key seals it; without one the preview key itself does, as format version 1 had it.
    pub series: Option<Uid>,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a later release in a format that this one does not know.
    #[error("manifest has format version {found}, this release reads up to {FORMAT_VERSION}")]
    Newer {
        /// The version found.
        found: u64,
    },
    /// Longer or more numerous than accepted.
    #[error("manifest exceeds the limit on {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
    },
    /// The bytes are not the deterministic encoding of a manifest.
    #[error("manifest is malformed")]
    Malformed(#[from] CborError),
    /// A field holds a value that it cannot have.
    #[error("manifest has an impossible {what}")]
    Value {
        /// The field.
        what: &'static str,
    },
}

impl Manifest {
    /// The one encoding of this manifest.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.map(6 + usize::from(self.series.is_some()));
        out.key(0);
        out.unsigned(self.format_version());
        out.key(1);
        out.text(self.study_uid.as_str());
        out.key(2);
        out.unsigned(self.version);
        out.key(3);
        out.unsigned(self.created_ms);
        out.key(4);
        out.array(self.objects.len());
        self.objects.iter().for_each(|object| object.write(&mut out));
        out.key(5);
        out.array(self.previews.len());
        self.previews.iter().for_each(|preview| preview.write(&mut out));
        if let Some(series) = &self.series {
            out.key(6);
            out.text(series.as_str());
        }
        out.finish()
    }

    /// The first version of the format that can say what this says.
    fn format_version(&self) -> u64 {
        let series = self.series.is_some()
            || self.objects.iter().any(|object| object.by_series)
            || self.previews.iter().any(|preview| preview.series.is_some());
        let at_source = self.objects.iter().any(|object| object.map.is_none());
        let in_ipfs = self.objects.iter().any(|object| object.link.is_some());
        match (in_ipfs, at_source, series) {
            (true, ..) => 4,
            (false, true, _) => 3,
            (false, false, true) => 2,
            (false, false, false) => 1,
        }
    }

    /// The part of it that is about one series, as far as that series' keys open it.
    #[must_use]
    pub fn of_series(&self, series: &Uid) -> Self {
        let of_series = |object: &&ManifestObject| object.by_series && object.series_uid == *series;
        let shows_series = |preview: &&ManifestPreview| preview.series.as_ref() == Some(series);
        Self {
            study_uid: self.study_uid,
            version: self.version,
            created_ms: self.created_ms,
            objects: self.objects.iter().filter(of_series).cloned().collect(),
            previews: self.previews.iter().filter(shows_series).cloned().collect(),
            series: Some(*series),
        }
    }

    /// Reads what [`encode`](Self::encode) wrote, within the limits of this module.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Limit { what: "bytes" });
        }
        let mut reader = Reader::new(bytes);
        let reader = &mut reader;
        let mut entries = reader.map()?;
        entries.key(reader, 0)?;
        // Checked first: a later format may differ in everything else.
        let format = match reader.unsigned()? {
            0 => return Err(ManifestError::Value { what: "format version" }),
            format @ 1..=FORMAT_VERSION => format,
            found => return Err(ManifestError::Newer { found }),
        };
        entries.key(reader, 1)?;
        let study_uid = uid(reader, "study instance uid")?;
        entries.key(reader, 2)?;
        let version = reader.unsigned()?;
        entries.key(reader, 3)?;
        let created_ms = reader.unsigned()?;
        entries.key(reader, 4)?;
        let objects = list(reader, OBJECTS_MAX, "objects", ManifestObject::read)?;
        entries.key(reader, 5)?;
        let previews = list(reader, PREVIEWS_MAX, "previews", ManifestPreview::read)?;
        let series = if entries.optional_key(reader, 6)? { Some(uid(reader, "series instance uid")?) } else { None };
        entries.end(reader)?;
        reader.end()?;
        let manifest = Self { study_uid, version, created_ms, objects, previews, series };
        if manifest.format_version() != format {
            return Err(ManifestError::Value { what: "format version" });
        }
        manifest.check_series()?;
        Ok(manifest)
    }

    /// A manifest of one series lists nothing else, and nothing that the series' keys do not open.
    fn check_series(&self) -> Result<(), ManifestError> {
        let Some(series) = &self.series else { return Ok(()) };
        let objects = self.objects.iter().all(|object| object.by_series && object.series_uid == *series);
        let previews = self.previews.iter().all(|preview| preview.series.as_ref() == Some(series));
        if objects && previews { Ok(()) } else { Err(ManifestError::Value { what: "entry for its series" }) }
    }
}

impl ManifestObject {
    fn write(&self, out: &mut Writer) {
        let optional = [self.pixel_sha256.is_some(), self.map.is_some(), self.by_series, self.link.is_some()];
        out.map(11 + optional.into_iter().filter(|there| *there).count());
        out.key(0);
        out.text(self.sop_class_uid.as_str());
        out.key(1);
        out.text(self.sop_instance_uid.as_str());
        out.key(2);
        out.text(self.series_uid.as_str());
        out.key(3);
        out.text(self.transfer_syntax.as_str());
        out.key(4);
        out.unsigned(self.file_bytes);
        out.key(5);
        out.bytes(&self.file_sha256);
        out.key(6);
        out.bytes(&self.dataset_sha256);
        if let Some(digest) = &self.pixel_sha256 {
            out.key(7);
            out.bytes(digest);
        }
        out.key(8);
        out.bytes(&self.header);
        out.key(9);
        out.bytes(self.image.as_slice());
        out.key(10);
        out.unsigned(self.epoch);
        if let Some(map) = &self.map {
            out.key(11);
            write_map(out, map);
        }
        out.key(12);
        out.unsigned(self.meta_bytes);
        if self.by_series {
            out.key(13);
            out.unsigned(1_u8);
        }
        if let Some(link) = &self.link {
            out.key(14);
            out.array(2);
            out.bytes(&link.cid.to_bytes());
            out.unsigned(link.sealed_bytes);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, ManifestError> {
        let mut entries = reader.map()?;
        entries.key(reader, 0)?;
        let sop_class_uid = uid(reader, "sop class uid")?;
        entries.key(reader, 1)?;
        let sop_instance_uid = uid(reader, "sop instance uid")?;
        entries.key(reader, 2)?;
        let series_uid = uid(reader, "series instance uid")?;
        entries.key(reader, 3)?;
        let transfer_syntax = uid(reader, "transfer syntax uid")?;
        entries.key(reader, 4)?;
        let file_bytes = reader.unsigned()?;
        entries.key(reader, 5)?;
        let file_sha256 = reader.digest()?;
        entries.key(reader, 6)?;
        let dataset_sha256 = reader.digest()?;
        let pixel_sha256 = if entries.optional_key(reader, 7)? { Some(reader.digest()?) } else { None };
        entries.key(reader, 8)?;
        let header = reader.byte_string()?;
        if header.len() > HEADER_BYTES_MAX {
            return Err(ManifestError::Limit { what: "bytes of a header" });
        }
        entries.key(reader, 9)?;
        let image = B256::from(reader.digest()?);
        entries.key(reader, 10)?;
        let epoch = reader.unsigned()?;
        let map = if entries.optional_key(reader, 11)? { Some(read_map(reader)?) } else { None };
        entries.key(reader, 12)?;
        let meta_bytes = reader.unsigned()?;
        let by_series = entries.optional_key(reader, 13)?;
        if by_series && reader.unsigned::<u64>()? != 1 {
            return Err(ManifestError::Value { what: "kind of key" });
        }
        let link = if entries.optional_key(reader, 14)? { Some(read_link(reader)?) } else { None };
        entries.end(reader)?;
        // The ledger holds the name of the bytes and nothing else of them, and sealing adds little to a file.
        if link.is_some_and(|link| map != Some(link.map()) || link.sealed_bytes > sealed_bytes_max(file_bytes)) {
            return Err(ManifestError::Value { what: "link into IPFS" });
        }
        let header = header.to_vec();
        Ok(Self {
            sop_class_uid,
            sop_instance_uid,
            series_uid,
            transfer_syntax,
            file_bytes,
            file_sha256,
            dataset_sha256,
            pixel_sha256,
            header,
            image,
            epoch,
            map,
            link,
            meta_bytes,
            by_series,
        })
    }
}

impl ManifestPreview {
    fn write(&self, out: &mut Writer) {
        out.map(9 + usize::from(self.series.is_some()));
        out.key(0);
        out.text(self.subject.as_str());
        out.key(1);
        out.unsigned(self.kind.code());
        out.key(2);
        out.text(&self.media_type);
        out.key(3);
        out.unsigned(self.width);
        out.key(4);
        out.unsigned(self.height);
        out.key(5);
        out.bytes(&self.sha256);
        out.key(6);
        out.bytes(self.image.as_slice());
        out.key(7);
        out.unsigned(self.epoch);
        out.key(8);
        write_map(out, &self.map);
        if let Some(series) = &self.series {
            out.key(9);
            out.text(series.as_str());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, ManifestError> {
        let mut entries = reader.map()?;
        entries.key(reader, 0)?;
        let subject = uid(reader, "preview subject")?;
        entries.key(reader, 1)?;
        let kind = PreviewKind::from_code(reader.unsigned()?).ok_or(ManifestError::Value { what: "preview kind" })?;
        entries.key(reader, 2)?;
        let media_type = reader.text()?;
        if media_type.len() > MEDIA_TYPE_BYTES_MAX {
            return Err(ManifestError::Limit { what: "bytes of a media type" });
        }
        let media_type = media_type.to_owned();
        entries.key(reader, 3)?;
        let width = reader.unsigned()?;
        entries.key(reader, 4)?;
        let height = reader.unsigned()?;
        entries.key(reader, 5)?;
        let sha256 = reader.digest()?;
        entries.key(reader, 6)?;
        let image = B256::from(reader.digest()?);
        entries.key(reader, 7)?;
        let epoch = reader.unsigned()?;
        entries.key(reader, 8)?;
        let map = read_map(reader)?;
        let series = if entries.optional_key(reader, 9)? { Some(uid(reader, "series instance uid")?) } else { None };
        entries.end(reader)?;
        if map.pieces != 1 {
            return Err(ManifestError::Value { what: "number of pieces of a preview" });
        }
        Ok(Self { subject, kind, media_type, width, height, sha256, image, epoch, map, series })
    }
}

fn write_map(out: &mut Writer, map: &PieceMap) {
    out.array(4);
    out.unsigned(map.pieces);
    out.unsigned(map.sealed_bytes);
    out.unsigned(map.piece_bytes);
    out.bytes(map.root.as_slice());
}

/// More than a file of so many bytes ever has when it is sealed.
fn sealed_bytes_max(file_bytes: u64) -> u64 {
    file_bytes.saturating_add(file_bytes / 16).saturating_add(1 << 20)
}

fn read_link(reader: &mut Reader<'_>) -> Result<Link, ManifestError> {
    let wrong = ManifestError::Value { what: "link into IPFS" };
    if reader.array()? != 2 {
        return Err(wrong);
    }
    let cid = Cid::from_bytes(reader.byte_string()?).map_err(|_| wrong)?;
    Ok(Link { cid, sealed_bytes: reader.unsigned()? })
}

fn read_map(reader: &mut Reader<'_>) -> Result<PieceMap, ManifestError> {
    if reader.array()? != 4 {
        return Err(ManifestError::Value { what: "piece map" });
    }
    let map = PieceMap {
        pieces: reader.unsigned()?,
        sealed_bytes: reader.unsigned()?,
        piece_bytes: reader.unsigned()?,
        root: B256::from(reader.digest()?),
    };
    map.check().map_err(|_| ManifestError::Value { what: "piece map" })?;
    Ok(map)
}

fn uid(reader: &mut Reader<'_>, what: &'static str) -> Result<Uid, ManifestError> {
    let text = reader.text()?;
    match Uid::from_bytes(text.as_bytes()) {
        // Parsing tolerates padding, which the one encoding does not have.
        Ok(uid) if uid.as_str() == text => Ok(uid),
        _ => Err(ManifestError::Value { what }),
    }
}

fn list<T>(
    reader: &mut Reader<'_>,
    items_max: usize,
    what: &'static str,
    read: impl Fn(&mut Reader<'_>) -> Result<T, ManifestError>,
) -> Result<Vec<T>, ManifestError> {
    let items = reader.array()?;
    if items > items_max {
        return Err(ManifestError::Limit { what });
    }
    // Grown as items are really read, not by the number claimed.
    let mut list = Vec::new();
    for _ in 0..items {
        list.push(read(reader)?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ciborium::Value;
    use proptest::prelude::*;

    use contracts::merkle;

    use super::*;

    fn uid_strategy() -> impl Strategy<Value = Uid> {
        "1\\.2\\.[1-9][0-9]{0,20}\\.[1-9][0-9]{0,20}".prop_map(|text| Uid::from_bytes(text.as_bytes()).unwrap())
    }

    fn map_strategy(pieces_max: u32) -> impl Strategy<Value = PieceMap> {
        (1..=pieces_max, 1_u32..200_000, any::<[u8; 32]>(), any::<u32>()).prop_map(
            |(pieces, piece_bytes, root, tail)| {
                let sealed_bytes = u64::from(pieces - 1) * u64::from(piece_bytes) + 1 + u64::from(tail % piece_bytes);
                PieceMap { pieces, sealed_bytes, piece_bytes, root: B256::from(root) }
            },
        )
    }

    fn link_strategy() -> impl Strategy<Value = Link> {
        (any::<[u8; 32]>(), any::<bool>(), any::<u64>()).prop_map(|(digest, is_leaf, sealed_bytes)| {
            let head = [1, if is_leaf { 0x55 } else { 0x70 }, 0x12, 32];
            Link { cid: Cid::from_bytes(&[&head[..], &digest].concat()).unwrap(), sealed_bytes }
        })
    }

    prop_compose! {
        fn object_strategy()(
            uids in prop::array::uniform4(uid_strategy()),
            file_bytes: u64,
            digests: [[u8; 32]; 3],
            pixel_sha256 in prop::option::of(any::<[u8; 32]>()),
            header in prop::collection::vec(any::<u8>(), 0..400),
            epoch: u32,
            map in prop::option::of(map_strategy(merkle::PIECES_MAX)),
            link in prop::option::of(link_strategy()),
            meta_bytes: u64,
            by_series: bool,
        ) -> ManifestObject {
            let link = link.map(|link: Link| Link { sealed_bytes: link.sealed_bytes.min(file_bytes), ..link });
            let map = link.as_ref().map_or(map, |link| Some(link.map()));
            let [sop_class_uid, sop_instance_uid, series_uid, transfer_syntax] = uids;
            let [file_sha256, dataset_sha256, image] = digests;
            ManifestObject {
                sop_class_uid, sop_instance_uid, series_uid, transfer_syntax, file_bytes, file_sha256, dataset_sha256,
                pixel_sha256, header, image: B256::from(image), epoch, map, link, meta_bytes, by_series,
            }
        }
    }

    prop_compose! {
        fn preview_strategy()(
            subject in uid_strategy(),
            kind in prop::sample::select(vec![PreviewKind::Instance, PreviewKind::Series, PreviewKind::ContactSheet]),
            size: (u32, u32),
            digests: [[u8; 32]; 2],
            epoch: u32,
            map in map_strategy(1),
            series in prop::option::of(uid_strategy()),
        ) -> ManifestPreview {
            ManifestPreview {
                subject, kind, media_type: "image/jpeg".to_owned(), width: size.0, height: size.1,
                sha256: digests[0], image: B256::from(digests[1]), epoch, map, series,
            }
        }
    }

    prop_compose! {
        fn manifest_strategy()(
            study_uid in uid_strategy(),
            version: u32,
            created_ms: u64,
            objects in prop::collection::vec(object_strategy(), 0..4),
            previews in prop::collection::vec(preview_strategy(), 0..4),
            one_series: bool,
        ) -> Manifest {
            let whole = Manifest { study_uid, version, created_ms, objects, previews, series: None };
            match whole.objects.first().filter(|_| one_series) {
                Some(object) => whole.of_series(&object.series_uid),
                None => whole,
            }
        }
    }

    proptest! {
        #[test]
        fn every_manifest_comes_back_and_is_plain_cbor_in_its_one_encoding(manifest in manifest_strategy()) {
            let bytes = manifest.encode();
            prop_assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
            // Another CBOR implementation reads it and, writing it again in order, makes the same bytes.
            let value: Value = ciborium::from_reader(bytes.as_slice()).unwrap();
            let mut again = Vec::new();
            ciborium::into_writer(&value, &mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }

        #[test]
        fn what_decodes_was_encoded_by_us(
            manifest in manifest_strategy(),
            at: prop::sample::Index,
            change in 1_u8..=255,
            cut: prop::sample::Index,
        ) {
            let mut bytes = manifest.encode();
            prop_assert!(Manifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            if let Ok(other) = Manifest::decode(&bytes) {
                prop_assert_eq!(other.encode(), bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&bytes);
        }
    }

    fn empty() -> Manifest {
        let study_uid = Uid::from_bytes(b"1.2.3").unwrap();
        Manifest { study_uid, version: 1, created_ms: 0, objects: Vec::new(), previews: Vec::new(), series: None }
    }

    #[test]
    fn a_later_format_is_named_as_such() {
        let mut bytes = empty().encode();
        assert_eq!(bytes[..3], [0xA6, 0x00, 0x01]);
        bytes[2] = 5;
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Newer { found: 5 }));
        for later in [2, 3, 4] {
            bytes[2] = later;
            assert_eq!(
                Manifest::decode(&bytes),
                Err(ManifestError::Value { what: "format version" }),
                "version 1 says it all"
            );
        }
        // Even if nothing else in it is familiar.
        assert_eq!(Manifest::decode(&[0xA1, 0x00, 0x06]), Err(ManifestError::Newer { found: 6 }));
    }

    #[test]
    fn claims_beyond_the_input_are_refused_without_allocating() {
        let mut bytes = empty().encode();
        let objects_at = bytes.len() - 3;
        assert_eq!(bytes[objects_at..], [0x80, 0x05, 0x80]);
        bytes.splice(objects_at..=objects_at, [0x9B, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::Malformed(_))));
    }

    #[test]
    fn a_uid_with_padding_is_not_the_one_encoding() {
        let mut bytes = empty().encode();
        let at = bytes.windows(6).position(|w| w == [0x65, b'1', b'.', b'2', b'.', b'3']).unwrap();
        bytes[at] = 0x66;
        bytes.insert(at + 6, b' ');
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Value { what: "study instance uid" }));
    }
}
