//! One object being received: hashed, its header kept for the index, its bytes kept in memory for the intake log, or
//! streamed to a file when there are too many of them.

use dicom_scp::dataset::{DataSet, ReadOptions, ScanError, Scanner, Tag};
use dicom_scp::{TransferSyntax, Uid};
use sha2::{Digest, Sha256};

use super::attributes::Levels;
use super::buffer::Buffer;
use super::commit::Outcome;
use super::disk::DiskFile;
use super::part10::FileMeta;
use super::{Archive, ArchiveError, FileId, NewInstance, ObjectHead, now_ms};

/// Most memory for one element of the header, in bytes. What the index needs is short and stands in groups 0008 to 0040.
pub(super) const ELEMENT_BYTES_MAX: usize = 256 * 1024;
/// The index needs nothing from here on.
pub(super) const HEADER_END: Tag = Tag(0x0042, 0x0000);

/// An object being received.
pub struct Incoming {
    archive: Archive,
    head: ObjectHead,
    /// Made here, not received.
    made: bool,
    body: Body,
    id: FileId,
    hash: Sha256,
    crc: crc32fast::Hasher,
    meta_bytes: u64,
    bytes: u64,
    scanner: Scanner,
    /// Why the header cannot be read, once that is known. What was read until then may still suffice.
    damage: Option<ScanError>,
}

/// Where the bytes are so far.
enum Body {
    Memory(Buffer),
    File(Box<dyn DiskFile>),
    /// Handed on, or lost.
    Gone,
}

/// What came of an object that was received whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new here.
    New,
    /// The same bytes were here already.
    Same,
    /// It took the place of another object with the same UID.
    Replaced,
}

impl Incoming {
    pub(super) fn begin(archive: Archive, head: ObjectHead, made: bool) -> Result<Self, ArchiveError> {
        let syntax = TransferSyntax::of(&head.transfer_syntax)
            .ok_or_else(|| ArchiveError::Undecodable(format!("unknown transfer syntax {}", head.transfer_syntax)))?;
        let options = ReadOptions { stop_at: Some(HEADER_END), ..ReadOptions::default() };
        archive.check_free(0)?;
        let id = archive.0.shards.next();
        let meta = FileMeta {
            sop_class: head.sop_class,
            sop_instance: head.sop_instance,
            transfer_syntax: head.transfer_syntax,
        }
        .encode();
        let bytes_max = usize::try_from(archive.0.log.object_bytes_max()).unwrap_or(0);
        let body = Body::Memory(archive.0.blocks.buffer(bytes_max));
        let mut incoming = Self {
            archive,
            head,
            made,
            body,
            id,
            hash: Sha256::new(),
            crc: crc32fast::Hasher::new(),
            meta_bytes: meta.len() as u64,
            bytes: 0,
            scanner: Scanner::new(syntax, options, ELEMENT_BYTES_MAX),
            damage: None,
        };
        incoming.write(&meta)?;
        Ok(incoming)
    }

    /// Appends bytes of the data set exactly as they were received.
    ///
    /// # Errors
    /// [`ArchiveError::Full`] or [`ArchiveError::Io`]; the object is lost, and the caller goes on reading its remains.
    pub fn append(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        if self.damage.is_none() {
            self.damage = self.scanner.push(data).err();
        }
        self.write(data)
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        self.archive.reserve(data.len() as u64)?;
        self.bytes += data.len() as u64;
        self.hash.update(data);
        self.crc.update(data);
        if let Body::Memory(buffer) = &mut self.body {
            if buffer.append(data) {
                return Ok(());
            }
            self.spill()?;
        }
        match &mut self.body {
            Body::File(file) => file.append(data).map_err(|e| ArchiveError::io("writing an object", e)),
            _ => Err(ArchiveError::Closed),
        }
    }

    /// Goes on in a file, with what is in memory as its beginning.
    fn spill(&mut self) -> Result<(), ArchiveError> {
        let Body::Memory(buffer) = std::mem::replace(&mut self.body, Body::Gone) else { return Ok(()) };
        self.body = Body::File(self.archive.0.log.shared().write_file(&self.id, &buffer)?);
        Ok(())
    }

    /// Makes the object durable and files it. Success means that it survives whatever happens next.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing of the object is left.
    pub async fn finish(mut self) -> Result<Accepted, ArchiveError> {
        let new = self.describe()?;
        if !self.made && self.archive.is_derived(&new.levels.study_uid) {
            return Err(ArchiveError::Derived(new.levels.study_uid));
        }
        self.archive.forget_damaged_copy(&new).await?;
        let buffer = match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Memory(buffer) => {
                // Later its file must find room, so that what is accepted does not only fill the log.
                self.archive.check_free(super::log::room_of_file(self.bytes))?;
                Some(buffer)
            }
            Body::File(file) => {
                self.archive.sync_file(file).await?;
                None
            }
            Body::Gone => return Err(ArchiveError::Closed),
        };
        let filed = self.archive.0.committer.file(new, buffer).await;
        match filed {
            Ok(Outcome { accepted, keep, freed_bytes }) => {
                self.archive.release(freed_bytes);
                self.archive.0.arrived.notify_one();
                if keep {
                    self.bytes = 0;
                    self.id.name.clear();
                }
                accepted
            }
            Err(error) => {
                if matches!(error, ArchiveError::Io(..)) {
                    self.archive.poison();
                    // The row may or may not be durable, so the file must stay for the next start to decide.
                    self.id.name.clear();
                }
                Err(error)
            }
        }
    }

    /// StudyInstanceUID, once the header has come and if it has one.
    #[must_use]
    pub fn study_uid(&self) -> Option<Uid> {
        self.scanner.data_set().uid(Tag(0x0020, 0x000d))
    }

    /// SeriesInstanceUID, likewise.
    #[must_use]
    pub fn series_uid(&self) -> Option<Uid> {
        self.scanner.data_set().uid(Tag(0x0020, 0x000e))
    }

    fn describe(&mut self) -> Result<NewInstance, ArchiveError> {
        let header = self.scanner.data_set();
        // A damaged header is an error of its own only when what came before the damage does not suffice.
        let damaged = |error| match &self.damage {
            Some(damage) => ArchiveError::Undecodable(crate::chain_of(damage)),
            None => error,
        };
        self.check(header).map_err(damaged)?;
        let levels = Levels::of(header).map_err(ArchiveError::Lacks).map_err(damaged)?;
        Ok(NewInstance {
            sop_class: self.head.sop_class,
            sop_instance: self.head.sop_instance,
            transfer_syntax: self.head.transfer_syntax,
            levels,
            meta_bytes: self.meta_bytes,
            file_bytes: self.bytes,
            file_sha256: std::mem::take(&mut self.hash).finalize().into(),
            file_crc32: std::mem::take(&mut self.crc).finalize(),
            received_ms: now_ms(),
            calling_ae: self.head.calling_ae.clone(),
            file: self.id.clone(),
        })
    }

    /// PS3.4 B.2.3: a data set that is not an instance of the announced class is refused with A900.
    fn check(&self, header: &DataSet) -> Result<(), ArchiveError> {
        let pairs = [
            (Tag(0x0008, 0x0016), "SOP Class UID", self.head.sop_class),
            (Tag(0x0008, 0x0018), "SOP Instance UID", self.head.sop_instance),
        ];
        for (tag, name, announced) in pairs {
            let found = header.uid(tag);
            if found != Some(announced) {
                let found = found.map_or_else(|| format!("no {name}"), |uid| format!("{name} {uid}"));
                return Err(ArchiveError::Mismatch { found, announced: announced.to_string() });
            }
        }
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.archive.release(self.bytes);
        if !self.id.name.is_empty() {
            let in_memory = matches!(std::mem::replace(&mut self.body, Body::Gone), Body::Memory(_));
            if !in_memory {
                self.archive.remove_file(&self.id);
            }
        }
    }
}
