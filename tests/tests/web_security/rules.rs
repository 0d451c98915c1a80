//! What browsers are told with every answer.

use std::io::{Read as _, Write as _};
use std::process::Command;

use tests::http::{Answer, PREFIX, address};
use tests::{Bridge, have};

use crate::world::World;

/// Judges the headers of an answer; `path` is that of the request.
pub(crate) fn judge(what: &str, path: &str, answer: &Answer) {
    let is = |name: &str| answer.header(name).unwrap_or_default();
    // What is no request of HTTP is answered with nothing, and the connection ends.
    let is_nothing = answer.body.is_empty() && is("connection") == "close" && answer.headers.len() == 3;
    if matches!(answer.status, 400 | 414 | 431) && is_nothing {
        return;
    }
    let once = |name: &str| answer.headers.iter().filter(|(known, _)| known == name).count() == 1;
    for name in [
        "x-content-type-options",
        "content-security-policy",
        "referrer-policy",
        "x-frame-options",
        "cross-origin-resource-policy",
        "cache-control",
    ] {
        assert!(once(name), "{what}: {} has not one {name}: {answer:?}", answer.status);
    }
    assert_eq!(
        (is("x-content-type-options"), is("x-frame-options"), is("cross-origin-resource-policy")),
        ("nosniff", "DENY", "same-origin"),
        "{what}"
    );
    assert!(matches!(is("referrer-policy"), "no-referrer" | "same-origin"), "{what}: {}", is("referrer-policy"));
    let resource = path.split('?').next().unwrap();
    let of = |prefix: &str| resource.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_ours = of("/ui") || of("/dicomweb") || of(PREFIX);
    policy(what, is("content-security-policy"), is_ours);
    let is_file = of("/ui/assets") && answer.status < 400;
    let kept = if is_file { "public, max-age=31536000, immutable" } else { "no-store" };
    assert!(
        is("cache-control") == kept || !is_ours && is("cache-control") == "no-cache",
        "{what}: {}",
        is("cache-control")
    );
    for (name, value) in &answer.headers {
        let tells =
            matches!(name.as_str(), "server" | "x-powered-by" | "via") || value.contains(env!("CARGO_PKG_VERSION"));
        assert!(!tells || value.len() > 40, "{what} tells what it is: {name}: {value}");
        assert!(!name.starts_with("access-control-"), "{what}: {name}: no other origin is configured");
    }
    if let Some(cookie) = answer.header("set-cookie") {
        let has = |rule: &str| cookie.split("; ").any(|part| part == rule);
        let all = ["HttpOnly", "SameSite=Strict", "Path=/", "Secure"];
        assert!(all.iter().all(|rule| has(rule)) && cookie.starts_with("__Host-"), "{what}: {cookie}");
    }
    if answer.status >= 400 && is_ours && !answer.body.is_empty() {
        let kind = is("content-type");
        let is_said = if of("/ui") { kind.starts_with("text/html") } else { kind == "application/problem+json" };
        // The outcome of storing objects, and what a site waits for, have forms of their own.
        let has_own = kind == "application/dicom+json" || resource.ends_with("/health/ready");
        assert!(is_said || has_own, "{what}: {kind}");
    }
}

fn policy(what: &str, policy: &str, is_ours: bool) {
    assert!(policy.contains("frame-ancestors 'none'") && policy.starts_with("default-src "), "{what}: {policy}");
    let scripts = policy.split("; ").find_map(|rule| rule.strip_prefix("script-src ")).unwrap_or_default();
    assert!(
        !scripts.contains("'unsafe-inline'") && !scripts.contains('*') && !policy.contains("http"),
        "{what}: {policy}"
    );
    if is_ours {
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{what}: {policy}");
        assert!(matches!(scripts, "" | "'self'"), "{what}: {policy}");
    }
}

/// Where what is asked decides what comes back: who has it already, other origins, what is wrong.
pub(crate) fn every_answer_has_its_rules(world: &World) {
    let bearer = ("Authorization".to_owned(), format!("Bearer {}", world.operator.token.as_ref().unwrap()));
    let study = &world.one.study;
    for path in [
        format!("{PREFIX}/studies/{study}"),
        format!("/dicomweb/studies/{study}/metadata"),
        format!("/dicomweb/studies/{study}/thumbnail"),
    ] {
        let whole = world.send("GET", &path, std::slice::from_ref(&bearer), "");
        let tag = ("If-None-Match".to_owned(), whole.header("etag").unwrap().to_owned());
        assert_eq!(world.send("GET", &path, &[bearer.clone(), tag], "").status, 304, "{path}");
        for origin in ["https://evil.example", "null", "http://127.0.0.1"] {
            let origin = ("Origin".to_owned(), origin.to_owned());
            // `judge` says whether it is told that it may.
            assert_eq!(world.send("GET", &path, &[bearer.clone(), origin.clone()], "").status, 200);
            let asks = ("Access-Control-Request-Method".to_owned(), "GET".to_owned());
            assert_eq!(world.send("OPTIONS", &path, &[origin, asks], "").status, 405);
        }
    }
    for (path, status) in [
        ("/", 404),
        ("/index.html", 200),
        ("/assets/app.js", 200),
        ("/app-config.js", 200),
        ("/nothing", 404),
        ("/api/v1/studies?limit=x", 400),
        ("/dicomweb/studies?limit=x", 400),
        ("/dicomweb/studies?%ff=%ff", 204),
        ("/api/v1/studies/%ff", 404),
        ("/dicomweb/studies/%ff", 404),
        ("/ui/studies/%ff", 404),
        ("/ui/studies/1/pictures/%ff", 404),
        ("/ui/assets/%ff", 404),
        ("/ui/login?next=%ff", 200),
        ("/ui/login?next=a&next=b", 200),
    ] {
        let answer = world.by_operator("GET", path, "");
        let is_expected = answer.status == status || answer.status == 400 || answer.status == 303;
        assert!(is_expected, "{path}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
}

/// Strict-Transport-Security, on whatever comes over TLS, 503 among it: this site's ledger is away.
pub(crate) fn over_tls_browsers_are_told_to_stay_there() {
    if !have("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shown = tests::certificates::self_signed(dir.path(), "bridge", &["127.0.0.1"]);
    let toml = format!(
        "[publish]\nenabled = false\n[ledger]\nkind = \"rpc\"\nurl = \"http://127.0.0.1:9\"\n\
         admin = \"0x7777777777777777777777777777777777777777\"\ndeploy = false\n\
         [http]\nbind = \"127.0.0.1:0\"\ntls_certificate_file = {:?}\ntls_key_file = {:?}\n",
        shown.certificate, shown.key
    );
    let bridge = Bridge::start(&toml);
    for (path, status) in
        [("/health/live", 200), ("/health/ready", 503), ("/studies", 401), ("/nowhere", 404), ("/studies/%ff", 401)]
    {
        let path = format!("{PREFIX}{path}");
        let answer = over_tls(&bridge, &path);
        judge(&path, &path, &answer);
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.header("strict-transport-security").unwrap().contains("max-age=31536000"), "{answer:?}");
    }
    // Nothing is said in the clear, which somebody could have changed.
    let mut plain = tests::http::connect(address(&bridge));
    plain.write_all(b"GET /ui/login HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
}

fn over_tls(bridge: &Bridge, path: &str) -> Answer {
    let to = address(bridge).to_string();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &to])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    client.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
    let said = client.wait_with_output().unwrap().stdout;
    crate::wire::answers(&said).remove(0)
}
