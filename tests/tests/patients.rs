//! Patients decide with keys of their own: by forms that anything can fill in, judged over every way to be somebody else; by the pages' script, whose signatures
//! are compared with those of other programs; and in Debian's Chromium, with a virtual authenticator, from the code on paper to the images at another hospital.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use alloy::primitives::{Address, B256, U256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use bridge::decide::{Pending, TypedData};
use bridge::demo::phantom::{Subject, ct_series};
use bridge::ledger::Word;
use contracts::Allowance;
use contracts::messages::{Deny, Revoke, TransferStudy};
use hkdf::Hkdf;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tests::consortium::{Consortium, keyring};
use tests::dicom::{connect, slices, store, subject};
use tests::http::{Client, address};
use tests::peers::python;
use tests::person::{Person, text};
use tests::{Bridge, browser_tools, have, here, skip, wait_for};

const SERVED: &str = "[http]\nbind = \"127.0.0.1:0\"\nrequests_per_minute = 100000\n";
const ALONE: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n";
const GRANTEE: &str = "0x2222222222222222222222222222222222222222";

fn send_studies(bridge: &Bridge, studies: &[(u32, u32)]) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in studies.iter().flat_map(|(number, images)| slices(*number, *images, 64)) {
            assert_eq!(store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    bridge.wait_final(studies.len());
}

/// The value of an attribute, as HTML has it (only what our pages escape).
fn unescaped(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// What stands between two marks of a page.
fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = page.split_once(before).unwrap_or_else(|| panic!("no {before} in {page}"));
    rest.split_once(after).unwrap().0
}

fn signed(key: &PrivateKeySigner, text: &str) -> String {
    format!("0x{}", hex::encode(key.sign_message_sync(text.as_bytes()).unwrap().as_bytes()))
}

/// The text and the number of a login page.
fn challenge(page: &str) -> (String, String) {
    (unescaped(between(page, "data-text=\"", "\"")), between(page, "name=\"number\" value=\"", "\"").to_owned())
}

/// Logs in by a key; returns where that leads, or why not.
fn log_in(person: &mut Person, key: &PrivateKeySigner) -> Result<String, String> {
    let (text_, number) = challenge(&person.page("/ui/login"));
    let fields =
        [("number", number.as_str()), ("account", &key.address().to_string()), ("signature", &signed(key, &text_))];
    let answer = person.post("/ui/login/key", &fields, &[]);
    person.keep_cookie(&answer);
    match answer.status {
        303 => Ok(answer.header("location").unwrap().to_owned()),
        _ => Err(text(&answer)),
    }
}

/// Takes a study over with a code made on its page.
fn claim(bridge: &Bridge, number: u32, key: &PrivateKeySigner) -> Person {
    let made = bridge.json(&["token", "claim", &subject(number).study_uid]);
    let code = made["code"].as_str().unwrap();
    let mut person = Person::stranger(bridge);
    let text = format!("PACS Bridge: take over with {}", code.replace('-', ""));
    let fields = [("code", code), ("account", &key.address().to_string()), ("signature", &signed(key, &text))];
    let answer = person.post("/ui/claim", &fields, &[]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/consent")), "{answer:?}");
    person.keep_cookie(&answer);
    person
}

/// Makes a choice; returns the action that is to be signed.
fn choose(person: &Person, fields: &[(&str, &str)]) -> Pending {
    let answer = person.submit_from("/ui/consent", "/ui/consent/choices", fields);
    assert_eq!(answer.status, 200, "{}", text(&answer));
    serde_json::from_str(&unescaped(between(&text(&answer), "name=\"action\" value=\"", "\""))).unwrap()
}

fn send_signed(person: &Person, action: &Pending, signature: &str) -> tests::http::Answer {
    let action = serde_json::to_string(action).unwrap();
    person.submit_from("/ui/consent", "/ui/consent/signed", &[("action", &action), ("signature", signature)])
}

fn signature(key: &PrivateKeySigner, action: &Pending) -> String {
    format!("0x{}", hex::encode(key.sign_hash_sync(&action.digest()).unwrap().as_bytes()))
}

#[test]
fn a_key_logs_in_once_with_what_it_signed_here_and_only_if_a_study_is_its() {
    let bridge = Bridge::start(&format!("{ALONE}{SERVED}"));
    send_studies(&bridge, &[(1, 2)]);
    let (owner, other) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let mut person = claim(&bridge, 1, &owner);
    let page = person.page("/ui/consent");
    assert!(page.contains("your key alone decides") && page.contains(&owner.address().to_string()), "{page}");
    assert!(page.contains("My studies (1)") && page.contains(&format!("/ui/studies/{}", subject(1).study_uid)));

    let mut stranger = Person::stranger(&bridge);
    assert!(log_in(&mut stranger, &other).unwrap_err().contains("No study here belongs to this key"));
    assert_eq!(stranger.cookie, None);
    assert_eq!(log_in(&mut stranger, &owner).unwrap(), "/ui/consent");
    assert!(stranger.page("/ui/consent").contains("My studies (1)"));

    // Nothing that was signed for something else, by somebody else, elsewhere, or before.
    let (text_, number) = challenge(&Person::stranger(&bridge).page("/ui/login"));
    let (_, second) = challenge(&Person::stranger(&bridge).page("/ui/login"));
    let account = owner.address().to_string();
    let good = signed(&owner, &text_);
    let others = other.address().to_string();
    let wrong = [
        (number.as_str(), account.as_str(), signed(&other, &text_)),
        (&number, &account, signed(&owner, &format!("{text_}\n"))),
        (&second, &account, good.clone()),
        ("", &account, good.clone()),
        (&number, "0x", good.clone()),
        (&number, &account, String::new()),
        (&number, &others, good.clone()),
    ];
    let tried = Person::stranger(&bridge);
    for (number, account, signature) in &wrong {
        let fields = [("number", *number), ("account", *account), ("signature", signature.as_str())];
        assert_eq!(tried.post("/ui/login/key", &fields, &[]).status, 401, "{number} {account} {signature}");
    }
    let fields = [("number", number.as_str()), ("account", account.as_str()), ("signature", good.as_str())];
    assert_eq!(tried.post("/ui/login/key", &fields, &[("Sec-Fetch-Site", "cross-site")]).status, 403);
    assert_eq!(tried.post("/ui/login/key", &fields, &[]).status, 303);
    assert_eq!(tried.post("/ui/login/key", &fields, &[]).status, 401, "a signature is good once");

    // The login is the owner's: it ends with its session, and is in the audit trail.
    assert_eq!(person.submit_from("/ui/consent", "/ui/logout", &[]).status, 303);
    assert_eq!(person.get("/ui/consent").header("location"), Some("/ui/login?next=%2Fui%2Fconsent"));
    person.cookie = None;
    let trail = bridge.cli(&["audit", "list", "--json"]);
    let said = String::from_utf8_lossy(&trail.stdout).into_owned();
    assert!(said.contains(&format!("account:{}", owner.address())), "{said}");
}

#[test]
fn only_the_owners_key_decides_and_only_what_it_signed() {
    let bridge = Bridge::start(&format!("{ALONE}{SERVED}"));
    send_studies(&bridge, &[(1, 1), (2, 1), (3, 1)]);
    let (one, two) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let (first, second) = (claim(&bridge, 1, &one), claim(&bridge, 2, &two));
    let study = |number: u32| {
        let shown = bridge.json(&["study", "show", &subject(number).study_uid]);
        shown["study_id"].as_str().unwrap().to_owned()
    };
    let (study_1, study_2) = (study(1), study(2));
    let until = "2099-12-31";
    let allow = |study: &str| {
        vec![
            ("kind", "allow".to_owned()),
            ("study", study.to_owned()),
            ("grantee", GRANTEE.to_owned()),
            ("mode", "full".to_owned()),
            ("until", until.to_owned()),
        ]
    };
    let refused = |person: &Person, fields: &[(&str, String)]| {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        person.submit_from("/ui/consent", "/ui/consent/choices", &fields).status
    };
    // The other patient's study is as absent as one that nobody has.
    assert_eq!(refused(&first, &allow(&study_2)), 404);
    assert_eq!(refused(&first, &allow(&format!("0x{}", "7".repeat(64)))), 404);
    // Who has no key says nothing here, nor does who lacks the right.
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    assert_eq!(operator.get("/ui/consent").status, 403);
    let token = operator.form_token();
    let sent = operator.post(
        "/ui/consent/choices",
        &[("form", &token), ("kind", "revoke"), ("study", &study_1), ("grantee", GRANTEE)],
        &[],
    );
    assert_eq!(sent.status, 403);
    assert_eq!(Person::stranger(&bridge).get("/ui/consent").status, 303);
    let looks = Person::with_token(&bridge, &["--as", &format!("account:{}", one.address()), "--may", "find"]);
    assert_eq!(looks.get("/ui/consent").status, 403);

    // An allowance needs a key to encrypt to: this account never said one.
    let said = first.submit_from(
        "/ui/consent",
        "/ui/consent/choices",
        &[("kind", "allow"), ("study", &study_1), ("grantee", GRANTEE), ("mode", "full"), ("until", until)],
    );
    assert!(said.status == 409 && text(&said).contains("must ask first"), "{}", text(&said));

    // What names a key, as an app does over the API, is signed by the owner alone, for this very study and grantee.
    let app = Client::with_token(&bridge, &["--as", &format!("account:{}", one.address())]);
    let until_s = 4_000_000_000_u64;
    let allowance = json!({ "kind": "allow", "grantee": GRANTEE, "mode": "full", "until_s": until_s, "encryption_key": format!("0x{}", "3".repeat(64)) });
    let made = app.post("/actions", &json!({ "study": study_1, "decision": allowance })).json();
    let action: Pending = serde_json::from_value(made["action"].clone()).unwrap();
    let good = signature(&one, &action);
    assert_eq!(send_signed(&first, &action, "").status, 400);
    assert_eq!(send_signed(&first, &action, &signature(&two, &action)).status, 403);
    let mut changed = action.clone();
    changed.chain_id += 1;
    assert_eq!(send_signed(&first, &changed, &good).status, 403);
    let text_of_it = serde_json::to_string(&action).unwrap().replace(&GRANTEE[2..], &"3".repeat(40));
    let changed: Pending = serde_json::from_str(&text_of_it).unwrap();
    assert_eq!(send_signed(&first, &changed, &good).status, 403);
    let fields = [("action", "{}"), ("signature", good.as_str())];
    assert_eq!(first.submit_from("/ui/consent", "/ui/consent/signed", &fields).status, 400);
    // Nor without the form of this login, or from somebody else's page.
    let raw = serde_json::to_string(&action).unwrap();
    let fields = [("action", raw.as_str()), ("signature", good.as_str())];
    assert_eq!(first.post("/ui/consent/signed", &fields, &[]).status, 403);
    let token = first.token_on("/ui/consent");
    let with_token = [&[("form", token.as_str())][..], &fields].concat();
    assert_eq!(second.post("/ui/consent/signed", &with_token, &[]).status, 403);
    assert_eq!(first.post("/ui/consent/signed", &with_token, &[("Sec-Fetch-Site", "same-site")]).status, 403);
    assert_eq!(
        bridge.json(&["trace", &study_1])["history"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["event"] == "accepted")
            .count(),
        0
    );

    let done = send_signed(&first, &action, &good);
    assert_eq!((done.status, done.header("location")), (303, Some("/ui/consent")), "{}", text(&done));
    let page = first.page("/ui/consent");
    assert!(page.contains("It is on the ledger") && page.contains("Allowed now (1)"), "{page}");
    assert_eq!(send_signed(&first, &action, &good).status, 409, "what was said is said once");
    let stop = choose(&first, &[("kind", "revoke"), ("study", &study_1), ("grantee", GRANTEE)]);
    assert_eq!(send_signed(&first, &stop, &signature(&one, &stop)).status, 303);
    let page = first.page("/ui/consent");
    assert!(page.contains("may not see") && page.contains("Allowed now (0)") && page.contains("stopped"), "{page}");

    // Handing it on: from then on it is the other's.
    let action = choose(&first, &[("kind", "transfer"), ("study", &study_1), ("owner", &two.address().to_string())]);
    assert_eq!(send_signed(&first, &action, &signature(&one, &action)).status, 303);
    wait_for("the study to be the other's", || second.page("/ui/consent").contains("My studies (2)"));
    assert!(first.page("/ui/consent").contains("No study here belongs to your key"));
    assert_eq!(first.get(&format!("/ui/studies/{}", subject(1).study_uid)).status, 404);
}

/// Names that anybody may have chosen are words on every page that a patient sees.
#[test]
fn nothing_that_a_scanner_or_a_hospital_says_is_taken_for_markup() {
    let named = "[web.site_names]\n\"0x2222222222222222222222222222222222222222\" = \"</b><script src=//evil.example></script>\"\n";
    let bridge = Bridge::start(&format!("{ALONE}{SERVED}{named}"));
    let hostile = Subject { description: "</title><script>alert(1)</script>\"'>".into(), ..subject(1) };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in ct_series(&hostile, 1, 48, 9) {
            assert_eq!(store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    bridge.wait_final(1);
    let key = PrivateKeySigner::random();
    let person = claim(&bridge, 1, &key);
    let id = bridge.json(&["study", "show", &hostile.study_uid])["study_id"].as_str().unwrap().to_owned();
    let chosen = person.submit_from(
        "/ui/consent",
        "/ui/consent/choices",
        &[("kind", "revoke"), ("study", &id), ("grantee", GRANTEE)],
    );
    assert_eq!(chosen.status, 200);
    for page in [person.page("/ui/consent"), text(&chosen)] {
        assert_eq!(page.matches("<script").count(), 2, "our own and no other: {page}");
        assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(1)"), "{page}");
    }
    assert!(text(&chosen).contains("&lt;/b&gt;&lt;script src=//evil.example"), "{}", text(&chosen));
}

#[test]
fn codes_are_made_for_studies_in_custody_and_asked_for_by_those_who_may() {
    let bridge = Bridge::start(&format!("{ALONE}{SERVED}[[peer]]\nae_title = \"FINDER\"\nallow = [\"find\"]\n"));
    send_studies(&bridge, &[(1, 1)]);
    let path = format!("/ui/studies/{}", subject(1).study_uid);
    let (operator, key) = (Person::with_token(&bridge, &["--as", "operator"]), PrivateKeySigner::random());
    let page = text(&operator.submit(&format!("{path}/code"), &[]));
    let code = between(&page, "<p class=\"code mono\">", "</p>");
    assert_eq!(code.len(), 29, "{page}");
    let finder = Person::with_token(&bridge, &["--as", "peer:FINDER"]);
    let token = finder.token_on("/ui/");
    assert_eq!(finder.post(&format!("{path}/code"), &[("form", &token)], &[]).status, 403);
    assert_eq!(finder.get("/ui/requests").status, 403);
    assert_eq!(finder.post("/ui/requests", &[("form", &token), ("study", "0x1")], &[]).status, 403);
    assert_eq!(operator.post(&format!("{path}/code"), &[], &[]).status, 403, "no form of this login");

    // A wrong code, a code for another's signature, the code itself, and the code again.
    let person = Person::stranger(&bridge);
    let text_ = format!("PACS Bridge: take over with {}", code.replace('-', ""));
    let account = key.address().to_string();
    let send = |code: &str, signature: &str| {
        person.post("/ui/claim", &[("code", code), ("account", &account), ("signature", signature)], &[])
    };
    assert_eq!(
        send("00000-00000-00000-00000-00000", &signed(&key, "PACS Bridge: take over with 0000000000000000000000000"))
            .status,
        403
    );
    assert_eq!(send(code, &signed(&PrivateKeySigner::random(), &text_)).status, 403);
    assert_eq!(send(code, "").status, 403);
    let good = signed(&key, &text_);
    assert_eq!(
        person
            .post(
                "/ui/claim",
                &[("code", code), ("account", &account), ("signature", &good)],
                &[("Origin", "http://evil.example")]
            )
            .status,
        403
    );
    assert_eq!(send(code, &good).status, 303);
    assert_eq!(send(code, &good).status, 403);
    let again = operator.submit(&format!("{path}/code"), &[]);
    assert!(again.status == 409 && text(&again).contains("a key of his own"), "{}", text(&again));

    // Asking is for studies that the ledger knows.
    let nobodys = format!("0x{}", "5".repeat(64));
    for (study, status) in [("0x12", 400), (nobodys.as_str(), 404)] {
        let asked = operator.submit("/ui/requests", &[("study", study), ("mode", "full"), ("purpose", "TREAT")]);
        assert_eq!(asked.status, status, "{}", text(&asked));
    }
}

/// The script's own arithmetic against alloy's, over random keys and everything that owners sign; and the key that it makes of a passkey's secret against HKDF of
/// another library: it must be the same for ever.
#[test]
fn the_pages_sign_as_other_programs_do() {
    let tools = browser_tools();
    let esbuild = tools.join("browser/esbuild/bin/esbuild");
    if !have("node") || !esbuild.is_file() {
        skip("esbuild (.tools/browser)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("judge.mjs");
    let bundled = Command::new(&esbuild)
        .arg(here("browser/signing.ts"))
        .args(["--bundle", "--format=esm", "--platform=node", "--target=es2022", "--log-level=warning"])
        .arg(format!("--outfile={}", script.display()))
        .status();
    assert!(bundled.unwrap().success());
    let mut random = StdRng::seed_from_u64(20);
    let mut hash = || B256::from(random.r#gen::<[u8; 32]>());
    let (mut asked, mut wanted) = (Vec::new(), Vec::new());
    for round in 0_u64..60 {
        // The ends of the range of keys too.
        let order: U256 = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141".parse().unwrap();
        let secret = match round {
            0 => B256::from(U256::from(1)),
            1 => B256::from(order - U256::from(1)),
            _ => hash(),
        };
        let key = PrivateKeySigner::from_bytes(&secret).unwrap();
        let text = format!("{}é\n{}", "x".repeat(usize::try_from(round).unwrap() * 9), hash());
        let (study, grantee) = (hash(), Address::from_slice(&hash()[..20]));
        let word = match round % 4 {
            0 => Word::Allow(Allowance {
                studyId: study,
                grantee,
                series: hash(),
                mode: 2,
                notBefore: round,
                notAfter: u64::MAX,
                purpose: 65_535,
                notes: hash(),
                encryptionKey: hash(),
                seq: u32::MAX,
                deadline: 1 << 60,
            }),
            1 => Word::Deny(Deny { studyId: study, grantee, reason: 3, notes: hash(), seq: 1, deadline: round }),
            2 => Word::Revoke(Revoke { studyId: study, grantee, seq: 7, deadline: round }),
            _ => Word::Transfer(TransferStudy {
                studyId: study,
                newOwner: grantee,
                custodial: false,
                seq: 2,
                deadline: 9,
            }),
        };
        let contract = Address::from_slice(&hash()[..20]);
        asked.push(json!({ "secret": secret, "text": text, "typed": TypedData::of(&word, 20181 + round, contract) }));
        let typed = key.sign_hash_sync(&word.digest(20181 + round, contract)).unwrap();
        wanted.push(json!({
            "account": key.address().to_string().to_lowercase(),
            "text": signed(&key, &text),
            "typed": format!("0x{}", hex::encode(typed.as_bytes())),
        }));
    }
    let seeds: Vec<[u8; 32]> = (0..8).map(|_| hash().0).collect();
    let made = |seed: &[u8; 32]| {
        let mut bytes = [0; 48];
        let salt = b"PACS Bridge: the key of an owner of studies, 1";
        Hkdf::<Sha256>::new(Some(salt), seed).expand(b"secp256k1", &mut bytes).unwrap();
        let order: U256 = "0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140".parse().unwrap();
        // 384 bits modulo the order less one, plus one.
        let high = U256::from_be_slice(&bytes[..32]);
        let shifted = high.mul_mod(U256::from(1_u128) << 128, order);
        let secret = shifted.add_mod(U256::from_be_slice(&bytes[32..]), order) + U256::from(1);
        hex::encode(B256::from(secret))
    };
    let secrets: Vec<String> = seeds.iter().map(|seed| format!("0x{}", made(seed))).collect();
    let mut node = Command::new("node").arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let seeds: Vec<String> = seeds.iter().map(|seed| format!("0x{}", hex::encode(seed))).collect();
    let request = json!({ "signings": asked, "seeds": seeds });
    node.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (number, (found, wanted)) in said["signings"].as_array().unwrap().iter().zip(&wanted).enumerate() {
        assert_eq!(found, wanted, "{number}: {}", asked[number]);
    }
    assert_eq!(said["signings"].as_array().unwrap().len(), wanted.len());
    assert_eq!(said["secrets"], json!(secrets));
    assert_eq!(
        said["refused"],
        json!(["notAfter is too large", "a field that is not signed", "an unknown type", "a short hash"])
    );
}

/// Two hospitals, a patient with a passkey, a radiologist, and a patient with a wallet.
#[test]
fn a_patient_and_a_radiologist_in_two_browsers() {
    let Some(python) = python().filter(|_| have("chromium") && have("node")) else { return };
    let tools = browser_tools();
    for needed in ["browser/node_modules/playwright-core", "browser/node_modules/axe-core"] {
        if !tools.join(needed).is_dir() {
            skip(needed);
            return;
        }
    }
    let consortium = Consortium::found();
    let b = consortium.join_with(&format!("[exchange]\nbind = \"127.0.0.1:0\"\n{SERVED}"));
    let account = keyring(&b).source().address().to_string();
    let named = format!("[web.site_names]\n\"{account}\" = \"St Elsewhere, Radiology\"\n");
    let a = consortium.join_with(&format!("[exchange]\nbind = \"127.0.0.1:0\"\n{SERVED}{named}"));
    send_studies(&a, &[(1, 3), (2, 1)]);
    a.wait_for_key_of(&account);
    let made = |number: u32| a.json(&["token", "claim", &subject(number).study_uid]);
    let (first, second) = (made(1), made(2));
    let key = PrivateKeySigner::random();
    let wallet = json!([python, here("py/wallet.py"), format!("0x{}", hex::encode(key.to_bytes()))]);
    let page = |bridge: &Bridge| format!("http://localhost:{}", address(bridge).port());
    let story = json!({
        "a": page(&a), "b": page(&b), "token": Client::with_token(&b, &["--as", "operator"]).token,
        "code": first["code"], "study": first["study_id"], "uid": subject(1).study_uid, "images": 3,
        "walletCode": second["code"], "wallet": wallet,
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("story.json");
    std::fs::write(&file, story.to_string()).unwrap();
    let told = Command::new("node").arg(here("browser/consent.mjs")).arg(&file).env("TOOLS", &tools).output().unwrap();
    let report: Value =
        serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&told.stderr)));
    assert_eq!(report["wrong"], json!([]), "{report}");
    let steps =
        ["claimed", "asked", "allowed", "seen", "stopped", "gone", "passkey again", "paper", "another key", "wallet"];
    assert_eq!(report["steps"], json!(steps), "{report}");
    assert!(report["judged"].as_u64().unwrap() >= 28 && report["reached"].as_u64().unwrap() >= 40, "{report}");
}
