//! Syncs that fail below the real binary: an object whose sync failed is never acknowledged, the kernel's "success" afterwards is
//! not believed, everything else goes on, and after a restart on a sound disk everything acknowledged is there.
//!
//! Where root allows, power is cut after the fault, so that what was never written is really gone.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bridge::demo::phantom::Phantom;
use dicom_scp::Status;
use tests::dicom::{connect, data_set, slices, store, subject};
use tests::faults::{After, EIO, ENOSPC, FailingSync, SyncFault, Volume};
use tests::peers::{dcmtk, run};
use tests::{Bridge, files_below, have};

const ARCHIVE_ONLY: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\"]\n[archive]\nfree_bytes_min = 0\n\
                            [publish]\nsettle_ms = 100\nenabled = false\n";
const PUBLISHING: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\"]\n[archive]\nfree_bytes_min = 0\n\
                          [publish]\nsettle_ms = 100\n";
const ASSOCIATIONS: u32 = 4;
/// Pixels a side: objects that are made durable together with others, and objects of 5 MB, each synced in a file of its own.
const SMALL: u16 = 64;
const LARGE: u16 = 1_600;
/// How long stores may go on being accepted before the fault is met: what is synced behind the acknowledgement has its own pace.
const REACHED_WITHIN: Duration = Duration::from_secs(120);

/// A site below which syncs can fail.
struct Site {
    bridge: Bridge,
    shim: FailingSync,
    volume: Option<Volume>,
    acknowledged: BTreeMap<String, Vec<u8>>,
    next_study: u32,
    /// Unmounted before it is removed.
    _outside: tempfile::TempDir,
}

impl Site {
    fn start(toml: &str) -> Option<Self> {
        let outside = tempfile::tempdir().unwrap();
        let shim = FailingSync::new(outside.path())?;
        let volume = Volume::new(outside.path());
        let data = volume.as_ref().map_or_else(|| outside.path().join("data"), |volume| volume.mount.join("data"));
        let dir = tempfile::tempdir().unwrap();
        let mut bridge = Bridge::prepare(dir, data, toml, shim.environment());
        bridge.run();
        Some(Self { bridge, shim, volume, acknowledged: BTreeMap::new(), next_study: 1, _outside: outside })
    }

    fn data(&self) -> PathBuf {
        self.bridge.data().to_owned()
    }

    /// Stores a new study over each of several associations at once; returns the statuses in each one's order.
    fn burst(&mut self, objects: u32) -> Vec<Vec<u16>> {
        self.burst_of(objects, SMALL)
    }

    fn burst_of(&mut self, objects: u32, side: u16) -> Vec<Vec<u16>> {
        let first = self.next_study;
        self.next_study += ASSOCIATIONS;
        let address = self.bridge.dicom;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let all = runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for study in first..first + ASSOCIATIONS {
                tasks.spawn(async move {
                    let mut open = connect(address, "CT1").await.expect("associations are accepted throughout");
                    let mut answers: Vec<(Phantom, u16)> = Vec::new();
                    for phantom in slices(study, objects, side) {
                        let status = store(&mut open, &phantom).await.expect("every request is answered");
                        answers.push((phantom, status.0));
                    }
                    open.release().await.expect("the association ends in order");
                    answers
                });
            }
            tasks.join_all().await
        });
        let mut statuses = Vec::new();
        for answers in all {
            statuses.push(answers.iter().map(|(_, status)| *status).collect());
            for (phantom, status) in answers {
                if status == Status::SUCCESS.0 {
                    self.acknowledged.insert(phantom.sop_instance.to_string(), phantom.bytes);
                }
            }
        }
        statuses
    }

    /// C-ECHO, C-FIND and C-GET of study 1, which was stored before the fault.
    fn other_services_go_on(&self, objects: usize) {
        let me = format!("PACSBRIDGE@{}", self.bridge.dicom);
        // Nothing is handed out unrecorded; unlike the archive, the audit log is tried again.
        let trouble = || self.bridge.json(&["status"])["audit"]["trouble"].clone();
        tests::wait_for("the audit log to be written again", || trouble().is_null());
        assert_eq!(self.bridge.json(&["echo", &me])["status"], "0000H");
        let found = self.bridge.json(&["find", &me, &format!("StudyInstanceUID={}", subject(1).study_uid)]);
        assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
        if !have("getscu") {
            return;
        }
        let got = tempfile::tempdir().unwrap();
        let (host, port) = (self.bridge.dicom.ip().to_string(), self.bridge.dicom.port().to_string());
        let key = format!("StudyInstanceUID={}", subject(1).study_uid);
        run(dcmtk("getscu").args(["-S", "+B", "-aec", "PACSBRIDGE", "-od"]).arg(got.path()).args([
            &host,
            &port,
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            &key,
        ]));
        let files = files_below(got.path());
        assert_eq!(files.len(), objects);
        for path in files {
            let uid = bridge::site::describe_file(&path).unwrap().0.to_string();
            assert!(data_set(&path) == self.acknowledged[&uid], "C-GET brought other bytes of {uid}");
        }
    }

    /// Ends the daemon, with the power where possible, and starts it on a sound disk.
    fn restart_on_a_sound_disk(&mut self) {
        if let Some(volume) = &mut self.volume {
            volume.cut();
            self.bridge.kill();
            volume.unmount();
            assert!(volume.mount(), "the volume cannot be mounted again");
        } else {
            self.bridge.kill();
        }
        self.bridge.reconfigure(PUBLISHING, Vec::new());
        self.bridge.run();
    }

    /// Everything acknowledged is there, byte for byte, and reaches the ledger; and the site takes new objects.
    fn everything_acknowledged_is_there(&mut self) {
        let fresh = self.burst(2);
        assert!(fresh.iter().flatten().all(|status| *status == 0), "{fresh:04X?}\n{}", self.bridge.log());
        let studies = self.bridge.json(&["studies"]).as_array().unwrap().len();
        let rows = self.bridge.wait_final(studies);
        let mut proven = BTreeSet::new();
        for row in rows.as_array().unwrap() {
            for verdict in self.bridge.json(&["verify", row["uid"].as_str().unwrap()]).as_array().unwrap() {
                assert_eq!((&verdict["proven"], &verdict["file"]), (&true.into(), &"same".into()), "{verdict}");
                proven.insert(verdict["sop_instance"].as_str().unwrap().to_owned());
            }
        }
        let lost: Vec<_> = self.acknowledged.keys().filter(|uid| !proven.contains(*uid)).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let mut compared = 0;
        for path in files_below(&self.data().join("archive/objects")) {
            let uid = bridge::site::describe_file(&path).unwrap().0.to_string();
            if let Some(sent) = self.acknowledged.get(&uid) {
                assert!(data_set(&path) == *sent, "{uid} is damaged");
                compared += 1;
            }
        }
        assert_eq!(compared, self.acknowledged.len());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The daemon holds the volume.
        self.bridge.stop();
    }
}

fn refused(statuses: &[Vec<u16>]) -> bool {
    statuses.iter().flatten().any(|status| *status != 0)
}

fn only_out_of_resources_or_processing_failure(statuses: &[Vec<u16>]) {
    let allowed = [0, Status::OUT_OF_RESOURCES.0, Status::PROCESSING_FAILURE.0];
    assert!(statuses.iter().flatten().all(|status| allowed.contains(status)), "{statuses:04X?}");
}

fn nothing_is_acknowledged_any_more(site: &mut Site) {
    for side in [SMALL, LARGE] {
        let after = site.burst_of(2, side);
        only_out_of_resources_or_processing_failure(&after);
        let accepted = after.iter().flatten().filter(|status| **status == 0).count();
        assert_eq!(accepted, 0, "acknowledged after a failed sync: {after:04X?}\n{}", site.shim.hits());
    }
    let log = site.bridge.log();
    assert!(log.contains("ERROR") && log.contains("disk failure"), "the log does not say why:\n{log}");
}

/// One sync, or every sync, of the archive fails with EIO: from then on nothing is acknowledged until the restart.
fn the_archive_stops(fault: SyncFault, side: u16) {
    let Some(mut site) = Site::start(ARCHIVE_ONLY) else { return };
    let before = site.burst(3);
    assert!(!refused(&before), "{before:04X?}");
    site.shim.order(fault);
    let begun = Instant::now();
    loop {
        let statuses = site.burst_of(if side == LARGE { 1 } else { 6 }, side);
        only_out_of_resources_or_processing_failure(&statuses);
        let answered_well = statuses.iter().flatten().filter(|status| **status == 0).count();
        if fault.after == After::Fails {
            assert_eq!(answered_well, 0, "acknowledged although no sync works");
        }
        if refused(&statuses) {
            break;
        }
        let hits = site.shim.hits();
        assert!(begun.elapsed() < REACHED_WITHIN, "no store met the fault; these syncs failed: {hits:?}");
    }
    nothing_is_acknowledged_any_more(&mut site);
    site.shim.withdraw();
    site.other_services_go_on(3);
    site.restart_on_a_sound_disk();
    site.everything_acknowledged_is_there();
}

#[test]
fn every_sync_fails() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Fails, kind: "any", path: "/data/" }, SMALL);
}

#[test]
fn one_sync_of_the_archive_fails_and_later_ones_lie() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Lies, kind: "any", path: "/archive/" }, SMALL);
}

#[test]
fn one_sync_of_the_archive_fails_and_later_ones_work() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Works, kind: "any", path: "/archive/" }, SMALL);
}

#[test]
fn the_sync_of_an_object_file_fails() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Lies, kind: "file", path: "/archive/objects/" }, LARGE);
}

#[test]
fn the_sync_of_an_object_directory_fails() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Lies, kind: "dir", path: "/archive/objects/" }, LARGE);
}

#[test]
fn the_sync_of_the_index_fails() {
    the_archive_stops(SyncFault { errno: EIO, after: After::Lies, kind: "file", path: "/index.sqlite" }, LARGE);
}

/// What was acknowledged by way of the intake log gets its file behind that, and one sync of the whole file system makes it durable
/// there. That system call does not go through the C library: strace makes it fail.
#[test]
fn the_sync_behind_the_acknowledgement_fails() {
    if !have("strace") {
        return;
    }
    let Some(mut site) = Site::start(ARCHIVE_ONLY) else { return };
    assert!(!refused(&site.burst(3)));
    let seen = site.bridge.dir.path().join("strace");
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-q", "-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO", "-p", &site.bridge.pid().to_string()])
        .arg("-o")
        .arg(&seen)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut ended = false;
    let injected = || std::fs::read_to_string(&seen).unwrap_or_default().contains("INJECTED");
    tests::wait_for("files to be synced behind the acknowledgement", || {
        ended = strace.try_wait().unwrap().is_some();
        if !ended && !injected() && !refused(&site.burst(1)) {
            // It is synced when nothing has come for a moment.
            std::thread::sleep(Duration::from_secs(3));
        }
        ended || injected()
    });
    if ended {
        tests::skip("permission to trace a process");
        return;
    }
    let begun = Instant::now();
    while !refused(&site.burst(1)) {
        assert!(begun.elapsed() < REACHED_WITHIN, "stores go on after the failure");
    }
    nothing_is_acknowledged_any_more(&mut site);
    let end = std::process::Command::new("kill").args(["-TERM", &strace.id().to_string()]).status().unwrap();
    assert!(end.success());
    strace.wait().unwrap();
    site.other_services_go_on(3);
    site.restart_on_a_sound_disk();
    site.everything_acknowledged_is_there();
}

/// No room where the data was to go: A700 while it lasts. Whether the archive recovers by itself or waits for the restart, what
/// it acknowledged is there.
#[test]
fn syncs_find_no_room() {
    let Some(mut site) = Site::start(ARCHIVE_ONLY) else { return };
    assert!(!refused(&site.burst(3)));
    site.shim.order(SyncFault { errno: ENOSPC, after: After::Fails, kind: "any", path: "/archive/" });
    let full = site.burst(5);
    assert!(full.iter().flatten().all(|status| *status == Status::OUT_OF_RESOURCES.0), "{full:04X?}");
    assert!(!site.shim.hits().is_empty());
    site.other_services_go_on(3);
    site.shim.withdraw();
    only_out_of_resources_or_processing_failure(&site.burst(5));
    site.restart_on_a_sound_disk();
    site.everything_acknowledged_is_there();
}

/// The ledger's own disk fails: intake never waits for the ledger, and everything reaches it after the restart.
#[test]
fn the_ledgers_syncs_fail_and_intake_goes_on() {
    let Some(mut site) = Site::start(PUBLISHING) else { return };
    assert!(!refused(&site.burst(3)));
    site.shim.order(SyncFault { errno: EIO, after: After::Lies, kind: "file", path: "/data/ledger/" });
    assert!(!refused(&site.burst(3)));
    tests::wait_for("the ledger to meet the fault", || !site.shim.hits().is_empty());
    assert!(!refused(&site.burst(3)), "{}", site.bridge.log());
    site.other_services_go_on(3);
    site.restart_on_a_sound_disk();
    site.everything_acknowledged_is_there();
}
