//! Who may do what: the one decision that every door asks for.
//!
//! A door turns its peer into a [`Principal`]; this module alone knows what that principal may do and see. Must not know
//! wire protocols, files or SQL.

use std::net::IpAddr;

use alloy::primitives::Address;
use dicom_scp::AeTitle;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Operation, Peer};
use crate::follow::{Grant, Mode};

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A DICOM peer that a `[[peer]]` names.
    Peer(AeTitle),
    /// A DICOM peer that no `[[peer]]` names.
    Unknown(AeTitle),
    /// The ops person at this machine.
    Operator,
    /// An account on the ledger: a patient, for the studies that it owns.
    Account(Address),
}

/// What somebody with a bearer token may do, as tokens and configuration name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// List studies, who may read them, what was said about them, and who asks for them.
    Find,
    /// Get previews.
    Retrieve,
    /// Decide about consent: with the key in custody for the operator, by actions to sign for an owner.
    Decide,
    /// Ask owners of other sites' studies to let this site in.
    Request,
    /// Let this site in without being asked.
    BreakGlass,
    /// See the state of the site.
    Status,
    /// See the sources of the consortium.
    Sources,
}

impl Right {
    /// Every right, in the order of the documentation.
    pub const ALL: [Self; 7] =
        [Self::Find, Self::Retrieve, Self::Decide, Self::Request, Self::BreakGlass, Self::Status, Self::Sources];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Retrieve => "retrieve",
            Self::Decide => "decide",
            Self::Request => "request",
            Self::BreakGlass => "break-glass",
            Self::Status => "status",
            Self::Sources => "sources",
        }
    }

    /// The right with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }
}

/// Somebody who has shown a bearer token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// What the token leaves of the principal's rights; none leaves all.
    pub narrowed: Option<Vec<Right>>,
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
    /// Every study of this site, and what the ledger says about those of others.
    Everything,
    /// Every study of this site.
    All,
    /// Those that an account owns on the ledger; any other is as if absent.
    OwnedBy(Address),
    /// None; whatever is asked for is as if absent.
    Nothing,
}

impl Visible {
    /// Whether a study is seen, that the index here shows or does not, and whose owner on the ledger is known or not.
    #[must_use]
    pub fn shows(self, here: bool, owner: Option<Address>) -> bool {
        match self {
            Self::Everything => true,
            Self::All => here,
            Self::OwnedBy(account) => owner == Some(account),
            Self::Nothing => false,
        }
    }
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
            // Accounts have no AE title.
            Principal::Account(_) => false,
        }
    }

    /// Whether a caller may use something, of studies that it sees.
    #[must_use]
    pub fn grants(&self, caller: &Caller, right: Right) -> bool {
        let left = caller.narrowed.as_ref().is_none_or(|rights| rights.contains(&right));
        left && match (&caller.principal, right) {
            (Principal::Operator, _) => true,
            (Principal::Account(_), Right::Find | Right::Retrieve | Right::Decide | Right::Sources) => true,
            (principal @ Principal::Peer(_), Right::Find) => self.may(principal, Operation::Find),
            (principal @ Principal::Peer(_), Right::Retrieve) => {
                self.may(principal, Operation::Get) || self.may(principal, Operation::Move)
            }
            (Principal::Account(_) | Principal::Peer(_) | Principal::Unknown(_), _) => false,
        }
    }

    /// Every right that a caller has.
    #[must_use]
    pub fn rights(&self, caller: &Caller) -> Vec<Right> {
        Right::ALL.into_iter().filter(|right| self.grants(caller, *right)).collect()
    }

    /// What a caller sees when it uses `right`.
    #[must_use]
    pub fn sees(&self, caller: &Caller, right: Right) -> Visible {
        match caller.principal {
            _ if !self.grants(caller, right) => Visible::Nothing,
            Principal::Account(account) => Visible::OwnedBy(account),
            Principal::Operator => Visible::Everything,
            Principal::Peer(_) | Principal::Unknown(_) => Visible::All,
        }
    }

    /// Whether a caller may have the key in custody sign. Only the site's own people: what they do with it, they answer for.
    #[must_use]
    pub fn signs_in_custody(&self, caller: &Caller) -> bool {
        caller.principal == Principal::Operator && self.grants(caller, Right::Decide)
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

/// Whether what the ledger says lets a grantee have every object of a study at a time, in seconds since 1970. Who may see previews alone, or one
/// series, gets no document of the study.
#[must_use]
pub fn opens_whole_study(grant: &Grant, now_s: u64) -> bool {
    grant.scope_at(now_s).is_some_and(|scope| scope.mode == Mode::Full && scope.series.is_zero())
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

    fn caller(principal: Principal) -> Caller {
        Caller { principal, narrowed: None }
    }

    #[test]
    fn a_token_narrows_and_never_widens() {
        let access = access("[[peer]]\nae_title = \"V\"\nhost = \"127.0.0.1\"\nallow = [\"find\"]\n");
        let mut viewer = caller(Principal::Peer(title("V")));
        assert_eq!(access.rights(&viewer), [Right::Find]);
        viewer.narrowed = Some(Right::ALL.to_vec());
        assert_eq!(access.rights(&viewer), [Right::Find]);
        viewer.narrowed = Some(vec![Right::Retrieve]);
        assert_eq!(access.rights(&viewer), []);
        assert_eq!(access.sees(&viewer, Right::Find), Visible::Nothing);
        assert_eq!(access.rights(&caller(Principal::Operator)), Right::ALL);
        assert_eq!(access.rights(&caller(Principal::Peer(title("GONE")))), []);
        assert_eq!(access.rights(&caller(Principal::Unknown(title("CT1")))), []);
    }

    #[test]
    fn an_account_sees_what_it_owns_and_signs_itself() {
        let (access, account) = (access(""), Address::repeat_byte(7));
        let patient = caller(Principal::Account(account));
        let visible = access.sees(&patient, Right::Find);
        assert!(visible.shows(true, Some(account)) && visible.shows(false, Some(account)));
        assert!(!visible.shows(true, Some(Address::repeat_byte(8))) && !visible.shows(true, None));
        assert!(access.grants(&patient, Right::Decide) && !access.signs_in_custody(&patient));
        for right in [Right::Request, Right::BreakGlass, Right::Status] {
            assert!(!access.grants(&patient, right));
        }
        assert!(access.signs_in_custody(&caller(Principal::Operator)));
    }

    #[test]
    fn rights_have_names() {
        for right in Right::ALL {
            assert_eq!(Right::from_name(right.name()), Some(right));
            assert_eq!(serde_json::to_value(right).unwrap(), right.name());
        }
        assert_eq!(Right::from_name("everything"), None);
    }

    #[test]
    fn nobody_unknown_enters_when_unknown_peers_is_empty() {
        let access = access("[dicom]\nunknown_peers = []\n");
        let refused = access.dicom_caller(&title("X"), HERE.parse().unwrap()).unwrap_err();
        assert!(refused.to_string().contains("add a [[peer]]"));
    }
}
