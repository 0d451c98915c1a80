//! DICOM services over dicom-ul.
//!
//! Data sets, character sets and matching as pure functions; typed DIMSE commands; an association loop that calls a
//! site's services; and the same commands as a client. No policy, no storage, no configuration formats: those belong to the caller.

mod ae;
pub mod charset;
pub mod dataset;
pub mod dimse;
mod handshake;
pub mod matching;
pub mod message;
mod negotiation;
mod object;
pub mod scp;
pub mod scu;
pub mod sop_class;
pub mod status;
pub mod transcode;
mod transfer_syntax;
mod transport;
mod uid;

pub use ae::{AeTitle, AeTitleError};
pub use dataset::{DataSet, Element, Encoding, Tag, VR, Value};
pub use handshake::HandshakeError;
pub use negotiation::{
    AssociationRequest, Context, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Offer, Rejection, Roles,
    UserIdentity, UserIdentityKind,
};
pub use object::{Content, ObjectStream, StoreHead, StoreSink, Stored};
pub use status::{Failure, Operation, Outcome, Reason, Status, StatusKind};
pub use transfer_syntax::TransferSyntax;
pub use transport::{Stream, TransportError};
pub use uid::{Uid, UidError};
