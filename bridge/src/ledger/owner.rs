//! Owner keys in the bridge's custody: one secp256k1 key per study, derived by BIP-32 from the site's owner seed at
//! `m/44'/60'/7'/0/index`. The caller hands out the indices and keeps them with the studies. It must not know studies, chains
//! or files.

use alloy::primitives::{Address, B256};
use alloy::signers::k256::elliptic_curve::sec1::ToEncodedPoint as _;
use alloy::signers::k256::{NonZeroScalar, SecretKey};
use alloy::signers::local::PrivateKeySigner;
use hmac::{Hmac, Mac as _};
use sha2::Sha512;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use zeroize::Zeroizing;

/// Marks a hardened step (BIP-32).
const HARDENED: u32 = 0x8000_0000;
/// Purpose 44', coin 60' (Ethereum), account 7' (owner keys), external chain.
const OWNER_PATH: [u32; 4] = [44 | HARDENED, 60 | HARDENED, 7 | HARDENED, 0];
/// As above, account 8': accounts that receive grants.
const GRANT_PATH: [u32; 4] = [44 | HARDENED, 60 | HARDENED, 8 | HARDENED, 0];
/// As above, account 0': where wallets keep their accounts.
const WALLET_PATH: [u32; 4] = [44 | HARDENED, 60 | HARDENED, HARDENED, 0];
/// Bytes of entropy of the recovery words: 24 words, so that the entropy fills a keystore file as a key does.
pub const ENTROPY_BYTES: usize = 32;

/// Recovery words that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WordsError {
    /// Not a BIP-39 mnemonic of the English list, or its checksum is wrong.
    #[error("not a valid list of recovery words: a word is misspelt, missing or out of order")]
    Invalid,
    /// A mnemonic, but not of 24 words.
    #[error("an owner seed has 24 recovery words, these are {0}")]
    Count(usize),
}

/// The BIP-39 recovery words of an owner seed's entropy.
pub fn words_of(entropy: &[u8; ENTROPY_BYTES]) -> Result<Zeroizing<String>, WordsError> {
    let words = bip39::Mnemonic::from_entropy(entropy).map_err(|_| WordsError::Invalid)?;
    Ok(Zeroizing::new(words.to_string()))
}

/// The entropy behind 24 recovery words.
pub fn entropy_of(words: &str) -> Result<Zeroizing<[u8; ENTROPY_BYTES]>, WordsError> {
    let mnemonic = parse_words(words)?;
    let entropy = Zeroizing::new(mnemonic.to_entropy());
    let count = mnemonic.word_count();
    Ok(Zeroizing::new(entropy.as_slice().try_into().map_err(|_| WordsError::Count(count))?))
}

fn parse_words(words: &str) -> Result<bip39::Mnemonic, WordsError> {
    let tidy = Zeroizing::new(words.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase());
    bip39::Mnemonic::parse_in(bip39::Language::English, tidy.as_str()).map_err(|_| WordsError::Invalid)
}

/// The derivation hit one of its impossible cases (probability below 2^-127) or the index is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no owner key exists at this index; take the next")]
pub struct NoSuchKey;

/// The secret from which all owner keys of a site follow. Between 16 and 64 bytes are customary; a BIP-39 seed has 64.
#[derive(Clone)]
pub struct OwnerSeed(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for OwnerSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnerSeed(secret)")
    }
}

impl OwnerSeed {
    /// Takes over seed bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The seed of recovery words (BIP-39, without a passphrase).
    pub fn from_words(words: &str) -> Result<Self, WordsError> {
        Ok(Self::new(parse_words(words)?.to_seed_normalized("").to_vec()))
    }

    /// The owner key of an index below 2^31.
    pub fn key(&self, index: u32) -> Result<PrivateKeySigner, NoSuchKey> {
        self.derive(OWNER_PATH, index)
    }

    /// The account of an index below 2^31 under which a grant is received, for sites whose grants shall not show that they belong
    /// together.
    pub fn grant_key(&self, index: u32) -> Result<PrivateKeySigner, NoSuchKey> {
        self.derive(GRANT_PATH, index)
    }

    /// The first account of a wallet with these words.
    pub fn wallet_key(&self) -> Result<PrivateKeySigner, NoSuchKey> {
        self.derive(WALLET_PATH, 0)
    }

    fn derive(&self, path: [u32; 4], index: u32) -> Result<PrivateKeySigner, NoSuchKey> {
        if index >= HARDENED {
            return Err(NoSuchKey);
        }
        let mut node = Extended::master(&self.0)?;
        for step in path.into_iter().chain([index]) {
            node = node.child(step)?;
        }
        let secret = B256::from_slice(&node.key.to_bytes());
        PrivateKeySigner::from_bytes(&secret).map_err(|_| NoSuchKey)
    }
}

/// Owner keys in custody that follow from no seed, by their accounts. Clones share everything.
#[derive(Clone, Default)]
pub struct HeldKeys(Arc<Mutex<BTreeMap<Address, PrivateKeySigner>>>);

impl std::fmt::Debug for HeldKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldKeys(secret)")
    }
}

impl HeldKeys {
    /// Takes a key in.
    pub fn hold(&self, key: PrivateKeySigner) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.address(), key);
    }

    /// The key of an account.
    pub fn key(&self, account: Address) -> Option<PrivateKeySigner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&account).cloned()
    }
}

/// An extended private key (BIP-32).
struct Extended {
    key: SecretKey,
    chain: Zeroizing<[u8; 32]>,
}

impl Extended {
    fn master(seed: &[u8]) -> Result<Self, NoSuchKey> {
        let (left, chain) = hmac_sha512(b"Bitcoin seed", &[seed]);
        Ok(Self { key: SecretKey::from_slice(&left[..]).map_err(|_| NoSuchKey)?, chain })
    }

    fn child(&self, step: u32) -> Result<Self, NoSuchKey> {
        let step_bytes = step.to_be_bytes();
        let (left, chain) = if step >= HARDENED {
            let secret = Zeroizing::new(self.key.to_bytes());
            hmac_sha512(&self.chain[..], &[&[0], &secret[..], &step_bytes])
        } else {
            let public = self.key.public_key().to_encoded_point(true);
            hmac_sha512(&self.chain[..], &[public.as_bytes(), &step_bytes])
        };
        let tweak = SecretKey::from_slice(&left[..]).map_err(|_| NoSuchKey)?;
        let sum = *tweak.to_nonzero_scalar() + *self.key.to_nonzero_scalar();
        let sum: Option<NonZeroScalar> = NonZeroScalar::new(sum).into();
        Ok(Self { key: SecretKey::from(sum.ok_or(NoSuchKey)?), chain })
    }
}

fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    // HMAC takes keys of any length, so the error cannot happen; an all-zero answer would be refused as a key.
    let mut out = Zeroizing::new([0_u8; 64]);
    if let Ok(mut hmac) = Hmac::<Sha512>::new_from_slice(key) {
        parts.iter().for_each(|part| hmac.update(part));
        out.copy_from_slice(&hmac.finalize().into_bytes());
    }
    let (mut left, mut right) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
    left.copy_from_slice(&out[..32]);
    right.copy_from_slice(&out[32..]);
    (left, right)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::primitives::{address, hex};

    /// BIP-32 test vector 1: seed 000102…0f, chain m/0'/1.
    #[test]
    fn follows_the_published_vector() {
        let seed = hex!("000102030405060708090a0b0c0d0e0f");
        let master = Extended::master(&seed).unwrap();
        assert_eq!(
            hex::encode(master.key.to_bytes()),
            "e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35"
        );
        let hardened = master.child(HARDENED).unwrap();
        assert_eq!(
            hex::encode(hardened.key.to_bytes()),
            "edb2e14f9ee77d26dd93b4ecede8d16ed408ce149b6cd80b0715a2d911a0afea"
        );
        let child = hardened.child(1).unwrap();
        assert_eq!(
            hex::encode(child.key.to_bytes()),
            "3c6cb8d0f6a264c91ea8b5030fadaa8e538b020f0a387421a12de9319dc93368"
        );
        assert_eq!(hex::encode(&child.chain[..]), "2a7857631386ba23dacac34180dd1983734e444fdbf774041578e9b6adb37c19");
    }

    /// The development mnemonic that every Ethereum tool ships, through BIP-39, at m/44'/60'/0'/0/0.
    #[test]
    fn agrees_with_wallets() {
        let mnemonic = "test test test test test test test test test test test junk";
        let key = OwnerSeed::from_words(mnemonic).unwrap().wallet_key().unwrap();
        assert_eq!(key.address(), address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
    }

    /// BIP-39's vector of 32 bytes 7f, whose words are published with it.
    #[test]
    fn words_and_entropy_are_two_forms_of_one_secret() {
        let entropy = [0x7f; 32];
        let words = words_of(&entropy).unwrap();
        assert!(words.starts_with("legal winner thank year wave sausage worth useful") && words.ends_with("title"));
        assert_eq!(*entropy_of(&words.to_uppercase().replace(' ', "\n  ")).unwrap(), entropy);
        let seed = OwnerSeed::from_words(&words).unwrap();
        assert_ne!(seed.key(0).unwrap().address(), seed.grant_key(0).unwrap().address());
        assert_eq!(
            entropy_of("test test test test test test test test test test test junk"),
            Err(WordsError::Count(12))
        );
        assert_eq!(entropy_of(&words.replacen("legal", "winner", 1)), Err(WordsError::Invalid));
    }

    #[test]
    fn indices_give_different_keys_and_stay_in_range() {
        let seed = OwnerSeed::new(vec![7; 64]);
        assert_ne!(seed.key(0).unwrap().address(), seed.key(1).unwrap().address());
        assert_eq!(seed.key(3).unwrap().address(), seed.key(3).unwrap().address());
        assert!(matches!(seed.key(HARDENED), Err(NoSuchKey)));
        assert_eq!(format!("{seed:?}"), "OwnerSeed(secret)");
    }
}
