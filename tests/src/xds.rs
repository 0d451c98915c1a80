//! A site that serves signed retrieval, people with keys, and the client in Python that asks for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::OnceLock;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use bridge::config::Config;
use bridge::demo::phantom::Phantom;
use bridge::exchange::tls::Identity;
use bridge::keyring::Keyring;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use crate::Bridge;
use crate::dicom::subject;
use crate::retrieval::connect;

pub const PUBLIC_URL: &str = "https://a.example/iti43";
pub const XDS: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\npublic_urls = [\"https://a.example/iti43\"]\n\
                   max_head_age_s = 5\nrequest_timeout_ms = 3000\n";
pub const KEY_HASH: &str = "0x5555555555555555555555555555555555555555555555555555555555555555";
pub const UNAVAILABLE: &str = "XDSDocumentUniqueIdError";
/// Somebody with a key.
pub struct Person {
    pub account: Address,
    pub key: PathBuf,
}

impl Person {
    pub fn new(dir: &Path, name: &str) -> Self {
        let (signer, key) = (PrivateKeySigner::random(), dir.join(name));
        std::fs::write(&key, hex::encode(signer.to_bytes())).unwrap();
        Self { account: signer.address(), key }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// A site that serves ITI-43, and clients of it.
pub struct World {
    pub runtime: Runtime,
    pub python: PathBuf,
    pub a: Bridge,
    pub dir: tempfile::TempDir,
    /// Its account. Opening its keystore takes a second.
    repository: OnceLock<String>,
}

pub fn keyring(site: &Bridge) -> Keyring {
    Keyring::open(site.data(), &Config::parse("", Default::default()).unwrap().keys).unwrap()
}

impl World {
    pub fn new(a: impl FnOnce() -> Bridge) -> Option<Self> {
        let python = crate::peers::python()?;
        let (runtime, dir, repository) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap(), OnceLock::new());
        Some(Self { runtime, python, a: a(), dir, repository })
    }

    pub fn store(&self, phantoms: &[Phantom]) {
        self.runtime.block_on(async {
            let mut open = crate::dicom::connect(self.a.dicom, "CT1").await.unwrap();
            for phantom in phantoms {
                assert_eq!(crate::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
            }
            open.release().await.unwrap();
        });
    }

    pub fn study(&self, number: u32) -> String {
        let uid = dicom_scp::Uid::new(&subject(number).study_uid).unwrap();
        let keys = keyring(&self.a).study(&uid).unwrap().unwrap();
        hex::encode(bridge::study::study_id(&keys.salt, uid.as_str()))
    }

    pub fn repository(&self) -> String {
        self.repository.get_or_init(|| keyring(&self.a).source().address().to_string()).clone()
    }

    pub fn allow(&self, study: u32, grantee: &Person, more: &[&str]) {
        let (uid, account) = (subject(study).study_uid, grantee.account.to_string());
        self.a.json(&[&["allow", &uid, &account, "--encryption-key", KEY_HASH], more].concat());
    }

    pub fn revoke(&self, study: u32, grantee: &Person) {
        self.a.json(&["revoke", &subject(study).study_uid, &grantee.account.to_string()]);
    }

    pub fn address(&self) -> SocketAddr {
        self.a.ready("xds=").parse().unwrap()
    }

    /// The signer of a person.
    pub fn signer(person: &Person) -> PrivateKeySigner {
        std::fs::read_to_string(&person.key).unwrap().parse().unwrap()
    }

    /// The other client, with these settings of its TLS.
    pub fn client(&self, tls: &[&str], person: &Person, documents: &[&str], more: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/iti43_client.py");
        let url = format!("https://{}/iti43", self.address());
        let mut command = Command::new(&self.python);
        command.arg(script).args(tls).args(["--url", &url, "--to", PUBLIC_URL, "--key"]).arg(&person.key);
        if !more.contains(&"--repository") {
            command.args(["--repository", &self.repository()]);
        }
        documents.iter().for_each(|document| {
            command.args(["--document", document]);
        });
        command.args(more);
        command
    }

    /// How the other client ends that asks for one document.
    pub fn python_exit(&self, tls: &[&str], person: &Person, document: &str) -> Option<i32> {
        self.client(tls, person, &[document], &[]).output().unwrap().status.code()
    }

    pub fn python(&self, person: &Person, documents: &[&str], more: &[&str]) -> std::process::Output {
        crate::peers::run(&mut self.client(&["--insecure"], person, documents, more))
    }

    pub fn ask_over(&self, tls: &[&str], person: &Person, documents: &[&str], more: &[&str]) -> Value {
        let said = crate::peers::run(&mut self.client(tls, person, documents, more));
        serde_json::from_slice(&said.stdout).unwrap()
    }

    /// What the other client says.
    pub fn ask(&self, person: &Person, documents: &[&str], more: &[&str]) -> Value {
        self.ask_over(&["--insecure"], person, documents, more)
    }

    /// The error for the one document asked for, or nothing if it came.
    pub fn refused(&self, person: &Person, document: &str) -> Option<String> {
        let said = self.ask(person, &[document], &[]);
        assert_eq!(said["http_status"], 200, "{said}");
        let errors = said["response"]["errors"].as_array().unwrap();
        assert_eq!(errors.len() + said["response"]["documents"].as_array().unwrap().len(), 1, "{said}");
        errors.first().map(|error| error["errorCode"].as_str().unwrap().to_owned())
    }

    /// A signed message as an HTTP request, changed before it is sent.
    pub fn written(
        &self,
        person: &Person,
        documents: &[&str],
        more: &[&str],
        change: impl Fn(&str) -> String,
    ) -> Vec<u8> {
        let file = self.dir.path().join("message");
        let inline = ["--token", "inline", "--write", file.to_str().unwrap()];
        self.python(person, documents, &[&inline, more].concat());
        let message = String::from_utf8(std::fs::read(file).unwrap()).unwrap();
        let (kind, body) = message.split_once('\n').unwrap();
        post(kind, &change(body))
    }

    pub fn tls_key(&self) -> [u8; 32] {
        Identity::open(&self.a.data().join("keystore")).unwrap().spki_sha256()
    }

    /// Sends these octets on that many connections at once.
    pub fn send_all(&self, request: &[u8], times: usize) -> Vec<Answer> {
        let (address, tls_key) = (self.address(), self.tls_key());
        let request = Arc::new(request.to_vec());
        self.runtime.block_on(async {
            let sent = (0..times).map(|_| {
                let request = request.clone();
                tokio::spawn(async move {
                    let mut stream = connect(address, tls_key).await;
                    stream.write_all(&request).await.unwrap();
                    let mut octets = Vec::new();
                    let _ = stream.read_to_end(&mut octets).await;
                    let text = String::from_utf8_lossy(&octets).into_owned();
                    let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
                    Answer { status, text }
                })
            });
            let mut answers = Vec::new();
            for one in sent.collect::<Vec<_>>() {
                answers.push(one.await.unwrap());
            }
            answers
        })
    }

    pub fn send(&self, request: &[u8]) -> Answer {
        self.send_all(request, 1).pop().unwrap()
    }

    /// The fault that a request gets.
    pub fn faults(&self, what: &str, request: &[u8], status: u16, text: &str) {
        let answer = self.send(request);
        assert!(answer.status == status && answer.text.contains(text), "{what}: {answer:?}");
        assert!(!answer.text.contains("Include"), "{what}: {answer:?}");
    }
}

pub fn post(kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /iti43 HTTP/1.1\r\nHost: a.example\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A body without what is random in it.
pub fn comparable(answer: &Answer) -> String {
    let body = answer.text.split_once("\r\n\r\n").unwrap().1;
    let boundary = body.lines().next().unwrap().trim_start_matches('-').to_owned();
    body.replace(&boundary, "")
}

/// Names and digests of a ZIP archive, as Python's zipfile reads it.
pub fn unzipped(python: &Path, file: &Path) -> Vec<(String, String)> {
    let program = "import sys, json, zipfile, hashlib; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                   print(json.dumps([(i.filename, hashlib.sha256(z.read(i)).hexdigest()) for i in z.infolist()]))";
    let said = crate::peers::run(Command::new(python).args(["-c", program]).arg(file));
    serde_json::from_slice(&said.stdout).unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

pub fn start() -> Bridge {
    // One network may have a quarter of them, which is enough for 50 at once.
    Bridge::start(&format!("[publish]\nsettle_ms = 200\n{XDS}connections_max = 240\n"))
}

/// An object with so many bytes of pixel data.
pub fn enlarged(mut phantom: Phantom, bytes: u32) -> Phantom {
    let pixels = b"\xE0\x7F\x10\x00OW\0\0";
    let at = phantom.bytes.windows(pixels.len()).rposition(|window| window == pixels).unwrap() + pixels.len();
    phantom.bytes.truncate(at);
    phantom.bytes.extend_from_slice(&bytes.to_le_bytes());
    phantom.bytes.resize(phantom.bytes.len() + bytes as usize, 0);
    phantom
}

/// The most memory that a process ever took, in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
