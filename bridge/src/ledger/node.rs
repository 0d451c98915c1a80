//! The seam between the ledger client and a node: plain questions of the Ethereum JSON-RPC interface, typed, with the many
//! spellings of "try again" and "I have that already" sorted into a few cases. An implementation is dumb; every decision is
//! made above it. It must not know contracts, journals or images.

use alloy::consensus::Header;
use alloy::primitives::{Address, B256, Bytes, U256};
use std::future::Future;
use thiserror::Error;

/// Why a node gave no answer, sorted by who has to act.
#[derive(Debug, Clone, Error)]
pub enum NodeError {
    /// Nothing came back that is an answer: no connection, no reply in time, a proxy's error page. The endpoint is at fault, and
    /// another may do better.
    #[error("ledger node does not answer: {0}")]
    Unreachable(String),
    /// The node is busy, or not yet able to say (for example while it indexes transactions). Ask again later.
    #[error("ledger node unavailable: {0}")]
    Unavailable(String),
    /// The call was executed and reverted. `data` is what the contract returned.
    #[error("call reverted: {reason}")]
    Reverted {
        /// What the node said about it.
        reason: String,
        /// Return data: an ABI-encoded custom error, or empty.
        data: Bytes,
    },
    /// The node understood and will not do it; the same request will fail again.
    #[error("ledger node refused: {0}")]
    Refused(String),
}

/// What became of a raw transaction that was handed to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// In the pool, now or already before.
    Taken,
    /// The account has used this nonce; whether by this transaction, only a receipt can tell.
    NonceUsed,
    /// Not now: no funds, a full pool, a nonce gap, a price below the pool's floor, another transaction in this place.
    NotNow(String),
    /// The node will never take these bytes.
    Never(String),
}

/// A block as far as the client looks into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Height.
    pub number: u64,
    /// Hash of the header.
    pub hash: B256,
    /// Hash of the block before.
    pub parent: B256,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Base fee in wei per gas; `None` before London.
    pub base_fee: Option<u128>,
    /// Hashes of the transactions, in order.
    pub transactions: Vec<B256>,
}

/// What happened to a transaction inside a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Hash of the transaction.
    pub transaction: B256,
    /// Height of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Position in the block.
    pub index: u64,
    /// False when it reverted.
    pub succeeded: bool,
    /// Gas used.
    pub gas_used: u64,
}

/// A transaction found by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Hash of the transaction.
    pub hash: B256,
    /// Sender.
    pub from: Address,
    /// Callee; `None` creates a contract.
    pub to: Option<Address>,
    /// Calldata.
    pub input: Bytes,
}

/// An event with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Height of its block.
    pub block_number: u64,
    /// Position of its transaction in the block.
    pub transaction_index: u64,
    /// Topics; the first names the event.
    pub topics: Vec<B256>,
    /// The unindexed part.
    pub data: Bytes,
}

/// Which state to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest block.
    Latest,
    /// After the block of this height.
    Block(u64),
}

/// A question to a contract.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who asks.
    pub from: Address,
    /// The contract.
    pub to: Address,
    /// Calldata.
    pub data: Bytes,
}

/// An event with everything that says where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Height of its block.
    pub block: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Hash of its transaction.
    pub transaction: B256,
    /// Position among all events of the block.
    pub log_index: u64,
    /// The contract that said it.
    pub contract: Address,
    /// Topics; the first names the event.
    pub topics: Vec<B256>,
    /// The unindexed part.
    pub data: Bytes,
}

/// Blocks whose events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// This block, whether canonical or not; a node that does not have it fails.
    Block(B256),
    /// Heights of the chain that the node holds for canonical, both included.
    Heights(u64, u64),
}

/// Which events to look for.
#[derive(Debug, Clone)]
pub struct EventFilter {
    /// Emitting contract.
    pub contract: Address,
    /// First block height.
    pub from: u64,
    /// Last block height.
    pub to: u64,
    /// Leading topics that must match.
    pub topics: Vec<B256>,
}

/// One Ethereum-compatible node, or several that stand for one. Clones speak to the same.
pub trait Node: Clone + Send + Sync + 'static {
    /// Which endpoint is asked at the moment, for people. Never holds credentials.
    fn endpoint(&self) -> Option<String> {
        None
    }
    /// Chain id (EIP-155).
    fn chain_id(&self) -> impl Future<Output = Result<u64, NodeError>> + Send;
    /// The newest block.
    fn head(&self) -> impl Future<Output = Result<Block, NodeError>> + Send;
    /// A block by hash, also when it is no longer canonical.
    fn block(&self, hash: B256) -> impl Future<Output = Result<Option<Block>, NodeError>> + Send;
    /// The whole header of a block by hash, also when it is no longer canonical; only one that has this hash.
    fn header(&self, hash: B256) -> impl Future<Output = Result<Option<Header>, NodeError>> + Send {
        let _ = hash;
        async { Ok(None) }
    }
    /// The canonical block of a height.
    fn block_at(&self, number: u64) -> impl Future<Output = Result<Option<Block>, NodeError>> + Send;
    /// Receipts of a block, by its hash.
    fn receipts(&self, block: B256) -> impl Future<Output = Result<Option<Vec<Receipt>>, NodeError>> + Send;
    /// Receipts of a block as its header's receipts root has them (EIP-2718), by its hash.
    fn encoded_receipts(&self, block: B256) -> impl Future<Output = Result<Option<Vec<Bytes>>, NodeError>> + Send {
        let _ = block;
        async { Ok(None) }
    }
    /// The node's own signature over the hash of a block, by height: a ledger inside this process has one.
    fn block_signature(&self, number: u64) -> impl Future<Output = Result<Option<Bytes>, NodeError>> + Send {
        let _ = number;
        async { Ok(None) }
    }
    /// Receipt of a transaction in the canonical chain.
    fn receipt(&self, transaction: B256) -> impl Future<Output = Result<Option<Receipt>, NodeError>> + Send;
    /// The next nonce of an account after the newest block.
    fn nonce(&self, account: Address) -> impl Future<Output = Result<u64, NodeError>> + Send;
    /// Balance in wei after the newest block.
    fn balance(&self, account: Address) -> impl Future<Output = Result<U256, NodeError>> + Send;
    /// Runtime code of an account; empty if none.
    fn code(&self, account: Address) -> impl Future<Output = Result<Bytes, NodeError>> + Send;
    /// Runs a call without a transaction.
    fn call(&self, ask: Ask, at: At) -> impl Future<Output = Result<Bytes, NodeError>> + Send;
    /// Which program the node is, in its own words.
    fn version(&self) -> impl Future<Output = Result<String, NodeError>> + Send;
    /// Gas that a call would need now.
    fn estimate(&self, ask: Ask) -> impl Future<Output = Result<u64, NodeError>> + Send;
    /// Offers a signed transaction.
    fn offer(&self, raw: Bytes) -> impl Future<Output = Result<Offer, NodeError>> + Send;
    /// Events in a range of blocks, in order.
    fn events(&self, filter: EventFilter) -> impl Future<Output = Result<Vec<Event>, NodeError>> + Send;
    /// Everything that some contracts said in some blocks, in order.
    fn said(&self, contracts: Vec<Address>, span: Span) -> impl Future<Output = Result<Vec<Logged>, NodeError>> + Send;
    /// A transaction by height and position.
    fn transaction_at(
        &self,
        block: u64,
        index: u64,
    ) -> impl Future<Output = Result<Option<Transaction>, NodeError>> + Send;
}

/// Time and chance, so that a simulation can own both.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Milliseconds since some fixed moment; never falls.
    fn now_ms(&self) -> u64;
    /// Seconds since 1970, for deadlines and ages.
    fn unix_s(&self) -> u64;
    /// Waits.
    fn sleep_ms(&self, ms: u64) -> impl Future<Output = ()> + Send;
    /// A number in `0..bound` for jitter; nothing secret depends on it.
    fn chance(&self, bound: u64) -> u64;
}

/// The machine's clock under tokio.
#[derive(Debug, Clone, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let start = START.get_or_init(std::time::Instant::now);
        u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn unix_s(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| d.as_secs())
    }

    async fn sleep_ms(&self, ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
    }

    fn chance(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { rand::random::<u64>() % bound }
    }
}

/// Doubling back-off with jitter: between half the step and the whole step, at most `max_ms`.
#[derive(Debug, Clone)]
pub struct Backoff {
    min_ms: u64,
    max_ms: u64,
    step_ms: u64,
}

impl Backoff {
    /// A back-off that starts with `min_ms`.
    pub fn new(min_ms: u64, max_ms: u64) -> Self {
        Self { min_ms, max_ms, step_ms: min_ms }
    }

    /// The next wait in milliseconds; each is up to twice as long as the one before.
    pub fn next_ms(&mut self, clock: &impl Clock) -> u64 {
        let half = self.step_ms / 2;
        let wait = half + clock.chance(self.step_ms - half + 1);
        self.step_ms = self.step_ms.saturating_mul(2).min(self.max_ms);
        wait.max(1)
    }

    /// Starts again with the shortest wait.
    pub fn reset(&mut self) {
        self.step_ms = self.min_ms;
    }
}
