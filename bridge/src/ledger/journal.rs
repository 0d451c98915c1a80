//! The durable memory of transactions in flight: one SQLite file with `synchronous=FULL`. A transaction is in the journal before
//! any node sees it, so after a crash the same bytes are sent again instead of a second transaction. Where a fee was raised it also holds the
//! hashes of what was offered before, any of which may have got into a block. It must not know what the transactions say.
//!
//! Order of writes: `append` returns after the fsync of its whole batch; then the bytes may be offered to a node. `settle` removes
//! what is final; when that is lost in a crash, the record comes back, is found on chain again and is removed again.

use super::slots::Record;
use alloy::primitives::{Address, B256, Bytes};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use thiserror::Error;

/// Why the journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file is of another chain or key: the operator gave the wrong data directory or the chain was set up anew.
    #[error(
        "the journal belongs to {kept}, but this ledger is {given}; `pacs-bridge ledger promote` takes a site from one ledger to another"
    )]
    OtherOwner {
        /// What the journal was opened for first.
        kept: String,
        /// What it was opened for now.
        given: String,
    },
    /// Another process has the journal open. Two senders for one key would spoil each other's nonces.
    #[error("the journal is in use: is another bridge running on this data directory?")]
    InUse,
    /// Reading or writing failed. Nothing is assumed about what reached the disk until the journal is loaded again.
    #[error("journal storage failed")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<rusqlite::Error> for JournalError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::InUse,
            _ => Self::Storage(Box::new(e)),
        }
    }
}

/// What a journal held when it was loaded.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Transactions that are not known to be final, by nonce.
    pub records: Vec<Record>,
    /// One more than the highest nonce ever appended.
    pub next: u64,
}

/// Durable storage of records. After a failed call nothing else may be called before `load`.
pub trait Journal: Send + 'static {
    /// Reads everything, from the storage and not from memory.
    fn load(&mut self) -> impl Future<Output = Result<Loaded, JournalError>> + Send;
    /// Adds or replaces records; durable when it returns.
    fn append(&mut self, records: Vec<Record>) -> impl Future<Output = Result<(), JournalError>> + Send;
    /// Forgets records. Need not be durable when it returns.
    fn settle(&mut self, nonces: Vec<u64>) -> impl Future<Output = Result<(), JournalError>> + Send;
}

/// Whose transactions a journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Hash of block 0: tells two chains with one id apart.
    pub genesis: B256,
    /// The account.
    pub account: Address,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "account {} on chain {} with genesis {}", self.account, self.chain_id, self.genesis)
    }
}

/// The journal file.
#[derive(Debug)]
pub struct SqliteJournal {
    path: PathBuf,
    owner: Owner,
    connection: Option<Arc<Mutex<Connection>>>,
}

impl SqliteJournal {
    /// A journal at `path`, created when absent. The file is opened by `load`.
    pub fn new(path: impl AsRef<Path>, owner: Owner) -> Self {
        Self { path: path.as_ref().to_owned(), owner, connection: None }
    }

    async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let not_loaded = || JournalError::Storage("used before it was loaded".into());
        let connection = self.connection.clone().ok_or_else(not_loaded)?;
        let done = tokio::task::spawn_blocking(move || {
            let mut guard = connection.lock().map_err(|_| JournalError::Storage("a writer panicked".into()))?;
            work(&mut guard)
        });
        let result = done.await.map_err(|e| JournalError::Storage(Box::new(e)))?;
        if result.is_err() {
            self.connection = None;
        }
        result
    }
}

impl Journal for SqliteJournal {
    async fn load(&mut self) -> Result<Loaded, JournalError> {
        self.connection = None;
        let (path, owner) = (self.path.clone(), self.owner);
        let opened = tokio::task::spawn_blocking(move || open(&path, &owner));
        let connection = opened.await.map_err(|e| JournalError::Storage(Box::new(e)))??;
        self.connection = Some(Arc::new(Mutex::new(connection)));
        self.run(|c| read_all(c)).await
    }

    async fn append(&mut self, records: Vec<Record>) -> Result<(), JournalError> {
        self.run(move |c| write_records(c, &records)).await
    }

    async fn settle(&mut self, nonces: Vec<u64>) -> Result<(), JournalError> {
        self.run(move |c| remove_records(c, &nonces)).await
    }
}

fn open(path: &Path, owner: &Owner) -> Result<Connection, JournalError> {
    let connection = Connection::open(path)?;
    // Taken with the first write below and held until the connection is closed: a key has one sender.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS journal_owner (one INTEGER PRIMARY KEY CHECK (one = 1), owner TEXT NOT NULL,
             next INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS in_flight (nonce INTEGER PRIMARY KEY, hash BLOB NOT NULL, call BLOB NOT NULL,
             raw BLOB NOT NULL);
         -- Hashes of calls in flight for lower fees than now.
         CREATE TABLE IF NOT EXISTS overtaken (nonce INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
             PRIMARY KEY (nonce, position));",
    )?;
    let given = owner.to_string();
    let kept: Option<String> =
        connection.query_row("SELECT owner FROM journal_owner", [], |row| row.get(0)).optional()?;
    match kept {
        Some(kept) if kept != given => return Err(JournalError::OtherOwner { kept, given }),
        Some(_) => drop(connection.execute("UPDATE journal_owner SET next = next", [])?),
        None => {
            connection.execute("INSERT INTO journal_owner (one, owner, next) VALUES (1, ?1, 0)", params![given])?;
        }
    }
    Ok(connection)
}

fn read_all(connection: &Connection) -> Result<Loaded, JournalError> {
    let next: i64 = connection.query_row("SELECT next FROM journal_owner", [], |row| row.get(0))?;
    let mut query = connection.prepare("SELECT nonce, hash, call, raw FROM in_flight ORDER BY nonce")?;
    let rows = query.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?, row.get::<_, [u8; 32]>(2)?, row.get::<_, Vec<u8>>(3)?))
    })?;
    let mut records = Vec::new();
    for row in rows {
        let (nonce, hash, call, raw) = row?;
        let raw = Bytes::from(raw);
        if alloy::primitives::keccak256(&raw) != hash {
            return Err(JournalError::Storage(format!("the record of nonce {nonce} is damaged").into()));
        }
        let mut query = connection.prepare_cached("SELECT hash FROM overtaken WHERE nonce = ?1 ORDER BY position")?;
        let earlier = query.query_map([nonce], |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)))?;
        let earlier = earlier.collect::<Result<_, _>>()?;
        records.push(Record { nonce: nonce.cast_unsigned(), hash: hash.into(), call: call.into(), raw, earlier });
    }
    Ok(Loaded { records, next: next.cast_unsigned() })
}

fn write_records(connection: &mut Connection, records: &[Record]) -> Result<(), JournalError> {
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction
            .prepare_cached("INSERT OR REPLACE INTO in_flight (nonce, hash, call, raw) VALUES (?1, ?2, ?3, ?4)")?;
        let mut forget = transaction.prepare_cached("DELETE FROM overtaken WHERE nonce = ?1")?;
        let mut overtaken =
            transaction.prepare_cached("INSERT INTO overtaken (nonce, position, hash) VALUES (?1, ?2, ?3)")?;
        for r in records {
            insert.execute(params![r.nonce.cast_signed(), &r.hash[..], &r.call[..], &r.raw[..]])?;
            forget.execute([r.nonce.cast_signed()])?;
            for (position, hash) in (0_i64..).zip(&r.earlier) {
                overtaken.execute(params![r.nonce.cast_signed(), position, &hash[..]])?;
            }
        }
        if let Some(last) = records.iter().map(|r| r.nonce).max() {
            let next = (last + 1).cast_signed();
            transaction.execute("UPDATE journal_owner SET next = max(next, ?1)", params![next])?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn remove_records(connection: &mut Connection, nonces: &[u64]) -> Result<(), JournalError> {
    let transaction = connection.transaction()?;
    {
        for table in ["in_flight", "overtaken"] {
            let mut delete = transaction.prepare_cached(&format!("DELETE FROM {table} WHERE nonce = ?1"))?;
            for nonce in nonces {
                delete.execute(params![nonce.cast_signed()])?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::primitives::keccak256;

    fn record(nonce: u64, fill: u8) -> Record {
        let raw = Bytes::from(vec![fill; 1000]);
        Record { nonce, hash: keccak256(&raw), call: B256::with_last_byte(fill), raw, earlier: Vec::new() }
    }

    const OWNER: Owner = Owner { chain_id: 1, genesis: B256::ZERO, account: Address::ZERO };

    #[tokio::test]
    async fn what_was_appended_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut journal = SqliteJournal::new(&path, OWNER);
        assert_eq!(journal.load().await.unwrap(), Loaded::default());
        journal.append(vec![record(7, 1), record(8, 2), record(9, 3)]).await.unwrap();
        journal.settle(vec![7]).await.unwrap();
        journal.append(vec![record(8, 4)]).await.unwrap();
        drop(journal);
        let loaded = SqliteJournal::new(&path, OWNER).load().await.unwrap();
        assert_eq!(loaded, Loaded { records: vec![record(8, 4), record(9, 3)], next: 10 });
    }

    #[tokio::test]
    async fn what_was_offered_for_less_is_there_until_its_nonce_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut journal = SqliteJournal::new(&path, OWNER);
        journal.load().await.unwrap();
        journal.append(vec![record(7, 1), record(8, 2)]).await.unwrap();
        let dearer = Record { earlier: vec![record(7, 1).hash, record(7, 9).hash], ..record(7, 3) };
        journal.append(vec![dearer.clone()]).await.unwrap();
        drop(journal);
        let mut journal = SqliteJournal::new(&path, OWNER);
        assert_eq!(journal.load().await.unwrap().records, [dearer, record(8, 2)]);
        journal.settle(vec![7]).await.unwrap();
        journal.append(vec![record(7, 4)]).await.unwrap();
        drop(journal);
        let loaded = SqliteJournal::new(&path, OWNER).load().await.unwrap();
        assert_eq!(loaded.records, [record(7, 4), record(8, 2)]);
    }

    #[tokio::test]
    async fn the_next_nonce_outlives_its_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut journal = SqliteJournal::new(&path, OWNER);
        journal.load().await.unwrap();
        journal.append(vec![record(41, 1)]).await.unwrap();
        journal.settle(vec![41]).await.unwrap();
        assert_eq!(journal.load().await.unwrap(), Loaded { records: vec![], next: 42 });
    }

    #[tokio::test]
    async fn another_chain_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        SqliteJournal::new(&path, OWNER).load().await.unwrap();
        let other = Owner { genesis: B256::with_last_byte(1), ..OWNER };
        let error = SqliteJournal::new(&path, other).load().await.unwrap_err();
        assert!(matches!(error, JournalError::OtherOwner { .. }));
    }

    #[tokio::test]
    async fn a_journal_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut journal = SqliteJournal::new(&path, OWNER);
        journal.load().await.unwrap();
        let second = Connection::open(&path).unwrap();
        second.busy_timeout(std::time::Duration::ZERO).unwrap();
        let taken = second.execute("UPDATE journal_owner SET next = 9", []).unwrap_err();
        assert!(matches!(JournalError::from(taken), JournalError::InUse));
        journal.load().await.unwrap();
        drop((journal, second));
        assert_eq!(SqliteJournal::new(&path, OWNER).load().await.unwrap(), Loaded::default());
    }

    #[tokio::test]
    async fn a_damaged_record_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut journal = SqliteJournal::new(&path, OWNER);
        journal.load().await.unwrap();
        journal.append(vec![record(0, 1)]).await.unwrap();
        drop(journal);
        Connection::open(&path).unwrap().execute("UPDATE in_flight SET raw = x'00'", []).unwrap();
        let mut journal = SqliteJournal::new(&path, OWNER);
        assert!(matches!(journal.load().await, Err(JournalError::Storage(_))));
    }
}
