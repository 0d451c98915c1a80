//! The files with which kubo runs a site's IPFS node: a member of the consortium's private swarm and of nothing else. Pure, but for keys.
//!
//! Who does not hold the swarm's key cannot connect, so there is no bootstrap, no routing table, no relay and no gateway; nodes know each
//! other from their configuration. Blocks are synced when they are written, because a bridge counts on what its node says it keeps.

use alloy::primitives::hex;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use rand::RngCore as _;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::plan::{Plan, Site};
use super::unit::{NodeFile, unit_of};

/// Octets before a public key of Ed25519 in libp2p's form, and before that in an identity multihash.
const PUBLIC_KEY: [u8; 4] = [0x08, 0x01, 0x12, 0x20];
const PRIVATE_KEY: [u8; 4] = [0x08, 0x01, 0x12, 0x40];
const IDENTITY_MULTIHASH: [u8; 2] = [0x00, 0x24];
const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The keys of an IPFS node.
pub(super) struct Identity {
    /// What other nodes know it by.
    pub(super) peer_id: String,
    /// In libp2p's form, Base64; none when it was made elsewhere.
    pub(super) private_key: Option<Zeroizing<String>>,
}

impl Identity {
    pub(super) fn new() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rngs::OsRng.fill_bytes(&mut *seed);
        let key = SigningKey::from_bytes(&seed);
        let pair = Zeroizing::new([&PRIVATE_KEY[..], &key.to_keypair_bytes()].concat());
        Self {
            peer_id: peer_id(&key.verifying_key().to_bytes()),
            private_key: Some(Zeroizing::new(STANDARD.encode(&*pair))),
        }
    }
}

/// The name of a node by its public key.
fn peer_id(public_key: &[u8; 32]) -> String {
    base58(&[&IDENTITY_MULTIHASH[..], &PUBLIC_KEY, public_key].concat())
}

/// Whether a text has the form of such a name.
pub(super) fn is_peer_id(text: &str) -> bool {
    text.len() == 52 && text.starts_with("12D3KooW") && text.bytes().all(|digit| BASE58.contains(&digit))
}

fn base58(octets: &[u8]) -> String {
    // Digits, the least first.
    let mut digits: Vec<u8> = Vec::new();
    for octet in octets {
        let mut carry = u32::from(*octet);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let zeros = octets.iter().take_while(|octet| **octet == 0).count();
    let digits = std::iter::repeat_n(0, zeros).chain(digits.into_iter().rev());
    digits.map(|digit| char::from(BASE58[usize::from(digit)])).collect()
}

/// A secret of 32 octets in hexadecimal.
pub(super) fn secret() -> Zeroizing<String> {
    let mut random = Zeroizing::new([0; 32]);
    rand::rngs::OsRng.fill_bytes(&mut *random);
    Zeroizing::new(hex::encode(*random))
}

/// The file that lets nodes into the swarm.
pub(super) fn swarm_key(secret: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("/key/swarm/psk/1.0.0/\n/base16/\n{secret}\n"))
}

/// `Identity` of kubo's configuration.
pub(super) fn identity(identity: &Identity) -> Option<Zeroizing<String>> {
    let private_key = identity.private_key.as_ref()?;
    Some(Zeroizing::new(json!({ "PeerID": identity.peer_id, "PrivKey": private_key.as_str() }).to_string()))
}

/// `API` of kubo's configuration: who shows the token may use the RPC API, and nobody else.
pub(super) fn api(token: &str) -> Zeroizing<String> {
    let bridge = json!({ "AuthSecret": format!("bearer:{token}"), "AllowedPaths": ["/api/v0"] });
    Zeroizing::new(json!({ "Authorizations": { "bridge": bridge } }).to_string())
}

/// The rest of kubo's configuration. `peers` are the other sites with what their nodes are known by.
pub(super) fn config(site: &Site, peers: &[(&Site, String)]) -> Value {
    let none = Value::Array(Vec::new());
    let peers =
        peers.iter().map(|(site, peer_id)| json!({ "ID": peer_id, "Addrs": [address(&site.host, site.ipfs_port)] }));
    json!({
        "Datastore": datastore(),
        "Addresses": {
            "Swarm": [address(&site.listen, site.ipfs_port)],
            "API": address("127.0.0.1", site.ipfs_api_port),
            "Gateway": none,
            "Announce": [address(&site.host, site.ipfs_port)],
        },
        "Peering": { "Peers": peers.collect::<Vec<_>>() },
        "Bootstrap": none,
        "Routing": { "Type": "none", "DelegatedRouters": none },
        "Ipns": { "DelegatedPublishers": none },
        "DNS": { "Resolvers": {} },
        "Discovery": { "MDNS": { "Enabled": false } },
        "AutoConf": { "Enabled": false },
        "AutoTLS": { "Enabled": false },
        "AutoNAT": { "ServiceMode": "disabled" },
        "Provide": { "Enabled": false },
        "Gateway": { "NoFetch": true, "NoDNSLink": true },
        "Swarm": {
            "DisableNatPortMap": true,
            "RelayClient": { "Enabled": false },
            "RelayService": { "Enabled": false },
            // The swarm's key protects TCP and nothing else.
            "Transports": {
                "Network": {
                    "TCP": true, "QUIC": false, "WebTransport": false, "WebRTCDirect": false, "Websocket": false, "Relay": false,
                },
            },
        },
        "Version": { "SwarmCheckEnabled": false },
        "Plugins": { "Plugins": { "telemetry": { "Config": { "Mode": "off" } } } },
    })
}

/// What holds blocks: kubo's own, with `sync`, so that what it says it keeps survives a power cut.
fn datastore() -> Value {
    json!({
        // What is pinned is never collected; this is when kubo looks for what is not.
        "StorageMax": "1TB",
        "StorageGCWatermark": 90,
        "GCPeriod": "1h",
        "Spec": {
            "type": "mount",
            "mounts": [
                {
                    "mountpoint": "/blocks", "type": "flatfs", "path": "blocks", "prefix": "flatfs.datastore",
                    "shardFunc": "/repo/flatfs/shard/v1/next-to-last/2", "sync": true,
                },
                { "mountpoint": "/", "type": "levelds", "path": "datastore", "prefix": "leveldb.datastore", "compression": "none" },
            ],
        },
    })
}

/// A multiaddress of TCP.
fn address(host: &str, port: u16) -> String {
    let kind = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => "ip4",
        Ok(std::net::IpAddr::V6(_)) => "ip6",
        Err(_) => "dns",
    };
    format!("/{kind}/{host}/tcp/{port}")
}

/// What starts the node, from wherever its folder lies.
pub(super) fn start(plan: &Plan, site: &Site) -> String {
    let (network, site) = (&plan.name, &site.name);
    format!(
        r#"#!/bin/sh
# The IPFS node of site {site} in network {network}. IPFS names the program (kubo); arguments are passed on to it.
set -eu
umask 077
dir=$(cd "$(dirname "$0")" && pwd)
ipfs=${{IPFS:-ipfs}}
export IPFS_PATH="$dir/repo"
# Without the swarm's key a node would speak to the whole world; so it refuses to begin.
export LIBP2P_FORCE_PNET=1
# kubo reports to its makers unless it is told not to.
export IPFS_TELEMETRY=off
if [ ! -f "$IPFS_PATH/version" ]; then
    if [ -e "$IPFS_PATH/blocks" ] || [ -e "$IPFS_PATH/datastore" ]; then
        echo "$IPFS_PATH holds blocks and no version: bring it back whole, or move it away" >&2
        exit 1
    fi
    mkdir -p "$IPFS_PATH"
    trap 'rm -f "$dir/first.json"' EXIT
    cp "$dir/swarm.key" "$IPFS_PATH/swarm.key"
    # Secrets first, then what everybody may know, without its first brace.
    {{
        printf '{{"Identity": %s, "API": %s, ' "$(cat "$dir/identity.json")" "$(cat "$dir/api.json")"
        tail -c +2 "$dir/config.json"
    }} >"$dir/first.json"
    "$ipfs" init --empty-repo "$dir/first.json" >/dev/null || {{
        # Nothing was there before.
        rm -rf "$IPFS_PATH/blocks" "$IPFS_PATH/datastore"
        exit 1
    }}
    rm "$dir/first.json"
    trap - EXIT
fi
exec "$ipfs" daemon --enable-gc "$@"
"#
    )
}

/// A unit for systemd.
pub(super) fn unit(plan: &Plan, site: &Site) -> NodeFile {
    unit_of(plan, site, "ipfs", "IPFS node", "IPFS=/usr/local/bin/ipfs")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_libp2p() {
        // The test vector of RFC 8032 (7.1, test 1) as a public key, named by another implementation.
        let key = hex::decode("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        let name = peer_id(&key.try_into().unwrap());
        assert!(is_peer_id(&name), "{name}");
        assert_eq!(base58(&[0, 0, 0x28, 0x7f, 0xb4, 0xcd]), "11233QC4");
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U");
        assert!(!is_peer_id("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N") && !is_peer_id(&name[1..]));
        let Identity { peer_id, private_key } = Identity::new();
        let pair = STANDARD.decode(private_key.unwrap().as_bytes()).unwrap();
        assert_eq!((pair.len(), super::peer_id(&pair[36..].try_into().unwrap())), (68, peer_id));
    }
}
