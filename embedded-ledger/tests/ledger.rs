//! The ledger seen through alloy, as any client sees it.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::network::EthereumWallet;
use alloy::primitives::{B256, U256, keccak256};
use alloy::providers::{Provider, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use contracts::{PieceMode, Pieces, merkle};
use embedded_ledger::EmbeddedLedger;
use support::*;

#[tokio::test]
async fn alloy_with_all_fillers_deploys_sends_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = EmbeddedLedger::open(config(&dir.path().join("l.redb"))).unwrap();
    let wallet = EthereumWallet::from(key(2));
    let provider = ProviderBuilder::new().wallet(wallet).connect_client(ledger.rpc_client());
    let to = contracts::deployment::DEPLOYER;
    for deployable in contracts::deployables(key(ADMIN).address()) {
        let request = TransactionRequest::default().to(to).input(deployable.deployer_input.clone().into());
        let receipt = provider.send_transaction(request).await.unwrap().get_receipt().await.unwrap();
        assert!(receipt.status());
        let code = provider.get_code_at(deployable.address).await.unwrap();
        assert_eq!(keccak256(&code), deployable.runtime_code_hash, "{}", deployable.contract.name());
    }
    let report = ledger.verify().unwrap();
    assert!(report.is_sound(), "{:?}", report.defects);
    assert_eq!(report.transactions, contracts::deployment::Contract::ALL.len() as u64);
    ledger.close();
}

#[tokio::test]
async fn a_piece_is_stored_and_sealed_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = EmbeddedLedger::open(config(&dir.path().join("l.redb"))).unwrap();
    let provider = provider(&ledger);
    let (mut admin, mut source) = (Account::new(ADMIN), Account::new(2));
    let at = deploy(&provider, &mut admin).await;
    define_source(&provider, at.sources, &mut admin, &mut source).await;
    let (study, image) = (B256::repeat_byte(5), B256::repeat_byte(6));
    let pieces = [vec![1u8; 30_000], vec![2; 25_000], vec![3; 1]];
    let root = merkle::root(pieces.iter().map(|p| merkle::piece_hash(p))).unwrap();
    for mode in PieceMode::ALL {
        let to = at.pieces(mode);
        for (index, data) in (0..).zip(&pieces) {
            let call = Pieces::storePieceCall { study, image, index, data: data.clone().into() };
            let raw = source.sign(to, alloy::sol_types::SolCall::abi_encode(&call), 30_000_000);
            let hash = *provider.send_raw_transaction(&raw).await.unwrap().tx_hash();
            let receipt = receipt(&provider, hash).await;
            assert!(receipt.status(), "{mode:?}");
            println!("{mode:?} {} bytes: {} gas", data.len(), receipt.gas_used);
        }
        assert!(source.send(&provider, to, Pieces::sealCall { image, pieces: 3, root }).await.status());
        assert!(view(&provider, to, Pieces::getEndCall { source: source.address(), image }).await.unwrap());
        if mode.readable_by_call() {
            for (index, data) in (0..).zip(&pieces) {
                let load = Pieces::loadPieceCall { source: source.address(), image, index };
                assert_eq!(view(&provider, to, load).await.unwrap().as_ref(), data.as_slice());
            }
        }
    }
    assert!(provider.get_balance(source.address()).await.unwrap() < U256::from(10).pow(U256::from(30)));
    let report = ledger.verify().unwrap();
    assert!(report.is_sound(), "{:?}", report.defects);
}
