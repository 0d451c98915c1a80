//! Signed ITI-43 retrieval at the real binary, judged by a client that shares no code with it (Python: lxml, libxmlsec1, OpenSSL): who was let
//! in gets the bytes that were received, and nobody else gets or learns anything.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::network::{EthereumWallet, TransactionBuilder as _};
use alloy::primitives::{Address, Bytes, U256, uint};
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bridge::config::Config;
use bridge::demo::phantom::Phantom;
use bridge::exchange::tls::{Identity, client_config};
use bridge::keyring::Keyring;
use contracts::Sources;
use serde_json::Value;
use tests::dicom::{slices, subject};
use tests::{Bridge, files_below, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

const PUBLIC_URL: &str = "https://a.example/iti43";
const XDS: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\npublic_urls = [\"https://a.example/iti43\"]\n\
                   max_head_age_s = 5\nrequest_timeout_ms = 3000\n";
const KEY_HASH: &str = "0x5555555555555555555555555555555555555555555555555555555555555555";
const UNAVAILABLE: &str = "XDSDocumentUniqueIdError";
/// The order of the group of secp256k1 (SEC 2, 2.4.1).
const ORDER: U256 = uint!(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141_U256);

/// Somebody with a key.
struct Person {
    account: Address,
    key: PathBuf,
}

impl Person {
    fn new(dir: &Path, name: &str) -> Self {
        let (signer, key) = (PrivateKeySigner::random(), dir.join(name));
        std::fs::write(&key, hex::encode(signer.to_bytes())).unwrap();
        Self { account: signer.address(), key }
    }
}

/// What came back.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    text: String,
}

/// A site that serves ITI-43, and clients of it.
struct World {
    runtime: Runtime,
    python: PathBuf,
    a: Bridge,
    dir: tempfile::TempDir,
}

fn keyring(site: &Bridge) -> Keyring {
    Keyring::open(site.data(), &Config::parse("", Default::default()).unwrap().keys).unwrap()
}

impl World {
    fn new(a: impl FnOnce() -> Bridge) -> Option<Self> {
        let python = tests::peers::python()?;
        Some(Self { runtime: Runtime::new().unwrap(), python, a: a(), dir: tempfile::tempdir().unwrap() })
    }

    fn store(&self, phantoms: &[Phantom]) {
        self.runtime.block_on(async {
            let mut open = tests::dicom::connect(self.a.dicom, "CT1").await.unwrap();
            for phantom in phantoms {
                assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
            }
            open.release().await.unwrap();
        });
    }

    fn study(&self, number: u32) -> String {
        let uid = dicom_scp::Uid::new(&subject(number).study_uid).unwrap();
        let keys = keyring(&self.a).study(&uid).unwrap().unwrap();
        hex::encode(bridge::study::study_id(&keys.salt, uid.as_str()))
    }

    fn repository(&self) -> String {
        keyring(&self.a).source().address().to_string()
    }

    fn allow(&self, study: u32, grantee: &Person, more: &[&str]) {
        let (uid, account) = (subject(study).study_uid, grantee.account.to_string());
        self.a.json(&[&["allow", &uid, &account, "--encryption-key", KEY_HASH], more].concat());
    }

    fn revoke(&self, study: u32, grantee: &Person) {
        self.a.json(&["revoke", &subject(study).study_uid, &grantee.account.to_string()]);
    }

    fn address(&self) -> SocketAddr {
        self.a.ready("xds=").parse().unwrap()
    }

    /// The other client, with these settings of its TLS.
    fn client(&self, tls: &[&str], person: &Person, documents: &[&str], more: &[&str]) -> Command {
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

    fn python(&self, person: &Person, documents: &[&str], more: &[&str]) -> std::process::Output {
        tests::peers::run(&mut self.client(&["--insecure"], person, documents, more))
    }

    fn ask_over(&self, tls: &[&str], person: &Person, documents: &[&str], more: &[&str]) -> Value {
        let said = tests::peers::run(&mut self.client(tls, person, documents, more));
        serde_json::from_slice(&said.stdout).unwrap()
    }

    /// What the other client says.
    fn ask(&self, person: &Person, documents: &[&str], more: &[&str]) -> Value {
        self.ask_over(&["--insecure"], person, documents, more)
    }

    /// The error for the one document asked for, or nothing if it came.
    fn refused(&self, person: &Person, document: &str) -> Option<String> {
        let said = self.ask(person, &[document], &[]);
        assert_eq!(said["http_status"], 200, "{said}");
        let errors = said["response"]["errors"].as_array().unwrap();
        assert_eq!(errors.len() + said["response"]["documents"].as_array().unwrap().len(), 1, "{said}");
        errors.first().map(|error| error["errorCode"].as_str().unwrap().to_owned())
    }

    /// A signed message as an HTTP request, changed before it is sent.
    fn written(&self, person: &Person, documents: &[&str], more: &[&str], change: impl Fn(&str) -> String) -> Vec<u8> {
        let file = self.dir.path().join("message");
        let inline = ["--token", "inline", "--write", file.to_str().unwrap()];
        self.python(person, documents, &[&inline, more].concat());
        let message = String::from_utf8(std::fs::read(file).unwrap()).unwrap();
        let (kind, body) = message.split_once('\n').unwrap();
        post(kind, &change(body))
    }

    async fn open(address: SocketAddr, tls_key: [u8; 32]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(client_config(tls_key).unwrap());
        connector.connect(ServerName::try_from("a.example").unwrap(), stream).await.unwrap()
    }

    fn tls_key(&self) -> [u8; 32] {
        Identity::open(&self.a.data().join("keystore")).unwrap().spki_sha256()
    }

    /// Sends these octets on that many connections at once.
    fn send_all(&self, request: &[u8], times: usize) -> Vec<Answer> {
        let (address, tls_key) = (self.address(), self.tls_key());
        let request = Arc::new(request.to_vec());
        self.runtime.block_on(async {
            let sent = (0..times).map(|_| {
                let request = request.clone();
                tokio::spawn(async move {
                    let mut stream = Self::open(address, tls_key).await;
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

    fn send(&self, request: &[u8]) -> Answer {
        self.send_all(request, 1).pop().unwrap()
    }

    /// The fault that a request gets.
    fn faults(&self, what: &str, request: &[u8], status: u16, text: &str) {
        let answer = self.send(request);
        assert!(answer.status == status && answer.text.contains(text), "{what}: {answer:?}");
        assert!(!answer.text.contains("Include"), "{what}: {answer:?}");
    }
}

fn post(kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /iti43 HTTP/1.1\r\nHost: a.example\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The same message with the other of the two signatures that a key has for it.
fn twin(body: &str) -> String {
    let open = body.find("<ds:SignatureValue>").unwrap() + "<ds:SignatureValue>".len();
    let close = body[open..].find('<').unwrap() + open;
    let value: String = body[open..close].split_whitespace().collect();
    let mut value = STANDARD.decode(value).unwrap();
    let s = U256::from_be_slice(&value[32..]);
    value[32..].copy_from_slice(&(ORDER - s).to_be_bytes::<32>());
    format!("{}{}{}", &body[..open], STANDARD.encode(value), &body[close..])
}

fn without_signature(body: &str) -> String {
    let (open, end) = (body.find("<ds:Signature ").unwrap(), "</ds:Signature>");
    let close = body.find(end).unwrap() + end.len();
    format!("{}{}", &body[..open], &body[close..])
}

/// A body without what is random in it.
fn comparable(answer: &Answer) -> String {
    let body = answer.text.split_once("\r\n\r\n").unwrap().1;
    let boundary = body.lines().next().unwrap().trim_start_matches('-').to_owned();
    body.replace(&boundary, "")
}

/// Names and digests of a ZIP archive, as Python's zipfile reads it.
fn unzipped(python: &Path, file: &Path) -> Vec<(String, String)> {
    let program = "import sys, json, zipfile, hashlib; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                   print(json.dumps([(i.filename, hashlib.sha256(z.read(i)).hexdigest()) for i in z.infolist()]))";
    let said = tests::peers::run(Command::new(python).args(["-c", program]).arg(file));
    serde_json::from_slice(&said.stdout).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

fn start() -> Bridge {
    Bridge::start(&format!("[publish]\nsettle_ms = 200\n{XDS}"))
}

#[test]
fn who_was_let_in_gets_the_bytes_that_were_received_and_nobody_else_gets_any() {
    let Some(mut world) = World::new(start) else { return };
    let (mut first, second) = (slices(1, 4, 64), slices(2, 2, 64));
    let late = first.pop().unwrap();
    world.store(&first);
    world.store(&second);
    world.a.wait_final(2);
    world.a.wait_filed(5);
    let dir = world.dir.path().to_owned();
    let (b, c) = (Person::new(&dir, "b"), Person::new(&dir, "c"));
    let (one, other) = (world.study(1), world.study(2));
    let endpoint = &world.a.json(&["sources"])[0]["endpoint"];
    assert_eq!(endpoint, &format!("https://{}/iti43", world.address()), "others find it on the ledger");
    for person in [&b, &c] {
        assert_eq!(world.refused(person, &one).as_deref(), Some(UNAVAILABLE), "nothing is granted yet");
    }
    world.allow(1, &b, &[]);

    // Every file as it was received, in an archive that another implementation reads; however key and repository are said.
    let save = ["--save", dir.to_str().unwrap()];
    let said = world.ask(&b, &[&one], &save);
    let document = said["response"]["documents"][0].clone();
    assert_eq!(
        (&document["mime_type"], &document["document"]),
        (&"application/zip".into(), &one.clone().into()),
        "{said}"
    );
    assert!(
        said["response"]["relates"].as_bool().unwrap()
            && said["response"]["status"].as_str().unwrap().ends_with(":Success")
    );
    let files = unzipped(&world.python, &dir.join("1.bin"));
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["00000001.dcm", "00000002.dcm", "00000003.dcm"]);
    let stored = files_below(&world.a.data().join("archive/objects"));
    let stored: BTreeSet<String> = stored.iter().map(|file| digest(&std::fs::read(file).unwrap())).collect();
    let of_study: BTreeSet<String> = files.into_iter().map(|(_, digest)| digest).collect();
    assert!(of_study.len() == 3 && of_study.is_subset(&stored), "{of_study:?}");
    let source = keyring(&world.a).source().credential().verifying_key().to_encoded_point(true);
    let key = hex::encode(source.as_bytes());
    for more in [&["--token", "inline"][..], &["--token", "named-curve"], &["--token", "der"], &["--repository", &key]]
    {
        let again = world.ask(&b, &[&one.to_uppercase()], more);
        assert_eq!(again["response"]["documents"][0]["sha256"], document["sha256"], "{more:?}: {again}");
    }

    // Refusals do not differ but in the ids that they echo.
    let unknown = "ab".repeat(32);
    let same = ["--message-id", "urn:uuid:same"];
    let refusals = [(&c, &one), (&c, &unknown), (&b, &other), (&b, &unknown)].map(|(person, document)| {
        let answer = world.send(&world.written(person, &[document], &same, str::to_owned));
        assert!(answer.text.contains(UNAVAILABLE), "{answer:?}");
        comparable(&answer).replace(document, "")
    });
    assert!(refusals.iter().all(|one| *one == refusals[0]), "{refusals:?}");
    for document in [format!("{one}^2"), format!("{one}^kos"), "nonsense".into()] {
        assert_eq!(world.refused(&b, &document).as_deref(), Some(UNAVAILABLE), "{document}");
    }
    let foreign = world.ask(&b, &[&one], &["--repository", &b.account.to_string()]);
    assert_eq!(foreign["response"]["errors"][0]["errorCode"], "XDSUnknownRepositoryId");
    let community = world.ask(&b, &[&one], &["--home", "urn:oid:1.2.3"]);
    assert_eq!(community["response"]["errors"][0]["errorCode"], "XDSUnknownCommunity");
    let some = world.ask(&b, &[&unknown, &one], &[]);
    assert!(some["response"]["status"].as_str().unwrap().ends_with(":PartialSuccess"), "{some}");

    // Messages that are not what they should be.
    let written = |more: &[&str], change: fn(&str) -> String| world.written(&b, &[&one], more, change);
    world.faults("unsigned", &written(&[], without_signature), 400, "wsse:InvalidSecurity");
    world.faults("altered", &written(&["--alter", &one, &other], str::to_owned), 400, "wsse:FailedCheck");
    world.faults(
        "to",
        &written(&["--to", "https://b.example/iti43"], str::to_owned),
        400,
        "wsa:DestinationUnreachable",
    );
    world.faults("old", &written(&["--now", "1700000000"], str::to_owned), 400, "wsu:MessageExpired");
    world.faults("P-256", &written(&["--curve", "p256"], str::to_owned), 400, "wsse:UnsupportedSecurityToken");
    let soap11 = |body: &str| {
        body.replace("http://www.w3.org/2003/05/soap-envelope", "http://schemas.xmlsoap.org/soap/envelope/")
    };
    world.faults("SOAP 1.1", &written(&[], soap11), 500, "VersionMismatch");
    world.faults("GET", b"GET /iti43 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "allow: POST");
    world.faults("path", b"POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 404, "");
    world.faults("media type", &post("text/plain", "hello"), 415, "");
    let large = b"POST /iti43 HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 131073\r\n\r\n";
    world.faults("too large", large, 413, "");
    let mtom = "multipart/related; type=\"application/xop+xml\"; start-info=\"application/soap+xml\"; boundary=b";
    world.faults("garbage", &post(mtom, "garbage"), 400, "env:Sender");

    // A message counts once: again, many at once, in its other form, and after a restart.
    let message = written(&[], str::to_owned);
    assert!(world.send(&message).text.contains("application/zip"));
    world.faults("replay", &message, 400, "wsse:FailedCheck");
    let raced = written(&["--message-id", "urn:uuid:raced"], str::to_owned);
    let answers = world.send_all(&raced, 50);
    assert_eq!(answers.iter().filter(|answer| answer.text.contains("application/zip")).count(), 1, "of 50 at once");
    let text = String::from_utf8(raced.clone()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
    let other_form = post(kind, &twin(body));
    world.faults("twin", &other_form, 400, "received before");
    let fresh = written(&["--message-id", "urn:uuid:fresh"], twin);
    assert!(world.send(&fresh).text.contains("application/zip"), "the other form is as good");
    world.a.kill();
    world.a.run();
    wait_for("the ledger to be followed again", || world.refused(&b, &one).is_none());
    world.faults("replay after a restart", &raced, 400, "received before");

    // Who says nothing does not keep others waiting, and is let go.
    let (address, tls_key) = (world.address(), world.tls_key());
    let silent = world.runtime.block_on(async {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(World::open(address, tls_key).await);
        }
        silent
    });
    assert_eq!(world.refused(&b, &one), None);
    for mut stream in silent {
        let _ = world.runtime.block_on(stream.read(&mut [0; 1024]));
    }

    // A late object makes another version; the first stays what it was.
    world.store(&[late]);
    world.a.wait_final(2);
    let newest = &world.ask(&b, &[&one], &[])["response"]["documents"][0]["sha256"];
    assert_ne!(newest, &document["sha256"]);
    for version in [1, 2] {
        let said = world.ask(&b, &[&format!("{one}^{version}")], &[]);
        let expected = if version == 1 { &document["sha256"] } else { newest };
        assert_eq!(&said["response"]["documents"][0]["sha256"], expected, "version {version}: {said}");
    }
    // Objects that are not here come from the ledger.
    world.a.json(&["evict", &subject(1).study_uid]);
    assert_eq!(&world.ask(&b, &[&one], &[])["response"]["documents"][0]["sha256"], newest);

    // Less than the whole study, now, is nothing at this door.
    let series = format!("{}.1", subject(2).study_uid);
    for less in [&["--preview-only"][..], &["--from", "1h"], &["--series", &series]] {
        world.allow(2, &b, less);
        assert_eq!(world.refused(&b, &other).as_deref(), Some(UNAVAILABLE), "{less:?}");
    }
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 15;
    world.allow(2, &b, &["--until", &soon.to_string()]);
    assert_eq!(world.refused(&b, &other), None);
    wait_for("the grant to end", || world.refused(&b, &other).is_some());
    world.revoke(1, &b);
    assert_eq!(world.refused(&b, &one).as_deref(), Some(UNAVAILABLE), "revoked");
    world.allow(1, &b, &[]);
    assert_eq!(world.refused(&b, &one), None, "and let in again");
    assert!(world.a.terminate().success());
}

/// An object with so many bytes of pixel data.
fn enlarged(mut phantom: Phantom, bytes: u32) -> Phantom {
    let pixels = b"\xE0\x7F\x10\x00OW\0\0";
    let at = phantom.bytes.windows(pixels.len()).rposition(|window| window == pixels).unwrap() + pixels.len();
    phantom.bytes.truncate(at);
    phantom.bytes.extend_from_slice(&bytes.to_le_bytes());
    phantom.bytes.resize(phantom.bytes.len() + bytes as usize, 0);
    phantom
}

/// The most memory that a process ever took, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_large_study_takes_no_memory_for_its_length() {
    const OBJECT_BYTES: u32 = 12 << 20;
    let Some(mut world) = World::new(start) else { return };
    let phantoms: Vec<Phantom> = slices(3, 10, 64).into_iter().map(|one| enlarged(one, OBJECT_BYTES)).collect();
    world.store(&phantoms);
    world.a.wait_final(1);
    let b = Person::new(world.dir.path(), "b");
    let study = world.study(3);
    world.allow(3, &b, &[]);
    // What intake and publishing took is not to be counted.
    world.a.kill();
    world.a.run();
    wait_for("the ledger to be followed again", || world.refused(&b, "nonsense").as_deref() == Some(UNAVAILABLE));
    let before = peak_kib(world.a.pid());
    let said = world.ask(&b, &[&study], &[]);
    let bytes = said["response"]["documents"][0]["bytes"].as_u64().unwrap();
    assert!(bytes > 10 * u64::from(OBJECT_BYTES), "{said}");
    let grown = peak_kib(world.a.pid()) - before;
    assert!(grown < 32 << 10, "{bytes} bytes of study took {grown} KiB of memory");
}

/// The ledger's own daemon, with the consortium's administrator.
struct Consortium {
    ledger: Bridge,
    rpc: String,
    admin: PrivateKeySigner,
}

impl Consortium {
    fn found() -> Self {
        let ledger = Bridge::start("[ledger]\nrpc_bind = \"127.0.0.1:0\"\n[publish]\nenabled = false\n");
        let (rpc, admin) = (format!("http://{}", ledger.ready("rpc=")), keyring(&ledger).source().clone());
        Self { ledger, rpc, admin }
    }

    fn join(&self, settings: &str) -> Bridge {
        let (rpc, admin) = (&self.rpc, self.admin.address());
        let ledger = format!("[ledger]\nkind = \"rpc\"\nurl = \"{rpc}\"\nadmin = \"{admin}\"\ndeploy = false\n");
        let site = Bridge::start(&format!("{ledger}[publish]\nsettle_ms = 200\n{settings}"));
        let account = keyring(&site).source().address();
        let wallet = EthereumWallet::from(self.admin.clone());
        let provider = ProviderBuilder::new().wallet(wallet).connect_http(rpc.parse().unwrap());
        let funds = TransactionRequest::default().with_to(account).with_value(U256::from(10).pow(U256::from(20)));
        let registry = contracts::deployment::addresses(admin).sources;
        let admit = Bytes::from(Sources::admitCall { source: account }.abi_encode());
        let admit = TransactionRequest::default().with_to(registry).with_input(admit);
        Runtime::new().unwrap().block_on(async {
            for transaction in [funds, admit] {
                provider.send_transaction(transaction).await.unwrap().get_receipt().await.unwrap();
            }
        });
        site
    }
}

#[test]
fn nothing_is_handed_out_by_a_site_that_is_cut_off_from_the_ledger() {
    let mut consortium = Consortium::found();
    let xds = XDS.replace("max_head_age_s = 5", "max_head_age_s = 15");
    let Some(world) = World::new(|| consortium.join(&xds)) else { return };
    world.store(&slices(1, 2, 64));
    world.a.wait_final(1);
    let b = Person::new(world.dir.path(), "b");
    let study = world.study(1);
    world.allow(1, &b, &[]);
    let said = world.ask(&b, &[&study], &["--save", world.dir.path().to_str().unwrap()]);
    let whole = said["response"]["documents"][0]["bytes"].as_u64().unwrap();
    let files = unzipped(&world.python, &world.dir.path().join("1.bin"));

    // An object that is lost while the ledger is away: found out on the way, so the promised length is not met.
    let second = files_below(&world.a.data().join("archive/objects"));
    let second = second.into_iter().find(|file| digest(&std::fs::read(file).unwrap()) == files[1].1).unwrap();
    let message = world.written(&b, &[&study], &[], str::to_owned);
    std::fs::remove_file(second).unwrap();
    consortium.ledger.kill();
    let broken = world.send(&message);
    assert!(broken.status == 200 && broken.text.contains("application/zip"), "{broken:?}");
    assert!((broken.text.len() as u64) < whole, "an answer of {} bytes of {whole}", broken.text.len());

    let unknown = "ab".repeat(32);
    let error = Some("XDSRepositoryError");
    wait_for("the site to know that it is cut off", || world.refused(&b, &unknown).as_deref() == error);
    assert_eq!(world.refused(&b, &study).as_deref(), error);
}

#[test]
fn a_bridge_fetches_what_another_publishes_and_compares_it_with_the_manifest() {
    let consortium = Consortium::found();
    let Some(world) = World::new(|| consortium.join(XDS)) else { return };
    let b = consortium.join("");
    world.store(&slices(1, 3, 64));
    world.a.wait_final(1);
    world.a.wait_filed(3);
    let (study, file) = (world.study(1), world.dir.path().join("study.zip"));
    let fetch = ["fetch", &study, "--out", file.to_str().unwrap()];
    let mut words = String::new();
    wait_for("B to know the study", || {
        let output = b.cli(&fetch);
        assert!(!output.status.success(), "nothing is granted yet");
        words = String::from_utf8_lossy(&output.stderr).into_owned();
        words.contains(UNAVAILABLE)
    });
    assert!(files_below(world.dir.path()).is_empty(), "nothing is left of a refusal: {words}");

    let account = keyring(&b).source().address().to_string();
    world.a.json(&["allow", &subject(1).study_uid, &account]);
    wait_for("the granted study at B", || b.json(&["studies"]).as_array().unwrap().len() == 1);
    let fetched = b.json(&fetch);
    assert_eq!(fetched["proven"], 3, "{fetched}");
    let stored = files_below(&world.a.data().join("archive/objects"));
    let stored: BTreeSet<String> = stored.iter().map(|file| digest(&std::fs::read(file).unwrap())).collect();
    let got: BTreeSet<String> = unzipped(&world.python, &file).into_iter().map(|(_, digest)| digest).collect();
    assert_eq!(got, stored, "the files of A");
    let again = b.cli(&fetch);
    assert!(!again.status.success(), "a file that is there stays");
    let by_uid = world.dir.path().join("by-uid.zip");
    let fetched = b.json(&["fetch", &subject(1).study_uid, "--out", by_uid.to_str().unwrap()]);
    assert!(fetched["proven"] == 3 && std::fs::read(by_uid).unwrap() == std::fs::read(file).unwrap(), "{fetched}");
}

/// A smart card's key, which OpenSSL plays.
fn card(dir: &Path) -> Option<(Person, PathBuf)> {
    if !tests::have("openssl") {
        return None;
    }
    let (key, public) = (dir.join("card.pem"), dir.join("card.pub"));
    let curve = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
    tests::peers::run(Command::new("openssl").args(curve).arg(&key));
    tests::peers::run(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public));
    // It has no account of its own.
    Some((Person { account: Address::ZERO, key }, public))
}

#[test]
fn a_p256_key_is_served_for_the_account_that_bound_it_while_it_is_bound() {
    let mut consortium = Consortium::found();
    let dir = tempfile::tempdir().unwrap();
    let Some((card, public)) = card(dir.path()) else { return };
    let Some(world) = World::new(|| consortium.join(XDS)) else { return };
    let b = consortium.join("");
    world.store(&slices(1, 2, 64));
    world.a.wait_final(1);
    let study = world.study(1);
    let account = keyring(&b).source().address().to_string();
    world.a.json(&["allow", &subject(1).study_uid, &account, "--encryption-key", KEY_HASH]);
    let fault = || {
        let said = world.ask(&card, &[&study], &[]);
        if let Some(errors) = said["response"]["errors"].as_array() {
            return errors.first().map(|error| error["errorCode"].as_str().unwrap().to_owned());
        }
        assert_eq!(said["http_status"], 400, "{said}");
        said["fault"]["subcode"].as_str().map(str::to_owned)
    };
    let nobody = Some("wsse:UnsupportedSecurityToken");
    assert_eq!(fault().as_deref(), nobody, "before anybody bound it");

    // The card signs the challenge; somebody else's signature, or the card's for another account, is refused before anything is sent.
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (public, key) = (public.to_str().unwrap(), card.key.to_str().unwrap());
    let challenge = |of: &[&str], name: &str| {
        b.json(&[&["keys", "p256", "challenge", "--public-key", public, "--out", &file(name)], of].concat());
        let signed = Command::new("openssl").args(["dgst", "-sha256", "-sign", key, "-out"]).arg(file("proof")).arg(file(name)).output();
        assert!(signed.unwrap().status.success());
    };
    let bind = |more: &[&str]| b.cli(&[&["--json", "keys", "p256", "bind", "--public-key", public, "--proof", &file("proof")], more].concat());
    let patient = PrivateKeySigner::random();
    let patients = patient.address().to_string();
    challenge(&["--account", &patients], "challenge.patient");
    let refused = bind(&[]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("the proof is no signature"), "{words}");
    challenge(&[], "challenge.b");
    let bound = bind(&[]);
    assert!(bound.status.success(), "{}", String::from_utf8_lossy(&bound.stderr));
    wait_for("A to know whose the key is", || fault().is_none());
    let said = world.ask(&card, &[&study], &["--save", dir.path().to_str().unwrap()]);
    let stored = files_below(&world.a.data().join("archive/objects"));
    let stored: BTreeSet<String> = stored.iter().map(|file| digest(&std::fs::read(file).unwrap())).collect();
    let got: BTreeSet<String> = unzipped(&world.python, &dir.path().join("1.bin")).into_iter().map(|(_, digest)| digest).collect();
    assert_eq!(got, stored, "{said}");
    for token in ["inline", "named-curve", "der"] {
        let again = world.ask(&card, &[&study], &["--token", token]);
        assert_eq!(again["response"]["documents"][0]["sha256"], said["response"]["documents"][0]["sha256"], "{token}");
    }
    // A message is new for the account, whichever of its keys signed.
    let twice = ["--message-id", "urn:uuid:by-card"];
    assert_eq!(world.ask(&card, &[&study], &twice)["http_status"], 200);
    assert_eq!(world.ask(&card, &[&study], &twice)["fault"]["subcode"], "wsse:FailedCheck");

    // A lost card: unbound without it, by what the list calls it.
    let listed = b.json(&["keys", "p256", "list"]);
    assert_eq!((&listed[0]["state"], listed.as_array().unwrap().len()), (&"bound".into(), 1), "{listed}");
    b.json(&["keys", "p256", "unbind", listed[0]["key"].as_str().unwrap()]);
    wait_for("A to know that it is unbound", || fault().as_deref() == nobody);
    assert!(b.json(&["keys", "p256", "list"]).as_array().unwrap().is_empty());

    // The patient's account binds it with a key that no bridge has; A relays.
    let (keystore, password, paper) = (file("patient.json"), file("password"), file("paper.json"));
    std::fs::write(&keystore, bridge::ledger::keystore::encrypt(&patient, "words").unwrap()).unwrap();
    std::fs::write(&password, "words\n").unwrap();
    let elsewhere = ["--until", "1h", "--account", &patients, "--unsigned", &paper];
    world.a.json(&[&["keys", "p256", "bind", "--key", key], &elsewhere[..]].concat());
    assert!(!world.a.cli(&["keys", "p256", "submit", &paper]).status.success(), "nobody signed");
    world.a.json(&["keys", "p256", "sign", &paper, "--key", &keystore, "--password-file", &password]);
    world.a.json(&["keys", "p256", "submit", &paper]);
    wait_for("A to know whose the key is now", || fault().as_deref() == Some(UNAVAILABLE));
    world.a.json(&["allow", &subject(1).study_uid, &patients, "--encryption-key", KEY_HASH]);
    assert_eq!(fault(), None);
    let listed = b.json(&["keys", "p256", "list", "--account", &patients]);
    assert_eq!(listed[0]["state"], "bound", "{listed}");

    // Whose a key is, is not known without the ledger.
    consortium.ledger.kill();
    wait_for("the site to know that it is cut off", || fault().as_deref() == nobody);
}

/// With a certificate of an authority and with clients that show one, as secure nodes of ATNA want it, over TLS 1.2 too.
#[test]
fn an_own_certificate_and_clients_that_show_one() {
    let dir = tempfile::tempdir().unwrap();
    let Some(python) = tests::peers::python() else { return };
    let program = "import sys, datetime, ipaddress, pathlib\n\
        from cryptography import x509\n\
        from cryptography.hazmat.primitives import hashes, serialization as s\n\
        from cryptography.hazmat.primitives.asymmetric import ec\n\
        out, begin = pathlib.Path(sys.argv[1]), datetime.datetime(2020, 1, 1)\n\
        def make(name, issuer, signer, ca):\n\
        \x20   key = ec.generate_private_key(ec.SECP256R1())\n\
        \x20   subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])\n\
        \x20   made = x509.CertificateBuilder(issuer or subject, subject, key.public_key(), x509.random_serial_number(), begin, begin.replace(year=2049))\n\
        \x20   made = made.add_extension(x509.BasicConstraints(ca, None), True)\n\
        \x20   made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), False)\n\
        \x20   made = made.sign(signer or key, hashes.SHA256()).public_bytes(s.Encoding.PEM)\n\
        \x20   private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())\n\
        \x20   (out / (name + '.pem')).write_bytes(made)\n\
        \x20   (out / (name + '.key')).write_bytes(private)\n\
        \x20   (out / (name + '.both')).write_bytes(made + private)\n\
        \x20   return subject, key\n\
        ca = make('ca', None, None, True)\n\
        make('server', *ca, False)\n\
        make('client', *ca, False)\n";
    tests::peers::run(Command::new(&python).args(["-c", program]).arg(dir.path()));
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let toml = format!(
        "[publish]\nsettle_ms = 200\n[xds]\nenabled = true\nbind = \"127.0.0.1:0\"\npublic_urls = [{PUBLIC_URL:?}]\n\
         tls_certificate_file = {:?}\ntls_key_file = {:?}\nclient_certificate = \"required\"\nclient_ca_file = {:?}\n\
         fault_status = \"always500\"\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    );
    let Some(world) = World::new(|| Bridge::start(&toml)) else { return };
    world.store(&slices(1, 2, 64));
    world.a.wait_final(1);
    let b = Person::new(dir.path(), "b");
    let study = world.study(1);
    world.allow(1, &b, &[]);
    let (ca, both) = (file("ca.pem"), file("client.both"));
    for version in [&[][..], &["--tls12"]] {
        let said = world.ask_over(&["--ca", &ca, "--cert", &both], &b, &[&study], version);
        assert_eq!(said["response"]["documents"].as_array().unwrap().len(), 1, "{version:?}: {said}");
    }
    let late = world.ask_over(&["--ca", &ca, "--cert", &both], &b, &[&study], &["--now", "1700000000"]);
    assert_eq!(
        (&late["http_status"], &late["fault"]["subcode"]),
        (&500.into(), &"wsu:MessageExpired".into()),
        "{late}"
    );
    let bare = world.client(&["--ca", &ca], &b, &[&study], &[]).output().unwrap();
    assert!(!bare.status.success(), "a client without a certificate was let in");
}
