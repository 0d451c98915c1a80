//! A durable single-node Ethereum-compatible ledger inside a process: `revm` executes, `redb` stores, JSON-RPC answers.
//!
//! It is the default ledger of a fresh installation, for pilots and for tests: one site, no consensus. A program that talks to it
//! through alloy cannot tell it from geth, and the same contracts and the same encoded calls go to both.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use alloy::providers::{Provider, ProviderBuilder};
//! use embedded_ledger::{EmbeddedLedger, LedgerConfig};
//! let ledger = EmbeddedLedger::open(LedgerConfig::new("ledger.redb", 1337))?;
//! let provider = ProviderBuilder::new().connect_client(ledger.rpc_client());
//! println!("{}", provider.get_block_number().await?);
//! ledger.close();
//! # Ok(()) }
//! ```
//!
//! # What is durable when
//! A block is whatever is ready in the pool (at most 8 MiB and the block gas limit). State, bodies, receipts, indexes and header are
//! written in one fsynced transaction before anybody can see the block. So **a receipt means durable**; a transaction hash only means
//! that the transaction waits in memory. After `kill -9` or a power cut the ledger opens at the last block that had a receipt or a
//! later one.
//!
//! # What it is not
//! - There is no Ethereum state root. The `stateRoot` field of a header is a *rolling commitment*:
//!   `keccak256(parent's stateRoot ‖ keccak256(all accounts and slots that the block changed, in order, with their new values))`.
//!   A replay checks it, so the state cannot be altered unnoticed, but single values cannot be proved: `eth_getProof` is not
//!   supported, and blocks cannot be imported into geth. Transactions and receipts roots are the real ones.
//! - One node is one opinion. Who owns the machine can write another history. Headers are signed by the node's key when one is given,
//!   and the head is published in the log (target `embedded_ledger`), so that a rewritten chain can be told from the one that
//!   somebody saw earlier; it cannot be prevented.
//! - The base fee is one wei in every block and does not rise. Tips go to the node's account.
//! - State can be read (`eth_call` and others) at the head and the configured number of blocks before it.
//! - No subscriptions, filters, traces, blobs or EIP-7702 transactions. Rules are London's, the newest that geth's Clique accepts.
//!
//! This crate must not know images, studies, contracts or DICOM.

mod copy;
mod execute;
mod http;
mod pool;
mod producer;
mod reader;
mod rpc;
mod state;
mod store;
mod transport;
mod verify;

pub use copy::CopyError;
pub use pool::{PoolLimits, TRANSACTION_BYTES_MAX};
pub use reader::{LedgerReader, MinedTransaction};
pub use redb::StorageBackend;
pub use store::StoreError;
pub use transport::LedgerTransport;
pub use verify::{Defect, VerifyReport};

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::client::RpcClient;
use alloy::signers::local::PrivateKeySigner;
use pool::Pool;
use producer::Wake;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use store::{BlockRecord, Snapshot, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an account has in the first block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenesisAccount {
    /// Wei.
    pub balance: U256,
    /// Runtime code; empty for an ordinary account.
    pub code: Bytes,
    /// What a contract has in its slots; those that are not named are zero.
    pub storage: BTreeMap<U256, U256>,
}

/// How a ledger is opened. The first four decide the first block and can never change for an existing file.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The database file. Created if it does not exist; its directory must exist.
    pub path: PathBuf,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Balances and contracts of the first block.
    pub genesis_alloc: Vec<(Address, GenesisAccount)>,
    /// Gas of one block at most. 40,000,000 is the most that a geth network survives.
    pub block_gas_limit: u64,
    /// Bytes of transactions in one block at most.
    pub block_bytes_max: usize,
    /// Milliseconds between blocks, empty ones included; `None` makes a block as soon as there is something for it.
    pub block_period_ms: Option<u64>,
    /// Blocks before the head whose state can still be read.
    pub history_blocks: u64,
    /// What may wait in memory.
    pub pool: PoolLimits,
    /// Signs headers and receives tips. `None`: headers are not signed and tips go to the zero account. A verification expects
    /// that every header was signed by this key.
    pub signer: Option<PrivateKeySigner>,
    /// Seconds since 1970 that the next block is given, so that a test can let deadlines pass. `None`: the system's clock. Blocks
    /// never go back in time, whatever the clock does.
    pub clock: Option<Arc<AtomicU64>>,
}

impl LedgerConfig {
    /// The usual limits, no allocations, no signer, blocks as soon as possible.
    pub fn new(path: impl Into<PathBuf>, chain_id: u64) -> Self {
        Self {
            path: path.into(),
            chain_id,
            genesis_alloc: Vec::new(),
            block_gas_limit: 40_000_000,
            block_bytes_max: 8 << 20,
            block_period_ms: None,
            history_blocks: 128,
            pool: PoolLimits::default(),
            signer: None,
            clock: None,
        }
    }

    /// Adds an account with a balance in wei to the first block.
    #[must_use]
    pub fn with_balance(mut self, address: Address, balance: U256) -> Self {
        self.genesis_alloc.push((address, GenesisAccount { balance, ..GenesisAccount::default() }));
        self
    }

    /// Adds a contract to the first block.
    #[must_use]
    pub fn with_code(mut self, address: Address, code: impl Into<Bytes>) -> Self {
        self.genesis_alloc.push((address, GenesisAccount { code: code.into(), ..GenesisAccount::default() }));
        self
    }
}

/// Why a ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file belongs to another chain.
    #[error("ledger file is of chain {found}, not {wanted}")]
    ChainId {
        /// In the file.
        found: u64,
        /// In the configuration.
        wanted: u64,
    },
    /// The file began with other balances, contracts or gas limit.
    #[error("ledger file has another first block: {found}, not {wanted}")]
    Genesis {
        /// In the file.
        found: B256,
        /// Of the configuration.
        wanted: B256,
    },
    /// The file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The block-making thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// The newest block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    /// Hash of the header.
    pub hash: B256,
    /// Rolling commitment to the state; see the crate documentation.
    pub state_root: B256,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// The node's signature over `hash` (r ‖ s ‖ v), empty without a signer.
    pub signature: Bytes,
}

impl Head {
    fn of(record: &BlockRecord) -> Self {
        Self {
            number: record.header.number,
            hash: record.hash,
            state_root: record.header.state_root,
            timestamp: record.header.timestamp,
            signature: record.signature.clone(),
        }
    }
}

/// What all parts share.
pub(crate) struct Core {
    config: LedgerConfig,
    /// `None` after closing, so that the file is free even while clients still hold on to this.
    store: RwLock<Option<Arc<Store>>>,
    pool: Mutex<Pool>,
    wake: Wake,
    head: watch::Sender<Head>,
    failed: AtomicBool,
}

impl Core {
    fn store(&self) -> Result<Arc<Store>, StoreError> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)
    }

    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.store()?.snapshot()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beneficiary(&self) -> Address {
        self.config.signer.as_ref().map_or(Address::ZERO, PrivateKeySigner::address)
    }

    /// Whether new transactions can still be made durable.
    fn check_alive(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) { Err(StoreError::Poisoned) } else { self.store().map(|_| ()) }
    }
}

/// An open ledger. Dropping it closes it.
pub struct EmbeddedLedger {
    core: Arc<Core>,
    producer: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for EmbeddedLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLedger").field("head", &self.head()).finish_non_exhaustive()
    }
}

impl EmbeddedLedger {
    /// Opens the file of `config`, or creates it with its first block.
    ///
    /// # Errors
    /// When the file is in use, damaged, or of a chain with another first block.
    pub fn open(config: LedgerConfig) -> Result<Self, OpenError> {
        let store = Store::open(&config.path)?;
        Self::start(config, store)
    }

    /// Like [`Self::open`], on storage given by the caller instead of a file: for tests of what a crash leaves behind.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_backend(config: LedgerConfig, backend: impl StorageBackend) -> Result<Self, OpenError> {
        let store = Store::open_backend(backend)?;
        Self::start(config, store)
    }

    fn start(config: LedgerConfig, store: Store) -> Result<Self, OpenError> {
        let genesis = verify::genesis_of(&config)?;
        match store.chain_id()? {
            None => store.write_genesis(config.chain_id, &genesis)?,
            Some(found) if found != config.chain_id => {
                return Err(OpenError::ChainId { found, wanted: config.chain_id });
            }
            Some(_) => {
                let found = store.snapshot()?.block(0)?.ok_or(StoreError::Corrupt("no first block"))?.hash;
                let wanted = genesis.record.hash;
                if found != wanted {
                    return Err(OpenError::Genesis { found, wanted });
                }
            }
        }
        let head = Head::of(&store.snapshot()?.head()?);
        tracing::info!(number = head.number, hash = %head.hash, signature = %head.signature, "ledger opened");
        let core = Arc::new(Core {
            pool: Mutex::new(Pool::new(config.pool)),
            config,
            store: RwLock::new(Some(Arc::new(store))),
            wake: Wake::default(),
            head: watch::Sender::new(head),
            failed: AtomicBool::new(false),
        });
        let for_producer = core.clone();
        let producer = std::thread::Builder::new()
            .name("ledger-blocks".into())
            .spawn(move || producer::run(&for_producer))
            .map_err(OpenError::Thread)?;
        Ok(Self { core, producer: Some(producer) })
    }

    /// A transport that answers in this process, for alloy's `RpcClient`. May be cloned and outlive the ledger; then it answers with
    /// an error.
    pub fn transport(&self) -> LedgerTransport {
        LedgerTransport::new(self.core.clone())
    }

    /// A client for alloy's `ProviderBuilder::connect_client`, polling every 10 ms because asking costs nothing here.
    pub fn rpc_client(&self) -> RpcClient {
        RpcClient::new(self.transport(), true).with_poll_interval(Duration::from_millis(10))
    }

    /// Reads transactions without JSON between.
    pub fn reader(&self) -> LedgerReader {
        LedgerReader::new(self.core.clone())
    }

    /// Answers JSON-RPC over HTTP on `listener` until `shutdown`. Meant for the loopback interface: there is no
    /// authentication, and whoever can connect can read everything and spend what they can sign for.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve_http(
        &self,
        listener: tokio::net::TcpListener,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        http::serve(self.core.clone(), listener, shutdown).await
    }

    /// A future like [`Self::serve_http`] that does not borrow the ledger, to be spawned.
    pub fn http_server(
        &self,
        listener: tokio::net::TcpListener,
        shutdown: CancellationToken,
    ) -> impl Future<Output = std::io::Result<()>> + Send + 'static + use<> {
        http::serve(self.core.clone(), listener, shutdown)
    }

    /// The newest block. Never older than a receipt that was seen; after closing, the last that was announced.
    pub fn head(&self) -> Head {
        // A block is on disk, and so visible, a moment before it is announced.
        let stored = self.core.snapshot().and_then(|snapshot| snapshot.head());
        stored.map_or_else(|_| self.core.head.borrow().clone(), |record| Head::of(&record))
    }

    /// Follows the head: `changed().await` returns after a new block is durable. Only a wake-up: several blocks may be one change.
    pub fn watch_head(&self) -> watch::Receiver<Head> {
        self.core.head.subscribe()
    }

    /// Waits for a block higher than `number` and returns the head.
    pub async fn wait_for_block_after(&self, number: u64) -> Head {
        let mut head = self.watch_head();
        match head.wait_for(|head| head.number > number).await {
            Ok(head) => head.clone(),
            // The sender lives as long as `self`.
            Err(_) => self.head(),
        }
    }

    /// Checks every hash, root, index and signature of the chain, and executes it again from the first block, comparing receipts,
    /// commitments and the final state. Blocks the caller; keeps the whole state in memory. Blocks made meanwhile are not looked at.
    ///
    /// # Errors
    /// When the store cannot be read. Defects of the chain are not errors but in the report.
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        verify::verify(&self.core.snapshot()?, &self.core.config)
    }

    /// Writes a copy of the chain as of now, from which [`import`] makes the ledger again. Blocks may be made meanwhile; they are not in it.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn export(&self, out: &mut impl std::io::Write) -> Result<Head, CopyError> {
        copy::export(&self.core.snapshot()?, self.core.config.chain_id, out)
    }

    /// Finishes the block in hand, stops, and frees the file. Transactions that had no receipt are forgotten.
    pub fn close(mut self) {
        self.shut();
    }

    fn shut(&mut self) {
        self.core.wake.stop();
        if let Some(producer) = self.producer.take()
            && producer.join().is_err()
        {
            tracing::error!("the block-making thread of the ledger panicked");
        }
        let store = self.core.store.write().unwrap_or_else(PoisonError::into_inner).take();
        if store.is_some() {
            let head = self.head();
            tracing::info!(number = head.number, hash = %head.hash, signature = %head.signature, "ledger closed");
        }
    }
}

/// Chain id of the ledger in a file, which is made when there is none; nothing of a new file.
///
/// # Errors
/// [`StoreError`], also while the ledger is open.
pub fn chain_id_of(file: &std::path::Path) -> Result<Option<u64>, StoreError> {
    Store::open(file)?.chain_id()
}

/// Makes a ledger again from a copy, in the file of `config`, which must not exist. Everything in it is executed and compared with what was
/// copied, block by block; when this fails, nothing is left. Returns the newest block.
///
/// # Errors
/// [`CopyError`].
pub fn import(config: &LedgerConfig, input: &mut impl std::io::Read) -> Result<Head, CopyError> {
    if config.path.exists() {
        return Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists).into());
    }
    let unfinished = config.path.with_extension("importing");
    if unfinished.exists() {
        std::fs::remove_file(&unfinished)?;
    }
    let imported =
        Store::open(&unfinished).map_err(CopyError::from).and_then(|store| copy::import(config, &store, input));
    match imported {
        Ok(head) => {
            // Every block was synced; what remains is the name.
            std::fs::rename(&unfinished, &config.path)?;
            let parent = config.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::File::open(parent.unwrap_or(std::path::Path::new(".")))?.sync_all()?;
            Ok(head)
        }
        Err(error) => {
            std::fs::remove_file(&unfinished)?;
            Err(error)
        }
    }
}

impl Drop for EmbeddedLedger {
    fn drop(&mut self) {
        self.shut();
    }
}
