//! Commands for what one person alone must not decide: recovering a study by its guardians, and breaking the glass with a second
//! operator. What is agreed goes round as a file that each signs with a key of his own, without bridge or ledger.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;

use super::Failed;
use super::consent::{Password, decided, open_key, otherwise, span, tell, write};
use super::output::Output;
use crate::config::Config;
use crate::control::Reply;
use crate::decide::{Ask, Decision, EmergencyPaper, GuardianPaper, Recovery, Told};
use crate::ledger::operators::Acceptance;

/// The owner's time to object to a recovery, and the time in which guardians can agree, unless stated.
const WEEK: &str = "7d";

/// With which key.
#[derive(Debug, Args)]
pub(super) struct Signing {
    /// The file that is signed; the signature is added to it.
    pub(super) file: PathBuf,
    /// The key, a version 3 keystore file.
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,
    /// File with the key's password in its first line.
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum BreakGlassCommand {
    /// Approve, as a second operator of the source, what `break-glass --request` wrote. Needs no bridge and no ledger.
    Approve(Signing),
    /// Break the glass as approved.
    Submit {
        /// The approved request.
        file: PathBuf,
    },
    /// Demand on the ledger that two operators agree. Only the source's own key can.
    DemandApproval,
    /// Let one operator alone break the glass again. Only the source's own key can.
    WaiveApproval,
}

#[derive(Debug, Subcommand)]
pub(super) enum GuardiansCommand {
    /// Name them, instead of those named before. The ledger shows a commitment, not who they are.
    Set {
        /// The study.
        study: String,
        /// A guardian's account; once for each, eight at most.
        #[arg(long = "guardian", value_name = "ADDRESS", required = true)]
        guardians: Vec<String>,
        /// So many of them must agree.
        #[arg(long, value_name = "NUMBER")]
        need: u8,
        /// So long the owner can object to a recovery: 1d to 90d.
        #[arg(long, value_name = "SPAN", default_value = WEEK)]
        delay: String,
        /// Write who they are to this file: without it nobody can ever recover the study. Owner and guardians keep it.
        #[arg(long, value_name = "FILE")]
        paper: PathBuf,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
    /// Let nobody recover the study.
    Clear {
        /// The study.
        study: String,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RecoverCommand {
    /// Begin: write what guardians must sign for a new owner key to a file.
    Propose {
        /// What `guardians set` wrote.
        paper: PathBuf,
        /// The new owner's account.
        #[arg(long, value_name = "ADDRESS")]
        owner: String,
        /// In this time enough guardians must have signed and it must be sent.
        #[arg(long, value_name = "SPAN", default_value = WEEK)]
        good: String,
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign as a guardian. Needs no bridge and no ledger.
    Approve(Signing),
    /// Send what enough guardians signed; from then on the owner can object.
    Submit {
        /// The file, or several copies of it that different guardians signed.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Object as the owner.
    Veto {
        /// The study.
        study: String,
        /// Do not sign: write the action to this file, for `sign`.
        #[arg(long, value_name = "FILE")]
        unsigned: Option<PathBuf>,
    },
    /// Complete it when the owner's time to object is over. Anybody may.
    Complete {
        /// The study.
        study: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum OperatorsCommand {
    /// Offer an account to act for this source: write what it must sign to a file. Only the source's own key can.
    Offer {
        /// Its account.
        operator: String,
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Accept an offer as that account. Needs no bridge and no ledger.
    Accept(Signing),
    /// Send an accepted offer; the source's bridge pays.
    Submit {
        /// The file.
        file: PathBuf,
    },
    /// Let an account act for this source no longer. Only the source's own key can.
    Dismiss {
        /// Its account.
        operator: String,
    },
}

pub(super) async fn break_glass(
    command: BreakGlassCommand,
    config: &Config,
    output: &Output,
    password: Password,
) -> Result<(), Failed> {
    let ask = match command {
        BreakGlassCommand::Approve(Signing { file, key, password_file }) => {
            let mut paper: EmergencyPaper = read(&file)?;
            let key = open_key(key, password_file, password).await?;
            paper.approve(&key).map_err(|e| refused("request", &file, &e))?;
            write(&file, &paper)?;
            return signed(output, &paper, &format!("approved by {}: {}", key.address(), paper.in_words()));
        }
        BreakGlassCommand::Submit { file } => Ask::ApprovedEmergency { emergency: read(&file)? },
        BreakGlassCommand::DemandApproval => Ask::EmergencyApproval { required: true },
        BreakGlassCommand::WaiveApproval => Ask::EmergencyApproval { required: false },
    };
    output.reply(Reply::Consent(tell(config, ask).await?))
}

pub(super) async fn guardians(command: GuardiansCommand, config: &Config, output: &Output) -> Result<(), Failed> {
    match command {
        GuardiansCommand::Set { study, guardians, need, delay, paper: file, unsigned } => {
            let delay_s = u32::try_from(span(&delay)?).unwrap_or(u32::MAX);
            let told = tell(config, Ask::Guardians { study: study.clone(), guardians, need, delay_s }).await?;
            let Told::Guardians(paper) = &told else { return Err(otherwise()) };
            let commitment = paper.commitment().map_err(|e| refused("paper", &file, &e))?;
            // Before the ledger knows of them: named guardians of whom nobody has the paper are none.
            write(&file, paper)?;
            let name = Decision::NameGuardians { commitment: Some(commitment) };
            decided(study, name, unsigned, config, output).await
        }
        GuardiansCommand::Clear { study, unsigned } => {
            decided(study, Decision::NameGuardians { commitment: None }, unsigned, config, output).await
        }
    }
}

pub(super) async fn recover(
    command: RecoverCommand,
    config: &Config,
    output: &Output,
    password: Password,
) -> Result<(), Failed> {
    let ask = match command {
        RecoverCommand::Propose { paper, owner, good, out } => {
            let (guardians, good_s): (GuardianPaper, u64) = (read(&paper)?, span(&good)?);
            let told = tell(config, Ask::Recovery { guardians, owner, good_s }).await?;
            let Told::Recovery(recovery) = &told else { return Err(otherwise()) };
            write(&out, recovery)?;
            return output.reply(Reply::Consent(told));
        }
        RecoverCommand::Approve(Signing { file, key, password_file }) => {
            let mut recovery: Recovery = read(&file)?;
            let key = open_key(key, password_file, password).await?;
            recovery.approve(&key).map_err(|e| refused("recovery", &file, &e))?;
            write(&file, &recovery)?;
            return signed(output, &recovery, &format!("signed by {}: {}", key.address(), recovery.in_words()));
        }
        RecoverCommand::Submit { files } => {
            let mut files = files.iter();
            let mut recovery: Recovery = read(files.next().ok_or_else(|| Failed("name a file".into()))?)?;
            for file in files {
                recovery.join(read(file)?).map_err(|e| refused("recovery", file, &e))?;
            }
            Ask::ProposeRecovery { recovery: Box::new(recovery) }
        }
        RecoverCommand::Veto { study, unsigned } => {
            return decided(study, Decision::VetoRecovery, unsigned, config, output).await;
        }
        RecoverCommand::Complete { study } => Ask::CompleteRecovery { study },
    };
    output.reply(Reply::Consent(tell(config, ask).await?))
}

pub(super) async fn operators(
    command: OperatorsCommand,
    config: &Config,
    output: &Output,
    password: Password,
) -> Result<(), Failed> {
    let ask = match command {
        OperatorsCommand::Offer { operator, out } => {
            let told = tell(config, Ask::OfferOperator { operator }).await?;
            let Told::Offer(offer) = &told else { return Err(otherwise()) };
            write(&out, offer)?;
            return output.reply(Reply::Consent(told));
        }
        OperatorsCommand::Accept(Signing { file, key, password_file }) => {
            let mut offer: Acceptance = read(&file)?;
            let key = open_key(key, password_file, password).await?;
            offer.sign(&key)?;
            write(&file, &offer)?;
            return signed(output, &offer, &format!("{} will act for source {}", offer.operator, offer.source));
        }
        OperatorsCommand::Submit { file } => Ask::AcceptOperator { acceptance: read(&file)? },
        OperatorsCommand::Dismiss { operator } => Ask::DismissOperator { operator },
    };
    output.reply(Reply::Consent(tell(config, ask).await?))
}

pub(super) fn signed(output: &Output, value: &impl serde::Serialize, words: &str) -> Result<(), Failed> {
    if output.is_json() {
        output.json(value);
    } else {
        println!("{words}");
    }
    Ok(())
}

pub(super) fn refused(what: &str, file: &Path, why: &dyn std::error::Error) -> Failed {
    Failed(format!("the {what} in {} {why}", file.display()))
}

pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failed> {
    let text = std::fs::read_to_string(file).map_err(|e| Failed(format!("file {}: {e}", file.display())))?;
    serde_json::from_str(&text).map_err(|e| Failed(format!("{} is of another kind: {e}", file.display())))
}
