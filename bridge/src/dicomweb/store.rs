//! STOW-RS (PS3.18 10.5): objects come over HTTP, into the archive while they come, and each has an outcome of its own.
//!
//! An object is durable when the answer says that it is stored, as after a C-STORE; and it is the same object whichever way it came. Must not know
//! how files are kept.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use dicom_scp::dataset::{DataSet, Element, Tag, VR};
use dicom_scp::{Failure, Operation, Reason, Status, TransferSyntax, Uid};
use ihe_retrieve::multipart::Step;
use tokio::task::JoinHandle;

use super::ask::Ask;
use super::made::Made;
use super::upload::{Broken, Kind, Upload};
use super::{body, json};
use crate::access::{Principal, Right};
use crate::archive::{ArchiveError, FileMeta, Incoming, ObjectHead, Part10Error};
use crate::dicom::store_failure;
use crate::dicom::trail::Trail;
use crate::http::{Api, Problem, blocking};

/// Objects that become durable while more come: they share what the disk is asked for.
const FINISHING_MAX: usize = 32;
/// Longest Error Comment, in characters (PS3.7 C.4).
const COMMENT_CHARS_MAX: usize = 64;
/// Whom objects come from when no peer is named.
const CALLING: &str = "STOW-RS";
/// Failure Reason where the transfer syntax is none that is taken (PS3.18 I.2.2).
const TRANSFER_SYNTAX_NOT_SUPPORTED: Status = Status(0xC122);
/// Seconds after which to try again when there is no room.
const RETRY_S: u64 = 60;

const ERROR_COMMENT: Tag = Tag(0x0000, 0x0902);
const REFERENCED_SOP_CLASS: Tag = Tag(0x0008, 0x1150);
const REFERENCED_SOP_INSTANCE: Tag = Tag(0x0008, 0x1155);
const RETRIEVE_URL: Tag = Tag(0x0008, 0x1190);
const FAILURE_REASON: Tag = Tag(0x0008, 0x1197);
const FAILED_SOP: Tag = Tag(0x0008, 0x1198);
const REFERENCED_SOP: Tag = Tag(0x0008, 0x1199);
const OTHER_FAILURES: Tag = Tag(0x0008, 0x119A);

/// Why an object was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: Status,
    comment: String,
}

impl Refusal {
    pub(super) fn new(status: Status, comment: impl Into<String>) -> Self {
        Self { status, comment: comment.into() }
    }

    pub(super) fn cannot_understand(comment: impl Into<String>) -> Self {
        Failure::new(Reason::CannotUnderstand, comment).into()
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { status: failure.status(Operation::Store), comment: failure.comment }
    }
}

impl From<ArchiveError> for Refusal {
    fn from(error: ArchiveError) -> Self {
        store_failure(&error).into()
    }
}

impl From<Part10Error> for Refusal {
    fn from(error: Part10Error) -> Self {
        Self::cannot_understand(format!("not a DICOM file: {error}"))
    }
}

/// What became of one object.
#[derive(Debug, Clone, Default)]
struct Outcome {
    sop_class: Option<Uid>,
    sop_instance: Option<Uid>,
    /// Study and series.
    place: Option<(Uid, Uid)>,
    refusal: Option<Refusal>,
}

/// Stores what the body has.
pub(super) async fn store(State(api): State<Api>, ask: Ask, body: Body) -> Result<Response, Problem> {
    ask.known.must(&api, Right::Store)?;
    let Some(media_type) = ask.accepted.one_of(&["application/dicom+json", "application/json"]) else {
        return Err(Problem::not_acceptable("the outcome is in application/dicom+json"));
    };
    let busy = |_| Problem::unavailable("as many uploads as may be are under way");
    let _room = api.uploads().clone().try_acquire_owned().map_err(busy)?;
    let upload = Upload::begin(&ask.headers, body)?;
    let calling = match &ask.known.caller().principal {
        Principal::Peer(title) => title.to_string(),
        _ => CALLING.to_owned(),
    };
    let trail = Trail::new(api.site().audit().clone(), ask.known.party());
    let mut intake = Intake {
        api: api.clone(),
        study: ask.target.study,
        calling,
        trail,
        outcomes: Vec::new(),
        finishing: VecDeque::new(),
    };
    let ended = match upload.kind() {
        Kind::Objects => intake.objects(upload).await,
        Kind::Described => {
            let _room = api.described().clone().try_acquire_owned().map_err(busy)?;
            intake.described(upload).await?
        }
    };
    let mut outcomes = intake.settled().await;
    match ended {
        // Of what came before, the sender must hear.
        Err(broken) if !outcomes.is_empty() => {
            let refusal = Some(Refusal::cannot_understand(broken.to_string()));
            outcomes.push(Outcome { refusal, ..Outcome::default() });
        }
        Err(Broken::Stalled) => return Err(Problem::too_slow()),
        Err(broken) => return Err(Problem::bad_request(broken.to_string())),
        Ok(()) if outcomes.is_empty() => return Err(Problem::bad_request("the body has no objects")),
        Ok(()) => {}
    }
    Ok(answer(&ask.url_root(), media_type, &outcomes))
}

/// Takes objects in, for one request.
struct Intake {
    api: Api,
    /// The study that the path names.
    study: Option<Uid>,
    calling: String,
    trail: Arc<Trail>,
    /// In the order of the body, as far as they are known.
    outcomes: Vec<Outcome>,
    finishing: VecDeque<JoinHandle<Outcome>>,
}

/// A part as far as it has come.
enum Part {
    /// Its beginning, before group 0002 is whole.
    Head(Vec<u8>),
    Object(Box<Incoming>, FileMeta),
    /// The rest is passed over.
    Refused(Option<FileMeta>, Refusal),
}

impl Intake {
    /// Each part is an object.
    async fn objects(&mut self, mut upload: Upload) -> Result<(), Broken> {
        let mut part = Part::Head(Vec::new());
        loop {
            match upload.next().await? {
                None => return Ok(()),
                Some(Step::Part(head)) => {
                    let stated = head.content_type.as_ref().map(|stated| stated.essence());
                    part = match stated {
                        None | Some("application/dicom") => Part::Head(Vec::new()),
                        Some(other) => {
                            Part::Refused(None, Refusal::cannot_understand(format!("a part of {other} among objects")))
                        }
                    };
                }
                Some(Step::Data(range)) => part = self.take(part, upload.data(range)),
                Some(Step::PartEnd) => {
                    let whole = std::mem::replace(&mut part, Part::Head(Vec::new()));
                    self.end(whole).await;
                }
                Some(Step::End) => return Ok(()),
            }
        }
    }

    /// The first part describes objects, which are made with the bulk data in the others.
    async fn described(&mut self, mut upload: Upload) -> Result<Result<(), Broken>, Problem> {
        let mut made = Made::default();
        loop {
            match upload.next().await {
                Err(broken) => return Ok(Err(broken)),
                Ok(Some(Step::Part(head))) => made.begin(head)?,
                Ok(Some(Step::Data(range))) => made.append(upload.data(range))?,
                Ok(Some(Step::PartEnd)) => {}
                Ok(Some(Step::End) | None) => break,
            }
        }
        for object in blocking(move || made.objects()).await?? {
            match blocking(move || object.made()).await? {
                Ok((meta, bytes)) => {
                    let part = self.begin(meta, &bytes);
                    self.end(part).await;
                }
                Err(not_made) => self.end(Part::Refused(not_made.meta, not_made.refusal)).await,
            }
        }
        Ok(Ok(()))
    }

    fn take(&self, part: Part, data: &[u8]) -> Part {
        match part {
            Part::Head(mut head) => {
                head.extend_from_slice(data);
                match FileMeta::begun(&head) {
                    Ok(None) => Part::Head(head),
                    Ok(Some((meta, offset))) => self.begin(meta, head.get(offset..).unwrap_or_default()),
                    Err(error) => Part::Refused(None, error.into()),
                }
            }
            Part::Object(mut incoming, meta) => match incoming.append(data) {
                Ok(()) => Part::Object(incoming, meta),
                Err(error) => Part::Refused(Some(meta), error.into()),
            },
            refused @ Part::Refused(..) => refused,
        }
    }

    /// Begins to file an object, with the beginning of its data set.
    fn begin(&self, meta: FileMeta, data: &[u8]) -> Part {
        let begun = self.admit(&meta).and_then(|()| {
            let FileMeta { sop_class, sop_instance, transfer_syntax } = meta;
            let head = ObjectHead { sop_class, sop_instance, transfer_syntax, calling_ae: self.calling.clone() };
            let mut incoming = self.api.site().archive().begin(head)?;
            incoming.append(data)?;
            Ok(incoming)
        });
        match begun {
            Ok(incoming) => Part::Object(Box::new(incoming), meta),
            Err(refusal) => Part::Refused(Some(meta), refusal),
        }
    }

    /// What is not taken over associations is not taken here.
    fn admit(&self, meta: &FileMeta) -> Result<(), Refusal> {
        let FileMeta { sop_class, transfer_syntax, .. } = meta;
        if !self.api.offer().stores(sop_class) {
            let comment = format!("no storage SOP class here: {sop_class}");
            return Err(Refusal::new(Status::CLASS_NOT_SUPPORTED, comment));
        }
        match TransferSyntax::of(transfer_syntax) {
            Some(syntax) if syntax.is_for_associations() => Ok(()),
            _ => {
                let comment = format!("transfer syntax {transfer_syntax} is not taken");
                Err(Refusal::new(TRANSFER_SYNTAX_NOT_SUPPORTED, comment))
            }
        }
    }

    /// A part is over. What of it is an object becomes durable while the next one comes.
    async fn end(&mut self, part: Part) {
        let part = match part {
            // Its group 0002 has no length, or it is too short to be one.
            Part::Head(head) => match FileMeta::read(&mut head.as_slice()) {
                Ok((meta, offset)) => {
                    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                    self.begin(meta, head.get(offset..).unwrap_or_default())
                }
                Err(error) => Part::Refused(None, error.into()),
            },
            other => other,
        };
        let (study, trail) = (self.study, self.trail.clone());
        let finishing = match part {
            Part::Object(incoming, meta) => self.api.spawn(finished(*incoming, meta, study, trail)),
            Part::Refused(meta, refusal) => {
                trail.not_stored();
                let outcome = Outcome {
                    sop_class: meta.as_ref().map(|meta| meta.sop_class),
                    sop_instance: meta.as_ref().map(|meta| meta.sop_instance),
                    place: None,
                    refusal: Some(refusal),
                };
                self.api.spawn(std::future::ready(outcome))
            }
            Part::Head(_) => return,
        };
        self.finishing.push_back(finishing);
        if self.finishing.len() > FINISHING_MAX {
            self.settle_one().await;
        }
    }

    async fn settle_one(&mut self) {
        let Some(first) = self.finishing.pop_front() else { return };
        let lost = |error: tokio::task::JoinError| {
            tracing::error!(%error, "storing an object ended early");
            Outcome { refusal: Some(Failure::new(Reason::Internal, "internal error").into()), ..Outcome::default() }
        };
        self.outcomes.push(first.await.unwrap_or_else(lost));
    }

    async fn settled(mut self) -> Vec<Outcome> {
        while !self.finishing.is_empty() {
            self.settle_one().await;
        }
        std::mem::take(&mut self.outcomes)
    }
}

/// Makes an object durable, if it is of the study that it is said to be of (PS3.18 10.5.1).
async fn finished(incoming: Incoming, meta: FileMeta, wanted: Option<Uid>, trail: Arc<Trail>) -> Outcome {
    let place = incoming.study_uid().zip(incoming.series_uid());
    let (sop_class, sop_instance) = (Some(meta.sop_class), Some(meta.sop_instance));
    let outcome = |refusal| Outcome { sop_class, sop_instance, place, refusal };
    let other = incoming.study_uid().filter(|found| wanted.is_some_and(|wanted| wanted != *found));
    if let Some(found) = other {
        trail.not_stored();
        let comment = format!("it is of study {found}");
        return outcome(Some(Failure::new(Reason::DataSetMismatch, comment).into()));
    }
    match incoming.finish().await {
        Ok(_) => {
            if let Some((study, _)) = place {
                trail.stored(study, meta.sop_class);
            }
            outcome(None)
        }
        Err(error) => {
            trail.not_stored();
            outcome(Some(error.into()))
        }
    }
}

/// The Store Instances Response (PS3.18 table 10.5.3-1 and annex I).
fn answer(root: &str, media_type: &str, outcomes: &[Outcome]) -> Response {
    let (mut stored, mut failed, mut other) = (Vec::new(), Vec::new(), Vec::new());
    for outcome in outcomes {
        let item = item(root, outcome);
        match (&outcome.refusal, outcome.sop_instance) {
            (None, _) => stored.push(item),
            (Some(_), Some(_)) => failed.push(item),
            (Some(_), None) => other.push(item),
        }
    }
    let status = match (stored.is_empty(), failed.is_empty() && other.is_empty()) {
        (false, true) => StatusCode::OK,
        (false, false) => StatusCode::ACCEPTED,
        // Worth another try, and nothing else is wrong.
        (true, _) if outcomes.iter().all(is_for_want_of_room) => StatusCode::SERVICE_UNAVAILABLE,
        (true, _) => StatusCode::CONFLICT,
    };
    let mut set = DataSet::new();
    let mut studies: Vec<Uid> = outcomes
        .iter()
        .filter(|outcome| outcome.refusal.is_none())
        .filter_map(|outcome| Some(outcome.place?.0))
        .collect();
    studies.dedup();
    if let [study] = studies.as_slice() {
        set.put_text(RETRIEVE_URL, VR::UR, &format!("{root}/studies/{study}"));
    }
    for (tag, items) in [(FAILED_SOP, failed), (REFERENCED_SOP, stored), (OTHER_FAILURES, other)] {
        if !items.is_empty() {
            set.put(tag, Element::sequence(items));
        }
    }
    let mut text = Vec::new();
    json::write(&set, None, &mut text);
    let mut response = body::answer(media_type, None, text);
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_S));
    }
    response
}

fn is_for_want_of_room(outcome: &Outcome) -> bool {
    outcome.refusal.as_ref().is_some_and(|refusal| refusal.status == Status::OUT_OF_RESOURCES)
}

fn item(root: &str, outcome: &Outcome) -> DataSet {
    let mut item = DataSet::new();
    for (tag, uid) in [(REFERENCED_SOP_CLASS, outcome.sop_class), (REFERENCED_SOP_INSTANCE, outcome.sop_instance)] {
        if let Some(uid) = uid {
            item.put_uid(tag, &uid);
        }
    }
    match (&outcome.refusal, outcome.place, outcome.sop_instance) {
        (Some(refusal), ..) => {
            item.put_u16(FAILURE_REASON, refusal.status.0);
            // No attribute of the response, but for who must find out what to do.
            let comment: String = refusal.comment.chars().take(COMMENT_CHARS_MAX).collect();
            item.put_text(ERROR_COMMENT, VR::LO, &comment);
        }
        (None, Some((study, series)), Some(instance)) => {
            let url = format!("{root}/studies/{study}/series/{series}/instances/{instance}");
            item.put_text(RETRIEVE_URL, VR::UR, &url);
        }
        _ => {}
    }
    item
}
