//! Studies of other sites: known from their manifests before any object came, shown while their grant holds, gone when it does not.
//!
//! Their rows carry the number of the grant's row as `origin` and are kept apart from what was received here, so that taking a
//! study back takes nothing along that somebody stored here. They never enter the outbox. Must not know who decides, nor keys.

use std::collections::{HashMap, HashSet};

use alloy::primitives::{Address, B256};
use contracts::PieceMode;
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Encoding, ReadOptions, Tag, VR, read};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::attributes::Levels;
use super::index::{as_i64, as_u64, insert_study, series_row};
use super::publication::{image, mode_number};
use super::{Archive, ArchiveError, FileId, Image, Stored, now_ms};
use crate::payload::manifest::{Link, Manifest, ManifestObject, ManifestPreview};
use crate::payload::pieces::PieceMap;
use crate::study::ImageKind;

/// How much of a study of another site may be seen, less before more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignMode {
    /// That it exists, its headers and its previews.
    Previews,
    /// Its objects as well.
    Everything,
}

/// When a study of another site may be seen, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How much.
    pub mode: ForeignMode,
    /// Of what: zero for the whole study, else the salted hash of a series, as the ledger names it.
    pub series: B256,
    /// First second, since 1970.
    pub not_before: u64,
    /// Last second, since 1970.
    pub not_after: u64,
}

/// What is recorded of a study of another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignStudy {
    /// The origin of its rows.
    pub id: i64,
    /// Its name on the ledger.
    pub study_id: B256,
    /// Account of the site that published it.
    pub source: Address,
    /// When it may be seen, and how much of it.
    pub window: Window,
    /// Whether it is taken back, or not given yet.
    pub hidden: bool,
    /// Version of the study whose manifest was taken in; 0 before the first.
    pub version: u32,
}

/// A manifest of another site, checked against the ledger by who gives it.
#[derive(Debug, Clone)]
pub struct ForeignVersion {
    /// Version of the study. A manifest of one series is of the version in which that series changed last.
    pub version: u32,
    /// The manifest.
    pub manifest: Manifest,
    /// The image that carries it.
    pub image: B256,
    /// Pieces of that image.
    pub map: PieceMap,
    /// Where the site keeps its pieces.
    pub piece_mode: PieceMode,
}

const SELECT: &str =
    "SELECT id, study_id, source, mode, not_before, not_after, hidden, version, series FROM foreign_study";

impl Archive {
    /// Lets a study of another site be seen as `window` says; none of it is there before its manifest was taken in.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn show_foreign(&self, study_id: B256, source: Address, window: Window) -> Result<(), ArchiveError> {
        self.write(move |db| {
            db.execute(
                "INSERT INTO foreign_study (study_id, source, mode, hidden, not_before, not_after, series)
                 VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6)
                 ON CONFLICT (study_id) DO UPDATE SET source = excluded.source, mode = excluded.mode, hidden = 0,
                   not_before = excluded.not_before, not_after = excluded.not_after, series = excluded.series",
                params![
                    study_id.as_slice(),
                    source.as_slice(),
                    number(window.mode),
                    as_i64(window.not_before),
                    as_i64(window.not_after),
                    window.series.as_slice(),
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Hides a study of another site: from the moment this returns it is as if absent.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn hide_foreign(&self, study_id: B256) -> Result<(), ArchiveError> {
        self.write(move |db| {
            db.execute("UPDATE foreign_study SET hidden = 1 WHERE study_id = ?1", [study_id.as_slice()])?;
            Ok(())
        })
        .await
    }

    /// Every study of another site, hidden ones too.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn foreign_studies(&self) -> Result<Vec<ForeignStudy>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT} ORDER BY id"))?;
            let rows = statement.query_map([], foreign)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// What is recorded of one of them.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn foreign_study(&self, study_id: B256) -> Result<Option<ForeignStudy>, ArchiveError> {
        self.read(|db| {
            let sql = format!("{SELECT} WHERE study_id = ?1");
            Ok(db.prepare_cached(&sql)?.query_row([study_id.as_slice()], foreign).optional()?)
        })
    }

    /// What an object came with, if it came from another site and may be seen now.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn foreign_of(&self, stored: &Stored) -> Result<Option<ForeignStudy>, ArchiveError> {
        self.read(|db| {
            let sql = format!("{SELECT} WHERE id = ?1 AND hidden = 0 AND unixepoch() BETWEEN not_before AND not_after");
            Ok(db.prepare_cached(&sql)?.query_row([stored.origin], foreign).optional()?)
        })
    }

    /// The encoded manifest that an object of another site came with.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn foreign_manifest(&self, stored: &Stored) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT manifest FROM foreign_study WHERE id = ?1";
            Ok(db.prepare_cached(sql)?.query_row([stored.origin], |row| row.get(0)).optional()?.flatten())
        })
    }

    /// Takes a manifest in: rows for the study, its series and its objects, none of which has a file yet, and for the images that
    /// carry them. An older or the same version changes nothing; a newer one replaces what it no longer names. Returns whether
    /// something changed.
    ///
    /// # Errors
    /// [`ArchiveError::Foreign`] when the manifest cannot be taken in; nothing of it is then.
    pub async fn import_manifest(&self, study_id: B256, version: ForeignVersion) -> Result<bool, ArchiveError> {
        let levels = levels_of(&version.manifest)?;
        loop {
            let wanted: HashMap<(String, [u8; 32]), ()> = keys(&version.manifest);
            // Files go before their rows: a crash in between must not leave pixels that nobody knows of.
            let files =
                self.foreign_files(study_id, move |uid, sha256| !wanted.contains_key(&(uid.to_owned(), *sha256)))?;
            let removed = self.remove_files(files)?;
            let (version, levels) = (version.clone(), levels.clone());
            let done = self.write(move |db| import(db, study_id, &version, &levels, &removed)).await?;
            match done {
                Imported::Done(changed) => return Ok(changed),
                // An object was fetched meanwhile.
                Imported::MoreFiles => {}
            }
        }
    }

    /// Removes a study of another site, its files first. It is hidden from then on.
    ///
    /// # Errors
    /// [`ArchiveError`]; what is left goes with the next attempt.
    pub async fn remove_foreign(&self, study_id: B256) -> Result<(), ArchiveError> {
        self.hide_foreign(study_id).await?;
        loop {
            let removed = self.remove_files(self.foreign_files(study_id, |_, _| true)?)?;
            let gone = self
                .write(move |db| {
                    // What names a patient is overwritten, not only unlinked.
                    db.pragma_update(None, "secure_delete", true)?;
                    let tx = db.transaction()?;
                    let Some(origin) = origin_of(&tx, study_id)? else { return Ok(true) };
                    for (instance, _, _) in instances(&tx, origin)? {
                        if !remove_instance(&tx, instance, &removed)? {
                            return Ok(false);
                        }
                    }
                    remove_study(&tx, origin)?;
                    tx.execute("DELETE FROM foreign_study WHERE id = ?1", [origin])?;
                    tx.commit()?;
                    Ok(true)
                })
                .await?;
            if gone {
                self.0.listings.clear();
                return Ok(());
            }
        }
    }

    /// Previews of a study of another site whose pictures are not here yet.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn previews_missing(&self, study_id: B256) -> Result<Vec<Image>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "{} WHERE kind = ?2 AND plain IS NULL AND study IN
                   (SELECT st.id FROM study st JOIN foreign_study f ON st.origin = f.id WHERE f.study_id = ?1 AND st.origin <> 0) ORDER BY position",
                super::publication::SELECT_IMAGE
            ))?;
            let rows = statement.query_map(params![study_id.as_slice(), ImageKind::Preview.tag()], image)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// SHA-256 of the pictures that the manifest of another site's study names, by their images.
    ///
    /// # Errors
    /// [`ArchiveError::Index`], or [`ArchiveError::Corrupt`].
    pub fn preview_digests(&self, study_id: B256) -> Result<HashMap<B256, [u8; 32]>, ArchiveError> {
        let manifest: Option<Vec<u8>> = self.read(|db| {
            let sql = "SELECT manifest FROM foreign_study WHERE study_id = ?1";
            Ok(db.query_row(sql, [study_id.as_slice()], |row| row.get(0)).optional()?.flatten())
        })?;
        let Some(bytes) = manifest else { return Ok(HashMap::new()) };
        let manifest =
            Manifest::decode(&bytes).map_err(|error| ArchiveError::Corrupt(format!("manifest ({error})")))?;
        Ok(manifest.previews.iter().map(|preview| (preview.image, preview.sha256)).collect())
    }

    /// Keeps the pictures of previews of another site's study, unless they went with it meanwhile.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn keep_previews(&self, pictures: Vec<(B256, Vec<u8>)>) -> Result<(), ArchiveError> {
        self.write(move |db| {
            let tx = db.transaction()?;
            for (id, plain) in &pictures {
                tx.execute("UPDATE image SET plain = ?2 WHERE id = ?1", params![id.as_slice(), plain])?;
            }
            Ok(tx.commit()?)
        })
        .await
    }

    /// Objects of a study of another site that have no file here.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn foreign_instances(&self, study_id: B256) -> Result<Vec<Stored>, ArchiveError> {
        self.read(|db| {
            let sql = format!(
                "{} WHERE i.superseded = 0 AND st.origin <> 0
                   AND st.origin = (SELECT id FROM foreign_study WHERE study_id = ?1) ORDER BY i.id DESC",
                super::SELECT_VISIBLE
            );
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map([study_id.as_slice()], |row| self.stored(row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Files of a study of another site's objects that `wanted` picks by SOP Instance UID and SHA-256.
    fn foreign_files(
        &self,
        study_id: B256,
        wanted: impl Fn(&str, &[u8; 32]) -> bool,
    ) -> Result<Vec<(FileId, u64)>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT i.uid, i.file_sha256, i.shard, i.file, i.file_bytes FROM instance i JOIN series se ON i.series = se.id
                 JOIN study st ON se.study = st.id JOIN foreign_study f ON st.origin = f.id
                 WHERE f.study_id = ?1 AND st.origin <> 0 AND i.file IS NOT NULL",
            )?;
            let mut rows = statement.query([study_id.as_slice()])?;
            let mut files = Vec::new();
            while let Some(row) = rows.next()? {
                if wanted(&row.get::<_, String>(0)?, &row.get(1)?) {
                    files.push((FileId { shard: row.get(2)?, name: row.get(3)? }, as_u64(row.get(4)?)));
                }
            }
            Ok(files)
        })
    }

    /// Removes files whose rows are about to go; returns their names.
    fn remove_files(&self, files: Vec<(FileId, u64)>) -> Result<HashSet<String>, ArchiveError> {
        let mut gone = HashSet::new();
        for (file, bytes) in files {
            match self.0.log.remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ArchiveError::io("removing a copy of another site's object", error));
                }
                _ => self.release(bytes),
            }
            gone.insert(file.name);
        }
        Ok(gone)
    }
}

enum Imported {
    Done(bool),
    MoreFiles,
}

fn import(
    db: &mut rusqlite::Connection,
    study_id: B256,
    version: &ForeignVersion,
    levels: &[Levels],
    removed: &HashSet<String>,
) -> Result<Imported, ArchiveError> {
    let tx = db.transaction()?;
    let known = "SELECT id, version FROM foreign_study WHERE study_id = ?1";
    let known = tx.query_row(known, [study_id.as_slice()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?)));
    let (origin, before) = known.optional()?.ok_or_else(|| refused("nobody let us see it"))?;
    let manifest = &version.manifest;
    if version.version <= before {
        return Ok(Imported::Done(false));
    }
    let wanted = keys(manifest);
    let mut kept = HashSet::new();
    for (id, uid, sha256) in instances(&tx, origin)? {
        let key = (uid, sha256);
        if wanted.contains_key(&key) {
            kept.insert(key);
        } else if !remove_instance(&tx, id, removed)? {
            return Ok(Imported::MoreFiles);
        }
    }
    let study = study_of(&tx, origin, manifest, levels)?;
    for (object, levels) in manifest.objects.iter().zip(levels) {
        if !kept.contains(&(object.sop_instance_uid.to_string(), object.file_sha256)) {
            let series = series_row(&tx, study, levels)?;
            let instance = insert_instance(&tx, series, origin, object, levels)?;
            // Without pieces it is not on the ledger: its source has it.
            let Some(map) = &object.map else { continue };
            let named = Named {
                id: object.image,
                kind: ImageKind::Object,
                instance: Some(instance),
                subject: &object.sop_instance_uid,
                series: object.by_series.then_some(&object.series_uid),
                epoch: object.epoch,
                media_type: "",
                map,
                link: object.link,
            };
            insert_image(&tx, study, version, &named)?;
        }
    }
    insert_previews(&tx, study, version)?;
    recount(&tx, study)?;
    tx.execute(
        "UPDATE foreign_study SET version = ?2, manifest = ?3 WHERE id = ?1",
        params![origin, version.version, manifest.encode()],
    )?;
    tx.commit()?;
    Ok(Imported::Done(true))
}

/// Previews and the manifest itself; those of the version before are given up, fetched or not.
fn insert_previews(tx: &Transaction<'_>, study: i64, version: &ForeignVersion) -> Result<(), ArchiveError> {
    let names: HashSet<B256> = version.manifest.previews.iter().map(|preview| preview.image).collect();
    let mut kept = HashSet::new();
    let mut statement = tx.prepare_cached("SELECT id FROM image WHERE study = ?1 AND kind <> 1")?;
    let ids = statement.query_map([study], |row| row.get::<_, [u8; 32]>(0))?.collect::<Result<Vec<_>, _>>()?;
    for id in ids {
        if names.contains(&B256::from(id)) {
            kept.insert(B256::from(id));
        } else {
            remove_image(tx, &id)?;
        }
    }
    for ManifestPreview { subject, media_type, image, epoch, map, series, .. } in &version.manifest.previews {
        // Two series may have the same picture.
        if kept.insert(*image) {
            let (id, kind, epoch, series) = (*image, ImageKind::Preview, *epoch, series.as_ref());
            let named = Named { id, kind, instance: None, subject, series, epoch, media_type, map, link: None };
            insert_image(tx, study, version, &named)?;
        }
    }
    Ok(())
}

/// An image as a manifest names it.
struct Named<'a> {
    id: B256,
    kind: ImageKind,
    instance: Option<i64>,
    subject: &'a Uid,
    series: Option<&'a Uid>,
    epoch: u32,
    media_type: &'a str,
    map: &'a PieceMap,
    link: Option<Link>,
}

/// An image id is public: a manifest that names one of another study, or of this site, must not take it over.
fn insert_image(
    tx: &Transaction<'_>,
    study: i64,
    version: &ForeignVersion,
    named: &Named<'_>,
) -> Result<(), ArchiveError> {
    if let Some(link) = &named.link {
        // What goes with this study must not be somebody else's.
        let taken = "SELECT 1 FROM image WHERE cid = ?1 AND study <> ?2";
        if tx.prepare_cached(taken)?.exists(params![link.cid.to_bytes(), study])? {
            return Err(refused("it names an object in IPFS that is another study's"));
        }
    }
    let inserted = tx
        .prepare_cached(
            "INSERT INTO image (id, study, kind, instance, subject, version, position, epoch, pieces, piece_bytes, sealed_bytes,
               root, mode, media_type, sealed, series, cid, cid_bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT count(*) FROM image WHERE study = ?2 AND version = ?6), ?7, ?8, ?9, ?10,
               ?11, ?12, ?13, 1, ?14, ?15, ?16) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            named.id.as_slice(),
            study,
            named.kind.tag(),
            named.instance,
            named.subject.as_str(),
            version.version,
            named.epoch,
            named.map.pieces,
            named.map.piece_bytes,
            as_i64(named.map.sealed_bytes),
            named.map.root.as_slice(),
            mode_number(version.piece_mode),
            named.media_type,
            named.series.map(Uid::as_str),
            named.link.map(|link| link.cid.to_bytes()),
            named.link.map(|link| as_i64(link.sealed_bytes)),
        ])?;
    if inserted == 1 { Ok(()) } else { Err(refused("it names an image twice, or one of another study")) }
}

fn insert_instance(
    tx: &Transaction<'_>,
    series: i64,
    origin: i64,
    object: &ManifestObject,
    levels: &Levels,
) -> Result<i64, ArchiveError> {
    let row = ForeignRow {
        sop_instance: object.sop_instance_uid,
        sop_class: object.sop_class_uid,
        transfer_syntax: object.transfer_syntax,
        number: levels.instance.int(Tag(0x0020, 0x0013)),
        meta_bytes: object.meta_bytes,
        file_bytes: object.file_bytes,
        file_sha256: object.file_sha256,
        at_source: object.map.is_none(),
    };
    insert_row(tx, series, origin, &row, levels)
}

/// What is recorded of an object that was not received here.
pub(super) struct ForeignRow {
    pub(super) sop_instance: Uid,
    pub(super) sop_class: Uid,
    pub(super) transfer_syntax: Uid,
    /// InstanceNumber.
    pub(super) number: Option<i64>,
    /// Offset of the data set in the file, in bytes.
    pub(super) meta_bytes: u64,
    pub(super) file_bytes: u64,
    pub(super) file_sha256: [u8; 32],
    /// Its bytes are on no ledger, but at its source.
    pub(super) at_source: bool,
}

/// Inserts a row without a file, under a number that is never given twice, and returns that.
pub(super) fn insert_row(
    tx: &Transaction<'_>,
    series: i64,
    origin: i64,
    row: &ForeignRow,
    levels: &Levels,
) -> Result<i64, ArchiveError> {
    let id: i64 =
        tx.prepare_cached("UPDATE foreign_row SET last = last - 1 RETURNING last")?.query_row([], |row| row.get(0))?;
    tx.prepare_cached(
        "INSERT INTO instance (id, series, uid, sop_class, transfer_syntax, number, attributes, meta_bytes, file_bytes,
           file_sha256, received_ms, calling_ae, origin, at_source)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, '', ?12, ?13)",
    )?
    .execute(params![
        id,
        series,
        row.sop_instance.as_str(),
        row.sop_class.as_str(),
        row.transfer_syntax.as_str(),
        row.number,
        levels.instance.write(Encoding::ExplicitLe),
        as_i64(row.meta_bytes),
        as_i64(row.file_bytes),
        row.file_sha256,
        now_ms(),
        origin,
        row.at_source,
    ])?;
    Ok(id)
}

/// The study's row: what the first object of the manifest says of it.
fn study_of(tx: &Transaction<'_>, origin: i64, manifest: &Manifest, levels: &[Levels]) -> Result<i64, ArchiveError> {
    let known = "SELECT id FROM study WHERE origin = ?1 AND uid = ?2";
    let known = tx.query_row(known, params![origin, manifest.study_uid.as_str()], |row| row.get(0)).optional()?;
    if let Some(study) = known {
        return Ok(study);
    }
    let any: i64 =
        tx.query_row("SELECT count(*) FROM study WHERE origin = ?1 AND origin <> 0", [origin], |row| row.get(0))?;
    if any != 0 {
        return Err(refused("it is of another study than the version before"));
    }
    let first = levels.first().ok_or_else(|| refused("it has no object"))?;
    insert_study(tx, first, origin, 0, now_ms())
}

/// Counts are kept with the rows; a manifest changes many at once.
pub(super) fn recount(tx: &Transaction<'_>, study: i64) -> Result<(), ArchiveError> {
    tx.execute(
        "UPDATE series SET instances = (SELECT count(*) FROM instance WHERE series = series.id AND superseded = 0) WHERE study = ?1",
        [study],
    )?;
    tx.execute("DELETE FROM series WHERE study = ?1 AND instances = 0", [study])?;
    tx.execute(
        "UPDATE study SET changed_ms = ?2, (instances, bytes) = (SELECT count(*), coalesce(sum(i.file_bytes), 0)
           FROM instance i JOIN series se ON i.series = se.id WHERE se.study = ?1) WHERE id = ?1",
        params![study, now_ms()],
    )?;
    Ok(())
}

fn origin_of(tx: &Transaction<'_>, study_id: B256) -> Result<Option<i64>, ArchiveError> {
    let sql = "SELECT id FROM foreign_study WHERE study_id = ?1";
    Ok(tx.query_row(sql, [study_id.as_slice()], |row| row.get(0)).optional()?)
}

/// Row, SOP Instance UID and SHA-256 of everything that came with a grant.
fn instances(tx: &Transaction<'_>, origin: i64) -> Result<Vec<(i64, String, [u8; 32])>, ArchiveError> {
    let mut statement = tx.prepare_cached(
        "SELECT i.id, i.uid, i.file_sha256 FROM study st JOIN series se ON se.study = st.id JOIN instance i ON i.series = se.id
         WHERE st.origin = ?1 AND st.origin <> 0",
    )?;
    let rows = statement.query_map([origin], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Removes an object's rows unless it has a file that is still there.
fn remove_instance(tx: &Transaction<'_>, instance: i64, removed: &HashSet<String>) -> Result<bool, ArchiveError> {
    let file: Option<String> =
        tx.prepare_cached("SELECT file FROM instance WHERE id = ?1")?.query_row([instance], |row| row.get(0))?;
    if file.is_some_and(|file| !removed.contains(&file)) {
        return Ok(false);
    }
    let mut statement = tx.prepare_cached("SELECT id FROM image WHERE instance = ?1")?;
    let images = statement.query_map([instance], |row| row.get::<_, [u8; 32]>(0))?.collect::<Result<Vec<_>, _>>()?;
    for id in images {
        remove_image(tx, &id)?;
    }
    tx.prepare_cached("DELETE FROM instance WHERE id = ?1")?.execute([instance])?;
    Ok(true)
}

fn remove_image(tx: &Transaction<'_>, id: &[u8; 32]) -> Result<(), ArchiveError> {
    tx.prepare_cached("DELETE FROM piece WHERE image = ?1")?.execute([id])?;
    tx.prepare_cached("DELETE FROM image WHERE id = ?1")?.execute([id])?;
    Ok(())
}

fn remove_study(tx: &Transaction<'_>, origin: i64) -> Result<(), ArchiveError> {
    const STUDY: &str = "(SELECT id FROM study WHERE origin = ?1 AND origin <> 0)";
    for sql in [
        format!("DELETE FROM piece WHERE image IN (SELECT id FROM image WHERE study IN {STUDY})"),
        format!("DELETE FROM image WHERE study IN {STUDY}"),
        format!("DELETE FROM series WHERE study IN {STUDY}"),
        format!("DELETE FROM patient_name WHERE study IN {STUDY}"),
        "DELETE FROM study WHERE origin = ?1 AND origin <> 0".to_owned(),
    ] {
        tx.execute(&sql, [origin])?;
    }
    Ok(())
}

/// What tells objects of one study apart.
fn keys(manifest: &Manifest) -> HashMap<(String, [u8; 32]), ()> {
    manifest.objects.iter().map(|object| ((object.sop_instance_uid.to_string(), object.file_sha256), ())).collect()
}

fn refused(why: &str) -> ArchiveError {
    ArchiveError::Foreign(why.to_owned())
}

/// The headers of a manifest, sorted into levels. What they say of their place must be what the manifest says.
fn levels_of(manifest: &Manifest) -> Result<Vec<Levels>, ArchiveError> {
    let mut names = HashSet::new();
    let mut all = Vec::with_capacity(manifest.objects.len());
    for object in &manifest.objects {
        if !names.insert(object.sop_instance_uid) {
            return Err(refused("it names an object twice"));
        }
        if object.meta_bytes > object.file_bytes {
            return Err(refused("a data set begins behind the end of its file"));
        }
        let header = read(&object.header, Encoding::ExplicitLe, &ReadOptions::default());
        let mut header = header.map_or_else(|_| DataSet::default(), |(set, _)| set);
        for (tag, uid) in [
            (Tag(0x0020, 0x000D), &manifest.study_uid),
            (Tag(0x0020, 0x000E), &object.series_uid),
            (Tag(0x0008, 0x0018), &object.sop_instance_uid),
            (Tag(0x0008, 0x0016), &object.sop_class_uid),
        ] {
            match header.uid(tag) {
                Some(found) if found == *uid => {}
                Some(_) => return Err(refused("a header is of another object or study")),
                // The site could not parse its own object so far.
                None => header.put_text(tag, VR::UI, uid.as_str()),
            }
        }
        all.push(Levels::of(&header).map_err(ArchiveError::Lacks)?);
    }
    Ok(all)
}

fn number(mode: ForeignMode) -> i64 {
    match mode {
        ForeignMode::Previews => 1,
        ForeignMode::Everything => 2,
    }
}

fn foreign(row: &Row<'_>) -> rusqlite::Result<ForeignStudy> {
    let mode = if row.get::<_, i64>(3)? == 2 { ForeignMode::Everything } else { ForeignMode::Previews };
    // Studies of before series had keys have no hash there.
    let series = B256::try_from(row.get::<_, Vec<u8>>(8)?.as_slice()).unwrap_or_default();
    let window = Window { mode, series, not_before: as_u64(row.get(4)?), not_after: as_u64(row.get(5)?) };
    Ok(ForeignStudy {
        id: row.get(0)?,
        study_id: B256::from(row.get::<_, [u8; 32]>(1)?),
        source: Address::from(row.get::<_, [u8; 20]>(2)?),
        window,
        hidden: row.get(6)?,
        version: row.get(7)?,
    })
}
