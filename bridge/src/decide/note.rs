//! Notes: what was said in words about a request or a decision. The words go from hand to hand in a file; the ledger gets a salted hash of
//! them, with which whoever has the file shows later what was said, and when.
//!
//! Pure; must not know where the file is kept or how it travels.

use alloy::primitives::B256;
use contracts::messages;
use serde::{Deserialize, Serialize};

/// What the file says it is.
const FORMAT: &str = "pacs-bridge/note/1";
/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 16 * 1024;

/// Why something is no note.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is a file of something else, or of another version.
    #[error("not a note of this format: \"{0}\"")]
    Format(String),
    /// It says nothing.
    #[error("a note needs words")]
    Empty,
    /// It says too much.
    #[error("a note of {0} bytes, at most {NOTE_BYTES_MAX} are taken")]
    TooLong(usize),
}

/// Words and the salt that keeps them from being guessed from their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    format: String,
    salt: B256,
    text: String,
}

impl Note {
    /// A note with a fresh salt.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn new(text: String) -> Result<Self, NoteError> {
        Self { format: FORMAT.to_owned(), salt: B256::random(), text }.checked()
    }

    /// The same, if it is one.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn checked(self) -> Result<Self, NoteError> {
        match self.text.len() {
            _ if self.format != FORMAT => Err(NoteError::Format(self.format)),
            0 => Err(NoteError::Empty),
            1..=NOTE_BYTES_MAX => Ok(self),
            bytes => Err(NoteError::TooLong(bytes)),
        }
    }

    /// What goes onto the ledger: keccak-256 of the salt and the words.
    #[must_use]
    pub fn commitment(&self) -> B256 {
        messages::salted(self.salt, self.text.as_bytes())
    }

    /// The words.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_words_twice_cannot_be_told_to_be_the_same_and_every_letter_counts() {
        let note = Note::new("until the end of the therapy".into()).unwrap();
        assert_ne!(note.commitment(), Note::new(note.text().into()).unwrap().commitment());
        let read: Note = serde_json::from_str(&serde_json::to_string(&note).unwrap()).unwrap();
        assert_eq!(read.clone().checked().unwrap().commitment(), note.commitment());
        let other = Note { text: note.text.replace("end", "And"), ..read.clone() };
        assert_ne!(other.commitment(), note.commitment());
        assert_ne!(Note { salt: B256::ZERO, ..read.clone() }.commitment(), note.commitment());
        assert!(matches!(Note { format: "x".into(), ..read }.checked(), Err(NoteError::Format(_))));
    }

    #[test]
    fn a_note_has_words_and_not_too_many() {
        assert_eq!(Note::new(String::new()), Err(NoteError::Empty));
        assert!(Note::new("a".repeat(NOTE_BYTES_MAX)).is_ok());
        assert_eq!(Note::new("a".repeat(NOTE_BYTES_MAX + 1)), Err(NoteError::TooLong(NOTE_BYTES_MAX + 1)));
    }
}
