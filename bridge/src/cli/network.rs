//! `pacs-bridge network`: the ledger that several sites run together. Needs no bridge and no configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::transports::http::reqwest::Url;
use clap::Subcommand;

use super::Failed;
use super::output::{Output, table};
use crate::network::audit::{self, Report};
use crate::network::plan::{Engine, Plan};
use crate::network::vote::{self, Proposal, Seating};
use crate::network::{self, Network};

/// JSON-RPC of the first node of a site, unless the plan says otherwise.
const DEFAULT_NODE: &str = "http://127.0.0.1:8545";

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Make a network from a plan: its first block, and for every site a folder with what its nodes need.
    New {
        /// The plan (docs/NETWORK.md).
        plan: PathBuf,
        /// The folder; must not exist. By default the network's name in this directory.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Make the keys of a node where it will run, and print what the plan needs of them.
    Key {
        /// The folder; must not exist.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The key of the site's IPFS node instead.
        #[arg(long)]
        ipfs: bool,
        /// For a network of this engine.
        #[arg(long, value_enum, default_value_t = Engine::Clique)]
        engine: Engine,
    },
    /// Say which signers a network with Clique should have by the stake of its sites, and what its nodes must propose for it.
    Vote {
        /// The network's network.json.
        network: PathBuf,
        /// JSON-RPC of a node of this site; of each, where it has several. By default that of a node on this machine.
        #[arg(long = "url", value_name = "URL")]
        urls: Vec<Url>,
        /// How many signers there may be. By default as many as network.json says, or as there are nodes.
        #[arg(long, value_name = "N")]
        seats: Option<usize>,
        /// Stake and signers at this block, so that all sites reckon alike. By default the newest.
        #[arg(long, value_name = "NUMBER")]
        block: Option<u64>,
        /// Have the nodes propose it. Only nodes on this machine.
        #[arg(long)]
        propose: bool,
    },
    /// Say who makes the blocks: for every site its seats beside its stake, blocks sealed, turns missed, and where nodes disagree.
    Audit {
        /// The network's network.json.
        network: PathBuf,
        /// JSON-RPC of a node; of several, to see whether they agree. By default that of a node on this machine.
        #[arg(long = "url", value_name = "URL")]
        urls: Vec<Url>,
        /// How many of the newest blocks to look at.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        blocks: u64,
        /// Draw the shares into this file, too.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
}

pub(super) async fn run(command: NetworkCommand, output: &Output) -> Result<(), Failed> {
    match command {
        NetworkCommand::New { plan, out } => {
            let plan = Plan::read(&plan)?;
            let out = out.unwrap_or_else(|| PathBuf::from(&plan.name));
            let made = network::make(&plan, &out)?;
            if output.is_json() {
                output.json(&made);
                return Ok(());
            }
            show(&made);
            println!("made in {}; each site gets its folder below sites, and nobody else's", out.display());
            for advice in plan.advice() {
                println!("note: {advice}");
            }
        }
        NetworkCommand::Key { out, ipfs: true, .. } => {
            let peer_id = network::make_ipfs_key(&out)?;
            if output.is_json() {
                output.json(&serde_json::json!({ "ipfs_peer_id": peer_id }));
            } else {
                println!("ipfs_peer_id = \"{peer_id}\"");
            }
        }
        NetworkCommand::Key { out, ipfs: false, engine } => {
            let keys = network::make_keys(engine, &out)?;
            let (signer, node_id) = (keys.signer.to_string(), keys.node_id);
            if output.is_json() {
                output.json(&serde_json::json!({ "signer": signer, "node_id": node_id }));
            } else {
                println!("keys = [{{ signer = \"{signer}\", node_id = \"{node_id}\" }}]");
            }
        }
        NetworkCommand::Vote { network, urls, seats, block, propose } => {
            let network = Network::read(&network)?;
            if let Some(url) = urls.iter().find(|url| propose && !is_here(url)) {
                let why = "whoever reaches a node's clique API can propose signers, so it must not listen elsewhere";
                return Err(Failed(format!("--propose is for nodes on this machine, and {url} is not: {why}")));
            }
            let nodes = connect(urls)?;
            let seating = vote::seating(&network, &nodes, seats, block).await?;
            if propose {
                vote::propose(&seating, &nodes).await?;
            }
            if output.is_json() {
                output.json(&seating);
            } else {
                print!("{}", seats_said(&seating, propose));
            }
        }
        NetworkCommand::Audit { network, urls, blocks, svg } => {
            let network = Network::read(&network)?;
            let nodes = connect(urls)?;
            let report = audit::audit(&network, &nodes, blocks).await?;
            if let Some(file) = svg {
                std::fs::write(&file, audit::svg(&report))
                    .map_err(|e| Failed(format!("file {}: {e}", file.display())))?;
            }
            if output.is_json() {
                output.json(&report);
            } else {
                print!("{}", said(&report));
            }
        }
    }
    Ok(())
}

fn connect(urls: Vec<Url>) -> Result<Vec<DynProvider>, Failed> {
    let urls = if urls.is_empty() { vec![DEFAULT_NODE.parse()?] } else { urls };
    Ok(urls.into_iter().map(|url| ProviderBuilder::new().connect_http(url).erased()).collect())
}

/// Whether a URL is of this machine.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Seats beside stake, and what is to be proposed, as its callers write it.
fn seats_said(seating: &Seating, proposed: bool) -> String {
    let rows = seating.sites.iter().map(|seats| {
        let stake = match (seats.stake, seats.suspended) {
            (_, true) => "suspended".to_owned(),
            (Some(stake), false) => stake.to_string(),
            (None, false) => "-".to_owned(),
        };
        vec![seats.site.clone(), stake, seats.due.to_string(), seats.now.to_string()]
    });
    let mut said = table(&["SITE", "STAKE", "SEATS DUE", "NOW"], rows.collect());
    said += &format!("at block {}\n", seating.block);
    for stranger in &seating.strangers {
        said += &format!("signer {stranger} is not in network.json and left as it is\n");
    }
    for Proposal { site, node, signer, authorize } in &seating.proposals {
        let what = if *authorize { "comes" } else { "goes" };
        said += &format!("clique_propose [\"{signer}\", {authorize}]  # {site} node {node} {what}\n");
    }
    said += match (seating.proposals.is_empty(), proposed) {
        (true, _) => "the signers are those that are due\n",
        (false, true) => "proposed; done when more than half of the signers have\n",
        (false, false) => {
            "every site's nodes must propose this (--propose); done when more than half of the signers have\n"
        }
    };
    said
}

/// A report as a table.
fn said(report: &Report) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let rows = report.sites.iter().map(|site| {
        let stake = match (site.stake, site.stake_share) {
            (Some(stake), Some(share)) => format!("{stake} ({})", percent(share)),
            _ => "-".to_owned(),
        };
        vec![
            site.site.clone(),
            format!("{} ({})", site.seats, percent(site.seats_share)),
            stake,
            format!("{} ({})", site.sealed, percent(site.sealed_share)),
            site.in_turn.to_string(),
            site.missed.to_string(),
        ]
    });
    let mut said = table(&["SITE", "SEATS", "STAKE", "SEALED", "IN TURN", "MISSED"], rows.collect());
    let period = report.period_s.map_or_else(String::new, |period| format!(", one every {period:.2} s"));
    said += &format!("blocks {} to {}{period}\n", report.from, report.to);
    for fork in &report.forks {
        let blocks: Vec<String> = fork.blocks.iter().map(ToString::to_string).collect();
        said += &format!("the nodes disagree about block {}: {}\n", fork.number, blocks.join(", "));
    }
    said
}

fn show(network: &Network) {
    let rows = network.nodes.iter().map(|member| {
        let at = member.enode.rsplit('@').next().unwrap_or_default();
        let at = at.split('?').next().unwrap_or_default();
        vec![member.site.clone(), member.node.to_string(), member.signer.to_string(), at.to_owned()]
    });
    print!("{}", table(&["SITE", "NODE", "SIGNER", "AT"], rows.collect()));
    let Network { engine, chain_id, block_period_s, confirmations, .. } = network;
    println!("{engine}, chain id {chain_id}, a block every {block_period_s} s, final after {confirmations}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_elsewhere_are_told_from_those_here() {
        let here = |url: &str| is_here(&url.parse().unwrap());
        assert!(here("http://127.0.0.1:8545") && here("http://localhost:1") && here("http://[::1]:8545"));
        assert!(!here("http://10.0.0.1:8545") && !here("http://node.example") && !here("http://127.0.0.1.example"));
    }
}
