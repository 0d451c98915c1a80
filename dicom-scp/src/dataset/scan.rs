//! Reading the head of a data set while its bytes stream by, with bounded memory, inflating deflated transfer syntaxes.

use super::{
    DataSet, Encoding, ReadEnd, ReadError, ReadOptions, Tag,
    read::{actual_encoding, read_as},
};
use crate::TransferSyntax;
use flate2::{Decompress, FlushDecompress, Status};

/// Collects the elements before `stop_at` from bytes that arrive in pieces. Elements are read as soon as they are complete, so the memory
/// needed is that of the elements kept plus one incomplete element.
#[derive(Debug)]
pub struct Scanner {
    transfer_syntax: TransferSyntax,
    /// What the first element showed the encoding to be.
    encoding: Option<Encoding>,
    options: ReadOptions,
    pending_bytes_max: usize,
    inflate: Option<Box<Decompress>>,
    pending: Vec<u8>,
    /// Bytes of a skipped value that are still to come.
    skip: u64,
    /// Bytes of the (inflated) data set consumed before `pending`.
    consumed: u64,
    read: DataSet,
    stopped: Option<(Tag, u64)>,
}

/// What a [`Scanner`] found out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// The stopping point has not come yet.
    NeedMore,
    /// The element with `stop_at` or a later tag begins at this offset, in bytes of the inflated data set.
    Stopped {
        /// The tag found.
        tag: Tag,
        /// Where its element begins.
        offset: u64,
    },
}

/// Why a data set's head cannot be read. The object itself may still be worth keeping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes are no data set.
    #[error("unreadable data set")]
    Read(#[from] ReadError),
    /// A single element, usually a long sequence, does not fit into the memory allowed.
    #[error("an element before the stopping point is longer than {pending_bytes_max} bytes")]
    TooLong {
        /// The limit, in bytes.
        pending_bytes_max: usize,
    },
    /// The deflate stream is damaged.
    #[error("damaged deflate stream")]
    Inflate,
}

impl Scanner {
    /// A scanner that never holds more than about `pending_bytes_max` bytes of incomplete elements.
    pub fn new(transfer_syntax: TransferSyntax, options: ReadOptions, pending_bytes_max: usize) -> Self {
        Scanner {
            transfer_syntax,
            encoding: None,
            options,
            pending_bytes_max,
            inflate: transfer_syntax.is_deflated().then(|| Box::new(Decompress::new(false))),
            pending: Vec::new(),
            skip: 0,
            consumed: 0,
            read: DataSet::default(),
            stopped: None,
        }
    }

    /// Takes the next bytes of the data set. Once stopped, further bytes cost nothing.
    ///
    /// # Errors
    /// When the head cannot be read. Pushing more bytes after an error gives an error or nothing, never a panic.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Scanned, ScanError> {
        if self.stopped.is_none() {
            match self.inflate.take() {
                None => self.push_plain(bytes)?,
                Some(mut inflate) => {
                    let outcome = self.push_deflated(&mut inflate, bytes);
                    self.inflate = Some(inflate);
                    outcome?;
                }
            }
        }
        Ok(self.state())
    }

    /// The elements read so far.
    pub fn data_set(&self) -> &DataSet {
        &self.read
    }

    /// The elements read. Incomplete ones at the end are missing.
    pub fn finish(self) -> (DataSet, Scanned) {
        let state = self.state();
        (self.read, state)
    }

    fn state(&self) -> Scanned {
        match self.stopped {
            Some((tag, offset)) => Scanned::Stopped { tag, offset },
            None => Scanned::NeedMore,
        }
    }

    fn push_deflated(&mut self, inflate: &mut Decompress, mut bytes: &[u8]) -> Result<(), ScanError> {
        let mut window = vec![0; 16 * 1024];
        while self.stopped.is_none() {
            let (in_before, out_before) = (inflate.total_in(), inflate.total_out());
            let status =
                inflate.decompress(bytes, &mut window, FlushDecompress::None).map_err(|_| ScanError::Inflate)?;
            let used = (inflate.total_in() - in_before) as usize;
            let made = (inflate.total_out() - out_before) as usize;
            bytes = bytes.get(used..).unwrap_or_default();
            self.push_plain(window.get(..made).unwrap_or_default())?;
            if status == Status::StreamEnd || made == 0 && (used == 0 || bytes.is_empty()) {
                break;
            }
        }
        Ok(())
    }

    fn push_plain(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let skipped = self.skip.min(bytes.len() as u64) as usize;
        self.skip -= skipped as u64;
        self.consumed += skipped as u64;
        let bytes = &bytes[skipped..];
        if bytes.is_empty() {
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        if self.encoding.is_none() && self.pending.len() < 8 {
            return Ok(());
        }
        let declared = self.transfer_syntax.encoding();
        let encoding = *self.encoding.get_or_insert_with(|| actual_encoding(&self.pending, declared));
        let (data_set, end) = read_as(&self.pending, encoding, &self.options)?;
        self.read.extend(data_set);
        if encoding == Encoding::ImplicitLe {
            // Pixel Representation may have come with an earlier piece.
            self.read.resolve_sample_vrs(false);
        }
        match end {
            ReadEnd::Complete => self.consume(self.pending.len()),
            ReadEnd::NeedMore { offset } => self.consume(offset),
            ReadEnd::Stopped { tag, offset } => {
                self.stopped = Some((tag, self.consumed + offset as u64));
                self.pending = Vec::new();
            }
        }
        if self.pending.len() > self.pending_bytes_max {
            return Err(ScanError::TooLong { pending_bytes_max: self.pending_bytes_max });
        }
        Ok(())
    }

    fn consume(&mut self, offset: usize) {
        let here = offset.min(self.pending.len());
        self.skip = (offset - here) as u64;
        self.consumed += here as u64;
        self.pending.drain(..here);
    }
}
