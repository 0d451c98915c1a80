//! The publisher's two seams to this site: the archive as its outbox, the assembler as its source of sealed bytes.
//!
//! What is sealed for a study that others may have seen is sealed in an epoch of which nobody has the key from whom access was
//! taken away before: versions of such a study are made only while this site knows what the ledger says.
//!
//! A derived study is made ready when all of its objects are stored, and never with an object that was not derived.
//!
//! Must not know the chain.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dicom_scp::Uid;
use tokio::runtime::Handle;
use tokio::sync::{MutexGuard, Notify};
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, SeenOnLedger, now_ms};
use crate::assemble::{AssembleError, Assembler, Encryption};
use crate::derive::{self, Derivation, DeriveError, Derived, Owner};
use crate::follow::{Consents, FollowError};
use crate::ipfs::{Ipfs, IpfsError};
use crate::keyring::Keyring;
use crate::publish::{
    ChannelPieces, ImageKind, Outbox, OutboxError, Plan, PlannedImage, Progress, Seen, Source, SourceError, StudyJob,
    StudyOwner,
};
use crate::study;

/// Studies made ready in one go before the publisher is told.
const DUE_MAX: u32 = 16;
/// Longest sleep of the planner while nothing is due and nothing arrives.
const IDLE: Duration = Duration::from_secs(2);
/// Wait after a study could not be made ready.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Wait for the ledger to be followed, in milliseconds.
const AFTER_BEHIND_MS: i64 = 200;

/// Why a study could not be made ready.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    #[error("the assembler")]
    Assemble(#[from] AssembleError),
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    #[error("the consents")]
    Follow(#[from] FollowError),
    #[error("the record of derived studies")]
    Derived(#[from] DeriveError),
    #[error("object {0} of a derived study was not derived here")]
    NotDerived(Uid),
}

/// [`Outbox`] and [`Source`] over archive, keyring and assembler.
#[derive(Clone)]
pub struct SiteOutbox {
    archive: Archive,
    keyring: Keyring,
    assembler: Assembler,
    consents: Consents,
    derived: Derived,
    /// Notified when a study became final, if anybody derives from such.
    finished: Option<Arc<Notify>>,
    /// Rules whose derived studies are open to everybody.
    open_rules: Arc<HashSet<String>>,
    /// Where sealed objects go of which the ledger has only the name.
    ipfs: Option<Ipfs>,
}

impl SiteOutbox {
    /// Joins the parts.
    #[must_use]
    pub fn new(
        archive: Archive,
        keyring: Keyring,
        assembler: Assembler,
        consents: Consents,
        derived: Derived,
        finished: Option<Arc<Notify>>,
    ) -> Self {
        let (open_rules, ipfs) = (Arc::default(), None);
        Self { archive, keyring, assembler, consents, derived, finished, open_rules, ipfs }
    }

    /// The same, with an IPFS node.
    #[must_use]
    pub fn with_ipfs(self, ipfs: Option<Ipfs>) -> Self {
        Self { ipfs, ..self }
    }

    /// The same, with rules whose derived studies are open to everybody who reads the ledger.
    #[must_use]
    pub fn with_open_rules(self, rules: impl IntoIterator<Item = String>) -> Self {
        Self { open_rules: Arc::new(rules.into_iter().collect()), ..self }
    }

    /// Makes versions of studies whose quiet time is over, until `stop`; wakes the publisher for each.
    pub async fn plan_versions(self, publisher: Arc<Notify>, stop: CancellationToken) {
        loop {
            let (wait, waits_long) = match self.plan_due(&publisher, &stop).await {
                Ok(next_ms) => {
                    let wait = Duration::from_millis(u64::try_from(next_ms - now_ms()).unwrap_or(0)).min(IDLE);
                    // Whatever arrives is due no sooner than after its quiet time: only a longer sleep is cut short.
                    (wait, wait > self.archive.settle())
                }
                Err(error) => {
                    tracing::error!(error = %crate::chain_of(&error), "studies cannot be made ready for the ledger");
                    (AFTER_FAILURE, false)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.archive.arrival(), if waits_long => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(10))) => {}
            }
        }
    }

    async fn plan_due(&self, publisher: &Notify, stop: &CancellationToken) -> Result<i64, PlanError> {
        let (mut failed, mut behind) = (None, false);
        for study in self.archive.studies_due(DUE_MAX)? {
            if stop.is_cancelled() {
                break;
            }
            // One study that cannot be made ready must not stand in the way of the others.
            match self.plan(&study).await {
                Ok(true) => publisher.notify_one(),
                Ok(false) => behind = true,
                Err(PlanError::Assemble(AssembleError::Gone)) => tracing::debug!("a study went before it was ready"),
                Err(error) => {
                    tracing::error!(%study, error = %crate::chain_of(&error), "a study cannot be made ready for the ledger");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None if behind => Ok(now_ms() + AFTER_BEHIND_MS),
            None => Ok(self.archive.next_due_ms()?.unwrap_or(i64::MAX)),
        }
    }

    /// Makes the next version of a study, unless it is not known now from whom access to it was taken away, or it is being derived.
    async fn plan(&self, study: &Uid) -> Result<bool, PlanError> {
        let Some(_alone) = self.derived_whole(study)? else { return Ok(false) };
        let known = self.archive.publication(study)?.map(|publication| publication.study_id);
        let now_s = u64::try_from(now_ms() / 1000).unwrap_or(0);
        if known.is_some() && !self.consents.is_current(now_s) {
            return Ok(false);
        }
        let withdrawn = || match known {
            Some(study_id) => Ok::<_, PlanError>(self.consents.withdrawals(study_id)?),
            None => Ok(Vec::new()),
        };
        self.assembler.begin_version(study, self.encryption(study)?, withdrawn).await?;
        Ok(true)
    }

    /// Off only for what a rule derived that says so today.
    fn encryption(&self, study: &Uid) -> Result<Encryption, PlanError> {
        let derivation = self.derived.of_derived(study)?;
        let open = derivation.is_some_and(|derivation| self.open_rules.contains(derivation.rule()));
        Ok(if open { Encryption::Off } else { Encryption::On })
    }

    /// Whether every object of a study is there, and none that should not be, if it was derived. It stays so while the answer is held.
    fn derived_whole(&self, study: &Uid) -> Result<Option<Option<MutexGuard<'_, ()>>>, PlanError> {
        let Some(derivation) = self.derived.of_derived(study)? else { return Ok(Some(None)) };
        let Some(alone) = self.derived.try_pause() else { return Ok(None) };
        if self.derived.is_storing(study) {
            return Ok(None);
        }
        match derive::stranger(&self.archive, &self.derived, &derivation)? {
            Some(stranger) => Err(PlanError::NotDerived(stranger)),
            None => Ok(Some(Some(alone))),
        }
    }

    /// A study can go while it is being published.
    fn uid(&self, job: &StudyJob) -> Result<Uid, ArchiveError> {
        self.archive.study_of_id(&job.study)?.ok_or_else(|| ArchiveError::Corrupt(format!("publication {}", job.study)))
    }
}

impl Outbox for SiteOutbox {
    async fn due(&self) -> Result<Vec<StudyJob>, OutboxError> {
        let open = self.archive.open_publications().map_err(outbox)?;
        Ok(open.into_iter().map(|p| StudyJob { study: p.study_id, version: p.version }).collect())
    }

    fn wants(&self, job: &StudyJob) -> bool {
        self.archive.study_of_id(&job.study).is_ok_and(|known| known.is_some())
    }

    async fn progress(&self, job: &StudyJob) -> Result<Progress, OutboxError> {
        let uid = self.uid(job).map_err(outbox)?;
        let mut progress = Progress::default();
        let Some(publication) = self.archive.publication(&uid).map_err(outbox)? else { return Ok(progress) };
        progress.defined = publication.defined;
        progress.announced = publication.announced;
        progress.finished =
            if publication.final_ms.is_some() { publication.version } else { publication.version.saturating_sub(1) };
        let (sealed, pieces) = self.archive.seen_images(&uid).map_err(outbox)?;
        for (image, number) in pieces {
            progress.images.entry(image).or_default().insert(number);
        }
        progress.apply(&Seen::Sealed(sealed));
        Ok(progress)
    }

    async fn record(&self, job: &StudyJob, seen: &[Seen]) -> Result<(), OutboxError> {
        // Of a study that was erased meanwhile nothing is kept.
        let Some(uid) = self.archive.study_of_id(&job.study).map_err(outbox)? else { return Ok(()) };
        let mut all = SeenOnLedger::default();
        for one in seen {
            match one {
                Seen::Defined => all.defined = true,
                Seen::Stored(located) => all.located.extend(located),
                Seen::Sealed(images) => all.sealed.extend(images),
                Seen::Announced(version) => all.announced = Some(*version),
                Seen::Finished(version) => all.finished = Some(*version),
            }
        }
        let sealed = all.sealed.clone();
        let finished = self.finished.as_ref().filter(|_| all.finished.is_some());
        if finished.is_some() {
            // Before it is final: nobody looks at a study that is not, and none that is may be missed.
            self.derived.add_candidate(&uid).map_err(|error| OutboxError(Box::new(error)))?;
        }
        self.archive.record_seen(&uid, all).await.map_err(outbox)?;
        if let Some(finished) = finished {
            finished.notify_one();
        }
        // Sealed images are on the ledger for good; their bytes here were a cache.
        self.assembler.forget_sealed(&sealed);
        Ok(())
    }
}

impl Source for SiteOutbox {
    type Pieces = ChannelPieces;

    async fn plan(&self, job: &StudyJob) -> Result<Plan, SourceError> {
        let uid = self.uid(job).map_err(later)?;
        let keys = self.keyring.study(&uid).map_err(later)?;
        let keys = keys.ok_or_else(|| SourceError::Later("the study has no keys".into()))?;
        let images = self.archive.images_of(&uid, job.version).map_err(later)?;
        let images = images.into_iter().map(|image| PlannedImage {
            image: image.id,
            kind: kind(image.kind),
            pieces: image.map.pieces,
            bytes: image.map.sealed_bytes,
            piece_bytes: image.map.piece_bytes,
            root: image.map.root,
            elsewhere: image.link.is_some(),
        });
        let derivation = self.derived.of_derived(&uid).map_err(later)?;
        let owner = match derivation.as_ref().map(Derivation::owner) {
            Some(Owner::Research(owner)) => StudyOwner::Held { owner },
            // Who is elsewhere gets it when his groups were let in.
            None | Some(Owner::Custody | Owner::Elsewhere(_)) => StudyOwner::Custodial { index: keys.owner_index },
        };
        let lineage = derivation.and_then(|derivation| derivation.lineage());
        let derived_from = lineage.map_or_else(Default::default, |lineage| lineage.commitment());
        Ok(Plan { study: job.study, version: job.version, owner, derived_from, images: images.collect() })
    }

    async fn open(&self, job: &StudyJob, image: &PlannedImage) -> Result<ChannelPieces, SourceError> {
        let uid = self.uid(job).map_err(later)?;
        let (assembler, id) = (self.assembler.clone(), image.image);
        let link = self.archive.image(&id).map_err(later)?.and_then(|(image, _)| image.link);
        let (ipfs, archive, handle) = (self.ipfs.clone(), self.archive.clone(), Handle::current());
        Ok(ChannelPieces::spawn(image.piece_bytes as usize, move |out| {
            let mut sealed = assembler.open_sealed(&uid, &id).map_err(|error| match error {
                AssembleError::Changed(_) | AssembleError::Damaged(_) | AssembleError::Missing(_) => {
                    SourceError::Broken(error.to_string())
                }
                other => later(other),
            })?;
            let Some(link) = link else { return io::copy(&mut sealed, out).map(drop).map_err(later) };
            let ipfs =
                ipfs.ok_or_else(|| SourceError::Later("the study is kept in IPFS, and ipfs.api_url is empty".into()))?;
            // Its name goes onto the ledger when the node keeps all of it, and not before.
            let put = handle.block_on(ipfs.put(sealed, link.sealed_bytes, link.cid));
            if archive.image(&id).map_err(later)?.is_none() {
                // The study was erased meanwhile, and what was to let it go may have come too early.
                handle.block_on(archive.begin_ipfs_removal(link.cid)).map_err(later)?;
                return Err(SourceError::Later("the study is gone".into()));
            }
            if matches!(put, Err(IpfsError::Differs(_))) {
                // What was spooled may be something else; it is sealed again.
                assembler.forget_sealed(&[id]);
            }
            put.map_err(later)?;
            out.write_all(&link.piece()).map_err(later)
        }))
    }
}

fn kind(kind: study::ImageKind) -> ImageKind {
    match kind {
        study::ImageKind::Object => ImageKind::Object,
        study::ImageKind::Preview => ImageKind::Preview,
        study::ImageKind::Manifest => ImageKind::Manifest,
        // Like previews it is there before the study is announced.
        study::ImageKind::SeriesManifest => ImageKind::Preview,
    }
}

fn outbox(error: ArchiveError) -> OutboxError {
    OutboxError(Box::new(error))
}

fn later(error: impl std::error::Error + 'static) -> SourceError {
    SourceError::Later(crate::chain_of(&error))
}
