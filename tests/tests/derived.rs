//! Purpose-built groups: a study is de-identified by a rule into a study of a research key's, a group is let in to that by itself and
//! to nothing else; what the owner takes back stays taken back; and a crash leaves one derived study with all its objects.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use bridge::archive::FileMeta;
use bridge::demo::phantom::{Phantom, ct_series};
use dicom_scp::dataset::{Encoding, ReadOptions, read};
use dicom_scp::{DataSet, Status, Tag, TransferSyntax, VR};
use serde_json::Value;
use tests::dicom::{get, slices, subject, write_files};
use tests::peers::{python, run};
use tests::{Bridge, files_below, wait_for};

const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n";
const QUICK: &str = "[publish]\nsettle_ms = 200\n";
const INSTANCE_NUMBER: Tag = Tag(0x0020, 0x0013);
const BURNED_IN_ANNOTATION: Tag = Tag(0x0028, 0x0301);

fn store(site: &Bridge, phantoms: &[Phantom]) -> Vec<Option<Status>> {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(site.dicom, "CT1").await.unwrap();
        let mut answers = Vec::new();
        for phantom in phantoms {
            answers.push(tests::dicom::store(&mut open, phantom).await);
        }
        open.release().await.unwrap();
        answers
    })
}

fn store_all(site: &Bridge, phantoms: &[Phantom]) {
    assert!(store(site, phantoms).iter().all(|status| *status == Some(Status::SUCCESS)));
}

fn get_all(site: &Bridge, study: &str) -> BTreeMap<String, Vec<u8>> {
    let got = tokio::runtime::Runtime::new().unwrap().block_on(get(site.dicom, study));
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    got.data_sets
}

/// Records of a type about a study.
fn audited(site: &Bridge, study: &str, kind: &str) -> impl Iterator<Item = Value> {
    let Value::Array(records) = site.json(&["audit", "list", "--study", study]) else { panic!("a list") };
    let kind = Value::from(kind);
    records.into_iter().filter(move |record| record["types"].as_array().unwrap().contains(&kind))
}

/// What a site shows to somebody who asks for studies.
fn found(asker: &Bridge, at: &Bridge) -> String {
    let output = asker.cli(&["--json", "find", &format!("PACSBRIDGE@{}", at.dicom), "StudyInstanceUID"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What was derived from a study, once that is in a state.
fn derived_from(site: &Bridge, study: &str, state: &str) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("a derivation of {study} to be {state}"), || {
        let rows = site.json(&["derived"]);
        let of_it = rows.as_array().unwrap().iter().find(|row| row["parent"] == study);
        row = of_it.cloned().unwrap_or_default();
        row["state"] == state
    });
    row
}

/// Waits until a study is final with so many objects; its row.
fn wait_final(site: &Bridge, study: &str, objects: u64) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("study {study} to be final with {objects} objects"), || {
        let rows = site.json(&["studies"]);
        row = rows.as_array().unwrap().iter().find(|row| row["uid"] == study).cloned().unwrap_or_default();
        row["state"] == "final" && row["instances"] == objects
    });
    row
}

fn events(trace: &Value) -> Vec<&str> {
    trace["history"].as_array().unwrap().iter().map(|row| row["event"].as_str().unwrap()).collect()
}

/// What names a patient of ours, as bytes.
fn secrets(number: u32) -> Vec<Vec<u8>> {
    let subject = subject(number);
    let texts = ["Zyxwquist", "Brunhilde", &subject.patient_id, &subject.study_uid, "19770707", &subject.accession];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|run| run == needle)
}

fn assert_nobody(what: &str, bytes: &[u8], number: u32) {
    for secret in secrets(number) {
        assert!(!holds(bytes, &secret), "{what} holds {}", String::from_utf8_lossy(&secret));
    }
}

fn header(data_set: &[u8]) -> DataSet {
    read(data_set, Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0.clone()
}

/// pydicom compares each copy with the object that it was made from.
fn judged_by_pydicom(dir: &Path, originals: &[Phantom], copies: &BTreeMap<String, Vec<u8>>) {
    let Some(python) = python() else { return };
    let files = write_files(&dir.join("originals"), originals);
    let number_of = |data_set: &[u8]| header(data_set).int(INSTANCE_NUMBER).unwrap();
    let by_number: BTreeMap<i64, PathBuf> =
        originals.iter().map(|phantom| number_of(&phantom.bytes)).zip(files).collect();
    let mut pairs = Vec::new();
    for data_set in copies.values() {
        let header = header(data_set);
        let meta = FileMeta {
            sop_class: header.uid(Tag(0x0008, 0x0016)).unwrap(),
            sop_instance: header.uid(Tag(0x0008, 0x0018)).unwrap(),
            transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
        };
        let copy = dir.join(format!("{}.dcm", meta.sop_instance));
        let file = [meta.encode(), data_set.clone()].concat();
        assert_eq!(bridge::deidentify::file_is_deidentified(&file).map_err(|error| error.to_string()), Ok(()));
        std::fs::write(&copy, file).unwrap();
        pairs.push(serde_json::json!([by_number[&number_of(data_set)], copy]));
    }
    let list = dir.join("pairs.json");
    std::fs::write(&list, serde_json::to_string(&pairs).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/deidentified.py");
    let said = run(Command::new(python).arg(script).arg(list));
    assert_eq!(serde_json::from_slice::<Value>(&said.stdout).unwrap(), serde_json::json!({}));
}

/// A ledger of its own, and two sites on it.
struct Consortium {
    ledger: Bridge,
    joined: String,
}

impl Consortium {
    fn found() -> Self {
        let ledger = Bridge::start("[ledger]\nrpc_bind = \"127.0.0.1:0\"\n[publish]\nenabled = false\n");
        let admin = ledger.json(&["keys", "show"])["source"].as_str().unwrap().to_owned();
        let joined = format!(
            "{OPEN}{QUICK}[ledger]\nkind = \"rpc\"\nurl = \"http://{}\"\nadmin = \"{admin}\"\ndeploy = false\n",
            ledger.ready("rpc=")
        );
        Self { ledger, joined }
    }

    fn join(&self, more: &str) -> (Bridge, String) {
        let site = Bridge::start(&format!("{}{more}", self.joined));
        let account = site.json(&["keys", "show"])["source"].as_str().unwrap().to_owned();
        self.ledger.json(&["sources", "admit", &account]);
        site.wait_on_ledger();
        (site, account)
    }
}

const EXCHANGE: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n";

#[test]
fn a_group_is_let_in_to_what_is_nobodys_and_to_nothing_else() {
    let consortium = Consortium::found();
    let (b, grantee) = consortium.join("");
    let (mut a, _) = consortium.join(EXCHANGE);
    let research = a.json(&["keys", "research", "new", "heart"])["account"].as_str().unwrap().to_owned();
    let again = a.cli(&["keys", "research", "new", "heart"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("already"), "a key is not overwritten");
    assert!(a.terminate().success());
    let rule = format!(
        "[[group]]\nname = \"registry\"\ngrantees = [\"{grantee}\"]\n[[derive]]\nname = \"heart\"\nmodalities = [\"CT\"]\n\
         options = [\"retain-modified-dates\"]\nowner = \"research:heart\"\ngroups = [\"registry\"]\n"
    );
    a.reconfigure(&format!("{}{EXCHANGE}{rule}", consortium.joined), Vec::new());
    a.run();
    let (password, backup) = (a.dir.path().join("password"), a.dir.path().join("backup"));
    std::fs::write(&password, "a good password\n").unwrap();
    let [password, backup] = [&password, &backup].map(|path| path.to_str().unwrap());
    let kept = a.json(&["keys", "backup", "--to", backup, "--password-file", password]);
    for file in ["research-heart.json", "group-heart.key", "derived.sqlite"] {
        assert!(kept["holds"].as_str().unwrap().contains(file), "{kept}");
    }

    let parent = subject(1).study_uid;
    let originals = slices(1, 5, 64);
    store_all(&a, &originals);
    let row = derived_from(&a, &parent, "made");
    let study = row["study"].as_str().unwrap().to_owned();
    assert!(study.starts_with("2.25.") && row["owner"] == "research", "{row}");
    wait_final(&a, &study, 5);
    wait_for("the group to be let in", || derived_from(&a, &parent, "made")["let_in"] == 1);
    wait_for("the derived study at B", || found(&a, &b).contains(&study));
    assert!(!found(&a, &b).contains(&parent), "the study itself is nobody's business there");

    // B gets the copies and nothing that names anybody.
    let copies = get_all(&b, &study);
    assert_eq!(copies.len(), 5);
    copies.values().for_each(|copy| assert_nobody("a copy", copy, 1));
    judged_by_pydicom(b.dir.path(), &originals, &copies);
    for path in files_below(b.data()).iter().chain(&files_below(&consortium.ledger.data().join("ledger"))) {
        // The control socket cannot be read.
        if let Ok(bytes) = std::fs::read(path) {
            assert_nobody(&path.display().to_string(), &bytes, 1);
        }
    }

    // Whose it is, and where it comes from: told here, proven here, and on the ledger only committed to.
    let trace = a.json(&["trace", &study]);
    assert_eq!((&trace["owner"], &trace["custodial"]), (&research.clone().into(), &true.into()), "{trace}");
    assert_eq!(trace["derived_from"], parent, "{trace}");
    assert_eq!(events(&trace), ["created", "derived", "accepted"], "{trace}");
    let named = trace["study_id"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let elsewhere = b.json(&["trace", &named]);
    assert!(elsewhere["derived_from"].is_null(), "{elsewhere}");
    let of_parent = a.json(&["trace", &parent]);
    assert_eq!(events(&of_parent), ["created"], "a study that was not derived is granted to nobody by itself");
    assert!(!elsewhere.to_string().contains(of_parent["study_id"].as_str().unwrap()), "the lineage cannot be read");
    assert_eq!(a.json(&["study", "show", &parent])["derivations"][0]["study"], study.as_str());
    assert_eq!(a.json(&["study", "show", &study])["derivations"][0]["parent"], parent.as_str());

    // What was done by rules, and what came and goes at B, is in the audit trail.
    let by_rule = audited(&a, &parent, "derive").chain(audited(&a, &named, "allow"));
    let by_rule: Vec<_> = by_rule.map(|record| record["who"].to_string()).collect();
    assert!(by_rule.len() == 2 && by_rule.iter().all(|who| who.contains("\"rule heart\"")), "{by_rule:?}");
    assert_eq!((audited(&b, &named, "arrive").count(), audited(&b, &named, "withdraw").count()), (1, 0));

    // Nobody else adds to a derived study.
    let mut intruder = subject(7);
    intruder.study_uid.clone_from(&study);
    let answers = store(&a, &ct_series(&intruder, 1, 32, 7));
    assert!(answers[0].is_some_and(|status| status != Status::SUCCESS), "{answers:?}");

    // What the owner takes back stays taken back, also after a crash, and also when more of the study comes.
    a.json(&["revoke", &study, &grantee]);
    wait_for("the study to be gone at B", || !found(&a, &b).contains(&study));
    wait_for("the record of that", || audited(&b, &named, "withdraw").count() == 1);
    a.kill();
    a.run();
    let second = subject(2).study_uid;
    store_all(&a, &slices(2, 2, 64));
    store_all(&a, &slices(1, 6, 64)[5..]);
    wait_final(&a, &study, 6);
    let other = derived_from(&a, &second, "made")["study"].as_str().unwrap().to_owned();
    wait_for("the second derived study at B", || found(&a, &b).contains(&other));
    assert!(!found(&a, &b).contains(&study));
    let trace = a.json(&["trace", &study]);
    assert_eq!(events(&trace), ["created", "derived", "accepted", "removed"], "{trace}");
    assert_eq!(trace["states"][0]["state"], "removed", "{trace}");

    // A late object of a study whose copy is open to the group comes to the group too.
    store_all(&a, &slices(2, 3, 64)[2..]);
    wait_final(&a, &other, 3);
    wait_for("the late object at B", || get_all(&b, &other).len() == 3);
}

/// Objects of a derived study that the index knows.
fn stored_of(site: &Bridge, study: &str) -> i64 {
    let index = rusqlite::Connection::open(site.data().join("archive/index.sqlite")).unwrap();
    let sql = "SELECT count(*) FROM instance i JOIN series se ON i.series = se.id JOIN study st ON se.study = st.id WHERE st.uid = ?1";
    index.query_row(sql, [study], |row| row.get(0)).unwrap()
}

/// What was derived from a study, and whether that is still being stored, as the record has it at this moment.
fn recorded(site: &Bridge, parent: &str) -> Option<(String, bool)> {
    let record = rusqlite::Connection::open(site.data().join("derived.sqlite")).unwrap();
    let sql = "SELECT derived_uid, storing FROM derivation WHERE parent_uid = ?1";
    record.query_row(sql, [parent], |row| Ok((row.get(0)?, row.get(1)?))).ok()
}

#[test]
fn a_crash_in_the_middle_leaves_one_derived_study_with_all_its_objects() {
    const OBJECTS: u32 = 60;
    let rule = format!("{OPEN}{QUICK}[[derive]]\nname = \"teaching\"\n");
    let mut site = Bridge::start(&rule);
    let mut interrupted = 0;
    for number in 1..=3 {
        let parent = subject(number).study_uid;
        store_all(&site, &slices(number, OBJECTS, 96));
        // The first is stopped before much is stored, the others later.
        let enough = i64::from(10 * (number - 1));
        wait_for("a study to be stored in part, or whole", || {
            let known = recorded(&site, &parent);
            known.is_some_and(|(study, storing)| !storing || stored_of(&site, &study) >= enough)
        });
        site.kill();
        interrupted += u32::from(recorded(&site, &parent).is_some_and(|(_, storing)| storing));
        site.run();
        let row = derived_from(&site, &parent, "made");
        let study = row["study"].as_str().unwrap().to_owned();
        let known = wait_final(&site, &study, OBJECTS.into());
        assert_eq!(known["version"], 1, "nothing of half a study was published: {known}");
        let again = site.json(&["derive", &parent]);
        assert_eq!((&again["objects"], &again["new"]), (&OBJECTS.into(), &0.into()), "once more changes nothing");
        let studies: BTreeSet<_> = copies_of(&site).into_iter().collect();
        assert_eq!(studies.len(), number as usize, "one derived study each: {studies:?}");
    }
    assert!(interrupted > 0, "no crash came in the middle");
}

fn copies_of(site: &Bridge) -> Vec<String> {
    let rows = site.json(&["studies"]);
    let uids = rows.as_array().unwrap().iter().map(|row| row["uid"].as_str().unwrap().to_owned());
    uids.filter(|uid| uid.starts_with("2.25.")).collect()
}

/// A slice that says that text is burned into its pixels.
fn burned_in(mut phantom: Phantom) -> Phantom {
    let mut data_set = header(&phantom.bytes);
    data_set.put_text(BURNED_IN_ANNOTATION, VR::CS, "YES");
    phantom.bytes = data_set.write(Encoding::ExplicitLe);
    phantom
}

#[test]
fn one_refused_object_refuses_all_and_an_erasure_says_what_becomes_of_the_copies() {
    let owner = alloy::signers::local::PrivateKeySigner::random().address().to_string();
    let rule = format!("{OPEN}{QUICK}[[derive]]\nname = \"outside\"\nowner = \"{owner}\"\nlineage = \"local\"\n");
    let mut site = Bridge::start(&rule);

    // The last of three objects is refused: nothing of the study is stored, and the reason can be read.
    let refused = subject(1).study_uid;
    let mut phantoms = slices(1, 3, 32);
    let last = phantoms.remove(2);
    phantoms.push(burned_in(last));
    store_all(&site, &phantoms);
    let row = derived_from(&site, &refused, "refused");
    assert!(row["study"].is_null() && row["trouble"].as_str().unwrap().contains("refused"), "{row}");
    let command = site.cli(&["derive", &refused]);
    assert!(!command.status.success() && String::from_utf8_lossy(&command.stderr).contains("and the study with it"));
    assert_eq!(site.json(&["studies"]).as_array().unwrap().len(), 1, "nothing was stored");

    // The next is handed over to its owner, who is elsewhere; of its lineage nothing is on the ledger.
    let parent = subject(2).study_uid;
    store_all(&site, &slices(2, 2, 32));
    let study = derived_from(&site, &parent, "made")["study"].as_str().unwrap().to_owned();
    let mut trace = Value::Null;
    wait_for("the study to be its owner's", || {
        let known = wait_final(&site, &study, 2);
        assert_eq!(known["version"], 1);
        trace = site.json(&["trace", &study]);
        trace["owner"] == owner.as_str()
    });
    assert_eq!((&trace["custodial"], events(&trace)), (&false.into(), vec!["created", "transferred"]), "{trace}");

    // Erasing the parent needs a word about its copy; kept, nothing leads to it.
    let words = site.cli(&["erase", &parent, "--yes"]);
    assert!(String::from_utf8_lossy(&words.stderr).contains("--keep-derived"), "{words:?}");
    site.json(&["erase", &parent, "--yes", "--keep-derived"]);
    let rows = site.json(&["derived"]);
    let kept = rows.as_array().unwrap().iter().find(|row| row["study"] == study.as_str()).unwrap();
    assert!(kept["parent"].is_null() && kept["lineage"].is_null(), "{kept}");
    assert_eq!(get_all(&site, &study).len(), 2, "the copy stays");
    site.terminate();
    for file in ["derived.sqlite", "derived.sqlite-journal"] {
        let bytes = std::fs::read(site.data().join(file)).unwrap();
        assert!(!holds(&bytes, parent.as_bytes()), "{file} names the erased study");
    }

    // Erased with its copy, neither comes back, and the copy is not derived anew.
    site.reconfigure(&format!("{OPEN}{QUICK}[[derive]]\nname = \"inside\"\n"), Vec::new());
    site.run();
    let parent = subject(3).study_uid;
    store_all(&site, &slices(3, 2, 32));
    let study = derived_from(&site, &parent, "made")["study"].as_str().unwrap().to_owned();
    wait_final(&site, &study, 2);
    let alone = site.json(&["erase", &study, "--yes"]);
    assert!(alone["certificate"].is_object(), "{alone}");
    derived_from(&site, &parent, "erased");
    let words = site.cli(&["derive", &parent]);
    assert!(String::from_utf8_lossy(&words.stderr).contains("not derived again"), "{words:?}");
    site.json(&["erase", &parent, "--yes", "--with-derived"]);
    let left = site.json(&["studies"]).to_string();
    assert!(!left.contains(&parent) && !left.contains(&study), "{left}");
}
