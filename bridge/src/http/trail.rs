//! What a request leaves in the audit trail. Of paths and conditions, which anybody may write, only words and names that cannot be a
//! person's are kept.

use std::sync::{Arc, OnceLock};

use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};

use super::caller::Address;
use super::problem::Problem;
use super::{Api, PREFIX};
use crate::audit::{Event, Party};

/// Words of our own paths.
const WORDS: [&str; 12] = [
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
];

/// Who calls, as soon as that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Who(Arc<OnceLock<String>>);

impl Who {
    pub(super) fn is(&self, principal: String) {
        let _ = self.0.set(principal);
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

    /// Records what was asked and how it was answered. What tells of studies leaves when that is on the disk, and not before.
    pub(super) async fn answered(self, api: &Api, response: Response) -> Response {
        let Some(event) = self.event(response.status()) else { return response };
        if !response.status().is_success() {
            api.site().audit().record(event);
            return response;
        }
        match api.site().audit().durable(vec![event]).await {
            Ok(()) => response,
            Err(error) => Problem::internal(&error).into_response(),
        }
    }

    fn event(&self, status: StatusCode) -> Option<Event> {
        let path = self.uri.path().strip_prefix(PREFIX)?;
        let shown = plain(path);
        let principal = self.who.0.get().map_or("unknown", String::as_str);
        let by = Party::asking(principal, Some(self.from.0));
        let why = match status {
            StatusCode::UNAUTHORIZED => return Some(Event::login_failed(&by, &shown)),
            StatusCode::FORBIDDEN => return Some(Event::not_allowed(&by, &format!("{} {shown}", self.method))),
            StatusCode::NOT_FOUND => Some("absent, or not to be seen".to_owned()),
            status if status.is_client_error() || status.is_server_error() => {
                Some(format!("status {}", status.as_u16()))
            }
            _ => None,
        };
        // What changes something is recorded where it is done.
        if self.method != Method::GET && self.method != Method::HEAD {
            return None;
        }
        let mut segments = path.split('/').skip(1);
        match (segments.next()?, segments.next()) {
            ("studies", Some(study)) => Some(Event::read(&by, &name(study), &shown, why.as_deref())),
            ("studies" | "requests" | "events", None) => {
                Some(Event::listed(&by, &shown, &keys(self.uri.query().unwrap_or_default()), why.as_deref()))
            }
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
    let names = query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| {
        !name.is_empty() && name.len() <= 32 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    names.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_may_name_somebody_is_kept_of_a_request() {
        assert_eq!(plain("/studies/1.2.3/preview"), "/studies/1.2.3/preview");
        assert_eq!(plain("/studies/DOE%5EJANE/grants"), "/studies/*/grants");
        assert_eq!(name("DOE%5EJANE"), "unreadable");
        assert_eq!(keys("patient_name=DOE&limit=5&%44OE=1&after"), "patient_name&limit&after");
    }
}
