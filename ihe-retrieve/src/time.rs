//! `xs:dateTime` with a time zone, to and from milliseconds since 1970-01-01T00:00:00Z. What time it is now is the caller's to say.

const DAY_MS: i64 = 86_400_000;

/// Reads `YYYY-MM-DDThh:mm:ss[.fff…](Z|±hh:mm)`. Digits beyond milliseconds are cut off. A time without a zone is nobody's time, so it is
/// refused.
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() < 20 || bytes.len() > 64 || !text.is_ascii() {
        return None;
    }
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, expected)| bytes[*at] != *expected) {
        return None;
    }
    let (year, month, day) = (number(&text[..4])?, number(&text[5..7])?, number(&text[8..10])?);
    let (hour, minute, second) = (number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?);
    let in_range = (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
    if !in_range || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (milliseconds, zone) = fraction(&text[19..])?;
    let seconds = (hour * 60 + minute) * 60 + second;
    Some(days_from_epoch(year, month, day) * DAY_MS + seconds * 1000 + milliseconds - zone_ms(zone)?)
}

/// Writes `YYYY-MM-DDThh:mm:ss.fffZ`; the years are 1970 to 9999, and what is outside becomes the nearest of them.
pub fn format(time_ms: i64) -> String {
    let time_ms = time_ms.clamp(0, 253_402_300_799_999);
    let (mut days, in_day) = (time_ms / DAY_MS, time_ms % DAY_MS);
    let mut year = 1970;
    while days >= days_in_year(year) {
        days -= days_in_year(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_in_month(year, month) {
        days -= days_in_month(year, month);
        month += 1;
    }
    let (seconds, milliseconds) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z", days + 1)
}

fn number(digits: &str) -> Option<i64> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The fraction of a second in milliseconds, and what follows it.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    let digits = rest[..length].bytes().chain(std::iter::repeat(b'0')).take(3);
    let milliseconds = digits.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    (length > 0).then_some((milliseconds, &rest[length..]))
}

fn zone_ms(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 14 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60_000)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_year(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days in the proleptic Gregorian calendar.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let to_year = before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let to_month: i64 = (1..month).map(|m| days_in_month(year, m)).sum();
    // 719,162 days from 0001-01-01 to 1970-01-01.
    to_year + to_month + day - 1 - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_there_and_back() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse("2026-11-28T22:05:42.1239Z"), Some(1_795_903_542_123));
        assert_eq!(parse("2026-11-28T23:35:42.1+01:30"), parse("2026-11-28T22:05:42.100Z"));
        assert_eq!(parse("2000-02-29T12:00:00-14:00"), Some(951_825_600_000 + 14 * 3_600_000));
        for ms in [0, 951_782_399_999, 951_782_400_000, 1_795_903_542_123, 253_402_300_799_999] {
            assert_eq!(parse(&format(ms)), Some(ms), "{}", format(ms));
        }
    }

    #[test]
    fn what_is_no_time() {
        for text in [
            "",
            "2026-11-28T22:05:42",
            "2026-11-28 22:05:42Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+15:00",
            "2026-01-01T00:00:00ZZ",
            "-026-01-01T00:00:00Z",
            "2026-01-01T00:00:0\u{e9}Z",
            "2026-01-01T+1:00:00Z",
            "12026-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
