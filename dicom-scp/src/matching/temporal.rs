//! Dates, times and ranges of them (PS3.5 6.2 DA, TM, DT; PS3.4 C.2.2.2.5).

use std::cmp::Ordering;

/// Both ends included; an open end is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<T> {
    /// The earliest.
    pub from: Option<T>,
    /// The latest.
    pub to: Option<T>,
}

impl<T: PartialOrd> Range<T> {
    /// Whether `value` is neither before nor after.
    pub fn contains(&self, value: &T) -> bool {
        self.from.as_ref().is_none_or(|from| from <= value) && self.to.as_ref().is_none_or(|to| value <= to)
    }
}

/// A calendar date as the number `yyyymmdd`, so that the order of numbers is the order of days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(u32);

impl Date {
    /// Parses `yyyymmdd` or the old `yyyy.mm.dd`.
    pub fn parse(text: &str) -> Option<Date> {
        let text = text.trim();
        let digits: String = match text.len() {
            8 => text.to_owned(),
            10 => text.replace('.', ""),
            _ => return None,
        };
        if digits.len() != 8 {
            return None;
        }
        let date = Date(number(&digits)?);
        let (month, day) = (date.0 / 100 % 100, date.0 % 100);
        ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some(date)
    }

    /// The number `yyyymmdd`.
    pub fn yyyymmdd(self) -> u32 {
        self.0
    }

    /// Parses a single date or a range with `-`.
    pub(super) fn range(text: &str) -> Option<Range<Date>> {
        split_range(text, |part| Date::parse(part).map(|date| (date, date)))
    }
}

/// A time of day in microseconds since midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// Midnight.
    pub const START: Time = Time(0);
    /// The last microsecond of the day, leap second included.
    pub const END: Time = Time(86_400_999_999);

    /// Parses `hh[mm[ss[.ffffff]]]` or the old `hh:mm:ss`; missing parts are zero.
    pub fn parse(text: &str) -> Option<Time> {
        Time::span(text).map(|(first, _)| first)
    }

    /// Microseconds since midnight.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// The first and last time that a value of this precision covers.
    fn span(text: &str) -> Option<(Time, Time)> {
        let text = text.trim().replace(':', "");
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let (h, m, s) = (whole.get(0..2)?, whole.get(2..4), whole.get(4..6));
        if !matches!(whole.len(), 2 | 4 | 6) || fraction.len() > 6 || !fraction.is_empty() && whole.len() != 6 {
            return None;
        }
        let part = |text: Option<&str>, max: u32| -> Option<u64> {
            let value = text.map_or(Some(0), number)?;
            (value <= max).then_some(u64::from(value))
        };
        let (h, m, sec) = (part(Some(h), 23)?, part(m, 59)?, part(s, 60)?);
        let micros = if fraction.is_empty() { 0 } else { u64::from(number(&format!("{fraction:0<6}"))?) };
        let covered = match (whole.len(), fraction.len()) {
            (2, _) => 3_600_000_000,
            (4, _) => 60_000_000,
            (_, n) => 10u64.pow(6 - n as u32),
        };
        let first = ((h * 60 + m) * 60 + sec) * 1_000_000 + micros;
        Some((Time(first), Time(first + covered - 1)))
    }

    /// Parses a single time or a range with `-`.
    pub(super) fn range(text: &str) -> Option<Range<Time>> {
        split_range(text, Time::span)
    }
}

/// A date with a time and, for VR DT, perhaps an offset from UTC.
#[derive(Debug, Clone, Copy)]
pub struct DateTime {
    date: Date,
    time: Time,
    /// Minutes east of UTC.
    offset_minutes: Option<i32>,
}

impl DateTime {
    /// A local date and time.
    pub fn new(date: Date, time: Time) -> Self {
        DateTime { date, time, offset_minutes: None }
    }

    /// The date as written.
    pub fn date(&self) -> Date {
        self.date
    }

    /// The time as written.
    pub fn time(&self) -> Time {
        self.time
    }

    /// Parses VR DT: `yyyy[mm[dd[hh[mm[ss[.ffffff]]]]]][&zzxx]`; missing parts are the earliest possible.
    pub fn parse(text: &str) -> Option<DateTime> {
        DateTime::span(text).map(|(first, _)| first)
    }

    fn span(text: &str) -> Option<(DateTime, DateTime)> {
        let text = text.trim();
        let (text, offset_minutes) = match text.rfind(['+', '-']).map(|at| text.split_at(at)) {
            Some((text, offset)) => (text, Some(parse_offset(offset)?)),
            None => (text, None),
        };
        let digits = text.split('.').next()?.len();
        let (first, last) = match digits {
            4 => (format!("{text}0101"), format!("{text}1231")),
            6 => (format!("{text}01"), format!("{text}31")),
            _ => (text.get(..8)?.to_owned(), text.get(..8)?.to_owned()),
        };
        let (first, last) = (Date::parse(&first)?, Date::parse(&last)?);
        let (start, end) = if digits > 8 { Time::span(text.get(8..)?)? } else { (Time::START, Time::END) };
        Some((
            DateTime { date: first, time: start, offset_minutes },
            DateTime { date: last, time: end, offset_minutes },
        ))
    }

    /// Parses a single DT or a range. A hyphen may also be the sign of an offset: it is when four digits up to 1400 follow it and
    /// then nothing or another hyphen.
    pub(super) fn range(text: &str) -> Option<Range<DateTime>> {
        let is_offset = |at: usize| {
            let rest = text.get(at + 1..).unwrap_or_default();
            let digits = rest.get(..4).unwrap_or_default();
            at > 0
                && number(digits).is_some_and(|offset| digits.len() == 4 && offset <= 1400)
                && (rest.len() == 4 || rest.get(4..5) == Some("-"))
        };
        let separator = text.match_indices('-').map(|(at, _)| at).find(|at| !is_offset(*at));
        match separator {
            Some(at) => {
                let (from, to) = (text.get(..at)?, text.get(at + 1..)?);
                range_of(from, to, DateTime::span)
            }
            None => DateTime::span(text).map(|(first, last)| Range { from: Some(first), to: Some(last) }),
        }
    }

    /// Microseconds on a time line where every month has 31 days, which keeps order and differences within a day.
    fn line(&self) -> i64 {
        let n = i64::from(self.date.0);
        let days = (n / 10_000 * 12 + n / 100 % 100) * 31 + n % 100;
        days * 86_400_000_000 + self.time.0 as i64
    }
}

/// Offsets count only where both have one.
impl PartialOrd for DateTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let shift = match (self.offset_minutes, other.offset_minutes) {
            (Some(own), Some(others)) => i64::from(own - others) * 60_000_000,
            _ => 0,
        };
        Some((self.line() - shift).cmp(&other.line()))
    }
}

impl PartialEq for DateTime {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

fn parse_offset(text: &str) -> Option<i32> {
    let (sign, digits) = text.split_at_checked(1)?;
    if digits.len() != 4 {
        return None;
    }
    let value = i32::try_from(number(digits)?).ok()?;
    let minutes = value / 100 * 60 + value % 100;
    Some(if sign == "-" { -minutes } else { minutes })
}

fn number(digits: &str) -> Option<u32> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn split_range<T>(text: &str, span: impl Fn(&str) -> Option<(T, T)>) -> Option<Range<T>> {
    match text.split_once('-') {
        Some((from, to)) => range_of(from, to, span),
        None => span(text).map(|(first, last)| Range { from: Some(first), to: Some(last) }),
    }
}

/// At least one end must be there.
fn range_of<T>(from: &str, to: &str, span: impl Fn(&str) -> Option<(T, T)>) -> Option<Range<T>> {
    let (from, to) = (from.trim(), to.trim());
    if from.is_empty() && to.is_empty() {
        return None;
    }
    let from = if from.is_empty() { None } else { Some(span(from)?.0) };
    let to = if to.is_empty() { None } else { Some(span(to)?.1) };
    Some(Range { from, to })
}
