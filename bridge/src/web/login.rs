//! Logging in with a token or with the key of an owner of studies (with an issuer: [`issuer`]), and out. Wrong tokens and signatures are counted as the API counts wrong tokens.

use alloy::primitives::{Address, Signature};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::key::{ACCOUNT_FIELD, SIGNATURE_FIELD, Signed, Way};
use super::visitor::{Form, Sent};
use super::{Holder, START, claim, consent, issuer, key, layout, to};
use crate::access::Principal;
use crate::audit::{Event, Party};
use crate::http::{Api, Asked, ClientAddress, Known, Problem, blocking, now_s};

/// Where that is.
pub(super) const PATH: &str = "/ui/login";
/// Where what a key signed goes.
pub(super) const KEY_PATH: &str = "/ui/login/key";
/// The field that brings the signed text back.
const NUMBER_FIELD: &str = "number";

/// Where to go from there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Next {
    next: String,
}

impl Next {
    pub(super) fn place(&self) -> &str {
        &self.next
    }
}

/// The login page, from which a page is reached that somebody asked for.
pub(super) fn leading_to(page: &str) -> String {
    if page == START {
        return PATH.to_owned();
    }
    let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", page).finish();
    format!("{PATH}?{next}")
}

pub(super) async fn form(
    State(api): State<Api>,
    Asked(Next { next }): Asked<Next>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    page(&api, &headers, StatusCode::OK, &next, None)
}

pub(super) async fn login(State(api): State<Api>, Sent { parts, fields }: Sent) -> Result<Response, Problem> {
    let next = fields.get("next");
    let known = match Known::of_token(&parts, &api, fields.get("token")).await {
        Ok(known) => known,
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => {
            let why = "This token is not good: it was mistyped, it is over, or somebody took it back.";
            return page(&api, &parts.headers, problem.status(), next, Some(why));
        }
        Err(problem) => return Err(problem),
    };
    record(&api, Event::logged_in(&known.party(), "/login")).await?;
    let place = match known.caller().principal {
        Principal::Shared(shared) => format!("/ui/studies/{}", shared.study),
        _ => local(next).unwrap_or(START).to_owned(),
    };
    Ok(begin(&api, &parts.headers, Holder::Token(known.token_id().to_owned()), &place))
}

/// Logs somebody in by the key of an account that owns a study here.
pub(super) async fn by_key(State(api): State<Api>, Sent { parts, fields }: Sent) -> Result<Response, Problem> {
    let ClientAddress(from) = ClientAddress::taken(&parts)?;
    api.may_show(from)?;
    let (next, number) = (fields.get("next"), fields.get(NUMBER_FIELD));
    let refused = |why: &str| {
        api.showed_a_wrong_one(from);
        page(&api, &parts.headers, StatusCode::UNAUTHORIZED, next, Some(why))
    };
    let (challenges, now) = (&api.pages().challenges, now_s());
    let host = host_of(&api, &parts.headers)?;
    let Some(text) = challenges.text_of(number, &host, now) else {
        return refused("This took too long, or the page was opened under another name: try again.");
    };
    let Some(account) = signer(&text, fields.get(ACCOUNT_FIELD), fields.get(SIGNATURE_FIELD)) else {
        return refused("The signature is not of this account, or of another text.");
    };
    let consents = api.site().consents().clone();
    if blocking(move || consents.studies_of(account, None, 1)).await??.is_empty() {
        return refused("No study here belongs to this key. If you have a code from the hospital, begin with that.");
    }
    if !challenges.use_up(number, now) {
        return refused("Somebody logged in with this signature already: try again.");
    }
    record(&api, Event::logged_in(&Party::asking(&format!("account:{account}"), Some(from)), "/login")).await?;
    let place = local(next).filter(|place| *place != START).unwrap_or(consent::PATH);
    Ok(begin(&api, &parts.headers, Holder::Owner(account), place))
}

/// The account, if its key signed the text.
pub(super) fn signer(text: &str, account: &str, signature: &str) -> Option<Address> {
    let (account, signature): (Address, Signature) = (account.parse().ok()?, signature.parse().ok()?);
    let signed = signature.recover_address_from_msg(text.as_bytes()).ok()?;
    (signed == account && !account.is_zero()).then_some(account)
}

/// Begins a session in the place of the one that there may be; returns what sets its cookie.
pub(super) fn begun(api: &Api, headers: &HeaderMap, holder: Holder, notice: Option<&str>) -> Zeroizing<String> {
    let sessions = api.pages().sessions();
    // Whoever was logged in here is not any more.
    if let Some((key, _)) = sessions.find(headers) {
        sessions.end(key);
    }
    sessions.begin(holder, notice)
}

/// The same, and leads on.
pub(super) fn begin(api: &Api, headers: &HeaderMap, holder: Holder, place: &str) -> Response {
    begin_telling(api, headers, holder, place, None)
}

/// The same, and leaves something to be said on the next page.
pub(super) fn begin_telling(
    api: &Api,
    headers: &HeaderMap,
    holder: Holder,
    place: &str,
    notice: Option<&str>,
) -> Response {
    let cookie = begun(api, headers, holder, notice);
    let mut response = to(place);
    set(&mut response, &cookie);
    response
}

/// By which name the browser calls this server.
pub(super) fn host_of(api: &Api, headers: &HeaderMap) -> Result<String, Problem> {
    let host = key::host(headers, api.settings().behind_proxy);
    host.ok_or_else(|| Problem::bad_request("the request does not say by which name this server is called"))
}

pub(super) async fn logout(
    State(api): State<Api>,
    headers: HeaderMap,
    Form { visitor, .. }: Form,
) -> Result<Response, Problem> {
    let sessions = api.pages().sessions();
    let holder = sessions.holder(visitor.key);
    sessions.end(visitor.key);
    record(&api, Event::logged_out(&visitor.known.party(), "/logout")).await?;
    let mut response = match &holder {
        Some(Holder::Person(person)) => issuer::logged_out(&api, &headers, person)?,
        _ => to(PATH),
    };
    set(&mut response, &sessions.forget());
    Ok(response)
}

pub(super) async fn record(api: &Api, event: Event) -> Result<(), Problem> {
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))
}

/// Sets a cookie besides others.
pub(super) fn set(response: &mut Response, cookie: &str) {
    if let Ok(mut cookie) = HeaderValue::from_str(cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

/// A path on this server, and not one that browsers take for another (RFC 3986 4.2; they read backslashes as slashes).
pub(super) fn local(next: &str) -> Option<&str> {
    let is_path = next.starts_with('/') && !next.starts_with("//");
    (is_path && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')).then_some(next)
}

/// The login page, which may say why a login came to nothing.
pub(super) fn page(
    api: &Api,
    headers: &HeaderMap,
    status: StatusCode,
    next: &str,
    why: Option<&str>,
) -> Result<Response, Problem> {
    let challenge = api.pages().challenges.issue(&host_of(api, headers)?, now_s());
    let hidden = html! {
        @if let Some(next) = local(next) { input type="hidden" name="next" value=(next); }
        input type="hidden" name=(NUMBER_FIELD) value=(challenge.number);
    };
    let (site, signed) = (layout::site(api.ae_title()), Signed::Text(&challenge.text));
    let content = html! {
        h1 { "Log in" }
        @if let Some(why) = why { p class="notice bad" id="why" role="alert" { (why) } }
        (issuer::offer(api, next))
        div class="two" {
            section class="card" aria-labelledby="staff" {
                h2 id="staff" { "With a token" }
                (with_token(next, why))
            }
            section class="card" aria-labelledby="owners" {
                h2 id="owners" { "With your own key" }
                p { "For patients who decide about their images themselves." }
                (key::form(KEY_PATH, &site, &signed, &hidden, &[(Way::Passkey, "Log in with my passkey")]))
                p { a href=(claim::PATH) { "I have a code from the hospital" } }
            }
        }
    };
    Ok(layout::bare_with_key(status, Some(api.ae_title()), "Log in", &content))
}

fn with_token(next: &str, why: Option<&str>) -> Markup {
    html! {
        form class="stack" method="post" action=(PATH) {
            @if let Some(next) = local(next) { input type="hidden" name="next" value=(next); }
            label {
                "Your token"
                input type="password" name="token" required autocomplete="current-password" spellcheck="false" autofocus
                    aria-invalid=[why.map(|_| "true")] aria-describedby=[why.map(|_| "why")];
            }
            button class="primary" { "Log in" }
        }
        p class="dim" {
            "The people who run this bridge make tokens with " code { "pacs-bridge token new" } ". A token is as good as a password: do not pass it on."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_led_elsewhere() {
        for good in ["/", "/ui/", "/ui/studies/1.2?x=y", "/viewer?StudyInstanceUIDs=1.2"] {
            assert_eq!(local(good), Some(good));
        }
        for wrong in [
            "",
            "ui",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/a\r\nSet-Cookie: x",
            "/\t/evil",
            "javascript:1",
            "/\u{e9}",
        ] {
            assert_eq!(local(wrong), None, "{wrong:?}");
        }
        assert_eq!(leading_to("/ui/studies/1.2?a=b&c"), "/ui/login?next=%2Fui%2Fstudies%2F1.2%3Fa%3Db%26c");
    }
}
