//! Unique identifiers (PS3.5 9).
//!
//! Everything a peer sends as a UID becomes a [`Uid`] once, at the edge. Must not know what a UID stands for.

use std::{fmt, str::FromStr};

/// A DICOM UID of 1 to 64 characters out of `[0-9.]` (PS3.5 9.1), stored inline so that it is cheap to pass around.
///
/// The check is deliberately weaker than the standard's grammar (leading zeros and empty components occur in the field)
/// and strong enough that a UID can never smuggle a path separator or markup anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid {
    // NUL padding sorts before every allowed character, so the derived order is the order of the text.
    bytes: [u8; Uid::LENGTH_MAX],
    length: u8,
}

/// Why a text is not a UID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// Nothing was left after removing padding.
    #[error("empty uid")]
    Empty,
    /// More than 64 characters.
    #[error("uid longer than 64 characters")]
    TooLong,
    /// A character other than digits and full stops.
    #[error("uid with a character outside [0-9.]")]
    Character,
}

impl Uid {
    /// The longest UID (PS3.5 9.1), in characters.
    pub const LENGTH_MAX: usize = 64;

    /// Takes a UID as found on the wire: trailing NUL and surrounding space padding is removed.
    pub fn new(text: &str) -> Result<Self, UidError> {
        Self::from_bytes(text.as_bytes())
    }

    /// As [`Uid::new`], from the bytes of a value field.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UidError> {
        let bytes = trim(bytes);
        if bytes.is_empty() {
            return Err(UidError::Empty);
        }
        if bytes.len() > Self::LENGTH_MAX {
            return Err(UidError::TooLong);
        }
        if !bytes.iter().all(|b| allowed(*b)) {
            return Err(UidError::Character);
        }
        let mut uid = Uid { bytes: [0; Self::LENGTH_MAX], length: bytes.len() as u8 };
        uid.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(uid)
    }

    /// A UID written in source code; a wrong one does not compile when used in a constant.
    ///
    /// # Panics
    /// If the text is no UID. Meant for constants only.
    pub const fn literal(text: &str) -> Self {
        let source = text.as_bytes();
        assert!(!source.is_empty() && source.len() <= Self::LENGTH_MAX, "uid literal of wrong length");
        let mut uid = Uid { bytes: [0; Self::LENGTH_MAX], length: source.len() as u8 };
        let mut i = 0;
        while i < source.len() {
            assert!(allowed(source[i]), "uid literal with a wrong character");
            uid.bytes[i] = source[i];
            i += 1;
        }
        uid
    }

    /// The text, without padding.
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in, so the fallback is never taken.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// The text as bytes, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

const fn allowed(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.'
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [head @ .., 0 | b' '] = bytes {
        bytes = head;
    }
    while let [b' ', tail @ ..] = bytes {
        bytes = tail;
    }
    bytes
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({})", self.as_str())
    }
}

impl FromStr for Uid {
    type Err = UidError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl AsRef<str> for Uid {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Uid {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn padding_is_removed_and_everything_else_is_checked() {
        assert_eq!(Uid::from_bytes(b"1.2.840.10008.1.1\0").unwrap(), "1.2.840.10008.1.1");
        assert_eq!(Uid::new(" 1.2 ").unwrap().as_str(), "1.2");
        assert_eq!(Uid::new("\0"), Err(UidError::Empty));
        assert_eq!(Uid::new("../1"), Err(UidError::Character));
        assert_eq!(Uid::new("1.2\\1.3"), Err(UidError::Character));
        assert_eq!(Uid::new(&"1".repeat(65)), Err(UidError::TooLong));
        assert_eq!(Uid::new(&"1".repeat(64)).unwrap().as_str().len(), 64);
    }

    #[test]
    fn order_is_the_order_of_the_text() {
        let mut uids: Vec<Uid> = ["1.2.3", "1.2", "1.10", "2"].iter().map(|u| Uid::new(u).unwrap()).collect();
        uids.sort();
        assert_eq!(uids.iter().map(Uid::as_str).collect::<Vec<_>>(), ["1.10", "1.2", "1.2.3", "2"]);
    }
}
