//! Around every request: the caller's rate, cross-origin rules, the longest time an answer may take, and the headers that keep
//! browsers from storing or sniffing what they get. Must not know what is asked for.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::net::IpAddr;
use std::time::Duration;

use super::caller::Address;
use super::listen;
use super::problem::Problem;
use super::trail::Asked;
use super::{Api, PREFIX};
use crate::{dicomweb, web};

/// Longest time until the head of an answer: what is sent to the ledger becomes final within it, or the caller looks later.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Longest upload, as long as its connection.
const UPLOAD_MAX: Duration = listen::TRANSFER_MAX;
/// How long browsers remember what an origin may, in seconds.
const PREFLIGHT_S: u64 = 600;

/// Holds for every answer but a page's, which has rules of its own: nothing else is one, so nothing may be loaded by it, and nothing is framed by
/// another's.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Marks an answer whose own rules for browsers stay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page;

/// The middleware.
pub(super) async fn guard(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let origin = allowed_origin(&api, request.headers());
    let mut response = match Address::of(&request, api.settings().behind_proxy) {
        Some(Address(from)) if !within_rate(&api, &request, from) => Problem::too_many().into_response(),
        Some(_) if !names_one_host(&request) => Problem::bad_request("a request names one host").into_response(),
        Some(_) if is_encoded(request.headers()) => not_decoded(),
        Some(from) => {
            request.extensions_mut().insert(from);
            if origin.is_some() && is_preflight(&request) {
                preflight()
            } else {
                let asked = Asked::new(&mut request, from);
                // An upload takes as long as it takes; one that stands still is ended by who receives it.
                let longest = if dicomweb::is_upload(&request) { UPLOAD_MAX } else { ANSWER_MAX };
                let answered = tokio::time::timeout(longest, next.run(request)).await;
                asked.answered(&api, answered.unwrap_or_else(|_| Problem::timed_out().into_response())).await
            }
        }
        None => Problem::bad_request("the connection has no address").into_response(),
    };
    let is_page = response.extensions().get::<Page>().is_some();
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        if !(is_page && headers.contains_key(&name)) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if api.is_encrypted() {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if !api.settings().allowed_origins.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("content-range, etag, retry-after, warning"),
        );
    }
    response
}

fn within_rate(api: &Api, request: &Request, from: IpAddr) -> bool {
    let path = request.uri().path();
    if path.starts_with(PREFIX) || web::is_page(path) { api.requests().take(from) } else { api.viewers().take(from) }
}

/// The origin that asks, if its pages may. Tokens travel in a header that pages set themselves, so no credentials are allowed.
fn allowed_origin(api: &Api, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let known = api.settings().allowed_origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
    known.then(|| origin.clone())
}

/// Whether a request says once by what name it calls (RFC 9112 3.2): of two, who is in front of this server may have taken the other.
fn names_one_host(request: &Request) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// Whether a body is in a content coding. None is taken, so that a small body is never a large one.
fn is_encoded(headers: &HeaderMap) -> bool {
    let is_coding = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(header::CONTENT_ENCODING).iter().any(is_coding)
}

/// Says what is taken instead (RFC 9110 12.5.3).
fn not_decoded() -> Response {
    let mut response = Problem::unsupported("no Content-Encoding is taken: send the body as it is").into_response();
    response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
    let names = HeaderValue::from_static("accept, authorization, content-type, if-none-match, range");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_S));
    response
}
