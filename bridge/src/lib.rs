//! PACS Bridge.

pub mod ledger;
pub mod publish;
