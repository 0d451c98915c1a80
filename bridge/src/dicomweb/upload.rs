//! A request's body as it comes: parts (RFC 2387), or one object by itself. Must not know what is in them.

use std::ops::Range;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures::StreamExt as _;
use ihe_retrieve::media_type::MediaType;
use ihe_retrieve::multipart::{MultipartError, PartHead, Reader, Step};

use crate::http::Problem;

/// Longest wait for more of a body.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Parts of one body.
const PARTS_MAX: usize = 100_000;
/// Media types of objects, and of descriptions from which objects are made with the bulk data in the parts after it.
const DICOM: &str = "application/dicom";
const DESCRIBED: [&str; 2] = ["application/dicom+json", "application/json"];

/// What the parts of a body are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each is an object.
    Objects,
    /// The first describes objects, the others are bulk data.
    Described,
}

/// Why a body cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// It is no message of several parts.
    #[error("the body is damaged: {0}")]
    Multipart(#[from] MultipartError),
    /// Nothing more came.
    #[error("nothing came for {} seconds", STALL_MAX.as_secs())]
    Stalled,
    /// The connection ended.
    #[error("the body broke off")]
    Cut,
}

/// A body that is being read.
pub(super) struct Upload {
    body: BodyDataStream,
    kind: Kind,
    form: Form,
}

enum Form {
    Parts(Box<Reader>),
    Alone(Alone),
}

/// One part without anything around it.
struct Alone {
    head: Option<PartHead>,
    run: Bytes,
    given: bool,
    ended: bool,
}

impl Upload {
    /// Understands what kind of body it is.
    pub(super) fn begin(headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        let stated = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = MediaType::parse(stated).ok_or_else(unsupported)?;
        let is_multipart = media_type.essence() == "multipart/related";
        let inner = if is_multipart { media_type.parameter("type") } else { Some(media_type.essence()) };
        let inner = inner.unwrap_or(DICOM).to_ascii_lowercase();
        let kind = match inner.as_str() {
            DICOM => Kind::Objects,
            described if DESCRIBED.contains(&described) => Kind::Described,
            _ => return Err(unsupported()),
        };
        let form = if is_multipart {
            let boundary = media_type.parameter("boundary").unwrap_or_default();
            let reader = Reader::new(boundary, PARTS_MAX);
            Form::Parts(Box::new(reader.map_err(|_| Problem::bad_request("the Content-Type has no boundary"))?))
        } else {
            let head = PartHead { content_type: Some(media_type), ..PartHead::default() };
            Form::Alone(Alone { head: Some(head), run: Bytes::new(), given: true, ended: false })
        };
        Ok(Self { body: body.into_data_stream(), kind, form })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// What comes next; none after the end.
    pub(super) async fn next(&mut self) -> Result<Option<Step>, Broken> {
        loop {
            let step = match &mut self.form {
                Form::Parts(reader) => reader.step()?,
                Form::Alone(alone) => alone.step(),
            };
            match step {
                Some(Step::End) => return Ok(None),
                Some(step) => return Ok(Some(step)),
                None => self.read_on().await?,
            }
        }
    }

    /// The octets of a step, until the next is asked for.
    pub(super) fn data(&self, range: Range<usize>) -> &[u8] {
        match &self.form {
            Form::Parts(reader) => reader.data(range),
            Form::Alone(alone) => alone.run.get(range).unwrap_or_default(),
        }
    }

    async fn read_on(&mut self) -> Result<(), Broken> {
        let run = tokio::time::timeout(STALL_MAX, self.body.next()).await.map_err(|_| Broken::Stalled)?;
        match (run, &mut self.form) {
            (Some(Ok(run)), _) if run.is_empty() => {}
            (Some(Ok(run)), Form::Parts(reader)) => reader.push(&run),
            (Some(Ok(run)), Form::Alone(alone)) => (alone.run, alone.given) = (run, false),
            (None, Form::Alone(alone)) => alone.ended = true,
            (None, Form::Parts(_)) => return Err(MultipartError::Truncated.into()),
            (Some(Err(_)), _) => return Err(Broken::Cut),
        }
        Ok(())
    }
}

impl Alone {
    fn step(&mut self) -> Option<Step> {
        if let Some(head) = self.head.take() {
            return Some(Step::Part(head));
        }
        if !std::mem::replace(&mut self.given, true) && !self.run.is_empty() {
            return Some(Step::Data(0..self.run.len()));
        }
        match self.ended {
            false => None,
            // Twice: the part's end, then the body's.
            true if self.run.is_empty() => Some(Step::End),
            true => {
                self.run = Bytes::new();
                Some(Step::PartEnd)
            }
        }
    }
}

fn unsupported() -> Problem {
    Problem::unsupported(
        "studies are stored as multipart/related with type=\"application/dicom\" or type=\"application/dicom+json\", or one object as \
         application/dicom",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn read(content_type: &str, runs: Vec<&'static str>) -> Result<Vec<String>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        let stream = futures::stream::iter(runs.into_iter().map(Ok::<_, std::io::Error>));
        let mut upload =
            Upload::begin(&headers, Body::from_stream(stream)).map_err(|problem| format!("{problem:?}"))?;
        let mut parts = Vec::new();
        loop {
            match upload.next().await.map_err(|error| error.to_string())? {
                None => return Ok(parts),
                Some(Step::Part(_)) => parts.push(String::new()),
                Some(Step::Data(range)) => {
                    let text = String::from_utf8(upload.data(range).to_vec()).unwrap();
                    parts.last_mut().unwrap().push_str(&text);
                }
                Some(Step::PartEnd) => parts.last_mut().unwrap().push('.'),
                Some(Step::End) => unreachable!(),
            }
        }
    }

    #[tokio::test]
    async fn parts_and_what_comes_alone_are_read_alike() {
        let several = "multipart/related; type=\"application/dicom\"; boundary=x";
        let whole = vec!["--x\r\nContent-Type: application/dicom\r\n\r\na", "b\r\n--x\r\n\r\n", "c\r\n--x--\r\n"];
        assert_eq!(read(several, whole.clone()).await.unwrap(), ["ab.", "c."]);
        assert_eq!(read("application/dicom", vec!["a", "", "b"]).await.unwrap(), ["ab."]);
        assert!(read("application/dicom", vec![]).await.unwrap().concat().len() <= 1);
        assert!(read(several, whole[..2].to_vec()).await.unwrap_err().contains("ends early"));
        assert!(read(several, vec!["nonsense"]).await.unwrap_err().contains("delimiter"));
    }

    #[tokio::test]
    async fn what_is_no_object_is_refused_before_it_is_read() {
        for wrong in ["text/plain", "multipart/related; type=\"application/dicom+xml\"; boundary=x", "nonsense"] {
            assert!(read(wrong, vec![]).await.unwrap_err().contains("application/dicom"), "{wrong}");
        }
        assert!(read("multipart/related; type=\"application/dicom\"", vec![]).await.unwrap_err().contains("boundary"));
    }
}
