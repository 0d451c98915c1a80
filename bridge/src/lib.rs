//! PACS Bridge.

pub mod ledger;
