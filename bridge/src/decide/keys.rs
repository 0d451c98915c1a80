//! P-256 keys that sign retrievals for an account (docs/P256-BINDING.md): bound and unbound by this site's account, or by another one that
//! signs a file elsewhere.

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use contracts::messages::{BindKey, UnbindKey};
use serde::{Deserialize, Serialize};

use super::{DecideError, Desk, Done, PENDING_S, account, moment};
use crate::follow::binding::{is_proof, key_of};
use crate::follow::{Chain, KeyBinding};
use crate::ledger::Ledger;
use crate::ledger::consent::{Sent, signer_of};
use crate::ledger::key_bindings::KeyWord;

const FORMAT: &str = "pacs-bridge/key-binding/1";

/// Why a key is not bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key, another kind of key, or another form of it.
    #[error("is no P-256 key as a SubjectPublicKeyInfo with a named curve and an uncompressed point")]
    NotP256,
    /// Somebody else's signature, over something else, or none.
    #[error(
        "the proof is no signature of key {key} that asks for account {account} on this ledger: sign what \
         `pacs-bridge keys p256 challenge` writes, with ECDSA and SHA-256"
    )]
    Proof {
        /// The key.
        key: B256,
        /// The account.
        account: Address,
    },
    /// Another format.
    #[error("is of format \"{0}\"; this program knows {FORMAT}")]
    Format(String),
    /// Nobody signed it.
    #[error("is not signed yet: `pacs-bridge keys p256 sign FILE --key KEYFILE` does that, with the key of {0}")]
    Unsigned(Address),
    /// The key at hand is not the account's.
    #[error("must be signed by {needed}; this key is that of {given}")]
    WrongKey {
        /// The account.
        needed: Address,
        /// The key given.
        given: Address,
    },
    /// Somebody else signed, or the file was changed.
    #[error("is not signed by {0}, or the file was changed after it was signed")]
    Signature(Address),
    /// It is of another ledger.
    #[error("is for another ledger")]
    Elsewhere,
    /// The key cannot sign.
    #[error("cannot be signed: {0}")]
    Signing(String),
}

/// What is wanted of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyWish {
    /// It signs for the account.
    Bind {
        /// Its SubjectPublicKeyInfo.
        spki: Bytes,
        /// What its holder signed, r and s.
        proof: Bytes,
        /// Last second, since 1970.
        not_after: u64,
    },
    /// It does not.
    Unbind {
        /// SHA-256 of its SubjectPublicKeyInfo.
        key: B256,
    },
}

/// What an account says of a key, as a file: written here, signed where the account's key is, sent from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPaper {
    format: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract of key bindings.
    pub contract: Address,
    /// Who says it.
    pub account: Address,
    /// What.
    pub wish: KeyWish,
    /// Its number.
    pub seq: u32,
    /// Last second at which the signature is good, since 1970.
    pub deadline: u64,
    /// The account's EIP-712 signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Bytes>,
}

impl KeyPaper {
    fn word(&self) -> KeyWord {
        let Self { account, seq, deadline, .. } = *self;
        match self.wish.clone() {
            KeyWish::Bind { spki, proof, not_after } => {
                KeyWord::Bind(BindKey { account, spki, proof, notAfter: not_after, seq, deadline })
            }
            KeyWish::Unbind { key } => KeyWord::Unbind(UnbindKey { account, key, seq, deadline }),
        }
    }

    /// What the account signs (EIP-712).
    #[must_use]
    pub fn digest(&self) -> B256 {
        self.word().digest(self.chain_id, self.contract)
    }

    /// What it says, for the person who signs.
    #[must_use]
    pub fn in_words(&self) -> String {
        match &self.wish {
            KeyWish::Bind { spki, not_after, .. } => {
                let key = key_of(spki).map_or_else(|| "(no P-256 key)".to_owned(), |key| key.to_string());
                format!("let key {key} sign retrievals for {} until {}", self.account, end(*not_after))
            }
            KeyWish::Unbind { key } => format!("let key {key} sign nothing for {} any more", self.account),
        }
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`KeyError::WrongKey`] when the key is not the account's.
    pub fn sign(&mut self, key: &PrivateKeySigner) -> Result<(), KeyError> {
        self.check_format()?;
        if key.address() != self.account {
            return Err(KeyError::WrongKey { needed: self.account, given: key.address() });
        }
        let signed = key.sign_hash_sync(&self.digest()).map_err(|e| KeyError::Signing(e.to_string()))?;
        self.signature = Some(Bytes::copy_from_slice(&signed.as_bytes()));
        Ok(())
    }

    fn check_format(&self) -> Result<(), KeyError> {
        if self.format == FORMAT { Ok(()) } else { Err(KeyError::Format(self.format.clone())) }
    }

    /// The signature, when it can be good. A longer one than an account makes is left to the account's contract.
    fn checked_signature(&self) -> Result<Bytes, KeyError> {
        self.check_format()?;
        let signature = self.signature.clone().ok_or(KeyError::Unsigned(self.account))?;
        if signature.len() == 65 && signer_of(self.digest(), &signature) != Some(self.account) {
            return Err(KeyError::Signature(self.account));
        }
        Ok(signature)
    }
}

/// What the holder of a key must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChallenge {
    /// To whom the key is to be bound.
    pub account: Address,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: B256,
    /// The octets, to be signed by ECDSA with SHA-256.
    pub octets: Bytes,
}

/// A bound key in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRow {
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: B256,
    /// For whom it signs, if it does.
    pub account: Address,
    /// `bound`; `over`; or `elsewhere` while an older binding to another account holds.
    pub state: String,
    /// Last second, since 1970.
    pub not_after: u64,
    /// Height of the block in which that was said.
    pub block: u64,
}

/// The end of a binding, for people.
#[must_use]
pub fn end(not_after: u64) -> String {
    if not_after == u64::MAX { "unbound".to_owned() } else { moment(not_after) }
}

fn chain(ledger: &Ledger) -> Chain {
    let at = ledger.addresses();
    // Which chain this is was checked when the ledger was opened; a proof is not over block 0.
    Chain { genesis: B256::ZERO, registry: at.studies, chain_id: ledger.chain_id(), key_bindings: at.key_bindings }
}

impl Desk<'_> {
    /// The account given, else this site's own.
    fn account_or_own(&self, given: Option<&str>) -> Result<Address, DecideError> {
        let own = self.ledger()?.account();
        given.map_or(Ok(own), account)
    }

    pub(super) fn key_challenge(&self, given: Option<&str>, spki: &[u8]) -> Result<KeyChallenge, DecideError> {
        let (ledger, account) = (self.ledger()?, self.account_or_own(given)?);
        let key = key_of(spki).ok_or(KeyError::NotP256)?;
        Ok(KeyChallenge { account, key, octets: ledger.key_proof_octets(account, key).into() })
    }

    /// Says it with this site's account, whichever signer holds its key: the account sends it itself, which is its word.
    pub(super) async fn say_of_key(&self, wish: KeyWish) -> Result<Done, DecideError> {
        let paper = self.key_paper(None, wish).await?;
        let sent = self.ledger()?.say_of_key(paper.word(), Bytes::new()).await?;
        self.key_done(&paper, sent).await
    }

    /// Makes the file that another account signs. Nothing is sent.
    pub(super) async fn key_paper(&self, given: Option<&str>, wish: KeyWish) -> Result<KeyPaper, DecideError> {
        let (ledger, account) = (self.ledger()?, self.account_or_own(given)?);
        check(ledger, account, &wish)?;
        Ok(KeyPaper {
            format: FORMAT.to_owned(),
            chain_id: ledger.chain_id(),
            contract: ledger.addresses().key_bindings,
            account,
            wish,
            seq: ledger.next_key_seq(account).await?,
            deadline: ledger.ledger_s().saturating_add(PENDING_S),
            signature: None,
        })
    }

    /// Sends what another account signed.
    pub(super) async fn submit_key(&self, paper: &KeyPaper) -> Result<Done, DecideError> {
        let ledger = self.ledger()?;
        if (paper.chain_id, paper.contract) != (ledger.chain_id(), ledger.addresses().key_bindings) {
            return Err(KeyError::Elsewhere.into());
        }
        let signature = paper.checked_signature()?;
        check(ledger, paper.account, &paper.wish)?;
        let sent = ledger.say_of_key(paper.word(), signature).await?;
        self.key_done(paper, sent).await
    }

    async fn key_done(&self, paper: &KeyPaper, sent: Sent) -> Result<Done, DecideError> {
        let verb = match paper.wish {
            KeyWish::Bind { .. } => "key bound",
            KeyWish::Unbind { .. } => "key unbound",
        };
        self.done(verb, None, Some(paper.account), sent).await
    }

    /// The keys that an account bound, this site's own by default.
    pub(super) fn keys_of(&self, given: Option<&str>) -> Result<Vec<KeyRow>, DecideError> {
        let now_s = self.ledger()?.now_s();
        let consents = self.site.consents();
        let row = |binding: KeyBinding| {
            let KeyBinding { account, key, not_after, block, .. } = binding;
            let state = match consents.account_of(key, now_s)? {
                Some(holder) if holder == account => "bound",
                Some(_) if now_s <= not_after => "elsewhere",
                _ => "over",
            };
            Ok(KeyRow { key, account, state: state.to_owned(), not_after, block })
        };
        consents.bindings_of(self.account_or_own(given)?)?.into_iter().map(row).collect()
    }
}

/// The ledger would take a wrong proof, and everybody would then leave the binding out.
fn check(ledger: &Ledger, account: Address, wish: &KeyWish) -> Result<(), KeyError> {
    let KeyWish::Bind { spki, proof, .. } = wish else { return Ok(()) };
    let key = key_of(spki).ok_or(KeyError::NotP256)?;
    if is_proof(&chain(ledger), account, spki, proof) { Ok(()) } else { Err(KeyError::Proof { key, account }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_account_signs_and_only_what_it_read() {
        let (clinic, other) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let mut paper = KeyPaper {
            format: FORMAT.to_owned(),
            chain_id: 7,
            contract: Address::repeat_byte(1),
            account: clinic.address(),
            wish: KeyWish::Bind { spki: vec![1; 91].into(), proof: vec![2; 64].into(), not_after: u64::MAX },
            seq: 1,
            deadline: 100,
            signature: None,
        };
        assert_eq!(paper.checked_signature(), Err(KeyError::Unsigned(clinic.address())));
        let wrong = KeyError::WrongKey { needed: clinic.address(), given: other.address() };
        assert_eq!(paper.sign(&other), Err(wrong));
        paper.sign(&clinic).unwrap();
        let read: KeyPaper = serde_json::from_str(&serde_json::to_string(&paper).unwrap()).unwrap();
        assert_eq!(read, paper);
        assert!(read.checked_signature().is_ok());
        let refused = Err(KeyError::Signature(clinic.address()));
        assert_eq!(KeyPaper { deadline: 200, ..read.clone() }.checked_signature(), refused);
        let wish = KeyWish::Unbind { key: B256::ZERO };
        assert_eq!(KeyPaper { wish, ..read.clone() }.checked_signature(), refused);
        assert_eq!(KeyPaper { chain_id: 8, ..read }.checked_signature(), refused);
    }
}
