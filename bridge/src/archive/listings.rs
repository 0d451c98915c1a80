//! Manifests that are being looked at, decoded once: a viewer asks for a study in hundreds of requests, and each of them needs to know what its
//! manifest lists. Kept within a limit of bytes, and forgotten when something is erased.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dicom_scp::Uid;
use rusqlite::{OptionalExtension as _, Row, ToSql};
use sha2::{Digest as _, Sha256};

use super::{Archive, ArchiveError, Stored};
use crate::payload::manifest::{Manifest, ManifestObject, ManifestPreview};

/// Encoded bytes of the manifests that are kept. Decoded they take about as much again.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long one is kept that nobody asks for.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// A manifest, and where its objects are in it.
#[derive(Debug)]
pub struct Listing {
    manifest: Manifest,
    sha256: [u8; 32],
    /// By UID and digest of the file: an object that another took the place of is another.
    places: HashMap<(Uid, [u8; 32]), usize>,
    /// Of the previews, by what they show.
    previews: HashMap<Uid, Vec<usize>>,
}

impl Listing {
    fn decode(encoded: &[u8]) -> Result<Self, ArchiveError> {
        let manifest = Manifest::decode(encoded);
        let manifest = manifest.map_err(|error| ArchiveError::Corrupt(format!("manifest ({error})")))?;
        let named = |(place, object): (usize, &ManifestObject)| ((object.sop_instance_uid, object.file_sha256), place);
        let places = manifest.objects.iter().enumerate().map(named).collect();
        let mut previews: HashMap<Uid, Vec<usize>> = HashMap::new();
        for (place, preview) in manifest.previews.iter().enumerate() {
            previews.entry(preview.subject).or_default().push(place);
        }
        Ok(Self { manifest, sha256: Sha256::digest(encoded).into(), places, previews })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of its encoding.
    #[must_use]
    pub fn sha256(&self) -> &[u8] {
        &self.sha256
    }

    /// What is listed of an object; nothing of one that came later, or took the place of another.
    #[must_use]
    pub fn object(&self, stored: &Stored) -> Option<&ManifestObject> {
        let place = self.places.get(&(stored.sop_instance, stored.file_sha256))?;
        self.manifest.objects.get(*place)
    }

    /// The previews that show an object or a series, in the order of the manifest.
    pub fn previews_of<'a>(&'a self, subject: &Uid) -> impl Iterator<Item = &'a ManifestPreview> + use<'a> {
        let places = self.previews.get(subject).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(|place| self.manifest.previews.get(*place))
    }
}

/// Which manifest it is: of a study of this site or of a foreign one, its row, and what changes with every other manifest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    origin: i64,
    row: i64,
    version: i64,
    begun_ms: i64,
    bytes: i64,
}

/// Columns of [`Key`] for `st` with `p` and `f` beside it.
const KEY: &str = "st.origin, st.id, coalesce(p.version, f.version), coalesce(p.begun_ms, 0), length(coalesce(p.manifest, f.manifest))";
const BESIDE: &str = "LEFT JOIN publication p ON p.study = st.id LEFT JOIN foreign_study f ON f.id = st.origin";

fn key(row: &Row<'_>) -> rusqlite::Result<Option<Key>> {
    let Some(bytes) = row.get(4)? else { return Ok(None) };
    Ok(Some(Key { origin: row.get(0)?, row: row.get(1)?, version: row.get(2)?, begun_ms: row.get(3)?, bytes }))
}

/// The manifests that are kept.
#[derive(Debug, Default)]
pub(super) struct Listings(Mutex<HashMap<Key, Kept>>);

#[derive(Debug)]
struct Kept {
    listing: Arc<Listing>,
    used: Instant,
}

impl Listings {
    fn find(&self, key: &Key, now: Instant) -> Option<Arc<Listing>> {
        let mut kept = self.lock();
        let found = kept.get_mut(key)?;
        found.used = now;
        Some(found.listing.clone())
    }

    /// Keeps one, in the place of an older one of the same study and of what was used least lately.
    fn keep(&self, key: Key, listing: &Arc<Listing>, now: Instant, bytes_max: usize) {
        let mut kept = self.lock();
        kept.retain(|other, kept| {
            (other.origin, other.row) != (key.origin, key.row) && now.duration_since(kept.used) < IDLE_MAX
        });
        kept.insert(key, Kept { listing: listing.clone(), used: now });
        let bytes = |key: &Key| usize::try_from(key.bytes).unwrap_or(usize::MAX);
        let mut all: usize = kept.keys().map(bytes).fold(0, usize::saturating_add);
        while all > bytes_max {
            let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key) else { return };
            kept.remove(&oldest);
            all -= bytes(&oldest);
        }
    }

    /// Forgets everything: something is erased.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Archive {
    /// The newest manifest of a study that is shown. Blocks.
    ///
    /// # Errors
    /// [`ArchiveError::Index`], [`ArchiveError::Corrupt`].
    pub fn shown_listing(&self, study_uid: &Uid) -> Result<Option<Arc<Listing>>, ArchiveError> {
        self.listing("shown_study", "st.uid = ?1", &[&study_uid.as_str()])
    }

    /// The newest manifest of the study that an object came with. Blocks.
    ///
    /// # Errors
    /// As [`Self::shown_listing`].
    pub fn listing_of(&self, stored: &Stored) -> Result<Option<Arc<Listing>>, ArchiveError> {
        self.listing("study", "st.uid = ?1 AND st.origin = ?2", &[&stored.study_uid.as_str(), &stored.origin])
    }

    fn listing(&self, of: &str, which: &str, named: &[&dyn ToSql]) -> Result<Option<Arc<Listing>>, ArchiveError> {
        let now = Instant::now();
        let found = self.read(|db| {
            let sql = format!("SELECT {KEY} FROM {of} st {BESIDE} WHERE {which}");
            Ok(db.prepare_cached(&sql)?.query_row(named, key).optional()?.flatten())
        })?;
        let Some(found) = found else { return Ok(None) };
        if let Some(listing) = self.0.listings.find(&found, now) {
            return Ok(Some(listing));
        }
        // Read with its key: there may be another by now.
        let read = self.read(|db| {
            let sql = format!("SELECT {KEY}, coalesce(p.manifest, f.manifest) FROM {of} st {BESIDE} WHERE {which}");
            let with =
                |row: &Row<'_>| Ok(key(row)?.map(|key| Ok::<_, rusqlite::Error>((key, row.get::<_, Vec<u8>>(5)?))));
            Ok(db.prepare_cached(&sql)?.query_row(named, with).optional()?.flatten().transpose()?)
        })?;
        let Some((key, encoded)) = read else { return Ok(None) };
        let listing = Arc::new(Listing::decode(&encoded)?);
        self.0.listings.keep(key, &listing, now, KEPT_BYTES_MAX);
        Ok(Some(listing))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listing() -> Arc<Listing> {
        let study_uid = Uid::new("1.2").unwrap();
        let manifest =
            Manifest { study_uid, version: 1, created_ms: 0, objects: Vec::new(), previews: Vec::new(), series: None };
        Arc::new(Listing::decode(&manifest.encode()).unwrap())
    }

    #[test]
    fn what_is_kept_is_within_its_limit_and_what_was_used_last_stays() {
        let (listings, begun) = (Listings::default(), Instant::now());
        let key = |row| Key { origin: 0, row, version: 1, begun_ms: 5, bytes: 40 };
        let at = |seconds| begun + Duration::from_secs(seconds);
        listings.keep(key(1), &listing(), at(0), 100);
        listings.keep(key(2), &listing(), at(1), 100);
        assert!(listings.find(&key(1), at(2)).is_some());
        listings.keep(key(3), &listing(), at(3), 100);
        assert!(listings.find(&key(2), at(4)).is_none(), "it was used least lately");
        assert!(listings.find(&key(1), at(4)).is_some() && listings.find(&key(3), at(4)).is_some());
        listings.keep(Key { bytes: 101, ..key(4) }, &listing(), at(5), 100);
        assert!(listings.find(&Key { bytes: 101, ..key(4) }, at(5)).is_none(), "larger than all that may be kept");
    }

    #[test]
    fn an_older_manifest_of_a_study_goes_and_so_does_what_nobody_looks_at() {
        let (listings, now) = (Listings::default(), Instant::now());
        let key = |row, version| Key { origin: 0, row, version, begun_ms: 5, bytes: 40 };
        listings.keep(key(1, 1), &listing(), now, 1000);
        listings.keep(key(1, 2), &listing(), now, 1000);
        assert!(listings.find(&key(1, 1), now).is_none() && listings.find(&key(1, 2), now).is_some());
        listings.keep(key(2, 1), &listing(), now + IDLE_MAX, 1000);
        assert!(listings.find(&key(1, 2), now).is_none());
        listings.clear();
        assert!(listings.find(&key(2, 1), now).is_none());
    }
}
