//! Previews as objects: where an owner lets a site see previews and no more, an ordinary viewer is given Secondary Capture images
//! made from them (PS3.3 A.8.1), in a series of their own beside each series that they show.
//!
//! Such an object has rows like any other and never a file: it is made anew from the picture, the same every time, whenever it is
//! opened. Its UID goes over the picture's digest, so a picture that changed in the index is noticed. Must not know who decides.

use alloy::primitives::B256;
use dicom_scp::dataset::{DataSet, Element, Encoding, ReadOptions, Tag, VR, read};
use dicom_scp::{TransferSyntax, Uid};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::attributes::Levels;
use super::foreign::{ForeignRow, insert_row, recount};
use super::index::series_row;
use super::part10::FileMeta;
use super::{Archive, ArchiveError, Stored};
use crate::payload::preview::{Pixels, Rendered, decode};
use crate::study::{ImageKind, derived_uid};

/// Secondary Capture Image Storage (PS3.4 B.5).
const SECONDARY_CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";
/// Pictures made into objects in one transaction. Each is small unless another site means harm; then this bounds what they take.
const BATCH: usize = 8;
/// Type 2 and 2C of the Patient, General Study and General Series modules, PS3.3 C.7.1.1, C.7.2.1, C.7.3.1: present, if only without a value.
const TYPE_2: [(Tag, VR); 11] = [
    (Tag(0x0008, 0x0020), VR::DA),
    (Tag(0x0008, 0x0030), VR::TM),
    (Tag(0x0008, 0x0050), VR::SH),
    (Tag(0x0008, 0x0090), VR::PN),
    (Tag(0x0010, 0x0010), VR::PN),
    (Tag(0x0010, 0x0020), VR::LO),
    (Tag(0x0010, 0x0030), VR::DA),
    (Tag(0x0010, 0x0040), VR::CS),
    (Tag(0x0020, 0x0010), VR::SH),
    (Tag(0x0020, 0x0011), VR::IS),
    // Of a paired body part, which is not known.
    (Tag(0x0020, 0x0060), VR::CS),
];
/// What sets the UIDs of these objects apart from all others that are derived.
const DOMAIN: &str = "pacs-bridge/capture/1";
const SERIES_DESCRIPTION: Tag = Tag(0x0008, 0x103E);
const LO_CHARACTERS_MAX: usize = 64;

/// A picture that is to become an object, and what it shows.
struct Shown {
    image: B256,
    media_type: String,
    picture: Vec<u8>,
    study_row: i64,
    study: DataSet,
    series: DataSet,
    /// SOP Class and Instance UID, where it shows one object and not a series.
    source: Option<(String, String)>,
    /// InstanceNumber of that object, else 1.
    number: i64,
}

/// The object made of it.
struct Capture {
    image: B256,
    study_row: i64,
    levels: Levels,
    number: i64,
    sop_class: Uid,
    sop_instance: Uid,
    /// The Part 10 file; its length and digest stay when it is let go.
    file: Vec<u8>,
    file_bytes: u64,
    file_sha256: [u8; 32],
    meta_bytes: u64,
}

impl Archive {
    /// Makes objects of the pictures of another site's study that have none yet. What is no picture gets none.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn present_previews(&self, study_id: B256) -> Result<(), ArchiveError> {
        let mut after = B256::ZERO;
        loop {
            let shown = self.read(|db| shown(db, study_id, after))?;
            let Some(last) = shown.last() else { return Ok(()) };
            after = last.image;
            let made = tokio::task::spawn_blocking(move || {
                shown.iter().filter_map(Capture::of).map(Capture::without_file).collect::<Vec<_>>()
            });
            let made = made.await.map_err(|_| ArchiveError::Closed)?;
            self.write(move |db| {
                let tx = db.transaction()?;
                for capture in &made {
                    insert(&tx, capture)?;
                }
                if let Some(first) = made.first() {
                    recount(&tx, first.study_row)?;
                }
                Ok(tx.commit()?)
            })
            .await?;
        }
    }

    /// Takes those objects away; the pictures stay.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn withdraw_captures(&self, study_id: B256) -> Result<(), ArchiveError> {
        self.write(move |db| {
            let tx = db.transaction()?;
            let study: Option<i64> = tx
                .query_row(
                    "SELECT st.id FROM study st JOIN foreign_study f ON st.origin = f.id WHERE f.study_id = ?1",
                    [study_id.as_slice()],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(study) = study else { return Ok(()) };
            let sql = "SELECT instance FROM image WHERE study = ?1 AND kind = ?2 AND instance IS NOT NULL";
            let mut statement = tx.prepare_cached(sql)?;
            let rows = statement.query_map(params![study, ImageKind::Preview.tag()], |row| row.get(0))?;
            let captures: Vec<i64> = rows.collect::<Result<_, _>>()?;
            drop(statement);
            if captures.is_empty() {
                return Ok(());
            }
            for capture in captures {
                tx.execute("UPDATE image SET instance = NULL WHERE instance = ?1", [capture])?;
                tx.execute("DELETE FROM instance WHERE id = ?1", [capture])?;
            }
            recount(&tx, study)?;
            Ok(tx.commit()?)
        })
        .await
    }

    /// The Part 10 file of an object that is made from a preview; none for every other object.
    ///
    /// # Errors
    /// [`ArchiveError::Corrupt`] when the picture is not the one that the object was made from.
    pub fn capture(&self, stored: &Stored) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(shown) = self.shown_by(stored)? else { return Ok(None) };
        self.capture_of(stored, &shown.picture)
    }

    /// The same, made of a picture that the caller has.
    ///
    /// # Errors
    /// As [`Self::capture`].
    pub fn capture_of(&self, stored: &Stored, picture: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(shown) = self.shown_by(stored)? else { return Ok(None) };
        let made = Capture::of(&Shown { picture: picture.to_vec(), ..shown });
        match made.filter(|made| made.sop_instance == stored.sop_instance) {
            Some(made) => Ok(Some(made.file)),
            None => Err(ArchiveError::Corrupt(format!("the picture of {}", stored.sop_instance))),
        }
    }

    fn shown_by(&self, stored: &Stored) -> Result<Option<Shown>, ArchiveError> {
        if stored.origin == 0 {
            return Ok(None);
        }
        let preview = ImageKind::Preview.tag();
        self.read(|db| one(db, "p.instance = ?1 AND p.kind = ?2", params![stored.id, preview]))
    }
}

/// A preview, its study, and the series that it shows: by the series' UID, or by that of an object in it.
const SELECT: &str =
    "SELECT p.id, p.media_type, p.plain, st.id, st.attributes, coalesce(se.attributes, ose.attributes), o.sop_class, o.uid,
   coalesce(o.number, 1) FROM image p JOIN study st ON p.study = st.id JOIN foreign_study f ON st.origin = f.id
   LEFT JOIN series se ON se.study = st.id AND se.uid = p.subject
   LEFT JOIN instance o ON o.uid = p.subject AND o.origin = f.id AND o.superseded = 0
   LEFT JOIN series ose ON o.series = ose.id
   WHERE p.plain IS NOT NULL AND coalesce(se.attributes, ose.attributes) IS NOT NULL";

/// The next pictures without an object, by their images.
fn shown(db: &Connection, study_id: B256, after: B256) -> Result<Vec<Shown>, ArchiveError> {
    let sql = format!(
        "{SELECT} AND f.study_id = ?1 AND p.kind = ?2 AND p.instance IS NULL AND p.id > ?3 ORDER BY p.id LIMIT {BATCH}"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params![study_id.as_slice(), ImageKind::Preview.tag(), after.as_slice()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read_row(row)?);
    }
    Ok(found)
}

fn one(db: &Connection, which: &str, values: impl rusqlite::Params) -> Result<Option<Shown>, ArchiveError> {
    let mut statement = db.prepare_cached(&format!("{SELECT} AND {which}"))?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(read_row).transpose()
}

fn read_row(row: &rusqlite::Row<'_>) -> Result<Shown, ArchiveError> {
    let set = |column| {
        let bytes: Vec<u8> = row.get(column)?;
        let (set, _) = read(&bytes, Encoding::ExplicitLe, &ReadOptions::default())
            .map_err(|error| ArchiveError::Corrupt(format!("index row ({error})")))?;
        Ok::<_, ArchiveError>(set)
    };
    let source = match (row.get::<_, Option<String>>(6)?, row.get::<_, Option<String>>(7)?) {
        (Some(class), Some(instance)) => Some((class, instance)),
        _ => None,
    };
    Ok(Shown {
        image: B256::from(row.get::<_, [u8; 32]>(0)?),
        media_type: row.get(1)?,
        picture: row.get(2)?,
        study_row: row.get(3)?,
        study: set(4)?,
        series: set(5)?,
        source,
        number: row.get(8)?,
    })
}

impl Capture {
    /// The object of a picture, unless it is none.
    fn of(shown: &Shown) -> Option<Self> {
        let picture = match decode(&shown.media_type, &shown.picture) {
            Ok(picture) => picture,
            Err(error) => {
                tracing::warn!(image = %shown.image, %error, "a preview is no picture and is not shown as an object");
                return None;
            }
        };
        let study_uid = shown.study.uid(Tag(0x0020, 0x000D))?;
        let shown_series = shown.series.uid(Tag(0x0020, 0x000E))?;
        let series_uid = derived_uid(DOMAIN, &["series", study_uid.as_str(), shown_series.as_str()], &[])?;
        let subject = shown.source.as_ref().map_or("", |(_, instance)| instance);
        let names = ["object", study_uid.as_str(), shown_series.as_str(), subject];
        let sop_instance = derived_uid(DOMAIN, &names, &shown.picture)?;
        let class = Uid::new(SECONDARY_CAPTURE).ok()?;

        let mut header = shown.study.clone();
        header.extend(series_attributes(&shown.series, &series_uid));
        header.extend(instance_attributes(shown, &picture, &class, &sop_instance));
        for (tag, vr) in TYPE_2 {
            if !header.contains(tag) {
                header.put(tag, Element::empty(vr));
            }
        }
        let levels = Levels::of(&header).ok()?;
        let syntax = *TransferSyntax::EXPLICIT_VR_LE.uid();
        let meta = FileMeta { sop_class: class, sop_instance, transfer_syntax: syntax };
        let mut file = meta.encode();
        let meta_bytes = file.len() as u64;
        let (Pixels::Gray(mut samples) | Pixels::Rgb(mut samples)) = picture.pixels;
        if samples.len() % 2 == 1 {
            samples.push(0);
        }
        header.put(Tag(0x7FE0, 0x0010), Element::bytes(VR::OB, samples));
        file.extend(header.write(Encoding::ExplicitLe));
        let (file_bytes, file_sha256) = (file.len() as u64, Sha256::digest(&file).into());
        Some(Self {
            file_bytes,
            file_sha256,
            image: shown.image,
            study_row: shown.study_row,
            levels,
            number: shown.number,
            sop_class: class,
            sop_instance,
            file,
            meta_bytes,
        })
    }
}

impl Capture {
    /// What its rows need.
    fn without_file(self) -> Self {
        Self { file: Vec::new(), ..self }
    }
}

/// The series that the captures of a series stand in: its own, but for what makes it another one.
fn series_attributes(of: &DataSet, series_uid: &Uid) -> DataSet {
    let mut series = of.clone();
    series.put_uid(Tag(0x0020, 0x000E), series_uid);
    let description = format!("Preview {}", of.text(SERIES_DESCRIPTION).unwrap_or_default());
    let description: String = description.trim_end().chars().take(LO_CHARACTERS_MAX).collect();
    series.put_text(SERIES_DESCRIPTION, VR::LO, &description);
    series
}

/// General Image, Image Pixel, SC Equipment, SC Image and SOP Common modules (PS3.3 C.7.6.1, C.7.6.3, C.8.6.1, C.12.1).
fn instance_attributes(shown: &Shown, picture: &Rendered, class: &Uid, sop_instance: &Uid) -> DataSet {
    let mut set = DataSet::default();
    set.put_texts(Tag(0x0008, 0x0008), VR::CS, &["DERIVED", "SECONDARY"]);
    set.put_uid(Tag(0x0008, 0x0016), class);
    set.put_uid(Tag(0x0008, 0x0018), sop_instance);
    set.put_text(Tag(0x0008, 0x0064), VR::CS, "WSD");
    set.put_text(Tag(0x0008, 0x2111), VR::ST, "Reduced preview; not for diagnosis");
    if let Some((class, instance)) = &shown.source {
        let mut item = DataSet::default();
        item.put_text(Tag(0x0008, 0x1150), VR::UI, class);
        item.put_text(Tag(0x0008, 0x1155), VR::UI, instance);
        set.put(Tag(0x0008, 0x2112), Element::sequence(vec![item]));
    }
    set.put_text(Tag(0x0020, 0x0013), VR::IS, &shown.number.to_string());
    set.put(Tag(0x0020, 0x0020), Element::empty(VR::CS));
    let colour = matches!(picture.pixels, Pixels::Rgb(_));
    set.put_u16(Tag(0x0028, 0x0002), if colour { 3 } else { 1 });
    set.put_text(Tag(0x0028, 0x0004), VR::CS, if colour { "RGB" } else { "MONOCHROME2" });
    if colour {
        set.put_u16(Tag(0x0028, 0x0006), 0);
    }
    // Never more than fits: a preview's sides are bounded when it is decoded.
    set.put_u16(Tag(0x0028, 0x0010), u16::try_from(picture.height).unwrap_or(u16::MAX));
    set.put_u16(Tag(0x0028, 0x0011), u16::try_from(picture.width).unwrap_or(u16::MAX));
    for (element, value) in [(0x0100, 8), (0x0101, 8), (0x0102, 7), (0x0103, 0)] {
        set.put_u16(Tag(0x0028, element), value);
    }
    if shown.media_type == "image/jpeg" {
        set.put_text(Tag(0x0028, 0x2110), VR::CS, "01");
        set.put_text(Tag(0x0028, 0x2114), VR::CS, "ISO_10918_1");
    }
    set
}

/// Rows of one capture, unless its picture went or got one meanwhile.
fn insert(tx: &Transaction<'_>, capture: &Capture) -> Result<(), ArchiveError> {
    let waiting =
        "SELECT (SELECT origin FROM study WHERE id = ?2) FROM image WHERE id = ?1 AND study = ?2 AND instance IS NULL";
    let waiting = tx.query_row(waiting, params![capture.image.as_slice(), capture.study_row], |row| row.get(0));
    let Some(origin) = waiting.optional()?.flatten().filter(|origin: &i64| *origin != 0) else { return Ok(()) };
    let known = "SELECT 1 FROM instance WHERE uid = ?1 AND origin = ?2 AND superseded = 0";
    if tx.prepare_cached(known)?.exists(params![capture.sop_instance.as_str(), origin])? {
        return Ok(());
    }
    let series = series_row(tx, capture.study_row, &capture.levels)?;
    let row = ForeignRow {
        sop_instance: capture.sop_instance,
        sop_class: capture.sop_class,
        transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
        number: Some(capture.number),
        meta_bytes: capture.meta_bytes,
        file_bytes: capture.file_bytes,
        file_sha256: capture.file_sha256,
        at_source: false,
    };
    let id = insert_row(tx, series, origin, &row, &capture.levels)?;
    tx.execute("UPDATE image SET instance = ?2 WHERE id = ?1", params![capture.image.as_slice(), id])?;
    Ok(())
}
