//! A [`Node`] over any alloy JSON-RPC client: in process, HTTP, WebSocket, IPC, or whatever transport the caller brings. It only translates. The
//! answers are read leniently, because geth, Besu, anvil and the embedded ledger each leave something out.

use super::line::Line;
use super::node::{Ask, At, Block, Event, EventFilter, Logged, Node, NodeError, Offer, Receipt, Span, Transaction};
use alloy::consensus::Header;
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::primitives::{Address, B256, Bytes, U64, U128, U256};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{ErrorPayload, RpcError, RpcRecv, RpcSend};
use alloy::rpc::types::TransactionReceipt;
use alloy::transports::TransportErrorKind;
use alloy::transports::http::reqwest;
use embedded_ledger::{EmbeddedLedger, LedgerReader};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A node behind a JSON-RPC client.
#[derive(Debug, Clone)]
pub struct RpcNode {
    line: Line,
    /// The same ledger in this process. Pieces are read back by the megabyte, and hexadecimal digits in JSON cost more than all
    /// the rest of it.
    reader: Option<LedgerReader>,
    answer_max: Duration,
}

impl From<RpcClient> for RpcNode {
    fn from(client: RpcClient) -> Self {
        Self::new(client)
    }
}

impl RpcNode {
    /// How long a node may take to answer unless told otherwise. A connection that hangs must not hold up the key's only sender
    /// for ever.
    pub const ANSWER_MAX: Duration = Duration::from_secs(30);

    /// A node that answers through `client`.
    pub fn new(client: RpcClient) -> Self {
        Self::over(client.into())
    }

    /// A node at the other end of a line.
    pub(super) fn over(line: Line) -> Self {
        Self { line, reader: None, answer_max: Self::ANSWER_MAX }
    }

    /// The ledger inside this process.
    pub fn embedded(ledger: &EmbeddedLedger) -> Self {
        Self { reader: Some(ledger.reader()), ..Self::new(ledger.rpc_client()) }
    }

    /// Changes how long it may take to answer.
    #[must_use]
    pub fn with_timeout(self, answer_max: Duration) -> Self {
        Self { answer_max, ..self }
    }

    async fn ask<P: RpcSend + 'static, R: RpcRecv>(&self, method: &'static str, params: P) -> Result<R, NodeError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let answer = self.request::<P, R>(method, params.clone()).await?;
            match answer.as_ref().err().filter(|error| is_passing(error)).and_then(|_| pauses.next()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return answer.map_err(sort),
            }
        }
    }

    /// Asks once. The outer error is that of a node that does not answer in time.
    async fn request<P: RpcSend + 'static, R: RpcRecv>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<Result<R, RpcError<TransportErrorKind>>, NodeError> {
        let until = Instant::now() + self.answer_max;
        let late = |_| NodeError::Unreachable(format!("no answer within {} ms", self.answer_max.as_millis()));
        let line = match timeout_at(until, self.line.open()).await.map_err(late)? {
            Ok(line) => line,
            Err(error) => return Ok(Err(error)),
        };
        let answer = timeout_at(until, line.client.request::<P, R>(method, params)).await;
        let is_gone =
            |error: &RpcError<TransportErrorKind>| matches!(error, RpcError::Transport(kind) if kind.is_backend_gone());
        if answer.as_ref().map_or(true, |answer| answer.as_ref().is_err_and(is_gone)) {
            self.line.give_up(&line).await;
        }
        answer.map_err(late)
    }
}

/// Waits before a question is asked again that met a passing fault. Work that takes many questions would otherwise never get
/// through to a node that fails one in ten.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

/// Whether the same question may be answered in a moment. Who cannot be connected to, or says nothing for long, is left to whoever has other
/// nodes to ask.
fn is_passing(error: &RpcError<TransportErrorKind>) -> bool {
    match error {
        RpcError::Transport(TransportErrorKind::HttpError(error)) => error.status >= 500,
        RpcError::Transport(TransportErrorKind::Custom(error)) => {
            error.downcast_ref::<reqwest::Error>().is_some_and(|error| !error.is_connect() && !error.is_timeout())
        }
        RpcError::ErrorResp(payload) => is_internal(payload),
        _ => false,
    }
}

/// A node's own fault, which says nothing about what was asked.
fn is_internal(payload: &ErrorPayload) -> bool {
    payload.message.to_ascii_lowercase().starts_with("internal error")
}

/// JSON-RPC code of geth for a reverted call.
const REVERTED: i64 = 3;

fn sort(error: RpcError<TransportErrorKind>) -> NodeError {
    match error {
        RpcError::ErrorResp(payload) => sort_payload(&payload),
        other => NodeError::Unreachable(crate::chain_of(&other)),
    }
}

fn sort_payload(payload: &ErrorPayload) -> NodeError {
    let message = payload.message.to_string();
    let lower = message.to_ascii_lowercase();
    if payload.code == REVERTED || lower.contains("revert") {
        return NodeError::Reverted { data: payload.as_revert_data().unwrap_or_default(), reason: message };
    }
    let passing = [
        "indexing is in progress",
        "timeout",
        "timed out",
        "too many requests",
        "rate limit",
        "syncing",
        "busy",
        // A node that lags, or has just given up blocks for others, does not have the block we ask about yet.
        "blockoutofrange",
        "block out of range",
        "header for hash not found",
        "header not found",
        "block not found",
        "unknown block",
        "missing trie node",
    ];
    if passing.iter().any(|p| lower.contains(p)) || payload.is_retry_err() || is_internal(payload) {
        return NodeError::Unavailable(message);
    }
    NodeError::Refused(message)
}

/// Sorts a node's refusal of a transaction by its words: there are no codes for it.
fn sort_offer(message: String) -> Offer {
    let lower = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    if says(&["already known", "known transaction", "already imported", "already in", "already exists"]) {
        return Offer::Taken;
    }
    if says(&["nonce too low", "nonce is too low", "nonce_too_low"]) {
        return Offer::NonceUsed;
    }
    let never = [
        "oversized",
        "exceeds block gas limit",
        "intrinsic gas",
        "floor data gas",
        "gas floor",
        "gas limit too high",
        "exceeds transaction gas cap",
        "max initcode",
        "invalid chain id",
        "invalid sender",
        "invalid signature",
        "not supported",
        "rlp",
        "decode",
    ];
    if says(&never) { Offer::Never(message) } else { Offer::NotNow(message) }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBlock {
    number: U64,
    hash: B256,
    parent_hash: B256,
    timestamp: U64,
    #[serde(default)]
    base_fee_per_gas: Option<U128>,
    transactions: Vec<B256>,
}

impl From<WireBlock> for Block {
    fn from(w: WireBlock) -> Self {
        Self {
            number: w.number.to(),
            hash: w.hash,
            parent: w.parent_hash,
            timestamp: w.timestamp.to(),
            base_fee: w.base_fee_per_gas.map(|f| f.to()),
            transactions: w.transactions,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReceipt {
    transaction_hash: B256,
    block_number: Option<U64>,
    block_hash: Option<B256>,
    transaction_index: U64,
    #[serde(default)]
    status: Option<U64>,
    #[serde(default)]
    gas_used: U64,
}

impl WireReceipt {
    /// A receipt without a block is of a pending transaction and says nothing.
    fn settled(self) -> Option<Receipt> {
        Some(Receipt {
            transaction: self.transaction_hash,
            block_number: self.block_number?.to(),
            block_hash: self.block_hash?,
            index: self.transaction_index.to(),
            succeeded: self.status? == U64::from(1),
            gas_used: self.gas_used.to(),
        })
    }
}

#[derive(Debug, Deserialize)]
struct WireTransaction {
    hash: B256,
    from: Address,
    #[serde(default)]
    to: Option<Address>,
    input: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLog {
    block_number: U64,
    transaction_index: U64,
    topics: Vec<B256>,
    data: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePlacedLog {
    block_number: U64,
    block_hash: B256,
    transaction_hash: B256,
    log_index: U64,
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
}

impl From<WirePlacedLog> for Logged {
    fn from(l: WirePlacedLog) -> Self {
        Self {
            block: l.block_number.to(),
            block_hash: l.block_hash,
            transaction: l.transaction_hash,
            log_index: l.log_index.to(),
            contract: l.address,
            topics: l.topics,
            data: l.data,
        }
    }
}

fn hex_number(number: u64) -> String {
    format!("{number:#x}")
}

fn ask_json(ask: &Ask) -> Value {
    // "input" is the standard's word; Besu and older nodes read "data". Both may stand side by side when they are equal.
    json!({ "from": ask.from, "to": ask.to, "data": ask.data })
}

impl Node for RpcNode {
    async fn chain_id(&self) -> Result<u64, NodeError> {
        let id: U64 = self.ask("eth_chainId", ()).await?;
        Ok(id.to())
    }

    async fn head(&self) -> Result<Block, NodeError> {
        let block: Option<WireBlock> = self.ask("eth_getBlockByNumber", ("latest", false)).await?;
        block.map(Block::from).ok_or_else(|| NodeError::Unavailable("the chain has no block yet".into()))
    }

    async fn block(&self, hash: B256) -> Result<Option<Block>, NodeError> {
        let block: Option<WireBlock> = self.ask("eth_getBlockByHash", (hash, false)).await?;
        Ok(block.map(Block::from))
    }

    async fn header(&self, hash: B256) -> Result<Option<Header>, NodeError> {
        let header: Option<alloy::rpc::types::Header> = self.ask("eth_getBlockByHash", (hash, false)).await?;
        Ok(header.map(|header| header.inner).filter(|header| header.hash_slow() == hash))
    }

    async fn block_at(&self, number: u64) -> Result<Option<Block>, NodeError> {
        let block: Option<WireBlock> = self.ask("eth_getBlockByNumber", (hex_number(number), false)).await?;
        Ok(block.map(Block::from))
    }

    async fn receipts(&self, block: B256) -> Result<Option<Vec<Receipt>>, NodeError> {
        let receipts: Option<Vec<WireReceipt>> = self.ask("eth_getBlockReceipts", (block,)).await?;
        Ok(receipts.map(|all| all.into_iter().filter_map(WireReceipt::settled).collect()))
    }

    async fn encoded_receipts(&self, block: B256) -> Result<Option<Vec<Bytes>>, NodeError> {
        let receipts: Option<Vec<TransactionReceipt>> = self.ask("eth_getBlockReceipts", (block,)).await?;
        let encoded = |receipt: TransactionReceipt| receipt.into_primitives_receipt().inner.encoded_2718().into();
        Ok(receipts.map(|all| all.into_iter().map(encoded).collect()))
    }

    async fn block_signature(&self, number: u64) -> Result<Option<Bytes>, NodeError> {
        let Some(reader) = self.reader.clone() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || reader.signature_at(number)).await;
        let found = read.map_err(|e| NodeError::Unavailable(e.to_string()))?;
        found.map_err(|e| NodeError::Unavailable(crate::chain_of(&e)))
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, NodeError> {
        let receipt: Option<WireReceipt> = self.ask("eth_getTransactionReceipt", (transaction,)).await?;
        Ok(receipt.and_then(WireReceipt::settled))
    }

    async fn nonce(&self, account: Address) -> Result<u64, NodeError> {
        let nonce: U64 = self.ask("eth_getTransactionCount", (account, "latest")).await?;
        Ok(nonce.to())
    }

    async fn balance(&self, account: Address) -> Result<U256, NodeError> {
        self.ask("eth_getBalance", (account, "latest")).await
    }

    async fn code(&self, account: Address) -> Result<Bytes, NodeError> {
        self.ask("eth_getCode", (account, "latest")).await
    }

    async fn call(&self, ask: Ask, at: At) -> Result<Bytes, NodeError> {
        let at = match at {
            At::Latest => "latest".to_owned(),
            At::Block(number) => hex_number(number),
        };
        self.ask("eth_call", (ask_json(&ask), at)).await
    }

    async fn version(&self) -> Result<String, NodeError> {
        self.ask("web3_clientVersion", ()).await
    }

    async fn estimate(&self, ask: Ask) -> Result<u64, NodeError> {
        let gas: U64 = self.ask("eth_estimateGas", (ask_json(&ask),)).await?;
        Ok(gas.to())
    }

    async fn offer(&self, raw: Bytes) -> Result<Offer, NodeError> {
        match self.request::<_, B256>("eth_sendRawTransaction", (raw,)).await? {
            Ok(_) => Ok(Offer::Taken),
            Err(RpcError::ErrorResp(payload)) => Ok(sort_offer(payload.message.to_string())),
            Err(other) => Err(sort(other)),
        }
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, NodeError> {
        let wire = json!({
            "address": filter.contract,
            "fromBlock": hex_number(filter.from),
            "toBlock": hex_number(filter.to),
            "topics": filter.topics,
        });
        let logs: Vec<WireLog> = self.ask("eth_getLogs", (wire,)).await?;
        let event = |l: WireLog| Event {
            block_number: l.block_number.to(),
            transaction_index: l.transaction_index.to(),
            topics: l.topics,
            data: l.data,
        };
        Ok(logs.into_iter().map(event).collect())
    }

    async fn said(&self, contracts: Vec<Address>, span: Span) -> Result<Vec<Logged>, NodeError> {
        let wire = match span {
            Span::Block(hash) => json!({ "address": contracts, "blockHash": hash }),
            Span::Heights(from, to) => {
                json!({ "address": contracts, "fromBlock": hex_number(from), "toBlock": hex_number(to) })
            }
        };
        let logs: Vec<WirePlacedLog> = self.ask("eth_getLogs", (wire,)).await?;
        Ok(logs.into_iter().map(Logged::from).collect())
    }

    async fn transaction_at(&self, block: u64, index: u64) -> Result<Option<Transaction>, NodeError> {
        if let Some(reader) = self.reader.clone() {
            let Ok(index) = u32::try_from(index) else { return Ok(None) };
            let read = tokio::task::spawn_blocking(move || reader.transaction_at(block, index)).await;
            let found = read.map_err(|e| NodeError::Unavailable(e.to_string()))?;
            let found = found.map_err(|e| NodeError::Unavailable(crate::chain_of(&e)))?;
            return Ok(found.map(|m| Transaction { hash: m.hash, from: m.sender, to: m.to, input: m.input }));
        }
        let params = (hex_number(block), hex_number(index));
        let found: Option<WireTransaction> = self.ask("eth_getTransactionByBlockNumberAndIndex", params).await?;
        Ok(found.map(|w| Transaction { hash: w.hash, from: w.from, to: w.to, input: w.input }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted_by_their_words() {
        assert_eq!(sort_offer("already known".into()), Offer::Taken);
        assert_eq!(sort_offer("transaction already imported".into()), Offer::Taken);
        assert_eq!(sort_offer("nonce too low: next nonce 5, tx nonce 3".into()), Offer::NonceUsed);
        let oversized = "oversized data: transaction size 131250, limit 131072";
        assert_eq!(sort_offer(oversized.into()), Offer::Never(oversized.into()));
        for passing in
            ["insufficient funds for gas * price + value", "txpool is full", "replacement transaction underpriced"]
        {
            assert_eq!(sort_offer(passing.into()), Offer::NotNow(passing.into()));
        }
    }

    #[test]
    fn indexing_in_progress_is_not_yet() {
        let payload = |code, message: &'static str| ErrorPayload { code, message: message.into(), data: None };
        let indexing = sort_payload(&payload(-32000, "transaction indexing is in progress"));
        assert!(matches!(indexing, NodeError::Unavailable(_)));
        assert!(matches!(sort_payload(&payload(-32000, "header not found")), NodeError::Unavailable(_)));
        // A block that a reorganisation took away; a study must not be blocked for it.
        let gone = "BlockOutOfRangeError: block height is 34 but requested was 36";
        assert!(matches!(sort_payload(&payload(-32602, gone)), NodeError::Unavailable(_)));
        assert!(matches!(sort_payload(&payload(3, "execution reverted")), NodeError::Reverted { .. }));
        assert!(matches!(sort_payload(&payload(-32602, "invalid argument 0")), NodeError::Refused(_)));
        assert!(matches!(sort_payload(&payload(-32603, "Internal error")), NodeError::Unavailable(_)));
    }
}
