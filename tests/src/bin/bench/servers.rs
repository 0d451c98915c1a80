//! The systems under test, each started by the bench with data and configuration of its own and ended when dropped.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use tempfile::TempDir;
use tests::peers::{ORTHANC_THREADS, PDU_BYTES_MAX, dcmtk, free_port, orthanc};
use tests::{Bridge, PATIENCE, have};

use crate::Outcome;

/// AE title of the storescp that C-MOVE sends to.
pub(crate) const KEEPER: &str = "KEEPER";
/// AE title of the other destination of C-MOVE, which counts and keeps nothing.
pub(crate) const SINK: &str = "SINK";

/// AE titles and addresses that a server may send to.
pub(crate) type Destinations<'a> = &'a [(&'static str, SocketAddr)];

/// Where Debian puts it.
const DICOMWEB_PLUGIN: &str = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so";

pub(crate) const OURS: &str = "PACS Bridge";
pub(crate) const ORTHANC: &str = "Orthanc";
pub(crate) const STORESCP: &str = "storescp";

/// Where a server listens and what it wants to be called.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) called: &'static str,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    process: Process,
}

enum Process {
    Ours(Box<Bridge>),
    Other { child: Child, dir: TempDir },
}

impl Server {
    /// Our release binary. `publish` is the configuration's section of that name, without its head.
    pub(crate) fn ours(publish: &str, destinations: Destinations<'_>) -> Self {
        let mut toml = format!(
            "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n[publish]\n{publish}\n\
             [archive]\nintake_log_bytes = 536870912\n"
        );
        for (ae_title, address) in destinations {
            let (host, port) = (address.ip(), address.port());
            toml += &format!("[[peer]]\nae_title = \"{ae_title}\"\nhost = \"{host}\"\nport = {port}\n");
        }
        let bridge = Bridge::start(&toml);
        let target = Target { address: bridge.dicom, called: "PACSBRIDGE" };
        Self { name: OURS, target, process: Process::Ours(Box::new(bridge)) }
    }

    /// Orthanc with its own store and index, or nothing when it is not installed.
    pub(crate) fn orthanc(destinations: Destinations<'_>) -> Option<Self> {
        if !have("Orthanc") {
            return None;
        }
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let modality = |(ae_title, address): &(&str, SocketAddr)| {
            ((*ae_title).to_owned(), serde_json::json!([ae_title, address.ip().to_string(), address.port()]))
        };
        let modalities: serde_json::Map<_, _> = destinations.iter().map(modality).collect();
        let mut command = orthanc(dir.path(), port, &modalities.into());
        let child = Self::spawn(&mut command, dir.path());
        Some(Self::listening(ORTHANC, "ORTHANC", port, child, dir))
    }

    /// Orthanc with its DICOMweb plugin, and where it serves that; nothing when either is not installed.
    pub(crate) fn orthanc_web() -> Option<(Self, SocketAddr)> {
        if !have("Orthanc") || !Path::new(DICOMWEB_PLUGIN).is_file() {
            return None;
        }
        let (dir, port, web) = (tempfile::tempdir().unwrap(), free_port(), free_port());
        let mut command = orthanc(dir.path(), port, &serde_json::json!({}));
        let file = dir.path().join("orthanc.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let more = serde_json::json!({
            "HttpServerEnabled": true, "HttpPort": web, "RemoteAccessAllowed": true, "AuthenticationEnabled": false,
            "KeepAlive": true, "TcpNoDelay": true, "HttpThreadsCount": 50, "Plugins": [DICOMWEB_PLUGIN],
            "DicomWeb": {
                "Enable": true, "Root": "/dicom-web/", "EnableWado": false, "StudiesMetadata": "Full", "SeriesMetadata": "Full",
            },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Self::spawn(&mut command, dir.path());
        let server = Self::listening(ORTHANC, "ORTHANC", port, child, dir);
        let to = SocketAddr::from(([127, 0, 0, 1], web));
        tests::wait_for("Orthanc's HTTP server", || TcpStream::connect(to).is_ok());
        Some((server, to))
    }

    /// DCMTK's storescp keeping bytes as received, a process per association, or nothing when it is not installed.
    pub(crate) fn storescp() -> Option<Self> {
        if !have("storescp") {
            return None;
        }
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let received = dir.path().join("received");
        std::fs::create_dir(&received).unwrap();
        let mut command = dcmtk("storescp");
        command.args(["+B", "+xa", "--fork", "-aet", KEEPER, "-pdu", &PDU_BYTES_MAX.to_string(), "-od"]);
        let child = Self::spawn(command.arg(received).arg(port.to_string()), dir.path());
        Some(Self::listening(STORESCP, KEEPER, port, child, dir))
    }

    fn spawn(command: &mut Command, dir: &Path) -> Child {
        let log = File::create(dir.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn listening(name: &'static str, called: &'static str, port: u16, child: Child, dir: TempDir) -> Self {
        let target = Target { address: SocketAddr::from(([127, 0, 0, 1], port)), called };
        let server = Self { name, target, process: Process::Other { child, dir } };
        let begun = Instant::now();
        while TcpStream::connect(server.target.address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "{name} does not listen; it said: {}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Ours(bridge) => bridge.pid(),
            Process::Other { child, .. } => child.id(),
        }
    }

    /// The last lines that it wrote.
    pub(crate) fn log(&self) -> String {
        let log = match &self.process {
            Process::Ours(bridge) => bridge.log(),
            Process::Other { dir, .. } => std::fs::read_to_string(dir.path().join("log")).unwrap_or_default(),
        };
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" / ")
    }

    /// Adds the server's own last words to a failure.
    pub(crate) fn explain<T>(&self, outcome: Outcome<T>) -> Outcome<T> {
        outcome.map_err(|words| format!("{words}; its log ends: {}", self.log()))
    }

    /// The handle of our own server.
    pub(crate) fn bridge(&mut self) -> &mut Bridge {
        match &mut self.process {
            Process::Ours(bridge) => bridge,
            Process::Other { .. } => unreachable!("only asked of our own server"),
        }
    }

    /// The handle of our own server, if this is it.
    pub(crate) fn ours_if(&self) -> Option<&Bridge> {
        match &self.process {
            Process::Ours(bridge) => Some(bridge),
            Process::Other { .. } => None,
        }
    }

    /// Ends our own server and starts it again on what it has.
    pub(crate) fn restart(&mut self) {
        let bridge = self.bridge();
        bridge.terminate();
        bridge.run();
        self.target.address = self.bridge().dicom;
    }

    /// Throws away what storescp received, which it never reads again.
    pub(crate) fn forget_received(&self) {
        if let (STORESCP, Process::Other { dir, .. }) = (self.name, &self.process) {
            for file in tests::files_below(&dir.path().join("received")) {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Other { child, .. } = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or("not installed");
    line.rsplit('/').next().unwrap_or(line).trim_start_matches("$dcmtk: ").trim_end_matches(" $").to_owned()
}

/// What every system was set to.
pub(crate) fn settings() -> Vec<String> {
    vec![
        format!(
            "{OURS}: release build, its own defaults (an object is synced in the intake log before it is acknowledged, \
             and its index row can be made again from there; text log at info level to a file). All processes share the machine with the client."
        ),
        format!(
            "{}: SQLite index and file storage of its own, SyncStorageArea true (its durable setting: the object file is \
             synced before the answer; its SQLite index runs in WAL mode with SYNCHRONOUS=NORMAL, so the newest index rows \
             do not survive a power cut), TCP_NODELAY=1, DicomThreadsCount {ORTHANC_THREADS}, MaximumPduLength \
             {PDU_BYTES_MAX}, LimitFindResults 0, its HTTP server off, everything else at its default",
            version("/usr/sbin/Orthanc")
        ),
        format!(
            "DCMTK, for scale: {}; +B (bytes as received), --fork, PDUs of {PDU_BYTES_MAX} bytes, TCP_NODELAY=1; it has no \
             index and syncs nothing",
            version("storescp")
        ),
        "Client: the same for every server, our own SCU inside the bench process, objects in memory before the clock starts"
            .to_owned(),
    ]
}
