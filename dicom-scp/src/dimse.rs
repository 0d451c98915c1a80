//! DIMSE-C commands (PS3.7 9.3 and annex E) as typed values, and their encoding as command sets.
//!
//! A command set is always implicit VR little endian (PS3.7 6.3.1). What can be answered is always parsed to something that can be
//! answered: a request with a missing or impossible attribute becomes [`Command::Invalid`] with the answer it deserves. Must not know
//! associations or presentation contexts.

use crate::{
    AeTitle, Uid,
    dataset::{DataSet, Element, Encoding, ReadEnd, ReadOptions, Tag, VR, read},
    status::{Failure, Operation, Outcome, Reason, Status},
};

mod tag {
    use crate::dataset::Tag;
    pub(super) const GROUP_LENGTH: Tag = Tag(0x0000, 0x0000);
    pub(super) const AFFECTED_CLASS: Tag = Tag(0x0000, 0x0002);
    pub(super) const REQUESTED_CLASS: Tag = Tag(0x0000, 0x0003);
    pub(super) const COMMAND_FIELD: Tag = Tag(0x0000, 0x0100);
    pub(super) const MESSAGE_ID: Tag = Tag(0x0000, 0x0110);
    pub(super) const RESPONDED_TO: Tag = Tag(0x0000, 0x0120);
    pub(super) const MOVE_DESTINATION: Tag = Tag(0x0000, 0x0600);
    pub(super) const PRIORITY: Tag = Tag(0x0000, 0x0700);
    pub(super) const DATA_SET_TYPE: Tag = Tag(0x0000, 0x0800);
    pub(super) const STATUS: Tag = Tag(0x0000, 0x0900);
    pub(super) const OFFENDING_ELEMENT: Tag = Tag(0x0000, 0x0901);
    pub(super) const ERROR_COMMENT: Tag = Tag(0x0000, 0x0902);
    pub(super) const AFFECTED_INSTANCE: Tag = Tag(0x0000, 0x1000);
    pub(super) const REQUESTED_INSTANCE: Tag = Tag(0x0000, 0x1001);
    pub(super) const REMAINING: Tag = Tag(0x0000, 0x1020);
    pub(super) const COMPLETED: Tag = Tag(0x0000, 0x1021);
    pub(super) const FAILED: Tag = Tag(0x0000, 0x1022);
    pub(super) const WARNING: Tag = Tag(0x0000, 0x1023);
    pub(super) const MOVE_ORIGINATOR: Tag = Tag(0x0000, 0x1030);
    pub(super) const MOVE_ORIGINATOR_MESSAGE_ID: Tag = Tag(0x0000, 0x1031);
}

/// Command Field (0000,0100) values, PS3.7 E.1.
mod field {
    pub(super) const STORE_RQ: u16 = 0x0001;
    pub(super) const GET_RQ: u16 = 0x0010;
    pub(super) const FIND_RQ: u16 = 0x0020;
    pub(super) const MOVE_RQ: u16 = 0x0021;
    pub(super) const ECHO_RQ: u16 = 0x0030;
    pub(super) const CANCEL_RQ: u16 = 0x0fff;
    /// Set in every response.
    pub(super) const RESPONSE: u16 = 0x8000;
}

/// Command Data Set Type (0000,0800): no data set follows. Anything else says that one does.
const NO_DATA_SET: u16 = 0x0101;
/// What we send when a data set follows.
const DATA_SET: u16 = 0x0001;
/// Error Comment (0000,0902) is of VR LO.
const COMMENT_CHARACTERS_MAX: usize = 64;

/// Priority (0000,0700), PS3.7 9.3. Carried, not acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// 0000H
    #[default]
    Medium,
    /// 0001H
    High,
    /// 0002H
    Low,
}

/// A DIMSE-C command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// C-ECHO-RQ (PS3.7 9.3.5.1).
    EchoRq(EchoRq),
    /// C-STORE-RQ (PS3.7 9.3.1.1).
    StoreRq(StoreRq),
    /// C-FIND-RQ (PS3.7 9.3.2.1).
    FindRq(QueryRq),
    /// C-GET-RQ (PS3.7 9.3.3.1).
    GetRq(QueryRq),
    /// C-MOVE-RQ (PS3.7 9.3.4.1).
    MoveRq(MoveRq),
    /// C-CANCEL-RQ (PS3.7 9.3.2.3) for the request with this message id.
    CancelRq {
        /// Message ID Being Responded To (0000,0120).
        responding_to: u16,
    },
    /// Any C-response.
    Response(Response),
    /// A known request that cannot be obeyed but can be answered.
    Invalid(InvalidRq),
    /// A request with a command field that is none of the above, DIMSE-N included.
    Unknown(UnknownRq),
}

/// C-ECHO-RQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoRq {
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected SOP Class UID (0000,0002).
    pub sop_class: Uid,
}

/// C-STORE-RQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRq {
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected SOP Class UID (0000,0002).
    pub sop_class: Uid,
    /// Affected SOP Instance UID (0000,1000).
    pub sop_instance: Uid,
    /// Priority (0000,0700).
    pub priority: Priority,
    /// The C-MOVE this store is a sub-operation of.
    pub move_originator: Option<MoveOriginator>,
}

/// Who asked for the C-MOVE that a C-STORE belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveOriginator {
    /// Move Originator Application Entity Title (0000,1030).
    pub ae_title: AeTitle,
    /// Move Originator Message ID (0000,1031).
    pub message_id: u16,
}

/// C-FIND-RQ and C-GET-RQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRq {
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected SOP Class UID (0000,0002).
    pub sop_class: Uid,
    /// Priority (0000,0700).
    pub priority: Priority,
}

/// C-MOVE-RQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveRq {
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected SOP Class UID (0000,0002).
    pub sop_class: Uid,
    /// Priority (0000,0700).
    pub priority: Priority,
    /// Move Destination (0000,0600).
    pub destination: AeTitle,
}

/// Any C-response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Which operation it answers.
    pub operation: Operation,
    /// Message ID Being Responded To (0000,0120).
    pub responding_to: u16,
    /// Affected SOP Class UID (0000,0002).
    pub sop_class: Option<Uid>,
    /// Affected SOP Instance UID (0000,1000), C-STORE only.
    pub sop_instance: Option<Uid>,
    /// Status, Error Comment and Offending Element.
    pub outcome: Outcome,
    /// The sub-operations of C-GET and C-MOVE.
    pub progress: Option<Progress>,
}

/// Number of sub-operations (0000,1020) to (0000,1023).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Still to do; absent from final responses other than cancel.
    pub remaining: Option<u16>,
    /// Done.
    pub completed: u16,
    /// Failed.
    pub failed: u16,
    /// Done with a warning.
    pub warning: u16,
}

/// A known request with an attribute missing or impossible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRq {
    /// Which operation it asks for.
    pub operation: Operation,
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected SOP Class UID (0000,0002), if valid.
    pub sop_class: Option<Uid>,
    /// What to answer.
    pub failure: Failure,
}

/// A request that is not a DIMSE-C one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownRq {
    /// Command Field (0000,0100).
    pub field: u16,
    /// Message ID (0000,0110).
    pub message_id: u16,
    /// Affected (0000,0002) or Requested SOP Class UID (0000,0003), if valid.
    pub sop_class: Option<Uid>,
    /// Affected (0000,1000) or Requested SOP Instance UID (0000,1001), if valid.
    pub sop_instance: Option<Uid>,
}

/// A command and whether a data set follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The command.
    pub command: Command,
    /// Command Data Set Type (0000,0800) says that a data set follows.
    pub has_data_set: bool,
}

/// A command set that cannot even be answered: the protocol is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not an implicit little endian data set.
    #[error("undecodable command set")]
    Undecodable,
    /// Command Field (0000,0100) missing.
    #[error("command set without command field")]
    NoCommandField,
    /// Message ID (0000,0110) or Message ID Being Responded To (0000,0120) missing.
    #[error("command set without message id")]
    NoMessageId,
    /// A response without Status (0000,0900).
    #[error("response without status")]
    NoStatus,
}

impl Command {
    /// Parses a command set.
    ///
    /// # Errors
    /// When the command set is such that no answer can be formed.
    pub fn parse(bytes: &[u8]) -> Result<Parsed, CommandError> {
        let options = ReadOptions { value_bytes_max: 4096, depth_max: 1, elements_max: 200, ..ReadOptions::default() };
        let (set, end) = read(bytes, Encoding::ImplicitLe, &options).map_err(|_| CommandError::Undecodable)?;
        if end != ReadEnd::Complete {
            return Err(CommandError::Undecodable);
        }
        let set = CommandSet(set);
        let field = set.u16(tag::COMMAND_FIELD).ok_or(CommandError::NoCommandField)?;
        let has_data_set = set.u16(tag::DATA_SET_TYPE).is_some_and(|kind| kind != NO_DATA_SET);
        let command = match field {
            field::CANCEL_RQ => {
                Command::CancelRq { responding_to: set.u16(tag::RESPONDED_TO).ok_or(CommandError::NoMessageId)? }
            }
            field if field & field::RESPONSE != 0 => Command::Response(set.response(field)?),
            field => {
                let message_id = set.u16(tag::MESSAGE_ID).ok_or(CommandError::NoMessageId)?;
                set.request(field, message_id)
            }
        };
        Ok(Parsed { command, has_data_set })
    }

    /// Encodes the command set, group length included.
    pub fn encode(&self, has_data_set: bool) -> Vec<u8> {
        let mut set = DataSet::new();
        match self {
            Command::EchoRq(rq) => put_request(&mut set, field::ECHO_RQ, rq.message_id, &rq.sop_class),
            Command::StoreRq(rq) => put_store(&mut set, rq),
            Command::FindRq(rq) => put_query(&mut set, field::FIND_RQ, rq),
            Command::GetRq(rq) => put_query(&mut set, field::GET_RQ, rq),
            Command::MoveRq(rq) => put_move(&mut set, rq),
            Command::CancelRq { responding_to } => {
                set.put_u16(tag::COMMAND_FIELD, field::CANCEL_RQ);
                set.put_u16(tag::RESPONDED_TO, *responding_to);
            }
            Command::Response(response) => put_response(&mut set, response),
            Command::Invalid(rq) => {
                set.put_u16(tag::COMMAND_FIELD, request_field(rq.operation));
                set.put_u16(tag::MESSAGE_ID, rq.message_id);
                put_uid(&mut set, tag::AFFECTED_CLASS, rq.sop_class.as_ref());
            }
            Command::Unknown(rq) => {
                set.put_u16(tag::COMMAND_FIELD, rq.field);
                set.put_u16(tag::MESSAGE_ID, rq.message_id);
                put_uid(&mut set, tag::AFFECTED_CLASS, rq.sop_class.as_ref());
                put_uid(&mut set, tag::AFFECTED_INSTANCE, rq.sop_instance.as_ref());
            }
        }
        finish(set, has_data_set)
    }
}

impl UnknownRq {
    /// The answer: the command field with the response bit and status 0211H (PS3.7 C.5.13). No data set follows it.
    pub fn refusal(&self) -> Vec<u8> {
        let mut set = DataSet::new();
        set.put_u16(tag::COMMAND_FIELD, self.field | field::RESPONSE);
        set.put_u16(tag::RESPONDED_TO, self.message_id);
        put_uid(&mut set, tag::AFFECTED_CLASS, self.sop_class.as_ref());
        put_uid(&mut set, tag::AFFECTED_INSTANCE, self.sop_instance.as_ref());
        put_outcome(&mut set, &Outcome::of(Status::UNRECOGNIZED_OPERATION));
        finish(set, false)
    }
}

/// A command set while it is being read.
struct CommandSet(DataSet);

impl CommandSet {
    fn u16(&self, tag: Tag) -> Option<u16> {
        u16::try_from(self.0.int(tag)?).ok()
    }

    fn request(&self, field: u16, message_id: u16) -> Command {
        let operation = match field {
            field::ECHO_RQ => Operation::Echo,
            field::STORE_RQ => Operation::Store,
            field::FIND_RQ => Operation::Find,
            field::GET_RQ => Operation::Get,
            field::MOVE_RQ => Operation::Move,
            _ => return self.unknown(field, message_id),
        };
        self.known(operation, message_id).unwrap_or_else(|failure| {
            let sop_class = self.0.uid(tag::AFFECTED_CLASS);
            Command::Invalid(InvalidRq { operation, message_id, sop_class, failure })
        })
    }

    fn known(&self, operation: Operation, message_id: u16) -> Result<Command, Failure> {
        let sop_class = self.mandatory_uid(tag::AFFECTED_CLASS, Reason::InvalidArgument)?;
        let priority = self.priority();
        Ok(match operation {
            Operation::Echo => Command::EchoRq(EchoRq { message_id, sop_class }),
            Operation::Find => Command::FindRq(QueryRq { message_id, sop_class, priority }),
            Operation::Get => Command::GetRq(QueryRq { message_id, sop_class, priority }),
            Operation::Move => {
                Command::MoveRq(MoveRq { message_id, sop_class, priority, destination: self.destination()? })
            }
            Operation::Store => {
                let sop_instance = self.mandatory_uid(tag::AFFECTED_INSTANCE, Reason::InvalidInstance)?;
                let move_originator = self.move_originator();
                Command::StoreRq(StoreRq { message_id, sop_class, sop_instance, priority, move_originator })
            }
        })
    }

    fn unknown(&self, field: u16, message_id: u16) -> Command {
        let either = |a, b| self.0.uid(a).or_else(|| self.0.uid(b));
        Command::Unknown(UnknownRq {
            field,
            message_id,
            sop_class: either(tag::AFFECTED_CLASS, tag::REQUESTED_CLASS),
            sop_instance: either(tag::AFFECTED_INSTANCE, tag::REQUESTED_INSTANCE),
        })
    }

    fn mandatory_uid(&self, tag: Tag, invalid: Reason) -> Result<Uid, Failure> {
        if self.0.get(tag).is_none_or(Element::is_empty) {
            return Err(Failure::new(Reason::MissingAttribute, "mandatory uid missing").with_offending([tag]));
        }
        self.0.uid(tag).ok_or_else(|| Failure::new(invalid, "not a valid uid").with_offending([tag]))
    }

    fn destination(&self) -> Result<AeTitle, Failure> {
        let tag = tag::MOVE_DESTINATION;
        let Some(text) = self.0.text(tag) else {
            return Err(Failure::new(Reason::MissingAttribute, "no move destination").with_offending([tag]));
        };
        AeTitle::new(&text)
            .map_err(|_| Failure::new(Reason::UnknownDestination, "not a valid ae title").with_offending([tag]))
    }

    fn priority(&self) -> Priority {
        match self.u16(tag::PRIORITY) {
            Some(1) => Priority::High,
            Some(2) => Priority::Low,
            _ => Priority::Medium,
        }
    }

    /// Information only, so a wrong one is no reason to refuse the object.
    fn move_originator(&self) -> Option<MoveOriginator> {
        let ae_title = AeTitle::new(&self.0.text(tag::MOVE_ORIGINATOR)?).ok()?;
        Some(MoveOriginator { ae_title, message_id: self.u16(tag::MOVE_ORIGINATOR_MESSAGE_ID).unwrap_or(0) })
    }

    fn response(&self, field: u16) -> Result<Response, CommandError> {
        let operation = match field & !field::RESPONSE {
            field::ECHO_RQ => Operation::Echo,
            field::STORE_RQ => Operation::Store,
            field::FIND_RQ => Operation::Find,
            field::GET_RQ => Operation::Get,
            field::MOVE_RQ => Operation::Move,
            _ => return Err(CommandError::NoCommandField),
        };
        Ok(Response {
            operation,
            responding_to: self.u16(tag::RESPONDED_TO).ok_or(CommandError::NoMessageId)?,
            sop_class: self.0.uid(tag::AFFECTED_CLASS),
            sop_instance: self.0.uid(tag::AFFECTED_INSTANCE),
            outcome: Outcome {
                status: Status(self.u16(tag::STATUS).ok_or(CommandError::NoStatus)?),
                comment: self.0.text(tag::ERROR_COMMENT),
                offending: self.offending(),
            },
            progress: self.progress(),
        })
    }

    fn offending(&self) -> Vec<Tag> {
        self.0.ints(tag::OFFENDING_ELEMENT).into_iter().map(|t| Tag((t >> 16) as u16, t as u16)).collect()
    }

    fn progress(&self) -> Option<Progress> {
        let count = |tag| self.u16(tag);
        let any = [tag::REMAINING, tag::COMPLETED, tag::FAILED, tag::WARNING].into_iter().any(|t| count(t).is_some());
        any.then(|| Progress {
            remaining: count(tag::REMAINING),
            completed: count(tag::COMPLETED).unwrap_or(0),
            failed: count(tag::FAILED).unwrap_or(0),
            warning: count(tag::WARNING).unwrap_or(0),
        })
    }
}

fn request_field(operation: Operation) -> u16 {
    match operation {
        Operation::Echo => field::ECHO_RQ,
        Operation::Store => field::STORE_RQ,
        Operation::Find => field::FIND_RQ,
        Operation::Get => field::GET_RQ,
        Operation::Move => field::MOVE_RQ,
    }
}

fn put_request(set: &mut DataSet, field: u16, message_id: u16, sop_class: &Uid) {
    set.put_u16(tag::COMMAND_FIELD, field);
    set.put_u16(tag::MESSAGE_ID, message_id);
    set.put_uid(tag::AFFECTED_CLASS, sop_class);
}

fn put_query(set: &mut DataSet, field: u16, rq: &QueryRq) {
    put_request(set, field, rq.message_id, &rq.sop_class);
    put_priority(set, rq.priority);
}

fn put_move(set: &mut DataSet, rq: &MoveRq) {
    put_request(set, field::MOVE_RQ, rq.message_id, &rq.sop_class);
    put_priority(set, rq.priority);
    set.put_text(tag::MOVE_DESTINATION, VR::AE, rq.destination.as_str());
}

fn put_store(set: &mut DataSet, rq: &StoreRq) {
    put_request(set, field::STORE_RQ, rq.message_id, &rq.sop_class);
    put_priority(set, rq.priority);
    set.put_uid(tag::AFFECTED_INSTANCE, &rq.sop_instance);
    if let Some(originator) = &rq.move_originator {
        set.put_text(tag::MOVE_ORIGINATOR, VR::AE, originator.ae_title.as_str());
        set.put_u16(tag::MOVE_ORIGINATOR_MESSAGE_ID, originator.message_id);
    }
}

fn put_priority(set: &mut DataSet, priority: Priority) {
    let code = match priority {
        Priority::Medium => 0,
        Priority::High => 1,
        Priority::Low => 2,
    };
    set.put_u16(tag::PRIORITY, code);
}

fn put_uid(set: &mut DataSet, tag: Tag, uid: Option<&Uid>) {
    if let Some(uid) = uid {
        set.put_uid(tag, uid);
    }
}

fn put_response(set: &mut DataSet, response: &Response) {
    set.put_u16(tag::COMMAND_FIELD, request_field(response.operation) | field::RESPONSE);
    set.put_u16(tag::RESPONDED_TO, response.responding_to);
    put_uid(set, tag::AFFECTED_CLASS, response.sop_class.as_ref());
    put_uid(set, tag::AFFECTED_INSTANCE, response.sop_instance.as_ref());
    put_outcome(set, &response.outcome);
    if let Some(progress) = response.progress {
        if let Some(remaining) = progress.remaining {
            set.put_u16(tag::REMAINING, remaining);
        }
        set.put_u16(tag::COMPLETED, progress.completed);
        set.put_u16(tag::FAILED, progress.failed);
        set.put_u16(tag::WARNING, progress.warning);
    }
}

fn put_outcome(set: &mut DataSet, outcome: &Outcome) {
    set.put_u16(tag::STATUS, outcome.status.0);
    if !outcome.offending.is_empty() {
        let bytes: Vec<u8> =
            outcome.offending.iter().flat_map(|tag| [tag.0.to_le_bytes(), tag.1.to_le_bytes()]).flatten().collect();
        set.put(tag::OFFENDING_ELEMENT, Element::bytes(VR::AT, bytes));
    }
    if let Some(comment) = &outcome.comment {
        set.put_text(tag::ERROR_COMMENT, VR::LO, &comment_value(comment));
    }
}

/// A command set has no Specific Character Set: the default repertoire, one value, at most 64 characters.
fn comment_value(comment: &str) -> String {
    let allowed = |c: char| match c {
        '\\' => '/',
        ' '..='~' => c,
        c if c.is_control() => ' ',
        _ => '?',
    };
    comment.chars().map(allowed).take(COMMENT_CHARACTERS_MAX).collect()
}

fn finish(mut set: DataSet, has_data_set: bool) -> Vec<u8> {
    set.put_u16(tag::DATA_SET_TYPE, if has_data_set { DATA_SET } else { NO_DATA_SET });
    let length = set.write(Encoding::ImplicitLe).len() as u32;
    set.put(tag::GROUP_LENGTH, Element::bytes(VR::UL, length.to_le_bytes()));
    set.write(Encoding::ImplicitLe)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CT: Uid = Uid::literal("1.2.840.10008.5.1.4.1.1.2");

    fn parse(bytes: &[u8]) -> Parsed {
        Command::parse(bytes).unwrap()
    }

    #[test]
    fn echo_request_bytes() {
        // PS3.7 table 9.3-12, implicit VR little endian.
        let golden: Vec<u8> = [
            b"\x00\x00\x00\x00\x04\0\0\0\x38\0\0\0".as_slice(), // (0000,0000) Command Group Length = 56
            b"\x00\x00\x02\x00\x12\0\0\x001.2.840.10008.1.1\0", // (0000,0002) Affected SOP Class UID, NUL padded
            b"\x00\x00\x00\x01\x02\0\0\0\x30\x00",              // (0000,0100) Command Field = C-ECHO-RQ
            b"\x00\x00\x10\x01\x02\0\0\0\x07\x00",              // (0000,0110) Message ID = 7
            b"\x00\x00\x00\x08\x02\0\0\0\x01\x01",              // (0000,0800) Command Data Set Type = no data set
        ]
        .concat();
        let command = Command::EchoRq(EchoRq { message_id: 7, sop_class: Uid::literal("1.2.840.10008.1.1") });
        assert_eq!(command.encode(false), golden);
        assert_eq!(parse(&golden), Parsed { command, has_data_set: false });
    }

    #[test]
    fn store_request_bytes() {
        // PS3.7 table 9.3-1, as a sub-operation of a C-MOVE.
        let golden: Vec<u8> = [
            b"\x00\x00\x00\x00\x04\0\0\0\x70\0\0\0".as_slice(), // (0000,0000) Command Group Length = 112
            b"\x00\x00\x02\x00\x1a\0\0\x001.2.840.10008.5.1.4.1.1.2\0", // (0000,0002) Affected SOP Class UID
            b"\x00\x00\x00\x01\x02\0\0\0\x01\x00",              // (0000,0100) Command Field = C-STORE-RQ
            b"\x00\x00\x10\x01\x02\0\0\0\x02\x01",              // (0000,0110) Message ID = 258
            b"\x00\x00\x00\x07\x02\0\0\0\x01\x00",              // (0000,0700) Priority = high
            b"\x00\x00\x00\x08\x02\0\0\0\x01\x00",              // (0000,0800) Command Data Set Type = data set follows
            b"\x00\x00\x00\x10\x06\0\0\x001.2.3\0",             // (0000,1000) Affected SOP Instance UID
            b"\x00\x00\x30\x10\x06\0\0\0MOVER ",                // (0000,1030) Move Originator AE Title
            b"\x00\x00\x31\x10\x02\0\0\0\x09\x00",              // (0000,1031) Move Originator Message ID = 9
        ]
        .concat();
        let command = Command::StoreRq(StoreRq {
            message_id: 258,
            sop_class: CT,
            sop_instance: Uid::literal("1.2.3"),
            priority: Priority::High,
            move_originator: Some(MoveOriginator { ae_title: AeTitle::new("MOVER").unwrap(), message_id: 9 }),
        });
        assert_eq!(command.encode(true), golden);
        assert_eq!(parse(&golden), Parsed { command, has_data_set: true });
    }

    #[test]
    fn move_response_bytes() {
        // PS3.7 table 9.3-10: a pending response with a comment.
        let golden: Vec<u8> = [
            b"\x00\x00\x00\x00\x04\0\0\0\x6e\0\0\0".as_slice(), // (0000,0000) Command Group Length = 110
            b"\x00\x00\x00\x01\x02\0\0\0\x21\x80",              // (0000,0100) Command Field = C-MOVE-RSP
            b"\x00\x00\x20\x01\x02\0\0\0\x05\x00",              // (0000,0120) Message ID Being Responded To = 5
            b"\x00\x00\x00\x08\x02\0\0\0\x01\x01",              // (0000,0800) Command Data Set Type = no data set
            b"\x00\x00\x00\x09\x02\0\0\0\x00\xff",              // (0000,0900) Status = pending
            b"\x00\x00\x01\x09\x04\0\0\0\x08\x00\x52\x00",      // (0000,0901) Offending Element = (0008,0052)
            b"\x00\x00\x02\x09\x0a\0\0\0no caf?/x ",            // (0000,0902) Error Comment, default repertoire only
            b"\x00\x00\x20\x10\x02\0\0\0\x04\x00",              // (0000,1020) Number of Remaining Sub-operations
            b"\x00\x00\x21\x10\x02\0\0\0\x03\x00",              // (0000,1021) Number of Completed Sub-operations
            b"\x00\x00\x22\x10\x02\0\0\0\x02\x00",              // (0000,1022) Number of Failed Sub-operations
            b"\x00\x00\x23\x10\x02\0\0\0\x01\x00",              // (0000,1023) Number of Warning Sub-operations
        ]
        .concat();
        let mut response = Response {
            operation: Operation::Move,
            responding_to: 5,
            sop_class: None,
            sop_instance: None,
            outcome: Outcome {
                status: Status::PENDING,
                comment: Some("no café\\x".into()),
                offending: vec![Tag(0x0008, 0x0052)],
            },
            progress: Some(Progress { remaining: Some(4), completed: 3, failed: 2, warning: 1 }),
        };
        assert_eq!(Command::Response(response.clone()).encode(false), golden);
        response.outcome.comment = Some("no caf?/x".into());
        assert_eq!(parse(&golden).command, Command::Response(response));
    }

    #[test]
    fn every_command_survives_encoding() {
        let query = QueryRq { message_id: 65535, sop_class: CT, priority: Priority::Low };
        let commands = [
            Command::FindRq(query.clone()),
            Command::GetRq(query.clone()),
            Command::CancelRq { responding_to: 3 },
            Command::MoveRq(MoveRq {
                message_id: 0,
                sop_class: CT,
                priority: Priority::Medium,
                destination: AeTitle::new("DEST").unwrap(),
            }),
            Command::Unknown(UnknownRq { field: 0x0130, message_id: 3, sop_class: Some(CT), sop_instance: None }),
        ];
        for command in commands {
            assert_eq!(parse(&command.encode(true)).command, command);
        }
    }

    #[test]
    fn requests_with_bad_attributes_keep_their_message_id() {
        let mut set = DataSet::new();
        set.put_u16(tag::COMMAND_FIELD, field::STORE_RQ);
        set.put_u16(tag::MESSAGE_ID, 77);
        set.put_uid(tag::AFFECTED_CLASS, &CT);
        let invalid = |set: &DataSet| match parse(&finish(set.clone(), true)).command {
            Command::Invalid(rq) => (rq.message_id, rq.failure.status(rq.operation), rq.failure.offending),
            other => panic!("{other:?}"),
        };
        let instance = vec![tag::AFFECTED_INSTANCE];
        assert_eq!(invalid(&set), (77, Status::MISSING_ATTRIBUTE, instance.clone()));
        set.put_text(tag::AFFECTED_INSTANCE, VR::UI, "../../etc/passwd");
        assert_eq!(invalid(&set), (77, Status::INVALID_INSTANCE, instance));
    }

    #[test]
    fn unknown_requests_are_refused_with_the_response_bit() {
        let rq = UnknownRq { field: 0x0150, message_id: 9, sop_class: None, sop_instance: None };
        let (set, _) = read(&rq.refusal(), Encoding::ImplicitLe, &ReadOptions::default()).unwrap();
        assert_eq!(set.int(tag::COMMAND_FIELD), Some(0x8150));
        assert_eq!(set.int(tag::RESPONDED_TO), Some(9));
        assert_eq!(set.int(tag::STATUS), Some(0x0211));
    }

    #[test]
    fn what_cannot_be_answered_is_an_error() {
        assert_eq!(Command::parse(b"garbage"), Err(CommandError::Undecodable));
        assert_eq!(Command::parse(b""), Err(CommandError::NoCommandField));
        let mut set = DataSet::new();
        set.put_u16(tag::COMMAND_FIELD, field::ECHO_RQ);
        assert_eq!(Command::parse(&finish(set, false)), Err(CommandError::NoMessageId));
    }
}
