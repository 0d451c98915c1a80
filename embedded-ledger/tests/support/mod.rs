//! What the tests of the ledger share: a ledger with our contracts on it, accounts, and sending.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use alloy::transports::{RpcError, TransportErrorKind};
use contracts::{Addresses, Sources};
use embedded_ledger::{EmbeddedLedger, LedgerConfig};
use std::path::Path;

pub const CHAIN_ID: u64 = 1337;
pub const ADMIN: u8 = 1;

/// A deterministic account. Never use such keys outside a test.
pub fn key(seed: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(seed)).unwrap()
}

pub fn public_key(signer: &PrivateKeySigner) -> Bytes {
    Bytes::copy_from_slice(&signer.credential().verifying_key().to_encoded_point(false).as_bytes()[1..])
}

/// Funds accounts 1 to 9 and carries the CREATE2 deployer.
pub fn config(path: &Path) -> LedgerConfig {
    let mut config = LedgerConfig::new(path, CHAIN_ID)
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE);
    for seed in 1..10 {
        config = config.with_balance(key(seed).address(), U256::from(10).pow(U256::from(30)));
    }
    config.signer = Some(key(99));
    config
}

pub fn provider(ledger: &EmbeddedLedger) -> DynProvider {
    ProviderBuilder::new().connect_client(ledger.rpc_client()).erased()
}

/// An account that signs for itself and counts its own nonces.
pub struct Account {
    pub signer: PrivateKeySigner,
    pub nonce: u64,
}

impl Account {
    pub fn new(seed: u8) -> Self {
        Self { signer: key(seed), nonce: 0 }
    }

    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// The next transaction of this account, signed and encoded.
    pub fn sign(&mut self, to: Address, input: impl Into<Bytes>, gas_limit: u64) -> Bytes {
        let tx = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce: self.nonce,
            gas_limit,
            max_fee_per_gas: 2,
            max_priority_fee_per_gas: 1,
            to: TxKind::Call(to),
            input: input.into(),
            ..TxEip1559::default()
        };
        self.nonce += 1;
        sign(&self.signer, tx)
    }

    /// Sends a call and waits for its receipt.
    pub async fn send(&mut self, provider: &DynProvider, to: Address, call: impl SolCall) -> TransactionReceipt {
        self.send_raw(provider, to, call.abi_encode(), 20_000_000).await
    }

    pub async fn send_raw(
        &mut self,
        provider: &DynProvider,
        to: Address,
        input: Vec<u8>,
        gas: u64,
    ) -> TransactionReceipt {
        let raw = self.sign(to, input, gas);
        let hash = *provider.send_raw_transaction(&raw).await.unwrap().tx_hash();
        receipt(provider, hash).await
    }
}

pub fn sign(signer: &PrivateKeySigner, mut tx: TxEip1559) -> Bytes {
    let signature = signer.sign_transaction_sync(&mut tx).unwrap();
    TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into()
}

/// Polls until the transaction has a receipt.
pub async fn receipt(provider: &DynProvider, hash: B256) -> TransactionReceipt {
    loop {
        if let Some(receipt) = provider.get_transaction_receipt(hash).await.unwrap() {
            return receipt;
        }
        tokio::task::yield_now().await;
    }
}

/// Calls a view; the error is what the node answered.
pub async fn view<C: SolCall>(
    provider: &DynProvider,
    to: Address,
    call: C,
) -> Result<C::Return, RpcError<TransportErrorKind>> {
    let request = TransactionRequest::default().to(to).input(call.abi_encode().into());
    let output = provider.call(request).await?;
    Ok(C::abi_decode_returns(&output).unwrap())
}

/// Deploys all contracts for the admin of account 1.
pub async fn deploy(provider: &DynProvider, from: &mut Account) -> Addresses {
    let admin = key(ADMIN).address();
    for deployable in contracts::deployables(admin) {
        let to = contracts::deployment::DEPLOYER;
        let receipt = from.send_raw(provider, to, deployable.deployer_input.to_vec(), 8_000_000).await;
        assert!(receipt.status(), "{} deploys", deployable.contract.name());
    }
    contracts::addresses(admin)
}

/// Admits and defines a source. The admin is account 1.
pub async fn define_source(provider: &DynProvider, sources: Address, admin: &mut Account, source: &mut Account) {
    let admitted = admin.send(provider, sources, Sources::admitCall { source: source.address() }).await;
    assert!(admitted.status());
    let define =
        Sources::defineSourceCall { publicKey: public_key(&source.signer), endpoint: "https://a.example".into() };
    assert!(source.send(provider, sources, define).await.status());
}
