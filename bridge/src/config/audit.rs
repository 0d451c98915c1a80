//! `[audit]`: the audit trail.

use std::time::Duration;

use config::{Value, ValueKind};

use super::reader::{Section, flag, list, number, one_of, text};
use super::{Mistake, PeerTls, path, read_tls_files};

/// `[audit]`: who did what, recorded here, at a repository, and anchored on the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// Record.
    pub enabled: bool,
    /// AuditSourceID; our AE title when empty.
    pub source_id: String,
    /// AuditEnterpriseSiteID; none when empty.
    pub site_id: String,
    /// Bytes from which on another file is begun.
    pub segment_bytes: u64,
    /// How often the log's head goes onto the ledger, if ever.
    pub anchor_interval: Option<Duration>,
    /// Where messages are sent, if anywhere.
    pub repository: Option<AuditRepository>,
}

/// The audit record repository.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRepository {
    /// Host and port.
    pub address: String,
    /// How.
    pub transport: AuditTransport,
    /// MSGID of RFC 5424.
    pub message_id: String,
}

/// How messages travel.
#[derive(Debug, Clone, PartialEq)]
pub enum AuditTransport {
    /// RFC 5425. By what the repository is known, and what we show to it.
    Tls(PeerTls),
    /// RFC 5426.
    Udp,
}

pub(super) fn read_audit(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Audit {
    let mut s = Section::open("audit".into(), value, mistakes);
    let audit = Audit {
        enabled: s.take("enabled", true, flag),
        source_id: s.take("source_id", String::new(), token),
        site_id: s.take("site_id", String::new(), token),
        segment_bytes: s.take("segment_bytes", 16_777_216, number(4096, 1 << 30)),
        anchor_interval: s.take("anchor_interval_s", Some(Duration::from_secs(3600)), |v| {
            Ok(Some(number(0, 31_536_000)(v)?).filter(|s| *s > 0).map(Duration::from_secs))
        }),
        repository: read_repository(&mut s),
    };
    s.end();
    audit
}

fn read_repository(s: &mut Section<'_>) -> Option<AuditRepository> {
    let address = s.take("repository", String::new(), host_and_port);
    let is_udp = s.take("transport", false, one_of(&[("tls", false), ("udp", true)]));
    let ca_files = s.take("ca_files", Vec::new(), list(path));
    let named = s.take("server_name", String::new(), text);
    let client = read_tls_files(s, "client_certificate_file", "client_key_file");
    let message_id = s.take("message_id", "IHE+RFC-3881".to_owned(), message_id);
    if address.is_empty() {
        if is_udp || !ca_files.is_empty() || !named.is_empty() || client.is_some() {
            s.mistake("repository", "missing; without one the other keys for sending are of no use");
        }
        return None;
    }
    let transport = if is_udp {
        if !ca_files.is_empty() || !named.is_empty() || client.is_some() {
            s.mistake("transport", "UDP has no TLS; ca_files, server_name and client_certificate_file are of no use");
        }
        AuditTransport::Udp
    } else {
        if ca_files.is_empty() {
            s.mistake("ca_files", "missing; they say by what the repository is known");
        }
        let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        let server_name = if named.is_empty() { host.to_owned() } else { named };
        AuditTransport::Tls(PeerTls { server_name, ca_files, client })
    };
    Some(AuditRepository { address, transport, message_id })
}

fn host_and_port(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let port = found.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port)?.parse::<u16>().ok());
    if found.is_empty() || port.is_some_and(|port| port > 0) {
        return Ok(found);
    }
    Err(format!("expected HOST:PORT such as \"arr.example:6514\", found \"{found}\""))
}

/// What identifies this source at a repository.
fn token(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let plain = |c: char| !c.is_control() && c != ' ';
    if found.len() <= 64 && found.chars().all(plain) {
        return Ok(found);
    }
    Err(format!("expected at most 64 characters without spaces, found \"{found}\""))
}

/// MSGID (RFC 5424 6): 1 to 32 printable characters.
fn message_id(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    if (1..=32).contains(&found.len()) && found.chars().all(|c| matches!(c, '!'..='~')) {
        return Ok(found);
    }
    Err(format!("expected 1 to 32 printable characters, such as \"IHE+RFC-3881\", found \"{found}\""))
}
