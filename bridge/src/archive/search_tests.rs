#![allow(clippy::unwrap_used)]
//! An index may make a query fast, never wrong: every answer is compared with a naive search over all headers.

use std::collections::{BTreeMap, HashMap};

use dicom_scp::TransferSyntax;
use dicom_scp::dataset::{DataSet, Encoding, Tag, VR};
use dicom_scp::matching::{Level, Query, QueryContext, matches};
use dicom_scp::sop_class::Model;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::config::Config;

const NAMES: &[&str] = &[
    "Smith^John",
    "SMITH^Jane^^Dr",
    "smithers^w",
    "Müller^Jörg",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "O_Neil^100%",
    "",
    "Smith^",
    "García^José^^",
    "a*b^c?d",
];
const IDS: &[&str] = &["1", "01", "A_1", "A%1", "AB1", "a_1", "", "X Y", "山田"];
const DATES: &[&str] = &["20200101", "20201231", "1999.12.31", "20210615", "", "garbage", "20200229"];
const MODALITIES: &[&str] = &["CT", "MR", "US", "", "CT\\PT"];
const DESCRIPTIONS: &[&str] = &["Thorax", "THORAX", "Abd*men", "", "Knie links"];

fn put(set: &mut DataSet, tag: (u16, u16), vr: VR, text: &str) {
    set.put_text(Tag(tag.0, tag.1), vr, text);
}

/// Headers of a small hospital: patients with several studies, studies with several series.
fn hospital(rng: &mut impl Rng) -> Vec<DataSet> {
    let mut all = Vec::new();
    for study in 0..14 {
        let mut of_study = DataSet::default();
        put(&mut of_study, (0x0008, 0x0005), VR::CS, "ISO_IR 192");
        put(&mut of_study, (0x0010, 0x0010), VR::PN, NAMES.choose(rng).unwrap());
        put(&mut of_study, (0x0010, 0x0020), VR::LO, IDS.choose(rng).unwrap());
        put(&mut of_study, (0x0010, 0x0030), VR::DA, DATES.choose(rng).unwrap());
        put(&mut of_study, (0x0008, 0x0020), VR::DA, DATES.choose(rng).unwrap());
        put(&mut of_study, (0x0008, 0x0050), VR::SH, IDS.choose(rng).unwrap());
        put(&mut of_study, (0x0008, 0x1030), VR::LO, DESCRIPTIONS.choose(rng).unwrap());
        put(&mut of_study, (0x0020, 0x000D), VR::UI, &format!("1.2.{study}"));
        for series in 0..rng.gen_range(1..4) {
            let mut of_series = of_study.clone();
            put(&mut of_series, (0x0008, 0x0060), VR::CS, MODALITIES.choose(rng).unwrap());
            put(&mut of_series, (0x0008, 0x103E), VR::LO, DESCRIPTIONS.choose(rng).unwrap());
            put(&mut of_series, (0x0020, 0x000E), VR::UI, &format!("1.2.{study}.{series}"));
            put(&mut of_series, (0x0020, 0x0011), VR::IS, &series.to_string());
            for instance in 0..rng.gen_range(1..4) {
                let mut header = of_series.clone();
                put(&mut header, (0x0008, 0x0016), VR::UI, "1.2.840.10008.5.1.4.1.1.2");
                put(&mut header, (0x0008, 0x0018), VR::UI, &format!("1.2.{study}.{series}.{instance}"));
                put(&mut header, (0x0020, 0x0013), VR::IS, &instance.to_string());
                all.push(header);
            }
        }
    }
    all
}

/// A value to ask for: one that exists, a wildcard made of one, a range, or nothing.
fn asked(rng: &mut impl Rng, values: &[&str], wild: bool) -> String {
    let value = values.choose(rng).unwrap();
    match rng.gen_range(0..5) {
        0 => String::new(),
        1 if wild => format!("{}*", value.chars().take(rng.gen_range(0..4)).collect::<String>()),
        2 if wild => format!("*{}", value.chars().skip(1).collect::<String>()),
        3 if wild => value.chars().map(|c| if rng.gen_bool(0.3) { '?' } else { c }).collect(),
        _ => (*value).to_owned(),
    }
}

fn identifier(rng: &mut impl Rng, level: Level) -> DataSet {
    let mut set = DataSet::default();
    put(&mut set, (0x0008, 0x0005), VR::CS, "ISO_IR 192");
    put(&mut set, (0x0008, 0x0052), VR::CS, level.as_str());
    let dates = ["20200101-20201231", "-20201231", "20200229-", "20200101", ""];
    let mut maybe = |rng: &mut dyn rand::RngCore, tag, vr, value: String| {
        if rng.gen_bool(0.4) {
            put(&mut set, tag, vr, &value);
        }
    };
    let name = asked(rng, NAMES, true);
    let name = if rng.gen_bool(0.5) { name.to_uppercase() } else { name };
    maybe(rng, (0x0010, 0x0010), VR::PN, name);
    let id = asked(rng, IDS, true);
    maybe(rng, (0x0010, 0x0020), VR::LO, id);
    let birth = (*dates.choose(rng).unwrap()).to_owned();
    maybe(rng, (0x0010, 0x0030), VR::DA, birth);
    if level >= Level::Study {
        let date = (*dates.choose(rng).unwrap()).to_owned();
        maybe(rng, (0x0008, 0x0020), VR::DA, date);
        let accession = asked(rng, IDS, true);
        maybe(rng, (0x0008, 0x0050), VR::SH, accession);
        let description = asked(rng, DESCRIPTIONS, true);
        maybe(rng, (0x0008, 0x1030), VR::LO, description);
        let uids = ["1.2.1", "1.2.2\\1.2.3", "1.9"];
        let uid = (*uids.choose(rng).unwrap()).to_owned();
        maybe(rng, (0x0020, 0x000D), VR::UI, uid);
        let modality = asked(rng, &["CT", "MR", "PT", "XX"], true);
        maybe(rng, (0x0008, 0x0061), VR::CS, modality);
    }
    if level >= Level::Series {
        let modality = asked(rng, &["CT", "MR", "PT"], true);
        maybe(rng, (0x0008, 0x0060), VR::CS, modality);
        maybe(rng, (0x0020, 0x0011), VR::IS, "1".into());
    }
    if level == Level::Image {
        maybe(rng, (0x0020, 0x0013), VR::IS, "2".into());
        maybe(rng, (0x0008, 0x0018), VR::UI, "1.2.1.0.0\\1.2.2.0.1".into());
    }
    // The unique key of the level tells the answers apart.
    if !set.contains(level.unique_key()) {
        set.put_text(level.unique_key(), if level == Level::Patient { VR::LO } else { VR::UI }, "");
    }
    set
}

/// Unique keys of everything that matches, found without an index.
fn naive(headers: &[DataSet], query: &Query) -> Vec<String> {
    let mut entities: BTreeMap<Vec<String>, DataSet> = BTreeMap::new();
    let text = |set: &DataSet, tag| set.text(tag).unwrap_or_default();
    for header in headers {
        let key = match query.level {
            Level::Patient => vec![text(header, Tag(0x0010, 0x0020))],
            level => vec![text(header, level.unique_key())],
        };
        let study = text(header, Tag(0x0020, 0x000D));
        let mut modalities: Vec<String> = headers
            .iter()
            .filter(|other| text(other, Tag(0x0020, 0x000D)) == study)
            .flat_map(|other| other.texts(Tag(0x0008, 0x0060)))
            .filter(|modality| !modality.is_empty())
            .collect();
        modalities.sort();
        modalities.dedup();
        entities.entry(key).or_insert_with(|| {
            let mut entity = header.clone();
            entity.put_texts(Tag(0x0008, 0x0061), VR::CS, &modalities);
            entity
        });
    }
    let found = entities.into_values().filter(|entity| matches(entity, query));
    let mut keys: Vec<String> = found.map(|entity| text(&entity, query.level.unique_key())).collect();
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_answers_as_a_search_over_everything_would() {
    for seed in 0..6 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let limits = config::Archive { free_bytes_min: 0, ..Config::parse("", HashMap::new()).unwrap().archive };
        let archive = Archive::open(dir.path(), limits, 10).unwrap();
        let headers = hospital(&mut rng);
        for header in &headers {
            let head = ObjectHead {
                sop_class: header.uid(Tag(0x0008, 0x0016)).unwrap(),
                sop_instance: header.uid(Tag(0x0008, 0x0018)).unwrap(),
                transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
                calling_ae: "T".into(),
            };
            let mut incoming = archive.begin(head).unwrap();
            incoming.append(&header.write(Encoding::ExplicitLe)).unwrap();
            incoming.finish().await.unwrap();
        }
        let mut answered = 0;
        for _ in 0..400 {
            let level = *[Level::Patient, Level::Study, Level::Series, Level::Image].choose(&mut rng).unwrap();
            let identifier = identifier(&mut rng, level);
            let context = QueryContext { model: Model::PatientRoot, relational: true, combined_date_time: false };
            let Ok(query) = Query::parse(&identifier, &context) else { continue };
            // At patient level studies of one patient may differ in name and birth date; which of them speaks is not defined.
            if level == Level::Patient
                && [Tag(0x0010, 0x0010), Tag(0x0010, 0x0030)].iter().any(|tag| query.keys.contains_key(tag))
            {
                continue;
            }
            let mut found = Vec::new();
            archive
                .search(&query, "AE", |answer| {
                    found.push(answer.text(level.unique_key()).unwrap_or_default());
                    true
                })
                .unwrap();
            found.sort();
            let expected = naive(&headers, &query);
            assert_eq!(found, expected, "seed {seed}, {identifier:?}");
            answered += expected.len();
        }
        assert!(answered > 400, "the queries hardly ever match");
        archive.close().await;
    }
}

#[tokio::test]
async fn a_wildcard_of_sql_is_an_ordinary_character() {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let dir = tempfile::tempdir().unwrap();
    let limits = config::Archive { free_bytes_min: 0, ..Config::parse("", HashMap::new()).unwrap().archive };
    let archive = Archive::open(dir.path(), limits, 10).unwrap();
    let mut header = hospital(&mut rng).remove(0);
    header.put_text(Tag(0x0010, 0x0020), VR::LO, "AXB");
    let head = ObjectHead {
        sop_class: header.uid(Tag(0x0008, 0x0016)).unwrap(),
        sop_instance: header.uid(Tag(0x0008, 0x0018)).unwrap(),
        transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
        calling_ae: "T".into(),
    };
    let mut incoming = archive.begin(head).unwrap();
    incoming.append(&header.write(Encoding::ExplicitLe)).unwrap();
    incoming.finish().await.unwrap();
    for (asked, hits) in [("A_B", 0), ("A%", 0), ("A?B", 1), ("A*", 1), ("AXB", 1), ("axb", 0)] {
        let mut identifier = DataSet::default();
        identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
        identifier.put_text(Tag(0x0010, 0x0020), VR::LO, asked);
        let context = QueryContext { model: Model::StudyRoot, relational: false, combined_date_time: false };
        let query = Query::parse(&identifier, &context).unwrap();
        let mut found = 0;
        archive
            .search(&query, "AE", |_| {
                found += 1;
                true
            })
            .unwrap();
        assert_eq!(found, hits, "{asked}");
    }
}
