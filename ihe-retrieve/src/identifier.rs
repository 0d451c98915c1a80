//! Section 2 of the wire contract: what names a source and a study. Both are opaque text that is echoed as the requester wrote it; these
//! types say what a text stands for. A text that is none of the forms is unknown, which is not an error here.

use crate::key::account_of;
use k256::elliptic_curve::sec1::ToEncodedPoint;
use sha2::{Digest, Sha256};

/// What a RepositoryUniqueId may say: a source by its key or by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryUniqueId {
    address: [u8; 20],
}

impl RepositoryUniqueId {
    /// Reads a SEC1 compressed key (66 hex digits), an uncompressed one (130), or `0x` and an address (40), in any case.
    pub fn parse(text: &str) -> Option<RepositoryUniqueId> {
        if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            return Some(RepositoryUniqueId { address: array(digits)? });
        }
        let expected_tags: &[u8] = match text.len() {
            66 => &[2, 3],
            130 => &[4],
            _ => return None,
        };
        let point = hex::decode(text).ok().filter(|point| expected_tags.contains(&point[0]))?;
        k256::PublicKey::from_sec1_bytes(&point).ok().map(|key| RepositoryUniqueId::of(&key))
    }

    /// The source with this key.
    pub fn of(key: &k256::PublicKey) -> RepositoryUniqueId {
        RepositoryUniqueId { address: account_of(key) }
    }

    /// The source at this address.
    pub fn at(address: [u8; 20]) -> RepositoryUniqueId {
        RepositoryUniqueId { address }
    }

    /// The source's name where only a UID fits, such as Retrieve Location UID (0040,E011): a UUID of version 8 below 2.25 (PS3.5 B.2) over
    /// its address. An address itself has more bits than a UUID, so this is a name to compare, not one to read.
    pub fn oid(&self) -> String {
        let digest = Sha256::new().chain_update(b"pacs-bridge/repository/1").chain_update(self.address).finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest[..16]);
        (uuid[6], uuid[8]) = (uuid[6] & 0x0F | 0x80, uuid[8] & 0x3F | 0x80);
        format!("2.25.{}", u128::from_be_bytes(uuid))
    }

    /// Whether a text stands for this source, in any form.
    pub fn is_named_by(&self, text: &str) -> bool {
        RepositoryUniqueId::parse(text) == Some(*self) || text == self.oid()
    }

    /// The source's address.
    pub fn address(&self) -> [u8; 20] {
        self.address
    }

    /// The canonical text for a source: its key, compressed, in lower-case hex digits.
    pub fn canonical(key: &k256::PublicKey) -> String {
        hex::encode(key.to_encoded_point(true).as_bytes())
    }
}

/// What a DocumentUniqueId may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DocumentUniqueId {
    /// The study as Define Study names it.
    pub study: [u8; 32],
    /// Which document of the study.
    pub form: DocumentForm,
}

/// Which document of a study is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DocumentForm {
    /// `<id>`: the newest sealed version.
    Newest,
    /// `<id>^<n>`: manifest version n, the same octets for ever.
    Version(u32),
    /// `<id>^kos`: the key object selection document that lists the study's instances.
    KeyObjectSelection,
}

impl DocumentUniqueId {
    /// Reads 64 hex digits in any case, with or without `0x`, and `^<n>` or `^kos` where there is one. A version is decimal from 1, without leading
    /// zeros, so that there is one way to write it.
    pub fn parse(text: &str) -> Option<DocumentUniqueId> {
        let (id, form) = match text.split_once('^') {
            None => (text, DocumentForm::Newest),
            Some((id, "kos")) => (id, DocumentForm::KeyObjectSelection),
            Some((id, version)) => (id, DocumentForm::Version(parse_version(version)?)),
        };
        let digits = id.strip_prefix("0x").or(id.strip_prefix("0X")).unwrap_or(id);
        Some(DocumentUniqueId { study: array(digits)?, form })
    }

    /// The canonical text: lower case and no `0x`.
    pub fn canonical(&self) -> String {
        let id = hex::encode(self.study);
        match self.form {
            DocumentForm::Newest => id,
            DocumentForm::Version(version) => format!("{id}^{version}"),
            DocumentForm::KeyObjectSelection => format!("{id}^kos"),
        }
    }
}

fn parse_version(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

fn array<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_in_all_its_forms() {
        let key = k256::SecretKey::from_slice(&[7; 32]).expect("a key").public_key();
        let source = RepositoryUniqueId::of(&key);
        let uncompressed = hex::encode(key.to_encoded_point(false).as_bytes());
        let address = format!("0x{}", hex::encode(source.address()));
        for text in [RepositoryUniqueId::canonical(&key), uncompressed, address] {
            assert_eq!(RepositoryUniqueId::parse(&text), Some(source), "{text}");
            let upper = text.to_uppercase();
            assert_eq!(RepositoryUniqueId::parse(&upper), Some(source), "{upper}");
            assert!(source.is_named_by(&text) && source.is_named_by(&upper));
        }
        let other = RepositoryUniqueId::at([7; 20]);
        assert!(
            source.is_named_by(&source.oid()) && !other.is_named_by(&source.oid()) && !source.is_named_by("2.25.1")
        );
        // As it was first written down: documents that name it are out there.
        assert_eq!(other.oid(), "2.25.25177164169035048412338056156917706737");
        assert!(source.oid().len() <= 64 && RepositoryUniqueId::parse(&source.oid()).is_none());
        let canonical = RepositoryUniqueId::canonical(&key);
        // An address without 0x, a key not on the curve, tags that are not SEC1's for the length (among them the hybrid form), 0x before a key.
        for text in [
            "",
            "0x",
            &hex::encode(source.address()),
            &format!("02{}", "ff".repeat(32)),
            &format!("04{}", &canonical[2..]),
            &format!("06{}", "11".repeat(64)),
            &format!("0x{canonical}"),
            &canonical[..65],
            "\u{e9}",
        ] {
            assert_eq!(RepositoryUniqueId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn documents_of_a_study() {
        let id = "ab".repeat(32);
        let parse = |text: String| DocumentUniqueId::parse(&text).map(|d| (d.form, d.canonical()));
        assert_eq!(parse(format!("0x{}", id.to_uppercase())), Some((DocumentForm::Newest, id.clone())));
        assert_eq!(parse(format!("{id}^7")), Some((DocumentForm::Version(7), format!("{id}^7"))));
        assert_eq!(parse(format!("{id}^kos")), Some((DocumentForm::KeyObjectSelection, format!("{id}^kos"))));
        for suffix in ["^", "^0", "^07", "^+7", "^4294967296", "^KOS", "^7^", " ", "a"] {
            assert_eq!(parse(format!("{id}{suffix}")), None, "{suffix}");
        }
        assert_eq!(parse("1.2.840.10008".into()), None);
    }
}
