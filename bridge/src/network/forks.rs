//! Blocks that were made and do not stand: whose they were, and which block stands in their place. Nodes show what they hold now; of the past, sites know
//! that wrote down what left their branch ([`crate::ledger::forks`]). A header says itself who sealed it, so no record can put a block on a site
//! that did not seal it; which blocks it leaves out, nobody can tell. Pure.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, U256};
use serde::Serialize;

use super::Network;
use super::audit::{Kind, Sealed};
use crate::ledger::forks::{Forks, Left};

/// How much is known of replaced blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// The engine replaces none: a block is final when it is there.
    Never,
    /// Nothing: one node was asked, and it lists none.
    Nothing,
    /// What the nodes that were asked hold now.
    Now,
    /// That, and what sites wrote down.
    Recorded,
}

/// A block that does not stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Who sealed it; none if nobody has its header any more.
    pub signer: Option<Address>,
    /// Whose that is.
    pub site: Option<String>,
    /// The block of this height that stands; none while the nodes' branches weigh the same.
    pub stands: Option<B256>,
    /// Blocks that stood on it at most, itself included.
    pub depth: u64,
    /// Whether a node that was asked holds it still.
    pub held: bool,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// Height of its newest block.
    pub head: u64,
    /// What decides between branches.
    pub difficulty: U256,
    /// Its blocks of the heights in question, without gaps.
    pub sealed: Vec<Sealed>,
}

impl Branch {
    fn at(&self, number: u64) -> Option<&Sealed> {
        let first = self.sealed.first()?.number;
        self.sealed.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}

/// The block of a height on the heaviest branch; none if there are several of equal weight that do not agree.
fn standing(branches: &[Branch], number: u64) -> Option<B256> {
    let heaviest = branches.iter().map(|branch| branch.difficulty).max()?;
    let mut blocks = branches.iter().filter(|branch| branch.difficulty == heaviest).map(|branch| branch.at(number));
    let first = blocks.next()??.hash;
    blocks.all(|block| block.is_some_and(|block| block.hash == first)).then_some(first)
}

/// Blocks on nodes that are not those of the heaviest branch, lowest first.
pub(super) fn held(network: &Network, branches: &[Branch]) -> Vec<Replaced> {
    let mut held: BTreeMap<(u64, B256), Replaced> = BTreeMap::new();
    for branch in branches {
        for block in &branch.sealed {
            let stands = standing(branches, block.number);
            let all_have_it = || branches.iter().all(|one| one.at(block.number).is_none_or(|at| at.hash == block.hash));
            if stands == Some(block.hash) || all_have_it() {
                continue;
            }
            let (number, hash) = (block.number, block.hash);
            let depth = branch.head.saturating_sub(number) + 1;
            let (signer, site) = (Some(block.signer), Some(network.site_of(&block.signer)));
            let row = Replaced { number, hash, signer, site, stands, depth, held: true };
            let kept = held.entry((number, hash)).or_insert(row);
            kept.depth = kept.depth.max(depth);
        }
    }
    held.into_values().collect()
}

/// Recorded blocks of the heights in question that do not stand, each once, lowest first.
pub(super) fn recorded(branches: &[Branch], records: &[Forks]) -> Vec<Left> {
    let mut recorded: BTreeMap<(u64, B256), Left> = BTreeMap::new();
    for left in records.iter().flat_map(|record| &record.left) {
        let is_in_question = branches.first().is_some_and(|branch| branch.at(left.number).is_some());
        // One that came back stands, and is nobody's loss.
        if !is_in_question || standing(branches, left.number) == Some(left.hash) {
            continue;
        }
        let kept = recorded.entry((left.number, left.hash)).or_insert_with(|| left.clone());
        kept.depth = kept.depth.max(left.depth);
        kept.header = kept.header.take().or_else(|| left.header.clone());
    }
    recorded.into_values().collect()
}

/// Puts what is held and what is recorded together, lowest first.
pub(super) fn together(
    network: &Network,
    kind: Kind,
    branches: &[Branch],
    held: Vec<Replaced>,
    recorded: Vec<Left>,
) -> Vec<Replaced> {
    let mut all: BTreeMap<(u64, B256), Replaced> = held.into_iter().map(|row| ((row.number, row.hash), row)).collect();
    for left in recorded {
        let signer = left.header.as_ref().and_then(|header| kind.maker(header)).map(|(signer, _)| signer);
        let row = all.entry((left.number, left.hash)).or_insert_with(|| Replaced {
            number: left.number,
            hash: left.hash,
            signer,
            site: signer.map(|signer| network.site_of(&signer)),
            stands: standing(branches, left.number),
            depth: left.depth,
            held: false,
        });
        row.depth = row.depth.max(left.depth);
    }
    all.into_values().collect()
}

/// How much is known, and from which height on records tell of it.
pub(super) fn known(kind: Kind, nodes: usize, records: &[Forks], forks: &[Replaced]) -> (Known, Option<u64>) {
    let watched_from = records.iter().filter_map(|record| record.since).min();
    let known = match (kind, watched_from) {
        (Kind::Qbft, _) if forks.is_empty() => Known::Never,
        (_, Some(_)) => Known::Recorded,
        (_, None) if nodes > 1 => Known::Now,
        (_, None) => Known::Nothing,
    };
    (known, watched_from.filter(|_| known == Known::Recorded))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use alloy::primitives::{Bytes, keccak256};
    use alloy::signers::SignerSync as _;
    use alloy::signers::local::PrivateKeySigner;

    use alloy::consensus::Header;
    use alloy::rlp::Encodable as _;

    use super::super::Member;
    use super::*;

    fn network(signers: &[Address]) -> Network {
        let member = |(index, signer): (usize, &Address)| Member {
            site: format!("site-{index}"),
            node: 1,
            signer: *signer,
            enode: String::new(),
            bridge: None,
        };
        Network {
            name: "north".into(),
            engine: "clique".into(),
            chain_id: 7,
            block_period_s: 1,
            confirmations: 2,
            admin: None,
            seats: None,
            epoch_blocks: None,
            stake_cap: None,
            nodes: signers.iter().enumerate().map(member).collect(),
        }
    }

    const A: Address = Address::repeat_byte(1);
    const B: Address = Address::repeat_byte(2);

    /// Blocks from height 10 on, each of a name and a signer.
    fn branch(difficulty: u64, head: u64, blocks: &[(u8, Address)]) -> Branch {
        let sealed = (10..).zip(blocks).map(|(number, (name, signer))| Sealed {
            number,
            hash: B256::repeat_byte(*name),
            time_s: number,
            signer: *signer,
            votes: false,
            round: 0,
        });
        Branch { head, difficulty: U256::from(difficulty), sealed: sealed.collect() }
    }

    fn header(number: u64, key: &PrivateKeySigner) -> Header {
        let mut header = Header { number, extra_data: Bytes::from(vec![0; 32]), ..Header::default() };
        let mut octets = Vec::new();
        header.encode(&mut octets);
        let seal = key.sign_hash_sync(&keccak256(octets)).unwrap().as_bytes();
        header.extra_data = [vec![0; 32], seal.to_vec()].concat().into();
        header
    }

    fn record(since: u64, left: Vec<Left>) -> Forks {
        Forks { genesis: B256::ZERO, since: Some(since), left }
    }

    #[test]
    fn of_nodes_that_disagree_the_lighter_one_loses() {
        let network = network(&[A, B]);
        let heavy = branch(9, 12, &[(1, A), (2, B), (3, A)]);
        let light = branch(8, 13, &[(1, A), (8, A), (9, B)]);
        let rows = held(&network, &[light.clone(), heavy.clone(), light.clone()]);
        let said: Vec<_> = rows.iter().map(|row| (row.number, row.site.as_deref().unwrap(), row.depth)).collect();
        assert_eq!(said, [(11, "site-0", 3), (12, "site-1", 2)]);
        assert_eq!(
            rows.iter().map(|row| row.stands.unwrap()).collect::<Vec<_>>(),
            [B256::repeat_byte(2), B256::repeat_byte(3)]
        );
        // A node that is behind and otherwise agrees loses nothing.
        let behind = branch(5, 11, &[(1, A), (2, B)]);
        assert!(held(&network, &[heavy.clone(), behind]).is_empty());
        // Between equals nothing is decided.
        let equal = branch(9, 13, &[(1, A), (8, A), (9, B)]);
        let rows = held(&network, &[heavy, equal]);
        assert!(rows.len() == 4 && rows.iter().all(|row| row.stands.is_none() && row.held), "{rows:?}");
    }

    #[test]
    fn a_record_names_who_sealed_what_was_replaced() {
        let key = PrivateKeySigner::random();
        let network = network(&[A, key.address()]);
        let branches = [branch(9, 12, &[(1, A), (2, B), (3, A)])];
        let header = header(11, &key);
        let left = |depth, header: Option<Header>| {
            let hash = header.as_ref().map_or(B256::repeat_byte(0x77), Header::hash_slow);
            Left { number: 11, hash, depth, header }
        };
        let came_back = Left { hash: B256::repeat_byte(3), number: 12, depth: 1, header: None };
        let below = Left { number: 9, ..left(1, None) };
        let above = Left { number: 13, ..left(1, None) };
        let one = record(5, vec![below, left(1, Some(header.clone())), left(4, None), came_back, above]);
        let other = record(3, vec![Left { header: None, ..left(2, Some(header.clone())) }]);
        let records = [one, other];
        let rows = together(&network, Kind::Clique, &branches, Vec::new(), recorded(&branches, &records));
        let stands = Some(B256::repeat_byte(2));
        let hash = header.hash_slow();
        let known_row = Replaced {
            number: 11,
            hash,
            signer: Some(key.address()),
            site: Some("site-1".into()),
            stands,
            depth: 2,
            held: false,
        };
        let unknown =
            Replaced { hash: B256::repeat_byte(0x77), signer: None, site: None, depth: 4, ..known_row.clone() };
        assert_eq!((rows.len(), rows.contains(&known_row), rows.contains(&unknown)), (2, true, true), "{rows:?}");
        assert_eq!(known(Kind::Clique, 1, &records, &rows), (Known::Recorded, Some(3)));
    }

    #[test]
    fn what_is_held_and_recorded_counts_once() {
        let network = network(&[A, B]);
        let branches = [branch(9, 12, &[(1, A), (2, B), (3, A)]), branch(8, 12, &[(1, A), (2, B), (9, B)])];
        let records = [record(1, vec![Left { number: 12, hash: B256::repeat_byte(9), depth: 5, header: None }])];
        let rows =
            together(&network, Kind::Clique, &branches, held(&network, &branches), recorded(&branches, &records));
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].site.as_deref(), rows[0].depth, rows[0].held), (Some("site-1"), 5, true));
    }

    #[test]
    fn how_much_is_known_is_said() {
        let nobody_watches = [Forks { genesis: B256::ZERO, since: None, left: Vec::new() }];
        assert_eq!(known(Kind::Clique, 1, &nobody_watches, &[]), (Known::Nothing, None));
        assert_eq!(known(Kind::Clique, 2, &[], &[]), (Known::Now, None));
        assert_eq!(known(Kind::Qbft, 1, &[record(1, Vec::new())], &[]), (Known::Never, None));
        let branches = [branch(9, 12, &[(1, A)]), branch(8, 12, &[(9, A)])];
        let breach = held(&network(&[A]), &branches);
        assert_eq!(known(Kind::Qbft, 2, &[], &breach), (Known::Now, None), "what cannot be is shown all the same");
    }
}
