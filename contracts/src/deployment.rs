//! Where the contracts are and how they get there.
//!
//! Every contract is deployed through the keyless CREATE2 proxy at [`DEPLOYER`], which our genesis files carry and which most
//! public networks have. The address then depends only on the code, on [`SALT`] and on the consortium's first admin: every
//! site computes it instead of being told, nobody can occupy it with other code or another admin, and it does not matter who
//! sends the deploying transaction. Deploying twice fails harmlessly, because the second CREATE2 finds the address taken.
//!
//! Code consistency: `keccak256(eth_getCode(address))` must equal [`Contract::runtime_code_hash`].

use crate::{PieceMode, bindings};
use alloy::primitives::{Address, B256, Bytes, address, b256, hex, keccak256};
use alloy::sol_types::SolValue;

/// The CREATE2 proxy known as the deterministic deployment proxy: call it with salt ‖ init code.
pub const DEPLOYER: Address = address!("4e59b44847b379578588920cA78FbF26c0B4956C");
/// Its runtime code, for genesis files of networks of our own.
pub const DEPLOYER_CODE: [u8; 69] = hex!(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
);
/// The salt of all deployments: keccak-256 of `pacs-bridge/contracts/1`.
pub const SALT: B256 = b256!("3ade3e16611ae7872698b9f92b3da890949928919b2d745347a501c5eb8558c2");

/// A contract of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Contract {
    /// Sources and Studies at one address: who may write, and which studies there are.
    Registry,
    /// Who may see which study.
    Consent,
    /// Which P-256 keys sign for which account.
    KeyBindings,
    /// Pieces as transaction input.
    PiecesCalldata,
    /// Pieces as event data.
    PiecesLog,
    /// Pieces as contract code.
    PiecesCode,
    /// Pieces in storage slots.
    PiecesStorage,
    /// Heads of sources' own logs.
    Anchors,
}

impl Contract {
    /// All contracts, in an order in which they can be deployed.
    pub const ALL: [Self; 8] = [
        Self::Registry,
        Self::Consent,
        Self::KeyBindings,
        Self::PiecesCalldata,
        Self::PiecesLog,
        Self::PiecesCode,
        Self::PiecesStorage,
        Self::Anchors,
    ];

    /// The name of the Solidity contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "Registry",
            Self::Consent => "Consent",
            Self::KeyBindings => "KeyBindings",
            Self::PiecesCalldata => "PiecesCalldata",
            Self::PiecesLog => "PiecesLog",
            Self::PiecesCode => "PiecesCode",
            Self::PiecesStorage => "PiecesStorage",
            Self::Anchors => "Anchors",
        }
    }

    /// The creation code, without constructor arguments.
    pub fn creation_code(self) -> &'static Bytes {
        match self {
            Self::Registry => &bindings::Registry::BYTECODE,
            Self::Consent => &bindings::Consent::BYTECODE,
            Self::KeyBindings => &bindings::KeyBindings::BYTECODE,
            Self::PiecesCalldata => &bindings::calldata::PiecesCalldata::BYTECODE,
            Self::PiecesLog => &bindings::log::PiecesLog::BYTECODE,
            Self::PiecesCode => &bindings::code::PiecesCode::BYTECODE,
            Self::PiecesStorage => &bindings::storage::PiecesStorage::BYTECODE,
            Self::Anchors => &bindings::Anchors::BYTECODE,
        }
    }

    /// The code that `eth_getCode` must return. It has no immutables, so it is the same at every address.
    pub fn runtime_code(self) -> &'static Bytes {
        match self {
            Self::Registry => &bindings::Registry::DEPLOYED_BYTECODE,
            Self::Consent => &bindings::Consent::DEPLOYED_BYTECODE,
            Self::KeyBindings => &bindings::KeyBindings::DEPLOYED_BYTECODE,
            Self::PiecesCalldata => &bindings::calldata::PiecesCalldata::DEPLOYED_BYTECODE,
            Self::PiecesLog => &bindings::log::PiecesLog::DEPLOYED_BYTECODE,
            Self::PiecesCode => &bindings::code::PiecesCode::DEPLOYED_BYTECODE,
            Self::PiecesStorage => &bindings::storage::PiecesStorage::DEPLOYED_BYTECODE,
            Self::Anchors => &bindings::Anchors::DEPLOYED_BYTECODE,
        }
    }

    /// keccak-256 of [`Self::runtime_code`].
    pub fn runtime_code_hash(self) -> B256 {
        keccak256(self.runtime_code())
    }
}

/// One contract of one consortium, ready to be deployed or checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployable {
    /// Which contract.
    pub contract: Contract,
    /// Where it will be or is.
    pub address: Address,
    /// The input of a transaction to [`DEPLOYER`]: salt ‖ creation code ‖ constructor argument.
    pub deployer_input: Bytes,
    /// keccak-256 of the code that must be found at `address`.
    pub runtime_code_hash: B256,
}

/// The addresses of one consortium's contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The first admin of the consortium, from whom all the others follow.
    pub founder: Address,
    /// Where the Sources interface answers.
    pub sources: Address,
    /// Where the Studies interface answers: the same address, since both are the Registry contract.
    pub studies: Address,
    /// The Consent contract.
    pub consent: Address,
    /// The KeyBindings contract.
    pub key_bindings: Address,
    /// The Pieces contract of calldata mode.
    pub pieces_calldata: Address,
    /// The Pieces contract of log mode.
    pub pieces_log: Address,
    /// The Pieces contract of code mode.
    pub pieces_code: Address,
    /// The Pieces contract of storage mode.
    pub pieces_storage: Address,
    /// The Anchors contract.
    pub anchors: Address,
}

impl Addresses {
    /// The Pieces contract of a mode.
    pub fn pieces(&self, mode: PieceMode) -> Address {
        self.of(mode.contract())
    }

    /// The address of a contract.
    pub fn of(&self, contract: Contract) -> Address {
        match contract {
            Contract::Registry => self.studies,
            Contract::Consent => self.consent,
            Contract::KeyBindings => self.key_bindings,
            Contract::PiecesCalldata => self.pieces_calldata,
            Contract::PiecesLog => self.pieces_log,
            Contract::PiecesCode => self.pieces_code,
            Contract::PiecesStorage => self.pieces_storage,
            Contract::Anchors => self.anchors,
        }
    }
}

/// The addresses of the consortium whose first admin is `admin`.
pub fn addresses(admin: Address) -> Addresses {
    let registry = create2(&init_code(Contract::Registry, admin));
    let at = |contract| create2(&init_code(contract, registry));
    Addresses {
        founder: admin,
        sources: registry,
        studies: registry,
        consent: at(Contract::Consent),
        key_bindings: at(Contract::KeyBindings),
        pieces_calldata: at(Contract::PiecesCalldata),
        pieces_log: at(Contract::PiecesLog),
        pieces_code: at(Contract::PiecesCode),
        pieces_storage: at(Contract::PiecesStorage),
        anchors: at(Contract::Anchors),
    }
}

/// Everything needed to deploy and to check the contracts of the consortium whose first admin is `admin`, in order.
pub fn deployables(admin: Address) -> Vec<Deployable> {
    let registry = create2(&init_code(Contract::Registry, admin));
    let deployable = |contract| {
        let argument = if contract == Contract::Registry { admin } else { registry };
        let init_code = init_code(contract, argument);
        Deployable {
            contract,
            address: create2(&init_code),
            deployer_input: [SALT.as_slice(), &init_code].concat().into(),
            runtime_code_hash: contract.runtime_code_hash(),
        }
    };
    Contract::ALL.into_iter().map(deployable).collect()
}

/// Every constructor takes one address: the admin for Registry, Registry for all others.
fn init_code(contract: Contract, argument: Address) -> Vec<u8> {
    [contract.creation_code().as_ref(), &argument.abi_encode()].concat()
}

fn create2(init_code: &[u8]) -> Address {
    DEPLOYER.create2_from_code(SALT, init_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn salt_is_the_hash_of_its_name() {
        assert_eq!(SALT, keccak256("pacs-bridge/contracts/1"));
    }

    #[test]
    fn addresses_agree_with_deployables_and_depend_on_the_admin() {
        let admin = Address::repeat_byte(7);
        let known = addresses(admin);
        for deployable in deployables(admin) {
            assert_eq!(deployable.address, known.of(deployable.contract), "{}", deployable.contract.name());
            assert_ne!(deployable.address, addresses(Address::repeat_byte(8)).of(deployable.contract));
        }
    }

    #[test]
    fn runtime_code_is_the_tail_of_the_creation_code() {
        for contract in Contract::ALL {
            assert!(contract.creation_code().ends_with(contract.runtime_code()), "{} has immutables", contract.name());
        }
    }
}
