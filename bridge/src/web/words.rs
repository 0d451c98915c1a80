//! What pages say of states, names, dates and sizes. Plain words for people in hospitals; pure.

use contracts::messages::Purpose;

use crate::decide::moment;
use crate::site::{State, StudyRow};

/// How a badge looks besides what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Waiting,
    Bad,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "badge ok",
            Self::Waiting => "badge wait",
            Self::Bad => "badge bad",
        }
    }
}

/// Where a study is on its way.
pub(super) fn state(row: &StudyRow) -> (Tone, String) {
    match row.state {
        State::Archived => (Tone::Good, "kept here".to_owned()),
        State::Receiving => (Tone::Waiting, "receiving".to_owned()),
        State::Queued => (Tone::Waiting, "waiting for its turn".to_owned()),
        State::Publishing | State::Viewable if row.pieces > 0 => {
            (Tone::Waiting, format!("pieces {} of {}", row.pieces_seen, row.pieces))
        }
        State::Publishing | State::Viewable => (Tone::Waiting, "writing to the ledger".to_owned()),
        State::Final => (Tone::Good, "final".to_owned()),
        State::Granted => (Tone::Good, "from another site".to_owned()),
    }
}

/// A name in parts (PS3.5 6.2.1) as people write it: the alphabetic group, family name first.
pub(super) fn person(name: &str) -> String {
    let group = name.split('=').find(|group| !group.trim_matches([' ', '^']).is_empty()).unwrap_or_default();
    let mut parts = group.split('^').map(str::trim);
    let family = parts.next().unwrap_or_default().to_owned();
    let given = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    match (family.is_empty(), given.is_empty()) {
        (true, true) => "no name".to_owned(),
        (false, true) => family,
        (true, false) => given,
        (false, false) => format!("{family}, {given}"),
    }
}

/// A date of DICOM (PS3.5 6.2, DA), or what stands in its place.
pub(super) fn date(text: &str) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parsed = || {
        let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit());
        let (year, rest) = text.split_at_checked(4).filter(|_| digits)?;
        let (month, day) = rest.split_at(2);
        let month = MONTHS.get(month.parse::<usize>().ok()?.checked_sub(1)?)?;
        Some(format!("{} {month} {year}", day.trim_start_matches('0')))
    };
    parsed().unwrap_or_else(|| if text.is_empty() { "no date".to_owned() } else { text.to_owned() })
}

/// Seconds since 1970 as people read them, in UTC.
pub(super) fn time(unix_s: u64) -> String {
    moment(unix_s).trim_end_matches('Z').to_owned() + " UTC"
}

/// The same for machines (RFC 3339).
pub(super) fn machine_time(unix_s: u64) -> String {
    moment(unix_s).replacen(' ', "T", 1)
}

/// The day of a second since 1970, in UTC, as forms have it.
pub(super) fn day_of(unix_s: u64) -> String {
    machine_time(unix_s).chars().take(10).collect()
}

/// What something is asked or allowed for.
pub(super) fn purpose(number: u16) -> &'static str {
    match Purpose::from(number) {
        Purpose::Any => "anything",
        Purpose::Treatment => "treatment",
        Purpose::EmergencyTreatment => "treatment in an emergency",
        Purpose::Research => "research",
        Purpose::PatientRequest => "a wish of the patient",
        Purpose::Operations => "the running of the hospital",
        Purpose::Payment => "bills and insurance",
        Purpose::PublicHealth => "public health",
        Purpose::Legal => "proceedings at law",
        Purpose::Education => "teaching",
        _ => "another reason",
    }
}

/// Seconds of milliseconds since 1970.
pub(super) fn seconds(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms / 1000).unwrap_or_default()
}

/// One thing or several.
pub(super) fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// Bytes, to three digits.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if number < 1000 {
        return count(number, "byte", "bytes");
    }
    let (mut left, mut unit) = (number as f64 / 1000.0, 0);
    while left >= 999.5 && unit + 1 < UNITS.len() {
        (left, unit) = (left / 1000.0, unit + 1);
    }
    let digits = if left < 9.95 { 1 } else { 0 };
    format!("{left:.digits$} {}", UNITS[unit])
}

/// How long something is ago or lasts.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => count(seconds, "second", "seconds"),
        120..7_200 => count(seconds / 60, "minute", "minutes"),
        7_200..172_800 => count(seconds / 3_600, "hour", "hours"),
        _ => count(seconds / 86_400, "day", "days"),
    }
}

/// A long name on the ledger, in short.
pub(super) fn short(name: &str) -> String {
    match (name.get(..6), name.get(name.len().saturating_sub(4)..)) {
        (Some(begin), Some(end)) if name.len() > 14 => format!("{begin}…{end}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_dates_and_sizes_are_as_people_write_them() {
        assert_eq!(person("Doe^Jane^Q^Dr"), "Doe, Jane Q Dr");
        assert_eq!(person("Yamada^Tarou=山田^太郎=やまだ^たろう"), "Yamada, Tarou");
        assert_eq!(
            (person(""), person("^^"), person("=山田^太郎")),
            ("no name".into(), "no name".into(), "山田, 太郎".into())
        );
        assert_eq!(
            (date("20030417"), date("20031301"), date("")),
            ("17 Apr 2003".into(), "20031301".into(), "no date".into())
        );
        assert_eq!((date("2003é17"), date("2003.04.17")), ("2003é17".into(), "2003.04.17".into()));
        assert_eq!(
            (bytes(1), bytes(999), bytes(1_940_000), bytes(999_999)),
            ("1 byte".into(), "999 bytes".into(), "1.9 MB".into(), "1.0 MB".into())
        );
        assert_eq!(
            (span(1), span(119), span(7_199), span(200_000)),
            ("1 second".into(), "119 seconds".into(), "119 minutes".into(), "2 days".into())
        );
        assert_eq!(short("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"), "0x7099…79C8");
        assert_eq!(short("0x1234"), "0x1234");
        assert_eq!((time(0), machine_time(0)), ("1970-01-01 00:00:00 UTC".into(), "1970-01-01T00:00:00Z".into()));
    }
}
