//! The ledger client.

pub mod follower;
pub mod journal;
pub mod node;
pub mod rpc;
pub mod sender;
pub mod slots;
