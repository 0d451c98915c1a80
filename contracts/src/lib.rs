//! Solidity contracts of PACS Bridge: committed artifacts and Rust bindings.
