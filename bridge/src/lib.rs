//! PACS Bridge.
