//! The files with which Besu runs one node of a QBFT network, and what such a network's first block tells the contract that seats its
//! validators. Pure.

use std::net::IpAddr;

use alloy::primitives::Address;
use contracts::validators::{FirstSite, FirstState};

use super::plan::{BLOCK_GAS_LIMIT, Node, Plan, Site};
use super::unit::{NodeFile, unit};

/// What the contract finds in its slots. `signers` are those of all nodes, in the order of the plan.
pub(super) fn first_state(plan: &Plan, signers: &[Address]) -> FirstState {
    let mut signers = signers.iter().copied();
    // A plan without a bridge's account is a mistake, found before this.
    let account = |site: &Site| site.bridge.unwrap_or_default();
    let sites = plan
        .sites
        .iter()
        .map(|site| FirstSite { account: account(site), keys: signers.by_ref().take(site.nodes.len()).collect() });
    FirstState {
        registry: contracts::addresses(plan.sites.first().map(account).unwrap_or_default()).sources,
        epoch_blocks: plan.epoch_blocks,
        seats: plan.seats(),
        stake_cap: plan.stake_cap,
        sites: sites.collect(),
    }
}

/// All files of a node but its secrets. `peers` are the enode URLs of all other nodes.
pub(super) fn files(plan: &Plan, site: &Site, node: &Node, peers: &[String]) -> Vec<NodeFile> {
    vec![
        NodeFile { name: "besu.toml".into(), text: config(plan, site, node), is_program: false },
        NodeFile { name: "static-nodes.json".into(), text: static_nodes(peers), is_program: false },
        NodeFile { name: "start.sh".into(), text: start(plan, site, node), is_program: true },
        unit(plan, site, node, "BESU=/opt/besu/bin/besu"),
    ]
}

/// What Besu is told in its configuration.
fn config(plan: &Plan, site: &Site, node: &Node) -> String {
    let (p2p, rpc, ws) = (node.p2p_port, node.rpc_port, node.ws_port());
    let Site { host, listen, .. } = site;
    let names = if plan.sites.iter().all(|site| site.host.parse::<IpAddr>().is_ok()) {
        ""
    } else {
        "# Some nodes are known by names.\nXdns-enabled=true\nXdns-update-enabled=true\n"
    };
    format!(
        r#"# Besu with QBFT. Paths are in start.sh, so that the folder may lie anywhere.

sync-mode="FULL"

# The nodes of static-nodes.json, and no others are looked for.
p2p-interface="{listen}"
p2p-host="{host}"
p2p-port={p2p}
discovery-enabled=false
nat-method="NONE"
max-peers=100
{names}
# JSON-RPC for the bridge on this machine. Never open it to others.
rpc-http-enabled=true
rpc-http-host="127.0.0.1"
rpc-http-port={rpc}
rpc-http-api=["ETH","NET","WEB3","TXPOOL","QBFT"]
rpc-ws-enabled=true
rpc-ws-host="127.0.0.1"
rpc-ws-port={ws}
rpc-ws-api=["ETH","NET","WEB3"]
host-allowlist=["localhost","127.0.0.1"]
# A bridge that was away asks for all that it missed.
rpc-max-logs-range=0
# The accounts of bridges pay one wei a unit of gas: no amount is too much.
rpc-tx-feecap=0
min-gas-price=1

# Above that much gas a block does not fit into a message between nodes.
target-gas-limit={BLOCK_GAS_LIMIT}
# A bridge sends the pieces of a study from one account, up to 120,000 octets each, without waiting for blocks.
tx-pool-max-future-by-sender=2000
tx-pool-layer-max-capacity=50000000
"#
    )
}

fn static_nodes(peers: &[String]) -> String {
    let peers: Vec<String> = peers.iter().map(|peer| format!("  \"{peer}\"")).collect();
    format!("[\n{}\n]\n", peers.join(",\n"))
}

/// What starts the node, from wherever its folder lies.
fn start(plan: &Plan, site: &Site, node: &Node) -> String {
    let (network, site, number) = (&plan.name, &site.name, node.number);
    format!(
        r#"#!/bin/sh
# Node {number} of site {site} in network {network}. BESU names the program; arguments are passed on to it.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)
besu=${{BESU:-besu}}
if [ ! -f "$dir/key" ]; then
    # Besu would make another one, which has no seat.
    echo "$dir/key is missing: put the folder of \"pacs-bridge network key --engine qbft\" in its place" >&2
    exit 1
fi
exec "$besu" --config-file="$dir/besu.toml" --data-path="$dir/data" --genesis-file="$dir/../genesis.json" \
    --node-private-key-file="$dir/key" --static-nodes-file="$dir/static-nodes.json" "$@"
"#
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use super::super::{Engine, make, make_keys};
    use super::*;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/network/golden")
    }

    fn files_below(folder: &Path, under: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), under.join(entry.file_name()));
            if path.is_dir() {
                files_below(&path, &name, found);
            } else {
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }

    /// No Besu ran with these. They are what was held against its documentation, so that a change of them is seen.
    #[test]
    fn a_fixed_plan_gives_the_same_octets() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("east");
        make(&Plan::read(&golden().join("plan.toml")).unwrap(), &out).unwrap();
        let (mut made, mut kept) = (BTreeMap::new(), BTreeMap::new());
        files_below(&out, Path::new(""), &mut made);
        files_below(&golden(), Path::new(""), &mut kept);
        kept.remove(Path::new("plan.toml"));
        for (name, text) in &kept {
            assert_eq!(made.get(name), Some(text), "{} is another; both if it is meant to be", name.display());
        }
        let node = Path::new("sites/b/node-2");
        let of_node = |all: &BTreeMap<PathBuf, String>| all.keys().filter(|name| name.starts_with(node)).count();
        assert_eq!((of_node(&made), of_node(&kept)), (4, 4), "the node of which all files are kept");
        assert!(made.keys().all(|name| name.file_name().unwrap() != "key"), "the plan names all keys");
        crate::config::Config::parse(&kept[Path::new("sites/b/bridge.toml")], Default::default()).unwrap();
    }

    #[test]
    fn a_node_has_one_key_for_seals_and_for_other_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("keys");
        let public = make_keys(Engine::Qbft, &own).unwrap();
        let secret = std::fs::read_to_string(own.join("key")).unwrap();
        let secret: alloy::signers::local::PrivateKeySigner = secret.parse().unwrap();
        assert_eq!((secret.address(), std::fs::read_dir(&own).unwrap().count()), (public.signer, 1));
        let plan = |signer: &str| {
            format!(
                "name = \"n\"\nengine = \"qbft\"\nchain_id = 7\n[[site]]\nname = \"a\"\nhost = \"10.0.0.1\"\n\
                 bridge = \"0x{}\"\nkeys = [{{ signer = \"{signer}\", node_id = \"{}\" }}]\n",
                "44".repeat(20),
                public.node_id
            )
        };
        let network = make(&Plan::parse(&plan(&public.signer.to_string())).unwrap(), &dir.path().join("n")).unwrap();
        assert_eq!((network.confirmations, network.nodes[0].signer), (1, public.signer));
        let other = Plan::parse(&plan(&Address::repeat_byte(1).to_string())).unwrap_err();
        assert!(other.to_string().contains("is not the account of its node_id"), "{other}");
    }

    #[test]
    fn keys_that_are_made_here_lie_in_the_nodes_folder() {
        let dir = tempfile::tempdir().unwrap();
        let plan = "name = \"n\"\nengine = \"qbft\"\nchain_id = 7\n[[site]]\nname = \"a\"\nhost = \"10.0.0.1\"\nnodes = 2\n\
                    bridge = \"0x4444444444444444444444444444444444444444\"\n";
        let network = make(&Plan::parse(plan).unwrap(), &dir.path().join("n")).unwrap();
        for member in &network.nodes {
            let folder = dir.path().join(format!("n/sites/a/node-{}", member.node));
            let key = std::fs::read_to_string(folder.join("key")).unwrap();
            let key: alloy::signers::local::PrivateKeySigner = key.parse().unwrap();
            assert_eq!(key.address(), member.signer);
            assert!(!std::fs::read_to_string(folder.join("besu.toml")).unwrap().contains("Xdns"), "no names, no DNS");
        }
    }
}
