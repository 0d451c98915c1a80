//! Makes a consortium's ledger: from a small plan, the first block and, for every site, a folder with all that its nodes need.
//!
//! * [`plan`]: what is wanted. [`genesis`]: the first block. `geth`, `besu`, `kubo`: the files of a node. All pure, but for new keys.
//! * [`audit`]: who makes the blocks of a network that runs. [`forks`]: whose did not stay. [`vote`]: who should make them, by `stake`.
//! * [`make`] writes them. Nothing that exists is overwritten, and nothing is left of what failed.
//!
//! Keys are best made where they are used ([`make_keys`]); a plan that names their public halves needs no secrets of anybody. Otherwise they
//! are made here and lie in the site's folder. Must not know how nodes are started, or the bridge's own keys.

pub mod audit;
mod besu;
pub mod forks;
pub mod genesis;
mod geth;
mod kubo;
pub mod plan;
mod stake;
mod unit;
pub mod vote;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use alloy::primitives::{Address, hex};
use alloy::signers::local::PrivateKeySigner;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ledger::keystore::{self, KeystoreError};
use kubo::Identity;
use plan::{Engine, Node, Plan, PlanError, PublicKeys, Site};

/// What everybody may know of a network: which nodes there are, and whose.
pub const NETWORK_FILE: &str = "network.json";
/// The first block.
pub const GENESIS_FILE: &str = "genesis.json";

/// Why nothing was made, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The author of the plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The operator: it would be lost.
    #[error("{0} exists and is not overwritten")]
    Exists(PathBuf),
    /// The operator: the file system.
    #[error("{0}")]
    File(PathBuf, #[source] std::io::Error),
    /// The operator: a key cannot be kept.
    #[error("the key of a node")]
    Key(#[from] KeystoreError),
    /// The operator: not a description that this program wrote.
    #[error("{0} does not describe a network")]
    Description(PathBuf, #[source] serde_json::Error),
}

/// A network, as everybody knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What decides the order of blocks.
    pub engine: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Seconds between blocks.
    pub block_period_s: u64,
    /// Blocks until a transaction counts as final, its own included.
    pub confirmations: usize,
    /// Account of the bridge that administers the consortium, where it is known: the contracts are found by it.
    pub admin: Option<Address>,
    /// How many nodes make blocks at a time, where stake decides whose; otherwise all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seats: Option<usize>,
    /// Clique: blocks between two at which stake is counted anew; by default [`plan::EPOCH_BLOCKS`]. With QBFT the contract knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_blocks: Option<u64>,
    /// Clique: studies that count for a site in that time; by default [`plan::STAKE_CAP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stake_cap: Option<u64>,
    /// Every node that may sign. With Clique all do from the first block on, with QBFT those that have a seat.
    pub nodes: Vec<Member>,
}

/// A node, as everybody knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name of its site.
    pub site: String,
    /// Its number there.
    pub node: u16,
    /// Account that signs its blocks.
    pub signer: Address,
    /// Where other nodes find it.
    pub enode: String,
    /// Account of the site's bridge, where it is known.
    pub bridge: Option<Address>,
}

impl Network {
    /// The site of a signer; its account, where it is of none.
    #[must_use]
    pub fn site_of(&self, signer: &Address) -> String {
        let member = self.nodes.iter().find(|member| member.signer == *signer);
        member.map_or_else(|| signer.to_string(), |member| member.site.clone())
    }

    /// Reads a description that [`make`] wrote.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn read(file: &Path) -> Result<Self, NetworkError> {
        let text = fs::read(file).map_err(|e| NetworkError::File(file.to_owned(), e))?;
        serde_json::from_slice(&text).map_err(|e| NetworkError::Description(file.to_owned(), e))
    }
}

/// The keys of a node, all of them.
struct NodeKeys {
    public: PublicKeys,
    secret: Option<Secrets>,
}

/// As the node's program wants them.
enum Secrets {
    /// geth signs with an account of a keystore, and is known to other nodes by another key.
    Geth { signer: PrivateKeySigner, node: PrivateKeySigner, password: Zeroizing<String> },
    /// Besu has one key for both.
    Besu(PrivateKeySigner),
}

impl NodeKeys {
    fn new(engine: Engine) -> Self {
        match engine {
            Engine::Clique => Self::of_geth(),
            Engine::Qbft => {
                let key = PrivateKeySigner::random();
                Self { public: public_keys(&key, &key), secret: Some(Secrets::Besu(key)) }
            }
        }
    }

    fn of_geth() -> Self {
        let (signer, node) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let public = public_keys(&signer, &node);
        let password = crate::password::make();
        Self { public, secret: Some(Secrets::Geth { signer, node, password }) }
    }

    fn of(engine: Engine, node: &Node) -> Self {
        node.keys.clone().map_or_else(|| Self::new(engine), |public| Self { public, secret: None })
    }
}

fn public_keys(signer: &PrivateKeySigner, node: &PrivateKeySigner) -> PublicKeys {
    let point = node.credential().verifying_key().to_encoded_point(false);
    // What nodes know each other by is the point without the octet for its form (devp2p).
    PublicKeys { signer: signer.address(), node_id: hex::encode(&point.as_bytes()[1..]) }
}

/// Makes a network below `out`, which must not exist: `genesis.json`, `network.json`, and `sites/NAME` for every site.
///
/// # Errors
/// [`NetworkError`]; nothing is left then.
pub fn make(plan: &Plan, out: &Path) -> Result<Network, NetworkError> {
    all_or_nothing(out, |folder| {
        let keys: Vec<NodeKeys> = plan.nodes().map(|(_, node)| NodeKeys::of(plan.engine, node)).collect();
        let signers: Vec<Address> = keys.iter().map(|keys| keys.public.signer).collect();
        let members = plan.nodes().zip(&keys).map(|((site, node), keys)| member(site, node, &keys.public));
        let votes = plan.engine == Engine::Clique;
        let network = Network {
            name: plan.name.clone(),
            engine: plan.engine.name().to_owned(),
            chain_id: plan.chain_id,
            block_period_s: plan.block_period_s,
            confirmations: plan.engine.confirmations(signers.len()),
            admin: plan.sites.first().and_then(|site| site.bridge),
            seats: plan.seats,
            epoch_blocks: votes.then_some(plan.epoch_blocks),
            stake_cap: votes.then_some(plan.stake_cap),
            nodes: members.collect(),
        };
        let public = [
            (GENESIS_FILE, json(&genesis::genesis(plan, &signers))),
            (NETWORK_FILE, json(&serde_json::to_value(&network).unwrap_or_default())),
        ];
        write_all(folder, &public)?;
        let swarm = Swarm::of(plan);
        let mut keys = keys.iter();
        for site in &plan.sites {
            let of_site = folder.join("sites").join(&site.name);
            make_dir(&of_site)?;
            write_all(&of_site, &public)?;
            write(&of_site.join("bridge.toml"), bridge_lines(plan, site, &network).as_bytes(), 0o644)?;
            if let Some(swarm) = &swarm {
                swarm.write_node(plan, site, &of_site)?;
            }
            for (node, keys) in site.nodes.iter().zip(keys.by_ref()) {
                write_node(plan, site, node, keys, &network, &of_site)?;
            }
        }
        Ok(network)
    })
}

/// Makes the keys of a node in `out`, which must not exist, in the form in which a node's folder has them. Returns what the plan needs of them.
///
/// # Errors
/// [`NetworkError`].
pub fn make_keys(engine: Engine, out: &Path) -> Result<PublicKeys, NetworkError> {
    all_or_nothing(out, |folder| {
        let keys = NodeKeys::new(engine);
        write_keys(folder, &keys)?;
        Ok(keys.public)
    })
}

/// Makes the key of an IPFS node in `out`, which must not exist, in the form in which its folder has it. Returns what it is known by.
///
/// # Errors
/// [`NetworkError`].
pub fn make_ipfs_key(out: &Path) -> Result<String, NetworkError> {
    all_or_nothing(out, |folder| {
        let identity = Identity::new();
        write_identity(folder, &identity)?;
        Ok(identity.peer_id)
    })
}

/// Secrets that are not here are put into the folder where they were made.
fn write_identity(folder: &Path, identity: &Identity) -> Result<(), NetworkError> {
    let Some(text) = kubo::identity(identity) else { return Ok(()) };
    write(&folder.join("identity.json"), text.as_bytes(), 0o600)
}

/// The IPFS nodes of all sites, and what lets them talk to each other.
struct Swarm {
    secret: Zeroizing<String>,
    nodes: Vec<(Site, Identity)>,
}

impl Swarm {
    fn of(plan: &Plan) -> Option<Self> {
        let nodes = plan.sites.iter().map(|site| {
            let known = site.ipfs_peer_id.clone().map(|peer_id| Identity { peer_id, private_key: None });
            (site.clone(), known.unwrap_or_else(Identity::new))
        });
        plan.ipfs.then(|| Self { secret: kubo::secret(), nodes: nodes.collect() })
    }

    fn write_node(&self, plan: &Plan, site: &Site, of_site: &Path) -> Result<(), NetworkError> {
        let folder = of_site.join("ipfs");
        make_dir(&folder)?;
        let (others, own): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|(other, _)| other.name != site.name);
        let peers: Vec<_> = others.iter().map(|(other, identity)| (other, identity.peer_id.clone())).collect();
        let (token, unit) = (kubo::secret(), kubo::unit(plan, site));
        write(&folder.join("config.json"), json(&kubo::config(site, &peers)).as_bytes(), 0o644)?;
        write(&folder.join("start.sh"), kubo::start(plan, site).as_bytes(), 0o755)?;
        write(&folder.join(unit.name), unit.text.as_bytes(), 0o644)?;
        write(&folder.join("swarm.key"), kubo::swarm_key(&self.secret).as_bytes(), 0o600)?;
        write(&folder.join("api.json"), kubo::api(&token).as_bytes(), 0o600)?;
        write(&folder.join("token"), token.as_bytes(), 0o600)?;
        own.iter().try_for_each(|(_, identity)| write_identity(&folder, identity))
    }
}

/// Makes a folder under another name first, so that one that is there is whole.
fn all_or_nothing<T>(out: &Path, make: impl FnOnce(&Path) -> Result<T, NetworkError>) -> Result<T, NetworkError> {
    if out.symlink_metadata().is_ok() {
        return Err(NetworkError::Exists(out.to_owned()));
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = |error| NetworkError::File(out.to_owned(), error);
    let unfinished = tempfile::Builder::new().prefix(".network-").tempdir_in(parent).map_err(file)?;
    let inner = unfinished.path().join("made");
    make_dir(&inner)?;
    let made = make(&inner)?;
    sync_below(&inner).map_err(file)?;
    fs::rename(&inner, out).map_err(file)?;
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(file)?;
    Ok(made)
}

/// Makes the names in a folder durable, and in all below it: keys have no second copy.
fn sync_below(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_below(&entry.path())?;
        }
    }
    fs::File::open(folder)?.sync_all()
}

fn member(site: &Site, node: &Node, keys: &PublicKeys) -> Member {
    Member {
        site: site.name.clone(),
        node: node.number,
        signer: keys.signer,
        enode: format!("enode://{}@{}:{}?discport=0", keys.node_id.to_lowercase(), site.host, node.p2p_port),
        bridge: site.bridge,
    }
}

fn write_node(
    plan: &Plan,
    site: &Site,
    node: &Node,
    keys: &NodeKeys,
    network: &Network,
    of_site: &Path,
) -> Result<(), NetworkError> {
    let folder = of_site.join(format!("node-{}", node.number));
    make_dir(&folder)?;
    let others = network.nodes.iter().filter(|member| (&member.site, member.node) != (&site.name, node.number));
    let peers: Vec<String> = others.map(|member| member.enode.clone()).collect();
    let files = match plan.engine {
        Engine::Clique => geth::files(plan, site, node, &keys.public.signer.to_string(), &peers),
        Engine::Qbft => besu::files(plan, site, node, &peers),
    };
    for file in files {
        let mode = if file.is_program { 0o755 } else { 0o644 };
        write(&folder.join(file.name), file.text.as_bytes(), mode)?;
    }
    write_keys(&folder, keys)
}

/// Secrets that are not here are put into the folder where they were made.
fn write_keys(folder: &Path, keys: &NodeKeys) -> Result<(), NetworkError> {
    let (signer, node, password) = match &keys.secret {
        None => return Ok(()),
        Some(Secrets::Besu(key)) => {
            let octets = Zeroizing::new(hex_of(key));
            return write(&folder.join("key"), octets.as_bytes(), 0o600);
        }
        Some(Secrets::Geth { signer, node, password }) => (signer, node, password),
    };
    let keystore = folder.join("keystore");
    make_dir(&keystore)?;
    let text = keystore::encrypt(signer, password)?;
    let name = format!("UTC--signer--{}", hex::encode(signer.address()));
    write(&keystore.join(name), text.as_bytes(), 0o600)?;
    let node = Zeroizing::new(hex_of(node));
    write(&folder.join("nodekey"), node.as_bytes(), 0o600)?;
    write(&folder.join("password"), password.as_bytes(), 0o600)
}

fn hex_of(key: &PrivateKeySigner) -> String {
    hex::encode(Zeroizing::new(key.to_bytes().0).as_slice())
}

/// What the site's bridge needs to be told.
fn bridge_lines(plan: &Plan, site: &Site, network: &Network) -> String {
    let Network { name, chain_id, confirmations, .. } = network;
    // geth tells of new blocks over WebSocket; with Besu that was not tried.
    let url = |node: &Node| match plan.engine {
        Engine::Clique => format!("\"ws://127.0.0.1:{}\"", node.ws_port()),
        Engine::Qbft => format!("\"http://127.0.0.1:{}\"", node.rpc_port),
    };
    let urls: Vec<String> = site.nodes.iter().map(url).collect();
    let (first, fallback) = urls.split_first().map_or(("\"\"", &[][..]), |(first, rest)| (first.as_str(), rest));
    let admin = network.admin.map(|admin| admin.to_string()).unwrap_or_default();
    let is_admin = plan.sites.first().is_some_and(|first| first.name == site.name);
    let ipfs = if plan.ipfs { ipfs_lines(plan, site) } else { String::new() };
    format!(
        "# For the bridge of site {} on the ledger network {name}.\n[ledger]\nkind = \"rpc\"\nurl = {first}\nfallback_urls = [{}]\n\
         chain_id = {chain_id}\nconfirmations = {confirmations}\n# Five block periods: the alarm that the network stands still.\n\
         head_age_max_ms = {}\n# The site that administers the consortium; only its bridge deploys the contracts.\nadmin = \"{admin}\"\n\
         deploy = {is_admin}\n{ipfs}",
        site.name,
        fallback.join(", "),
        plan.block_period_s * 5_000,
    )
}

fn ipfs_lines(plan: &Plan, site: &Site) -> String {
    let (port, directory) = (site.ipfs_api_port, plan.directory.display());
    format!(
        "[ipfs]\napi_url = \"http://127.0.0.1:{port}\"\n# Its owner is the node's: let the bridge read it too, or give it a copy.\n\
         token_file = \"{directory}/ipfs/token\"\n"
    )
}

fn json(value: &serde_json::Value) -> String {
    // A value without maps of other keys than text is always written.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn write_all(folder: &Path, files: &[(&str, String)]) -> Result<(), NetworkError> {
    files.iter().try_for_each(|(name, text)| write(&folder.join(name), text.as_bytes(), 0o644))
}

fn make_dir(path: &Path) -> Result<(), NetworkError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| NetworkError::File(path.to_owned(), e))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), NetworkError> {
    let file = |error| NetworkError::File(path.to_owned(), error);
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(file)?;
    opened.write_all(bytes).and_then(|()| opened.sync_all()).map_err(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PLAN: &str = "name = \"north\"\nengine = \"clique\"\nchain_id = 81220\n\
        [[site]]\nname = \"a\"\nhost = \"10.0.0.1\"\nbridge = \"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\"\n\
        [[site]]\nname = \"b\"\nhost = \"b.example\"\nnodes = 2\n";

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_site_gets_its_own_secrets_and_everybody_knows_the_same_network() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("north");
        let network = make(&Plan::parse(PLAN).unwrap(), &out).unwrap();
        assert_eq!(Network::read(&out.join("sites/b/network.json")).unwrap(), network);
        assert_eq!((network.nodes.len(), network.confirmations), (3, 2));
        for member in &network.nodes {
            let folder = out.join(format!("sites/{}/node-{}", member.site, member.node));
            let (config, start) = (text(&folder.join("geth.toml")), text(&folder.join("start.sh")));
            let own: Vec<_> = network.nodes.iter().filter(|other| config.contains(&other.enode)).collect();
            assert!(own.len() == 2 && !own.contains(&member), "a node is told of all others");
            assert!(start.contains(&member.signer.to_string()));
            // The secrets are those of what everybody knows, and nobody else can read them.
            let password = text(&folder.join("password"));
            let stored = fs::read_dir(folder.join("keystore")).unwrap().next().unwrap().unwrap().path();
            assert_eq!(keystore::read(&stored, &password).unwrap().address(), member.signer);
            let node: PrivateKeySigner = text(&folder.join("nodekey")).parse().unwrap();
            let point = node.credential().verifying_key().to_encoded_point(false);
            assert!(member.enode.contains(&hex::encode(&point.as_bytes()[1..])));
            for secret in [&folder, &folder.join("password"), &folder.join("nodekey"), &stored] {
                assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o077, 0, "{}", secret.display());
            }
        }
        assert_eq!(text(&out.join("genesis.json")), text(&out.join("sites/a/genesis.json")));
        let (of_a, of_b) = (text(&out.join("sites/a/bridge.toml")), text(&out.join("sites/b/bridge.toml")));
        assert!(of_a.contains("deploy = true") && of_b.contains("deploy = false"));
        assert!(of_b.contains("fallback_urls = [\"ws://127.0.0.1:8556\"]") && of_b.contains("confirmations = 2"));
        for lines in [of_a, of_b] {
            crate::config::Config::parse(&lines, Default::default()).unwrap();
        }
        assert!(matches!(make(&Plan::parse(PLAN).unwrap(), &out), Err(NetworkError::Exists(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn every_site_has_an_ipfs_node_in_one_swarm() {
        let dir = tempfile::tempdir().unwrap();
        let peer_id = make_ipfs_key(&dir.path().join("own")).unwrap();
        let plan = PLAN
            .replace("chain_id", "ipfs = true\nchain_id")
            .replace("host = \"10.0.0.1\"\n", &format!("host = \"10.0.0.1\"\nipfs_peer_id = \"{peer_id}\"\n"));
        let out = dir.path().join("north");
        make(&Plan::parse(&plan).unwrap(), &out).unwrap();
        let [a, b] = ["a", "b"].map(|site| out.join("sites").join(site).join("ipfs"));
        assert_eq!(text(&a.join("swarm.key")), text(&b.join("swarm.key")));
        assert_ne!(text(&a.join("token")), text(&b.join("token")));
        assert!(!a.join("identity.json").exists(), "its key was made at the site");
        let config =
            |folder: &Path| serde_json::from_str::<serde_json::Value>(&text(&folder.join("config.json"))).unwrap();
        assert_eq!(config(&b)["Peering"]["Peers"][0]["ID"], peer_id.as_str());
        assert_eq!(config(&b)["Peering"]["Peers"][0]["Addrs"][0], "/ip4/10.0.0.1/tcp/4001");
        let of_b: serde_json::Value = serde_json::from_str(&text(&b.join("identity.json"))).unwrap();
        assert_eq!(
            config(&a)["Peering"]["Peers"],
            serde_json::json!([{ "ID": of_b["PeerID"], "Addrs": ["/dns/b.example/tcp/4001"] }])
        );
        for secret in ["swarm.key", "token", "api.json", "identity.json"] {
            assert_eq!(fs::metadata(b.join(secret)).unwrap().permissions().mode() & 0o077, 0, "{secret}");
        }
        let lines = text(&out.join("sites/b/bridge.toml"));
        assert!(crate::config::Config::parse(&lines, Default::default()).unwrap().ipfs.is_some(), "{lines}");
    }

    #[test]
    fn keys_that_a_site_made_itself_leave_it_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("keys");
        let public = make_keys(Engine::Clique, &own).unwrap();
        assert!(own.join("keystore").is_dir() && own.join("nodekey").is_file() && own.join("password").is_file());
        let keys = format!("keys = [{{ signer = \"{}\", node_id = \"{}\" }}]\n", public.signer, public.node_id);
        let plan =
            Plan::parse(&PLAN.replace("host = \"10.0.0.1\"\n", &format!("host = \"10.0.0.1\"\n{keys}"))).unwrap();
        let out = dir.path().join("north");
        let network = make(&plan, &out).unwrap();
        assert_eq!(network.nodes[0].signer, public.signer);
        let folder = out.join("sites/a/node-1");
        assert!(
            folder.join("start.sh").is_file() && !folder.join("nodekey").exists() && !folder.join("keystore").exists()
        );
        assert!(text(&out.join("genesis.json")).contains(&hex::encode(public.signer)));
    }
}
