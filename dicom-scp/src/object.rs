//! Objects on their way through an association: the head of a C-STORE, the sink that takes its bytes, the stream that gives them.
//!
//! Must not know where objects are kept.

use crate::{
    AeTitle, TransferSyntax, Uid,
    dimse::MoveOriginator,
    status::{Failure, Reason, Status},
    transport::{Stream, Transport, TransportError},
};
use bytes::Bytes;
use std::{fmt, future::Future, net::SocketAddr, time::Duration};
use tokio::io::AsyncRead;

/// What is known about an object before its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreHead {
    /// Affected SOP Class UID of the command, equal to the presentation context's abstract syntax.
    pub sop_class: Uid,
    /// Affected SOP Instance UID of the command. The data set may disagree.
    pub sop_instance: Uid,
    /// The transfer syntax of the bytes that follow.
    pub transfer_syntax: TransferSyntax,
    /// The C-MOVE that this is a sub-operation of.
    pub move_originator: Option<MoveOriginator>,
    /// Who sends it.
    pub calling: AeTitle,
    /// Whom it is sent to.
    pub called: AeTitle,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Message ID (0000,0110).
    pub message_id: u16,
}

/// Takes the bytes of one object. Dropping it without [`StoreSink::finish`] abandons the object.
pub trait StoreSink: Send {
    /// Takes the next bytes of the data set, exactly as received.
    ///
    /// # Errors
    /// The rest of the object is then read and thrown away, and the failure answers the C-STORE.
    fn write(&mut self, data: &[u8]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// All bytes have come. Success is what the peer is told, so it must mean durable.
    ///
    /// # Errors
    /// The failure answers the C-STORE.
    fn finish(self) -> impl Future<Output = Result<Stored, Failure>> + Send;
}

/// The object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Success or a warning.
    pub status: Status,
}

impl Default for Stored {
    fn default() -> Self {
        Stored { status: Status::SUCCESS }
    }
}

/// An object to send.
pub struct ObjectStream {
    /// The transfer syntax of the bytes.
    pub transfer_syntax: TransferSyntax,
    /// How many bytes the data set has, unless it is [`Content::Made`]. The reader must give exactly so many.
    pub bytes: u64,
    /// The data set, without preamble and file meta information.
    pub content: Content,
}

/// Where the bytes of an object come from.
pub enum Content {
    /// They are in memory, and are sent from there.
    Whole(Bytes),
    /// They are read while they are sent. When the reader fails the association is aborted, since half an object cannot be taken back.
    Reader(Box<dyn AsyncRead + Send + Unpin>),
    /// They are made while they are sent, as many as there are.
    Made(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for ObjectStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStream")
            .field("transfer_syntax", self.transfer_syntax.uid())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Reads the data set of a C-STORE to its end, whatever happens to the sink (PS3.7 9.1.1: the request arrived whole, so it is answered).
pub(crate) async fn receive_object<S: Stream, K: StoreSink>(
    transport: &mut Transport<S>,
    begun: Result<K, Failure>,
    limit: Duration,
) -> Result<Result<Stored, Failure>, TransportError> {
    let mut sink = begun;
    while transport.expects_data() {
        let (bytes, _) = transport.receive_data(limit).await?;
        if let Ok(open) = &mut sink
            && let Err(failure) = open.write(&bytes).await
        {
            sink = Err(failure);
        }
    }
    match sink {
        Ok(sink) => Ok(sink.finish().await),
        Err(failure) => Ok(Err(failure)),
    }
}

/// A C-STORE-RQ that announces no data set.
pub(crate) fn without_data_set() -> Failure {
    Failure::new(Reason::CannotUnderstand, "c-store without data set")
}
