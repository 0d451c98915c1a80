#![allow(clippy::unwrap_used)]
use super::*;
use crate::status::{Operation, Status};
use proptest::prelude::*;

const NAME: Tag = Tag(0x0010, 0x0010);
const STUDY_DATE: Tag = Tag(0x0008, 0x0020);
const STUDY_TIME: Tag = Tag(0x0008, 0x0030);
const MODALITIES: Tag = Tag(0x0008, 0x0061);
const STUDY_ROOT: QueryContext = QueryContext { model: Model::StudyRoot, relational: false, combined_date_time: false };

fn with(elements: &[(Tag, VR, &str)]) -> DataSet {
    let mut data_set = DataSet::new();
    for (tag, vr, text) in elements {
        data_set.put_text(*tag, *vr, text);
    }
    data_set
}

fn study_query(elements: &[(Tag, VR, &str)]) -> Result<Query, Failure> {
    let mut identifier = with(elements);
    identifier.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, "STUDY");
    Query::parse(&identifier, &STUDY_ROOT)
}

fn hit(tag: Tag, vr: VR, key: &str, stored: &str) -> bool {
    matches(&with(&[(tag, vr, stored)]), &study_query(&[(tag, vr, key)]).unwrap())
}

/// The definition of wildcard matching, one step at a time.
fn naive(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), None) => naive(rest, text),
        (Some(('*', rest)), Some((_, text_rest))) => naive(rest, text) || naive(pattern, text_rest),
        (Some(('?', rest)), Some((_, text_rest))) => naive(rest, text_rest),
        (Some((p, rest)), Some((t, text_rest))) => p == t && naive(rest, text_rest),
        _ => false,
    }
}

proptest! {
    #[test]
    fn wildcards_agree_with_their_definition(pattern in "[ab%_*?]{1,8}", text in "[ab%_]{1,10}") {
        let chars = |s: &str| s.chars().collect::<Vec<char>>();
        prop_assert_eq!(hit(Tag(0x0008, 0x1030), VR::LO, &pattern, &text), naive(&chars(&pattern), &chars(&text)));
    }

    #[test]
    fn date_ranges_agree_with_the_order_of_text(a in 19000101u32..20991231, b in 19000101u32..20991231, d in 19000101u32..20991231) {
        let dates = [a, b, d].map(|n| Date::parse(&n.to_string()).map(|_| n.to_string()));
        if let [Some(a), Some(b), Some(d)] = dates {
            prop_assert_eq!(hit(STUDY_DATE, VR::DA, &format!("{a}-{b}"), &d), a <= d && d <= b);
            prop_assert_eq!(hit(STUDY_DATE, VR::DA, &format!("{a}-"), &d), a <= d);
            prop_assert_eq!(hit(STUDY_DATE, VR::DA, &format!("-{b}"), &d), d <= b);
            prop_assert_eq!(hit(STUDY_DATE, VR::DA, &a, &d), a == d);
        }
    }

    #[test]
    fn a_query_for_an_entitys_own_values_finds_it(name in "[A-Za-zäé^]{1,12}", id in "[ -)+-.0-9A-Z_%]{1,10}") {
        let entity = with(&[(NAME, VR::PN, &name), (PATIENT_ID, VR::LO, &id)]);
        let mut identifier = entity.clone();
        identifier.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, "STUDY");
        prop_assert!(matches(&entity, &Query::parse(&identifier, &STUDY_ROOT).unwrap()));
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "\\PC{0,20}", vr in 0usize..8) {
        let vr = [VR::PN, VR::DA, VR::TM, VR::DT, VR::UI, VR::IS, VR::CS, VR::LO][vr];
        for key in [text.clone(), format!("{text}-{text}"), format!("2026-{text}")] {
            if let Ok(query) = study_query(&[(NAME, vr, &key)]) {
                matches(&with(&[(NAME, vr, &text)]), &query);
            }
        }
    }
}

#[test]
fn person_names_ignore_case_and_keep_accents() {
    assert!(hit(NAME, VR::PN, "müller^h*", "MÜLLER^Hans"));
    assert!(!hit(NAME, VR::PN, "muller*", "Müller^Hans"));
    assert!(hit(NAME, VR::PN, "DOE^JOHN", "Doe^John^^^"));
    assert!(hit(NAME, VR::PN, "Doe^John^^", "Doe^John"));
    assert!(hit(NAME, VR::PN, "山田*", "Yamada^Tarou=山田^太郎"));
    assert!(!hit(NAME, VR::PN, "Doe", "Doe^John"));
    assert!(!hit(PATIENT_ID, VR::LO, "abc", "ABC"));
}

#[test]
fn percent_and_underscore_are_ordinary() {
    assert!(!hit(PATIENT_ID, VR::LO, "a%", "abc"));
    assert!(!hit(PATIENT_ID, VR::LO, "a_c", "abc"));
    assert!(hit(PATIENT_ID, VR::LO, "a%*", "a%bc"));
    let Criterion::Wildcard(pattern) =
        study_query(&[(PATIENT_ID, VR::LO, "a_**c?")]).unwrap().criterion(PATIENT_ID).clone()
    else {
        panic!("a wildcard")
    };
    assert_eq!(pattern.prefix(), "a_");
    assert_eq!(
        pattern.tokens(),
        [Token::Literal('a'), Token::Literal('_'), Token::Any, Token::Literal('c'), Token::One]
    );
}

#[test]
fn times_cover_what_they_leave_out() {
    assert!(hit(STUDY_TIME, VR::TM, "10", "105959.999999"));
    assert!(hit(STUDY_TIME, VR::TM, "1000-1030", "103059.5"));
    assert!(!hit(STUDY_TIME, VR::TM, "1000-1030", "103100"));
    assert!(hit(STUDY_TIME, VR::TM, "10:30:00-", "103000"));
    assert!(hit(STUDY_TIME, VR::TM, "-1030", "0001"));
    assert!(!hit(STUDY_TIME, VR::TM, "101500", "101501"));
}

#[test]
fn date_times_know_offsets() {
    let tag = Tag(0x0008, 0x002a);
    assert!(hit(tag, VR::DT, "20260101-20260131", "20260115103000.5"));
    assert!(hit(tag, VR::DT, "202601", "20260115"));
    assert!(hit(tag, VR::DT, "20260101100000-0500", "20260101150000+0000"));
    assert!(hit(tag, VR::DT, "20260101000000-0500-20260102000000-0500", "20260102040000+0000"));
    assert!(!hit(tag, VR::DT, "20260101000000-0500-20260102000000-0500", "20260102060000+0000"));
    assert!(hit(tag, VR::DT, "2025-2027", "2026"));
}

#[test]
fn combined_date_and_time() {
    let mut identifier = with(&[(STUDY_DATE, VR::DA, "20260101-20260103"), (STUDY_TIME, VR::TM, "1800-0800")]);
    identifier.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, "STUDY");
    let combined = Query::parse(&identifier, &QueryContext { combined_date_time: true, ..STUDY_ROOT }).unwrap();
    let at = |date, time| with(&[(STUDY_DATE, VR::DA, date), (STUDY_TIME, VR::TM, time)]);
    assert!(matches(&at("20260102", "1200"), &combined));
    assert!(matches(&at("20260101", "1800"), &combined));
    assert!(!matches(&at("20260101", "1700"), &combined));
    assert!(!matches(&at("20260103", "0801"), &combined));
    let separate = Query::parse(&identifier, &STUDY_ROOT).unwrap();
    assert!(!matches(&at("20260102", "1200"), &separate));
}

#[test]
fn lists_match_any() {
    assert!(hit(STUDY_UID, VR::UI, "1.2\\1.3", "1.3"));
    assert!(!hit(STUDY_UID, VR::UI, "1.2\\1.3", "1.30"));
    assert!(hit(MODALITIES, VR::CS, "MR", "CT\\MR"));
    assert!(hit(MODALITIES, VR::CS, "US\\M*", "CT\\MR"));
    assert!(!hit(MODALITIES, VR::CS, "US", "CT\\MR"));
    assert!(hit(Tag(0x0020, 0x0013), VR::IS, "1", "01"));
    assert!(hit(Tag(0x0020, 0x1208), VR::IS, "7", "3"), "counts are return keys only");
}

#[test]
fn sequences_match_by_item() {
    let code = |value: &str| with(&[(Tag(0x0008, 0x0100), VR::SH, value), (Tag(0x0008, 0x0102), VR::SH, "DCM")]);
    let tag = Tag(0x0008, 0x1032);
    let mut entity = DataSet::new();
    entity.put(tag, Element::sequence(vec![code("A"), code("B")]));
    let query = |item: DataSet| {
        let mut identifier = with(&[(QUERY_RETRIEVE_LEVEL, VR::CS, "STUDY")]);
        identifier.put(tag, Element::sequence(vec![item]));
        Query::parse(&identifier, &STUDY_ROOT).unwrap()
    };
    assert!(matches(&entity, &query(code("B"))));
    assert!(!matches(&entity, &query(code("C"))));
    assert!(matches(&DataSet::new(), &query(with(&[(Tag(0x0008, 0x0100), VR::SH, "")]))));
    let reply = query(with(&[(Tag(0x0008, 0x0100), VR::SH, "")])).project(&entity);
    assert_eq!(reply.items(tag).unwrap()[1], with(&[(Tag(0x0008, 0x0100), VR::SH, "B")]));
}

#[test]
fn hierarchical_queries_name_everything_above() {
    let parse = |level, model, keys: &[(Tag, VR, &str)], relational| {
        let mut identifier = with(keys);
        identifier.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, level);
        Query::parse(&identifier, &QueryContext { model, relational, combined_date_time: false })
            .map(|query| query.level)
            .map_err(|failure| (failure.status(Operation::Find), failure.offending))
    };
    let study = (STUDY_UID, VR::UI, "1.2");
    let series = (SERIES_UID, VR::UI, "1.3");
    let patient = (PATIENT_ID, VR::LO, "P1");
    let missing = |tag| Err((Status::DATA_SET_MISMATCH, vec![tag]));
    assert_eq!(parse("STUDY", Model::StudyRoot, &[], false), Ok(Level::Study));
    assert_eq!(parse("SERIES", Model::StudyRoot, &[], false), missing(STUDY_UID));
    assert_eq!(parse("SERIES", Model::StudyRoot, &[study], false), Ok(Level::Series));
    assert_eq!(parse("IMAGE", Model::StudyRoot, &[study], false), missing(SERIES_UID));
    assert_eq!(parse("IMAGE", Model::StudyRoot, &[study, series], false), Ok(Level::Image));
    assert_eq!(parse("STUDY", Model::PatientRoot, &[], false), missing(PATIENT_ID));
    assert_eq!(parse("STUDY", Model::PatientRoot, &[(PATIENT_ID, VR::LO, "P*")], false), missing(PATIENT_ID));
    assert_eq!(parse("STUDY", Model::PatientRoot, &[patient], false), Ok(Level::Study));
    assert_eq!(parse("IMAGE", Model::PatientRoot, &[], true), Ok(Level::Image));
    assert_eq!(parse("PATIENT", Model::StudyRoot, &[], false), missing(QUERY_RETRIEVE_LEVEL));
    assert_eq!(parse("FRAME", Model::StudyRoot, &[], false), missing(QUERY_RETRIEVE_LEVEL));
}

#[test]
fn retrieval_needs_its_unique_key_and_drops_the_rest() {
    let mut identifier = with(&[(QUERY_RETRIEVE_LEVEL, VR::CS, "SERIES"), (NAME, VR::PN, "X")]);
    assert!(Query::parse_retrieve(&identifier, &STUDY_ROOT).is_err());
    identifier.put_text(SERIES_UID, VR::UI, "1.2\\1.3");
    let query = Query::parse_retrieve(&identifier, &STUDY_ROOT).unwrap();
    assert_eq!(query.keys.keys().copied().collect::<Vec<_>>(), [SERIES_UID]);
}

#[test]
fn invalid_keys_are_named() {
    for (tag, vr, text) in [(STUDY_DATE, VR::DA, "yesterday"), (STUDY_UID, VR::UI, "1.2.*"), (STUDY_TIME, VR::TM, "25")]
    {
        let failure = study_query(&[(tag, vr, text)]).unwrap_err();
        assert_eq!((failure.reason, failure.offending), (Reason::DataSetMismatch, vec![tag]));
    }
    // A lone asterisk is universal for every VR.
    assert_eq!(study_query(&[(STUDY_DATE, VR::DA, "*")]).unwrap().criterion(STUDY_DATE), &Criterion::Universal);
}

#[test]
fn replies_have_the_keys_asked_for() {
    let entity = with(&[(NAME, VR::PN, "Müller"), (PATIENT_ID, VR::LO, "1")]);
    let query = study_query(&[(NAME, VR::PN, ""), (STUDY_DATE, VR::DA, "")]).unwrap();
    let reply = query.project(&entity);
    assert_eq!(reply.text(NAME).unwrap(), "Müller");
    assert!(reply.get(STUDY_DATE).unwrap().is_empty());
    assert!(!reply.contains(PATIENT_ID));
    assert_eq!(reply.text(QUERY_RETRIEVE_LEVEL).unwrap(), "STUDY");
}
