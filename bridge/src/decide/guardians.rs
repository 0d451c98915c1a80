//! Guardians: who may give a study a new owner key when the patient has lost the old one. Who they are stays in a file that the
//! owner and they keep; the ledger knows a commitment. A recovery goes from guardian to guardian as a file, as a decision does.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolStruct as _;
use contracts::GuardianSet;
use contracts::messages::{self, GUARDIANS_MAX, RECOVERY_DELAY_MAX_S, RECOVERY_DELAY_MIN_S, RecoverStudy};
use serde::{Deserialize, Serialize};

use super::shown::moment;
use super::{DecideError, Desk, Done, account};
use crate::ledger::consent::signer_of;

const GUARDIANS: &str = "pacs-bridge/guardians/1";
const RECOVERY: &str = "pacs-bridge/recovery/1";
/// Seconds of a day.
const DAY_S: u32 = 86_400;

/// Why a file about guardians is not fit for what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardianError {
    /// Another format.
    #[error("is of format \"{found}\"; this program knows {known}")]
    Format {
        /// What the file says.
        found: String,
        /// What it should say.
        known: &'static str,
    },
    /// The ledger would never let them act.
    #[error(
        "such guardians could never act: 1 to {GUARDIANS_MAX} different accounts are needed, between one and all of them must agree, and the owner has {} to {} days to object",
        RECOVERY_DELAY_MIN_S / DAY_S, RECOVERY_DELAY_MAX_S / DAY_S
    )]
    Unsound,
    /// The key at hand is none of theirs.
    #[error("must be signed by a guardian; {0} is none")]
    NotAGuardian(Address),
    /// Somebody else signed, or the file was changed.
    #[error("holds a signature that is not of guardian {0}, or the file was changed after it was signed")]
    Signature(Address),
    /// Not enough of them signed.
    #[error("is signed by {signed} guardians, {needed} must: `pacs-bridge recover approve FILE --key KEYFILE`")]
    TooFew {
        /// So many did.
        signed: usize,
        /// So many must.
        needed: u8,
    },
    /// They are not about the same recovery.
    #[error("is about another recovery")]
    Another,
    /// It is for another ledger.
    #[error("is for another ledger than this one")]
    Elsewhere,
    /// The key cannot sign.
    #[error("cannot be signed: {0}")]
    Signing(String),
}

/// Who may recover a study. Nobody else can tell from the ledger, so owner and guardians must keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardianPaper {
    format: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract that knows whose the study is.
    pub contract: Address,
    /// The study.
    pub study: B256,
    /// Their accounts.
    pub guardians: Vec<Address>,
    /// So many of them must agree.
    pub need: u8,
    /// So many seconds the owner has to object.
    pub delay_s: u32,
    /// Keeps strangers from guessing them.
    pub salt: B256,
}

impl GuardianPaper {
    fn new(place: (u64, Address), study: B256, guardians: Vec<Address>, need: u8, delay_s: u32) -> Self {
        let (chain_id, contract) = place;
        let salt = B256::random();
        Self { format: GUARDIANS.to_owned(), chain_id, contract, study, guardians, need, delay_s, salt }
    }

    /// As the contract takes it.
    ///
    /// # Errors
    /// [`GuardianError::Unsound`] when they could never act, or [`GuardianError::Format`].
    pub fn set(&self) -> Result<GuardianSet, GuardianError> {
        check_format(&self.format, GUARDIANS)?;
        messages::guardian_set(&self.guardians, self.need, self.delay_s, self.salt).ok_or(GuardianError::Unsound)
    }

    /// What the ledger is told.
    ///
    /// # Errors
    /// As [`GuardianPaper::set`].
    pub fn commitment(&self) -> Result<B256, GuardianError> {
        Ok(messages::guardian_commitment(self.study, &self.set()?))
    }
}

/// A new owner key that guardians want a study to have, and who of them signed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    format: String,
    /// Who may sign.
    pub guardians: GuardianPaper,
    /// The new owner.
    pub new_owner: Address,
    /// The study's next number.
    pub seq: u32,
    /// Last second at which it can be sent, since 1970.
    pub deadline: u64,
    /// EIP-712 signatures, by guardian.
    #[serde(default)]
    pub signatures: BTreeMap<Address, Bytes>,
}

impl Recovery {
    /// What guardians sign.
    #[must_use]
    pub fn message(&self) -> RecoverStudy {
        RecoverStudy {
            studyId: self.guardians.study,
            newOwner: self.new_owner,
            custodial: false,
            seq: self.seq,
            deadline: self.deadline,
        }
    }

    /// What guardians sign (EIP-712).
    #[must_use]
    pub fn digest(&self) -> B256 {
        let domain = messages::studies_domain(self.guardians.chain_id, self.guardians.contract);
        self.message().eip712_signing_hash(&domain)
    }

    /// What it says, for the guardian who signs.
    #[must_use]
    pub fn in_words(&self) -> String {
        format!(
            "give study {} to the owner key {}; {} of {} guardians signed, {} must, until {}; the owner then has {} days to object",
            self.guardians.study,
            self.new_owner,
            self.signatures.len(),
            self.guardians.guardians.len(),
            self.guardians.need,
            moment(self.deadline),
            self.guardians.delay_s / DAY_S
        )
    }

    /// Signs it as a guardian.
    ///
    /// # Errors
    /// [`GuardianError::NotAGuardian`].
    pub fn approve(&mut self, key: &PrivateKeySigner) -> Result<(), GuardianError> {
        check_format(&self.format, RECOVERY)?;
        if !self.guardians.guardians.contains(&key.address()) {
            return Err(GuardianError::NotAGuardian(key.address()));
        }
        let signed = key.sign_hash_sync(&self.digest()).map_err(|e| GuardianError::Signing(e.to_string()))?;
        self.signatures.insert(key.address(), Bytes::copy_from_slice(&signed.as_bytes()));
        Ok(())
    }

    /// Adds what was signed on another copy of the same file.
    ///
    /// # Errors
    /// [`GuardianError::Another`].
    pub fn join(&mut self, other: Self) -> Result<(), GuardianError> {
        if self.digest() != other.digest() || self.guardians != other.guardians {
            return Err(GuardianError::Another);
        }
        self.signatures.extend(other.signatures);
        Ok(())
    }

    /// The guardians and their signatures in the contract's order; empty of those who did not sign.
    fn checked(&self, place: (u64, Address)) -> Result<(GuardianSet, Vec<Bytes>), GuardianError> {
        check_format(&self.format, RECOVERY)?;
        if (self.guardians.chain_id, self.guardians.contract) != place {
            return Err(GuardianError::Elsewhere);
        }
        let (set, digest) = (self.guardians.set()?, self.digest());
        for (guardian, signature) in &self.signatures {
            let known = set.guardians.contains(guardian);
            // A longer one is left to the guardian's contract (EIP-1271).
            if !known || (signature.len() == 65 && signer_of(digest, signature) != Some(*guardian)) {
                return Err(GuardianError::Signature(*guardian));
            }
        }
        if self.signatures.len() < usize::from(set.threshold) {
            return Err(GuardianError::TooFew { signed: self.signatures.len(), needed: set.threshold });
        }
        let signatures = set.guardians.iter().map(|of| self.signatures.get(of).cloned().unwrap_or_default()).collect();
        Ok((set, signatures))
    }
}

fn check_format(found: &str, known: &'static str) -> Result<(), GuardianError> {
    if found == known { Ok(()) } else { Err(GuardianError::Format { found: found.to_owned(), known }) }
}

impl Desk<'_> {
    /// Makes the file that owner and guardians keep. Nothing is sent.
    pub(super) fn guardians(
        &self,
        given: &str,
        accounts: &[String],
        need: u8,
        delay_s: u32,
    ) -> Result<GuardianPaper, DecideError> {
        let known = self.study(given)?;
        let accounts = accounts.iter().map(|given| account(given)).collect::<Result<_, _>>()?;
        let paper = GuardianPaper::new(self.registry()?, known.study_id, accounts, need, delay_s);
        paper.set()?;
        Ok(paper)
    }

    /// Makes the file that guardians sign. Nothing is sent.
    pub(super) async fn recovery(
        &self,
        guardians: GuardianPaper,
        owner: &str,
        good_s: u64,
    ) -> Result<Recovery, DecideError> {
        let (ledger, study) = (self.ledger()?, guardians.study);
        if (guardians.chain_id, guardians.contract) != self.registry()? {
            return Err(GuardianError::Elsewhere.into());
        }
        if ledger.guardians_of(study).await? != guardians.commitment()? {
            let words = "these are not the guardians that the study's owner named last".to_owned();
            return Err(DecideError::Asker(words));
        }
        Ok(Recovery {
            format: RECOVERY.to_owned(),
            new_owner: account(owner)?,
            seq: ledger.next_study_seq(study).await?,
            deadline: ledger.ledger_s().saturating_add(good_s),
            guardians,
            signatures: BTreeMap::new(),
        })
    }

    /// Sends what enough guardians signed. From now on the owner has the delay to object.
    pub(super) async fn propose_recovery(&self, recovery: &Recovery) -> Result<Done, DecideError> {
        let (set, signatures) = recovery.checked(self.registry()?)?;
        let sent = self.ledger()?.propose_recovery(&recovery.message(), set, signatures).await?;
        self.done("recovery proposed", Some(recovery.guardians.study), Some(recovery.new_owner), sent).await
    }

    pub(super) async fn complete_recovery(&self, given: &str) -> Result<Done, DecideError> {
        let study = self.study_id(given)?;
        let sent = self.ledger()?.complete_recovery(study).await?;
        let mut done = self.done("recovered", Some(study), None, sent).await?;
        done.account = self.site.consents().study(study)?.map(|study| study.owner.to_string());
        Ok(done)
    }

    fn registry(&self) -> Result<(u64, Address), DecideError> {
        let ledger = self.ledger()?;
        Ok((ledger.chain_id(), ledger.addresses().studies))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn enough_guardians_must_sign_this_very_recovery() {
        let keys: Vec<_> = (0..3).map(|_| PrivateKeySigner::random()).collect();
        let place = (7, Address::repeat_byte(9));
        let accounts = keys.iter().map(PrivateKeySigner::address).collect();
        let guardians = GuardianPaper::new(place, B256::repeat_byte(1), accounts, 2, 2 * DAY_S);
        let mut recovery = Recovery {
            format: RECOVERY.to_owned(),
            guardians,
            new_owner: Address::repeat_byte(5),
            seq: 1,
            deadline: 2,
            signatures: BTreeMap::new(),
        };
        let stranger = PrivateKeySigner::random();
        assert_eq!(recovery.approve(&stranger), Err(GuardianError::NotAGuardian(stranger.address())));
        let mut copy = recovery.clone();
        recovery.approve(&keys[0]).unwrap();
        recovery.approve(&keys[0]).unwrap();
        assert_eq!(recovery.checked(place).err(), Some(GuardianError::TooFew { signed: 1, needed: 2 }));
        copy.approve(&keys[2]).unwrap();
        let mut other = copy.clone();
        other.new_owner = Address::repeat_byte(6);
        assert_eq!(recovery.clone().join(other.clone()), Err(GuardianError::Another));
        assert!(matches!(other.checked(place), Err(GuardianError::Signature(_))));
        recovery.join(serde_json::from_str(&serde_json::to_string(&copy).unwrap()).unwrap()).unwrap();
        let (set, signatures) = recovery.checked(place).unwrap();
        assert!(set.guardians.is_sorted());
        assert_eq!(signatures.iter().filter(|signature| !signature.is_empty()).count(), 2);
        assert_eq!(recovery.checked((8, place.1)).err(), Some(GuardianError::Elsewhere));
        let alone = GuardianPaper { need: 4, ..recovery.guardians };
        assert_eq!(alone.set().err(), Some(GuardianError::Unsound));
    }
}
