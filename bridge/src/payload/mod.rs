//! From an object to sealed pieces and back: compress, encrypt, split, merge, verify, list, preview.
//!
//! Everything here is pure: bytes come from a `Read` and go to a `Write` that the caller owns. This module must NOT know
//! of chains, contracts' addresses, configuration, the archive, associations or users; the ledger sees only what
//! [`pieces`] makes, and the archive decides where a staged result lives. The format is described byte by byte in
//! `docs/FORMAT.md`.
//!
//! The usual way out is [`container::seal`] into a [`pieces::Splitter`]; the usual way in is [`container::unseal`]
//! from a [`pieces::Joiner`], or from what a [`pieces::Merger`] staged where pieces come in any order.
//! [`manifest::Manifest`] lists a study's objects and previews so that queries can be answered before any pixel has arrived.

mod cbor;
pub mod cid;
pub mod container;
pub mod describe;
pub mod envelope;
pub mod keys;
pub mod manifest;
pub mod object;
mod packet;
pub mod pieces;
pub mod preview;

/// The name of a sealed run of bytes on the ledger, as `study::image_id` derives it.
pub type ImageId = alloy::primitives::B256;

/// A SHA-256 digest.
pub type Sha256Digest = [u8; 32];

#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod describe_tests;
#[cfg(test)]
mod format_tests;
