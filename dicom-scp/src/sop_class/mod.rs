//! SOP classes: which service a presentation context's abstract syntax stands for (PS3.4, PS3.6 annex A).
//!
//! Must not know which services a site offers.

mod storage;

use crate::Uid;

/// UID, name in PS3.6 and whether it is retired.
type Row = (&'static str, &'static str, bool);

/// Verification SOP class (PS3.4 A.4).
pub const VERIFICATION: Uid = Uid::literal("1.2.840.10008.1.1");
/// Patient Root Query/Retrieve - FIND (PS3.4 C.6.1.3).
pub const PATIENT_ROOT_FIND: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.1.1");
/// Patient Root Query/Retrieve - MOVE.
pub const PATIENT_ROOT_MOVE: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.1.2");
/// Patient Root Query/Retrieve - GET.
pub const PATIENT_ROOT_GET: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.1.3");
/// Study Root Query/Retrieve - FIND (PS3.4 C.6.2.3).
pub const STUDY_ROOT_FIND: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.2.1");
/// Study Root Query/Retrieve - MOVE.
pub const STUDY_ROOT_MOVE: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.2.2");
/// Study Root Query/Retrieve - GET.
pub const STUDY_ROOT_GET: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.2.3");
/// Patient/Study Only Query/Retrieve - FIND (retired).
pub const PATIENT_STUDY_ONLY_FIND: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.3.1");
/// Patient/Study Only Query/Retrieve - MOVE (retired).
pub const PATIENT_STUDY_ONLY_MOVE: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.3.2");
/// Patient/Study Only Query/Retrieve - GET (retired).
pub const PATIENT_STUDY_ONLY_GET: Uid = Uid::literal("1.2.840.10008.5.1.4.1.2.3.3");

/// The root of a query/retrieve information model (PS3.4 C.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Model {
    /// Patient, study, series, image. The retired Patient/Study Only model is its upper half.
    PatientRoot,
    /// Study (with the patient's attributes), series, image.
    StudyRoot,
}

/// What a SOP class is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// C-ECHO.
    Verification,
    /// C-STORE.
    Storage,
    /// C-FIND over an information model.
    Find(Model),
    /// C-MOVE over an information model.
    Move(Model),
    /// C-GET over an information model.
    Get(Model),
}

/// A storage SOP class of the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageClass {
    /// The SOP class UID.
    pub uid: Uid,
    /// The name in PS3.6, without "(Retired)".
    pub name: &'static str,
    /// Retired from the standard; still found in archives.
    pub retired: bool,
}

/// The service of a SOP class of the standard, if it is one we know to serve.
pub fn service(uid: &Uid) -> Option<Service> {
    QUERY_RETRIEVE
        .iter()
        .find(|(known, _)| known == uid)
        .map(|(_, service)| *service)
        .or_else(|| storage_class(uid).map(|_| Service::Storage))
}

/// The storage SOP class with this UID.
pub fn storage_class(uid: &Uid) -> Option<StorageClass> {
    let i = storage::STORAGE.binary_search_by(|row| row.0.cmp(uid.as_str())).ok()?;
    storage::STORAGE.get(i).map(from_row)
}

/// All storage SOP classes of the standard, sorted by UID.
pub fn storage_classes() -> impl Iterator<Item = StorageClass> {
    storage::STORAGE.iter().map(from_row)
}

fn from_row(row: &Row) -> StorageClass {
    StorageClass { uid: Uid::literal(row.0), name: row.1, retired: row.2 }
}

static QUERY_RETRIEVE: [(Uid, Service); 10] = [
    (VERIFICATION, Service::Verification),
    (PATIENT_ROOT_FIND, Service::Find(Model::PatientRoot)),
    (PATIENT_ROOT_MOVE, Service::Move(Model::PatientRoot)),
    (PATIENT_ROOT_GET, Service::Get(Model::PatientRoot)),
    (STUDY_ROOT_FIND, Service::Find(Model::StudyRoot)),
    (STUDY_ROOT_MOVE, Service::Move(Model::StudyRoot)),
    (STUDY_ROOT_GET, Service::Get(Model::StudyRoot)),
    (PATIENT_STUDY_ONLY_FIND, Service::Find(Model::PatientRoot)),
    (PATIENT_STUDY_ONLY_MOVE, Service::Move(Model::PatientRoot)),
    (PATIENT_STUDY_ONLY_GET, Service::Get(Model::PatientRoot)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_every_class_is_found() {
        assert!(storage::STORAGE.is_sorted_by(|a, b| a.0 < b.0));
        for class in storage_classes() {
            assert_eq!(service(&class.uid), Some(Service::Storage), "{}", class.name);
        }
        assert!(storage_classes().count() > 200);
    }

    #[test]
    fn services_of_a_few() {
        assert_eq!(service(&Uid::literal("1.2.840.10008.5.1.4.1.1.2")), Some(Service::Storage));
        assert_eq!(service(&VERIFICATION), Some(Service::Verification));
        assert_eq!(service(&STUDY_ROOT_GET), Some(Service::Get(Model::StudyRoot)));
        // Storage Commitment and the media directory are not storage classes.
        assert_eq!(service(&Uid::literal("1.2.840.10008.1.20.1")), None);
        assert_eq!(service(&Uid::literal("1.2.840.10008.1.3.10")), None);
    }
}
