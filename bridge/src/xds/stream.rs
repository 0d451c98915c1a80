//! The octets of an answer as they are made: one object at a time, never a whole document.
//!
//! What fails on the way, and a client that does not read on, ends the connection, so that the promised length is not met.

use std::io::{self, Read};
use std::time::Duration;

use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use ihe_retrieve::multipart::Plan;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::document::{Contents, Document};
use crate::recode::RecodeError;
use crate::retrieve::{Content, Opened, Retrieve, RetrieveError};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Octets handed to the connection at once.
const RUN_BYTES: usize = 64 * 1024;
/// Runs that wait for the connection.
const RUNS_AHEAD: usize = 2;
/// Objects of an archive that are opened at once: the next is fetched and proven while one is sent.
const OBJECTS_AHEAD: usize = 2;

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The client does not read, or left.
    #[error("the client does not read on")]
    Client,
    /// An object cannot be had.
    #[error("an object")]
    Object(#[from] RetrieveError),
    /// An object cannot be brought into another transfer syntax any more.
    #[error("an object in another transfer syntax")]
    Recode(#[from] RecodeError),
    /// An object cannot be read.
    #[error("reading an object")]
    Read(#[from] io::Error),
}

/// Where octets go.
pub(super) struct Pipe {
    out: mpsc::Sender<Bytes>,
    stall: Duration,
}

impl Pipe {
    /// A pipe and the body at its end. A client that takes nothing for as long as `stall` has left.
    pub(super) fn new(stall: Duration) -> (Self, Body) {
        let (out, taken) = mpsc::channel(RUNS_AHEAD);
        let frames = futures::stream::unfold(taken, |mut taken: mpsc::Receiver<Bytes>| async move {
            taken.recv().await.map(|run| (Ok(Frame::data(run)), taken))
        });
        (Self { out, stall }, StreamBody::new(frames).boxed_unsync())
    }

    async fn send(&self, octets: impl Into<Bytes>) -> Result<(), Broken> {
        let sent = tokio::time::timeout(self.stall, self.out.send(octets.into())).await;
        sent.map_err(|_| Broken::Client)?.map_err(|_| Broken::Client)
    }

    /// Sends a message whose documents are these, in order.
    pub(super) async fn message(&self, plan: &Plan, documents: &[Document], retrieve: &Retrieve) -> Result<(), Broken> {
        self.send(plan.head().to_vec()).await?;
        for (part, document) in plan.parts().iter().zip(documents) {
            self.send(plan.part_head(part)).await?;
            self.document(document, retrieve).await?;
        }
        self.send(plan.tail()).await
    }

    async fn document(&self, document: &Document, retrieve: &Retrieve) -> Result<(), Broken> {
        match &document.contents {
            Contents::Archive(objects, layout) => {
                let opening = objects.iter().cloned().map(|stored| {
                    let retrieve = retrieve.clone();
                    async move { retrieve.open_file(&stored).await }
                });
                let mut opened = futures::stream::iter(opening).buffered(OBJECTS_AHEAD).enumerate();
                let mut checksums = Vec::with_capacity(objects.len());
                while let Some((index, opened)) = opened.next().await {
                    let opened = opened?;
                    let crc32 = opened.content.crc32();
                    checksums.push(crc32);
                    self.send(layout.header(index, crc32)).await?;
                    self.object(opened).await?;
                }
                self.send(layout.end(&checksums)).await
            }
            Contents::Object(stored) => self.object(retrieve.open_file(stored).await?).await,
            Contents::Recoded(stored, how) => {
                let file = how.open(retrieve, stored).await?;
                self.file(file, document.bytes).await
            }
            Contents::Written(octets) => self.octets(octets.clone()).await,
        }
    }

    async fn object(&self, opened: Opened) -> Result<(), Broken> {
        match opened.content {
            Content::Whole(bytes) => self.octets(bytes).await,
            Content::File(file) => self.file(file, opened.bytes).await,
        }
    }

    async fn octets(&self, mut octets: Bytes) -> Result<(), Broken> {
        while !octets.is_empty() {
            self.send(octets.split_to(octets.len().min(RUN_BYTES))).await?;
        }
        Ok(())
    }

    async fn file<R: Read + Send + 'static>(&self, mut file: R, bytes: u64) -> Result<(), Broken> {
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(RUN_BYTES);
            let read = tokio::task::spawn_blocking(move || {
                let mut run = vec![0; wanted];
                file.read_exact(&mut run).map(|()| (file, run))
            });
            let run;
            (file, run) = read.await.map_err(io::Error::other)??;
            left -= run.len() as u64;
            self.send(run).await?;
        }
        Ok(())
    }

    /// After the last octet: cuts the connection of a client that does not take what is left.
    pub(super) async fn linger(self, cut: &CancellationToken) {
        let stall = self.stall;
        drop(self);
        linger(stall, cut).await;
    }
}

/// Cuts a connection unless it ends by itself in time.
pub(super) async fn linger(longest: Duration, cut: &CancellationToken) {
    tokio::select! {
        () = cut.cancelled() => {}
        () = tokio::time::sleep(longest) => cut.cancel(),
    }
}
