//! Reads the log from its end to its beginning, line by line, without having more of it in memory than a run of bytes: pages show the newest first and must
//! not wait for years of it. Must not know what records say.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::str::FromStr;

use super::chain::{Digest, Header, Line};
use super::log::{Segment, segments};

/// Bytes that are read at once.
const RUN: u64 = 64 * 1024;
/// Longest line that is looked at. What is longer is no record of ours.
const LINE_BYTES_MAX: usize = 1 << 20;
/// The beginning of a file: its header and its first record.
const BEGINNING_BYTES: u64 = 64 * 1024;

/// A place between two lines of the log, from which on it is read back. Stays what it is while the log grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the log.
    log: u32,
    /// Number of the first record of the file.
    first: u64,
    /// In bytes from the file's beginning.
    offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.log, self.first, self.offset)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let mut next = || parts.next()?.parse::<u64>().ok();
        let (log, first, offset) = next().zip(next()).zip(next()).map(|((a, b), c)| (a, b, c)).ok_or(())?;
        let log = u32::try_from(log).map_err(|_| ())?;
        if parts.next().is_some() { Err(()) } else { Ok(Self { log, first, offset }) }
    }
}

/// A line that was read back.
pub(super) struct Found {
    /// Number of its log.
    pub(super) log: u32,
    /// Name of its log, if the first line of the file says it.
    pub(super) name: Option<Digest>,
    /// Where it begins: the place from which on what is before it is read.
    pub(super) at: Place,
    /// Its bytes, without its LF.
    pub(super) line: Vec<u8>,
}

/// A file that is being read: its bytes from `start` on, up to a line that was read already.
struct Open {
    segment: Segment,
    file: File,
    name: Option<Digest>,
    start: u64,
    bytes: Vec<u8>,
    /// What is at the end of `bytes` is not the end of a line.
    torn: bool,
}

/// The way back.
pub(super) struct Backwards {
    /// Files that were not opened yet, the oldest first.
    files: Vec<Segment>,
    open: Option<Open>,
    /// Where reading begins in the newest of them.
    from: Option<Place>,
    /// Files whose first record is not before this millisecond since 1970 are passed over.
    before_ms: Option<u64>,
}

impl Backwards {
    /// Reads from a place on, or from the end; files that begin at `before_ms` or later are passed over.
    pub(super) fn new(dir: &Path, from: Option<Place>, before_ms: Option<u64>) -> io::Result<Self> {
        let mut files = segments(dir)?;
        if let Some(from) = from {
            files.retain(|file| (file.log, file.first) <= (from.log, from.first));
        }
        Ok(Self { files, open: None, from, before_ms })
    }

    /// The line before the one that was read last.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(segment) = self.files.pop() else { return Ok(None) };
                self.open = self.begin(segment)?;
                continue;
            };
            match open.line()? {
                Some((offset, line)) => {
                    let Segment { log, first, .. } = open.segment;
                    return Ok(Some(Found { log, name: open.name, at: Place { log, first, offset }, line }));
                }
                None => self.open = None,
            }
        }
    }

    fn begin(&self, segment: Segment) -> io::Result<Option<Open>> {
        let mut file = match File::open(&segment.path) {
            Ok(file) => file,
            // Somebody took it away, which `verify` reports.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut beginning = Vec::new();
        (&mut file).take(BEGINNING_BYTES).read_to_end(&mut beginning)?;
        let mut lines = beginning.split(|byte| *byte == b'\n');
        let name = lines.next().and_then(Header::parse).map(|header| header.log);
        let begins_ms = lines.next().and_then(Line::parse).map(|line| line.time_ms);
        if begins_ms.zip(self.before_ms).is_some_and(|(begins, before)| begins >= before) {
            return Ok(None);
        }
        let length = file.metadata()?.len();
        let is_it = |from: &Place| (from.log, from.first) == (segment.log, segment.first);
        let start = self.from.filter(is_it).map_or(length, |from| from.offset.min(length));
        Ok(Some(Open { segment, file, name, start, bytes: Vec::new(), torn: true }))
    }
}

impl Open {
    /// The last line that was not read yet, and where it begins; none when only the first line of the file is left.
    fn line(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        loop {
            // Up to here there is a whole line, unless it is torn.
            let whole = self.bytes.len().saturating_sub(usize::from(!self.torn));
            if let Some(at) = self.bytes[..whole].iter().rposition(|byte| *byte == b'\n') {
                let mut line = self.bytes.split_off(at + 1);
                if std::mem::replace(&mut self.torn, false) {
                    continue;
                }
                line.pop();
                return Ok(Some((self.start + at as u64 + 1, line)));
            }
            if self.start == 0 {
                return Ok(None);
            }
            if self.bytes.len() > LINE_BYTES_MAX {
                self.bytes.clear();
                self.torn = true;
            }
            self.read_run()?;
        }
    }

    fn read_run(&mut self) -> io::Result<()> {
        let run = RUN.min(self.start);
        self.start -= run;
        self.file.seek(SeekFrom::Start(self.start))?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + RUN as usize);
        (&mut self.file).take(run).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < run {
            return Err(io::Error::other("somebody made a file of the audit log shorter"));
        }
        bytes.append(&mut self.bytes);
        self.bytes = bytes;
        Ok(())
    }
}
