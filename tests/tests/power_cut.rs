//! A power cut: the file system forgets everything that was not synced. What was acknowledged is there afterwards.
//!
//! Needs root and a loop device: an ext4 image is mounted, the bridge writes to it under load, and the file system is shut
//! down without flushing its journal (FS_IOC_SHUTDOWN), which is what a power cut leaves on a disk that honours flushes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use tests::Bridge;
use tests::dicom::{connect, slices, store};
use tests::faults::Volume;

const ROUNDS: u32 = 12;
const ASSOCIATIONS: u32 = 8;

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let outside = tempfile::tempdir().unwrap();
    let Some(mut volume) = Volume::new(outside.path()) else { return };
    let mut bridge =
        Bridge::start_on(&volume.mount.join("data"), "[archive]\nfree_bytes_min = 0\n[publish]\nsettle_ms = 100\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let acknowledged: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    for round in 0..ROUNDS {
        let address = bridge.dicom;
        // An answer that arrives while the shutdown is under way proves nothing: ext4 checks for it when fsync begins, and an
        // fsync caught between that check and its wait for the journal finds its transaction gone and reports success. A
        // machine without power sends no such answer.
        let cut = Arc::new(AtomicBool::new(false));
        let burst = runtime.spawn({
            let (acknowledged, cut) = (acknowledged.clone(), cut.clone());
            async move {
                let mut tasks = tokio::task::JoinSet::new();
                for association in 0..ASSOCIATIONS {
                    let (acknowledged, cut) = (acknowledged.clone(), cut.clone());
                    tasks.spawn(async move {
                        let Some(mut open) = connect(address, "BURST").await else { return };
                        for phantom in slices(5000 + round * ASSOCIATIONS + association, 40, 96) {
                            if store(&mut open, &phantom).await != Some(dicom_scp::Status::SUCCESS) {
                                return;
                            }
                            if cut.load(Ordering::SeqCst) {
                                return;
                            }
                            acknowledged.lock().unwrap().insert(phantom.sop_instance.to_string(), phantom.bytes);
                        }
                    });
                }
                tasks.join_all().await;
            }
        });
        let patience = Duration::from_millis(rng.gen_range(5..400));
        runtime.block_on(async { tokio::time::sleep(patience).await });
        cut.store(true, Ordering::SeqCst);
        volume.cut();
        bridge.kill();
        runtime.block_on(burst).unwrap();
        volume.unmount();
        assert!(volume.mount());
        bridge.run();
    }
    let acknowledged = acknowledged.lock().unwrap();
    assert!(acknowledged.len() > 50, "only {} objects were acknowledged", acknowledged.len());
    let rows = bridge.json(&["studies"]);
    let rows = bridge.wait_final(rows.as_array().unwrap().len());
    let mut proven = std::collections::BTreeSet::new();
    for row in rows.as_array().unwrap() {
        for verdict in bridge.json(&["verify", row["uid"].as_str().unwrap()]).as_array().unwrap() {
            assert_eq!(verdict["proven"], true, "seed {seed}: {verdict}");
            proven.insert(verdict["sop_instance"].as_str().unwrap().to_owned());
        }
    }
    let missing: Vec<_> = acknowledged.keys().filter(|uid| !proven.contains(*uid)).collect();
    assert!(missing.is_empty(), "seed {seed}: acknowledged and lost: {missing:?}");
    for path in tests::files_below(&volume.mount.join("data/archive/objects")) {
        let uid = bridge::site::describe_file(&path).unwrap().0.to_string();
        if let Some(sent) = acknowledged.get(&uid) {
            assert!(tests::dicom::data_set(&path) == *sent, "seed {seed}: {uid} is damaged");
        }
    }
    bridge.kill();
    volume.unmount();
}

/// Stores until the disk is full; nothing is half stored, what was accepted stays, and room makes it work again.
#[test]
fn a_full_disk_refuses_with_a700_and_harms_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let Some(mut volume) = Volume::new(outside.path()) else { return };
    let mut bridge =
        Bridge::start_on(&volume.mount.join("data"), "[archive]\nfree_bytes_min = 0\n[publish]\nenabled = false\n");
    // Room for a few objects more.
    let ballast = volume.mount.join("ballast");
    let fill = Command::new("sh")
        .args([
            "-c",
            "free=$(df --output=avail -k \"$1\" | tail -1); fallocate -l $((free - 3000))K \"$1/ballast\"",
            "sh",
        ])
        .arg(&volume.mount)
        .status()
        .unwrap();
    assert!(fill.success());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let phantoms = slices(1, 60, 256);
    let statuses = runtime.block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        let mut statuses = Vec::new();
        for phantom in &phantoms {
            statuses.push(store(&mut open, phantom).await.expect("the association goes on").0);
        }
        statuses
    });
    let stored = statuses.iter().filter(|status| **status == 0).count();
    assert!(stored > 0 && stored < 60, "{statuses:04X?}");
    assert!(statuses.iter().all(|status| matches!(status, 0 | 0xA700)), "{statuses:04X?}");
    assert_eq!(bridge.json(&["status"])["instances"], stored);
    assert_eq!(tests::files_below(&volume.mount.join("data/archive/objects")).len(), stored, "half stored objects");

    std::fs::remove_file(ballast).unwrap();
    let again = runtime.block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        let mut statuses = Vec::new();
        for phantom in &phantoms {
            statuses.push(store(&mut open, phantom).await.unwrap().0);
        }
        statuses
    });
    assert!(again.iter().all(|status| *status == 0), "{again:04X?}\n{}", bridge.log());
    bridge.kill();
    volume.unmount();
}
