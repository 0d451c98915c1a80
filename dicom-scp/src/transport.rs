//! An established association over a byte stream: receiving message parts, sending messages, with a time limit on every wait.
//!
//! Receiving is cancel-safe (state lives in the struct, bytes are appended only when read), sending is not. Must not know services.

use crate::message::{
    Assembler, DATA_HEADER_BYTES, FragmentSize, Inbox, Incoming, Part, ProtocolError, Taken, append_command,
    append_data_set, data_header,
};
use crate::{
    TransferSyntax,
    negotiation::Context,
    object::{Content, ObjectStream},
    transcode::{Transcoder, TranscodingReader},
};
use bytes::{Buf, Bytes};
use std::{collections::VecDeque, io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a byte stream must be to carry an association: TCP, or TLS over it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why an association ended other than by release.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer broke the protocol.
    #[error("protocol broken by peer")]
    Protocol(#[from] ProtocolError),
    /// The peer sent A-ABORT.
    #[error("aborted by peer")]
    Aborted,
    /// The peer closed the connection, in the middle of a PDU or without release.
    #[error("connection closed by peer")]
    Closed,
    /// The peer asked for release where that cannot be.
    #[error("released by peer within an operation")]
    Released,
    /// The peer kept us waiting.
    #[error("timed out waiting for {0}")]
    Timeout(&'static str),
    /// The connection broke.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// Our own source of an object's bytes failed while they were being sent.
    #[error("object could not be read while it was being sent")]
    Source(#[source] io::Error),
}

/// What [`Transport::receive`] gives.
#[derive(Debug)]
pub(crate) enum Received {
    Part(Part),
    ReleaseRq,
    ReleaseRp,
}

pub(crate) struct Transport<S> {
    stream: S,
    inbox: Inbox,
    assembler: Assembler,
    outbox: Vec<u8>,
    fragment_size: FragmentSize,
    write_timeout: Duration,
    /// Bytes of PDUs received and sent, for the closing log line.
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
}

impl<S: Stream> Transport<S> {
    pub(crate) fn new(
        stream: S,
        inbox: Inbox,
        assembler: Assembler,
        fragment_size: FragmentSize,
        write_timeout: Duration,
    ) -> Self {
        Transport {
            stream,
            inbox,
            assembler,
            outbox: Vec::new(),
            fragment_size,
            write_timeout,
            bytes_received: 0,
            bytes_sent: 0,
        }
    }

    /// The next message part or release. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<Received, TransportError> {
        loop {
            match self.inbox.take()? {
                Taken::Incoming(Incoming::Fragment(fragment)) => {
                    if let Some(part) = self.assembler.push(fragment)? {
                        return Ok(Received::Part(part));
                    }
                }
                Taken::Incoming(Incoming::ReleaseRq) => return Ok(Received::ReleaseRq),
                Taken::Incoming(Incoming::ReleaseRp) => return Ok(Received::ReleaseRp),
                Taken::Incoming(Incoming::Abort) => return Err(TransportError::Aborted),
                Taken::NeedBytes(bytes) => self.fill(bytes).await?,
            }
        }
    }

    /// As [`Self::receive`] with a limit on the wait.
    pub(crate) async fn receive_within(
        &mut self,
        limit: Duration,
        what: &'static str,
    ) -> Result<Received, TransportError> {
        tokio::time::timeout(limit, self.receive()).await.map_err(|_| TransportError::Timeout(what))?
    }

    /// The next bytes of the data set announced by the last command.
    pub(crate) async fn receive_data(&mut self, limit: Duration) -> Result<(Bytes, bool), TransportError> {
        match self.receive_within(limit, "data set fragment").await? {
            Received::Part(Part::Data { bytes, is_last }) => Ok((bytes, is_last)),
            Received::Part(Part::Command { .. }) => {
                Err(ProtocolError::OutOfOrder("command where a data set fragment must come").into())
            }
            Received::ReleaseRq | Received::ReleaseRp => {
                Err(ProtocolError::UnexpectedMessage("release within a message").into())
            }
        }
    }

    /// A whole data set, or `None` when it is longer than `bytes_max`; it is read to its end either way.
    pub(crate) async fn receive_data_set(
        &mut self,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, TransportError> {
        let mut data_set = Some(Vec::new());
        loop {
            let (bytes, is_last) = self.receive_data(limit).await?;
            data_set = data_set.filter(|so_far: &Vec<u8>| so_far.len() + bytes.len() <= bytes_max);
            if let Some(data_set) = &mut data_set {
                data_set.extend_from_slice(&bytes);
            }
            if is_last {
                return Ok(data_set);
            }
        }
    }

    /// Whether the data set of the last command has not been read to its end.
    pub(crate) fn expects_data(&self) -> bool {
        self.assembler.expects_data()
    }

    /// Reads what is left of the data set of the last command.
    pub(crate) async fn drain_data_set(&mut self, limit: Duration) -> Result<(), TransportError> {
        while self.expects_data() {
            self.receive_data(limit).await?;
        }
        Ok(())
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), TransportError> {
        // One more than needed is common: the next PDU's header. Growing in large steps lets the buffer be reused whole.
        const STEP: usize = 256 * 1024;
        const SMALL: usize = 4096;
        let buffer = self.inbox.buffer();
        if buffer.capacity() - buffer.len() < bytes {
            buffer.reserve(if bytes > SMALL { bytes.max(STEP) } else { bytes.max(SMALL) });
        }
        let read = match self.stream.read_buf(buffer).await {
            // TLS that ended without saying so.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            read => read?,
        };
        if read == 0 {
            return Err(TransportError::Closed);
        }
        self.bytes_received += read as u64;
        Ok(())
    }

    /// Sends a command set and, if there is one, its data set.
    pub(crate) async fn send(
        &mut self,
        context_id: u8,
        command: &[u8],
        data_set: Option<&[u8]>,
    ) -> Result<(), TransportError> {
        self.outbox.clear();
        append_command(&mut self.outbox, context_id, command, self.fragment_size);
        if let Some(data_set) = data_set {
            append_data_set(&mut self.outbox, context_id, data_set, self.fragment_size);
        }
        self.flush().await
    }
    /// Sends a command set and all bytes that `source` gives. If the source fails, the message cannot be completed and the association
    /// must be aborted.
    pub(crate) async fn send_all_from(
        &mut self,
        context_id: u8,
        command: &[u8],
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), TransportError> {
        self.outbox.clear();
        append_command(&mut self.outbox, context_id, command, self.fragment_size);
        let size = self.fragment_size.bytes();
        let mut chunk = read_chunk(source, size).await?;
        loop {
            // Only the fragment after tells which one is the last.
            let next = if chunk.len() == size { read_chunk(source, size).await? } else { Vec::new() };
            self.outbox.extend(data_header(context_id, false, next.is_empty(), chunk.len()));
            self.outbox.extend_from_slice(&chunk);
            self.flush().await?;
            if next.is_empty() {
                return Ok(());
            }
            chunk = next;
        }
    }

    /// Sends a command set and a data set of exactly `bytes` bytes from `source`. If the source ends early or fails, the message cannot
    /// be completed and the association must be aborted.
    pub(crate) async fn send_from(
        &mut self,
        context_id: u8,
        command: &[u8],
        source: &mut (impl AsyncRead + Unpin),
        bytes: u64,
    ) -> Result<(), TransportError> {
        self.outbox.clear();
        append_command(&mut self.outbox, context_id, command, self.fragment_size);
        let mut left = bytes;
        loop {
            let length = left.min(self.fragment_size.bytes() as u64) as usize;
            left -= length as u64;
            self.outbox.extend(data_header(context_id, false, left == 0, length));
            let start = self.outbox.len();
            self.outbox.resize(start + length, 0);
            let Some(space) = self.outbox.get_mut(start..) else { break };
            source.read_exact(space).await.map_err(TransportError::Source)?;
            self.flush().await?;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Sends a command set and a data set in memory, which is not copied. The time limit is on every step forward, not on the whole.
    async fn send_whole(&mut self, context_id: u8, command: &[u8], data_set: &Bytes) -> Result<(), TransportError> {
        self.outbox.clear();
        append_command(&mut self.outbox, context_id, command, self.fragment_size);
        let size = self.fragment_size.bytes();
        let mut gather = Gather { parts: VecDeque::with_capacity(2 * data_set.len().div_ceil(size) + 2) };
        gather.parts.push_back(Bytes::copy_from_slice(&self.outbox));
        self.outbox.clear();
        let mut at = 0;
        loop {
            let end = data_set.len().min(at + size);
            let header = data_header(context_id, false, end == data_set.len(), end - at);
            gather.parts.push_back(Bytes::copy_from_slice(&header));
            gather.parts.push_back(data_set.slice(at..end));
            at = end;
            if at == data_set.len() {
                break;
            }
        }
        while gather.has_remaining() {
            let step = tokio::time::timeout(self.write_timeout, self.stream.write_buf(&mut gather)).await;
            match step.map_err(|_| TransportError::Timeout("the peer to take data"))?? {
                0 => return Err(TransportError::Io(io::ErrorKind::WriteZero.into())),
                written => self.bytes_sent += written as u64,
            }
        }
        let flush = tokio::time::timeout(self.write_timeout, self.stream.flush()).await;
        Ok(flush.map_err(|_| TransportError::Timeout("the peer to take data"))??)
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        let write = async {
            self.stream.write_all(&self.outbox).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(self.write_timeout, write)
            .await
            .map_err(|_| TransportError::Timeout("the peer to take data"))??;
        self.bytes_sent += self.outbox.len() as u64;
        self.outbox.clear();
        // A large outbox is kept only as large as one PDU.
        self.outbox.shrink_to(FragmentSize::PDU_BYTES_MAX as usize + 2 * DATA_HEADER_BYTES);
        Ok(())
    }

    /// Sends a C-STORE of an object stored in `from` over a context negotiated for `to`, transcoding where they differ.
    pub(crate) async fn send_object(
        &mut self,
        context: &Context,
        command: &[u8],
        from: &TransferSyntax,
        source: &mut (impl AsyncRead + Unpin),
        bytes: u64,
    ) -> Result<(), TransportError> {
        match transcoder(from, context) {
            None => self.send_from(context.id, command, source, bytes).await,
            Some(transcoder) => {
                let mut source = TranscodingReader::new(source, bytes, transcoder);
                self.send_all_from(context.id, command, &mut source).await
            }
        }
    }

    /// As [`Self::send_object`].
    pub(crate) async fn send_content(
        &mut self,
        context: &Context,
        command: &[u8],
        object: &mut ObjectStream,
    ) -> Result<(), TransportError> {
        let (from, bytes) = (&object.transfer_syntax, object.bytes);
        match &mut object.content {
            Content::Reader(reader) => self.send_object(context, command, from, reader, bytes).await,
            Content::Made(reader) => match transcoder(from, context) {
                None => self.send_all_from(context.id, command, reader).await,
                Some(transcoder) => {
                    let mut reader = TranscodingReader::to_end(reader, transcoder);
                    self.send_all_from(context.id, command, &mut reader).await
                }
            },
            Content::Whole(whole) if whole.len() as u64 == bytes && transcoder(from, context).is_none() => {
                self.send_whole(context.id, command, whole).await
            }
            Content::Whole(whole) => self.send_object(context, command, from, &mut whole.as_ref(), bytes).await,
        }
    }

    /// Sends A-RELEASE-RQ.
    pub(crate) async fn send_release_rq(&mut self) -> Result<(), TransportError> {
        self.send_raw(&[0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await
    }

    /// Sends A-RELEASE-RP.
    pub(crate) async fn send_release_rp(&mut self) -> Result<(), TransportError> {
        self.send_raw(&[0x06, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await
    }

    /// Sends A-ABORT (PS3.8 9.3.8), on a best effort basis and without waiting long for a peer that takes nothing.
    pub(crate) async fn abort(&mut self, source: AbortSource) {
        const LIMIT: Duration = Duration::from_secs(1);
        let [source, reason] = source.bytes();
        let goodbye = async {
            self.send_raw(&[0x07, 0, 0, 0, 0, 4, 0, 0, source, reason]).await?;
            Ok::<_, TransportError>(self.stream.shutdown().await?)
        };
        // The peer may be gone, which is as good.
        let _ = tokio::time::timeout(LIMIT, goodbye).await;
    }

    async fn send_raw(&mut self, pdu: &[u8]) -> Result<(), TransportError> {
        self.outbox.clear();
        self.outbox.extend_from_slice(pdu);
        self.flush().await
    }

    /// Waits a moment for the peer to close, as it should after a release or abort (PS3.8 9.2, state 13). Closing with bytes unread would
    /// reset the connection and could destroy our last PDU on its way.
    pub(crate) async fn linger(mut self, limit: Duration) {
        let mut rest = [0; 256];
        let closed = async { while matches!(self.stream.read(&mut rest).await, Ok(n) if n > 0) {} };
        let _ = tokio::time::timeout(limit, closed).await;
        let _ = self.stream.shutdown().await;
    }
}

/// What turns an object into what a context was negotiated for, where they differ.
fn transcoder(from: &TransferSyntax, context: &Context) -> Option<Transcoder> {
    Transcoder::new(from, &context.transfer_syntax).filter(|_| from.uid() != context.transfer_syntax.uid())
}

/// Byte runs that go out one after the other, many in one system call.
struct Gather {
    /// None is empty.
    parts: VecDeque<Bytes>,
}

impl Buf for Gather {
    fn remaining(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [io::IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.parts).map(|(slice, part)| *slice = io::IoSlice::new(part));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }
}

/// The next `size` bytes, less only at the end.
async fn read_chunk(source: &mut (impl AsyncRead + Unpin), size: usize) -> Result<Vec<u8>, TransportError> {
    let mut chunk = Vec::with_capacity(size);
    source.take(size as u64).read_to_end(&mut chunk).await.map_err(TransportError::Source)?;
    Ok(chunk)
}

/// The context to send an object over: one with its own transfer syntax, else one that it can be transcoded for.
pub(crate) fn context_for_object<'a>(
    contexts: impl Iterator<Item = &'a Context> + Clone,
    from: &TransferSyntax,
) -> Option<Context> {
    let same = contexts.clone().find(|context| context.transfer_syntax.uid() == from.uid());
    same.or_else(|| contexts.clone().find(|context| Transcoder::new(from, &context.transfer_syntax).is_some())).copied()
}

/// Who aborts and why (PS3.8 9.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AbortSource {
    /// The application.
    ServiceUser,
    /// The protocol machine: reason not specified.
    Unspecified,
    /// The protocol machine: unrecognised PDU.
    UnrecognizedPdu,
    /// The protocol machine: unexpected PDU.
    UnexpectedPdu,
    /// The protocol machine: invalid PDU parameter value.
    InvalidParameter,
}

impl AbortSource {
    fn bytes(self) -> [u8; 2] {
        match self {
            AbortSource::ServiceUser => [0, 0],
            AbortSource::Unspecified => [2, 0],
            AbortSource::UnrecognizedPdu => [2, 1],
            AbortSource::UnexpectedPdu => [2, 2],
            AbortSource::InvalidParameter => [2, 6],
        }
    }

    /// The A-ABORT that answers an error, or `None` where the peer is gone or has aborted itself.
    pub(crate) fn answering(error: &TransportError) -> Option<Self> {
        match error {
            TransportError::Protocol(ProtocolError::UnexpectedPdu(1..=7)) => Some(AbortSource::UnexpectedPdu),
            TransportError::Protocol(ProtocolError::UnexpectedPdu(_)) => Some(AbortSource::UnrecognizedPdu),
            TransportError::Protocol(ProtocolError::PduTooLong { .. } | ProtocolError::MalformedPdu) => {
                Some(AbortSource::InvalidParameter)
            }
            TransportError::Protocol(_) => Some(AbortSource::Unspecified),
            TransportError::Timeout(_) | TransportError::Source(_) | TransportError::Released => {
                Some(AbortSource::ServiceUser)
            }
            TransportError::Aborted | TransportError::Closed | TransportError::Io(_) => None,
        }
    }
}
