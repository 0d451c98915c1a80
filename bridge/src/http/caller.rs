//! Who calls: the address, the bearer token, and the body, each taken once at the edge and within limits.

use std::net::IpAddr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::listen::Peer;
use super::problem::Problem;
use super::trail::Who;
use super::{Api, blocking, now_s};
use crate::access::{Caller, Principal, Right};
use crate::audit::Party;
use crate::config::Anonymous;
use crate::dicomweb;
use crate::oidc::{Issuer, Person, Refusal};
use crate::tokens::{Token, principal_text};
use crate::web::{self, Holder};

/// Where a request comes from, as far as limits are concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address(pub(crate) IpAddr);

impl Address {
    /// The connection's, or what the proxy says of the one before it: its own word is the last.
    pub(super) fn of(request: &Request, behind_proxy: bool) -> Option<Self> {
        let Peer(peer) = *request.extensions().get::<Peer>()?;
        let forwarded = behind_proxy.then(|| forwarded_for(request.headers())).flatten();
        Some(Self(forwarded.unwrap_or(peer)))
    }

    pub(crate) fn taken(parts: &Parts) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(Problem::unauthorized)
    }
}

fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    Some(last.rsplit(',').next()?.trim().parse::<IpAddr>().ok()?.to_canonical())
}

impl<S: Sync> FromRequestParts<S> for Address {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::taken(parts)
    }
}

/// Somebody with a token that is good now.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(super) token: Token,
    address: IpAddr,
    session: Option<web::Key>,
    /// Who that is for the issuer, if it is by the word of one.
    subject: Option<String>,
}

impl Known {
    /// Somebody who logged in to the pages, if that is good still and so is the token that was shown then.
    pub(crate) async fn of_session(parts: &Parts, api: &Api) -> Result<Option<Self>, Problem> {
        let Some(address) = parts.extensions.get::<Address>() else { return Ok(None) };
        let Some((key, holder)) = api.sessions().find(&parts.headers) else { return Ok(None) };
        let (token, subject) = match holder {
            Holder::Owner(account) => (of_key(account), None),
            Holder::Person(person) => (of_person(&person), Some(person.subject.clone())),
            Holder::Token(id) => {
                let tokens = api.tokens().clone();
                let Some(token) = blocking(move || tokens.still_good(&id, now_s())).await?? else {
                    api.sessions().end(key);
                    return Ok(None);
                };
                (token, None)
            }
        };
        Ok(Some(Self { token, address: address.0, session: Some(key), subject }.noted(parts)))
    }

    /// Somebody who shows a token of this site. Wrong ones are counted, and after many none is looked at.
    pub(crate) async fn of_token(parts: &Parts, api: &Api, shown: &str) -> Result<Self, Problem> {
        let Address(address) = Address::taken(parts)?;
        api.may_show(address)?;
        let (tokens, shown) = (api.tokens().clone(), shown.to_owned());
        let found = blocking(move || tokens.check(&shown, now_s())).await??;
        let token = found.ok_or_else(|| {
            api.showed_a_wrong_one(address);
            Problem::unauthorized()
        })?;
        Ok(Self { token, address, session: None, subject: None }.noted(parts))
    }

    /// Somebody who shows a token of this site or an access token of the issuer.
    async fn of_bearer(parts: &Parts, api: &Api, shown: &str) -> Result<Self, Problem> {
        match api.issuer().filter(|issuer| issuer.may_have_made(shown)) {
            Some(issuer) => Self::of_issuer(parts, api, issuer, shown).await,
            None => Self::of_token(parts, api, shown).await,
        }
    }

    async fn of_issuer(parts: &Parts, api: &Api, issuer: &Issuer, shown: &str) -> Result<Self, Problem> {
        let Address(address) = Address::taken(parts)?;
        api.may_show(address)?;
        match issuer.bearer(shown, now_s()).await {
            Ok(person) => {
                let subject = Some(person.subject.clone());
                Ok(Self { token: of_person(&person), address, session: None, subject }.noted(parts))
            }
            Err(refusal) => Err(refused(parts, api, address, issuer, refusal)),
        }
    }

    /// Leaves who that is for the audit trail.
    fn noted(self, parts: &Parts) -> Self {
        if let Some(who) = parts.extensions.get::<Who>() {
            who.is(self.party());
        }
        self
    }

    /// Whether the token, and the session if there is one, did not end meanwhile.
    pub(super) async fn is_still_good(&self, api: &Api) -> bool {
        match self.session.map(|key| api.sessions().holder(key)) {
            Some(None) => return false,
            Some(Some(Holder::Owner(_) | Holder::Person(_))) => return true,
            Some(Some(Holder::Token(_))) | None => {}
        }
        // Nobody here can take back what an issuer gave: it is good until its end.
        if self.subject.is_some() {
            return self.token.is_good(now_s());
        }
        let (tokens, id) = (api.tokens().clone(), self.token.id.clone());
        let good = blocking(move || tokens.still_good(&id, now_s())).await;
        good.is_ok_and(|good| good.is_ok_and(|good| good.is_some()))
    }

    /// Where the caller is.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Id of the token.
    pub(crate) fn token_id(&self) -> &str {
        &self.token.id
    }

    /// What people call the token.
    pub(crate) fn token_name(&self) -> &str {
        &self.token.name
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.token.caller
    }

    /// The caller, in the audit trail.
    pub(crate) fn party(&self) -> Party {
        let party = Party::asking(&principal_text(&self.caller().principal), Some(self.address));
        match &self.subject {
            Some(subject) => party.vouched_for(subject),
            None => party,
        }
    }

    /// Refuses a caller who may not see who else reads a study, and what was said about it.
    pub(crate) fn must_see_consent(&self, api: &Api) -> Result<(), Problem> {
        self.must(api, Right::Find)?;
        if api.access().sees_consent(self.caller()) {
            return Ok(());
        }
        Err(Problem::forbidden("a link opens the images, not what was said about them"))
    }

    /// Refuses a caller without a right. What it is about does not matter, so this tells nothing about it.
    pub(crate) fn must(&self, api: &Api, right: Right) -> Result<(), Problem> {
        if api.access().grants(self.caller(), right) {
            return Ok(());
        }
        Err(Problem::forbidden(format!("the token, or who shows it, lacks the right \"{}\"", right.name())))
    }
}

/// What stands for a token where somebody logged in with a key. No token has such an id.
fn of_key(account: alloy::primitives::Address) -> Token {
    Token {
        id: account.to_string(),
        name: "your key".to_owned(),
        caller: Caller { principal: Principal::Account(account), narrowed: None },
        created_s: 0,
        expires_s: None,
        revoked_s: None,
        used_s: None,
    }
}

/// What stands for a token where somebody is known by the issuer's word. No token of this site has such an id.
fn of_person(person: &Person) -> Token {
    Token {
        id: person.id(),
        name: person.name.clone(),
        caller: person.caller.clone(),
        created_s: 0,
        expires_s: person.ends_s,
        revoked_s: None,
        used_s: None,
    }
}

/// Why somebody is not let in who shows what the issuer made, or could have made. What is not good is counted, and why it is not good is for the log alone.
pub(crate) fn refused(parts: &Parts, api: &Api, address: IpAddr, issuer: &Issuer, refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Wrong(_) | Refusal::Refused(_) => {
            tracing::info!(why = %refusal, "what somebody showed of the issuer is not good");
            api.showed_a_wrong_one(address);
            Problem::unauthorized()
        }
        Refusal::Nobody { subject } => {
            tracing::info!("somebody whom the issuer knows fits no [[oidc.principal]]; the audit trail says who");
            if let Some(who) = parts.extensions.get::<Who>() {
                who.is(Party::asking("unknown", Some(address)).vouched_for(&subject));
            }
            Problem::forbidden(format!(
                "{} knows who this is, but nothing that it says of them lets them in here: whoever runs this bridge decides that, by the groups \
                 and roles that count here",
                issuer.name()
            ))
        }
        Refusal::Away => {
            Problem::unavailable(format!("{} does not answer, so nobody can say whose token this is", issuer.name()))
        }
    }
}

impl FromRequestParts<Api> for Known {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Address(address) = Address::from_request_parts(parts, api).await?;
        api.may_show(address)?;
        if let Some(shown) = bearer(&parts.headers) {
            return Self::of_bearer(parts, api, shown).await;
        }
        if let Some(known) = logged_in(parts, api).await? {
            return Ok(known);
        }
        match anonymous(parts, api) {
            Some(token) => Ok(Self { token, address, session: None, subject: None }.noted(parts)),
            None => Err(Problem::unauthorized()),
        }
    }
}

/// Whoever logged in to the pages reads with that what pages and viewers of this very origin ask for: nothing is changed by it, and no page of
/// somebody else may lean on it, one on another port of the same machine included (Fetch Metadata).
async fn logged_in(parts: &Parts, api: &Api) -> Result<Option<Known>, Problem> {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let named = parts.headers.contains_key(header::AUTHORIZATION);
    let site = parts.headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if !reads || named || !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Ok(None);
    }
    Known::of_session(parts, api).await
}

/// Whom a viewer without a token stands for, where the configuration says so. Who shows a token that is not good is nobody.
fn anonymous(parts: &Parts, api: &Api) -> Option<Token> {
    let path = parts.uri.path().strip_prefix(dicomweb::PREFIX)?;
    let principal = match api.settings().dicomweb.anonymous.clone()? {
        Anonymous::Operator => Principal::Operator,
        Anonymous::Peer(title) => Principal::Peer(title),
    };
    if !path.starts_with('/') || parts.headers.contains_key(header::AUTHORIZATION) {
        return None;
    }
    let named = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !api.settings().behind_proxy && !is_ours(named, &api.settings().dicomweb.public_url) {
        tracing::warn!(
            host = named,
            "a client without a token calls this server by a name that nobody gave it; set dicomweb.public_url if it is its own"
        );
        return None;
    }
    Some(Token {
        id: String::new(),
        name: "anonymous".to_owned(),
        caller: Caller { principal, narrowed: Some(vec![Right::Find, Right::Retrieve]) },
        created_s: 0,
        expires_s: None,
        revoked_s: None,
        used_s: None,
    })
}

/// Whether a Host is this server's: an address, this machine, or the configured name. A page of somebody else whose name was made to lead here calls it by that
/// name, and whoever needs no token would answer it.
fn is_ours(host: &str, public_url: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let public = public_url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || (!public.is_empty() && (host.eq_ignore_ascii_case(public) || name.eq_ignore_ascii_case(public)))
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

pub(crate) async fn body(body: Body, api: &Api) -> Result<Bytes, Problem> {
    let (bytes_max, within) = (api.settings().body_bytes_max, api.settings().receive_timeout);
    let collected = tokio::time::timeout(within, Limited::new(body, bytes_max).collect()).await;
    match collected.map_err(|_| Problem::too_slow())? {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(bytes_max)),
        Err(_) => Err(Problem::bad_request("the body broke off")),
    }
}

/// Query parameters; unknown ones are a mistake.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let read = Query::<T>::from_request_parts(parts, api).await;
        read.map(|Query(asked)| Self(asked)).map_err(|error| Problem::bad_request(error.body_text()))
    }
}

/// Parts of the path; what does not parse is nowhere.
pub(crate) struct At<T>(pub(crate) T);

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
    fn a_page_whose_name_was_made_to_lead_here_is_not_answered_as_anybody() {
        for ours in ["127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "[::1]", "localhost:1", "LOCALHOST", "10.1.2.3:80"] {
            assert!(is_ours(ours, ""), "{ours}");
        }
        for other in ["evil.example:8080", "evil.example", "", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
            assert!(!is_ours(other, "") && !is_ours(other, "https://pacs.example/dicomweb"), "{other}");
        }
        assert!(
            is_ours("pacs.example", "https://pacs.example/dicomweb")
                && is_ours("pacs.example:443", "https://pacs.example/d")
        );
        assert!(is_ours("pacs.example:8443", "https://pacs.example:8443/d"));
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
