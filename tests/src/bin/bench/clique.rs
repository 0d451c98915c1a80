//! A network of geth nodes that all sign blocks with Clique, with a site's account and one of a plain web3 client, both admitted as sources.
//! Counts what was executed by the receipts of the blocks.

use std::sync::Arc;
use std::time::Duration;

use alloy::eips::BlockId;
use alloy::network::EthereumWallet;
use alloy::primitives::{Address, Bytes, U256};
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::rpc::client::RpcClient;
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use bridge::ledger::sender::SenderConfig;
use bridge::ledger::{Ledger, LedgerConfig, LedgerKind, PieceMode, open};
use contracts::{Addresses, Sources};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tempfile::TempDir;
use tests::geth::{GETH_CHAIN_ID, Geth};

use crate::Outcome;

/// What the web3 client waits between two looks for a receipt.
const RECEIPT_POLL: Duration = Duration::from_millis(20);
/// A receipt that does not come in this time never comes.
const RECEIPT_LOOKS: u32 = 6_000;
/// As the bridge has it towards nodes of a network.
const LEDGER_POLL_MS: u64 = 200;
const READ_PARALLEL: usize = 8;

/// In words, whatever it is.
pub(crate) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Transactions of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) transactions: usize,
    pub(crate) gas: u64,
}

pub(crate) struct Network {
    geth: Geth,
    journals: TempDir,
    site: PrivateKeySigner,
    client: PrivateKeySigner,
    /// Signs for the client; anybody's for reading.
    pub(crate) provider: DynProvider,
}

impl Network {
    /// With so many nodes; none without geth.
    pub(crate) fn start(signers: usize) -> Option<Self> {
        let (site, client) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let geth = Geth::start(signers, site.address())?;
        let wallet = ProviderBuilder::new().wallet(EthereumWallet::from(client.clone()));
        let provider = wallet.connect_http(geth.url(0).parse().unwrap()).erased();
        Some(Self { geth, journals: tempfile::tempdir().unwrap(), site, client, provider })
    }

    pub(crate) fn site(&self) -> Address {
        self.site.address()
    }

    pub(crate) fn client(&self) -> Address {
        self.client.address()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        contracts::deployment::addresses(self.site())
    }

    /// The site's ledger client, as the bridge opens it. One at a time: a key has one sender.
    pub(crate) async fn ledger(&self, mode: PieceMode) -> Outcome<Ledger> {
        self.ledger_at(mode, self.geth.network.confirmations as u64).await
    }

    /// The same, for which a block counts when it has so many from the tip, itself included.
    pub(crate) async fn ledger_at(&self, mode: PieceMode, depth: u64) -> Outcome<Ledger> {
        let config = LedgerConfig {
            kind: LedgerKind::Network,
            chain_id: GETH_CHAIN_ID,
            admin: self.site(),
            deploy: true,
            mode,
            journal: self.journals.path().join(format!("{mode:?}-{depth}.sqlite")),
            owner_seed: None,
            held_keys: Default::default(),
            identity: None,
            read_parallel: READ_PARALLEL,
            sender: SenderConfig::network(depth, LEDGER_POLL_MS),
        };
        let node = RpcClient::new_http(self.geth.url(0).parse().map_err(words)?);
        open(node, self.site.clone(), config, Arc::default()).await.map_err(|e| bridge::chain_of(&e))
    }

    /// Deploys the contracts and makes both accounts sources.
    pub(crate) async fn found(&self) -> Outcome<()> {
        let ledger = self.ledger(PieceMode::Calldata).await?;
        let funds = U256::from(10).pow(U256::from(24));
        let client = async {
            tokio::try_join!(ledger.fund(self.client(), funds), ledger.admit(self.client())).map_err(words)?;
            self.define_client().await
        };
        let site = async { ledger.ensure_source_defined("https://site.example").await.map_err(words) };
        tokio::try_join!(site, client).map(drop)
    }

    async fn define_client(&self) -> Outcome<()> {
        let point = self.client.credential().verifying_key().to_encoded_point(false);
        let define = Sources::defineSourceCall {
            publicKey: Bytes::copy_from_slice(&point.as_bytes()[1..]),
            endpoint: "https://client.example".into(),
        };
        self.send(self.addresses().sources, define.abi_encode().into(), 1_000_000).await.map(drop)
    }

    /// As a web3 client does it: sends a transaction and waits until a block has it.
    pub(crate) async fn send(&self, to: Address, data: Bytes, gas: u64) -> Outcome<TransactionReceipt> {
        let request = TransactionRequest::default().to(to).input(data.into()).gas_limit(gas);
        let request = request.max_fee_per_gas(1_000_000_000).max_priority_fee_per_gas(1);
        let pending = self.provider.send_transaction(request).await.map_err(words)?;
        let hash = *pending.tx_hash();
        for _ in 0..RECEIPT_LOOKS {
            // An error is no answer yet: a young node is still indexing.
            if let Ok(Some(receipt)) = self.provider.get_transaction_receipt(hash).await {
                return if receipt.status() { Ok(receipt) } else { Err(format!("transaction {hash} reverted")) };
            }
            tokio::time::sleep(RECEIPT_POLL).await;
        }
        Err(format!("no block has transaction {hash}"))
    }

    /// Height of the newest block.
    pub(crate) async fn head(&self) -> Outcome<u64> {
        self.provider.get_block_number().await.map_err(words)
    }

    /// What an account had executed after block `from` and until now.
    pub(crate) async fn count(&self, account: Address, from: u64) -> Outcome<Count> {
        let counts = stream::iter(from + 1..=self.head().await?).map(|block| self.count_in(account, block));
        let sum = |sum: Count, one: Count| async move {
            Ok(Count { transactions: sum.transactions + one.transactions, gas: sum.gas + one.gas })
        };
        counts.buffered(READ_PARALLEL).try_fold(Count::default(), sum).await
    }

    async fn count_in(&self, account: Address, block: u64) -> Outcome<Count> {
        let receipts = self.provider.get_block_receipts(BlockId::number(block)).await.map_err(words)?;
        let receipts = receipts.ok_or_else(|| format!("block {block} is gone"))?;
        let ours = receipts.iter().filter(|receipt| receipt.from == account);
        Ok(ours.fold(Count::default(), |sum, receipt| Count {
            transactions: sum.transactions + 1,
            gas: sum.gas + receipt.gas_used,
        }))
    }

    /// What the tables depend on.
    pub(crate) async fn facts(&self) -> Vec<String> {
        let version = self.provider.get_client_version().await.unwrap_or_else(|_| "geth with Clique".into());
        let limit = self.gas_limit().await.map_or_else(|_| "-".into(), |limit| limit.to_string());
        let (nodes, period) = (self.geth.network.nodes.len(), self.period_s());
        vec![format!(
            "Network: {nodes} nodes of {version}, all signing, a block every {period} s, {limit} gas a block, all on this machine"
        )]
    }

    /// Gas that a block may use.
    pub(crate) async fn gas_limit(&self) -> Outcome<u64> {
        let block = self.provider.get_block(BlockId::latest()).await.map_err(words)?;
        Ok(block.ok_or("there is no block")?.header.gas_limit)
    }

    /// Seconds between blocks.
    pub(crate) fn period_s(&self) -> u64 {
        self.geth.network.block_period_s
    }

    /// Blocks until one of ours counts as final, its own included.
    pub(crate) fn confirmations(&self) -> usize {
        self.geth.network.confirmations
    }
}
