//! The list of studies: the newest first, by what is in the URL.

use std::collections::{HashMap, HashSet};

use alloy::primitives::B256;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Element, Tag, VR};
use dicom_scp::matching::{Criterion, Key, Query};
use maud::{Markup, html};
use sha2::{Digest as _, Sha256};

use super::layout::{self, Place, badge};
use super::picture::{self, Shown};
use super::visitor::{Fields, Visitor};
use super::words::{self, Tone};
use super::{Pages, START};
use crate::access::{Principal, Right, Visible};
use crate::archive::Stage;
use crate::dicomweb::{owned, relational, shared_study};
use crate::follow::Asked;
use crate::http::{Api, Problem, blocking, now_s};
use crate::site::{Site, State as Way, StudyRow};

/// Studies of a page.
const PAGE: usize = 48;
/// Longest text to look for, in bytes.
const TEXT_MAX: usize = 64;
/// What is offered; others can be named in the URL.
const MODALITIES: [&str; 14] = ["CR", "CT", "DX", "ES", "IO", "MG", "MR", "NM", "OT", "PT", "RF", "US", "XA", "XC"];
/// States to look for, and what they are called.
const STATES: [(&str, &str); 5] = [
    ("receiving", "receiving"),
    ("writing", "being written"),
    ("final", "final"),
    ("granted", "from another site"),
    ("asked", "access asked"),
];

const STUDY_UID: Tag = Tag(0x0020, 0x000D);

/// What is looked for, as it stands in the URL.
#[derive(Debug, Default)]
struct Filters(Fields);

impl Filters {
    const NAMES: [&'static str; 7] = ["patient", "id", "accession", "from", "to", "modality", "state"];

    fn get(&self, name: &str) -> &str {
        self.0.get(name)
    }

    fn is_any(&self) -> bool {
        Self::NAMES.iter().any(|name| !self.get(name).is_empty())
    }

    /// The list as it is filtered, from a place on.
    fn url(&self, before: Option<i64>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for name in Self::NAMES.into_iter().filter(|name| !self.get(name).is_empty()) {
            query.append_pair(name, self.get(name));
        }
        if let Some(before) = before {
            query.append_pair("before", &before.to_string());
        }
        let query = query.finish();
        if query.is_empty() { START.to_owned() } else { format!("{START}?{query}") }
    }

    fn before(&self) -> Result<Option<i64>, Problem> {
        let text = self.get("before");
        let number = || text.parse().map(Some).map_err(|_| Problem::bad_request("this is no place in the list"));
        if text.is_empty() { Ok(None) } else { number() }
    }

    fn stage(&self) -> Option<Stage> {
        match self.get("state") {
            "receiving" => Some(Stage::Receiving),
            "writing" => Some(Stage::Writing),
            "final" => Some(Stage::Final),
            "granted" => Some(Stage::Granted),
            _ => None,
        }
    }

    /// The same as a query of DICOM. The error is for whoever filled it in.
    fn query(&self) -> Result<Query, String> {
        let mut keys = DataSet::new();
        keys.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
        keys.put(STUDY_UID, Element::empty(VR::UI));
        let mut put = |tag, vr, text: String| keys.put_text(tag, vr, &text);
        for (name, tag, vr) in [
            ("patient", Tag(0x0010, 0x0010), VR::PN),
            ("id", Tag(0x0010, 0x0020), VR::LO),
            ("accession", Tag(0x0008, 0x0050), VR::SH),
        ] {
            let text = self.get(name);
            if text.len() > TEXT_MAX {
                return Err(format!("at most {TEXT_MAX} letters can be looked for"));
            }
            if !text.is_empty() {
                put(tag, vr, wildcard(text));
            }
        }
        if !self.get("modality").is_empty() {
            put(Tag(0x0008, 0x0061), VR::CS, self.get("modality").to_uppercase());
        }
        let (from, to) = (day(self.get("from"))?, day(self.get("to"))?);
        if !(from.is_empty() && to.is_empty()) {
            put(Tag(0x0008, 0x0020), VR::DA, format!("{from}-{to}"));
        }
        Query::parse(&keys, &relational()).map_err(|failure| failure.to_string())
    }
}

/// What was typed, anywhere in the value; a name also as it is shown. Who writes wildcards has them as they are.
fn wildcard(text: &str) -> String {
    let plain = match text.split_once(',') {
        Some((family, given)) => format!("{}^{}", family.trim(), given.trim()),
        None => text.to_owned(),
    };
    let plain = plain.replace('\\', "?");
    if plain.contains(['*', '?']) { plain } else { format!("*{plain}*") }
}

/// A day as browsers write it, in DICOM's form.
fn day(text: &str) -> Result<String, String> {
    let digits: String = text.split('-').collect();
    let is_day = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if text.is_empty() || is_day { Ok(digits) } else { Err(format!("\"{text}\" is no day: write year-month-day")) }
}

/// A study on the page.
struct Card {
    row: StudyRow,
    cover: Option<Shown>,
    /// Requests for access that wait.
    asked: usize,
    /// Who may read it besides this site.
    readers: usize,
}

struct Found {
    cards: Vec<Card>,
    /// Where the next page begins.
    next: Option<i64>,
}

pub(super) async fn list(
    State(api): State<Api>,
    visitor: Visitor,
    RawQuery(asked): RawQuery,
) -> Result<Response, Problem> {
    visitor.known.must(&api, Right::Find)?;
    let filters = Filters(Fields::parse(asked.unwrap_or_default().as_bytes()));
    let before = filters.before()?;
    let (found, wrong) = match filters.query() {
        Ok(query) => (look(&api, &visitor, query, &filters, before).await?, None),
        Err(wrong) => (Found { cards: Vec::new(), next: None }, Some(wrong)),
    };
    let content = html! {
        h1 { "Studies" }
        (filled(&filters))
        @if let Some(wrong) = &wrong { p class="notice bad" role="alert" { (layout::sentence(wrong)) "." } }
        p class="dim" id="status" role="status" { (status(&found.cards, &filters)) }
        ul class="grid" id="studies" data-live=[(before.is_none()).then_some("list")] {
            @for card in &found.cards { (shown(card)) }
        }
        nav class="row" id="pages" aria-label="Pages" {
            @if before.is_some() { a class="btn" href=(filters.url(None)) { "Newest studies" } }
            @if let Some(next) = found.next { a class="btn" rel="next" href=(filters.url(Some(next))) { "Older studies" } }
        }
    };
    Ok(layout::page(&api, &visitor, Place::Studies, "Studies", &content))
}

async fn look(
    api: &Api,
    visitor: &Visitor,
    mut query: Query,
    filters: &Filters,
    before: Option<i64>,
) -> Result<Found, Problem> {
    let visible = api.access().sees(visitor.known.caller(), Right::Find);
    let pictures = visitor.may(api, Right::Retrieve);
    let operator = visitor.known.caller().principal == Principal::Operator;
    let (stage, only_asked) = (filters.stage(), filters.get("state") == "asked");
    let sees_consent = api.access().sees_consent(visitor.known.caller());
    let here = api.clone();
    blocking(move || {
        let site = here.site();
        let requests = open_requests(site, visible)?;
        let mut only = match visible {
            Visible::Everything | Visible::All => None,
            Visible::OwnedBy(owner) => Some(owned(owner, site.archive(), site.consents())?),
            Visible::Shared(shared) => Some(shared_study(&shared, site.archive(), site.consents())?),
            Visible::Nothing => Some(Vec::new()),
        };
        if only_asked {
            let asked = uids(site, requests.keys())?;
            only = Some(match only {
                Some(own) => own.into_iter().filter(|uid| asked.contains(uid)).collect(),
                None => asked.into_iter().collect(),
            });
        }
        if only.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Found { cards: Vec::new(), next: None });
        }
        if let Some(only) = only {
            query.keys.insert(STUDY_UID, Key { vr: VR::UI, criterion: Criterion::UidList(only) });
        }
        let mut summaries = site.archive().newest(&query, stage, before, PAGE + 1)?;
        let more = summaries.len() > PAGE;
        summaries.truncate(PAGE);
        let next = summaries.last().map(|last| last.number).filter(|_| more);
        let numbers: Vec<i64> = summaries.iter().map(|summary| summary.number).collect();
        let covers = if pictures { site.archive().covers(&numbers)? } else { vec![None; numbers.len()] };
        let mut cards = Vec::with_capacity(summaries.len());
        for (summary, cover) in summaries.into_iter().zip(covers) {
            let study_id = summary.study_id.unwrap_or_default();
            let mut row = site.row_of(summary);
            row.trouble = row.trouble.filter(|_| operator);
            cards.push(Card {
                cover: cover.map(|cover| shown_picture(here.pages(), site, &row.uid, cover)).transpose()?,
                asked: requests.get(&study_id).copied().unwrap_or_default(),
                readers: if sees_consent { readers(site, study_id)? } else { 0 },
                row,
            });
        }
        Ok(Found { cards, next })
    })
    .await?
}

fn shown_picture(pages: &Pages, site: &Site, uid: &str, cover: crate::archive::Picture) -> Result<Shown, Problem> {
    let uid = Uid::new(uid).map_err(|_| Problem::not_found())?;
    let blur = pages.blurs.of(site.archive(), &uid, &cover.id)?;
    Ok(Shown { picture: cover, blur })
}

/// How many requests wait for each study that somebody sees.
fn open_requests(site: &Site, visible: Visible) -> Result<HashMap<B256, usize>, Problem> {
    let requests = match visible {
        Visible::Nothing | Visible::Shared(_) => Vec::new(),
        Visible::OwnedBy(owner) => site.consents().requests_to(owner)?,
        Visible::Everything | Visible::All => site.consents().requests(None)?,
    };
    let mut open = HashMap::new();
    for request in requests.iter().filter(|request| request.asked == Asked::Open) {
        *open.entry(request.study_id).or_default() += 1;
    }
    Ok(open)
}

fn uids<'a>(site: &Site, ids: impl Iterator<Item = &'a B256>) -> Result<HashSet<Uid>, Problem> {
    let mut found = HashSet::new();
    for id in ids {
        found.extend(site.archive().names_of_id(id)?.map(|names| names.uid));
    }
    Ok(found)
}

fn readers(site: &Site, study_id: B256) -> Result<usize, Problem> {
    if study_id.is_zero() {
        return Ok(0);
    }
    let now = now_s();
    Ok(site.consents().grants_of(study_id)?.iter().filter(|grant| grant.mode_at(now).is_some()).count())
}

fn status(cards: &[Card], filters: &Filters) -> String {
    let arriving = cards.iter().filter(|card| card.row.state == Way::Receiving).count() as u64;
    let which = if filters.is_any() { " found" } else { "" };
    let shown = match cards.len() as u64 {
        0 if filters.is_any() => "No study found.".to_owned(),
        0 => "No studies yet.".to_owned(),
        number => format!("{}{which}, the newest first.", words::count(number, "study", "studies")),
    };
    if arriving > 0 { format!("{shown} {arriving} arriving now.") } else { shown }
}

fn filled(filters: &Filters) -> Markup {
    let chosen = filters.get("modality").to_uppercase();
    let other = (!chosen.is_empty() && !MODALITIES.contains(&chosen.as_str())).then_some(chosen.as_str());
    let text = |label: &str, name: &str| {
        html! { label { (label) input name=(name) value=(filters.get(name)) maxlength=(TEXT_MAX) autocomplete="off"; } }
    };
    let date = |label: &str, name: &str| {
        html! { label { (label) input type="date" name=(name) value=(filters.get(name)); } }
    };
    html! {
        form class="filters" role="search" aria-label="Studies" method="get" action=(START) {
            (text("Patient name", "patient"))
            (text("Patient ID", "id"))
            (text("Accession number", "accession"))
            (date("From", "from"))
            (date("To", "to"))
            label {
                "Modality"
                select name="modality" {
                    option value="" { "any" }
                    @for modality in MODALITIES.into_iter().chain(other) {
                        option selected[modality == chosen] { (modality) }
                    }
                }
            }
            label {
                "State"
                select name="state" {
                    option value="" { "any" }
                    @for (value, words) in STATES { option value=(value) selected[value == filters.get("state")] { (words) } }
                }
            }
            button class="primary" { "Search" }
            @if filters.is_any() { a class="btn" href=(START) { "Clear" } }
        }
    }
}

fn shown(card: &Card) -> Markup {
    let row = &card.row;
    let (tone, state) = words::state(row);
    let content = html! {
        a href=(format!("/ui/studies/{}", row.uid)) {
            (picture::markup(&row.uid, card.cover.as_ref(), ""))
            div class="txt" {
                div class="name" { (words::person(&row.patient_name)) }
                div class="dim" {
                    @if !row.patient_id.is_empty() { "ID " (row.patient_id) " · " }
                    (row.modalities.join(", ")) " · " (words::date(&row.study_date))
                }
                div class="dim" {
                    (words::count(row.series, "series", "series")) ", " (words::count(row.instances, "object", "objects"))
                }
                div class="badges" {
                    (badge(tone, &state))
                    @if card.asked > 0 { " " (badge(Tone::Bad, &format!("access asked by {}", card.asked))) }
                    @if card.readers > 0 { " " (badge(Tone::Good, &format!("readable by {}", words::count(card.readers as u64, "other", "others")))) }
                    @if row.trouble.is_some() { " " (badge(Tone::Bad, "held up")) }
                }
                (progress(row))
            }
        }
    };
    let digest = hex::encode(&Sha256::digest(content.0.as_bytes())[..8]);
    html! { li class="card study" data-study=(row.uid) data-state=(digest) { (content) } }
}

/// How much of a study is on the ledger, while it is on its way.
pub(super) fn progress(row: &StudyRow) -> Markup {
    let going = matches!(row.state, Way::Publishing | Way::Viewable) && row.pieces > 0;
    html! {
        @if going {
            progress max=(row.pieces) value=(row.pieces_seen) aria-label="pieces written" {
                (row.pieces_seen) " of " (row.pieces)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filters(query: &str) -> Filters {
        Filters(Fields::parse(query.as_bytes()))
    }

    #[test]
    fn what_is_typed_is_looked_for_anywhere_in_the_value() {
        assert_eq!(
            (wildcard("doe"), wildcard("doe*"), wildcard("Doe, Jane")),
            ("*doe*".into(), "doe*".into(), "*Doe^Jane*".into())
        );
        assert_eq!(wildcard("a\\b"), "a?b", "a backslash would part two values");
        let query = filters("patient=doe&from=2003-04-17&modality=ct").query().unwrap();
        let is = |tag, what: &str| {
            assert!(format!("{:?}", query.criterion(tag)).starts_with(what), "{:?}", query.criterion(tag))
        };
        is(Tag(0x0010, 0x0010), "Wildcard");
        is(Tag(0x0008, 0x0020), "DateRange");
        is(Tag(0x0008, 0x0061), "Single");
        assert!(filters("from=yesterday").query().unwrap_err().contains("no day"));
        assert!(filters(&format!("id={}", "x".repeat(65))).query().is_err());
        assert!(filters("from=2003-13-99").query().is_err(), "no such month");
    }

    #[test]
    fn pages_keep_what_is_looked_for() {
        let filters = filters("patient=%22%3E%26&to=&state=final&before=7&other=1");
        assert_eq!(filters.url(Some(5)), "/ui/?patient=%22%3E%26&state=final&before=5");
        assert_eq!(
            (filters.url(None), Filters::default().url(None)),
            ("/ui/?patient=%22%3E%26&state=final".into(), "/ui/".into())
        );
        assert_eq!(filters.before().unwrap(), Some(7));
    }
}
