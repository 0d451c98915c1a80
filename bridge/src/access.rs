//! Who may do what: the one decision that every door asks for.
//!
//! A door turns its peer into a [`Principal`]; this module alone knows what that principal may do and see. Must not know
//! wire protocols, files or SQL.

use std::net::IpAddr;

use dicom_scp::AeTitle;

use crate::config::{Config, Operation, Peer};

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A DICOM peer that a `[[peer]]` names.
    Peer(AeTitle),
    /// A DICOM peer that no `[[peer]]` names.
    Unknown(AeTitle),
    /// The ops person at this machine.
    Operator,
}

/// Why somebody is not even let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A title with `check_host`, used from elsewhere.
    #[error("AE title {title} may only call from {expected}, this call came from {from}")]
    WrongHost {
        /// The calling AE title.
        title: AeTitle,
        /// `host` of its `[[peer]]`.
        expected: String,
        /// Where the call came from.
        from: IpAddr,
    },
    /// `unknown_peers` is empty and no `[[peer]]` has this title.
    #[error("AE title {0} is unknown; add a [[peer]] with ae_title = \"{0}\" to the configuration")]
    UnknownTitle(AeTitle),
}

/// What a principal sees of the studies here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Every study of this site.
    All,
    /// None; whatever is asked for is as if absent.
    Nothing,
}

/// The rules as configured.
#[derive(Debug, Clone)]
pub struct Access {
    peers: Vec<Peer>,
    unknown: Vec<Operation>,
}

impl Access {
    /// Takes the rules from the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { peers: config.peers.clone(), unknown: config.dicom.unknown_peers.clone() }
    }

    /// Tells who a DICOM caller is.
    ///
    /// # Errors
    /// [`Refused`] for a caller that may do nothing at all.
    pub fn dicom_caller(&self, calling: &AeTitle, from: IpAddr) -> Result<Principal, Refused> {
        match self.peer(calling) {
            Some(peer) if peer.check_host && !host_is(&peer.host, from) => {
                Err(Refused::WrongHost { title: calling.clone(), expected: peer.host.clone(), from })
            }
            Some(_) => Ok(Principal::Peer(calling.clone())),
            None if self.unknown.is_empty() => Err(Refused::UnknownTitle(calling.clone())),
            None => Ok(Principal::Unknown(calling.clone())),
        }
    }

    /// Whether a principal may use a service.
    #[must_use]
    pub fn may(&self, principal: &Principal, operation: Operation) -> bool {
        match principal {
            Principal::Operator => true,
            Principal::Peer(title) => self.peer(title).is_some_and(|peer| peer.allow.contains(&operation)),
            Principal::Unknown(_) => self.unknown.contains(&operation),
        }
    }

    /// What a principal sees when it uses `operation`.
    #[must_use]
    pub fn visible(&self, principal: &Principal, operation: Operation) -> Visible {
        if self.may(principal, operation) { Visible::All } else { Visible::Nothing }
    }

    /// The peer with this title, if one is configured.
    #[must_use]
    pub fn peer(&self, title: &AeTitle) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.ae_title == *title)
    }
}

/// Compares a configured host with the caller's address. A name is looked up when the association begins, not here, so
/// only addresses and `localhost` can be checked.
fn host_is(host: &str, from: IpAddr) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical() == from.to_canonical(),
        Err(_) => host == "localhost" && from.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    fn access(toml: &str) -> Access {
        Access::new(&Config::parse(toml, HashMap::new()).unwrap())
    }

    fn title(text: &str) -> AeTitle {
        AeTitle::new(text).unwrap()
    }

    const HERE: &str = "127.0.0.1";

    #[test]
    fn an_unknown_caller_may_echo_and_store_and_sees_nothing() {
        let access = access("");
        let caller = access.dicom_caller(&title("CT1"), HERE.parse().unwrap()).unwrap();
        assert!(access.may(&caller, Operation::Store));
        assert!(!access.may(&caller, Operation::Find));
        assert_eq!(access.visible(&caller, Operation::Find), Visible::Nothing);
    }

    #[test]
    fn a_peer_may_what_its_table_says_and_no_more() {
        let access = access("[[peer]]\nae_title = \"V\"\nhost = \"127.0.0.1\"\nport = 104\nallow = [\"find\"]\n");
        let caller = access.dicom_caller(&title("V"), HERE.parse().unwrap()).unwrap();
        assert!(access.may(&caller, Operation::Find));
        assert!(!access.may(&caller, Operation::Store));
    }

    #[test]
    fn a_title_bound_to_a_host_is_refused_from_another() {
        let access = access("[[peer]]\nae_title = \"V\"\nhost = \"192.0.2.1\"\ncheck_host = true\n");
        let refused = access.dicom_caller(&title("V"), HERE.parse().unwrap()).unwrap_err();
        assert!(refused.to_string().contains("192.0.2.1"));
    }

    #[test]
    fn nobody_unknown_enters_when_unknown_peers_is_empty() {
        let access = access("[dicom]\nunknown_peers = []\n");
        let refused = access.dicom_caller(&title("X"), HERE.parse().unwrap()).unwrap_err();
        assert!(refused.to_string().contains("add a [[peer]]"));
    }
}
