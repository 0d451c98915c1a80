//! What of the archive is on the ledger: planned versions, their images, and where the pieces are.
//!
//! A version is planned in one transaction and never changes afterwards; only its progress does. Must not know how
//! images are sealed or sent. Only what was received here is ever published.

use alloy::primitives::B256;
use contracts::PieceMode;
use dicom_scp::Uid;
use rusqlite::{OptionalExtension, Row, params};

use super::index::{as_i64, as_u64};
use super::{Archive, ArchiveError, now_ms};
use crate::ledger::{Located, PieceLocation};
use crate::payload::cid::Cid;
use crate::payload::manifest::Link;
use crate::payload::pieces::PieceMap;
use crate::study::ImageKind;

/// An image as it is planned, in the order of publishing.
#[derive(Debug, Clone)]
pub struct PlannedImage {
    /// Its name on the ledger.
    pub id: B256,
    /// What it carries.
    pub kind: ImageKind,
    /// Row of the object it carries, for [`ImageKind::Object`].
    pub instance: Option<i64>,
    /// UID of the instance, series or study it is about.
    pub subject: Uid,
    /// The series whose key seals it.
    pub series: Option<Uid>,
    /// Which of the study's session keys seals it.
    pub epoch: u32,
    /// Its pieces.
    pub map: PieceMap,
    /// The sealed bytes in IPFS, when its piece only names them.
    pub link: Option<Link>,
    /// For a preview, what it is.
    pub media_type: String,
    /// The plain bytes of what is not an object.
    pub plain: Option<Vec<u8>>,
}

/// One version of a study, planned.
#[derive(Debug, Clone)]
pub struct PlannedVersion {
    /// The study's name on the ledger.
    pub study_id: B256,
    /// From 1.
    pub version: u32,
    /// The encoded manifest.
    pub manifest: Vec<u8>,
    /// The image that carries it.
    pub manifest_image: B256,
    /// Every image that is new in this version, the manifest's included.
    pub images: Vec<PlannedImage>,
    /// Rows of the objects in it whose bytes stay here, so that they have no image.
    pub at_source: Vec<i64>,
}

/// An image that was planned.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name on the ledger.
    pub id: B256,
    /// What it carries.
    pub kind: ImageKind,
    /// UID of the instance, series or study it is about.
    pub subject: Uid,
    /// The series whose key seals it. None for the study's manifest, and for what was sealed before series had keys.
    pub series: Option<Uid>,
    /// Version of the manifest that brought it.
    pub version: u32,
    /// Which of the study's session keys seals it.
    pub epoch: u32,
    /// Its pieces.
    pub map: PieceMap,
    /// The sealed bytes in IPFS, when its piece only names them.
    pub link: Option<Link>,
    /// Where its pieces are kept on the ledger.
    pub mode: PieceMode,
    /// For a preview, what it is.
    pub media_type: String,
}

/// The state of a study on the ledger.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The study.
    pub study_uid: Uid,
    /// Its name on the ledger.
    pub study_id: B256,
    /// Version being published, or published last.
    pub version: u32,
    /// The manifest's image.
    pub manifest_image: B256,
    /// Whether the ledger has Define Study.
    pub defined: bool,
    /// Newest manifest version that the ledger names; 0 before the first.
    pub announced: u32,
    /// When publishing of this version began, in milliseconds since 1970.
    pub begun_ms: i64,
    /// When it could first be looked at.
    pub viewable_ms: Option<i64>,
    /// When it was final.
    pub final_ms: Option<i64>,
}

/// What was seen on the ledger.
#[derive(Debug, Clone, Default)]
pub struct SeenOnLedger {
    /// Define Study.
    pub defined: bool,
    /// Pieces.
    pub located: Vec<Located>,
    /// Images sealed with the planned root.
    pub sealed: Vec<B256>,
    /// A manifest version.
    pub announced: Option<u32>,
    /// Everything of a version.
    pub finished: Option<u32>,
}

/// An image, and its plain bytes when it is not an object.
pub type ImageAndPlain = (Image, Option<Vec<u8>>);

/// A clock that is put right by less than this only makes studies wait.
pub(super) const AHEAD_MS: i64 = 60_000;

/// Images seen sealed, and pieces seen stored: (image, number).
pub type SeenImages = (Vec<B256>, Vec<(B256, u32)>);

pub(super) const SELECT_IMAGE: &str = "SELECT id, kind, subject, version, epoch, pieces, piece_bytes, sealed_bytes, root, mode, media_type, series, cid, cid_bytes FROM image";
pub(super) const SELECT_PUBLICATION: &str =
    "SELECT st.uid, p.study_id, p.version, p.manifest_image, p.defined, p.announced, p.begun_ms,
   p.viewable_ms, p.final_ms FROM publication p JOIN study st ON p.study = st.id";

impl Archive {
    /// Studies whose quiet time is over and of which no version is on its way, the longest waiting first.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn studies_due(&self, limit: u32) -> Result<Vec<Uid>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT st.uid FROM outbox o JOIN study st ON o.study = st.id LEFT JOIN publication p ON p.study = st.id
                 WHERE (o.due_ms <= ?1 OR o.due_ms > ?3) AND (p.study IS NULL OR p.final_ms IS NOT NULL) ORDER BY o.due_ms LIMIT ?2",
            )?;
            // What is due later than anything that comes now was received by a clock that was ahead, and does not wait for that time.
            let now = now_ms();
            let latest = now.saturating_add(self.0.settle_ms).saturating_add(AHEAD_MS);
            let rows = statement.query_map(params![now, limit, latest], |row| uid(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// When the next study will be due, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn next_due_ms(&self) -> Result<Option<i64>, ArchiveError> {
        self.read(|db| {
            Ok(db.query_row(
                "SELECT min(o.due_ms) FROM outbox o LEFT JOIN publication p ON p.study = o.study
                 WHERE p.study IS NULL OR p.final_ms IS NOT NULL",
                [],
                |row| row.get(0),
            )?)
        })
    }

    /// Versions that are on their way, the oldest first.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn open_publications(&self) -> Result<Vec<Publication>, ArchiveError> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached(&format!("{SELECT_PUBLICATION} WHERE p.final_ms IS NULL ORDER BY p.begun_ms"))?;
            let rows = statement.query_map([], publication)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The state of a study on the ledger, if it has any.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn publication(&self, study_uid: &Uid) -> Result<Option<Publication>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT_PUBLICATION} WHERE st.uid = ?1"))?;
            Ok(statement.query_row([study_uid.as_str()], publication).optional()?)
        })
    }

    /// The encoded manifest of the newest planned version.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn manifest(&self, study_uid: &Uid) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT p.manifest FROM publication p JOIN study st ON p.study = st.id WHERE st.uid = ?1";
            Ok(db.query_row(sql, [study_uid.as_str()], |row| row.get(0)).optional()?)
        })
    }

    /// Records a planned version. From here on it will be published, whatever happens to the process.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn begin_version(
        &self,
        study_uid: &Uid,
        planned: PlannedVersion,
        mode: PieceMode,
    ) -> Result<(), ArchiveError> {
        let study_uid = study_uid.to_string();
        self.write(move |db| {
            let tx = db.transaction()?;
            let study: i64 = tx.query_row("SELECT id FROM study WHERE uid = ?1 AND origin = 0", [&study_uid], |row| row.get(0))?;
            for (position, image) in planned.images.iter().enumerate() {
                insert_image(&tx, study, &planned, position, image, mode)?;
            }
            for instance in &planned.at_source {
                tx.prepare_cached("UPDATE instance SET at_source = 1 WHERE id = ?1")?.execute([instance])?;
            }
            tx.execute(
                "INSERT INTO publication (study, version, study_id, manifest, manifest_image, begun_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (study) DO UPDATE SET version = excluded.version, manifest = excluded.manifest,
                   manifest_image = excluded.manifest_image, begun_ms = excluded.begun_ms, viewable_ms = NULL,
                   final_ms = NULL",
                params![
                    study,
                    planned.version,
                    planned.study_id.as_slice(),
                    planned.manifest,
                    planned.manifest_image.as_slice(),
                    now_ms()
                ],
            )?;
            // An object that came while the version was being made has no place yet and keeps the study in the outbox.
            tx.execute(
                "DELETE FROM outbox WHERE study = ?1 AND NOT EXISTS
                   (SELECT 1 FROM instance i JOIN series se ON i.series = se.id
                    WHERE se.study = ?1 AND i.superseded = 0 AND i.at_source = 0
                      AND NOT EXISTS (SELECT 1 FROM image WHERE instance = i.id))",
                [study],
            )?;
            Ok(tx.commit()?)
        })
        .await
    }

    /// The images that a version brought, in the order of publishing.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn images_of(&self, study_uid: &Uid, version: u32) -> Result<Vec<Image>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{SELECT_IMAGE} WHERE study = (SELECT id FROM study WHERE uid = ?1 AND origin = 0) AND version = ?2 ORDER BY position"
            ))?;
            let rows = statement.query_map(params![study_uid.as_str(), version], image)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The newest manifest of every series of a study in a version of the study, by their series.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn series_manifests(&self, study_uid: &Uid, version: u32) -> Result<Vec<Image>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{SELECT_IMAGE} WHERE study = (SELECT id FROM study WHERE uid = ?1 AND origin = 0) AND kind = ?3 AND version =
                   (SELECT max(n.version) FROM image n WHERE n.study = image.study AND n.kind = ?3 AND n.subject = image.subject
                      AND n.version <= ?2)"
            ))?;
            let rows = statement
                .query_map(params![study_uid.as_str(), version, ImageKind::SeriesManifest.tag()], image)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// An image by its name, with its plain bytes when it is not an object.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn image(&self, id: &B256) -> Result<Option<ImageAndPlain>, ArchiveError> {
        self.read(|db| {
            let sql = format!("{} WHERE id = ?1", SELECT_IMAGE.replace(" FROM", ", plain FROM"));
            let mut statement = db.prepare_cached(&sql)?;
            Ok(statement.query_row([id.as_slice()], |row| Ok((image(row)?, row.get(14)?))).optional()?)
        })
    }

    /// The image that carries an object, if one was planned or came with a grant.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn image_of_instance(&self, instance: i64) -> Result<Option<Image>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT_IMAGE} WHERE instance = ?1"))?;
            Ok(statement.query_row([instance], image).optional()?)
        })
    }

    /// Whether the bytes of an object are on no ledger, but at its source.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn is_at_source(&self, instance: i64) -> Result<bool, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT at_source FROM instance WHERE id = ?1")?;
            Ok(statement.query_row([instance], |row| row.get(0)).optional()?.unwrap_or(false))
        })
    }

    /// Where an image's pieces are, as far as they were seen on the ledger.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn locations(&self, id: &B256) -> Result<Vec<Located>, ArchiveError> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT number, block, position, entry FROM piece WHERE image = ?1 ORDER BY number")?;
            let rows = statement.query_map([id.as_slice()], |row| {
                let location =
                    PieceLocation { block: as_u64(row.get(1)?), transaction: as_u64(row.get(2)?), entry: row.get(3)? };
                Ok(Located { image: *id, index: row.get(0)?, location })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// How many pieces of a study were planned, and how many of them were seen on the ledger.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn piece_counts(&self, study_uid: &Uid) -> Result<(u64, u64), ArchiveError> {
        self.read(|db| {
            let sql =
                "SELECT coalesce(sum(i.pieces), 0), coalesce(sum((SELECT count(*) FROM piece WHERE image = i.id)), 0)
                       FROM image i WHERE i.study = (SELECT id FROM study WHERE uid = ?1 AND origin = 0)";
            let (planned, seen): (i64, i64) =
                db.query_row(sql, [study_uid.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((as_u64(planned), as_u64(seen)))
        })
    }

    /// The study with this name on the ledger.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn study_of_id(&self, study_id: &B256) -> Result<Option<Uid>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT st.uid FROM publication p JOIN study st ON p.study = st.id WHERE p.study_id = ?1";
            Ok(db.query_row(sql, [study_id.as_slice()], |row| uid(row, 0)).optional()?)
        })
    }

    /// Images of a study that were seen sealed, and the pieces of all that were seen stored: (image, piece number).
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn seen_images(&self, study_uid: &Uid) -> Result<SeenImages, ArchiveError> {
        self.read(|db| {
            let of_study = "study = (SELECT id FROM study WHERE uid = ?1 AND origin = 0)";
            let mut sealed = db.prepare_cached(&format!("SELECT id FROM image WHERE {of_study} AND sealed = 1"))?;
            let sealed = sealed.query_map([study_uid.as_str()], |row| Ok(B256::from(row.get::<_, [u8; 32]>(0)?)))?;
            let sealed = sealed.collect::<Result<_, _>>()?;
            let mut pieces = db.prepare_cached(&format!(
                "SELECT image, number FROM piece WHERE image IN (SELECT id FROM image WHERE {of_study})"
            ))?;
            let pieces = pieces
                .query_map([study_uid.as_str()], |row| Ok((B256::from(row.get::<_, [u8; 32]>(0)?), row.get(1)?)))?;
            Ok((sealed, pieces.collect::<Result<_, _>>()?))
        })
    }

    /// Records what was seen; durable when it returns. The same thing may be recorded twice.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn record_seen(&self, study_uid: &Uid, seen: SeenOnLedger) -> Result<(), ArchiveError> {
        let study_uid = study_uid.to_string();
        self.write(move |db| {
            let tx = db.transaction()?;
            record_images(&tx, &seen)?;
            // A time is kept from the first sight on, and only for the version that it is about.
            tx.prepare_cached(
                "UPDATE publication SET defined = defined OR ?2, announced = max(announced, coalesce(?3, 0)),
                   viewable_ms = CASE WHEN ?3 >= version THEN coalesce(viewable_ms, ?5) ELSE viewable_ms END,
                   final_ms = CASE WHEN ?4 >= version THEN coalesce(final_ms, ?5) ELSE final_ms END
                 WHERE study = (SELECT id FROM study WHERE uid = ?1 AND origin = 0)",
            )?
            .execute(params![study_uid, seen.defined, seen.announced, seen.finished, now_ms()])?;
            Ok(tx.commit()?)
        })
        .await
    }
}

fn record_images(tx: &rusqlite::Transaction<'_>, seen: &SeenOnLedger) -> Result<(), ArchiveError> {
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO piece (image, number, block, position, entry) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for Located { image, index, location } in &seen.located {
        let PieceLocation { block, transaction, entry } = *location;
        insert.execute(params![image.as_slice(), index, as_i64(block), as_i64(transaction), entry])?;
    }
    let mut update = tx.prepare_cached("UPDATE image SET sealed = 1 WHERE id = ?1")?;
    for image in &seen.sealed {
        update.execute([image.as_slice()])?;
    }
    Ok(())
}

fn insert_image(
    tx: &rusqlite::Transaction<'_>,
    study: i64,
    planned: &PlannedVersion,
    position: usize,
    image: &PlannedImage,
    mode: PieceMode,
) -> Result<(), ArchiveError> {
    tx.prepare_cached(
        "INSERT INTO image (id, study, kind, instance, subject, version, position, epoch, pieces, piece_bytes,
           sealed_bytes, root, mode, media_type, plain, series, cid, cid_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
         -- The same content again, after it was replaced: its image stays as it is and carries the row that is current now.
         ON CONFLICT (id) DO UPDATE SET instance = excluded.instance",
    )?
    .execute(params![
        image.id.as_slice(),
        study,
        image.kind.tag(),
        image.instance,
        image.subject.as_str(),
        planned.version,
        as_i64(position as u64),
        image.epoch,
        image.map.pieces,
        image.map.piece_bytes,
        as_i64(image.map.sealed_bytes),
        image.map.root.as_slice(),
        mode_number(mode),
        image.media_type,
        image.plain,
        image.series.as_ref().map(Uid::as_str),
        image.link.map(|link| link.cid.to_bytes()),
        image.link.map(|link| as_i64(link.sealed_bytes)),
    ])?;
    Ok(())
}

pub(super) fn publication(row: &Row<'_>) -> rusqlite::Result<Publication> {
    Ok(Publication {
        study_uid: uid(row, 0)?,
        study_id: B256::from(row.get::<_, [u8; 32]>(1)?),
        version: row.get(2)?,
        manifest_image: B256::from(row.get::<_, [u8; 32]>(3)?),
        defined: row.get(4)?,
        announced: row.get(5)?,
        begun_ms: row.get(6)?,
        viewable_ms: row.get(7)?,
        final_ms: row.get(8)?,
    })
}

pub(super) fn image(row: &Row<'_>) -> rusqlite::Result<Image> {
    let kind: u8 = row.get(1)?;
    let mode: i64 = row.get(9)?;
    let unknown = |column| rusqlite::Error::IntegralValueOutOfRange(column, 0);
    Ok(Image {
        id: B256::from(row.get::<_, [u8; 32]>(0)?),
        kind: ImageKind::ALL.into_iter().find(|k| k.tag() == kind).ok_or_else(|| unknown(1))?,
        subject: uid(row, 2)?,
        series: row.get::<_, Option<String>>(11)?.map(|_| uid(row, 11)).transpose()?,
        version: row.get(3)?,
        epoch: row.get(4)?,
        map: PieceMap {
            pieces: row.get(5)?,
            piece_bytes: row.get(6)?,
            sealed_bytes: as_u64(row.get(7)?),
            root: B256::from(row.get::<_, [u8; 32]>(8)?),
        },
        link: link(row, 12)?,
        mode: PieceMode::ALL.into_iter().find(|m| mode_number(*m) == mode).ok_or_else(|| unknown(9))?,
        media_type: row.get(10)?,
    })
}

/// The CID and, in the next column, the length of the file that it names.
pub(super) fn link(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Link>> {
    let Some(bytes) = row.get::<_, Option<Vec<u8>>>(column)? else { return Ok(None) };
    let cid = cid(&bytes, column)?;
    Ok(Some(Link { cid, sealed_bytes: as_u64(row.get(column + 1)?) }))
}

/// A CID in a column.
pub(super) fn cid(bytes: &[u8], column: usize) -> rusqlite::Result<Cid> {
    let wrong = |e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(e));
    Cid::from_bytes(bytes).map_err(wrong)
}

pub(super) fn mode_number(mode: PieceMode) -> i64 {
    match mode {
        PieceMode::Calldata => 1,
        PieceMode::Log => 2,
        PieceMode::Code => 3,
        PieceMode::Storage => 4,
    }
}

pub(super) fn uid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uid> {
    let text: String = row.get(column)?;
    Uid::new(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}
