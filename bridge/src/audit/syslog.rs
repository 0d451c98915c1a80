//! To the audit record repository: ITI-20 Record Audit Event (ITI TF-2 3.20), which is syslog (RFC 5424) over TLS with octet counting
//! (RFC 5425), or one datagram a message (RFC 5426).
//!
//! The log is the spool: a small file beside it says how far the repository has come, and whatever is behind that place is sent when the
//! repository is there. Syslog acknowledges nothing, so what was sent within [`SETTLED`] before a connection broke, or before this
//! program was killed, is sent again: the repository may get a message twice and misses none that TCP took and lost.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::chain::Head;
use super::log::{Entry, Reader};
use super::{Audit, RepositoryStatus, Source, xml};
use crate::config::{AuditRepository, AuditTransport};
use crate::tls::{self, TlsError};

/// Where it is kept how far the repository is, in the directory of the log.
const CURSOR: &str = "sent";
/// How long a connection must have lived after a message for that to count as arrived. With TLS 1.3 even a repository that refuses our
/// certificate takes some first.
const SETTLED: Duration = Duration::from_secs(5);
/// How often it is looked at what has settled.
const LOOK: Duration = Duration::from_secs(1);
/// Messages of one write.
const BATCH: usize = 64;
/// Longest wait for a connection, for a handshake, or for the repository to take a batch.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Waits between tries, from the first to the longest.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Facility 10 (security), severity 5 (notice), which PS3.15 A.6 and ITI-20 want.
const PRIORITY: u8 = 85;
/// Longest datagram of UDP over IPv4, in bytes.
const DATAGRAM_MAX: usize = 65_507;

/// Why the repository did not get something.
#[derive(Debug, thiserror::Error)]
enum SyslogError {
    #[error("it cannot be reached")]
    Io(#[from] io::Error),
    #[error("TLS towards it cannot be spoken")]
    Tls(#[from] TlsError),
    #[error("it ended the connection")]
    Closed,
    #[error("it does not answer in time")]
    Slow,
}

/// How far the repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    /// Number of the log.
    pub(super) log: u32,
    /// The last record that counts as arrived.
    pub(super) record: u64,
}

impl Cursor {
    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(CURSOR)).ok()?;
        let mut words = text.split_whitespace();
        let (log, record) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { log, record })
    }

    /// Durable when it returns: a place that is too early costs a message twice, one too late a message.
    fn write(self, dir: &Path) -> io::Result<()> {
        let (path, made) = (dir.join(CURSOR), dir.join("sent.new"));
        let mut file = fs::File::create(&made)?;
        writeln!(file, "{} {}", self.log, self.record)?;
        file.sync_data()?;
        fs::rename(made, path)
    }
}

/// A record that the repository is known to have been sent, so that it must be in the log; for [`super::verify::verify`].
#[must_use]
pub fn sent(dir: &Path) -> Option<(u32, u64)> {
    Cursor::read(dir).map(|cursor| (cursor.log, cursor.record))
}

/// A message as RFC 5424 has it, without a byte order mark.
fn frame(entry: &Entry, head: &FrameHead) -> Vec<u8> {
    let FrameHead { host, process, message_id } = head;
    let time = xml::instant(entry.time_ms);
    format!("<{PRIORITY}>1 {time} {host} pacs-bridge {process} {message_id} - {}", entry.message).into_bytes()
}

/// What all messages have in common.
struct FrameHead {
    host: String,
    process: u32,
    message_id: String,
}

/// This machine's name as RFC 5424 6 allows it.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| matches!(c, '!'..='~')).take(255).collect();
    if name.is_empty() { "-".into() } else { name }
}

enum Connection {
    Tls(Box<TlsStream<TcpStream>>),
    Udp(UdpSocket),
}

impl Connection {
    async fn open(settings: &AuditRepository) -> Result<Self, SyslogError> {
        match &settings.transport {
            AuditTransport::Udp => {
                let address = within(tokio::net::lookup_host(&settings.address)).await?.next();
                let address = address.ok_or_else(|| io::Error::other("the repository's name has no address"))?;
                let any =
                    if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0; 16], 0)) };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(address).await?;
                Ok(Self::Udp(socket))
            }
            AuditTransport::Tls(peer) => {
                let peer = peer.clone();
                let read = tokio::task::spawn_blocking(move || tls::client(&peer)).await;
                let (config, name): (Arc<ClientConfig>, ServerName<'static>) = read.map_err(io::Error::other)??;
                let stream = within(TcpStream::connect(&settings.address)).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tls(Box::new(within(TlsConnector::from(config).connect(name, stream)).await?)))
            }
        }
    }

    async fn send(&mut self, messages: &[Vec<u8>]) -> Result<(), SyslogError> {
        match self {
            Self::Tls(stream) => {
                let mut bytes = Vec::new();
                for message in messages {
                    bytes.extend_from_slice(format!("{} ", message.len()).as_bytes());
                    bytes.extend_from_slice(message);
                }
                within(async {
                    stream.write_all(&bytes).await?;
                    stream.flush().await
                })
                .await
            }
            Self::Udp(socket) => {
                for message in messages {
                    if message.len() > DATAGRAM_MAX {
                        tracing::error!(
                            bytes = message.len(),
                            "an audit message is too long for a datagram and stays here alone"
                        );
                        continue;
                    }
                    socket.send(message).await?;
                }
                Ok(())
            }
        }
    }

    /// Returns when the repository ends the connection. What it says meanwhile means nothing.
    async fn ended(&mut self) {
        let mut rest = [0; 256];
        match self {
            Self::Tls(stream) => while matches!(stream.read(&mut rest).await, Ok(1..)) {},
            Self::Udp(_) => std::future::pending().await,
        }
    }

    /// Ends it in order; whether the repository did so too, having read everything.
    async fn close(mut self) -> bool {
        match &mut self {
            Self::Tls(stream) => {
                let shut = within(stream.shutdown()).await.is_ok();
                shut && tokio::time::timeout(Duration::from_secs(1), self.ended()).await.is_ok()
            }
            Self::Udp(_) => true,
        }
    }
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, SyslogError> {
    Ok(tokio::time::timeout(STEP_MAX, step).await.map_err(|_| SyslogError::Slow)??)
}

/// Brings the log to the repository.
pub struct Sender {
    audit: Audit,
    dir: PathBuf,
    settings: AuditRepository,
    head: FrameHead,
    heads: watch::Receiver<(u32, Head)>,
    /// How far the repository is.
    arrived: Cursor,
    /// How far was sent over the connection that is open.
    cursor: Cursor,
    /// What was sent and has not settled, the oldest first.
    unsettled: VecDeque<(Instant, Cursor)>,
    stop: CancellationToken,
}

impl Sender {
    /// Joins the parts. Where no repository got anything before, it gets everything from the beginning of the newest log.
    #[must_use]
    pub fn new(audit: Audit, settings: AuditRepository, source: &Source, stop: CancellationToken) -> Self {
        let dir = audit.dir().to_owned();
        let heads = audit.heads();
        let newest = heads.borrow().0;
        let arrived = Cursor::read(&dir).unwrap_or(Cursor { log: newest.max(1), record: 0 });
        let (cursor, unsettled) = (arrived, VecDeque::new());
        let head = FrameHead { host: host_name(), process: source.process, message_id: settings.message_id.clone() };
        Self { audit, dir, settings, head, heads, arrived, cursor, unsettled, stop }
    }

    /// Sends until stopped, and then what is left if the repository takes it at once.
    pub async fn run(mut self) {
        let mut wait = RETRY_MIN;
        self.tell(Some(None));
        loop {
            let began = self.arrived;
            let error = match self.session().await {
                Ok(()) => return,
                Err(error) => crate::chain_of(&error),
            };
            if self.arrived != began {
                wait = RETRY_MIN;
            }
            self.cursor = self.arrived;
            self.unsettled.clear();
            if self.tell(Some(Some(&error))) {
                tracing::warn!(
                    error,
                    repository = self.settings.address,
                    "the audit record repository is away; the log keeps what it lacks"
                );
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Sends over one connection until it breaks, or until stopped.
    async fn session(&mut self) -> Result<(), SyslogError> {
        // No connection without something to say.
        while !self.is_behind() {
            tokio::select! {
                () = self.stop.cancelled() => if !self.is_behind() { return Ok(()) },
                changed = self.heads.changed() => if changed.is_err() { return Ok(()) },
            }
        }
        let mut connection = tokio::select! {
            opened = Connection::open(&self.settings) => opened?,
            () = async { self.stop.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => return Ok(()),
        };
        loop {
            self.send_all(&mut connection).await?;
            tokio::select! {
                () = connection.ended() => return Err(SyslogError::Closed),
                changed = self.heads.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(LOOK), if !self.unsettled.is_empty() => self.settle(),
                () = self.stop.cancelled() => break,
            }
        }
        self.send_all(&mut connection).await?;
        if connection.close().await {
            self.arrived = self.cursor;
            self.remember();
        }
        Ok(())
    }

    /// What was sent long enough ago over a connection that still lives counts as arrived.
    fn settle(&mut self) {
        let before = self.arrived;
        while let Some((_, cursor)) = self.unsettled.pop_front_if(|(sent, _)| sent.elapsed() >= SETTLED) {
            self.arrived = cursor;
        }
        if self.arrived != before {
            self.remember();
            if self.tell(Some(None)) {
                tracing::info!(repository = self.settings.address, "the audit record repository gets messages again");
            }
        }
    }

    fn is_behind(&mut self) -> bool {
        let (log, head) = *self.heads.borrow_and_update();
        log > self.cursor.log || (log == self.cursor.log && head.records > self.cursor.record)
    }

    async fn send_all(&mut self, connection: &mut Connection) -> Result<(), SyslogError> {
        let mut reader = Reader::new(&self.dir, self.cursor.log, self.cursor.record + 1);
        while self.is_behind() {
            let (log, head) = *self.heads.borrow();
            // Of a log that ended, everything; of the one that is written, what is durable.
            let last = if log == self.cursor.log { head.records } else { u64::MAX };
            let read = tokio::task::spawn_blocking(move || {
                let mut entries = Vec::new();
                while entries.len() < BATCH {
                    match reader.entry(last) {
                        Ok(Some(entry)) => entries.push(entry),
                        Ok(None) => break,
                        Err(error) => return (reader, Err(error)),
                    }
                }
                (reader, Ok(entries))
            });
            let (back, entries) = read.await.map_err(io::Error::other)?;
            reader = back;
            let entries = entries?;
            match entries.last() {
                Some(entry) => {
                    let messages: Vec<_> = entries.iter().map(|entry| frame(entry, &self.head)).collect();
                    let number = entry.number;
                    connection.send(&messages).await?;
                    self.cursor = Cursor { log: self.cursor.log, record: number };
                    self.unsettled.push_back((Instant::now(), self.cursor));
                    self.settle();
                    self.tell(None);
                }
                None if log == self.cursor.log => {
                    tracing::error!(
                        record = self.cursor.record,
                        "the audit log ends before where it was; see `pacs-bridge audit verify`"
                    );
                    self.cursor.record = head.records;
                }
                None => {
                    self.cursor = Cursor { log: self.cursor.log + 1, record: 0 };
                    reader = Reader::new(&self.dir, self.cursor.log, 1);
                }
            }
        }
        Ok(())
    }

    fn remember(&self) {
        if let Err(error) = self.arrived.write(&self.dir) {
            tracing::warn!(%error, "how far the audit record repository is cannot be kept; after a restart it gets messages twice");
        }
    }

    /// Puts the state where the ops person sees it, with what is in the way now if that is known. True when that begins or ends.
    fn tell(&self, now: Option<Option<&str>>) -> bool {
        let (log, head) = *self.heads.borrow();
        let backlog =
            if log == self.cursor.log { head.records.saturating_sub(self.cursor.record) } else { head.records };
        let mut status = self.audit.0.shared.status();
        let before = status.repository.take().and_then(|repository| repository.trouble);
        let was_in_trouble = before.is_some();
        let trouble = now.map_or(before, |trouble| trouble.map(str::to_owned));
        let changed = was_in_trouble != trouble.is_some();
        status.repository = Some(RepositoryStatus { address: self.settings.address.clone(), backlog, trouble });
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_is_framed_as_rfc_5424_has_it() {
        let entry = Entry { number: 7, time_ms: 1_709_210_096_789, message: "<AuditMessage>é</AuditMessage>".into() };
        let head = FrameHead { host: "site".into(), process: 42, message_id: "IHE+RFC-3881".into() };
        let expected =
            "<85>1 2024-02-29T12:34:56.789Z site pacs-bridge 42 IHE+RFC-3881 - <AuditMessage>é</AuditMessage>";
        assert_eq!(String::from_utf8(frame(&entry, &head)).unwrap(), expected);
    }

    #[test]
    fn the_place_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Cursor::read(dir.path()), None);
        for cursor in [Cursor { log: 1, record: 9 }, Cursor { log: 2, record: 0 }] {
            cursor.write(dir.path()).unwrap();
            assert_eq!(Cursor::read(dir.path()), Some(cursor));
        }
        assert_eq!(sent(dir.path()), Some((2, 0)));
        fs::write(dir.path().join(CURSOR), "nonsense").unwrap();
        assert_eq!(Cursor::read(dir.path()), None);
    }
}
