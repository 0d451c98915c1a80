//! The patient's and the consortium's commands. What is decided is in [`crate::decide`]; here it gets a face, and keys that are not
//! the bridge's are used without it.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::signers::local::PrivateKeySigner;
use clap::Subcommand;
use zeroize::Zeroizing;

use super::output::Output;
use super::together::{self, BreakGlassCommand, GuardiansCommand, OperatorsCommand, RecoverCommand};
use super::{Failed, control};
use crate::config::Config;
use crate::control::{Reply, Request};
use crate::decide::note::{NOTE_BYTES_MAX, Note};
use crate::decide::{self, Ask, Decision, Pending, Told};
use crate::ledger::keystore;

/// The environment variable that may hold the password of a key file.
pub(super) const KEY_PASSWORD: &str = "PACS_BRIDGE_KEY_PASSWORD";
/// How long an emergency lasts unless stated.
const EMERGENCY: &str = "1h";

/// Commands about notes.
#[derive(Debug, Subcommand)]
pub(super) enum NoteCommand {
    /// Write a note to a file, for `request`, `allow` or `deny` to commit to and for the other side to be given.
    New {
        /// The file.
        file: PathBuf,
        /// The words; without them what comes on standard input.
        text: Option<String>,
    },
    /// Find where the ledger holds the commitment to a note, which shows that the note was not changed since.
    Find {
        /// The note.
        file: PathBuf,
        /// The study.
        study: String,
    },
}

/// Commands about consent. STUDY is a StudyInstanceUID of this site or a study id on the ledger; accounts are 0x and 40 digits.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List who asks for which study.
    Requests {
        /// Answered requests too.
        #[arg(long)]
        all: bool,
    },
    /// Ask the owner of a study for access for this site.
    Request {
        /// Study id on the ledger.
        study: String,
        /// preview or full.
        #[arg(long, default_value = "full")]
        mode: Wanted,
        /// What for: TREAT, ETREAT, HRESCH, PATRQT and so on.
        #[arg(long)]
        purpose: Option<String>,
        /// What is said in words: a file of `note new`. The ledger gets a salted hash of it.
        #[arg(long, value_name = "FILE")]
        note: Option<PathBuf>,
    },
    /// Write down what belongs to a request or a decision in words, or find where that was said.
    #[command(subcommand)]
    Note(NoteCommand),
    /// Let a grantee see a study.
    Allow {
        /// The study.
        study: String,
        /// The grantee's account.
        grantee: String,
        /// Previews and descriptions only.
        #[arg(long)]
        preview_only: bool,
        /// SeriesInstanceUID: this series only.
        #[arg(long, value_name = "UID")]
        series: Option<String>,
        /// Not before: YYYY-MM-DD, seconds since 1970, or a span from now such as 12h or 30d.
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Not after, in the same ways; without it until revoked.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// For this purpose only: TREAT, ETREAT, HRESCH, PATRQT and so on.
        #[arg(long)]
        purpose: Option<String>,
        /// keccak-256 of the grantee's OpenPGP key; without it the key of its request, or the one that it announced.
        #[arg(long, value_name = "HASH")]
        encryption_key: Option<String>,
        /// What is said in words: a file of `note new`. The ledger gets a salted hash of it.
        #[arg(long, value_name = "FILE")]
        note: Option<PathBuf>,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
    /// Refuse what a grantee asked for.
    Deny {
        /// The study.
        study: String,
        /// The grantee's account.
        grantee: String,
        /// unknown-grantee, purpose, too-broad, not-now, unwanted.
        #[arg(long)]
        reason: Option<String>,
        /// What is said in words: a file of `note new`. The ledger gets a salted hash of it.
        #[arg(long, value_name = "FILE")]
        note: Option<PathBuf>,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
    /// Take a grantee's access away.
    Revoke {
        /// The study.
        study: String,
        /// The grantee's account.
        grantee: String,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
    /// What was said about a study, and who may see it now.
    Trace {
        /// The study.
        study: String,
        /// About this account alone.
        grantee: Option<String>,
    },
    /// Let this site in for an emergency. Everybody on the ledger sees it.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    BreakGlass {
        #[command(subcommand)]
        command: Option<BreakGlassCommand>,
        /// Study id on the ledger.
        #[arg(required = true)]
        study: Option<String>,
        /// life-threatening, patient-unable, public-safety, legal-order.
        #[arg(long, required = true)]
        reason: Option<String>,
        /// For how long, such as 30m; a day at most.
        #[arg(long = "for", value_name = "SPAN", default_value = EMERGENCY)]
        lasting: String,
        /// Do not break it: write to this file what a second operator must approve first.
        #[arg(long, value_name = "FILE")]
        request: Option<PathBuf>,
    },
    /// Who may give a study a new owner key when the patient has lost his.
    #[command(subcommand)]
    Guardians(GuardiansCommand),
    /// Give a study a new owner key on the word of its guardians.
    #[command(subcommand)]
    Recover(RecoverCommand),
    /// Who acts for this source besides its bridge, such as the second of two who must agree to break the glass.
    #[command(subcommand)]
    Operators(OperatorsCommand),
    /// The sources of the consortium.
    Sources {
        #[command(subcommand)]
        command: Option<SourcesCommand>,
    },
    /// Hand a study from the key in custody to the patient's own.
    Claim {
        /// The study.
        study: String,
        /// The patient's account.
        #[arg(long, value_name = "ADDRESS", required_unless_present = "new_key", conflicts_with = "new_key")]
        owner: Option<String>,
        /// Make a key for the patient and write it to this keystore file.
        #[arg(long, value_name = "FILE")]
        new_key: Option<PathBuf>,
        /// File with the new key's password in its first line.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Write what the new owner needs to know to this file; without it, it is printed.
        #[arg(long, value_name = "FILE")]
        hand_over: Option<PathBuf>,
    },
    /// Sign an action with the owner's key. Needs no bridge and no ledger.
    Sign {
        /// The action, as `--unsigned` wrote it; the signature is added to it.
        file: PathBuf,
        /// The key, a version 3 keystore file.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// File with the key's password in its first line.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Send a signed action; the bridge pays.
    Submit {
        /// The action.
        file: PathBuf,
    },
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Wanted {
    /// Previews and descriptions.
    Preview,
    /// Everything.
    Full,
}

#[derive(Debug, Subcommand)]
pub(super) enum SourcesCommand {
    /// List them.
    List,
    /// Admit a source; the consortium's administrator only.
    Admit {
        /// Its account.
        address: String,
    },
    /// Suspend a source; the consortium's administrator only.
    Suspend {
        /// Its account.
        address: String,
    },
    /// Lift a suspension; the consortium's administrator only.
    Reinstate {
        /// Its account.
        address: String,
    },
}

pub(super) type Password = Option<Zeroizing<String>>;

/// Runs one.
pub(super) async fn run(command: Command, config: &Config, output: &Output, password: Password) -> Result<(), Failed> {
    let ask = match command {
        Command::Sign { file, key, password_file } => {
            return sign(file, key, password_file, password, output).await;
        }
        Command::Claim { study, owner, new_key, password_file, hand_over } => {
            let owner = match (owner, new_key) {
                (Some(owner), _) => owner,
                (None, Some(file)) => make_key(file, password_file, password).await?,
                (None, None) => return Err(Failed("name the new owner with --owner or --new-key".into())),
            };
            return claim(study, owner, hand_over, config, output).await;
        }
        Command::Allow {
            study,
            grantee,
            preview_only,
            series,
            from,
            until,
            purpose,
            encryption_key,
            note,
            unsigned,
        } => {
            let (from_s, until_s, notes) = (moment(from)?, moment(until)?, committed(note)?);
            let allow =
                Decision::Allow { grantee, preview_only, series, from_s, until_s, purpose, encryption_key, notes };
            return decided(study, allow, unsigned, config, output).await;
        }
        Command::Deny { study, grantee, reason, note, unsigned } => {
            let deny = Decision::Deny { grantee, reason, notes: committed(note)? };
            return decided(study, deny, unsigned, config, output).await;
        }
        Command::Note(command) => return note(command, config, output).await,
        Command::Revoke { study, grantee, unsigned } => {
            return decided(study, Decision::Revoke { grantee }, unsigned, config, output).await;
        }
        Command::Requests { all } => Ask::Requests { all },
        Command::Request { study, mode, purpose, note } => {
            Ask::Request { study, preview_only: mode == Wanted::Preview, purpose, notes: committed(note)? }
        }
        Command::Trace { study, grantee } => Ask::Trace { study, grantee },
        Command::BreakGlass { command: Some(command), .. } => {
            return together::break_glass(command, config, output, password).await;
        }
        Command::BreakGlass { command: None, study, reason, lasting, request } => {
            let missing = || Failed("name the study and --reason".into());
            let (study, reason) = study.zip(reason).ok_or_else(missing)?;
            let seconds = span(&lasting)?;
            if let Some(file) = request {
                let told = tell(config, Ask::Emergency { study, reason, seconds }).await?;
                let Told::Emergency(paper) = &told else { return Err(otherwise()) };
                write(&file, paper)?;
                return output.reply(Reply::Consent(told));
            }
            Ask::BreakGlass { study, reason, seconds }
        }
        Command::Guardians(command) => return together::guardians(command, config, output).await,
        Command::Recover(command) => return together::recover(command, config, output, password).await,
        Command::Operators(command) => return together::operators(command, config, output, password).await,
        Command::Sources { command } => match command {
            None | Some(SourcesCommand::List) => Ask::Sources,
            Some(SourcesCommand::Admit { address }) => Ask::Admit { source: address },
            Some(SourcesCommand::Suspend { address }) => Ask::Suspend { source: address },
            Some(SourcesCommand::Reinstate { address }) => Ask::Reinstate { source: address },
        },
        Command::Submit { file } => Ask::Submit { action: Box::new(read(&file)?) },
    };
    output.reply(Reply::Consent(tell(config, ask).await?))
}

/// Asks the running bridge: only that follows the ledger.
pub(super) async fn tell(config: &Config, ask: Ask) -> Result<Told, Failed> {
    let data_dir = &config.site.data_dir;
    match control::ask(data_dir, &Request::Consent(ask)).await? {
        Some(Reply::Consent(told)) => Ok(told),
        Some(Reply::Error(words)) => Err(Failed(words)),
        Some(_) => Err(otherwise()),
        None => Err(Failed(format!("no bridge runs on {}; `pacs-bridge serve` starts it", data_dir.display()))),
    }
}

/// A running bridge that speaks otherwise.
pub(super) fn otherwise() -> Failed {
    Failed("the bridge answered something else; is it of the same version?".into())
}

pub(super) fn span(text: &str) -> Result<u64, Failed> {
    decide::parse_span(text).ok_or_else(|| Failed(format!("\"{text}\" is not a span such as 30m, 24h or 7d")))
}

pub(super) async fn decided(
    study: String,
    decision: Decision,
    unsigned: Option<PathBuf>,
    config: &Config,
    output: &Output,
) -> Result<(), Failed> {
    let Some(file) = unsigned else {
        return output.reply(Reply::Consent(tell(config, Ask::Decide { study, decision }).await?));
    };
    let told = tell(config, Ask::Unsigned { study, decision }).await?;
    let Told::Unsigned(pending) = &told else { return Err(Failed("the bridge answered something else".into())) };
    write(&file, pending)?;
    output.reply(Reply::Consent(told))?;
    if !output.is_json() {
        println!("to be signed by {}: pacs-bridge sign {} --key KEYFILE", pending_signer(&file)?, file.display());
    }
    Ok(())
}

async fn note(command: NoteCommand, config: &Config, output: &Output) -> Result<(), Failed> {
    match command {
        NoteCommand::New { file, text } => {
            let text = match text {
                Some(text) => text,
                None => std::io::read_to_string(std::io::stdin().lock().take(NOTE_BYTES_MAX as u64 + 1))?,
            };
            let note = Note::new(text).map_err(|e| Failed(e.to_string()))?;
            write(&file, &note)?;
            println!("{}", note.commitment());
            Ok(())
        }
        NoteCommand::Find { file, study } => {
            let wanted = read_note(&file)?.commitment().to_string();
            let told = tell(config, Ask::Trace { study, grantee: None }).await?;
            let Told::Trace(mut report) = told else { return Err(otherwise()) };
            report.history.retain(|row| row.notes.as_ref() == Some(&wanted));
            if report.history.is_empty() {
                return Err(Failed(format!("nothing that was said about the study commits to this note ({wanted})")));
            }
            output.reply(Reply::Consent(Told::Trace(report)))
        }
    }
}

fn read_note(file: &Path) -> Result<Note, Failed> {
    let text = std::fs::read_to_string(file).map_err(|e| Failed(format!("note {}: {e}", file.display())))?;
    let note = serde_json::from_str::<Note>(&text);
    let note = note.map_err(|e| Failed(format!("{} is not a note: {e}", file.display())))?;
    note.checked().map_err(|e| Failed(format!("{}: {e}", file.display())))
}

/// The commitment to the note in a file, if one is named.
fn committed(file: Option<PathBuf>) -> Result<Option<String>, Failed> {
    file.map(|file| read_note(&file).map(|note| note.commitment().to_string())).transpose()
}

fn pending_signer(file: &Path) -> Result<String, Failed> {
    Ok(read(file)?.signer.to_string())
}

async fn claim(
    study: String,
    owner: String,
    paper: Option<PathBuf>,
    config: &Config,
    output: &Output,
) -> Result<(), Failed> {
    let decision = Decision::Transfer { owner };
    let done = tell(config, Ask::Decide { study: study.clone(), decision }).await?;
    let told = tell(config, Ask::HandOver { study }).await?;
    let Told::HandOver(hand_over) = &told else { return Err(Failed("the bridge answered something else".into())) };
    if let Some(file) = paper {
        write(&file, hand_over)?;
        return output.reply(Reply::Consent(done));
    }
    if !output.is_json() {
        output.reply(Reply::Consent(done))?;
    }
    output.reply(Reply::Consent(told))
}

/// Makes a key and its file; durable before anything is owned by it.
async fn make_key(file: PathBuf, password_file: Option<PathBuf>, password: Password) -> Result<String, Failed> {
    let password = password_of("the new key", Prompt::Twice, password_file.as_deref(), password)?;
    let made = tokio::task::spawn_blocking(move || {
        let key = PrivateKeySigner::random();
        let text = keystore::encrypt(&key, &password)?;
        keystore::write(&file, &text)?;
        Ok::<_, keystore::KeystoreError>(key.address())
    });
    Ok(made.await??.to_string())
}

async fn sign(
    file: PathBuf,
    key: PathBuf,
    password_file: Option<PathBuf>,
    password: Password,
    output: &Output,
) -> Result<(), Failed> {
    let mut pending = read(&file)?;
    let key = open_key(key, password_file, password).await?;
    let refused = |e: decide::PendingError| Failed(format!("the action in {} {e}", file.display()));
    pending.sign(&key).map_err(refused)?;
    write(&file, &pending)?;
    if output.is_json() {
        output.json(&pending);
    } else {
        println!("signed by {}: {}", pending.signer, pending.action.in_words());
    }
    Ok(())
}

/// A key that is not the bridge's.
pub(super) async fn open_key(
    file: PathBuf,
    password_file: Option<PathBuf>,
    password: Password,
) -> Result<PrivateKeySigner, Failed> {
    let text = std::fs::read_to_string(&file).map_err(|e| Failed(format!("key file {}: {e}", file.display())))?;
    let password = password_of("the key", Prompt::Once, password_file.as_deref(), password)?;
    Ok(tokio::task::spawn_blocking(move || keystore::decrypt(&text, &password)).await??)
}

pub(super) fn moment(given: Option<String>) -> Result<Option<u64>, Failed> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let parse = |text: String| {
        let bad = || Failed(format!("\"{text}\" is not a time: YYYY-MM-DD, seconds since 1970, or a span such as 30d"));
        decide::parse_moment(&text, now).ok_or_else(bad)
    };
    given.map(parse).transpose()
}

/// A password that opens is asked for once; one that will close, twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prompt {
    Once,
    Twice,
}

/// From a file, from the environment, or from a line of standard input; never from the command line, which others can see.
fn password_of(
    of: &str,
    prompt: Prompt,
    file: Option<&Path>,
    environment: Password,
) -> Result<Zeroizing<String>, Failed> {
    let first = |text: &str| Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    let password = if let Some(file) = file {
        let text =
            std::fs::read_to_string(file).map_err(|e| Failed(format!("password file {}: {e}", file.display())))?;
        first(&Zeroizing::new(text))
    } else if let Some(password) = environment {
        password
    } else if std::io::stdin().is_terminal() {
        // Not shown while it is typed.
        let typed = Zeroizing::new(rpassword::prompt_password(format!("password of {of}: "))?);
        if prompt == Prompt::Twice && *typed != *Zeroizing::new(rpassword::prompt_password("the same again: ")?) {
            return Err(Failed("the passwords differ".into()));
        }
        typed
    } else {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().lock().read_line(&mut line)?;
        first(&line)
    };
    if password.is_empty() {
        return Err(Failed(format!("no password of {of}: give --password-file, or set {KEY_PASSWORD}")));
    }
    Ok(password)
}

pub(super) fn read(file: &Path) -> Result<Pending, Failed> {
    let text = std::fs::read_to_string(file).map_err(|e| Failed(format!("action file {}: {e}", file.display())))?;
    serde_json::from_str(&text).map_err(|e| Failed(format!("{} is not an action: {e}", file.display())))
}

/// Writes a file whole or not at all; what is in it was decided about somebody's health data.
pub(super) fn write(file: &Path, value: &impl serde::Serialize) -> Result<(), Failed> {
    let fail = |e: std::io::Error| Failed(format!("file {}: {e}", file.display()));
    let part = file.with_extension("part");
    let mut out = std::fs::OpenOptions::new();
    let mut out = out.write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(fail)?;
    out.write_all(&serde_json::to_vec_pretty(value)?).and_then(|()| out.sync_all()).map_err(fail)?;
    std::fs::rename(&part, file).map_err(fail)
}
