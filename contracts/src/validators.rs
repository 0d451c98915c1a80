//! The contract Validators: where it lies, what a first block has in its slots, and the rule by which it gives seats.
//!
//! The rule is here a second time, because networks without the contract vote by it and plans are made with it; a test compares the two in
//! the EVM.

use crate::bindings::Validators;
use alloy::primitives::{Address, B256, Bytes, U256, address, keccak256};
use alloy::sol_types::SolValue;
use std::collections::BTreeMap;

/// Where the contract lies in the first block: the address that Besu's documentation uses.
pub const ADDRESS: Address = address!("0000000000000000000000000000000000007777");
/// Most seats: `Validators.SEATS_MAX`.
pub const SEATS_MAX: usize = 64;
/// Most sites at a time: `Validators.SITES_MAX`.
pub const SITES_MAX: usize = 32;
/// Most keys of a site: `Validators.KEYS_MAX`.
pub const KEYS_MAX: usize = 16;
/// From so many sites on each has less than a third of the seats: `Validators.SITES_FOR_THIRD`.
pub const SITES_FOR_THIRD: usize = 4;

/// Slots of the contract's state, as `Validators.sol` lists them.
const REGISTRY: u64 = 0;
const EPOCH_BLOCKS: u64 = 1;
const SEATS: u64 = 2;
const STAKE_CAP: u64 = 3;
const VALIDATORS: u64 = 5;
const SITES: u64 = 6;
const KEYS_OF: u64 = 7;
const SITE_OF: u64 = 8;

/// The code that the first block has at [`ADDRESS`].
pub fn runtime_code() -> &'static Bytes {
    &Validators::DEPLOYED_BYTECODE
}

/// A site in the first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstSite {
    /// Account of its source.
    pub account: Address,
    /// Accounts of its validators, in the order in which they get its seats.
    pub keys: Vec<Address>,
}

/// What the contract is told in the first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstState {
    /// The registry, which need not be there yet.
    pub registry: Address,
    /// Blocks of an epoch, at least one.
    pub epoch_blocks: u64,
    /// Most seats.
    pub seats: usize,
    /// Most stake that is credited to a site in an epoch.
    pub stake_cap: u64,
    /// At least one, each with a key, no key twice.
    pub sites: Vec<FirstSite>,
}

impl FirstState {
    /// Who makes the first blocks: the seats of sites that have no stake yet.
    pub fn validators(&self) -> Vec<Address> {
        let keys: Vec<usize> = self.sites.iter().map(|site| site.keys.len()).collect();
        let given = apportion(&vec![1; keys.len()], &keys, self.seats).unwrap_or_default();
        self.sites.iter().zip(given).flat_map(|(site, seats)| site.keys.iter().copied().take(seats)).collect()
    }

    /// The slots that are not zero.
    pub fn storage(&self) -> BTreeMap<B256, B256> {
        let mut slots = BTreeMap::from([
            (slot(REGISTRY), self.registry.into_word()),
            (slot(EPOCH_BLOCKS), word(self.epoch_blocks)),
            (slot(SEATS), word(self.seats as u64)),
            (slot(STAKE_CAP), word(self.stake_cap)),
        ]);
        put_list(&mut slots, slot(VALIDATORS), &self.validators());
        let accounts: Vec<Address> = self.sites.iter().map(|site| site.account).collect();
        put_list(&mut slots, slot(SITES), &accounts);
        for FirstSite { account, keys } in &self.sites {
            put_list(&mut slots, of_key(*account, KEYS_OF), keys);
            slots.extend(keys.iter().map(|key| (of_key(*key, SITE_OF), account.into_word())));
        }
        slots.retain(|_, value| !value.is_zero());
        slots
    }
}

fn word(number: u64) -> B256 {
    U256::from(number).into()
}

fn slot(number: u64) -> B256 {
    word(number)
}

/// Where a mapping has the value of an account.
fn of_key(account: Address, mapping: u64) -> B256 {
    keccak256((account, U256::from(mapping)).abi_encode())
}

/// A list has its length in its slot, and its elements from the hash of that on.
fn put_list(slots: &mut BTreeMap<B256, B256>, at: B256, list: &[Address]) {
    slots.insert(at, word(list.len() as u64));
    let first = U256::from_be_bytes(keccak256(at).0);
    slots.extend(
        (0_u64..).zip(list).map(|(index, one)| (first.wrapping_add(U256::from(index)).into(), one.into_word())),
    );
}

/// Distributes at most `most` seats among sites with these weights and numbers of keys, as `IValidators.apportion` says; nothing where there
/// is no site, or one without weight or keys, which is a mistake of the caller.
pub fn apportion(weights: &[u64], keys: &[usize], most: usize) -> Option<Vec<usize>> {
    if weights.is_empty() || weights.len() != keys.len() || weights.contains(&0) || keys.contains(&0) {
        return None;
    }
    if weights.len() < SITES_FOR_THIRD {
        let fewest = keys.iter().copied().min().unwrap_or(1);
        return Some(vec![fewest.min(most / keys.len()).max(1); keys.len()]);
    }
    let fillable = |total: &usize| limits(keys, *total).iter().sum::<usize>() >= *total;
    let total = (SITES_FOR_THIRD..=most.min(SEATS_MAX)).rev().find(fillable).unwrap_or(SITES_FOR_THIRD);
    Some(by_quota(weights, &limits(keys, total), total))
}

/// No more than keys, and less than a third.
fn limits(keys: &[usize], total: usize) -> Vec<usize> {
    keys.iter().map(|keys| (*keys).min((total - 1) / 3)).collect()
}

/// Largest remainder, after the sites whose quota reaches their limit have that.
fn by_quota(weights: &[u64], limits: &[usize], total: usize) -> Vec<usize> {
    let weights: Vec<u128> = weights.iter().map(|weight| u128::from(*weight)).collect();
    let mut given: Vec<Option<usize>> = vec![None; weights.len()];
    let (mut left, mut weight) = (total, weights.iter().sum::<u128>());
    let reaches =
        |index: usize, left: usize, weight: u128| weights[index] * left as u128 >= limits[index] as u128 * weight;
    // Who is filled leaves more for each of the others.
    while let Some(full) = (0..weights.len()).find(|i| given[*i].is_none() && reaches(*i, left, weight)) {
        given[full] = Some(limits[full]);
        left -= limits[full];
        weight -= weights[full];
    }
    let quota = |index: usize| (weights[index] * left as u128 / weight, weights[index] * left as u128 % weight);
    let mut rest: Vec<(usize, u128)> =
        (0..weights.len()).filter(|i| given[*i].is_none()).map(|i| (i, quota(i).1)).collect();
    for (index, _) in &rest {
        // Below the limit, so it fits.
        given[*index] = Some(usize::try_from(quota(*index).0).unwrap_or(0));
    }
    let mut given: Vec<usize> = given.into_iter().map(Option::unwrap_or_default).collect();
    let spare = total - given.iter().sum::<usize>();
    // Of equals the earlier one; sorting keeps their order.
    rest.sort_by(|(_, one), (_, other)| other.cmp(one));
    rest.iter().take(spare).for_each(|(index, _)| given[*index] += 1);
    given
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn sites() -> impl Strategy<Value = (Vec<u64>, Vec<usize>)> {
        let weight = prop_oneof![1..4_u64, 1..1000_u64, 1..u64::MAX];
        (1..=SITES_MAX).prop_flat_map(move |count| {
            (prop::collection::vec(weight.clone(), count), prop::collection::vec(1..=KEYS_MAX, count))
        })
    }

    proptest! {
        #[test]
        fn each_of_four_has_less_than_a_third((weights, keys) in sites(), most in 0..80_usize) {
            let given = apportion(&weights, &keys, most).unwrap();
            let total = given.iter().sum::<usize>();
            prop_assert!(total > 0);
            for (seats, keys) in given.iter().zip(&keys) {
                prop_assert!(seats <= keys);
                prop_assert!(given.len() < SITES_FOR_THIRD || 3 * seats < total);
                prop_assert!(given.len() >= SITES_FOR_THIRD || *seats == given[0] && *seats >= 1);
            }
            if given.len() >= SITES_FOR_THIRD {
                prop_assert!(total <= most.max(SITES_FOR_THIRD) && total <= SEATS_MAX);
                let larger = (total + 1)..=most.min(SEATS_MAX);
                prop_assert!(larger.into_iter().all(|more| limits(&keys, more).iter().sum::<usize>() < more));
            }
        }

        #[test]
        fn more_stake_never_costs_a_seat((weights, keys) in sites(), most in 0..80_usize, who in any::<prop::sample::Index>(), more: u32) {
            let who = who.index(weights.len());
            let before = apportion(&weights, &keys, most).unwrap();
            let mut heavier = weights.clone();
            heavier[who] = heavier[who].saturating_add(u64::from(more));
            let later = apportion(&heavier, &keys, most).unwrap();
            prop_assert!(later[who] >= before[who]);
            prop_assert_eq!(later.iter().sum::<usize>(), before.iter().sum::<usize>());
        }

        #[test]
        fn no_validator_is_listed_twice(keys in prop::collection::vec(1..=KEYS_MAX, 1..=SITES_MAX), seats in 1..=SEATS_MAX) {
            let key = |site: usize, node: usize| Address::from_word(word((1000 + site * 100 + node) as u64));
            let sites = keys.iter().enumerate().map(|(site, count)| FirstSite {
                account: Address::from_word(word(site as u64 + 1)),
                keys: (0..*count).map(|node| key(site, node)).collect(),
            });
            let state = FirstState { registry: ADDRESS, epoch_blocks: 1, seats, stake_cap: 1, sites: sites.collect() };
            let mut list = state.validators();
            let length = list.len();
            list.sort_unstable();
            list.dedup();
            prop_assert!(length > 0 && list.len() == length);
        }
    }

    #[test]
    fn largest_remainders_worked_out() {
        assert_eq!(apportion(&[40, 26, 16, 11, 7], &[16; 5], 13).unwrap(), [4, 4, 2, 2, 1]);
        assert_eq!(apportion(&[1; 4], &[3; 4], 10).unwrap(), [3, 3, 2, 2]);
        assert_eq!(apportion(&[1, 9, 90], &[2, 3, 4], 64).unwrap(), [2, 2, 2]);
        assert_eq!(apportion(&[1, 1, 1, 1, 5], &[1; 5], 4).unwrap(), [1, 1, 1, 0, 1]);
        assert_eq!((apportion(&[], &[], 4), apportion(&[1], &[0], 4), apportion(&[0], &[1], 4)), (None, None, None));
    }
}
