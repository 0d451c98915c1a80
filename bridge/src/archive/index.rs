//! The index: SQLite, one writer, several readers.
//!
//! The writer runs in WAL mode. With [`Durability::Synced`] a transaction that has committed survives a power cut; with
//! [`Durability::Ordered`] it survives the end of the process, and after a power cut it is there or it is not, but none after it
//! without it.
//! Knows tables; must not know files, associations or chains.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dicom_scp::dataset::{DataSet, Encoding, Tag};
use dicom_scp::matching::Date;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use super::attributes::{Levels, name_forms};
use super::{ArchiveError, FileId, NewInstance};
use crate::config::Duplicates;

/// Version of the schema in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 6;
/// What leads from version 2 to 3.
const ERASURE: &str = include_str!("erasure.sql");
/// What leads from version 3 to 4.
const SERIES_KEYS: &str = include_str!("series_keys.sql");
/// What leads from version 4 to 5.
const AT_SOURCE: &str = include_str!("at_source.sql");
/// What leads from version 5 to 6.
const IPFS: &str = include_str!("ipfs.sql");
/// Connections kept open for reading.
const READERS_MAX: usize = 8;

/// Keeps statements, each with the plan that was made for it. Otherwise SQLite plans anew whenever another value is bound that a partial index
/// might have to do with, which takes longer than most statements themselves.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Opens the writing connection, creating or checking the schema.
pub(super) fn open_writer(path: &Path) -> Result<Connection, ArchiveError> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    set_durability(&connection, Durability::Synced)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -16_000)?;
    // What names a patient is overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    // SQLite does not report what fails in a checkpoint of its own; see `checkpoint`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    keep_plans(&connection)?;
    let steps: &[&str] = match connection.query_row("PRAGMA user_version", [], |row| row.get(0))? {
        0 => &[include_str!("index.sql"), ERASURE, SERIES_KEYS, AT_SOURCE, IPFS],
        2 => &[ERASURE, SERIES_KEYS, AT_SOURCE, IPFS],
        3 => &[SERIES_KEYS, AT_SOURCE, IPFS],
        4 => &[AT_SOURCE, IPFS],
        5 => &[IPFS],
        SCHEMA_VERSION => &[],
        found => return Err(ArchiveError::Version { found, known: SCHEMA_VERSION }),
    };
    if !steps.is_empty() {
        let steps = steps.join("\n");
        connection.execute_batch(&format!("BEGIN;\n{steps}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"))?;
    }
    Ok(connection)
}

/// What a committed transaction survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// A power cut.
    Synced,
    /// The end of the process.
    Ordered,
}

/// Sets what the next transactions of the writing connection survive.
pub(super) fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Synced => "FULL",
        Durability::Ordered => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)
}

/// Moves what the write-ahead log holds into the database, as far as no reader needs it there, and syncs both. The log is then
/// rewritten from its start, so that its syncs do not grow the file.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// Moves everything into the database and leaves nothing in the write-ahead log; false when a reader needed it there. Never waits
/// for one.
pub(super) fn checkpoint_all(connection: &Connection) -> rusqlite::Result<bool> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(!busy?)
}

/// Reading connections, handed out one per query.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    /// Runs `query` on a reading connection; a new one is opened when all are busy.
    pub(super) fn with<T>(
        &self,
        query: impl FnOnce(&mut Connection) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        let idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.open()?,
        };
        let result = query(&mut connection);
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() < READERS_MAX {
            idle.push(connection);
        }
        result
    }

    /// A connection of its own, for a query that streams.
    pub(super) fn open(&self) -> Result<Connection, ArchiveError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "cache_size", -4_000)?;
        keep_plans(&connection)?;
        Ok(connection)
    }
}

/// What came of filing one object.
pub(super) enum Filed {
    /// A new row.
    New,
    /// The same bytes are here already; the new file is not needed.
    Same,
    /// The row was there without a file and has one again.
    Restored,
    /// Another object of the same UID was superseded; its file, if it is to go.
    Replaced { old: Option<(FileId, u64)> },
    /// Refused by the duplicate policy.
    Refused,
}

/// Files one object: the instance row and the outbox row belong to the same transaction.
pub(super) fn file(
    tx: &Transaction<'_>,
    new: &NewInstance,
    policy: Duplicates,
    due_ms: i64,
) -> Result<Filed, ArchiveError> {
    let outcome = match same_uid(tx, new)? {
        None => Filed::New,
        Some(old) if old.file_sha256 == new.file_sha256 => {
            if old.file.is_some() {
                return Ok(Filed::Same);
            }
            tx.prepare_cached("UPDATE instance SET shard = ?2, file = ?3 WHERE id = ?1")?.execute(params![
                old.id,
                new.file.shard,
                new.file.name
            ])?;
            return Ok(Filed::Restored);
        }
        Some(_) if policy == Duplicates::Reject => return Ok(Filed::Refused),
        Some(old) => {
            supersede(tx, &old)?;
            let old_id = old.id;
            let gone = old.file.filter(|_| policy == Duplicates::Replace).map(|file| (file, as_u64(old.file_bytes)));
            if gone.is_some() {
                tx.prepare_cached("UPDATE instance SET shard = NULL, file = NULL WHERE id = ?1")?.execute([old_id])?;
            }
            Filed::Replaced { old: gone }
        }
    };
    let study = study_row(tx, &new.levels, new)?;
    let series = series_row(tx, study, &new.levels)?;
    instance_row(tx, series, new)?;
    tx.prepare_cached(
        "INSERT INTO outbox (study, due_ms, since_ms) VALUES (?1, ?2, ?3)
         ON CONFLICT (study) DO UPDATE SET due_ms = CASE
           WHEN due_ms > excluded.due_ms + ?4 THEN excluded.due_ms ELSE max(due_ms, excluded.due_ms) END",
    )?
    .execute(params![study, due_ms, new.received_ms, super::publication::AHEAD_MS])?;
    Ok(outcome)
}

struct Old {
    id: i64,
    series: i64,
    file_bytes: i64,
    file_sha256: [u8; 32],
    file: Option<FileId>,
}

fn same_uid(tx: &Transaction<'_>, new: &NewInstance) -> Result<Option<Old>, ArchiveError> {
    let mut statement = tx.prepare_cached(
        "SELECT id, series, file_bytes, file_sha256, shard, file FROM instance
         WHERE uid = ?1 AND origin = 0 AND superseded = 0",
    )?;
    let old = statement.query_row([new.sop_instance.as_str()], |row| {
        let file = match (row.get::<_, Option<i64>>(4)?, row.get::<_, Option<String>>(5)?) {
            (Some(shard), Some(name)) => Some(FileId { shard, name }),
            _ => None,
        };
        Ok(Old { id: row.get(0)?, series: row.get(1)?, file_bytes: row.get(2)?, file_sha256: row.get(3)?, file })
    });
    Ok(old.optional()?)
}

fn supersede(tx: &Transaction<'_>, old: &Old) -> Result<(), ArchiveError> {
    tx.prepare_cached("UPDATE instance SET superseded = 1 WHERE id = ?1")?.execute([old.id])?;
    tx.prepare_cached("UPDATE series SET instances = instances - 1 WHERE id = ?1")?.execute([old.series])?;
    tx.prepare_cached(
        "UPDATE study SET instances = instances - 1, bytes = bytes - ?2
         WHERE id = (SELECT study FROM series WHERE id = ?1)",
    )?
    .execute(params![old.series, old.file_bytes])?;
    Ok(())
}

fn study_row(tx: &Transaction<'_>, levels: &Levels, new: &NewInstance) -> Result<i64, ArchiveError> {
    let bytes = as_i64(new.file_bytes);
    let updated = tx
        .prepare_cached(
            "UPDATE study SET instances = instances + 1, bytes = bytes + ?2, changed_ms = ?3
             WHERE uid = ?1 AND origin = 0 RETURNING id",
        )?
        .query_row(params![levels.study_uid.as_str(), bytes, new.received_ms], |row| row.get(0))
        .optional()?;
    match updated {
        Some(id) => Ok(id),
        None => insert_study(tx, levels, 0, bytes, new.received_ms),
    }
}

/// A new study row, with one object of `bytes`.
pub(super) fn insert_study(
    tx: &Transaction<'_>,
    levels: &Levels,
    origin: i64,
    bytes: i64,
    received_ms: i64,
) -> Result<i64, ArchiveError> {
    let text = |tag| single(levels.study.texts(tag));
    let date = |tag| Date::parse(&text(tag)).map(Date::yyyymmdd);
    tx.prepare_cached(
        "INSERT INTO study (uid, patient_id, patient_issuer, birth_date, study_date, accession, study_number, attributes,
           instances, bytes, received_ms, changed_ms, origin)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9, ?10, ?10, ?11)",
    )?
    .execute(params![
        levels.study_uid.as_str(),
        text(Tag(0x0010, 0x0020)),
        text(Tag(0x0010, 0x0021)),
        date(Tag(0x0010, 0x0030)),
        date(Tag(0x0008, 0x0020)),
        text(Tag(0x0008, 0x0050)),
        text(Tag(0x0020, 0x0010)),
        levels.study.write(Encoding::ExplicitLe),
        bytes,
        received_ms,
        origin,
    ])?;
    let study = tx.last_insert_rowid();
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO patient_name (folded, study) VALUES (?1, ?2)")?;
    for form in levels.study.texts(Tag(0x0010, 0x0010)).iter().flat_map(|name| name_forms(name)) {
        insert.execute(params![form, study])?;
    }
    Ok(study)
}

/// What stands in a column whose attribute has several values, any of which may be asked for: look at the attributes.
pub(super) const SEVERAL: &str = "\\";

fn single(mut values: Vec<String>) -> String {
    match values.len() {
        0 => String::new(),
        1 => values.remove(0),
        _ => SEVERAL.to_owned(),
    }
}

/// The series row of one more object.
pub(super) fn series_row(tx: &Transaction<'_>, study: i64, levels: &Levels) -> Result<i64, ArchiveError> {
    let uid = levels.series_uid.as_str();
    let updated = tx
        .prepare_cached("UPDATE series SET instances = instances + 1 WHERE study = ?1 AND uid = ?2 RETURNING id")?
        .query_row(params![study, uid], |row| row.get(0))
        .optional()?;
    if let Some(id) = updated {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO series (study, uid, modality, attributes, instances) VALUES (?1, ?2, ?3, ?4, 1)")?
        .execute(params![
        study,
        uid,
        levels.series.texts(Tag(0x0008, 0x0060)).join("\\"),
        levels.series.write(Encoding::ExplicitLe),
    ])?;
    Ok(tx.last_insert_rowid())
}

fn instance_row(tx: &Transaction<'_>, series: i64, new: &NewInstance) -> Result<(), ArchiveError> {
    let attributes: &DataSet = &new.levels.instance;
    tx.prepare_cached(
        // Somebody may still hold the number of a row that was erased.
        "INSERT INTO instance (id, series, uid, sop_class, transfer_syntax, number, attributes, meta_bytes, file_bytes,
           file_sha256, received_ms, calling_ae, shard, file, file_crc32)
         VALUES (1 + max((SELECT last FROM erased_row), (SELECT coalesce(max(id), 0) FROM instance)), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        series,
        new.sop_instance.as_str(),
        new.sop_class.as_str(),
        new.transfer_syntax.as_str(),
        attributes.int(Tag(0x0020, 0x0013)),
        attributes.write(Encoding::ExplicitLe),
        as_i64(new.meta_bytes),
        as_i64(new.file_bytes),
        new.file_sha256,
        new.received_ms,
        new.calling_ae,
        new.file.shard,
        new.file.name,
        new.file_crc32,
    ])?;
    Ok(())
}

/// SQLite's integers are signed; no object has 2^63 bytes.
pub(super) fn as_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// And back; a negative value cannot have been written by us.
pub(super) fn as_u64(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
