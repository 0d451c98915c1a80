//! A site goes from one ledger to another, with its studies, their owners and what these allowed: from the embedded ledger to a network, and two
//! sites from a network to another one. The network is anvil or one of geth with Clique. Nothing is lost on the way, wherever it is stopped.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use alloy::signers::local::PrivateKeySigner;
use dicom_scp::Uid;
use dicom_scp::matching::Level;
use serde_json::Value;
use tests::consortium::{Consortium, Nodes, OPEN, keyring, objects_here, store, store_all};
use tests::dicom::{get, in_series, slices, subject};
use tests::{Bridge, binary, files_below, wait_for};

const X: &str = "0x1111111111111111111111111111111111111111";
const Y: &str = "0x2222222222222222222222222222222222222222";
const Z: &str = "0x3333333333333333333333333333333333333333";
const KEY: [&str; 2] = ["--encryption-key", "0x4444444444444444444444444444444444444444444444444444444444444444"];
const SITE: &str = "[archive]\nduplicates = \"replace\"\n[publish]\nsettle_ms = 100\n";

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn refused(site: &Bridge, args: &[&str], why: &str) {
    let output = site.cli(args);
    assert!(!output.status.success(), "{}", words(&output));
    assert!(words(&output).contains(why), "no word of {why:?} in: {}", words(&output));
}

fn allow(site: &Bridge, uid: &str, grantee: &str, more: &[&str]) {
    site.json(&[&["allow", uid, grantee], KEY.as_slice(), more].concat());
}

/// What the ledger says of a study to a grantee now, and what he sees.
fn state(site: &Bridge, uid: &str, grantee: &str) -> (String, Option<String>) {
    let trace = site.json(&["trace", uid, grantee]);
    let row = &trace["states"][0];
    (row["state"].as_str().unwrap_or("-").to_owned(), row["sees"].as_str().map(str::to_owned))
}

fn epoch(site: &Bridge, uid: &str) -> u32 {
    keyring(site).study(&Uid::new(uid).unwrap()).unwrap().unwrap().epoch()
}

fn version(site: &Bridge, uid: &str) -> u64 {
    let all = site.json(&["studies"]);
    all.as_array().unwrap().iter().find(|row| row["uid"] == uid).unwrap()["version"].as_u64().unwrap()
}

fn got(consortium: &Consortium, site: &Bridge, uid: &str) -> BTreeMap<String, Vec<u8>> {
    consortium.runtime.block_on(get(site.dicom, uid)).data_sets
}

fn is_proven(site: &Bridge, uid: &str) -> bool {
    site.json(&["verify", uid]).as_array().unwrap().iter().all(|verdict| verdict["proven"] == true)
}

fn set_aside(site: &Bridge) -> Vec<PathBuf> {
    let all = std::fs::read_dir(site.data()).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ledger-of-chain-")).collect()
}

/// Promotes a site, killed again and again on the way; what the last run said.
fn promoted_after_kills(site: &Bridge, more: &[&str]) -> Output {
    let begin = || {
        let args = [&["ledger", "promote"], more].concat();
        let mut command = Command::new(binary());
        command.arg("--config").arg(site.config()).args(args).stdin(Stdio::null());
        command
    };
    for wait_ms in [150, 400, 800, 1_300, 1_900, 2_600, 3_400] {
        let mut child = begin().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        let _ = child.kill();
        child.wait().unwrap();
        if !set_aside(site).is_empty() {
            break;
        }
    }
    begin().output().unwrap()
}

#[test]
fn a_site_goes_from_its_embedded_ledger_to_anvil() {
    a_site_goes_from_its_embedded_ledger_to(Nodes::Anvil);
}

#[test]
fn a_site_goes_from_its_embedded_ledger_to_three_nodes_of_geth() {
    a_site_goes_from_its_embedded_ledger_to(Nodes::Geth(3));
}

fn a_site_goes_from_its_embedded_ledger_to(nodes: Nodes) {
    let Some(consortium) = Consortium::found_on(nodes) else { return };
    let mut site = Bridge::start(&format!("{OPEN}{SITE}"));
    let [first, second, third] = [1, 2, 3].map(|number| subject(number).study_uid);
    let mut sent = store(&consortium.runtime, &site, 1);
    store(&consortium.runtime, &site, 2);
    let third_sent = store(&consortium.runtime, &site, 3);
    site.wait_final(3);

    // Of the first study a later version, sealed anew because two were shut out before it; one of them is let in again.
    for grantee in [Y, Z] {
        allow(&site, &first, grantee, &[]);
        site.json(&["revoke", &first, grantee]);
    }
    sent.extend(store_all(&consortium.runtime, &site, in_series(1, slices(1, 2, 32), '1', '2')));
    wait_for("a version with the late series", || version(&site, &first) == 2);
    site.wait_final(3);
    assert_eq!(epoch(&site, &first), 1);
    allow(&site, &first, Z, &[]);

    // In the second one an object was replaced; it is the patient's own, who shows previews to X.
    let second_sent = store_all(&consortium.runtime, &site, slices(2, 5, 48));
    wait_for("a version with the other objects", || version(&site, &second) == 2);
    site.wait_final(3);
    allow(&site, &second, X, &["--preview-only", "--until", "30d", "--purpose", "TREAT"]);
    let patient = PrivateKeySigner::random().address().to_string();
    site.json(&["claim", &second, "--owner", &patient]);

    // The third is on the ledger alone, and somebody was shut out since.
    allow(&site, &third, X, &[]);
    site.json(&["revoke", &third, X]);
    site.json(&["evict", &third]);

    let ids =
        |site: &Bridge| [&first, &second, &third].map(|uid| site.json(&["study", "show", uid])["study_id"].clone());
    let names = ids(&site);
    refused(&site, &["ledger", "promote"], "name the ledger to go to");
    let network = format!("{OPEN}{SITE}{}", consortium.ledger_lines(&consortium.url(0)));
    site.reconfigure(&network, Vec::new());
    site.write_config();
    refused(&site, &["ledger", "promote"], "another bridge runs");
    assert!(site.terminate().success());
    refused(&site, &["serve"], "ledger promote");

    // What is damaged can be mended as long as the ledger before is there.
    let file = files_below(&site.data().join("archive/objects")).into_iter().next().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let output = promoted_after_kills(&site, &[]);
    let [kept] = &set_aside(&site)[..] else { panic!("{}", words(&output)) };
    assert!(kept.join("chain.redb").is_file(), "the ledger before is kept");
    assert!(!site.data().join("ledger").exists());
    assert_eq!(objects_here(&site), sent.len() + second_sent.len() + third_sent.len(), "every object is here");
    refused(&site, &["ledger", "promote"], "no embedded ledger");

    site.run();
    consortium.admit(keyring(&site).source().address());
    site.wait_final(3);
    wait_for("what owners had said", || site.json(&["status"])["promotion"].is_null());
    assert_eq!(ids(&site), names, "studies keep their names");
    assert_eq!([&first, &second, &third].map(|uid| version(&site, uid)), [2, 2, 1]);
    let authorised = |sees: &str| ("authorised".to_owned(), Some(sees.to_owned()));
    assert_eq!(state(&site, &first, Z), authorised("full"));
    assert_eq!(state(&site, &first, Y), ("removed".to_owned(), None));
    assert_eq!(state(&site, &second, X), authorised("preview"));
    assert_eq!(state(&site, &third, X), ("removed".to_owned(), None));
    assert_eq!(site.json(&["study", "show", &second])["owner"], Value::from(patient));
    refused(&site, &["revoke", &second, X], "--unsigned");
    for (uid, sent) in [(&first, &sent), (&second, &second_sent), (&third, &third_sent)] {
        assert!(is_proven(&site, uid), "{uid}");
        site.json(&["evict", uid]);
        assert!(got(&consortium, &site, uid) == *sent, "study {uid} did not come back from the network");
    }

    // Whoever was shut out, on whichever ledger, has no key of what comes now: numbers of words begin anew here.
    // A promotion that was killed begins anew, and may so begin another epoch, which does no harm.
    assert!(epoch(&site, &third) >= 1, "shut out on the ledger before, after the last version");
    let before = epoch(&site, &first);
    site.json(&["revoke", &first, Z]);
    store_all(&consortium.runtime, &site, in_series(1, slices(1, 1, 32), '1', '3'));
    wait_for("a version with another late series", || version(&site, &first) == 3);
    site.wait_final(3);
    assert_eq!(epoch(&site, &first), before + 1, "shut out on the new ledger with a number that was used before");
    assert!(is_proven(&site, &first));
}

#[test]
fn two_sites_go_from_one_network_to_anvil() {
    two_sites_go_from_one_network_to(Nodes::Anvil);
}

#[test]
fn two_sites_go_from_one_network_to_two_nodes_of_geth() {
    two_sites_go_from_one_network_to(Nodes::Geth(2));
}

fn two_sites_go_from_one_network_to(nodes: Nodes) {
    let (before, Some(after)) = (Consortium::found(), Consortium::found_on(nodes)) else { return };
    let exchange = "[exchange]\nbind = \"127.0.0.1:0\"\nkey_per_study = true\n";
    let (mut a, mut b) = (before.join_with(exchange), before.join_with(exchange));
    let sent = store(&before.runtime, &a, 1);
    let others = store(&before.runtime, &b, 2);
    a.wait_final(1);
    b.wait_final(1);
    let [first, second] = [1, 2].map(|number| subject(number).study_uid);
    let account = |site: &Bridge| keyring(site).source().address().to_string();
    let of_b = account(&b);
    a.wait_for_key_of(&of_b);
    a.json(&["allow", &first, &of_b]);
    wait_for("the study at B", || before.find(b.dicom, Level::Study).contains(&first));
    assert_eq!(got(&before, &b, &first), sent);

    // B is there before A: what was granted to it is gone until A comes.
    let url = before.url(0);
    let lines = |node| format!("{OPEN}{}[publish]\nsettle_ms = 200\n{exchange}", after.ledger_lines(&after.url(node)));
    for (site, node) in [&mut b, &mut a].into_iter().zip(0..) {
        assert!(site.terminate().success());
        site.reconfigure(&lines(node), Vec::new());
        site.write_config();
        refused(site, &["ledger", "promote"], "no embedded ledger");
        refused(site, &["ledger", "promote", "--from", &after.url(0)], "a node of the ledger to come from");
        refused(site, &["ledger", "promote", "--from", &url], "--from-admin");
        let admin = before.admin.to_string();
        let done = site.json(&["ledger", "promote", "--from", &url, "--from-admin", &admin]);
        assert_eq!((&done["studies"], &done["objects"]), (&"1".into(), &"5".into()), "{done}");
        refused(site, &["ledger", "promote", "--from", &url, "--from-admin", &admin], "has left it already");
        site.run();
        after.admit(keyring(site).source().address());
    }
    a.wait_final(1);
    wait_for("B's own study", || is_proven(&b, &second));
    wait_for("the study at B again", || after.find(b.dicom, Level::Study).contains(&first));
    assert_eq!(got(&after, &b, &first), sent);
    assert_eq!(got(&after, &b, &second), others);
    assert!(!after.find(a.dicom, Level::Study).contains(&second), "nothing of B's was granted to A");
    a.json(&["revoke", &first, &of_b]);
    wait_for("the study to be gone at B", || !after.find(b.dicom, Level::Study).contains(&first));
}
