//! Opening a ledger: is it the right chain, is our code on it, does the journal belong to it? Only then a [`Ledger`] exists.

use super::client::{ClientConfig, LedgerError, LedgerKind};
use super::endpoints::{BeginError, Endpoints, Identity};
use super::forks::{self, FORKS_FILE, ForkLog};
use super::journal::{Journal as _, JournalError, Owner, SqliteJournal};
use super::node::{Node as _, NodeError, SystemClock};
use super::owner::{HeldKeys, OwnerSeed};
use super::pieces::PieceMode;
use super::rpc::RpcNode;
use super::sender::{Call, SendError, SenderConfig, SenderStatus, Sign, Unsigned, sender};
use super::signer::{Signer, SignerError};
use super::{Client, Ledger};
use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy::primitives::{Address, B256, Bytes, TxKind, keccak256};
use alloy::signers::local::PrivateKeySigner;
use contracts::{Contract, Deployable, addresses, deployables, deployment};
use embedded_ledger::EmbeddedLedger;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// How long a trouble of the sender lasts before the log tells of it: most pass by themselves.
const TROUBLE_SAID_AFTER: Duration = Duration::from_secs(5);

/// How a ledger is opened.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// Embedded or network.
    pub kind: LedgerKind,
    /// The chain id that must be found.
    pub chain_id: u64,
    /// First admin of the consortium: decides the contracts' addresses. On an embedded ledger of one site, the site's own account.
    pub admin: Address,
    /// Whether missing contracts may be deployed.
    pub deploy: bool,
    /// Where the bytes of new pieces go.
    pub mode: PieceMode,
    /// The journal file.
    pub journal: PathBuf,
    /// Where custodial owner keys come from.
    pub owner_seed: Option<OwnerSeed>,
    /// Further owner keys in custody.
    pub held_keys: HeldKeys,
    /// The key of the source itself, for when another one signs its transactions.
    pub identity: Option<PrivateKeySigner>,
    /// Requests in flight when pieces are read.
    pub read_parallel: usize,
    /// Depth, polling, windows and fees.
    pub sender: SenderConfig,
}

/// Why a ledger cannot be used, sorted by who has to act.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The node does not answer yet; open again later.
    #[error("the ledger does not answer")]
    Unavailable(#[source] LedgerError),
    /// The configuration names another chain than this one.
    #[error("{endpoint} has chain id {found}, configured is {configured}")]
    WrongChain {
        /// Who said so.
        endpoint: String,
        /// From the configuration.
        configured: u64,
        /// From the node.
        found: u64,
    },
    /// The code at a contract's address is not ours: wrong consortium admin, or somebody else's contract.
    #[error("contract {contract} at {address} has code hash {found}, expected {expected}")]
    Stranger {
        /// Name of the contract.
        contract: &'static str,
        /// Where it should be.
        address: Address,
        /// keccak-256 of the code that must be there.
        expected: B256,
        /// keccak-256 of the code that is there.
        found: B256,
    },
    /// A contract is missing and may not be deployed.
    #[error("contract {contract} is not deployed at {address}; deploy it, or allow the bridge to")]
    Missing {
        /// Name of the contract.
        contract: &'static str,
        /// Where it should be.
        address: Address,
    },
    /// The CREATE2 proxy is missing; the network's genesis must carry it.
    #[error("the deterministic deployment proxy is missing at {0}; put it into the genesis file")]
    NoDeployer(Address),
    /// Deploying failed.
    #[error("cannot deploy contract {contract}")]
    Deploy {
        /// Name of the contract.
        contract: &'static str,
        /// Why.
        #[source]
        cause: LedgerError,
    },
    /// The journal is unusable or of another ledger.
    #[error("the journal of the ledger key cannot be used")]
    Journal(#[from] JournalError),
}

impl From<NodeError> for OpenError {
    fn from(e: NodeError) -> Self {
        Self::Unavailable(e.into())
    }
}

/// Opens a ledger over a node, such as any JSON-RPC client: checks the chain, takes up the journal, starts the key's sender and compares the contracts'
/// code. Must be called inside a tokio runtime. The sender stops when the last clone of the ledger is gone. `wake` may be
/// notified whenever a block was made, and is by endpoints that tell of blocks themselves; without it the node is asked every `poll_ms`.
pub async fn open(
    node: impl Into<RpcNode>,
    signer: impl Into<Signer>,
    config: LedgerConfig,
    wake: Arc<Notify>,
) -> Result<Ledger, OpenError> {
    open_endpoints(Endpoints::single(node), signer, config, wake).await
}

/// As [`open`], over endpoints that stand in for each other.
pub async fn open_endpoints(
    node: Endpoints,
    signer: impl Into<Signer>,
    config: LedgerConfig,
    wake: Arc<Notify>,
) -> Result<Ledger, OpenError> {
    let signer = signer.into();
    node.wakes(&wake);
    node.begin(config.chain_id).await.map_err(|error| match error {
        BeginError::Unavailable(what) => OpenError::Unavailable(LedgerError::Unavailable(what)),
        BeginError::WrongChain { endpoint, found } => {
            OpenError::WrongChain { endpoint, configured: config.chain_id, found }
        }
    })?;
    let found = config.chain_id;
    let no_genesis = || OpenError::Unavailable(LedgerError::Unavailable("the chain has no block 0".into()));
    let genesis = node.block_at(0).await?.ok_or_else(no_genesis)?.hash;
    let owner = Owner { chain_id: found, genesis, account: signer.address() };
    let mut journal = SqliteJournal::new(&config.journal, owner);
    journal.load().await?;
    let forks = fork_log(&config, genesis);
    let (ledger, driver) = start(node, journal, signer, &config, forks, wake);
    let checked = match check_contracts(&ledger, &config).await {
        Ok(code) => ledger.node().trust(Identity { genesis, code }).await.map_err(OpenError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = checked {
        // When this returns, the key has no owner and the journal is free for another try.
        drop(ledger);
        let _ = driver.await;
        return Err(error);
    }
    Ok(ledger)
}

/// Opens the ledger inside this process. It wakes us after every block, so nothing waits for a poll.
pub async fn open_embedded(
    embedded: &EmbeddedLedger,
    signer: impl Into<Signer>,
    config: LedgerConfig,
) -> Result<Ledger, OpenError> {
    let wake = Arc::new(Notify::new());
    let (mut heads, listener) = (embedded.watch_head(), Arc::downgrade(&wake));
    tokio::spawn(async move {
        while heads.changed().await.is_ok() {
            let Some(wake) = listener.upgrade() else { return };
            wake.notify_one();
        }
    });
    open(RpcNode::embedded(embedded), signer, config, wake).await
}

/// The record of replaced blocks beside the journal; only networks replace any. Nothing depends on it, so what is wrong with it is only said.
fn fork_log(config: &LedgerConfig, genesis: B256) -> Option<ForkLog> {
    if config.kind == LedgerKind::Embedded {
        return None;
    }
    let opened = ForkLog::open(&config.journal.with_file_name(FORKS_FILE), genesis);
    opened.inspect_err(|error| tracing::warn!(error = crate::chain_of(error), "replaced blocks are not recorded")).ok()
}

fn start(
    node: Endpoints,
    journal: SqliteJournal,
    signer: Signer,
    config: &LedgerConfig,
    forks: Option<ForkLog>,
    wake: Arc<Notify>,
) -> (Ledger, JoinHandle<()>) {
    let client = ClientConfig {
        kind: config.kind,
        chain_id: config.chain_id,
        account: signer.address(),
        public_key: signer.public_key(),
        addresses: addresses(config.admin),
        mode: config.mode,
        payload_bytes_max: usize::MAX,
        depth: config.sender.depth.max(1),
        poll_ms: config.sender.poll_ms,
        read_parallel: config.read_parallel,
        owner_seed: config.owner_seed.clone(),
        held_keys: config.held_keys.clone(),
        identity: config.identity.clone(),
    };
    let signer = KeySigner { key: signer, chain_id: config.chain_id };
    let (sender, mut driver) = sender(node.clone(), journal, signer, SystemClock, config.sender.clone(), wake);
    if let Some(log) = forks {
        let (tell, seen) = mpsc::unbounded_channel();
        driver = driver.telling(tell);
        tokio::spawn(forks::keep(node.clone(), log, seen));
    }
    let driver = tokio::spawn(driver.run());
    tokio::spawn(tell_troubles(sender.status(), client.account));
    (Client::new(node, SystemClock, sender, client), driver)
}

/// Tells whoever reads the log when nothing of this account gets onto the ledger, and when it does again.
async fn tell_troubles(mut status: watch::Receiver<SenderStatus>, account: Address) {
    loop {
        if status.wait_for(|now| now.trouble.is_some()).await.is_err() {
            return;
        }
        let over = status.wait_for(|now| now.trouble.is_none());
        match tokio::time::timeout(TROUBLE_SAID_AFTER, over).await.map(|over| over.is_ok()) {
            Ok(true) => continue,
            Ok(false) => return,
            Err(_) => {}
        }
        let trouble = status.borrow().trouble.clone().unwrap_or_default();
        if trouble.to_lowercase().contains("insufficient funds") {
            tracing::error!(%account, trouble, "THIS SITE'S ACCOUNT HAS NO FUNDS: nothing gets onto the ledger until it is sent some; intake goes on");
        } else {
            tracing::warn!(%account, trouble, "nothing gets onto the ledger; intake goes on");
        }
        if status.wait_for(|now| now.trouble.is_none()).await.is_err() {
            return;
        }
        tracing::info!(%account, "transactions get onto the ledger again");
    }
}

/// Code consistency: every contract is ours, or is deployed now if that is allowed, or the ledger is refused.
/// Returns where which code is.
async fn check_contracts(ledger: &Ledger, config: &LedgerConfig) -> Result<Vec<(Address, B256)>, OpenError> {
    let (mut code, mut missing) = (Vec::new(), Vec::new());
    for wanted in deployables(config.admin) {
        code.push((wanted.address, wanted.runtime_code_hash));
        if !is_ours(ledger, &wanted).await? {
            missing.push(wanted);
        }
    }
    let lacks = |wanted: &Deployable| OpenError::Missing { contract: wanted.contract.name(), address: wanted.address };
    if let Some(first) = missing.first().filter(|_| !config.deploy) {
        return Err(lacks(first));
    }
    // Together, in their order: on a network each would wait for blocks of its own otherwise.
    futures::future::try_join_all(missing.iter().map(|wanted| deploy(ledger, wanted))).await?;
    for wanted in &missing {
        if !is_ours(ledger, wanted).await? {
            return Err(lacks(wanted));
        }
    }
    Ok(code)
}

/// True when the code is ours, false when there is none, an error when it is somebody else's.
async fn is_ours(ledger: &Ledger, wanted: &Deployable) -> Result<bool, OpenError> {
    let code = ledger.node().code(wanted.address).await?;
    if code.is_empty() {
        return Ok(false);
    }
    let (expected, found) = (wanted.runtime_code_hash, keccak256(&code));
    if expected != found {
        let contract = wanted.contract.name();
        return Err(OpenError::Stranger { contract, address: wanted.address, expected, found });
    }
    Ok(true)
}

async fn deploy(ledger: &Ledger, wanted: &Deployable) -> Result<(), OpenError> {
    if ledger.node().code(deployment::DEPLOYER).await?.is_empty() {
        return Err(OpenError::NoDeployer(deployment::DEPLOYER));
    }
    let contract: Contract = wanted.contract;
    tracing::info!(contract = contract.name(), address = %wanted.address, "deploying a contract");
    let sent = ledger.send_plain(deployment::DEPLOYER, wanted.deployer_input.clone()).await;
    sent.map_err(|cause| OpenError::Deploy { contract: contract.name(), cause })
}

/// Signs EIP-1559 transactions.
#[derive(Debug)]
pub struct KeySigner {
    /// The key.
    pub key: Signer,
    /// EIP-155 chain id.
    pub chain_id: u64,
}

impl Sign for KeySigner {
    fn account(&self) -> Address {
        self.key.address()
    }

    fn read(&self, raw: &Bytes) -> Option<Unsigned> {
        let TxEnvelope::Eip1559(signed) = TxEnvelope::decode_2718(&mut raw.as_ref()).ok()? else { return None };
        let transaction = signed.strip_signature();
        let TxKind::Call(to) = transaction.to else { return None };
        let call = Call { to, data: transaction.input, gas: transaction.gas_limit, value: transaction.value };
        let (fee_max, tip) = (transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas);
        Some(Unsigned { call, nonce: transaction.nonce, fee_max, tip })
    }

    async fn sign(&self, unsigned: &Unsigned) -> Result<Bytes, SendError> {
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce: unsigned.nonce,
            gas_limit: unsigned.call.gas,
            max_fee_per_gas: unsigned.fee_max,
            max_priority_fee_per_gas: unsigned.tip,
            to: TxKind::Call(unsigned.call.to),
            value: unsigned.call.value,
            access_list: Default::default(),
            input: unsigned.call.data.clone(),
        };
        let signature = self.key.sign(&transaction.encoded_for_signing()).await.map_err(|error| match error {
            SignerError::Away { .. } => SendError::SignerAway(error.to_string()),
            other => SendError::Signing(other.to_string()),
        })?;
        Ok(TxEnvelope::from(transaction.into_signed(signature)).encoded_2718().into())
    }
}
