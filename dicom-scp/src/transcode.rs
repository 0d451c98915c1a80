//! Implicit VR little endian to explicit VR little endian and back, while the bytes stream by (PS3.5 7.1, A.1, A.2).
//!
//! Every peer must take the default transfer syntax for uncompressed objects (PS3.5 10.1), so an object stored in one of the two must
//! be deliverable in the other. Values are passed through untouched; sequences and items get undefined lengths because their new lengths
//! are not known in advance; group lengths, which would become wrong, are left out. Must not know compressed pixel data.

use crate::{
    TransferSyntax,
    dataset::{
        Encoding, PIXEL_REPRESENTATION, Tag, VR, dictionary_vr, is_sample_valued,
        read::{actual_encoding, has_short_length, is_vr_code},
    },
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};

const ITEM: Tag = Tag(0xfffe, 0xe000);
const ITEM_DELIMITATION: Tag = Tag(0xfffe, 0xe00d);
const SEQUENCE_DELIMITATION: Tag = Tag(0xfffe, 0xe0dd);
const UNDEFINED: u32 = u32::MAX;
/// Deeper nesting than any real object has.
const DEPTH_MAX: usize = 128;

/// Why a data set cannot be transcoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TranscodeError {
    /// The bytes are not a data set in the transfer syntax claimed.
    #[error("not a data set at byte {0}")]
    Malformed(u64),
    /// The data set ends within an element.
    #[error("data set ends within an element")]
    Truncated,
}

/// Transcodes one data set.
#[derive(Debug)]
pub struct Transcoder {
    from: Encoding,
    to: Encoding,
    started: bool,
    /// Bytes of a header not complete yet.
    pending: Vec<u8>,
    /// Bytes of input used so far.
    at: u64,
    /// Bytes of the current value still to come, and whether they are wanted.
    value_left: u64,
    value_kept: bool,
    frames: Vec<Frame>,
    /// (0028,0103) of the data set or item being read: whether samples are signed.
    signed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    is_item: bool,
    /// Where it ends in the input; `None` when a delimiter says so.
    end: Option<u64>,
    /// Of what is inside.
    encoding: Encoding,
    /// `signed` of the enclosing data set.
    outer_signed: bool,
}

#[derive(Clone, Copy)]
struct Header {
    tag: Tag,
    vr: VR,
    length: u32,
    size: usize,
}

impl Transcoder {
    /// For these two transfer syntaxes, or `None` when one cannot be made of the other here.
    pub fn new(from: &TransferSyntax, to: &TransferSyntax) -> Option<Self> {
        let plain =
            |syntax: &TransferSyntax| [TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE].contains(syntax);
        (plain(from) && plain(to)).then(|| Transcoder {
            from: from.encoding(),
            to: to.encoding(),
            started: false,
            pending: Vec::new(),
            at: 0,
            value_left: 0,
            value_kept: true,
            frames: Vec::new(),
            signed: false,
        })
    }

    /// Takes the next bytes and appends what they become.
    ///
    /// # Errors
    /// When the bytes are no data set.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), TranscodeError> {
        loop {
            if self.value_left > 0 {
                let now = self.value_left.min(input.len() as u64) as usize;
                let (value, rest) = input.split_at(now);
                if self.value_kept {
                    out.extend_from_slice(value);
                }
                input = rest;
                self.at += now as u64;
                self.value_left -= now as u64;
                if self.value_left > 0 {
                    return Ok(());
                }
            }
            self.close_finished(out)?;
            // Headers are short, so they are gathered byte by byte only when they are cut.
            while self.needed() > self.pending.len() {
                let Some((byte, rest)) = input.split_first() else { return Ok(()) };
                self.pending.push(*byte);
                input = rest;
            }
            self.element(out)?;
        }
    }

    /// The data set is complete.
    ///
    /// # Errors
    /// When it is not.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), TranscodeError> {
        self.close_finished(out)?;
        let complete = self.pending.is_empty() && self.value_left == 0 && self.frames.is_empty();
        if complete { Ok(()) } else { Err(TranscodeError::Truncated) }
    }

    fn malformed(&self) -> TranscodeError {
        TranscodeError::Malformed(self.at)
    }

    fn encoding(&self) -> Encoding {
        self.frames.last().map_or(self.from, |frame| frame.encoding)
    }

    /// How many bytes the header under way has, as far as can be told.
    fn needed(&self) -> usize {
        let Some(&[g0, g1, e0, e1, a, b, ..]) = self.pending.first_chunk::<8>() else { return 8 };
        let tag = Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
        let mut needed = 8;
        if self.reads_vr(tag, [a, b]) && !VR::from_binary([a, b]).is_some_and(has_short_length) {
            needed = 12;
        }
        // The value is looked at, so it is taken with the header.
        if tag == PIXEL_REPRESENTATION && self.pending.len() >= needed && self.header().length == 2 {
            needed += 2;
        }
        needed
    }

    fn reads_vr(&self, tag: Tag, code: [u8; 2]) -> bool {
        let encoding = if self.started { self.encoding() } else { actual_encoding(&self.pending, self.from) };
        encoding == Encoding::ExplicitLe && tag.0 != 0xfffe && is_vr_code(code)
    }

    /// The header in `pending`, which is complete.
    fn header(&self) -> Header {
        let mut bytes = [0; 12];
        bytes.iter_mut().zip(&self.pending).for_each(|(to, from)| *to = *from);
        let [g0, g1, e0, e1, a, b, c, d, length @ ..] = bytes;
        let tag = Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
        if !self.reads_vr(tag, [a, b]) {
            let length = u32::from_le_bytes([a, b, c, d]);
            return Header { tag, vr: self.implicit_vr(tag, length), length, size: 8 };
        }
        let vr = VR::from_binary([a, b]).unwrap_or(VR::UN);
        if has_short_length(vr) {
            return Header { tag, vr, length: u16::from_le_bytes([c, d]).into(), size: 8 };
        }
        Header { tag, vr, length: u32::from_le_bytes(length), size: 12 }
    }

    fn implicit_vr(&self, tag: Tag, length: u32) -> VR {
        match dictionary_vr(tag) {
            _ if length == UNDEFINED => VR::SQ,
            Some(VR::US) if self.signed && is_sample_valued(tag) => VR::SS,
            Some(vr) => vr,
            None => VR::UN,
        }
    }

    /// Ends items and sequences whose length is used up.
    fn close_finished(&mut self, out: &mut Vec<u8>) -> Result<(), TranscodeError> {
        while let Some(end) = self.frames.last().and_then(|frame| frame.end) {
            if self.at < end {
                break;
            }
            if self.at > end {
                return Err(self.malformed());
            }
            self.close(out);
        }
        Ok(())
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if let Some(frame) = self.frames.pop() {
            let tag = if frame.is_item { ITEM_DELIMITATION } else { SEQUENCE_DELIMITATION };
            delimiter(out, tag, 0);
            if frame.is_item {
                self.signed = frame.outer_signed;
            }
        }
    }

    fn open(&mut self, is_item: bool, length: u32, encoding: Encoding) -> Result<(), TranscodeError> {
        if self.frames.len() >= DEPTH_MAX {
            return Err(self.malformed());
        }
        let end = (length != UNDEFINED).then(|| self.at + u64::from(length));
        self.frames.push(Frame { is_item, end, encoding, outer_signed: self.signed });
        Ok(())
    }

    /// Handles the header in `pending`.
    fn element(&mut self, out: &mut Vec<u8>) -> Result<(), TranscodeError> {
        if !self.started {
            self.from = actual_encoding(&self.pending, self.from);
            self.started = true;
        }
        let header = self.header();
        self.at += header.size as u64;
        let in_sequence = self.frames.last().is_some_and(|frame| !frame.is_item);
        match header.tag {
            ITEM if in_sequence => {
                self.open(true, header.length, self.encoding())?;
                delimiter(out, ITEM, UNDEFINED);
            }
            ITEM_DELIMITATION | SEQUENCE_DELIMITATION => {
                let closes_item = header.tag == ITEM_DELIMITATION;
                match self.frames.last() {
                    Some(frame) if frame.end.is_none() && frame.is_item == closes_item => self.close(out),
                    // A stray delimiter carries nothing.
                    _ => {}
                }
            }
            tag if in_sequence || tag.0 == 0xfffe => return Err(self.malformed()),
            _ => self.data_element(header, out)?,
        }
        self.pending.clear();
        Ok(())
    }

    fn data_element(&mut self, header: Header, out: &mut Vec<u8>) -> Result<(), TranscodeError> {
        let Header { tag, vr, length, size } = header;
        let is_sequence = vr == VR::SQ || vr == VR::UN && length == UNDEFINED;
        if is_sequence {
            // CP-246: UN of undefined length holds implicit items.
            let inner = if vr == VR::UN { Encoding::ImplicitLe } else { self.encoding() };
            self.write_header(out, tag, VR::SQ, UNDEFINED);
            return self.open(false, length, inner);
        }
        if length == UNDEFINED {
            return Err(self.malformed());
        }
        self.value_kept = tag.1 != 0;
        if self.value_kept {
            self.write_header(out, tag, vr, length);
        }
        self.value_left = length.into();
        if let Some(value) = self.pending.get(size..).filter(|value| !value.is_empty()) {
            out.extend_from_slice(value);
            self.signed = value == [1, 0];
            self.at += value.len() as u64;
            self.value_left -= value.len() as u64;
        }
        Ok(())
    }

    fn write_header(&self, out: &mut Vec<u8>, tag: Tag, vr: VR, length: u32) {
        let Tag(group, element) = tag;
        out.extend(group.to_le_bytes());
        out.extend(element.to_le_bytes());
        if self.to == Encoding::ImplicitLe {
            return out.extend(length.to_le_bytes());
        }
        match u16::try_from(length) {
            Ok(short) if has_short_length(vr) => {
                out.extend(vr.to_bytes());
                out.extend(short.to_le_bytes());
            }
            _ => {
                // PS3.5 6.2.2: too long for the VR's length field.
                let vr = if has_short_length(vr) { VR::UN } else { vr };
                out.extend(vr.to_bytes());
                out.extend([0, 0]);
                out.extend(length.to_le_bytes());
            }
        }
    }
}

fn delimiter(out: &mut Vec<u8>, tag: Tag, length: u32) {
    out.extend(tag.0.to_le_bytes());
    out.extend(tag.1.to_le_bytes());
    out.extend(length.to_le_bytes());
}

/// A reader that transcodes what another reader gives.
pub(crate) struct TranscodingReader<R> {
    inner: R,
    transcoder: Transcoder,
    input: Vec<u8>,
    out: Vec<u8>,
    given: usize,
    /// Bytes that the inner reader must still give; none where that is as many as it gives.
    left: Option<u64>,
    ended: bool,
}

impl<R: AsyncRead + Unpin> TranscodingReader<R> {
    /// Transcodes the `bytes` bytes that `inner` has.
    pub(crate) fn new(inner: R, bytes: u64, transcoder: Transcoder) -> Self {
        Self::with(inner, Some(bytes), transcoder)
    }

    /// Transcodes what `inner` has.
    pub(crate) fn to_end(inner: R, transcoder: Transcoder) -> Self {
        Self::with(inner, None, transcoder)
    }

    fn with(inner: R, left: Option<u64>, transcoder: Transcoder) -> Self {
        let (input, ended) = (vec![0; 64 * 1024], left == Some(0));
        TranscodingReader { inner, transcoder, input, out: Vec::new(), given: 0, left, ended }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for TranscodingReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.given == this.out.len() {
            this.out.clear();
            this.given = 0;
            if this.ended {
                this.transcoder.finish(&mut this.out).map_err(io::Error::other)?;
                if this.out.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                break;
            }
            let room = this.input.len() as u64;
            let wanted = this.left.unwrap_or(room).min(room) as usize;
            let mut input = ReadBuf::new(this.input.get_mut(..wanted).unwrap_or_default());
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut input))?;
            match &mut this.left {
                None => this.ended = input.filled().is_empty(),
                Some(_) if input.filled().is_empty() => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(left) => {
                    *left -= input.filled().len() as u64;
                    this.ended = *left == 0;
                }
            }
            this.transcoder.push(input.filled(), &mut this.out).map_err(io::Error::other)?;
        }
        let rest = this.out.get(this.given..).unwrap_or_default();
        let now = rest.len().min(into.remaining());
        into.put_slice(&rest[..now]);
        this.given += now;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dataset::{DataSet, Element, ReadEnd, ReadOptions, read, tests::arbitrary_data_set};
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    const PAIRS: [(TransferSyntax, TransferSyntax); 2] = [
        (TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE),
        (TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE),
    ];

    fn transcoded(bytes: &[u8], from: &TransferSyntax, to: &TransferSyntax, size: usize) -> Vec<u8> {
        let mut transcoder = Transcoder::new(from, to).unwrap();
        let mut out = Vec::new();
        bytes.chunks(size).for_each(|chunk| transcoder.push(chunk, &mut out).unwrap());
        transcoder.finish(&mut out).unwrap();
        out
    }

    fn all(bytes: &[u8], syntax: &TransferSyntax) -> DataSet {
        let (data_set, end) = read(bytes, syntax.encoding(), &ReadOptions::default()).unwrap();
        assert_eq!(end, ReadEnd::Complete);
        data_set
    }

    proptest! {
        #[test]
        fn the_data_set_stays_the_same(data_set in arbitrary_data_set(), size in 1usize..40) {
            for (from, to) in PAIRS {
                let original = data_set.write(from.encoding());
                let there = transcoded(&original, &from, &to, size);
                prop_assert_eq!(all(&there, &to), all(&data_set.write(to.encoding()), &to));
                let back = transcoded(&there, &to, &from, size);
                prop_assert_eq!(all(&back, &from), all(&original, &from));
            }
        }

        #[test]
        fn a_cut_data_set_is_noticed_and_nothing_panics(data_set in arbitrary_data_set(), junk in proptest::collection::vec(any::<u8>(), 0..60)) {
            for (from, to) in PAIRS {
                let mut bytes = data_set.write(from.encoding());
                bytes.truncate(bytes.len().saturating_sub(1));
                let mut transcoder = Transcoder::new(&from, &to).unwrap();
                let mut out = Vec::new();
                let outcome = transcoder.push(&bytes, &mut out).and_then(|()| transcoder.finish(&mut out));
                prop_assert_eq!(outcome.is_ok(), bytes.is_empty());
                let mut transcoder = Transcoder::new(&from, &to).unwrap();
                let _ = transcoder.push(&junk, &mut out).and_then(|()| transcoder.finish(&mut out));
            }
        }
    }

    #[test]
    fn signed_samples_are_ss() {
        let mut data_set = DataSet::new();
        data_set.put_u16(PIXEL_REPRESENTATION, 1);
        data_set.put_u16(Tag(0x0028, 0x0106), 0xfffe);
        let (implicit, explicit) = PAIRS[0];
        for size in [1, 3, 100] {
            let there = transcoded(&data_set.write(Encoding::ImplicitLe), &implicit, &explicit, size);
            assert_eq!(all(&there, &explicit).int(Tag(0x0028, 0x0106)), Some(-2));
        }
    }

    #[test]
    fn cp_246_and_long_values_are_carried_over() {
        let (implicit, explicit) = PAIRS[0];
        let mut data_set = DataSet::new();
        data_set.put(Tag(0x0009, 0x1001), Element::bytes(VR::UN, vec![7; 70_000]));
        data_set.put(Tag(0x0018, 0x1020), Element::bytes(VR::LO, vec![b'x'; 70_000]));
        let there = transcoded(&data_set.write(Encoding::ImplicitLe), &implicit, &explicit, 1000);
        assert_eq!(all(&there, &explicit), data_set);
        let un = b"\x01\x20\x10\x10UN\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\x0c\0\0\0\x10\0\x10\0\x04\0\0\0A^B \xfe\xff\xdd\xe0\0\0\0\0";
        let there = transcoded(un, &explicit, &implicit, 5);
        assert_eq!(all(&there, &implicit), all(un, &explicit));
    }

    #[tokio::test]
    async fn the_reader_gives_the_same_bytes() {
        let (implicit, explicit) = PAIRS[0];
        let mut data_set = DataSet::new();
        data_set.put(Tag(0x7fe0, 0x0010), Element::bytes(VR::OW, vec![3; 300_000]));
        let bytes = data_set.write(Encoding::ImplicitLe);
        let transcoder = || Transcoder::new(&implicit, &explicit).unwrap();
        let mut read = Vec::new();
        TranscodingReader::new(bytes.as_slice(), bytes.len() as u64, transcoder())
            .read_to_end(&mut read)
            .await
            .unwrap();
        assert_eq!(read, data_set.write(Encoding::ExplicitLe));
        let mut short = TranscodingReader::new(&bytes[1..], bytes.len() as u64, transcoder());
        assert!(short.read_to_end(&mut Vec::new()).await.is_err());
    }
}
