//! The writer thread: groups whatever is ready into one transaction, so that one sync serves many associations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rand::RngCore;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::incoming::Accepted;
use super::index::{self, Filed};
use super::{ArchiveError, FileId, NewInstance};
use crate::config::Duplicates;

/// Objects filed in one transaction at most.
const GROUP_MAX: usize = 64;
/// Requests waiting for the writer; further ones wait in their associations.
const QUEUE_MAX: usize = 256;
/// Files in one directory before the next is begun.
const SHARD_FILES_MAX: i64 = 2_000;

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

enum Request {
    File(Box<NewInstance>, oneshot::Sender<Result<Outcome, ArchiveError>>),
    Run(Work),
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
    pub(super) fn start(
        connection: Connection,
        disk: Arc<dyn Disk>,
        objects: PathBuf,
        policy: Duplicates,
        settle_ms: u64,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { connection, disk, objects, policy, settle_ms: index::as_i64(settle_ms), failed: false };
        let thread = std::thread::Builder::new().name("archive-writer".into()).spawn(move || writer.work(requests));
        if let Err(error) = &thread {
            tracing::error!(%error, "cannot start the archive's writer thread");
        }
        Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(thread.ok()) }
    }

    fn queue(&self) -> Option<mpsc::Sender<Request>> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(super) async fn file(&self, new: NewInstance) -> Result<Outcome, ArchiveError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue().ok_or(ArchiveError::Closed)?;
        queue.send(Request::File(Box::new(new), reply)).await.map_err(|_| ArchiveError::Closed)?;
        answer.await.map_err(|_| ArchiveError::Closed)?
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue().ok_or(ArchiveError::Closed)?;
        let work: Work = Box::new(move |connection| {
            // The asker may have gone; the write is done all the same.
            let _ = reply.send(work(connection));
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
    disk: Arc<dyn Disk>,
    objects: PathBuf,
    policy: Duplicates,
    settle_ms: i64,
    /// After a failed sync or commit nothing more is filed.
    failed: bool,
}

type Waiting = (Box<NewInstance>, oneshot::Sender<Result<Outcome, ArchiveError>>);

impl Writer {
    fn work(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::File(new, reply) => group.push((new, reply)),
                    Request::Run(work) => {
                        self.file_group(std::mem::take(&mut group));
                        work(&mut self.connection);
                    }
                }
                if group.len() < GROUP_MAX {
                    next = requests.try_recv().ok();
                }
            }
            self.file_group(group);
        }
    }

    fn file_group(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        if self.failed {
            return group.into_iter().for_each(|(_, reply)| drop(reply.send(Err(ArchiveError::Poisoned))));
        }
        match self.commit(&group) {
            Ok(filed) => {
                for ((new, reply), filed) in group.into_iter().zip(filed) {
                    let outcome = self.outcome(&new, filed);
                    // An association that broke off meanwhile asks nobody; the object stays.
                    let _ = reply.send(Ok(outcome));
                }
            }
            Err(error) => self.refuse_group(group, error),
        }
    }

    /// Nothing of the group was filed. A disk that failed ends all filing; one object that the index does not take must not
    /// take the others with it.
    fn refuse_group(&mut self, mut group: Vec<Waiting>, error: ArchiveError) {
        tracing::error!(error = %crate::chain_of(&error), objects = group.len(), "objects could not be filed");
        self.failed = is_disk_failure(&error);
        if !self.failed && !matches!(error, ArchiveError::Full(_)) {
            if group.len() > 1 {
                return group.into_iter().for_each(|one| self.file_group(vec![one]));
            }
            if let Some((_, reply)) = group.pop() {
                let _ = reply.send(Err(error));
            }
            return;
        }
        let text = error.to_string();
        for (_, reply) in group {
            let error = if self.failed {
                ArchiveError::Io(text.clone(), std::io::Error::other("commit failed"))
            } else {
                ArchiveError::Full(text.clone())
            };
            let _ = reply.send(Err(error));
        }
    }

    fn commit(&mut self, group: &[Waiting]) -> Result<Vec<Filed>, ArchiveError> {
        let shards: BTreeSet<i64> = group.iter().map(|(new, _)| new.file.shard).collect();
        for shard in shards {
            self.disk
                .sync_dir(&shard_path(&self.objects, shard))
                .map_err(|e| ArchiveError::io("syncing an object directory", e))?;
        }
        let tx = self.connection.transaction()?;
        let mut filed = Vec::with_capacity(group.len());
        for (new, _) in group {
            filed.push(index::file(&tx, new, self.policy, new.received_ms + self.settle_ms)?);
        }
        tx.commit()?;
        Ok(filed)
    }

    fn outcome(&self, new: &NewInstance, filed: Filed) -> Outcome {
        let (accepted, keep) = match filed {
            Filed::New => (Ok(Accepted::New), true),
            Filed::Restored => (Ok(Accepted::Same), true),
            Filed::Same => (Ok(Accepted::Same), false),
            Filed::Refused => (Err(ArchiveError::DuplicateDiffers), false),
            Filed::Replaced { old } => {
                let freed_bytes = old.map_or(0, |(file, bytes)| {
                    if let Err(error) = self.disk.remove(&file_path(&self.objects, &file)) {
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

/// Hands out file names, a new directory every [`SHARD_FILES_MAX`] files.
pub(super) struct Shards {
    objects: PathBuf,
    first: i64,
    count: AtomicI64,
    made: Mutex<i64>,
}

impl Shards {
    pub(super) fn new(objects: PathBuf, first: i64) -> Self {
        Self { objects, first, count: AtomicI64::new(0), made: Mutex::new(first - 1) }
    }

    /// A file name that was never used. It has nothing from the network in it.
    pub(super) fn next(&self, disk: &dyn Disk) -> Result<FileId, ArchiveError> {
        let shard = self.first + self.count.fetch_add(1, Ordering::Relaxed) / SHARD_FILES_MAX;
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *made < shard {
            disk.create_dir(&shard_path(&self.objects, shard))
                .and_then(|()| disk.sync_dir(&self.objects))
                .map_err(|e| ArchiveError::io("creating an object directory", e))?;
            *made = shard;
        }
        let mut name = [0; 12];
        rand::rngs::OsRng.fill_bytes(&mut name);
        Ok(FileId { shard, name: hex::encode(name) })
    }
}

fn shard_path(objects: &Path, shard: i64) -> PathBuf {
    objects.join(format!("{shard:08}"))
}

/// Where a file is.
pub(super) fn file_path(objects: &Path, file: &FileId) -> PathBuf {
    shard_path(objects, file.shard).join(&file.name).with_extension("dcm")
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
