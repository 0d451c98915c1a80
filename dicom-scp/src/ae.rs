//! Application entity titles (PS3.5 6.2, VR AE; PS3.8 9.3.2).
//!
//! Must not know which titles are ours or known: that is configuration.

use std::{fmt, str::FromStr};

/// An AE title: 1 to 16 characters of the default repertoire, without backslash and control characters. Leading and trailing spaces
/// are not significant and are removed; case is significant.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AeTitle(String);

/// Why a text is not an AE title.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AeTitleError {
    /// Only spaces ("no application name specified") or nothing at all.
    #[error("empty ae title")]
    Empty,
    /// More than 16 characters.
    #[error("ae title longer than 16 characters")]
    TooLong,
    /// A backslash, a control character or something outside ASCII.
    #[error("ae title with a backslash, control or non-ascii character")]
    Character,
}

impl AeTitle {
    /// The longest AE title, in characters.
    pub const LENGTH_MAX: usize = 16;

    /// Takes an AE title as found on the wire or in a configuration.
    pub fn new(text: &str) -> Result<Self, AeTitleError> {
        let text = text.trim_end_matches('\0').trim_matches(' ');
        if text.is_empty() {
            return Err(AeTitleError::Empty);
        }
        if !text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'\\') {
            return Err(AeTitleError::Character);
        }
        if text.len() > Self::LENGTH_MAX {
            return Err(AeTitleError::TooLong);
        }
        Ok(AeTitle(text.to_owned()))
    }

    /// The title without padding.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AeTitle({})", self.0)
    }
}

impl FromStr for AeTitle {
    type Err = AeTitleError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl AsRef<str> for AeTitle {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spaces_around_are_not_significant() {
        assert_eq!(AeTitle::new(" PACS ONE      ").unwrap().as_str(), "PACS ONE");
        assert_eq!(AeTitle::new("0123").unwrap().as_str(), "0123");
    }

    #[test]
    fn what_is_no_title() {
        assert_eq!(AeTitle::new("    "), Err(AeTitleError::Empty));
        assert_eq!(AeTitle::new("A\\B"), Err(AeTitleError::Character));
        assert_eq!(AeTitle::new("A\nB"), Err(AeTitleError::Character));
        assert_eq!(AeTitle::new("ÄRZTE"), Err(AeTitleError::Character));
        assert_eq!(AeTitle::new("12345678901234567"), Err(AeTitleError::TooLong));
    }
}
