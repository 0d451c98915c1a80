//! A network of geth nodes with Clique, made by `pacs-bridge network new` and run by its start scripts, on free ports of 127.0.0.1.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use alloy::primitives::Address;
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use bridge::network::Network;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::peers::{claim, free_port};
use crate::wire::Wire;
use crate::{binary, our_tool, wait_for};

/// Id of the chain.
pub const GETH_CHAIN_ID: u64 = 81_220;

/// The nodes; they end with the value.
pub struct Geth {
    dir: TempDir,
    program: PathBuf,
    pub network: Network,
    nodes: Vec<Node>,
    /// Further arguments of every node that is started.
    pub arguments: Vec<String>,
    wires: Vec<(usize, usize, Wire)>,
    runtime: Runtime,
}

struct Node {
    p2p_port: u16,
    url: String,
    provider: DynProvider,
    child: Option<Child>,
}

/// Ports of a node; the neighbours of the second, which it takes too, are free.
fn free_ports() -> (u16, u16) {
    loop {
        let (p2p_port, rpc_port) = (free_port(), free_port());
        if !(rpc_port..=rpc_port + 6).contains(&p2p_port) && claim(rpc_port + 1) && claim(rpc_port + 6) {
            return (p2p_port, rpc_port);
        }
    }
}

impl Geth {
    /// Starts as many nodes, each of its own site and signing, and waits until all of them have a block; none without geth.
    pub fn start(signers: usize, fund: Address) -> Option<Self> {
        let mut geth = Self::make(signers, fund)?;
        geth.run_all();
        Some(geth)
    }

    /// The same with wires between the nodes that can be cut.
    pub fn start_wired(signers: usize, fund: Address) -> Option<Self> {
        let mut geth = Self::make(signers, fund)?;
        geth.wire();
        geth.run_all();
        Some(geth)
    }

    /// The same where gas has a price: so many wei in the first block, from where it falls by an eighth with each block that nobody uses.
    pub fn start_dear(signers: usize, fund: Address, wei: u64) -> Option<Self> {
        let mut geth = Self::make(signers, fund)?;
        let network = geth.dir.path().join("network");
        for file in crate::files_below(&network).iter().filter(|path| path.ends_with("genesis.json")) {
            let cheap = std::fs::read_to_string(file).unwrap();
            let dear = cheap.replace("\"baseFeePerGas\": \"0x1\"", &format!("\"baseFeePerGas\": \"{wei:#x}\""));
            assert_ne!(dear, cheap, "the first block has no base fee");
            std::fs::write(file, dear).unwrap();
        }
        geth.run_all();
        Some(geth)
    }

    fn make(signers: usize, fund: Address) -> Option<Self> {
        let program = our_tool("geth")?;
        let dir = tempfile::tempdir().unwrap();
        let mut plan =
            format!("name = \"test\"\nengine = \"clique\"\nchain_id = {GETH_CHAIN_ID}\nfund = [\"{fund}\"]\n");
        let mut nodes = Vec::new();
        for number in 1..=signers {
            let (p2p_port, rpc_port) = free_ports();
            let site = format!("[[site]]\nname = \"site-{number}\"\nhost = \"127.0.0.1\"\nlisten = \"127.0.0.1\"\n");
            writeln!(plan, "{site}p2p_port = {p2p_port}\nrpc_port = {rpc_port}").unwrap();
            let url = format!("http://127.0.0.1:{rpc_port}");
            let provider = ProviderBuilder::new().connect_http(url.parse().unwrap()).erased();
            nodes.push(Node { p2p_port, url, provider, child: None });
        }
        let (file, out) = (dir.path().join("plan.toml"), dir.path().join("network"));
        std::fs::write(&file, plan).unwrap();
        let made = Command::new(binary()).args(["network", "new"]).arg(file).arg("--out").arg(&out).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let network = Network::read(&out.join("network.json")).unwrap();
        Some(Self {
            dir,
            program,
            network,
            nodes,
            arguments: Vec::new(),
            wires: Vec::new(),
            runtime: Runtime::new().unwrap(),
        })
    }

    fn run_all(&mut self) {
        // One after the other: two that sign a first block each, with nobody else to sign the second, wait for ever.
        self.run(0);
        wait_for("the network's first block", || self.head(0).is_some_and(|head| head > 0));
        (1..self.nodes.len()).for_each(|node| self.run(node));
        wait_for("the network's first blocks", || {
            (0..self.nodes.len()).all(|node| self.head(node).is_some_and(|head| head > 1))
        });
    }

    /// Each node reaches each other one over a wire of their own.
    fn wire(&mut self) {
        for from in 0..self.nodes.len() {
            let file = self.folder(from).join("geth.toml");
            let mut config = std::fs::read_to_string(&file).unwrap();
            for to in (0..self.nodes.len()).filter(|to| *to != from) {
                let port = self.nodes[to].p2p_port;
                let wire = Wire::to(port);
                config = config.replace(&format!("127.0.0.1:{port}?"), &format!("127.0.0.1:{}?", wire.port));
                self.wires.push((from, to, wire));
            }
            std::fs::write(file, config).unwrap();
        }
    }

    /// Where a node answers over WebSocket.
    pub fn ws_url(&self, node: usize) -> String {
        let address = self.nodes[node].url.trim_start_matches("http://127.0.0.1:");
        format!("ws://127.0.0.1:{}", address.parse::<u16>().unwrap() + 1)
    }

    /// The socket that a node has on this machine.
    pub fn socket_url(&self, node: usize) -> String {
        format!("ipc://{}", self.folder(node).join("geth.ipc").display())
    }

    /// Nobody of `these` reaches any of the others, nor is reached.
    pub fn part(&self, these: &[usize]) {
        self.between(these).for_each(Wire::cut);
    }

    /// They can reach each other again.
    pub fn join(&self, these: &[usize]) {
        self.between(these).for_each(Wire::mend);
    }

    fn between<'a>(&'a self, these: &'a [usize]) -> impl Iterator<Item = &'a Wire> {
        let crosses = |from: &usize, to: &usize| these.contains(from) != these.contains(to);
        self.wires.iter().filter(move |(from, to, _)| crosses(from, to)).map(|(_, _, wire)| wire)
    }

    /// Puts what a node that does not run will know of the chain elsewhere, such as on a volume of its own.
    pub fn put_on(&self, node: usize, place: &Path) {
        self.wipe(node);
        let data = place.join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(data, self.folder(node).join("data")).unwrap();
    }

    /// Whether a node that was started has ended by itself.
    pub fn has_ended(&mut self, node: usize) -> bool {
        self.nodes[node].child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// Takes all that a node that does not run knows of the chain.
    pub fn wipe(&self, node: usize) {
        std::fs::remove_dir_all(self.folder(node).join("data")).unwrap();
    }

    /// A file of the network, or beside those.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("network").join(name)
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("network/sites/site-{}/node-1", node + 1))
    }

    /// Starts a node that does not run.
    pub fn run(&mut self, node: usize) {
        let folder = self.folder(node);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        let child = Command::new(folder.join("start.sh"))
            .env("GETH", &self.program)
            // Among themselves on this machine, and with nobody else.
            .args(["--netrestrict", "127.0.0.0/8", "--cache", "64"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.nodes[node].child = Some(child);
    }

    /// kill -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Where a node answers.
    pub fn url(&self, node: usize) -> &str {
        &self.nodes[node].url
    }

    /// What a node answers, unless it is away or says no.
    pub fn ask(&self, node: usize, method: &str, params: Value) -> Option<Value> {
        let asked = self.nodes[node].provider.raw_request::<Value, Value>(method.to_owned().into(), params);
        self.runtime.block_on(asked).ok()
    }

    /// Number of the newest block of a node.
    pub fn head(&self, node: usize) -> Option<u64> {
        let number = self.ask(node, "eth_blockNumber", json!([]))?;
        u64::from_str_radix(number.as_str()?.trim_start_matches("0x"), 16).ok()
    }

    /// What `network audit` reports through these nodes.
    pub fn audited(&self, nodes: &[usize], more: &[&str]) -> Value {
        let mut command = Command::new(binary());
        command.args(["--json", "network", "audit"]).arg(self.file("network.json")).args(more);
        for node in nodes {
            command.args(["--url", self.url(*node)]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The end of a node's log.
    pub fn log(&self, node: usize) -> String {
        crate::tail(&std::fs::read_to_string(self.folder(node).join("log")).unwrap_or_default(), 30)
    }
}

impl Drop for Geth {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            if std::thread::panicking() {
                eprintln!("node {node} logged:\n{}", self.log(node));
            }
            self.kill(node);
        }
    }
}
