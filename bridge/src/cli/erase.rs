//! `erase`: asks once more, has the bridge do it, and shows or checks the certificate.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::consent::{read, tell, write};
use super::output::Output;
use super::{Failed, control};
use crate::config::Config;
use crate::control::{Reply, Request};
use crate::decide::{self, Decision, Told};
use crate::erase::{Ask, Outcome, SignedCertificate};

/// Arguments of `erase`.
#[derive(Debug, Args)]
pub(super) struct Erase {
    /// StudyInstanceUID, or the study's id on the ledger.
    #[arg(required_unless_present = "check")]
    study: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Write the certificate to this file as well.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Name the StudyInstanceUID on the certificate.
    #[arg(long)]
    with_uid: bool,
    /// Erase what was derived from it first. Each study gets a certificate of its own.
    #[arg(long, conflicts_with = "keep_derived")]
    with_derived: bool,
    /// Let what was derived from it stay; nothing here leads from one to the other afterwards.
    #[arg(long)]
    keep_derived: bool,
    /// Erase nothing: write what the study's owner must sign to this file, for `sign`.
    #[arg(long, value_name = "FILE", conflicts_with = "signed")]
    unsigned: Option<PathBuf>,
    /// The action that the owner signed.
    #[arg(long, value_name = "FILE")]
    signed: Option<PathBuf>,
    /// Check a certificate, and compare it with the ledger if a bridge runs here.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["study", "unsigned", "signed"])]
    check: Option<PathBuf>,
}

/// Runs it.
pub(super) async fn run(erase: Erase, config: &Config, output: &Output) -> Result<(), Failed> {
    if let Some(file) = &erase.check {
        return check(file, config, output).await;
    }
    let study = erase.study.unwrap_or_default();
    if let Some(file) = &erase.unsigned {
        let ask = decide::Ask::Unsigned { study, decision: Decision::Tombstone };
        let told = tell(config, ask).await?;
        let Told::Unsigned(pending) = &told else { return Err(Failed("the bridge answered something else".into())) };
        write(file, pending)?;
        output.reply(Reply::Consent(told.clone()))?;
        if !output.is_json() {
            println!("to be signed by {}: pacs-bridge sign {} --key KEYFILE", pending.signer, file.display());
        }
        return Ok(());
    }
    let signed = erase.signed.as_deref().map(read).transpose()?.map(Box::new);
    if !erase.yes {
        confirm(&study, config).await?;
    }
    let derived = if erase.with_derived { derived_from(&study, config).await? } else { Vec::new() };
    for study in derived {
        let ask = Ask { study, with_uid: erase.with_uid, signed: None, keep_derived: false };
        show(&destroy(ask, config).await?, output);
    }
    let ask = Ask { study, with_uid: erase.with_uid, signed, keep_derived: erase.keep_derived };
    let outcome = destroy(ask, config).await?;
    if let (Some(file), Some(certificate)) = (&erase.certificate, &outcome.certificate) {
        write(file, certificate)?;
    }
    show(&outcome, output);
    Ok(())
}

async fn ask(request: Request, config: &Config) -> Result<Reply, Failed> {
    match control::ask(&config.site.data_dir, &request).await? {
        Some(Reply::Error(words)) => Err(Failed(words)),
        Some(reply) => Ok(reply),
        None => {
            let data_dir = config.site.data_dir.display();
            Err(Failed(format!("no bridge runs on {data_dir}; `pacs-bridge serve` starts it")))
        }
    }
}

async fn destroy(wanted: Ask, config: &Config) -> Result<Outcome, Failed> {
    match ask(Request::Erase(wanted), config).await? {
        Reply::Erased(outcome) => Ok(*outcome),
        _ => Err(Failed("the bridge answered something else; is it of the same version?".into())),
    }
}

/// The living studies that were derived from one.
async fn derived_from(study: &str, config: &Config) -> Result<Vec<String>, Failed> {
    let uid = match tell(config, decide::Ask::HandOver { study: study.to_owned() }).await {
        Ok(Told::HandOver(known)) => known.study_uid.unwrap_or_else(|| study.to_owned()),
        _ => study.to_owned(),
    };
    let Reply::Derivations(rows) = ask(Request::Derived, config).await? else {
        return Err(Failed("the bridge answered something else".into()));
    };
    let mut living = Vec::new();
    for row in rows.into_iter().filter(|row| row.parent.as_deref() == Some(uid.as_str()) && row.state != "erased") {
        let Some(study) = row.study else { continue };
        // What was begun and has no object yet cannot be erased and need not be.
        if ask(Request::Study { uid: study.clone() }, config).await.is_ok() {
            living.push(study);
        }
    }
    Ok(living)
}

/// Nobody should do this by a slip of the hand.
async fn confirm(study: &str, config: &Config) -> Result<(), Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed("erasing cannot be undone: say --yes where nobody can be asked".into()));
    }
    let mut wanted = study.to_owned();
    if study.starts_with("0x")
        && let Ok(Told::HandOver(known)) = tell(config, decide::Ask::HandOver { study: study.to_owned() }).await
    {
        wanted = known.study_uid.unwrap_or(wanted);
    }
    print!("Erasing destroys the study's keys and every copy here, for ever.\nType {wanted} to go on: ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if line.trim() == wanted { Ok(()) } else { Err(Failed("that is something else; nothing was erased".into())) }
}

fn show(outcome: &Outcome, output: &Output) {
    if output.is_json() {
        return output.json(outcome);
    }
    if let Some(words) = &outcome.waits_for {
        println!("everything here is destroyed; the certificate follows when the ledger says so too: {words}");
    }
    if let Some(signed) = &outcome.certificate {
        table(signed);
    }
    if let Some(file) = &outcome.file {
        println!("certificate  {}", file.display());
    }
}

fn table(signed: &SignedCertificate) {
    let said = &signed.certificate;
    let none = || "none".to_owned();
    println!("erased       {} to {}", decide::moment(said.begun_s), decide::moment(said.ended_s));
    println!("study id     {}", said.study_id.map_or_else(none, |id| id.to_string()));
    if let Some(uid) = &said.study_uid {
        println!("study        {uid}");
    }
    let (gone, left) = (&said.destroyed, &said.remains);
    println!("destroyed    {} salt, {} session keys", gone.salts, gone.session_keys);
    println!("             {} objects, {} files, {}", gone.objects, gone.files, super::size(gone.file_bytes));
    println!(
        "             {} previews, {} of intake log overwritten",
        gone.previews,
        super::size(gone.intake_log_bytes)
    );
    match &said.tombstone {
        Some(tombstone) => println!("tombstone    {} in block {}", tombstone.transaction, tombstone.block),
        None => println!("tombstone    none: the ledger never knew the study"),
    }
    let (images, pieces, size) = (left.images, left.pieces, super::size(left.sealed_bytes));
    println!("remains      ciphertext on the ledger: {images} images, {pieces} pieces, {size}");
    for holder in &said.may_hold_copies {
        println!("copies?      {} was let in ({}) in block {}", holder.grantee, holder.mode, holder.since_block);
    }
    said.notes.iter().for_each(|note| println!("note         {note}"));
    println!("signed by    {}", said.source);
}

async fn check(file: &Path, config: &Config, output: &Output) -> Result<(), Failed> {
    let text = std::fs::read_to_string(file).map_err(|e| Failed(format!("certificate {}: {e}", file.display())))?;
    let unreadable = |e| Failed(format!("{} is not a certificate: {e}", file.display()));
    let signed: SignedCertificate = serde_json::from_str(&text).map_err(unreadable)?;
    signed.check().map_err(|error| Failed(format!("the certificate in {} {error}", file.display())))?;
    let ledger = on_ledger(&signed, config).await?;
    if output.is_json() {
        output.json(&serde_json::json!({ "good": true, "source": signed.certificate.source, "ledger": ledger }));
    } else {
        table(&signed);
        println!("the signature is good; the ledger {ledger}");
    }
    Ok(())
}

/// What the ledger says to a certificate whose signature is good.
async fn on_ledger(signed: &SignedCertificate, config: &Config) -> Result<&'static str, Failed> {
    let certificate = &signed.certificate;
    let (Some(study), Some(tombstone)) = (certificate.study_id, &certificate.tombstone) else {
        return Ok("has nothing to say: it never knew the study");
    };
    let ask = decide::Ask::Trace { study: study.to_string(), grantee: None };
    let report = match control::ask(&config.site.data_dir, &Request::Consent(ask)).await? {
        None => return Ok("was not asked, because no bridge runs here"),
        Some(Reply::Consent(Told::Trace(report))) => report,
        Some(Reply::Error(words)) => return Err(Failed(format!("the signature is good, but the ledger: {words}"))),
        Some(_) => return Err(Failed("the bridge answered something else".into())),
    };
    let there = report.history.iter().any(|row| {
        row.event == "removed" && row.account.is_none() && row.transaction == tombstone.transaction.to_string()
    });
    if there && report.source == certificate.source.to_string() {
        Ok("agrees")
    } else {
        Err(Failed("the signature is good, but the ledger says something else about the study".into()))
    }
}
