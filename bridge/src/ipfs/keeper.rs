//! Makes the IPFS node keep what it should, and let go what it should not: what other sites' owners allowed is pinned here too, so that
//! it does not hang on one node; what the node lost is put there again; what was withdrawn or erased goes.
//!
//! Everything may be repeated, and a node that is away is waited for. Must not know grants, nor how objects are sealed.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Ipfs, IpfsError};
use crate::archive::{Archive, ArchiveError, InIpfs, Kept};
use crate::assemble::{AssembleError, Assembler};
use crate::payload::manifest::Link;

/// Between two looks at what is to be done.
const LOOK: Duration = Duration::from_secs(2);
/// First and longest wait before something that failed is tried again.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// Objects pinned at once.
const AT_ONCE: usize = 4;
/// Failures remembered; then all are forgotten and tried again.
const REMEMBERED_MAX: usize = 1 << 16;

/// What the node is to keep.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// Also what other sites have put into IPFS and this one may see.
    pub granted: bool,
    /// How often it is asked whether it still has what it had.
    pub check: Duration,
}

/// Looks after the node.
pub struct Keeper {
    ipfs: Ipfs,
    archive: Archive,
    assembler: Assembler,
    wants: Wants,
    /// Images that failed: how often, and when they are tried again.
    failed: Mutex<HashMap<B256, (u32, Instant)>>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("IPFS")]
    Ipfs(#[from] IpfsError),
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    #[error("sealing it again")]
    Assemble(#[from] AssembleError),
    #[error("a task of this program ended")]
    Ended,
}

/// Whether whatever else is asked of the node would fare no better.
fn is_away(error: &IpfsError) -> bool {
    matches!(error, IpfsError::Away(_) | IpfsError::Forbidden)
}

/// Says once that something waits, and once that nothing does any more.
fn note(waits: &mut bool, worked: &Result<(), Trouble>) {
    match worked {
        Ok(()) => {
            if std::mem::take(waits) {
                tracing::info!("the IPFS node does what it should again");
            }
        }
        Err(error) => {
            if !std::mem::replace(waits, true) {
                tracing::error!(error = %crate::chain_of(error), "what belongs into IPFS, or out of it, waits");
            }
        }
    }
}

impl Keeper {
    /// Looks after a node.
    #[must_use]
    pub fn new(ipfs: Ipfs, archive: Archive, assembler: Assembler, wants: Wants) -> Self {
        Self { ipfs, archive, assembler, wants, failed: Mutex::default() }
    }

    /// Until `stop`. What is to go does not wait for what is to come, which may take long.
    pub async fn run(self, stop: CancellationToken) {
        let worked = futures::future::join(self.keep_letting_go(), self.keep_keeping());
        tokio::select! {
            () = stop.cancelled() => {}
            _ = worked => {}
        }
    }

    async fn keep_letting_go(&self) {
        let mut waits = false;
        loop {
            note(&mut waits, &self.let_go().await);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn keep_keeping(&self) {
        let mut waits = false;
        let mut compared: Option<Instant> = None;
        loop {
            let mut worked = Ok(());
            if compared.is_none_or(|at| at.elapsed() >= self.wants.check) {
                worked = self.compare().await;
                if worked.is_ok() {
                    compared = Some(Instant::now());
                }
            }
            // Whatever became of that: it asks for all that the node has, this for what is wanted of it.
            let kept = self.keep_all().await;
            note(&mut waits, &worked.and(kept));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks the node what it keeps.
    async fn compare(&self) -> Result<(), Trouble> {
        let lost = self.archive.compare_pins(self.ipfs.pins().await?).await?;
        if lost > 0 {
            tracing::warn!(objects = lost, "the IPFS node does not keep what it kept");
        }
        Ok(())
    }

    async fn let_go(&self) -> Result<(), Trouble> {
        let mut failed = None;
        for cid in self.archive.ipfs_removals()? {
            match self.ipfs.remove(cid).await {
                Ok(()) => self.archive.end_ipfs_removal(cid).await?,
                Err(error) if is_away(&error) => return Err(error.into()),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn keep_all(&self) -> Result<(), Trouble> {
        let wanted = self.archive.not_pinned(self.wants.granted)?;
        let due = wanted.into_iter().filter(|one| self.is_due(one.image));
        let kept = futures::stream::iter(due).map(|one| async move { (self.keep(&one).await, one) });
        let mut kept = std::pin::pin!(kept.buffer_unordered(AT_ONCE));
        while let Some((kept, one)) = kept.next().await {
            match kept {
                Ok(()) => drop(self.failed().remove(&one.image)),
                Err(Trouble::Ipfs(error)) if is_away(&error) => return Err(error.into()),
                Err(error) => self.put_off(&one, &error),
            }
        }
        Ok(())
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<B256, (u32, Instant)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, image: B256) -> bool {
        self.failed().get(&image).is_none_or(|(_, again)| *again <= Instant::now())
    }

    fn put_off(&self, one: &InIpfs, error: &Trouble) {
        let mut failed = self.failed();
        if failed.len() >= REMEMBERED_MAX {
            failed.clear();
        }
        let (times, again) = failed.entry(one.image).or_insert((0, Instant::now()));
        *times += 1;
        *again = Instant::now() + (RETRY_MIN * 2_u32.saturating_pow((*times).min(10))).min(RETRY_MAX);
        if *times == 1 {
            tracing::warn!(image = %one.image, cid = %one.link.cid, error = %crate::chain_of(error), "an object is not kept in IPFS here yet");
        }
    }

    async fn keep(&self, one: &InIpfs) -> Result<(), Trouble> {
        let Link { cid, sealed_bytes } = one.link;
        match &one.own {
            // It was put there before its name went onto the ledger; only what the node lost since is sealed again.
            Some(study) if one.unsound || !self.ipfs.is_pinned(cid).await? => {
                // Nobody gives up a file for what is being taken out here.
                let _alone = self.ipfs.alone().await;
                if one.unsound && !self.archive.is_unsound(one.image)? {
                    // It was read back meanwhile, and its file may be gone.
                    return Ok(());
                }
                tracing::error!(%cid, "the IPFS node lost an object; putting it there again");
                self.put_again(study, one).await?;
            }
            Some(_) => {}
            None => self.ipfs.fetch_and_pin(cid, sealed_bytes).await?,
        }
        if !self.archive.record_kept(one.image, Kept::Yes).await? {
            // It was erased or withdrawn meanwhile, and what was to let it go may have come too early.
            self.archive.begin_ipfs_removal(cid).await?;
        }
        Ok(())
    }

    async fn put_again(&self, study: &dicom_scp::Uid, one: &InIpfs) -> Result<(), Trouble> {
        let (assembler, study, image) = (self.assembler.clone(), *study, one.image);
        let sealed = tokio::task::spawn_blocking(move || assembler.open_sealed(&study, &image)).await;
        let sealed: File = match sealed.map_err(|_| Trouble::Ended)? {
            // Its file here was given up for what the node had. Perhaps that, or another site's node, still has the blocks.
            Err(AssembleError::Missing(uid)) => {
                tracing::error!(%uid, cid = %one.link.cid, "there is no file of an object that the IPFS node lost; looking in the swarm");
                return Ok(self.ipfs.fetch_and_pin(one.link.cid, one.link.sealed_bytes).await?);
            }
            sealed => sealed?,
        };
        if one.unsound {
            // It would not write blocks that it believes to have. All of the bytes are here.
            self.ipfs.remove(one.link.cid).await?;
        }
        let put = self.ipfs.put(sealed, one.link.sealed_bytes, one.link.cid).await;
        self.assembler.forget_sealed(&[one.image]);
        Ok(put?)
    }
}
