//! The container's promises: what comes out is what went in, nothing altered comes out, the same input gives the same
//! bytes, and an OpenPGP reader that is not ours agrees.
#![allow(clippy::unwrap_used)]

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use alloy::primitives::B256;
use pgp::composed::{Esk, Message, PlainSessionKey, RawSessionKey};
use proptest::prelude::*;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::container::{
    SealError, SealOptions, UnsealError, plain_bytes_fitting, seal, seal_bytes, unseal, unseal_bytes,
};
use super::keys::{RecipientSecret, SessionKey};

const IMAGE: B256 = B256::repeat_byte(0x11);
const PLAIN: SealOptions = SealOptions { level: 3, pad_to_bytes: None };

fn key() -> SessionKey {
    SessionKey::from_bytes(&[0x42; 32])
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut out);
    out
}

/// Half noise, half repetition: compresses, but not to nothing.
fn mixed(bytes: usize, seed: u64) -> Vec<u8> {
    let mut out = noise(bytes, seed);
    for (i, byte) in out.iter_mut().enumerate() {
        if i % 64 < 32 {
            *byte = (i / 4096) as u8;
        }
    }
    out
}

fn round_trip(plain: &[u8], options: SealOptions) -> Vec<u8> {
    let (bytes, sealed) = seal_bytes(plain, &key(), &IMAGE, options).unwrap();
    assert_eq!(sealed.sealed_bytes, bytes.len() as u64);
    assert_eq!(sealed.plain_bytes, plain.len() as u64);
    assert_eq!(sealed.plain_sha256, <[u8; 32]>::from(Sha256::digest(plain)));
    let mut back = Vec::new();
    let unsealed = unseal(bytes.as_slice(), &key(), &IMAGE, plain.len() as u64, &mut back).unwrap();
    assert!(back == plain);
    assert_eq!(unsealed.plain_sha256, sealed.plain_sha256);
    bytes
}

#[test]
fn every_length_around_a_boundary_comes_back() {
    let edges = [0, 1, 2, 100, 65_535 - 200, 65_536, 131_072, 262_144, 1 << 20];
    for edge in edges {
        for length in [edge as usize, edge as usize + 1, (edge as usize).saturating_sub(1)] {
            round_trip(&noise(length, 1), PLAIN);
            round_trip(&mixed(length, 2), PLAIN);
        }
    }
    // Every length of encrypted content from one chunk to just over two.
    for length in (65_300..65_700).chain(130_800..131_200) {
        round_trip(&noise(length, 3), PLAIN);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_comes_back_and_sealing_repeats_itself(length in 0_usize..400_000, seed: u64, level in 1_u8..8) {
        let plain = mixed(length, seed);
        let options = SealOptions { level, pad_to_bytes: None };
        prop_assert!(round_trip(&plain, options) == round_trip(&plain, options));
    }

    #[test]
    fn padded_containers_are_whole_pieces_and_come_back(length in 0_usize..300_000, seed: u64, pad in 1_024_u32..150_000) {
        let plain = noise(length, seed);
        let bytes = round_trip(&plain, SealOptions { level: 1, pad_to_bytes: Some(pad) });
        prop_assert_eq!(bytes.len() % pad as usize, 0);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed(at: prop::sample::Index, change in 1_u8..=255, padded: bool) {
        let options = SealOptions { level: 3, pad_to_bytes: padded.then_some(4096) };
        let (mut bytes, _) = seal_bytes(&noise(150_000, 4), &key(), &IMAGE, options).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert!(unseal_bytes(&bytes, &key(), &IMAGE, 1 << 20).is_err());
    }

    #[test]
    fn no_shortened_or_lengthened_container_opens(at: prop::sample::Index, padded: bool) {
        let options = SealOptions { level: 3, pad_to_bytes: padded.then_some(4096) };
        let (mut bytes, _) = seal_bytes(&noise(150_000, 5), &key(), &IMAGE, options).unwrap();
        prop_assert!(unseal_bytes(&bytes[..at.index(bytes.len())], &key(), &IMAGE, 1 << 20).is_err());
        bytes.push(0);
        prop_assert!(unseal_bytes(&bytes, &key(), &IMAGE, 1 << 20).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(unseal_bytes(&bytes, &key(), &IMAGE, 1 << 20).is_err());
    }
}

#[test]
fn every_single_bit_of_a_small_container_matters() {
    let (bytes, _) = seal_bytes(b"a short object", &key(), &IMAGE, PLAIN).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(unseal_bytes(&bad, &key(), &IMAGE, 1000).is_err(), "bit {bit}");
    }
}

#[test]
fn reordered_repeated_or_dropped_blocks_are_refused() {
    let (bytes, _) = seal_bytes(&noise(300_000, 6), &key(), &IMAGE, PLAIN).unwrap();
    // Type octet, then blocks of 1 + 65,536 bytes.
    let block = |n: usize| 1 + n * 65_537..1 + (n + 1) * 65_537;
    let swapped = [&bytes[..1], &bytes[block(1)], &bytes[block(0)], &bytes[block(2).start..]].concat();
    let repeated = [&bytes[..block(1).end], &bytes[block(1)], &bytes[block(2).start..]].concat();
    let dropped = [&bytes[..block(1).start], &bytes[block(2).start..]].concat();
    for bad in [swapped, repeated, dropped] {
        assert!(unseal_bytes(&bad, &key(), &IMAGE, 1 << 20).is_err());
    }
}

#[test]
fn another_key_or_another_image_does_not_open_it() {
    let (bytes, _) = seal_bytes(b"secret", &key(), &IMAGE, PLAIN).unwrap();
    let stranger = SessionKey::from_bytes(&[0x43; 32]);
    assert!(matches!(unseal_bytes(&bytes, &stranger, &IMAGE, 100), Err(UnsealError::Damaged(_))));
    let other = B256::repeat_byte(0x12);
    assert!(matches!(unseal_bytes(&bytes, &key(), &other, 100), Err(UnsealError::WrongImage)));
}

/// The salt and first encrypted bytes, which must never coincide for two different encrypted contents.
fn salt_of(bytes: &[u8]) -> [u8; 32] {
    let at = bytes.windows(4).position(|w| w == [2, 9, 2, 10]).unwrap() + 4;
    bytes[at..at + 32].try_into().unwrap()
}

#[test]
fn whatever_changes_what_is_encrypted_changes_the_salt() {
    let base = salt_of(&seal_bytes(b"object", &key(), &IMAGE, PLAIN).unwrap().0);
    let other_key = SessionKey::from_bytes(&[0x43; 32]);
    let variants = [
        seal_bytes(b"objecT", &key(), &IMAGE, PLAIN),
        seal_bytes(b"object", &other_key, &IMAGE, PLAIN),
        seal_bytes(b"object", &key(), &B256::repeat_byte(0x12), PLAIN),
        seal_bytes(b"object", &key(), &IMAGE, SealOptions { level: 4, ..PLAIN }),
        seal_bytes(b"object", &key(), &IMAGE, SealOptions { pad_to_bytes: Some(1024), ..PLAIN }),
        seal_bytes(b"object", &key(), &IMAGE, SealOptions { pad_to_bytes: Some(2048), ..PLAIN }),
    ];
    let mut salts: Vec<_> = variants.into_iter().map(|sealed| salt_of(&sealed.unwrap().0)).collect();
    salts.push(base);
    salts.sort_unstable();
    salts.dedup();
    assert_eq!(salts.len(), 7);
}

/// Gives bytes in small, uneven portions.
struct Dribble(Cursor<Vec<u8>>, usize);

impl Read for Dribble {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 977 + 13;
        let limit = out.len().min(self.1);
        self.0.read(&mut out[..limit])
    }
}

impl Seek for Dribble {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn short_reads_of_the_source_do_not_change_the_container() {
    let plain = mixed(700_000, 7);
    let (expected, _) = seal_bytes(&plain, &key(), &IMAGE, PLAIN).unwrap();
    let mut out = Vec::new();
    seal(&mut Dribble(Cursor::new(plain.clone()), 1), &key(), &IMAGE, PLAIN, &mut out).unwrap();
    assert!(out == expected);
    let mut back = Vec::new();
    let _digest = unseal(Dribble(Cursor::new(out), 1), &key(), &IMAGE, 1 << 20, &mut back).unwrap();
    assert!(back == plain);
}

/// A file that is rewritten between the two readings.
struct Rewritten(Cursor<Vec<u8>>, u32);

impl Read for Rewritten {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Seek for Rewritten {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.1 += 1;
        if self.1 == 3 {
            self.0.get_mut()[5] ^= 1;
        }
        self.0.seek(to)
    }
}

#[test]
fn a_source_that_changes_under_us_is_an_error() {
    let mut source = Rewritten(Cursor::new(vec![7; 1000]), 0);
    let result = seal(&mut source, &key(), &IMAGE, PLAIN, &mut Vec::new());
    assert!(matches!(result, Err(SealError::SourceChanged)));
}

#[test]
fn content_beyond_the_limit_is_never_written() {
    // Ten megabytes of zeros are a few hundred bytes sealed.
    let (bytes, _) = seal_bytes(&vec![0; 10_000_000], &key(), &IMAGE, PLAIN).unwrap();
    assert!(bytes.len() < 3000);
    let mut out = Vec::new();
    let result = unseal(bytes.as_slice(), &key(), &IMAGE, 9_999_999, &mut out);
    assert!(matches!(result, Err(UnsealError::TooLong { .. })));
    assert!(out.len() < 10_000_000);
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("disk"))
    }
}

impl Write for Failing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("disk full"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn failures_of_source_and_output_are_told_apart_from_forgery() {
    let (bytes, _) = seal_bytes(&noise(500_000, 8), &key(), &IMAGE, PLAIN).unwrap();
    let broken_source = unseal(bytes[..200_000].chain(Failing), &key(), &IMAGE, 1 << 20, &mut Vec::new());
    assert!(matches!(broken_source, Err(UnsealError::Read(_))));
    let full = unseal(bytes.as_slice(), &key(), &IMAGE, 1 << 20, &mut Failing);
    assert!(matches!(full, Err(UnsealError::Write(_))));
}

#[test]
fn unreasonable_options_are_refused() {
    for options in [
        SealOptions { level: 0, ..PLAIN },
        SealOptions { level: 20, ..PLAIN },
        SealOptions { pad_to_bytes: Some(0), ..PLAIN },
        SealOptions { pad_to_bytes: Some(u32::MAX), ..PLAIN },
    ] {
        assert!(matches!(seal_bytes(b"x", &key(), &IMAGE, options), Err(SealError::Options)));
    }
}

#[test]
fn a_plain_openpgp_reader_opens_the_wrapped_key_followed_by_the_container() {
    let recipient = RecipientSecret::generate().unwrap();
    let plain = mixed(400_000, 9);
    for options in [PLAIN, SealOptions { pad_to_bytes: Some(120_000), ..PLAIN }] {
        let (sealed, _) = seal_bytes(&plain, &key(), &IMAGE, options).unwrap();
        let wrapped = key().wrap(&recipient.recipient().unwrap()).unwrap();
        assert_eq!(recipient.unwrap_session_key(&wrapped).unwrap(), key());
        let bytes = [wrapped, sealed].concat();
        let message = Message::from_bytes(bytes.as_slice()).unwrap();
        let Message::Encrypted { esk, .. } = &message else { panic!("not an encrypted message") };
        assert!(matches!(esk.as_slice(), [Esk::PublicKeyEncryptedSessionKey(_)]));
        let raw = RawSessionKey::from(key().expose().as_slice());
        let mut opened = message.decrypt_with_session_key(PlainSessionKey::V6 { key: raw }).unwrap();
        let mut frame = Vec::new();
        opened.read_to_end(&mut frame).unwrap();
        assert!(zstd::decode_all(frame.as_slice()).unwrap() == plain);
        assert_eq!(opened.literal_data_header().unwrap().file_name(), hex::encode(IMAGE).as_bytes());
    }
}

#[test]
fn the_budget_of_a_piece_holds_for_incompressible_bytes() {
    for piece in [1_000_u32, 24_575, 30_000, 65_700, 120_000, 131_200] {
        for pad_to_bytes in [None, Some(piece.max(1024))] {
            let piece = piece.max(1024);
            let options = SealOptions { level: 3, pad_to_bytes };
            let budget = plain_bytes_fitting(piece, options).unwrap();
            assert!(budget + 1100 > piece as usize, "{budget} of {piece}");
            let (bytes, _) = seal_bytes(&noise(budget, 1), &key(), &IMAGE, options).unwrap();
            assert!(bytes.len() <= piece as usize);
            assert!(pad_to_bytes.is_none() || bytes.len() == piece as usize);
        }
    }
    assert_eq!(plain_bytes_fitting(100, PLAIN), None);
}
