//! The door for documents: signed ITI-43 Retrieve Document Set (ITI TF-2 3.43) and RAD-69 Retrieve Imaging Document Set (RAD TF-2 4.69), as
//! docs/IHE.md describes them.
//!
//! `ihe_retrieve` knows the wire. This module puts a verified request through the order of the wire contract: replay, repository, study,
//! grant, then the answer, streamed. Who may have what is for [`crate::access`] and the followed ledger to say, and objects come from
//! [`crate::retrieve`], proven as for every door.
//!
//! * [`document`]: which document is meant, whether it may be had, what it is made of.
//! * [`replay`]: messages that were answered.
//! * [`selection`]: the key object selection document that names them.
//! * [`stream`]: the octets, one object at a time.
//! * [`listen`]: connections and their limits.
//! * [`places`]: connections of one network that wait.
//! * [`ask`]: the other side: asks another site, for
//! * [`request_key`]: with which key,
//! * [`fetch`]: a study as a file, and
//! * [`bring`]: objects that it keeps, for every door here.
//!
//! Must not know SQL of the archive, pieces, keys of studies, or how the chain is followed.

mod ask;
mod bring;
mod document;
mod fetch;
mod listen;
mod places;
mod replay;
mod request_key;
mod selection;
mod stream;

pub use ask::AskError;
pub use bring::FromSources;
pub use document::SeriesNames;
pub use fetch::{Ask, FetchError, Fetched, fetch};
pub use listen::serve;
pub use replay::{DATABASE, ReplayError};
pub use request_key::bind as bind_request_key;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::Address;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use ihe_retrieve::fault::{Fault, FaultStatus};
use ihe_retrieve::identifier::DocumentUniqueId;
use ihe_retrieve::key::RequesterKey;
use ihe_retrieve::limits::{CLOCK_SKEW_MS, REQUEST_BYTES_MAX};
use ihe_retrieve::message::{Framing, RequestHead};
use ihe_retrieve::request::{DocumentRequest, Retrieve as Asked};
use ihe_retrieve::response::{Outcome, RegistryErrorCode, respond};
use ihe_retrieve::verify::{Policy, Refusal, VerifiedRequest, verify};
use rand::RngCore as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::archive::Archive;
use crate::audit::{Audit, Event, Party};
use crate::config::Xds;
use crate::follow::{Consents, FollowError};
use crate::ledger::LedgerSlot;
use crate::retrieve::Retrieve;
use document::{Clerk, Document, Trouble, Wanted};
use places::Place;
use replay::{Replays, Taken};
use stream::{Body, Pipe, linger};

/// What the door works on.
pub struct Parts {
    /// Objects and manifests.
    pub archive: Archive,
    /// What the ledger says.
    pub consents: Consents,
    /// Opens objects.
    pub retrieve: Retrieve,
    /// Who this source is.
    pub ledger: LedgerSlot,
    /// What series are called in grants.
    pub series_names: SeriesNames,
    /// `[xds]`.
    pub settings: Xds,
    /// The values of `wsa:To` that are accepted.
    pub addresses: Vec<String>,
    /// What outlives a request.
    pub tasks: TaskTracker,
    /// Where it is recorded who got what.
    pub audit: Audit,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    parts: Parts,
    policy: Policy,
    replays: Replays,
    /// Answers with documents that may be under way at once.
    room: Arc<Semaphore>,
}

/// A verified request of an account.
struct Asker {
    account: Address,
    request: VerifiedRequest,
    /// What is asked for, of either transaction: one for each outcome.
    documents: Vec<DocumentRequest>,
}

/// What was decided about each document.
type Judged = Vec<Result<Wanted, RegistryErrorCode>>;

/// Of which objects one was opened before anything was promised: of those whose file is here, of those that are on the ledger alone.
#[derive(Default)]
struct Probes {
    here: bool,
    elsewhere: bool,
}

/// Why a request gets no answer of the transaction.
enum NoAnswer {
    /// A fault.
    Refused(Refusal),
    /// This site failed before anything was decided.
    Failed(String),
}

impl From<Refusal> for NoAnswer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn failed(error: impl std::error::Error + 'static) -> NoAnswer {
    NoAnswer::Failed(crate::chain_of(&error))
}

impl Door {
    /// Joins the parts; answered messages are remembered in `database`.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn open(database: &Path, parts: Parts) -> Result<Self, ReplayError> {
        let replays = Replays::open(database)?;
        let policy = Policy { addresses: parts.addresses.clone(), imaging: true };
        let room = Arc::new(Semaphore::new(parts.settings.retrieves_max));
        Ok(Self(Arc::new(Inner { parts, policy, replays, room })))
    }

    fn settings(&self) -> &Xds {
        &self.0.parts.settings
    }

    /// Answers one request. The connection ends when `cut` is cancelled, which is how an answer that cannot go on is broken off.
    async fn answer(
        &self,
        request: Request<Incoming>,
        from: IpAddr,
        cut: &CancellationToken,
        place: &Place,
    ) -> Response<Body> {
        let framing = match self.admit(&request) {
            Ok(framing) => framing,
            Err(fault) => return self.refuse(&fault.into(), from, cut),
        };
        let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect();
        let body = match tokio::time::timeout(self.settings().request_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return self.refuse(&Fault::TooLarge.into(), from, cut),
            Ok(Err(_)) | Err(_) => return self.plain(StatusCode::REQUEST_TIMEOUT, cut),
        };
        match self.answer_body(framing, body, from, cut, place).await {
            Ok(response) => response,
            Err(NoAnswer::Refused(refusal)) => self.refuse(&refusal, from, cut),
            Err(NoAnswer::Failed(error)) => {
                tracing::error!(error, "a retrieval failed");
                self.plain(StatusCode::INTERNAL_SERVER_ERROR, cut)
            }
        }
    }

    fn admit(&self, request: &Request<Incoming>) -> Result<Framing, Fault> {
        let field = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
        let head = RequestHead {
            method: request.method().as_str(),
            content_type: field(header::CONTENT_TYPE),
            content_encoding: field(header::CONTENT_ENCODING),
            content_length: field(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        };
        head.admit(self.settings().accept_simple_soap)
    }

    async fn answer_body(
        &self,
        framing: Framing,
        body: Bytes,
        from: IpAddr,
        cut: &CancellationToken,
        place: &Place,
    ) -> Result<Response<Body>, NoAnswer> {
        let door = self.clone();
        let now = now_ms();
        let asker =
            tokio::task::spawn_blocking(move || door.identify(&framing, &body, now)).await.map_err(failed)??;
        let asker = Arc::new(asker);
        let source = self.source().await;
        let (door, asked) = (self.clone(), asker.clone());
        let judged = tokio::task::spawn_blocking(move || door.judge(&asked, source, now)).await.map_err(failed)??;
        if judged.iter().any(Result::is_ok) {
            place.keep();
        }
        let (outcomes, documents, permit) = self.prepare(&asker, judged).await?;
        self.record(&asker, &outcomes);
        let (audit, trail) = (&self.0.parts.audit, self.trail(&asker, &outcomes, from));
        if documents.is_empty() {
            trail.into_iter().for_each(|event| audit.record(event));
        } else {
            // Nothing leaves before it is on the disk that it does.
            audit.durable(trail).await.map_err(failed)?;
        }
        Ok(self.respond(&asker, &outcomes, documents, permit, cut))
    }

    /// Steps 1 to 5 of the processing order: who asks, and whether the message is new. Blocks.
    fn identify(&self, framing: &Framing, body: &[u8], now_ms: i64) -> Result<Asker, NoAnswer> {
        let request = verify(framing, body, &self.0.policy, now_ms)?;
        let refused = |fault| Refusal { fault, message_id: Some(request.message_id().to_owned()) };
        let account = self.account_of(request.key(), now_ms).map_err(failed)?;
        let account = account.ok_or_else(|| refused(Fault::UnsupportedSecurityToken))?;
        let documents = match request.retrieve() {
            Asked::Documents(documents) => documents.clone(),
            Asked::Imaging { documents, .. } => documents.iter().map(|one| one.document.clone()).collect(),
        };
        if self.0.replays.knows(account, request.message_id()).map_err(failed)? {
            return Err(refused(Fault::Replay).into());
        }
        Ok(Asker { account, request, documents })
    }

    /// For whom a key signs: a key of the ledger names its account, a P-256 key was bound to one there. Nobody knows that while the ledger is
    /// away. Blocks.
    fn account_of(&self, key: &RequesterKey, now_ms: i64) -> Result<Option<Address>, FollowError> {
        if let Some(account) = key.account() {
            return Ok(Some(account.into()));
        }
        let Parts { consents, settings, .. } = &self.0.parts;
        let now_s = seconds(now_ms);
        if !consents.is_current_within(now_s, settings.max_head_age.as_secs()) {
            return Ok(None);
        }
        consents.account_of(key.spki_sha256().into(), now_s)
    }

    /// This source as the ledger has it, wherever its key is. None until the ledger answered once.
    async fn source(&self) -> Option<Address> {
        let ledger = self.0.parts.ledger.get()?;
        match tokio::time::timeout(self.settings().request_timeout, ledger.source()).await {
            Ok(Ok(source)) => Some(source),
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::chain_of(&error), "the ledger does not say which source this is");
                None
            }
            Err(_) => None,
        }
    }

    /// Step 6: every document by itself. Blocks.
    fn judge(&self, asker: &Asker, source: Option<Address>, now_ms: i64) -> Result<Judged, NoAnswer> {
        let Parts { archive, consents, settings, series_names, .. } = &self.0.parts;
        let now_s = seconds(now_ms);
        let current = consents.is_current_within(now_s, settings.max_head_age.as_secs());
        let clerk = Clerk { archive, consents, series_names, source, current, now_s };
        let judged = match asker.request.retrieve() {
            Asked::Documents(documents) => {
                documents.iter().map(|request| clerk.judge(asker.account, request)).collect()
            }
            Asked::Imaging { documents, transfer_syntax_uids } => {
                clerk.judge_imaging(asker.account, documents, transfer_syntax_uids)
            }
        };
        // A key that was unbound since it was looked up signs for nobody, whatever the grants were then.
        if self.account_of(asker.request.key(), now_ms).map_err(failed)? == Some(asker.account) {
            return Ok(judged);
        }
        let message_id = Some(asker.request.message_id().to_owned());
        Err(Refusal { fault: Fault::UnsupportedSecurityToken, message_id }.into())
    }

    /// Step 7: remembers the message if anything is allowed, and gets that ready.
    async fn prepare(
        &self,
        asker: &Asker,
        judged: Judged,
    ) -> Result<(Vec<Outcome>, Vec<Document>, Option<OwnedSemaphorePermit>), NoAnswer> {
        let mut permit = None;
        if judged.iter().any(Result::is_ok) {
            permit = self.0.room.clone().try_acquire_owned().ok();
            if permit.is_some() && !self.remember(asker).await? {
                permit = None;
            }
        }
        let (mut outcomes, mut documents) = (Vec::new(), Vec::new());
        let mut probes = Probes::default();
        for one in judged {
            let outcome = match one {
                Err(code) => Outcome::Error(code),
                Ok(_) if permit.is_none() => Outcome::Error(RegistryErrorCode::RepositoryBusy),
                Ok(wanted) => match self.document(wanted, &mut probes).await {
                    Ok(document) => {
                        let outcome = Outcome::Document(document.kind, document.bytes);
                        documents.push(document);
                        outcome
                    }
                    Err(error) => {
                        tracing::error!(error = %crate::chain_of(&error), "a document that is granted cannot be made");
                        Outcome::Error(error.code())
                    }
                },
            };
            outcomes.push(outcome);
        }
        Ok((outcomes, documents, permit))
    }

    /// Gets a document ready, and finds out whether it can be had where that was not seen yet of one like it.
    async fn document(&self, wanted: Wanted, probes: &mut Probes) -> Result<Document, Trouble> {
        let Parts { archive, retrieve, .. } = &self.0.parts;
        if let Some(stored) = wanted.probe() {
            let done = if stored.path.is_some() { &mut probes.here } else { &mut probes.elsewhere };
            if !std::mem::replace(done, true) {
                retrieve.open_file(stored).await?;
            }
        }
        wanted.prepare(archive.clone(), retrieve).await
    }

    /// Remembers the message; false when there is no room for it.
    async fn remember(&self, asker: &Asker) -> Result<bool, NoAnswer> {
        let (replays, account) = (self.0.replays.clone(), asker.account);
        let id = asker.request.message_id().to_owned();
        // Once more than the wire contract asks, because a twin may have been found in time a moment ago and be on its way to here.
        let until = asker.request.expires_ms().saturating_add(2 * CLOCK_SKEW_MS);
        let message_id = Some(id.clone());
        let taken = tokio::task::spawn_blocking(move || replays.take(account, &id, until, now_ms()));
        match taken.await.map_err(failed)?.map_err(failed)? {
            Taken::New => Ok(true),
            Taken::Full => Ok(false),
            Taken::Known => Err(Refusal { fault: Fault::Replay, message_id }.into()),
        }
    }

    /// What became of a request, for the log. Account and documents are pseudonyms; nothing else of a message is repeated, and no text that
    /// names no document, which might be a UID.
    fn record(&self, asker: &Asker, outcomes: &[Outcome]) {
        let account = asker.account;
        if let Asked::Imaging { .. } = asker.request.retrieve() {
            // What is named there are UIDs, and many.
            let sent = |outcome: &Outcome| if let Outcome::Document(_, bytes) = outcome { Some(*bytes) } else { None };
            let (instances, bytes) =
                (outcomes.iter().filter_map(sent).count(), outcomes.iter().filter_map(sent).sum::<u64>());
            let refused = outcomes.len() - instances;
            tracing::info!(%account, instances, bytes, refused, "answers a request for instances");
            return;
        }
        for (request, outcome) in asker.documents.iter().zip(outcomes) {
            let named = DocumentUniqueId::parse(&request.document_unique_id);
            let document = named.map_or_else(|| "unreadable".to_owned(), |named| named.canonical());
            match outcome {
                Outcome::Document(_, bytes) => tracing::info!(%account, %document, bytes, "sends a document"),
                Outcome::Error(code) => tracing::info!(%account, %document, code = code.code(), "refused a document"),
            }
        }
    }

    /// One record of the documents that are handed out, and one for each reason for which others are not.
    fn trail(&self, asker: &Asker, outcomes: &[Outcome], from: IpAddr) -> Vec<Event> {
        let to = Party::asking(&asker.account.to_string(), Some(from));
        if let Asked::Imaging { documents, .. } = asker.request.retrieve() {
            // By their studies: a record of each instance would say no more.
            let mut counts: BTreeMap<(&str, Option<&str>), usize> = BTreeMap::new();
            for (request, outcome) in documents.iter().zip(outcomes) {
                let study = request.study_instance_uid.trim();
                *counts.entry((study, why_not(outcome))).or_default() += 1;
            }
            let event = |((study, why), count)| Event::instances(self.url(), &to, study, count, why);
            return counts.into_iter().map(event).collect();
        }
        let mut by_reason: BTreeMap<Option<&str>, (Vec<String>, Vec<String>)> = BTreeMap::new();
        for (request, outcome) in asker.documents.iter().zip(outcomes) {
            let why = why_not(outcome);
            // What is no name of a document here might be anything.
            let named = DocumentUniqueId::parse(&request.document_unique_id);
            let known = named.map_or_else(|| "unreadable".to_owned(), |_| request.document_unique_id.trim().to_owned());
            let (documents, repositories) = by_reason.entry(why).or_default();
            documents.push(known);
            repositories.push(request.repository_unique_id.clone());
        }
        let mut events = Vec::new();
        for (why, (documents, repositories)) in by_reason {
            events.push(Event::documents(self.url(), &to, &repositories, &documents, why));
        }
        events
    }

    /// The URL that the ledger names.
    fn url(&self) -> &str {
        self.0.parts.addresses.first().map_or("", String::as_str)
    }

    fn respond(
        &self,
        asker: &Asker,
        outcomes: &[Outcome],
        documents: Vec<Document>,
        permit: Option<OwnedSemaphorePermit>,
        cut: &CancellationToken,
    ) -> Response<Body> {
        let outcomes: Vec<_> = asker.documents.iter().zip(outcomes.iter().cloned()).collect();
        let mut nonce = [0; 16];
        rand::rngs::OsRng.fill_bytes(&mut nonce);
        let plan = respond(asker.request.message_id(), &outcomes, nonce);
        let (pipe, body) = Pipe::new(self.settings().request_timeout);
        let mut response = Response::new(body);
        let content_type = HeaderValue::from_str(&plan.content_type());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, plan.content_length().into());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, content_type);
        }
        let (retrieve, cut, account) = (self.0.parts.retrieve.clone(), cut.clone(), asker.account);
        self.0.parts.tasks.spawn(async move {
            let _permit = permit;
            let sent = tokio::select! {
                () = cut.cancelled() => return,
                sent = pipe.message(&plan, &documents, &retrieve) => sent,
            };
            match sent {
                Ok(()) => pipe.linger(&cut).await,
                Err(error) => {
                    tracing::warn!(%account, error = %crate::chain_of(&error), "broke off an answer");
                    cut.cancel();
                }
            }
        });
        response
    }

    fn refuse(&self, refusal: &Refusal, from: IpAddr, cut: &CancellationToken) -> Response<Body> {
        tracing::info!(why = %refusal.fault, "refused a retrieval");
        let asker = Party::asking("unknown", Some(from));
        self.0.parts.audit.record(Event::documents_alert(self.url(), &asker, &refusal.fault.to_string()));
        let status = if self.settings().always_500 { FaultStatus::Always500 } else { FaultStatus::Soap12 };
        let answer = refusal.fault.answer(status, refusal.message_id.as_deref());
        let mut response = self.plain(StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_REQUEST), cut);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        if let Some(allow) = answer.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        *response.body_mut() = full(answer.body);
        response
    }

    /// Ends a connection on which nothing but an answer that is at hand is left, unless it ends by itself.
    fn end_soon(&self, cut: &CancellationToken) {
        let (longest, cut) = (self.settings().request_timeout, cut.clone());
        self.0.parts.tasks.spawn(async move { linger(longest, &cut).await });
    }

    /// An answer without a body.
    fn plain(&self, status: StatusCode, cut: &CancellationToken) -> Response<Body> {
        self.end_soon(cut);
        let mut response = Response::new(full(Vec::new()));
        *response.status_mut() = status;
        response
    }
}

/// Why a document is not handed out, if it is not.
fn why_not(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Document(..) => None,
        Outcome::Error(code) => Some(code.code()),
    }
}

fn full(body: impl Into<Bytes>) -> Body {
    never_fails(Full::new(body.into()))
}

fn never_fails(body: Full<Bytes>) -> Body {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}

fn now_ms() -> i64 {
    let since: Duration = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
