//! Other people's software: DCMTK and the Python environment with pydicom and pynetdicom.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::{have, skip, wait_for};

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

/// A port that was free a moment ago, for servers that cannot be told to choose one.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// DCMTK's storescp keeping bytes exactly as received.
pub struct StoreScp {
    child: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl StoreScp {
    pub fn start(ae_title: &str) -> Option<Self> {
        if !have("storescp") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = dcmtk("storescp")
            .args(["+B", "+xa", "--fork", "-aet", ae_title, "-od"])
            .arg(dir.path())
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
