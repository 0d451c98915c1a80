//! Which nonce carries which transaction, and what is left to do about it. Pure: no clock, no node, no file; the simulation and
//! the sender run the same code.
//!
//! Life of a slot: *journaled* (the bytes are durable, nobody has seen them), *offered* (a node took them), *placed* (in a block
//! of the branch we follow), gone when its block is deep enough. A reorganisation takes a slot from placed back to journaled;
//! a node that loses its pool takes it from offered back to journaled. Bytes change on the way in two cases only: `raise` puts the same call
//! under its nonce for a higher fee, and whichever of them gets into a block counts; `vacate` gives up bytes that a node will never take,
//! and the waiting caller is told.

use super::node::Receipt;
use alloy::primitives::{B256, Bytes};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// What the journal keeps of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Account nonce.
    pub nonce: u64,
    /// Transaction hash.
    pub hash: B256,
    /// Digest of callee and calldata: a call in flight is not sent twice.
    pub call: B256,
    /// The signed transaction.
    pub raw: Bytes,
    /// Hashes of the same call under the same nonce for lower fees. Nodes may have them, so one of them may still get into a block.
    pub earlier: Vec<B256>,
}

impl Record {
    /// Hashes under which it may be in a block.
    fn hashes(&self) -> impl Iterator<Item = B256> {
        self.earlier.iter().copied().chain([self.hash])
    }
}

/// Where a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Hash of the transaction.
    pub transaction: B256,
    /// Height of the block.
    pub block_number: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// Position in the block.
    pub index: u64,
    /// False when the call reverted.
    pub succeeded: bool,
    /// Gas used.
    pub gas_used: u64,
}

impl From<&Receipt> for Placed {
    fn from(r: &Receipt) -> Self {
        Self {
            transaction: r.transaction,
            block_number: r.block_number,
            block_hash: r.block_hash,
            index: r.index,
            succeeded: r.succeeded,
            gas_used: r.gas_used,
        }
    }
}

/// What is in the journal and not final, by transaction hash. Whoever has this may ask, and cannot change anything. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Shown>);

#[derive(Debug, Default)]
struct Shown {
    /// The call, and the signed transaction that carries it now.
    transactions: RwLock<HashMap<B256, (B256, Bytes)>>,
    loaded: watch::Sender<bool>,
}

impl InFlight {
    /// Whether a transaction is there: the sender sends it until it is final.
    pub fn contains(&self, transaction: &B256) -> bool {
        self.0.transactions.read().unwrap_or_else(PoisonError::into_inner).contains_key(transaction)
    }

    /// The calls by their ids, each once, and the transactions that carry them.
    pub fn calls(&self) -> Vec<(B256, Bytes)> {
        let transactions = self.0.transactions.read().unwrap_or_else(PoisonError::into_inner);
        let calls: HashMap<B256, Bytes> = transactions.values().cloned().collect();
        calls.into_iter().collect()
    }

    /// Waits until it is known what an earlier run left.
    pub async fn loaded(&self) {
        // The sender of this is held here.
        let _ = self.0.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// Until a journal is read again it is not known what is in flight.
    pub fn forget(&self) {
        self.0.loaded.send_replace(false);
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<B256, (B256, Bytes)>)) {
        change(&mut self.0.transactions.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[derive(Debug)]
struct Slot {
    record: Record,
    offered: bool,
    placed: Option<Placed>,
    /// How many resynchronisations found the nonce used and no receipt for our transaction.
    missed: u8,
    /// How many times in a row a node called the bytes impossible.
    refused: u8,
}

/// All transactions that are not final yet, by nonce, without a gap.
#[derive(Debug, Default)]
pub struct Slots {
    next: u64,
    slots: BTreeMap<u64, Slot>,
    by_hash: HashMap<B256, u64>,
    by_call: HashMap<B256, u64>,
    bytes: usize,
    in_flight: InFlight,
}

/// After so many resynchronisations without a receipt, another transaction has taken the nonce.
const MISSED_MAX: u8 = 5;
/// After so many refusals in a row the bytes are given up.
const REFUSED_MAX: u8 = 3;

impl Slots {
    /// Takes up a journal. `next` is the journal's next nonce, `node_nonce` what the node says; the higher one counts, because
    /// a node may be behind and a journal may have been lost.
    pub fn load(records: Vec<Record>, next: u64, node_nonce: u64) -> Self {
        let mut slots = Self::default();
        for record in records {
            slots.next = slots.next.max(record.nonce + 1);
            slots.insert(record);
        }
        slots.next = slots.next.max(next).max(node_nonce);
        slots
    }

    /// The same, shown to whoever has `in_flight`.
    #[must_use]
    pub fn shown_in(mut self, in_flight: &InFlight) -> Self {
        let of_slot = |slot: &Slot| {
            let (call, raw) = (slot.record.call, slot.record.raw.clone());
            slot.record.hashes().map(|hash| (hash, (call, raw.clone()))).collect::<Vec<_>>()
        };
        in_flight.change(|shown| *shown = self.slots.values().flat_map(of_slot).collect());
        in_flight.0.loaded.send_replace(true);
        self.in_flight = in_flight.clone();
        self
    }

    fn insert(&mut self, record: Record) {
        self.bytes += record.raw.len();
        let carried = (record.call, record.raw.clone());
        self.in_flight.change(|shown| shown.extend(record.hashes().map(|hash| (hash, carried.clone()))));
        self.by_hash.extend(record.hashes().map(|hash| (hash, record.nonce)));
        self.by_call.insert(record.call, record.nonce);
        self.slots.insert(record.nonce, Slot { record, offered: false, placed: None, missed: 0, refused: 0 });
    }

    /// The nonce for the next transaction.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Adds transactions that are durable in the journal by now. Their nonces start at [`Slots::next`] and have no gap.
    pub fn admit(&mut self, records: Vec<Record>) {
        for record in records {
            debug_assert_eq!(record.nonce, self.next, "nonces are given out in order");
            self.next = record.nonce + 1;
            self.insert(record);
        }
    }

    /// Number of transactions that are not final.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Their size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The slot that carries this call, if it is in flight.
    pub fn carrying(&self, call: B256) -> Option<u64> {
        self.by_call.get(&call).copied()
    }

    /// The next transaction to hand to the node: always the lowest nonce that was not offered.
    pub fn to_offer(&self) -> Option<&Record> {
        self.slots.values().find(|s| !s.offered && s.placed.is_none()).map(|s| &s.record)
    }

    /// The node has taken the transaction, or says that its nonce is used.
    pub fn offered(&mut self, nonce: u64) {
        if let Some(slot) = self.slots.get_mut(&nonce) {
            slot.offered = true;
            slot.refused = 0;
        }
    }

    /// The node called the bytes impossible; true when that has happened often enough to believe it.
    pub fn refused(&mut self, nonce: u64) -> bool {
        let Some(slot) = self.slots.get_mut(&nonce) else { return false };
        slot.refused = slot.refused.saturating_add(1);
        slot.refused >= REFUSED_MAX
    }

    /// Puts other bytes under a nonce whose bytes no node will take. They must be durable by now.
    pub fn vacate(&mut self, record: Record) {
        self.replace(record);
    }

    /// Whoever looks meanwhile sees the one or the other.
    fn replace(&mut self, record: Record) {
        let before = self.take(record.nonce);
        self.insert(record);
        let by_hash = &self.by_hash;
        let gone = before.iter().flat_map(|slot| slot.record.hashes()).filter(|hash| !by_hash.contains_key(hash));
        self.in_flight.change(|shown| gone.for_each(|hash| drop(shown.remove(&hash))));
    }

    /// Puts the same call under its nonce for a higher fee; it must be durable by now, and name all hashes that were there before.
    pub fn raise(&mut self, record: Record) {
        debug_assert!(self.slots.get(&record.nonce).is_some_and(|slot| slot.record.call == record.call));
        self.replace(record);
    }

    /// Everything that waits for a block, by nonce.
    pub fn waiting(&self) -> Vec<Record> {
        self.slots.values().filter(|s| s.placed.is_none()).map(|s| s.record.clone()).collect()
    }

    /// Everything that is not in a block is offered again, in order: the node may have lost its pool.
    pub fn offer_again(&mut self) {
        for slot in self.slots.values_mut() {
            slot.offered = false;
        }
    }

    /// True when something waits for a block.
    pub fn any_unplaced(&self) -> bool {
        self.slots.values().any(|s| s.placed.is_none())
    }

    /// Nonces and hashes of everything that waits for a block; a nonce whose fee was raised has several.
    pub fn unplaced(&self) -> Vec<(u64, B256)> {
        let waiting = self.slots.values().filter(|s| s.placed.is_none());
        waiting.flat_map(|s| s.record.hashes().map(|hash| (s.record.nonce, hash))).collect()
    }

    /// Whether a transaction hash is one of ours in flight.
    pub fn owns(&self, transaction: &B256) -> bool {
        self.by_hash.contains_key(transaction)
    }

    /// Our transaction is in a block of the branch we follow.
    pub fn place(&mut self, placed: Placed) {
        if let Some(slot) = self.by_hash.get(&placed.transaction).and_then(|n| self.slots.get_mut(n)) {
            slot.placed = Some(placed);
            slot.missed = 0;
        }
    }

    /// A block left our branch; what it held waits again and is offered again.
    pub fn unplace_block(&mut self, block: B256) {
        self.unplace(|placed| placed.block_hash == block);
    }

    /// Nothing is known about any block any more.
    pub fn unplace_all(&mut self) {
        self.unplace(|_| true);
    }

    fn unplace(&mut self, gone: impl Fn(&Placed) -> bool) {
        for slot in self.slots.values_mut() {
            if slot.placed.as_ref().is_some_and(&gone) {
                slot.placed = None;
                slot.offered = false;
            }
        }
    }

    /// The node says that the nonce is used but has no receipt for our transaction. True when that was said often enough to
    /// believe that another transaction has taken the place.
    pub fn missed(&mut self, nonce: u64) -> bool {
        let Some(slot) = self.slots.get_mut(&nonce) else { return false };
        slot.missed = slot.missed.saturating_add(1);
        slot.missed >= MISSED_MAX
    }

    /// Takes out what is deep enough: `tip` is the height of the branch we follow, and a transaction in the tip has depth 1.
    pub fn take_final(&mut self, tip: u64, depth: u64) -> Vec<(u64, Placed)> {
        let done: Vec<(u64, Placed)> = self
            .slots
            .iter()
            .filter_map(|(nonce, s)| s.placed.map(|p| (*nonce, p)))
            .filter(|(_, p)| tip + 1 >= p.block_number + depth)
            .collect();
        for (nonce, _) in &done {
            self.remove(*nonce);
        }
        done
    }

    /// Forgets a slot.
    pub fn remove(&mut self, nonce: u64) {
        if let Some(slot) = self.take(nonce) {
            self.in_flight.change(|shown| slot.record.hashes().for_each(|hash| drop(shown.remove(&hash))));
        }
    }

    fn take(&mut self, nonce: u64) -> Option<Slot> {
        let slot = self.slots.remove(&nonce)?;
        self.bytes -= slot.record.raw.len();
        for hash in slot.record.hashes() {
            self.by_hash.remove(&hash);
        }
        if self.by_call.get(&slot.record.call) == Some(&nonce) {
            self.by_call.remove(&slot.record.call);
        }
        Some(slot)
    }

    /// The nonces that the node waits for and that no slot fills. It happens after a journal was lost while a pool was not, or
    /// after a chain was set back further than we keep transactions. `node_nonce` is what the node says.
    pub fn gap(&self, node_nonce: u64) -> std::ops::Range<u64> {
        let first_kept = self.slots.keys().next().copied().unwrap_or(self.next);
        node_nonce..first_kept.max(node_nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(nonce: u64) -> Record {
        let id = B256::with_last_byte(nonce as u8);
        Record { nonce, hash: id, call: id, raw: Bytes::from(vec![0; 10]), earlier: Vec::new() }
    }

    fn placed(nonce: u64, block_number: u64) -> Placed {
        let transaction = B256::with_last_byte(nonce as u8);
        let block_hash = B256::with_last_byte(block_number as u8);
        Placed { transaction, block_number, block_hash, index: 0, succeeded: true, gas_used: 1 }
    }

    #[test]
    fn offers_go_out_in_nonce_order_and_again_after_loss() {
        let mut slots = Slots::load(vec![], 0, 3);
        slots.admit(vec![record(3), record(4)]);
        assert_eq!(slots.to_offer().map(|r| r.nonce), Some(3));
        slots.offered(3);
        assert_eq!(slots.to_offer().map(|r| r.nonce), Some(4));
        slots.offered(4);
        assert_eq!(slots.to_offer(), None);
        slots.place(placed(3, 7));
        slots.offer_again();
        assert_eq!(slots.to_offer().map(|r| r.nonce), Some(4));
    }

    #[test]
    fn depth_one_is_the_tip_itself() {
        let mut slots = Slots::load(vec![record(0)], 1, 0);
        slots.place(placed(0, 7));
        assert!(slots.take_final(7, 2).is_empty());
        assert_eq!(slots.take_final(7, 1).len(), 1);
        assert_eq!((slots.count(), slots.bytes(), slots.next()), (0, 0, 1));
    }

    #[test]
    fn whichever_fee_gets_into_a_block_counts() {
        let mut slots = Slots::load(vec![record(0), record(1)], 0, 0);
        slots.offered(0);
        let dearer = Record { hash: B256::with_last_byte(9), earlier: vec![record(0).hash], ..record(0) };
        slots.raise(dearer.clone());
        assert_eq!(slots.to_offer(), Some(&dearer), "it is offered anew");
        assert_eq!(slots.unplaced().len(), 3);
        assert_eq!((slots.count(), slots.bytes(), slots.carrying(record(0).call)), (2, 20, Some(0)));
        slots.place(placed(0, 7));
        assert_eq!(slots.take_final(7, 1), [(0, placed(0, 7))]);
        assert!(!slots.owns(&record(0).hash) && !slots.owns(&dearer.hash));
    }

    #[test]
    fn a_removed_block_makes_its_transactions_wait_again() {
        let mut slots = Slots::load(vec![record(0), record(1)], 0, 0);
        slots.offered(0);
        slots.offered(1);
        slots.place(placed(0, 7));
        slots.place(placed(1, 8));
        slots.unplace_block(B256::with_last_byte(8));
        assert_eq!(slots.to_offer().map(|r| r.nonce), Some(1));
        assert_eq!(slots.unplaced().len(), 1);
    }

    #[test]
    fn a_gap_is_what_no_slot_fills() {
        assert_eq!(Slots::load(vec![record(5)], 0, 2).gap(2), 2..5);
        assert!(Slots::load(vec![record(5)], 0, 5).gap(5).is_empty());
        assert_eq!(Slots::load(vec![], 9, 7).gap(7), 7..9);
        assert!(Slots::load(vec![], 9, 9).gap(11).is_empty());
    }

    #[test]
    fn the_higher_nonce_counts() {
        assert_eq!(Slots::load(vec![], 4, 9).next(), 9);
        assert_eq!(Slots::load(vec![record(11)], 4, 9).next(), 12);
    }
}
