//! The durable memory of blocks that a site saw on the chain and that left it again. Nodes do not list such blocks, so whoever wants to know later which
//! site's blocks were replaced must have written it down: one small SQLite file beside the journal, bounded in number, that another process can read while
//! the bridge runs. It must not know engines or signers: a header is kept whole, and says by itself who sealed it.
//!
//! A block is written down before the node is asked anything about it. Losing the last one in a crash costs a line in a report and nothing else.

use super::node::Node;
use alloy::consensus::Header;
use alloy::primitives::B256;
use alloy::rlp::{Decodable as _, Encodable as _};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;

/// Name of the file in a site's `ledger` directory.
pub const FORKS_FILE: &str = "forks.sqlite";
/// Blocks that are remembered; then the lowest are forgotten.
pub const LEFT_MAX: usize = 10_000;
/// Octets of a header that is kept, at most; Clique's with two hundred signers at an epoch's beginning has half of that.
const HEADER_BYTES_MAX: i64 = 8 << 10;
/// How long a reader waits for a writer, and the other way round.
const BUSY: Duration = Duration::from_secs(5);

/// Why a record of replaced blocks cannot be used: the operator must act.
#[derive(Debug, Error)]
pub enum ForksError {
    /// There is no such file, it is no record, or it cannot be read or written.
    #[error("record of replaced blocks {0}")]
    Storage(PathBuf, #[source] rusqlite::Error),
    /// It was begun on another chain.
    #[error("record of replaced blocks {path} is of the chain with genesis {kept}, and this one has {given}")]
    OtherChain {
        /// The file.
        path: PathBuf,
        /// Hash of block 0 with which it was begun.
        kept: B256,
        /// Hash of block 0 of now.
        given: B256,
    },
}

/// A block that left the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Blocks from it to the newest that stood on it, itself included: what counted as its confirmations.
    pub depth: u64,
    /// Its header; none if no node had it any more when it was asked.
    pub header: Option<Header>,
}

impl Left {
    /// Whether its header, if it is known, is of the height that is claimed: else a block that stands could be shown at another height, where another one does.
    #[must_use]
    pub fn is_of_its_height(&self) -> bool {
        self.header.as_ref().is_none_or(|header| header.number == self.number)
    }
}

/// What one site saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forks {
    /// Hash of block 0: tells two chains apart.
    pub genesis: B256,
    /// From this height on blocks were watched, whenever the bridge ran; none if it has not begun to.
    pub since: Option<u64>,
    /// Blocks that left, lowest first. One of them may have come back later.
    pub left: Vec<Left>,
}

impl Forks {
    /// Reads a record, also one that a running bridge writes.
    ///
    /// # Errors
    /// [`ForksError::Storage`].
    pub fn read(path: &Path) -> Result<Self, ForksError> {
        let read = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY)?;
            // It may be of somebody whom nobody trusts: no views that have no end, and nothing that is larger than a record is.
            connection.pragma_update(None, "trusted_schema", "OFF")?;
            let tables =
                "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('watched', 'left_chain')";
            if connection.query_row(tables, [], |row| row.get::<_, i64>(0))? != 2 {
                return Err(rusqlite::Error::InvalidQuery);
            }
            let (genesis, since) =
                connection.query_row("SELECT genesis, since FROM watched", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let (genesis, since): ([u8; 32], Option<i64>) = (genesis, since);
            let mut query = connection.prepare(
                "SELECT number, hash, depth, CASE WHEN length(header) <= ?1 THEN header END FROM left_chain
                   ORDER BY number DESC, hash DESC LIMIT ?2",
            )?;
            let most = i64::try_from(LEFT_MAX).unwrap_or(i64::MAX);
            let left = query.query_map(params![HEADER_BYTES_MAX, most], |row| {
                let (number, depth): (i64, i64) = (row.get(0)?, row.get(2)?);
                let (hash, header): ([u8; 32], Option<Vec<u8>>) = (row.get(1)?, row.get(3)?);
                let hash = B256::from(hash);
                let header = header.and_then(|octets| Header::decode(&mut octets.as_slice()).ok());
                // Whatever is in the file, a header counts for the block whose hash it has.
                let header = header.filter(|header| header.hash_slow() == hash);
                Ok(Left { number: number.cast_unsigned(), hash, depth: depth.cast_unsigned(), header })
            })?;
            let mut left: Vec<Left> = left.collect::<Result<_, _>>()?;
            left.retain(Left::is_of_its_height);
            left.reverse();
            Ok(Self { genesis: genesis.into(), since: since.map(i64::cast_unsigned), left })
        };
        read().map_err(|error| ForksError::Storage(path.to_owned(), error))
    }
}

/// The record of a site, for writing. Several writers of one process or another do not disturb each other.
#[derive(Debug)]
pub struct ForkLog {
    path: PathBuf,
    connection: Connection,
    most: usize,
}

impl ForkLog {
    /// Opens the record at `path`, which is made where it is missing, for the chain with this block 0.
    ///
    /// # Errors
    /// [`ForksError`].
    pub fn open(path: &Path, genesis: B256) -> Result<Self, ForksError> {
        let storage = |error| ForksError::Storage(path.to_owned(), error);
        let connection = Connection::open(path).map_err(storage)?;
        let prepare = || {
            connection.busy_timeout(BUSY)?;
            // Not WAL: whoever reads need not be able to write beside it.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS watched (one INTEGER PRIMARY KEY CHECK (one = 1), genesis BLOB NOT NULL,
                     since INTEGER);
                 CREATE TABLE IF NOT EXISTS left_chain (hash BLOB PRIMARY KEY, number INTEGER NOT NULL,
                     depth INTEGER NOT NULL, header BLOB);
                 CREATE INDEX IF NOT EXISTS left_chain_number ON left_chain (number);",
            )?;
            connection.query_row("SELECT genesis FROM watched", [], |row| row.get::<_, [u8; 32]>(0)).optional()
        };
        let kept = prepare().map_err(storage)?;
        if let Some(kept) = kept.map(B256::from).filter(|kept| *kept != genesis) {
            return Err(ForksError::OtherChain { path: path.to_owned(), kept, given: genesis });
        }
        let log = Self { path: path.to_owned(), connection, most: LEFT_MAX };
        if kept.is_none() {
            let insert = "INSERT OR IGNORE INTO watched (one, genesis) VALUES (1, ?1)";
            log.run(|c| c.execute(insert, [&genesis[..]]))?;
        }
        Ok(log)
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ForksError> {
        work(&self.connection).map_err(|error| ForksError::Storage(self.path.clone(), error))
    }

    /// The chain is watched from this height on. What was said first stays.
    ///
    /// # Errors
    /// [`ForksError::Storage`].
    pub fn begin(&self, number: u64) -> Result<(), ForksError> {
        self.run(|c| c.execute("UPDATE watched SET since = ?1 WHERE since IS NULL", [signed(number)]))?;
        Ok(())
    }

    /// Writes down a block that left. What is known of it stays, and the larger depth counts.
    ///
    /// # Errors
    /// [`ForksError::Storage`].
    pub fn add(&self, left: &Left) -> Result<(), ForksError> {
        let header = left.header.as_ref().map(|header| {
            let mut octets = Vec::new();
            header.encode(&mut octets);
            octets
        });
        let insert =
            "INSERT INTO left_chain (hash, number, depth, header) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (hash) DO UPDATE
             SET depth = max(depth, excluded.depth), header = coalesce(header, excluded.header)";
        let (number, depth) = (signed(left.number), signed(left.depth));
        self.run(|c| c.execute(insert, params![&left.hash[..], number, depth, header]))?;
        self.forget_lowest()
    }

    /// It stands on the chain after all.
    ///
    /// # Errors
    /// [`ForksError::Storage`].
    pub fn remove(&self, hash: B256) -> Result<(), ForksError> {
        self.run(|c| c.execute("DELETE FROM left_chain WHERE hash = ?1", params![&hash[..]]))?;
        Ok(())
    }

    /// Keeps the file small. Up to what is forgotten nothing is known any more.
    fn forget_lowest(&self) -> Result<(), ForksError> {
        let beyond = "SELECT number FROM left_chain ORDER BY number DESC LIMIT 1 OFFSET ?1";
        let most = i64::try_from(self.most).unwrap_or(i64::MAX);
        self.run(|c| {
            let Some(number) = c.query_row(beyond, [most], |row| row.get::<_, i64>(0)).optional()? else {
                return Ok(());
            };
            let together = c.unchecked_transaction()?;
            together.execute("DELETE FROM left_chain WHERE number <= ?1", [number])?;
            together.execute("UPDATE watched SET since = max(since, ?1)", [number.saturating_add(1)])?;
            together.commit()
        })
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What the follower of the chain says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It follows the chain from this height on.
    Begin(u64),
    /// A block is on the branch no more, or may not be.
    Left {
        /// Its height.
        number: u64,
        /// Its hash.
        hash: B256,
        /// As [`Left::depth`].
        depth: u64,
    },
}

/// Writes down what is seen until nobody looks any more. A record that cannot be written is a warning and holds up nothing.
pub async fn keep(node: impl Node, log: ForkLog, mut seen: mpsc::UnboundedReceiver<Seen>) {
    let log = Arc::new(Mutex::new(log));
    while let Some(seen) = seen.recv().await {
        if let Err(error) = note(&node, &log, seen).await {
            tracing::warn!(error = crate::chain_of(&error), "a replaced block is not recorded");
        }
    }
}

async fn note(node: &impl Node, log: &Arc<Mutex<ForkLog>>, seen: Seen) -> Result<(), ForksError> {
    let (number, hash, depth) = match seen {
        Seen::Begin(number) => return write(log, move |log| log.begin(number)).await,
        Seen::Left { number, hash, depth } => (number, hash, depth),
    };
    write(log, move |log| log.add(&Left { number, hash, depth, header: None })).await?;
    if node.block_at(number).await.is_ok_and(|now| now.is_some_and(|now| now.hash == hash)) {
        return write(log, move |log| log.remove(hash)).await;
    }
    // It still has what it has just left; a node that took its place may not.
    match node.header(hash).await.map(|header| header.filter(|header| header.number == number)) {
        Ok(header @ Some(_)) => write(log, move |log| log.add(&Left { number, hash, depth, header })).await,
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Where waiting for a disk holds up nobody else.
async fn write(
    log: &Arc<Mutex<ForkLog>>,
    work: impl FnOnce(&ForkLog) -> Result<(), ForksError> + Send + 'static,
) -> Result<(), ForksError> {
    let log = log.clone();
    let done = tokio::task::spawn_blocking(move || work(&log.lock().unwrap_or_else(PoisonError::into_inner)));
    // It does not panic; when the program ends, it may not run any more.
    done.await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GENESIS: B256 = B256::repeat_byte(1);

    fn left(number: u64, depth: u64) -> Left {
        let header = Header { number, ..Header::default() };
        Left { number, hash: header.hash_slow(), depth, header: Some(header) }
    }

    #[test]
    fn what_left_is_there_after_reopening_and_while_somebody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FORKS_FILE);
        assert!(matches!(Forks::read(&path), Err(ForksError::Storage(..))), "nothing is made by reading");
        let log = ForkLog::open(&path, GENESIS).unwrap();
        log.begin(5).unwrap();
        let unknown = Left { header: None, ..left(7, 2) };
        log.add(&unknown).unwrap();
        assert_eq!(Forks::read(&path).unwrap(), Forks { genesis: GENESIS, since: Some(5), left: vec![unknown] });
        log.add(&left(7, 1)).unwrap();
        log.add(&left(6, 1)).unwrap();
        log.add(&left(8, 1)).unwrap();
        log.remove(left(8, 1).hash).unwrap();
        drop(log);
        let log = ForkLog::open(&path, GENESIS).unwrap();
        log.begin(9).unwrap();
        let kept = Forks::read(&path).unwrap();
        assert_eq!(
            (kept.since, kept.left),
            (Some(5), vec![left(6, 1), left(7, 2)]),
            "the larger depth, and the first height"
        );
        assert!(matches!(ForkLog::open(&path, B256::ZERO), Err(ForksError::OtherChain { .. })));
    }

    #[test]
    fn a_record_of_somebody_else_shows_no_block_at_another_height_and_does_not_run_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FORKS_FILE);
        let log = ForkLog::open(&path, GENESIS).unwrap();
        log.begin(5).unwrap();
        log.add(&Left { number: 9, ..left(8, 1) }).unwrap();
        log.add(&left(7, 1)).unwrap();
        assert_eq!(Forks::read(&path).unwrap().left, [left(7, 1)]);
        let endless = "DROP TABLE left_chain; CREATE VIEW left_chain AS WITH RECURSIVE n(number) AS
            (SELECT 1 UNION ALL SELECT number + 1 FROM n) SELECT number, zeroblob(32) AS hash, 1 AS depth, NULL AS header FROM n";
        log.run(|c| c.execute_batch(endless)).unwrap();
        assert!(matches!(Forks::read(&path), Err(ForksError::Storage(..))));
    }

    #[test]
    fn the_lowest_are_forgotten_and_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FORKS_FILE);
        let log = ForkLog { most: 3, ..ForkLog::open(&path, GENESIS).unwrap() };
        log.begin(1).unwrap();
        (1..=5).for_each(|number| log.add(&left(number, 1)).unwrap());
        let kept = Forks::read(&path).unwrap();
        assert_eq!((kept.since, kept.left), (Some(3), vec![left(3, 1), left(4, 1), left(5, 1)]));
    }

    #[test]
    fn a_header_of_another_block_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FORKS_FILE);
        ForkLog::open(&path, GENESIS).unwrap().add(&Left { hash: B256::ZERO, ..left(7, 1) }).unwrap();
        let kept = Forks::read(&path).unwrap();
        assert_eq!(kept.left, [Left { hash: B256::ZERO, header: None, ..left(7, 1) }]);
        assert_eq!(kept.since, None, "nobody watches yet");
    }
}
