//! What one key demands of an attribute (PS3.4 C.2.2.2.1 to C.2.2.2.6).

use super::{
    Date, DateTime, Key, Range, Time, is_count, key_vr, mismatch,
    text::{Pattern, Text},
};
use crate::{DataSet, Element, Tag, Uid, VR, Value, status::Failure};
use std::collections::BTreeMap;

/// What the values of an attribute must fulfil.
#[derive(Debug, Clone, PartialEq)]
pub enum Criterion {
    /// Everything matches; the attribute is wanted in the answer (C.2.2.2.3).
    Universal,
    /// One value (C.2.2.2.1).
    Single(Text),
    /// One or several UIDs (C.2.2.2.2).
    UidList(Vec<Uid>),
    /// `*` and `?` (C.2.2.2.4).
    Wildcard(Pattern),
    /// From one date to another, both included; one date is a range of itself (C.2.2.2.5).
    DateRange(Range<Date>),
    /// From one time to another, both included. A time without minutes or seconds covers the hour or minute.
    TimeRange(Range<Time>),
    /// The same for attributes of VR DT.
    DateTimeRange(Range<DateTime>),
    /// A number, for VRs IS, DS and the binary ones: any of these values.
    Number(Vec<f64>),
    /// Several values of a text attribute, any of which may match.
    AnyOf(Vec<Criterion>),
    /// One item of the sequence must fulfil all of these (C.2.2.2.6).
    Sequence(BTreeMap<Tag, Key>),
}

impl Criterion {
    /// The criterion of one element of an identifier.
    pub(super) fn parse(identifier: &DataSet, tag: Tag, element: &Element) -> Result<Criterion, Failure> {
        if let Value::Items(items) = &element.value {
            return Self::parse_sequence(tag, items);
        }
        if element.is_empty() || is_count(tag) {
            return Ok(Criterion::Universal);
        }
        let vr = key_vr(tag, element.vr);
        let values = identifier.texts(tag);
        if values.iter().all(|value| !value.is_empty() && value.chars().all(|c| c == '*')) {
            return Ok(Criterion::Universal);
        }
        let invalid = |what: &str| mismatch(what, tag);
        match vr {
            VR::UI => {
                let uids = values.iter().filter(|value| !value.is_empty()).map(|value| Uid::new(value));
                let uids: Result<Vec<Uid>, _> = uids.collect();
                Ok(Criterion::UidList(uids.map_err(|_| invalid("not a uid"))?))
            }
            VR::DA => range(&values, Date::range).map(Criterion::DateRange).ok_or_else(|| invalid("not a date range")),
            VR::TM => range(&values, Time::range).map(Criterion::TimeRange).ok_or_else(|| invalid("not a time range")),
            VR::DT => range(&values, DateTime::range)
                .map(Criterion::DateTimeRange)
                .ok_or_else(|| invalid("not a date-time range")),
            vr if is_number(vr) => Ok(Self::number(identifier, tag, &values)),
            vr => Ok(Self::parse_texts(vr, &values)),
        }
    }

    /// More than one item in a key is not allowed (C.2.2.2.6).
    fn parse_sequence(tag: Tag, items: &[DataSet]) -> Result<Criterion, Failure> {
        let item = match items {
            [] => return Ok(Criterion::Universal),
            [item] => item,
            _ => return Err(mismatch("sequence key with several items", tag)),
        };
        let mut keys = BTreeMap::new();
        for (tag, element) in item {
            keys.insert(*tag, Key { vr: element.vr, criterion: Self::parse(item, *tag, element)? });
        }
        Ok(Criterion::Sequence(keys))
    }

    /// A number that is none is matched as the text it is.
    fn number(identifier: &DataSet, tag: Tag, values: &[String]) -> Criterion {
        let numbers = identifier.floats(tag);
        match numbers.len() == values.len() {
            true => Criterion::Number(numbers),
            false => Self::parse_texts(VR::LO, values),
        }
    }

    fn parse_texts(vr: VR, values: &[String]) -> Criterion {
        let mut criteria: Vec<Criterion> =
            values.iter().filter(|value| !value.is_empty()).map(|value| Self::text(vr, value)).collect();
        match criteria.len() {
            1 => criteria.swap_remove(0),
            _ => Criterion::AnyOf(criteria),
        }
    }

    fn text(vr: VR, value: &str) -> Criterion {
        if value.chars().all(|c| c == '*') {
            Criterion::Universal
        } else if allows_wildcards(vr) && value.contains(['*', '?']) {
            Criterion::Wildcard(Pattern::new(value, vr))
        } else {
            Criterion::Single(Text::new(value, vr))
        }
    }

    /// Whether this names entities by value, as unique keys must.
    pub fn is_single_or_list(&self) -> bool {
        matches!(self, Criterion::Single(_)) || matches!(self, Criterion::UidList(uids) if !uids.is_empty())
    }

    /// Whether one of the values of `tag` in `entity` fulfils this. An attribute without a value fulfils universal matching only.
    pub fn is_met(&self, entity: &DataSet, tag: Tag) -> bool {
        let any = |predicate: &dyn Fn(&str) -> bool| entity.texts(tag).iter().any(|value| predicate(value));
        match self {
            Criterion::Universal => true,
            Criterion::Single(text) => any(&|value| text.matches(value)),
            Criterion::Wildcard(pattern) => any(&|value| pattern.matches(value)),
            Criterion::UidList(uids) => any(&|value| uids.iter().any(|uid| uid == value)),
            Criterion::DateRange(range) => any(&|value| Date::parse(value).is_some_and(|date| range.contains(&date))),
            Criterion::TimeRange(range) => any(&|value| Time::parse(value).is_some_and(|time| range.contains(&time))),
            Criterion::DateTimeRange(range) => any(&|value| DateTime::parse(value).is_some_and(|t| range.contains(&t))),
            Criterion::Number(numbers) => entity.floats(tag).iter().any(|value| numbers.contains(value)),
            Criterion::AnyOf(criteria) => criteria.iter().any(|criterion| criterion.is_met(entity, tag)),
            Criterion::Sequence(keys) => {
                let all_met = |item: &DataSet| keys.iter().all(|(tag, key)| key.criterion.is_met(item, *tag));
                keys.values().all(|key| key.criterion == Criterion::Universal)
                    || entity.items(tag).is_some_and(|items| items.iter().any(all_met))
            }
        }
    }
}

/// Exactly one value, which may be a range.
fn range<T>(values: &[String], parse: impl Fn(&str) -> Option<Range<T>>) -> Option<Range<T>> {
    match values {
        [value] => parse(value),
        _ => None,
    }
}

fn is_number(vr: VR) -> bool {
    use VR::*;
    matches!(vr, IS | DS | US | UL | SS | SL | UV | SV | FL | FD)
}

/// PS3.4 C.2.2.2.4.
fn allows_wildcards(vr: VR) -> bool {
    use VR::*;
    matches!(vr, AE | CS | LO | LT | PN | SH | ST | UC | UR | UT | UN)
}
