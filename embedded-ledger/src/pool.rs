//! Transactions that were accepted and are not in a block yet.
//!
//! Everything that can be known at submission is checked at submission, with the words of geth, so that an accepted transaction is
//! executed: chain id, size, gas, fees, nonce, and that the balance covers everything the sender has waiting. The pool is in
//! memory: a transaction is safe when it has a receipt, not when it has a hash.
//!
//! This module must not know the store or the EVM; the sender's account is given to it.

use crate::execute::{BASE_FEE, intrinsic_gas};
use crate::state::{AccountRecord, EMPTY_CODE_HASH};
use alloy::consensus::{Transaction, TxEnvelope};
use alloy::eips::eip2718::Decodable2718;
use alloy::primitives::{Address, B256, Bytes, U256};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

/// Bytes of one transaction at most, as in geth.
pub const TRANSACTION_BYTES_MAX: usize = 131_072;

/// A transaction whose signature was checked.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) tx: TxEnvelope,
    pub(crate) sender: Address,
    pub(crate) raw: Bytes,
    /// Gas that it costs before its first instruction.
    pub(crate) intrinsic_gas: u64,
}

impl Checked {
    pub(crate) fn hash(&self) -> B256 {
        *self.tx.tx_hash()
    }

    /// The most that this transaction can take from its sender, in wei.
    fn cost(&self) -> U256 {
        let fees = U256::from(self.tx.gas_limit()) * U256::from(self.tx.max_fee_per_gas());
        fees.saturating_add(self.tx.value())
    }
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Bytes of all waiting transactions.
    pub bytes_max: usize,
    /// Waiting transactions of one sender.
    pub per_sender_max: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, per_sender_max: 8192 }
    }
}

/// Why a transaction was not accepted. The words are geth's, because clients compare them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("already known")]
    AlreadyKnown,
    #[error("nonce too low: address {sender}, tx: {nonce} state: {state}")]
    NonceTooLow { sender: Address, nonce: u64, state: u64 },
    #[error("replacement transaction underpriced")]
    Underpriced,
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {overshot}")]
    InsufficientFunds { balance: U256, cost: U256, overshot: U256 },
    #[error("oversized data: transaction size {size}, limit {TRANSACTION_BYTES_MAX}")]
    Oversized { size: usize },
    #[error("exceeds block gas limit")]
    GasLimit,
    #[error("intrinsic gas too low: gas {gas}, minimum needed {needed}")]
    IntrinsicGas { gas: u64, needed: u64 },
    #[error("max fee per gas less than block base fee: address {sender}, maxFeePerGas: {fee}, baseFee: {BASE_FEE}")]
    FeeTooLow { sender: Address, fee: u128 },
    #[error("max priority fee per gas higher than max fee per gas: tip {tip}, fee cap {fee}")]
    TipAboveFee { tip: u128, fee: u128 },
    #[error("invalid chain id for signer: have {have} want {want}")]
    ChainId { have: u64, want: u64 },
    #[error("only replay-protected (EIP-155) transactions allowed over RPC")]
    Unprotected,
    #[error("transaction type not supported")]
    Type,
    #[error("invalid sender")]
    Signature,
    #[error("rlp: {0}")]
    Encoding(String),
    #[error("sender not an eoa: address {sender}")]
    NotEoa { sender: Address },
    #[error("txpool is full")]
    Full,
    #[error("account limit exceeded")]
    SenderFull,
}

/// Checks all that depends on the transaction alone, and recovers its sender: the expensive part, done without any lock.
pub(crate) fn check(raw: Bytes, chain_id: u64, block_gas_limit: u64) -> Result<Checked, Rejected> {
    if raw.len() > TRANSACTION_BYTES_MAX {
        return Err(Rejected::Oversized { size: raw.len() });
    }
    let tx = TxEnvelope::decode_2718_exact(&raw).map_err(|e| Rejected::Encoding(e.to_string()))?;
    if tx.is_eip4844() || tx.is_eip7702() {
        return Err(Rejected::Type);
    }
    match tx.chain_id() {
        None => return Err(Rejected::Unprotected),
        Some(have) if have != chain_id => return Err(Rejected::ChainId { have, want: chain_id }),
        Some(_) => {}
    }
    if tx.gas_limit() > block_gas_limit {
        return Err(Rejected::GasLimit);
    }
    let needed = intrinsic_gas(&tx);
    if tx.gas_limit() < needed {
        return Err(Rejected::IntrinsicGas { gas: tx.gas_limit(), needed });
    }
    let sender = recover(&tx).ok_or(Rejected::Signature)?;
    let (fee, tip) = (tx.max_fee_per_gas(), tx.max_priority_fee_per_gas().unwrap_or(0));
    if tip > fee {
        return Err(Rejected::TipAboveFee { tip, fee });
    }
    if fee < u128::from(BASE_FEE) {
        return Err(Rejected::FeeTooLow { sender, fee });
    }
    Ok(Checked { tx, sender, raw, intrinsic_gas: needed })
}

fn recover(tx: &TxEnvelope) -> Option<Address> {
    use alloy::consensus::transaction::SignerRecoverable;
    tx.recover_signer().ok()
}

/// One waiting transaction and its place in the order of arrival.
#[derive(Clone, Debug)]
struct Waiting {
    arrival: u64,
    checked: Arc<Checked>,
}

/// All waiting transactions.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    limits: PoolLimits,
    by_sender: HashMap<Address, BTreeMap<u64, Waiting>>,
    by_hash: HashMap<B256, Arc<Checked>>,
    bytes: usize,
    arrivals: u64,
}

impl Pool {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Accepts a transaction, given its sender's account at the head. Transactions with later nonces wait for the earlier ones.
    pub(crate) fn add(&mut self, checked: Checked, account: Option<AccountRecord>) -> Result<B256, Rejected> {
        let hash = checked.hash();
        if self.by_hash.contains_key(&hash) {
            return Err(Rejected::AlreadyKnown);
        }
        let (sender, nonce) = (checked.sender, checked.tx.nonce());
        let state = account.map_or(0, |account| account.nonce);
        if nonce < state {
            return Err(Rejected::NonceTooLow { sender, nonce, state });
        }
        if account.is_some_and(|account| account.code_hash != EMPTY_CODE_HASH) {
            return Err(Rejected::NotEoa { sender });
        }
        let replaced = self.by_sender.get(&sender).and_then(|waiting| waiting.get(&nonce)).cloned();
        if let Some(replaced) = &replaced
            && !outbids(&checked.tx, &replaced.checked.tx)
        {
            return Err(Rejected::Underpriced);
        }
        self.check_funds(&checked, account, replaced.as_ref())?;
        self.check_room(&checked, replaced.is_some())?;
        if let Some(replaced) = replaced {
            self.remove(&replaced.checked);
        }
        self.insert(checked);
        Ok(hash)
    }

    /// Transactions that can go into a block now: per sender in nonce order without a gap, across senders by arrival.
    /// `nonce_of` gives the next nonce of a sender in the state the block builds on.
    pub(crate) fn ready<E>(
        &self,
        bytes_max: usize,
        gas_max: u64,
        mut nonce_of: impl FnMut(Address) -> Result<u64, E>,
    ) -> Result<Vec<Arc<Checked>>, E> {
        let mut heads = BinaryHeap::new();
        for (sender, waiting) in &self.by_sender {
            let nonce = nonce_of(*sender)?;
            if let Some(first) = waiting.get(&nonce) {
                heads.push(Reverse((first.arrival, *sender, nonce)));
            }
        }
        let (mut ready, mut bytes, mut gas) = (Vec::new(), 0, 0);
        while let Some(Reverse((_, sender, nonce))) = heads.pop() {
            let Some(waiting) = self.by_sender.get(&sender) else { continue };
            let Some(next) = waiting.get(&nonce) else { continue };
            bytes += next.checked.raw.len();
            // The gas that is used is known only later. Intrinsic gas is a floor, so this leaves out only what cannot fit.
            gas += next.checked.intrinsic_gas;
            if !ready.is_empty() && (bytes > bytes_max || gas > gas_max) {
                break;
            }
            ready.push(next.checked.clone());
            if let Some(after) = waiting.get(&(nonce + 1)) {
                heads.push(Reverse((after.arrival, sender, nonce + 1)));
            }
        }
        Ok(ready)
    }

    /// Forgets a transaction: it is in a block, or turned out to be impossible.
    pub(crate) fn remove(&mut self, checked: &Checked) {
        if self.by_hash.remove(&checked.hash()).is_none() {
            return;
        }
        self.bytes -= checked.raw.len();
        if let Some(waiting) = self.by_sender.get_mut(&checked.sender) {
            waiting.remove(&checked.tx.nonce());
            if waiting.is_empty() {
                self.by_sender.remove(&checked.sender);
            }
        }
    }

    /// Forgets a transaction that is in a block, and whatever else waited with its nonce or an earlier one: it came too late.
    pub(crate) fn mined(&mut self, checked: &Checked) {
        let Some(waiting) = self.by_sender.get(&checked.sender) else { return };
        let late: Vec<_> = waiting.range(..=checked.tx.nonce()).map(|(_, waiting)| waiting.checked.clone()).collect();
        for late in late {
            self.remove(&late);
        }
    }

    pub(crate) fn get(&self, hash: B256) -> Option<Arc<Checked>> {
        self.by_hash.get(&hash).cloned()
    }

    /// The nonce after all transactions of `sender` that can be executed one after the other from `state` on.
    pub(crate) fn next_nonce(&self, sender: Address, state: u64) -> u64 {
        let Some(waiting) = self.by_sender.get(&sender) else { return state };
        let mut next = state;
        while waiting.contains_key(&next) {
            next += 1;
        }
        next
    }

    fn insert(&mut self, checked: Checked) {
        let checked = Arc::new(checked);
        self.bytes += checked.raw.len();
        self.by_hash.insert(checked.hash(), checked.clone());
        let waiting = Waiting { arrival: self.arrivals, checked: checked.clone() };
        self.arrivals += 1;
        self.by_sender.entry(checked.sender).or_default().insert(checked.tx.nonce(), waiting);
    }

    fn check_funds(
        &self,
        checked: &Checked,
        account: Option<AccountRecord>,
        replaced: Option<&Waiting>,
    ) -> Result<(), Rejected> {
        let balance = account.map_or(U256::ZERO, |account| account.balance);
        let waiting = self.by_sender.get(&checked.sender);
        // Transactions below the state's nonce are in a block already and about to be forgotten.
        let state = account.map_or(0, |account| account.nonce);
        let queued = waiting.into_iter().flat_map(|waiting| waiting.range(state..));
        let queued = queued.fold(U256::ZERO, |sum, (_, waiting)| sum.saturating_add(waiting.checked.cost()));
        let freed = replaced.map_or(U256::ZERO, |replaced| replaced.checked.cost());
        let cost = queued.saturating_sub(freed).saturating_add(checked.cost());
        if cost > balance {
            return Err(Rejected::InsufficientFunds { balance, cost, overshot: cost - balance });
        }
        Ok(())
    }

    fn check_room(&self, checked: &Checked, replaces: bool) -> Result<(), Rejected> {
        if self.bytes + checked.raw.len() > self.limits.bytes_max {
            return Err(Rejected::Full);
        }
        let waiting = self.by_sender.get(&checked.sender).map_or(0, BTreeMap::len);
        if !replaces && waiting >= self.limits.per_sender_max {
            return Err(Rejected::SenderFull);
        }
        Ok(())
    }
}

/// Whether a transaction may take the place of another with the same nonce: ten percent more, in both fees.
fn outbids(new: &TxEnvelope, old: &TxEnvelope) -> bool {
    let tip = |tx: &TxEnvelope| tx.max_priority_fee_per_gas().unwrap_or(tx.max_fee_per_gas());
    let more = |new: u128, old: u128| new > old && new.saturating_mul(10) >= old.saturating_mul(11);
    more(new.max_fee_per_gas(), old.max_fee_per_gas()) && more(tip(new), tip(old))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::consensus::{SignableTransaction, TxEip1559};
    use alloy::eips::eip2718::Encodable2718;
    use alloy::network::TxSignerSync;
    use alloy::signers::local::PrivateKeySigner;

    fn transaction(seed: u8, nonce: u64, fee: u128) -> Checked {
        let mut tx = TxEip1559 {
            chain_id: 1,
            nonce,
            gas_limit: 21_000,
            max_fee_per_gas: fee,
            max_priority_fee_per_gas: fee,
            to: Address::ZERO.into(),
            ..TxEip1559::default()
        };
        let signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(seed)).unwrap();
        let signature = signer.sign_transaction_sync(&mut tx).unwrap();
        check(TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into(), 1, 40_000_000).unwrap()
    }

    fn rich(nonce: u64) -> Option<AccountRecord> {
        Some(AccountRecord { balance: U256::from(1_000_000_000), nonce, code_hash: EMPTY_CODE_HASH })
    }

    fn ready(pool: &Pool, nonce: u64) -> Vec<u64> {
        let ready = pool.ready(usize::MAX, u64::MAX, |_| Ok::<_, ()>(nonce)).unwrap();
        ready.iter().map(|checked| checked.tx.nonce()).collect()
    }

    /// A transaction that was replaced while it was being executed leaves its replacement behind.
    #[test]
    fn a_replacement_that_came_too_late_is_forgotten() {
        let mut pool = Pool::new(PoolLimits::default());
        pool.add(transaction(1, 0, 10), rich(0)).unwrap();
        pool.add(transaction(1, 1, 10), rich(0)).unwrap();
        let in_block = pool.ready(usize::MAX, 21_000, |_| Ok::<_, ()>(0)).unwrap();
        assert_eq!(in_block.len(), 1);
        pool.add(transaction(1, 0, 20), rich(0)).unwrap();
        pool.mined(&in_block[0]);
        assert_eq!(ready(&pool, 1), [1]);
        assert_eq!((pool.by_hash.len(), pool.bytes), (1, transaction(1, 1, 10).raw.len()));
        pool.mined(&transaction(1, 1, 10));
        assert!(pool.by_sender.is_empty() && pool.by_hash.is_empty() && pool.bytes == 0);
    }

    #[test]
    fn senders_take_turns_by_arrival_and_keep_their_nonce_order() {
        let mut pool = Pool::new(PoolLimits::default());
        for (seed, nonce) in [(1, 1), (2, 0), (1, 0), (2, 2), (2, 1), (1, 3)] {
            pool.add(transaction(seed, nonce, 10), rich(0)).unwrap();
        }
        let ready = pool.ready(usize::MAX, u64::MAX, |_| Ok::<_, ()>(0)).unwrap();
        let first = transaction(1, 0, 10).sender;
        let order: Vec<(u8, u64)> =
            ready.iter().map(|c| (if c.sender == first { 1 } else { 2 }, c.tx.nonce())).collect();
        assert_eq!(order, [(2, 0), (1, 0), (1, 1), (2, 1), (2, 2)]);
        assert_eq!(pool.next_nonce(first, 0), 2);
    }

    #[test]
    fn the_balance_must_cover_everything_that_waits() {
        let mut pool = Pool::new(PoolLimits::default());
        let account = |wei: u64| Some(AccountRecord { balance: U256::from(wei), nonce: 0, code_hash: EMPTY_CODE_HASH });
        pool.add(transaction(1, 0, 10), account(420_000)).unwrap();
        pool.add(transaction(1, 1, 10), account(420_000)).unwrap();
        let refused = pool.add(transaction(1, 2, 10), account(420_000));
        assert!(matches!(refused, Err(Rejected::InsufficientFunds { .. })), "{refused:?}");
        // A replacement is paid instead of, not besides, what it replaces.
        pool.add(transaction(1, 1, 11), account(441_000)).unwrap();
    }
}
