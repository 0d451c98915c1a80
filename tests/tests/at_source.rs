//! Custody at the source: nothing of an object's bytes is on the ledger, and another site's viewer gets them all the same, from the source,
//! when somebody asks for them; proven, cached, and not after the grant.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::B256;
use alloy::signers::local::PrivateKeySigner;
use contracts::messages::salted;
use dicom_scp::matching::Level;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tests::consortium::{Consortium, keyring, objects_here, store, store_all};
use tests::dicom::{get, in_series, slices, subject};
use tests::vault::Vault;
use tests::{Bridge, files_below, wait_for};

const AT_SOURCE: &str = "custody = \"at-source\"\n[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\n";

/// A study of a site: its name on the ledger, its salt, and who owns it.
fn study_of(site: &Bridge, number: u32) -> (B256, B256, PrivateKeySigner) {
    let (keys, uid) = (keyring(site), dicom_scp::Uid::new(&subject(number).study_uid).unwrap());
    let study = keys.study(&uid).unwrap().unwrap();
    let name = bridge::study::study_id(&study.salt, uid.as_str());
    (name, B256::from(*study.salt.as_bytes()), keys.owner(study.owner_index).unwrap())
}

/// How often a site answered a request with documents.
fn documents_sent(site: &Bridge) -> usize {
    site.log().matches("sends a document").count()
}

/// Waits until a site has filed what it fetched.
fn wait_filed(site: &Bridge, objects: usize) {
    wait_for("what was fetched to be filed", || {
        let rows = site.json(&["studies"]);
        objects_here(site) == objects && rows[0]["local"] == objects
    });
}

fn all_proven(site: &Bridge, uid: &str, objects: usize) {
    let verdicts = site.json(&["verify", uid]);
    let proven = |verdict: &Value| verdict["proven"] == true && verdict["ledger"] == "at source";
    let verdicts = verdicts.as_array().unwrap();
    assert!(verdicts.len() == objects && verdicts.iter().all(proven), "{verdicts:?}");
}

/// Turns a bit of an object's file, and says whose.
fn damage(site: &Bridge) {
    let file = files_below(&site.data().join("archive/objects")).pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// SHA-256 of data sets by their objects.
type Digests = BTreeMap<String, String>;

fn digests(objects: BTreeMap<String, Vec<u8>>) -> Digests {
    objects.into_iter().map(|(uid, bytes)| (uid, hex::encode(Sha256::digest(bytes)))).collect()
}

/// What a viewer gets, and what is refused it.
fn got(consortium: &Consortium, site: &Bridge, uid: &str) -> (Digests, BTreeSet<String>) {
    let got = consortium.runtime.block_on(get(site.dicom, uid));
    (digests(got.data_sets), got.failed.into_iter().collect())
}

#[test]
fn what_a_source_keeps_comes_from_there_when_somebody_asks_for_it() {
    let consortium = Consortium::found();
    let (mut a, mut b, c) = (consortium.join_with(AT_SOURCE), consortium.join(false), consortium.join(false));
    let sent = digests(store(&consortium.runtime, &a, 1));
    a.wait_final(1);
    let uid = subject(1).study_uid;
    let report = a.json(&["study", "show", &uid]);
    let kinds: BTreeSet<_> =
        report["images"].as_array().unwrap().iter().map(|image| image["kind"].as_str().unwrap()).collect();
    assert!(!kinds.contains("object") && kinds.contains("manifest") && kinds.contains("preview"), "{report}");
    all_proven(&a, &uid, sent.len());
    assert_eq!(a.json(&["evict", &uid])["files"], 0, "the only copies stay");

    let (study, _, owner) = study_of(&a, 1);
    let grantee = keyring(&b);
    consortium.allow(&owner, study, &grantee, 2, 1);
    wait_for("the granted study at B", || consortium.find(b.dicom, Level::Study).contains(&uid));
    assert_eq!(consortium.find(b.dicom, Level::Image), sent.keys().cloned().collect());
    assert_eq!((objects_here(&b), documents_sent(&a)), (0, 0), "it is found before anything was asked of A");

    assert_eq!(got(&consortium, &b, &uid), (sent.clone(), BTreeSet::new()));
    assert_eq!(documents_sent(&a), 1, "one request brings the study:\n{}", a.log());
    wait_filed(&b, sent.len());
    a.kill();
    b.kill();
    b.run();
    assert_eq!(got(&consortium, &b, &uid), (sent.clone(), BTreeSet::new()), "it is cached");
    all_proven(&b, &uid, sent.len());

    // Without the source and without copies there is nothing to give, and that is said.
    assert_eq!(b.json(&["evict", &uid])["files"], sent.len());
    assert_eq!(got(&consortium, &b, &uid), (BTreeMap::new(), sent.keys().cloned().collect()));
    a.run();
    wait_for("A to be found again", || got(&consortium, &b, &uid) == (sent.clone(), BTreeSet::new()));

    // A copy that rotted is fetched again.
    wait_filed(&b, sent.len());
    damage(&b);
    b.kill();
    b.run();
    assert_eq!(got(&consortium, &b, &uid), (sent.clone(), BTreeSet::new()));

    // What rotted at the source is not handed out by anybody; the rest is.
    wait_filed(&b, sent.len());
    b.json(&["evict", &uid]);
    a.kill();
    a.run();
    damage(&a);
    a.kill();
    a.run();
    let (data_sets, failed) = got(&consortium, &b, &uid);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(data_sets.len() == sent.len() - 1 && data_sets.iter().all(|(uid, bytes)| sent[uid] == *bytes));

    assert!(
        consortium.find(c.dicom, Level::Study).is_empty() && got(&consortium, &c, &uid).0.is_empty(),
        "C has nothing"
    );
    consortium.revoke(&owner, study, grantee.source().address(), 2);
    wait_for("the study to be gone at B", || consortium.find(b.dicom, Level::Study).is_empty());
    wait_for("the copies at B to be removed", || objects_here(&b) == 0);
    assert!(got(&consortium, &b, &uid).0.is_empty());
}

/// A remote signer signs no SHA-256, so a site that has one asks with a key of its own, which is bound to the account. One that was unbound
/// is not used again.
#[test]
fn a_site_with_a_remote_signer_asks_with_a_key_that_is_bound_to_its_account() {
    let (consortium, vault) = (Consortium::found(), Vault::open());
    let (a, mut b) = (consortium.join_with(AT_SOURCE), consortium.join_signed_for(&vault, ""));
    let sent = digests(store(&consortium.runtime, &a, 1));
    a.wait_final(1);
    let uid = subject(1).study_uid;
    let all = (sent.clone(), BTreeSet::new());
    wait_for("B's account to be known to A as a source", || {
        a.cli(&["allow", &uid, &vault.account.to_string()]).status.success()
    });
    wait_for("the objects at B", || got(&consortium, &b, &uid) == all);
    wait_filed(&b, sent.len());

    let bound = |site: &Bridge| -> BTreeSet<String> {
        let rows = site.json(&["keys", "p256", "list"]);
        let rows = rows.as_array().unwrap().iter().filter(|row| row["state"] == "bound");
        rows.map(|row| row["key"].as_str().unwrap().to_owned()).collect()
    };
    let first = bound(&b);
    assert_eq!(first.len(), 1, "{first:?}");
    b.kill();
    b.run();
    assert_eq!(bound(&b), first, "the key that is bound serves on");
    b.json(&["keys", "p256", "unbind", first.first().unwrap()]);
    b.json(&["evict", &uid]);
    wait_for("the key to be good for nothing", || bound(&b).is_empty());
    assert!(got(&consortium, &b, &uid).0.is_empty(), "it asks with a key that is unbound");
    b.kill();
    b.run();
    wait_for("the objects at B, with another key", || got(&consortium, &b, &uid) == all);
    assert!(bound(&b).len() == 1 && bound(&b) != first, "{:?}", bound(&b));
}

/// Who may see one series gets that from the source, and no more.
#[test]
fn a_series_that_is_granted_comes_from_its_source_alone() {
    let consortium = Consortium::found();
    let (a, b) = (consortium.join_with(AT_SOURCE), consortium.join(false));
    let runtime = &consortium.runtime;
    let first = slices(1, 4, 64);
    let second = in_series(1, first.clone(), '1', '2');
    let (first, second) = (digests(store_all(runtime, &a, first)), digests(store_all(runtime, &a, second)));
    a.wait_final(1);
    let uid = subject(1).study_uid;
    let (study, salt, owner) = study_of(&a, 1);
    let grantee = keyring(&b);
    consortium.allow_part(&owner, study, salted(salt, format!("{uid}.1").as_bytes()), &grantee, 2, 1);
    wait_for("the granted series at B", || consortium.images(b.dicom, &format!("{uid}.1")).len() == first.len());
    assert_eq!(got(&consortium, &b, &uid), (first.clone(), BTreeSet::new()));
    wait_filed(&b, first.len());
    assert!(!a.log().contains("ActionNotSupported"));

    // The whole study: only what is not here is asked for.
    consortium.allow(&owner, study, &grantee, 2, 2);
    wait_for("the whole study at B", || consortium.find(b.dicom, Level::Series).len() == 2);
    let both: BTreeMap<_, _> = first.into_iter().chain(second).collect();
    assert_eq!(got(&consortium, &b, &uid), (both, BTreeSet::new()));
}
