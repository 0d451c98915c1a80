//! Objects on disk and their index: what was acknowledged is never lost, what was not leaves nothing behind.
//!
//! # Order of writes
//! 1. The object streams into memory, hashed on the way; one that is too large streams into its file instead, which is synced.
//! 2. The one writer thread takes every object that is ready, opens a transaction with their instance rows and outbox rows,
//!    appends the objects to the intake log and syncs it once, or, for objects in files, syncs their directories.
//! 3. It commits the transaction: unsynced when the log holds every object of the group, synced otherwise.
//! 4. Only then is anybody told that the object was stored.
//! 5. Behind that, objects get their files, `objects/<shard>/<random>.dcm`, and once files and index are durable their
//!    part of the log is used again.
//!
//! # What a crash leaves
//! Before the log's sync: nothing that counts; files that no row names are removed at the next start. After it: every object, whatever
//! became of its file and its row, because the next start files what is in the log. A row never names a file whose
//! bytes are durable neither there nor in the log.
//!
//! After a sync fails, the kernel may have dropped the data it could not write, so a later sync that succeeds proves
//! nothing: the archive refuses writes until it is opened again.
//!
//! Must not know associations, queries' wire form, chains or keys.

mod again;
mod attributes;
mod buffer;
mod captures;
mod commit;
mod derived;
mod disk;
mod erase;
mod foreign;
mod incoming;
mod index;
mod ipfs;
mod listing;
mod listings;
mod log;
mod part10;
mod publication;
mod queues;
mod record;
mod replay;
mod report;
mod restore;
mod search;
mod shards;
mod write_behind;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::B256;
use dicom_scp::Uid;
use rusqlite::{OptionalExtension, params};
use tokio::sync::Notify;

use crate::config;
pub use again::Needed;
use attributes::Levels;
pub use attributes::level_of;
use buffer::Blocks;
use commit::Committer;
pub use derived::{Derivable, Guard};
pub use disk::{Disk, DiskFile, FileSystems, LogFile, RealDisk};
pub use erase::{Erasure, Holdings};
pub use foreign::{ForeignMode, ForeignStudy, ForeignVersion, Window};
pub use incoming::{Accepted, Incoming};
use index::Readers;
pub use ipfs::{InIpfs, Kept};
pub use listing::{Picture, Stage};
pub use listings::Listing;
use listings::Listings;
use log::Log;
pub use part10::{FileMeta, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Part10Error};
pub use publication::{Image, ImageAndPlain, PlannedImage, PlannedVersion, Publication, SeenImages, SeenOnLedger};
pub use queues::{Evictable, Queues, Room};
use replay::Replay;
pub use report::{StudyNames, StudySummary};
pub use restore::{Restored, Restorer, Restoring};
pub use search::Fields;
use shards::Shards;
use write_behind::WriteBehind;

/// The archive. Cheap to clone; every clone is the same archive.
#[derive(Clone)]
pub struct Archive(Arc<Inner>);

struct Inner {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    limits: config::Archive,
    readers: Readers,
    committer: Committer,
    blocks: Blocks,
    log: Log,
    write_behind: Mutex<Option<WriteBehind>>,
    shards: Arc<Shards>,
    /// Bytes of files named by the index plus those being received.
    used_bytes: AtomicU64,
    poisoned: Arc<AtomicBool>,
    /// Which studies are made here and take nothing from elsewhere.
    guard: OnceLock<Guard>,
    /// How long a study is quiet before it is due.
    settle_ms: i64,
    /// Notified when an object was filed.
    arrived: Notify,
    /// Manifests that are being looked at.
    listings: Listings,
}

/// Why the archive could not do what it was asked, by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk or the quota is full: the ops person must make room.
    #[error("out of space: {0}")]
    Full(String),
    /// A sync failed earlier; only a restart makes the archive trust its disk again.
    #[error("the archive stopped writing after a disk failure; restart the bridge once the disk is sound")]
    Poisoned,
    /// The disk failed.
    #[error("disk failure: {0}")]
    Io(String, #[source] std::io::Error),
    /// The index failed.
    #[error("index failure")]
    Index(#[source] rusqlite::Error),
    /// The index was written by another version.
    #[error("the index has format {found}, this program knows {known}; use the version that wrote it or migrate")]
    Version {
        /// In the file.
        found: i64,
        /// Of this program.
        known: i64,
    },
    /// The object cannot be filed: its sender must mend it.
    #[error("the data set lacks {0}")]
    Lacks(&'static str),
    /// The data set is not what the command announced (PS3.4 B.2.3, status A900).
    #[error("the data set has {found}, and {announced} was announced")]
    Mismatch {
        /// In the data set.
        found: String,
        /// In the C-STORE command.
        announced: String,
    },
    /// The start of the data set cannot be parsed in its transfer syntax.
    #[error("the data set cannot be understood: {0}")]
    Undecodable(String),
    /// The study is made here, by de-identification; what comes from elsewhere is not taken into it.
    #[error("study {0} was derived here and takes no objects from elsewhere")]
    Derived(Uid),
    /// Another object of this SOP Instance UID is here and the policy is to keep it.
    #[error("another object with this SOP instance uid is already stored")]
    DuplicateDiffers,
    /// Stored data is not what it was.
    #[error("stored object {0} is damaged")]
    Corrupt(String),
    /// The manifest of another site's study cannot be taken in.
    #[error("the manifest of another site's study is refused: {0}")]
    Foreign(String),
    /// The archive is being closed.
    #[error("the archive is closing")]
    Closed,
}

impl From<rusqlite::Error> for ArchiveError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(code, _) if code.code == rusqlite::ErrorCode::DiskFull => {
                Self::Full("no room for the index".to_owned())
            }
            other => Self::Index(other),
        }
    }
}

impl ArchiveError {
    fn io(what: &str, error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::Full(what.to_owned()),
            _ => Self::Io(what.to_owned(), error),
        }
    }
}

/// A file of the archive: shard directory and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) shard: i64,
    pub(crate) name: String,
}

/// An object that is on disk and waits for its row.
struct NewInstance {
    sop_class: Uid,
    sop_instance: Uid,
    transfer_syntax: Uid,
    levels: Levels,
    meta_bytes: u64,
    file_bytes: u64,
    file_sha256: [u8; 32],
    file_crc32: u32,
    received_ms: i64,
    calling_ae: String,
    file: FileId,
}

/// What a C-STORE command announces.
#[derive(Debug, Clone)]
pub struct ObjectHead {
    /// Affected SOP Class UID.
    pub sop_class: Uid,
    /// Affected SOP Instance UID.
    pub sop_instance: Uid,
    /// Transfer syntax of the presentation context.
    pub transfer_syntax: Uid,
    /// AE title of the sender.
    pub calling_ae: String,
}

/// An object the index knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Row, for ordering and paging only. Never given twice.
    pub id: i64,
    /// 0 for what was received here, above it the foreign study that it came with.
    pub origin: i64,
    /// Study it belongs to.
    pub study_uid: Uid,
    /// Series it belongs to.
    pub series_uid: Uid,
    /// SOP Class UID.
    pub sop_class: Uid,
    /// SOP Instance UID.
    pub sop_instance: Uid,
    /// Transfer syntax of the stored bytes.
    pub transfer_syntax: Uid,
    /// Offset of the data set in the file, in bytes.
    pub meta_bytes: u64,
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the whole file.
    pub file_sha256: [u8; 32],
    /// CRC-32 of the whole file, if it was ever here.
    pub file_crc32: Option<u32>,
    /// Where the file is or will be, unless it was evicted. [`Archive::open_file`] opens it.
    pub path: Option<PathBuf>,
}

/// Totals, for the ops person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Studies in the index.
    pub studies: u64,
    /// Current objects in the index.
    pub instances: u64,
    /// Bytes of those objects.
    pub bytes: u64,
    /// Bytes of the files kept here.
    pub local_bytes: u64,
}

impl Archive {
    /// Opens the archive below `root`, creating it if need be, and removes what a crash left unacknowledged.
    ///
    /// # Errors
    /// [`ArchiveError`] when the directory or the index cannot be used.
    pub fn open(root: &Path, limits: config::Archive, settle_ms: u64) -> Result<Self, ArchiveError> {
        Self::open_on(root, limits, settle_ms, Arc::new(RealDisk))
    }

    /// As [`Archive::open`], on a disk of the caller's.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn open_on(
        root: &Path,
        limits: config::Archive,
        settle_ms: u64,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, ArchiveError> {
        let (objects, log_directory) = (root.join("objects"), root.join("intake"));
        for directory in [&objects, &log_directory] {
            disk.create_dir(directory).map_err(|e| ArchiveError::io("creating a directory of the archive", e))?;
        }
        let file_systems = disk
            .file_systems(&[root, &objects])
            .map_err(|e| ArchiveError::io("opening the archive's file systems", e))?;
        let index_path = root.join("index.sqlite");
        let mut writer = index::open_writer(&index_path)?;
        let next_sequence = Replay {
            connection: &mut writer,
            disk: &disk,
            shards: &Shards::new(objects.clone(), 0),
            file_systems: file_systems.as_ref(),
            policy: limits.duplicates,
            settle_ms: index::as_i64(settle_ms),
        }
        .run(&log_directory)?;
        let last_shard: i64 = writer.query_row("SELECT coalesce(max(shard), 0) FROM instance", [], |row| row.get(0))?;
        commit::remove_orphans(&writer, disk.as_ref(), &objects, last_shard)?;
        let used: i64 =
            writer.query_row("SELECT coalesce(sum(file_bytes), 0) FROM instance WHERE file IS NOT NULL", [], |r| {
                r.get(0)
            })?;
        let (blocks, poisoned) = (Blocks::default(), Arc::new(AtomicBool::new(false)));
        let shards = Arc::new(Shards::new(objects, last_shard + 1));
        let log = Log::new(disk.clone(), shards.clone(), log_directory, limits.intake_log_bytes, next_sequence);
        log.remove_superfluous().map_err(|e| ArchiveError::io("removing segments of the intake log", e))?;
        let write_behind =
            WriteBehind::start(log.clone(), blocks.clone(), file_systems, limits.free_bytes_min, poisoned.clone())
                .map_err(|e| ArchiveError::io("starting the thread behind the intake log", e))?;
        let committer = Committer::start(writer, log.clone(), limits.duplicates, settle_ms, poisoned.clone());
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            shards,
            disk,
            limits,
            readers: Readers::new(index_path),
            committer,
            blocks,
            log,
            write_behind: Mutex::new(Some(write_behind)),
            used_bytes: AtomicU64::new(index::as_u64(used)),
            poisoned,
            guard: OnceLock::new(),
            settle_ms: index::as_i64(settle_ms),
            arrived: Notify::new(),
            listings: Listings::default(),
        })))
    }

    /// Ends when an object was filed since it ended last. For one listener.
    pub async fn arrival(&self) {
        self.0.arrived.notified().await;
    }

    /// How long a study is quiet before it is due.
    #[must_use]
    pub fn settle(&self) -> Duration {
        Duration::from_millis(index::as_u64(self.0.settle_ms))
    }

    /// Directory of the archive.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Begins to receive an object. Dropping the result before [`Incoming::finish`] leaves nothing behind.
    ///
    /// # Errors
    /// [`ArchiveError::Full`] before a byte is written when there is no room, [`ArchiveError::Poisoned`] after a failure.
    pub fn begin(&self, head: ObjectHead) -> Result<Incoming, ArchiveError> {
        self.check_writable()?;
        Incoming::begin(self.clone(), head, false)
    }

    /// The current object of a SOP Instance UID, received here or granted.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn instance(&self, sop_instance: &Uid) -> Result<Option<Stored>, ArchiveError> {
        self.0.readers.with(|db| {
            let sql = format!("{SELECT_SHOWN} WHERE i.uid = ?1 ORDER BY i.origin LIMIT 1");
            let mut statement = db.prepare_cached(&sql)?;
            Ok(statement.query_row([sop_instance.as_str()], |row| self.stored(row)).optional()?)
        })
    }

    /// The current object of a SOP Instance UID that was received here.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn received_instance(&self, sop_instance: &Uid) -> Result<Option<Stored>, ArchiveError> {
        Ok(self.instance(sop_instance)?.filter(|stored| stored.origin == 0))
    }

    /// The object of a study that was received here with these bytes, whether or not another took its place since.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn received_version(
        &self,
        study: &Uid,
        sop_instance: &Uid,
        sha256: &[u8; 32],
    ) -> Result<Option<Stored>, ArchiveError> {
        self.0.readers.with(|db| {
            let sql = format!(
                "{SELECT_VISIBLE} WHERE i.uid = ?1 AND st.uid = ?2 AND i.origin = 0 AND i.file_sha256 = ?3
                 ORDER BY i.superseded, i.id DESC LIMIT 1"
            );
            let mut statement = db.prepare_cached(&sql)?;
            let found = params![sop_instance.as_str(), study.as_str(), sha256.as_slice()];
            Ok(statement.query_row(found, |row| self.stored(row)).optional()?)
        })
    }

    /// An object as it is now, if it may be shown now.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn current(&self, stored: &Stored) -> Result<Option<Stored>, ArchiveError> {
        self.0.readers.with(|db| {
            let sql = format!("{SELECT_VISIBLE} WHERE i.id = ?1 AND i.superseded = 0");
            let mut statement = db.prepare_cached(&sql)?;
            Ok(statement.query_row([stored.id], |row| self.stored(row)).optional()?)
        })
    }

    /// The current objects of a study, received here or granted, by series and instance number.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn instances_of(&self, study_uid: &Uid) -> Result<Vec<Stored>, ArchiveError> {
        self.0.readers.with(|db| {
            let sql = format!("{SELECT_SHOWN} WHERE st.uid = ?1 ORDER BY se.id, i.number, i.id");
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map([study_uid.as_str()], |row| self.stored(row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Those of them that were received here.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn received_instances_of(&self, study_uid: &Uid) -> Result<Vec<Stored>, ArchiveError> {
        Ok(self.instances_of(study_uid)?.into_iter().filter(|stored| stored.origin == 0).collect())
    }

    /// Opens the local file of an object; none if it was evicted, or if somebody removed the file.
    ///
    /// # Errors
    /// What the disk said.
    pub fn open_file(&self, stored: &Stored) -> io::Result<Option<File>> {
        let Some(path) = &stored.path else { return Ok(None) };
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(file) = self.0.log.file_now(name)? {
            return Ok(Some(file));
        }
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Counts and bytes.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn totals(&self) -> Result<Totals, ArchiveError> {
        let sql = "SELECT count(*), coalesce(sum(instances), 0), coalesce(sum(bytes), 0) FROM visible_study";
        let (studies, instances, bytes) = self
            .0
            .readers
            .with(|db| Ok(db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?))
            .map(|(s, i, b)| (index::as_u64(s), index::as_u64(i), index::as_u64(b)))?;
        let local_bytes = self.0.used_bytes.load(Ordering::Relaxed);
        Ok(Totals { studies, instances, bytes, local_bytes })
    }

    /// Removes the local files of a study's objects that were seen whole on the ledger, or that another site keeps; their rows stay. Returns how many
    /// files and bytes went. A file that is the only copy of an object is never removed: of this site's objects in IPFS those alone lose theirs
    /// whose images are `proven`, read back from this site's node just now.
    ///
    /// # Errors
    /// [`ArchiveError::Index`], [`ArchiveError::Closed`].
    pub async fn evict(&self, study_uid: &Uid, proven: Vec<B256>) -> Result<(u64, u64), ArchiveError> {
        let uid = study_uid.to_string();
        let gone: Vec<(FileId, u64)> = self
            .write(move |db| {
                let tx = db.transaction()?;
                let mark = |mark: i64| proven.iter().try_for_each(|image| ipfs::mark(&tx, image, mark));
                mark(ipfs::PROVEN)?;
                let gone = files_of(&tx, &uid)?;
                tx.execute(&format!("UPDATE instance AS i SET shard = NULL, file = NULL WHERE {EVICTABLE}"), [&uid])?;
                mark(ipfs::KEPT)?;
                tx.commit()?;
                Ok(gone)
            })
            .await?;
        let mut bytes = 0;
        for (file, length) in &gone {
            self.remove_file(file);
            self.release(*length);
            bytes += length;
        }
        Ok((gone.len() as u64, bytes))
    }

    /// Runs a write on the index's one writing connection and waits until it is durable.
    ///
    /// # Errors
    /// What `work` returns, or [`ArchiveError::Closed`].
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut rusqlite::Connection) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        self.check_writable()?;
        self.0.committer.run(work).await
    }

    /// Runs a query on a reading connection.
    pub(crate) fn read<T>(
        &self,
        query: impl FnOnce(&mut rusqlite::Connection) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        self.0.readers.with(query)
    }

    /// Finishes what was begun and closes the index. Later writes are refused.
    pub async fn close(&self) {
        self.0.committer.close().await;
        let write_behind = self.0.write_behind.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Dropping it waits until the log is filed.
        if tokio::task::spawn_blocking(move || drop(write_behind)).await.is_err() {
            tracing::error!("the thread behind the intake log could not be ended");
        }
    }

    fn check_writable(&self) -> Result<(), ArchiveError> {
        if self.0.poisoned.load(Ordering::Acquire) { Err(ArchiveError::Poisoned) } else { Ok(()) }
    }

    /// Syncs the file of an object on a thread of its own, so that many associations sync at once.
    async fn sync_file(&self, mut file: Box<dyn DiskFile>) -> Result<(), ArchiveError> {
        let synced = tokio::task::spawn_blocking(move || file.sync()).await.map_err(|_| ArchiveError::Closed)?;
        synced.map_err(|error| {
            let error = ArchiveError::io("syncing an object", error);
            // Out of space while allocating late is an orderly refusal; anything else ends our trust in the disk.
            if !matches!(error, ArchiveError::Full(_)) {
                self.poison();
            }
            error
        })
    }

    fn poison(&self) {
        self.0.poisoned.store(true, Ordering::Release);
        tracing::error!("the archive refuses writes until the bridge is restarted");
    }

    fn path_of(&self, file: &FileId) -> PathBuf {
        self.0.shards.path(file)
    }

    fn remove_file(&self, file: &FileId) {
        if let Err(error) = self.0.log.remove_file(file) {
            tracing::warn!(%error, file = file.name, "cannot remove a file that is no longer needed");
        }
    }

    /// Takes room for `bytes` more, or says that there is none.
    fn reserve(&self, bytes: u64) -> Result<(), ArchiveError> {
        let quota = self.0.limits.quota_bytes;
        let before = self.0.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if quota != 0 && before + bytes > quota {
            self.release(bytes);
            return Err(ArchiveError::Full(format!("the quota of {quota} bytes is used up")));
        }
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.0.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether `bytes` more can be written and still enough stays free.
    fn check_free(&self, bytes: u64) -> Result<(), ArchiveError> {
        let min = self.0.limits.free_bytes_min;
        let free = self.0.disk.free_bytes(&self.0.root).map_err(|e| ArchiveError::io("asking for free space", e))?;
        // Objects in the log will need room for their files.
        let wanted = self.0.log.unfiled_bytes() + bytes;
        if free < min.saturating_add(wanted) {
            return Err(ArchiveError::Full(format!(
                "{free} bytes are free, {wanted} of them are needed and {min} must stay free"
            )));
        }
        Ok(())
    }

    fn stored(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Stored> {
        let uid = |i: usize| -> rusqlite::Result<Uid> {
            let text: String = row.get(i)?;
            Uid::new(&text)
                .map_err(|e| rusqlite::Error::FromSqlConversionFailure(i, rusqlite::types::Type::Text, Box::new(e)))
        };
        let file = match (row.get::<_, Option<i64>>(9)?, row.get::<_, Option<String>>(10)?) {
            (Some(shard), Some(name)) => Some(self.path_of(&FileId { shard, name })),
            _ => None,
        };
        Ok(Stored {
            id: row.get(0)?,
            study_uid: uid(1)?,
            series_uid: uid(2)?,
            sop_class: uid(3)?,
            sop_instance: uid(4)?,
            transfer_syntax: uid(5)?,
            meta_bytes: index::as_u64(row.get(6)?),
            file_bytes: index::as_u64(row.get(7)?),
            file_sha256: row.get(8)?,
            file_crc32: row.get(11)?,
            path: file,
            origin: row.get(12)?,
        })
    }
}

/// Objects that may be shown now, each once.
const SELECT_SHOWN: &str =
    "SELECT i.id, st.uid, se.uid, i.sop_class, i.uid, i.transfer_syntax, i.meta_bytes, i.file_bytes, i.file_sha256, i.shard, i.file,
   i.file_crc32, i.origin FROM shown_instance i JOIN series se ON i.series = se.id JOIN visible_study st ON se.study = st.id";
/// The same, those besides which the same object was received as well.
const SELECT_VISIBLE: &str =
    "SELECT i.id, st.uid, se.uid, i.sop_class, i.uid, i.transfer_syntax, i.meta_bytes, i.file_bytes, i.file_sha256, i.shard, i.file,
   i.file_crc32, i.origin FROM instance i JOIN series se ON i.series = se.id JOIN visible_study st ON se.study = st.id";

/// Objects of study ?1 that have a file here and a sealed image on the ledger, or that another site keeps.
const EVICTABLE: &str = "i.file IS NOT NULL AND i.superseded = 0
   AND i.series IN (SELECT se.id FROM series se JOIN study st ON se.study = st.id WHERE st.uid = ?1 AND st.origin >= 0)
   AND (i.at_source = 1 AND i.origin > 0 OR EXISTS (SELECT 1 FROM image WHERE image.instance = i.id AND image.sealed = 1
     AND (image.cid IS NULL OR image.pinned = 3 OR i.origin > 0)))";

fn files_of(tx: &rusqlite::Transaction<'_>, study_uid: &str) -> Result<Vec<(FileId, u64)>, ArchiveError> {
    let sql = format!("SELECT i.shard, i.file, i.file_bytes FROM instance AS i WHERE {EVICTABLE}");
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(params![study_uid], |row| {
        Ok((FileId { shard: row.get(0)?, name: row.get(1)? }, index::as_u64(row.get(2)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("root", &self.0.root).finish_non_exhaustive()
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod erase_tests;
#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod search_tests;
#[cfg(test)]
mod tests;
