//! What waits in the archive, and what room there is: counts for the ops person. Must not know who does the work.

use std::io;

use rusqlite::params;

use super::index::as_u64;
use super::publication::AHEAD_MS;
use super::{Archive, ArchiveError, now_ms};
use crate::config;

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queues {
    /// Studies whose quiet time is not over.
    pub receiving: u64,
    /// Studies whose quiet time is over and of which nothing was sent yet.
    pub due: u64,
    /// Versions of studies that are on their way to the ledger.
    pub publishing: u64,
    /// Pieces of those.
    pub pieces: u64,
    /// Of which were seen on the ledger.
    pub pieces_seen: u64,
    /// Objects of other sites that may be seen here and whose files are not here.
    pub not_fetched: u64,
    /// Previews of those that are not here.
    pub previews_missing: u64,
    /// Images in IPFS that this site's node was not seen to keep.
    pub not_pinned: u64,
    /// What is to be let go there.
    pub to_unpin: u64,
    /// Bytes in the intake log that have no files yet.
    pub unfiled_bytes: u64,
}

/// Room for objects.
#[derive(Debug, Clone)]
pub struct Room {
    /// Bytes that may still be written to the file system.
    pub free_bytes: u64,
    /// Bytes of the files of objects.
    pub used_bytes: u64,
    /// What the configuration says about both.
    pub limits: config::Archive,
}

/// What would go if every study were evicted that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evictable {
    /// Bytes of files whose objects are whole on the ledger, or kept by another site.
    pub bytes: u64,
    /// Bytes of files whose objects this site's IPFS node must be seen to keep first.
    pub in_ipfs_bytes: u64,
}

const WAITING: &str = "SELECT
   (SELECT count(*) FROM outbox WHERE due_ms > ?1 AND due_ms <= ?2), (SELECT count(*) FROM outbox o WHERE (due_ms <= ?1 OR due_ms > ?2) AND NOT EXISTS
     (SELECT 1 FROM publication p WHERE p.study = o.study AND p.final_ms IS NULL)),
   (SELECT count(*) FROM publication WHERE final_ms IS NULL),
   (SELECT coalesce(sum(pieces), 0) FROM image WHERE study IN (SELECT study FROM publication WHERE final_ms IS NULL)),
   (SELECT count(*) FROM piece WHERE image IN
     (SELECT id FROM image WHERE study IN (SELECT study FROM publication WHERE final_ms IS NULL))),
   (SELECT count(*) FROM instance i JOIN series se ON i.series = se.id JOIN visible_study st ON se.study = st.id
     WHERE i.file IS NULL AND i.superseded = 0 AND i.origin > 0),
   (SELECT count(*) FROM image WHERE kind = 2 AND plain IS NULL AND study IN (SELECT id FROM visible_study WHERE origin > 0)),
   (SELECT count(*) FROM image WHERE cid IS NOT NULL AND pinned <= 0), (SELECT count(*) FROM ipfs_removal)";

/// As `EVICTABLE` has it for one study, of every study of which nothing is on its way.
const GIVING: &str = "SELECT coalesce(sum(CASE WHEN alone THEN bytes END), 0), coalesce(sum(CASE WHEN NOT alone THEN bytes END), 0) FROM (
   SELECT i.file_bytes AS bytes, i.origin > 0 OR EXISTS (SELECT 1 FROM image m WHERE m.instance = i.id AND m.sealed = 1 AND m.cid IS NULL) AS alone
   FROM instance i JOIN series se ON i.series = se.id JOIN study st ON se.study = st.id
   WHERE i.file IS NOT NULL AND i.superseded = 0 AND st.origin >= 0
   AND (i.at_source = 1 AND i.origin > 0 OR EXISTS (SELECT 1 FROM image m WHERE m.instance = i.id AND m.sealed = 1))
   AND (st.origin > 0 OR EXISTS (SELECT 1 FROM publication p WHERE p.study = st.id AND p.final_ms IS NOT NULL)
     AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.study = st.id)))";

impl Archive {
    /// What waits now.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn queues(&self) -> Result<Queues, ArchiveError> {
        let unfiled_bytes = self.0.log.unfiled_bytes();
        self.read(|db| {
            let now = now_ms();
            // As `studies_due` has it for clocks that were ahead.
            let latest = now.saturating_add(self.0.settle_ms).saturating_add(AHEAD_MS);
            Ok(db.query_row(WAITING, params![now, latest], |row| {
                let count = |column: usize| Ok::<_, rusqlite::Error>(as_u64(row.get(column)?));
                Ok(Queues {
                    receiving: count(0)?,
                    due: count(1)?,
                    publishing: count(2)?,
                    pieces: count(3)?,
                    pieces_seen: count(4)?,
                    not_fetched: count(5)?,
                    previews_missing: count(6)?,
                    not_pinned: count(7)?,
                    to_unpin: count(8)?,
                    unfiled_bytes,
                })
            })?)
        })
    }

    /// What room there is.
    ///
    /// # Errors
    /// What the disk said.
    pub fn room(&self) -> io::Result<Room> {
        let free_bytes = self.0.disk.free_bytes(&self.0.root)?;
        let used_bytes = self.0.used_bytes.load(std::sync::atomic::Ordering::Relaxed);
        Ok(Room { free_bytes, used_bytes, limits: self.0.limits.clone() })
    }

    /// What eviction could give back. Looks at every object that has a file here.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn evictable(&self) -> Result<Evictable, ArchiveError> {
        self.read(|db| {
            Ok(db.query_row(GIVING, [], |row| {
                Ok(Evictable { bytes: as_u64(row.get(0)?), in_ipfs_bytes: as_u64(row.get(1)?) })
            })?)
        })
    }
}
