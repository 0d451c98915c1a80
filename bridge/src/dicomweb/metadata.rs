//! Metadata of objects (PS3.18 10.4.1.1.2): from manifests, which have every header before any pixel has come, and for what no manifest lists
//! yet from the objects themselves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use dicom_scp::dataset::{DataSet, Element, Encoding, ReadOptions, Tag, VR, Value, read};
use dicom_scp::{TransferSyntax, Uid};
use futures::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use super::ask::Ask;
use super::body::{self, streamed};
use super::json;
use super::objects::{opened, seekable};
use crate::archive::{Archive, ArchiveError, Listing, Stored};
use crate::http::{Api, Problem, blocking};
use crate::payload::describe;
use crate::payload::object::ObjectError;

/// Longest value that is in metadata itself, in bytes, as in manifests: palettes mostly are, since viewers that must fetch them draw without (see
/// docs/DICOMWEB.md).
const INLINE_BYTES_MAX: usize = 16 * 1024;
/// Objects that are opened for their headers at once.
const OPENED_AT_ONCE: usize = 2;
/// Objects whose metadata are written in one go.
const RUN_OBJECTS: usize = 64;
/// Runs of them that are written at once.
const RUNS_AT_ONCE: usize = 2;

const AVAILABLE_TRANSFER_SYNTAX: Tag = Tag(0x0008, 0x3002);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);
const PIXEL_REPRESENTATION: Tag = Tag(0x0028, 0x0103);
const FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0008);
const DOUBLE_FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0009);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

/// Metadata of a study, a series or an object.
pub(super) async fn retrieve(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let Some(media_type) = ask.accepted.one_of(&["application/dicom+json", "application/json"]) else {
        return Err(Problem::not_acceptable("metadata is in application/dicom+json"));
    };
    let objects = ask.objects(&api).await?;
    let site = api.site().clone();
    let known = blocking(move || known(site.archive(), objects)).await??;
    let root: Arc<str> = ask.root().into();
    let tag = tag_of(&root, &known);
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let runs: Vec<Vec<Known>> = known.chunks(RUN_OBJECTS).map(<[Known]>::to_vec).collect();
    let writing = (api.clone(), root);
    let mut runs = futures::stream::iter(runs)
        .map(move |run| {
            let (api, root) = writing.clone();
            async move { text_of(&api, root, run).await }
        })
        .buffered(RUNS_AT_ONCE)
        .boxed();
    // What cannot be had at all is an answer of its own.
    let mut text = b"[".to_vec();
    text.extend(runs.next().await.transpose()?.unwrap_or_default());
    let Some(second) = runs.next().await else {
        text.push(b']');
        return Ok(body::answer(media_type, Some(&tag), text));
    };
    let (out, body) = streamed();
    api.track(async move {
        let (mut text, mut next) = (text, Some(second));
        while let Some(run) = next {
            // The head is sent already, so the answer breaks off.
            let Ok(run) = run else { return };
            if !out.put(std::mem::replace(&mut text, vec![b','])).await {
                return;
            }
            text.extend(run);
            next = runs.next().await;
        }
        text.push(b']');
        if out.put(text).await {
            out.end();
        }
    });
    Ok(body::answer(media_type, Some(&tag), body))
}

/// An object, and the manifest that it came with.
#[derive(Clone)]
struct Known {
    stored: Stored,
    listing: Option<Arc<Listing>>,
}

impl Known {
    /// The header that the manifest has, with the pixel data named; none for an object that it does not list.
    fn header(&self) -> Option<DataSet> {
        let object = self.listing.as_ref()?.object(&self.stored)?;
        let (mut set, _) = read(&object.header, Encoding::ExplicitLe, &ReadOptions::default()).ok()?;
        if object.pixel_sha256.is_some() {
            let (tag, vr) = pixels(&set, &object.transfer_syntax);
            set.put(tag, Element { vr, value: Value::Skipped { length: u32::MAX } });
        }
        Some(set)
    }
}

/// What is known of objects, by the manifests that they came with. Blocks.
fn known(archive: &Archive, objects: Vec<Stored>) -> Result<Vec<Known>, ArchiveError> {
    let mut listings: HashMap<i64, Option<Arc<Listing>>> = HashMap::new();
    let with = |stored: Stored| {
        let listing = match listings.entry(stored.origin) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(unknown) => unknown.insert(archive.listing_of(&stored)?).clone(),
        };
        Ok(Known { stored, listing })
    };
    objects.into_iter().map(with).collect()
}

/// Names the text by what it is made of, which is read sooner than the text is written.
fn tag_of(root: &str, known: &[Known]) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(root);
    for Known { stored, listing } in known {
        digest.update(stored.file_sha256);
        digest.update(stored.transfer_syntax.as_str());
        let listing = listing.as_ref().filter(|listing| listing.object(stored).is_some());
        digest.update(listing.map_or(&[][..], |listing| listing.sha256()));
        digest.update([0]);
    }
    hex::encode(&digest.finalize()[..16])
}

/// The metadata of some objects, with commas between.
async fn text_of(api: &Api, root: Arc<str>, run: Vec<Known>) -> Result<Vec<u8>, Problem> {
    let from_manifests = root.clone();
    let written = blocking(move || {
        let of = |known: Known| {
            let text = known.header().map(|header| text(header, &known.stored, &from_manifests));
            (known.stored, text)
        };
        run.into_iter().map(of).collect::<Vec<(Stored, Option<Vec<u8>>)>>()
    });
    let texts = futures::stream::iter(written.await?).map(|(stored, text)| {
        let root = &root;
        async move {
            match text {
                Some(text) => Ok(text),
                None => from_object(api, stored, root).await,
            }
        }
    });
    let texts: Vec<Vec<u8>> = texts.buffered(OPENED_AT_ONCE).try_collect().await?;
    Ok(texts.join(&b','))
}

/// The metadata of one object.
fn text(mut header: DataSet, stored: &Stored, root: &str) -> Vec<u8> {
    header.put_uid(AVAILABLE_TRANSFER_SYNTAX, &stored.transfer_syntax);
    let mut text = Vec::new();
    json::write(&header, Some(&bulk_root(root, stored)), &mut text);
    text
}

/// Where the long values of an object are.
fn bulk_root(root: &str, stored: &Stored) -> String {
    format!(
        "{root}/studies/{}/series/{}/instances/{}/bulkdata",
        stored.study_uid, stored.series_uid, stored.sop_instance
    )
}

/// Which element has the pixels (PS3.3 C.7.6.24, C.7.6.25), and its VR (PS3.5 8.2, A.4).
fn pixels(header: &DataSet, transfer_syntax: &Uid) -> (Tag, VR) {
    let is_integer = header.contains(PIXEL_REPRESENTATION);
    match header.int(BITS_ALLOCATED) {
        Some(32) if !is_integer => (FLOAT_PIXEL_DATA, VR::OF),
        Some(64) if !is_integer => (DOUBLE_FLOAT_PIXEL_DATA, VR::OD),
        _ if TransferSyntax::of(transfer_syntax).is_some_and(|syntax| syntax.is_encapsulated()) => (PIXEL_DATA, VR::OB),
        _ => (PIXEL_DATA, VR::OW),
    }
}

async fn from_object(api: &Api, stored: Stored, root: &Arc<str>) -> Result<Vec<u8>, Problem> {
    let opened = opened(api, &stored).await?;
    let root = root.clone();
    let read = blocking(move || {
        let header = describe::header(&mut seekable(opened.content), INLINE_BYTES_MAX)?;
        Ok::<_, ObjectError>(text(header, &stored, &root))
    });
    read.await?.map_err(|error| Problem::internal(&error))
}
