//! What is said of an erasure when it is done, signed by the source. Pure; must not know where anything was kept.

use alloy::primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};

use crate::archive::Holdings;
use crate::ledger::consent::signer_of;

/// What the file says it is.
const FORMAT: &str = "pacs-bridge/erasure-certificate/1";

/// What was destroyed here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroyed {
    /// The random bytes that its names on the ledger were made with: 1, or 0 when the study never had any.
    pub salts: u32,
    /// Session keys, one an epoch.
    pub session_keys: u32,
    /// Objects in the index.
    pub objects: u64,
    /// Of which had a file.
    pub files: u64,
    /// Bytes of these files.
    pub file_bytes: u64,
    /// Previews.
    pub previews: u64,
    /// Bytes of the intake log that were overwritten, of whatever study they were.
    pub intake_log_bytes: u64,
}

/// Where the owner's word about the end of the study is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// Hash of the transaction.
    pub transaction: B256,
    /// Height of its block.
    pub block: u64,
}

/// Ciphertext that nobody can take off a ledger, or out of other sites' nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remains {
    /// Images that were planned.
    pub images: u64,
    /// Their pieces.
    pub pieces: u64,
    /// Of which had been seen on the ledger; the others may have arrived as well.
    pub pieces_seen: u64,
    /// Sealed bytes of the images.
    pub sealed_bytes: u64,
    /// Transactions that had been seen to carry pieces.
    pub transactions: u64,
    /// Of the images, those whose ledger piece only names sealed bytes in IPFS. This site's node is told to let them go, as are those of sites
    /// that were let in; nobody can be made to. Left out when there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ipfs: u64,
    /// Envelopes with keys for other sites. Each opens with a key of that site that it destroys once it has opened it. Left out when
    /// there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub envelopes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde wants it.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Somebody who was let in once, and may have kept keys or copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Who.
    pub grantee: Address,
    /// The most that was granted: `preview` or `full`.
    pub mode: String,
    /// Height of the block that let it in first.
    pub since_block: u64,
}

/// What was done. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`FORMAT`].
    format: String,
    /// The source that says so.
    pub source: Address,
    /// EIP-155 chain id, where a ledger was known.
    pub chain_id: Option<u64>,
    /// The contract of sources and studies.
    pub registry: Option<Address>,
    /// The study's name on the ledger, if it ever had one.
    pub study_id: Option<B256>,
    /// StudyInstanceUID, when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study_uid: Option<String>,
    /// When the study was hidden from everybody.
    pub begun_s: u64,
    /// When all was done.
    pub ended_s: u64,
    /// What was destroyed.
    pub destroyed: Destroyed,
    /// The end of the study on the ledger; none when the ledger never knew it.
    pub tombstone: Option<Tombstone>,
    /// What stays on the ledger and opens to nobody who has no key.
    pub remains: Remains,
    /// Who may have keys or copies.
    pub may_hold_copies: Vec<Holder>,
    /// What the reader must know besides.
    pub notes: Vec<String>,
}

/// What goes on a certificate.
pub(super) struct Said {
    pub(super) source: Address,
    pub(super) ledger: Option<(u64, Address)>,
    pub(super) study_uid: Option<String>,
    pub(super) times_s: (u64, u64),
    pub(super) keys: (u32, u32),
    pub(super) holdings: Holdings,
    pub(super) intake_log_bytes: u64,
    pub(super) tombstone: Option<Tombstone>,
    pub(super) holders: Vec<Holder>,
    pub(super) envelopes: u64,
}

impl Certificate {
    pub(super) fn new(said: Said) -> Self {
        let (holdings, (salts, session_keys)) = (said.holdings, said.keys);
        let notes = [
            "a backup of this site's keys or files that was made before still holds what was destroyed here",
            "ciphertext on a ledger cannot be removed; without the destroyed keys it does not open",
            "whoever is named under may_hold_copies was told to remove keys and copies and cannot be made to",
        ];
        Self {
            format: FORMAT.to_owned(),
            source: said.source,
            chain_id: said.ledger.map(|(chain_id, _)| chain_id),
            registry: said.ledger.map(|(_, registry)| registry),
            study_id: holdings.study_id,
            study_uid: said.study_uid,
            begun_s: said.times_s.0,
            ended_s: said.times_s.1,
            destroyed: Destroyed {
                salts,
                session_keys,
                objects: holdings.objects,
                files: holdings.files,
                file_bytes: holdings.file_bytes,
                previews: holdings.previews,
                intake_log_bytes: said.intake_log_bytes,
            },
            tombstone: said.tombstone,
            remains: Remains {
                images: holdings.images,
                pieces: holdings.pieces,
                pieces_seen: holdings.pieces_seen,
                sealed_bytes: holdings.sealed_bytes,
                transactions: holdings.transactions,
                ipfs: holdings.ipfs,
                envelopes: said.envelopes,
            },
            may_hold_copies: said.holders,
            notes: notes.map(str::to_owned).to_vec(),
        }
    }

    /// What is signed (EIP-191, `personal_sign`): the certificate as compact JSON, keys in the order of the file, with the head that
    /// wallets put before a text.
    #[must_use]
    pub fn preimage(&self) -> Vec<u8> {
        // Nothing in it can fail to be written: no maps, no keys but names.
        let text = serde_json::to_vec(self).unwrap_or_default();
        [format!("\x19Ethereum Signed Message:\n{}", text.len()).into_bytes(), text].concat()
    }
}

/// A certificate and the source's signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCertificate {
    /// What was done.
    pub certificate: Certificate,
    /// By the source, over [`Certificate::preimage`].
    pub signature: Bytes,
}

/// Why a certificate is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Another format.
    #[error("is of format \"{0}\"; this program knows {FORMAT}")]
    Format(String),
    /// It was signed by somebody else, or changed afterwards.
    #[error("is not signed by {0}, the source that it names, or was changed after it was signed")]
    Signature(Address),
}

impl SignedCertificate {
    /// Whether the source that it names signed it as it is.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn check(&self) -> Result<(), CheckError> {
        let certificate = &self.certificate;
        if certificate.format != FORMAT {
            return Err(CheckError::Format(certificate.format.clone()));
        }
        let digest = alloy::primitives::keccak256(certificate.preimage());
        match signer_of(digest, &self.signature) {
            Some(signer) if signer == certificate.source => Ok(()),
            _ => Err(CheckError::Signature(certificate.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use alloy::signers::SignerSync as _;
    use alloy::signers::local::PrivateKeySigner;

    use super::*;

    #[test]
    fn only_what_the_source_signed_is_good_and_any_wallet_can_tell() {
        let key = PrivateKeySigner::random();
        let certificate = Certificate::new(Said {
            source: key.address(),
            ledger: Some((7, Address::repeat_byte(1))),
            study_uid: None,
            times_s: (10, 20),
            keys: (1, 2),
            holdings: Holdings { study_id: Some(B256::repeat_byte(3)), objects: 5, ..Holdings::default() },
            intake_log_bytes: 4096,
            tombstone: Some(Tombstone { transaction: B256::repeat_byte(4), block: 9 }),
            holders: vec![Holder { grantee: Address::repeat_byte(5), mode: "full".into(), since_block: 8 }],
            envelopes: 0,
        });
        // As a wallet signs a text.
        let text = serde_json::to_vec(&certificate).unwrap();
        let signature = Bytes::copy_from_slice(&key.sign_message_sync(&text).unwrap().as_bytes());
        let signed = SignedCertificate { certificate, signature };
        let read: SignedCertificate = serde_json::from_str(&serde_json::to_string_pretty(&signed).unwrap()).unwrap();
        assert_eq!(read, signed);
        read.check().unwrap();
        let mut changed = read.clone();
        changed.certificate.destroyed.objects = 6;
        assert_eq!(changed.check(), Err(CheckError::Signature(key.address())));
        let mut other = read;
        other.certificate.source = Address::repeat_byte(6);
        assert!(other.check().is_err());
    }
}
