//! The association acceptor: accept loop, limits, timers, and the dispatch of operations to a site's [`Services`].
//!
//! Half-open connections are limited (the oldest makes room), associations before they are answered; every task is tracked and every wait has a
//! limit. Must not know policy (who may do what), storage or configuration formats.

mod association;
mod find;
mod half_open;
mod retrieve;

use crate::{
    AeTitle, DataSet, TransferSyntax, Uid,
    handshake::{self, HandshakeError},
    matching::Query,
    negotiation::{AssociationRequest, Negotiated, Offer, Rejection, association_request, negotiate},
    object::{ObjectStream, StoreHead, StoreSink},
    scu::ScuOptions,
    status::{Failure, Operation},
    transport::{AbortSource, Stream, Transport},
};
use association::Association;
use bytes::BytesMut;
use dicom_ul::pdu::{AbortRQSource, Pdu};
use futures::Stream as FuturesStream;
use half_open::{HalfOpen, Place};
use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// What a site does when asked. One value serves all associations.
pub trait Services: Send + Sync + 'static {
    /// What the site remembers of an association, such as who the peer is. Dropped when the association ends.
    type Session: Send + Sync + 'static;
    /// Takes one object.
    type Sink: StoreSink;
    /// Finds an object again between [`Services::select`] and [`Services::open`].
    type Handle: Send + Sync + Clone;
    /// The matches of a query.
    type Matches: FuturesStream<Item = Result<DataSet, Failure>> + Send + Unpin;

    /// Decides whether there is an association. Called AE titles have been checked against [`ScpOptions::called_ae_titles`] before.
    ///
    /// # Errors
    /// The rejection goes to the peer.
    fn admit(&self, request: &AssociationRequest) -> Result<Self::Session, Rejection>;

    /// An association was rejected, here or by [`Services::admit`]. The titles are as the peer wrote them, unprintable characters left out.
    fn rejected(&self, peer: SocketAddr, calling: &str, called: &str, reason: &Rejection) {
        let _ = (peer, calling, called, reason);
    }

    /// An object begins to arrive.
    ///
    /// # Errors
    /// The object is read and thrown away, and the failure answers the C-STORE.
    fn begin_store(
        &self,
        session: &Self::Session,
        head: &StoreHead,
    ) -> impl Future<Output = Result<Self::Sink, Failure>> + Send;

    /// C-FIND. The matches are sent as they come; dropping the stream means that nobody waits for more. [`Query::project`] makes a reply
    /// of an entity; character set, level and Retrieve AE Title are added here.
    ///
    /// # Errors
    /// The failure answers the C-FIND.
    fn find(
        &self,
        session: &Self::Session,
        query: Query,
    ) -> impl Future<Output = Result<Self::Matches, Failure>> + Send;

    /// The objects of a C-MOVE or C-GET; `operation` tells which, for a peer that may do one and not the other.
    ///
    /// # Errors
    /// The failure answers the operation.
    fn select(
        &self,
        session: &Self::Session,
        operation: Operation,
        query: Query,
    ) -> impl Future<Output = Result<Vec<Selected<Self::Handle>>, Failure>> + Send;

    /// Opens one selected object for sending, in a transfer syntax: its own, or another that was said to be possible.
    ///
    /// # Errors
    /// The sub-operation counts as failed and the others go on.
    fn open(
        &self,
        session: &Self::Session,
        handle: &Self::Handle,
        transfer_syntax: &TransferSyntax,
    ) -> impl Future<Output = Result<ObjectStream, Failure>> + Send;

    /// Where a C-MOVE destination is.
    ///
    /// # Errors
    /// The failure answers the C-MOVE; [`crate::Reason::UnknownDestination`] for a title that is not known.
    fn destination(
        &self,
        session: &Self::Session,
        ae_title: &AeTitle,
    ) -> impl Future<Output = Result<Destination, Failure>> + Send;
}

/// An object selected for sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected<H> {
    /// SOP class.
    pub sop_class: Uid,
    /// SOP instance.
    pub sop_instance: Uid,
    /// The transfer syntax it is stored in.
    pub transfer_syntax: TransferSyntax,
    /// Others that it can be opened in, the best first, for a receiver that takes neither its own nor one that it can be transcoded into on the
    /// way (PS3.5 10.1).
    pub others: Vec<TransferSyntax>,
    /// How to open it.
    pub handle: H,
}

/// Where and how to reach a C-MOVE destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// AE titles and timeouts for the sub-association.
    pub options: ScuOptions,
}

/// Limits and timers of the acceptor. All have defaults.
#[derive(Debug, Clone)]
pub struct ScpOptions {
    /// The called AE titles we answer to; empty for any.
    pub called_ae_titles: Vec<AeTitle>,
    /// SOP classes and transfer syntaxes.
    pub offer: Offer,
    /// Established associations at the same time; more are rejected as transient, local limit exceeded.
    pub associations_max: usize,
    /// Connections that have not sent A-ASSOCIATE-RQ yet at the same time; when there are more, the oldest is closed.
    pub handshakes_max: usize,
    /// The longest P-DATA-TF PDU a peer may send, in bytes, announced in negotiation.
    pub pdu_bytes_max: u32,
    /// The longest identifier of a query or retrieve, in bytes.
    pub identifier_bytes_max: usize,
    /// C-GET works for peers that negotiate no roles for storage, instead of failing every sub-operation.
    pub get_without_roles: bool,
    /// ARTIM (PS3.8 9.1.5): from the connection to A-ASSOCIATE-RQ, TLS handshake included.
    pub artim_timeout_ms: u64,
    /// Between operations.
    pub idle_timeout_ms: u64,
    /// Within an operation: for the next fragment, for a C-STORE response, and for the peer to take a PDU.
    pub dimse_timeout_ms: u64,
    /// For the peer to take a rejection, or the answer to its release, and close.
    pub reject_timeout_ms: u64,
    /// C-MOVE and C-GET say that they are still at it at least this often.
    pub pending_interval_ms: u64,
    /// After shutdown was asked for, operations in hand may take this long.
    pub drain_timeout_ms: u64,
}

impl Default for ScpOptions {
    fn default() -> Self {
        ScpOptions {
            called_ae_titles: Vec::new(),
            offer: Offer::default(),
            associations_max: 100,
            handshakes_max: 256,
            pdu_bytes_max: 131_072,
            identifier_bytes_max: 1 << 20,
            get_without_roles: true,
            artim_timeout_ms: 30_000,
            idle_timeout_ms: 300_000,
            dimse_timeout_ms: 60_000,
            reject_timeout_ms: 1_000,
            pending_interval_ms: 2_000,
            drain_timeout_ms: 30_000,
        }
    }
}

impl ScpOptions {
    fn dimse_timeout(&self) -> Duration {
        Duration::from_millis(self.dimse_timeout_ms)
    }
}

/// A connection ready for an association.
#[derive(Debug)]
pub struct Upgraded<S> {
    /// The stream.
    pub stream: S,
    /// Whether nobody in between can read or change it, handed on in [`AssociationRequest::is_encrypted`].
    pub is_encrypted: bool,
    /// The peer's verified TLS certificate in DER, handed on in [`AssociationRequest::peer_certificate`].
    pub peer_certificate: Option<Vec<u8>>,
}

/// Turns an accepted TCP connection into the stream that carries the association. TLS is one implementation, [`Plain`] the other.
pub trait Upgrade: Send + Sync + 'static {
    /// The resulting stream.
    type Stream: Stream + 'static;

    /// Does the handshake; the ARTIM timer runs. What goes wrong is logged by whoever implements this, who knows what to do about it.
    ///
    /// # Errors
    /// The connection is closed.
    fn upgrade(&self, tcp: TcpStream) -> impl Future<Output = io::Result<Upgraded<Self::Stream>>> + Send;
}

/// No upgrade: DICOM over plain TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Upgrade for Plain {
    type Stream = TcpStream;

    async fn upgrade(&self, tcp: TcpStream) -> io::Result<Upgraded<TcpStream>> {
        Ok(Upgraded { stream: tcp, is_encrypted: false, peer_certificate: None })
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Associations that were cut off because they did not end in time.
    pub abandoned: usize,
}

/// Room for connections and associations, which the listeners of one site share.
#[derive(Debug, Clone)]
pub struct Room {
    associations: Arc<Semaphore>,
    half_open: Arc<HalfOpen>,
}

impl Room {
    /// As much as the options say.
    #[must_use]
    pub fn new(options: &ScpOptions) -> Self {
        Self {
            associations: Arc::new(Semaphore::new(options.associations_max)),
            half_open: HalfOpen::new(options.handshakes_max),
        }
    }
}

/// Serves associations over plain TCP until `shutdown` is cancelled, then finishes the operations in hand.
pub async fn serve<V: Services>(
    listener: TcpListener,
    options: ScpOptions,
    services: Arc<V>,
    shutdown: CancellationToken,
) -> Drained {
    let room = Room::new(&options);
    serve_upgraded(listener, options, room, services, shutdown, Plain).await
}

/// As [`serve`], over what `upgrade` makes of each connection, in `room` that other listeners may use too.
pub async fn serve_upgraded<V: Services, U: Upgrade>(
    listener: TcpListener,
    options: ScpOptions,
    room: Room,
    services: Arc<V>,
    shutdown: CancellationToken,
    upgrade: U,
) -> Drained {
    let Room { associations, half_open } = room;
    let drain_timeout = Duration::from_millis(options.drain_timeout_ms);
    let acceptor = Arc::new(Acceptor {
        associations,
        options,
        services,
        upgrade,
        shutdown: shutdown.clone(),
        cut_off: CancellationToken::new(),
    });
    let tasks = TaskTracker::new();
    while let Some((stream, peer)) = next_connection(&listener, &shutdown).await {
        let (acceptor, place) = (acceptor.clone(), half_open.enter());
        tasks.spawn(async move {
            tokio::select! {
                () = acceptor.connection(stream, peer, place) => {}
                () = acceptor.cut_off.cancelled() => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    if timeout(drain_timeout, tasks.wait()).await.is_ok() {
        return Drained { abandoned: 0 };
    }
    let abandoned = tasks.len();
    warn!(abandoned, "associations did not end in time");
    acceptor.cut_off.cancel();
    tasks.wait().await;
    Drained { abandoned }
}

/// The next connection, or `None` at shutdown.
async fn next_connection(listener: &TcpListener, shutdown: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    /// Long enough not to spin when file descriptors have run out, short enough not to be noticed.
    const ACCEPT_RETRY: Duration = Duration::from_millis(100);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok(connection) => return connection,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        connection = accept => Some(connection),
    }
}

struct Acceptor<V, U> {
    options: ScpOptions,
    services: Arc<V>,
    upgrade: U,
    associations: Arc<Semaphore>,
    shutdown: CancellationToken,
    /// The drain deadline has passed.
    cut_off: CancellationToken,
}

/// An admitted association request.
struct Admitted<S> {
    request: AssociationRequest,
    session: S,
    negotiated: Negotiated,
}

impl<V: Services, U: Upgrade> Acceptor<V, U> {
    async fn connection(&self, tcp: TcpStream, peer: SocketAddr, place: Place) {
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%peer, %error, "connection lost before the association");
            return;
        }
        let artim = Duration::from_millis(self.options.artim_timeout_ms);
        let mut buffer = BytesMut::new();
        let opening = async {
            let mut upgraded = self.upgrade.upgrade(tcp).await?;
            let pdu = handshake::read(&mut upgraded.stream, &mut buffer).await;
            Ok::<_, HandshakeError>((upgraded, pdu))
        };
        let (upgraded, pdu) = tokio::select! {
            opened = timeout(artim, opening) => match opened {
                Ok(Ok(opened)) => opened,
                Ok(Err(error)) => return debug!(%peer, %error, "connection lost before the association"),
                Err(_) => return debug!(%peer, "no association request in time"),
            },
            () = place.lost() => return debug!(%peer, "silent while others wanted to connect"),
            // Nothing is in hand yet.
            () = self.shutdown.cancelled() => return,
        };
        let Upgraded { mut stream, is_encrypted, peer_certificate } = upgraded;
        let request = match pdu.and_then(|pdu| pdu.decode()) {
            Ok(Pdu::AssociationRQ(request)) => request,
            Err(HandshakeError::Unexpected { kind: TLS_HANDSHAKE, .. }) if !is_encrypted => {
                info!(%peer, "a TLS handshake on a port for plain DICOM; let the caller use the TLS port, or no TLS here");
                return self.close(stream).await;
            }
            Ok(_) | Err(HandshakeError::Unexpected { .. } | HandshakeError::Malformed) => {
                info!(%peer, "connection without a valid association request");
                return self.refuse(stream, &Pdu::AbortRQ { source: unexpected_pdu() }).await;
            }
            Err(HandshakeError::Io(error)) => return debug!(%peer, %error, "connection lost before the association"),
        };
        let admitted = self.associations.clone().try_acquire_owned().map_err(|_| Rejection::LocalLimitExceeded);
        let admitted = admitted.and_then(|permit| {
            self.admit(&request, peer, (is_encrypted, peer_certificate)).map(|admitted| (permit, admitted))
        });
        let (permit, admitted) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                let (calling, called) = (printable(&request.calling_ae_title), printable(&request.called_ae_title));
                info!(%peer, calling, called, %reason, "association rejected");
                self.services.rejected(peer, &calling, &called, &reason);
                return self.refuse(stream, &Pdu::AssociationRJ(reason.to_pdu())).await;
            }
        };
        drop(place);
        let answer = Pdu::AssociationAC(admitted.negotiated.answer.clone());
        let written = timeout(self.options.dimse_timeout(), handshake::write(&mut stream, &answer)).await;
        if !matches!(written, Ok(Ok(()))) {
            return debug!(%peer, "connection lost before the association");
        }
        let left = self.association(stream, buffer, admitted).await;
        drop(permit);
        if let Some(transport) = left {
            transport.linger(Duration::from_millis(self.options.reject_timeout_ms)).await;
        }
    }

    fn admit(
        &self,
        rq: &dicom_ul::pdu::AssociationRQ,
        peer: SocketAddr,
        (is_encrypted, peer_certificate): (bool, Option<Vec<u8>>),
    ) -> Result<Admitted<V::Session>, Rejection> {
        let request = AssociationRequest { is_encrypted, peer_certificate, ..association_request(rq, peer)? };

        let titles = &self.options.called_ae_titles;
        if !titles.is_empty() && !titles.contains(&request.called) {
            return Err(Rejection::CalledAeTitle);
        }
        let session = self.services.admit(&request)?;
        let negotiated = negotiate(rq, &self.options.offer, self.options.pdu_bytes_max)?;
        Ok(Admitted { request, session, negotiated })
    }

    async fn association(
        &self,
        stream: U::Stream,
        buffer: BytesMut,
        admitted: Admitted<V::Session>,
    ) -> Option<Transport<U::Stream>> {
        let Admitted { request, session, negotiated } = admitted;
        let transport = Transport::accepted(stream, buffer, &negotiated, &self.options);
        let association = Association {
            services: &*self.services,
            session: Arc::new(session),
            options: &self.options,
            shutdown: &self.shutdown,
            transport,
            contexts: negotiated.contexts,
            request,
            counts: Default::default(),
            last_message_id: 0,
        };
        association.run().await
    }

    /// Says no and gives the peer a moment to hear it: closing at once could destroy the answer on its way.
    async fn refuse(&self, mut stream: U::Stream, pdu: &Pdu) {
        let limit = Duration::from_millis(self.options.reject_timeout_ms);
        // Whether the peer listens is its own affair.
        if let Ok(Ok(())) = timeout(limit, handshake::write(&mut stream, pdu)).await {
            self.close(stream).await;
        }
    }

    /// Ends a connection without words, and without the reset that unread bytes would cause.
    async fn close(&self, mut stream: U::Stream) {
        let limit = Duration::from_millis(self.options.reject_timeout_ms);
        let _ = timeout(limit, close(&mut stream)).await;
    }
}

impl<S: Stream> Transport<S> {
    fn accepted(stream: S, buffer: BytesMut, negotiated: &Negotiated, options: &ScpOptions) -> Self {
        Transport::new(
            stream,
            crate::message::Inbox::with_buffer(options.pdu_bytes_max, buffer),
            crate::message::Assembler::new(negotiated.contexts.iter().map(|context| context.id)),
            negotiated.fragment_size,
            options.dimse_timeout(),
        )
    }
}

/// Says that nothing more comes, and reads until the peer says so too. The caller sets the limit.
///
/// # Errors
/// The connection is gone, which is as good.
pub async fn close(stream: &mut impl Stream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 256];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The type of a TLS record that carries a handshake (RFC 8446 5.1), where the type of a PDU would be.
const TLS_HANDSHAKE: u8 = 0x16;

fn unexpected_pdu() -> AbortRQSource {
    AbortRQSource::ServiceProvider(dicom_ul::pdu::AbortRQServiceProviderReason::UnexpectedPdu)
}

/// An AE title as it came, safe to log.
fn printable(title: &str) -> String {
    title.chars().filter(|c| matches!(c, ' '..='~')).take(AeTitle::LENGTH_MAX).collect()
}

/// Why an association ended, for the log.
enum End {
    Released,
    Shutdown,
}

/// The abort that goes with shutdown: an acceptor that leaves uses A-ABORT (service user).
const SHUTDOWN_ABORT: AbortSource = AbortSource::ServiceUser;
