//! Connections: how many, how long, and from whom. Where study keys are handed out at the same address, those requests go on to
//! their own desk by their path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::places::{Place, Places};
use super::stream::Body;
use super::{Door, never_fails};
use crate::exchange::STUDY_KEY_PATH;
use crate::exchange::server::{Desk, network_of};
use crate::tls::Server;

/// Longest wait for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes, and most header fields in it.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Networks share the connections: this part of them is for those of one that have not asked for anything that they may have.
const NETWORK_SHARE: usize = 4;
/// The least that this comes to.
const NETWORK_PLACES_MIN: usize = 4;

/// Serves until `stop`; with `keys`, study keys too.
pub async fn serve(listener: TcpListener, tls: Arc<Server>, door: Door, keys: Option<Desk>, stop: CancellationToken) {
    let connections_max = door.settings().connections_max;
    let room = Arc::new(Semaphore::new(connections_max));
    let places = Places::new((connections_max / NETWORK_SHARE).max(NETWORK_PLACES_MIN));
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
                let cut = stop.child_token();
                let place = places.enter(network_of(peer.ip()), cut.clone());
                let connection = Connection { door: door.clone(), keys: keys.clone(), peer, cut, place };
                let acceptor = tls.acceptor();
                door.0.parts.tasks.spawn(async move {
                    let _permit = permit;
                    connection.run(stream, acceptor).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, for one request.
#[derive(Clone)]
struct Connection {
    door: Door,
    keys: Option<Desk>,
    peer: SocketAddr,
    /// Ends it.
    cut: CancellationToken,
    /// Among those of its network that wait for an answer.
    place: Place,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let (peer, cut) = (self.peer, self.cut.clone());
        tokio::select! {
            () = cut.cancelled() => {}
            ended = self.converse(stream, acceptor) => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, error = %crate::chain_of(error.as_ref()), "a connection ended");
                }
            }
        }
        // Whoever still makes an answer for it stops.
        cut.cancel();
    }

    async fn converse(
        self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
        let read_timeout = self.door.settings().request_timeout;
        let service = service_fn(move |request| {
            let this = self.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await?;
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        match &self.keys {
            Some(desk) if path == STUDY_KEY_PATH => self.key(desk, request).await,
            _ if path == self.door.settings().path => {
                self.door.answer(request, self.peer.ip(), &self.cut, &self.place).await
            }
            _ => self.door.plain(StatusCode::NOT_FOUND, &self.cut),
        }
    }

    async fn key(&self, desk: &Desk, request: Request<Incoming>) -> Response<Body> {
        let answered =
            tokio::time::timeout(self.door.settings().request_timeout, desk.answer(request, self.peer)).await;
        match answered {
            Ok(answer) => {
                self.door.end_soon(&self.cut);
                answer.map(never_fails)
            }
            Err(_) => self.door.plain(StatusCode::REQUEST_TIMEOUT, &self.cut),
        }
    }
}
