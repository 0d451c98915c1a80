//! The contract that seats the validators of a QBFT network, out of the first block that `network new` makes, in the EVM: who makes the
//! first blocks, who does after stake has grown, and that its rule is the one that this program reckons with.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use alloy::network::{EthereumWallet, TransactionBuilder as _};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolStruct as _};
use bridge::network::genesis::genesis;
use bridge::network::plan::Plan;
use contracts::messages::{DefineStudy, ServeSite, studies_domain, validators_domain};
use contracts::validators::{ADDRESS, apportion};
use contracts::{Sources, Studies, Validators};
use embedded_ledger::{EmbeddedLedger, GenesisAccount, LedgerConfig};
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

const PLAN: &str = include_str!("../src/network/golden/plan.toml");

/// The key that is this number.
fn key(number: u64) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&U256::from(number).into()).unwrap()
}

fn account(number: u64) -> Address {
    key(number).address()
}

struct World {
    ledger: EmbeddedLedger,
    registry: Address,
    chain_id: u64,
    _dir: tempfile::TempDir,
}

/// What a genesis file gives its accounts.
fn accounts(block: &Value) -> Vec<(Address, GenesisAccount)> {
    let number = |text: &Value| -> U256 { text.as_str().unwrap().parse().unwrap() };
    let one = |(account, has): (&String, &Value)| {
        let code: Bytes = has["code"].as_str().unwrap_or("0x").parse().unwrap();
        let slots = has["storage"].as_object().into_iter().flatten();
        let storage: BTreeMap<U256, U256> = slots.map(|(slot, value)| (slot.parse().unwrap(), number(value))).collect();
        (account.parse().unwrap(), GenesisAccount { balance: number(&has["balance"]), code, storage })
    };
    block["alloc"].as_object().unwrap().iter().map(one).collect()
}

impl World {
    fn new() -> Self {
        let plan = Plan::parse(PLAN).unwrap();
        let signers: Vec<Address> = plan.nodes().map(|(_, node)| node.keys.as_ref().unwrap().signer).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut config = LedgerConfig::new(dir.path().join("ledger.redb"), plan.chain_id);
        config.genesis_alloc = accounts(&genesis(&plan, &signers));
        let ledger = EmbeddedLedger::open(config).unwrap();
        let registry = contracts::addresses(account(101)).sources;
        Self { ledger, registry, chain_id: plan.chain_id, _dir: dir }
    }

    fn as_account(&self, number: u64) -> DynProvider {
        let wallet = EthereumWallet::from(key(number));
        ProviderBuilder::new().wallet(wallet).connect_client(self.ledger.rpc_client()).erased()
    }

    async fn send(&self, from: u64, to: Address, input: Bytes) {
        // An estimate is made for a block before the border, where a roll costs next to nothing.
        let request = TransactionRequest::default().with_to(to).with_input(input).with_gas_limit(10_000_000);
        let receipt = self.as_account(from).send_transaction(request).await.unwrap().get_receipt().await.unwrap();
        assert!(receipt.status());
    }

    async fn say(&self, from: u64, to: Address, call: impl SolCall) {
        self.send(from, to, call.abi_encode().into()).await;
    }

    async fn ask<C: SolCall>(&self, to: Address, call: C) -> C::Return {
        let request = TransactionRequest::default().with_to(to).with_input(call.abi_encode());
        C::abi_decode_returns(&self.as_account(101).call(request).await.unwrap()).unwrap()
    }

    async fn validators(&self) -> Vec<Address> {
        self.ask(ADDRESS, Validators::getValidatorsCall {}).await
    }

    /// Admits and defines the source of a site.
    async fn enrol(&self, site: u64) {
        self.say(101, self.registry, Sources::admitCall { source: account(site) }).await;
        let point = key(site).credential().verifying_key().to_encoded_point(false);
        let call = Sources::defineSourceCall {
            publicKey: point.as_bytes()[1..].to_vec().into(),
            endpoint: "https://site.example".into(),
        };
        self.say(site, self.registry, call).await;
    }

    async fn define_study(&self, site: u64, number: u64) {
        let (owner, source) = (key(900), account(site));
        let study_id = keccak256(number.to_be_bytes());
        let message = DefineStudy {
            studyId: study_id,
            owner: owner.address(),
            source,
            custodial: false,
            derivedFrom: B256::ZERO,
            deadline: u64::MAX,
        };
        let digest = message.eip712_signing_hash(&studies_domain(self.chain_id, self.registry));
        let call = Studies::defineStudyCall {
            studyId: study_id,
            owner: owner.address(),
            custodial: false,
            derivedFrom: B256::ZERO,
            deadline: u64::MAX,
            ownerSignature: owner.sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into(),
        };
        self.say(site, self.registry, call).await;
    }

    /// Makes blocks until the next one is of this height.
    async fn until_next_is(&self, height: u64) {
        while self.ledger.head().number + 1 < height {
            self.send(101, Address::repeat_byte(0x33), Bytes::new()).await;
        }
        assert_eq!(self.ledger.head().number + 1, height);
    }
}

#[tokio::test]
async fn seats_are_as_planned_and_follow_stake_at_the_border() {
    let world = World::new();
    // Seven seats for eight nodes: the last of equal sites has one.
    let planned: Vec<Address> = (1..=7).map(account).collect();
    assert_eq!(world.validators().await, planned);
    assert_eq!(world.ask(ADDRESS, Validators::registryCall {}).await, world.registry);
    assert_eq!(world.ask(ADDRESS, Validators::epochBlocksCall {}).await, U256::from(40));
    assert_eq!(world.ask(ADDRESS, Validators::stakeCapCall {}).await, U256::from(5));
    assert_eq!(world.ask(ADDRESS, Validators::siteOfCall { key: account(4) }).await, account(102));

    // The registry comes to the address that the first block names.
    let registry = contracts::deployables(account(101)).remove(0);
    world.send(101, contracts::deployment::DEPLOYER, registry.deployer_input).await;
    world.enrol(104).await;
    // One more than is credited in an epoch.
    for number in 0..6 {
        world.define_study(104, number).await;
    }
    world.until_next_is(39).await;
    world.say(102, ADDRESS, Validators::rollCall {}).await;
    assert_eq!(world.validators().await, planned, "not before the border");
    world.say(102, ADDRESS, Validators::rollCall {}).await;
    let standing = world.ask(ADDRESS, Validators::standingOfCall { site: account(104) }).await;
    assert_eq!((standing.credited, standing.seen), (5, 6));
    let given = apportion(&[1, 1, 1, 6], &[2; 4], 7).unwrap();
    assert_eq!(given, [2, 2, 1, 2]);
    let after: Vec<Address> = [1, 2, 3, 4, 5, 7, 8].map(account).to_vec();
    assert_eq!(world.validators().await, after);

    // A second time in this epoch changes nothing, whatever was registered meanwhile.
    let digest = ServeSite { site: account(104) }.eip712_signing_hash(&validators_domain(world.chain_id));
    let proofs = [8, 9].map(|number| key(number).sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into()).to_vec();
    let keys = [8, 9].map(account).to_vec();
    world.say(104, ADDRESS, Validators::registerCall { keys, proofs }).await;
    world.say(103, ADDRESS, Validators::rollCall {}).await;
    assert_eq!(world.validators().await, after);
    world.until_next_is(80).await;
    world.say(103, ADDRESS, Validators::rollCall {}).await;
    let replaced: Vec<Address> = [1, 2, 3, 4, 5, 8, 9].map(account).to_vec();
    assert_eq!(world.validators().await, replaced);

    // Who is suspended is gone after the next border.
    world.say(101, world.registry, Sources::suspendCall { source: account(104) }).await;
    world.until_next_is(120).await;
    world.say(103, ADDRESS, Validators::rollCall {}).await;
    let without: Vec<Address> = (1..=6).map(account).collect();
    assert_eq!(world.validators().await, without, "three sites have the same");
}

#[tokio::test]
async fn the_contract_gives_seats_as_this_program_does() {
    let world = World::new();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for _ in 0..300 {
        let sites = random.gen_range(1..=32);
        let heaviest = [3, 100, u64::MAX][random.gen_range(0..3)];
        let weights: Vec<u64> = (0..sites).map(|_| random.gen_range(1..=heaviest)).collect();
        let keys: Vec<usize> = (0..sites).map(|_| random.gen_range(1..=16)).collect();
        let most = random.gen_range(0..=70);
        let call = Validators::apportionCall {
            weights: weights.iter().map(|weight| U256::from(*weight)).collect(),
            keys: keys.iter().map(|keys| U256::from(*keys)).collect(),
            most: U256::from(most),
        };
        let given: Vec<usize> = world.ask(ADDRESS, call).await.iter().map(|seats| seats.to::<usize>()).collect();
        assert_eq!(Some(given), apportion(&weights, &keys, most), "{weights:?} {keys:?} {most}");
    }
}
