//! The other side: asks another site for a study by ITI-43 and keeps the archive as a file.
//!
//! What comes is compared with the study's manifest where this site has it.

use std::path::{Path, PathBuf};

use alloy::primitives::{B256, hex};
use dicom_scp::Uid;
use ihe_retrieve::receiver::{ResponseError, ResponsePiece};
use ihe_retrieve::request::{DocumentRequest, Retrieve as Asked};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::ask::{AskError, Asker, Taker};
use crate::archive::{ArchiveError, ForeignMode};
use crate::follow::FollowError;
use crate::payload::manifest::{Manifest, ManifestError};
use crate::site::Site;
use crate::zip;

/// Why a study was not fetched, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The asker: this is no study.
    #[error(
        "\"{0}\" is neither a study of another site that is known here nor a study id on the ledger (64 hexadecimal digits)"
    )]
    Study(String),
    /// The asker: this is no source.
    #[error("\"{0}\" is not the account of a source")]
    Source(String),
    /// The asker: the file is there, or cannot be written.
    #[error("{0}")]
    File(PathBuf, #[source] std::io::Error),
    /// The source was not asked, or did not answer as it should.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What came is not what the manifest lists; nothing was kept.
    #[error("what came is not what the manifest of the study lists; nothing was kept")]
    Differs,
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The consents.
    #[error("the consents")]
    Consents(#[from] FollowError),
    /// The manifest here cannot be read.
    #[error("the manifest")]
    Manifest(#[from] ManifestError),
}

/// What is to be fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// The study's id on the ledger, or its StudyInstanceUID where it is known here.
    pub study: String,
    /// Account of the source; by default the one that defined the study.
    pub from: Option<String>,
    /// The file, which must not be there yet.
    pub out: PathBuf,
}

/// What was fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetched {
    /// The document.
    pub document: String,
    /// The source that sent it.
    pub source: String,
    /// Where it is.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Objects in it that were compared with the manifest, each equal; none if this site has no manifest of the study.
    pub proven: Option<u64>,
}

/// Fetches a study.
///
/// # Errors
/// [`FetchError`]; no file is left then.
pub async fn fetch(site: &Site, ask: Ask) -> Result<Fetched, FetchError> {
    let study = study_id(site, &ask.study)?;
    let unknown = || FetchError::Study(ask.study.clone());
    let source = match &ask.from {
        Some(given) => given.parse().map_err(|_| FetchError::Source(given.clone()))?,
        None => site.consents().study(study)?.ok_or_else(unknown)?.source,
    };
    let asker = Asker::new(site.parts());
    let endpoint = asker.endpoint(source)?;
    let manifest = manifest(site, study)?;
    let version = manifest.as_ref().map_or_else(String::new, |manifest| format!("^{}", manifest.version));
    let wanted = DocumentRequest {
        repository_unique_id: format!("{source:#x}"),
        document_unique_id: format!("{}{version}", hex::encode(study)),
        home_community_id: None,
    };
    let part = Part::create(&ask.out).await?;
    let mut taker = ToFile { file: part.open().await?, part: &part, bytes: 0 };
    asker.ask(&endpoint, &Asked::Documents(vec![wanted.clone()]), &mut taker).await?;
    let bytes = taker.finish().await?;
    let proven = match manifest {
        None => None,
        Some(manifest) => Some(prove(&part.path, manifest).await?),
    };
    part.keep(&ask.out)?;
    let (document, source) = (wanted.document_unique_id, source.to_string());
    Ok(Fetched { document, source, file: ask.out, bytes, proven })
}

fn study_id(site: &Site, given: &str) -> Result<B256, FetchError> {
    if let Ok(id) = given.parse::<B256>() {
        return Ok(id);
    }
    let unknown = || FetchError::Study(given.to_owned());
    let uid = Uid::new(given).map_err(|_| unknown())?;
    let objects = site.archive().instances_of(&uid)?;
    let foreign = objects.iter().find(|stored| stored.origin != 0).ok_or_else(unknown)?;
    Ok(site.archive().foreign_of(foreign)?.ok_or_else(unknown)?.study_id)
}

/// The manifest of a study of another site whose every object this one may see.
fn manifest(site: &Site, study: B256) -> Result<Option<Manifest>, FetchError> {
    let archive = site.archive();
    let known = archive.foreign_study(study)?.filter(|known| !known.hidden && known.version > 0);
    let whole = known.filter(|known| known.window.mode == ForeignMode::Everything && known.window.series.is_zero());
    if whole.is_none() {
        return Ok(None);
    }
    let objects = archive.foreign_instances(study)?;
    let Some(encoded) = objects.first().map(|stored| archive.foreign_manifest(stored)).transpose()?.flatten() else {
        return Ok(None);
    };
    Ok(Some(Manifest::decode(&encoded)?).filter(|manifest| manifest.series.is_none()))
}

/// Writes the one document of an answer as it comes.
struct ToFile<'a> {
    file: File,
    part: &'a Part,
    bytes: u64,
}

impl Taker for ToFile<'_> {
    type Error = FetchError;

    async fn take(&mut self, piece: ResponsePiece<'_>) -> Result<(), FetchError> {
        match piece {
            ResponsePiece::Data(data) => {
                self.file.write_all(data).await.map_err(|e| self.part.failed(e))?;
                self.bytes += data.len() as u64;
            }
            ResponsePiece::Response(said) => {
                if let Some(error) = said.errors.into_iter().next() {
                    return Err(AskError::Refused { code: error.code, context: error.context }.into());
                }
                if said.documents.len() != 1 {
                    return Err(AskError::Response(ResponseError::Parts).into());
                }
            }
            ResponsePiece::Document(_) | ResponsePiece::DocumentEnd | ResponsePiece::End => {}
        }
        Ok(())
    }
}

impl ToFile<'_> {
    /// Length of what was written, which is durable then.
    async fn finish(self) -> Result<u64, FetchError> {
        self.file.sync_all().await.map_err(|e| self.part.failed(e))?;
        Ok(self.bytes)
    }
}

/// Compares every object with the manifest, in its order.
async fn prove(file: &Path, manifest: Manifest) -> Result<u64, FetchError> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || zip::digests(&mut std::fs::File::open(path)?));
    let digests = read.await.map_err(|_| FetchError::Differs)?.map_err(|_| FetchError::Differs)?;
    let listed = manifest.objects.iter().map(|object| object.file_sha256);
    if digests.iter().copied().eq(listed) { Ok(digests.len() as u64) } else { Err(FetchError::Differs) }
}

/// A file being filled beside the one that it will be. Dropped before it is kept, it leaves nothing.
struct Part {
    path: PathBuf,
}

impl Part {
    async fn create(out: &Path) -> Result<Self, FetchError> {
        let fail = |e| FetchError::File(out.to_owned(), e);
        if tokio::fs::try_exists(out).await.map_err(fail)? {
            return Err(fail(std::io::ErrorKind::AlreadyExists.into()));
        }
        let mut path = out.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let mut options = tokio::fs::OpenOptions::new();
        let created = options.write(true).create_new(true).mode(0o600).open(&path).await;
        created.map_err(|e| FetchError::File(path.clone(), e))?;
        Ok(Self { path })
    }

    async fn open(&self) -> Result<File, FetchError> {
        tokio::fs::OpenOptions::new().write(true).open(&self.path).await.map_err(|e| self.failed(e))
    }

    fn failed(&self, error: std::io::Error) -> FetchError {
        FetchError::File(self.path.clone(), error)
    }

    fn keep(self, out: &Path) -> Result<(), FetchError> {
        std::fs::rename(&self.path, out).map_err(|e| FetchError::File(out.to_owned(), e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After it was kept there is nothing at this path.
        let _ = std::fs::remove_file(&self.path);
    }
}
