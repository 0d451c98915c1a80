//! The `pacs-bridge` program.
fn main() {}
