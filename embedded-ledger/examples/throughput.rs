//! Measures how fast pieces become durable: `cargo run --release -p embedded-ledger --example throughput [MB] [modes]`.
//!
//! One account, pipelined in nonce order, random bytes; the time is from the first signature to the last receipt, so it includes signing,
//! JSON and the fsync of every block. Then everything is verified and executed again.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use contracts::{PieceMode, Pieces, Sources, merkle};
use embedded_ledger::{EmbeddedLedger, LedgerConfig};
use rand::{RngCore, SeedableRng};
use std::collections::VecDeque;
use std::time::Instant;

const CHAIN_ID: u64 = 1337;
/// Pieces sent and not seen in a block yet.
const IN_FLIGHT: usize = 64;

struct Account {
    signer: PrivateKeySigner,
    nonce: u64,
}

impl Account {
    fn sign(&mut self, to: Address, input: Vec<u8>, gas_limit: u64) -> Bytes {
        let mut tx = TxEip1559 {
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
        let signature = self.signer.sign_transaction_sync(&mut tx).unwrap();
        TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into()
    }
}

struct Run {
    ledger: EmbeddedLedger,
    provider: DynProvider,
    account: Account,
}

impl Run {
    async fn send(&mut self, to: Address, input: Vec<u8>, gas: u64) -> B256 {
        let raw = self.account.sign(to, input, gas);
        *self.provider.send_raw_transaction(&raw).await.unwrap().tx_hash()
    }

    /// Waits for a transaction; returns its gas.
    async fn settle(&self, hash: B256) -> u64 {
        let mut head = self.ledger.watch_head();
        loop {
            if let Some(receipt) = self.provider.get_transaction_receipt(hash).await.unwrap() {
                assert!(receipt.status(), "{hash} failed");
                return receipt.gas_used;
            }
            head.changed().await.unwrap();
        }
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let megabytes: usize = arguments.next().map_or(20, |mb| mb.parse().unwrap());
    let modes: Vec<String> = arguments.map(|mode| mode.to_lowercase()).collect();
    println!(
        "{:<10}{:>9}{:>9}{:>10}{:>11}{:>11}{:>12}{:>12}",
        "mode", "piece B", "pieces", "MB/s", "gas/byte", "first ms", "disk/bytes", "verify s"
    );
    for mode in PieceMode::ALL {
        if modes.is_empty() || modes.contains(&format!("{mode:?}").to_lowercase()) {
            measure(mode, megabytes * 1_000_000).await;
        }
    }
}

async fn measure(mode: PieceMode, bytes: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain.redb");
    let signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let address = signer.address();
    let config = LedgerConfig::new(&path, CHAIN_ID)
        .with_balance(address, U256::MAX >> 8)
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE);
    let ledger = EmbeddedLedger::open(config).unwrap();
    let provider = ProviderBuilder::new().connect_client(ledger.rpc_client()).erased();
    let mut run = Run { ledger, provider, account: Account { signer, nonce: 0 } };
    prepare(&mut run, address).await;

    let (piece_bytes, gas) = match mode {
        PieceMode::Calldata | PieceMode::Log => (120_000, 3_600_000),
        PieceMode::Code => (30_000, 7_000_000),
        PieceMode::Storage => (30_000, 23_000_000),
    };
    let pieces = pieces(bytes, piece_bytes);
    let to = contracts::addresses(address).pieces(mode);
    let (study, image) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let (started, mut first, mut gas_used) = (Instant::now(), None, 0);
    let mut in_flight = VecDeque::new();
    for (index, data) in (0..).zip(&pieces) {
        let call = Pieces::storePieceCall { study, image, index, data: data.clone() };
        in_flight.push_back(run.send(to, call.abi_encode(), gas).await);
        if in_flight.len() >= IN_FLIGHT || first.is_none() {
            gas_used += run.settle(in_flight.pop_front().unwrap()).await;
            first.get_or_insert_with(|| started.elapsed());
        }
    }
    for hash in in_flight {
        gas_used += run.settle(hash).await;
    }
    let count = u32::try_from(pieces.len()).unwrap();
    let root = merkle::root(pieces.iter().map(|data| merkle::piece_hash(data))).unwrap();
    for _ in 0..merkle::folds_needed(count) {
        let hash = run.send(to, Pieces::foldCall { image }.abi_encode(), 30_000_000).await;
        gas_used += run.settle(hash).await;
    }
    let hash = run.send(to, Pieces::sealCall { image, pieces: count, root }.abi_encode(), 39_000_000).await;
    gas_used += run.settle(hash).await;
    let seconds = started.elapsed().as_secs_f64();

    let disk = std::fs::metadata(&path).unwrap().len();
    let verifying = Instant::now();
    assert!(run.ledger.verify().unwrap().is_sound());
    println!(
        "{:<10}{piece_bytes:>9}{count:>9}{:>10.1}{:>11.2}{:>11.1}{:>12.2}{:>12.2}",
        format!("{mode:?}"),
        bytes as f64 / 1e6 / seconds,
        gas_used as f64 / bytes as f64,
        first.unwrap().as_secs_f64() * 1e3,
        disk as f64 / bytes as f64,
        verifying.elapsed().as_secs_f64(),
    );
}

async fn prepare(run: &mut Run, address: Address) {
    for deployable in contracts::deployables(address) {
        let hash = run.send(contracts::deployment::DEPLOYER, deployable.deployer_input.to_vec(), 8_000_000).await;
        run.settle(hash).await;
    }
    let sources = contracts::addresses(address).sources;
    let point = run.account.signer.credential().verifying_key().to_encoded_point(false);
    let public_key = Bytes::copy_from_slice(&point.as_bytes()[1..]);
    let admit = Sources::admitCall { source: address }.abi_encode();
    let define =
        Sources::defineSourceCall { publicKey: public_key, endpoint: "https://bench.example".into() }.abi_encode();
    for input in [admit, define] {
        let hash = run.send(sources, input, 1_000_000).await;
        run.settle(hash).await;
    }
}

fn pieces(bytes: usize, piece_bytes: usize) -> Vec<Bytes> {
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let mut image = vec![0; bytes];
    rng.fill_bytes(&mut image);
    image.chunks(piece_bytes).map(Bytes::copy_from_slice).collect()
}
