//! How much of a site's stake counts, where no contract reckons it (Clique): what it grew by in each epoch of so many blocks, up to a cap, as the
//! contract Validators would have credited it at the first block of the next. Read from the events of the registry, which every node has of the whole
//! chain; states of long ago it may not have.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use alloy::providers::{DynProvider, Provider as _};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEvent as _;
use alloy::transports::TransportError;
use contracts::Studies;
use futures::stream::{StreamExt as _, TryStreamExt as _};

/// Blocks whose events are asked for at once, at most. Somebody who makes up studies to get seats must not make this fail: what a node does not
/// answer is asked for in halves.
const SPAN_BLOCKS: u64 = 1_000;
/// Questions at a time.
const READ_PARALLEL: usize = 2;

/// How fast stake may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// Blocks of an epoch, at least one.
    pub epoch_blocks: u64,
    /// Studies that count for a site in that time.
    pub cap: u64,
}

impl Rule {
    /// The epoch of a block.
    pub(super) fn epoch(self, block: u64) -> u64 {
        block / self.epoch_blocks.max(1)
    }

    /// The first block of the epoch of a block: what was defined before it counts.
    pub(super) fn border(self, block: u64) -> u64 {
        self.epoch(block) * self.epoch_blocks.max(1)
    }

    /// How many of the studies that were defined in these blocks count at `block`: of each epoch that is over, no more than the cap. So everybody who asks in one
    /// epoch reckons alike, at whichever of its blocks.
    pub(super) fn credited(self, defined: &[u64], block: u64) -> u64 {
        let mut by_epoch: BTreeMap<u64, u64> = BTreeMap::new();
        for at in defined.iter().filter(|at| **at < self.border(block)) {
            *by_epoch.entry(self.epoch(*at)).or_default() += 1;
        }
        by_epoch.values().fold(0, |sum, grown| sum.saturating_add((*grown).min(self.cap)))
    }
}

/// The blocks up to `last` in which each source defined a study, one for each study, in order.
pub(super) async fn defined(
    node: &DynProvider,
    studies: Address,
    sources: &[Address],
    last: u64,
) -> Result<BTreeMap<Address, Vec<u64>>, TransportError> {
    let mut defined: BTreeMap<Address, Vec<u64>> = sources.iter().map(|source| (*source, Vec::new())).collect();
    if sources.is_empty() {
        // No topic would mean any.
        return Ok(defined);
    }
    let topics: Vec<B256> = sources.iter().map(|source| source.into_word()).collect();
    let starts = (0..=last).step_by(usize::try_from(SPAN_BLOCKS).unwrap_or(usize::MAX));
    let of_span = |from: u64| of_span(node, studies, &topics, from, last.min(from + SPAN_BLOCKS - 1));
    let mut spans = futures::stream::iter(starts).map(of_span).buffered(READ_PARALLEL);
    while let Some(found) = spans.try_next().await? {
        for (source, block) in found {
            if let Some(blocks) = defined.get_mut(&source) {
                blocks.push(block);
            }
        }
    }
    drop(spans);
    Ok(defined)
}

/// Source and block of each study that was defined in some blocks, in order.
async fn of_span(
    node: &DynProvider,
    studies: Address,
    topics: &[B256],
    from: u64,
    to: u64,
) -> Result<Vec<(Address, u64)>, TransportError> {
    let (mut found, mut left) = (Vec::new(), vec![(from, to)]);
    while let Some((from, to)) = left.pop() {
        let filter = Filter::new().address(studies).event_signature(Studies::StudyDefined::SIGNATURE_HASH);
        match node.get_logs(&filter.topic2(topics.to_vec()).from_block(from).to_block(to)).await {
            Ok(logs) => {
                let read = |log: Log| Some((Address::from_word(*log.topics().get(2)?), log.block_number?));
                found.extend(logs.into_iter().filter_map(read));
            }
            Err(error) if from == to => return Err(error),
            Err(_) => {
                let middle = from + (to - from) / 2;
                left.extend([(middle + 1, to), (from, middle)]);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// What the contract's roll does at the first block of each epoch up to that of `block`.
    fn rolled(rule: Rule, defined: &[u64], block: u64) -> u64 {
        let (mut seen, mut credited) = (0, 0);
        for epoch in 1..=rule.epoch(block) {
            let stake = defined.iter().filter(|at| **at < epoch * rule.epoch_blocks).count() as u64;
            credited += (stake - seen).min(rule.cap);
            seen = stake;
        }
        credited
    }

    #[test]
    fn of_ten_thousand_in_an_epoch_the_cap_counts_and_the_rest_never() {
        let rule = Rule { epoch_blocks: 100, cap: 7 };
        let sham = vec![150; 10_000];
        let counts = [150, 199, 200, 299, 300, 100_000].map(|block| rule.credited(&sham, block));
        assert_eq!(counts, [0, 0, 7, 7, 7, 7]);
        let honest: Vec<u64> = (0..1_000).map(|day| day * 100 + 3).collect();
        assert_eq!(rule.credited(&honest, 100_000), 1_000);
    }

    proptest! {
        #[test]
        fn stake_counts_as_the_contract_credits_it(
            epoch_blocks in 1..50_u64,
            cap in 0..20_u64,
            defined in prop::collection::vec(0..400_u64, 0..300),
            block in 0..500_u64,
            sham in 0..10_000_usize,
            when in 0..400_u64,
        ) {
            let rule = Rule { epoch_blocks, cap };
            let counts = rule.credited(&defined, block);
            prop_assert_eq!(counts, rolled(rule, &defined, block));
            prop_assert!(counts <= cap * rule.epoch(block) && counts <= defined.len() as u64);
            // Whoever asks in this epoch is told the same, and later never less.
            prop_assert_eq!(rule.credited(&defined, rule.border(block)), counts);
            prop_assert!(rule.credited(&defined, block + epoch_blocks) >= counts);
            // However many are made up in one epoch, no more than the cap comes of it.
            let more = [defined, vec![when; sham]].concat();
            let gained = rule.credited(&more, block) - counts;
            prop_assert!(gained <= cap && gained <= sham as u64);
        }
    }
}
