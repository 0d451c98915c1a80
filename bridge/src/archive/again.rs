//! What of the studies received here was on one ledger goes onto another.
//!
//! Sealed bytes, names and the number of the newest version stay as they are: only what was seen is forgotten, and everything that the newest
//! manifest names becomes what that version brings. What older versions had besides stays on the ledger before.

use std::collections::HashSet;

use alloy::primitives::B256;
use contracts::PieceMode;
use dicom_scp::Uid;
use rusqlite::{Transaction, params};

use super::publication::{SELECT_PUBLICATION, mode_number, publication};
use super::{Archive, ArchiveError, Publication, now_ms};
use crate::payload::manifest::Manifest;
use crate::study::ImageKind;

impl Archive {
    /// The state on the ledger of every study of which a version was planned.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn publications(&self) -> Result<Vec<Publication>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT_PUBLICATION} ORDER BY st.id"))?;
            let rows = statement.query_map([], publication)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Studies of which an image that the newest version needs has larger pieces than `piece_bytes`.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn studies_with_larger_pieces(&self, piece_bytes: u32) -> Result<Vec<Uid>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT DISTINCT st.uid FROM image i JOIN publication p ON p.study = i.study JOIN study st ON st.id = i.study
                 WHERE i.piece_bytes > ?1 ORDER BY st.id",
            )?;
            let rows = statement.query_map([piece_bytes], |row| super::publication::uid(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Forgets what of the studies received here was seen on a ledger, so that the newest version of each is published again, its pieces
    /// kept as `mode` says. All or nothing; durable when this returns. Once more does no harm.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn publish_again(&self, mode: PieceMode) -> Result<(), ArchiveError> {
        self.write(move |db| {
            let tx = db.transaction()?;
            let studies: Vec<(i64, u32, Vec<u8>, [u8; 32])> = {
                let mut query = tx.prepare("SELECT study, version, manifest, manifest_image FROM publication")?;
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
                rows.collect::<Result<_, _>>()?
            };
            for (study, version, manifest, manifest_image) in studies {
                let manifest =
                    Manifest::decode(&manifest).map_err(|e| ArchiveError::Corrupt(format!("a manifest: {e}")))?;
                let needed = needed(&tx, study, &manifest, manifest_image.into())?;
                plan_again(&tx, study, version, &needed, mode)?;
            }
            // Those of other sites' studies too: they are looked for where these are defined then.
            tx.execute("DELETE FROM piece", [])?;
            tx.execute(
                "UPDATE publication SET defined = 0, announced = 0, begun_ms = ?1, viewable_ms = NULL, final_ms = NULL",
                [now_ms()],
            )?;
            Ok(tx.commit()?)
        })
        .await
    }
}

/// Images that the newest version of a study consists of.
fn needed(
    tx: &Transaction<'_>,
    study: i64,
    manifest: &Manifest,
    manifest_image: B256,
) -> Result<HashSet<B256>, ArchiveError> {
    let objects = manifest.objects.iter().filter_map(|object| object.map.is_some().then_some(object.image));
    let mut needed: HashSet<B256> = objects.chain(manifest.previews.iter().map(|preview| preview.image)).collect();
    needed.insert(manifest_image);
    let mut query = tx.prepare_cached(
        "SELECT id FROM image i WHERE study = ?1 AND kind = ?2 AND version =
           (SELECT max(version) FROM image n WHERE n.study = i.study AND n.kind = i.kind AND n.subject = i.subject)",
    )?;
    let of_series =
        query.query_map(params![study, ImageKind::SeriesManifest.tag()], |row| row.get::<_, [u8; 32]>(0))?;
    for image in of_series {
        needed.insert(image?.into());
    }
    Ok(needed)
}

/// Makes the images of a study what its newest version brings, in an order of publishing: what is viewable first.
fn plan_again(
    tx: &Transaction<'_>,
    study: i64,
    version: u32,
    needed: &HashSet<B256>,
    mode: PieceMode,
) -> Result<(), ArchiveError> {
    let known: Vec<[u8; 32]> = {
        let mut query = tx.prepare_cached(
            "SELECT id FROM image WHERE study = ?1 ORDER BY CASE kind WHEN ?2 THEN 2 WHEN ?3 THEN 1 ELSE 0 END, version, position",
        )?;
        let kinds = params![study, ImageKind::Object.tag(), ImageKind::Manifest.tag()];
        query.query_map(kinds, |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    let (kept, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(|id| needed.contains(&B256::from(*id)));
    if kept.len() != needed.len() {
        return Err(ArchiveError::Corrupt("a manifest names images that are not in the index".into()));
    }
    let mut again =
        tx.prepare_cached("UPDATE image SET version = ?2, position = ?3, mode = ?4, sealed = 0 WHERE id = ?1")?;
    for (position, id) in (0_i64..).zip(kept) {
        again.execute(params![id, version, position, mode_number(mode)])?;
    }
    let mut remove = tx.prepare_cached("DELETE FROM image WHERE id = ?1")?;
    for id in gone {
        remove.execute([id])?;
    }
    Ok(())
}
