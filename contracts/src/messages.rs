//! What the owner of a study signs: EIP-712 messages of the Studies contract, one flat struct per action.
//!
//! Sign `message.eip712_signing_hash(&studies_domain(chain_id, studies))`. `deadline` is in seconds since 1970 and is the last
//! moment at which the message is good; `seq` rises strictly per study over transfers and tombstones together.
//!
//! This module must not know who holds the keys.

mod bindings {
    #![allow(missing_docs, unreachable_pub)]
    alloy::sol! {
        #[derive(Debug, PartialEq, Eq)]
        struct DefineStudy { bytes32 studyId; address owner; address source; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct TransferStudy { bytes32 studyId; address newOwner; uint64 seq; uint64 deadline; }
        #[derive(Debug, PartialEq, Eq)]
        struct TombstoneStudy { bytes32 studyId; uint64 seq; uint64 deadline; }
    }
}

use alloy::primitives::{Address, U256};
use alloy::sol_types::Eip712Domain;
/// The owner agrees that the source defines the study.
pub use bindings::DefineStudy;
/// The owner wants the study neither served nor extended any more.
pub use bindings::TombstoneStudy;
/// The owner hands the study to another key.
pub use bindings::TransferStudy;

/// The EIP-712 domain of a Studies contract on a chain.
pub fn studies_domain(chain_id: u64, studies: Address) -> Eip712Domain {
    Eip712Domain::new(
        Some("PACS Bridge Studies".into()),
        Some("1".into()),
        Some(U256::from(chain_id)),
        Some(studies),
        None,
    )
}
