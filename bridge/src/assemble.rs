//! Makes a version of a study ready for the ledger: seals what is new, writes the manifest, plans the images.
//!
//! Sealing is deterministic, so sealed bytes are only a cache: they lie in `spool/` while they are being published and are
//! made again when they are gone. Objects whose bytes stay here are listed, not sealed. Must not know how anything is sent.

mod picture;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::{Address, B256};
use dicom_scp::dataset::{Encoding, ReadOptions, Scanned, Scanner, Tag};
use dicom_scp::{TransferSyntax, Uid};
use sha2::{Digest, Sha256};

use crate::archive::{Archive, ArchiveError, Image, PlannedImage, PlannedVersion, Stored, now_ms};
use crate::config::{self, Custody};
use crate::deidentify::{FileError, file_is_deidentified};
use crate::keyring::{Keyring, KeyringError, StudyKeys};
use crate::payload::cid::CidBuilder;
use crate::payload::container::{SealError, SealOptions, plain_bytes_fitting, seal};
use crate::payload::describe::describe;
use crate::payload::keys::SessionKey;
use crate::payload::manifest::{
    HEADER_BYTES_MAX, Link, Manifest, ManifestError, ManifestObject, ManifestPreview, PreviewKind,
};
use crate::payload::pieces::{PieceError, PieceMap, Splitter};
use crate::study::{ImageKind, image_id, study_id, study_id_plain};

/// Longest value kept in a manifest's headers, in bytes.
const HEADER_VALUE_BYTES_MAX: usize = 16 * 1024;
/// Pixel data and what belongs to it begins here.
const PIXELS: Tag = Tag(0x7FE0, 0x0000);
/// How often a version is sealed anew in one go because somebody was shut out meanwhile.
const ROUNDS_MAX: u32 = 3;
/// Bytes read at once.
const RUN_BYTES: usize = 256 * 1024;

/// Why a version could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The study's keys could not be had.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// A file could not be read or a spool file not be written.
    #[error("{0}")]
    Io(String, #[source] io::Error),
    /// Sealing failed.
    #[error("sealing")]
    Seal(#[from] SealError),
    /// Splitting failed.
    #[error("splitting into pieces")]
    Pieces(#[from] PieceError),
    /// The manifest of the version before cannot be read.
    #[error("the previous manifest")]
    Manifest(#[from] ManifestError),
    /// Something that is to be open to everybody may be somebody's.
    #[error("object {0} must not be published without encryption")]
    Identified(Uid, #[source] FileError),
    /// A stored file is not what was received.
    #[error("object {0} is damaged in the archive")]
    Damaged(Uid),
    /// An object has neither a file nor an image on the ledger.
    #[error("object {0} has no file here")]
    Missing(Uid),
    /// Whoever takes access away again and again must not keep this site sealing. To be tried again.
    #[error("access was taken away each time that the version was nearly made")]
    Overtaken,
    /// The study is not here any more, or its keys are not.
    #[error("the study is gone")]
    Gone,
    /// Sealing again gave other bytes than were planned; the program was changed in between.
    #[error("image {0} cannot be sealed as it was planned")]
    Changed(B256),
}

/// Whether what is sealed is confidential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Under a key that nobody has to whom it was not given.
    On,
    /// Under a key that whoever reads the ledger can make ([`SessionKey::public`]): for objects that are proven to be de-identified.
    Off,
}

/// Makes versions. Cheap to clone.
#[derive(Clone)]
pub struct Assembler(Arc<Inner>);

struct Inner {
    archive: Archive,
    keyring: Keyring,
    settings: config::Publish,
    spool: PathBuf,
    /// Held while a version is made.
    making: tokio::sync::Mutex<()>,
}

impl Assembler {
    /// An assembler that spools below the archive's directory. It begins with an empty spool: spooled bytes are never synced, so
    /// what another run left there may have the right length and be other bytes after a power cut.
    ///
    /// # Errors
    /// [`AssembleError::Io`] when the spool cannot be made or emptied.
    pub fn new(archive: Archive, keyring: Keyring, settings: config::Publish) -> Result<Self, AssembleError> {
        let spool = archive.root().join("spool");
        empty(&spool).map_err(|e| AssembleError::Io("emptying the spool".into(), e))?;
        let making = tokio::sync::Mutex::default();
        Ok(Self(Arc::new(Inner { archive, keyring, settings, spool, making })))
    }

    /// The study's name on the ledger.
    #[must_use]
    pub fn study_id(&self, study_uid: &Uid, keys: &StudyKeys) -> B256 {
        if self.0.settings.plain_study_hash {
            study_id_plain(study_uid.as_str())
        } else {
            study_id(&keys.salt, study_uid.as_str())
        }
    }

    /// Plans and records the next version of a study. `withdrawn` says what was taken away from whom, as
    /// [`Keyring::study_after`] takes it: whoever lost access must not have the key of what is sealed afterwards.
    ///
    /// # Errors
    /// [`AssembleError`], or what `withdrawn` returns; nothing is recorded then.
    pub async fn begin_version<E: From<AssembleError>>(
        &self,
        study_uid: &Uid,
        encryption: Encryption,
        withdrawn: impl Fn() -> Result<Vec<(Address, u32)>, E>,
    ) -> Result<(), E> {
        let _alone = self.pause().await;
        let mut rounds = 0;
        let planned = loop {
            let (this, uid, before) = (self.clone(), *study_uid, withdrawn()?);
            let reasons = before.clone();
            let planned = tokio::task::spawn_blocking(move || this.plan(&uid, encryption, &reasons))
                .await
                .map_err(|e| AssembleError::Io("assembling a study".into(), io::Error::other(e)))??;
            if withdrawn()? == before {
                break planned;
            }
            // Sealing takes its time, and somebody was shut out meanwhile.
            let stale: Vec<B256> = planned.images.iter().map(|image| image.id).collect();
            self.forget_sealed(&stale);
            rounds += 1;
            if rounds == ROUNDS_MAX {
                return Err(AssembleError::Overtaken.into());
            }
        };
        let recorded = self.0.archive.begin_version(study_uid, planned, self.0.settings.piece_mode).await;
        Ok(recorded.map_err(AssembleError::from)?)
    }

    /// While this is held no version is made.
    pub async fn pause(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.making.lock().await
    }

    fn plan(
        &self,
        study_uid: &Uid,
        encryption: Encryption,
        withdrawn: &[(Address, u32)],
    ) -> Result<PlannedVersion, AssembleError> {
        let inner = &self.0;
        let instances = inner.archive.received_instances_of(study_uid)?;
        if instances.is_empty() {
            return Err(AssembleError::Gone);
        }
        if encryption == Encryption::Off {
            in_parallel(&instances, |stored| self.check_deidentified(stored))?;
        }
        let keys = self.keys(study_uid, encryption, withdrawn)?;
        let previous = match inner.archive.manifest(study_uid)? {
            Some(bytes) => Some(Manifest::decode(&bytes)?),
            None => None,
        };
        let version = previous.as_ref().map_or(0, |manifest| manifest.version) + 1;
        let custody = self.custody(study_uid, encryption)?;
        let Objects { objects, new, images: object_images } =
            self.objects(&keys, previous.as_ref(), &instances, &custody)?;
        let old_previews = previous.as_ref().map(|manifest| manifest.previews.clone()).unwrap_or_default();
        let (previews, mut images) = self.previews(&keys, &instances, &new, old_previews)?;
        let created_ms = u64::try_from(now_ms()).unwrap_or(0);
        // By the manifest, because what an earlier version says of an object stays.
        let stays_here = instances.iter().zip(&objects).filter(|(_, object)| object.map.is_none());
        let at_source = stays_here.map(|(stored, _)| stored.id).collect();
        let manifest = Manifest { study_uid: *study_uid, version, created_ms, objects, previews, series: None };
        images.extend(self.series_manifests(&keys, previous.as_ref(), &manifest)?);
        let manifest = manifest.encode();
        let named = Named { kind: ImageKind::Manifest, subject: study_uid, series: None, version, media_type: "" };
        let image = self.plain_image(&keys, &named, manifest.clone())?;
        let manifest_image = image.id;
        // First viewable first: previews, then the manifests that name them, then the objects.
        images.push(image);
        images.extend(object_images);
        Ok(PlannedVersion {
            study_id: self.study_id(study_uid, &keys),
            version,
            manifest,
            manifest_image,
            images,
            at_source,
        })
    }

    /// The study's keys, the newest of which is as confidential as it is to be.
    fn keys(
        &self,
        study_uid: &Uid,
        encryption: Encryption,
        withdrawn: &[(Address, u32)],
    ) -> Result<StudyKeys, AssembleError> {
        let keyring = &self.0.keyring;
        let keys = keyring.study_after(study_uid, withdrawn)?;
        let public = SessionKey::public(&self.study_id(study_uid, &keys));
        match (encryption, *keys.newest() == public) {
            (Encryption::On, false) | (Encryption::Off, true) => Ok(keys),
            (Encryption::On, true) => Ok(keyring.begin_epoch(study_uid, &SessionKey::random())?),
            (Encryption::Off, false) => Ok(keyring.begin_epoch(study_uid, &public)?),
        }
    }

    fn check_deidentified(&self, stored: &Stored) -> Result<(), AssembleError> {
        let read = |e| AssembleError::Io(format!("reading object {}", stored.sop_instance), e);
        let opened = self.0.archive.open_file(stored).map_err(read)?;
        let mut file = opened.ok_or(AssembleError::Missing(stored.sop_instance))?;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(read)?;
        // What is checked is what will be sealed.
        if <[u8; 32]>::from(Sha256::digest(&bytes)) != stored.file_sha256 {
            return Err(AssembleError::Damaged(stored.sop_instance));
        }
        file_is_deidentified(&bytes).map_err(|why| AssembleError::Identified(stored.sop_instance, why))
    }

    /// Manifests of the series that have changed, each for those who may see that series alone.
    fn series_manifests(
        &self,
        keys: &StudyKeys,
        previous: Option<&Manifest>,
        manifest: &Manifest,
    ) -> Result<Vec<PlannedImage>, AssembleError> {
        let mut images = Vec::new();
        let mut done = HashSet::new();
        for series in manifest.objects.iter().filter(|object| object.by_series).map(|object| &object.series_uid) {
            if !done.insert(series) {
                continue;
            }
            let part = manifest.of_series(series);
            let before = previous.map(|previous| previous.of_series(series));
            if before.is_some_and(|before| before.objects == part.objects && before.previews == part.previews) {
                continue;
            }
            let (kind, version) = (ImageKind::SeriesManifest, manifest.version);
            let named = Named { kind, subject: series, series: Some(series), version, media_type: "" };
            images.push(self.plain_image(keys, &named, part.encode())?);
        }
        Ok(images)
    }

    /// Rows of the objects whose bytes are not on the ledger, and where they are. What everybody may open is on the ledger, where
    /// everybody reads.
    fn custody(&self, study_uid: &Uid, encryption: Encryption) -> Result<HashMap<i64, Custody>, AssembleError> {
        let settings = &self.0.settings;
        if encryption == Encryption::Off || !settings.keeps(|custody| custody != Custody::OnChain) {
            return Ok(HashMap::new());
        }
        let described = self.0.archive.derivable(study_uid)?.into_iter();
        let kept = described.map(|object| {
            let custody = settings.custody_of(&object.modality, &object.calling_ae, &object.stored.sop_class);
            (object.stored.id, custody)
        });
        Ok(kept.collect())
    }

    /// Manifest entries of all current objects, and the images of those that have none yet and are to have one.
    fn objects(
        &self,
        keys: &StudyKeys,
        previous: Option<&Manifest>,
        instances: &[Stored],
        custody: &HashMap<i64, Custody>,
    ) -> Result<Objects, AssembleError> {
        let known: HashMap<(&str, [u8; 32]), &ManifestObject> = previous
            .into_iter()
            .flat_map(|manifest| &manifest.objects)
            .map(|object| ((object.sop_instance_uid.as_str(), object.file_sha256), object))
            .collect();
        let old = |stored: &Stored| known.get(&(stored.sop_instance.as_str(), stored.file_sha256)).copied();
        let new: Vec<&Stored> = instances.iter().filter(|stored| old(stored).is_none()).collect();
        let custody_of = |stored: &Stored| custody.get(&stored.id).copied().unwrap_or(Custody::OnChain);
        let made = in_parallel(&new, |stored| self.object(keys, stored, custody_of(stored)))?;
        let (new, mut made) = (new.iter().map(|stored| stored.sop_instance).collect(), made.into_iter());
        let mut objects = Vec::with_capacity(instances.len());
        let mut images = Vec::new();
        for stored in instances {
            match old(stored) {
                Some(object) => objects.push(object.clone()),
                None => {
                    let Some((object, image)) = made.next() else {
                        return Err(AssembleError::Missing(stored.sop_instance));
                    };
                    objects.push(object);
                    images.extend(image);
                }
            }
        }
        Ok(Objects { objects, new, images })
    }

    /// The entry of a new object, and its image unless its bytes stay here.
    fn object(
        &self,
        keys: &StudyKeys,
        stored: &Stored,
        custody: Custody,
    ) -> Result<(ManifestObject, Option<PlannedImage>), AssembleError> {
        let read = |e| AssembleError::Io(format!("reading object {}", stored.sop_instance), e);
        let opened = self.0.archive.open_file(stored).map_err(read)?;
        let mut file = opened.ok_or(AssembleError::Missing(stored.sop_instance))?;
        // As it was received.
        let dataset_sha256 = sha256_from(&mut file, stored.meta_bytes).map_err(read)?;
        let (header, pixel_sha256) = match describe(&mut file, HEADER_VALUE_BYTES_MAX) {
            Ok(described) => (described.header, described.pixel_sha256),
            // An object that nobody can parse on is published all the same, with the header as far as it goes.
            Err(error) => {
                let error = crate::chain_of(&error);
                tracing::info!(uid = %stored.sop_instance, error, "published without a digest of its pixels");
                (readable_header(&mut file, stored).map_err(read)?, None)
            }
        };
        let id =
            image_id(&keys.salt, ImageKind::Object, stored.sop_instance.as_str(), &stored.file_sha256, keys.epoch());
        let key = keys.sealing(ImageKind::Object, Some(&stored.series_uid));
        // What was planned stays as it is, wherever such objects go now.
        let planned = self.0.archive.image(&id)?.map(|(image, _)| (image.map, image.link));
        let (map, link, plain_sha256) = match (planned, custody) {
            (Some((map, link)), _) => (Some(map), link, sha256_from(&mut file, 0).map_err(read)?),
            (None, Custody::AtSource) => (None, None, sha256_from(&mut file, 0).map_err(read)?),
            (None, Custody::OnChain) => {
                let (map, plain_sha256) = self.seal_to_spool(&key, &id, self.0.settings.piece_bytes, &mut file)?;
                (Some(map), None, plain_sha256)
            }
            (None, Custody::Ipfs) => {
                let (link, plain_sha256) = self.seal_for_ipfs(&key, &id, &mut file)?;
                (Some(link.map()), Some(link), plain_sha256)
            }
        };
        if plain_sha256 != stored.file_sha256 {
            return Err(AssembleError::Damaged(stored.sop_instance));
        }
        let object = ManifestObject {
            sop_class_uid: stored.sop_class,
            sop_instance_uid: stored.sop_instance,
            series_uid: stored.series_uid,
            transfer_syntax: stored.transfer_syntax,
            file_bytes: stored.file_bytes,
            file_sha256: stored.file_sha256,
            dataset_sha256,
            pixel_sha256,
            header,
            image: id,
            epoch: keys.epoch(),
            map,
            link,
            meta_bytes: stored.meta_bytes,
            by_series: true,
        };
        let image = map.map(|map| PlannedImage {
            id,
            kind: ImageKind::Object,
            instance: Some(stored.id),
            subject: stored.sop_instance,
            series: Some(stored.series_uid),
            epoch: keys.epoch(),
            map,
            link,
            media_type: String::new(),
            plain: None,
        });
        Ok((object, image))
    }

    /// Previews of every series that has something new, and of every new instance if configured; those of other series stay.
    fn previews(
        &self,
        keys: &StudyKeys,
        instances: &[Stored],
        new: &HashSet<Uid>,
        old: Vec<ManifestPreview>,
    ) -> Result<(Vec<ManifestPreview>, Vec<PlannedImage>), AssembleError> {
        let mut series: Vec<(Uid, Vec<&Stored>)> = Vec::new();
        for stored in instances {
            match series.last_mut().filter(|(uid, _)| *uid == stored.series_uid) {
                Some((_, members)) => members.push(stored),
                None => series.push((stored.series_uid, vec![stored])),
            }
        }
        series.retain(|(_, members)| members.iter().any(|stored| new.contains(&stored.sop_instance)));
        let renewed: HashSet<Uid> = series.iter().map(|(uid, _)| *uid).collect();
        let current: HashSet<Uid> = instances.iter().map(|stored| stored.sop_instance).collect();
        // An object that was superseded takes its preview with it.
        let stays = |preview: &ManifestPreview| match preview.kind {
            PreviewKind::Instance => current.contains(&preview.subject) && !new.contains(&preview.subject),
            PreviewKind::Series | PreviewKind::ContactSheet => !renewed.contains(&preview.subject),
        };
        let mut previews: Vec<ManifestPreview> = old.into_iter().filter(stays).collect();
        // A preview always fits one piece; none is made when pieces are too small for any.
        let bytes_max = plain_bytes_fitting(self.0.settings.piece_bytes, SealOptions::default()).unwrap_or(0);
        let each = self.0.settings.preview_each_instance;
        let pictures = in_parallel(&series, |(uid, members)| {
            let pictures = picture::of_series(&self.0.archive, uid, members, new, each, bytes_max);
            Ok(pictures.into_iter().map(|picture| (*uid, picture)).collect::<Vec<_>>())
        })?;
        let mut images = Vec::new();
        for (series, picture) in pictures.into_iter().flatten() {
            let media_type = picture.preview.media_type;
            let sha256 = Sha256::digest(&picture.preview.bytes).into();
            let (kind, subject, version) = (ImageKind::Preview, &picture.subject, keys.epoch());
            let named = Named { kind, subject, series: Some(&series), version, media_type };
            let image = self.plain_image(keys, &named, picture.preview.bytes)?;
            previews.push(ManifestPreview {
                subject: picture.subject,
                kind: picture.kind,
                media_type: media_type.to_owned(),
                width: picture.preview.width,
                height: picture.preview.height,
                sha256,
                image: image.id,
                epoch: keys.epoch(),
                map: image.map,
                series: Some(series),
            });
            images.push(image);
        }
        Ok((previews, images))
    }

    /// An image of bytes that the archive does not hold as an object.
    fn plain_image(&self, keys: &StudyKeys, named: &Named<'_>, plain: Vec<u8>) -> Result<PlannedImage, AssembleError> {
        let Named { kind, subject, series, version, media_type } = *named;
        let id = image_id(&keys.salt, kind, subject.as_str(), &Sha256::digest(&plain).into(), version);
        let (key, piece_bytes) = (keys.sealing(kind, series), self.0.settings.piece_bytes);
        let (map, _) = self.seal_to_spool(&key, &id, piece_bytes, &mut io::Cursor::new(&plain))?;
        Ok(PlannedImage {
            id,
            kind,
            instance: None,
            subject: *subject,
            series: series.copied(),
            epoch: keys.epoch(),
            map,
            link: None,
            media_type: media_type.to_owned(),
            plain: Some(plain),
        })
    }

    fn seal_to_spool<R: Read + Seek>(
        &self,
        key: &SessionKey,
        id: &B256,
        piece_bytes: u32,
        source: &mut R,
    ) -> Result<(PieceMap, [u8; 32]), AssembleError> {
        self.to_spool(id, |out| {
            let mut splitter = Splitter::new(piece_bytes, |_, piece: &[u8]| out.write_all(piece))?;
            let sealed = seal(source, key, id, SealOptions::default(), &mut splitter)?;
            Ok((splitter.finish()?, sealed.plain_sha256))
        })
    }

    /// The same as one file, with its name in IPFS.
    fn seal_for_ipfs<R: Read + Seek>(
        &self,
        key: &SessionKey,
        id: &B256,
        source: &mut R,
    ) -> Result<(Link, [u8; 32]), AssembleError> {
        self.to_spool(id, |out| {
            let mut named = Tee(out, CidBuilder::default());
            let sealed = seal(source, key, id, SealOptions::default(), &mut named)?;
            let sealed_bytes = named.1.bytes();
            Ok((Link { cid: named.1.finish(), sealed_bytes }, sealed.plain_sha256))
        })
    }

    fn to_spool<T>(
        &self,
        id: &B256,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<T, AssembleError>,
    ) -> Result<T, AssembleError> {
        let path = self.spool_path(id);
        let part = path.with_extension("part");
        let spool = |e| AssembleError::Io("writing to the spool".into(), e);
        let mut out = BufWriter::with_capacity(RUN_BYTES, File::create(&part).map_err(spool)?);
        let written = write(&mut out)?;
        out.flush().map_err(spool)?;
        drop(out);
        fs::rename(&part, &path).map_err(spool)?;
        Ok(written)
    }

    fn spool_path(&self, id: &B256) -> PathBuf {
        self.0.spool.join(hex::encode(id))
    }

    /// The sealed bytes of a planned image, sealed again if the spool lost them. Blocks.
    ///
    /// # Errors
    /// [`AssembleError`].
    pub fn open_sealed(&self, study_uid: &Uid, id: &B256) -> Result<File, AssembleError> {
        let spool = |e| AssembleError::Io("reading the spool".into(), e);
        let (image, plain) = self.0.archive.image(id)?.ok_or(AssembleError::Changed(*id))?;
        let path = self.spool_path(id);
        let sealed_bytes = image.link.map_or(image.map.sealed_bytes, |link| link.sealed_bytes);
        match File::open(&path) {
            Ok(file) if file.metadata().is_ok_and(|meta| meta.len() == sealed_bytes) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(spool(error)),
        }
        self.seal_again(study_uid, &image, plain)?;
        File::open(path).map_err(spool)
    }

    fn seal_again(&self, study_uid: &Uid, image: &Image, plain: Option<Vec<u8>>) -> Result<(), AssembleError> {
        // With the key of its own epoch, whatever has become of the study since; a study that has no keys gets none by this.
        let keys = self.0.keyring.study(study_uid)?;
        let key = keys
            .and_then(|keys| keys.opening(image.kind, image.series.as_ref(), image.epoch))
            .ok_or(AssembleError::Gone)?;
        // As it was cut when it was planned, whatever is configured since.
        let piece_bytes = image.map.piece_bytes;
        let map = match plain {
            Some(plain) => self.seal_to_spool(&key, &image.id, piece_bytes, &mut io::Cursor::new(plain))?.0,
            None => {
                let stored = self.0.archive.received_instance(&image.subject)?;
                let stored = stored.ok_or(AssembleError::Missing(image.subject))?;
                let read = |e| AssembleError::Io(format!("reading object {}", image.subject), e);
                let opened = self.0.archive.open_file(&stored).map_err(read)?;
                let mut file = opened.ok_or(AssembleError::Missing(image.subject))?;
                match image.link {
                    None => self.seal_to_spool(&key, &image.id, piece_bytes, &mut file)?.0,
                    // Their name says more than the piece that holds it.
                    Some(_) => self.seal_for_ipfs(&key, &image.id, &mut file)?.0.map(),
                }
            }
        };
        if map != image.map {
            let _ = fs::remove_file(self.spool_path(&image.id));
            return Err(AssembleError::Changed(image.id));
        }
        Ok(())
    }

    /// Forgets the sealed bytes of images that are on the ledger.
    pub fn forget_sealed(&self, images: &[B256]) {
        for id in images {
            if let Err(error) = fs::remove_file(self.spool_path(id))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "cannot remove a file from the spool");
            }
        }
    }
}

/// Writes to two places.
struct Tee<A, B>(A, B);

impl<A: Write, B: Write> Write for Tee<A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What a version has of objects.
struct Objects {
    /// Entries of all of them.
    objects: Vec<ManifestObject>,
    /// Those that the version before had not.
    new: HashSet<Uid>,
    /// Images of new ones.
    images: Vec<PlannedImage>,
}

/// What an image of bytes that are no object is called, and whose key seals it.
struct Named<'a> {
    kind: ImageKind,
    subject: &'a Uid,
    series: Option<&'a Uid>,
    /// Of its name: the manifest's version, or the epoch.
    version: u32,
    media_type: &'a str,
}

fn empty(spool: &Path) -> io::Result<()> {
    fs::create_dir_all(spool)?;
    for entry in fs::read_dir(spool)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// SHA-256 of a file from an offset on.
fn sha256_from(file: &mut File, offset: u64) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(offset))?;
    let mut hash = Sha256::new();
    let mut run = vec![0; RUN_BYTES];
    loop {
        match file.read(&mut run)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&run[..count]),
        }
    }
}

/// The header of an object that breaks off or cannot be parsed to its pixels.
fn readable_header(file: &mut File, stored: &Stored) -> io::Result<Vec<u8>> {
    let Some(syntax) = TransferSyntax::of(&stored.transfer_syntax) else { return Ok(Vec::new()) };
    file.seek(SeekFrom::Start(stored.meta_bytes))?;
    let value_bytes_max = u32::try_from(HEADER_VALUE_BYTES_MAX).unwrap_or(u32::MAX);
    let options = ReadOptions { stop_at: Some(PIXELS), value_bytes_max, ..ReadOptions::default() };
    let mut scanner = Scanner::new(syntax, options, HEADER_BYTES_MAX);
    let mut run = vec![0; RUN_BYTES];
    loop {
        let count = file.read(&mut run)?;
        if count == 0 || !matches!(scanner.push(&run[..count]), Ok(Scanned::NeedMore)) {
            break;
        }
    }
    let mut bytes = scanner.finish().0.write(Encoding::ExplicitLe);
    if bytes.len() > HEADER_BYTES_MAX {
        bytes.clear();
    }
    Ok(bytes)
}

/// Sealing takes all cores that are free, and gives way even to other background work: on Linux the nice value is the thread's
/// own, and these threads end with their work.
fn yield_to_intake() {
    if let Err(error) = rustix::process::nice(5) {
        tracing::debug!(%error, "sealing runs at the usual priority");
    }
}

/// Applies `work` to every item on as many threads as there are cores; results come in the order of the items.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, AssembleError> + Sync,
) -> Result<Vec<R>, AssembleError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<R, AssembleError>)>> = Mutex::new(Vec::with_capacity(items.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                yield_to_intake();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let result = work(item);
                    let failed = result.is_err();
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                    if failed {
                        // The others stop at their next item.
                        next.store(items.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap as Map;

    use super::*;
    use crate::archive::{FileMeta, ObjectHead};
    use crate::config::Config;
    use crate::deidentify::{Deidentifier, Key, Options, Rules};
    use crate::demo::phantom::{Subject, ct_series};
    use crate::payload::container::unseal_bytes;

    /// A power cut can leave a spool file of the right length and other bytes. What was sent from it to the ledger could never
    /// be taken back.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_spool_of_an_earlier_run_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse("[archive]\nfree_bytes_min = 0\n", Map::new()).unwrap();
        let keyring = Keyring::open(dir.path(), &config.keys).unwrap();
        let archive = Archive::open(&dir.path().join("archive"), config.archive.clone(), 0).unwrap();
        let subject = Subject {
            patient_name: "A^B".into(),
            patient_id: "1".into(),
            study_date: "20260101".into(),
            description: "D".into(),
            accession: "2".into(),
            study_uid: "1.2.3".into(),
        };
        for phantom in ct_series(&subject, 2, 32, 1) {
            let head = ObjectHead {
                sop_class: phantom.sop_class,
                sop_instance: phantom.sop_instance,
                transfer_syntax: phantom.transfer_syntax,
                calling_ae: "T".into(),
            };
            let mut incoming = archive.begin(head).unwrap();
            incoming.append(&phantom.bytes).unwrap();
            incoming.finish().await.unwrap();
        }
        let study = Uid::new("1.2.3").unwrap();
        let first = Assembler::new(archive.clone(), keyring.clone(), config.publish.clone()).unwrap();
        first.begin_version::<AssembleError>(&study, Encryption::On, || Ok(Vec::new())).await.unwrap();
        let read = |assembler: &Assembler, id: &B256| {
            let mut bytes = Vec::new();
            assembler.open_sealed(&study, id).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let images = archive.images_of(&study, 1).unwrap();
        assert!(images.iter().any(|image| image.kind == ImageKind::Preview), "a CT has a preview");
        let sealed: Vec<Vec<u8>> = images.iter().map(|image| read(&first, &image.id)).collect();
        for (image, bytes) in images.iter().zip(&sealed) {
            fs::write(first.spool_path(&image.id), vec![0; bytes.len()]).unwrap();
        }
        let second = Assembler::new(archive, keyring, config.publish).unwrap();
        for (image, bytes) in images.iter().zip(&sealed) {
            assert!(read(&second, &image.id) == *bytes, "{:?} has other bytes", image.kind);
        }
    }

    fn studio(dir: &Path) -> (Archive, Keyring, Assembler) {
        let config = Config::parse("[archive]\nfree_bytes_min = 0\n", Map::new()).unwrap();
        let keyring = Keyring::open(dir, &config.keys).unwrap();
        let archive = Archive::open(&dir.join("archive"), config.archive.clone(), 0).unwrap();
        let assembler = Assembler::new(archive.clone(), keyring.clone(), config.publish).unwrap();
        (archive, keyring, assembler)
    }

    async fn store(archive: &Archive, file: &[u8]) -> Uid {
        let (meta, dataset) = FileMeta::read(&mut &*file).unwrap();
        let head = ObjectHead {
            sop_class: meta.sop_class,
            sop_instance: meta.sop_instance,
            transfer_syntax: meta.transfer_syntax,
            calling_ae: "T".into(),
        };
        let mut incoming = archive.begin(head).unwrap();
        incoming.append(&file[usize::try_from(dataset).unwrap()..]).unwrap();
        incoming.finish().await.unwrap();
        archive.instance(&meta.sop_instance).unwrap().unwrap().study_uid
    }

    fn part10(phantom: &crate::demo::phantom::Phantom) -> Vec<u8> {
        let meta = FileMeta {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: phantom.transfer_syntax,
        };
        [meta.encode(), phantom.bytes.clone()].concat()
    }

    /// Without encryption goes what is proven to be nobody's, and only that; then whoever knows the study's name opens all of it.
    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_that_may_be_somebodys_is_sealed_under_the_public_key() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, keyring, assembler) = studio(dir.path());
        let subject = Subject {
            patient_name: "Zyxwquist^Brunhilde".into(),
            patient_id: "MRN-7390".into(),
            study_date: "19770707".into(),
            description: "D".into(),
            accession: "2".into(),
            study_uid: "1.2.3".into(),
        };
        let originals: Vec<Vec<u8>> = ct_series(&subject, 3, 32, 1).iter().map(part10).collect();
        let cleaner = Deidentifier::new(Key::from_bytes([7; 32]), Options::default(), Rules::default());
        let clean: Vec<Vec<u8>> = originals.iter().map(|file| cleaner.file(file).unwrap().0).collect();
        let spooled = || fs::read_dir(dir.path().join("archive/spool")).unwrap().count();
        let begin = async |study: &Uid, encryption| {
            assembler.begin_version::<AssembleError>(study, encryption, || Ok(Vec::new())).await
        };

        let identified = store(&archive, &originals[0]).await;
        let refused = begin(&identified, Encryption::Off).await;
        assert!(matches!(refused, Err(AssembleError::Identified(..))), "{refused:?}");
        assert!(spooled() == 0 && archive.publication(&identified).unwrap().is_none());
        assert!(keyring.study(&identified).unwrap().is_none(), "not even a key was made");

        let study = store(&archive, &clean[0]).await;
        store(&archive, &clean[1]).await;
        begin(&study, Encryption::Off).await.unwrap();
        let name = archive.publication(&study).unwrap().unwrap().study_id;
        let public = SessionKey::public(&name.0);
        let opens = |key: &SessionKey, image: &Image| {
            let key = match image.kind {
                ImageKind::Object => key.clone(),
                _ => key.preview_key(),
            };
            let key = image.series.map_or_else(|| key.clone(), |series| key.of_series(&series));
            let mut sealed = Vec::new();
            assembler.open_sealed(&study, &image.id).unwrap().read_to_end(&mut sealed).unwrap();
            unseal_bytes(&sealed, &key, &image.id, 1 << 24).is_ok()
        };
        let images = archive.images_of(&study, 1).unwrap();
        assert!(images.len() >= 4 && images.iter().all(|image| opens(&public, image)));

        // The rule wants it encrypted from now on: what is sealed then is.
        archive
            .record_seen(&study, crate::archive::SeenOnLedger { finished: Some(1), ..Default::default() })
            .await
            .unwrap();
        store(&archive, &clean[2]).await;
        begin(&study, Encryption::On).await.unwrap();
        let later = archive.images_of(&study, 2).unwrap();
        let newest = keyring.study(&study).unwrap().unwrap();
        assert!(!later.is_empty() && !later.iter().any(|image| opens(&public, image)));
        assert!(later.iter().all(|image| opens(newest.newest(), image)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_is_shut_out_again_and_again_does_not_keep_the_site_sealing() {
        use std::sync::atomic::AtomicU32;
        let dir = tempfile::tempdir().unwrap();
        let (archive, keyring, assembler) = studio(dir.path());
        let subject = Subject {
            patient_name: "A^B".into(),
            patient_id: "1".into(),
            study_date: "20260101".into(),
            description: "D".into(),
            accession: "2".into(),
            study_uid: "1.2.3".into(),
        };
        let study = store(&archive, &part10(&ct_series(&subject, 1, 32, 1)[0])).await;
        let seq = AtomicU32::new(0);
        let withdrawn = || Ok(vec![(Address::repeat_byte(7), seq.fetch_add(1, Ordering::Relaxed))]);
        let made = assembler.begin_version::<AssembleError>(&study, Encryption::On, withdrawn).await;
        assert!(matches!(made, Err(AssembleError::Overtaken)), "{made:?}");
        assert_eq!(fs::read_dir(dir.path().join("archive/spool")).unwrap().count(), 0, "nothing stale is left");
        assert!(archive.publication(&study).unwrap().is_none() && keyring.study(&study).unwrap().is_some());
        let quiet = || Ok(vec![(Address::repeat_byte(7), 0)]);
        assembler.begin_version::<AssembleError>(&study, Encryption::On, quiet).await.unwrap();
    }
}
