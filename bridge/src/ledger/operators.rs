//! Who signs for the source: authorising, accepting and retiring operators. Every step looks at the chain first, so that a rotation
//! that was interrupted anywhere can be run again from its beginning.

use super::client::{Client, LedgerError};
use super::consent::Sent;
use super::node::{Ask, At, Backoff, Clock, Node, NodeError, Offer};
use super::sender::{Call, TRANSFER_GAS};
use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{SignableTransaction as _, Transaction as _, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy::network::TxSignerSync as _;
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use contracts::Sources;
use serde::{Deserialize, Serialize};

const ACCEPTANCE: &str = "pacs-bridge/operator/1";
/// Gas that an acceptance may use; it uses about half.
const ACCEPTANCE_GAS: u64 = 120_000;
/// Highest price of a unit of gas in an acceptance, above twice the base fee of now.
const FEE_HEADROOM_WEI: u128 = 1_000_000_000;
/// Longest wait until an acceptance is final.
const ACCEPTED_WITHIN_MS: u64 = 120_000;
const RETRY_MS_MAX: u64 = 2_000;

/// What a new operator signs to act for a source: a whole transaction, because the contract asks who sends it. The operator needs
/// neither a node nor a bridge; the source's bridge pays and sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    format: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract of sources.
    pub contract: Address,
    /// Whom it will act for.
    pub source: Address,
    /// The new operator.
    pub operator: Address,
    /// Its next nonce.
    pub nonce: u64,
    /// Most it pays, in wei per gas.
    pub fee_wei_max: u64,
    /// The signed transaction, encoded as the network takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Bytes>,
}

impl Acceptance {
    fn unsigned(&self) -> TxEip1559 {
        TxEip1559 {
            chain_id: self.chain_id,
            nonce: self.nonce,
            gas_limit: ACCEPTANCE_GAS,
            max_fee_per_gas: self.fee_wei_max.into(),
            max_priority_fee_per_gas: self.fee_wei_max.min(1).into(),
            to: TxKind::Call(self.contract),
            input: Sources::acceptOperatorCall { source: self.source }.abi_encode().into(),
            ..TxEip1559::default()
        }
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when the key is not the operator's.
    pub fn sign(&mut self, key: &PrivateKeySigner) -> Result<(), LedgerError> {
        self.check_format()?;
        if key.address() != self.operator {
            let words = format!("the offer is for {}; this key is that of {}", self.operator, key.address());
            return Err(LedgerError::Refused(words));
        }
        let mut transaction = self.unsigned();
        let signature = key.sign_transaction_sync(&mut transaction).map_err(|e| LedgerError::Refused(e.to_string()))?;
        self.transaction = Some(TxEnvelope::from(transaction.into_signed(signature)).encoded_2718().into());
        Ok(())
    }

    /// The transaction, when it is what was offered and of the operator.
    fn checked(&self) -> Result<&Bytes, LedgerError> {
        let refused = |words: &str| LedgerError::Refused(words.to_owned());
        self.check_format()?;
        let raw = self.transaction.as_ref().ok_or_else(|| {
            refused("the offer is not accepted yet: the operator does that with `pacs-bridge operators accept FILE --key KEYFILE`")
        })?;
        let signed = TxEnvelope::decode_2718_exact(raw).map_err(|_| refused("there is no transaction in the file"))?;
        let same = signed.input() == &self.unsigned().input && signed.to() == Some(self.contract);
        if !same || signed.recover_signer().ok() != Some(self.operator) {
            return Err(refused("the transaction in the file is another one, or of another account"));
        }
        Ok(raw)
    }

    fn check_format(&self) -> Result<(), LedgerError> {
        if self.format == ACCEPTANCE {
            return Ok(());
        }
        Err(LedgerError::Refused(format!("format \"{}\"; this program knows {ACCEPTANCE}", self.format)))
    }
}

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

    /// What `operator` must sign to act for this account's source. It is given what that costs.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn acceptance(&self, operator: Address) -> Result<Acceptance, LedgerError> {
        let base = self.inner.node.head().await?.base_fee.unwrap_or_default();
        let fee_wei_max = u64::try_from(base.saturating_mul(2).saturating_add(FEE_HEADROOM_WEI)).unwrap_or(u64::MAX);
        let cost = U256::from(ACCEPTANCE_GAS).saturating_mul(U256::from(fee_wei_max));
        if self.inner.node.balance(operator).await? < cost {
            self.send_wei(operator, cost).await?;
        }
        Ok(Acceptance {
            format: ACCEPTANCE.to_owned(),
            chain_id: self.chain_id(),
            contract: self.addresses().sources,
            source: self.account(),
            operator,
            nonce: self.inner.node.nonce(operator).await?,
            fee_wei_max,
            transaction: None,
        })
    }

    /// Sends what a new operator signed and waits until it is final.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when it is not good.
    pub async fn deliver_acceptance(&self, acceptance: &Acceptance) -> Result<Sent, LedgerError> {
        if (acceptance.chain_id, acceptance.contract) != (self.chain_id(), self.addresses().sources) {
            return Err(LedgerError::Refused("the offer is for another ledger".into()));
        }
        let raw = acceptance.checked()?;
        let hash = alloy::primitives::keccak256(raw);
        if let Offer::Never(why) = self.inner.node.offer(raw.clone()).await? {
            return Err(LedgerError::Refused(why));
        }
        let (mut backoff, mut waited_ms) = (Backoff::new(self.poll_ms().max(1), RETRY_MS_MAX), 0);
        while waited_ms < ACCEPTED_WITHIN_MS {
            let head = self.inner.node.head().await?.number;
            match self.inner.node.receipt(hash).await? {
                Some(placed) if placed.block_number + self.depth().max(1) <= head + 1 => {
                    let sent = Sent { transaction: hash, block: placed.block_number, gas: placed.gas_used };
                    let refused = || LedgerError::Refused("the source did not offer that, or took it back".into());
                    return placed.succeeded.then_some(sent).ok_or_else(refused);
                }
                // Offered again: a pool may forget.
                None => drop(self.inner.node.offer(raw.clone()).await?),
                Some(_) => {}
            }
            let wait_ms = backoff.next_ms(&self.inner.clock);
            self.inner.clock.sleep_ms(wait_ms).await;
            waited_ms += wait_ms.max(1);
        }
        Err(LedgerError::Unavailable(format!("transaction {hash} is not on the chain yet; send it again")))
    }

    /// As the source's identity: `operator` signs for it no longer, or is not offered to any more.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] when it does not act for this source.
    pub async fn dismiss_operator(&self, operator: Address) -> Result<Sent, LedgerError> {
        let revoke = Sources::revokeOperatorCall { operator }.abi_encode();
        self.deliver(self.addresses().sources, revoke.into()).await
    }

    /// Waits until nothing of this account's is on its way any more.
    pub async fn settled(&self) {
        let mut status = self.inner.sender.status();
        // A sender that has ended has nothing on its way either.
        let _ = status.wait_for(|status| status.tip.is_some() && status.pending == 0).await;
    }
}
