//! Frames of an object (PS3.18 10.4.1.1.6): as they are stored, or native for who asks for that.

use axum::extract::State;
use axum::response::Response;
use dicom_scp::{TransferSyntax, Uid};
use tokio::sync::mpsc;

use super::ask::Ask;
use super::body::{self, streamed};
use super::multipart::Boundary;
use super::negotiate::Range;
use super::objects::{opened, seekable};
use crate::http::{Api, Problem};
use crate::payload::object::ObjectError;
use crate::payload::preview::{Coding, FrameBytes, FrameOutcome, PreviewError, Reason, read_frames};

/// Frames that one request may name.
const FRAMES_MAX: usize = 10_000;
/// Frames that wait for the connection.
const FRAMES_AHEAD: usize = 1;
const OCTETS: &str = "application/octet-stream";

/// How frames go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    coding: Coding,
    media_type: &'static str,
    multipart: bool,
}

/// Some frames of an object.
pub(super) async fn retrieve(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let wanted = numbers(&ask.rest).map_err(Problem::bad_request)?;
    let stored = ask.object(&api).await?;
    let chosen = ask.accepted.ranges().find_map(|range| form(range, &stored.transfer_syntax, wanted.len()));
    let form = chosen.ok_or_else(|| not_acceptable(&stored.transfer_syntax))?;
    let tag = format!("{}-{:?}-{}", hex::encode(&stored.file_sha256[..12]), form.coding, ask.rest);
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let content = opened(&api, &stored).await?.content;
    // Decoded frames are large.
    let is_encapsulated = TransferSyntax::of(&stored.transfer_syntax).is_some_and(|syntax| syntax.is_encapsulated());
    let permit = match form.coding {
        Coding::Native if is_encapsulated => {
            Some(api.drawing().clone().acquire_owned().await.map_err(|_| Problem::timed_out())?)
        }
        _ => None,
    };
    let (frames, mut read) = mpsc::channel::<Result<FrameOutcome, PreviewError>>(FRAMES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut source = seekable(content);
        let ended = read_frames(&mut source, &wanted, form.coding, |frame| frames.blocking_send(Ok(frame)).is_ok());
        if let Err(error) = ended {
            // Whoever waited may have left.
            let _ = frames.blocking_send(Err(error));
        }
    });
    // What cannot be had at all is an answer of its own.
    let first = frame(read.recv().await)?.ok_or_else(Problem::not_found)?;
    if !form.multipart {
        let content_type = content_type(form.media_type, &first);
        return Ok(body::ranged(&ask.headers, &content_type, &tag, first.bytes.into()));
    }
    let boundary = Boundary::random();
    let (out, body) = streamed();
    let response = body::answer(&boundary.content_type(form.media_type), Some(&tag), body);
    api.track(async move {
        let mut next = Some(first);
        while let Some(frame_bytes) = next {
            let head =
                boundary.part(&content_type(form.media_type, &frame_bytes), None, Some(frame_bytes.bytes.len() as u64));
            if !out.put(head).await || !out.put(frame_bytes.bytes).await {
                return;
            }
            next = match frame(read.recv().await) {
                Ok(next) => next,
                // The head is sent already, so the answer breaks off.
                Err(_) => return,
            };
        }
        if out.put(boundary.end()).await {
            out.end();
        }
    });
    Ok(response)
}

fn content_type(media_type: &str, frame: &FrameBytes) -> String {
    format!("{media_type}; transfer-syntax={}", frame.transfer_syntax)
}

fn frame(read: Option<Result<FrameOutcome, PreviewError>>) -> Result<Option<FrameBytes>, Problem> {
    match read {
        None => Ok(None),
        Some(Ok(Ok(frame))) => Ok(Some(frame)),
        Some(Ok(Err(Reason::NoPixels))) | Some(Err(PreviewError::Frame { .. })) => Err(Problem::not_found()),
        Some(Ok(Err(reason))) => {
            Err(Problem::not_acceptable(format!("{reason}; ask for the stored transfer syntax with transfer-syntax=*")))
        }
        Some(Err(error @ PreviewError::Object(ObjectError::Io(_)))) => Err(Problem::internal(&error)),
        Some(Err(error)) => {
            Err(Problem::not_acceptable(format!("no frame can be made of it: {error}; the object itself can be had")))
        }
    }
}

/// Numbers of frames, which begin at 1, as indices.
fn numbers(list: &str) -> Result<Vec<u32>, String> {
    let number = |text: &str| text.trim().parse::<u32>().ok().and_then(|number| number.checked_sub(1));
    let numbers: Option<Vec<u32>> = list.split(',').map(number).collect();
    let numbers = numbers.ok_or_else(|| format!("frames are numbers from 1 with commas between, found \"{list}\""))?;
    match numbers.len() {
        1..=FRAMES_MAX => Ok(numbers),
        _ => Err(format!("at most {FRAMES_MAX} frames at once")),
    }
}

/// What a range gets: octets are native unless the stored transfer syntax is named or `*` is (PS3.18 8.7.3.5.2); the media type of the stored
/// compression gets that.
fn form(range: &Range, stored: &Uid, frames: usize) -> Option<Form> {
    let own = media_type(stored);
    let multipart = range.multipart || range.is_any();
    if !multipart && frames != 1 {
        return None;
    }
    let wanted = range.transfer_syntax.as_deref();
    let is_stored = wanted == Some("*") || wanted == Some(stored.as_str());
    let is_native = matches!(wanted, None | Some("1.2.840.10008.1.2.1" | "1.2.840.10008.1.2"));
    if range.covers(OCTETS) && (is_stored || is_native) {
        let coding = if is_stored { Coding::Stored } else { Coding::Native };
        return Some(Form { coding, media_type: OCTETS, multipart });
    }
    let fits = own != OCTETS && range.covers(own) && (wanted.is_none() || is_stored);
    fits.then_some(Form { coding: Coding::Stored, media_type: own, multipart })
}

/// The media type of frames in a transfer syntax (PS3.18 table 8.7.3-5).
fn media_type(syntax: &Uid) -> &'static str {
    match syntax.as_str().strip_prefix("1.2.840.10008.1.2").unwrap_or_default() {
        ".4.50" | ".4.51" | ".4.57" | ".4.70" => "image/jpeg",
        ".5" => "image/dicom-rle",
        ".4.80" | ".4.81" => "image/jls",
        ".4.90" | ".4.91" => "image/jp2",
        ".4.92" | ".4.93" => "image/jpx",
        ".4.110" | ".4.111" | ".4.112" => "image/jxl",
        ".4.201" | ".4.202" | ".4.203" => "image/jphc",
        _ => OCTETS,
    }
}

fn not_acceptable(stored: &Uid) -> Problem {
    let name = TransferSyntax::of(stored).map_or("unknown", |syntax| syntax.name());
    let own = media_type(stored);
    Problem::not_acceptable(format!(
        "frames of this object are stored in {stored} ({name}): ask for multipart/related; type=\"{OCTETS}\"; transfer-syntax=* or \
         type=\"{own}\", or without a transfer syntax for native octets; a body without parts has one frame"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dicomweb::negotiate::Accepted;
    use axum::http::{HeaderMap, header};

    fn chosen(accept: &str, stored: &str, frames: usize) -> Option<(Coding, &'static str, bool)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let stored = Uid::new(stored).unwrap();
        let accepted = Accepted::of(&[], &headers);
        let form = accepted.ranges().find_map(|range| form(range, &stored, frames));
        form.map(|form| (form.coding, form.media_type, form.multipart))
    }

    #[test]
    fn who_asks_for_octets_gets_them_native_unless_he_says_otherwise() {
        let (native, jpeg, j2k) = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90");
        let any = "multipart/related; type=application/octet-stream; transfer-syntax=*";
        let octets = "multipart/related; type=\"application/octet-stream\"";
        assert_eq!(chosen(any, j2k, 2), Some((Coding::Stored, OCTETS, true)));
        assert_eq!(chosen(octets, j2k, 2), Some((Coding::Native, OCTETS, true)));
        assert_eq!(chosen(octets, native, 1), Some((Coding::Native, OCTETS, true)));
        assert_eq!(chosen("*/*", jpeg, 3), Some((Coding::Native, OCTETS, true)));
        assert_eq!(chosen("image/jpeg", jpeg, 1), Some((Coding::Stored, "image/jpeg", false)));
        assert_eq!(chosen("image/jpeg", jpeg, 2), None, "one body has one frame");
        assert_eq!(
            chosen("multipart/related; type=\"image/jpeg\"", jpeg, 2),
            Some((Coding::Stored, "image/jpeg", true))
        );
        assert_eq!(chosen("image/*", j2k, 1), Some((Coding::Stored, "image/jp2", false)));
        assert_eq!(chosen("image/jp2", jpeg, 1), None);
        assert_eq!(chosen(&format!("application/octet-stream; transfer-syntax={jpeg}"), j2k, 1), None);
        assert_eq!(
            chosen(&format!("application/octet-stream; transfer-syntax={j2k}"), j2k, 1),
            Some((Coding::Stored, OCTETS, false))
        );
        assert_eq!(
            chosen(&format!("text/html, image/jls;q=0.9, {any};q=0.5"), j2k, 1),
            Some((Coding::Stored, OCTETS, true))
        );
    }

    #[test]
    fn frames_are_counted_from_one() {
        assert_eq!(numbers("1,3, 2"), Ok(vec![0, 2, 1]));
        for wrong in ["0", "", "1,", "-1", "1.5", "a", "4294967296"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
        assert!(numbers(&"1,".repeat(FRAMES_MAX + 1)[..2 * FRAMES_MAX + 1]).is_err());
    }
}
