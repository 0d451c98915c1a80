//! Accounts, storage slots and code: reading them, changing them during a block, and committing to the changes.
//!
//! A [`StateRead`] is a fixed state (the head, a past block, or a state rebuilt by a replay). A [`BlockState`] is what the EVM sees
//! while a block is executed: a fixed state and everything changed since. [`BlockState::finish`] turns that into [`Changes`], which are
//! what is stored, undone and hashed.
//!
//! This module must not know how a state is stored.

use crate::store::StoreError;
use alloy::primitives::{Address, B256, Bytes, Keccak256, U256, keccak256, map::AddressMap};
use revm::bytecode::Bytecode;
use revm::database_interface::DBErrorMarker;
use revm::state::{Account, AccountInfo};
use revm::{Database, DatabaseCommit};
use std::collections::{BTreeMap, HashMap};

/// keccak-256 of no bytes: the code hash of an account without code.
pub(crate) const EMPTY_CODE_HASH: B256 = alloy::primitives::KECCAK256_EMPTY;

/// The durable part of an account; its storage is kept slot by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccountRecord {
    pub(crate) balance: U256,
    pub(crate) nonce: u64,
    pub(crate) code_hash: B256,
}

/// A slot of a contract's storage.
pub(crate) type Slot = (Address, U256);

impl DBErrorMarker for StoreError {}

/// A state that does not change while it is looked at.
pub(crate) trait StateRead {
    fn account(&self, address: Address) -> Result<Option<AccountRecord>, StoreError>;
    /// Zero when the slot was never written.
    fn slot(&self, slot: Slot) -> Result<U256, StoreError>;
    /// The code with this hash; empty when unknown.
    fn code(&self, code_hash: B256) -> Result<Bytes, StoreError>;
    /// Every slot of a contract that is not zero. Only needed when a contract destroys itself.
    fn slots_of(&self, address: Address) -> Result<Vec<U256>, StoreError>;
    /// The hash of a block; zero when there is no such block.
    fn block_hash(&self, number: u64) -> Result<B256, StoreError>;
}

/// What a block changed: new values and the values they replaced, in a canonical order. Nothing that stayed the same is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) accounts: BTreeMap<Address, Change<Option<AccountRecord>>>,
    pub(crate) slots: BTreeMap<Slot, Change<U256>>,
    /// Code that appeared, by its hash. Never removed.
    pub(crate) codes: BTreeMap<B256, Bytes>,
}

/// A value before and after a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change<T> {
    pub(crate) before: T,
    pub(crate) after: T,
}

impl Changes {
    /// The rolling commitment that stands in the header's state root field: keccak-256 of the parent's commitment and of the new
    /// values of everything that changed, in order. See the crate documentation for what it does not give.
    pub(crate) fn commitment(&self, parent: B256) -> B256 {
        let mut changes = Keccak256::new();
        for (address, change) in &self.accounts {
            changes.update([u8::from(change.after.is_some())]);
            changes.update(address);
            if let Some(account) = change.after {
                changes.update(encode_account(&account));
            }
        }
        for ((address, key), change) in &self.slots {
            changes.update([2]);
            changes.update(address);
            changes.update(key.to_be_bytes::<32>());
            changes.update(change.after.to_be_bytes::<32>());
        }
        keccak256([parent, changes.finalize()].concat())
    }
}

/// Balance, nonce and code hash in 72 bytes.
pub(crate) fn encode_account(account: &AccountRecord) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..32].copy_from_slice(&account.balance.to_be_bytes::<32>());
    bytes[32..40].copy_from_slice(&account.nonce.to_be_bytes());
    bytes[40..].copy_from_slice(account.code_hash.as_slice());
    bytes
}

/// The inverse of [`encode_account`].
pub(crate) fn decode_account(bytes: &[u8; 72]) -> AccountRecord {
    let mut nonce = [0; 8];
    nonce.copy_from_slice(&bytes[32..40]);
    AccountRecord {
        balance: U256::from_be_slice(&bytes[..32]),
        nonce: u64::from_be_bytes(nonce),
        code_hash: B256::from_slice(&bytes[40..]),
    }
}

/// A fixed state and what was changed since.
pub(crate) struct BlockState<'a> {
    base: &'a dyn StateRead,
    accounts: HashMap<Address, Option<AccountRecord>>,
    slots: HashMap<Slot, U256>,
    codes: HashMap<B256, Bytecode>,
    /// The first error met where the EVM's interface has no room for one.
    error: Option<StoreError>,
}

impl<'a> BlockState<'a> {
    pub(crate) fn new(base: &'a dyn StateRead) -> Self {
        Self { base, accounts: HashMap::new(), slots: HashMap::new(), codes: HashMap::new(), error: None }
    }

    /// The account as it is now.
    pub(crate) fn account(&self, address: Address) -> Result<Option<AccountRecord>, StoreError> {
        match self.accounts.get(&address) {
            Some(account) => Ok(*account),
            None => self.base.account(address),
        }
    }

    /// Sets an account from outside the EVM: genesis only.
    pub(crate) fn put_account(&mut self, address: Address, account: AccountRecord, code: Bytes) {
        self.accounts.insert(address, Some(account));
        if !code.is_empty() {
            self.codes.insert(account.code_hash, Bytecode::new_legacy(code));
        }
    }

    /// Sets a slot from outside the EVM: genesis only.
    pub(crate) fn put_slot(&mut self, address: Address, slot: U256, value: U256) {
        self.slots.insert((address, slot), value);
    }

    /// Everything that differs from the base.
    pub(crate) fn finish(self) -> Result<Changes, StoreError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut changes = Changes::default();
        for (address, after) in self.accounts {
            let before = self.base.account(address)?;
            if before != after {
                changes.accounts.insert(address, Change { before, after });
            }
        }
        for (slot, after) in self.slots {
            let before = self.base.slot(slot)?;
            if before != after {
                changes.slots.insert(slot, Change { before, after });
            }
        }
        changes.codes = self.codes.into_iter().map(|(hash, code)| (hash, code.original_bytes())).collect();
        Ok(changes)
    }

    fn destroy(&mut self, address: Address) -> Result<(), StoreError> {
        self.accounts.insert(address, None);
        for (slot, value) in &mut self.slots {
            if slot.0 == address {
                *value = U256::ZERO;
            }
        }
        for key in self.base.slots_of(address)? {
            self.slots.insert((address, key), U256::ZERO);
        }
        Ok(())
    }

    fn apply(&mut self, address: Address, account: Account) -> Result<(), StoreError> {
        if !account.is_touched() {
            return Ok(());
        }
        if account.is_selfdestructed() {
            return self.destroy(address);
        }
        // EIP-161: a touched account that is empty ceases to exist.
        if account.info.is_empty() {
            self.accounts.insert(address, None);
            return Ok(());
        }
        let AccountInfo { balance, nonce, code_hash, ref code, .. } = account.info;
        self.accounts.insert(address, Some(AccountRecord { balance, nonce, code_hash }));
        if let Some(code) = code
            && code_hash != EMPTY_CODE_HASH
            && account.is_created()
        {
            self.codes.insert(code_hash, code.clone());
        }
        for (key, value) in account.changed_storage_slots() {
            self.slots.insert((address, *key), value.present_value());
        }
        Ok(())
    }
}

impl Database for BlockState<'_> {
    type Error = StoreError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StoreError> {
        let info = |account: AccountRecord| AccountInfo {
            balance: account.balance,
            nonce: account.nonce,
            code_hash: account.code_hash,
            ..AccountInfo::default()
        };
        // The default carries the code of an account without code; anything else is fetched by hash when it is run.
        Ok(self.account(address)?.map(|account| {
            let mut info = info(account);
            if account.code_hash != EMPTY_CODE_HASH {
                info.code = None;
            }
            info
        }))
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, StoreError> {
        if let Some(code) = self.codes.get(&code_hash) {
            return Ok(code.clone());
        }
        Ok(Bytecode::new_legacy(self.base.code(code_hash)?))
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, StoreError> {
        match self.slots.get(&(address, index)) {
            Some(value) => Ok(*value),
            None => self.base.slot((address, index)),
        }
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StoreError> {
        self.base.block_hash(number)
    }
}

impl DatabaseCommit for BlockState<'_> {
    fn commit(&mut self, changes: AddressMap<Account>) {
        for (address, account) in changes {
            if let Err(error) = self.apply(address, account) {
                self.error.get_or_insert(error);
            }
        }
    }
}

/// A past state: a later one with what was changed since put back.
pub(crate) struct PastState<S> {
    pub(crate) later: S,
    pub(crate) accounts: HashMap<Address, Option<AccountRecord>>,
    pub(crate) slots: HashMap<Slot, U256>,
}

impl<S: StateRead> StateRead for PastState<S> {
    fn account(&self, address: Address) -> Result<Option<AccountRecord>, StoreError> {
        match self.accounts.get(&address) {
            Some(account) => Ok(*account),
            None => self.later.account(address),
        }
    }

    fn slot(&self, slot: Slot) -> Result<U256, StoreError> {
        match self.slots.get(&slot) {
            Some(value) => Ok(*value),
            None => self.later.slot(slot),
        }
    }

    fn code(&self, code_hash: B256) -> Result<Bytes, StoreError> {
        self.later.code(code_hash)
    }

    fn slots_of(&self, address: Address) -> Result<Vec<U256>, StoreError> {
        let mut keys = self.later.slots_of(address)?;
        keys.retain(|key| !self.slots.contains_key(&(address, *key)));
        keys.extend(self.slots.iter().filter(|(slot, value)| slot.0 == address && !value.is_zero()).map(|(s, _)| s.1));
        Ok(keys)
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        self.later.block_hash(number)
    }
}

/// A state in memory, rebuilt by a replay.
#[derive(Default)]
pub(crate) struct MemoryState {
    pub(crate) accounts: BTreeMap<Address, AccountRecord>,
    pub(crate) slots: BTreeMap<Slot, U256>,
    codes: HashMap<B256, Bytes>,
    pub(crate) block_hashes: Vec<B256>,
}

impl MemoryState {
    pub(crate) fn apply(&mut self, changes: &Changes) {
        for (address, change) in &changes.accounts {
            match change.after {
                Some(account) => self.accounts.insert(*address, account),
                None => self.accounts.remove(address),
            };
        }
        for (slot, change) in &changes.slots {
            if change.after.is_zero() {
                self.slots.remove(slot);
            } else {
                self.slots.insert(*slot, change.after);
            }
        }
        self.codes.extend(changes.codes.iter().map(|(hash, code)| (*hash, code.clone())));
    }
}

impl StateRead for MemoryState {
    fn account(&self, address: Address) -> Result<Option<AccountRecord>, StoreError> {
        Ok(self.accounts.get(&address).copied())
    }

    fn slot(&self, slot: Slot) -> Result<U256, StoreError> {
        Ok(self.slots.get(&slot).copied().unwrap_or_default())
    }

    fn code(&self, code_hash: B256) -> Result<Bytes, StoreError> {
        Ok(self.codes.get(&code_hash).cloned().unwrap_or_default())
    }

    fn slots_of(&self, address: Address) -> Result<Vec<U256>, StoreError> {
        let of_address = self.slots.range((address, U256::ZERO)..=(address, U256::MAX));
        Ok(of_address.map(|((_, key), _)| *key).collect())
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        Ok(self.block_hashes.get(index).copied().unwrap_or_default())
    }
}
