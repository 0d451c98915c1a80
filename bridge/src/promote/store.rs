//! The words that are left to be said, in a file of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::B256;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Left, Word, WordsError};

/// Database in the data directory.
const DATABASE: &str = "promotion.sqlite";

const SCHEMA: &str = "
BEGIN;
CREATE TABLE word (
  id INTEGER PRIMARY KEY,      -- in the order in which they are to be said
  study BLOB NOT NULL,         -- its name on the ledger
  body TEXT NOT NULL,
  trouble TEXT                 -- why it is not said yet
) STRICT;
CREATE INDEX word_study ON word (study);
-- Block 0 of the ledger on which they were said.
CREATE TABLE origin (genesis BLOB NOT NULL) STRICT;
PRAGMA user_version = 1;
COMMIT;";

/// What is to be said on this site's ledger. Cheap to clone.
#[derive(Clone)]
pub struct Words(Arc<Mutex<Connection>>);

impl Words {
    /// Opens the database in `data_dir`, making it if it is not there.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn open(data_dir: &Path) -> Result<Self, WordsError> {
        let database = Connection::open(data_dir.join(DATABASE))?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "FULL")?;
        match database.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => database.execute_batch(SCHEMA)?,
            1 => {}
            other => return Err(WordsError::Version(other)),
        }
        Ok(Self(Arc::new(Mutex::new(database))))
    }

    /// Block 0 of the ledger on which the words that are left were said.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn origin(&self) -> Result<Option<B256>, WordsError> {
        let row = self.database().query_row("SELECT genesis FROM origin", [], |row| row.get::<_, [u8; 32]>(0));
        Ok(row.optional()?.map(B256::from))
    }

    /// Puts words of the ledger with this block 0 in the place of all that are there; durable when this returns.
    ///
    /// # Errors
    /// [`WordsError`]; what was there stays then.
    pub fn replace(&self, genesis: B256, words: &[(B256, Word)]) -> Result<(), WordsError> {
        let mut database = self.database();
        let tx = database.transaction()?;
        tx.execute_batch("DELETE FROM word; DELETE FROM origin;")?;
        tx.execute("INSERT INTO origin (genesis) VALUES (?1)", [genesis.as_slice()])?;
        for (study, word) in words {
            let body = serde_json::to_string(word)?;
            tx.execute("INSERT INTO word (study, body) VALUES (?1, ?2)", params![study.as_slice(), body])?;
        }
        Ok(tx.commit()?)
    }

    /// The studies about which something is left to be said.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn studies(&self) -> Result<Vec<B256>, WordsError> {
        let database = self.database();
        let mut query = database.prepare_cached("SELECT study FROM word GROUP BY study ORDER BY min(id)")?;
        let rows = query.query_map([], |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The words about a study, in the order in which they are to be said.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn of(&self, study: B256) -> Result<Vec<(i64, Word)>, WordsError> {
        let database = self.database();
        let mut query = database.prepare_cached("SELECT id, body FROM word WHERE study = ?1 ORDER BY id")?;
        let rows = query.query_map([study.as_slice()], |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let rows = rows.collect::<Result<Vec<(i64, String)>, _>>()?;
        rows.into_iter().map(|(id, body)| Ok((id, serde_json::from_str(&body)?))).collect()
    }

    /// Whether nobody else may say anything about a study in its owner's name yet.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn wait(&self, study: B256) -> Result<bool, WordsError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM word WHERE study = ?1)";
        Ok(self.database().query_row(sql, [study.as_slice()], |row| row.get(0))?)
    }

    /// A word was said, or need not be.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn end(&self, id: i64) -> Result<(), WordsError> {
        self.database().execute("DELETE FROM word WHERE id = ?1", [id])?;
        Ok(())
    }

    /// Why a word is not said yet.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn trouble(&self, id: i64, why: &str) -> Result<(), WordsError> {
        self.database().execute("UPDATE word SET trouble = ?2 WHERE id = ?1", params![id, why])?;
        Ok(())
    }

    /// How many words are left, and why the first that is in trouble is.
    ///
    /// # Errors
    /// [`WordsError`].
    pub fn left(&self) -> Result<Left, WordsError> {
        let database = self.database();
        let words: i64 = database.query_row("SELECT count(*) FROM word", [], |row| row.get(0))?;
        let sql = "SELECT trouble FROM word WHERE trouble IS NOT NULL ORDER BY id LIMIT 1";
        Ok(Left { words: words.cast_unsigned(), trouble: database.query_row(sql, [], |row| row.get(0)).optional()? })
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
