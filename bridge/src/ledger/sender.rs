//! The one owner of a signing key. It gives out nonces, makes every transaction durable before a node sees it, offers them in
//! nonce order, follows the chain until each is deep enough, and starts again from the journal and the node after any failure.
//! It must not know what the calls mean.
//!
//! One task drives it ([`Driver::run`]); everybody else holds a [`Sender`]. What a crash leaves behind, by moment: before `append`
//! returned, nothing that was sent; after it, a record whose bytes are offered again. A repeat is the same transaction, so the
//! chain executes it once.

use super::follower::{Follower, Look};
use super::forks::Seen;
use super::journal::{Journal, JournalError};
use super::node::{Backoff, Block, Clock, Node, NodeError, Offer};
use super::slots::{InFlight, Placed, Record, Slots};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Gas of a transfer without calldata.
pub const TRANSFER_GAS: u64 = 21_000;

/// A contract call to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Callee.
    pub to: Address,
    /// Calldata.
    pub data: Bytes,
    /// Gas limit.
    pub gas: u64,
    /// Wei that go with it.
    pub value: U256,
}

impl Call {
    /// Tells calls apart; a call with the same id in flight is not sent twice.
    pub fn id(&self) -> B256 {
        // Never leaves this machine, so it may be the hash for which processors have instructions.
        let digest = Sha256::new().chain_update(self.to).chain_update(self.value.to_be_bytes::<32>());
        let digest = digest.chain_update(&self.data).finalize();
        B256::from_slice(&digest)
    }
}

/// Everything that is signed.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// The call.
    pub call: Call,
    /// Account nonce.
    pub nonce: u64,
    /// Most that may be paid, wei per gas (EIP-1559).
    pub fee_max: u128,
    /// What the sealer gets, wei per gas (EIP-1559).
    pub tip: u128,
}

/// Turns calls into transactions of one account.
pub trait Sign: Send + Sync + 'static {
    /// The account.
    fn account(&self) -> Address;
    /// What a raw transaction of this account says; none when it is not one of [`Sign::sign`].
    fn read(&self, raw: &Bytes) -> Option<Unsigned>;
    /// Signs; the answer is the raw transaction.
    fn sign(&self, unsigned: &Unsigned) -> impl Future<Output = Result<Bytes, SendError>> + Send;
}

/// Why a call did not become final.
#[derive(Debug, Clone, Error)]
pub enum SendError {
    /// The node will never take this transaction.
    #[error("transaction refused: {0}")]
    Refused(String),
    /// Another transaction of the same key has taken the nonce: a second program uses the key.
    #[error("the nonce was used by a transaction that is not ours; is the key used elsewhere?")]
    Displaced,
    /// The sender started again or is gone; look at the chain and send again.
    #[error("the sender was interrupted")]
    Interrupted,
    /// The call that was waited for is not on its way: look at the chain.
    #[error("the call is not on its way")]
    NotInFlight,
    /// The signer does not answer; send again later.
    #[error("{0}")]
    SignerAway(String),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// How the sender behaves.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// A transaction is final when its block has this many blocks from the tip, itself included. At least 1.
    pub depth: u64,
    /// How often the node is asked for a new head.
    pub poll_ms: u64,
    /// Transactions in flight at most.
    pub in_flight_max: usize,
    /// Bytes in flight at most; a larger transaction goes alone.
    pub in_flight_bytes_max: usize,
    /// After so long without any of ours entering a block, everything is offered again.
    pub resend_ms: u64,
    /// Least tip, wei per gas. Zero is never gossiped by geth.
    pub tip_wei: u128,
    /// Added to twice the base fee; costs nothing while the base fee is low.
    pub fee_headroom_wei: u128,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            depth: 1,
            poll_ms: 50,
            in_flight_max: 64,
            in_flight_bytes_max: 8 << 20,
            resend_ms: 2_000,
            tip_wei: 1,
            fee_headroom_wei: 1_000_000_000,
        }
    }
}

/// What a block of 40 million gas takes of pieces as calldata, and some more.
const BLOCK_BYTES: usize = 3 << 20;
/// Transactions with pieces in such a block, and some more.
const BLOCK_TRANSACTIONS: usize = 32;

/// Blocks' worth that must be on their way at once so that no block on a network goes by unfilled: a transaction is passed on to whoever makes the next
/// block, which is filled when the one before it comes, and waits until its own is deep enough.
fn blocks_ahead(depth: u64) -> usize {
    usize::try_from(depth.clamp(1, 16)).unwrap_or(1) + 3
}

/// Bytes and transactions that a network is given at once.
pub(crate) fn network_window(depth: u64) -> (usize, usize) {
    (blocks_ahead(depth) * BLOCK_BYTES, blocks_ahead(depth) * BLOCK_TRANSACTIONS)
}

impl SenderConfig {
    /// For a network with its own pace.
    #[must_use]
    pub fn network(depth: u64, poll_ms: u64) -> Self {
        let (in_flight_bytes_max, in_flight_max) = network_window(depth);
        // Blocks may be seconds apart, and all of it is offered again.
        let resend_ms = 5_000;
        Self { depth, poll_ms, in_flight_max, in_flight_bytes_max, resend_ms, ..Self::default() }
    }
}

/// What the sender is doing, for health pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Transactions that are not final.
    pub pending: usize,
    /// Height of the branch that is followed.
    pub tip: Option<u64>,
    /// Timestamp of the tip, seconds since 1970.
    pub tip_unix_s: u64,
    /// Why nothing moves at the moment, if so.
    pub trouble: Option<String>,
}

/// So many resynchronisations in a row must find a gap of nonces at one place before it is filled.
const GAP_SEEN_MIN: u32 = 5;

struct Submit {
    /// None: only to wait for the one that is in flight.
    call: Option<Call>,
    id: B256,
    reply: Reply,
    /// Whether a call failed on which this one counts; none where it counts on no other.
    broken: Option<Arc<AtomicBool>>,
}

impl Submit {
    fn is_broken(&self) -> bool {
        self.broken.as_ref().is_some_and(|broken| broken.load(Ordering::Relaxed))
    }
}

fn break_all(bundles: &[Arc<AtomicBool>]) {
    bundles.iter().for_each(|broken| broken.store(true, Ordering::Relaxed));
}

type Reply = oneshot::Sender<Result<Placed, SendError>>;

/// A handle to the sender.
#[derive(Debug, Clone)]
pub struct Sender {
    queue: mpsc::Sender<Submit>,
    status: watch::Receiver<SenderStatus>,
    in_flight: InFlight,
    reader: Reader,
}

/// What a signed transaction calls.
type Read = dyn Fn(&Bytes) -> Option<Call> + Send + Sync;

/// Reads signed transactions of this account.
#[derive(Clone)]
struct Reader(Arc<Read>);

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader")
    }
}

impl Sender {
    /// Sends a call and waits until it is final. A call that is in flight already is not sent again: both wait for the one.
    pub async fn send(&self, call: Call) -> Result<Placed, SendError> {
        let (reply, answer) = oneshot::channel();
        let id = call.id();
        self.submit(Submit { call: Some(call), id, reply, broken: None }, answer).await
    }

    /// Waits until a call that is in flight is final, by its id. [`SendError::NotInFlight`] where it is not, which may be because it is final.
    pub async fn wait_for(&self, id: B256) -> Result<Placed, SendError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Submit { call: None, id, reply, broken: None }, answer).await
    }

    async fn submit(
        &self,
        submit: Submit,
        answer: oneshot::Receiver<Result<Placed, SendError>>,
    ) -> Result<Placed, SendError> {
        self.queue.send(submit).await.map_err(|_| SendError::Interrupted)?;
        answer.await.map_err(|_| SendError::Interrupted)?
    }

    /// Sends calls that count on each other, one after the other without a wait between them, and waits until all are final. The answers are in
    /// the order of the calls, which is that of their nonces, except for a call that is in flight already: that has an earlier one. What comes
    /// after a call that cannot be signed or made durable is not sent. `taken` is told when the first is on its way: whatever is sent from then on comes after it.
    pub async fn send_all(&self, calls: Vec<Call>, taken: impl FnOnce()) -> Vec<Result<Placed, SendError>> {
        let mut taken = Some(taken);
        let broken: Arc<AtomicBool> = Arc::default();
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls {
            let (reply, answer) = oneshot::channel();
            let id = call.id();
            let sent = self.queue.send(Submit { call: Some(call), id, reply, broken: Some(broken.clone()) }).await;
            if let Some(taken) = taken.take_if(|_| sent.is_ok()) {
                taken();
            }
            answers.push(sent.map(|()| answer).map_err(|_| SendError::Interrupted));
        }
        let mut placed = Vec::with_capacity(answers.len());
        for answer in answers {
            placed.push(match answer {
                Ok(answer) => answer.await.unwrap_or(Err(SendError::Interrupted)),
                Err(error) => Err(error),
            });
        }
        placed
    }

    /// What the sender is doing.
    pub fn status(&self) -> watch::Receiver<SenderStatus> {
        self.status.clone()
    }

    /// What it has made durable and sends until it is final.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// What a signed transaction in flight calls; none when it is not one of this account's.
    pub fn read(&self, raw: &Bytes) -> Option<Call> {
        (self.reader.0)(raw)
    }
}

/// The task behind a [`Sender`].
pub struct Driver<N, J, S, K> {
    node: N,
    journal: J,
    signer: Arc<S>,
    clock: K,
    config: SenderConfig,
    wake: Arc<Notify>,
    queue: mpsc::Receiver<Submit>,
    closed: bool,
    held: VecDeque<Submit>,
    waiting: HashMap<u64, Vec<Reply>>,
    slots: Slots,
    in_flight: InFlight,
    follower: Follower,
    tip: Option<Block>,
    resend: Backoff,
    resend_at_ms: u64,
    offer_at_ms: u64,
    /// The nonce at which the node waited for us, and how often in a row.
    gap_seen: Option<(u64, u32)>,
    offer_backoff: Backoff,
    status: watch::Sender<SenderStatus>,
    /// Who writes down which blocks left the chain.
    forks: Option<mpsc::UnboundedSender<Seen>>,
}

impl<N, J, S, K> std::fmt::Debug for Driver<N, J, S, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("pending", &self.slots.count()).finish_non_exhaustive()
    }
}

/// Why one life of the driver ended.
enum End {
    Closed,
    Journal(JournalError),
}

impl From<JournalError> for End {
    fn from(e: JournalError) -> Self {
        Self::Journal(e)
    }
}

/// A sender and the driver that must be run for it. `wake` shortens the wait for a new head.
pub fn sender<N: Node, J: Journal, S: Sign, K: Clock>(
    node: N,
    journal: J,
    signer: S,
    clock: K,
    config: SenderConfig,
    wake: Arc<Notify>,
) -> (Sender, Driver<N, J, S, K>) {
    let (queue_in, queue) = mpsc::channel(4);
    let (status, status_out) = watch::channel(SenderStatus::default());
    let resend = Backoff::new(config.resend_ms, config.resend_ms.saturating_mul(16));
    let driver = Driver {
        node,
        journal,
        signer: Arc::new(signer),
        clock,
        config,
        wake,
        queue,
        closed: false,
        held: VecDeque::new(),
        waiting: HashMap::new(),
        slots: Slots::default(),
        in_flight: InFlight::default(),
        follower: Follower::default(),
        tip: None,
        resend,
        resend_at_ms: 0,
        offer_at_ms: 0,
        gap_seen: None,
        offer_backoff: Backoff::new(50, 10_000),
        status,
        forks: None,
    };
    let in_flight = driver.in_flight.clone();
    let signer = driver.signer.clone();
    let reader = Reader(Arc::new(move |raw| signer.read(raw).map(|unsigned| unsigned.call)));
    (Sender { queue: queue_in, status: status_out, in_flight, reader }, driver)
}

impl<N: Node, J: Journal, S: Sign, K: Clock> Driver<N, J, S, K> {
    /// Has it told which blocks leave the chain; nothing waits for that.
    #[must_use]
    pub fn telling(mut self, forks: mpsc::UnboundedSender<Seen>) -> Self {
        self.forks = Some(forks);
        self
    }

    fn tell(&self, seen: Seen) {
        if let Some(forks) = &self.forks {
            // Who no longer writes it down has said why.
            let _ = forks.send(seen);
        }
    }

    /// Tells of blocks, newest first from the tip on, that left the chain.
    fn tell_left(&self, blocks: &[(u64, B256)]) {
        for ((number, hash), depth) in blocks.iter().zip(1..) {
            self.tell(Seen::Left { number: *number, hash: *hash, depth });
        }
    }

    /// Runs until every [`Sender`] is gone; what is in flight then stays in the journal. A failing journal ends a life, not the
    /// driver: everything in memory is forgotten and loaded again.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(100, 30_000);
        loop {
            match self.life(&mut backoff).await {
                End::Closed => return,
                End::Journal(error) => {
                    let trouble = crate::chain_of(&error);
                    tracing::error!(%trouble, "the journal of the ledger key failed; loading it again");
                    self.forget(trouble);
                    if self.queue.is_closed() {
                        return;
                    }
                    let wait = backoff.next_ms(&self.clock);
                    self.clock.sleep_ms(wait).await;
                }
            }
        }
    }

    fn forget(&mut self, trouble: String) {
        self.waiting.clear();
        self.slots = Slots::default();
        self.in_flight.forget();
        self.tip = None;
        self.status.send_modify(|s| s.trouble = Some(trouble));
    }

    async fn life(&mut self, backoff: &mut Backoff) -> End {
        if let Err(end) = self.load().await {
            return end;
        }
        loop {
            match self.turn().await {
                Ok(true) => return End::Closed,
                Ok(false) => backoff.reset(),
                Err(end) => return end,
            }
        }
    }

    /// One turn: take on, offer, look at the chain, answer, wait. True when there is nothing left to live for.
    async fn turn(&mut self) -> Result<bool, End> {
        self.admit().await?;
        let followed = self.follow().await;
        self.answer_final().await?;
        self.stalled().await?;
        self.offer().await?;
        self.report(followed.err());
        self.rest().await;
        Ok(self.closed)
    }

    /// Journal, then node: everything that is not final is looked up and, where no block has it, offered again in order.
    async fn load(&mut self) -> Result<(), End> {
        let loaded = self.journal.load().await?;
        let (nonce, branch) = self.first_contact().await?;
        self.slots = Slots::load(loaded.records, loaded.next, nonce).shown_in(&self.in_flight);
        self.begin_at(branch);
        if self.slots.count() > 0 {
            tracing::info!(count = self.slots.count(), "taking up transactions of an earlier run");
        }
        self.resync_soon();
        self.offer_at_ms = 0;
        // Look before offering: what is in a block already needs no second offer. A failure here is made up for later.
        let _ = self.look_up_unplaced().await;
        Ok(())
    }

    async fn first_contact(&mut self) -> Result<(u64, Vec<Block>), End> {
        let mut backoff = Backoff::new(100, 10_000);
        loop {
            let error = match self.look_around().await {
                Ok(both) => return Ok(both),
                Err(e) => e,
            };
            if self.queue.is_closed() {
                return Err(End::Closed);
            }
            self.status.send_modify(|s| s.trouble = Some(error.to_string()));
            let wait = backoff.next_ms(&self.clock);
            self.clock.sleep_ms(wait).await;
        }
    }

    async fn look_around(&self) -> Result<(u64, Vec<Block>), NodeError> {
        let nonce = self.node.nonce(self.signer.account()).await?;
        let head = self.node.head().await?;
        Ok((nonce, self.with_ancestors(head).await?))
    }

    /// A head and, newest first, as many ancestors as a transaction needs to become final: whatever lies deeper is final.
    async fn with_ancestors(&self, head: Block) -> Result<Vec<Block>, NodeError> {
        let mut branch = vec![head];
        while (branch.len() as u64) < self.config.depth {
            let Some(oldest) = branch.last().filter(|b| b.number > 0) else { break };
            match self.node.block(oldest.parent).await? {
                Some(block) => branch.push(block),
                None => return Err(NodeError::Unavailable("a block's parent is not there yet".into())),
            }
        }
        Ok(branch)
    }

    fn begin_at(&mut self, mut branch: Vec<Block>) {
        self.follower = Follower::begin(&branch);
        if let Some((number, _)) = self.follower.tip() {
            self.tell(Seen::Begin(number));
        }
        self.tip = (!branch.is_empty()).then(|| branch.swap_remove(0));
    }

    /// Takes queued calls into slots while the window has room: signs them, makes the whole batch durable, then owns them.
    async fn admit(&mut self) -> Result<(), End> {
        self.drain_queue();
        let mut records: Vec<Record> = Vec::new();
        let mut replies: Vec<(u64, Reply)> = Vec::new();
        let mut bundles: Vec<Arc<AtomicBool>> = Vec::new();
        let mut fresh: HashMap<B256, u64> = HashMap::new();
        let (mut count, mut bytes) = (self.slots.count(), self.slots.bytes());
        while let Some(next) = self.held.front() {
            let size = next.call.as_ref().map_or(0, |call| call.data.len() + 256);
            let room = count < self.config.in_flight_max && bytes + size <= self.config.in_flight_bytes_max;
            let carried = self.slots.carrying(next.id).or_else(|| fresh.get(&next.id).copied());
            if !room && count > 0 && carried.is_none() && next.call.is_some() {
                break;
            }
            let Some(submit) = self.held.pop_front() else { break };
            if submit.is_broken() {
                drop(submit.reply.send(Err(SendError::Interrupted)));
                continue;
            }
            bundles.extend(submit.broken.clone());
            if let Some(nonce) = carried {
                replies.push((nonce, submit.reply));
                continue;
            }
            let Some(call) = submit.call else {
                drop(submit.reply.send(Err(SendError::NotInFlight)));
                continue;
            };
            let nonce = self.slots.next() + records.len() as u64;
            let signed = self.sign(call, nonce).await;
            if let (Err(_), Some(broken)) = (&signed, submit.broken) {
                break_all(&[broken]);
            }
            match signed {
                // Others would wait in vain for the same signer; there is a chain to follow meanwhile.
                Err(error @ SendError::SignerAway(_)) => {
                    drop(submit.reply.send(Err(error)));
                    break;
                }
                Err(error) => drop(submit.reply.send(Err(error))),
                Ok(raw) => {
                    (count, bytes) = (count + 1, bytes + raw.len());
                    fresh.insert(submit.id, nonce);
                    let earlier = Vec::new();
                    records.push(Record { nonce, hash: keccak256(&raw), call: submit.id, raw, earlier });
                    replies.push((nonce, submit.reply));
                }
            }
        }
        if !records.is_empty() {
            if !self.slots.any_unplaced() {
                self.resync_soon();
            }
            let kept = self.journal.append(records.clone()).await;
            if kept.is_err() {
                break_all(&bundles);
            }
            kept?;
            self.slots.admit(records);
        }
        for (nonce, reply) in replies {
            self.waiting.entry(nonce).or_default().push(reply);
        }
        Ok(())
    }

    fn drain_queue(&mut self) {
        while self.held.len() < self.config.in_flight_max {
            match self.queue.try_recv() {
                Ok(submit) => self.held.push_back(submit),
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    async fn sign(&self, call: Call, nonce: u64) -> Result<Bytes, SendError> {
        let tip = self.config.tip_wei.max(1);
        let fee_max = self.fee_max(tip);
        self.signer.sign(&Unsigned { call, nonce, fee_max, tip }).await
    }

    fn base_fee(&self) -> u128 {
        self.tip.as_ref().and_then(|b| b.base_fee).unwrap_or_default()
    }

    /// Most that a transaction signed now may pay: the base fee may double.
    fn fee_max(&self, tip: u128) -> u128 {
        let base = self.base_fee();
        base.saturating_mul(2).saturating_add(self.config.fee_headroom_wei).max(base.saturating_add(tip))
    }

    /// Signs anew what may not pay the base fee of now, for more: the same call under the same nonce. Nodes that hold the one before take it only when
    /// both of its fees are higher by a tenth; whichever gets into a block counts.
    async fn raise_fees(&mut self) -> Result<(), End> {
        let base = self.base_fee();
        if base.saturating_add(self.config.tip_wei.max(1)) <= self.config.fee_headroom_wei {
            // Nothing is ever signed for less.
            return Ok(());
        }
        let mut raised = Vec::new();
        for record in self.slots.waiting() {
            let Some(mut unsigned) = self.signer.read(&record.raw) else { continue };
            if unsigned.fee_max >= base.saturating_add(unsigned.tip) {
                continue;
            }
            let a_tenth_more = |wei: u128| wei.saturating_add(wei / 10).saturating_add(1);
            unsigned.tip = a_tenth_more(unsigned.tip);
            unsigned.fee_max = a_tenth_more(unsigned.fee_max).max(self.fee_max(unsigned.tip));
            match self.signer.sign(&unsigned).await {
                Ok(raw) => {
                    let earlier = [&record.earlier[..], &[record.hash]].concat();
                    raised.push(Record { hash: keccak256(&raw), raw, earlier, ..record });
                }
                Err(error) => {
                    tracing::warn!(%error, nonce = record.nonce, "cannot sign for a higher fee");
                    break;
                }
            }
        }
        if raised.is_empty() {
            return Ok(());
        }
        tracing::info!(
            count = raised.len(),
            base_fee_wei = base,
            "the base fee has risen: offering more for what waits"
        );
        self.journal.append(raised.clone()).await?;
        raised.into_iter().for_each(|record| self.slots.raise(record));
        self.offer_at_ms = 0;
        Ok(())
    }

    /// Offers in nonce order and stops at the first that is not taken: later nonces would only fill the node's waiting room.
    async fn offer(&mut self) -> Result<(), End> {
        if self.clock.now_ms() < self.offer_at_ms {
            return Ok(());
        }
        while let Some(record) = self.slots.to_offer() {
            let (nonce, raw) = (record.nonce, record.raw.clone());
            match self.node.offer(raw).await {
                Ok(Offer::Taken) => {
                    self.slots.offered(nonce);
                    self.offer_backoff.reset();
                }
                Ok(Offer::NonceUsed) => {
                    self.slots.offered(nonce);
                    self.resync_soon();
                }
                Ok(Offer::Never(reason)) if self.slots.refused(nonce) => self.vacate(nonce, reason).await?,
                Ok(Offer::Never(reason) | Offer::NotNow(reason)) => {
                    self.offer_later(reason);
                    break;
                }
                Err(error) => {
                    self.offer_later(error.to_string());
                    break;
                }
            }
        }
        Ok(())
    }

    fn offer_later(&mut self, trouble: String) {
        tracing::debug!(%trouble, "the node does not take transactions now");
        self.offer_at_ms = self.clock.now_ms() + self.offer_backoff.next_ms(&self.clock);
        self.status.send_modify(|s| s.trouble = Some(trouble));
    }

    /// Gives a nonce whose bytes no node takes to an empty transfer to ourselves, so that later nonces are not held up, and
    /// tells whoever waits.
    async fn vacate(&mut self, nonce: u64, reason: String) -> Result<(), End> {
        tracing::warn!(nonce, %reason, "the node will not take this transaction; its nonce is filled with an empty transfer");
        if let Some(filler) = self.filler(nonce).await {
            self.journal.append(vec![filler.clone()]).await?;
            self.slots.vacate(filler);
        }
        self.answer(nonce, &Err(SendError::Refused(reason)));
        Ok(())
    }

    async fn filler(&self, nonce: u64) -> Option<Record> {
        let call = Call { to: self.signer.account(), data: Bytes::new(), gas: TRANSFER_GAS, value: U256::ZERO };
        // The nonce is part of the id, so that two fillers are two calls.
        let id = keccak256([call.id().as_slice(), &nonce.to_be_bytes()].concat());
        match self.sign(call, nonce).await {
            Ok(raw) => Some(Record { nonce, hash: keccak256(&raw), call: id, raw, earlier: Vec::new() }),
            Err(error) => {
                tracing::error!(%error, nonce, "cannot sign an empty transfer");
                None
            }
        }
    }

    /// Moves along the chain to the newest head: first everything is fetched, then everything is applied.
    async fn follow(&mut self) -> Result<(), NodeError> {
        let head = self.node.head().await?;
        let mut branch = vec![head];
        loop {
            match self.follower.look(&branch) {
                Look::Known => return Ok(()),
                Look::Joins => break,
                Look::Lost => return self.start_over(branch.swap_remove(0)).await,
                Look::Need(hash) => match self.node.block(hash).await? {
                    Some(block) => branch.push(block),
                    None => return Err(NodeError::Unavailable("a block's parent is not there yet".into())),
                },
            }
        }
        let mut placed = Vec::new();
        for block in &branch {
            placed.extend(self.ours_in(block).await?);
        }
        let left = self.follower.join(&branch);
        for (number, gone) in &left {
            tracing::info!(number, block = %gone, "a block left the chain");
            self.slots.unplace_block(*gone);
        }
        self.tell_left(&left);
        if !placed.is_empty() {
            self.resend.reset();
            self.resync_soon();
        }
        placed.into_iter().for_each(|p| self.slots.place(p));
        self.tip = Some(branch.swap_remove(0));
        Ok(())
    }

    async fn ours_in(&self, block: &Block) -> Result<Vec<Placed>, NodeError> {
        if !block.transactions.iter().any(|t| self.slots.owns(t)) {
            return Ok(Vec::new());
        }
        let receipts = self.node.receipts(block.hash).await?;
        let receipts = receipts.ok_or_else(|| NodeError::Unavailable("receipts are not there yet".into()))?;
        let ours = receipts.iter().filter(|r| self.slots.owns(&r.transaction));
        Ok(ours.map(|r| Placed { block_hash: block.hash, block_number: block.number, ..Placed::from(r) }).collect())
    }

    /// The head has nothing in common with what we followed: begin there and look everything up again.
    async fn start_over(&mut self, head: Block) -> Result<(), NodeError> {
        tracing::info!(height = head.number, "following the chain from a new place");
        let branch = self.with_ancestors(head).await?;
        // Which of them left is not known here; whoever writes it down looks.
        self.tell_left(&self.follower.all());
        self.slots.unplace_all();
        self.begin_at(branch);
        self.look_up_unplaced().await
    }

    /// Asks for the receipt of everything that no followed block has held.
    async fn look_up_unplaced(&mut self) -> Result<(), NodeError> {
        for (_, hash) in self.slots.unplaced() {
            if let Some(receipt) = self.node.receipt(hash).await? {
                self.place_if_followed(&receipt).await?;
            }
        }
        Ok(())
    }

    /// After a start the window holds no more than what is not final. A node that is still on a branch which the others have left would show a
    /// receipt of it and the block too; by their hashes the ancestors are those of the branch we follow, whoever names them.
    async fn reach_back_to(&mut self, number: u64) -> Result<(), NodeError> {
        while let Some((oldest, hash)) = self.follower.oldest_of_more().filter(|(oldest, _)| *oldest > number) {
            let block = self.node.block(hash).await?;
            let block = block.filter(|block| block.number == oldest);
            let block = block.ok_or_else(|| NodeError::Unavailable("a block of ours is not there yet".into()))?;
            self.follower.reach_back(block.parent);
        }
        Ok(())
    }

    /// A receipt counts when its block is canonical and not above the branch we follow; the follower brings the others.
    async fn place_if_followed(&mut self, receipt: &super::node::Receipt) -> Result<(), NodeError> {
        let Some(tip) = self.tip.as_ref().map(|b| b.number) else { return Ok(()) };
        if receipt.block_number > tip {
            return Ok(());
        }
        self.reach_back_to(receipt.block_number).await?;
        let counts = match self.follower.hash_at(receipt.block_number) {
            Some(hash) => hash == receipt.block_hash,
            // Further back than the window reaches: the block only has to be there.
            None => self.node.block_at(receipt.block_number).await?.is_some_and(|b| b.hash == receipt.block_hash),
        };
        if counts {
            self.slots.place(Placed::from(receipt));
        }
        Ok(())
    }

    /// Nothing of ours has moved for a while: find out why and offer everything again.
    async fn stalled(&mut self) -> Result<(), End> {
        if self.clock.now_ms() < self.resend_at_ms {
            return Ok(());
        }
        let wait = self.resend.next_ms(&self.clock);
        self.resend_at_ms = self.clock.now_ms() + wait;
        if let Err(error) = self.resynchronise().await? {
            tracing::debug!(%error, "cannot resynchronise with the node now");
        }
        Ok(())
    }

    async fn resynchronise(&mut self) -> Result<Result<(), NodeError>, End> {
        let nonce = match self.node.nonce(self.signer.account()).await {
            Ok(nonce) => nonce,
            Err(error) => return Ok(Err(error)),
        };
        self.fill_gap(nonce).await?;
        if let Err(error) = self.look_up_unplaced().await {
            return Ok(Err(error));
        }
        let unplaced: BTreeSet<u64> = self.slots.unplaced().into_iter().map(|(n, _)| n).collect();
        let used = unplaced.into_iter().filter(|n| *n < nonce);
        for lost in used.filter(|n| self.slots.missed(*n)).collect::<Vec<_>>() {
            tracing::warn!(nonce = lost, "another transaction has taken this nonce");
            self.slots.remove(lost);
            self.journal.settle(vec![lost]).await?;
            self.answer(lost, &Err(SendError::Displaced));
        }
        self.raise_fees().await?;
        self.slots.offer_again();
        Ok(Ok(()))
    }

    /// Nonces that the chain waits for and nobody fills would hold up everything behind them.
    async fn fill_gap(&mut self, nonce: u64) -> Result<(), End> {
        let gap = self.slots.gap(nonce);
        // A node that lags shows a gap too; a real one stays where it is.
        let (at, seen) = self.gap_seen.take().filter(|(at, _)| *at == nonce).unwrap_or((nonce, 0));
        if gap.is_empty() {
            return Ok(());
        }
        self.gap_seen = Some((at, seen + 1));
        if seen + 1 < GAP_SEEN_MIN {
            return Ok(());
        }
        tracing::warn!(from = gap.start, to = gap.end, "filling a gap of nonces with empty transfers");
        let mut fillers: Vec<Record> = Vec::new();
        for nonce in gap.take(self.config.in_flight_max) {
            // Behind one that cannot be filled the others would be no help.
            let Some(filler) = self.filler(nonce).await else { break };
            fillers.push(filler);
        }
        self.journal.append(fillers.clone()).await?;
        fillers.into_iter().for_each(|f| self.slots.vacate(f));
        Ok(())
    }

    fn resync_soon(&mut self) {
        self.resend_at_ms = self.clock.now_ms() + self.config.resend_ms;
    }

    async fn answer_final(&mut self) -> Result<(), End> {
        let Some((tip, _)) = self.follower.tip() else { return Ok(()) };
        let done = self.slots.take_final(tip, self.config.depth.max(1));
        if done.is_empty() {
            return Ok(());
        }
        for (nonce, placed) in &done {
            self.answer(*nonce, &Ok(*placed));
        }
        self.journal.settle(done.into_iter().map(|(nonce, _)| nonce).collect()).await?;
        Ok(())
    }

    fn answer(&mut self, nonce: u64, result: &Result<Placed, SendError>) {
        for reply in self.waiting.remove(&nonce).unwrap_or_default() {
            // Whoever asked may have gone; the transaction stays.
            let _ = reply.send(result.clone());
        }
    }

    fn report(&mut self, trouble: Option<NodeError>) {
        let pending = self.slots.count() + self.held.len();
        let (tip, tip_unix_s) = self.tip.as_ref().map_or((None, 0), |b| (Some(b.number), b.timestamp));
        let offering = self.slots.to_offer().is_some();
        self.status.send_if_modified(|s| {
            let trouble = match trouble {
                Some(error) => Some(error.to_string()),
                None if offering => s.trouble.clone(),
                None => None,
            };
            let new = SenderStatus { pending, tip, tip_unix_s, trouble };
            let changed = *s != new;
            *s = new;
            changed
        });
    }

    /// Waits for work, for a wake-up from the ledger, or for the next poll.
    async fn rest(&mut self) {
        let room = self.held.len() < self.config.in_flight_max && !self.closed;
        tokio::select! {
            biased;
            submit = self.queue.recv(), if room => match submit {
                Some(submit) => self.held.push_back(submit),
                None => self.closed = true,
            },
            () = self.wake.notified() => {}
            () = self.clock.sleep_ms(self.config.poll_ms) => {}
        }
    }
}
