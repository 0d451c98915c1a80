//! Support for the integration tests: the real binary on free loopback ports, and other people's software beside it.
//!
//! Every process is started, watched and ended by its id; a dropped handle kills what it started.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, missing_docs, clippy::print_stderr)]

pub mod anvil;
pub mod certificates;
pub mod consortium;
pub mod dicom;
pub mod faults;
pub mod geth;
pub mod http;
pub mod issuer;
pub mod kubo;
pub mod lying;
pub mod network_ends;
pub mod peers;
pub mod person;
pub mod retrieval;
pub mod rpc;
pub mod vault;
pub mod wire;
pub mod xds;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for anything that should happen at once, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// In a site's configuration: no port for DICOM in the clear.
pub const NO_PLAIN_DICOM: &str = "[dicom]\nbind = \"\"\n";

/// A site: its data directory, its configuration, and the daemon while it runs.
pub struct Bridge {
    pub dir: TempDir,
    data: PathBuf,
    toml: String,
    environment: Vec<(String, OsString)>,
    child: Option<Child>,
    ready: String,
    pub dicom: SocketAddr,
}

/// The binary under test, built beside the tests.
pub fn binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|dir| dir.join("pacs-bridge")).find(|path| path.is_file());
    found.expect("pacs-bridge is not built: run `cargo build -p bridge` first, or the whole workspace's tests as `make test` does")
}

impl Bridge {
    /// Starts a site with these lines of configuration on top of a quick, quiet default.
    pub fn start(toml: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), toml)
    }

    /// Starts a site whose data lies elsewhere, such as on a volume of its own.
    pub fn start_on(data: &Path, toml: &str) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), data.to_owned(), toml)
    }

    pub fn start_in(dir: TempDir, toml: &str) -> Self {
        let data = dir.path().join("data");
        Self::start_with(dir, data, toml)
    }

    fn start_with(dir: TempDir, data: PathBuf, toml: &str) -> Self {
        let mut bridge = Self::prepare(dir, data, toml, Vec::new());
        bridge.run();
        bridge
    }

    /// A site that is not running yet, with additions to the environment of its daemon.
    pub fn prepare(dir: TempDir, data: PathBuf, toml: &str, environment: Vec<(String, OsString)>) -> Self {
        let dicom = "127.0.0.1:0".parse().unwrap();
        Self { dir, data, toml: toml.to_owned(), environment, child: None, ready: String::new(), dicom }
    }

    /// Changes what the daemon gets at its next start.
    pub fn reconfigure(&mut self, toml: &str, environment: Vec<(String, OsString)>) {
        toml.clone_into(&mut self.toml);
        self.environment = environment;
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("bridge.toml")
    }

    /// Writes the configuration, for commands before the next start.
    pub fn write_config(&self) {
        let mut toml = self.toml.clone();
        let mut lines = vec![("site", format!("data_dir = {:?}", self.data))];
        if !toml.contains(NO_PLAIN_DICOM) {
            lines.push(("dicom", "bind = \"127.0.0.1:0\"".to_owned()));
        }
        if !toml.contains("intake_log_bytes") {
            // Small enough that tests fill it and use it again.
            lines.push(("archive", "intake_log_bytes = 33554432".to_owned()));
        }
        for (table, line) in lines {
            let head = format!("[{table}]\n");
            match toml.find(&head) {
                Some(at) => toml.insert_str(at + head.len(), &format!("{line}\n")),
                None => toml.insert_str(0, &format!("{head}{line}\n")),
            }
        }
        std::fs::write(self.config(), toml).unwrap();
    }

    /// Starts the daemon and waits for its ready line.
    pub fn run(&mut self) {
        let mut child = self.spawn();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let at = |key| ready.split_whitespace().find_map(|word| word.strip_prefix(key));
        let dicom = at("dicom=").or_else(|| at("dicom_tls="));
        let Some(dicom) = dicom else {
            let _ = child.kill();
            panic!("the bridge did not get ready; it said {ready:?} and logged:\n{}", self.log());
        };
        self.dicom = dicom.parse().unwrap();
        self.ready = ready;
        self.child = Some(child);
    }

    /// Starts the daemon, to be killed before anybody needs to know where it listens.
    pub fn begin(&mut self) {
        self.child = Some(self.spawn());
    }

    fn spawn(&self) -> Child {
        assert!(self.child.is_none(), "already running");
        self.write_config();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        Command::new(binary())
            .args(["--config".as_ref(), self.config().as_os_str(), "serve".as_ref()])
            .stdin(Stdio::null())
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Waits until each of the `count` objects that were acknowledged has a file, and no other file is there.
    pub fn wait_filed(&self, count: u64) {
        let objects = self.data.join("archive/objects");
        wait_for("the files of all objects", || files_below(&objects).len() as u64 == count);
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        assert!(Command::new("kill").args(["-HUP", &self.pid().to_string()]).status().unwrap().success());
    }

    /// What the ready line says after `key`, such as `rpc=`.
    pub fn ready(&self, key: &str) -> &str {
        self.ready.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// kill -9 if it runs.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and wait for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "SIGTERM did not end the bridge:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command of the program against this site.
    pub fn cli(&self, args: &[&str]) -> Output {
        Command::new(binary()).arg("--config").arg(self.config()).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command with `--json` and parses what it prints; panics with its words when it fails.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.cli(&[&["--json"], args].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}: {text}{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} printed {text:?}: {e}"))
    }

    /// What the ledger says about a source, as this site sees it; null as long as it has not heard of it.
    pub fn source(&self, account: &str) -> serde_json::Value {
        let all = self.json(&["sources"]);
        let named = |row: &&serde_json::Value| row["source"].as_str().unwrap().eq_ignore_ascii_case(account);
        all.as_array().unwrap().iter().find(named).cloned().unwrap_or_default()
    }

    /// Waits until a site that was just admitted has found that: before that it says that the ledger is away. That it knows of itself as a source says
    /// less, because it follows the ledger before it may write there.
    pub fn wait_on_ledger(&self) {
        wait_for("the site on the ledger", || {
            let status = self.json(&["status"]);
            let account = status["source"].as_str().unwrap();
            !status["ledger"].is_null() && !self.source(account).is_null()
        });
    }

    /// Waits until this site knows the key by which a source can be let in: nothing can be allowed to it before.
    pub fn wait_for_key_of(&self, account: &str) {
        wait_for("a source to state its key", || !self.source(account)["encryption_key"].is_null());
    }

    /// Waits until every study is final on the ledger, as long as they get on.
    pub fn wait_final(&self, studies: usize) -> serde_json::Value {
        let (mut progress, mut since) = ((0, 0), Instant::now());
        loop {
            let all = self.json(&["studies"]);
            let rows = all.as_array().unwrap();
            let done = rows.iter().filter(|row| row["state"] == "final").count();
            if rows.len() == studies && done == studies {
                return all;
            }
            let seen = rows.iter().filter_map(|row| row["pieces_seen"].as_u64()).sum();
            if progress != (done, seen) {
                (progress, since) = ((done, seen), Instant::now());
            }
            assert!(
                since.elapsed() < PATIENCE,
                "{done} of {studies} studies are final on the ledger, and no more become so"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("the bridge logged:\n{}", tail(&self.log(), 60));
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Polls until `done`; panics naming what it waited for.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a tool is there. When it is not, says so where the test's output is seen, or fails if nothing may be skipped.
pub fn have(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(tool).is_file())
    });
    found || skip(tool)
}

/// A program that `make tools` builds.
pub fn our_tool(tool: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".tools"), PathBuf::from);
    let program = tools.join("bin").join(tool);
    if program.is_file() {
        return Some(program);
    }
    skip(tool);
    None
}

/// What `make tools` unpacks for browsers is below it.
pub fn browser_tools() -> PathBuf {
    let tools = std::env::var_os("TOOLS");
    tools.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".tools"), PathBuf::from)
}

/// A file of this package.
pub fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Reports a missing tool; always `false`.
pub fn skip(tool: &str) -> bool {
    assert!(std::env::var("REQUIRE_TOOLS").as_deref() != Ok("1"), "{tool} is missing and REQUIRE_TOOLS=1");
    eprintln!("SKIPPED: {tool} is missing; run `make tools`");
    false
}

/// Every regular file below a directory, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
