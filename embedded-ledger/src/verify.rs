//! Checking a chain against itself, and against a second execution of everything in it.
//!
//! This module must not know the pool or JSON-RPC.

use crate::LedgerConfig;
use crate::execute::{BlockContext, ExecuteError, Executor};
use crate::pool::{Checked, check};
use crate::producer::{Receipts, genesis, receipts_root, seal};
use crate::state::{BlockState, MemoryState};
use crate::store::{BlockRecord, SealedBlock, Snapshot, StoreError, StoredReceipt, StoredTransaction};
use alloy::primitives::{B256, Signature};
use alloy::trie::root::ordered_trie_root_encoded;
use std::collections::BTreeMap;

/// What a verification looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks checked, the first one included.
    pub blocks: u64,
    /// Transactions checked and executed again.
    pub transactions: u64,
    /// Hash of the last block checked.
    pub head: B256,
    /// What is wrong; empty when all is well.
    pub defects: Vec<Defect>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.defects.is_empty()
    }
}

/// Something wrong with the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {block}: {what}")]
pub struct Defect {
    /// The height at which it shows.
    pub block: u64,
    /// What does not agree.
    pub what: &'static str,
}

pub(crate) fn genesis_of(config: &LedgerConfig) -> Result<SealedBlock, StoreError> {
    genesis(&MemoryState::default(), &config.genesis_alloc, config.block_gas_limit, config.signer.as_ref())
}

pub(crate) fn verify(snapshot: &Snapshot, config: &LedgerConfig) -> Result<VerifyReport, StoreError> {
    let genesis = genesis_of(config)?;
    let mut replay = Replay { state: MemoryState::default(), parent: genesis.record.clone() };
    replay.advance(&genesis);
    let mut report = VerifyReport { blocks: 1, head: genesis.record.hash, ..VerifyReport::default() };
    let mut found = Findings { block: 0, defects: &mut report.defects };
    found.expect(snapshot.block(0)?.map(|b| b.hash) == Some(genesis.record.hash), "another first block");
    let head = snapshot.head()?.header.number;
    for number in 1..=head {
        found.block = number;
        let Some(record) = snapshot.block(number)? else {
            found.expect(false, "missing");
            break;
        };
        let transactions = read_transactions(snapshot, &record)?;
        let receipts = read_receipts(snapshot, &record)?;
        check_block(snapshot, config, &replay.parent, &record, &transactions, &receipts, &mut found)?;
        let again = replay.execute(config, &record, &transactions)?;
        found.expect(again.as_ref().is_some_and(|b| b.receipts == receipts), "replay gives other receipts");
        found.expect(again.as_ref().is_some_and(|b| b.record.hash == record.hash), "replay gives another header");
        let Some(again) = again else { break };
        replay.advance(&again);
        replay.parent = record;
        report.blocks += 1;
        report.transactions += transactions.len() as u64;
    }
    report.head = replay.parent.hash;
    found.expect(same_state(snapshot, &replay.state)?, "replay gives another state");
    Ok(report)
}

struct Findings<'a> {
    block: u64,
    defects: &'a mut Vec<Defect>,
}

impl Findings<'_> {
    fn expect(&mut self, holds: bool, what: &'static str) {
        if !holds {
            self.defects.push(Defect { block: self.block, what });
        }
    }
}

fn read_transactions(snapshot: &Snapshot, record: &BlockRecord) -> Result<Vec<StoredTransaction>, StoreError> {
    let one = |index| snapshot.transaction(record.header.number, index);
    (0..record.transactions).filter_map(|index| one(index).transpose()).collect()
}

fn read_receipts(snapshot: &Snapshot, record: &BlockRecord) -> Result<Vec<StoredReceipt>, StoreError> {
    let one = |index| snapshot.receipt(record.header.number, index);
    (0..record.transactions).filter_map(|index| one(index).transpose()).collect()
}

fn check_block(
    snapshot: &Snapshot,
    config: &LedgerConfig,
    parent: &BlockRecord,
    record: &BlockRecord,
    transactions: &[StoredTransaction],
    receipts: &[StoredReceipt],
    found: &mut Findings<'_>,
) -> Result<(), StoreError> {
    let number = record.header.number;
    let raw: Vec<&[u8]> = transactions.iter().map(|transaction| transaction.raw.as_ref()).collect();
    found.expect(record.header.parent_hash == parent.hash, "parent hash");
    found.expect(number == parent.header.number + 1, "height");
    found.expect(record.header.timestamp >= parent.header.timestamp, "time runs backwards");
    found.expect(transactions.len() == record.transactions as usize, "transactions missing");
    found.expect(record.header.transactions_root == ordered_trie_root_encoded(&raw), "transactions root");
    found.expect(record.header.receipts_root == receipts_root(receipts), "receipts root");
    found.expect(snapshot.number_of(record.hash)? == Some(number), "index of hashes");
    for (index, transaction) in (0..).zip(transactions) {
        found.expect(snapshot.position_of(transaction.hash)? == Some((number, index)), "index of transactions");
    }
    if let Some(signer) = &config.signer {
        let recovered =
            Signature::from_raw(&record.signature).and_then(|s| s.recover_address_from_prehash(&record.hash));
        found.expect(recovered.is_ok_and(|address| address == signer.address()), "signature");
    }
    Ok(())
}

struct Replay {
    state: MemoryState,
    parent: BlockRecord,
}

impl Replay {
    /// Executes the transactions of a block on the replayed state. `None` when one cannot be executed there.
    fn execute(
        &self,
        config: &LedgerConfig,
        record: &BlockRecord,
        transactions: &[StoredTransaction],
    ) -> Result<Option<SealedBlock>, StoreError> {
        let header = &record.header;
        let context = BlockContext {
            chain_id: config.chain_id,
            number: header.number,
            timestamp: header.timestamp,
            gas_limit: header.gas_limit,
            beneficiary: header.beneficiary,
        };
        let mut state = BlockState::new(&self.state);
        let mut receipts = Receipts::default();
        let mut executor = Executor::new(&mut state, &context);
        for transaction in transactions {
            // Checks the signature again: the sender that was stored is not taken on trust.
            let Ok(checked) = check(transaction.raw.clone(), config.chain_id, header.gas_limit) else {
                return Ok(None);
            };
            if !same(&checked, transaction) {
                return Ok(None);
            }
            match executor.execute(&checked.tx, checked.sender) {
                Ok(result) => receipts.add(&checked, result),
                Err(ExecuteError::Invalid(_)) => return Ok(None),
                Err(ExecuteError::Store(error)) => return Err(error),
            }
        }
        drop(executor);
        Ok(Some(seal(&self.parent, &context, state.finish()?, transactions.to_vec(), receipts, None)))
    }

    fn advance(&mut self, block: &SealedBlock) {
        self.state.apply(&block.changes);
        self.state.block_hashes.push(block.record.hash);
    }
}

fn same(checked: &Checked, stored: &StoredTransaction) -> bool {
    checked.sender == stored.sender && checked.hash() == stored.hash
}

fn same_state(snapshot: &Snapshot, replayed: &MemoryState) -> Result<bool, StoreError> {
    let (mut accounts, mut slots) = (BTreeMap::new(), BTreeMap::new());
    snapshot.each_account(|address, account| {
        accounts.insert(address, account);
    })?;
    snapshot.each_slot(|slot, value| {
        slots.insert(slot, value);
    })?;
    Ok(accounts == replayed.accounts && slots == replayed.slots)
}
