//! The durable store: one redb file, one fsynced write transaction per block.
//!
//! # Invariants
//! - A block is there as a whole or not at all: state, bodies, receipts, indexes, undo record and header are written in one
//!   transaction, and nobody hears of the block before that transaction is on disk.
//! - The state tables are the state after the highest block. Undo records lead back from there, as far as they are kept.
//! - After a write or sync has failed the store is not written again until it was reopened ([`StoreError::Poisoned`]).
//!
//! # After a crash
//! redb reopens at the last commit that was synced. `set_quick_repair` keeps the allocator state with every commit, so that this
//! takes milliseconds instead of a scan of the file.
//!
//! This module must not know the EVM, the pool or JSON-RPC.

use crate::state::{AccountRecord, Changes, PastState, Slot, StateRead, decode_account, encode_account};
use alloy::consensus::{Header, ReceiptEnvelope};
use alloy::eips::eip2718::{Decodable2718, Encodable2718};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rlp::{Decodable, Encodable};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The layout described here. Raised whenever it changes.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ACCOUNTS: TableDefinition<'_, [u8; 20], [u8; 72]> = TableDefinition::new("accounts");
/// Address ‖ key.
const SLOTS: TableDefinition<'_, [u8; 52], [u8; 32]> = TableDefinition::new("slots");
const CODES: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("codes");
const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
const NUMBERS: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("numbers");
/// Sender ‖ hash of a transaction by (block, index): what is asked for without its bytes.
const SENDERS: TableDefinition<'_, (u64, u32), [u8; 52]> = TableDefinition::new("senders");
/// EIP-2718 bytes of a transaction by (block, index).
const BODIES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("bodies");
const RECEIPTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("receipts");
const TRANSACTIONS: TableDefinition<'_, [u8; 32], (u64, u32)> = TableDefinition::new("transactions");
const UNDO: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("undo");

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the file system failed, or the file is in use.
    #[error("ledger store failed")]
    Storage(#[source] Box<redb::Error>),
    /// The file holds something that this program did not write.
    #[error("ledger store is damaged: {0}")]
    Corrupt(&'static str),
    /// A write failed earlier; nothing is written until the ledger was reopened.
    #[error("ledger store refuses writes after an earlier failure until it is reopened")]
    Poisoned,
    /// The ledger was closed.
    #[error("ledger is closed")]
    Closed,
    /// The state of that block is no longer kept.
    #[error("missing trie node: state of block {0} is no longer kept")]
    Pruned(u64),
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        }
    )+};
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

/// A header with what is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRecord {
    pub(crate) header: Header,
    pub(crate) hash: B256,
    /// The node's signature over the block hash: r ‖ s ‖ v; empty when the ledger has no signer.
    pub(crate) signature: Bytes,
    /// Bytes of the block in its Ethereum encoding, approximately: header and transactions.
    pub(crate) size: u64,
    pub(crate) transactions: u32,
}

/// A transaction as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTransaction {
    pub(crate) hash: B256,
    pub(crate) sender: Address,
    pub(crate) raw: Bytes,
}

/// A receipt with what its consensus encoding lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredReceipt {
    pub(crate) gas_used: u64,
    pub(crate) contract: Option<Address>,
    /// Logs in the block before this transaction's.
    pub(crate) first_log: u64,
    pub(crate) envelope: ReceiptEnvelope,
}

/// A block ready to be written.
pub(crate) struct SealedBlock {
    pub(crate) record: BlockRecord,
    pub(crate) transactions: Vec<StoredTransaction>,
    pub(crate) receipts: Vec<StoredReceipt>,
    pub(crate) changes: Changes,
}

/// What redb may keep of the file in memory, in bytes; its own default is a gigabyte.
const CACHE_BYTES: usize = 16 << 20;

/// The open file.
pub(crate) struct Store {
    database: Database,
    poisoned: AtomicBool,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            database: Database::builder().set_cache_size(CACHE_BYTES).create(path)?,
            poisoned: AtomicBool::new(false),
        })
    }

    pub(crate) fn open_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = Database::builder().create_with_backend(backend)?;
        Ok(Self { database, poisoned: AtomicBool::new(false) })
    }

    /// The state and chain as of now; later blocks do not show.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(Snapshot { read: self.database.begin_read()? })
    }

    /// The chain id of the store, `None` for a new file.
    pub(crate) fn chain_id(&self) -> Result<Option<u64>, StoreError> {
        let read = self.database.begin_read()?;
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match meta.get("format")?.map(|v| v.value()) {
            Some(FORMAT) => {}
            Some(_) => return Err(StoreError::Corrupt("written in another format version")),
            None => return Err(StoreError::Corrupt("no format version")),
        }
        Ok(meta.get("chain_id")?.map(|v| v.value()))
    }

    /// Writes the first block and what a ledger has only once.
    pub(crate) fn write_genesis(&self, chain_id: u64, block: &SealedBlock) -> Result<(), StoreError> {
        self.write(block, None, Some(chain_id))
    }

    /// Writes the next block durably. When this returns, a power cut does not take the block back.
    pub(crate) fn append(&self, block: &SealedBlock, history_blocks: u64) -> Result<(), StoreError> {
        self.write(block, Some(history_blocks), None)
    }

    /// Whether a write failed since the store was opened.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn write(&self, block: &SealedBlock, history: Option<u64>, chain_id: Option<u64>) -> Result<(), StoreError> {
        if self.is_poisoned() {
            return Err(StoreError::Poisoned);
        }
        let written = self.try_write(block, history, chain_id);
        if written.is_err() {
            self.poisoned.store(true, Ordering::Release);
        }
        written
    }

    fn try_write(&self, block: &SealedBlock, history: Option<u64>, chain_id: Option<u64>) -> Result<(), StoreError> {
        let mut write = self.database.begin_write()?;
        write.set_quick_repair(true);
        if let Some(chain_id) = chain_id {
            let mut meta = write.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("chain_id", chain_id)?;
        }
        write_chain(&write, block)?;
        write_state(&write, &block.changes)?;
        write_undo(&write, block, history.unwrap_or(0))?;
        write.commit()?;
        Ok(())
    }
}

fn write_chain(write: &WriteTransaction, block: &SealedBlock) -> Result<(), StoreError> {
    let number = block.record.header.number;
    write.open_table(BLOCKS)?.insert(number, encode_block(&block.record).as_slice())?;
    write.open_table(NUMBERS)?.insert(block.record.hash.0, number)?;
    let mut senders = write.open_table(SENDERS)?;
    let mut bodies = write.open_table(BODIES)?;
    let mut transactions = write.open_table(TRANSACTIONS)?;
    let mut receipts = write.open_table(RECEIPTS)?;
    for (index, transaction) in (0..).zip(&block.transactions) {
        let mut sender = [0; 52];
        sender[..20].copy_from_slice(transaction.sender.as_slice());
        sender[20..].copy_from_slice(transaction.hash.as_slice());
        senders.insert((number, index), sender)?;
        bodies.insert((number, index), transaction.raw.as_ref())?;
        transactions.insert(transaction.hash.0, (number, index))?;
    }
    for (index, receipt) in (0..).zip(&block.receipts) {
        receipts.insert((number, index), encode_receipt(receipt).as_slice())?;
    }
    Ok(())
}

fn write_state(write: &WriteTransaction, changes: &Changes) -> Result<(), StoreError> {
    let mut accounts = write.open_table(ACCOUNTS)?;
    for (address, change) in &changes.accounts {
        match &change.after {
            Some(account) => accounts.insert(address.into_array(), encode_account(account))?,
            None => accounts.remove(address.into_array())?,
        };
    }
    let mut slots = write.open_table(SLOTS)?;
    for (slot, change) in &changes.slots {
        if change.after.is_zero() {
            slots.remove(slot_key(*slot))?;
        } else {
            slots.insert(slot_key(*slot), change.after.to_be_bytes::<32>())?;
        }
    }
    let mut codes = write.open_table(CODES)?;
    for (hash, code) in &changes.codes {
        codes.insert(hash.0, code.as_ref())?;
    }
    Ok(())
}

/// Keeps what leads back to the parent state, and forgets what leads back too far.
fn write_undo(write: &WriteTransaction, block: &SealedBlock, history: u64) -> Result<(), StoreError> {
    let number = block.record.header.number;
    let mut undo = write.open_table(UNDO)?;
    if history > 0 {
        undo.insert(number, encode_undo(&block.changes).as_slice())?;
    }
    // One block more than is usually due, so that a shortened history shrinks over time.
    for _ in 0..2 {
        let oldest = undo.first()?.map(|(number, _)| number.value());
        match oldest {
            Some(oldest) if oldest + history <= number => undo.remove(oldest)?,
            _ => break,
        };
    }
    Ok(())
}

/// The chain and the head state at one moment.
pub(crate) struct Snapshot {
    read: ReadTransaction,
}

impl Snapshot {
    /// The highest block.
    pub(crate) fn head(&self) -> Result<BlockRecord, StoreError> {
        let blocks = self.read.open_table(BLOCKS)?;
        let last = blocks.last()?.ok_or(StoreError::Corrupt("no blocks"))?;
        decode_block(last.1.value())
    }

    pub(crate) fn block(&self, number: u64) -> Result<Option<BlockRecord>, StoreError> {
        let blocks = self.read.open_table(BLOCKS)?;
        blocks.get(number)?.map(|bytes| decode_block(bytes.value())).transpose()
    }

    pub(crate) fn number_of(&self, hash: B256) -> Result<Option<u64>, StoreError> {
        Ok(self.read.open_table(NUMBERS)?.get(hash.0)?.map(|number| number.value()))
    }

    /// (block, index) of a transaction.
    pub(crate) fn position_of(&self, hash: B256) -> Result<Option<(u64, u32)>, StoreError> {
        Ok(self.read.open_table(TRANSACTIONS)?.get(hash.0)?.map(|position| position.value()))
    }

    pub(crate) fn transaction(&self, number: u64, index: u32) -> Result<Option<StoredTransaction>, StoreError> {
        let Some((sender, hash)) = self.sender(number, index)? else { return Ok(None) };
        let bodies = self.read.open_table(BODIES)?;
        let raw = bodies.get((number, index))?.ok_or(StoreError::Corrupt("transaction without bytes"))?;
        Ok(Some(StoredTransaction { hash, sender, raw: Bytes::copy_from_slice(raw.value()) }))
    }

    /// Sender and hash of a transaction, without reading its bytes.
    pub(crate) fn sender(&self, number: u64, index: u32) -> Result<Option<(Address, B256)>, StoreError> {
        let senders = self.read.open_table(SENDERS)?;
        let bytes = senders.get((number, index))?.map(|bytes| bytes.value());
        Ok(bytes.map(|bytes| (Address::from_slice(&bytes[..20]), B256::from_slice(&bytes[20..]))))
    }

    pub(crate) fn receipt(&self, number: u64, index: u32) -> Result<Option<StoredReceipt>, StoreError> {
        let receipts = self.read.open_table(RECEIPTS)?;
        receipts.get((number, index))?.map(|bytes| decode_receipt(bytes.value())).transpose()
    }

    /// The state after block `number`, if it is still kept.
    pub(crate) fn state_at(self, number: u64) -> Result<Box<dyn StateRead>, StoreError> {
        let head = self.head()?.header.number;
        if number == head {
            return Ok(Box::new(self));
        }
        let (mut accounts, mut slots) = (HashMap::new(), HashMap::new());
        let undo = self.read.open_table(UNDO)?;
        for later in number + 1..=head {
            let bytes = undo.get(later)?.ok_or(StoreError::Pruned(number))?;
            // The first block after `number` that changed a value knows what it was then.
            decode_undo(
                bytes.value(),
                |address, account| {
                    accounts.entry(address).or_insert(account);
                },
                |slot, value| {
                    slots.entry(slot).or_insert(value);
                },
            )?;
        }
        drop(undo);
        Ok(Box::new(PastState { later: self, accounts, slots }))
    }

    /// Calls `visit` for every account, in order.
    pub(crate) fn each_account(&self, mut visit: impl FnMut(Address, AccountRecord)) -> Result<(), StoreError> {
        for row in self.read.open_table(ACCOUNTS)?.iter()? {
            let (address, account) = row?;
            visit(address.value().into(), decode_account(&account.value()));
        }
        Ok(())
    }

    /// Calls `visit` for every slot, in order.
    pub(crate) fn each_slot(&self, mut visit: impl FnMut(Slot, U256)) -> Result<(), StoreError> {
        for row in self.read.open_table(SLOTS)?.iter()? {
            let (key, value) = row?;
            let key = key.value();
            visit(
                (Address::from_slice(&key[..20]), U256::from_be_slice(&key[20..])),
                U256::from_be_bytes(value.value()),
            );
        }
        Ok(())
    }
}

impl StateRead for Snapshot {
    fn account(&self, address: Address) -> Result<Option<AccountRecord>, StoreError> {
        let accounts = self.read.open_table(ACCOUNTS)?;
        Ok(accounts.get(address.into_array())?.map(|bytes| decode_account(&bytes.value())))
    }

    fn slot(&self, slot: Slot) -> Result<U256, StoreError> {
        let slots = self.read.open_table(SLOTS)?;
        Ok(slots.get(slot_key(slot))?.map(|bytes| U256::from_be_bytes(bytes.value())).unwrap_or_default())
    }

    fn code(&self, code_hash: B256) -> Result<Bytes, StoreError> {
        let codes = self.read.open_table(CODES)?;
        Ok(codes.get(code_hash.0)?.map(|code| Bytes::copy_from_slice(code.value())).unwrap_or_default())
    }

    fn slots_of(&self, address: Address) -> Result<Vec<U256>, StoreError> {
        let range = slot_key((address, U256::ZERO))..=slot_key((address, U256::MAX));
        let slots = self.read.open_table(SLOTS)?;
        slots.range(range)?.map(|row| Ok(U256::from_be_slice(&row?.0.value()[20..]))).collect()
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        Ok(self.block(number)?.map(|block| block.hash).unwrap_or_default())
    }
}

fn slot_key((address, key): Slot) -> [u8; 52] {
    let mut bytes = [0; 52];
    bytes[..20].copy_from_slice(address.as_slice());
    bytes[20..].copy_from_slice(&key.to_be_bytes::<32>());
    bytes
}

/// Size, number of transactions, length of the signature, signature, RLP header.
fn encode_block(block: &BlockRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(700);
    bytes.extend(block.size.to_be_bytes());
    bytes.extend(block.transactions.to_be_bytes());
    bytes.push(u8::try_from(block.signature.len()).unwrap_or(0));
    bytes.extend(&block.signature);
    block.header.encode(&mut bytes);
    bytes
}

fn decode_block(mut bytes: &[u8]) -> Result<BlockRecord, StoreError> {
    const DAMAGED: StoreError = StoreError::Corrupt("block header");
    let size = u64::from_be_bytes(take(&mut bytes)?);
    let transactions = u32::from_be_bytes(take(&mut bytes)?);
    let [signature_bytes] = take(&mut bytes)?;
    let signature = bytes.split_off(..usize::from(signature_bytes)).ok_or(DAMAGED)?;
    let header = Header::decode(&mut bytes).map_err(|_| DAMAGED)?;
    let hash = header.hash_slow();
    Ok(BlockRecord { header, hash, signature: Bytes::copy_from_slice(signature), size, transactions })
}

/// Gas, number of logs before, contract (zero for none), EIP-2718 receipt.
fn encode_receipt(receipt: &StoredReceipt) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(receipt.gas_used.to_be_bytes());
    bytes.extend(receipt.first_log.to_be_bytes());
    bytes.extend(receipt.contract.unwrap_or_default());
    receipt.envelope.encode_2718(&mut bytes);
    bytes
}

fn decode_receipt(mut bytes: &[u8]) -> Result<StoredReceipt, StoreError> {
    let gas_used = u64::from_be_bytes(take(&mut bytes)?);
    let first_log = u64::from_be_bytes(take(&mut bytes)?);
    let contract = Address::from(take::<20>(&mut bytes)?);
    let envelope = ReceiptEnvelope::decode_2718(&mut bytes).map_err(|_| StoreError::Corrupt("receipt"))?;
    Ok(StoredReceipt { gas_used, contract: Some(contract).filter(|c| !c.is_zero()), first_log, envelope })
}

/// Old values only: accounts (present flag, address, record) and slots, each list led by its length.
fn encode_undo(changes: &Changes) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((changes.accounts.len() as u64).to_be_bytes());
    for (address, change) in &changes.accounts {
        bytes.push(u8::from(change.before.is_some()));
        bytes.extend(address);
        if let Some(account) = &change.before {
            bytes.extend(encode_account(account));
        }
    }
    for (slot, change) in &changes.slots {
        bytes.extend(slot_key(*slot));
        bytes.extend(change.before.to_be_bytes::<32>());
    }
    bytes
}

fn decode_undo(
    mut bytes: &[u8],
    mut account: impl FnMut(Address, Option<AccountRecord>),
    mut slot: impl FnMut(Slot, U256),
) -> Result<(), StoreError> {
    for _ in 0..u64::from_be_bytes(take(&mut bytes)?) {
        let [present] = take(&mut bytes)?;
        let address = Address::from(take::<20>(&mut bytes)?);
        let record = if present == 1 { Some(decode_account(&take(&mut bytes)?)) } else { None };
        account(address, record);
    }
    while !bytes.is_empty() {
        let address = Address::from(take::<20>(&mut bytes)?);
        let key = U256::from_be_bytes(take::<32>(&mut bytes)?);
        slot((address, key), U256::from_be_bytes(take::<32>(&mut bytes)?));
    }
    Ok(())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], StoreError> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(StoreError::Corrupt("record too short"))?;
    *bytes = rest;
    Ok(*first)
}
