//! The writer thread: groups whatever is ready into one transaction, so that one sync serves many associations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::buffer::Buffer;
use super::disk::Disk;
use super::incoming::Accepted;
use super::index::{self, Durability, Filed};
use super::log::{Appended, Entry, Log};
use super::record::Description;
use super::{ArchiveError, NewInstance};
use crate::config::Duplicates;

/// Objects filed in one transaction at most.
const GROUP_MAX: usize = 64;
/// Requests waiting for the writer; further ones wait in their associations.
const QUEUE_MAX: usize = 256;
/// Writes after which a checkpoint is due as soon as nobody waits, and after which it is made all the same.
const CHECKPOINT_WRITES: (u32, u32) = (256, 1024);
/// Bytes of objects filed in one transaction, above which no further one is taken in.
const GROUP_BYTES: u64 = 8 * 1024 * 1024;

/// Says whether it found the disk untrustworthy.
type Work = Box<dyn FnOnce(&mut Connection) -> bool + Send>;

enum Request {
    File(Arriving),
    Run(Work),
}

/// An object that was received whole.
struct Arriving {
    new: Box<NewInstance>,
    /// Its bytes, unless they are in its file, synced.
    buffer: Option<Buffer>,
    reply: oneshot::Sender<Result<Outcome, ArchiveError>>,
}

/// What the writer made of an object.
pub(super) struct Outcome {
    /// The answer.
    pub(super) accepted: Result<Accepted, ArchiveError>,
    /// Whether the new file is now named by a row.
    pub(super) keep: bool,
    /// Bytes of an old file that went.
    pub(super) freed_bytes: u64,
}

/// Handle of the writer thread.
pub(super) struct Committer {
    queue: Mutex<Option<mpsc::Sender<Request>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// `poisoned` is set when the disk can no longer be trusted.
    pub(super) fn start(
        connection: Connection,
        log: Log,
        policy: Duplicates,
        settle_ms: u64,
        poisoned: Arc<AtomicBool>,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let settle_ms = index::as_i64(settle_ms);
        let writer = Writer { connection, log, policy, settle_ms, durability: None, writes: 0, poisoned };
        let thread = std::thread::Builder::new().name("archive-writer".into()).spawn(move || writer.work(requests));
        if let Err(error) = &thread {
            tracing::error!(%error, "cannot start the archive's writer thread");
        }
        Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(thread.ok()) }
    }

    fn queue(&self) -> Option<mpsc::Sender<Request>> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Files an object whose bytes are in `buffer`, or synced in its file.
    pub(super) async fn file(&self, new: NewInstance, buffer: Option<Buffer>) -> Result<Outcome, ArchiveError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue().ok_or(ArchiveError::Closed)?;
        queue
            .send(Request::File(Arriving { new: Box::new(new), buffer, reply }))
            .await
            .map_err(|_| ArchiveError::Closed)?;
        answer.await.map_err(|_| ArchiveError::Closed)?
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue().ok_or(ArchiveError::Closed)?;
        let work: Work = Box::new(move |connection| {
            let done = work(connection);
            let failed = done.as_ref().is_err_and(is_disk_failure);
            // The asker may have gone; the write is done all the same.
            let _ = reply.send(done);
            failed
        });
        queue.send(Request::Run(work)).await.map_err(|_| ArchiveError::Closed)?;
        answer.await.map_err(|_| ArchiveError::Closed)?
    }

    pub(super) async fn close(&self) {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the archive's writer thread did not end in order");
            }
        }
    }
}

struct Writer {
    connection: Connection,
    log: Log,
    policy: Duplicates,
    settle_ms: i64,
    /// What the connection is set to.
    durability: Option<Durability>,
    /// Since the last checkpoint.
    writes: u32,
    /// After a failed sync or commit nothing more is filed.
    poisoned: Arc<AtomicBool>,
}

impl Writer {
    fn work(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let (mut group, mut bytes) = (Vec::new(), 0);
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::File(arriving) => {
                        bytes += arriving.new.file_bytes;
                        group.push(arriving);
                    }
                    Request::Run(work) => {
                        self.file_group(std::mem::take(&mut group));
                        bytes = 0;
                        self.run(work);
                    }
                }
                if group.len() < GROUP_MAX && bytes < GROUP_BYTES {
                    next = requests.try_recv().ok();
                }
            }
            self.file_group(group);
            self.checkpoint(requests.is_empty());
        }
    }

    fn checkpoint(&mut self, idle: bool) {
        let due = if idle { CHECKPOINT_WRITES.0 } else { CHECKPOINT_WRITES.1 };
        if self.writes < due || self.failed() {
            return;
        }
        self.writes = 0;
        if let Err(error) = index::checkpoint(&self.connection) {
            let error = ArchiveError::from(error);
            tracing::error!(error = %crate::chain_of(&error), "the index could not be checkpointed");
            self.fail_on(&error);
        }
    }

    fn failed(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Refuses everything from now on if the disk can no longer be trusted.
    fn fail_on(&self, error: &ArchiveError) {
        if is_disk_failure(error) {
            self.poisoned.store(true, Ordering::Release);
        }
    }

    fn run(&mut self, work: Work) {
        if let Err(error) = self.be_durable(Durability::Synced) {
            tracing::error!(%error, "the index cannot be set to sync; the archive refuses writes until it is opened again");
            // Dropped, the work tells its asker that it was not done.
            return self.poisoned.store(true, Ordering::Release);
        }
        self.writes += 1;
        if work(&mut self.connection) {
            self.poisoned.store(true, Ordering::Release);
        }
    }

    fn be_durable(&mut self, durability: Durability) -> rusqlite::Result<()> {
        if self.durability != Some(durability) {
            index::set_durability(&self.connection, durability)?;
            self.durability = Some(durability);
        }
        Ok(())
    }

    fn file_group(&mut self, mut group: Vec<Arriving>) {
        if group.is_empty() {
            return;
        }
        if self.failed() {
            return group.into_iter().for_each(|one| drop(one.reply.send(Err(ArchiveError::Poisoned))));
        }
        self.writes += u32::try_from(group.len()).unwrap_or(u32::MAX);
        match self.commit(&mut group) {
            Ok(filed) => {
                for (one, filed) in group.into_iter().zip(filed) {
                    let outcome = self.outcome(&one.new, filed);
                    // An association that broke off meanwhile asks nobody; the object stays.
                    let _ = one.reply.send(Ok(outcome));
                }
            }
            Err(error) => self.refuse_group(group, error),
        }
    }

    /// Nothing of the group was filed. A disk that failed ends all filing; one object that the index does not take must not
    /// take the others with it.
    fn refuse_group(&mut self, mut group: Vec<Arriving>, error: ArchiveError) {
        tracing::error!(error = %crate::chain_of(&error), objects = group.len(), "objects could not be filed");
        self.fail_on(&error);
        let failed = is_disk_failure(&error);
        if !failed && !matches!(error, ArchiveError::Full(_)) {
            if group.len() > 1 {
                return group.into_iter().for_each(|one| self.file_group(vec![one]));
            }
            if let Some(one) = group.pop() {
                let _ = one.reply.send(Err(error));
            }
            return;
        }
        let text = error.to_string();
        for one in group {
            let error = if failed {
                ArchiveError::Io(text.clone(), std::io::Error::other("commit failed"))
            } else {
                ArchiveError::Full(text.clone())
            };
            let _ = one.reply.send(Err(error));
        }
    }

    /// Makes a group durable and visible. Its objects are in the log, or in files with synced rows; never in between.
    fn commit(&mut self, group: &mut [Arriving]) -> Result<Vec<Filed>, ArchiveError> {
        if !self.log.has_room(group.iter().filter(|one| one.buffer.is_some()).map(|one| one.new.file_bytes)) {
            for one in group.iter_mut() {
                if let Some(buffer) = one.buffer.take() {
                    let mut file = self.log.shared().write_file(&one.new.file, &buffer)?;
                    file.sync().map_err(|e| ArchiveError::io("syncing an object", e))?;
                }
            }
        }
        let in_files = self.sync_directories(group)?;
        self.be_durable(if in_files { Durability::Synced } else { Durability::Ordered })?;
        let tx = self.connection.transaction()?;
        let mut filed = Vec::with_capacity(group.len());
        for one in group.iter() {
            filed.push(index::file(&tx, &one.new, self.policy, one.new.received_ms + self.settle_ms)?);
        }
        let appended = append(&self.log, group, &filed)?;
        match tx.commit() {
            Ok(()) => {
                self.log.commit(appended);
                Ok(filed)
            }
            Err(error) => {
                let withdrawn = self.log.withdraw(&appended);
                withdrawn.map_err(|e| ArchiveError::io("withdrawing objects that the index did not take", e))?;
                Err(error.into())
            }
        }
    }

    /// Makes the names of the group's files durable, and says whether there are any.
    fn sync_directories(&self, group: &[Arriving]) -> Result<bool, ArchiveError> {
        let shared = self.log.shared();
        let in_files = group.iter().filter(|one| one.buffer.is_none());
        let directories: BTreeSet<PathBuf> = in_files.map(|one| shared.shards.directory(&one.new.file)).collect();
        for directory in &directories {
            // Out of space or not, names that were thought to be durable may not be.
            shared
                .disk
                .sync_dir(directory)
                .map_err(|e| ArchiveError::Io("syncing an object directory".to_owned(), e))?;
        }
        Ok(!directories.is_empty())
    }

    fn outcome(&self, new: &NewInstance, filed: Filed) -> Outcome {
        let (accepted, keep) = match filed {
            Filed::New => (Ok(Accepted::New), true),
            Filed::Restored => (Ok(Accepted::Same), true),
            Filed::Same => (Ok(Accepted::Same), false),
            Filed::Refused => (Err(ArchiveError::DuplicateDiffers), false),
            Filed::Replaced { old } => {
                let freed_bytes = old.map_or(0, |(file, bytes)| {
                    if let Err(error) = self.log.remove_file(&file) {
                        tracing::warn!(%error, uid = %new.sop_instance, "cannot remove a replaced object");
                    }
                    bytes
                });
                return Outcome { accepted: Ok(Accepted::Replaced), keep: true, freed_bytes };
            }
        };
        Outcome { accepted, keep, freed_bytes: 0 }
    }
}

/// Puts those objects of a group that are in memory and wanted into the log.
fn append(log: &Log, group: &[Arriving], filed: &[Filed]) -> Result<Appended, ArchiveError> {
    let wanted = group.iter().zip(filed).filter(|(_, filed)| !matches!(filed, Filed::Same | Filed::Refused));
    let entries: Vec<Entry<'_>> = wanted
        .filter_map(|(one, _)| Some(Entry { description: Description::of(&one.new), object: one.buffer.as_ref()? }))
        .collect();
    log.append(&entries).map_err(|e| ArchiveError::io("writing to the intake log", e))
}

/// Whether the disk can no longer be trusted: what was reported as written may not be there.
fn is_disk_failure(error: &ArchiveError) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, ReadOnly, SystemIoFailure};
    match error {
        ArchiveError::Io(..) => true,
        ArchiveError::Index(rusqlite::Error::SqliteFailure(failure, _)) => {
            matches!(failure.code, SystemIoFailure | DatabaseCorrupt | NotADatabase | CannotOpen | ReadOnly)
        }
        _ => false,
    }
}

/// Removes files that no row names: they were being received when the process ended and were never acknowledged. Only
/// directories from `last_shard` on can hold such files, because every start begins a new one; of the older ones the
/// last two are looked at as well, for objects that were still streaming when their directory had filled up.
pub(super) fn remove_orphans(
    connection: &Connection,
    disk: &dyn Disk,
    objects: &Path,
    last_shard: i64,
) -> Result<(), ArchiveError> {
    let io = |e| ArchiveError::io("looking for unacknowledged files", e);
    let mut known = connection.prepare("SELECT 1 FROM instance WHERE shard = ?1 AND file = ?2")?;
    for entry in std::fs::read_dir(objects).map_err(io)? {
        let directory = entry.map_err(io)?;
        let Some(shard) = directory.file_name().to_str().and_then(|name| name.parse::<i64>().ok()) else { continue };
        if shard < last_shard - 1 {
            continue;
        }
        for file in std::fs::read_dir(directory.path()).map_err(io)? {
            let path = file.map_err(io)?.path();
            let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if !known.exists(rusqlite::params![shard, name])? {
                tracing::info!(file = name, "removing a file that was never acknowledged");
                disk.remove(&path).map_err(io)?;
            }
        }
    }
    Ok(())
}
