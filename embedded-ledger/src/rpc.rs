//! JSON-RPC: the methods that a client of an Ethereum node needs, with geth's shapes, codes and words.
//!
//! Every answer is computed on one snapshot of the store, so it never mixes two blocks.
//!
//! This module must not know how a request arrived.

use crate::Core;
use crate::execute::{BASE_FEE, BlockContext, CALL_GAS_MAX, ExecuteError, call, estimate, halt_text};
use crate::pool::{Checked, Rejected, check};
use crate::state::StateRead;
use crate::store::{BlockRecord, Snapshot, StoreError, StoredReceipt, StoredTransaction};
use alloy::consensus::{Transaction as _, TxEnvelope, transaction::Recovered};
use alloy::eips::eip2718::Decodable2718;
use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::json_rpc::{ErrorPayload, ResponsePayload};
use alloy::rpc::types::{
    Block, BlockTransactions, FeeHistory, Filter, FilterBlockOption, Header, Log, Transaction, TransactionReceipt,
    TransactionRequest,
};
use revm::context::result::ExecutionResult;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

/// Blocks of one fee history at most, as in geth.
const FEE_HISTORY_MAX: u64 = 1024;
/// Bytes of log data in one answer at most.
const LOG_BYTES_MAX: usize = 64 << 20;

/// The answer to one request.
pub(crate) fn answer(core: &Core, method: &str, params: Option<&RawValue>) -> ResponsePayload {
    match Params::parse(params).and_then(|params| dispatch(core, method, &params)) {
        Ok(result) => ResponsePayload::Success(result),
        Err(error) => ResponsePayload::Failure(error),
    }
}

type Answer = Result<Box<RawValue>, ErrorPayload>;

fn dispatch(core: &Core, method: &str, params: &Params<'_>) -> Answer {
    match method {
        "eth_chainId" => ok(U64::from(core.config.chain_id)),
        "net_version" => ok(core.config.chain_id.to_string()),
        "web3_clientVersion" => ok(concat!("pacs-bridge-ledger/", env!("CARGO_PKG_VERSION"))),
        "eth_syncing" => ok(false),
        "eth_gasPrice" => ok(U256::from(2 * BASE_FEE)),
        "eth_maxPriorityFeePerGas" => ok(U256::from(1)),
        "eth_blockNumber" => ok(U64::from(snapshot(core)?.head().map_err(store_error)?.header.number)),
        "eth_sendRawTransaction" => send(core, params.get(0)?),
        _ => dispatch_reads(core, method, params),
    }
}

fn dispatch_reads(core: &Core, method: &str, params: &Params<'_>) -> Answer {
    let view = View { core, snapshot: snapshot(core)? };
    match method {
        "eth_feeHistory" => view.fee_history(params.get::<Quantity>(0)?.0, params.get(1)?, params.opt(2)?),
        "eth_getBlockByNumber" => view.block(BlockId::Number(params.get(0)?), params.opt(1)?.unwrap_or(false)),
        "eth_getBlockByHash" => view.block(BlockId::from(params.get::<B256>(0)?), params.opt(1)?.unwrap_or(false)),
        "eth_getBlockReceipts" => view.block_receipts(params.get(0)?),
        "eth_getBlockTransactionCountByNumber" => view.count(BlockId::Number(params.get(0)?)),
        "eth_getBlockTransactionCountByHash" => view.count(BlockId::from(params.get::<B256>(0)?)),
        "eth_getTransactionByHash" => view.transaction_by_hash(params.get(0)?),
        "eth_getTransactionByBlockHashAndIndex" => {
            view.transaction_at(BlockId::from(params.get::<B256>(0)?), params.get(1)?)
        }
        "eth_getTransactionByBlockNumberAndIndex" => {
            view.transaction_at(BlockId::Number(params.get(0)?), params.get(1)?)
        }
        "eth_getTransactionReceipt" => view.receipt_by_hash(params.get(0)?),
        "eth_getLogs" => view.logs(&params.get(0)?),
        "eth_getTransactionCount" => view.nonce(params.get(0)?, params.block(1)?),
        "eth_getBalance" => {
            let account = view.state(params.block(1)?)?.0.account(params.get(0)?).map_err(store_error)?;
            ok(account.map_or(U256::ZERO, |account| account.balance))
        }
        "eth_getCode" => {
            let (state, _) = view.state(params.block(1)?)?;
            let account = state.account(params.get(0)?).map_err(store_error)?;
            ok(account.map(|a| state.code(a.code_hash)).transpose().map_err(store_error)?.unwrap_or_default())
        }
        "eth_getStorageAt" => {
            let (state, _) = view.state(params.block(2)?)?;
            let value = state.slot((params.get(0)?, params.get(1)?)).map_err(store_error)?;
            ok(B256::from(value))
        }
        "eth_call" => {
            params.no_overrides(2)?;
            view.call(&params.get(0)?, params.block(1)?)
        }
        "eth_estimateGas" => {
            params.no_overrides(2)?;
            view.estimate(&params.get(0)?, params.block(1)?)
        }
        _ => Err(error(-32601, format!("the method {method} does not exist/is not available"))),
    }
}

/// Checks a transaction, puts it into the pool and wakes the producer.
fn send(core: &Core, raw: Bytes) -> Answer {
    core.check_alive().map_err(store_error)?;
    let checked = check(raw, core.config.chain_id, core.config.block_gas_limit).map_err(rejected)?;
    let hash = {
        let mut pool = core.pool();
        // Read under the lock: what is in a block by now is in this state, and what is not is still in the pool.
        let account = snapshot(core)?.account(checked.sender).map_err(store_error)?;
        pool.add(checked, account).map_err(rejected)?
    };
    core.wake.work();
    ok(hash)
}

fn snapshot(core: &Core) -> Result<Snapshot, ErrorPayload> {
    core.snapshot().map_err(store_error)
}

/// One snapshot, asked several questions.
struct View<'a> {
    core: &'a Core,
    snapshot: Snapshot,
}

impl View<'_> {
    fn resolve(&self, id: BlockId) -> Result<Option<BlockRecord>, ErrorPayload> {
        let found = match id {
            BlockId::Hash(hash) => match self.snapshot.number_of(hash.block_hash).map_err(store_error)? {
                Some(number) => self.snapshot.block(number),
                None => Ok(None),
            },
            BlockId::Number(BlockNumberOrTag::Number(number)) => self.snapshot.block(number),
            BlockId::Number(BlockNumberOrTag::Earliest) => self.snapshot.block(0),
            // A block is final when it exists, and nothing is visible of the next one.
            BlockId::Number(_) => self.snapshot.head().map(Some),
        };
        found.map_err(store_error)
    }

    /// The state after a block, and that block.
    fn state(self, id: BlockId) -> Result<(Box<dyn StateRead>, BlockRecord), ErrorPayload> {
        let block = self.resolve(id)?.ok_or_else(|| error(-32000, "header not found"))?;
        let state = self.snapshot.state_at(block.header.number).map_err(store_error)?;
        Ok((state, block))
    }

    fn block(&self, id: BlockId, full: bool) -> Answer {
        let Some(block) = self.resolve(id)? else { return ok(()) };
        let transactions = if full {
            let all = (0..block.transactions).map(|index| self.transaction(&block, index));
            BlockTransactions::Full(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        } else {
            let hash = |index| self.snapshot.sender(block.header.number, index).map_err(store_error);
            let all = (0..block.transactions).map(hash).collect::<Result<Vec<_>, _>>()?;
            BlockTransactions::Hashes(all.into_iter().flatten().map(|(_, hash)| hash).collect())
        };
        let header = Header {
            hash: block.hash,
            inner: block.header,
            total_difficulty: None,
            size: Some(U256::from(block.size)),
        };
        ok(Block { header, uncles: Vec::new(), transactions, withdrawals: None })
    }

    fn count(&self, id: BlockId) -> Answer {
        ok(self.resolve(id)?.map(|block| U64::from(block.transactions)))
    }

    fn transaction(&self, block: &BlockRecord, index: u32) -> Result<Option<Transaction>, ErrorPayload> {
        let found = self.snapshot.transaction(block.header.number, index).map_err(store_error)?;
        found.map(|stored| mined(block, index, &stored)).transpose()
    }

    fn transaction_at(&self, id: BlockId, index: Quantity) -> Answer {
        let (Some(block), Ok(index)) = (self.resolve(id)?, u32::try_from(index.0)) else { return ok(()) };
        ok(self.transaction(&block, index)?)
    }

    fn transaction_by_hash(&self, hash: B256) -> Answer {
        let Some((block, index)) = self.position(hash)? else {
            return ok(self.core.pool().get(hash).map(|checked| waiting(&checked)));
        };
        ok(self.transaction(&block, index)?)
    }

    fn position(&self, hash: B256) -> Result<Option<(BlockRecord, u32)>, ErrorPayload> {
        let Some((number, index)) = self.snapshot.position_of(hash).map_err(store_error)? else { return Ok(None) };
        Ok(self.snapshot.block(number).map_err(store_error)?.map(|block| (block, index)))
    }

    fn receipt_by_hash(&self, hash: B256) -> Answer {
        let Some((block, index)) = self.position(hash)? else { return ok(()) };
        ok(self.receipt(&block, index)?)
    }

    fn block_receipts(&self, id: BlockId) -> Answer {
        let Some(block) = self.resolve(id)? else { return ok(()) };
        let all = (0..block.transactions).map(|index| self.receipt(&block, index));
        ok(all.collect::<Result<Vec<_>, _>>()?)
    }

    fn receipt(&self, block: &BlockRecord, index: u32) -> Result<TransactionReceipt, ErrorPayload> {
        let number = block.header.number;
        let stored = self.snapshot.transaction(number, index).map_err(store_error)?;
        let receipt = self.snapshot.receipt(number, index).map_err(store_error)?;
        let damaged = || store_error(StoreError::Corrupt("transaction without receipt"));
        let (stored, receipt) = stored.zip(receipt).ok_or_else(damaged)?;
        let tx = decode(&stored)?;
        let StoredReceipt { gas_used, contract, first_log, envelope } = receipt;
        let mut log_index = first_log..;
        let inner = envelope.map_logs(|log| rpc_log(block, stored.hash, index, log_index.next().unwrap_or(0), log));
        Ok(TransactionReceipt {
            inner,
            transaction_hash: stored.hash,
            transaction_index: Some(u64::from(index)),
            block_hash: Some(block.hash),
            block_number: Some(number),
            gas_used,
            effective_gas_price: tx.effective_gas_price(Some(BASE_FEE)),
            blob_gas_used: None,
            blob_gas_price: None,
            from: stored.sender,
            to: tx.to(),
            contract_address: contract,
        })
    }

    fn logs(&self, filter: &Filter) -> Answer {
        let blocks = match filter.block_option {
            FilterBlockOption::AtBlockHash(hash) => {
                let block = self.resolve(BlockId::from(hash))?.ok_or_else(|| error(-32000, "unknown block"))?;
                block.header.number..=block.header.number
            }
            FilterBlockOption::Range { from_block, to_block } => {
                let head = self.snapshot.head().map_err(store_error)?.header.number;
                let height = |tag: Option<BlockNumberOrTag>| match tag {
                    Some(BlockNumberOrTag::Number(number)) => number,
                    Some(BlockNumberOrTag::Earliest) => 0,
                    _ => head,
                };
                let (from, to) = (height(from_block), height(to_block));
                if from > to {
                    return Err(error(-32602, "invalid block range params"));
                }
                from..=to.min(head)
            }
        };
        let (mut logs, mut bytes) = (Vec::new(), 0);
        for number in blocks {
            let Some(block) = self.snapshot.block(number).map_err(store_error)? else { continue };
            if block.transactions == 0 || !filter.matches_bloom(block.header.logs_bloom) {
                continue;
            }
            self.logs_of(&block, filter, &mut logs, &mut bytes)?;
        }
        ok(logs)
    }

    fn logs_of(
        &self,
        block: &BlockRecord,
        filter: &Filter,
        logs: &mut Vec<Log>,
        bytes: &mut usize,
    ) -> Result<(), ErrorPayload> {
        for index in 0..block.transactions {
            let Some(receipt) = self.snapshot.receipt(block.header.number, index).map_err(store_error)? else {
                continue;
            };
            if !filter.matches_bloom(*receipt.envelope.logs_bloom()) {
                continue;
            }
            let (_, hash) = self.snapshot.sender(block.header.number, index).map_err(store_error)?.unwrap_or_default();
            for (log_index, log) in (receipt.first_log..).zip(receipt.envelope.into_logs()) {
                if !filter.matches(&log) {
                    continue;
                }
                *bytes += 256 + log.data.data.len();
                if *bytes > LOG_BYTES_MAX {
                    return Err(error(-32005, "query returns too much log data, narrow it"));
                }
                logs.push(rpc_log(block, hash, index, log_index, log));
            }
        }
        Ok(())
    }

    fn nonce(self, address: Address, id: BlockId) -> Answer {
        let pending = id == BlockId::pending();
        let core = self.core;
        // For the pending nonce the pool is looked at after the state: what left the pool meanwhile is then missing from the answer,
        // so hold the lock over both.
        let pool = pending.then(|| core.pool());
        let view = if pending { View { core, snapshot: snapshot(core)? } } else { self };
        let nonce = view.state(id)?.0.account(address).map_err(store_error)?.map_or(0, |account| account.nonce);
        ok(U64::from(pool.map_or(nonce, |pool| pool.next_nonce(address, nonce))))
    }

    fn call(self, request: &TransactionRequest, id: BlockId) -> Answer {
        let gas = request.gas.unwrap_or(CALL_GAS_MAX).min(CALL_GAS_MAX);
        let core = self.core;
        let (state, block) = self.state(id)?;
        match call(&*state, &context(core, &block), request, gas).map_err(execute_error)? {
            ExecutionResult::Success { output, .. } => ok(output.into_data()),
            failed => Err(execution_failed(failed)),
        }
    }

    fn estimate(self, request: &TransactionRequest, id: BlockId) -> Answer {
        let core = self.core;
        let (state, block) = self.state(id)?;
        match estimate(&*state, &context(core, &block), request).map_err(execute_error)? {
            Ok(gas) => ok(U64::from(gas)),
            Err(failed) => Err(execution_failed(failed)),
        }
    }

    fn fee_history(&self, count: u64, newest: BlockNumberOrTag, percentiles: Option<Vec<f64>>) -> Answer {
        let newest = self.resolve(BlockId::Number(newest))?.ok_or_else(|| error(-32000, "header not found"))?;
        let newest = newest.header.number;
        let count = count.min(FEE_HISTORY_MAX).min(newest + 1);
        let oldest = newest + 1 - count;
        let mut gas_used_ratio = Vec::new();
        for number in oldest..newest + 1 {
            let block = self.snapshot.block(number).map_err(store_error)?;
            gas_used_ratio.push(block.map_or(0.0, |b| b.header.gas_used as f64 / b.header.gas_limit.max(1) as f64));
        }
        ok(FeeHistory {
            base_fee_per_gas: vec![u128::from(BASE_FEE); gas_used_ratio.len() + 1],
            // A tip of one wei has always been enough.
            reward: percentiles.map(|asked| vec![vec![1; asked.len()]; gas_used_ratio.len()]),
            gas_used_ratio,
            oldest_block: oldest,
            ..FeeHistory::default()
        })
    }
}

/// Calls see the block they read from, as in geth.
fn context(core: &Core, block: &BlockRecord) -> BlockContext {
    BlockContext {
        chain_id: core.config.chain_id,
        number: block.header.number,
        timestamp: block.header.timestamp,
        gas_limit: block.header.gas_limit,
        beneficiary: block.header.beneficiary,
    }
}

fn decode(stored: &StoredTransaction) -> Result<TxEnvelope, ErrorPayload> {
    TxEnvelope::decode_2718_exact(&stored.raw).map_err(|_| store_error(StoreError::Corrupt("transaction")))
}

fn mined(block: &BlockRecord, index: u32, stored: &StoredTransaction) -> Result<Transaction, ErrorPayload> {
    let tx = decode(stored)?;
    Ok(Transaction {
        effective_gas_price: Some(tx.effective_gas_price(Some(BASE_FEE))),
        inner: Recovered::new_unchecked(tx, stored.sender),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        transaction_index: Some(u64::from(index)),
        block_timestamp: Some(block.header.timestamp),
    })
}

fn waiting(checked: &Checked) -> Transaction {
    Transaction {
        inner: Recovered::new_unchecked(checked.tx.clone(), checked.sender),
        block_hash: None,
        block_number: None,
        transaction_index: None,
        effective_gas_price: None,
        block_timestamp: None,
    }
}

fn rpc_log(block: &BlockRecord, hash: B256, index: u32, log_index: u64, log: alloy::primitives::Log) -> Log {
    Log {
        inner: log,
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: Some(hash),
        transaction_index: Some(u64::from(index)),
        log_index: Some(log_index),
        removed: false,
    }
}

/// Positional parameters, parsed one by one where they are needed.
struct Params<'a>(Vec<&'a RawValue>);

impl<'a> Params<'a> {
    fn parse(raw: Option<&'a RawValue>) -> Result<Self, ErrorPayload> {
        let Some(raw) = raw else { return Ok(Self(Vec::new())) };
        let parsed: Result<Option<Vec<&'a RawValue>>, _> = serde_json::from_str(raw.get());
        parsed.map(|list| Self(list.unwrap_or_default())).map_err(|_| error(-32602, "non-array args"))
    }

    fn get<T: DeserializeOwned>(&self, index: usize) -> Result<T, ErrorPayload> {
        self.opt(index)?.ok_or_else(|| error(-32602, format!("missing value for required argument {index}")))
    }

    fn opt<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, ErrorPayload> {
        let Some(raw) = self.0.get(index) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|e| error(-32602, format!("invalid argument {index}: {e}")))
    }

    /// A block, the newest when left out.
    fn block(&self, index: usize) -> Result<BlockId, ErrorPayload> {
        Ok(self.opt(index)?.unwrap_or(BlockId::latest()))
    }

    /// State and block overrides are not understood; ignoring them would answer another question.
    fn no_overrides(&self, first: usize) -> Result<(), ErrorPayload> {
        let given = self.0.iter().skip(first).any(|raw| !matches!(raw.get().trim(), "null" | "{}"));
        if given { Err(error(-32602, "state and block overrides are not supported")) } else { Ok(()) }
    }
}

/// A number as hex string, or as JSON number as some clients send it.
struct Quantity(u64);

impl<'de> serde::Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Hex(U64),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Number(number) => number,
            Either::Hex(number) => number.to(),
        }))
    }
}

fn ok(value: impl Serialize) -> Answer {
    to_raw_value(&value).map_err(|e| error(-32603, e.to_string()))
}

fn error(code: i64, message: impl Into<String>) -> ErrorPayload {
    ErrorPayload { code, message: message.into().into(), data: None }
}

fn rejected(rejected: Rejected) -> ErrorPayload {
    error(-32000, rejected.to_string())
}

fn store_error(failure: StoreError) -> ErrorPayload {
    match failure {
        StoreError::Storage(_) | StoreError::Corrupt(_) => {
            tracing::error!(error = &failure as &dyn std::error::Error, "ledger store failed");
            error(-32603, failure.to_string())
        }
        StoreError::Poisoned | StoreError::Closed | StoreError::Pruned(_) => error(-32000, failure.to_string()),
    }
}

fn execute_error(failure: ExecuteError) -> ErrorPayload {
    match failure {
        ExecuteError::Invalid(reason) => error(-32000, reason),
        ExecuteError::Store(failure) => store_error(failure),
    }
}

fn execution_failed(result: ExecutionResult) -> ErrorPayload {
    match result {
        ExecutionResult::Revert { output, .. } => {
            let reason = alloy::sol_types::decode_revert_reason(&output).filter(|_| is_error_string(&output));
            let message = match reason {
                Some(reason) => format!("execution reverted: {}", reason.trim_start_matches("revert: ")),
                None => "execution reverted".to_owned(),
            };
            ErrorPayload { code: 3, message: message.into(), data: to_raw_value(&output).ok() }
        }
        ExecutionResult::Halt { reason, .. } => error(-32000, halt_text(&reason)),
        ExecutionResult::Success { .. } => error(-32603, "execution succeeded"),
    }
}

/// Whether revert data is a `require` message, the only kind that geth spells out.
fn is_error_string(output: &[u8]) -> bool {
    output.starts_with(&[0x08, 0xc3, 0x79, 0xa0])
}
