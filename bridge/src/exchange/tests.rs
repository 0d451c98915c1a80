#![allow(clippy::unwrap_used)]
//! Strongest first: whoever is not let in gets the same answer, whatever the reason, and never a key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolEvent;
use contracts::{Consent, Sources, Studies};
use dicom_scp::Uid;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{Asker, Endpoint, ask, post};
use super::server::{Desk, Standing, now_s, serve};
use super::tls::Identity;
use super::*;
use crate::archive::{Archive, PlannedImage, PlannedVersion};
use crate::config::Config;
use crate::demo::phantom::{Subject, ct_series};
use crate::follow::{self, Consents, Head, Logged, Question};
use crate::keyring::Keyring;
use crate::payload::envelope::open_envelope;
use crate::payload::keys::{RecipientSecret, SessionKey};
use crate::study::{ImageKind, study_id};

const REGISTRY: Address = Address::repeat_byte(0xAA);
const CONSENT: Address = Address::repeat_byte(0xBB);
const STUDY_UID: &str = "1.2.826.0.1.77";
const TIMEOUT: Duration = Duration::from_secs(10);

/// A chain of which every block holds one event.
struct Chain {
    consents: Consents,
    height: u64,
}

impl Chain {
    fn say(&mut self, contract: Address, event: &impl SolEvent) {
        let data = event.encode_log_data();
        self.height += 1;
        let hash = |number: u64| B256::from(U256::from(number + 1));
        let head = Head { number: self.height, hash: hash(self.height), parent: hash(self.height - 1) };
        let logged = Logged {
            block: head.number,
            block_hash: head.hash,
            transaction: head.hash,
            log_index: 0,
            contract,
            topics: data.topics().to_vec(),
            data: data.data.clone(),
        };
        self.consents.apply(&[head], &[logged]).unwrap();
        self.consents.note_current(now_s());
    }

    fn source(&mut self, source: Address, tls_key: [u8; 32], openpgp_key: &[u8]) {
        self.say(REGISTRY, &Sources::SourceAdmitted { source });
        self.say(REGISTRY, &Sources::SourceDefined { source, publicKey: Bytes::new(), endpoint: "https://a".into() });
        self.say(REGISTRY, &Sources::OperatorAccepted { source, operator: source });
        let encryption_key = Bytes::copy_from_slice(openpgp_key);
        self.say(REGISTRY, &Sources::KeysChanged { source, tlsKey: tls_key.into(), encryptionKey: encryption_key });
    }

    fn allow(&mut self, study: B256, grantee: Address, seq: u32, mode: u8, key: B256, period: (u64, u64)) {
        self.say(
            CONSENT,
            &Consent::AccessAllowed {
                studyId: study,
                grantee,
                owner: Address::repeat_byte(1),
                seq,
                series: B256::ZERO,
                mode,
                notBefore: period.0,
                notAfter: period.1,
                purpose: 0,
                notes: B256::ZERO,
                encryptionKey: key,
            },
        );
    }
}

struct World {
    _dir: tempfile::TempDir,
    chain: Chain,
    desk: Desk,
    place: Place,
    identity: Identity,
    study: B256,
    session_key: SessionKey,
    /// Another site, let in by nobody yet.
    other: PrivateKeySigner,
    other_payload: RecipientSecret,
}

impl World {
    async fn new() -> Self {
        Self::defined_by(None).await
    }

    /// With the study's id defined by this site's source, or by another with the same manifest.
    async fn defined_by(another: Option<Address>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse("[archive]\nfree_bytes_min = 0\n", HashMap::new()).unwrap();
        let keyring = Keyring::open(dir.path(), &config.keys).unwrap();
        let archive = Archive::open(&dir.path().join("archive"), config.archive, 0).unwrap();
        let identity = Identity::open(&dir.path().join("keystore")).unwrap();
        let uid = Uid::new(STUDY_UID).unwrap();
        let keys = keyring.study_or_new(&uid).unwrap();
        let study = study_id(&keys.salt, STUDY_UID);
        publish(&archive, &uid, study).await;
        let consents = Consents::open(&dir.path().join("consent.sqlite")).unwrap();
        let chain = follow::Chain {
            genesis: B256::from(U256::from(1)),
            registry: REGISTRY,
            chain_id: 1,
            key_bindings: Address::repeat_byte(8),
        };
        consents.begin(&chain).unwrap();
        let mut chain = Chain { consents: consents.clone(), height: 0 };
        let (other, other_payload) = (PrivateKeySigner::random(), RecipientSecret::generate().unwrap());
        let me = keyring.source().address();
        chain.source(me, identity.spki_sha256(), &[]);
        chain.source(other.address(), [0; 32], &other_payload.recipient().unwrap().to_bytes().unwrap());
        let (owner, source) = (Address::repeat_byte(1), another.unwrap_or(me));
        chain.say(REGISTRY, &Studies::StudyDefined { studyId: study, source, owner, custodial: true });
        let (image, root) = (B256::repeat_byte(2), B256::repeat_byte(3));
        chain.say(
            REGISTRY,
            &Studies::StudyAmended { studyId: study, source, version: 1, manifestImage: image, manifestRoot: root },
        );
        let place = Place { chain_id: 20181, registry: REGISTRY };
        let desk = Desk::new(
            archive,
            keyring,
            consents,
            Arc::new(move || Some(Standing { place, source: me })),
            identity.spki_sha256(),
        );
        Self {
            _dir: dir,
            chain,
            desk,
            place,
            identity,
            study,
            session_key: keys.session_key(0).unwrap().clone(),
            other,
            other_payload,
        }
    }

    fn certificate(&self) -> Vec<u8> {
        self.other_payload.recipient().unwrap().to_bytes().unwrap()
    }

    fn let_in(&mut self, seq: u32, mode: u8) {
        let key = keccak256(self.certificate());
        self.chain.allow(self.study, self.other.address(), seq, mode, key, (0, u64::MAX));
    }

    fn asker(&self) -> Asker {
        let encryption_key = self.certificate().into();
        Asker { grantee: self.other.address(), signer: self.other.clone().into(), encryption_key, place: self.place }
    }

    async fn request(&self) -> KeyRequest {
        self.asker().request(self.study, self.identity.spki_sha256()).await.unwrap()
    }

    fn decide(&self, request: &KeyRequest) -> Result<KeyDelivery, String> {
        self.desk.decide(request, now_s())
    }

    async fn serve(&self, tasks: &TaskTracker, stop: &CancellationToken) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = self.identity.server_config().unwrap();
        tasks.spawn(serve(listener, tls, self.desk.clone(), tasks.clone(), stop.clone()));
        Endpoint { url, tls_key: self.identity.spki_sha256() }
    }
}

async fn publish(archive: &Archive, uid: &Uid, study: B256) {
    let subject = Subject {
        patient_name: "A^B".into(),
        patient_id: "1".into(),
        study_date: "20260101".into(),
        description: "D".into(),
        accession: "2".into(),
        study_uid: uid.to_string(),
    };
    let phantom = ct_series(&subject, 1, 16, 1).remove(0);
    let head = crate::archive::ObjectHead {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        transfer_syntax: phantom.transfer_syntax,
        calling_ae: "T".into(),
    };
    let mut incoming = archive.begin(head).unwrap();
    incoming.append(&phantom.bytes).unwrap();
    incoming.finish().await.unwrap();
    let image = PlannedImage {
        id: B256::repeat_byte(2),
        kind: ImageKind::Manifest,
        instance: None,
        subject: *uid,
        series: None,
        epoch: 0,
        map: PieceMap { pieces: 1, sealed_bytes: 10, piece_bytes: 10, root: B256::repeat_byte(3) },
        link: None,
        media_type: String::new(),
        plain: Some(Vec::new()),
    };
    let planned = PlannedVersion {
        study_id: study,
        version: 1,
        manifest: Vec::new(),
        manifest_image: image.id,
        images: vec![image],
        at_source: Vec::new(),
    };
    archive.begin_version(uid, planned, PieceMode::Calldata).await.unwrap();
}

/// A source that sees a definition before it is in a block can define the same id, with an owner of its own who allows what he likes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_of_another_sources_study_of_the_same_id_opens_nothing_here() {
    for (another, opened) in [(None, true), (Some(Address::repeat_byte(0x66)), false)] {
        let mut world = World::defined_by(another).await;
        world.let_in(1, 2);
        assert_eq!(world.decide(&world.request().await).is_ok(), opened, "over TLS, defined by {another:?}");
        let one_time = RecipientSecret::generate().unwrap();
        let question = Question {
            study_id: world.study,
            grantee: world.other.address(),
            one_time_key: one_time.recipient().unwrap().to_bytes().unwrap().into(),
        };
        assert_eq!(world.desk.envelope(&question, now_s()).is_ok(), opened, "over the ledger, defined by {another:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_grantee_of_a_grant_that_holds_gets_the_keys_and_nobody_learns_why_not() {
    let mut world = World::new().await;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let endpoint = world.serve(&tasks, &stop).await;
    let mut refusals = Vec::new();
    // Nothing granted; then a study that nobody knows.
    refusals.push(world.request().await);
    refusals.push(world.asker().request(B256::repeat_byte(0x55), world.identity.spki_sha256()).await.unwrap());
    for request in &refusals {
        let (status, body) = post(&endpoint, request).await.unwrap();
        assert_eq!((status, body.as_slice()), (StatusCode::FORBIDDEN, b"{\"refused\":true}".as_slice()));
    }
    world.let_in(1, 2);
    let delivered = ask(&endpoint, &world.asker(), world.study, TIMEOUT).await.unwrap();
    assert_eq!(delivered.study_uid, STUDY_UID);
    let key = world.other_payload.unwrap_session_key(&delivered.keys[0].wrapped).unwrap();
    assert_eq!((key, delivered.keys[0].preview_only), (world.session_key.clone(), false));

    let good = world.request().await;
    post(&endpoint, &good).await.unwrap();
    let thief = PrivateKeySigner::random();
    let signed = |mut request: KeyRequest, by: &PrivateKeySigner, tls_key: [u8; 32]| {
        let digest = request.digest(world.place, tls_key);
        request.signature = by.sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into();
        request
    };
    let tls_key = world.identity.spki_sha256();
    let mut fresh = Vec::new();
    for _ in 0..9 {
        fresh.push(world.request().await);
    }
    let mut fresh = || fresh.pop().unwrap();
    let bad = [
        good,
        signed(KeyRequest { time: now_s() - CLOCK_SKEW_S_MAX - 5, ..fresh() }, &world.other, tls_key),
        signed(KeyRequest { time: now_s() + CLOCK_SKEW_S_MAX + 5, ..fresh() }, &world.other, tls_key),
        signed(fresh(), &thief, tls_key),
        signed(KeyRequest { grantee: thief.address(), ..fresh() }, &thief, tls_key),
        // Signed for another bridge: what a man in the middle would pass on.
        signed(fresh(), &world.other, [9; 32]),
        KeyRequest { nonce: B256::repeat_byte(4), ..fresh() },
        signed(KeyRequest { encryption_key: certificate_of_a_thief(), ..fresh() }, &world.other, tls_key),
        KeyRequest { signature: Bytes::new(), ..fresh() },
    ];
    for (number, request) in bad.iter().enumerate() {
        let (status, body) = post(&endpoint, request).await.unwrap();
        assert_eq!((status, body.as_slice()), (StatusCode::FORBIDDEN, b"{\"refused\":true}".as_slice()), "{number}");
    }
    world.chain.say(
        CONSENT,
        &Consent::AccessRevoked {
            studyId: world.study,
            grantee: world.other.address(),
            owner: Address::repeat_byte(1),
            seq: 2,
        },
    );
    assert!(matches!(ask(&endpoint, &world.asker(), world.study, TIMEOUT).await, Err(ExchangeError::Refused)));
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

fn certificate_of_a_thief() -> Bytes {
    RecipientSecret::generate().unwrap().recipient().unwrap().to_bytes().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_served_as_far_as_it_goes_and_as_long_as_it_lasts() {
    let mut world = World::new().await;
    world.let_in(1, 1);
    let delivered = world.decide(&world.request().await).unwrap();
    let key = world.other_payload.unwrap_session_key(&delivered.keys[0].wrapped).unwrap();
    assert_eq!((key, delivered.keys[0].preview_only), (world.session_key.preview_key(), true));

    let (other, hash) = (world.other.address(), keccak256(world.certificate()));
    world.chain.allow(world.study, other, 2, 2, hash, (0, now_s() - 10));
    assert!(world.decide(&world.request().await).is_err(), "it is over");
    world.chain.allow(world.study, other, 3, 2, hash, (now_s() + 3600, u64::MAX));
    assert!(world.decide(&world.request().await).is_err(), "it has not begun");
    world.chain.allow(world.study, other, 4, 2, B256::repeat_byte(8), (0, u64::MAX));
    assert!(world.decide(&world.request().await).is_err(), "the owner signed for another key");
    world.chain.allow(world.study, other, 5, 2, hash, (0, u64::MAX));
    assert!(world.decide(&world.request().await).is_ok());
    world.chain.say(REGISTRY, &Sources::SourceSuspended { source: other });
    assert!(world.decide(&world.request().await).is_err(), "the consortium suspended it");
    world.chain.say(REGISTRY, &Sources::SourceReinstated { source: other });
    let owner = Address::repeat_byte(1);
    world.chain.say(REGISTRY, &Studies::StudyTombstoned { studyId: world.study, owner, seq: 1 });
    assert!(world.decide(&world.request().await).is_err(), "the owner wants it served no more");
}

/// Over the ledger as over the wire: as much as is granted, to the key that the owner signed for, and while the site knows what holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_holds_what_would_be_handed_out_and_takes_both_keys() {
    let mut world = World::new().await;
    let one_time = RecipientSecret::generate().unwrap();
    let one_time_key: Bytes = one_time.recipient().unwrap().to_bytes().unwrap().into();
    let (study_id, grantee) = (world.study, world.other.address());
    let question = Question { study_id, grantee, one_time_key };
    assert!(world.desk.envelope(&question, now_s()).is_err(), "nothing is granted");
    world.let_in(1, 1);
    let asked = world.desk.envelope(&question, now_s()).unwrap();
    let opened = open_envelope(&asked, &study_id, &world.other_payload, &one_time).unwrap();
    let delivery: KeyDelivery = serde_json::from_slice(&opened).unwrap();
    let handed_out = world.decide(&world.request().await).unwrap();
    let opens = |delivery: &KeyDelivery| world.other_payload.unwrap_session_key(&delivery.keys[0].wrapped).unwrap();
    assert_eq!(opens(&delivery), opens(&handed_out));
    let keys = |delivery: KeyDelivery| KeyDelivery { keys: Vec::new(), ..delivery };
    assert_eq!(keys(delivery), keys(handed_out));

    // An operator of the grantee alone may ask, but not for another key than the owner's.
    let thief = RecipientSecret::generate().unwrap();
    assert!(open_envelope(&asked, &study_id, &thief, &one_time).is_err());
    assert!(open_envelope(&asked, &study_id, &world.other_payload, &thief).is_err());
    world.chain.allow(study_id, grantee, 2, 2, keccak256(certificate_of_a_thief()), (0, u64::MAX));
    assert!(world.desk.envelope(&question, now_s()).is_err(), "the ledger never saw the key that was signed for");
    world.let_in(3, 2);
    let garbage = Question { one_time_key: Bytes::from_static(b"no key"), ..question.clone() };
    assert!(world.desk.envelope(&garbage, now_s()).is_err());
    let later = now_s() + crate::follow::CURRENT_S_MAX + 5;
    assert!(world.desk.envelope(&question, later).is_err(), "cut off from the ledger");
    world.chain.allow(study_id, grantee, 4, 2, keccak256(world.certificate()), (0, now_s() - 10));
    assert!(world.desk.envelope(&question, now_s()).is_err(), "the grant is over");
}

/// Cut off from the ledger, a site does not learn what was revoked.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_cut_off_from_the_ledger_hands_out_nothing() {
    let mut world = World::new().await;
    world.let_in(1, 2);
    let (first, second) = (world.request().await, world.request().await);
    assert!(world.desk.decide(&first, now_s()).is_ok());
    let later = now_s() + crate::follow::CURRENT_S_MAX + 5;
    assert!(world.desk.decide(&second, later).is_err());
    world.chain.consents.note_current(later);
    assert!(world.desk.decide(&second, later).is_ok());
}

/// Anybody can sign for himself; that must not cost a grantee anything.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_fill_what_is_remembered() {
    let mut world = World::new().await;
    world.let_in(1, 2);
    let good = world.request().await;
    let thief = PrivateKeySigner::random();
    // With the nonce of a request that a grantee is about to make.
    let mut bad = KeyRequest { grantee: thief.address(), ..good.clone() };
    let digest = bad.digest(world.place, world.identity.spki_sha256());
    bad.signature = thief.sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into();
    assert!(world.decide(&bad).is_err());
    assert!(world.decide(&good).is_ok(), "the stranger used up the grantee's nonce");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_key_a_long_request_and_a_slow_client_get_nothing() {
    let mut world = World::new().await;
    world.let_in(1, 2);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let endpoint = world.serve(&tasks, &stop).await;
    // Somebody else's key at the endpoint, and a ledger that names somebody else's: the request never leaves.
    let wrong = Endpoint { tls_key: [7; 32], ..endpoint.clone() };
    assert!(matches!(ask(&wrong, &world.asker(), world.study, TIMEOUT).await, Err(ExchangeError::Impostor)));
    let none = Endpoint { tls_key: [0; 32], ..endpoint.clone() };
    assert!(matches!(ask(&none, &world.asker(), world.study, TIMEOUT).await, Err(ExchangeError::Unreachable(_))));

    let long = KeyRequest { signature: vec![0; REQUEST_BYTES_MAX].into(), ..world.request().await };
    match post(&endpoint, &long).await {
        Ok((status, _)) => assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE),
        Err(error) => assert!(matches!(error, ExchangeError::Away(_)), "{error}"),
    }
    // Garbage instead of TLS ends the connection.
    let mut garbage = TcpStream::connect(endpoint.url.trim_start_matches("https://")).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(TIMEOUT, garbage.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"));
    // Many that say nothing take only their own places, and those for a bounded time.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(endpoint.url.trim_start_matches("https://")).await.unwrap());
    }
    assert!(ask(&endpoint, &world.asker(), world.study, TIMEOUT).await.is_ok());
    let _ =
        tokio::time::timeout(TIMEOUT, silent[0].read_to_end(&mut answer)).await.expect("a silent client is cut off");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[test]
fn the_tls_key_stays_and_is_nobody_s_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::open(dir.path()).unwrap();
    let second = Identity::open(dir.path()).unwrap();
    assert_eq!(first.spki_sha256(), second.spki_sha256());
    let mode = std::fs::metadata(dir.path().join(tls::KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!format!("{first:?}").contains("key:"));
}
