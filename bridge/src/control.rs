//! The daemon's control socket: how `pacs-bridge studies` and its like ask a running bridge.
//!
//! A Unix socket in the data directory, readable by its owner only; one JSON request a line, one JSON reply a line. The
//! same [`Request`] is answered in process when no daemon runs. Must not know DICOM associations.

use std::path::{Path, PathBuf};

use dicom_scp::Uid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::verify::Anchor;
use crate::audit::{self, Event, Handling, KeyUse, Party};
use crate::decide;
use crate::derive;
use crate::erase;
use crate::proof::{self, Proof};
use crate::site::{LedgerCopy, Site, SiteStatus, StudyReport, StudyRow, Verdict};
use crate::xds;

/// Longest request or reply line, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Every study, one row each.
    Studies,
    /// One study in full.
    Study {
        /// StudyInstanceUID.
        uid: String,
    },
    /// Remove the local copies of a study that is final on the ledger.
    Evict {
        /// StudyInstanceUID.
        uid: String,
    },
    /// Compare a study, or one instance, with the ledger, byte by byte.
    Verify {
        /// StudyInstanceUID or SOPInstanceUID.
        uid: String,
    },
    /// Compare a file's digest with the ledger.
    VerifyFile {
        /// SOPInstanceUID found in the file.
        sop_instance: String,
        /// SHA-256 of the data set in the file, hexadecimal.
        dataset_sha256: String,
    },
    /// Prove that an object is on the ledger.
    Proof {
        /// SOPInstanceUID.
        uid: String,
    },
    /// Totals and the state of the ledger.
    Status,
    /// Something about consent.
    Consent(decide::Ask),
    /// Erase a study.
    Erase(erase::Ask),
    /// Derive a study by a rule.
    Derive(derive::Ask),
    /// What was derived from what.
    Derived,
    /// Fetch a study from another site by ITI-43.
    Fetch(xds::Ask),
    /// Record what a command did with files of this site.
    Note(Note),
    /// What the ledger holds of the audit log.
    Anchors,
    /// Write a copy of the embedded ledger.
    ExportLedger {
        /// The file; must not exist.
        out: PathBuf,
    },
}

/// What a command did with files of this site, for the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// Who ran it.
    pub by: Party,
    /// What.
    pub what: Noted,
}

/// What can be noted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noted {
    /// Keys or tokens were made, moved or ended.
    Keys {
        /// How.
        what: KeyUse,
        /// Which.
        about: String,
        /// Why that failed, if so.
        why: Option<String>,
    },
    /// The audit log was read.
    Log {
        /// How.
        what: String,
    },
}

impl Note {
    /// What is recorded.
    #[must_use]
    pub fn event(&self) -> Event {
        match &self.what {
            Noted::Keys { what, about, why } => Event::keys_used(&self.by, *what, about, why.as_deref()),
            Noted::Log { what } => Event::log_used(&self.by, what),
        }
    }
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Studies`].
    Studies(Vec<StudyRow>),
    /// To [`Request::Study`].
    Study(Box<StudyReport>),
    /// To [`Request::Evict`].
    Evicted {
        /// Files removed.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// To [`Request::Verify`] and [`Request::VerifyFile`].
    Verdicts(Vec<Verdict>),
    /// To [`Request::Proof`].
    Proof(Box<Proof>),
    /// To [`Request::Status`].
    Status(Box<SiteStatus>),
    /// To [`Request::Consent`].
    Consent(decide::Told),
    /// To [`Request::Erase`].
    Erased(Box<erase::Outcome>),
    /// To [`Request::Derive`].
    Made(derive::Outcome),
    /// To [`Request::Derived`].
    Derivations(Vec<derive::DerivedRow>),
    /// To [`Request::Fetch`].
    Fetched(Box<xds::Fetched>),
    /// To [`Request::Note`].
    Noted,
    /// To [`Request::Anchors`].
    Anchors(Vec<Anchor>),
    /// To [`Request::ExportLedger`].
    LedgerExported(LedgerCopy),
    /// It could not be done; the text is for the asker.
    Error(String),
}

/// Where the socket of a data directory is.
#[must_use]
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The socket's path through an open directory: a socket address holds about 100 bytes, a data directory may be longer.
fn short_path(data_dir: &Path) -> std::io::Result<(std::fs::File, PathBuf)> {
    let dir = std::fs::File::open(data_dir)?;
    let path = format!("/proc/self/fd/{}/control.sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
    Ok((dir, PathBuf::from(path)))
}

/// What is recorded of a request about a study, besides what is recorded where it is carried out.
fn trail(request: &Request, reply: &Reply) -> Option<Event> {
    // The words of an error may hold what was typed.
    let why = matches!(reply, Reply::Error(_)).then_some("it failed, or was refused");
    let by = Party::at_this_machine();
    match request {
        Request::Evict { uid } => Some(Event::handled(&by, Handling::Evict, uid, why)),
        Request::Verify { uid } | Request::VerifyFile { sop_instance: uid, .. } | Request::Proof { uid } => {
            Some(Event::handled(&by, Handling::Verify, uid, why))
        }
        Request::Study { uid } => Some(Event::handled(&by, Handling::Show, uid, why)),
        Request::Derive(ask) => Some(Event::handled(&by, Handling::Derive, &ask.study, why)),
        Request::Erase(ask) => Some(Event::erased(&by, &ask.study, why)),
        Request::Fetch(ask) => Some(Event::fetched(&by, ask.from.as_deref().unwrap_or("its source"), &ask.study, why)),
        _ => None,
    }
}

/// Answers one request.
pub async fn answer(site: &Site, request: Request) -> Reply {
    let asked = request.clone();
    let reply = carry_out(site, request).await;
    if let Some(event) = trail(&asked, &reply) {
        // It is done; that it could not be recorded is reported by the log's writer.
        let _ = site.audit().durable(vec![event]).await;
    }
    reply
}

async fn anchors(site: &Site) -> Result<Vec<Anchor>, String> {
    let ledger = site.parts().ledger.get().ok_or("the ledger is away")?;
    audit::anchor::all(ledger).await.map_err(|error| crate::chain_of(&error))
}

async fn proof(site: &Site, uid: &str) -> Result<Reply, String> {
    let uid = Uid::new(uid).map_err(|_| format!("\"{uid}\" is no UID"))?;
    let proof = proof::make(site, &uid).await.map_err(|error| crate::chain_of(&error))?;
    Ok(Reply::Proof(Box::new(proof)))
}

async fn carry_out(site: &Site, request: Request) -> Reply {
    let result = match request {
        Request::Note(note) => {
            let noted = site.audit().durable(vec![note.event()]).await;
            return noted.map_or_else(|error| Reply::Error(error.to_string()), |()| Reply::Noted);
        }
        Request::Anchors => return anchors(site).await.map_or_else(Reply::Error, Reply::Anchors),
        Request::Consent(ask) => {
            let told = decide::answer(site, ask, &Party::at_this_machine()).await.map(Reply::Consent);
            return told.unwrap_or_else(|error| Reply::Error(crate::chain_of(&error)));
        }
        Request::Erase(ask) => {
            let erased = site.parts().eraser.erase(ask).await.map(|outcome| Reply::Erased(Box::new(outcome)));
            return erased.unwrap_or_else(|error| Reply::Error(crate::chain_of(&error)));
        }
        Request::Derive(ask) => {
            let made = site.parts().deriver.derive(ask).await.map(Reply::Made);
            return made.unwrap_or_else(|error| Reply::Error(crate::chain_of(&error)));
        }
        Request::Derived => site.parts().deriver.rows().map(Reply::Derivations).map_err(Into::into),
        Request::Fetch(ask) => {
            let fetched = xds::fetch(site, ask).await.map(|fetched| Reply::Fetched(Box::new(fetched)));
            return fetched.unwrap_or_else(|error| Reply::Error(crate::chain_of(&error)));
        }
        Request::Studies => site.studies().map(Reply::Studies),
        Request::Study { uid } => site.study(&uid).map(|report| Reply::Study(Box::new(report))),
        Request::Evict { uid } => site.evict(&uid).await.map(|(files, bytes)| Reply::Evicted { files, bytes }),
        Request::Verify { uid } => site.verify(&uid).await.map(Reply::Verdicts),
        Request::VerifyFile { sop_instance, dataset_sha256 } => {
            site.verify_file(&sop_instance, &dataset_sha256).await.map(|verdict| Reply::Verdicts(vec![verdict]))
        }
        Request::Proof { uid } => return proof(site, &uid).await.unwrap_or_else(Reply::Error),
        Request::ExportLedger { out } => site.export_ledger(out).await.map(Reply::LedgerExported),
        Request::Status => site.status().await.map(|status| Reply::Status(Box::new(status))),
    };
    result.unwrap_or_else(|error| Reply::Error(crate::chain_of(&error)))
}

/// Serves the socket until `shutdown`.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(
    site: Site,
    data_dir: &Path,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let path = socket_path(data_dir);
    // The data directory's lock is ours, so a socket that is there was left by a killed process.
    let _ = std::fs::remove_file(&path);
    let (_dir, short) = short_path(data_dir)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match stream {
                Ok((stream, _)) => {
                    let (site, shutdown) = (site.clone(), shutdown.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            result = converse(&site, stream) => {
                                if let Err(error) = result {
                                    tracing::debug!(%error, "control connection ended");
                                }
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        let _ = std::fs::remove_file(path);
    });
    Ok(())
}

async fn converse(site: &Site, stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader.take(LINE_BYTES_MAX)).lines();
    while let Some(line) = lines.next_line().await? {
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(site, request).await,
            Err(error) => Reply::Error(format!("not a request: {error}")),
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
    }
    Ok(())
}

/// Asks a running bridge; `None` when none runs on this data directory.
///
/// # Errors
/// When the bridge is there but the conversation broke.
pub async fn ask(data_dir: &Path, request: &Request) -> std::io::Result<Option<Reply>> {
    let Ok((_dir, short)) = short_path(data_dir) else { return Ok(None) };
    let Ok(stream) = UnixStream::connect(short).await else { return Ok(None) };
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut reply = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut reply).await?;
    Ok(Some(serde_json::from_str(&reply)?))
}
