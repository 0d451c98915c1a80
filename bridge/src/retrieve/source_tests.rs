#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{Cursor, Read as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, B256, keccak256};
use dicom_scp::Uid;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Content, Delivery, Errand, Manner, Retrieve, RetrieveError, Source, SourceError};
use crate::archive::{Archive, FileMeta, ForeignMode, ForeignVersion, Stored, Window};
use crate::config::Config;
use crate::demo::phantom::{Subject, ct_series};
use crate::keyring::Keyring;
use crate::ledger::LedgerSlot;
use crate::payload::describe::describe;
use crate::payload::manifest::{Manifest, ManifestObject};
use crate::payload::pieces::PieceMap;

const STUDY: B256 = B256::repeat_byte(7);
const STUDY_UID: &str = "1.2.826.0.1.3680043.9.7777.1";

/// What a source does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Hands everything out that is missing.
    All,
    /// Hands out what is wanted and no more.
    Wanted,
    /// Breaks off in the middle of the object with this number.
    BreakIn(usize),
    /// Turns a bit of the object with this number.
    Damage(usize),
    /// Sends more than the object has.
    TooLong,
    /// Sends something that nobody listed, and says that that is all.
    Stranger,
    Away,
    Refuse,
    /// Waits with the second object until the test lets it go on.
    Pause,
}

struct Fake {
    files: HashMap<Uid, Vec<u8>>,
    acts: Mutex<Vec<Act>>,
    /// Numbers of objects that were not here, request by request.
    asked: Mutex<Vec<usize>>,
    go_on: tokio::sync::Notify,
    manners: Mutex<Vec<Manner>>,
}

impl Source for Fake {
    fn bring<'a>(&'a self, errand: &'a Errand, delivery: &'a mut Delivery) -> BoxFuture<'a, Result<(), SourceError>> {
        self.asked.lock().unwrap().push(errand.missing.len());
        self.manners.lock().unwrap().push(errand.manner);
        let act = self.acts.lock().unwrap().pop().unwrap_or(Act::All);
        async move {
            let objects = match act {
                Act::Away => return Err(SourceError::Away("closed".into())),
                Act::Refuse => return Err(SourceError::Refused("no".into())),
                Act::Stranger => {
                    assert!(!delivery.begin(&Uid::new("1.2.3").unwrap()).await?);
                    delivery.write(b"anything").await?;
                    return delivery.end().await;
                }
                Act::Wanted => &errand.wanted,
                _ => &errand.missing,
            };
            for (number, stored) in objects.iter().enumerate() {
                if act == Act::Pause && number == 1 {
                    self.go_on.notified().await;
                }
                let mut file = self.files[&stored.sop_instance].clone();
                match act {
                    Act::Damage(which) if which == number => *file.last_mut().unwrap() ^= 1,
                    Act::TooLong => file.push(0),
                    _ => {}
                }
                assert!(delivery.begin(&stored.sop_instance).await?);
                if act == Act::BreakIn(number) {
                    delivery.write(&file[..file.len() / 2]).await?;
                    return Err(SourceError::Broken("broke off".into()));
                }
                for run in file.chunks(1000) {
                    delivery.write(run).await?;
                }
                delivery.end().await?;
            }
            Ok(())
        }
        .boxed()
    }
}

/// A site that sees a study of another whose objects are there.
struct World {
    dir: tempfile::TempDir,
    archive: Archive,
    retrieve: Retrieve,
    source: Arc<Fake>,
}

impl World {
    async fn new(objects: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Config::parse("[archive]\nintake_log_bytes = 8388608\nfree_bytes_min = 0\n", HashMap::new()).unwrap();
        let archive = Archive::open(&dir.path().join("archive"), config.archive.clone(), 10).unwrap();
        let keyring = Keyring::open(dir.path(), &config.keys).unwrap();
        let files = files(objects);
        let version = version(&files);
        archive.show_foreign(STUDY, Address::repeat_byte(1), window(ForeignMode::Everything)).await.unwrap();
        assert!(archive.import_manifest(STUDY, version).await.unwrap());
        let retrieve = Retrieve::new(archive.clone(), keyring, LedgerSlot::default());
        let files = files.into_iter().collect();
        let source = Arc::new(Fake {
            files,
            acts: Mutex::default(),
            asked: Mutex::default(),
            go_on: tokio::sync::Notify::new(),
            manners: Mutex::default(),
        });
        retrieve.ask_sources(source.clone());
        Self { dir, archive, retrieve, source }
    }

    /// What the source does, first to last; then it hands out everything.
    fn acts(&self, acts: &[Act]) {
        *self.source.acts.lock().unwrap() = acts.iter().rev().copied().collect();
    }

    fn objects(&self) -> Vec<Stored> {
        self.archive.instances_of(&Uid::new(STUDY_UID).unwrap()).unwrap()
    }

    /// Opens all objects at once.
    async fn open_all(&self) -> Vec<Result<Vec<u8>, RetrieveError>> {
        let objects = self.objects();
        let opened = objects.iter().map(|stored| self.open(stored));
        futures::future::join_all(opened).await
    }

    /// What opening an object brings, which is never anything else than what the manifest lists.
    async fn open(&self, stored: &Stored) -> Result<Vec<u8>, RetrieveError> {
        let mut bytes = Vec::new();
        match self.retrieve.open_file(stored).await?.content {
            Content::Whole(whole) => bytes.extend_from_slice(&whole),
            Content::File(mut file) => drop(file.read_to_end(&mut bytes).unwrap()),
        }
        assert!(bytes == self.source.files[&stored.sop_instance], "{}", stored.sop_instance);
        Ok(bytes)
    }

    fn asked(&self) -> Vec<usize> {
        self.source.asked.lock().unwrap().clone()
    }

    fn files_here(&self) -> usize {
        let shards = std::fs::read_dir(self.dir.path().join("archive/objects")).unwrap();
        shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
    }
}

fn window(mode: ForeignMode) -> Window {
    Window { mode, series: B256::ZERO, not_before: 0, not_after: i64::MAX as u64 }
}

fn files(objects: u32) -> Vec<(Uid, Vec<u8>)> {
    let subject = Subject {
        patient_name: "Zyx^Q".into(),
        patient_id: "P".into(),
        study_date: "20260101".into(),
        description: "D".into(),
        accession: "A".into(),
        study_uid: STUDY_UID.into(),
    };
    let files = ct_series(&subject, objects, 64, 1).into_iter().map(|phantom| {
        let meta = FileMeta {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: phantom.transfer_syntax,
        };
        (phantom.sop_instance, [meta.encode(), phantom.bytes].concat())
    });
    files.collect()
}

fn version(files: &[(Uid, Vec<u8>)]) -> ForeignVersion {
    let objects = files.iter().map(|(uid, file)| {
        let (meta, offset) = FileMeta::read(&mut file.as_slice()).unwrap();
        let series = uid.as_str().rsplit_once('.').unwrap().0;
        ManifestObject {
            sop_class_uid: meta.sop_class,
            sop_instance_uid: *uid,
            series_uid: Uid::new(series).unwrap(),
            transfer_syntax: meta.transfer_syntax,
            file_bytes: file.len() as u64,
            file_sha256: Sha256::digest(file).into(),
            dataset_sha256: [0; 32],
            pixel_sha256: None,
            header: describe(&mut Cursor::new(file), 1024).unwrap().header,
            image: keccak256(uid.as_str()),
            epoch: 0,
            map: None,
            meta_bytes: offset,
            by_series: true,
            link: None,
        }
    });
    let (study_uid, objects) = (Uid::new(STUDY_UID).unwrap(), objects.collect());
    ForeignVersion {
        version: 1,
        manifest: Manifest { study_uid, version: 1, created_ms: 0, objects, previews: Vec::new(), series: None },
        image: B256::repeat_byte(9),
        map: PieceMap { pieces: 1, sealed_bytes: 10, piece_bytes: 10, root: B256::repeat_byte(9) },
        piece_mode: contracts::PieceMode::Calldata,
    }
}

fn failures(opened: Vec<Result<Vec<u8>, RetrieveError>>) -> Vec<RetrieveError> {
    opened.into_iter().filter_map(Result::err).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_together_is_asked_for_together_and_then_here() {
    let world = World::new(20).await;
    assert!(failures(world.open_all().await).is_empty());
    assert_eq!(world.asked().len(), 1, "{:?}", world.asked());
    world.retrieve.settle().await;
    assert_eq!(world.files_here(), 20);
    assert!(failures(world.open_all().await).is_empty());
    assert_eq!(world.asked().len(), 1, "it is here");
    assert_eq!(world.archive.evict(&Uid::new(STUDY_UID).unwrap(), Vec::new()).await.unwrap().0, 20);
    world.open(&world.objects()[3]).await.unwrap();
    assert_eq!(world.asked(), [20, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_off_is_asked_for_the_rest() {
    let world = World::new(5).await;
    world.acts(&[Act::BreakIn(2), Act::Damage(1), Act::Away, Act::BreakIn(1)]);
    assert!(failures(world.open_all().await).is_empty());
    assert_eq!(world.asked(), [5, 3, 2, 2, 1]);
    let manners = world.source.manners.lock().unwrap().clone();
    let after = [Manner::Any, Manner::Parts, Manner::Parts, Manner::Parts, Manner::Parts];
    assert_eq!(manners, after, "after the first it is not asked for the whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_what_a_source_forges_is_kept_or_given() {
    for act in [Act::Damage(0), Act::TooLong, Act::Stranger] {
        let world = World::new(1).await;
        world.acts(&[act, act, act]);
        let failures = failures(world.open_all().await);
        assert!(matches!(failures[..], [RetrieveError::Source(SourceError::Differs)]), "{act:?}: {failures:?}");
        world.retrieve.settle().await;
        assert_eq!(world.files_here(), 0, "{act:?}");
        world.acts(&[]);
        assert!(self::failures(world.open_all().await).is_empty(), "{act:?}: it may be honest the next time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_learns_why_nothing_comes() {
    let world = World::new(2).await;
    world.acts(&[Act::Away, Act::Away, Act::Away]);
    let away = failures(world.open_all().await);
    assert!(
        away.len() == 2 && away.iter().all(|e| matches!(e, RetrieveError::Source(SourceError::Away(_)))),
        "{away:?}"
    );
    assert_eq!(failures(world.open_all().await).len(), 2);
    assert_eq!(world.asked(), [2, 2, 2], "it is left alone for a while");
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    world.acts(&[Act::Refuse; 4]);
    let refused = failures(world.open_all().await);
    let is_refusal = |error: &RetrieveError| matches!(error, RetrieveError::Source(SourceError::Refused(_)));
    assert!(refused.len() == 2 && refused.iter().all(is_refusal), "{refused:?}");
    assert!((4..=5).contains(&world.asked().len()), "a refusal is final at once: {:?}", world.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_is_not_asked_for() {
    let world = World::new(6).await;
    world.acts(&[Act::Pause]);
    let (objects, stop) = (world.objects(), CancellationToken::new());
    let ahead = tokio::spawn({
        let (retrieve, stop) = (world.retrieve.clone(), stop.clone());
        async move { retrieve.fetch_ahead(objects, stop).await }
    });
    while world.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.cancel();
    ahead.await.unwrap();
    world.source.go_on.notify_one();
    while !world.retrieve.0.couriers.is_idle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.acts(&[Act::Wanted]);
    let last = world.objects().pop().unwrap();
    world.open(&last).await.unwrap();
    world.retrieve.settle().await;
    assert_eq!(world.files_here(), 2, "the first and the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_any_more_is_not_given_even_if_it_just_came() {
    let world = World::new(3).await;
    world.acts(&[Act::Pause]);
    let objects = world.objects();
    let opening = {
        let (retrieve, stored) = (world.retrieve.clone(), objects[2].clone());
        tokio::spawn(async move { retrieve.open_file(&stored).await.map(|_| ()) })
    };
    while world.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.archive.show_foreign(STUDY, Address::repeat_byte(1), window(ForeignMode::Previews)).await.unwrap();
    world.source.go_on.notify_one();
    assert!(matches!(opening.await.unwrap(), Err(RetrieveError::NotGranted(_))));
    let asked = world.asked().len();
    assert_eq!(failures(world.open_all().await).len(), 3);
    assert_eq!(world.asked().len(), asked, "and nothing is asked for");
}
