//! Asks the source of a study, once: signs a request of ITI-43 or RAD-69, sends it, and takes the answer apart as it comes.
//!
//! Endpoint and TLS key are those that the source states on the ledger; the request is signed for this site's account. Must not know what
//! is done with documents.

use std::time::Duration;

use alloy::primitives::{Address, hex};
use alloy::signers::k256::ecdsa;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ihe_retrieve::receiver::{ResponseError, ResponsePiece, ResponseReader, SoapFault, read_fault};
use ihe_retrieve::request::Retrieve;
use ihe_retrieve::requester::{SignError, SignedRequest, TokenPlacement, UnsignedRequest, certificate, sign};
use rand::RngCore as _;

use super::now_ms;
use super::request_key::RequestKey;
use crate::exchange::ExchangeError;
use crate::exchange::client::{Endpoint, connect};
use crate::follow::{Consents, FollowError};
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::LedgerSlot;
use crate::site::Parts;

/// How long a request is good.
const VALID_MS: i64 = 120_000;
/// Longest wait for the connection, for the head of the answer, and for its next octets: the other site may have to fetch them.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest fault that is read, in bytes.
const FAULT_BYTES_MAX: usize = 64 * 1024;

/// Why a source did not give what it was asked for, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody, or this site's operator if it stays so: a remote signer holds the account's key, and the key that signs requests in its stead
    /// is not bound to the account.
    #[error(
        "the ledger does not say yet that this site's key for requests (`pacs-bridge keys p256 list`) signs for its account"
    )]
    NotBound,
    /// This site's operator: the key for requests.
    #[error("the key for requests")]
    Keyring(#[from] KeyringError),
    /// The ledger is not connected.
    #[error("the ledger is not connected")]
    NoLedger,
    /// The asker: this is no source.
    #[error("\"{0}\" is not the account of a source")]
    Source(Address),
    /// The source: it states no URL of ITI-43.
    #[error("the source states no URL of ITI-43: {0}")]
    NoEndpoint(String),
    /// The source cannot be reached, or somebody else answers there.
    #[error("the source")]
    Exchange(#[from] ExchangeError),
    /// The source did not go on.
    #[error("the source broke off: {0}")]
    BrokenOff(String),
    /// The source does not take the message.
    #[error("the source answers with a fault: {0:?}")]
    Fault(SoapFault),
    /// The source answers with something else.
    #[error("the source answers with status {0}")]
    Status(u16),
    /// The study's owner, or the asker: it is not granted, or there is no such study.
    #[error("the source refuses: {code}: {context}")]
    Refused {
        /// Of the registry error.
        code: String,
        /// Its text.
        context: String,
    },
    /// The source: not an answer of the transaction.
    #[error("the source's answer")]
    Response(#[from] ResponseError),
    /// The request cannot be made.
    #[error("signing the request")]
    Sign(#[source] SignError<ecdsa::Error>),
    /// The consents.
    #[error("the consents")]
    Consents(#[from] FollowError),
}

/// Takes an answer as it comes.
pub(super) trait Taker: Send {
    /// Why it takes no more.
    type Error: From<AskError> + Send;

    /// Takes what comes next.
    fn take(&mut self, piece: ResponsePiece<'_>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Asks on behalf of this site. Cheap to clone.
#[derive(Clone)]
pub(super) struct Asker {
    keyring: Keyring,
    ledger: LedgerSlot,
    consents: Consents,
}

impl Asker {
    pub(super) fn new(parts: &Parts) -> Self {
        let Parts { keyring, ledger, consents, .. } = parts;
        Self { keyring: keyring.clone(), ledger: ledger.clone(), consents: consents.clone() }
    }

    /// Where a source says that it can be asked.
    pub(super) fn endpoint(&self, source: Address) -> Result<Endpoint, AskError> {
        let stated = self.consents.source(source)?.ok_or(AskError::Source(source))?;
        Ok(Endpoint { url: stated.endpoint, tls_key: stated.tls_key })
    }

    /// Asks once and hands what comes to a taker. That all of it came is certain only when this succeeds.
    pub(super) async fn ask<T: Taker>(
        &self,
        endpoint: &Endpoint,
        retrieve: &Retrieve,
        taker: &mut T,
    ) -> Result<(), T::Error> {
        let message_id = message_id();
        let request = self.signed(&endpoint.url, &message_id, retrieve)?;
        receive(endpoint, request, &message_id, taker).await
    }

    fn signed(&self, to: &str, message_id: &str, retrieve: &Retrieve) -> Result<SignedRequest, AskError> {
        let account: Address = self.ledger.get().ok_or(AskError::NoLedger)?.account();
        let key = RequestKey::of(account, &self.keyring, &self.consents)?;
        let by_key = |digest: &[u8; 32]| key.sign(digest);
        let token = certificate(&key.public(), &account.into(), by_key);
        let token = token.map_err(|error| AskError::Sign(SignError::Signer(error)))?;
        let created_ms = now_ms();
        let expires_ms = created_ms.saturating_add(VALID_MS);
        let request = UnsignedRequest { to, message_id, created_ms, expires_ms, retrieve };
        let mut nonce = [0; 16];
        rand::rngs::OsRng.fill_bytes(&mut nonce);
        sign(&request, &token, TokenPlacement::Part, nonce, by_key).map_err(AskError::Sign)
    }
}

fn message_id() -> String {
    let mut random = [0; 16];
    rand::rngs::OsRng.fill_bytes(&mut random);
    // RFC 9562, version 4.
    random[6] = random[6] & 0x0F | 0x40;
    random[8] = random[8] & 0x3F | 0x80;
    let digits = hex::encode(random);
    let fields = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("urn:uuid:{}", fields.join("-"))
}

fn broken_off(error: impl std::fmt::Display) -> AskError {
    AskError::BrokenOff(error.to_string())
}

/// Sends the request and hands on the answer.
async fn receive<T: Taker>(
    endpoint: &Endpoint,
    request: SignedRequest,
    message_id: &str,
    taker: &mut T,
) -> Result<(), T::Error> {
    let connected = tokio::time::timeout(WAIT_MAX, connect(endpoint)).await.map_err(broken_off)?;
    let (stream, uri) = connected.map_err(AskError::from)?;
    let path = uri.path();
    if path.len() < 2 {
        return Err(AskError::NoEndpoint(endpoint.url.clone()).into());
    }
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(broken_off)?;
    let message = Request::post(path)
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, request.content_type)
        .body(Full::new(Bytes::from(request.body)))
        .map_err(broken_off)?;
    let received = async move {
        let answered = tokio::time::timeout(WAIT_MAX, sender.send_request(message)).await.map_err(broken_off)?;
        take_answer(answered.map_err(broken_off)?, message_id, taker).await
    };
    tokio::pin!(received, connection);
    // The connection moves the octets; the answer is what counts, also when the connection ends first.
    tokio::select! {
        received = &mut received => received,
        ended = &mut connection => match ended {
            Ok(()) => received.await,
            Err(error) => Err(broken_off(error).into()),
        },
    }
}

async fn take_answer<T: Taker>(response: Response<Incoming>, message_id: &str, taker: &mut T) -> Result<(), T::Error> {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let status = response.status();
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let said = tokio::time::timeout(WAIT_MAX, Limited::new(body, FAULT_BYTES_MAX).collect()).await;
        let fault = said.ok().and_then(Result::ok).and_then(|said| read_fault(&said.to_bytes()));
        return Err(fault.map_or(AskError::Status(status.as_u16()), AskError::Fault).into());
    }
    let mut reader = ResponseReader::new(&content_type, message_id).map_err(AskError::from)?;
    while let Some(frame) = tokio::time::timeout(WAIT_MAX, body.frame()).await.map_err(broken_off)? {
        let Ok(octets) = frame.map_err(broken_off)?.into_data() else { continue };
        reader.push(&octets);
        while let Some(piece) = reader.next_piece().map_err(AskError::from)? {
            taker.take(piece).await?;
        }
    }
    Ok(reader.finish().map_err(AskError::from)?)
}
