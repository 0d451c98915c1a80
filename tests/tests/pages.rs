//! The pages of the real binary: without a script by a plain client, over every page and form with and without the right to it; and in Debian's Chromium,
//! with other people's rules of accessibility as judge.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Stdio};

use alloy::primitives::U256;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use bridge::demo::phantom::{Phantom, Subject, ct_series};
use contracts::Validators;
use contracts::validators::{self, FirstSite, FirstState};
use serde_json::{Value, json};
use tests::consortium::{Consortium, Nodes};
use tests::dicom::{connect, slices, store, subject};
use tests::http::{Client, address};
use tests::person::{Person, text};
use tests::{Bridge, browser_tools, have, here, skip, wait_for};

const SERVED: &str =
    "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n";
const PEERS: &str =
    "[[peer]]\nae_title = \"FINDER\"\nallow = [\"find\"]\n[[peer]]\nae_title = \"FETCHER\"\nallow = [\"get\"]\n";
const GRANTEE: &str = "0x2222222222222222222222222222222222222222";
const KEY_HASH: &str = "0x3333333333333333333333333333333333333333333333333333333333333333";

fn send_objects(bridge: &Bridge, phantoms: &[Phantom]) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in phantoms {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
}

fn hostile() -> Subject {
    Subject {
        patient_name: "\"><script>alert(1)</script>^<img src=x onerror=alert(2)>".into(),
        patient_id: "'-\"><b>&amp;".into(),
        description: "</title><script src=//evil.example/x.js></script>".into(),
        ..subject(9)
    }
}

fn study_page(number: u32) -> String {
    format!("/ui/studies/{}", subject(number).study_uid)
}

#[test]
fn people_log_in_with_a_token_and_out_and_it_ends_with_the_token() {
    let bridge = Bridge::start(SERVED);
    let stranger = Person::stranger(&bridge);
    let asked = stranger.get("/ui/studies/1.2.3?a=b");
    assert_eq!((asked.status, asked.header("location")), (303, Some("/ui/login?next=%2Fui%2Fstudies%2F1.2.3%3Fa%3Db")));
    assert_eq!(
        (stranger.get("/").header("location"), stranger.get("/ui").header("location")),
        (Some("/ui/"), Some("/ui/"))
    );
    let form = stranger.page("/ui/login?next=%2Fui%2Fledger");
    assert!(form.contains("name=\"next\" value=\"/ui/ledger\"") && form.contains("<html lang=\"en\">"), "{form}");

    // Wrong ones, and a place elsewhere.
    for wrong in ["", "pbt_0123456789abcdef_00", "\"><script>alert(1)</script>"] {
        let answer = stranger.post("/ui/login", &[("token", wrong)], &[]);
        assert!(answer.status == 401 && answer.header("set-cookie").is_none(), "{answer:?}");
        assert!(text(&answer).contains("not good") && !text(&answer).contains("<script>alert"), "{answer:?}");
    }
    let mut operator = Person::with_token(&bridge, &["--as", "operator"]);
    for elsewhere in
        ["//evil.example/", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/%0d%0aX: y\r\n"]
    {
        let answer = operator.log_in(elsewhere);
        assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/")), "{elsewhere}");
    }
    assert_eq!(operator.log_in("/ui/ledger?x=1").header("location"), Some("/ui/ledger?x=1"));
    let set = operator.log_in("").header("set-cookie").unwrap().to_owned();
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/;"), "{set}");

    // The page's own rules, and that nobody keeps it.
    let page = operator.get("/ui/");
    let header = |name| page.header(name).unwrap_or_default().to_owned();
    assert_eq!((header("cache-control"), header("x-frame-options")), ("no-store".into(), "DENY".into()));
    let policy = header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    assert!(!text(&page).contains("style=") && !text(&page).contains("http://") && !text(&page).contains("https://"));
    // What it loads anybody may keep for ever.
    for part in text(&page).split("\"/ui/assets/").skip(1) {
        let answer = stranger.get(&format!("/ui/assets/{}", part.split('"').next().unwrap()));
        assert!(answer.status == 200 && answer.header("cache-control").unwrap().contains("immutable"), "{answer:?}");
    }
    assert_eq!(stranger.get("/ui/assets/pages-0000000000000000.css").status, 404);

    // Logging out ends it, also for who kept the cookie; a login ends the one before.
    let before = operator.clone();
    operator.log_in("");
    assert_eq!(before.get("/ui/").status, 303);
    let answer = operator.submit("/ui/logout", &[]);
    assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/login")));
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!((operator.get("/ui/").status, operator.get("/api/v1/studies").status), (303, 401));

    // A token that is revoked is good for nothing at once.
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    assert_eq!((operator.get("/ui/").status, operator.get("/api/v1/studies").status), (200, 200));
    let id = operator.client.token.as_ref().unwrap().split('_').nth(1).unwrap().to_owned();
    bridge.json(&["token", "revoke", &id]);
    assert_eq!((operator.get("/ui/").status, operator.get("/api/v1/studies").status), (303, 401));
    assert_eq!(operator.get("/dicomweb/studies").status, 401);

    // Who is logged in and out, and who could not be, is in the audit trail.
    let trail = bridge.json(&["audit", "list"]).to_string();
    assert!(trail.contains("110122") && trail.contains("110123"), "{trail}");
}

#[test]
fn forms_of_other_pages_do_nothing() {
    let bridge = Bridge::start(SERVED);
    send_objects(&bridge, &slices(1, 1, 32));
    bridge.wait_final(1);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let other = Person::with_token(&bridge, &["--as", "operator"]);
    let (token, foreign) = (operator.form_token(), other.form_token());
    assert_ne!(token, foreign);
    let host = format!("http://{}", operator.client.to);
    let neighbour = format!("http://127.0.0.1:{}", operator.client.to.port() ^ 1);
    for path in [
        "/ui/logout".to_owned(),
        format!("{}/verification", study_page(1)),
        format!("{}/decisions", study_page(1)),
        "/ui/audit/verification".to_owned(),
        "/ui/operations/echo".to_owned(),
    ] {
        let sent = |token: Option<&str>, headers: &[(&str, &str)]| {
            let fields: Vec<_> = token.map(|token| ("form", token)).into_iter().collect();
            let status = operator.post(&path, &fields, headers).status;
            assert_eq!(operator.get("/ui/").status, 200, "still logged in");
            status
        };
        for origin in ["https://evil.example", "null", neighbour.as_str(), "http://evil.example:80"] {
            assert_eq!(sent(Some(&token), &[("Origin", origin)]), 403, "{path} from {origin}");
        }
        for site in ["cross-site", "same-site", "none"] {
            assert_eq!(sent(Some(&token), &[("Origin", &host), ("Sec-Fetch-Site", site)]), 403, "{path} {site}");
        }
        assert_eq!(
            [sent(None, &[]), sent(Some(""), &[]), sent(Some(&foreign), &[("Origin", &host)])],
            [403; 3],
            "{path}"
        );
        assert_eq!(operator.get(&path).status, 405, "{path} by a link");
        assert_eq!(operator.send("POST", &path, &[("Content-Type", "text/plain")], "form=x").status, 400, "{path}");
        let nobody = Person::stranger(&bridge).post(&path, &[("form", token.as_str())], &[]);
        assert_eq!((nobody.status, nobody.header("location")), (303, Some("/ui/login")), "{path}");
    }
    let good = operator.client.token.as_deref().unwrap();
    let planted = operator.post("/ui/login", &[("token", good)], &[("Origin", "https://evil.example")]);
    assert!(
        planted.status == 403 && planted.header("set-cookie").is_none(),
        "nobody is logged in by somebody else's page"
    );

    // What the session is good for besides pages: reading, and by this origin's own pages.
    let read = |headers: &[(&str, &str)]| operator.send("GET", "/api/v1/studies", headers, "").status;
    assert_eq!([read(&[]), read(&[("Sec-Fetch-Site", "same-origin")]), read(&[("Sec-Fetch-Site", "none")])], [200; 3]);
    assert_eq!([read(&[("Sec-Fetch-Site", "same-site")]), read(&[("Sec-Fetch-Site", "cross-site")])], [401; 2]);
    assert_eq!(read(&[("Authorization", "Bearer pbt_0123456789abcdef_00")]), 401, "who shows a token means somebody");
    assert_eq!(operator.get("/dicomweb/studies").status, 200);
    let decision = json!({ "study": subject(1).study_uid, "decision": { "kind": "revoke", "grantee": GRANTEE } });
    let json_type = [("Content-Type", "application/json")];
    for path in ["/api/v1/decisions", "/api/v1/actions"] {
        assert_eq!(operator.send("POST", path, &json_type, &decision.to_string()).status, 401, "{path}");
    }
}

#[test]
fn every_page_shows_what_its_reader_may_see() {
    let bridge = Bridge::start(&format!("{SERVED}behind_proxy = true\nrequests_per_minute = 1000000\n{PEERS}"));
    send_objects(&bridge, &[slices(1, 2, 48), slices(2, 1, 48)].concat());
    bridge.wait_final(2);
    let patient = |number: u32| {
        let account = PrivateKeySigner::random().address().to_string();
        bridge.json(&["claim", &subject(number).study_uid, "--owner", &account]);
        Person::with_token(&bridge, &["--as", &format!("account:{account}")])
    };
    let (own, other) = (patient(1), patient(2));
    let as_whom = |arguments: &[&str]| Person::with_token(&bridge, arguments);
    let operator = as_whom(&["--as", "operator"]);
    let narrow = as_whom(&["--as", "operator", "--may", "status"]);
    let (finder, fetcher) = (as_whom(&["--as", "peer:FINDER"]), as_whom(&["--as", "peer:FETCHER"]));
    let nobody = Person::stranger(&bridge);
    let cookie = operator.cookie.clone().unwrap();
    assert!(cookie.starts_with("__Host-"), "behind a proxy that speaks TLS: {cookie}");

    let study = study_page(1);
    let shown = operator.page(&study);
    let picture = shown.split("class=\"sharp\" src=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let absent = |path: &str| path.replace(&subject(1).study_uid, &format!("{}.999", subject(1).study_uid));
    // Nobody, operator, operator narrowed to the site's state, owner, another owner, who may find, who may get.
    let everybody = [&nobody, &operator, &narrow, &own, &other, &finder, &fetcher];
    let rows = [
        ("/ui/".to_owned(), [303, 200, 403, 200, 200, 200, 403]),
        (study.clone(), [303, 200, 403, 200, 404, 200, 403]),
        (picture.clone(), [303, 200, 403, 200, 404, 403, 200]),
        ("/ui/ledger".to_owned(), [303, 200, 200, 200, 200, 403, 403]),
        ("/ui/operations".to_owned(), [303, 200, 200, 403, 403, 403, 403]),
        // Who may not find studies does not read of them here either.
        ("/ui/audit".to_owned(), [303, 200, 403, 403, 403, 403, 403]),
        ("/ui/audit.csv".to_owned(), [303, 200, 403, 403, 403, 403, 403]),
        ("/ui/nowhere".to_owned(), [404; 7]),
        ("/ui/login".to_owned(), [200; 7]),
    ];
    for (path, expected) in &rows {
        assert_eq!(everybody.map(|person| person.get(path).status), *expected, "{path}");
    }
    for path in [&study, &picture] {
        for person in [&operator, &other, &own] {
            assert_eq!(person.get(&absent(path)).status, 404, "{path}");
        }
        assert_eq!(text(&other.get(path)), text(&other.get(&absent(path))), "nobody can tell hidden from absent");
    }

    // The lists: an owner's own, with its name; previews only for who may get them.
    let (mine, named) = (format!("href=\"{study}\""), format!("Zyxwquist, Brunhilde{}", 1));
    let lists = [&operator, &own, &other, &finder].map(|person| person.page("/ui/"));
    assert_eq!([0, 1, 2, 3].map(|at| lists[at].contains(&mine)), [true, true, false, true]);
    assert_eq!([0, 1, 2, 3].map(|at| lists[at].contains(&named)), [true, true, false, true]);
    assert_eq!([0, 1, 2, 3].map(|at| lists[at].contains("class=\"sharp\"")), [true, true, true, false]);
    assert_eq!([0, 1, 2, 3].map(|at| lists[at].contains("data:image/png;base64,")), [true, true, true, false]);
    for (looked_for, found) in [
        ("patient=zyxwquist", 2),
        ("patient=Zyxwquist,+Brunhilde1", 1),
        ("patient=nobody", 0),
        (&format!("id={}", subject(2).patient_id), 1),
        ("modality=ct&from=1977-07-07&to=1977-07-07", 2),
        ("from=1977-07-08", 0),
        ("state=final", 2),
        ("state=receiving", 0),
        ("state=asked", 0),
        (&format!("accession={}", subject(1).accession), 1),
        ("before=1", 0),
        ("patient=a%5Cb&id=%25%00", 0),
    ] {
        let page = operator.page(&format!("/ui/?{looked_for}"));
        assert_eq!(page.matches("data-study=").count(), found, "{looked_for}");
    }
    assert!(operator.page("/ui/?from=never").contains("is no day"));
    assert_eq!(operator.get("/ui/?before=x").status, 400);

    // What is offered goes by what one may, and is refused to who asks for it all the same.
    let offered = |person: &Person, what: &str| person.page(&study).contains(what);
    assert_eq!([&operator, &own, &finder].map(|person| offered(person, "Verify against")), [true, true, false]);
    assert_eq!([&operator, &own, &finder].map(|person| offered(person, "accept=application/zip")), [true, true, false]);
    assert!([&operator, &own, &finder].iter().all(|person| !offered(person, "kind\" value=\"revoke")));
    let zip = operator.get(&format!("/dicomweb/studies/{}?accept=application/zip", subject(1).study_uid));
    assert!(zip.status == 200 && zip.body.starts_with(b"PK"));
    let verify = |person: &Person| person.submit(&format!("{study}/verification"), &[]).status;
    assert_eq!([&operator, &own, &other].map(verify), [303, 303, 404]);
    wait_for("the comparison", || {
        own.page(&study).contains("The ledger has 2 objects, each exactly as it was received")
    });
    let revoke = [("kind", "revoke"), ("grantee", GRANTEE)];
    let decide = |person: &Person| person.submit(&format!("{study}/decisions"), &revoke).status;
    assert_eq!([&narrow, &own, &other].map(decide), [403, 403, 404], "an owner signs himself");

    // Everything about the study that its page tells, to its operator.
    for words in [
        "final",
        "Lately",
        "CT1 (127.0.0.1)",
        "sent or got objects",
        "Received",
        "Defined",
        "Final",
        "Handed over",
        "transaction",
        &subject(1).study_uid,
        "pieces",
    ] {
        assert!(offered(&operator, words), "{words}: {}", operator.page(&study));
    }
    assert!(!offered(&own, "Lately"), "the audit trail is not for patients");
    let ledger = operator.page("/ui/ledger");
    assert!(
        ledger.contains("in step") && ledger.contains("nothing waits") && ledger.contains("(this site)"),
        "{ledger}"
    );
    assert!(ledger.contains("<td>2 studies</td>") && ledger.contains("No contract gives seats"), "{ledger}");
    assert!(!own.page("/ui/ledger").contains("Newest block"), "a patient is shown the sites alone");
}

#[test]
fn what_is_decided_on_a_page_is_decided_on_the_ledger() {
    let bridge = Bridge::start(SERVED);
    send_objects(&bridge, &slices(1, 1, 32));
    bridge.wait_final(1);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let api = Client { token: operator.client.token.clone(), ..operator.client.clone() };
    let allow = json!({ "study": subject(1).study_uid, "decision":
        { "kind": "allow", "grantee": GRANTEE, "mode": "full", "encryption_key": KEY_HASH } });
    assert_eq!(api.post("/decisions", &allow).status, 200);
    let grants = || api.get(&format!("/studies/{}/grants", subject(1).study_uid)).json()["grants"].clone();
    wait_for("the grant", || grants()[0]["state"] == "accepted" || grants()[0]["state"] == "authorised");
    let page = operator.page(&study_page(1));
    assert!(page.contains("everything") && page.contains("Stop access") && page.contains("Access allowed"), "{page}");
    assert!(operator.page("/ui/").contains("readable by 1 other"));

    let decisions = format!("{}/decisions", study_page(1));
    for wrong in [
        &[("kind", "revoke"), ("grantee", "nobody")][..],
        &[("kind", "transfer"), ("owner", GRANTEE)],
        &[("kind", "allow"), ("grantee", GRANTEE), ("mode", "full"), ("until", "2001-01-01")],
    ] {
        let answer = operator.submit(&decisions, wrong);
        assert!(answer.status == 400 && text(&answer).contains("<h1>"), "{wrong:?}: {answer:?}");
    }
    let answer = operator.submit(&decisions, &[("kind", "revoke"), ("grantee", GRANTEE)]);
    assert_eq!((answer.status, answer.header("location")), (303, Some(study_page(1).as_str())), "{}", text(&answer));
    let page = operator.page(&study_page(1));
    assert!(page.contains("may not read this study any more. It is on the ledger: transaction"), "{page}");
    assert!(!operator.page(&study_page(1)).contains("any more. It is on the ledger"), "said once");
    assert_eq!(grants()[0]["sees"], Value::Null);
    let trace = bridge.json(&["trace", &subject(1).study_uid]).to_string();
    assert!(trace.contains("revoked"), "{trace}");
    assert!(operator.page(&study_page(1)).contains("Access stopped"));
    // The ledger's refusal comes back in words.
    let again =
        operator.submit(&decisions, &[("kind", "deny"), ("grantee", "0x4444444444444444444444444444444444444444")]);
    assert!(again.status == 409 && text(&again).contains("<h1>"), "{}: {}", again.status, text(&again));
}

#[test]
fn a_hostile_name_is_text() {
    let bridge = Bridge::start(SERVED);
    let hostile = hostile();
    send_objects(&bridge, &ct_series(&hostile, 1, 32, 9));
    bridge.wait_final(1);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let pages = [
        "/ui/".to_owned(),
        format!("/ui/studies/{}", hostile.study_uid),
        "/ui/?patient=%22%3E%3Cscript%3Ealert(1)".to_owned(),
    ];
    for path in pages {
        let page = operator.page(&path);
        assert!(page.contains("&quot;&gt;&lt;script&gt;alert(1)"), "{path}: {page}");
        assert_eq!(page.matches("<script").count(), 1, "our own and no other: {path}: {page}");
        assert!(
            !page.contains("<img src=x") && !page.contains("<b>&amp;amp;") && !page.contains("//evil.example\""),
            "{path}: {page}"
        );
    }
}

/// The rows of a table of the page, as they stand there.
fn rows(page: &str) -> Vec<&str> {
    let tables = page.split("<tbody>").skip(1).map(|rest| rest.split("</tbody>").next().unwrap());
    tables.flat_map(|body| body.split("<tr>").skip(1)).collect()
}

/// A title that somebody may call by, and what a spreadsheet would do with it.
const FORMULA: &str = "=1+1|\"><b>x";

fn store_from(bridge: &Bridge, title: &str, phantoms: &[Phantom]) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, title).await.unwrap();
        for phantom in phantoms {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
}

/// Lines of a CSV file (RFC 4180) in which every cell is in quotes.
fn csv(body: &[u8]) -> Vec<Vec<String>> {
    let text = std::str::from_utf8(body).unwrap().strip_prefix('\u{feff}').unwrap();
    let (mut lines, mut line, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => line.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {
                assert_eq!(chars.next(), Some('\n'));
                line.push(std::mem::take(&mut cell));
                lines.push(std::mem::take(&mut line));
            }
            c => {
                assert!(quoted, "{c:?} outside of quotes");
                cell.push(c);
            }
        }
    }
    assert!(!quoted && line.is_empty() && cell.is_empty(), "cut off");
    lines
}

#[test]
fn the_audit_trail_says_who_did_what_and_whether_the_ledger_covers_it() {
    let bridge = Bridge::start(&format!("{SERVED}requests_per_minute = 1000000\n[audit]\nanchor_interval_s = 1\n"));
    send_objects(&bridge, &slices(1, 1, 32));
    store_from(&bridge, FORMULA, &slices(2, 1, 32));
    bridge.wait_final(2);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let page = operator.page("/ui/audit");
    for words in ["CT1 (127.0.0.1)", "DICOM Instances Transferred", "Application Start", "done", &subject(1).study_uid]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    // What somebody calls himself is text, also as what he asks with.
    assert!(page.contains("=1+1|&quot;&gt;&lt;b&gt;x"), "{page}");
    let odd = [("User-Agent", "<script>alert(9)</script>")];
    for query in [
        "who=%3Cscript%3Ealert(1)%3C/script%3E",
        "study=%22%3E%3Cb%3E",
        "from=%22%3E%3Cb%3E",
        "kind=%3Cb%3E",
        "before=%3Cb%3E",
    ] {
        let answer = operator.send("GET", &format!("/ui/audit?{query}"), &odd, "");
        let page = text(&answer);
        assert!(
            !page.contains("<script>alert") && !page.contains("<b>\"") && !page.contains("\"><b>"),
            "{query}: {page}"
        );
    }

    // Filters, one by one.
    let found = |query: &str| rows(&operator.page(&format!("/ui/audit?{query}"))).len();
    assert_eq!(found("who=CT1&kind=110104"), 1);
    assert_eq!(found(&format!("study={}&kind=110104", subject(2).study_uid)), 1);
    assert_eq!(found("kind=110105"), 0);
    assert_eq!((found("kind=110104&outcome=0"), found("kind=110104&outcome=4")), (2, 0));
    assert_eq!((found("kind=110104&from=2001-01-01"), found("kind=110104&to=2001-01-01")), (2, 0));
    let on_ledger = bridge.json(&["study", "show", &subject(1).study_uid])["study_id"].as_str().unwrap().to_owned();
    assert_eq!(found(&format!("study={on_ledger}&kind=110104")), 1, "by its name on the ledger");
    for (wrong, why) in [
        ("from=yesterday", "From is &quot;yesterday&quot;, which is no day"),
        ("from=2026-02-02&to=2026-02-01", "which is after To"),
        ("study=Doe", "neither a StudyInstanceUID nor a name on the ledger"),
        ("kind=nonsense", "no kind of event &quot;nonsense&quot;"),
        ("outcome=7", "no outcome &quot;7&quot;"),
        ("before=nowhere", "is no place in the audit trail"),
        (&format!("who={}", "a".repeat(65)), "more than 64 characters"),
    ] {
        let answer = operator.get(&format!("/ui/audit?{wrong}"));
        assert!(answer.status == 400 && text(&answer).contains(why), "{wrong}: {}", text(&answer));
        assert_eq!(
            operator.get(&format!("/ui/audit.csv?{wrong}")).status,
            if wrong.starts_with("before") { 200 } else { 400 },
            "{wrong}"
        );
    }

    // Every record once over its pages, though each page is a record itself.
    (0..60).for_each(|_| assert_eq!(operator.get("/ui/?patient=nobody").status, 200));
    let (mut next, mut pages, mut seen) = (Some("/ui/audit?kind=110112".to_owned()), 0, Vec::new());
    while let Some(path) = next {
        let page = operator.page(&path);
        let record = |row: &str| row.split("mono dim\" title=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        seen.extend(rows(&page).iter().map(|row| record(row)));
        let link = page
            .split("rel=\"next\" href=\"")
            .nth(1)
            .or_else(|| page.split("<a class=\"btn\" rel=\"next\" href=\"").nth(1));
        next = link.map(|rest| rest.split('"').next().unwrap().replace("&amp;", "&"));
        pages += 1;
    }
    let once: std::collections::HashSet<_> = seen.iter().collect();
    assert!(pages >= 2 && seen.len() == 60 && once.len() == 60, "{pages} pages, {} records", seen.len());

    // What the ledger covers.
    wait_for("an anchor", || operator.page("/ui/audit?kind=110104").contains("anchored</span>"));
    assert!(operator.submit("/ui/audit/verification", &[]).status == 303);
    wait_for("the verdict", || operator.page("/ui/audit").contains("all of which agree, up to record"));
    let verified = operator.page("/ui/audit?kind=110101");
    assert!(verified.contains("verified: intact") && verified.contains("read on a page, by kind"), "{verified}");

    // The same for a spreadsheet, to its end.
    let listed = || bridge.json(&["audit", "list"]).as_array().unwrap().len();
    let before = listed();
    let answer = operator.get("/ui/audit.csv");
    assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert!(answer.header("content-disposition").unwrap().starts_with("attachment; filename=\"audit-"), "{answer:?}");
    let lines = csv(&answer.body);
    assert!(
        (before..=listed()).contains(&(lines.len() - 1)) && lines.iter().all(|line| line.len() == 10),
        "{before} {}",
        lines.len()
    );
    assert_eq!(lines[0][0], "record");
    let odd = lines.iter().flatten().filter(|cell| cell.contains("=1+1|\"><b>x")).collect::<Vec<_>>();
    assert!(!odd.is_empty() && odd.iter().all(|cell| cell.starts_with("'=")), "{odd:?}");
    for cell in lines.iter().flatten() {
        assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "a formula: {cell:?}");
    }
    assert_eq!(csv(&operator.get("/ui/audit.csv?kind=110104&who=CT1").body).len(), 2);
    assert!(
        operator.page("/ui/audit?kind=110101").contains("downloaded as CSV, by who, kind"),
        "its order is that of the form"
    );
}

#[test]
fn a_trail_that_somebody_changed_is_said_to_be_so() {
    let bridge = Bridge::start(&format!("{SERVED}requests_per_minute = 1000000\n[audit]\nanchor_interval_s = 1\n"));
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    wait_for("an anchor", || operator.page("/ui/audit").contains("anchored</span>"));
    let folder = bridge.data().join("audit");
    let file = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "log"))
        .unwrap();
    let whole = std::fs::read_to_string(&file).unwrap();
    let changed = whole.replacen("Application Start", "Application Stari", 1);
    assert_ne!(whole, changed);
    // In place: the writer has the file open.
    let at = whole.find("Application Start").unwrap() as u64 + 16;
    std::os::unix::fs::FileExt::write_all_at(&std::fs::OpenOptions::new().write(true).open(&file).unwrap(), b"i", at)
        .unwrap();
    assert_eq!(operator.submit("/ui/audit/verification", &[]).status, 303);
    wait_for("the verdict", || operator.page("/ui/audit").contains("NOT as it was written"));
    let page = operator.page("/ui/audit");
    assert!(page.contains("record 1 or its digest was changed"), "{page}");
    assert!(operator.page("/ui/audit?kind=110101").contains("verified: NOT intact"));
}

/// A port on which nothing listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn operations_show_who_answers_what_waits_and_what_was_read() {
    let other = Bridge::start("[dicom]\nunknown_peers = []\n[[peer]]\nae_title = \"PACSBRIDGE\"\n");
    let picky = Bridge::start("[dicom]\nunknown_peers = []\n");
    // Takes connections and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer =
        |title: &str, port: u16| format!("[[peer]]\nae_title = '{title}'\nhost = \"127.0.0.1\"\nport = {port}\n");
    let peers = [
        peer("PACSBRIDGE", other.dicom.port()),
        peer("AWAY", closed_port()),
        peer("SILENT", silent.local_addr().unwrap().port()),
        "[[peer]]\nae_title = \"CALLER\"\nallow = [\"store\"]\n".to_owned(),
        peer("<img src=x>", picky.dicom.port()),
        "[archive]\nquota_bytes = 1000000000\n".to_owned(),
    ];
    let bridge = Bridge::start(&format!("{SERVED}requests_per_minute = 1000000\n{}", peers.concat()));
    send_objects(&bridge, &slices(1, 2, 64));
    bridge.wait_final(1);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let page = operator.page("/ui/operations");
    assert!(page.contains("&lt;img src=x&gt;") && !page.contains("<img src=x>"), "{page}");
    for words in [
        "only calls us",
        "0 studies whose quiet time is not over",
        "of 1.0 GB",
        "Eviction could free",
        "Secrets are not shown",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let free = page.split("Eviction could free</dt><dd>").nth(1).unwrap().split(" of studies").next().unwrap();
    assert!(free.ends_with(" kB") || free.ends_with(" MB"), "what is final may go: {free}");

    let echo = |title: &str| {
        let answer = operator.submit("/ui/operations/echo", &[("peer", title)]);
        assert_eq!(
            (answer.status, answer.header("location")),
            (303, Some("/ui/operations#peers")),
            "{}",
            text(&answer)
        );
        operator.page("/ui/operations")
    };
    let page = echo("PACSBRIDGE");
    assert!(page.contains("C-ECHO to PACSBRIDGE: success, ") && page.contains("badge ok\">success, "), "{page}");
    assert!(!operator.page("/ui/operations").contains("C-ECHO to PACSBRIDGE: "), "said once");
    assert!(echo("AWAY").contains("connection refused: nothing listens at this address and port"));
    assert!(echo("SILENT").contains("no answer in time, waiting for the association"));
    let page = echo("<img src=x>");
    assert!(
        page.contains("association rejected: called ae title not recognized: it is called something else"),
        "{page}"
    );
    assert!(page.contains("C-ECHO to &lt;img src=x&gt;: ") && !page.contains("<img src=x>"), "{page}");
    // Nobody is called whom the configuration does not name.
    for title in ["", "NOBODY", "CALLER", "AWAY@127.0.0.1:104"] {
        let answer = operator.submit("/ui/operations/echo", &[("peer", title)]);
        assert_eq!(answer.status, 400, "{title}: {}", text(&answer));
    }

    // The configuration, without what must not be seen.
    let page = operator.page("/ui/operations");
    for words in [
        "[dicom]",
        "[[peer]] 5",
        "<td><code>settle_ms</code></td><td><code>100</code></td><td><b>the file</b></td>",
        "<td><code>chain_id</code></td><td><code>20181</code></td><td><span class=\"dim\">default</span></td>",
        "<td><code>ae_title</code></td><td><code>&quot;&lt;img src=x&gt;&quot;</code></td>",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn no_secret_of_the_configuration_is_on_a_page() {
    let secret = "hunter2hunter2";
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let environment = vec![("PACS_BRIDGE__KEYS__PASSWORD".to_owned(), secret.into())];
    let mut bridge = Bridge::prepare(dir, data, SERVED, environment);
    bridge.run();
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    let page = operator.page("/ui/operations");
    assert!(page.contains("given, not shown") && page.contains("the environment") && !page.contains(secret), "{page}");
}

#[test]
fn who_may_not_is_offered_nothing_and_refused() {
    let bridge = Bridge::start(&format!("{SERVED}requests_per_minute = 1000000\n{PEERS}"));
    let as_whom = |arguments: &[&str]| Person::with_token(&bridge, arguments);
    let operator = as_whom(&["--as", "operator"]);
    let narrow = as_whom(&["--as", "operator", "--may", "status"]);
    let finder = as_whom(&["--as", "operator", "--may", "find,sources"]);
    let patient = as_whom(&["--as", "account:0x2222222222222222222222222222222222222222"]);
    let offers = |person: &Person| {
        let page = person.page("/ui/ledger");
        ["href=\"/ui/audit\"", "href=\"/ui/operations\""].map(|link| page.contains(link))
    };
    assert_eq!(
        [&operator, &narrow, &finder, &patient].map(offers),
        [[true, true], [false, true], [false, false], [false, false]]
    );
    let verify = |person: &Person| person.submit("/ui/audit/verification", &[]).status;
    let echo = |person: &Person| person.submit("/ui/operations/echo", &[("peer", "FINDER")]).status;
    assert_eq!([&operator, &narrow, &finder, &patient].map(verify), [303, 403, 403, 403]);
    assert_eq!([&operator, &narrow, &finder, &patient].map(echo), [400, 400, 403, 403], "it has no port");
    let trail = operator.page("/ui/audit?kind=110132");
    assert!(trail.contains("POST /audit/verification") && trail.contains("POST /operations/echo"), "{trail}");
}

/// A network whose blocks are made by whom the contract Validators says, as far as anvil can be one: it has the contract, and makes the blocks itself.
#[test]
fn seats_and_stake_are_those_of_the_contracts() {
    let Some(consortium) = Consortium::found_on(Nodes::Anvil) else { return };
    let served = "[http]\nbind = \"127.0.0.1:0\"\nrequests_per_minute = 1000000\n";
    let (site, other) = (consortium.join_with(served), consortium.join(false));
    send_objects(&site, &slices(1, 1, 32));
    site.wait_final(1);
    let operator = Person::with_token(&site, &["--as", "operator"]);
    let of = |page: &str, bridge: &Bridge| {
        let account = tests::consortium::keyring(bridge).source().address().to_string();
        rows(page).into_iter().find(|row| row.contains(&account)).unwrap().to_owned()
    };
    let page = operator.page("/ui/ledger");
    assert!(page.contains("No contract gives seats") && of(&page, &site).contains("<td>1 study</td>"), "{page}");
    assert!(of(&page, &other).contains("<td>0 studies</td>"), "{page}");

    let keys = |first: u8| [first, first + 1].map(alloy::primitives::Address::repeat_byte).to_vec();
    let first =
        |bridge: &Bridge, keys| FirstSite { account: tests::consortium::keyring(bridge).source().address(), keys };
    let registry = contracts::deployment::addresses(consortium.admin).sources;
    let sites = vec![first(&site, keys(1)), first(&other, keys(3))];
    let state = FirstState { registry, epoch_blocks: 1, seats: 4, stake_cap: 100, sites };
    consortium.hold(validators::ADDRESS, validators::runtime_code(), &state.storage());
    let page = operator.page("/ui/ledger");
    assert!(page.contains("gives 4 seats"), "{page}");
    assert!(of(&page, &site).contains("<td>1 study, of which 0 count</td><td>2 of 4</td>"), "{page}");
    assert!(of(&page, &other).contains("<td>0 studies, of which 0 count</td><td>2 of 4</td>"), "{page}");
    // What a site brought in counts from the next roll on.
    consortium.send(validators::ADDRESS, Validators::rollCall {}.abi_encode().into(), U256::ZERO);
    assert!(of(&operator.page("/ui/ledger"), &site).contains("<td>1 study, of which 1 count</td><td>2 of 4</td>"));
}

#[test]
fn what_is_on_its_way_is_said_in_pieces_and_in_seconds() {
    let slow = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\npiece_bytes = 1024\n\
                [ledger]\nblock_period_ms = 2000\n[http]\nbind = \"127.0.0.1:0\"\nrequests_per_minute = 1000000\n";
    let bridge = Bridge::start(slow);
    let operator = Person::with_token(&bridge, &["--as", "operator"]);
    send_objects(&bridge, &slices(1, 60, 256));
    // Nothing was anchored yet, and nothing is said to be.
    let trail = operator.page("/ui/audit");
    assert!(trail.contains("not anchored yet</span>") && !trail.contains(">anchored</span>"), "{trail}");
    for page in ["/ui/ledger", "/ui/operations"] {
        let seen = std::cell::RefCell::new(Vec::new());
        wait_for("an estimate", || {
            let shown = operator.page(page);
            let said = ["is not known", "pieces a second, that takes about "].map(|words| shown.contains(words));
            seen.borrow_mut().push(said);
            assert!(!shown.contains("about 0 seconds"), "{shown}");
            said[1]
        });
        // Nobody guessed before anything was measured.
        assert!(page != "/ui/ledger" || seen.borrow().first().is_some_and(|first| !first[1]), "{seen:?}");
    }
}

#[test]
fn pages_are_switched_off_alone() {
    let bridge = Bridge::start(&format!("{SERVED}[web]\nenabled = false\n"));
    let stranger = Person::stranger(&bridge);
    assert_eq!(["/", "/ui/", "/ui/login"].map(|path| stranger.get(path).status), [404; 3]);
    assert_eq!(stranger.get("/api/v1/health/live").status, 200);
}

#[test]
fn the_committed_scripts_are_those_that_are_built() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tools = browser_tools();
    if !tools.join("browser/esbuild/bin/esbuild").is_file() {
        skip("esbuild (.tools/browser)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let built = Command::new(root.join("scripts/pages.sh")).arg(dir.path()).env("TOOLS", &tools).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for script in ["pages.js", "key.js"] {
        let [built, committed] = [dir.path(), &root.join("bridge/src/web/assets")]
            .map(|folder| std::fs::read_to_string(folder.join(script)).unwrap());
        assert!(built == committed, "run scripts/pages.sh and commit what it builds: {script}");
    }
}

/// Every page in light and dark, wide and at 320 pixels: nothing that axe-core finds, nothing that scrolls sideways, every control reached by the keyboard
/// with a focus that is seen, nothing on the console, nothing from elsewhere; what changes shows while somebody looks; a viewer opens for who is logged in.
#[test]
fn pages_in_a_browser() {
    if !(have("chromium") && have("node")) {
        return;
    }
    let tools = browser_tools();
    for needed in ["browser/node_modules/playwright-core", "browser/node_modules/axe-core", "browser/ohif-3.13"] {
        if !tools.join(needed).is_dir() {
            skip(needed);
            return;
        }
    }
    let bridge = Bridge::start(&format!(
        "{SERVED}requests_per_minute = 100000\n[dicomweb]\nohif_dir = \"{}\"\n[[peer]]\nae_title = 'AWAY<b>'\nhost = \"127.0.0.1\"\nport = {}\n\
         [[peer]]\nae_title = \"CALLER\"\nallow = [\"store\"]\n",
        tools.join("browser/ohif-3.13").display(),
        closed_port()
    ));
    let hostile = hostile();
    send_objects(&bridge, &[slices(1, 3, 64), slices(2, 1, 64), ct_series(&hostile, 1, 48, 9)].concat());
    bridge.wait_final(3);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    for grantee in [GRANTEE, "0x5555555555555555555555555555555555555555"] {
        let allow = json!({ "study": subject(1).study_uid, "decision":
            { "kind": "allow", "grantee": grantee, "mode": "full", "until_s": 4_000_000_000_u64, "encryption_key": KEY_HASH } });
        assert_eq!(operator.post("/decisions", &allow).status, 200);
    }
    let base = format!("http://{}", address(&bridge));
    let mut browser = Command::new("node")
        .arg(here("browser/pages.mjs"))
        .args([base.as_str(), operator.token.as_deref().unwrap(), &subject(1).study_uid, &hostile.study_uid])
        .env("TOOLS", &tools)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    // It says when it looks at the list: then a study comes.
    let mut said = std::io::BufReader::new(browser.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line.trim(), "looking");
    send_objects(&bridge, &slices(5, 2, 64));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert!(browser.wait().unwrap().success(), "{rest}");
    let report: Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(report["wrong"], json!([]), "{report}");
    assert!(report["judged"].as_u64().unwrap() >= 50 && report["reached"].as_u64().unwrap() >= 300, "{report}");
    assert_eq!(
        (&report["appeared"], &report["became_final"], &report["drawn"], &report["operated"], &report["shared"]),
        (&json!(true), &json!(true), &json!(true), &json!(true), &json!(true)),
        "{report}"
    );
}
