//! Puts a site together, runs it, and takes it apart in order.
//!
//! Takes its listener and its shutdown signal as arguments, so that a test can start the real thing on port 0. Must not
//! read the environment or end the process.

mod promote;
mod rotate;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use embedded_ledger::EmbeddedLedger;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use zeroize::Zeroizing;

use crate::access::Access;
use crate::archive::{Archive, ArchiveError};
use crate::assemble::{AssembleError, Assembler};
use crate::audit::{self, Audit, Event};
use crate::background::Background;
use crate::config::{self, Config, LedgerKind};
use crate::control;
use crate::derive::{self, DeriveError, Derived, Deriver};
use crate::dicom::encrypted::Encrypted;
use crate::dicom::{self, Door};
use crate::erase::{self, Eraser};
use crate::exchange::server::Standing;
use crate::exchange::{self, ExchangeError};
use crate::follow::{self, Consents, FollowConfig, FollowError};
use crate::http;
use crate::ipfs::{self, Ipfs};
use crate::keyring::{KEYSTORE, Keyring, KeyringError};
use crate::ledger::node::SystemClock;
use crate::ledger::rpc::RpcNode;
use crate::ledger::sender::SenderConfig;
use crate::ledger::{
    self, Endpoints, Ledger, LedgerConfig, LedgerError, LedgerSlot, OpenError, RemoteConfig, RemoteSigner, Signer,
    SignerError, Watch,
};
use crate::oidc::{Issuer, OidcError};
use crate::outbox::SiteOutbox;
use crate::promote::{self as promotion, Words, WordsError};
use crate::publish::{PublishConfig, Publisher};
use crate::retrieve::Retrieve;
use crate::site::{Parts, PublisherSlot, Site};
use crate::tls::{self, TlsError};
use crate::tokens::{self, TokenError, Tokens};
use crate::xds;
pub use promote::{Before, PromoteError, Promoted};
pub use rotate::{RotateError, Rotated};

/// What the site's own account gets on its own embedded ledger, where wei have no price.
const EMBEDDED_FUNDS_WEI: u128 = u128::MAX / 4;
/// What Define Source publishes while this site serves no endpoint; the contract takes no empty one.
const NO_ENDPOINT: &str = "urn:pacs-bridge:no-endpoint";
/// How often a node that does not answer is tried again.
const NODE_RETRY: Duration = Duration::from_secs(5);
/// How often a network's node is asked for a new block.
const NETWORK_POLL_MS: u64 = 200;
/// Longest time for which a start waits for the ledger.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The ledger being opened; given up when nobody waits for it any more.
type Connecting = AbortOnDropHandle<Result<(), StartError>>;
/// Requests in flight when pieces of one image are read back over the network.
const READ_PARALLEL: usize = 8;
/// The same from the ledger in this process, where there is no way to wait for and only memory to save.
const READ_PARALLEL_EMBEDDED: usize = 2;

/// Why a site could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("data directory {0}")]
    DataDir(PathBuf, #[source] std::io::Error),
    /// Another process holds it.
    #[error("another bridge runs on the data directory {0}")]
    InUse(PathBuf),
    /// The keys cannot be had.
    #[error("keys")]
    Keyring(#[from] KeyringError),
    /// The archive cannot be opened.
    #[error("archive")]
    Archive(#[from] ArchiveError),
    /// The assembler has no spool.
    #[error("assembler")]
    Assemble(#[from] AssembleError),
    /// The database of consents cannot be opened.
    #[error("consents")]
    Follow(#[from] FollowError),
    /// This site cannot hand out study keys.
    #[error("exchange with other sites")]
    Exchange(#[from] ExchangeError),
    /// What an erasure has yet to destroy cannot be destroyed.
    #[error("erasure")]
    Erase(#[from] erase::EraseError),
    /// A rule by which studies are derived cannot be used.
    #[error("derived studies")]
    Derive(#[from] DeriveError),
    /// What is to be said again after a promotion cannot be read.
    #[error("promotion")]
    Words(#[from] WordsError),
    /// The audit log has no writer.
    #[error("audit log")]
    Audit(#[source] std::io::Error),
    /// The HTTP API's tokens cannot be read.
    #[error("tokens")]
    Tokens(#[from] TokenError),
    /// A port cannot speak TLS.
    #[error("TLS of {0}")]
    Tls(&'static str, #[source] Box<TlsError>),
    /// The memory of answered ITI-43 messages cannot be used.
    #[error("ITI-43")]
    Replay(#[from] xds::ReplayError),
    /// The embedded ledger cannot be opened.
    #[error("embedded ledger")]
    Embedded(#[from] embedded_ledger::OpenError),
    /// The ledger is not ours.
    #[error("ledger")]
    Ledger(#[from] OpenError),
    /// The ledger refused what the site needs from it.
    #[error("ledger")]
    Refused(#[from] LedgerError),
    /// A port cannot be bound.
    #[error("cannot listen on {0}")]
    Bind(SocketAddr, #[source] std::io::Error),
    /// The control socket cannot be made.
    #[error("control socket")]
    Control(#[source] std::io::Error),
    /// The remote signer does not sign for us.
    #[error("signing")]
    Signer(#[from] SignerError),
    /// The remote signer's URL is none.
    #[error("ledger.remote_signer_url is not a URL")]
    SignerUrl,
    /// This program: a task of its own ended.
    #[error("a task of this program ended")]
    Gone,
    /// The operator: a copy of the ledger cannot be read, or is not of this site's.
    #[error("{0}")]
    Copy(PathBuf, #[source] embedded_ledger::CopyError),
    /// The operator: it would be lost.
    #[error("there is a ledger at {0}, which is not overwritten")]
    LedgerExists(PathBuf),
    /// The operator: a ledger is its site's, whose keys come first (`keys restore`).
    #[error("there are no keys in {0}; bring them back first")]
    NoKeys(PathBuf),
    /// The operator: the IPFS node's token cannot be read.
    #[error("ipfs.token_file {0}")]
    IpfsToken(PathBuf, #[source] std::io::Error),
    /// The operator: what `[oidc]` names cannot be used.
    #[error("logins of an OpenID Connect issuer")]
    Oidc(#[from] OidcError),
    /// A node's URL is none.
    #[error("ledger.url or one of ledger.fallback_urls is not a URL")]
    Url,
}

/// A site that is open but not yet reachable: what the offline commands work on.
pub struct Core {
    /// The parts.
    pub site: Site,
    config: Config,
    outbox: SiteOutbox,
    assembler: Assembler,
    keyring: Keyring,
    slot: LedgerSlot,
    consents: Consents,
    /// Notified when the embedded ledger has made a block.
    follow_wake: Arc<Notify>,
    publisher: PublisherSlot,
    /// What owners said on a ledger before and is left to say on this one.
    words: Words,
    /// It defines nothing on its ledger any more.
    leaving: bool,
    embedded: Option<EmbeddedLedger>,
    /// The ledger, when it took longer to open than a start waits.
    connecting: Option<Connecting>,
    tasks: TaskTracker,
    background: CancellationToken,
    behind: Background,
    /// Held as long as the site is open.
    _lock: File,
}

impl Core {
    /// Opens everything below the data directory and, if it answers, the ledger.
    ///
    /// # Errors
    /// [`StartError`]. A node that does not answer is no error: intake must not depend on it.
    pub async fn open(config: Config) -> Result<Self, StartError> {
        let mut core = Self::open_apart(config).await?;
        core.open_ledger().await?;
        Ok(core)
    }

    /// As [`Core::open`], for a site that leaves its ledger and says nothing of itself there any more.
    async fn open_leaving(config: Config) -> Result<Self, StartError> {
        let mut core = Self::open_apart(config).await?;
        core.leaving = true;
        core.open_ledger().await?;
        Ok(core)
    }

    /// Everything but the ledger's client.
    async fn open_apart(config: Config) -> Result<Self, StartError> {
        let data_dir = config.site.data_dir.clone();
        let lock = lock(&data_dir)?;
        let audit = open_audit(&config).await?;
        let (dir, keys) = (data_dir.clone(), config.keys.clone());
        let keyring = blocking(move || Keyring::open(&dir, &keys)).await??;
        let settle_ms = u64::try_from(config.publish.settle.as_millis()).unwrap_or(u64::MAX);
        let (dir, limits) = (data_dir.join("archive"), config.archive.clone());
        let archive = blocking(move || Archive::open(&dir, limits, settle_ms)).await??;
        let assembler = Assembler::new(archive.clone(), keyring.clone(), config.publish.clone())?;
        let slot = LedgerSlot::default();
        let path = data_dir.join("consent.sqlite");
        let consents = blocking(move || Consents::open(&path)).await??;
        let dir = data_dir.clone();
        let words = blocking(move || Words::open(&dir)).await??;
        let (dir, settings) = (data_dir.clone(), config.clone());
        let (rules, derived) =
            blocking(move || Ok::<_, DeriveError>((derive::check(&settings)?, Derived::open(&dir)?))).await??;
        let guard = derived.clone();
        archive.guard(Box::new(move |study| guard.knows(study)));
        let finished: Arc<Notify> = Arc::default();
        let told = rules.iter().any(derive::Rule::is_automatic).then(|| finished.clone());
        let (of_archive, of_keys) = (archive.clone(), keyring.clone());
        let outbox = SiteOutbox::new(of_archive, of_keys, assembler.clone(), consents.clone(), derived.clone(), told);
        let open_rules = config.derive.iter().filter(|rule| !rule.encrypted).map(|rule| rule.name.clone());
        let ipfs = config.ipfs.as_ref().map(open_ipfs).transpose()?;
        let outbox = outbox.with_open_rules(open_rules).with_ipfs(ipfs.clone());
        let publisher = PublisherSlot::default();
        let retrieve = Retrieve::new(archive.clone(), keyring.clone(), slot.clone());
        if let Some(ipfs) = ipfs.clone() {
            retrieve.use_ipfs(ipfs);
        }
        let eraser = Eraser::new(erase::Parts {
            archive: archive.clone(),
            keyring: keyring.clone(),
            assembler: assembler.clone(),
            retrieve: retrieve.clone(),
            consents: consents.clone(),
            derived: derived.clone(),
            ledger: slot.clone(),
            signer: certifier(&config.ledger, &keyring),
            certificates: data_dir.join(erase::CERTIFICATES),
        });
        // Before anything is planned or served again.
        eraser.destroy_keys()?;
        let parts = derive::Parts {
            archive: archive.clone(),
            keyring: keyring.clone(),
            retrieve: retrieve.clone(),
            consents: consents.clone(),
            ledger: slot.clone(),
            derived,
            words: words.clone(),
            audit: audit.clone(),
            ae_title: config.dicom.ae_title.to_string(),
        };
        let deriver = blocking(move || Deriver::open(parts, rules, finished)).await??;
        let site = Site::new(Parts {
            retrieve,
            eraser,
            deriver,
            archive,
            keyring: keyring.clone(),
            ledger: slot.clone(),
            consents: consents.clone(),
            publisher: publisher.clone(),
            words: words.clone(),
            publishing: config.publish.enabled,
            key_per_study: config.exchange.key_per_study,
            source: source_account(&config.ledger, &keyring).to_string(),
            audit,
            ipfs,
            embedded: OnceLock::new(),
        });
        site.retrieve().ask_sources(Arc::new(xds::FromSources::new(site.parts())));
        let tasks = TaskTracker::new();
        let background = CancellationToken::new();
        let behind = Background::start().map_err(|e| StartError::DataDir(data_dir, e))?;
        Ok(Self {
            site,
            config,
            outbox,
            assembler,
            keyring,
            slot,
            consents,
            follow_wake: Arc::default(),
            publisher,
            words,
            leaving: false,
            embedded: None,
            connecting: None,
            tasks,
            background,
            behind,
            _lock: lock,
        })
    }

    async fn open_ledger(&mut self) -> Result<(), StartError> {
        let wake = Arc::new(Notify::new());
        match self.config.ledger.kind {
            LedgerKind::Embedded => {
                let embedded = self.open_embedded().await?;
                let node = Endpoints::single(RpcNode::embedded(&embedded));
                self.wake_on_blocks(&embedded, wake.clone());
                // It is opened once.
                let _ = self.site.parts().embedded.set(embedded.reader());
                self.embedded = Some(embedded);
                self.connection()?.open(node, wake).await
            }
            LedgerKind::Rpc => {
                let connection = self.connection()?;
                let node = endpoints(&self.config.ledger)?;
                let mut connecting = Connecting::new(tokio::spawn(async move { connection.open(node, wake).await }));
                // Contracts may have to be deployed first, and the account for that may have no funds.
                match tokio::time::timeout(CONNECT_MAX, &mut connecting).await {
                    Ok(opened) => intake_goes_on(opened.map_err(|_| StartError::Gone)?),
                    Err(_) => {
                        tracing::warn!("the ledger is not ready yet; intake goes on without it");
                        self.connecting = Some(connecting);
                        Ok(())
                    }
                }
            }
        }
    }

    async fn open_embedded(&self) -> Result<EmbeddedLedger, StartError> {
        let dir = self.config.site.data_dir.join("ledger");
        fs::create_dir_all(&dir).map_err(|e| StartError::DataDir(dir.clone(), e))?;
        let config = embedded_config(&self.config, &self.keyring);
        // The thread that makes blocks inherits the priority of the one that opens the ledger.
        let opened = self.behind.blocking(move || EmbeddedLedger::open(config)).await;
        Ok(opened.map_err(|e| StartError::DataDir(dir, e))??)
    }

    fn wake_on_blocks(&self, embedded: &EmbeddedLedger, wake: Arc<Notify>) {
        let (mut head, stop) = (embedded.watch_head(), self.background.clone());
        let follow = self.follow_wake.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = head.changed() => match changed {
                        Ok(()) => {
                            wake.notify_one();
                            follow.notify_one();
                        }
                        Err(_) => return,
                    }
                }
            }
        });
    }

    fn connection(&self) -> Result<Connection, StartError> {
        Ok(Connection {
            settings: self.config.ledger.clone(),
            keyring: self.keyring.clone(),
            config: self.ledger_config(signing_account(&self.config.ledger, &self.keyring))?,
            endpoint: self.endpoint(),
            slot: self.slot.clone(),
            define: !self.leaving,
        })
    }

    /// What Define Source publishes, as far as the configuration tells.
    fn endpoint(&self) -> String {
        let stated = Some(self.config.site.public_url.clone()).filter(|url| !url.is_empty());
        // A port that is chosen at the start is stated once it is known.
        let xds = self.config.xds.bind.filter(|_| self.config.xds.enabled);
        let bound = self.config.exchange.bind.or(xds).filter(|bind| bind.port() != 0 && !bind.ip().is_unspecified());
        stated.or_else(|| bound.map(|bind| self.endpoint_at(bind))).unwrap_or_else(|| NO_ENDPOINT.to_owned())
    }

    /// The URL of the address at which others find this site: that of ITI-43 where it is served there. Who asks for study keys takes
    /// no more of it than the address.
    fn endpoint_at(&self, address: SocketAddr) -> String {
        let Config { xds, exchange, .. } = &self.config;
        let there = xds.enabled && (xds.bind.is_none() || exchange.bind.is_none());
        format!("https://{address}{}", if there { &xds.path } else { "" })
    }

    fn ledger_config(&self, signer: Address) -> Result<LedgerConfig, StartError> {
        let dir = self.config.site.data_dir.join("ledger");
        fs::create_dir_all(&dir).map_err(|e| StartError::DataDir(dir.clone(), e))?;
        let settings = &self.config.ledger;
        let embedded = settings.kind == LedgerKind::Embedded;
        Ok(LedgerConfig {
            kind: if embedded { ledger::LedgerKind::Embedded } else { ledger::LedgerKind::Network },
            chain_id: settings.chain_id,
            admin: settings.admin.map_or_else(|| source_account(settings, &self.keyring), Address::from),
            deploy: settings.deploy,
            mode: self.config.publish.piece_mode,
            journal: dir.join(self.journal_name(signer)),
            owner_seed: Some(self.keyring.owners()),
            held_keys: self.keyring.held_keys(),
            identity: Some(self.keyring.source().clone()),
            read_parallel: if embedded { READ_PARALLEL_EMBEDDED } else { READ_PARALLEL },
            sender: match embedded {
                true => SenderConfig { depth: settings.confirmations.into(), ..SenderConfig::default() },
                false => SenderConfig::network(settings.confirmations.into(), NETWORK_POLL_MS),
            },
        })
    }

    /// One journal a key. The source's own is the one that was there before there were operators.
    fn journal_name(&self, signer: Address) -> String {
        if signer == self.keyring.source().address() {
            "journal.sqlite".to_owned()
        } else {
            format!("journal-{signer:#x}.sqlite")
        }
    }

    /// Takes the site apart: nothing is written afterwards.
    pub async fn close(self) {
        self.background.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.site.retrieve().settle().await;
        self.site.archive().close().await;
        self.site.audit().close().await;
        if let Some(embedded) = self.embedded
            && let Err(error) = blocking(move || embedded.close()).await
        {
            tracing::error!(%error, "the embedded ledger did not close in order");
        }
    }
}

/// The embedded ledger of a site.
fn embedded_config(config: &Config, keyring: &Keyring) -> embedded_ledger::LedgerConfig {
    let settings = &config.ledger;
    let file = config.site.data_dir.join("ledger/chain.redb");
    let mut embedded = embedded_ledger::LedgerConfig::new(file, settings.chain_id)
        .with_balance(source_account(settings, keyring), U256::from(EMBEDDED_FUNDS_WEI))
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE.to_vec());
    let millis = |period: Duration| u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
    embedded.block_period_ms = settings.block_period.map(millis);
    embedded.signer = Some(keyring.source().clone());
    embedded
}

/// Makes the embedded ledger of a site that does not run again from a copy; there must be none. The site's keys must be there. Returns its
/// newest block.
///
/// # Errors
/// [`StartError`]; nothing is left of the ledger then.
pub async fn import_ledger(config: &Config, copy: PathBuf) -> Result<embedded_ledger::Head, StartError> {
    let (data_dir, keys) = (config.site.data_dir.clone(), config.keys.clone());
    let _lock = lock(&data_dir)?;
    if !data_dir.join(KEYSTORE).exists() {
        return Err(StartError::NoKeys(data_dir));
    }
    let dir = data_dir.join("ledger");
    fs::create_dir_all(&dir).map_err(|e| StartError::DataDir(dir.clone(), e))?;
    let keyring = blocking(move || Keyring::open(&data_dir, &keys)).await??;
    let wanted = embedded_config(config, &keyring);
    let fail = |file: &PathBuf, error| StartError::Copy(file.clone(), error);
    blocking(move || {
        let input = File::open(&copy).map_err(|e| fail(&copy, e.into()))?;
        let imported = embedded_ledger::import(&wanted, &mut std::io::BufReader::new(input));
        imported.map_err(|error| match error {
            embedded_ledger::CopyError::File(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                StartError::LedgerExists(wanted.path.clone())
            }
            other => fail(&copy, other),
        })
    })
    .await?
}

/// A site that can be reached.
pub struct App {
    core: Core,
    dicom: DicomPorts,
    rpc: Option<SocketAddr>,
    exchange: Option<SocketAddr>,
    xds: Option<SocketAddr>,
    http: Option<SocketAddr>,
    doors: CancellationToken,
    certificates: Certificates,
}

/// The settings of the ports that speak TLS, with names for the log.
type Certificates = Vec<(&'static str, Arc<tls::Server>)>;

/// Where DICOM is served, and by what.
struct DicomPorts {
    plain: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    served: Vec<tokio::task::JoinHandle<dicom_scp::scp::Drained>>,
}

impl App {
    /// Opens the doors of a site.
    ///
    /// # Errors
    /// [`StartError`]; nothing stays running then.
    pub async fn start(mut core: Core, listener: Option<TcpListener>) -> Result<Self, StartError> {
        let mut certificates = Certificates::new();
        let plain = match (listener, core.config.dicom.bind) {
            (Some(listener), _) => Some(listener),
            (None, Some(bind)) => Some(listen(bind).await?),
            (None, None) => None,
        };
        let tls = core.dicom_tls(&mut certificates).await?;
        let doors = CancellationToken::new();
        // On the disk before a door opens. A log that cannot be written was reported, and is no reason not to take in what comes.
        let _ = core.site.audit().durable(vec![Event::started()]).await;
        core.start_repository();
        let rpc = core.serve_rpc(&doors).await?;
        control::serve(core.site.clone(), &core.config.site.data_dir, &core.tasks, doors.clone())
            .await
            .map_err(StartError::Control)?;
        core.start_ledger_work();
        core.tasks.spawn(core.site.parts().eraser.clone().run(core.background.clone()));
        core.start_ipfs_keeper();
        core.tasks.spawn(promotion::say(core.speaking(), core.background.clone()));
        let deriver = core.site.parts().deriver.clone();
        core.tasks.spawn_on(deriver.run(core.background.clone()), &core.behind.handle());
        let (exchange, xds) = core.start_exchange(&mut certificates, &doors).await?;
        let http = core.start_http(&mut certificates, &doors).await?;
        let dicom = core.serve_dicom(plain, tls, &doors)?;
        Ok(Self { core, dicom, rpc, exchange, xds, http, doors, certificates })
    }

    /// The site, for whoever runs in the same process.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.core.site
    }

    /// Where DICOM is served in the clear, if it is.
    #[must_use]
    pub fn dicom_address(&self) -> Option<SocketAddr> {
        self.dicom.plain
    }

    /// Reads the certificates and keys of all ports again. Where that fails, what was read before stays in use.
    pub fn reload_certificates(&self) {
        for (port, server) in &self.certificates {
            match server.reload() {
                Ok(()) => {
                    tracing::info!("certificates of {port} are read again");
                    self.core.site.audit().record(Event::reconfigured(None));
                }
                Err(error) => {
                    let error = crate::chain_of(&error);
                    self.core.site.audit().record(Event::reconfigured(Some(&error)));
                    tracing::error!(error, "certificates of {port} cannot be read again; those before stay in use");
                }
            }
        }
    }

    /// Where the embedded ledger speaks JSON-RPC, if it does.
    #[must_use]
    pub fn rpc_address(&self) -> Option<SocketAddr> {
        self.rpc
    }

    /// One line that says where everything is; printed when all doors are open.
    #[must_use]
    pub fn ready_line(&self) -> String {
        let config = &self.core.config;
        let ledger = match (config.ledger.kind, self.core.slot.get().is_some()) {
            (LedgerKind::Embedded, _) => "embedded",
            (LedgerKind::Rpc, true) => "connected",
            (LedgerKind::Rpc, false) => "away",
        };
        let rpc = self.rpc.map_or_else(String::new, |rpc| format!(" rpc={rpc}"));
        let (aet, chain) = (&config.dicom.ae_title, config.ledger.chain_id);
        let exchange = self.exchange.map_or_else(String::new, |exchange| format!(" exchange={exchange}"));
        let http = self.http.map_or_else(String::new, |http| format!(" http={http}"));
        let port = |name, at: Option<SocketAddr>| at.map_or_else(String::new, |at| format!(" {name}={at}"));
        let (plain, tls) = (port("dicom", self.dicom.plain), port("dicom_tls", self.dicom.tls));
        let doors = format!("{rpc}{exchange}{http}{}", port("xds", self.xds));
        format!("pacs-bridge ready{plain}{tls} ae_title={aet} ledger={ledger} chain_id={chain}{doors}")
    }

    /// Closes the doors, finishes the operations in hand, and takes the site apart. Returns how many associations were cut
    /// off because they did not end in time.
    pub async fn drain(self) -> usize {
        self.doors.cancel();
        let mut abandoned = 0;
        for served in self.dicom.served {
            abandoned += served.await.map_or(0, |drained| drained.abandoned);
        }
        // Before the repository hears the last. An error was reported, and the end does not wait for better times.
        let _ = self.core.site.audit().durable(vec![Event::stopped()]).await;
        self.core.close().await;
        abandoned
    }
}

async fn listen(bind: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(bind).await.map_err(|e| StartError::Bind(bind, e))
}

impl Core {
    /// The TLS port of the DICOM door and what it shows, if there is to be one.
    async fn dicom_tls(&self, certificates: &mut Certificates) -> Result<Option<(TcpListener, Encrypted)>, StartError> {
        let settings = self.config.dicom.tls.clone();
        let (Some(bind), Some(files)) = (settings.bind, settings.files.clone()) else { return Ok(None) };
        let server = tls::Server::new(move || tls::dicom_server(&files, &settings));
        let server = server.map_err(|e| StartError::Tls("DICOM", Box::new(e)))?;
        certificates.push(("DICOM", server.clone()));
        Ok(Some((listen(bind).await?, Encrypted(server, self.site.audit().clone()))))
    }

    /// The DICOM door, with one limit on associations for all its ports.
    fn serve_dicom(
        &self,
        plain: Option<TcpListener>,
        tls: Option<(TcpListener, Encrypted)>,
        doors: &CancellationToken,
    ) -> Result<DicomPorts, StartError> {
        use dicom_scp::scp::{Plain, Room, serve_upgraded};
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|e| StartError::Bind(SocketAddr::from(([0, 0, 0, 0], 0)), e))
        };
        let (site, ae_title) = (self.site.clone(), self.config.dicom.ae_title.clone());
        let door = Arc::new(Door::new(site, Access::new(&self.config), ae_title, self.tasks.clone()));
        let options = dicom::options(&self.config.dicom);
        let room = Room::new(&options);
        let mut ports = DicomPorts { plain: None, tls: None, served: Vec::new() };
        if let Some(listener) = plain {
            ports.plain = Some(address(&listener)?);
            let (options, room, door) = (options.clone(), room.clone(), door.clone());
            ports.served.push(tokio::spawn(serve_upgraded(listener, options, room, door, doors.clone(), Plain)));
        }
        if let Some((listener, encrypted)) = tls {
            ports.tls = Some(address(&listener)?);
            ports.served.push(tokio::spawn(serve_upgraded(listener, options, room, door, doors.clone(), encrypted)));
        }
        Ok(ports)
    }

    /// Messages to the audit record repository, where there is one.
    fn start_repository(&self) {
        let audit = self.site.audit();
        let Some(settings) = self.config.audit.repository.clone().filter(|_| audit.is_on()) else { return };
        let source = audit_source(&self.config);
        let sender = audit::syslog::Sender::new(audit.clone(), settings, &source, self.background.clone());
        self.tasks.spawn(sender.run());
    }

    async fn serve_rpc(&self, doors: &CancellationToken) -> Result<Option<SocketAddr>, StartError> {
        let (Some(embedded), Some(bind)) = (&self.embedded, self.config.ledger.rpc_bind) else { return Ok(None) };
        let listener = TcpListener::bind(bind).await.map_err(|e| StartError::Bind(bind, e))?;
        let address = listener.local_addr().map_err(|e| StartError::Bind(bind, e))?;
        let server = embedded.http_server(listener, doors.clone());
        self.tasks.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the ledger's JSON-RPC port failed");
            }
        });
        Ok(Some(address))
    }

    /// Studies of other sites come here, and the keys of ours go to those whom their owners let in. Returns where keys are handed out and
    /// where ITI-43 is served.
    async fn start_exchange(
        &self,
        certificates: &mut Certificates,
        doors: &CancellationToken,
    ) -> Result<(Option<SocketAddr>, Option<SocketAddr>), StartError> {
        let settings = self.config.exchange;
        let mut announcement = exchange::task::Announcement::default();
        let mut listening = (None, None);
        let stop = self.background.clone();
        if settings.bind.is_some() || self.config.xds.enabled {
            let keystore = self.config.site.data_dir.join(KEYSTORE);
            let identity = blocking(move || exchange::tls::Identity::open(&keystore)).await??;
            listening = self.listen(&identity, certificates, doors).await?;
            if settings.bind.is_some() || self.config.xds.tls.is_none() {
                announcement.tls_key = identity.spki_sha256();
            }
            let found_at = listening.0.or(listening.1).filter(|address| !address.ip().is_unspecified());
            let unstated = self.endpoint() == NO_ENDPOINT;
            announcement.endpoint = found_at.filter(|_| unstated).map(|address| self.endpoint_at(address));
        }
        if settings.envelopes {
            let how = exchange::envelope::Answering { valid_s: settings.envelope_valid.as_secs() };
            let (desk, consents, slot) = (self.desk(announcement.tls_key), self.consents.clone(), self.slot.clone());
            self.tasks.spawn(exchange::envelope::answer(desk, consents, slot, how, stop.clone()));
        }
        self.tasks.spawn(exchange::task::announce(self.slot.clone(), self.keyring.clone(), announcement, stop.clone()));
        let parts = exchange::task::Parts {
            consents: self.consents.clone(),
            archive: self.site.archive().clone(),
            keyring: self.keyring.clone(),
            audit: self.site.audit().clone(),
            retrieve: self.site.retrieve().clone(),
            ledger: self.slot.clone(),
            settings: exchange::task::Settings {
                request_timeout: settings.request_timeout,
                fetch_ahead: settings.fetch_ahead,
                envelopes: settings.envelopes,
            },
        };
        if self.config.ledger.remote_signer.is_some() {
            self.tasks.spawn(xds::bind_request_key(self.site.clone(), stop.clone()));
        }
        let (ledger, keyring) = (self.config.ledger.clone(), self.keyring.clone());
        self.tasks.spawn(async move {
            let signer = loop {
                match signer(&ledger, &keyring).await {
                    Ok(signer) => break signer,
                    Err(error) => tracing::debug!(error = %crate::chain_of(&error), "the signer is away"),
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(NODE_RETRY) => {}
                }
            };
            exchange::task::run(parts, signer, stop).await;
        });
        Ok(listening)
    }

    /// Opens the listeners for study keys and for ITI-43, which may be one.
    async fn listen(
        &self,
        identity: &exchange::tls::Identity,
        certificates: &mut Certificates,
        doors: &CancellationToken,
    ) -> Result<(Option<SocketAddr>, Option<SocketAddr>), StartError> {
        let settings = &self.config.xds;
        let keys = bind(self.config.exchange.bind).await?;
        let own = bind(settings.bind.filter(|_| settings.enabled)).await?;
        let exchange = keys.as_ref().map(|(_, address)| *address);
        let desk = self.desk(identity.spki_sha256());
        if !settings.enabled {
            if let Some((listener, _)) = keys {
                let tls = identity.server_config()?;
                self.tasks.spawn(exchange::server::serve(listener, tls, desk, self.tasks.clone(), doors.clone()));
            }
            return Ok((exchange, None));
        }
        let ((listener, address), desk) = match (own, keys) {
            (Some(own), None) => (own, None),
            (None, Some(shared)) => (shared, Some(desk)),
            (Some(own), Some((listener, _))) => {
                let tls = identity.server_config()?;
                self.tasks.spawn(exchange::server::serve(listener, tls, desk, self.tasks.clone(), doors.clone()));
                (own, None)
            }
            // The configuration was checked for that.
            (None, None) => return Ok((None, None)),
        };
        let door = self.xds_door(address).await?;
        let (certificate, key) = identity.certified()?;
        let (own, of) = (tls::OwnKey { certificate, key }, settings.clone());
        let tls = tls::Server::new(move || tls::xds_server(&of, &own));
        let tls = tls.map_err(|e| StartError::Tls("ITI-43", Box::new(e)))?;
        certificates.push(("ITI-43", tls.clone()));
        self.tasks.spawn(xds::serve(listener, tls, door, desk, doors.clone()));
        Ok((exchange, Some(address)))
    }

    async fn xds_door(&self, address: SocketAddr) -> Result<xds::Door, StartError> {
        let settings = self.config.xds.clone();
        let stated = Some(self.config.site.public_url.clone()).filter(|url| !url.is_empty());
        let mut addresses = vec![stated.unwrap_or_else(|| format!("https://{address}{}", settings.path))];
        addresses.extend(settings.public_urls.iter().cloned());
        let keyring = self.keyring.clone();
        let series_names: xds::SeriesNames = Arc::new(move |study, series| {
            let name = keyring.series_name(study, series);
            name.unwrap_or_else(|error| {
                tracing::error!(error = %crate::chain_of(&error), "cannot tell what a series is called");
                None
            })
        });
        let parts = xds::Parts {
            series_names,
            archive: self.site.archive().clone(),
            consents: self.consents.clone(),
            retrieve: self.site.retrieve().clone(),
            ledger: self.slot.clone(),
            settings,
            addresses,
            tasks: self.tasks.clone(),
            audit: self.site.audit().clone(),
        };
        let database = self.config.site.data_dir.join(xds::DATABASE);
        Ok(blocking(move || xds::Door::open(&database, parts)).await??)
    }

    /// Where it is decided who gets the keys of this site's studies.
    fn desk(&self, tls_key: [u8; 32]) -> exchange::server::Desk {
        let slot = self.slot.clone();
        let standing = Arc::new(move || slot.get().and_then(Standing::of));
        let (archive, keyring) = (self.site.archive().clone(), self.keyring.clone());
        let desk = exchange::server::Desk::new(archive, keyring, self.consents.clone(), standing, tls_key);
        desk.with_audit(self.site.audit().clone())
    }

    /// The HTTP API. Returns where it is.
    async fn start_http(
        &self,
        certificates: &mut Certificates,
        doors: &CancellationToken,
    ) -> Result<Option<SocketAddr>, StartError> {
        let settings = self.config.http.clone();
        let Some(bind) = settings.bind else { return Ok(None) };
        let path = self.config.site.data_dir.join(tokens::DATABASE);
        let tokens = blocking(move || Tokens::open(&path)).await??;
        let tls = settings.tls.clone().map(|files| tls::Server::new(move || tls::http_server(&files)));
        let tls = tls.transpose().map_err(|e| StartError::Tls("the HTTP API", Box::new(e)))?;
        certificates.extend(tls.clone().map(|server| ("the HTTP API", server)));
        let oidc = settings.oidc.clone();
        let issuer = blocking(move || oidc.map(|oidc| Issuer::new(&oidc)).transpose()).await??;
        let listener = TcpListener::bind(bind).await.map_err(|e| StartError::Bind(bind, e))?;
        let parts = http::Parts {
            offer: dicom::options(&self.config.dicom).offer,
            site: self.site.clone(),
            access: Access::new(&self.config),
            tokens,
            issuer,
            settings,
            ae_title: self.config.dicom.ae_title.clone(),
            as_read: self.config.as_read.clone(),
            tasks: self.tasks.clone(),
        };
        let address = http::serve(listener, tls, parts, doors.clone()).map_err(|e| StartError::Bind(bind, e))?;
        Ok(Some(address))
    }

    fn speaking(&self) -> promotion::Parts {
        promotion::Parts {
            words: self.words.clone(),
            archive: self.site.archive().clone(),
            keyring: self.keyring.clone(),
            consents: self.consents.clone(),
            ledger: self.slot.clone(),
            audit: self.site.audit().clone(),
        }
    }

    fn start_ipfs_keeper(&self) {
        let (Some(settings), Some(ipfs)) = (&self.config.ipfs, self.site.parts().ipfs.clone()) else { return };
        let wants = ipfs::Wants { granted: settings.pin_granted, check: settings.check_interval };
        let keeper = ipfs::Keeper::new(ipfs, self.site.archive().clone(), self.assembler.clone(), wants);
        self.tasks.spawn_on(keeper.run(self.background.clone()), &self.behind.handle());
    }

    /// Following and, where it is enabled, publishing: as soon as the ledger answers.
    fn start_ledger_work(&mut self) {
        let stop = self.background.clone();
        let slot = self.slot.clone();
        let begun = self.connecting.take();
        // What it needs was there when the ledger was opened first.
        let again = self.connection().ok().filter(|_| begun.is_some() || slot.get().is_none());
        let (tasks, behind) = (self.tasks.clone(), self.behind.handle());
        let follow = Following { consents: self.consents.clone(), wake: self.follow_wake.clone() };
        let publish = self.config.publish.enabled.then(|| (self.outbox.clone(), self.publisher.clone()));
        let anchoring = self.config.audit.anchor_interval.filter(|_| self.site.audit().is_on());
        let anchoring = anchoring.map(|interval| (self.site.audit().clone(), interval));
        let work = async move {
            if let Some(again) = again
                && !again.keep_trying(begun, &stop).await
            {
                return;
            }
            let Some(ledger) = slot.get() else { return };
            tasks.spawn_on(follow.run(ledger.clone(), stop.clone()), &behind);
            if let Some((audit, interval)) = anchoring {
                tasks.spawn_on(audit::anchor::run(audit, ledger.clone(), interval, stop.clone()), &behind);
            }
            let Some((outbox, status)) = publish else { return };
            let source = Arc::new(outbox.clone());
            let how = match ledger.kind() {
                ledger::LedgerKind::Embedded => PublishConfig::default(),
                ledger::LedgerKind::Network => PublishConfig::network(ledger.depth()),
            };
            let publisher = Publisher::new(source.clone(), source, ledger.clone(), SystemClock, how);
            let _ = status.set(publisher.status());
            tasks.spawn(outbox.plan_versions(publisher.waker(), stop.clone()));
            publisher.run(stop).await;
        };
        self.tasks.spawn_on(work, &self.behind.handle());
    }
}

fn open_ipfs(settings: &config::Ipfs) -> Result<Ipfs, StartError> {
    Ipfs::new(settings).map_err(|error| StartError::IpfsToken(settings.token_file.clone().unwrap_or_default(), error))
}

/// The audit log, or none where it is switched off.
async fn open_audit(config: &Config) -> Result<Audit, StartError> {
    if !config.audit.enabled {
        return Ok(Audit::off());
    }
    let (dir, bytes) = (config.site.data_dir.join(audit::DIRECTORY), config.audit.segment_bytes);
    let source = audit_source(config);
    blocking(move || Audit::open(&dir, bytes, source)).await?.map_err(StartError::Audit)
}

/// Who we are in audit messages.
pub(crate) fn audit_source(config: &Config) -> audit::Source {
    let ae_title = config.dicom.ae_title.to_string();
    let id = Some(config.audit.source_id.clone()).filter(|id| !id.is_empty()).unwrap_or_else(|| ae_title.clone());
    audit::Source { id, site: config.audit.site_id.clone(), ae_title, process: std::process::id() }
}

/// A listener and where it is.
async fn bind(address: Option<SocketAddr>) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|e| StartError::Bind(address, e))?;
    let bound = listener.local_addr().map_err(|e| StartError::Bind(address, e))?;
    Ok(Some((listener, bound)))
}

/// Who the source is: the account of the remote signer if there is one.
fn source_account(settings: &config::Ledger, keyring: &Keyring) -> Address {
    settings.remote_signer.as_ref().map_or_else(|| keyring.source().address(), |remote| remote.address.into())
}

/// Who signs for it.
fn signing_account(settings: &config::Ledger, keyring: &Keyring) -> Address {
    settings.remote_signer.as_ref().map_or_else(|| keyring.signer().address(), |remote| remote.address.into())
}

/// What certifies for the source itself, whoever signs its transactions.
fn certifier(settings: &config::Ledger, keyring: &Keyring) -> erase::Certifier {
    let (settings, keyring) = (settings.clone(), keyring.clone());
    Arc::new(move || {
        let (settings, keyring) = (settings.clone(), keyring.clone());
        Box::pin(async move {
            match settings.remote_signer {
                None => Ok(keyring.source().clone().into()),
                Some(_) => signer(&settings, &keyring).await.map_err(|error| crate::chain_of(&error)),
            }
        })
    })
}

/// What signs for it. A remote signer is asked for its key.
async fn signer(settings: &config::Ledger, keyring: &Keyring) -> Result<Signer, StartError> {
    let Some(remote) = &settings.remote_signer else { return Ok(keyring.signer().clone().into()) };
    let token = match &remote.token_file {
        None => None,
        Some(path) => {
            let words = |e: std::io::Error| SignerError::Token(format!("{}: {e}", path.display()));
            let text = Zeroizing::new(fs::read_to_string(path).map_err(words)?);
            Some(Zeroizing::new(text.lines().next().unwrap_or_default().trim().to_owned()))
        }
    };
    let url = remote.url.parse().map_err(|_| StartError::SignerUrl)?;
    let config = RemoteConfig { url, address: remote.address.into(), token, timeout: remote.timeout };
    Ok(RemoteSigner::connect(config).await?.into())
}

/// What the follower of consents needs from here.
struct Following {
    consents: Consents,
    wake: Arc<Notify>,
}

impl Following {
    async fn run(self, ledger: Ledger, stop: CancellationToken) {
        let embedded = ledger.kind() == ledger::LedgerKind::Embedded;
        let config = FollowConfig {
            registry: ledger.addresses().studies,
            consent: ledger.addresses().consent,
            key_bindings: ledger.addresses().key_bindings,
            depth: ledger.depth(),
            // The embedded ledger wakes us.
            poll_ms: if embedded { 1_000 } else { ledger.poll_ms() },
            clocks_elsewhere: !embedded,
            carried: ledger.in_flight().clone(),
        };
        let node = ledger.node().clone();
        node.wakes(&self.wake);
        follow::follow(self.consents, node, SystemClock, config, self.wake, stop).await;
    }
}

/// The configured endpoints, the preferred one first.
fn endpoints(settings: &config::Ledger) -> Result<Endpoints, StartError> {
    let urls = std::iter::once(&settings.url).chain(&settings.fallback_urls).map(|url| url.parse());
    let urls = urls.collect::<Result<Vec<_>, _>>().map_err(|_| StartError::Url)?;
    let watch = Watch { timeout: settings.request_timeout, head_age_max: settings.head_age_max, ..Watch::default() };
    Endpoints::at(&urls, watch).map_err(|_| StartError::Url)
}

/// A start that goes on although the ledger is away.
fn intake_goes_on(opened: Result<(), StartError>) -> Result<(), StartError> {
    match opened {
        Err(StartError::Signer(error @ SignerError::Away { .. })) => {
            tracing::warn!(%error, "intake goes on without it");
            Ok(())
        }
        Err(StartError::Ledger(OpenError::Unavailable(error)) | StartError::Refused(error)) => {
            tracing::warn!(error = %crate::chain_of(&error), "the ledger does not answer; intake goes on without it");
            Ok(())
        }
        other => other,
    }
}

/// What the ledger is opened with.
struct Connection {
    settings: config::Ledger,
    keyring: Keyring,
    config: LedgerConfig,
    endpoint: String,
    slot: LedgerSlot,
    /// The site is made known there as a source.
    define: bool,
}

impl Connection {
    /// Opens the ledger, with all that this site needs there: contracts, and itself as a source.
    async fn open(&self, node: Endpoints, wake: Arc<Notify>) -> Result<(), StartError> {
        let signer = signer(&self.settings, &self.keyring).await?;
        let ledger = ledger::open_endpoints(node, signer, self.config.clone(), wake).await?;
        if self.define {
            ledger.ensure_source_defined(&self.endpoint).await?;
        }
        // The slot is filled once; a second connection would be the same ledger.
        let _ = self.slot.set(ledger);
        Ok(())
    }

    /// Tries until the node answers, beginning with what was begun at the start; `false` when told to stop first.
    async fn keep_trying(self, begun: Option<Connecting>, stop: &CancellationToken) -> bool {
        let mut begun = begun;
        loop {
            let opened = async {
                match begun.take() {
                    Some(begun) => begun.await.map_err(|_| StartError::Gone)?,
                    None => self.open(endpoints(&self.settings)?, Arc::default()).await,
                }
            };
            let opened = tokio::select! {
                () = stop.cancelled() => return false,
                opened = opened => opened,
            };
            match opened {
                Ok(()) => {
                    tracing::info!("the ledger answers");
                    return true;
                }
                Err(error) => tracing::warn!(error = %crate::chain_of(&error), "the ledger is still away"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(NODE_RETRY) => {}
            }
        }
    }
}

/// One bridge per data directory: the lock goes with the process, whatever ends it.
pub(crate) fn lock(data_dir: &std::path::Path) -> Result<File, StartError> {
    let fail = |e| StartError::DataDir(data_dir.to_owned(), e);
    fs::create_dir_all(data_dir).map_err(fail)?;
    let file = File::create(data_dir.join("lock")).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::InUse(data_dir.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(fail(error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StartError::DataDir(PathBuf::new(), std::io::Error::other(e)))
}
