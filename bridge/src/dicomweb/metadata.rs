//! Metadata of objects (PS3.18 10.4.1.1.2): from manifests, which have every header before any pixel has come, and for what no manifest lists
//! yet from the objects themselves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

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
use crate::archive::{Archive, ArchiveError, Stored};
use crate::http::{Api, Problem, blocking};
use crate::payload::describe;
use crate::payload::manifest::{Manifest, ManifestError, ManifestObject};

/// Longest value that is in metadata itself, in bytes, as in manifests: palettes mostly are, since viewers that must fetch them draw without (see
/// docs/DICOMWEB.md).
const INLINE_BYTES_MAX: usize = 16 * 1024;
/// Objects that are opened for their headers at once.
const OPENED_AT_ONCE: usize = 2;
/// Objects whose metadata are in memory at once.
const RUN_OBJECTS: usize = 64;

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
    let known = blocking(move || {
        let listed = listed(site.archive(), &objects)?;
        Ok::<_, Trouble>(objects.into_iter().zip(listed).collect::<Vec<_>>())
    });
    let known = known.await??;
    let root = ask.root();
    let tag = tag_of(&root, &known);
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let runs: Vec<Vec<Known>> = known.chunks(RUN_OBJECTS).map(<[Known]>::to_vec).collect();
    let writing = (api.clone(), root);
    let mut runs = futures::stream::iter(runs)
        .then(move |run| {
            let (api, root) = writing.clone();
            async move { text_of(&api, root, run).await }
        })
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

/// An object, and what its manifest says of it.
type Known = (Stored, Option<ManifestObject>);

/// Names the text by what it is made of, which is read sooner than the text is written.
fn tag_of(root: &str, known: &[Known]) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(root);
    for (stored, listed) in known {
        digest.update(stored.file_sha256);
        digest.update(stored.transfer_syntax.as_str());
        digest.update(listed.as_ref().map_or(&[][..], |object| &object.header));
        digest.update([0]);
    }
    hex::encode(&digest.finalize()[..16])
}

/// The metadata of some objects, with commas between.
async fn text_of(api: &Api, root: String, run: Vec<Known>) -> Result<Vec<u8>, Problem> {
    let described = futures::stream::iter(run).map(|(stored, listed)| async move {
        let header = match listed.as_ref().and_then(header) {
            Some(header) => header,
            None => from_object(api, &stored).await?,
        };
        Ok::<_, Problem>((stored, header))
    });
    let described: Vec<(Stored, DataSet)> = described.buffered(OPENED_AT_ONCE).try_collect().await?;
    blocking(move || {
        let mut text = Vec::new();
        for (stored, mut header) in described {
            header.put_uid(AVAILABLE_TRANSFER_SYNTAX, &stored.transfer_syntax);
            if !text.is_empty() {
                text.push(b',');
            }
            json::write(&header, Some(&bulk_root(&root, &stored)), &mut text);
        }
        text
    })
    .await
}

/// Where the long values of an object are.
fn bulk_root(root: &str, stored: &Stored) -> String {
    format!(
        "{root}/studies/{}/series/{}/instances/{}/bulkdata",
        stored.study_uid, stored.series_uid, stored.sop_instance
    )
}

/// Why headers cannot be read from manifests.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    #[error("a manifest")]
    Manifest(#[from] ManifestError),
}

impl From<Trouble> for Problem {
    fn from(error: Trouble) -> Self {
        Self::internal(&error)
    }
}

/// The objects of a manifest by UID and digest: one that another took the place of is another.
type ByName = HashMap<(Uid, [u8; 32]), ManifestObject>;

/// The objects of the manifest that an object came with.
fn objects_of(archive: &Archive, stored: &Stored) -> Result<ByName, Trouble> {
    let encoded = match stored.origin {
        0 => archive.manifest(&stored.study_uid)?,
        _ => archive.foreign_manifest(stored)?,
    };
    let manifest = encoded.map(|bytes| Manifest::decode(&bytes)).transpose()?;
    let objects = manifest.into_iter().flat_map(|manifest| manifest.objects);
    Ok(objects.map(|object| ((object.sop_instance_uid, object.file_sha256), object)).collect())
}

/// What the manifests that objects came with say of them; none for an object that no manifest lists. Blocks.
fn listed(archive: &Archive, objects: &[Stored]) -> Result<Vec<Option<ManifestObject>>, Trouble> {
    let mut manifests: HashMap<i64, ByName> = HashMap::new();
    let mut found = Vec::with_capacity(objects.len());
    for stored in objects {
        let of = match manifests.entry(stored.origin) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(objects_of(archive, stored)?),
        };
        found.push(of.remove(&(stored.sop_instance, stored.file_sha256)));
    }
    Ok(found)
}

/// The header that a manifest has, with the pixel data named.
fn header(object: &ManifestObject) -> Option<DataSet> {
    let (mut set, _) = read(&object.header, Encoding::ExplicitLe, &ReadOptions::default()).ok()?;
    if object.pixel_sha256.is_some() {
        let (tag, vr) = pixels(&set, &object.transfer_syntax);
        set.put(tag, Element { vr, value: Value::Skipped { length: u32::MAX } });
    }
    Some(set)
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

async fn from_object(api: &Api, stored: &Stored) -> Result<DataSet, Problem> {
    let opened = opened(api, stored).await?;
    let read = blocking(move || describe::header(&mut seekable(opened.content), INLINE_BYTES_MAX));
    read.await?.map_err(|error| Problem::internal(&error))
}
