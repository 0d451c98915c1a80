//! What every page has: head, navigation, and the rules that it gives to browsers. Nothing from elsewhere is loaded, and no script or style is in a page itself.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON, KEY_SCRIPT, SCRIPT, STYLE};
use super::visitor::{TOKEN_FIELD, Visitor};
use super::words::{Tone, short};
use crate::access::{Principal, Right};
use crate::http::{Api, Page, Problem, now_s};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Where somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Studies,
    Consent,
    Requests,
    Ledger,
    Audit,
    Operations,
}

/// What a page loads besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scripts {
    /// Nothing that it needs.
    Plain,
    /// What has the reader's key sign.
    Key,
}

/// An answer with the rules of pages.
pub(super) fn marked(mut response: Response) -> Response {
    response.extensions_mut().insert(Page);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Without one browsers would hide the origin of our own forms too.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// A page for somebody who is logged in.
pub(super) fn page(api: &Api, visitor: &Visitor, place: Place, title: &str, content: &Markup) -> Response {
    page_with(StatusCode::OK, api, visitor, place, title, content)
}

/// The same that says to programs, too, that something was not as it must be.
pub(super) fn page_with(
    status: StatusCode,
    api: &Api,
    visitor: &Visitor,
    place: Place,
    title: &str,
    content: &Markup,
) -> Response {
    known(status, api, visitor, place, title, content, Scripts::Plain)
}

/// A page with forms that the reader's key signs.
pub(super) fn page_with_key(api: &Api, visitor: &Visitor, place: Place, title: &str, content: &Markup) -> Response {
    known(StatusCode::OK, api, visitor, place, title, content, Scripts::Key)
}

fn known(
    status: StatusCode,
    api: &Api,
    visitor: &Visitor,
    place: Place,
    title: &str,
    content: &Markup,
    scripts: Scripts,
) -> Response {
    let caller = visitor.known.caller();
    let notice = api.pages().sessions().told(visitor.key);
    let is_owner = visitor.owner().is_some();
    let head = html! {
        nav aria-label="Main" {
            (link(place == Place::Studies, "/ui/", "Studies"))
            @if is_owner { (link(place == Place::Consent, super::consent::PATH, "Consent")) }
            @if visitor.may(api, Right::Request) { (link(place == Place::Requests, super::requests::PATH, "Requests")) }
            @if visitor.may(api, Right::Status) || (visitor.may(api, Right::Sources) && !is_owner) {
                (link(place == Place::Ledger, "/ui/ledger", "Ledger"))
            }
            @if api.access().reads_the_trail(caller) { (link(place == Place::Audit, "/ui/audit", "Audit")) }
            @if api.access().runs_the_site(caller) { (link(place == Place::Operations, "/ui/operations", "Operations")) }
        }
        @if visitor.may(api, Right::Status) { (ledger_badge(api)) }
        form class="who" method="post" action="/ui/logout" {
            (form_token(visitor))
            span class="dim" { (who(visitor)) }
            " "
            button { "Log out" }
        }
    };
    let content = html! {
        @if let Some(notice) = &notice { p class="notice" role="status" { (notice) } }
        (content)
    };
    document(status, Some(api.ae_title()), title, &head, &content, scripts)
}

/// A page for anybody.
pub(super) fn bare(status: StatusCode, site: Option<&str>, title: &str, content: &Markup) -> Response {
    document(status, site, title, &html! {}, content, Scripts::Plain)
}

/// The same, with forms that the reader's key signs.
pub(super) fn bare_with_key(status: StatusCode, site: Option<&str>, title: &str, content: &Markup) -> Response {
    document(status, site, title, &html! {}, content, Scripts::Key)
}

/// What people call this bridge.
pub(super) fn site(ae_title: &str) -> String {
    format!("bridge {ae_title}")
}

/// A problem, in words.
pub(super) fn problem(problem: &Problem) -> Response {
    let title = match problem.status() {
        StatusCode::NOT_FOUND => "There is nothing here".to_owned(),
        StatusCode::FORBIDDEN => "You may not do that".to_owned(),
        _ => sentence(problem.title()),
    };
    let content = html! {
        h1 { (title) }
        @if let Some(detail) = problem.detail() { p { (sentence(detail)) "." } }
        p { a class="btn" href="/ui/" { "To the studies" } }
    };
    bare(problem.status(), None, &title, &content)
}

/// With a capital letter.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// What makes a form one of this session.
pub(super) fn form_token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(TOKEN_FIELD) value=(visitor.form_token); }
}

pub(super) fn badge(tone: Tone, words: &str) -> Markup {
    html! { span class=(tone.class()) { (words) } }
}

fn document(
    status: StatusCode,
    ae_title: Option<&str>,
    title: &str,
    head: &Markup,
    content: &Markup,
    scripts: Scripts,
) -> Response {
    let site = ae_title.map_or_else(|| "PACS Bridge".to_owned(), site);
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (site) }
                link rel="stylesheet" href=(STYLE.path);
                link rel="icon" href=(ICON.path);
                script type="module" src=(SCRIPT.path) {}
                @if scripts == Scripts::Key { script type="module" src=(KEY_SCRIPT.path) {} }
            }
            body {
                a class="skip" href="#content" { "Skip to content" }
                header { b { (site) } (head) }
                main id="content" tabindex="-1" { (content) }
            }
        }
    };
    let media_type = [(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))];
    marked((status, media_type, seen(whole.into_string())).into_response())
}

/// A page in which everything stands in the order in which it was written, and nothing is hidden: names may have characters that turn around what follows
/// them (Unicode UAX 9, explicit formatting), such as a date, or that no page may have.
fn seen(page: String) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_odd = |c: char| turns(c) || (c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    if page.contains(is_odd) { page.replace(is_odd, "\u{fffd}") } else { page }
}

fn link(is_here: bool, path: &str, words: &str) -> Markup {
    html! { a href=(path) aria-current=[is_here.then_some("page")] { (words) } }
}

fn who(visitor: &Visitor) -> String {
    let name = visitor.known.token_name();
    match &visitor.known.caller().principal {
        Principal::Operator => format!("{name} (operator)"),
        Principal::Peer(title) | Principal::Unknown(title) => format!("{name} ({title})"),
        Principal::Account(account) => format!("{name} ({})", short(&account.to_string())),
        Principal::Shared(_) => format!("{name} (by a link)"),
    }
}

fn ledger_badge(api: &Api) -> Markup {
    let consents = api.site().consents();
    let followed = *consents.followed().borrow();
    match followed {
        Some(block) if consents.is_current(now_s()) => badge(Tone::Good, &format!("ledger in step · block {block}")),
        Some(block) => badge(Tone::Bad, &format!("ledger not in step · block {block}")),
        None => badge(Tone::Waiting, "waiting for the ledger"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_turned_around_or_hidden() {
        assert_eq!(seen("<p>Doe\u{202e}, 1977\u{2066}\0</p>\n".into()), "<p>Doe\u{fffd}, 1977\u{fffd}\u{fffd}</p>\n");
        assert_eq!(seen("J\u{e4}ger \u{5d0}\u{200f}\t".into()), "J\u{e4}ger \u{5d0}\u{200f}\t");
    }

    #[test]
    fn problems_are_sentences() {
        assert_eq!(
            (sentence("the ledger is away"), sentence("x."), sentence("")),
            ("The ledger is away".into(), "X".into(), String::new())
        );
    }
}
