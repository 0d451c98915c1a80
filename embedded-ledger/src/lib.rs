//! A durable single-node Ethereum-compatible ledger.
