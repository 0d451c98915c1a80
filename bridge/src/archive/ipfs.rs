//! Which sealed objects are in IPFS, which of them this site's node was seen to keep, and what it is to let go.
//!
//! Rows of images that go leave their CID behind in the same transaction (`ipfs.sql`), so that nothing stays pinned that nobody here
//! may have any more. Must not know how a node is asked.

use std::collections::HashSet;

use alloy::primitives::B256;
use dicom_scp::Uid;
use rusqlite::{Row, params};

use super::publication::{cid, link, uid};
use super::{Archive, ArchiveError};
use crate::payload::cid::Cid;
use crate::payload::manifest::Link;

/// Images looked at in one go.
const BATCH: u32 = 256;

/// An image whose sealed bytes are, or should be, kept by this site's IPFS node.
#[derive(Debug, Clone)]
pub struct InIpfs {
    /// The image.
    pub image: B256,
    /// Its study, when that was received here: then this site can seal it again.
    pub own: Option<Uid>,
    /// The bytes.
    pub link: Link,
}

const SELECT: &str =
    "SELECT image.id, st.uid, st.origin, image.cid, image.cid_bytes FROM image JOIN study st ON image.study = st.id";

impl Archive {
    /// Images that this site's node was not seen to keep and should: those of this site that are on the ledger, and, when `granted` says
    /// so, those of other sites that it may see. Not all at once, and in no order, so that those that cannot be had hold up no others.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn not_pinned(&self, granted: bool) -> Result<Vec<InIpfs>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{SELECT} WHERE image.cid IS NOT NULL AND image.pinned = 0
                   AND (st.origin = 0 AND image.sealed = 1 OR ?1 AND st.origin > 0 AND st.id IN (SELECT id FROM visible_study))
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

    /// Records whether the node was seen to keep images. Returns how many of them there still are.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn record_pinned(&self, images: Vec<B256>, pinned: bool) -> Result<usize, ArchiveError> {
        self.write(move |db| {
            let tx = db.transaction()?;
            let mut there = 0;
            for image in &images {
                let mut update = tx.prepare_cached("UPDATE image SET pinned = ?2 WHERE id = ?1")?;
                there += update.execute(params![image.as_slice(), pinned])?;
            }
            tx.commit()?;
            Ok(there)
        })
        .await
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
            self.record_pinned(lost, false).await?;
        }
        Ok(count)
    }

    /// What the node is to let go.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn ipfs_removals(&self) -> Result<Vec<Cid>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT cid FROM ipfs_removal LIMIT ?1")?;
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

fn in_ipfs(row: &Row<'_>) -> rusqlite::Result<InIpfs> {
    let own = if row.get::<_, i64>(2)? == 0 { Some(uid(row, 1)?) } else { None };
    let link = link(row, 3)?.ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(InIpfs { image: B256::from(row.get::<_, [u8; 32]>(0)?), own, link })
}
