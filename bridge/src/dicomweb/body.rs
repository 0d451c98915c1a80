//! What goes back: bodies made while they are sent, entity tags, and ranges of bytes (RFC 9110 13.1.2, 14).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::http::has_tag;

/// Runs of bytes that wait for the connection.
const RUNS_AHEAD: usize = 4;

/// Longest wait for a client that takes nothing: what it keeps busy is others' too.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Takes the bytes of a body. Unless it is said that they are all ([`Out::end`]), the connection breaks off where they stop, so that nobody takes
/// what came for the whole.
pub(crate) struct Out {
    runs: mpsc::Sender<Bytes>,
    whole: Arc<AtomicBool>,
}

impl Out {
    /// Hands a run to the client. Says whether it took it.
    pub(crate) async fn put(&self, run: impl Into<Bytes>) -> bool {
        let sent = tokio::time::timeout(STALL_MAX, self.runs.send(run.into())).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Says that there is no more.
    pub(crate) fn end(self) {
        self.whole.store(true, Ordering::Release);
    }
}

/// A body and where its bytes come from.
pub(crate) fn streamed() -> (Out, Body) {
    let (runs, taken) = mpsc::channel::<Bytes>(RUNS_AHEAD);
    let whole = Arc::new(AtomicBool::new(false));
    let out = Out { runs, whole: whole.clone() };
    let stream = futures::stream::unfold(Some(taken), move |taken| {
        let whole = whole.clone();
        async move {
            let mut taken = taken?;
            match taken.recv().await {
                Some(run) => Some((Ok(run), Some(taken))),
                None if whole.load(Ordering::Acquire) => None,
                None => Some((Err(io::Error::other("what was begun cannot be finished")), None)),
            }
        }
    });
    (out, Body::from_stream(stream.boxed()))
}

/// An answer with a media type, and a tag if its content has one.
pub(super) fn answer(content_type: &str, tag: Option<&str>, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    put_tag(&mut response, tag);
    response
}

/// Tells whoever has this content already that he does, and nothing else.
pub(super) fn unchanged(headers: &HeaderMap, tag: &str) -> Option<Response> {
    let quoted = format!("\"{tag}\"");
    has_tag(headers, &quoted).then(|| {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        put_tag(&mut response, Some(tag));
        response
    })
}

fn put_tag(response: &mut Response, tag: Option<&str>) {
    if let Some(Ok(value)) = tag.map(|tag| HeaderValue::from_str(&format!("\"{tag}\""))) {
        response.headers_mut().insert(header::ETAG, value);
        // One form of a resource is not another.
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    }
}

/// What a client asks of a body of a certain length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    All,
    /// From this byte to that one.
    Part(u64, u64),
    /// Bytes that there are not.
    Beyond,
}

/// The one range of bytes that is asked for. Several at once are answered with the whole, as RFC 9110 14.2 allows.
pub(super) fn asked(headers: &HeaderMap, tag: &str, total: u64) -> Asked {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|text| range(text, total));
    // A client that goes on with something else than it has gets all of it (RFC 9110 13.1.5).
    let same = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == format!("\"{tag}\"").as_bytes());
    match range.filter(|_| same) {
        None => Asked::All,
        Some(None) => Asked::Beyond,
        Some(Some((from, to))) => Asked::Part(from, to),
    }
}

/// Says of an answer which part of the whole it is.
pub(super) fn as_part(mut response: Response, asked: Asked, total: u64) -> Response {
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let said = match asked {
        Asked::All => return response,
        Asked::Part(from, to) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            format!("bytes {from}-{to}/{total}")
        }
        Asked::Beyond => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            format!("bytes */{total}")
        }
    };
    if let Ok(value) = HeaderValue::from_str(&said) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// Bytes in one part, or the range of them that was asked for.
pub(super) fn ranged(headers: &HeaderMap, content_type: &str, tag: &str, bytes: Bytes) -> Response {
    let total = bytes.len() as u64;
    let asked = asked(headers, tag, total);
    let index = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
    let response = match asked {
        Asked::All => answer(content_type, Some(tag), bytes),
        Asked::Part(from, to) => answer(content_type, Some(tag), bytes.slice(index(from)..=index(to))),
        Asked::Beyond => Response::default(),
    };
    as_part(response, asked, total)
}

/// First and last byte of the one range asked for; none inside where there are no such bytes, none at all where no range of bytes is named.
fn range(text: &str, total: u64) -> Option<Option<(u64, u64)>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = total.checked_sub(1);
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (from.trim(), to.trim()) {
        ("", suffix) => {
            let wanted = number(suffix)?;
            Some(last.filter(|_| wanted > 0).map(|last| (total.saturating_sub(wanted), last)))
        }
        (from, "") => {
            let from = number(from)?;
            Some(last.filter(|last| from <= *last).map(|last| (from, last)))
        }
        (from, to) => {
            let (from, to) = (number(from)?, number(to)?);
            if from > to {
                return None;
            }
            Some(last.filter(|last| from <= *last).map(|last| (from, to.min(last))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_was_not_ended_breaks_off() {
        for is_whole in [true, false] {
            let (out, body) = streamed();
            tokio::spawn(async move {
                assert!(out.put("a").await && out.put("b").await);
                if is_whole {
                    out.end();
                }
            });
            let read = axum::body::to_bytes(body, 100).await;
            assert_eq!(read.ok().as_deref(), is_whole.then_some(&b"ab"[..]));
        }
    }

    #[test]
    fn one_range_is_understood_and_others_are_left_alone() {
        assert_eq!(range("bytes=0-0", 10), Some(Some((0, 0))));
        assert_eq!(range("bytes=3-", 10), Some(Some((3, 9))));
        assert_eq!(range("bytes=-3", 10), Some(Some((7, 9))));
        assert_eq!(range("bytes=-30", 10), Some(Some((0, 9))));
        assert_eq!(range("bytes=5-99", 10), Some(Some((5, 9))));
        assert_eq!(range("bytes=10-", 10), Some(None));
        assert_eq!(range("bytes=-0", 10), Some(None));
        assert_eq!(range("bytes=0-", 0), Some(None));
        for other in ["bytes=5-3", "bytes=0-1,3-4", "bytes=a-b", "lines=1-2", "bytes=", "bytes=-"] {
            assert_eq!(range(other, 10), None, "{other}");
        }
    }
}
