//! Pictures of studies: a blur of a few pixels that comes with the page, and the preview itself. Both are here before any pixel of the study is.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dicom_scp::Uid;
use image::{ImageFormat, ImageReader, Limits};
use maud::{Markup, html};

use super::layout::marked;
use super::visitor::Visitor;
use crate::access::Right;
use crate::archive::{Archive, Picture};
use crate::http::{Api, At, Problem, blocking, has_tag};

/// Longer side of a blur, in pixels.
const BLUR_SIDE: u32 = 12;
/// Blurs remembered, of some hundred bytes each.
const BLURS_MAX: usize = 8192;
/// How long: a study that goes takes along what is seen of it here.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Largest picture that a blur is made of: previews are small, and another site's are not believed to be. Pixels a side, bytes in memory.
const SIDE_MAX: u32 = 4096;
const BYTES_MAX: u64 = 64 << 20;

/// Blurs that were made, by their pictures, as URLs of data.
#[derive(Debug)]
pub(super) struct Blurs(Mutex<Made>);

#[derive(Debug)]
struct Made {
    since: Instant,
    blurs: HashMap<B256, Arc<str>>,
}

impl Default for Blurs {
    fn default() -> Self {
        Self(Mutex::new(Made { since: Instant::now(), blurs: HashMap::new() }))
    }
}

impl Blurs {
    /// The blur of a picture; none of one that cannot be read. Blocks.
    pub(super) fn of(&self, archive: &Archive, study: &Uid, id: &B256) -> Result<Option<Arc<str>>, Problem> {
        if let Some(known) = self.made().blurs.get(id) {
            return Ok(Some(known.clone()));
        }
        let Some((_, bytes)) = archive.picture(study, id)? else { return Ok(None) };
        let Some(made) = blurred(&bytes).map(Arc::<str>::from) else { return Ok(None) };
        self.made().blurs.insert(*id, made.clone());
        Ok(Some(made))
    }

    /// What is remembered, all of it forgotten from time to time and when there is too much.
    fn made(&self) -> MutexGuard<'_, Made> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.since.elapsed() > REMEMBERED || made.blurs.len() >= BLURS_MAX {
            *made = Made { since: Instant::now(), blurs: HashMap::new() };
        }
        made
    }
}

fn blurred(bytes: &[u8]) -> Option<String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height, limits.max_alloc) =
        (Some(SIDE_MAX), Some(SIDE_MAX), Some(BYTES_MAX));
    reader.limits(limits);
    let small = reader.decode().ok()?.thumbnail(BLUR_SIDE, BLUR_SIDE).to_rgb8();
    let mut png = Vec::new();
    small.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

/// A picture on a page.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) picture: Picture,
    pub(super) blur: Option<Arc<str>>,
}

/// The blur, and over it the picture itself as soon as it has come. `words` say what is on it; none where those beside it do.
pub(super) fn markup(study: &str, shown: Option<&Shown>, words: &str) -> Markup {
    html! {
        div class="pic" {
            @if let Some(Shown { picture, blur }) = shown {
                @if let Some(blur) = blur { img class="blur" src=(blur) alt=""; }
                img class="sharp" src=(format!("/ui/studies/{study}/pictures/{}", picture.id)) alt=(words) loading="lazy" decoding="async";
            } @else {
                span class="none" { "no picture" }
            }
        }
    }
}

/// One picture of a study.
pub(super) async fn serve(
    State(api): State<Api>,
    visitor: Visitor,
    At((study, picture)): At<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: B256 = picture.parse().map_err(|_| Problem::not_found())?;
    let (uid, _) = visitor.study(&api, Right::Retrieve, &study).await?;
    let site = api.site().clone();
    let kept = blocking(move || site.archive().picture(&uid, &id)).await??;
    let (media_type, bytes) = kept.ok_or_else(Problem::not_found)?;
    let path = "/studies/*/pictures";
    api.dicomweb_trail().reads(api.site().audit(), &visitor.known.party(), &uid, path).await?;
    let tag = format!("\"{id}\"");
    let mut response =
        if has_tag(&headers, &tag) { StatusCode::NOT_MODIFIED.into_response() } else { bytes.into_response() };
    let headers = response.headers_mut();
    for (name, value) in [(header::CONTENT_TYPE, media_type), (header::ETAG, tag)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    Ok(marked(response))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_blur_is_small_and_garbage_has_none() {
        let mut png = Vec::new();
        image::RgbImage::from_fn(300, 200, |x, y| image::Rgb([x as u8, y as u8, 7]))
            .write_to(&mut Cursor::new(&mut png), ImageFormat::Png)
            .unwrap();
        let blur = blurred(&png).unwrap();
        assert!(blur.starts_with("data:image/png;base64,") && blur.len() < 1000, "{}", blur.len());
        assert_eq!((blurred(b"no picture"), blurred(&png[..50])), (None, None));
    }
}
