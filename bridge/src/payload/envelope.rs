//! Envelopes: a few bytes that take two keys to open, one that its holder keeps and one that he made for this one time.
//!
//! The inner layer is for the one-time key, the outer for the lasting one. Each is a PKESK packet and a container (RFC 9580; docs/FORMAT.md
//! sections 1 and 2), so any implementation with the keys opens it. Once the one-time key is destroyed the lasting key alone
//! opens the outer layer and finds ciphertext there. Must not know what is in it, nor where it travels.

use super::ImageId;
use super::container::{SealError, SealOptions, UnsealError, seal_bytes, unseal_bytes};
use super::keys::{KeyError, Recipient, RecipientSecret, SessionKey};

/// Most plain bytes in an envelope.
pub const PLAIN_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of the inner layer.
const INNER_BYTES_MAX: u64 = 2 * PLAIN_BYTES_MAX as u64;
/// A PKESK packet begins with this: new format, packet type 1 (RFC 9580 section 4.2).
const PKESK: u8 = 0xC1;
/// Longest length that is told in one byte (RFC 9580 section 4.2.1.1).
const SHORT_LENGTH_MAX: u8 = 191;

/// Why an envelope could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// A key is not one, or not the one that it is for.
    #[error("the key of an envelope")]
    Key(#[from] KeyError),
    /// Sealing failed.
    #[error("sealing an envelope")]
    Seal(#[from] SealError),
    /// It does not open: damaged, or for another study.
    #[error("an envelope that does not open")]
    Unseal(#[from] UnsealError),
    /// It does not begin as an envelope does.
    #[error("not an envelope")]
    Malformed,
    /// More than fits.
    #[error("{0} bytes do not fit into an envelope")]
    TooLong(usize),
}

/// Seals `plain` for whoever has both keys. `name` goes into both layers, and it opens under no other.
///
/// # Errors
/// [`EnvelopeError`].
pub fn seal_envelope(
    plain: &[u8],
    name: &ImageId,
    lasting: &Recipient,
    one_time: &Recipient,
) -> Result<Vec<u8>, EnvelopeError> {
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(EnvelopeError::TooLong(plain.len()));
    }
    layer(&layer(plain, name, one_time)?, name, lasting)
}

/// Opens what [`seal_envelope`] made.
///
/// # Errors
/// [`EnvelopeError`].
pub fn open_envelope(
    envelope: &[u8],
    name: &ImageId,
    lasting: &RecipientSecret,
    one_time: &RecipientSecret,
) -> Result<Vec<u8>, EnvelopeError> {
    let inner = open_layer(envelope, name, lasting, INNER_BYTES_MAX)?;
    open_layer(&inner, name, one_time, PLAIN_BYTES_MAX as u64)
}

fn layer(plain: &[u8], name: &ImageId, recipient: &Recipient) -> Result<Vec<u8>, EnvelopeError> {
    let key = SessionKey::random();
    let mut layer = key.wrap(recipient)?;
    layer.extend(seal_bytes(plain, &key, name, SealOptions::default())?.0);
    Ok(layer)
}

fn open_layer(
    layer: &[u8],
    name: &ImageId,
    secret: &RecipientSecret,
    bytes_max: u64,
) -> Result<Vec<u8>, EnvelopeError> {
    let [PKESK, length @ 0..=SHORT_LENGTH_MAX, ..] = *layer else { return Err(EnvelopeError::Malformed) };
    let (wrapped, container) = layer.split_at_checked(2 + usize::from(length)).ok_or(EnvelopeError::Malformed)?;
    let key = secret.unwrap_session_key(wrapped)?;
    Ok(unseal_bytes(container, &key, name, bytes_max)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NAME: ImageId = ImageId::repeat_byte(7);

    #[test]
    fn an_envelope_takes_both_keys_and_its_own_name() {
        let [lasting, one_time, thief] = [(); 3].map(|()| RecipientSecret::generate().unwrap());
        let (to_lasting, to_one_time) = (lasting.recipient().unwrap(), one_time.recipient().unwrap());
        let envelope = seal_envelope(b"the keys", &NAME, &to_lasting, &to_one_time).unwrap();
        assert_eq!(open_envelope(&envelope, &NAME, &lasting, &one_time).unwrap(), b"the keys");
        let pairs = [(&lasting, &thief), (&thief, &one_time), (&lasting, &lasting), (&one_time, &lasting)];
        for (lasting, one_time) in pairs {
            assert!(open_envelope(&envelope, &NAME, lasting, one_time).is_err());
        }
        assert!(open_envelope(&envelope, &ImageId::repeat_byte(8), &lasting, &one_time).is_err());
    }

    #[test]
    fn no_changed_or_shortened_envelope_opens_and_none_is_too_long() {
        let (lasting, one_time) = (RecipientSecret::generate().unwrap(), RecipientSecret::generate().unwrap());
        let (to_lasting, to_one_time) = (lasting.recipient().unwrap(), one_time.recipient().unwrap());
        let seal = |plain: &[u8]| seal_envelope(plain, &NAME, &to_lasting, &to_one_time);
        let envelope = seal(b"the keys").unwrap();
        for at in 0..envelope.len() {
            assert!(open_envelope(&envelope[..at], &NAME, &lasting, &one_time).is_err(), "cut at {at}");
            let mut bad = envelope.clone();
            bad[at] ^= 0x40;
            assert!(open_envelope(&bad, &NAME, &lasting, &one_time).is_err(), "changed at {at}");
        }
        let most = vec![5; PLAIN_BYTES_MAX];
        assert_eq!(open_envelope(&seal(&most).unwrap(), &NAME, &lasting, &one_time).unwrap(), most);
        assert!(matches!(seal(&[most, vec![5]].concat()), Err(EnvelopeError::TooLong(_))));
    }
}
