//! DIMSE status codes (PS3.7 annex C, PS3.4 B.2.3, C.4) and the one function that turns a failure into one.
//!
//! Must not know what went wrong underneath: callers say it in the words of [`Reason`].

use crate::dataset::Tag;
use std::fmt;

/// A status code (0000,0900).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(pub u16);

/// The class of a status (PS3.7 C.1 to C.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// Done.
    Success,
    /// Done, with a reservation.
    Warning,
    /// Not done.
    Failure,
    /// Stopped by C-CANCEL.
    Cancel,
    /// More responses follow.
    Pending,
}

impl Status {
    /// Success (PS3.7 C.1.1).
    pub const SUCCESS: Status = Status(0x0000);
    /// Processing failure (PS3.7 C.5.14).
    pub const PROCESSING_FAILURE: Status = Status(0x0110);
    /// No such SOP instance (PS3.7 C.5.12).
    pub const NO_SUCH_INSTANCE: Status = Status(0x0112);
    /// Invalid argument value (PS3.7 C.5.8).
    pub const INVALID_ARGUMENT: Status = Status(0x0115);
    /// Invalid SOP instance: the UID breaks the construction rules (PS3.7 C.5.15).
    pub const INVALID_INSTANCE: Status = Status(0x0117);
    /// Missing attribute (PS3.7 C.5.17).
    pub const MISSING_ATTRIBUTE: Status = Status(0x0120);
    /// SOP class not supported (PS3.7 C.5.6).
    pub const CLASS_NOT_SUPPORTED: Status = Status(0x0122);
    /// Not authorised (PS3.7 C.5.23).
    pub const NOT_AUTHORIZED: Status = Status(0x0124);
    /// Duplicate invocation: the message id is in use (PS3.7 C.5.11).
    pub const DUPLICATE_INVOCATION: Status = Status(0x0210);
    /// Unrecognised operation (PS3.7 C.5.13).
    pub const UNRECOGNIZED_OPERATION: Status = Status(0x0211);
    /// Mistyped argument (PS3.7 C.5.16).
    pub const MISTYPED_ARGUMENT: Status = Status(0x0212);
    /// Out of resources (PS3.4 B.2.3 for C-STORE, C.4.1.1.4 for C-FIND).
    pub const OUT_OF_RESOURCES: Status = Status(0xa700);
    /// Out of resources: unable to calculate the number of matches (PS3.4 C.4.2.1.5, C.4.3.1.4).
    pub const CANNOT_COUNT_MATCHES: Status = Status(0xa701);
    /// Out of resources: unable to perform sub-operations (PS3.4 C.4.2.1.5, C.4.3.1.4).
    pub const CANNOT_PERFORM_SUBOPERATIONS: Status = Status(0xa702);
    /// Move destination unknown (PS3.4 C.4.2.1.5).
    pub const MOVE_DESTINATION_UNKNOWN: Status = Status(0xa801);
    /// Data set (C-STORE, PS3.4 B.2.3) or identifier (C-FIND/MOVE/GET, PS3.4 C.4) does not match the SOP class.
    pub const DATA_SET_MISMATCH: Status = Status(0xa900);
    /// Sub-operations complete, one or more failed or warned (PS3.4 C.4.2.1.5).
    pub const SUBOPERATIONS_WITH_FAILURES: Status = Status(0xb000);
    /// Data set does not match SOP class, stored anyway (PS3.4 B.2.3).
    pub const STORED_DESPITE_MISMATCH: Status = Status(0xb007);
    /// Elements discarded (PS3.4 B.2.3).
    pub const ELEMENTS_DISCARDED: Status = Status(0xb006);
    /// Cannot understand (C-STORE) or unable to process (C-FIND/MOVE/GET); first of the range C000 to CFFF (PS3.4 B.2.3, C.4).
    pub const CANNOT_UNDERSTAND: Status = Status(0xc000);
    /// Terminated by C-CANCEL (PS3.4 C.4).
    pub const CANCEL: Status = Status(0xfe00);
    /// Matches continue, all optional keys supported (PS3.4 C.4.1.1.4); sub-operations continue.
    pub const PENDING: Status = Status(0xff00);
    /// Matches continue, one or more optional keys not supported (PS3.4 C.4.1.1.4).
    pub const PENDING_OPTIONAL_KEYS: Status = Status(0xff01);

    /// Which class of status this is.
    pub fn kind(self) -> StatusKind {
        match self.0 {
            0x0000 => StatusKind::Success,
            0xff00 | 0xff01 => StatusKind::Pending,
            0xfe00 => StatusKind::Cancel,
            // PS3.7 C.4: 0001, 0107, 0116 and Bxxx.
            0x0001 | 0x0107 | 0x0116 | 0xb000..=0xbfff => StatusKind::Warning,
            _ => StatusKind::Failure,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}H", self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

/// The DIMSE operations served (PS3.7 9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// C-ECHO.
    Echo,
    /// C-STORE.
    Store,
    /// C-FIND.
    Find,
    /// C-GET.
    Get,
    /// C-MOVE.
    Move,
}

/// Why an operation is not done, sorted by who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The peer sent something we cannot make sense of.
    CannotUnderstand,
    /// The peer's data set or identifier does not fit the SOP class or the command.
    DataSetMismatch,
    /// The peer's command lacks a mandatory attribute.
    MissingAttribute,
    /// The peer's command has an attribute with an impossible value.
    InvalidArgument,
    /// The peer's SOP instance UID is none.
    InvalidInstance,
    /// The peer asked for a service that its presentation context is not for.
    ClassNotSupported,
    /// The peer asked for an operation that does not exist or that we do not offer.
    UnrecognizedOperation,
    /// The peer may not do that.
    NotAuthorized,
    /// The C-MOVE destination is not known.
    UnknownDestination,
    /// The peer asked for something that is not there.
    NoSuchInstance,
    /// A resource (disk, memory, another system) is temporarily missing: worth a retry.
    OutOfResources,
    /// Something is broken on our side.
    Internal,
}

/// An operation that is answered with a failure status. The peer sees the status and the comment, so the comment must not name patients,
/// paths or accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub reason: Reason,
    /// Error Comment (0000,0902); cut to 64 characters when sent.
    pub comment: String,
    /// Offending Element (0000,0901).
    pub offending: Vec<Tag>,
}

impl Failure {
    /// A failure with a comment for the peer.
    pub fn new(reason: Reason, comment: impl Into<String>) -> Self {
        Failure { reason, comment: comment.into(), offending: Vec::new() }
    }

    /// Names the elements at fault.
    pub fn with_offending(mut self, offending: impl IntoIterator<Item = Tag>) -> Self {
        self.offending.extend(offending);
        self
    }

    /// The status that answers `operation` with this failure.
    pub fn status(&self, operation: Operation) -> Status {
        use Operation::*;
        match (self.reason, operation) {
            (Reason::OutOfResources, Store | Find) => Status::OUT_OF_RESOURCES,
            (Reason::OutOfResources, Get | Move) => Status::CANNOT_PERFORM_SUBOPERATIONS,
            (Reason::OutOfResources, Echo) => Status::PROCESSING_FAILURE,
            (Reason::CannotUnderstand, Echo) => Status::PROCESSING_FAILURE,
            (Reason::CannotUnderstand, _) => Status::CANNOT_UNDERSTAND,
            (Reason::DataSetMismatch, Echo) => Status::PROCESSING_FAILURE,
            (Reason::DataSetMismatch, _) => Status::DATA_SET_MISMATCH,
            (Reason::MissingAttribute, _) => Status::MISSING_ATTRIBUTE,
            (Reason::InvalidArgument, _) => Status::INVALID_ARGUMENT,
            (Reason::InvalidInstance, _) => Status::INVALID_INSTANCE,
            (Reason::ClassNotSupported, _) => Status::CLASS_NOT_SUPPORTED,
            (Reason::UnrecognizedOperation, _) => Status::UNRECOGNIZED_OPERATION,
            (Reason::NotAuthorized, _) => Status::NOT_AUTHORIZED,
            (Reason::UnknownDestination, _) => Status::MOVE_DESTINATION_UNKNOWN,
            (Reason::NoSuchInstance, _) => Status::NO_SUCH_INSTANCE,
            (Reason::Internal, _) => Status::PROCESSING_FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.comment)
    }
}

impl std::error::Error for Failure {}

/// What a response says about its operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Status (0000,0900).
    pub status: Status,
    /// Error Comment (0000,0902).
    pub comment: Option<String>,
    /// Offending Element (0000,0901).
    pub offending: Vec<Tag>,
}

impl Outcome {
    /// A bare status.
    pub fn of(status: Status) -> Self {
        Outcome { status, comment: None, offending: Vec::new() }
    }

    /// The answer to `operation` that failed.
    pub fn failed(failure: &Failure, operation: Operation) -> Self {
        Outcome {
            status: failure.status(operation),
            comment: Some(failure.comment.clone()).filter(|comment| !comment.is_empty()),
            offending: failure.offending.clone(),
        }
    }
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        Outcome::of(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_annex_c() {
        assert_eq!(Status::SUCCESS.kind(), StatusKind::Success);
        assert_eq!(Status::SUBOPERATIONS_WITH_FAILURES.kind(), StatusKind::Warning);
        assert_eq!(Status::ELEMENTS_DISCARDED.kind(), StatusKind::Warning);
        assert_eq!(Status::CANCEL.kind(), StatusKind::Cancel);
        assert_eq!(Status::PENDING_OPTIONAL_KEYS.kind(), StatusKind::Pending);
        assert_eq!(Status(0xcfff).kind(), StatusKind::Failure);
        assert_eq!(Status::CLASS_NOT_SUPPORTED.kind(), StatusKind::Failure);
    }

    #[test]
    fn the_same_reason_has_the_status_of_its_operation() {
        let full = Failure::new(Reason::OutOfResources, "disk full");
        assert_eq!(full.status(Operation::Store), Status(0xa700));
        assert_eq!(full.status(Operation::Move), Status(0xa702));
        assert_eq!(Failure::new(Reason::NotAuthorized, "").status(Operation::Find), Status(0x0124));
    }
}
