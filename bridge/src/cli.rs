//! The command line: one program for the daemon, the ops person and the demonstration.
//!
//! Only here and in `main` is the process's environment used and its exit code chosen.

mod audit;
mod bench;
mod clients;
mod consent;
mod deidentify;
mod erase;
mod keys;
mod network;
mod output;
mod p256;
mod together;
mod token;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{App, Before, Core};
use crate::archive::Part10Error;
use crate::config::{Config, ConfigError};
use crate::control::{self, Reply, Request};
use crate::derive;
use crate::keyring::helper;
use crate::oidc;
use crate::proof::{self, Proof};
use crate::tls;
use keys::{FILE_PASSWORD, KeysCommand};
use output::Output;
pub(crate) use output::{size, table};

/// Malloc's setting of the same meaning, of glibc.
const ARENAS: &str = "MALLOC_ARENA_MAX";
/// Target of the logs of the JPEG 2000 decoder.
const CODEC: &str = "jpeg2k";

/// A DICOM node whose studies live on a permissioned ledger, under the patient's control.
#[derive(Debug, Parser)]
#[command(name = "pacs-bridge", version, about)]
struct Arguments {
    /// Configuration file. Without one, `bridge.toml` in the working directory if it is there, else the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge until SIGTERM or Ctrl-C.
    Serve,
    /// Check the configuration and say every mistake.
    Check,
    /// Show a whole site on this machine, with studies of nobody.
    Demo(crate::demo::Options),
    /// List the studies and where they are on their way to the ledger.
    Studies,
    /// One study in full.
    #[command(subcommand)]
    Study(StudyCommand),
    /// Remove the local copies of a study that is final on the ledger.
    Evict {
        /// StudyInstanceUID.
        uid: String,
    },
    /// Compare a study, an object or a file with the ledger, byte by byte; or check a proof, without this site and without a node.
    Verify {
        /// StudyInstanceUID, SOPInstanceUID, or the path of a DICOM file; with --proof a DICOM file.
        #[arg(required_unless_present = "proof")]
        what: Option<String>,
        /// Check this proof instead, and, if a file is named, whether it is the object that is proven.
        #[arg(long)]
        proof: Option<PathBuf>,
    },
    /// Print a proof that an object is on the ledger, which whoever has it can check by himself.
    Proof {
        /// SOPInstanceUID.
        uid: String,
    },
    /// Totals and the state of the ledger.
    Status,
    /// C-ECHO to a peer.
    Echo {
        /// AE title of a configured peer, or AETITLE@HOST:PORT.
        peer: String,
    },
    /// C-STORE files to a peer.
    Send {
        /// AE title of a configured peer, or AETITLE@HOST:PORT.
        peer: String,
        /// DICOM files, or directories of them.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// C-FIND at a peer.
    Find {
        /// AE title of a configured peer, or AETITLE@HOST:PORT.
        peer: String,
        /// patient, study, series or image.
        #[arg(long, default_value = "study")]
        level: String,
        /// Matching keys, KEYWORD=VALUE, and return keys, KEYWORD; tags such as 00100020 are keywords too.
        keys: Vec<String>,
    },
    #[command(flatten)]
    Consent(consent::Command),
    /// Erase a study: its keys, every copy here, its life on the ledger; with a certificate.
    Erase(erase::Erase),
    /// Fetch a study from the site that published it, by signed ITI-43, as a ZIP archive.
    Fetch {
        /// The study's id on the ledger, or its StudyInstanceUID where it is known here.
        study: String,
        /// Account of the source; by default the one that published the study.
        #[arg(long, value_name = "ACCOUNT")]
        from: Option<String>,
        /// The file; by default the study with .zip in this directory.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Copies of the embedded ledger.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Bearer tokens of the HTTP API.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The audit log: who did what with which study.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print the OpenAPI document of the HTTP API.
    Api,
    /// De-identify a study by a rule of the configuration into a study of its own; a refused object refuses all.
    Derive {
        /// StudyInstanceUID, or the study's id on the ledger.
        study: String,
        /// The rule, where there are several.
        #[arg(long, value_name = "NAME")]
        rule: Option<String>,
    },
    /// What was derived from what, whose it is, and how many were let in.
    Derived,
    /// De-identify files by PS3.15 Annex E; what cannot be cleaned is refused.
    Deidentify(deidentify::Deidentify),
    /// The site's keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// The ledger that several sites run together: nodes of their own.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Measure this program beside others, or reproduce the papers' tables (`bench paper`), where it was built.
    #[command(disable_help_flag = true)]
    Bench {
        /// What `make bench` takes in ARGS.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Derives keys for the process that started it, over pipes.
    #[command(name = helper::COMMAND, hide = true)]
    KeyHelper,
}

#[derive(Debug, Subcommand)]
enum StudyCommand {
    /// Show it.
    Show {
        /// StudyInstanceUID.
        uid: String,
    },
}

/// What a command failed with, in words for the person at the terminal.
#[derive(Debug)]
struct Failed(String);

impl<E: std::error::Error + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(crate::chain_of(&error))
    }
}

/// Runs the program.
#[must_use]
pub fn run(arguments: impl Iterator<Item = OsString>, environment: HashMap<String, String>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if matches!(arguments.command, Command::KeyHelper) {
        return helper::serve();
    }
    if let Command::Bench { arguments } = &arguments.command {
        // The configuration that lies about is none of its business.
        let Err(Failed(words)) = bench::run(arguments);
        return complain(&words, 1);
    }
    if matches!(arguments.command, Command::Serve | Command::Demo(_)) {
        with_few_arenas(&environment);
    }
    helper::offer();
    let file_password = environment.get(FILE_PASSWORD).cloned().map(zeroize::Zeroizing::new);
    let key_password = environment.get(consent::KEY_PASSWORD).cloned().map(zeroize::Zeroizing::new);
    let opens_ports = matches!(arguments.command, Command::Serve | Command::Check);
    let config = match load(arguments.config.as_deref(), environment, opens_ports) {
        Ok(config) => config,
        Err(error) => return complain(&crate::chain_of(&error), 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start: {error}"), 1),
    };
    let output = Output::new(arguments.json);
    match runtime.block_on(command(arguments.command, config, file_password, &output, key_password)) {
        Ok(code) => code,
        Err(Failed(words)) => complain(&words, 1),
    }
}

/// The C library gives every thread that allocates memory of its own to do so from, and keeps what was used at its peak: measured, a
/// quarter of what the bridge takes while it publishes or fetches. It can be told otherwise only by the environment at the
/// program's start, so the program starts once more, as the same process. Where that does not work, it takes more memory.
fn with_few_arenas(environment: &HashMap<String, String>) {
    if environment.contains_key(ARENAS) {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).env(ARENAS, "2").exec();
        // Nothing listens to a log yet, and nothing is lost but memory.
        drop(error);
    }
}

#[allow(clippy::print_stderr)] // The one place where the program speaks to the person who called it amiss.
fn complain(words: &str, code: u8) -> ExitCode {
    eprintln!("pacs-bridge: {words}");
    ExitCode::from(code)
}

/// Whoever does not open the ports has no need of their certificates.
fn load(
    file: Option<&Path>,
    environment: HashMap<String, String>,
    examines_files: bool,
) -> Result<Config, ConfigError> {
    let here = Path::new("bridge.toml");
    let file = file.or_else(|| here.is_file().then_some(here));
    if examines_files {
        Config::load_examined(file, environment, |config| [tls::mistakes(config), oidc::mistakes(config)].concat())
    } else {
        Config::load(file, environment)
    }
}

async fn command(
    command: Command,
    config: Config,
    file_password: Option<zeroize::Zeroizing<String>>,
    output: &Output,
    key_password: Option<zeroize::Zeroizing<String>>,
) -> Result<ExitCode, Failed> {
    match command {
        Command::Serve => return serve(config).await,
        Command::Demo(options) => return Ok(crate::demo::run(options).await?),
        Command::Check => {
            derive::check(&config)?;
            output.config(&config);
        }
        Command::Studies => output.reply(ask(config, Request::Studies).await?)?,
        Command::Study(StudyCommand::Show { uid }) => output.reply(ask(config, Request::Study { uid }).await?)?,
        Command::Derive { study, rule } => {
            output.reply(ask(config, Request::Derive(derive::Ask { study, rule })).await?)?;
        }
        Command::Derived => output.reply(ask(config, Request::Derived).await?)?,
        Command::Evict { uid } => output.reply(ask(config, Request::Evict { uid }).await?)?,
        Command::Status => output.reply(ask(config, Request::Status).await?)?,
        Command::Verify { what, proof: Some(proof) } => return check_proof(&proof, what.as_deref(), output),
        Command::Verify { what, proof: None } => return verify(config, what.unwrap_or_default(), output).await,
        Command::Proof { uid } => output.reply(ask(config, Request::Proof { uid }).await?)?,
        Command::Echo { peer } => return clients::echo(&config, &peer, output).await,
        Command::Send { peer, files } => return clients::send(&config, &peer, &files, output).await,
        Command::Find { peer, level, keys } => return clients::find(&config, &peer, &level, &keys, output).await,
        Command::Consent(command) => consent::run(command, &config, output, key_password).await?,
        Command::Erase(arguments) => erase::run(arguments, &config, output).await?,
        Command::Fetch { study, from, out } => {
            let out = std::path::absolute(out.unwrap_or_else(|| PathBuf::from(format!("{study}.zip"))))?;
            output.reply(ask(config, Request::Fetch(crate::xds::Ask { study, from, out })).await?)?;
        }
        Command::Ledger(LedgerCommand::Export { file }) => {
            output.reply(ask(config, Request::ExportLedger { out: std::path::absolute(file)? }).await?)?;
        }
        Command::Ledger(LedgerCommand::Import { file }) => {
            let head = crate::app::import_ledger(&config, file).await?;
            if output.is_json() {
                output.json(&serde_json::json!({ "number": head.number, "hash": head.hash }));
            } else {
                println!("the ledger is there again, up to block {} {}", head.number, head.hash);
            }
        }
        Command::Ledger(LedgerCommand::Promote { from, from_admin }) => {
            let no_account = |given: &String| Failed(format!("--from-admin {given} is no account"));
            let admin = from_admin.map(|given| given.parse().map_err(|_| no_account(&given))).transpose()?;
            start_logging(&config);
            let promoted = Core::promote(config, Before { url: from, admin }).await?;
            let rows = [
                ("from chain", promoted.chain_id.to_string()),
                ("its block 0", promoted.genesis.to_string()),
                ("kept in", promoted.kept.display().to_string()),
                ("studies", promoted.studies.to_string()),
                ("objects", promoted.objects.to_string()),
                ("words to say again", promoted.words.to_string()),
                ("owners elsewhere", promoted.elsewhere.to_string()),
            ];
            output.done("promoted", &rows);
        }
        Command::Token(command) => token::run(command, &config, output).await?,
        Command::Audit(command) => return audit::run(command, &config, output).await,
        Command::Api => print!("{}", crate::http::openapi()),
        Command::Deidentify(arguments) => return deidentify::run(&arguments, output),
        Command::Keys(command) => {
            let file_password = file_password.as_ref().map(|password| password.as_str());
            keys::run(config, command, file_password, key_password, output).await?;
        }
        Command::Network(command) => network::run(command, &config, output).await?,
        Command::KeyHelper => return Ok(helper::serve()),
        Command::Bench { arguments } => match bench::run(&arguments)? {},
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies of the embedded ledger.
#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Write a copy of the embedded ledger into a file, while the bridge runs or not.
    Export {
        /// The file; must not exist.
        file: PathBuf,
    },
    /// Make the embedded ledger again from a copy; everything in it is executed and compared. The bridge must not run, its keys must be there
    /// and its ledger must not.
    Import {
        /// What `ledger export` wrote.
        file: PathBuf,
    },
    /// Take this site and its studies from the embedded ledger to the network that the configuration names now: the same study ids, owners and
    /// grants. The bridge must not run.
    Promote {
        /// JSON-RPC endpoint of a node of the ledger to come from, where that is not the embedded one of this site.
        #[arg(long, value_name = "URL")]
        from: Option<String>,
        /// Account that administered the consortium there, where this site cannot tell.
        #[arg(long, value_name = "ACCOUNT")]
        from_admin: Option<String>,
    },
}

async fn serve(config: Config) -> Result<ExitCode, Failed> {
    start_logging(&config);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let core = Core::open(config).await?;
    let app = App::start(core, None).await?;
    println!("{}", app.ready_line());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => app.reload_certificates(),
        }
    }
    tracing::info!("draining: no new associations; a second signal ends at once");
    tokio::select! {
        abandoned = app.drain() => {
            tracing::info!(abandoned, "ended");
            Ok(ExitCode::SUCCESS)
        }
        _ = terminate.recv() => Err(Failed("ended by a second signal".into())),
        _ = interrupt.recv() => Err(Failed("ended by a second signal".into())),
    }
}

/// Asks the running bridge, or opens the site here when none runs.
async fn ask(config: Config, request: Request) -> Result<Reply, Failed> {
    if let Some(reply) = control::ask(&config.site.data_dir, &request).await? {
        return Ok(reply);
    }
    if !config.site.data_dir.is_dir() {
        let words = "no bridge runs here and there is no data directory";
        return Err(Failed(format!("{words} {}", config.site.data_dir.display())));
    }
    let core = Core::open(config).await?;
    let reply = control::answer(&core.site, request).await;
    core.close().await;
    Ok(reply)
}

async fn verify(config: Config, what: String, output: &Output) -> Result<ExitCode, Failed> {
    let path = Path::new(&what);
    let request = if path.is_file() {
        let (sop_instance, digest) = describe(path)?;
        Request::VerifyFile { sop_instance, dataset_sha256: digest }
    } else {
        Request::Verify { uid: what }
    };
    let reply = ask(config, request).await?;
    let proven = matches!(&reply, Reply::Verdicts(verdicts) if verdicts.iter().all(|verdict| verdict.proven));
    output.reply(reply)?;
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks a proof offline.
fn check_proof(path: &Path, file: Option<&str>, output: &Output) -> Result<ExitCode, Failed> {
    let text = std::fs::read(path).map_err(|error| Failed(format!("cannot read {}: {error}", path.display())))?;
    let proof: Proof =
        serde_json::from_slice(&text).map_err(|error| Failed(format!("{} is no proof: {error}", path.display())))?;
    let shown = proof::check(&proof)?;
    let compared = file.map(|file| proof::compare(&proof, Path::new(file))).transpose()?;
    output.shown(&shown, compared.as_ref());
    let is_it = compared.is_none_or(|compared| compared.data_set);
    Ok(if is_it { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(path: &Path) -> Result<(String, String), Part10Error> {
    let (sop_instance, digest) = crate::site::describe_file(path)?;
    Ok((sop_instance.to_string(), hex::encode(digest)))
}

/// Logs go to standard error: people and machines read standard output.
pub(crate) fn start_logging(config: &Config) {
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let mut filter: tracing_subscriber::filter::Targets = config.log.level.parse().unwrap_or_default();
    // A decoder that tells of each frame is asked for that by name alone.
    if !config.log.level.contains(CODEC) && filter.would_enable(CODEC, &tracing::Level::INFO) {
        filter = filter.with_target(CODEC, tracing::Level::WARN);
    }
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = if config.log.json { layer.json().boxed() } else { layer.with_ansi(false).boxed() };
    // A second call, as in tests of this crate, keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}
