#![allow(clippy::unwrap_used)]
//! Strongest first: whatever fails, every acknowledged object is there byte for byte, and nothing else is.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use alloy::primitives::B256;
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
    limits
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
    let file = std::fs::read(stored.path.as_ref()?).unwrap();
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
            epoch: 0,
            map,
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
    };
    archive.begin_version(study, planned, contracts::PieceMode::Calldata).await.unwrap();
    archive.record_seen(study, SeenOnLedger { sealed, finished: Some(1), ..SeenOnLedger::default() }).await.unwrap();
}

fn files_on_disk(root: &Path) -> usize {
    let shards = std::fs::read_dir(root.join("objects")).unwrap();
    shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
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
    for (seed, kind) in (0..60).map(|n| (n, [io::ErrorKind::Other, io::ErrorKind::StorageFull][n as usize % 2])) {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let disk = FailingDisk::new(rng.gen_range(2..140), kind);
        let archive = Archive::open_on(dir.path(), limits(), 10, Arc::new(disk)).unwrap();
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
        let archive = Archive::open(dir.path(), limits(), 10).unwrap();
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
        assert_eq!(files_on_disk(dir.path()), kept, "seed {seed}: files that no row names");
        archive.close().await;
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_more_is_accepted_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let phantoms = slices(1, 2);
    // create_dir syncs the parent, then: create, meta, n appends, sync.
    let appends = phantoms[0].bytes.chunks(100).count() as i64;
    let disk = FailingDisk::new(1 + 1 + 1 + appends, io::ErrorKind::Other);
    let archive = Archive::open_on(dir.path(), limits(), 10, Arc::new(disk.clone())).unwrap();
    assert!(matches!(store(&archive, &phantoms[0]).await, Err(ArchiveError::Io(..))));
    disk.left.store(i64::MAX, Ordering::SeqCst);
    assert!(matches!(store(&archive, &phantoms[1]).await, Err(ArchiveError::Poisoned)));
    archive.close().await;
    let archive = Archive::open(dir.path(), limits(), 10).unwrap();
    assert_eq!(store(&archive, &phantoms[1]).await.unwrap(), Accepted::New);
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
    assert_eq!(files_on_disk(dir.path()), 1);
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
        assert_eq!(files_on_disk(dir.path()), files);
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
    assert_eq!(files_on_disk(dir.path()), 2);
    let study = Uid::new(&subject(1).study_uid).unwrap();
    assert_eq!(archive.evict(&study).await.unwrap(), (0, 0), "a file that is the only copy must stay");
    pretend_published(&archive, &study).await;
    archive.evict(&study).await.unwrap();
    assert_eq!(archive.totals().unwrap().local_bytes, 0);
    store(&archive, &phantoms[2]).await.unwrap();
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
    assert_eq!(archive.evict(&study).await.unwrap().0, 3);
    assert_eq!(files_on_disk(dir.path()), 0);
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
    assert_eq!(archive.evict(&study).await.unwrap().0, 1);
}
