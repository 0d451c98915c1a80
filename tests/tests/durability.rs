//! kill -9 at random moments: what was acknowledged is there, intact, and reaches the ledger once.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use tests::Bridge;
use tests::dicom::{connect, slices, store};

const ASSOCIATIONS: u32 = 8;
const ROUNDS: u32 = 50;
/// Longest wait for the acknowledgements of a round.
const SLOW: Duration = Duration::from_secs(5);

#[test]
fn what_was_acknowledged_survives_kill_9_and_reaches_the_ledger() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    // A key derivation made for attackers takes a second a start; this test starts fifty times.
    let mut bridge = Bridge::start("[publish]\nsettle_ms = 100\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let acknowledged: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    for round in 0..ROUNDS {
        let address = bridge.dicom;
        let patience = Duration::from_millis(rng.gen_range(5..400));
        // On a slow machine that may be over before anything was acknowledged.
        let wanted = acknowledged.lock().unwrap().len() + rng.gen_range(0..16);
        let burst = runtime.spawn({
            let acknowledged = acknowledged.clone();
            async move {
                let mut tasks = tokio::task::JoinSet::new();
                for association in 0..ASSOCIATIONS {
                    let acknowledged = acknowledged.clone();
                    tasks.spawn(async move {
                        let study = 1000 + round * ASSOCIATIONS + association;
                        let Some(mut open) = connect(address, "BURST").await else { return };
                        for phantom in slices(study, 40, 96) {
                            let status = store(&mut open, &phantom).await;
                            if status != Some(dicom_scp::Status::SUCCESS) {
                                return;
                            }
                            acknowledged.lock().unwrap().insert(phantom.sop_instance.to_string(), phantom.bytes);
                        }
                    });
                }
                tasks.join_all().await;
            }
        });
        runtime.block_on(async { tokio::time::sleep(patience).await });
        let begun = Instant::now();
        while acknowledged.lock().unwrap().len() < wanted && !burst.is_finished() && begun.elapsed() < SLOW {
            std::thread::sleep(Duration::from_millis(1));
        }
        bridge.kill();
        runtime.block_on(burst).unwrap();
        bridge.run();
    }
    let acknowledged = acknowledged.lock().unwrap();
    assert!(
        acknowledged.len() > 200,
        "only {} objects were acknowledged: the bursts are too short",
        acknowledged.len()
    );

    let rows = bridge.json(&["studies"]);
    let rows = bridge.wait_final(rows.as_array().unwrap().len());
    let mut proven = std::collections::BTreeSet::new();
    for row in rows.as_array().unwrap() {
        assert_eq!(row["pieces"], row["pieces_seen"], "{row}");
        for verdict in bridge.json(&["verify", row["uid"].as_str().unwrap()]).as_array().unwrap() {
            assert_eq!(verdict["proven"], true, "seed {seed}: {verdict}");
            assert_eq!(verdict["file"], "same", "seed {seed}: {verdict}");
            proven.insert(verdict["sop_instance"].as_str().unwrap().to_owned());
        }
    }
    let missing: Vec<_> = acknowledged.keys().filter(|uid| !proven.contains(*uid)).collect();
    assert!(missing.is_empty(), "seed {seed}: acknowledged and lost: {missing:?}");

    // The bytes, not only their digests: each file's data set is what was sent.
    let files = tests::files_below(&bridge.dir.path().join("data/archive/objects"));
    assert_eq!(files.len(), proven.len(), "files that no row names");
    let mut compared = 0;
    for path in files {
        let uid = bridge::site::describe_file(&path).unwrap().0.to_string();
        if let Some(sent) = acknowledged.get(&uid) {
            assert!(tests::dicom::data_set(&path) == *sent, "seed {seed}: {uid} is damaged");
            compared += 1;
        }
    }
    assert_eq!(compared, acknowledged.len());
}

#[test]
fn sigterm_finishes_what_is_in_hand() {
    let mut bridge = Bridge::start("[publish]\nsettle_ms = 100\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let phantoms = slices(1, 3, 64);
    runtime.block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in &phantoms {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    assert!(bridge.terminate().success(), "{}", bridge.log());
    bridge.run();
    assert_eq!(bridge.wait_final(1)[0]["instances"], 3);
}
