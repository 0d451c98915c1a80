//! A patient without chain software: a study is published, claimed by the patient's own key, allowed by a signature made offline,
//! traced and revoked, all by the program's commands; wrong keys and replays are refused in words.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use serde_json::Value;
use tests::Bridge;
use tests::dicom::{slices, subject};

const OPEN: &str =
    "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n[publish]\nsettle_ms = 100\n";
const GRANTEE: &str = "0x2222222222222222222222222222222222222222";
const KEY_HASH: &str = "0x3333333333333333333333333333333333333333333333333333333333333333";

/// What a command says when it fails.
fn refused(bridge: &Bridge, args: &[&str]) -> String {
    let output = bridge.cli(args);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
    words
}

fn table(bridge: &Bridge, args: &[&str]) -> String {
    let output = bridge.cli(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Brings a study onto the ledger; its UID.
fn published(bridge: &Bridge, seed: u32) -> String {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
        let phantom = &slices(seed, 1, 32)[0];
        assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
    });
    bridge.wait_final(1);
    subject(seed).study_uid
}

/// A key of somebody, in a file of its own; its account and the file.
fn somebody(dir: &Path, name: &str) -> (String, String) {
    let key = alloy::signers::local::PrivateKeySigner::random();
    let file = dir.join(name);
    std::fs::write(&file, bridge::ledger::keystore::encrypt(&key, "a key of mine").unwrap()).unwrap();
    (key.address().to_string(), text(&file).to_owned())
}

fn events(trace: &Value) -> Vec<&str> {
    trace["history"].as_array().unwrap().iter().map(|row| row["event"].as_str().unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_patient_decides_with_a_key_of_his_own_and_nobody_else_can() {
    let bridge = Bridge::start(OPEN);
    let uid = subject(1).study_uid;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in &slices(1, 2, 32) {
            assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
    });
    bridge.wait_final(1);
    let file = |name: &str| bridge.dir.path().join(name);
    let password = file("password");
    std::fs::write(&password, "the patient's own\n").unwrap();
    let password = text(&password);

    // In custody, the site decides for the patient.
    let done = bridge.json(&["allow", &uid, GRANTEE, "--preview-only", "--encryption-key", KEY_HASH]);
    assert_eq!((&done["action"], &done["state"]), (&"allowed".into(), &"authorised".into()), "{done}");
    let words = refused(&bridge, &["allow", &uid, GRANTEE]);
    assert!(words.contains("OpenPGP key"), "{words}");
    let done = bridge.json(&["revoke", &uid, GRANTEE]);
    assert_eq!(done["state"], "removed", "{done}");

    // The patient takes the study over.
    let (key, paper) = (file("patient.json"), file("hand-over.json"));
    let (key, paper) = (text(&key), text(&paper));
    bridge.json(&["claim", &uid, "--new-key", key, "--password-file", password, "--hand-over", paper]);
    let paper: Value = serde_json::from_str(&std::fs::read_to_string(paper).unwrap()).unwrap();
    let keystore: Value = serde_json::from_str(&std::fs::read_to_string(key).unwrap()).unwrap();
    let study = paper["study_id"].as_str().unwrap();
    let plain = |value: &Value| value.as_str().unwrap().trim_start_matches("0x").to_lowercase();
    assert_eq!(plain(&paper["owner"]), plain(&keystore["address"]));
    assert_eq!(paper["custodial"], false);
    assert_eq!(plain(&bridge.json(&["study", "show", &uid])["owner"]), plain(&paper["owner"]));
    let words = refused(&bridge, &["allow", &uid, GRANTEE, "--encryption-key", KEY_HASH]);
    assert!(words.contains("--unsigned"), "{words}");

    // Another key cannot sign for the patient, nor can an action be sent that nobody signed.
    let allow = file("allow.json");
    let allow = text(&allow);
    let note = file("note.json");
    let note = text(&note);
    let commitment = table(&bridge, &["note", "new", note, "until the end of the therapy"]);
    let limits = ["--encryption-key", KEY_HASH, "--until", "30d", "--note", note];
    bridge.json(&[&["allow", study, GRANTEE], limits.as_slice(), &["--unsigned", allow]].concat());
    let words = refused(&bridge, &["submit", allow]);
    assert!(words.contains("not signed yet"), "{words}");
    let other = file("other.json");
    let other = text(&other);
    let stranger = alloy::signers::local::PrivateKeySigner::random();
    let locked = bridge::ledger::keystore::encrypt(&stranger, "the patient's own").unwrap();
    std::fs::write(other, locked).unwrap();
    let words = refused(&bridge, &["sign", allow, "--key", other, "--password-file", password]);
    assert!(words.contains("must be signed by") && words.contains(&stranger.address().to_string()), "{words}");

    // The patient's key can; a changed action has no good signature.
    let signed = bridge.json(&["sign", allow, "--key", key, "--password-file", password]);
    let mut forged = signed.clone();
    forged["action"]["allow"]["grantee"] = "0x4444444444444444444444444444444444444444".into();
    let forgery = file("forged.json");
    std::fs::write(&forgery, forged.to_string()).unwrap();
    let words = refused(&bridge, &["submit", text(&forgery)]);
    assert!(words.contains("changed after it was signed"), "{words}");
    let done = table(&bridge, &["submit", allow]);
    assert!(done.contains("allowed") && done.contains("authorised"), "{done}");
    let words = refused(&bridge, &["submit", allow]);
    assert!(words.contains("said already or was overtaken"), "{words}");

    let trace = bridge.json(&["trace", &uid, GRANTEE]);
    assert_eq!(events(&trace), ["created", "accepted", "removed", "transferred", "accepted"], "{trace}");
    assert_eq!((&trace["states"][0]["state"], &trace["states"][0]["sees"]), (&"authorised".into(), &"full".into()));
    for row in trace["history"].as_array().unwrap() {
        assert!(row["gas"].as_u64().is_some_and(|gas| gas > 21_000) && row["time_s"].is_u64(), "{row}");
    }

    // What was said in words is nowhere but in the file, and the ledger shows when, until a letter of it is changed.
    let found = bridge.json(&["note", "find", note, study]);
    assert_eq!((events(&found), &found["history"][0]["notes"]), (vec!["accepted"], &commitment.trim().into()));
    let changed = std::fs::read_to_string(note).unwrap().replace("the end", "The end");
    let other_note = file("other-note.json");
    std::fs::write(&other_note, changed).unwrap();
    let words = refused(&bridge, &["note", "find", text(&other_note), study]);
    assert!(words.contains("commits to this note"), "{words}");
    let words = refused(&bridge, &["deny", study, GRANTEE, "--note", key]);
    assert!(words.contains("is not a note"), "{words}");

    // Revoked, and what was overtaken stays overtaken.
    let revoke = file("revoke.json");
    let revoke = text(&revoke);
    bridge.json(&["revoke", &uid, GRANTEE, "--unsigned", revoke]);
    bridge.json(&["sign", revoke, "--key", key, "--password-file", password]);
    assert_eq!(bridge.json(&["submit", revoke])["state"], "removed");
    let words = refused(&bridge, &["submit", allow]);
    assert!(words.contains("overtaken"), "{words}");
    let shown = table(&bridge, &["trace", study]);
    assert!(shown.lines().any(|line| line.starts_with(GRANTEE) && line.contains("removed")), "{shown}");
}

#[test]
fn requests_denials_emergencies_and_sources_are_shown() {
    let bridge = Bridge::start(OPEN);
    let uid = subject(2).study_uid;
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
        let phantom = &slices(2, 1, 32)[0];
        assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
    });
    bridge.wait_final(1);
    let source = bridge.json(&["status"])["source"].as_str().unwrap().to_owned();

    let done = bridge.json(&["request", &uid, "--purpose", "HRESCH"]);
    assert_eq!((&done["state"], &done["account"]), (&"requested".into(), &source.clone().into()), "{done}");
    let open = bridge.json(&["requests"]);
    assert_eq!((&open[0]["grantee"], &open[0]["known"]), (&source.clone().into(), &true.into()), "{open}");
    let done = bridge.json(&["deny", &uid, &source, "--reason", "purpose"]);
    assert_eq!(done["state"], "denied", "{done}");
    assert_eq!(bridge.json(&["requests"]), serde_json::json!([]));
    assert_eq!(bridge.json(&["requests", "--all"])[0]["state"], "denied");
    let words = refused(&bridge, &["deny", &uid, &source]);
    assert!(words.contains("no open request"), "{words}");

    let words = refused(&bridge, &["break-glass", &uid, "--reason", "curiosity"]);
    assert!(words.contains("life-threatening"), "{words}");
    let done = bridge.json(&["break-glass", &uid, "--reason", "life-threatening", "--for", "30m"]);
    assert_eq!(done["state"], "emergency", "{done}");
    let trace = bridge.json(&["trace", &uid, &source]);
    assert_eq!(events(&trace), ["created", "requested", "denied", "glass broken"], "{trace}");

    let done = bridge.json(&["sources", "admit", GRANTEE]);
    assert_eq!(done["action"], "admitted", "{done}");
    let words = refused(&bridge, &["sources", "admit", GRANTEE]);
    assert!(words.contains("admitted before"), "{words}");
    bridge.json(&["sources", "suspend", GRANTEE]);
    let all = bridge.json(&["sources"]);
    let state = |account: &str| {
        let row =
            all.as_array().unwrap().iter().find(|row| row["source"].as_str().unwrap().eq_ignore_ascii_case(account));
        row.unwrap()["state"].clone()
    };
    assert_eq!((state(GRANTEE), state(&source)), ("suspended".into(), "active".into()));
}

#[test]
fn guardians_recover_a_study_together_and_the_owner_can_object() {
    let bridge = Bridge::start(OPEN);
    let uid = published(&bridge, 3);
    let file = |name: &str| text(&bridge.dir.path().join(name)).to_owned();
    let password = file("password");
    std::fs::write(&password, "a key of mine\n").unwrap();
    let people: Vec<_> =
        ["a.json", "b.json", "c.json", "d.json"].iter().map(|name| somebody(bridge.dir.path(), name)).collect();
    let (paper, recovery, copy) = (file("guardians"), file("recovery"), file("copy"));
    let named = |need: &str, delay: &str| {
        let mut args =
            vec!["guardians", "set", uid.as_str(), "--need", need, "--delay", delay, "--paper", paper.as_str()];
        people[..3].iter().for_each(|(account, _)| args.extend(["--guardian", account.as_str()]));
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let call = |args: &[String]| args.to_vec();
    for (need, delay) in [("4", "7d"), ("2", "1h"), ("0", "7d")] {
        let args = call(&named(need, delay));
        let words = refused(&bridge, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(words.contains("could never act"), "{words}");
    }
    let args = named("2", "2d");
    let done = bridge.json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(done["action"], "guardians named", "{done}");

    // Two of three must agree on one new owner; each signs a copy of his own.
    let owner = people[3].0.as_str();
    bridge.json(&["recover", "propose", &paper, "--owner", owner, "--out", &recovery]);
    std::fs::copy(&recovery, &copy).unwrap();
    let approve = |file: &str, key: &str| {
        vec!["recover", "approve", file, "--key", key, "--password-file", &password]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| bridge.json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let words = refused(&bridge, &approve(&recovery, &people[3].1).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(words.contains("must be signed by a guardian"), "{words}");
    run(approve(&recovery, &people[0].1));
    let words = refused(&bridge, &["recover", "submit", &recovery]);
    assert!(words.contains("signed by 1 guardians, 2 must"), "{words}");
    let signed = run(approve(&copy, &people[2].1));
    let mut forged = signed.clone();
    forged["new_owner"] = GRANTEE.into();
    let forgery = file("forged");
    std::fs::write(&forgery, forged.to_string()).unwrap();
    let words = refused(&bridge, &["recover", "submit", &recovery, &forgery]);
    assert!(words.contains("another recovery"), "{words}");
    let done = bridge.json(&["recover", "submit", &recovery, &copy]);
    assert_eq!(done["action"], "recovery proposed", "{done}");
    assert!(done["account"].as_str().unwrap().eq_ignore_ascii_case(owner), "{done}");
    let words = refused(&bridge, &["recover", "submit", &recovery, &copy]);
    assert!(words.contains("signature"), "the number is used up: {words}");
    let words = refused(&bridge, &["recover", "complete", &uid]);
    assert!(words.contains("may object until"), "{words}");

    // The owner objects, here with the key in custody, and names nobody any more.
    assert_eq!(bridge.json(&["recover", "veto", &uid])["action"], "recovery vetoed");
    let words = refused(&bridge, &["recover", "complete", &uid]);
    assert!(words.contains("no recovery"), "{words}");
    let unsigned = file("clear");
    let told = table(&bridge, &["guardians", "clear", &uid, "--unsigned", &unsigned]);
    assert!(told.contains("let nobody recover study"), "{told}");
    bridge.json(&["guardians", "clear", &uid]);
    let words = refused(&bridge, &["recover", "propose", &paper, "--owner", owner, "--out", &recovery]);
    assert!(words.contains("not the guardians"), "{words}");
    let trace = bridge.json(&["trace", &uid]);
    assert_eq!(events(&trace), ["created", "guardians", "recovery", "recovery ended", "guardians"], "{trace}");
}

#[test]
fn where_two_operators_must_agree_one_alone_does_not_break_the_glass() {
    let bridge = Bridge::start(OPEN);
    let uid = published(&bridge, 4);
    let source = bridge.json(&["status"])["source"].as_str().unwrap().to_owned();
    let file = |name: &str| text(&bridge.dir.path().join(name)).to_owned();
    let password = file("password");
    std::fs::write(&password, "a key of mine\n").unwrap();
    let (second, key) = somebody(bridge.dir.path(), "second.json");
    let (_, stranger) = somebody(bridge.dir.path(), "stranger.json");
    let (offer, request) = (file("offer"), file("request"));
    let signed = |what: [&str; 2], file: &str, key: &str| {
        bridge.json(&[what[0], what[1], file, "--key", key, "--password-file", &password])
    };

    assert_eq!(bridge.json(&["break-glass", "demand-approval"])["action"], "second operator demanded");
    let words = refused(&bridge, &["break-glass", &uid, "--reason", "patient-unable"]);
    assert!(words.contains("demands that a second operator approves"), "{words}");

    bridge.json(&["operators", "offer", &second, "--out", &offer]);
    let words = refused(&bridge, &["operators", "submit", &offer]);
    assert!(words.contains("not accepted yet"), "{words}");
    let words = refused(&bridge, &["operators", "accept", &offer, "--key", &stranger, "--password-file", &password]);
    assert!(words.contains("the offer is for"), "{words}");
    signed(["operators", "accept"], &offer, &key);
    assert_eq!(bridge.json(&["operators", "submit", &offer])["action"], "operator accepted");

    bridge.json(&["break-glass", &uid, "--reason", "patient-unable", "--for", "30m", "--request", &request]);
    let words = refused(&bridge, &["break-glass", "submit", &request]);
    assert!(words.contains("not approved yet"), "{words}");
    signed(["break-glass", "approve"], &request, &stranger);
    let words = refused(&bridge, &["break-glass", "submit", &request]);
    assert!(words.contains("is not another operator"), "{words}");
    let approved = signed(["break-glass", "approve"], &request, &key);
    let mut longer = approved.clone();
    longer["until"] = (approved["until"].as_u64().unwrap() + 3600).into();
    let forgery = file("forged");
    std::fs::write(&forgery, longer.to_string()).unwrap();
    let words = refused(&bridge, &["break-glass", "submit", &forgery]);
    assert!(words.contains("changed after it was signed"), "{words}");
    let done = bridge.json(&["break-glass", "submit", &request]);
    assert_eq!((&done["action"], &done["state"]), (&"glass broken".into(), &"emergency".into()), "{done}");

    // The owner sees it, and who agreed.
    let trace = bridge.json(&["trace", &uid, &source]);
    assert_eq!(events(&trace), ["created", "glass broken"], "{trace}");
    let detail = trace["history"][1]["detail"].as_str().unwrap().to_lowercase();
    assert!(detail.contains(&format!("approved by {}", second.to_lowercase())), "{detail}");

    assert_eq!(bridge.json(&["operators", "dismiss", &second])["action"], "operator dismissed");
    let words = refused(&bridge, &["operators", "dismiss", &second]);
    assert!(!words.is_empty(), "{words}");
    assert_eq!(bridge.json(&["break-glass", "waive-approval"])["action"], "one operator suffices");
}
