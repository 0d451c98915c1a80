//! A site whose daily key was rotated still says itself where it answers and with which keys: its identity signs, its operator sends.
#![allow(clippy::unwrap_used, missing_docs)]

use tests::dicom::{connect, get, slices, store, subject};
use tests::peers::free_port;
use tests::{Bridge, wait_for};

const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\"]\n[publish]\nsettle_ms = 100\n";

fn publish(site: &Bridge, study: u32) -> String {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(site.dicom, "CT1").await.unwrap();
        for phantom in &slices(study, 2, 48) {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    site.wait_final(study as usize);
    subject(study).study_uid
}

#[test]
fn after_a_rotation_endpoint_and_keys_are_still_the_sources_own_to_say() {
    let rpc = free_port();
    let at = |exchange: u16| {
        format!("{OPEN}[ledger]\nrpc_bind = \"127.0.0.1:{rpc}\"\n[exchange]\nbind = \"127.0.0.1:{exchange}\"\n")
    };
    let mut a = Bridge::start(&at(free_port()));
    let account = a.json(&["status"])["source"].as_str().unwrap().to_owned();
    wait_for("the keys to be stated", || !a.source(&account)["tls_key"].is_null());
    // The consortium's administrator is the identity too, so B is let in before it signs no longer.
    let ledger =
        format!("[ledger]\nkind = \"rpc\"\nurl = \"http://127.0.0.1:{rpc}\"\nadmin = \"{account}\"\ndeploy = false\n");
    let b = Bridge::start(&format!("{OPEN}{ledger}"));
    let grantee = b.json(&["status"])["source"].as_str().unwrap().to_owned();
    a.json(&["sources", "admit", &grantee]);
    a.wait_for_key_of(&grantee);

    let mut tls_key = a.source(&account)["tls_key"].clone();
    a.terminate();
    let rotated = a.json(&["keys", "rotate"]);
    assert!(rotated["source"].as_str().unwrap().eq_ignore_ascii_case(&account), "{rotated}");
    assert_ne!(rotated["operator"], rotated["source"]);

    // Somewhere else, with a new TLS key.
    let mut begin_elsewhere = |a: &mut Bridge| {
        let port = free_port();
        std::fs::remove_file(a.data().join("keystore/exchange-tls.pkcs8")).unwrap();
        a.reconfigure(&at(port), Vec::new());
        a.run();
        let endpoint = format!("https://127.0.0.1:{port}");
        wait_for("the new endpoint and key on the ledger", || {
            let now = a.source(&account);
            now["endpoint"] == endpoint.as_str() && now["tls_key"] != tls_key
        });
        tls_key = a.source(&account)["tls_key"].clone();
    };
    begin_elsewhere(&mut a);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let given = |a: &Bridge, study: u32| {
        let uid = publish(a, study);
        a.json(&["allow", &uid, &grantee]);
        wait_for("the study at B", || runtime.block_on(get(b.dicom, &uid)).data_sets.len() == 2);
    };
    given(&a, 1);
    // Once more, while B knows the old place.
    a.terminate();
    begin_elsewhere(&mut a);
    given(&a, 2);
}
