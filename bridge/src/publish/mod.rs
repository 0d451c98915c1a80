//! Publishing: settled studies go from the archive to the ledger. What comes next is a pure function of what the chain was seen to
//! hold ([`work`]); everything that is done to the ledger may be repeated; progress is recorded only after its effect was seen
//! at the configured depth. So a crash anywhere costs repeated looks, never a lost or a doubled piece.
//!
//! Order, per study: Define Study, previews, manifest, its announcement; then the objects. Where that is little it is sent at once, in this order,
//! which is that in which the chain carries it out; where it is much, or something of it failed, each step waits for the one before.
//! Across studies: everything that makes a study viewable goes before the objects of any, and objects of several studies take turns.
//!
//! It must not know RPC, nonces, SQL, DICOM or encryption: it sees ids, pieces and roots through three seams.
//!
//! * [`Outbox`]: the durable list of what is to be published and what was seen. The archive implements it.
//! * [`Source`]: the sealed bytes of images. The bridge implements it over archive and payload.
//! * [`Chain`]: the ledger. [`crate::ledger::Client`] implements it.

mod chain;
mod feed;
mod pace;
mod pieces;
#[cfg(test)]
mod simulation;
pub mod work;
mod worker;

pub use crate::ledger::{Amendment, ImageOnChain, Located, Opening, Part, Piece, PieceLocation, Seal, StudyOwner};
pub use chain::ChainError;
pub use pace::Pace;
pub use pieces::ChannelPieces;
pub use work::{ImageKind, ImageProgress, Plan, PlannedImage, Progress, Seen};
pub use worker::{PublishConfig, PublishStatus, Publisher, Stage, StudyStatus};

use alloy::primitives::B256;
use bytes::Bytes;
use std::future::Future;
use thiserror::Error;

/// A study to be published up to a manifest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StudyJob {
    /// Study id on chain. It is a salted hash, so it may be logged.
    pub study: B256,
    /// Manifest version, from 1. Late instances make the next one.
    pub version: u32,
}

/// The outbox could not be read or written. It is tried again.
#[derive(Debug, Error)]
#[error("outbox storage failed")]
pub struct OutboxError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The durable list of studies to publish. All calls may be repeated.
pub trait Outbox: Send + Sync + 'static {
    /// Settled studies whose newest version is not finished, oldest first.
    fn due(&self) -> impl Future<Output = Result<Vec<StudyJob>, OutboxError>> + Send;
    /// Whether the study is still to be published: it may be erased while it is made ready. Asked last, and not answered for long.
    fn wants(&self, job: &StudyJob) -> bool;
    /// Everything that was ever recorded for the study, over all its versions ([`Progress::apply`] folds it).
    fn progress(&self, job: &StudyJob) -> impl Future<Output = Result<Progress, OutboxError>> + Send;
    /// Records what was seen on chain; durable when it returns. The same thing may be recorded twice.
    fn record(&self, job: &StudyJob, seen: &[Seen]) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// Why sealed bytes are not to be had.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Not now: a disk error, or the owner has not signed yet. The study is tried again later.
    #[error("not ready: {0}")]
    Later(String),
    /// The study cannot be published as it is; somebody must look at it.
    #[error("cannot be published: {0}")]
    Broken(String),
}

/// Where sealed bytes come from. The same image always has the same bytes, so nothing sealed must be kept for a restart.
pub trait Source: Send + Sync + 'static {
    /// Pieces of one image.
    type Pieces: SealedPieces;
    /// What is to be published: previews first, then the manifest, then the objects. The same job always has the same plan.
    fn plan(&self, job: &StudyJob) -> impl Future<Output = Result<Plan, SourceError>> + Send;
    /// Begins to read an image of the plan.
    fn open(
        &self,
        job: &StudyJob,
        image: &PlannedImage,
    ) -> impl Future<Output = Result<Self::Pieces, SourceError>> + Send;
}

/// The sealed bytes of an image, piece by piece from the first, each of the planned size and only the last shorter.
pub trait SealedPieces: Send + 'static {
    /// The next piece; none after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, SourceError>> + Send;
}

/// The ledger as the publisher sees it. Everything may be repeated; what changes the chain returns when its effect was seen at
/// the configured depth.
pub trait Chain: Send + Sync + 'static {
    /// Bytes of pieces that fit one transaction, and what each piece adds to its own bytes.
    fn payload_bytes_max(&self) -> (usize, usize);
    /// Sends everything that makes a study viewable at once, as far as it is not there, and says where its pieces are when all of it was seen. Where that
    /// does not work, any of it may be there. Nothing is sent where it is not `wanted` any more.
    fn open(
        &self,
        opening: &Opening,
        wanted: &(dyn Fn() -> bool + Sync),
    ) -> impl Future<Output = Result<Vec<Located>, ChainError>> + Send;
    /// Whether a study is defined.
    fn defined(&self, study: B256) -> impl Future<Output = Result<bool, ChainError>> + Send;
    /// Define Study. `derived_from` commits to the study that it was made from, if that is to be said.
    fn define(
        &self,
        study: B256,
        owner: &StudyOwner,
        derived_from: B256,
    ) -> impl Future<Output = Result<(), ChainError>> + Send;
    /// What is there of an image.
    fn image(&self, image: B256) -> impl Future<Output = Result<ImageOnChain, ChainError>> + Send;
    /// Which pieces of an image are there, and where.
    fn find(&self, image: B256) -> impl Future<Output = Result<Vec<Located>, ChainError>> + Send;
    /// Stores pieces in one transaction and says where they are.
    fn store(&self, pieces: &[Piece]) -> impl Future<Output = Result<Vec<Located>, ChainError>> + Send;
    /// Ends images in one transaction.
    fn seal(&self, seals: &[Seal]) -> impl Future<Output = Result<(), ChainError>> + Send;
    /// Announces a manifest version.
    fn announce(&self, amendment: &Amendment) -> impl Future<Output = Result<(), ChainError>> + Send;
}
