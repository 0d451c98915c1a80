//! Reading what is in blocks without JSON between: for a program in the same process that wants megabytes of calldata back.
//!
//! The answers are those of `eth_getTransactionByBlockNumberAndIndex`, less what nobody here asks for.

use crate::copy::CopyError;
use crate::store::StoreError;
use crate::{Core, Head};
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Bytes};
use std::sync::Arc;

/// Reads transactions of an open ledger. Cheap to clone; outlives the ledger and then answers with an error.
#[derive(Clone)]
pub struct LedgerReader {
    core: Arc<Core>,
}

impl std::fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerReader").finish_non_exhaustive()
    }
}

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinedTransaction {
    /// Its hash.
    pub hash: B256,
    /// Who signed it.
    pub sender: Address,
    /// Callee; `None` creates a contract.
    pub to: Option<Address>,
    /// Calldata.
    pub input: Bytes,
}

impl LedgerReader {
    /// As [`EmbeddedLedger::export`](crate::EmbeddedLedger::export).
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn export(&self, out: &mut impl std::io::Write) -> Result<Head, CopyError> {
        crate::copy::export(&self.core.snapshot()?, self.core.config.chain_id, out)
    }

    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// The node's signature over the hash of the block of a height, r ‖ s ‖ v; none where there is no such block or no signer. Reads the disk, so it belongs on
    /// a thread that may block.
    ///
    /// # Errors
    /// When the store cannot be read or the ledger was closed.
    pub fn signature_at(&self, block: u64) -> Result<Option<Bytes>, StoreError> {
        let record = self.core.snapshot()?.block(block)?;
        Ok(record.map(|record| record.signature).filter(|signature| !signature.is_empty()))
    }

    /// A transaction by height and position. Reads the disk, so it belongs on a thread that may block.
    ///
    /// # Errors
    /// When the store cannot be read or the ledger was closed.
    pub fn transaction_at(&self, block: u64, index: u32) -> Result<Option<MinedTransaction>, StoreError> {
        let Some(stored) = self.core.snapshot()?.transaction(block, index)? else { return Ok(None) };
        let envelope = TxEnvelope::decode_2718_exact(&stored.raw).map_err(|_| StoreError::Corrupt("transaction"))?;
        let input = envelope.input().clone();
        Ok(Some(MinedTransaction { hash: stored.hash, sender: stored.sender, to: envelope.to(), input }))
    }
}
