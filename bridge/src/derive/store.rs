//! What was derived from what, by which rule, whose it is, and what proves it: a small database of its own, because it must be kept
//! like keys are and not like an index that can be rebuilt.
//!
//! A derivation is written here before its first object is stored, and named as being stored until the last one is: so nothing of
//! half of it is published, and whatever was begun can be gone on with. Opened like the database of study keys: what is deleted is
//! overwritten. Must not know the archive, the ledger or rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy::primitives::{Address, B256};
use contracts::messages;
use dicom_scp::Uid;
use rusqlite::{Connection, Row, params};

use super::DeriveError;
use crate::keyring::{DERIVED, overwrite};

/// Longest reason kept, in characters.
const WORDS_CHARS_MAX: usize = 1_000;

const SCHEMA: &str = "
BEGIN;
-- Studies that became final and were not looked at since.
CREATE TABLE candidate (study_uid TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE derivation (
  id INTEGER PRIMARY KEY,
  rule TEXT NOT NULL,
  parent_uid TEXT,             -- NULL once the parent was erased
  version INTEGER NOT NULL,    -- of the parent's manifest that was looked at last
  derived_uid TEXT UNIQUE,     -- NULL while nothing was derived
  owner TEXT NOT NULL,         -- custody, or an account: of a research key held here, or of somebody elsewhere
  owner_kind INTEGER NOT NULL, -- 0 custody, 1 research, 2 elsewhere
  parent_id BLOB,              -- the parent's name on the ledger; NULL where the lineage is not said there, or was forgotten
  salt BLOB,                   -- what its commitment is salted with
  storing INTEGER NOT NULL,    -- 1: not all objects are stored yet, and none may be published
  ended INTEGER NOT NULL,      -- 1: it was erased, and is not derived again
  words TEXT NOT NULL,         -- why it was refused, if so
  UNIQUE (rule, parent_uid)
) STRICT;
CREATE INDEX derivation_parent ON derivation (parent_uid);
CREATE INDEX derivation_storing ON derivation (storing) WHERE storing = 1;
-- Every object that was derived. Nothing else is published as a part of its study.
CREATE TABLE made (
  derivation INTEGER NOT NULL REFERENCES derivation(id),
  sop_instance TEXT NOT NULL,
  file_sha256 BLOB NOT NULL,
  PRIMARY KEY (derivation, sop_instance, file_sha256)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
COMMIT;";

/// Who owns a derived study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A key of its own, in this site's custody.
    Custody,
    /// A research key in this site's custody.
    Research(Address),
    /// Somebody elsewhere, to whom it is handed over.
    Elsewhere(Address),
}

/// What was derived from a study by a rule. Only this module makes one, from what is recorded, so that whoever holds one speaks of a
/// study that was made by de-identification here.
#[derive(Debug, Clone)]
pub struct Derivation {
    id: i64,
    rule: String,
    parent: Option<Uid>,
    version: u32,
    derived: Option<Uid>,
    owner: Owner,
    lineage: Option<Lineage>,
    storing: bool,
    ended: bool,
    words: String,
}

/// What `derivedFrom` on the ledger is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The parent's name on the ledger.
    pub parent: B256,
    /// Stays here; without it nobody can tell whose copy it is.
    pub salt: B256,
}

impl Lineage {
    /// What goes onto the ledger.
    #[must_use]
    pub fn commitment(&self) -> B256 {
        messages::lineage(self.salt, self.parent)
    }
}

impl Derivation {
    /// Name of the rule.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The study that it was derived from, unless that was erased.
    #[must_use]
    pub fn parent(&self) -> Option<&Uid> {
        self.parent.as_ref()
    }

    /// The manifest version of the parent that was looked at last.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The derived study, once there is one.
    #[must_use]
    pub fn derived(&self) -> Option<&Uid> {
        self.derived.as_ref()
    }

    /// Who owns it.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// What is said of its lineage on the ledger, if anything.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// Whether objects are still to be stored; none is published before all are there.
    #[must_use]
    pub fn is_storing(&self) -> bool {
        self.storing
    }

    /// Whether the derived study was erased.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Why the last attempt was refused; empty when it was not.
    #[must_use]
    pub fn refusal(&self) -> &str {
        &self.words
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }
}

/// Instances with the SHA-256 of their files.
pub type MadeObjects = BTreeSet<(Uid, [u8; 32])>;

/// What is recorded when the first object is about to be stored.
pub(super) struct Begun<'a> {
    pub(super) rule: &'a str,
    pub(super) parent: Uid,
    pub(super) derived: Uid,
    pub(super) owner: Owner,
    pub(super) lineage: Option<Lineage>,
    pub(super) objects: &'a MadeObjects,
}

/// The record. Cheap to clone.
#[derive(Clone)]
pub struct Derived(Arc<Inner>);

struct Inner {
    database: Mutex<Connection>,
    journal: PathBuf,
    /// Derived studies, asked for with every object that comes in.
    studies: RwLock<BTreeMap<Uid, bool>>,
    /// Held while a study is derived or erased.
    alone: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Derived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Derived").finish_non_exhaustive()
    }
}

const SELECT: &str =
    "SELECT id, rule, parent_uid, version, derived_uid, owner, owner_kind, parent_id, salt, storing, ended, words
  FROM derivation";

impl Derived {
    /// Opens the record in a data directory, making it if it is not there.
    ///
    /// # Errors
    /// [`DeriveError::Version`] when a later version wrote it.
    pub fn open(data_dir: &Path) -> Result<Self, DeriveError> {
        let path = data_dir.join(DERIVED);
        let io = |e| DeriveError::Io(path.clone(), e);
        let private = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(io)?;
        private.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io)?;
        let database = Connection::open(&path)?;
        database.pragma_update(None, "secure_delete", true)?;
        database.pragma_update(None, "journal_mode", "PERSIST")?;
        database.pragma_update(None, "synchronous", "EXTRA")?;
        database.pragma_update(None, "foreign_keys", true)?;
        match database.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => database.execute_batch(SCHEMA)?,
            1 => {}
            other => return Err(DeriveError::Version(other)),
        }
        let this = Self(Arc::new(Inner {
            database: Mutex::new(database),
            journal: data_dir.join(format!("{DERIVED}-journal")),
            studies: RwLock::default(),
            alone: tokio::sync::Mutex::default(),
        }));
        let known = this.all()?;
        let mut studies = this.0.studies.write().unwrap_or_else(PoisonError::into_inner);
        studies.extend(known.iter().filter_map(|one| Some((one.derived?, one.storing))));
        drop(studies);
        Ok(this)
    }

    /// While this is held nothing is derived.
    pub async fn pause(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.alone.lock().await
    }

    /// As [`Derived::pause`], unless something is being derived or erased just now.
    #[must_use]
    pub fn try_pause(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.0.alone.try_lock().ok()
    }

    /// Whether a study was derived here, however it has ended.
    #[must_use]
    pub fn knows(&self, study: &Uid) -> bool {
        self.0.studies.read().unwrap_or_else(PoisonError::into_inner).contains_key(study)
    }

    /// Whether it is a derived study of which not every object is stored.
    #[must_use]
    pub fn is_storing(&self, study: &Uid) -> bool {
        self.0.studies.read().unwrap_or_else(PoisonError::into_inner).get(study) == Some(&true)
    }

    /// Takes note that a study became final, durably.
    ///
    /// # Errors
    /// [`DeriveError::Database`].
    pub fn add_candidate(&self, study: &Uid) -> Result<(), DeriveError> {
        self.database().execute("INSERT OR IGNORE INTO candidate (study_uid) VALUES (?1)", [study.as_str()])?;
        Ok(())
    }

    pub(super) fn candidates(&self, limit: u32) -> Result<Vec<Uid>, DeriveError> {
        let database = self.database();
        let mut statement = database.prepare_cached("SELECT study_uid FROM candidate LIMIT ?1")?;
        let rows = statement.query_map([limit], |row| uid(row, 0))?;
        Ok(rows.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    pub(super) fn drop_candidate(&self, study: &Uid) -> Result<(), DeriveError> {
        self.database().execute("DELETE FROM candidate WHERE study_uid = ?1", [study.as_str()])?;
        Ok(())
    }

    /// Everything that was ever derived or refused.
    ///
    /// # Errors
    /// [`DeriveError::Database`].
    pub fn all(&self) -> Result<Vec<Derivation>, DeriveError> {
        self.select("ORDER BY id", [])
    }

    /// What was derived from a study.
    ///
    /// # Errors
    /// [`DeriveError::Database`].
    pub fn of_parent(&self, parent: &Uid) -> Result<Vec<Derivation>, DeriveError> {
        self.select("WHERE parent_uid = ?1 ORDER BY id", [parent.as_str()])
    }

    /// What a derived study is; none for every other study.
    ///
    /// # Errors
    /// [`DeriveError::Database`].
    pub fn of_derived(&self, study: &Uid) -> Result<Option<Derivation>, DeriveError> {
        if !self.knows(study) {
            return Ok(None);
        }
        Ok(self.select("WHERE derived_uid = ?1", [study.as_str()])?.pop())
    }

    /// What was begun and is not finished.
    pub(super) fn begun(&self) -> Result<Vec<Derivation>, DeriveError> {
        self.select("WHERE storing = 1 ORDER BY id", [])
    }

    pub(super) fn by_id(&self, id: i64) -> Result<Option<Derivation>, DeriveError> {
        Ok(self.select("WHERE id = ?1", [id])?.pop())
    }

    pub(super) fn of_rule(&self, rule: &str, parent: &Uid) -> Result<Option<Derivation>, DeriveError> {
        Ok(self.select("WHERE rule = ?1 AND parent_uid = ?2", [rule, parent.as_str()])?.pop())
    }

    /// The objects that were derived into a study.
    ///
    /// # Errors
    /// [`DeriveError::Database`].
    pub fn objects(&self, derivation: &Derivation) -> Result<MadeObjects, DeriveError> {
        let database = self.database();
        let sql = "SELECT sop_instance, file_sha256 FROM made WHERE derivation = ?1";
        let mut statement = database.prepare_cached(sql)?;
        let rows = statement.query_map([derivation.id], |row| Ok(uid(row, 0)?.zip(row.get(1)?)))?;
        Ok(rows.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    /// Writes down what is about to be stored. Durable before this returns; whose it is and what is said of its lineage stays as it was
    /// at the first time.
    pub(super) fn begin(&self, begun: &Begun<'_>) -> Result<Derivation, DeriveError> {
        let (kind, owner) = match begun.owner {
            Owner::Custody => (0, "custody".to_owned()),
            Owner::Research(account) => (1, account.to_string()),
            Owner::Elsewhere(account) => (2, account.to_string()),
        };
        let mut database = self.database();
        let tx = database.transaction()?;
        let id: i64 = tx.query_row(
            "INSERT INTO derivation (rule, parent_uid, version, derived_uid, owner, owner_kind, parent_id, salt, storing, ended, words)
             VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, 1, 0, '')
             ON CONFLICT (rule, parent_uid) DO UPDATE SET storing = 1, words = '',
               derived_uid = coalesce(derived_uid, excluded.derived_uid),
               owner = CASE WHEN derived_uid IS NULL THEN excluded.owner ELSE owner END,
               owner_kind = CASE WHEN derived_uid IS NULL THEN excluded.owner_kind ELSE owner_kind END,
               parent_id = CASE WHEN derived_uid IS NULL THEN excluded.parent_id ELSE parent_id END,
               salt = CASE WHEN derived_uid IS NULL THEN excluded.salt ELSE salt END
             RETURNING id",
            params![
                begun.rule,
                begun.parent.as_str(),
                begun.derived.as_str(),
                owner,
                kind,
                begun.lineage.map(|lineage| lineage.parent.0),
                begun.lineage.map(|lineage| lineage.salt.0),
            ],
            |row| row.get(0),
        )?;
        let mut insert =
            tx.prepare("INSERT OR IGNORE INTO made (derivation, sop_instance, file_sha256) VALUES (?1, ?2, ?3)")?;
        for (sop_instance, sha256) in begun.objects {
            insert.execute(params![id, sop_instance.as_str(), sha256])?;
        }
        drop(insert);
        tx.commit()?;
        drop(database);
        self.note(begun.derived, true);
        self.by_id(id)?.ok_or(DeriveError::Gone)
    }

    /// Every object of a version of the parent is stored.
    pub(super) fn finish(&self, derivation: &Derivation, version: u32) -> Result<(), DeriveError> {
        let sql = "UPDATE derivation SET storing = 0, words = '', version = max(version, ?2) WHERE id = ?1";
        self.database().execute(sql, params![derivation.id, version])?;
        if let Some(derived) = derivation.derived {
            self.note(derived, false);
        }
        Ok(())
    }

    /// Nothing was stored of a version of the parent, and why.
    pub(super) fn refuse(&self, rule: &str, parent: &Uid, version: u32, words: &str) -> Result<(), DeriveError> {
        let words: String = words.chars().take(WORDS_CHARS_MAX).collect();
        self.database().execute(
            "INSERT INTO derivation (rule, parent_uid, version, owner, owner_kind, storing, ended, words)
             VALUES (?1, ?2, ?3, 'custody', 0, 0, 0, ?4)
             ON CONFLICT (rule, parent_uid) DO UPDATE SET version = excluded.version, words = excluded.words",
            params![rule, parent.as_str(), version, words],
        )?;
        Ok(())
    }

    /// Forgets that anything was derived from a study, before that is erased: what was derived stays, and nothing here leads back.
    ///
    /// # Errors
    /// [`DeriveError`].
    pub fn forget_parent(&self, parent: &Uid) -> Result<(), DeriveError> {
        let mut database = self.database();
        let tx = database.transaction()?;
        tx.execute("DELETE FROM candidate WHERE study_uid = ?1", [parent.as_str()])?;
        tx.execute("DELETE FROM derivation WHERE parent_uid = ?1 AND derived_uid IS NULL", [parent.as_str()])?;
        tx.execute(
            "UPDATE derivation SET parent_uid = NULL, parent_id = NULL, salt = NULL, words = '' WHERE parent_uid = ?1",
            [parent.as_str()],
        )?;
        tx.commit()?;
        self.wipe_journal(&database)
    }

    /// Takes note that a derived study is erased. That it was one is remembered, so that it is not derived again.
    ///
    /// # Errors
    /// [`DeriveError`].
    pub fn end(&self, derived: &Uid) -> Result<(), DeriveError> {
        if !self.knows(derived) {
            return Ok(());
        }
        let mut database = self.database();
        let tx = database.transaction()?;
        const OF: &str = "SELECT id FROM derivation WHERE derived_uid = ?1";
        tx.execute(&format!("DELETE FROM made WHERE derivation IN ({OF})"), [derived.as_str()])?;
        tx.execute(
            "UPDATE derivation SET ended = 1, storing = 0, parent_id = NULL, salt = NULL, words = '' WHERE derived_uid = ?1",
            [derived.as_str()],
        )?;
        tx.commit()?;
        self.wipe_journal(&database)?;
        drop(database);
        self.note(*derived, false);
        Ok(())
    }

    fn note(&self, derived: Uid, storing: bool) {
        self.0.studies.write().unwrap_or_else(PoisonError::into_inner).insert(derived, storing);
    }

    fn select(&self, what: &str, by: impl rusqlite::Params) -> Result<Vec<Derivation>, DeriveError> {
        let database = self.database();
        let mut statement = database.prepare_cached(&format!("{SELECT} {what}"))?;
        let rows = statement.query_map(by, derivation)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Overwrites what the last transaction left in the rollback journal.
    fn wipe_journal(&self, database: &MutexGuard<'_, Connection>) -> Result<(), DeriveError> {
        database.execute_batch("BEGIN EXCLUSIVE")?;
        let wiped = overwrite(&self.0.journal);
        database.execute_batch("ROLLBACK")?;
        Ok(wiped?)
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn derivation(row: &Row<'_>) -> rusqlite::Result<Derivation> {
    let owner: String = row.get(5)?;
    let unreadable = || rusqlite::Error::InvalidColumnType(5, "owner".into(), rusqlite::types::Type::Text);
    let account = || owner.parse::<Address>().map_err(|_| unreadable());
    let lineage = row.get::<_, Option<[u8; 32]>>(7)?.zip(row.get::<_, Option<[u8; 32]>>(8)?);
    Ok(Derivation {
        id: row.get(0)?,
        rule: row.get(1)?,
        parent: uid(row, 2)?,
        version: row.get(3)?,
        derived: uid(row, 4)?,
        owner: match row.get::<_, i64>(6)? {
            0 => Owner::Custody,
            1 => Owner::Research(account()?),
            2 => Owner::Elsewhere(account()?),
            _ => return Err(unreadable()),
        },
        lineage: lineage.map(|(parent, salt)| Lineage { parent: B256::from(parent), salt: B256::from(salt) }),
        storing: row.get(9)?,
        ended: row.get(10)?,
        words: row.get(11)?,
    })
}

/// A UID, if the column holds one.
fn uid(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Uid>> {
    Ok(row.get::<_, Option<String>>(column)?.and_then(|text| Uid::new(&text).ok()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn begin(store: &Derived, owner: Owner, salt: u8) -> Derivation {
        let objects = MadeObjects::from([(of("2.25.1"), [1; 32])]);
        let lineage = Some(Lineage { parent: B256::repeat_byte(7), salt: B256::repeat_byte(salt) });
        let (parent, derived) = (of("1.2.3.987654321"), of("2.25.9"));
        store.begin(&Begun { rule: "heart", parent, derived, owner, lineage, objects: &objects }).unwrap()
    }

    #[test]
    fn what_was_begun_is_unfinished_until_it_is_finished_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Derived::open(dir.path()).unwrap();
        assert!(!store.knows(&of("2.25.9")));
        begin(&store, Owner::Research(Address::repeat_byte(3)), 5);
        drop(store);
        let store = Derived::open(dir.path()).unwrap();
        assert!(store.is_storing(&of("2.25.9")));
        // Once more, with other settings: whose it is does not change.
        let again = begin(&store, Owner::Custody, 6);
        assert_eq!(again.owner(), Owner::Research(Address::repeat_byte(3)));
        assert_eq!(again.lineage().unwrap().salt, B256::repeat_byte(5));
        store.finish(&again, 2).unwrap();
        let known = store.of_derived(&of("2.25.9")).unwrap().unwrap();
        assert!(!known.is_storing() && !store.is_storing(&of("2.25.9")) && known.version() == 2);
        assert_eq!(store.objects(&known).unwrap().len(), 1);
        assert!(store.of_derived(&of("1.2.3.987654321")).unwrap().is_none(), "a parent is nothing derived");
        // A late object is refused; what was derived stays.
        store.refuse("heart", &of("1.2.3.987654321"), 3, "text in the pixels").unwrap();
        let known = store.of_derived(&of("2.25.9")).unwrap().unwrap();
        assert_eq!((known.refusal(), known.version(), known.is_storing()), ("text in the pixels", 3, false));
    }

    #[test]
    fn nothing_leads_back_to_an_erased_parent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Derived::open(dir.path()).unwrap();
        let parent = of("1.2.3.987654321");
        store.add_candidate(&parent).unwrap();
        store.finish(&begin(&store, Owner::Custody, 0xA7), 1).unwrap();
        store.refuse("lung", &parent, 1, "no").unwrap();
        store.forget_parent(&parent).unwrap();
        let known = store.all().unwrap();
        assert_eq!(known.len(), 1, "what was refused is of no use any more");
        assert!(known[0].parent().is_none() && known[0].lineage().is_none() && store.knows(&of("2.25.9")));
        for file in ["derived.sqlite", "derived.sqlite-journal"] {
            let bytes = fs::read(dir.path().join(file)).unwrap();
            for secret in [parent.as_str().as_bytes(), &[0xA7; 32]] {
                assert!(!bytes.windows(secret.len()).any(|run| run == secret), "{file} leads back");
            }
        }
    }

    #[test]
    fn what_was_erased_is_remembered_as_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Derived::open(dir.path()).unwrap();
        begin(&store, Owner::Custody, 1);
        store.end(&of("2.25.9")).unwrap();
        let known = Derived::open(dir.path()).unwrap().of_derived(&of("2.25.9")).unwrap().unwrap();
        assert!(known.is_ended() && !known.is_storing() && known.lineage().is_none());
        assert!(store.objects(&known).unwrap().is_empty());
    }
}
