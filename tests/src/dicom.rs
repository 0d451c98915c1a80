//! Objects and a client for the tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// The same objects in another series of their study: `from` and `to` are the last component of its UID, one digit each.
pub fn in_series(study: u32, phantoms: Vec<Phantom>, from: char, to: char) -> Vec<Phantom> {
    let name = |series: char| format!("{}.{series}", subject(study).study_uid);
    let (from, to) = (name(from), name(to));
    let moved = |phantom: Phantom| {
        let uid = phantom.sop_instance.to_string().replacen(&from, &to, 1);
        let mut bytes = phantom.bytes;
        for at in 0..bytes.len().saturating_sub(from.len()) {
            if bytes[at..].starts_with(from.as_bytes()) {
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            }
        }
        Phantom { sop_instance: dicom_scp::Uid::new(&uid).unwrap(), bytes, ..phantom }
    };
    phantoms.into_iter().map(moved).collect()
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
pub async fn connect(address: SocketAddr, calling: &str) -> Option<Association> {
    connect_to(address, calling, "PACSBRIDGE").await
}

/// As [`connect`], to a server of another title.
pub async fn connect_to(address: SocketAddr, calling: &str, called: &str) -> Option<Association> {
    let class = slices(1, 1, 8)[0].sop_class;
    associate(address, calling, called, &[Proposal::new(class, vec![TransferSyntax::EXPLICIT_VR_LE])]).await
}

async fn associate(address: SocketAddr, calling: &str, called: &str, proposals: &[Proposal]) -> Option<Association> {
    let options = ScuOptions::new(AeTitle::new(calling).unwrap(), AeTitle::new(called).unwrap());
    Association::connect(&address.ip().to_string(), address.port(), &options, proposals).await.ok()
}

/// Stores 40 small slices of each study, an association a study, until the server breaks off or `cut` is set. Returns the data sets
/// whose success arrived before that, by SOP Instance UID; `count` is how many there are so far.
pub async fn burst(
    address: SocketAddr,
    called: &'static str,
    studies: std::ops::Range<u32>,
    cut: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> BTreeMap<String, Vec<u8>> {
    let mut tasks = tokio::task::JoinSet::new();
    for study in studies {
        let (cut, count) = (cut.clone(), count.clone());
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            let Some(mut open) = connect_to(address, "BURST", called).await else { return acknowledged };
            for phantom in slices(study, 40, 96) {
                if store(&mut open, &phantom).await != Some(Status::SUCCESS) || cut.load(Ordering::SeqCst) {
                    break;
                }
                acknowledged.push((phantom.sop_instance.to_string(), phantom.bytes));
                count.fetch_add(1, Ordering::SeqCst);
            }
            acknowledged
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// What C-GET brings of a study, as far as the server gets with it: data sets by SOP Instance UID.
pub async fn get_study(address: SocketAddr, called: &str, study: u32) -> BTreeMap<String, Vec<u8>> {
    let class = slices(1, 1, 8)[0].sop_class;
    let proposals =
        [Proposal::plain(sop_class::STUDY_ROOT_GET), Proposal::receiving(class, vec![TransferSyntax::EXPLICIT_VR_LE])];
    let mut kept = Keep::default();
    if let Some(mut open) = associate(address, "GETTER", called, &proposals).await {
        let mut identifier = DataSet::default();
        identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
        identifier.put_text(Tag(0x0020, 0x000D), VR::UI, &subject(study).study_uid);
        // A server that lost something says so or breaks off; what came counts.
        let _ = open.get(&sop_class::STUDY_ROOT_GET, &identifier, &mut kept).await;
    }
    std::mem::take(&mut *kept.0.lock().unwrap())
}

#[derive(Default)]
struct Keep(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Receiver for Keep {
    type Sink = Keeping;

    async fn begin(&mut self, head: &StoreHead) -> Result<Keeping, Failure> {
        Ok(Keeping { uid: head.sop_instance.to_string(), bytes: Vec::new(), all: self.0.clone() })
    }
}

struct Keeping {
    uid: String,
    bytes: Vec<u8>,
    all: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl StoreSink for Keeping {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    async fn finish(self) -> Result<Stored, Failure> {
        self.all.lock().unwrap().insert(self.uid, self.bytes);
        Ok(Stored::default())
    }
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

/// C-GET of a study of CT objects.
pub async fn get(address: SocketAddr, study_uid: &str) -> Got {
    let options = ScuOptions::new(AeTitle::new("GETTER").unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
    let class = slices(1, 1, 8)[0].sop_class;
    let capture = dicom_scp::Uid::new("1.2.840.10008.5.1.4.1.1.7").unwrap();
    let receive = |class| Proposal::receiving(class, vec![TransferSyntax::EXPLICIT_VR_LE]);
    let proposals = [Proposal::plain(sop_class::STUDY_ROOT_GET), receive(class), receive(capture)];
    let host = address.ip().to_string();
    let mut association = Association::connect(&host, address.port(), &options, &proposals).await.unwrap();
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, study_uid);
    let mut keep = Keep::default();
    let got = association.get(&sop_class::STUDY_ROOT_GET, &identifier, &mut keep).await.unwrap();
    association.release().await.unwrap();
    let data_sets = std::mem::take(&mut *keep.0.lock().unwrap());
    assert_eq!(usize::from(got.progress.completed), data_sets.len());
    Got { data_sets, failed: got.failed_instances.iter().map(ToString::to_string).collect() }
}
