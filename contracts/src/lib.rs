//! Solidity contracts of PACS Bridge: committed artifacts, Rust bindings, addresses and the piece root.
//!
//! The Solidity sources are in `solidity/`, their documentation in `solidity/interfaces/`. `build.mjs` compiles them with the
//! npm solc pinned in `package-lock.json` into `artifacts/`, which are committed: building this crate needs no Node. A test
//! rebuilds them and compares every byte.
//!
//! This crate must not know of RPC, providers, nonces, DICOM or files: it is constants, encodings and pure functions.

pub mod deployment;
pub mod merkle;
pub mod messages;
pub mod validators;

mod bindings {
    #![allow(missing_docs, unreachable_pub)]
    #![allow(clippy::too_many_arguments)]
    use alloy::sol;

    // Two interfaces of one contract: in one binding, functions of the same name would get numbers.
    sol!(Sources, "artifacts/ISources.json");
    sol!(Studies, "artifacts/IStudies.json");
    pub use IStudies::GuardianSet;

    sol!(Consent, "artifacts/Consent.json");
    pub use IConsent::{Allowance, Emergency, Grant};
    sol!(KeyBindings, "artifacts/KeyBindings.json");
    sol!(Pieces, "artifacts/IPieces.json");
    pub use IPieces::{PieceInput, SealInput};
    sol!(Anchors, "artifacts/Anchors.json");
    sol!(Validators, "artifacts/Validators.json");

    // Each in a module of its own, because each brings its copy of the interface's structs.
    pub mod registry {
        alloy::sol!(Registry, "artifacts/Registry.json");
    }
    pub use registry::Registry;
    pub mod calldata {
        alloy::sol!(PiecesCalldata, "artifacts/PiecesCalldata.json");
    }
    pub mod log {
        alloy::sol!(PiecesLog, "artifacts/PiecesLog.json");
    }
    pub mod code {
        alloy::sol!(PiecesCode, "artifacts/PiecesCode.json");
    }
    pub mod storage {
        alloy::sol!(PiecesStorage, "artifacts/PiecesStorage.json");
    }
}

/// What `Consent::allow` takes: the owner's message with all its fields.
pub use bindings::Allowance;
/// `solidity/Anchors.sol`: heads of logs that sources keep for themselves.
pub use bindings::Anchors;
/// `solidity/Consent.sol`: requests, grants, revocations, break-glass.
pub use bindings::Consent;
/// What `Consent::breakGlass` takes.
pub use bindings::Emergency;
/// What `Consent::getGrant` answers.
pub use bindings::Grant;
/// What `Studies::proposeRecovery` takes; make one with [`messages::guardian_set`].
pub use bindings::GuardianSet;
/// `solidity/KeyBindings.sol`: P-256 keys that sign retrievals for an account.
pub use bindings::KeyBindings;
/// One piece of a `storePieces` batch.
pub use bindings::PieceInput;
/// The interface shared by all Pieces contracts (`solidity/interfaces/IPieces.sol`), with `loadPiece`, which only
/// [`PieceMode::Code`] and [`PieceMode::Storage`] have. Calls encoded with it fit every mode.
pub use bindings::Pieces;
/// One image of a `sealImages` batch.
pub use bindings::SealInput;
/// `solidity/Sources.sol`: admission, self-description and stake of sources.
pub use bindings::Sources;
/// `solidity/Studies.sol`: studies, their owners, manifests and guardians.
pub use bindings::Studies;
/// `solidity/Validators.sol`: who makes the blocks of a QBFT network.
pub use bindings::Validators;
/// The log mode's own binding, for its event `PieceBytes`, which carries the bytes.
pub use bindings::log::PiecesLog;
pub use deployment::{Addresses, Contract, Deployable, addresses, deployables};

/// Where a Pieces contract leaves the bytes. Gas per image byte is measured on London rules with random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PieceMode {
    /// Transaction input; the contract hashes every byte. 17 gas per byte.
    Calldata,
    /// Event data. 25 gas per byte.
    Log,
    /// Contract code. 222 gas per byte; `loadPiece` reads it back on chain.
    Code,
    /// Storage slots, as the paper printed it. 712 gas per byte; for reference.
    Storage,
}

impl PieceMode {
    /// All modes, cheapest first.
    pub const ALL: [Self; 4] = [Self::Calldata, Self::Log, Self::Code, Self::Storage];

    /// The contract of this mode.
    pub fn contract(self) -> Contract {
        match self {
            Self::Calldata => Contract::PiecesCalldata,
            Self::Log => Contract::PiecesLog,
            Self::Code => Contract::PiecesCode,
            Self::Storage => Contract::PiecesStorage,
        }
    }

    /// Whether `loadPiece` exists: the bytes can be read by `eth_call` and by other contracts.
    pub fn readable_by_call(self) -> bool {
        matches!(self, Self::Code | Self::Storage)
    }
}
