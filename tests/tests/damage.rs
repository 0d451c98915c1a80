//! A disk that returns other bytes than it was given: nobody is sent them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use bridge::demo::phantom::{Phantom, ct_series};
use tests::dicom::{connect, get, slices, store, subject};
use tests::{Bridge, files_below, wait_for};
use tokio::runtime::Runtime;

const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n";

fn store_all(runtime: &Runtime, bridge: &Bridge, phantoms: &[Phantom]) -> BTreeMap<String, Vec<u8>> {
    runtime.block_on(async {
        let mut association = connect(bridge.dicom, "SENDER").await.unwrap();
        for phantom in phantoms {
            assert_eq!(store(&mut association, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        association.release().await.unwrap();
    });
    phantoms.iter().map(|p| (p.sop_instance.to_string(), p.bytes.clone())).collect()
}

/// The files of the archive by SOP Instance UID, once all are there.
fn files(bridge: &Bridge, count: usize) -> BTreeMap<String, PathBuf> {
    let objects = bridge.dir.path().join("data/archive/objects");
    wait_for("all files to be there", || files_below(&objects).len() == count);
    let named = files_below(&objects).into_iter();
    named.map(|path| (bridge::site::describe_file(&path).unwrap().0.to_string(), path)).collect()
}

/// Turns one bit over.
fn damage(path: &PathBuf, at_from_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - 1 - at_from_end;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_file_is_replaced_by_the_ledgers_copy_before_anything_is_sent() {
    let runtime = Runtime::new().unwrap();
    let bridge = Bridge::start(&format!("{OPEN}[publish]\nsettle_ms = 100\n"));
    // Small ones are read into memory, the large one from its file.
    let mut phantoms = slices(1, 4, 64);
    let large = ct_series(&subject(1), 5, 1500, 7).pop().unwrap();
    assert!(large.bytes.len() > 4 << 20);
    phantoms.push(large);
    let sent = store_all(&runtime, &bridge, &phantoms);
    let uid = subject(1).study_uid;
    bridge.wait_final(1);

    // In order: nothing was read before; everything was; everything came from the ledger.
    for round in 0..3 {
        let files = files(&bridge, sent.len());
        let paths: Vec<&PathBuf> = phantoms.iter().map(|p| &files[p.sop_instance.as_str()]).collect();
        damage(paths[0], 0);
        damage(paths[1], 1000);
        std::fs::remove_file(paths[2]).unwrap();
        damage(paths[4], 3_000_000);
        let got = runtime.block_on(get(bridge.dicom, &uid));
        assert!(got.failed.is_empty(), "round {round}: {:?}", got.failed);
        assert!(got.data_sets == sent, "round {round}: other bytes were sent");
        let verdicts = bridge.json(&["verify", &uid]);
        assert!(verdicts.as_array().unwrap().iter().all(|v| v["proven"] == true), "{verdicts}");
        // Settles what was fetched, and finds that every object still has one file.
        wait_for("the fetched files to be filed", || bridge.json(&["studies"])[0]["local"] == sent.len());
        assert_eq!(runtime.block_on(get(bridge.dicom, &uid)).data_sets, sent);
    }
    assert!(bridge.log().contains("has other bytes than were received"), "{}", bridge.log());
}

#[test]
fn a_damaged_only_copy_is_not_sent_and_the_others_are() {
    let runtime = Runtime::new().unwrap();
    let bridge = Bridge::start(&format!("{OPEN}[publish]\nenabled = false\n"));
    let phantoms = slices(2, 4, 64);
    let mut sent = store_all(&runtime, &bridge, &phantoms);
    let victim = phantoms[1].sop_instance.to_string();
    damage(&files(&bridge, 4)[&victim], 500);
    let got = runtime.block_on(get(bridge.dicom, &subject(2).study_uid));
    sent.remove(&victim);
    assert_eq!(got.failed, [victim.as_str()]);
    assert!(got.data_sets == sent);
    assert_eq!(files(&bridge, 4).len(), 4, "what is left of it stays where it is");
}
