//! What happens behind the intake log: segments are made, objects get their files, segments become free again.
//!
//! While objects arrive, this thread leaves the disk to them until half of the log is in use; then, and whenever nothing has
//! arrived for a moment, it files. A segment is free again once its files, their directories and the index are durable, which
//! one sync of the file systems achieves for all that is filed.
//!
//! Must not know what objects hold.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::Blocks;
use super::disk::FileSystems;
use super::log::{Log, Record, SEGMENTS, Segment, State, is_full};

/// Nothing arrived for so long: files are made.
const PAUSE: Duration = Duration::from_millis(200);
/// Nothing arrived for so long: the log is emptied.
const REST: Duration = Duration::from_secs(1);
/// Between attempts on a full disk.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// The thread.
pub(super) struct WriteBehind {
    log: Log,
    thread: Option<JoinHandle<()>>,
}

struct Worker {
    log: Log,
    blocks: Blocks,
    file_systems: Box<dyn FileSystems>,
    free_bytes_min: u64,
    poisoned: Arc<AtomicBool>,
    room: Vec<u8>,
    /// Not before then, because the disk is full.
    make_after: Option<Instant>,
    file_after: Option<Instant>,
}

enum Step {
    Make(u64),
    File(Arc<Record>),
    Free(Vec<Arc<Segment>>),
    Scrub(Arc<Segment>),
    /// Files that no segment was made of in this run.
    ScrubUnmade,
    Wait(Option<Duration>),
    Stop,
}

impl WriteBehind {
    /// Starts the thread. `file_systems` must have been opened before anything was filed.
    pub(super) fn start(
        log: Log,
        blocks: Blocks,
        file_systems: Box<dyn FileSystems>,
        free_bytes_min: u64,
        poisoned: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let worker = Worker {
            log: log.clone(),
            blocks,
            file_systems,
            free_bytes_min,
            poisoned,
            room: Vec::new(),
            make_after: None,
            file_after: None,
        };
        let thread = std::thread::Builder::new().name("archive-behind".into()).spawn(move || worker.work())?;
        Ok(Self { log, thread: Some(thread) })
    }

    /// Files what is in the log, frees its segments and ends the thread.
    pub(super) fn close(&mut self) {
        self.log.shared().state().stop = true;
        self.log.shared().changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread behind the intake log did not end in order");
        }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.close();
    }
}

impl Worker {
    fn work(mut self) {
        let log = self.log.clone();
        loop {
            let mut state = log.shared().state();
            match self.next_step(&mut state) {
                // Under the same lock, so that nothing arrives unnoticed in between.
                Step::Wait(patience) => self.wait(state, patience),
                step => {
                    drop(state);
                    match step {
                        Step::Make(number) => self.make(number),
                        Step::File(record) => self.file(record),
                        Step::Free(segments) => self.free(segments),
                        Step::Scrub(segment) => self.scrub(segment),
                        Step::ScrubUnmade => self.scrub_unmade(),
                        Step::Wait(_) | Step::Stop => return,
                    }
                }
            }
        }
    }

    fn next_step(&self, state: &mut State) -> Step {
        let since = state.last_append.elapsed();
        if self.poisoned.load(Ordering::Acquire) {
            // What is in the log stays there for the next start.
            return if state.stop { Step::Stop } else { Step::Wait(Some(REST)) };
        }
        let closed = state.closed.len() as u64;
        let pressed = (closed > 0 && closed * 2 >= state.made) || state.stop || state.scrubs();
        let may = |after: Option<Instant>| after.is_none_or(|after| after <= Instant::now());
        let files = (pressed || since >= PAUSE) && may(self.file_after);
        if let Some(record) = files.then(|| state.ready.pop_front()).flatten() {
            return Step::File(record);
        }
        if state.scrubs()
            && state.open.as_ref().is_some_and(|open| state.is_stale(&open.segment))
            && let Some(stale) = state.open.take()
        {
            // A group that is being written into it holds it in use until its files are made.
            state.closed.push(stale.segment);
        }
        let rests = since >= REST || state.stop;
        if let Some(open) = state.open.take_if(|open| rests && open.segment.is_filed()) {
            state.closed.push(open.segment);
        }
        if (pressed || rests) && state.closed.iter().any(|segment| segment.is_filed()) {
            let (filed, rest) = state.closed.drain(..).partition(|segment| segment.is_filed());
            state.closed = rest;
            return Step::Free(filed);
        }
        if let Some(step) = self.scrub_step(state) {
            return step;
        }
        if state.stop && (state.ready.is_empty() || !may(self.file_after)) {
            return Step::Stop;
        }
        if state.made < SEGMENTS && !state.stop && self.log.shared().segment_bytes > 0 && may(self.make_after) {
            return Step::Make(state.made);
        }
        let nothing = state.ready.is_empty() && state.open.is_none() && state.closed.is_empty();
        let waits_for_disk = self.make_after.is_some() && state.made < SEGMENTS;
        Step::Wait((!nothing || waits_for_disk || state.scrubs()).then_some(PAUSE / 2))
    }

    /// What comes next for a log that is to be overwritten; nothing while it waits for objects to be filed.
    fn scrub_step(&self, state: &mut State) -> Option<Step> {
        if !state.scrubs() {
            return None;
        }
        let stale = state.free.iter().position(|segment| state.is_stale(segment));
        if let Some(at) = stale {
            return Some(Step::Scrub(state.free.swap_remove(at)));
        }
        // None is being written: this thread closed it above.
        let waits = state.open.iter().map(|open| &open.segment).chain(&state.closed).any(|one| state.is_stale(one));
        (!waits).then_some(Step::ScrubUnmade)
    }

    fn wait(&self, state: MutexGuard<'_, State>, patience: Option<Duration>) {
        let changed = &self.log.shared().changed;
        match patience {
            // Objects that arrive do not wake it: it waits for a pause anyway.
            Some(patience) => drop(changed.wait_timeout_while(state, patience, |state| !state.stop)),
            None => {
                self.blocks.trim();
                let idle = |state: &mut State| {
                    !state.stop && !state.scrubs() && state.ready.is_empty() && state.open.is_none()
                };
                drop(changed.wait_while(state, idle));
            }
        }
    }

    fn make(&mut self, number: u64) {
        let shared = self.log.shared();
        let free = shared.disk.free_bytes(&shared.directory);
        let made = match free {
            Ok(free) if free < self.free_bytes_min.saturating_add(shared.segment_bytes) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            Ok(_) => shared.disk.log_file(&shared.directory.join(format!("{number:08}.log")), shared.segment_bytes),
            Err(error) => Err(error),
        };
        match made {
            Ok(file) => {
                let mut state = shared.state();
                let scrubbed = state.scrubbed;
                state.free.push(Arc::new(Segment::new(file, scrubbed)));
                state.made += 1;
                self.make_after = None;
            }
            Err(error) => {
                if self.make_after.is_none() {
                    tracing::warn!(%error, "the intake log is smaller than configured; objects beyond it are synced one by one");
                }
                self.make_after = Some(Instant::now() + FULL_RETRY * 30);
            }
        }
    }

    fn file(&mut self, record: Arc<Record>) {
        match self.log.shared().make_file(&record, &mut self.room) {
            Ok(()) => self.file_after = None,
            Err(error) => {
                if is_full(&error) {
                    if self.file_after.is_none() {
                        tracing::warn!(%error, "objects stay in the intake log until the disk has room for their files");
                    }
                    self.file_after = Some(Instant::now() + FULL_RETRY);
                } else {
                    self.poison("making an object's file", &error);
                }
                self.log.shared().state().ready.push_front(record);
            }
        }
    }

    fn free(&self, segments: Vec<Arc<Segment>>) {
        let retired = self.file_systems.sync().and_then(|()| segments.iter().try_for_each(|segment| segment.retire()));
        let mut state = self.log.shared().state();
        match retired {
            Ok(()) => state.free.extend(segments),
            Err(error) => {
                state.closed.extend(segments);
                drop(state);
                self.poison("syncing filed objects", &error);
            }
        }
    }

    fn scrub(&self, segment: Arc<Segment>) {
        let shared = self.log.shared();
        let number = shared.state().scrub;
        let scrubbed = segment.scrub(shared.segment_bytes, number);
        shared.state().free.push(segment);
        if let Err(error) = scrubbed {
            self.poison("overwriting the intake log", &error);
        }
    }

    /// Ends an overwriting.
    fn scrub_unmade(&self) {
        let shared = self.log.shared();
        let (made, number) = {
            let state = shared.state();
            (state.made, state.scrub)
        };
        let scrubbed = (made..SEGMENTS).try_for_each(|unmade| {
            let path = shared.directory.join(format!("{unmade:08}.log"));
            if !path.exists() {
                return Ok(());
            }
            let file = shared.disk.log_file(&path, shared.segment_bytes)?;
            Segment::new(file, 0).scrub(shared.segment_bytes, number)
        });
        match scrubbed {
            Ok(()) => shared.state().scrubbed = number,
            Err(error) => self.poison("overwriting the intake log", &error),
        }
        shared.changed.notify_all();
    }

    fn poison(&self, what: &str, error: &io::Error) {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(%error, what, "the archive refuses writes until the bridge is restarted; nothing accepted is lost");
    }
}

/// For tests: waits until everything that was acknowledged has a file and the log is empty. Patient, because a segment is free only
/// after a sync of the whole file system, which waits for whatever else was written to it, a build for example.
#[cfg(test)]
pub(super) fn settle(log: &Log) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while Instant::now() < deadline {
        let state = log.shared().state();
        if state.ready.is_empty() && state.open.is_none() && state.closed.is_empty() {
            return;
        }
        drop(state);
        // Whoever merely yields takes the lock again before the thread that needs it.
        std::thread::sleep(Duration::from_millis(1));
    }
    let state = log.shared().state();
    let (ready, open, closed) = (state.ready.len(), state.open.is_some(), state.closed.len());
    panic!(
        "the intake log was not emptied: {ready} objects without a file, a segment being written: {open}, {closed} closed"
    );
}
