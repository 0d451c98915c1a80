//! What one association, or one upload, leaves in the audit trail: one record for each study that came or went, not one for each object, and nothing that
//! an object on its way in waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR};
use dicom_scp::matching::{Criterion, Date, Key, Query, Range};
use dicom_scp::{Failure, Reason, Uid, sop_class};

use crate::archive;
use crate::audit::{Audit, AuditError, Event, Instances, Party, Route};
use crate::config::Operation;

const QUERY_RETRIEVE_LEVEL: Tag = Tag(0x0008, 0x0052);
const MODALITIES: [Tag; 2] = [Tag(0x0008, 0x0060), Tag(0x0008, 0x0061)];
/// Of studies, series, acquisitions and contents; not of births.
const DATES: [Tag; 4] = [Tag(0x0008, 0x0020), Tag(0x0008, 0x0021), Tag(0x0008, 0x0022), Tag(0x0008, 0x0023)];
const EXPLICIT_LE: &str = "1.2.840.10008.1.2.1";

/// The trail of one association. Its last records are made when it is dropped.
pub(crate) struct Trail {
    audit: Audit,
    caller: Party,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What came, by study and SOP class.
    stored: BTreeMap<Uid, BTreeMap<Uid, u64>>,
    not_stored: u64,
    /// What was refused is told once.
    refused: BTreeSet<&'static str>,
    /// Where the next C-MOVE goes.
    destination: Option<Party>,
}

impl Trail {
    pub(crate) fn new(audit: Audit, caller: Party) -> Arc<Self> {
        Arc::new(Self { audit, caller, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller may not do that.
    pub(super) fn refused(&self, operation: Operation) {
        if self.state().refused.insert(operation.name()) {
            let what = format!("C-{} is not allowed to this AE title", operation.name().to_uppercase());
            self.audit.record(Event::not_allowed(&self.caller, &what));
        }
    }

    /// An object is durable here.
    pub(crate) fn stored(&self, study: Uid, class: Uid) {
        let mut state = self.state();
        let is_first = !state.stored.contains_key(&study);
        *state.stored.entry(study).or_default().entry(class).or_default() += 1;
        drop(state);
        if is_first {
            let instances = Instances { study: Some(study.to_string()), classes: BTreeMap::new() };
            self.audit.record(Event::transfer_begins(&Route::In(self.caller.clone()), &instances));
        }
    }

    /// An object was not taken in.
    pub(crate) fn not_stored(&self) {
        self.state().not_stored += 1;
    }

    /// A C-FIND is answered, unless nothing may leave now.
    pub(super) fn query(&self, query: &Query) -> Result<(), Failure> {
        self.audit.writable().map_err(unrecorded)?;
        let class = match query.model {
            sop_class::Model::PatientRoot => sop_class::PATIENT_ROOT_FIND,
            sop_class::Model::StudyRoot => sop_class::STUDY_ROOT_FIND,
        };
        let identifier = without_names(query).write(Encoding::ExplicitLe);
        self.audit.record(Event::query(&self.caller, class.as_str(), identifier, EXPLICIT_LE, None));
        Ok(())
    }

    /// A C-MOVE names where it goes before anything is selected for it.
    pub(super) fn goes_to(&self, title: &str, host: &str) {
        self.state().destination = Some(Party::called(title, host));
    }

    /// A C-MOVE names a destination that is not known.
    pub(super) fn goes_nowhere(&self, title: &str) {
        let what = format!("C-MOVE to AE title {title}, which is not known here");
        self.audit.record(Event::not_allowed(&self.caller, &what));
    }

    /// Objects were selected for sending. Returns when that is on the disk; before that none may leave.
    pub(super) async fn sends(&self, is_move: bool, objects: &[archive::Stored]) -> Result<Arc<Sending>, Failure> {
        let destination = self.state().destination.take().filter(|_| is_move);
        let route = match destination {
            Some(receiver) => Route::Onward(self.caller.clone(), receiver),
            None => Route::Out(self.caller.clone()),
        };
        let mut studies: BTreeMap<Uid, Sent> = BTreeMap::new();
        for object in objects {
            let study = studies.entry(object.study_uid).or_default();
            *study.wanted.entry(object.sop_class).or_default() += 1;
        }
        let begins = |(study, sent): (&Uid, &Sent)| Event::transfer_begins(&route, &instances(*study, &sent.wanted));
        self.audit.durable(studies.iter().map(begins).collect()).await.map_err(unrecorded)?;
        Ok(Arc::new(Sending { audit: self.audit.clone(), route, studies: Mutex::new(studies) }))
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let State { stored, not_stored, .. } = std::mem::take(&mut *self.state());
        let route = Route::In(self.caller.clone());
        for (study, classes) in &stored {
            self.audit.record(Event::transferred(&route, &instances(*study, classes), 0));
        }
        if not_stored > 0 {
            let unknown = Instances { study: None, classes: BTreeMap::new() };
            self.audit.record(Event::transferred(&route, &unknown, not_stored));
        }
    }
}

fn unrecorded(error: AuditError) -> Failure {
    tracing::error!(%error, "nothing is handed out");
    Failure::new(Reason::OutOfResources, "the audit log cannot be written")
}

fn instances(study: Uid, classes: &BTreeMap<Uid, u64>) -> Instances {
    let classes = classes.iter().map(|(class, count)| (class.to_string(), *count)).collect();
    Instances { study: Some(study.to_string()), classes }
}

/// What is wanted of a study and what left.
#[derive(Default)]
struct Sent {
    wanted: BTreeMap<Uid, u64>,
    sent: BTreeMap<Uid, u64>,
}

/// A C-MOVE or C-GET under way. Its last records are made when it is dropped.
pub(super) struct Sending {
    audit: Audit,
    route: Route,
    studies: Mutex<BTreeMap<Uid, Sent>>,
}

impl Sending {
    /// An object was opened, and leaves.
    pub(super) fn leaves(&self, object: &archive::Stored) {
        let mut studies = self.studies.lock().unwrap_or_else(PoisonError::into_inner);
        let study = studies.entry(object.study_uid).or_default();
        *study.sent.entry(object.sop_class).or_default() += 1;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let studies = std::mem::take(&mut *self.studies.lock().unwrap_or_else(PoisonError::into_inner));
        for (study, Sent { wanted, sent }) in studies {
            let failed = wanted.values().sum::<u64>().saturating_sub(sent.values().sum());
            self.audit.record(Event::transferred(&self.route, &instances(study, &sent), failed));
        }
    }
}

/// The query as it may be kept: every key that was asked for, and of the values those alone that cannot be anybody's name, number or
/// birthday (docs/adr/0018): UIDs, modalities, and the dates of studies, series, acquisitions and contents.
fn without_names(query: &Query) -> DataSet {
    let mut kept = DataSet::new();
    kept.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, query.level.as_str());
    keep(&query.keys, &mut kept);
    kept
}

fn keep(keys: &BTreeMap<Tag, Key>, kept: &mut DataSet) {
    for (tag, key) in keys {
        match &key.criterion {
            Criterion::UidList(uids) => kept.put_texts(*tag, VR::UI, &uids.iter().map(Uid::as_str).collect::<Vec<_>>()),
            Criterion::Single(text) if MODALITIES.contains(tag) => kept.put_text(*tag, VR::CS, &modality(text.value())),
            Criterion::DateRange(range) if DATES.contains(tag) => kept.put_text(*tag, VR::DA, &dates(range)),
            Criterion::Sequence(keys) => {
                let mut item = DataSet::new();
                keep(keys, &mut item);
                kept.put(*tag, Element::sequence(vec![item]));
            }
            _ => kept.put(*tag, Element::empty(key.vr)),
        }
    }
}

/// A code of two to four letters, as those of PS3.3 C.7.3.1.1.1 are; anything else is not kept.
fn modality(value: &str) -> String {
    let is_one = (2..=4).contains(&value.len()) && value.chars().all(|c| c.is_ascii_uppercase());
    if is_one { value.to_owned() } else { String::new() }
}

fn dates(range: &Range<Date>) -> String {
    let text = |date: Option<Date>| date.map_or_else(String::new, |date| format!("{:08}", date.yyyymmdd()));
    let (from, to) = (text(range.from), text(range.to));
    if from == to { from } else { format!("{from}-{to}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dicom_scp::matching::QueryContext;

    fn kept(identifier: &DataSet) -> DataSet {
        let context = QueryContext { model: sop_class::Model::StudyRoot, relational: true, combined_date_time: false };
        without_names(&Query::parse(identifier, &context).unwrap())
    }

    #[test]
    fn of_a_query_every_key_is_kept_and_no_value_that_may_name_somebody() {
        const SECRETS: [(Tag, VR, &str); 7] = [
            (Tag(0x0010, 0x0010), VR::PN, "SECRET^NAME"),
            (Tag(0x0010, 0x0020), VR::LO, "SECRET-ID"),
            (Tag(0x0010, 0x0030), VR::DA, "19610203"),
            (Tag(0x0010, 0x0040), VR::CS, "F"),
            (Tag(0x0008, 0x0050), VR::SH, "SECRETACC"),
            (Tag(0x0008, 0x1030), VR::LO, "SECRET*"),
            (Tag(0x0008, 0x0090), VR::PN, "SECRET^REFERRER"),
        ];
        let mut identifier = DataSet::new();
        identifier.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, "STUDY");
        for (tag, vr, value) in SECRETS {
            identifier.put_text(tag, vr, value);
        }
        identifier.put_text(Tag(0x0020, 0x000d), VR::UI, "1.2.3\\1.2.4");
        identifier.put_text(Tag(0x0008, 0x0061), VR::CS, "CT");
        identifier.put_text(Tag(0x0008, 0x0020), VR::DA, "20240101-20240131");
        let kept = kept(&identifier);
        for (tag, _, _) in SECRETS {
            assert!(kept.get(tag).unwrap().is_empty(), "{tag:?}");
        }
        assert_eq!(kept.texts(Tag(0x0020, 0x000d)), ["1.2.3", "1.2.4"]);
        assert_eq!(kept.text(Tag(0x0008, 0x0061)).unwrap(), "CT");
        assert_eq!(kept.text(Tag(0x0008, 0x0020)).unwrap(), "20240101-20240131");
        let bytes = kept.write(Encoding::ExplicitLe);
        assert!(!bytes.windows(6).any(|run| run == b"SECRET") && !bytes.windows(8).any(|run| run == b"19610203"));
        // A name where a code belongs is not kept either.
        identifier.put_text(Tag(0x0008, 0x0061), VR::CS, "SECRET NAME");
        assert!(self::kept(&identifier).get(Tag(0x0008, 0x0061)).unwrap().is_empty());
    }
}
