//! Finds and opens objects for every door: from the archive when they are here, else from the ledger.
//!
//! Nothing that came from the ledger is released before it was merged, decrypted and compared with the digest that was
//! recorded when the object was received. Must not know wire protocols.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, Image, Stored};
use crate::keyring::{Keyring, KeyringError, StudyKeys};
use crate::ledger::{LedgerError, LedgerSlot};
use crate::payload::container::{UnsealError, unseal};
use crate::payload::pieces::{Merger, PieceError};

/// Sealed bytes kept in memory while they are merged; larger images go through a temporary file.
const MERGE_BYTES_IN_MEMORY_MAX: usize = 4 * 1024 * 1024;
/// Objects fetched from the ledger at once.
const FETCHES_MAX: usize = 3;

/// Why an object could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The study's keys could not be had.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The ledger failed.
    #[error("the ledger")]
    Ledger(#[from] LedgerError),
    /// The pieces do not add up.
    #[error("pieces from the ledger")]
    Pieces(#[from] PieceError),
    /// The sealed bytes do not open.
    #[error("sealed bytes from the ledger")]
    Unseal(#[from] UnsealError),
    /// A file could not be read or written.
    #[error("{0}")]
    Io(&'static str, #[source] std::io::Error),
    /// Neither a file nor an image on the ledger.
    #[error("object {0} is neither here nor on the ledger")]
    Nowhere(String),
    /// No ledger is configured or reachable.
    #[error("the object is on the ledger, which is not connected")]
    NoLedger,
    /// The caller no longer wants it.
    #[error("given up")]
    GivenUp,
}

/// An object ready to be read: positioned at its data set.
#[derive(Debug)]
pub struct Opened {
    /// The file, at the first byte of the data set.
    pub file: File,
    /// Bytes from there to the end.
    pub dataset_bytes: u64,
}

/// Opens objects. Cheap to clone.
#[derive(Clone)]
pub struct Retrieve(Arc<Inner>);

struct Inner {
    archive: Archive,
    keyring: Keyring,
    ledger: LedgerSlot,
    fetches: Semaphore,
    /// One fetch per object at a time; whoever comes second waits and finds the file.
    fetching: Mutex<HashMap<i64, Arc<tokio::sync::Mutex<()>>>>,
}

impl Retrieve {
    /// Joins the parts; until the slot holds a ledger only local files can be opened.
    #[must_use]
    pub fn new(archive: Archive, keyring: Keyring, ledger: LedgerSlot) -> Self {
        let (fetches, fetching) = (Semaphore::new(FETCHES_MAX), Mutex::default());
        Self(Arc::new(Inner { archive, keyring, ledger, fetches, fetching }))
    }

    /// Opens an object, fetching it first if it is not here.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn open(&self, stored: &Stored) -> Result<Opened, RetrieveError> {
        if let Some(opened) = self.open_file(stored)? {
            return Ok(opened);
        }
        let restored = self.fetch(stored).await?;
        self.open_file(&restored)?.ok_or_else(|| RetrieveError::Nowhere(stored.sop_instance.to_string()))
    }

    /// Fetches what is not here, in the order given, until `stop`. Failures are left to [`Retrieve::open`] to report.
    pub async fn fetch_ahead(&self, wanted: Vec<Stored>, stop: CancellationToken) {
        let missing = futures::stream::iter(wanted.into_iter().filter(|stored| stored.path.is_none()));
        let mut fetches = missing
            .map(|stored| {
                let this = self.clone();
                async move { this.fetch(&stored).await }
            })
            .buffered(FETCHES_MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                next = fetches.next() => match next {
                    None => return,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::debug!(error = %crate::chain_of(&error), "fetching ahead"),
                }
            }
        }
    }

    async fn fetch(&self, stored: &Stored) -> Result<Stored, RetrieveError> {
        let lock = self.lock_of(stored.id);
        let guard = lock.lock().await;
        let current = self.0.archive.instance(&stored.sop_instance)?;
        let here = |stored: &Stored| matches!(self.0.archive.open_file(stored), Ok(Some(_)));
        let result = match current {
            Some(current) if current.path.is_some() && !here(&current) => self.heal(current).await,
            Some(current) if current.path.is_some() => Ok(current),
            Some(current) => self.restore(&current).await,
            None => Err(RetrieveError::Nowhere(stored.sop_instance.to_string())),
        };
        drop(guard);
        self.unlock(stored.id);
        result
    }

    /// Somebody removed the file behind our back; the ledger has the object.
    async fn heal(&self, mut stored: Stored) -> Result<Stored, RetrieveError> {
        tracing::warn!(uid = %stored.sop_instance, "the file of an object is gone; fetching it from the ledger");
        self.0.archive.forget_file(&stored).await?;
        stored.path = None;
        self.restore(&stored).await
    }

    fn lock_of(&self, id: i64) -> Arc<tokio::sync::Mutex<()>> {
        self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    fn unlock(&self, id: i64) {
        let mut all = self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Two: the map's and the caller's.
        if all.get(&id).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            all.remove(&id);
        }
    }

    async fn restore(&self, stored: &Stored) -> Result<Stored, RetrieveError> {
        let _permit = self.0.fetches.acquire().await.map_err(|_| RetrieveError::GivenUp)?;
        let nowhere = || RetrieveError::Nowhere(stored.sop_instance.to_string());
        let image = self.0.archive.image_of_instance(stored.id)?.ok_or_else(nowhere)?;
        let keys = self.0.keyring.study(&stored.study_uid)?.ok_or_else(nowhere)?;
        let sealed = self.merge(&image).await?;
        let mut restoring = self.0.archive.begin_restore(stored)?;
        let (id, bytes) = (image.id, stored.file_bytes);
        let restoring = tokio::task::spawn_blocking(move || {
            unseal(sealed, &keys.session_key, &id, bytes, &mut restoring).map(|_| restoring)
        })
        .await
        .map_err(|_| RetrieveError::GivenUp)??;
        Ok(restoring.finish().await?)
    }

    /// The plain bytes of an image that is no object, such as a manifest, from the ledger.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn plain(&self, image: &Image, keys: &StudyKeys, bytes_max: u64) -> Result<Vec<u8>, RetrieveError> {
        let sealed = self.merge(image).await?;
        let (id, key) = (image.id, keys.session_key.clone());
        tokio::task::spawn_blocking(move || {
            let mut plain = Vec::new();
            unseal(sealed, &key, &id, bytes_max, &mut plain).map(|_| plain)
        })
        .await
        .map_err(|_| RetrieveError::GivenUp)?
        .map_err(RetrieveError::from)
    }

    /// SHA-256 and length of an object as the ledger holds it, whether or not a file is here.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn digest_on_ledger(&self, stored: &Stored) -> Result<([u8; 32], u64), RetrieveError> {
        let nowhere = || RetrieveError::Nowhere(stored.sop_instance.to_string());
        let image = self.0.archive.image_of_instance(stored.id)?.ok_or_else(nowhere)?;
        let keys = self.0.keyring.study(&stored.study_uid)?.ok_or_else(nowhere)?;
        let sealed = self.merge(&image).await?;
        let bytes = stored.file_bytes;
        let unsealed = tokio::task::spawn_blocking(move || {
            unseal(sealed, &keys.session_key, &image.id, bytes, &mut std::io::sink())
        })
        .await
        .map_err(|_| RetrieveError::GivenUp)??;
        Ok((unsealed.plain_sha256, unsealed.plain_bytes))
    }

    /// All pieces of an image in order, proven against the root that was planned.
    async fn merge(&self, image: &Image) -> Result<tempfile::SpooledTempFile, RetrieveError> {
        let ledger = self.0.ledger.get().ok_or(RetrieveError::NoLedger)?;
        let mut located = self.0.archive.locations(&image.id)?;
        if located.len() != image.map.pieces as usize {
            located = ledger.find_pieces(image.id).await?;
        }
        let source = ledger.source().await?;
        let staging = tempfile::spooled_tempfile_in(MERGE_BYTES_IN_MEMORY_MAX, self.0.archive.root().join("spool"));
        let mut merger = Merger::new(image.map, staging)?;
        let mut pieces = std::pin::pin!(ledger.load_pieces(source, image.mode, located));
        while let Some(piece) = pieces.next().await {
            let (at, bytes) = piece?;
            merger.put(at.index, &bytes)?;
        }
        let mut staging = merger.finish()?;
        staging.seek(SeekFrom::Start(0)).map_err(|e| RetrieveError::Io("merging pieces", e))?;
        Ok(staging)
    }

    /// Opens the local file. A file that is gone although the index names it counts as not here.
    fn open_file(&self, stored: &Stored) -> Result<Option<Opened>, RetrieveError> {
        let read = |e| RetrieveError::Io("reading an object", e);
        let Some(mut file) = self.0.archive.open_file(stored).map_err(read)? else { return Ok(None) };
        let bytes = file.metadata().map_err(read)?.len();
        if bytes != stored.file_bytes {
            return Err(ArchiveError::Corrupt(format!("{} ({bytes} bytes)", stored.sop_instance)).into());
        }
        file.seek(SeekFrom::Start(stored.meta_bytes)).map_err(read)?;
        Ok(Some(Opened { file, dataset_bytes: bytes - stored.meta_bytes }))
    }
}
