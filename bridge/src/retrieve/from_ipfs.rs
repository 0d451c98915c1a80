//! Objects whose sealed bytes are in IPFS: decrypted as they come, and counted only when they have the name that the manifest gives them.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Retrieve, RetrieveError, Sealed, Trust};
use crate::ipfs::{Ipfs, IpfsError, Named, Reach};
use crate::payload::cid::CID_BYTES;
use crate::payload::container::{UnsealError, Unsealed, unseal};
use crate::payload::manifest::Link;

/// Runs of bytes that may wait for decryption.
const RUNS_AHEAD: usize = 4;

impl Retrieve {
    /// From now on, objects that are in IPFS are asked for at this node.
    pub fn use_ipfs(&self, ipfs: Ipfs) {
        // A second node would be the same.
        let _ = self.0.ipfs.set(ipfs);
    }

    /// What the ledger itself says of an object in IPFS must be what the manifest says.
    pub(super) async fn check_link(&self, sealed: &Sealed, link: &Link) -> Result<(), RetrieveError> {
        let mut pieces = self.pieces_of(sealed, Trust::Nothing).await?;
        let mut found = Vec::new();
        while let Some(piece) = pieces.next().await {
            found.extend_from_slice(&piece?);
            if found.len() > CID_BYTES {
                break;
            }
        }
        if found == link.piece() { Ok(()) } else { Err(IpfsError::Differs(link.cid).into()) }
    }

    pub(super) async fn unsealed_from_ipfs<W: Write + Send + 'static>(
        &self,
        sealed: &Sealed,
        link: &Link,
        bytes_max: u64,
        mut out: W,
    ) -> Result<(W, Unsealed), RetrieveError> {
        let ipfs = self.0.ipfs.get().ok_or(RetrieveError::NoIpfs)?;
        let mut stream = ipfs.get(link.cid, Reach::Swarm).await?;
        let (taken, arriving) = mpsc::channel(RUNS_AHEAD);
        let feed = async move {
            while let Some(run) = stream.next().await {
                let fails = run.is_err();
                if taken.send(run).await.is_err() || fails {
                    return;
                }
            }
        };
        let (id, key, link) = (sealed.image.id, sealed.key.clone(), *link);
        let work = tokio::task::spawn_blocking(move || {
            let mut arriving = Arriving { runs: arriving, run: Bytes::new(), failure: None };
            let mut named = Named::new(&mut arriving, link.sealed_bytes);
            let unsealed = unseal(&mut named, &key, &id, bytes_max, &mut out);
            // What does not open is not read to its end, which may be far.
            let found = unsealed.is_ok().then(|| named.finish());
            // What the node says of itself explains more than what came of it.
            if let Some(failure) = arriving.failure {
                return Err(failure.into());
            }
            match (unsealed, found) {
                (Ok(unsealed), Some(Ok(found))) if found == (link.sealed_bytes, link.cid) => Ok((out, unsealed)),
                (Err(error @ UnsealError::Write(_)), _) => Err(error.into()),
                _ => Err(IpfsError::Differs(link.cid).into()),
            }
        });
        let ((), worked) = futures::join!(feed, work);
        worked.map_err(|_| RetrieveError::GivenUp)?
    }
}

/// Bytes that arrive, to be read on a thread that may wait.
struct Arriving {
    runs: mpsc::Receiver<Result<Bytes, IpfsError>>,
    run: Bytes,
    failure: Option<IpfsError>,
}

impl Read for Arriving {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.run.is_empty() {
            match self.runs.blocking_recv() {
                None => return Ok(0),
                Some(Ok(run)) => self.run = run,
                Some(Err(error)) => {
                    let broken = io::Error::other(error.to_string());
                    self.failure = Some(error);
                    return Err(broken);
                }
            }
        }
        let count = out.len().min(self.run.len());
        out[..count].copy_from_slice(&self.run.split_to(count));
        Ok(count)
    }
}
