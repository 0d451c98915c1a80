//! The worker: asks [`super::work`] what comes next for every study, does it through the seams, and takes note. One task; many
//! effects in flight, bounded by bytes and transactions. All of its memory may be lost at any moment.

use super::feed::Feed;
use super::work::{Fit, Lane, PieceRef, Plan, Progress, Seen, Step, Work};
use super::{Amendment, Chain, ChainError, Opening, Outbox, Piece, Seal, Source, SourceError, StudyJob, StudyOwner};
use crate::ledger::node::{Backoff, Clock, SystemClock};
use crate::ledger::sender::network_window;
use alloy::primitives::B256;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Bounds of the publisher.
#[derive(Debug, Clone)]
pub struct PublishConfig {
    /// Bytes of pieces that are read or on their way at most.
    pub window_bytes: usize,
    /// Bytes that urgent pieces may take above the window, so that they never wait for objects.
    pub urgent_bytes: usize,
    /// Transactions on their way at most.
    pub transactions_max: usize,
    /// Bytes of a study that may be sent before anything of it was seen: about what a block takes, so that little is lost where the first of
    /// it is refused. With 0 each step waits for the one before.
    pub ahead_bytes: u64,
    /// Studies planned at a time at most; others wait in the outbox.
    pub studies_max: usize,
    /// How often the outbox is scanned without being told.
    pub scan_ms: u64,
    /// Longest wait between tries when the ledger is away.
    pub retry_ms_max: u64,
    /// How long a study that was refused is left alone.
    pub blocked_retry_ms: u64,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            window_bytes: 6 << 20,
            urgent_bytes: 1 << 20,
            transactions_max: 56,
            ahead_bytes: 1 << 20,
            studies_max: 64,
            scan_ms: 5_000,
            retry_ms_max: 30_000,
            blocked_retry_ms: 600_000,
        }
    }
}

impl PublishConfig {
    /// For a network with its own pace: as much as its sender has on its way, less what others send.
    #[must_use]
    pub fn network(depth: u64) -> Self {
        let own = Self::default();
        let (bytes, transactions) = network_window(depth);
        let window_bytes = bytes.saturating_sub(2 * own.urgent_bytes).max(own.window_bytes);
        Self { window_bytes, transactions_max: transactions.saturating_sub(8).max(own.transactions_max), ..own }
    }
}

/// How far a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Known, not planned yet.
    Queued,
    /// Definition, previews and manifest are on their way.
    Opening,
    /// Viewable; objects are on their way.
    Viewable,
    /// Everything is on the ledger.
    Final,
    /// Refused; others go on.
    Blocked,
}

/// Progress of a study, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyStatus {
    /// Manifest version.
    pub version: u32,
    /// How far it is.
    pub stage: Stage,
    /// Pieces seen on the ledger.
    pub pieces_seen: u64,
    /// Pieces of the plan; 0 before it is planned.
    pub pieces: u64,
    /// Milliseconds from taking it up to the announcement of its manifest.
    pub viewable_after_ms: Option<u64>,
    /// Milliseconds from taking it up to the end.
    pub final_after_ms: Option<u64>,
    /// Why it does not move, if so.
    pub trouble: Option<String>,
    started_ms: u64,
}

/// Progress of the publisher, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishStatus {
    /// Studies under way or lately finished, by their id on chain.
    pub studies: BTreeMap<B256, StudyStatus>,
    /// Transactions on their way.
    pub transactions: usize,
    /// Bytes of pieces read or on their way.
    pub bytes: usize,
    /// Pieces that were seen on the ledger since the start, of all studies; never falls.
    pub stored: u64,
    /// Why the outbox or the ledger does not answer, if so.
    pub trouble: Option<String>,
}

/// Transactions with pieces that are sent before anything of them was seen, at most.
const AHEAD_CALLS_MAX: u64 = 8;
/// Finished studies that the status remembers.
const FINISHED_KEPT: usize = 256;

struct Context<O, S, C, K> {
    outbox: Arc<O>,
    source: Arc<S>,
    chain: C,
    clock: K,
    config: PublishConfig,
    status: watch::Sender<PublishStatus>,
}

struct Active<S: Source> {
    job: StudyJob,
    work: Work,
    /// Taken out while pieces are being read.
    feed: Option<Feed<S>>,
    /// Lanes in which the last look found nothing to do; something must end before it is worth looking again.
    idle: [bool; 2],
}

/// Why a study stops for now.
#[derive(Debug)]
enum Halt {
    Later(String),
    Blocked(String),
}

impl From<SourceError> for Halt {
    fn from(e: SourceError) -> Self {
        match e {
            SourceError::Later(why) => Self::Later(why),
            SourceError::Broken(why) => Self::Blocked(why),
        }
    }
}

/// What pieces are read for.
#[derive(Clone, Copy)]
enum For {
    /// To be stored.
    Store,
    /// To be sent with everything else that makes the study viewable, and with its objects where `whole`: so many calls.
    Open { whole: bool, calls: usize },
}

impl For {
    /// Transactions that come of it.
    fn calls(self) -> usize {
        match self {
            Self::Store => 1,
            Self::Open { calls, .. } => calls,
        }
    }
}

/// What is done to the chain.
enum Effect {
    Define(StudyOwner, B256),
    Store(Vec<Piece>),
    Seal(Vec<Seal>),
    Announce(Amendment),
    Finish,
}

/// What has ended. `run` numbers the times a study was taken up.
enum Done<S: Source> {
    Scanned(Vec<StudyJob>),
    Planned(StudyJob, Result<Box<(Plan, Progress)>, Halt>),
    Read { run: u64, feed: Feed<S>, bytes: usize, purpose: For, result: Result<Vec<Piece>, SourceError> },
    Stored { run: u64, bytes: usize, result: Result<Vec<Seen>, String> },
    Opened { run: u64, bytes: usize, calls: usize, seen: Vec<Seen> },
    Called { run: u64, sealing: Vec<B256>, result: Result<Vec<Seen>, String> },
}

/// The outbox worker.
pub struct Publisher<O, S: Source, C, K = SystemClock> {
    context: Arc<Context<O, S, C, K>>,
    wake: Arc<Notify>,
    active: BTreeMap<u64, Active<S>>,
    runs: u64,
    /// Whose turn it is for bulk work: runs after this one come first.
    turn: u64,
    queue: VecDeque<StudyJob>,
    /// Studies left alone until a moment.
    parked: HashMap<B256, u64>,
    scanning: bool,
    scan_at_ms: u64,
    planning: Option<B256>,
    transactions: usize,
    bytes: usize,
    under_way: FuturesUnordered<BoxFuture<'static, Done<S>>>,
}

impl<O, S: Source, C, K> std::fmt::Debug for Publisher<O, S, C, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("active", &self.active.len()).finish_non_exhaustive()
    }
}

impl<O: Outbox, S: Source, C: Chain, K: Clock> Publisher<O, S, C, K> {
    /// A publisher that has done nothing yet.
    pub fn new(outbox: Arc<O>, source: Arc<S>, chain: C, clock: K, config: PublishConfig) -> Self {
        let (status, _) = watch::channel(PublishStatus::default());
        Self {
            context: Arc::new(Context { outbox, source, chain, clock, config, status }),
            wake: Arc::default(),
            active: BTreeMap::new(),
            runs: 0,
            turn: 0,
            queue: VecDeque::new(),
            parked: HashMap::new(),
            scanning: false,
            scan_at_ms: 0,
            planning: None,
            transactions: 0,
            bytes: 0,
            under_way: FuturesUnordered::new(),
        }
    }

    /// Progress as it is made.
    pub fn status(&self) -> watch::Receiver<PublishStatus> {
        self.context.status.subscribe()
    }

    /// Notify this when a study has settled: the outbox is then scanned at once.
    pub fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Publishes until it is stopped. Stopping, like a crash, loses nothing: what was begun is found on chain the next time.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.hand_out();
            let now = self.context.clock.now_ms();
            let until_scan = if self.scanning { u64::MAX / 2 } else { self.scan_at_ms.saturating_sub(now) };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => self.take(done),
                () = self.wake.notified() => self.scan_at_ms = 0,
                () = self.context.clock.sleep_ms(until_scan.clamp(1, self.context.config.scan_ms.max(1))) => {}
            }
        }
    }

    // ---- what to begin -------------------------------------------------------------------------------------------------

    fn hand_out(&mut self) {
        self.begin_scan();
        self.begin_plan();
        let urgent_waits = self.hand_out_lane(Lane::Urgent);
        if !urgent_waits {
            self.hand_out_lane(Lane::Bulk);
        }
        let (transactions, bytes) = (self.transactions, self.bytes);
        self.context.status.send_if_modified(|s| {
            let changed = (s.transactions, s.bytes) != (transactions, bytes);
            (s.transactions, s.bytes) = (transactions, bytes);
            changed
        });
    }

    fn begin_scan(&mut self) {
        let now = self.context.clock.now_ms();
        if self.scanning || now < self.scan_at_ms {
            return;
        }
        self.scanning = true;
        self.scan_at_ms = now + self.context.config.scan_ms;
        let context = self.context.clone();
        self.under_way.push(Box::pin(async move { Done::Scanned(context.scan().await) }));
    }

    /// One plan at a time: planning seals a whole study to learn its roots.
    fn begin_plan(&mut self) {
        if self.planning.is_some() || self.active.len() >= self.context.config.studies_max {
            return;
        }
        let Some(job) = self.queue.pop_front() else { return };
        self.planning = Some(job.study);
        let context = self.context.clone();
        self.under_way.push(Box::pin(async move { Done::Planned(job, context.prepare(&job).await.map(Box::new)) }));
    }

    /// Gives every study its turn in a lane until nothing more is to be done or the window is full; true in the latter case.
    fn hand_out_lane(&mut self, lane: Lane) -> bool {
        loop {
            let later = self.active.range(self.turn + 1..).map(|(run, _)| *run);
            let order: Vec<u64> = later.chain(self.active.range(..=self.turn).map(|(run, _)| *run)).collect();
            let mut moved = false;
            for run in order {
                let Some(step) = self.next_step(run, lane) else { continue };
                if !self.room(lane) {
                    return true;
                }
                self.begin(run, step);
                self.turn = run;
                moved = true;
            }
            if !moved {
                return false;
            }
        }
    }

    fn next_step(&mut self, run: u64, lane: Lane) -> Option<Step> {
        let (bytes_max, overhead_bytes) = self.context.chain.payload_bytes_max();
        // Where bytes are dear, as little as a few transactions carry.
        let of_calls = AHEAD_CALLS_MAX.saturating_mul(u64::try_from(bytes_max).unwrap_or(u64::MAX));
        let ahead_bytes_max = self.context.config.ahead_bytes.min(of_calls);
        let active = self.active.get_mut(&run)?;
        let idle = &mut active.idle[lane as usize];
        if *idle {
            return None;
        }
        let step = active.work.next_step(lane, Fit { bytes_max, overhead_bytes, ahead_bytes_max });
        *idle = step == Step::Wait;
        (!*idle).then_some(step)
    }

    fn room(&self, lane: Lane) -> bool {
        let config = &self.context.config;
        let (bytes_max, transactions_max) = match lane {
            Lane::Urgent => (config.window_bytes + config.urgent_bytes, config.transactions_max + 8),
            Lane::Bulk => (config.window_bytes, config.transactions_max),
        };
        self.transactions == 0 || (self.bytes < bytes_max && self.transactions < transactions_max)
    }

    fn begin(&mut self, run: u64, step: Step) {
        let Some(active) = self.active.get_mut(&run) else { return };
        active.work.begin(&step);
        let (context, job) = (self.context.clone(), active.job);
        let effect = match step {
            Step::Define => Effect::Define(active.work.plan.owner.clone(), active.work.plan.derived_from),
            Step::Seal(seals) => Effect::Seal(seals),
            Step::Announce(amendment) => Effect::Announce(amendment),
            Step::Finish => Effect::Finish,
            Step::Store(wanted) => return self.begin_read(run, wanted, For::Store),
            Step::Open { pieces, whole } => {
                let calls = self.calls_of(run, &pieces);
                return self.begin_read(run, pieces, For::Open { whole, calls });
            }
            Step::Wait => return,
        };
        self.transactions += 1;
        let sealing = match &effect {
            Effect::Seal(seals) => seals.iter().map(|seal| seal.image).collect(),
            _ => Vec::new(),
        };
        let call = async move { Done::Called { run, sealing, result: context.until_seen(&job, &effect).await } };
        self.under_way.push(Box::pin(call));
    }

    /// About so many transactions carry a study that is sent at once: its definition, its pieces, what ends images before and after the
    /// announcement, and that.
    fn calls_of(&self, run: u64, pieces: &[PieceRef]) -> usize {
        let (bytes_max, overhead_bytes) = self.context.chain.payload_bytes_max();
        let Some(Active { work, .. }) = self.active.get(&run) else { return 1 };
        let size = |p: &PieceRef| work.plan.images.get(p.image).map_or(0, |i| i.bytes_of(p.index));
        let bytes = usize::try_from(pieces.iter().map(size).sum::<u64>()).unwrap_or(usize::MAX);
        4 + bytes.saturating_add(pieces.len() * overhead_bytes).div_ceil(bytes_max.max(1))
    }

    fn begin_read(&mut self, run: u64, wanted: Vec<PieceRef>, purpose: For) {
        let Some(active) = self.active.get_mut(&run) else { return };
        let Some(mut feed) = active.feed.take() else { return };
        let plan = &active.work.plan;
        let size = |p: &PieceRef| plan.images.get(p.image).map_or(0, |i| i.bytes_of(p.index));
        let bytes = usize::try_from(wanted.iter().map(size).sum::<u64>()).unwrap_or(usize::MAX);
        self.bytes += bytes;
        self.transactions += purpose.calls();
        let (source, job, plan) = (self.context.source.clone(), active.job, active.work.plan.clone());
        self.under_way.push(Box::pin(async move {
            let result = feed.read(&source, &job, &plan, &wanted).await;
            Done::Read { run, feed, bytes, purpose, result }
        }));
    }

    // ---- what has ended ------------------------------------------------------------------------------------------------

    fn take(&mut self, done: Done<S>) {
        match done {
            Done::Scanned(jobs) => self.scanned(jobs),
            Done::Planned(job, result) => self.planned(job, result),
            Done::Read { run, feed, bytes, purpose, result } => self.was_read(run, feed, bytes, purpose, result),
            Done::Opened { run, bytes, calls, seen } => {
                self.bytes -= bytes;
                // One of them is counted as the others are.
                self.transactions -= calls - 1;
                if let Some(active) = self.active.get_mut(&run) {
                    active.work.opened();
                }
                self.count_stored(&seen);
                self.ended(run, Ok(seen));
            }
            Done::Stored { run, bytes, result } => {
                self.bytes -= bytes;
                self.count_stored(result.as_deref().unwrap_or_default());
                self.ended(run, result);
            }
            Done::Called { run, sealing, result } => {
                if let Some(active) = self.active.get_mut(&run) {
                    if sealing.is_empty() {
                        active.work.called()
                    } else {
                        active.work.sealed(&sealing)
                    }
                    active.idle = [false; 2];
                }
                self.ended(run, result);
            }
        }
    }

    fn scanned(&mut self, jobs: Vec<StudyJob>) {
        self.scanning = false;
        let now = self.context.clock.now_ms();
        self.parked.retain(|_, until| *until > now);
        let mut known: HashSet<B256> = self.active.values().map(|a| a.job.study).chain(self.planning).collect();
        self.queue.clear();
        for job in jobs {
            if known.insert(job.study) && !self.parked.contains_key(&job.study) {
                self.show_queued(&job, now);
                self.queue.push_back(job);
            }
        }
    }

    fn planned(&mut self, job: StudyJob, result: Result<Box<(Plan, Progress)>, Halt>) {
        self.planning = None;
        match result {
            Ok(planned) => {
                let work = Work::new(planned.0, planned.1);
                self.runs += 1;
                self.active.insert(self.runs, Active { job, work, feed: Some(Feed::default()), idle: [false; 2] });
                self.show(self.runs);
            }
            Err(halt) => self.park(job, halt),
        }
    }

    fn was_read(
        &mut self,
        run: u64,
        feed: Feed<S>,
        bytes: usize,
        purpose: For,
        result: Result<Vec<Piece>, SourceError>,
    ) {
        let release = |publisher: &mut Self| {
            publisher.bytes -= bytes;
            publisher.transactions -= purpose.calls();
        };
        let Some(active) = self.active.get_mut(&run) else { return release(self) };
        active.feed = Some(feed);
        if matches!(purpose, For::Store) {
            active.work.read();
        }
        active.idle = [false; 2];
        let job = active.job;
        match result {
            Ok(pieces) => {
                let context = self.context.clone();
                let opening = match purpose {
                    For::Store => None,
                    // A plan without a manifest was refused before.
                    For::Open { whole, .. } => active.work.opening(pieces.clone(), whole),
                };
                let (plan, progress) = (active.work.plan.clone(), active.work.progress.clone());
                self.under_way.push(Box::pin(async move {
                    match opening {
                        Some(opening) => {
                            let seen = context.open(&job, &opening, &plan, &progress).await;
                            Done::Opened { run, bytes, calls: purpose.calls(), seen }
                        }
                        None => {
                            let result = context.until_seen(&job, &Effect::Store(pieces)).await;
                            Done::Stored { run, bytes, result }
                        }
                    }
                }));
            }
            Err(error) => {
                let less = matches!(purpose, For::Open { whole, .. } if active.work.unread(whole));
                release(self);
                if less {
                    tracing::debug!(study = %job.study, %error, "the objects of a study cannot be read now");
                } else {
                    self.active.remove(&run);
                    self.park(job, error.into());
                }
            }
        }
    }

    fn ended(&mut self, run: u64, result: Result<Vec<Seen>, String>) {
        self.transactions -= 1;
        let Some(active) = self.active.get_mut(&run) else { return };
        match result {
            Ok(seen) => {
                seen.iter().for_each(|s| active.work.progress.apply(s));
                active.idle = [false; 2];
                self.show(run);
                if self.active.get(&run).is_some_and(|a| a.work.finished()) {
                    self.active.remove(&run);
                    // A later version may have come while this one was under way.
                    self.scan_at_ms = 0;
                }
            }
            Err(reason) => {
                let job = active.job;
                self.active.remove(&run);
                self.park(job, Halt::Blocked(reason));
            }
        }
    }

    /// Leaves a study alone for a while. Nothing is lost: the outbox still has it.
    fn park(&mut self, job: StudyJob, halt: Halt) {
        let config = &self.context.config;
        let (blocked, reason, wait) = match halt {
            Halt::Later(why) => (false, why, config.scan_ms.saturating_mul(2).min(config.blocked_retry_ms)),
            Halt::Blocked(why) => (true, why, config.blocked_retry_ms),
        };
        tracing::warn!(study = %job.study, version = job.version, blocked, %reason, "a study is not published for now");
        self.parked.insert(job.study, self.context.clock.now_ms() + wait);
        self.context.status.send_modify(|s| {
            if let Some(study) = s.studies.get_mut(&job.study) {
                study.stage = if blocked { Stage::Blocked } else { Stage::Queued };
                study.trouble = Some(reason);
            }
        });
    }

    // ---- what people see -----------------------------------------------------------------------------------------------

    fn show_queued(&self, job: &StudyJob, now: u64) {
        self.context.status.send_if_modified(|s| {
            if s.studies.get(&job.study).is_some_and(|k| k.version == job.version && k.stage != Stage::Blocked) {
                return false;
            }
            forget_some(s);
            let fresh = StudyStatus {
                version: job.version,
                stage: Stage::Queued,
                pieces_seen: 0,
                pieces: 0,
                viewable_after_ms: None,
                final_after_ms: None,
                trouble: None,
                started_ms: now,
            };
            s.studies.insert(job.study, fresh);
            true
        });
    }

    fn count_stored(&self, seen: &[Seen]) {
        let pieces = |seen: &Seen| if let Seen::Stored(located) = seen { located.len() as u64 } else { 0 };
        let stored: u64 = seen.iter().map(pieces).sum();
        self.context.status.send_if_modified(|s| {
            s.stored += stored;
            stored > 0
        });
    }

    fn show(&self, run: u64) {
        let Some(Active { job, work, .. }) = self.active.get(&run) else { return };
        let now = self.context.clock.now_ms();
        let (pieces_seen, pieces) = (work.pieces_seen(), work.plan.pieces());
        let stage = match (work.finished(), work.viewable()) {
            (true, _) => Stage::Final,
            (false, true) => Stage::Viewable,
            (false, false) => Stage::Opening,
        };
        self.context.status.send_modify(|s| {
            let Some(study) = s.studies.get_mut(&job.study) else { return };
            let after = now.saturating_sub(study.started_ms);
            if study.viewable_after_ms.is_none() && stage >= Stage::Viewable {
                tracing::info!(study = %job.study, version = job.version, after_ms = after, "a study is viewable from the ledger");
                study.viewable_after_ms = Some(after);
            }
            if study.final_after_ms.is_none() && stage == Stage::Final {
                tracing::info!(study = %job.study, version = job.version, after_ms = after, pieces, "a study is on the ledger");
                study.final_after_ms = Some(after);
            }
            (study.stage, study.pieces_seen, study.pieces, study.trouble) = (stage, pieces_seen, pieces, None);
        });
    }
}

fn forget_some(status: &mut PublishStatus) {
    if status.studies.values().filter(|k| k.stage == Stage::Final).count() > FINISHED_KEPT {
        let oldest = status.studies.iter().filter(|(_, k)| k.stage == Stage::Final).min_by_key(|(_, k)| k.started_ms);
        if let Some(study) = oldest.map(|(study, _)| *study) {
            status.studies.remove(&study);
        }
    }
}

impl<O: Outbox, S: Source, C: Chain, K: Clock> Context<O, S, C, K> {
    async fn scan(&self) -> Vec<StudyJob> {
        match self.outbox.due().await {
            Ok(jobs) => {
                self.trouble(None);
                jobs
            }
            Err(error) => {
                self.trouble(Some(crate::chain_of(&error)));
                Vec::new()
            }
        }
    }

    fn trouble(&self, trouble: Option<String>) {
        self.status.send_if_modified(|s| {
            let changed = s.trouble != trouble;
            if let Some(why) = trouble.as_ref().filter(|_| changed) {
                tracing::warn!(%why, "publishing is held up");
            }
            s.trouble = trouble;
            changed
        });
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(100, self.config.retry_ms_max)
    }

    async fn pause(&self, backoff: &mut Backoff, why: String) {
        self.trouble(Some(why));
        let wait = backoff.next_ms(&self.clock);
        self.clock.sleep_ms(wait).await;
    }

    /// Does something to the chain until its effect was seen, then records that until it is durable. The error is a refusal.
    async fn until_seen(&self, job: &StudyJob, effect: &Effect) -> Result<Vec<Seen>, String> {
        let mut backoff = self.backoff();
        let seen = loop {
            match self.perform(job, effect).await {
                Ok(seen) => break seen,
                Err(ChainError::Refused(why)) => return Err(why),
                Err(ChainError::Later(why)) => self.pause(&mut backoff, why).await,
            }
        };
        self.record(job, &seen).await;
        Ok(seen)
    }

    /// Sends everything at once; where that does not work, what is there counts, and the rest goes step by step.
    async fn open(&self, job: &StudyJob, opening: &Opening, plan: &Plan, progress: &Progress) -> Vec<Seen> {
        let wanted = || self.outbox.wants(job);
        let seen = match self.chain.open(opening, &wanted).await {
            Ok(located) => {
                let seals = opening.urgent.seals.iter().chain(&opening.rest.seals);
                let sealed = seals.map(|seal| seal.image).collect();
                let announced = Seen::Announced(opening.amendment.version);
                vec![Seen::Defined, Seen::Stored(located), Seen::Sealed(sealed), announced]
            }
            Err(error) => {
                tracing::info!(study = %job.study, %error, "a study goes onto the ledger step by step");
                self.look(plan, progress).await.unwrap_or_default()
            }
        };
        if !seen.is_empty() {
            self.record(job, &seen).await;
        }
        seen
    }

    async fn perform(&self, job: &StudyJob, effect: &Effect) -> Result<Vec<Seen>, ChainError> {
        match effect {
            Effect::Define(owner, derived_from) => {
                self.chain.define(job.study, owner, *derived_from).await.map(|()| vec![Seen::Defined])
            }
            Effect::Store(pieces) => self.chain.store(pieces).await.map(|located| vec![Seen::Stored(located)]),
            Effect::Seal(seals) => {
                self.chain.seal(seals).await?;
                Ok(vec![Seen::Sealed(seals.iter().map(|s| s.image).collect())])
            }
            Effect::Announce(a) => self.chain.announce(a).await.map(|()| vec![Seen::Announced(a.version)]),
            Effect::Finish => Ok(vec![Seen::Finished(job.version)]),
        }
    }

    async fn record(&self, job: &StudyJob, seen: &[Seen]) {
        let mut backoff = self.backoff();
        while let Err(error) = self.outbox.record(job, seen).await {
            self.pause(&mut backoff, crate::chain_of(&error)).await;
        }
        self.trouble(None);
    }

    /// Plans a study and finds out what of it is on chain already.
    async fn prepare(&self, job: &StudyJob) -> Result<(Plan, Progress), Halt> {
        let plan = self.source.plan(job).await?;
        if let Some(fault) = plan.fault() {
            return Err(Halt::Blocked(fault));
        }
        let progress = self.outbox.progress(job).await;
        let mut progress = progress.map_err(|e| Halt::Later(crate::chain_of(&e)))?;
        let seen = self.look(&plan, &progress).await.map_err(|e| match e {
            ChainError::Later(why) => Halt::Later(why),
            ChainError::Refused(why) => Halt::Blocked(why),
        })?;
        if !seen.is_empty() {
            self.record(job, &seen).await;
            seen.iter().for_each(|s| progress.apply(s));
        }
        Ok((plan, progress))
    }

    /// What the chain holds and the outbox does not know: the effects of a run that ended between doing and recording.
    async fn look(&self, plan: &Plan, progress: &Progress) -> Result<Vec<Seen>, ChainError> {
        let mut seen = Vec::new();
        if !progress.defined {
            if !self.chain.defined(plan.study).await? {
                return Ok(seen);
            }
            seen.push(Seen::Defined);
        }
        for planned in plan.images.iter().filter(|i| !progress.sealed(&i.image)) {
            let there = self.chain.image(planned.image).await?;
            let mut known = progress.images.get(&planned.image).cloned().unwrap_or_default();
            if there.stored > known.count() {
                let found = self.chain.find(planned.image).await?;
                found.iter().for_each(|piece| known.insert(piece.index));
                seen.push(Seen::Stored(found));
            }
            match there.sealed {
                None => {}
                // It was sent ahead, and where some of its pieces are must still be found.
                Some(_) if known.count() < planned.pieces => {}
                Some(sealed) if sealed == (planned.pieces, planned.root) => {
                    seen.push(Seen::Sealed(vec![planned.image]))
                }
                Some(_) => return Err(ChainError::Refused(format!("image {} is sealed differently", planned.image))),
            }
        }
        Ok(seen)
    }
}
