//! What a key signs to log in: a text of this server, for one address, one time and a few minutes.
//!
//! Nothing is kept of texts that nobody signed: what they say is bound by a code that only this process can make. Must not know who signs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use hmac::{Hmac, Mac};
use rand::RngCore as _;
use sha2::Sha256;

use super::words::machine_time;

/// How long a text can be signed, in seconds.
const GOOD_S: u64 = 600;
/// Random bytes of a text.
const RANDOM_BYTES: usize = 16;

/// A text to be signed, and what brings it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) text: String,
    /// What the form carries.
    pub(super) number: String,
}

/// The texts of a site.
pub(super) struct Challenges {
    site: String,
    secret: [u8; 64],
    /// Those that somebody logged in with, and when they end.
    used: Mutex<HashMap<String, u64>>,
}

impl Challenges {
    /// `site`: the account of this site.
    pub(super) fn new(site: &str) -> Self {
        let mut secret = [0; 64];
        rand::rngs::OsRng.fill_bytes(&mut secret);
        Self { site: site.to_owned(), secret, used: Mutex::default() }
    }

    /// A text for somebody who calls this server by the name `host`.
    pub(super) fn issue(&self, host: &str, now_s: u64) -> Challenge {
        let mut random = [0; RANDOM_BYTES];
        rand::rngs::OsRng.fill_bytes(&mut random);
        let (random, until_s) = (hex::encode(random), now_s + GOOD_S);
        let text = self.text(host, &random, until_s);
        let number = format!("{random}.{until_s}.{}", hex::encode(self.code(&text).finalize().into_bytes()));
        Challenge { text, number }
    }

    /// The text that a number brings back, if it is of this process, for this name, and can be signed still.
    pub(super) fn text_of(&self, number: &str, host: &str, now_s: u64) -> Option<String> {
        let mut parts = number.splitn(3, '.');
        let (random, until, code) = (parts.next()?, parts.next()?, hex::decode(parts.next()?).ok()?);
        let until_s: u64 = until.parse().ok().filter(|until_s| (now_s..=now_s + GOOD_S).contains(until_s))?;
        let text = self.text(host, random, until_s);
        self.code(&text).verify_slice(&code).ok()?;
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        (!used.contains_key(random)).then_some(text)
    }

    /// Uses a number up; `false` if somebody did before.
    pub(super) fn use_up(&self, number: &str, now_s: u64) -> bool {
        let random = number.split('.').next().unwrap_or_default().to_owned();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, until_s| now_s <= *until_s);
        used.insert(random, now_s + GOOD_S).is_none()
    }

    fn text(&self, host: &str, random: &str, until_s: u64) -> String {
        let (site, until) = (&self.site, machine_time(until_s));
        format!("PACS Bridge: log in\nAddress: {host}\nSite: {site}\nUntil: {until}\nNumber: {random}")
    }

    fn code(&self, text: &str) -> Hmac<Sha256> {
        let mut code = <Hmac<Sha256> as Mac>::new((&self.secret).into());
        code.update(text.as_bytes());
        code
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_700_000_000;

    #[test]
    fn a_text_is_good_once_for_its_time_its_address_and_its_site() {
        let (ours, other) = (Challenges::new("0xsite"), Challenges::new("0xsite"));
        let made = ours.issue("pacs.example", NOW);
        assert!(
            made.text
                .starts_with("PACS Bridge: log in\nAddress: pacs.example\nSite: 0xsite\nUntil: 2023-11-14T22:23:20Z\n")
        );
        assert_eq!(ours.text_of(&made.number, "pacs.example", NOW + GOOD_S), Some(made.text.clone()));
        assert_eq!(ours.text_of(&made.number, "pacs.example", NOW + GOOD_S + 1), None);
        assert_eq!(ours.text_of(&made.number, "evil.example", NOW), None);
        assert_eq!(other.text_of(&made.number, "pacs.example", NOW), None);
        let later = made.number.replacen(&(NOW + GOOD_S).to_string(), &(NOW + GOOD_S - 1).to_string(), 1);
        for wrong in ["", "..", "a.b.c", &later, &made.number[1..], &made.number[..made.number.len() - 2]] {
            assert_eq!(ours.text_of(wrong, "pacs.example", NOW), None, "{wrong}");
        }
        assert!(ours.use_up(&made.number, NOW) && !ours.use_up(&made.number, NOW));
        assert_eq!(ours.text_of(&made.number, "pacs.example", NOW), None);
        ours.use_up(&ours.issue("pacs.example", NOW).number, NOW + 2 * GOOD_S);
        assert_eq!(ours.used.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
