//! The wire of signed IHE retrieval: ITI-43 Retrieve Document Set and RAD-69 Retrieve Imaging Document Set, as the bridge speaks them.
//!
//! Octets in, typed values or typed faults out. A request goes [`message::RequestHead::admit`] → [`verify::verify`] →
//! [`response::respond`]; a requester goes [`requester::sign`] → [`receiver::ResponseReader`].
//!
//! This crate must not know: ledgers and grants, files of studies, sockets, configuration, clocks and random numbers. Time is an argument and so
//! is every nonce, which makes all of it repeatable and fit for fuzzing.

mod der;
mod envelope;
pub mod fault;
pub mod identifier;
pub mod key;
pub mod limits;
pub mod media_type;
pub mod message;
pub mod multipart;
pub mod names;
pub mod receiver;
pub mod request;
pub mod requester;
pub mod response;
pub mod time;
pub mod verify;
pub mod xml;

pub use envelope::Transaction;
