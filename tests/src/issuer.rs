//! Issuers of logins: somebody else's OpenID provider, one that does whatever a test wants, and a browser that goes between them and a bridge.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::http::{Answer, send};
use crate::{browser_tools, have, here, skip};

/// The secret of the provider's clients.
pub const SECRET: &str = "a secret: with % and +";
/// For whom the provider's access tokens are.
pub const AUDIENCE: &str = "https://pacs.example/api";

/// A provider made by others (tests/node/issuer.mjs).
pub struct Provider {
    child: Child,
    /// It ends when nobody listens any more.
    _said: BufReader<ChildStdout>,
    pub url: String,
}

impl Provider {
    /// Starts it; none when something is missing. Its patient has this account.
    pub fn start(account: &str) -> Option<Self> {
        let is_there = browser_tools().join("node/node_modules/oidc-provider/package.json").is_file();
        if !(have("node") && (is_there || skip("oidc-provider (.tools/node)"))) {
            return None;
        }
        let mut child = Command::new("node")
            .arg(here("node/issuer.mjs"))
            .env("TOOLS", browser_tools())
            .env("ACCOUNT", account)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "the provider did not get ready: {url:?}");
        Some(Self { child, _said: said, url: url.trim().to_owned() })
    }

    /// An access token for a program, signed by an algorithm, for a resource `urn:NAME:ALG`.
    pub fn program_token(&self, client: &str, resource: &str) -> String {
        let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", escape(client), escape(SECRET)));
        let body = format!("grant_type=client_credentials&resource={}", escape(resource));
        let headers =
            [("Authorization", format!("Basic {basic}")), ("Content-Type", "application/x-www-form-urlencoded".into())];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = send(self.address(), "POST", "/token", &headers, body.as_bytes()).json();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    pub fn address(&self) -> SocketAddr {
        split(&self.url).0
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A browser without scripts that goes where it is led. Like others it keeps cookies by host, whatever the port.
#[derive(Debug, Clone, Default)]
pub struct Browser {
    jar: BTreeMap<String, String>,
    /// Where it was led, the newest last.
    pub been: Vec<String>,
}

impl Browser {
    /// One request, without being led on.
    pub fn ask(&mut self, method: &str, url: &str, form: &[(&str, &str)]) -> Answer {
        let (to, path) = split(url);
        let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let body = form.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&");
        let cookies = self.cookie_line();
        let mut headers = vec![("Accept", "text/html, */*;q=0.8")];
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        if method == "POST" {
            headers.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        let answer = send(to, method, &path, &headers, body.as_bytes());
        for (_, set) in answer.headers.iter().filter(|(name, _)| name == "set-cookie") {
            let (name, value) = set.split(';').next().unwrap().split_once('=').unwrap();
            if value.is_empty() || set.contains("Max-Age=0") {
                self.jar.remove(name);
            } else {
                self.jar.insert(name.to_owned(), value.to_owned());
            }
        }
        self.been.push(url.to_owned());
        answer
    }

    /// Goes to a page and on from there, by redirects and by pages that lead on themselves, as far as an address that begins with `end`, which is not asked.
    pub fn go_until(&mut self, url: &str, end: &str) -> (String, Option<Answer>) {
        let (mut url, mut answer) = (url.to_owned(), None);
        for _ in 0..20 {
            if !end.is_empty() && url.starts_with(end) {
                return (url, answer);
            }
            let came = self.ask("GET", &url, &[]);
            match led_on(&url, &came) {
                Some(next) => url = next,
                None => return (url, Some(came)),
            }
            answer = Some(came);
        }
        panic!("led on for ever: {:?}", self.been);
    }

    pub fn go(&mut self, url: &str) -> (String, Answer) {
        let (url, answer) = self.go_until(url, "");
        (url, answer.unwrap())
    }

    /// Sends a form and goes on from there, as far as an address that begins with `end`.
    pub fn submit_until(&mut self, url: &str, form: &[(&str, &str)], end: &str) -> (String, Option<Answer>) {
        let answer = self.ask("POST", url, form);
        match led_on(url, &answer) {
            Some(next) => self.go_until(&next, end),
            None => (url.to_owned(), Some(answer)),
        }
    }

    /// Logs in by the provider's forms, beginning at an address of a bridge, and stops before an address that begins with `end`.
    pub fn log_in_until(&mut self, begin: &str, login: &str, end: &str) -> (String, Option<Answer>) {
        let (mut url, mut answer) = self.go_until(begin, end);
        for _ in 0..3 {
            let Some(page) = answer.as_ref().filter(|_| url.contains("/interaction/")) else { break };
            let action = attribute(page, "action=\"");
            let prompt = attribute(page, "name=\"prompt\" value=\"");
            (url, answer) =
                self.submit_until(&action, &[("prompt", &prompt), ("login", login), ("password", "x")], end);
        }
        (url, answer)
    }

    pub fn log_in(&mut self, begin: &str, login: &str) -> (String, Answer) {
        let (url, answer) = self.log_in_until(begin, login, "");
        (url, answer.unwrap())
    }

    /// Its cookies, as it sends them.
    pub fn cookie_line(&self) -> String {
        self.jar.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// The names of its cookies that have this in them.
    pub fn cookies(&self, part: &str) -> Vec<String> {
        self.jar.keys().filter(|name| name.contains(part)).cloned().collect()
    }

    /// Whether somebody is logged in to a bridge.
    pub fn is_logged_in(&mut self, base: &str) -> bool {
        self.ask("GET", &format!("{base}/ui/"), &[]).status != 303
    }
}

/// What stands behind a text in a page, up to the next quote.
pub fn attribute(page: &Answer, before: &str) -> String {
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let found = page.split(before).nth(1).unwrap_or_else(|| panic!("no {before} in {page}")).split('"').next().unwrap();
    found.replace("&amp;", "&")
}

fn led_on(url: &str, answer: &Answer) -> Option<String> {
    let by_page = || answer.header("refresh").map(|refresh| refresh.split_once("url=").unwrap().1);
    let place = if (300..400).contains(&answer.status) { answer.header("location") } else { by_page() }?;
    if place.starts_with("http://") {
        return Some(place.to_owned());
    }
    assert!(place.starts_with('/') && !place.starts_with("//"), "{place}");
    Some(format!("http://{}{place}", split(url).0))
}

/// Host and port, and the rest of an address.
fn split(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url}"));
    let at = rest.find('/').unwrap_or(rest.len());
    let path = if at == rest.len() { "/" } else { &rest[at..] };
    (rest[..at].parse().unwrap(), path.to_owned())
}

/// A parameter in an address.
pub fn parameter(url: &str, name: &str) -> Option<String> {
    let pairs = url.split_once('?')?.1.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.filter(|(found, _)| *found == name).map(|(_, value)| value).next()?;
    let mut bytes = value.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(String::from_utf8(plain).unwrap())
}

/// A key that an issuer signs with (ES256).
#[derive(Clone)]
pub struct Key {
    pub id: String,
    key: SigningKey,
}

impl Key {
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), key: SigningKey::random(&mut rand::rngs::OsRng) }
    }

    pub fn public(&self) -> Value {
        let point = self.key.verifying_key().to_encoded_point(false);
        let [x, y] = [point.x(), point.y()].map(|one| URL_SAFE_NO_PAD.encode(one.unwrap()));
        json!({ "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "x": x, "y": y })
    }

    /// The bytes that somebody may take for a shared secret.
    pub fn public_bytes(&self) -> Vec<u8> {
        self.key.verifying_key().to_encoded_point(false).as_bytes().to_vec()
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }), claims)
    }

    pub fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature: Signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }
}

/// The two parts of a token that are signed.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// How something is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    Json(u16, String),
    Redirect(String),
    /// Says nothing for so long, and ends.
    Slow(Duration),
    /// Hangs up.
    Away,
}

/// What an issuer does at the moment.
pub struct Script {
    pub discovery: Reply,
    pub keys: Reply,
    pub token: Reply,
    /// Method, path and body of what it was asked, the newest last.
    pub asked: Vec<String>,
}

/// An issuer that does what a test wants.
pub struct Hostile {
    pub url: String,
    pub key: Key,
    script: Arc<Mutex<Script>>,
}

impl Hostile {
    pub fn start() -> Self {
        Self::start_as("127.0.0.1", None)
    }

    /// Under a host name of this machine, with TLS.
    pub fn start_as(host: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let key = Key::new("k1");
        let script = Arc::new(Mutex::new(Script {
            discovery: Reply::Json(200, discovery(&url).to_string()),
            keys: Reply::Json(200, json!({ "keys": [key.public()] }).to_string()),
            token: Reply::Json(400, json!({ "error": "invalid_grant" }).to_string()),
            asked: Vec::new(),
        }));
        let shared = script.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => answer(stream, &shared),
                    Some(tls) => answer(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream), &shared),
                });
            }
        });
        Self { url, key, script }
    }

    /// Changes what it does.
    pub fn now(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// How often it was asked for something that has this in it.
    pub fn asked(&self, part: &str) -> usize {
        self.script.lock().unwrap().asked.iter().filter(|asked| asked.contains(part)).count()
    }

    pub fn last_asked(&self, part: &str) -> String {
        self.script.lock().unwrap().asked.iter().rfind(|asked| asked.contains(part)).cloned().unwrap_or_default()
    }
}

/// The discovery document of an issuer at an address.
pub fn discovery(url: &str) -> Value {
    json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize?tenant=1"),
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    })
}

fn answer(stream: impl Read + Write, script: &Mutex<Script>) {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    let _ = reader.read_line(&mut line);
    let asked: Vec<String> = line.split(' ').take(2).map(str::to_owned).collect();
    let mut head = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let reply = {
        let mut script = script.lock().unwrap();
        script.asked.push(format!("{} {}", asked.join(" "), String::from_utf8_lossy(&body)));
        match asked.get(1).map(String::as_str) {
            Some("/.well-known/openid-configuration") => script.discovery.clone(),
            Some("/keys") => script.keys.clone(),
            Some("/token") => script.token.clone(),
            _ => Reply::Json(404, "{}".to_owned()),
        }
    };
    let stream = reader.get_mut();
    let written = match reply {
        Reply::Json(status, text) => {
            let length = text.len();
            stream.write_all(
                format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}"
                )
                .as_bytes(),
            )
        }
        Reply::Redirect(place) => {
            stream.write_all(format!("HTTP/1.1 302 X\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n").as_bytes())
        }
        Reply::Slow(time) => {
            std::thread::sleep(time);
            Ok(())
        }
        Reply::Away => Ok(()),
    };
    // The other side may have gone.
    let _ = written.and_then(|()| stream.flush());
}
