//! An owner's decision as a file: written here, signed where the key is, sent from anywhere.
//!
//! What is signed is derived from the fields alone, so whoever signs can read what it says, and a file that was changed on its way
//! has no good signature. Pure; must not know files or the ledger.

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use contracts::Allowance;
use contracts::messages::{self, Purpose};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::numbers::{Account, Hash, whole, wide, wide_schema};
use super::typed::TypedData;
use crate::follow::Mode;
use crate::ledger::consent::{Word, signer_of};

/// What the file says it is.
const FORMAT: &str = "pacs-bridge/action/1";

/// Why an action is not fit to be signed or sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    /// Another format.
    #[error("is of format \"{0}\"; this program knows {FORMAT}")]
    Format(String),
    /// Nobody signed it.
    #[error("is not signed yet: `pacs-bridge sign FILE --key KEYFILE` does that, with the key of {0}")]
    Unsigned(Address),
    /// It was signed by somebody else, or changed afterwards.
    #[error("must be signed by {needed}, the study's owner; this signature is of {}, or the file was changed after it was signed",
        .found.map_or_else(|| "nobody".to_owned(), |found| found.to_string()))]
    Signature {
        /// The owner.
        needed: Address,
        /// Whose key fits the signature and the file as it is.
        found: Option<Address>,
    },
    /// The key at hand is not the owner's.
    #[error("must be signed by {needed}, the study's owner; this key is that of {given}")]
    WrongKey {
        /// The owner.
        needed: Address,
        /// The key given.
        given: Address,
    },
    /// It is for another ledger.
    #[error("is for contract {given} on chain {given_chain}, not for {expected} on chain {expected_chain}")]
    Elsewhere {
        /// Contract in the file.
        given: Address,
        /// Chain in the file.
        given_chain: u64,
        /// Contract here.
        expected: Address,
        /// Chain here.
        expected_chain: u64,
    },
    /// The key cannot sign.
    #[error("cannot be signed: {0}")]
    Signing(String),
}

/// What an owner decides, with everything that is signed. `seq` and `deadline` are as in the contracts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // The fields are those of the messages, documented in IConsent and IStudies.
pub enum Action {
    /// Let a grantee see the study or a series of it.
    Allow {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(value_type = Account)]
        grantee: Address,
        #[schema(value_type = Hash)]
        series: B256,
        #[schema(maximum = 255)]
        #[serde(deserialize_with = "whole::deserialize")]
        mode: u8,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        not_before: u64,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        not_after: u64,
        #[schema(maximum = 65535)]
        #[serde(deserialize_with = "whole::deserialize")]
        purpose: u16,
        #[schema(value_type = Hash)]
        encryption_key: B256,
        /// Commitment to what is said in words; zero, or left out, for nothing.
        #[serde(default)]
        #[schema(value_type = Hash)]
        notes: B256,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// Refuse what a grantee asked for.
    Deny {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(value_type = Account)]
        grantee: Address,
        #[schema(maximum = 65535)]
        #[serde(deserialize_with = "whole::deserialize")]
        reason: u16,
        /// Commitment to what is said in words; zero, or left out, for nothing.
        #[serde(default)]
        #[schema(value_type = Hash)]
        notes: B256,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// Take access away.
    Revoke {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(value_type = Account)]
        grantee: Address,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// Hand the study to the owner's own key.
    Transfer {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(value_type = Account)]
        new_owner: Address,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// End the study: nobody is served it any more, and its source destroys its keys.
    Tombstone {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// Name who may recover the study; nobody when zero.
    NameGuardians {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(value_type = Hash)]
        guardians: B256,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
    /// Object to a recovery under way.
    VetoRecovery {
        #[schema(value_type = Hash)]
        study: B256,
        #[schema(maximum = 4294967295_u32)]
        #[serde(deserialize_with = "whole::deserialize")]
        seq: u32,
        #[serde(with = "wide")]
        #[schema(schema_with = wide_schema)]
        deadline: u64,
    },
}

impl Action {
    /// As the ledger takes it.
    #[must_use]
    pub fn word(&self) -> Word {
        match *self {
            Self::Allow {
                study,
                grantee,
                series,
                mode,
                not_before,
                not_after,
                purpose,
                encryption_key,
                notes,
                seq,
                deadline,
            } => Word::Allow(Allowance {
                studyId: study,
                grantee,
                series,
                mode,
                notBefore: not_before,
                notAfter: not_after,
                purpose,
                notes,
                encryptionKey: encryption_key,
                seq,
                deadline,
            }),
            Self::Deny { study, grantee, reason, notes, seq, deadline } => {
                Word::Deny(messages::Deny { studyId: study, grantee, reason, notes, seq, deadline })
            }
            Self::Revoke { study, grantee, seq, deadline } => {
                Word::Revoke(messages::Revoke { studyId: study, grantee, seq, deadline })
            }
            Self::Transfer { study, new_owner, seq, deadline } => Word::Transfer(messages::TransferStudy {
                studyId: study,
                newOwner: new_owner,
                custodial: false,
                seq,
                deadline,
            }),
            Self::Tombstone { study, seq, deadline } => {
                Word::Tombstone(messages::TombstoneStudy { studyId: study, seq, deadline })
            }
            Self::NameGuardians { study, guardians, seq, deadline } => {
                Word::NameGuardians(messages::NameGuardians { studyId: study, guardians, seq, deadline })
            }
            Self::VetoRecovery { study, seq, deadline } => {
                Word::VetoRecovery(messages::VetoRecovery { studyId: study, seq, deadline })
            }
        }
    }

    /// Whom it is about.
    #[must_use]
    pub fn grantee(&self) -> Option<Address> {
        match self {
            Self::Allow { grantee, .. } | Self::Deny { grantee, .. } | Self::Revoke { grantee, .. } => Some(*grantee),
            Self::Transfer { .. } | Self::Tombstone { .. } | Self::NameGuardians { .. } | Self::VetoRecovery { .. } => {
                None
            }
        }
    }

    /// What has happened when it was sent.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::Allow { .. } => "allowed",
            Self::Deny { .. } => "denied",
            Self::Revoke { .. } => "revoked",
            Self::Transfer { .. } => "transferred",
            Self::Tombstone { .. } => "ended",
            Self::NameGuardians { .. } => "guardians named",
            Self::VetoRecovery { .. } => "recovery vetoed",
        }
    }

    /// What it says, for the person who signs.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::Allow { study, grantee, series, mode, not_before, not_after, purpose, notes, .. } => {
                let what = Mode::from_number(*mode).map_or("nothing", Mode::code);
                let part = if series.is_zero() { String::new() } else { format!(", series {series} only") };
                let from = if *not_before == 0 { "now".to_owned() } else { crate::decide::shown::moment(*not_before) };
                let until = crate::decide::shown::moment(*not_after);
                let purpose = Purpose::from(*purpose).code();
                format!(
                    "allow {grantee} to see study {study}{part}: {what}, from {from} until {until}, purpose {purpose}{}",
                    noted(*notes)
                )
            }
            Self::Deny { study, grantee, notes, .. } => {
                format!("deny {grantee} what it asked for of study {study}{}", noted(*notes))
            }
            Self::Revoke { study, grantee, .. } => format!("take from {grantee} the access to study {study}"),
            Self::Transfer { study, new_owner, .. } => format!("hand study {study} to the owner key {new_owner}"),
            Self::Tombstone { study, .. } => {
                format!(
                    "end study {study} for ever: nobody is served it any more, and its source destroys its keys and copies"
                )
            }
            Self::NameGuardians { study, guardians, .. } if guardians.is_zero() => {
                format!("let nobody recover study {study}")
            }
            Self::NameGuardians { study, guardians, .. } => {
                format!("let the guardians of commitment {guardians} recover study {study}, and nobody else")
            }
            Self::VetoRecovery { study, .. } => format!("object to the recovery of study {study} that is under way"),
        }
    }
}

/// Who signs sees that words belong to it.
fn noted(notes: B256) -> String {
    if notes.is_zero() { String::new() } else { format!(", with the note of commitment {notes}") }
}

/// An action with where it is for, who must sign it, and the signature once there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// `pacs-bridge/action/1`.
    #[schema(pattern = "^pacs-bridge/action/1$")]
    format: String,
    /// EIP-155 chain id.
    #[serde(deserialize_with = "whole::deserialize")]
    #[schema(minimum = 1, maximum = 9007199254740992_u64)]
    pub chain_id: u64,
    /// The contract that it is said to.
    #[schema(value_type = Account)]
    pub contract: Address,
    /// The account that must sign.
    #[schema(value_type = Account)]
    pub signer: Address,
    /// What is signed.
    pub action: Action,
    /// The EIP-712 signature: of an account 65 bytes, of a contract (EIP-1271) what that takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^0x([0-9a-fA-F]{2})*$", max_length = 4098)]
    pub signature: Option<Bytes>,
}

impl Pending {
    pub(super) fn new(chain_id: u64, contract: Address, signer: Address, action: Action) -> Self {
        Self { format: FORMAT.to_owned(), chain_id, contract, signer, action, signature: None }
    }

    /// The study that it is about.
    #[must_use]
    pub fn study(&self) -> B256 {
        self.action.word().study()
    }

    /// What is signed (EIP-712).
    #[must_use]
    pub fn digest(&self) -> B256 {
        self.action.word().digest(self.chain_id, self.contract)
    }

    /// What is signed, for a wallet (`eth_signTypedData_v4`).
    #[must_use]
    pub fn typed_data(&self) -> TypedData {
        TypedData::of(&self.action.word(), self.chain_id, self.contract)
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`PendingError::WrongKey`] when the key is not the owner's.
    pub fn sign(&mut self, key: &PrivateKeySigner) -> Result<(), PendingError> {
        self.check_format()?;
        if key.address() != self.signer {
            return Err(PendingError::WrongKey { needed: self.signer, given: key.address() });
        }
        let signed = key.sign_hash_sync(&self.digest()).map_err(|e| PendingError::Signing(e.to_string()))?;
        self.signature = Some(Bytes::copy_from_slice(&signed.as_bytes()));
        Ok(())
    }

    /// The signature, when it can be good for this contract. A longer one than an account makes is left to the owner's contract.
    ///
    /// # Errors
    /// [`PendingError`].
    pub(crate) fn checked_signature(&self, chain_id: u64, contract: Address) -> Result<Bytes, PendingError> {
        self.check_format()?;
        if (self.chain_id, self.contract) != (chain_id, contract) {
            return Err(PendingError::Elsewhere {
                given: self.contract,
                given_chain: self.chain_id,
                expected: contract,
                expected_chain: chain_id,
            });
        }
        let signature = self.signature.clone().ok_or(PendingError::Unsigned(self.signer))?;
        let found = signer_of(self.digest(), &signature);
        if signature.len() == 65 && found != Some(self.signer) {
            return Err(PendingError::Signature { needed: self.signer, found });
        }
        Ok(signature)
    }

    fn check_format(&self) -> Result<(), PendingError> {
        if self.format == FORMAT { Ok(()) } else { Err(PendingError::Format(self.format.clone())) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn action() -> Action {
        Action::Revoke { study: B256::repeat_byte(1), grantee: Address::repeat_byte(2), seq: 3, deadline: 4 }
    }

    #[test]
    fn numbers_are_read_as_json_has_them_and_written_so_that_javascript_can_read_them() {
        let text = |deadline: &str, seq: &str| {
            let (study, grantee) = (B256::repeat_byte(1), Address::repeat_byte(2));
            format!(
                "{{\"revoke\":{{\"study\":\"{study}\",\"grantee\":\"{grantee}\",\"seq\":{seq},\"deadline\":{deadline}}}}}"
            )
        };
        let read = |deadline: &str, seq: &str| serde_json::from_str::<Action>(&text(deadline, seq));
        let deadline_of = |deadline: &str| match read(deadline, "3") {
            Ok(Action::Revoke { deadline, .. }) => Some(deadline),
            _ => None,
        };
        for (written, number) in [("7", 7), ("7.0", 7), ("\"7\"", 7), ("\"18446744073709551615\"", u64::MAX)] {
            assert_eq!(deadline_of(written), Some(number), "{written}");
        }
        for wrong in ["-1", "7.5", "1e300", "\"\"", "\"+7\"", "\"18446744073709551616\"", "null", "true", "[7]"] {
            assert_eq!(deadline_of(wrong), None, "{wrong}");
        }
        assert!(read("1", "3.0").is_ok() && read("1", "\"3\"").is_err() && read("1", "4294967296").is_err());
        let large = Action::Revoke { study: B256::ZERO, grantee: Address::ZERO, seq: 1, deadline: u64::MAX };
        let written = serde_json::to_string(&large).unwrap();
        assert!(written.contains("\"18446744073709551615\""), "{written}");
        assert_eq!(serde_json::from_str::<Action>(&written).unwrap(), large);
    }

    #[test]
    fn only_the_owners_signature_over_these_very_fields_is_good() {
        let (owner, other) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let addresses = contracts::addresses(Address::repeat_byte(9));
        let contract = action().word().contract(&addresses);
        let mut pending = Pending::new(7, contract, owner.address(), action());
        assert_eq!(pending.checked_signature(7, contract), Err(PendingError::Unsigned(owner.address())));
        assert!(matches!(pending.sign(&other), Err(PendingError::WrongKey { .. })));
        pending.sign(&owner).unwrap();
        let text = serde_json::to_string(&pending).unwrap();
        let read: Pending = serde_json::from_str(&text).unwrap();
        assert_eq!(read, pending);
        assert!(read.checked_signature(7, contract).is_ok());
        assert!(matches!(read.checked_signature(8, contract), Err(PendingError::Elsewhere { .. })));
        let mut changed = read.clone();
        changed.action =
            Action::Revoke { study: B256::repeat_byte(1), grantee: Address::repeat_byte(2), seq: 4, deadline: 4 };
        assert!(matches!(changed.checked_signature(7, contract), Err(PendingError::Signature { .. })));
        let mut claimed = read;
        claimed.signer = other.address();
        assert!(matches!(claimed.checked_signature(7, contract), Err(PendingError::Signature { .. })));
    }
}
