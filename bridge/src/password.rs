//! Passwords that this program makes itself: as hard to guess as the keys under them, so that no time and memory is spent on stretching those.
//!
//! Stretching makes each guess at what a person chose cost a second. Of 192 random bits nobody can guess any part, stretched or not.
//! Must not know what is locked.

use alloy::primitives::hex;
use rand::RngCore as _;
use zeroize::Zeroizing;

/// Random octets of a password.
const OCTETS: usize = 24;
/// Different digits that such a password has at least: about one in a hundred million has fewer.
const DIGITS_MIN: usize = 10;

/// A new password: 48 hexadecimal digits.
#[must_use]
pub fn make() -> Zeroizing<String> {
    loop {
        let mut random = Zeroizing::new([0; OCTETS]);
        rand::rngs::OsRng.fill_bytes(random.as_mut());
        let password = Zeroizing::new(hex::encode(random.as_ref()));
        if !needs_stretching(&password) {
            return password;
        }
    }
}

/// Whether somebody may have chosen it: everything that does not look as [`make`] makes it.
#[must_use]
pub fn needs_stretching(password: &str) -> bool {
    let is_digit = |octet: u8| octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet);
    let mut different = [false; 256];
    password.bytes().for_each(|octet| different[usize::from(octet)] = true);
    let different = different.iter().filter(|there| **there).count();
    password.len() != 2 * OCTETS || !password.bytes().all(is_digit) || different < DIGITS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_here_is_not_stretched() {
        let made = make();
        assert!(!needs_stretching(&made) && *made != *make());
        let chosen =
            ["", "open sesame", &made[1..], &format!("{}0", *made), &made.to_uppercase(), &"01".repeat(OCTETS)];
        for password in chosen {
            assert!(needs_stretching(password), "{password}");
        }
    }
}
