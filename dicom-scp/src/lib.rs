//! DICOM services over dicom-ul.
//!
//! Data sets, character sets and matching as pure functions; typed DIMSE commands; an association loop that calls a
//! site's services; and the same commands as a client. No policy, no storage, no configuration formats: those belong to the caller.

mod ae;
pub mod charset;
pub mod dataset;
pub mod sop_class;
mod transfer_syntax;
mod uid;

pub use ae::{AeTitle, AeTitleError};
pub use dataset::{DataSet, Element, Encoding, Tag, VR, Value};
pub use transfer_syntax::TransferSyntax;
pub use uid::{Uid, UidError};
