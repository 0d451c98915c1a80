//! What the log says, for people: its records in order, those that are asked for. Whether they are as they were written is for
//! [`super::verify`] to say.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::chain::Line;
use super::log::segments;
use super::xml;

/// Which records are asked for. What is not named does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// From this millisecond since 1970 on.
    pub since_ms: Option<u64>,
    /// Before this one.
    pub until_ms: Option<u64>,
    /// About this study or document, by any of its names.
    pub study: Option<String>,
    /// Somebody of this name takes part: an account, an AE title, a principal.
    pub account: Option<String>,
    /// With this outcome.
    pub outcome: Option<u8>,
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
    /// EventTypeCodes.
    pub types: Vec<String>,
    /// EventOutcomeIndicator.
    pub outcome: u8,
    /// UserIDs of who takes part, the asker first, each with its address.
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
        let mut row =
            Self { record: format!("{log}:{}", line.number), time: xml::instant(line.time_ms), ..Self::default() };
        for (name, attributes) in xml::tags(line.message) {
            let value =
                |wanted: &str| attributes.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
            match name {
                "EventIdentification" => {
                    row.outcome = value("EventOutcomeIndicator").and_then(|outcome| outcome.parse().ok()).unwrap_or(0);
                }
                "EventID" => row.event = value("originalText").unwrap_or_default(),
                "EventTypeCode" => row.types.extend(value("csd-code")),
                "ActiveParticipant" => {
                    let id = value("UserID").unwrap_or_default();
                    let who = value("NetworkAccessPointID").map_or_else(|| id.clone(), |from| format!("{id} ({from})"));
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
        // An id of the ledger is written with and without 0x.
        let bare = |id: &str| id.strip_prefix("0x").unwrap_or(id).to_owned();
        let about = |wanted: &str| row.about.iter().any(|about| named(&bare(wanted), &bare(about)));
        let holds = |account: &str| row.who.iter().any(|who| who.to_lowercase().contains(&account.to_lowercase()));
        self.since_ms.is_none_or(|since| time_ms >= since)
            && self.until_ms.is_none_or(|until| time_ms < until)
            && self.outcome.is_none_or(|outcome| row.outcome == outcome)
            && self.study.as_deref().is_none_or(about)
            && self
                .account
                .as_deref()
                .is_none_or(|account| who(account) || (account.starts_with("0x") && holds(account)))
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
    for segment in segments(dir)?.iter().rev() {
        let mut file = fs::File::open(&segment.path)?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(length.saturating_sub(left)))?;
        file.take(left).read_to_end(&mut bytes)?;
        // What is cut off at its beginning is no record any more.
        let named =
            |line: &&[u8]| std::str::from_utf8(line).is_ok_and(|text| names.iter().any(|name| text.contains(name)));
        for line in bytes.rsplit(|byte| *byte == b'\n').filter(named).filter_map(Line::parse) {
            let row = Row::of(segment.log, &line);
            if wanted.takes(line.time_ms, &row) {
                rows.push(row);
            }
            if rows.len() == rows_max {
                return Ok(rows);
            }
        }
        left = left.saturating_sub(length);
        if left == 0 {
            break;
        }
    }
    Ok(rows)
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
