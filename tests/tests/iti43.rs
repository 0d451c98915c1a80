//! Signed ITI-43 retrieval at the real binary, judged by a client that shares no code with it (Python: lxml, libxmlsec1, OpenSSL): who was let
//! in gets the bytes that were received, and nobody else gets or learns anything.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::network::{EthereumWallet, TransactionBuilder as _};
use alloy::primitives::{Address, Bytes, U256, uint};
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bridge::archive::FileMeta;
use contracts::Sources;
use ihe_retrieve::receiver::{ResponsePiece, ResponseReader};
use sha2::Digest as _;
use tests::dicom::{slices, subject};
use tests::retrieval::{connect, converse, document, request};
use tests::xds::{
    KEY_HASH, PUBLIC_URL, Person, UNAVAILABLE, World, XDS, comparable, digest, enlarged, keyring, peak_kib, post,
    start, unzipped,
};
use tests::{Bridge, files_below, wait_for};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

/// The order of the group of secp256k1 (SEC 2, 2.4.1).
const ORDER: U256 = uint!(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141_U256);

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

async fn read_some(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let _ = stream.read(&mut [0; 1024]).await;
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
    for document in [format!("{one}^2"), format!("{one}^3"), "nonsense".into()] {
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
    let mut silent = world.runtime.block_on(async {
        let mut silent = Vec::new();
        for _ in 0..62 {
            silent.push(connect(address, tls_key).await);
        }
        silent
    });
    world.runtime.block_on(async {
        let soon = Duration::from_millis(500);
        let oldest = tokio::time::timeout(soon, read_some(&mut silent[0])).await;
        assert!(oldest.is_ok(), "the oldest of one network makes room");
        let newest = tokio::time::timeout(soon, read_some(&mut silent[61])).await;
        assert!(newest.is_err(), "the newest may still say something");
    });
    assert_eq!(world.refused(&b, &one), None);
    for mut stream in silent {
        world.runtime.block_on(read_some(&mut stream));
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

/// What is in a ZIP archive that is written like ours, as it passes: the digest of each file, and nothing else is kept.
#[derive(Default)]
struct Passing {
    /// A header that is not complete.
    head: Vec<u8>,
    left: u64,
    hash: sha2::Sha256,
    digests: Vec<String>,
    ended: bool,
}

impl Passing {
    fn take(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() && !self.ended {
            if self.left > 0 {
                let (now, rest) = octets.split_at(octets.len().min(usize::try_from(self.left).unwrap()));
                self.hash.update(now);
                self.left -= now.len() as u64;
                octets = rest;
                if self.left == 0 {
                    self.digests.push(hex::encode(self.hash.finalize_reset()));
                }
                continue;
            }
            self.head.push(octets[0]);
            octets = &octets[1..];
            self.ended = self.head.len() == 4 && self.head != b"PK\x03\x04";
            // A local header with a name of twelve characters and no extra field (APPNOTE 4.3.7).
            if self.head.len() == 30 + 12 {
                self.left = u32::from_le_bytes(self.head[18..22].try_into().unwrap()).into();
                self.head.clear();
            }
        }
    }
}

#[test]
fn a_study_of_400_megabytes_comes_as_it_was_received_and_takes_no_memory_for_its_length() {
    const OBJECT_BYTES: u32 = 20 << 20;
    const OBJECTS: u32 = 20;
    let Some(mut world) = World::new(start) else { return };
    let mut sent = Vec::new();
    for mut phantom in slices(3, OBJECTS, 64) {
        phantom = enlarged(phantom, OBJECT_BYTES);
        world.store(std::slice::from_ref(&phantom));
        let meta = FileMeta {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: phantom.transfer_syntax,
        };
        sent.push(digest(&[meta.encode(), phantom.bytes].concat()));
    }
    world.a.wait_final(1);
    let b = Person::new(world.dir.path(), "b");
    let study = world.study(3);
    world.allow(3, &b, &[]);
    // What intake and publishing took is not to be counted.
    world.a.kill();
    world.a.run();
    wait_for("the ledger to be followed again", || world.refused(&b, "nonsense").as_deref() == Some(UNAVAILABLE));
    let (message, message_id) = request(&World::signer(&b), PUBLIC_URL, &document(&world.repository(), &study));
    let before = peak_kib(world.a.pid());
    let mut passing = Passing::default();
    let mut reader = None;
    let head = world.runtime.block_on(async {
        let mut stream = connect(world.address(), world.tls_key()).await;
        converse(&mut stream, &message, |head, octets| {
            let reader = reader.get_or_insert_with(|| ResponseReader::new(&head.content_type, &message_id).unwrap());
            reader.push(octets);
            while let Some(piece) = reader.next_piece().unwrap() {
                if let ResponsePiece::Data(data) = piece {
                    passing.take(data);
                }
            }
        })
        .await
    });
    reader.unwrap().finish().unwrap();
    assert!(head.status == 200 && head.bytes > u64::from(OBJECTS) * u64::from(OBJECT_BYTES), "{head:?}");
    let received: BTreeSet<_> = passing.digests.iter().collect();
    assert!(passing.ended && received == sent.iter().collect() && passing.digests.len() == sent.len());
    // The client in Python shares no code with the bridge.
    let saved = world.dir.path().to_str().unwrap();
    let said = world.ask(&b, &[&study], &["--save", saved]);
    assert_eq!(said["response"]["documents"].as_array().map(Vec::len), Some(1), "{said}");
    let files = unzipped(&world.python, &world.dir.path().join("1.bin"));
    assert_eq!(files.iter().map(|(_, digest)| digest).collect::<BTreeSet<_>>(), sent.iter().collect());
    let grown = peak_kib(world.a.pid()) - before;
    assert!(grown < 64 << 10, "{} bytes of answer took {grown} KiB of memory", head.bytes);
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
        site.wait_on_ledger();
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
    world.a.wait_for_key_of(&account);
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
        let signed = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign", key, "-out"])
            .arg(file("proof"))
            .arg(file(name))
            .output();
        assert!(signed.unwrap().status.success());
    };
    let bind = |more: &[&str]| {
        b.cli(&[&["--json", "keys", "p256", "bind", "--public-key", public, "--proof", &file("proof")], more].concat())
    };
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
    let got: BTreeSet<String> =
        unzipped(&world.python, &dir.path().join("1.bin")).into_iter().map(|(_, digest)| digest).collect();
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
        make('client', *ca, False)\n\
        other = make('other-ca', None, None, True)\n\
        make('renewed', *other, False)\n";
    tests::peers::run(Command::new(&python).args(["-c", program]).arg(dir.path()));
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let toml = format!(
        "[publish]\nsettle_ms = 200\n[xds]\nenabled = true\nconnections_max = 8\nbind = \"127.0.0.1:0\"\npublic_urls = [{PUBLIC_URL:?}]\n\
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

    // More connections that say nothing than there is room for: those of one network make room for each other.
    let address = world.address();
    world.runtime.block_on(async {
        let mut silent = Vec::new();
        for _ in 0..12 {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let first = tokio::time::timeout(Duration::from_secs(5), read_some(&mut silent[0])).await;
        assert!(first.is_ok(), "the first of them is not let go before its time");
        assert_eq!(world.python_exit(&["--ca", &ca, "--cert", &both], &b, &study), Some(0));
    });

    // Another certificate is taken up while the site runs, and a wrong key is told before.
    for (from, to) in [("renewed.pem", "server.pem"), ("renewed.key", "server.key")] {
        std::fs::copy(file(from), file(to)).unwrap();
    }
    world.a.hang_up();
    let renewed = file("other-ca.pem");
    let by = |ca: &str| world.python_exit(&["--ca", ca, "--cert", &both], &b, &study) == Some(0);
    wait_for("the renewed certificate", || by(&renewed));
    assert!(!by(&ca), "the certificate before is still shown");
    assert!(world.a.cli(&["check"]).status.success());
    std::fs::copy(file("client.key"), file("server.key")).unwrap();
    let wrong = world.a.cli(&["check"]);
    let words = String::from_utf8_lossy(&wrong.stderr).into_owned() + &String::from_utf8_lossy(&wrong.stdout);
    assert!(!wrong.status.success() && words.contains("xds.tls_key_file"), "{words}");
    world.a.hang_up();
    std::fs::copy(file("other-ca.pem"), file("ca.pem")).unwrap();
    assert!(by(&renewed), "what was read before stays in use where a file is wrong");
}
