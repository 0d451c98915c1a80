//! The audit trail: who did what with which study, when, how it went, and whether the ledger covers it. A page looks at so much of the log and no more; the download
//! goes through all of it while it is sent. Each reading is itself recorded before anything of it leaves. Must not know how the log is written.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dicom_scp::Uid;
use maud::{Markup, html};
use tokio::sync::{Semaphore, watch};

use super::csv;
use super::layout::{self, Place, badge, form_token};
use super::study::clock;
use super::to;
use super::visitor::{Fields, Form, Visitor};
use super::words::{Tone, count, machine_time, short, time};
use crate::audit::list::{self, Listed, Page, Wanted};
use crate::audit::verify::{Report, verify};
use crate::audit::{AuditStatus, Event, anchor, syslog};
use crate::decide::parse_moment;
use crate::dicomweb::{Out, streamed};
use crate::http::{Api, Problem, blocking, now_s};

/// Where the page is, what is downloaded, and where verifying is asked for.
pub(super) const PATH: &str = "/ui/audit";
pub(super) const CSV_PATH: &str = "/ui/audit.csv";
pub(super) const VERIFICATION_PATH: &str = "/ui/audit/verification";

/// Records of a page, and bytes of the log that are looked through for them.
const PAGE: usize = 50;
const LOOKED_BYTES_MAX: u64 = 8 << 20;
/// Longest name to look for, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Longest wait for what the ledger holds.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// How long whoever asked waits for the end of an examination.
const ENDS_SOON: Duration = Duration::from_secs(3);
/// Downloads at once: each reads the whole log.
const DOWNLOADS_AT_ONCE: usize = 2;
/// Bytes that are sent at once.
const RUN_BYTES: usize = 32 * 1024;
/// Findings that are shown; more are counted.
const FINDINGS_MAX: usize = 20;
const DAY_MS: u64 = 86_400_000;

/// Kinds of events to look for: EventID or EventTypeCode (docs/AUDIT.md), and what people call it.
const KINDS: [(&str, &str); 21] = [
    ("110104", "objects sent or received"),
    ("110102", "sending or receiving begun"),
    ("110103", "study looked at"),
    ("110112", "search or list"),
    ("110106", "documents, objects or keys handed out"),
    ("110107", "study brought here"),
    ("110105", "study erased"),
    ("110135", "decision about access"),
    ("allow", "access given"),
    ("deny", "request refused"),
    ("revoke", "access taken away"),
    ("110127", "emergency access"),
    ("110136", "roles in the consortium"),
    ("110122", "login"),
    ("110123", "logout"),
    ("110126", "somebody turned away"),
    ("110132", "something not allowed"),
    ("110129", "keys and certificates"),
    ("110137", "tokens"),
    ("110101", "audit trail read"),
    ("110133", "recording failed"),
];
/// EventOutcomeIndicator (PS3.15 A.5.2).
const OUTCOMES: [(&str, &str); 4] =
    [("0", "done"), ("4", "refused, or not all of it"), ("8", "failed"), ("12", "failed, and the bridge with it")];

/// What the pages remember of examinations and downloads.
pub(super) struct Examinations {
    last: Mutex<Option<Examination>>,
    downloads: Arc<Semaphore>,
}

impl Default for Examinations {
    fn default() -> Self {
        Self { last: Mutex::default(), downloads: Arc::new(Semaphore::new(DOWNLOADS_AT_ONCE)) }
    }
}

impl Examinations {
    fn last(&self) -> MutexGuard<'_, Option<Examination>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that one begins; false when one goes on.
    fn begin(&self) -> bool {
        let mut last = self.last();
        let goes_on = last.as_ref().is_some_and(|one| one.ended.is_none());
        if !goes_on {
            *last = Some(Examination { asked_s: now_s(), ended: None });
        }
        !goes_on
    }

    fn end(&self, found: Result<Report, String>) {
        if let Some(one) = self.last().as_mut() {
            one.ended = Some((now_s(), found));
        }
    }
}

/// The log, compared with itself and with the ledger.
#[derive(Debug, Clone)]
struct Examination {
    asked_s: u64,
    /// When it ended, and what was found; or why nothing was.
    ended: Option<(u64, Result<Report, String>)>,
}

/// What is looked for, as it stands in the URL.
#[derive(Debug, Default)]
struct Filters(Fields);

impl Filters {
    const NAMES: [&'static str; 6] = ["study", "who", "kind", "outcome", "from", "to"];

    fn parse(query: Option<String>) -> Self {
        Self(Fields::parse(query.unwrap_or_default().as_bytes()))
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name)
    }

    fn given(&self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(|name| !self.get(name).is_empty())
    }

    fn url(&self, place: Option<list::Place>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for name in self.given() {
            query.append_pair(name, self.get(name));
        }
        if let Some(place) = place {
            query.append_pair("before", &place.to_string());
        }
        let query = query.finish();
        if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") }
    }

    fn before(&self) -> Result<Option<list::Place>, String> {
        let text = self.get("before");
        let place = || text.parse().map(Some).map_err(|()| format!("\"{text}\" is no place in the audit trail"));
        if text.is_empty() { Ok(None) } else { place() }
    }

    /// The same as the log is asked. The error is for whoever filled it in.
    fn wanted(&self) -> Result<Wanted, String> {
        let (from, to) = (day("From", self.get("from"))?, day("To", self.get("to"))?);
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(format!("From is {}, which is after To, {}", self.get("from"), self.get("to")));
        }
        let study = study(self.get("study"))?;
        let who = self.get("who");
        if who.chars().count() > NAME_CHARS_MAX {
            return Err(format!("Who has more than {NAME_CHARS_MAX} characters"));
        }
        Ok(Wanted {
            since_ms: from,
            until_ms: to.map(|day| day + DAY_MS),
            study: study.into_iter().collect(),
            anybody: Some(who.to_owned()).filter(|who| !who.is_empty()),
            kind: offered("kind of event", &KINDS, self.get("kind"))?.map(ToOwned::to_owned),
            outcome: offered("outcome", &OUTCOMES, self.get("outcome"))?.and_then(|outcome| outcome.parse().ok()),
            ..Wanted::default()
        })
    }

    /// What the audit trail says of this reading: which conditions there were, and not what was typed, which may be a name.
    fn words(&self, verb: &str) -> String {
        let given: Vec<_> = self.given().collect();
        if given.is_empty() { verb.to_owned() } else { format!("{verb}, by {}", given.join(", ")) }
    }
}

/// The first millisecond of a day in UTC.
fn day(name: &str, text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_day = text.len() == 10 && text.bytes().filter(|byte| *byte == b'-').count() == 2;
    let first = parse_moment(text, 0).filter(|_| is_day);
    let first = first.ok_or_else(|| format!("{name} is \"{text}\", which is no day: write year-month-day"))?;
    Ok(Some(first.saturating_mul(1000)))
}

fn study(text: &str) -> Result<Option<String>, String> {
    let bare = text.strip_prefix("0x").unwrap_or(text);
    let on_ledger = bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
    match text {
        "" => Ok(None),
        _ if on_ledger || Uid::new(text).is_ok() => Ok(Some(text.to_owned())),
        _ => Err(format!("Study is \"{text}\", which is neither a StudyInstanceUID nor a name on the ledger")),
    }
}

fn offered<'a>(what: &str, all: &[(&'a str, &str)], text: &str) -> Result<Option<&'a str>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let found = all.iter().map(|(value, _)| *value).find(|value| *value == text);
    found.map(Some).ok_or_else(|| format!("there is no {what} \"{text}\""))
}

/// Who may not read it is told that, and that is recorded as everywhere.
fn must_read(api: &Api, visitor: &Visitor) -> Result<(), Problem> {
    if api.access().reads_the_trail(visitor.known.caller()) {
        return Ok(());
    }
    Err(Problem::forbidden("the audit trail is for the people who run this site"))
}

async fn record(api: &Api, visitor: &Visitor, what: &str) -> Result<(), Problem> {
    let event = Event::log_used(&visitor.known.party(), what);
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))
}

/// A study goes by several names in the log: those that are known here are all looked for.
async fn by_all_names(api: &Api, mut wanted: Wanted) -> Result<Wanted, Problem> {
    let Some(given) = wanted.study.first().cloned() else { return Ok(wanted) };
    let here = api.clone();
    let others = blocking(move || {
        let archive = here.site().archive();
        let uid = match given.parse::<B256>() {
            Ok(id) => archive.names_of_id(&id)?.map(|names| names.uid),
            Err(_) => Uid::new(&given).ok(),
        };
        let Some(uid) = uid else { return Ok(Vec::new()) };
        let ids = archive.ids_of_uid(&uid)?.into_iter().flatten().map(|id| id.to_string());
        Ok::<_, Problem>(ids.chain([uid.to_string()]).collect())
    });
    wanted.study.extend(others.await??);
    Ok(wanted)
}

pub(super) async fn list(
    State(api): State<Api>,
    visitor: Visitor,
    RawQuery(asked): RawQuery,
) -> Result<Response, Problem> {
    must_read(&api, &visitor)?;
    let filters = Filters::parse(asked);
    let asked = filters.before().and_then(|before| Ok((filters.wanted()?, before)));
    let (status, shown) = match asked {
        _ if !api.site().audit().is_on() => (
            StatusCode::OK,
            html! { p class="notice bad" { "Nothing is recorded: " code { "audit.enabled" } " is false." } },
        ),
        Err(wrong) => {
            let content = html! { p class="notice bad" role="alert" { (layout::sentence(&wrong)) "." } };
            (StatusCode::BAD_REQUEST, content)
        }
        Ok((wanted, before)) => {
            record(&api, &visitor, &filters.words("read on a page")).await?;
            let wanted = by_all_names(&api, wanted).await?;
            let dir = api.site().audit().dir().to_owned();
            let read = blocking(move || list::page(&dir, &wanted, before, PAGE, LOOKED_BYTES_MAX)).await?;
            let page = read.map_err(|error| Problem::internal(&error))?;
            let anchored = anchored(&api, &page.rows).await;
            (StatusCode::OK, html! { (table(&page, &anchored, &filters)) (pages(&page, before, &filters)) })
        }
    };
    let content = html! {
        h1 { "Audit" }
        (filled(&filters))
        (shown)
        (examination(&api, &visitor))
    };
    Ok(layout::page_with(status, &api, &visitor, Place::Audit, "Audit", &content))
}

/// How many records of each log that is on a page the ledger covers; or why that is not known.
async fn anchored(api: &Api, rows: &[Listed]) -> Result<HashMap<String, u64>, &'static str> {
    let ledger = api.site().parts().ledger.get().ok_or("the ledger is away")?;
    let mut known = HashMap::new();
    for row in rows {
        if known.contains_key(&row.log) {
            continue;
        }
        let Ok(log) = row.log.parse::<B256>() else { continue };
        let asked = tokio::time::timeout(ANSWER_MAX, ledger.latest_anchor(log)).await;
        let latest = asked.map_err(|_| "the ledger does not answer")?.map_err(|_| "the ledger does not answer")?;
        known.insert(row.log.clone(), latest.map_or(0, |(_, records)| records));
    }
    Ok(known)
}

/// Whether the ledger covers a record, in a word.
fn proof(row: &Listed, anchored: &Result<HashMap<String, u64>, &str>) -> (Tone, String) {
    match anchored.as_ref().map(|known| known.get(&row.log).copied().unwrap_or_default()) {
        Err(why) => (Tone::Waiting, (*why).to_owned()),
        Ok(records) if row.number <= records => (Tone::Good, "anchored".to_owned()),
        Ok(_) => (Tone::Waiting, "not anchored yet".to_owned()),
    }
}

fn outcome(code: u8) -> (Tone, &'static str) {
    match code {
        0 => (Tone::Good, "done"),
        4 => (Tone::Bad, "refused, or not all"),
        _ => (Tone::Bad, "failed"),
    }
}

/// What happened: the event, and its own kinds where it has some.
fn what(row: &list::Row) -> String {
    if row.type_words.is_empty() { row.event.clone() } else { format!("{}: {}", row.event, row.type_words.join(", ")) }
}

fn table(page: &Page, anchored: &Result<HashMap<String, u64>, &str>, filters: &Filters) -> Markup {
    let found = count(page.rows.len() as u64, "record", "records");
    let which = if filters.given().next().is_some() { " found" } else { "" };
    html! {
        p class="dim" id="status" role="status" {
            @if page.rows.is_empty() { "No record" (which) "." } @else { (found) (which) ", the newest first. Times are UTC." }
            @if let Some(looked_to) = &page.looked_to { " What is older than " (clock(looked_to)) " was not looked at yet." }
        }
        @if !page.rows.is_empty() {
            div class="scroll" tabindex="0" role="region" aria-label="Records" {
                table {
                    thead {
                        tr {
                            @for head in ["When", "Who", "What", "About", "Outcome", "Proof"] { th scope="col" { (head) } }
                        }
                    }
                    tbody { @for listed in &page.rows { (line(listed, anchored)) } }
                }
            }
        }
    }
}

fn line(listed: &Listed, anchored: &Result<HashMap<String, u64>, &str>) -> Markup {
    let row = &listed.row;
    let (tone, went) = outcome(row.outcome);
    let (proven, proof) = proof(listed, anchored);
    html! {
        tr {
            td class="time" { time datetime=(row.time) { (clock(&row.time)) } }
            td { @for who in &row.who { div { (who) } } }
            td { (what(row)) @if let Some(why) = &row.why { div class="dim" { (why) } } }
            td { @for about in &row.about { div { (named(about)) } } }
            td { (badge(tone, went)) }
            td { (badge(proven, &proof)) div class="mono dim" title=(listed.digest) { (row.record) " " (short(&listed.digest)) } }
        }
    }
}

/// What a record is about: a study leads to its page, what is not one is text.
fn named(about: &str) -> Markup {
    let is_uid = about.contains('.') && about.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    html! {
        @if is_uid { a class="mono" href=(format!("/ui/studies/{about}")) { (about) } }
        @else if about.len() == 66 { span class="mono" title=(about) { (short(about)) } }
        @else { (about) }
    }
}

fn pages(page: &Page, before: Option<list::Place>, filters: &Filters) -> Markup {
    html! {
        nav class="row" aria-label="Pages" {
            @if before.is_some() { a class="btn" href=(filters.url(None)) { "Newest records" } }
            @if let Some(next) = page.next {
                a class="btn" rel="next" href=(filters.url(Some(next))) {
                    @if page.looked_to.is_some() { "Look further back" } @else { "Older records" }
                }
            }
        }
    }
}

fn filled(filters: &Filters) -> Markup {
    let choice = |label: &str, name: &str, all: &[(&str, &str)]| {
        html! {
            label {
                (label)
                select name=(name) {
                    option value="" { "any" }
                    @for (value, words) in all { option value=(value) selected[*value == filters.get(name)] { (words) } }
                }
            }
        }
    };
    let date = |label: &str, name: &str| {
        html! { label { (label) input type="date" name=(name) value=(filters.get(name)); } }
    };
    html! {
        form class="filters" role="search" aria-label="Audit" method="get" action=(PATH) {
            label { "Study (UID, or its name on the ledger)" input name="study" value=(filters.get("study")) autocomplete="off" spellcheck="false"; }
            label { "Who (AE title, account, address)" input name="who" value=(filters.get("who")) maxlength=(NAME_CHARS_MAX) autocomplete="off" spellcheck="false"; }
            (choice("What", "kind", &KINDS))
            (choice("Outcome", "outcome", &OUTCOMES))
            (date("From (UTC)", "from"))
            (date("To (UTC)", "to"))
            button class="primary" { "Search" }
            button formaction=(CSV_PATH) { "Download as CSV" }
            @if filters.given().next().is_some() { a class="btn" href=(PATH) { "Clear" } }
        }
    }
}

/// Everything that is looked for, as a table for spreadsheets, made while it is sent.
pub(super) async fn download(
    State(api): State<Api>,
    visitor: Visitor,
    RawQuery(asked): RawQuery,
) -> Result<Response, Problem> {
    must_read(&api, &visitor)?;
    if !api.site().audit().is_on() {
        return Err(Problem::not_found());
    }
    let filters = Filters::parse(asked);
    let wanted = filters.wanted().map_err(Problem::bad_request)?;
    let room = api.pages().examinations.downloads.clone().try_acquire_owned().map_err(|_| Problem::too_many())?;
    record(&api, &visitor, &filters.words("downloaded as CSV")).await?;
    let wanted = by_all_names(&api, wanted).await?;
    let anchored = newest_anchors(&api).await;
    let (out, body) = streamed();
    let dir = api.site().audit().dir().to_owned();
    api.spawn(async move {
        let made = tokio::task::spawn_blocking(move || send(&dir, &wanted, &anchored, out)).await;
        if let Ok(Err(error)) = made {
            tracing::error!(%error, "a download of the audit trail broke off");
        }
        drop(room);
    });
    let name = format!("attachment; filename=\"audit-{}.csv\"", machine_time(now_s()).get(..10).unwrap_or_default());
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// What the ledger covers of the log that is written; of others nothing is said.
async fn newest_anchors(api: &Api) -> Result<HashMap<String, u64>, &'static str> {
    let head = api.site().audit().heads().borrow().1;
    let ledger = api.site().parts().ledger.get().ok_or("the ledger is away")?;
    let asked = tokio::time::timeout(ANSWER_MAX, ledger.latest_anchor(B256::from(head.log))).await;
    let latest = asked.map_err(|_| "the ledger does not answer")?.map_err(|_| "the ledger does not answer")?;
    Ok(HashMap::from([(hex::encode(head.log), latest.map_or(0, |(_, records)| records))]))
}

/// Goes through the log and hands lines to whoever downloads, as fast as he takes them. Blocks.
fn send(
    dir: &std::path::Path,
    wanted: &Wanted,
    anchored: &Result<HashMap<String, u64>, &str>,
    out: Out,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let heads = ["record", "time", "event", "kind", "outcome", "why", "who", "about", "proof", "digest"];
    // With the mark, spreadsheets know that it is UTF-8.
    let mut run = format!("\u{feff}{}", csv::line(heads));
    let is_all = list::each_back(dir, wanted, |listed| {
        run.push_str(&csv_line(&listed, anchored));
        if run.len() < RUN_BYTES || runtime.block_on(out.put(std::mem::take(&mut run))) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    if is_all && runtime.block_on(out.put(run)) {
        out.end();
    }
    Ok(())
}

fn csv_line(listed: &Listed, anchored: &Result<HashMap<String, u64>, &str>) -> String {
    let Listed { row, digest, .. } = listed;
    let kinds = row.types.join(" ");
    let (who, about) = (row.who.join("; "), row.about.join("; "));
    let (code, proof) = (row.outcome.to_string(), proof(listed, anchored).1);
    let cells = [&row.record, &row.time, &row.event, &kinds, &code];
    let rest = [row.why.as_deref().unwrap_or_default(), &who, &about, &proof, digest];
    csv::line(cells.into_iter().map(String::as_str).chain(rest))
}

/// Has the log compared with itself and with its anchors, and waits a little for the end.
pub(super) async fn examine(State(api): State<Api>, Form { visitor, .. }: Form) -> Result<Response, Problem> {
    must_read(&api, &visitor)?;
    if !api.site().audit().is_on() {
        return Err(Problem::conflict("nothing is recorded here"));
    }
    if api.pages().examinations.begin() {
        let (done, mut ended) = watch::channel(());
        let (here, party) = (api.clone(), visitor.known.party());
        api.track(async move {
            let _done = done;
            let unfinished = Unfinished(here.clone());
            let found = compare(&here).await;
            let intact = found.as_ref().map(Report::is_intact);
            let said = match intact {
                Ok(true) => "verified: intact",
                Ok(false) => "verified: NOT intact",
                Err(_) => "could not be verified",
            };
            // It is done; that it could not be recorded is reported by the log's writer.
            let _ = here.site().audit().durable(vec![Event::log_used(&party, said)]).await;
            here.pages().examinations.end(found);
            drop(unfinished);
        });
        let _ = tokio::time::timeout(ENDS_SOON, ended.changed()).await;
    }
    Ok(to(&format!("{PATH}#verification")))
}

async fn compare(api: &Api) -> Result<Report, String> {
    // Anchors first: the log has at least what they cover.
    let anchors = match api.site().parts().ledger.get() {
        Some(ledger) => Some(anchor::all(ledger).await.map_err(|error| crate::chain_of(&error))?),
        None => None,
    };
    let dir = api.site().audit().dir().to_owned();
    let read = blocking(move || verify(&dir, anchors.as_deref(), syslog::sent(&dir))).await;
    read.map_err(|_| "it was broken off".to_owned())?.map_err(|error| crate::chain_of(&error))
}

/// An examination that does not come to its end is not one that goes on.
struct Unfinished(Api);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let examinations = &self.0.pages().examinations;
        let goes_on = examinations.last().as_ref().is_some_and(|one| one.ended.is_none());
        if goes_on {
            examinations.end(Err("it did not come to its end".to_owned()));
        }
    }
}

fn examination(api: &Api, visitor: &Visitor) -> Markup {
    let last = api.pages().examinations.last().clone();
    let status = api.site().audit().status();
    html! {
        h2 id="verification" { "Is it as it was written?" }
        div class="card" {
            @if let Some(status) = &status { (kept(status)) }
            @match &last {
                None => {}
                Some(Examination { asked_s, ended: None }) => {
                    p role="status" { (badge(Tone::Waiting, "being verified")) " since " (time(*asked_s)) ". Open this page again to see what is found." }
                }
                Some(Examination { ended: Some((at_s, found)), .. }) => (verdict(*at_s, found)),
            }
            @if status.is_some() {
                form method="post" action=(VERIFICATION_PATH) { (form_token(visitor)) button { "Verify the chain and its anchors" } }
            }
        }
    }
}

fn kept(status: &AuditStatus) -> Markup {
    html! {
        @if let Some(trouble) = &status.trouble { p { (badge(Tone::Bad, "cannot be written")) " " (trouble) } }
        p {
            (count(status.records, "record", "records")) ", each with a digest over the one before."
            " The digest of the newest goes onto the ledger now and then; what is below it cannot be changed without being found out."
        }
        @if let Some(trouble) = &status.anchor_trouble { p { (badge(Tone::Bad, "cannot be anchored")) " " (trouble) } }
    }
}

fn verdict(at_s: u64, found: &Result<Report, String>) -> Markup {
    html! {
        @match found {
            Err(why) => p role="status" { (badge(Tone::Bad, "could not be verified")) " " (why) ". " (time(at_s)) "." },
            Ok(report) if report.is_intact() => p role="status" {
                (badge(Tone::Good, "intact")) " "
                @for log in &report.logs { "Log " (log.number) " has " (count(log.records, "record", "records")) ", each as it was written" (covered(report, log)) ". " }
                "Verified " (time(at_s)) "."
            },
            Ok(report) => {
                p role="alert" { (badge(Tone::Bad, "NOT as it was written")) " Verified " (time(at_s)) "." }
                ul {
                    @for finding in report.findings.iter().take(FINDINGS_MAX) {
                        li { span class="mono" { (finding.file) } ", record " (finding.record) ", byte " (finding.offset) ": " (finding.words) "." }
                    }
                    @if report.findings.len() > FINDINGS_MAX { li { "and " (report.findings.len() - FINDINGS_MAX) " more" } }
                }
            }
        }
    }
}

fn covered(report: &Report, log: &crate::audit::verify::LogReport) -> String {
    match report.anchors {
        None => "; the ledger was not asked, because it is away".to_owned(),
        Some(_) if log.anchors == 0 => "; the ledger holds no anchor of it yet".to_owned(),
        Some(_) => {
            let anchors = count(log.anchors, "anchor", "anchors");
            format!("; {anchors} on the ledger, all of which agree, up to record {}", log.anchored)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filters(query: &str) -> Filters {
        Filters::parse(Some(query.to_owned()))
    }

    #[test]
    fn what_is_filled_in_is_what_is_looked_for() {
        let wanted = filters("study=1.2.3&who=+CT1+&kind=110112&outcome=4&from=2026-11-01&to=2026-11-01").wanted();
        let expected = Wanted {
            since_ms: Some(1_793_491_200_000),
            until_ms: Some(1_793_577_600_000),
            study: vec!["1.2.3".into()],
            anybody: Some("CT1".into()),
            kind: Some("110112".into()),
            outcome: Some(4),
            ..Wanted::default()
        };
        assert_eq!(wanted, Ok(expected));
        assert_eq!(filters("").wanted(), Ok(Wanted::default()));
        assert_eq!(filters("who=%3Cb%3E&kind=110112&x=1").url(None), "/ui/audit?who=%3Cb%3E&kind=110112");
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        for (query, part) in [
            ("from=yesterday", "From is \"yesterday\""),
            ("to=2026-02-30", "To is \"2026-02-30\""),
            ("from=1793491200", "From is"),
            ("from=2026-11-02&to=2026-11-01", "after To"),
            ("study=Doe", "neither a StudyInstanceUID"),
            ("study=1.2.x", "neither a StudyInstanceUID"),
            ("study=0x12", "neither a StudyInstanceUID"),
            ("kind=nonsense", "no kind of event \"nonsense\""),
            ("outcome=1", "no outcome \"1\""),
        ] {
            let why = filters(query).wanted().unwrap_err();
            assert!(why.contains(part), "{query}: {why}");
        }
        let long = format!("who={}", "a".repeat(65));
        assert!(filters(&long).wanted().unwrap_err().contains("64 characters"));
        for place in ["x", "1.2", "1.2.3.4", "1.2.-3", "99999999999.1.1"] {
            assert!(filters(&format!("before={place}")).before().is_err(), "{place}");
        }
        assert_eq!(filters("before=1.2.3").before().unwrap().unwrap().to_string(), "1.2.3");
    }

    #[test]
    fn what_was_typed_does_not_come_into_the_log() {
        assert_eq!(filters("who=Doe&study=1.2").words("read on a page"), "read on a page, by study, who");
        assert_eq!(filters("").words("downloaded as CSV"), "downloaded as CSV");
    }

    #[test]
    fn kinds_are_codes_that_the_log_has() {
        for (value, words) in KINDS {
            assert!(!words.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{value}");
        }
    }
}
