//! What was taken away stays away: whoever was shut out opens nothing that came later, and what was erased opens to nobody and is found
//! nowhere, whenever the process was killed on the way.
//!
//! A is the source and has the ledger; B and D are other sites of its consortium.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::consensus::Transaction as _;
use alloy::primitives::{B256, keccak256};
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::sol_types::SolCall as _;
use bridge::config::Config;
use bridge::keyring::{ForeignKey, ForeignKeys, Keyring};
use bridge::payload::container::unseal_bytes;
use bridge::payload::keys::SessionKey;
use contracts::{PieceInput, Pieces};
use dicom_scp::Uid;
use serde_json::Value;
use tests::dicom::{connect, get, slices, subject};
use tests::{Bridge, files_below, wait_for};
use tokio::runtime::Runtime;

const OPEN: &str =
    "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n[publish]\nsettle_ms = 200\n";
/// Longest payload of these tests.
const PLAIN_BYTES_MAX: u64 = 1 << 24;

/// The secrets of a site, as its daemon made them.
fn keyring(site: &Bridge) -> Keyring {
    Keyring::open(site.data(), &Config::parse("", Default::default()).unwrap().keys).unwrap()
}

fn uid(study: u32) -> String {
    subject(study).study_uid
}

/// A site with the ledger of all. It keeps its port when it is started again.
fn founder() -> Bridge {
    let toml =
        |port: &str| format!("{OPEN}[ledger]\nrpc_bind = \"127.0.0.1:{port}\"\n[exchange]\nbind = \"127.0.0.1:0\"\n");
    let mut site = Bridge::start(&toml("0"));
    let port = site.ready("rpc=").rsplit(':').next().unwrap().to_owned();
    site.reconfigure(&toml(&port), Vec::new());
    site
}

fn source(site: &Bridge) -> String {
    site.json(&["status"])["source"].as_str().unwrap().to_owned()
}

/// Another site on that ledger.
fn join(founder: &Bridge) -> Bridge {
    let ledger = format!(
        "[ledger]\nkind = \"rpc\"\nurl = \"http://{}\"\nadmin = \"{}\"\ndeploy = false\n",
        founder.ready("rpc="),
        source(founder)
    );
    let site = Bridge::start(&format!("{OPEN}{ledger}"));
    founder.json(&["sources", "admit", &source(&site)]);
    site.wait_on_ledger();
    site
}

fn allow(site: &Bridge, study: u32, grantee: &Bridge) {
    let key = keccak256(keyring(grantee).payload_certificate().unwrap()).to_string();
    site.json(&["allow", &uid(study), &source(grantee), "--encryption-key", &key]);
}

type Sent = BTreeMap<String, Vec<u8>>;

fn store(runtime: &Runtime, site: &Bridge, study: u32, which: std::ops::Range<usize>) -> Sent {
    let phantoms = &slices(study, 6, 64)[which];
    runtime.block_on(async {
        let mut open = connect(site.dicom, "CT1").await.unwrap();
        for phantom in phantoms {
            assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    phantoms.iter().map(|phantom| (phantom.sop_instance.to_string(), phantom.bytes.clone())).collect()
}

fn fetched(runtime: &Runtime, site: &Bridge, study: u32) -> Sent {
    let got = runtime.block_on(get(site.dicom, &uid(study)));
    assert!(got.failed.is_empty(), "{:?}", got.failed);
    got.data_sets
}

/// StudyInstanceUIDs in the operator's list, which shows what C-FIND shows.
fn listed(site: &Bridge) -> BTreeSet<String> {
    let rows = site.json(&["studies"]);
    rows.as_array().unwrap().iter().map(|row| row["uid"].as_str().unwrap().to_owned()).collect()
}

/// Every image on the chain, whole, by its name; and the study that each is of.
fn images_on_chain(runtime: &Runtime, site: &Bridge) -> BTreeMap<B256, (B256, Vec<u8>)> {
    let mut pieces: BTreeMap<(B256, u32), (B256, Vec<u8>)> = BTreeMap::new();
    let mut take = |study, image, index, data: &[u8]| drop(pieces.insert((image, index), (study, data.to_vec())));
    runtime.block_on(async {
        let provider = ProviderBuilder::new().connect_http(format!("http://{}", site.ready("rpc=")).parse().unwrap());
        for number in 0..=provider.get_block_number().await.unwrap() {
            let block = provider.get_block_by_number(number.into()).full().await.unwrap().unwrap();
            for transaction in block.transactions.txns() {
                if let Ok(call) = Pieces::storePieceCall::abi_decode(transaction.input()) {
                    take(call.study, call.image, call.index, &call.data);
                } else if let Ok(call) = Pieces::storePiecesCall::abi_decode(transaction.input()) {
                    for PieceInput { study, image, index, data } in call.batch {
                        take(study, image, index, &data);
                    }
                }
            }
        }
    });
    let mut images: BTreeMap<B256, (B256, Vec<u8>)> = BTreeMap::new();
    for ((image, _), (study, data)) in pieces {
        images.entry(image).or_insert((study, Vec::new())).1.extend(data);
    }
    images
}

/// Everything that could open something, by whoever holds these.
fn all_keys<'a>(epochs: impl Iterator<Item = &'a SessionKey>) -> Vec<SessionKey> {
    // All objects of these studies are in their first series.
    let series: Vec<Uid> = (1..3).map(|study| Uid::new(&format!("{}.1", uid(study))).unwrap()).collect();
    let of_series =
        |key: SessionKey| series.iter().map(|uid| key.of_series(uid)).chain([key.clone()]).collect::<Vec<_>>();
    epochs.flat_map(|key| [key.clone(), key.preview_key()]).flat_map(of_series).collect()
}

fn all_foreign_keys(keys: &ForeignKeys) -> Vec<SessionKey> {
    let session = |(_, key): &(u32, ForeignKey)| match key {
        ForeignKey::Session(key) | ForeignKey::Preview(key) => key.clone(),
    };
    all_keys(keys.epochs.iter().map(session).collect::<Vec<_>>().iter())
}

/// Names of the images that one of these keys opens.
fn opened(images: &BTreeMap<B256, (B256, Vec<u8>)>, keys: &[SessionKey]) -> BTreeSet<B256> {
    let opens =
        |id: &B256, sealed: &[u8]| keys.iter().any(|key| unseal_bytes(sealed, key, id, PLAIN_BYTES_MAX).is_ok());
    images.iter().filter(|(id, (_, sealed))| opens(id, sealed)).map(|(id, _)| *id).collect()
}

#[test]
fn whoever_was_shut_out_opens_nothing_that_came_later_and_the_others_open_all() {
    let runtime = Runtime::new().unwrap();
    let mut a = founder();
    let (b, d) = (join(&a), join(&a));
    let mut sent = store(&runtime, &a, 1, 0..4);
    a.wait_final(1);
    allow(&a, 1, &b);
    allow(&a, 1, &d);
    for site in [&b, &d] {
        wait_for("the study at the other sites", || listed(site).contains(&uid(1)));
        wait_for("its objects there", || fetched(&runtime, site, 1) == sent);
    }
    let study: B256 = a.json(&["study", "show", &uid(1)])["study_id"].as_str().unwrap().parse().unwrap();
    let held = all_foreign_keys(&keyring(&b).foreign(study).unwrap().unwrap());
    let before = images_on_chain(&runtime, &a);
    assert_eq!(opened(&before, &held).len(), before.len(), "B has the keys of everything so far");

    a.json(&["revoke", &uid(1), &source(&b)]);
    wait_for("B to see nothing", || listed(&b).is_empty());
    // The word is on the ledger; whatever happens to the process, it begins one epoch.
    a.kill();
    a.run();
    sent.extend(store(&runtime, &a, 1, 4..5));
    wait_for("the second version", || {
        let row = a.json(&["study", "show", &uid(1)]);
        row["study"]["version"] == 2 && row["study"]["state"] == "final"
    });
    sent.extend(store(&runtime, &a, 1, 5..6));
    wait_for("the third version", || {
        let row = a.json(&["study", "show", &uid(1)]);
        row["study"]["version"] == 3 && row["study"]["state"] == "final"
    });
    let source_keys = keyring(&a).study(&Uid::new(&uid(1)).unwrap()).unwrap().unwrap();
    assert_eq!(source_keys.epoch(), 1, "one word, one epoch");

    let images = images_on_chain(&runtime, &a);
    let later: BTreeSet<B256> = images.keys().filter(|id| !before.contains_key(*id)).copied().collect();
    assert!(later.len() >= 6, "two objects, two previews, two manifests: {}", later.len());
    assert!(opened(&images, &held).is_disjoint(&later), "B opens something that came after it was shut out");
    assert_eq!(opened(&images, &held).len(), before.len(), "what B had is not taken from it");
    assert_eq!(opened(&images, &all_keys(source_keys.epochs().map(|(_, key)| key))).len(), images.len());

    wait_for("the later objects at D", || fetched(&runtime, &d, 1) == sent);
    assert_eq!(keyring(&d).foreign(study).unwrap().unwrap().epochs.len(), 2, "D has the keys of both epochs");
    assert!(listed(&b).is_empty() && fetched(&runtime, &b, 1).is_empty());

    // Allowed anew, B gets everything.
    allow(&a, 1, &b);
    wait_for("everything at B", || fetched(&runtime, &b, 1) == sent);
    a.json(&["evict", &uid(1)]);
    assert!(fetched(&runtime, &a, 1) == sent, "A opens both epochs from the ledger");
}

/// What must not be found of a study, in the words of its objects and in their pixels.
fn planted(study: u32) -> Vec<Vec<u8>> {
    let who = subject(study);
    let lower = who.patient_name.to_lowercase();
    let texts = [who.patient_name, lower, who.patient_id, who.study_uid, who.accession];
    let mut all: Vec<Vec<u8>> = texts.map(String::into_bytes).to_vec();
    for phantom in slices(study, 6, 64) {
        all.push(phantom.sop_instance.to_string().into_bytes());
        let middle = phantom.bytes.len() * 3 / 4;
        all.push(phantom.bytes[middle..middle + 48].to_vec());
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Which files below a directory hold which of these. The audit trail keeps UIDs of what was done, and nothing else of it (docs/AUDIT.md).
fn found(dir: &Path, needles: &[Vec<u8>]) -> Vec<(PathBuf, usize)> {
    let is_uid = |needle: &[u8]| needle.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    let mut found = Vec::new();
    for path in files_below(dir) {
        let in_trail = path.components().any(|part| part.as_os_str() == "audit");
        // The control socket cannot be read.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let wanted = needles.iter().enumerate().filter(|(_, needle)| !(in_trail && is_uid(needle)));
        let here = wanted.filter(|(_, needle)| holds(&bytes, needle));
        found.extend(here.map(|(number, _)| (path.clone(), number)));
    }
    found
}

/// The session keys of a study as the site's database holds them, and the salt.
fn kept_secrets(site: &Bridge, study: u32) -> Vec<Vec<u8>> {
    let database = rusqlite::Connection::open(site.data().join("keys.sqlite")).unwrap();
    let mut rows = database.prepare("SELECT wrapped FROM study_epoch WHERE study_uid = ?1").unwrap();
    let rows = rows.query_map([uid(study)], |row| row.get(0)).unwrap();
    let mut secrets: Vec<Vec<u8>> = rows.collect::<Result<_, _>>().unwrap();
    let sql = "SELECT salt FROM study_key WHERE study_uid = ?1";
    secrets.push(database.query_row(sql, [uid(study)], |row| row.get(0)).unwrap());
    secrets
}

fn only_certificate(site: &Bridge) -> Option<PathBuf> {
    let files = files_below(&site.data().join("certificates"));
    files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "json"))
}

#[test]
fn what_was_erased_opens_to_nobody_and_is_found_nowhere() {
    let runtime = Runtime::new().unwrap();
    let mut a = founder();
    let b = join(&a);
    let first = store(&runtime, &a, 1, 0..6);
    let second = store(&runtime, &a, 2, 0..6);
    a.wait_final(2);
    allow(&a, 1, &b);
    wait_for("the study at B", || fetched(&runtime, &b, 1) == first);
    // A later object in another epoch.
    let study = a.json(&["study", "show", &uid(1)])["study_id"].as_str().unwrap().to_owned();
    let study_id: B256 = study.parse().unwrap();
    let mut needles = planted(1);
    needles.extend(kept_secrets(&a, 1));
    for needle in planted(1) {
        assert!(!planted(2).contains(&needle), "the studies must differ");
    }
    let there: BTreeSet<usize> = found(a.data(), &needles).into_iter().map(|(_, number)| number).collect();
    assert_eq!(there.len(), needles.len(), "the search itself works");

    let refused = a.cli(&["erase", &uid(1)]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--yes"));
    let refused = a.cli(&["erase", "1.2.3", "--yes"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no study"), "{refused:?}");

    let copy = a.dir.path().join("copy.json");
    let outcome = a.json(&["erase", &uid(1), "--yes", "--certificate", copy.to_str().unwrap()]);
    let said = &outcome["certificate"]["certificate"];
    assert_eq!((&said["study_id"], said.get("study_uid")), (&Value::from(study.clone()), None), "{outcome}");
    let gone = &said["destroyed"];
    assert_eq!((&gone["salts"], &gone["session_keys"], &gone["objects"]), (&1.into(), &1.into(), &6.into()), "{gone}");
    assert!(gone["files"] == 6 && gone["intake_log_bytes"].as_u64().unwrap() > 0, "{gone}");
    assert!(said["remains"]["pieces_seen"].as_u64().unwrap() >= 8, "{said}");
    let holder = said["may_hold_copies"][0]["grantee"].as_str().unwrap();
    assert!(holder.eq_ignore_ascii_case(&source(&b)), "{said}");
    assert_eq!(a.json(&["erase", "--check", copy.to_str().unwrap()])["ledger"], "agrees");
    let mut forged: Value = serde_json::from_str(&std::fs::read_to_string(&copy).unwrap()).unwrap();
    forged["certificate"]["destroyed"]["files"] = 7.into();
    let forgery = a.dir.path().join("forged.json");
    std::fs::write(&forgery, forged.to_string()).unwrap();
    let refused = a.cli(&["erase", "--check", forgery.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("changed after it was signed"), "{refused:?}");

    // At once, while the bridge runs.
    assert_eq!(listed(&a), BTreeSet::from([uid(2)]));
    assert!(fetched(&runtime, &a, 1).is_empty());
    assert_eq!(found(a.data(), &needles), [], "something is left in a file of A's");
    let trace = a.json(&["trace", &study]);
    assert!(trace["history"].as_array().unwrap().iter().any(|row| row["detail"] == "the study was ended"), "{trace}");

    // With all that A has left and all that is on the chain, nothing opens; with B's keys, which are gone as well, neither.
    let images = images_on_chain(&runtime, &a);
    let of_erased = images.values().filter(|(of, _)| *of == study_id).count();
    let left = keyring(&a);
    assert!(left.study(&Uid::new(&uid(1)).unwrap()).unwrap().is_none());
    let other = left.study(&Uid::new(&uid(2)).unwrap()).unwrap().unwrap();
    let opens = opened(&images, &all_keys(other.epochs().map(|(_, key)| key)));
    assert!(of_erased >= 8 && opens.len() == images.len() - of_erased);
    assert!(opens.iter().all(|id| images[id].0 != study_id));
    wait_for("B's copies and keys to go", || {
        listed(&b).is_empty() && files_below(&b.data().join("archive/objects")).is_empty()
    });
    wait_for("B's keys to go", || keyring(&b).foreign(study_id).unwrap().is_none());

    // The other study is as it was; the erased one begins anew under another name.
    assert!(fetched(&runtime, &a, 2) == second);
    let again = store(&runtime, &a, 1, 0..3);
    a.wait_final(2);
    let fresh = a.json(&["study", "show", &uid(1)]);
    assert_ne!(fresh["study_id"], study.as_str());
    assert_eq!((&fresh["study"]["version"], fetched(&runtime, &a, 1)), (&1.into(), again.clone()));
    a.kill();
    a.run();
    assert!(fetched(&runtime, &a, 1) == again && fetched(&runtime, &a, 2) == second);
}

#[test]
fn an_erasure_that_is_killed_again_and_again_is_finished_and_takes_nothing_else_along() {
    let runtime = Runtime::new().unwrap();
    let mut a = founder();
    let other = store(&runtime, &a, 2, 0..6);
    store(&runtime, &a, 1, 0..3);
    a.wait_final(2);
    // Some of it is in no version, and some may have no file yet.
    store(&runtime, &a, 1, 3..6);
    let mut needles = planted(1);
    needles.extend(kept_secrets(&a, 1));
    let study = a.json(&["study", "show", &uid(1)])["study_id"].as_str().unwrap().to_owned();
    let mut kept = store(&runtime, &a, 3, 0..2);
    for (round, after_ms) in [0, 5, 20, 60, 150, 400].into_iter().enumerate() {
        let (config, id) = (a.config(), study.clone());
        let command = std::process::Command::new(tests::binary())
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["erase", &id, "--yes"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        // The moment of the kill is what varies.
        std::thread::sleep(Duration::from_millis(after_ms));
        kept.extend(store(&runtime, &a, 3, 2 + round % 4..3 + round % 4));
        a.kill();
        command.unwrap().wait().unwrap();
        a.run();
    }
    let begun = || !listed(&a).contains(&uid(1));
    if !begun() {
        a.json(&["erase", &study, "--yes"]);
    }
    wait_for("the certificate", || only_certificate(&a).is_some());
    let file = only_certificate(&a).unwrap();
    wait_for("a good certificate", || a.cli(&["erase", "--check", file.to_str().unwrap()]).status.success());
    assert_eq!(listed(&a), BTreeSet::from([uid(2), uid(3)]));
    assert!(fetched(&runtime, &a, 2) == other && fetched(&runtime, &a, 3) == kept, "something else was lost");
    a.wait_final(2);
    a.terminate();
    assert_eq!(found(a.data(), &needles), [], "something is left in a file of A's");
    a.run();
    assert!(fetched(&runtime, &a, 2) == other && fetched(&runtime, &a, 3) == kept);
}

#[test]
fn a_study_on_its_way_to_the_ledger_can_be_erased_and_others_get_there() {
    let runtime = Runtime::new().unwrap();
    let mut a = founder();
    // Large enough to be under way for a while.
    let phantoms = slices(1, 60, 256);
    runtime.block_on(async {
        let mut open = connect(a.dicom, "CT1").await.unwrap();
        for phantom in &phantoms {
            assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
    });
    let mut study = Value::Null;
    wait_for("the study to be planned", || {
        study = a.json(&["study", "show", &uid(1)])["study_id"].clone();
        study.is_string()
    });
    let study_id: B256 = study.as_str().unwrap().parse().unwrap();
    let secrets = kept_secrets(&a, 1);
    a.json(&["erase", &uid(1), "--yes"]);
    assert!(listed(&a).is_empty());
    let other = store(&runtime, &a, 2, 0..6);
    a.wait_final(1);
    wait_for("the certificate", || only_certificate(&a).is_some());
    let file = only_certificate(&a).unwrap();
    assert!(a.cli(&["erase", "--check", file.to_str().unwrap()]).status.success());
    assert!(fetched(&runtime, &a, 2) == other);
    let images = images_on_chain(&runtime, &a);
    let keys = keyring(&a).study(&Uid::new(&uid(2)).unwrap()).unwrap().unwrap();
    let opens = opened(&images, &all_keys(keys.epochs().map(|(_, key)| key)));
    assert!(opens.iter().all(|id| images[id].0 != study_id) && !opens.is_empty());
    a.terminate();
    let mut needles = secrets;
    let who = subject(1);
    needles.extend([who.patient_name, who.patient_id, who.study_uid].map(String::into_bytes));
    needles.extend(phantoms.iter().map(|phantom| phantom.sop_instance.to_string().into_bytes()));
    assert_eq!(found(a.data(), &needles), [], "something is left in a file of A's");
}

#[test]
fn a_patients_own_key_ends_the_patients_study_and_nothing_goes_before_it_says_so() {
    let runtime = Runtime::new().unwrap();
    let a = Bridge::start(OPEN);
    let sent = store(&runtime, &a, 1, 0..2);
    a.wait_final(1);
    let file = |name: &str| a.dir.path().join(name).to_str().unwrap().to_owned();
    let (key, password, paper, end) = (file("key.json"), file("password"), file("paper.json"), file("end.json"));
    std::fs::write(&password, "the patient's own\n").unwrap();
    a.json(&["claim", &uid(1), "--new-key", &key, "--password-file", &password, "--hand-over", &paper]);
    let words = |args: &[&str]| String::from_utf8_lossy(&a.cli(args).stderr).into_owned();
    assert!(words(&["erase", &uid(1), "--yes"]).contains("--unsigned"));
    a.json(&["erase", &uid(1), "--unsigned", &end]);
    assert!(words(&["erase", &uid(1), "--yes", "--signed", &end]).contains("not signed yet"));
    assert!(fetched(&runtime, &a, 1) == sent, "nothing was erased");
    let signed = a.cli(&["sign", &end, "--key", &key, "--password-file", &password]);
    assert!(String::from_utf8_lossy(&signed.stdout).contains("for ever"), "{signed:?}");
    let outcome = a.json(&["erase", &uid(1), "--yes", "--signed", &end, "--with-uid"]);
    assert_eq!(outcome["certificate"]["certificate"]["study_uid"], uid(1).as_str(), "{outcome}");
    assert!(outcome["certificate"]["certificate"]["tombstone"]["block"].is_u64());
    assert!(listed(&a).is_empty() && fetched(&runtime, &a, 1).is_empty());
    let file = outcome["file"].as_str().unwrap();
    let table = a.cli(&["erase", "--check", file]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("the ledger agrees"), "{table:?}");
}
