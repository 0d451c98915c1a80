//! One story of two sites and a patient on every kind of ledger: the embedded one, anvil, and networks of geth with Clique in which each site
//! has its own node. Whoever keeps the ledger, and whether an object's bytes are on it, in IPFS or at their source, the same is seen by the same.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolEvent as _;
use dicom_scp::matching::Level;
use serde_json::Value;
use tests::consortium::{Consortium, Nodes, keyring, objects_here, store, store_from};
use tests::dicom::{get, slices, subject};
use tests::geth::Geth;
use tests::kubo::Swarm;
use tests::{Bridge, wait_for};

/// What comes from these application entities stays at the source, or goes into IPFS.
const A: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\n[[custody]]\nkeep = \"at-source\"\ncalling_ae = [\"XA1\"]\n\
                 [[custody]]\nkeep = \"ipfs\"\ncalling_ae = [\"US1\"]\n";

/// A study's name on the ledger and who owns it.
fn study_of(site: &Bridge, number: u32) -> (B256, PrivateKeySigner) {
    let (keys, uid) = (keyring(site), dicom_scp::Uid::new(&subject(number).study_uid).unwrap());
    let study = keys.study(&uid).unwrap().unwrap();
    (bridge::study::study_id(&study.salt, uid.as_str()), keys.owner(study.owner_index).unwrap())
}

/// What a viewer gets of a study without any refusal.
fn got(consortium: &Consortium, site: &Bridge, uid: &str) -> BTreeMap<String, Vec<u8>> {
    let got = consortium.runtime.block_on(get(site.dicom, uid));
    if got.failed.is_empty() { got.data_sets } else { BTreeMap::new() }
}

fn the_story(nodes: Nodes) {
    let Some(consortium) = Consortium::found_on(nodes) else { return };
    let Some(mut swarm) = Swarm::start(2) else { return };
    let mut a = consortium.join_with(&format!("{A}{}", swarm.lines(0)));
    let (b, c) = (consortium.join_with(&swarm.lines(1)), consortium.join(false));
    let on_chain = store(&consortium.runtime, &a, 1);
    let at_source = store_from(&consortium.runtime, &a, "XA1", slices(2, 3, 64));
    let in_ipfs = store_from(&consortium.runtime, &a, "US1", slices(3, 3, 1024));
    a.wait_final(3);
    let [first, second, third] = [1, 2, 3].map(|number| subject(number).study_uid);
    let kinds = |uid: &str| {
        let report = a.json(&["study", "show", uid]);
        report["images"].as_array().unwrap().iter().any(|image| image["kind"] == "object")
    };
    assert_eq!(
        [&first, &second, &third].map(|uid| kinds(uid)),
        [true, false, true],
        "whose objects have an image on the ledger"
    );
    assert_eq!(swarm.pins(0).len(), in_ipfs.len());
    assert!(swarm.pins(1).is_empty(), "nothing is granted yet");
    let everywhere = BTreeSet::from([first.clone(), second.clone(), third.clone()]);
    assert_eq!(consortium.find(a.dicom, Level::Study), everywhere);
    for site in [&b, &c] {
        assert!(consortium.find(site.dicom, Level::Study).is_empty(), "nothing is granted yet");
    }

    let grantee = keyring(&b);
    let studies = [1, 2, 3].map(|number| study_of(&a, number));
    for (study, owner) in &studies {
        consortium.allow(owner, *study, &grantee, 2, 1);
    }
    wait_for("all studies at B", || consortium.find(b.dicom, Level::Study) == everywhere);
    assert_eq!(objects_here(&b), 0, "they are found before any object came");
    assert_eq!(got(&consortium, &b, &first), on_chain);
    assert_eq!(got(&consortium, &b, &second), at_source);
    assert_eq!(got(&consortium, &b, &third), in_ipfs);
    for uid in [&first, &second, &third] {
        wait_for("every object to be proven at B", || {
            let verdicts = b.json(&["verify", uid]);
            verdicts.as_array().unwrap().iter().all(|verdict| verdict["proven"] == true)
        });
    }

    // Without the source there is what is on the ledger.
    let all = on_chain.len() + at_source.len() + in_ipfs.len();
    wait_for("what was fetched to be filed", || objects_here(&b) == all);
    wait_for("what is granted to be kept by B's IPFS node", || swarm.pins(1) == swarm.pins(0));
    a.kill();
    swarm.kill(0);
    for uid in &everywhere {
        b.json(&["evict", uid]);
    }
    assert_eq!(got(&consortium, &b, &first), on_chain, "its bytes are on the ledger");
    assert_eq!(got(&consortium, &b, &third), in_ipfs, "its bytes are in B's node too");
    assert!(got(&consortium, &b, &second).is_empty(), "its bytes were at the source alone");
    swarm.run(0);
    a.run();
    wait_for("the source's objects again", || got(&consortium, &b, &second) == at_source);
    assert!(
        consortium.find(c.dicom, Level::Study).is_empty() && got(&consortium, &c, &first).is_empty(),
        "C has nothing"
    );

    for (study, owner) in &studies {
        consortium.revoke(owner, *study, grantee.source().address(), 2);
    }
    wait_for("all studies to be gone at B", || consortium.find(b.dicom, Level::Study).is_empty());
    wait_for("the copies at B to be removed", || objects_here(&b) == 0);
    wait_for("the copies in B's IPFS node to be removed", || swarm.blocks(1).is_empty());
    assert!(everywhere.iter().all(|uid| got(&consortium, &b, uid).is_empty()));
    assert_eq!(swarm.pins(0).len(), in_ipfs.len(), "the source keeps its own");

    // What the owner says while a study is on its way goes with it, and is not refused because no block has the study yet.
    let sent = store(&consortium.runtime, &a, 4);
    let uid = subject(4).study_uid;
    a.json(&["allow", &uid, &grantee.source().address().to_string()]);
    if let Nodes::Geth(_) = nodes {
        let history = a.json(&["trace", &uid])["history"].clone();
        let block = |row: usize| history[row]["block"].as_u64().unwrap();
        assert!(block(1) - block(0) <= 1, "the word did not wait until its study was final: {history}");
    }
    wait_for("the study at B", || got(&consortium, &b, &uid) == sent);
}

#[test]
fn on_the_embedded_ledger() {
    the_story(Nodes::Embedded);
}

#[test]
fn on_anvil() {
    the_story(Nodes::Anvil);
}

#[test]
fn on_two_nodes_of_geth() {
    the_story(Nodes::Geth(2));
}

#[test]
fn on_three_nodes_of_geth() {
    the_story(Nodes::Geth(3));
}

/// Who has no funds is told so and takes in studies all the same; with funds they get onto the ledger.
#[test]
fn an_account_without_funds_is_an_alarm_and_no_reason_not_to_take_in() {
    let Some(consortium) = Consortium::found_on(Nodes::Anvil) else { return };
    let mut site = consortium.start("", "");
    let sent = store(&consortium.runtime, &site, 1);
    let alarms = |site: &Bridge| site.log().matches("THIS SITE'S ACCOUNT HAS NO FUNDS").count();
    wait_for("the alarm", || alarms(&site) == 1);
    // It ends in order, with what it cannot send, and begins again with that.
    assert!(site.terminate().success());
    site.run();
    wait_for("the alarm again", || alarms(&site) == 2);
    let uid = subject(1).study_uid;
    assert_eq!(got(&consortium, &site, &uid), sent, "what was taken in is served");
    consortium.admit(keyring(&site).source().address());
    site.wait_final(1);
    assert!(site.log().contains("transactions get onto the ledger again"));
}

#[test]
fn a_network_says_who_makes_its_blocks_and_who_was_away() {
    let Some(mut geth) = Geth::start(3, Address::repeat_byte(7)) else { return };
    let reach = |geth: &Geth, node: usize, height: u64| {
        wait_for("more blocks", || geth.head(node).is_some_and(|head| head >= height));
    };
    reach(&geth, 0, 6);
    let picture = geth.file("shares.svg");
    let report = geth.audited(&[0, 1, 2], &["--svg", picture.to_str().unwrap()]);
    let sites = report["sites"].as_array().unwrap();
    let sum = |key: &str| sites.iter().map(|site| site[key].as_u64().unwrap()).sum::<u64>();
    let blocks = report["to"].as_u64().unwrap() - report["from"].as_u64().unwrap() + 1;
    assert_eq!((sum("sealed"), sum("in_turn"), sum("seats")), (blocks, blocks, 3), "{report}");
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.contains("seats 33.3 %") && picture.contains("replaced now 0"), "{picture}");
    assert_eq!((&report["forks_known"], &sites[0]["replaced"]), (&"now".into(), &Value::Null), "{report}");
    let alone = geth.audited(&[1], &[]);
    assert_eq!((&alone["forks_known"], &alone["sites"][0]["replaced_now"]), (&"nothing".into(), &Value::Null));

    geth.kill(2);
    let head = geth.head(0).unwrap();
    reach(&geth, 0, head + 8);
    let report = geth.audited(&[0, 1], &[]);
    let away = &report["sites"][2];
    assert!(away["site"] == "site-3" && away["missed"].as_u64().unwrap() >= 2, "{report}");
    assert!(report["forks"].as_array().unwrap().is_empty(), "{report}");

    // It comes back, catches up, and agrees.
    geth.run(2);
    let head = geth.head(0).unwrap();
    reach(&geth, 2, head + 2);
    let report = geth.audited(&[0, 2], &[]);
    assert!(report["forks"].as_array().unwrap().len() <= 2, "the newest may still be settled: {report}");

    // A node of another network is told from one of this.
    let other = std::fs::read_to_string(geth.file("network.json")).unwrap().replace("81220", "81221");
    std::fs::write(geth.file("other.json"), other).unwrap();
    let mut command = Command::new(tests::binary());
    command.args(["network", "audit"]).arg(geth.file("other.json")).args(["--url", geth.url(0)]);
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && words.contains("of chain 81220, and the network has chain id 81221"),
        "{words}"
    );
}

/// Of the network that votes.
const EPOCH_BLOCKS: u64 = 12;
/// Of the site that brings some.
const STUDIES: u32 = 4;

/// What a site's operator does at its node.
fn votes(geth: &Geth, node: usize, more: &[&str]) -> Value {
    let mut command = Command::new(tests::binary());
    command.args(["--json", "network", "vote"]).arg(geth.file("voting.json"));
    let output = command.args(["--url", geth.url(node)]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Site and whether its signer comes or goes.
fn proposed(report: &Value) -> Vec<(String, bool)> {
    let proposals = report["proposals"].as_array().unwrap();
    let said = |one: &Value| (one["site"].as_str().unwrap().to_owned(), one["authorize"].as_bool().unwrap());
    proposals.iter().map(said).collect()
}

fn signers(geth: &Geth) -> BTreeSet<Address> {
    let answer = geth.ask(0, "clique_getSigners", serde_json::json!(["latest"])).unwrap_or_default();
    serde_json::from_value(answer).unwrap_or_default()
}

/// The blocks in which the studies of a source came, as the node's events have it.
fn defined_in(geth: &Geth, registry: Address, source: Address) -> Vec<u64> {
    let topics = [Some(contracts::Studies::StudyDefined::SIGNATURE_HASH), None, Some(source.into_word())];
    let filter = serde_json::json!({ "address": registry, "fromBlock": "0x0", "toBlock": "latest", "topics": topics });
    let events = geth.ask(0, "eth_getLogs", serde_json::json!([filter])).unwrap();
    let number = |event: &Value| event["blockNumber"].as_str().unwrap().trim_start_matches("0x").to_owned();
    events.as_array().unwrap().iter().map(|event| u64::from_str_radix(&number(event), 16).unwrap()).collect()
}

#[test]
fn signers_follow_stake_where_more_than_half_of_them_vote_so() {
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(3)) else { return };
    let site = consortium.join(false);
    let (admin, source) = (consortium.admin, keyring(&site).source().address());
    let registry = contracts::addresses(admin).studies;
    // Two more sites want to sign; their nodes are away. There are seats for four of five.
    let newcomers = [Address::repeat_byte(0xD4), Address::repeat_byte(0xE5)];
    let geth = consortium.geth().unwrap();
    let mut network = geth.network.clone();
    let founders: BTreeSet<Address> = network.nodes.iter().map(|member| member.signer).collect();
    for (signer, number) in newcomers.into_iter().zip(4..) {
        let bridge = (number == 5).then_some(source);
        let (site, enode) = (format!("site-{number}"), String::new());
        network.nodes.push(bridge::network::Member { site, node: 1, signer, enode, bridge });
    }
    network.admin = Some(admin);
    network.seats = Some(4);
    (network.epoch_blocks, network.stake_cap) = (Some(EPOCH_BLOCKS), Some(1));
    std::fs::write(geth.file("voting.json"), serde_json::to_vec(&network).unwrap()).unwrap();

    // While nobody has stake, the first four.
    let fourth = [("site-4".to_owned(), true)];
    assert_eq!(proposed(&votes(geth, 0, &[])), fourth);
    let open = |geth: &Geth, node| geth.ask(node, "clique_proposals", serde_json::json!([])).unwrap();
    assert_eq!(open(geth, 0), serde_json::json!({}), "without --propose nothing is");
    (0..3).for_each(|node| assert_eq!(proposed(&votes(geth, node, &["--propose"])), fourth));
    let with = |one: Address| founders.iter().copied().chain([one]).collect::<BTreeSet<_>>();
    wait_for("the fourth signer", || signers(geth) == with(newcomers[0]));

    // The fifth brings studies at once. Of those in one epoch, one counts when it is over, and the rest never: nobody gets ahead by making up more.
    (1..=STUDIES).for_each(|study| drop(store(&consortium.runtime, &site, study)));
    site.wait_final(STUDIES as usize);
    let geth = consortium.geth().unwrap();
    let defined = defined_in(geth, registry, source);
    let epochs = |before: u64| {
        let over = defined.iter().map(|block| block / EPOCH_BLOCKS).filter(|epoch| *epoch < before / EPOCH_BLOCKS);
        over.collect::<BTreeSet<_>>().len() as u64
    };
    let counts = |report: &Value| {
        let (row, block) = (&report["sites"][4], report["block"].as_u64().unwrap());
        assert_eq!((row["stake"].as_u64().unwrap(), row["counts"].as_u64().unwrap()), (STUDIES.into(), epochs(block)));
        epochs(block)
    };
    counts(&votes(geth, 1, &[]));
    let first = defined.iter().min().unwrap().to_string();
    let at_once = votes(geth, 1, &["--block", &first]);
    assert_eq!((&at_once["sites"][4]["counts"], proposed(&at_once).len()), (&serde_json::json!(0), 0), "{at_once}");
    let last = defined.iter().max().unwrap() / EPOCH_BLOCKS;
    wait_for("the epoch to end", || geth.head(1).is_some_and(|head| head / EPOCH_BLOCKS > last));
    assert!(epochs(u64::MAX) < STUDIES.into(), "the studies came in as many epochs: {defined:?}");

    // One of its nodes and another's change places.
    let change = [("site-5".to_owned(), true), ("site-4".to_owned(), false)];
    let report = votes(geth, 1, &["--propose"]);
    assert_eq!((proposed(&report), counts(&report)), (change.to_vec(), epochs(u64::MAX)));
    // One vote of four is none.
    let head = geth.head(0).unwrap();
    wait_for("more blocks", || geth.head(0).is_some_and(|now| now >= head + 4));
    assert_eq!(signers(geth), with(newcomers[0]));
    for node in [0, 2] {
        votes(geth, node, &["--propose"]);
    }
    wait_for("the signers to be those that are due", || signers(geth) == with(newcomers[1]));

    // What was proposed is taken back, or it would count again.
    for node in 0..3 {
        assert!(proposed(&votes(geth, node, &["--propose"])).is_empty());
        assert_eq!(open(geth, node), serde_json::json!({}));
    }
}
