//! Seats by stake where signers vote on each other (Clique): which signers a network should have, by the rule of the contract Validators, and
//! what the nodes must propose for it to have them. How much stake counts says `stake`: no more than a cap in each epoch.
//!
//! Nothing here changes a network alone: more than half of its signers must propose the same, so each site runs this beside its own nodes.

use std::collections::BTreeMap;

use alloy::eips::BlockId;
use alloy::primitives::Address;
use alloy::providers::{DynProvider, Provider as _};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall as _;
use alloy::transports::TransportError;
use contracts::{Sources, validators};
use serde::Serialize;

use super::stake::{self, Rule};
use super::{Member, Network, audit, plan};

/// Why there is nothing to propose, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
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
    /// The asker: signers do not vote on each other there.
    #[error("the network's engine is {0}; signers vote on each other with clique alone")]
    Engine(String),
    /// The author of the plan: without the administrator's account nobody finds the registry.
    #[error("network.json names no admin, so it is not known where stake is counted")]
    NoAdmin,
    /// The administrator: its bridge deploys the contracts.
    #[error(
        "there is no registry at block {0}: the administrator's bridge has not deployed it, or the node no longer knows that block"
    )]
    NoRegistry(u64),
    /// The operator of the node: without all events, stake would be counted too low.
    #[error(
        "the node has the events of {found} of the {stake} studies of {source_account}: it does not know the whole chain's"
    )]
    Events {
        /// The source.
        source_account: Address,
        /// Studies that it defined up to the block.
        stake: u64,
        /// Of how many the node knows.
        found: u64,
    },
    /// The operator: no node was named, or the network has none.
    #[error("name a node with --url")]
    NoNode,
}

/// A site, what it has brought in and what it should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seats {
    /// Name of the site.
    pub site: String,
    /// Studies that its source defined; none if its account is not known.
    pub stake: Option<u64>,
    /// How many of them count: of each epoch that is over, no more than the cap.
    pub counts: Option<u64>,
    /// Whether the consortium suspended its source.
    pub suspended: bool,
    /// Signers that it should have.
    pub due: usize,
    /// Signers that it has.
    pub now: usize,
}

/// What the nodes of all sites should propose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Name of the signer's site.
    pub site: String,
    /// Number of its node there.
    pub node: u16,
    /// The signer.
    pub signer: Address,
    /// Whether it is to sign from now on, or no more.
    pub authorize: bool,
}

/// Seats beside stake at one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seating {
    /// The block.
    pub block: u64,
    /// Stake that came in this block or later does not count yet: the first of the epoch.
    pub counted_before: u64,
    /// Studies that count for a site in an epoch.
    pub stake_cap: u64,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
    /// Every site.
    pub sites: Vec<Seats>,
    /// What makes the signers those that are due.
    pub proposals: Vec<Proposal>,
    /// Signers that network.json does not name. They are left as they are: whose they are is not known here.
    pub strangers: Vec<Address>,
}

/// What the registry says of a site's source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Standing {
    stake: u64,
    /// What of the stake counts.
    counts: u64,
    suspended: bool,
}

/// Says which signers are due at a block, by default the newest, and what is to be proposed. `seats` is how many there may be; by default as many as
/// the network says, or as it has nodes.
///
/// # Errors
/// [`VoteError`].
pub async fn seating(
    network: &Network,
    nodes: &[DynProvider],
    seats: Option<usize>,
    block: Option<u64>,
) -> Result<Seating, VoteError> {
    if network.engine != "clique" {
        return Err(VoteError::Engine(network.engine.clone()));
    }
    let admin = network.admin.ok_or(VoteError::NoAdmin)?;
    let first = nodes.first().ok_or(VoteError::NoNode)?;
    check_chain(network, nodes).await?;
    let of_first = |error| VoteError::Node { node: 1, error };
    let block = match block {
        Some(block) => block,
        None => first.get_block_number().await.map_err(of_first)?,
    };
    let signers: Vec<Address> =
        first.raw_request("clique_getSigners".into(), (format!("{block:#x}"),)).await.map_err(of_first)?;
    let standings = standings(network, rule_of(network), admin, first, block).await?;
    let most = seats.or(network.seats).unwrap_or(network.nodes.len());
    seating_of(network, &standings, &signers, most, block).ok_or(VoteError::NoNode)
}

/// How fast stake may grow in a network.
fn rule_of(network: &Network) -> Rule {
    let epoch_blocks = network.epoch_blocks.unwrap_or(plan::EPOCH_BLOCKS).max(1);
    Rule { epoch_blocks, cap: network.stake_cap.unwrap_or(plan::STAKE_CAP) }
}

async fn check_chain(network: &Network, nodes: &[DynProvider]) -> Result<(), VoteError> {
    for (index, node) in nodes.iter().enumerate() {
        let found = node.get_chain_id().await.map_err(|error| VoteError::Node { node: index + 1, error })?;
        if found != network.chain_id {
            return Err(VoteError::Elsewhere { node: index + 1, wanted: network.chain_id, found });
        }
    }
    Ok(())
}

async fn standings(
    network: &Network,
    rule: Rule,
    admin: Address,
    node: &DynProvider,
    block: u64,
) -> Result<BTreeMap<Address, Standing>, VoteError> {
    let of_node = |error| VoteError::Node { node: 1, error };
    let contracts::Addresses { sources, studies, .. } = contracts::addresses(admin);
    let code = node.get_code_at(sources).block_id(block.into()).await.map_err(of_node)?;
    if code.is_empty() {
        return Err(VoteError::NoRegistry(block));
    }
    let at = BlockId::number(block);
    let stakes = audit::stakes(network, node, at).await.map_err(of_node)?;
    let accounts: Vec<Address> = stakes.keys().copied().collect();
    let defined = stake::defined(node, studies, &accounts, block).await.map_err(of_node)?;
    let mut standings = BTreeMap::new();
    for (source, stake) in stakes {
        let defined = defined.get(&source).map(Vec::as_slice).unwrap_or_default();
        let found = defined.len() as u64;
        if found != stake {
            return Err(VoteError::Events { source_account: source, stake, found });
        }
        let counts = rule.credited(defined, block);
        let call = Sources::isSuspendedCall { source };
        let request = TransactionRequest::default().to(sources).input(call.abi_encode().into());
        let answer = node.call(request).block(at).await.map_err(of_node)?;
        let suspended = Sources::isSuspendedCall::abi_decode_returns(&answer).unwrap_or(false);
        standings.insert(source, Standing { stake, counts, suspended });
    }
    Ok(standings)
}

/// The rule, applied: suspended sites have no seats, unless all are; a site's first nodes have its seats.
fn seating_of(
    network: &Network,
    standings: &BTreeMap<Address, Standing>,
    signers: &[Address],
    most: usize,
    block: u64,
) -> Option<Seating> {
    let sites = by_site(network);
    let account = |nodes: &[&Member]| nodes.iter().find_map(|member| member.bridge);
    let standing = |nodes: &[&Member]| account(nodes).and_then(|account| standings.get(&account)).copied();
    let is_suspended = |nodes: &[&Member]| standing(nodes).is_some_and(|standing| standing.suspended);
    let all_are = sites.iter().all(|(_, nodes)| is_suspended(nodes));
    let seated: Vec<usize> = (0..sites.len()).filter(|index| all_are || !is_suspended(&sites[*index].1)).collect();
    let weight = |index: &usize| standing(&sites[*index].1).unwrap_or_default().counts.saturating_add(1);
    let weights: Vec<u64> = seated.iter().map(weight).collect();
    let keys: Vec<usize> = seated.iter().map(|index| sites[*index].1.len()).collect();
    let given = validators::apportion(&weights, &keys, most)?;
    let mut due = vec![0; sites.len()];
    seated.iter().zip(given).for_each(|(index, seats)| due[*index] = seats);

    let signs = |member: &Member| signers.contains(&member.signer);
    let proposal = |member: &Member, authorize| Proposal {
        site: member.site.clone(),
        node: member.node,
        signer: member.signer,
        authorize,
    };
    let with_due = || sites.iter().zip(&due);
    let come = with_due().flat_map(|((_, nodes), due)| nodes.iter().take(*due));
    let go = with_due().flat_map(|((_, nodes), due)| nodes.iter().skip(*due));
    // Those who come first: there are never fewer than before or after.
    let proposals = come.filter(|member| !signs(member)).map(|member| proposal(member, true));
    let proposals = proposals.chain(go.filter(|member| signs(member)).map(|member| proposal(member, false))).collect();
    let report = |((site, nodes), due): (&(&str, Vec<&Member>), &usize)| Seats {
        site: (*site).to_owned(),
        stake: standing(nodes).map(|standing| standing.stake),
        counts: standing(nodes).map(|standing| standing.counts),
        suspended: is_suspended(nodes),
        due: *due,
        now: nodes.iter().filter(|member| signs(member)).count(),
    };
    let is_known = |signer: &&Address| network.nodes.iter().any(|member| member.signer == **signer);
    let rule = rule_of(network);
    Some(Seating {
        block,
        counted_before: rule.border(block),
        stake_cap: rule.cap,
        epoch_blocks: rule.epoch_blocks,
        sites: with_due().map(report).collect(),
        proposals,
        strangers: signers.iter().filter(|signer| !is_known(signer)).copied().collect(),
    })
}

/// Nodes of every site, in the order of the network.
fn by_site(network: &Network) -> Vec<(&str, Vec<&Member>)> {
    let mut sites: Vec<(&str, Vec<&Member>)> = Vec::new();
    for member in &network.nodes {
        match sites.iter_mut().find(|(site, _)| *site == member.site) {
            Some((_, nodes)) => nodes.push(member),
            None => sites.push((&member.site, vec![member])),
        }
    }
    sites
}

/// Has every node propose what the seating needs, and take back what it proposed otherwise: a proposal stays until then, and would count again
/// when it no longer fits.
///
/// # Errors
/// [`VoteError`]; nodes before the one that it names have their proposals.
pub async fn propose(seating: &Seating, nodes: &[DynProvider]) -> Result<(), VoteError> {
    for (index, node) in nodes.iter().enumerate() {
        propose_at(seating, node).await.map_err(|error| VoteError::Node { node: index + 1, error })?;
    }
    Ok(())
}

async fn propose_at(seating: &Seating, node: &DynProvider) -> Result<(), TransportError> {
    let open: BTreeMap<Address, bool> = node.raw_request("clique_proposals".into(), ()).await?;
    let stays = |signer: &Address| seating.proposals.iter().any(|proposal| proposal.signer == *signer);
    for signer in open.keys().filter(|signer| !stays(signer)) {
        let _: Option<()> = node.raw_request("clique_discard".into(), (signer,)).await?;
    }
    for Proposal { signer, authorize, .. } in &seating.proposals {
        let _: Option<()> = node.raw_request("clique_propose".into(), (signer, authorize)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn signer(site: usize, node: usize) -> Address {
        Address::from_word(alloy::primitives::U256::from(1000 * (site + 1) + node + 1).into())
    }

    fn bridge(site: usize) -> Address {
        Address::from_word(alloy::primitives::U256::from(site + 1).into())
    }

    /// Sites with so many nodes.
    fn network(nodes: &[usize]) -> Network {
        let member = |site: usize, node: usize| Member {
            site: format!("site-{site}"),
            node: u16::try_from(node + 1).unwrap(),
            signer: signer(site, node),
            enode: String::new(),
            bridge: Some(bridge(site)),
        };
        let sites = nodes.iter().enumerate();
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
            nodes: sites.flat_map(|(site, count)| (0..*count).map(move |node| member(site, node))).collect(),
        }
    }

    fn with_stakes(stakes: &[u64]) -> BTreeMap<Address, Standing> {
        let standing = |stake: &u64| Standing { stake: 2 * *stake, counts: *stake, suspended: false };
        stakes.iter().enumerate().map(|(site, stake)| (bridge(site), standing(stake))).collect()
    }

    /// Signers after all of these proposals were voted for.
    fn after(signers: &[Address], seating: &Seating) -> Vec<Address> {
        let mut signers = signers.to_vec();
        for proposal in &seating.proposals {
            match proposal.authorize {
                true => signers.push(proposal.signer),
                false => signers.retain(|signer| *signer != proposal.signer),
            }
        }
        signers
    }

    #[test]
    fn who_gains_stake_comes_and_another_goes() {
        let network = network(&[1, 1, 1, 1, 1]);
        let signers: Vec<Address> = (0..4).map(|site| signer(site, 0)).collect();
        let seating = seating_of(&network, &with_stakes(&[0, 0, 0, 0, 3]), &signers, 4, 9).unwrap();
        let said: Vec<_> = seating.proposals.iter().map(|one| (one.site.as_str(), one.authorize)).collect();
        assert_eq!(said, [("site-4", true), ("site-3", false)]);
        let row = &seating.sites[4];
        assert_eq!((row.stake, row.counts, row.due, row.now, seating.block), (Some(6), Some(3), 1, 0, 9));
        let settled = after(&signers, &seating);
        assert!(seating_of(&network, &with_stakes(&[0, 0, 0, 0, 3]), &settled, 4, 9).unwrap().proposals.is_empty());
    }

    #[test]
    fn who_is_suspended_goes_unless_all_are_and_strangers_are_named() {
        let network = network(&[1, 1, 1, 1]);
        let mut standings = with_stakes(&[5, 5, 5, 5]);
        let stranger = Address::repeat_byte(0x77);
        let signers: Vec<Address> = (0..4).map(|site| signer(site, 0)).chain([stranger]).collect();
        standings.get_mut(&bridge(1)).unwrap().suspended = true;
        let seating = seating_of(&network, &standings, &signers, 4, 1).unwrap();
        assert_eq!((seating.proposals.len(), seating.proposals[0].signer), (1, signer(1, 0)));
        assert!(seating.sites[1].suspended && seating.sites[1].due == 0 && !seating.proposals[0].authorize);
        assert_eq!(seating.strangers, [stranger]);
        standings.values_mut().for_each(|standing| standing.suspended = true);
        assert!(seating_of(&network, &standings, &signers, 4, 1).unwrap().proposals.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_proposed_ends_in_seats_by_the_rule(
            sites in prop::collection::vec((1..5_usize, 0..500_u64), 1..9),
            most in 1..20_usize,
            now in prop::collection::vec(any::<bool>(), 40),
        ) {
            let (nodes, stakes): (Vec<usize>, Vec<u64>) = sites.into_iter().unzip();
            let network = network(&nodes);
            let signs = network.nodes.iter().zip(&now).filter(|(_, signs)| **signs);
            let signers: Vec<Address> = signs.map(|(member, _)| member.signer).collect();
            let seating = seating_of(&network, &with_stakes(&stakes), &signers, most, 1).unwrap();
            let settled = after(&signers, &seating);
            let of_site = |site: usize| (0..nodes[site]).filter(|node| settled.contains(&signer(site, *node))).count();
            let mut once = settled.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert!(!settled.is_empty() && once.len() == settled.len());
            for (site, row) in seating.sites.iter().enumerate() {
                prop_assert_eq!(of_site(site), row.due);
                prop_assert!(nodes.len() < 4 || 3 * row.due < settled.len());
            }
            // The first nodes of each.
            prop_assert!((0..nodes.len()).all(|site| (0..of_site(site)).all(|node| settled.contains(&signer(site, node)))));
        }
    }
}
