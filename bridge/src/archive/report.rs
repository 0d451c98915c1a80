//! What the ops person sees of the archive: one row a study, and the counts behind it.

use alloy::primitives::{Address, B256};
use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Encoding, ReadOptions, Tag, read};
use rusqlite::{OptionalExtension as _, Row, params};

use super::index::as_u64;
use super::publication::uid;
use super::{Archive, ArchiveError, now_ms};

/// One study in the index, with the state of its newest version on the ledger.
#[derive(Debug, Clone, Default)]
pub struct StudySummary {
    /// Its number here, in the order of arrival: a place to go on from.
    pub number: i64,
    /// StudyInstanceUID.
    pub uid: String,
    /// PatientName as sent.
    pub patient_name: String,
    /// PatientID.
    pub patient_id: String,
    /// StudyDate.
    pub study_date: String,
    /// StudyDescription.
    pub description: String,
    /// Modalities of its series.
    pub modalities: Vec<String>,
    /// Series with at least one object.
    pub series: u64,
    /// Current objects.
    pub instances: u64,
    /// Objects with a file here.
    pub local: u64,
    /// Bytes of all current objects.
    pub bytes: u64,
    /// First object received, milliseconds since 1970.
    pub received_ms: i64,
    /// Newest object received.
    pub changed_ms: i64,
    /// In the outbox: objects that no planned version has. `true` once the quiet time is over.
    pub waiting: Option<bool>,
    /// Its name on the ledger, once a version was planned.
    pub study_id: Option<B256>,
    /// Version planned last; 0 before the first.
    pub version: u32,
    /// When publishing of that version began.
    pub begun_ms: Option<i64>,
    /// When that version was viewable.
    pub viewable_ms: Option<i64>,
    /// When that version was final.
    pub final_ms: Option<i64>,
    /// Pieces planned, over all versions.
    pub pieces: u64,
    /// Pieces seen on the ledger.
    pub pieces_seen: u64,
    /// Account of the site that published it, when it is another's.
    pub source: Option<Address>,
}

/// The names of a study that may be shown now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyNames {
    /// StudyInstanceUID.
    pub uid: Uid,
    /// Its name on the ledger, once a version was planned.
    pub study_id: Option<B256>,
}

/// Studies of which something changes without a new object: waiting for their quiet time, or on their way to the ledger.
const IN_WORK: &str = "SELECT st.uid FROM shown_study st WHERE st.id IN
   (SELECT study FROM outbox UNION SELECT study FROM publication WHERE final_ms IS NULL) ORDER BY st.id DESC LIMIT ?1";

const NAMES: &str = "SELECT st.uid, coalesce(p.study_id, f.study_id) FROM shown_study st
   LEFT JOIN publication p ON p.study = st.id LEFT JOIN foreign_study f ON f.id = st.origin";

pub(super) const SELECT: &str = "SELECT st.uid, st.attributes, st.instances, st.bytes, st.received_ms, st.changed_ms,
   (SELECT group_concat(DISTINCT modality) FROM series WHERE study = st.id AND instances > 0),
   (SELECT count(*) FROM series WHERE study = st.id AND instances > 0),
   (SELECT count(*) FROM instance i JOIN series se ON i.series = se.id
      WHERE se.study = st.id AND i.superseded = 0 AND i.file IS NOT NULL),
   o.due_ms, coalesce(p.version, 0), p.begun_ms, p.viewable_ms, p.final_ms,
   (SELECT coalesce(sum(pieces), 0) FROM image WHERE study = st.id),
   (SELECT count(*) FROM piece WHERE image IN (SELECT id FROM image WHERE study = st.id)), p.study_id,
   f.study_id, f.source, f.version, st.id
   FROM shown_study st LEFT JOIN outbox o ON o.study = st.id LEFT JOIN publication p ON p.study = st.id
   LEFT JOIN foreign_study f ON f.id = st.origin WHERE st.instances > 0";

impl Archive {
    /// Every study, in the order of arrival.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn summaries(&self) -> Result<Vec<StudySummary>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT} ORDER BY st.id"))?;
            let rows = statement.query_map([], summary)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Studies that came after the one with this number (0: from the first), in the order of arrival.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn summaries_after(&self, number: i64, limit: u32) -> Result<Vec<StudySummary>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT} AND st.id > ?1 ORDER BY st.id LIMIT ?2"))?;
            let rows = statement.query_map(params![number, limit], summary)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The names of the study with this UID, if it is shown. Takes no longer for one that is there than for one that is not.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn names_of_uid(&self, study_uid: &Uid) -> Result<Option<StudyNames>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{NAMES} WHERE st.uid = ?1"))?;
            Ok(statement.query_row([study_uid.as_str()], names).optional()?)
        })
    }

    /// The names of the study with this name on the ledger, if it is shown: received here, or granted.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn names_of_id(&self, study_id: &B256) -> Result<Option<StudyNames>, ArchiveError> {
        self.read(|db| {
            let sql = format!(
                "{NAMES} WHERE st.id IN (SELECT study FROM publication WHERE study_id = ?1 UNION ALL
                   SELECT g.id FROM study g JOIN foreign_study o ON g.origin = o.id
                     WHERE o.study_id = ?1 AND g.origin <> 0)"
            );
            Ok(db.prepare_cached(&sql)?.query_row([study_id.as_slice()], names).optional()?)
        })
    }

    /// The names on the ledger of all that is shown as one study under this UID: received here, and granted, once each has one.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn ids_of_uid(&self, study_uid: &Uid) -> Result<Vec<Option<B256>>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT coalesce(p.study_id, f.study_id) FROM visible_study st LEFT JOIN publication p ON p.study = st.id
               LEFT JOIN foreign_study f ON f.id = st.origin WHERE st.uid = ?1 AND st.instances > 0";
            let mut statement = db.prepare_cached(sql)?;
            let id = |row: &Row<'_>| Ok(row.get::<_, Option<[u8; 32]>>(0)?.map(B256::from));
            let rows = statement.query_map([study_uid.as_str()], id)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Studies that wait for their quiet time or are on their way to the ledger, the newest first.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn studies_in_work(&self, limit: u32) -> Result<Vec<Uid>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(IN_WORK)?;
            let rows = statement.query_map([limit], |row| uid(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// One study.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn summary(&self, study_uid: &str) -> Result<Option<StudySummary>, ArchiveError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!("{SELECT} AND st.uid = ?1"))?;
            let mut rows = statement.query_map([study_uid], summary)?;
            Ok(rows.next().transpose()?)
        })
    }
}

fn names(row: &Row<'_>) -> rusqlite::Result<StudyNames> {
    Ok(StudyNames { uid: uid(row, 0)?, study_id: row.get::<_, Option<[u8; 32]>>(1)?.map(B256::from) })
}

pub(super) fn summary(row: &Row<'_>) -> rusqlite::Result<StudySummary> {
    let attributes: Vec<u8> = row.get(1)?;
    let set =
        read(&attributes, Encoding::ExplicitLe, &ReadOptions::default()).map_or_else(|_| DataSet::default(), |r| r.0);
    let text = |tag| set.text(tag).unwrap_or_default();
    let count = |column| row.get::<_, i64>(column).map(as_u64);
    Ok(StudySummary {
        number: row.get(20)?,
        uid: row.get(0)?,
        patient_name: text(Tag(0x0010, 0x0010)),
        patient_id: text(Tag(0x0010, 0x0020)),
        study_date: text(Tag(0x0008, 0x0020)),
        description: text(Tag(0x0008, 0x1030)),
        modalities: row
            .get::<_, Option<String>>(6)?
            .map(|list| list.split([',', '\\']).filter(|m| !m.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default(),
        series: count(7)?,
        instances: count(2)?,
        local: count(8)?,
        bytes: count(3)?,
        received_ms: row.get(4)?,
        changed_ms: row.get(5)?,
        waiting: row.get::<_, Option<i64>>(9)?.map(|due_ms| due_ms <= now_ms()),
        version: row.get::<_, Option<u32>>(19)?.map_or_else(|| row.get(10), Ok)?,
        begun_ms: row.get(11)?,
        viewable_ms: row.get(12)?,
        final_ms: row.get(13)?,
        pieces: count(14)?,
        pieces_seen: count(15)?,
        study_id: row.get::<_, Option<[u8; 32]>>(16)?.or(row.get(17)?).map(B256::from),
        source: row.get::<_, Option<[u8; 20]>>(18)?.map(Address::from),
    })
}
