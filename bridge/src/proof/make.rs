//! Gathers a proof from a site and its ledger. Nothing is handed out that does not hold.

use alloy::consensus::ReceiptEnvelope;
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Bytes};
use alloy::sol_types::{SolCall as _, SolEvent as _};
use contracts::Pieces;
use dicom_scp::Uid;

use super::{Block, Chain, FORMAT, Image, Object, Proof, Receipt, Wrong, check, trie};
use crate::archive::{ArchiveError, Stored};
use crate::keyring::KeyringError;
use crate::ledger::node::{Ask, At, EventFilter, Node as _, NodeError};
use crate::ledger::{Ledger, LedgerError};
use crate::site::Site;
use crate::study::{ImageKind, Salt};

/// Blocks that are looked through at once.
const SPAN: u64 = 1_000;

/// Why there is no proof of an object.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is not here.
    #[error("there is no object {0} here")]
    Unknown(Uid),
    /// It is not on the ledger as an image of its own.
    #[error(
        "object {0} has no image on the ledger: it is not there yet, it is kept at its source (where the ledger has its digest inside the study's manifest alone), \
         or this site may see its preview only"
    )]
    NoImage(Uid),
    /// Not yet.
    #[error("that object {0} is sealed is not final yet")]
    NotFinal(Uid),
    /// Nobody to ask.
    #[error("the ledger is away")]
    Away,
    /// The node cannot tell.
    #[error("the ledger's node does not have what a proof needs: {0}")]
    Node(String),
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The ledger failed.
    #[error("the ledger")]
    Ledger(#[from] LedgerError),
    /// What was gathered shows nothing.
    #[error("what the ledger says does not prove it")]
    Wrong(#[from] Wrong),
}

impl From<NodeError> for ProofError {
    fn from(error: NodeError) -> Self {
        Self::Node(error.to_string())
    }
}

/// Proves that an object is on the ledger.
///
/// # Errors
/// [`ProofError`].
pub async fn make(site: &Site, uid: &Uid) -> Result<Proof, ProofError> {
    let archive = site.archive();
    let stored = archive.instance(uid)?.ok_or(ProofError::Unknown(*uid))?;
    let found = archive.image_of_instance(stored.id)?.filter(|found| found.kind == ImageKind::Object);
    let found = found.ok_or(ProofError::NoImage(*uid))?;
    let ledger = site.parts().ledger.get().ok_or(ProofError::Away)?.clone();
    let (salt, source) = named_with(site, &stored, &ledger).await?.ok_or(ProofError::NoImage(*uid))?;
    let image = Image { image_id: found.id, study_salt: B256::from(*salt.as_bytes()), epoch: found.epoch, source };
    let first = archive.locations(&found.id)?.last().map_or(0, |last| last.location.block);
    let sealed = sealed(&ledger, ledger.addresses().pieces(found.mode), &image, first).await?;
    let (block, index) = sealed.ok_or(ProofError::NotFinal(*uid))?;
    let (receipt, block) = evidence(&ledger, block, index, &image).await?;
    let object = Object {
        sop_instance_uid: uid.to_string(),
        file_sha256: stored.file_sha256.into(),
        pixel_sha256: pixels(site, stored).await?,
    };
    let genesis = ledger.node().block_at(0).await?.ok_or_else(|| missing("block 0"))?.hash;
    let chain = Chain { chain_id: ledger.chain_id(), genesis, admin: ledger.addresses().founder };
    let proof = Proof { format: FORMAT.to_owned(), chain, object, image, receipt, block };
    check(&proof)?;
    Ok(proof)
}

fn missing(what: &str) -> ProofError {
    ProofError::Node(format!("no {what}"))
}

/// The salt of an object's study, and the source that stored it.
async fn named_with(site: &Site, stored: &Stored, ledger: &Ledger) -> Result<Option<(Salt, Address)>, ProofError> {
    let keyring = &site.parts().keyring;
    if stored.origin == 0 {
        let Some(keys) = keyring.study(&stored.study_uid)? else { return Ok(None) };
        return Ok(Some((keys.salt, ledger.source().await?)));
    }
    let Some(granted) = site.archive().foreign_of(stored)? else { return Ok(None) };
    Ok(keyring.foreign(granted.study_id)?.map(|keys| (keys.salt, granted.source)))
}

/// Height and position of the transaction that sealed an image, as far as that is final.
async fn sealed(
    ledger: &Ledger,
    contract: Address,
    image: &Image,
    first: u64,
) -> Result<Option<(u64, u64)>, ProofError> {
    let last = ledger.final_height().await?;
    // Of what is not sealed no block says so, and looking through all of them would only tell that.
    let call = Pieces::getEndCall { source: image.source, image: image.image_id };
    let ask = Ask { from: image.source, to: contract, data: call.abi_encode().into() };
    let ended = ledger.node().call(ask, At::Block(last)).await?;
    if !Pieces::getEndCall::abi_decode_returns(&ended).unwrap_or(false) {
        return Ok(None);
    }
    let topics = vec![Pieces::ImageSealed::SIGNATURE_HASH, image.source.into_word(), image.image_id];
    let mut from = first;
    while from <= last {
        let to = last.min(from + SPAN - 1);
        let events = ledger.node().events(EventFilter { contract, from, to, topics: topics.clone() }).await?;
        if let Some(event) = events.first() {
            return Ok(Some((event.block_number, event.transaction_index)));
        }
        from = to + 1;
    }
    Ok(None)
}

/// The receipt at a place, with its path, and the block.
async fn evidence(ledger: &Ledger, number: u64, index: u64, image: &Image) -> Result<(Receipt, Block), ProofError> {
    let node = ledger.node();
    let hash = node.block_at(number).await?.ok_or_else(|| missing("block"))?.hash;
    let header = node.header(hash).await?.ok_or_else(|| missing("header"))?;
    let signature = node.block_signature(number).await?;
    let receipts = node.encoded_receipts(hash).await?.ok_or_else(|| missing("receipts"))?;
    let (root, path) = trie::path(&receipts, index);
    if root != header.receipts_root {
        return Err(ProofError::Node("its receipts are not those of the block's header".to_owned()));
    }
    let position = usize::try_from(index).unwrap_or(usize::MAX);
    let octets = receipts.get(position).ok_or_else(|| missing("receipt"))?.clone();
    let transactions = node.block(hash).await?.ok_or_else(|| missing("block"))?.transactions;
    let transaction = *transactions.get(position).ok_or_else(|| missing("transaction"))?;
    let log = log_of(&octets, image).ok_or(Wrong::Event)?;
    let mut encoded = Vec::new();
    alloy::rlp::Encodable::encode(&header, &mut encoded);
    Ok((Receipt { transaction, index, log, octets, path }, Block { hash, header: Bytes::from(encoded), signature }))
}

/// Which of a receipt's logs says that an image is sealed.
fn log_of(octets: &Bytes, image: &Image) -> Option<u32> {
    let envelope = ReceiptEnvelope::decode_2718_exact(octets).ok()?;
    let is_it = |log: &alloy::primitives::Log| {
        Pieces::ImageSealed::decode_log(log)
            .is_ok_and(|said| said.image == image.image_id && said.source == image.source)
    };
    envelope.logs().iter().position(is_it).and_then(|position| u32::try_from(position).ok())
}

/// The pixel data's digest, which a manifest has.
async fn pixels(site: &Site, stored: Stored) -> Result<Option<B256>, ProofError> {
    let archive = site.archive().clone();
    let listed = tokio::task::spawn_blocking(move || {
        let listing = archive.listing_of(&stored)?;
        let object = listing.as_ref().and_then(|listing| listing.object(&stored));
        Ok::<_, ArchiveError>(object.and_then(|object| object.pixel_sha256).map(Into::into))
    });
    Ok(listed.await.map_err(|_| ArchiveError::Closed)??)
}
