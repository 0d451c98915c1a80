//! Logging in with a token, and out. Wrong tokens are counted as the API counts them.

use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::visitor::{Form, Sent};
use super::{START, layout, to};
use crate::audit::Event;
use crate::http::{Api, Known, Problem};

/// Where that is.
pub(super) const PATH: &str = "/ui/login";

/// Where to go from there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Next {
    next: String,
}

/// The login page, from which a page is reached that somebody asked for.
pub(super) fn leading_to(page: &str) -> String {
    if page == START {
        return PATH.to_owned();
    }
    let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", page).finish();
    format!("{PATH}?{next}")
}

pub(super) async fn form(State(api): State<Api>, Query(Next { next }): Query<Next>) -> Response {
    layout::bare(StatusCode::OK, Some(api.ae_title()), "Log in", &page(&next, None))
}

pub(super) async fn login(State(api): State<Api>, Sent { parts, fields }: Sent) -> Result<Response, Problem> {
    let next = fields.get("next");
    let known = match Known::of_token(&parts, &api, fields.get("token")).await {
        Ok(known) => known,
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => {
            let why = "This token is not good: it was mistyped, it is over, or somebody took it back.";
            return Ok(layout::bare(problem.status(), Some(api.ae_title()), "Log in", &page(next, Some(why))));
        }
        Err(problem) => return Err(problem),
    };
    let sessions = api.pages().sessions();
    // Whoever was logged in here is not any more.
    if let Some((key, _)) = sessions.find(&parts.headers) {
        sessions.end(key);
    }
    record(&api, Event::logged_in(&known.party(), "/login")).await?;
    let mut response = to(local(next).unwrap_or(START));
    set(&mut response, &sessions.begin(known.token_id()));
    Ok(response)
}

pub(super) async fn logout(State(api): State<Api>, Form { visitor, .. }: Form) -> Result<Response, Problem> {
    let sessions = api.pages().sessions();
    sessions.end(visitor.key);
    record(&api, Event::logged_out(&visitor.known.party(), "/logout")).await?;
    let mut response = to(PATH);
    set(&mut response, &sessions.forget());
    Ok(response)
}

async fn record(api: &Api, event: Event) -> Result<(), Problem> {
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))
}

fn set(response: &mut Response, cookie: &str) {
    if let Ok(mut cookie) = HeaderValue::from_str(cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
}

/// A path on this server, and not one that browsers take for another (RFC 3986 4.2; they read backslashes as slashes).
fn local(next: &str) -> Option<&str> {
    let is_path = next.starts_with('/') && !next.starts_with("//");
    (is_path && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')).then_some(next)
}

fn page(next: &str, why: Option<&str>) -> Markup {
    html! {
        div class="narrow card" {
            h1 { "Log in" }
            @if let Some(why) = why { p class="notice bad" id="why" role="alert" { (why) } }
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
