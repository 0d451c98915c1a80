//! Checks a proof, with nothing but the document and the file that it is about.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use alloy::consensus::{Header, ReceiptEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Signature};
use alloy::rlp::Decodable as _;
use alloy::sol_types::SolEvent as _;
use contracts::{Pieces, deployment};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{FORMAT, Proof, trie};
use crate::archive::{FileMeta, Part10Error};
use crate::config::piece_mode_name;
use crate::ledger::PieceMode;
use crate::network::audit::signer_of;
use crate::payload::describe::{HEADER_VALUE_BYTES_DEFAULT, describe};
use crate::study::{ImageKind, Salt, image_id};

const RUN_BYTES: usize = 256 * 1024;

/// What a proof shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// SOPInstanceUID.
    pub sop_instance_uid: String,
    /// SHA-256 of the object's file.
    pub file_sha256: B256,
    /// The source that sealed it.
    pub source: Address,
    /// How its bytes are on the ledger.
    pub pieces: &'static str,
    /// The contract that said so; its address follows from the founder of the consortium and from the contract's code.
    pub contract: Address,
    /// EIP-155 chain id, as the document says.
    pub chain_id: u64,
    /// Hash of block 0, as the document says.
    pub genesis: B256,
    /// The founder, as the document says.
    pub admin: Address,
    /// Height of the block.
    pub block: u64,
    /// Its hash: on the ledger, if a node of it has a block of this hash at this height.
    pub block_hash: B256,
    /// When it was sealed, seconds since 1970.
    pub time_s: u64,
    /// Who signed the block, where its kind of ledger says that in a way that is understood here.
    pub signer: Option<Address>,
}

/// How a file compares with the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// Every byte of the file is as it was sealed.
    pub file: bool,
    /// The data set is; group 0002 before it may have been written anew by other software.
    pub data_set: bool,
    /// The pixel data has the digest that the document says; none where either has none.
    pub pixels: Option<bool>,
}

/// Why a proof shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another version's, or something else.
    #[error("the document calls itself \"{0}\", this program knows {FORMAT}")]
    Format(String),
    /// The header is none.
    #[error("the block's header cannot be read")]
    Header,
    /// The header is another's.
    #[error("the header's hash is {found}, the document says {stated}")]
    Hash {
        /// Of the header.
        found: B256,
        /// In the document.
        stated: B256,
    },
    /// The receipt is not in the block.
    #[error("the receipt is not in the block")]
    Path,
    /// The receipt is none, or of a transaction that failed.
    #[error("the receipt cannot be read, or is of a transaction that failed")]
    Receipt,
    /// The receipt says something else.
    #[error("the receipt does not say that this source sealed this image by a contract of this consortium")]
    Event,
    /// The name is another object's.
    #[error("the image's name is not made of this object's digest")]
    Name,
    /// The signature is none.
    #[error("the signature of the block cannot be read")]
    Signature,
}

/// What a proof shows.
///
/// # Errors
/// [`Wrong`] where it shows nothing.
pub fn check(proof: &Proof) -> Result<Shown, Wrong> {
    let Proof { format, chain, object, image, receipt, block } = proof;
    if format != FORMAT {
        return Err(Wrong::Format(format.chars().take(40).collect()));
    }
    let mut octets = block.header.as_ref();
    let header = Header::decode(&mut octets).ok().filter(|_| octets.is_empty()).ok_or(Wrong::Header)?;
    let found = header.hash_slow();
    if found != block.hash {
        return Err(Wrong::Hash { found, stated: block.hash });
    }
    if !trie::holds(header.receipts_root, receipt.index, &receipt.octets, &receipt.path) {
        return Err(Wrong::Path);
    }
    let envelope = ReceiptEnvelope::decode_2718_exact(&receipt.octets).map_err(|_| Wrong::Receipt)?;
    if !envelope.status() {
        return Err(Wrong::Receipt);
    }
    let log = envelope.logs().get(receipt.log as usize).ok_or(Wrong::Event)?;
    let addresses = deployment::addresses(chain.admin);
    let mode = PieceMode::ALL.into_iter().find(|mode| addresses.pieces(*mode) == log.address).ok_or(Wrong::Event)?;
    let said = Pieces::ImageSealed::decode_log(log).map_err(|_| Wrong::Event)?;
    if said.image != image.image_id || said.source != image.source {
        return Err(Wrong::Event);
    }
    let salt = Salt::from_bytes(image.study_salt.0);
    let named = image_id(&salt, ImageKind::Object, &object.sop_instance_uid, &object.file_sha256.0, image.epoch);
    if named != image.image_id {
        return Err(Wrong::Name);
    }
    Ok(Shown {
        sop_instance_uid: object.sop_instance_uid.clone(),
        file_sha256: object.file_sha256,
        source: image.source,
        pieces: piece_mode_name(mode),
        contract: log.address,
        chain_id: chain.chain_id,
        genesis: chain.genesis,
        admin: chain.admin,
        block: header.number,
        block_hash: block.hash,
        time_s: header.timestamp,
        signer: signer(proof, &header)?,
    })
}

fn signer(proof: &Proof, header: &Header) -> Result<Option<Address>, Wrong> {
    let Some(signature) = &proof.block.signature else { return Ok(signer_of(header)) };
    let signature = Signature::from_raw(signature).map_err(|_| Wrong::Signature)?;
    signature.recover_address_from_prehash(&proof.block.hash).map(Some).map_err(|_| Wrong::Signature)
}

/// Compares a file with the object of a proof. Blocks.
///
/// # Errors
/// [`Part10Error`] when it is no DICOM file, or cannot be read.
pub fn compare(proof: &Proof, path: &Path) -> Result<Match, Part10Error> {
    let mut file = BufReader::new(File::open(path)?);
    let whole = digest(&[], &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let (meta, offset) = FileMeta::read(&mut file)?;
    file.seek(SeekFrom::Start(offset))?;
    let as_filed = digest(&meta.encode(), &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let pixels = describe(&mut file, HEADER_VALUE_BYTES_DEFAULT).ok().and_then(|described| described.pixel_sha256);
    let stated = proof.object.pixel_sha256;
    Ok(Match {
        file: whole == proof.object.file_sha256,
        data_set: whole == proof.object.file_sha256 || as_filed == proof.object.file_sha256,
        pixels: stated.zip(pixels).map(|(stated, found)| stated == B256::from(found)),
    })
}

/// SHA-256 of some bytes and of what is left of a file.
fn digest(before: &[u8], file: &mut BufReader<File>) -> io::Result<B256> {
    let mut sha256 = Sha256::new();
    sha256.update(before);
    let mut run = vec![0; RUN_BYTES];
    loop {
        match file.read(&mut run)? {
            0 => return Ok(B256::from_slice(&sha256.finalize())),
            count => sha256.update(&run[..count]),
        }
    }
}
