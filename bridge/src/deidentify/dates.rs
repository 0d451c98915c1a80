//! Moving dates by whole days (PS3.5 6.2: DA, DT), and telling dates and times from other text.
//!
//! The time of day stays as it is, so intervals within and between the objects of a patient stay as they are.

use dicom_scp::dataset::VR;

/// The value moved by so many days; `None` when it is not what its VR promises, so that it must not be kept.
pub(super) fn shifted(vr: VR, value: &str, days: i64) -> Option<String> {
    let value = value.trim();
    match vr {
        VR::DA => date(value, days),
        VR::DT => {
            let rest = value.get(8..)?;
            (is_time(rest) || rest.is_empty()).then_some(())?;
            Some(date(value.get(..8)?, days)? + rest)
        }
        _ => is_time(value).then(|| value.to_owned()),
    }
}

/// Digits, a fraction, and the offset from UTC.
fn is_time(text: &str) -> bool {
    !text.is_empty() && text.len() <= 18 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b':' | b'+' | b'-'))
}

fn date(text: &str, days: i64) -> Option<String> {
    // YYYY.MM.DD is the form of ACR-NEMA, still found.
    let text = if text.len() == 10 { text.replace('.', "") } else { text.to_owned() };
    if text.len() != 8 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |range| text.get(range).and_then(|digits: &str| digits.parse::<i64>().ok());
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let number = day_number(year, month, day);
    // A date that does not come back as itself (the 31st of April) is none.
    (civil(number) == (year, month, day)).then_some(())?;
    let (year, month, day) = civil(number.checked_add(days)?);
    (1..=9999).contains(&year).then(|| format!("{year:04}{month:02}{day:02}"))
}

/// Days since 1 March of year 0 in the Gregorian calendar, years beginning in March so that the leap day is the last.
fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day - 1
}

fn civil(number: i64) -> (i64, i64, i64) {
    // 146,097 days in 400 years; the estimate is at most one year too high.
    let mut year = (400 * number + 399).div_euclid(146_097);
    let begin = |year: i64| day_number(year, 3, 1);
    while begin(year) > number {
        year -= 1;
    }
    let in_year = number - begin(year);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12 + 1;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        let first = day_number(1800, 1, 1);
        for number in first..first + 146_100 {
            let (year, month, day) = civil(number);
            assert_eq!(day_number(year, month, day), number);
            assert!((1..=12).contains(&month) && (1..=31).contains(&day), "{year} {month} {day}");
        }
        assert_eq!(civil(first), (1800, 1, 1));
    }

    #[test]
    fn dates_move_and_times_stay() {
        assert_eq!(shifted(VR::DA, "20240301", -1).unwrap(), "20240229");
        assert_eq!(shifted(VR::DA, "2023.03.01", -1).unwrap(), "20230228");
        assert_eq!(shifted(VR::DT, "20240101120000.5+0100", -1).unwrap(), "20231231120000.5+0100");
        assert_eq!(shifted(VR::TM, "235959.99", -1).unwrap(), "235959.99");
    }

    #[test]
    fn what_is_no_date_is_not_kept() {
        for text in ["20230229", "2023022", "SMITH", "20230101-20230202", "", "0000"] {
            assert_eq!(shifted(VR::DA, text, 0), None, "{text}");
        }
        assert_eq!(shifted(VR::TM, "Smith", 0), None);
        assert_eq!(shifted(VR::DT, "20240101Smith", 0), None);
    }
}
