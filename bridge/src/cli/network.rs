//! `pacs-bridge network`: the ledger that several sites run together. Needs no bridge and no configuration.

use std::path::PathBuf;

use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::transports::http::reqwest::Url;
use clap::Subcommand;

use super::Failed;
use super::output::{Output, table};
use crate::network::audit::{self, Report};
use crate::network::plan::{Engine, Plan};
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
        NetworkCommand::Audit { network, urls, blocks, svg } => {
            let network = Network::read(&network)?;
            let urls = if urls.is_empty() { vec![DEFAULT_NODE.parse()?] } else { urls };
            let nodes: Vec<_> = urls.into_iter().map(|url| ProviderBuilder::new().connect_http(url).erased()).collect();
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
