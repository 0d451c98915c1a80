//! The ledger: whether it is in step, how much is on its way to it and for how long, and the sites that share it, with what they brought in and the seats that they have.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::Address;
use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{self, Place, badge};
use super::visitor::Visitor;
use super::words::{Tone, bytes, count, seconds, short, span};
use crate::access::Right;
use crate::decide::SourceRow;
use crate::http::{Api, Problem, blocking, now_s};
use crate::ledger::seats::{Standing, Standings};
use crate::publish::{Pace, PublishStatus};
use crate::site::{LedgerHealth, SiteStatus};

/// Age of the newest block from which on it is said, in seconds. A quiet embedded ledger makes none.
const OLD_S: u64 = 60;

/// How often the publisher is looked at to know how fast it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for what the ledger says of the sites.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How fast pieces have come onto the ledger lately.
#[derive(Debug)]
pub(super) struct Measured {
    begun: Instant,
    pace: Mutex<Pace>,
}

impl Default for Measured {
    fn default() -> Self {
        Self { begun: Instant::now(), pace: Mutex::default() }
    }
}

impl Measured {
    fn look(&self, status: &PublishStatus) {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).look(now_ms, status);
    }

    fn pace(&self) -> Pace {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Looks at the publisher until the end of the site.
pub(crate) async fn watch(api: Api) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = api.stop().cancelled() => return,
            _ = every.tick() => {}
        }
        if let Some(publisher) = api.site().parts().publisher.get() {
            let status = publisher.borrow().clone();
            api.pages().measured.look(&status);
        }
    }
}

/// What is on its way.
pub(super) struct Backlog {
    pub(super) studies: usize,
    pub(super) pieces: u64,
    /// Studies whose pieces are not counted yet.
    uncounted: usize,
    /// How fast it has gone lately.
    pace: Pace,
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
        @if consortium { (sites(&rows, &standings(&api, &rows).await, &api.site().parts().source)) }
    };
    Ok(layout::page(&api, &visitor, Place::Ledger, "Ledger", &content))
}

pub(super) async fn backlog(api: &Api) -> Result<Backlog, Problem> {
    let here = api.clone();
    let open = blocking(move || here.site().archive().open_publications()).await??;
    let publishing = api.site().parts().publisher.get().map(|publisher| publisher.borrow().clone()).unwrap_or_default();
    let missing = publishing.studies.values().map(|study| study.pieces.saturating_sub(study.pieces_seen));
    let counted = |study: &&crate::publish::StudyStatus| study.pieces > 0;
    let oldest = open.iter().map(|publication| seconds(publication.begun_ms)).min();
    Ok(Backlog {
        studies: open.len(),
        pieces: missing.sum(),
        uncounted: open.len().saturating_sub(unfinished(&publishing).filter(counted).count()),
        pace: api.pages().measured.pace(),
        oldest_s: oldest.map(|begun| now_s().saturating_sub(begun)),
    })
}

fn unfinished(publishing: &PublishStatus) -> impl Iterator<Item = &crate::publish::StudyStatus> {
    publishing.studies.values().filter(|study| study.stage != crate::publish::Stage::Final)
}

/// How long what is on its way will take, as far as that can be told; and by what it is told.
pub(super) fn estimate(backlog: &Backlog) -> String {
    if backlog.pieces == 0 {
        return "How long that takes is not known: its pieces are not counted yet".to_owned();
    }
    let Some((seconds, rate)) = backlog.pace.seconds_for(backlog.pieces).zip(backlog.pace.pieces_per_second()) else {
        return "How long that takes is not known: too little came onto the ledger in the last five minutes to tell"
            .to_owned();
    };
    let without = match backlog.uncounted {
        0 => String::new(),
        studies => format!(", without {} whose pieces are not counted yet", count(studies as u64, "study", "studies")),
    };
    let seconds = count(seconds, "second", "seconds");
    format!("At the rate of the last minutes, {rate:.1} pieces a second, that takes about {seconds}{without}")
}

/// What the ledger says of the sites, if it says it soon.
async fn standings(api: &Api, rows: &[SourceRow]) -> Result<Standings, String> {
    let ledger = api.site().parts().ledger.get().ok_or("the ledger is away")?;
    let accounts: Vec<Address> = rows.iter().filter_map(|row| row.source.parse().ok()).collect();
    let asked = tokio::time::timeout(ANSWER_MAX, ledger.standings(&accounts)).await;
    asked.map_err(|_| "the ledger does not answer in time")?.map_err(|error| {
        tracing::warn!(error = %crate::chain_of(&error), "cannot read stake and seats");
        "the ledger does not say it".to_owned()
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
                p { (estimate(backlog)) "." }
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

fn sites(rows: &[SourceRow], standings: &Result<Standings, String>, own: &str) -> Markup {
    let seats = standings.as_ref().ok().and_then(|standings| standings.seats);
    html! {
        h2 { "Sites" }
        p class="dim" { (about_seats(standings, seats)) }
        div class="scroll" tabindex="0" role="region" aria-label="Sites" {
            table {
                thead {
                    tr {
                        th scope="col" { "Account" }
                        th scope="col" { "State" }
                        th scope="col" { "Stake" }
                        @if seats.is_some() { th scope="col" { "Seats" } }
                        th scope="col" { "Answers at" }
                    }
                }
                tbody { @for row in rows { (site(row, standings, seats, own)) } }
            }
        }
    }
}

fn site(row: &SourceRow, standings: &Result<Standings, String>, seats: Option<usize>, own: &str) -> Markup {
    let account = row.source.parse::<Address>().ok();
    let standing = standings.as_ref().ok().and_then(|standings| standings.of.get(&account?)).copied();
    html! {
        tr {
            td { span class="mono" title=(row.source) { (short(&row.source)) } @if row.source.eq_ignore_ascii_case(own) { " (this site)" } }
            td { (badge(if row.state == "active" { Tone::Good } else { Tone::Bad }, &row.state)) }
            td { (standing.map_or_else(|| "unknown".to_owned(), |standing| stake(&standing))) }
            @if let Some(all) = seats {
                td { @match standing.and_then(|standing| standing.seats) { Some(seats) => { (seats) " of " (all) }, None => "unknown" } }
            }
            td class="mono" { @if row.endpoint.is_empty() || row.endpoint.starts_with("urn:") { "–" } @else { (row.endpoint) } }
        }
    }
}

/// What a site brought in, and how much of it counts.
fn stake(standing: &Standing) -> String {
    let studies = count(standing.stake, "study", "studies");
    standing.credited.map_or_else(|| studies.clone(), |credited| format!("{studies}, of which {credited} count"))
}

fn about_seats(standings: &Result<Standings, String>, seats: Option<usize>) -> String {
    match (standings, seats) {
        (Err(why), _) => format!("Stake and seats are not known now: {why}."),
        (Ok(_), Some(seats)) => format!(
            "Stake is the number of studies that a site has defined. By what counts of it, the contract Validators gives {}; each makes blocks.",
            count(seats as u64, "seat", "seats")
        ),
        (Ok(_), None) => {
            "Stake is the number of studies that a site has defined. No contract gives seats for it on this ledger."
                .to_owned()
        }
    }
}
