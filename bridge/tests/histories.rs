//! Random histories of consent, from the contracts to what a viewer finds: the real contracts on the embedded ledger, the followed
//! state, the desk that hands out keys, and three sites whose archives are kept as the grants say. After every step each of them
//! agrees with one model, and nothing is seen that no owner allowed.
//!
//! `PACS_BRIDGE_HISTORIES` says how many histories each test plays, `PACS_BRIDGE_HISTORIES_SEED` which ones.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../embedded-ledger/tests/support/mod.rs"]
mod chain;
#[path = "../../embedded-ledger/tests/support/histories.rs"]
mod histories;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{B256, Bytes, keccak256};
use alloy::signers::SignerSync;
use bridge::archive::{Archive, ForeignMode, ForeignStudy, ForeignVersion, ObjectHead, PlannedImage, PlannedVersion};
use bridge::audit::Audit;
use bridge::config::{self, Config};
use bridge::demo::phantom::{Phantom, Subject, ct_series};
use bridge::exchange::server::{Desk, Standing};
use bridge::exchange::task::{Bringing, Keeper, Shelf, Wanted};
use bridge::exchange::{KeyRequest, Place};
use bridge::follow::{Consents, FollowConfig, Mode, Scope, follow};
use bridge::keyring::{ForeignKey, ForeignKeys, Keyring};
use bridge::ledger::node::SystemClock;
use bridge::ledger::rpc::RpcNode;
use bridge::ledger::slots::InFlight;
use bridge::payload::container::Unsealed;
use bridge::payload::describe::describe;
use bridge::payload::keys::{RecipientSecret, SessionKey};
use bridge::payload::manifest::{Manifest, ManifestObject};
use bridge::payload::pieces::PieceMap;
use bridge::study::{ImageKind, Salt};
use chain::{CHAIN_ID, key};
use contracts::{PieceMode, Sources};
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Tag, VR};
use dicom_scp::matching::{Level, Query, QueryContext};
use dicom_scp::sop_class::Model as QueryModel;
use histories::{GRANTEES, Model, SALT, STUDIES, Step, World, address, manifest, series, series_uid, step, study};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Who has a bridge: two sources and a researcher.
const SITES: [u8; 3] = [2, 3, 6];
/// Whoever asks for keys may sign with one of these.
const SIGNERS: [u8; 6] = [2, 3, 4, 5, 6, 7];
const OBJECTS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(300);
const PLACED: PieceMap = PieceMap { pieces: 1, sealed_bytes: 10, piece_bytes: 10, root: B256::repeat_byte(9) };
const HOUR_S: u64 = 3600;

/// How much of a study a grantee may see, for the purpose it was let in for: 0 nothing, 1 previews, 2 everything; and of which series, 0
/// being the whole study.
fn sees(model: &Model, n: u8, grantee: u8) -> (u8, u8) {
    let terms = model.said.get(&(n, grantee)).and_then(|said| said.terms);
    let (part, purpose) = terms.map_or((0, 0), |terms| (terms.series, terms.purpose));
    match model.allowed(n, 0, grantee, purpose).0 {
        0 => match model.allowed(n, part, grantee, purpose).0 {
            0 => (0, 0),
            mode => (mode, part),
        },
        mode => (mode, 0),
    }
}

/// The same at another time, if nobody says anything until then.
fn sees_at(model: &Model, n: u8, grantee: u8, now: u64) -> (u8, u8) {
    let then = Model {
        now,
        studies: model.studies.clone(),
        said: model.said.clone(),
        glass: model.glass.clone(),
        suspended: model.suspended.clone(),
        ..Model::default()
    };
    sees(&then, n, grantee)
}

fn uid(n: u8) -> Uid {
    Uid::new(&format!("1.2.826.0.1.{n}")).unwrap()
}

fn number(mode: ForeignMode) -> u8 {
    match mode {
        ForeignMode::Previews => 1,
        ForeignMode::Everything => 2,
    }
}

/// What of a study, or of a series of it, a version of its manifest names.
fn named(version: u32, part: u8) -> usize {
    let objects = if part == 0 { OBJECTS } else { u32::from(part) };
    version.min(objects) as usize
}

/// The series with this number; none for the whole study.
fn series_of(part: u8) -> Option<Uid> {
    (part != 0).then(|| Uid::new(&series_uid(part)).unwrap())
}

fn phantoms(n: u8) -> Vec<Phantom> {
    let subject = Subject {
        patient_name: "Phantom^Petra".into(),
        patient_id: "P1".into(),
        study_date: "20260102".into(),
        description: "Chest".into(),
        accession: "A1".into(),
        study_uid: uid(n).to_string(),
    };
    ct_series(&subject, OBJECTS, 8, u64::from(n))
}

/// What a manifest says of each object, and its file.
type Objects = Vec<(ManifestObject, Vec<u8>)>;

/// Carries manifests from site to site without a wire: what is granted is brought, be it late.
#[derive(Clone)]
struct Carrier {
    archive: Archive,
    keyring: Keyring,
    library: Arc<HashMap<B256, (Uid, Objects)>>,
}

impl Carrier {
    /// Fetches objects ahead, so that there are copies that must go with the grant.
    async fn fetch(&self, study: B256) {
        let (_, objects) = &self.library[&study];
        let missing = self.archive.foreign_instances(study).unwrap().into_iter().filter(|stored| stored.path.is_none());
        let restorer = self.archive.restorer().unwrap();
        for stored in missing {
            let (object, bytes) =
                objects.iter().find(|(object, _)| object.sop_instance_uid == stored.sop_instance).unwrap();
            let mut restoring = restorer.begin(&stored).unwrap();
            restoring.write_all(bytes).unwrap();
            let unsealed = Unsealed { plain_bytes: object.file_bytes, plain_sha256: object.file_sha256 };
            restorer.file(&[Arc::new(restoring.finish(&unsealed).unwrap())]).await.unwrap();
        }
    }
}

impl Bringing for Carrier {
    async fn until_done(&self, wanted: &Wanted) {
        let grant = &wanted.grant;
        let (study_uid, objects) = &self.library[&grant.study_id];
        tokio::task::yield_now().await;
        let key = match wanted.window.mode {
            ForeignMode::Everything => ForeignKey::Session(SessionKey::random()),
            ForeignMode::Previews => ForeignKey::Preview(SessionKey::random()),
        };
        let part = (0..3).find(|part| series(*part) == wanted.window.series).unwrap();
        let keys = ForeignKeys { salt: Salt::random(), series: series_of(part), epochs: vec![(0, key)] };
        let version = ForeignVersion {
            version: grant.version,
            manifest: Manifest {
                study_uid: *study_uid,
                version: grant.version,
                created_ms: 0,
                objects: objects.iter().take(named(grant.version, part)).map(|(object, _)| object.clone()).collect(),
                previews: Vec::new(),
                series: None,
            },
            image: grant.manifest_image,
            map: PLACED,
            piece_mode: PieceMode::Calldata,
        };
        self.archive.import_manifest(grant.study_id, version).await.unwrap();
        if wanted.window.mode == ForeignMode::Everything {
            self.fetch(grant.study_id).await;
        }
        // Last, because whoever looks whether it is all here looks at the keys.
        self.keyring.keep_foreign(grant.study_id, &keys).unwrap();
    }

    async fn settle(&self) {}
}

/// One bridge, as far as consent goes.
struct Site {
    account: u8,
    archive: Archive,
    shelf: Shelf,
    carrier: Carrier,
    keeper: Keeper<Carrier>,
    desk: Desk,
}

impl Site {
    /// Looks at the grants, as the bridge does whenever something changed, and waits until what is granted was brought.
    async fn pass(&mut self, model: &Model) {
        let next = self.keeper.pass(model.now).await.unwrap();
        for wait in [1, 2, 9, 30, 60, HOUR_S, 24 * HOUR_S, 25 * HOUR_S] {
            let then = model.now + wait;
            for n in STUDIES.filter(|n| then < next && model.studies[n].source != self.account) {
                let (now, then) = (sees(model, n, self.account), sees_at(model, n, self.account, then));
                assert_eq!(now, then, "site {} would sleep over a change in {wait} s\n{model:#?}", self.account);
            }
        }
        let arrived = async {
            while !self.granted(model).all(|(n, scope)| self.has(n, scope, model.studies[&n].version)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.expect("what is granted does not come");
    }

    async fn restart(self) -> Self {
        self.keeper.end().await;
        let keeper = Keeper::new(self.shelf.clone(), self.carrier.clone());
        Self { keeper, ..self }
    }

    fn has(&self, n: u8, (mode, part): (u8, u8), version: u32) -> bool {
        let here = self.archive.foreign_study(study(n)).unwrap();
        let keys = self.shelf.keyring.foreign(study(n)).unwrap();
        let opens = keys.map(|keys| match keys.epochs[0].1 {
            ForeignKey::Preview(_) => (1, keys.series),
            ForeignKey::Session(_) => (2, keys.series),
        });
        let copies = self.archive.instances_of(&uid(n)).unwrap().iter().filter(|copy| copy.path.is_some()).count();
        let fetched = mode < 2 || copies == named(version, part);
        here.is_some_and(|here| here.version == version) && opens == Some((mode, series_of(part))) && fetched
    }

    /// Studies of others with a manifest that this site may see now, and how much of them.
    fn granted(&self, model: &Model) -> impl Iterator<Item = (u8, (u8, u8))> {
        let others = STUDIES.filter(|n| model.studies[n].source != self.account && model.studies[n].version > 0);
        others.map(|n| (n, sees(model, n, self.account))).filter(|(_, (mode, _))| *mode > 0)
    }

    /// What is shown while nobody has looked at the grants since: less than was granted, perhaps, but never more.
    fn check_asleep(&self, model: &Model, step: &Step) {
        let shown =
            |here: &ForeignStudy| !here.hidden && (here.window.not_before..=here.window.not_after).contains(&model.now);
        for here in self.archive.foreign_studies().unwrap().iter().filter(|here| shown(here)) {
            let n = STUDIES.into_iter().find(|n| study(*n) == here.study_id).unwrap();
            let (allowed, part) = sees(model, n, self.account);
            let window = here.window;
            // An emergency adds the rest of the study.
            let fits = part == 0 || window.series == series(part);
            assert!(number(window.mode) <= allowed && fits, "study {n} at site {}, {step:?}\n{here:#?}", self.account);
        }
    }

    /// A viewer finds what is of this site and what is granted now, and nothing else; and keys are here for nothing else.
    fn check(&self, model: &Model, step: &Step) {
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let own = STUDIES.filter(|n| model.studies[n].source == self.account).map(|n| (n, OBJECTS as usize));
        let granted: Vec<(u8, (u8, u8))> = self.granted(model).collect();
        let others = granted.iter().map(|(n, (_, part))| (*n, named(model.studies[n].version, *part)));
        for (n, count) in own.chain(others) {
            let names = phantoms(n).into_iter().take(count).map(|phantom| phantom.sop_instance.to_string());
            expected.insert(uid(n).to_string(), names.collect());
        }
        let why = || format!("site {}, {step:?}\n{model:#?}", self.account);
        assert_eq!(find(&self.archive, Level::Study), expected.keys().cloned().collect(), "{}", why());
        assert_eq!(find(&self.archive, Level::Image), expected.values().flatten().cloned().collect(), "{}", why());
        let keys: BTreeSet<B256> = self.shelf.keyring.foreign_studies().unwrap().into_iter().collect();
        assert_eq!(keys, granted.iter().map(|(n, _)| study(*n)).collect(), "{}", why());
        for (n, (mode, part)) in granted {
            let copies = self.archive.instances_of(&uid(n)).unwrap().iter().filter(|copy| copy.path.is_some()).count();
            assert_eq!(copies, if mode == 2 { named(model.studies[&n].version, part) } else { 0 }, "{}", why());
        }
    }

    /// Whoever asks for the keys of a study of this site gets what he may see, and no answer when that is nothing.
    fn check_desk(&self, model: &Model, world: &World, place: Place, asked: &mut u64, step: &Step) {
        let own = STUDIES.filter(|n| model.studies[n].source == self.account);
        for (n, grantee) in own.flat_map(|n| GRANTEES.map(|grantee| (n, grantee))) {
            *asked += 1;
            // Now and then somebody else: he may act for the grantee today, or not any more.
            let other = SIGNERS[usize::try_from(*asked / 2).unwrap() % SIGNERS.len()];
            let signer = if asked.is_multiple_of(2) { grantee } else { other };
            let mut request = KeyRequest {
                study_id: study(n),
                grantee: address(grantee),
                encryption_key: world.certificate(grantee),
                time: model.now,
                nonce: keccak256([asked.to_be_bytes(), u64::from(signer).to_be_bytes()].concat()),
                signature: Bytes::new(),
            };
            let digest = request.digest(place, [0; 32]);
            request.signature = key(signer).sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into();
            let answer = self.desk.decide(&request, model.now);
            let acts = if grantee < 4 { model.acts_for(signer) == Some(grantee) } else { signer == grantee };
            let seen = if acts && model.studies[&n].version > 0 { sees(model, n, grantee) } else { (0, 0) };
            let (mode, part) = seen;
            let why = || format!("study {n}, {signer} for {grantee}, {step:?}: {answer:?}\n{model:#?}");
            match &answer {
                Err(_) => assert_eq!(mode, 0, "{}", why()),
                Ok(delivery) => {
                    assert_eq!(delivery.version, model.studies[&n].version, "{}", why());
                    assert!(mode > 0 && !delivery.keys.is_empty(), "{}", why());
                    assert_eq!(delivery.series, series_of(part).map(|uid| uid.to_string()), "{}", why());
                    let expected = if part == 0 { manifest(n, delivery.version) } else { part_manifest(n, part) };
                    assert_eq!(delivery.manifest.image, expected, "{}", why());
                    let opens = |previews| delivery.keys.iter().any(|key| key.preview_only == previews);
                    assert_eq!((opens(true), opens(false)), (mode == 1 || part > 0, mode == 2), "{}", why());
                }
            }
        }
    }
}

fn find(archive: &Archive, level: Level) -> BTreeSet<String> {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, level.as_str());
    identifier.put_text(level.unique_key(), VR::UI, "");
    let context = QueryContext { model: QueryModel::StudyRoot, relational: true, combined_date_time: false };
    let query = Query::parse(&identifier, &context).unwrap();
    let mut found = BTreeSet::new();
    let emit = |answer: DataSet| {
        assert!(found.insert(answer.text(level.unique_key()).unwrap_or_default()), "found twice");
        true
    };
    archive.search(&query, "AE", emit).unwrap();
    found
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

fn object(archive: &Archive, phantom: &Phantom) -> (ManifestObject, Vec<u8>) {
    let stored = archive.instance(&phantom.sop_instance).unwrap().unwrap();
    let mut file = archive.open_file(&stored).unwrap().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let object = ManifestObject {
        sop_class_uid: stored.sop_class,
        sop_instance_uid: stored.sop_instance,
        series_uid: stored.series_uid,
        transfer_syntax: stored.transfer_syntax,
        file_bytes: stored.file_bytes,
        file_sha256: stored.file_sha256,
        dataset_sha256: [0; 32],
        pixel_sha256: None,
        header: describe(&mut file, 16_384).unwrap().header,
        image: keccak256(stored.sop_instance.as_str()),
        epoch: 0,
        map: Some(PLACED),
        meta_bytes: stored.meta_bytes,
        by_series: true,
        link: None,
    };
    (object, bytes)
}

/// The image that carries the manifest of a series of a study.
fn part_manifest(n: u8, part: u8) -> B256 {
    keccak256([n, part, 0, 0])
}

/// The source's bridge has a new version, as before it says so on the ledger.
async fn begin_version(archive: &Archive, n: u8, version: u32) {
    let image = PlannedImage {
        id: manifest(n, version),
        kind: ImageKind::Manifest,
        instance: None,
        subject: uid(n),
        series: None,
        epoch: 0,
        map: PLACED,
        link: None,
        media_type: String::new(),
        plain: Some(Vec::new()),
    };
    let manifest_image = image.id;
    let mut images = vec![image.clone()];
    // The series are as they were in the first version.
    if archive.publication(&uid(n)).unwrap().is_none() {
        images.extend([1, 2].map(|part| PlannedImage {
            id: part_manifest(n, part),
            kind: ImageKind::SeriesManifest,
            subject: series_of(part).unwrap(),
            series: series_of(part),
            ..image.clone()
        }));
    }
    let at_source = Vec::new();
    let planned =
        PlannedVersion { study_id: study(n), version, manifest: Vec::new(), manifest_image, images, at_source };
    archive.begin_version(&uid(n), planned, PieceMode::Calldata).await.unwrap();
}

/// Three sites on one chain.
struct Sites {
    world: World,
    consents: Consents,
    sites: Vec<Site>,
    place: Place,
    asked: u64,
    stop: CancellationToken,
    follower: JoinHandle<()>,
}

impl Sites {
    async fn new(dir: &Path, keyrings: &[Keyring], model: &mut Model) -> Self {
        // Archives read the real clock; what holds on this chain's must not be over for them.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + HOUR_S;
        let certificates = SITES.iter().zip(keyrings).map(|(site, ring)| (*site, ring.payload_certificate().unwrap()));
        let stranger = RecipientSecret::generate().unwrap().recipient().unwrap().to_bytes().unwrap();
        let certificates: BTreeMap<u8, Bytes> =
            certificates.chain([(7, stranger)]).map(|(grantee, bytes)| (grantee, bytes.into())).collect();
        let mut world = World::new(&dir.join("ledger.redb"), start, certificates, model).await;
        for source in [2, 3] {
            let call = Sources::changeKeysCall { tlsKey: B256::ZERO, encryptionKey: world.certificate(source) };
            assert!(world.send(source, world.at.sources, call).await);
        }
        let consents = Consents::open(&dir.join("consent.sqlite")).unwrap();
        let at = FollowConfig {
            registry: world.at.studies,
            consent: world.at.consent,
            key_bindings: world.at.key_bindings,
            depth: 1,
            poll_ms: 1,
            // This chain's clock is an hour ahead: what is current by it is for the test alone to say.
            clocks_elsewhere: true,
            carried: InFlight::default(),
        };
        let (stop, node) = (CancellationToken::new(), RpcNode::embedded(&world.ledger));
        let wake = Arc::new(Notify::new());
        let follower = tokio::spawn(follow(consents.clone(), node, SystemClock, at, wake, stop.clone()));
        let place = Place { chain_id: CHAIN_ID, registry: world.at.studies };
        let limits = config::Archive { free_bytes_min: 0, ..Config::parse("", HashMap::new()).unwrap().archive };
        let mut archives = BTreeMap::new();
        for site in SITES {
            archives.insert(site, Archive::open(&dir.join(site.to_string()), limits.clone(), 0).unwrap());
        }
        let mut library = HashMap::new();
        for n in STUDIES {
            let archive = &archives[&model.studies[&n].source];
            let mut objects = Vec::new();
            for phantom in phantoms(n) {
                store(archive, &phantom).await;
                objects.push(object(archive, &phantom));
            }
            library.insert(study(n), (uid(n), objects));
        }
        let library = Arc::new(library);
        let sites = SITES.iter().zip(keyrings).map(|(account, keyring)| {
            let (archive, keyring) = (archives[account].clone(), keyring.clone());
            for left in keyring.foreign_studies().unwrap() {
                keyring.erase_foreign(left).unwrap();
            }
            for n in STUDIES.filter(|n| model.studies[n].source == *account) {
                keyring.study_or_new(&uid(n)).unwrap();
            }
            let grantee = address(*account);
            let shelf = Shelf {
                grantee,
                consents: consents.clone(),
                archive: archive.clone(),
                keyring: keyring.clone(),
                audit: Audit::off(),
            };
            let carrier = Carrier { archive: archive.clone(), keyring: keyring.clone(), library: library.clone() };
            let keeper = Keeper::new(shelf.clone(), carrier.clone());
            let standing = Arc::new(move || Some(Standing { place, source: grantee }));
            let desk = Desk::new(archive.clone(), keyring, consents.clone(), standing, [0; 32]);
            Site { account: *account, archive, shelf, carrier, keeper, desk }
        });
        let sites = sites.collect();
        Self { world, consents, sites, place, asked: 0, stop, follower }
    }

    async fn caught_up(&self) {
        let head = self.world.ledger.head();
        let mut followed = self.consents.followed();
        while self.consents.cursor().unwrap().is_none_or(|at| at.hash != head.hash) {
            let changed = tokio::time::timeout(PATIENCE, followed.changed()).await;
            changed.expect("the follower stands still").unwrap();
        }
    }

    /// Takes a step and looks at everything.
    async fn take(&mut self, model: &mut Model, step: &Step) -> bool {
        let expected = model.take(step).is_some();
        if let (Step::Amend { study: n, version, .. }, true) = (step, expected) {
            let source = model.studies[n].source;
            let site = self.sites.iter().find(|site| site.account == source).unwrap();
            begin_version(&site.archive, *n, *version).await;
        }
        assert_eq!(self.world.take(step).await, expected, "{step:?}\n{model:#?}");
        // What a step about one study did to another shows with the next step that is about all.
        let looked_at = step.study().map_or(STUDIES, |n| n..=n);
        self.world.compare(model, looked_at, step).await;
        self.caught_up().await;
        self.consents.note_current(model.now);
        self.compare_followed(model, step);
        for site in &mut self.sites {
            if matches!(step, Step::Wait { .. }) {
                site.check_asleep(model, step);
            }
            site.pass(model).await;
            site.check(model, step);
            site.check_desk(model, &self.world, self.place, &mut self.asked, step);
        }
        expected
    }

    fn compare_followed(&self, model: &Model, step: &Step) {
        for (n, grantee) in STUDIES.flat_map(|n| GRANTEES.map(|grantee| (n, grantee))) {
            let grant = self.consents.grant(study(n), address(grantee)).unwrap();
            let why = || format!("study {n}, grantee {grantee}, {step:?}: {grant:#?}\n{model:#?}");
            for (part, purpose) in [(0, 0), (0, 3), (1, 0), (1, 3)] {
                let found = grant.as_ref().and_then(|grant| grant.mode_for(model.now, series(part), purpose));
                assert_eq!(found.map_or(0, Mode::number), model.allowed(n, part, grantee, purpose).0, "{}", why());
            }
            let found = grant.as_ref().and_then(|grant| grant.scope_at(model.now));
            let (mode, part) = sees(model, n, grantee);
            let expected = Mode::from_number(mode).map(|mode| Scope { mode, series: series(part) });
            assert_eq!(found, expected, "{}", why());
            let trace = grant.as_ref().map_or(0, |grant| grant.trace_at(model.now).number());
            assert_eq!(trace, model.trace(n, grantee), "{}", why());
        }
        for (n, known) in &model.studies {
            let found = self.consents.study(study(*n)).unwrap().unwrap();
            // A veto uses a number that no event names.
            assert!(found.owner == address(known.owner) && found.seq <= known.seq, "study {n}, {step:?}: {found:?}");
            assert_eq!((found.version, found.tombstoned), (known.version, known.dead), "study {n}, {step:?}");
        }
    }

    async fn restart_sites(&mut self) {
        for site in std::mem::take(&mut self.sites) {
            self.sites.push(site.restart().await);
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.follower.await.unwrap();
        for site in self.sites {
            site.keeper.end().await;
            site.archive.close().await;
        }
    }
}

async fn play(steps: &[Step], keyrings: &[Keyring]) -> (usize, usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut sites = Sites::new(dir.path(), keyrings, &mut model).await;
    for n in STUDIES {
        // So that there is something to be seen from the beginning.
        let first = Step::Amend { by: model.studies[&n].source, study: n, version: 1 };
        assert!(sites.take(&mut model, &first).await);
    }
    let (mut history, mut accepted, mut seen) = (Vec::new(), 0, 0);
    for (at, step) in steps.iter().enumerate() {
        let step = model.resolve(step, &history);
        accepted += usize::from(sites.take(&mut model, &step).await);
        seen += sites.sites.iter().map(|site| site.granted(&model).count()).sum::<usize>();
        if at % 16 == 15 {
            sites.restart_sites().await;
        }
        if !matches!(step, Step::Wait { .. }) {
            history.push(step);
        }
    }
    sites.end().await;
    (accepted, seen)
}

fn asked_for(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Plays histories of a seed; fails with the shortest that shows what is wrong.
fn play_some(seed: u64) {
    let cases = asked_for("PACS_BRIDGE_HISTORIES").unwrap_or(14);
    let seed = asked_for("PACS_BRIDGE_HISTORIES_SEED").map_or(seed, |asked| asked.wrapping_add(seed));
    let dir = tempfile::tempdir().unwrap();
    let settings = Config::parse("", HashMap::new()).unwrap().keys;
    let keyrings: Vec<Keyring> = std::thread::scope(|scope| {
        let open = |site: u8| {
            let keyring = Keyring::open(&dir.path().join(site.to_string()), &settings).unwrap();
            STUDIES.for_each(|n| drop(keyring.study_or_new(&uid(n)).unwrap()));
            // The ledger of the histories knows series by salts that the histories chose.
            let keys = rusqlite::Connection::open(dir.path().join(site.to_string()).join("keys.sqlite")).unwrap();
            keys.execute("UPDATE study_key SET salt = ?1", [SALT.as_slice()]).unwrap();
            keyring
        };
        let opening: Vec<_> = SITES.iter().map(|site| scope.spawn(move || open(*site))).collect();
        opening.into_iter().map(|opening| opening.join().unwrap()).collect()
    });
    let config = ProptestConfig {
        cases: u32::try_from(cases).unwrap(),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 120,
        max_shrink_time: 120_000,
        ..ProptestConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut taken, mut accepted, mut seen) = (0, 0, 0);
    let totals = std::cell::RefCell::new((&mut taken, &mut accepted, &mut seen));
    let played = TestRunner::new(config).run(&prop::collection::vec(step(), 60..110), |steps| {
        let (did, saw) = runtime.block_on(play(&steps, &keyrings));
        let mut totals = totals.borrow_mut();
        *totals.0 += steps.len();
        *totals.1 += did;
        *totals.2 += saw;
        Ok(())
    });
    if let Err(failure) = played {
        panic!("seed {seed}: {failure}");
    }
    println!("{taken} steps, {accepted} of them accepted; studies of others seen {seen} times after a step");
    assert!(accepted * 4 > taken, "only {accepted} of {taken} steps did anything");
    assert!(seen * 4 > taken, "hardly anything was ever seen: {seen} times after {taken} steps");
}

#[test]
fn nobody_finds_what_no_owner_allowed_whatever_happens() {
    play_some(20_261_122);
}

#[test]
fn nobody_finds_what_no_owner_allowed_whatever_else_happens() {
    play_some(20_261_123);
}
