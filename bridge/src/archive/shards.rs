//! Names and places of object files.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::RngCore;

use super::FileId;
use super::disk::Disk;

/// Files in one directory before the next is begun.
const SHARD_FILES_MAX: i64 = 2_000;

/// Hands out file names, a new directory every [`SHARD_FILES_MAX`] files.
pub(super) struct Shards {
    objects: PathBuf,
    first: i64,
    count: AtomicI64,
    /// Directories that are known to exist.
    made: Mutex<BTreeSet<i64>>,
}

impl Shards {
    /// Names in `objects`, in directories from `first` on, none of which holds a file yet.
    pub(super) fn new(objects: PathBuf, first: i64) -> Self {
        Self { objects, first, count: AtomicI64::new(0), made: Mutex::default() }
    }

    /// A file name that was never used. It has nothing from the network in it. Touches no disk.
    pub(super) fn next(&self) -> FileId {
        let shard = self.first + self.count.fetch_add(1, Ordering::Relaxed) / SHARD_FILES_MAX;
        let mut name = [0; 12];
        rand::rngs::OsRng.fill_bytes(&mut name);
        FileId { shard, name: hex::encode(name) }
    }

    /// Where a file is to be; its directory exists, durably.
    pub(super) fn made_path(&self, disk: &dyn Disk, file: &FileId) -> io::Result<PathBuf> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(&file.shard) {
            disk.create_dir(&self.directory(file))?;
            disk.sync_dir(&self.objects)?;
            made.insert(file.shard);
        }
        Ok(self.path(file))
    }

    /// Where a file is.
    pub(super) fn path(&self, file: &FileId) -> PathBuf {
        file_path(&self.objects, file)
    }

    /// The directory that a file is in.
    pub(super) fn directory(&self, file: &FileId) -> PathBuf {
        shard_path(&self.objects, file.shard)
    }
}

fn shard_path(objects: &Path, shard: i64) -> PathBuf {
    objects.join(format!("{shard:08}"))
}

/// Where a file below `objects` is.
pub(super) fn file_path(objects: &Path, file: &FileId) -> PathBuf {
    shard_path(objects, file.shard).join(&file.name).with_extension("dcm")
}
