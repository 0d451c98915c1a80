//! Keystore files: Web3 Secret Storage version 3, as geth, Besu and MetaMask read and write them. Written with AES-128-CTR and scrypt with r = 8, p = 1
//! and n = 2^18, or 2^12 under a password that this program made; read with any scrypt or PBKDF2-HMAC-SHA256 parameters within bounds. It must not
//! know what the key is for.

use aes::cipher::{KeyIvInit as _, StreamCipher as _};
use alloy::primitives::{Address, B256, hex, keccak256};
use alloy::signers::local::PrivateKeySigner;
use hmac::{Hmac, Mac as _};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io::Write as _;
use std::path::Path;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::password::needs_stretching;

/// log2 of scrypt's n for files we write: geth's standard, and geth's light choice where nothing can be guessed.
const SCRYPT_LOG_N: u8 = 18;
const SCRYPT_LOG_N_LIGHT: u8 = 12;
/// Bounds for files we read, so that a hostile file cannot take all memory or time: scrypt needs 128·n·r bytes.
const SCRYPT_BYTES_MAX: u64 = 1 << 30;
const PBKDF2_ROUNDS_MAX: u32 = 10_000_000;

/// Why a keystore file cannot be used.
#[derive(Debug, Error)]
pub enum KeystoreError {
    /// The password is wrong, or the file is damaged; the format cannot tell.
    #[error("wrong password, or the keystore is damaged")]
    WrongPassword,
    /// The file is not a keystore we can read.
    #[error("not a readable version 3 keystore: {0}")]
    Format(String),
    /// The file says it holds another key than it does.
    #[error("the keystore is labelled {stated} but holds {found}")]
    AddressDiffers {
        /// Address in the file.
        stated: String,
        /// Address of the key.
        found: Address,
    },
    /// The file system failed.
    #[error("keystore file")]
    Io(#[from] std::io::Error),
}

#[derive(Serialize, Deserialize)]
struct Keystore {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(alias = "Crypto")]
    crypto: Crypto,
    id: String,
    version: u8,
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    kdf: String,
    kdfparams: KdfParams,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum KdfParams {
    Scrypt { dklen: usize, n: u64, r: u32, p: u32, salt: String },
    Pbkdf2 { dklen: usize, c: u32, prf: String, salt: String },
}

/// Encrypts a key under a password; the answer is the text of the file.
pub fn encrypt(key: &PrivateKeySigner, password: &str) -> Result<String, KeystoreError> {
    let mut rng = rand::rngs::OsRng;
    let (mut salt, mut iv, mut id) = ([0; 32], [0; 16], [0; 16]);
    rng.fill_bytes(&mut salt);
    rng.fill_bytes(&mut iv);
    rng.fill_bytes(&mut id);
    let log_n = if needs_stretching(password) { SCRYPT_LOG_N } else { SCRYPT_LOG_N_LIGHT };
    let kdf = KdfParams::Scrypt { dklen: 32, n: 1 << log_n, r: 8, p: 1, salt: hex::encode(salt) };
    let derived = derive(&kdf, password)?;
    let mut secret = Zeroizing::new(key.to_bytes().0);
    apply_aes(&derived, &iv, &mut secret[..]);
    let keystore = Keystore {
        address: Some(hex::encode(key.address())),
        crypto: Crypto {
            cipher: "aes-128-ctr".into(),
            cipherparams: CipherParams { iv: hex::encode(iv) },
            ciphertext: hex::encode(&secret[..]),
            kdf: "scrypt".into(),
            mac: hex::encode(mac(&derived, &secret[..])),
            kdfparams: kdf,
        },
        id: uuid_v4(id),
        version: 3,
    };
    serde_json::to_string_pretty(&keystore).map_err(|e| KeystoreError::Format(e.to_string()))
}

/// Decrypts the text of a keystore file.
pub fn decrypt(text: &str, password: &str) -> Result<PrivateKeySigner, KeystoreError> {
    let keystore: Keystore = serde_json::from_str(text).map_err(|e| KeystoreError::Format(e.to_string()))?;
    if keystore.version != 3 || keystore.crypto.cipher != "aes-128-ctr" {
        return Err(KeystoreError::Format("version or cipher is not supported".into()));
    }
    let crypto = &keystore.crypto;
    let derived = derive(&crypto.kdfparams, password)?;
    let ciphertext = unhex(&crypto.ciphertext)?;
    if mac(&derived, &ciphertext).as_slice() != unhex(&crypto.mac)? {
        return Err(KeystoreError::WrongPassword);
    }
    let iv: [u8; 16] = unhex(&crypto.cipherparams.iv)?.try_into().map_err(|_| format_error("iv is not 16 bytes"))?;
    let mut secret = Zeroizing::new(ciphertext);
    apply_aes(&derived, &iv, &mut secret);
    let key = PrivateKeySigner::from_slice(&secret).map_err(|e| KeystoreError::Format(e.to_string()))?;
    check_label(keystore.address.as_deref(), key.address())?;
    Ok(key)
}

/// Reads a keystore file.
pub fn read(path: &Path, password: &str) -> Result<PrivateKeySigner, KeystoreError> {
    decrypt(&std::fs::read_to_string(path)?, password)
}

/// Writes the text of a keystore file so that only its owner may read it, and never over an existing file: a lost key has no
/// second copy.
pub fn write(path: &Path, text: &str) -> Result<(), KeystoreError> {
    let part = path.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // A link, unlike a rename, does not replace what is there; and nobody finds half a key under its name.
    let linked = std::fs::hard_link(&part, path);
    std::fs::remove_file(&part)?;
    linked?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

fn format_error(what: &str) -> KeystoreError {
    KeystoreError::Format(what.into())
}

fn unhex(text: &str) -> Result<Vec<u8>, KeystoreError> {
    hex::decode(text).map_err(|e| KeystoreError::Format(e.to_string()))
}

fn check_label(stated: Option<&str>, found: Address) -> Result<(), KeystoreError> {
    match stated {
        Some(stated) if stated.trim_start_matches("0x").to_ascii_lowercase() != hex::encode(found) => {
            Err(KeystoreError::AddressDiffers { stated: stated.into(), found })
        }
        _ => Ok(()),
    }
}

fn derive(kdf: &KdfParams, password: &str) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
    let mut out = Zeroizing::new([0; 32]);
    match kdf {
        KdfParams::Scrypt { dklen: 32, n, r, p, salt } => {
            let bounded =
                *n > 1 && n.is_power_of_two() && u128::from(*n) * u128::from(*r) * 128 <= SCRYPT_BYTES_MAX.into();
            if !bounded || *p > 64 {
                return Err(format_error("scrypt parameters are out of bounds"));
            }
            let log_n = n.trailing_zeros() as u8;
            let params = scrypt::Params::new(log_n, *r, *p, 32).map_err(|e| KeystoreError::Format(e.to_string()))?;
            scrypt::scrypt(password.as_bytes(), &unhex(salt)?, &params, &mut out[..])
                .map_err(|e| KeystoreError::Format(e.to_string()))?;
        }
        KdfParams::Pbkdf2 { dklen: 32, c, prf, salt } if prf == "hmac-sha256" && *c <= PBKDF2_ROUNDS_MAX => {
            pbkdf2_block(password, &unhex(salt)?, *c, &mut out)?;
        }
        _ => return Err(format_error("key derivation is not supported")),
    }
    Ok(out)
}

/// The first and only block of PBKDF2 (RFC 8018 5.2) with HMAC-SHA256.
fn pbkdf2_block(password: &str, salt: &[u8], rounds: u32, out: &mut [u8; 32]) -> Result<(), KeystoreError> {
    let hmac = Hmac::<Sha256>::new_from_slice(password.as_bytes()).map_err(|e| KeystoreError::Format(e.to_string()))?;
    let mut u: [u8; 32] =
        hmac.clone().chain_update(salt).chain_update(1_u32.to_be_bytes()).finalize().into_bytes().into();
    out.copy_from_slice(&u);
    for _ in 1..rounds {
        u = hmac.clone().chain_update(u).finalize().into_bytes().into();
        out.iter_mut().zip(u).for_each(|(o, b)| *o ^= b);
    }
    Ok(())
}

fn apply_aes(derived: &[u8; 32], iv: &[u8; 16], data: &mut [u8]) {
    let mut key = [0; 16];
    key.copy_from_slice(&derived[..16]);
    ctr::Ctr128BE::<aes::Aes128>::new(&key.into(), iv.into()).apply_keystream(data);
}

fn mac(derived: &[u8; 32], ciphertext: &[u8]) -> B256 {
    keccak256([&derived[16..], ciphertext].concat())
}

fn uuid_v4(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let h = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A key file of go-ethereum's own tests; its label is the address of the key. Password `foobar`.
    const SCRYPT_EXAMPLE: &str = r#"{"address":"7ef5a6135f1fd6a02593eedc869c6d41d934aef8","crypto":{"cipher":"aes-128-ctr",
        "ciphertext":"1d0839166e7a15b9c1333fc865d69858b22df26815ccf601b28219b6192974e1",
        "cipherparams":{"iv":"8df6caa7ff1b00c4e871f002cb7921ed"},"kdf":"scrypt","kdfparams":{"dklen":32,"n":8,"p":16,"r":8,
        "salt":"e5e6ef3f4ea695f496b643ebd3f75c0aa58ef4070e90c80c5d3fb0241bf1595c"},
        "mac":"6d16dfde774845e4585357f24bce530528bc69f4f84e1e22880d34fa45c273e5"},
        "id":"950077c7-71e3-4c44-a4a1-143919141ed4","version":3}"#;
    /// An example of the Web3 Secret Storage definition. Password `testpassword`. (Its scrypt sibling has n = 2^18 with r = 1,
    /// which RFC 7914 section 2 forbids.)
    const SECRET: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";
    const PBKDF2_EXAMPLE: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",
        "kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256",
        "salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},
        "id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;

    #[test]
    fn reads_the_published_examples() {
        let key = decrypt(PBKDF2_EXAMPLE, "testpassword").unwrap();
        assert_eq!(hex::encode(key.to_bytes()), SECRET);
        let key = decrypt(SCRYPT_EXAMPLE, "foobar").unwrap();
        assert_eq!(hex::encode(key.address()), "7ef5a6135f1fd6a02593eedc869c6d41d934aef8");
        assert!(matches!(decrypt(SCRYPT_EXAMPLE, "fuubar"), Err(KeystoreError::WrongPassword)));
    }

    #[test]
    fn what_is_written_is_strong_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.json");
        let key = PrivateKeySigner::random();
        write(&path, &encrypt(&key, "open sesame").unwrap()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["crypto"]["kdfparams"]["n"], 262_144);
        assert_eq!(decrypt(&text, "open sesame").unwrap().to_bytes(), key.to_bytes());
        assert!(matches!(write(&path, "again"), Err(KeystoreError::Io(_))), "never over an existing key");
        #[cfg(unix)]
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777,
            0o600
        );
    }

    #[test]
    fn a_hostile_cost_is_refused() {
        let costly = SCRYPT_EXAMPLE.replace(r#""n":8"#, r#""n":1099511627776"#);
        assert!(matches!(decrypt(&costly, "foobar"), Err(KeystoreError::Format(_))));
    }

    #[test]
    fn a_wrong_label_is_noticed() {
        let labelled = SCRYPT_EXAMPLE.replace("7ef5a6", "7ef5a7");
        assert!(matches!(decrypt(&labelled, "foobar"), Err(KeystoreError::AddressDiffers { .. })));
    }
}
