//! With which key this site signs what it asks other sites for: with its account's, or, when a remote signer holds that, with a P-256 key of its
//! own that is bound to the account on the ledger (docs/P256-BINDING.md). A remote signer for Ethereum signs Keccak-256 only, and what is
//! signed here is SHA-256.
//!
//! Must not know what is asked for.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::k256::ecdsa::signature::hazmat::PrehashSigner as _;
use alloy::signers::k256::ecdsa::{self, Signature, SigningKey};
use contracts::messages::BindKey;
use ihe_retrieve::key::RequesterKey;
use p256::ecdsa::signature::Signer as _;
use tokio_util::sync::CancellationToken;

use super::ask::AskError;
use super::now_ms;
use crate::audit::{Decided, Event, Party};
use crate::follow::Consents;
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::key_bindings::KeyWord;
use crate::ledger::{Ledger, LedgerError, LedgerSlot};
use crate::site::{Parts, Site};

/// First and longest wait before the ledger is asked again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A key that signs for an account.
pub(super) enum RequestKey {
    /// The account's own.
    Account(SigningKey),
    /// One that is bound to it.
    Bound(p256::ecdsa::SigningKey),
}

impl RequestKey {
    /// The key that signs for this site's account now.
    ///
    /// # Errors
    /// [`AskError`]; [`AskError::NotBound`] until the ledger says whose the key is.
    pub(super) fn of(account: Address, keyring: &Keyring, consents: &Consents) -> Result<Self, AskError> {
        let signer = keyring.signer();
        if signer.address() == account {
            return Ok(Self::Account(signer.credential().clone()));
        }
        let key = Self::Bound(keyring.request_key()?);
        match consents.account_of(key.name(), now_s())? {
            Some(holder) if holder == account => Ok(key),
            _ => Err(AskError::NotBound),
        }
    }

    pub(super) fn public(&self) -> RequesterKey {
        match self {
            Self::Account(key) => RequesterKey::Secp256k1(key.verifying_key().into()),
            Self::Bound(key) => RequesterKey::P256(key.verifying_key().into()),
        }
    }

    /// What bindings call it.
    fn name(&self) -> B256 {
        self.public().spki_sha256().into()
    }

    /// r and s over a SHA-256 digest.
    pub(super) fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64], ecdsa::Error> {
        match self {
            Self::Account(key) => {
                let signature: Signature = key.sign_prehash(digest)?;
                Ok(signature.to_bytes().into())
            }
            Self::Bound(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(digest)?;
                Ok(signature.to_bytes().into())
            }
        }
    }
}

/// Why the key is not bound yet.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// Nobody: the ledger is away, or what is known of it is old.
    #[error("the ledger is not connected")]
    NoLedger,
    /// The ledger, or this site's account.
    #[error("the ledger")]
    Ledger(#[from] LedgerError),
    /// The operator: the key file.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The operator: the consents.
    #[error("the consents")]
    Consents(#[from] crate::follow::FollowError),
}

/// Binds this site's key for requests to its account, where a remote signer holds the account's own, and tries until that is so.
///
/// A key that was unbound is not bound again: whoever unbound it had a reason. Another is made instead.
pub async fn bind(site: Site, stop: CancellationToken) {
    let Parts { keyring, ledger, consents, audit, .. } = site.parts();
    let binder = Binder { keyring: keyring.clone(), ledger: ledger.clone(), consents: consents.clone() };
    let (mut wait, mut is_said) = (RETRY_MIN, false);
    loop {
        // What was sent and not seen is in the ledger's journal, so it may be left at any moment.
        let tried = tokio::select! {
            () = stop.cancelled() => return,
            tried = binder.try_once() => tried,
        };
        match tried {
            Ok(None) => return,
            Ok(Some((account, key))) => {
                tracing::info!(%key, %account, "bound a P-256 key of this site to its account, for retrievals");
                let (account, details) = (account.to_string(), vec![("key", key.to_string())]);
                audit.record(Event::decided(&Party::named(&account), Decided::BindKey, &account, details, None));
                return;
            }
            Err(trouble @ (Trouble::Ledger(LedgerError::Refused(_)) | Trouble::Keyring(_))) if !is_said => {
                let error = crate::chain_of(&trouble);
                tracing::warn!(
                    error,
                    "no key can be bound to this site's account, so nothing can be fetched from other sites"
                );
                is_said = true;
            }
            Err(trouble) => {
                tracing::debug!(error = %crate::chain_of(&trouble), "the key for requests is not bound yet")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
        }
    }
}

/// Seconds for which what the account says of its key may be on its way.
const ON_ITS_WAY_S: u64 = 86_400;

fn now_s() -> u64 {
    u64::try_from(now_ms() / 1000).unwrap_or(0)
}

struct Binder {
    keyring: Keyring,
    ledger: LedgerSlot,
    consents: Consents,
}

impl Binder {
    /// The account and the key that was bound to it; none if none had to be.
    async fn try_once(&self) -> Result<Option<(Address, B256)>, Trouble> {
        let ledger = self.ledger.get().ok_or(Trouble::NoLedger)?;
        let account = ledger.account();
        if account == self.keyring.signer().address() {
            return Ok(None);
        }
        // What was said of the key before must be known first.
        if !self.consents.is_current(now_s()) {
            return Err(Trouble::NoLedger);
        }
        let mut key = self.keyring.request_key()?;
        let name = RequestKey::Bound(key.clone()).name();
        match self.consents.account_of(name, now_s())? {
            Some(holder) if holder == account => return Ok(None),
            _ if self.consents.was_spoken_of(account, name)? => key = self.keyring.new_request_key()?,
            _ => {}
        }
        Ok(Some((account, said(ledger, account, &key).await?)))
    }
}

async fn said(ledger: &Ledger, account: Address, key: &p256::ecdsa::SigningKey) -> Result<B256, Trouble> {
    let public = RequestKey::Bound(key.clone()).public();
    let name = B256::from(public.spki_sha256());
    let proof: p256::ecdsa::Signature = key.sign(&ledger.key_proof_octets(account, name));
    let word = BindKey {
        account,
        spki: public.spki().into(),
        proof: Bytes::copy_from_slice(&proof.to_bytes()),
        notAfter: u64::MAX,
        seq: ledger.next_key_seq(account).await?,
        deadline: ledger.ledger_s().saturating_add(ON_ITS_WAY_S),
    };
    // The account sends it itself, which is its word.
    ledger.say_of_key(KeyWord::Bind(word), Bytes::new()).await?;
    Ok(name)
}
