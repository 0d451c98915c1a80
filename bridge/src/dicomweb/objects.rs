//! Objects as they were received (PS3.18 10.4.1.1.1): in parts of one body, by themselves, or as a ZIP archive.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use dicom_scp::{TransferSyntax, Uid};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use sha2::{Digest as _, Sha256};

use super::ask::Ask;
use super::body::{self, Asked, Out, streamed};
use super::multipart::Boundary;
use super::negotiate::Range;
use crate::archive::Stored;
use crate::http::{Api, Problem, blocking};
use crate::recode::{RecodeError, Recoding};
use crate::retrieve::{Content, Opened, Retrieve, RetrieveError, SourceError};
use crate::zip::Layout;

const DICOM: &str = "application/dicom";
const ZIP: &str = "application/zip";
/// Bytes handed to the connection at once.
const RUN_BYTES: usize = 256 * 1024;
/// Objects that are opened while one is sent.
const OPENED_AHEAD: usize = 2;

/// How objects go out.
enum Form {
    Parts(Vec<Part>),
    Alone(Box<Part>),
    Zip(Vec<Stored>),
}

/// An object, and what it is made into.
#[derive(Clone)]
struct Part {
    stored: Stored,
    recoding: Option<Recoding>,
    /// Whether it goes out as it is stored where that cannot be done.
    or_stored: bool,
}

/// An object as it goes out, and its bytes.
type Outgoing = (Part, Box<dyn Read + Send>);

impl Part {
    fn content_type(&self) -> String {
        let syntax = self.recoding.as_ref().map_or(&self.stored.transfer_syntax, Recoding::to);
        format!("{DICOM}; transfer-syntax={syntax}")
    }

    /// Known before it is made only where nothing is.
    fn bytes(&self) -> Option<u64> {
        self.recoding.is_none().then_some(self.stored.file_bytes)
    }

    fn opening(self, retrieve: Retrieve) -> BoxFuture<'static, Result<Outgoing, Refusal>> {
        async move { self.open(&retrieve).await }.boxed()
    }

    /// Opens it, and says what it goes out as.
    async fn open(self, retrieve: &Retrieve) -> Result<Outgoing, Refusal> {
        if let Some(how) = &self.recoding {
            match how.open(retrieve, &self.stored).await {
                Err(error) if error.is_of_object() && self.or_stored => {}
                made => return Ok((self, made?)),
            }
        }
        let content = retrieve.open_file(&self.stored).await?.content;
        Ok((Self { recoding: None, ..self }, readable(content)))
    }

    /// What comes before it in a body of several.
    fn head(&self, boundary: &Boundary, root: &str) -> String {
        let Stored { study_uid, series_uid, sop_instance, .. } = &self.stored;
        let location = format!("{root}/studies/{study_uid}/series/{series_uid}/instances/{sop_instance}");
        boundary.part(&self.content_type(), Some(&location), self.bytes())
    }
}

/// Why an object cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the object")]
    Retrieve(#[from] RetrieveError),
    #[error("in the transfer syntax that is asked for")]
    Recode(#[source] RecodeError),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::Retrieve(error) => of_retrieve(error),
            Refusal::Recode(error) if error.is_of_object() => Self::not_acceptable(format!(
                "an object cannot be made into the transfer syntax that is asked for; transfer-syntax=* brings it as it is stored: {error}"
            )),
            Refusal::Recode(error) => Self::internal(error),
        }
    }
}

impl From<RecodeError> for Refusal {
    fn from(error: RecodeError) -> Self {
        match error {
            RecodeError::Retrieve(error) => Self::Retrieve(error),
            other => Self::Recode(other),
        }
    }
}

/// A study, a series or an object.
pub(super) async fn retrieve(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let objects = ask.objects(&api).await?;
    let chosen = ask.accepted.ranges().find_map(|range| form(range, &objects));
    let form = chosen.ok_or_else(|| {
        Problem::not_acceptable(
            "objects are application/dicom, in parts (multipart/related) or alone, in the transfer syntax that they are stored in \
             (transfer-syntax=*) or, of those that are decoded here, Explicit or Implicit VR Little Endian; or application/zip",
        )
    })?;
    match form {
        Form::Alone(part) => alone(&api, &ask, *part).await,
        Form::Parts(parts) => in_parts(&api, &ask, parts).await,
        Form::Zip(objects) => zipped(&api, &ask, objects).await,
    }
}

fn form(range: &Range, objects: &[Stored]) -> Option<Form> {
    if !range.multipart && range.media_type == ZIP {
        return Some(Form::Zip(objects.to_vec()));
    }
    if !range.covers(DICOM) {
        return None;
    }
    let parts: Option<Vec<Part>> =
        objects.iter().map(|stored| part(stored, range.transfer_syntax.as_deref())).collect();
    match (parts?, range.multipart || range.is_any()) {
        (parts, true) => Some(Form::Parts(parts)),
        (mut parts, false) if parts.len() == 1 => parts.pop().map(|part| Form::Alone(Box::new(part))),
        _ => None,
    }
}

/// An object in a transfer syntax, if it is in it or can be made so without loss. Where none is named, that is Explicit VR Little Endian, but for what was
/// compressed with loss, and for what cannot be decoded, which go out as they are (PS3.18 8.7.3.4).
fn part(stored: &Stored, wanted: Option<&str>) -> Option<Part> {
    let from = &stored.transfer_syntax;
    let as_stored = Part { stored: stored.clone(), recoding: None, or_stored: false };
    match wanted {
        Some(wanted) if wanted == "*" || from.as_str() == wanted => Some(as_stored),
        Some(wanted) => {
            let recoding = Recoding::new(from, &Uid::new(wanted).ok()?)?;
            Some(Part { recoding: Some(recoding), ..as_stored })
        }
        None if TransferSyntax::of(from).is_none_or(|from| from.may_be_lossy()) => Some(as_stored),
        None if from == TransferSyntax::EXPLICIT_VR_LE.uid() => Some(as_stored),
        None => {
            let recoding = Recoding::new(from, TransferSyntax::EXPLICIT_VR_LE.uid());
            Some(Part { recoding, or_stored: true, ..as_stored })
        }
    }
}

async fn alone(api: &Api, ask: &Ask, part: Part) -> Result<Response, Problem> {
    let tag = tag_of(std::slice::from_ref(&part));
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let (asked, total) = match part.bytes() {
        Some(total) => (body::asked(&ask.headers, &tag, total), total),
        // How long it becomes is known when it is made.
        None => (Asked::All, 0),
    };
    let (part, source): Outgoing = match asked {
        Asked::All => part.open(api.site().retrieve()).await?,
        Asked::Beyond => (part, Box::new(io::empty())),
        Asked::Part(from, to) => {
            let content = opened(api, &part.stored).await?.content;
            let cut = blocking(move || cut_out(seekable(content), from, to)).await?;
            (part, Box::new(cut.map_err(|error| Problem::internal(&error))?))
        }
    };
    let bytes = match asked {
        Asked::All => part.bytes(),
        Asked::Part(from, to) => Some(to - from + 1),
        Asked::Beyond => Some(0),
    };
    let (out, body) = streamed();
    let mut response = with_length(body::answer(&part.content_type(), Some(&tag), body), bytes);
    if part.bytes().is_some() && total > 0 {
        response = body::as_part(response, asked, total);
    }
    api.track(async move {
        if send(source, &out).await {
            out.end();
        }
    });
    Ok(response)
}

/// The bytes from one to another.
fn cut_out(mut source: Box<dyn Seekable>, from: u64, to: u64) -> io::Result<impl Read + Send> {
    source.seek(SeekFrom::Start(from))?;
    Ok(source.take(to - from + 1))
}

/// All objects have a head, their bytes and their end, so the length is known unless one is made anew.
async fn in_parts(api: &Api, ask: &Ask, parts: Vec<Part>) -> Result<Response, Problem> {
    let tag = tag_of(&parts);
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let boundary = Boundary::random();
    let root = ask.root();
    let sizes = parts.iter().map(|part| Some(part.head(&boundary, &root).len() as u64 + part.bytes()?));
    let length = sizes.sum::<Option<u64>>().map(|bytes| bytes + boundary.end().len() as u64);
    let (out, body) = streamed();
    let response = with_length(body::answer(&boundary.content_type(DICOM), Some(&tag), body), length);
    // What cannot be had at all is an answer of its own.
    let retrieve = api.site().retrieve().clone();
    let mut parts = parts.into_iter();
    let first = match parts.next() {
        Some(first) => Some(first.open(&retrieve).await?),
        None => None,
    };
    let rest: Vec<_> = parts.map(|part| part.opening(retrieve.clone())).collect();
    let rest = futures::stream::iter(rest).buffered(OPENED_AHEAD).boxed();
    let mut opened = futures::stream::iter(first.map(Ok)).chain(rest).boxed();
    api.track(async move {
        while let Some(part) = opened.next().await {
            let (part, source) = match part {
                Ok(opened) => opened,
                Err(refusal) => return broken(&refusal),
            };
            if !out.put(part.head(&boundary, &root)).await || !send(source, &out).await {
                return;
            }
        }
        if out.put(boundary.end()).await {
            out.end();
        }
    });
    Ok(response)
}

async fn zipped(api: &Api, ask: &Ask, objects: Vec<Stored>) -> Result<Response, Problem> {
    let parts: Vec<Part> =
        objects.iter().map(|stored| Part { stored: stored.clone(), recoding: None, or_stored: false }).collect();
    let tag = format!("z{}", tag_of(&parts));
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let retrieve = api.site().retrieve().clone();
    // What cannot be had at all is an answer of its own; the others come as they are needed, each with its checksum.
    if let Some(first) = objects.first() {
        opened(api, first).await?;
    }
    let layout = Layout::new(objects.iter().map(|stored| stored.file_bytes).collect());
    let (out, body) = streamed();
    let mut response = with_length(body::answer(ZIP, Some(&tag), body), Some(layout.bytes()));
    let named = HeaderValue::from_static("attachment; filename=\"study.zip\"");
    response.headers_mut().insert(header::CONTENT_DISPOSITION, named);
    api.track(async move {
        let mut checksums = Vec::with_capacity(objects.len());
        let opening = objects.into_iter().map(|stored| {
            let retrieve = retrieve.clone();
            async move { retrieve.open_file(&stored).await }
        });
        let mut opened = futures::stream::iter(opening).buffered(OPENED_AHEAD).enumerate();
        while let Some((index, opened)) = opened.next().await {
            let content = match opened {
                Ok(opened) => opened.content,
                Err(error) => return broken(&error.into()),
            };
            let crc32 = content.crc32();
            checksums.push(crc32);
            if !out.put(layout.header(index, crc32)).await || !send(readable(content), &out).await {
                return;
            }
        }
        if out.put(layout.end(&checksums)).await {
            out.end();
        }
    });
    Ok(response)
}

fn with_length(mut response: Response<Body>, bytes: Option<u64>) -> Response<Body> {
    if let Some(bytes) = bytes {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    response
}

/// Names the content: which objects, and in which transfer syntaxes. The boundary between parts is not content.
fn tag_of(parts: &[Part]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.stored.file_sha256);
        digest.update(part.content_type());
    }
    hex::encode(&digest.finalize()[..16])
}

/// Passes everything on. Says whether the client took it.
async fn send(mut source: Box<dyn Read + Send>, out: &Out) -> bool {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut run = Vec::with_capacity(RUN_BYTES);
            let read = source.by_ref().take(RUN_BYTES as u64).read_to_end(&mut run);
            (source, read.map(|_| run))
        });
        let run = match read.await {
            Ok((back, Ok(run))) => {
                source = back;
                run
            }
            Ok((_, Err(error))) => {
                tracing::error!(%error, "an object broke off while it was sent");
                return false;
            }
            Err(_) => return false,
        };
        if run.is_empty() {
            return true;
        }
        if !out.put(run).await {
            return false;
        }
    }
}

/// An answer that has begun can only end as one that broke off.
fn broken(refusal: &Refusal) {
    tracing::warn!(error = %crate::chain_of(refusal), "an answer breaks off: an object cannot be had");
}

/// Opens an object, whole, or says to the client why it cannot be had.
pub(super) async fn opened(api: &Api, stored: &Stored) -> Result<Opened, Problem> {
    api.site().retrieve().open_file(stored).await.map_err(|error| of_retrieve(&error))
}

fn of_retrieve(error: &RetrieveError) -> Problem {
    match error {
        RetrieveError::Ledger(_) | RetrieveError::NoLedger | RetrieveError::GivenUp => Problem::ledger_away(),
        RetrieveError::Source(SourceError::Away(_) | SourceError::Broken(_)) => {
            Problem::unavailable("the site that keeps the object does not answer")
        }
        RetrieveError::Ipfs(_) => Problem::unavailable("the object is in IPFS, and the node did not bring it"),
        RetrieveError::Source(SourceError::Refused(_)) | RetrieveError::NotGranted(_) => {
            Problem::forbidden("only previews of this object are granted, or nothing any more")
        }
        RetrieveError::Nowhere(_) => Problem::not_found(),
        other => Problem::internal(other),
    }
}

fn readable(content: Content) -> Box<dyn Read + Send> {
    match content {
        Content::Whole(bytes) => Box::new(Cursor::new(bytes)),
        Content::File(file) => Box::new(file),
    }
}

/// What can be read at any place.
pub(super) trait Seekable: Read + Seek + Send {}
impl<T: Read + Seek + Send> Seekable for T {}

/// An object to be read at any place. It was proven when it was opened.
pub(super) fn seekable(content: Content) -> Box<dyn Seekable> {
    match content {
        Content::Whole(bytes) => Box::new(Cursor::new(bytes)),
        Content::File(file) => Box::new(file.into_proven()),
    }
}

/// All of an object.
pub(super) fn whole(content: Content) -> io::Result<Bytes> {
    match content {
        Content::Whole(bytes) => Ok(bytes),
        Content::File(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes.into())
        }
    }
}
