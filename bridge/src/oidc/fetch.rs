//! Asks an issuer over HTTPS: one connection a request, no redirect followed, answers of limited size within a limited time.
//!
//! The HTTP and TLS that other bridges are asked with, driven directly; in the clear only to this machine. Must not know what is asked for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::{TlsError, web_client};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} is no https:// URL, nor an http:// URL of this machine")]
    Url(String),
    #[error("cannot connect to {0}")]
    Connect(String, #[source] std::io::Error),
    #[error("the connection broke off")]
    Http(#[source] hyper::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Slow(Duration),
    #[error("an answer of more than {0} bytes")]
    TooLarge(usize),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("status {0}, a redirect, which is not followed")]
    Redirect(StatusCode),
}

/// Asks.
pub(super) struct Fetcher {
    tls: Arc<ClientConfig>,
    within: Duration,
}

impl Fetcher {
    pub(super) fn new(ca_file: Option<&Path>, within: Duration) -> Result<Self, TlsError> {
        Ok(Self { tls: web_client(ca_file)?, within })
    }

    /// A document; anything but 200 is an error.
    pub(super) async fn get(
        &self,
        url: &str,
        bytes_max: usize,
        authorization: Option<&str>,
    ) -> Result<Bytes, FetchError> {
        let headers: Vec<_> = authorization.map(|value| (header::AUTHORIZATION, value)).into_iter().collect();
        match self.send(url, bytes_max, Method::GET, Bytes::new(), &headers).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) if status.is_redirection() => Err(FetchError::Redirect(status)),
            (status, _) => Err(FetchError::Status(status)),
        }
    }

    /// What a form is answered with.
    pub(super) async fn post_form(
        &self,
        url: &str,
        bytes_max: usize,
        form: String,
        authorization: Option<&str>,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        let mut headers = vec![(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
        headers.extend(authorization.map(|value| (header::AUTHORIZATION, value)));
        self.send(url, bytes_max, Method::POST, form.into(), &headers).await
    }

    async fn send(
        &self,
        url: &str,
        bytes_max: usize,
        method: Method,
        body: Bytes,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<(StatusCode, Bytes), FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let mut request = Request::builder()
            .method(method)
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority.as_str())
            .header(header::ACCEPT, "application/json");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|_| wrong())?;
        let answered = tokio::time::timeout(self.within, async {
            match uri.scheme_str() {
                Some("https") => {
                    let (stream, host) = connect(&uri, 443).await?;
                    let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                    let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
                    ask(stream.map_err(|error| FetchError::Connect(host, error))?, request, bytes_max).await
                }
                Some("http") if is_near(&uri) => ask(connect(&uri, 80).await?.0, request, bytes_max).await,
                _ => Err(wrong()),
            }
        });
        answered.await.map_err(|_| FetchError::Slow(self.within))?
    }
}

/// Whether an address is of this machine: only there may it be in the clear.
fn is_near(uri: &Uri) -> bool {
    let host = host_of(uri);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a URL is one that is asked: `https`, or `http` on this machine.
pub(super) fn is_safe(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| match uri.scheme_str() {
        Some("https") => !host_of(&uri).is_empty(),
        Some("http") => is_near(&uri),
        _ => false,
    })
}

fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

async fn connect(uri: &Uri, default_port: u16) -> Result<(TcpStream, String), FetchError> {
    let host = host_of(uri).to_owned();
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(default_port))).await;
    let stream = stream.map_err(|error| FetchError::Connect(host.clone(), error))?;
    Ok((stream, host))
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    let handshake = hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(FetchError::Http)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(FetchError::Http)?;
        let status = response.status();
        match Limited::new(response.into_body(), bytes_max).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge(bytes_max)),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(FetchError::Http(*error)),
                Err(_) => Err(FetchError::TooLarge(bytes_max)),
            },
        }
    };
    tokio::pin!(exchange, connection);
    // The connection moves the bytes; the answer is what counts, also when the connection ends first, and however it ends: many servers leave TLS without
    // a word. What broke off before its end is no answer.
    tokio::select! {
        answered = &mut exchange => answered,
        ended = &mut connection => match (exchange.await, ended) {
            (Err(FetchError::Http(_)), Err(error)) => Err(FetchError::Http(error)),
            (answered, _) => answered,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_is_asked_in_the_clear() {
        for good in ["https://a.example/x", "http://127.0.0.1:1/x", "http://[::1]/x", "http://localhost:3/x"] {
            assert!(is_safe(good), "{good}");
        }
        for wrong in
            ["http://a.example/x", "http://127.0.0.1.evil.example/", "ftp://127.0.0.1/", "/x", "", "javascript:1"]
        {
            assert!(!is_safe(wrong), "{wrong}");
        }
    }
}
