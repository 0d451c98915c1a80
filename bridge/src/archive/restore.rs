//! Gives an evicted object its file back.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::disk::DiskFile;
use super::{Archive, ArchiveError, FileId, Stored};

/// A file being filled again. Dropped before [`Restoring::finish`], it leaves nothing.
pub struct Restoring {
    archive: Archive,
    stored: Stored,
    id: FileId,
    file: Option<Box<dyn DiskFile>>,
    hash: Sha256,
    bytes: u64,
}

impl Archive {
    /// Begins to fill an object's file again.
    ///
    /// # Errors
    /// As [`Archive::begin`].
    pub fn begin_restore(&self, stored: &Stored) -> Result<Restoring, ArchiveError> {
        self.check_writable()?;
        self.check_free(stored.file_bytes)?;
        let (id, disk) = (self.0.shards.next(), self.0.disk.as_ref());
        let created = self.0.shards.made_path(disk, &id).and_then(|path| disk.create(&path));
        let file = created.map_err(|e| ArchiveError::io("creating an object file", e))?;
        Ok(Restoring {
            archive: self.clone(),
            stored: stored.clone(),
            id,
            file: Some(file),
            hash: Sha256::new(),
            bytes: 0,
        })
    }
}

impl Archive {
    /// Takes note that an object's file is gone, whoever removed it.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn forget_file(&self, stored: &Stored) -> Result<(), ArchiveError> {
        let (row, name) =
            (stored.id, stored.path.as_ref().and_then(|path| path.file_stem()?.to_str().map(str::to_owned)));
        let forgotten = self
            .write(move |db| {
                let sql = "UPDATE instance SET shard = NULL, file = NULL WHERE id = ?1 AND file = ?2";
                Ok(db.execute(sql, rusqlite::params![row, name])?)
            })
            .await?;
        self.release(stored.file_bytes * forgotten as u64);
        Ok(())
    }
}

impl Restoring {
    /// Files the object if its bytes are those that were received, and only then.
    ///
    /// # Errors
    /// [`ArchiveError::Corrupt`] when they are not; nothing is left of them.
    pub async fn finish(mut self) -> Result<Stored, ArchiveError> {
        let digest: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if digest != self.stored.file_sha256 || self.bytes != self.stored.file_bytes {
            return Err(ArchiveError::Corrupt(format!("{} as fetched", self.stored.sop_instance)));
        }
        let mut file = self.file.take().ok_or(ArchiveError::Closed)?;
        let disk = self.archive.0.disk.clone();
        let path = self.archive.path_of(&self.id);
        tokio::task::spawn_blocking(move || {
            file.sync()?;
            path.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
        })
        .await
        .map_err(|_| ArchiveError::Closed)?
        .map_err(|e| ArchiveError::io("syncing a restored object", e))?;
        let (row, id) = (self.stored.id, self.id.clone());
        let filed = self
            .archive
            .write(move |db| {
                let sql = "UPDATE instance SET shard = ?2, file = ?3 WHERE id = ?1 AND file IS NULL";
                Ok(db.execute(sql, rusqlite::params![row, id.shard, id.name])?)
            })
            .await?;
        if filed == 1 {
            self.stored.path = Some(self.archive.path_of(&self.id));
            self.id.name.clear();
            self.bytes = 0;
        } else {
            // Somebody else restored it meanwhile; theirs stays.
            self.stored =
                self.archive.instance(&self.stored.sop_instance)?.ok_or(ArchiveError::Corrupt("a row".into()))?;
        }
        Ok(self.stored.clone())
    }
}

impl Write for Restoring {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.archive.reserve(data.len() as u64).map_err(|e| io::Error::new(io::ErrorKind::StorageFull, e))?;
        self.bytes += data.len() as u64;
        self.hash.update(data);
        self.file.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.append(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        self.archive.release(self.bytes);
        if !self.id.name.is_empty() {
            drop(self.file.take());
            self.archive.remove_file(&self.id);
        }
    }
}
