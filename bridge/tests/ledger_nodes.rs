//! The ledger client and the publisher over real nodes, in the four piece modes: publish, die at arbitrary points, start again, read
//! everything back.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::rpc::client::RpcClient;
use alloy::signers::local::PrivateKeySigner;
use bridge::ledger::node::Node as _;
use bridge::ledger::node::SystemClock;
use bridge::ledger::owner::OwnerSeed;
use bridge::ledger::pieces::{CalldataRule, PIECE_OVERHEAD_BYTES, PIECES_MAX, payload_bytes_max, store_call};
use bridge::ledger::sender::SenderConfig;
use bridge::ledger::{
    Amendment, Ledger, LedgerConfig, LedgerError, LedgerKind, OpenError, Opening, Part, Piece, PieceMode, Seal,
    StudyOwner, open, open_embedded,
};
use bridge::publish::{PublishConfig, Publisher};
use embedded_ledger::EmbeddedLedger;
use futures::TryStreamExt as _;
use std::path::Path;
use std::sync::Arc;
use support::{ANVIL_CHAIN_ID, ANVIL_KEY, Anvil, MemoryOutbox, MemorySource, noise, skipped};
use tokio_util::sync::CancellationToken;

/// A node to test with: how to reach it and who may write.
struct Reach {
    client: Box<dyn Fn() -> RpcClient>,
    key: PrivateKeySigner,
    chain_id: u64,
    embedded: Option<EmbeddedLedger>,
}

impl Reach {
    fn config(&self, mode: PieceMode, journal: &Path) -> LedgerConfig {
        LedgerConfig {
            kind: if self.embedded.is_some() { LedgerKind::Embedded } else { LedgerKind::Network },
            chain_id: self.chain_id,
            admin: self.key.address(),
            deploy: true,
            mode,
            journal: journal.to_owned(),
            owner_seed: Some(OwnerSeed::new(vec![5; 32])),
            held_keys: Default::default(),
            identity: None,
            read_parallel: 8,
            sender: SenderConfig { poll_ms: 10, ..SenderConfig::default() },
        }
    }

    async fn open(&self, mode: PieceMode, journal: &Path) -> Ledger {
        let (key, config) = (self.key.clone(), self.config(mode, journal));
        let ledger = match &self.embedded {
            Some(embedded) => open_embedded(embedded, key, config).await.unwrap(),
            None => open((self.client)(), key, config, Arc::default()).await.unwrap(),
        };
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        ledger
    }
}

fn anvil_reach(anvil: &Anvil) -> Reach {
    let url = anvil.url.clone();
    Reach {
        client: Box::new(move || RpcClient::new_http(url.parse().unwrap())),
        key: ANVIL_KEY.parse().unwrap(),
        chain_id: ANVIL_CHAIN_ID,
        embedded: None,
    }
}

fn embedded_reach(path: &Path) -> Reach {
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let config = embedded_ledger::LedgerConfig::new(path, 1337)
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE)
        .with_balance(key.address(), U256::from(10).pow(U256::from(30)));
    let embedded = EmbeddedLedger::open(config).unwrap();
    let transport = embedded.transport();
    Reach {
        client: Box::new(move || RpcClient::new(transport.clone(), true)),
        key,
        chain_id: 1337,
        embedded: Some(embedded),
    }
}

fn studies(mode: PieceMode, name: &str, count: u32) -> MemorySource {
    let piece_bytes = match mode {
        PieceMode::Calldata | PieceMode::Log => 120_000,
        PieceMode::Code => 30_000,
        PieceMode::Storage => 5_000,
    };
    let full = u64::from(piece_bytes);
    let mut source = MemorySource::default();
    for study in 0..count {
        let objects = [full * 3 + 1, 1, full, 777 + u64::from(study), full / 2];
        source.add(&format!("{name}/{study}"), study, 1, piece_bytes, &[900, 1_800, 33], &objects);
    }
    source
}

/// One life of the whole bridge: it ends, by being dropped in the middle of everything, after `changes` changes of the
/// publisher's status, or when all is published.
fn live(
    reach: &Reach,
    mode: PieceMode,
    journal: &Path,
    outbox: &Arc<MemoryOutbox>,
    source: &Arc<MemorySource>,
    changes: u32,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = reach.open(mode, journal).await;
        let config = PublishConfig { scan_ms: 50, ..PublishConfig::default() };
        let publisher = Publisher::new(outbox.clone(), source.clone(), ledger, SystemClock, config);
        let mut status = publisher.status();
        tokio::spawn(publisher.run(CancellationToken::new()));
        for _ in 0..changes {
            if outbox.finished() {
                return;
            }
            status.changed().await.unwrap();
            let blocked = status.borrow().studies.values().find_map(|s| s.trouble.clone());
            assert_eq!(blocked, None);
        }
    });
    runtime.shutdown_background();
}

async fn check_everything(ledger: &Ledger, mode: PieceMode, outbox: &MemoryOutbox, source: &MemorySource) {
    let site = ledger.source().await.unwrap();
    for (job, plan) in &source.plans {
        let study = ledger.study(job.study).await.unwrap().unwrap();
        assert!(study.version >= job.version && study.source == site);
        for image in &plan.images {
            let there = ledger.image(image.image).await.unwrap();
            assert_eq!(there.sealed, Some((image.pieces, image.root)));
            let located: Vec<_> = outbox.located(job.study, image.image).into_values().collect();
            assert_eq!(located.len() as u32, image.pieces, "every piece has a recorded place");
            let loaded: Vec<_> = ledger.load_pieces(site, mode, located).try_collect().await.unwrap();
            let bytes: Vec<u8> = loaded.iter().flat_map(|(_, b)| b.to_vec()).collect();
            assert!(bytes == noise(image.image, image.bytes as usize), "what comes back is what was sent");
            let found = ledger.find_pieces(image.image).await.unwrap();
            assert_eq!(found.len() as u32, image.pieces, "a rebuilt index finds every piece once");
            let loaded: Vec<_> = ledger.load_pieces(site, mode, found).try_collect().await.unwrap();
            assert!(loaded.iter().flat_map(|(_, b)| b.to_vec()).eq(bytes));
        }
    }
    assert_eq!(ledger.status().await.pending, 0);
}

fn publish_die_and_read_back(reach: &Reach, mode: PieceMode) {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal.sqlite");
    let outbox = Arc::new(MemoryOutbox::default());
    let mut source = studies(mode, &format!("{mode:?}"), 3);
    outbox.jobs.lock().unwrap().extend(source.plans.keys().copied());
    let first = source.plans.keys().next().copied().unwrap();
    let shared = Arc::new(std::mem::take(&mut source));
    for life in 0_u32.. {
        assert!(life < 200, "it never ends");
        live(reach, mode, &journal, &outbox, &shared, 1 + life * 7 % 40);
        if outbox.finished() {
            break;
        }
    }
    // A late instance makes version 2 of one study: only what is new is sent.
    let mut late = MemorySource { plans: shared.plans.clone() };
    let objects: Vec<u64> = late.plans[&first].images.iter().skip(4).map(|i| i.bytes).chain([4_321]).collect();
    let index = (0..3).find(|i| support::id(&format!("{mode:?}/{i}")) == first.study).unwrap();
    let piece_bytes = late.plans[&first].images[0].piece_bytes;
    late.add(&format!("{mode:?}/{index}"), index, 2, piece_bytes, &[900, 1_800, 33], &objects);
    outbox.jobs.lock().unwrap().push(bridge::publish::StudyJob { study: first.study, version: 2 });
    let late = Arc::new(late);
    live(reach, mode, &journal, &outbox, &late, 10_000);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ledger = reach.open(mode, &journal).await;
        check_everything(&ledger, mode, &outbox, &late).await;
        opens_at_once(&ledger, mode).await;
        refusals(&ledger, reach, mode, dir.path()).await;
    });
}

/// Images of so many pieces each, with what ends them.
fn part(name: &str, study: B256, images: &[u32]) -> Part {
    let mut part = Part::default();
    for (number, pieces) in images.iter().enumerate() {
        let image = keccak256(format!("{name} {number}"));
        let of =
            |index: u32| Piece { study, image, index, bytes: format!("{name} {number} {index}").into_bytes().into() };
        let all: Vec<Piece> = (0..*pieces).map(of).collect();
        let hashes = all.iter().map(|piece| contracts::merkle::piece_hash(&piece.bytes));
        let root = contracts::merkle::root(hashes).unwrap();
        part.seals.push(Seal { image, pieces: *pieces, root });
        part.pieces.extend(all);
    }
    part
}

/// As much at once as the publisher ever sends: its gas is computed, because the node cannot tell what it will take.
async fn opens_at_once(ledger: &Ledger, mode: PieceMode) {
    let study = keccak256(format!("at once, {mode:?}"));
    let name = |what: &str| format!("{mode:?} {what}");
    let (urgent, rest) = (part(&name("urgent"), study, &[1; 63]), part(&name("rest"), study, &[33, 32]));
    let manifest = urgent.seals[7];
    let amendment = Amendment { study, version: 1, image: manifest.image, root: manifest.root };
    let owner = StudyOwner::Custodial { index: 9 };
    let mut opening = Opening { study, owner, derived_from: B256::ZERO, urgent, amendment, rest };
    assert!(ledger.open(&opening, &|| false).await.is_err(), "it is not wanted any more");
    assert_eq!(ledger.study(study).await.unwrap(), None);
    let located = ledger.open(&opening, &|| true).await.unwrap();
    assert_eq!(located.len(), 63 + 65);
    let known = ledger.study(study).await.unwrap().unwrap();
    assert_eq!((known.version, known.manifest_image), (1, manifest.image));
    let site = ledger.source().await.unwrap();
    let pieces: Vec<&Piece> = opening.urgent.pieces.iter().chain(&opening.rest.pieces).collect();
    for (piece, place) in pieces.into_iter().zip(&located) {
        assert_eq!(ledger.load_piece(site, mode, place).await.unwrap(), piece.bytes);
    }

    // Nothing of it is sent again, and what is not there is told from what is.
    let nonce = ledger.node().nonce(ledger.account()).await.unwrap();
    let again = ledger.open(&opening, &|| true).await.unwrap();
    assert_eq!((again.len(), ledger.node().nonce(ledger.account()).await.unwrap()), (located.len(), nonce));
    opening.amendment = Amendment { image: B256::repeat_byte(3), ..amendment };
    assert!(
        matches!(ledger.open(&opening, &|| true).await, Err(LedgerError::Unavailable(_))),
        "another manifest is there"
    );

    // What ends an image that is not whole reverts, what comes after it does not, and the sender hears of it.
    let mut broken = Opening { study: keccak256(format!("broken, {mode:?}")), ..opening };
    broken.urgent = part(&name("broken"), broken.study, &[2]);
    broken.urgent.pieces.pop();
    broken.rest = part(&name("whole"), broken.study, &[2]);
    let manifest = broken.urgent.seals[0];
    broken.amendment = Amendment { study: broken.study, version: 1, image: manifest.image, root: manifest.root };
    assert!(matches!(ledger.open(&broken, &|| true).await, Err(LedgerError::Unavailable(_))));
    assert_eq!(ledger.image(manifest.image).await.unwrap().sealed, None);
}

/// What must not work, and what must not be taken for an error.
async fn refusals(ledger: &Ledger, reach: &Reach, mode: PieceMode, dir: &Path) {
    let site = ledger.source().await.unwrap();
    let nowhere = bridge::ledger::Located {
        image: B256::repeat_byte(9),
        index: 0,
        location: bridge::ledger::PieceLocation { block: 1, transaction: 0, entry: 0 },
    };
    assert!(matches!(ledger.load_piece(site, mode, &nowhere).await, Err(LedgerError::Differs(_))));
    assert_eq!(ledger.study(B256::repeat_byte(9)).await.unwrap(), None);
    let wrong_chain = LedgerConfig { chain_id: 5, ..reach.config(mode, &dir.join("other.sqlite")) };
    let error = open((reach.client)(), reach.key.clone(), wrong_chain, Arc::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::WrongChain { .. }));
    let stranger = LedgerConfig {
        admin: alloy::primitives::Address::repeat_byte(3),
        deploy: false,
        ..reach.config(mode, &dir.join("other.sqlite"))
    };
    let error = open((reach.client)(), reach.key.clone(), stranger, Arc::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::Missing { contract: "Registry", .. }), "{error}");
}

/// As full as a transaction can be, of the bytes that cost most: the computed gas is enough, and under London little more, since a block has room for
/// limits and not for what is used.
async fn full_transactions_have_gas(ledger: &Ledger, mode: PieceMode, rule: CalldataRule) {
    assert_eq!(ledger.calldata_rule().await, rule);
    let most = payload_bytes_max(mode);
    for (name, count) in [("one", 1), ("few", 3), ("many", PIECES_MAX)] {
        let bytes = (most - (count - 1) * PIECE_OVERHEAD_BYTES) / count;
        let (study, image) = (B256::repeat_byte(1), keccak256(format!("{mode:?} {name}")));
        let piece = |index: u32| Piece { study, image, index, bytes: vec![index as u8 + 1; bytes].into() };
        let batch: Vec<Piece> = (0..count as u32).map(piece).collect();
        let located = ledger.store(&batch).await.unwrap();
        let place = located[0].location;
        let sent = ledger.node().transaction_at(place.block, place.transaction).await.unwrap().unwrap();
        let used = ledger.node().receipt(sent.hash).await.unwrap().unwrap().gas_used;
        let limit = store_call(mode, rule, Address::ZERO, &batch).gas;
        assert!(used <= limit, "{mode:?} {name}: {used} of {limit}");
        if rule == CalldataRule::London && count == 1 && mode != PieceMode::Code {
            assert!(limit < used * 5 / 4, "{mode:?}: {used} of {limit}");
        }
    }
}

#[test]
fn full_transactions_have_gas_under_both_rules() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let embedded = embedded_reach(&dir.path().join("ledger.redb"));
    let Some(anvil) = Anvil::start(&["--hardfork", "prague"]) else { return skipped("anvil") };
    let of_prague = anvil_reach(&anvil);
    for (reach, rule) in [(&embedded, CalldataRule::London), (&of_prague, CalldataRule::Prague)] {
        for mode in PieceMode::ALL {
            runtime.block_on(async {
                let ledger = reach.open(mode, &dir.path().join(format!("{rule:?}-{mode:?}.sqlite"))).await;
                full_transactions_have_gas(&ledger, mode, rule).await;
            });
        }
    }
}

#[test]
fn the_embedded_ledger_keeps_everything_in_all_modes() {
    let dir = tempfile::tempdir().unwrap();
    let reach = embedded_reach(&dir.path().join("ledger.redb"));
    for mode in PieceMode::ALL {
        publish_die_and_read_back(&reach, mode);
    }
    let report = reach.embedded.as_ref().unwrap().verify().unwrap();
    assert!(report.is_sound(), "{:?}", report.defects);
}

#[test]
fn anvil_keeps_everything_in_all_modes() {
    let Some(anvil) = Anvil::start(&[]) else { return skipped("anvil") };
    let reach = anvil_reach(&anvil);
    for mode in PieceMode::ALL {
        publish_die_and_read_back(&reach, mode);
    }
}

/// The base fee rises above what transactions that wait may pay: they are offered for more, and each call is carried out once.
#[test]
fn a_base_fee_that_rises_is_followed() {
    const RISEN_WEI: u64 = 200_000_000_000;
    let Some(anvil) = Anvil::start(&[]) else { return skipped("anvil") };
    let reach = anvil_reach(&anvil);
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut config = reach.config(PieceMode::Calldata, &dir.path().join("journal.sqlite"));
        config.sender.resend_ms = 300;
        let ledger = open((reach.client)(), reach.key.clone(), config, Arc::default()).await.unwrap();
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        let node = (reach.client)();
        let tell = async |method: &'static str, parameter: serde_json::Value| {
            node.request::<_, serde_json::Value>(method, (parameter,)).await.unwrap()
        };
        let before = ledger.node().nonce(ledger.account()).await.unwrap();
        tell("evm_setAutomine", false.into()).await;
        let pieces = part("dear", B256::repeat_byte(1), &[5]).pieces;
        let storing = {
            let (ledger, pieces) = (ledger.clone(), pieces.clone());
            let one = move |piece: Piece| {
                let ledger = ledger.clone();
                async move { ledger.store(&[piece]).await }
            };
            tokio::spawn(futures::future::try_join_all(pieces.into_iter().map(one)))
        };
        let begun = std::time::Instant::now();
        let waiting = async || {
            let status = node.request_noparams::<serde_json::Value>("txpool_status").await.unwrap();
            u64::from_str_radix(status["pending"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
        };
        while waiting().await < 5 {
            assert!(begun.elapsed().as_secs() < 60, "they were not offered");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        while !storing.is_finished() {
            assert!(begun.elapsed().as_secs() < 120, "they wait for ever: {:?}", ledger.status().await);
            tell("anvil_setNextBlockBaseFeePerGas", RISEN_WEI.into()).await;
            node.request_noparams::<serde_json::Value>("evm_mine").await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let located = storing.await.unwrap().unwrap().concat();
        assert_eq!(ledger.node().nonce(ledger.account()).await.unwrap(), before + 5, "a call took more than one nonce");
        let site = ledger.source().await.unwrap();
        for (piece, place) in pieces.iter().zip(&located) {
            assert_eq!(ledger.load_piece(site, PieceMode::Calldata, place).await.unwrap(), piece.bytes);
        }
    });
}

/// Reorganisations within the depth, made by a real node: `anvil_reorg` drops the transactions of the blocks that it replaces.
#[test]
fn reorganisations_within_the_depth_lose_nothing() {
    let Some(anvil) = Anvil::start(&["--block-time", "0.1"]) else { return skipped("anvil") };
    let reach = anvil_reach(&anvil);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outbox = Arc::new(MemoryOutbox::default());
    // Enough that there are many changes to reorganise at: on a slow machine several are seen as one.
    let source = Arc::new(studies(PieceMode::Calldata, "reorg", 12));
    outbox.jobs.lock().unwrap().extend(source.plans.keys().copied());
    runtime.block_on(async {
        let mut config = reach.config(PieceMode::Calldata, &dir.path().join("journal.sqlite"));
        config.sender = SenderConfig { depth: 4, poll_ms: 20, resend_ms: 500, ..config.sender };
        let ledger = open((reach.client)(), reach.key.clone(), config, Arc::default()).await.unwrap();
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        let publish = PublishConfig { scan_ms: 50, ..PublishConfig::default() };
        let publisher = Publisher::new(outbox.clone(), source.clone(), ledger.clone(), SystemClock, publish);
        let mut status = publisher.status();
        tokio::spawn(publisher.run(CancellationToken::new()));
        let mut reorganised = 0;
        let begun = std::time::Instant::now();
        while !outbox.finished() {
            let patience = std::time::Duration::from_secs(5);
            let changed = tokio::time::timeout(patience, status.changed()).await.is_ok();
            assert!(
                begun.elapsed().as_secs() < 120,
                "it does not end: {:?} {:?}",
                *status.borrow(),
                ledger.status().await
            );
            if changed && reorganised < 12 {
                let depth = 1 + reorganised % 3;
                let empty: [(String, u64); 0] = [];
                let done = (reach.client)().request::<_, serde_json::Value>("anvil_reorg", (depth, empty)).await;
                done.unwrap();
                reorganised += 1;
            }
        }
        assert!(reorganised > 5, "{reorganised} reorganisations");
        check_everything(&ledger, PieceMode::Calldata, &outbox, &source).await;
    });
}

/// How fast each mode is on the embedded ledger. Prints; `LEDGER_MB` chooses the size (storage mode gets a tenth).
#[test]
fn rates_by_mode() {
    let megabytes: u64 = std::env::var("LEDGER_MB").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    for mode in PieceMode::ALL {
        let dir = tempfile::tempdir().unwrap();
        let reach = embedded_reach(&dir.path().join("ledger.redb"));
        let (piece_bytes, bytes) = match mode {
            PieceMode::Calldata | PieceMode::Log => (120_000, megabytes * 1_000_000),
            PieceMode::Code => (30_000, megabytes * 1_000_000),
            PieceMode::Storage => (22_000, megabytes * 100_000),
        };
        let outbox = Arc::new(MemoryOutbox::default());
        let mut source = MemorySource::default();
        source.add("rate", 0, 1, piece_bytes, &[], &[bytes]);
        outbox.jobs.lock().unwrap().extend(source.plans.keys().copied());
        let source = Arc::new(source);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let ledger = reach.open(mode, &dir.path().join("journal.sqlite")).await;
            let (clock, config) = (SystemClock, PublishConfig::default());
            let publisher = Publisher::new(outbox.clone(), source.clone(), ledger.clone(), clock, config);
            let mut status = publisher.status();
            let start = std::time::Instant::now();
            tokio::spawn(publisher.run(CancellationToken::new()));
            status.wait_for(|_| outbox.finished()).await.unwrap();
            let store_s = start.elapsed().as_secs_f64();
            let (job, plan) = source.plans.iter().next().unwrap();
            let object = plan.images.last().unwrap();
            let located = outbox.located(job.study, object.image).into_values().collect();
            let start = std::time::Instant::now();
            let loaded = ledger.load_pieces(ledger.source().await.unwrap(), mode, located);
            let loaded: u64 =
                loaded.map_ok(|(_, b)| b.len() as u64).try_fold(0, |a, b| async move { Ok(a + b) }).await.unwrap();
            assert_eq!(loaded, bytes);
            let (mb, load_s) = (bytes as f64 / 1e6, start.elapsed().as_secs_f64());
            println!("{mode:?}: {mb:.1} MB stored at {:.1} MB/s, loaded at {:.1} MB/s", mb / store_s, mb / load_s);
        });
    }
}

#[test]
fn a_stranger_at_our_address_is_refused_by_name_and_hashes() {
    let Some(anvil) = Anvil::start(&[]) else { return skipped("anvil") };
    let reach = anvil_reach(&anvil);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = reach.config(PieceMode::Calldata, &dir.path().join("journal.sqlite"));
        let address = contracts::addresses(config.admin).studies;
        let _: serde_json::Value = (reach.client)().request("anvil_setCode", (address, "0x00")).await.unwrap();
        let error = open((reach.client)(), reach.key.clone(), config, Arc::default()).await.unwrap_err();
        let OpenError::Stranger { contract, address: at, found, .. } = error else { panic!("{error}") };
        assert_eq!((contract, at, found), ("Registry", address, keccak256([0])));
    });
}

/// One large object next to a small study: the small one is viewable long before the large one is done, and memory stays within
/// the window. `LEDGER_MB` chooses the size; the rates are printed.
#[test]
fn a_large_study_does_not_hold_up_a_small_one() {
    let megabytes: u64 = std::env::var("LEDGER_MB").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let dir = tempfile::tempdir().unwrap();
    let reach = embedded_reach(&dir.path().join("ledger.redb"));
    let outbox = Arc::new(MemoryOutbox::default());
    let mut source = MemorySource::default();
    source.add("large", 0, 1, 120_000, &[20_000], &[megabytes * 1_000_000]);
    source.add("small", 1, 1, 120_000, &[20_000, 30_000], &[200_000]);
    let order = ["large", "small"].map(|name| bridge::publish::StudyJob { study: support::id(name), version: 1 });
    outbox.jobs.lock().unwrap().extend(order);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ledger = reach.open(PieceMode::Calldata, &dir.path().join("journal.sqlite")).await;
        let config = PublishConfig { scan_ms: 50, ..PublishConfig::default() };
        let bytes_max = config.window_bytes + config.urgent_bytes + 120_000;
        let publisher = Publisher::new(outbox.clone(), Arc::new(source), ledger, SystemClock, config);
        let mut status = publisher.status();
        tokio::spawn(publisher.run(CancellationToken::new()));
        let done = status.wait_for(|s| {
            assert!(s.bytes <= bytes_max, "{} bytes in flight", s.bytes);
            s.studies.len() == 2 && s.studies.values().all(|k| k.final_after_ms.is_some())
        });
        let done = done.await.unwrap().studies.clone();
        let [large, small] = order.map(|job| done[&job.study].clone());
        let seconds = large.final_after_ms.unwrap() as f64 / 1000.0;
        println!("{megabytes} MB in {seconds:.2} s, {:.1} MB/s", megabytes as f64 / seconds);
        println!("viewable after {:?} ms and {:?} ms", large.viewable_after_ms, small.viewable_after_ms);
        assert!(small.viewable_after_ms < large.final_after_ms);
    });
}
