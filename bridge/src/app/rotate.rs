//! A new key for the source's daily transactions. Each step is durable, or seen on chain at the configured depth, before the next;
//! run again after an interruption it goes on where it was.
//!
//! 1. The new key is kept in a file of its own. 2. The source authorises it and gives it funds. 3. It accepts. 4. It takes the
//!    old key's place here; the old one is kept apart. 5. The source retires the old one. 6. The old file goes, unless it is the
//!    source's own: that is who the source is, and what the next rotation needs.
//!
//! Before 4 the daemon signs with the old key and the chain honours it; from 4 on with the new one, which it honours since 3.

use alloy::primitives::Address;

use super::{Config, Core, LedgerKind, RpcNode, StartError, endpoints};
use crate::keyring::KeyringError;
use crate::ledger::{self, Endpoints, Ledger, LedgerError};
use alloy::signers::local::PrivateKeySigner;
use std::sync::Arc;

/// Why a rotation did not come to its end. Running it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The site or its ledger cannot be opened.
    #[error("nothing was lost; run this again when the cause is mended")]
    Open(#[from] Box<StartError>),
    /// The key is not here.
    #[error(
        "a remote signer holds the key that signs; give it a new one there and name its account in ledger.remote_signer_address"
    )]
    Remote,
    /// The ledger refused a step.
    #[error("nothing was lost; run this again when the cause is mended")]
    Ledger(#[from] LedgerError),
    /// A key file failed.
    #[error("keys")]
    Keyring(#[from] KeyringError),
}

/// What a rotation changed.
#[derive(Debug, Clone, Copy)]
pub struct Rotated {
    /// Who the source is, as before.
    pub source: Address,
    /// Who signed until now.
    pub old: Address,
    /// Who signs from the next start on.
    pub new: Address,
}

impl Core {
    /// Replaces the key that signs, also when the ledger no longer honours it. The site must not be serving.
    ///
    /// # Errors
    /// [`RotateError`].
    pub async fn rotate(config: Config) -> Result<Rotated, RotateError> {
        if config.ledger.remote_signer.is_some() {
            return Err(RotateError::Remote);
        }
        let mut core = Self::open_apart(config).await.map_err(Box::new)?;
        if core.config.ledger.kind == LedgerKind::Embedded {
            core.embedded = Some(core.open_embedded().await.map_err(Box::new)?);
        }
        let rotated = core.rotate_keys().await;
        core.close().await;
        rotated
    }

    async fn rotate_keys(&self) -> Result<Rotated, RotateError> {
        let source = self.keyring.source();
        let by_source = self.ledger_as(source).await?;
        match by_source.ensure_source_defined(&self.endpoint()).await {
            // It may have retired itself in an earlier rotation; if it was never admitted, the next step says so.
            Ok(_) | Err(LedgerError::NotAdmitted(_)) => {}
            Err(other) => return Err(other.into()),
        }
        // An earlier run had come as far as the fifth step.
        if let Some(old) = self.keyring.retiring()?.filter(|_| !self.keyring.has_next_operator()) {
            let new = self.keyring.signer().address();
            self.retire(&by_source, old.address()).await?;
            return Ok(Rotated { source: source.address(), old: old.address(), new });
        }
        if let Some(operator) = self.keyring.operator() {
            self.ledger_as(operator).await?.settled().await;
        }
        by_source.settled().await;
        let (old, next) = (self.keyring.signer().address(), self.keyring.next_operator()?);
        by_source.share_funds(next.address()).await?;
        by_source.authorize_operator(next.address()).await?;
        self.ledger_as(&next).await?.accept_operator(source.address()).await?;
        self.keyring.promote_operator()?;
        self.retire(&by_source, old).await?;
        Ok(Rotated { source: source.address(), old, new: next.address() })
    }

    async fn retire(&self, by_source: &Ledger, old: Address) -> Result<(), RotateError> {
        by_source.revoke_operator(old).await?;
        Ok(self.keyring.forget_retiring()?)
    }

    /// The same ledger with another key of this site.
    async fn ledger_as(&self, signer: &PrivateKeySigner) -> Result<Ledger, RotateError> {
        let node = match (&self.embedded, self.config.ledger.kind) {
            (Some(embedded), LedgerKind::Embedded) => Endpoints::single(RpcNode::embedded(embedded)),
            _ => endpoints(&self.config.ledger).map_err(Box::new)?,
        };
        let config = self.ledger_config(signer.address()).map_err(Box::new)?;
        let opened = ledger::open_endpoints(node, signer.clone(), config, Arc::default()).await;
        opened.map_err(|error| RotateError::Open(Box::new(error.into())))
    }
}
