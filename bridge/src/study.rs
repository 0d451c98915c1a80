//! Identifiers and digests of studies and of the images that carry them on the ledger.
//!
//! Pure values: this module knows nothing of files, chains or the network. What it derives is all that the ledger ever
//! learns about a study: 32-byte names that cannot be turned back into a UID without the study's salt, because a
//! StudyInstanceUID alone can be guessed (many hold a date and a device number).

use std::fmt;

use alloy::primitives::{B256, Keccak256, keccak256};
use dicom_scp::Uid;
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// The 32 random bytes that hide a study's UID on the ledger. Handed over with a grant, destroyed on erasure.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    /// A fresh salt from the operating system's generator.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        rand::rngs::OsRng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// A salt read back from the keyring.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes, for the keyring only.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

impl Drop for Salt {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The study's name on the ledger: `keccak256(salt ‖ StudyInstanceUID)`.
#[must_use]
pub fn study_id(salt: &Salt, study_uid: &str) -> B256 {
    let mut hash = Keccak256::new();
    hash.update(salt.0);
    hash.update(study_uid.as_bytes());
    hash.finalize()
}

/// The study's name in the papers' way, `keccak256(StudyInstanceUID)`: anybody who guesses the UID finds the study.
#[must_use]
pub fn study_id_plain(study_uid: &str) -> B256 {
    keccak256(study_uid.as_bytes())
}

/// What an image on the ledger (a sealed run of bytes, split into pieces) carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// A whole Part 10 file.
    Object,
    /// A small picture of an instance, a series or a study.
    Preview,
    /// The list of everything in one version of a study.
    Manifest,
    /// The part of that list which is about one series, for those who may see no other.
    SeriesManifest,
}

impl ImageKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Object, Self::Preview, Self::Manifest, Self::SeriesManifest];

    /// The byte that separates the kinds in [`image_id`].
    #[must_use]
    pub fn tag(self) -> u8 {
        match self {
            Self::Object => 1,
            Self::Preview => 2,
            Self::Manifest => 3,
            Self::SeriesManifest => 4,
        }
    }
}

/// The image's name on the ledger:
/// `keccak256("pacs-bridge/image/1" ‖ salt ‖ kind ‖ version (u32, big-endian) ‖ content digest ‖ subject)`.
///
/// The content digest is part of the name, so one name never stands for two contents: that is what makes it safe to
/// derive a payload's encryption salt from the name.
#[must_use]
pub fn image_id(salt: &Salt, kind: ImageKind, subject: &str, content_sha256: &[u8; 32], version: u32) -> B256 {
    let mut hash = Keccak256::new();
    hash.update(b"pacs-bridge/image/1");
    hash.update(salt.0);
    hash.update([kind.tag()]);
    hash.update(version.to_be_bytes());
    hash.update(content_sha256);
    hash.update(subject.as_bytes());
    hash.finalize()
}

/// A UID for an object that this site makes: a version 8 UUID below 2.25 (PS3.5 B.2) over what the object is made of, the same every time.
/// `domain` sets apart what is made for different ends.
#[must_use]
pub fn derived_uid(domain: &str, names: &[&str], content: &[u8]) -> Option<Uid> {
    let mut hash = Sha256::new();
    hash.update(domain.as_bytes());
    for name in names {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
    }
    hash.update(content);
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    (bytes[6], bytes[8]) = (bytes[6] & 0x0F | 0x80, bytes[8] & 0x3F | 0x80);
    Uid::new(&format!("2.25.{}", u128::from_be_bytes(bytes))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "1.2.840.113619.2.55.3.604688119.971.1257859200.131";

    #[test]
    fn the_study_id_depends_on_every_byte_of_salt_and_uid() {
        let salt = Salt::from_bytes([7; 32]);
        let id = study_id(&salt, UID);
        assert_ne!(id, study_id(&Salt::from_bytes([8; 32]), UID));
        assert_ne!(id, study_id(&salt, &UID.replace("131", "132")));
        assert_ne!(id, study_id_plain(UID));
    }

    #[test]
    fn image_names_differ_by_kind_version_content_and_subject() {
        let salt = Salt::from_bytes([7; 32]);
        let base = image_id(&salt, ImageKind::Object, UID, &[1; 32], 0);
        let others = [
            image_id(&salt, ImageKind::Preview, UID, &[1; 32], 0),
            image_id(&salt, ImageKind::Object, UID, &[1; 32], 1),
            image_id(&salt, ImageKind::Object, UID, &[2; 32], 0),
            image_id(&salt, ImageKind::Object, "1.2", &[1; 32], 0),
            image_id(&Salt::from_bytes([9; 32]), ImageKind::Object, UID, &[1; 32], 0),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_salt_does_not_show_itself_in_debug_output() {
        assert_eq!(format!("{:?}", Salt::from_bytes([7; 32])), "Salt(..)");
    }
}
