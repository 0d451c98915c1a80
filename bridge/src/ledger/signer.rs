//! Who signs: a key in memory, or a remote signer that speaks Web3Signer's interface and never lets its key go. Both sign
//! keccak-256 of what they are given, so they are given the whole unsigned transaction, or `0x19 0x01` and two hashes (EIP-712).
//!
//! A remote signature is believed only when it recovers to the account that it should be of: a signer that was set up anew with
//! another key must not make us spend nonces of an account that is not ours. It must not know what is signed.

use super::endpoints::name_of;
use alloy::hex;
use alloy::primitives::{Address, B256, Signature, U256, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::transports::http::reqwest::{self, StatusCode, Url, header};
use std::time::Duration;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest answer that is read: a list of some hundred keys.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why nothing was signed, sorted by who has to act.
#[derive(Debug, Clone, Error)]
pub enum SignerError {
    /// Nobody: it is away or busy. Ask again later.
    #[error("remote signer {signer} does not answer: {why}")]
    Away {
        /// Where it is.
        signer: String,
        /// What happened.
        why: String,
    },
    /// The operator of this site: the signer does not let us in.
    #[error("remote signer {signer} refuses us ({status}): is the token in ledger.remote_signer_token_file right?")]
    NotAllowed {
        /// Where it is.
        signer: String,
        /// HTTP status.
        status: u16,
    },
    /// The operators of both: the key is not loaded there, or the address is another.
    #[error("remote signer {signer} has no key of account {wanted}; it has {has}")]
    NoKey {
        /// Where it is.
        signer: String,
        /// The account from the configuration.
        wanted: Address,
        /// The accounts of the keys that it has.
        has: String,
    },
    /// The operator of the signer: it signs with another key than the one that was named.
    #[error("remote signer {signer} signed as {found} where {wanted} was asked; nothing was sent")]
    WrongKey {
        /// Where it is.
        signer: String,
        /// Whose signature was asked for.
        wanted: Address,
        /// Whose it is.
        found: Address,
    },
    /// The operator of the signer: this is not its interface.
    #[error("remote signer {signer} answered with {what}: is this a Web3Signer started with `eth1`?")]
    Nonsense {
        /// Where it is.
        signer: String,
        /// What came.
        what: String,
    },
    /// The token file cannot be read.
    #[error("token file of the remote signer: {0}")]
    Token(String),
    /// The local key failed.
    #[error("signing failed: {0}")]
    Local(String),
}

/// A key that signs.
#[derive(Debug, Clone)]
pub enum Signer {
    /// In memory; signatures are deterministic (RFC 6979).
    Local(PrivateKeySigner),
    /// Elsewhere.
    Remote(RemoteSigner),
}

impl From<PrivateKeySigner> for Signer {
    fn from(key: PrivateKeySigner) -> Self {
        Self::Local(key)
    }
}

impl From<RemoteSigner> for Signer {
    fn from(remote: RemoteSigner) -> Self {
        Self::Remote(remote)
    }
}

impl Signer {
    /// The account.
    #[must_use]
    pub fn address(&self) -> Address {
        match self {
            Self::Local(key) => key.address(),
            Self::Remote(remote) => remote.address,
        }
    }

    /// The public key, x ‖ y.
    #[must_use]
    pub fn public_key(&self) -> [u8; 64] {
        match self {
            Self::Remote(remote) => remote.public_key,
            Self::Local(key) => {
                let point = key.credential().verifying_key().to_encoded_point(false);
                let mut out = [0; 64];
                // An uncompressed point is 0x04 ‖ x ‖ y (SEC 1, 2.3.3).
                out.copy_from_slice(&point.as_bytes()[1..]);
                out
            }
        }
    }

    /// Signs keccak-256 of `preimage`.
    ///
    /// # Errors
    /// [`SignerError`].
    pub async fn sign(&self, preimage: &[u8]) -> Result<Signature, SignerError> {
        match self {
            Self::Local(key) => key.sign_hash_sync(&keccak256(preimage)).map_err(|e| SignerError::Local(e.to_string())),
            Self::Remote(remote) => remote.sign(preimage).await,
        }
    }

    /// Signs typed data (EIP-712) by its domain separator and the hash of its struct.
    ///
    /// # Errors
    /// [`SignerError`].
    pub async fn sign_typed_data(&self, domain: B256, message: B256) -> Result<Signature, SignerError> {
        self.sign(&[&[0x19, 0x01], domain.as_slice(), message.as_slice()].concat()).await
    }
}

/// Where a remote signer is and which of its keys is ours.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// Base URL.
    pub url: Url,
    /// The account.
    pub address: Address,
    /// A bearer token, if something in front of it wants one.
    pub token: Option<Zeroizing<String>>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// A Web3Signer, or what speaks like one.
#[derive(Clone)]
pub struct RemoteSigner {
    client: reqwest::Client,
    config: RemoteConfig,
    name: String,
    address: Address,
    public_key: [u8; 64],
}

impl std::fmt::Debug for RemoteSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSigner").field("at", &self.name).field("account", &self.address).finish_non_exhaustive()
    }
}

impl RemoteSigner {
    /// Finds our key among those that the signer has, and has it sign something to be sure.
    ///
    /// # Errors
    /// [`SignerError`].
    pub async fn connect(config: RemoteConfig) -> Result<Self, SignerError> {
        let (name, address) = (name_of(&config.url), config.address);
        let mut remote = Self { client: reqwest::Client::new(), config, name, address, public_key: [0; 64] };
        let answer = remote.ask(remote.client.get(remote.url("api/v1/eth1/publicKeys"))).await?;
        let keys: Vec<String> = serde_json::from_slice(&answer).map_err(|_| remote.nonsense(&answer))?;
        let keys: Vec<[u8; 64]> = keys.iter().filter_map(|key| parse_public_key(key)).collect();
        let ours = keys.iter().find(|key| Address::from_raw_public_key(*key) == address);
        remote.public_key = *ours.ok_or_else(|| SignerError::NoKey {
            signer: remote.name.clone(),
            wanted: address,
            has: match keys.len() {
                0 => "none".to_owned(),
                _ => {
                    keys.iter().map(|key| Address::from_raw_public_key(key).to_string()).collect::<Vec<_>>().join(", ")
                }
            },
        })?;
        remote.sign(b"pacs-bridge: is this key the one that was named?").await?;
        Ok(remote)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.config.url.as_str().trim_end_matches('/'))
    }

    async fn sign(&self, preimage: &[u8]) -> Result<Signature, SignerError> {
        let path = format!("api/v1/eth1/sign/0x{}", hex::encode(self.public_key));
        let body = serde_json::json!({ "data": hex::encode_prefixed(preimage) }).to_string();
        let request = self.client.post(self.url(&path)).header(header::CONTENT_TYPE, "application/json").body(body);
        let answer = self.ask(request).await?;
        let signature = parse_signature(&answer).ok_or_else(|| self.nonsense(&answer))?;
        let found = signature.recover_address_from_prehash(&keccak256(preimage)).map_err(|_| self.nonsense(&answer))?;
        if found != self.address {
            return Err(SignerError::WrongKey { signer: self.name.clone(), wanted: self.address, found });
        }
        Ok(signature)
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, SignerError> {
        let away = |why: String| SignerError::Away { signer: self.name.clone(), why };
        let request = request.timeout(self.config.timeout);
        let request = match &self.config.token {
            Some(token) => request.bearer_auth(token.as_str()),
            None => request,
        };
        // Without the URL, which may hold a password.
        let broken = |error: reqwest::Error| away(crate::chain_of(&error.without_url()));
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(part) = response.chunk().await.map_err(broken)? {
            answer.extend_from_slice(&part);
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(self.nonsense(b"too much"));
            }
        }
        match status {
            StatusCode::OK => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(SignerError::NotAllowed { signer: self.name.clone(), status: status.as_u16() })
            }
            // Web3Signer says so of a key that was unloaded since.
            StatusCode::NOT_FOUND => {
                let has = "nothing at this path".to_owned();
                Err(SignerError::NoKey { signer: self.name.clone(), wanted: self.address, has })
            }
            other if other.is_server_error() || other == StatusCode::TOO_MANY_REQUESTS => {
                Err(away(format!("HTTP status {}", other.as_u16())))
            }
            other => Err(self.nonsense(format!("HTTP status {}", other.as_u16()).as_bytes())),
        }
    }

    /// The first characters of an answer, as far as they can be shown.
    fn nonsense(&self, answer: &[u8]) -> SignerError {
        let text = String::from_utf8_lossy(answer);
        let what: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        SignerError::Nonsense { signer: self.name.clone(), what: format!("{what:?}") }
    }
}

/// A public key in hexadecimal, with or without the octet that marks an uncompressed point.
fn parse_public_key(text: &str) -> Option<[u8; 64]> {
    let bytes = hex::decode(text).ok()?;
    let point = if bytes.len() == 65 && bytes[0] == 4 { &bytes[1..] } else { &bytes[..] };
    point.try_into().ok()
}

/// r ‖ s ‖ v in hexadecimal, v as 0 or 1 or as 27 or 28. s is brought into the lower half (EIP-2).
fn parse_signature(answer: &[u8]) -> Option<Signature> {
    let text = std::str::from_utf8(answer).ok()?.trim().trim_matches('"');
    let bytes: [u8; 65] = hex::decode(text).ok()?.try_into().ok()?;
    let odd = match bytes[64] {
        0 | 27 => false,
        1 | 28 => true,
        _ => return None,
    };
    let (r, s) = (U256::from_be_slice(&bytes[..32]), U256::from_be_slice(&bytes[32..64]));
    Some(Signature::new(r, s, odd).normalized_s())
}
