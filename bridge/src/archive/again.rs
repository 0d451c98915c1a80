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

/// Names of images on the ledger.
type Names = Vec<[u8; 32]>;

/// An image of the newest version of a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// Its name on the ledger.
    pub image: B256,
    /// Largest piece of it.
    pub piece_bytes: u32,
    /// For an object: whether it is what the study has under that UID today. Another one, or another study's, may have taken its place since.
    pub is_current: bool,
}

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

    /// What the newest version of a study consists of on a ledger, in the order of publishing.
    ///
    /// # Errors
    /// [`ArchiveError::Corrupt`] when the index lacks some of it.
    pub fn needed_images(&self, publication: &Publication) -> Result<Vec<Needed>, ArchiveError> {
        let uid = publication.study_uid.to_string();
        self.read(|db| {
            let tx = db.transaction()?;
            let sql =
                "SELECT p.study, p.manifest FROM publication p JOIN study st ON st.id = p.study WHERE st.uid = ?1";
            let (study, manifest): (i64, Vec<u8>) = tx.query_row(sql, [&uid], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let needed = needed(&tx, study, &manifest, publication.manifest_image)?;
            let (kept, _) = split(&tx, study, &needed)?;
            let mut current = tx.prepare_cached(
                "SELECT i.piece_bytes, i.kind <> ?2 OR EXISTS
                   (SELECT 1 FROM instance o JOIN series se ON se.id = o.series
                    WHERE o.id = i.instance AND o.superseded = 0 AND se.study = i.study)
                 FROM image i WHERE i.id = ?1",
            )?;
            let of = |id: [u8; 32]| {
                let row = current.query_row(params![id, ImageKind::Object.tag()], |row| Ok((row.get(0)?, row.get(1)?)));
                let (piece_bytes, is_current) = row?;
                Ok(Needed { image: id.into(), piece_bytes, is_current })
            };
            kept.into_iter().map(of).collect()
        })
    }

    /// Whether a study has objects that no planned version has.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn is_in_outbox(&self, study_uid: &Uid) -> Result<bool, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT EXISTS (SELECT 1 FROM outbox o JOIN study st ON st.id = o.study WHERE st.uid = ?1)";
            Ok(db.query_row(sql, [study_uid.as_str()], |row| row.get(0))?)
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
    manifest: &[u8],
    manifest_image: B256,
) -> Result<HashSet<B256>, ArchiveError> {
    let manifest = Manifest::decode(manifest).map_err(|e| ArchiveError::Corrupt(format!("a manifest: {e}")))?;
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

/// Makes the images of a study what its newest version brings.
fn plan_again(
    tx: &Transaction<'_>,
    study: i64,
    version: u32,
    needed: &HashSet<B256>,
    mode: PieceMode,
) -> Result<(), ArchiveError> {
    let (kept, gone) = split(tx, study, needed)?;
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

/// Images of a study, those that are needed in the order of publishing, what is viewable first, and the others.
fn split(tx: &Transaction<'_>, study: i64, needed: &HashSet<B256>) -> Result<(Names, Names), ArchiveError> {
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
    Ok((kept, gone))
}
