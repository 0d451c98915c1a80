//! IPFS nodes in a private swarm, made by `pacs-bridge network new` and run by its start scripts, on free ports of 127.0.0.1.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::peers::free_port;
use crate::{binary, our_tool, wait_for};

/// The nodes, one a site; they end with the value.
pub struct Swarm {
    dir: TempDir,
    program: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    api_port: u16,
    child: Option<Child>,
}

impl Swarm {
    /// Starts as many nodes and waits until each knows all others; none without kubo.
    pub fn start(count: usize) -> Option<Self> {
        let program = our_tool("ipfs")?;
        let dir = tempfile::tempdir().unwrap();
        let mut plan = "name = \"test\"\nengine = \"clique\"\nchain_id = 1\nipfs = true\n".to_owned();
        let mut nodes = Vec::new();
        for number in 1..=count {
            let (port, api_port) = (free_port(), free_port());
            let site = format!("[[site]]\nname = \"site-{number}\"\nhost = \"127.0.0.1\"\nlisten = \"127.0.0.1\"\n");
            // Nobody runs geth here; its ports must differ all the same.
            let others = format!("p2p_port = {}\nrpc_port = {}\n", 100 + number, 1000 + 10 * number);
            writeln!(plan, "{site}{others}ipfs_port = {port}\nipfs_api_port = {api_port}").unwrap();
            nodes.push(Node { port, api_port, child: None });
        }
        let (file, out) = (dir.path().join("plan.toml"), dir.path().join("network"));
        std::fs::write(&file, plan).unwrap();
        let made = Command::new(binary()).args(["network", "new"]).arg(file).arg("--out").arg(&out).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut swarm = Self { dir, program, nodes };
        (0..count).for_each(|node| swarm.run(node));
        for node in 0..count {
            wait_for("the swarm's nodes to know each other", || swarm.peers(node).len() == count - 1);
        }
        Some(swarm)
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("network/sites/site-{}/ipfs", node + 1))
    }

    /// Starts a node that does not run, and waits until it answers.
    pub fn run(&mut self, node: usize) {
        let mut start = Command::new(self.folder(node).join("start.sh"));
        start.env("IPFS", &self.program);
        self.run_as(node, start);
    }

    /// Starts a node that does not run by kubo's own program alone, which takes it for one of the whole world where it has no key of a swarm.
    pub fn run_bare(&mut self, node: usize) {
        let mut start = Command::new(&self.program);
        start.env("IPFS_PATH", self.folder(node).join("repo")).env("IPFS_TELEMETRY", "off").arg("daemon");
        self.run_as(node, start);
    }

    fn run_as(&mut self, node: usize, mut start: Command) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder(node).join("log")).unwrap();
        let child = start.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.nodes[node].child = Some(child);
        // Its own program would take a repository that nobody runs, and be in the way.
        let port = self.api_port(node);
        wait_for("an IPFS node to answer", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// kill -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The key that lets a node into its swarm, as it takes it when it starts.
    pub fn key_file(&self, node: usize) -> PathBuf {
        self.folder(node).join("repo/swarm.key")
    }

    /// By which other nodes find one that runs.
    pub fn address(&self, node: usize) -> String {
        let id = self.ipfs(node, &["id", "--format=<id>"]);
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", self.nodes[node].port, String::from_utf8_lossy(&id.stdout).trim())
    }

    /// The port of a node's API.
    pub fn api_port(&self, node: usize) -> u16 {
        self.nodes[node].api_port
    }

    /// The file of the token that a node's API wants.
    pub fn token_file(&self, node: usize) -> PathBuf {
        self.folder(node).join("token")
    }

    /// For the configuration of the site of a node.
    pub fn lines(&self, node: usize) -> String {
        self.lines_at(node, self.api_port(node))
    }

    /// The same, with the API somewhere else.
    pub fn lines_at(&self, node: usize, port: u16) -> String {
        let token = self.token_file(node);
        format!(
            "[ipfs]\napi_url = \"http://127.0.0.1:{port}\"\ntoken_file = {token:?}\ntimeout_ms = 5000\ncheck_interval_s = 2\n"
        )
    }

    /// What kubo's own program says of a node that runs.
    pub fn ipfs(&self, node: usize, args: &[&str]) -> Output {
        let token = std::fs::read_to_string(self.token_file(node)).unwrap();
        Command::new(&self.program)
            .env("IPFS_PATH", self.folder(node).join("repo"))
            .arg(format!("--api-auth=bearer:{token}"))
            .args(args)
            .output()
            .unwrap()
    }

    /// Names of the nodes that a node is connected to. Two that dial each other at once keep both connections, and kubo lists each.
    pub fn peers(&self, node: usize) -> BTreeSet<String> {
        let listed = self.ipfs(node, &["swarm", "peers"]);
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .filter_map(|address| address.rsplit('/').next().map(str::to_owned))
            .collect()
    }

    /// Names of the files that a node keeps.
    pub fn pins(&self, node: usize) -> Vec<String> {
        let output = self.ipfs(node, &["pin", "ls", "--type=recursive", "--quiet"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // kubo keeps an empty directory of its own, under a name of version 0.
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|cid| cid.starts_with("baf"))
            .map(str::to_owned)
            .collect()
    }

    /// The blocks that a node has, pinned or not, by their files. What kubo makes besides is short: an empty directory, and one of a single
    /// name for every file that is added, which goes when it collects garbage.
    pub fn blocks(&self, node: usize) -> Vec<PathBuf> {
        let blocks = crate::files_below(&self.folder(node).join("repo/blocks"));
        let is_block = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "data");
        blocks
            .into_iter()
            .filter(|path| is_block(path) && path.metadata().is_ok_and(|meta| meta.len() > 1000))
            .collect()
    }

    /// The end of a node's log.
    pub fn log(&self, node: usize) -> String {
        crate::tail(&std::fs::read_to_string(self.folder(node).join("log")).unwrap_or_default(), 30)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            if std::thread::panicking() {
                eprintln!("IPFS node {node} logged:\n{}", self.log(node));
            }
            self.kill(node);
        }
    }
}
