//! What a consortium's ledger is to be, as the people who set it up say it in a file. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alloy::primitives::{Address, hex};
use config::{Config, File, FileFormat};
use contracts::validators::{KEYS_MAX, SEATS_MAX, SITES_FOR_THIRD, SITES_MAX};
use serde::Deserialize;

/// Gas of a block: the most that networks of geth survive, because a block must fit into one message of 10 MiB.
pub const BLOCK_GAS_LIMIT: u64 = 40_000_000;
/// Ports of a site's first node, unless it says otherwise: where nodes find each other, and JSON-RPC over HTTP.
const P2P_PORT: u16 = 30_303;
const RPC_PORT: u16 = 8_545;
/// Ports of a site's IPFS node, unless it says otherwise: where others find it, and its API.
const IPFS_PORT: u16 = 4_001;
const IPFS_API_PORT: u16 = 5_001;
/// Between the RPC ports of a site's nodes: HTTP, WebSocket and the engine's port are within.
const RPC_STEP: u16 = 10;
/// Nodes of one site at most.
const NODES_MAX: u16 = 50;
/// Longest name, in characters: names become those of files and services.
const NAME_MAX: usize = 32;
/// Largest chain id that every wallet can hold (2^53 - 1).
const CHAIN_ID_MAX: u64 = (1 << 53) - 1;
/// Blocks between two at which seats follow stake, unless the plan says otherwise: a day of blocks of a second.
pub const EPOCH_BLOCKS: u64 = 86_400;
/// Studies that count for a site in that time, unless the plan says otherwise: more than a large department makes in a day.
pub const STAKE_CAP: u64 = 1_000;
/// Validators of which one may fail in any way (QBFT).
const QBFT_VALIDATORS: usize = 4;

/// Why a plan cannot be carried out: its author must act.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not a file of this form.
    #[error("plan {0}")]
    Form(PathBuf, #[source] Box<config::ConfigError>),
    /// It says something that cannot be.
    #[error("plan: {0}")]
    Mistake(String),
}

/// What decides in which order blocks come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// geth 1.13 with Clique (EIP-225).
    Clique,
    /// Besu with QBFT, its validators named by the contract Validators.
    Qbft,
}

impl Engine {
    /// Its name in plans.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clique => "clique",
            Self::Qbft => "qbft",
        }
    }

    /// Blocks until a transaction counts as final, its own included, among so many signers.
    #[must_use]
    pub fn confirmations(self, signers: usize) -> usize {
        match self {
            // More than half have built on it, each of whom signs one block in as many.
            Self::Clique => signers / 2 + 1,
            // More than two thirds agreed before it was there.
            Self::Qbft => 1,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    engine: Engine,
    chain_id: u64,
    #[serde(default = "one")]
    block_period_s: u64,
    #[serde(default)]
    fund: Vec<Address>,
    directory: Option<PathBuf>,
    #[serde(default)]
    ipfs: bool,
    seats: Option<usize>,
    epoch_blocks: Option<u64>,
    stake_cap: Option<u64>,
    #[serde(rename = "site", default)]
    sites: Vec<WrittenSite>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSite {
    name: String,
    host: String,
    listen: Option<String>,
    bridge: Option<Address>,
    nodes: Option<u16>,
    p2p_port: Option<u16>,
    rpc_port: Option<u16>,
    ipfs_port: Option<u16>,
    ipfs_api_port: Option<u16>,
    ipfs_peer_id: Option<String>,
    #[serde(default)]
    keys: Vec<PublicKeys>,
}

fn one() -> u64 {
    1
}

/// The public halves of a node's keys, when they were made where the node is (`pacs-bridge network key`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKeys {
    /// Account that signs blocks.
    pub signer: Address,
    /// 64 octets in hexadecimal: what other nodes know this one by.
    pub node_id: String,
}

impl PublicKeys {
    /// The account of the key by which other nodes know this one; none if that is not one's form.
    fn node_account(&self) -> Option<Address> {
        let point = hex::decode(&self.node_id).ok().filter(|point| point.len() == 64)?;
        Some(Address::from_raw_public_key(&point))
    }
}

/// A network to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What decides the order of blocks.
    pub engine: Engine,
    /// EIP-155 chain id, which is the network's id too.
    pub chain_id: u64,
    /// Seconds between blocks.
    pub block_period_s: u64,
    /// Accounts with funds in the first block, besides those of signers and bridges.
    pub fund: Vec<Address>,
    /// Where a site's folder will be on its machine.
    pub directory: PathBuf,
    /// Whether every site has an IPFS node, in a private swarm.
    pub ipfs: bool,
    /// How many nodes make blocks at a time, where that is said. Then stake decides whose.
    pub seats: Option<usize>,
    /// Blocks between two at which stake is counted anew; with QBFT, at which seats follow it.
    pub epoch_blocks: u64,
    /// Studies that count for a site in that time.
    pub stake_cap: u64,
    /// Who takes part.
    pub sites: Vec<Site>,
}

/// A site that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Name or address by which other sites reach its nodes.
    pub host: String,
    /// Address on which its nodes listen for others.
    pub listen: String,
    /// Account of its bridge, which is funded.
    pub bridge: Option<Address>,
    /// Its nodes, each of which signs blocks.
    pub nodes: Vec<Node>,
    /// Where other sites' IPFS nodes find its own.
    pub ipfs_port: u16,
    /// The API of its IPFS node, on this machine only.
    pub ipfs_api_port: u16,
    /// What its IPFS node is known by, when its key was made elsewhere; none when it is to be made now.
    pub ipfs_peer_id: Option<String>,
}

/// A node that signs blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number within the site, from 1.
    pub number: u16,
    /// Where other nodes find it.
    pub p2p_port: u16,
    /// JSON-RPC over HTTP, on this machine only. WebSocket is at the next port, the engine's unused API six further on.
    pub rpc_port: u16,
    /// Keys that were made elsewhere; none when they are to be made now.
    pub keys: Option<PublicKeys>,
}

impl Node {
    /// Port of JSON-RPC over WebSocket.
    #[must_use]
    pub fn ws_port(&self) -> u16 {
        self.rpc_port.saturating_add(1)
    }

    /// Port of the engine's API, which no consensus client uses here; geth opens it all the same.
    #[must_use]
    pub fn engine_port(&self) -> u16 {
        self.rpc_port.saturating_add(6)
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError`]; every mistake is said at once.
    pub fn read(file: &Path) -> Result<Self, PlanError> {
        let form = |error| PlanError::Form(file.to_owned(), Box::new(error));
        let source = File::from(file).format(FileFormat::Toml);
        let written = Config::builder().add_source(source).build().map_err(form)?;
        Self::of(written.try_deserialize().map_err(form)?)
    }

    /// As [`Self::read`], from text.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(toml: &str) -> Result<Self, PlanError> {
        let form = |error| PlanError::Form(PathBuf::from("text"), Box::new(error));
        let written = Config::builder().add_source(File::from_str(toml, FileFormat::Toml)).build().map_err(form)?;
        Self::of(written.try_deserialize().map_err(form)?)
    }

    fn of(written: Written) -> Result<Self, PlanError> {
        let default = || PathBuf::from("/var/lib/pacs-bridge-network").join(&written.name);
        let directory = written.directory.clone().unwrap_or_else(default);
        let Written {
            name, engine, chain_id, block_period_s, fund, seats, epoch_blocks, stake_cap, sites, ipfs, ..
        } = written;
        let sites = sites.into_iter().map(Site::of).collect();
        let (epoch_blocks, stake_cap) = (epoch_blocks.unwrap_or(EPOCH_BLOCKS), stake_cap.unwrap_or(STAKE_CAP));
        let plan = Self {
            name,
            engine,
            chain_id,
            block_period_s,
            fund,
            directory,
            ipfs,
            seats,
            epoch_blocks,
            stake_cap,
            sites,
        };
        let mistakes = plan.mistakes();
        if mistakes.is_empty() { Ok(plan) } else { Err(PlanError::Mistake(mistakes.join("; "))) }
    }

    /// All nodes, each with its site.
    pub fn nodes(&self) -> impl Iterator<Item = (&Site, &Node)> {
        self.sites.iter().flat_map(|site| site.nodes.iter().map(move |node| (site, node)))
    }

    /// How many nodes make blocks at a time: all, unless the plan says otherwise.
    #[must_use]
    pub fn seats(&self) -> usize {
        self.seats.unwrap_or_else(|| self.nodes().count().min(SEATS_MAX))
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut names = BTreeSet::new();
        for name in std::iter::once(&self.name).chain(self.sites.iter().map(|site| &site.name)) {
            if !is_name(name) {
                mistakes.push(format!("\"{name}\" is no name: 1 to {NAME_MAX} lower-case letters, digits and hyphens"));
            }
        }
        for site in &self.sites {
            if !names.insert(&site.name) {
                mistakes.push(format!("two sites are called {}", site.name));
            }
            mistakes.extend(site.mistakes());
        }
        if self.sites.is_empty() {
            mistakes.push("a network needs a [[site]]".into());
        }
        if !(1..=CHAIN_ID_MAX).contains(&self.chain_id) {
            mistakes.push(format!("chain_id must be from 1 to {CHAIN_ID_MAX}"));
        }
        if !(1..=3600).contains(&self.block_period_s) {
            mistakes.push("block_period_s must be from 1 to 3600".into());
        }
        if !self.directory.is_absolute() || self.directory.to_str().is_none_or(|path| !is_plain(path)) {
            mistakes.push("directory must be an absolute path of letters, digits and . _ - /".into());
        }
        let least = if self.sites.len() < SITES_FOR_THIRD { 1 } else { SITES_FOR_THIRD };
        if self.seats.is_some_and(|seats| !(least..=SEATS_MAX).contains(&seats)) {
            mistakes.push(format!("seats must be from {least} to {SEATS_MAX}"));
        }
        if self.epoch_blocks == 0 {
            mistakes.push("epoch_blocks must be 1 or more".into());
        }
        if self.engine == Engine::Qbft {
            mistakes.extend(self.mistakes_of_qbft());
        }
        mistakes.extend(self.collisions());
        mistakes
    }

    /// What the contract Validators cannot take, and Besu.
    fn mistakes_of_qbft(&self) -> Vec<String> {
        let (mut mistakes, mut accounts) = (Vec::new(), BTreeSet::new());
        if self.sites.len() > SITES_MAX {
            mistakes.push(format!("a network with QBFT has at most {SITES_MAX} sites"));
        }
        for site in &self.sites {
            match site.bridge {
                None => mistakes.push(format!("site {} needs bridge: its seats belong to that account", site.name)),
                Some(bridge) if !accounts.insert(bridge) => mistakes.push(format!("two sites have bridge {bridge}")),
                Some(_) => {}
            }
            if site.nodes.len() > KEYS_MAX {
                mistakes.push(format!("site {}: at most {KEYS_MAX} nodes with QBFT", site.name));
            }
            let keys = site.nodes.iter().filter_map(|node| node.keys.as_ref());
            for keys in keys.filter(|keys| keys.node_account() != Some(keys.signer)) {
                let make = "make them with network key --engine qbft";
                mistakes.push(format!("{} is not the account of its node_id: {make}", keys.signer));
            }
        }
        mistakes
    }

    /// Ports that two want on one host, keys that two hold.
    fn collisions(&self) -> Vec<String> {
        let (mut ports, mut keys, mut mistakes) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for (site, node) in self.nodes() {
            for port in [node.p2p_port, node.rpc_port, node.ws_port(), node.engine_port()] {
                if !ports.insert((&site.host, port)) {
                    mistakes.push(format!("two nodes on {} want port {port}", site.host));
                }
            }
            let Some(known) = &node.keys else { continue };
            for key in [known.signer.to_string(), known.node_id.to_lowercase()] {
                if !keys.insert(key) {
                    mistakes.push(format!("two nodes have the key of {}", known.signer));
                }
            }
        }
        for site in self.sites.iter().filter(|_| self.ipfs) {
            for port in [site.ipfs_port, site.ipfs_api_port] {
                if !ports.insert((&site.host, port)) {
                    mistakes.push(format!("two nodes on {} want port {port}", site.host));
                }
            }
            if site.ipfs_peer_id.as_ref().is_some_and(|peer| !keys.insert(peer.clone())) {
                mistakes.push(format!("two sites have the IPFS key of site {}", site.name));
            }
        }
        mistakes
    }

    /// What its author should think about.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut advice = match self.engine {
            Engine::Clique => self.advice_for_clique(),
            Engine::Qbft => self.advice_for_qbft(),
        };
        for site in self.sites.iter().filter(|site| site.bridge.is_none()) {
            advice.push(format!("site {} names no bridge account, so its bridge has no funds at first", site.name));
        }
        advice
    }

    fn advice_for_qbft(&self) -> Vec<String> {
        let (nodes, sites, mut advice) = (self.nodes().count(), self.sites.len(), Vec::new());
        if self.seats().min(nodes) < QBFT_VALIDATORS {
            advice.push(format!(
                "with fewer than {QBFT_VALIDATORS} validators none may lie; take {QBFT_VALIDATORS} or more"
            ));
        }
        if sites < SITES_FOR_THIRD {
            advice.push(format!(
                "of {sites} site(s) one has a third or more, so all have equal seats whatever their stake, and one that lies can stop the rest"
            ));
        } else if self.seats() >= nodes {
            advice.push("every node may have a seat whatever the stake; for stake to decide, set seats below the number of nodes".into());
        }
        advice
    }

    fn advice_for_clique(&self) -> Vec<String> {
        let signers = self.nodes().count();
        let mut advice = Vec::new();
        if signers < 3 {
            advice.push(format!("with {signers} signer(s) nothing goes on when one is away; take three or more"));
        } else if signers.is_multiple_of(2) {
            advice.push(format!(
                "{signers} signers can be cut into equal halves, which then both stand; take an odd number"
            ));
        }
        let largest = self.sites.iter().max_by_key(|site| site.nodes.len());
        if let Some(site) = largest.filter(|site| self.sites.len() > 1 && site.nodes.len() * 2 > signers) {
            advice.push(format!("site {} signs more than half of all blocks, so it decides alone", site.name));
        }
        advice
    }
}

impl Site {
    fn of(written: WrittenSite) -> Self {
        let WrittenSite {
            name,
            host,
            listen,
            bridge,
            nodes,
            p2p_port,
            rpc_port,
            ipfs_port,
            ipfs_api_port,
            ipfs_peer_id,
            keys,
        } = written;
        let known = u16::try_from(keys.len()).unwrap_or(u16::MAX);
        let count = nodes.unwrap_or(known.max(1)).min(NODES_MAX + 1);
        let mut keys = keys.into_iter();
        let nodes = (0..count).map(|index| Node {
            number: index + 1,
            p2p_port: p2p_port.unwrap_or(P2P_PORT).saturating_add(index),
            rpc_port: rpc_port.unwrap_or(RPC_PORT).saturating_add(index * RPC_STEP),
            keys: keys.next(),
        });
        let nodes = nodes.collect();
        let listen = listen.unwrap_or_else(|| "0.0.0.0".into());
        let (ipfs_port, ipfs_api_port) = (ipfs_port.unwrap_or(IPFS_PORT), ipfs_api_port.unwrap_or(IPFS_API_PORT));
        Self { name, host, listen, bridge, nodes, ipfs_port, ipfs_api_port, ipfs_peer_id }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut wrong = |what: String| mistakes.push(format!("site {}: {what}", self.name));
        if self.host.is_empty() || !is_plain(&self.host) || self.host.contains('/') {
            wrong(format!("host \"{}\" is neither a name nor an address", self.host));
        }
        if self.ipfs_peer_id.as_ref().is_some_and(|peer| !super::kubo::is_peer_id(peer)) {
            wrong("ipfs_peer_id is none of an Ed25519 key: 52 characters that begin with 12D3KooW".into());
        }
        if self.listen.parse::<std::net::Ipv4Addr>().is_err() {
            wrong(format!("listen \"{}\" is no IPv4 address", self.listen));
        }
        if self.nodes.is_empty() || self.nodes.len() > usize::from(NODES_MAX) {
            wrong(format!("nodes must be from 1 to {NODES_MAX}"));
        }
        let (known, all) = (self.nodes.iter().filter(|node| node.keys.is_some()).count(), self.nodes.len());
        if known != 0 && known != all {
            wrong(format!("{all} nodes and {known} keys: give the keys of all of them, or of none"));
        }
        for node in &self.nodes {
            if node.p2p_port == 0 || node.rpc_port == 0 || node.rpc_port > u16::MAX - RPC_STEP {
                wrong(format!("ports {} and {} of node {}", node.p2p_port, node.rpc_port, node.number));
            }
            let ids = node.keys.iter().map(|keys| &keys.node_id);
            for id in ids.filter(|id| hex::decode(id).map_or(0, |octets| octets.len()) != 64) {
                wrong(format!("node_id \"{id}\" is not 128 hexadecimal digits"));
            }
        }
        mistakes
    }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-')
}

/// Text that means itself in a shell, in TOML and in a unit file.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const THREE: &str = r#"
        name = "north"
        engine = "clique"
        chain_id = 81220
        [[site]]
        name = "a"
        host = "10.0.0.1"
        bridge = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
        [[site]]
        name = "b"
        host = "b.example"
        nodes = 2
    "#;

    fn words(toml: &str) -> String {
        crate::chain_of(&Plan::parse(toml).unwrap_err())
    }

    #[test]
    fn a_plan_has_its_defaults() {
        let plan = Plan::parse(THREE).unwrap();
        assert_eq!((plan.block_period_s, plan.directory.to_str().unwrap()), (1, "/var/lib/pacs-bridge-network/north"));
        let ports: Vec<_> = plan
            .nodes()
            .map(|(site, node)| (site.name.as_str(), node.p2p_port, node.rpc_port, node.ws_port()))
            .collect();
        assert_eq!(ports, [("a", 30303, 8545, 8546), ("b", 30303, 8545, 8546), ("b", 30304, 8555, 8556)]);
        assert_eq!(plan.engine.confirmations(3), 2);
        let advice = plan.advice().join("\n");
        assert!(
            advice.contains("site b signs more than half") && advice.contains("site b names no bridge"),
            "{advice}"
        );
    }

    #[test]
    fn every_mistake_is_said_at_once() {
        let said = words(
            "name = \"North Sea\"\nengine = \"clique\"\nchain_id = 0\nblock_period_s = 0\ndirectory = \"here\"\n\
             [[site]]\nname = \"a\"\nhost = \"$(reboot)\"\nlisten = \"any\"\nnodes = 0\n\
             [[site]]\nname = \"a\"\nhost = \"h\"\n[[site]]\nname = \"c\"\nhost = \"h\"\n",
        );
        for part in [
            "\"North Sea\" is no name",
            "chain_id",
            "block_period_s",
            "absolute",
            "two sites are called a",
            "host \"$(reboot)\"",
            "listen \"any\"",
            "nodes must be",
            "two nodes on h want port 30303",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(words(&THREE.replace("nodes = 2", "rpc_port = 65535")).contains("ports 30303 and 65535 of node 1"));
        assert!(words("name = \"n\"\nengine = \"clique\"\nchain_id = 1\n").contains("[[site]]"));
        assert!(words(&format!("{THREE}\ncolour = 1\n")).contains("colour"));
        assert!(words(&THREE.replace("clique", "ethash")).contains("ethash"));
    }

    #[test]
    fn keys_that_were_made_elsewhere_are_taken_whole_or_not_at_all() {
        let key =
            |digit: &str| format!("{{ signer = \"0x{}\", node_id = \"{}\" }}", digit.repeat(40), digit.repeat(128));
        let with = |keys: &str| THREE.replace("nodes = 2", &format!("nodes = 2\nkeys = [{keys}]"));
        let plan = Plan::parse(&with(&format!("{}, {}", key("1"), key("2")))).unwrap();
        assert_eq!(plan.sites[1].nodes[1].keys.as_ref().unwrap().signer, Address::repeat_byte(0x22));
        assert!(words(&with(&key("1"))).contains("2 nodes and 1 keys"));
        assert!(words(&with(&format!("{}, {}", key("1"), key("1")))).contains("two nodes have the key"));
        let short = key("1").replace(&"1".repeat(128), "11");
        assert!(words(&with(&format!("{short}, {}", key("2")))).contains("128 hexadecimal digits"));
    }

    #[test]
    fn a_plan_for_qbft_says_whose_the_seats_are() {
        let four = |lines: &str| {
            let sites = ["a", "b", "c", "d"].into_iter().zip(1..).map(|(name, byte)| {
                let bridge = Address::repeat_byte(byte);
                format!("[[site]]\nname = \"{name}\"\nhost = \"{name}.example\"\nnodes = 2\nbridge = \"{bridge}\"\n")
            });
            format!("name = \"n\"\nengine = \"qbft\"\nchain_id = 7\n{lines}\n{}", sites.collect::<String>())
        };
        let plan = Plan::parse(&four("")).unwrap();
        assert_eq!((plan.seats(), plan.epoch_blocks, plan.stake_cap), (8, 86_400, 1_000));
        assert_eq!(plan.engine.confirmations(8), 1);
        assert!(plan.advice().join("\n").contains("set seats below the number of nodes"), "{:?}", plan.advice());
        assert!(Plan::parse(&four("seats = 7")).unwrap().advice().is_empty());
        let said = words(&four("seats = 3\nepoch_blocks = 0"));
        assert!(said.contains("seats must be from 4 to 64") && said.contains("epoch_blocks"), "{said}");
        let said = words(&four("").replace(&Address::repeat_byte(2).to_string(), &Address::repeat_byte(1).to_string()));
        assert!(said.contains("two sites have bridge"), "{said}");
        assert!(words(&four("").replace("nodes = 2", "nodes = 17")).contains("at most 16 nodes"));
        assert!(words(&THREE.replace("clique", "qbft")).contains("site b needs bridge"));
    }

    #[test]
    fn stake_is_capped_where_signers_vote_too() {
        let with = |lines: &str| THREE.replace("chain_id", &format!("{lines}\nchain_id"));
        let plan = Plan::parse(&with("epoch_blocks = 9\nstake_cap = 0")).unwrap();
        assert_eq!((plan.epoch_blocks, plan.stake_cap), (9, 0));
        let said = words(&with("epoch_blocks = 0"));
        assert!(said.contains("epoch_blocks must be 1 or more"), "{said}");
    }
}
