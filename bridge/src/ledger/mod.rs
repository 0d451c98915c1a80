//! The ledger client: the only part of the bridge that names an RPC provider or the EVM. One key, one nonce order, one journal:
//! what is sent is durable first, what is reported was seen on chain at the configured depth, and everything can be repeated.
//!
//! It must not know DICOM, patients, the archive or any door. Above it: [`crate::publish`] and retrieval.
//!
//! * [`Ledger`]: the operations, over a [`node::Node`]; [`endpoints`] makes one of several.
//! * `line`: the way to a node, over HTTP, WebSocket or IPC; [`rpc`] asks through it.
//! * [`sender`]: the owner of the key; [`slots`] and [`follower`] are its pure core, [`journal`] its memory.
//! * [`forks`]: blocks that left the chain, for who asks later whose they were.
//! * [`signer`]: the key itself, here or in a remote signer.
//! * [`consent`]: what owners, sources and the consortium say about studies, signed here or elsewhere.
//! * [`key_bindings`]: what accounts say about P-256 keys. [`seats`]: what sites have brought in, and who makes blocks for it.
//! * [`keystore`] and [`owner`]: the source's key file and the owners' derived keys.

mod ahead;
mod anchors;
mod carried;
mod client;
pub mod consent;
pub mod endpoints;
pub mod follower;
pub mod forks;
pub mod journal;
pub mod key_bindings;
pub mod keystore;
mod line;
pub mod node;
mod open;
pub mod operators;
pub mod owner;
pub mod pieces;
mod refusal;
pub mod rpc;
pub mod seats;
pub mod sender;
pub mod signer;
pub mod slots;

pub use ahead::{Definitions, Opening, Part};
pub use anchors::AnchorOnChain;
pub use client::{
    Amendment, Client, ClientConfig, ImageOnChain, LedgerError, LedgerKind, LedgerStatus, StudyOnChain, StudyOwner,
};
pub use consent::{Delivery, Sent, Word};
pub use endpoints::{Endpoints, Watch};
pub use line::NoLine;
pub use open::{KeySigner, LedgerConfig, OpenError, open, open_embedded, open_endpoints};
pub use pieces::{Located, PIECES_MAX, Piece, PieceLocation, PieceMode, Seal};
pub use signer::{RemoteConfig, RemoteSigner, Signer, SignerError};

/// The ledger client over JSON-RPC, as the daemon uses it.
pub type Ledger = Client<endpoints::Endpoints, node::SystemClock>;

/// The ledger, as soon as it could be opened: a node may be away when the bridge starts.
pub type LedgerSlot = std::sync::Arc<std::sync::OnceLock<Ledger>>;
