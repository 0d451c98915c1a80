//! Connections: how many, how long, TLS or not, and their end. Must not know what is served over them.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limits::Held;
use crate::config::Http;
use crate::tls::Server;

/// Longest head of a request, in bytes, and most header fields in it.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// After this time a connection takes no more requests, and streams of events end: their clients connect again.
pub(super) const CONNECTION_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest time for what a connection was doing then: whole studies go over slow lines.
pub(super) const TRANSFER_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// What a connection gets to finish its request when it must end.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Addresses share the connections; one gets this part of them.
const ADDRESS_SHARE: usize = 8;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Serves until `stop`, and then what was begun.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Server>>,
    router: Router,
    settings: Http,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(settings.connections_max));
    // Behind a proxy all connections come from one address.
    let share = if settings.behind_proxy { usize::MAX } else { (settings.connections_max / ADDRESS_SHARE).max(4) };
    let by_address = Held::new(share);
    loop {
        // Before accepting: who finds no room waits in the kernel's queue, which is bounded too.
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            listener.accept().await.map(|(stream, peer)| (permit, stream, peer))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((permit, stream, peer)) => {
                let Some(hold) = by_address.take(peer.ip().to_canonical()) else { continue };
                let connection = Connection {
                    router: router.clone(),
                    peer,
                    receive_timeout: settings.receive_timeout,
                    stop: stop.clone(),
                };
                let tls = tls.as_ref().map(|tls| tls.acceptor());
                tasks.spawn(async move {
                    let _held = (permit, hold);
                    connection.run(stream, tls).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    receive_timeout: Duration,
    stop: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Small answers shall not wait for each other.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.converse(stream).await };
        let stop = self.stop.clone();
        let shaken = tokio::select! {
            () = stop.cancelled() => return,
            shaken = tokio::time::timeout(self.receive_timeout, tls.accept(stream)) => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => self.converse(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "no TLS handshake"),
            Err(_) => tracing::debug!(peer = %self.peer, "no TLS handshake in time"),
        }
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (inner, peer) = (TowerToHyperService::new(self.router), Peer(self.peer.ip().to_canonical()));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            inner.call(request)
        });
        let mut conversation = pin!(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.receive_timeout)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(TokioIo::new(stream), service)
        );
        let mut ended = tokio::select! {
            ended = conversation.as_mut() => Some(ended),
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep(CONNECTION_MAX) => {
                conversation.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = conversation.as_mut() => Some(ended),
                    () = self.stop.cancelled() => None,
                    () = tokio::time::sleep(TRANSFER_MAX) => None,
                }
            }
        };
        if ended.is_none() {
            conversation.as_mut().graceful_shutdown();
            ended = tokio::time::timeout(DRAIN_MAX, conversation).await.ok();
        }
        if let Some(Err(error)) = ended {
            tracing::debug!(peer = %self.peer, %error, "an HTTP connection ended");
        }
    }
}
