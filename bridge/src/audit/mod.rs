//! The audit trail: who did what with which study, from where, and how it went.
//!
//! A door hands over an [`Event`]; it becomes a DICOM audit message (PS3.15 A.5), a record of a log whose every line is chained to the one
//! before, and, where a repository is configured, a syslog message (ITI-20). The head of the log goes onto the ledger now and then, so that
//! nobody can later change what it covers without being found out. docs/AUDIT.md describes events and formats, docs/adr/0018 why it is so.
//!
//! * [`event`]: what can happen, with its codes. [`xml`]: the message. Both pure.
//! * [`chain`]: the bytes of the log; [`log`]: its files; [`verify`]: whether they are as they were written; [`list`]: what they say, read [`back`] from
//!   its end for pages.
//! * [`syslog`]: to the repository. The log is its spool: it remembers how far it has come.
//! * [`anchor`]: onto the ledger.
//!
//! One thread writes. [`Audit::record`] never waits: intake goes on when recording fails, loudly. [`Audit::durable`] returns when the record
//! is on the disk, and an error means that what it is about must not happen. Must not know wire protocols of the doors, nor who may do what.

pub mod anchor;
mod back;
mod chain;
pub mod event;
pub mod list;
mod log;
pub mod syslog;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod xml;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

pub use chain::{Head, Line};
pub use event::{Decided, Event, Handling, Instances, KeyUse, Outcome, Party, Route};
use log::{Found, Log};
pub use xml::Source;

/// The directory of the log, in the data directory.
pub const DIRECTORY: &str = "audit";
/// Events that wait for the writer at most.
const QUEUE_MAX: usize = 65_536;
/// Records of one sync at most.
const BATCH_MAX: usize = 1024;
/// How long an event that nobody waits for may stay written without being synced.
const LINGER: Duration = Duration::from_millis(50);
/// How often writing is tried again when it failed.
const RETRY: Duration = Duration::from_secs(1);

/// Why something was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct AuditError(String);

/// The log and its repository, as the ops person sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Records of the log.
    pub records: u64,
    /// Why it cannot be written, if so.
    pub trouble: Option<String>,
    /// Events that could not be recorded since the start.
    pub lost: u64,
    /// The repository, if there is one.
    pub repository: Option<RepositoryStatus>,
    /// Records that the newest anchor on the ledger covers, if there is one.
    pub anchored: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub anchored_s: Option<u64>,
    /// Why no anchor could be made, if so.
    pub anchor_trouble: Option<String>,
}

/// How far the repository is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Where it is.
    pub address: String,
    /// Records that it has not got.
    pub backlog: u64,
    /// Why, if something is in the way.
    pub trouble: Option<String>,
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    queue: Option<SyncSender<Command>>,
    shared: Arc<Shared>,
}

/// What the writer and those who read behind it tell each other.
struct Shared {
    status: Mutex<AuditStatus>,
    /// The number of the log that is written, and its head. What it covers is durable.
    head: watch::Sender<(u32, Head)>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, AuditStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Done = oneshot::Sender<Result<(), AuditError>>;

enum Command {
    Record { time_ms: u64, event: Box<Event>, done: Option<Done> },
    Close(oneshot::Sender<()>),
}

impl Audit {
    /// Nothing is recorded.
    #[must_use]
    pub fn off() -> Self {
        let shared = Shared { status: Mutex::default(), head: watch::Sender::default() };
        Self(Arc::new(Inner { dir: PathBuf::new(), queue: None, shared: Arc::new(shared) }))
    }

    /// Opens the log in `dir` and starts its writer. A log that cannot be opened is reported and tried again; until then it counts as one
    /// that cannot be written. Blocks.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn open(dir: &Path, segment_bytes: u64, source: Source) -> io::Result<Self> {
        let (queue, commands) = sync_channel(QUEUE_MAX);
        let shared = Arc::new(Shared { status: Mutex::default(), head: watch::Sender::default() });
        let (log, lost) = (None, 0);
        let (dir, shared_too) = (dir.to_owned(), shared.clone());
        let mut writer = Writer { dir: dir.clone(), segment_bytes, source, shared: shared_too, log, known: None, lost };
        let mut begun = Vec::new();
        if let Err(error) = writer.ready(&mut begun) {
            writer.failed(&error, &mut begun);
        }
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&commands, begun))?;
        Ok(Self(Arc::new(Inner { dir, queue: Some(queue), shared })))
    }

    /// Whether anything is recorded.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.queue.is_some()
    }

    /// Records an event that nobody waits for. It is on the disk a moment later.
    pub fn record(&self, event: Event) {
        let Some(queue) = &self.0.queue else { return };
        let command = Command::Record { time_ms: now_ms(), event: Box::new(event), done: None };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(command) {
            self.0.shared.status().lost += 1;
            tracing::error!("an event could not be recorded in the audit log: its writer is stuck or has ended");
        }
    }

    /// Records events and returns when they are on the disk.
    ///
    /// # Errors
    /// [`AuditError`]: they are not, and what they are about must not happen.
    pub async fn durable(&self, events: Vec<Event>) -> Result<(), AuditError> {
        for waiting in self.send(events)? {
            waiting.await.unwrap_or_else(|_| Err(ended()))?;
        }
        Ok(())
    }

    /// As [`Self::durable`], for threads that may wait.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn durable_blocking(&self, event: Event) -> Result<(), AuditError> {
        for waiting in self.send(vec![event])? {
            waiting.blocking_recv().unwrap_or_else(|_| Err(ended()))?;
        }
        Ok(())
    }

    fn send(&self, events: Vec<Event>) -> Result<Vec<oneshot::Receiver<Result<(), AuditError>>>, AuditError> {
        let Some(queue) = &self.0.queue else { return Ok(Vec::new()) };
        let time_ms = now_ms();
        let send = |event| {
            let (done, waiting) = oneshot::channel();
            let command = Command::Record { time_ms, event: Box::new(event), done: Some(done) };
            queue.try_send(command).map_err(|_| AuditError("its writer is stuck or has ended".into()))?;
            Ok(waiting)
        };
        events.into_iter().map(send).collect()
    }

    /// Whether what is read here may be handed out without waiting for its record: not while the log cannot be written.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn writable(&self) -> Result<(), AuditError> {
        self.0.shared.status().trouble.clone().map_or(Ok(()), |why| Err(AuditError(why)))
    }

    /// The state of things; none when nothing is recorded.
    #[must_use]
    pub fn status(&self) -> Option<AuditStatus> {
        self.is_on().then(|| self.0.shared.status().clone())
    }

    /// The directory of the log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Number and head of the log, whenever it has grown.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<(u32, Head)> {
        self.0.shared.head.subscribe()
    }

    /// Writes what waits, and ends the writer.
    pub async fn close(&self) {
        let Some(queue) = &self.0.queue else { return };
        let (done, closed) = oneshot::channel();
        if queue.try_send(Command::Close(done)).is_ok() {
            let _ = closed.await;
        }
    }
}

fn ended() -> AuditError {
    AuditError("its writer has ended".into())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An event with its time and whoever waits for it.
struct Item {
    time_ms: u64,
    message: String,
    done: Option<Done>,
}

/// The thread that writes.
struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    source: Source,
    shared: Arc<Shared>,
    log: Option<Log>,
    /// The newest head that was durable.
    known: Option<Head>,
    /// Events given up, until that is recorded.
    lost: u64,
}

impl Writer {
    fn run(mut self, commands: &Receiver<Command>, begun: Vec<Item>) {
        let (mut waiting, mut written) = (begun, Vec::new());
        let mut due = (!waiting.is_empty()).then(Instant::now);
        loop {
            let closing = self.gather(commands, &mut waiting, due);
            let is_due = closing.is_some() || due.is_some_and(|due| due <= Instant::now());
            match self.bring(&mut waiting, &mut written, is_due) {
                Ok(()) if written.is_empty() => due = None,
                Ok(()) => due = due.or_else(|| Some(Instant::now() + LINGER)),
                Err(error) => {
                    self.give_back(&error, &mut waiting, &mut written);
                    due = (!waiting.is_empty()).then(|| Instant::now() + RETRY);
                }
            }
            match closing {
                None => {}
                Some(None) => return,
                Some(Some(done)) => {
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    /// Waits for an event until something is due, and takes along those that are there already. Tells when it is time to end.
    fn gather(
        &self,
        commands: &Receiver<Command>,
        waiting: &mut Vec<Item>,
        due: Option<Instant>,
    ) -> Option<Option<oneshot::Sender<()>>> {
        let mut next = match due {
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => commands.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        let mut taken = 0;
        loop {
            match next {
                Ok(Command::Record { time_ms, event, done }) => waiting.push(self.item(time_ms, &event, done)),
                Ok(Command::Close(done)) => return Some(Some(done)),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(None),
            }
            taken += 1;
            if taken == BATCH_MAX {
                return None;
            }
            next = commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
        }
    }

    fn item(&self, time_ms: u64, event: &Event, done: Option<Done>) -> Item {
        Item { time_ms, message: xml::message(event, time_ms, &self.source), done }
    }

    /// Writes what waits, which the end of this program does not take from then on; and syncs it when that is due or somebody waits
    /// for it.
    fn bring(&mut self, waiting: &mut Vec<Item>, written: &mut Vec<Item>, is_due: bool) -> io::Result<()> {
        if !waiting.is_empty() {
            let mut before = Vec::new();
            self.ready(&mut before)?;
            before.append(waiting);
            *waiting = before;
            let log = self.log.as_mut().ok_or_else(|| io::Error::other("it is not open"))?;
            log.write(waiting.iter().map(|item| (item.time_ms, item.message.as_str())))?;
            written.append(waiting);
        }
        if written.is_empty() || !(is_due || written.iter().any(|item| item.done.is_some())) {
            return Ok(());
        }
        let log = self.log.as_mut().ok_or_else(|| io::Error::other("it is not open"))?;
        log.sync()?;
        let head = (log.number(), log.head());
        self.known = Some(head.1);
        self.shared.status().records = head.1.records;
        self.shared.head.send_replace(head);
        for item in written.drain(..) {
            item.done.map(|done| done.send(Ok(())));
        }
        self.succeeded();
        Ok(())
    }

    /// Nothing since the last sync is on the disk. Whoever waits for it is told, and the rest is kept for the next time.
    fn give_back(&mut self, error: &io::Error, waiting: &mut Vec<Item>, written: &mut Vec<Item>) {
        written.append(waiting);
        let words = self.failed(error, written);
        let (told, mut kept): (Vec<_>, Vec<_>) = written.drain(..).partition(|item| item.done.is_some());
        for done in told.into_iter().filter_map(|item| item.done) {
            let _ = done.send(Err(AuditError(words.clone())));
        }
        // The first are those that explain the others.
        let surplus = kept.len().saturating_sub(QUEUE_MAX);
        kept.truncate(QUEUE_MAX);
        self.lost += surplus as u64;
        self.shared.status().lost += surplus as u64;
        *waiting = kept;
        if self.log.as_ref().is_some_and(Log::is_cut) {
            // It is looked at anew, with what is known of it.
            self.log = None;
        }
    }

    /// Opens the log if it is not, and adds what has to be said about that.
    fn ready(&mut self, items: &mut Vec<Item>) -> io::Result<()> {
        if self.log.is_none() {
            let (log, found) = Log::open(&self.dir, self.segment_bytes, self.known)?;
            let head = (log.number(), log.head());
            self.shared.status().records = head.1.records;
            self.shared.head.send_replace(head);
            self.log = Some(log);
            items.extend(self.about(&found).map(|event| self.item(now_ms(), &event, None)));
        }
        if self.lost > 0 {
            let words = format!("{} events could not be recorded before this", self.lost);
            items.push(self.item(now_ms(), &Event::log_trouble(Outcome::MajorFailure, &words), None));
            self.lost = 0;
        }
        Ok(())
    }

    fn about(&self, found: &Found) -> Option<Event> {
        match found {
            Found::Nothing | Found::Whole => None,
            Found::Torn(bytes) => {
                tracing::warn!(bytes, "the audit log ended within a record that was being written; it was cut off");
                let words = format!("{bytes} bytes of a record that was being written were cut off");
                Some(Event::log_trouble(Outcome::MinorFailure, &words))
            }
            Found::Damaged { file, record } => {
                tracing::error!(
                    file,
                    record,
                    "the audit log is not as it was written, and another was begun; see `pacs-bridge audit verify`"
                );
                let words = format!("the log before this one is damaged at record {record}, in {file}");
                Some(Event::log_trouble(Outcome::MajorFailure, &words))
            }
        }
    }

    fn succeeded(&self) {
        if self.shared.status().trouble.take().is_some() {
            tracing::warn!("the audit log is written again");
        }
    }

    fn failed(&self, error: &io::Error, items: &mut Vec<Item>) -> String {
        let words = crate::chain_of(error);
        let before = self.shared.status().trouble.replace(words.clone());
        if before.is_none() {
            let dir = self.dir.display();
            tracing::error!(error = words, %dir, "THE AUDIT LOG CANNOT BE WRITTEN: nothing is handed out until it can; intake goes on");
            // With this there is always something to try with, also when everybody else is refused.
            let event = Event::log_trouble(Outcome::MajorFailure, "the log could not be written from now on");
            items.push(self.item(now_ms(), &event, None));
        }
        words
    }
}
