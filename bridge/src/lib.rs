//! PACS Bridge.

pub mod payload;
