//! Making blocks: what is ready in the pool is executed, sealed, written durably, and only then announced.
//!
//! One thread does this, so that there is one order of everything. While it executes and syncs, submissions are checked elsewhere
//! and wait in the pool for the next block: under load a block, and so an fsync, holds many transactions.
//!
//! This module must not know JSON-RPC.

use crate::Core;
use crate::execute::{BASE_FEE, BlockContext, ExecuteError, Executor};
use crate::pool::Checked;
use crate::state::{AccountRecord, BlockState, EMPTY_CODE_HASH, StateRead};
use crate::store::{BlockRecord, SealedBlock, Snapshot, StoreError, StoredReceipt, StoredTransaction};
use crate::{GenesisAccount, Head};
use alloy::consensus::{Eip658Value, Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Transaction, TxReceipt};
use alloy::eips::eip2718::Encodable2718;
use alloy::primitives::{Address, B256, Bloom, Bytes, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::trie::root::ordered_trie_root_encoded;
use revm::context::result::ExecutionResult;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wakes the producer.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    state: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    work: bool,
    stop: bool,
}

impl Wake {
    pub(crate) fn work(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).work = true;
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_one();
    }

    /// Waits for work (or, with a period, for its end). False when it is time to stop.
    fn wait(&self, period: Option<Duration>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = period.map(|period| Instant::now() + period);
        loop {
            if state.stop {
                return false;
            }
            match deadline {
                None if state.work => break,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.work = false;
        true
    }
}

/// Runs until it is stopped or the store fails. Without a period, a block is made as soon as there is a transaction for it.
pub(crate) fn run(core: &Core) {
    let period = core.config.block_period_ms.map(Duration::from_millis);
    while core.wake.wait(period) {
        loop {
            match produce(core, period.is_some()) {
                Ok(Produced::Nothing) => break,
                Ok(Produced::Block) if period.is_some() => break,
                Ok(Produced::Block) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "embedded ledger stopped making blocks");
                    core.failed.store(true, Ordering::Release);
                    return;
                }
            }
        }
    }
}

enum Produced {
    Block,
    Nothing,
}

fn produce(core: &Core, even_if_empty: bool) -> Result<Produced, StoreError> {
    let snapshot = core.snapshot()?;
    let parent = snapshot.head()?;
    let ready = core.pool().ready(core.config.block_bytes_max, core.config.block_gas_limit, |sender| {
        Ok::<_, StoreError>(snapshot.account(sender)?.map_or(0, |account| account.nonce))
    })?;
    if ready.is_empty() && !even_if_empty {
        return Ok(Produced::Nothing);
    }
    let context = next_context(core, &parent);
    let (block, included, impossible) = build(core, &snapshot, &parent, &context, &ready)?;
    if included.is_empty() && !even_if_empty {
        let mut pool = core.pool();
        impossible.iter().for_each(|checked| pool.remove(checked));
        return Ok(Produced::Nothing);
    }
    drop(snapshot);
    core.store()?.append(&block, core.config.history_blocks)?;
    {
        let mut pool = core.pool();
        included.iter().for_each(|checked| pool.mined(checked));
        impossible.iter().for_each(|checked| pool.remove(checked));
    }
    announce(core, &block.record);
    Ok(Produced::Block)
}

/// The head is published in the log: whoever keeps the log can show that the chain was not rewritten.
fn announce(core: &Core, record: &BlockRecord) {
    let head = Head::of(record);
    if record.header.number.is_multiple_of(1000) {
        tracing::info!(number = head.number, hash = %head.hash, signature = %head.signature, "ledger head");
    } else {
        tracing::debug!(number = head.number, hash = %head.hash, signature = %head.signature, "ledger head");
    }
    core.head.send_replace(head);
}

fn next_context(core: &Core, parent: &BlockRecord) -> BlockContext {
    let system = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = core.config.clock.as_ref().map_or_else(system, |clock| clock.load(Ordering::Relaxed));
    BlockContext {
        chain_id: core.config.chain_id,
        number: parent.header.number + 1,
        // Never backwards, whatever the clock does. Blocks of one second share their time stamp.
        timestamp: now.max(parent.header.timestamp),
        gas_limit: core.config.block_gas_limit,
        beneficiary: core.beneficiary(),
    }
}

type Built = (SealedBlock, Vec<Arc<Checked>>, Vec<Arc<Checked>>);

/// Executes `ready` and seals what fitted. Also returns which transactions are in and which can never be.
fn build(
    core: &Core,
    snapshot: &Snapshot,
    parent: &BlockRecord,
    context: &BlockContext,
    ready: &[Arc<Checked>],
) -> Result<Built, StoreError> {
    let mut state = BlockState::new(snapshot);
    let (mut included, mut impossible) = (Vec::new(), Vec::new());
    let mut receipts = Receipts::default();
    let mut executor = Executor::new(&mut state, context);
    for checked in ready {
        if checked.tx.gas_limit() > context.gas_limit - receipts.gas_used {
            break;
        }
        match executor.execute(&checked.tx, checked.sender) {
            Ok(result) => {
                receipts.add(checked, result);
                included.push(checked.clone());
            }
            // The checks at submission make this rare: two accounts of one owner racing each other, or a sender that became a contract.
            Err(ExecuteError::Invalid(reason)) => {
                tracing::warn!(hash = %checked.hash(), reason, "transaction dropped");
                impossible.push(checked.clone());
            }
            Err(ExecuteError::Store(error)) => return Err(error),
        }
    }
    drop(executor);
    let transactions: Vec<StoredTransaction> = included.iter().map(|checked| stored(checked)).collect();
    let block = seal(parent, context, state.finish()?, transactions, receipts, core.config.signer.as_ref());
    Ok((block, included, impossible))
}

fn stored(checked: &Checked) -> StoredTransaction {
    StoredTransaction { hash: checked.hash(), sender: checked.sender, raw: checked.raw.clone() }
}

/// The receipts of a block while it grows.
#[derive(Default)]
pub(crate) struct Receipts {
    pub(crate) gas_used: u64,
    logs: u64,
    receipts: Vec<StoredReceipt>,
}

impl Receipts {
    pub(crate) fn add(&mut self, checked: &Checked, result: ExecutionResult) {
        let gas_used = result.tx_gas_used();
        self.gas_used += gas_used;
        let success = result.is_success();
        // Also when the creation failed: the address is a matter of sender and nonce, and geth reports it so.
        let contract = checked.tx.to().is_none().then(|| checked.sender.create(checked.tx.nonce()));
        // Logs of an execution that was undone do not exist, whatever the EVM still remembers of them.
        let logs = if success { result.into_logs() } else { Vec::new() };
        let first_log = self.logs;
        self.logs += logs.len() as u64;
        let receipt = Receipt { status: Eip658Value::Eip658(success), cumulative_gas_used: self.gas_used, logs };
        let bloom = receipt.bloom();
        let envelope =
            ReceiptEnvelope::from_typed(checked.tx.tx_type(), ReceiptWithBloom { receipt, logs_bloom: bloom });
        self.receipts.push(StoredReceipt { gas_used, contract, first_log, envelope });
    }
}

/// Puts header and hashes on top of an executed block.
pub(crate) fn seal(
    parent: &BlockRecord,
    context: &BlockContext,
    changes: crate::state::Changes,
    transactions: Vec<StoredTransaction>,
    receipts: Receipts,
    signer: Option<&PrivateKeySigner>,
) -> SealedBlock {
    let raw: Vec<&Bytes> = transactions.iter().map(|transaction| &transaction.raw).collect();
    let header = Header {
        parent_hash: parent.hash,
        beneficiary: context.beneficiary,
        state_root: changes.commitment(parent.header.state_root),
        transactions_root: ordered_trie_root_encoded(&raw),
        receipts_root: receipts_root(&receipts.receipts),
        logs_bloom: receipts.receipts.iter().fold(Bloom::ZERO, |all, r| all | *r.envelope.logs_bloom()),
        difficulty: U256::ONE,
        number: context.number,
        gas_limit: context.gas_limit,
        gas_used: receipts.gas_used,
        timestamp: context.timestamp,
        base_fee_per_gas: Some(BASE_FEE),
        ..Header::default()
    };
    let record = record(header, &transactions, signer);
    SealedBlock { record, transactions, receipts: receipts.receipts, changes }
}

/// The receipts root of a block, as on every Ethereum chain.
pub(crate) fn receipts_root(receipts: &[StoredReceipt]) -> B256 {
    let encoded: Vec<Vec<u8>> = receipts.iter().map(|receipt| receipt.envelope.encoded_2718()).collect();
    ordered_trie_root_encoded(&encoded)
}

fn record(header: Header, transactions: &[StoredTransaction], signer: Option<&PrivateKeySigner>) -> BlockRecord {
    let hash = header.hash_slow();
    let body: usize = transactions.iter().map(|transaction| transaction.raw.len()).sum();
    // Signing a hash with a key in memory cannot fail; an empty signature would show in the next verification.
    let signature = signer.and_then(|signer| signer.sign_hash_sync(&hash).ok()).map(|s| s.as_bytes().into());
    BlockRecord {
        size: (alloy::rlp::Encodable::length(&header) + body) as u64,
        transactions: u32::try_from(transactions.len()).unwrap_or(u32::MAX),
        hash,
        signature: signature.unwrap_or_default(),
        header,
    }
}

/// Block 0: the balances and contracts a network begins with. The same configuration gives the same block everywhere.
pub(crate) fn genesis(
    base: &dyn StateRead,
    alloc: &[(Address, GenesisAccount)],
    gas_limit: u64,
    signer: Option<&PrivateKeySigner>,
) -> Result<SealedBlock, StoreError> {
    let mut state = BlockState::new(base);
    for (address, account) in alloc {
        let code_hash = if account.code.is_empty() { EMPTY_CODE_HASH } else { keccak256(&account.code) };
        // EIP-161: a contract starts at nonce 1, an ordinary account at 0.
        let nonce = u64::from(!account.code.is_empty());
        let record = AccountRecord { balance: account.balance, nonce, code_hash };
        state.put_account(*address, record, account.code.clone());
        account.storage.iter().for_each(|(slot, value)| state.put_slot(*address, *slot, *value));
    }
    let changes = state.finish()?;
    let header = Header {
        state_root: changes.commitment(B256::ZERO),
        difficulty: U256::ONE,
        gas_limit,
        base_fee_per_gas: Some(BASE_FEE),
        ..Header::default()
    };
    Ok(SealedBlock { record: record(header, &[], signer), transactions: Vec::new(), receipts: Vec::new(), changes })
}
