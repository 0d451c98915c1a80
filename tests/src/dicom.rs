//! Objects and a client for the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bridge::archive::FileMeta;
use bridge::demo::phantom::{Phantom, Subject, ct_series};
use dicom_scp::dimse::Priority;
use dicom_scp::scu::{Association, Proposal, Receiver, ScuOptions, StoreRequest};
use dicom_scp::{AeTitle, DataSet, Failure, Status, StoreHead, StoreSink, Stored, Tag, TransferSyntax, VR, sop_class};

/// A subject whose every attribute is unlikely to occur by chance.
pub fn subject(number: u32) -> Subject {
    Subject {
        patient_name: format!("Zyxwquist^Brunhilde{number}"),
        patient_id: format!("MRN-7390-{number}"),
        study_date: "19770707".into(),
        description: "Qwertz thorax".into(),
        accession: format!("ACCN9{number:03}"),
        study_uid: format!("1.2.826.0.1.3680043.9.7777.{number}"),
    }
}

/// Small CT slices of a study.
pub fn slices(study: u32, count: u32, side: u16) -> Vec<Phantom> {
    ct_series(&subject(study), count, side, u64::from(study))
}

/// Writes objects as DICOM files, as another program would have them.
pub fn write_files(dir: &Path, phantoms: &[Phantom]) -> Vec<PathBuf> {
    std::fs::create_dir_all(dir).unwrap();
    let files = phantoms.iter().map(|phantom| {
        let meta = FileMeta {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: phantom.transfer_syntax,
        };
        let path = dir.join(format!("{}.dcm", phantom.sop_instance));
        std::fs::write(&path, [meta.encode(), phantom.bytes.clone()].concat()).unwrap();
        path
    });
    files.collect()
}

/// The data set of a Part 10 file.
pub fn data_set(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let (_, offset) = FileMeta::read(&mut bytes.as_slice()).unwrap();
    bytes[offset as usize..].to_vec()
}

/// An association that may store CT objects.
pub async fn connect(address: std::net::SocketAddr, calling: &str) -> Option<Association> {
    let options = ScuOptions::new(AeTitle::new(calling).unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
    let class = slices(1, 1, 8)[0].sop_class;
    let proposal = Proposal::new(class, vec![TransferSyntax::EXPLICIT_VR_LE]);
    Association::connect(&address.ip().to_string(), address.port(), &options, &[proposal]).await.ok()
}

/// Stores one object; `None` when the association broke.
pub async fn store(association: &mut Association, phantom: &Phantom) -> Option<Status> {
    let request = StoreRequest {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        transfer_syntax: TransferSyntax::EXPLICIT_VR_LE,
        bytes: phantom.bytes.len() as u64,
        priority: Priority::Medium,
        move_originator: None,
    };
    association.store(&request, &mut phantom.bytes.as_slice()).await.ok().map(|outcome| outcome.status)
}

/// What a C-GET brought.
#[derive(Debug, Default)]
pub struct Got {
    /// Data sets by SOP Instance UID.
    pub data_sets: BTreeMap<String, Vec<u8>>,
    /// Failed SOP Instance UID List.
    pub failed: Vec<String>,
}

struct Keep(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

struct KeepOne {
    kept: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    uid: String,
    bytes: Vec<u8>,
}

impl Receiver for Keep {
    type Sink = KeepOne;

    async fn begin(&mut self, head: &StoreHead) -> Result<KeepOne, Failure> {
        Ok(KeepOne { kept: self.0.clone(), uid: head.sop_instance.to_string(), bytes: Vec::new() })
    }
}

impl StoreSink for KeepOne {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    async fn finish(self) -> Result<Stored, Failure> {
        self.kept.lock().unwrap().insert(self.uid, self.bytes);
        Ok(Stored::default())
    }
}

/// C-GET of a study of CT objects.
pub async fn get(address: std::net::SocketAddr, study_uid: &str) -> Got {
    let options = ScuOptions::new(AeTitle::new("GETTER").unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
    let class = slices(1, 1, 8)[0].sop_class;
    let proposals =
        [Proposal::plain(sop_class::STUDY_ROOT_GET), Proposal::receiving(class, vec![TransferSyntax::EXPLICIT_VR_LE])];
    let host = address.ip().to_string();
    let mut association = Association::connect(&host, address.port(), &options, &proposals).await.unwrap();
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, study_uid);
    let mut keep = Keep(Arc::default());
    let got = association.get(&sop_class::STUDY_ROOT_GET, &identifier, &mut keep).await.unwrap();
    association.release().await.unwrap();
    let data_sets = std::mem::take(&mut *keep.0.lock().unwrap());
    assert_eq!(usize::from(got.progress.completed), data_sets.len());
    Got { data_sets, failed: got.failed_instances.iter().map(ToString::to_string).collect() }
}
