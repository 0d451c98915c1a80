#![allow(clippy::unwrap_used)]
//! Strongest first: whatever is granted, taken back and stored here, in whatever order, everybody sees what was stored here and
//! what is granted now, each once, and nothing else; and what was stored here never goes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use alloy::primitives::{Address, B256, keccak256};
use dicom_scp::dataset::{DataSet, Tag, VR};
use dicom_scp::matching::{Level, Query, QueryContext};
use dicom_scp::sop_class::Model;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use super::*;
use crate::config::Config;
use crate::demo::phantom::{Phantom, Subject, ct_series};
use crate::payload::cid::Cid;
use crate::payload::container::Unsealed;
use crate::payload::describe::describe;
use crate::payload::manifest::{Link, Manifest, ManifestObject, ManifestPreview, PreviewKind};
use crate::payload::pieces::PieceMap;

fn open(dir: &Path) -> Archive {
    let limits = config::Archive { free_bytes_min: 0, ..Config::parse("", HashMap::new()).unwrap().archive };
    Archive::open(dir, limits, 0).unwrap()
}

/// Studies 0 to 2: three slices each, of one patient.
fn phantoms(study: u32) -> Vec<Phantom> {
    let subject = Subject {
        patient_name: "Phantom^Petra".into(),
        patient_id: "P1".into(),
        study_date: "20260102".into(),
        description: "Chest".into(),
        accession: "A1".into(),
        study_uid: format!("1.2.826.0.1.{study}"),
    };
    ct_series(&subject, 3, 16, u64::from(study))
}

async fn store(archive: &Archive, phantom: &Phantom) {
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

/// The site whose studies are granted: what it received, as its manifests say it.
struct Elsewhere {
    _dir: tempfile::TempDir,
    archive: Archive,
}

impl Elsewhere {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = open(dir.path());
        for study in 0..3 {
            for phantom in phantoms(study) {
                store(&archive, &phantom).await;
            }
        }
        Self { _dir: dir, archive }
    }

    fn file(&self, phantom: &Phantom) -> Vec<u8> {
        let stored = self.archive.instance(&phantom.sop_instance).unwrap().unwrap();
        let mut bytes = Vec::new();
        self.archive.open_file(&stored).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// A manifest of the first `count` objects of a study.
    fn version(&self, study: u32, version: u32, count: usize) -> ForeignVersion {
        let map = PieceMap { pieces: 1, sealed_bytes: 10, piece_bytes: 10, root: B256::repeat_byte(9) };
        let name = |what: &str, of: &str| keccak256(format!("{study} {what} {of}"));
        let uid = Uid::new(&format!("1.2.826.0.1.{study}")).unwrap();
        let objects = phantoms(study).into_iter().take(count).map(|phantom| {
            let stored = self.archive.instance(&phantom.sop_instance).unwrap().unwrap();
            let mut file = self.archive.open_file(&stored).unwrap().unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            ManifestObject {
                sop_class_uid: stored.sop_class,
                sop_instance_uid: stored.sop_instance,
                series_uid: stored.series_uid,
                transfer_syntax: stored.transfer_syntax,
                file_bytes: stored.file_bytes,
                file_sha256: stored.file_sha256,
                dataset_sha256: [0; 32],
                pixel_sha256: None,
                header: describe(&mut file, 16_384).unwrap().header,
                image: name("object", stored.sop_instance.as_str()),
                epoch: 0,
                map: Some(map),
                meta_bytes: stored.meta_bytes,
                by_series: true,
                link: None,
            }
        });
        let objects: Vec<ManifestObject> = objects.collect();
        let previews = vec![ManifestPreview {
            subject: objects[0].series_uid,
            kind: PreviewKind::Series,
            media_type: "image/jpeg".into(),
            width: 1,
            height: 1,
            sha256: [0; 32],
            image: name("preview", &version.to_string()),
            epoch: 0,
            map,
            series: Some(objects[0].series_uid),
        }];
        ForeignVersion {
            version,
            manifest: Manifest { study_uid: uid, version, created_ms: 0, objects, previews, series: None },
            image: name("manifest", &version.to_string()),
            map,
            piece_mode: contracts::PieceMode::Calldata,
        }
    }
}

fn study_id(study: u32) -> B256 {
    B256::repeat_byte(u8::try_from(study).unwrap() + 1)
}

const ALWAYS: Window = Window { mode: ForeignMode::Everything, series: B256::ZERO, not_before: 0, not_after: u64::MAX };

/// Answers at a level: unique key, and the counts that were asked for.
fn find(archive: &Archive, level: Level, asked: &[Tag]) -> Vec<(String, Vec<String>)> {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, level.as_str());
    identifier.put_text(level.unique_key(), if level == Level::Patient { VR::LO } else { VR::UI }, "");
    for tag in asked {
        identifier.put_text(*tag, VR::IS, "");
    }
    let context = QueryContext { model: Model::PatientRoot, relational: true, combined_date_time: false };
    let query = Query::parse(&identifier, &context).unwrap();
    let mut found = Vec::new();
    let emit = |answer: DataSet| {
        let counts = asked.iter().map(|tag| answer.text(*tag).unwrap_or_default()).collect();
        found.push((answer.text(level.unique_key()).unwrap_or_default(), counts));
        true
    };
    archive.search(&query, "AE", emit).unwrap();
    found.sort();
    found
}

/// What the archive shows, by every question that there is.
fn check(archive: &Archive, expected: &BTreeMap<String, BTreeSet<String>>, own: &BTreeSet<String>, seed: u64) {
    let all: BTreeSet<String> = expected.values().flatten().cloned().collect();
    let studies: Vec<_> = find(archive, Level::Study, &[Tag(0x0020, 0x1206), Tag(0x0020, 0x1208)]);
    let wanted: Vec<_> =
        expected.iter().map(|(uid, objects)| (uid.clone(), vec!["1".to_owned(), objects.len().to_string()])).collect();
    assert_eq!(studies, wanted, "seed {seed}");
    let series: Vec<_> = find(archive, Level::Series, &[Tag(0x0020, 0x1209)]).into_iter().map(|(_, n)| n).collect();
    let wanted: Vec<_> = expected.values().map(|objects| vec![objects.len().to_string()]).collect();
    assert_eq!(series, wanted, "seed {seed}");
    let images: Vec<String> = find(archive, Level::Image, &[]).into_iter().map(|(uid, _)| uid).collect();
    assert_eq!(images, all.iter().cloned().collect::<Vec<_>>(), "seed {seed}");
    let of_patient = [Tag(0x0020, 0x1200), Tag(0x0020, 0x1202), Tag(0x0020, 0x1204)];
    let counts = [expected.len(), expected.len(), all.len()].map(|n| n.to_string()).to_vec();
    let wanted = if expected.is_empty() { Vec::new() } else { vec![("P1".to_owned(), counts)] };
    assert_eq!(find(archive, Level::Patient, &of_patient), wanted, "seed {seed}");
    let mut summaries: Vec<String> = archive.summaries().unwrap().into_iter().map(|study| study.uid).collect();
    summaries.sort();
    assert_eq!(summaries, expected.keys().cloned().collect::<Vec<_>>(), "seed {seed}");
    for study in 0..3 {
        let uid = Uid::new(&format!("1.2.826.0.1.{study}")).unwrap();
        let objects: BTreeSet<String> =
            archive.instances_of(&uid).unwrap().iter().map(|stored| stored.sop_instance.to_string()).collect();
        assert_eq!(objects, expected.get(uid.as_str()).cloned().unwrap_or_default(), "seed {seed}");
        for phantom in phantoms(study) {
            let name = phantom.sop_instance.to_string();
            assert_eq!(archive.instance(&phantom.sop_instance).unwrap().is_some(), all.contains(&name), "seed {seed}");
            let received = archive.received_instance(&phantom.sop_instance).unwrap();
            assert_eq!(received.is_some(), own.contains(&name), "seed {seed}");
            if let Some(received) = received {
                let mut bytes = Vec::new();
                archive.open_file(&received).unwrap().expect("received files stay").read_to_end(&mut bytes).unwrap();
                assert_eq!(<[u8; 32]>::from(Sha256::digest(&bytes)), received.file_sha256);
            }
        }
        let only_granted =
            expected.contains_key(uid.as_str()) && archive.received_instances_of(&uid).unwrap().is_empty();
        assert!(
            !(only_granted && archive.studies_due(99).unwrap().contains(&uid)),
            "seed {seed}: another site's study is due"
        );
    }
}

/// Fetches an object as retrieval does.
async fn fetch(archive: &Archive, stored: &Stored, bytes: &[u8]) {
    let restorer = archive.restorer().unwrap();
    let mut restoring = restorer.begin(stored).unwrap();
    restoring.write_all(bytes).unwrap();
    let unsealed = Unsealed { plain_bytes: bytes.len() as u64, plain_sha256: Sha256::digest(bytes).into() };
    let restored = Arc::new(restoring.finish(&unsealed).unwrap());
    restorer.file(std::slice::from_ref(&restored)).await.unwrap();
}

fn foreign_rows(archive: &Archive) -> i64 {
    let sql =
        "SELECT (SELECT count(*) FROM study WHERE origin <> 0) + (SELECT count(*) FROM instance WHERE origin <> 0)
       + (SELECT count(*) FROM image) + (SELECT count(*) FROM foreign_study)
       + (SELECT count(*) FROM series WHERE study NOT IN (SELECT id FROM study))";
    archive.read(|db| Ok(db.query_row(sql, [], |row| row.get(0))?)).unwrap()
}

fn files_on_disk(archive: &Archive) -> usize {
    write_behind::settle(&archive.0.log);
    let shards = std::fs::read_dir(archive.root().join("objects")).unwrap();
    shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_what_was_stored_here_and_what_is_granted_now_and_nothing_else() {
    let elsewhere = Elsewhere::new().await;
    for seed in 0..6 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let archive = open(dir.path());
        let mut own: BTreeSet<String> = BTreeSet::new();
        // Of each study: objects of the newest manifest, its version, and whether it may be seen.
        let mut granted: BTreeMap<u32, (usize, u32, bool)> = BTreeMap::new();
        for _ in 0..60 {
            let study = rng.gen_range(0..3);
            let id = study_id(study);
            let (count, version, _) = granted.get(&study).copied().unwrap_or_default();
            match rng.gen_range(0..8) {
                0 => {
                    let phantom = &phantoms(study)[rng.gen_range(0..3)];
                    store(&archive, phantom).await;
                    own.insert(phantom.sop_instance.to_string());
                }
                1 | 2 => {
                    archive.show_foreign(id, Address::repeat_byte(7), ALWAYS).await.unwrap();
                    granted.insert(study, (count, version, true));
                }
                3 | 4 => {
                    let (objects, next) = (rng.gen_range(1..4), version + rng.gen_range(0..2));
                    let given = elsewhere.version(study, next, objects);
                    let imported = archive.import_manifest(id, given).await;
                    match granted.get_mut(&study) {
                        None => assert!(matches!(imported, Err(ArchiveError::Foreign(_))), "nobody let us see it"),
                        Some(state) => {
                            assert_eq!(imported.unwrap(), next > version);
                            if next > version {
                                (state.0, state.1) = (objects, next);
                            }
                        }
                    }
                }
                5 => {
                    if let Some(state) = granted.get_mut(&study) {
                        state.2 = false;
                        let past = Window { not_after: 1_000_000_000, ..ALWAYS };
                        let future = Window { not_before: u64::MAX / 4, ..ALWAYS };
                        match rng.gen_range(0..3) {
                            0 => archive.hide_foreign(id).await.unwrap(),
                            1 => archive.show_foreign(id, Address::repeat_byte(7), past).await.unwrap(),
                            _ => archive.show_foreign(id, Address::repeat_byte(7), future).await.unwrap(),
                        }
                    }
                }
                6 => {
                    if let Some(stored) = archive.foreign_instances(id).unwrap().first()
                        && stored.path.is_none()
                    {
                        let phantoms = phantoms(study);
                        let phantom = phantoms.iter().find(|phantom| phantom.sop_instance == stored.sop_instance);
                        fetch(&archive, stored, &elsewhere.file(phantom.unwrap())).await;
                    }
                }
                _ => {
                    archive.remove_foreign(id).await.unwrap();
                    granted.remove(&study);
                }
            }
            let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for study in 0..3 {
                let shown = granted.get(&study).filter(|(_, _, shown)| *shown).map_or(0, |(count, _, _)| *count);
                for (at, phantom) in phantoms(study).into_iter().enumerate() {
                    let name = phantom.sop_instance.to_string();
                    if own.contains(&name) || at < shown {
                        expected.entry(format!("1.2.826.0.1.{study}")).or_default().insert(name);
                    }
                }
            }
            check(&archive, &expected, &own, seed);
        }
        for study in 0..3 {
            archive.remove_foreign(study_id(study)).await.unwrap();
        }
        assert_eq!(foreign_rows(&archive), 0, "seed {seed}");
        assert_eq!(files_on_disk(&archive), own.len(), "seed {seed}");
        let bytes: u64 = archive.totals().unwrap().bytes;
        assert_eq!(archive.totals().unwrap().local_bytes, bytes, "seed {seed}");
        archive.close().await;
    }
}

/// An object that was stored here is durable as soon as that was acknowledged, even when the same one was granted before, and what
/// is in the intake log is filed after a crash though the index knows the granted one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_object_outlives_the_grant_of_the_same_object() {
    let elsewhere = Elsewhere::new().await;
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    archive.show_foreign(study_id(0), Address::repeat_byte(7), ALWAYS).await.unwrap();
    archive.import_manifest(study_id(0), elsewhere.version(0, 1, 3)).await.unwrap();
    let phantom = &phantoms(0)[1];
    let granted = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    fetch(&archive, &granted, &elsewhere.file(phantom)).await;
    store(&archive, phantom).await;
    assert_eq!(archive.studies_due(9).unwrap().len(), 1, "what was stored here is published like anything else");
    archive.remove_foreign(study_id(0)).await.unwrap();
    let kept = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    assert_eq!((kept.origin, archive.totals().unwrap().instances), (0, 1));
    assert!(archive.open_file(&kept).unwrap().is_some());
    assert!(archive.current(&granted).unwrap().is_none(), "who still holds the granted one gets nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_cannot_take_over_what_is_of_others() {
    let elsewhere = Elsewhere::new().await;
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    for study in 0..2 {
        archive.show_foreign(study_id(study), Address::repeat_byte(7), ALWAYS).await.unwrap();
    }
    archive.import_manifest(study_id(0), elsewhere.version(0, 1, 3)).await.unwrap();
    let good = elsewhere.version(1, 1, 2);
    let mut of_another_study = good.clone();
    of_another_study.manifest.study_uid = Uid::new("1.2.826.0.1.0").unwrap();
    let mut image_of_another = good.clone();
    image_of_another.manifest.objects[0].image = elsewhere.version(0, 1, 1).manifest.objects[0].image;
    let mut twice = good.clone();
    let again = twice.manifest.objects[0].clone();
    twice.manifest.objects.push(again);
    let mut beyond = good.clone();
    beyond.manifest.objects[0].meta_bytes = u64::MAX;
    for bad in [of_another_study, image_of_another, twice, beyond] {
        let refused = archive.import_manifest(study_id(1), bad).await;
        assert!(matches!(refused, Err(ArchiveError::Foreign(_))), "{refused:?}");
        assert!(archive.foreign_instances(study_id(1)).unwrap().is_empty(), "nothing of it was taken in");
    }
    assert!(archive.import_manifest(study_id(1), good).await.unwrap());
    assert_eq!(archive.foreign_instances(study_id(0)).unwrap().len(), 3);
}

/// A picture as another site's preview would be: grey, 40 by 30.
fn picture() -> Vec<u8> {
    use crate::payload::preview::{Pixels, Rendered, encode};
    let samples = (0..40 * 30).map(|n| (n % 251) as u8).collect();
    encode(&Rendered { width: 40, height: 30, pixels: Pixels::Gray(samples) }, 100_000).unwrap().bytes
}

/// What is remembered of a manifest is never an older one, nor of a study that is not shown any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_that_of_the_newest_manifest_while_it_is_shown() {
    let elsewhere = Elsewhere::new().await;
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    let (id, uid) = (study_id(0), Uid::new("1.2.826.0.1.0").unwrap());
    let listed = || archive.shown_listing(&uid).unwrap().map(|listing| listing.manifest().objects.len());
    archive.show_foreign(id, Address::repeat_byte(7), ALWAYS).await.unwrap();
    assert_eq!(listed(), None);
    for (version, objects) in [(1, 3), (2, 2)] {
        archive.import_manifest(id, elsewhere.version(0, version, objects)).await.unwrap();
        assert_eq!((listed(), listed()), (Some(objects), Some(objects)));
    }
    archive.hide_foreign(id).await.unwrap();
    assert_eq!(listed(), None);
}

/// Where previews alone are granted, an ordinary viewer gets them as objects: found, selected, always the same, and gone with the grant.
#[tokio::test(flavor = "multi_thread")]
async fn previews_are_objects_where_no_more_is_granted() {
    let elsewhere = Elsewhere::new().await;
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    let (id, previews_only) = (study_id(0), Window { mode: ForeignMode::Previews, ..ALWAYS });
    archive.show_foreign(id, Address::repeat_byte(7), previews_only).await.unwrap();
    let mut version = elsewhere.version(0, 1, 3);
    version.manifest.previews[0].media_type = "image/png".into();
    let preview = version.manifest.previews[0].image;
    archive.import_manifest(id, version).await.unwrap();
    archive.present_previews(id).await.unwrap();
    assert_eq!(find(&archive, Level::Image, &[]).len(), 3, "the picture is not here yet");
    archive.keep_previews(vec![(preview, picture())]).await.unwrap();
    for _ in 0..2 {
        archive.present_previews(id).await.unwrap();
        assert_eq!(find(&archive, Level::Series, &[Tag(0x0020, 0x1209)]).len(), 2);
        assert_eq!(find(&archive, Level::Study, &[Tag(0x0020, 0x1208)])[0].1, ["4"]);
    }
    let mut available: Vec<String> = Vec::new();
    for level in [Level::Study, Level::Series, Level::Image] {
        for (_, mut asked) in find(&archive, level, &[Tag(0x0008, 0x0056)]) {
            available.append(&mut asked);
        }
    }
    available.sort();
    let (online, withheld) = (vec!["ONLINE"; 3], vec!["UNAVAILABLE"; 4]);
    assert_eq!(available, [online, withheld].concat(), "the study, its captures, and their series");

    let retrieve = |level: Level, uid: &str| {
        let mut identifier = DataSet::default();
        identifier.put_text(Tag(0x0008, 0x0052), VR::CS, level.as_str());
        identifier.put_text(level.unique_key(), VR::UI, uid);
        let context = QueryContext { model: Model::StudyRoot, relational: true, combined_date_time: false };
        archive.select(&Query::parse(&identifier, &context).unwrap()).unwrap()
    };
    let selected = retrieve(Level::Study, "1.2.826.0.1.0");
    let [capture] = selected.as_slice() else { panic!("{selected:?}") };
    let file = archive.capture(capture).unwrap().unwrap();
    assert_eq!((file.len() as u64, <[u8; 32]>::from(Sha256::digest(&file))), (capture.file_bytes, capture.file_sha256));
    let options = dicom_scp::dataset::ReadOptions::default();
    let (set, _) = dicom_scp::dataset::read(
        &file[capture.meta_bytes as usize..],
        dicom_scp::dataset::Encoding::ExplicitLe,
        &options,
    )
    .unwrap();
    assert_eq!(set.text(Tag(0x0010, 0x0010)).unwrap(), "Phantom^Petra");
    assert_eq!(set.uid(Tag(0x0008, 0x0018)), Some(capture.sop_instance));
    assert_eq!((set.int(Tag(0x0028, 0x0010)), set.int(Tag(0x0028, 0x0011))), (Some(30), Some(40)));
    let pixels: Vec<u8> = (0..40 * 30).map(|n| (n % 251) as u8).collect();
    assert_eq!(set.bytes(Tag(0x7FE0, 0x0010)), Some(pixels.as_slice()), "what the preview shows");
    let object = phantoms(0)[0].sop_instance;
    let named = retrieve(Level::Image, object.as_str());
    assert_eq!(named.len(), 1, "who names an object is told that he may not have it");
    assert!(archive.capture(&named[0]).unwrap().is_none());
    assert!(matches!(archive.capture_of(capture, b"another picture"), Err(ArchiveError::Corrupt(_))));

    // With the whole study granted, the objects take their place; with nothing granted, nothing is left.
    archive.show_foreign(id, Address::repeat_byte(7), ALWAYS).await.unwrap();
    archive.withdraw_captures(id).await.unwrap();
    assert_eq!((find(&archive, Level::Image, &[]).len(), find(&archive, Level::Series, &[]).len()), (3, 1));
    archive.show_foreign(id, Address::repeat_byte(7), previews_only).await.unwrap();
    archive.present_previews(id).await.unwrap();
    assert_eq!(retrieve(Level::Study, "1.2.826.0.1.0")[0].sop_instance, capture.sop_instance);
    let mut next = elsewhere.version(0, 2, 2);
    next.manifest.previews.clear();
    archive.import_manifest(id, next).await.unwrap();
    assert_eq!((find(&archive, Level::Image, &[]).len(), find(&archive, Level::Series, &[]).len()), (2, 1));
    archive.remove_foreign(id).await.unwrap();
    assert_eq!(foreign_rows(&archive), 0);
}

/// A manifest whose objects are in IPFS.
fn in_ipfs(mut version: ForeignVersion) -> ForeignVersion {
    for object in &mut version.manifest.objects {
        let name = [&[1, 0x55, 0x12, 32][..], object.image.as_slice()].concat();
        let link = Link { cid: Cid::from_bytes(&name).unwrap(), sealed_bytes: object.file_bytes + 100 };
        (object.link, object.map) = (Some(link), Some(link.map()));
    }
    version
}

#[tokio::test]
async fn what_is_in_ipfs_is_kept_while_all_of_it_is_granted_and_let_go_with_its_rows() {
    let elsewhere = Elsewhere::new().await;
    let dir = tempfile::tempdir().unwrap();
    let archive = open(dir.path());
    let (id, source) = (study_id(1), Address::repeat_byte(7));
    let version = in_ipfs(elsewhere.version(1, 1, 3));
    let mut names: Vec<Cid> = version.manifest.objects.iter().map(|object| object.link.unwrap().cid).collect();
    names.sort();
    let wanted = |granted| {
        let mut wanted: Vec<Cid> = archive.not_pinned(granted).unwrap().iter().map(|one| one.link.cid).collect();
        wanted.sort();
        wanted
    };
    let previews = Window { mode: ForeignMode::Previews, ..ALWAYS };
    archive.show_foreign(id, source, previews).await.unwrap();
    archive.import_manifest(id, version.clone()).await.unwrap();
    assert!(wanted(true).is_empty(), "of what may be looked at alone nothing is kept");
    archive.show_foreign(id, source, ALWAYS).await.unwrap();
    assert_eq!((wanted(true), wanted(false)), (names.clone(), Vec::new()));
    let image = version.manifest.objects[0].image;
    let link = archive.image(&image).unwrap().unwrap().0.link;
    assert_eq!(link, version.manifest.objects[0].link);

    assert!(archive.record_kept(image, Kept::Yes).await.unwrap());
    assert!(!archive.record_kept(B256::repeat_byte(0x66), Kept::Yes).await.unwrap());
    assert_eq!(wanted(true).len(), 2);
    assert_eq!(archive.compare_pins([names[0], link.unwrap().cid].into()).await.unwrap(), 0);
    assert_eq!(archive.compare_pins(HashSet::new()).await.unwrap(), 1, "the node lost it");
    assert_eq!(wanted(true), names);

    archive.record_kept(image, Kept::Unsound).await.unwrap();
    assert_eq!(archive.not_pinned(true).unwrap().iter().filter(|one| one.unsound).count(), 1);
    assert!(archive.is_unsound(image).unwrap());

    // Another study cannot take its names along.
    let thief = study_id(2);
    archive.show_foreign(thief, source, ALWAYS).await.unwrap();
    let mut stolen = in_ipfs(elsewhere.version(2, 1, 1));
    (stolen.manifest.objects[0].link, stolen.manifest.objects[0].map) = (link, link.map(|link| link.map()));
    assert!(matches!(archive.import_manifest(thief, stolen).await, Err(ArchiveError::Foreign(_))));
    archive.remove_foreign(thief).await.unwrap();
    archive.begin_ipfs_removal(names[0]).await.unwrap();
    assert!(archive.ipfs_removals().unwrap().is_empty(), "what bears a name keeps it");

    // One object goes with the next version, all with the grant.
    archive.import_manifest(id, in_ipfs(elsewhere.version(1, 2, 2))).await.unwrap();
    assert_eq!(archive.ipfs_removals().unwrap(), [version.manifest.objects[2].link.unwrap().cid]);
    archive.remove_foreign(id).await.unwrap();
    let mut going = archive.ipfs_removals().unwrap();
    going.sort();
    assert_eq!((going, wanted(true)), (names.clone(), Vec::new()));
    archive.end_ipfs_removal(names[0]).await.unwrap();
    assert_eq!(archive.ipfs_removals().unwrap().len(), 2);
    // What is granted again is not let go any more.
    archive.show_foreign(id, source, ALWAYS).await.unwrap();
    archive.import_manifest(id, version).await.unwrap();
    assert_eq!((archive.ipfs_removals().unwrap(), wanted(true)), (Vec::new(), names));
}
