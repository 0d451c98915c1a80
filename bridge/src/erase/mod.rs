//! Erases a study: its keys and every copy here, its life on the ledger, and a certificate of what was done.
//!
//! The order, each step durable before the next and safe to repeat: the study is marked and with that nobody's
//! ([`Archive::begin_erasure`]); its salt and session keys are destroyed, from when on the ciphertext opens to nobody who got no
//! key before; spooled ciphertext, files, rows and the intake log's copies are overwritten; the owner's word ends
//! the study on the ledger; the certificate is signed and kept. Whatever was begun goes on at the next start, and as often as needed
//! while the ledger is away. Must not know the command line, the control socket or wire protocols.

mod certificate;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use contracts::messages;
use dicom_scp::Uid;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, Erasure, Holdings};
use crate::assemble::Assembler;
use crate::decide::{Action, Pending, PendingError};
use crate::derive::{DeriveError, Derived};
use crate::follow::{Consents, FollowError, Mode, What};
use crate::keyring::{Keyring, KeyringError, write_secret};
use crate::ledger::{Ledger, LedgerError, LedgerSlot, Signer, SignerError, Word};
use crate::retrieve::Retrieve;
use certificate::Said;
pub use certificate::{Certificate, CheckError, Destroyed, Holder, Remains, SignedCertificate, Tombstone};

/// Directory of the certificates, below the data directory.
pub const CERTIFICATES: &str = "certificates";
/// How long a word signed with a key in custody is good.
const CUSTODY_S: u64 = 3600;
/// How long the followed state is waited for.
const SEEN_WITHIN: Duration = Duration::from_secs(20);
/// Between attempts to finish what was begun.
const RETRY: Duration = Duration::from_secs(10);

/// Why a study is not erased, or not yet, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The asker: there is no such study.
    #[error("no study \"{0}\" was received here")]
    Unknown(String),
    /// The study's owner: only that key can end it.
    #[error(
        "study {study} belongs to {owner}, whose key is not here: make a file with --unsigned, sign it with that key, and give it with --signed"
    )]
    OwnersKey {
        /// The study.
        study: B256,
        /// Its owner.
        owner: Address,
    },
    /// The asker: what was derived from it is not erased with it.
    #[error(
        "{0} studies were derived from it: erase them too (--with-derived), or let them stay and have nothing here lead from one to the other (--keep-derived)"
    )]
    HasDerived(usize),
    /// Nobody: it is in the middle of it.
    #[error(
        "a study is being derived from it, and not all of that is stored: try again, or erase it too (--with-derived)"
    )]
    Deriving,
    /// The record of derived studies failed.
    #[error("the record of derived studies")]
    Derived(#[from] DeriveError),
    /// The asker: the signed action is about something else.
    #[error("the action does not end study {0}")]
    OtherAction(B256),
    /// The asker: the signed action is not good.
    #[error("the action")]
    Pending(#[from] PendingError),
    /// Nobody: what is still to be said on the ledger is said when that answers.
    #[error("everything here is destroyed; {0}")]
    Later(String),
    /// The ledger did not do it.
    #[error("everything here is destroyed; the ledger")]
    Ledger(#[from] LedgerError),
    /// The database of consents failed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The certificate could not be signed.
    #[error("signing the certificate: {0}")]
    Certifying(String),
    /// The certificate could not be signed.
    #[error("signing the certificate")]
    Signing(#[from] SignerError),
    /// The owner's word could not be signed.
    #[error("signing with the key in custody")]
    Custody(#[from] alloy::signers::Error),
    /// The certificate could not be kept.
    #[error("certificate {0}")]
    Io(PathBuf, #[source] std::io::Error),
    /// What was remembered of an erasure cannot be read; a later version wrote it.
    #[error("what was remembered of an erasure")]
    Facts(#[from] serde_json::Error),
}

/// What signs for the source itself, once it answers; words why not.
pub type Certifier = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Signer, String>> + Send>> + Send + Sync>;

/// Asks for a study to be erased.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// StudyInstanceUID, or the study's id on the ledger. Of an erasure that waits for the ledger only the latter is left.
    pub study: String,
    /// Name the StudyInstanceUID on the certificate.
    pub with_uid: bool,
    /// The owner's word, where the owner's key is not here.
    pub signed: Option<Box<Pending>>,
    /// Let what was derived from it stay, and forget that it was.
    #[serde(default)]
    pub keep_derived: bool,
}

/// What became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The certificate, when all is done.
    pub certificate: Option<SignedCertificate>,
    /// Where this site keeps it.
    pub file: Option<PathBuf>,
    /// What is waited for, when everything here is destroyed and the ledger does not say so yet.
    pub waits_for: Option<String>,
}

/// What an erasure works on.
pub struct Parts {
    /// Objects and index.
    pub archive: Archive,
    /// Keys.
    pub keyring: Keyring,
    /// Makes versions, which must not be made meanwhile.
    pub assembler: Assembler,
    /// Fetches objects.
    pub retrieve: Retrieve,
    /// What the ledger says.
    pub consents: Consents,
    /// What was derived from what.
    pub derived: Derived,
    /// The ledger, once it is connected.
    pub ledger: LedgerSlot,
    /// Signs for the source.
    pub signer: Certifier,
    /// Where certificates are kept.
    pub certificates: PathBuf,
}

/// What is remembered of an erasure until its certificate is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    begun_s: u64,
    owner_index: Option<u32>,
    session_keys: u32,
    holdings: Holdings,
    study_uid: Option<String>,
    signed: Option<Box<Pending>>,
    /// Whether nothing of the study is left here.
    emptied: bool,
}

/// Erases studies. Cheap to clone.
#[derive(Clone)]
pub struct Eraser(Arc<Inner>);

struct Inner {
    parts: Parts,
    /// One erasure at a time.
    one: tokio::sync::Mutex<()>,
    begun: Notify,
}

impl Eraser {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner { parts, one: tokio::sync::Mutex::default(), begun: Notify::new() }))
    }

    /// Destroys the keys of every study whose erasure was begun. A start does this before anything else.
    ///
    /// # Errors
    /// [`EraseError`].
    pub fn destroy_keys(&self) -> Result<(), EraseError> {
        for erasure in self.0.parts.archive.erasures()? {
            self.destroy_keys_of(&serde_json::from_str(&erasure.facts)?)?;
        }
        Ok(())
    }

    fn destroy_keys_of(&self, facts: &Facts) -> Result<(), EraseError> {
        Ok(facts.owner_index.map_or(Ok(()), |index| self.0.parts.keyring.erase_study(index))?)
    }

    /// Erases a study, or goes on with it.
    ///
    /// # Errors
    /// [`EraseError`]. Once the study was marked, what is left to do is done by [`Eraser::run`].
    pub async fn erase(&self, ask: Ask) -> Result<Outcome, EraseError> {
        // A command that is given up must not leave half of this to the next look.
        let this = self.clone();
        let work = tokio::spawn(async move {
            let _one = this.0.one.lock().await;
            let erasure = match this.unfinished(&ask.study)? {
                Some(erasure) => this.take_word(erasure, ask).await?,
                None => this.begin(ask).await?,
            };
            match this.finish(erasure).await {
                Ok((certificate, file)) => {
                    Ok(Outcome { certificate: Some(certificate), file: Some(file), waits_for: None })
                }
                Err(EraseError::Later(words)) => {
                    this.0.begun.notify_one();
                    Ok(Outcome { certificate: None, file: None, waits_for: Some(words) })
                }
                Err(error) => {
                    this.0.begun.notify_one();
                    Err(error)
                }
            }
        });
        work.await.map_err(|_| EraseError::Archive(ArchiveError::Closed))?
    }

    /// Finishes what was begun, as often as needed, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let left = tokio::select! {
                () = stop.cancelled() => return,
                left = self.finish_all() => left,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.begun.notified() => {}
                () = tokio::time::sleep(RETRY), if left => {}
            }
        }
    }

    /// Whether something is left to do.
    async fn finish_all(&self) -> bool {
        let _one = self.0.one.lock().await;
        let mut left = false;
        let erasures = self.0.parts.archive.erasures().unwrap_or_else(|error| {
            tracing::error!(error = %crate::chain_of(&error), "erasures cannot be looked for");
            left = true;
            Vec::new()
        });
        for erasure in erasures {
            if let Err(error) = self.finish(erasure).await {
                tracing::warn!(error = %crate::chain_of(&error), "an erasure is not finished yet");
                left = true;
            }
        }
        left
    }

    fn unfinished(&self, study: &str) -> Result<Option<Erasure>, EraseError> {
        for erasure in self.0.parts.archive.erasures()? {
            let facts: Facts = serde_json::from_str(&erasure.facts)?;
            let by_id = facts.holdings.study_id.is_some() && facts.holdings.study_id == study.parse().ok();
            if by_id || erasure.study_uid.is_some_and(|uid| uid.as_str() == study) {
                return Ok(Some(erasure));
            }
        }
        Ok(None)
    }

    /// A word that was overtaken on the ledger is replaced by a newer one.
    async fn take_word(&self, mut erasure: Erasure, ask: Ask) -> Result<Erasure, EraseError> {
        let Some(signed) = ask.signed else { return Ok(erasure) };
        let mut facts: Facts = serde_json::from_str(&erasure.facts)?;
        if let Some(study) = facts.holdings.study_id {
            self.check_word(study, &signed)?;
        }
        facts.signed = Some(signed);
        erasure.facts = serde_json::to_string(&facts)?;
        self.0.parts.archive.amend_erasure(erasure.id, erasure.facts.clone()).await?;
        Ok(erasure)
    }

    async fn begin(&self, ask: Ask) -> Result<Erasure, EraseError> {
        let Parts { archive, keyring, assembler, derived, .. } = &self.0.parts;
        let unknown = || EraseError::Unknown(ask.study.clone());
        let uid = match ask.study.parse::<B256>() {
            Ok(study_id) => archive.study_of_id(&study_id)?,
            Err(_) => Uid::new(&ask.study).ok(),
        };
        let uid = uid.ok_or_else(unknown)?;
        // From here until the keys are gone nothing new is made of the study.
        let (_alone, _pause) = (derived.pause().await, assembler.pause().await);
        self.check_derived(&uid, ask.keep_derived)?;
        let holdings = archive.holdings(&uid)?.ok_or_else(unknown)?;
        let keys = keyring.study(&uid)?;
        let owner_index = keys.as_ref().map(|keys| keys.owner_index);
        self.check_owner(&holdings, owner_index, ask.signed.as_deref())?;
        let facts = Facts {
            begun_s: now_s(),
            owner_index,
            session_keys: keys.map_or(0, |keys| keys.epoch() + 1),
            holdings,
            study_uid: ask.with_uid.then(|| uid.to_string()),
            signed: ask.signed.clone(),
            emptied: false,
        };
        serde_json::to_string(&facts)?;
        let of = facts.clone();
        let begun = archive.begin_erasure(&uid, move |holdings| {
            let facts = Facts { holdings: holdings.clone(), ..of };
            // It was written a moment ago with other counts.
            serde_json::to_string(&facts).unwrap_or_default()
        });
        let erasure = begun.await?.ok_or_else(unknown)?;
        self.destroy_keys_of(&facts)?;
        self.forget_derived(&uid)?;
        tracing::info!(study_id = ?facts.holdings.study_id, "the erasure of a study was begun; its keys are destroyed");
        Ok(erasure)
    }

    /// Whether the asker knows that something was derived from the study.
    fn check_derived(&self, study: &Uid, keep: bool) -> Result<(), EraseError> {
        let Parts { archive, derived, .. } = &self.0.parts;
        let mut living = 0;
        for known in derived.of_parent(study)?.iter().filter(|known| !known.is_ended()) {
            let Some(copy) = known.derived() else { continue };
            // What was begun and has no object yet is nothing.
            if archive.derivable(copy)?.is_empty() {
                continue;
            }
            if known.is_storing() {
                return Err(EraseError::Deriving);
            }
            living += 1;
        }
        if living == 0 || keep { Ok(()) } else { Err(EraseError::HasDerived(living)) }
    }

    /// Nothing here leads from the study to what was derived from it; and if it was derived itself, it is not derived again.
    fn forget_derived(&self, study: &Uid) -> Result<(), EraseError> {
        self.0.parts.derived.forget_parent(study)?;
        Ok(self.0.parts.derived.end(study)?)
    }

    /// Whether the owner's word can be had, before anything is destroyed.
    fn check_owner(
        &self,
        holdings: &Holdings,
        owner_index: Option<u32>,
        signed: Option<&Pending>,
    ) -> Result<(), EraseError> {
        let Parts { keyring, consents, .. } = &self.0.parts;
        let Some(study) = holdings.study_id else { return Ok(()) };
        if let Some(signed) = signed {
            self.check_word(study, signed)?;
        }
        let Some(known) = consents.study(study)?.filter(|known| !known.tombstoned) else { return Ok(()) };
        let custody = owner_index.map(|index| keyring.custody_key(index, known.owner)).transpose()?;
        if custody.flatten().is_some() || signed.is_some_and(|signed| signed.signer == known.owner) {
            return Ok(());
        }
        Err(EraseError::OwnersKey { study, owner: known.owner })
    }

    fn check_word(&self, study: B256, signed: &Pending) -> Result<(), EraseError> {
        if !matches!(signed.action, Action::Tombstone { .. }) || signed.study() != study {
            return Err(EraseError::OtherAction(study));
        }
        let ledger = self.ledger()?;
        signed.checked_signature(ledger.chain_id(), signed.action.word().contract(ledger.addresses()))?;
        Ok(())
    }

    fn ledger(&self) -> Result<&Ledger, EraseError> {
        self.0.parts.ledger.get().ok_or_else(|| EraseError::Later("the ledger is away".into()))
    }

    /// Does everything that is left to do.
    async fn finish(&self, erasure: Erasure) -> Result<(SignedCertificate, PathBuf), EraseError> {
        let Parts { archive, assembler, retrieve, .. } = &self.0.parts;
        let mut facts: Facts = serde_json::from_str(&erasure.facts)?;
        self.destroy_keys_of(&facts)?;
        if !facts.emptied {
            if let Some(study) = &erasure.study_uid {
                self.forget_derived(study)?;
            }
            assembler.forget_sealed(&archive.erased_images(erasure.id)?);
            retrieve.settle().await;
            archive.erase(erasure.id).await?;
            facts.emptied = true;
            archive.amend_erasure(erasure.id, serde_json::to_string(&facts)?).await?;
        }
        let tombstone = self.end_on_ledger(&facts).await?;
        let certificate = self.certify(&facts, tombstone).await?;
        let file = self.keep(erasure.id, &certificate).await?;
        archive.end_erasure(erasure.id).await?;
        tracing::info!(study_id = ?facts.holdings.study_id, "a study was erased");
        Ok((certificate, file))
    }

    /// Says on the ledger that the study is gone, unless that was said, and waits until it is followed. Nothing where the ledger
    /// never knew the study.
    async fn end_on_ledger(&self, facts: &Facts) -> Result<Option<Tombstone>, EraseError> {
        let Some(study) = facts.holdings.study_id else { return Ok(None) };
        let ledger = self.ledger()?;
        match ledger.study(study).await {
            Err(LedgerError::Unavailable(why)) => return Err(EraseError::Later(why)),
            Err(error) => return Err(error.into()),
            Ok(Some(known)) if known.tombstoned => {}
            Ok(Some(known)) => self.say(ledger, facts, study, known.owner).await?,
            Ok(None) if self.0.parts.consents.study(study)?.is_some() || ledger.status().await.pending > 0 => {
                return Err(EraseError::Later("the ledger may yet learn of the study".into()));
            }
            Ok(None) => return Ok(None),
        }
        self.tombstone(study).await.map(Some)
    }

    async fn say(&self, ledger: &Ledger, facts: &Facts, study: B256, owner: Address) -> Result<(), EraseError> {
        let said = match &facts.signed {
            Some(signed) => ledger.say(&signed.action.word(), signed.signature.clone().unwrap_or_default()).await,
            None => {
                let no_key = || EraseError::OwnersKey { study, owner };
                let index = facts.owner_index.ok_or_else(no_key)?;
                let key = self.0.parts.keyring.custody_key(index, owner)?.ok_or_else(no_key)?;
                let seq = ledger.next_study_seq(study).await?;
                let deadline = ledger.ledger_s().saturating_add(CUSTODY_S);
                let word = Word::Tombstone(messages::TombstoneStudy { studyId: study, seq, deadline });
                let signature = key.sign_hash_sync(&ledger.digest(&word))?;
                ledger.say(&word, Bytes::copy_from_slice(&signature.as_bytes())).await
            }
        };
        match said {
            Err(LedgerError::Unavailable(why)) => Err(EraseError::Later(why)),
            other => Ok(other.map(drop)?),
        }
    }

    async fn tombstone(&self, study: B256) -> Result<Tombstone, EraseError> {
        let consents = &self.0.parts.consents;
        let mut changed = consents.changed();
        let found = async {
            loop {
                changed.borrow_and_update();
                let history = consents.history(study)?;
                if let Some(event) = history.iter().find(|event| matches!(event.what, What::Tombstoned { .. })) {
                    return Ok(Tombstone { transaction: event.transaction, block: event.block });
                }
                if changed.changed().await.is_err() {
                    return Err(EraseError::Later("the ledger is not followed".into()));
                }
            }
        };
        let late = || EraseError::Later("its end on the ledger was not seen yet".into());
        tokio::time::timeout(SEEN_WITHIN, found).await.map_err(|_| late())?
    }

    async fn certify(&self, facts: &Facts, tombstone: Option<Tombstone>) -> Result<SignedCertificate, EraseError> {
        let Parts { ledger, archive, signer, .. } = &self.0.parts;
        let signer = signer().await.map_err(EraseError::Certifying)?;
        let certificate = Certificate::new(Said {
            source: signer.address(),
            ledger: ledger.get().map(|ledger| (ledger.chain_id(), ledger.addresses().studies)),
            study_uid: facts.study_uid.clone(),
            times_s: (facts.begun_s, now_s()),
            keys: (u32::from(facts.owner_index.is_some()), facts.session_keys),
            holdings: facts.holdings.clone(),
            intake_log_bytes: archive.intake_log_bytes(),
            tombstone,
            holders: self.holders(facts.holdings.study_id)?,
            envelopes: self.envelopes(facts.holdings.study_id)?,
        });
        let signature = signer.sign(&certificate.preimage()).await?;
        Ok(SignedCertificate { certificate, signature: Bytes::copy_from_slice(&signature.as_bytes()) })
    }

    /// How often keys of the study went over the ledger.
    fn envelopes(&self, study: Option<B256>) -> Result<u64, EraseError> {
        let Some(study) = study else { return Ok(0) };
        let history = self.0.parts.consents.history(study)?;
        Ok(history.iter().filter(|event| matches!(event.what, What::KeysDelivered { .. })).count() as u64)
    }

    /// Whoever was ever let in.
    fn holders(&self, study: Option<B256>) -> Result<Vec<Holder>, EraseError> {
        let mut holders: Vec<Holder> = Vec::new();
        let Some(study) = study else { return Ok(holders) };
        for event in self.0.parts.consents.history(study)? {
            let (grantee, mode) = match event.what {
                What::Allowed { grantee, mode: Some(mode), .. } => (grantee, mode),
                What::GlassBroken { source, .. } => (source, Mode::Full),
                _ => continue,
            };
            match holders.iter_mut().find(|holder| holder.grantee == grantee) {
                Some(holder) if mode == Mode::Full => mode.code().clone_into(&mut holder.mode),
                Some(_) => {}
                None => holders.push(Holder { grantee, mode: mode.code().to_owned(), since_block: event.block }),
            }
        }
        Ok(holders)
    }

    async fn keep(&self, id: i64, certificate: &SignedCertificate) -> Result<PathBuf, EraseError> {
        let directory = self.0.parts.certificates.clone();
        let Certificate { study_id, begun_s, .. } = &certificate.certificate;
        let name = study_id.map_or_else(|| format!("unpublished-{id}-{begun_s}"), |study| study.to_string());
        let file = directory.join(name).with_extension("json");
        let (path, bytes) = (file.clone(), serde_json::to_vec_pretty(certificate)?);
        let kept = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&directory).map_err(|e| EraseError::Io(directory, e))?;
            Ok::<_, EraseError>(write_secret(&path, &bytes)?)
        });
        kept.await.map_err(|e| EraseError::Io(file.clone(), std::io::Error::other(e)))??;
        Ok(file)
    }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
