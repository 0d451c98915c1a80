//! The site's secrets: who it is on the ledger, whose studies it holds in custody, and what opens their payloads.
//!
//! `keystore/` holds the source key and the owner seed (keystore v3) and the OpenPGP key that study
//! session keys are wrapped to. `keys.sqlite` holds, per study, its salt and its wrapped session keys, one an epoch; it is a
//! file of its own so that it can be backed up apart and so that destroying a row destroys the study: `secure_delete`, and one
//! rollback journal that stays where it is and is overwritten after every destruction, so that old pages are nowhere else.
//! Must not know files, pieces or associations.

pub(crate) mod helper;
mod request_key;
mod research;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use dicom_scp::Uid;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use zeroize::Zeroizing;

use crate::config;
use crate::ledger::keystore::{self, KeystoreError};
use crate::ledger::owner::{self, HeldKeys, NoSuchKey, OwnerSeed, WordsError};
use crate::password;
use crate::payload::container::{SealOptions, seal_bytes, unseal_bytes};
use crate::payload::envelope::{EnvelopeError, open_envelope};
use crate::payload::keys::{KeyError, RecipientSecret, SessionKey};
use crate::study::{ImageKind, Salt};
use helper::{Helper, Task};
pub(crate) use request_key::REQUESTS;
pub(crate) use research::{is_group_key, is_research_key};

/// Directory of the key files, below the data directory.
pub(crate) const KEYSTORE: &str = "keystore";
/// Who the source is, for ever.
pub(crate) const SOURCE: &str = "source.json";
/// Who signs for it, once that is not the source itself.
pub(crate) const OPERATOR: &str = "operator.json";
/// Who is to sign for it when the rotation in hand is done.
pub(crate) const OPERATOR_NEXT: &str = "operator-next.json";
/// Who signed before, until the chain no longer honours it.
pub(crate) const OPERATOR_RETIRING: &str = "operator-retiring.json";
/// Entropy of the owner seed's recovery words.
pub(crate) const OWNER_WORDS: &str = "owner-words.json";
/// The owner seed of sites that began without words.
pub(crate) const OWNER_SEED: &str = "owner-seed.json";
/// What session keys are wrapped to.
pub(crate) const PAYLOAD: &str = "payload-key.pgp";
/// The password of all, where none is configured.
pub(crate) const PASSWORD: &str = "password";
/// Salts and wrapped session keys, in the data directory.
pub(crate) const DATABASE: &str = "keys.sqlite";
/// Which studies were derived from which, and the salts that prove it, in the data directory.
pub(crate) const DERIVED: &str = "derived.sqlite";

/// Longest secret key that was made for a study or an answer.
const MADE_KEY_BYTES_MAX: u64 = 16 * 1024;

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A key file cannot be read or written.
    #[error("key file {0}")]
    File(PathBuf, #[source] std::io::Error),
    /// A keystore file is not one, or the password is wrong.
    #[error("keystore {0}")]
    Keystore(PathBuf, #[source] KeystoreError),
    /// The OpenPGP key cannot be used, or a wrapped session key not be opened.
    #[error("payload key")]
    Payload(#[from] KeyError),
    /// The database of study keys failed.
    #[error("study keys")]
    Database(#[from] rusqlite::Error),
    /// No owner key has this number.
    #[error("owner key")]
    Owner(#[from] NoSuchKey),
    /// The owner seed's recovery words do not hold together.
    #[error("owner seed")]
    Words(#[from] WordsError),
    /// No research key has this name.
    #[error("there is no research key {0}; `pacs-bridge keys research new {0}` makes it")]
    NoResearchKey(String),
    /// There is one already.
    #[error("there is a research key {0} already")]
    ResearchKeyExists(String),
    /// A key file of a rule holds no key.
    #[error("{0} does not hold a key of 64 hexadecimal digits")]
    GroupKey(PathBuf),
    /// The password file is empty.
    #[error("the password file {0} is empty")]
    EmptyPassword(PathBuf),
    /// The file is damaged, or somebody put another one there.
    #[error("{0} holds no P-256 key in PKCS #8; move it away, and another is made and bound")]
    RequestKey(PathBuf),
    /// The database was written by another version.
    #[error("the study keys have format {0}, this program knows 4")]
    Version(i64),
    /// The database of study keys is damaged.
    #[error("a key of another site's study names no series")]
    Series,
    /// An envelope cannot be opened, or the key for one not be kept.
    #[error("envelope")]
    Envelope(#[from] EnvelopeError),
    /// The key that was made for an envelope is destroyed.
    #[error("the key that was made for this envelope is destroyed")]
    OneTimeKeyGone,
}

/// What a study's payloads and its name on the ledger depend on.
#[derive(Debug, Clone)]
pub struct StudyKeys {
    /// Hides the UID on the ledger.
    pub salt: Salt,
    /// Number of the owner key held in custody for this study.
    pub owner_index: u32,
    /// The session keys of the epochs before the newest, by their numbers.
    earlier: Vec<SessionKey>,
    newest: SessionKey,
}

impl StudyKeys {
    /// Number of the newest session key, from 0; what is sealed now is sealed with that. A revocation begins the next.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        u32::try_from(self.earlier.len()).unwrap_or(u32::MAX)
    }

    /// What seals a new image of this kind, that belongs to a series or, a manifest, to none.
    #[must_use]
    pub fn sealing(&self, kind: ImageKind, series: Option<&Uid>) -> SessionKey {
        of_kind(&self.newest, kind, series)
    }

    /// What opens an image of this kind that was sealed in an epoch, and seals it again. Without a series: as images were sealed before
    /// series had keys.
    #[must_use]
    pub fn opening(&self, kind: ImageKind, series: Option<&Uid>, epoch: u32) -> Option<SessionKey> {
        self.session_key(epoch).map(|key| of_kind(key, kind, series))
    }

    /// The session key of the newest epoch.
    #[must_use]
    pub fn newest(&self) -> &SessionKey {
        &self.newest
    }

    /// The session key of an epoch.
    #[must_use]
    pub fn session_key(&self, epoch: u32) -> Option<&SessionKey> {
        self.epochs().nth(usize::try_from(epoch).ok()?).map(|(_, key)| key)
    }

    /// Every epoch with its session key, from 0.
    pub fn epochs(&self) -> impl Iterator<Item = (u32, &SessionKey)> {
        (0..).zip(self.earlier.iter().chain([&self.newest]))
    }
}

/// The key for images of a kind and of a series that follows from a session key.
fn of_kind(session_key: &SessionKey, kind: ImageKind, series: Option<&Uid>) -> SessionKey {
    let key = if kind == ImageKind::Object { session_key.clone() } else { session_key.preview_key() };
    match series {
        Some(series) => key.of_series(series),
        None => key,
    }
}

/// What a site may have of another site's study, as its source delivered it.
#[derive(Debug, Clone)]
pub struct ForeignKeys {
    /// Hides the UID on the ledger.
    pub salt: Salt,
    /// The series that the keys are for; none for keys of the whole study.
    pub series: Option<Uid>,
    /// What each epoch's payloads open with. Of a whole study there is one an epoch; of a series there may be both.
    pub epochs: Vec<(u32, ForeignKey)>,
}

/// A key of another site's study, or of a series of it.
#[derive(Debug, Clone)]
pub enum ForeignKey {
    /// Opens everything of its epoch; of a series: its objects.
    Session(SessionKey),
    /// Opens previews and manifests.
    Preview(SessionKey),
}

impl ForeignKey {
    /// Whether it opens previews and manifests only.
    #[must_use]
    pub fn is_preview(&self) -> bool {
        matches!(self, Self::Preview(_))
    }

    fn expose(&self) -> &SessionKey {
        let (Self::Session(key) | Self::Preview(key)) = self;
        key
    }
}

impl ForeignKeys {
    /// What opens an image of this kind, series and epoch, if this site may open it.
    #[must_use]
    pub fn opening(&self, kind: ImageKind, series: Option<&Uid>, epoch: u32) -> Option<SessionKey> {
        let of_epoch = || self.epochs.iter().filter(|(of, _)| *of == epoch).map(|(_, key)| key);
        if self.series.is_some() {
            // Keys of a series are there as they are used, and for nothing else.
            let of_previews = kind != ImageKind::Object;
            let key = of_epoch().find(|key| key.is_preview() == of_previews);
            return key.filter(|_| series == self.series.as_ref()).map(|key| key.expose().clone());
        }
        match of_epoch().next()? {
            ForeignKey::Session(key) => Some(of_kind(key, kind, series)),
            ForeignKey::Preview(_) if kind == ImageKind::Object => None,
            ForeignKey::Preview(key) => Some(series.map_or_else(|| key.clone(), |series| key.of_series(series))),
        }
    }
}

/// What a key of this site was made for, besides the one that it has for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MadeFor {
    /// One answer over the ledger.
    OneAnswer = 1,
    /// One study of another site.
    Study = 2,
}

/// The open keyring. Cheap to clone.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    password: Zeroizing<String>,
    source: PrivateKeySigner,
    operator: Option<PrivateKeySigner>,
    owners: OwnerSeed,
    held: HeldKeys,
    recipient: RecipientSecret,
    database: Mutex<Connection>,
    journal: PathBuf,
}

impl Keyring {
    /// Opens the keyring in `data_dir`, making keys that are not there yet.
    ///
    /// # Errors
    /// [`KeyringError`]; a wrong password is a [`KeyringError::Keystore`].
    pub fn open(data_dir: &Path, config: &config::Keys) -> Result<Self, KeyringError> {
        let dir = data_dir.join(KEYSTORE);
        fs::create_dir_all(&dir).map_err(|e| KeyringError::File(dir.clone(), e))?;
        let password = password(&dir, config)?;
        let mut helper = Helper::new();
        let operator = open_if_there(&mut helper, &dir.join(OPERATOR), &password)?;
        let source = match &operator {
            // A source that has operators exists already: a new identity would be another source.
            Some(_) => read_key(&mut helper, &dir.join(SOURCE), &password)?,
            None => open_or_make(&mut helper, &dir.join(SOURCE), &password)?,
        };
        let owners = open_or_make_owners(&mut helper, &dir, &password)?;
        let recipient = open_or_make_recipient(&mut helper, &dir.join(PAYLOAD), &password)?;
        drop(helper);
        let path = data_dir.join(DATABASE);
        let database = Mutex::new(open_database(&path)?);
        let journal = data_dir.join(format!("{DATABASE}-journal"));
        let held = HeldKeys::default();
        let keyring =
            Self(Arc::new(Inner { dir, password, source, operator, owners, held, recipient, database, journal }));
        // Whoever destroyed something may have been stopped before this. Who is at work now does it himself.
        match keyring.wipe_journal(&keyring.database()) {
            Err(KeyringError::Database(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
            other => other?,
        }
        Ok(keyring)
    }

    /// The account that signs transactions: the operator, or the source itself while it has none.
    #[must_use]
    pub fn signer(&self) -> &PrivateKeySigner {
        self.0.operator.as_ref().unwrap_or(&self.0.source)
    }

    /// The account that signs for the source, if the source does not sign itself.
    #[must_use]
    pub fn operator(&self) -> Option<&PrivateKeySigner> {
        self.0.operator.as_ref()
    }

    /// The key that is to become the operator, made and durable if there was none.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn next_operator(&self) -> Result<PrivateKeySigner, KeyringError> {
        open_or_make(&mut Helper::new(), &self.0.dir.join(OPERATOR_NEXT), &self.0.password)
    }

    /// Makes the next operator the one that signs from the next start on. The key that signed until now is kept apart until
    /// [`Self::forget_retiring`].
    ///
    /// # Errors
    /// [`KeyringError::File`].
    pub fn promote_operator(&self) -> Result<(), KeyringError> {
        let dir = &self.0.dir;
        let now = dir.join(if self.0.operator.is_some() { OPERATOR } else { SOURCE });
        let bytes = Zeroizing::new(fs::read(&now).map_err(|e| KeyringError::File(now, e))?);
        write_secret(&dir.join(OPERATOR_RETIRING), &bytes)?;
        let operator = dir.join(OPERATOR);
        fs::rename(dir.join(OPERATOR_NEXT), &operator).map_err(|e| KeyringError::File(operator, e))?;
        sync_dir(dir)
    }

    /// The key that signed before the operator of now, while the chain may still honour it.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn retiring(&self) -> Result<Option<PrivateKeySigner>, KeyringError> {
        open_if_there(&mut Helper::new(), &self.0.dir.join(OPERATOR_RETIRING), &self.0.password)
    }

    /// Whether a rotation was begun whose key does not sign yet.
    #[must_use]
    pub fn has_next_operator(&self) -> bool {
        self.0.dir.join(OPERATOR_NEXT).exists()
    }

    /// Ends a rotation: the chain no longer honours the key that was kept apart.
    ///
    /// # Errors
    /// [`KeyringError::File`].
    pub fn forget_retiring(&self) -> Result<(), KeyringError> {
        let path = self.0.dir.join(OPERATOR_RETIRING);
        fs::remove_file(&path).map_err(|e| KeyringError::File(path, e))?;
        sync_dir(&self.0.dir)
    }

    /// The account that defines this source and its studies.
    #[must_use]
    pub fn source(&self) -> &PrivateKeySigner {
        &self.0.source
    }

    /// The key that owns a study in custody.
    ///
    /// # Errors
    /// [`KeyringError::Owner`] for the few numbers that BIP-32 leaves without a key.
    pub fn owner(&self, index: u32) -> Result<PrivateKeySigner, KeyringError> {
        Ok(self.0.owners.key(index)?)
    }

    /// Fingerprint of the OpenPGP key that session keys are wrapped to.
    ///
    /// # Errors
    /// [`KeyringError::Payload`].
    pub fn payload_fingerprint(&self) -> Result<Vec<u8>, KeyringError> {
        Ok(self.0.recipient.recipient()?.fingerprint())
    }

    /// The seed of all owner keys held in custody.
    #[must_use]
    pub fn owners(&self) -> OwnerSeed {
        self.0.owners.clone()
    }

    /// The keys of a study, if it has any.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn study(&self, study_uid: &Uid) -> Result<Option<StudyKeys>, KeyringError> {
        let row = find(&self.database(), study_uid)?;
        row.map(|row| self.open_row(&row)).transpose()
    }

    /// The name that a series of a study has in grants, if the study has keys: its UID after the study's salt, hashed.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn series_name(&self, study_uid: &Uid, series_uid: &Uid) -> Result<Option<B256>, KeyringError> {
        let row = find(&self.database(), study_uid)?;
        Ok(row.map(|row| contracts::messages::salted(B256::from(row.salt), series_uid.as_bytes())))
    }

    /// The keys of a study, made and durable before this returns if there were none.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn study_or_new(&self, study_uid: &Uid) -> Result<StudyKeys, KeyringError> {
        let mut database = self.database();
        if let Some(row) = find(&database, study_uid)? {
            drop(database);
            return self.open_row(&row);
        }
        let (newest, salt) = (SessionKey::random(), Salt::random());
        let wrapped = newest.wrap(&self.0.recipient.recipient()?)?;
        let tx = database.transaction()?;
        // A number that was ever used is not used again, also when its study is gone.
        let sql = "UPDATE owner_number SET next = next + 1 RETURNING next - 1";
        let owner_index = tx.query_row(sql, [], |row| row.get(0))?;
        tx.execute(
            "INSERT INTO study_key (study_uid, owner_index, salt) VALUES (?1, ?2, ?3)",
            params![study_uid.as_str(), owner_index, salt.as_bytes()],
        )?;
        insert_epoch(&tx, study_uid, 0, &wrapped)?;
        tx.commit()?;
        Ok(StudyKeys { salt, owner_index, earlier: Vec::new(), newest })
    }

    /// The keys of a study, made if there were none, in a new epoch if `reasons` name one that has not begun an epoch yet. A reason is
    /// an account from which something was taken away and the number of the owner's word that did it; each begins at most one
    /// epoch, however often it is named, and reasons that are named together begin one. Durable before this returns.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn study_after(&self, study_uid: &Uid, reasons: &[(Address, u32)]) -> Result<StudyKeys, KeyringError> {
        let keys = self.study_or_new(study_uid)?;
        if reasons.is_empty() {
            return Ok(keys);
        }
        let next = SessionKey::random();
        let wrapped = next.wrap(&self.0.recipient.recipient()?)?;
        let mut database = self.database();
        let tx = database.transaction()?;
        let mut news = 0;
        for (grantee, seq) in reasons {
            news += tx.execute(
                "INSERT OR IGNORE INTO epoch_reason (study_uid, grantee, seq) VALUES (?1, ?2, ?3)",
                params![study_uid.as_str(), grantee.as_slice(), seq],
            )?;
        }
        if news > 0 {
            insert_next_epoch(&tx, study_uid, &wrapped)?;
        }
        tx.commit()?;
        drop(database);
        Ok(self.study(study_uid)?.unwrap_or(keys))
    }

    /// Forgets which words began epochs of a study: on another ledger their numbers are given again. The epochs stay.
    ///
    /// # Errors
    /// [`KeyringError::Database`].
    pub fn forget_reasons(&self, study_uid: &Uid) -> Result<(), KeyringError> {
        self.database().execute("DELETE FROM epoch_reason WHERE study_uid = ?1", [study_uid.as_str()])?;
        Ok(())
    }

    /// Begins an epoch of a study with a session key that is given. Durable before this returns.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn begin_epoch(&self, study_uid: &Uid, key: &SessionKey) -> Result<StudyKeys, KeyringError> {
        self.study_or_new(study_uid)?;
        let wrapped = key.wrap(&self.0.recipient.recipient()?)?;
        let mut database = self.database();
        let tx = database.transaction()?;
        insert_next_epoch(&tx, study_uid, &wrapped)?;
        tx.commit()?;
        drop(database);
        self.study_or_new(study_uid)
    }

    /// Destroys the salt and every session key of the study with this owner key; nothing of them is left in the database's file or in
    /// its journal. Once more does no harm, also when there is a new study of that UID: no number is given twice.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn erase_study(&self, owner_index: u32) -> Result<(), KeyringError> {
        const STUDY: &str = "(SELECT study_uid FROM study_key WHERE owner_index = ?1)";
        let mut database = self.database();
        let tx = database.transaction()?;
        for table in ["epoch_reason", "study_epoch"] {
            tx.execute(&format!("DELETE FROM {table} WHERE study_uid IN {STUDY}"), [owner_index])?;
        }
        tx.execute("DELETE FROM study_key WHERE owner_index = ?1", [owner_index])?;
        tx.commit()?;
        self.wipe_journal(&database)
    }

    /// Overwrites what the last transaction left in the rollback journal. That nothing is written meanwhile, by another process either,
    /// is why this is a transaction, and that it writes nothing itself is why it needs no journal.
    fn wipe_journal(&self, database: &MutexGuard<'_, Connection>) -> Result<(), KeyringError> {
        database.execute_batch("BEGIN EXCLUSIVE")?;
        let wiped = overwrite(&self.0.journal);
        database.execute_batch("ROLLBACK")?;
        wiped
    }

    /// The certificate that session keys for this site are wrapped to.
    ///
    /// # Errors
    /// [`KeyringError::Payload`].
    pub fn payload_certificate(&self) -> Result<Vec<u8>, KeyringError> {
        Ok(self.0.recipient.recipient()?.to_bytes()?)
    }

    /// Opens a session key that somebody wrapped to this site.
    ///
    /// # Errors
    /// [`KeyringError::Payload`].
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<SessionKey, KeyringError> {
        Ok(self.0.recipient.unwrap_session_key(wrapped)?)
    }

    /// The keys of another site's study, if they were delivered.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn foreign(&self, study_id: B256) -> Result<Option<ForeignKeys>, KeyringError> {
        /// Salt, series, epoch, whether for previews only, wrapped key.
        type Row = ([u8; 32], String, u32, bool, Vec<u8>);
        let rows: Vec<Row> = {
            let database = self.database();
            let mut statement = database.prepare_cached(
                "SELECT salt, series, epoch, preview_only, wrapped FROM foreign_key WHERE study_id = ?1
                 ORDER BY epoch, preview_only",
            )?;
            let rows = statement.query_map([study_id.as_slice()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })?;
            rows.collect::<Result<_, _>>()?
        };
        let Some((salt, series, ..)) = rows.first() else { return Ok(None) };
        let salt = Salt::from_bytes(*salt);
        let series = (!series.is_empty()).then(|| Uid::new(series)).transpose().map_err(|_| KeyringError::Series)?;
        let mut epochs = Vec::with_capacity(rows.len());
        for (_, _, epoch, preview_only, wrapped) in &rows {
            let key = self.unwrap(wrapped)?;
            epochs.push((*epoch, if *preview_only { ForeignKey::Preview(key) } else { ForeignKey::Session(key) }));
        }
        Ok(Some(ForeignKeys { salt, series, epochs }))
    }

    /// Keeps the keys of another site's study, wrapped to this site's own payload key, instead of those kept before.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn keep_foreign(&self, study_id: B256, keys: &ForeignKeys) -> Result<(), KeyringError> {
        let recipient = self.0.recipient.recipient()?;
        let mut wrapped = Vec::with_capacity(keys.epochs.len());
        for (epoch, key) in &keys.epochs {
            wrapped.push((epoch, key.is_preview(), key.expose().wrap(&recipient)?));
        }
        let series = keys.series.as_ref().map_or("", Uid::as_str);
        let mut database = self.database();
        let tx = database.transaction()?;
        tx.execute("DELETE FROM foreign_key WHERE study_id = ?1", [study_id.as_slice()])?;
        for (epoch, preview_only, wrapped) in wrapped {
            tx.execute(
                "INSERT INTO foreign_key (study_id, epoch, salt, series, preview_only, wrapped) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![study_id.as_slice(), epoch, keys.salt.as_bytes(), series, preview_only, wrapped],
            )?;
        }
        Ok(tx.commit()?)
    }

    /// Destroys the keys of another site's study; nothing of them is left in the database's file.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn erase_foreign(&self, study_id: B256) -> Result<(), KeyringError> {
        let database = self.database();
        for table in ["foreign_key", "made_key"] {
            database.execute(&format!("DELETE FROM {table} WHERE study_id = ?1"), [study_id.as_slice()])?;
        }
        self.wipe_journal(&database)
    }

    /// The same, but for a key that this site has for that study alone: what is granted again may be granted to it.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn forget_foreign(&self, study_id: B256) -> Result<(), KeyringError> {
        let database = self.database();
        database.execute("DELETE FROM foreign_key WHERE study_id = ?1", [study_id.as_slice()])?;
        let one_answer = params![study_id.as_slice(), MadeFor::OneAnswer as u8];
        database.execute("DELETE FROM made_key WHERE study_id = ?1 AND made_for = ?2", one_answer)?;
        self.wipe_journal(&database)
    }

    /// The certificate of the key that one answer about another site's study is to need, made and durable if there was none.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn one_time_key(&self, study_id: B256) -> Result<Vec<u8>, KeyringError> {
        self.make_key(study_id, MadeFor::OneAnswer)
    }

    /// The certificate of a key of this site for one study of another site and no other, made and durable if there was none. It is
    /// destroyed with what was granted.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn study_certificate_or_new(&self, study_id: B256) -> Result<Vec<u8>, KeyringError> {
        self.make_key(study_id, MadeFor::Study)
    }

    /// The same, if there is one.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn study_certificate(&self, study_id: B256) -> Result<Option<Vec<u8>>, KeyringError> {
        let sql = "SELECT certificate FROM made_key WHERE study_id = ?1 AND made_for = ?2";
        let row = self.database().query_row(sql, params![study_id.as_slice(), MadeFor::Study as u8], |row| row.get(0));
        Ok(row.optional()?)
    }

    fn make_key(&self, study_id: B256, made_for: MadeFor) -> Result<Vec<u8>, KeyringError> {
        let secret = RecipientSecret::generate()?;
        let certificate = secret.recipient()?.to_bytes()?;
        let open = Zeroizing::new(secret.to_open_bytes()?);
        let key = SessionKey::random();
        let (sealed, _) = seal_bytes(&open, &key, &study_id, SealOptions::default()).map_err(EnvelopeError::from)?;
        let wrapped = key.wrap(&self.0.recipient.recipient()?)?;
        let database = self.database();
        database.execute(
            "INSERT OR IGNORE INTO made_key (study_id, made_for, certificate, wrapped, sealed) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![study_id.as_slice(), made_for as u8, certificate, wrapped, sealed],
        )?;
        let kept = "SELECT certificate FROM made_key WHERE study_id = ?1 AND made_for = ?2";
        Ok(database.query_row(kept, params![study_id.as_slice(), made_for as u8], |row| row.get(0))?)
    }

    fn made_key(&self, study_id: B256, made_for: MadeFor) -> Result<Option<RecipientSecret>, KeyringError> {
        let sql = "SELECT wrapped, sealed FROM made_key WHERE study_id = ?1 AND made_for = ?2";
        let row = self.database().query_row(sql, params![study_id.as_slice(), made_for as u8], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
        });
        let Some((wrapped, sealed)) = row.optional()? else { return Ok(None) };
        let key = self.unwrap(&wrapped)?;
        let open = unseal_bytes(&sealed, &key, &study_id, MADE_KEY_BYTES_MAX).map_err(EnvelopeError::from)?;
        Ok(Some(RecipientSecret::from_open_bytes(&Zeroizing::new(open))?))
    }

    /// Opens a session key that somebody wrapped to this site, or to its key for this study of another site.
    ///
    /// # Errors
    /// [`KeyringError::Payload`].
    pub fn unwrap_for(&self, study_id: B256, wrapped: &[u8]) -> Result<SessionKey, KeyringError> {
        match (self.unwrap(wrapped), self.made_key(study_id, MadeFor::Study)?) {
            (Err(_), Some(of_study)) => Ok(of_study.unwrap_session_key(wrapped)?),
            (opened, _) => opened,
        }
    }

    /// Opens an envelope about another site's study with the key that was made for it and this site's own, or its own for this study.
    ///
    /// # Errors
    /// [`KeyringError::Envelope`]; [`KeyringError::OneTimeKeyGone`] when the key was destroyed.
    pub fn open_envelope(&self, study_id: B256, envelope: &[u8]) -> Result<Vec<u8>, KeyringError> {
        let one_time = self.made_key(study_id, MadeFor::OneAnswer)?.ok_or(KeyringError::OneTimeKeyGone)?;
        let of_study = self.made_key(study_id, MadeFor::Study)?;
        match (open_envelope(envelope, &study_id, &self.0.recipient, &one_time), of_study) {
            (Err(_), Some(of_study)) => Ok(open_envelope(envelope, &study_id, &of_study, &one_time)?),
            (opened, _) => Ok(opened?),
        }
    }

    /// Destroys that key; nothing of it is left in the database's file, and envelopes for it open to nobody any more.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn forget_one_time_key(&self, study_id: B256) -> Result<(), KeyringError> {
        let database = self.database();
        let sql = "DELETE FROM made_key WHERE study_id = ?1 AND made_for = ?2";
        match database.execute(sql, params![study_id.as_slice(), MadeFor::OneAnswer as u8])? {
            0 => Ok(()),
            _ => self.wipe_journal(&database),
        }
    }

    /// The studies of other sites whose keys are here, or a key that was made for an answer about them.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn foreign_studies(&self) -> Result<Vec<B256>, KeyringError> {
        let database = self.database();
        // A key for a study may wait for the owner's word; one for an answer has that already.
        let sql = "SELECT study_id FROM foreign_key UNION SELECT study_id FROM made_key WHERE made_for = ?1";
        let mut statement = database.prepare_cached(sql)?;
        let rows = statement.query_map([MadeFor::OneAnswer as u8], |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_row(&self, row: &Row) -> Result<StudyKeys, KeyringError> {
        let unwrap = |wrapped: &Vec<u8>| self.0.recipient.unwrap_session_key(wrapped);
        Ok(StudyKeys {
            salt: Salt::from_bytes(row.salt),
            owner_index: row.owner_index,
            earlier: row.earlier.iter().map(unwrap).collect::<Result<_, _>>()?,
            newest: unwrap(&row.newest)?,
        })
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("source", &self.0.source.address()).finish_non_exhaustive()
    }
}

struct Row {
    owner_index: u32,
    salt: [u8; 32],
    earlier: Vec<Vec<u8>>,
    newest: Vec<u8>,
}

fn find(database: &Connection, study_uid: &Uid) -> Result<Option<Row>, KeyringError> {
    let sql = "SELECT owner_index, salt FROM study_key WHERE study_uid = ?1";
    let row = database.query_row(sql, [study_uid.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
    let Some((owner_index, salt)) = row.optional()? else { return Ok(None) };
    let mut statement =
        database.prepare_cached("SELECT wrapped FROM study_epoch WHERE study_uid = ?1 ORDER BY epoch")?;
    let mut earlier =
        statement.query_map([study_uid.as_str()], |row| row.get(0))?.collect::<Result<Vec<Vec<u8>>, _>>()?;
    // Both tables are written together; a study without an epoch has no keys.
    Ok(earlier.pop().map(|newest| Row { owner_index, salt, earlier, newest }))
}

fn insert_next_epoch(tx: &Transaction<'_>, study_uid: &Uid, wrapped: &[u8]) -> rusqlite::Result<()> {
    let epoch = "SELECT max(epoch) + 1 FROM study_epoch WHERE study_uid = ?1";
    let epoch = tx.query_row(epoch, [study_uid.as_str()], |row| row.get(0))?;
    insert_epoch(tx, study_uid, epoch, wrapped)
}

fn insert_epoch(tx: &Transaction<'_>, study_uid: &Uid, epoch: u32, wrapped: &[u8]) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO study_epoch (study_uid, epoch, wrapped) VALUES (?1, ?2, ?3)",
        params![study_uid.as_str(), epoch, wrapped],
    )?;
    Ok(())
}

/// What leads from each version of the database to the next.
const MIGRATIONS: [&str; 4] = [
    "CREATE TABLE study_key (
       study_uid TEXT PRIMARY KEY,
       owner_index INTEGER NOT NULL UNIQUE,
       epoch INTEGER NOT NULL,
       salt BLOB NOT NULL,
       wrapped BLOB NOT NULL         -- OpenPGP PKESK of the session key to the site's own payload key
     ) STRICT;",
    "CREATE TABLE IF NOT EXISTS foreign_key (
       study_id BLOB NOT NULL,       -- name on the ledger of another site's study
       epoch INTEGER NOT NULL,
       salt BLOB NOT NULL,
       preview_only INTEGER NOT NULL, -- 1 for a key that opens previews and manifests only
       wrapped BLOB NOT NULL,        -- OpenPGP PKESK of the key to the site's own payload key
       PRIMARY KEY (study_id, epoch)
     ) STRICT, WITHOUT ROWID;",
    // Session keys in a table of their own, one an epoch.
    "CREATE TABLE study_epoch (
       study_uid TEXT NOT NULL,
       epoch INTEGER NOT NULL,       -- from 0, without gaps
       wrapped BLOB NOT NULL,        -- OpenPGP PKESK of the session key to the site's own payload key
       PRIMARY KEY (study_uid, epoch)
     ) STRICT, WITHOUT ROWID;
     -- The owner's words that began an epoch: each is the only one with its number towards its grantee, on every branch.
     CREATE TABLE epoch_reason (
       study_uid TEXT NOT NULL,
       grantee BLOB NOT NULL,
       seq INTEGER NOT NULL,
       PRIMARY KEY (study_uid, grantee, seq)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE owner_number (next INTEGER NOT NULL) STRICT;
     INSERT INTO owner_number SELECT coalesce(max(owner_index), -1) + 1 FROM study_key;
     INSERT INTO study_epoch (study_uid, epoch, wrapped) SELECT study_uid, epoch, wrapped FROM study_key;
     ALTER TABLE study_key DROP COLUMN epoch;
     ALTER TABLE study_key DROP COLUMN wrapped;",
    // Keys of a series of another site's study, two an epoch.
    "CREATE TABLE foreign_key_2 (
       study_id BLOB NOT NULL,       -- name on the ledger of another site's study
       epoch INTEGER NOT NULL,
       preview_only INTEGER NOT NULL, -- 1 for a key that opens previews and manifests only
       series TEXT NOT NULL,         -- Series Instance UID; empty for keys of the whole study
       salt BLOB NOT NULL,
       wrapped BLOB NOT NULL,        -- OpenPGP PKESK of the key to the site's own payload key
       PRIMARY KEY (study_id, epoch, preview_only)
     ) STRICT, WITHOUT ROWID;
     INSERT INTO foreign_key_2 SELECT study_id, epoch, preview_only, '', salt, wrapped FROM foreign_key;
     DROP TABLE foreign_key;
     ALTER TABLE foreign_key_2 RENAME TO foreign_key;
     -- OpenPGP keys of this site that are for one study of another site, or for one answer about it.
     CREATE TABLE made_key (
       study_id BLOB NOT NULL,       -- name on the ledger
       made_for INTEGER NOT NULL,    -- 1 one answer over the ledger, 2 the study
       certificate BLOB NOT NULL,
       wrapped BLOB NOT NULL,        -- OpenPGP PKESK of the key that seals it to the site's own payload key
       sealed BLOB NOT NULL,         -- the secret key, in a container of its own
       PRIMARY KEY (study_id, made_for)
     ) STRICT;",
];

fn open_database(path: &Path) -> Result<Connection, KeyringError> {
    // SQLite gives its journals the permissions of the database.
    let private = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    private
        .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o600)))
        .map_err(|e| KeyringError::File(path.to_owned(), e))?;
    let database = Connection::open(path)?;
    database.pragma_update(None, "secure_delete", true)?;
    // The journal is never removed: what it held of a page could not be overwritten afterwards. What ends a transaction is that the
    // journal's head is overwritten and synced, which EXTRA and FULL do alike.
    database.pragma_update(None, "journal_mode", "PERSIST")?;
    database.pragma_update(None, "synchronous", "EXTRA")?;
    let found = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let steps = match found {
        0 => &MIGRATIONS[..],
        1 => &MIGRATIONS[1..],
        2 => &MIGRATIONS[2..],
        3 => &MIGRATIONS[3..],
        4 => &MIGRATIONS[4..],
        other => return Err(KeyringError::Version(other)),
    };
    for (version, step) in (found + 1..).zip(steps) {
        database.execute_batch(&format!("BEGIN; {step} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(database)
}

/// The configured password, or a random one kept in a file of its own beside the keys: that protects a copy of the key
/// files alone, and says so.
pub(crate) fn password(dir: &Path, config: &config::Keys) -> Result<Zeroizing<String>, KeyringError> {
    if let Some(password) = &config.password {
        return Ok(Zeroizing::new(password.clone()));
    }
    let path = config.password_file.clone().unwrap_or_else(|| dir.join(PASSWORD));
    if config.password_file.is_none() && !path.exists() {
        write_secret(&path, password::make().as_bytes())?;
        tracing::warn!(path = %path.display(), "made a random keystore password; move it to a safe place and name it in keys.password_file");
    }
    let text = Zeroizing::new(fs::read_to_string(&path).map_err(|e| KeyringError::File(path.clone(), e))?);
    match text.lines().next().map(str::trim_end) {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(KeyringError::EmptyPassword(path)),
    }
}

fn read_key(helper: &mut Helper, path: &Path, password: &str) -> Result<PrivateKeySigner, KeyringError> {
    let fail = |e| KeyringError::Keystore(path.to_owned(), e);
    let text = fs::read_to_string(path).map_err(|e| fail(e.into()))?;
    let opened = helper.run(Task::OpenKeystore, password, text.as_bytes());
    match opened.and_then(|bytes| PrivateKeySigner::from_slice(&bytes).ok()) {
        Some(key) => Ok(key),
        None => keystore::decrypt(&text, password).map_err(fail),
    }
}

fn open_if_there(helper: &mut Helper, path: &Path, password: &str) -> Result<Option<PrivateKeySigner>, KeyringError> {
    path.exists().then(|| read_key(helper, path, password)).transpose()
}

/// The seed is 32 secret bytes like any key, so the same file format keeps it: as the entropy of 24 recovery words, or, at
/// sites that began without words, as the seed itself.
fn open_or_make_owners(helper: &mut Helper, dir: &Path, password: &str) -> Result<OwnerSeed, KeyringError> {
    if let Some(seed) = open_if_there(helper, &dir.join(OWNER_SEED), password)? {
        return Ok(OwnerSeed::new(seed.to_bytes().to_vec()));
    }
    let entropy = open_or_make(helper, &dir.join(OWNER_WORDS), password)?;
    Ok(OwnerSeed::from_words(&owner::words_of(&entropy.to_bytes().0)?)?)
}

fn open_or_make(helper: &mut Helper, path: &Path, password: &str) -> Result<PrivateKeySigner, KeyringError> {
    let fail = |e| KeyringError::Keystore(path.to_owned(), e);
    if !path.exists() {
        let key = PrivateKeySigner::random();
        let secret = Zeroizing::new(key.to_bytes().0);
        let locked = helper.run(Task::LockKeystore, password, secret.as_slice());
        let text = match locked.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()) {
            Some(text) => text.to_owned(),
            None => keystore::encrypt(&key, password).map_err(fail)?,
        };
        keystore::write(path, &text).map_err(fail)?;
        return Ok(key);
    }
    read_key(helper, path, password)
}

fn open_or_make_recipient(helper: &mut Helper, path: &Path, password: &str) -> Result<RecipientSecret, KeyringError> {
    if !path.exists() {
        let secret = RecipientSecret::generate()?;
        let open = Zeroizing::new(secret.to_open_bytes()?);
        let locked = match helper.run(Task::LockRecipient, password, &open) {
            Some(locked) => locked.to_vec(),
            None => secret.to_locked_bytes(password)?,
        };
        write_secret(path, &locked)?;
        return Ok(secret);
    }
    let bytes = fs::read(path).map_err(|e| KeyringError::File(path.to_owned(), e))?;
    let opened = helper.run(Task::OpenRecipient, password, &bytes);
    match opened.and_then(|open| RecipientSecret::from_open_bytes(&open).ok()) {
        Some(secret) => Ok(secret),
        None => Ok(RecipientSecret::from_locked_bytes(&bytes, password)?),
    }
}

/// Writes a file that only we can read, durable before it returns, and never half of it under its name.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), KeyringError> {
    let fail = |e| KeyringError::File(path.to_owned(), e);
    let part = path.with_extension("part");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&part, path).map_err(fail)?;
    sync_dir(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Overwrites a file with zeros, durably. One that is not there is no error.
pub(crate) fn overwrite(path: &Path) -> Result<(), KeyringError> {
    let work = || {
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        let zeros = [0; 4096];
        let mut left = file.metadata()?.len();
        while left > 0 {
            let count = left.min(4096);
            file.write_all(&zeros[..usize::try_from(count).unwrap_or(0)])?;
            left -= count;
        }
        file.sync_all()
    };
    match work() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KeyringError::File(path.to_owned(), error)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), KeyringError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| KeyringError::File(dir.to_owned(), e))
}

#[cfg(test)]
mod tests;
