//! Messages that were answered, so that none is answered twice: account and message id, until nobody would take the message any more.
//!
//! A database of its own, durable before the answer begins, so that it holds after a restart and a power cut too. The signature is not looked at:
//! whoever turns (r, s) into (r, n−s) has the same message. Must not know messages or who may have what.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use rusqlite::{Connection, params};

/// The database, in the data directory.
pub const DATABASE: &str = "iti43.sqlite";
/// Messages remembered. Only answered requests are, and each for a quarter of an hour at most.
const REMEMBERED_MAX: i64 = 1_000_000;

const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS message (
  account BLOB NOT NULL,
  id TEXT NOT NULL,
  until_ms INTEGER NOT NULL,   -- since 1970; after that the message is too old by its own words
  PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_until ON message (until_ms);
PRAGMA user_version = 1;
COMMIT;";

/// Why the memory of messages cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The database failed.
    #[error("the database of answered messages")]
    Database(#[from] rusqlite::Error),
    /// Its file cannot be made.
    #[error("the file of answered messages")]
    File(#[from] std::io::Error),
    /// It was written by another version.
    #[error("the database of answered messages has format {0}, this program knows 1")]
    Version(i64),
}

/// What became of a message that was to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the first of its account with this id.
    New,
    /// It is not.
    Known,
    /// Nothing more can be remembered now.
    Full,
}

/// The messages. Cheap to clone.
#[derive(Clone)]
pub(super) struct Replays(Arc<Mutex<Connection>>);

impl Replays {
    pub(super) fn open(path: &Path) -> Result<Self, ReplayError> {
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let database = Connection::open(path)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "FULL")?;
        match database.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => database.execute_batch(SCHEMA)?,
            1 => {}
            other => return Err(ReplayError::Version(other)),
        }
        Ok(Self(Arc::new(Mutex::new(database))))
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message was answered.
    pub(super) fn knows(&self, account: Address, id: &str) -> Result<bool, ReplayError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM message WHERE account = ?1 AND id = ?2)";
        Ok(self.database().prepare_cached(sql)?.query_row(params![account.as_slice(), id], |row| row.get(0))?)
    }

    /// Remembers a message, durably, if it is new: of many at once exactly one is.
    pub(super) fn take(&self, account: Address, id: &str, until_ms: i64, now_ms: i64) -> Result<Taken, ReplayError> {
        let mut database = self.database();
        let work = database.transaction()?;
        work.prepare_cached("DELETE FROM message WHERE until_ms < ?1")?.execute([now_ms])?;
        let count: i64 = work.prepare_cached("SELECT count(*) FROM message")?.query_row([], |row| row.get(0))?;
        let sql = "INSERT OR IGNORE INTO message (account, id, until_ms) VALUES (?1, ?2, ?3)";
        let taken = if count >= REMEMBERED_MAX {
            Taken::Full
        } else {
            match work.prepare_cached(sql)?.execute(params![account.as_slice(), id, until_ms])? {
                1 => Taken::New,
                _ => Taken::Known,
            }
        };
        work.commit()?;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_counts_once_until_it_is_too_old_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        let (one, other) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let replays = Replays::open(&path).unwrap();
        assert!(!replays.knows(one, "m").unwrap());
        assert_eq!(replays.take(one, "m", 100, 0).unwrap(), Taken::New);
        assert_eq!(replays.take(one, "m", 900, 50).unwrap(), Taken::Known);
        assert_eq!(replays.take(other, "m", 100, 50).unwrap(), Taken::New);
        drop(replays);
        let replays = Replays::open(&path).unwrap();
        assert!(replays.knows(one, "m").unwrap());
        assert_eq!(replays.take(one, "m", 100, 100).unwrap(), Taken::Known);
        assert_eq!(replays.take(one, "m", 200, 101).unwrap(), Taken::New, "it was forgotten in its time");
    }
}
