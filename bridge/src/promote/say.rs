//! Says what is left to say, study by study, as soon as the ledger has the study.
//!
//! Each step looks at what the ledger says first, so it can be stopped anywhere and repeated. Nothing is said while the ledger is not followed,
//! nothing that somebody has overtaken, and nothing where the owner's key is not here.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, hex};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use dicom_scp::Uid;
use tokio_util::sync::CancellationToken;

use super::{Word, Words, WordsError};
use crate::archive::{Archive, ArchiveError};
use crate::audit::{Audit, Decided, Event, Party};
use crate::follow::{Consents, FollowError, StudyInfo};
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::{Ledger, LedgerError, LedgerSlot};

/// How long a word signed with a key in custody is good, in seconds.
const CUSTODY_S: u64 = 3600;
/// Longest wait between rounds; one begins earlier when something is said on the ledger.
const IDLE: Duration = Duration::from_secs(5);

/// What saying needs.
pub struct Parts {
    /// What is to be said.
    pub words: Words,
    /// Knows which study has which name on the ledger.
    pub archive: Archive,
    /// The owners' keys.
    pub keyring: Keyring,
    /// What the ledger says.
    pub consents: Consents,
    /// The ledger, once it is connected.
    pub ledger: LedgerSlot,
    /// Where it is recorded what was said.
    pub audit: Audit,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum SayError {
    #[error(transparent)]
    Words(#[from] WordsError),
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    #[error("the consents")]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("signing")]
    Signing(#[from] alloy::signers::Error),
}

/// Says everything that is left, until that is done or until `stop`.
pub async fn say(parts: Parts, stop: CancellationToken) {
    let mut changed = parts.consents.changed();
    loop {
        changed.mark_unchanged();
        match parts.round(&stop).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let error = crate::chain_of(&error);
                tracing::warn!(error, "what owners had said is not said on the new ledger yet");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(IDLE) => {}
            _ = changed.changed() => {}
        }
    }
}

impl Parts {
    /// One look at every study; returns how many words are left.
    async fn round(&self, stop: &CancellationToken) -> Result<u64, SayError> {
        for study in self.words.studies()? {
            let Some(ledger) = self.ledger.get() else { break };
            if stop.is_cancelled() || !self.consents.is_current(ledger.now_s()) {
                break;
            }
            let known = self.archive.study_of_id(&study)?;
            let said = match (known, self.consents.study(study)?) {
                (Some(uid), Some(info)) => self.about(ledger, &uid, &info).await,
                // It is not defined yet.
                (Some(_), None) => Ok(()),
                // It was erased.
                (None, _) => self.words.of(study)?.into_iter().try_for_each(|(id, _)| Ok(self.words.end(id)?)),
            };
            match said {
                // One study in trouble holds up no other.
                Err(SayError::Ledger(error @ (LedgerError::Refused(_) | LedgerError::NotAdmitted(_)))) => {
                    tracing::warn!(%study, %error, "what its owner had said is not said on the new ledger yet");
                }
                other => other?,
            }
        }
        Ok(self.words.left()?.words)
    }

    async fn about(&self, ledger: &Ledger, uid: &Uid, info: &StudyInfo) -> Result<(), SayError> {
        if info.source != ledger.source().await? {
            let why = format!("the study id is taken by source {}", info.source);
            for (id, _) in self.words.of(info.study_id)? {
                self.words.trouble(id, &why)?;
            }
            return Err(LedgerError::Refused(why).into());
        }
        // Whose key is elsewhere decides himself, and about what was ended nothing is left to say.
        let key = match self.keyring.study(uid)?.filter(|_| !info.tombstoned) {
            Some(keys) => self.custody_key(keys.owner_index, info.owner).await?,
            None => None,
        };
        for (id, word) in self.words.of(info.study_id)? {
            let Some(key) = &key else {
                self.words.end(id)?;
                continue;
            };
            match self.one(ledger, info.study_id, key, &word).await {
                Ok(()) => self.words.end(id)?,
                Err(SayError::Ledger(error @ (LedgerError::Refused(_) | LedgerError::NotAdmitted(_)))) => {
                    // The words after it wait: with the hand-over the key here has nothing to say any more.
                    self.words.trouble(id, &crate::chain_of(&error))?;
                    return Err(error.into());
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    async fn custody_key(&self, index: u32, owner: Address) -> Result<Option<PrivateKeySigner>, SayError> {
        // A key that nobody used since the start may take a second to open.
        let keyring = self.keyring.clone();
        let found = tokio::task::spawn_blocking(move || keyring.custody_key(index, owner)).await;
        Ok(found.unwrap_or(Ok(None))?)
    }

    async fn one(&self, ledger: &Ledger, study: B256, key: &PrivateKeySigner, word: &Word) -> Result<(), SayError> {
        let next = ledger.next_study_seq(study).await?;
        let overtaken = match word.grantee() {
            Some(grantee) => ledger.consent_of(study, grantee).await?.seq != 0,
            None => matches!(word, Word::NameGuardians { .. }) && next != 1,
        };
        if overtaken {
            return Ok(());
        }
        let now_s = ledger.now_s();
        let word = &word.clone().at(now_s);
        let word_signed = word.to_sign(study, next, ledger.ledger_s().saturating_add(CUSTODY_S));
        let signature = key.sign_hash_sync(&ledger.digest(&word_signed))?;
        ledger.say(&word_signed, Bytes::copy_from_slice(&signature.as_bytes())).await?;
        self.record(study, word);
        Ok(())
    }

    fn record(&self, study: B256, word: &Word) {
        let (what, who) = match word {
            Word::Allow { grantee, .. } => (Decided::Allow, vec![("grantee", grantee.to_string())]),
            Word::Revoke { grantee } => (Decided::Revoke, vec![("grantee", grantee.to_string())]),
            Word::NameGuardians { .. } => (Decided::Guardians, Vec::new()),
            Word::Transfer { owner, .. } => (Decided::Transfer, vec![("owner", owner.to_string())]),
        };
        let by = Party::named("ledger promote");
        self.audit.record(Event::decided(&by, what, &hex::encode(study), who, None));
        tracing::info!(%study, "a word that an owner said on the ledger before is said on this one");
    }
}
