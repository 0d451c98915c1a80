//! From bytes to message parts and back (PS3.8 9.3.5 and annex E): P-DATA-TF PDUs, presentation data values, and the rule that a message
//! is a command set followed by at most one data set on the same presentation context.
//!
//! Pure: bytes in, parts out. Data set fragments are slices of the receive buffer and are never collected here. Must not know sockets, or
//! what commands mean beyond whether a data set follows.

use crate::dimse::{Command, CommandError, Parsed};
use bytes::{Buf, Bytes, BytesMut};

/// P-DATA-TF, A-RELEASE and A-ABORT PDU types (PS3.8 9.3.1).
mod pdu_type {
    pub(super) const P_DATA: u8 = 0x04;
    pub(super) const RELEASE_RQ: u8 = 0x05;
    pub(super) const RELEASE_RP: u8 = 0x06;
    pub(super) const ABORT: u8 = 0x07;
}

const PDU_HEADER_BYTES: usize = 6;
const PDV_LENGTH_BYTES: usize = 4;
/// Presentation context id and message control header.
const PDV_HEADER_BYTES: usize = 2;
/// The header of a P-DATA-TF PDU with one presentation data value.
pub(crate) const DATA_HEADER_BYTES: usize = PDU_HEADER_BYTES + PDV_LENGTH_BYTES + PDV_HEADER_BYTES;
/// The largest release or abort PDU we bother to read; theirs is 4.
const SMALL_PDU_BYTES_MAX: usize = 1024;

/// How a peer broke the upper layer or message exchange protocol. The association ends with A-ABORT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A PDU longer than what was announced, or than any of its type can be.
    #[error("pdu of {bytes} bytes where {bytes_max} are allowed")]
    PduTooLong {
        /// Its length field, in bytes.
        bytes: u32,
        /// The limit, in bytes.
        bytes_max: u32,
    },
    /// A PDU type that cannot come here.
    #[error("unexpected pdu type {0:02X}H")]
    UnexpectedPdu(u8),
    /// Lengths inside a PDU contradict each other.
    #[error("malformed pdu")]
    MalformedPdu,
    /// A fragment on a presentation context that was not accepted.
    #[error("fragment on presentation context {0}, which was not accepted")]
    UnknownContext(u8),
    /// A fragment on another presentation context than the message it continues.
    #[error("fragment on presentation context {got} within a message on {expected}")]
    ContextChanged {
        /// The message's context id.
        expected: u8,
        /// The fragment's context id.
        got: u8,
    },
    /// A command where a data set fragment must come, or the other way round.
    #[error("{0}")]
    OutOfOrder(&'static str),
    /// A command set longer than anything sensible.
    #[error("command set longer than {bytes_max} bytes")]
    CommandTooLong {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// A command set that cannot be answered.
    #[error("bad command set")]
    Command(#[from] CommandError),
    /// A response to nothing we asked, or a request while the previous one is not finished.
    #[error("{0}")]
    UnexpectedMessage(&'static str),
}

/// One presentation data value (PS3.8 9.3.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Presentation context id.
    pub context_id: u8,
    /// Part of a command set rather than of a data set.
    pub is_command: bool,
    /// The last fragment of its command set or data set.
    pub is_last: bool,
    /// The bytes, a slice of the receive buffer.
    pub bytes: Bytes,
}

/// What an established association can bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A presentation data value.
    Fragment(Fragment),
    /// A-RELEASE-RQ.
    ReleaseRq,
    /// A-RELEASE-RP.
    ReleaseRp,
    /// A-ABORT.
    Abort,
}

/// What can be taken out of an [`Inbox`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Something complete.
    Incoming(Incoming),
    /// At least this many bytes more are needed.
    NeedBytes(usize),
}

/// The receive buffer of an established association and where in a PDU it is.
#[derive(Debug)]
pub struct Inbox {
    buffer: BytesMut,
    /// Bytes of the current P-DATA-TF not yet taken.
    pdu_left: usize,
    pdu_bytes_max: u32,
}

impl Inbox {
    /// For a peer that was told not to send P-DATA-TF PDUs longer than `pdu_bytes_max` (PS3.8 D.1).
    pub fn new(pdu_bytes_max: u32) -> Self {
        Inbox { buffer: BytesMut::new(), pdu_left: 0, pdu_bytes_max }
    }

    /// The same, where bytes have been received already.
    pub(crate) fn with_buffer(pdu_bytes_max: u32, buffer: BytesMut) -> Self {
        Inbox { buffer, pdu_left: 0, pdu_bytes_max }
    }

    /// Where received bytes are appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether the stream may end here without cutting anything off.
    pub fn is_between_pdus(&self) -> bool {
        self.pdu_left == 0 && self.buffer.is_empty()
    }

    /// Takes the next complete fragment or PDU.
    ///
    /// # Errors
    /// When the bytes are not what the protocol allows.
    pub fn take(&mut self) -> Result<Taken, ProtocolError> {
        loop {
            if self.pdu_left > 0 {
                return self.take_fragment();
            }
            let Some(&[kind, _, a, b, c, d]) = self.buffer.first_chunk::<PDU_HEADER_BYTES>() else {
                return Ok(Taken::NeedBytes(PDU_HEADER_BYTES - self.buffer.len()));
            };
            let length = u32::from_be_bytes([a, b, c, d]);
            if kind != pdu_type::P_DATA {
                return self.take_small(kind, length);
            }
            if length > self.pdu_bytes_max {
                return Err(ProtocolError::PduTooLong { bytes: length, bytes_max: self.pdu_bytes_max });
            }
            self.buffer.advance(PDU_HEADER_BYTES);
            self.pdu_left = length as usize;
        }
    }

    fn take_fragment(&mut self) -> Result<Taken, ProtocolError> {
        let Some(&length) = self.buffer.first_chunk::<PDV_LENGTH_BYTES>() else {
            return Ok(Taken::NeedBytes(PDV_LENGTH_BYTES - self.buffer.len()));
        };
        let length = u32::from_be_bytes(length) as usize;
        if length < PDV_HEADER_BYTES || self.pdu_left.checked_sub(PDV_LENGTH_BYTES).is_none_or(|left| length > left) {
            return Err(ProtocolError::MalformedPdu);
        }
        let whole = PDV_LENGTH_BYTES + length;
        if self.buffer.len() < whole {
            return Ok(Taken::NeedBytes(whole - self.buffer.len()));
        }
        self.pdu_left -= whole;
        let mut value = self.buffer.split_to(whole).freeze();
        value.advance(PDV_LENGTH_BYTES);
        let context_id = value.get_u8();
        let control = value.get_u8();
        let (is_command, is_last) = (control & 0x01 != 0, control & 0x02 != 0);
        Ok(Taken::Incoming(Incoming::Fragment(Fragment { context_id, is_command, is_last, bytes: value })))
    }

    fn take_small(&mut self, kind: u8, length: u32) -> Result<Taken, ProtocolError> {
        let incoming = match kind {
            pdu_type::RELEASE_RQ => Incoming::ReleaseRq,
            pdu_type::RELEASE_RP => Incoming::ReleaseRp,
            pdu_type::ABORT => Incoming::Abort,
            other => return Err(ProtocolError::UnexpectedPdu(other)),
        };
        if length as usize > SMALL_PDU_BYTES_MAX {
            return Err(ProtocolError::PduTooLong { bytes: length, bytes_max: SMALL_PDU_BYTES_MAX as u32 });
        }
        let whole = PDU_HEADER_BYTES + length as usize;
        if self.buffer.len() < whole {
            return Ok(Taken::NeedBytes(whole - self.buffer.len()));
        }
        self.buffer.advance(whole);
        Ok(Taken::Incoming(incoming))
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A whole command set.
    Command {
        /// The presentation context id it came on.
        context_id: u8,
        /// The command; boxed because fragments, of which there are many more, should stay small.
        command: Box<Command>,
        /// Whether [`Part::Data`] follows.
        has_data_set: bool,
    },
    /// The next bytes of the data set announced by the command.
    Data {
        /// The bytes, possibly none.
        bytes: Bytes,
        /// The data set ends here.
        is_last: bool,
    },
}

/// Puts fragments together to messages (PS3.7 6.3, PS3.8 E).
#[derive(Debug)]
pub struct Assembler {
    accepted: [bool; 256],
    command_bytes_max: usize,
    command: Vec<u8>,
    /// The context of the message under way.
    context_id: Option<u8>,
    expects_data: bool,
}

impl Assembler {
    /// The longest command set accepted by default, in bytes. Real ones have a few hundred.
    pub const COMMAND_BYTES_MAX: usize = 16 * 1024;

    /// For an association with these accepted presentation contexts.
    pub fn new(accepted: impl IntoIterator<Item = u8>) -> Self {
        let mut table = [false; 256];
        for id in accepted {
            table[usize::from(id)] = true;
        }
        Assembler {
            accepted: table,
            command_bytes_max: Self::COMMAND_BYTES_MAX,
            command: Vec::new(),
            context_id: None,
            expects_data: false,
        }
    }

    /// Whether a data set is expected or under way.
    pub fn expects_data(&self) -> bool {
        self.expects_data
    }

    /// Takes a fragment; gives a part when there is one.
    ///
    /// # Errors
    /// When the fragment cannot come now.
    pub fn push(&mut self, fragment: Fragment) -> Result<Option<Part>, ProtocolError> {
        let id = fragment.context_id;
        if !self.accepted[usize::from(id)] {
            return Err(ProtocolError::UnknownContext(id));
        }
        match self.context_id {
            Some(expected) if expected != id => return Err(ProtocolError::ContextChanged { expected, got: id }),
            _ => self.context_id = Some(id),
        }
        match (fragment.is_command, self.expects_data) {
            (true, true) => Err(ProtocolError::OutOfOrder("command fragment within a data set")),
            (false, false) => Err(ProtocolError::OutOfOrder("data set fragment without a command")),
            (true, false) => self.push_command(id, &fragment),
            (false, true) => Ok(Some(self.push_data(fragment))),
        }
    }

    fn push_command(&mut self, context_id: u8, fragment: &Fragment) -> Result<Option<Part>, ProtocolError> {
        if self.command.len() + fragment.bytes.len() > self.command_bytes_max {
            return Err(ProtocolError::CommandTooLong { bytes_max: self.command_bytes_max });
        }
        self.command.extend_from_slice(&fragment.bytes);
        if !fragment.is_last {
            return Ok(None);
        }
        let Parsed { command, has_data_set } = Command::parse(&self.command)?;
        self.command.clear();
        self.expects_data = has_data_set;
        if !has_data_set {
            self.context_id = None;
        }
        Ok(Some(Part::Command { context_id, command: Box::new(command), has_data_set }))
    }

    fn push_data(&mut self, fragment: Fragment) -> Part {
        if fragment.is_last {
            self.expects_data = false;
            self.context_id = None;
        }
        Part::Data { bytes: fragment.bytes, is_last: fragment.is_last }
    }
}

/// How a peer's Maximum Length Received (PS3.8 D.1) bounds our fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentSize(usize);

impl FragmentSize {
    /// The largest PDU we send, in bytes, however much more the peer would take: memory per association stays bounded.
    pub const PDU_BYTES_MAX: u32 = 128 * 1024;
    /// Peers that announce less than this many bytes are refused: not even a command set fits reasonably.
    pub const PDU_BYTES_MIN: u32 = 1024;

    /// From the peer's Maximum Length Received in bytes, where 0 means no limit. `None` when it is too small to work with.
    pub fn for_peer(pdu_bytes_max: u32) -> Option<Self> {
        let pdu = match pdu_bytes_max {
            0 => Self::PDU_BYTES_MAX,
            n if n < Self::PDU_BYTES_MIN => return None,
            n => n.min(Self::PDU_BYTES_MAX),
        };
        // PS3.8 E.1: fragments have even length.
        Some(FragmentSize((pdu as usize - PDV_LENGTH_BYTES - PDV_HEADER_BYTES) & !1))
    }

    /// Bytes of command or data set in one PDU.
    pub fn bytes(self) -> usize {
        self.0
    }
}

/// The header of a P-DATA-TF PDU that carries one fragment of `length` bytes.
pub(crate) fn data_header(context_id: u8, is_command: bool, is_last: bool, length: usize) -> [u8; DATA_HEADER_BYTES] {
    // `length` is at most FragmentSize::PDU_BYTES_MAX.
    let value = (length + PDV_HEADER_BYTES) as u32;
    let [p0, p1, p2, p3] = (value + PDV_LENGTH_BYTES as u32).to_be_bytes();
    let [v0, v1, v2, v3] = value.to_be_bytes();
    let control = u8::from(is_command) | u8::from(is_last) << 1;
    [pdu_type::P_DATA, 0, p0, p1, p2, p3, v0, v1, v2, v3, context_id, control]
}

/// Appends a whole command set as P-DATA-TF PDUs.
pub(crate) fn append_command(out: &mut Vec<u8>, context_id: u8, command: &[u8], size: FragmentSize) {
    append(out, context_id, true, command, size);
}

/// Appends a whole data set as P-DATA-TF PDUs.
pub(crate) fn append_data_set(out: &mut Vec<u8>, context_id: u8, data: &[u8], size: FragmentSize) {
    append(out, context_id, false, data, size);
}

fn append(out: &mut Vec<u8>, context_id: u8, is_command: bool, bytes: &[u8], size: FragmentSize) {
    let mut chunks = bytes.chunks(size.bytes()).peekable();
    if chunks.peek().is_none() {
        out.extend(data_header(context_id, is_command, true, 0));
    }
    while let Some(chunk) = chunks.next() {
        out.extend(data_header(context_id, is_command, chunks.peek().is_none(), chunk.len()));
        out.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Uid, dimse::EchoRq, dimse::QueryRq};
    use proptest::prelude::*;

    fn find_rq() -> Command {
        Command::FindRq(QueryRq { message_id: 3, sop_class: Uid::literal("1.2.3"), priority: Default::default() })
    }

    /// All parts in these bytes, data joined.
    fn parts(inbox: &mut Inbox, assembler: &mut Assembler, bytes: &[u8]) -> Result<Vec<Part>, ProtocolError> {
        inbox.buffer().extend_from_slice(bytes);
        let mut parts = Vec::new();
        while let Taken::Incoming(Incoming::Fragment(fragment)) = inbox.take()? {
            parts.extend(assembler.push(fragment)?);
        }
        Ok(parts)
    }

    proptest! {
        #[test]
        fn what_is_fragmented_is_put_together(
            data in proptest::collection::vec(any::<u8>(), 0..5000), pdu in 1024u32..3000, cut in 1usize..700,
        ) {
            let size = FragmentSize::for_peer(pdu).unwrap();
            let mut wire = Vec::new();
            append_command(&mut wire, 5, &find_rq().encode(true), size);
            append_data_set(&mut wire, 5, &data, size);
            let (mut inbox, mut assembler) = (Inbox::new(pdu), Assembler::new([5]));
            let mut received = Vec::new();
            for chunk in wire.chunks(cut) {
                received.extend(parts(&mut inbox, &mut assembler, chunk).unwrap());
            }
            prop_assert!(inbox.is_between_pdus());
            let expected = Part::Command { context_id: 5, command: Box::new(find_rq()), has_data_set: true };
            prop_assert_eq!(&received[0], &expected);
            let mut joined = Vec::new();
            for (i, part) in received[1..].iter().enumerate() {
                let Part::Data { bytes, is_last } = part else { panic!("{part:?}") };
                joined.extend_from_slice(bytes);
                prop_assert_eq!(*is_last, i + 2 == received.len());
            }
            prop_assert_eq!(joined, data);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parts(&mut Inbox::new(16384), &mut Assembler::new(0..=255), &bytes);
            let mut framed = data_header(1, true, true, bytes.len()).to_vec();
            framed.extend(&bytes);
            let _ = parts(&mut Inbox::new(16384), &mut Assembler::new(0..=255), &framed);
        }
    }

    #[test]
    fn a_split_command_and_its_data_in_one_pdu() {
        // One P-DATA-TF PDU with three presentation data values on context 1: half a command, the other half, an empty data set.
        let command = find_rq().encode(true);
        let (a, b) = command.split_at(10);
        let mut values = Vec::new();
        for (bytes, control) in [(a, 0x01), (b, 0x03), (&[][..], 0x02)] {
            values.extend((bytes.len() as u32 + 2).to_be_bytes()); // item length
            values.extend([1, control]); // context id, message control header
            values.extend(bytes);
        }
        let mut pdu = vec![0x04, 0]; // P-DATA-TF, reserved
        pdu.extend((values.len() as u32).to_be_bytes());
        pdu.extend(values);
        let received = parts(&mut Inbox::new(16384), &mut Assembler::new([1]), &pdu).unwrap();
        assert_eq!(
            received,
            [
                Part::Command { context_id: 1, command: Box::new(find_rq()), has_data_set: true },
                Part::Data { bytes: Bytes::new(), is_last: true }
            ]
        );
    }

    #[test]
    fn broken_protocols() {
        let size = FragmentSize::for_peer(0).unwrap();
        let push = |wire: &[u8]| parts(&mut Inbox::new(16384), &mut Assembler::new([1, 3]), wire);
        let mut wire = Vec::new();
        append_command(&mut wire, 7, &find_rq().encode(true), size);
        assert_eq!(push(&wire), Err(ProtocolError::UnknownContext(7)));

        let mut wire = Vec::new();
        append_command(&mut wire, 1, &find_rq().encode(true), size);
        append_data_set(&mut wire, 3, b"x", size);
        assert_eq!(push(&wire), Err(ProtocolError::ContextChanged { expected: 1, got: 3 }));

        let mut wire = Vec::new();
        append_data_set(&mut wire, 1, b"x", size);
        assert!(matches!(push(&wire), Err(ProtocolError::OutOfOrder(_))));

        let mut wire = Vec::new();
        append_command(&mut wire, 1, &find_rq().encode(true), size);
        append_command(&mut wire, 1, &find_rq().encode(true), size);
        assert!(matches!(push(&wire), Err(ProtocolError::OutOfOrder(_))));

        assert_eq!(
            push(b"\x04\0\xff\xff\xff\xff"),
            Err(ProtocolError::PduTooLong { bytes: u32::MAX, bytes_max: 16384 })
        );
        assert_eq!(push(b"\x04\0\0\0\0\x08\0\0\0\x09\x01\x03ab"), Err(ProtocolError::MalformedPdu));
        assert_eq!(push(b"\x04\0\0\0\0\x05\0\0\0\x01\x01"), Err(ProtocolError::MalformedPdu));
        assert_eq!(push(b"GET / HTTP/1.1"), Err(ProtocolError::UnexpectedPdu(b'G')));
        assert!(matches!(push(b"\x05\0\xff\0\0\0"), Err(ProtocolError::PduTooLong { .. })));
    }

    #[test]
    fn a_command_without_data_is_followed_by_another() {
        let size = FragmentSize::for_peer(0).unwrap();
        let echo = Command::EchoRq(EchoRq { message_id: 1, sop_class: Uid::literal("1.2") });
        let mut wire = Vec::new();
        append_command(&mut wire, 1, &echo.encode(false), size);
        append_command(&mut wire, 3, &echo.encode(false), size);
        assert_eq!(parts(&mut Inbox::new(16384), &mut Assembler::new([1, 3]), &wire).unwrap().len(), 2);
    }

    #[test]
    fn pathological_peers() {
        assert_eq!(FragmentSize::for_peer(1), None);
        assert_eq!(FragmentSize::for_peer(1023), None);
        assert_eq!(FragmentSize::for_peer(0).unwrap().bytes(), 131_066);
        assert_eq!(FragmentSize::for_peer(u32::MAX).unwrap().bytes(), 131_066);
        assert_eq!(FragmentSize::for_peer(16_385).unwrap().bytes(), 16_378);
    }
}
