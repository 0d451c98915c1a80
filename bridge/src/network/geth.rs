//! The files with which geth runs one node. Pure.

use super::plan::{BLOCK_GAS_LIMIT, Node, Plan, Site};
use super::unit::{NodeFile, unit};

/// All files of a node but its secrets. `peers` are the enode URLs of all other nodes.
pub(super) fn files(plan: &Plan, site: &Site, node: &Node, signer: &str, peers: &[String]) -> Vec<NodeFile> {
    vec![
        NodeFile { name: "geth.toml".into(), text: config(plan, site, node, peers), is_program: false },
        NodeFile { name: "start.sh".into(), text: start(plan, site, node, signer), is_program: true },
        unit(plan, site, node, "GETH=/usr/local/bin/geth"),
    ]
}

/// What geth is told in its configuration.
fn config(plan: &Plan, site: &Site, node: &Node, peers: &[String]) -> String {
    let Plan { chain_id, .. } = plan;
    let (p2p, rpc, ws, engine) = (node.p2p_port, node.rpc_port, node.ws_port(), node.engine_port());
    let listen = &site.listen;
    let peers: Vec<String> = peers.iter().map(|peer| format!("  \"{peer}\"")).collect();
    let peers = peers.join(",\n");
    format!(
        r#"# geth 1.13.15, the last with Clique. Run it on a network of its own or in a VPN: later corrections of its p2p code are not in it.

[Eth]
NetworkId = {chain_id}
SyncMode = "full"
# Bridges look transactions up by their hash for ever; 0 keeps that index whole.
TransactionHistory = 0
# The accounts of bridges pay one wei a unit of gas: no amount is too much.
RPCTxFeeCap = 0.0

[Node]
# JSON-RPC for the bridge on this machine. Never open it to others: it can propose signers.
HTTPHost = "127.0.0.1"
HTTPPort = {rpc}
HTTPModules = ["eth", "net", "web3", "txpool", "clique"]
WSHost = "127.0.0.1"
WSPort = {ws}
WSModules = ["eth", "net", "web3"]
AuthAddr = "127.0.0.1"
AuthPort = {engine}

[Node.P2P]
ListenAddr = "{listen}:{p2p}"
MaxPeers = 50
NoDiscovery = true
StaticNodes = [
{peers}
]
TrustedNodes = [
{peers}
]
"#
    )
}

/// What starts the node, from wherever its folder lies.
fn start(plan: &Plan, site: &Site, node: &Node, signer: &str) -> String {
    let (network, site, number) = (&plan.name, &site.name, node.number);
    format!(
        r#"#!/bin/sh
# Node {number} of site {site} in network {network}. GETH names the program; arguments are passed on to it.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)
geth=${{GETH:-geth}}
case "$("$geth" version 2>/dev/null)" in
*"Version: 1.13."*) ;;
*)
    echo "$geth is no geth 1.13, and later ones cannot seal Clique: set GETH to one" >&2
    exit 1
    ;;
esac
# Without a first block of its own geth would take that of the main network; with the same one this changes nothing.
"$geth" init --datadir "$dir/data" "$dir/../genesis.json" 2>>"$dir/init.log" || {{
    cat "$dir/init.log" >&2
    exit 1
}}
# Above that much gas a block does not fit into a message between nodes, and the network falls apart. A piece of 120,000 octets takes four slots of
# the pool.
exec "$geth" --config "$dir/geth.toml" --datadir "$dir/data" --keystore "$dir/keystore" --nodekey "$dir/nodekey" \
    --nat none --ipcpath "$dir/geth.ipc" --mine --miner.etherbase {signer} --unlock {signer} --password "$dir/password" \
    --allow-insecure-unlock --miner.gaslimit {BLOCK_GAS_LIMIT} --miner.gasprice 1 --txpool.pricelimit 1 --txpool.accountslots 512 \
    --txpool.globalslots 8192 --txpool.accountqueue 512 --txpool.globalqueue 8192 "$@"
"#
    )
}
