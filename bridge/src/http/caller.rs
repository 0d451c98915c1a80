//! Who calls: the address, the bearer token, and the body, each taken once at the edge and within limits.

use std::net::IpAddr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::listen::Peer;
use super::problem::Problem;
use super::trail::Who;
use super::{Api, blocking, now_s};
use crate::access::{Caller, Right};
use crate::audit::Party;
use crate::tokens::{Token, principal_text};

/// Where a request comes from, as far as limits are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address(pub(super) IpAddr);

impl Address {
    /// The connection's, or what the proxy says of the one before it: its own word is the last.
    pub(super) fn of(request: &Request, behind_proxy: bool) -> Option<Self> {
        let Peer(peer) = *request.extensions().get::<Peer>()?;
        let forwarded = behind_proxy.then(|| forwarded_for(request.headers())).flatten();
        Some(Self(forwarded.unwrap_or(peer)))
    }
}

fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    Some(last.rsplit(',').next()?.trim().parse::<IpAddr>().ok()?.to_canonical())
}

impl<S: Sync> FromRequestParts<S> for Address {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(Problem::unauthorized)
    }
}

/// Somebody with a token that is good now.
#[derive(Debug, Clone)]
pub(super) struct Known(pub(super) Token, IpAddr);

impl Known {
    pub(super) fn caller(&self) -> &Caller {
        &self.0.caller
    }

    /// The caller, in the audit trail.
    pub(super) fn party(&self) -> Party {
        Party::asking(&principal_text(&self.caller().principal), Some(self.1))
    }

    /// Refuses a caller without a right. What it is about does not matter, so this tells nothing about it.
    pub(super) fn must(&self, api: &Api, right: Right) -> Result<(), Problem> {
        if api.access().grants(self.caller(), right) {
            return Ok(());
        }
        Err(Problem::forbidden(format!("the token, or who shows it, lacks the right \"{}\"", right.name())))
    }
}

impl FromRequestParts<Api> for Known {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Address(address) = Address::from_request_parts(parts, api).await?;
        if api.wrong_tokens().is_exhausted(address) {
            return Err(Problem::too_many());
        }
        let Some(shown) = bearer(&parts.headers) else { return Err(Problem::unauthorized()) };
        let (tokens, shown) = (api.tokens().clone(), shown.to_owned());
        let found = blocking(move || tokens.check(&shown, now_s())).await??;
        let found = found.ok_or_else(|| {
            api.wrong_tokens().take(address);
            Problem::unauthorized()
        })?;
        if let Some(who) = parts.extensions.get::<Who>() {
            who.is(principal_text(&found.caller.principal));
        }
        Ok(Self(found, address))
    }
}

/// The token of exactly one `Authorization: Bearer` (RFC 6750 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (one, None) = (all.next()?, all.next()) else { return None };
    let (scheme, token) = one.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// A JSON body, within the limits of size and time.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::media_type());
        }
        let bytes = body(request.into_body(), api).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::bad_request(error.to_string()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let stated = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    stated.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

async fn body(body: Body, api: &Api) -> Result<Bytes, Problem> {
    let (bytes_max, within) = (api.settings().body_bytes_max, api.settings().receive_timeout);
    let collected = tokio::time::timeout(within, Limited::new(body, bytes_max).collect()).await;
    match collected.map_err(|_| Problem::too_slow())? {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(bytes_max)),
        Err(_) => Err(Problem::bad_request("the body broke off")),
    }
}

/// Query parameters; unknown ones are a mistake.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let read = Query::<T>::from_request_parts(parts, api).await;
        read.map(|Query(asked)| Self(asked)).map_err(|error| Problem::bad_request(error.body_text()))
    }
}

/// Parts of the path; what does not parse is nowhere.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let read = Path::<T>::from_request_parts(parts, api).await;
        read.map(|Path(at)| Self(at)).map_err(|_| Problem::not_found())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn one_bearer_token_and_no_other_scheme() {
        assert_eq!(bearer(&headers(&[("authorization", "bEaReR  abc ")])), Some("abc"));
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        assert_eq!(bearer(&headers(&[("authorization", "Bearer")])), None);
        assert_eq!(bearer(&headers(&[])), None);
        let mut twice = headers(&[("authorization", "Bearer a")]);
        twice.append(header::AUTHORIZATION, "Bearer b".parse().unwrap());
        assert_eq!(bearer(&twice), None);
    }

    #[test]
    fn the_proxys_own_word_is_the_last() {
        let spoofed = headers(&[("x-forwarded-for", "10.0.0.1, 192.0.2.7")]);
        assert_eq!(forwarded_for(&spoofed), Some("192.0.2.7".parse().unwrap()));
        let mut two = spoofed;
        two.append("x-forwarded-for", "::ffff:192.0.2.8".parse().unwrap());
        assert_eq!(forwarded_for(&two), Some("192.0.2.8".parse().unwrap()));
        assert_eq!(forwarded_for(&headers(&[("x-forwarded-for", "unknown")])), None);
    }
}
