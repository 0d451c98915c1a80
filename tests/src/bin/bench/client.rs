//! The one client that every server gets: our own, which costs less than the others' and so hides less of the server.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dicom_scp::dataset::DataSet;
use dicom_scp::dimse::Priority;
use dicom_scp::scu::{Association, Proposal, Receiver, Retrieved, ScuOptions, StoreRequest, is_stored};
use dicom_scp::{AeTitle, Failure, StoreHead, StoreSink, Stored, Tag, Uid, VR, sop_class};
use tokio::io::AsyncRead;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::objects::{Object, SYNTAX};
use crate::servers::Target;

const CALLING: &str = "BENCH";
/// Long enough for a server that answers half a gigabyte only after syncing it on a busy machine.
const ANSWER_TIMEOUT_MS: u64 = 900_000;

/// Errors with their causes, on one line.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

pub(crate) async fn connect(target: &Target, proposals: &[Proposal]) -> Outcome<Association> {
    let title = |text: &str| AeTitle::new(text).map_err(|e| e.to_string());
    let mut options = ScuOptions::new(title(CALLING)?, title(target.called)?);
    options.dimse_timeout_ms = ANSWER_TIMEOUT_MS;
    let host = target.address.ip().to_string();
    Association::connect(&host, target.address.port(), &options, proposals).await.map_err(|e| words(&e))
}

async fn store_one(
    association: &mut Association,
    (sop_class, sop_instance): (Uid, Uid),
    bytes: u64,
    source: &mut (impl AsyncRead + Unpin),
) -> Outcome<()> {
    let transfer_syntax = SYNTAX;
    let priority = Priority::Medium;
    let request = StoreRequest { sop_class, sop_instance, transfer_syntax, bytes, priority, move_originator: None };
    let outcome = association.store(&request, source).await.map_err(|e| words(&e))?;
    if is_stored(&outcome) { Ok(()) } else { Err(format!("C-STORE answered {}", outcome.status)) }
}

/// Stores the objects over so many associations at once, a range of them each. The time runs from the first C-STORE request
/// to the last response; associating is not in it.
pub(crate) async fn store(target: &Target, objects: &Arc<Vec<Object>>, associations: usize) -> Outcome<Duration> {
    let proposal = Proposal::new(objects[0].sop_class, vec![SYNTAX]);
    let size = objects.len().div_ceil(associations);
    let mut open = Vec::new();
    for first in (0..objects.len()).step_by(size) {
        let association = connect(target, std::slice::from_ref(&proposal)).await?;
        open.push((association, first..(first + size).min(objects.len())));
    }
    let begun = Instant::now();
    let mut senders = JoinSet::new();
    for (association, range) in open {
        senders.spawn(send(association, objects.clone(), range));
    }
    let mut sent = Vec::new();
    while let Some(association) = senders.join_next().await {
        sent.push(association.map_err(|e| e.to_string())??);
    }
    let took = begun.elapsed();
    for association in sent {
        association.release().await.map_err(|e| words(&e))?;
    }
    Ok(took)
}

async fn send(mut association: Association, objects: Arc<Vec<Object>>, range: Range<usize>) -> Outcome<Association> {
    for object in &objects[range] {
        let uids = (object.sop_class, object.sop_instance);
        store_one(&mut association, uids, object.bytes.len() as u64, &mut object.bytes.as_slice()).await?;
    }
    Ok(association)
}

/// Stores objects of one class over one association.
pub(crate) async fn store_files(target: &Target, class: Uid, files: &[(Uid, Vec<u8>)]) -> Outcome<Duration> {
    let mut association = connect(target, &[Proposal::new(class, vec![SYNTAX])]).await?;
    let begun = Instant::now();
    for (instance, bytes) in files {
        store_one(&mut association, (class, *instance), bytes.len() as u64, &mut bytes.as_slice()).await?;
    }
    let took = begun.elapsed();
    association.release().await.map_err(|e| words(&e))?;
    Ok(took)
}

/// Stores one object from a reader.
pub(crate) async fn store_stream(
    target: &Target,
    uids: (Uid, Uid),
    bytes: u64,
    source: &mut (impl AsyncRead + Unpin),
) -> Outcome<Duration> {
    let mut association = connect(target, &[Proposal::new(uids.0, vec![SYNTAX])]).await?;
    let begun = Instant::now();
    store_one(&mut association, uids, bytes, source).await?;
    let took = begun.elapsed();
    association.release().await.map_err(|e| words(&e))?;
    Ok(took)
}

/// A study-level identifier: every plain attribute of a work list comes back, computed ones are not asked for.
pub(crate) fn study_query(key: Tag, vr: VR, value: &str) -> DataSet {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    for (tag, vr) in [
        (Tag(0x0008, 0x0020), VR::DA),
        (Tag(0x0008, 0x0030), VR::TM),
        (Tag(0x0008, 0x0050), VR::SH),
        (Tag(0x0008, 0x1030), VR::LO),
        (Tag(0x0010, 0x0010), VR::PN),
        (Tag(0x0010, 0x0020), VR::LO),
        (Tag(0x0020, 0x000D), VR::UI),
    ] {
        identifier.put_text(tag, vr, "");
    }
    identifier.put_text(key, vr, value);
    identifier
}

/// One C-FIND; the number of matches and the time to the final response.
pub(crate) async fn find(association: &mut Association, identifier: &DataSet) -> Outcome<(usize, Duration)> {
    let mut found = 0;
    let begun = Instant::now();
    let outcome = association
        .find(&sop_class::STUDY_ROOT_FIND, identifier, |_| {
            found += 1;
            ControlFlow::Continue(())
        })
        .await
        .map_err(|e| words(&e))?;
    let took = begun.elapsed();
    if is_stored(&outcome) { Ok((found, took)) } else { Err(format!("C-FIND answered {}", outcome.status)) }
}

/// What a retrieve brought.
#[derive(Default)]
struct Received {
    objects: AtomicU64,
    bytes: AtomicU64,
}

/// Counts what comes and keeps nothing.
struct Discard(Arc<Received>);

impl Receiver for Discard {
    type Sink = Count;

    async fn begin(&mut self, _: &StoreHead) -> Result<Count, Failure> {
        Ok(Count(self.0.clone()))
    }
}

struct Count(Arc<Received>);

impl StoreSink for Count {
    async fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.0.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn finish(self) -> Result<Stored, Failure> {
        self.0.objects.fetch_add(1, Ordering::Relaxed);
        Ok(Stored::default())
    }
}

fn study_identifier(study_uid: &str) -> DataSet {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, study_uid);
    identifier
}

fn check(operation: &str, retrieved: &Retrieved, objects: u64) -> Outcome<()> {
    let progress = &retrieved.progress;
    if is_stored(&retrieved.outcome) && u64::from(progress.completed) == objects && progress.failed == 0 {
        return Ok(());
    }
    let status = retrieved.outcome.status;
    let (completed, failed) = (progress.completed, progress.failed);
    Err(format!("{operation} answered {status}: {completed} completed, {failed} failed of {objects}"))
}

/// C-GET of a study, counted and thrown away.
pub(crate) async fn get(target: &Target, study_uid: &str, class: Uid, objects: u64, bytes: u64) -> Outcome<Duration> {
    let proposals = [Proposal::plain(sop_class::STUDY_ROOT_GET), Proposal::receiving(class, vec![SYNTAX])];
    let mut association = connect(target, &proposals).await?;
    let received = Arc::new(Received::default());
    let begun = Instant::now();
    let got = association
        .get(&sop_class::STUDY_ROOT_GET, &study_identifier(study_uid), &mut Discard(received.clone()))
        .await
        .map_err(|e| words(&e))?;
    let took = begun.elapsed();
    association.release().await.map_err(|e| words(&e))?;
    check("C-GET", &got, objects)?;
    let came = (received.objects.load(Ordering::Relaxed), received.bytes.load(Ordering::Relaxed));
    if came.0 == objects && came.1.abs_diff(bytes) < 4096 * objects {
        Ok(took)
    } else {
        Err(format!("C-GET brought {} objects, {} bytes where {objects}, {bytes} were stored", came.0, came.1))
    }
}

/// C-MOVE of a study to `destination`, which the target must know.
pub(crate) async fn r#move(target: &Target, study_uid: &str, destination: &str, objects: u64) -> Outcome<Duration> {
    let mut association = connect(target, &[Proposal::plain(sop_class::STUDY_ROOT_MOVE)]).await?;
    let destination = AeTitle::new(destination).map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let moved = association
        .r#move(&sop_class::STUDY_ROOT_MOVE, &destination, &study_identifier(study_uid), |_| ControlFlow::Continue(()))
        .await
        .map_err(|e| words(&e))?;
    let took = begun.elapsed();
    association.release().await.map_err(|e| words(&e))?;
    check("C-MOVE", &moved, objects).map(|()| took)
}
