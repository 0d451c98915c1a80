//! The HTTP API of the real binary: who may do what over every route, a patient whose key only the patient has, limits and hostile
//! callers, and another program's judgement by the OpenAPI document.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::B256;
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use bridge::access::{Caller, Principal};
use bridge::tokens::{DATABASE, Tokens};
use serde_json::{Value, json};
use tests::dicom::{slices, subject};
use tests::http::{Answer, Client, PREFIX, address, connect, read_answer, read_head, send};
use tests::{Bridge, have, skip, wait_for};

const GRANTEE: &str = "0x2222222222222222222222222222222222222222";
const KEY_HASH: &str = "0x3333333333333333333333333333333333333333333333333333333333333333";
const ABSENT: &str = "0x4444444444444444444444444444444444444444444444444444444444444444";

/// A site with the API, two studies on the ledger, and what is further configured.
fn site(http: &str) -> Bridge {
    let toml = format!(
        "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n{http}\
         [[peer]]\nae_title = \"FINDER\"\nallow = [\"find\"]\n[[peer]]\nae_title = \"FETCHER\"\nallow = [\"get\"]\n"
    );
    let bridge = Bridge::start(&toml);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in slices(1, 2, 32).iter().chain(&slices(2, 1, 32)) {
            assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
    });
    bridge.wait_final(2);
    bridge
}

fn study_id(bridge: &Bridge, number: u32) -> String {
    bridge.json(&["study", "show", &subject(number).study_uid])["study_id"].as_str().unwrap().to_owned()
}

/// A patient with a key of his own, to whom a study was handed over.
fn patient(bridge: &Bridge, number: u32) -> (PrivateKeySigner, Client) {
    let key = PrivateKeySigner::random();
    let account = key.address().to_string();
    bridge.json(&["claim", &subject(number).study_uid, "--owner", &account]);
    let client = Client::with_token(bridge, &["--as", &format!("account:{account}")]);
    (key, client)
}

/// Signs what a wallet is given, by other people's code.
fn sign(key: &PrivateKeySigner, unsigned: &Value) -> Value {
    let typed: alloy_dyn_abi::TypedData = serde_json::from_value(unsigned["typed_data"].clone()).unwrap();
    let digest = typed.eip712_signing_hash().unwrap();
    assert_eq!(unsigned["digest"].as_str().unwrap().parse::<B256>().unwrap(), digest);
    let mut action = unsigned["action"].clone();
    // As a page in a browser does, whose numbers are floating point.
    assert!(floats_hold(&action), "{action}");
    action["signature"] = format!("0x{}", hex::encode(key.sign_hash_sync(&digest).unwrap().as_bytes())).into();
    action
}

fn floats_hold(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64().is_some_and(|exact| exact <= 1 << 53),
        Value::Array(all) => all.iter().all(floats_hold),
        Value::Object(fields) => fields.values().all(floats_hold),
        _ => true,
    }
}

fn head_of_ledger(operator: &Client) -> Value {
    operator.get("/status").json()["ledger"]["head"].clone()
}

#[test]
fn every_route_asks_who_calls_and_tells_nobody_else() {
    let bridge = site("requests_per_minute = 1000000\nbehind_proxy = true\n");
    let (_, own) = patient(&bridge, 1);
    let (_, other) = patient(&bridge, 2);
    let (uid, id) = (subject(1).study_uid, study_id(&bridge, 1));
    let operator = Client::with_token(&bridge, &["--as", "operator", "--days", "1"]);
    let finder = Client::with_token(&bridge, &["--as", "peer:FINDER"]);
    let fetcher = Client::with_token(&bridge, &["--as", "peer:FETCHER"]);
    let narrow = Client::with_token(&bridge, &["--as", "operator", "--may", "status"]);

    // Who has no token that is good now: none, a wrong one, one that ended, one that was revoked.
    let tokens = Tokens::open(&bridge.data().join(DATABASE)).unwrap();
    let caller = Caller { principal: Principal::Operator, narrowed: None };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expired = tokens.create("old", &caller, now - 100, Some(now - 1)).unwrap().1;
    let revoked = Client::with_token(&bridge, &["--as", "operator"]);
    assert_eq!(revoked.get("/me").status, 200);
    let list = bridge.json(&["token", "list"]);
    let revoked_id = revoked.token.as_ref().unwrap().split('_').nth(1).unwrap();
    assert!(list.as_array().unwrap().iter().any(|row| row["id"] == revoked_id && row["used_s"].is_u64()), "{list}");
    bridge.json(&["token", "revoke", revoked_id]);
    let with = |token: Option<String>| Client { to: operator.to, token, from: None };
    let strangers =
        [with(None), with(Some("pbt_0123456789abcdef_00".into())), with(Some(expired.to_string())), revoked];

    let absent_uid = format!("{uid}.999");
    let about = |study: &str| json!({ "study": study, "decision": { "kind": "revoke", "grantee": GRANTEE } });
    let break_glass = json!({ "study": ABSENT, "reason": "legal-order", "seconds": 60 });
    let ask = json!({ "study": id, "mode": "full", "purpose": "TREAT" });
    let study = |given: &str, rest: &str| format!("/studies/{given}{rest}");
    // What each gets: operator, owner, another owner, a peer that may find, a peer that may get, an operator's narrowed token.
    let routes: Vec<(&str, String, Option<Value>, [u16; 6])> = vec![
        ("GET", "/me".into(), None, [200, 200, 200, 200, 200, 200]),
        ("GET", "/studies".into(), None, [200, 200, 200, 200, 403, 403]),
        ("GET", study(&uid, ""), None, [200, 200, 404, 200, 403, 403]),
        ("GET", study(&id, ""), None, [200, 200, 404, 200, 403, 403]),
        ("GET", study(&absent_uid, ""), None, [404, 404, 404, 404, 403, 403]),
        ("GET", study(&uid, "/preview/0"), None, [200, 200, 404, 403, 200, 403]),
        ("GET", study(&uid, "/preview/999"), None, [404, 404, 404, 403, 404, 403]),
        ("GET", study(&uid, "/grants"), None, [200, 200, 404, 200, 403, 403]),
        ("GET", study(&id, "/history"), None, [200, 200, 404, 200, 403, 403]),
        ("GET", "/requests".into(), None, [200, 200, 200, 200, 403, 403]),
        ("POST", "/requests".into(), Some(ask), [200, 403, 403, 403, 403, 403]),
        ("POST", "/decisions".into(), Some(about(&uid)), [409, 403, 403, 403, 403, 403]),
        ("POST", "/actions".into(), Some(about(&uid)), [200, 200, 404, 403, 403, 403]),
        ("POST", "/actions".into(), Some(about(ABSENT)), [404, 404, 404, 403, 403, 403]),
        ("POST", "/break-glass".into(), Some(break_glass), [404, 403, 403, 403, 403, 403]),
        ("GET", "/sources".into(), None, [200, 200, 200, 403, 403, 403]),
        ("GET", "/status".into(), None, [200, 403, 403, 403, 403, 200]),
        ("GET", "/events".into(), None, [200, 200, 200, 200, 403, 403]),
    ];
    let callers = [&operator, &own, &other, &finder, &fetcher, &narrow];
    let mut absent: Option<Answer> = None;
    let mut places = 0;
    let undated = |mut answer: Answer| {
        answer.headers.retain(|(name, _)| name != "date");
        answer
    };
    for (method, path, body, expected) in &routes {
        for (caller, (client, expected)) in callers.iter().zip(expected).enumerate() {
            let answer = client.send(method, path, body.as_ref());
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status, *expected, "{method} {path} by {caller}: {text}");
            if answer.status >= 400 {
                assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {path}");
                assert_eq!(answer.json()["status"], answer.status);
            }
            if answer.status == 404 {
                let answer = undated(answer);
                assert_eq!(absent.get_or_insert(answer.clone()), &answer, "every absence is the same: {method} {path}");
            }
        }
        let mut refused: Option<Answer> = None;
        for (which, stranger) in strangers.iter().enumerate() {
            // From many places, so that it is not their number that is refused.
            places += 1;
            let stranger =
                Client { from: Some(format!("198.51.{}.{}", places / 250, places % 250)), ..stranger.clone() };
            let answer = undated(stranger.send(method, path, body.as_ref()));
            assert_eq!(answer.status, 401, "{method} {path} by stranger {which}");
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
            assert_eq!(refused.get_or_insert(answer.clone()), &answer, "{method} {path} by stranger {which}");
        }
    }

    // Everybody: the document, and whether it lives. Nobody: actions that nobody signed.
    let nobody = with(None);
    for path in ["/openapi.json", "/health/live", "/health/ready"] {
        assert_eq!(nobody.get(path).status, 200, "{path}");
    }
    let unsigned = own.post("/actions", &about(&uid)).json();
    assert_eq!(nobody.post("/actions/submit", &unsigned["action"]).status, 400);
    // Lists hold what each may see.
    let uids = |client: &Client| {
        let page = client.get("/studies").json();
        page["studies"].as_array().unwrap().iter().map(|s| s["uid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (first, second) = (subject(1).study_uid, subject(2).study_uid);
    assert_eq!(uids(&operator), [first.clone(), second.clone()]);
    assert_eq!(uids(&finder), [first.clone(), second.clone()]);
    assert_eq!((uids(&own), uids(&other)), (vec![first], vec![second]));
    let waiting = |client: &Client| client.get("/requests").json()["requests"].as_array().unwrap().len();
    assert_eq!((waiting(&operator), waiting(&own), waiting(&other), waiting(&finder)), (1, 1, 0, 1));

    // Pages, entity tags, and what is wrong with a question.
    let page = operator.get("/studies?limit=1").json();
    let next = page["next"].as_str().unwrap();
    let page = operator.get(&format!("/studies?limit=1&after={next}")).json();
    assert_eq!((page["studies"][0]["uid"].as_str(), &page["next"]), (Some(uids(&other)[0].as_str()), &Value::Null));
    for (path, status) in [("?limit=0", 400), ("?limit=501", 400), ("?limit=x", 400), ("?x=1", 400), ("?after=x", 404)]
    {
        assert_eq!(operator.get(&format!("/studies{path}")).status, status, "{path}");
    }
    let bearer = format!("Bearer {}", operator.token.as_ref().unwrap());
    for path in [study(&uid, ""), study(&uid, "/preview/0"), "/studies".into()] {
        let path = format!("{PREFIX}{path}");
        let whole = send(operator.to, "GET", &path, &[("Authorization", &bearer)], b"");
        let tag = whole.header("etag").unwrap();
        let again = [("Authorization", bearer.as_str()), ("If-None-Match", tag)];
        let again = send(operator.to, "GET", &path, &again, b"");
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
    }
    let picture = own.get(&study(&uid, "/preview/0"));
    let described = own.get(&study(&uid, "")).json()["previews"][0].clone();
    assert_eq!(picture.header("content-type"), described["media_type"].as_str());
    assert!(picture.body.starts_with(&[0xff, 0xd8]) || picture.body.starts_with(b"\x89PNG"));

    // What is logged tells nothing, and neither do tokens.
    let log = bridge.log();
    for secret in [uid.as_str(), &subject(1).patient_name, &subject(1).patient_id, operator.token.as_ref().unwrap()] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_patient_decides_with_a_key_that_only_the_patient_has() {
    let bridge = site("requests_per_minute = 1000000\n");
    let (uid, id) = (subject(1).study_uid, study_id(&bridge, 1));
    let operator = Client::with_token(&bridge, &["--as", "operator"]);

    // In custody the site decides for the patient; both see it.
    let allow = json!({ "study": uid, "decision": { "kind": "allow", "grantee": GRANTEE, "mode": "preview", "encryption_key": KEY_HASH } });
    let done = operator.post("/decisions", &allow).json();
    assert_eq!((&done["action"], &done["state"]), (&"allowed".into(), &"authorised".into()), "{done}");
    let (key, patient) = patient(&bridge, 1);
    let (other_key, _) = self::patient(&bridge, 2);
    let nobody = Client { to: operator.to, token: None, from: None };
    let mut events = patient.listen();

    // Somebody asks; the patient sees it, and nobody else's.
    let source = operator.get("/status").json()["source"].as_str().unwrap().to_owned();
    let asked = operator.post("/requests", &json!({ "study": id, "mode": "full", "purpose": "HRESCH" }));
    assert_eq!(asked.status, 200, "{}", asked.json());
    let waiting = patient.get("/requests").json();
    let row = &waiting["requests"][0];
    assert_eq!(
        (&row["grantee"], &row["purpose"], &row["state"]),
        (&source.clone().into(), &"HRESCH".into(), &"open".into())
    );
    events.wait_for(|text| text.contains("event: consent") && text.contains("\"requested\""));

    // The patient allows it until it is taken away.
    let decision =
        json!({ "study": id, "decision": { "kind": "allow", "grantee": source, "mode": "full", "purpose": "HRESCH" } });
    let unsigned = patient.post("/actions", &decision).json();
    assert_eq!(unsigned["signer"], key.address().to_string());
    let words = unsigned["words"].as_str().unwrap();
    assert!(words.contains(&source) && words.contains("full") && words.contains("until revoked"), "{words}");
    let signed = sign(&key, &unsigned);

    // Neither another owner's signature, nor another's study, nor a changed action is sent; nothing of it costs anything.
    let before = head_of_ledger(&operator);
    let mut by_other = sign(&other_key, &unsigned);
    let mut changed = signed.clone();
    changed["action"]["allow"]["grantee"] = GRANTEE.into();
    let mut elsewhere = signed.clone();
    elsewhere["chain_id"] = 1.into();
    let mut absent = signed.clone();
    absent["action"]["allow"]["study"] = ABSENT.into();
    let refused: Vec<Answer> = [&by_other, &changed, &elsewhere, &absent]
        .into_iter()
        .map(|action| nobody.post("/actions/submit", action))
        .collect();
    for answer in &refused {
        assert_eq!((answer.status, &answer.body), (403, &refused[0].body), "{}", answer.json());
    }
    // Signed well, by somebody who says to be the owner and is not.
    by_other["signer"] = other_key.address().to_string().into();
    assert_eq!(nobody.post("/actions/submit", &by_other).body, refused[0].body);
    assert_eq!(head_of_ledger(&operator), before);

    // The right one needs no token.
    let done = nobody.post("/actions/submit", &signed).json();
    assert_eq!((&done["action"], &done["state"]), (&"allowed".into(), &"authorised".into()), "{done}");
    assert!(done["transaction"].as_str().unwrap().len() == 66 && done["gas"].as_u64().unwrap() > 20_000, "{done}");
    events.wait_for(|text| text.contains("\"allowed\""));
    let replayed = nobody.post("/actions/submit", &signed);
    assert_eq!(replayed.status, 409, "{}", replayed.json());

    let grants = patient.get(&format!("/studies/{uid}/grants")).json();
    let of = |account: &str| {
        let rows = grants["grants"].as_array().unwrap();
        rows.iter().find(|row| row["grantee"].as_str().unwrap().eq_ignore_ascii_case(account)).unwrap().clone()
    };
    assert_eq!((&of(&source)["sees"], &of(&source)["until_s"]), (&"full".into(), &Value::Null), "{grants}");
    assert_eq!((&of(GRANTEE)["sees"], &of(GRANTEE)["state"]), (&"preview".into(), &"authorised".into()), "{grants}");

    // And takes it away again.
    let revoke = json!({ "study": uid, "decision": { "kind": "revoke", "grantee": source } });
    let signed = sign(&key, &patient.post("/actions", &revoke).json());
    assert_eq!(nobody.post("/actions/submit", &signed).json()["state"], "removed");
    events.wait_for(|text| text.contains("\"revoked\""));
    let history = patient.get(&format!("/studies/{id}/history")).json();
    let said: Vec<&str> =
        history["history"].as_array().unwrap().iter().map(|row| row["event"].as_str().unwrap()).collect();
    assert_eq!(said, ["created", "accepted", "transferred", "requested", "accepted", "removed"]);
    let first = patient.get(&format!("/studies/{id}/history?limit=2")).json();
    let rest = patient.get(&format!("/studies/{id}/history?after={}", first["next"].as_str().unwrap())).json();
    assert_eq!(rest["history"].as_array().unwrap().len(), 4);

    // An emergency is seen by the owner at once.
    let glass = json!({ "study": id, "reason": "life-threatening", "seconds": 600 });
    assert_eq!(operator.post("/break-glass", &glass).json()["state"], "emergency");
    events.wait_for(|text| text.contains("\"glass-broken\""));
    assert!(
        !events.text.contains(&study_id(&bridge, 2)) && !events.text.contains(&subject(2).study_uid),
        "{}",
        events.text
    );

    // A study that arrives is told to whom it concerns: the operator, not the patient.
    let mut told = operator.listen();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
        assert_eq!(tests::dicom::store(&mut open, &slices(3, 1, 32)[0]).await, Some(dicom_scp::Status::SUCCESS));
    });
    let third = subject(3).study_uid;
    told.wait_for(|text| text.contains("event: study") && text.contains(&third) && text.contains("\"final\""));
    assert!(!events.text.contains(&third));
}

#[test]
fn a_printed_code_hands_a_study_to_the_patients_key_once() {
    let bridge = site("requests_per_minute = 1000000\n");
    let (first, second) = (subject(1).study_uid, subject(2).study_uid);
    let made = bridge.json(&["token", "claim", &first, "--days", "1"]);
    let (code, id) = (made["code"].as_str().unwrap(), made["study_id"].as_str().unwrap());
    let (key, stranger) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let nobody = Client { to: address(&bridge), token: None, from: None };
    let claim = |code: &str, owner: &PrivateKeySigner, signer: &PrivateKeySigner| {
        let text = format!("PACS Bridge: take over with {}", code.replace('-', ""));
        let signature = signer.sign_message_sync(text.as_bytes()).unwrap();
        let signature = format!("0x{}", hex::encode(signature.as_bytes()));
        nobody.post("/claims", &json!({ "code": code, "owner": owner.address().to_string(), "signature": signature }))
    };
    // Neither without the key that takes over, nor with another code.
    let other_code = "ABCDE-ABCDE-ABCDE-ABCDE-ABCDE";
    let refused = [claim(code, &key, &stranger), claim(other_code, &key, &key)];
    assert_eq!((refused[0].status, &refused[0].body), (403, &refused[1].body), "{}", refused[0].json());

    let done = claim(code, &key, &key);
    assert_eq!(done.status, 200, "{}", done.json());
    let done = done.json();
    assert_eq!((&done["sent"]["action"], &done["study_id"]), (&"transferred".into(), &id.into()), "{done}");
    let patient = Client { token: Some(done["token"].as_str().unwrap().to_owned()), ..nobody.clone() };
    assert_eq!(patient.get("/me").json()["principal"], format!("account:{}", key.address()));
    let full = patient.get(&format!("/studies/{first}")).json();
    assert_eq!((&full["owner"], &full["custodial"]), (&key.address().to_string().into(), &false.into()), "{full}");
    assert_eq!(patient.get(&format!("/studies/{second}")).status, 404);
    assert_eq!(claim(code, &key, &key).body, refused[0].body);
    let output = bridge.cli(&["token", "claim", &first]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("key of his own"), "{output:?}");
}

#[test]
fn another_site_asks_sees_and_no_longer_sees() {
    let http = "[http]\nbind = \"127.0.0.1:0\"\nrequests_per_minute = 1000000\n[exchange]\nbind = \"127.0.0.1:0\"\n";
    let open = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n";
    let a = Bridge::start(&format!("{open}{http}[ledger]\nrpc_bind = \"127.0.0.1:0\"\n"));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = tests::dicom::connect(a.dicom, "CT1").await.unwrap();
        assert_eq!(tests::dicom::store(&mut open, &slices(1, 1, 32)[0]).await, Some(dicom_scp::Status::SUCCESS));
    });
    a.wait_final(1);
    let (uid, id) = (subject(1).study_uid, study_id(&a, 1));
    let (rpc, admin) = (a.ready("rpc="), a.json(&["status"])["source"].as_str().unwrap().to_owned());
    let ledger = format!("[ledger]\nkind = \"rpc\"\nurl = \"http://{rpc}\"\nadmin = \"{admin}\"\ndeploy = false\n");
    let b = Bridge::start(&format!("{open}{http}{ledger}"));
    let (at_a, at_b) = (Client::with_token(&a, &["--as", "operator"]), Client::with_token(&b, &["--as", "operator"]));

    // Until the consortium has admitted it, the second site waits and says so.
    let waiting = at_b.get("/health/ready");
    assert_eq!((waiting.status, &waiting.json()["waits_for"][0]), (503, &"ledger".into()));
    assert_eq!(
        at_b.post("/actions", &json!({ "study": id, "decision": { "kind": "revoke", "grantee": GRANTEE } })).status,
        404
    );
    let account = at_b.get("/status").json()["source"].as_str().unwrap().to_owned();
    a.json(&["sources", "admit", &account]);
    wait_for("the second site to be ready", || at_b.get("/health/ready").status == 200);
    wait_for("its key to be known", || {
        let all = at_a.get("/sources").json();
        let of_b = |row: &&Value| row["source"] == account.as_str() && row["encryption_key"].is_string();
        all["sources"].as_array().unwrap().iter().any(|row| of_b(&row))
    });

    // It asks; what is not granted is not there.
    let listed = |client: &Client| client.get("/studies").json()["studies"].as_array().unwrap().len();
    let mut events = at_b.listen();
    let asked = at_b.post("/requests", &json!({ "study": id, "mode": "full" }));
    assert_eq!(asked.status, 200, "{}", asked.json());
    assert_eq!((listed(&at_a), listed(&at_b), at_b.get(&format!("/studies/{id}")).status), (1, 0, 404));
    wait_for("the request at the first site", || {
        at_a.get("/requests").json()["requests"][0]["study_uid"] == uid.as_str()
    });

    // Allowed, it is there with its pictures, and told.
    let decide = |decision: Value| at_a.post("/decisions", &json!({ "study": uid, "decision": decision }));
    let allowed = decide(json!({ "kind": "allow", "grantee": account, "mode": "full" }));
    assert_eq!(allowed.status, 200, "{}", allowed.json());
    wait_for("the picture at the second site", || at_b.get(&format!("/studies/{uid}/preview/0")).status == 200);
    let full = at_b.get(&format!("/studies/{id}")).json();
    assert_eq!((&full["study"]["state"], &full["study"]["uid"]), (&"granted".into(), &uid.as_str().into()), "{full}");
    assert!(full["study"]["source"].as_str().unwrap().eq_ignore_ascii_case(&admin), "{full}");
    events.wait_for(|text| text.contains("event: study") && text.contains(&uid) && text.contains("\"granted\""));
    assert!(events.text.contains("\"allowed\""), "{}", events.text);

    // Taken away, it is gone.
    assert_eq!(decide(json!({ "kind": "revoke", "grantee": account })).status, 200);
    wait_for("the study to be gone", || at_b.get(&format!("/studies/{uid}")).status == 404);
    assert_eq!((listed(&at_a), listed(&at_b)), (1, 0));
    events.wait_for(|text| text.contains("\"state\":null"));
}

#[test]
fn hostile_callers_get_nothing_and_stop_nobody() {
    let mut bridge = site("receive_timeout_ms = 400\nbody_bytes_max = 8192\nrequests_per_minute = 1000000\n");
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let to = operator.to;
    let bearer = format!("Bearer {}", operator.token.as_ref().unwrap());
    let auth = ("Authorization", bearer.as_str());
    let json_type = ("Content-Type", "application/json");
    let decisions = format!("{PREFIX}/decisions");
    let post = |headers: &[(&str, &str)], body: &[u8]| send(to, "POST", &decisions, headers, body);

    assert_eq!(post(&[auth, json_type], &vec![b' '; 8193]).status, 413);
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        assert_eq!(post(&[auth, ("Content-Type", wrong)], b"{}").status, 415, "{wrong}");
    }
    let deep = "[".repeat(4000);
    for body in ["", "{", "null", "[]", "{\"study\":1}", "\u{0}", deep.as_str()] {
        assert_eq!(post(&[auth, json_type], body.as_bytes()).status, 400, "{body:?}");
    }
    assert_eq!(post(&[json_type], &vec![b' '; 1_000_000]).status, 401, "who is nobody sends no body");

    // Paths lead nowhere but to resources; methods that are not there are said.
    let up = [
        "/../../etc/passwd",
        "/studies/..%2f..%2fconf",
        "/studies/%2e%2e/%2e%2e",
        "/studies/1.2/preview/../../..",
        "//",
        "/studies/%00",
        "/studies/1.2%0a",
    ];
    for path in up {
        let answer = send(to, "GET", &format!("{PREFIX}{path}"), &[auth], b"");
        assert_eq!(answer.status, 404, "{path}");
    }
    let start = send(to, "GET", "/", &[], b"");
    assert_eq!((start.status, start.header("location")), (303, Some("/ui/")));
    assert_eq!(send(to, "GET", "/index.html", &[], b"").status, 404);
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"] {
        let answer = send(to, method, &format!("{PREFIX}/studies"), &[auth], b"");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET,HEAD")), "{method}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }

    // Every answer says that it must not be kept, guessed at, framed or read by other origins.
    for path in ["/studies", "/health/live", "/nowhere"] {
        let answer = send(to, "GET", &format!("{PREFIX}{path}"), &[auth, ("Origin", "https://evil.example")], b"");
        let is = |name: &str| answer.header(name).unwrap_or_default().to_owned();
        assert_eq!(
            (is("cache-control"), is("x-content-type-options")),
            ("no-store".into(), "nosniff".into()),
            "{path}"
        );
        assert!(is("content-security-policy").contains("frame-ancestors 'none'"));
        assert!(
            answer.headers.iter().all(|(name, _)| !name.starts_with("access-control-") && name != "server"),
            "{path}"
        );
    }

    // Heads that are too long, too many or too slow end the connection, and so do bodies.
    let mut many: Vec<(String, String)> = (0..200).map(|n| (format!("X-{n}"), "x".to_owned())).collect();
    let flood = |headers: &[(String, String)]| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        send(to, "GET", &format!("{PREFIX}/health/live"), &headers, b"").status
    };
    assert_eq!(flood(&many), 431);
    many.truncate(1);
    many[0].1 = "x".repeat(60_000);
    assert_eq!(flood(&many), 431);
    for unfinished in ["", "GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut slow = connect(to);
        slow.write_all(unfinished.as_bytes()).unwrap();
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&rest));
    }
    let mut slow = connect(to);
    let head = format!(
        "POST {decisions} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_answer(slow).status, 408);
    // Two lengths, or a length and chunks, are how requests are smuggled.
    for lengths in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 3",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
    ] {
        let mut stream = connect(to);
        let head = format!(
            "POST {decisions} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\n{lengths}\r\n\r\n{{}}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let (status, _) = read_head(&mut BufReader::new(stream)).unwrap();
        assert_eq!(status, 400, "{lengths}");
    }

    // One address holds an eighth of the connections; who goes makes room.
    let idle: Vec<_> = (0..40).map(|_| connect(to)).collect();
    drop(idle);
    wait_for("room for another connection", || {
        let mut stream = connect(to);
        let asked = stream.write_all(b"GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        asked.is_ok() && read_head(&mut BufReader::new(stream)).is_some_and(|(status, _)| status == 200)
    });

    // A stream of events does not keep the bridge from ending.
    let _listener = operator.listen();
    assert!(bridge.terminate().success());
}

#[test]
fn rates_are_limited_and_origins_are_named() {
    let bridge =
        site("requests_per_minute = 40\nallowed_origins = [\"https://viewer.example\"]\nbehind_proxy = true\n");
    let to = address(&bridge);
    let live = format!("{PREFIX}/health/live");
    let get = |from: &str, more: &[(&str, &str)]| {
        let headers = [&[("X-Forwarded-For", from)], more].concat();
        send(to, "GET", &live, &headers, b"")
    };
    let page = ("Origin", "https://viewer.example");
    let answer = get("192.0.2.1", &[page]);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://viewer.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert_eq!(
        get("192.0.2.1", &[("Origin", "https://viewer.example.evil")]).header("access-control-allow-origin"),
        None
    );
    let preflight = |origin: &str| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "POST"), ("X-Forwarded-For", "192.0.2.1")];
        send(to, "OPTIONS", &format!("{PREFIX}/actions"), &headers, b"")
    };
    let allowed = preflight("https://viewer.example");
    assert_eq!((allowed.status, allowed.header("access-control-max-age")), (204, Some("600")));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(preflight("https://evil.example").status, 405);

    // Wrong tokens are counted apart, and stop even a good one from the same network; an IPv6 network is one caller.
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let good = format!("Bearer {}", operator.token.as_ref().unwrap());
    let me = |from: &str, token: &str| {
        send(to, "GET", &format!("{PREFIX}/me"), &[("X-Forwarded-For", from), ("Authorization", token)], b"").status
    };
    for n in 0..30 {
        assert_eq!(me(&format!("2001:db8::{n:x}"), "Bearer wrong"), 401);
    }
    assert_eq!(me("2001:db8::ffff", &good), 429);
    assert_eq!(me("2001:db8:0:1::1", &good), 200);

    // What a caller writes there himself is not the proxy's word.
    let mut limited = None;
    for n in 0..60 {
        let answer = get(&format!("10.0.0.{n}, 192.0.2.9"), &[]);
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("a limit");
    assert_eq!((limited.header("retry-after"), &limited.json()["status"]), (Some("60"), &429.into()));
    assert_eq!(get("192.0.2.10", &[]).status, 200);
}

#[test]
fn nothing_is_served_unless_configured_and_nothing_in_the_clear_to_others() {
    let bridge = Bridge::start("[publish]\nenabled = false\n");
    assert!(!bridge.json(&["check"]).to_string().contains("http="));
    let open = bridge.dir.path().join("open.toml");
    std::fs::write(&open, "[http]\nbind = \"0.0.0.0:0\"\n").unwrap();
    let check = Command::new(tests::binary()).args(["--config", open.to_str().unwrap(), "check"]).output().unwrap();
    let words = String::from_utf8_lossy(&check.stderr);
    assert!(!check.status.success() && words.contains("http.bind") && words.contains("behind_proxy"), "{words}");
    let refused = |args: &[&str]| {
        let output = bridge.cli(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&["token", "new", "--name", "x", "--as", "peer:NOBODY"]).contains("[[peer]]"));
    assert!(refused(&["token", "new", "--name", "x", "--as", "root"]).contains("operator"));
    let account = format!("account:{GRANTEE}");
    assert!(refused(&["token", "new", "--name", "x", "--as", &account, "--may", "status"]).contains("no right"));
    assert!(refused(&["token", "revoke", "0123456789abcdef"]).contains("no token"));
}

#[test]
fn tls_is_spoken_with_the_configured_certificate() {
    if !have("openssl") || !have("curl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=bridge.test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bridge = Bridge::start(&format!(
        "[publish]\nenabled = false\n[http]\nbind = \"127.0.0.1:0\"\ntls_certificate_file = {certificate:?}\ntls_key_file = {key:?}\n"
    ));
    let url = format!("https://{}{PREFIX}/health/live", address(&bridge));
    let curl = |arguments: &[&str]| Command::new("curl").args(["-sS", "-i", &url]).args(arguments).output().unwrap();
    let answer = curl(&["--cacert", certificate.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("strict-transport-security"), "{text} {answer:?}");
    assert!(!curl(&["--cacert", certificate.to_str().unwrap(), "--tls-max", "1.2"]).status.success());
    let mut plain = connect(address(&bridge));
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn schemathesis_finds_nothing() {
    let venv = std::env::var("VENV").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv").into());
    let program = format!("{venv}/bin/schemathesis");
    if !std::path::Path::new(&program).is_file() {
        skip("schemathesis");
        return;
    }
    let bridge = site("requests_per_minute = 10000000\n");
    let (_, _patient) = patient(&bridge, 1);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let url = format!("http://{}{PREFIX}/openapi.json", operator.to);
    // So that it finds a study more often than by chance.
    let parameters = format!("[parameters]\nstudy = {:?}\n", subject(1).study_uid);
    std::fs::write(bridge.dir.path().join("schemathesis.toml"), parameters).unwrap();
    let authorization = format!("Authorization: Bearer {}", operator.token.as_ref().unwrap());
    let found = Command::new(program)
        .current_dir(bridge.dir.path())
        .args(["run", &url, "--header", &authorization, "--checks", "all", "--max-examples", "30", "--seed", "1"])
        // An endless answer is judged by the tests above.
        .args(["--exclude-path", &format!("{PREFIX}/events"), "--request-timeout", "60", "--no-color"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout);
    assert!(found.status.success(), "{text}\n{}", String::from_utf8_lossy(&found.stderr));
    // The bridge still lives, and its log holds no fault.
    assert_eq!(operator.get("/health/live").status, 200);
    assert!(!bridge.log().contains("ERROR"), "{}", bridge.log());
}
