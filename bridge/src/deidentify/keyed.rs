//! Names that only the holder of a study group's key can make: UIDs, pseudonyms, date shifts, lineage.
//!
//! Everything is HMAC-SHA256 under the key, with a label per purpose. UIDs and pseudonyms carry a second, shorter code over
//! their first part, so that the holder of the key recognises them and a second run changes nothing. Must not know data
//! sets.

use std::fmt;

use alloy::primitives::keccak256;
use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;
use zeroize::Zeroize;

/// The secret of one study group: objects de-identified under the same key stay related, under another they cannot be
/// related.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A fresh key from the operating system's generator.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        rand::rngs::OsRng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// A key of these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key as it is kept in a file: 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads [`Key::to_hex`] back; white space around it is ignored.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).ok()?;
        Some(Self(bytes))
    }

    fn mac(&self, label: &str, text: &[u8]) -> [u8; 32] {
        // A key of a whole block needs no constructor that could fail; HMAC pads shorter keys in the same way (RFC 2104).
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as Mac>::new((&block).into());
        block.zeroize();
        mac.update(label.as_bytes());
        mac.update(&[0]);
        mac.update(text);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Bytes of a UID's 16 that come from the original; the rest proves them.
const UID_ID_BYTES: usize = 10;
/// Hexadecimal digits of a pseudonym, and how many of them come from the original.
const PSEUDONYM_DIGITS: usize = 28;
const PSEUDONYM_ID_DIGITS: usize = 16;
/// Longest date shift in days: about ten years.
const SHIFT_DAYS_MAX: u64 = 3650;

/// Where names come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Names<'a> {
    /// Made under a key.
    Keyed(&'a Key),
    /// Names of the right form are taken for made, all others are changed: for judging without the key.
    Recognised,
}

impl Names<'_> {
    /// The UID that stands for this one: a version 8 UUID below 2.25 (PS3.5 B.2).
    pub(super) fn uid(&self, original: &str) -> String {
        match self {
            _ if self.is_own_uid(original) => original.to_owned(),
            Names::Recognised => "2.25.0".to_owned(),
            Names::Keyed(key) => {
                let mut bytes = [0; 16];
                bytes[..UID_ID_BYTES].copy_from_slice(&key.mac("uid", original.as_bytes())[..UID_ID_BYTES]);
                (bytes[6], bytes[8]) = (bytes[6] & 0x0F | 0x80, bytes[8] & 0x3F | 0x80);
                let proof = key.mac("uid proof", &bytes[..UID_ID_BYTES]);
                bytes[UID_ID_BYTES..].copy_from_slice(&proof[..16 - UID_ID_BYTES]);
                format!("2.25.{}", u128::from_be_bytes(bytes))
            }
        }
    }

    /// Whether the UID was made here: provably under the key, by its form without one.
    pub(super) fn is_own_uid(&self, uid: &str) -> bool {
        let Some(digits) = uid.strip_prefix("2.25.") else { return false };
        let Some(value) = digits.parse::<u128>().ok().filter(|value| value.to_string() == digits) else { return false };
        let bytes = value.to_be_bytes();
        if (bytes[6] & 0xF0, bytes[8] & 0xC0) != (0x80, 0x80) {
            return false;
        }
        match self {
            Names::Recognised => true,
            Names::Keyed(key) => {
                key.mac("uid proof", &bytes[..UID_ID_BYTES])[..16 - UID_ID_BYTES] == bytes[UID_ID_BYTES..]
            }
        }
    }

    /// What stands for a patient's name and id.
    pub(super) fn pseudonym(&self, subject: &str) -> String {
        match self {
            _ if self.is_own_pseudonym(subject) => subject.to_owned(),
            Names::Recognised => "?".to_owned(),
            Names::Keyed(key) => {
                let mut id = hex::encode_upper(key.mac("patient", subject.as_bytes()));
                id.truncate(PSEUDONYM_ID_DIGITS);
                let proof = hex::encode_upper(key.mac("patient proof", id.as_bytes()));
                id.push_str(&proof[..PSEUDONYM_DIGITS - PSEUDONYM_ID_DIGITS]);
                id
            }
        }
    }

    /// Whether a patient id was made here.
    pub(super) fn is_own_pseudonym(&self, text: &str) -> bool {
        let form = text.len() == PSEUDONYM_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        match self {
            Names::Recognised => form,
            Names::Keyed(key) if form => {
                let (id, proof) = text.split_at(PSEUDONYM_ID_DIGITS);
                hex::encode_upper(key.mac("patient proof", id.as_bytes())).starts_with(proof)
            }
            Names::Keyed(_) => false,
        }
    }

    /// By how many days this patient's dates move; always into the past, never for what was shifted already.
    pub(super) fn shift_days(&self, subject: &str) -> i64 {
        match self {
            Names::Keyed(key) if !self.is_own_pseudonym(subject) => {
                let mac = key.mac("shift", subject.as_bytes());
                let number = mac[..8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
                -i64::try_from(1 + number % SHIFT_DAYS_MAX).unwrap_or(1)
            }
            _ => 0,
        }
    }

    /// A commitment to the object that this one was made from: `keccak256(salt ‖ SOPInstanceUID)`, the salt being
    /// `HMAC(key, "lineage" ‖ UID)`. The holder of the key and the original can open it, nobody else can test a guess.
    pub(super) fn lineage(&self, uid: &str) -> Option<String> {
        let Names::Keyed(key) = self else { return None };
        let salt = key.mac("lineage", uid.as_bytes());
        Some(hex::encode(keccak256([salt.as_slice(), uid.as_bytes()].concat())))
    }
}
