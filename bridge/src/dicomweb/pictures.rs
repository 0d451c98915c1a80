//! Rendered and thumbnail resources (PS3.18 10.4.1.1.3, 10.4.1.1.4): pictures that browsers show. Thumbnails come from the previews of a study
//! where it has them, which are here before any pixel is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use dicom_scp::Uid;
use futures::StreamExt as _;

use super::ask::Ask;
use super::body::{self, streamed};
use super::multipart::Boundary;
use super::objects::{opened, seekable};
use crate::archive::{Archive, ArchiveError, Stored};
use crate::http::{Api, Problem, blocking};
use crate::payload::manifest::{ManifestPreview, PreviewKind};
use crate::payload::object::ObjectError;
use crate::payload::preview::{self, FrameChoice, Outcome, PreviewError, Rendered, jpeg, png};

/// Longer side of a thumbnail that is made here, in pixels, if the client does not say.
const THUMBNAIL_SIDE: u32 = 256;
/// Longest side that a client may ask for.
const SIDE_MAX: u32 = 16_384;
/// JPEG quality, if the client does not say.
const QUALITY: u8 = 90;
/// Objects of which one answer has pictures.
const PICTURES_MAX: usize = 1_000;

/// What picture is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Wish {
    media_type: &'static str,
    multipart: bool,
    side_max: Option<u32>,
    quality: u8,
    window: Option<preview::Window>,
}

/// One small picture of a study, a series, an object or a frame.
pub(super) async fn thumbnail(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let wish = wish(&ask)?;
    let frame = frame(&ask)?;
    let objects = ask.objects(&api).await?;
    let (site, first) = (api.site().clone(), objects.clone());
    let target = ask.target;
    let kept = if frame.is_none() {
        blocking(move || kept(site.archive(), &first, target.series, target.instance)).await??
    } else {
        None
    };
    if let Some((preview, bytes)) = kept {
        let tag = tag_of(&format!("t{}-{wish:?}", hex::encode(preview.sha256)));
        if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
            return Ok(unchanged);
        }
        return Ok(answer(wish, &tag, reshaped(preview.media_type, bytes, wish).await?));
    }
    // Nothing is fetched for a thumbnail. The one in the middle is the most likely to show what it is about.
    let here: Vec<_> = objects.iter().filter(|stored| stored.path.is_some()).collect();
    let stored = *here.get(here.len() / 2).ok_or_else(Problem::not_found)?;
    let wish = Wish { side_max: Some(wish.side_max.unwrap_or(THUMBNAIL_SIDE)), ..wish };
    let choice = frame.map_or(FrameChoice::Middle, FrameChoice::Index);
    let tag = tag_of(&format!("t{}-{choice:?}-{wish:?}", hex::encode(stored.file_sha256)));
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    Ok(answer(wish, &tag, drawn(&api, stored, choice, wish).await?))
}

/// Pictures of all objects that have any, in their full size.
pub(super) async fn rendered(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    let wish = wish(&ask)?;
    let frame = frame(&ask)?;
    let objects = ask.objects(&api).await?;
    if objects.len() > 1 && !wish.multipart {
        return Err(Problem::not_acceptable(
            "there are several objects: ask for multipart/related; type=\"image/jpeg\", or for one",
        ));
    }
    if objects.len() > PICTURES_MAX {
        return Err(Problem::not_acceptable(format!(
            "there are more than {PICTURES_MAX} objects: ask for a series, or for one"
        )));
    }
    // Of one object the first frame unless others are asked for, as other servers have it.
    let choice = FrameChoice::Index(frame.unwrap_or(0));
    let digests: Vec<String> = objects.iter().map(|stored| hex::encode(stored.file_sha256)).collect();
    let tag = tag_of(&format!("r{}-{choice:?}-{wish:?}", digests.concat()));
    if let Some(unchanged) = body::unchanged(&ask.headers, &tag) {
        return Ok(unchanged);
    }
    let is_one = objects.len() == 1;
    let drawing = api.clone();
    let mut pictures = futures::stream::iter(objects)
        .then(move |stored| {
            let api = drawing.clone();
            async move { drawn(&api, &stored, choice, wish).await }
        })
        // Among several there may be reports, and what no picture can be made of; an object that is asked for by itself has to have one.
        .filter(move |drawn| std::future::ready(is_one || !drawn.as_ref().is_err_and(Problem::is_absence)))
        .boxed();
    let first = pictures.next().await.ok_or_else(Problem::not_found)??;
    if !wish.multipart {
        return Ok(body::answer(wish.media_type, Some(&tag), first));
    }
    let boundary = Boundary::random();
    let (out, body) = streamed();
    let response = body::answer(&boundary.content_type(wish.media_type), Some(&tag), body);
    api.track(async move {
        let mut next = Some(Ok(first));
        while let Some(drawn) = next {
            // The head is sent already, so the answer breaks off.
            let Ok(picture) = drawn else { return };
            let head = boundary.part(wish.media_type, None, Some(picture.len() as u64));
            if !out.put(head).await || !out.put(picture).await {
                return;
            }
            next = pictures.next().await;
        }
        if out.put(boundary.end()).await {
            out.end();
        }
    });
    Ok(response)
}

fn tag_of(what: &str) -> String {
    use sha2::{Digest as _, Sha256};
    hex::encode(&Sha256::digest(what)[..16])
}

fn answer(wish: Wish, tag: &str, picture: Bytes) -> Response {
    if !wish.multipart {
        return body::answer(wish.media_type, Some(tag), picture);
    }
    let boundary = Boundary::random();
    let head = boundary.part(wish.media_type, None, Some(picture.len() as u64));
    let bytes = [head.as_bytes(), &picture, boundary.end().as_bytes()].concat();
    body::answer(&boundary.content_type(wish.media_type), Some(tag), bytes)
}

/// The one frame that the path names, as an index.
fn frame(ask: &Ask) -> Result<Option<u32>, Problem> {
    match ask.rest.as_str() {
        "" => Ok(None),
        text => match text.parse::<u32>().ok().and_then(|number| number.checked_sub(1)) {
            Some(index) => Ok(Some(index)),
            None => Err(Problem::bad_request("a picture is of one frame, counted from 1")),
        },
    }
}

fn wish(ask: &Ask) -> Result<Wish, Problem> {
    const KINDS: [&str; 2] = ["image/jpeg", "image/png"];
    let chosen = ask.accepted.ranges().find_map(|range| {
        let kind = KINDS.into_iter().find(|kind| range.covers(kind))?;
        Some((kind, range.multipart))
    });
    let (media_type, multipart) =
        chosen.ok_or_else(|| Problem::not_acceptable("pictures are image/jpeg or image/png"))?;
    let mut wish = Wish { media_type, multipart, side_max: None, quality: QUALITY, window: None };
    for (name, value) in &ask.parameters {
        match name.as_str() {
            "viewport" => wish.side_max = Some(viewport(value).ok_or_else(|| {
                Problem::bad_request(
                    "viewport is width and height in pixels with a comma between; parts of a picture are not cut out",
                )
            })?),
            "quality" => {
                wish.quality = value
                    .parse()
                    .ok()
                    .filter(|quality| (1..=100).contains(quality))
                    .ok_or_else(|| Problem::bad_request("quality is a number from 1 to 100"))?
            }
            "window" => {
                wish.window = Some(preview::Window::parse(value).ok_or_else(|| {
                    Problem::bad_request(
                        "window is center, width and linear, linear-exact or sigmoid, with commas between",
                    )
                })?)
            }
            other => {
                return Err(Problem::bad_request(format!(
                    "\"{other}\" is no parameter of pictures here: there are viewport, quality, window and accept"
                )));
            }
        }
    }
    Ok(wish)
}

/// The side of the smallest square around a viewport.
fn viewport(text: &str) -> Option<u32> {
    let sides: Option<Vec<u32>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides?.as_slice() {
        [width, height] => Some((*width).max(*height)).filter(|side| (1..=SIDE_MAX).contains(side)),
        _ => None,
    }
}

/// The preview that a study has of what is asked for: of the object, else of its series, else of the first series that has one. Blocks.
fn kept(
    archive: &Archive,
    objects: &[Stored],
    series: Option<Uid>,
    instance: Option<Uid>,
) -> Result<Option<(ManifestPreview, Vec<u8>)>, Problem> {
    let Some(first) = objects.first() else { return Ok(None) };
    let Some(listing) = archive.shown_listing(&first.study_uid)? else { return Ok(None) };
    let of =
        |kind: PreviewKind, subject: &Uid| listing.previews_of(subject).filter(move |preview| preview.kind == kind);
    let plain = |preview: &ManifestPreview| -> Result<Option<(ManifestPreview, Vec<u8>)>, ArchiveError> {
        let bytes = archive.image(&preview.image)?.and_then(|(_, plain)| plain);
        Ok(bytes.map(|bytes| (preview.clone(), bytes)))
    };
    let mut candidates: Vec<&ManifestPreview> = Vec::new();
    match (series, instance) {
        (_, Some(instance)) => {
            candidates.extend(of(PreviewKind::Instance, &instance));
            // A series of one object is that object. Of others it shows another one, which is better than nothing as long as the object is not here.
            let of_series = listing.manifest().objects.iter().filter(|object| object.series_uid == first.series_uid);
            if first.path.is_none() || of_series.count() == 1 {
                candidates.extend(of(PreviewKind::Series, &first.series_uid));
            }
        }
        (Some(series), None) => candidates.extend(of(PreviewKind::Series, &series)),
        (None, None) => {
            let previews = listing.manifest().previews.iter();
            candidates.extend(previews.filter(|preview| preview.kind == PreviewKind::Series));
        }
    }
    for preview in candidates {
        if let Some(found) = plain(preview)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A kept preview in the form that is wanted.
async fn reshaped(media_type: String, bytes: Vec<u8>, wish: Wish) -> Result<Bytes, Problem> {
    if media_type == wish.media_type && wish.side_max.is_none() {
        return Ok(bytes.into());
    }
    let made = blocking(move || {
        let rendered = preview::decode(&media_type, &bytes)?;
        encoded(&rendered, wish)
    });
    made.await?.map_err(|error| Problem::internal(&error))
}

/// A picture of an object's frame.
async fn drawn(api: &Api, stored: &Stored, choice: FrameChoice, wish: Wish) -> Result<Bytes, Problem> {
    let content = opened(api, stored).await?.content;
    // Frames are large when they are decoded.
    let room: Arc<tokio::sync::Semaphore> = api.drawing().clone();
    let permit = room.acquire_owned().await.map_err(|_| Problem::timed_out())?;
    let drawn = blocking(move || {
        let _permit = permit;
        let mut source = seekable(content);
        let side = wish.side_max.unwrap_or(SIDE_MAX);
        match preview::render_in(&mut source, choice, side, wish.window)? {
            Outcome::Picture(rendered) => encoded(&rendered, wish).map(Ok),
            Outcome::Nothing(reason) => Ok(Err(reason)),
        }
    });
    match drawn.await? {
        Ok(Ok(picture)) => Ok(picture),
        Ok(Err(preview::Reason::NoPixels)) | Err(PreviewError::Frame { .. }) => Err(Problem::not_found()),
        Ok(Err(reason)) => Err(Problem::not_acceptable(reason.to_string())),
        Err(error @ PreviewError::Object(ObjectError::Io(_))) => Err(Problem::internal(&error)),
        // An object that was damaged before it came here is kept and handed out; there is no picture of it.
        Err(error) => Err(Problem::not_acceptable(format!("no picture can be made of it: {error}"))),
    }
}

fn encoded(rendered: &Rendered, wish: Wish) -> Result<Bytes, PreviewError> {
    let fitted;
    let picture = match wish.side_max.filter(|side| *side < rendered.width.max(rendered.height)) {
        Some(side) => {
            fitted = rendered.fitted(side);
            &fitted
        }
        None => rendered,
    };
    let bytes = if wish.media_type == "image/png" { png(picture)? } else { jpeg(picture, wish.quality)? };
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewport_is_two_sides() {
        assert_eq!(viewport("100,200"), Some(200));
        for wrong in ["", "100", "0,0", "1,2,3", "a,b", "-1,5", "99999,1"] {
            assert_eq!(viewport(wrong), None, "{wrong}");
        }
    }
}
