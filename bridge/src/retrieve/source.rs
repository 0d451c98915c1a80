//! Objects that another site keeps: asked for in as few requests as it takes, proven as they come, and kept here like those from the
//! ledger.
//!
//! Whoever wants such an object waits until it is here. All that is wanted of a study meanwhile goes into the next request; nothing is
//! asked for that nobody waits for any more. Must not know how a source is asked ([`Source`] does).

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use bytes::Bytes;
use dicom_scp::Uid;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Retrieve, RetrieveError};
use crate::archive::{ArchiveError, ForeignMode, ForeignStudy, Restoring, Stored};
use crate::payload::container::Unsealed;

/// Wait before the first request for objects of a study, so that what is wanted together is asked for together.
const GATHER: Duration = Duration::from_millis(5);
/// Requests in a row that bring nothing before whoever waits is told.
const TRIES: u32 = 3;
/// Wait after a request that brought nothing.
const RETRY: Duration = Duration::from_millis(500);
/// How long a source that is away is left alone: a viewer that asks for a thousand objects one by one is not kept waiting for each.
const REST: Duration = Duration::from_secs(2);
/// Studies brought at once.
const STUDIES_MAX: usize = 4;
/// What a source may take for an errand: so long, and as long as it takes at the lowest rate, in bytes a second.
const SLOWEST: Duration = Duration::from_secs(120);
const SLOWEST_RATE: u64 = 64 * 1024;
/// Runs of octets that may wait to be written.
const RUNS_AHEAD: usize = 8;

/// Why a source did not hand out what it keeps.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The source: it cannot be reached. To be tried again.
    #[error("the site that keeps it does not answer: {0}")]
    Away(String),
    /// The source: it broke off, is busy, or has trouble with what it was asked for. To be tried again, perhaps for less at once.
    #[error("the site that keeps it did not hand it out: {0}")]
    Broken(String),
    /// The owner, or the source: it is not granted, or not there.
    #[error("the site that keeps it refuses: {0}")]
    Refused(String),
    /// The source: it sends something else than the manifest lists.
    #[error("the site that keeps it sends something else than the manifest lists")]
    Differs,
    /// This site: it cannot ask, or cannot keep what comes.
    #[error("it cannot be fetched from the site that keeps it: {0}")]
    Here(String),
}

/// What is to be brought from a source.
#[derive(Debug, Clone)]
pub struct Errand {
    /// The study, and how much of it is granted.
    pub study: ForeignStudy,
    /// Objects that somebody waits for, in the order in which they were wanted.
    pub wanted: Vec<Stored>,
    /// All objects of the study that are not here, those above among them.
    pub missing: Vec<Stored>,
    /// How to ask.
    pub manner: Manner,
}

/// How to ask, after what became of the requests before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// In whatever way is best.
    Any,
    /// For single objects: the study as a whole did not come.
    Parts,
    /// For each object by itself: one of them may be what stops the others.
    Single,
}

/// Asks sources for what they keep.
pub trait Source: Send + Sync {
    /// Brings the wanted objects of an errand, and others that are missing if that is as well. What is delivered stays, also when this
    /// fails later.
    fn bring<'a>(&'a self, errand: &'a Errand, delivery: &'a mut Delivery) -> BoxFuture<'a, Result<(), SourceError>>;
}

/// The way to ask sources, once there is one, and what is wanted from them.
pub(super) struct Couriers {
    source: OnceLock<Arc<dyn Source>>,
    room: Semaphore,
    /// Studies whose source was away, until when it is left alone, and what it was.
    resting: Mutex<HashMap<B256, (Instant, SourceError)>>,
    queues: Mutex<HashMap<B256, Queue>>,
}

/// By row, in any order; `number` has the order.
type Queue = HashMap<i64, Want>;

struct Want {
    number: u64,
    stored: Stored,
    waiting: Vec<Waiting>,
}

type Waiting = oneshot::Sender<Result<(), SourceError>>;

/// Resolves when an object is here, or cannot be had.
pub(super) type Awaited = oneshot::Receiver<Result<(), SourceError>>;

impl Couriers {
    pub(super) fn new() -> Self {
        let (source, room) = (OnceLock::new(), Semaphore::new(STUDIES_MAX));
        Self { source, room, resting: Mutex::default(), queues: Mutex::default() }
    }

    pub(super) fn set(&self, source: Arc<dyn Source>) {
        // A second way would be the same.
        let _ = self.source.set(source);
    }

    /// Why a study's source is left alone for now, if it is.
    fn resting(&self, study: B256) -> Option<SourceError> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|_, (until, _)| *until > Instant::now());
        resting.get(&study).map(|(_, why)| why.clone())
    }

    fn rest(&self, study: B256, why: SourceError) {
        let until = Instant::now() + REST;
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).insert(study, (until, why));
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<B256, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object on the list of its study; says besides whether somebody must begin to work that off.
    fn want(&self, study: B256, stored: &Stored) -> (Awaited, bool) {
        let (waiting, awaited) = oneshot::channel();
        let mut queues = self.queues();
        let is_new = !queues.contains_key(&study);
        let queue = queues.entry(study).or_default();
        let number = queue.values().map(|want| want.number + 1).max().unwrap_or(0);
        let want =
            queue.entry(stored.id).or_insert_with(|| Want { number, stored: stored.clone(), waiting: Vec::new() });
        want.waiting.push(waiting);
        (awaited, is_new)
    }

    /// What somebody waits for of a study. When that is nothing, the study's list is gone and whoever works it off must end.
    fn open_wants(&self, study: B256) -> Vec<Stored> {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(&study) else { return Vec::new() };
        queue.retain(|_, want| want.waiting.iter().any(|waiting| !waiting.is_closed()));
        let mut wants: Vec<_> = queue.values().map(|want| (want.number, want.stored.clone())).collect();
        if wants.is_empty() {
            queues.remove(&study);
        }
        wants.sort_by_key(|(number, _)| *number);
        wants.into_iter().map(|(_, stored)| stored).collect()
    }

    /// Whether nothing is wanted, and nobody works anything off.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.queues().is_empty()
    }

    fn is_waited_for(&self, study: B256) -> bool {
        let queues = self.queues();
        let wants = queues.get(&study).into_iter().flat_map(HashMap::values);
        wants.flat_map(|want| &want.waiting).any(|waiting| !waiting.is_closed())
    }

    /// Tells everybody who waits for an object.
    fn answer(&self, study: B256, row: i64, answer: &Result<(), SourceError>) {
        let want = self.queues().get_mut(&study).and_then(|queue| queue.remove(&row));
        for waiting in want.into_iter().flat_map(|want| want.waiting) {
            // Who does not wait any more needs no answer.
            let _ = waiting.send(answer.clone());
        }
    }
}

impl Retrieve {
    /// From now on, objects that their source keeps are asked for in this way.
    pub fn ask_sources(&self, source: Arc<dyn Source>) {
        self.0.couriers.set(source);
    }

    /// Objects that their source keeps, out of some.
    pub(super) fn kept_elsewhere(&self, objects: &[Stored]) -> Result<Vec<Stored>, ArchiveError> {
        let mut kept = Vec::new();
        for stored in objects.iter().filter(|stored| stored.origin > 0) {
            if self.0.archive.is_at_source(stored.id)? {
                kept.push(stored.clone());
            }
        }
        Ok(kept)
    }

    /// Puts an object on the list of what is to be brought. It must be granted.
    pub(super) fn want(&self, granted: &ForeignStudy, stored: &Stored) -> Awaited {
        let study = granted.study_id;
        let (awaited, is_new) = self.0.couriers.want(study, stored);
        if is_new {
            tokio::spawn(self.clone().work_off(study));
        }
        awaited
    }

    /// Brings an object, which must be granted, and returns it with its file.
    pub(super) async fn bring(&self, granted: &ForeignStudy, stored: &Stored) -> Result<Stored, RetrieveError> {
        let answered = self.want(granted, stored).await.map_err(|_| RetrieveError::GivenUp)?;
        answered?;
        let here =
            self.0.ready.get(stored.id).map_or_else(|| self.0.archive.current(stored), |ready| Ok(Some(ready)))?;
        here.filter(|here| here.path.is_some()).ok_or_else(|| RetrieveError::Nowhere(stored.sop_instance.to_string()))
    }

    /// Brings what is wanted of a study until nothing is.
    async fn work_off(self, study: B256) {
        tokio::time::sleep(GATHER).await;
        let (mut in_vain, mut manner) = (0, Manner::Any);
        loop {
            let open = self.0.couriers.open_wants(study);
            if open.is_empty() {
                return;
            }
            // What another request brought a moment before it was wanted.
            let (here, wanted): (Vec<_>, Vec<_>) = open.into_iter().partition(|stored| self.is_here(stored));
            here.iter().for_each(|stored| self.0.couriers.answer(study, stored.id, &Ok(())));
            if wanted.is_empty() {
                continue;
            }
            if let Some(why) = self.0.couriers.resting(study) {
                wanted.iter().for_each(|stored| self.0.couriers.answer(study, stored.id, &Err(why.clone())));
                continue;
            }
            let (brought, outcome) = self.try_bring(study, &wanted, manner).await;
            in_vain = if brought { 0 } else { in_vain + 1 };
            manner = match (&outcome, in_vain) {
                (Ok(()), _) => Manner::Any,
                (Err(_), 0 | 1) => Manner::Parts,
                (Err(_), _) => Manner::Single,
            };
            let failure = match outcome {
                // Whatever stopped it: what is left is asked for again, and each time there is less.
                outcome if brought => {
                    if let Err(error) = outcome {
                        tracing::info!(study_id = %study, %error, "not all came; asking for the rest");
                    }
                    continue;
                }
                // What it did not deliver although it says that that is all.
                Ok(()) => SourceError::Differs,
                Err(SourceError::Away(why) | SourceError::Broken(why)) if in_vain < TRIES => {
                    tracing::info!(study_id = %study, why, "asking again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                Err(failure) => failure,
            };
            tracing::warn!(study_id = %study, error = %failure, "objects cannot be had from their source");
            if matches!(failure, SourceError::Away(_) | SourceError::Broken(_)) {
                self.0.couriers.rest(study, failure.clone());
            }
            for stored in wanted {
                self.0.couriers.answer(study, stored.id, &Err(failure.clone()));
            }
            (in_vain, manner) = (0, Manner::Any);
        }
    }

    /// Whether an object has a file that whoever wanted it did not know.
    fn is_here(&self, wanted: &Stored) -> bool {
        let here = || self.0.archive.current(wanted).ok().flatten().and_then(|current| current.path);
        self.0.ready.get(wanted.id).is_some() || wanted.path.is_none() && here().is_some()
    }

    /// Asks once. Says besides whether anything came.
    async fn try_bring(&self, study: B256, wanted: &[Stored], manner: Manner) -> (bool, Result<(), SourceError>) {
        let here = |error: &(dyn std::error::Error + 'static)| SourceError::Here(crate::chain_of(error));
        let Some(source) = self.0.couriers.source.get().cloned() else {
            return (false, Err(SourceError::Here("this site asks no other".into())));
        };
        let errand = match self.errand(study, wanted, manner) {
            Ok(Some(errand)) => errand,
            Ok(None) => return (false, Err(SourceError::Refused("it is not granted any more".into()))),
            Err(error) => return (false, Err(here(&error))),
        };
        let Ok(_permit) = self.0.couriers.room.acquire().await else { return (false, Err(ended())) };
        let mut delivery = match Delivery::open(self.clone(), &errand).await {
            Ok(delivery) => delivery,
            Err(error) => return (false, Err(here(&error))),
        };
        let asked = tokio::time::timeout(longest(&errand), source.bring(&errand, &mut delivery)).await;
        let asked = asked.unwrap_or_else(|_| Err(SourceError::Broken("it is too slow".into())));
        let (brought, kept) = delivery.close().await;
        // What went wrong here is why the source was left.
        (brought, kept.and(asked))
    }

    fn errand(&self, study: B256, wanted: &[Stored], manner: Manner) -> Result<Option<Errand>, ArchiveError> {
        let Some(first) = wanted.first() else { return Ok(None) };
        let granted = self.0.archive.foreign_of(first)?.filter(|study| study.window.mode == ForeignMode::Everything);
        let Some(granted) = granted else { return Ok(None) };
        let missing = self.0.archive.foreign_instances(study)?.into_iter();
        let missing: Vec<_> =
            missing.filter(|stored| stored.path.is_none() && self.0.ready.get(stored.id).is_none()).collect();
        Ok(Some(Errand { study: granted, wanted: wanted.to_vec(), missing: self.kept_elsewhere(&missing)?, manner }))
    }
}

/// What a source may take at most: it must not keep others waiting by sending an octet now and then.
fn longest(errand: &Errand) -> Duration {
    let bytes: u64 = errand.missing.iter().chain(&errand.wanted).map(|stored| stored.file_bytes).sum();
    SLOWEST + Duration::from_secs(bytes / SLOWEST_RATE)
}

/// Takes what a source sends. Of each object everything is compared with what the manifest lists before anybody gets it.
pub struct Delivery {
    steps: mpsc::Sender<Step>,
    worker: JoinHandle<(bool, Result<(), SourceError>)>,
    retrieve: Retrieve,
    study: B256,
    takes: HashMap<Uid, Stored>,
    /// Whether what comes now is taken.
    taking: bool,
}

enum Step {
    Begin(Box<Stored>, OwnedSemaphorePermit),
    Data(Bytes),
    End,
}

impl Delivery {
    async fn open(retrieve: Retrieve, errand: &Errand) -> Result<Self, ArchiveError> {
        // Made before the first object comes.
        retrieve.0.ready.restorer().await?;
        let study = errand.study.study_id;
        let takes = errand.missing.iter().chain(&errand.wanted).map(|stored| (stored.sop_instance, stored.clone()));
        let takes = takes.collect();
        let (steps, arriving) = mpsc::channel(RUNS_AHEAD);
        let shelf = Shelf { retrieve: retrieve.clone(), study, open: None, brought: false };
        let worker = tokio::task::spawn_blocking(move || shelf.take_all(arriving));
        Ok(Self { steps, worker, retrieve, study, takes, taking: false })
    }

    /// An object comes next. Says whether it is taken: one that is here, or that nobody listed, is passed over.
    ///
    /// # Errors
    /// [`SourceError`] when nothing more is to be brought.
    pub async fn begin(&mut self, sop_instance: &Uid) -> Result<bool, SourceError> {
        if !self.retrieve.0.couriers.is_waited_for(self.study) {
            return Err(SourceError::Here("nobody waits for it any more".into()));
        }
        let Some(stored) = self.takes.remove(sop_instance) else {
            self.taking = false;
            return Ok(false);
        };
        let room = self.retrieve.0.ready.room().await.ok_or_else(ended)?;
        self.taking = true;
        self.step(Step::Begin(Box::new(stored), room)).await?;
        Ok(true)
    }

    /// Octets of it.
    ///
    /// # Errors
    /// As [`Delivery::begin`].
    pub async fn write(&mut self, octets: &[u8]) -> Result<(), SourceError> {
        if self.taking { self.step(Step::Data(Bytes::copy_from_slice(octets))).await } else { Ok(()) }
    }

    /// All of it was there.
    ///
    /// # Errors
    /// As [`Delivery::begin`].
    pub async fn end(&mut self) -> Result<(), SourceError> {
        if std::mem::take(&mut self.taking) { self.step(Step::End).await } else { Ok(()) }
    }

    async fn step(&self, step: Step) -> Result<(), SourceError> {
        self.steps.send(step).await.map_err(|_| ended())
    }

    /// Waits until what came is kept. Says whether anything is, and what went wrong here.
    async fn close(self) -> (bool, Result<(), SourceError>) {
        drop(self.steps);
        self.worker.await.unwrap_or_else(|_| (false, Err(ended())))
    }
}

fn ended() -> SourceError {
    SourceError::Here("this site is ending, or cannot keep it".into())
}

/// Where objects are put as they come. Runs on a thread that may wait for a disk.
struct Shelf {
    retrieve: Retrieve,
    study: B256,
    open: Option<Arriving>,
    brought: bool,
}

struct Arriving {
    stored: Stored,
    room: OwnedSemaphorePermit,
    restoring: Restoring,
    sha256: Sha256,
    bytes: u64,
}

impl Shelf {
    fn take_all(mut self, mut steps: mpsc::Receiver<Step>) -> (bool, Result<(), SourceError>) {
        while let Some(step) = steps.blocking_recv() {
            if let Err(error) = self.take(step) {
                return (self.brought, Err(error));
            }
        }
        (self.brought, Ok(()))
    }

    fn take(&mut self, step: Step) -> Result<(), SourceError> {
        match step {
            Step::Begin(stored, room) => {
                let restorer = Handle::current().block_on(self.retrieve.0.ready.restorer()).map_err(|e| here(&e))?;
                let restoring = restorer.begin(&stored).map_err(|e| here(&e))?;
                self.open = Some(Arriving { stored: *stored, room, restoring, sha256: Sha256::new(), bytes: 0 });
                Ok(())
            }
            Step::Data(octets) => match &mut self.open {
                Some(arriving) => arriving.write(&octets),
                None => Ok(()),
            },
            Step::End => self.open.take().map_or(Ok(()), |arriving| self.keep(arriving)),
        }
    }

    fn keep(&mut self, arriving: Arriving) -> Result<(), SourceError> {
        let Arriving { stored, room, restoring, sha256, bytes } = arriving;
        let plain = Unsealed { plain_bytes: bytes, plain_sha256: sha256.finalize().into() };
        let restored = restoring.finish(&plain).map_err(|_| SourceError::Differs)?;
        let inner = &self.retrieve.0;
        if stored.path.is_some() {
            // Only now that there is another: the old file may be all that there is.
            Handle::current().block_on(inner.archive.forget_file(&stored)).map_err(|e| here(&e))?;
        }
        inner.local.learn(stored.id, restored.crc32());
        inner.ready.add(restored, room);
        self.brought = true;
        inner.couriers.answer(self.study, stored.id, &Ok(()));
        Ok(())
    }
}

impl Arriving {
    fn write(&mut self, octets: &[u8]) -> Result<(), SourceError> {
        self.bytes += octets.len() as u64;
        // A source must not fill the disk with what is not listed.
        if self.bytes > self.stored.file_bytes {
            return Err(SourceError::Differs);
        }
        self.sha256.update(octets);
        self.restoring.write_all(octets).map_err(|error: io::Error| here(&error))
    }
}

fn here(error: &(dyn std::error::Error + 'static)) -> SourceError {
    SourceError::Here(crate::chain_of(error))
}
