//! Proofs: a small document that shows, to somebody who has neither this site nor a node, that an object was sealed on a ledger by a source in a block, and
//! that a file is that object.
//!
//! What is on the ledger of an object is an image, whose name commits to the object's digest ([`crate::study::image_id`]). The contract says `ImageSealed` when
//! every byte of it is there. [`make`] takes the receipt in which it says so, the path from it to the receipts root in the block's header ([`trie`]), the header,
//! and the salt that the name is made with. [`check`] needs nothing else. See docs/PROOFS.md for what that shows and what it does not.

mod check;
mod make;
mod trie;

use alloy::primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use check::{Match, Shown, Wrong, check, compare};
pub use make::{ProofError, make};

/// What the documents of this version call themselves.
pub const FORMAT: &str = "pacs-bridge/proof/1";

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `pacs-bridge/proof/1`.
    pub format: String,
    /// Which ledger.
    pub chain: Chain,
    /// Which object.
    pub object: Object,
    /// Its image on the ledger.
    pub image: Image,
    /// Where the contract said that all of it is there.
    pub receipt: Receipt,
    /// The block that this is in.
    pub block: Block,
}

/// A ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Hash of its block 0.
    #[schema(value_type = String)]
    pub genesis: B256,
    /// Account that founded the consortium: the contracts' addresses follow from it and from their code.
    #[schema(value_type = String)]
    pub admin: Address,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// SOPInstanceUID.
    pub sop_instance_uid: String,
    /// SHA-256 of its file: group 0002 as this software writes it, and the data set as it was received.
    #[schema(value_type = String)]
    pub file_sha256: B256,
    /// Canonical digest of its pixel data, as far as this site has it. The ledger knows of it only by way of the file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub pixel_sha256: Option<B256>,
}

/// What an image's name is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The name on the ledger.
    #[schema(value_type = String)]
    pub image_id: B256,
    /// The study's salt. Whoever has it can tell which names on the ledger are of this study's objects that he has, and nothing else.
    #[schema(value_type = String)]
    pub study_salt: B256,
    /// Number of the session key that the image is sealed with.
    pub epoch: u32,
    /// The source that stored it.
    #[schema(value_type = String)]
    pub source: Address,
}

/// A receipt, and the way from it to the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Hash of the transaction, for who wants to look it up. Not part of what is shown.
    #[schema(value_type = String)]
    pub transaction: B256,
    /// Position in the block.
    pub index: u64,
    /// Which of its logs it is, from 0.
    pub log: u32,
    /// Its encoding by EIP-2718.
    #[schema(value_type = String)]
    pub octets: Bytes,
    /// Nodes of the receipts trie from the root down, each in RLP.
    #[schema(value_type = Vec<String>)]
    pub path: Vec<Bytes>,
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Hash of the header.
    #[schema(value_type = String)]
    pub hash: B256,
    /// The header in RLP. A Clique network's has the signature of who sealed it.
    #[schema(value_type = String)]
    pub header: Bytes,
    /// The node's signature over the hash, on a ledger inside one site.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub signature: Option<Bytes>,
}
