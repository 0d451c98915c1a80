//! One study: its pictures, what happened to it, whether the ledger has it as it was received, and who may read it.

use std::collections::HashSet;

use alloy::primitives::B256;
use axum::extract::State;
use axum::response::Response;
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, dictionary_vr};
use dicom_scp::matching::Query;
use maud::{Markup, html};

use super::layout::{self, Place, badge, form_token};
use super::picture::{self, Shown};
use super::studies::progress;
use super::verification::{Ended, Verification};
use super::visitor::Visitor;
use super::words::{self, Tone, bytes, count, date, day_of, machine_time, person, seconds, short, span, time};
use super::{consent, links};
use crate::access::{Principal, Right};
use crate::archive::StudySummary;
use crate::audit;
use crate::decide::{self, Told, TraceRow, grant_state, purpose_word};
use crate::dicomweb::relational;
use crate::follow::{AccessRequest, Asked, Decision, Grant, Mode, SourceInfo};
use crate::http::{self, Api, At, Problem, blocking, now_s};
use crate::site::{State as Way, StudyRow, Verdict};
use crate::tokens::Token;

/// Series shown with a picture; more are counted.
const SERIES_MAX: usize = 200;
/// Objects that a comparison names; more are counted.
const VERDICTS_MAX: usize = 50;
/// Records of the audit trail that are looked through, in how many bytes at its end, and how many lines are made of them.
const RECORDS_MAX: usize = 500;
const TRAIL_BYTES_MAX: u64 = 4 << 20;
const LATELY_MAX: usize = 12;
/// Days for which access is offered.
const OFFERED_DAYS: u64 = 30;

const SERIES_UID: Tag = Tag(0x0020, 0x000E);
const SERIES_NUMBER: Tag = Tag(0x0020, 0x0011);
const SERIES_DESCRIPTION: Tag = Tag(0x0008, 0x103E);
const MODALITY: Tag = Tag(0x0008, 0x0060);
const INSTANCES_OF_SERIES: Tag = Tag(0x0020, 0x1209);

struct Series {
    number: Option<i64>,
    title: String,
    objects: i64,
    picture: Option<Shown>,
}

/// All that the page shows.
struct Study {
    uid: Uid,
    row: StudyRow,
    summary: StudySummary,
    found: http::Found,
    series: Vec<Series>,
    history: Vec<TraceRow>,
    grants: Vec<Grant>,
    requests: Vec<AccessRequest>,
    sources: Vec<SourceInfo>,
    verification: Option<Verification>,
    /// Links that open it, for whoever makes such.
    links: Option<Vec<Token>>,
    sees_consent: bool,
    /// The newest that the audit trail says of it, for whoever may know.
    lately: Option<Vec<audit::list::Row>>,
}

pub(super) async fn show(State(api): State<Api>, visitor: Visitor, At(given): At<String>) -> Result<Response, Problem> {
    let (uid, found) = visitor.study(&api, Right::Find, &given).await?;
    let study = gather(&api, &visitor, uid, found).await?;
    let name = person(&study.row.patient_name);
    let heading = format!("{name} · {} · {}", study.row.modalities.join(", "), date(&study.row.study_date));
    let content = html! {
        p { a href="/ui/" { "All studies" } }
        div id="study" data-live="study" data-study=(study.uid) {
            h1 { (heading) }
            div class="two" {
                div {
                    (pictures(&study))
                    (offers(&api, &visitor, &study))
                    (identity(&study))
                    (verification(&study))
                }
                div {
                    (timeline(&study))
                    @if study.sees_consent { (readers(&api, &visitor, &study)) }
                    @if let Some(shared) = &study.links { (links::section(&visitor, &study.uid, shared, now_s())) }
                    (lately(&api, &study))
                }
            }
        }
    };
    Ok(layout::page(&api, &visitor, Place::Studies, &format!("Study of {name}"), &content))
}

async fn gather(api: &Api, visitor: &Visitor, uid: Uid, found: http::Found) -> Result<Study, Problem> {
    let sees_consent = api.access().sees_consent(visitor.known.caller());
    let info = found.info.filter(|_| sees_consent);
    let history = match info {
        Some(info) => history(api, visitor, info.study_id.to_string()).await?,
        None => Vec::new(),
    };
    let shares = links::makes(api, visitor, found.info);
    let with_pictures = visitor.may(api, Right::Retrieve);
    let operator = visitor.known.caller().principal == Principal::Operator;
    let sees_trail = api.access().reads_the_trail(visitor.known.caller()) && api.site().audit().is_on();
    let signs = api.access().signs_in_custody(visitor.known.caller());
    let here = api.clone();
    blocking(move || {
        let (site, consents) = (here.site(), here.site().consents());
        let summary = site.archive().summary(uid.as_str())?.ok_or_else(Problem::not_found)?;
        let mut row = site.row_of(summary.clone());
        row.trouble = row.trouble.filter(|_| operator);
        let (grants, mut requests) = match info {
            Some(info) => (consents.grants_of(info.study_id)?, consents.requests(Some(info.study_id))?),
            None => (Vec::new(), Vec::new()),
        };
        requests.retain(|request| request.asked == Asked::Open);
        Ok(Study {
            series: series(&here, &uid, with_pictures)?,
            sources: if signs { consents.sources()? } else { Vec::new() },
            verification: here.pages().verifications.of(&uid),
            lately: if sees_trail { trail(&here, &uid, found.study_id) } else { None },
            uid,
            row,
            summary,
            links: if shares { Some(here.tokens().links_to(&uid, now_s())?) } else { None },
            sees_consent,
            found,
            history,
            grants,
            requests,
        })
    })
    .await?
}

/// What the end of the audit trail says of a study, the newest first. Blocks.
fn trail(api: &Api, uid: &Uid, study_id: Option<B256>) -> Option<Vec<audit::list::Row>> {
    let id = study_id.map(hex::encode).unwrap_or_default();
    let names: Vec<&str> = [uid.as_str(), &id].into_iter().filter(|name| !name.is_empty()).collect();
    let wanted = audit::list::Wanted { outcome: Some(0), ..Default::default() };
    let found = audit::list::newest(api.site().audit().dir(), &names, &wanted, RECORDS_MAX, TRAIL_BYTES_MAX);
    // A trail that cannot be read is no reason not to show the study; what is wrong with it the ledger's page says.
    found.inspect_err(|error| tracing::warn!(%error, "cannot read the audit trail")).ok()
}

async fn history(api: &Api, visitor: &Visitor, study: String) -> Result<Vec<TraceRow>, Problem> {
    let ask = decide::Ask::Trace { study, grantee: None };
    match decide::answer(api.site(), ask, &visitor.known.party()).await? {
        Told::Trace(report) => Ok(report.history),
        _ => Ok(Vec::new()),
    }
}

/// The series of a study as a search finds them, each with a picture. Blocks.
fn series(api: &Api, uid: &Uid, with_pictures: bool) -> Result<Vec<Series>, Problem> {
    let mut keys = DataSet::new();
    keys.put_text(Tag(0x0008, 0x0052), VR::CS, "SERIES");
    keys.put_uid(Tag(0x0020, 0x000D), uid);
    for tag in [SERIES_UID, SERIES_NUMBER, SERIES_DESCRIPTION, MODALITY, INSTANCES_OF_SERIES] {
        keys.put(tag, Element::empty(dictionary_vr(tag).unwrap_or(VR::UN)));
    }
    let query = Query::parse(&keys, &relational()).map_err(|failure| Problem::bad_request(failure.to_string()))?;
    let mut found = Vec::new();
    api.site().archive().search(&query, api.ae_title(), |answer| {
        found.push(answer);
        found.len() < SERIES_MAX
    })?;
    let kept = if with_pictures { api.site().archive().pictures(uid)? } else { Vec::new() };
    let mut all = Vec::with_capacity(found.len());
    for answer in &found {
        let text = |tag| answer.text(tag).unwrap_or_default();
        let picture = kept.iter().find(|picture| picture.subject.as_str() == text(SERIES_UID)).cloned();
        let blur = picture.as_ref().map(|picture| api.pages().blurs.of(api.site().archive(), uid, &picture.id));
        let picture = match (picture, blur) {
            (Some(picture), Some(blur)) => Some(Shown { picture, blur: blur? }),
            _ => None,
        };
        let described = text(SERIES_DESCRIPTION);
        let title = if described.is_empty() { text(MODALITY) } else { format!("{} · {described}", text(MODALITY)) };
        let objects = answer.int(INSTANCES_OF_SERIES).unwrap_or_default();
        all.push(Series { number: answer.int(SERIES_NUMBER), title, objects, picture });
    }
    all.sort_by_key(|series| series.number.unwrap_or(i64::MAX));
    Ok(all)
}

fn pictures(study: &Study) -> Markup {
    html! {
        h2 { "Series" }
        ul class="grid small" {
            @for series in &study.series {
                li class="card study" {
                    (picture::markup(study.uid.as_str(), series.picture.as_ref(), &format!("Preview of {}", series.title)))
                    div class="txt" {
                        div class="name" { @if let Some(number) = series.number { (number) ". " } (series.title) }
                        div class="dim" { (count(series.objects.unsigned_abs(), "object", "objects")) }
                    }
                }
            }
        }
        @if study.row.series > study.series.len() as u64 { p class="dim" { (study.row.series) " series in all." } }
    }
}

/// What can be done with the study as a whole.
fn offers(api: &Api, visitor: &Visitor, study: &Study) -> Markup {
    let (viewers, uid) = (&api.settings().dicomweb, &study.uid);
    html! {
        @if visitor.may(api, Right::Retrieve) {
            div class="row" {
                @if viewers.enabled && viewers.ohif_dir.is_some() {
                    a class="btn primary" href=(format!("/viewer?StudyInstanceUIDs={uid}")) { "Open in OHIF" }
                }
                @if viewers.enabled {
                    a class="btn" href=(format!("/dicomweb/studies/{uid}?accept=application/zip")) download=(format!("{uid}.zip")) {
                        "Download (" (bytes(study.row.bytes)) ")"
                    }
                }
                form method="post" action=(format!("/ui/studies/{uid}/verification")) {
                    (form_token(visitor))
                    button { "Verify against the ledger" }
                }
            }
        }
    }
}

fn identity(study: &Study) -> Markup {
    let (row, info) = (&study.row, study.found.info.as_ref());
    let (tone, state) = words::state(row);
    let versions = if row.version > 1 { format!(", version {}", row.version) } else { String::new() };
    html! {
        h2 { "Identity" }
        div class="card" {
            dl {
                dt { "State" } dd { (badge(tone, &state)) (progress(row)) }
                @if let Some(trouble) = &row.trouble { dt { "Held up" } dd { (badge(Tone::Bad, trouble)) } }
                dt { "Patient" } dd { (person(&row.patient_name)) }
                @if !row.patient_id.is_empty() { dt { "Patient ID" } dd { (row.patient_id) } }
                @if !row.description.is_empty() { dt { "Description" } dd { (row.description) } }
                dt { "Objects" }
                dd {
                    (row.instances) " in " (count(row.series, "series", "series")) ", " (bytes(row.bytes))
                    @if row.local < row.instances { ", " (row.local) " of them kept here" }
                }
                @if row.pieces > 0 { dt { "On the ledger" } dd { (row.pieces_seen) " of " (count(row.pieces, "piece", "pieces")) (versions) } }
                dt { "Study UID" } dd class="mono" { (study.uid) }
                @if let Some(id) = study.found.study_id { dt { "Name on the ledger" } dd class="mono" { (id) } }
                @if let Some(info) = info {
                    dt { "Owner" }
                    dd {
                        span class="mono" { (info.owner) }
                        @if info.custodial { ", whose key is kept for the patient" }
                    }
                    dt { "Source" } dd class="mono" { (info.source) }
                    @if info.tombstoned { dt { "Ended" } dd { (badge(Tone::Bad, "its owner wants it served no more")) } }
                }
            }
        }
    }
}

fn verification(study: &Study) -> Markup {
    html! {
        div id="verification" {
            @match &study.verification {
                None => {}
                Some(Verification { asked_s, ended: None }) => {
                    h2 { "Verification" }
                    p { "The objects are being compared with the ledger since " (moment(*asked_s)) ". " a href=(format!("/ui/studies/{}#verification", study.uid)) { "Look again" } }
                }
                Some(Verification { ended: Some(Ended { at_s, verdicts }), .. }) => {
                    h2 { "Verification" }
                    div class="card" {
                        @match verdicts {
                            Ok(verdicts) => { (compared(verdicts)) }
                            Err(why) => { p { (badge(Tone::Bad, "not compared")) " " (layout::sentence(why)) "." } }
                        }
                        p class="dim" { "Compared " (moment(*at_s)) }
                    }
                }
            }
        }
    }
}

fn compared(verdicts: &[Verdict]) -> Markup {
    let wrong: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.proven).collect();
    let all = verdicts.len() as u64;
    html! {
        @if wrong.is_empty() {
            p { (badge(Tone::Good, "proven")) " The ledger has " (count(all, "object", "objects")) ", each exactly as it was received." }
        } @else {
            p { (badge(Tone::Bad, "not proven")) " Of " (count(all, "object", "objects")) " " (wrong.len()) " cannot be proven." }
            ul {
                @for verdict in wrong.iter().take(VERDICTS_MAX) {
                    li { span class="mono" { (verdict.sop_instance) } ": here " (file_words(&verdict.file)) ", on the ledger " (ledger_words(&verdict.ledger)) }
                }
                @if wrong.len() > VERDICTS_MAX { li { "and " (wrong.len() - VERDICTS_MAX) " more" } }
            }
        }
    }
}

fn file_words(word: &str) -> &str {
    match word {
        "same" => "as it was received",
        "evicted" => "not kept any more",
        "missing" => "missing although it should be here",
        "damaged" => "damaged",
        other => other,
    }
}

fn ledger_words(word: &str) -> &str {
    match word {
        "same" => "as it was received",
        "absent" => "not yet",
        "at source" => "by its digest",
        other => other,
    }
}

/// Something that happened.
struct Happened {
    at_ms: Option<i64>,
    /// What comes first of what happened in one second: the ledger's times have no smaller parts.
    rank: u8,
    title: String,
    words: Markup,
    now: bool,
}

impl Happened {
    fn new(at_ms: Option<i64>, rank: u8, title: &str, words: Markup) -> Self {
        Self { at_ms, rank, title: title.to_owned(), words, now: false }
    }
}

fn timeline(study: &Study) -> Markup {
    let mut all = arrival(study);
    all.extend(study.history.iter().map(said));
    // What is without a time stays behind what it came after.
    let mut last = 0;
    let mut placed: Vec<(u64, Happened)> = Vec::with_capacity(all.len());
    for one in all {
        last = one.at_ms.map_or(last, seconds);
        placed.push((if one.now { u64::MAX } else { last }, one));
    }
    placed.sort_by_key(|(at, one)| (*at, one.rank));
    html! {
        h2 { "What happened" }
        ol class="line" {
            @for (_, one) in &placed {
                li class=[one.now.then_some("now")] {
                    b { (one.title) } " " (one.words)
                    @if let Some(at_ms) = one.at_ms { (stamp(seconds(at_ms))) }
                }
            }
        }
    }
}

/// What this site knows by itself: from the first object to the last piece.
fn arrival(study: &Study) -> Vec<Happened> {
    let (row, summary) = (&study.row, &study.summary);
    let version = if row.version > 1 { format!(", version {}", row.version) } else { String::new() };
    let objects = count(row.instances, "object", "objects");
    let (title, words) = match row.state {
        Way::Granted => ("Let in", html! { "by its owner: another site's study, " (objects) }),
        _ => ("Received", html! { "the first of " (objects) }),
    };
    let mut all = vec![Happened::new(Some(summary.received_ms), 0, title, words)];
    if summary.changed_ms - summary.received_ms > 1000 && row.state != Way::Granted {
        let words = html! { "the last object so far" };
        all.push(Happened::new(Some(summary.changed_ms), 1, "Received", words));
    }
    let took = |ms: Option<i64>| ms.map(|ms| format!(", after {:.1} s", ms.max(0) as f64 / 1000.0)).unwrap_or_default();
    if let Some(at) = summary.viewable_ms {
        let words = html! { "on the ledger: it can be looked at" (version) (took(row.viewable_after_ms)) };
        all.push(Happened::new(Some(at), 3, "Preview", words));
    }
    if let Some(at) = summary.final_ms {
        let pieces = count(row.pieces, "piece", "pieces");
        let words = html! { "all " (pieces) " are on the ledger" (version) (took(row.final_after_ms)) };
        all.push(Happened::new(Some(at), 4, "Final", words));
    } else if row.state != Way::Granted && row.state != Way::Archived {
        let (_, state) = words::state(row);
        all.push(Happened { now: true, ..Happened::new(None, 0, "Now", html! { (state) }) });
    }
    all
}

/// What was said on the ledger.
fn said(row: &TraceRow) -> Happened {
    let title = match row.event.as_str() {
        "created" => "Defined",
        "requested" => "Access asked",
        "accepted" => "Access allowed",
        "denied" => "Access refused",
        "removed" if row.account.is_some() => "Access stopped",
        "removed" => "Ended",
        "glass broken" => "Emergency access",
        "transferred" => "Handed over",
        "keys asked" => "Keys asked",
        "keys delivered" => "Keys delivered",
        other => other,
    };
    let to = match row.event.as_str() {
        "created" => "on the ledger for",
        "transferred" => "to",
        _ => "by",
    };
    let to = if matches!(row.event.as_str(), "accepted" | "denied" | "removed" | "keys delivered") { "to" } else { to };
    let words = html! {
        @if let Some(account) = &row.account { (to) " " (named(account)) ": " }
        (row.detail)
        div class="dim" { "transaction " span class="mono" title=(row.transaction) { (short(&row.transaction)) } ", block " (row.block) }
    };
    let at_ms = row.time_s.and_then(|at| i64::try_from(at).ok()).map(|at| at * 1000);
    let rank = if row.event == "created" { 2 } else { 5 };
    Happened::new(at_ms, rank, &layout::sentence(title), words)
}

fn named(account: &str) -> Markup {
    html! { span class="mono" title=(account) { (short(account)) } }
}

fn stamp(unix_s: u64) -> Markup {
    html! { time datetime=(machine_time(unix_s)) { (time(unix_s)) } }
}

/// A time, and how long ago it is.
fn moment(unix_s: u64) -> Markup {
    let ago = now_s().saturating_sub(unix_s);
    html! { time datetime=(machine_time(unix_s)) { (time(unix_s)) } ", " (span(ago)) " ago" }
}

fn readers(api: &Api, visitor: &Visitor, study: &Study) -> Markup {
    let custodial = study.found.info.is_some_and(|info| info.custodial && !info.tombstoned);
    let decides = custodial && api.access().signs_in_custody(visitor.known.caller());
    let now = now_s();
    let grants: Vec<&Grant> =
        study.grants.iter().filter(|grant| grant.asked != Asked::Open || grant.mode_at(now).is_some()).collect();
    html! {
        h2 { "Who can read it" }
        @if !study.requests.is_empty() {
            @for request in &study.requests { (asked(visitor, study, request, decides)) }
        }
        @if grants.is_empty() {
            p { "Nobody but this site and the study's owner." }
        } @else {
            div class="scroll" tabindex="0" role="region" aria-label="Who can read it" {
                table {
                    thead { tr { th scope="col" { "Who" } th scope="col" { "May read" } th scope="col" { "Until" } @if decides { th scope="col" { "Do" } } } }
                    tbody { @for grant in &grants { (reader(visitor, study, grant, decides, now)) } }
                }
            }
        }
        @if decides { (allow(visitor, study, now)) (own_key(visitor, study)) }
        @else if visitor.may(api, Right::Decide) && study.found.info.is_some() {
            p class="dim" {
                "Only the owner's own key decides who may read this study."
                @if visitor.owner().is_some() { " " a href=(consent::PATH) { "Who may see my images" } }
            }
        }
    }
}

fn reader(visitor: &Visitor, study: &Study, grant: &Grant, decides: bool, now: u64) -> Markup {
    let account = grant.grantee.to_string();
    let sees = match grant.mode_at(now) {
        Some(Mode::Full) if grant.series.is_zero() => (Tone::Good, "everything".to_owned()),
        Some(Mode::Full) => (Tone::Good, "one series".to_owned()),
        Some(Mode::Preview) => (Tone::Good, "previews".to_owned()),
        None => (Tone::Bad, format!("nothing: {}", grant_state(grant, now))),
    };
    let allowed = grant.decision == Decision::Allowed;
    html! {
        tr {
            td { (named(&account)) }
            td {
                (badge(sees.0, &sees.1))
                @if allowed && grant.purpose != 0 { div class="dim" { "for " (purpose_word(grant.purpose)) } }
            }
            td class="time" {
                @if grant.emergency_at(now) { (time(grant.emergency_until)) " (emergency)" }
                @else if allowed && grant.not_after > 253_402_300_799 { "it is stopped" }
                @else if allowed { (time(grant.not_after)) }
                @else { "–" }
            }
            @if decides {
                td {
                    @if allowed {
                        details {
                            summary { "Stop" }
                            p { "They get nothing more of this study. What they have copied already cannot be called back." }
                            (decision(visitor, study, "revoke", &account, &html! { button class="danger" { "Stop access" } }))
                        }
                    }
                }
            }
        }
    }
}

fn asked(visitor: &Visitor, study: &Study, request: &AccessRequest, decides: bool) -> Markup {
    let account = request.grantee.to_string();
    let wish = if request.mode == Mode::Full { "everything" } else { "previews" };
    html! {
        div class="card req" {
            p {
                (badge(Tone::Bad, "access asked")) " " (named(&account)) " asks for " (wish)
                @if request.purpose != 0 { ", for " (purpose_word(request.purpose)) }
                @if !request.known { ". This account is no active site of the consortium" }
                "."
            }
            @if decides {
                div class="row" {
                    (decision(visitor, study, "allow", &account, &html! {
                        input type="hidden" name="mode" value=(if request.mode == Mode::Full { "full" } else { "preview" });
                        (until(now_s()))
                        button class="primary" { "Allow" }
                    }))
                    (decision(visitor, study, "deny", &account, &html! { button class="danger" { "Do not allow" } }))
                }
            }
        }
    }
}

/// Who had to do with the study lately, each once with what he did last.
fn lately(api: &Api, study: &Study) -> Markup {
    let mut seen = HashSet::new();
    let known = study.lately.iter().flatten().filter_map(|row| {
        let did = match row.event.as_str() {
            "DICOM Instances Transferred" => "sent or got objects",
            "DICOM Instances Accessed" => "looked at it",
            "Export" => "got documents, objects or keys",
            "Import" => "brought it here",
            _ => return None,
        };
        let who = row.who.iter().find(|who| *who != api.ae_title())?;
        seen.insert((who.clone(), did)).then_some((row, who, did))
    });
    let known: Vec<_> = known.take(LATELY_MAX).collect();
    html! {
        @if study.lately.is_some() {
            h2 { "Lately" }
            @if known.is_empty() {
                p { "The end of the audit trail says nothing of it." }
            } @else {
                div class="scroll" tabindex="0" role="region" aria-label="Lately" {
                    table {
                        thead { tr { th scope="col" { "Who" } th scope="col" { "Did" } th scope="col" { "Last" } } }
                        tbody {
                            @for (row, who, did) in &known {
                                tr {
                                    td { (who) }
                                    td { (did) }
                                    td class="time" { time datetime=(row.time) { (clock(&row.time)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A time of the audit trail as pages have it.
pub(super) fn clock(time: &str) -> String {
    let whole = time.split(['.', 'Z']).next().unwrap_or_default();
    format!("{} UTC", whole.replacen('T', " ", 1))
}

/// A form that lets a site of the consortium read the study.
fn allow(visitor: &Visitor, study: &Study, now: u64) -> Markup {
    let source = study.found.info.map(|info| info.source);
    let others: Vec<&SourceInfo> =
        study.sources.iter().filter(|other| other.active && Some(other.identity) != source).collect();
    html! {
        @if !others.is_empty() {
            details class="card" {
                summary { "Allow a site to read it" }
                form class="stack" method="post" action=(format!("/ui/studies/{}/decisions", study.uid)) {
                    (form_token(visitor))
                    input type="hidden" name="kind" value="allow";
                    label {
                        "Site"
                        select name="grantee" {
                            @for other in &others { option value=(other.identity) { (short(&other.identity.to_string())) " " (other.endpoint) } }
                        }
                    }
                    label {
                        "May read"
                        select name="mode" { option value="full" { "everything" } option value="preview" { "previews" } }
                    }
                    (until(now))
                    button class="primary" { "Allow" }
                }
            }
        }
    }
}

/// A form that makes a code for the patient.
fn own_key(visitor: &Visitor, study: &Study) -> Markup {
    html! {
        details class="card" {
            summary { "Let the patient decide" }
            p { "With a code the patient takes the study over: from then on only the patient's own key says who may read it." }
            form method="post" action=(format!("/ui/studies/{}/code", study.uid)) { (form_token(visitor)) button { "Make a code to print" } }
        }
    }
}

pub(super) fn until(now: u64) -> Markup {
    html! {
        label { "Until" input type="date" name="until" required min=(day_of(now)) value=(day_of(now + OFFERED_DAYS * 86_400)); }
    }
}

/// A form that decides something about one account.
fn decision(visitor: &Visitor, study: &Study, kind: &str, account: &str, rest: &Markup) -> Markup {
    html! {
        form class="row" method="post" action=(format!("/ui/studies/{}/decisions", study.uid)) {
            (form_token(visitor))
            input type="hidden" name="kind" value=(kind);
            input type="hidden" name="grantee" value=(account);
            (rest)
        }
    }
}
