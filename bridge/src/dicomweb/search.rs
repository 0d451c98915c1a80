//! QIDO-RS (PS3.18 10.6): from query parameters to the query that C-FIND has too, and from matches to the JSON model.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _};
use dicom_dictionary_std::StandardDataDictionary;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, dictionary_vr};
use dicom_scp::matching::{Criterion, Key, Level, Query};

use super::ask::{Ask, Target, owned, relational, shared_study};
use super::{body, json};
use crate::access::{Right, Visible};
use crate::archive::{Fields, level_of};
use crate::http::{Api, Problem, blocking};

/// Matches of one answer, unless fewer are asked for; the answer says when there are more.
const MATCHES_MAX: usize = 5_000;
/// Attributes that one search may name.
const KEYS_MAX: usize = 256;
/// How deep in sequences an attribute may be named.
const DEPTH_MAX: usize = 8;

const QUERY_RETRIEVE_LEVEL: Tag = Tag(0x0008, 0x0052);
const RETRIEVE_AE_TITLE: Tag = Tag(0x0008, 0x0054);
const RETRIEVE_URL: Tag = Tag(0x0008, 0x1190);
const STUDY_UID: Tag = Tag(0x0020, 0x000D);
const SERIES_UID: Tag = Tag(0x0020, 0x000E);
const INSTANCE_UID: Tag = Tag(0x0008, 0x0018);

/// What every answer has (PS3.18 tables 10.6.3-3 to 10.6.3-5), as far as a request has it.
const OF_STUDIES: &[Tag] = &[
    Tag(0x0008, 0x0020),
    Tag(0x0008, 0x0030),
    Tag(0x0008, 0x0050),
    Tag(0x0008, 0x0061),
    Tag(0x0008, 0x0090),
    Tag(0x0010, 0x0010),
    Tag(0x0010, 0x0020),
    Tag(0x0010, 0x0030),
    Tag(0x0010, 0x0040),
    STUDY_UID,
    Tag(0x0020, 0x0010),
    Tag(0x0020, 0x1206),
    Tag(0x0020, 0x1208),
];
const OF_SERIES: &[Tag] = &[
    Tag(0x0008, 0x0060),
    Tag(0x0008, 0x103E),
    SERIES_UID,
    Tag(0x0020, 0x0011),
    Tag(0x0020, 0x1209),
    Tag(0x0040, 0x0244),
    Tag(0x0040, 0x0245),
    Tag(0x0040, 0x0275),
];
const OF_INSTANCES: &[Tag] = &[
    Tag(0x0008, 0x0016),
    INSTANCE_UID,
    Tag(0x0020, 0x0013),
    Tag(0x0028, 0x0008),
    Tag(0x0028, 0x0010),
    Tag(0x0028, 0x0011),
    Tag(0x0028, 0x0100),
];

/// Studies that match.
pub(super) async fn studies(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    search(api, ask, Level::Study).await
}

/// Series that match, of one study or of all.
pub(super) async fn series(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    search(api, ask, Level::Series).await
}

/// Objects that match, of one series or study or of all.
pub(super) async fn instances(State(api): State<Api>, ask: Ask) -> Result<Response, Problem> {
    search(api, ask, Level::Image).await
}

async fn search(api: Api, ask: Ask, level: Level) -> Result<Response, Problem> {
    ask.known.must(&api, Right::Find)?;
    let Some(media_type) = ask.accepted.one_of(&["application/dicom+json", "application/json"]) else {
        return Err(Problem::not_acceptable("search results are in application/dicom+json"));
    };
    let mut search = Search::parse(level, &ask.target, &ask.parameters).map_err(Problem::bad_request)?;
    let (here, known, root) = (api.clone(), ask.known.clone(), ask.url_root());
    let found = blocking(move || {
        let (archive, consents) = (here.site().archive(), here.site().consents());
        match here.access().sees(known.caller(), Right::Find) {
            Visible::Everything | Visible::All => {}
            Visible::OwnedBy(owner) => {
                let owned = owned(owner, archive, consents)?;
                search.only(owned);
            }
            Visible::Shared(shared) => search.only(shared_study(&shared, archive, consents)?),
            Visible::Nothing => search.only(Vec::new()),
        }
        search.run(archive, here.ae_title(), &root)
    });
    let Found { json, matches, more } = found.await??;
    let mut response = match matches {
        0 => StatusCode::NO_CONTENT.into_response(),
        _ => body::answer(media_type, None, json),
    };
    let mut warn = |text: &str| {
        if let Ok(value) = HeaderValue::from_str(&format!("299 pacs-bridge \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    };
    // The words of PS3.18 8.3.4.6 and 8.3.4.4.
    if ask.parameter("fuzzymatching") == Some("true") {
        warn("The fuzzymatching parameter is not supported. Only literal matching has been performed.");
    }
    if more {
        warn("There are additional results that can be requested");
    }
    Ok(response)
}

/// A search, understood.
#[derive(Debug)]
struct Search {
    query: Query,
    fields: Fields,
    offset: usize,
    limit: usize,
    nothing: bool,
}

struct Found {
    json: Vec<u8>,
    matches: usize,
    more: bool,
}

impl Search {
    /// The error is for the client.
    fn parse(level: Level, target: &Target, parameters: &[(String, String)]) -> Result<Self, String> {
        let mut keys = DataSet::new();
        let (mut fields, mut offset, mut limit, mut named) = (Fields::Asked, 0, MATCHES_MAX, 0);
        for tag in returned(level, target) {
            keys.put(tag, Element::empty(dictionary_vr(tag).unwrap_or(VR::UN)));
        }
        for (name, value) in parameters {
            match name.as_str() {
                "limit" => limit = number(name, value)?.min(MATCHES_MAX),
                "offset" => offset = number(name, value)?,
                "fuzzymatching" if matches!(value.as_str(), "true" | "false") => {}
                "fuzzymatching" => return Err("fuzzymatching must be true or false".into()),
                "includefield" => {
                    for field in value.split(',').map(str::trim).filter(|field| !field.is_empty()) {
                        if field == "all" {
                            fields = Fields::All;
                            continue;
                        }
                        named += 1;
                        include(&mut keys, &path(field)?);
                    }
                }
                _ => {
                    named += 1;
                    let path = path(name)?;
                    check_level(&path, level, name)?;
                    put(&mut keys, &path, value)?;
                }
            }
            if named > KEYS_MAX {
                return Err(format!("more than {KEYS_MAX} attributes are named"));
            }
        }
        for (level, uid) in [(Level::Study, target.study), (Level::Series, target.series)] {
            if let Some(uid) = uid {
                keys.put_uid(level.unique_key(), &uid);
            }
        }
        keys.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, level.as_str());
        let query = Query::parse(&keys, &relational()).map_err(|failure| failure.to_string())?;
        Ok(Self { query, fields, offset, limit, nothing: false })
    }

    /// Leaves only these studies.
    fn only(&mut self, studies: Vec<dicom_scp::Uid>) {
        let left = match self.query.criterion(STUDY_UID) {
            Criterion::UidList(asked) => asked.iter().filter(|uid| studies.contains(uid)).copied().collect(),
            _ => studies,
        };
        self.nothing = left.is_empty();
        self.query.keys.insert(STUDY_UID, Key { vr: VR::UI, criterion: Criterion::UidList(left) });
    }

    fn run(&self, archive: &crate::archive::Archive, ae_title: &str, root: &str) -> Result<Found, Problem> {
        let mut found = Found { json: b"[".to_vec(), matches: 0, more: false };
        if self.nothing {
            return Ok(found);
        }
        let mut skipped = 0;
        archive.search_for(&self.query, self.fields, ae_title, |mut answer| {
            if skipped < self.offset {
                skipped += 1;
                return true;
            }
            if found.matches == self.limit {
                found.more = true;
                return false;
            }
            if found.matches > 0 {
                found.json.push(b',');
            }
            found.matches += 1;
            answer.remove(QUERY_RETRIEVE_LEVEL);
            answer.remove(RETRIEVE_AE_TITLE);
            if let Some(url) = url(&answer, self.query.level, root) {
                answer.put_text(RETRIEVE_URL, VR::UR, &url);
            }
            json::write(&answer, None, &mut found.json);
            true
        })?;
        found.json.push(b']');
        Ok(found)
    }
}

/// The attributes that are returned without being asked for: those of the level, and those above it that the path does not name.
fn returned(level: Level, target: &Target) -> Vec<Tag> {
    let mut tags = match level {
        Level::Patient | Level::Study => OF_STUDIES.to_vec(),
        Level::Series => OF_SERIES.to_vec(),
        Level::Image => OF_INSTANCES.to_vec(),
    };
    if level >= Level::Series {
        tags.push(STUDY_UID);
        if target.study.is_none() {
            tags.extend(OF_STUDIES);
        }
    }
    if level == Level::Image {
        tags.push(SERIES_UID);
        if target.series.is_none() {
            tags.extend(OF_SERIES);
        }
    }
    tags
}

/// Where what an answer describes is retrieved.
fn url(answer: &DataSet, level: Level, root: &str) -> Option<String> {
    let mut url = format!("{root}/studies/{}", answer.text(STUDY_UID)?);
    if level >= Level::Series {
        url.push_str(&format!("/series/{}", answer.text(SERIES_UID)?));
    }
    if level == Level::Image {
        url.push_str(&format!("/instances/{}", answer.text(INSTANCE_UID)?));
    }
    Some(url)
}

fn number(name: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("{name} must be a number that is not negative, found \"{value}\""))
}

/// The tags of an attribute named by keyword or number, of an item of a sequence with dots in between (PS3.18 8.3.4.1.1).
fn path(name: &str) -> Result<Vec<Tag>, String> {
    let tags: Result<Vec<Tag>, String> = name.split('.').map(tag).collect();
    let tags = tags?;
    match tags.len() {
        1..=DEPTH_MAX => Ok(tags),
        _ => Err(format!("\"{name}\" is deeper than {DEPTH_MAX} levels")),
    }
}

/// Whether a name is that of an attribute of the standard, or its tag.
pub(super) fn is_attribute(name: &str) -> bool {
    path(name).is_ok()
}

fn tag(name: &str) -> Result<Tag, String> {
    let digits = name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let (true, Ok(number)) = (digits, u32::from_str_radix(name, 16)) {
        return Ok(Tag((number >> 16) as u16, (number & 0xFFFF) as u16));
    }
    let known = StandardDataDictionary.by_name(name).map(|entry| entry.tag());
    known.ok_or_else(|| {
        format!(
            "\"{name}\" is neither a parameter of searches nor an attribute, by keyword or eight hexadecimal digits"
        )
    })
}

/// A search that ignored a condition would answer another question.
fn check_level(path: &[Tag], level: Level, name: &str) -> Result<(), String> {
    let Some(first) = path.first() else { return Ok(()) };
    let of = level_of(*first);
    if of <= level {
        return Ok(());
    }
    let (what, below) = match of {
        Level::Series => ("series", "/studies/{study}/series or /series"),
        _ => ("objects", "/studies/{study}/instances or /instances"),
    };
    let hint = if *first == Tag(0x0008, 0x0060) { "; of a study it is ModalitiesInStudy" } else { "" };
    Err(format!("\"{name}\" is an attribute of {what}: search in {below}{hint}"))
}

fn include(keys: &mut DataSet, path: &[Tag]) {
    let Some((tag, rest)) = path.split_first() else { return };
    let vr = dictionary_vr(*tag).unwrap_or(VR::UN);
    if rest.is_empty() {
        if !keys.contains(*tag) {
            keys.put(*tag, Element::empty(vr));
        }
        return;
    }
    // With one attribute of its items a sequence is returned whole.
    if !keys.contains(*tag) {
        keys.put(*tag, Element::empty(VR::SQ));
    }
}

/// Sets a key, in the one item of each sequence on the way.
fn put(keys: &mut DataSet, path: &[Tag], value: &str) -> Result<(), String> {
    let Some((tag, rest)) = path.split_first() else { return Ok(()) };
    let vr = dictionary_vr(*tag).unwrap_or(VR::UN);
    if !rest.is_empty() {
        let mut item = keys.items(*tag).and_then(|items| items.first()).cloned().unwrap_or_default();
        put(&mut item, rest, value)?;
        keys.put(*tag, Element::sequence(vec![item]));
        return Ok(());
    }
    match vr {
        VR::SQ if value.is_empty() => keys.put(*tag, Element::empty(VR::SQ)),
        VR::SQ => {
            return Err(format!("{} is a sequence: name an attribute of its items, after a dot", json::name(*tag)));
        }
        // Lists have commas here and backslashes on associations (PS3.18 8.3.4.1).
        VR::UI => keys.put_text(*tag, vr, &value.replace(',', "\\")),
        VR::US | VR::SS | VR::UL | VR::SL | VR::FL | VR::FD | VR::SV | VR::UV => {
            keys.put(*tag, Element::bytes(vr, binary(*tag, vr, value)?));
        }
        VR::OB | VR::OW | VR::OF | VR::OD | VR::OL | VR::OV | VR::AT if !value.is_empty() => {
            return Err(format!("{} has no values that can be searched for", json::name(*tag)));
        }
        // Whatever a private attribute is, it is searched for as text.
        VR::UN => keys.put_text(*tag, VR::LO, value),
        vr => keys.put_text(*tag, vr, value),
    }
    Ok(())
}

fn binary(tag: Tag, vr: VR, value: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for text in value.split(['\\', ',']).filter(|text| !text.is_empty()) {
        let fits = match vr {
            VR::US => text.parse::<u16>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::SS => text.parse::<i16>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::UL => text.parse::<u32>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::SL => text.parse::<i32>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::SV => text.parse::<i64>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::UV => text.parse::<u64>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            VR::FL => text.parse::<f32>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
            _ => text.parse::<f64>().map(|n| bytes.extend(n.to_le_bytes())).is_ok(),
        };
        if !fits {
            return Err(format!("{} is a number, found \"{text}\"", json::name(tag)));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(level: Level, parameters: &[(&str, &str)]) -> Result<Search, String> {
        let parameters: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Search::parse(level, &Target::default(), &parameters)
    }

    #[test]
    fn names_numbers_lists_and_sequences_are_understood() {
        let search = parsed(
            Level::Image,
            &[
                ("PatientName", "A*"),
                ("00100020", "*x*"),
                ("StudyInstanceUID", "1.2,1.3"),
                ("Rows", "512"),
                ("RequestAttributesSequence.ScheduledProcedureStepID", "7"),
                ("00400275.00400009", "8"),
                ("includefield", "00081030,StudyTime"),
                ("includefield", "all"),
                ("limit", "7"),
                ("offset", "3"),
                ("fuzzymatching", "false"),
            ],
        );
        let search = search.unwrap();
        assert_eq!((search.limit, search.offset, search.fields), (7, 3, Fields::All));
        let is = |tag, what: &str| {
            assert!(
                format!("{:?}", search.query.criterion(tag)).starts_with(what),
                "{tag} {:?}",
                search.query.criterion(tag)
            )
        };
        is(Tag(0x0010, 0x0010), "Wildcard");
        is(Tag(0x0010, 0x0020), "Wildcard");
        is(Tag(0x0020, 0x000D), "UidList([Uid(1.2), Uid(1.3)])");
        is(Tag(0x0028, 0x0010), "Number([512.0])");
        is(Tag(0x0040, 0x0275), "Sequence");
        assert!(search.query.keys.contains_key(&Tag(0x0008, 0x1030)));
    }

    #[test]
    fn what_cannot_be_answered_as_asked_is_refused_with_words() {
        for (level, name, value, words) in [
            (Level::Study, "PatientNam", "x", "neither a parameter"),
            (Level::Study, "limit", "-1", "not negative"),
            (Level::Study, "Modality", "CT", "ModalitiesInStudy"),
            (Level::Series, "SOPInstanceUID", "1.2", "/instances"),
            (Level::Study, "StudyDate", "yesterday", "date"),
            (Level::Study, "StudyInstanceUID", "abc", "uid"),
            (Level::Image, "Rows", "many", "number"),
            (Level::Image, "fuzzymatching", "perhaps", "true or false"),
            (Level::Series, "RequestAttributesSequence", "1", "sequence"),
            (Level::Study, "a.b.c", "1", "neither"),
        ] {
            let refused = parsed(level, &[(name, value)]).unwrap_err();
            assert!(refused.contains(words), "{name}={value}: {refused}");
        }
    }

    #[test]
    fn an_owner_sees_what_he_asked_for_of_what_he_owns() {
        let uids = |texts: &[&str]| texts.iter().map(|t| dicom_scp::Uid::new(t).unwrap()).collect::<Vec<_>>();
        let mut asked = parsed(Level::Study, &[("StudyInstanceUID", "1.2,1.3")]).unwrap();
        asked.only(uids(&["1.3", "1.4"]));
        assert_eq!(asked.query.criterion(STUDY_UID), &Criterion::UidList(uids(&["1.3"])));
        let mut all = parsed(Level::Study, &[]).unwrap();
        all.only(uids(&["1.3"]));
        assert!(!all.nothing && all.query.criterion(STUDY_UID) == &Criterion::UidList(uids(&["1.3"])));
        asked.only(Vec::new());
        assert!(asked.nothing);
    }
}
