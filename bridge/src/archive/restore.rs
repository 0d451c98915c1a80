//! Gives an evicted or damaged object its file back.
//!
//! A restored file is a copy of what is on the ledger, so nobody waits for it to be durable: it is served as soon as its
//! digest is right, and no row names it until [`Restorer::file`] has synced it together with others. A crash
//! before that leaves a file without a row, which the next start removes, and an object that is fetched again.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::OptionalExtension;
use sha2::{Digest, Sha256};

use super::disk::{DiskFile, FileSystems};
use super::{Archive, ArchiveError, FileId, NewInstance, Stored};
use crate::payload::container::Unsealed;

const RUN_BYTES: usize = 128 * 1024;

/// Restores objects and files them. Made before the first is restored, so that it hears of every write that fails.
pub struct Restorer {
    archive: Archive,
    file_systems: Arc<Mutex<Box<dyn FileSystems>>>,
}

/// A file being filled again. Dropped before [`Restoring::finish`], it leaves nothing.
pub struct Restoring {
    slot: Slot,
    file: Box<dyn DiskFile>,
    crc: crc32fast::Hasher,
}

/// A whole file whose digest is right and that no row names yet. Dropped before it is filed, it leaves nothing.
pub struct Restored {
    slot: Mutex<Slot>,
    stored: Stored,
    crc32: u32,
}

/// A file without a row, and the room it takes.
struct Slot {
    archive: Archive,
    stored: Stored,
    id: FileId,
    bytes: u64,
    keep: bool,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Restorer {
    /// Begins to fill an object's file again.
    ///
    /// # Errors
    /// As [`Archive::begin`].
    pub fn begin(&self, stored: &Stored) -> Result<Restoring, ArchiveError> {
        let archive = &self.archive;
        archive.check_writable()?;
        archive.check_free(stored.file_bytes)?;
        let (id, disk) = (archive.0.shards.next(), archive.0.disk.as_ref());
        let created = archive.0.shards.made_path(disk, &id).and_then(|path| disk.create(&path));
        let file = created.map_err(|e| ArchiveError::io("creating an object file", e))?;
        let slot = Slot { archive: archive.clone(), stored: stored.clone(), id, bytes: 0, keep: false };
        Ok(Restoring { slot, file, crc: crc32fast::Hasher::new() })
    }

    /// Makes restored files durable and names them in the index, all by one sync and one transaction. What became of an object
    /// meanwhile, such as another restored file, stands; the file restored here then goes when it is dropped.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing was filed then.
    pub async fn file(&self, restored: &[Arc<Restored>]) -> Result<(), ArchiveError> {
        let file_systems = self.file_systems.clone();
        let synced = tokio::task::spawn_blocking(move || lock(&file_systems).sync()).await;
        let synced = synced.map_err(|_| ArchiveError::Closed)?;
        synced.map_err(|e| ArchiveError::io("syncing restored objects", e))?;
        let rows: Vec<(i64, FileId)> = restored.iter().map(|r| (r.stored.id, lock(&r.slot).id.clone())).collect();
        let filed = self.archive.write(move |db| {
            let tx = db.transaction()?;
            let mut filed = Vec::with_capacity(rows.len());
            let sql = "UPDATE instance SET shard = ?2, file = ?3 WHERE id = ?1 AND file IS NULL AND origin >= 0";
            for (row, id) in &rows {
                filed.push(tx.prepare_cached(sql)?.execute(rusqlite::params![row, id.shard, id.name])? == 1);
            }
            tx.commit()?;
            Ok(filed)
        });
        restored.iter().zip(filed.await?).for_each(|(restored, filed)| lock(&restored.slot).keep = filed);
        Ok(())
    }
}

impl Archive {
    /// Gets ready to restore objects.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn restorer(&self) -> Result<Restorer, ArchiveError> {
        let opened = self.0.disk.file_systems(&[&self.0.root.join("objects")]);
        let opened = opened.map_err(|e| ArchiveError::io("opening the archive's file system", e))?;
        Ok(Restorer { archive: self.clone(), file_systems: Arc::new(Mutex::new(opened)) })
    }

    /// Gives up the file of an object that can be had from the ledger, because it is gone or damaged.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn forget_file(&self, stored: &Stored) -> Result<(), ArchiveError> {
        let name = stored.path.as_ref().and_then(|path| path.file_stem()?.to_str().map(str::to_owned));
        let (row, Some(name)) = (stored.id, name) else { return Ok(()) };
        let forgotten = self
            .write(move |db| {
                let sql = "SELECT shard FROM instance WHERE id = ?1 AND file = ?2";
                let shard = db.query_row(sql, rusqlite::params![row, name], |row| row.get(0)).optional()?;
                db.execute("UPDATE instance SET shard = NULL, file = NULL WHERE id = ?1 AND file = ?2", (row, &name))?;
                Ok(shard.map(|shard| FileId { shard, name }))
            })
            .await?;
        if let Some(file) = forgotten {
            self.release(stored.file_bytes);
            match self.0.log.remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = file.name, "cannot remove a damaged file");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Archive {
    /// Before an object is filed that is here already: gives up the copy here if its file is damaged, so that the one that
    /// arrived takes its place. Otherwise it would be acknowledged as the same although nothing sound of it is here.
    pub(super) async fn forget_damaged_copy(&self, new: &NewInstance) -> Result<(), ArchiveError> {
        let here = self.received_instance(&new.sop_instance)?;
        let Some(here) = here.filter(|here| here.file_sha256 == new.file_sha256 && here.path.is_some()) else {
            return Ok(());
        };
        let (archive, stored) = (self.clone(), here.clone());
        let sound = tokio::task::spawn_blocking(move || archive.is_sound(&stored)).await;
        match sound.map_err(|_| ArchiveError::Closed)? {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::warn!(uid = %here.sop_instance, "an object here was damaged; the copy that arrived again takes its place");
                self.forget_file(&here).await
            }
            Err(error) => Err(ArchiveError::io("reading an object that arrived again", error)),
        }
    }

    /// Whether the file of an object holds what was received.
    fn is_sound(&self, stored: &Stored) -> io::Result<bool> {
        let Some(mut file) = self.open_file(stored)? else { return Ok(false) };
        let (mut crc, mut sha256, mut bytes) = (crc32fast::Hasher::new(), Sha256::new(), 0);
        let mut run = vec![0; RUN_BYTES];
        loop {
            let count = file.read(&mut run)?;
            if count == 0 {
                break;
            }
            bytes += count as u64;
            match stored.file_crc32 {
                Some(_) => crc.update(&run[..count]),
                None => sha256.update(&run[..count]),
            }
        }
        let same = match stored.file_crc32 {
            Some(known) => crc.finalize() == known,
            None => sha256.finalize().as_slice() == stored.file_sha256,
        };
        Ok(same && bytes == stored.file_bytes)
    }
}

impl Restoring {
    /// Accepts the object if its bytes are those that were received, and only then. `unsealed` describes what was written.
    ///
    /// # Errors
    /// [`ArchiveError::Corrupt`] when they are not; nothing is left of them.
    pub fn finish(self, unsealed: &Unsealed) -> Result<Restored, ArchiveError> {
        let Self { slot, crc, .. } = self;
        let wanted = (slot.stored.file_sha256, slot.stored.file_bytes);
        if (unsealed.plain_sha256, unsealed.plain_bytes) != wanted || slot.bytes != slot.stored.file_bytes {
            return Err(ArchiveError::Corrupt(format!("{} as fetched", slot.stored.sop_instance)));
        }
        let path = slot.archive.path_of(&slot.id);
        let stored = Stored { path: Some(path), ..slot.stored.clone() };
        Ok(Restored { slot: Mutex::new(slot), stored, crc32: crc.finalize() })
    }
}

impl Restored {
    /// The object with its new file.
    #[must_use]
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// CRC-32 of the file.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        self.crc32
    }
}

impl Write for Restoring {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let full = |e| io::Error::new(io::ErrorKind::StorageFull, e);
        self.slot.archive.reserve(data.len() as u64).map_err(full)?;
        self.slot.bytes += data.len() as u64;
        self.crc.update(data);
        self.file.append(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.keep {
            self.archive.release(self.bytes);
            // It may be of a study that was erased while this was fetched.
            if let Err(error) = self.archive.0.log.scrub_file(&self.id) {
                tracing::warn!(%error, file = self.id.name, "cannot remove a file that is not needed");
            }
        }
    }
}
