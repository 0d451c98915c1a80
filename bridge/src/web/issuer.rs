//! Logging in with an OpenID Connect issuer: authorization code with PKCE, state and nonce, all bound to the browser that began.
//!
//! Nothing is kept of logins that are begun: a cookie carries a random number and where to go afterwards, and what goes to the issuer is made of
//! them by a code that only this process can make. Who somebody is, is for [`crate::oidc`] to say.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use maud::{Markup, html};
use rand::RngCore as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::login::{self, Next, host_of, local, record, set};
use super::{Holder, START, layout, to};
use crate::audit::Event;
use crate::http::{Api, Asked, ClientAddress, Problem, now_s, refused};
use crate::oidc::{Asking, Issuer, Person, Refusal, shown};
use crate::tokens::principal_text;

/// Where a login begins.
pub(super) const BEGIN_PATH: &str = "/ui/login/issuer";
/// Where the issuer sends browsers back to.
pub(super) const CALLBACK_PATH: &str = "/ui/login/callback";
/// How long a login may take at the issuer, in seconds.
const GOOD_S: u64 = 600;
/// Random bytes of a login.
const RANDOM_BYTES: usize = 16;
/// Longest place to go to afterwards; from a longer one people begin at the start.
const NEXT_BYTES_MAX: usize = 1024;

/// The logins that are begun at a site.
pub(super) struct Begun {
    cookie: String,
    secure: bool,
    secret: [u8; 64],
    /// Those that an answer came for, and when they end.
    used: Mutex<HashMap<String, u64>>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Login {
    random: String,
    next: String,
    state: String,
    nonce: String,
    verifier: String,
}

impl Begun {
    /// `site` and `secure`: as for sessions.
    pub(super) fn new(site: &str, secure: bool) -> Self {
        let mut secret = [0; 64];
        rand::rngs::OsRng.fill_bytes(&mut secret);
        let site = hex::encode(&Sha256::digest(site.as_bytes())[..4]);
        let prefix = if secure { "__Host-" } else { "" };
        Self { cookie: format!("{prefix}pacs-bridge-login-{site}"), secure, secret, used: Mutex::default() }
    }

    /// A login, and what its browser keeps.
    fn begin(&self, next: &str, now_s: u64) -> (Login, String) {
        let mut random = [0; RANDOM_BYTES];
        rand::rngs::OsRng.fill_bytes(&mut random);
        let next = local(next).filter(|next| next.len() <= NEXT_BYTES_MAX).unwrap_or_default();
        let kept = format!("{}.{}.{}", hex::encode(random), now_s + GOOD_S, URL_SAFE_NO_PAD.encode(next));
        let value = format!("{kept}.{}", self.code("cookie", &kept));
        (self.login(&kept, next), self.set_cookie(&value, GOOD_S))
    }

    /// The login that a browser began, if it did not take too long, and no answer came for it yet.
    fn of(&self, headers: &HeaderMap, now_s: u64) -> Option<Login> {
        let (kept, code) = self.value(headers)?.rsplit_once('.')?;
        if !is_same(&self.code("cookie", kept), code) {
            return None;
        }
        let mut parts = kept.split('.');
        let (random, until, next) = (parts.next()?, parts.next()?, parts.next()?);
        let until: u64 = until.parse().ok()?;
        let next = String::from_utf8(URL_SAFE_NO_PAD.decode(next).ok()?).ok()?;
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        (now_s <= until && !used.contains_key(random)).then(|| self.login(kept, &next))
    }

    /// Uses a login up; `false` if that was done before.
    fn use_up(&self, login: &Login, now_s: u64) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, until| now_s <= *until);
        used.insert(login.random.clone(), now_s + GOOD_S).is_none()
    }

    fn login(&self, kept: &str, next: &str) -> Login {
        let [state, nonce, verifier] = ["state", "nonce", "verifier"].map(|what| self.code(what, kept));
        let random = kept.split('.').next().unwrap_or_default().to_owned();
        Login { random, next: next.to_owned(), state, nonce, verifier }
    }

    fn code(&self, what: &str, kept: &str) -> String {
        let mut code = <Hmac<Sha256> as Mac>::new((&self.secret).into());
        code.update(format!("{what} {kept}").as_bytes());
        URL_SAFE_NO_PAD.encode(code.finalize().into_bytes())
    }

    /// Browsers bring it when they come back from the issuer, which a stricter one would keep them from.
    fn set_cookie(&self, value: &str, seconds: u64) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}", self.cookie)
    }

    fn forget(&self) -> String {
        self.set_cookie("", 0)
    }

    /// The value of the one cookie that is ours. Of two, one is somebody else's.
    fn value<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let lists = headers.get_all(header::COOKIE).iter().filter_map(|list| list.to_str().ok());
        let pairs = lists.flat_map(|list| list.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, _)| *name == self.cookie).map(|(_, value)| value);
        let (one, None) = (ours.next()?, ours.next()) else { return None };
        Some(one)
    }
}

fn is_same(ours: &str, theirs: &str) -> bool {
    bool::from(ours.as_bytes().ct_eq(theirs.as_bytes()))
}

/// The issuer, if people log in with it.
fn issuer(api: &Api) -> Option<&Issuer> {
    api.issuer().filter(|issuer| issuer.client().is_some())
}

/// What the login page has for it.
pub(super) fn offer(api: &Api, next: &str) -> Markup {
    let Some(issuer) = issuer(api) else { return html! {} };
    let place = match local(next) {
        Some(next) => {
            let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
            format!("{BEGIN_PATH}?{next}")
        }
        None => BEGIN_PATH.to_owned(),
    };
    html! {
        section class="card" aria-labelledby="issuer" {
            h2 id="issuer" { "With " (issuer.name()) }
            p { a class="btn primary" href=(place) { "Log in with " (issuer.name()) } }
        }
    }
}

/// Sends a browser to the issuer. A page of somebody else does not, lest it change who is logged in here.
pub(super) async fn begin(
    State(api): State<Api>,
    Asked(next): Asked<Next>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let issuer = issuer(&api).ok_or_else(Problem::not_found)?;
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Ok(to(&login::leading_to(local(next.place()).unwrap_or(START))));
    }
    let begun = &api.pages().begun;
    let (login, cookie) = begun.begin(next.place(), now_s());
    let redirect_uri = redirect_uri(&api, issuer, &headers)?;
    match issuer.login_url(&login.asking(&redirect_uri)).await {
        Ok(url) => {
            let mut response = to(&url);
            set(&mut response, &cookie);
            Ok(response)
        }
        Err(_) => login::page(&api, &headers, StatusCode::SERVICE_UNAVAILABLE, &login.next, Some(&away(issuer))),
    }
}

impl Login {
    fn asking<'a>(&'a self, redirect_uri: &'a str) -> Asking<'a> {
        Asking { redirect_uri, state: &self.state, nonce: &self.nonce, verifier: &self.verifier }
    }
}

/// What the issuer sends through the browser (RFC 6749 4.1.2).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Brought {
    code: String,
    state: String,
    iss: Option<String>,
    error: String,
    error_description: String,
}

/// A browser comes back from the issuer.
pub(super) async fn callback(
    State(api): State<Api>,
    Asked(brought): Asked<Brought>,
    parts: Parts,
) -> Result<Response, Problem> {
    let issuer = issuer(&api).ok_or_else(Problem::not_found)?;
    let ClientAddress(from) = ClientAddress::taken(&parts)?;
    api.may_show(from)?;
    let begun = &api.pages().begun;
    let login = begun.of(&parts.headers, now_s()).filter(|login| is_same(&login.state, &brought.state));
    let Some(login) = login.filter(|login| begun.use_up(login, now_s())) else {
        api.showed_a_wrong_one(from);
        let why = "This login was not begun in this browser, it took too long, or it was used already: try again.";
        return login::page(&api, &parts.headers, StatusCode::UNAUTHORIZED, "", Some(why));
    };
    let mut response = match person(&api, issuer, &parts.headers, &brought, &login).await {
        Ok(person) => logged_in(&api, &parts, from, person, &login).await?,
        Err(came_to_nothing) => not_logged_in(&api, &parts, from, issuer, &login, came_to_nothing)?,
    };
    set(&mut response, &begun.forget());
    Ok(response)
}

/// Why a login came to nothing.
enum Nothing {
    /// The issuer says why.
    Said(String),
    /// The answer is not this issuer's.
    Other,
    Refused(Refusal),
}

impl From<Refusal> for Nothing {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn person(
    api: &Api,
    issuer: &Issuer,
    headers: &HeaderMap,
    brought: &Brought,
    login: &Login,
) -> Result<Person, Nothing> {
    if !issuer.answers(brought.iss.as_deref()).await? {
        return Err(Nothing::Other);
    }
    if !brought.error.is_empty() || brought.code.is_empty() {
        return Err(Nothing::Said(said(brought)));
    }
    let redirect_uri = redirect_uri(api, issuer, headers).map_err(|_| Nothing::Refused(Refusal::Away))?;
    Ok(issuer.redeem(&brought.code, &login.asking(&redirect_uri), now_s()).await?)
}

/// An error of the issuer, as people may read it.
fn said(brought: &Brought) -> String {
    let words = match brought.error.as_str() {
        "access_denied" => "it was cancelled there, or you may not use this bridge".to_owned(),
        "temporarily_unavailable" | "server_error" => "something failed there; try again later".to_owned(),
        "login_required" | "interaction_required" | "consent_required" => "you have to log in there first".to_owned(),
        "" => "it brought no code".to_owned(),
        other => shown(other),
    };
    match shown(&brought.error_description) {
        description if description.is_empty() => words,
        description => format!("{words} ({description})"),
    }
}

/// Begins a session. Its cookie is for requests of our own pages alone, and a browser that is led on takes the next for the issuer's: so this is a page,
/// which goes on by itself.
async fn logged_in(api: &Api, parts: &Parts, from: IpAddr, person: Person, login: &Login) -> Result<Response, Problem> {
    let by = crate::audit::Party::asking(&principal_text(&person.caller.principal), Some(from));
    record(api, Event::logged_in(&by.vouched_for(&person.subject), "/login/callback")).await?;
    let place = local(&login.next).unwrap_or(START);
    let content = html! {
        div class="narrow card" {
            h1 { "You are logged in" }
            p { a class="btn primary" href=(place) { "Go on" } }
        }
    };
    let mut response = layout::bare(StatusCode::OK, Some(api.ae_title()), "Logged in", &content);
    if let Ok(refresh) = HeaderValue::from_str(&format!("0;url={place}")) {
        response.headers_mut().insert(header::REFRESH, refresh);
    }
    set(&mut response, &login::begun(api, &parts.headers, Holder::Person(Arc::new(person)), None));
    Ok(response)
}

fn not_logged_in(
    api: &Api,
    parts: &Parts,
    from: IpAddr,
    issuer: &Issuer,
    login: &Login,
    nothing: Nothing,
) -> Result<Response, Problem> {
    let name = issuer.name();
    let (status, why) = match nothing {
        Nothing::Said(said) => (StatusCode::UNAUTHORIZED, format!("{name} did not log you in: {said}.")),
        Nothing::Other => {
            tracing::warn!("a browser brought the answer of another issuer than oidc.issuer to a login");
            api.showed_a_wrong_one(from);
            (StatusCode::UNAUTHORIZED, format!("This answer is not of {name}: try again."))
        }
        Nothing::Refused(refusal) => {
            let problem = refused(parts, api, from, issuer, refusal);
            match problem.status() {
                StatusCode::UNAUTHORIZED => (
                    StatusCode::UNAUTHORIZED,
                    format!("What {name} says of you cannot be relied on: try again. The log of this bridge says why."),
                ),
                StatusCode::SERVICE_UNAVAILABLE => (StatusCode::SERVICE_UNAVAILABLE, away(issuer)),
                status => (status, nobody(name)),
            }
        }
    };
    login::page(api, &parts.headers, status, &login.next, Some(&why))
}

fn nobody(name: &str) -> String {
    format!(
        "{name} knows you, but nothing that it says of you lets you in here. Whoever runs this bridge decides that, by the groups and roles that \
         count here: ask them."
    )
}

fn away(issuer: &Issuer) -> String {
    format!("{} does not answer now. Try again later, or log in another way.", issuer.name())
}

/// What is shown to somebody who logged out here: whether he is logged in at the issuer still, and the way out. A form may lead nowhere else, so it is a
/// link.
pub(super) fn logged_out(api: &Api, headers: &HeaderMap, person: &Person) -> Result<Response, Problem> {
    let Some(issuer) = issuer(api) else { return Ok(to(login::PATH)) };
    let back = format!("{}{}", base(api, issuer, headers)?, login::PATH);
    let Some(url) = issuer.logout_url(person, &back) else { return Ok(to(login::PATH)) };
    let content = html! {
        div class="narrow card" {
            h1 { "You are logged out of this bridge" }
            p { "You may be logged in at " (issuer.name()) " still: then whoever uses this browser next gets in again without a password." }
            p { a class="btn primary" href=(url) { "Log out of " (issuer.name()) " too" } }
            p { a href=(login::PATH) { "Log in again" } }
        }
    };
    Ok(layout::bare(StatusCode::OK, Some(api.ae_title()), "Logged out", &content))
}

fn redirect_uri(api: &Api, issuer: &Issuer, headers: &HeaderMap) -> Result<String, Problem> {
    Ok(format!("{}{CALLBACK_PATH}", base(api, issuer, headers)?))
}

/// Where browsers find this server: as configured, or by the name that they call.
fn base(api: &Api, issuer: &Issuer, headers: &HeaderMap) -> Result<String, Problem> {
    match issuer.client().map(|client| client.public_url.as_str()) {
        Some(url) if !url.is_empty() => Ok(url.to_owned()),
        _ => {
            let scheme = if api.is_encrypted() || api.settings().behind_proxy { "https" } else { "http" };
            Ok(format!("{scheme}://{}", host_of(api, headers)?))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn with_cookie(set: &str) -> HeaderMap {
        let pair = set.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, format!("other=1; {pair}").parse().unwrap())])
    }

    #[test]
    fn a_login_is_of_one_browser_for_its_time_and_once() {
        let (ours, other) = (Begun::new("0xsite", false), Begun::new("0xsite", false));
        let (login, cookie) = ours.begin("/ui/ledger?x=1", NOW);
        let headers = with_cookie(&cookie);
        assert_eq!(ours.of(&headers, NOW + GOOD_S), Some(login.clone()));
        assert_eq!(login.next, "/ui/ledger?x=1");
        assert_eq!(ours.of(&headers, NOW + GOOD_S + 1), None);
        assert_eq!(other.of(&headers, NOW), None, "of another process");
        assert_eq!(ours.of(&HeaderMap::new(), NOW), None);
        let (second, _) = ours.begin("/ui/ledger?x=1", NOW);
        let all = [&login.state, &login.nonce, &login.verifier, &second.state, &second.nonce, &second.verifier];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 6, "nothing tells another");
        assert!(all.iter().all(|one| one.len() == 43), "RFC 7636 4.1: 43 characters at least");
        assert!(!cookie.contains(&login.state) && !cookie.contains(&login.nonce) && !cookie.contains(&login.verifier));
        let forged =
            cookie.replacen(&URL_SAFE_NO_PAD.encode("/ui/ledger?x=1"), &URL_SAFE_NO_PAD.encode("/ui/audit"), 1);
        assert_ne!(forged, cookie);
        assert_eq!(ours.of(&with_cookie(&forged), NOW), None, "changed");
        let mut two = headers.clone();
        two.append(header::COOKIE, headers[header::COOKIE].clone());
        assert_eq!(ours.of(&two, NOW), None, "one of two is somebody else's");
        assert!(ours.use_up(&login, NOW) && !ours.use_up(&login, NOW));
        assert_eq!(ours.of(&headers, NOW), None, "used");
        ours.use_up(&second, NOW + 2 * GOOD_S);
        assert_eq!(ours.used.lock().unwrap().len(), 1, "what is over is forgotten");
    }

    #[test]
    fn the_cookie_comes_back_from_elsewhere_and_is_for_this_site_alone() {
        let (_, plain) = Begun::new("a", false).begin("", NOW);
        assert!(plain.contains("; HttpOnly; SameSite=Lax") && plain.contains("; Path=/; Max-Age=600;"), "{plain}");
        let (_, secure) = Begun::new("a", true).begin("", NOW);
        assert!(secure.starts_with("__Host-pacs-bridge-login-") && secure.ends_with("; Secure"), "{secure}");
        assert!(Begun::new("b", false).of(&with_cookie(&plain), NOW).is_none());
        for elsewhere in
            ["//evil.example", "https://evil.example", "/\\evil", &format!("/{}", "x".repeat(NEXT_BYTES_MAX))]
        {
            assert_eq!(Begun::new("a", false).begin(elsewhere, NOW).0.next, "", "{elsewhere}");
        }
    }

    #[test]
    fn what_the_issuer_says_is_said_in_words() {
        let brought = |error: &str, description: &str| {
            said(&Brought { error: error.into(), error_description: description.into(), ..Brought::default() })
        };
        assert!(brought("access_denied", "").starts_with("it was cancelled there"));
        assert_eq!(brought("odd\r\n", "<b>"), "odd (<b>)");
        assert_eq!(brought("", ""), "it brought no code");
    }
}
