//! The EVM, by London rules: executing transactions and answering calls.
//!
//! London because geth's Clique engine accepts nothing newer: what runs here runs there. The base fee is always one wei; it is
//! burnt, and tips go to the block's beneficiary.
//!
//! This module must not know the store, the pool or JSON-RPC.

use crate::state::{BlockState, StateRead};
use crate::store::StoreError;
use alloy::consensus::{Transaction, TxEnvelope, Typed2718};
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::rpc::types::TransactionRequest;
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction};
use revm::context::{BlockEnv, CfgEnv, Context, TxEnv};
use revm::context_interface::cfg::GasParams;
use revm::handler::{MainnetContext, MainnetEvm};
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteCommitEvm, ExecuteEvm, MainBuilder, MainContext};

/// The base fee of every block, in wei.
pub(crate) const BASE_FEE: u64 = 1;
/// Gas of a call or an estimate at most, as in geth.
pub(crate) const CALL_GAS_MAX: u64 = 50_000_000;

/// What a transaction can learn about the block it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockContext {
    pub(crate) chain_id: u64,
    pub(crate) number: u64,
    pub(crate) timestamp: u64,
    pub(crate) gas_limit: u64,
    pub(crate) beneficiary: Address,
}

type Evm<'a, 'b> = MainnetEvm<MainnetContext<&'a mut BlockState<'b>>>;

/// Why a transaction was not executed at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    /// The transaction does not fit the state; it costs nothing and leaves nothing.
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EVMError<StoreError, InvalidTransaction>> for ExecuteError {
    fn from(error: EVMError<StoreError, InvalidTransaction>) -> Self {
        match error {
            EVMError::Transaction(invalid) => Self::Invalid(invalid.to_string()),
            EVMError::Database(error) => Self::Store(error),
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// Executes the transactions of one block, one after the other.
pub(crate) struct Executor<'a, 'b> {
    evm: Evm<'a, 'b>,
}

impl<'a, 'b> Executor<'a, 'b> {
    pub(crate) fn new(state: &'a mut BlockState<'b>, block: &BlockContext) -> Self {
        Self { evm: evm(state, block, |_| {}) }
    }

    /// Executes one transaction and keeps its effects.
    pub(crate) fn execute(&mut self, tx: &TxEnvelope, sender: Address) -> Result<ExecutionResult, ExecuteError> {
        Ok(self.evm.transact_commit(environment(tx, sender))?)
    }
}

/// Executes `request` on `state` and forgets the effects. Nonce, balance for fees and base fee are not checked.
pub(crate) fn call(
    state: &dyn StateRead,
    block: &BlockContext,
    request: &TransactionRequest,
    gas: u64,
) -> Result<ExecutionResult, ExecuteError> {
    let mut state = BlockState::new(state);
    let mut evm = evm(&mut state, block, |cfg| {
        cfg.disable_nonce_check = true;
        cfg.disable_balance_check = true;
        cfg.disable_block_gas_limit = true;
        cfg.disable_eip3607 = true;
        cfg.disable_base_fee = true;
    });
    Ok(evm
        .transact(TxEnv {
            caller: request.from.unwrap_or_default(),
            gas_limit: gas,
            kind: request.to.unwrap_or(TxKind::Create),
            value: request.value.unwrap_or_default(),
            data: request.input.input().cloned().unwrap_or_default(),
            access_list: request.access_list.clone().unwrap_or_default(),
            chain_id: None,
            ..TxEnv::default()
        })?
        .result)
}

/// The smallest gas limit, within about 1.5 percent, with which `request` succeeds, by the same search that geth does. The inner error
/// is the execution that failed with all the gas there is.
pub(crate) fn estimate(
    state: &dyn StateRead,
    block: &BlockContext,
    request: &TransactionRequest,
) -> Result<Result<u64, ExecutionResult>, ExecuteError> {
    let most = request.gas.unwrap_or(block.gas_limit).min(block.gas_limit);
    let full = call(state, block, request, most)?;
    if !full.is_success() {
        return Ok(Err(full));
    }
    let (mut low, mut high) = (full.tx_gas_used() - 1, most);
    // Nearly always right: a call forwards at most 63/64 of the gas, and refunds come only at the end.
    let mut guess = (full.gas().total_gas_spent() + 2300) * 64 / 63;
    while low + 1 < high && (high - low) * 1000 / high > 15 {
        if guess <= low || guess >= high {
            guess = low + (high - low) / 2;
        }
        let enough = matches!(call(state, block, request, guess), Ok(result) if result.is_success());
        if enough {
            high = guess;
        } else {
            low = guess;
        }
        // High limits are rarely needed; look lower first.
        guess = (low + (high - low) / 2).min(low.saturating_mul(2));
    }
    Ok(Ok(high))
}

/// Gas that a transaction costs before its first instruction.
pub(crate) fn intrinsic_gas(tx: &TxEnvelope) -> u64 {
    GasParams::new_spec(SpecId::LONDON).initial_tx_gas_for_tx(environment(tx, Address::ZERO), None).initial_total_gas()
}

/// The words that geth uses for an execution that did not end by RETURN or REVERT.
pub(crate) fn halt_text(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(_) => "out of gas".into(),
        HaltReason::OpcodeNotFound | HaltReason::NotActivated | HaltReason::InvalidFEOpcode => "invalid opcode".into(),
        HaltReason::InvalidJump => "invalid jump destination".into(),
        HaltReason::CreateCollision => "contract address collision".into(),
        HaltReason::CreateContractSizeLimit => "max code size exceeded".into(),
        HaltReason::StateChangeDuringStaticCall => "write protection".into(),
        HaltReason::CallTooDeep => "max call depth exceeded".into(),
        other => format!("{other:?}"),
    }
}

fn evm<'a, 'b>(
    state: &'a mut BlockState<'b>,
    block: &BlockContext,
    configure: impl FnOnce(&mut CfgEnv),
) -> Evm<'a, 'b> {
    let environment = BlockEnv {
        number: U256::from(block.number),
        beneficiary: block.beneficiary,
        timestamp: U256::from(block.timestamp),
        gas_limit: block.gas_limit,
        basefee: BASE_FEE,
        difficulty: U256::ONE,
        prevrandao: None,
        blob_excess_gas_and_price: None,
        slot_num: 0,
    };
    Context::mainnet()
        .with_db(state)
        .with_block(environment)
        .modify_cfg_chained(|cfg| {
            cfg.set_spec_and_mainnet_gas_params(SpecId::LONDON);
            cfg.chain_id = block.chain_id;
            configure(cfg);
        })
        .build_mainnet()
}

fn environment(tx: &TxEnvelope, sender: Address) -> TxEnv {
    TxEnv {
        tx_type: tx.ty(),
        caller: sender,
        gas_limit: tx.gas_limit(),
        gas_price: tx.max_fee_per_gas(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: Bytes::clone(tx.input()),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        ..TxEnv::default()
    }
}
