//! Values that metadata only names (PS3.18 10.4.1.1.5): by the tags and items on the way to them, as [`super::json`] writes them.

use std::io::Read as _;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use dicom_scp::TransferSyntax;
use dicom_scp::dataset::{DataSet, ReadOptions, Tag, Value, read};
use flate2::read::DeflateDecoder;

use super::ask::Ask;
use super::body;
use super::multipart::Boundary;
use super::objects::{opened, seekable, whole};
use crate::archive::Stored;
use crate::http::{Api, Problem, blocking};
use crate::payload::object::ObjectError;
use crate::payload::preview::{Coding, PreviewError, frames, read_frames};

const OCTETS: &str = "application/octet-stream";
/// Longest object whose values are looked for, in bytes: it is in memory then.
const OBJECT_BYTES_MAX: u64 = 512 << 20;
/// Longest frames that are put together, in bytes.
const FRAMES_BYTES_MAX: usize = 512 << 20;
/// Frames that are put together. A header may claim any number.
const FRAMES_MAX: u32 = 100_000;
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

/// The value at a place in an object: what is encapsulated in one part a frame, all else in one part.
pub(super) async fn retrieve(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let place = place(&ask.rest).ok_or_else(Problem::not_found)?;
    let stored = ask.object(&api).await?;
    let multipart = ask.accepted.ranges().find_map(|range| {
        let fits = range.covers(OCTETS)
            && range
                .transfer_syntax
                .as_deref()
                .is_none_or(|wanted| wanted == "*" || wanted == stored.transfer_syntax.as_str());
        fits.then_some(range.multipart || range.is_any())
    });
    let multipart = multipart.ok_or_else(|| {
        Problem::not_acceptable("bulk data is application/octet-stream, in parts (multipart/related) or alone")
    })?;
    let tag = format!("{}-b{}", hex::encode(&stored.file_sha256[..12]), ask.rest.replace('/', "."));
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    if stored.file_bytes > OBJECT_BYTES_MAX {
        return Err(Problem::not_acceptable(format!(
            "the object has more than {OBJECT_BYTES_MAX} bytes: get its frames, or the object"
        )));
    }
    let content = opened(&api, &stored).await?.content;
    // Whole objects are large, and an answer is one of them twice. Fetching one keeps nobody waiting.
    let _permit = api.drawing().acquire().await.map_err(|_| Problem::timed_out())?;
    let is_encapsulated = TransferSyntax::of(&stored.transfer_syntax).is_some_and(|syntax| syntax.is_encapsulated());
    let parts = match place.as_slice() {
        [(tag, None)] if *tag == PIXEL_DATA && is_encapsulated => {
            blocking(move || all_frames(&mut seekable(content))).await??
        }
        _ => vec![blocking(move || value(&stored, content, &place)).await??],
    };
    if !multipart {
        let [one] = <[Bytes; 1]>::try_from(parts).map_err(|_| {
            Problem::not_acceptable("compressed frames are parts of one body: ask for multipart/related")
        })?;
        return Ok(body::ranged(&ask.headers, OCTETS, &tag, one));
    }
    let boundary = Boundary::random();
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 256).sum());
    for part in parts {
        bytes.extend_from_slice(boundary.part(OCTETS, None, Some(part.len() as u64)).as_bytes());
        bytes.extend_from_slice(&part);
    }
    bytes.extend_from_slice(boundary.end().as_bytes());
    Ok(body::answer(&boundary.content_type(OCTETS), Some(&tag), bytes))
}

/// Tags, and the item in between, from the outermost on.
type Place = Vec<(Tag, Option<usize>)>;

fn place(text: &str) -> Option<Place> {
    let mut place = Place::new();
    let mut words = text.split('/');
    while let Some(word) = words.next() {
        let plain = word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(word, 16).ok().filter(|_| plain)?;
        let tag = Tag((number >> 16) as u16, (number & 0xFFFF) as u16);
        match words.next() {
            None => {
                place.push((tag, None));
                return Some(place);
            }
            Some(item) => place.push((tag, Some(item.parse().ok()?))),
        }
    }
    // It ends with an item, which is no value.
    None
}

/// A value in little endian order. Blocks.
fn value(stored: &Stored, content: crate::retrieve::Content, place: &Place) -> Result<Bytes, Problem> {
    let syntax = TransferSyntax::of(&stored.transfer_syntax).ok_or_else(Problem::not_found)?;
    let file = whole(content).map_err(|error| Problem::internal(&error))?;
    let mut bytes = file.slice(usize::try_from(stored.meta_bytes).unwrap_or(usize::MAX).min(file.len())..);
    if syntax.is_deflated() {
        let mut inflated = Vec::new();
        let read = DeflateDecoder::new(&bytes[..]).take(OBJECT_BYTES_MAX).read_to_end(&mut inflated);
        read.map_err(|error| damaged(&error))?;
        bytes = inflated.into();
    }
    let options = ReadOptions { value_bytes_max: u32::MAX - 1, elements_max: 1_000_000, ..ReadOptions::default() };
    let (set, _) = read(&bytes, syntax.encoding(), &options).map_err(|error| damaged(&error))?;
    find(&set, place).map(Bytes::copy_from_slice).ok_or_else(Problem::not_found)
}

/// It came like this, and is kept and handed out: nothing failed here.
fn damaged(error: &dyn std::error::Error) -> Problem {
    Problem::not_acceptable(format!("no value can be read of it: {error}; the object itself can be had"))
}

fn find<'a>(set: &'a DataSet, place: &[(Tag, Option<usize>)]) -> Option<&'a [u8]> {
    let ((tag, item), rest) = place.split_first()?;
    match (&set.get(*tag)?.value, item) {
        (Value::Bytes(bytes), None) => Some(bytes),
        (Value::Items(items), Some(number)) => find(items.get(*number)?, rest),
        _ => None,
    }
}

fn all_frames(source: &mut dyn super::objects::Seekable) -> Result<Vec<Bytes>, Problem> {
    let mut source = source;
    let count = frames(&mut source).map_err(|error| Problem::internal(&error))?.ok_or_else(Problem::not_found)?;
    if count > FRAMES_MAX {
        let why = format!("there are {count} frames, of which {FRAMES_MAX} go into one answer: get them by number");
        return Err(Problem::not_acceptable(why));
    }
    let (mut parts, mut bytes, mut refused) = (Vec::new(), 0, None);
    let indices: Vec<u32> = (0..count).collect();
    let read = read_frames(&mut source, &indices, Coding::Stored, |frame| match frame {
        Ok(frame) => {
            bytes += frame.bytes.len();
            parts.push(Bytes::from(frame.bytes));
            bytes <= FRAMES_BYTES_MAX
        }
        Err(reason) => {
            refused = Some(reason.to_string());
            false
        }
    });
    match (read, refused) {
        (Err(PreviewError::Frame { .. }), _) => Err(Problem::not_found()),
        (Err(error @ PreviewError::Object(ObjectError::Io(_))), _) => Err(Problem::internal(&error)),
        (Err(error), _) => Err(damaged(&error)),
        (Ok(()), Some(reason)) => Err(Problem::not_acceptable(reason)),
        (Ok(()), None) if bytes > FRAMES_BYTES_MAX => Err(Problem::not_acceptable(format!(
            "the frames have more than {FRAMES_BYTES_MAX} bytes: get them one by one"
        ))),
        (Ok(()), None) => Ok(parts),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dicom_scp::dataset::{Element, VR};

    #[test]
    fn a_place_is_tags_and_the_items_between() {
        assert_eq!(place("7FE00010"), Some(vec![(PIXEL_DATA, None)]));
        let nested = vec![(Tag(0x0028, 0x3010), Some(1)), (Tag(0x0028, 0x3006), None)];
        assert_eq!(place("00283010/1/00283006"), Some(nested.clone()));
        for wrong in [
            "",
            "/",
            "7fe0001",
            "7FE00010/",
            "7FE00010/1",
            "7FE00010/x/00283006",
            "../../etc",
            "+FE00010",
            "7FE00010//00283006",
        ] {
            assert_eq!(place(wrong), None, "{wrong}");
        }
        let inner: DataSet = [(Tag(0x0028, 0x3006), Element::bytes(VR::OW, [1, 2]))].into_iter().collect();
        let mut set = DataSet::new();
        set.put(Tag(0x0028, 0x3010), Element::sequence(vec![DataSet::new(), inner]));
        assert_eq!(find(&set, &nested), Some(&[1, 2][..]));
        assert_eq!(find(&set, &[(Tag(0x0028, 0x3010), None)]), None);
        assert_eq!(find(&set, &[(Tag(0x0028, 0x3010), Some(2)), (Tag(0x0028, 0x3006), None)]), None);
    }
}
