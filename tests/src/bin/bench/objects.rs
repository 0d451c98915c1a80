//! The objects that are sent: CT slices with new UIDs for every run, small ones for queries, and one that is never in memory.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bridge::demo::phantom::{Subject, ct_series};
use dicom_scp::dataset::{DataSet, Encoding, ReadOptions, Tag, VR, read};
use dicom_scp::{TransferSyntax, Uid};
use tokio::io::{AsyncRead, ReadBuf};

/// Every study of a run is named by a number of ten digits below this root; patients likewise.
const STUDY_ROOT: &str = "1.2.826.0.1.3680043.9.7777.";
const PATIENT_ROOT: &str = "BENCH-P";
const DIGITS: usize = 10;

static LAST_NUMBER: AtomicU64 = AtomicU64::new(1_000_000_000);

/// A number that no other study of this run has.
pub(crate) fn fresh_number() -> u64 {
    LAST_NUMBER.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn study_uid(number: u64) -> String {
    format!("{STUDY_ROOT}{number}")
}

/// One object in memory.
pub(crate) struct Object {
    pub(crate) sop_class: Uid,
    pub(crate) sop_instance: Uid,
    pub(crate) bytes: Vec<u8>,
    /// Where the number of the study or patient stands in the bytes.
    numbers: Vec<usize>,
    /// What follows the study in the SOP Instance UID.
    tail: String,
}

impl Object {
    /// Moves the object to another study and patient, which changes every UID in it.
    pub(crate) fn renumber(&mut self, number: u64) {
        let digits = number.to_string();
        assert_eq!(digits.len(), DIGITS);
        for at in &self.numbers {
            self.bytes[*at..*at + DIGITS].copy_from_slice(digits.as_bytes());
        }
        self.sop_instance = Uid::new(&format!("{STUDY_ROOT}{digits}{}", self.tail)).unwrap();
    }
}

fn positions(bytes: &[u8], text: &str) -> Vec<usize> {
    let header = &bytes[..bytes.len().min(4096)];
    let found = header.windows(text.len()).enumerate().filter(|(_, window)| *window == text.as_bytes());
    found.map(|(at, _)| at + text.len()).collect()
}

/// A CT series of `count` slices of `side` x `side` pixels, 16 bits.
pub(crate) fn slices(count: u32, side: u16) -> Vec<Object> {
    let number = fresh_number();
    let subject = Subject {
        patient_name: "Bench^Phantom".into(),
        patient_id: format!("{PATIENT_ROOT}{number}"),
        study_date: "20200102".into(),
        description: "CT chest".into(),
        accession: "BENCH1".into(),
        study_uid: study_uid(number),
    };
    let objects = ct_series(&subject, count, side, 1).into_iter().map(|phantom| Object {
        numbers: [positions(&phantom.bytes, STUDY_ROOT), positions(&phantom.bytes, PATIENT_ROOT)].concat(),
        tail: phantom.sop_instance.as_str()[STUDY_ROOT.len() + DIGITS..].to_owned(),
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        bytes: phantom.bytes,
    });
    objects.collect()
}

/// Splits objects over so many modalities, each with a study of its own; ranges of the same list. Returns the study numbers.
pub(crate) fn deal(objects: &mut [Object], modalities: usize) -> Vec<u64> {
    let size = objects.len().div_ceil(modalities);
    let parts = objects.chunks_mut(size).map(|part| {
        let number = fresh_number();
        part.iter_mut().for_each(|object| object.renumber(number));
        number
    });
    parts.collect()
}

/// What is asked for by queries: study `n` of a set, two studies a patient.
pub(crate) struct Person(pub(crate) u32);

impl Person {
    pub(crate) fn of_study(study: u32) -> Self {
        Self(study / 2)
    }

    pub(crate) fn id(&self) -> String {
        format!("PID{:06}", self.0)
    }

    pub(crate) fn name(&self) -> String {
        format!("FAMILY{:06}^GIVEN", self.0)
    }

    /// Matches ten people, that is twenty studies.
    pub(crate) fn name_prefix(&self) -> String {
        format!("FAMILY{:05}*", self.0 / 10)
    }

    /// Matches this person only, but no index can know that.
    pub(crate) fn name_inside(&self) -> String {
        format!("*MILY{:06}^*", self.0)
    }
}

/// The patient and study of a query set.
pub(crate) fn subject(study: u32) -> Subject {
    let person = Person::of_study(study);
    Subject {
        patient_name: person.name(),
        patient_id: person.id(),
        study_date: format!("2020{:02}{:02}", study % 12 + 1, study % 28 + 1),
        description: "CT chest".into(),
        accession: format!("ACC{study:07}"),
        study_uid: query_study_uid(study),
    }
}

pub(crate) fn query_study_uid(study: u32) -> String {
    format!("1.2.826.0.1.3680043.9.7778.{study}")
}

/// `instances` tiny objects of study `n` of a query set.
pub(crate) fn tiny(study: u32, instances: u32) -> Vec<Object> {
    let phantoms = ct_series(&subject(study), instances, 8, u64::from(study)).into_iter();
    let objects = phantoms.map(|phantom| Object {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        bytes: phantom.bytes,
        numbers: Vec::new(),
        tail: String::new(),
    });
    objects.collect()
}

const SIDE: u16 = 512;
const FRAME_BYTES: usize = SIDE as usize * SIDE as usize * 2;

/// One object of many frames, computed while it is read.
pub(crate) struct MultiFrame {
    pub(crate) sop_class: Uid,
    pub(crate) sop_instance: Uid,
    pub(crate) bytes: u64,
    head: Vec<u8>,
    /// A CT slice; every frame is this with noise of its own.
    slice: Vec<u8>,
}

impl MultiFrame {
    pub(crate) fn new(number: u64, frames: u32) -> Self {
        let mut objects = slices(1, SIDE);
        let mut object = objects.remove(0);
        object.renumber(number);
        let stop = ReadOptions { stop_at: Some(Tag(0x7FE0, 0x0010)), ..ReadOptions::default() };
        let (mut set, _) = read(&object.bytes, Encoding::ExplicitLe, &stop).unwrap();
        // Multi-frame Grayscale Word Secondary Capture Image Storage.
        let sop_class = Uid::new("1.2.840.10008.5.1.4.1.1.7.3").unwrap();
        set.put_text(Tag(0x0008, 0x0016), VR::UI, sop_class.as_str());
        set.put_text(Tag(0x0028, 0x0008), VR::IS, &frames.to_string());
        let pixel_bytes = FRAME_BYTES as u64 * u64::from(frames);
        let head = with_pixel_header(&set, pixel_bytes);
        let slice = object.bytes[object.bytes.len() - FRAME_BYTES..].to_vec();
        let bytes = head.len() as u64 + pixel_bytes;
        Self { sop_class, sop_instance: object.sop_instance, bytes, head, slice }
    }

    pub(crate) fn reader(&self) -> impl AsyncRead + Unpin + Send + use<> {
        let (head, slice) = (self.head.clone(), self.slice.clone());
        Frames { head, frame: slice.clone(), slice, position: 0, random: 0x9E37_79B9_7F4A_7C15 }
    }
}

/// The data set and the header of its pixel data: tag, OW, two bytes reserved, length.
fn with_pixel_header(set: &DataSet, pixel_bytes: u64) -> Vec<u8> {
    let mut head = set.write(Encoding::ExplicitLe);
    head.extend([0xE0, 0x7F, 0x10, 0x00, b'O', b'W', 0, 0]);
    head.extend(u32::try_from(pixel_bytes).unwrap().to_le_bytes());
    head
}

struct Frames {
    head: Vec<u8>,
    slice: Vec<u8>,
    frame: Vec<u8>,
    position: usize,
    random: u64,
}

impl Frames {
    /// Three bits of noise on every pixel, so that no compressor finds the last frame again in this one.
    fn next_frame(&mut self) {
        for (from, to) in self.slice.chunks_exact(8).zip(self.frame.chunks_exact_mut(8)) {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let pixels = from.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            to.copy_from_slice(&(pixels ^ (self.random & 0x0007_0007_0007_0007)).to_le_bytes());
        }
    }
}

impl AsyncRead for Frames {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while buf.remaining() > 0 {
            let (source, at) = match self.position.checked_sub(self.head.len()) {
                None => (&self.head, self.position),
                Some(beyond) => {
                    if beyond % FRAME_BYTES == 0 {
                        self.next_frame();
                    }
                    (&self.frame, beyond % FRAME_BYTES)
                }
            };
            let count = buf.remaining().min(source.len() - at);
            buf.put_slice(&source[at..at + count]);
            self.position += count;
        }
        Poll::Ready(Ok(()))
    }
}

/// The transfer syntax of everything here.
pub(crate) const SYNTAX: TransferSyntax = TransferSyntax::EXPLICIT_VR_LE;
