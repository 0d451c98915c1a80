//! `pacs-bridge network`: the ledger that several sites run together. Needs no bridge and no configuration; where there is one for this
//! network, `audit` takes what its site wrote down of replaced blocks.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::transports::http::reqwest::Url;
use clap::Subcommand;

use super::Failed;
use super::output::{Output, table};
use crate::config::{Config, LedgerKind};
use crate::ledger::forks::{FORKS_FILE, Forks, ForksError};
use crate::network::audit::{self, Report};
use crate::network::forks::{Known, Replaced};
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
    /// Say who makes the blocks: for every site its seats beside its stake, blocks sealed, turns missed, and its blocks that were replaced.
    Audit {
        /// The network's network.json.
        network: PathBuf,
        /// JSON-RPC of a node; of several, to see whether they agree. By default that of a node on this machine.
        #[arg(long = "url", value_name = "URL")]
        urls: Vec<Url>,
        /// What a site wrote down of blocks that were replaced: its data directory, or the file ledger/forks.sqlite of it; of several sites. That of the
        /// configuration's own is taken where it is for this network.
        #[arg(long = "record", value_name = "PATH")]
        records: Vec<PathBuf>,
        /// How many of the newest blocks to look at.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        blocks: u64,
        /// Draw the shares into this file, too.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
}

pub(super) async fn run(command: NetworkCommand, config: &Config, output: &Output) -> Result<(), Failed> {
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
        NetworkCommand::Audit { network, urls, records, blocks, svg } => {
            let network = Network::read(&network)?;
            let nodes = connect(urls)?;
            let records = records_of(&records, config, &network)?;
            let report = audit::audit(&network, &nodes, blocks, &records).await?;
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

/// The records that were named, and that of this site, if it is of this network and has one.
fn records_of(named: &[PathBuf], config: &Config, network: &Network) -> Result<Vec<Forks>, ForksError> {
    let own = file_in(&config.site.data_dir);
    let ledger = &config.ledger;
    let is_ours = ledger.kind == LedgerKind::Rpc && ledger.chain_id == network.chain_id && own.is_file();
    let mut records = named.iter().map(|path| Forks::read(&file_in(path))).collect::<Result<Vec<_>, _>>()?;
    if is_ours {
        match Forks::read(&own) {
            Ok(record) => records.push(record),
            // Nobody asked for it.
            Err(error) => tracing::warn!(error = crate::chain_of(&error), "this site's record is left out"),
        }
    }
    Ok(records)
}

/// The record of a data directory; what is no directory is the record itself.
fn file_in(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("ledger").join(FORKS_FILE) } else { path.to_owned() }
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
        let counts = seats.counts.map_or_else(|| "-".to_owned(), |counts| counts.to_string());
        vec![seats.site.clone(), stake, counts, seats.due.to_string(), seats.now.to_string()]
    });
    let mut said = table(&["SITE", "STAKE", "COUNTS", "SEATS DUE", "NOW"], rows.collect());
    let Seating { block, counted_before, stake_cap, epoch_blocks, .. } = seating;
    said += &format!(
        "at block {block}; what came before block {counted_before} counts, {stake_cap} at most in each {epoch_blocks} blocks\n"
    );
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
            audit::replaced_words(report.forks_known, site),
        ]
    });
    let mut said = table(&["SITE", "SEATS", "STAKE", "SEALED", "IN TURN", "MISSED", "REPLACED"], rows.collect());
    let period = report.period_s.map_or_else(String::new, |period| format!(", one every {period:.2} s"));
    said += &format!("blocks {} to {}{period}\n", report.from, report.to);
    said += &match (report.forks_known, report.watched_from) {
        (Known::Never, _) => "no block is ever replaced: the engine makes none that is not final\n".to_owned(),
        (Known::Nothing, _) => {
            "replaced blocks: not known; --record has what a site saw, more nodes what they hold now\n".to_owned()
        }
        (Known::Now, _) => {
            "replaced blocks: what nodes hold now alone; --record has what a site saw before\n".to_owned()
        }
        (Known::Recorded, from) => {
            format!("replaced blocks: as sites saw them from block {} on\n", from.unwrap_or_default())
        }
    };
    report.forks.iter().for_each(|fork| said += &fork_said(fork));
    said
}

/// A block that does not stand, in a line.
fn fork_said(fork: &Replaced) -> String {
    let Replaced { number, hash, depth, .. } = fork;
    let of = fork.site.as_deref().unwrap_or("a site that is not known");
    let held = if fork.held { ", and a node holds it still" } else { "" };
    match fork.stands {
        Some(stands) => format!("block {number} {hash} of {of} had {depth} confirmation(s); {stands} stands{held}\n"),
        None => format!("block {number} {hash} of {of} has {depth} confirmation(s), and nodes disagree\n"),
    }
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
    use alloy::primitives::B256;

    use super::*;
    use crate::ledger::forks::ForkLog;
    use crate::network::audit::SiteReport;

    fn site(name: &str, replaced: Option<u64>, replaced_now: Option<u64>) -> SiteReport {
        SiteReport {
            site: name.into(),
            seats: 1,
            seats_share: 0.5,
            stake: (name == "a").then_some(3),
            stake_share: (name == "a").then_some(1.0),
            sealed: 2,
            sealed_share: 0.5,
            in_turn: 2,
            missed: 0,
            replaced,
            replaced_now,
        }
    }

    fn report(forks_known: Known, counts: [(Option<u64>, Option<u64>); 2], forks: Vec<Replaced>) -> Report {
        let [a, b] = counts;
        Report {
            network: "north".into(),
            from: 3,
            to: 6,
            period_s: Some(1.0),
            sites: vec![site("a", a.0, a.1), site("b", b.0, b.1)],
            forks_known,
            watched_from: (forks_known == Known::Recorded).then_some(2),
            forks,
        }
    }

    #[test]
    fn a_report_is_a_table_and_every_replaced_block_a_line() {
        let fork = |site: Option<&str>, stands, held| Replaced {
            number: 4,
            hash: B256::repeat_byte(0x44),
            signer: None,
            site: site.map(str::to_owned),
            stands,
            depth: 2,
            held,
        };
        let stands = Some(B256::repeat_byte(0x55));
        let forks = vec![fork(Some("b"), stands, true), fork(None, stands, false), fork(Some("b"), None, true)];
        let (hash, other) = (B256::repeat_byte(0x44), B256::repeat_byte(0x55));
        let table = "SITE  SEATS       STAKE        SEALED      IN TURN  MISSED  REPLACED";
        let expected = format!(
            "{table}\n\
             a     1 (50.0 %)  3 (100.0 %)  2 (50.0 %)  2        0       0\n\
             b     1 (50.0 %)  -            2 (50.0 %)  2        0       1\n\
             blocks 3 to 6, one every 1.00 s\n\
             replaced blocks: as sites saw them from block 2 on\n\
             block 4 {hash} of b had 2 confirmation(s); {other} stands, and a node holds it still\n\
             block 4 {hash} of a site that is not known had 2 confirmation(s); {other} stands\n\
             block 4 {hash} of b has 2 confirmation(s), and nodes disagree\n"
        );
        assert_eq!(said(&report(Known::Recorded, [(Some(0), None), (Some(1), None)], forks)), expected);
        let last = |known, counts| {
            let words = said(&report(known, counts, Vec::new()));
            let lines: Vec<_> = words.lines().map(str::to_owned).collect();
            (lines[1].rsplit("  ").next().unwrap().trim().to_owned(), lines[4].clone())
        };
        let (cell, line) = last(Known::Now, [(None, Some(0)); 2]);
        assert_eq!((cell.as_str(), line.starts_with("replaced blocks: what nodes hold now alone")), ("now 0", true));
        let (cell, line) = last(Known::Nothing, [(None, None); 2]);
        assert_eq!((cell.as_str(), line.starts_with("replaced blocks: not known")), ("-", true));
        let (cell, line) = last(Known::Never, [(None, None); 2]);
        assert_eq!((cell.as_str(), line.starts_with("no block is ever replaced")), ("none", true));
    }

    #[test]
    fn the_record_of_the_configuration_is_taken_for_its_own_network_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("ledger")).unwrap();
        let log = ForkLog::open(&file_in(&data), B256::ZERO).unwrap();
        log.begin(3).unwrap();
        let lines = format!(
            "[site]\ndata_dir = \"{}\"\n[ledger]\nkind = \"rpc\"\nurl = \"http://127.0.0.1:1\"\nchain_id = 7\nadmin = \"{}\"\n",
            data.display(),
            alloy::primitives::Address::repeat_byte(1)
        );
        let config = Config::parse(&lines, Default::default()).unwrap();
        let network = |chain_id| Network {
            name: "north".into(),
            engine: "clique".into(),
            chain_id,
            block_period_s: 1,
            confirmations: 2,
            admin: None,
            seats: None,
            epoch_blocks: None,
            stake_cap: None,
            nodes: Vec::new(),
        };
        let read = |named: &[PathBuf], chain_id| records_of(named, &config, &network(chain_id));
        assert_eq!(read(&[], 7).unwrap()[0].since, Some(3));
        assert!(read(&[], 8).unwrap().is_empty());
        assert_eq!(read(&[data.clone(), file_in(&data)], 8).unwrap().len(), 2);
        assert!(read(&[dir.path().join("elsewhere")], 8).is_err());
    }

    #[test]
    fn nodes_elsewhere_are_told_from_those_here() {
        let here = |url: &str| is_here(&url.parse().unwrap());
        assert!(here("http://127.0.0.1:8545") && here("http://localhost:1") && here("http://[::1]:8545"));
        assert!(!here("http://10.0.0.1:8545") && !here("http://node.example") && !here("http://127.0.0.1.example"));
    }
}
