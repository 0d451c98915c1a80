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
/// Octets read at once.
const RUN_BYTES: usize = 256 * 1024;

/// A file, once it is known what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Length in bytes.
    bytes: u64,
    /// CRC-32 of the content.
    crc32: u32,
}

/// An archive of files of known lengths. What is in them may be found out as they come: each one's checksum goes before its content.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Of the files, in bytes.
    lengths: Vec<u64>,
    /// Where the local header of each entry begins.
    offsets: Vec<u64>,
    /// Where the central directory begins.
    directory: u64,
}

impl Layout {
    /// An archive of files of these lengths, in bytes.
    pub(crate) fn new(lengths: Vec<u64>) -> Self {
        let mut at = 0;
        let mut offsets = Vec::with_capacity(lengths.len());
        for (index, bytes) in lengths.iter().enumerate() {
            offsets.push(at);
            at += local_header(index, Entry { bytes: *bytes, crc32: 0 }).len() as u64 + bytes;
        }
        Self { lengths, offsets, directory: at }
    }

    /// Length of the whole archive.
    pub(crate) fn bytes(&self) -> u64 {
        self.directory + self.end(&[]).len() as u64
    }

    /// What goes before the content of a file.
    pub(crate) fn header(&self, index: usize, crc32: u32) -> Vec<u8> {
        let bytes = self.lengths.get(index).copied();
        bytes.map(|bytes| local_header(index, Entry { bytes, crc32 })).unwrap_or_default()
    }

    /// What goes after the content of the last file, with the checksums of all.
    pub(crate) fn end(&self, checksums: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        let checksums = checksums.iter().copied().chain(std::iter::repeat(0));
        for (index, ((bytes, offset), crc32)) in self.lengths.iter().zip(&self.offsets).zip(checksums).enumerate() {
            write_central(&mut out, index, Entry { bytes: *bytes, crc32 }, *offset);
        }
        let bytes = out.len() as u64;
        let count = self.lengths.len() as u64;
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

/// What comes next in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unpacked<'a> {
    /// A file of this length.
    File(u64),
    /// Octets of it.
    Data(&'a [u8]),
    /// All of them were there.
    FileEnd,
}

/// Takes an archive that is written like ours apart as it arrives.
#[derive(Debug, Default)]
pub(crate) struct Unpacker {
    /// A local header as far as it is here.
    head: Vec<u8>,
    /// Octets of the file that are still to come.
    left: Option<u64>,
    /// After the last file: octets of the central directory that were passed over.
    directory: Option<u64>,
    /// Files so far.
    files: u64,
}

/// Octets of the central directory that a file takes at most, and that its end takes.
const DIRECTORY_BYTES_MAX: u64 = 256;

/// Octets of a local header before its name.
const HEAD_BYTES: usize = 30;

impl Unpacker {
    /// The next event in `octets`, which it shortens; none when it needs more.
    ///
    /// # Errors
    /// For an archive that is written otherwise.
    pub(crate) fn next<'a>(&mut self, octets: &mut &'a [u8]) -> io::Result<Option<Unpacked<'a>>> {
        loop {
            match self.left {
                _ if self.directory.is_some() => {
                    let passed = self.directory.unwrap_or(0) + octets.len() as u64;
                    self.directory = Some(passed);
                    *octets = &[];
                    let fits = passed <= DIRECTORY_BYTES_MAX * (self.files + 1);
                    return if fits { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
                }
                Some(0) => {
                    self.left = None;
                    return Ok(Some(Unpacked::FileEnd));
                }
                Some(_) if octets.is_empty() => return Ok(None),
                Some(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(octets.len());
                    let (data, rest) = octets.split_at(count);
                    *octets = rest;
                    self.left = Some(left - data.len() as u64);
                    return Ok(Some(Unpacked::Data(data)));
                }
                None => {
                    let wanted = head_bytes(&self.head)?;
                    let Some(wanted) = wanted.filter(|wanted| *wanted > self.head.len()) else {
                        let bytes = wanted.map(|_| content_bytes(&self.head)).transpose()?;
                        self.head.clear();
                        let Some(bytes) = bytes else {
                            self.directory = Some(0);
                            continue;
                        };
                        (self.left, self.files) = (Some(bytes), self.files + 1);
                        return Ok(Some(Unpacked::File(bytes)));
                    };
                    if octets.is_empty() {
                        return Ok(None);
                    }
                    let count = (wanted - self.head.len()).min(octets.len());
                    let (more, rest) = octets.split_at(count);
                    self.head.extend_from_slice(more);
                    *octets = rest;
                }
            }
        }
    }

    /// Whether the archive may end here.
    pub(crate) fn is_done(&self) -> bool {
        self.directory.is_some()
    }
}

/// Length of a local header, as far as what is here of it tells; none when it is that of the central directory.
fn head_bytes(head: &[u8]) -> io::Result<Option<usize>> {
    match head.get(..4) {
        None => return Ok(Some(4)),
        Some(b"PK\x03\x04") => {}
        Some(b"PK\x01\x02" | b"PK\x05\x06") => return Ok(None),
        Some(_) => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(Some(match head.len() {
        len if len < HEAD_BYTES => HEAD_BYTES,
        _ => HEAD_BYTES + usize::from(number(head, 26)) + usize::from(number(head, 28)),
    }))
}

fn number(head: &[u8], at: usize) -> u16 {
    head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// Length of the content after a whole local header.
fn content_bytes(head: &[u8]) -> io::Result<u64> {
    // Flags and method: content of known length, stored.
    if number(head, 6) != 0 || number(head, 8) != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let narrow = u32::from(number(head, 20)) << 16 | u32::from(number(head, 18));
    if narrow != IN_ZIP64_32 {
        return Ok(u64::from(narrow));
    }
    let extra = HEAD_BYTES + usize::from(number(head, 26)) + 4;
    let wide = head.get(extra..).and_then(|extra| extra.first_chunk());
    wide.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// SHA-256 of every file of an archive that is written like ours, in its order.
pub(crate) fn digests(archive: &mut impl Read) -> io::Result<Vec<[u8; 32]>> {
    let (mut unpacker, mut sha256, mut digests) = (Unpacker::default(), Sha256::new(), Vec::new());
    let mut run = vec![0; RUN_BYTES];
    loop {
        let count = archive.read(&mut run)?;
        if count == 0 {
            return if unpacker.is_done() { Ok(digests) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let mut octets = &run[..count];
        while let Some(unpacked) = unpacker.next(&mut octets)? {
            match unpacked {
                Unpacked::File(_) => {}
                Unpacked::Data(data) => sha256.update(data),
                Unpacked::FileEnd => digests.push(sha256.finalize_reset().into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn whole(files: &[&[u8]]) -> Vec<u8> {
        let layout = Layout::new(files.iter().map(|file| file.len() as u64).collect());
        let checksums: Vec<u32> = files.iter().map(|file| crc32fast::hash(file)).collect();
        let mut out = Vec::new();
        for (index, file) in files.iter().enumerate() {
            out.extend(layout.header(index, checksums[index]));
            out.extend_from_slice(file);
        }
        out.extend(layout.end(&checksums));
        assert_eq!(out.len() as u64, layout.bytes());
        let expected: Vec<[u8; 32]> = files.iter().map(|file| Sha256::digest(file).into()).collect();
        assert_eq!(digests(&mut out.as_slice()).unwrap(), expected);
        for run in [1, 3, 29] {
            assert_eq!(unpacked(&out, run).unwrap(), files, "in runs of {run}");
        }
        for cut in [1, out.len() / 3].into_iter().filter(|_| !files.is_empty()) {
            assert!(digests(&mut &out[..cut]).is_err(), "cut at {cut}");
        }
        out
    }

    /// The files of an archive that arrives in runs of this length.
    fn unpacked(archive: &[u8], run: usize) -> io::Result<Vec<Vec<u8>>> {
        let (mut unpacker, mut files, mut left) = (Unpacker::default(), Vec::new(), None);
        for mut octets in archive.chunks(run) {
            while let Some(unpacked) = unpacker.next(&mut octets)? {
                match unpacked {
                    Unpacked::File(bytes) => {
                        files.push(Vec::new());
                        left = Some(bytes);
                    }
                    Unpacked::Data(data) => files.last_mut().unwrap().extend_from_slice(data),
                    Unpacked::FileEnd => {
                        assert_eq!(left.take(), files.last().map(|file: &Vec<u8>| file.len() as u64));
                    }
                }
            }
        }
        assert!(unpacker.is_done());
        Ok(files)
    }

    #[test]
    fn what_is_written_otherwise_is_refused() {
        let mut archive = whole(&[b"one"]);
        archive[8] = 8;
        assert!(digests(&mut archive.as_slice()).is_err(), "compressed");
        archive[8] = 0;
        archive[6] = 8;
        assert!(digests(&mut archive.as_slice()).is_err(), "of unknown length");
        archive[6] = 0;
        archive.extend([0; 1000]);
        assert!(digests(&mut archive.as_slice()).is_err(), "without an end");
        assert!(digests(&mut b"PKXX and so on".as_slice()).is_err());
        assert!(digests(&mut b"".as_slice()).is_err());
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
        let layout = Layout::new(vec![u64::from(u32::MAX); 2]);
        assert_eq!(layout.header(0, 7)[4..6], VERSION_ZIP64.to_le_bytes());
        assert_eq!(layout.header(0, 7)[18..26], [0xFF; 8]);
        assert_eq!(layout.header(0, 7).len(), 30 + 12 + 20);
        let end = layout.end(&[7, 7]);
        // Both entries have sizes there, the second an offset as well.
        let directory = (46 + 12 + 20) + (46 + 12 + 28);
        assert_eq!(&end[directory..directory + 4], b"PK\x06\x06");
        assert_eq!(end.len(), directory + 56 + 20 + 22);
        let offset = u64::from_le_bytes(end[directory + 48..directory + 56].try_into().unwrap());
        assert_eq!(offset, 2 * (62 + u64::from(u32::MAX)));
        assert_eq!(layout.bytes(), offset + end.len() as u64);
        let many = Layout::new(vec![0; 65_535]).end(&[]);
        assert_eq!(&many[many.len() - 98..many.len() - 94], b"PK\x06\x06");
    }
}
