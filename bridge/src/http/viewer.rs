//! A folder of OHIF, as its authors build it, under this site's own origin: so that a viewer needs no other server and no cross-origin rules. Only
//! its app-config is made here. Nothing in it tells of anybody: studies come over DICOMweb, to whoever may see them.

use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::guard::Page;
use super::problem::Problem;
use super::{Api, PREFIX, blocking, tagged_bytes};
use crate::{dicomweb, web};

/// The page that every path of the viewer begins with.
const INDEX: &str = "index.html";
/// What the viewer reads before it begins.
const APP_CONFIG: &str = "app-config.js";
/// Longest file that is served, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Most style sheets that are fetched with the page.
const SHEETS_MAX: usize = 64;

/// Whatever no other resource answers: a file of the viewer, its page for every path of its own, or nothing. Where there is no viewer the pages are
/// what people look for first.
pub(super) async fn serve(State(api): State<Api>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let is_ours = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some(dir) = api.settings().dicomweb.ohif_dir.clone() else {
        let is_start = path == "/" && *request.method() == Method::GET && api.settings().web.enabled;
        return if is_start { web::start() } else { Problem::not_found().into_response() };
    };
    if is_ours(PREFIX) || is_ours(dicomweb::PREFIX) || is_ours(web::PREFIX) {
        return Problem::not_found().into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Problem::method_not_allowed().into_response();
    }
    let wants_page = request.headers().get(header::ACCEPT).is_some_and(|accept| contains(accept, "text/html"));
    let answer = match path.trim_start_matches('/') {
        APP_CONFIG => Ok(page(request.headers(), "text/javascript; charset=utf-8", app_config(&api).into_bytes())),
        name => file(request.headers(), &dir, name, wants_page).await,
    };
    answer.unwrap_or_else(Problem::into_response)
}

fn contains(value: &HeaderValue, text: &str) -> bool {
    value.to_str().is_ok_and(|value| value.contains(text))
}

async fn file(asked: &HeaderMap, dir: &Path, name: &str, wants_page: bool) -> Result<Response, Problem> {
    let named = below(dir, name);
    let (folder, index) = (dir.to_owned(), dir.join(INDEX));
    let found = blocking(move || match named.as_deref().map(|named| read(&folder, named)) {
        Some(Ok(found)) => Ok((named.unwrap_or_default(), found)),
        // Paths of the viewer's own are answered with its page, missing files are not.
        _ if wants_page => read(&folder, &index).map(|found| (index, found)),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    });
    let (path, Found { tag, bytes }) = found.await?.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::not_found(),
        _ => Problem::internal(&error),
    })?;
    if path.file_name().is_some_and(|name| name == INDEX) {
        let within = dir.to_owned();
        let sheets = blocking(move || stylesheets(&within)).await?;
        return Ok(with_sheets_ahead(page(asked, "text/html; charset=utf-8", bytes), &sheets));
    }
    let mut response = asked_for_anew(tagged_bytes(asked, media_type(&path), &tag, || bytes));
    response.extensions_mut().insert(Page);
    // What a script may as a worker: decoders of JPEG-LS and JPEG 2000 put functions together from strings. The page itself may not.
    Ok(allowed(response, "'unsafe-eval'"))
}

/// Style sheets at the top of a folder, as far as their names can stand in a header. Blocks.
fn stylesheets(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let mut sheets: Vec<String> =
        names.filter(|name| name.ends_with(".css")).filter(is_plain).take(SHEETS_MAX).collect();
    sheets.sort();
    sheets
}

/// Has a browser fetch style sheets with the page. OHIF loads parts of itself, each a script and perhaps a sheet; where the sheet comes last, a script of OHIF 3.12 that
/// wants to be the one that is just being run is not, and the viewer does not begin ("__filename is not defined").
fn with_sheets_ahead(mut response: Response, sheets: &[String]) -> Response {
    let links: Vec<String> = sheets.iter().map(|name| format!("</{name}>; rel=preload; as=style")).collect();
    if let Ok(links) = HeaderValue::from_str(&links.join(", "))
        && !sheets.is_empty()
    {
        response.headers_mut().insert(header::LINK, links);
    }
    response
}

/// A page or script made or read here, which is asked for anew each time.
fn page(asked: &HeaderMap, media_type: &str, bytes: Vec<u8>) -> Response {
    let inline = inline_scripts(&bytes);
    let tag = hex::encode(&Sha256::digest(&bytes)[..16]);
    marked(asked_for_anew(tagged_bytes(asked, media_type, &tag, || bytes)), &inline)
}

/// Kept, and compared each time. Files that are named by their content could be kept for ever, but OHIF 3.12 does not begin, now and then, when its scripts come
/// from the cache at once and before its style sheets (see [`with_sheets_ahead`]).
fn asked_for_anew(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A page, with the scripts that it has in itself.
fn marked(mut response: Response, inline: &[String]) -> Response {
    let inline: Vec<String> = inline.iter().map(|digest| format!("'sha256-{digest}'")).collect();
    response.extensions_mut().insert(Page);
    allowed(response, &inline.join(" "))
}

/// Everything from here, decoders compiled from WebAssembly, workers made of strings, styles set by scripts; and some scripts besides.
fn allowed(mut response: Response, scripts: &str) -> Response {
    let policy = format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' {scripts}; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; \
         form-action 'self'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Digests of what stands between `<script>` and `</script>`.
fn inline_scripts(page: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(page);
    let bodies = text.split("<script>").skip(1).filter_map(|rest| rest.split("</script>").next());
    bodies.map(|body| STANDARD.encode(Sha256::digest(body))).collect()
}

/// A path below a folder; none for one that leads elsewhere.
fn below(dir: &Path, name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains(['\0', '\\', '%']) {
        return None;
    }
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| dir.join(name))
}

struct Found {
    tag: String,
    bytes: Vec<u8>,
}

/// A file of a folder: where a link leads out of it, nothing is there. Blocks.
fn read(folder: &Path, path: &Path) -> std::io::Result<Found> {
    let path = path.canonicalize()?;
    if !path.starts_with(folder.canonicalize()?) {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let about = std::fs::metadata(&path)?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let modified = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(Found { tag: format!("{:x}-{modified:x}", about.len()), bytes: std::fs::read(path)? })
}

fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        "json" | "map" => "application/json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "txt" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        _ => "application/octet-stream",
    }
}

/// Where the studies are: below the page's own origin, unless the configuration says otherwise.
fn app_config(api: &Api) -> String {
    let public = &api.settings().dicomweb.public_url;
    let root = match public.as_str() {
        "" => format!("window.location.origin + {}", json!(dicomweb::PREFIX)),
        configured => json!(configured).to_string(),
    };
    let config = json!({
        "routerBasename": "/",
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": true,
        "showWarningMessageForCrossOrigin": false,
        "showCPUFallbackMessage": true,
        "showLoadingIndicator": true,
        "strictZSpacingForVolumeViewport": true,
        "maxNumberOfWebWorkers": 3,
        "defaultDataSourceName": "bridge",
        "dataSources": [{
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "bridge",
            "configuration": {
                "friendlyName": api.ae_title(),
                "name": "bridge",
                "qidoSupportsIncludeField": true,
                "supportsReject": false,
                "dicomUploadEnabled": false,
                "imageRendering": "wadors",
                // Previews, which are here before the pixels.
                "thumbnailRendering": "thumbnail",
                "enableStudyLazyLoad": true,
                "supportsFuzzyMatching": false,
                "supportsWildcard": true,
                "staticWado": false,
                "singlepart": "bulkdata",
                "bulkDataURI": { "enabled": true },
                "omitQuotationForMultipartRequest": true,
            },
        }],
    });
    format!(
        "window.config = {config};\nfor (const name of [\"wadoUriRoot\", \"qidoRoot\", \"wadoRoot\"]) {{\n  \
         window.config.dataSources[0].configuration[name] = {root};\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_what_is_below_the_folder_is_named() {
        let dir = Path::new("/srv/ohif");
        assert_eq!(below(dir, "assets/a.png"), Some("/srv/ohif/assets/a.png".into()));
        for wrong in ["", "../secret", "a/../../secret", "/etc/passwd", "./a", "a\0b", "..%2fsecret", "a\\..\\b"] {
            let named = below(dir, wrong);
            assert!(
                named.as_ref().is_none_or(|path| path.starts_with(dir) && !path.to_string_lossy().contains("..")),
                "{wrong}: {named:?}"
            );
        }
        assert_eq!(below(dir, "a/../../secret"), None);
    }

    #[test]
    fn scripts_in_the_page_are_allowed_by_their_digests() {
        let page = b"<script>a</script><script src=\"b.js\"></script><script>c</script>";
        let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
        assert_eq!(inline_scripts(page), [digest("a"), digest("c")]);
    }
}
