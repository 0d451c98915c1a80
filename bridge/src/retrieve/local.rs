//! Opens local files, and proves them before a byte is released: a disk that returns other bytes than it was given must not
//! reach a viewer.
//!
//! A reading compares with the CRC-32 recorded at intake, or, of an object that was not received here, with its SHA-256 the
//! first time and with a CRC-32 found then from there on. A CRC-32 finds a rotten sector as surely and costs a tenth. Somebody who forges files is not whom this is against: he has
//! the index and this process's memory as well.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Content, Opened, Part};
use crate::archive::{Archive, Stored};

/// Objects up to this length are read once, into memory; longer ones are read twice, from the file.
const WHOLE_BYTES_MAX: u64 = 4 << 20;
/// What such objects may take together; when it is used up, further ones are read from their files too.
const WHOLE_KIB_TOTAL: usize = 24 << 10;
/// Checksums remembered; then all are forgotten and found again.
const CHECKSUMS_MAX: usize = 1 << 16;
const RUN_BYTES: usize = 128 * 1024;

/// What opening a local file came to.
pub(super) enum Found {
    /// It is what was received.
    Sound(Opened),
    /// It is not.
    Damaged,
    /// There is none.
    Gone,
}

/// Local files, and what is known of them.
pub(super) struct Local {
    room: Arc<Semaphore>,
    checksums: Mutex<HashMap<i64, u32>>,
}

impl Local {
    pub(super) fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(WHOLE_KIB_TOTAL)), checksums: Mutex::default() }
    }

    /// Remembers the CRC-32 of a file that was just compared with its SHA-256.
    pub(super) fn learn(&self, row: i64, crc32: u32) {
        let mut checksums = self.checksums.lock().unwrap_or_else(PoisonError::into_inner);
        if checksums.len() >= CHECKSUMS_MAX {
            checksums.clear();
        }
        checksums.insert(row, crc32);
    }

    pub(super) async fn open(&self, archive: &Archive, stored: &Stored, part: Part) -> io::Result<Found> {
        if stored.path.is_none() {
            return Ok(Found::Gone);
        }
        let learnt = || self.checksums.lock().unwrap_or_else(PoisonError::into_inner).get(&stored.id).copied();
        let known = stored.file_crc32.or_else(learnt);
        let (archive, of, room) = (archive.clone(), stored.clone(), self.room.clone());
        let opened = tokio::task::spawn_blocking(move || open(&archive, &of, part, known, room)).await;
        let (found, crc32) = opened.map_err(io::Error::other)??;
        if let (None, Some(crc32)) = (known, crc32) {
            self.learn(stored.id, crc32);
        }
        Ok(found)
    }
}

/// Digests of everything read so far: the SHA-256 only while no checksum is known.
struct Proof<'a> {
    stored: &'a Stored,
    known: Option<u32>,
    sha256: Sha256,
    crc: crc32fast::Hasher,
}

impl<'a> Proof<'a> {
    fn new(stored: &'a Stored, known: Option<u32>) -> Self {
        Self { stored, known, sha256: Sha256::new(), crc: crc32fast::Hasher::new() }
    }

    fn see(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        if self.known.is_none() {
            self.sha256.update(bytes);
        }
    }

    /// The checksum, if the bytes are those that were received.
    fn end(self) -> Option<u32> {
        let crc32 = self.crc.finalize();
        let sound = match self.known {
            Some(known) => known == crc32,
            None => self.sha256.finalize().as_slice() == self.stored.file_sha256,
        };
        sound.then_some(crc32)
    }
}

type OpenedAndChecksum = (Found, Option<u32>);

fn open(
    archive: &Archive,
    stored: &Stored,
    part: Part,
    known: Option<u32>,
    room: Arc<Semaphore>,
) -> io::Result<OpenedAndChecksum> {
    let skipped = part.begin(stored);
    let Some(mut file) = archive.open_file(stored)? else { return Ok((Found::Gone, None)) };
    let left = stored.file_bytes.checked_sub(skipped);
    let (true, Some(bytes_wanted)) = (file.metadata()?.len() == stored.file_bytes, left) else {
        return Ok((Found::Damaged, None));
    };
    let mut proof = Proof::new(stored, known);
    let kib = u32::try_from(stored.file_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let permit = if stored.file_bytes <= WHOLE_BYTES_MAX { room.try_acquire_many_owned(kib).ok() } else { None };
    let Some(permit) = permit else {
        let mut run = vec![0; RUN_BYTES];
        loop {
            match file.read(&mut run)? {
                0 => break,
                count => proof.see(&run[..count]),
            }
        }
        let Some(crc32) = proof.end() else { return Ok((Found::Damaged, None)) };
        let content = Content::File(CheckedFile::begin(file, stored, skipped, crc32)?);
        return Ok((Found::Sound(Opened { content, bytes: bytes_wanted }), Some(crc32)));
    };
    let mut bytes = Vec::with_capacity(stored.file_bytes as usize);
    file.read_to_end(&mut bytes)?;
    proof.see(&bytes);
    let (true, Some(crc32)) = (bytes.len() as u64 == stored.file_bytes, proof.end()) else {
        return Ok((Found::Damaged, None));
    };
    let whole = Bytes::from_owner(Whole { bytes, _permit: permit });
    let content = Content::Whole(whole.slice(skipped as usize..));
    Ok((Found::Sound(Opened { content, bytes: bytes_wanted }), Some(crc32)))
}

/// An object in memory and the room it takes.
struct Whole {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A file that was proven, being read again from where it is wanted: the last bytes come only if the checksum is still the same.
#[derive(Debug)]
pub struct CheckedFile {
    file: File,
    left: u64,
    crc: crc32fast::Hasher,
    crc32: u32,
}

impl CheckedFile {
    fn begin(mut file: File, stored: &Stored, skipped: u64, crc32: u32) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        let mut crc = crc32fast::Hasher::new();
        let mut meta = Vec::new();
        (&mut file).take(skipped).read_to_end(&mut meta)?;
        crc.update(&meta);
        Ok(Self { file, left: stored.file_bytes.saturating_sub(meta.len() as u64), crc, crc32 })
    }
}

impl CheckedFile {
    /// The file, to be read at any place. It was what was received when it was opened; nothing is compared any more.
    #[must_use]
    pub fn into_proven(self) -> File {
        self.file
    }

    /// CRC-32 of the whole file.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        self.crc32
    }
}

impl Read for CheckedFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        self.crc.update(&out[..count]);
        self.left = self.left.saturating_sub(count as u64);
        let at_end = self.left == 0 && count > 0;
        if at_end && self.crc.clone().finalize() != self.crc32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read"));
        }
        Ok(count)
    }
}
