//! Links to one study: what they open and for how long, over every door that a token opens, and who makes and stops them.
#![allow(clippy::unwrap_used, missing_docs)]

use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tests::dicom::{connect, slices, store, subject};
use tests::http::{Answer, Client, address, send};
use tests::person::{Person, text};
use tests::{Bridge, wait_for};

const SERVED: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n\
                      requests_per_minute = 100000\n[[peer]]\nae_title = \"FETCHER\"\nallow = [\"find\", \"get\"]\n";

fn site(studies: u32) -> Bridge {
    let bridge = Bridge::start(SERVED);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in (1..=studies).flat_map(|number| slices(number, 2, 64)) {
            assert_eq!(store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    bridge.wait_final(studies as usize);
    bridge
}

fn uid(number: u32) -> String {
    subject(number).study_uid
}

fn page(number: u32) -> String {
    format!("/ui/studies/{}", uid(number))
}

/// Makes a link on a study's page; returns what is behind its #.
fn link(person: &Person, number: u32, name: &str, until: &str) -> Result<String, Answer> {
    let fields = [("name", name), ("until", until)];
    let answer = person.submit_from("/ui/", &format!("{}/links", page(number)), &fields);
    if answer.status != 200 {
        return Err(answer);
    }
    let page = text(&answer);
    let shown = page.split("<p class=\"mono code\">").nth(1).unwrap().split("</p>").next().unwrap();
    let (place, token) = shown.split_once('#').unwrap();
    assert!(place.starts_with("http://127.0.0.1:") && place.ends_with("/ui/shared"), "{place}");
    Ok(token.to_owned())
}

fn in_days(days: u64) -> String {
    bridge::decide::moment(tests::consortium::now_s() + days * 86_400).chars().take(10).collect()
}

/// Whoever opens a link.
fn guest(bridge: &Bridge, token: &str) -> (Person, Client) {
    let client = Client { to: address(bridge), token: Some(token.to_owned()), from: None };
    let mut person = Person { client: client.clone(), cookie: None };
    assert!(person.page("/ui/shared").contains("data-shared"));
    let answer = person.log_in("");
    assert_eq!((answer.status, answer.header("location")), (303, Some(page(1).as_str())), "{}", text(&answer));
    (person, client)
}

fn web(client: &Client, path: &str) -> Answer {
    let bearer = format!("Bearer {}", client.token.as_deref().unwrap());
    send(client.to, "GET", &format!("/dicomweb{path}"), &[("Authorization", &bearer), ("Accept", "*/*")], b"")
}

#[test]
fn a_link_opens_one_study_and_nothing_that_was_said_about_it() {
    let bridge = site(2);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let token = link(&operator, 1, "Dr X", &in_days(3)).unwrap();
    let (person, client) = guest(&bridge, &token);

    // Pages: the study with its pictures, and no one else's business.
    let shown = person.page(&page(1));
    assert!(
        shown.contains("Preview of") && shown.contains("application/zip") && shown.contains("Dr X (by a link)"),
        "{shown}"
    );
    for hidden in
        ["Who can read it", "Defined", "Shared by links", "Let the patient decide", "Consent</a>", "Ledger</a>"]
    {
        assert!(!shown.contains(hidden), "{hidden}: {shown}");
    }
    let list = person.page("/ui/");
    assert_eq!(list.matches("data-study=").count(), 1, "{list}");
    for path in [page(2), "/ui/studies/1.2.3".to_owned()] {
        assert_eq!(person.get(&path).status, 404, "{path}");
    }
    for path in ["/ui/ledger", "/ui/consent", "/ui/requests", "/ui/audit", "/ui/operations"] {
        assert_eq!(person.get(path).status, 403, "{path}");
    }

    // DICOMweb, by the token itself and by the login.
    let found: Value = web(&client, "/studies").json();
    assert_eq!(found.as_array().unwrap().len(), 1);
    let instances: Value = web(&client, &format!("/studies/{}/instances", uid(1))).json();
    assert_eq!(instances.as_array().unwrap().len(), 2);
    assert_eq!(person.get(&format!("/dicomweb/studies/{}/metadata", uid(1))).status, 200);
    assert_eq!(web(&client, &format!("/studies/{}", uid(1))).status, 200);
    for path in ["", "/metadata", "/series", "/rendered", "/thumbnail"] {
        let other = web(&client, &format!("/studies/{}{path}", uid(2)));
        assert!(matches!(other.status, 204 | 404), "{path}: {}", other.status);
    }
    let bearer = format!("Bearer {token}");
    let stored = send(
        client.to,
        "POST",
        "/dicomweb/studies",
        &[("Authorization", &bearer), ("Content-Type", "application/dicom")],
        b"x",
    );
    assert_eq!(stored.status, 403);

    // The API.
    let id = bridge.json(&["study", "show", &uid(1)])["study_id"].as_str().unwrap().to_owned();
    assert_eq!(client.get("/studies").json()["studies"].as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/studies/{}", uid(1))).status, 200);
    assert_eq!(client.get(&format!("/studies/{id}")).status, 200);
    assert_eq!(client.get(&format!("/studies/{}", uid(2))).status, 404);
    for path in [
        format!("/studies/{id}/grants"),
        format!("/studies/{id}/history"),
        "/requests".into(),
        "/sources".into(),
        "/status".into(),
    ] {
        assert_eq!(client.get(&path).status, 403, "{path}");
    }
    let decision = json!({ "study": id, "decision": { "kind": "revoke", "grantee": "0x2222222222222222222222222222222222222222" } });
    for path in ["/decisions", "/actions"] {
        assert_eq!(client.post(path, &decision).status, 403, "{path}");
    }
    assert_eq!(client.get("/me").json()["rights"], json!(["find", "retrieve"]));
    // Who has a link makes none.
    assert_eq!(link(&person, 1, "a friend", &in_days(1)).unwrap_err().status, 403);
}

#[test]
fn a_link_ends_on_its_day_when_it_is_stopped_and_when_the_study_goes_to_another() {
    let bridge = site(1);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let opens = |client: &Client| client.get(&format!("/studies/{}", uid(1))).status;

    let token = link(&operator, 1, "<b>Dr X", &in_days(3)).unwrap();
    let (person, client) = guest(&bridge, &token);
    let shown = operator.page(&page(1));
    assert!(shown.contains("&lt;b&gt;Dr X") && !shown.contains("<b>Dr X"), "{shown}");
    let id = token.split('_').nth(1).unwrap();
    assert_eq!(operator.submit(&format!("{}/links/{}", page(1), "0".repeat(16)), &[]).status, 404);
    assert_eq!(operator.post(&format!("{}/links/{id}", page(1)), &[], &[]).status, 403, "no form of this login");
    // A token that is no link is not stopped by a form about links.
    let other = bridge.json(&["token", "new", "--name", "x", "--as", "operator"]);
    assert_eq!(operator.submit(&format!("{}/links/{}", page(1), other["id"].as_str().unwrap()), &[]).status, 404);
    assert_eq!(opens(&client), 200);
    assert_eq!(operator.submit(&format!("{}/links/{id}", page(1)), &[]).status, 303);
    assert_eq!((opens(&client), person.get(&page(1)).status), (401, 303));

    for wrong in ["", "2020-01-01", "tomorrow"] {
        assert_eq!(link(&operator, 1, "Dr X", wrong).unwrap_err().status, 400, "{wrong}");
    }
    assert_eq!(link(&operator, 1, "Dr X", &in_days(400)).unwrap_err().status, 400);
    assert_eq!(link(&operator, 1, "", &in_days(1)).unwrap_err().status, 400);
    let fetcher = Person::with_token(&bridge, &["--as", "peer:FETCHER"]);
    assert_eq!(link(&fetcher, 1, "Dr X", &in_days(1)).unwrap_err().status, 403);
    assert!(!fetcher.page(&page(1)).contains("Shared by links"));

    // By the command line; it dies when the patient takes the study over, and the patient makes others.
    let refused =
        bridge.cli(&["token", "new", "--name", "x", "--as", "study:1.2.3@0x2222222222222222222222222222222222222222"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("token share"), "{refused:?}");
    let made = bridge.json(&["token", "share", &uid(1), "--name", "Dr Y", "--days", "2"]);
    let (_, client) = guest(&bridge, made["token"].as_str().unwrap());
    assert_eq!(opens(&client), 200);
    let key = PrivateKeySigner::random();
    let code = bridge.json(&["token", "claim", &uid(1)])["code"].as_str().unwrap().to_owned();
    let signed =
        key.sign_message_sync(format!("PACS Bridge: take over with {}", code.replace('-', "")).as_bytes()).unwrap();
    let mut patient = Person::stranger(&bridge);
    let signature = format!("0x{}", hex::encode(signed.as_bytes()));
    let fields = [("code", code.as_str()), ("account", &key.address().to_string()), ("signature", &signature)];
    let taken = patient.post("/ui/claim", &fields, &[]);
    assert_eq!(taken.status, 303);
    patient.keep_cookie(&taken);
    wait_for("the link of before to open nothing", || opens(&client) == 404);
    assert!(!operator.page(&page(1)).contains("Shared by links"));
    assert_eq!(link(&operator, 1, "Dr X", &in_days(1)).unwrap_err().status, 403);
    assert!(!bridge.cli(&["token", "share", &uid(1), "--name", "Dr Y"]).status.success());
    let token = link(&patient, 1, "Dr Z", &in_days(1)).unwrap();
    let (_, client) = guest(&bridge, &token);
    assert_eq!(opens(&client), 200);
    // What the patient sees of it: the older one too, which opens nothing.
    assert!(patient.page(&page(1)).contains("Dr Z"));

    let trail = String::from_utf8(bridge.cli(&["audit", "list", "--json"]).stdout).unwrap();
    assert!(trail.contains(&format!("study:{}@{}", uid(1), key.address())) && !trail.contains("Dr Z"), "{trail}");
}
