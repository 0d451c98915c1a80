//! What stands between a signed transaction and a block of geth: a bridge that is killed at every step on the way to its node, nonces that the node
//! never got, gas that becomes dearer, and an account that runs out of funds. In the end everything is on the chain once.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{B256, Bytes, keccak256};
use serde_json::{Value, json};
use tests::consortium::{Consortium, FUNDS_WEI, Nodes, keyring, store, store_all};
use tests::dicom::{in_series, slices};
use tests::geth::Geth;
use tests::network_ends::{all_is_well, number};
use tests::peers::free_port;
use tests::rpc::{Fault, FaultyRpc, Moment, Step};
use tests::{Bridge, wait_for};

/// Of a site that hands out keys.
const EXCHANGE: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n";
const SEND: &str = "eth_sendRawTransaction";
const NONCE: &str = "eth_getTransactionCount";
const RECEIPT: &str = "eth_getTransactionReceipt";

/// A site behind a proxy at the first node, admitted. It listens at the same port in each life: one that has to say where it is now waits until that
/// is final, and with it everything that the life before had sent.
fn site_behind(consortium: &mut Consortium) -> (FaultyRpc, Bridge) {
    let rpc = FaultyRpc::before(consortium.geth().unwrap().url(0));
    let exchange = format!("[exchange]\nbind = \"127.0.0.1:{}\"\n", free_port());
    let a = consortium.start_at(&rpc.url, &exchange, "");
    consortium.admit(keyring(&a).source().address());
    (rpc, a)
}

/// Kills the bridge where its request is stopped, and starts it again.
fn die_at(step: &Arc<Step>, a: &mut Bridge) -> Value {
    let request = step.wait();
    a.kill();
    step.release();
    request
}

/// Whether a node has the transaction that a request offers.
fn is_known(geth: &Geth, node: usize, request: &Value) -> bool {
    let raw: Bytes = request["params"][0].as_str().unwrap().parse().unwrap();
    let hash: B256 = keccak256(raw);
    geth.ask(node, "eth_getTransactionByHash", json!([hash])).is_some_and(|found| !found.is_null())
}

/// Which of `all` is so far on the way: the first with 0, the last with 100.
fn at_percent(percent: usize, all: usize) -> usize {
    (all * percent).div_ceil(100).max(1)
}

#[test]
fn a_bridge_that_dies_before_or_after_any_of_its_transactions_is_sent_sends_each_once() {
    use Moment::{After, Before};
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, mut a) = site_behind(&mut consortium);
    // The first is joined by what a site says of itself when it begins.
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);
    let begin = rpc.asked(SEND);
    store(&consortium.runtime, &a, 2);
    a.wait_final(2);
    let sends = rpc.asked(SEND) - begin;
    assert!(sends >= 5, "a study takes {sends} transactions");

    // Where it dies while it publishes, and where again while it takes up what it finds in its journal.
    let steps = [
        ((0, Before), (NONCE, Before)),
        ((0, After), (NONCE, After)),
        ((50, Before), (RECEIPT, Before)),
        ((50, After), (RECEIPT, After)),
        ((100, Before), (SEND, Before)),
        // By its second life a block may have it: then there is nothing left to send.
        ((100, After), (RECEIPT, After)),
    ];
    for (study, ((percent, moment), (method, again))) in (3..).zip(steps) {
        let step = rpc.stop_at(SEND, at_percent(percent, sends), moment);
        store(&consortium.runtime, &a, study);
        let request = die_at(&step, &mut a);
        assert_eq!(is_known(consortium.geth().unwrap(), 0, &request), moment == After, "study {study}");

        let step = rpc.stop_at(method, 1, again);
        a.begin();
        assert_eq!(die_at(&step, &mut a)["method"], method);
        a.run();
        a.wait_final(study as usize);
    }
    let sent = all_is_well(&mut consortium, &a, 8, 5);
    assert!(sent.carried_again().is_empty());
}

#[test]
fn a_bridge_that_dies_at_any_question_to_its_node_sends_everything_once() {
    use Moment::{After, Before};
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, mut a) = site_behind(&mut consortium);
    let (estimate, head, receipts, call) =
        ("eth_estimateGas", "eth_getBlockByNumber", "eth_getBlockReceipts", "eth_call");
    let asked = || [estimate, head, receipts, call].map(|method| (method, rpc.asked(method)));
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);
    let begin: BTreeMap<_, _> = asked().into();
    store(&consortium.runtime, &a, 2);
    a.wait_final(2);
    let asked: BTreeMap<_, _> = asked().map(|(method, count)| (method, count - begin[method])).into();
    assert!(asked.values().all(|count| *count > 0), "{asked:?}");

    let steps = [
        (estimate, 0, Before),
        (estimate, 0, After),
        (head, 30, Before),
        (head, 60, After),
        (head, 90, After),
        (receipts, 0, Before),
        (receipts, 0, After),
        (call, 0, After),
        (call, 50, Before),
        // How often it calls is not the same every time.
        (call, 80, After),
    ];
    for (study, (method, percent, moment)) in (3..).zip(steps) {
        let step = rpc.stop_at(method, at_percent(percent, asked[method]), moment);
        store(&consortium.runtime, &a, study);
        assert_eq!(die_at(&step, &mut a)["method"], method);
        a.run();
    }
    a.wait_final(12);
    let sent = all_is_well(&mut consortium, &a, 12, 5);
    assert!(sent.carried_again().is_empty());
}

#[test]
fn a_study_that_goes_step_by_step_goes_on_after_the_bridge_died_at_some_and_again() {
    use Moment::{After, Before};
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, mut a) = site_behind(&mut consortium);
    store_all(&consortium.runtime, &a, slices(1, 6, 64));
    a.wait_final(1);
    // Within what makes it viewable, and among its objects.
    let steps = [[(3, After), (2, Before)], [(7, Before), (4, After)], [(12, After), (6, After)]];
    for (study, lives) in (2..).zip(steps) {
        let step = rpc.stop_at(SEND, lives[0].0, lives[0].1);
        store_all(&consortium.runtime, &a, slices(study, 6, 512));
        die_at(&step, &mut a);
        let step = rpc.stop_at(SEND, lives[1].0, lives[1].1);
        a.run();
        die_at(&step, &mut a);
        a.run();
        a.wait_final(study as usize);
    }
    let sent = all_is_well(&mut consortium, &a, 4, 6);
    assert!(sent.carried_again().is_empty());
}

/// Kills the second of two nodes, and waits until the first has made its last block.
fn stand_still(geth: &mut Geth) {
    geth.kill(1);
    let (mut head, mut since) = (geth.head(0), Instant::now());
    wait_for("the network to stand still", || {
        let now = geth.head(0);
        if now != head {
            (head, since) = (now, Instant::now());
        }
        // Three blocks' time.
        since.elapsed() > Duration::from_secs(3)
    });
}

#[test]
fn objects_that_come_while_others_of_their_study_are_on_their_way_join_them_after_a_crash() {
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, mut a) = site_behind(&mut consortium);
    store_all(&consortium.runtime, &a, slices(1, 5, 64));
    a.wait_final(1);
    let late = |study| in_series(study, slices(study, 2, 64), '1', '2');
    store_all(&consortium.runtime, &a, late(1));
    wait_for("the late objects to settle", || a.json(&["studies"])[0]["version"] == 2);
    a.wait_final(1);

    // With one of two signers there are no blocks, and what is sent waits in the pool: all of the study but the last.
    stand_still(consortium.geth().unwrap());
    let step = rpc.stop_at(SEND, 6, Moment::Before);
    store_all(&consortium.runtime, &a, slices(2, 5, 64));
    die_at(&step, &mut a);
    // The next life finds the same in its journal and nothing on the chain, and more objects come: they go into a version of their own.
    a.run();
    store_all(&consortium.runtime, &a, late(2));
    let account = keyring(&a).source().address().to_string();
    wait_for("everything to be in the pool", || pool(consortium.geth().unwrap(), 0, &account).0.len() >= 6);
    consortium.geth().unwrap().run(1);
    wait_for("both versions", || {
        let rows = a.json(&["studies"]);
        rows.as_array().unwrap().iter().all(|row| row["version"] == 2 && row["state"] == "final")
    });
    let sent = all_is_well(&mut consortium, &a, 2, 7);
    assert!(sent.carried_again().is_empty());
}

/// Nonces of an account's transactions in a node's pool, and the most that each may pay, in wei: those that may go into a block, and those that wait
/// for others.
fn pool(geth: &Geth, node: usize, account: &str) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
    let content = geth.ask(node, "txpool_contentFrom", json!([account])).unwrap();
    let of = |part: &str| {
        let all = content[part].as_object().into_iter().flatten();
        all.map(|(nonce, transaction)| (nonce.parse().unwrap(), number(&transaction["maxFeePerGas"]))).collect()
    };
    (of("pending"), of("queued"))
}

#[test]
fn nonces_that_the_node_never_got_are_filled_with_what_they_are_for() {
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, a) = site_behind(&mut consortium);
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);
    let account = keyring(&a).source().address().to_string();
    rpc.set(Fault::SwallowsSome);
    store(&consortium.runtime, &a, 2);
    let geth = consortium.geth().unwrap();
    wait_for("transactions behind two gaps", || {
        let (_, waiting) = pool(geth, 0, &account);
        waiting.first_key_value().zip(waiting.last_key_value()).is_some_and(|((first, _), (last, _))| {
            // The first is the one after the first gap.
            last - first + 1 > waiting.len() as u64
        })
    });
    assert!(rpc.swallowed() >= 2);
    let next = number(&geth.ask(0, NONCE, json!([account, "latest"])).unwrap());
    let (ready, waiting) = pool(geth, 0, &account);
    assert!(ready.is_empty() && *waiting.first_key_value().unwrap().0 > next, "{next}: {ready:?} {waiting:?}");
    rpc.set(Fault::None);
    a.wait_final(2);
    let (ready, waiting) = pool(consortium.geth().unwrap(), 0, &account);
    assert!(ready.is_empty() && waiting.is_empty(), "{ready:?} {waiting:?}");
    let sent = all_is_well(&mut consortium, &a, 2, 5);
    assert!(sent.carried_again().is_empty());
}

/// What the newest block of a node asks for a unit of gas, in wei.
fn base_fee(geth: &Geth) -> u64 {
    number(&geth.ask(0, "eth_getBlockByNumber", json!(["latest", false])).unwrap()["baseFeePerGas"])
}

#[test]
fn when_gas_becomes_dearer_than_was_offered_more_is_offered_for_the_same() {
    let Some(mut consortium) = Consortium::found_on(Nodes::DearGeth(2)) else { return };
    let a = consortium.start_at(&consortium.url(0), EXCHANGE, "");
    let account = keyring(&a).source().address();
    consortium.admit(account);
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);
    // What is said besides studies is not to be taken for a part of the next one.
    wait_for("the site's keys on the ledger", || a.log().contains("stated this site's keys on the ledger"));

    let account = account.to_string();
    let fill = |consortium: &Consortium| (consortium.waiting()..6).for_each(|_| consortium.fill_a_block());
    fill(&consortium);
    store(&consortium.runtime, &a, 2);
    let mut offered = BTreeMap::new();
    wait_for("the whole study in the pool", || {
        fill(&consortium);
        offered = pool(consortium.geth().unwrap(), 0, &account).0;
        offered.len() >= 5
    });
    let mut raised = BTreeMap::new();
    wait_for("more to be offered", || {
        fill(&consortium);
        let geth = consortium.geth().unwrap();
        raised = pool(geth, 0, &account).0;
        base_fee(geth) > *offered.values().max().unwrap()
            && offered.iter().all(|(nonce, wei)| raised.get(nonce).is_some_and(|now| now > wei))
    });
    assert!(a.log().contains("the base fee has risen"));
    a.wait_final(2);
    let paid = fees_of(consortium.geth().unwrap(), &account);
    for (nonce, wei) in &offered {
        assert!(paid[nonce] > *wei, "nonce {nonce} got into a block for what was offered first");
    }
    let sent = all_is_well(&mut consortium, &a, 2, 5);
    assert!(sent.carried_again().is_empty());
}

/// The most that each transaction of an account on the chain was allowed to pay, by nonce.
fn fees_of(geth: &Geth, account: &str) -> BTreeMap<u64, u64> {
    let blocks = (1..=geth.head(0).unwrap())
        .map(|height| geth.ask(0, "eth_getBlockByNumber", json!([format!("{height:#x}"), true])).unwrap());
    let all = blocks.flat_map(|block| block["transactions"].as_array().unwrap().clone());
    let ours = all.filter(|one| one["from"].as_str().unwrap().eq_ignore_ascii_case(account));
    ours.map(|one| (number(&one["nonce"]), number(&one["maxFeePerGas"]))).collect()
}

/// Starts all nodes again with these arguments, one after the other: each that is killed gets from another what it had not put on its disk.
fn restart_with(geth: &mut Geth, arguments: &[&str]) {
    geth.arguments = arguments.iter().map(ToString::to_string).collect();
    for node in (0..geth.network.nodes.len()).rev() {
        let before = geth.head(node).unwrap();
        geth.kill(node);
        geth.run(node);
        wait_for("a node to go on", || geth.head(node).is_some_and(|head| head > before));
    }
}

#[test]
fn who_demands_more_than_a_site_offers_holds_it_up_and_is_told_of() {
    const DEMAND: &str = "1000000000";
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let (rpc, a) = site_behind(&mut consortium);
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);

    // Its own node takes what it offers all the same, and nobody else does.
    restart_with(consortium.geth().unwrap(), &["--miner.gasprice", DEMAND]);
    let from = consortium.geth().unwrap().head(0).unwrap();
    store(&consortium.runtime, &a, 2);
    a.wait_final(2);
    let account = keyring(&a).source().address().to_string();
    let geth = consortium.geth().unwrap();
    let own = geth.network.nodes[0].signer.to_string();
    let blocks = blocks_with(geth, &account, from);
    assert!(!blocks.is_empty());
    for block in blocks {
        let signer = geth.ask(0, "clique_getSigner", json!([block])).unwrap();
        assert!(signer.as_str().unwrap().eq_ignore_ascii_case(&own), "{signer} took less than it demands");
    }

    // Not even that one.
    restart_with(geth, &["--miner.gasprice", DEMAND, "--txpool.nolocals"]);
    store(&consortium.runtime, &a, 3);
    wait_for("the alarm", || {
        a.log().lines().any(|line| line.contains("nothing gets onto") && line.contains("underpriced"))
    });
    let trouble = a.json(&["status"])["ledger"]["trouble"].clone();
    assert!(trouble.as_str().is_some_and(|trouble| trouble.contains(DEMAND)), "{trouble}");
    store(&consortium.runtime, &a, 4);
    let rows = a.json(&["studies"]);
    assert_eq!(rows.as_array().unwrap().iter().filter(|row| row["state"] == "final").count(), 2, "{rows}");
    restart_with(consortium.geth().unwrap(), &[]);
    a.wait_final(4);
    assert_eq!(rpc.swallowed(), 0);
    let sent = all_is_well(&mut consortium, &a, 4, 5);
    assert!(sent.carried_again().is_empty());
}

/// Hashes of the blocks above a height that hold something of an account.
fn blocks_with(geth: &Geth, account: &str, above: u64) -> Vec<String> {
    let blocks = (above + 1..=geth.head(0).unwrap())
        .map(|height| geth.ask(0, "eth_getBlockByNumber", json!([format!("{height:#x}"), true])).unwrap());
    let is_ours = |one: &Value| one["from"].as_str().unwrap().eq_ignore_ascii_case(account);
    let ours = blocks.filter(|block| block["transactions"].as_array().unwrap().iter().any(is_ours));
    ours.map(|block| block["hash"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn without_funds_intake_goes_on_and_what_was_begun_ends_when_they_come() {
    /// At a gwei, which is what a site offers where gas costs next to nothing: enough for two million units of gas and no transaction of more.
    const FEW_WEI: u128 = 2_000_000_000_000_000;
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    // Somebody else pays for the contracts.
    drop(consortium.join(false));
    let a = consortium.start(EXCHANGE, "");
    let account = keyring(&a).source().address();
    consortium.admit_with(account, FEW_WEI);
    store_all(&consortium.runtime, &a, slices(1, 12, 64));
    let rows = |a: &Bridge| a.json(&["studies"]).as_array().unwrap().clone();
    wait_for("the alarm", || a.log().contains("THIS SITE'S ACCOUNT HAS NO FUNDS"));
    let log = a.log();
    let alarm = log.lines().find(|line| line.contains("HAS NO FUNDS")).unwrap();
    assert!(alarm.contains("ERROR") && alarm.contains(&account.to_string()) && alarm.contains("overshot"), "{alarm}");

    store_all(&consortium.runtime, &a, slices(2, 12, 64));
    let from = consortium.geth().unwrap().head(0).unwrap();
    wait_for("blocks", || consortium.geth().unwrap().head(0).is_some_and(|head| head > from + 6));
    assert!(rows(&a).len() == 2 && rows(&a).iter().all(|row| row["state"] != "final"), "{:?}", rows(&a));
    let trouble = a.json(&["status"])["ledger"]["trouble"].clone();
    assert!(trouble.as_str().is_some_and(|trouble| trouble.contains("insufficient funds")), "{trouble}");
    let before = fees_of(consortium.geth().unwrap(), &account.to_string()).len();
    assert!(before > 2, "nothing of the study got onto the ledger: {before}");

    consortium.pay(account, FUNDS_WEI);
    a.wait_final(2);
    assert!(a.log().contains("transactions get onto the ledger again"));
    assert!(a.json(&["status"])["ledger"]["trouble"].is_null());
    let sent = all_is_well(&mut consortium, &a, 2, 12);
    assert!(sent.carried_again().is_empty());
}
