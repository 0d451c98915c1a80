//! Which document is meant, whether it may be had, and what it is made of.
//!
//! A document of ITI-43 is a version of a study: the objects of that version's manifest, in its order, as they were received; or the list of
//! them. A document of RAD-69 is one object. Must not know messages.

use std::collections::HashMap;
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use bytes::Bytes;
use dicom_scp::Uid;
use ihe_retrieve::identifier::{DocumentForm, DocumentUniqueId, RepositoryUniqueId};
use ihe_retrieve::request::{DocumentRequest, ImagingDocumentRequest};
use ihe_retrieve::response::{DocumentType, RegistryErrorCode};

use super::selection::key_object_selection;
use crate::access;
use crate::archive::{Archive, ArchiveError, Stored};
use crate::follow::{Consents, FollowError, StudyInfo};
use crate::payload::manifest::{Manifest, ManifestError, ManifestObject};
use crate::recode::{RecodeError, Recoding};
use crate::retrieve::{Retrieve, RetrieveError};
use crate::study::{ImageKind, study_id_plain};
use crate::zip::Layout;

/// What a series of a study is called in grants, where the study has keys here.
pub type SeriesNames = Arc<dyn Fn(&Uid, &Uid) -> Option<B256> + Send + Sync>;

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
    /// There is nothing to be named.
    #[error("version {0} has no objects")]
    Empty(u32),
    /// No other transfer syntax can be made of it.
    #[error("an object cannot be brought into another transfer syntax")]
    Recode(#[source] RecodeError),
}

impl From<RecodeError> for Trouble {
    fn from(error: RecodeError) -> Self {
        match error {
            RecodeError::Retrieve(error) => Self::Object(error),
            other => Self::Recode(other),
        }
    }
}

impl Trouble {
    /// What the requester is told.
    pub(super) fn code(&self) -> RegistryErrorCode {
        match self {
            Self::Recode(error) if error.is_of_object() => RegistryErrorCode::TransferSyntax,
            _ => RegistryErrorCode::RepositoryError,
        }
    }
}

/// A version of a study that the ledger announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    study: Uid,
    version: u32,
    /// The manifest's image, where the ledger names it.
    manifest: Option<B256>,
}

/// What the requester may have.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// A version of a study: its objects.
    Study(Version),
    /// The list of its objects, which says that they are at this source.
    Selection(Version, Address),
    /// One object as it was received.
    Object(Box<Stored>),
    /// One object in another transfer syntax.
    Recoded(Box<Stored>, Recoding),
}

/// A document ready to be sent.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) kind: DocumentType,
    /// Its length.
    pub(super) bytes: u64,
    pub(super) contents: Contents,
}

/// What a document is made of.
#[derive(Debug)]
pub(super) enum Contents {
    /// The files of objects in an archive.
    Archive(Vec<Stored>, Layout),
    /// The file of an object.
    Object(Box<Stored>),
    /// An object in another transfer syntax.
    Recoded(Box<Stored>, Recoding),
    /// These octets.
    Written(Bytes),
}

/// What decisions are made of.
pub(super) struct Clerk<'a> {
    pub(super) archive: &'a Archive,
    pub(super) consents: &'a Consents,
    pub(super) series_names: &'a SeriesNames,
    /// This source, if the ledger has said so.
    pub(super) source: Option<Address>,
    /// Whether the ledger's state is fresh enough to let somebody in.
    pub(super) current: bool,
    pub(super) now_s: u64,
}

/// How much of a study is open to an account.
#[derive(Debug, Default)]
struct Opened {
    whole: bool,
    /// Names of series.
    series: Vec<B256>,
}

/// The objects of a study's newest version, for whom it is open.
struct OpenStudy {
    study: Uid,
    objects: HashMap<Uid, ManifestObject>,
    /// By series, whether it is open; none where all are.
    series: Option<HashMap<Uid, bool>>,
}

impl Clerk<'_> {
    /// Whether anything can be decided about a request: this source, if it is the one that is asked.
    fn admit(&self, request: &DocumentRequest, another: RegistryErrorCode) -> Result<Address, RegistryErrorCode> {
        if request.home_community_id.is_some() {
            return Err(RegistryErrorCode::UnknownCommunity);
        }
        let Some(source) = self.source else { return Err(RegistryErrorCode::RepositoryError) };
        if !RepositoryUniqueId::at(source.into()).is_named_by(&request.repository_unique_id) {
            return Err(another);
        }
        if self.current { Ok(source) } else { Err(RegistryErrorCode::RepositoryError) }
    }

    /// Decides about one document of ITI-43 for an account (wire contract, sections 5 and 8). Blocks.
    pub(super) fn judge(&self, account: Address, request: &DocumentRequest) -> Result<Wanted, RegistryErrorCode> {
        let source = self.admit(request, RegistryErrorCode::UnknownRepositoryId)?;
        let Some(named) = DocumentUniqueId::parse(&request.document_unique_id) else {
            return Err(RegistryErrorCode::DocumentUniqueIdError);
        };
        let found = self.find(account, source, named).map_err(undecided)?;
        found.ok_or(RegistryErrorCode::DocumentUniqueIdError)
    }

    /// The same is looked up whether or not there is a grant, so that a stranger does not learn from the time whether a study exists.
    fn find(&self, account: Address, source: Address, named: DocumentUniqueId) -> Result<Option<Wanted>, Trouble> {
        let study_id = B256::from(named.study);
        let here = self.archive.study_of_id(&study_id)?;
        let (opened, info) = self.opened(account, source, study_id)?;
        let (true, Some(info), Some(study)) = (opened.whole, info, here) else { return Ok(None) };
        let version = match named.form {
            DocumentForm::Version(version) => version,
            DocumentForm::Newest | DocumentForm::KeyObjectSelection => info.version,
        };
        if !(1..=info.version).contains(&version) {
            return Ok(None);
        }
        let manifest = (version == info.version).then_some(info.manifest_image);
        let version = Version { study, version, manifest };
        Ok(Some(match named.form {
            DocumentForm::KeyObjectSelection => Wanted::Selection(version, source),
            DocumentForm::Newest | DocumentForm::Version(_) => Wanted::Study(version),
        }))
    }

    /// How much of a study of this source is open to an account, or to whom it speaks for.
    fn opened(
        &self,
        account: Address,
        source: Address,
        study_id: B256,
    ) -> Result<(Opened, Option<StudyInfo>), Trouble> {
        let info = self.consents.study(study_id)?;
        let mut opened = Opened::default();
        for grantee in self.consents.spoken_for_by(account)? {
            let Some(grant) = self.consents.in_effect(study_id, grantee)? else { continue };
            opened.whole |= access::opens_whole_study(&grant, self.now_s);
            opened.series.extend(access::opens_one_series(&grant, self.now_s));
        }
        match info {
            Some(info) if info.source == source && !info.tombstoned => Ok((opened, Some(info))),
            _ => Ok((Opened::default(), None)),
        }
    }

    /// Decides about the instances of a request of RAD-69, in their order; each may be had in one of these transfer syntaxes. Blocks.
    pub(super) fn judge_imaging(
        &self,
        account: Address,
        asked: &[ImagingDocumentRequest],
        transfer_syntaxes: &[String],
    ) -> Vec<Result<Wanted, RegistryErrorCode>> {
        let accepted: Vec<Uid> = transfer_syntaxes.iter().filter_map(|text| Uid::new(text).ok()).collect();
        let mut studies: HashMap<&str, Result<Option<OpenStudy>, RegistryErrorCode>> = HashMap::new();
        let mut decide = |request: &'_ ImagingDocumentRequest, study_uid| {
            let source = self.admit(&request.document, RegistryErrorCode::UnknownImagingSource)?;
            let study = studies.entry(study_uid);
            let study = study.or_insert_with(|| self.open_study(account, source, study_uid).map_err(undecided));
            let object = match study {
                Ok(Some(study)) => study.object(request)?,
                Ok(None) => return Err(RegistryErrorCode::DocumentUniqueIdError),
                Err(code) => return Err(*code),
            };
            let stored = stored(self.archive, &object.0, object.1).map_err(undecided)?;
            deliverable(stored, &accepted)
        };
        asked.iter().map(|request| decide(request, request.study_instance_uid.as_str())).collect()
    }

    /// What is open of the study with this UID. For a study that is not here the ledger's state is looked up all the same, under a name that
    /// no study has.
    fn open_study(&self, account: Address, source: Address, study_uid: &str) -> Result<Option<OpenStudy>, Trouble> {
        let uid = Uid::new(study_uid).ok();
        let here = uid.as_ref().map(|uid| self.archive.publication(uid)).transpose()?.flatten();
        let study_id = here.as_ref().map_or_else(|| study_id_plain(study_uid), |here| here.study_id);
        let (opened, info) = self.opened(account, source, study_id)?;
        let (Some(here), Some(info)) = (here, info) else { return Ok(None) };
        if !opened.whole && opened.series.is_empty() || info.version == 0 {
            return Ok(None);
        }
        let version = Version { study: here.study_uid, version: info.version, manifest: Some(info.manifest_image) };
        let objects = version.manifest(self.archive)?.objects;
        let series = (!opened.whole).then(|| {
            let mut series = HashMap::new();
            for object in &objects {
                let name = || (self.series_names)(&here.study_uid, &object.series_uid);
                let is_open = || name().is_some_and(|name| opened.series.contains(&name));
                series.entry(object.series_uid).or_insert_with(is_open);
            }
            series
        });
        let objects = objects.into_iter().map(|object| (object.sop_instance_uid, object)).collect();
        Ok(Some(OpenStudy { study: here.study_uid, objects, series }))
    }
}

impl OpenStudy {
    /// The object that a request names. Whom one series is open to does not learn of others, not even that an instance is in one of them.
    fn object(&self, request: &ImagingDocumentRequest) -> Result<(Uid, &ManifestObject), RegistryErrorCode> {
        let unknown = RegistryErrorCode::DocumentUniqueIdError;
        let instance = Uid::new(&request.document.document_unique_id).map_err(|_| unknown)?;
        let object = self.objects.get(&instance).ok_or(unknown)?;
        let is_of_it = object.series_uid == request.series_instance_uid.as_str();
        match &self.series {
            None if !is_of_it => Err(RegistryErrorCode::ImagingRequestError),
            Some(open) if !is_of_it || open.get(&object.series_uid) != Some(&true) => Err(unknown),
            _ => Ok((self.study, object)),
        }
    }
}

/// An object as one of the transfer syntaxes that are accepted: as it is, or else in the first of them that can be made of it without loss.
fn deliverable(stored: Stored, accepted: &[Uid]) -> Result<Wanted, RegistryErrorCode> {
    if accepted.contains(&stored.transfer_syntax) {
        return Ok(Wanted::Object(Box::new(stored)));
    }
    let recoding = accepted.iter().find_map(|to| Recoding::new(&stored.transfer_syntax, to));
    recoding.map(|how| Wanted::Recoded(Box::new(stored), how)).ok_or(RegistryErrorCode::TransferSyntax)
}

fn undecided(error: Trouble) -> RegistryErrorCode {
    tracing::error!(error = %crate::chain_of(&error), "cannot decide about a document");
    error.code()
}

/// The object of a study as a version of it has it, if it can be had.
fn stored(archive: &Archive, study: &Uid, object: &ManifestObject) -> Result<Stored, Trouble> {
    let uid = &object.sop_instance_uid;
    let stored = archive.received_version(study, uid, &object.file_sha256)?;
    // One that another took the place of is not fetched again.
    let can_be_had =
        |stored: &Stored| Ok::<_, ArchiveError>(stored.path.is_some() || archive.current(stored)?.is_some());
    match stored {
        Some(stored) if can_be_had(&stored)? => Ok(stored),
        _ => Err(Trouble::NoObject(*uid)),
    }
}

impl Version {
    /// Its manifest. Blocks.
    fn manifest(&self, archive: &Archive) -> Result<Manifest, Trouble> {
        let images = archive.images_of(&self.study, self.version)?;
        let image = images.into_iter().find(|image| image.kind == ImageKind::Manifest);
        let image = image.filter(|image| self.manifest.is_none_or(|named| named == image.id));
        let image = image.ok_or(Trouble::NoManifest(self.version))?;
        let plain = archive.image(&image.id)?.and_then(|(_, plain)| plain);
        Ok(Manifest::decode(&plain.ok_or(Trouble::NoManifest(self.version))?)?)
    }

    /// The objects of this version. Blocks.
    fn objects(&self, archive: &Archive) -> Result<Vec<Stored>, Trouble> {
        let manifest = self.manifest(archive)?;
        manifest.objects.iter().map(|object| stored(archive, &self.study, object)).collect()
    }
}

impl Wanted {
    /// Gets the document ready: finds out its length.
    pub(super) async fn prepare(self, archive: Archive, retrieve: &Retrieve) -> Result<Document, Trouble> {
        match self {
            Self::Study(version) => archive_of(version, archive, retrieve).await,
            Self::Selection(version, source) => selection_of(version, source, archive).await,
            Self::Object(stored) => {
                let (kind, bytes) = (DocumentType::Dicom, stored.file_bytes);
                Ok(Document { kind, bytes, contents: Contents::Object(stored) })
            }
            Self::Recoded(stored, recoding) => {
                let bytes = length_of(&stored, recoding, retrieve).await?;
                Ok(Document { kind: DocumentType::Dicom, bytes, contents: Contents::Recoded(stored, recoding) })
            }
        }
    }

    /// The object whose opening tells before anything is promised whether this can be had.
    pub(super) fn probe(&self) -> Option<&Stored> {
        match self {
            Self::Object(stored) => Some(stored),
            // Of a study the archive's first is opened when it is made ready; the others are read for their length, or need no object.
            Self::Study(_) | Self::Selection(..) | Self::Recoded(..) => None,
        }
    }
}

/// Whether its first object can be had is found out before anything is promised.
async fn archive_of(version: Version, archive: Archive, retrieve: &Retrieve) -> Result<Document, Trouble> {
    let objects = tokio::task::spawn_blocking(move || version.objects(&archive));
    let objects = objects.await.map_err(std::io::Error::other)??;
    if let Some(first) = objects.first() {
        retrieve.open_file(first).await?;
    }
    let layout = Layout::new(objects.iter().map(|stored| stored.file_bytes).collect());
    Ok(Document { kind: DocumentType::Zip, bytes: layout.bytes(), contents: Contents::Archive(objects, layout) })
}

async fn selection_of(version: Version, source: Address, archive: Archive) -> Result<Document, Trouble> {
    let written = tokio::task::spawn_blocking(move || {
        let location = RepositoryUniqueId::at(source.into()).oid();
        let location = Uid::new(&location).map_err(std::io::Error::other)?;
        key_object_selection(&version.manifest(&archive)?, &location).ok_or(Trouble::Empty(version.version))
    });
    let written = Bytes::from(written.await.map_err(std::io::Error::other)??);
    Ok(Document { kind: DocumentType::Dicom, bytes: written.len() as u64, contents: Contents::Written(written) })
}

/// The length of an object in another transfer syntax, which is known after it was made once.
async fn length_of(stored: &Stored, recoding: Recoding, retrieve: &Retrieve) -> Result<u64, Trouble> {
    let mut file = recoding.open(retrieve, stored).await?;
    let counted = tokio::task::spawn_blocking(move || std::io::copy(&mut file, &mut std::io::sink()));
    Ok(counted.await.map_err(std::io::Error::other)?.map_err(RecodeError::of_reading)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::payload::pieces::PieceMap;
    use dicom_scp::TransferSyntax;

    fn object(series: &str, instance: &str) -> (Uid, ManifestObject) {
        let uid = |text: &str| Uid::new(text).unwrap();
        let object = ManifestObject {
            sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.2"),
            sop_instance_uid: uid(instance),
            series_uid: uid(series),
            transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
            file_bytes: 1,
            file_sha256: [1; 32],
            dataset_sha256: [2; 32],
            pixel_sha256: None,
            header: Vec::new(),
            image: B256::ZERO,
            epoch: 0,
            map: Some(PieceMap { pieces: 1, piece_bytes: 1, sealed_bytes: 1, root: B256::ZERO }),
            meta_bytes: 0,
            by_series: true,
            link: None,
        };
        (object.sop_instance_uid, object)
    }

    #[test]
    fn whom_one_series_is_open_to_learns_of_no_other() {
        let study = |series: Option<[(Uid, bool); 2]>| OpenStudy {
            study: Uid::literal("1.2"),
            objects: [object("1.2.1", "1.2.1.1"), object("1.2.2", "1.2.2.1")].into(),
            series: series.map(HashMap::from),
        };
        let whole = study(None);
        let first = study(Some([(Uid::literal("1.2.1"), true), (Uid::literal("1.2.2"), false)]));
        let ask = |study: &OpenStudy, series: &str, instance: &str| {
            let request = ImagingDocumentRequest {
                study_instance_uid: "1.2".into(),
                series_instance_uid: series.into(),
                document: DocumentRequest {
                    repository_unique_id: String::new(),
                    document_unique_id: instance.into(),
                    home_community_id: None,
                },
            };
            study.object(&request).map(|(_, object)| object.sop_instance_uid.to_string())
        };
        let (unknown, astray) =
            (Err(RegistryErrorCode::DocumentUniqueIdError), Err(RegistryErrorCode::ImagingRequestError));
        let found = |instance: &str| Ok(instance.to_owned());
        // Series and instance that are asked for; what the whole study says, and what the first series says.
        let rows = [
            ("1.2.1", "1.2.1.1", found("1.2.1.1"), found("1.2.1.1")),
            ("1.2.2", "1.2.2.1", found("1.2.2.1"), unknown.clone()),
            ("1.2.1", "1.2.2.1", astray.clone(), unknown.clone()),
            ("1.2.2", "1.2.1.1", astray.clone(), unknown.clone()),
            ("1.2.9", "1.2.1.1", astray, unknown.clone()),
            ("1.2.1", "1.2.1.9", unknown.clone(), unknown.clone()),
            ("1.2.1", "no uid", unknown.clone(), unknown),
        ];
        for (series, instance, of_whole, of_first) in rows {
            assert_eq!(ask(&whole, series, instance), of_whole, "{series} {instance}");
            assert_eq!(ask(&first, series, instance), of_first, "{series} {instance}");
        }
    }

    #[test]
    fn what_is_stored_goes_before_what_can_be_made_of_it() {
        let [explicit, implicit, big, jpeg, video] = ["1", "", "2", "4.50", "4.102"]
            .map(|tail| Uid::new(format!("1.2.840.10008.1.2.{tail}").trim_end_matches('.')).unwrap());
        let made = |from: &Uid, accepted: &[Uid]| {
            let stored = Stored {
                id: 1,
                origin: 0,
                study_uid: explicit,
                series_uid: explicit,
                sop_class: explicit,
                sop_instance: explicit,
                transfer_syntax: *from,
                meta_bytes: 0,
                file_bytes: 0,
                file_sha256: [0; 32],
                file_crc32: None,
                path: None,
            };
            match deliverable(stored, accepted) {
                Ok(Wanted::Object(_)) => Some(*from),
                Ok(Wanted::Recoded(_, how)) => Some(*how.to()),
                _ => None,
            }
        };
        assert_eq!(made(&explicit, &[implicit, explicit]), Some(explicit));
        assert_eq!(made(&explicit, &[jpeg, implicit]), Some(implicit));
        assert_eq!(made(&implicit, &[explicit, big]), Some(explicit));
        assert_eq!(made(&jpeg, &[implicit, jpeg]), Some(jpeg));
        assert_eq!(made(&jpeg, &[implicit, explicit]), Some(implicit));
        assert_eq!(made(&big, &[explicit, implicit]), Some(explicit));
        for (from, accepted) in [(video, [explicit, implicit]), (explicit, [jpeg, big])] {
            assert_eq!(made(&from, &accepted), None, "{from} as {accepted:?}");
        }
    }
}
