//! Connections: how many, how long, and how TLS is spoken. Where study keys are handed out at the same address, those requests go on to
//! their own desk by their path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::stream::Body;
use super::{Door, never_fails};
use crate::config::{ClientCertificate, Xds};
use crate::exchange::server::Desk;
use crate::exchange::tls::Identity;
use crate::exchange::{ExchangeError, STUDY_KEY_PATH};

/// Longest wait for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes, and most header fields in it.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not what it should be.
    #[error("{0}")]
    File(PathBuf, #[source] pem::Error),
    /// Certificate and key do not go together, or are of a kind that is not spoken.
    #[error("certificate and key")]
    Pair(#[from] rustls::Error),
    /// The authorities of clients cannot be used.
    #[error("authorities of client certificates")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
    /// This site's own key.
    #[error("this site's key")]
    Identity(#[from] ExchangeError),
}

/// How ITI-43 is answered: TLS 1.2 and 1.3, each connection anew, with the configured certificate or else the key that the ledger names.
///
/// # Errors
/// [`TlsError`].
pub fn tls(settings: &Xds, identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = match &settings.tls {
        None => {
            let (certificate, key) = identity.certified()?;
            (vec![certificate], key)
        }
        Some(files) => {
            let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| TlsError::File(files.key.clone(), e))?;
            (certificates(&files.certificate)?, key)
        }
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let optional = settings.client_certificate == ClientCertificate::Optional;
            let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|e| TlsError::File(file.to_owned(), e))
}

/// Serves until `stop`; with `keys`, study keys too.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    door: Door,
    keys: Option<Desk>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(door.settings().connections_max));
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
                let connection = Connection { door: door.clone(), keys: keys.clone(), peer, cut: stop.child_token() };
                let acceptor = acceptor.clone();
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
            _ if path == self.door.settings().path => self.door.answer(request, self.peer.ip(), &self.cut).await,
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
