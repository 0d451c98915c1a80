//! Who looks at a page, and what forms he sends. Only a form of our own pages, in the session that it was made for, is taken.

use alloy::primitives::Address;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use dicom_scp::Uid;

use super::Key;
use super::key::host;
use crate::access::{Principal, Right};
use crate::dicomweb::shows;
use crate::http::{Api, Found, Known, Problem, blocking, body, find};

/// The field in which a form carries the token of its session.
pub(super) const TOKEN_FIELD: &str = "form";

/// Somebody who is logged in.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) known: Known,
    pub(super) key: Key,
    /// For forms.
    pub(super) form_token: String,
}

impl Visitor {
    pub(super) fn may(&self, api: &Api, right: Right) -> bool {
        api.access().grants(self.known.caller(), right)
    }

    /// The account of a visitor who owns studies.
    pub(super) fn owner(&self) -> Option<Address> {
        match self.known.caller().principal {
            Principal::Account(account) => Some(account),
            _ => None,
        }
    }

    /// A study that the visitor may use with a right, by its UID or its name on the ledger. What was received here and granted as well is one
    /// study, as for viewers: an owner sees it if all of it is his.
    pub(super) async fn study(&self, api: &Api, right: Right, given: &str) -> Result<(Uid, Found), Problem> {
        self.known.must(api, right)?;
        let found = find(api, &self.known, right, given).await?;
        let uid = found.names.as_ref().ok_or_else(Problem::not_found)?.uid;
        let (site, visible) = (api.site().clone(), api.access().sees(self.known.caller(), right));
        let seen = blocking(move || shows(visible, &uid, site.archive(), site.consents())).await??;
        if seen { Ok((uid, found)) } else { Err(Problem::not_found()) }
    }
}

impl FromRequestParts<Api> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let sessions = api.pages().sessions();
        let known = Known::of_session(parts, api).await?.ok_or_else(Problem::unauthorized)?;
        let found = sessions.find(&parts.headers).zip(sessions.form_token(&parts.headers));
        let ((key, _), form_token) = found.ok_or_else(Problem::unauthorized)?;
        Ok(Self { known, key, form_token })
    }
}

/// What was filled in.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// A field without the gaps around it; empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.trim())
    }
}

/// A form that somebody sent who need not be logged in, from a page of ours as far as a browser can tell.
pub(super) struct Sent {
    pub(super) parts: Parts,
    pub(super) fields: Fields,
}

impl FromRequest<Api> for Sent {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (parts, rest) = request.into_parts();
        if !is_from_here(&parts.headers, api.settings().behind_proxy) {
            return Err(Problem::forbidden("this form was sent by a page of somebody else"));
        }
        if !is_form(&parts.headers) {
            return Err(Problem::bad_request("this is no form"));
        }
        let bytes: Bytes = body(rest, api).await?;
        Ok(Self { parts, fields: Fields::parse(&bytes) })
    }
}

/// A form of somebody who is logged in.
pub(super) struct Form {
    pub(super) visitor: Visitor,
    pub(super) fields: Fields,
}

impl FromRequest<Api> for Form {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let Sent { mut parts, fields } = Sent::from_request(request, api).await?;
        let visitor = Visitor::from_request_parts(&mut parts, api).await?;
        if !api.pages().sessions().is_form_token(&parts.headers, fields.get(TOKEN_FIELD)) {
            return Err(Problem::forbidden("this form is of another login: open the page again"));
        }
        Ok(Self { visitor, fields })
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let stated = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    stated.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Whether a form comes from our own pages: browsers say so themselves (Fetch Metadata), older ones name the origin. What says neither is no
/// browser, and nothing has it send forms without its knowing.
fn is_from_here(headers: &HeaderMap, behind_proxy: bool) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let named = |text: &str| text.split_once("://").map(|(_, host)| host.to_ascii_lowercase());
    let Some(origin) = origin.to_str().ok().and_then(named) else { return false };
    host(headers, behind_proxy).is_some_and(|host| host == origin)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn forms_of_other_pages_are_told_from_ours() {
        let is_ours = |pairs: &[(&'static str, &str)], behind_proxy| {
            let pairs =
                pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()));
            is_from_here(&pairs.collect(), behind_proxy)
        };
        let host = ("host", "127.0.0.1:8080");
        assert!(is_ours(&[host], false) && is_ours(&[host, ("origin", "http://127.0.0.1:8080")], false));
        assert!(is_ours(&[host, ("origin", "https://pacs.example"), ("sec-fetch-site", "same-origin")], false));
        let proxied = [host, ("origin", "https://pacs.example"), ("x-forwarded-host", "pacs.example")];
        assert!(is_ours(&proxied, true) && !is_ours(&proxied, false));
        for foreign in
            ["http://127.0.0.1:8081", "https://evil.example", "null", "", "http://127.0.0.1:8080.evil.example"]
        {
            assert!(!is_ours(&[host, ("origin", foreign)], false), "{foreign}");
        }
        for site in ["cross-site", "same-site", "none", ""] {
            assert!(!is_ours(&[host, ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", site)], false), "{site}");
        }
    }

    #[test]
    fn fields_are_what_was_typed() {
        let fields = Fields::parse(b"token=+a%2Bb+&token=c&name=%22%3E%3Cscript%3E");
        assert_eq!((fields.get("token"), fields.get("name"), fields.get("none")), ("a+b", "\"><script>", ""));
    }
}
