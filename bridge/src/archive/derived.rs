//! Objects that are made here from others: what there is to make them from, and a guard that keeps everything else out of the
//! studies that they make up.

use dicom_scp::Uid;

use super::{Archive, ArchiveError, Incoming, ObjectHead, Stored};
use crate::config::Duplicates;

/// Says whether a study was derived here.
pub type Guard = Box<dyn Fn(&Uid) -> bool + Send + Sync>;

/// An object of a study that was received here, with what rules ask for.
#[derive(Debug, Clone)]
pub struct Derivable {
    /// The object.
    pub stored: Stored,
    /// Modality (0008,0060) of its series.
    pub modality: String,
    /// AE title of its sender.
    pub calling_ae: String,
}

impl Archive {
    /// From now on, what the guard knows as derived takes objects from [`Archive::begin_made`] alone. A second guard is ignored.
    pub fn guard(&self, guard: Guard) {
        let _ = self.0.guard.set(guard);
    }

    pub(super) fn is_derived(&self, study: &Uid) -> bool {
        self.0.guard.get().is_some_and(|guard| guard(study))
    }

    /// As [`Archive::begin`], for an object that was made here.
    ///
    /// # Errors
    /// As [`Archive::begin`].
    pub fn begin_made(&self, head: ObjectHead) -> Result<Incoming, ArchiveError> {
        self.check_writable()?;
        Incoming::begin(self.clone(), head, true)
    }

    /// The current objects of a study that was received here, by series and instance number.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn derivable(&self, study: &Uid) -> Result<Vec<Derivable>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT i.id, st.uid, se.uid, i.sop_class, i.uid, i.transfer_syntax, i.meta_bytes, i.file_bytes, i.file_sha256,
                   i.shard, i.file, i.file_crc32, i.origin, se.modality, i.calling_ae
                 FROM instance i JOIN series se ON i.series = se.id JOIN study st ON se.study = st.id
                 WHERE st.uid = ?1 AND st.origin = 0 AND i.superseded = 0 ORDER BY se.id, i.number, i.id",
            )?;
            let rows = statement.query_map([study.as_str()], |row| {
                Ok(Derivable { stored: self.stored(row)?, modality: row.get(13)?, calling_ae: row.get(14)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Whether an object takes the place of another of its UID.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.0.limits.duplicates != Duplicates::Reject
    }

    /// The version of a study's manifest of which every byte is on the ledger, if that is the newest and nothing waits for a next.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn final_version(&self, study: &Uid) -> Result<Option<u32>, ArchiveError> {
        let waits = self.summary(study.as_str())?.is_none_or(|summary| summary.waiting.is_some());
        let publication = self.publication(study)?.filter(|publication| publication.final_ms.is_some() && !waits);
        Ok(publication.map(|publication| publication.version))
    }
}
