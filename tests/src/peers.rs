//! Other people's software: DCMTK and the Python environment with pydicom and pynetdicom.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use rand::Rng as _;

use crate::{files_below, have, skip, wait_for};

/// A DCMTK client or server command, with the setting that spares it 40 ms an answer.
pub fn dcmtk(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.env("TCP_NODELAY", "1").stdin(Stdio::null());
    command
}

/// Runs a client and returns its output; panics with its words when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The interpreter of the environment that `make tools` builds.
pub fn python() -> Option<PathBuf> {
    let venv =
        std::env::var_os("VENV").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv"), PathBuf::from);
    let python = venv.join("bin/python");
    if python.is_file() || skip("the Python environment (.venv)") { Some(python) } else { None }
}

/// The files below the pydicom package, and the samples where they are.
pub fn dicom_files(python: &Path) -> Vec<PathBuf> {
    let packages = python.parent().unwrap().parent().unwrap().join("lib");
    let mut files: Vec<PathBuf> = files_below(&packages);
    files.retain(|file| {
        file.to_string_lossy().contains("pydicom/data/test_files") && file.extension().is_some_and(|e| e == "dcm")
    });
    files.extend(std::env::var_os("PACS_BRIDGE_SAMPLES").iter().flat_map(|samples| files_below(Path::new(samples))));
    files
}

/// A port for a program that cannot be told to take any: free now, below those that the system gives to whoever asks for any or connects
/// to somewhere, and not one that another test takes at the same time.
pub fn free_port() -> u16 {
    loop {
        let port = rand::thread_rng().gen_range(10_000..32_000);
        if claim(port) {
            return port;
        }
    }
}

/// Whether a port is free and nobody else's among all test programs: between its choice and the start of whoever listens there nothing else would keep it. A
/// lock on a file per port says so until this process ends.
pub fn claim(port: u16) -> bool {
    static CLAIMED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let dir = std::env::temp_dir().join("pacs-bridge-test-ports");
    std::fs::create_dir_all(&dir).unwrap();
    let lock = File::options().create(true).append(true).open(dir.join(port.to_string())).unwrap();
    let is_ours = lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok();
    if is_ours {
        CLAIMED.lock().unwrap().push(lock);
    }
    is_ours
}

/// Associations that Orthanc serves at once: more than any test opens.
pub const ORTHANC_THREADS: u32 = 32;
/// Largest PDU that the servers beside us take, in bytes.
pub const PDU_BYTES_MAX: u32 = 131_072;

/// Orthanc, called ORTHANC, with its store and its SQLite index below `dir`, in its durable setting.
pub fn orthanc(dir: &Path, port: u16, modalities: &serde_json::Value) -> Command {
    let config = serde_json::json!({
        "Name": "peer", "StorageDirectory": dir.join("store"), "IndexDirectory": dir.join("index"),
        "HttpServerEnabled": false, "RemoteAccessAllowed": false,
        "DicomServerEnabled": true, "DicomAet": "ORTHANC", "DicomPort": port, "DicomCheckCalledAet": false,
        "DicomCheckModalityHost": false, "DicomAlwaysAllowEcho": true, "DicomAlwaysAllowStore": true,
        "DicomAlwaysAllowFind": true, "DicomAlwaysAllowGet": true, "DicomAlwaysAllowMove": true,
        "DicomModalities": modalities, "DicomThreadsCount": ORTHANC_THREADS, "DicomScpTimeout": 900,
        "DicomScuTimeout": 900, "MaximumPduLength": PDU_BYTES_MAX, "SyncStorageArea": true, "LimitFindResults": 0,
        "LimitFindInstances": 0, "StorageCompression": false,
    });
    let file = dir.join("orthanc.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new("/usr/sbin/Orthanc");
    command.arg(&file).env("TCP_NODELAY", "1").stdin(Stdio::null());
    command
}

/// DCMTK's dcmqrscp, called QRSCP, with its files and its index below `dir`.
pub fn dcmqrscp(dir: &Path, port: u16) -> Command {
    let storage = dir.join("qr");
    std::fs::create_dir_all(&storage).unwrap();
    let config = format!(
        "NetworkTCPPort = {port}\nMaxPDUSize = {PDU_BYTES_MAX}\nMaxAssociations = 32\nHostTable BEGIN\nHostTable END\n\
         VendorTable BEGIN\nVendorTable END\nAETable BEGIN\nQRSCP {} RW (500, 1024mb) ANY\nAETable END\n",
        storage.display()
    );
    let file = dir.join("dcmqrscp.cfg");
    std::fs::write(&file, config).unwrap();
    let mut command = dcmtk("dcmqrscp");
    command.arg("-c").arg(&file);
    command
}

/// DCMTK's storescp keeping bytes exactly as received.
pub struct StoreScp {
    child: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl StoreScp {
    pub fn start(ae_title: &str) -> Option<Self> {
        Self::start_with(ae_title, &[])
    }

    /// As [`Self::start`], with more arguments.
    pub fn start_with(ae_title: &str, more: &[&str]) -> Option<Self> {
        if !have("storescp") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = dcmtk("storescp")
            .args(["+B", "+xa", "--fork", "-aet", ae_title, "-od"])
            .arg(dir.path())
            .args(more)
            .arg(port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        wait_for("storescp to listen", || std::net::TcpStream::connect(address).is_ok());
        Some(Self { child, address, dir })
    }
}

impl Drop for StoreScp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
