//! Session keys, and their way to a recipient as OpenPGP version 6 packets (RFC 9580).
//!
//! A study has one session key per epoch, and nothing is sealed under that itself. The preview key follows from it, for whoever may
//! look at previews and no more; from either follows a key for each series, for whoever may see that series and no other. No key
//! leads back to the one that it was derived from. Every recipient gets what he may have as PKESK packets (section 5.1.2) that
//! travel with the grant. Only X25519 recipients are accepted: the `rsa` crate that `pgp` links has an open timing
//! advisory, so no RSA key is ever made or used here. This file must not know where keys are kept.

use std::fmt;

use dicom_scp::Uid;
use hkdf::Hkdf;
use pgp::composed::{
    Deserializable, EncryptionCaps, KeyType, PlainSessionKey, RawSessionKey, SecretKeyParamsBuilder, SignedPublicKey,
    SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::crypto::aead::AeadAlgorithm;
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use pgp::packet::{Packet, PacketParser, PacketTrait, PublicKeyEncryptedSessionKey};
use pgp::ser::Serialize;
use pgp::types::{DecryptionKey, EskType, KeyDetails, KeyVersion, Password, PkeskVersion, S2kParams, StringToKey};
use rand::RngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::password::needs_stretching;

/// What separates the preview key from the session key it is derived from.
const PREVIEW_LABEL: &[u8] = b"pacs-bridge/preview/1";
/// What separates the keys of series from the key they are derived from; the Series Instance UID follows it.
const SERIES_LABEL: &[u8] = b"pacs-bridge/series/1/";
/// What the study's name on the ledger follows in the hash that is the key of what is not confidential.
const PUBLIC_LABEL: &[u8] = b"pacs-bridge/public/1";
/// Largest key file or packet that is read at all.
const ENCODED_BYTES_MAX: usize = 64 * 1024;

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The password does not open the secret key.
    #[error("wrong password for the secret key")]
    WrongPassword(#[source] pgp::errors::Error),
    /// The bytes are not an OpenPGP key or packet of the kind expected.
    #[error("not a usable openpgp {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// The parser's reason, where it gave one.
        #[source]
        source: Option<pgp::errors::Error>,
    },
    /// The certificate has no valid version 6 X25519 encryption subkey.
    #[error("certificate has no valid version 6 x25519 encryption subkey")]
    NoEncryptionKey,
    /// The wrapped session key is addressed to somebody else or does not decrypt.
    #[error("session key is not wrapped for this recipient")]
    NotForUs(#[source] Option<pgp::errors::Error>),
    /// The cryptographic library failed on our own input.
    #[error("openpgp library failed")]
    Library(#[source] pgp::errors::Error),
}

fn malformed(what: &'static str) -> impl FnOnce(pgp::errors::Error) -> KeyError {
    move |source| KeyError::Malformed { what, source: Some(source) }
}

/// The symmetric key of one study and epoch: 256 bits, wiped when dropped, never shown.
#[derive(Clone)]
pub struct SessionKey(Zeroizing<[u8; 32]>);

impl SessionKey {
    /// A fresh key from the operating system's generator.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// The session key of a study that is not confidential: SHA-256 over a label and the study's name on the ledger, so that whoever reads
    /// the ledger has it.
    #[must_use]
    pub fn public(study_id: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(PUBLIC_LABEL);
        hash.update(study_id);
        Self(Zeroizing::new(hash.finalize().into()))
    }

    /// A key read back from where keys are kept.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The raw key, for the keyring only.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of the same epoch's previews and manifests: HKDF-SHA256 without salt. It does not lead back to this one.
    #[must_use]
    pub fn preview_key(&self) -> Self {
        self.derived(&[PREVIEW_LABEL])
    }

    /// The key of one series: of its objects when this is the session key, of its previews and manifest when this is the preview key.
    #[must_use]
    pub fn of_series(&self, series: &Uid) -> Self {
        self.derived(&[SERIES_LABEL, series.as_str().as_bytes()])
    }

    fn derived(&self, label: &[&[u8]]) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        // Only an output of more than 255 blocks can fail.
        if Hkdf::<Sha256>::new(None, self.expose()).expand_multi_info(label, bytes.as_mut_slice()).is_err() {
            unreachable!("32 bytes are one block of HKDF-SHA256");
        }
        Self(bytes)
    }

    /// Wraps this key for `recipient`: one PKESK packet, version 6 (RFC 9580 5.1.2), with its header.
    ///
    /// # Errors
    /// [`KeyError::Library`] if the library refuses.
    pub fn wrap(&self, recipient: &Recipient) -> Result<Vec<u8>, KeyError> {
        let raw = RawSessionKey::from(self.expose().as_slice());
        let packet = PublicKeyEncryptedSessionKey::from_session_key_v6(OsRng, &raw, recipient.encryption_key())
            .map_err(KeyError::Library)?;
        let mut bytes = Vec::new();
        packet.to_writer_with_header(&mut bytes).map_err(KeyError::Library)?;
        Ok(bytes)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// Compares without an early exit, so that timing tells nothing about the key.
impl PartialEq for SessionKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl Eq for SessionKey {}

/// Somebody's certificate whose encryption subkey we may wrap to.
#[derive(Clone, Debug)]
pub struct Recipient {
    certificate: SignedPublicKey,
    subkey: usize,
}

impl Recipient {
    /// Reads a binary OpenPGP certificate, checks its self-signatures and finds the X25519 subkey.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] or [`KeyError::NoEncryptionKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(KeyError::Malformed { what: "certificate", source: None });
        }
        Self::check(SignedPublicKey::from_bytes(bytes).map_err(malformed("certificate"))?)
    }

    fn check(certificate: SignedPublicKey) -> Result<Self, KeyError> {
        certificate.verify_bindings().map_err(malformed("certificate"))?;
        let usable = |subkey: &pgp::composed::SignedPublicSubKey| {
            subkey.key.algorithm() == PublicKeyAlgorithm::X25519
                && subkey.key.version() == KeyVersion::V6
                && subkey.signatures.iter().any(|s| s.key_flags().encrypt_storage() || s.key_flags().encrypt_comms())
        };
        let subkey = certificate.public_subkeys.iter().position(usable).ok_or(KeyError::NoEncryptionKey)?;
        Ok(Self { certificate, subkey })
    }

    fn encryption_key(&self) -> &pgp::packet::PublicSubkey {
        &self.certificate.public_subkeys[self.subkey].key
    }

    /// The certificate in binary form, to hand to others.
    ///
    /// # Errors
    /// [`KeyError::Library`] if the library refuses.
    pub fn to_bytes(&self) -> Result<Vec<u8>, KeyError> {
        self.certificate.to_bytes().map_err(KeyError::Library)
    }

    /// The certificate's fingerprint (RFC 9580 5.5.4.3): what people compare.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        self.certificate.fingerprint().as_bytes().to_vec()
    }
}

/// A site's own key pair: Ed25519 for certification, X25519 for session keys, OpenPGP version 6.
///
/// The secret part is kept unlocked in memory (wiped when dropped) and leaves this process only under a password.
pub struct RecipientSecret {
    key: SignedSecretKey,
}

impl fmt::Debug for RecipientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecipientSecret(..)")
    }
}

impl RecipientSecret {
    /// Makes a new key pair.
    ///
    /// # Errors
    /// [`KeyError::Library`] if the library refuses.
    pub fn generate() -> Result<Self, KeyError> {
        let builder_failed = |reason: String| KeyError::Library(std::io::Error::other(reason).into());
        let subkey = SubkeyParamsBuilder::default()
            .version(KeyVersion::V6)
            .key_type(KeyType::X25519)
            .can_encrypt(EncryptionCaps::All)
            .build()
            .map_err(|reason| builder_failed(reason.to_string()))?;
        let params = SecretKeyParamsBuilder::default()
            .version(KeyVersion::V6)
            .key_type(KeyType::Ed25519)
            .can_certify(true)
            .can_sign(true)
            .feature_seipd_v1(false)
            .feature_seipd_v2(true)
            .preferred_symmetric_algorithms([SymmetricKeyAlgorithm::AES256].into_iter().collect())
            .preferred_hash_algorithms([HashAlgorithm::Sha512, HashAlgorithm::Sha256].into_iter().collect())
            .preferred_aead_algorithms([(SymmetricKeyAlgorithm::AES256, AeadAlgorithm::Ocb)].into_iter().collect())
            .subkey(subkey)
            .build()
            .map_err(|reason| builder_failed(reason.to_string()))?;
        Ok(Self { key: params.generate(OsRng).map_err(KeyError::Library)? })
    }

    /// The certificate to give to those who wrap session keys for this site.
    ///
    /// # Errors
    /// [`KeyError::NoEncryptionKey`] if this key pair came from elsewhere and has no X25519 subkey.
    pub fn recipient(&self) -> Result<Recipient, KeyError> {
        Recipient::check(self.key.to_public_key())
    }

    /// The secret key as an OpenPGP transferable secret key, every part locked with the password: Argon2id with 64 MiB
    /// (RFC 9106's second recommended choice) and AES-256 in OCB mode, RFC 9580 3.7.2.1; with 1 MiB under a password that this program made.
    ///
    /// # Errors
    /// [`KeyError::Library`] if the library refuses.
    pub fn to_locked_bytes(&self, password: &str) -> Result<Vec<u8>, KeyError> {
        let mut locked = self.key.clone();
        let light = !needs_stretching(password);
        let password = Password::from(password);
        let s2k = || lock_params(light);
        locked.primary_key.set_password_with_s2k(&password, s2k()).map_err(KeyError::Library)?;
        for subkey in &mut locked.secret_subkeys {
            subkey.key.set_password_with_s2k(&password, s2k()).map_err(KeyError::Library)?;
        }
        locked.to_bytes().map_err(KeyError::Library)
    }

    /// Reads and unlocks what [`to_locked_bytes`](Self::to_locked_bytes) wrote.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], [`KeyError::WrongPassword`] or [`KeyError::NoEncryptionKey`].
    pub fn from_locked_bytes(bytes: &[u8], password: &str) -> Result<Self, KeyError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(KeyError::Malformed { what: "secret key", source: None });
        }
        let mut key = SignedSecretKey::from_bytes(bytes).map_err(malformed("secret key"))?;
        let password = Password::from(password);
        key.primary_key.remove_password(&password).map_err(KeyError::WrongPassword)?;
        for subkey in &mut key.secret_subkeys {
            subkey.key.remove_password(&password).map_err(KeyError::WrongPassword)?;
        }
        key.verify_bindings().map_err(malformed("secret key"))?;
        let secret = Self { key };
        secret.recipient()?;
        Ok(secret)
    }

    /// The secret key without a lock, for a pipe between two processes of this program and nothing else.
    ///
    /// # Errors
    /// [`KeyError::Library`] if the library refuses.
    pub(crate) fn to_open_bytes(&self) -> Result<Vec<u8>, KeyError> {
        self.key.to_bytes().map_err(KeyError::Library)
    }

    /// Reads what [`to_open_bytes`](Self::to_open_bytes) wrote.
    ///
    /// # Errors
    /// As [`from_locked_bytes`](Self::from_locked_bytes).
    pub(crate) fn from_open_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::from_locked_bytes(bytes, "")
    }

    /// Unwraps a session key from exactly one PKESK packet addressed to this key.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] if the bytes are something else, [`KeyError::NotForUs`] if they are for another key.
    pub fn unwrap_session_key(&self, pkesk: &[u8]) -> Result<SessionKey, KeyError> {
        let packet = parse_pkesk(pkesk)?;
        let values = packet.values().map_err(malformed("wrapped session key"))?;
        let subkey = self.key.secret_subkeys.iter().find(|subkey| packet.match_identity(&subkey.key.public_key()));
        let subkey = subkey.ok_or(KeyError::NotForUs(None))?;
        let opened = subkey.key.decrypt(&Password::empty(), values, EskType::V6);
        match opened.and_then(|inner| inner).map_err(|reason| KeyError::NotForUs(Some(reason)))? {
            PlainSessionKey::V6 { ref key } => match key.as_ref().try_into() {
                Ok(bytes) => Ok(SessionKey::from_bytes(bytes)),
                Err(_) => Err(KeyError::Malformed { what: "256-bit session key", source: None }),
            },
            _ => Err(KeyError::Malformed { what: "version 6 session key", source: None }),
        }
    }
}

/// How the parts of a secret key are locked; `light` under a password that cannot be guessed.
fn lock_params(light: bool) -> S2kParams {
    let mut params = S2kParams::new_default(OsRng, KeyVersion::V6);
    if let S2kParams::Aead { s2k, .. } = &mut params
        && light
    {
        *s2k = StringToKey::new_argon2(OsRng, 1, 1, 10);
    }
    params
}

fn parse_pkesk(bytes: &[u8]) -> Result<PublicKeyEncryptedSessionKey, KeyError> {
    let wrong = || KeyError::Malformed { what: "wrapped session key", source: None };
    if bytes.len() > ENCODED_BYTES_MAX {
        return Err(wrong());
    }
    let mut packets = PacketParser::new(bytes);
    let Some(first) = packets.next() else { return Err(wrong()) };
    let Packet::PublicKeyEncryptedSessionKey(packet) = first.map_err(malformed("wrapped session key"))? else {
        return Err(wrong());
    };
    if packets.next().is_some() || packet.version() != PkeskVersion::V6 {
        return Err(wrong());
    }
    match packet.algorithm() {
        Ok(PublicKeyAlgorithm::X25519) => Ok(packet),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_addressed_recipient_unwraps_the_session_key() {
        let (alice, eve) = (RecipientSecret::generate().unwrap(), RecipientSecret::generate().unwrap());
        let key = SessionKey::random();
        let wrapped = key.wrap(&alice.recipient().unwrap()).unwrap();
        assert_eq!(alice.unwrap_session_key(&wrapped).unwrap(), key);
        assert!(matches!(eve.unwrap_session_key(&wrapped), Err(KeyError::NotForUs(_))));
    }

    /// RFC 5869 by hand: extract under a key of zeros, expand by one block.
    #[test]
    fn the_preview_key_is_the_documented_one_and_not_the_session_key() {
        use hmac::{Hmac, Mac};
        let mac = |key: &[u8], data: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        };
        let session = SessionKey::from_bytes(&[0x42; 32]);
        let expected = mac(&mac(&[0; 32], session.expose()), b"pacs-bridge/preview/1\x01");
        assert_eq!(session.preview_key().expose().as_slice(), expected);
        assert_ne!(session.preview_key(), session);
        let series = |uid: &str| Uid::new(uid).unwrap();
        let expected = mac(&mac(&[0; 32], session.expose()), b"pacs-bridge/series/1/1.2.3.4\x01");
        assert_eq!(session.of_series(&series("1.2.3.4")).expose().as_slice(), expected);
        let keys = [
            session.of_series(&series("1.2.3.4")),
            session.of_series(&series("1.2.3.5")),
            session.preview_key().of_series(&series("1.2.3.4")),
            session.preview_key(),
            session,
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "no two of them are the same");
        }
    }

    #[test]
    fn no_changed_or_shortened_packet_yields_a_key() {
        let alice = RecipientSecret::generate().unwrap();
        let key = SessionKey::random();
        let wrapped = key.wrap(&alice.recipient().unwrap()).unwrap();
        for at in 0..wrapped.len() {
            assert!(alice.unwrap_session_key(&wrapped[..at]).is_err(), "truncated to {at}");
            for bit in 0..8 {
                let mut bad = wrapped.clone();
                bad[at] ^= 1 << bit;
                // A flip in the packet's framing may still describe the same packet; it never yields another key.
                if let Ok(opened) = alice.unwrap_session_key(&bad) {
                    assert_eq!(opened, key);
                }
            }
        }
        assert!(alice.unwrap_session_key(&[wrapped.clone(), wrapped].concat()).is_err());
    }

    #[test]
    fn a_locked_key_needs_its_password_and_keeps_its_identity() {
        let alice = RecipientSecret::generate().unwrap();
        let certificate = alice.recipient().unwrap().to_bytes().unwrap();
        let locked = alice.to_locked_bytes("correct horse").unwrap();
        assert!(matches!(RecipientSecret::from_locked_bytes(&locked, "wrong"), Err(KeyError::WrongPassword(_))));
        let again = RecipientSecret::from_locked_bytes(&locked, "correct horse").unwrap();
        assert_eq!(again.recipient().unwrap().to_bytes().unwrap(), certificate);
        let key = SessionKey::random();
        let wrapped = key.wrap(&Recipient::from_bytes(&certificate).unwrap()).unwrap();
        assert_eq!(again.unwrap_session_key(&wrapped).unwrap(), key);
    }

    #[test]
    fn a_certificate_whose_binding_was_tampered_with_is_refused() {
        let certificate = RecipientSecret::generate().unwrap().recipient().unwrap().to_bytes().unwrap();
        let mut bad = certificate.clone();
        let last = bad.len() - 1;
        bad[last] ^= 1;
        assert!(Recipient::from_bytes(&bad).is_err());
    }

    #[test]
    fn nothing_secret_shows_in_debug_output() {
        let key = SessionKey::from_bytes(&[0xA5; 32]);
        assert_eq!(format!("{key:?}"), "SessionKey(..)");
        assert_eq!(format!("{:?}", RecipientSecret::generate().unwrap()), "RecipientSecret(..)");
    }
}
