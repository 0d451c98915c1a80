//! The list of studies as people read it: the newest first, a page at a time, by a query and by how far studies are; and the pictures
//! that a study has. Must not know who asks.

use alloy::primitives::B256;
use dicom_scp::Uid;
use dicom_scp::matching::{Level, Query, matches};
use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, params, params_from_iter};

use super::publication::uid;
use super::report::{SELECT, StudySummary, summary};
use super::search::{conditions, entity};
use super::{Archive, ArchiveError};
use crate::study::ImageKind;

/// How far a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Objects may still come, or it waits for its turn.
    Receiving,
    /// On its way to the ledger.
    Writing,
    /// Every byte is on the ledger.
    Final,
    /// Another site's; its owner lets this site see it.
    Granted,
}

impl Stage {
    fn condition(self) -> &'static str {
        match self {
            Self::Receiving => {
                "st.id IN (SELECT study FROM outbox) AND NOT EXISTS
                   (SELECT 1 FROM publication p WHERE p.study = st.id AND p.final_ms IS NULL)"
            }
            Self::Writing => "st.id IN (SELECT study FROM publication WHERE final_ms IS NULL)",
            Self::Final => {
                "st.id IN (SELECT study FROM publication WHERE final_ms IS NOT NULL)
                   AND st.id NOT IN (SELECT study FROM outbox)"
            }
            Self::Granted => "st.origin <> 0",
        }
    }
}

/// A picture of a study, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The image that carries it on the ledger.
    pub id: B256,
    /// UID of the instance or series that it shows.
    pub subject: Uid,
}

const PICTURE: &str = "SELECT im.id, im.subject FROM image im";

impl Archive {
    /// Studies that match a query of the study level, the newest first: those that came before the one with a number, if that is
    /// given, and no more than so many.
    ///
    /// # Errors
    /// [`ArchiveError::Index`], [`ArchiveError::Corrupt`].
    pub fn newest(
        &self,
        query: &Query,
        stage: Option<Stage>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<StudySummary>, ArchiveError> {
        self.read(|db| {
            let (mut all, mut values) = conditions(query, Level::Study);
            all.extend(stage.map(|stage| stage.condition().to_owned()));
            if let Some(before) = before {
                all.push("st.id < ?".to_owned());
                values.push(Value::from(before));
            }
            all.push("st.instances > 0".to_owned());
            let sql = format!(
                "SELECT st.id, st.attributes, NULL, NULL FROM shown_study st WHERE {} ORDER BY st.id DESC",
                all.join(" AND ")
            );
            let mut statement = db.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            let mut of_number = db.prepare_cached(&format!("{SELECT} AND st.id = ?1"))?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                if found.len() == limit {
                    break;
                }
                if matches(&entity(db, row, query)?, query) {
                    found.extend(of_number.query_row([row.get::<_, i64>(0)?], summary).optional()?);
                }
            }
            Ok(found)
        })
    }

    /// The first picture that each of these studies has here, by their numbers.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn covers(&self, studies: &[i64]) -> Result<Vec<Option<Picture>>, ArchiveError> {
        self.read(|db| {
            let sql = format!(
                "{PICTURE} WHERE im.study = ?1 AND im.kind = ?2 AND im.plain IS NOT NULL ORDER BY im.version, im.position LIMIT 1"
            );
            let mut statement = db.prepare_cached(&sql)?;
            let found = studies.iter().map(|study| {
                Ok(statement.query_row(params![study, ImageKind::Preview.tag()], picture).optional()?)
            });
            found.collect()
        })
    }

    /// The pictures that a study has here: of its newest version first, in the order in which they were made.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn pictures(&self, study: &Uid) -> Result<Vec<Picture>, ArchiveError> {
        self.read(|db| {
            let sql = format!(
                "{PICTURE} JOIN shown_study st ON im.study = st.id WHERE st.uid = ?1 AND im.kind = ?2 AND im.plain IS NOT NULL
                   ORDER BY im.version DESC, im.position"
            );
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map(params![study.as_str(), ImageKind::Preview.tag()], picture)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Media type and bytes of one of them.
    ///
    /// # Errors
    /// [`ArchiveError::Index`].
    pub fn picture(&self, study: &Uid, id: &B256) -> Result<Option<(String, Vec<u8>)>, ArchiveError> {
        self.read(|db| {
            let sql = "SELECT im.media_type, im.plain FROM image im JOIN shown_study st ON im.study = st.id
               WHERE im.id = ?1 AND st.uid = ?2 AND im.kind = ?3 AND im.plain IS NOT NULL";
            let wanted = params![id.as_slice(), study.as_str(), ImageKind::Preview.tag()];
            Ok(db.prepare_cached(sql)?.query_row(wanted, |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })
    }
}

fn picture(row: &rusqlite::Row<'_>) -> rusqlite::Result<Picture> {
    Ok(Picture { id: row.get::<_, [u8; 32]>(0)?.into(), subject: uid(row, 1)? })
}
