//! What the log says, for people: its records in order, those that are asked for. Whether they are as they were written is for
//! [`super::verify`] to say.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::back::{Backwards, Found};
use super::chain::Line;
use super::event::VOUCHED;
use super::log::segments;
use super::xml;

pub use super::back::Place;

/// How far clocks may have been set between records: who asks for those since a moment is not looked for among records that are older than it by more.
const SET_MS_MAX: u64 = 24 * 3600 * 1000;

/// Which records are asked for. What is not named does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// From this millisecond since 1970 on.
    pub since_ms: Option<u64>,
    /// Before this one.
    pub until_ms: Option<u64>,
    /// About a study or document, by one of its names, of which there may be several.
    pub study: Vec<String>,
    /// Somebody of this name takes part: an account, an AE title, a principal.
    pub account: Option<String>,
    /// With this outcome.
    pub outcome: Option<u8>,
    /// Somebody takes part in whose name or address this stands.
    pub anybody: Option<String>,
    /// Of this kind: its EventID, or one of its EventTypeCodes.
    pub kind: Option<String>,
}

/// A record, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Number of the log and of the record in it.
    pub record: String,
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// EventID in words.
    pub event: String,
    /// EventID as a code.
    #[serde(default)]
    pub code: String,
    /// EventTypeCodes.
    pub types: Vec<String>,
    /// The same in words.
    #[serde(default)]
    pub type_words: Vec<String>,
    /// EventOutcomeIndicator.
    pub outcome: u8,
    /// EventOutcomeDescription: why, or what exactly.
    #[serde(default)]
    pub why: Option<String>,
    /// UserIDs of who takes part, the asker first, each with its address, and with an issuer's word for him where he is here by that.
    pub who: Vec<String>,
    /// ParticipantObjectIDs.
    pub about: Vec<String>,
}

/// A record with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Name of the log, hexadecimal.
    pub log: String,
    /// Number of the record.
    pub number: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Digest of the record before, or the name of the log.
    pub before: String,
    /// SHA-256 of the 32 bytes of `before` and the text `NUMBER SP TIME SP MESSAGE`.
    pub digest: String,
    /// The message.
    pub message: String,
}

impl Row {
    fn of(log: u32, line: &Line<'_>) -> Self {
        let mut row = Self {
            record: format!("{log}:{}", line.number),
            time: xml::instant(line.time_ms),
            why: xml::text_of(line.message, "EventOutcomeDescription"),
            ..Self::default()
        };
        for (name, attributes) in xml::tags(line.message) {
            let value =
                |wanted: &str| attributes.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
            match name {
                "EventIdentification" => {
                    row.outcome = value("EventOutcomeIndicator").and_then(|outcome| outcome.parse().ok()).unwrap_or(0);
                }
                "EventID" => {
                    row.event = value("originalText").unwrap_or_default();
                    row.code = value("csd-code").unwrap_or_default();
                }
                "EventTypeCode" => {
                    row.types.extend(value("csd-code"));
                    row.type_words.extend(value("originalText"));
                }
                "ActiveParticipant" => {
                    let id = value("UserID").unwrap_or_default();
                    // AE titles and process numbers say no more than the id; by whose word somebody is here does.
                    let word = value("AlternativeUserID").filter(|word| word.starts_with(VOUCHED));
                    let details: Vec<_> = value("NetworkAccessPointID").into_iter().chain(word).collect();
                    let who = if details.is_empty() { id } else { format!("{id} ({})", details.join(", ")) };
                    match value("UserIsRequestor").as_deref() {
                        Some("true") => row.who.insert(0, who),
                        _ => row.who.push(who),
                    }
                }
                "ParticipantObjectIdentification" => row.about.extend(value("ParticipantObjectID")),
                _ => {}
            }
        }
        row
    }
}

impl Wanted {
    fn takes(&self, time_ms: u64, row: &Row) -> bool {
        let named = |wanted: &str, found: &str| found.to_lowercase() == wanted.to_lowercase();
        let who = |wanted: &str| row.who.iter().any(|who| named(wanted, who.split(" (").next().unwrap_or_default()));
        let by_word = |wanted: &str| {
            let details = |who: &str| {
                who.split_once(" (")
                    .is_some_and(|(_, all)| all.trim_end_matches(')').split(", ").any(|one| one == wanted))
            };
            wanted.starts_with(VOUCHED) && row.who.iter().any(|who| details(who))
        };
        // An id of the ledger is written with and without 0x.
        let bare = |id: &str| id.strip_prefix("0x").unwrap_or(id).to_owned();
        let about = |wanted: &String| row.about.iter().any(|about| named(&bare(wanted), &bare(about)));
        let holds = |account: &str| row.who.iter().any(|who| who.to_lowercase().contains(&account.to_lowercase()));
        self.since_ms.is_none_or(|since| time_ms >= since)
            && self.until_ms.is_none_or(|until| time_ms < until)
            && self.outcome.is_none_or(|outcome| row.outcome == outcome)
            && (self.study.is_empty() || self.study.iter().any(about))
            && self.kind.as_ref().is_none_or(|kind| row.code == *kind || row.types.contains(kind))
            && self.anybody.as_deref().is_none_or(holds)
            && self
                .account
                .as_deref()
                .is_none_or(|account| who(account) || by_word(account) || (account.starts_with("0x") && holds(account)))
    }
}

/// Every record that is asked for, in order.
///
/// # Errors
/// When a file cannot be read.
pub fn list(dir: &Path, wanted: &Wanted) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    each(dir, wanted, |row, _| rows.push(row))?;
    Ok(rows)
}

/// The newest records in which one of these names stands and that are asked for, the newest first: no more than so many, and of no more than so many bytes at
/// the end of the log. For pages, which must not wait for years of it.
///
/// # Errors
/// When a file cannot be read.
pub fn newest(dir: &Path, names: &[&str], wanted: &Wanted, rows_max: usize, bytes_max: u64) -> io::Result<Vec<Row>> {
    let (mut rows, mut left) = (Vec::new(), bytes_max);
    let named = |line: &[u8]| std::str::from_utf8(line).is_ok_and(|text| names.iter().any(|name| text.contains(name)));
    back(dir, wanted, None, named, |found, row| {
        left = left.saturating_sub(found.line.len() as u64);
        rows.extend(row);
        if rows.len() >= rows_max || left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

/// A record on a page, with what says whether the ledger covers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name of its log, hexadecimal; empty where the file does not say it.
    pub log: String,
    /// Its number there.
    pub number: u64,
    /// The digest that stands in the log, hexadecimal.
    pub digest: String,
    /// What it says.
    pub row: Row,
}

impl Listed {
    fn of(found: &Found, row: Row) -> Option<Self> {
        let line = Line::parse(&found.line)?;
        let log = found.name.map(hex::encode).unwrap_or_default();
        Some(Self { log, number: line.number, digest: hex::encode(line.digest), row })
    }
}

/// Some of the records that are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The newest first.
    pub rows: Vec<Listed>,
    /// Where to go on; none at the beginning of the log.
    pub next: Option<Place>,
    /// Of when the record is that was looked at last, where more were looked at than a page may: there may be others before it.
    pub looked_to: Option<String>,
}

/// Records that are asked for, the newest first, from a place on or from the end: no more than so many, looked for in no more than so many bytes.
///
/// # Errors
/// When a file cannot be read.
pub fn page(dir: &Path, wanted: &Wanted, from: Option<Place>, rows_max: usize, bytes_max: u64) -> io::Result<Page> {
    let (mut page, mut left) = (Page::default(), bytes_max);
    back(
        dir,
        wanted,
        from,
        |_| true,
        |found, row| {
            if page.rows.len() == rows_max {
                return ControlFlow::Break(());
            }
            page.next = Some(found.at);
            page.rows.extend(row.and_then(|row| Listed::of(found, row)));
            left = left.saturating_sub(found.line.len() as u64);
            if left == 0 {
                page.looked_to = Line::parse(&found.line).map(|line| xml::instant(line.time_ms));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    )
    .map(|is_all| {
        page.next = page.next.filter(|_| !is_all);
        page
    })
}

/// Every record that is asked for, the newest first, until somebody has enough.
///
/// # Errors
/// When a file cannot be read.
pub fn each_back(dir: &Path, wanted: &Wanted, mut take: impl FnMut(Listed) -> ControlFlow<()>) -> io::Result<bool> {
    back(
        dir,
        wanted,
        None,
        |_| true,
        |found, row| match row.and_then(|row| Listed::of(found, row)) {
            Some(listed) => take(listed),
            None => ControlFlow::Continue(()),
        },
    )
}

/// Every line from a place back, with what it says if that is asked for. Lines that `looks` passes over are not read. Says whether it came to the end.
fn back(
    dir: &Path,
    wanted: &Wanted,
    from: Option<Place>,
    looks: impl Fn(&[u8]) -> bool,
    mut take: impl FnMut(&Found, Option<Row>) -> ControlFlow<()>,
) -> io::Result<bool> {
    let later = wanted.until_ms.map(|until| until.saturating_add(SET_MS_MAX));
    let earlier = wanted.since_ms.map(|since| since.saturating_sub(SET_MS_MAX));
    let mut lines = Backwards::new(dir, from, later)?;
    while let Some(found) = lines.next()? {
        let line = Line::parse(&found.line).filter(|_| looks(&found.line));
        if line.zip(earlier).is_some_and(|(line, earlier)| line.time_ms < earlier) {
            return Ok(true);
        }
        let row = line.map(|line| (line.time_ms, Row::of(found.log, &line)));
        let row = row.filter(|(time_ms, row)| wanted.takes(*time_ms, row)).map(|(_, row)| row);
        if take(&found, row).is_break() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every record that is asked for, in order, with everything that belongs to it.
///
/// # Errors
/// When a file cannot be read.
pub fn export(dir: &Path, wanted: &Wanted) -> io::Result<Vec<Exported>> {
    let mut all = Vec::new();
    each(dir, wanted, |_, exported| all.push(exported))?;
    Ok(all)
}

fn each(dir: &Path, wanted: &Wanted, mut take: impl FnMut(Row, Exported)) -> io::Result<()> {
    let (mut log, mut before) = (String::new(), String::new());
    for segment in segments(dir)? {
        let bytes = fs::read(&segment.path)?;
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let header = lines.next().and_then(super::chain::Header::parse);
        if let Some(header) = header {
            (log, before) = (hex::encode(header.log), hex::encode(header.before));
        }
        for line in lines.filter_map(Line::parse) {
            let row = Row::of(segment.log, &line);
            let digest = hex::encode(line.digest);
            if wanted.takes(line.time_ms, &row) {
                let (number, time_ms, message) = (line.number, line.time_ms, line.message.to_owned());
                take(row, Exported { log: log.clone(), number, time_ms, before, digest: digest.clone(), message });
            }
            before = digest;
        }
    }
    Ok(())
}
