//! Sealed pieces from code that writes: sealing runs on a blocking thread and is held back by a bounded channel, so that an image is never in
//! memory as a whole.

use super::{SealedPieces, SourceError};
use bytes::{Bytes, BytesMut};
use std::io::{self, Write};
use tokio::sync::mpsc;

/// Pieces that wait between the sealing thread and the reader.
const PIECES_AHEAD: usize = 2;

/// [`SealedPieces`] over a closure that writes the sealed bytes of an image.
#[derive(Debug)]
pub struct ChannelPieces {
    pieces: mpsc::Receiver<Result<Bytes, SourceError>>,
}

impl ChannelPieces {
    /// Runs `seal` on a blocking thread of tokio. It gets a writer that cuts what is written into pieces of `piece_bytes`; when the
    /// reader goes away, the writer fails with a broken pipe.
    pub fn spawn(
        piece_bytes: usize,
        seal: impl FnOnce(&mut dyn Write) -> Result<(), SourceError> + Send + 'static,
    ) -> Self {
        let (send, pieces) = mpsc::channel(PIECES_AHEAD);
        tokio::task::spawn_blocking(move || {
            let mut cutter = Cutter { send, piece_bytes: piece_bytes.max(1), open: BytesMut::new() };
            let sealed = seal(&mut cutter);
            let last = match sealed {
                Ok(()) if cutter.open.is_empty() => return,
                Ok(()) => Ok(cutter.open.split().freeze()),
                Err(error) => Err(error),
            };
            // A reader that has gone wants nothing.
            let _ = cutter.send.blocking_send(last);
        });
        Self { pieces }
    }
}

impl SealedPieces for ChannelPieces {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.pieces.recv().await.transpose()
    }
}

struct Cutter {
    send: mpsc::Sender<Result<Bytes, SourceError>>,
    piece_bytes: usize,
    open: BytesMut,
}

impl Write for Cutter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(self.piece_bytes - self.open.len());
        self.open.extend_from_slice(&buf[..taken]);
        if self.open.len() == self.piece_bytes {
            let piece = std::mem::replace(&mut self.open, BytesMut::with_capacity(self.piece_bytes)).freeze();
            self.send.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn all(mut pieces: ChannelPieces) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Some(piece) = pieces.next().await.unwrap() {
            out.push(piece);
        }
        out
    }

    #[tokio::test]
    async fn cuts_into_pieces_and_a_shorter_last() {
        let write = |bytes: usize| {
            ChannelPieces::spawn(10, move |out| {
                out.write_all(&vec![7; bytes]).map_err(|e| SourceError::Later(e.to_string()))
            })
        };
        for (bytes, sizes) in [(0, vec![]), (9, vec![9]), (10, vec![10]), (25, vec![10, 10, 5])] {
            assert_eq!(all(write(bytes)).await.iter().map(Bytes::len).collect::<Vec<_>>(), sizes);
        }
    }

    #[tokio::test]
    async fn a_failure_comes_after_the_pieces_before_it() {
        let mut pieces = ChannelPieces::spawn(2, |out| {
            out.write_all(b"abc").map_err(|e| SourceError::Later(e.to_string()))?;
            Err(SourceError::Broken("damaged".into()))
        });
        assert_eq!(pieces.next().await.unwrap().unwrap(), "ab");
        assert!(matches!(pieces.next().await, Err(SourceError::Broken(_))));
    }
}
