//! Makes the IPFS node keep what it should, and let go what it should not: what other sites' owners allowed is pinned here too, so that
//! it does not hang on one node; what the node lost is put there again; what was withdrawn or erased goes.
//!
//! Everything may be repeated, and a node that is away is waited for. Must not know grants, nor how objects are sealed.

use std::collections::HashMap;
use std::fs::File;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use tokio_util::sync::CancellationToken;

use super::{Ipfs, IpfsError};
use crate::archive::{Archive, ArchiveError, InIpfs};
use crate::assemble::{AssembleError, Assembler};

/// Between two looks at what is to be done.
const LOOK: Duration = Duration::from_secs(2);
/// First and longest wait before something that failed is tried again.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(600);

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
    failed: HashMap<B256, (u32, Instant)>,
    /// Whether the node was away when it was asked last.
    away: bool,
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
        Self { ipfs, archive, assembler, wants, failed: HashMap::new(), away: false }
    }

    /// Until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut checked: Option<Instant> = None;
        loop {
            let due = checked.is_none_or(|at| at.elapsed() >= self.wants.check);
            let worked = async {
                if due {
                    self.compare().await?;
                }
                self.work().await
            };
            let worked = tokio::select! {
                () = stop.cancelled() => return,
                worked = worked => worked,
            };
            match worked {
                Ok(()) => {
                    if due {
                        checked = Some(Instant::now());
                    }
                    if std::mem::take(&mut self.away) {
                        tracing::info!("the IPFS node answers again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.away, true) {
                        tracing::error!(error = %crate::chain_of(&error), "what belongs into IPFS waits");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
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

    async fn work(&mut self) -> Result<(), Trouble> {
        for cid in self.archive.ipfs_removals()? {
            self.ipfs.remove(cid).await?;
            self.archive.end_ipfs_removal(cid).await?;
        }
        let wanted = self.archive.not_pinned(self.wants.granted)?;
        self.failed.retain(|image, _| wanted.iter().any(|one| one.image == *image));
        for one in wanted {
            if self.failed.get(&one.image).is_some_and(|(_, again)| *again > Instant::now()) {
                continue;
            }
            match self.keep(&one).await {
                Ok(()) => {
                    self.failed.remove(&one.image);
                }
                // The others would fare no better.
                Err(Trouble::Ipfs(error @ (IpfsError::Away(_) | IpfsError::Forbidden))) => return Err(error.into()),
                Err(error) => self.put_off(&one, &error),
            }
        }
        Ok(())
    }

    fn put_off(&mut self, one: &InIpfs, error: &Trouble) {
        let (times, again) = self.failed.entry(one.image).or_insert((0, Instant::now()));
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
        Ok(self.archive.record_pinned(vec![one.image], true).await?)
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
