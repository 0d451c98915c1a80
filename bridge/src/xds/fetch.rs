//! The other side: asks another site for a study by ITI-43 and keeps the archive as a file.
//!
//! Endpoint and TLS key are those that the source states on the ledger; the request is signed by this site's account. What comes is compared
//! with the study's manifest where this site has it.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::{Address, B256, hex};
use alloy::signers::k256::ecdsa::signature::hazmat::PrehashSigner as _;
use alloy::signers::k256::ecdsa::{self, Signature, SigningKey};
use dicom_scp::Uid;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ihe_retrieve::receiver::{ResponseError, ResponsePiece, ResponseReader, SoapFault, read_fault};
use ihe_retrieve::request::{DocumentRequest, Retrieve as Asked};
use ihe_retrieve::requester::{SignError, SignedRequest, TokenPlacement, UnsignedRequest, certificate, sign};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::{now_ms, zip};
use crate::archive::{ArchiveError, ForeignMode};
use crate::exchange::ExchangeError;
use crate::exchange::client::{Endpoint, connect};
use crate::follow::FollowError;
use crate::payload::manifest::{Manifest, ManifestError};
use crate::site::Site;

/// How long a request is good.
const VALID_MS: i64 = 120_000;
/// Longest wait for the connection, for the head of the answer, and for its next octets: the other site may have to fetch them.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest fault that is read, in bytes.
const FAULT_BYTES_MAX: usize = 64 * 1024;

/// Why a study was not fetched, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The asker: this is no study.
    #[error(
        "\"{0}\" is neither a study of another site that is known here nor a study id on the ledger (64 hexadecimal digits)"
    )]
    Study(String),
    /// The asker: this is no source.
    #[error("\"{0}\" is not the account of a source")]
    Source(String),
    /// The asker: the file is there, or cannot be written.
    #[error("{0}")]
    File(PathBuf, #[source] std::io::Error),
    /// This site's operator: what is signed is SHA-256, which a remote signer for Ethereum does not sign.
    #[error("this site's account is signed for elsewhere, by a signer that cannot sign such requests")]
    RemoteSigner,
    /// The ledger is not connected.
    #[error("the ledger is not connected")]
    NoLedger,
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
    /// What came is not what the manifest lists; nothing was kept.
    #[error("what came is not what the manifest of the study lists; nothing was kept")]
    Differs,
    /// The request cannot be made.
    #[error("signing the request")]
    Sign(#[source] SignError<ecdsa::Error>),
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The consents.
    #[error("the consents")]
    Consents(#[from] FollowError),
    /// The manifest here cannot be read.
    #[error("the manifest")]
    Manifest(#[from] ManifestError),
}

/// What is to be fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// The study's id on the ledger, or its StudyInstanceUID where it is known here.
    pub study: String,
    /// Account of the source; by default the one that defined the study.
    pub from: Option<String>,
    /// The file, which must not be there yet.
    pub out: PathBuf,
}

/// What was fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetched {
    /// The document.
    pub document: String,
    /// The source that sent it.
    pub source: String,
    /// Where it is.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Objects in it that were compared with the manifest, each equal; none if this site has no manifest of the study.
    pub proven: Option<u64>,
}

/// Fetches a study.
///
/// # Errors
/// [`FetchError`]; no file is left then.
pub async fn fetch(site: &Site, ask: Ask) -> Result<Fetched, FetchError> {
    let study = study_id(site, &ask.study)?;
    let unknown = || FetchError::Study(ask.study.clone());
    let source = match &ask.from {
        Some(given) => given.parse().map_err(|_| FetchError::Source(given.clone()))?,
        None => site.consents().study(study)?.ok_or_else(unknown)?.source,
    };
    let stated = site.consents().source(source)?.ok_or_else(|| FetchError::Source(source.to_string()))?;
    let manifest = manifest(site, study)?;
    let version = manifest.as_ref().map_or_else(String::new, |manifest| format!("^{}", manifest.version));
    let wanted = DocumentRequest {
        repository_unique_id: format!("{source:#x}"),
        document_unique_id: format!("{}{version}", hex::encode(study)),
        home_community_id: None,
    };
    let endpoint = Endpoint { url: stated.endpoint, tls_key: stated.tls_key };
    let message_id = message_id();
    let request = signed(site, &endpoint.url, &message_id, &wanted)?;
    let part = Part::create(&ask.out).await?;
    let bytes = receive(&endpoint, request, &message_id, &part).await?;
    let proven = match manifest {
        None => None,
        Some(manifest) => Some(prove(&part.path, manifest).await?),
    };
    part.keep(&ask.out)?;
    let (document, source) = (wanted.document_unique_id, source.to_string());
    Ok(Fetched { document, source, file: ask.out, bytes, proven })
}

fn study_id(site: &Site, given: &str) -> Result<B256, FetchError> {
    if let Ok(id) = given.parse::<B256>() {
        return Ok(id);
    }
    let unknown = || FetchError::Study(given.to_owned());
    let uid = Uid::new(given).map_err(|_| unknown())?;
    let objects = site.archive().instances_of(&uid)?;
    let foreign = objects.iter().find(|stored| stored.origin != 0).ok_or_else(unknown)?;
    Ok(site.archive().foreign_of(foreign)?.ok_or_else(unknown)?.study_id)
}

/// The manifest of a study of another site whose every object this one may see.
fn manifest(site: &Site, study: B256) -> Result<Option<Manifest>, FetchError> {
    let archive = site.archive();
    let known = archive.foreign_study(study)?.filter(|known| !known.hidden && known.version > 0);
    let whole = known.filter(|known| known.window.mode == ForeignMode::Everything && known.window.series.is_zero());
    if whole.is_none() {
        return Ok(None);
    }
    let objects = archive.foreign_instances(study)?;
    let Some(encoded) = objects.first().map(|stored| archive.foreign_manifest(stored)).transpose()?.flatten() else {
        return Ok(None);
    };
    Ok(Some(Manifest::decode(&encoded)?).filter(|manifest| manifest.series.is_none()))
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

fn signed(site: &Site, to: &str, message_id: &str, wanted: &DocumentRequest) -> Result<SignedRequest, FetchError> {
    let parts = site.parts();
    let account: Address = parts.ledger.get().ok_or(FetchError::NoLedger)?.account();
    let signer = parts.keyring.signer();
    if signer.address() != account {
        return Err(FetchError::RemoteSigner);
    }
    let key: &SigningKey = signer.credential();
    let by_key = |digest: &[u8; 32]| -> Result<[u8; 64], ecdsa::Error> {
        let signature: Signature = key.sign_prehash(digest)?;
        Ok(signature.to_bytes().into())
    };
    let token = certificate(&key.verifying_key().into(), by_key).map_err(|e| FetchError::Sign(SignError::Signer(e)))?;
    let retrieve = Asked::Documents(vec![wanted.clone()]);
    let created_ms = now_ms();
    let expires_ms = created_ms.saturating_add(VALID_MS);
    let request = UnsignedRequest { to, message_id, created_ms, expires_ms, retrieve: &retrieve };
    let mut nonce = [0; 16];
    rand::rngs::OsRng.fill_bytes(&mut nonce);
    sign(&request, &token, TokenPlacement::Part, nonce, by_key).map_err(FetchError::Sign)
}

fn broken_off(error: impl std::fmt::Display) -> FetchError {
    FetchError::BrokenOff(error.to_string())
}

/// Sends the request and writes the document; returns its length.
async fn receive(
    endpoint: &Endpoint,
    request: SignedRequest,
    message_id: &str,
    part: &Part,
) -> Result<u64, FetchError> {
    let connected = tokio::time::timeout(WAIT_MAX, connect(endpoint)).await.map_err(broken_off)?;
    let (stream, uri) = connected?;
    let path = uri.path();
    if path.len() < 2 {
        return Err(FetchError::NoEndpoint(endpoint.url.clone()));
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken_off)?;
    let message = Request::post(path)
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, request.content_type)
        .body(Full::new(Bytes::from(request.body)))
        .map_err(broken_off)?;
    let received = async move {
        let answered = tokio::time::timeout(WAIT_MAX, sender.send_request(message)).await.map_err(broken_off)?;
        write_document(answered.map_err(broken_off)?, message_id, part).await
    };
    tokio::pin!(received, connection);
    // The connection moves the octets; the answer is what counts, also when the connection ends first.
    tokio::select! {
        received = &mut received => received,
        ended = &mut connection => match ended {
            Ok(()) => received.await,
            Err(error) => Err(broken_off(error)),
        },
    }
}

async fn write_document(response: Response<Incoming>, message_id: &str, part: &Part) -> Result<u64, FetchError> {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let status = response.status();
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let said = tokio::time::timeout(WAIT_MAX, Limited::new(body, FAULT_BYTES_MAX).collect()).await;
        let fault = said.ok().and_then(Result::ok).and_then(|said| read_fault(&said.to_bytes()));
        return Err(fault.map_or(FetchError::Status(status.as_u16()), FetchError::Fault));
    }
    let mut reader = ResponseReader::new(&content_type, message_id)?;
    let mut file = part.open().await?;
    let mut bytes = 0;
    while let Some(frame) = tokio::time::timeout(WAIT_MAX, body.frame()).await.map_err(broken_off)? {
        let Ok(octets) = frame.map_err(broken_off)?.into_data() else { continue };
        reader.push(&octets);
        while let Some(piece) = reader.next_piece()? {
            match piece {
                ResponsePiece::Data(data) => {
                    file.write_all(data).await.map_err(|e| part.failed(e))?;
                    bytes += data.len() as u64;
                }
                ResponsePiece::Response(said) => {
                    if let Some(error) = said.errors.into_iter().next() {
                        return Err(FetchError::Refused { code: error.code, context: error.context });
                    }
                    if said.documents.len() != 1 {
                        return Err(FetchError::Response(ResponseError::Parts));
                    }
                }
                ResponsePiece::Document(_) | ResponsePiece::DocumentEnd | ResponsePiece::End => {}
            }
        }
    }
    reader.finish()?;
    file.sync_all().await.map_err(|e| part.failed(e))?;
    Ok(bytes)
}

/// Compares every object with the manifest, in its order.
async fn prove(file: &Path, manifest: Manifest) -> Result<u64, FetchError> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || zip::digests(&mut BufReader::new(std::fs::File::open(path)?)));
    let digests = read.await.map_err(broken_off)?.map_err(|_| FetchError::Differs)?;
    let listed = manifest.objects.iter().map(|object| object.file_sha256);
    if digests.iter().copied().eq(listed) { Ok(digests.len() as u64) } else { Err(FetchError::Differs) }
}

/// A file being filled beside the one that it will be. Dropped before it is kept, it leaves nothing.
struct Part {
    path: PathBuf,
}

impl Part {
    async fn create(out: &Path) -> Result<Self, FetchError> {
        let fail = |e| FetchError::File(out.to_owned(), e);
        if tokio::fs::try_exists(out).await.map_err(fail)? {
            return Err(fail(std::io::ErrorKind::AlreadyExists.into()));
        }
        let mut path = out.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let mut options = tokio::fs::OpenOptions::new();
        let created = options.write(true).create_new(true).mode(0o600).open(&path).await;
        created.map_err(|e| FetchError::File(path.clone(), e))?;
        Ok(Self { path })
    }

    async fn open(&self) -> Result<File, FetchError> {
        tokio::fs::OpenOptions::new().write(true).open(&self.path).await.map_err(|e| self.failed(e))
    }

    fn failed(&self, error: std::io::Error) -> FetchError {
        FetchError::File(self.path.clone(), error)
    }

    fn keep(self, out: &Path) -> Result<(), FetchError> {
        std::fs::rename(&self.path, out).map_err(|e| FetchError::File(out.to_owned(), e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After it was kept there is nothing at this path.
        let _ = std::fs::remove_file(&self.path);
    }
}
