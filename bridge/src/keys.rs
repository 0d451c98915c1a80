//! Keys coming in, going out, and being kept safe elsewhere: import, export, backup, restore. Works on the files of a data directory;
//! nothing that exists is ever overwritten. It must not know the ledger.
//!
//! A backup is one OpenPGP message (RFC 9580) under a password: Argon2id, SEIPDv2 with AES-256 and OCB. Inside is a CBOR map
//! with `format`, `version` and `files`, a map from name to bytes: the key files as they are and consistent copies of the
//! databases of salts and session keys, and of what was derived from what.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use ciborium::Value;
use pgp::composed::{Message, MessageBuilder};
use pgp::crypto::aead::{AeadAlgorithm, ChunkSize};
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use pgp::types::{Password, StringToKey};
use rand::rngs::OsRng;
use zeroize::Zeroizing;

use crate::config;
use crate::keyring::{
    self, DATABASE, DERIVED, KEYSTORE, KeyringError, OPERATOR, OPERATOR_NEXT, OPERATOR_RETIRING, OWNER_SEED,
    OWNER_WORDS, PASSWORD, PAYLOAD, REQUESTS, SOURCE,
};
use crate::ledger::keystore::{self, KeystoreError};
use crate::ledger::owner::{self, NoSuchKey, OwnerSeed, WordsError};

/// What may be in a backup besides the databases and the keys of research.
const FILES: [&str; 10] = [
    SOURCE,
    OPERATOR,
    OPERATOR_NEXT,
    OPERATOR_RETIRING,
    OWNER_WORDS,
    OWNER_SEED,
    PAYLOAD,
    EXCHANGE_TLS,
    REQUESTS,
    PASSWORD,
];
/// The key with which this site answers other bridges, which know it from the ledger.
pub const EXCHANGE_TLS: &str = "exchange-tls.pkcs8";
/// Salts and session keys of studies; what was derived from what, and the salts that prove it.
const DATABASES: [&str; 2] = [DATABASE, DERIVED];
const FORMAT: &str = "pacs-bridge keys";
const VERSION: u64 = 1;
/// Argon2id: one pass, four lanes, 2^21 KiB would be the standard's first choice; 2^16 KiB with three passes is its second, for
/// machines with less memory (RFC 9106 section 4).
const ARGON2: (u8, u8, u8) = (3, 4, 16);
/// Largest backup that is read: a million studies take about 300 MB.
const BACKUP_BYTES_MAX: u64 = 1 << 30;

/// Why keys could not be moved, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It would take the place of a key that has no second copy.
    #[error("{0} exists and is not overwritten; move it away first if you are sure that it is not needed")]
    Exists(PathBuf),
    /// There is no such key here.
    #[error("there is no key file {0}")]
    Missing(PathBuf),
    /// The password is not that of the file, or the file is damaged; the format cannot tell.
    #[error("wrong password for {0}, or the file is damaged")]
    WrongPassword(PathBuf),
    /// Not a secp256k1 key in hexadecimal.
    #[error("{0} does not hold a private key of 64 hexadecimal digits")]
    NotHex(PathBuf),
    /// Recovery words that cannot be used.
    #[error("recovery words")]
    Words(#[from] WordsError),
    /// The words lead to no key.
    #[error("recovery words")]
    NoKey(#[from] NoSuchKey),
    /// The owner seed of this site has no words.
    #[error("this site's owner seed was made without recovery words; `keys backup` keeps it, it has no other form")]
    NoWords,
    /// Not a backup of ours.
    #[error("{file} is not a backup that this program can read: {reason}")]
    NotABackup {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A keystore file cannot be used.
    #[error("keystore {0}")]
    Keystore(PathBuf, #[source] KeystoreError),
    /// A key file or the database of study keys failed.
    #[error("keys")]
    Keyring(#[from] KeyringError),
    /// The file system failed.
    #[error("file {0}")]
    Io(PathBuf, #[source] std::io::Error),
    /// The cryptographic library failed on our own input.
    #[error("openpgp library failed")]
    Library(#[source] pgp::errors::Error),
}

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Who the source is.
    Source,
    /// Who signs for it.
    Operator,
    /// What the owner keys of all studies in custody follow from.
    Owner,
}

/// A key from elsewhere.
pub enum Material {
    /// A version 3 keystore file and its password.
    Keystore(PathBuf, Zeroizing<String>),
    /// A file of 64 hexadecimal digits.
    Hex(PathBuf),
    /// BIP-39 recovery words.
    Words(Zeroizing<String>),
}

impl Material {
    fn key(&self) -> Result<PrivateKeySigner, KeysError> {
        match self {
            Self::Keystore(path, password) => read_keystore(path, password),
            Self::Hex(path) => {
                let text = Zeroizing::new(fs::read_to_string(path).map_err(io(path))?);
                let digits = text.trim();
                let bytes = hex::decode(digits.strip_prefix("0x").unwrap_or(digits)).map(Zeroizing::new);
                let key = bytes.ok().and_then(|bytes| PrivateKeySigner::from_slice(&bytes).ok());
                key.ok_or_else(|| KeysError::NotHex(path.clone()))
            }
            Self::Words(words) => Ok(OwnerSeed::from_words(words)?.wallet_key()?),
        }
    }
}

/// Keeps a key from elsewhere as this site's, before it has one of its own. Returns the account, for a source key.
///
/// # Errors
/// [`KeysError`]; [`KeysError::Exists`] when the site has such a key.
pub fn import(
    data_dir: &Path,
    config: &config::Keys,
    which: Which,
    material: &Material,
) -> Result<Option<Address>, KeysError> {
    let dir = data_dir.join(KEYSTORE);
    let (name, key) = match (which, material) {
        (Which::Owner, Material::Words(words)) => {
            let entropy = owner::entropy_of(words)?;
            let key = PrivateKeySigner::from_slice(entropy.as_slice()).map_err(|_| WordsError::Invalid)?;
            (OWNER_WORDS, key)
        }
        (Which::Owner, other) => (OWNER_WORDS, other.key()?),
        (Which::Operator, _) => return Err(KeysError::Exists(dir.join(OPERATOR))),
        (Which::Source, other) => (SOURCE, other.key()?),
    };
    let rivals: &[&str] = if which == Which::Owner { &[OWNER_WORDS, OWNER_SEED] } else { &[SOURCE, OPERATOR] };
    if let Some(rival) = rivals.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
        return Err(KeysError::Exists(rival));
    }
    fs::create_dir_all(&dir).map_err(io(&dir))?;
    let path = dir.join(name);
    let password = keyring::password(&dir, config)?;
    write_keystore(&path, &key, &password)?;
    Ok((which == Which::Source).then(|| key.address()))
}

/// The key as this site keeps it.
fn kept(data_dir: &Path, config: &config::Keys, which: Which) -> Result<PrivateKeySigner, KeysError> {
    let dir = data_dir.join(KEYSTORE);
    let path = dir.join(match which {
        Which::Source => SOURCE,
        Which::Operator => OPERATOR,
        Which::Owner if dir.join(OWNER_SEED).exists() => return Err(KeysError::NoWords),
        Which::Owner => OWNER_WORDS,
    });
    if !path.exists() {
        return Err(KeysError::Missing(path));
    }
    read_keystore(&path, &keyring::password(&dir, config)?)
}

/// Writes a key as a version 3 keystore file under a password of its own. The owner seed goes out as the entropy of its words.
///
/// # Errors
/// [`KeysError`].
pub fn export(
    data_dir: &Path,
    config: &config::Keys,
    which: Which,
    to: &Path,
    password: &str,
) -> Result<(), KeysError> {
    let key = kept(data_dir, config, which)?;
    if to.exists() {
        return Err(KeysError::Exists(to.to_owned()));
    }
    write_keystore(to, &key, password)
}

/// The key itself, for whoever asked for it in so many words: 64 hexadecimal digits, or 24 words.
///
/// # Errors
/// [`KeysError`].
pub fn reveal(data_dir: &Path, config: &config::Keys, which: Which) -> Result<Zeroizing<String>, KeysError> {
    let bytes = Zeroizing::new(kept(data_dir, config, which)?.to_bytes().0);
    match which {
        Which::Owner => Ok(owner::words_of(&bytes)?),
        Which::Source | Which::Operator => Ok(Zeroizing::new(hex::encode(bytes.as_slice()))),
    }
}

/// Writes everything that cannot be rebuilt into one encrypted file. The bridge may be running. Returns the names of what is in
/// it.
///
/// # Errors
/// [`KeysError`]; also when the site's own password does not open its keys, because then a backup would be worth nothing.
pub fn backup(data_dir: &Path, config: &config::Keys, to: &Path, password: &str) -> Result<Vec<String>, KeysError> {
    if to.exists() {
        return Err(KeysError::Exists(to.to_owned()));
    }
    kept(data_dir, config, Which::Source)?;
    let dir = data_dir.join(KEYSTORE);
    let mut files = BTreeMap::new();
    // First the database: a key file never changes under a row, but rows are wrapped to keys that are there before them.
    for name in DATABASES {
        let database = data_dir.join(name);
        if database.exists() {
            files.insert(name.to_owned(), copy_of(&database, &dir)?);
        }
    }
    for entry in fs::read_dir(&dir).map_err(io(&dir))? {
        let entry = entry.map_err(io(&dir))?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_key_file(name)) {
            files.insert(name.to_owned(), Zeroizing::new(fs::read(entry.path()).map_err(io(&entry.path()))?));
        }
    }
    let names = files.keys().cloned().collect();
    keyring::write_secret(to, &seal(&files, password)?)?;
    Ok(names)
}

/// A copy at one moment, whatever is written meanwhile.
fn copy_of(database: &Path, private: &Path) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    // Only its owner may look into a fresh temporary directory.
    let place = tempfile::tempdir_in(private).map_err(io(private))?;
    let copy = place.path().join("copy.sqlite");
    let connection = rusqlite::Connection::open(database).map_err(KeyringError::Database)?;
    connection.busy_timeout(std::time::Duration::from_secs(30)).map_err(KeyringError::Database)?;
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy().as_ref()]).map_err(KeyringError::Database)?;
    Ok(Zeroizing::new(fs::read(&copy).map_err(io(&copy))?))
}

fn seal(files: &BTreeMap<String, Zeroizing<Vec<u8>>>, password: &str) -> Result<Vec<u8>, KeysError> {
    let text = |text: &str| Value::Text(text.to_owned());
    let files = files.iter().map(|(name, bytes)| (text(name), Value::Bytes(bytes.to_vec()))).collect();
    let content = Value::Map(vec![
        (text("format"), text(FORMAT)),
        (text("version"), Value::Integer(VERSION.into())),
        (text("files"), Value::Map(files)),
    ]);
    let mut plain = Vec::new();
    // Writing into memory does not fail; if it did, the backup would not open again and restore would say so.
    ciborium::into_writer(&content, &mut plain)
        .map_err(|e| KeysError::Io(PathBuf::from("memory"), std::io::Error::other(e.to_string())))?;
    let mut builder = MessageBuilder::from_bytes("", plain).seipd_v2(
        OsRng,
        SymmetricKeyAlgorithm::AES256,
        AeadAlgorithm::Ocb,
        ChunkSize::C64KiB,
    );
    let (passes, lanes, memory) = ARGON2;
    let derivation = StringToKey::new_argon2(OsRng, passes, lanes, memory);
    builder.encrypt_with_password(OsRng, derivation, &Password::from(password)).map_err(KeysError::Library)?;
    builder.to_vec(OsRng).map_err(KeysError::Library)
}

fn unseal(file: &Path, password: &str) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, KeysError> {
    let not_ours = |reason: String| KeysError::NotABackup { file: file.to_owned(), reason };
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(io(file))?;
    opened.take(BACKUP_BYTES_MAX).read_to_end(&mut bytes).map_err(io(file))?;
    let message = Message::from_bytes(bytes.as_slice()).map_err(|e| not_ours(e.to_string()))?;
    if !message.is_encrypted() {
        return Err(not_ours("it is not encrypted".into()));
    }
    let wrong = |_| KeysError::WrongPassword(file.to_owned());
    let mut message = message.decrypt_with_password(&Password::from(password)).map_err(wrong)?;
    let plain = message.as_data_vec().map_err(|_| KeysError::WrongPassword(file.to_owned()))?;
    let plain = Zeroizing::new(plain);
    let content: Value = ciborium::from_reader(plain.as_slice()).map_err(|e| not_ours(e.to_string()))?;
    let mut fields: BTreeMap<String, Value> = BTreeMap::new();
    for (name, value) in content.into_map().unwrap_or_default() {
        fields.extend(name.into_text().ok().map(|name| (name, value)));
    }
    if fields.get("format").and_then(Value::as_text) != Some(FORMAT) {
        return Err(not_ours("it holds something else".into()));
    }
    let version = fields.get("version").and_then(Value::as_integer).and_then(|version| u64::try_from(version).ok());
    if version != Some(VERSION) {
        return Err(not_ours(format!("it has version {version:?}, this program knows {VERSION}")));
    }
    let mut files = BTreeMap::new();
    for (name, bytes) in fields.remove("files").and_then(|files| files.into_map().ok()).unwrap_or_default() {
        let (Ok(name), Ok(bytes)) = (name.into_text(), bytes.into_bytes()) else { continue };
        // Names come from a file: only those that we write are taken.
        if !DATABASES.contains(&name.as_str()) && !is_key_file(&name) {
            return Err(not_ours(format!("it holds a file {name:?}")));
        }
        files.insert(name, Zeroizing::new(bytes));
    }
    if files.contains_key(SOURCE) { Ok(files) } else { Err(not_ours("it holds no source key".into())) }
}

/// Puts a backup's files into a data directory that has none of them. Interrupted, it can be run again. Returns their names.
///
/// # Errors
/// [`KeysError`]; [`KeysError::Exists`] when other keys are there.
pub fn restore(data_dir: &Path, from: &Path, password: &str) -> Result<Vec<String>, KeysError> {
    let files = unseal(from, password)?;
    let dir = data_dir.join(KEYSTORE);
    let place = |name: &str| if DATABASES.contains(&name) { data_dir.join(name) } else { dir.join(name) };
    for name in FILES.into_iter().chain(DATABASES).chain(files.keys().map(String::as_str)) {
        let path = place(name);
        let same = || fs::read(&path).is_ok_and(|there| files.get(name).is_some_and(|bytes| *there == ***bytes));
        if path.exists() && !same() && !(name == DERIVED && is_empty_record(&path)) {
            return Err(KeysError::Exists(path));
        }
    }
    fs::create_dir_all(&dir).map_err(io(&dir))?;
    // The source key comes last: while it is missing, everybody can see that the restoration is not finished.
    let order = files.iter().filter(|(name, _)| *name != SOURCE).chain(files.get_key_value(SOURCE));
    for (name, bytes) in order {
        keyring::write_secret(&place(name), bytes)?;
    }
    keyring::sync_dir(data_dir)?;
    Ok(files.into_keys().collect())
}

/// Whether a record of derived studies says nothing, as every start makes one where there is none. Opening it also settles what its
/// journal holds, which must not be taken for that of the record that is put in its place.
fn is_empty_record(path: &Path) -> bool {
    let count = |database: rusqlite::Connection| {
        database.query_row("SELECT NOT EXISTS (SELECT 1 FROM derivation)", [], |row| row.get(0))
    };
    rusqlite::Connection::open(path).and_then(count).unwrap_or(false)
}

/// Whether a file of the keystore belongs into a backup.
fn is_key_file(name: &str) -> bool {
    FILES.contains(&name) || keyring::is_research_key(name) || keyring::is_group_key(name)
}

fn read_keystore(path: &Path, password: &str) -> Result<PrivateKeySigner, KeysError> {
    keystore::read(path, password).map_err(|error| match error {
        KeystoreError::WrongPassword => KeysError::WrongPassword(path.to_owned()),
        KeystoreError::Io(error) => KeysError::Io(path.to_owned(), error),
        other => KeysError::Keystore(path.to_owned(), other),
    })
}

fn write_keystore(path: &Path, key: &PrivateKeySigner, password: &str) -> Result<(), KeysError> {
    let written = keystore::encrypt(key, password).and_then(|text| keystore::write(path, &text));
    written.map_err(|e| KeysError::Keystore(path.to_owned(), e))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> KeysError + use<> {
    let path = path.to_owned();
    move |error| KeysError::Io(path.clone(), error)
}
