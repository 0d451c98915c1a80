//! Which document is meant, whether it may be had, and what it is made of.
//!
//! A document is a version of a study: the objects of that version's manifest, in its order, as they were received. Must not know messages.

use alloy::primitives::{Address, B256};
use dicom_scp::Uid;
use ihe_retrieve::identifier::{DocumentForm, DocumentUniqueId, RepositoryUniqueId};
use ihe_retrieve::request::DocumentRequest;
use ihe_retrieve::response::RegistryErrorCode;

use super::zip::{Entry, Layout};
use crate::access;
use crate::archive::{Archive, ArchiveError, Stored};
use crate::follow::{Consents, FollowError};
use crate::payload::manifest::{Manifest, ManifestError, ManifestObject};
use crate::retrieve::{Content, Retrieve, RetrieveError};
use crate::study::ImageKind;

/// Why a document that may be had cannot be: for this site's log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The consents.
    #[error("the consents")]
    Consents(#[from] FollowError),
    /// The archive.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The manifest cannot be read.
    #[error("the manifest")]
    Manifest(#[from] ManifestError),
    /// The manifest is not here, or not the one that the ledger names.
    #[error("the manifest of version {0} is not here")]
    NoManifest(u32),
    /// An object of this version is not here in any way.
    #[error("object {0} of this version is not here")]
    NoObject(Uid),
    /// An object cannot be opened.
    #[error("an object")]
    Object(#[from] RetrieveError),
    /// An object cannot be read.
    #[error("reading an object")]
    Read(#[from] std::io::Error),
}

/// A version of a study that the requester may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    study: Uid,
    version: u32,
    /// The manifest's image, where the ledger names it.
    manifest: Option<B256>,
}

/// A document ready to be sent.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) objects: Vec<Stored>,
    pub(super) layout: Layout,
}

/// What decisions are made of.
pub(super) struct Clerk<'a> {
    pub(super) archive: &'a Archive,
    pub(super) consents: &'a Consents,
    /// This source, if the ledger has said so.
    pub(super) source: Option<Address>,
    /// Whether the ledger's state is fresh enough to let somebody in.
    pub(super) current: bool,
    pub(super) now_s: u64,
}

impl Clerk<'_> {
    /// Decides about one document for an account (wire contract, sections 5 and 8). Blocks.
    pub(super) fn judge(&self, account: Address, request: &DocumentRequest) -> Result<Wanted, RegistryErrorCode> {
        if request.home_community_id.is_some() {
            return Err(RegistryErrorCode::UnknownCommunity);
        }
        let Some(source) = self.source else { return Err(RegistryErrorCode::RepositoryError) };
        let repository = RepositoryUniqueId::parse(&request.repository_unique_id);
        if repository.map(|repository| Address::from(repository.address())) != Some(source) {
            return Err(RegistryErrorCode::UnknownRepositoryId);
        }
        if !self.current {
            return Err(RegistryErrorCode::RepositoryError);
        }
        let Some(named) = DocumentUniqueId::parse(&request.document_unique_id) else {
            return Err(RegistryErrorCode::DocumentUniqueIdError);
        };
        match self.find(account, source, named) {
            Ok(found) => found.ok_or(RegistryErrorCode::DocumentUniqueIdError),
            Err(error) => {
                tracing::error!(error = %crate::chain_of(&error), "cannot decide about a document");
                Err(RegistryErrorCode::RepositoryError)
            }
        }
    }

    /// The same is looked up whether or not there is a grant, so that a stranger does not learn from the time whether a study exists.
    fn find(&self, account: Address, source: Address, named: DocumentUniqueId) -> Result<Option<Wanted>, Trouble> {
        let study_id = B256::from(named.study);
        let info = self.consents.study(study_id)?;
        let here = self.archive.study_of_id(&study_id)?;
        let mut granted = false;
        for grantee in self.consents.spoken_for_by(account)? {
            let grant = self.consents.grant(study_id, grantee)?;
            granted |= grant.is_some_and(|grant| access::opens_whole_study(&grant, self.now_s));
        }
        let (true, Some(info), Some(study)) = (granted, info, here) else { return Ok(None) };
        if info.source != source || info.tombstoned {
            return Ok(None);
        }
        let version = match named.form {
            DocumentForm::Newest => info.version,
            DocumentForm::Version(version) => version,
            DocumentForm::KeyObjectSelection => return Ok(None),
        };
        let announced = (1..=info.version).contains(&version);
        let manifest = (version == info.version).then_some(info.manifest_image);
        Ok(announced.then_some(Wanted { study, version, manifest }))
    }
}

impl Wanted {
    /// The objects of this version. Blocks.
    fn objects(&self, archive: &Archive) -> Result<Vec<Stored>, Trouble> {
        let images = archive.images_of(&self.study, self.version)?;
        let image = images.into_iter().find(|image| image.kind == ImageKind::Manifest);
        let image = image.filter(|image| self.manifest.is_none_or(|named| named == image.id));
        let image = image.ok_or(Trouble::NoManifest(self.version))?;
        let plain = archive.image(&image.id)?.and_then(|(_, plain)| plain);
        let manifest = Manifest::decode(&plain.ok_or(Trouble::NoManifest(self.version))?)?;
        let find = |object: &ManifestObject| {
            let uid = &object.sop_instance_uid;
            let stored = archive.received_version(&self.study, uid, &object.file_sha256)?;
            // One that another took the place of is not fetched again.
            let can_be_had =
                |stored: &Stored| Ok::<_, ArchiveError>(stored.path.is_some() || archive.current(stored)?.is_some());
            match stored {
                Some(stored) if can_be_had(&stored)? => Ok(stored),
                _ => Err(Trouble::NoObject(*uid)),
            }
        };
        manifest.objects.iter().map(find).collect()
    }

    /// Gets the document ready. Whether its first object can be had is found out before anything is promised.
    pub(super) async fn prepare(self, archive: Archive, retrieve: &Retrieve) -> Result<Document, Trouble> {
        let objects = tokio::task::spawn_blocking(move || self.objects(&archive));
        let objects = objects.await.map_err(std::io::Error::other)??;
        if let Some(first) = objects.first() {
            retrieve.open_file(first).await?;
        }
        let mut entries = Vec::with_capacity(objects.len());
        for stored in &objects {
            let crc32 = match stored.file_crc32 {
                Some(known) => known,
                None => crc32_of(retrieve, stored).await?,
            };
            entries.push(Entry { bytes: stored.file_bytes, crc32 });
        }
        Ok(Document { objects, layout: Layout::new(entries) })
    }
}

/// Of an object that was filed before checksums were kept: found by reading it.
async fn crc32_of(retrieve: &Retrieve, stored: &Stored) -> Result<u32, Trouble> {
    let opened = retrieve.open_file(stored).await?;
    let hashed = tokio::task::spawn_blocking(move || match opened.content {
        Content::Whole(bytes) => Ok(crc32fast::hash(&bytes)),
        Content::File(mut file) => {
            let mut summed = Summed(crc32fast::Hasher::new());
            std::io::copy(&mut file, &mut summed).map(|_| summed.0.finalize())
        }
    });
    Ok(hashed.await.map_err(std::io::Error::other)??)
}

struct Summed(crc32fast::Hasher);

impl std::io::Write for Summed {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
