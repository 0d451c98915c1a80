//! Objects and a client for the tests.

use std::path::{Path, PathBuf};

use bridge::archive::FileMeta;
use bridge::demo::phantom::{Phantom, Subject, ct_series};
use dicom_scp::dimse::Priority;
use dicom_scp::scu::{Association, Proposal, ScuOptions, StoreRequest};
use dicom_scp::{AeTitle, Status, TransferSyntax};

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
