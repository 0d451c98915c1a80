//! Breaking the glass with the word of a second operator, and who may give it. A source that demands a second operator on the ledger
//! cannot be let in by one alone, whatever its bridge is configured to do: the contract refuses.

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolStruct as _;
use contracts::Emergency;
use contracts::messages::{self, EMERGENCY_S_MAX, EmergencyReason};
use serde::{Deserialize, Serialize};

use super::shown::moment;
use super::{DecideError, Desk, Done, account};
use crate::ledger::consent::signer_of;
use crate::ledger::operators::Acceptance;

const EMERGENCY: &str = "pacs-bridge/emergency/1";

/// Why a request to break the glass is not fit to be approved or sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmergencyError {
    /// Another format.
    #[error("is of format \"{0}\"; this program knows {EMERGENCY}")]
    Format(String),
    /// One person must not be both.
    #[error("must be approved by another operator than {0}, who asks for it")]
    Oneself(Address),
    /// Nobody approved it.
    #[error(
        "is not approved yet: a second operator does that with `pacs-bridge break-glass approve FILE --key KEYFILE`"
    )]
    Unapproved,
    /// Somebody else signed, or the file was changed.
    #[error("is not signed by {0}, or the file was changed after it was signed")]
    Signature(Address),
    /// It is of another ledger, source or operator.
    #[error("is for another ledger, or was made by the bridge of another operator")]
    Elsewhere,
    /// The key cannot sign.
    #[error("cannot be signed: {0}")]
    Signing(String),
}

/// Why and until when a source wants to let itself in, and who of it agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmergencyPaper {
    format: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract that knows who may see what.
    pub contract: Address,
    /// The study.
    pub study: B256,
    /// The source.
    pub source: Address,
    /// Who asks for it, and will send it.
    pub operator: Address,
    /// Number of an [`EmergencyReason`].
    pub reason: u16,
    /// Last second, since 1970.
    pub until: u64,
    /// Last second at which the approval is good, since 1970.
    pub deadline: u64,
    /// The second operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver: Option<Address>,
    /// Its EIP-712 signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Bytes>,
}

impl EmergencyPaper {
    fn emergency(&self) -> Emergency {
        Emergency {
            studyId: self.study,
            reason: self.reason,
            notes: B256::ZERO,
            until: self.until,
            approver: self.approver.unwrap_or_default(),
            deadline: self.deadline,
        }
    }

    /// What the second operator signs (EIP-712).
    #[must_use]
    pub fn digest(&self) -> B256 {
        let message = messages::approve_emergency(&self.emergency(), self.source, self.operator);
        message.eip712_signing_hash(&messages::consent_domain(self.chain_id, self.contract))
    }

    /// What it says, for the operator who approves.
    #[must_use]
    pub fn in_words(&self) -> String {
        let reason = EmergencyReason::from(self.reason).code();
        format!(
            "let source {} see all of study {} until {}, reason {reason}, as operator {} asks",
            self.source,
            self.study,
            moment(self.until),
            self.operator
        )
    }

    /// Signs it as the second operator.
    ///
    /// # Errors
    /// [`EmergencyError::Oneself`] when the key is that of the first.
    pub fn approve(&mut self, key: &PrivateKeySigner) -> Result<(), EmergencyError> {
        self.check_format()?;
        if key.address() == self.operator {
            return Err(EmergencyError::Oneself(self.operator));
        }
        let signed = key.sign_hash_sync(&self.digest()).map_err(|e| EmergencyError::Signing(e.to_string()))?;
        self.approver = Some(key.address());
        self.signature = Some(Bytes::copy_from_slice(&signed.as_bytes()));
        Ok(())
    }

    fn check_format(&self) -> Result<(), EmergencyError> {
        if self.format == EMERGENCY { Ok(()) } else { Err(EmergencyError::Format(self.format.clone())) }
    }

    fn checked_signature(&self) -> Result<Bytes, EmergencyError> {
        self.check_format()?;
        let (Some(approver), Some(signature)) = (self.approver, &self.signature) else {
            return Err(EmergencyError::Unapproved);
        };
        if signature.len() == 65 && signer_of(self.digest(), signature) != Some(approver) {
            return Err(EmergencyError::Signature(approver));
        }
        Ok(signature.clone())
    }
}

/// The reason with a word.
pub(super) fn reason(word: &str) -> Result<EmergencyReason, DecideError> {
    let known = || EmergencyReason::ALL.iter().map(|reason| reason.code()).collect::<Vec<_>>().join(", ");
    let unknown = || DecideError::Word { given: word.to_owned(), known: known() };
    EmergencyReason::from_code(word).ok_or_else(unknown)
}

impl Desk<'_> {
    /// Makes the file that a second operator approves. Nothing is sent.
    pub(super) async fn emergency(&self, given: &str, word: &str, seconds: u64) -> Result<EmergencyPaper, DecideError> {
        let (ledger, study) = (self.ledger()?, self.study_id(given)?);
        let until = ledger.now_s().saturating_add(seconds.min(EMERGENCY_S_MAX));
        Ok(EmergencyPaper {
            format: EMERGENCY.to_owned(),
            chain_id: ledger.chain_id(),
            contract: ledger.addresses().consent,
            study,
            source: ledger.source().await?,
            operator: ledger.account(),
            reason: reason(word)?.into(),
            until,
            deadline: until,
            approver: None,
            signature: None,
        })
    }

    /// Breaks the glass as it was approved.
    pub(super) async fn approved_emergency(&self, paper: &EmergencyPaper) -> Result<Done, DecideError> {
        let ledger = self.ledger()?;
        let here = (ledger.chain_id(), ledger.addresses().consent, ledger.source().await?, ledger.account());
        if (paper.chain_id, paper.contract, paper.source, paper.operator) != here {
            return Err(EmergencyError::Elsewhere.into());
        }
        let sent = ledger.break_glass(paper.emergency(), paper.checked_signature()?).await?;
        tracing::warn!("this source broke the glass with two operators; the study's owner sees it on the ledger");
        self.done("glass broken", Some(paper.study), Some(paper.source), sent).await
    }

    /// Whether one operator alone may break the glass, from now on.
    pub(super) async fn emergency_approval(&self, required: bool) -> Result<Done, DecideError> {
        let sent = self.as_source().await?.set_emergency_approval(required).await?;
        let verb = if required { "second operator demanded" } else { "one operator suffices" };
        self.done(verb, None, Some(self.ledger()?.source().await?), sent).await
    }

    /// Lets an account act for this source, once it accepts: what it must sign for that, and gas to pay for it.
    pub(super) async fn offer_operator(&self, given: &str) -> Result<Acceptance, DecideError> {
        let (ledger, operator) = (self.as_source().await?, account(given)?);
        if ledger.source_of(operator).await?.is_some() {
            return Err(DecideError::Asker(format!("account {operator} acts for a source already")));
        }
        ledger.authorize_operator(operator).await?;
        Ok(ledger.acceptance(operator).await?)
    }

    /// Sends what the new operator signed.
    pub(super) async fn accept_operator(&self, acceptance: &Acceptance) -> Result<Done, DecideError> {
        let sent = self.ledger()?.deliver_acceptance(acceptance).await?;
        self.done("operator accepted", None, Some(acceptance.operator), sent).await
    }

    /// An account acts for this source no longer.
    pub(super) async fn dismiss_operator(&self, given: &str) -> Result<Done, DecideError> {
        let (ledger, operator) = (self.as_source().await?, account(given)?);
        if operator == ledger.account() {
            return Err(DecideError::Asker(
                "this key signs for the bridge: `pacs-bridge keys rotate` replaces it".into(),
            ));
        }
        let sent = ledger.dismiss_operator(operator).await?;
        self.done("operator dismissed", None, Some(operator), sent).await
    }

    /// The ledger, when this bridge signs with the source's own key: no operator may decide about operators.
    async fn as_source(&self) -> Result<&crate::ledger::Ledger, DecideError> {
        let ledger = self.ledger()?;
        let source = ledger.source().await?;
        if source == ledger.account() {
            return Ok(ledger);
        }
        Err(DecideError::Asker(format!(
            "only the key of source {source} itself can do that; this bridge signs with that of its operator {}",
            ledger.account()
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_another_operator_approves_and_only_what_he_read() {
        let (first, second) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let mut paper = EmergencyPaper {
            format: EMERGENCY.to_owned(),
            chain_id: 7,
            contract: Address::repeat_byte(1),
            study: B256::repeat_byte(2),
            source: first.address(),
            operator: first.address(),
            reason: 1,
            until: 100,
            deadline: 100,
            approver: None,
            signature: None,
        };
        assert_eq!(paper.checked_signature(), Err(EmergencyError::Unapproved));
        assert_eq!(paper.approve(&first), Err(EmergencyError::Oneself(first.address())));
        paper.approve(&second).unwrap();
        let read: EmergencyPaper = serde_json::from_str(&serde_json::to_string(&paper).unwrap()).unwrap();
        assert_eq!(read, paper);
        assert!(read.checked_signature().is_ok());
        let longer = EmergencyPaper { until: 200, ..read };
        assert_eq!(longer.checked_signature(), Err(EmergencyError::Signature(second.address())));
    }
}
