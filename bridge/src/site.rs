//! A site: archive, keys, ledger and retrieval together, and what the ops person can ask of them.
//!
//! The doors and the control socket work on a [`Site`]. Must not know wire protocols.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alloy::primitives::B256;
use dicom_scp::Uid;
use embedded_ledger::{CopyError, Head, LedgerReader};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::archive::{Archive, ArchiveError, FileMeta, Kept, StudySummary};
use crate::audit::{Audit, AuditStatus};
use crate::derive::{DeriveError, DerivedRow, Deriver, Owner};
use crate::erase::Eraser;
use crate::follow::Consents;
use crate::ipfs::{Ipfs, IpfsError};
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::{LedgerKind, LedgerSlot};
use crate::payload::manifest::Manifest;
use crate::promote::{Left, Words, WordsError};
use crate::publish::PublishStatus;
use crate::retrieve::{Retrieve, RetrieveError};

/// Longest wait for the IPFS node when somebody asks how things are.
const IPFS_ANSWER_MAX: Duration = Duration::from_secs(3);

/// Under another name until it is whole and durable.
fn write_copy(reader: &LedgerReader, out: &Path) -> Result<(Head, u64), CopyError> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut unfinished = tempfile::NamedTempFile::new_in(parent)?;
    let mut buffered = std::io::BufWriter::new(unfinished.as_file_mut());
    let head = reader.export(&mut buffered)?;
    buffered.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    let bytes = unfinished.as_file().metadata()?.len();
    unfinished.persist_noclobber(out).map_err(|error| error.error)?;
    std::fs::File::open(parent)?.sync_all()?;
    Ok((head, bytes))
}

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// Not a UID.
    #[error("\"{0}\" is not a UID")]
    NotAUid(String),
    /// Nothing here has this UID.
    #[error("no study or object here has the UID {0}")]
    Unknown(String),
    /// Eviction needs every byte on the ledger.
    #[error("study {uid} is not final on the ledger ({state}); its files are the only copy")]
    NotFinal {
        /// The study.
        uid: String,
        /// Its state in words.
        state: String,
    },
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The record of derived studies failed.
    #[error("derived studies")]
    Derived(#[from] DeriveError),
    /// What is left to say after a promotion cannot be read.
    #[error("promotion")]
    Words(#[from] WordsError),
    /// The files are the only copy that is certain: the IPFS node cannot be seen to keep another.
    #[error("the study's files stay")]
    Ipfs(#[from] IpfsError),
    /// The operator: the ledger is a network's, whose nodes keep it.
    #[error("this site has no embedded ledger")]
    NoEmbedded,
    /// The operator: the copy of the ledger cannot be written.
    #[error("{0}")]
    Copy(PathBuf, #[source] CopyError),
    /// The operator: there is no node to ask.
    #[error("the study is kept in IPFS, and ipfs.api_url is empty, so its files stay")]
    NoIpfs,
}

/// Where a study is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Kept here; publishing is switched off.
    Archived,
    /// Objects may still come.
    Receiving,
    /// Waiting for its turn.
    Queued,
    /// Definition, previews and manifest are going to the ledger.
    Publishing,
    /// It can be looked at; its objects are going to the ledger.
    Viewable,
    /// Every byte is on the ledger.
    Final,
    /// Another site's; its owner lets this site see it.
    Granted,
}

impl State {
    fn of(study: &StudySummary, publishing: bool) -> Self {
        if study.source.is_some() {
            return Self::Granted;
        }
        match (study.waiting, study.begun_ms, study.viewable_ms, study.final_ms) {
            _ if !publishing && study.begun_ms.is_none() => Self::Archived,
            (_, Some(_), None, None) => Self::Publishing,
            (_, Some(_), Some(_), None) => Self::Viewable,
            (Some(false), ..) => Self::Receiving,
            (Some(true), ..) => Self::Queued,
            (None, _, _, Some(_)) => Self::Final,
            (None, None, _, None) => Self::Archived,
        }
    }
}

/// One study in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StudyRow {
    /// StudyInstanceUID.
    pub uid: String,
    /// PatientName.
    pub patient_name: String,
    /// PatientID.
    pub patient_id: String,
    /// StudyDate.
    pub study_date: String,
    /// StudyDescription.
    pub description: String,
    /// Modalities.
    pub modalities: Vec<String>,
    /// Number of series.
    pub series: u64,
    /// Number of objects.
    pub instances: u64,
    /// Of which have a file here.
    pub local: u64,
    /// Bytes of all objects.
    pub bytes: u64,
    /// Where it is on its way.
    pub state: State,
    /// Manifest version planned last.
    pub version: u32,
    /// Pieces planned.
    pub pieces: u64,
    /// Pieces seen on the ledger.
    pub pieces_seen: u64,
    /// From the start of publishing until it could be looked at, in milliseconds.
    pub viewable_after_ms: Option<i64>,
    /// From the start of publishing until every byte was on the ledger, in milliseconds.
    pub final_after_ms: Option<i64>,
    /// Why it does not get on, if so.
    pub trouble: Option<String>,
}

impl StudyRow {
    fn of(study: StudySummary, parts: &Parts) -> Self {
        let status = parts.publisher.get().map(|status| status.borrow());
        let of_study = study.study_id.and_then(|id| status.as_ref()?.studies.get(&id)?.trouble.clone());
        let trouble = of_study.or_else(|| status.as_ref()?.trouble.clone());
        let after = |at: Option<i64>| at.zip(study.begun_ms).map(|(at, begun)| at - begun);
        Self {
            state: State::of(&study, parts.publishing),
            trouble: trouble.filter(|_| study.begun_ms.is_some() && study.final_ms.is_none()),
            viewable_after_ms: after(study.viewable_ms),
            final_after_ms: after(study.final_ms),
            uid: study.uid,
            patient_name: study.patient_name,
            patient_id: study.patient_id,
            study_date: study.study_date,
            description: study.description,
            modalities: study.modalities,
            series: study.series,
            instances: study.instances,
            local: study.local,
            bytes: study.bytes,
            version: study.version,
            pieces: study.pieces,
            pieces_seen: study.pieces_seen,
        }
    }
}

/// An image of a study on the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRow {
    /// Its name on the ledger.
    pub id: String,
    /// `object`, `preview` or `manifest`.
    pub kind: String,
    /// UID of what it is about.
    pub subject: String,
    /// Pieces.
    pub pieces: u32,
    /// Sealed bytes.
    pub bytes: u64,
    /// Merkle root over its pieces.
    pub root: String,
}

/// One study in full.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StudyReport {
    /// Its row.
    pub study: StudyRow,
    /// Its name on the ledger, once it has one.
    pub study_id: Option<String>,
    /// Account that owns it.
    pub owner: Option<String>,
    /// Images of its newest version.
    pub images: Vec<ImageRow>,
    /// What was derived from it, or what it was derived from.
    #[serde(default)]
    pub derivations: Vec<DerivedRow>,
}

/// What was found of one object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// SOPInstanceUID.
    pub sop_instance: String,
    /// The local file: `same`, `evicted`, `missing`, `damaged`; or of a file given, `same` or `differs`.
    pub file: String,
    /// The ledger's copy: `same`, `absent`, `at source` (the ledger has its digest, its source the bytes), `damaged: why`.
    pub ledger: String,
    /// Whether everything there is agrees and the ledger has it.
    pub proven: bool,
}

/// Totals and the ledger's health.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Studies in the index.
    pub studies: u64,
    /// Objects in the index.
    pub instances: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of files here.
    pub local_bytes: u64,
    /// Account of this source.
    pub source: String,
    /// The ledger, if one is connected.
    pub ledger: Option<LedgerHealth>,
    /// What is left to say of what owners said on the ledger before, while there is any.
    #[serde(default)]
    pub promotion: Option<Left>,
    /// The audit log, unless it is switched off.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
    /// The IPFS node, if there is one.
    #[serde(default)]
    pub ipfs: Option<IpfsHealth>,
}

/// The IPFS node's health.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IpfsHealth {
    /// What it calls its version, when it answers.
    pub version: Option<String>,
    /// What is wrong, if anything.
    pub trouble: Option<String>,
}

/// The ledger's health.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LedgerHealth {
    /// `embedded` or `network`.
    pub kind: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Height of the newest block seen.
    pub head: Option<u64>,
    /// Its age in seconds.
    pub head_age_s: Option<u64>,
    /// Transactions that are not final.
    pub pending: usize,
    /// What is wrong, if anything.
    pub trouble: Option<String>,
    /// The endpoint in use.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// The parts of a site. Cheap to clone.
#[derive(Clone)]
pub struct Site(Arc<Parts>);

/// The publisher's status, as soon as there is a publisher.
pub type PublisherSlot = Arc<OnceLock<watch::Receiver<PublishStatus>>>;

/// What a site is made of.
pub struct Parts {
    /// Objects and index.
    pub archive: Archive,
    /// Secrets.
    pub keyring: Keyring,
    /// The ledger, once it is connected.
    pub ledger: LedgerSlot,
    /// What the ledger says about consent.
    pub consents: Consents,
    /// Finds and opens objects.
    pub retrieve: Retrieve,
    /// Erases studies.
    pub eraser: Eraser,
    /// Derives studies.
    pub deriver: Deriver,
    /// What is left to say of what was said on a ledger before.
    pub words: Words,
    /// What the publisher says, once it runs.
    pub publisher: PublisherSlot,
    /// Whether studies are brought onto the ledger.
    pub publishing: bool,
    /// Whether this site asks for every study with a key of its own.
    pub key_per_study: bool,
    /// Account of this source.
    pub source: String,
    /// Where it is recorded who did what.
    pub audit: Audit,
    /// The site's IPFS node, if it has one.
    pub ipfs: Option<Ipfs>,
    /// The embedded ledger, where that is the site's, once it is open.
    pub embedded: OnceLock<LedgerReader>,
}

/// What a copy of the embedded ledger holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerCopy {
    /// The file.
    pub file: PathBuf,
    /// Number of its newest block.
    pub number: u64,
    /// Hash of that.
    pub hash: B256,
    /// Length of the file in bytes.
    pub bytes: u64,
}

impl Site {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The archive.
    #[must_use]
    pub fn archive(&self) -> &Archive {
        &self.0.archive
    }

    /// The OpenPGP certificate with which this site asks for another site's study.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn certificate_for(&self, study: B256) -> Result<Vec<u8>, KeyringError> {
        let Parts { keyring, key_per_study, .. } = &*self.0;
        if *key_per_study { keyring.study_certificate_or_new(study) } else { keyring.payload_certificate() }
    }

    /// Where it is recorded who did what.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// What the site is made of.
    pub(crate) fn parts(&self) -> &Parts {
        &self.0
    }

    /// What the ledger says about consent.
    #[must_use]
    pub fn consents(&self) -> &Consents {
        &self.0.consents
    }

    /// Finds and opens objects.
    #[must_use]
    pub fn retrieve(&self) -> &Retrieve {
        &self.0.retrieve
    }

    /// Every study.
    ///
    /// # Errors
    /// [`SiteError::Archive`].
    pub fn studies(&self) -> Result<Vec<StudyRow>, SiteError> {
        let all = self.0.archive.summaries()?;
        Ok(all.into_iter().map(|study| StudyRow::of(study, &self.0)).collect())
    }

    /// One study in full.
    ///
    /// # Errors
    /// [`SiteError::Unknown`] and others.
    pub fn study(&self, uid: &str) -> Result<StudyReport, SiteError> {
        let study_uid = parse(uid)?;
        let row = self.row(&study_uid)?;
        let publication = self.0.archive.publication(&study_uid)?;
        let study_id = publication.as_ref().map(|p| p.study_id);
        let claimed = study_id.and_then(|id| self.0.consents.study(id).ok().flatten()).map(|s| s.owner.to_string());
        let derivation = self.0.deriver.derived().of_derived(&study_uid)?;
        let research = derivation.and_then(|known| match known.owner() {
            Owner::Research(account) => Some(account.to_string()),
            Owner::Custody | Owner::Elsewhere(_) => None,
        });
        let claimed = claimed.or(research);
        let owner = match self.0.keyring.study(&study_uid)? {
            _ if claimed.is_some() => claimed,
            Some(keys) => Some(self.0.keyring.owner(keys.owner_index)?.address().to_string()),
            None => None,
        };
        let mut images = Vec::new();
        if let Some(publication) = &publication {
            for image in self.0.archive.images_of(&study_uid, publication.version)? {
                images.push(ImageRow {
                    id: image.id.to_string(),
                    kind: format!("{:?}", image.kind).to_lowercase(),
                    subject: image.subject.to_string(),
                    pieces: image.map.pieces,
                    bytes: image.map.sealed_bytes,
                    root: image.map.root.to_string(),
                });
            }
        }
        let derivations = self.0.deriver.rows_of(&study_uid)?;
        let study_id = study_id.map(|id| id.to_string());
        Ok(StudyReport { study: row, study_id, owner, images, derivations })
    }

    /// Removes the files of a study whose every byte is on the ledger. Returns files and bytes removed.
    ///
    /// # Errors
    /// [`SiteError::NotFinal`] when the files are the only copy.
    pub async fn evict(&self, uid: &str) -> Result<(u64, u64), SiteError> {
        let study_uid = parse(uid)?;
        // What was fetched a moment ago goes too.
        self.0.retrieve.settle().await;
        let row = self.row(&study_uid)?;
        if !matches!(row.state, State::Final | State::Granted) {
            let state = format!("{:?}", row.state).to_lowercase();
            return Err(SiteError::NotFinal { uid: uid.to_owned(), state });
        }
        let _alone = match &self.0.ipfs {
            Some(ipfs) => Some(ipfs.alone().await),
            None => None,
        };
        let proven = self.proven_in_ipfs(&study_uid).await?;
        Ok(self.0.archive.evict(&study_uid, proven).await?)
    }

    /// Writes a copy of the embedded ledger into a file that must not exist; whole when this returns.
    ///
    /// # Errors
    /// [`SiteError::NoEmbedded`], [`SiteError::Copy`].
    pub async fn export_ledger(&self, out: PathBuf) -> Result<LedgerCopy, SiteError> {
        let reader = self.0.embedded.get().cloned().ok_or(SiteError::NoEmbedded)?;
        let file = out.clone();
        let written = tokio::task::spawn_blocking(move || write_copy(&reader, &file)).await;
        let copy = |error| SiteError::Copy(out.clone(), error);
        let (head, bytes) = written.map_err(|e| copy(std::io::Error::other(e).into()))?.map_err(copy)?;
        Ok(LedgerCopy { file: out, number: head.number, hash: head.hash, bytes })
    }

    /// Images of a study's objects in IPFS. A file is given up for a copy there only when this site's node was just seen to keep that copy, every
    /// byte of it; what it has instead is put there again.
    async fn proven_in_ipfs(&self, study_uid: &Uid) -> Result<Vec<B256>, SiteError> {
        let objects = self.0.archive.in_ipfs(study_uid)?;
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let ipfs = self.0.ipfs.as_ref().ok_or(SiteError::NoIpfs)?;
        let mut failed = None;
        for one in &objects {
            match ipfs.prove(one.link.cid, one.link.sealed_bytes).await {
                Ok(()) => {}
                Err(error @ (IpfsError::Differs(_) | IpfsError::Unpinned(_) | IpfsError::Said(_))) => {
                    self.0.archive.record_kept(one.image, Kept::Unsound).await?;
                    failed = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(objects.iter().map(|one| one.image).collect()),
        }
    }

    /// What the IPFS node says of itself, if there is one, soon.
    async fn ipfs_health(&self) -> Option<IpfsHealth> {
        let asked = tokio::time::timeout(IPFS_ANSWER_MAX, self.0.ipfs.as_ref()?.version()).await;
        Some(match asked {
            Ok(Ok(version)) => IpfsHealth { version: Some(version), trouble: None },
            Ok(Err(error)) => IpfsHealth { version: None, trouble: Some(error.to_string()) },
            Err(_) => IpfsHealth { version: None, trouble: Some("the IPFS node does not answer in time".to_owned()) },
        })
    }

    /// Compares every object of a study, or one object, with the ledger and with its file.
    ///
    /// # Errors
    /// [`SiteError::Unknown`] and others; what is wrong with an object is in its verdict.
    pub async fn verify(&self, uid: &str) -> Result<Vec<Verdict>, SiteError> {
        let parsed = parse(uid)?;
        let mut objects = self.0.archive.instances_of(&parsed)?;
        if objects.is_empty() {
            objects.extend(self.0.archive.instance(&parsed)?);
        }
        if objects.is_empty() {
            return Err(SiteError::Unknown(uid.to_owned()));
        }
        let mut verdicts = Vec::with_capacity(objects.len());
        let mut listed = None;
        for stored in &objects {
            if self.0.archive.is_at_source(stored.id)? {
                verdicts.push(self.verify_at_source(stored, &mut listed).await);
                continue;
            }
            let (archive, local) = (self.0.archive.clone(), stored.clone());
            let local = tokio::task::spawn_blocking(move || {
                archive.open_file(&local)?.map(|mut file| digest(&mut file)).transpose()
            });
            let file = match local.await {
                Ok(Ok(None)) if stored.path.is_none() => "evicted",
                Ok(Ok(None)) => "missing",
                Ok(Ok(Some(digest))) if digest == stored.file_sha256 => "same",
                _ => "damaged",
            };
            let ledger = self.ledger_verdict(stored).await;
            verdicts.push(Verdict {
                sop_instance: stored.sop_instance.to_string(),
                proven: ledger == "same" && matches!(file, "same" | "evicted"),
                file: file.to_owned(),
                ledger,
            });
        }
        Ok(verdicts)
    }

    /// An object whose bytes are on no ledger: the manifest there has its digest. One of another site is fetched from there. `listed` keeps
    /// the study's manifest between objects.
    async fn verify_at_source(&self, stored: &crate::archive::Stored, listed: &mut Option<Manifest>) -> Verdict {
        let file = match self.0.retrieve.open_file(stored).await {
            Ok(_) => "same".to_owned(),
            Err(RetrieveError::Archive(ArchiveError::Corrupt(_))) => "damaged".to_owned(),
            Err(RetrieveError::Nowhere(_)) => "missing".to_owned(),
            Err(error) => crate::chain_of(&error),
        };
        let ledger = self.digest_verdict(stored, listed).await;
        let proven = file == "same" && ledger == "at source";
        Verdict { sop_instance: stored.sop_instance.to_string(), file, ledger, proven }
    }

    /// What the manifest on the ledger says of an object that is not there itself.
    async fn digest_verdict(&self, stored: &crate::archive::Stored, listed: &mut Option<Manifest>) -> String {
        match self.listed_digest(stored, listed).await {
            Ok(Some(digest)) if digest == stored.file_sha256 => "at source".to_owned(),
            Ok(Some(_)) => "damaged: another digest".to_owned(),
            Ok(None) | Err(RetrieveError::Nowhere(_)) => "absent".to_owned(),
            Err(error) => format!("damaged: {}", crate::chain_of(&error)),
        }
    }

    /// SHA-256 of an object as the study's manifest on the ledger lists it.
    async fn listed_digest(
        &self,
        stored: &crate::archive::Stored,
        listed: &mut Option<Manifest>,
    ) -> Result<Option<[u8; 32]>, RetrieveError> {
        let manifest = match listed {
            Some(manifest) => manifest,
            none => none.insert(match stored.origin {
                0 => self.0.retrieve.manifest_on_ledger(&stored.study_uid).await?,
                // It was compared with the ledger when it came.
                _ => {
                    let encoded = self.0.archive.foreign_manifest(stored)?;
                    Manifest::decode(&encoded.ok_or_else(|| RetrieveError::Nowhere(stored.sop_instance.to_string()))?)?
                }
            }),
        };
        let entry = manifest.objects.iter().find(|object| object.sop_instance_uid == stored.sop_instance);
        Ok(entry.map(|entry| entry.file_sha256))
    }

    /// Compares the digest of a file's data set with what this site received and with the ledger.
    ///
    /// # Errors
    /// [`SiteError::Unknown`] and others.
    pub async fn verify_file(&self, sop_instance: &str, dataset_sha256: &str) -> Result<Verdict, SiteError> {
        let uid = parse(sop_instance)?;
        let unknown = || SiteError::Unknown(sop_instance.to_owned());
        let stored = self.0.archive.instance(&uid)?.ok_or_else(unknown)?;
        let manifest = match stored.origin {
            0 => self.0.archive.manifest(&stored.study_uid)?,
            _ => self.0.archive.foreign_manifest(&stored)?,
        };
        let manifest = manifest.and_then(|bytes| Manifest::decode(&bytes).ok());
        let entry = manifest.as_ref().and_then(|m| m.objects.iter().find(|o| o.sop_instance_uid == uid));
        let same = entry.is_some_and(|entry| hex::encode(entry.dataset_sha256) == dataset_sha256.to_lowercase());
        let ledger = match self.0.archive.is_at_source(stored.id)? {
            true => self.digest_verdict(&stored, &mut None).await,
            false => self.ledger_verdict(&stored).await,
        };
        Ok(Verdict {
            sop_instance: sop_instance.to_owned(),
            proven: same && matches!(ledger.as_str(), "same" | "at source"),
            file: if same { "same" } else { "differs" }.to_owned(),
            ledger,
        })
    }

    async fn ledger_verdict(&self, stored: &crate::archive::Stored) -> String {
        match self.0.retrieve.digest_on_ledger(stored).await {
            Ok((digest, bytes)) if digest == stored.file_sha256 && bytes == stored.file_bytes => "same".to_owned(),
            Ok(_) => "damaged: other bytes".to_owned(),
            Err(RetrieveError::Nowhere(_)) => "absent".to_owned(),
            Err(error) => format!("damaged: {}", crate::chain_of(&error)),
        }
    }

    /// Totals and the ledger's health.
    ///
    /// # Errors
    /// [`SiteError::Archive`].
    pub async fn status(&self) -> Result<SiteStatus, SiteError> {
        let totals = self.0.archive.totals()?;
        let ledger = match self.0.ledger.get() {
            None => None,
            Some(ledger) => {
                let status = ledger.status().await;
                Some(LedgerHealth {
                    kind: match status.kind {
                        LedgerKind::Embedded => "embedded".to_owned(),
                        LedgerKind::Network => "network".to_owned(),
                    },
                    chain_id: status.chain_id,
                    head: status.head,
                    head_age_s: status.head_age_s,
                    pending: status.pending,
                    trouble: status.trouble,
                    endpoint: status.endpoint,
                })
            }
        };
        Ok(SiteStatus {
            studies: totals.studies,
            instances: totals.instances,
            bytes: totals.bytes,
            local_bytes: totals.local_bytes,
            source: self.0.source.clone(),
            ledger,
            promotion: Some(self.0.words.left()?).filter(|left| left.words > 0),
            audit: self.0.audit.status(),
            ipfs: self.ipfs_health().await,
        })
    }

    /// The row of a study that was found in the archive.
    pub(crate) fn row_of(&self, study: StudySummary) -> StudyRow {
        StudyRow::of(study, &self.0)
    }

    fn row(&self, study_uid: &Uid) -> Result<StudyRow, SiteError> {
        let unknown = || SiteError::Unknown(study_uid.to_string());
        let summary = self.0.archive.summary(study_uid.as_str())?.ok_or_else(unknown)?;
        Ok(StudyRow::of(summary, &self.0))
    }
}

/// SOP Instance UID and SHA-256 of the data set of a Part 10 file.
///
/// # Errors
/// When the file cannot be read or is no DICOM file.
pub fn describe_file(path: &std::path::Path) -> Result<(Uid, [u8; 32]), crate::archive::Part10Error> {
    let mut file = std::fs::File::open(path)?;
    let (meta, offset) = FileMeta::read(&mut file)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
    Ok((meta.sop_instance, digest(&mut file)?))
}

fn digest(source: &mut impl std::io::Read) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut run = vec![0; 256 * 1024];
    loop {
        match source.read(&mut run)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&run[..count]),
        }
    }
}

fn parse(uid: &str) -> Result<Uid, SiteError> {
    Uid::new(uid).map_err(|_| SiteError::NotAUid(uid.to_owned()))
}
