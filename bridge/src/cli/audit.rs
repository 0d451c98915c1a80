//! `pacs-bridge audit`: what the log says, and whether it is as it was written. Reads the files themselves, whether or not a bridge runs on
//! them; the ledger is asked through the bridge that runs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::Failed;
use super::output::{Output, table};
use crate::app;
use crate::audit::list::{self, Row, Wanted};
use crate::audit::verify::{Report, verify};
use crate::audit::{Audit, DIRECTORY, KeyUse, Party, syslog};
use crate::config::Config;
use crate::control::{self, Note, Noted, Reply, Request};
use crate::decide::parse_moment;

/// Commands about the audit log.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Read every record, and compare the log with its anchors on the ledger when a bridge runs here. Exit code 1 unless all is as it was
    /// written.
    Verify {
        /// Read the files alone, such as a copy of them: nobody is asked and nothing is recorded.
        #[arg(long)]
        offline: bool,
    },
    /// List records.
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Write records out: one JSON object a line, with the digests, so that others can check them (docs/AUDIT.md).
    Export {
        #[command(flatten)]
        which: Which,
        /// The messages alone, as XML documents, one a line.
        #[arg(long)]
        xml: bool,
        /// The file, which must not be there yet; by default standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Which records.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// From then on: YYYY-MM-DD, or seconds since 1970.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// About this study, by StudyInstanceUID or its id on the ledger, or about this document.
    #[arg(long)]
    study: Option<String>,
    /// In which this account, AE title or principal takes part.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// With this outcome: 0 success, 4 refused or partly, 8 or 12 failed.
    #[arg(long, value_parser = clap::value_parser!(u8))]
    outcome: Option<u8>,
}

impl Which {
    fn wanted(self) -> Result<Wanted, Failed> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let moment = |text: Option<String>| match text {
            None => Ok(None),
            Some(text) => match parse_moment(&text, now) {
                Some(seconds) => Ok(Some(seconds.saturating_mul(1000))),
                None => Err(Failed(format!("\"{text}\" is neither YYYY-MM-DD nor seconds since 1970"))),
            },
        };
        let (since_ms, until_ms) = (moment(self.since)?, moment(self.until)?);
        Ok(Wanted {
            since_ms,
            until_ms,
            study: self.study.into_iter().collect(),
            account: self.account,
            outcome: self.outcome,
            ..Wanted::default()
        })
    }
}

/// Runs one.
pub(super) async fn run(command: AuditCommand, config: &Config, output: &Output) -> Result<ExitCode, Failed> {
    let dir = config.site.data_dir.join(DIRECTORY);
    if !dir.is_dir() {
        return Err(Failed(format!("there is no audit log in {}", dir.display())));
    }
    match command {
        AuditCommand::Verify { offline } => return examine(config, &dir, offline, output).await,
        AuditCommand::List { which } => {
            let (wanted, from) = (which.wanted()?, dir.clone());
            let rows = tokio::task::spawn_blocking(move || list::list(&from, &wanted)).await??;
            if output.is_json() {
                output.json(&rows)
            } else {
                print!("{}", rows_table(&rows))
            }
            used(config, "listed").await?;
        }
        AuditCommand::Export { which, xml, out } => {
            let (wanted, from) = (which.wanted()?, dir.clone());
            let records = tokio::task::spawn_blocking(move || list::export(&from, &wanted)).await??;
            let mut text = Vec::new();
            for record in records {
                if xml {
                    writeln!(text, "{}", record.message)?;
                } else {
                    writeln!(text, "{}", serde_json::to_string(&record)?)?;
                }
            }
            match out {
                None => std::io::stdout().write_all(&text)?,
                Some(path) => std::fs::File::create_new(&path)
                    .and_then(|mut file| file.write_all(&text))
                    .map_err(|error| Failed(format!("{}: {error}", path.display())))?,
            }
            used(config, "exported").await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn examine(config: &Config, dir: &Path, offline: bool, output: &Output) -> Result<ExitCode, Failed> {
    let reply = if offline { None } else { control::ask(&config.site.data_dir, &Request::Anchors).await? };
    let anchors = match reply {
        None => None,
        Some(Reply::Anchors(anchors)) => Some(anchors),
        Some(Reply::Error(why)) => return Err(Failed(format!("{why}; --offline reads the files alone"))),
        Some(_) => return Err(Failed("the bridge answered something else".into())),
    };
    let from = dir.to_owned();
    let read = tokio::task::spawn_blocking(move || verify(&from, anchors.as_deref(), syslog::sent(&from)));
    let report = read.await??;
    if output.is_json() {
        output.json(&report)
    } else {
        report_lines(&report, offline)
    }
    if !offline {
        used(config, if report.is_intact() { "verified: intact" } else { "verified: NOT intact" }).await?;
    }
    Ok(if report.is_intact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report_lines(report: &Report, offline: bool) {
    for log in &report.logs {
        println!("log {}     {}", log.number, log.log);
        println!("records   {}, the last with digest {}", log.records, log.head);
        match report.anchors {
            Some(_) => println!("anchored  {} records, by {} anchors that agree", log.anchored, log.anchors),
            None if offline => println!("anchored  the ledger was not asked"),
            None => println!("anchored  the ledger was not asked: no bridge runs here"),
        }
    }
    for finding in &report.findings {
        println!("{}, record {}, byte {}: {}", finding.file, finding.record, finding.offset, finding.words);
    }
    println!("{}", if report.is_intact() { "intact" } else { "NOT INTACT" });
}

fn rows_table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        let event =
            if row.types.is_empty() { row.event.clone() } else { format!("{} [{}]", row.event, row.types.join(" ")) };
        let (who, about) = (row.who.join(", "), row.about.join(", "));
        vec![row.record.clone(), row.time.clone(), row.outcome.to_string(), event, who, about]
    });
    table(&["RECORD", "TIME", "OUTCOME", "EVENT", "WHO", "ABOUT"], cells.collect())
}

async fn used(config: &Config, what: &str) -> Result<(), Failed> {
    note(config, Noted::Log { what: what.to_owned() }).await
}

/// Records that keys or tokens were made, moved or ended, or that this was tried.
pub(super) async fn keys_used<T>(
    config: &Config,
    what: KeyUse,
    about: &str,
    result: Result<T, Failed>,
) -> Result<T, Failed> {
    // The words of a failure may hold what was typed.
    let why = result.is_err().then(|| "it failed".to_owned());
    if result.is_ok() || config.site.data_dir.is_dir() {
        note(config, Noted::Keys { what, about: about.to_owned(), why }).await?;
    }
    result
}

/// Hands a note to the bridge that runs, or writes it here when none does.
async fn note(config: &Config, what: Noted) -> Result<(), Failed> {
    if !config.audit.enabled {
        return Ok(());
    }
    let note = Note { by: Party::at_this_machine(), what };
    let noted = match control::ask(&config.site.data_dir, &Request::Note(note.clone())).await? {
        Some(Reply::Noted) => return Ok(()),
        Some(Reply::Error(words)) => Err(words),
        Some(_) => Err("the bridge answered something else".into()),
        None => note_apart(config, &note).await,
    };
    noted.map_err(|why| Failed(format!("it was done, but could not be recorded: {why}")))
}

async fn note_apart(config: &Config, note: &Note) -> Result<(), String> {
    let _lock = app::lock(&config.site.data_dir).map_err(|error| crate::chain_of(&error))?;
    let (dir, bytes) = (config.site.data_dir.join(DIRECTORY), config.audit.segment_bytes);
    let source = app::audit_source(config);
    let opened = tokio::task::spawn_blocking(move || Audit::open(&dir, bytes, source)).await;
    let audit = opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let noted = audit.durable(vec![note.event()]).await.map_err(|error| error.to_string());
    audit.close().await;
    noted
}
