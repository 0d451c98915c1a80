//! Heads of this source's own logs on the ledger. Must not know what is in the logs.

use super::client::{Client, LedgerError};
use super::node::{Clock, Node};
use alloy::primitives::{B256, U256};
use alloy::sol_types::SolCall as _;
use contracts::Anchors;

/// A head that the ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnchorOnChain {
    /// The log's name.
    pub log: B256,
    /// Its head.
    pub head: B256,
    /// How many records it had.
    pub records: u64,
    /// Time of the block, in seconds since 1970.
    pub time_s: u64,
}

impl<N: Node, K: Clock> Client<N, K> {
    /// States that a log of this source has so many records and this head, and returns when that was seen at the configured depth.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when the ledger holds more records of the log, or another head of as many: then the log is not what it was.
    pub async fn anchor(&self, log: B256, head: B256, records: u64) -> Result<(), LedgerError> {
        let (source, contract) = (self.source().await?, self.addresses().anchors);
        let call = Anchors::anchorCall { log, head, records }.abi_encode();
        let look = |at| async move {
            let known = self.ask(contract, Anchors::latestCall { source, log }, at).await?;
            Ok((known.records >= records).then_some(known))
        };
        let known = self.ensure(contract, call.into(), look).await?;
        if known.records > records || known.head != head {
            return Err(LedgerError::Refused(format!(
                "the ledger holds an anchor of this log with {} records, and the {records} records here are not that log",
                known.records
            )));
        }
        Ok(())
    }

    /// Head and number of records of the newest anchor of a log of this source at the configured depth, if there is one.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn latest_anchor(&self, log: B256) -> Result<Option<(B256, u64)>, LedgerError> {
        let (source, contract) = (self.source().await?, self.addresses().anchors);
        let known = self.ask(contract, Anchors::latestCall { source, log }, self.deep().await?).await?;
        Ok(Some((known.head, known.records)).filter(|(_, records)| *records > 0))
    }

    /// Every anchor of this source at the configured depth, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn anchors(&self) -> Result<Vec<AnchorOnChain>, LedgerError> {
        let (source, contract) = (self.source().await?, self.addresses().anchors);
        let at = self.deep().await?;
        let count = self.ask(contract, Anchors::anchorCountCall { source }, at).await?;
        let mut found = Vec::new();
        for number in 0..count.saturating_to::<u64>() {
            let call = Anchors::anchorAtCall { source, number: U256::from(number) };
            let a = self.ask(contract, call, at).await?;
            found.push(AnchorOnChain { log: a.log, head: a.head, records: a.records, time_s: a.time });
        }
        Ok(found)
    }
}
