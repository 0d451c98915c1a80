//! The ledger: whether it is in step, how much is on its way to it, and the sites that share it.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{self, Place, badge};
use super::visitor::Visitor;
use super::words::{Tone, bytes, count, seconds, short, span};
use crate::access::Right;
use crate::decide::SourceRow;
use crate::http::{Api, Problem, blocking, now_s};
use crate::site::{LedgerHealth, SiteStatus};

/// Age of the newest block from which on it is said, in seconds. A quiet embedded ledger makes none.
const OLD_S: u64 = 60;

/// What is on its way.
struct Backlog {
    studies: usize,
    pieces: u64,
    /// How long the oldest of them is on its way, in seconds.
    oldest_s: Option<u64>,
}

pub(super) async fn show(State(api): State<Api>, visitor: Visitor) -> Result<Response, Problem> {
    let (health, consortium) = (visitor.may(&api, Right::Status), visitor.may(&api, Right::Sources));
    if !health && !consortium {
        visitor.known.must(&api, Right::Status)?;
    }
    let health = if health { Some((api.site().status().await?, backlog(&api).await?)) } else { None };
    let here = api.clone();
    let sources = if consortium { blocking(move || here.site().consents().sources()).await?? } else { Vec::new() };
    let rows: Vec<SourceRow> = sources.iter().map(SourceRow::of).collect();
    let content = html! {
        h1 { "Ledger" }
        @if let Some((status, backlog)) = &health {
            div class="two" data-live="page" {
                div { (ledger(&api, status)) }
                div { (on_its_way(backlog, status)) (kept(status)) }
            }
        }
        @if consortium { (sites(&rows, &api.site().parts().source)) }
    };
    Ok(layout::page(&api, &visitor, Place::Ledger, "Ledger", &content))
}

async fn backlog(api: &Api) -> Result<Backlog, Problem> {
    let here = api.clone();
    let open = blocking(move || here.site().archive().open_publications()).await??;
    let publishing = api.site().parts().publisher.get().map(|publisher| publisher.borrow().clone()).unwrap_or_default();
    let missing = publishing.studies.values().map(|study| study.pieces.saturating_sub(study.pieces_seen));
    let oldest = open.iter().map(|publication| seconds(publication.begun_ms)).min();
    Ok(Backlog {
        studies: open.len(),
        pieces: missing.sum(),
        oldest_s: oldest.map(|begun| now_s().saturating_sub(begun)),
    })
}

fn ledger(api: &Api, status: &SiteStatus) -> Markup {
    let in_step = api.site().consents().is_current(now_s());
    html! {
        h2 { "Health" }
        div class="card" {
            @match &status.ledger {
                None => p { (badge(Tone::Waiting, "not connected yet")) },
                Some(ledger) => {
                    dl {
                        dt { "State" }
                        dd {
                            @if let Some(trouble) = &ledger.trouble { (badge(Tone::Bad, trouble)) }
                            @else if in_step { (badge(Tone::Good, "in step")) }
                            @else { (badge(Tone::Bad, "not in step: nobody else is let in")) }
                        }
                        dt { "Kind" } dd { (kind(ledger)) }
                        dt { "Chain" } dd { (ledger.chain_id) }
                        @if let Some(head) = ledger.head { dt { "Newest block" } dd { (head) (age(ledger)) } }
                        dt { "Transactions on their way" } dd { (ledger.pending) }
                        @if let Some(endpoint) = &ledger.endpoint { dt { "Node" } dd class="mono" { (endpoint) } }
                        dt { "This site" } dd class="mono" { (status.source) }
                    }
                }
            }
        }
    }
}

fn kind(ledger: &LedgerHealth) -> &str {
    match ledger.kind.as_str() {
        "embedded" => "this site's own, in this program",
        "network" => "a network of several sites",
        other => other,
    }
}

fn age(ledger: &LedgerHealth) -> Markup {
    html! {
        @match ledger.head_age_s {
            Some(age) if ledger.kind == "network" && age > OLD_S => { ", " (badge(Tone::Bad, &format!("{} old", span(age)))) },
            Some(age) => { ", " (span(age)) " old" },
            None => {},
        }
    }
}

fn on_its_way(backlog: &Backlog, status: &SiteStatus) -> Markup {
    html! {
        h2 { "On its way" }
        div class="card" {
            @if backlog.studies == 0 {
                p { (badge(Tone::Good, "nothing waits")) " Every study that is complete is on the ledger." }
            } @else {
                p {
                    (badge(Tone::Waiting, &count(backlog.pieces, "piece", "pieces"))) " of "
                    (count(backlog.studies as u64, "study", "studies")) " are to be written."
                    @if let Some(oldest) = backlog.oldest_s { " The oldest is on its way for " (span(oldest)) "." }
                }
            }
            @if let Some(left) = &status.promotion { p { (count(left.words, "decision", "decisions")) " of an earlier ledger are to be said again." } }
        }
    }
}

fn kept(status: &SiteStatus) -> Markup {
    html! {
        h2 { "Kept here" }
        div class="card" {
            dl {
                dt { "Studies" } dd { (status.studies) }
                dt { "Objects" } dd { (status.instances) ", " (bytes(status.bytes)) }
                dt { "Files here" } dd { (bytes(status.local_bytes)) }
                @if let Some(audit) = &status.audit {
                    dt { "Audit trail" }
                    dd {
                        @match &audit.trouble { Some(trouble) => (badge(Tone::Bad, trouble)), None => { (count(audit.records, "record", "records")) } }
                    }
                }
                @if let Some(ipfs) = &status.ipfs {
                    dt { "IPFS node" }
                    dd { @match &ipfs.trouble { Some(trouble) => (badge(Tone::Bad, trouble)), None => (badge(Tone::Good, "answers")) } }
                }
            }
        }
    }
}

fn sites(rows: &[SourceRow], own: &str) -> Markup {
    html! {
        h2 { "Sites" }
        div class="scroll" tabindex="0" role="region" aria-label="Sites" {
            table {
                thead { tr { th scope="col" { "Account" } th scope="col" { "State" } th scope="col" { "Answers at" } } }
                tbody {
                    @for row in rows {
                        tr {
                            td { span class="mono" title=(row.source) { (short(&row.source)) } @if row.source.eq_ignore_ascii_case(own) { " (this site)" } }
                            td { (badge(if row.state == "active" { Tone::Good } else { Tone::Bad }, &row.state)) }
                            td class="mono" { @if row.endpoint.is_empty() || row.endpoint.starts_with("urn:") { "–" } @else { (row.endpoint) } }
                        }
                    }
                }
            }
        }
    }
}
