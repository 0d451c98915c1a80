//! Query/retrieve identifiers and attribute matching (PS3.4 C.2.2.2, C.4, C.6).
//!
//! An identifier becomes a typed [`Query`] once; back ends may evaluate it here with [`matches`] or read the criteria and build their
//! own search. Pure. Must not know where the entities are kept.

mod criterion;
mod temporal;
mod text;

pub use criterion::Criterion;
pub use temporal::{Date, DateTime, Range, Time};
pub use text::{Pattern, Text, Token};

use crate::{
    DataSet, Element, Tag, VR, Value,
    dataset::dictionary_vr,
    sop_class::Model,
    status::{Failure, Reason},
};
use std::collections::BTreeMap;

const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
const QUERY_RETRIEVE_LEVEL: Tag = Tag(0x0008, 0x0052);
const RETRIEVE_AE_TITLE: Tag = Tag(0x0008, 0x0054);
const INSTANCE_AVAILABILITY: Tag = Tag(0x0008, 0x0056);
const TIMEZONE_OFFSET: Tag = Tag(0x0008, 0x0201);
const PATIENT_ID: Tag = Tag(0x0010, 0x0020);
const STUDY_UID: Tag = Tag(0x0020, 0x000d);
const SERIES_UID: Tag = Tag(0x0020, 0x000e);
const INSTANCE_UID: Tag = Tag(0x0008, 0x0018);

/// Dates and their times that are matched as one when combined date-time matching was negotiated (PS3.4 C.2.2.2.5.2).
const DATE_AND_TIME: &[(Tag, Tag)] = &[
    (Tag(0x0008, 0x0020), Tag(0x0008, 0x0030)), // Study
    (Tag(0x0008, 0x0021), Tag(0x0008, 0x0031)), // Series
    (Tag(0x0008, 0x0022), Tag(0x0008, 0x0032)), // Acquisition
    (Tag(0x0008, 0x0023), Tag(0x0008, 0x0033)), // Content
    (Tag(0x0010, 0x0030), Tag(0x0010, 0x0032)), // Patient's birth
    (Tag(0x0040, 0x0244), Tag(0x0040, 0x0245)), // Performed procedure step start
];

/// Query/Retrieve Level (0008,0052).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// `PATIENT`
    Patient,
    /// `STUDY`
    Study,
    /// `SERIES`
    Series,
    /// `IMAGE`
    Image,
}

impl Level {
    /// The value of (0008,0052).
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Patient => "PATIENT",
            Level::Study => "STUDY",
            Level::Series => "SERIES",
            Level::Image => "IMAGE",
        }
    }

    /// The unique key of the level (PS3.4 C.6.1.1, C.6.2.1).
    pub fn unique_key(self) -> Tag {
        match self {
            Level::Patient => PATIENT_ID,
            Level::Study => STUDY_UID,
            Level::Series => SERIES_UID,
            Level::Image => INSTANCE_UID,
        }
    }

    fn parse(text: &str) -> Option<Level> {
        [Level::Patient, Level::Study, Level::Series, Level::Image]
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text))
    }
}

/// What was negotiated for the presentation context that a query came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryContext {
    /// The information model.
    pub model: Model,
    /// Relational queries (PS3.4 C.5.2.1.1.2).
    pub relational: bool,
    /// Combined date-time matching (PS3.4 C.5.2.1.1.3).
    pub combined_date_time: bool,
}

/// A query or retrieve identifier, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// What is asked for.
    pub level: Level,
    /// The information model.
    pub model: Model,
    /// Keys of any level are allowed.
    pub relational: bool,
    /// The matching keys and return keys by tag. Level, character set, Retrieve AE Title, Instance Availability and time zone are not among
    /// them.
    pub keys: BTreeMap<Tag, Key>,
    /// Pairs of keys matched as one point in time; their own criteria are [`Criterion::Universal`].
    pub date_times: Vec<DateTimeKey>,
}

/// One attribute of an identifier.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The VR, from the identifier or the dictionary.
    pub vr: VR,
    /// What its values must fulfil.
    pub criterion: Criterion,
}

/// A date and a time attribute matched as one.
#[derive(Debug, Clone, PartialEq)]
pub struct DateTimeKey {
    /// The date attribute.
    pub date: Tag,
    /// The time attribute.
    pub time: Tag,
    /// From the first date at the first time to the last date at the last time.
    pub range: Range<DateTime>,
}

impl Query {
    /// Parses a C-FIND identifier. In hierarchical queries every level above the queried one must be named by its unique key.
    ///
    /// # Errors
    /// [`Reason::DataSetMismatch`] (A900H) naming the offending elements.
    pub fn parse(identifier: &DataSet, context: &QueryContext) -> Result<Query, Failure> {
        let mut query = Self::parse_keys(identifier, context)?;
        if !context.relational {
            query.check_hierarchy()?;
        }
        if context.combined_date_time {
            query.combine_date_times();
        }
        Ok(query)
    }

    /// Parses a C-MOVE or C-GET identifier, which must have the unique key of its level, a list of UIDs being allowed. Keys that are not
    /// unique keys are dropped (PS3.4 C.4.2.1.4.1). Missing keys of higher levels are tolerated because UIDs are unique anyway.
    ///
    /// # Errors
    /// [`Reason::DataSetMismatch`] (A900H) naming the offending elements.
    pub fn parse_retrieve(identifier: &DataSet, context: &QueryContext) -> Result<Query, Failure> {
        let mut query = Self::parse_keys(identifier, context)?;
        let levels = [Level::Patient, Level::Study, Level::Series, Level::Image];
        query.keys.retain(|tag, _| levels.iter().any(|level| level.unique_key() == *tag && *level <= query.level));
        let unique = query.level.unique_key();
        if !query.criterion(unique).is_single_or_list() {
            return Err(mismatch("retrieve without the unique key of its level", unique));
        }
        Ok(query)
    }

    fn parse_keys(identifier: &DataSet, context: &QueryContext) -> Result<Query, Failure> {
        let level = identifier
            .text(QUERY_RETRIEVE_LEVEL)
            .and_then(|text| Level::parse(&text))
            .ok_or_else(|| mismatch("query/retrieve level missing or unknown", QUERY_RETRIEVE_LEVEL))?;
        if level == Level::Patient && context.model == Model::StudyRoot {
            return Err(mismatch("no patient level in the study root model", QUERY_RETRIEVE_LEVEL));
        }
        let mut keys = BTreeMap::new();
        for (tag, element) in identifier {
            if !is_key(*tag) {
                continue;
            }
            let criterion = Criterion::parse(identifier, *tag, element)?;
            keys.insert(*tag, Key { vr: element.vr, criterion });
        }
        Ok(Query { level, model: context.model, relational: context.relational, keys, date_times: Vec::new() })
    }

    /// PS3.4 C.4.1.2.1: one single value for every unique key above the level.
    fn check_hierarchy(&self) -> Result<(), Failure> {
        let root = match self.model {
            Model::PatientRoot => Level::Patient,
            Model::StudyRoot => Level::Study,
        };
        for level in [Level::Patient, Level::Study, Level::Series] {
            let needed = level >= root && level < self.level;
            if needed && !self.criterion(level.unique_key()).is_single_or_list() {
                return Err(mismatch("hierarchical query without the unique keys above its level", level.unique_key()));
            }
        }
        Ok(())
    }

    fn combine_date_times(&mut self) {
        for &(date, time) in DATE_AND_TIME {
            let (Criterion::DateRange(dates), Criterion::TimeRange(times)) =
                (self.criterion(date), self.criterion(time))
            else {
                continue;
            };
            let from = dates.from.map(|date| DateTime::new(date, times.from.unwrap_or(Time::START)));
            let to = dates.to.map(|date| DateTime::new(date, times.to.unwrap_or(Time::END)));
            let range = Range { from, to };
            for tag in [date, time] {
                if let Some(key) = self.keys.get_mut(&tag) {
                    key.criterion = Criterion::Universal;
                }
            }
            self.date_times.push(DateTimeKey { date, time, range });
        }
    }

    /// The criterion for an attribute; universal when it is no key.
    pub fn criterion(&self, tag: Tag) -> &Criterion {
        self.keys.get(&tag).map_or(&Criterion::Universal, |key| &key.criterion)
    }

    /// The answer for an entity that matches: the keys asked for with the entity's values, empty where it has none, and the level.
    pub fn project(&self, entity: &DataSet) -> DataSet {
        let mut reply: DataSet = self
            .keys
            .iter()
            .map(|(tag, key)| (*tag, entity.get(*tag).map_or_else(|| Element::empty(key.vr), |e| narrow(e, key))))
            .collect();
        if let Some(set) = entity.get(SPECIFIC_CHARACTER_SET) {
            reply.put(SPECIFIC_CHARACTER_SET, set.clone());
        }
        reply.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, self.level.as_str());
        reply
    }
}

/// Sequences return the attributes asked for in their items (PS3.4 C.2.2.2.6); an empty item or none asks for all.
fn narrow(element: &Element, key: &Key) -> Element {
    match (&element.value, &key.criterion) {
        (Value::Items(items), Criterion::Sequence(keys)) if !keys.is_empty() => {
            let narrowed = items.iter().map(|item| {
                keys.iter()
                    .map(|(tag, key)| (*tag, item.get(*tag).map_or_else(|| Element::empty(key.vr), |e| narrow(e, key))))
                    .collect()
            });
            Element::sequence(narrowed.collect())
        }
        (Value::Skipped { .. }, _) => Element::empty(key.vr),
        _ => element.clone(),
    }
}

/// Whether the entity described by `entity` is a match: all keys fulfilled by at least one of their values.
pub fn matches(entity: &DataSet, query: &Query) -> bool {
    query.keys.iter().all(|(tag, key)| key.criterion.is_met(entity, *tag))
        && query.date_times.iter().all(|key| {
            let Some(date) = entity.text(key.date).and_then(|text| Date::parse(&text)) else { return false };
            let time = entity.text(key.time).and_then(|text| Time::parse(&text)).unwrap_or(Time::START);
            key.range.contains(&DateTime::new(date, time))
        })
}

/// Attributes of an identifier that describe the query rather than the entity, and computed counts that cannot be matched.
fn is_key(tag: Tag) -> bool {
    !matches!(
        tag,
        SPECIFIC_CHARACTER_SET | QUERY_RETRIEVE_LEVEL | RETRIEVE_AE_TITLE | INSTANCE_AVAILABILITY | TIMEZONE_OFFSET
    ) && tag.1 != 0
}

/// "Number of ... Related ..." attributes: return keys only (PS3.4 C.3.4).
fn is_count(tag: Tag) -> bool {
    tag.0 == 0x0020 && (0x1200..=0x1209).contains(&tag.1)
}

/// A VR that says what kind of matching applies, for keys sent as UN.
fn key_vr(tag: Tag, vr: VR) -> VR {
    if vr == VR::UN { dictionary_vr(tag).unwrap_or(vr) } else { vr }
}

fn mismatch(comment: &str, tag: Tag) -> Failure {
    Failure::new(Reason::DataSetMismatch, comment).with_offending([tag])
}

#[cfg(test)]
mod tests;
