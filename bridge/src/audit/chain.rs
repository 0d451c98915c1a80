//! The bytes of the log: one line a record, each chained to the one before. Pure.
//!
//! A segment is a file of lines that end in LF. Its first line is the [`Header`]; every other is
//! `NUMBER SP MILLISECONDS SP DIGEST SP MESSAGE`, where the digest is the SHA-256, in lower-case hexadecimal digits, of the 32 bytes of the
//! digest before and the text `NUMBER SP MILLISECONDS SP MESSAGE`. What stands before the first record of a log is the log's name.

use sha2::{Digest as _, Sha256};

/// A SHA-256, or the random name of a log.
pub(super) type Digest = [u8; 32];

const FORMAT: &str = "pacs-bridge-audit/1";

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The log's name: 32 random bytes, with which its chain begins.
    pub log: Digest,
    /// Number of records.
    pub records: u64,
    /// Digest of the last, or the name where there is none.
    pub digest: Digest,
}

impl Head {
    /// The head of a log without records.
    #[must_use]
    pub fn empty(log: Digest) -> Self {
        Self { log, records: 0, digest: log }
    }

    /// Appends a record to `lines` and goes on to it.
    pub(super) fn push(&mut self, time_ms: u64, message: &str, lines: &mut Vec<u8>) {
        let number = self.records + 1;
        let digest = digest(&self.digest, &number.to_string(), &time_ms.to_string(), message);
        let line = format!("{number} {time_ms} {} {message}\n", hex::encode(digest));
        lines.extend_from_slice(line.as_bytes());
        (self.records, self.digest) = (number, digest);
    }
}

/// What a record's digest is over.
pub(super) fn digest(before: &Digest, number: &str, time_ms: &str, message: &str) -> Digest {
    let mut hash = Sha256::new();
    hash.update(before);
    for part in [number, " ", time_ms, " ", message] {
        hash.update(part);
    }
    hash.finalize().into()
}

/// The first line of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The log's name.
    pub(super) log: Digest,
    /// Number of the first record that follows.
    pub(super) first: u64,
    /// Digest of the record before.
    pub(super) before: Digest,
}

impl Header {
    pub(super) fn after(head: &Head) -> Self {
        Self { log: head.log, first: head.records + 1, before: head.digest }
    }

    /// The head before the first record.
    pub(super) fn head(&self) -> Head {
        Head { log: self.log, records: self.first.saturating_sub(1), digest: self.before }
    }

    pub(super) fn line(&self) -> String {
        format!("{FORMAT} {} {} {}\n", hex::encode(self.log), self.first, hex::encode(self.before))
    }

    /// Reads what [`Self::line`] writes, without its LF; nothing else is one.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let mut parts = text.split(' ').skip(1);
        let header = Self {
            log: parse_digest(parts.next()?)?,
            first: parts.next()?.parse().ok()?,
            before: parse_digest(parts.next()?)?,
        };
        (header.line().strip_suffix('\n') == Some(text)).then_some(header)
    }
}

fn parse_digest(text: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    (hex::encode(bytes) == text).then_some(bytes)
}

/// A record as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// The digest that stands there.
    pub digest: Digest,
    /// The message (DICOM PS3.15 A.5).
    pub message: &'a str,
    number_text: &'a str,
    time_text: &'a str,
}

impl<'a> Line<'a> {
    /// Reads a line without its LF. That it can be read says nothing about its digest.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let mut parts = text.splitn(4, ' ');
        let (number_text, time_text) = (parts.next()?, parts.next()?);
        let digest = parse_digest(parts.next()?)?;
        let message = parts.next()?;
        Some(Self {
            number: decimal(number_text)?,
            time_ms: decimal(time_text)?,
            digest,
            message,
            number_text,
            time_text,
        })
    }

    /// What its digest must be after `before`.
    pub(super) fn digest_after(&self, before: &Digest) -> Digest {
        digest(before, self.number_text, self.time_text, self.message)
    }

    /// Whether it would be right under another number.
    pub(super) fn would_be(&self, number: u64, before: &Digest) -> bool {
        digest(before, &number.to_string(), self.time_text, self.message) == self.digest
    }
}

/// A number written as we write it.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Written down once, so that logs of earlier versions stay readable and others can check their own reading.
    #[test]
    fn a_known_log() {
        let mut head = Head::empty([0x11; 32]);
        let mut lines = Header::after(&head).line().into_bytes();
        head.push(1_700_000_000_000, "<AuditMessage/>", &mut lines);
        let digest = hex::encode(Sha256::digest([&[0x11; 32][..], b"1 1700000000000 <AuditMessage/>"].concat()));
        let eleven = "11".repeat(32);
        let expected = format!("pacs-bridge-audit/1 {eleven} 1 {eleven}\n1 1700000000000 {digest} <AuditMessage/>\n");
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
        assert_eq!((head.records, hex::encode(head.digest)), (1, digest));
    }

    #[test]
    fn numbers_and_digests_have_one_spelling() {
        let digest = "ab".repeat(32);
        assert!(Line::parse(format!("1 2 {digest} x").as_bytes()).is_some());
        for wrong in
            [format!("01 2 {digest} x"), format!("+1 2 {digest} x"), format!("1 2 {} x", digest.to_uppercase())]
        {
            assert_eq!(Line::parse(wrong.as_bytes()), None, "{wrong}");
        }
        let header = Header { log: [1; 32], first: 7, before: [2; 32] };
        let line = header.line();
        assert_eq!(Header::parse(line.trim_end().as_bytes()), Some(header));
        assert_eq!(Header::parse(line.replace(" 7 ", " 07 ").trim_end().as_bytes()), None);
    }
}
