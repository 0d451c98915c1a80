//! The wire of signed IHE retrieval: ITI-43 Retrieve Document Set and RAD-69 Retrieve Imaging Document Set, as the bridge speaks them.
//!
//! Octets in, typed values or typed faults out. A request goes [`message::RequestHead::admit`] → [`verify::verify`] →
//! [`response::respond`]; a requester goes [`requester::sign`] → [`receiver::ResponseReader`].
//!
//! ```
//! use ihe_retrieve::key::RequesterKey;
//! use ihe_retrieve::message::RequestHead;
//! use ihe_retrieve::receiver::{ResponsePiece, ResponseReader};
//! use ihe_retrieve::request::{DocumentRequest, Retrieve};
//! use ihe_retrieve::requester::{TokenPlacement, UnsignedRequest, certificate, sign};
//! use ihe_retrieve::response::{DocumentType, Outcome, respond};
//! use ihe_retrieve::verify::{Policy, verify};
//! use k256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner};
//!
//! let key = SigningKey::from_slice(&[7; 32])?;
//! let signer = |digest: &[u8; 32]| -> Result<[u8; 64], k256::ecdsa::Error> {
//!     let signature: Signature = key.sign_prehash(digest)?;
//!     Ok(signature.to_bytes().into())
//! };
//! let now_ms = 1_795_903_200_000;
//! let (to, message_id) = ("https://hospital.example/iti43", "urn:uuid:1");
//!
//! // The requester asks for a study of the source 0x…, and signs that.
//! let wanted = DocumentRequest {
//!     repository_unique_id: format!("0x{}", "ab".repeat(20)),
//!     document_unique_id: "cd".repeat(32),
//!     home_community_id: None,
//! };
//! let retrieve = Retrieve::Documents(vec![wanted.clone()]);
//! let request = UnsignedRequest { to, message_id, created_ms: now_ms, expires_ms: now_ms + 60_000, retrieve: &retrieve };
//! let public_key = RequesterKey::Secp256k1(key.verifying_key().into());
//! let account = public_key.account().expect("a key of the ledger");
//! let token = certificate(&public_key, &account, signer)?;
//! let request = sign(&request, &token, TokenPlacement::Part, [1; 16], signer)?;
//!
//! // The repository verifies it, decides (not here), and answers.
//! let content_type = Some(request.content_type.as_str());
//! let head = RequestHead { method: "POST", content_type, content_encoding: None, content_length: None };
//! let policy = Policy { addresses: vec![to.into()], imaging: false };
//! let verified = verify(&head.admit(false)?, &request.body, &policy, now_ms)?;
//! assert_eq!(verified.retrieve(), &retrieve);
//! assert!(verified.key().account().is_some());
//! let plan = respond(verified.message_id(), &[(&wanted, Outcome::Document(DocumentType::Zip, 3))], [2; 16]);
//! let body = plan.assemble(&[b"zip"]).expect("one document of three octets");
//! assert_eq!(plan.content_length(), body.len() as u64);
//!
//! // The requester reads the answer as it arrives.
//! let mut reader = ResponseReader::new(&plan.content_type(), message_id)?;
//! let mut document = Vec::new();
//! for chunk in body.chunks(100) {
//!     reader.push(chunk);
//!     while let Some(piece) = reader.next_piece()? {
//!         if let ResponsePiece::Data(octets) = piece {
//!             document.extend_from_slice(octets);
//!         }
//!     }
//! }
//! reader.finish()?;
//! assert_eq!(document, b"zip");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
