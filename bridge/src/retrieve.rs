//! Finds and opens objects for every door: from the archive when they are here, else from the ledger, from IPFS, or from the site that keeps them.
//!
//! Nothing is released before it was compared with the digest that was recorded when the object was received, wherever it
//! comes from; what came from the ledger was merged, proven against its Merkle root and decrypted before. A local file that
//! is gone or damaged is replaced by the copy there. Must not know wire protocols.

mod from_ipfs;
mod local;
mod ready;
mod source;
#[cfg(test)]
mod source_tests;

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alloy::primitives::{Address, Bytes as Piece};
use bytes::Bytes;
use dicom_scp::Uid;
use futures::StreamExt;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, ForeignMode, ForeignStudy, Image, Stored};
use crate::ipfs::{Ipfs, IpfsError};
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::{LedgerError, LedgerSlot};
use crate::payload::container::{UnsealError, Unsealed, unseal};
use crate::payload::keys::SessionKey;
use crate::payload::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::payload::pieces::{Joiner, PieceError};
use crate::study::ImageKind;
pub use local::CheckedFile;
use local::{Found, Local};
use ready::Ready;
use source::Couriers;
pub use source::{Delivery, Errand, Manner, Source, SourceError};

/// Pieces that may wait for decryption, besides those on their way.
const PIECES_AHEAD: usize = 1;
/// Objects fetched from the ledger at once.
const FETCHES_MAX: usize = 3;
/// Longest preview that is taken, in bytes; one fits into a piece.
pub const PREVIEW_BYTES_MAX: u64 = 4 << 20;
/// Looks at a local file, healing in between, before an object counts as damaged.
const LOOKS_MAX: usize = 3;

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
    /// The manifest cannot be read.
    #[error("the manifest on the ledger")]
    Manifest(#[from] ManifestError),
    /// Another site keeps it and did not hand it out.
    #[error("the object")]
    Source(#[from] SourceError),
    /// Its owner lets this site see that it exists, but not the object.
    #[error("object {0} is not granted")]
    NotGranted(String),
    /// It is in IPFS, and the node did not bring it.
    #[error("the object is in IPFS")]
    Ipfs(#[from] IpfsError),
    /// It is in IPFS, and this site has no node.
    #[error("the object is in IPFS, and ipfs.api_url is empty")]
    NoIpfs,
    /// The caller no longer wants it.
    #[error("given up")]
    GivenUp,
}

/// An object ready to be read: its data set, or its whole file.
#[derive(Debug)]
pub struct Opened {
    /// What was asked for.
    pub content: Content,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What of an object is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    DataSet,
    File,
}

impl Part {
    /// Bytes of the file before it.
    fn begin(self, stored: &Stored) -> u64 {
        match self {
            Self::DataSet => stored.meta_bytes,
            Self::File => 0,
        }
    }
}

/// The bytes of an object that was proven to be what was received.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Whole(Bytes),
    /// In its file.
    File(CheckedFile),
}

impl Content {
    /// CRC-32 of an object's whole file, of which this is all.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        match self {
            Self::Whole(bytes) => crc32fast::hash(bytes),
            Self::File(file) => file.crc32(),
        }
    }
}

/// Opens objects. Cheap to clone.
#[derive(Clone)]
pub struct Retrieve(Arc<Inner>);

struct Inner {
    archive: Archive,
    keyring: Keyring,
    ledger: LedgerSlot,
    local: Local,
    ready: Arc<Ready>,
    couriers: Couriers,
    ipfs: OnceLock<Ipfs>,
    fetches: Semaphore,
    /// One fetch per object at a time; whoever comes second waits and finds the file.
    fetching: Mutex<HashMap<i64, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image on the ledger, whose it is, and what opens it.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The image.
    pub image: Image,
    /// What opens it.
    pub key: SessionKey,
    /// The source that stored it; this site's own when none is named.
    pub source: Option<Address>,
}

/// Which pieces are worth reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Where they were last seen; the root tells in the end whether they are the right ones.
    Places,
    /// Each is compared with its hash on the ledger, and looked for anew if it is not where it was.
    Nothing,
}

impl Retrieve {
    /// Joins the parts; until the slot holds a ledger only local files can be opened.
    #[must_use]
    pub fn new(archive: Archive, keyring: Keyring, ledger: LedgerSlot) -> Self {
        let (fetches, fetching) = (Semaphore::new(FETCHES_MAX), Mutex::default());
        let (local, ready) = (Local::new(), Arc::new(Ready::new(archive.clone())));
        let (couriers, ipfs) = (Couriers::new(), OnceLock::new());
        Self(Arc::new(Inner { archive, keyring, ledger, local, ready, couriers, ipfs, fetches, fetching }))
    }

    /// Opens the data set of an object, fetching it first if it is not here or not what it was.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn open(&self, stored: &Stored) -> Result<Opened, RetrieveError> {
        self.open_part(stored, Part::DataSet).await
    }

    /// As [`Retrieve::open`], the whole Part 10 file with the bytes that were kept.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn open_file(&self, stored: &Stored) -> Result<Opened, RetrieveError> {
        self.open_part(stored, Part::File).await
    }

    async fn open_part(&self, stored: &Stored, part: Part) -> Result<Opened, RetrieveError> {
        if stored.origin != 0 {
            if let Some(capture) = self.capture(stored, part).await? {
                return Ok(capture);
            }
            self.granted(stored)?;
        }
        let mut wanted = self.0.ready.get(stored.id).unwrap_or_else(|| stored.clone());
        for _ in 0..LOOKS_MAX {
            let found = self.0.local.open(&self.0.archive, &wanted, part).await;
            match found.map_err(|e| RetrieveError::Io("reading an object", e))? {
                Found::Sound(opened) => return Ok(opened),
                Found::Damaged => {
                    tracing::error!(uid = %stored.sop_instance, "the file of an object has other bytes than were received");
                }
                Found::Gone => {}
            }
            wanted = self.fetch(stored, wanted.path.as_deref()).await?;
            if stored.origin != 0 {
                // Fetching takes its time, and what let this site have it may have ended.
                self.granted(stored)?;
            }
        }
        Err(ArchiveError::Corrupt(stored.sop_instance.to_string()).into())
    }

    /// An object that is made from a preview, as long as the preview may be seen.
    async fn capture(&self, stored: &Stored, part: Part) -> Result<Option<Opened>, RetrieveError> {
        let (archive, wanted) = (self.0.archive.clone(), stored.clone());
        let made = tokio::task::spawn_blocking(move || match archive.foreign_of(&wanted)? {
            Some(_) => archive.capture(&wanted),
            None => Ok(None),
        });
        let Some(file) = made.await.map_err(|_| RetrieveError::GivenUp)?? else { return Ok(None) };
        let wanted = Bytes::from(file).slice(usize::try_from(part.begin(stored)).unwrap_or(usize::MAX)..);
        Ok(Some(Opened { bytes: wanted.len() as u64, content: Content::Whole(wanted) }))
    }

    /// Makes what was fetched lately durable, so that no object has a file that the index does not know.
    pub async fn settle(&self) {
        self.0.ready.file_all().await;
    }

    /// Fetches what is not here, in the order given, until `stop`. Failures are left to [`Retrieve::open`] to report.
    pub async fn fetch_ahead(&self, wanted: Vec<Stored>, stop: CancellationToken) {
        let missing: Vec<_> = wanted.into_iter().filter(|stored| stored.path.is_none()).collect();
        let kept = self.kept_elsewhere(&missing).unwrap_or_else(|error| {
            tracing::debug!(error = %crate::chain_of(&error), "fetching ahead");
            Vec::new()
        });
        let elsewhere: HashSet<i64> = kept.iter().map(|stored| stored.id).collect();
        // All at once, so that they are asked for together; nobody is asked any more when these are dropped.
        let awaited = kept.iter().filter_map(|stored| Some(self.want(&self.granted(stored).ok()?, stored)));
        let awaited = futures::future::join_all(awaited.collect::<Vec<_>>());
        let on_ledger = missing.into_iter().filter(|stored| !elsewhere.contains(&stored.id)).collect();
        tokio::select! {
            () = stop.cancelled() => {}
            _ = futures::future::join(awaited, self.fetch_from_ledger(on_ledger)) => {}
        }
    }

    async fn fetch_from_ledger(&self, missing: Vec<Stored>) {
        let mut fetches = futures::stream::iter(missing)
            .map(|stored| {
                let this = self.clone();
                async move { this.fetch(&stored, None).await }
            })
            .buffered(FETCHES_MAX);
        while let Some(fetched) = fetches.next().await {
            if let Err(error) = fetched {
                tracing::debug!(error = %crate::chain_of(&error), "fetching ahead");
            }
        }
    }

    /// Fetches an object unless it is here under another path than `unsound`, the one that cannot be used.
    async fn fetch(&self, stored: &Stored, unsound: Option<&Path>) -> Result<Stored, RetrieveError> {
        let lock = self.lock_of(stored.id);
        let guard = lock.lock().await;
        let result = self.fetch_alone(stored, unsound).await;
        drop(guard);
        self.unlock(stored.id);
        result
    }

    async fn fetch_alone(&self, stored: &Stored, unsound: Option<&Path>) -> Result<Stored, RetrieveError> {
        if let Some(ready) = self.0.ready.get(stored.id).filter(|ready| ready.path.as_deref() != unsound) {
            return Ok(ready);
        }
        let current = self.0.archive.current(stored)?;
        let current = current.ok_or_else(|| RetrieveError::Nowhere(stored.sop_instance.to_string()))?;
        match &current.path {
            None => self.restore(&current).await,
            Some(path) if Some(path.as_path()) != unsound => Ok(current),
            Some(_) => self.heal(&current).await,
        }
    }

    /// The file that the index names is gone or damaged; the ledger or the source has the object, or nobody has.
    async fn heal(&self, stored: &Stored) -> Result<Stored, RetrieveError> {
        tracing::warn!(uid = %stored.sop_instance, "the file of an object cannot be used; fetching it again");
        match self.restore(stored).await {
            Err(RetrieveError::Nowhere(uid)) => Err(ArchiveError::Corrupt(uid).into()),
            other => other,
        }
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
        if stored.origin > 0 && self.0.archive.is_at_source(stored.id)? {
            return self.bring(&self.granted(stored)?, stored).await;
        }
        let room = self.0.ready.room().await.ok_or(RetrieveError::GivenUp)?;
        let _permit = self.0.fetches.acquire().await.map_err(|_| RetrieveError::GivenUp)?;
        let sealed = self.image_of(stored)?;
        if sealed.image.kind != ImageKind::Object {
            // It is made from a preview whenever it is opened, and never has a file.
            return Err(RetrieveError::Nowhere(stored.sop_instance.to_string()));
        }
        let restorer = self.0.ready.restorer().await?;
        let begin = || Ok(restorer.begin(stored)?);
        let (restoring, unsealed) = self.unsealed(&sealed, stored.file_bytes, begin).await?;
        let restored = restoring.finish(&unsealed)?;
        // Only now that there is another: the old file may be all that there is.
        self.0.archive.forget_file(stored).await?;
        self.0.local.learn(stored.id, restored.crc32());
        let fetched = restored.stored().clone();
        self.0.ready.add(restored, room);
        Ok(fetched)
    }

    /// The image that carries an object, whose it is, and what opens it.
    fn image_of(&self, stored: &Stored) -> Result<Sealed, RetrieveError> {
        let nowhere = || RetrieveError::Nowhere(stored.sop_instance.to_string());
        let image = self.0.archive.image_of_instance(stored.id)?.ok_or_else(nowhere)?;
        if stored.origin == 0 {
            let keys = self.0.keyring.study(&stored.study_uid)?.ok_or_else(nowhere)?;
            let key = keys.opening(image.kind, image.series.as_ref(), image.epoch).ok_or_else(nowhere)?;
            return Ok(Sealed { key, image, source: None });
        }
        let of_preview = image.kind == ImageKind::Preview;
        let granted =
            if of_preview { self.0.archive.foreign_of(stored)?.ok_or_else(nowhere)? } else { self.granted(stored)? };
        let not_granted = || RetrieveError::NotGranted(stored.sop_instance.to_string());
        let keys = self.0.keyring.foreign(granted.study_id)?.ok_or_else(not_granted)?;
        let key = keys.opening(image.kind, image.series.as_ref(), image.epoch).ok_or_else(not_granted)?;
        Ok(Sealed { image, key, source: Some(granted.source) })
    }

    /// What lets this site open another site's object now. A grant may have ended since the object was selected.
    fn granted(&self, stored: &Stored) -> Result<ForeignStudy, RetrieveError> {
        match self.0.archive.foreign_of(stored)? {
            Some(granted) if granted.window.mode == ForeignMode::Everything => Ok(granted),
            Some(_) => Err(RetrieveError::NotGranted(stored.sop_instance.to_string())),
            None => Err(RetrieveError::Nowhere(stored.sop_instance.to_string())),
        }
    }

    /// The plain bytes of an image that is no object, such as a manifest, from the ledger.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn plain(&self, sealed: &Sealed, bytes_max: u64) -> Result<Vec<u8>, RetrieveError> {
        let (plain, _) = self.unsealed(sealed, bytes_max, || Ok(Vec::new())).await?;
        Ok(plain)
    }

    /// The newest manifest of a study of this site, read from the ledger.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn manifest_on_ledger(&self, study: &Uid) -> Result<Manifest, RetrieveError> {
        let nowhere = || RetrieveError::Nowhere(study.to_string());
        let published = self.0.archive.publication(study)?.ok_or_else(nowhere)?;
        let (image, _) = self.0.archive.image(&published.manifest_image)?.ok_or_else(nowhere)?;
        let keys = self.0.keyring.study(study)?.ok_or_else(nowhere)?;
        let key = keys.opening(image.kind, image.series.as_ref(), image.epoch).ok_or_else(nowhere)?;
        let plain = self.plain(&Sealed { image, key, source: None }, MANIFEST_BYTES_MAX as u64).await?;
        Ok(Manifest::decode(&plain)?)
    }

    /// SHA-256 and length of an object as the ledger holds it, whether or not a file is here.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub async fn digest_on_ledger(&self, stored: &Stored) -> Result<([u8; 32], u64), RetrieveError> {
        let sealed = self.image_of(stored)?;
        if stored.origin != 0 && sealed.image.kind == ImageKind::Preview {
            let picture = self.plain(&sealed, PREVIEW_BYTES_MAX).await?;
            let nowhere = || RetrieveError::Nowhere(stored.sop_instance.to_string());
            let made = self.0.archive.capture_of(stored, &picture)?.ok_or_else(nowhere)?;
            return Ok((Sha256::digest(&made).into(), made.len() as u64));
        }
        if let Some(link) = &sealed.image.link {
            self.check_link(&sealed, link).await?;
        }
        let sink = || Ok(io::sink());
        let (_, unsealed) = self.unsealed(&sealed, stored.file_bytes, sink).await?;
        Ok((unsealed.plain_sha256, unsealed.plain_bytes))
    }

    /// Writes the plain bytes of an image into what `begin` makes.
    async fn unsealed<W: Write + Send + 'static>(
        &self,
        sealed: &Sealed,
        bytes_max: u64,
        begin: impl Fn() -> Result<W, RetrieveError>,
    ) -> Result<(W, Unsealed), RetrieveError> {
        if let Some(link) = &sealed.image.link {
            return self.unsealed_from_ipfs(sealed, link, bytes_max, begin()?).await;
        }
        match self.try_unsealed(sealed, bytes_max, begin()?, Trust::Places).await {
            Err(error) if is_of_wrong_pieces(&error) => {
                tracing::warn!(error = %crate::chain_of(&error), "pieces are not where they were; looking for them anew");
                self.try_unsealed(sealed, bytes_max, begin()?, Trust::Nothing).await
            }
            other => other,
        }
    }

    /// Pieces are decrypted as they come; what was written counts once all of them are proven to be the image.
    async fn try_unsealed<W: Write + Send + 'static>(
        &self,
        sealed: &Sealed,
        bytes_max: u64,
        mut out: W,
        trust: Trust,
    ) -> Result<(W, Unsealed), RetrieveError> {
        let mut pieces = self.pieces_of(sealed, trust).await?;
        let (taken, mut arriving) = mpsc::channel::<Result<Piece, LedgerError>>(PIECES_AHEAD);
        let feed = async move {
            while let Some(piece) = pieces.next().await {
                if taken.send(piece).await.is_err() {
                    return;
                }
            }
        };
        let (id, map, key) = (sealed.image.id, sealed.image.map, sealed.key.clone());
        let work = tokio::task::spawn_blocking(move || {
            let mut failure = None;
            let mut joiner = Joiner::new(map, || match arriving.blocking_recv().transpose() {
                Ok(piece) => Ok(piece),
                Err(error) => {
                    failure = Some(error);
                    Err(io::Error::other("a piece could not be loaded"))
                }
            })?;
            let unsealed = unseal(&mut joiner, &key, &id, bytes_max, &mut out).map_err(RetrieveError::from);
            let proven = unsealed.and_then(|unsealed| Ok(joiner.finish().map(|()| unsealed)?));
            match failure {
                Some(error) => Err(error.into()),
                None => proven.map(|unsealed| (out, unsealed)),
            }
        });
        let ((), worked) = futures::join!(feed, work);
        worked.map_err(|_| RetrieveError::GivenUp)?
    }

    /// The pieces of an image in order, as they arrive.
    async fn pieces_of(
        &self,
        sealed: &Sealed,
        trust: Trust,
    ) -> Result<BoxStream<'static, Result<Piece, LedgerError>>, RetrieveError> {
        let Sealed { image, source, .. } = sealed;
        let ledger = self.0.ledger.get().ok_or(RetrieveError::NoLedger)?;
        let mut located = self.0.archive.locations(&image.id)?;
        let source = match source {
            Some(source) => *source,
            None => ledger.source().await?,
        };
        if located.len() != image.map.pieces as usize {
            located = ledger.find_pieces_of(source, image.mode, image.id).await?;
        }
        let only_bytes = |piece: Result<(_, Piece), LedgerError>| piece.map(|(_, bytes)| bytes);
        Ok(match trust {
            Trust::Places => ledger.load_pieces_unproven(source, image.mode, located).map(only_bytes).boxed(),
            Trust::Nothing => ledger.load_pieces(source, image.mode, located).map(only_bytes).boxed(),
        })
    }
}

/// Whether other pieces might help, as opposed to a ledger that does not answer or a disk that is full.
fn is_of_wrong_pieces(error: &RetrieveError) -> bool {
    match error {
        RetrieveError::Pieces(_) | RetrieveError::Ledger(LedgerError::Differs(_)) => true,
        RetrieveError::Unseal(error) => !matches!(error, UnsealError::Write(_)),
        _ => false,
    }
}
