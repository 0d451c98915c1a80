//! The requester's public key in the three forms of the profile, and who it is on the ledger.

use k256::ecdsa::signature::hazmat::PrehashVerifier;
use k256::elliptic_curve::sec1::ToEncodedPoint;
use sha2::{Digest, Sha256};
use sha3::Keccak256;

use crate::der::{self, KeyKind};
use crate::fault::Fault;

/// A public key that signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequesterKey {
    /// A key of the ledger.
    Secp256k1(k256::PublicKey),
    /// A key that is an account only by a binding on the ledger; whether there is one is the caller's to find.
    P256(p256::PublicKey),
}

impl RequesterKey {
    /// The account of a secp256k1 key: the last 20 octets of Keccak-256 over X and Y.
    pub fn account(&self) -> Option<[u8; 20]> {
        match self {
            RequesterKey::Secp256k1(key) => Some(account_of(key)),
            RequesterKey::P256(_) => None,
        }
    }

    /// SHA-256 of the SubjectPublicKeyInfo with the curve's name and the uncompressed point, however the key was sent.
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.spki()).into()
    }

    /// The SubjectPublicKeyInfo with the curve's name and the uncompressed point.
    pub fn spki(&self) -> Vec<u8> {
        match self {
            RequesterKey::Secp256k1(key) => der::spki(der::SECP256K1, key.to_encoded_point(false).as_bytes()),
            RequesterKey::P256(key) => der::spki(der::P256, key.to_encoded_point(false).as_bytes()),
        }
    }

    /// A key from the certificate that contains it.
    ///
    /// # Errors
    /// [`Fault::InvalidSecurityToken`] and [`Fault::UnsupportedSecurityToken`].
    pub fn from_certificate(certificate: &[u8]) -> Result<RequesterKey, Fault> {
        RequesterKey::from_spki(der::certificate_key(certificate).ok_or(Fault::InvalidSecurityToken)?)
    }

    /// A key from its SubjectPublicKeyInfo, with the point compressed or not.
    ///
    /// # Errors
    /// [`Fault::InvalidSecurityToken`] and [`Fault::UnsupportedSecurityToken`].
    pub fn from_spki(spki: &[u8]) -> Result<RequesterKey, Fault> {
        let (kind, point) = der::public_key_info(spki).ok_or(Fault::InvalidSecurityToken)?;
        match kind {
            KeyKind::Curve(curve) => RequesterKey::from_point(curve, point),
            KeyKind::Other => Err(Fault::UnsupportedSecurityToken),
        }
    }

    /// A key from a curve's `urn:oid:` and a point (XML Signature 1.1 section 4.5.2.3).
    pub(crate) fn from_named_curve(urn: &str, point: &[u8]) -> Result<RequesterKey, Fault> {
        match urn {
            "urn:oid:1.3.132.0.10" => RequesterKey::from_point(der::SECP256K1, point),
            "urn:oid:1.2.840.10045.3.1.7" => RequesterKey::from_point(der::P256, point),
            _ => Err(Fault::UnsupportedSecurityToken),
        }
    }

    /// A point in SEC1 form, compressed or not; it must be on the curve and not at infinity. The curve crates know a compact form
    /// besides, which no standard of XML does.
    fn from_point(curve: &[u8], point: &[u8]) -> Result<RequesterKey, Fault> {
        if !matches!((point.first(), point.len()), (Some(2 | 3), 33) | (Some(4), 65)) {
            let known = curve == der::SECP256K1 || curve == der::P256;
            return Err(if known { Fault::InvalidSecurityToken } else { Fault::UnsupportedSecurityToken });
        }
        let key = match curve {
            der::SECP256K1 => k256::PublicKey::from_sec1_bytes(point).ok().map(RequesterKey::Secp256k1),
            der::P256 => p256::PublicKey::from_sec1_bytes(point).ok().map(RequesterKey::P256),
            _ => return Err(Fault::UnsupportedSecurityToken),
        };
        key.ok_or(Fault::InvalidSecurityToken)
    }

    /// Whether `signature`, r and s of 32 octets each, is this key's over a digest. Low and high s are the same signature: k256 refuses
    /// high ones, so they are normalised first.
    pub fn verifies(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        match self {
            RequesterKey::Secp256k1(key) => k256::ecdsa::Signature::from_slice(signature).is_ok_and(|signature| {
                let low = signature.normalize_s().unwrap_or(signature);
                k256::ecdsa::VerifyingKey::from(key).verify_prehash(digest, &low).is_ok()
            }),
            RequesterKey::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| p256::ecdsa::VerifyingKey::from(key).verify_prehash(digest, &signature).is_ok()),
        }
    }
}

/// The ledger account of a public key.
pub(crate) fn account_of(key: &k256::PublicKey) -> [u8; 20] {
    let point = key.to_encoded_point(false);
    let hash = Keccak256::digest(&point.as_bytes()[1..]);
    let mut account = [0; 20];
    account.copy_from_slice(&hash[12..]);
    account
}
