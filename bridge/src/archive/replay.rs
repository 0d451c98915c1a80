//! Files what a crash left in the intake log.
//!
//! Every object that counts gets its file anew, because the one that is there may never have reached the disk, and its row
//! if the index lost it; of a study that is being erased nothing counts. Doing it twice does no harm. Knows the log's files and the index; must not know the disk's cache.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dicom_scp::dataset::{ReadOptions, Scanner};
use dicom_scp::{TransferSyntax, Uid};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::attributes::Levels;
use super::disk::{Disk, FileSystems, LogFile, create_anew};
use super::incoming::{ELEMENT_BYTES_MAX, HEADER_END};
use super::index::{self, Filed};
use super::record::{self, Found, Link, PAGE_BYTES};
use super::shards::Shards;
use super::{ArchiveError, NewInstance};
use crate::config::Duplicates;

/// What is needed to file an object again.
pub(super) struct Replay<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) shards: &'a Shards,
    pub(super) file_systems: &'a dyn FileSystems,
    pub(super) policy: Duplicates,
    pub(super) settle_ms: i64,
}

/// A segment with something in it.
struct Used {
    file: Box<dyn LogFile>,
    bytes: u64,
    sequence: u64,
    link: Link,
}

impl Replay<'_> {
    /// Files everything in the log below `directory` and empties it. Returns the sequence number to go on with.
    ///
    /// # Errors
    /// [`ArchiveError`]; the log stays as it is.
    pub(super) fn run(mut self, directory: &Path) -> Result<u64, ArchiveError> {
        let io = |e| ArchiveError::io("reading the intake log", e);
        let mut used = self.used_segments(directory).map_err(io)?;
        let erased = super::erase::erased_in_log(self.connection)?;
        // What is received from now on must not be taken for what is being erased.
        let next = erased.iter().map(|(_, before)| *before).max().unwrap_or(0).max(1);
        if used.is_empty() {
            return Ok(next);
        }
        used.sort_by_key(|segment| segment.sequence);
        let mut count = 0;
        for segment in &used {
            let of_segment = |(_, before): &&(Uid, u64)| segment.sequence < *before;
            let erased: Vec<Uid> = erased.iter().filter(of_segment).map(|(uid, _)| *uid).collect();
            count += self.segment(segment, &erased)?;
        }
        if count > 0 {
            tracing::info!(objects = count, "filed objects that an earlier run had acknowledged and not filed yet");
        }
        self.file_systems.sync().map_err(io)?;
        for segment in &used {
            segment.file.write_at(&[0; PAGE_BYTES as usize], 0).map_err(io)?;
        }
        Ok(next.max(used.last().map_or(0, |segment| segment.sequence) + 1))
    }

    fn used_segments(&self, directory: &Path) -> io::Result<Vec<Used>> {
        let mut used = Vec::new();
        for path in log_files(directory)? {
            let bytes = std::fs::metadata(&path)?.len();
            if bytes < PAGE_BYTES {
                continue;
            }
            let file = self.disk.log_file(&path, bytes)?;
            let mut page = [0; PAGE_BYTES as usize];
            file.read_at(&mut page, 0)?;
            if let Some((sequence, link)) = record::read_segment_page(&page) {
                used.push(Used { file, bytes, sequence, link });
            }
        }
        Ok(used)
    }

    fn segment(&mut self, segment: &Used, erased: &[Uid]) -> Result<u64, ArchiveError> {
        let io = |e| ArchiveError::io("reading the intake log", e);
        let (mut at, mut link, mut count) = (PAGE_BYTES, segment.link, 0);
        let mut page = [0; PAGE_BYTES as usize];
        while at + PAGE_BYTES <= segment.bytes {
            segment.file.read_at(&mut page, at).map_err(io)?;
            let Some(found) = record::read_record(&page, &link, segment.bytes - at) else { break };
            let mut object = vec![0; usize::try_from(found.object_bytes).unwrap_or(0)];
            segment.file.read_at(&mut object, at + found.object_at).map_err(io)?;
            (at, link) = (at + found.record_bytes, found.link);
            if <[u8; 32]>::from(Sha256::digest(&object)) == found.description.file_sha256 {
                if !is_of(erased, &found, &object) {
                    self.object(found, &object)?;
                    count += 1;
                }
            } else {
                self.incomplete(&found)?;
            }
        }
        Ok(count)
    }

    /// Without a row, its group was being written when the power went, and nobody was told that it is stored. With one, the log is
    /// damaged, and its file, which may be whole, is all there is.
    fn incomplete(&self, found: &Found) -> Result<(), ArchiveError> {
        let (uid, sha256) = (&found.description.sop_instance, found.description.file_sha256);
        let sql = "SELECT 1 FROM instance WHERE uid = ?1 AND file_sha256 = ?2";
        if self.connection.prepare_cached(sql)?.exists(params![uid.as_str(), sha256])? {
            tracing::error!(%uid, "an object is damaged in the intake log; verify its study");
        } else {
            tracing::info!(%uid, "an object that was never acknowledged is incomplete");
        }
        Ok(())
    }

    fn object(&mut self, found: Found, object: &[u8]) -> Result<(), ArchiveError> {
        let description = &found.description;
        let row: Option<Option<String>> = self
            .connection
            .prepare_cached(
                "SELECT file FROM instance WHERE uid = ?1 AND origin = 0 AND file_sha256 = ?2 ORDER BY file = ?3 DESC",
            )?
            .query_row(
                params![description.sop_instance.as_str(), description.file_sha256, description.file.name],
                |row| row.get(0),
            )
            .optional()?;
        match row {
            Some(file) if file.as_ref() == Some(&description.file.name) => self.make_file(found, object).map(|_| ()),
            // It has another file, or was evicted or replaced since.
            Some(_) => Ok(()),
            None => self.row(found, object),
        }
    }

    fn make_file(&self, found: Found, object: &[u8]) -> Result<PathBuf, ArchiveError> {
        let io = |e| ArchiveError::io("filing an object from the intake log", e);
        let path = self.shards.made_path(self.disk.as_ref(), &found.description.file).map_err(io)?;
        let mut file = create_anew(self.disk.as_ref(), &path).map_err(io)?;
        file.append(object).map_err(io)?;
        Ok(path)
    }

    fn row(&mut self, found: Found, object: &[u8]) -> Result<(), ArchiveError> {
        let new = new_instance(&found, object)?;
        let path = self.make_file(found, object)?;
        let tx = self.connection.transaction()?;
        let filed = index::file(&tx, &new, self.policy, new.received_ms + self.settle_ms)?;
        tx.commit()?;
        let gone = match filed {
            Filed::New | Filed::Restored => None,
            Filed::Same | Filed::Refused => Some(path),
            Filed::Replaced { old } => old.map(|(file, _)| self.shards.path(&file)),
        };
        match gone.map(|path| self.disk.remove(&path)) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(ArchiveError::io("removing a file that is no longer needed", error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether an object is of one of these studies.
fn is_of(studies: &[Uid], found: &Found, object: &[u8]) -> bool {
    // An object that is not understood was never filed in any study.
    !studies.is_empty() && new_instance(found, object).is_ok_and(|new| studies.contains(&new.levels.study_uid))
}

/// What the object's sender announced and its header says, as when it was received.
fn new_instance(found: &Found, object: &[u8]) -> Result<NewInstance, ArchiveError> {
    let description = found.description.clone();
    let unreadable = || ArchiveError::Corrupt(format!("{} in the intake log", description.sop_instance));
    let syntax = TransferSyntax::of(&description.transfer_syntax).ok_or_else(unreadable)?;
    let options = ReadOptions { stop_at: Some(HEADER_END), ..ReadOptions::default() };
    let mut scanner = Scanner::new(syntax, options, ELEMENT_BYTES_MAX);
    let data_set =
        object.get(usize::try_from(description.meta_bytes).unwrap_or(usize::MAX)..).ok_or_else(unreadable)?;
    // Damage behind what the index needs was no reason to refuse it then.
    let _ = scanner.push(data_set);
    let levels = Levels::of(scanner.data_set()).map_err(|_| unreadable())?;
    Ok(NewInstance {
        sop_class: description.sop_class,
        sop_instance: description.sop_instance,
        transfer_syntax: description.transfer_syntax,
        levels,
        meta_bytes: description.meta_bytes,
        file_bytes: found.object_bytes,
        file_sha256: description.file_sha256,
        file_crc32: crc32fast::hash(object),
        received_ms: description.received_ms,
        calling_ae: description.calling_ae,
        file: description.file,
    })
}

/// The files of a log, of whatever size it was configured to have; none if there is no log.
pub(super) fn log_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            paths.push(path);
        }
    }
    Ok(paths)
}
