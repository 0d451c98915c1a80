//! What accounts say on the ledger about the P-256 keys that sign retrievals for them. Must not know where such keys are, or check what they
//! sign: everybody who follows the ledger does ([`crate::follow::binding`]).

use alloy::primitives::{Address, B256, Bytes};
use alloy::sol_types::{SolCall as _, SolStruct as _};
use contracts::messages::{BindKey, UnbindKey, key_bindings_domain};
use contracts::{KeyBindings, messages};

use super::client::{Client, LedgerError};
use super::consent::Sent;
use super::node::{At, Clock, Node};

/// Something that only an account can say of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyWord {
    /// It signs for the account.
    Bind(BindKey),
    /// It does not.
    Unbind(UnbindKey),
}

impl KeyWord {
    /// What the account signs (EIP-712), for a contract on a chain.
    #[must_use]
    pub fn digest(&self, chain_id: u64, contract: Address) -> B256 {
        let domain = key_bindings_domain(chain_id, contract);
        match self {
            Self::Bind(word) => word.eip712_signing_hash(&domain),
            Self::Unbind(word) => word.eip712_signing_hash(&domain),
        }
    }

    #[allow(non_snake_case)] // Solidity's names.
    fn call(self, accountSignature: Bytes) -> Bytes {
        match self {
            Self::Bind(BindKey { account, spki, proof, notAfter, seq, deadline }) => {
                KeyBindings::bindKeyCall { account, spki, proof, notAfter, seq, deadline, accountSignature }
                    .abi_encode()
                    .into()
            }
            Self::Unbind(UnbindKey { account, key, seq, deadline }) => {
                KeyBindings::unbindKeyCall { account, key, seq, deadline, accountSignature }.abi_encode().into()
            }
        }
    }
}

impl<N: Node, K: Clock> Client<N, K> {
    /// Sends what an account says and waits until it is final. An empty signature is good when it is this account.
    pub async fn say_of_key(&self, word: KeyWord, signature: Bytes) -> Result<Sent, LedgerError> {
        self.deliver(self.addresses().key_bindings, word.call(signature)).await
    }

    /// The number of what an account says next about its keys.
    pub async fn next_key_seq(&self, account: Address) -> Result<u32, LedgerError> {
        let call = KeyBindings::seqOfCall { account };
        let last = self.ask(self.addresses().key_bindings, call, At::Latest).await?;
        last.checked_add(1).ok_or_else(|| LedgerError::Refused("an account's numbers are used up".into()))
    }

    /// The octets that the holder of a P-256 key signs to have it bound to an account.
    pub fn key_proof_octets(&self, account: Address, key: B256) -> Vec<u8> {
        messages::key_proof_octets(self.chain_id(), self.addresses().key_bindings, account, key)
    }
}
