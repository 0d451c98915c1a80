#![allow(clippy::unwrap_used)]
//! Strongest first: a crash at any point brings nothing of an erased study back, and takes nothing else along.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::config::Config;
use crate::demo::phantom::{Phantom, Subject, ct_series};

fn limits() -> config::Archive {
    let mut limits = Config::parse("", HashMap::new()).unwrap().archive;
    limits.free_bytes_min = 0;
    limits.intake_log_bytes = 1024 * 1024;
    limits
}

fn subject(number: u32) -> Subject {
    Subject {
        patient_name: format!("Erased^Erika{number}Z"),
        patient_id: format!("ERIKA-{number}-ID"),
        study_date: "20260102".into(),
        description: "Chest".into(),
        accession: format!("ACC{number}"),
        study_uid: format!("1.2.826.0.1.55.{number}.9"),
    }
}

fn uid(number: u32) -> Uid {
    Uid::new(&subject(number).study_uid).unwrap()
}

fn slices(study: u32) -> Vec<Phantom> {
    ct_series(&subject(study), 6, 16, u64::from(study))
}

async fn store(archive: &Archive, phantoms: &[Phantom]) {
    for phantom in phantoms {
        let head = ObjectHead {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: phantom.transfer_syntax,
            calling_ae: "CT1".into(),
        };
        let mut incoming = archive.begin(head).unwrap();
        incoming.append(&phantom.bytes).unwrap();
        incoming.finish().await.unwrap();
    }
}

fn log_is_ready(archive: &Archive) {
    while archive.0.log.object_bytes_max() == 0 {
        std::thread::yield_now();
    }
}

/// The data sets of a study as everybody sees it, each read from its file.
fn seen(archive: &Archive, study: u32) -> Vec<Vec<u8>> {
    let read = |stored: &Stored| {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut archive.open_file(stored).unwrap().unwrap(), &mut bytes).unwrap();
        bytes[stored.meta_bytes as usize..].to_vec()
    };
    archive.instances_of(&uid(study)).unwrap().iter().map(read).collect()
}

fn bytes_of(phantoms: &[Phantom]) -> Vec<Vec<u8>> {
    phantoms.iter().map(|phantom| phantom.bytes.clone()).collect()
}

/// As a killed process leaves it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { drop(fs::copy(&path, &target)) }
    }
}

fn anywhere(dir: &Path, needle: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return anywhere(&path, needle);
        }
        fs::read(&path).unwrap().windows(needle.len()).any(|window| window == needle)
    })
}

fn open(dir: &Path) -> Archive {
    Archive::open(dir, limits(), 0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_brings_nothing_back_and_takes_nothing_along() {
    let dir = tempfile::tempdir().unwrap();
    let (root, crashed) = (dir.path().join("a"), dir.path().join("b"));
    let archive = open(&root);
    log_is_ready(&archive);
    let (erased, other) = (slices(1), slices(2));
    store(&archive, &erased[..4]).await;
    store(&archive, &other[..3]).await;
    let facts = |holdings: &Holdings| holdings.objects.to_string();
    let erasure = archive.begin_erasure(&uid(1), facts).await.unwrap().unwrap();
    assert_eq!((erasure.facts.as_str(), archive.begin_erasure(&uid(1), facts).await.unwrap()), ("4", None));
    // The same study again, some of its objects the very same, in the same log.
    store(&archive, &erased[3..]).await;
    store(&archive, &other[3..]).await;
    let intact = |archive: &Archive| {
        assert_eq!(seen(archive, 1), bytes_of(&erased[3..]));
        assert_eq!(seen(archive, 2), bytes_of(&other));
    };
    intact(&archive);
    // Killed here, and once more, so that the log's numbers do not begin where they did.
    copy(&root, &crashed);
    for _ in 0..2 {
        let again = open(&crashed);
        intact(&again);
        assert_eq!(again.erasures().unwrap(), std::slice::from_ref(&erasure));
        drop(again);
    }
    let again = open(&crashed);
    log_is_ready(&again);
    again.erase(erasure.id).await.unwrap();
    intact(&again);
    let gone = erased[0].sop_instance.to_string();
    assert!(anywhere(&root, gone.as_bytes()) && !anywhere(&crashed, gone.as_bytes()));
    again.erase(erasure.id).await.unwrap();
    again.end_erasure(erasure.id).await.unwrap();
    intact(&again);
    let totals = again.totals().unwrap();
    again.close().await;
    drop(again);
    let again = open(&crashed);
    assert_eq!(again.totals().unwrap(), totals, "what is used is counted as a start counts it");
    assert_eq!(again.erasures().unwrap(), []);
    intact(&again);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_erased_study_is_in_any_file_while_objects_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    log_is_ready(&archive);
    let erased = slices(1);
    store(&archive, &erased).await;
    // Used, freed and used again: the tail of a segment keeps what was in it before.
    super::write_behind::settle(&archive.0.log);
    for study in 3..6 {
        store(&archive, &slices(study)).await;
    }
    let erasure = archive.begin_erasure(&uid(1), |_| String::new()).await.unwrap().unwrap();
    let (busy, ended) = (archive.clone(), Arc::new(AtomicBool::new(false)));
    let until = ended.clone();
    let intake = tokio::spawn(async move {
        let mut study = 6;
        while !until.load(Ordering::Relaxed) {
            store(&busy, &slices(study)).await;
            study += 1;
        }
        study
    });
    archive.erase(erasure.id).await.unwrap();
    ended.store(true, Ordering::Relaxed);
    let last = intake.await.unwrap();
    let who = subject(1);
    let middle = erased[0].bytes.len() * 3 / 4;
    let mut needles = vec![who.patient_name.clone().into_bytes(), who.patient_name.to_lowercase().into_bytes()];
    needles.extend([who.patient_id.into_bytes(), who.study_uid.clone().into_bytes()]);
    needles.push(erased[0].bytes[middle..middle + 40].to_vec());
    needles.extend(erased.iter().map(|phantom| phantom.sop_instance.to_string().into_bytes()));
    for needle in needles {
        assert!(!anywhere(dir.path(), &needle), "{}", String::from_utf8_lossy(&needle));
    }
    for study in 3..last {
        assert_eq!(seen(&archive, study), bytes_of(&slices(study)));
    }
    assert!(seen(&archive, 1).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_an_erased_object_is_never_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    store(&archive, &slices(1)).await;
    let held = archive.instances_of(&uid(1)).unwrap();
    let erasure = archive.begin_erasure(&uid(1), |_| String::new()).await.unwrap().unwrap();
    archive.erase(erasure.id).await.unwrap();
    store(&archive, &slices(2)).await;
    let new = archive.instances_of(&uid(2)).unwrap();
    assert!(new.iter().all(|new| held.iter().all(|held| held.id != new.id)));
    assert!(held.iter().all(|held| archive.current(held).unwrap().is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_an_earlier_version_is_taken_over() {
    const BEFORE_SERIES: &str = "ALTER TABLE image DROP COLUMN series; ALTER TABLE foreign_study DROP COLUMN series;";
    const BEFORE_ERASURE: &str = "DROP TABLE erasure; DROP TABLE erased_row;";
    const BEFORE_AT_SOURCE: &str = "ALTER TABLE instance DROP COLUMN at_source;";
    const BEFORE_IPFS: &str = "DROP TRIGGER image_gone; DROP TRIGGER image_again; DROP INDEX image_cid; DROP INDEX image_unpinned; DROP TABLE ipfs_removal;
        ALTER TABLE image DROP COLUMN cid; ALTER TABLE image DROP COLUMN cid_bytes; ALTER TABLE image DROP COLUMN pinned;";
    for (version, before) in [
        (5, BEFORE_IPFS.to_owned()),
        (4, format!("{BEFORE_IPFS} {BEFORE_AT_SOURCE}")),
        (3, format!("{BEFORE_IPFS} {BEFORE_AT_SOURCE} {BEFORE_SERIES}")),
        (2, format!("{BEFORE_IPFS} {BEFORE_AT_SOURCE} {BEFORE_SERIES} {BEFORE_ERASURE}")),
    ] {
        take_over(version, &before).await;
    }
}

async fn take_over(version: u32, before: &str) {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    store(&archive, &slices(1)).await;
    archive.close().await;
    drop(archive);
    let index = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    index.execute_batch(&format!("{before} PRAGMA user_version = {version};")).unwrap();
    drop(index);
    let archive = open(dir.path());
    assert_eq!(seen(&archive, 1), bytes_of(&slices(1)));
    store(&archive, &slices(2)).await;
    let erasure = archive.begin_erasure(&uid(1), |_| String::new()).await.unwrap().unwrap();
    archive.erase(erasure.id).await.unwrap();
    assert_eq!((seen(&archive, 1), seen(&archive, 2)), (Vec::new(), bytes_of(&slices(2))));
}
