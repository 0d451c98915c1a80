//! A network of geth under which a site publishes: nodes that are killed and wiped, or slow, erring and forgetful, a bridge that is killed, and a
//! minority that is cut off and comes back. In the end everything that was acknowledged is on the chain once, and all nodes agree.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use dicom_scp::matching::Level;
use serde_json::json;
use tests::consortium::{Consortium, Nodes, OPEN, keyring, store};
use tests::dicom::{get, subject};
use tests::faults::{SetClock, Volume};
use tests::geth::Geth;
use tests::network_ends::all_is_well;
use tests::rpc::{Fault, FaultyRpc};
use tests::{Bridge, wait_for};

/// Of a site that hands out keys.
const EXCHANGE: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n";

#[test]
fn nodes_and_the_bridge_die_and_nothing_is_lost_or_sent_twice() {
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(3)) else { return };
    let url = consortium.geth().unwrap().url(1).to_owned();
    let mut a = consortium.start(EXCHANGE, &format!("fallback_urls = [\"{url}\"]\nhead_age_max_ms = 5000\n"));
    consortium.admit(keyring(&a).source().address());

    // The node that the site uses dies while it publishes: another one is used.
    store(&consortium.runtime, &a, 1);
    std::thread::sleep(Duration::from_millis(700));
    consortium.geth().unwrap().kill(0);
    a.wait_final(1);
    consortium.geth().unwrap().run(0);

    // The bridge dies between signing, sending and receipts.
    store(&consortium.runtime, &a, 2);
    for life in 0..5 {
        std::thread::sleep(Duration::from_millis(300 + 450 * life));
        a.kill();
        a.run();
    }
    a.wait_final(2);

    // The node loses its disk and begins with the first block: it is not believed until it has caught up.
    let geth = consortium.geth().unwrap();
    geth.kill(0);
    geth.wipe(0);
    geth.run(0);
    store(&consortium.runtime, &a, 3);
    a.wait_final(3);
    wait_for("the wiped node to catch up", || {
        let geth = consortium.geth().unwrap();
        geth.head(0).zip(geth.head(2)).is_some_and(|(wiped, other)| wiped > 5 && wiped + 2 >= other)
    });
    all_is_well(&mut consortium, &a, 3, 5);
}

#[test]
fn a_node_without_room_ends_and_others_take_its_place_until_it_has_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::new(dir.path()) else { return };
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(3)) else { return };
    let url = consortium.geth().unwrap().url(1).to_owned();
    let geth = consortium.geth().unwrap();
    geth.kill(0);
    geth.put_on(0, &volume.mount);
    geth.run(0);
    wait_for("the node on the volume to catch up", || {
        let geth = consortium.geth().unwrap();
        geth.head(0).zip(geth.head(1)).is_some_and(|(here, other)| here > 1 && here + 2 >= other)
    });
    let mut a = consortium.start(EXCHANGE, &format!("fallback_urls = [\"{url}\"]\nhead_age_max_ms = 5000\n"));
    consortium.admit(keyring(&a).source().address());
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);

    store(&consortium.runtime, &a, 2);
    volume.fill();
    wait_for("the node to end", || consortium.geth().unwrap().has_ended(0));
    a.wait_final(2);

    volume.make_room();
    consortium.geth().unwrap().run(0);
    store(&consortium.runtime, &a, 3);
    a.wait_final(3);
    wait_for("the node to catch up", || {
        let geth = consortium.geth().unwrap();
        geth.head(0).zip(geth.head(2)).is_some_and(|(here, other)| here + 2 >= other)
    });
    // It is good for something again: the one that stood in for it goes.
    consortium.geth().unwrap().kill(1);
    store(&consortium.runtime, &a, 4);
    a.wait_final(4);
    consortium.geth().unwrap().run(1);
    all_is_well(&mut consortium, &a, 4, 5);
    a.terminate();
    consortium.geth().unwrap().kill(0);
}

#[test]
fn a_clock_that_jumps_holds_up_nothing_of_this_site_and_lets_nobody_else_in() {
    const DAY_S: i64 = 86_400;
    let dir = tempfile::tempdir().unwrap();
    let Some(clock) = SetClock::new(dir.path()) else { return };
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let ledger = consortium.ledger_lines(&consortium.url(0));
    let toml = format!("{OPEN}{ledger}[exchange]\nbind = \"127.0.0.1:0\"\n[publish]\nsettle_ms = 2000\n");
    let data = dir.path().join("data");
    let mut a = Bridge::prepare(tempfile::tempdir().unwrap(), data, &toml, clock.environment());
    a.run();
    consortium.admit(keyring(&a).source().address());
    let b = consortium.join(true);
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);

    // What comes while the clock is ahead is due when the clock is right again, and not only in three days.
    clock.set(3 * DAY_S);
    store(&consortium.runtime, &a, 2);
    clock.set(-3 * DAY_S);
    a.wait_final(2);
    store(&consortium.runtime, &a, 3);
    a.wait_final(3);

    // The owner has let B in; A cannot tell whether that has ended meanwhile.
    let source = keyring(&a);
    let uid = dicom_scp::Uid::new(&subject(3).study_uid).unwrap();
    let keys = source.study(&uid).unwrap().unwrap();
    let study = bridge::study::study_id(&keys.salt, uid.as_str());
    consortium.allow(&source.owner(keys.owner_index).unwrap(), study, &keyring(&b), 2, 1);
    wait_for("A to say that its clock is behind", || {
        a.log().contains("THE CLOCK OF THIS MACHINE IS BEHIND THE LEDGER")
    });
    wait_for("B to be refused", || a.log().contains("refused the keys of a study"));
    assert!(!consortium.find(b.dicom, Level::Study).contains(uid.as_str()), "B was let in");
    clock.set(0);
    wait_for("the study at B", || consortium.find(b.dicom, Level::Study).contains(uid.as_str()));
    assert_eq!(consortium.runtime.block_on(get(b.dicom, uid.as_str())).data_sets.len(), 5);
    all_is_well(&mut consortium, &a, 3, 5);
}

#[test]
fn a_node_that_is_slow_errs_stands_still_or_forgets_costs_time_and_nothing_else() {
    let Some(mut consortium) = Consortium::found_on(Nodes::Geth(2)) else { return };
    let rpc = FaultyRpc::before(consortium.geth().unwrap().url(0));
    let a = consortium.start_at(&rpc.url, EXCHANGE, "request_timeout_ms = 4000\n");
    consortium.admit(keyring(&a).source().address());
    for (study, fault) in [(1, Fault::Slow(Duration::from_millis(120))), (2, Fault::Errs)] {
        rpc.set(fault);
        store(&consortium.runtime, &a, study);
        // While it lasts.
        a.wait_final(study as usize);
    }

    // What the node throws away is offered again, with the same bytes.
    rpc.set(Fault::Swallows);
    store(&consortium.runtime, &a, 3);
    wait_for("transactions to be thrown away", || rpc.swallowed() > 2);
    rpc.set(Fault::None);
    a.wait_final(3);

    // Nothing is final as long as the newest block stays the same.
    rpc.set(Fault::Stands);
    store(&consortium.runtime, &a, 4);
    let head = consortium.geth().unwrap().head(0).unwrap();
    wait_for("the network to go on", || consortium.geth().unwrap().head(0).is_some_and(|now| now > head + 8));
    let rows = a.json(&["studies"]);
    assert_eq!(rows.as_array().unwrap().iter().filter(|row| row["state"] == "final").count(), 3, "{rows}");
    rpc.set(Fault::None);
    a.wait_final(4);
    all_is_well(&mut consortium, &a, 4, 5);
}

/// Cuts nodes off when they can make a block of their own, which is then lost: who signed one of the last few makes none.
fn part_with_a_block_of_its_own(geth: &Geth, these: &[usize]) {
    for _ in 0..20 {
        geth.part(these);
        std::thread::sleep(Duration::from_millis(500));
        let (begun, from) = (std::time::Instant::now(), geth.head(these[0]).unwrap());
        while begun.elapsed() < Duration::from_secs(5) {
            if geth.head(these[0]).is_some_and(|head| head > from) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        geth.join(these);
        let others = (0..geth.network.nodes.len()).find(|node| !these.contains(node)).unwrap();
        wait_for("the nodes to be together again", || {
            geth.head(these[0]).zip(geth.head(others)).is_some_and(|(here, there)| here + 1 >= there)
        });
        std::thread::sleep(Duration::from_millis(700));
    }
    panic!("the nodes that are cut off make no block");
}

#[test]
fn what_a_minority_took_while_it_was_cut_off_gets_onto_the_chain_of_all() {
    const MINORITY: [usize; 2] = [0, 1];
    let Some(mut consortium) = Consortium::found_on(Nodes::WiredGeth(5)) else { return };
    // At node 0, 1 and 2.
    let [a, _, b] = [true, false, false].map(|exchange| consortium.join(exchange));
    store(&consortium.runtime, &a, 1);
    a.wait_final(1);

    part_with_a_block_of_its_own(consortium.geth().unwrap(), &MINORITY);
    let geth = consortium.geth().unwrap();
    let (near, far) = (geth.head(0).unwrap(), geth.head(2).unwrap());
    store(&consortium.runtime, &a, 2);
    // Half a minute.
    wait_for("the majority to go on", || consortium.geth().unwrap().head(2).is_some_and(|head| head >= far + 30));
    let geth = consortium.geth().unwrap();
    assert!(geth.head(0).unwrap() <= near + 3, "two of five go on alone");
    let of_second = |site: &Bridge| {
        let rows = site.json(&["studies"]);
        let uid = subject(2).study_uid;
        rows.as_array().unwrap().iter().find(|row| row["uid"] == uid.as_str()).cloned().unwrap()
    };
    assert_ne!(of_second(&a)["state"], "final", "two of five make nothing final");
    let geth = consortium.geth().unwrap();
    let height = geth.head(0).unwrap();
    let block =
        |geth: &Geth, node| geth.ask(node, "eth_getBlockByNumber", json!([format!("{height:#x}"), false])).unwrap();
    let lost = block(geth, 0)["hash"].clone();
    geth.join(&MINORITY);
    a.wait_final(2);
    let geth = consortium.geth().unwrap();
    for node in 0..5 {
        assert_ne!(block(geth, node)["hash"], lost, "node {node} was not reorganised at {height}");
    }

    // What the minority published is what the majority's sites see.
    let uid = dicom_scp::Uid::new(&subject(2).study_uid).unwrap();
    let source = keyring(&a);
    let keys = source.study(&uid).unwrap().unwrap();
    let study = bridge::study::study_id(&keys.salt, uid.as_str());
    consortium.allow(&source.owner(keys.owner_index).unwrap(), study, &keyring(&b), 2, 1);
    wait_for("the study at B", || consortium.find(b.dicom, Level::Study).contains(uid.as_str()));
    assert_eq!(consortium.runtime.block_on(get(b.dicom, uid.as_str())).data_sets.len(), 5);
    all_is_well(&mut consortium, &a, 2, 5);

    // Who asks later whose blocks were lost is told, by a node that never had them.
    let geth = consortium.geth().unwrap();
    let report = geth.audited(&[2], &["--record", a.data().to_str().unwrap()]);
    let rows = report["forks"].as_array().unwrap();
    let row = rows.iter().find(|row| row["hash"] == lost).unwrap_or_else(|| panic!("no word of {lost}: {report}"));
    assert_eq!((&row["number"], &row["stands"]), (&height.into(), &block(geth, 2)["hash"]), "{row}");
    let site = report["sites"].as_array().unwrap().iter().find(|site| site["site"] == row["site"]).unwrap();
    assert!(["site-1", "site-2"].contains(&site["site"].as_str().unwrap()) && site["replaced"].as_u64() > Some(0));
}
