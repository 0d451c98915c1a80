//! A site kept in memory, synthetic objects, and help with other people's programs.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

use dicom_scp::{
    AeTitle, AssociationRequest, Content, DataSet, Element, Failure, ObjectStream, Operation, Reason, Rejection,
    StoreHead, StoreSink, Stored, Tag, TransferSyntax, Uid, VR,
    dataset::{ReadOptions, read},
    matching::{Level, Query, matches},
    scp::{Destination, Drained, ScpOptions, Selected, Services, serve},
    scu::{Association, Proposal, ScuOptions},
};
use std::{
    collections::{BTreeMap, HashMap},
    io::Cursor,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpListener,
    sync::{Notify, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub const CT: Uid = Uid::literal("1.2.840.10008.5.1.4.1.1.2");
pub const MR: Uid = Uid::literal("1.2.840.10008.5.1.4.1.1.4");

pub const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
pub const SOP_CLASS: Tag = Tag(0x0008, 0x0016);
pub const SOP_INSTANCE: Tag = Tag(0x0008, 0x0018);
pub const STUDY_DATE: Tag = Tag(0x0008, 0x0020);
pub const LEVEL: Tag = Tag(0x0008, 0x0052);
pub const MODALITY: Tag = Tag(0x0008, 0x0060);
pub const PATIENT_NAME: Tag = Tag(0x0010, 0x0010);
pub const PATIENT_ID: Tag = Tag(0x0010, 0x0020);
pub const STUDY_UID: Tag = Tag(0x0020, 0x000d);
pub const SERIES_UID: Tag = Tag(0x0020, 0x000e);
pub const INSTANCE_NUMBER: Tag = Tag(0x0020, 0x0013);
pub const PIXEL_DATA: Tag = Tag(0x7fe0, 0x0010);

/// One object of the site.
#[derive(Debug, Clone)]
pub struct Kept {
    pub head: StoreHead,
    pub bytes: Vec<u8>,
    pub header: DataSet,
}

/// The site: every trait method over a map. Faults are switched on by tests.
#[derive(Default)]
pub struct Site {
    pub objects: Mutex<BTreeMap<Uid, Kept>>,
    pub destinations: Mutex<HashMap<AeTitle, (String, u16)>>,
    pub requests: Mutex<Vec<AssociationRequest>>,
    pub refuse: Mutex<Option<Rejection>>,
    /// Answers the next begin of a store.
    pub begin_failure: Mutex<Option<Failure>>,
    /// Fails the write after so many bytes.
    pub disk_bytes: Mutex<Option<usize>>,
    /// Sinks begun and not yet finished or dropped.
    pub open_sinks: AtomicUsize,
    /// C-FIND never ends by itself.
    pub endless_find: AtomicBool,
    /// Set when a find stream is dropped.
    pub find_dropped: Arc<Notify>,
    /// `select` waits for this when `slow_select` is set.
    pub slow_select: AtomicBool,
    pub select_started: Notify,
    /// `open` waits for a permit of this.
    pub open_gate: Mutex<Option<Arc<Semaphore>>>,
    /// In which transfer syntaxes every object can be had besides its own.
    pub others: Mutex<Vec<TransferSyntax>>,
    /// What is made of this one breaks off.
    pub breaks: Mutex<Option<Uid>>,
}

pub struct MemorySink {
    pub site: Arc<Site>,
    pub head: StoreHead,
    pub bytes: Vec<u8>,
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.site.open_sinks.fetch_sub(1, Ordering::SeqCst);
    }
}

impl StoreSink for MemorySink {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        let full = self.site.disk_bytes.lock().unwrap().is_some_and(|max| self.bytes.len() + data.len() > max);
        if full {
            return Err(Failure::new(Reason::OutOfResources, "disk full"));
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    async fn finish(mut self) -> Result<Stored, Failure> {
        let options = ReadOptions { stop_at: Some(PIXEL_DATA), ..ReadOptions::default() };
        let (header, _) = read(&self.bytes, self.head.transfer_syntax.encoding(), &options)
            .map_err(|_| Failure::new(Reason::CannotUnderstand, "undecodable data set"))?;
        if header.uid(SOP_INSTANCE) != Some(self.head.sop_instance) {
            return Err(Failure::new(Reason::DataSetMismatch, "sop instance uid").with_offending([SOP_INSTANCE]));
        }
        let kept = Kept { head: self.head.clone(), bytes: std::mem::take(&mut self.bytes), header };
        self.site.objects.lock().unwrap().insert(self.head.sop_instance, kept);
        Ok(Stored::default())
    }
}

/// The site behind the services trait.
#[derive(Clone)]
pub struct Front(pub Arc<Site>);

type Matches = std::pin::Pin<Box<dyn futures::Stream<Item = Result<DataSet, Failure>> + Send>>;

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Services for Front {
    type Session = AeTitle;
    type Sink = MemorySink;
    type Handle = Uid;
    type Matches = Matches;

    fn admit(&self, request: &AssociationRequest) -> Result<AeTitle, Rejection> {
        self.0.requests.lock().unwrap().push(request.clone());
        match *self.0.refuse.lock().unwrap() {
            Some(rejection) => Err(rejection),
            None => Ok(request.calling.clone()),
        }
    }

    async fn begin_store(&self, _: &AeTitle, head: &StoreHead) -> Result<MemorySink, Failure> {
        if let Some(failure) = self.0.begin_failure.lock().unwrap().take() {
            return Err(failure);
        }
        self.0.open_sinks.fetch_add(1, Ordering::SeqCst);
        Ok(MemorySink { site: self.0.clone(), head: head.clone(), bytes: Vec::new() })
    }

    async fn find(&self, _: &AeTitle, query: Query) -> Result<Matches, Failure> {
        if self.0.endless_find.load(Ordering::SeqCst) {
            let guard = NotifyOnDrop(self.0.find_dropped.clone());
            let endless = futures::stream::repeat_with(move || {
                let _ = &guard;
                Ok(DataSet::new())
            });
            return Ok(Box::pin(endless));
        }
        let mut entities: BTreeMap<String, DataSet> = BTreeMap::new();
        for kept in self.0.objects.lock().unwrap().values() {
            let key = kept.header.text(query.level.unique_key()).unwrap_or_default();
            entities.entry(key).or_insert_with(|| kept.header.clone());
        }
        let found: Vec<_> = entities.values().filter(|e| matches(e, &query)).map(|e| Ok(query.project(e))).collect();
        Ok(Box::pin(futures::stream::iter(found)))
    }

    async fn select(&self, _: &AeTitle, _: Operation, query: Query) -> Result<Vec<Selected<Uid>>, Failure> {
        if self.0.slow_select.load(Ordering::SeqCst) {
            self.0.select_started.notify_one();
            std::future::pending::<()>().await;
        }
        let objects = self.0.objects.lock().unwrap();
        let selected = objects.values().filter(|kept| matches(&kept.header, &query)).map(|kept| Selected {
            sop_class: kept.head.sop_class,
            sop_instance: kept.head.sop_instance,
            transfer_syntax: kept.head.transfer_syntax,
            others: self.0.others.lock().unwrap().clone(),
            handle: kept.head.sop_instance,
        });
        Ok(selected.collect())
    }

    async fn open(&self, _: &AeTitle, handle: &Uid, wanted: &TransferSyntax) -> Result<ObjectStream, Failure> {
        let gate = self.0.open_gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let objects = self.0.objects.lock().unwrap();
        let kept = objects.get(handle).ok_or_else(|| Failure::new(Reason::NoSuchInstance, "gone"))?;
        if *wanted != kept.head.transfer_syntax {
            // Whatever it is, these bytes stand for what is made of it.
            let made = Cursor::new(kept.header.write(wanted.encoding()));
            let breaks = *self.0.breaks.lock().unwrap() == Some(*handle);
            let failing = tokio_util::io::StreamReader::new(futures::stream::iter(
                breaks.then(|| Err::<bytes::Bytes, _>(std::io::Error::other("a frame is damaged"))),
            ));
            let content = Content::Made(Box::new(made.chain(failing)));
            return Ok(ObjectStream { transfer_syntax: *wanted, bytes: 0, content });
        }
        // Some lengths from memory and some from a reader, so that both ways are tested.
        let content = match kept.bytes.len() / 2 % 2 {
            0 => Content::Whole(kept.bytes.clone().into()),
            _ => Content::Reader(Box::new(Cursor::new(kept.bytes.clone()))),
        };
        Ok(ObjectStream { transfer_syntax: kept.head.transfer_syntax, bytes: kept.bytes.len() as u64, content })
    }

    async fn destination(&self, _: &AeTitle, ae_title: &AeTitle) -> Result<Destination, Failure> {
        let destinations = self.0.destinations.lock().unwrap();
        let (host, port) = destinations
            .get(ae_title)
            .ok_or_else(|| Failure::new(Reason::UnknownDestination, "no such destination"))?
            .clone();
        Ok(Destination { host, port, options: ScuOptions::new(ae("SITE"), ae_title.clone()) })
    }
}

/// A site that is being served on a port of its own.
pub struct Served {
    pub site: Arc<Site>,
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Drained>,
}

impl Served {
    pub async fn start(options: ScpOptions) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (site, shutdown) = (Arc::new(Site::default()), CancellationToken::new());
        let task = tokio::spawn(serve(listener, options, Arc::new(Front(site.clone())), shutdown.clone()));
        Served { site, address, shutdown, task }
    }

    pub async fn default() -> Served {
        Self::start(ScpOptions::default()).await
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn count(&self) -> usize {
        self.site.objects.lock().unwrap().len()
    }

    pub async fn associate(&self, proposals: &[Proposal]) -> Association {
        let options = ScuOptions::new(ae("TESTER"), ae("SITE"));
        Association::connect("127.0.0.1", self.port(), &options, proposals).await.unwrap()
    }

    /// Ends serving and insists that nothing was left over.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let drained = tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap();
        assert_eq!(drained.abandoned, 0);
        assert_eq!(self.site.open_sinks.load(Ordering::SeqCst), 0, "every sink was finished or dropped");
    }

    /// Puts an object there without DIMSE.
    pub fn keep(&self, object: &DataSet, transfer_syntax: TransferSyntax) {
        let head = StoreHead {
            sop_class: object.uid(SOP_CLASS).unwrap(),
            sop_instance: object.uid(SOP_INSTANCE).unwrap(),
            transfer_syntax,
            move_originator: None,
            calling: ae("LOCAL"),
            called: ae("SITE"),
            peer: self.address,
            message_id: 1,
        };
        let bytes = object.write(transfer_syntax.encoding());
        let kept = Kept { head: head.clone(), bytes, header: object.clone() };
        self.site.objects.lock().unwrap().insert(head.sop_instance, kept);
    }
}

pub fn ae(title: &str) -> AeTitle {
    AeTitle::new(title).unwrap()
}

pub fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

/// A synthetic CT image: study, series and instance by number, `pixels` bytes of pixel data that differ by instance.
pub fn ct(study: u32, series: u32, instance: u32, pixels: usize) -> DataSet {
    let mut object = DataSet::new();
    let root = "1.2.826.0.1.3680043.10.1449";
    object.put_text(PATIENT_NAME, VR::PN, &format!("Test^Patient{study}"));
    object.put_text(PATIENT_ID, VR::LO, &format!("P{study}"));
    object.put_text(SOP_CLASS, VR::UI, CT.as_str());
    object.put_text(SOP_INSTANCE, VR::UI, &format!("{root}.{study}.{series}.{instance}"));
    object.put_text(STUDY_UID, VR::UI, &format!("{root}.{study}"));
    object.put_text(SERIES_UID, VR::UI, &format!("{root}.{study}.{series}"));
    object.put_text(STUDY_DATE, VR::DA, &format!("202601{:02}", study % 28 + 1));
    object.put_text(MODALITY, VR::CS, "CT");
    object.put_text(INSTANCE_NUMBER, VR::IS, &instance.to_string());
    object.put_text(Tag(0x0028, 0x0004), VR::CS, "MONOCHROME2");
    for (element, value) in [
        (0x0002, 1),
        (0x0010, 16),
        (0x0011, (pixels / 32) as u16),
        (0x0100, 16),
        (0x0101, 16),
        (0x0102, 15),
        (0x0103, 0),
    ] {
        object.put_u16(Tag(0x0028, element), value);
    }
    let noise = (0..pixels).map(|i| (i as u32 ^ instance.wrapping_mul(2_654_435_761)) as u8);
    object.put(PIXEL_DATA, Element::bytes(VR::OW, noise.collect::<Vec<u8>>()));
    object
}

/// A Part 10 file (PS3.10 7) of an object.
pub fn part10(object: &DataSet, transfer_syntax: TransferSyntax) -> Vec<u8> {
    let mut meta = DataSet::new();
    meta.put(Tag(0x0002, 0x0001), Element::bytes(VR::OB, [0, 1]));
    meta.put_text(Tag(0x0002, 0x0002), VR::UI, &object.text(SOP_CLASS).unwrap());
    meta.put_text(Tag(0x0002, 0x0003), VR::UI, &object.text(SOP_INSTANCE).unwrap());
    meta.put_text(Tag(0x0002, 0x0010), VR::UI, transfer_syntax.uid().as_str());
    meta.put_text(Tag(0x0002, 0x0012), VR::UI, "1.2.826.0.1.3680043.10.1449.1");
    let length = meta.write(dicom_scp::Encoding::ExplicitLe).len() as u32;
    meta.put(Tag(0x0002, 0x0000), Element::bytes(VR::UL, length.to_le_bytes()));
    let mut file = vec![0; 128];
    file.extend(b"DICM");
    file.extend(meta.write(dicom_scp::Encoding::ExplicitLe));
    file.extend(object.write(transfer_syntax.encoding()));
    file
}

/// The data set bytes of a Part 10 file.
pub fn data_set_of(file: &[u8]) -> Vec<u8> {
    let options = ReadOptions { stop_at: Some(Tag(0x0003, 0)), ..ReadOptions::default() };
    let body = &file[132..];
    match read(body, dicom_scp::Encoding::ExplicitLe, &options).unwrap().1 {
        dicom_scp::dataset::ReadEnd::Stopped { offset, .. } => body[offset..].to_vec(),
        other => panic!("{other:?}"),
    }
}

pub fn write_files(directory: &Path, objects: &[DataSet], transfer_syntax: TransferSyntax) -> Vec<PathBuf> {
    let write = |(i, object): (usize, &DataSet)| {
        let path = directory.join(format!("{i:04}.dcm"));
        std::fs::write(&path, part10(object, transfer_syntax)).unwrap();
        path
    };
    objects.iter().enumerate().map(write).collect()
}

/// An identifier for C-FIND, C-MOVE or C-GET.
pub fn identifier(level: Level, keys: &[(Tag, VR, &str)]) -> DataSet {
    let mut identifier = DataSet::new();
    identifier.put_text(LEVEL, VR::CS, level.as_str());
    for (tag, vr, value) in keys {
        identifier.put_text(*tag, *vr, value);
    }
    identifier
}

/// Whether a program is there. Prints why the test is skipped, or fails when tools are required.
pub fn has_tool(name: &str) -> bool {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var("REQUIRE_TOOLS").as_deref() != Ok("1"), "{name} is missing");
        eprintln!("SKIPPED: {name} missing");
    }
    found
}

/// Runs a program to its end, off the runtime, with all its output.
pub async fn run(program: &str, arguments: Vec<String>) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(&arguments).env("TCP_NODELAY", "1").kill_on_drop(true).stdin(Stdio::null());
    tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A program that ends with the test.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn args(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|a| (*a).to_owned()).collect()
}
