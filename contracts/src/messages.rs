//! What owners, guardians, approvers and sources' identities sign: EIP-712 messages of the Registry, Consent
//! and KeyBindings contracts, one flat struct per action.
//!
//! Sign `message.eip712_signing_hash(&studies_domain(..))` for messages of Studies, `consent_domain` for those of Consent,
//! `key_bindings_domain` for those of KeyBindings, `validators_domain` for those of Validators.
//! `deadline` is in seconds since 1970 and is the last moment at which the message is good. `seq` rises strictly: per study
//! over all messages of Studies, per (study, grantee) over allow, deny and revoke, per source over its endpoint and keys, per
//! account over its bindings.
//!
//! The tables of codes are here as well, because the contracts only carry numbers.
//!
//! This module must not know who holds the keys.

mod bindings {
    #![allow(missing_docs, unreachable_pub)]
    alloy::sol! {
        #[derive(Debug, PartialEq, Eq)]
        struct ChangeEndpoint { address source; string endpoint; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct ChangeKeys { address source; bytes32 tlsKey; bytes encryptionKey; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct DefineStudy { bytes32 studyId; address owner; address source; bool custodial; bytes32 derivedFrom; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct TransferStudy { bytes32 studyId; address newOwner; bool custodial; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct TombstoneStudy { bytes32 studyId; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct NameGuardians { bytes32 studyId; bytes32 guardians; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct RecoverStudy { bytes32 studyId; address newOwner; bool custodial; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct VetoRecovery { bytes32 studyId; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct Allow {
            bytes32 studyId;
            address grantee;
            bytes32 series;
            uint8 mode;
            uint64 notBefore;
            uint64 notAfter;
            uint16 purpose;
            bytes32 notes;
            bytes32 encryptionKey;
            uint32 seq;
            uint64 deadline;
        }
        #[derive(Debug, PartialEq, Eq)]
        struct Deny { bytes32 studyId; address grantee; uint16 reason; bytes32 notes; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct Revoke { bytes32 studyId; address grantee; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct ApproveEmergency {
            bytes32 studyId;
            address source;
            address operator;
            uint16 reason;
            bytes32 notes;
            uint64 until;
            uint64 deadline;
        }
        #[derive(Debug, PartialEq, Eq)]
        struct BindKey { address account; bytes spki; bytes proof; uint64 notAfter; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct UnbindKey { address account; bytes32 key; uint32 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct ServeSite { address site; }
    }
}

use crate::{Allowance, Emergency, GuardianSet};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::sol_types::{Eip712Domain, SolValue};
/// The owner lets a grantee see a study or a series of it.
pub use bindings::Allow;
/// A second operator of a source agrees that the first breaks the glass.
pub use bindings::ApproveEmergency;
/// An account says that a P-256 key signs retrievals for it.
pub use bindings::BindKey;
/// A source's identity says where the source answers.
pub use bindings::ChangeEndpoint;
/// A source's identity says by which keys the source is known.
pub use bindings::ChangeKeys;
/// The owner agrees that the source defines the study.
pub use bindings::DefineStudy;
/// The owner refuses the open request of a grantee.
pub use bindings::Deny;
/// The owner names guardians by their commitment.
pub use bindings::NameGuardians;
/// A guardian wants the study to have another owner.
pub use bindings::RecoverStudy;
/// The owner takes a grantee's access away.
pub use bindings::Revoke;
/// A validator agrees that a site registers it.
pub use bindings::ServeSite;
/// The owner wants the study neither served nor extended any more.
pub use bindings::TombstoneStudy;
/// The owner hands the study to another key.
pub use bindings::TransferStudy;
/// An account says that a key signs nothing for it any more.
pub use bindings::UnbindKey;
/// The owner ends a recovery under way.
pub use bindings::VetoRecovery;

/// The EIP-712 domain of the messages of a Registry contract on a chain.
pub fn studies_domain(chain_id: u64, studies: Address) -> Eip712Domain {
    domain("PACS Bridge Studies", chain_id, studies)
}

/// The EIP-712 domain of a Consent contract on a chain.
pub fn consent_domain(chain_id: u64, consent: Address) -> Eip712Domain {
    domain("PACS Bridge Consent", chain_id, consent)
}

/// The EIP-712 domain of the messages of a KeyBindings contract on a chain.
pub fn key_bindings_domain(chain_id: u64, key_bindings: Address) -> Eip712Domain {
    domain("PACS Bridge Key Bindings", chain_id, key_bindings)
}

/// The EIP-712 domain of the Validators contract on a chain.
pub fn validators_domain(chain_id: u64) -> Eip712Domain {
    domain("PACS Bridge Validators", chain_id, crate::validators::ADDRESS)
}

/// How the octets of a proof begin; never like a canonical SignedInfo, so that neither signature can stand for the other.
const KEY_PROOF: &[u8] = b"PACS bridge key binding\0";
/// Octets of a binding's SubjectPublicKeyInfo: `KeyBindings.SPKI_BYTES`.
pub const SPKI_BYTES: usize = 91;
/// Octets of a binding's proof: `KeyBindings.PROOF_BYTES`.
pub const KEY_PROOF_BYTES: usize = 64;

/// The octets that a P-256 key signs (ECDSA with SHA-256) to prove that its holder wants it bound to `account`. `key` is the SHA-256 of its
/// SubjectPublicKeyInfo with the curve's name and the uncompressed point.
pub fn key_proof_octets(chain_id: u64, key_bindings: Address, account: Address, key: B256) -> Vec<u8> {
    let chain = U256::from(chain_id).to_be_bytes::<32>();
    [KEY_PROOF, &chain, key_bindings.as_slice(), account.as_slice(), key.as_slice()].concat()
}

fn domain(name: &'static str, chain_id: u64, contract: Address) -> Eip712Domain {
    Eip712Domain::new(Some(name.into()), Some("1".into()), Some(U256::from(chain_id)), Some(contract), None)
}

impl From<&Allowance> for Allow {
    /// What the owner signs so that `Consent::allow` accepts `a`.
    fn from(a: &Allowance) -> Self {
        Self {
            studyId: a.studyId,
            grantee: a.grantee,
            series: a.series,
            mode: a.mode,
            notBefore: a.notBefore,
            notAfter: a.notAfter,
            purpose: a.purpose,
            notes: a.notes,
            encryptionKey: a.encryptionKey,
            seq: a.seq,
            deadline: a.deadline,
        }
    }
}

/// What the approver signs so that `operator` may break the glass for `source` as `e` says.
pub fn approve_emergency(e: &Emergency, source: Address, operator: Address) -> ApproveEmergency {
    let Emergency { studyId, reason, notes, until, deadline, .. } = *e;
    ApproveEmergency { studyId, source, operator, reason, notes, until, deadline }
}

/// What `DefineStudy::derivedFrom` holds for a study made from `original`: keccak-256 of the salt and the id. Who knows the salt
/// can prove the lineage; it must be random and stay with the two studies' keys.
pub fn lineage(salt: B256, original: B256) -> B256 {
    salted(salt, original.as_slice())
}

/// How notes and series are named on chain: keccak-256 of a random salt and the text or UID.
pub fn salted(salt: B256, bytes: &[u8]) -> B256 {
    keccak256([salt.as_slice(), bytes].concat())
}

/// Most guardians of a study: `Studies.GUARDIANS_MAX`.
pub const GUARDIANS_MAX: usize = 8;
/// Shortest time the owner has to veto a recovery, in seconds: `Studies.RECOVERY_DELAY_MIN_S`.
pub const RECOVERY_DELAY_MIN_S: u32 = 86_400;
/// Longest time the owner has to veto a recovery, in seconds: `Studies.RECOVERY_DELAY_MAX_S`.
pub const RECOVERY_DELAY_MAX_S: u32 = 90 * 86_400;
/// Longest life of an envelope in seconds: `Consent.ENVELOPE_S_MAX`.
pub const ENVELOPE_S_MAX: u64 = 30 * 86_400;
/// Longest envelope in bytes: `Consent.ENVELOPE_BYTES_MAX`.
pub const ENVELOPE_BYTES_MAX: usize = 16_384;
/// Longest emergency in seconds: `Consent.EMERGENCY_S_MAX`.
pub const EMERGENCY_S_MAX: u64 = 86_400;
/// Longest OpenPGP key that a request or a source may state, in bytes.
pub const ENCRYPTION_KEY_BYTES_MAX: usize = 1024;

/// A guardian set that the contract will accept when it is needed: ascending, bounded, possible. `None` when it would not; the
/// contract itself cannot tell, since it is only shown a commitment.
pub fn guardian_set(guardians: &[Address], threshold: u8, delay_s: u32, salt: B256) -> Option<GuardianSet> {
    let mut ascending = guardians.to_vec();
    ascending.sort_unstable();
    ascending.dedup();
    let possible = ascending.len() == guardians.len()
        && guardians.len() <= GUARDIANS_MAX
        && !guardians.contains(&Address::ZERO)
        && (1..=guardians.len()).contains(&usize::from(threshold))
        && (RECOVERY_DELAY_MIN_S..=RECOVERY_DELAY_MAX_S).contains(&delay_s);
    possible.then_some(GuardianSet { guardians: ascending, threshold, delayS: delay_s, salt })
}

/// What `NameGuardians::guardians` holds for a set. The set itself stays with the owner and the guardians.
pub fn guardian_commitment(study: B256, set: &GuardianSet) -> B256 {
    let GuardianSet { guardians, threshold, delayS, salt } = set;
    keccak256((study, guardians.clone(), U256::from(*threshold), *delayS, *salt).abi_encode_params())
}

/// Defines an enum of codes that travel as `u16`; codes of other versions are kept as numbers.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal, $code:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A number that this version does not know.
            Other(u16),
        }

        impl $name {
            /// Every known code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word for it; empty for an unknown number.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(_) => "",
                }
            }

            /// The code with this word.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.code() == code)
            }
        }

        impl From<$name> for u16 {
            fn from(code: $name) -> Self {
                match code {
                    $($name::$variant => $number,)*
                    $name::Other(number) => number,
                }
            }
        }

        impl From<u16> for $name {
            fn from(number: u16) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

codes! {
    /// What access is for: words of HL7 v3 code system ActReason (2.16.840.1.113883.5.8), value set PurposeOfUse.
    Purpose {
        /// Not stated: as a grant's purpose, for anything.
        Any = 0, "ANY";
        /// Treatment.
        Treatment = 1, "TREAT";
        /// Treatment in an emergency.
        EmergencyTreatment = 2, "ETREAT";
        /// Research.
        Research = 3, "HRESCH";
        /// The patient asked for it.
        PatientRequest = 4, "PATRQT";
        /// Operation of the institution.
        Operations = 5, "HOPERAT";
        /// Payment.
        Payment = 6, "HPAYMT";
        /// Public health.
        PublicHealth = 7, "PUBHLTH";
        /// Legal proceedings.
        Legal = 8, "HLEGAL";
        /// Teaching.
        Education = 9, "HEDUCATION";
    }
}

codes! {
    /// Why a request was denied.
    DenyReason {
        /// Not stated.
        NotStated = 0, "not-stated";
        /// The owner does not know who asks.
        UnknownGrantee = 1, "unknown-grantee";
        /// The owner does not want this purpose.
        Purpose = 2, "purpose";
        /// Too much was asked for: a preview or one series might do.
        TooBroad = 3, "too-broad";
        /// Not now; ask again.
        NotNow = 4, "not-now";
        /// The owner does not want to.
        Unwanted = 5, "unwanted";
    }
}

codes! {
    /// Why a source broke the glass. Zero is not accepted.
    EmergencyReason {
        /// The patient's life is in danger.
        LifeThreatening = 1, "life-threatening";
        /// The patient cannot be asked.
        PatientUnable = 2, "patient-unable";
        /// Others are in danger.
        PublicSafety = 3, "public-safety";
        /// A court or authority ordered it.
        LegalOrder = 4, "legal-order";
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::sol_types::SolStruct;

    #[test]
    fn codes_and_numbers_go_there_and_back() {
        for number in 0..20 {
            assert_eq!(u16::from(Purpose::from(number)), number);
            assert_eq!(u16::from(DenyReason::from(number)), number);
            assert_eq!(u16::from(EmergencyReason::from(number)), number);
        }
        assert_eq!(Purpose::from_code("ETREAT"), Some(Purpose::EmergencyTreatment));
        assert_eq!(EmergencyReason::from(0), EmergencyReason::Other(0));
    }

    #[test]
    fn a_proof_is_over_what_the_design_says() {
        let octets = key_proof_octets(0x0102, Address::repeat_byte(3), Address::repeat_byte(4), B256::repeat_byte(5));
        let (words, rest) = octets.split_at(24);
        assert_eq!(words, b"PACS bridge key binding\0");
        assert_eq!(rest.len(), 32 + 20 + 20 + 32);
        assert_eq!((&rest[..30], &rest[30..32]), (&[0; 30][..], &[1, 2][..]));
        assert!(rest[32..52] == [3; 20] && rest[52..72] == [4; 20] && rest[72..] == [5; 32]);
    }

    #[test]
    fn only_guardian_sets_that_can_act_are_made() {
        let g = |n| Address::repeat_byte(n);
        let day = RECOVERY_DELAY_MIN_S;
        let set = guardian_set(&[g(3), g(1), g(2)], 2, day, B256::ZERO).unwrap();
        assert_eq!(set.guardians, [g(1), g(2), g(3)]);
        assert!(guardian_set(&[g(1), g(1)], 1, day, B256::ZERO).is_none());
        assert!(guardian_set(&[g(1), Address::ZERO], 1, day, B256::ZERO).is_none());
        assert!(guardian_set(&[g(1)], 0, day, B256::ZERO).is_none());
        assert!(guardian_set(&[g(1)], 2, day, B256::ZERO).is_none());
        assert!(guardian_set(&[g(1)], 1, day - 1, B256::ZERO).is_none());
        assert!(guardian_set(&[g(1)], 1, RECOVERY_DELAY_MAX_S + 1, B256::ZERO).is_none());
        let nine: Vec<_> = (1..=9).map(g).collect();
        assert!(guardian_set(&nine, 1, day, B256::ZERO).is_none());
        assert!(guardian_set(&nine[..8], 8, day, B256::ZERO).is_some());
    }

    /// What a wallet shows and hashes is what the contracts' documentation says.
    #[test]
    fn the_types_are_those_of_the_contracts() {
        let source = [
            include_str!("../solidity/Sources.sol"),
            include_str!("../solidity/Studies.sol"),
            include_str!("../solidity/Consent.sol"),
            include_str!("../solidity/KeyBindings.sol"),
        ]
        .concat();
        let types = [
            ChangeEndpoint::eip712_encode_type(),
            ChangeKeys::eip712_encode_type(),
            DefineStudy::eip712_encode_type(),
            TransferStudy::eip712_encode_type(),
            TombstoneStudy::eip712_encode_type(),
            NameGuardians::eip712_encode_type(),
            RecoverStudy::eip712_encode_type(),
            VetoRecovery::eip712_encode_type(),
            Allow::eip712_encode_type(),
            Deny::eip712_encode_type(),
            Revoke::eip712_encode_type(),
            ApproveEmergency::eip712_encode_type(),
            BindKey::eip712_encode_type(),
            UnbindKey::eip712_encode_type(),
        ];
        for text in types {
            assert!(source.contains(&format!("\"{text}\"")), "{text}");
        }
    }
}
