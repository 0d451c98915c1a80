//! Passwords that this program makes itself: as hard to guess as the keys under them, so that little time and memory is spent on stretching those.
//!
//! Stretching makes each guess at what a person chose cost a second. Of 192 random bits nobody can guess any part, stretched or not.
//! Must not know what is locked.

use alloy::primitives::hex;
use rand::RngCore as _;
use zeroize::Zeroizing;

/// Random octets of a password.
const OCTETS: usize = 24;
/// What they begin with, so that nothing that a person or another program made is taken for one.
const MARK: &str = "pacs-bridge-random-";

/// A new password: a mark and 48 hexadecimal digits.
#[must_use]
pub fn make() -> Zeroizing<String> {
    let mut random = Zeroizing::new([0; OCTETS]);
    rand::rngs::OsRng.fill_bytes(random.as_mut());
    let digits = Zeroizing::new(hex::encode(random.as_ref()));
    Zeroizing::new([MARK, &digits].concat())
}

/// Whether somebody may have chosen it: everything that does not look as [`make`] makes it.
#[must_use]
pub fn needs_stretching(password: &str) -> bool {
    let is_digit = |octet: u8| octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet);
    let digits = password.strip_prefix(MARK);
    !digits.is_some_and(|digits| digits.len() == 2 * OCTETS && digits.bytes().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_here_is_not_stretched() {
        let made = make();
        assert!(!needs_stretching(&made) && *made != *make());
        let digits = made.strip_prefix(MARK).unwrap_or_default();
        let chosen = ["", "open sesame", digits, &made[1..], &format!("{}0", *made), &made.to_uppercase()];
        for password in chosen {
            assert!(needs_stretching(password), "{password}");
        }
    }
}
