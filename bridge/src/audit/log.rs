//! The log's files: appended to, synced, begun anew when they are long; what a crash left half written is cut off.
//!
//! A file is `LOG-FIRST.log`: the number of the log in this directory and the number of the first record in the file. There is one log, and
//! a second only when the first was found damaged: what is damaged is left as it is, for [`super::verify`] to say where.

use std::cmp::Ordering;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::RngCore as _;

use super::chain::{Digest, Head, Header, Line};

/// A file of a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// Number of the log, from 1.
    pub(super) log: u32,
    /// Number of the first record.
    pub(super) first: u64,
    /// Where it is.
    pub(super) path: PathBuf,
}

impl Segment {
    fn new(dir: &Path, log: u32, first: u64) -> Self {
        Self { log, first, path: dir.join(format!("{log:04}-{first:012}.log")) }
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The files in a directory, in order. Files of other names are none of ours.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let parsed = name.to_str().and_then(|name| {
            let (log, first) = name.strip_suffix(".log")?.split_once('-')?;
            Some((log.parse().ok()?, first.parse().ok()?))
        });
        if let Some((log, first)) = parsed {
            let segment = Segment::new(dir, log, first);
            // A second spelling of the same numbers would be a file that nothing ever looks at.
            if segment.path.file_name() == Some(&name) {
                found.push(segment);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What was found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: this is the first start.
    Nothing,
    /// A whole log.
    Whole,
    /// A record that was being written when the machine or the program stopped; so many bytes of it were cut off.
    Torn(u64),
    /// A log that is not as it was written; another was begun.
    Damaged {
        /// The file.
        file: String,
        /// The record from which on it is not.
        record: u64,
    },
}

/// The log that is written.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    number: u32,
    file: File,
    /// Bytes of the file that are known to be durable, and what the log is up to there.
    bytes: u64,
    head: Head,
    /// The same with what is written and not synced.
    written_bytes: u64,
    written: Head,
    segment_bytes: u64,
}

impl Log {
    /// Opens the newest log, or begins one. Only its last file is looked at. `known` is a head that it had before: a log that does not
    /// come as far any more is damaged too.
    pub(super) fn open(dir: &Path, segment_bytes: u64, known: Option<Head>) -> io::Result<(Self, Found)> {
        fs::create_dir_all(dir)?;
        let Some(last) = segments(dir)?.pop() else {
            return Ok((Self::begin(dir, 1, Head::empty(random_name()), segment_bytes)?, Found::Nothing));
        };
        let bytes = fs::read(&last.path)?;
        let mut read = read_whole(&bytes);
        if let (Some(head), Some(known)) = (read.head, known)
            && head.log == known.log
            && head.records < known.records
        {
            read.wrong = Some(head.records + 1);
        }
        match read {
            Read { head: Some(head), intact, wrong: None } => {
                let file = OpenOptions::new().append(true).open(&last.path)?;
                let torn = bytes.len() as u64 - intact;
                if torn > 0 {
                    file.set_len(intact)?;
                    file.sync_all()?;
                }
                let found = if torn > 0 { Found::Torn(torn) } else { Found::Whole };
                let dir = dir.to_owned();
                Ok((Self::at(dir, last.log, file, intact, head, segment_bytes), found))
            }
            Read { wrong, .. } => {
                let record = wrong.unwrap_or(last.first);
                let log = Self::begin(dir, last.log + 1, Head::empty(random_name()), segment_bytes)?;
                Ok((log, Found::Damaged { file: last.name(), record }))
            }
        }
    }

    /// A new file behind `head`. It has its header and its name before anybody sees it.
    fn begin(dir: &Path, number: u32, head: Head, segment_bytes: u64) -> io::Result<Self> {
        let segment = Segment::new(dir, number, head.records + 1);
        let made = segment.path.with_extension("new");
        let header = Header::after(&head).line();
        let mut file = OpenOptions::new().append(true).create(true).truncate(false).mode(0o600).open(&made)?;
        file.set_len(0)?;
        file.write_all(header.as_bytes())?;
        file.sync_all()?;
        fs::rename(&made, &segment.path)?;
        File::open(dir)?.sync_all()?;
        Ok(Self::at(dir.to_owned(), number, file, header.len() as u64, head, segment_bytes))
    }

    fn at(dir: PathBuf, number: u32, file: File, bytes: u64, head: Head, segment_bytes: u64) -> Self {
        Self { dir, number, file, bytes, head, written_bytes: bytes, written: head, segment_bytes }
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Writes records, each with its time: from then on the end of this program does not take them, and after [`Self::sync`] nothing does.
    /// When it fails, nothing since the last sync counts as written, and what may stand in the file of it is cut off before anything else is.
    pub(super) fn write<'m>(&mut self, records: impl IntoIterator<Item = (u64, &'m str)>) -> io::Result<()> {
        if self.written_bytes == self.bytes {
            self.cut()?;
            if self.bytes >= self.segment_bytes {
                *self = Self::begin(&self.dir, self.number, self.head, self.segment_bytes)?;
            }
        }
        let (mut head, mut lines) = (self.written, Vec::new());
        for (time_ms, message) in records {
            head.push(time_ms, message, &mut lines);
        }
        self.file.write_all(&lines).inspect_err(|_| self.forget())?;
        self.written_bytes += lines.len() as u64;
        self.written = head;
        Ok(())
    }

    /// Makes durable what is written. When it fails, none of that counts as written.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.forget())?;
        (self.bytes, self.head) = (self.written_bytes, self.written);
        Ok(())
    }

    fn forget(&mut self) {
        (self.written_bytes, self.written) = (self.bytes, self.head);
    }

    /// Whether the file lacks what was durable in it.
    pub(super) fn is_cut(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() < self.bytes)
    }

    /// Removes what something that failed may have left.
    fn cut(&self) -> io::Result<()> {
        match self.file.metadata()?.len().cmp(&self.bytes) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => {
                self.file.set_len(self.bytes)?;
                self.file.sync_all()
            }
            Ordering::Less => Err(io::Error::other("somebody made its file shorter")),
        }
    }
}

fn random_name() -> Digest {
    let mut name = [0; 32];
    rand::rngs::OsRng.fill_bytes(&mut name);
    name
}

struct Read {
    /// Behind the last good record; none without a header.
    head: Option<Head>,
    /// Bytes up to there.
    intact: u64,
    /// The first record that is wrong, unless what is left is one that was being written.
    wrong: Option<u64>,
}

/// Follows the chain through a file. What an interrupted append leaves are the first bytes of its lines, or zeros in their place.
fn read_whole(bytes: &[u8]) -> Read {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let header = lines.next().and_then(|line| Header::parse(line.strip_suffix(b"\n")?));
    let Some(header) = header else { return Read { head: None, intact: 0, wrong: None } };
    let mut head = header.head();
    let mut intact = header.line().len() as u64;
    for line in lines {
        let complete = line.strip_suffix(b"\n");
        let good = complete
            .and_then(Line::parse)
            .filter(|line| line.number == head.records + 1 && line.digest == line.digest_after(&head.digest));
        match (good, complete) {
            (Some(line), _) => head = Head { records: line.number, digest: line.digest, ..head },
            // It has no end, so it is the last.
            (None, None) => return Read { head: Some(head), intact, wrong: None },
            (None, Some(_)) => return Read { head: Some(head), intact, wrong: Some(head.records + 1) },
        }
        intact += line.len() as u64;
    }
    Read { head: Some(head), intact, wrong: None }
}

/// Reads records one after the other, from a place on.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    /// The log that is read.
    pub(super) log: u32,
    /// The record that comes next.
    pub(super) next: u64,
    open: Option<(File, Vec<u8>)>,
}

/// A record read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) time_ms: u64,
    pub(super) message: String,
}

impl Reader {
    pub(super) fn new(dir: &Path, log: u32, next: u64) -> Self {
        Self { dir: dir.to_owned(), log, next: next.max(1), open: None }
    }

    /// The next record up to number `last`; none when there is none. Lines that cannot be read are passed over: [`super::verify`] is
    /// who complains.
    pub(super) fn entry(&mut self, last: u64) -> io::Result<Option<Entry>> {
        while self.next <= last {
            if self.open.is_none() && !self.open_at(self.next)? {
                return Ok(None);
            }
            let Some(line) = self.line()? else {
                // This file is at its end. What comes next is in a file that begins later.
                self.open = None;
                let next = segments(&self.dir)?.into_iter().find(|s| s.log == self.log && s.first >= self.next);
                let Some(next) = next.filter(|next| next.first <= last) else { return Ok(None) };
                self.open_at(next.first)?;
                self.next = next.first;
                continue;
            };
            let Some(line) = Line::parse(&line).filter(|line| line.number >= self.next) else { continue };
            self.next = line.number + 1;
            let message = line.message.to_owned();
            return Ok(Some(Entry { number: line.number, time_ms: line.time_ms, message }));
        }
        Ok(None)
    }

    fn open_at(&mut self, record: u64) -> io::Result<bool> {
        let all = segments(&self.dir)?;
        let Some(segment) = all.into_iter().rfind(|s| s.log == self.log && s.first <= record) else { return Ok(false) };
        self.open = Some((File::open(segment.path)?, Vec::new()));
        Ok(true)
    }

    /// The next complete line, without its end.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        const RUN: usize = 64 * 1024;
        let Some((file, rest)) = &mut self.open else { return Ok(None) };
        loop {
            if let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = rest.drain(..=at).collect();
                line.pop();
                return Ok(Some(line));
            }
            let had = rest.len();
            rest.resize(had + RUN, 0);
            let read = file.read(&mut rest[had..])?;
            rest.truncate(had + read);
            if read == 0 {
                // What is there of a line will be read again with the rest of it.
                file.seek(SeekFrom::Current(-i64::try_from(had).unwrap_or(0)))?;
                rest.clear();
                return Ok(None);
            }
        }
    }
}
