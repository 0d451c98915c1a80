//! Who signs for the source: authorising, accepting and retiring operators. Every step looks at the chain first, so that a rotation
//! that was interrupted anywhere can be run again from its beginning.

use super::client::{Client, LedgerError};
use super::node::{Ask, At, Clock, Node, NodeError};
use super::sender::{Call, TRANSFER_GAS};
use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::SolCall as _;
use contracts::Sources;

impl<N: Node, K: Clock> Client<N, K> {
    /// The source for which an account acts, at the configured depth.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn source_of(&self, operator: Address) -> Result<Option<Address>, LedgerError> {
        self.source_of_at(operator, self.deep().await?).await
    }

    async fn source_of_at(&self, operator: Address, at: At) -> Result<Option<Address>, LedgerError> {
        let source = self.ask_sources(Sources::sourceOfCall { operator }, at).await?;
        Ok(Some(source).filter(|source| *source != Address::ZERO))
    }

    /// As the source's identity: lets `operator` act for it, once that account accepts.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when this account is no source.
    pub async fn authorize_operator(&self, operator: Address) -> Result<(), LedgerError> {
        let me = self.account();
        let authorize = Sources::authorizeOperatorCall { operator }.abi_encode();
        let look = |at| async move {
            let acts = self.source_of_at(operator, at).await? == Some(me);
            Ok((acts || self.is_offered(operator, me, at).await?).then_some(()))
        };
        self.ensure(self.addresses().sources, authorize.into(), look).await
    }

    /// Offers are not readable, but whether accepting one would work is.
    async fn is_offered(&self, operator: Address, source: Address, at: At) -> Result<bool, LedgerError> {
        let data = Sources::acceptOperatorCall { source }.abi_encode().into();
        let ask = Ask { from: operator, to: self.addresses().sources, data };
        match self.inner.node.call(ask, at).await {
            Ok(_) => Ok(true),
            Err(NodeError::Reverted { .. }) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// As the new operator: begins to act for `source`.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when the source has not authorised it.
    pub async fn accept_operator(&self, source: Address) -> Result<(), LedgerError> {
        let me = self.account();
        let accept = Sources::acceptOperatorCall { source }.abi_encode();
        let look = |at| async move { Ok((self.source_of_at(me, at).await? == Some(source)).then_some(())) };
        self.ensure(self.addresses().sources, accept.into(), look).await
    }

    /// As the source's identity: `operator`, which may be the identity itself, signs for it no longer.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn revoke_operator(&self, operator: Address) -> Result<(), LedgerError> {
        let me = self.account();
        let revoke = Sources::revokeOperatorCall { operator }.abi_encode();
        let look = |at| async move { Ok((self.source_of_at(operator, at).await? != Some(me)).then_some(())) };
        self.ensure(self.addresses().sources, revoke.into(), look).await
    }

    /// Gives half of what this account has to one that has nothing, so that it can pay for its transactions.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when there is nothing to give.
    pub async fn share_funds(&self, to: Address) -> Result<(), LedgerError> {
        if !self.inner.node.balance(to).await?.is_zero() {
            return Ok(());
        }
        let value = self.inner.node.balance(self.account()).await? / U256::from(2);
        if value.is_zero() {
            let words = format!("account {} has no funds to share; fund {to} and repeat", self.account());
            return Err(LedgerError::Refused(words));
        }
        let placed = self.inner.sender.send(Call { to, data: Bytes::new(), gas: TRANSFER_GAS, value }).await?;
        if placed.succeeded { Ok(()) } else { Err(LedgerError::Refused(format!("a transfer to {to} failed"))) }
    }

    /// Waits until nothing of this account's is on its way any more.
    pub async fn settled(&self) {
        let mut status = self.inner.sender.status();
        // A sender that has ended has nothing on its way either.
        let _ = status.wait_for(|status| status.tip.is_some() && status.pending == 0).await;
    }
}
