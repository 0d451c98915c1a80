//! Queries: from matching keys to rows, and from rows to answers.
//!
//! SQL narrows by the columns that have an index; [`dicom_scp::matching::matches`] decides. So an index can make a query
//! fast but never wrong. Must not know associations or who asks.

use std::collections::BTreeSet;

use dicom_scp::dataset::{DataSet, Encoding, ReadOptions, Tag, VR, read};
use dicom_scp::matching::{Criterion, Level, Query, Token, matches};
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::attributes::is_of_patient;
use super::index::{SEVERAL, as_u64};
use super::{Archive, ArchiveError, SELECT_SHOWN, Stored};

const PATIENT_NAME: Tag = Tag(0x0010, 0x0010);
const MODALITY: Tag = Tag(0x0008, 0x0060);
const MODALITIES_IN_STUDY: Tag = Tag(0x0008, 0x0061);
const SOP_CLASSES_IN_STUDY: Tag = Tag(0x0008, 0x0062);
const RETRIEVE_AE_TITLE: Tag = Tag(0x0008, 0x0054);
const INSTANCE_AVAILABILITY: Tag = Tag(0x0008, 0x0056);
const STUDIES_OF_PATIENT: Tag = Tag(0x0020, 0x1200);
const SERIES_OF_PATIENT: Tag = Tag(0x0020, 0x1202);
const INSTANCES_OF_PATIENT: Tag = Tag(0x0020, 0x1204);
const SERIES_OF_STUDY: Tag = Tag(0x0020, 0x1206);
const INSTANCES_OF_STUDY: Tag = Tag(0x0020, 0x1208);
const INSTANCES_OF_SERIES: Tag = Tag(0x0020, 0x1209);

/// Asterisks in a pattern that is given to SQL.
const GLOB_ASTERISKS_MAX: usize = 3;
/// Length of a pattern that is given to SQL, in characters.
const GLOB_TOKENS_MAX: usize = 256;

/// Which column, of which table of the join, serves a key.
const COLUMNS: &[(Tag, &str, Level)] = &[
    (Tag(0x0010, 0x0020), "st.patient_id", Level::Patient),
    (Tag(0x0010, 0x0021), "st.patient_issuer", Level::Patient),
    (Tag(0x0010, 0x0030), "st.birth_date", Level::Patient),
    (Tag(0x0008, 0x0020), "st.study_date", Level::Study),
    (Tag(0x0008, 0x0050), "st.accession", Level::Study),
    (Tag(0x0020, 0x0010), "st.study_number", Level::Study),
    (Tag(0x0020, 0x000D), "st.uid", Level::Study),
    (Tag(0x0020, 0x000E), "se.uid", Level::Series),
    (Tag(0x0008, 0x0018), "i.uid", Level::Image),
    (Tag(0x0008, 0x0016), "i.sop_class", Level::Image),
];

/// Which attributes of a match are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// Those that the query names.
    Asked,
    /// All that the index has besides.
    All,
}

impl Archive {
    /// Answers a query, one data set a match, in the order of the index. `emit` says whether it wants more.
    ///
    /// # Errors
    /// [`ArchiveError::Index`], [`ArchiveError::Corrupt`].
    pub fn search(
        &self,
        query: &Query,
        retrieve_ae: &str,
        emit: impl FnMut(DataSet) -> bool,
    ) -> Result<(), ArchiveError> {
        self.search_for(query, Fields::Asked, retrieve_ae, emit)
    }

    /// The same, with more attributes than the query names if they are wanted.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub fn search_for(
        &self,
        query: &Query,
        fields: Fields,
        retrieve_ae: &str,
        mut emit: impl FnMut(DataSet) -> bool,
    ) -> Result<(), ArchiveError> {
        // The connection is out of the pool for as long as the peer takes to read the answers; others open their own.
        self.read(|db| {
            let (sql, values) = statement(query);
            let mut statement = db.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                let entity = entity(db, row, query)?;
                if !matches(&entity, query) {
                    continue;
                }
                let mut answer = query.project(&entity);
                if fields == Fields::All {
                    answer.extend(entity);
                }
                answer.put_text(RETRIEVE_AE_TITLE, VR::AE, retrieve_ae);
                answer.put_text(INSTANCE_AVAILABILITY, VR::CS, availability(db, row, query.level)?);
                if !emit(answer) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The objects that a retrieve identifier names, as far as they may be had if it names more than one, by study, series and instance number.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn select(&self, query: &Query) -> Result<Vec<Stored>, ArchiveError> {
        self.read(|db| {
            let (mut conditions, values) = conditions(query, Level::Image);
            if query.level != Level::Image {
                // Of a whole study only what may be had; who names an object is told that he may not.
                conditions.push(format!("NOT {WITHHELD}"));
            }
            let sql = format!(
                "{SELECT_SHOWN} WHERE TRUE{} ORDER BY st.id, se.id, i.number, i.id",
                conditions.iter().map(|c| format!(" AND {c}")).collect::<String>()
            );
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map(params_from_iter(values), |row| self.stored(row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Whether `i` is an object of which its owner lets this site see previews alone, and not made from one.
const WITHHELD: &str = "(i.origin <> 0 AND EXISTS (SELECT 1 FROM foreign_study f WHERE f.id = i.origin AND f.mode = 1)
   AND NOT EXISTS (SELECT 1 FROM image p WHERE p.instance = i.id AND p.kind = 2))";

/// The rows that may match, with the columns that [`entity`] reads.
fn statement(query: &Query) -> (String, Vec<Value>) {
    let (mut conditions, values) = conditions(query, query.level);
    let (columns, tables, order) = match query.level {
        Level::Patient => {
            ("min(st.id), st.attributes, NULL, NULL", "shown_study st", "GROUP BY st.patient_id, st.patient_issuer")
        }
        Level::Study => ("st.id, st.attributes, NULL, NULL", "shown_study st", "ORDER BY st.id"),
        Level::Series => (
            "st.id, st.attributes, se.id, se.attributes",
            "visible_study st JOIN series se ON se.study = st.id",
            "ORDER BY st.id, se.id",
        ),
        Level::Image => (
            "st.id, st.attributes, se.id, se.attributes, i.id, i.attributes",
            "visible_study st JOIN series se ON se.study = st.id JOIN shown_instance i ON i.series = se.id",
            "ORDER BY se.id, i.number, i.id",
        ),
    };
    // A study whose every object was superseded by objects of other studies is as good as gone.
    if query.level == Level::Series {
        conditions.push(FIRST_OF_TWIN_SERIES.into());
    }
    conditions.push(if query.level == Level::Series { "se.instances > 0" } else { "st.instances > 0" }.into());
    (format!("SELECT {columns} FROM {tables} WHERE {} {order}", conditions.join(" AND ")), values)
}

/// A series that was received here and granted as well is shown once.
const FIRST_OF_TWIN_SERIES: &str =
    "(st.origin = 0 OR NOT EXISTS (SELECT 1 FROM visible_study twin JOIN series ts ON ts.study = twin.id
      WHERE twin.uid = st.uid AND twin.origin < st.origin AND ts.uid = se.uid AND ts.instances > 0))";

/// Conditions that every match fulfils, for the tables that a query at `level` joins.
pub(super) fn conditions(query: &Query, level: Level) -> (Vec<String>, Vec<Value>) {
    let mut sql = Vec::new();
    let mut values = Vec::new();
    for (tag, column, of) in COLUMNS {
        if *of <= level {
            narrow(column, query.criterion(*tag), &mut sql, &mut values);
        }
    }
    let (mut inner, mut names) = (Vec::new(), Vec::new());
    narrow("folded", query.criterion(PATIENT_NAME), &mut inner, &mut names);
    if !inner.is_empty() {
        sql.push(format!("st.id IN (SELECT study FROM patient_name WHERE {})", inner.join(" AND ")));
        values.append(&mut names);
    }
    if let Criterion::Single(text) = query.criterion(MODALITIES_IN_STUDY) {
        sql.push(format!(
            "EXISTS (SELECT 1 FROM study twin JOIN series ON series.study = twin.id WHERE twin.uid = st.uid AND {})",
            modality("modality")
        ));
        values.push(text.value().to_owned().into());
    }
    if let (Criterion::Single(text), true) = (query.criterion(MODALITY), level >= Level::Series) {
        sql.push(modality("se.modality"));
        values.push(text.value().to_owned().into());
    }
    (sql, values)
}

/// The modality column holds all values, because lists of modalities are made from it.
fn modality(column: &str) -> String {
    format!("({column} = ? OR instr({column}, '{SEVERAL}') > 0)")
}

/// What a column must fulfil so that the criterion can be met; nothing when the column cannot tell. A column that holds
/// several values or none that could be parsed is left to [`matches`].
fn narrow(column: &str, criterion: &Criterion, sql: &mut Vec<String>, values: &mut Vec<Value>) {
    match criterion {
        Criterion::Single(text) => {
            sql.push(format!("{column} IN (?, '{SEVERAL}')"));
            values.push(text.value().to_owned().into());
        }
        Criterion::UidList(uids) => {
            sql.push(format!("{column} IN ({})", vec!["?"; uids.len()].join(", ")));
            values.extend(uids.iter().map(|uid| Value::from(uid.to_string())));
        }
        Criterion::Wildcard(pattern) => {
            let prefix = pattern.prefix();
            if !prefix.is_empty() {
                sql.push(format!("(({column} >= ? AND {column} < ?) OR {column} = '{SEVERAL}')"));
                values.push(prefix.clone().into());
                values.push(format!("{prefix}\u{10FFFF}").into());
            }
            // The column's own values are searched through before any row is decoded.
            if let Some(glob) = glob(pattern.tokens()) {
                sql.push(format!("({column} GLOB ? OR {column} = '{SEVERAL}')"));
                values.push(glob.into());
            }
        }
        Criterion::DateRange(range) => {
            let bounds = [(">=", range.from), ("<=", range.to)];
            let bounds: Vec<_> = bounds.into_iter().filter_map(|(op, date)| Some((op, date?))).collect();
            let all: Vec<String> = bounds.iter().map(|(op, _)| format!("{column} {op} ?")).collect();
            if !all.is_empty() {
                sql.push(format!("(({}) OR {column} IS NULL)", all.join(" AND ")));
                values.extend(bounds.iter().map(|(_, date)| Value::from(i64::from(date.yyyymmdd()))));
            }
        }
        _ => {}
    }
}

/// The pattern as SQLite's GLOB writes it, in which only a bracket means something else. None for patterns on which GLOB could
/// take very long: it tries every place for every asterisk.
fn glob(tokens: &[Token]) -> Option<String> {
    let asterisks = tokens.iter().filter(|token| **token == Token::Any).count();
    let tells = tokens.iter().any(|token| *token != Token::Any);
    if !tells || asterisks > GLOB_ASTERISKS_MAX || tokens.len() > GLOB_TOKENS_MAX {
        return None;
    }
    let one = |token: &Token| match token {
        Token::Any => "*".to_owned(),
        Token::One => "?".to_owned(),
        Token::Literal('[') => "[[]".to_owned(),
        Token::Literal(c) => c.to_string(),
    };
    Some(tokens.iter().map(one).collect())
}

/// The attributes of a row's entity, those above its level included, and what is computed when it is asked for.
pub(super) fn entity(db: &Connection, row: &Row<'_>, query: &Query) -> Result<DataSet, ArchiveError> {
    let study: i64 = row.get(0)?;
    let mut entity = attributes(row, 1)?;
    if query.level == Level::Patient {
        let others: Vec<Tag> = entity.iter().map(|(tag, _)| *tag).filter(|tag| !is_of_patient(*tag)).collect();
        others.into_iter().for_each(|tag| drop(entity.remove(tag)));
    }
    if query.level >= Level::Series {
        entity.extend(attributes(row, 3)?);
    }
    if query.level == Level::Image {
        entity.extend(attributes(row, 5)?);
    }
    let asked = |tag| query.keys.contains_key(&tag);
    let series: Option<i64> = if query.level >= Level::Series { row.get(2)? } else { None };
    for (tag, sql) in COUNTS {
        let id = if *tag == INSTANCES_OF_SERIES { series } else { Some(study) };
        if let Some(id) = id.filter(|_| asked(*tag)) {
            let count: i64 = db.prepare_cached(sql)?.query_row([id], |row| row.get(0))?;
            entity.put_text(*tag, VR::IS, &as_u64(count).to_string());
        }
    }
    for (tag, vr, sql) in LISTS {
        if asked(*tag) {
            let mut statement = db.prepare_cached(sql)?;
            let found: Vec<String> = statement.query_map([study], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let each: BTreeSet<&str> = found.iter().flat_map(|values| values.split('\\')).collect();
            entity.put_texts(*tag, *vr, &Vec::from_iter(each));
        }
    }
    Ok(entity)
}

/// "Number of ... Related ..." (PS3.4 C.3.4). Each takes the study's row, the last one the series'. What was received here and
/// granted as well counts once.
const COUNTS: &[(Tag, &str)] = &[
    (
        STUDIES_OF_PATIENT,
        "SELECT count(*) FROM shown_study st, study p WHERE st.patient_id = p.patient_id AND st.patient_issuer = p.patient_issuer AND p.id = ?1",
    ),
    (
        SERIES_OF_PATIENT,
        "SELECT count(DISTINCT se.uid) FROM study p JOIN visible_study st ON st.patient_id = p.patient_id AND st.patient_issuer = p.patient_issuer JOIN series se ON se.study = st.id WHERE p.id = ?1 AND se.instances > 0",
    ),
    (
        INSTANCES_OF_PATIENT,
        "SELECT coalesce(sum(CASE WHEN st.origin = 0 THEN st.instances
           ELSE (SELECT count(*) FROM shown_instance i JOIN series se ON i.series = se.id WHERE se.study = st.id) END), 0)
         FROM study p JOIN visible_study st ON st.patient_id = p.patient_id AND st.patient_issuer = p.patient_issuer WHERE p.id = ?1",
    ),
    (
        SERIES_OF_STUDY,
        "SELECT count(DISTINCT se.uid) FROM study p JOIN visible_study st ON st.uid = p.uid JOIN series se ON se.study = st.id
         WHERE p.id = ?1 AND se.instances > 0",
    ),
    (
        INSTANCES_OF_STUDY,
        "SELECT p.instances + (SELECT count(*) FROM visible_study st JOIN series se ON se.study = st.id
             JOIN shown_instance i ON i.series = se.id WHERE st.uid = p.uid AND st.origin > p.origin)
         FROM study p WHERE p.id = ?1",
    ),
    (
        INSTANCES_OF_SERIES,
        "SELECT ps.instances + (SELECT count(*) FROM visible_study st JOIN series se ON se.study = st.id
             JOIN shown_instance i ON i.series = se.id WHERE st.uid = p.uid AND st.origin > p.origin AND se.uid = ps.uid)
         FROM series ps JOIN study p ON ps.study = p.id WHERE ps.id = ?1",
    ),
];

const LISTS: &[(Tag, VR, &str)] = &[
    (
        MODALITIES_IN_STUDY,
        VR::CS,
        "SELECT DISTINCT se.modality FROM study p JOIN visible_study st ON st.uid = p.uid JOIN series se ON se.study = st.id
         WHERE p.id = ?1 AND se.instances > 0 AND se.modality <> '' ORDER BY 1",
    ),
    (
        SOP_CLASSES_IN_STUDY,
        VR::UI,
        "SELECT DISTINCT i.sop_class FROM study p JOIN visible_study st ON st.uid = p.uid JOIN series se ON se.study = st.id
         JOIN instance i ON i.series = se.id WHERE p.id = ?1 AND i.superseded = 0 ORDER BY 1",
    ),
];

/// Instance Availability, PS3.3 C.4.23.1.1: ONLINE when a file is here, NEARLINE when the objects must be fetched from the ledger first. Of
/// a study whose owner allows previews alone, the objects made from them are ONLINE, the others and their series UNAVAILABLE; the study
/// itself is ONLINE as soon as there is one, because a retrieve of it brings that.
fn availability(db: &Connection, row: &Row<'_>, level: Level) -> Result<&'static str, ArchiveError> {
    let study: i64 = row.get(0)?;
    let previews_alone =
        "SELECT 1 FROM study st JOIN foreign_study f ON f.id = st.origin WHERE st.id = ?1 AND f.mode = 1";
    let previews_alone = db.prepare_cached(previews_alone)?.exists([study])?;
    let (evicted, captured, id): (&str, &str, i64) = match level {
        Level::Patient | Level::Study => (
            "SELECT 1 FROM study p JOIN visible_study st ON st.uid = p.uid JOIN series se ON se.study = st.id
             JOIN instance i ON i.series = se.id WHERE p.id = ?1 AND i.superseded = 0 AND i.file IS NULL
             AND NOT EXISTS (SELECT 1 FROM foreign_study f WHERE f.id = st.origin AND f.mode = 1) LIMIT 1",
            "SELECT 1 FROM image WHERE study = ?1 AND kind = 2 AND instance IS NOT NULL LIMIT 1",
            study,
        ),
        Level::Series => (
            "SELECT 1 FROM instance WHERE series = ?1 AND superseded = 0 AND file IS NULL LIMIT 1",
            "SELECT 1 FROM instance i JOIN image p ON p.instance = i.id WHERE i.series = ?1 AND p.kind = 2 LIMIT 1",
            row.get(2)?,
        ),
        Level::Image => (
            "SELECT 1 FROM instance WHERE id = ?1 AND file IS NULL",
            "SELECT 1 FROM image WHERE instance = ?1 AND kind = 2",
            row.get(4)?,
        ),
    };
    if previews_alone {
        let captured = db.prepare_cached(captured)?.exists([id])?;
        return Ok(if captured { "ONLINE" } else { "UNAVAILABLE" });
    }
    let evicted = db.prepare_cached(evicted)?.exists([id])?;
    Ok(if evicted { "NEARLINE" } else { "ONLINE" })
}

fn attributes(row: &Row<'_>, column: usize) -> Result<DataSet, ArchiveError> {
    let bytes: Vec<u8> = row.get(column)?;
    match read(&bytes, Encoding::ExplicitLe, &ReadOptions::default()) {
        Ok((set, _)) => Ok(set),
        Err(error) => Err(ArchiveError::Corrupt(format!("index row ({error})"))),
    }
}
