//! The ZIP archive around a study's files: stored, with fixed names and times, so that equal files in equal order are equal bytes and the
//! length is known before the first of them (PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3). Pure.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// 1980-01-01 in the format of MS-DOS, the earliest day there is; the time beside it is midnight.
const DATE: u16 = 0x0021;
/// What a field of 32 bits says when ZIP64 has the value.
const IN_ZIP64_32: u32 = u32::MAX;
/// What a field of 16 bits says when ZIP64 has the value.
const IN_ZIP64_16: u16 = u16::MAX;
/// Versions needed to extract: with and without ZIP64.
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;

/// A file as far as its archive must know it in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Length in bytes.
    pub(super) bytes: u64,
    /// CRC-32 of the content.
    pub(super) crc32: u32,
}

/// An archive whose entries are known.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    entries: Vec<Entry>,
    /// Where the local header of each entry begins.
    offsets: Vec<u64>,
    /// Where the central directory begins.
    directory: u64,
}

impl Layout {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let mut at = 0;
        let mut offsets = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            offsets.push(at);
            at += local_header(index, *entry).len() as u64 + entry.bytes;
        }
        Self { entries, offsets, directory: at }
    }

    /// Length of the whole archive.
    pub(super) fn bytes(&self) -> u64 {
        self.directory + self.end().len() as u64
    }

    /// What goes before the content of an entry.
    pub(super) fn header(&self, index: usize) -> Vec<u8> {
        self.entries.get(index).map(|entry| local_header(index, *entry)).unwrap_or_default()
    }

    /// What goes after the content of the last entry.
    pub(super) fn end(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, (entry, offset)) in self.entries.iter().zip(&self.offsets).enumerate() {
            write_central(&mut out, index, *entry, *offset);
        }
        let bytes = out.len() as u64;
        let count = self.entries.len() as u64;
        let narrow = u16::try_from(count).is_ok_and(|count| count != IN_ZIP64_16);
        if !narrow || is_wide(bytes) || is_wide(self.directory) {
            self.write_zip64_end(&mut out, count, bytes);
        }
        out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        let count = if narrow { u16::try_from(count).unwrap_or(IN_ZIP64_16) } else { IN_ZIP64_16 };
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&narrowed(bytes).to_le_bytes());
        out.extend_from_slice(&narrowed(self.directory).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out
    }

    /// The ZIP64 end of central directory record and its locator.
    fn write_zip64_end(&self, out: &mut Vec<u8>, count: u64, bytes: u64) {
        let record = self.directory + bytes;
        out.extend_from_slice(b"PK\x06\x06");
        out.extend_from_slice(&44_u64.to_le_bytes());
        out.extend_from_slice(&VERSION_ZIP64.to_le_bytes());
        out.extend_from_slice(&VERSION_ZIP64.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for value in [count, count, bytes, self.directory] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
        out.extend_from_slice(&record.to_le_bytes());
        out.extend_from_slice(&1_u32.to_le_bytes());
    }
}

fn name(index: usize) -> String {
    format!("{:08}.dcm", index + 1)
}

fn is_wide(value: u64) -> bool {
    value >= u64::from(IN_ZIP64_32)
}

fn narrowed(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(IN_ZIP64_32)
}

/// Version needed, flags, method and time: the same everywhere but for the version.
fn write_common(out: &mut Vec<u8>, version: u16, entry: Entry) {
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&DATE.to_le_bytes());
    out.extend_from_slice(&entry.crc32.to_le_bytes());
    let bytes = narrowed(entry.bytes);
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
}

/// The extra field of ZIP64 with these values; nothing without any.
fn zip64_extra(values: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    if !values.is_empty() {
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&u16::try_from(values.len() * 8).unwrap_or(0).to_le_bytes());
        values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    }
    out
}

fn write_lengths(out: &mut Vec<u8>, name: &str, extra: &[u8]) {
    for length in [name.len(), extra.len()] {
        out.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
    }
}

fn local_header(index: usize, entry: Entry) -> Vec<u8> {
    let wide = is_wide(entry.bytes);
    let extra = if wide { zip64_extra(&[entry.bytes, entry.bytes]) } else { Vec::new() };
    let name = name(index);
    let mut out = b"PK\x03\x04".to_vec();
    write_common(&mut out, if wide { VERSION_ZIP64 } else { VERSION }, entry);
    write_lengths(&mut out, &name, &extra);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&extra);
    out
}

fn write_central(out: &mut Vec<u8>, index: usize, entry: Entry, offset: u64) {
    let mut wide = Vec::new();
    if is_wide(entry.bytes) {
        wide.extend([entry.bytes, entry.bytes]);
    }
    if is_wide(offset) {
        wide.push(offset);
    }
    let (name, extra) = (name(index), zip64_extra(&wide));
    let version = if wide.is_empty() { VERSION } else { VERSION_ZIP64 };
    out.extend_from_slice(b"PK\x01\x02");
    out.extend_from_slice(&version.to_le_bytes());
    write_common(out, version, entry);
    write_lengths(out, &name, &extra);
    // Comment, disk, attributes.
    out.extend_from_slice(&[0; 10]);
    out.extend_from_slice(&narrowed(offset).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&extra);
}

/// SHA-256 of every file of an archive that is written like ours, in its order.
pub(super) fn digests(archive: &mut impl Read) -> io::Result<Vec<[u8; 32]>> {
    let mut digests = Vec::new();
    loop {
        let mut signature = [0; 4];
        archive.read_exact(&mut signature)?;
        if signature != *b"PK\x03\x04" {
            return Ok(digests);
        }
        let bytes = read_header(archive)?;
        let mut sha256 = Sha256::new();
        if io::copy(&mut archive.take(bytes), &mut sha256)? != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digests.push(sha256.finalize().into());
    }
}

/// Reads a local header up to the content, whose length it returns.
fn read_header(archive: &mut impl Read) -> io::Result<u64> {
    let mut fields = [0; 26];
    archive.read_exact(&mut fields)?;
    let number = |at: usize| u16::from_le_bytes([fields[at], fields[at + 1]]);
    // Flags and method: content of known length, stored.
    if number(2) != 0 || number(4) != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let narrow = u32::from(number(16)) << 16 | u32::from(number(14));
    let mut rest = vec![0; usize::from(number(22)) + usize::from(number(24))];
    archive.read_exact(&mut rest)?;
    if narrow != IN_ZIP64_32 {
        return Ok(u64::from(narrow));
    }
    let wide = rest.get(usize::from(number(22)) + 4..).and_then(|extra| extra.first_chunk());
    wide.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn whole(files: &[&[u8]]) -> Vec<u8> {
        let entries = files.iter().map(|f| Entry { bytes: f.len() as u64, crc32: crc32fast::hash(f) }).collect();
        let layout = Layout::new(entries);
        let mut out = Vec::new();
        for (index, file) in files.iter().enumerate() {
            out.extend(layout.header(index));
            out.extend_from_slice(file);
        }
        out.extend(layout.end());
        assert_eq!(out.len() as u64, layout.bytes());
        let expected: Vec<[u8; 32]> = files.iter().map(|file| Sha256::digest(file).into()).collect();
        assert_eq!(digests(&mut out.as_slice()).unwrap(), expected);
        out
    }

    #[test]
    fn the_length_is_known_in_advance_and_equal_files_are_equal_bytes() {
        let archive = whole(&[b"one", b"", b"three"]);
        assert_eq!(archive, whole(&[b"one", b"", b"three"]));
        assert_eq!(&archive[..4], b"PK\x03\x04");
        assert_eq!(&archive[30..42], b"00000001.dcm");
        whole(&[]);
    }

    #[test]
    fn what_does_not_fit_into_32_bits_is_in_zip64() {
        let wide = Entry { bytes: u64::from(u32::MAX), crc32: 7 };
        let layout = Layout::new(vec![wide, wide]);
        assert_eq!(layout.header(0)[4..6], VERSION_ZIP64.to_le_bytes());
        assert_eq!(layout.header(0)[18..26], [0xFF; 8]);
        assert_eq!(layout.header(0).len(), 30 + 12 + 20);
        let end = layout.end();
        // Both entries have sizes there, the second an offset as well.
        let directory = (46 + 12 + 20) + (46 + 12 + 28);
        assert_eq!(&end[directory..directory + 4], b"PK\x06\x06");
        assert_eq!(end.len(), directory + 56 + 20 + 22);
        let offset = u64::from_le_bytes(end[directory + 48..directory + 56].try_into().unwrap());
        assert_eq!(offset, 2 * (62 + u64::from(u32::MAX)));
        assert_eq!(layout.bytes(), offset + end.len() as u64);
        let many = Layout::new(vec![Entry { bytes: 0, crc32: 0 }; 65_535]).end();
        assert_eq!(&many[many.len() - 98..many.len() - 94], b"PK\x06\x06");
    }
}
