//! Logins and access tokens of an OpenID Connect issuer: with somebody else's certified provider as judge, from a browser without scripts and from Chromium;
//! and an issuer of our own that does what no issuer should.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::signers::local::PrivateKeySigner;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::certificates::{Authority, Kind};
use tests::consortium::now_s;
use tests::dicom::{connect, slices, store, subject};
use tests::http::{Answer, Client, address, connect as dial, send};
use tests::issuer::{
    AUDIENCE, Browser, Hostile, Key, Provider, Reply, SECRET, attribute, discovery, parameter, unsigned,
};
use tests::person::{Person, text};
use tests::{Bridge, browser_tools, have, here, wait_for};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const SERVED: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n\
                      requests_per_minute = 100000\n";
const RULES: &str = "[[peer]]\nae_title = \"VIEWER\"\nallow = [\"find\"]\n\
                     [[oidc.principal]]\nclaim = \"groups\"\nvalue = \"radiology\"\nas = \"operator\"\n\
                     rights = [\"find\", \"retrieve\", \"status\"]\n\
                     [[oidc.principal]]\nclaim = \"groups\"\nvalue = \"viewers\"\nas = \"peer:VIEWER\"\n\
                     [[oidc.principal]]\nclaim = \"patient_account\"\nas = \"account\"\n";
/// For whom the hostile issuer's tokens are, and how long a bridge waits before it asks an issuer again.
const API: &str = "pacs-api";
const ASKED_EVERY: Duration = Duration::from_secs(10);

/// A site with two studies, and an issuer.
fn site(oidc: &str, http: &str) -> Bridge {
    let bridge = Bridge::start(&format!("{SERVED}{http}[oidc]\n{oidc}{RULES}"));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in slices(1, 2, 32).iter().chain(&slices(2, 1, 32)) {
            assert_eq!(store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    bridge.wait_final(2);
    bridge
}

/// A site without studies whose issuer is the hostile one; every request may come from an address of its own.
fn bare(issuer: &Hostile, more: &str) -> Bridge {
    let oidc =
        format!("issuer = \"{}\"\naudiences = [\"{API}\"]\nclient_id = \"pacs\"\nname = \"H\"\n{more}", issuer.url);
    Bridge::start(&format!("{SERVED}behind_proxy = true\n[oidc]\n{oidc}{RULES}"))
}

fn base(bridge: &Bridge) -> String {
    format!("http://{}", address(bridge))
}

/// What the hostile issuer says of a radiologist, to the API.
fn said(issuer: &Hostile) -> Value {
    let now = now_s();
    json!({ "iss": issuer.url, "aud": API, "sub": "u1", "groups": ["radiology"], "iat": now - 5, "nbf": now - 5, "exp": now + 300 })
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut changed = claims.clone();
    changed[name] = value;
    changed
}

fn without(claims: &Value, name: &str) -> Value {
    let mut changed = claims.clone();
    changed.as_object_mut().unwrap().remove(name);
    changed
}

fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed = unsigned(header, claims);
    let mut code = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    code.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(code.finalize().into_bytes()))
}

/// Asks as somebody with a token at an address of his own.
struct Asker<'a> {
    bridge: &'a Bridge,
    asked: std::cell::Cell<u32>,
}

impl<'a> Asker<'a> {
    fn new(bridge: &'a Bridge) -> Self {
        Self { bridge, asked: 0.into() }
    }

    fn ask(&self, method: &str, path: &str, token: &str) -> Answer {
        self.asked.set(self.asked.get() + 1);
        let from = format!("10.{}.{}.7", self.asked.get() / 250, self.asked.get() % 250);
        let bearer = format!("Bearer {token}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("X-Forwarded-For", from.as_str()),
            ("Accept", "*/*"),
            ("Content-Type", "application/json"),
        ];
        let body: &[u8] = if method == "POST" { b"{}" } else { b"" };
        send(address(self.bridge), method, path, &headers, body)
    }

    fn status(&self, token: &str) -> u16 {
        self.ask("GET", "/api/v1/me", token).status
    }
}

/// Every door that a token opens: another's word opens none of them, whatever is wrong with it.
const DOORS: [(&str, &str); 6] = [
    ("GET", "/api/v1/me"),
    ("GET", "/api/v1/studies"),
    ("GET", "/api/v1/events"),
    ("GET", "/dicomweb/studies"),
    ("POST", "/dicomweb/studies"),
    ("POST", "/api/v1/decisions"),
];

#[test]
fn nothing_but_a_good_token_of_the_issuer_for_this_site_opens_a_door() {
    let issuer = Hostile::start();
    let bridge = bare(&issuer, "lifetime_max_s = 3600\n");
    let (asker, key, good) = (Asker::new(&bridge), issuer.key.clone(), said(&issuer));
    let nobody = asker.ask("GET", "/api/v1/me", "");
    assert_eq!(nobody.status, 401);
    let opened = |token: &str| DOORS.map(|(method, path)| asker.ask(method, path, token).status);
    let whole = key.sign(&good);
    let shown = asker.ask("GET", "/api/v1/me", &whole).json();
    assert_eq!(shown["principal"], "operator");
    assert_eq!(shown["rights"], json!(["find", "retrieve", "status"]));
    assert_eq!(shown["expires_s"], good["exp"]);
    // Storing is not among its rights; and an empty decision is none.
    assert_eq!(opened(&whole), [200, 200, 200, 204, 403, 400]);

    let now = now_s();
    let header = |alg: &str| json!({ "alg": alg, "kid": "k1", "typ": "JWT" });
    let typed = |typ: &str| json!({ "alg": "ES256", "kid": "k1", "typ": typ });
    let parts: Vec<&str> = whole.split('.').collect();
    let (other, own) = (Key::new("k1"), Key::new("k9"));
    let changed = URL_SAFE_NO_PAD.encode(with(&good, "sub", json!("u2")).to_string());
    let short = json!({ "alg": "ES256", "typ": "JWT", "kid": "k1", "jwk": own.public() });
    let jku = json!({ "alg": "ES256", "typ": "JWT", "kid": "k9", "jku": format!("{}/keys2", issuer.url) });
    let wrong: Vec<(&str, String)> = vec![
        ("alg none", format!("{}.", unsigned(&header("none"), &good))),
        ("alg None", format!("{}.", unsigned(&header("None"), &good))),
        ("alg none with a signature", format!("{}.{}", unsigned(&header("none"), &good), parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("a public key as secret", hs256(&key.public_bytes(), &header("HS256"), &good)),
        ("a JWK as secret", hs256(key.public().to_string().as_bytes(), &header("HS256"), &good)),
        ("an empty secret", hs256(b"", &header("HS256"), &good)),
        ("another algorithm of another key", key.sign_as(&header("RS256"), &good)),
        ("an algorithm of another curve", key.sign_as(&header("ES384"), &good)),
        ("an unknown algorithm", key.sign_as(&header("ES256K"), &good)),
        ("another's key by the same name", other.sign(&good)),
        ("a key that the token brings itself", own.sign_as(&short, &good)),
        ("an address of keys that the token brings itself", own.sign_as(&jku, &good)),
        ("a critical extension", key.sign_as(&json!({ "alg": "ES256", "kid": "k1", "crit": ["x"], "x": 1 }), &good)),
        ("changed", format!("{}.{changed}.{}", parts[0], parts[2])),
        ("cut", whole[..whole.len() - 2].to_owned()),
        ("longer", format!("{whole}.{}", parts[2])),
        ("another issuer", key.sign(&with(&good, "iss", json!("https://login.example")))),
        ("an issuer with a slash", key.sign(&with(&good, "iss", json!(format!("{}/", issuer.url))))),
        ("two issuers", key.sign(&with(&good, "iss", json!([issuer.url, "https://evil.example"])))),
        ("no issuer", key.sign(&without(&good, "iss"))),
        ("another audience", key.sign(&with(&good, "aud", json!("other-api")))),
        ("the client as audience", key.sign(&with(&good, "aud", json!("pacs")))),
        ("no audience", key.sign(&without(&good, "aud"))),
        ("an audience that has ours in it", key.sign(&with(&good, "aud", json!(format!("{API} other"))))),
        ("over", key.sign(&with(&good, "exp", json!(now - 31)))),
        ("no end", key.sign(&without(&good, "exp"))),
        ("an end that is text", key.sign(&with(&good, "exp", json!((now + 300).to_string())))),
        ("an end that is too far", key.sign(&with(&good, "exp", json!(now + 7200)))),
        ("not yet", key.sign(&with(&good, "nbf", json!(now + 90)))),
        ("made in the future", key.sign(&with(&good, "iat", json!(now + 90)))),
        ("a beginning that is text", key.sign(&with(&good, "nbf", json!("0")))),
        ("an ID token", key.sign(&with(&good, "nonce", json!("n")))),
        ("an ID token of Keycloak", key.sign(&with(&good, "typ", json!("ID")))),
        ("a refresh token of Keycloak", key.sign(&with(&good, "typ", json!("Refresh")))),
        ("a logout token", key.sign_as(&typed("logout+jwt"), &good)),
        ("nobody's", key.sign(&without(&good, "sub"))),
        ("a subject that is a number", key.sign(&with(&good, "sub", json!(7)))),
        ("not a JWT", "eyJ.eyJ.eyJ".to_owned()),
        ("a local token of nobody", "pbt_0123456789abcdef_00".to_owned()),
    ];
    for (what, token) in &wrong {
        assert_eq!(opened(token), [401; 6], "{what}");
        let answer = asker.ask("GET", "/api/v1/me", token);
        assert_eq!(answer.body, nobody.body, "the same for every reason: {what}");
    }
    assert_eq!(asker.status(&format!("eyJ{}.x.y", "A".repeat(12_000))), 401, "a long one");
    assert!(matches!(asker.status(&format!("{whole}{}", "A".repeat(20_000))), 400 | 401 | 431), "a huge one");
    // What nobody but the issuer may be: none of its addresses but those of its discovery document were asked.
    assert_eq!(issuer.asked("/keys2"), 0);

    // Kinds of good ones.
    for (what, token) in [
        ("of RFC 9068", key.sign_as(&typed("at+jwt"), &with(&good, "nonce", json!("n")))),
        ("of several audiences", key.sign(&with(&good, "aud", json!(["other", API])))),
        ("without a key's name", key.sign_as(&json!({ "alg": "ES256" }), &good)),
        ("of Keycloak", key.sign(&with(&good, "typ", json!("Bearer")))),
        ("within the leeway", key.sign(&with(&good, "exp", json!(now_s() - 10)))),
    ] {
        assert_eq!(asker.status(&token), 200, "{what}");
    }

    // Somebody whom the issuer knows and whom no rule lets in gets words, and is in the trail.
    let porter = key.sign(&with(&with(&good, "groups", json!(["radiology2"])), "sub", json!("u-porter")));
    let refused = asker.ask("GET", "/api/v1/studies", &porter);
    assert_eq!(refused.status, 403);
    assert!(refused.json()["detail"].as_str().unwrap().contains("H knows who this is"), "{refused:?}");
    let trail = bridge.json(&["audit", "list"]).to_string();
    assert!(trail.contains("oidc=u-porter") && trail.contains("110132"), "{trail}");

    // After many wrong ones from an address none is looked at.
    let one =
        |token: &str| Client { to: address(&bridge), token: Some(token.to_owned()), from: Some("192.0.2.9".into()) };
    let statuses: Vec<u16> = (0..31).map(|_| one(&wrong[0].1).get("/me").status).collect();
    assert_eq!((statuses[29], statuses[30]), (401, 429));
    assert_eq!((one(&whole).get("/me").status, asker.status(&whole)), (429, 200));
}

#[test]
fn a_stream_ends_with_its_token() {
    let issuer = Hostile::start();
    let bridge = bare(&issuer, "");
    let ends = now_s() + 4;
    let token = issuer.key.sign(&with(&said(&issuer), "exp", json!(ends)));
    let mut stream = dial(address(&bridge));
    let head =
        format!("GET /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut came = String::new();
    stream.read_to_string(&mut came).unwrap();
    assert!(came.starts_with("HTTP/1.1 200") && came.contains("listening"), "{came}");
    assert!((ends - 1..ends + 10).contains(&now_s()), "ended {} s after its token", now_s() as i64 - ends as i64);
}

#[test]
fn an_issuer_that_misbehaves_or_is_away_lets_nobody_in_and_stops_nobody() {
    let issuer = Hostile::start();
    let good_discovery = Reply::Json(200, discovery(&issuer.url).to_string());
    let good_keys = Reply::Json(200, json!({ "keys": [issuer.key.public()] }).to_string());
    let huge = format!("{{\"keys\":[{}],\"x\":\"{}\"}}", issuer.key.public(), "A".repeat(300_000));
    let elsewhere = |name: &str, value: &str| {
        let mut document = discovery(&issuer.url);
        document[name] = value.into();
        Reply::Json(200, document.to_string())
    };
    // Each of these is a bridge of its own: what one fetched stays good for it.
    let other = Hostile::start();
    other.now(|other| other.keys = good_keys.clone());
    for (what, discovery, keys) in [
        ("another issuer's document", elsewhere("issuer", "https://login.example"), good_keys.clone()),
        ("a slash more", elsewhere("issuer", &format!("{}/", issuer.url)), good_keys.clone()),
        ("keys in the clear elsewhere", elsewhere("jwks_uri", "http://192.0.2.1/keys"), good_keys.clone()),
        (
            "a redirected document",
            Reply::Redirect(format!("{}/.well-known/openid-configuration", other.url)),
            good_keys.clone(),
        ),
        ("redirected keys", good_discovery.clone(), Reply::Redirect(format!("{}/keys", other.url))),
        ("huge keys", good_discovery.clone(), Reply::Json(200, huge)),
        ("a huge document", Reply::Json(200, "{".repeat(300_000)), good_keys.clone()),
        ("no keys", good_discovery.clone(), Reply::Json(200, "{\"keys\":[]}".into())),
        (
            "keys that are secrets",
            good_discovery.clone(),
            Reply::Json(200, json!({ "keys": [{ "kty": "oct", "k": "AAAA", "kid": "k1" }] }).to_string()),
        ),
        ("a page", Reply::Json(200, "<html>".into()), good_keys.clone()),
        ("an error", Reply::Json(500, "{}".into()), good_keys.clone()),
        ("slow keys", good_discovery.clone(), Reply::Slow(Duration::from_secs(30))),
        ("nobody", Reply::Away, Reply::Away),
    ] {
        issuer.now(|script| (script.discovery, script.keys) = (discovery, keys));
        let bridge = bare(&issuer, "timeout_ms = 500\n");
        let asker = Asker::new(&bridge);
        let begun = Instant::now();
        let answer = asker.ask("GET", "/api/v1/me", &issuer.key.sign(&said(&issuer)));
        assert_eq!(answer.status, 503, "{what}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(25), "{what}");
        assert!(
            answer.header("retry-after").is_some()
                && answer.json()["detail"].as_str().unwrap().contains("H does not answer"),
            "{what}"
        );
        let begun = Browser::default().ask("GET", &format!("{}/ui/login/issuer", base(&bridge)), &[]);
        assert_eq!(begun.status, 503, "{what}");
        assert!(text(&begun).contains("H does not answer now") && text(&begun).contains("Your token"), "{what}");
        // Local tokens do not care, and the log says what is wrong.
        assert_eq!(Client::with_token(&bridge, &["--as", "operator"]).get("/me").status, 200);
        assert!(bridge.log().contains("what the issuer of logins publishes cannot be had"), "{what}");
    }
    assert_eq!((other.asked("keys"), other.asked("well-known")), (0, 0), "redirects were followed");

    // Keys that are known are good while the issuer is away.
    issuer.now(|script| (script.discovery, script.keys) = (good_discovery.clone(), good_keys.clone()));
    let bridge = bare(&issuer, "timeout_ms = 500\n");
    let asker = Asker::new(&bridge);
    let token = issuer.key.sign(&said(&issuer));
    wait_for("the issuer to be known", || asker.status(&token) == 200);
    issuer.now(|script| (script.discovery, script.keys) = (Reply::Away, Reply::Away));
    assert_eq!(asker.status(&token), 200);
    // An unknown key has it asked, but not for everybody who names one.
    std::thread::sleep(ASKED_EVERY);
    let before = issuer.asked("well-known");
    let stranger = Key::new("k7");
    let statuses: Vec<u16> = (0..20).map(|_| asker.status(&stranger.sign(&said(&issuer)))).collect();
    assert!(issuer.asked("well-known") - before <= 1, "asked {} times", issuer.asked("well-known") - before);
    assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
    assert_eq!(asker.status(&token), 200);

    // It changes its key: the new one is found, the old one is over.
    let newer = Key::new("k2");
    issuer.now(|script| {
        script.discovery = good_discovery;
        script.keys = Reply::Json(200, json!({ "keys": [{ "kty": "new" }, newer.public()] }).to_string());
    });
    std::thread::sleep(ASKED_EVERY);
    assert_eq!(asker.status(&newer.sign(&said(&issuer))), 200);
    assert_eq!(asker.status(&token), 401);
}

/// What the hostile issuer is told when a login begins, by the address that the browser is sent to.
struct Begun {
    browser: Browser,
    state: String,
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

fn begin(bridge: &Bridge, issuer: &Hostile, next: &str) -> Begun {
    let mut browser = Browser::default();
    let (url, _) = browser.go_until(&format!("{}/ui/login/issuer{next}", base(bridge)), &issuer.url);
    assert!(url.starts_with(&format!("{}/authorize?tenant=1&response_type=code&client_id=pacs&", issuer.url)), "{url}");
    let [state, nonce, challenge, redirect_uri, method, scope] =
        ["state", "nonce", "code_challenge", "redirect_uri", "code_challenge_method", "scope"]
            .map(|name| parameter(&url, name).unwrap());
    assert_eq!((method.as_str(), scope.as_str()), ("S256", "openid profile"));
    Begun { browser, state, nonce, challenge, redirect_uri }
}

fn back(bridge: &Bridge, query: &str) -> String {
    format!("{}/ui/login/callback?{query}", base(bridge))
}

#[test]
fn a_login_is_of_one_browser_once_and_by_the_issuers_word_alone() {
    let issuer = Hostile::start();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{SECRET}\n")).unwrap();
    let bridge = bare(
        &issuer,
        &format!("client_secret_file = {:?}\npublic_url = \"{}\"\n", secret.path(), "https://pacs.example"),
    );
    let answers = |id_token: &str| {
        Reply::Json(200, json!({ "id_token": id_token, "access_token": "at", "token_type": "Bearer" }).to_string())
    };
    let id = |nonce: &str| {
        json!({ "iss": issuer.url, "aud": "pacs", "sub": "u1", "name": "<i>Dr</i> X", "groups": ["radiology"],
        "nonce": nonce, "iat": now_s(), "exp": now_s() + 300 })
    };
    let logged_in = |browser: &mut Browser| browser.is_logged_in(&base(&bridge));

    // As it should be: the code is redeemed with what the challenge was made of, and the secret.
    let Begun { mut browser, state, nonce, challenge, redirect_uri } = begin(&bridge, &issuer, "?next=%2Fui%2Fledger");
    assert_eq!(redirect_uri, "https://pacs.example/ui/login/callback");
    assert!(!logged_in(&mut browser));
    let mut id_token = issuer.key.sign(&id(&nonce));
    issuer.now(|script| script.token = answers(&id_token));
    let mut kept = browser.clone();
    let good = back(&bridge, &format!("code=c%2B1&state={state}&iss={}", issuer.url));
    let answer = browser.ask("GET", &good, &[]);
    assert_eq!((answer.status, answer.header("refresh")), (200, Some("0;url=/ui/ledger")), "{}", text(&answer));
    let asked = issuer.last_asked("POST /token");
    assert!(
        asked.contains("grant_type=authorization_code&code=c%2B1&")
            && asked.contains("client_id=pacs&client_secret=a+secret%3A+with+%25+and+%2B"),
        "{asked}"
    );
    let verifier = asked.split("code_verifier=").nth(1).unwrap().split('&').next().unwrap();
    assert_eq!(URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)), challenge);
    let page = text(&browser.ask("GET", &format!("{}/ui/ledger", base(&bridge)), &[]));
    assert!(page.contains("&lt;i&gt;Dr&lt;/i&gt; X (operator)"), "{page}");
    let set: Vec<&str> =
        answer.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, set)| set.as_str()).collect();
    assert!(
        set.len() == 2
            && set.iter().all(|set| set.starts_with("__Host-pacs-bridge-")
                && set.contains("HttpOnly")
                && set.ends_with("Secure")),
        "{set:?}"
    );
    assert!(
        set.iter().any(|set| set.contains("SameSite=Strict")) && set.iter().any(|set| set.contains("Max-Age=0")),
        "{set:?}"
    );
    // Logging out ends it; this issuer has no way to log out there.
    let form = attribute(&browser.ask("GET", &format!("{}/ui/ledger", base(&bridge)), &[]), "name=\"form\" value=\"");
    let out = browser.ask("POST", &format!("{}/ui/logout", base(&bridge)), &[("form", &form)]);
    assert_eq!((out.status, out.header("location")), (303, Some("/ui/login")));

    // The same answer once more, also from who kept the cookie.
    let exchanged = issuer.asked("POST /token");
    for again in [&mut browser, &mut kept] {
        let answer = again.ask("GET", &good, &[]);
        assert!(answer.status == 401 && text(&answer).contains("was used already") && !logged_in(again), "{answer:?}");
    }
    // Another browser, with a login of its own and without; another state; no state.
    let theirs = begin(&bridge, &issuer, "");
    for mut other in [Browser::default(), begin(&bridge, &issuer, "").browser] {
        let answer =
            other.ask("GET", &back(&bridge, &format!("code=c&state={}&iss={}", theirs.state, issuer.url)), &[]);
        assert!(answer.status == 401 && !logged_in(&mut other), "{answer:?}");
    }
    for state in ["", "x", &theirs.state[1..]] {
        let mut browser = theirs.browser.clone();
        let answer = browser.ask("GET", &back(&bridge, &format!("code=c&state={state}")), &[]);
        assert!(answer.status == 401 && !logged_in(&mut browser), "{state}: {answer:?}");
    }
    assert_eq!(issuer.asked("POST /token"), exchanged, "no code was redeemed for any of them");

    // Answers that are not this issuer's, or say no: in words, and nothing in them is a page's own.
    for (query, words) in [
        ("code=c&iss=https%3A%2F%2Fevil.example".to_owned(), "not of H"),
        ("error=access_denied&error_description=%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_owned(), "cancelled there"),
        ("error=%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_owned(), "&lt;script&gt;"),
        (String::new(), "it brought no code"),
    ] {
        let Begun { mut browser, state, .. } = begin(&bridge, &issuer, "");
        let answer = browser.ask("GET", &back(&bridge, &format!("{query}&state={state}")), &[]);
        let page = text(&answer);
        assert!(answer.status == 401 && page.contains(words) && !page.contains("<script>alert"), "{query}: {page}");
        assert!(!logged_in(&mut browser) && page.contains("Log in with H<"), "{query}");
    }
    assert_eq!(issuer.asked("POST /token"), exchanged);

    // ID tokens that are not good.
    let (other, key) = (Key::new("k1"), issuer.key.clone());
    type Make<'a> = Box<dyn Fn(&Value) -> String + 'a>;
    let wrong: Vec<(&str, Make<'_>)> = vec![
        ("of another login", Box::new(|id| key.sign(&with(id, "nonce", json!("other"))))),
        ("without nonce", Box::new(|id| key.sign(&without(id, "nonce")))),
        ("for another client", Box::new(|id| key.sign(&with(id, "aud", json!("other"))))),
        ("for the API", Box::new(|id| key.sign(&with(id, "aud", json!(API))))),
        ("for several without azp", Box::new(|id| key.sign(&with(id, "aud", json!(["pacs", "other"]))))),
        ("of another party", Box::new(|id| key.sign(&with(id, "azp", json!("other"))))),
        ("of another issuer", Box::new(|id| key.sign(&with(id, "iss", json!("https://login.example"))))),
        ("over", Box::new(|id| key.sign(&with(id, "exp", json!(now_s() - 60))))),
        ("an access token", Box::new(|id| key.sign_as(&json!({ "alg": "ES256", "kid": "k1", "typ": "at+jwt" }), id))),
        ("an access token of Keycloak", Box::new(|id| key.sign(&with(id, "typ", json!("Bearer"))))),
        ("of another access token", Box::new(|id| key.sign(&with(id, "at_hash", json!("AAAA"))))),
        ("of another key", Box::new(|id| other.sign(id))),
        ("alg none", Box::new(|id| format!("{}.", unsigned(&json!({ "alg": "none" }), id)))),
        ("the client's secret as key", Box::new(|id| hs256(SECRET.as_bytes(), &json!({ "alg": "HS256" }), id))),
        ("nobody's", Box::new(|id| key.sign(&without(id, "sub")))),
        ("nothing", Box::new(|_| String::new())),
    ];
    for (at, (what, make)) in wrong.iter().enumerate() {
        let Begun { browser, state, nonce, .. } = begin(&bridge, &issuer, "");
        id_token = make(&id(&nonce));
        issuer.now(|script| script.token = answers(&id_token));
        // Each from an address of its own.
        let cookie = browser.cookie_line();
        let from = format!("10.9.{at}.1");
        let path = format!("/ui/login/callback?code=c&state={state}&iss={}", issuer.url);
        let answer = send(address(&bridge), "GET", &path, &[("Cookie", &cookie), ("X-Forwarded-For", &from)], b"");
        assert!(answer.status == 401 && text(&answer).contains("cannot be relied on"), "{what}: {}", text(&answer));
        assert!(answer.headers.iter().all(|(name, set)| name != "set-cookie" || set.contains("Max-Age=0")), "{what}");
    }
    // The issuer refuses the code, is away, or talks nonsense.
    for (reply, status, words) in [
        (Reply::Json(400, json!({ "error": "invalid_grant" }).to_string()), 401, "cannot be relied on"),
        (Reply::Json(200, "{}".into()), 401, "cannot be relied on"),
        (Reply::Json(200, "<html>".into()), 503, "does not answer now"),
        (Reply::Redirect("/keys".into()), 401, "cannot be relied on"),
        (Reply::Away, 503, "does not answer now"),
        (Reply::Json(200, "A".repeat(300_000)), 503, "does not answer now"),
    ] {
        let Begun { mut browser, state, .. } = begin(&bridge, &issuer, "");
        issuer.now(|script| script.token = reply.clone());
        let answer = browser.ask("GET", &back(&bridge, &format!("code=c&state={state}&iss={}", issuer.url)), &[]);
        assert_eq!(answer.status, status, "{reply:?}");
        assert!(text(&answer).contains(words) && !logged_in(&mut browser), "{reply:?}");
    }

    // Nobody is led elsewhere afterwards, and no page of somebody else begins a login.
    for next in ["?next=%2F%2Fevil.example", "?next=https%3A%2F%2Fevil.example", "?next=%2F%5Cevil.example"] {
        let Begun { mut browser, state, nonce, .. } = begin(&bridge, &issuer, next);
        id_token = key.sign(&with(&id(&nonce), "at_hash", json!(URL_SAFE_NO_PAD.encode(&Sha256::digest("at")[..16]))));
        issuer.now(|script| script.token = answers(&id_token));
        let answer = browser.ask("GET", &back(&bridge, &format!("code=c&state={state}&iss={}", issuer.url)), &[]);
        assert_eq!(answer.header("refresh"), Some("0;url=/ui/"), "{next}");
        assert!(logged_in(&mut browser));
    }
    let foreign = send(address(&bridge), "GET", "/ui/login/issuer", &[("Sec-Fetch-Site", "cross-site")], b"");
    assert_eq!(
        (foreign.status, foreign.header("location"), foreign.header("set-cookie")),
        (303, Some("/ui/login"), None)
    );
    let log = bridge.log();
    assert!(!log.contains(SECRET) && !log.contains(&id_token) && !log.contains("u1"), "{log}");
}

#[test]
fn people_log_in_with_somebody_elses_provider() {
    let account = PrivateKeySigner::random().address().to_string();
    let Some(provider) = Provider::start(&account) else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{SECRET}\n")).unwrap();
    let oidc = format!(
        "issuer = \"{}\"\nname = \"Hospital <login>\"\nclient_id = \"pacs\"\nclient_secret_file = {:?}\nscopes = [\"openid\", \"profile\", \"groups\"]\nuserinfo = true\n",
        provider.url,
        secret.path()
    );
    let bridge = site(&oidc, "");
    bridge.json(&["claim", &subject(2).study_uid, "--owner", &account]);
    let base = base(&bridge);
    let study = |number: u32| format!("{base}/ui/studies/{}", subject(number).study_uid);

    // The way of a radiologist: asked for a page, shown the login page, there and back, and on to the page.
    let mut radiologist = Browser::default();
    let (url, page) = radiologist.go(&study(1));
    assert!(url.starts_with(&format!("{base}/ui/login?next=")), "{url}");
    let shown = text(&page);
    assert!(
        shown.contains("Log in with Hospital &lt;login&gt;")
            && shown.contains("Your token")
            && shown.contains("passkey")
    );
    let link = format!("{base}{}", attribute(&page, "class=\"btn primary\" href=\""));
    let (url, page) = radiologist.log_in(&link, "radiologist-1");
    assert_eq!((url.as_str(), page.status), (study(1).as_str(), 200), "{:?}: {}", radiologist.been, text(&page));
    assert!(text(&page).contains("Dr &lt;b&gt;Röntgen&lt;/b&gt; (operator)"), "{}", text(&page));
    assert_eq!(radiologist.cookies("pacs-bridge-login"), [""; 0], "the login's cookie is gone");
    let list = text(&radiologist.ask("GET", &format!("{base}/ui/"), &[]));
    assert_eq!(list.matches("data-study=").count(), 2);
    // What the rule leaves: no decisions, and what only operators see.
    assert!(!text(&page).contains("Let the patient decide"));
    assert_eq!(
        radiologist.ask("GET", &format!("{base}/dicomweb/studies"), &[]).status,
        200,
        "viewers are let in by the same login"
    );
    let operations = text(&radiologist.ask("GET", &format!("{base}/ui/operations"), &[]));
    assert!(operations.contains("client_secret_file") && !operations.contains(SECRET), "{operations}");

    // Who is logged in at the provider still is not asked who he is; then out, here and there.
    let mut second = radiologist.clone();
    let form = attribute(&radiologist.ask("GET", &format!("{base}/ui/"), &[]), "name=\"form\" value=\"");
    let out = radiologist.ask("POST", &format!("{base}/ui/logout"), &[("form", &form)]);
    assert!(out.status == 200 && text(&out).contains("You are logged out of this bridge"), "{}", text(&out));
    assert!(!radiologist.is_logged_in(&base) && !second.is_logged_in(&base));
    let (url, page) = radiologist.log_in(&format!("{base}/ui/login/issuer"), "porter-2");
    assert!(url == format!("{base}/ui/") && text(&page).contains("R\u{f6}ntgen"), "{url}: {}", text(&page));
    let away = attribute(&out, "class=\"btn primary\" href=\"");
    assert!(away.starts_with(&format!("{}/session/end?client_id=pacs&", provider.url)), "{away}");
    let (url, page) = radiologist.go(&away);
    assert!(page.status == 200 && url.starts_with(&provider.url), "{}", text(&page));
    let xsrf = attribute(&page, "name=\"xsrf\" value=\"");
    let action = attribute(&page, "action=\"");
    let (url, _) = radiologist.submit_until(&action, &[("xsrf", &xsrf), ("logout", "yes")], "");
    assert!(url.starts_with(&format!("{base}/ui/login")), "back from there: {url}");
    let (url, _) = radiologist.go(&format!("{base}/ui/login/issuer"));
    assert!(url.contains("/interaction/"), "asked who he is again: {url}");

    // Somebody in no group that counts is told so.
    let mut porter = Browser::default();
    let (url, page) = porter.log_in(&format!("{base}/ui/login/issuer"), "porter-2");
    assert!(url.starts_with(&format!("{base}/ui/login/callback?")) && page.status == 403, "{url}");
    assert!(text(&page).contains("knows you, but nothing that it says of you lets you in here"), "{}", text(&page));
    assert!(!porter.is_logged_in(&base));
    // Somebody who changes his mind.
    let mut shy = Browser::default();
    let (_, page) = shy.go(&format!("{base}/ui/login/issuer"));
    let abort = text(&page)
        .split("href=\"")
        .find(|part| part.contains("/abort"))
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    let (_, page) = shy.go(&abort);
    assert!(
        page.status == 401 && text(&page).contains("did not log you in: it was cancelled there"),
        "{}",
        text(&page)
    );

    // A patient whose account the provider knows sees his own study, and no other.
    let mut patient = Browser::default();
    let (url, page) = patient.log_in(&format!("{base}/ui/login/issuer"), "patient-3");
    assert_eq!((url, page.status), (format!("{base}/ui/"), 200));
    wait_for("the patient to see the study", || {
        text(&patient.clone().ask("GET", &format!("{base}/ui/"), &[])).matches("data-study=").count() == 1
    });
    assert_eq!([1, 2].map(|number| patient.ask("GET", &study(number), &[]).status), [404, 200]);
    assert_eq!(patient.ask("GET", &format!("{base}/ui/consent"), &[]).status, 200);
    assert_eq!(patient.ask("GET", &format!("{base}/ui/operations"), &[]).status, 403);

    // All of it is in the trail, by the provider's word for each, and by no name.
    let trail = bridge.json(&["audit", "list"]).to_string();
    for part in ["oidc=radiologist-1", "oidc=patient-3", "oidc=porter-2", "110122", "110123", "/login/callback"] {
        assert!(trail.contains(part), "no {part} in {trail}");
    }
    assert!(!trail.contains("Röntgen") && !trail.contains("Porter"), "{trail}");
    let log = bridge.log();
    assert!(!log.contains("radiologist-1") && !log.contains(SECRET), "{log}");
    // Logins by tokens go on as before.
    assert!(Person::with_token(&bridge, &["--as", "operator"]).page("/ui/").contains("data-study="));

    // A public client, whose ID tokens are signed otherwise; and without UserInfo nobody has groups there.
    for (userinfo, status) in [("true", 200), ("false", 403)] {
        let oidc = format!(
            "[oidc]\nissuer = \"{}\"\nclient_id = \"pacs-public\"\nscopes = [\"openid\", \"groups\"]\nuserinfo = {userinfo}\n",
            provider.url
        );
        let bridge = Bridge::start(&format!("{SERVED}{oidc}{RULES}"));
        let begin = format!("http://{}/ui/login/issuer", address(&bridge));
        let (_, page) = Browser::default().log_in(&begin, "radiologist-1");
        assert_eq!(page.status, status, "{}", text(&page));
    }
}

#[test]
fn programs_call_with_access_tokens_of_somebody_elses_provider() {
    let account = PrivateKeySigner::random().address().to_string();
    let Some(provider) = Provider::start(&account) else { return };
    let bridge = site(&format!("issuer = \"{}\"\naudiences = [\"{AUDIENCE}\"]\n", provider.url), "");
    let client = |token: String| Client { to: address(&bridge), token: Some(token), from: None };
    let web = |client: &Client, path: &str| {
        let bearer = format!("Bearer {}", client.token.as_deref().unwrap());
        send(client.to, "GET", &format!("/dicomweb{path}"), &[("Authorization", &bearer), ("Accept", "*/*")], b"")
    };
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA"] {
        let program = client(provider.program_token("viewer-program", &format!("urn:pacs:{algorithm}")));
        let me = program.get("/me").json();
        assert_eq!((&me["principal"], &me["rights"]), (&json!("peer:VIEWER"), &json!(["find"])), "{algorithm}: {me}");
        assert_eq!(program.get("/studies").json()["studies"].as_array().unwrap().len(), 2, "{algorithm}");
        assert_eq!(web(&program, "/studies").json().as_array().unwrap().len(), 2, "{algorithm}");
        // It may find, and not get.
        assert_eq!(web(&program, &format!("/studies/{}", subject(1).study_uid)).status, 403);
        let other = client(provider.program_token("viewer-program", &format!("urn:other:{algorithm}")));
        assert_eq!(
            (other.get("/me").status, web(&other, "/studies").status),
            (401, 401),
            "for somebody else: {algorithm}"
        );
    }
    let nobody = client(provider.program_token("other-program", "urn:pacs:ES256"));
    assert_eq!((nobody.get("/me").status, web(&nobody, "/studies").status), (403, 403));

    // An app of a patient: an access token for this site lets it in, its ID token does not.
    let verifier = "0123456789012345678901234567890123456789012";
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    let redirect = "http://127.0.0.1:9/ui/login/callback";
    let ask = format!(
        "{}/auth?response_type=code&client_id=phone&redirect_uri={redirect}&scope=openid%20read&resource=urn:pacs:ES256&nonce=n&state=s\
         &code_challenge={challenge}&code_challenge_method=S256",
        provider.url
    );
    let (url, _) = Browser::default().log_in_until(&ask, "patient-3", redirect);
    let code = parameter(&url, "code").unwrap_or_else(|| panic!("{url}"));
    let body = format!(
        "grant_type=authorization_code&client_id=phone&code={code}&redirect_uri={redirect}&code_verifier={verifier}&resource=urn:pacs:ES256"
    );
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let tokens = send(provider.address(), "POST", "/token", &form, body.as_bytes()).json();
    let [access, id] = ["access_token", "id_token"].map(|name| client(tokens[name].as_str().unwrap().to_owned()));
    let me = access.get("/me").json();
    assert_eq!(me["principal"].as_str().unwrap().to_lowercase(), format!("account:{account}").to_lowercase());
    assert_eq!(access.get("/studies").json()["studies"], json!([]), "none is his yet");
    bridge.json(&["claim", &subject(1).study_uid, "--owner", &account]);
    wait_for("the patient's study", || access.get("/studies").json()["studies"].as_array().unwrap().len() == 1);
    assert_eq!(access.get(&format!("/studies/{}", subject(2).study_uid)).status, 404);
    assert_eq!(id.get("/me").status, 401);
    // Who reads is in the trail, and no login to the pages is there: nobody configured a client.
    assert!(bridge.json(&["audit", "list"]).to_string().contains("oidc=patient-3"));
    let page = Person::stranger(&bridge);
    assert!(!page.page("/ui/login").contains("/ui/login/issuer") && page.get("/ui/login/issuer").status == 404);

    // Where the client itself is an audience, an ID token is refused all the same.
    drop(bridge);
    let bridge = Bridge::start(&format!(
        "{SERVED}[oidc]\nissuer = \"{}\"\naudiences = [\"{AUDIENCE}\", \"phone\"]\n{RULES}",
        provider.url
    ));
    let again = |client: &Client| Client { to: address(&bridge), ..client.clone() }.get("/me").status;
    assert_eq!((again(&access), again(&id)), (200, 401));
}

#[test]
fn an_issuer_is_known_by_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca", false);
    let tls = |name: &str, host: &str| {
        let shown = authority.issue(name, &[host], Kind::Good);
        let chain = CertificateDer::pem_file_iter(&shown.certificate).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&shown.key).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Some(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()))
    };
    let (right, wrong) = (
        Hostile::start_as("localhost", tls("right", "localhost")),
        Hostile::start_as("localhost", tls("wrong", "login.example")),
    );
    let ca_file = format!("ca_file = {:?}\n", authority.certificate);
    for (issuer, more, status) in [(&right, ca_file.as_str(), 200), (&right, "", 503), (&wrong, &ca_file, 503)] {
        let bridge = bare(issuer, more);
        assert_eq!(Asker::new(&bridge).status(&issuer.key.sign(&said(issuer))), status, "{more}: {}", bridge.log());
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bridge.toml");
    let toml = "[http]\nbind = \"127.0.0.1:0\"\n[oidc]\nissuer = \"http://login.example\"\nclient_id = \"pacs\"\nclient_secret_file = \"/nowhere/secret\"\n\
                ca_file = \"/nowhere/ca.pem\"\nclient_secrets = \"x\"\n[[oidc.principal]]\nclaim = \"groups\"\nvalue = \"x\"\nas = \"root\"\n";
    std::fs::write(&file, toml).unwrap();
    let checked = Command::new(tests::binary()).arg("--config").arg(&file).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(!checked.status.success() && said.contains("oidc.issuer: expected the issuer's https:// URL"), "{said}");
    assert!(
        said.contains("oidc.client_secrets: unknown key; known here: ") && said.contains("client_secret_file"),
        "{said}"
    );
    let fixed = toml.replace("http://login", "https://login").replace("client_secrets = \"x\"\n", "");
    let more = "[[oidc.principal]]\nclaim = \"groups\"\nvalue = \"y\"\nas = \"peer:NOBODY\"\nrights = [\"all\"]\n";
    std::fs::write(&file, format!("{fixed}{more}")).unwrap();
    let checked = Command::new(tests::binary()).arg("--config").arg(&file).arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    for part in [
        "oidc.client_secret_file",
        "oidc.ca_file",
        "oidc.principal[1].as: expected \"operator\"",
        "oidc.principal[2].as: no [[peer]] has ae_title = \"NOBODY\"",
        "oidc.principal[2].rights: expected some of",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    // Without an issuer there is nothing of it.
    let bridge = Bridge::start(SERVED);
    let stranger = Person::stranger(&bridge);
    assert!(!stranger.page("/ui/login").contains("/ui/login/issuer"));
    assert_eq!(
        ["/ui/login/issuer", "/ui/login/callback?code=a&state=b"].map(|path| stranger.get(path).status),
        [404; 2]
    );
    let jwt = Client { to: address(&bridge), token: Some(Key::new("k").sign(&json!({ "sub": "x" }))), from: None };
    assert_eq!(jwt.get("/me").status, 401);
}

/// The same in Chromium, which follows the rules that a browser has for cookies and forms, without scripts.
#[test]
fn a_real_browser_comes_back_logged_in() {
    let tools = browser_tools();
    let account = PrivateKeySigner::random().address().to_string();
    let has_driver = tools.join("browser/node_modules/playwright-core/package.json").is_file();
    if !(have("chromium") && (has_driver || tests::skip("playwright-core (.tools/browser)"))) {
        return;
    }
    let Some(provider) = Provider::start(&account) else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), SECRET).unwrap();
    let oidc = format!(
        "issuer = \"{}\"\nname = \"Hospital\"\nclient_id = \"pacs\"\nclient_secret_file = {:?}\nscopes = [\"openid\", \"profile\", \"groups\"]\nuserinfo = true\n",
        provider.url,
        secret.path()
    );
    let bridge = site(&oidc, "");
    let said = Command::new("node")
        .arg(here("browser/login.mjs"))
        .arg(base(&bridge))
        .arg("radiologist-1")
        .env("TOOLS", &tools)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&said.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&said.stderr)));
    assert_eq!(
        report,
        json!({ "asked": true, "landed": "/ui/ledger", "left": true, "back": "/ui/login", "wrong": [] }),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
}
