//! Which sealed objects are in IPFS, which of them this site's node was seen to keep, and what it is to let go.
//!
//! Rows of images that go leave their CID behind in the same transaction (`ipfs.sql`), so that nothing stays pinned that nobody here
//! may have any more. Must not know how a node is asked.

use std::collections::HashSet;

use alloy::primitives::B256;
use dicom_scp::Uid;
use rusqlite::{Row, Transaction, params};

use super::publication::{cid, link, uid};
use super::{Archive, ArchiveError};
use crate::payload::cid::Cid;
use crate::payload::manifest::Link;

/// Images looked at in one go.
const BATCH: u32 = 256;

/// Values of `image.pinned`: what the node has is something else; it keeps the bytes; and, within one transaction, they were just read back.
const UNSOUND: i64 = -1;
pub(super) const KEPT: i64 = 1;
pub(super) const PROVEN: i64 = 3;

/// An image whose sealed bytes are, or should be, kept by this site's IPFS node.
#[derive(Debug, Clone)]
pub struct InIpfs {
    /// The image.
    pub image: B256,
    /// Its study, when that was received here: then this site can seal it again.
    pub own: Option<Uid>,
    /// The bytes.
    pub link: Link,
    /// What the node has under that name was found to be something else.
    pub unsound: bool,
}

/// What the node was seen to do with an image's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It keeps them.
    Yes,
    /// What it has is something else, or not all of it.
    Unsound,
}

const SELECT: &str = "SELECT image.id, st.uid, st.origin, image.cid, image.cid_bytes, image.pinned FROM image JOIN study st ON image.study = st.id";

impl Archive {
    /// Images that this site's node was not seen to keep and should: those of this site that are on the ledger, and, when `granted` says
    /// so, those of other sites whose objects it may see. Not all at once, and in no order, so that those that cannot be had hold up no others.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn not_pinned(&self, granted: bool) -> Result<Vec<InIpfs>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{SELECT} WHERE image.cid IS NOT NULL AND image.pinned <= 0
                   AND (st.origin = 0 AND image.sealed = 1 OR ?1 AND st.origin IN
                     (SELECT f.id FROM foreign_study f WHERE f.mode = 2 AND f.hidden = 0 AND unixepoch() BETWEEN f.not_before AND f.not_after))
                 ORDER BY random() LIMIT ?2"
            ))?;
            let rows = statement.query_map(params![granted, BATCH], in_ipfs)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Images of a study received here whose objects are in IPFS and have a file here, as far as the ledger names them.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn in_ipfs(&self, study_uid: &Uid) -> Result<Vec<InIpfs>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{SELECT} JOIN instance i ON image.instance = i.id WHERE image.cid IS NOT NULL AND image.sealed = 1
                   AND st.uid = ?1 AND st.origin = 0 AND i.file IS NOT NULL ORDER BY image.position"
            ))?;
            let rows = statement.query_map([study_uid.as_str()], in_ipfs)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Records what the node was seen to do with an image's bytes. Whether there still is such an image.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn record_kept(&self, image: B256, kept: Kept) -> Result<bool, ArchiveError> {
        let number = match kept {
            Kept::Yes => KEPT,
            Kept::Unsound => UNSOUND,
        };
        let sql = "UPDATE image SET pinned = ?2 WHERE id = ?1";
        self.write(move |db| Ok(db.execute(sql, params![image.as_slice(), number])? == 1)).await
    }

    /// Whether what the node has of an image was found to be something else.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn is_unsound(&self, image: B256) -> Result<bool, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT 1 FROM image WHERE id = ?1 AND pinned = ?2")?;
            Ok(statement.exists(params![image.as_slice(), UNSOUND])?)
        })
    }

    /// The node is to let go what it was given under a name that nothing here bears.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn begin_ipfs_removal(&self, cid: Cid) -> Result<(), ArchiveError> {
        let sql =
            "INSERT OR IGNORE INTO ipfs_removal (cid) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM image WHERE cid = ?1)";
        self.write(move |db| Ok(db.execute(sql, [cid.to_bytes()]).map(drop)?)).await
    }

    /// Takes note of what the node keeps: what it was seen to keep and does not any more is to be put there again. Returns how many.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn compare_pins(&self, kept: HashSet<Cid>) -> Result<usize, ArchiveError> {
        let recorded: Vec<(B256, Cid)> = self.read(|db| {
            let mut statement = db.prepare_cached("SELECT id, cid FROM image WHERE cid IS NOT NULL AND pinned = 1")?;
            let rows = statement.query_map([], |row| {
                Ok((B256::from(row.get::<_, [u8; 32]>(0)?), cid(&row.get::<_, Vec<u8>>(1)?, 1)?))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let lost: Vec<B256> = recorded.into_iter().filter(|(_, cid)| !kept.contains(cid)).map(|(id, _)| id).collect();
        let count = lost.len();
        if count > 0 {
            self.write(move |db| {
                let tx = db.transaction()?;
                for image in &lost {
                    let mut update = tx.prepare_cached("UPDATE image SET pinned = 0 WHERE id = ?1 AND pinned = 1")?;
                    update.execute([image.as_slice()])?;
                }
                Ok(tx.commit()?)
            })
            .await?;
        }
        Ok(count)
    }

    /// What the node is to let go. Not all at once, and in no order.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn ipfs_removals(&self) -> Result<Vec<Cid>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT cid FROM ipfs_removal ORDER BY random() LIMIT ?1")?;
            let rows = statement.query_map([BATCH], |row| cid(&row.get::<_, Vec<u8>>(0)?, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The node has let something go.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn end_ipfs_removal(&self, cid: Cid) -> Result<(), ArchiveError> {
        let sql = "DELETE FROM ipfs_removal WHERE cid = ?1";
        self.write(move |db| Ok(db.execute(sql, [cid.to_bytes()]).map(drop)?)).await
    }
}

/// Changes what is recorded of an image.
pub(super) fn mark(tx: &Transaction<'_>, image: &B256, mark: i64) -> Result<(), ArchiveError> {
    tx.prepare_cached("UPDATE image SET pinned = ?2 WHERE id = ?1")?.execute(params![image.as_slice(), mark])?;
    Ok(())
}

fn in_ipfs(row: &Row<'_>) -> rusqlite::Result<InIpfs> {
    let own = if row.get::<_, i64>(2)? == 0 { Some(uid(row, 1)?) } else { None };
    let link = link(row, 3)?.ok_or(rusqlite::Error::InvalidQuery)?;
    let unsound = row.get::<_, i64>(5)? < 0;
    Ok(InIpfs { image: B256::from(row.get::<_, [u8; 32]>(0)?), own, link, unsound })
}
