//! The ledger client as the publisher's [`Chain`].

use super::Chain;
use crate::ledger::node::{Clock, Node};
use crate::ledger::pieces::PIECE_OVERHEAD_BYTES;
use crate::ledger::{Amendment, Client, ImageOnChain, LedgerError, Located, Opening, Piece, Seal, StudyOwner};
use alloy::primitives::B256;
use thiserror::Error;

/// Why the chain did not do something, as far as the publisher cares.
#[derive(Debug, Clone, Error)]
pub enum ChainError {
    /// Try again later.
    #[error("{0}")]
    Later(String),
    /// Trying again is useless until somebody acts.
    #[error("{0}")]
    Refused(String),
}

impl From<LedgerError> for ChainError {
    fn from(e: LedgerError) -> Self {
        match e {
            LedgerError::Unavailable(what) => Self::Later(what),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl<N: Node, K: Clock> Chain for Client<N, K> {
    fn payload_bytes_max(&self) -> (usize, usize) {
        (Client::payload_bytes_max(self), PIECE_OVERHEAD_BYTES)
    }

    async fn open(&self, opening: &Opening, wanted: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Located>, ChainError> {
        Ok(Client::open(self, opening, wanted).await?)
    }

    async fn defined(&self, study: B256) -> Result<bool, ChainError> {
        Ok(self.study_exists(study).await?)
    }

    async fn define(&self, study: B256, owner: &StudyOwner, derived_from: B256) -> Result<(), ChainError> {
        Ok(self.define_study(study, owner, derived_from).await?)
    }

    async fn image(&self, image: B256) -> Result<ImageOnChain, ChainError> {
        Ok(Client::image(self, image).await?)
    }

    async fn find(&self, image: B256) -> Result<Vec<Located>, ChainError> {
        Ok(self.find_pieces(image).await?)
    }

    async fn store(&self, pieces: &[Piece]) -> Result<Vec<Located>, ChainError> {
        Ok(Client::store(self, pieces).await?)
    }

    async fn seal(&self, seals: &[Seal]) -> Result<(), ChainError> {
        Ok(Client::seal(self, seals).await?)
    }

    async fn announce(&self, amendment: &Amendment) -> Result<(), ChainError> {
        Ok(self.amend(amendment).await?)
    }
}
