//! The P-256 key with which a site signs retrievals when its account's own key is elsewhere (docs/P256-BINDING.md). Made when it is first
//! needed. What it is good for is on the ledger; must not know that.

use std::fs;
use std::io::ErrorKind;

use p256::SecretKey;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};

use super::{Keyring, KeyringError, write_secret};

/// The file of the key, in PKCS #8; nobody but its owner can read it.
pub(crate) const REQUESTS: &str = "requests.pkcs8";

impl Keyring {
    /// The key, made and durable before this returns if there was none.
    ///
    /// # Errors
    /// [`KeyringError::File`]; [`KeyringError::RequestKey`] when the file holds something else.
    pub fn request_key(&self) -> Result<SigningKey, KeyringError> {
        let path = self.0.dir.join(REQUESTS);
        match fs::read(&path).map(zeroize::Zeroizing::new) {
            Ok(der) => {
                let key = SecretKey::from_pkcs8_der(&der).map_err(|_| KeyringError::RequestKey(path))?;
                Ok(SigningKey::from(key))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => self.new_request_key(),
            Err(error) => Err(KeyringError::File(path, error)),
        }
    }

    /// Another key in its place, for one that is good for nothing any more.
    ///
    /// # Errors
    /// [`KeyringError::File`].
    pub fn new_request_key(&self) -> Result<SigningKey, KeyringError> {
        let path = self.0.dir.join(REQUESTS);
        let key = SecretKey::random(&mut rand::rngs::OsRng);
        let der = key.to_pkcs8_der().map_err(|_| KeyringError::RequestKey(path.clone()))?;
        write_secret(&path, der.as_bytes())?;
        Ok(SigningKey::from(key))
    }
}
