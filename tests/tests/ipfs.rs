//! Objects in IPFS, and a node that is away, loses what it had, serves other bytes, lies to a site that was let in, or does not let us in. kubo
//! itself is the node, and the judge of the names that the bridge gives.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use dicom_scp::matching::Level;
use tests::consortium::{Consortium, OPEN, keyring, objects_here, store_from};
use tests::dicom::{get, slices, subject};
use tests::kubo::Swarm;
use tests::lying::{Lie, LyingIpfs};
use tests::{Bridge, wait_for};
use tokio::runtime::Runtime;

const IN_IPFS: &str = "[publish]\nsettle_ms = 200\ncustody = \"ipfs\"\n";

/// A site that keeps everything in its IPFS node.
fn site(swarm: &Swarm) -> Bridge {
    Bridge::start(&format!("{OPEN}{IN_IPFS}{}", swarm.lines(0)))
}

fn got(runtime: &Runtime, site: &Bridge, study: u32) -> BTreeMap<String, Vec<u8>> {
    let got = runtime.block_on(get(site.dicom, &subject(study).study_uid));
    if got.failed.is_empty() { got.data_sets } else { BTreeMap::new() }
}

/// What `verify` says of a study's objects, all in one way.
fn verdict(site: &Bridge, study: u32) -> (bool, String) {
    // It ends with an error when something is not as it was.
    let output = site.cli(&["--json", "verify", &subject(study).study_uid]);
    let verdicts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = verdicts.as_array().unwrap();
    let proven = verdicts.iter().all(|verdict| verdict["proven"] == true);
    (proven, verdicts.iter().map(|verdict| verdict["ledger"].as_str().unwrap()).collect::<Vec<_>>().join("; "))
}

#[test]
fn what_is_evicted_comes_back_from_ipfs_and_an_erased_study_leaves_it() {
    let Some(swarm) = Swarm::start(1) else { return };
    let (runtime, site) = (Runtime::new().unwrap(), site(&swarm));
    let sent = store_from(&runtime, &site, "CT1", slices(1, 3, 2048));
    site.wait_final(1);
    assert_eq!(swarm.pins(0).len(), sent.len());
    assert!(swarm.blocks(0).len() > sent.len(), "several blocks each");
    let uid = subject(1).study_uid;
    site.wait_filed(sent.len() as u64);
    assert_eq!(site.json(&["evict", &uid])["files"], sent.len());
    assert_eq!(got(&runtime, &site, 1), sent);
    assert_eq!(verdict(&site, 1), (true, vec!["same"; sent.len()].join("; ")));

    // Another study stays as it is.
    let other = store_from(&runtime, &site, "CT1", slices(2, 2, 64));
    site.wait_final(2);
    site.json(&["erase", &uid, "--yes"]);
    wait_for("the erased study to leave IPFS", || swarm.blocks(0).len() == other.len());
    assert_eq!(got(&runtime, &site, 2), other);
    assert!(verdict(&site, 2).0);
}

#[test]
fn a_node_that_is_away_is_waited_for_and_one_that_lost_something_gets_it_again() {
    let Some(mut swarm) = Swarm::start(1) else { return };
    let (runtime, mut site) = (Runtime::new().unwrap(), site(&swarm));
    swarm.kill(0);
    let sent = store_from(&runtime, &site, "CT1", slices(1, 2, 64));
    let row = |site: &Bridge| site.json(&["studies"])[0].clone();
    wait_for("the study to wait for the node", || {
        let row = row(&site);
        row["state"] == "viewable" && row["trouble"].as_str().is_some_and(|trouble| trouble.contains("ipfs.api_url"))
    });
    assert_eq!(got(&runtime, &site, 1), sent, "what was taken in is served");
    assert!(site.json(&["status"])["ipfs"]["trouble"].as_str().unwrap().contains("does not answer"));
    // Neither end of a bridge loses it.
    site.kill();
    swarm.run(0);
    site.run();
    site.wait_final(1);
    let pins = swarm.pins(0);
    assert_eq!(pins.len(), sent.len());
    assert_eq!(site.json(&["status"])["ipfs"]["version"], "0.39.0");

    // Somebody lets it go, and kubo collects garbage.
    for pin in &pins {
        assert!(swarm.ipfs(0, &["pin", "rm", pin]).status.success());
    }
    assert!(swarm.ipfs(0, &["repo", "gc"]).status.success());
    wait_for("what was lost to be put there again", || swarm.pins(0) == pins);
    assert!(site.log().contains("lost an object"));
    site.wait_filed(sent.len() as u64);
    site.json(&["evict", &subject(1).study_uid]);
    // There is no other copy now; what is merely unpinned is pinned again.
    for pin in &pins {
        assert!(swarm.ipfs(0, &["pin", "rm", pin]).status.success());
    }
    wait_for("what was let go to be pinned again", || swarm.pins(0) == pins);
    assert_eq!(got(&runtime, &site, 1), sent);
}

#[test]
fn a_node_that_is_killed_while_it_takes_objects_has_all_of_them_in_the_end() {
    let Some(mut swarm) = Swarm::start(1) else { return };
    let (runtime, site) = (Runtime::new().unwrap(), site(&swarm));
    let sent = store_from(&runtime, &site, "CT1", slices(1, 6, 2048));
    let is_final = || site.json(&["studies"])[0]["state"] == "final";
    let mut kills = 0;
    while kills < 4 {
        // At once, and after every few blocks that it has written.
        let (before, finished) = (swarm.blocks(0).len(), is_final());
        if finished {
            break;
        }
        wait_for("the next blocks", || swarm.blocks(0).len() > before || is_final());
        swarm.kill(0);
        swarm.run(0);
        kills += 1;
    }
    assert!(kills > 0, "it was never killed");
    site.wait_final(1);
    assert_eq!(swarm.pins(0).len(), sent.len());
    assert!(swarm.ipfs(0, &["repo", "verify"]).status.success(), "a block is damaged");
    site.wait_filed(sent.len() as u64);
    site.json(&["evict", &subject(1).study_uid]);
    assert_eq!(got(&runtime, &site, 1), sent);
    assert!(verdict(&site, 1).0);
}

#[test]
fn other_bytes_than_were_put_there_are_handed_to_nobody_and_no_file_is_given_up_for_them() {
    let Some(swarm) = Swarm::start(1) else { return };
    let (runtime, site) = (Runtime::new().unwrap(), site(&swarm));
    let sent = store_from(&runtime, &site, "CT1", slices(1, 2, 64));
    site.wait_final(1);
    site.wait_filed(sent.len() as u64);
    let uid = subject(1).study_uid;
    let blocks: Vec<(PathBuf, Vec<u8>)> =
        swarm.blocks(0).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert_eq!(blocks.len(), sent.len());
    let spoil = || {
        for (path, bytes) in &blocks {
            let mut other = bytes.clone();
            *other.last_mut().unwrap() ^= 1;
            std::fs::write(path, other).unwrap();
        }
    };
    spoil();
    let refused = site.cli(&["evict", &uid]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("other bytes"), "{refused:?}");
    site.wait_filed(sent.len() as u64);
    // What was found so is put there again.
    wait_for("the node to have the right bytes", || verdict(&site, 1).0);
    spoil();
    let (proven, said) = verdict(&site, 1);
    assert!(!proven && said.contains("other bytes"), "{said}");

    let mend = || blocks.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    mend();
    site.json(&["evict", &uid]);
    spoil();
    assert!(got(&runtime, &site, 1).is_empty());
    mend();
    assert_eq!(got(&runtime, &site, 1), sent);
}

#[test]
fn a_node_that_does_not_let_us_in_is_named() {
    let Some(swarm) = Swarm::start(1) else { return };
    let runtime = Runtime::new().unwrap();
    let wrong = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&wrong, "not the token\n").unwrap();
    let lines =
        format!("[ipfs]\napi_url = \"http://127.0.0.1:{}\"\ntoken_file = {:?}\n", swarm.api_port(0), wrong.path());
    let site = Bridge::start(&format!("{OPEN}{IN_IPFS}{lines}"));
    store_from(&runtime, &site, "CT1", slices(1, 1, 64));
    wait_for("the study to say so", || {
        site.json(&["studies"])[0]["trouble"].as_str().is_some_and(|trouble| trouble.contains("ipfs.token_file"))
    });
}

#[test]
fn a_site_that_was_let_in_hands_out_nothing_that_its_node_lies_about() {
    let Some(swarm) = Swarm::start(2) else { return };
    let consortium = Consortium::found();
    let custody = "[exchange]\nbind = \"127.0.0.1:0\"\n[[custody]]\nkeep = \"ipfs\"\ncalling_ae = [\"US1\"]\n";
    let a = consortium.join_with(&format!("{custody}{}", swarm.lines(0)));
    let lying = LyingIpfs::before(swarm.api_port(1));
    let b = consortium.join_with(&swarm.lines_at(1, lying.port));
    let sent = store_from(&consortium.runtime, &a, "US1", slices(1, 3, 1024));
    a.wait_final(1);

    lying.set(Lie::Altered);
    let (source, uid) = (keyring(&a), dicom_scp::Uid::new(&subject(1).study_uid).unwrap());
    let keys = source.study(&uid).unwrap().unwrap();
    let study = bridge::study::study_id(&keys.salt, uid.as_str());
    consortium.allow(&source.owner(keys.owner_index).unwrap(), study, &keyring(&b), 2, 1);
    wait_for("the study at B", || consortium.find(b.dicom, Level::Study).contains(uid.as_str()));
    for lie in [Lie::Altered, Lie::Truncated, Lie::Longer, Lie::Empty] {
        lying.set(lie);
        let (told, said) = (lying.told(), b.log().len());
        let got = consortium.runtime.block_on(get(b.dicom, uid.as_str()));
        assert!(got.data_sets.is_empty() && !got.failed.is_empty(), "{lie:?}: {:?}", got.failed);
        assert!(lying.told() > told, "{lie:?}: it was not asked");
        assert!(b.log()[said..].contains("the IPFS node has other bytes under baf"), "{lie:?}: {}", &b.log()[said..]);
    }
    // Nor does its node keep, on its word, what was never seen.
    assert!(swarm.pins(1).is_empty() && objects_here(&b) == 0);
    lying.set(Lie::None);
    wait_for("the objects at B", || got(&consortium.runtime, &b, 1) == sent);
    wait_for("B's node to keep them", || swarm.pins(1) == swarm.pins(0));
}

#[test]
fn a_node_with_another_key_or_none_gets_nothing_of_the_swarm() {
    let Some(swarm) = Swarm::start(1) else { return };
    let Some(mut outsider) = Swarm::start(1) else { return };
    let (runtime, site) = (Runtime::new().unwrap(), site(&swarm));
    store_from(&runtime, &site, "CT1", slices(1, 1, 64));
    site.wait_final(1);
    let (address, cid) = (swarm.address(0), swarm.pins(0).remove(0));
    let is_let_in = |outsider: &Swarm| outsider.ipfs(0, &["swarm", "connect", &address]).status.success();
    let fetched = |outsider: &Swarm, wait: &str| outsider.ipfs(0, &["cat", &format!("--timeout={wait}"), &cid]);
    let has_no_peers = |swarm: &Swarm| swarm.ipfs(0, &["swarm", "peers"]).stdout.is_empty();
    let refused = |outsider: &Swarm| {
        assert!(!is_let_in(outsider) && has_no_peers(outsider) && has_no_peers(&swarm));
        let fetched = fetched(outsider, "3s");
        assert!(!fetched.status.success() && fetched.stdout.is_empty());
    };
    let key = std::fs::read(swarm.key_file(0)).unwrap();
    assert_ne!(std::fs::read(outsider.key_file(0)).unwrap(), key);
    refused(&outsider);
    outsider.kill(0);
    std::fs::remove_file(outsider.key_file(0)).unwrap();
    outsider.run_bare(0);
    refused(&outsider);

    // It is the key alone that keeps it out.
    outsider.kill(0);
    std::fs::write(outsider.key_file(0), key).unwrap();
    outsider.run_bare(0);
    assert!(is_let_in(&outsider));
    let fetched = fetched(&outsider, "30s");
    assert!(fetched.status.success());
    assert_eq!(fetched.stdout, swarm.ipfs(0, &["cat", &cid]).stdout);
}
