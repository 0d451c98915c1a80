//! `[ipfs]`: the site's IPFS node.

use std::path::PathBuf;
use std::time::Duration;

use config::{Value, ValueKind};

use super::reader::{Section, flag, number, text};
use super::{Mistake, is_plain_and_near, milliseconds, optional_path};

/// `[ipfs]`: a kubo node on this machine, in the consortium's private swarm.
#[derive(Debug, Clone, PartialEq)]
pub struct Ipfs {
    /// Base URL of its RPC API.
    pub api_url: String,
    /// File whose first line is a bearer token, if the API wants one.
    pub token_file: Option<PathBuf>,
    /// Longest wait for a sign of life.
    pub timeout: Duration,
    /// Longest wait for a file to come from the swarm.
    pub pin_timeout: Duration,
    /// Keep here what other sites' owners let this site see.
    pub pin_granted: bool,
    /// How often the node is asked whether it still has what it had.
    pub check_interval: Duration,
}

pub(super) fn read_ipfs(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Option<Ipfs> {
    let mut s = Section::open("ipfs".into(), value, mistakes);
    let ipfs = Ipfs {
        api_url: s.take("api_url", String::new(), api_url),
        token_file: s.take("token_file", None, optional_path),
        timeout: s.take("timeout_ms", Duration::from_secs(30), milliseconds),
        pin_timeout: s.take("pin_timeout_ms", Duration::from_secs(600), milliseconds),
        pin_granted: s.take("pin_granted", true, flag),
        check_interval: Duration::from_secs(s.take("check_interval_s", 3600, number(1, 31_536_000))),
    };
    if ipfs.api_url.is_empty() && ipfs.token_file.is_some() {
        s.mistake("api_url", "missing; token_file is of no use without it");
    }
    s.end();
    (!ipfs.api_url.is_empty()).then_some(ipfs)
}

/// Whoever reaches the API can do everything with the node.
fn api_url(value: &ValueKind) -> Result<String, String> {
    let url = text(value)?;
    let authority = url.strip_prefix("http://").unwrap_or_default().trim_end_matches('/');
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if url.is_empty() || is_plain_and_near(&url) && has_port && !authority.contains('/') {
        Ok(url)
    } else {
        Err(format!(
            "expected http:// and host and port on this machine, such as \"http://127.0.0.1:5001\", found \"{url}\": \
             the node is the site's own, and its API has neither TLS nor users"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::super::Config;

    #[test]
    fn the_node_is_near() {
        let read = |url: &str| Config::parse(&format!("[ipfs]\napi_url = \"{url}\"\n"), HashMap::new());
        assert!(read("").unwrap().ipfs.is_none());
        for near in ["http://127.0.0.1:5001", "http://[::1]:5001/", "http://localhost:5001"] {
            assert_eq!(read(near).unwrap().ipfs.unwrap().api_url, near);
        }
        for wrong in [
            "127.0.0.1:5001",
            "https://127.0.0.1:5001",
            "http://10.0.0.1:5001",
            "http://127.0.0.1",
            "http://127.0.0.1:5001/api/v0",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(Config::parse("[ipfs]\ntoken_file = \"t\"\n", HashMap::new()).is_err());
    }
}
