//! What owners, grantees, sources and the consortium say on the ledger, as typed calls.
//!
//! An owner's decision is a [`Word`]: a value with a digest to sign and a call to send. Who signs it, here with a key in custody or
//! elsewhere on paper, is the caller's business, and anybody may send it. Words are not repeated: the contract takes a number
//! once. Must not know studies' UIDs or where keys are kept.

use super::client::{Client, LedgerError, LedgerKind};
use super::node::{Clock, Node};
use super::sender::Call;
use super::slots::Placed;
use alloy::primitives::{Address, B256, Bytes, Signature, U256};
use alloy::signers::SignerSync as _;
use alloy::sol_types::{SolCall, SolStruct};
use contracts::{Addresses, Allowance, Consent, Emergency, Grant, GuardianSet, Sources, Studies, messages};

/// Gas that an owner's word may take where no node can tell, because its study is in no block yet: more than twice what an allowance with all that it
/// can hold takes.
const WORD_GAS: u64 = 250_000;

/// Where something that was sent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Hash of the transaction.
    pub transaction: B256,
    /// Height of its block.
    pub block: u64,
    /// Gas used.
    pub gas: u64,
}

impl From<Placed> for Sent {
    fn from(placed: Placed) -> Self {
        Self { transaction: placed.transaction, block: placed.block_number, gas: placed.gas_used }
    }
}

/// Something that only a study's owner can say.
#[derive(Clone)]
pub enum Word {
    /// Lets a grantee see the study, or a series of it.
    Allow(Allowance),
    /// Refuses the open request of a grantee.
    Deny(messages::Deny),
    /// Takes a grantee's access away.
    Revoke(messages::Revoke),
    /// Hands the study to another key.
    Transfer(messages::TransferStudy),
    /// Wants the study neither served nor extended any more.
    Tombstone(messages::TombstoneStudy),
    /// Names guardians by their commitment ([`messages::guardian_commitment`]).
    NameGuardians(messages::NameGuardians),
    /// Ends a recovery under way.
    VetoRecovery(messages::VetoRecovery),
}

impl Word {
    /// The study that it is about.
    #[must_use]
    pub fn study(&self) -> B256 {
        match self {
            Self::Allow(w) => w.studyId,
            Self::Deny(w) => w.studyId,
            Self::Revoke(w) => w.studyId,
            Self::Transfer(w) => w.studyId,
            Self::Tombstone(w) => w.studyId,
            Self::NameGuardians(w) => w.studyId,
            Self::VetoRecovery(w) => w.studyId,
        }
    }

    /// The contract that it is said to.
    #[must_use]
    pub fn contract(&self, addresses: &Addresses) -> Address {
        match self {
            Self::Allow(_) | Self::Deny(_) | Self::Revoke(_) => addresses.consent,
            Self::Transfer(_) | Self::Tombstone(_) | Self::NameGuardians(_) | Self::VetoRecovery(_) => {
                addresses.studies
            }
        }
    }

    /// What the owner signs (EIP-712), for that contract on a chain.
    #[must_use]
    pub fn digest(&self, chain_id: u64, contract: Address) -> B256 {
        let consent = messages::consent_domain(chain_id, contract);
        let studies = messages::studies_domain(chain_id, contract);
        match self {
            Self::Allow(w) => messages::Allow::from(w).eip712_signing_hash(&consent),
            Self::Deny(w) => w.eip712_signing_hash(&consent),
            Self::Revoke(w) => w.eip712_signing_hash(&consent),
            Self::Transfer(w) => w.eip712_signing_hash(&studies),
            Self::Tombstone(w) => w.eip712_signing_hash(&studies),
            Self::NameGuardians(w) => w.eip712_signing_hash(&studies),
            Self::VetoRecovery(w) => w.eip712_signing_hash(&studies),
        }
    }

    /// The call that says it, and to whom.
    #[must_use]
    #[allow(non_snake_case)] // Solidity's names.
    pub fn call(&self, addresses: &Addresses, signature: Bytes) -> (Address, Bytes) {
        let (consent, studies, ownerSignature) = (addresses.consent, addresses.studies, signature);
        match self.clone() {
            Self::Allow(allowance) => (consent, Consent::allowCall { allowance, ownerSignature }.abi_encode().into()),
            Self::Deny(w) => {
                let messages::Deny { studyId, grantee, reason, notes, seq, deadline } = w;
                let call = Consent::denyCall { studyId, grantee, reason, notes, seq, deadline, ownerSignature };
                (consent, call.abi_encode().into())
            }
            Self::Revoke(w) => {
                let messages::Revoke { studyId, grantee, seq, deadline } = w;
                (consent, Consent::revokeCall { studyId, grantee, seq, deadline, ownerSignature }.abi_encode().into())
            }
            Self::Transfer(w) => {
                let messages::TransferStudy { studyId, newOwner, custodial, seq, deadline } = w;
                let call = Studies::transferCall { studyId, newOwner, custodial, seq, deadline, ownerSignature };
                (studies, call.abi_encode().into())
            }
            Self::Tombstone(w) => {
                let messages::TombstoneStudy { studyId, seq, deadline } = w;
                (studies, Studies::tombstoneCall { studyId, seq, deadline, ownerSignature }.abi_encode().into())
            }
            Self::NameGuardians(w) => {
                let messages::NameGuardians { studyId, guardians, seq, deadline } = w;
                let call = Studies::nameGuardiansCall { studyId, guardians, seq, deadline, ownerSignature };
                (studies, call.abi_encode().into())
            }
            Self::VetoRecovery(w) => {
                let messages::VetoRecovery { studyId, seq, deadline } = w;
                (studies, Studies::vetoRecoveryCall { studyId, seq, deadline, ownerSignature }.abi_encode().into())
            }
        }
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Word").field("study", &self.study()).finish_non_exhaustive()
    }
}

/// The account that made a signature over a digest; none when it is no signature of an account.
#[must_use]
pub fn signer_of(digest: B256, signature: &[u8]) -> Option<Address> {
    Signature::try_from(signature).ok()?.recover_address_from_prehash(&digest).ok()
}

/// The answer of a study's source to a question for keys.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The study.
    pub study: B256,
    /// Who asked.
    pub grantee: Address,
    /// keccak-256 of the key that came with the question.
    pub one_time_key: B256,
    /// Last second, since 1970, at which the envelope is good.
    pub until: u64,
    /// What opens with that key and the grant's.
    pub envelope: Bytes,
}

/// What a grantee asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The study.
    pub study: B256,
    /// The contract's number of a mode.
    pub mode: u8,
    /// Number of a purpose ([`messages::Purpose`]).
    pub purpose: u16,
    /// Commitment to what is said in words; zero for none.
    pub notes: B256,
    /// The OpenPGP key to encrypt to.
    pub encryption_key: Bytes,
}

impl<N: Node, K: Clock> Client<N, K> {
    /// The EIP-155 chain id.
    pub fn chain_id(&self) -> u64 {
        self.config().chain_id
    }

    /// Embedded or network.
    pub fn kind(&self) -> LedgerKind {
        self.config().kind
    }

    /// Blocks from the tip that count as final, the block itself included.
    pub fn depth(&self) -> u64 {
        self.config().depth
    }

    /// Milliseconds between looks at a node that does not wake us.
    pub fn poll_ms(&self) -> u64 {
        self.config().poll_ms
    }

    /// Seconds since 1970, as this client sees the time.
    pub fn now_s(&self) -> u64 {
        self.unix_s()
    }

    /// What the owner must sign for a word.
    pub fn digest(&self, word: &Word) -> B256 {
        word.digest(self.chain_id(), word.contract(self.addresses()))
    }

    /// Sends an owner's word and waits until it is final. An empty signature is good when this account is the owner. Where the study's definition
    /// is on its way, the word follows it at once.
    pub async fn say(&self, word: &Word, signature: Bytes) -> Result<Sent, LedgerError> {
        let (to, data) = word.call(self.addresses(), signature);
        if self.on_their_way().borrow().contains_key(&word.study()) {
            let call = Call { to, data: data.clone(), gas: WORD_GAS, value: U256::ZERO };
            let placed = self.sender().send(call).await?;
            if placed.succeeded {
                return Ok(placed.into());
            }
            // The definition failed, or the word would fail in any case: a node can tell now.
        }
        self.deliver(to, data).await
    }

    /// Asks for access for this source.
    pub async fn request_access(&self, wish: Wish) -> Result<Sent, LedgerError> {
        let call = Consent::requestCall {
            studyId: wish.study,
            mode: wish.mode,
            purpose: wish.purpose,
            notes: wish.notes,
            encryptionKey: wish.encryption_key,
        };
        self.deliver(self.addresses().consent, call.abi_encode().into()).await
    }

    /// Asks for the keys of a study that this source may see, in an envelope that the key given opens as well.
    pub async fn ask_keys(&self, study: B256, one_time_key: Bytes) -> Result<Sent, LedgerError> {
        let call = Consent::askKeysCall { studyId: study, oneTimeKey: one_time_key };
        self.deliver(self.addresses().consent, call.abi_encode().into()).await
    }

    /// Answers such a question about a study of this source.
    pub async fn deliver_keys(&self, delivery: Delivery) -> Result<Sent, LedgerError> {
        let call = Consent::deliverKeysCall {
            studyId: delivery.study,
            grantee: delivery.grantee,
            oneTimeKey: delivery.one_time_key,
            until: delivery.until,
            envelope: delivery.envelope,
        };
        self.deliver(self.addresses().consent, call.abi_encode().into()).await
    }

    /// Lets this source in for an emergency. The approver's signature is over [`messages::approve_emergency`]; empty when there is
    /// none.
    pub async fn break_glass(&self, emergency: Emergency, approver_signature: Bytes) -> Result<Sent, LedgerError> {
        let call = Consent::breakGlassCall { emergency, approverSignature: approver_signature };
        self.deliver(self.addresses().consent, call.abi_encode().into()).await
    }

    /// Demands (or no longer demands) a second operator for breaking the glass.
    pub async fn set_emergency_approval(&self, required: bool) -> Result<Sent, LedgerError> {
        let call = Consent::setEmergencyApprovalCall { required };
        self.deliver(self.addresses().consent, call.abi_encode().into()).await
    }

    /// Admits a source; the consortium's administrator only.
    pub async fn admit(&self, source: Address) -> Result<Sent, LedgerError> {
        self.deliver(self.addresses().sources, Sources::admitCall { source }.abi_encode().into()).await
    }

    /// Suspends a source; the consortium's administrator only.
    pub async fn suspend(&self, source: Address) -> Result<Sent, LedgerError> {
        self.deliver(self.addresses().sources, Sources::suspendCall { source }.abi_encode().into()).await
    }

    /// Lifts a suspension; the consortium's administrator only.
    pub async fn reinstate(&self, source: Address) -> Result<Sent, LedgerError> {
        self.deliver(self.addresses().sources, Sources::reinstateCall { source }.abi_encode().into()).await
    }

    /// Gives wei to an account that is to act on this ledger.
    pub async fn fund(&self, account: Address, wei: U256) -> Result<Sent, LedgerError> {
        Ok(self.send_wei(account, wei).await?.into())
    }

    /// Moves this source to another endpoint; nothing is sent when it is there already.
    pub async fn move_endpoint(&self, endpoint: &str) -> Result<Option<Sent>, LedgerError> {
        let source = self.source().await?;
        let known = self.ask(self.addresses().sources, Sources::endpointOfCall { source }, self.deep().await?).await?;
        if known == endpoint {
            return Ok(None);
        }
        let endpoint = endpoint.to_owned();
        let data = if self.account() == source {
            Sources::changeEndpointCall { endpoint }.abi_encode()
        } else {
            let (seq, deadline) = self.next_of_source(source).await?;
            let message = messages::ChangeEndpoint { source, endpoint: endpoint.clone(), seq, deadline };
            let signature = self.signed_by_identity(source, &message)?;
            Sources::changeEndpointSignedCall { source, endpoint, seq, deadline, signature }.abi_encode()
        };
        self.deliver(self.addresses().sources, data.into()).await.map(Some)
    }

    /// Number and deadline of what a source says next about its endpoint or keys.
    async fn next_of_source(&self, source: Address) -> Result<(u32, u64), LedgerError> {
        let call = Sources::sourceSeqOfCall { source };
        let last = self.ask(self.addresses().sources, call, super::node::At::Latest).await?;
        let deadline = self.ledger_s() + super::client::CONSENT_S;
        let next = last.checked_add(1).ok_or_else(|| LedgerError::Refused("a source's numbers are used up".into()))?;
        Ok((next, deadline))
    }

    /// What only the source itself may say, signed with its own key: an operator's, which is on line every day, could otherwise lead
    /// retrievals and study keys elsewhere.
    fn signed_by_identity(&self, source: Address, message: &impl SolStruct) -> Result<Bytes, LedgerError> {
        let absent = || {
            let me = self.account();
            LedgerError::Refused(format!(
                "only {source} itself may say where it answers and with which keys; {me} is its operator, and the source's key is not in \
                 this keystore"
            ))
        };
        let key = self.identity_of(source).ok_or_else(absent)?;
        let domain = messages::studies_domain(self.chain_id(), self.addresses().studies);
        let signed = key.sign_hash_sync(&message.eip712_signing_hash(&domain));
        Ok(signed.map_err(|error| LedgerError::Refused(error.to_string()))?.as_bytes().to_vec().into())
    }

    /// States this source's keys: the SHA-256 of the SubjectPublicKeyInfo of its TLS key and its OpenPGP key. Nothing is sent when
    /// the ledger says the same already.
    pub async fn change_keys(&self, tls_key: B256, openpgp_key: Bytes) -> Result<Option<Sent>, LedgerError> {
        let source = self.source().await?;
        let known = self.ask(self.addresses().sources, Sources::keysOfCall { source }, self.deep().await?).await?;
        let hash = if openpgp_key.is_empty() { B256::ZERO } else { alloy::primitives::keccak256(&openpgp_key) };
        if (known.tlsKey, known.encryptionKey) == (tls_key, hash) {
            return Ok(None);
        }
        let data = if self.account() == source {
            Sources::changeKeysCall { tlsKey: tls_key, encryptionKey: openpgp_key }.abi_encode()
        } else {
            let (seq, deadline) = self.next_of_source(source).await?;
            let message =
                messages::ChangeKeys { source, tlsKey: tls_key, encryptionKey: openpgp_key.clone(), seq, deadline };
            let signature = self.signed_by_identity(source, &message)?;
            let call = Sources::changeKeysSignedCall {
                source,
                tlsKey: tls_key,
                encryptionKey: openpgp_key,
                seq,
                deadline,
                signature,
            };
            call.abi_encode()
        };
        self.deliver(self.addresses().sources, data.into()).await.map(Some)
    }

    /// Proposes another owner on the word of guardians. `signatures[i]` is that of guardian i of the set over
    /// [`messages::RecoverStudy`], or empty.
    pub async fn propose_recovery(
        &self,
        message: &messages::RecoverStudy,
        set: GuardianSet,
        signatures: Vec<Bytes>,
    ) -> Result<Sent, LedgerError> {
        let call = Studies::proposeRecoveryCall {
            studyId: message.studyId,
            newOwner: message.newOwner,
            custodial: message.custodial,
            deadline: message.deadline,
            set,
            signatures,
        };
        self.deliver(self.addresses().studies, call.abi_encode().into()).await
    }

    /// Completes a recovery whose delay is over.
    pub async fn complete_recovery(&self, study: B256) -> Result<Sent, LedgerError> {
        let call = Studies::completeRecoveryCall { studyId: study };
        self.deliver(self.addresses().studies, call.abi_encode().into()).await
    }

    /// All that is recorded now about a study and a grantee.
    pub async fn consent_of(&self, study: B256, grantee: Address) -> Result<Grant, LedgerError> {
        let call = Consent::getGrantCall { studyId: study, grantee };
        self.ask(self.addresses().consent, call, super::node::At::Latest).await
    }

    /// The commitment to a study's guardians; zero when there are none.
    pub async fn guardians_of(&self, study: B256) -> Result<B256, LedgerError> {
        let call = Studies::guardiansOfCall { studyId: study };
        self.ask(self.addresses().studies, call, super::node::At::Latest).await
    }

    /// The owner's number about a study that comes next.
    pub async fn next_study_seq(&self, study: B256) -> Result<u32, LedgerError> {
        let call = Studies::getStudyCall { studyId: study };
        let known = self.ask(self.addresses().studies, call, super::node::At::Latest).await?;
        if known.owner.is_zero() && self.on_their_way().borrow().contains_key(&study) {
            return Ok(1);
        }
        if known.owner.is_zero() {
            return Err(LedgerError::Refused(format!("the ledger knows no study {study}")));
        }
        Ok(known.seq.saturating_add(1))
    }

    pub(super) async fn deliver(&self, to: Address, data: Bytes) -> Result<Sent, LedgerError> {
        Ok(self.send_once(to, data).await?.map_err(LedgerError::Refused)?.into())
    }
}
