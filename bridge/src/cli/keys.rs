//! `pacs-bridge keys`: secrets come from files, the environment or a prompt, never from the command line, which everybody on the
//! machine can read.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use zeroize::Zeroizing;

use super::Failed;
use super::consent::Password;
use super::output::Output;
use super::p256::{self, P256Command};
use crate::app::{Core, lock};
use crate::audit::KeyUse;
use crate::config::Config;
use crate::keyring::{KEYSTORE, Keyring};
use crate::keys::{self, Material, Which};

/// Holds the password of a file that is read or written: an exported key, a key to import, a backup.
pub(super) const FILE_PASSWORD: &str = "PACS_BRIDGE_FILE_PASSWORD";

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make the keys that are missing; those that exist stay.
    New,
    /// Show the public side of the keys.
    Show,
    /// Take a key from elsewhere, before this site has made one of its own.
    Import {
        /// source: who this site is on the ledger. owner: what the owner keys of studies in custody follow from.
        which: Importable,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        password: FilePassword,
    },
    /// Write a key to an encrypted keystore file (version 3) under a password of its own.
    Export {
        /// source, operator (who signs for it since `keys rotate`), or owner.
        which: Exportable,
        /// The file; must not exist.
        #[arg(long, value_name = "FILE", required_unless_present = "print_secret")]
        to: Option<PathBuf>,
        #[command(flatten)]
        password: FilePassword,
        /// Print the naked key (owner: 24 recovery words) on standard output instead. Whoever reads it IS this site, for ever;
        /// terminals, shell histories and scrollback keep copies.
        #[arg(long, conflicts_with = "to")]
        print_secret: bool,
    },
    /// Keys of research: each owns all studies that a rule derives (`owner = "research:NAME"`).
    #[command(subcommand)]
    Research(ResearchCommand),
    /// P-256 keys, as of smart cards and HSMs, that sign retrievals (ITI-43) for an account of the ledger. The bridge must be running.
    #[command(subcommand)]
    P256(P256Command),
    /// Give daily transactions a new key: the source authorises it on the ledger, then the old one is retired. The bridge must
    /// not be running; interrupted, run it again.
    Rotate,
    /// Write everything that cannot be rebuilt into one encrypted file. The bridge may be running.
    Backup {
        /// The file; must not exist.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        password: FilePassword,
    },
    /// Put a backup's keys into a data directory that has none.
    Restore {
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        #[command(flatten)]
        password: FilePassword,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ResearchCommand {
    /// Make one. The bridge may be running; a rule that names the key needs a start.
    New {
        /// Lower-case letters, digits and hyphens.
        name: String,
    },
    /// List them.
    List,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Importable {
    Source,
    Owner,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Exportable {
    Source,
    Operator,
    Owner,
}

impl Importable {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Owner => "owner",
        }
    }
}

impl Exportable {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct From {
    /// A version 3 keystore file, as geth, Besu and wallets write it.
    #[arg(long, value_name = "FILE")]
    keystore: Option<PathBuf>,
    /// A file of 64 hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    hex: Option<PathBuf>,
    /// A file of BIP-39 recovery words; `-` asks for them (or reads a line of standard input).
    #[arg(long, value_name = "FILE")]
    words: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct FilePassword {
    /// File whose first line is the password of the other file. Without it: PACS_BRIDGE_FILE_PASSWORD, or a prompt.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Asking for a password that opens, or for one that will.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Once,
    Twice,
}

impl FilePassword {
    fn get(&self, environment: Option<&str>, ask: Ask) -> Result<Zeroizing<String>, Failed> {
        let found = if let Some(file) = &self.password_file {
            let words = |e: std::io::Error| Failed(format!("password file {}: {e}", file.display()));
            let text = Zeroizing::new(std::fs::read_to_string(file).map_err(words)?);
            Zeroizing::new(text.lines().next().unwrap_or_default().trim_end().to_owned())
        } else if let Some(password) = environment {
            Zeroizing::new(password.to_owned())
        } else {
            prompt(ask)?
        };
        if found.is_empty() { Err(Failed("the password is empty".into())) } else { Ok(found) }
    }
}

fn prompt(ask: Ask) -> Result<Zeroizing<String>, Failed> {
    if !std::io::stdin().is_terminal() {
        let words =
            "no password: name a file with --password-file, set PACS_BRIDGE_FILE_PASSWORD, or run this at a terminal";
        return Err(Failed(words.into()));
    }
    let first = Zeroizing::new(rpassword::prompt_password("Password of the file: ")?);
    if ask == Ask::Twice && *first != *Zeroizing::new(rpassword::prompt_password("The same again: ")?) {
        return Err(Failed("the passwords differ".into()));
    }
    Ok(first)
}

fn words_from(path: &Path) -> Result<Zeroizing<String>, Failed> {
    if path != Path::new("-") {
        return Ok(Zeroizing::new(
            std::fs::read_to_string(path).map_err(|e| Failed(format!("{}: {e}", path.display())))?,
        ));
    }
    if std::io::stdin().is_terminal() {
        return Ok(Zeroizing::new(rpassword::prompt_password("Recovery words: ")?));
    }
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

impl From {
    fn material(self, password: &FilePassword, environment: Option<&str>) -> Result<Material, Failed> {
        match (self.keystore, self.hex, self.words) {
            (Some(path), _, _) => Ok(Material::Keystore(path, password.get(environment, Ask::Once)?)),
            (_, Some(path), _) => Ok(Material::Hex(path)),
            (_, _, Some(path)) => Ok(Material::Words(words_from(&path)?)),
            (None, None, None) => Err(Failed("name where the key comes from".into())),
        }
    }
}

pub(super) async fn run(
    config: Config,
    command: KeysCommand,
    file_password: Option<&str>,
    key_password: Password,
    output: &Output,
) -> Result<(), Failed> {
    if let KeysCommand::P256(command) = command {
        // The bridge itself records what is decided about them.
        return p256::run(command, &config, output, key_password).await;
    }
    let (what, about) = match &command {
        KeysCommand::P256(_) => return Ok(()),
        KeysCommand::New => (KeyUse::New, "keys of this site"),
        KeysCommand::Import { which, .. } => (KeyUse::Import, which.name()),
        KeysCommand::Export { which, .. } => (KeyUse::Export, which.name()),
        KeysCommand::Research(ResearchCommand::New { .. }) => (KeyUse::Research, "research key"),
        KeysCommand::Rotate => (KeyUse::Rotate, "key that signs for this source"),
        KeysCommand::Backup { .. } => (KeyUse::Backup, "keys of this site"),
        KeysCommand::Restore { .. } => (KeyUse::Restore, "keys of this site"),
        KeysCommand::Show | KeysCommand::Research(ResearchCommand::List) => {
            return carry_out(config, command, file_password, output).await;
        }
    };
    let done = carry_out(config.clone(), command, file_password, output).await;
    super::audit::keys_used(&config, what, about, done).await
}

async fn carry_out(
    config: Config,
    command: KeysCommand,
    file_password: Option<&str>,
    output: &Output,
) -> Result<(), Failed> {
    match command {
        KeysCommand::New => show(&config, output).await,
        KeysCommand::Show => {
            let dir = &config.site.data_dir;
            if !dir.join(KEYSTORE).is_dir() {
                return Err(Failed(format!("no keys in {}; `pacs-bridge keys new` makes them", dir.display())));
            }
            show(&config, output).await
        }
        KeysCommand::Rotate => rotate(config, output).await,
        KeysCommand::Research(command) => research(config, command, output).await,
        files => {
            let environment = file_password.map(|password| Zeroizing::new(password.to_owned()));
            let done =
                tokio::task::spawn_blocking(move || on_files(&config, files, environment.as_ref().map(|p| p.as_str())));
            let (done, rows) = done.await??;
            output.done(done, &rows);
            Ok(())
        }
    }
}

type Done = (&'static str, Vec<(&'static str, String)>);

fn on_files(config: &Config, command: KeysCommand, environment: Option<&str>) -> Result<Done, Failed> {
    let (dir, keys) = (&config.site.data_dir, &config.keys);
    match command {
        KeysCommand::Import { which, from, password } => {
            let material = from.material(&password, environment)?;
            let _lock = lock(dir)?;
            let which = match which {
                Importable::Source => Which::Source,
                Importable::Owner => Which::Owner,
            };
            let account = keys::import(dir, keys, which, &material)?;
            Ok(("imported", account.map(|account| ("account", account.to_string())).into_iter().collect()))
        }
        KeysCommand::Export { which, to, password, print_secret: _ } => {
            let which = match which {
                Exportable::Source => Which::Source,
                Exportable::Operator => Which::Operator,
                Exportable::Owner => Which::Owner,
            };
            match to {
                Some(to) => {
                    keys::export(dir, keys, which, &to, &password.get(environment, Ask::Twice)?)?;
                    Ok(("exported", vec![("file", to.display().to_string())]))
                }
                None => {
                    warn_of_secret(which);
                    Ok(("secret", vec![("secret", keys::reveal(dir, keys, which)?.to_string())]))
                }
            }
        }
        KeysCommand::Backup { to, password } => {
            let names = keys::backup(dir, keys, &to, &password.get(environment, Ask::Twice)?)?;
            let mut rows = vec![("file", to.display().to_string()), ("holds", names.join(", "))];
            if !names.iter().any(|name| name == crate::keyring::PASSWORD) {
                rows.push(("without", "the keystore's password, which is configured elsewhere: keep it too".into()));
            }
            Ok(("backed up", rows))
        }
        KeysCommand::Restore { from, password } => {
            let password = password.get(environment, Ask::Once)?;
            let _lock = lock(dir)?;
            let names = keys::restore(dir, &from, &password)?;
            Ok(("restored", vec![("files", names.join(", "))]))
        }
        KeysCommand::New
        | KeysCommand::Show
        | KeysCommand::Rotate
        | KeysCommand::Research(_)
        | KeysCommand::P256(_) => Err(Failed("not a command on files".into())),
    }
}

#[allow(clippy::print_stderr)] // Said beside the secret, not into it.
fn warn_of_secret(which: Which) {
    let what = match which {
        Which::Owner => "Whoever has these words can sign as the owner of every study in this site's custody",
        Which::Source | Which::Operator => "Whoever has this key can write to the ledger as this site",
    };
    eprintln!("pacs-bridge: {what}. Do not leave it in a file, a chat or a terminal's history.");
}

async fn show(config: &Config, output: &Output) -> Result<(), Failed> {
    let (dir, keys) = (config.site.data_dir.clone(), config.keys.clone());
    let keyring = tokio::task::spawn_blocking(move || Keyring::open(&dir, &keys)).await??;
    let payload = keyring.payload_fingerprint()?;
    let operator = keyring.operator().map(|key| key.address().to_string());
    let remote = config.ledger.remote_signer.as_ref().map(|remote| format!("0x{}", hex::encode(remote.address)));
    let source = keyring.source().address().to_string();
    output.keys(&source, remote.or(operator).as_deref(), &hex::encode(payload));
    Ok(())
}

async fn research(config: Config, command: ResearchCommand, output: &Output) -> Result<(), Failed> {
    let dir = config.site.data_dir;
    match command {
        ResearchCommand::New { name } => {
            let (keys, named) = (config.keys, name.clone());
            let made = tokio::task::spawn_blocking(move || Keyring::new_research_key(&dir, &keys, &named));
            let account = made.await??;
            output.done("made", &[("name", name), ("account", account.to_string())]);
        }
        ResearchCommand::List => {
            let known = if dir.join(KEYSTORE).is_dir() { Keyring::research_keys(&dir)? } else { Vec::new() };
            let account =
                |account: Option<alloy::primitives::Address>| account.map_or_else(String::new, |a| a.to_string());
            let rows: Vec<_> = known.into_iter().map(|(name, of)| (name, account(of))).collect();
            if output.is_json() {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|(name, account)| serde_json::json!({ "name": name, "account": account }))
                    .collect();
                output.json(&rows);
            } else {
                let cells = rows.into_iter().map(|(name, account)| vec![name, account]).collect();
                print!("{}", super::table(&["NAME", "ACCOUNT"], cells));
            }
        }
    }
    Ok(())
}

async fn rotate(config: Config, output: &Output) -> Result<(), Failed> {
    super::start_logging(&config);
    let rotated = Core::rotate(config).await?;
    let rows = [("source", rotated.source), ("retired", rotated.old), ("operator", rotated.new)]
        .map(|(k, v)| (k, v.to_string()));
    output.done("rotated", &rows);
    Ok(())
}
