//! The HTTP API: what apps and pages do with this site, over JSON, with an OpenAPI document made from the same types.
//!
//! * [`listen`]: connections and TLS. [`guard`]: rates, cross-origin rules, headers. [`caller`]: who calls, and with what body.
//! * [`model`]: what goes over the wire. [`problem`]: errors, by RFC 9457.
//! * [`studies`], [`consent`], [`site`], [`events`]: the resources. [`viewer`]: a viewer's own files.
//!   [`crate::dicomweb`] and [`crate::web`] are served beside them.
//!
//! Who may do and see what is asked of [`crate::access`], never decided here. What a caller may not see is answered as if it were absent.
//! Commands about consent go the way of the command line's ([`crate::decide`]). Must not know SQL, pieces, keys or associations.

mod caller;
mod consent;
mod events;
mod guard;
mod limits;
mod listen;
mod model;
mod problem;
mod routes;
mod site;
mod studies;
mod trail;
mod viewer;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use dicom_scp::{AeTitle, Offer};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Access;
use crate::config::{AsRead, Http};
use crate::dicomweb;
use crate::oidc::Issuer;
use crate::site::Site;
use crate::tokens::Tokens;
use crate::web::{self, Pages};
pub(crate) use caller::{Address as ClientAddress, Asked, At, Known, body, refused};
pub(crate) use consent::{CLAIM_WORDS, ask_for, in_custody, relay, take_over, unsigned};
use events::Events;
pub(crate) use guard::Page;
use limits::{Held, Network, Rate};
pub(crate) use problem::Problem;
pub(crate) use routes::Routes;
pub(crate) use studies::{Found, find};

/// Where every resource is.
const PREFIX: &str = "/api/v1";
/// Wrong tokens of one network a minute.
const WRONG_TOKENS_MAX: u32 = 30;
/// Relayed actions of one network, or of one owner, a minute. The site pays for them.
const RELAYS_MAX: u32 = 20;
/// Pictures made, frames decoded and values cut out of whole objects at once.
const DRAWN_AT_ONCE: usize = 4;
/// Uploads at once.
const UPLOADS_AT_ONCE: usize = 32;
/// Those among them whose objects are made here of a description, which are in memory as long.
const DESCRIBED_AT_ONCE: usize = 1;

/// What the resources work on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    site: Site,
    access: Access,
    tokens: Tokens,
    issuer: Option<Issuer>,
    settings: Http,
    tasks: TaskTracker,
    stop: CancellationToken,
    events: Events,
    requests: Rate<Network>,
    wrong_tokens: Rate<Network>,
    relays: Rate<Network>,
    owners: Rate<Address>,
    relaying: Arc<Held<B256>>,
    ae_title: AeTitle,
    as_read: AsRead,
    viewers: Rate<Network>,
    readings: dicomweb::Trail,
    drawing: Arc<Semaphore>,
    offer: Offer,
    uploads: Arc<Semaphore>,
    described: Arc<Semaphore>,
    pages: Pages,
    document: String,
}

/// What a server is made of.
pub struct Parts {
    /// The site.
    pub site: Site,
    /// Its rules.
    pub access: Access,
    /// Who may call.
    pub tokens: Tokens,
    /// Whose word is taken about who calls, if anybody's.
    pub issuer: Option<Issuer>,
    /// Its limits.
    pub settings: Http,
    /// The site's AE title, which DICOMweb names as the one to retrieve from.
    pub ae_title: AeTitle,
    /// The configuration as it was read, for the operator.
    pub as_read: AsRead,
    /// What objects are taken in, as over associations.
    pub offer: Offer,
    /// Where what was begun is tracked.
    pub tasks: TaskTracker,
}

impl Api {
    fn new(parts: Parts, stop: CancellationToken, document: String) -> Self {
        let Parts { site, access, tokens, issuer, settings, ae_title, as_read, offer, tasks } = parts;
        Self(Arc::new(Inner {
            events: Events::new(),
            requests: Rate::new(settings.requests_per_minute),
            wrong_tokens: Rate::new(WRONG_TOKENS_MAX.min(settings.requests_per_minute)),
            relays: Rate::new(RELAYS_MAX.min(settings.requests_per_minute)),
            owners: Rate::new(RELAYS_MAX),
            relaying: Held::new(1),
            viewers: Rate::new(settings.dicomweb.requests_per_minute),
            readings: dicomweb::Trail::default(),
            drawing: Arc::new(Semaphore::new(DRAWN_AT_ONCE)),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
            described: Arc::new(Semaphore::new(DESCRIBED_AT_ONCE)),
            offer,
            pages: Pages::new(&settings, &site),
            ae_title,
            as_read,
            site,
            access,
            tokens,
            issuer,
            settings,
            tasks,
            stop,
            document,
        }))
    }

    pub(crate) fn site(&self) -> &Site {
        &self.0.site
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Whose word is taken about who calls, besides the tokens of this site.
    pub(crate) fn issuer(&self) -> Option<&Issuer> {
        self.0.issuer.as_ref()
    }

    pub(crate) fn settings(&self) -> &Http {
        &self.0.settings
    }

    fn events(&self) -> &Events {
        &self.0.events
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    fn requests(&self) -> &Rate<Network> {
        &self.0.requests
    }

    fn wrong_tokens(&self) -> &Rate<Network> {
        &self.0.wrong_tokens
    }

    /// Refuses whoever showed too many tokens and signatures that are not good.
    pub(crate) fn may_show(&self, from: IpAddr) -> Result<(), Problem> {
        if self.wrong_tokens().is_exhausted(from) { Err(Problem::too_many()) } else { Ok(()) }
    }

    /// Counts one that was not good.
    pub(crate) fn showed_a_wrong_one(&self, from: IpAddr) {
        self.wrong_tokens().take(from);
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.settings.tls.is_some()
    }

    pub(crate) fn ae_title(&self) -> &str {
        self.0.ae_title.as_str()
    }

    /// What this node calls itself when it calls others.
    pub(crate) fn calling(&self) -> &AeTitle {
        &self.0.ae_title
    }

    /// The configuration as it was read.
    pub(crate) fn as_read(&self) -> &AsRead {
        &self.0.as_read
    }

    /// Requests of viewers, which ask for every frame by itself.
    fn viewers(&self) -> &Rate<Network> {
        &self.0.viewers
    }

    pub(crate) fn dicomweb_trail(&self) -> &dicomweb::Trail {
        &self.0.readings
    }

    /// What the pages remember.
    pub(crate) fn pages(&self) -> &Pages {
        &self.0.pages
    }

    /// Who is logged in to them.
    fn sessions(&self) -> &web::Sessions {
        self.pages().sessions()
    }

    /// Room for pictures that are made.
    pub(crate) fn drawing(&self) -> &Arc<Semaphore> {
        &self.0.drawing
    }

    /// What objects are taken in.
    pub(crate) fn offer(&self) -> &Offer {
        &self.0.offer
    }

    /// Room for uploads.
    pub(crate) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.uploads
    }

    /// Room for uploads that are in memory.
    pub(crate) fn described(&self) -> &Arc<Semaphore> {
        &self.0.described
    }

    /// Work that the site's end waits for, also when whoever asked for it is gone.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.0.tasks.spawn(work)
    }

    /// Makes the body of an answer, which ends with the site at the latest.
    pub(crate) fn track(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            let ended = async {
                stop.cancelled().await;
                tokio::time::sleep(listen::DRAIN_MAX).await;
            };
            tokio::select! {
                () = work => {}
                () = ended => {}
            }
        });
    }

    /// Finishes something even if its caller goes away: what was begun on the ledger is not left half done, unless the site ends. (What
    /// was sent by then is in the sender's journal.)
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let stop = self.0.stop.clone();
        let work = async move {
            let ended = async {
                stop.cancelled().await;
                tokio::time::sleep(listen::DRAIN_MAX).await;
            };
            tokio::select! {
                done = work => done,
                () = ended => Err(Problem::timed_out()),
            }
        };
        self.0.tasks.spawn(work).await?
    }
}

/// Work that waits for a disk, away from the threads that answer.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An answer with an entity tag, or 304 to who has it (RFC 9110 13.1.2).
fn tagged(asked: &HeaderMap, value: &impl Serialize) -> Result<Response, Problem> {
    let bytes = serde_json::to_vec(value)?;
    let tag = Sha256::digest(&bytes);
    Ok(tagged_bytes(asked, "application/json", &hex::encode(&tag[..16]), || bytes))
}

fn tagged_bytes(asked: &HeaderMap, media_type: &str, tag: &str, bytes: impl FnOnce() -> Vec<u8>) -> Response {
    let tag = format!("\"{tag}\"");
    let mut response = if has_tag(asked, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = bytes().into_response();
        if let Ok(media_type) = HeaderValue::from_str(media_type) {
            response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        }
        response
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Whether who asks has what has this tag, in quotes.
pub(crate) fn has_tag(asked: &HeaderMap, tag: &str) -> bool {
    let has = |list: &HeaderValue| {
        list.to_str().is_ok_and(|list| {
            list.split(',').any(|one| {
                matches!(one.trim().trim_start_matches("W/"), "*") || one.trim().trim_start_matches("W/") == tag
            })
        })
    };
    asked.get_all(header::IF_NONE_MATCH).iter().any(has)
}

/// Rows of a page, unless more are asked for than may be.
fn rows(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(100) {
        rows @ 1..=model::PAGE_MAX => Ok(rows),
        _ => Err(Problem::bad_request(format!("limit must be from 1 to {}", model::PAGE_MAX))),
    }
}

/// Where a page begins, if it is written as pages name it.
fn place(after: Option<String>) -> Result<Option<String>, Problem> {
    let is_one = |text: &String| {
        (1..=model::PLACE_CHARS_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b':')
    };
    match after {
        Some(text) if !is_one(&text) => Err(Problem::bad_request("after must be the next of another page")),
        other => Ok(other),
    }
}

/// Cuts a page out of rows that are here already, each with what names it as a place to go on from.
fn page<T>(rows: Vec<(String, T)>, limit: u32) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if rows.len() > limit { rows.get(limit - 1).map(|(name, _)| name.clone()) } else { None };
    (rows.into_iter().take(limit).map(|(_, row)| row).collect(), next)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "PACS Bridge",
        description = "Studies, who may see them, and what patients decide about that. Errors are problem details (RFC 9457); \
                       what a caller may not see is answered as if it were absent.",
        license(name = "Apache-2.0 OR MIT")
    ),
    components(schemas(Problem))
)]
struct Document;

fn resources() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(studies::list))
        .routes(routes!(studies::one))
        .routes(routes!(studies::preview))
        .routes(routes!(studies::proof))
        .routes(routes!(studies::grants))
        .routes(routes!(studies::history))
        .routes(routes!(consent::requests, consent::ask))
        .routes(routes!(consent::decide))
        .routes(routes!(consent::action))
        .routes(routes!(consent::submit))
        .routes(routes!(consent::claim))
        .routes(routes!(consent::break_glass))
        .routes(routes!(consent::sources))
        .routes(routes!(events::stream))
        .routes(routes!(site::me))
        .routes(routes!(site::status))
        .routes(routes!(site::live))
        .routes(routes!(site::ready))
        .routes(routes!(site::document))
}

fn described() -> (Router<Api>, Value) {
    let (router, document) =
        OpenApiRouter::with_openapi(Document::openapi()).nest(PREFIX, resources()).split_for_parts();
    let mut document = serde_json::to_value(document).unwrap_or_default();
    complete(&mut document);
    (router, document)
}

/// The OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> String {
    let mut text = serde_json::to_string_pretty(&described().1).unwrap_or_default();
    text.push('\n');
    text
}

/// Where every resource is that is served over HTTP, as the routers have it: the API's, the viewers' and the pages'.
#[must_use]
pub fn places() -> Vec<String> {
    let document = described().1;
    let of_api = document["paths"].as_object().into_iter().flat_map(|paths| paths.keys().cloned());
    of_api.chain(dicomweb::routes().paths()).chain(web::routes().paths()).collect()
}

/// Adds what holds for every operation: the token, and the problems that may be the answer. Bodies have no other fields than those
/// named, as [`model`] reads them.
fn complete(document: &mut Value) {
    let Some(root) = document.as_object_mut() else { return };
    root.insert("security".into(), json!([{ "token": [] }]));
    let problem = json!({ problem::MEDIA_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } } });
    for (_, operations) in root.get_mut("paths").and_then(Value::as_object_mut).into_iter().flatten() {
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            let Some(responses) = operation["responses"].as_object_mut() else { continue };
            let common = [
                ("400", "it cannot be understood"),
                ("401", "no good token"),
                ("403", "not allowed"),
                ("404", "absent, or not to be seen"),
                ("429", "too many requests"),
                ("500", "a fault here"),
                ("503", "the ledger is away, or the issuer of the token"),
                ("504", "it took too long"),
            ];
            let with_body = [
                ("408", "the body came too slowly"),
                ("409", "the state of things does not allow that"),
                ("413", "the body is too large"),
                ("415", "the body is no JSON"),
            ];
            let with_body = with_body.into_iter().filter(|_| method == "post");
            for (status, words) in common.into_iter().chain(with_body) {
                let answer = || json!({ "description": words, "content": problem });
                responses.entry(status).or_insert_with(answer);
            }
            for (_, answer) in responses.iter_mut() {
                // Bytes as they are have no schema (OpenAPI 3.1, 4.8.14.3).
                let kinds = answer.get_mut("content").and_then(Value::as_object_mut).into_iter().flatten();
                kinds.filter(|(kind, _)| kind.starts_with("image/")).for_each(|(_, body)| *body = json!({}));
            }
        }
    }
    let components = root.entry("components").or_insert_with(|| json!({}));
    components["securitySchemes"] = json!({ "token": {
        "type": "http", "scheme": "bearer", "description": "made by `pacs-bridge token new`; or an access token (JWT) of the site's OpenID Connect issuer",
    } });
    for name in ["Ask", "BreakGlass", "Claim", "Decide", "Decision", "Pending", "Action"] {
        close(&mut components["schemas"][name]);
    }
}

/// Says of every object in a schema that it has no other fields.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".into(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

/// Serves the API on a listener until `stop`. What was begun is in `parts.tasks`.
pub fn serve(
    listener: TcpListener,
    tls: Option<Arc<crate::tls::Server>>,
    parts: Parts,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let (router, document) = described();
    let document = serde_json::to_string(&document).unwrap_or_default();
    let (settings, tasks) = (parts.settings.clone(), parts.tasks.clone());
    let (viewers, pages) = (parts.settings.dicomweb.enabled, parts.settings.web.enabled);
    let api = Api::new(parts, stop.clone(), document);
    let router = if viewers { router.merge(dicomweb::routes().router()) } else { router };
    let router = if pages { router.merge(web::router()) } else { router };
    let router = router
        .fallback(viewer::serve)
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api.clone());
    if pages {
        tasks.spawn(web::watch(api.clone()));
    }
    if let Some(issuer) = api.issuer().cloned() {
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(issuer.prepare()).await });
    }
    tasks.spawn(events::watch(api));
    tasks.spawn(listen::serve(listener, tls, router, settings, tasks.clone(), stop));
    Ok(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let committed = include_str!("../../../docs/openapi.json");
        assert!(committed == openapi(), "write it anew: pacs-bridge api > docs/openapi.json");
    }

    #[test]
    fn every_operation_is_described() {
        let document = described().1;
        assert_eq!(document["openapi"], "3.1.0");
        for (path, operations) in document["paths"].as_object().unwrap() {
            assert!(path.starts_with(PREFIX), "{path}");
            for (method, operation) in operations.as_object().unwrap() {
                assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{method} {path}");
                assert!(operation["responses"]["429"].is_object(), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_page_says_where_the_next_begins() {
        let rows = |count: u32| (0..count).map(|n| (n.to_string(), n)).collect::<Vec<_>>();
        assert_eq!(page(rows(3), 3), (vec![0, 1, 2], None));
        assert_eq!(page(rows(4), 3), (vec![0, 1, 2], Some("2".to_owned())));
        assert_eq!(page(rows(0), 3), (vec![], None));
    }
}
