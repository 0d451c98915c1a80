//! Asks another bridge for the keys of a study, once.
//!
//! Must not know what the keys are for.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::server::now_s;
use super::{ANSWER_BYTES_MAX, ExchangeError, KeyDelivery, KeyRequest, Place, STUDY_KEY_PATH, tls};
use crate::ledger::Signer;

/// Another bridge, as the ledger describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` URL.
    pub url: String,
    /// SHA-256 of the SubjectPublicKeyInfo of its TLS key.
    pub tls_key: [u8; 32],
}

/// Who asks.
#[derive(Clone)]
pub struct Asker {
    /// The account that the owner let in.
    pub grantee: Address,
    /// An account that acts for it.
    pub signer: Signer,
    /// The certificate that keys are to be wrapped to.
    pub encryption_key: Bytes,
    /// The ledger on which both are.
    pub place: Place,
}

impl Asker {
    /// A request that is good for one answer of the bridge with this TLS key.
    ///
    /// # Errors
    /// [`ExchangeError::Key`].
    pub async fn request(&self, study_id: B256, tls_key: [u8; 32]) -> Result<KeyRequest, ExchangeError> {
        let mut request = KeyRequest {
            study_id,
            grantee: self.grantee,
            encryption_key: self.encryption_key.clone(),
            time: now_s(),
            nonce: B256::random(),
            signature: Bytes::new(),
        };
        let (domain, message) = request.typed_data(self.place, tls_key);
        let signed = self.signer.sign_typed_data(domain, message).await;
        request.signature = signed.map_err(|e| ExchangeError::Key(crate::chain_of(&e)))?.as_bytes().to_vec().into();
        Ok(request)
    }
}

fn away(error: impl std::fmt::Display) -> ExchangeError {
    ExchangeError::Away(error.to_string())
}

/// Asks for the keys of a study.
///
/// # Errors
/// [`ExchangeError`].
pub async fn ask(
    endpoint: &Endpoint,
    asker: &Asker,
    study_id: B256,
    timeout: Duration,
) -> Result<KeyDelivery, ExchangeError> {
    let request = asker.request(study_id, endpoint.tls_key).await?;
    let (status, body) = tokio::time::timeout(timeout, post(endpoint, &request)).await.map_err(away)??;
    match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|_| ExchangeError::Disagrees("not the agreed form")),
        StatusCode::FORBIDDEN => Err(ExchangeError::Refused),
        other => Err(ExchangeError::Away(format!("status {other}"))),
    }
}

/// Connects to another bridge, which must hold the key that the ledger names. Returns its URL besides.
///
/// # Errors
/// [`ExchangeError`].
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<(TlsStream<TcpStream>, Uri), ExchangeError> {
    let uri: Uri = endpoint.url.parse().map_err(|_| ExchangeError::Unreachable("https URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(ExchangeError::Unreachable("https URL"));
    }
    if endpoint.tls_key == [0; 32] {
        return Err(ExchangeError::Unreachable("TLS key"));
    }
    let authority = uri.authority().ok_or(ExchangeError::Unreachable("host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await.map_err(away)?;
    stream.set_nodelay(true).map_err(away)?;
    let name = ServerName::try_from(host).map_err(|_| ExchangeError::Unreachable("host"))?;
    let connector = TlsConnector::from(tls::client_config(endpoint.tls_key)?);
    let stream = connector.connect(name, stream).await.map_err(|error| match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(_)) => ExchangeError::Impostor,
        _ => away(error),
    })?;
    Ok((stream, uri))
}

/// Sends a request as it is. Of the endpoint's URL only the address counts, whatever is served there besides.
///
/// # Errors
/// [`ExchangeError`].
pub async fn post(endpoint: &Endpoint, request: &KeyRequest) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
    let (stream, uri) = connect(endpoint).await?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(away)?;
    let body = serde_json::to_vec(request).map_err(away)?;
    let message = Request::post(STUDY_KEY_PATH)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(hyper::body::Bytes::from(body)))
        .map_err(away)?;
    let exchange = async move {
        let response = sender.send_request(message).await.map_err(away)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(away)?;
        Ok((status, body.to_bytes().to_vec()))
    };
    tokio::pin!(exchange, connection);
    // The connection moves the bytes; the answer is what counts, also when the connection ends first.
    tokio::select! {
        answered = &mut exchange => answered,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(away(error)),
        },
    }
}

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
