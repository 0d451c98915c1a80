//! Hands out study keys, or refuses: with one answer, after one and the same time, whatever the reason.
//!
//! Must not know how the chain is followed: it asks [`Consents`] what holds now.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Signature, keccak256};
use contracts::messages;
use dicom_scp::Uid;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    CLOCK_SKEW_S_MAX, EpochKey, ImagePlace, KeyDelivery, KeyRequest, Place, REQUEST_BYTES_MAX, STUDY_KEY_PATH,
};
use crate::archive::{Archive, Image};
use crate::audit::{Audit, Event, Party};
use crate::config::piece_mode_name;
use crate::follow::{Consents, Decision, Grant, Mode, Question, Scope};
use crate::keyring::{Keyring, StudyKeys};
use crate::ledger::Ledger;
use crate::payload::envelope::seal_envelope;
use crate::payload::keys::Recipient;
use crate::study::ImageKind;

/// Connections served at once; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// Longest life of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// Longest wait for a handshake, or for the head of a request.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Every answer about a study takes this long, so that its time tells nothing.
const ANSWER_AFTER: Duration = Duration::from_millis(60);
/// Requests of one address within [`RATE_WINDOW`].
const RATE_MAX: u32 = 300;
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Addresses and nonces remembered.
const REMEMBERED_MAX: usize = 16_384;
/// The one refusal.
const REFUSAL: &str = "{\"refused\":true}";

/// Who this site is, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The ledger that it is on.
    pub place: Place,
    /// The source that it is there, wherever its key is.
    pub source: Address,
}

impl Standing {
    /// As a client of the ledger has it. None until the ledger has said which source this is.
    #[must_use]
    pub fn of(ledger: &Ledger) -> Option<Self> {
        ledger.known_source().map(|source| Self { place: Place::of(ledger), source })
    }
}

/// Who this site is, as soon as that is known.
pub type StandingOf = Arc<dyn Fn() -> Option<Standing> + Send + Sync>;

/// Who may have what.
#[derive(Clone)]
pub struct Desk(Arc<Inner>, Audit);

struct Inner {
    archive: Archive,
    keyring: Keyring,
    consents: Consents,
    standing: StandingOf,
    tls_key: [u8; 32],
    /// Nonces of requests by grantees, and when each was made.
    nonces: Mutex<HashMap<B256, u64>>,
    rates: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

/// Why a request is refused: for the log, never for the peer.
type Why = String;

fn because(error: impl std::error::Error + 'static) -> Why {
    crate::chain_of(&error)
}

impl Desk {
    /// Joins the parts. `tls_key` is the SHA-256 of the key that this site answers with.
    #[must_use]
    pub fn new(
        archive: Archive,
        keyring: Keyring,
        consents: Consents,
        standing: StandingOf,
        tls_key: [u8; 32],
    ) -> Self {
        let (nonces, rates) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { archive, keyring, consents, standing, tls_key, nonces, rates }), Audit::off())
    }

    /// The same, with what it decides recorded.
    #[must_use]
    pub fn with_audit(self, audit: Audit) -> Self {
        Self(self.0, audit)
    }

    /// Decides about one request, now. Blocks.
    ///
    /// # Errors
    /// Why not, for this site's log alone.
    pub fn decide(&self, request: &KeyRequest, now_s: u64) -> Result<KeyDelivery, Why> {
        let standing = self.standing()?;
        self.authenticate(request, standing.place, now_s)?;
        let (grant, scope) = self.holding(&standing, request.study_id, request.grantee, now_s)?;
        let wanted = keccak256(&request.encryption_key);
        if !self.key_is_meant(&grant, now_s, wanted)? {
            return Err("keys are asked for another OpenPGP key than the owner signed for".into());
        }
        // Only now, so that nobody without a grant can fill what is remembered.
        self.take_nonce(request, now_s)?;
        self.delivery(&grant, scope, &Recipient::from_bytes(&request.encryption_key).map_err(because)?)
    }

    fn standing(&self) -> Result<Standing, Why> {
        (self.0.standing)().ok_or_else(|| "the ledger has not said yet which source this is".into())
    }

    /// The grant by which a study *of this source* is open now, and how far.
    ///
    /// A study id is whoever's defines it first, and another source can see it before it is defined: what the owner of *its*
    /// study says opens nothing that was received here.
    fn holding(&self, this: &Standing, study_id: B256, grantee: Address, now_s: u64) -> Result<(Grant, Scope), Why> {
        let consents = &self.0.consents;
        if !consents.is_current(now_s) {
            return Err("this site is cut off from the ledger and may not know what was revoked".into());
        }
        let grant = consents.in_effect(study_id, grantee).map_err(because)?.ok_or("nothing was ever granted")?;
        if grant.source != this.source {
            return Err(format!("the study of this id on the ledger is one of source {}", grant.source));
        }
        let scope = grant.scope_at(now_s).ok_or("no grant holds now")?;
        Ok((grant, scope))
    }

    /// Answers a question on the ledger, which took its asker's word for it: an envelope with what [`Self::decide`] would hand out. Blocks.
    ///
    /// # Errors
    /// Why not, for this site's log alone.
    pub fn envelope(&self, question: &Question, now_s: u64) -> Result<Vec<u8>, Why> {
        const WAY: &str = "over the ledger";
        let (asker, study) = (Party::asking(&question.grantee.to_string(), None), question.study_id.to_string());
        match self.sealed(question, now_s) {
            Ok(envelope) => {
                self.1.durable_blocking(Event::keys_handed_out(&asker, &study, WAY)).map_err(because)?;
                Ok(envelope)
            }
            Err(why) => {
                self.1.record(Event::keys_refused(&asker, Some(&study), WAY, &why));
                Err(why)
            }
        }
    }

    fn sealed(&self, question: &Question, now_s: u64) -> Result<Vec<u8>, Why> {
        let (grant, scope) = self.holding(&self.standing()?, question.study_id, question.grantee, now_s)?;
        let lasting = Recipient::from_bytes(&self.certificate_meant(&grant, now_s)?).map_err(because)?;
        let one_time = Recipient::from_bytes(&question.one_time_key).map_err(because)?;
        let delivery = serde_json::to_vec(&self.delivery(&grant, scope, &lasting)?).map_err(because)?;
        let envelope = seal_envelope(&delivery, &question.study_id, &lasting, &one_time).map_err(because)?;
        match envelope.len() {
            0..=messages::ENVELOPE_BYTES_MAX => Ok(envelope),
            bytes => Err(format!("the keys of all epochs take {bytes} bytes, more than fit into an envelope")),
        }
    }

    /// The OpenPGP key that the grant is meant for, of those that the ledger has seen.
    fn certificate_meant(&self, grant: &Grant, now_s: u64) -> Result<Bytes, Why> {
        let consents = &self.0.consents;
        let requests = consents.requests(Some(grant.study_id)).map_err(because)?;
        let asked = requests.into_iter().filter(|request| request.grantee == grant.grantee);
        let stated = consents.source(grant.grantee).map_err(because)?;
        let known = asked.map(|request| request.encryption_key).chain(stated.map(|source| source.openpgp_key));
        for certificate in known {
            if self.key_is_meant(grant, now_s, keccak256(&certificate))? {
                return Ok(Bytes::copy_from_slice(&certificate));
            }
        }
        Err("the ledger has not seen the OpenPGP key that the owner signed for".into())
    }

    /// What a grant lets its grantee have, as far as `scope` goes, with keys that `recipient` alone can open. Blocks.
    fn delivery(&self, grant: &Grant, scope: Scope, recipient: &Recipient) -> Result<KeyDelivery, Why> {
        let this = &self.0;
        let uid = this.archive.study_of_id(&grant.study_id).map_err(because)?.ok_or("the study is not ours")?;
        let keys = this.keyring.study(&uid).map_err(because)?.ok_or("the study has no keys")?;
        let images = this.archive.images_of(&uid, grant.version).map_err(because)?;
        let manifest = images.into_iter().find(|image| image.kind == ImageKind::Manifest);
        let mut manifest =
            manifest.filter(|image| image.id == grant.manifest_image).ok_or("nothing is published yet")?;
        let mut series = None;
        if !scope.series.is_zero() {
            let salt = B256::from(*keys.salt.as_bytes());
            let parts = this.archive.series_manifests(&uid, grant.version).map_err(because)?;
            let granted = |part: &Image| messages::salted(salt, part.subject.as_str().as_bytes()) == scope.series;
            manifest = parts.into_iter().find(granted).ok_or("nothing of the granted series is published yet")?;
            series = manifest.series;
        }
        Ok(KeyDelivery {
            study_uid: uid.to_string(),
            salt: B256::from(*keys.salt.as_bytes()),
            series: series.map(|series| series.to_string()),
            keys: wrapped_keys(&keys, scope.mode, series.as_ref(), recipient)?,
            version: grant.version,
            manifest: ImagePlace {
                image: manifest.id,
                pieces: manifest.map.pieces,
                piece_bytes: manifest.map.piece_bytes,
                sealed_bytes: manifest.map.sealed_bytes,
                root: manifest.map.root,
                mode: piece_mode_name(manifest.mode).to_owned(),
            },
        })
    }

    /// Whether the request is of now and of somebody who acts for the grantee.
    fn authenticate(&self, request: &KeyRequest, place: Place, now_s: u64) -> Result<(), Why> {
        if request.time.abs_diff(now_s) > CLOCK_SKEW_S_MAX {
            return Err("the request is of another time".into());
        }
        let signature = Signature::try_from(request.signature.as_ref()).map_err(because)?;
        if signature.normalize_s().is_some() {
            return Err("the signature is not the canonical one".into());
        }
        let digest = request.digest(place, self.0.tls_key);
        let signer = signature.recover_address_from_prehash(&digest).map_err(because)?;
        if !self.acts_for(signer, request.grantee)? {
            return Err(format!("account {signer} does not act for {}", request.grantee));
        }
        Ok(())
    }

    /// A source is spoken for by its operators, anybody else by himself.
    fn acts_for(&self, signer: Address, grantee: Address) -> Result<bool, Why> {
        Ok(self.0.consents.spoken_for_by(signer).map_err(because)?.contains(&grantee))
    }

    fn take_nonce(&self, request: &KeyRequest, now_s: u64) -> Result<(), Why> {
        let mut nonces = self.0.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() >= REMEMBERED_MAX {
            nonces.retain(|_, made| made.saturating_add(CLOCK_SKEW_S_MAX) >= now_s);
        }
        if nonces.len() >= REMEMBERED_MAX {
            return Err("too many requests".into());
        }
        match nonces.insert(request.nonce, request.time) {
            None => Ok(()),
            Some(made) => {
                // The later of both is what must not be forgotten too early.
                nonces.insert(request.nonce, made.max(request.time));
                Err("the request was made before".into())
            }
        }
    }

    /// The owner signs for a key; an emergency has no owner's word, so what the source states itself must do.
    fn key_is_meant(&self, grant: &Grant, now_s: u64, wanted: B256) -> Result<bool, Why> {
        if grant.decision == Decision::Allowed && !grant.encryption_key.is_zero() && grant.encryption_key == wanted {
            return Ok(true);
        }
        if !grant.emergency_at(now_s) && !grant.encryption_key.is_zero() {
            return Ok(false);
        }
        let stated = self.0.consents.source(grant.grantee).map_err(because)?;
        Ok(stated.is_some_and(|source| !source.encryption_key.is_zero() && source.encryption_key == wanted))
    }

    /// Whether an address may ask once more.
    fn within_rate(&self, address: IpAddr) -> bool {
        let (address, now) = (network_of(address), Instant::now());
        let mut rates = self.0.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= REMEMBERED_MAX {
            rates.retain(|_, (since, _)| now.duration_since(*since) < RATE_WINDOW);
        }
        if rates.len() >= REMEMBERED_MAX {
            return false;
        }
        let (since, count) = rates.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= RATE_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= RATE_MAX
    }

    /// Answers one request, within [`ANSWER_AFTER`] and what it takes to read it.
    pub(crate) async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let began = Instant::now();
        if request.method() != Method::POST || request.uri().path() != STUDY_KEY_PATH {
            return plain(StatusCode::NOT_FOUND, "");
        }
        if !self.within_rate(peer.ip()) {
            return plain(StatusCode::TOO_MANY_REQUESTS, "");
        }
        let body = match Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return plain(StatusCode::PAYLOAD_TOO_LARGE, ""),
        };
        let decided = self.decide_bytes(body, peer.ip()).await;
        tokio::time::sleep_until(began + ANSWER_AFTER).await;
        match decided {
            Ok(json) => plain(StatusCode::OK, json),
            Err(why) => {
                tracing::info!(%peer, why, "refused the keys of a study");
                plain(StatusCode::FORBIDDEN, REFUSAL)
            }
        }
    }

    async fn decide_bytes(&self, body: Bytes, from: IpAddr) -> Result<String, Why> {
        const WAY: &str = "over TLS";
        let request: KeyRequest = serde_json::from_slice(&body).map_err(because).inspect_err(|why| {
            self.1.record(Event::keys_refused(&Party::asking("unknown", Some(from)), None, WAY, why));
        })?;
        let (asker, study) = (Party::asking(&request.grantee.to_string(), Some(from)), request.study_id.to_string());
        let decided = self.decide_request(request).await.inspect_err(|why| {
            self.1.record(Event::keys_refused(&asker, Some(&study), WAY, why));
        })?;
        self.1.durable(vec![Event::keys_handed_out(&asker, &study, WAY)]).await.map_err(because)?;
        Ok(decided)
    }

    async fn decide_request(&self, request: KeyRequest) -> Result<String, Why> {
        let (desk, study_id, grantee) = (self.clone(), request.study_id, request.grantee);
        let decided = tokio::task::spawn_blocking(move || desk.decide(&request, now_s())).await;
        let delivery = decided.map_err(because)??;
        tracing::info!(%study_id, %grantee, "handed out the keys of a study");
        serde_json::to_string(&delivery).map_err(because)
    }
}

/// The keys of every epoch: what was sealed before somebody else was shut out is still granted to this one.
fn wrapped_keys(
    keys: &StudyKeys,
    mode: Mode,
    series: Option<&Uid>,
    recipient: &Recipient,
) -> Result<Vec<EpochKey>, Why> {
    let mut wrapped = Vec::new();
    for (epoch, key) in keys.epochs() {
        // The session key leads to the preview key; from the key of a series' objects nothing leads to that of its previews.
        let of_previews = (mode == Mode::Preview || series.is_some()).then(|| key.preview_key());
        let of_objects = (mode == Mode::Full).then(|| key.clone());
        for (key, preview_only) in [(of_previews, true), (of_objects, false)] {
            let Some(key) = key else { continue };
            let key = series.map_or_else(|| key.clone(), |series| key.of_series(series));
            wrapped.push(EpochKey { epoch, preview_only, wrapped: key.wrap(recipient).map_err(because)?.into() });
        }
    }
    Ok(wrapped)
}

/// Whose address it is: of IPv6 the first 64 bits, because the others are free for whoever has these.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    desk: Desk,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                let (acceptor, desk, stop) = (acceptor.clone(), desk.clone(), stop.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        ended = tokio::time::timeout(CONNECTION_MAX, converse(stream, peer, acceptor, desk)) => {
                            if let Ok(Err(why)) = ended {
                                tracing::debug!(%peer, why, "a connection between bridges ended");
                            }
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of another bridge");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, desk: Desk) -> Result<(), Why> {
    let stream = tokio::time::timeout(STEP_MAX, acceptor.accept(stream)).await.map_err(because)?.map_err(because)?;
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request, peer).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(STEP_MAX)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(because)
}
