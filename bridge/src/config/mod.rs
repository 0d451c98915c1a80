//! Configuration: a TOML file, overridden by `PACS_BRIDGE__SECTION__KEY`, checked as a whole before anything starts.
//!
//! Every mistake is reported at once; an unknown key is a mistake. `conf/bridge.toml` documents every key with its
//! default. This module reads the file it is told to read and the variables it is handed; it opens nothing else and
//! knows nothing of what the values are used for.

mod as_read;
mod audit;
mod custody;
mod derive;
mod dicomweb;
mod ipfs;
mod oidc;
mod reader;
mod web;
mod xds;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat, Value, ValueKind};
use contracts::messages::ENVELOPE_S_MAX;
use dicom_scp::{AeTitle, Uid};

pub use as_read::{AsRead, Origin, Setting, Table};
pub use audit::{Audit, AuditRepository, AuditTransport};
pub use contracts::PieceMode;
pub use custody::{Custody, CustodyRule, Selection};
pub use derive::{Derive, DeriveOwner, Group};
pub use dicomweb::{Anonymous, Dicomweb};
pub use ipfs::Ipfs;
pub use oidc::{Oidc, OidcClient, OidcRule};
pub use reader::Mistake;
use reader::{Section, describe, flag, list, number, one_of, parsed, text};
pub use web::Web;
pub use xds::{ClientCertificate, Xds};

/// Everything the daemon was told, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[site]`
    pub site: Site,
    /// `[dicom]`
    pub dicom: Dicom,
    /// `[[peer]]`, in file order.
    pub peers: Vec<Peer>,
    /// `[archive]`
    pub archive: Archive,
    /// `[publish]`
    pub publish: Publish,
    /// `[ledger]`
    pub ledger: Ledger,
    /// `[exchange]`
    pub exchange: Exchange,
    /// `[http]`
    pub http: Http,
    /// `[xds]`
    pub xds: Xds,
    /// `[audit]`
    pub audit: Audit,
    /// `[ipfs]`, if there is a node.
    pub ipfs: Option<Ipfs>,
    /// `[keys]`
    pub keys: Keys,
    /// `[log]`
    pub log: Log,
    /// `[[derive]]`, in file order.
    pub derive: Vec<Derive>,
    /// `[[group]]`, in file order.
    pub groups: Vec<Group>,
    /// All of it as it was written, without secrets.
    pub as_read: AsRead,
}

/// `[site]`: who and where this bridge is.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Directory of everything the bridge keeps.
    pub data_dir: PathBuf,
    /// URL that Define Source publishes for image transfer; empty until the site serves one.
    pub public_url: String,
}

/// `[dicom]`: the DICOM node.
#[derive(Debug, Clone, PartialEq)]
pub struct Dicom {
    /// Our AE title.
    pub ae_title: AeTitle,
    /// Address and port to listen on in the clear, if at all.
    pub bind: Option<SocketAddr>,
    /// `[dicom.tls]`
    pub tls: DicomTls,
    /// Refuse associations that call another AE title.
    pub check_called_ae: bool,
    /// Associations served at once; further ones are refused as transient, local limit exceeded.
    pub associations_max: usize,
    /// Largest PDU we accept, in bytes.
    pub pdu_bytes_max: u32,
    /// Longest wait for the association request (ARTIM).
    pub artim_timeout: Duration,
    /// Longest silence between two requests of an association.
    pub idle_timeout: Duration,
    /// Longest silence inside a message, and for a peer's response.
    pub dimse_timeout: Duration,
    /// What a caller may do that no `[[peer]]` names.
    pub unknown_peers: Vec<Operation>,
    /// Private storage SOP classes to accept besides those of the standard.
    pub private_storage_classes: Vec<Uid>,
}

/// `[dicom.tls]`: DICOM over TLS (PS3.15 B.12).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DicomTls {
    /// Address and port to listen on, if at all.
    pub bind: Option<SocketAddr>,
    /// What we show to callers, and to peers that want to see something.
    pub files: Option<TlsFiles>,
    /// Whether callers have to show a certificate.
    pub client_certificates: ClientCertificates,
    /// Certificates of the authorities whose certificates callers may show, PEM.
    pub client_ca_files: Vec<PathBuf>,
}

/// Whether callers have to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    None,
    /// They may; one that is shown must be good.
    Optional,
    /// They must.
    Required,
}

/// A DIMSE service, as permissions name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// C-ECHO
    Echo,
    /// C-STORE
    Store,
    /// C-FIND
    Find,
    /// C-MOVE
    Move,
    /// C-GET
    Get,
}

/// `[[peer]]`: a DICOM application entity we know.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its AE title, unique among peers.
    pub ae_title: AeTitle,
    /// Host name or address to send to, and the address it must call from when `check_host` is set.
    pub host: String,
    /// Port to send to; 0 for a peer that only calls.
    pub port: u16,
    /// Refuse the title from any other address than `host`.
    pub check_host: bool,
    /// What it may do.
    pub allow: Vec<Operation>,
    /// SHA-256 of the certificates of which it shows one, when it calls and when it is called; empty: not bound by it.
    pub tls_certificate_sha256: Vec<[u8; 32]>,
    /// The name that its certificate bears when it calls.
    pub tls_subject: Option<String>,
    /// How to speak TLS when sending to it, if at all.
    pub tls: Option<PeerTls>,
}

impl Peer {
    /// Whether it is known by a certificate.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        !self.tls_certificate_sha256.is_empty() || self.tls_subject.is_some()
    }
}

/// `peer.tls` and what belongs to it: TLS towards a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTls {
    /// The name that its certificate must bear.
    pub server_name: String,
    /// Certificates of the authorities that may vouch for it, PEM.
    pub ca_files: Vec<PathBuf>,
    /// What we show to it when it asks.
    pub client: Option<TlsFiles>,
}

/// What to do with a second object of the same SOP Instance UID and other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// Refuse the new one with a status; the old one stays.
    Reject,
    /// The new one takes its place, here and in the next version on the ledger.
    Replace,
    /// As `Replace`, and the old file stays in the archive.
    KeepBoth,
}

/// `[archive]`: what is kept here.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    /// Policy for duplicates with other content.
    pub duplicates: Duplicates,
    /// Most bytes of objects kept; 0 for no limit.
    pub quota_bytes: u64,
    /// Refuse new objects while the file system has less than this free.
    pub free_bytes_min: u64,
    /// Size of the intake log; 0 for none.
    pub intake_log_bytes: u64,
}

/// The word for a piece mode in configuration and tables.
#[must_use]
pub fn piece_mode_name(mode: PieceMode) -> &'static str {
    match mode {
        PieceMode::Calldata => "calldata",
        PieceMode::Log => "log",
        PieceMode::Code => "code",
        PieceMode::Storage => "storage",
    }
}

/// Piece size in bytes when none is configured.
#[must_use]
pub fn piece_bytes_default(mode: PieceMode) -> u32 {
    match mode {
        PieceMode::Calldata | PieceMode::Log => 120_000,
        PieceMode::Code | PieceMode::Storage => 30_000,
    }
}

/// `[publish]`: how studies reach the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Publish at all; otherwise the bridge is an archive.
    pub enabled: bool,
    /// Quiet time after the last object before a study is published.
    pub settle: Duration,
    /// Where pieces are kept.
    pub piece_mode: PieceMode,
    /// Largest piece, in bytes.
    pub piece_bytes: u32,
    /// A preview of every instance, besides the one of each series.
    pub preview_each_instance: bool,
    /// Name studies on the ledger by the plain hash of the UID, as the papers do. Guessable.
    pub plain_study_hash: bool,
    /// Where objects are kept for other sites that no rule is about.
    pub custody: Custody,
    /// `[[custody]]`, in file order.
    pub custody_rules: Vec<CustodyRule>,
}

impl Publish {
    /// Where an object is kept for other sites: as the first rule says that takes it.
    #[must_use]
    pub fn custody_of(&self, modality: &str, calling_ae: &str, sop_class: &Uid) -> Custody {
        let rule = self.custody_rules.iter().find(|rule| rule.selection.takes(modality, calling_ae, sop_class));
        rule.map_or(self.custody, |rule| rule.keep)
    }

    /// Whether there are objects that others get from this site alone.
    #[must_use]
    pub fn keeps_at_source(&self) -> bool {
        self.keeps(|custody| custody == Custody::AtSource)
    }

    /// Whether there are objects whose custody is one of those.
    #[must_use]
    pub fn keeps(&self, one_of_those: impl Fn(Custody) -> bool) -> bool {
        let all = self.custody_rules.iter().map(|rule| rule.keep).chain([self.custody]);
        self.enabled && all.into_iter().any(one_of_those)
    }
}

/// `[ledger]`: the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    /// Embedded, or a node at `url`.
    pub kind: LedgerKind,
    /// JSON-RPC endpoint of a node (`kind = "rpc"`): the preferred one.
    pub url: String,
    /// Endpoints of other nodes of the same ledger, in order of preference, for when the first is not fit.
    pub fallback_urls: Vec<String>,
    /// Longest wait for an endpoint's answer.
    pub request_timeout: Duration,
    /// Age of the newest block from which an endpoint counts as standing still, if that is judged.
    pub head_age_max: Option<Duration>,
    /// Chain id that the node must have.
    pub chain_id: u64,
    /// Blocks on top of a transaction before it counts as final, counting its own.
    pub confirmations: u32,
    /// Fixed time between the embedded ledger's blocks; 0 seals as soon as something is ready.
    pub block_period: Option<Duration>,
    /// Address on which the embedded ledger speaks JSON-RPC over HTTP, if at all.
    pub rpc_bind: Option<SocketAddr>,
    /// Deploy the contracts where the ledger does not hold them.
    pub deploy: bool,
    /// Account that administers the consortium, by which its contracts are found; this site's own when none is named.
    pub admin: Option<[u8; 20]>,
    /// Who signs instead of the source key in the keystore.
    pub remote_signer: Option<RemoteSigner>,
}

/// `ledger.remote_signer_…`: a Web3Signer that holds the source key.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteSigner {
    /// Its base URL.
    pub url: String,
    /// The account whose key it holds.
    pub address: [u8; 20],
    /// File whose first line is a bearer token, if it wants one.
    pub token_file: Option<PathBuf>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// Kinds of ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerKind {
    /// A single-node chain inside the daemon.
    Embedded,
    /// A node reached by JSON-RPC.
    Rpc,
}

/// `[exchange]`: studies of other sites, and ours at theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Address and port on which study keys are handed out to sites that the owner let in, if at all.
    pub bind: Option<SocketAddr>,
    /// Longest wait for another bridge's answer.
    pub request_timeout: Duration,
    /// Fetch granted objects before anybody asks for them.
    pub fetch_ahead: bool,
    /// Ask for every study with an OpenPGP key of its own.
    pub key_per_study: bool,
    /// Hand keys out, and ask for them, over the ledger where sites cannot reach each other.
    pub envelopes: bool,
    /// How long what this site hands out over the ledger may be opened.
    pub envelope_valid: Duration,
}

/// `[http]`: the API for apps and pages.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Address and port on which it is served, if at all.
    pub bind: Option<SocketAddr>,
    /// The files of its certificate chain and key (PEM), if it speaks TLS itself.
    pub tls: Option<TlsFiles>,
    /// Somebody before us speaks TLS and names the caller.
    pub behind_proxy: bool,
    /// Origins whose pages may call it (CORS).
    pub allowed_origins: Vec<String>,
    /// Connections served at once; further ones are closed.
    pub connections_max: usize,
    /// Requests of one address a minute.
    pub requests_per_minute: u32,
    /// Longest body of a request, in bytes.
    pub body_bytes_max: usize,
    /// Longest wait for the head of a request, for its body, and for a TLS handshake.
    pub receive_timeout: Duration,
    /// `[dicomweb]`, over the same port.
    pub dicomweb: Dicomweb,
    /// `[web]`, over the same port.
    pub web: Web,
    /// `[oidc]`, if there is an issuer whose logins and tokens are taken there.
    pub oidc: Option<Oidc>,
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM, our own first.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `[keys]`: the secrets.
#[derive(Clone, PartialEq)]
pub struct Keys {
    /// File whose first line is the password of the keystore.
    pub password_file: Option<PathBuf>,
    /// The password itself; for the environment, never for the file.
    pub password: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("password_file", &self.password_file).finish_non_exhaustive()
    }
}

/// `[log]`: what is written to standard error.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// A tracing filter, e.g. `info` or `info,dicom_scp=debug`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// Why a configuration could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or is not TOML.
    #[error("cannot read configuration")]
    Unreadable(#[source] config::ConfigError),
    /// The file was read; these keys are wrong.
    #[error("{} in the configuration:\n{}", plural(.0.len()), .0.iter().map(|m| format!("  {m}")).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
}

fn plural(n: usize) -> String {
    if n == 1 { "1 mistake".to_owned() } else { format!("{n} mistakes") }
}

impl Config {
    /// Reads a file (or only defaults) and overrides from `environment`, the process's variables as `main` sees them.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] for a file that is missing or not TOML, [`ConfigError::Mistakes`] with every wrong key.
    pub fn load(file: Option<&Path>, environment: HashMap<String, String>) -> Result<Self, ConfigError> {
        Self::load_examined(file, environment, |_| Vec::new())
    }

    /// As [`Config::load`], with the mistakes that `examine` finds, such as in the files that the configuration names. It gets
    /// defaults for keys that are wrong.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_examined(
        file: Option<&Path>,
        environment: HashMap<String, String>,
        examine: impl FnOnce(&Self) -> Vec<Mistake>,
    ) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            builder = builder.add_source(File::from(path).format(FileFormat::Toml).required(true));
        }
        Self::finish(builder, environment, examine)
    }

    /// Reads TOML text; for tests and for the programs that write their own configuration.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(toml: &str, environment: HashMap<String, String>) -> Result<Self, ConfigError> {
        let builder = config::Config::builder().add_source(File::from_str(toml, FileFormat::Toml));
        Self::finish(builder, environment, |_| Vec::new())
    }

    fn finish(
        builder: config::ConfigBuilder<config::builder::DefaultState>,
        environment: HashMap<String, String>,
        examine: impl FnOnce(&Self) -> Vec<Mistake>,
    ) -> Result<Self, ConfigError> {
        // Without the prefix filter every variable of the process would be a key; try_parsing stays off, since it
        // turns the AE title "0123" into 123.
        let ours = environment.into_iter().filter(|(name, _)| name.starts_with("PACS_BRIDGE__")).collect();
        let environment =
            Environment::with_prefix("PACS_BRIDGE").prefix_separator("__").separator("__").source(Some(ours));
        let tree = builder.add_source(environment).build().map_err(ConfigError::Unreadable)?;
        let mut mistakes = Vec::new();
        let as_read = AsRead::of(&tree.cache);
        let checked = Self { as_read, ..read(tree.cache, &mut mistakes) };
        mistakes.extend(examine(&checked));
        if mistakes.is_empty() { Ok(checked) } else { Err(ConfigError::Mistakes(mistakes)) }
    }
}

fn read(tree: Value, mistakes: &mut Vec<Mistake>) -> Config {
    let mut root = Section::open(String::new(), Some(tree), mistakes);
    let mut tables = [
        "site", "dicom", "peer", "archive", "publish", "ledger", "keys", "log", "exchange", "http", "xds", "audit",
        "ipfs", "dicomweb", "web", "oidc",
    ]
    .map(|t| root.take_value(t));
    let (rules, groups) = (root.take_value("derive"), root.take_value("group"));
    let custody = root.take_value("custody");
    root.end();
    let mut take = |i: usize| tables[i].take();
    let groups = derive::read_groups(groups, mistakes);
    let custody_rules = custody::read_custody(custody, mistakes);
    let publish = Publish { custody_rules, ..read_publish(take(4), mistakes) };
    let site = read_site(take(0), mistakes);
    let dicom = read_dicom(take(1), mistakes);
    let exchange = read_exchange(take(8), mistakes);
    let xds = xds::read_xds(take(10), exchange.bind.is_some(), mistakes);
    if publish.keeps_at_source() && (!xds.enabled || xds.bind.is_some()) {
        let what = "\"at-source\": other bridges fetch such objects where they get study keys; set exchange.bind and \
                    xds.enabled = true, and leave xds.bind empty";
        mistakes.push(Mistake { key: "publish.custody or [[custody]]".into(), what: what.into() });
    }
    let ipfs = ipfs::read_ipfs(take(12), mistakes);
    if publish.keeps(|custody| custody == Custody::Ipfs) && ipfs.is_none() {
        let what = "\"ipfs\": such objects are put into this site's IPFS node; set ipfs.api_url";
        mistakes.push(Mistake { key: "publish.custody or [[custody]]".into(), what: what.into() });
    }
    let config = Config {
        as_read: AsRead::default(),
        ipfs,
        derive: derive::read_derive(rules, &groups, publish.enabled, mistakes),
        groups,
        publish,
        site,
        peers: read_peers(take(2), &dicom.tls, mistakes),
        dicom,
        archive: read_archive(take(3), mistakes),
        ledger: read_ledger(take(5), mistakes),
        keys: read_keys(take(6), mistakes),
        log: read_log(take(7), mistakes),
        http: Http { oidc: oidc::read_oidc(take(15), mistakes), ..read_http(take(9), take(13), take(14), mistakes) },
        xds,
        audit: audit::read_audit(take(11), mistakes),
        exchange,
    };
    if let Some(Anonymous::Peer(title)) = &config.http.dicomweb.anonymous
        && !config.peers.iter().any(|peer| peer.ae_title == *title)
    {
        let what =
            format!("no [[peer]] has ae_title = \"{title}\", so nobody would see anything: add one with what it may");
        mistakes.push(Mistake { key: "dicomweb.anonymous".into(), what });
    }
    config
}

fn read_site(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Site {
    let mut s = Section::open("site".into(), value, mistakes);
    let site = Site {
        data_dir: s.take("data_dir", PathBuf::from("data"), path),
        public_url: s.take("public_url", String::new(), url_or_empty),
    };
    s.end();
    site
}

fn read_dicom(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Dicom {
    let mut s = Section::open("dicom".into(), value, mistakes);
    let tls = s.take_value("tls");
    let mut dicom = Dicom {
        ae_title: s.take("ae_title", fixed("PACSBRIDGE"), ae_title),
        bind: s.take("bind", Some(fixed("127.0.0.1:11112")), optional_address),
        tls: DicomTls::default(),
        check_called_ae: s.take("check_called_ae", true, flag),
        associations_max: s.take("associations_max", 256, |v| number(1, 4096)(v).map(to_usize)),
        pdu_bytes_max: s.take("pdu_bytes_max", 131_072, |v| number(4096, 1_048_576)(v).map(to_u32)),
        artim_timeout: s.take("artim_timeout_ms", Duration::from_secs(30), milliseconds),
        idle_timeout: s.take("idle_timeout_ms", Duration::from_secs(600), milliseconds),
        dimse_timeout: s.take("dimse_timeout_ms", Duration::from_secs(60), milliseconds),
        unknown_peers: s.take("unknown_peers", vec![Operation::Echo, Operation::Store], operations),
        private_storage_classes: s.take("private_storage_classes", Vec::new(), list(parsed("a UID"))),
    };
    s.end();
    dicom.tls = read_dicom_tls(tls, mistakes);
    if dicom.bind.is_none() && dicom.tls.bind.is_none() {
        let what = "empty, and so is dicom.tls.bind; nobody could reach this node".to_owned();
        mistakes.push(Mistake { key: "dicom.bind".into(), what });
    }
    dicom
}

fn read_dicom_tls(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> DicomTls {
    let words = [
        ("none", ClientCertificates::None),
        ("optional", ClientCertificates::Optional),
        ("required", ClientCertificates::Required),
    ];
    let mut s = Section::open("dicom.tls".into(), value, mistakes);
    let tls = DicomTls {
        bind: s.take("bind", None, optional_address),
        files: read_tls_files(&mut s, "certificate_file", "key_file"),
        client_certificates: s.take("client_certificates", ClientCertificates::None, one_of(&words)),
        client_ca_files: s.take("client_ca_files", Vec::new(), list(path)),
    };
    let asks = tls.client_certificates != ClientCertificates::None;
    if tls.bind.is_some() && tls.files.is_none() {
        s.mistake("certificate_file", "missing; a TLS port needs certificate_file and key_file");
    }
    if asks && tls.client_ca_files.is_empty() {
        s.mistake("client_ca_files", "missing; they say whose certificates callers may show");
    }
    if asks && tls.bind.is_none() {
        s.mistake("bind", "missing; client_certificates is of no use without a TLS port");
    }
    if !asks && !tls.client_ca_files.is_empty() {
        s.mistake("client_certificates", "\"none\", so nobody is asked for what client_ca_files are for");
    }
    s.end();
    tls
}

/// A certificate and its key, or neither.
fn read_tls_files(s: &mut Section<'_>, certificate_key: &'static str, key_key: &'static str) -> Option<TlsFiles> {
    let certificate = s.take(certificate_key, None, optional_path);
    let key = s.take(key_key, None, optional_path);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
        (Some(_), None) => {
            s.mistake(key_key, format!("missing; {certificate_key} is of no use without it"));
            None
        }
        (None, Some(_)) => {
            s.mistake(certificate_key, format!("missing; {key_key} is of no use without it"));
            None
        }
        (None, None) => None,
    }
}

fn read_peers(value: Option<Value>, listener: &DicomTls, mistakes: &mut Vec<Mistake>) -> Vec<Peer> {
    let rows = match value.map(|v| v.kind) {
        None => Vec::new(),
        Some(ValueKind::Array(rows)) => rows,
        Some(_) => {
            let what = "expected a list of tables: write [[peer]] above each".to_owned();
            mistakes.push(Mistake { key: "peer".into(), what });
            Vec::new()
        }
    };
    let mut peers: Vec<Peer> = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        let mut s = Section::open(format!("peer[{}]", i + 1), Some(row), mistakes);
        if !s.has("ae_title") {
            s.mistake("ae_title", "missing; a peer is known by its AE title");
        }
        let peer = Peer {
            ae_title: s.take("ae_title", fixed("UNNAMED"), ae_title),
            host: s.take("host", String::new(), text),
            port: s.take("port", 0, |v| number(0, 65_535)(v).map(|n| u16::try_from(n).unwrap_or(0))),
            check_host: s.take("check_host", false, flag),
            allow: s.take("allow", Operation::ALL.to_vec(), operations),
            tls_certificate_sha256: s.take("tls_certificate_sha256", Vec::new(), list(sha256)),
            tls_subject: s.take("tls_subject", None, |v| text(v).map(|t| Some(t).filter(|t| !t.is_empty()))),
            tls: None,
        };
        let tls = read_peer_tls(&mut s, &peer, listener);
        let peer = Peer { tls, ..peer };
        if let Some((key, what)) = peer_binding_mistake(&peer, listener) {
            s.mistake(key, what);
        }
        if peer.port != 0 && peer.host.is_empty() {
            s.mistake("host", "missing; a peer with a port needs a host to send to");
        }
        if peer.check_host && peer.host != "localhost" && peer.host.parse::<std::net::IpAddr>().is_err() {
            s.mistake("host", "check_host needs an IP address here to compare the caller with");
        }
        if peers.iter().any(|other| other.ae_title == peer.ae_title) {
            s.mistake("ae_title", format!("\"{}\" is named twice", peer.ae_title));
        }
        s.end();
        peers.push(peer);
    }
    peers
}

/// A peer that is known by a certificate must be able to show it. A fingerprint may also be there for the calls to a peer that never
/// calls.
fn peer_binding_mistake(peer: &Peer, listener: &DicomTls) -> Option<(&'static str, &'static str)> {
    let key = if peer.tls_subject.is_some() { "tls_subject" } else { "tls_certificate_sha256" };
    let calls = peer.tls.is_none() || peer.tls_subject.is_some();
    match (listener.bind, listener.client_certificates) {
        _ if !peer.is_bound() => None,
        (None, _) if calls => Some((key, "without a TLS port this peer could never call; set dicom.tls.bind")),
        (Some(_), ClientCertificates::None) => {
            Some((key, "nobody is asked for a certificate; set dicom.tls.client_certificates"))
        }
        _ => None,
    }
}

/// TLS towards a peer, if it is to be spoken.
fn read_peer_tls(s: &mut Section<'_>, peer: &Peer, listener: &DicomTls) -> Option<PeerTls> {
    let is_on = s.take("tls", false, flag);
    let named = s.take("tls_server_name", String::new(), text);
    let ca_files = s.take("tls_ca_files", Vec::new(), list(path));
    let client = read_tls_files(s, "tls_client_certificate_file", "tls_client_key_file");
    if !is_on {
        if !named.is_empty() || !ca_files.is_empty() || client.is_some() {
            s.mistake("tls", "false, so the other keys for sending over TLS are of no use");
        }
        return None;
    }
    if ca_files.is_empty() && peer.tls_certificate_sha256.is_empty() {
        s.mistake("tls_ca_files", "missing; they, or tls_certificate_sha256, say by what the peer is known");
    }
    if peer.port == 0 {
        s.mistake("port", "missing; tls is about sending to the peer");
    }
    let server_name = if named.is_empty() { peer.host.clone() } else { named };
    Some(PeerTls { server_name, ca_files, client: client.or_else(|| listener.files.clone()) })
}

/// A fingerprint as tools print it, with or without colons.
fn sha256(v: &ValueKind) -> Result<[u8; 32], String> {
    let found = text(v)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(found.replace(':', ""), &mut bytes)
        .map(|()| bytes)
        .map_err(|_| format!("expected a SHA-256 of 64 hexadecimal digits, found \"{found}\""))
}

fn read_archive(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Archive {
    let words = [("reject", Duplicates::Reject), ("replace", Duplicates::Replace), ("keep-both", Duplicates::KeepBoth)];
    let mut s = Section::open("archive".into(), value, mistakes);
    let archive = Archive {
        duplicates: s.take("duplicates", Duplicates::Reject, one_of(&words)),
        quota_bytes: s.take("quota_bytes", 0, number(0, i64::MAX as u64)),
        free_bytes_min: s.take("free_bytes_min", 536_870_912, number(0, i64::MAX as u64)),
        intake_log_bytes: s.take("intake_log_bytes", 536_870_912, intake_log_bytes),
    };
    s.end();
    archive
}

fn read_publish(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Publish {
    let words = PieceMode::ALL.map(|mode| (piece_mode_name(mode), mode));
    let mut s = Section::open("publish".into(), value, mistakes);
    let enabled = s.take("enabled", true, flag);
    let settle = s.take("settle_ms", Duration::from_secs(30), milliseconds);
    let piece_mode = s.take("piece_mode", PieceMode::Calldata, one_of(&words));
    // 0 means "the mode's own"; the upper bound keeps a whole transaction below 131,072 bytes.
    let piece_bytes = s.take("piece_bytes", 0, |v| match number(0, 128_000)(v)? {
        n @ 1..1024 => Err(format!("expected 0 (the mode's default) or 1024 to 128000, found {n}")),
        n => Ok(to_u32(n)),
    });
    let publish = Publish {
        enabled,
        settle,
        piece_mode,
        piece_bytes: if piece_bytes == 0 { piece_bytes_default(piece_mode) } else { piece_bytes },
        preview_each_instance: s.take("preview_each_instance", false, flag),
        plain_study_hash: s.take("study_hash", false, one_of(&[("salted", false), ("plain", true)])),
        custody: s.take("custody", Custody::OnChain, custody::custody),
        custody_rules: Vec::new(),
    };
    s.end();
    publish
}

fn read_ledger(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Ledger {
    let words = [("embedded", LedgerKind::Embedded), ("rpc", LedgerKind::Rpc)];
    let mut s = Section::open("ledger".into(), value, mistakes);
    let ledger = Ledger {
        kind: s.take("kind", LedgerKind::Embedded, one_of(&words)),
        url: s.take("url", String::new(), node_url),
        fallback_urls: s.take("fallback_urls", Vec::new(), list(node_url)),
        request_timeout: s.take("request_timeout_ms", Duration::from_secs(15), milliseconds),
        head_age_max: s.take("head_age_max_ms", None, |v| {
            Ok(Some(number(0, 86_400_000)(v)?).filter(|ms| *ms > 0).map(Duration::from_millis))
        }),
        chain_id: s.take("chain_id", 20_181, number(1, u64::from(u32::MAX))),
        confirmations: s.take("confirmations", 1, |v| number(1, 1000)(v).map(to_u32)),
        block_period: s.take("block_period_ms", None, |v| {
            Ok(Some(number(0, 60_000)(v)?).filter(|ms| *ms > 0).map(Duration::from_millis))
        }),
        rpc_bind: s.take("rpc_bind", None, optional_address),
        deploy: s.take("deploy", true, flag),
        admin: s.take("admin", None, optional_account),
        remote_signer: read_remote_signer(&mut s),
    };
    match ledger.kind {
        LedgerKind::Rpc if ledger.url.is_empty() => s.mistake("url", "missing; kind = \"rpc\" needs a node's URL"),
        LedgerKind::Rpc if ledger.rpc_bind.is_some() => s.mistake("rpc_bind", "only the embedded ledger listens"),
        LedgerKind::Embedded if !ledger.fallback_urls.is_empty() => {
            s.mistake("fallback_urls", "the embedded ledger has no URL");
        }
        LedgerKind::Embedded if !ledger.url.is_empty() => s.mistake("url", "the embedded ledger has no URL"),
        _ => {}
    }
    if let Some(bind) = ledger.rpc_bind.filter(|bind| !bind.ip().is_loopback()) {
        s.mistake("rpc_bind", format!("{bind} is not a loopback address, and this port has neither TLS nor login"));
    }
    s.end();
    ledger
}

fn read_exchange(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Exchange {
    let mut s = Section::open("exchange".into(), value, mistakes);
    let exchange = Exchange {
        bind: s.take("bind", None, optional_address),
        request_timeout: s.take("request_timeout_ms", Duration::from_secs(10), milliseconds),
        fetch_ahead: s.take("fetch_ahead", false, flag),
        key_per_study: s.take("key_per_study", false, flag),
        envelopes: s.take("envelopes", false, flag),
        envelope_valid: Duration::from_secs(3600 * s.take("envelope_valid_h", 72, number(1, ENVELOPE_S_MAX / 3600))),
    };
    s.end();
    exchange
}

fn read_http(value: Option<Value>, viewers: Option<Value>, pages: Option<Value>, mistakes: &mut Vec<Mistake>) -> Http {
    let mut s = Section::open("http".into(), value, mistakes);
    let bind = s.take("bind", None, optional_address);
    let tls = read_tls_files(&mut s, "tls_certificate_file", "tls_key_file");
    let behind_proxy = s.take("behind_proxy", false, flag);
    let plain = tls.is_none() && !behind_proxy;
    if let Some(bind) = bind.filter(|bind| plain && !bind.ip().is_loopback()) {
        let what = format!(
            "{bind} can be reached from elsewhere, and tokens must not cross a network in the clear: set tls_certificate_file and \
             tls_key_file, or behind_proxy = true if a proxy before this port speaks TLS"
        );
        s.mistake("bind", what);
    }
    let mut http = Http {
        dicomweb: Dicomweb::default(),
        web: Web::default(),
        oidc: None,
        bind,
        tls,
        behind_proxy,
        allowed_origins: s.take("allowed_origins", Vec::new(), list(origin)),
        connections_max: s.take("connections_max", 256, |v| number(1, 65_536)(v).map(to_usize)),
        requests_per_minute: s.take("requests_per_minute", 600, |v| number(1, 10_000_000)(v).map(to_u32)),
        body_bytes_max: s.take("body_bytes_max", 65_536, |v| number(4096, 16_777_216)(v).map(to_usize)),
        receive_timeout: s.take("receive_timeout_ms", Duration::from_secs(10), milliseconds),
    };
    s.end();
    let is_near = bind.is_none_or(|bind| bind.ip().is_loopback()) && !behind_proxy;
    http.dicomweb = dicomweb::read_dicomweb(viewers, is_near, mistakes);
    http.web = web::read_web(pages, mistakes);
    http
}

/// A web origin as browsers state it (RFC 6454 6.2): scheme, host, and a port that is not the scheme's own.
fn origin(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let rest = found.strip_prefix("https://").or_else(|| found.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
    if rest.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) {
        return Ok(found);
    }
    Err(format!(
        "expected an origin such as \"https://viewer.example:8443\", in small letters and without a path, found \"{found}\""
    ))
}

fn optional_account(v: &ValueKind) -> Result<Option<[u8; 20]>, String> {
    if text(v)?.is_empty() { Ok(None) } else { account(v).map(Some) }
}

fn account(v: &ValueKind) -> Result<[u8; 20], String> {
    let found = text(v)?;
    let mut bytes = [0; 20];
    match hex::decode_to_slice(found.strip_prefix("0x").unwrap_or(&found), &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(format!("expected an account of 40 hexadecimal digits, found \"{found}\"")),
    }
}

fn read_remote_signer(s: &mut Section<'_>) -> Option<RemoteSigner> {
    let url = s.take("remote_signer_url", String::new(), url_or_empty);
    let address = s.take("remote_signer_address", None, optional_account);
    let token_file = s.take("remote_signer_token_file", None, optional_path);
    let timeout = s.take("remote_signer_timeout_ms", Duration::from_secs(5), milliseconds);
    if url.is_empty() {
        if address.is_some() || token_file.is_some() {
            s.mistake("remote_signer_url", "missing; the other remote_signer keys are of no use without it");
        }
        return None;
    }
    if !is_plain_and_near(&url) {
        let what = "expected http:// to this machine (127.0.0.1, [::1] or localhost): this program speaks no TLS to a signer yet, \
                    so let a proxy here do it";
        s.mistake("remote_signer_url", what);
    }
    let Some(address) = address else {
        s.mistake("remote_signer_address", "missing; it says which of the signer's keys is ours");
        return None;
    };
    Some(RemoteSigner { url, address, token_file, timeout })
}

/// What a key signs and what opens a signer to us shall not cross a network in the clear.
fn is_plain_and_near(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = if host.starts_with('[') {
        host.split_inclusive(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    let numbers = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || numbers.is_ok_and(|ip| ip.is_loopback())
}

fn read_keys(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Keys {
    let mut s = Section::open("keys".into(), value, mistakes);
    let keys = Keys {
        password_file: s.take("password_file", None, optional_path),
        password: s.take("password", None, |v| text(v).map(|t| Some(t).filter(|t| !t.is_empty()))),
    };
    if keys.password.is_some() && keys.password_file.is_some() {
        s.mistake("password", "given besides password_file; give one of them");
    }
    s.end();
    keys
}

fn read_log(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Log {
    let mut s = Section::open("log".into(), value, mistakes);
    let log = Log {
        level: s.take("level", "info".to_owned(), |v| {
            let level = text(v)?;
            let valid = level.parse::<tracing_subscriber::filter::Targets>().is_ok();
            if valid { Ok(level) } else { Err(format!("expected a filter such as \"info\", found \"{level}\"")) }
        }),
        json: s.take("format", false, one_of(&[("text", false), ("json", true)])),
    };
    s.end();
    log
}

impl Operation {
    /// Every operation, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Echo, Self::Store, Self::Find, Self::Move, Self::Get];

    /// The word used in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Store => "store",
            Self::Find => "find",
            Self::Move => "move",
            Self::Get => "get",
        }
    }
}

fn operations(value: &ValueKind) -> Result<Vec<Operation>, String> {
    list(one_of(&Operation::ALL.map(|op| (op.name(), op))))(value)
}

fn ae_title(value: &ValueKind) -> Result<AeTitle, String> {
    parsed("an AE title of 1 to 16 characters (PS3.5 6.2)")(value)
}

fn address(value: &ValueKind) -> Result<SocketAddr, String> {
    parsed("an address and port such as \"127.0.0.1:11112\"")(value)
}

fn optional_address(value: &ValueKind) -> Result<Option<SocketAddr>, String> {
    if text(value)?.is_empty() { Ok(None) } else { address(value).map(Some) }
}

fn path(value: &ValueKind) -> Result<PathBuf, String> {
    text(value).map(PathBuf::from)
}

fn optional_path(value: &ValueKind) -> Result<Option<PathBuf>, String> {
    path(value).map(|path| Some(path).filter(|path| !path.as_os_str().is_empty()))
}

fn milliseconds(value: &ValueKind) -> Result<Duration, String> {
    number(1, 86_400_000)(value).map(Duration::from_millis)
}

/// No log, or one in which a usual object fits.
fn intake_log_bytes(value: &ValueKind) -> Result<u64, String> {
    match number(0, 1 << 40)(value) {
        Ok(bytes) if bytes == 0 || bytes >= 8_388_608 => Ok(bytes),
        _ => Err(format!("expected 0 or a whole number from 8388608, found {}", describe(value))),
    }
}

/// Where a node of the ledger is asked. Nodes speak no TLS; a path is that of the node's socket.
fn node_url(value: &ValueKind) -> Result<String, String> {
    let found = text(value)?;
    let url = if found.starts_with('/') { format!("ipc://{found}") } else { found };
    let known = ["http://", "ws://", "ipc:///"].iter().any(|start| url.starts_with(start));
    if url.is_empty() || known {
        return Ok(url);
    }
    let hint = if url.starts_with("https://") || url.starts_with("wss://") {
        "; a node speaks no TLS, so it runs on this machine or behind a proxy here that leads to it"
    } else {
        ""
    };
    Err(format!("expected an http:// or ws:// URL or the path of the node's socket, found \"{url}\"{hint}"))
}

fn url_or_empty(value: &ValueKind) -> Result<String, String> {
    let found = text(value)?;
    let valid = found.is_empty() || found.starts_with("http://") || found.starts_with("https://");
    if valid { Ok(found) } else { Err(format!("expected an http:// or https:// URL, found \"{found}\"")) }
}

/// A default of our own; that it parses is checked by `the_defaults_are_valid`.
fn fixed<T: std::str::FromStr>(text: &str) -> T {
    match text.parse() {
        Ok(value) => value,
        Err(_) => unreachable!("built-in default {text} does not parse"),
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn to_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(toml: &str) -> Result<Config, ConfigError> {
        Config::parse(toml, HashMap::new())
    }

    fn mistakes(toml: &str) -> Vec<String> {
        match parse(toml) {
            Err(ConfigError::Mistakes(found)) => found.iter().map(ToString::to_string).collect(),
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn nodes_are_asked_without_tls_and_through_their_sockets() {
        let url =
            |url: &str| parse(&format!("[ledger]\nkind = \"rpc\"\nurl = \"{url}\"\n")).map(|config| config.ledger.url);
        for good in ["http://127.0.0.1:8545", "ws://127.0.0.1:8546", "ipc:///srv/geth.ipc"] {
            assert_eq!(url(good).unwrap(), good);
        }
        assert_eq!(url("/srv/geth.ipc").unwrap(), "ipc:///srv/geth.ipc");
        for bad in ["https://node", "wss://node", "node:8545", "ipc://srv/geth.ipc"] {
            let found = mistakes(&format!("[ledger]\nkind = \"rpc\"\nurl = \"{bad}\"\n"));
            assert!(found.iter().any(|mistake| mistake.contains("path of the node's socket")), "{bad}: {found:?}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = parse("").unwrap();
        assert_eq!(config.dicom.ae_title.to_string(), "PACSBRIDGE");
        assert_eq!(config.publish.piece_bytes, 120_000);
    }

    #[test]
    fn the_documented_file_equals_the_defaults_and_names_every_key() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/bridge.toml");
        assert_eq!(Config::load(Some(&file), HashMap::new()).unwrap(), parse("").unwrap());
        let written = std::fs::read_to_string(file).unwrap();
        let source = [
            include_str!("mod.rs"),
            include_str!("custody.rs"),
            include_str!("derive.rs"),
            include_str!("oidc.rs"),
            include_str!("xds.rs"),
        ]
        .concat();
        let taken = source.lines().filter_map(|line| line.split("s.take(\"").nth(1)?.split('"').next());
        let files = source.lines().filter_map(|line| line.split_once("s, \"")?.1.split_once("_file\")"));
        let files = files.flat_map(|(names, _)| names.split("\", \"")).map(|name| name.trim_end_matches("_file"));
        for key in taken.map(ToOwned::to_owned).chain(files.map(|name| format!("{name}_file"))) {
            let named = written.lines().any(|l| l.trim_start_matches(['#', ' ']).starts_with(&format!("{key} =")));
            assert!(named, "conf/bridge.toml does not name `{key}`");
        }
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let found = mistakes(
            "[dicom]\nae_title = \"SEVENTEEN LETTERS!\"\nbind = \"here\"\nasociations_max = 5\n[publish]\nsettle_ms = 0\n\
             [nonsense]\nx = 1\n[[peer]]\nport = 104\n",
        );
        let all = found.join("\n");
        for part in [
            "dicom.ae_title",
            "dicom.bind",
            "did you mean `associations_max`",
            "publish.settle_ms",
            "nonsense",
            "peer[1].ae_title",
            "peer[1].host",
        ] {
            assert!(all.contains(part), "no word of {part} in:\n{all}");
        }
    }

    #[test]
    fn the_environment_overrides_the_file_and_keeps_leading_zeros() {
        let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let set = env(&[
            ("PACS_BRIDGE__DICOM__AE_TITLE", "0123"),
            ("PACS_BRIDGE__DICOM__ASSOCIATIONS_MAX", "7"),
            ("PACS_BRIDGE__DICOM__UNKNOWN_PEERS", "echo, find"),
            ("OTHER", "x"),
        ]);
        let config = Config::parse("[dicom]\nae_title = \"FILE\"\n", set).unwrap();
        assert_eq!(config.dicom.ae_title.to_string(), "0123");
        assert_eq!(config.dicom.associations_max, 7);
        assert_eq!(config.dicom.unknown_peers, [Operation::Echo, Operation::Find]);
        let wrong = Config::parse("", env(&[("PACS_BRIDGE__DICOM__PROT", "1")]));
        assert!(matches!(wrong, Err(ConfigError::Mistakes(m)) if m[0].key == "dicom.prot"));
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_not_coerced() {
        assert!(mistakes("[[peer]]\nae_title = \"A\"\nhost = \"h\"\nport = true\n")[0].contains("peer[1].port"));
        assert!(mistakes("[dicom]\nae_title = 123\n")[0].contains("expected text"));
    }

    #[test]
    fn a_peer_named_twice_and_an_open_ledger_port_are_mistakes() {
        assert!(mistakes("[[peer]]\nae_title = \"A\"\n[[peer]]\nae_title = \"A\"\n")[0].contains("twice"));
        assert!(mistakes("[ledger]\nrpc_bind = \"0.0.0.0:8545\"\n")[0].contains("loopback"));
    }

    #[test]
    fn the_http_api_is_in_the_clear_on_this_machine_only() {
        assert!(
            parse("[http]\nbind = \"127.0.0.1:8080\"\n").is_ok() && parse("[http]\nbind = \"[::1]:8080\"\n").is_ok()
        );
        for open in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080"] {
            let found = mistakes(&format!("[http]\nbind = \"{open}\"\n"));
            assert!(found[0].contains("http.bind") && found[0].contains("behind_proxy"), "{found:?}");
            assert!(parse(&format!("[http]\nbind = \"{open}\"\nbehind_proxy = true\n")).is_ok());
            let tls = "tls_certificate_file = \"chain.pem\"\ntls_key_file = \"key.pem\"\n";
            assert!(parse(&format!("[http]\nbind = \"{open}\"\n{tls}")).is_ok());
        }
        assert!(mistakes("[http]\ntls_certificate_file = \"chain.pem\"\n")[0].contains("tls_key_file"));
        for wrong in ["*", "null", "https://a.example/", "https://A.example", "a.example", "https://"] {
            assert!(mistakes(&format!("[http]\nallowed_origins = [\"{wrong}\"]\n"))[0].contains("origin"), "{wrong}");
        }
        assert!(parse("[http]\nallowed_origins = [\"https://a.example\", \"http://127.0.0.1:3000\"]\n").is_ok());
    }

    #[test]
    fn tls_keys_that_are_of_no_use_alone_are_mistakes_all_at_once() {
        let found = mistakes(
            "[dicom]\nbind = \"\"\n[dicom.tls]\ncertificate_file = \"c.pem\"\nclient_certificates = \"required\"\n[[peer]]\n\
             ae_title = \"A\"\ntls_subject = \"a.example\"\n[[peer]]\nae_title = \"B\"\ntls_certificate_sha256 = [\"12:34\"]\n\
             [[peer]]\nae_title = \"C\"\ntls = true\n[[peer]]\nae_title = \"D\"\ntls_server_name = \"d.example\"\n",
        )
        .join("\n");
        for part in [
            "dicom.bind: empty",
            "dicom.tls.key_file: missing",
            "dicom.tls.client_ca_files: missing",
            "dicom.tls.bind: missing",
            "peer[1].tls_subject: without a TLS port",
            "peer[2].tls_certificate_sha256: expected a SHA-256",
            "peer[3].tls_ca_files: missing",
            "peer[3].port: missing",
            "peer[4].tls: false",
        ] {
            assert!(found.contains(part), "no word of {part} in:\n{found}");
        }
        let open = "[dicom.tls]\nbind = \"127.0.0.1:0\"\ncertificate_file = \"c\"\nkey_file = \"k\"\n";
        let bound = format!("{open}[[peer]]\nae_title = \"A\"\ntls_subject = \"a.example\"\n");
        assert!(mistakes(&bound)[0].contains("client_certificates"));
        assert!(mistakes("[dicom.tls]\nbind = \"127.0.0.1:0\"\n")[0].contains("certificate_file"));
        assert_eq!(parse(&format!("[dicom]\nbind = \"\"\n{open}")).unwrap().dicom.bind, None);
    }

    #[test]
    fn what_examining_finds_is_reported_with_the_rest() {
        let examine = |config: &Config| vec![Mistake { key: "x".into(), what: config.dicom.ae_title.to_string() }];
        let builder = config::Config::builder().add_source(File::from_str("[nonsense]\n", FileFormat::Toml));
        let found = Config::finish(builder, HashMap::new(), examine);
        assert!(
            matches!(found, Err(ConfigError::Mistakes(found)) if found.len() == 2 && found[1].what == "PACSBRIDGE")
        );
    }

    #[test]
    fn iti43_has_somewhere_to_be_served() {
        assert!(mistakes("[xds]\nenabled = true\n")[0].contains("xds.bind"));
        assert!(parse("[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\n").is_ok());
        assert!(parse("[xds]\nenabled = true\nbind = \"127.0.0.1:0\"\n").is_ok());
        let found = mistakes(
            "[xds]\npath = \"/exchange/v1/study-key\"\npublic_urls = [\"http://a.example/\"]\ntls_key_file = \"key.pem\"\n\
             client_certificate = \"required\"\n",
        );
        let all = found.join("\n");
        for part in ["xds.path", "xds.public_urls", "xds.tls_certificate_file", "xds.client_ca_file", "xds.bind"] {
            assert!(all.contains(part), "no word of {part} in:\n{all}");
        }
    }

    #[test]
    fn a_remote_signer_is_near_and_complete() {
        assert!(
            mistakes("[ledger]\nremote_signer_url = \"http://127.0.0.1:9000\"\n")[0].contains("which of the signer")
        );
        for far in
            ["https://127.0.0.1", "http://signer.example", "http://127.0.0.1@signer.example", "http://10.0.0.1:9000"]
        {
            let found = mistakes(&format!("[ledger]\nremote_signer_url = \"{far}\"\n")).join(" ");
            assert!(found.contains("no TLS"), "{far}: {found}");
        }
        let address = "[ledger]\nremote_signer_address = \"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\"\n";
        assert!(mistakes(address)[0].contains("remote_signer_url"));
        let whole = parse(&format!("{address}remote_signer_url = \"http://[::1]:9000/\"\n")).unwrap();
        assert_eq!(whole.ledger.remote_signer.unwrap().address[..2], [0xf3, 0x9f]);
    }

    #[test]
    fn a_password_never_shows_in_debug_output() {
        let config = parse("[keys]\npassword = \"hush-hush\"\n").unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }
}
