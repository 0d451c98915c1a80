//! The files that pages load: part of the program, named by their content, so that browsers keep them for ever. The scripts are built from `web/`;
//! a test compares them with what is built.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

use super::layout::marked;
use crate::http::{At, Problem};

/// A file, and where it is.
pub(super) struct Asset {
    /// Its path on this server.
    pub(super) path: String,
    name: String,
    media_type: &'static str,
    bytes: &'static [u8],
}

impl Asset {
    fn new(stem: &str, extension: &str, media_type: &'static str, bytes: &'static [u8]) -> Self {
        let name = format!("{stem}-{}.{extension}", hex::encode(&Sha256::digest(bytes)[..8]));
        Self { path: format!("/ui/assets/{name}"), name, media_type, bytes }
    }
}

pub(super) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("pages", "css", "text/css; charset=utf-8", include_bytes!("assets/pages.css")));
pub(super) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("pages", "js", "text/javascript; charset=utf-8", include_bytes!("assets/pages.js")));
/// What has a patient's key sign.
pub(super) static KEY_SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("key", "js", "text/javascript; charset=utf-8", include_bytes!("assets/key.js")));
pub(super) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_bytes!("assets/icon.svg")));

/// One of them, to anybody: they tell of nobody.
pub(super) async fn serve(At(name): At<String>) -> Result<Response, Problem> {
    let all = [&STYLE, &SCRIPT, &KEY_SCRIPT, &ICON];
    let found = all.into_iter().find(|asset| asset.name == name).ok_or_else(Problem::not_found)?;
    let mut response = marked(found.bytes.into_response());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(found.media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    Ok(response)
}
