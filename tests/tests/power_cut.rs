//! A power cut: the file system forgets everything that was not synced. What was acknowledged is there afterwards.
//!
//! Needs root and a loop device: an ext4 image is mounted, the bridge writes to it under load, and the file system is shut
//! down without flushing its journal (FS_IOC_SHUTDOWN), which is what a power cut leaves on a disk that honours flushes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use tests::dicom::{burst, connect, get_study, slices, store};
use tests::faults::Volume;
use tests::peers::{dcmqrscp, free_port, orthanc};
use tests::{Bridge, PATIENCE, have};
use tokio::runtime::Runtime;

const ROUNDS: u32 = 12;
/// Rounds beside other people's servers, which are there for scale.
const PEER_ROUNDS: u32 = 3;
const ASSOCIATIONS: u32 = 8;
/// Longest wait for the acknowledgements of a round.
const SLOW: Duration = Duration::from_secs(20);

/// Stores until the power is cut; the answer is what was acknowledged by then.
///
/// An answer that arrives while the shutdown is under way proves nothing: ext4 checks for it when fsync begins, and an fsync
/// caught between that check and its wait for the journal finds its transaction gone and reports success. A machine without
/// power sends no such answer.
fn burst_and_cut(
    runtime: &Runtime,
    volume: &Volume,
    (address, called): (SocketAddr, &'static str),
    first: u32,
    (patience, wanted): (Duration, usize),
) -> BTreeMap<String, Vec<u8>> {
    let (cut, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let burst = runtime.spawn(burst(address, called, first..first + ASSOCIATIONS, cut.clone(), count.clone()));
    let begun = Instant::now();
    std::thread::sleep(patience);
    // On a slow disk that may be over before anything was acknowledged.
    while count.load(Ordering::SeqCst) < wanted && !burst.is_finished() && begun.elapsed() < SLOW {
        std::thread::sleep(Duration::from_millis(1));
    }
    cut.store(true, Ordering::SeqCst);
    volume.cut();
    // Whoever waits for a disk that is gone gets its error now; a server that answers nothing is given up on with the burst.
    runtime.block_on(async { tokio::time::timeout(PATIENCE, burst).await }).unwrap().unwrap()
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let outside = tempfile::tempdir().unwrap();
    let Some(mut volume) = Volume::new(outside.path()) else { return };
    let mut bridge =
        Bridge::start_on(&volume.mount.join("data"), "[archive]\nfree_bytes_min = 0\n[publish]\nsettle_ms = 100\n");
    let runtime = Runtime::new().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        let first = 5000 + round * ASSOCIATIONS;
        let patience = (Duration::from_millis(rng.gen_range(5..400)), rng.gen_range(0..16));
        acknowledged.extend(burst_and_cut(&runtime, &volume, (bridge.dicom, "PACSBRIDGE"), first, patience));
        bridge.kill();
        volume.unmount();
        assert!(volume.mount());
        bridge.run();
    }
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

const FULL_DISK: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"get\"]\n[archive]\nfree_bytes_min = 0\n[publish]\nenabled = false\n";

/// Stores until the disk is full; nothing is half stored, what was accepted stays, and room makes it work again.
#[test]
fn a_full_disk_refuses_with_a700_and_harms_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let Some(mut volume) = Volume::new(outside.path()) else { return };
    let mut bridge = Bridge::start_on(&volume.mount.join("data"), FULL_DISK);
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
    let read = runtime.block_on(get_study(bridge.dicom, "PACSBRIDGE", 1));
    assert_eq!(read.len(), stored, "objects cannot be read while the disk is full");
    assert!(
        phantoms.iter().filter_map(|p| Some((p, read.get(p.sop_instance.as_str())?))).all(|(p, got)| p.bytes == *got)
    );

    std::fs::remove_file(ballast).unwrap();
    bridge.wait_filed(stored as u64);
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

/// A server that is started on a volume again after every cut.
struct Contestant {
    name: &'static str,
    called: &'static str,
    volume: Volume,
    running: Running,
    acknowledged: BTreeMap<String, Vec<u8>>,
}

enum Running {
    Ours(Box<Bridge>),
    /// How to start it in a directory on a port, and what runs now.
    Other(fn(&Path, u16) -> Command, Option<(Child, u16)>),
}

impl Contestant {
    fn other(name: &'static str, called: &'static str, dir: &Path, command: fn(&Path, u16) -> Command) -> Option<Self> {
        let volume = Volume::new(&dir.join(name))?;
        let running = Running::Other(command, None);
        Some(Self { name, called, volume, running, acknowledged: BTreeMap::new() })
    }

    /// Where it listens; `None` when it does not start on what the cut has left.
    fn start(&mut self) -> Option<SocketAddr> {
        match &mut self.running {
            Running::Ours(bridge) => {
                bridge.run();
                Some(bridge.dicom)
            }
            Running::Other(command, running) => {
                let port = free_port();
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let mut command = command(&self.volume.mount, port);
                let (child, _) = running.insert((own_group(&mut command).spawn().unwrap(), port));
                let mut ended = false;
                tests::wait_for("a server to listen or to give up", || {
                    ended = child.try_wait().unwrap().is_some();
                    ended || std::net::TcpStream::connect(address).is_ok()
                });
                (!ended).then_some(address)
            }
        }
    }

    fn kill(&mut self) {
        match &mut self.running {
            Running::Ours(bridge) => bridge.stop(),
            Running::Other(_, running) => {
                let Some((mut child, _)) = running.take() else { return };
                // It has children of its own: the whole group, which is led by the process that we started.
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        self.kill();
    }
}

fn own_group(command: &mut Command) -> &mut Command {
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// The same power cuts under other people's servers, for scale. Lost is what was acknowledged and C-GET does not bring afterwards.
#[test]
fn what_others_lose_in_the_same_power_cuts() {
    let outside = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::new(&outside.path().join("ours")) else { return };
    let toml = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\"]\n[archive]\nfree_bytes_min = 0\n\
                [publish]\nsettle_ms = 100\n";
    let data = volume.mount.join("data");
    let bridge = Bridge::prepare(tempfile::tempdir().unwrap(), data, toml, Vec::new());
    let running = Running::Ours(Box::new(bridge));
    let ours = Contestant { name: "PACS Bridge", called: "PACSBRIDGE", volume, running, acknowledged: BTreeMap::new() };
    let mut all = vec![ours];
    if have("Orthanc") {
        all.extend(Contestant::other("Orthanc", "ORTHANC", outside.path(), |dir, port| {
            orthanc(dir, port, &serde_json::json!({}))
        }));
    }
    if have("dcmqrscp") {
        all.extend(Contestant::other("dcmqrscp", "QRSCP", outside.path(), dcmqrscp));
    }
    let runtime = Runtime::new().unwrap();
    let mut rng = rand::rngs::StdRng::from_entropy();
    for round in 0..PEER_ROUNDS {
        let patience = (Duration::from_millis(rng.gen_range(300..500)), 20);
        for one in &mut all {
            let Some(address) = one.start() else { continue };
            if round == 0 {
                // Without a cut everything comes back, or the count at the end would say nothing.
                let (called, go_on) = (one.called, Arc::new(AtomicBool::new(false)));
                let stored = runtime.block_on(burst(address, called, 6999..7000, go_on, Arc::default()));
                let back = runtime.block_on(get_study(address, called, 6999));
                assert!(stored.len() == 40 && stored.keys().eq(back.keys()), "{} does not serve its objects", one.name);
            }
            let first = 7000 + round * ASSOCIATIONS;
            one.acknowledged.extend(burst_and_cut(&runtime, &one.volume, (address, one.called), first, patience));
            one.kill();
            one.volume.unmount();
            assert!(one.volume.mount());
        }
    }
    println!("{:<12} {:>12} {:>6}", "server", "acknowledged", "lost");
    for one in &mut all {
        let back = one.start().map_or_else(BTreeMap::new, |address| {
            let studies = 7000..7000 + PEER_ROUNDS * ASSOCIATIONS;
            runtime.block_on(async {
                let mut back = BTreeMap::new();
                for study in studies {
                    back.extend(get_study(address, one.called, study).await);
                }
                back
            })
        });
        let lost: Vec<_> = one.acknowledged.keys().filter(|uid| !back.contains_key(*uid)).collect();
        let share = 100.0 * lost.len() as f64 / one.acknowledged.len().max(1) as f64;
        println!("{:<12} {:>12} {:>6} {share:>5.1}%", one.name, one.acknowledged.len(), lost.len());
        if matches!(one.running, Running::Ours(_)) {
            assert!(one.acknowledged.len() > 20, "only {} objects were acknowledged", one.acknowledged.len());
            assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
            assert!(one.acknowledged.iter().all(|(uid, sent)| back[uid] == *sent), "an object is damaged");
        }
        one.kill();
        one.volume.unmount();
    }
}
