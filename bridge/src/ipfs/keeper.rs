//! Makes the IPFS node keep what it should, and let go what it should not: what other sites' owners allowed is pinned here too, so that
//! it does not hang on one node; what the node lost is put there again; what was withdrawn or erased goes.
//!
//! Everything may be repeated, and a node that is away is waited for. Must not know grants, nor how objects are sealed.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Ipfs, IpfsError};
use crate::archive::{Archive, ArchiveError, InIpfs};
use crate::assemble::{AssembleError, Assembler};

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
    /// Whether the node was away when it was asked last.
    away: AtomicBool,
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

impl Keeper {
    /// Looks after a node.
    #[must_use]
    pub fn new(ipfs: Ipfs, archive: Archive, assembler: Assembler, wants: Wants) -> Self {
        Self { ipfs, archive, assembler, wants, failed: Mutex::default(), away: AtomicBool::new(false) }
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
        loop {
            self.note(&self.let_go().await);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn keep_keeping(&self) {
        let mut compared: Option<Instant> = None;
        loop {
            let due = compared.is_none_or(|at| at.elapsed() >= self.wants.check);
            let worked = async {
                if due {
                    self.compare().await?;
                }
                self.keep_all().await
            };
            let worked = worked.await;
            if due && worked.is_ok() {
                compared = Some(Instant::now());
            }
            self.note(&worked);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Says once that the node is away, and once that it is back.
    fn note(&self, worked: &Result<(), Trouble>) {
        match worked {
            Ok(()) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!("the IPFS node answers again");
                }
            }
            Err(error) => {
                if !self.away.swap(true, Ordering::Relaxed) {
                    tracing::error!(error = %crate::chain_of(error), "what belongs into IPFS waits");
                }
            }
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
        for cid in self.archive.ipfs_removals()? {
            self.ipfs.remove(cid).await?;
            self.archive.end_ipfs_removal(cid).await?;
        }
        Ok(())
    }

    async fn keep_all(&self) -> Result<(), Trouble> {
        let wanted = self.archive.not_pinned(self.wants.granted)?;
        let due = wanted.into_iter().filter(|one| self.is_due(one.image));
        let kept = futures::stream::iter(due).map(|one| async move { (self.keep(&one).await, one) });
        let mut kept = std::pin::pin!(kept.buffer_unordered(AT_ONCE));
        while let Some((kept, one)) = kept.next().await {
            match kept {
                Ok(()) => drop(self.failed().remove(&one.image)),
                // The others would fare no better.
                Err(Trouble::Ipfs(error @ (IpfsError::Away(_) | IpfsError::Forbidden))) => return Err(error.into()),
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
        match &one.own {
            // It was put there before its name went onto the ledger; only what the node lost since is sealed again.
            Some(study) => {
                if !self.ipfs.is_pinned(one.link.cid).await? {
                    tracing::error!(cid = %one.link.cid, "the IPFS node lost an object; putting it there again");
                    self.put_again(study, one).await?;
                }
            }
            None => self.ipfs.pin(one.link.cid).await?,
        }
        if self.archive.record_pinned(vec![one.image], true).await? == 0 {
            // It was erased or withdrawn meanwhile, and what was to let it go may have come too early.
            self.ipfs.remove(one.link.cid).await?;
        }
        Ok(())
    }

    async fn put_again(&self, study: &dicom_scp::Uid, one: &InIpfs) -> Result<(), Trouble> {
        let (assembler, study, image) = (self.assembler.clone(), *study, one.image);
        let sealed = tokio::task::spawn_blocking(move || assembler.open_sealed(&study, &image)).await;
        let sealed: File = sealed.map_err(|_| Trouble::Ended)??;
        let put = self.ipfs.put(sealed, one.link.sealed_bytes, one.link.cid).await;
        self.assembler.forget_sealed(&[one.image]);
        Ok(put?)
    }
}
