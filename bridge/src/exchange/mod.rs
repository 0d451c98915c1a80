//! Between bridges: the site that published a study hands its keys to sites that the owner let in, and those bring the study here.
//!
//! The ledger is public to its members, so keys travel beside it. The grantee connects to the source's endpoint over TLS 1.3 and
//! knows it by the key that the source stated on the ledger; it proves who it is by a signature that holds for that TLS
//! connection's key alone. Nothing else is asked of the source: manifest, previews and objects come from the ledger.
//!
//! * [`tls`]: the key of this site's endpoint, and how another site's is recognised.
//! * [`server`]: who may have what, decided anew for every request. Every refusal is the same.
//! * [`client`]: asks for the keys of one study.
//! * [`task`]: keeps what is here as the grants say.
//! * [`envelope`]: the same over the ledger, where sites cannot reach each other and their operators want it.
//!
//! Must not know associations, nor how the chain is followed.

pub mod client;
pub mod envelope;
pub mod server;
pub mod task;
#[cfg(test)]
mod tests;
pub mod tls;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol_types::{Eip712Domain, SolStruct as _};
use contracts::PieceMode;
use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;
use crate::payload::pieces::PieceMap;

/// Where study keys are asked for.
pub const STUDY_KEY_PATH: &str = "/exchange/v1/study-key";
/// Longest request body, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Longest answer body, in bytes.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// How far the two sites' clocks may be apart, in seconds.
pub const CLOCK_SKEW_S_MAX: u64 = 120;

mod signed {
    #![allow(missing_docs, unreachable_pub)]
    alloy::sol! {
        #[derive(Debug, PartialEq, Eq)]
        struct StudyKeyRequest {
            bytes32 studyId;
            address grantee;
            bytes32 tlsKey;
            bytes32 encryptionKey;
            uint64 time;
            bytes32 nonce;
        }
    }
}

/// The ledger on which both sites are: what a signature is bound to besides the TLS key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract of sources and studies.
    pub registry: Address,
}

impl Place {
    /// Where a client of the ledger is.
    #[must_use]
    pub fn of(ledger: &Ledger) -> Self {
        Self { chain_id: ledger.chain_id(), registry: ledger.addresses().studies }
    }
}

/// Asks for the keys of a study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// The study's name on the ledger.
    pub study_id: B256,
    /// The account that the owner let in.
    pub grantee: Address,
    /// The certificate that keys are to be wrapped to.
    pub encryption_key: Bytes,
    /// Seconds since 1970.
    pub time: u64,
    /// 32 bytes that are never used twice.
    pub nonce: B256,
    /// By an account that acts for the grantee, over [`KeyRequest::digest`].
    pub signature: Bytes,
}

impl KeyRequest {
    /// What is signed: EIP-712, bound to the ledger and to the TLS key of the site that is asked, so that nobody in between can use
    /// it elsewhere.
    #[must_use]
    pub fn digest(&self, place: Place, tls_key: [u8; 32]) -> B256 {
        let (domain, message) = self.typed_data(place, tls_key);
        keccak256([&[0x19, 0x01], domain.as_slice(), message.as_slice()].concat())
    }

    /// The two hashes that [`KeyRequest::digest`] is made of: the domain's and the message's.
    #[must_use]
    pub fn typed_data(&self, place: Place, tls_key: [u8; 32]) -> (B256, B256) {
        let domain = Eip712Domain::new(
            Some("PACS Bridge Exchange".into()),
            Some("1".into()),
            Some(U256::from(place.chain_id)),
            Some(place.registry),
            None,
        );
        let message = signed::StudyKeyRequest {
            studyId: self.study_id,
            grantee: self.grantee,
            tlsKey: B256::from(tls_key),
            encryptionKey: keccak256(&self.encryption_key),
            time: self.time,
            nonce: self.nonce,
        };
        (domain.separator(), message.eip712_hash_struct())
    }
}

/// The keys of a study, and where its manifest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDelivery {
    /// Study Instance UID.
    pub study_uid: String,
    /// The study's salt.
    pub salt: B256,
    /// Series Instance UID, where no more than that series is granted. Keys and manifest are of that series then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    /// For every epoch that may be opened: one key of the study; of a series one for its previews, and one for its objects as well
    /// where these are granted.
    pub keys: Vec<EpochKey>,
    /// Version of the study.
    pub version: u32,
    /// The image of the manifest in that version.
    pub manifest: ImagePlace,
}

/// A key of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochKey {
    /// The epoch.
    pub epoch: u32,
    /// Whether it opens previews and manifests only. Of a series' other key: it opens the objects only.
    pub preview_only: bool,
    /// One PKESK packet for the grantee.
    pub wrapped: Bytes,
}

/// Where an image is on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePlace {
    /// Its name.
    pub image: B256,
    /// Number of pieces.
    pub pieces: u32,
    /// Bytes of each but the last.
    pub piece_bytes: u32,
    /// Bytes of all.
    pub sealed_bytes: u64,
    /// Merkle root.
    pub root: B256,
    /// Where the pieces are kept: the word of `publish.piece_mode`.
    pub mode: String,
}

impl ImagePlace {
    /// Its piece map.
    #[must_use]
    pub fn map(&self) -> PieceMap {
        PieceMap {
            pieces: self.pieces,
            piece_bytes: self.piece_bytes,
            sealed_bytes: self.sealed_bytes,
            root: self.root,
        }
    }

    /// Where its pieces are kept, if that is known here.
    #[must_use]
    pub fn piece_mode(&self) -> Option<PieceMode> {
        PieceMode::ALL.into_iter().find(|mode| crate::config::piece_mode_name(*mode) == self.mode)
    }
}

/// Why keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The source does not answer, or not as agreed: to be tried again.
    #[error("the source does not answer: {0}")]
    Away(String),
    /// It was asked for on the ledger: to be tried again.
    #[error("asked on the ledger; the source has not answered yet")]
    Asked,
    /// What was delivered over the ledger was not opened in time: to be tried again.
    #[error("what the source delivered over the ledger is no longer good")]
    Lapsed,
    /// The source says no, and nobody is told why.
    #[error("the source refuses")]
    Refused,
    /// Somebody else answers at the source's endpoint.
    #[error("another key answers at the endpoint than the ledger names")]
    Impostor,
    /// What the source said does not agree with the ledger.
    #[error("the source's answer does not agree with the ledger: {0}")]
    Disagrees(&'static str),
    /// The source states no endpoint or no key at which it could be asked.
    #[error("the source states no {0}")]
    Unreachable(&'static str),
    /// This site's own key cannot be used.
    #[error("tls key: {0}")]
    Key(String),
}
