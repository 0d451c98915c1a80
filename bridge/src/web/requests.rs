//! Asking the owners of other sites' studies to let this site in, and what became of that.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{self, Place, badge, form_token};
use super::to;
use super::visitor::{Form, Visitor};
use super::words::{self, Tone, short, time};
use crate::access::Right;
use crate::follow::{AccessRequest, Asked, Grant, Mode};
use crate::http::{Api, Problem, ask_for, blocking, now_s};
use contracts::messages::Purpose;

/// Where that is.
pub(super) const PATH: &str = "/ui/requests";

/// Requests on the page, the newest first; more are counted.
const REQUESTS_MAX: usize = 200;
/// What people ask for; first what they mean most often.
const PURPOSES: [Purpose; 4] = [Purpose::Treatment, Purpose::Research, Purpose::PatientRequest, Purpose::Education];

/// A request of this site.
struct Row {
    request: AccessRequest,
    grant: Option<Grant>,
    uid: Option<String>,
}

pub(super) async fn show(State(api): State<Api>, visitor: Visitor) -> Result<Response, Problem> {
    visitor.known.must(&api, Right::Request)?;
    let here = api.clone();
    let rows = blocking(move || gather(&here)).await??;
    let content = html! {
        h1 { "Ask for another site's study" }
        div class="two" data-live="study" {
            div {
                form class="card stack" method="post" action=(PATH) {
                    (form_token(&visitor))
                    label {
                        "The study's name on the ledger"
                        input name="study" required pattern="0x[0-9a-fA-F]{64}" spellcheck="false" autocomplete="off" placeholder="0x…" aria-describedby="where";
                    }
                    p class="dim" id="where" { "The patient, or the site that made the study, can tell it." }
                    label {
                        "We want to see"
                        select name="mode" { option value="full" { "all images" } option value="preview" { "small pictures only" } }
                    }
                    label {
                        "For"
                        select name="purpose" { @for purpose in PURPOSES { option value=(purpose.code()) { (words::purpose(u16::from(purpose))) } } }
                    }
                    button class="primary" { "Ask" }
                }
            }
            div { h2 { "Asked (" (rows.len()) ")" } (asked(&rows, now_s())) }
        }
    };
    Ok(layout::page(&api, &visitor, Place::Requests, "Requests", &content))
}

/// Blocks.
fn gather(api: &Api) -> Result<Vec<Row>, Problem> {
    let (consents, archive) = (api.site().consents(), api.site().archive());
    let Ok(ours) = api.site().parts().source.parse::<Address>() else { return Ok(Vec::new()) };
    let mut requests = consents.requests(None)?;
    requests.retain(|request| request.grantee == ours);
    requests.sort_by_key(|request| std::cmp::Reverse(request.block));
    let rows = requests.into_iter().map(|request| {
        Ok(Row {
            grant: consents.grant(request.study_id, ours)?,
            uid: archive.names_of_id(&request.study_id)?.map(|names| names.uid.to_string()),
            request,
        })
    });
    rows.collect()
}

fn asked(rows: &[Row], now: u64) -> Markup {
    html! {
        @if rows.is_empty() {
            p { "Nothing was asked for yet." }
        } @else {
            div class="scroll" tabindex="0" role="region" aria-label="Asked" {
                table {
                    thead { tr { th scope="col" { "Study" } th scope="col" { "Wanted" } th scope="col" { "State" } } }
                    tbody { @for row in rows.iter().take(REQUESTS_MAX) { (line(row, now)) } }
                }
            }
            @if rows.len() > REQUESTS_MAX { p class="dim" { "And " (rows.len() - REQUESTS_MAX) " more." } }
        }
    }
}

fn line(row: &Row, now: u64) -> Markup {
    let id = row.request.study_id.to_string();
    let allowed = row.grant.as_ref().filter(|grant| grant.mode_at(now).is_some());
    let wanted = if row.request.mode == Mode::Full { "all images" } else { "small pictures" };
    html! {
        tr {
            td {
                @match &row.uid {
                    Some(uid) if allowed.is_some() => a class="mono" title=(id) href=(format!("/ui/studies/{uid}")) { (short(&id)) },
                    _ => span class="mono" title=(id) { (short(&id)) },
                }
            }
            td { (wanted) @if row.request.purpose != 0 { ", for " (words::purpose(row.request.purpose)) } }
            td {
                @match (allowed, row.request.asked) {
                    (Some(grant), _) => {
                        (badge(Tone::Good, "allowed"))
                        @if row.uid.is_none() { " being fetched" }
                        @if grant.not_after <= 253_402_300_799 { div class="dim" { "until " (time(grant.not_after)) } }
                    }
                    (None, Asked::Open) => (badge(Tone::Waiting, "waits for the owner")),
                    (None, Asked::Denied) => (badge(Tone::Bad, "not allowed")),
                    (None, Asked::Accepted | Asked::Nothing) => (badge(Tone::Bad, "over")),
                }
            }
        }
    }
}

/// Asks.
pub(super) async fn ask(State(api): State<Api>, Form { visitor, fields }: Form) -> Result<Response, Problem> {
    visitor.known.must(&api, Right::Request)?;
    let study: B256 = fields
        .get("study")
        .parse()
        .map_err(|_| Problem::bad_request("the study's name on the ledger is 0x and 64 hexadecimal digits"))?;
    let preview_only = match fields.get("mode") {
        "full" => false,
        "preview" => true,
        _ => return Err(Problem::bad_request("it must be said what is wanted")),
    };
    let purpose = Some(fields.get("purpose").to_owned()).filter(|purpose| !purpose.is_empty());
    ask_for(&api, &visitor.known, &study.to_string(), preview_only, purpose, None).await?;
    let study = short(&study.to_string());
    api.pages().sessions().tell(visitor.key, &format!("Asked for the study {study}. Its owner decides."));
    Ok(to(PATH))
}
