//! Says whether the log is as it was written, and where it is not. Reads files alone; what the ledger holds is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use alloy::primitives::B256;
use serde::{Deserialize, Serialize};

use super::chain::{Digest, Head, Header, Line};
use super::log::{Segment, segments};

/// Findings that are told at most: after the first, the others are mostly its consequences.
const FINDINGS_MAX: usize = 100;

/// A head that the ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Name of the log.
    pub log: B256,
    /// Digest of the record `records`.
    pub head: B256,
    /// Records that the log had.
    pub records: u64,
    /// When, in seconds since 1970, by the block.
    pub time_s: u64,
}

/// What is wrong at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// A record or its digest has other bytes than were written.
    Changed,
    /// A line that is no record, where one must be.
    Unreadable,
    /// Records are not there.
    Deleted,
    /// A record that was not written there.
    Inserted,
    /// Records stand in another order.
    Reordered,
    /// The first line of a file is not what must stand there.
    Header,
    /// A record without an end: it was being written when the program or the machine stopped, and nobody was told that it was kept.
    Torn,
    /// The log ends before a place that it had reached.
    Truncated,
    /// The ledger holds another digest of this record.
    NotAsAnchored,
    /// The ledger knows a log that is not here.
    Missing,
}

impl Wrong {
    /// Whether a crash alone explains it.
    #[must_use]
    pub fn is_innocent(self) -> bool {
        self == Self::Torn
    }
}

/// A place that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the file; of a log that is not here, its name on the ledger.
    pub file: String,
    /// The record that must stand there.
    pub record: u64,
    /// Where, in bytes from the file's beginning.
    pub offset: u64,
    /// What is wrong.
    pub wrong: Wrong,
    /// The same in words.
    pub words: String,
}

/// A log that was read from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Its number in the directory.
    pub number: u32,
    /// Its name, hexadecimal.
    pub log: String,
    /// Records that were read.
    pub records: u64,
    /// Digest of the last, hexadecimal.
    pub head: String,
    /// Anchors on the ledger that it agrees with.
    pub anchors: u64,
    /// Records that the newest of them covers.
    pub anchored: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The logs, in order.
    pub logs: Vec<LogReport>,
    /// Everything that is wrong, in order.
    pub findings: Vec<Finding>,
    /// Anchors that the ledger holds; none when it was not asked.
    pub anchors: Option<u64>,
}

impl Report {
    /// Whether nothing is wrong that a crash alone would not explain.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.findings.iter().all(|finding| finding.wrong.is_innocent())
    }
}

/// Reads every log in `dir`. With `anchors`, each is compared with what the ledger holds; `sent` is a log and a record of it that are known
/// to have been durable, such as the last that a repository got.
///
/// # Errors
/// When a file cannot be read.
pub fn verify(dir: &Path, anchors: Option<&[Anchor]>, sent: Option<(u32, u64)>) -> io::Result<Report> {
    let mut report = Report { anchors: anchors.map(|all| all.len() as u64), ..Report::default() };
    let mut by_log: BTreeMap<u32, Vec<Segment>> = BTreeMap::new();
    for segment in segments(dir)? {
        by_log.entry(segment.log).or_default().push(segment);
    }
    let mut names = BTreeSet::new();
    for (number, files) in by_log {
        let mut walk = Walk::new(anchors.unwrap_or_default(), &mut report.findings);
        walk.files(&files)?;
        if let Some((_, record)) = sent.filter(|(log, record)| *log == number && *record > walk.head.records) {
            walk.truncated(record, "the repository has got");
        }
        let log = walk.end();
        names.insert(log.log.clone());
        report.logs.push(LogReport { number, ..log });
    }
    let missing = anchors.unwrap_or_default().iter().filter(|anchor| !names.contains(&hex::encode(anchor.log)));
    let missing: BTreeMap<B256, &Anchor> = missing.map(|anchor| (anchor.log, anchor)).collect();
    for anchor in missing.values() {
        report.findings.push(Finding {
            file: hex::encode(anchor.log),
            record: anchor.records,
            offset: 0,
            wrong: Wrong::Missing,
            words: format!("a log that had {} records when it was anchored is not here", anchor.records),
        });
    }
    Ok(report)
}

/// A line and where it stands.
#[derive(Clone, Copy)]
struct Place<'f> {
    bytes: &'f [u8],
    offset: u64,
}

/// The way through the files of one log.
struct Walk<'a> {
    anchors: &'a [Anchor],
    findings: &'a mut Vec<Finding>,
    head: Head,
    named: bool,
    /// Anchors that agreed, and what the newest covers.
    agreed: (u64, u64),
    /// Records that were met too early, with the digests that stand there.
    early: BTreeMap<u64, Digest>,
    file: String,
    end: u64,
}

impl<'a> Walk<'a> {
    fn new(anchors: &'a [Anchor], findings: &'a mut Vec<Finding>) -> Self {
        let (head, early, file) = (Head::default(), BTreeMap::new(), String::new());
        Self { anchors, findings, head, named: false, agreed: (0, 0), early, file, end: 0 }
    }

    fn files(&mut self, files: &[Segment]) -> io::Result<()> {
        for (at, segment) in files.iter().enumerate() {
            self.file = segment.name();
            self.one_file(&fs::read(&segment.path)?, at + 1 == files.len(), segment.first);
        }
        Ok(())
    }

    fn one_file(&mut self, bytes: &[u8], is_last: bool, first: u64) {
        let mut places = Vec::new();
        let mut offset = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            places.push(Place { bytes: line, offset });
            offset += line.len() as u64;
        }
        self.end = offset;
        let header = places.first().map(|place| place.bytes);
        self.header(header.unwrap_or_default(), first);
        for at in 1..places.len() {
            self.line(&places, at, is_last);
        }
        self.pass_early();
    }

    fn header(&mut self, line: &[u8], first: u64) {
        let header = line.strip_suffix(b"\n").and_then(Header::parse).filter(|header| header.first == first);
        let Some(header) = header else {
            self.find(0, Wrong::Header, "the first line is not what a file of this name begins with".into());
            // The records can still be compared with each other.
            if first > self.head.records + 1 {
                self.gap(first, 0);
            }
            return;
        };
        if !self.named {
            self.named = true;
            self.head = Head::empty(header.log);
            if header.first == 1 && header.before != header.log {
                self.find(0, Wrong::Header, "the log does not begin with its name".into());
            }
        }
        if header.first > self.head.records + 1 {
            self.gap(header.first, 0);
            self.head.digest = header.before;
        } else if header != Header::after(&self.head) {
            self.find(0, Wrong::Header, "the first line does not go on where the file before ended".into());
        }
    }

    /// Records up to `next` are not there.
    fn gap(&mut self, next: u64, offset: u64) {
        let missing = self.head.records + 1;
        let words = match next - missing {
            1 => format!("record {missing} is not there"),
            _ => format!("records {missing} to {} are not there", next - 1),
        };
        self.find(offset, Wrong::Deleted, words);
        self.head.records = next - 1;
    }

    fn line(&mut self, places: &[Place<'_>], at: usize, is_last: bool) {
        let Place { bytes, offset } = places[at];
        let Some(complete) = bytes.strip_suffix(b"\n") else {
            let innocent = is_last && at + 1 == places.len();
            let wrong = if innocent { Wrong::Torn } else { Wrong::Unreadable };
            return self.find(offset, wrong, "the last record of the file has no end".into());
        };
        let Some(line) = Line::parse(complete) else {
            return self.find(offset, Wrong::Unreadable, "this line is no record".into());
        };
        self.pass_early();
        let expected = self.head.records + 1;
        if line.number == expected {
            return self.expected(&line, &places[at + 1..], offset);
        }
        if line.would_be(expected, &self.head.digest) {
            self.find(
                offset,
                Wrong::Changed,
                format!("the number of record {expected} was changed to {}", line.number),
            );
            return self.take(expected, line.digest);
        }
        if line.number < expected {
            return self.find(offset, Wrong::Inserted, format!("a record {} stands here once more", line.number));
        }
        let comes_later = places[at + 1..].iter().any(|place| number_of(place) == Some(expected));
        if comes_later {
            self.find(offset, Wrong::Reordered, format!("record {} stands before record {expected}", line.number));
            self.early.insert(line.number, line.digest);
        } else {
            self.gap(line.number, offset);
            // What was before it is gone, so its own digest can be compared with nothing but what follows.
            self.take(line.number, line.digest);
        }
    }

    /// The record that must stand here does, at least by its number.
    fn expected(&mut self, line: &Line<'_>, after: &[Place<'_>], offset: u64) {
        let right = line.digest_after(&self.head.digest);
        if line.digest == right {
            return self.take(line.number, line.digest);
        }
        let next = after.first().and_then(|place| Line::parse(place.bytes.strip_suffix(b"\n")?));
        if next.is_some_and(|next| next.number == line.number && next.digest_after(&self.head.digest) == next.digest) {
            return self.find(
                offset,
                Wrong::Inserted,
                format!("a record that was not written stands before record {}", line.number),
            );
        }
        self.find(offset, Wrong::Changed, format!("record {} or its digest was changed", line.number));
        // Where the digest was changed and not the record, what follows goes with the right one.
        let follows_right = next.is_some_and(|next| next.digest_after(&right) == next.digest);
        self.take(line.number, if follows_right { right } else { line.digest });
    }

    /// Goes on over records whose place this is and that were met before.
    fn pass_early(&mut self) {
        while let Some(digest) = self.early.remove(&(self.head.records + 1)) {
            self.take(self.head.records + 1, digest);
        }
    }

    fn take(&mut self, number: u64, digest: Digest) {
        (self.head.records, self.head.digest) = (number, digest);
        let log = self.head.log;
        let anchors = self.anchors;
        for anchor in anchors.iter().filter(|anchor| anchor.log.0 == log && anchor.records == number) {
            if anchor.head.0 == digest {
                self.agreed = (self.agreed.0 + 1, number);
            } else {
                self.find(
                    self.end,
                    Wrong::NotAsAnchored,
                    format!("the ledger holds another digest of record {number}"),
                );
            }
        }
    }

    fn truncated(&mut self, records: u64, whoever: &str) {
        let words = format!("the log ends after record {}, and {whoever} {records}", self.head.records);
        let offset = self.end;
        self.find(offset, Wrong::Truncated, words);
    }

    fn find(&mut self, offset: u64, wrong: Wrong, words: String) {
        if self.findings.len() < FINDINGS_MAX {
            let record = self.head.records + u64::from(wrong != Wrong::NotAsAnchored);
            self.findings.push(Finding { file: self.file.clone(), record, offset, wrong, words });
        }
    }

    fn end(mut self) -> LogReport {
        self.pass_early();
        let log = self.head.log;
        let longest = self.anchors.iter().filter(|anchor| anchor.log.0 == log).map(|anchor| anchor.records).max();
        if let Some(longest) = longest.filter(|longest| *longest > self.head.records) {
            self.truncated(longest, "on the ledger it has");
        }
        LogReport {
            number: 0,
            log: hex::encode(log),
            records: self.head.records,
            head: hex::encode(self.head.digest),
            anchors: self.agreed.0,
            anchored: self.agreed.1,
        }
    }
}

fn number_of(place: &Place<'_>) -> Option<u64> {
    Some(Line::parse(place.bytes.strip_suffix(b"\n")?)?.number)
}
