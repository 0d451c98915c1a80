//! Takes a study away so that nothing of it is left in the archive: first from everybody's sight, then from the disk.
//!
//! [`Archive::begin_erasure`] is one transaction: from then on the study's rows are nobody's, whatever happens to the process, and
//! objects that arrive for its UID begin another study. Everything after that may be stopped anywhere and done again:
//! files, rows, the intake log, the index's own free space. What the archive is told to remember meanwhile (`facts`) it does
//! not look at. Must not know keys, chains or certificates.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy::primitives::B256;
use dicom_scp::Uid;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

use super::index::{self, as_i64, as_u64};
use super::{Archive, ArchiveError, FileId};

/// Between attempts to empty the index's write-ahead log while somebody reads.
const READERS_RETRY: Duration = Duration::from_millis(100);
/// So many attempts.
const READERS_TRIES: u32 = 600;

/// What there is of a study when its erasure begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holdings {
    /// Its name on the ledger, if a version was ever planned.
    pub study_id: Option<B256>,
    /// Objects, those that were superseded included.
    pub objects: u64,
    /// Of which have a file here.
    pub files: u64,
    /// Bytes of these files.
    pub file_bytes: u64,
    /// Previews kept here.
    pub previews: u64,
    /// Images planned for the ledger.
    pub images: u64,
    /// Sealed bytes of these.
    pub sealed_bytes: u64,
    /// Pieces of these.
    pub pieces: u64,
    /// Of which were seen on the ledger.
    pub pieces_seen: u64,
    /// Transactions that carried them.
    pub transactions: u64,
    /// Images that name sealed bytes in IPFS.
    #[serde(default)]
    pub ipfs: u64,
}

/// An erasure that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Its number.
    pub id: i64,
    /// The study, until nothing of it is left here.
    pub study_uid: Option<Uid>,
    /// What was given to be remembered.
    pub facts: String,
}

impl Archive {
    /// What there is of a study that was received here; nothing when there is none.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn holdings(&self, study_uid: &Uid) -> Result<Option<Holdings>, ArchiveError> {
        let uid = study_uid.to_string();
        self.read(|db| {
            let tx = db.transaction()?;
            match study_row(&tx, &uid)? {
                Some(study) => Ok(Some(holdings(&tx, study)?)),
                None => Ok(None),
            }
        })
    }

    /// Hides a study that was received here from everybody, for ever, and remembers to erase it, together with the facts that are
    /// made of what there is; durable when this returns. Nothing when there is no such study.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn begin_erasure(
        &self,
        study_uid: &Uid,
        facts: impl FnOnce(&Holdings) -> String + Send + 'static,
    ) -> Result<Option<Erasure>, ArchiveError> {
        let (log, uid, study_uid) = (self.0.log.clone(), study_uid.to_string(), *study_uid);
        self.write(move |db| {
            let tx = db.transaction()?;
            let Some(study) = study_row(&tx, &uid)? else { return Ok(None) };
            let facts = facts(&holdings(&tx, study)?);
            // This is the thread that appends to the log: what is in it now, and nothing later, stands below the next segment.
            tx.execute(
                "INSERT INTO erasure (uid, log_before, facts) VALUES (?1, ?2, ?3)",
                params![uid, as_i64(log.roll()), facts],
            )?;
            let id = tx.last_insert_rowid();
            tx.execute("UPDATE study SET origin = -?2 WHERE id = ?1", [study, id])?;
            let of_study = "series IN (SELECT id FROM series WHERE study = ?1)";
            tx.execute(&format!("UPDATE instance SET origin = -?2 WHERE {of_study}"), [study, id])?;
            tx.execute("DELETE FROM outbox WHERE study = ?1", [study])?;
            tx.execute("DELETE FROM publication WHERE study = ?1", [study])?;
            tx.commit()?;
            Ok(Some(Erasure { id, study_uid: Some(study_uid), facts }))
        })
        .await
    }

    /// The erasures that are not finished.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn erasures(&self) -> Result<Vec<Erasure>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT id, uid, facts FROM erasure ORDER BY id")?;
            let rows = statement.query_map([], |row| {
                let uid: Option<String> = row.get(1)?;
                Ok(Erasure { id: row.get(0)?, study_uid: uid.and_then(|uid| Uid::new(&uid).ok()), facts: row.get(2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Remembers other facts.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn amend_erasure(&self, id: i64, facts: String) -> Result<(), ArchiveError> {
        let sql = "UPDATE erasure SET facts = ?2 WHERE id = ?1";
        self.write(move |db| Ok(db.execute(sql, params![id, facts]).map(drop)?)).await
    }

    /// Names of the images that the study being erased has on the ledger, until its rows are gone.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn erased_images(&self, id: i64) -> Result<Vec<B256>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT id FROM image WHERE study IN (SELECT id FROM study WHERE origin = -?1)";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([id], |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Overwrites and removes everything here that belongs to the study being erased: files, rows, its part of the intake log, and
    /// what of it stands in unused places of the index.
    ///
    /// # Errors
    /// [`ArchiveError`]; what is left goes with the next attempt.
    pub async fn erase(&self, id: i64) -> Result<(), ArchiveError> {
        let archive = self.clone();
        let files = tokio::task::spawn_blocking(move || archive.erase_files(id)).await;
        let bytes = files.map_err(|_| ArchiveError::Closed)??;
        let sql = "UPDATE instance SET shard = NULL, file = NULL WHERE origin = -?1";
        self.write(move |db| Ok(db.execute(sql, [id]).map(drop)?)).await?;
        self.release(bytes);
        self.write(move |db| erase_rows(db, id)).await?;
        self.0.listings.clear();
        self.scrub_log().await?;
        self.write(move |db| Ok(db.execute("UPDATE erasure SET uid = NULL WHERE id = ?1", [id]).map(drop)?)).await?;
        self.rewrite_index().await
    }

    /// Ends an erasure. Nothing of the study was left since [`Archive::erase`].
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn end_erasure(&self, id: i64) -> Result<(), ArchiveError> {
        self.write(move |db| Ok(db.execute("DELETE FROM erasure WHERE id = ?1", [id]).map(drop)?)).await
    }

    /// Bytes of the intake log's files, all of which an erasure overwrites.
    #[must_use]
    pub fn intake_log_bytes(&self) -> u64 {
        self.0.log.bytes()
    }

    /// Files go before their rows: a crash in between must not leave pixels that nobody knows of. Returns their bytes.
    fn erase_files(&self, id: i64) -> Result<u64, ArchiveError> {
        let files: Vec<(FileId, u64)> = self.read(|db| {
            let sql = "SELECT shard, file, file_bytes FROM instance WHERE origin = -?1 AND file IS NOT NULL";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement
                .query_map([id], |row| Ok((FileId { shard: row.get(0)?, name: row.get(1)? }, as_u64(row.get(2)?))))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let mut directories = BTreeSet::new();
        for (file, _) in &files {
            self.0.log.scrub_file(file).map_err(|e| ArchiveError::io("overwriting an object", e))?;
            directories.insert(self.0.shards.directory(file));
        }
        for directory in directories.iter().filter(|directory| directory.exists()) {
            let synced = self.0.disk.sync_dir(directory);
            synced.map_err(|e| ArchiveError::io("syncing a directory of erased objects", e))?;
        }
        Ok(files.iter().map(|(_, bytes)| bytes).sum())
    }

    async fn scrub_log(&self) -> Result<(), ArchiveError> {
        let archive = self.clone();
        let scrubbed =
            tokio::task::spawn_blocking(move || archive.0.log.scrub(|| archive.check_writable().is_err())).await;
        self.check_writable()?;
        scrubbed.map_err(|_| ArchiveError::Closed)?.map_err(|_| ArchiveError::Closed)
    }

    /// Rows that were moved or changed leave copies in unused places of pages, and every page was in the write-ahead log once.
    async fn rewrite_index(&self) -> Result<(), ArchiveError> {
        self.write(|db| Ok(db.execute_batch("VACUUM")?)).await?;
        for _ in 0..READERS_TRIES {
            if self.write(|db| Ok(index::checkpoint_all(db)?)).await? {
                return Ok(());
            }
            tokio::time::sleep(READERS_RETRY).await;
        }
        Err(ArchiveError::Index(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("somebody reads from the index without end".to_owned()),
        )))
    }
}

/// Studies that are being erased, each with the sequence number below which segments of the intake log may hold its objects.
pub(super) fn erased_in_log(db: &Connection) -> Result<Vec<(Uid, u64)>, ArchiveError> {
    let mut statement = db.prepare("SELECT uid, log_before FROM erasure WHERE uid IS NOT NULL")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, as_u64(row.get(1)?))))?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().filter_map(|(uid, before)| Some((Uid::new(&uid).ok()?, before))).collect())
}

fn study_row(tx: &Transaction<'_>, uid: &str) -> Result<Option<i64>, ArchiveError> {
    Ok(tx.query_row("SELECT id FROM study WHERE uid = ?1 AND origin = 0", [uid], |row| row.get(0)).optional()?)
}

fn holdings(tx: &Transaction<'_>, study: i64) -> Result<Holdings, ArchiveError> {
    let one = |sql: &str| tx.query_row(sql, [study], |row| row.get::<_, i64>(0)).map(as_u64);
    let objects = |what: &str| {
        one(&format!("SELECT {what} FROM instance WHERE series IN (SELECT id FROM series WHERE study = ?1)"))
    };
    let images = |what: &str| one(&format!("SELECT {what} FROM image WHERE study = ?1"));
    let pieces = "FROM piece WHERE image IN (SELECT id FROM image WHERE study = ?1)";
    let study_id = tx.query_row("SELECT study_id FROM publication WHERE study = ?1", [study], |row| {
        Ok(B256::from(row.get::<_, [u8; 32]>(0)?))
    });
    Ok(Holdings {
        study_id: study_id.optional()?,
        objects: objects("count(*)")?,
        files: objects("count(file)")?,
        file_bytes: objects("coalesce(sum(CASE WHEN file IS NOT NULL THEN file_bytes END), 0)")?,
        previews: images("coalesce(sum(kind = 2 AND plain IS NOT NULL), 0)")?,
        images: images("count(*)")?,
        ipfs: images("count(cid)")?,
        sealed_bytes: images("coalesce(sum(sealed_bytes), 0)")?,
        pieces: images("coalesce(sum(pieces), 0)")?,
        pieces_seen: one(&format!("SELECT count(*) {pieces}"))?,
        transactions: one(&format!("SELECT count(*) FROM (SELECT DISTINCT block, position {pieces})"))?,
    })
}

fn erase_rows(db: &mut Connection, id: i64) -> Result<(), ArchiveError> {
    const STUDY: &str = "(SELECT id FROM study WHERE origin = -?1)";
    let tx = db.transaction()?;
    tx.execute(
        "UPDATE erased_row SET last = max(last, (SELECT coalesce(max(id), 0) FROM instance WHERE origin = -?1))",
        [id],
    )?;
    for sql in [
        format!("DELETE FROM piece WHERE image IN (SELECT id FROM image WHERE study IN {STUDY})"),
        format!("DELETE FROM image WHERE study IN {STUDY}"),
        "DELETE FROM instance WHERE origin = -?1".to_owned(),
        format!("DELETE FROM series WHERE study IN {STUDY}"),
        format!("DELETE FROM patient_name WHERE study IN {STUDY}"),
        "DELETE FROM study WHERE origin = -?1".to_owned(),
    ] {
        tx.execute(&sql, [id])?;
    }
    Ok(tx.commit()?)
}
