//! The audit trail of the real binary: every door leaves its record, judged by the grammar of PS3.15 as lxml reads it; a repository that speaks
//! RFC 5425 with mutual TLS gets every message whatever happens to either side; and a log that somebody changed is found where he did it, by
//! the program and by a verifier that shares no code with it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use bridge::config::Config;
use bridge::keyring::Keyring;
use serde_json::Value;
use tests::certificates::{Authority, Kind};
use tests::dicom::{slices, subject};
use tests::peers::{dcmtk, free_port, run};
use tests::{Bridge, files_below, wait_for};
use tokio::runtime::Runtime;

const SITE: &str = "[publish]\nsettle_ms = 200\n[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\npublic_urls = [\"https://a.example/iti43\"]\n";
const KEY_HASH: &str = "0x5555555555555555555555555555555555555555555555555555555555555555";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

fn python_script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("py").join(name));
    command
}

/// What messages say, each of which is of the grammar.
fn judged(python: &Path, messages: &str) -> Vec<Value> {
    let mut judge =
        python_script(python, "audit_judge.py").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    judge.stdin.take().unwrap().write_all(messages.as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    assert!(output.status.success(), "a message is not of the grammar");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn exported(site: &Bridge, python: &Path) -> Vec<Value> {
    let output = site.cli(&["audit", "export", "--xml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    judged(python, &String::from_utf8(output.stdout).unwrap())
}

fn store(site: &Bridge, calling: &str, study: u32, count: u32) {
    Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(site.dicom, calling).await.unwrap();
        for phantom in slices(study, count, 16) {
            assert_eq!(tests::dicom::store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
}

/// A person with a key, in a file.
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

    fn asks(&self, site: &Bridge, python: &Path, document: &str, more: &[&str]) {
        let url = format!("https://{}/iti43", site.ready("xds="));
        let keyring = Keyring::open(site.data(), &Config::parse("", Default::default()).unwrap().keys).unwrap();
        let mut client = python_script(python, "iti43_client.py");
        client.args(["--insecure", "--url", &url, "--to", "https://a.example/iti43", "--document", document]);
        client.arg("--key").arg(&self.key).args(["--repository", &keyring.source().address().to_string()]);
        run(client.args(more));
    }
}

/// The records that fit, of an event and an outcome.
fn of<'r>(records: &'r [Value], event: &str, kind: &str, outcome: &str) -> Vec<&'r Value> {
    let fits = |record: &&Value| {
        let kinds = record["types"].as_array().unwrap();
        record["event"]["code"] == event
            && record["outcome"] == outcome
            && (kind.is_empty() || kinds.iter().any(|found| found == kind))
    };
    records.iter().filter(fits).collect()
}

fn takes_part(record: &Value, id: &str) -> bool {
    record["who"].as_array().unwrap().iter().any(|who| who["id"] == id)
}

fn is_about(record: &Value, id: &str) -> bool {
    record["about"].as_array().unwrap().iter().any(|about| about["id"] == id)
}

#[track_caller]
fn one<'r>(found: &[&'r Value], who: &str, about: &str) -> &'r Value {
    let fits = |record: &&&Value| takes_part(record, who) && (about.is_empty() || is_about(record, about));
    let found: Vec<_> = found.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "records with {who} about {about}: {found:?}");
    found[0]
}

#[test]
fn every_door_leaves_its_record_and_no_name() {
    let Some(python) = tests::peers::python() else { return };
    if !tests::have("movescu") {
        return;
    }
    let archive = Bridge::start("[dicom]\nae_title = \"ARCHIVE\"\n");
    let peers = format!(
        "{SITE}[dicom]\nunknown_peers = [\"store\"]\n[[peer]]\nae_title = \"GETTER\"\nallow = [\"find\", \"get\", \"move\"]\n\
         [[peer]]\nae_title = \"ARCHIVE\"\nhost = \"127.0.0.1\"\nport = {}\n[[peer]]\nae_title = \"ELSEWHERE\"\nhost = \"192.0.2.1\"\n\
         check_host = true\n",
        archive.dicom.port()
    );
    let mut site = Bridge::start(&peers);
    store(&site, "CT1", 1, 3);
    let uid = subject(1).study_uid;
    site.wait_final(1);

    // DIMSE: what is found, got and moved, and what is refused.
    let (host, port) = ("127.0.0.1", site.dicom.port().to_string());
    let name = format!("PatientName={}", subject(1).patient_name);
    let query = |calling: &str| {
        let mut find = dcmtk("findscu");
        find.args(["-aet", calling, "-aec", "PACSBRIDGE", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", &name]);
        find.args(["-k", "StudyInstanceUID", "-k", "StudyDate=19770101-19771231", host, &port]).output().unwrap();
    };
    query("GETTER");
    query("CT1");
    query("ELSEWHERE");
    let runtime = Runtime::new().unwrap();
    assert_eq!(runtime.block_on(tests::dicom::get(site.dicom, &uid)).data_sets.len(), 3);
    let r#move = |calling: &str, to: &str| {
        let mut command = dcmtk("movescu");
        command.args(["-aet", calling, "-aec", "PACSBRIDGE", "-aem", to, "-S", "-k", "QueryRetrieveLevel=STUDY"]);
        command.args(["-k", &format!("StudyInstanceUID={uid}"), host, &port]).output().unwrap();
    };
    r#move("GETTER", "ARCHIVE");
    r#move("GETTER", "NOWHERE");
    assert_eq!(archive.json(&["studies"])[0]["instances"], 3);

    // Consent and ITI-43.
    let person = Person::new(site.dir.path(), "person");
    let account = person.account.to_string();
    let study = site.json(&["study", "show", &uid])["study_id"].as_str().unwrap().to_owned();
    let document = study.trim_start_matches("0x").to_owned();
    person.asks(&site, &python, &document, &[]);
    site.json(&["allow", &uid, &account, "--encryption-key", KEY_HASH]);
    person.asks(&site, &python, &document, &["--message-id", "urn:uuid:00000000-0000-4000-8000-000000000001"]);
    person.asks(&site, &python, &document, &["--message-id", "urn:uuid:00000000-0000-4000-8000-000000000001"]);
    person.asks(&site, &python, &document, &["--alter", &document[..8], "00000000"]);
    person.asks(&site, &python, &document, &["--now", "1600000000"]);
    site.json(&["revoke", &uid, &account]);
    person.asks(&site, &python, &document, &[]);
    let mistyped = format!("{}!", subject(1).patient_name);
    assert!(!site.cli(&["allow", &mistyped, &account]).status.success());
    site.json(&["token", "new", "--name", "ops", "--as", "operator"]);
    site.json(&["verify", &uid]);
    assert!(site.terminate().success());
    site.run();
    let records = exported(&site, &python);

    // A study in, once for all its objects.
    let arrived = one(&of(&records, "110104", "", "0"), "CT1", &uid).clone();
    assert_eq!((&arrived["action"], &arrived["about"][0]["instances"]), (&"C".into(), &3.into()), "{arrived}");
    assert_eq!(arrived["who"][0]["from"], "127.0.0.1");
    assert_eq!((&arrived["who"][0]["roles"][0], &arrived["who"][1]["roles"][0]), (&"110153".into(), &"110152".into()));
    one(&of(&records, "110102", "", "0"), "CT1", &uid);
    // A query, without the name it asked for, and with the keys.
    let query = one(&of(&records, "110112", "", "0"), "GETTER", "").clone();
    let identifier = hex::decode(query["about"][0]["query"].as_str().unwrap()).unwrap();
    let identifier = String::from_utf8_lossy(&identifier);
    assert!(identifier.contains("19770101-19771231") && identifier.contains("STUDY"), "{identifier:?}");
    assert!(identifier.contains("\u{10}\0\u{10}\0PN\0\0"), "the key stays and its value goes: {identifier:?}");
    // Out by C-GET and C-MOVE: what is to leave, and what left.
    for (event, action) in [("110102", "E"), ("110104", "R")] {
        let all = of(&records, event, "", "0");
        let out: Vec<_> = all.iter().filter(|record| takes_part(record, "GETTER")).collect();
        assert_eq!(out.len(), 2, "{out:?}");
        assert!(out.iter().all(|record| record["about"][0]["instances"] == 3 && record["action"] == action));
        one(&all, "ARCHIVE", &uid);
    }
    // Who may not.
    let restricted = of(&records, "110113", "110132", "4");
    assert!(one(&restricted, "CT1", "")["why"].as_str().unwrap().contains("C-FIND"));
    assert!(one(&restricted, "GETTER", "")["why"].as_str().unwrap().contains("NOWHERE"));
    one(&of(&records, "110113", "110126", "4"), "ELSEWHERE", "");
    // ITI-43 as the wire contract has it.
    let sent = one(&of(&records, "110106", "ITI-43", "0"), &account, &document).clone();
    assert_eq!((&sent["action"], sent["who"].as_array().unwrap().len()), (&"R".into(), 2));
    assert_eq!((&sent["who"][0]["roles"][0], &sent["who"][0]["asks"]), (&"110153".into(), &false.into()));
    let url = sent["who"][0]["id"].as_str().unwrap();
    assert!(url.starts_with("https://127.0.0.1:") && url.ends_with("/iti43"), "the URL that the ledger names: {url}");
    assert_eq!((&sent["who"][1]["roles"][0], &sent["who"][1]["from"]), (&"110152".into(), &"127.0.0.1".into()));
    let object = &sent["about"][0];
    assert_eq!((&object["kind"], &object["role"]), (&"2".into(), &"3".into()));
    assert_eq!((&object["type"]["code"], &object["type"]["system"]), (&"9".into(), &"RFC-3881".into()));
    assert!(object["details"]["Repository Unique ID"].as_str().unwrap().starts_with("0x"));
    let refused = of(&records, "110106", "ITI-43", "4");
    assert_eq!(refused.len(), 2, "before the grant and after it: {refused:?}");
    assert!(refused.iter().all(|record| record["why"] == "XDSDocumentUniqueIdError" && is_about(record, &document)));
    assert_eq!(of(&records, "110113", "ITI-43", "4").len(), 3, "replay, signature, time");
    // Decisions, with whom they are about.
    for kind in ["allow", "revoke"] {
        let decided = of(&records, "110113", kind, "0");
        assert_eq!(decided.len(), 1);
        assert!(is_about(decided[0], &uid) && decided[0]["about"][0]["details"]["grantee"] == account.as_str());
        assert!(decided[0]["types"].as_array().unwrap().contains(&"110135".into()));
    }
    assert!(is_about(of(&records, "110113", "allow", "4")[0], "unreadable"), "what was mistyped is not repeated");
    assert_eq!(of(&records, "110113", "token-new", "0").len(), 1);
    assert_eq!(of(&records, "110103", "verify", "0").len(), 1);
    // Start, end, start.
    assert_eq!((of(&records, "110100", "110120", "0").len(), of(&records, "110100", "110121", "0").len()), (2, 1));
    // What an export leaves is itself recorded.
    let again = exported(&site, &python);
    assert_eq!(of(&again, "110101", "", "0").len(), 1);

    // Lists, by study, account and outcome.
    let listed = site.json(&["audit", "list", "--study", &study, "--outcome", "4"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(site.json(&["audit", "list", "--account", &account]).as_array().unwrap().len(), 3);
    assert_eq!(site.json(&["audit", "list", "--until", "2001-01-01"]).as_array().unwrap().len(), 0);

    let s = subject(1);
    for secret in [&s.patient_name, &s.patient_id, &s.accession, &s.description, "Zyxwquist"] {
        for file in files_below(&site.data().join("audit")) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(secret), "{secret} is in {}", file.display());
        }
        let queries = records.iter().flat_map(|record| record["about"].as_array().unwrap());
        for query in queries.filter_map(|about| about["query"].as_str()) {
            assert!(!hex::decode(query).unwrap().windows(secret.len()).any(|run| run == secret.as_bytes()));
        }
    }
    assert!(site.json(&["audit", "verify"])["findings"].as_array().unwrap().is_empty());
}

/// An audit record repository that can be killed.
struct Repository {
    python: PathBuf,
    arguments: Vec<String>,
    kept: PathBuf,
    child: Option<Child>,
}

impl Repository {
    fn start(&mut self) {
        let mut command = python_script(&self.python, "syslog_receiver.py");
        let mut child = command.args(&self.arguments).arg(&self.kept).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        self.child = Some(child);
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn kept(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.kept).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn messages(&self) -> BTreeSet<String> {
        self.kept().iter().map(|kept| kept["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn logged(site: &Bridge) -> BTreeSet<String> {
    let mut messages = BTreeSet::new();
    for file in files_below(&site.data().join("audit")).iter().filter(|file| file.extension() == Some("log".as_ref())) {
        let text = std::fs::read_to_string(file).unwrap();
        messages.extend(text.lines().skip(1).map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned()));
    }
    messages
}

#[test]
fn the_repository_gets_every_message_whoever_was_away() {
    let Some(python) = tests::peers::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority", false);
    let (server, client) =
        (authority.issue("arr", &["arr.example"], Kind::Good), authority.issue("bridge-1", &[], Kind::Good));
    let stranger = Authority::new(dir.path(), "stranger", false).issue("bridge-2", &[], Kind::Good);
    let port = free_port();
    let show = |path: &Path| path.to_str().unwrap().to_owned();
    let ca = show(&authority.certificate);
    let arguments = vec![port.to_string(), show(&server.certificate), show(&server.key), ca.clone()];
    let kept = dir.path().join("kept");
    let mut repository = Repository { python: python.clone(), arguments, kept, child: None };
    let audit = |shown: &tests::certificates::Shown| {
        format!(
            "[audit]\nsegment_bytes = 4096\nsource_id = \"SITE-A\"\nrepository = \"127.0.0.1:{port}\"\nca_files = [{ca:?}]\n\
             server_name = \"arr.example\"\nclient_certificate_file = {:?}\nclient_key_file = {:?}\n",
            shown.certificate, shown.key
        )
    };
    // Nobody is there yet.
    let mut site = Bridge::start(&audit(&client));
    store(&site, "CT1", 1, 2);
    wait_for("a backlog that is told of", || {
        let status = site.json(&["status"])["audit"].clone();
        status["repository"]["backlog"].as_u64() >= Some(2) && status["repository"]["trouble"].is_string()
    });
    repository.start();
    wait_for("everything that was made while nobody was there", || repository.messages() == logged(&site));
    assert_eq!(repository.kept()[0]["client"], "bridge-1");

    // Away for a while, then killed with the bridge.
    repository.kill();
    for study in 2..8 {
        store(&site, "CT1", study, 1);
    }
    let recorded = |site: &Bridge, study: u32| {
        let uid = subject(study).study_uid;
        wait_for("a record of the study", || logged(site).iter().any(|message| message.contains(&uid)));
    };
    // An acquisition does not wait for its record, so that one that is killed at once may leave none.
    (1..8).for_each(|study| recorded(&site, study));
    site.kill();
    repository.start();
    site.run();
    store(&site, "CT1", 8, 1);
    (1..9).for_each(|study| recorded(&site, study));
    wait_for("what was made around two ends", || repository.messages() == logged(&site));
    let logs = files_below(&site.data().join("audit"));
    let logs = logs.iter().filter(|file| file.extension() == Some("log".as_ref()));
    assert!(logs.count() > 1, "the spool is several files");
    wait_for("an empty backlog", || site.json(&["status"])["audit"]["repository"]["backlog"] == 0);

    // In order, framed and of the grammar, without one that the log does not have; the last word is that the site stops.
    assert!(site.terminate().success());
    wait_for("the last word", || repository.messages() == logged(&site));
    let kept = repository.kept();
    for message in &kept {
        assert_eq!((&message["pri"], &message["version"]), (&"85".into(), &"1".into()));
        assert_eq!((&message["app"], &message["id"]), (&"pacs-bridge".into(), &"IHE+RFC-3881".into()));
        assert_eq!(message["data"], "-");
    }
    let messages: Vec<_> = kept.iter().map(|kept| kept["message"].as_str().unwrap()).collect();
    let told = judged(&python, &messages.join("\n"));
    assert!(told.iter().all(|record| record["source"] == "SITE-A"));
    assert_eq!(told.last().unwrap()["types"][0], "110121");

    // Who shows a certificate of somebody else's is not spoken to, and keeps what he has.
    let before = repository.kept().len();
    site.reconfigure(&audit(&stranger), Vec::new());
    site.run();
    store(&site, "CT1", 9, 1);
    wait_for("trouble", || site.json(&["status"])["audit"]["repository"]["trouble"].is_string());
    assert_eq!(repository.kept().len(), before);
    site.kill();
    site.reconfigure(&audit(&client), Vec::new());
    site.run();
    wait_for("what the stranger could not send", || repository.messages() == logged(&site));
}

#[test]
fn a_changed_log_is_found_where_it_was_changed() {
    let python = tests::peers::python();
    let site = Bridge::start("[ledger]\nrpc_bind = \"127.0.0.1:0\"\n[audit]\nanchor_interval_s = 1\n");
    for study in 1..4 {
        store(&site, "CT1", study, 1);
    }
    wait_for("an anchor over all of it", || {
        let status = site.json(&["status"])["audit"].clone();
        status["records"].as_u64() >= Some(7) && status["anchored"] == status["records"]
    });
    let report = site.json(&["audit", "verify"]);
    assert!(report["anchors"].as_u64() >= Some(1) && report["logs"][0]["anchored"].as_u64() >= Some(7), "{report}");
    let verifier = |more: &[&str]| {
        let mut command = python_script(python.as_ref()?, "audit_verify.py");
        Some(command.arg(site.data().join("audit")).args(more).output().unwrap())
    };
    let source = site.json(&["status"])["source"].as_str().unwrap().to_owned();
    let contract = contracts::addresses(source.parse().unwrap()).anchors.to_string();
    let rpc = format!("http://{}", site.ready("rpc="));
    let ledger = ["--rpc", &rpc, "--contract", &contract, "--source", &source];
    if let Some(said) = verifier(&ledger) {
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert!(said["anchors"].as_u64() >= Some(1), "{said}");
    }

    let log = files_below(&site.data().join("audit")).into_iter().find(|file| file.extension() == Some("log".as_ref()));
    let log = log.unwrap();
    let whole = std::fs::read(&log).unwrap();
    let lines: Vec<Vec<u8>> = whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let offset = |record: usize| lines[..record].iter().map(Vec::len).sum::<usize>();
    let name = log.file_name().unwrap().to_str().unwrap().to_owned();
    let expect = |changed: &[Vec<u8>], record: usize, wrong: &str, at: Option<usize>| {
        std::fs::write(&log, changed.concat()).unwrap();
        let output = site.cli(&["--json", "audit", "verify"]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let first = &report["findings"][0];
        assert_eq!((&first["wrong"], &first["record"]), (&wrong.into(), &record.into()), "{report}");
        assert_eq!(first["file"], name.as_str());
        if let Some(at) = at {
            assert_eq!(first["offset"], at);
        }
        if let Some(said) = verifier(&ledger) {
            assert!(!said.status.success(), "the other verifier finds that too: {wrong}");
        }
        let words = site.cli(&["audit", "verify", "--offline"]);
        let words = String::from_utf8(words.stdout).unwrap();
        assert!(
            wrong == "truncated" || wrong == "not_as_anchored" || words.contains(&format!("record {record}, byte")),
            "{words}"
        );
    };
    let mut flipped = lines.clone();
    flipped[3][120] ^= 4;
    expect(&flipped, 3, "changed", Some(offset(3)));
    let mut deleted = lines.clone();
    deleted.remove(4);
    expect(&deleted, 4, "deleted", Some(offset(4)));
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    expect(&swapped, 2, "reordered", Some(offset(2)));
    let truncated = &lines[..5];
    expect(truncated, 5, "truncated", None);
    // The bridge would not go on with what was left, and says so.
    assert!(site.log().contains("the audit log is not as it was written"));
    assert!(!site.json(&["audit", "list", "--since", "2001-01-01"]).as_array().unwrap().is_empty());
}

/// Nothing leaves when it cannot be recorded that it does; what comes is taken in.
#[test]
fn nothing_is_handed_out_while_the_log_cannot_be_written() {
    let site =
        Bridge::start("[[peer]]\nae_title = \"GETTER\"\nallow = [\"get\", \"find\"]\n[audit]\nsegment_bytes = 4096\n");
    store(&site, "CT1", 1, 2);
    let uid = subject(1).study_uid;
    let runtime = Runtime::new().unwrap();
    let got = |study: &str| runtime.block_on(tests::dicom::get_study(site.dicom, "PACSBRIDGE", study.parse().unwrap()));
    assert_eq!(got("1").len(), 2, "{uid}");
    // The next file cannot be begun where there is no directory.
    let (audit, aside) = (site.data().join("audit"), site.data().join("aside"));
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::write(&audit, "").unwrap();
    let mut refused = false;
    for study in 2..30 {
        store(&site, "CT1", study, 1);
        refused = got("1").is_empty();
        if refused {
            break;
        }
    }
    assert!(refused, "the log was moved away");
    assert!(site.json(&["status"])["audit"]["trouble"].is_string());
    assert!(site.log().contains("THE AUDIT LOG CANNOT BE WRITTEN"));
    store(&site, "CT1", 30, 1);
    std::fs::remove_file(&audit).unwrap();
    std::fs::rename(&aside, &audit).unwrap();
    wait_for("the log to be written again", || got("1").len() == 2);
    assert!(site.json(&["audit", "verify"])["findings"].as_array().unwrap().is_empty());
    let classes = std::fs::read_dir(&audit).unwrap().count();
    assert!(classes > 1 && logged(&site).iter().any(|message| message.contains(CT)));
}
