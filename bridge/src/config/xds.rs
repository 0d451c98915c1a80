//! `[xds]`: signed ITI-43 retrieval.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use config::{Value, ValueKind};

use super::reader::{Section, flag, list, number, one_of, text};
use super::{Mistake, TlsFiles, address, milliseconds, optional_path, to_usize};

/// `[xds]`: studies for whoever may have them and speaks ITI-43.
#[derive(Debug, Clone, PartialEq)]
pub struct Xds {
    /// Serve it.
    pub enabled: bool,
    /// Address and port of its own; without one it is served where study keys are handed out (`exchange.bind`).
    pub bind: Option<SocketAddr>,
    /// Path of the URL.
    pub path: String,
    /// Values of `wsa:To` that are accepted besides the URL that the ledger names.
    pub public_urls: Vec<String>,
    /// The files of its certificate chain and key (PEM); without them it answers with the key that is stated on the ledger.
    pub tls: Option<TlsFiles>,
    /// Whether clients show a certificate.
    pub client_certificate: ClientCertificate,
    /// Authorities that client certificates must be of (PEM).
    pub client_ca: Option<PathBuf>,
    /// Every fault with status 500.
    pub always_500: bool,
    /// Take requests without MTOM.
    pub accept_simple_soap: bool,
    /// How long ago the ledger may have been known last.
    pub max_head_age: Duration,
    /// Connections served at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Answers with documents at once; further requests are told that the repository is busy.
    pub retrieves_max: usize,
    /// Longest wait for a whole request.
    pub request_timeout: Duration,
}

/// Whether a client of the TLS connection must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// None is asked for.
    None,
    /// One that is shown must be good.
    Optional,
    /// One must be shown.
    Required,
}

pub(super) fn read_xds(value: Option<Value>, exchange_bound: bool, mistakes: &mut Vec<Mistake>) -> Xds {
    let kinds = [
        ("none", ClientCertificate::None),
        ("optional", ClientCertificate::Optional),
        ("required", ClientCertificate::Required),
    ];
    let mut s = Section::open("xds".into(), value, mistakes);
    let certificate = s.take("tls_certificate_file", None, optional_path);
    let key = s.take("tls_key_file", None, optional_path);
    if certificate.is_some() != key.is_some() {
        let missing = if key.is_none() { "tls_key_file" } else { "tls_certificate_file" };
        s.mistake(missing, "missing; certificate and key are of no use without each other");
    }
    let xds = Xds {
        enabled: s.take("enabled", false, flag),
        bind: s.take("bind", None, |v| match text(v)?.as_str() {
            "" => Ok(None),
            _ => address(v).map(Some),
        }),
        path: s.take("path", "/iti43".to_owned(), path),
        public_urls: s.take("public_urls", Vec::new(), list(https_url)),
        tls: certificate.zip(key).map(|(certificate, key)| TlsFiles { certificate, key }),
        client_certificate: s.take("client_certificate", ClientCertificate::None, one_of(&kinds)),
        client_ca: s.take("client_ca_file", None, optional_path),
        always_500: s.take("fault_status", false, one_of(&[("soap12", false), ("always500", true)])),
        accept_simple_soap: s.take("accept_simple_soap", false, flag),
        max_head_age: Duration::from_secs(s.take("max_head_age_s", 60, number(1, 3600))),
        connections_max: s.take("connections_max", 64, |v| number(1, 65_536)(v).map(to_usize)),
        retrieves_max: s.take("retrieves_max", 8, |v| number(1, 1024)(v).map(to_usize)),
        request_timeout: s.take("request_timeout_ms", Duration::from_secs(15), milliseconds),
    };
    check(&mut s, &xds, exchange_bound);
    s.end();
    xds
}

fn check(s: &mut Section<'_>, xds: &Xds, exchange_bound: bool) {
    if xds.enabled && xds.bind.is_none() && !exchange_bound {
        s.mistake("bind", "missing; without one, ITI-43 is served at exchange.bind, which is empty too");
    }
    let shows = xds.client_certificate != ClientCertificate::None;
    if shows != xds.client_ca.is_some() {
        s.mistake("client_ca_file", "goes with client_certificate = \"optional\" or \"required\", and only with it");
    }
    if xds.bind.is_none() && (xds.tls.is_some() || shows) {
        let what = "missing; where study keys are handed out too, TLS is that of the key on the ledger and no client has a certificate";
        s.mistake("bind", what);
    }
}

fn path(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    let valid =
        found.len() > 1 && found.starts_with('/') && !found.starts_with("/exchange/") && found.chars().all(plain);
    if valid { Ok(found) } else { Err(format!("expected a path such as \"/iti43\", found \"{found}\"")) }
}

fn https_url(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let valid = found.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
    if valid { Ok(found) } else { Err(format!("expected an https:// URL, found \"{found}\"")) }
}
