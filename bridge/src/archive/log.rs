//! The intake log: where an object is durable before it has a file.
//!
//! A few segments of fixed size are written once in full when they are made and then over and over again. Writing into
//! blocks that exist costs the file system neither allocation nor journal, so that one `fdatasync` for a group of objects
//! is all that stands between their last byte and their acknowledgement. Their files are made behind it (see
//! `write_behind`), and only when those and the index are durable is a segment used again. What a crash leaves in the log is
//! filed at the next start (see `replay`).
//!
//! A segment that is used again keeps what the new records do not cover. When something must not be kept, every segment is
//! emptied and overwritten with zeros once ([`Log::scrub`]).
//!
//! One thread appends, the archive's writer. Knows records' places; must not know the index.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::disk::{Disk, DiskFile, LogFile};
use super::record::{self, Description, Link, PAGE_BYTES};
use super::shards::Shards;
use super::{ArchiveError, FileId};

/// Segments of a log.
pub(super) const SEGMENTS: u64 = 8;
/// Largest object that goes through the log, in bytes; a larger one gains little by it and has a file at once.
const OBJECT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes overwritten at once.
const SCRUB_BYTES: usize = 1024 * 1024;
/// Between looks whether the log was overwritten.
const SCRUB_LOOK: Duration = Duration::from_millis(100);

/// The log. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log(Arc<Shared>);

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) shards: Arc<Shards>,
    pub(super) directory: PathBuf,
    /// 0: there is no log, and every object is synced in its own file.
    pub(super) segment_bytes: u64,
    state: Mutex<State>,
    pub(super) changed: Condvar,
}

pub(super) struct State {
    /// Segments that may be overwritten.
    pub(super) free: Vec<Arc<Segment>>,
    pub(super) open: Option<Open>,
    /// Segments that are full, or were closed for want of work.
    pub(super) closed: Vec<Arc<Segment>>,
    /// Segments that exist.
    pub(super) made: u64,
    /// Objects without a file, by the name that it will have.
    pending: HashMap<String, Arc<Record>>,
    /// Room on the disk that their files will take, in bytes.
    unfiled_bytes: u64,
    /// Those of them whose rows are committed, oldest first.
    pub(super) ready: VecDeque<Arc<Record>>,
    next_sequence: u64,
    /// How often the log was to be overwritten, and how often it was.
    pub(super) scrub: u64,
    pub(super) scrubbed: u64,
    pub(super) last_append: Instant,
    pub(super) stop: bool,
}

/// One file of the log.
pub(super) struct Segment {
    file: Box<dyn LogFile>,
    /// Objects in it without a file, guarded by the log's lock.
    unfiled: Mutex<u64>,
    /// The last overwriting that it had its share of.
    scrubbed: AtomicU64,
}

/// The segment that is being written.
pub(super) struct Open {
    pub(super) segment: Arc<Segment>,
    end: u64,
    link: Link,
}

/// An object in the log.
pub(super) struct Record {
    segment: Arc<Segment>,
    object_at: u64,
    object_bytes: u64,
    file: FileId,
    /// Whether the object needs the log no more. Held while its file is being made.
    done: Mutex<bool>,
}

/// An object to be appended.
pub(super) struct Entry<'a> {
    pub(super) description: Description,
    pub(super) object: &'a Buffer,
}

/// A group that is durable in the log.
#[derive(Default)]
pub(super) struct Appended {
    place: Option<Place>,
    records: Vec<Arc<Record>>,
}

/// Where a group begins, and what it follows.
struct Place {
    segment: Arc<Segment>,
    start: u64,
    before: Link,
    objects: u64,
}

impl Log {
    /// A log of `bytes` bytes in all, empty until its segments are made.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        shards: Arc<Shards>,
        directory: PathBuf,
        bytes: u64,
        next_sequence: u64,
    ) -> Self {
        Self(Arc::new(Shared {
            disk,
            shards,
            directory,
            segment_bytes: segment_bytes(bytes),
            state: Mutex::new(State {
                free: Vec::new(),
                open: None,
                closed: Vec::new(),
                made: 0,
                pending: HashMap::new(),
                unfiled_bytes: 0,
                ready: VecDeque::new(),
                next_sequence,
                scrub: 0,
                scrubbed: 0,
                last_append: Instant::now(),
                stop: false,
            }),
            changed: Condvar::new(),
        }))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Removes segments of a log that was larger, or of another size.
    pub(super) fn remove_superfluous(&self) -> io::Result<()> {
        for path in super::replay::log_files(&self.0.directory)? {
            let number = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
            let wanted = number.is_some_and(|number| number < SEGMENTS) && self.0.segment_bytes > 0;
            if !wanted || std::fs::metadata(&path)?.len() != self.0.segment_bytes {
                self.0.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Largest object that a caller should bring; 0 while the log has no room, so that a file is better.
    pub(super) fn object_bytes_max(&self) -> u64 {
        let state = self.0.state();
        let room = !state.free.is_empty()
            || state.open.as_ref().is_some_and(|o| o.end + OBJECT_BYTES_MAX < self.0.segment_bytes);
        if room { OBJECT_BYTES_MAX.min(self.0.segment_bytes / 4) } else { 0 }
    }

    /// Whether a group of these sizes fits now. Only the appending thread takes room, so it still fits when that asks next.
    pub(super) fn has_room(&self, objects_bytes: impl Iterator<Item = u64>) -> bool {
        // A description never fills a page of its own.
        let bytes: u64 = objects_bytes.map(|bytes| bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES).sum();
        let state = self.0.state();
        let open = state.open.as_ref().is_some_and(|open| open.end + bytes <= self.0.segment_bytes);
        open || (!state.free.is_empty() && PAGE_BYTES + bytes <= self.0.segment_bytes)
    }

    /// Writes a group and syncs it. It must have been asked for with [`Log::has_room`].
    ///
    /// # Errors
    /// What the disk said. Nothing of the group counts then.
    pub(super) fn append(&self, entries: &[Entry<'_>]) -> io::Result<Appended> {
        if entries.is_empty() {
            return Ok(Appended::default());
        }
        let full = || io::Error::new(io::ErrorKind::StorageFull, "the intake log is full");
        let mut described = Vec::with_capacity(entries.len());
        for entry in entries {
            let description = entry.description.write();
            let bytes = record::record_bytes(&description, entry.object.len() as u64).ok_or_else(full)?;
            described.push((entry, description, bytes));
        }
        let bytes = described.iter().map(|(_, _, bytes)| bytes).sum();
        let place = self.0.reserve(bytes, entries.len() as u64)?.ok_or_else(full)?;
        match self.0.write_records(&place, &described) {
            Ok((records, link)) => {
                let mut state = self.0.state();
                if let Some(open) = &mut state.open {
                    open.link = link;
                }
                for record in &records {
                    state.expect(record);
                }
                Ok(Appended { place: Some(place), records })
            }
            Err(error) => {
                self.0.take_back(&place);
                Err(error)
            }
        }
    }

    /// The rows of a group are committed: its files may be made, in this order.
    pub(super) fn commit(&self, group: Appended) {
        let mut state = self.0.state();
        state.ready.extend(group.records);
        state.last_append = Instant::now();
        drop(state);
        self.0.changed.notify_all();
    }

    /// The rows of a group could not be committed: takes it out again, so that no start files what was refused.
    ///
    /// # Errors
    /// What the disk said; the group may then come back at the next start.
    pub(super) fn withdraw(&self, group: &Appended) -> io::Result<()> {
        let Some(place) = &group.place else { return Ok(()) };
        for record in &group.records {
            self.0.state().expect_no_more(record);
        }
        self.0.take_back(place);
        let Place { segment, start, .. } = place;
        segment.file.write_at(&[0; PAGE_BYTES as usize], *start)?;
        segment.file.sync()
    }

    /// Bytes of the segments that exist.
    pub(super) fn bytes(&self) -> u64 {
        self.0.segment_bytes * self.0.state().made
    }

    /// Ends the segment that is being written. Whatever was appended before stands in segments below the sequence number that is
    /// returned, whatever comes later in segments from it on. Only for the appending thread.
    pub(super) fn roll(&self) -> u64 {
        let mut state = self.0.state();
        if let Some(open) = state.open.take() {
            state.closed.push(open.segment);
        }
        state.next_sequence
    }

    /// Files everything that is in the log now and overwrites every byte of it with zeros. Objects may arrive meanwhile. Blocks;
    /// `given_up` says when nobody works on it any more.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when it was not finished.
    pub(super) fn scrub(&self, given_up: impl Fn() -> bool) -> io::Result<()> {
        if self.0.segment_bytes == 0 {
            return Ok(());
        }
        let mut state = self.0.state();
        state.scrub += 1;
        let wanted = state.scrub;
        self.0.changed.notify_all();
        while state.scrubbed < wanted {
            if state.stop || given_up() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let waited = self.0.changed.wait_timeout(state, SCRUB_LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Makes an object's file now if it has none yet. A file that the log does not know is left alone. On a full disk the
    /// object stays in the log, and its bytes are returned in memory, as a file.
    ///
    /// # Errors
    /// What the disk said; the object stays in the log.
    pub(super) fn file_now(&self, name: &str) -> io::Result<Option<File>> {
        let Some(record) = self.0.state().pending.get(name).cloned() else { return Ok(None) };
        match self.0.make_file(&record, &mut Vec::new()) {
            Ok(()) => Ok(None),
            Err(error) if is_full(&error) => record.in_memory().map(Some),
            Err(error) => Err(error),
        }
    }

    /// An object is to have no file any more. Returns once nobody makes one, and whether none was made.
    fn forget(&self, name: &str) -> bool {
        let record = self.0.state().pending.get(name).cloned();
        record.is_some_and(|record| {
            let mut done = lock(&record.done);
            let unmade = !*done;
            self.0.finish(&record, &mut done);
            unmade
        })
    }

    /// Removes an object's file, made or not. One that is not there is no error.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn remove_file(&self, file: &FileId) -> io::Result<()> {
        self.remove_by(file, |disk, path| disk.remove(path))
    }

    /// The same, overwritten with zeros first.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn scrub_file(&self, file: &FileId) -> io::Result<()> {
        self.remove_by(file, |disk, path| disk.scrub(path))
    }

    fn remove_by(&self, file: &FileId, remove: impl Fn(&dyn Disk, &Path) -> io::Result<()>) -> io::Result<()> {
        if self.forget(&file.name) {
            return Ok(());
        }
        match remove(self.0.disk.as_ref(), &self.0.shards.path(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Bytes that the log's objects will take on the disk once they have files.
    pub(super) fn unfiled_bytes(&self) -> u64 {
        self.0.state().unfiled_bytes
    }
}

impl State {
    /// Whether the log is to be overwritten.
    pub(super) fn scrubs(&self) -> bool {
        self.scrub > self.scrubbed && !self.stop
    }

    /// Whether a segment has yet to be overwritten.
    pub(super) fn is_stale(&self, segment: &Segment) -> bool {
        segment.scrubbed.load(Ordering::Relaxed) < self.scrub
    }

    fn expect(&mut self, record: &Arc<Record>) {
        self.unfiled_bytes += room_of_file(record.object_bytes);
        self.pending.insert(record.file.name.clone(), record.clone());
    }

    fn expect_no_more(&mut self, record: &Record) {
        if self.pending.remove(&record.file.name).is_some() {
            self.unfiled_bytes -= room_of_file(record.object_bytes);
        }
    }
}

impl Record {
    fn in_memory(&self) -> io::Result<File> {
        let mut object = vec![0; usize::try_from(self.object_bytes).unwrap_or(0)];
        self.segment.file.read_at(&mut object, self.object_at)?;
        let mut file = File::from(rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(&object)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A place for `objects` objects of `bytes` bytes in one segment, if there is one.
    fn reserve(&self, bytes: u64, objects: u64) -> io::Result<Option<Place>> {
        let mut state = self.state();
        if let Some(open) = state.open.take_if(|open| open.end + bytes > self.segment_bytes) {
            state.closed.push(open.segment);
        }
        if state.open.is_none() {
            // One that is about to be overwritten would have to be emptied first.
            let at = state.free.iter().rposition(|segment| !state.is_stale(segment));
            let at = at.or(state.free.len().checked_sub(1));
            let Some(segment) = at.map(|at| state.free.remove(at)) else { return Ok(None) };
            let (page, link) = record::segment_page(state.next_sequence, rand::random());
            state.next_sequence += 1;
            if let Err(error) = segment.file.write_at(&page, 0) {
                state.free.push(segment);
                return Err(error);
            }
            state.open = Some(Open { segment, end: PAGE_BYTES, link });
        }
        Ok(state.open.as_mut().map(|open| {
            let place = Place { segment: open.segment.clone(), start: open.end, before: open.link, objects };
            // From here on the segment cannot be used again before these objects were dealt with.
            *lock(&open.segment.unfiled) += objects;
            open.end += bytes;
            place
        }))
    }

    /// The next group is written over this one, which does not count.
    fn take_back(&self, place: &Place) {
        let mut state = self.state();
        *lock(&place.segment.unfiled) -= place.objects;
        if let Some(open) = &mut state.open {
            open.end = place.start;
            open.link = place.before;
        }
    }

    fn write_records(
        &self,
        place: &Place,
        described: &[(&Entry<'_>, Vec<u8>, u64)],
    ) -> io::Result<(Vec<Arc<Record>>, Link)> {
        let mut records = Vec::with_capacity(described.len());
        let (mut start, mut link) = (place.start, place.before);
        for (entry, description, record_bytes) in described {
            let object_bytes = entry.object.len() as u64;
            let (head, next) = record::record_head(&link, description, object_bytes);
            let object_at = start + head.len() as u64;
            let record = Record {
                segment: place.segment.clone(),
                object_at,
                object_bytes,
                file: entry.description.file.clone(),
                done: Mutex::new(false),
            };
            place.segment.write_record(&head, start, entry.object, start + record_bytes)?;
            records.push(Arc::new(record));
            (start, link) = (start + record_bytes, next);
        }
        place.segment.file.sync()?;
        Ok((records, link))
    }

    /// Writes an object to its file, which is not synced.
    pub(super) fn write_file(&self, file: &FileId, object: &Buffer) -> Result<Box<dyn DiskFile>, ArchiveError> {
        let write = || {
            let mut out = self.disk.create(&self.shards.made_path(self.disk.as_ref(), file)?)?;
            object.parts().try_for_each(|part| out.append(part))?;
            Ok(out)
        };
        write().map_err(|e| ArchiveError::io("writing an object", e))
    }

    /// Copies an object from the log to its file, which is not synced. `room` is memory to use.
    pub(super) fn make_file(&self, record: &Record, room: &mut Vec<u8>) -> io::Result<()> {
        let mut done = lock(&record.done);
        if *done {
            return Ok(());
        }
        let path = self.shards.made_path(self.disk.as_ref(), &record.file)?;
        let mut file = super::disk::create_anew(self.disk.as_ref(), &path)?;
        room.resize(256 * 1024, 0);
        let mut copied = 0;
        while copied < record.object_bytes {
            let count = (room.len() as u64).min(record.object_bytes - copied);
            let part = &mut room[..usize::try_from(count).unwrap_or(0)];
            record.segment.file.read_at(part, record.object_at + copied)?;
            file.append(part)?;
            copied += count;
        }
        self.finish(record, &mut done);
        Ok(())
    }

    fn finish(&self, record: &Record, done: &mut bool) {
        if !std::mem::replace(done, true) {
            self.state().expect_no_more(record);
            *lock(&record.segment.unfiled) -= 1;
        }
    }
}

impl Segment {
    /// `scrubbed` is the last overwriting that the file had its share of.
    pub(super) fn new(file: Box<dyn LogFile>, scrubbed: u64) -> Self {
        Self { file, unfiled: Mutex::new(0), scrubbed: AtomicU64::new(scrubbed) }
    }

    /// Writes one record and fills its last page, so that no page need be read to be written.
    fn write_record(&self, head: &[u8], start: u64, object: &Buffer, end: u64) -> io::Result<()> {
        self.file.write_at(head, start)?;
        let mut at = start + head.len() as u64;
        for part in object.parts() {
            self.file.write_at(part, at)?;
            at += part.len() as u64;
        }
        let rest = usize::try_from(end - at).unwrap_or(0);
        self.file.write_at(&[0; PAGE_BYTES as usize][..rest], at)
    }

    /// Whether every object in it has a file or needs none.
    pub(super) fn is_filed(&self) -> bool {
        *lock(&self.unfiled) == 0
    }

    /// Says that nothing in it counts. Not synced: a start that does not see this files again what is filed already.
    pub(super) fn retire(&self) -> io::Result<()> {
        self.file.write_at(&[0; PAGE_BYTES as usize], 0)
    }
}

impl Segment {
    /// Overwrites all of `bytes` bytes, none of which counts, for the overwriting of this number.
    pub(super) fn scrub(&self, bytes: u64, number: u64) -> io::Result<()> {
        // No start may look behind a first page whose records are half gone.
        self.retire()?;
        self.file.sync()?;
        let zeros = vec![0; SCRUB_BYTES];
        let mut there = vec![0; SCRUB_BYTES];
        let mut at = 0;
        while at < bytes {
            let count = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(SCRUB_BYTES);
            self.file.read_at(&mut there[..count], at)?;
            // Most of a log that was never full is zeros.
            if there[..count] != zeros[..count] {
                self.file.write_at(&zeros[..count], at)?;
            }
            at += count as u64;
        }
        self.file.sync()?;
        self.scrubbed.store(number, Ordering::Relaxed);
        Ok(())
    }
}

/// Room on the disk for the file of an object, its blocks and its name, in bytes.
pub(super) fn room_of_file(object_bytes: u64) -> u64 {
    object_bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES
}

/// Whether more room on the disk would help.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Size of a segment, in bytes, of a log of `bytes`.
pub(super) fn segment_bytes(bytes: u64) -> u64 {
    bytes / SEGMENTS / PAGE_BYTES * PAGE_BYTES
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
