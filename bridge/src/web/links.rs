//! Links to one study for somebody without a login: a doctor elsewhere, a relative. A link is a token that sees this study alone, ends on a day, is recorded
//! like any other, and is good only while the study belongs to the one for whom it was made: what the patient takes over, nobody opens with an older link.
//!
//! The token is behind the `#` of the link: browsers send that to nobody.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use dicom_scp::Uid;
use maud::{Markup, html};

use super::actions::last_second;
use super::layout::{self, Place, form_token};
use super::study::until;
use super::visitor::{Form, Visitor};
use super::words::time;
use super::{key, login, to};
use crate::access::{Caller, Principal, Right, Shared};
use crate::audit::{Event, KeyUse};
use crate::follow::StudyInfo;
use crate::http::{Api, At, Problem, blocking, now_s};
use crate::tokens::{Token, principal_text};

/// Where somebody opens one.
pub(super) const PATH: &str = "/ui/shared";

/// Good links of one study at once.
const LINKS_MAX: usize = 50;
/// A link ends after a year at the latest.
const LASTS_MAX_S: u64 = 366 * 86_400;
/// Longest name of whom a link is for.
const NAME_CHARS_MAX: usize = 64;

/// Whether a visitor makes links to a study: its owner does, and the site's people while they have the owner's key in custody.
pub(super) fn makes(api: &Api, visitor: &Visitor, info: Option<StudyInfo>) -> bool {
    let Some(info) = info.filter(|info| !info.tombstoned) else { return false };
    let is_owner = visitor.owner() == Some(info.owner) && visitor.may(api, Right::Decide);
    is_owner || (info.custodial && api.access().signs_in_custody(visitor.known.caller()))
}

/// The links of a study, and a form that makes one.
pub(super) fn section(visitor: &Visitor, study: &Uid, links: &[Token], now: u64) -> Markup {
    html! {
        h2 { "Shared by links" }
        @if !links.is_empty() {
            div class="scroll" tabindex="0" role="region" aria-label="Links" {
                table {
                    thead { tr { th scope="col" { "For" } th scope="col" { "Until" } th scope="col" { "Last opened" } th scope="col" { "Do" } } }
                    tbody { @for link in links { (row(visitor, study, link)) } }
                }
            }
        }
        details class="card" {
            summary { "Make a link" }
            p { "Whoever has the link sees the images of this study, and nothing else, until the day that you choose. Give it to nobody but the one whom it is for." }
            form class="stack" method="post" action=(format!("/ui/studies/{study}/links")) {
                (form_token(visitor))
                label { "For whom" input name="name" required maxlength=(NAME_CHARS_MAX) autocomplete="off"; }
                (until(now))
                button { "Make a link" }
            }
        }
    }
}

fn row(visitor: &Visitor, study: &Uid, link: &Token) -> Markup {
    html! {
        tr {
            td { (link.name) }
            td class="time" { @if let Some(end) = link.expires_s { (time(end.saturating_sub(1))) } }
            td class="time" { @match link.used_s { Some(used) => (time(used)), None => "never" } }
            td {
                form class="row" method="post" action=(format!("/ui/studies/{study}/links/{}", link.id)) {
                    (form_token(visitor))
                    button class="danger" aria-label=(format!("Stop the link for {}", link.name)) { "Stop" }
                }
            }
        }
    }
}

/// The study of a form about links, and what its ledger says, for whoever makes such.
async fn shared(api: &Api, visitor: &Visitor, study: &str) -> Result<(Uid, StudyInfo), Problem> {
    let (uid, found) = visitor.study(api, Right::Decide, study).await?;
    match found.info.filter(|_| makes(api, visitor, found.info)) {
        Some(info) => Ok((uid, info)),
        None => {
            Err(Problem::forbidden("only the study's owner makes links, and the site while it keeps the owner's key"))
        }
    }
}

/// Makes a link, and shows it once.
pub(super) async fn make(
    State(api): State<Api>,
    At(study): At<String>,
    headers: HeaderMap,
    Form { visitor, fields }: Form,
) -> Result<Response, Problem> {
    let (uid, info) = shared(&api, &visitor, &study).await?;
    let (name, now) = (fields.get("name").to_owned(), now_s());
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!(
            "it must be said for whom the link is, in 1 to {NAME_CHARS_MAX} characters"
        )));
    }
    let end = last_second(fields.get("until"), now)? + 1;
    if end - now > LASTS_MAX_S {
        return Err(Problem::bad_request("a link ends after a year at the latest"));
    }
    let caller = Caller { principal: Principal::Shared(Shared { study: uid, owner: info.owner }), narrowed: None };
    let (tokens, of) = (api.tokens().clone(), caller.clone());
    let made = blocking(move || {
        if tokens.links_to(&uid, now)?.len() >= LINKS_MAX {
            return Err(Problem::conflict(format!("the study has {LINKS_MAX} links: stop one first")));
        }
        Ok(tokens.create(&name, &of, now, Some(end))?)
    });
    let (token, shown) = made.await??;
    let about = format!("token {} of {}", token.id, principal_text(&caller.principal));
    record(&api, &visitor, KeyUse::TokenNew, &about).await?;
    let host = key::host(&headers, api.settings().behind_proxy).unwrap_or_default();
    let scheme = if api.is_encrypted() || api.settings().behind_proxy { "https" } else { "http" };
    let content = html! {
        p { a href=(format!("/ui/studies/{uid}")) { "Back to the study" } }
        div class="narrow card" {
            h1 { "A link for " (token.name) }
            p { "It is shown once, and good until " (time(end - 1)) ". You can stop it on the study's page." }
            p class="mono code" { (format!("{scheme}://{host}{PATH}#{}", *shown)) }
        }
    };
    Ok(layout::page(&api, &visitor, Place::Studies, "A link", &content))
}

/// Stops one.
pub(super) async fn stop(
    State(api): State<Api>,
    At((study, id)): At<(String, String)>,
    Form { visitor, .. }: Form,
) -> Result<Response, Problem> {
    let (uid, _) = shared(&api, &visitor, &study).await?;
    let (tokens, now) = (api.tokens().clone(), now_s());
    let stopped = blocking(move || {
        // Of this study alone: other tokens are not this form's business.
        let link = tokens.links_to(&uid, now)?.into_iter().find(|link| link.id == id).ok_or_else(Problem::not_found)?;
        tokens.revoke(&link.id, now)?;
        Ok::<_, Problem>(link)
    });
    let link = stopped.await??;
    let about = format!("token {} of {}", link.id, principal_text(&link.caller.principal));
    record(&api, &visitor, KeyUse::TokenRevoke, &about).await?;
    api.pages().sessions().tell(visitor.key, &format!("The link for {} opens nothing any more.", link.name));
    Ok(to(&format!("/ui/studies/{uid}")))
}

async fn record(api: &Api, visitor: &Visitor, what: KeyUse, about: &str) -> Result<(), Problem> {
    let event = Event::keys_used(&visitor.known.party(), what, about, None);
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))
}

/// Where a link leads: what is behind its `#` logs in.
pub(super) async fn open(State(api): State<Api>) -> Response {
    let content = html! {
        div class="narrow card" {
            h1 { "Images that somebody shares with you" }
            form class="stack" method="post" action=(login::PATH) data-shared {
                label { "What is behind the # of the link" input type="password" name="token" required autocomplete="off" spellcheck="false"; }
                button class="primary" { "Look at the images" }
            }
            p class="dim" { "That you open them is recorded. Who is logged in here is logged out by it." }
        }
    };
    layout::bare(StatusCode::OK, Some(api.ae_title()), "Shared images", &content)
}
