#![allow(clippy::unwrap_used)]
//! Strongest first: whatever fails, every acknowledged object is there byte for byte, and nothing else is.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use alloy::primitives::B256;
use futures::FutureExt as _;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use super::*;
use crate::config::{Config, Duplicates};
use crate::demo::phantom::{Phantom, Subject, ct_series};
use crate::payload::pieces::PieceMap;
use crate::study::ImageKind;

fn limits() -> config::Archive {
    let mut limits = Config::parse("", HashMap::new()).unwrap().archive;
    limits.free_bytes_min = 0;
    limits.intake_log_bytes = 1024 * 1024;
    limits
}

/// Every object synced in its own file.
fn without_log() -> config::Archive {
    config::Archive { intake_log_bytes: 0, ..limits() }
}

fn subject(study: u32) -> Subject {
    Subject {
        patient_name: "Phantom^Petra".into(),
        patient_id: "P1".into(),
        study_date: "20260102".into(),
        description: "Chest".into(),
        accession: "A1".into(),
        study_uid: format!("1.2.826.0.1.{study}"),
    }
}

fn slices(study: u32, count: u32) -> Vec<Phantom> {
    ct_series(&subject(study), count, 16, u64::from(study))
}

fn head(phantom: &Phantom) -> ObjectHead {
    ObjectHead {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        transfer_syntax: phantom.transfer_syntax,
        calling_ae: "CT1".into(),
    }
}

async fn store(archive: &Archive, phantom: &Phantom) -> Result<Accepted, ArchiveError> {
    let mut incoming = archive.begin(head(phantom))?;
    for part in phantom.bytes.chunks(100) {
        incoming.append(part)?;
    }
    incoming.finish().await
}

/// The data set as the archive holds it, checked against the index.
fn data_set(archive: &Archive, phantom: &Phantom) -> Option<Vec<u8>> {
    let stored = archive.instance(&phantom.sop_instance).unwrap()?;
    let mut file = Vec::new();
    archive.open_file(&stored).unwrap()?.read_to_end(&mut file).unwrap();
    assert_eq!(file.len() as u64, stored.file_bytes);
    assert_eq!(<[u8; 32]>::from(Sha256::digest(&file)), stored.file_sha256);
    Some(file[stored.meta_bytes as usize..].to_vec())
}

/// As if the study were published: an image for every object, seen sealed on the ledger.
async fn pretend_published(archive: &Archive, study: &Uid) {
    let map = PieceMap { pieces: 1, sealed_bytes: 10, piece_bytes: 10, root: B256::ZERO };
    let images: Vec<PlannedImage> = archive
        .instances_of(study)
        .unwrap()
        .iter()
        .map(|stored| PlannedImage {
            id: B256::from(stored.file_sha256),
            kind: ImageKind::Object,
            instance: Some(stored.id),
            subject: stored.sop_instance,
            series: None,
            epoch: 0,
            map,
            link: None,
            media_type: String::new(),
            plain: None,
        })
        .collect();
    let sealed = images.iter().map(|image| image.id).collect();
    let planned = PlannedVersion {
        study_id: B256::repeat_byte(1),
        version: 1,
        manifest: Vec::new(),
        manifest_image: B256::ZERO,
        images,
        at_source: Vec::new(),
    };
    archive.begin_version(study, planned, contracts::PieceMode::Calldata).await.unwrap();
    archive.record_seen(study, SeenOnLedger { sealed, finished: Some(1), ..SeenOnLedger::default() }).await.unwrap();
}

fn files_on_disk(root: &Path) -> usize {
    let shards = std::fs::read_dir(root.join("objects")).unwrap();
    shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
}

/// Files once everything that was acknowledged has one.
fn files_of(archive: &Archive) -> usize {
    write_behind::settle(&archive.0.log);
    files_on_disk(archive.root())
}

/// Waits until the log has all its segments, so that files of it come and go no more while a test copies them.
fn log_is_whole(archive: &Archive) {
    while archive.0.log.bytes() < archive.0.log.shared().segment_bytes * log::SEGMENTS {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Waits until objects go through the log.
fn log_is_ready(archive: &Archive) {
    while archive.0.log.object_bytes_max() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Fails the n-th operation that reaches the disk, and all after it.
struct FailingDisk {
    left: AtomicI64,
    kind: io::ErrorKind,
    real: RealDisk,
}

impl FailingDisk {
    fn new(operations: i64, kind: io::ErrorKind) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(operations), kind, real: RealDisk })
    }

    fn fail_from_now(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    fn step(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 { Err(self.kind.into()) } else { Ok(()) }
    }
}

struct FailingFile(Box<dyn DiskFile>, Arc<FailingDisk>);

impl Disk for Arc<FailingDisk> {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step()?;
        Ok(Box::new(FailingFile(self.real.create(path)?, self.clone())))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.real.create_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.real.sync_dir(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.real.remove(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.real.free_bytes(path)
    }
    fn log_file(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(FailingLog(self.real.log_file(path, bytes)?, self.clone())))
    }
    fn file_systems(&self, directories: &[&Path]) -> io::Result<Box<dyn FileSystems>> {
        Ok(Box::new(FailingSync(self.real.file_systems(directories)?, self.clone())))
    }
}

struct FailingLog(Box<dyn LogFile>, Arc<FailingDisk>);

impl LogFile for FailingLog {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        if let Err(error) = self.1.step() {
            self.0.write_at(&data[..data.len() / 2], at)?;
            return Err(error);
        }
        self.0.write_at(data, at)
    }
    fn read_at(&self, data: &mut [u8], at: u64) -> io::Result<()> {
        self.1.step()?;
        self.0.read_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
}

struct FailingSync(Box<dyn FileSystems>, Arc<FailingDisk>);

impl FileSystems for FailingSync {
    fn sync(&self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
}

impl DiskFile for FailingFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        if let Err(error) = self.1.step() {
            // As a full disk does: part of the data is written.
            self.0.append(&data[..data.len() / 2])?;
            return Err(error);
        }
        self.0.append(data)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_disk_fails_what_was_acknowledged_stays_and_nothing_else() {
    for (seed, kind) in (0..120).map(|n| (n, [io::ErrorKind::Other, io::ErrorKind::StorageFull][n as usize % 2])) {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let disk = FailingDisk::new(i64::MAX, kind);
        let with_log = seed % 4 < 2;
        let limits = if with_log { limits() } else { without_log() };
        let archive = Archive::open_on(dir.path(), limits.clone(), 10, Arc::new(disk.clone())).unwrap();
        if with_log {
            log_is_ready(&archive);
        }
        disk.left.store(rng.gen_range(0..140), Ordering::SeqCst);
        let phantoms = slices(1, 12);
        let mut tasks = Vec::new();
        for phantom in phantoms.clone() {
            let archive = archive.clone();
            tasks.push(tokio::spawn(async move { store(&archive, &phantom).await.is_ok() }));
        }
        let mut acknowledged = Vec::new();
        for task in tasks {
            acknowledged.push(task.await.unwrap());
        }
        archive.close().await;
        drop(archive);
        let archive = Archive::open(dir.path(), limits, 10).unwrap();
        let mut kept = 0;
        for (phantom, acknowledged) in phantoms.iter().zip(acknowledged) {
            let found = data_set(&archive, phantom);
            if acknowledged {
                assert_eq!(found.as_ref(), Some(&phantom.bytes), "seed {seed}: an acknowledged object is missing");
            }
            if let Some(found) = found {
                assert_eq!(found, phantom.bytes, "seed {seed}: an object is damaged");
                kept += 1;
            }
        }
        assert_eq!(files_of(&archive), kept, "seed {seed}: files that no row names");
        archive.close().await;
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_more_is_accepted_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let phantoms = slices(1, 2);
    // The directory of objects, then the file: create, meta, n appends, and its sync, which fails.
    let appends = phantoms[0].bytes.chunks(100).count() as i64;
    let disk = FailingDisk::new(1 + 1 + 1 + appends, io::ErrorKind::Other);
    let archive = Archive::open_on(dir.path(), without_log(), 10, Arc::new(disk.clone())).unwrap();
    assert!(matches!(store(&archive, &phantoms[0]).await, Err(ArchiveError::Io(..))));
    disk.left.store(i64::MAX, Ordering::SeqCst);
    assert!(matches!(store(&archive, &phantoms[1]).await, Err(ArchiveError::Poisoned)));
    archive.close().await;
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    assert_eq!(store(&archive, &phantoms[1]).await.unwrap(), Accepted::New);
}

#[tokio::test]
async fn after_a_failed_sync_of_the_log_nothing_more_is_accepted_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let phantoms = slices(1, 3);
    let disk = FailingDisk::new(i64::MAX, io::ErrorKind::Other);
    let archive = Archive::open_on(dir.path(), limits(), 10, Arc::new(disk.clone())).unwrap();
    log_is_ready(&archive);
    // The segment's page, the record's head, its bytes, its end; then the sync fails.
    disk.left.store(4, Ordering::SeqCst);
    assert!(matches!(store(&archive, &phantoms[0]).await, Err(ArchiveError::Io(..))));
    disk.left.store(i64::MAX, Ordering::SeqCst);
    assert!(matches!(store(&archive, &phantoms[1]).await, Err(ArchiveError::Poisoned)));
    archive.close().await;
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    assert_eq!(store(&archive, &phantoms[1]).await.unwrap(), Accepted::New);
}

/// The power goes after the acknowledgements: of the files and the rows any part may be lost or garbled, of the log nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_is_filed_again_whatever_became_of_files_and_rows() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let replace = config::Archive { duplicates: Duplicates::Replace, ..limits() };
        let archive = Archive::open(dir.path(), replace.clone(), 10).unwrap();
        log_is_whole(&archive);
        let before = slices(1, 3);
        for phantom in &before {
            store(&archive, phantom).await.unwrap();
        }
        // What a power cut may leave of the index: as it was at some moment, for its log is not synced at each commit.
        write_behind::settle(&archive.0.log);
        let index =
            ["index.sqlite", "index.sqlite-wal"].map(|name| (name, std::fs::read(dir.path().join(name)).unwrap()));
        let mut expected: BTreeMap<Uid, Vec<u8>> = BTreeMap::new();
        for mut phantom in slices(2, 6).into_iter().chain(before.clone()).chain(slices(2, 2)) {
            if rng.gen_bool(0.3) {
                *phantom.bytes.last_mut().unwrap() ^= 1;
            }
            store(&archive, &phantom).await.unwrap();
            if rng.gen_bool(0.3) {
                let stored = archive.instance(&phantom.sop_instance).unwrap().unwrap();
                drop(archive.open_file(&stored).unwrap().expect("it was just stored"));
            }
            expected.insert(phantom.sop_instance, phantom.bytes);
        }
        let lost = tempfile::tempdir().unwrap();
        copy_tree(dir.path(), lost.path());
        archive.close().await;
        if rng.gen_bool(0.5) {
            for (name, bytes) in &index {
                std::fs::write(lost.path().join(name), bytes).unwrap();
            }
        }
        for shard in std::fs::read_dir(lost.path().join("objects")).unwrap() {
            for file in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                match rng.gen_range(0..4) {
                    // Files that were durable before stay, so those of `before` are left alone unless they are in the log again.
                    _ if is_durable(&path, &before) => {}
                    0 => std::fs::remove_file(path).unwrap(),
                    1 => std::fs::write(path, []).unwrap(),
                    2 => std::fs::write(&path, vec![0; std::fs::metadata(&path).unwrap().len() as usize]).unwrap(),
                    _ => {}
                }
            }
        }
        for attempt in 0..2 {
            let archive = Archive::open(lost.path(), replace.clone(), 10).unwrap();
            for (uid, bytes) in &expected {
                let stored = archive.instance(uid).unwrap().unwrap_or_else(|| panic!("seed {seed}: {uid} is lost"));
                let mut file = Vec::new();
                archive.open_file(&stored).unwrap().expect("a file").read_to_end(&mut file).unwrap();
                assert!(file[stored.meta_bytes as usize..] == *bytes, "seed {seed}, start {attempt}: {uid} is damaged");
            }
            assert_eq!(archive.totals().unwrap().instances, expected.len() as u64);
            assert_eq!(files_on_disk(lost.path()), expected.len(), "seed {seed}: files that no row names");
            archive.close().await;
        }
    }
}

/// Whether a file is one of `objects` as they were first stored.
fn is_durable(path: &Path, objects: &[Phantom]) -> bool {
    let file = std::fs::read(path).unwrap();
    objects.iter().any(|phantom| file.ends_with(&phantom.bytes))
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// More than the log holds, while files are made behind it: segments are used again, and every object stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_used_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    log_is_ready(&archive);
    let mut tasks = Vec::new();
    for study in 0..8 {
        let archive = archive.clone();
        tasks.push(tokio::spawn(async move {
            let phantoms = ct_series(&subject(study), 60, 64, u64::from(study));
            for phantom in &phantoms {
                assert_eq!(store(&archive, phantom).await.unwrap(), Accepted::New);
                assert_eq!(data_set(&archive, phantom).as_ref(), Some(&phantom.bytes), "found as soon as acknowledged");
            }
            phantoms
        }));
    }
    let mut stored = Vec::new();
    for task in tasks {
        stored.extend(task.await.unwrap());
    }
    assert!(stored.iter().map(|phantom| phantom.bytes.len()).sum::<usize>() > 3 * limits().intake_log_bytes as usize);
    assert_eq!(files_of(&archive), stored.len());
    archive.close().await;
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    assert!(stored.iter().all(|phantom| data_set(&archive, phantom).as_ref() == Some(&phantom.bytes)));
}

#[tokio::test]
async fn an_object_evicted_or_replaced_in_the_log_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    log_is_whole(&archive);
    let phantom = &slices(1, 1)[0];
    store(&archive, phantom).await.unwrap();
    let study = Uid::new(&subject(1).study_uid).unwrap();
    pretend_published(&archive, &study).await;
    assert_eq!(archive.evict(&study, Vec::new()).await.unwrap().0, 1);
    let crashed = tempfile::tempdir().unwrap();
    copy_tree(dir.path(), crashed.path());
    assert_eq!(files_of(&archive), 0);
    let archive = Archive::open(crashed.path(), limits(), 10).unwrap();
    assert_eq!(files_of(&archive), 0);
    assert_eq!(archive.totals().unwrap().instances, 1);
}

#[tokio::test]
async fn the_same_object_again_is_a_success_without_a_second_copy() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    let phantom = &slices(1, 1)[0];
    assert_eq!(store(&archive, phantom).await.unwrap(), Accepted::New);
    let used = archive.totals().unwrap();
    assert_eq!(store(&archive, phantom).await.unwrap(), Accepted::Same);
    assert_eq!(archive.totals().unwrap(), used);
    // The second copy never had a file; that is nothing to warn about.
    archive.0.log.remove_file(&FileId { shard: 1, name: "00".into() }).unwrap();
    assert_eq!(files_of(&archive), 1);
}

#[tokio::test]
async fn another_object_with_a_known_uid_follows_the_policy() {
    for policy in [Duplicates::Reject, Duplicates::Replace, Duplicates::KeepBoth] {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::open(dir.path(), config::Archive { duplicates: policy, ..limits() }, 10).unwrap();
        let first = slices(1, 1).remove(0);
        let mut second = first.clone();
        *second.bytes.last_mut().unwrap() ^= 1;
        store(&archive, &first).await.unwrap();
        let answer = store(&archive, &second).await;
        let (current, files) = match policy {
            Duplicates::Reject => {
                assert!(matches!(answer, Err(ArchiveError::DuplicateDiffers)));
                (&first, 1)
            }
            Duplicates::Replace => (&second, 1),
            Duplicates::KeepBoth => (&second, 2),
        };
        assert_eq!(data_set(&archive, &first).as_ref(), Some(&current.bytes));
        assert_eq!(files_of(&archive), files);
        assert_eq!(archive.totals().unwrap().instances, 1);
        assert_eq!(archive.totals().unwrap().local_bytes, archive.totals().unwrap().bytes * files as u64);
    }
}

#[tokio::test]
async fn an_object_given_up_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    let phantom = &slices(1, 1)[0];
    let mut incoming = archive.begin(head(phantom)).unwrap();
    incoming.append(&phantom.bytes[..50]).unwrap();
    drop(incoming);
    assert_eq!(files_on_disk(dir.path()), 0);
    assert_eq!(archive.totals().unwrap(), Totals::default());
}

#[tokio::test]
async fn over_the_quota_an_object_is_refused_and_room_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let phantoms = slices(1, 3);
    let quota_bytes = phantoms[0].bytes.len() as u64 * 2 + 1500;
    let archive = Archive::open(dir.path(), config::Archive { quota_bytes, ..limits() }, 10).unwrap();
    store(&archive, &phantoms[0]).await.unwrap();
    store(&archive, &phantoms[1]).await.unwrap();
    assert!(matches!(store(&archive, &phantoms[2]).await, Err(ArchiveError::Full(_))));
    assert_eq!(files_of(&archive), 2);
    let study = Uid::new(&subject(1).study_uid).unwrap();
    assert_eq!(archive.evict(&study, Vec::new()).await.unwrap(), (0, 0), "a file that is the only copy must stay");
    pretend_published(&archive, &study).await;
    archive.evict(&study, Vec::new()).await.unwrap();
    assert_eq!(archive.totals().unwrap().local_bytes, 0);
    store(&archive, &phantoms[2]).await.unwrap();
}

#[tokio::test]
async fn what_waits_and_what_could_go_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 60_000).unwrap();
    assert_eq!((archive.queues().unwrap(), archive.evictable().unwrap()), Default::default());
    for phantom in slices(1, 3).iter().chain(&slices(2, 1)) {
        store(&archive, phantom).await.unwrap();
    }
    let queues = archive.queues().unwrap();
    assert_eq!((queues.receiving, queues.due, queues.publishing), (2, 0, 0), "{queues:?}");
    assert_eq!(archive.evictable().unwrap().bytes, 0, "the only copies");
    let study = Uid::new(&subject(1).study_uid).unwrap();
    pretend_published(&archive, &study).await;
    let evictable = archive.evictable().unwrap();
    let (files, bytes) = archive.evict(&study, Vec::new()).await.unwrap();
    assert_eq!((files, evictable.bytes, evictable.in_ipfs_bytes), (3, bytes, 0));
    assert_eq!(archive.evictable().unwrap().bytes, 0);
    let room = archive.room().unwrap();
    assert_eq!(room.used_bytes, archive.totals().unwrap().local_bytes);
    assert!(room.free_bytes > 0);
}

#[tokio::test]
async fn an_evicted_object_stays_in_the_index_and_takes_a_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    let phantoms = slices(1, 3);
    for phantom in &phantoms {
        store(&archive, phantom).await.unwrap();
    }
    let study = Uid::new(&subject(1).study_uid).unwrap();
    pretend_published(&archive, &study).await;
    assert_eq!(archive.evict(&study, Vec::new()).await.unwrap().0, 3);
    assert_eq!(files_of(&archive), 0);
    assert!(archive.instances_of(&study).unwrap().iter().all(|stored| stored.path.is_none()));
    assert_eq!(store(&archive, &phantoms[1]).await.unwrap(), Accepted::Same);
    assert_eq!(data_set(&archive, &phantoms[1]).as_ref(), Some(&phantoms[1].bytes));
    assert_eq!(archive.totals().unwrap().instances, 3);
}

#[tokio::test]
async fn an_object_that_is_not_what_was_announced_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    let phantom = &slices(1, 1)[0];
    let announced = ObjectHead { sop_instance: Uid::new("1.2.3").unwrap(), ..head(phantom) };
    let mut incoming = archive.begin(announced).unwrap();
    incoming.append(&phantom.bytes).unwrap();
    let refused = incoming.finish().await.unwrap_err();
    assert!(matches!(&refused, ArchiveError::Mismatch { .. }), "{refused}");
    let mut incoming = archive.begin(head(phantom)).unwrap();
    incoming.append(&[0xFF; 400]).unwrap();
    assert!(incoming.finish().await.is_err());
    assert_eq!(files_on_disk(dir.path()), 0);
}

#[tokio::test]
async fn what_came_by_a_clock_that_was_ahead_is_due_all_the_same() {
    const TEN_DAYS_MS: u64 = 10 * 86_400_000;
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), TEN_DAYS_MS).unwrap();
    store(&archive, &slices(1, 1).remove(0)).await.unwrap();
    assert!(archive.studies_due(9).unwrap().is_empty(), "its quiet time is not over");
    archive.close().await;
    drop(archive);
    // As if the clock had been ten days ahead.
    let archive = Archive::open(dir.path(), limits(), 1_000).unwrap();
    assert_eq!(archive.studies_due(9).unwrap().len(), 1);
}

/// Else a study would wait for the planner's sleep besides its own quiet time.
#[tokio::test]
async fn what_arrives_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 200).unwrap();
    assert_eq!(archive.settle(), std::time::Duration::from_millis(200));
    assert!(archive.arrival().now_or_never().is_none());
    for phantom in slices(1, 2) {
        store(&archive, &phantom).await.unwrap();
    }
    assert!(archive.arrival().now_or_never().is_some());
    assert!(archive.arrival().now_or_never().is_none(), "both were told at once");
}

/// A, then B with its UID, then A again: A's image is on the ledger already, and must carry the object that is current now.
/// Otherwise the study would be due for ever, a version after a version.
#[tokio::test]
async fn an_object_that_comes_back_after_it_was_replaced_takes_its_image_again() {
    let dir = tempfile::tempdir().unwrap();
    let replace = config::Archive { duplicates: Duplicates::Replace, ..limits() };
    let archive = Archive::open(dir.path(), replace, 0).unwrap();
    let study = Uid::new(&subject(1).study_uid).unwrap();
    let first = slices(1, 1).remove(0);
    let mut second = first.clone();
    *second.bytes.last_mut().unwrap() ^= 1;
    for phantom in [&first, &second, &first] {
        store(&archive, phantom).await.unwrap();
        assert!(archive.next_due_ms().unwrap().is_some(), "what is new is due");
        pretend_published(&archive, &study).await;
        assert_eq!(archive.next_due_ms().unwrap(), None, "what was published is due no more");
        let current = archive.instance(&phantom.sop_instance).unwrap().unwrap();
        assert!(archive.image_of_instance(current.id).unwrap().is_some());
    }
    assert_eq!(archive.evict(&study, Vec::new()).await.unwrap().0, 1);
}

/// The file of the only object, or nothing.
fn only_file(archive: &Archive) -> Option<std::path::PathBuf> {
    let shards = std::fs::read_dir(archive.root().join("objects")).unwrap();
    let mut files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    let first = files.next().map(|file| file.unwrap().path());
    assert!(files.next().is_none(), "more than one file");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_names_a_restored_file_before_it_is_durable() {
    use crate::payload::container::Unsealed;
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new(i64::MAX, io::ErrorKind::Other);
    let archive = Archive::open_on(dir.path(), limits(), 0, Arc::new(disk.clone())).unwrap();
    let phantom = slices(1, 1).remove(0);
    store(&archive, &phantom).await.unwrap();
    let before = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut archive.open_file(&before).unwrap().unwrap(), &mut bytes).unwrap();
    archive.forget_file(&before).await.unwrap();
    let evicted = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    assert_eq!((evicted.path.as_ref(), only_file(&archive)), (None, None));
    assert_eq!(archive.totals().unwrap().local_bytes, 0);

    let restorer = archive.restorer().unwrap();
    let right = Unsealed { plain_bytes: bytes.len() as u64, plain_sha256: Sha256::digest(&bytes).into() };
    let filled = |bytes: &[u8]| {
        let mut restoring = restorer.begin(&evicted).unwrap();
        restoring.write_all(bytes).unwrap();
        restoring
    };
    drop(filled(&bytes));
    let wrong = Unsealed { plain_sha256: [0; 32], ..right };
    assert!(matches!(filled(&bytes).finish(&wrong), Err(ArchiveError::Corrupt(_))));
    assert!(matches!(filled(&bytes[1..]).finish(&right), Err(ArchiveError::Corrupt(_))));
    assert_eq!((only_file(&archive), archive.totals().unwrap().local_bytes), (None, 0));

    let restored = Arc::new(filled(&bytes).finish(&right).unwrap());
    restorer.file(std::slice::from_ref(&restored)).await.unwrap();
    let path = restored.stored().path.clone();
    drop(restored);
    let filed = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    assert_eq!((&filed.path, &filed.path), (&path, &only_file(&archive)));
    assert_eq!(archive.totals().unwrap().local_bytes, bytes.len() as u64);
    archive.forget_file(&filed).await.unwrap();

    // Served at once, but a crash or a failing sync leaves no row that names it.
    let restored = Arc::new(filled(&bytes).finish(&right).unwrap());
    assert_eq!(std::fs::read(restored.stored().path.as_ref().unwrap()).unwrap(), bytes);
    assert_eq!(archive.instance(&phantom.sop_instance).unwrap().unwrap().path, None);
    disk.fail_from_now();
    assert!(restorer.file(std::slice::from_ref(&restored)).await.is_err());
    assert_eq!(archive.instance(&phantom.sop_instance).unwrap().unwrap().path, None);
    drop(restored);
    assert_eq!((only_file(&archive), archive.totals().unwrap().local_bytes), (None, 0));
}

/// A modality that sends again what was damaged here must not be told that it is here.
#[tokio::test]
async fn an_object_sent_again_takes_the_place_of_a_damaged_copy() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(dir.path(), limits(), 0).unwrap();
    let phantom = slices(1, 1).remove(0);
    store(&archive, &phantom).await.unwrap();
    super::write_behind::settle(&archive.0.log);
    let path = archive.instance(&phantom.sop_instance).unwrap().unwrap().path.unwrap();
    let (sound, used) = (std::fs::read(&path).unwrap(), archive.totals().unwrap());
    for damage in [sound[..sound.len() - 1].to_vec(), {
        let mut bad = sound.clone();
        bad[700] ^= 1;
        bad
    }] {
        let path = archive.instance(&phantom.sop_instance).unwrap().unwrap().path.unwrap();
        std::fs::write(&path, damage).unwrap();
        assert_eq!(store(&archive, &phantom).await.unwrap(), Accepted::Same);
        let mut bytes = Vec::new();
        let stored = archive.instance(&phantom.sop_instance).unwrap().unwrap();
        io::Read::read_to_end(&mut archive.open_file(&stored).unwrap().unwrap(), &mut bytes).unwrap();
        assert!(bytes == sound);
        assert_eq!(archive.totals().unwrap(), used);
        super::write_behind::settle(&archive.0.log);
        assert_eq!(files_of(&archive), 1);
    }
    let path = archive.instance(&phantom.sop_instance).unwrap().unwrap().path.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store(&archive, &phantom).await.unwrap(), Accepted::Same);
    super::write_behind::settle(&archive.0.log);
    assert_eq!(files_of(&archive), 1);
}
