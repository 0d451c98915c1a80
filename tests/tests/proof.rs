//! Proofs: whoever has one checks it without the site and without a node; nothing of it can be changed; on every kind of ledger; and of what is not on the ledger
//! there is none.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tests::consortium::{Consortium, Nodes, OPEN, keyring, store, store_all};
use tests::dicom::{slices, subject, write_files};
use tests::http::{Client, send};
use tests::{Bridge, binary, files_below, wait_for};

/// Runs the program where there is no site: no configuration, no data, nothing to ask.
fn elsewhere(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(binary()).current_dir(dir.path()).env_clear().args(args).output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn written(dir: &Path, name: &str, proof: &Value) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, proof.to_string()).unwrap();
    path
}

/// What a proof shows to somebody who has nothing else, and how a file compares.
fn shown(proof: &Path, file: Option<&Path>) -> Option<Value> {
    let mut args = vec!["--json", "verify", "--proof", proof.to_str().unwrap()];
    args.extend(file.map(|file| file.to_str().unwrap()));
    let output = elsewhere(&args);
    serde_json::from_slice(&output.stdout).ok().filter(|_| !output.stdout.is_empty())
}

/// Every text in a document that holds digits, by its place.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| places(value, format!("{at}/{name}"), found)),
        Value::Array(all) => all.iter().enumerate().for_each(|(n, value)| places(value, format!("{at}/{n}"), found)),
        _ => found.push(at),
    }
}

/// The same with one digit changed.
fn changed(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_u64().unwrap() + 1),
        Value::String(text) => {
            let at = text.len() - text.len() / 3 - 1;
            let other = if &text[at..=at] == "1" { "2" } else { "1" };
            Value::from(format!("{}{other}{}", &text[..at], &text[at + 1..]))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_proof_is_checked_with_nothing_else_and_nothing_of_it_can_be_changed() {
    let site = Bridge::start(&format!("{OPEN}[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    store_all(&runtime, &site, slices(1, 3, 48));
    site.wait_final(1);
    let uid = slices(1, 3, 48)[1].sop_instance.to_string();
    let proof = site.json(&["proof", &uid]);
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "proof.json", &proof);

    let said = shown(&path, None).unwrap()["shown"].clone();
    assert_eq!((&said["sop_instance_uid"], &said["pieces"]), (&json!(uid), &json!("calldata")), "{said}");
    let account = keyring(&site).source().address().to_string().to_lowercase();
    for own in ["source", "admin", "signer"] {
        assert_eq!(said[own].as_str().unwrap().to_lowercase(), account, "{own}: {said}");
    }

    // The file as it is kept, as other software wrote it, and others.
    let sent = write_files(&dir.path().join("sent"), &slices(1, 3, 48));
    let sent: &PathBuf = sent.iter().find(|path| path.to_str().unwrap().contains(&uid)).unwrap();
    let same = shown(&path, Some(sent)).unwrap()["file"].clone();
    assert_eq!(same, json!({ "file": true, "data_set": true, "pixels": true }));
    let bytes = std::fs::read(sent).unwrap();
    let with_preamble = [&[7; 128], &bytes[128..]].concat();
    let rewritten = dir.path().join("rewritten.dcm");
    std::fs::write(&rewritten, &with_preamble).unwrap();
    assert_eq!(
        shown(&path, Some(&rewritten)).unwrap()["file"],
        json!({ "file": false, "data_set": true, "pixels": true })
    );
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&rewritten, &other).unwrap();
    let output = elsewhere(&["verify", rewritten.to_str().unwrap(), "--proof", path.to_str().unwrap()]);
    assert!(!output.status.success() && words(&output).contains("NOT this object"), "{}", words(&output));
    assert!(elsewhere(&["verify", sent.to_str().unwrap(), "--proof", path.to_str().unwrap()]).status.success());

    // Whatever is changed, it holds no more; but for what it says of itself alone.
    let informs = ["/receipt/transaction", "/chain/chain_id", "/chain/genesis", "/object/pixel_sha256"];
    let mut all = Vec::new();
    places(&proof, String::new(), &mut all);
    assert!(all.len() > 15, "{all:?}");
    for place in all {
        let mut forged = proof.clone();
        let value = forged.pointer_mut(&place).unwrap();
        *value = changed(value);
        let path = written(dir.path(), "forged.json", &forged);
        let found = shown(&path, None);
        if place == "/block/signature" {
            // It is a signature of somebody else then, or of nobody.
            assert!(found.is_none_or(|found| found["shown"]["signer"] != said["signer"]), "{place}");
        } else {
            assert_eq!(found.is_some(), informs.contains(&place.as_str()), "{place}");
        }
    }
    for wrong in ["{}", "nonsense", ""] {
        std::fs::write(&path, wrong).unwrap();
        assert!(words(&elsewhere(&["verify", "--proof", path.to_str().unwrap()])).contains("is no proof"), "{wrong}");
    }

    // The same over HTTP, for who may have the object.
    let ask = |who: &Client, study: &str, object: &str| who.get(&format!("/studies/{study}/proof?instance={object}"));
    let (study, operator) = (subject(1).study_uid, Client::with_token(&site, &["--as", "operator"]));
    assert_eq!(ask(&operator, &study, &uid).json(), proof);
    assert_eq!(ask(&operator, &study, "1.2.3").status, 404);
    assert_eq!(ask(&operator, &study, "x").status, 404);
    let stranger = Client::with_token(&site, &["--as", &format!("account:0x{}", "11".repeat(20))]);
    assert_eq!(ask(&stranger, &study, &uid).status, 404);
    assert_eq!(ask(&Client::with_token(&site, &["--as", "operator", "--may", "find"]), &study, &uid).status, 403);
    let unknown = site.cli(&["proof", "1.2.3"]);
    assert!(!unknown.status.success() && words(&unknown).contains("no object 1.2.3"), "{}", words(&unknown));
}

#[test]
fn of_what_has_no_image_on_the_ledger_there_is_no_proof() {
    let site = Bridge::start(&format!(
        "{OPEN}[publish]\nsettle_ms = 100\ncustody = \"at-source\"\n[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\n"
    ));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    store_all(&runtime, &site, slices(1, 1, 48));
    site.wait_final(1);
    let refused = site.cli(&["proof", slices(1, 1, 48)[0].sop_instance.as_str()]);
    assert!(!refused.status.success() && words(&refused).contains("kept at its source"), "{}", words(&refused));
}

#[test]
fn proofs_on_anvil() {
    proofs_on(Nodes::Anvil);
}

#[test]
fn proofs_on_geth() {
    proofs_on(Nodes::Geth(2));
}

/// A block as a node has it.
fn block(url: &str, number: u64) -> Value {
    let to = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": [format!("{number:#x}"), false] });
    let answer = send(to, "POST", "/", &[("Content-Type", "application/json")], ask.to_string().as_bytes());
    answer.json()["result"].clone()
}

/// The source and a site that was let in prove the same; the block is the node's own.
fn proofs_on(nodes: Nodes) {
    let Some(consortium) = Consortium::found_on(nodes) else { return };
    let (a, b) = (consortium.join(true), consortium.join(true));
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);
    let account = keyring(&b).source().address().to_string();
    let (study, object) = (subject(1).study_uid, slices(1, 1, 32)[0].sop_instance.to_string());
    let proof = a.json(&["proof", &object]);
    a.wait_for_key_of(&account);
    a.json(&["allow", &study, &account]);
    wait_for("the study at B", || b.cli(&["proof", &object]).status.success());
    assert_eq!(b.json(&["proof", &object]), proof, "both prove the same");
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "proof.json", &proof);
    let said = shown(&path, None).unwrap()["shown"].clone();
    assert_eq!(
        said["source"].as_str().unwrap().to_lowercase(),
        keyring(&a).source().address().to_string().to_lowercase()
    );
    let block = block(&consortium.url(0), said["block"].as_u64().unwrap());
    assert_eq!(said["block_hash"], block["hash"], "the block is on the chain");
    match nodes {
        // Who sealed it signed it.
        Nodes::Geth(_) => assert!(said["signer"].is_string(), "{said}"),
        _ => assert!(said["signer"].is_null(), "{said}"),
    }
    // What is here of it is what is proven.
    let files = files_below(&a.data().join("archive/objects"));
    let same = |file: &PathBuf| shown(&path, Some(file)).unwrap()["file"]["file"] == true;
    assert_eq!(files.iter().filter(|file| same(file)).count(), 1);
}
