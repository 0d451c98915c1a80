//! What a request leaves in the audit trail. Of paths and conditions, which anybody may write, only words and names that cannot be a
//! person's are kept.

use std::sync::{Arc, OnceLock};

use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};

use super::caller::Address;
use super::problem::Problem;
use super::{Api, PREFIX};
use crate::audit::{Event, Party};
use crate::{dicomweb, web};

/// Words of our own paths.
const WORDS: [&str; 39] = [
    "proof",
    "wado",
    "metadata",
    "frames",
    "bulkdata",
    "rendered",
    "thumbnail",
    "studies",
    "series",
    "instances",
    "preview",
    "grants",
    "history",
    "requests",
    "events",
    "sources",
    "actions",
    "decisions",
    "status",
    "login",
    "issuer",
    "callback",
    "logout",
    "ledger",
    "pictures",
    "verification",
    "assets",
    "consent",
    "links",
    "shared",
    "choices",
    "signed",
    "claim",
    "code",
    "key",
    "audit",
    "audit.csv",
    "operations",
    "echo",
];

/// Who calls, as soon as that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Who(Arc<OnceLock<Party>>);

impl Who {
    pub(super) fn is(&self, party: Party) {
        let _ = self.0.set(party);
    }
}

/// A request that is being answered.
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    from: Address,
    who: Who,
}

impl Asked {
    pub(super) fn new(request: &mut axum::extract::Request, from: Address) -> Self {
        let who = Who::default();
        request.extensions_mut().insert(who.clone());
        Self { method: request.method().clone(), uri: request.uri().clone(), from, who }
    }

    /// Records what was asked and how it was answered. What tells of studies leaves when that is on the disk, and not before; the matches of a
    /// search as those of C-FIND do, which go out unless the log cannot be written (docs/adr/0018).
    pub(super) async fn answered(self, api: &Api, response: Response) -> Response {
        let Some(event) = self.event(response.status()) else { return response };
        let audit = api.site().audit();
        if !response.status().is_success() {
            audit.record(event);
            return response;
        }
        let path = self.uri.path().strip_prefix(dicomweb::PREFIX);
        let recorded = if path.is_some_and(dicomweb::is_search) {
            audit.writable().map(|()| audit.record(event))
        } else {
            audit.durable(vec![event]).await
        };
        match recorded {
            Ok(()) => response,
            Err(error) => Problem::internal(&error).into_response(),
        }
    }

    fn event(&self, status: StatusCode) -> Option<Event> {
        let whole = self.uri.path();
        let viewer = whole.strip_prefix(dicomweb::PREFIX);
        let page = whole.strip_prefix(web::PREFIX);
        let path = viewer.or(page).or_else(|| whole.strip_prefix(PREFIX))?;
        let shown = plain(path);
        let by = self.who.0.get().cloned().unwrap_or_else(|| Party::asking("unknown", Some(self.from.0)));
        let why = match status {
            StatusCode::UNAUTHORIZED => return Some(Event::login_failed(&by, &shown)),
            StatusCode::FORBIDDEN => return Some(Event::not_allowed(&by, &format!("{} {shown}", self.method))),
            StatusCode::NOT_FOUND => Some("absent, or not to be seen".to_owned()),
            status if status.is_client_error() || status.is_server_error() => {
                Some(format!("status {}", status.as_u16()))
            }
            _ => None,
        };
        // Somebody is sent to where he logs in; or pages led on, and that is recorded when it is followed.
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            return None;
        }
        // What changes something is recorded where it is done.
        if self.method != Method::GET && self.method != Method::HEAD {
            return None;
        }
        let query = self.uri.query().unwrap_or_default();
        if viewer.is_some() {
            let named = keys_where(query, dicomweb::is_of_searches);
            return match dicomweb::is_search(path) {
                true => Some(Event::listed(&by, &shown, &named, why.as_deref())),
                // That somebody reads a study is recorded before his first request for it is answered.
                false => why
                    .map(|why| Event::read(&by, &name(path.split('/').nth(2).unwrap_or_default()), &shown, Some(&why))),
            };
        }
        if page.is_some() {
            return match web::reads(path) {
                web::Reads::List => Some(Event::listed(&by, &shown, &keys(query), why.as_deref())),
                web::Reads::Study(study) => Some(Event::read(&by, &name(study), &shown, why.as_deref())),
                web::Reads::Picture(study) => why.map(|why| Event::read(&by, &name(study), &shown, Some(&why))),
                web::Reads::Nobody => None,
            };
        }
        let mut segments = path.split('/').skip(1);
        match (segments.next()?, segments.next()) {
            ("studies", Some(study)) => Some(Event::read(&by, &name(study), &shown, why.as_deref())),
            ("studies" | "requests" | "events", None) => Some(Event::listed(&by, &shown, &keys(query), why.as_deref())),
            _ => None,
        }
    }
}

/// A segment that is a UID or an id of the ledger.
fn name(segment: &str) -> String {
    let is_id = segment.trim_start_matches("0x").chars().all(|c| c.is_ascii_hexdigit() || c == '.');
    if is_id && !segment.is_empty() { segment.to_owned() } else { "unreadable".to_owned() }
}

/// A path with nothing in it but our words, UIDs and ids.
fn plain(path: &str) -> String {
    let segments = path.split('/').map(|segment| match segment {
        known if known.is_empty() || WORDS.contains(&known) => known.to_owned(),
        // No name is of digits and dots, or of 64 hexadecimal digits.
        id if id.chars().all(|c| c.is_ascii_digit() || c == '.') => id.to_owned(),
        id if id.starts_with("0x") && name(id) == id => id.to_owned(),
        _ => "*".to_owned(),
    });
    segments.collect::<Vec<_>>().join("/")
}

/// The names of the conditions in a query, without their values.
fn keys(query: &str) -> String {
    keys_where(query, |name| name.len() <= 32 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

fn keys_where(query: &str, is_ours: impl Fn(&str) -> bool) -> String {
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    names.filter(|name| !name.is_empty() && is_ours(name)).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_may_name_somebody_is_kept_of_a_request() {
        assert_eq!(plain("/studies/1.2.3/preview"), "/studies/1.2.3/preview");
        assert_eq!(plain("/studies/DOE%5EJANE/grants"), "/studies/*/grants");
        assert_eq!(name("DOE%5EJANE"), "unreadable");
        assert_eq!(
            keys_where("PatientName=DOE&00100020=1&DOE=1&limit=2&Doe.Jane=1", dicomweb::is_of_searches),
            "PatientName&00100020&limit"
        );
        assert_eq!(keys("patient_name=DOE&limit=5&%44OE=1&after"), "patient_name&limit&after");
    }
}
