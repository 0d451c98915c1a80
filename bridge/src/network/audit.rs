//! Who makes the blocks of a network: for every site, its seats beside its stake, the blocks that it sealed, and those that it should have sealed
//! and another had to, and those of its own that did not stay ([`forks`]).
//!
//! Clique: reads headers from nodes and believes none of what they say about signers: who sealed a block is recovered from its seal (EIP-225).
//! QBFT: the proposer stands in the header, and the round in its extra data; validators vouched for both when they sealed the block. Who
//! they were is asked of the node, because headers do not have it where a contract names them.

use std::collections::BTreeMap;

use alloy::consensus::Header;
use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::primitives::{Address, B256, Signature, U256, keccak256};
use alloy::providers::{DynProvider, Provider as _};
use alloy::rlp::{Decodable as _, Encodable as _, Header as RlpHeader};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall as _;
use alloy::transports::TransportError;
use contracts::Sources;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::Network;
use super::forks::{self, Branch, Known, Replaced};
use crate::ledger::forks::{Forks, Left};

/// Octets of the seal at the end of a header's extra data.
const SEAL_BYTES: usize = 65;
/// Headers asked for at once.
const READ_PARALLEL: usize = 16;

/// Why there is no report, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The operator of the node: it does not answer, or says no.
    #[error("node {node}")]
    Node {
        /// Its number, in the order in which they were named.
        node: usize,
        /// What it said.
        #[source]
        error: TransportError,
    },
    /// The operator: a node of another network.
    #[error("node {node} is of chain {found}, and the network has chain id {wanted}")]
    Elsewhere {
        /// Its number.
        node: usize,
        /// The network's.
        wanted: u64,
        /// The node's.
        found: u64,
    },
    /// The asker: the node has no such blocks.
    #[error("there are no blocks {from} to {to}; the newest is {head}")]
    Range {
        /// First block asked for.
        from: u64,
        /// Last block asked for.
        to: u64,
        /// Newest block.
        head: u64,
    },
    /// The operator: a node lost a block that it had, or made one up.
    #[error("block {0} has no seal")]
    Seal(u64),
    /// The operator: no node was named.
    #[error("name a node with --url")]
    NoNode,
    /// The operator: a site's record of replaced blocks is of another chain.
    #[error("a record of replaced blocks is of the chain with genesis {kept}, and the node's is {found}")]
    Record {
        /// Hash of the record's block 0.
        kept: B256,
        /// The node's.
        found: B256,
    },
    /// The operator: the headers of other engines are not known.
    #[error("the network's engine is {0}, whose headers this program does not read")]
    Engine(String),
}

/// What a site contributes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteReport {
    /// Name of the site; accounts that sign and are of no site are under their account.
    pub site: String,
    /// Signers that it has at the end.
    pub seats: usize,
    /// Of all seats.
    pub seats_share: f64,
    /// Studies that its source defined, where that is known.
    pub stake: Option<u64>,
    /// Of all stake.
    pub stake_share: Option<f64>,
    /// Blocks that it sealed.
    pub sealed: u64,
    /// Of all blocks.
    pub sealed_share: f64,
    /// Blocks for which it was in turn.
    pub in_turn: u64,
    /// Turns in which somebody else had to: it was away or late.
    pub missed: u64,
    /// Blocks of its own that were replaced, now or before; none while no site's record tells of that.
    pub replaced: Option<u64>,
    /// Those of them that a node holds still; none unless several nodes were asked.
    pub replaced_now: Option<u64>,
}

/// A network's blocks from one to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub network: String,
    /// First block looked at.
    pub from: u64,
    /// Last.
    pub to: u64,
    /// Seconds between the two on average; none for one block.
    pub period_s: Option<f64>,
    /// Every site.
    pub sites: Vec<SiteReport>,
    /// How much is known of replaced blocks.
    pub forks_known: Known,
    /// The first height that a site watched which gave its record.
    pub watched_from: Option<u64>,
    /// Blocks that were replaced, and where nodes do not agree, lowest first.
    pub forks: Vec<Replaced>,
}

/// A block, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) number: u64,
    pub(super) hash: B256,
    pub(super) time_s: u64,
    pub(super) signer: Address,
    /// Clique: whether it votes on a signer, so that there may be others from the next block on.
    pub(super) votes: bool,
    /// QBFT: how many proposers before its own brought nothing about.
    pub(super) round: u32,
}

/// Whose a height was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    /// Who was to make the block.
    due: Address,
    /// Who was to and did not.
    missed: Vec<Address>,
}

/// What is in a header of which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Clique,
    Qbft,
}

impl Kind {
    /// The account that made a block, and in which round; none if the header is not of this kind.
    pub(super) fn maker(self, header: &Header) -> Option<(Address, u32)> {
        match self {
            Self::Clique => Some((signer_of(header)?, 0)),
            Self::Qbft => Some((header.beneficiary, round_of(header)?)),
        }
    }
}

/// The round in which a block of QBFT was agreed on, from its extra data: RLP of 32 octets, validators, a vote, the round and seals.
#[must_use]
pub fn round_of(header: &Header) -> Option<u32> {
    let mut items = header.extra_data.as_ref();
    RlpHeader::decode(&mut items).ok().filter(|whole| whole.list && whole.payload_length == items.len())?;
    let _vanity = RlpHeader::decode_bytes(&mut items, false).ok()?;
    for _validators_and_vote in 0..2 {
        let of_list = RlpHeader::decode(&mut items).ok()?;
        items = of_list.list.then(|| items.get(of_list.payload_length..)).flatten()?;
    }
    u32::decode(&mut items).ok()
}

/// The account that sealed a header: whoever signed it without the seal (EIP-225).
#[must_use]
pub fn signer_of(header: &Header) -> Option<Address> {
    let extra = header.extra_data.len().checked_sub(SEAL_BYTES)?;
    let signature = Signature::from_raw(&header.extra_data[extra..]).ok()?;
    let unsealed = Header { extra_data: header.extra_data.slice(..extra), ..header.clone() };
    let mut octets = Vec::new();
    unsealed.encode(&mut octets);
    signature.recover_address_from_prehash(&keccak256(octets)).ok()
}

/// Looks at the last `blocks` blocks of a network, through one of its nodes or more, and at what sites wrote down of blocks that left the chain.
///
/// # Errors
/// [`AuditError`].
pub async fn audit(
    network: &Network,
    nodes: &[DynProvider],
    blocks: u64,
    records: &[Forks],
) -> Result<Report, AuditError> {
    let kind = match network.engine.as_str() {
        "clique" => Kind::Clique,
        "qbft" => Kind::Qbft,
        other => return Err(AuditError::Engine(other.to_owned())),
    };
    let first = nodes.first().ok_or(AuditError::NoNode)?;
    let mut heads = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let of_node = |error| AuditError::Node { node: index + 1, error };
        let found = node.get_chain_id().await.map_err(of_node)?;
        if found != network.chain_id {
            return Err(AuditError::Elsewhere { node: index + 1, wanted: network.chain_id, found });
        }
        heads.push(head_of(node).await.map_err(of_node)?);
    }
    // What all of them have.
    let to = heads.iter().map(|(head, _)| *head).min().unwrap_or(0);
    let from = to.saturating_sub(blocks.saturating_sub(1)).max(1);
    if to < from {
        return Err(AuditError::Range { from, to, head: to });
    }
    let of_first = |error| AuditError::Node { node: 1, error };
    let genesis = first.get_block_by_number(BlockNumberOrTag::Earliest).await.map_err(of_first)?;
    let genesis = genesis.map(|block| block.header.hash).unwrap_or_default();
    if let Some(other) = records.iter().find(|record| record.genesis != genesis) {
        return Err(AuditError::Record { kept: other.genesis, found: genesis });
    }
    let mut branches = Vec::with_capacity(nodes.len());
    for (index, (node, (head, difficulty))) in nodes.iter().zip(heads).enumerate() {
        branches.push(Branch { head, difficulty, sealed: headers(kind, node, index + 1, from, to).await? });
    }
    let sealed = branches.first().map(|branch| branch.sealed.clone()).unwrap_or_default();
    let (turns, signers) = match kind {
        Kind::Clique => turns_of_clique(first, &sealed).await,
        Kind::Qbft => turns_of_qbft(first, &sealed).await,
    }
    .map_err(of_first)?;
    let stakes = stakes(network, first, BlockId::latest()).await.map_err(of_first)?;
    let period_s = match (sealed.first(), sealed.last()) {
        (Some(first), Some(last)) if last.number > first.number => {
            Some(last.time_s.saturating_sub(first.time_s) as f64 / (last.number - first.number) as f64)
        }
        _ => None,
    };
    let recorded = with_headers(nodes, forks::recorded(&branches, records)).await;
    let forks = forks::together(network, kind, &branches, forks::held(network, &branches), recorded);
    let (forks_known, watched_from) = forks::known(kind, nodes.len(), records, &forks);
    let mut sites = by_site(network, &sealed, &turns, &signers, &stakes, &forks);
    count_replaced(&mut sites, &forks, forks_known, nodes.len());
    Ok(Report { network: network.name.clone(), from, to, period_s, sites, forks_known, watched_from, forks })
}

/// Height of a node's newest block, and what decides between its branch and another.
async fn head_of(node: &DynProvider) -> Result<(u64, U256), TransportError> {
    let head = node.get_block_by_number(BlockNumberOrTag::Latest).await?;
    let header = head.map(|block| block.header).unwrap_or_default();
    // Nodes that do not say it have none that decides.
    Ok((header.inner.number, header.total_difficulty.unwrap_or(U256::from(header.inner.number))))
}

/// Asks the nodes for headers that no record has: they answer for blocks that they have left, too.
async fn with_headers(nodes: &[DynProvider], recorded: Vec<Left>) -> Vec<Left> {
    let one = |mut left: Left| async move {
        for node in nodes.iter().filter(|_| left.header.is_none()) {
            // A node that has never seen it is no trouble: then its site stays unknown, and that is said.
            let block = node.get_block_by_hash(left.hash).await.ok().flatten();
            let header = block.map(|block| block.header.inner).filter(|header| header.hash_slow() == left.hash);
            if header.is_some() {
                left.header = header;
                break;
            }
        }
        left
    };
    let all: Vec<Left> = futures::stream::iter(recorded).map(one).buffered(READ_PARALLEL).collect().await;
    all.into_iter().filter(Left::is_of_its_height).collect()
}

/// What was replaced of each site's, as far as that is known. What is not decided is not counted.
fn count_replaced(sites: &mut [SiteReport], forks: &[Replaced], known: Known, nodes: usize) {
    for site in sites {
        let is_its = |row: &&Replaced| row.stands.is_some() && row.site.as_ref() == Some(&site.site);
        let its = || forks.iter().filter(is_its);
        site.replaced = (known == Known::Recorded).then(|| its().count() as u64);
        site.replaced_now = (nodes > 1 && known != Known::Never).then(|| its().filter(|row| row.held).count() as u64);
    }
}

async fn headers(kind: Kind, node: &DynProvider, index: usize, from: u64, to: u64) -> Result<Vec<Sealed>, AuditError> {
    let one = |number: u64| async move {
        let block = node.get_block_by_number(BlockNumberOrTag::Number(number)).await;
        let block = block.map_err(|error| AuditError::Node { node: index, error })?.ok_or(AuditError::Seal(number))?;
        let header = &block.header.inner;
        let (signer, round) = kind.maker(header).ok_or(AuditError::Seal(number))?;
        let votes = kind == Kind::Clique && !header.beneficiary.is_zero();
        // Not the hash that the node states: the signer vouched for this one.
        Ok(Sealed { number, hash: header.hash_slow(), time_s: header.timestamp, signer, votes, round })
    };
    futures::stream::iter(from..=to).map(one).buffered(READ_PARALLEL).try_collect().await
}

/// Who was in turn for each block, and who signs after the last.
async fn turns_of_clique(node: &DynProvider, sealed: &[Sealed]) -> Result<(Vec<Turn>, Vec<Address>), TransportError> {
    let signers_after = |number: u64| async move {
        let mut signers: Vec<Address> =
            node.raw_request("clique_getSigners".into(), (BlockNumberOrTag::Number(number),)).await?;
        signers.sort_unstable();
        Ok::<_, TransportError>(signers)
    };
    let mut turns = Vec::with_capacity(sealed.len());
    let mut signers = match sealed.first() {
        Some(first) => signers_after(first.number - 1).await?,
        None => Vec::new(),
    };
    for block in sealed {
        let due = in_turn(&signers, block.number).unwrap_or_default();
        turns.push(Turn { due, missed: if due == block.signer { Vec::new() } else { vec![due] } });
        if block.votes {
            signers = signers_after(block.number).await?;
        }
    }
    Ok((turns, signers))
}

/// The same where validators take turns in the order of their accounts, and the next one's comes when one brings nothing about.
async fn turns_of_qbft(node: &DynProvider, sealed: &[Sealed]) -> Result<(Vec<Turn>, Vec<Address>), TransportError> {
    let Some(first) = sealed.first() else { return Ok((Vec::new(), Vec::new())) };
    let parent = node.get_block_by_number(BlockNumberOrTag::Number(first.number - 1)).await?;
    let mut before = parent.map(|block| block.header.inner.beneficiary).unwrap_or_default();
    let validators_at = |number: u64| async move {
        let method = "qbft_getValidatorsByBlockNumber".into();
        node.raw_request::<_, Vec<Address>>(method, (BlockNumberOrTag::Number(number),)).await
    };
    let asked = futures::stream::iter(sealed.iter().map(|block| block.number)).map(validators_at);
    let validators: Vec<Vec<Address>> = asked.buffered(READ_PARALLEL).try_collect().await?;
    let mut turns = Vec::with_capacity(sealed.len());
    for (block, validators) in sealed.iter().zip(&validators) {
        turns.push(turn_of_qbft(validators, before, block.round));
        before = block.signer;
    }
    Ok((turns, validators.into_iter().next_back().unwrap_or_default()))
}

/// Whose the height after a block by `before` was, when it came in this round: the next account's, and those after it.
fn turn_of_qbft(validators: &[Address], before: Address, round: u32) -> Turn {
    let mut order = validators.to_vec();
    order.sort_unstable();
    let next = order.iter().position(|validator| *validator > before).unwrap_or(0);
    let mut proposers = order.iter().cycle().skip(next).copied();
    let due = proposers.clone().next().unwrap_or_default();
    // More rounds than validators are no more misses than one by each: the network stood still.
    let rounds = usize::try_from(round).unwrap_or(usize::MAX).min(order.len());
    Turn { due, missed: proposers.by_ref().take(rounds).collect() }
}

/// The signer whose turn a height is, of signers in order (EIP-225).
fn in_turn(signers: &[Address], number: u64) -> Option<Address> {
    let count = u64::try_from(signers.len()).ok().filter(|count| *count > 0)?;
    signers.get(usize::try_from(number % count).ok()?).copied()
}

/// The stake at a block of every bridge that is known; nothing while the contracts are not there.
pub(super) async fn stakes(
    network: &Network,
    node: &DynProvider,
    at: BlockId,
) -> Result<BTreeMap<Address, u64>, TransportError> {
    let mut stakes = BTreeMap::new();
    let Some(admin) = network.admin else { return Ok(stakes) };
    let sources = contracts::deployment::addresses(admin).sources;
    for bridge in network.nodes.iter().filter_map(|member| member.bridge) {
        let call = Sources::stakeOfCall { source: bridge };
        let request = TransactionRequest::default().to(sources).input(call.abi_encode().into());
        let answer = node.call(request).block(at).await?;
        if let Ok(stake) = Sources::stakeOfCall::abi_decode_returns(&answer) {
            stakes.insert(bridge, u64::try_from(stake).unwrap_or(u64::MAX));
        }
    }
    Ok(stakes)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn by_site(
    network: &Network,
    sealed: &[Sealed],
    turns: &[Turn],
    signers: &[Address],
    stakes: &BTreeMap<Address, u64>,
    forks: &[Replaced],
) -> Vec<SiteReport> {
    let site_of = |signer: &Address| network.site_of(signer);
    // In the order of the network; strangers, who were voted in since, behind.
    let mut order: Vec<String> = Vec::new();
    let everybody = network.nodes.iter().map(|member| member.signer).chain(signers.iter().copied());
    let everybody = everybody.chain(sealed.iter().map(|block| block.signer));
    for site in everybody.chain(forks.iter().filter_map(|fork| fork.signer)).map(|signer| site_of(&signer)) {
        if !order.contains(&site) {
            order.push(site);
        }
    }
    let all_stake = stakes.values().sum();
    let report = |site: String| {
        let is_its = |signer: &Address| site_of(signer) == site;
        let seats = signers.iter().filter(|signer| is_its(signer)).count();
        let sealed_by = sealed.iter().filter(|block| is_its(&block.signer)).count() as u64;
        let in_turn = turns.iter().filter(|turn| is_its(&turn.due)).count() as u64;
        let missed = turns.iter().flat_map(|turn| &turn.missed).filter(|missed| is_its(missed)).count() as u64;
        let bridge = network.nodes.iter().find(|member| member.site == site).and_then(|member| member.bridge);
        let stake = bridge.and_then(|bridge| stakes.get(&bridge)).copied();
        SiteReport {
            seats,
            seats_share: share(seats as u64, signers.len() as u64),
            stake,
            stake_share: stake.map(|stake| share(stake, all_stake)),
            sealed: sealed_by,
            sealed_share: share(sealed_by, sealed.len() as u64),
            in_turn,
            missed,
            replaced: None,
            replaced_now: None,
            site,
        }
    };
    order.into_iter().map(report).collect()
}

/// How many of a site's blocks were replaced, as far as that is known.
#[must_use]
pub fn replaced_words(known: Known, site: &SiteReport) -> String {
    match (known, site.replaced, site.replaced_now) {
        (Known::Never, ..) => "none".to_owned(),
        (_, Some(ever), _) => ever.to_string(),
        (_, None, Some(now)) => format!("now {now}"),
        (_, None, None) => "-".to_owned(),
    }
}

/// The report as a picture: for every site its share of seats, stake and blocks, and how many of its blocks were replaced.
#[must_use]
pub fn svg(report: &Report) -> String {
    const ROW: usize = 92;
    const LEFT: usize = 130;
    const WIDTH: f64 = 420.0;
    let height = 70 + report.sites.len() * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"{height}\" viewBox=\"0 0 640 {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"640\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"16\">Network {}: blocks {} to {}</text>\n",
        report.network, report.from, report.to
    );
    for (index, site) in report.sites.iter().enumerate() {
        let top = 52 + index * ROW;
        out += &format!("<text x=\"16\" y=\"{}\">{}</text>\n", top + 30, short(&site.site));
        let bars = [
            ("seats", Some(site.seats_share), "#4c6ea8"),
            ("stake", site.stake_share, "#c08a3e"),
            ("blocks", Some(site.sealed_share), "#5d9467"),
        ];
        for (bar, (name, share, colour)) in bars.into_iter().enumerate() {
            let y = top + bar * 20;
            let words = share.map_or_else(|| "not known".to_owned(), |share| format!("{:.1} %", share * 100.0));
            let width = share.unwrap_or(0.0) * WIDTH;
            out += &format!(
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"15\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{name} {words}</text>\n",
                LEFT as f64 + width + 6.0,
                y + 12
            );
        }
        let words = match (report.forks_known, replaced_words(report.forks_known, site)) {
            (Known::Never, _) => "none, by its engine".to_owned(),
            (Known::Nothing, _) => "not known".to_owned(),
            (Known::Now | Known::Recorded, words) => words,
        };
        out += &format!("<text x=\"{LEFT}\" y=\"{}\" font-size=\"11\">replaced {words}</text>\n", top + 72);
    }
    out + "</svg>\n"
}

fn short(name: &str) -> String {
    if name.chars().count() <= 14 { name.to_owned() } else { name.chars().take(13).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use alloy::primitives::{Bytes, hex};
    use alloy::signers::SignerSync as _;
    use alloy::signers::local::PrivateKeySigner;

    use super::super::Member;
    use super::*;

    fn member(site: &str, node: u16, signer: Address, bridge: u8) -> Member {
        let bridge = Some(Address::repeat_byte(bridge));
        Member { site: site.to_owned(), node, signer, enode: String::new(), bridge }
    }

    fn network(nodes: Vec<Member>) -> Network {
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
            nodes,
        }
    }

    #[test]
    fn a_seal_is_its_signers_and_covers_all_but_itself() {
        let key = PrivateKeySigner::random();
        let mut header =
            Header { number: 5, base_fee_per_gas: Some(1), extra_data: vec![0; 32].into(), ..Header::default() };
        let mut octets = Vec::new();
        header.encode(&mut octets);
        let mut seal = key.sign_hash_sync(&keccak256(octets)).unwrap().as_bytes();
        // Clique writes the parity itself.
        seal[64] -= 27;
        header.extra_data = [vec![0; 32], seal.to_vec()].concat().into();
        assert_eq!(signer_of(&header), Some(key.address()));
        assert_ne!(signer_of(&Header { gas_used: 1, ..header.clone() }), Some(key.address()));
        assert_eq!(signer_of(&Header { extra_data: vec![0; 40].into(), ..header }), None);
    }

    #[test]
    fn who_was_in_turn_and_away_is_named() {
        let [a, b, c] = [1, 2, 3].map(Address::repeat_byte);
        let network = network(vec![member("a", 1, a, 0xA0), member("b", 1, b, 0xB0), member("b", 2, c, 0xB0)]);
        let signers = [a, b, c];
        // Block 4 is b's turn (4 % 3 = 1), but a seals it.
        let sealed: Vec<Sealed> = [(3, a), (4, a), (5, c), (6, a)]
            .into_iter()
            .map(|(number, signer)| Sealed {
                number,
                hash: B256::with_last_byte(u8::try_from(number).unwrap()),
                time_s: number,
                signer,
                votes: false,
                round: 0,
            })
            .collect();
        let turn = |block: &Sealed| {
            let due = in_turn(&signers, block.number).unwrap();
            Turn { due, missed: if due == block.signer { Vec::new() } else { vec![due] } }
        };
        let due: Vec<Turn> = sealed.iter().map(turn).collect();
        let stakes = BTreeMap::from([(Address::repeat_byte(0xA0), 30), (Address::repeat_byte(0xB0), 10)]);
        let sites = by_site(&network, &sealed, &due, &signers, &stakes, &[]);
        let rows: Vec<_> =
            sites.iter().map(|site| (site.site.as_str(), site.seats, site.sealed, site.in_turn, site.missed)).collect();
        assert_eq!(rows, [("a", 1, 3, 2, 0), ("b", 2, 1, 2, 1)]);
        assert_eq!((sites[0].stake, sites[0].stake_share), (Some(30), Some(0.75)));
        let (forks_known, watched_from) = (Known::Now, None);
        let network = "north".into();
        let mut report = Report {
            network,
            from: 3,
            to: 6,
            period_s: Some(1.0),
            sites,
            forks_known,
            watched_from,
            forks: Vec::new(),
        };
        let lost = Replaced {
            number: 4,
            hash: B256::ZERO,
            signer: Some(c),
            site: Some("b".into()),
            stands: Some(B256::with_last_byte(4)),
            depth: 1,
            held: false,
        };
        let undecided = Replaced { stands: None, ..lost.clone() };
        report.forks = vec![lost, undecided];
        let mut drawn = |known: Known, nodes: usize| {
            report.forks_known = known;
            count_replaced(&mut report.sites, &report.forks, known, nodes);
            let counts = report.sites.iter().map(|site| (site.replaced, site.replaced_now)).collect::<Vec<_>>();
            (counts, svg(&report))
        };
        let (counts, picture) = drawn(Known::Recorded, 1);
        assert_eq!(counts, [(Some(0), None), (Some(1), None)]);
        assert!(picture.contains("stake 75.0 %") && picture.contains("seats 66.7 %") && picture.ends_with("</svg>\n"));
        assert!(picture.contains(">replaced 0<") && picture.contains(">replaced 1<"), "{picture}");
        let (counts, picture) = drawn(Known::Now, 2);
        assert_eq!(counts, [(None, Some(0)), (None, Some(0))]);
        assert!(picture.contains(">replaced now 0<"), "{picture}");
        assert!(drawn(Known::Nothing, 1).1.contains(">replaced not known<"));
        let (counts, picture) = drawn(Known::Never, 3);
        assert_eq!(counts, [(None, None), (None, None)]);
        assert!(picture.contains(">replaced none, by its engine<"), "{picture}");
    }

    /// Extra data of QBFT, as Besu's `QbftExtraDataCodec` writes it.
    fn extra_of_qbft(validators: &[Address], round: u32, seals: usize) -> Bytes {
        let mut items = Vec::new();
        [0_u8; 32].encode(&mut items);
        validators.to_vec().encode(&mut items);
        Vec::<Bytes>::new().encode(&mut items);
        round.encode(&mut items);
        vec![Bytes::from(vec![7; 65]); seals].encode(&mut items);
        let mut octets = Vec::new();
        RlpHeader { list: true, payload_length: items.len() }.encode(&mut octets);
        octets.extend(items);
        octets.into()
    }

    #[test]
    fn the_round_stands_in_the_header_whoever_names_the_validators() {
        let header = |extra_data| Header { beneficiary: Address::repeat_byte(3), extra_data, ..Header::default() };
        let genesis = hex!("e5a00000000000000000000000000000000000000000000000000000000000000000c0c080c0");
        assert_eq!(extra_of_qbft(&[], 0, 0).as_ref(), genesis);
        for (validators, round) in [(0, 0), (0, 1), (4, 2), (64, 300)] {
            let validators: Vec<Address> = (0..validators).map(Address::repeat_byte).collect();
            let header = header(extra_of_qbft(&validators, round, 3));
            assert_eq!(Kind::Qbft.maker(&header), Some((Address::repeat_byte(3), round)));
        }
        let whole = extra_of_qbft(&[Address::ZERO], 1, 2);
        for length in 0..whole.len() {
            assert_eq!(round_of(&header(whole.slice(..length))), None, "{length} octets");
        }
        assert_eq!(round_of(&header(vec![0; 97].into())), None, "Clique's");
    }

    #[test]
    fn who_brought_nothing_about_in_a_round_is_named() {
        let [a, b, c, d] = [1, 2, 3, 4].map(Address::repeat_byte);
        let turn = |before, round| turn_of_qbft(&[c, a, d, b], before, round);
        assert_eq!(turn(a, 0), Turn { due: b, missed: vec![] });
        assert_eq!(turn(b, 2), Turn { due: c, missed: vec![c, d] });
        assert_eq!(turn(d, 1), Turn { due: a, missed: vec![a] });
        // After the first block, and after one whose proposer is no validator any more.
        assert_eq!(turn(Address::ZERO, 0).due, a);
        assert_eq!(turn_of_qbft(&[a, b, d], c, 0).due, d);
        assert_eq!(turn(a, 9).missed, [b, c, d, a], "each once");
        let network = Network {
            engine: "qbft".into(),
            ..network(vec![
                member("a", 1, a, 0xA0),
                member("b", 1, b, 0xB0),
                member("c", 1, c, 0xC0),
                member("c", 2, d, 0xC0),
            ])
        };
        let block =
            |number, signer, round| Sealed { number, hash: B256::ZERO, time_s: number, signer, votes: false, round };
        let sealed = [block(5, b, 0), block(6, a, 2), block(7, b, 0)];
        let turns = [turn(a, 0), turn(b, 2), turn(a, 0)];
        let sites = by_site(&network, &sealed, &turns, &[a, b, c, d], &BTreeMap::new(), &[]);
        let rows: Vec<_> =
            sites.iter().map(|site| (site.site.as_str(), site.seats, site.sealed, site.in_turn, site.missed)).collect();
        assert_eq!(rows, [("a", 1, 1, 0, 0), ("b", 1, 2, 2, 0), ("c", 2, 0, 1, 2)]);
    }
}
