//! The DICOM door: DIMSE services over this site's archive and retrieval, as far as access allows.
//!
//! Policy is asked for, never made here. Must not know SQL, pieces or keys.

pub mod echo;
pub mod encrypted;
pub(crate) mod trail;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use dicom_scp::dataset::DataSet;
use dicom_scp::matching::Query;
use dicom_scp::scp::{Destination, ScpOptions, Selected, Services};
use dicom_scp::scu::{ScuOptions, Secure};
use dicom_scp::{
    AeTitle, AssociationRequest, Content, Failure, ObjectStream, Offer, Reason, Rejection, StoreHead, StoreSink,
    Stored, TransferSyntax, Uid,
};
use futures::stream::{BoxStream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::access::{Access, Certificate, Principal, Visible, Way};
use crate::archive::{self, Accepted, ArchiveError, Incoming, ObjectHead};
use crate::audit::{Event, Party};
use crate::config::{self, Operation};
use crate::recode::{RecodeError, Recoding};
use crate::retrieve::{self, CheckedFile, Opened, RetrieveError, SourceError};
use crate::site::Site;
use crate::tls;
use trail::{Sending, Trail};

/// Matches that wait for the peer to take them.
const MATCHES_AHEAD: usize = 64;

/// The services of this site.
pub struct Door {
    site: Site,
    access: Access,
    ae_title: AeTitle,
    tasks: TaskTracker,
}

/// An association, as the door remembers it.
pub struct Session {
    principal: Principal,
    trail: Arc<Trail>,
}

/// A selected object, and what keeps its fetching ahead alive.
#[derive(Clone)]
pub struct Handle {
    stored: archive::Stored,
    sending: Arc<Sending>,
    _ahead: Arc<DropGuard>,
}

/// The limits and timers that the configuration asks for.
#[must_use]
pub fn options(config: &config::Dicom) -> ScpOptions {
    let milliseconds = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    ScpOptions {
        called_ae_titles: if config.check_called_ae { vec![config.ae_title.clone()] } else { Vec::new() },
        offer: Offer {
            relational_queries: true,
            private_storage_classes: config.private_storage_classes.clone(),
            ..Offer::default()
        },
        associations_max: config.associations_max,
        pdu_bytes_max: config.pdu_bytes_max,
        artim_timeout_ms: milliseconds(config.artim_timeout),
        idle_timeout_ms: milliseconds(config.idle_timeout),
        dimse_timeout_ms: milliseconds(config.dimse_timeout),
        ..ScpOptions::default()
    }
}

impl Door {
    /// A door to `site`; tasks it starts are tracked in `tasks`.
    #[must_use]
    pub fn new(site: Site, access: Access, ae_title: AeTitle, tasks: TaskTracker) -> Self {
        Self { site, access, ae_title, tasks }
    }

    /// Opens an object in another transfer syntax than it is stored in.
    async fn open_as(&self, handle: &Handle, wanted: &TransferSyntax) -> Result<ObjectStream, Failure> {
        let stored = &handle.stored;
        let way = Recoding::new(&stored.transfer_syntax, wanted.uid());
        let way = way.ok_or_else(|| Failure::new(Reason::Internal, "no way into this transfer syntax"))?;
        let opened = way.open_data_set(self.site.retrieve(), stored).await;
        let source = opened.map_err(|error| match error {
            RecodeError::Retrieve(error) => not_opened(stored, &error),
            error => {
                let words = crate::chain_of(&error);
                let (uid, to) = (&stored.sop_instance, wanted.name());
                tracing::warn!(%uid, to, error = words, "an object cannot be sent in a transfer syntax that the receiver takes");
                Failure::new(Reason::CannotUnderstand, "the object cannot be decoded for this receiver")
            }
        })?;
        handle.sending.leaves(stored);
        Ok(ObjectStream { transfer_syntax: *wanted, bytes: 0, content: Content::Made(Box::new(made(source))) })
    }

    fn allowed(&self, session: &Session, operation: Operation) -> Result<(), Failure> {
        if self.access.may(&session.principal, operation) {
            return Ok(());
        }
        session.trail.refused(operation);
        let what = operation.name();
        tracing::info!(principal = ?session.principal, operation = what, "refused: not allowed by the configuration");
        Err(Failure::new(Reason::NotAuthorized, format!("this ae title may not {what} here")))
    }
}

impl Services for Door {
    type Session = Session;
    type Sink = Sink;
    type Handle = Handle;
    type Matches = BoxStream<'static, Result<DataSet, Failure>>;

    fn admit(&self, request: &AssociationRequest) -> Result<Session, Rejection> {
        let certificate = request.peer_certificate.as_deref().map(read_certificate);
        let way =
            Way { from: request.peer.ip(), is_encrypted: request.is_encrypted, certificate: certificate.as_ref() };
        match self.access.dicom_caller(&request.calling, way) {
            Ok(principal) => {
                let caller = Party::calling(request.calling.as_str(), request.peer.ip());
                Ok(Session { principal, trail: Trail::new(self.site.audit().clone(), caller) })
            }
            Err(refused) => {
                tracing::warn!(peer = %request.peer, reason = %refused, "association refused");
                Err(Rejection::CallingAeTitle)
            }
        }
    }

    fn rejected(&self, peer: SocketAddr, calling: &str, called: &str, reason: &Rejection) {
        let why = format!("{reason}; called AE title {called}");
        self.site.audit().record(Event::association_refused(&Party::calling(calling, peer.ip()), &why));
    }

    async fn begin_store(&self, session: &Session, head: &StoreHead) -> Result<Sink, Failure> {
        self.allowed(session, Operation::Store)?;
        let object = ObjectHead {
            sop_class: head.sop_class,
            sop_instance: head.sop_instance,
            transfer_syntax: *head.transfer_syntax.uid(),
            calling_ae: head.calling.to_string(),
        };
        let trail = session.trail.clone();
        match self.site.archive().begin(object) {
            Ok(incoming) => Ok(Sink { incoming, sop_class: head.sop_class, trail }),
            Err(error) => {
                trail.not_stored();
                Err(store_failure(&error))
            }
        }
    }

    async fn find(&self, session: &Session, query: Query) -> Result<Self::Matches, Failure> {
        self.allowed(session, Operation::Find)?;
        session.trail.query(&query)?;
        if self.access.visible(&session.principal, Operation::Find) == Visible::Nothing {
            return Ok(futures::stream::empty().boxed());
        }
        let (matches, found) = mpsc::channel(MATCHES_AHEAD);
        let (archive, ae_title) = (self.site.archive().clone(), self.ae_title.to_string());
        self.tasks.spawn_blocking(move || {
            let searched = archive.search(&query, &ae_title, |answer| matches.blocking_send(Ok(answer)).is_ok());
            if let Err(error) = searched {
                tracing::error!(error = %crate::chain_of(&error), "a query failed");
                let _ = matches.blocking_send(Err(Failure::new(Reason::Internal, "the index failed")));
            }
        });
        Ok(futures::stream::unfold(found, |mut found| async move { Some((found.recv().await?, found)) }).boxed())
    }

    async fn select(
        &self,
        session: &Session,
        operation: dicom_scp::Operation,
        query: Query,
    ) -> Result<Vec<Selected<Handle>>, Failure> {
        let get = operation == dicom_scp::Operation::Get;
        self.allowed(session, if get { Operation::Get } else { Operation::Move })?;
        let archive = self.site.archive().clone();
        let selected = tokio::task::spawn_blocking(move || archive.select(&query)).await;
        let selected = selected.map_err(|_| Failure::new(Reason::Internal, "the index failed"))?;
        let objects = selected.map_err(|error| {
            tracing::error!(error = %crate::chain_of(&error), "a retrieve could not be resolved");
            Failure::new(Reason::Internal, "the index failed")
        })?;
        let sending = session.trail.sends(!get, &objects).await?;
        let stop = CancellationToken::new();
        let ahead = Arc::new(stop.clone().drop_guard());
        if objects.iter().any(|stored| stored.path.is_none()) {
            let (retrieve, wanted) = (self.site.retrieve().clone(), objects.clone());
            self.tasks.spawn(async move { retrieve.fetch_ahead(wanted, stop).await });
        }
        let handle = |stored| Handle { stored, sending: sending.clone(), _ahead: ahead.clone() };
        Ok(objects
            .into_iter()
            .filter_map(|stored| {
                let transfer_syntax = TransferSyntax::of(&stored.transfer_syntax)?;
                let (sop_class, sop_instance) = (stored.sop_class, stored.sop_instance);
                let others = others(&transfer_syntax);
                Some(Selected { sop_class, sop_instance, transfer_syntax, others, handle: handle(stored) })
            })
            .collect())
    }

    async fn open(
        &self,
        _session: &Session,
        handle: &Handle,
        wanted: &TransferSyntax,
    ) -> Result<ObjectStream, Failure> {
        let stored = &handle.stored;
        if stored.transfer_syntax != *wanted.uid() {
            return self.open_as(handle, wanted).await;
        }
        let opened = self.site.retrieve().open(stored).await;
        let Opened { content, bytes } = opened.map_err(|error| not_opened(stored, &error))?;
        let transfer_syntax = TransferSyntax::of(&stored.transfer_syntax)
            .ok_or_else(|| Failure::new(Reason::Internal, "unknown transfer syntax"))?;
        let content = match content {
            retrieve::Content::Whole(bytes) => Content::Whole(bytes),
            retrieve::Content::File(file) => Content::Reader(Box::new(LocalFile(file))),
        };
        handle.sending.leaves(stored);
        Ok(ObjectStream { transfer_syntax, bytes, content })
    }

    async fn destination(&self, session: &Session, ae_title: &AeTitle) -> Result<Destination, Failure> {
        self.allowed(session, Operation::Move)?;
        match self.access.peer(ae_title).filter(|peer| peer.port != 0) {
            Some(peer) => {
                let (host, port) = (peer.host.clone(), peer.port);
                session.trail.goes_to(ae_title.as_str(), &host);
                let options = ScuOptions::new(self.ae_title.clone(), ae_title.clone());
                let secure = secure(peer.clone()).await?;
                Ok(Destination { host, port, options: ScuOptions { secure, ..options } })
            }
            None => {
                session.trail.goes_nowhere(ae_title.as_str());
                tracing::warn!(destination = %ae_title, "C-MOVE to an unknown destination; add a [[peer]] with this ae_title, host and port");
                Err(Failure::new(Reason::UnknownDestination, format!("add [[peer]] {ae_title} with host and port")))
            }
        }
    }
}

/// What encrypts the connection to a move destination. Its files are read on a thread that may wait for a disk.
async fn secure(peer: config::Peer) -> Result<Option<Arc<dyn Secure>>, Failure> {
    let ae_title = peer.ae_title.clone();
    let read = tokio::task::spawn_blocking(move || encrypted::towards(&peer)).await;
    let read = read.map_err(|_| Failure::new(Reason::Internal, "TLS settings"))?;
    read.map_err(|error| {
        tracing::error!(destination = %ae_title, error = %crate::chain_of(&error), "no TLS towards a move destination");
        Failure::new(Reason::Internal, "TLS towards the destination is not set up; see the log")
    })
}

fn read_certificate(der: &[u8]) -> Certificate {
    Certificate { sha256: Sha256::digest(der).into(), names: tls::names(der) }
}

/// Takes one object into the archive.
pub struct Sink {
    incoming: Incoming,
    sop_class: Uid,
    trail: Arc<Trail>,
}

impl StoreSink for Sink {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.incoming.append(data).map_err(|error| {
            self.trail.not_stored();
            store_failure(&error)
        })
    }

    async fn finish(self) -> Result<Stored, Failure> {
        let study = self.incoming.study_uid();
        match self.incoming.finish().await {
            Ok(Accepted::New | Accepted::Same | Accepted::Replaced) => {
                if let Some(study) = study {
                    self.trail.stored(study, self.sop_class);
                }
                Ok(Stored::default())
            }
            Err(error) => {
                self.trail.not_stored();
                Err(store_failure(&error))
            }
        }
    }
}

/// PS3.4 B.2.3: which status answers a C-STORE that failed. PS3.18 10.5.3 has the same for objects that come over HTTP.
pub(crate) fn store_failure(error: &ArchiveError) -> Failure {
    let text = crate::chain_of(error);
    tracing::warn!(error = text, "an object was not stored");
    match error {
        ArchiveError::Full(_) => Failure::new(Reason::OutOfResources, "no space left"),
        ArchiveError::Poisoned | ArchiveError::Io(..) | ArchiveError::Index(_) | ArchiveError::Closed => {
            Failure::new(Reason::OutOfResources, "storage failure; see the log of the receiver")
        }
        ArchiveError::Lacks(_)
        | ArchiveError::Undecodable(_)
        | ArchiveError::DuplicateDiffers
        | ArchiveError::Derived(_) => Failure::new(Reason::CannotUnderstand, text),
        ArchiveError::Mismatch { .. } => Failure::new(Reason::DataSetMismatch, text),
        ArchiveError::Version { .. } | ArchiveError::Corrupt(_) | ArchiveError::Foreign(_) => {
            Failure::new(Reason::Internal, "internal error")
        }
    }
}

/// In which transfer syntaxes objects can be had besides their own: decoded, for who takes uncompressed ones alone. Those that differ in their encoding alone are
/// made of each other on the way.
fn others(stored: &TransferSyntax) -> Vec<TransferSyntax> {
    let plain = [TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE];
    if plain.contains(stored) {
        return Vec::new();
    }
    plain.into_iter().filter(|to| Recoding::new(stored.uid(), to.uid()).is_some()).collect()
}

fn not_opened(stored: &archive::Stored, error: &RetrieveError) -> Failure {
    match error {
        RetrieveError::NotGranted(_) => tracing::info!(%error, "refused an object"),
        error => {
            let error = crate::chain_of(error);
            tracing::error!(uid = %stored.sop_instance, error, "an object cannot be opened");
        }
    }
    open_failure(error)
}

fn open_failure(error: &RetrieveError) -> Failure {
    match error {
        RetrieveError::Ledger(_) | RetrieveError::NoLedger | RetrieveError::GivenUp => {
            Failure::new(Reason::OutOfResources, "the ledger does not answer")
        }
        RetrieveError::Source(SourceError::Away(_) | SourceError::Broken(_)) => {
            Failure::new(Reason::OutOfResources, "the site that keeps the object does not answer")
        }
        RetrieveError::Source(SourceError::Refused(_)) => {
            Failure::new(Reason::NotAuthorized, "the site that keeps the object refuses it")
        }
        RetrieveError::Nowhere(_) => Failure::new(Reason::NoSuchInstance, "the object is gone"),
        RetrieveError::NotGranted(_) => Failure::new(Reason::NotAuthorized, "only previews of this study are granted"),
        _ => Failure::new(Reason::Internal, "the object cannot be read"),
    }
}

/// Bytes of what is made that are handed over at once.
const MADE_RUN_BYTES: usize = 256 * 1024;
/// Runs of them that wait for the peer.
const MADE_RUNS_AHEAD: usize = 1;

/// What is made on a thread that may take its time, as an asynchronous reader. It ends where the whole was given, and with an error where that cannot
/// be done: nobody takes half of it for the whole.
fn made(mut source: Box<dyn Read + Send>) -> impl AsyncRead + Send + Unpin {
    let (runs, mut taken) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(MADE_RUNS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut run = Vec::with_capacity(MADE_RUN_BYTES);
            let read = source.by_ref().take(MADE_RUN_BYTES as u64).read_to_end(&mut run);
            let is_last = !matches!(read, Ok(1..));
            if runs.blocking_send(read.map(|_| run.into())).is_err() || is_last {
                return;
            }
        }
    });
    let mut ended = false;
    tokio_util::io::StreamReader::new(futures::stream::poll_fn(move |context| {
        if ended {
            return Poll::Ready(None);
        }
        let run = ready!(taken.poll_recv(context)).unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into()));
        ended = !matches!(&run, Ok(run) if !run.is_empty());
        // An empty run is the end.
        Poll::Ready(Some(run).filter(|run| !matches!(run, Ok(run) if run.is_empty())))
    }))
}

/// A local file as an asynchronous reader. Reads block for as long as the disk needs, which for a page cache hit is less
/// than handing the read to another thread.
struct LocalFile(CheckedFile);

impl AsyncRead for LocalFile {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = self.0.read(buf.initialize_unfilled())?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}
