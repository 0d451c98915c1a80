//! One request to a kubo node's RPC API (`/api/v0`), over a connection of its own.
//!
//! kubo answers errors with status 500 and a JSON object, and says in a trailer what failed in the middle of an answer, which ends like a whole one. Must not know what
//! is asked.

use std::io::Read;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::IpfsError;

/// Longest answer that is read as a whole, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest error that is read, in bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a file sent at once.
const RUN_BYTES: usize = 256 * 1024;
/// Runs that wait for the connection.
const RUNS_AHEAD: usize = 2;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Where a node's API is, and how to be let in.
pub(super) struct Api {
    /// Host and port.
    authority: String,
    authorization: Option<Zeroizing<String>>,
    /// Longest wait for an answer, or for the next part of one that streams.
    patience: Duration,
}

/// An answer that began well. The connection ends with it.
struct Answer {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

/// How kubo says what went wrong.
#[derive(Deserialize)]
struct Said {
    #[serde(rename = "Message")]
    message: String,
}

impl Api {
    pub(super) fn new(url: &str, token: Option<&str>, patience: Duration) -> Self {
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let authorization = token.map(|token| Zeroizing::new(format!("Bearer {token}")));
        Self { authority, authorization, patience }
    }

    /// The answer to a command with its arguments, all of which must be fit for a URL.
    pub(super) async fn ask(&self, command: &str) -> Result<Bytes, IpfsError> {
        self.ask_within(command, self.patience).await
    }

    /// The same, when it may take longer.
    pub(super) async fn ask_within(&self, command: &str, limit: Duration) -> Result<Bytes, IpfsError> {
        in_time(limit, async { self.post(command, None, empty()).await?.whole().await }).await?
    }

    /// The same, with a file.
    pub(super) async fn send<R: Read + Send + 'static>(
        &self,
        command: &str,
        file: R,
        limit: Duration,
    ) -> Result<Bytes, IpfsError> {
        // A file is cut into runs of bytes that hold no line of this form but by a chance of 1 in 2^128.
        let boundary = format!("bridge-{:032x}", rand::random::<u128>());
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"sealed\"\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let parts = futures::stream::iter([Ok(Bytes::from(head))]);
        let parts = parts.chain(runs(file)).chain(futures::stream::iter([Ok(Bytes::from(tail))]));
        let body = StreamBody::new(parts.map(|run| run.map(Frame::data))).boxed_unsync();
        let content_type = Some(format!("multipart/form-data; boundary={boundary}"));
        in_time(limit, async { self.post(command, content_type, body).await?.whole().await }).await?
    }

    /// The bytes that a command answers with, as they come.
    pub(super) async fn open(&self, command: &str) -> Result<BoxStream<'static, Result<Bytes, IpfsError>>, IpfsError> {
        Ok(in_time(self.patience, self.post(command, None, empty())).await??.stream(self.patience))
    }

    async fn post(&self, command: &str, content_type: Option<String>, body: Body) -> Result<Answer, IpfsError> {
        let stream = TcpStream::connect(&self.authority).await.map_err(IpfsError::away)?;
        // A request is written in parts, and none should wait for the acknowledgement of the one before.
        stream.set_nodelay(true).map_err(IpfsError::away)?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(IpfsError::away)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What ends the connection ends the answer, which is where it is noticed.
            let _ = connection.await;
        }));
        let mut request = Request::post(format!("/api/v0/{command}")).header(header::HOST, &self.authority);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.as_str());
        }
        let request = request.body(body).map_err(IpfsError::away)?;
        let response = sender.send_request(request).await.map_err(|e| IpfsError::Broken(crate::chain_of(&e)))?;
        let (status, body) = (response.status(), response.into_body());
        if status == StatusCode::OK {
            return Ok(Answer { body, _connection: connection });
        }
        let said = Limited::new(body, ERROR_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| IpfsError::Broken(e.to_string()))?
            .to_bytes();
        Err(match serde_json::from_slice::<Said>(&said) {
            Ok(Said { message }) => IpfsError::Said(message),
            Err(_) if status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED => IpfsError::Forbidden,
            Err(_) => IpfsError::Status(status.as_u16()),
        })
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

async fn in_time<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, IpfsError> {
    tokio::time::timeout(patience, work).await.map_err(|_| IpfsError::Silent(patience.as_secs_f64().ceil() as u64))
}

impl Answer {
    async fn whole(self) -> Result<Bytes, IpfsError> {
        let collected = Limited::new(self.body, ANSWER_BYTES_MAX).collect().await;
        let collected = collected.map_err(|e| IpfsError::Broken(e.to_string()))?;
        collected.trailers().map_or(Ok(()), failed)?;
        Ok(collected.to_bytes())
    }

    fn stream(self, patience: Duration) -> BoxStream<'static, Result<Bytes, IpfsError>> {
        let runs = futures::stream::try_unfold(self, move |mut answer| async move {
            loop {
                match in_time(patience, answer.body.frame()).await? {
                    None => return Ok(None),
                    Some(frame) => match frame.map_err(|e| IpfsError::Broken(crate::chain_of(&e)))?.into_data() {
                        Ok(run) => return Ok(Some((run, answer))),
                        Err(frame) => frame.trailers_ref().map_or(Ok(()), failed)?,
                    },
                }
            }
        });
        runs.boxed()
    }
}

/// What a trailer says went wrong.
fn failed(trailers: &HeaderMap) -> Result<(), IpfsError> {
    let said = trailers.get("x-stream-error").and_then(|said| said.to_str().ok()).filter(|said| !said.is_empty());
    said.map_or(Ok(()), |said| Err(IpfsError::Said(said.to_owned())))
}

/// What a file yields, read on a thread that may wait for a disk.
fn runs<R: Read + Send + 'static>(mut file: R) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    let (out, taken) = mpsc::channel(RUNS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut run = vec![0; RUN_BYTES];
            let read = file.read(&mut run).map(|count| {
                run.truncate(count);
                Bytes::from(run)
            });
            let ends = read.as_ref().map_or(true, Bytes::is_empty);
            // The end itself is not sent, and nobody may be there any more.
            if read.as_ref().is_ok_and(Bytes::is_empty) || out.blocking_send(read).is_err() || ends {
                return;
            }
        }
    });
    futures::stream::unfold(taken, |mut taken| async move { taken.recv().await.map(|run| (run, taken)) })
}
