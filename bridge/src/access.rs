//! Who may do what: the one decision that every door asks for.
//!
//! A door turns its peer into a [`Principal`]; this module alone knows what that principal may do and see. Must not know
//! wire protocols, files or SQL.

use std::net::IpAddr;

use alloy::primitives::{Address, B256};
use dicom_scp::{AeTitle, Uid};
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
    /// Whoever was given a link to one study.
    Shared(Shared),
}

/// What a link opens: a study here, as long as it belongs to who gave the link, or for whom it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// The study.
    pub study: Uid,
    /// Its owner when the link was made.
    pub owner: Address,
}

/// What somebody with a bearer token may do, as tokens and configuration name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// List studies, who may read them, what was said about them, and who asks for them.
    Find,
    /// Get previews.
    Retrieve,
    /// Send objects in.
    Store,
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
    pub const ALL: [Self; 8] = [
        Self::Find,
        Self::Retrieve,
        Self::Store,
        Self::Decide,
        Self::Request,
        Self::BreakGlass,
        Self::Status,
        Self::Sources,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Retrieve => "retrieve",
            Self::Store => "store",
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

/// What a certificate that was verified says of whoever presented it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of the whole certificate in DER.
    pub sha256: [u8; 32],
    /// Whom it names: its dNSNames, or its common names where it has no dNSName (RFC 6125 6.4.4).
    pub names: Vec<String>,
}

/// How a DICOM caller came.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// From where.
    pub from: IpAddr,
    /// Over TLS.
    pub is_encrypted: bool,
    /// With which certificate.
    pub certificate: Option<&'a Certificate>,
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
    /// A title that is bound to a certificate, used without it.
    #[error("AE title {title} is bound to a certificate, and this call came {}", without(.presented))]
    WithoutItsCertificate {
        /// The calling AE title.
        title: AeTitle,
        /// What was presented instead.
        presented: Presented,
    },
    /// A certificate that is bound to other titles.
    #[error(
        "the certificate presented is that of AE title {owner}, which called as {title}; let it call as {owner}, or bind the \
         certificate to {title} in its [[peer]] as well if both are one system"
    )]
    CertificateOfAnother {
        /// The calling AE title.
        title: AeTitle,
        /// The peer that the certificate is bound to.
        owner: AeTitle,
    },
    /// `unknown_peers` is empty and no `[[peer]]` has this title.
    #[error("AE title {0} is unknown; add a [[peer]] with ae_title = \"{0}\" to the configuration")]
    UnknownTitle(AeTitle),
}

/// What a caller presented that should have presented a certificate of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented {
    /// It came over plain TCP.
    Plain,
    /// It came over TLS without a certificate.
    Nothing,
    /// It presented another one.
    Other(Certificate),
}

fn without(presented: &Presented) -> String {
    match presented {
        Presented::Plain => "without TLS; let it call the TLS port and present its certificate".to_owned(),
        Presented::Nothing => "over TLS without a certificate; let it present its own".to_owned(),
        Presented::Other(Certificate { sha256, names }) => format!(
            "with another one, of {names:?}, SHA-256 {}; if that is right, put it into tls_certificate_sha256 or tls_subject of the [[peer]]",
            hex::encode(sha256)
        ),
    }
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
    /// One of those.
    Shared(Shared),
    /// None; whatever is asked for is as if absent.
    Nothing,
}

impl Visible {
    /// Whether a study is seen, that the index here shows, under its UID, or does not, and whose owner on the ledger is known or not.
    #[must_use]
    pub fn shows(self, here: Option<&Uid>, owner: Option<Address>) -> bool {
        match self {
            Self::Everything => true,
            Self::All => here.is_some(),
            Self::OwnedBy(account) => owner == Some(account),
            Self::Shared(shared) => here == Some(&shared.study) && owner == Some(shared.owner),
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

    /// Tells who a DICOM caller is. A title that is bound to a certificate is nobody without it, and a certificate that is bound to
    /// titles is good for no other.
    ///
    /// # Errors
    /// [`Refused`] for a caller that may do nothing at all.
    pub fn dicom_caller(&self, calling: &AeTitle, way: Way<'_>) -> Result<Principal, Refused> {
        let peer = self.peer(calling);
        if let Some(peer) = peer.filter(|peer| peer.check_host && !host_is(&peer.host, way.from)) {
            return Err(Refused::WrongHost { title: calling.clone(), expected: peer.host.clone(), from: way.from });
        }
        if let Some(peer) = peer.filter(|peer| peer.is_bound()) {
            if way.certificate.is_some_and(|certificate| is_its(peer, certificate)) {
                return Ok(Principal::Peer(calling.clone()));
            }
            let presented = match way.certificate {
                Some(certificate) => Presented::Other(certificate.clone()),
                None if way.is_encrypted => Presented::Nothing,
                None => Presented::Plain,
            };
            return Err(Refused::WithoutItsCertificate { title: calling.clone(), presented });
        }
        if let Some(owner) = way.certificate.and_then(|certificate| self.owner_of(certificate)) {
            return Err(Refused::CertificateOfAnother { title: calling.clone(), owner: owner.ae_title.clone() });
        }
        match peer {
            Some(_) => Ok(Principal::Peer(calling.clone())),
            None if self.unknown.is_empty() => Err(Refused::UnknownTitle(calling.clone())),
            None => Ok(Principal::Unknown(calling.clone())),
        }
    }

    /// The first peer that a certificate is bound to.
    fn owner_of(&self, certificate: &Certificate) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.is_bound() && is_its(peer, certificate))
    }

    /// Whether a principal may use a service.
    #[must_use]
    pub fn may(&self, principal: &Principal, operation: Operation) -> bool {
        match principal {
            Principal::Operator => true,
            Principal::Peer(title) => self.peer(title).is_some_and(|peer| peer.allow.contains(&operation)),
            Principal::Unknown(_) => self.unknown.contains(&operation),
            // They have no AE title.
            Principal::Account(_) | Principal::Shared(_) => false,
        }
    }

    /// Whether a caller may use something, of studies that it sees.
    #[must_use]
    pub fn grants(&self, caller: &Caller, right: Right) -> bool {
        let left = caller.narrowed.as_ref().is_none_or(|rights| rights.contains(&right));
        left && match (&caller.principal, right) {
            (Principal::Operator, _) => true,
            (Principal::Account(_), Right::Find | Right::Retrieve | Right::Decide | Right::Sources)
            | (Principal::Shared(_), Right::Find | Right::Retrieve) => true,
            (principal @ Principal::Peer(_), Right::Find) => self.may(principal, Operation::Find),
            (principal @ Principal::Peer(_), Right::Retrieve) => {
                self.may(principal, Operation::Get) || self.may(principal, Operation::Move)
            }
            (principal @ Principal::Peer(_), Right::Store) => self.may(principal, Operation::Store),
            (Principal::Account(_) | Principal::Shared(_) | Principal::Peer(_) | Principal::Unknown(_), _) => false,
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
            Principal::Shared(shared) => Visible::Shared(shared),
            Principal::Operator => Visible::Everything,
            Principal::Peer(_) | Principal::Unknown(_) => Visible::All,
        }
    }

    /// Whether a caller may have the key in custody sign. Only the site's own people: what they do with it, they answer for.
    #[must_use]
    pub fn signs_in_custody(&self, caller: &Caller) -> bool {
        caller.principal == Principal::Operator && self.grants(caller, Right::Decide)
    }

    /// Whether a caller may see who else reads what it sees, who asks, and what was said. Whoever has a link sees images, and is nobody's confidant.
    #[must_use]
    pub fn sees_consent(&self, caller: &Caller) -> bool {
        self.grants(caller, Right::Find) && !matches!(caller.principal, Principal::Shared(_))
    }

    /// Whether a caller may see how the site is run: its configuration, its peers, its queues. Only the site's own people.
    #[must_use]
    pub fn runs_the_site(&self, caller: &Caller) -> bool {
        caller.principal == Principal::Operator && self.grants(caller, Right::Status)
    }

    /// Whether a caller may read the audit trail, which names every study and everybody who had to do with it.
    #[must_use]
    pub fn reads_the_trail(&self, caller: &Caller) -> bool {
        self.runs_the_site(caller) && self.grants(caller, Right::Find)
    }

    /// What a principal sees when it uses `operation`.
    #[must_use]
    pub fn visible(&self, principal: &Principal, operation: Operation) -> Visible {
        if self.may(principal, operation) { Visible::All } else { Visible::Nothing }
    }

    /// Every peer that is configured, in the order of the file.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// What callers may do that no `[[peer]]` names.
    #[must_use]
    pub fn unknown_peers(&self) -> &[Operation] {
        &self.unknown
    }

    /// The peer with this title, if one is configured.
    #[must_use]
    pub fn peer(&self, title: &AeTitle) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.ae_title == *title)
    }
}

/// Whether a certificate meets everything that a bound peer's table says of it.
fn is_its(peer: &Peer, certificate: &Certificate) -> bool {
    let listed = peer.tls_certificate_sha256.is_empty() || peer.tls_certificate_sha256.contains(&certificate.sha256);
    let is_named = |subject: &String| certificate.names.iter().any(|name| name.eq_ignore_ascii_case(subject));
    listed && peer.tls_subject.as_ref().is_none_or(is_named)
}

/// Whether what the ledger says lets a grantee have every object of a study at a time, in seconds since 1970. Who may see previews alone, or one
/// series, gets no document of the study.
#[must_use]
pub fn opens_whole_study(grant: &Grant, now_s: u64) -> bool {
    grant.scope_at(now_s).is_some_and(|scope| scope.mode == Mode::Full && scope.series.is_zero())
}

/// The one series whose objects, and no others, what the ledger says lets a grantee have at a time, in seconds since 1970: its name on
/// the ledger. `None` where the whole study is open, or only previews are, or nothing is.
#[must_use]
pub fn opens_one_series(grant: &Grant, now_s: u64) -> Option<B256> {
    let scope = grant.scope_at(now_s)?;
    (scope.mode == Mode::Full && !scope.series.is_zero()).then_some(scope.series)
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
    use crate::follow::{Asked, Decision};
    use std::collections::HashMap;

    fn access(toml: &str) -> Access {
        Access::new(&Config::parse(toml, HashMap::new()).unwrap())
    }

    fn title(text: &str) -> AeTitle {
        AeTitle::new(text).unwrap()
    }

    fn plain() -> Way<'static> {
        Way { from: "127.0.0.1".parse().unwrap(), is_encrypted: false, certificate: None }
    }

    fn certificate(byte: u8, name: &str) -> Certificate {
        Certificate { sha256: [byte; 32], names: vec![name.to_owned()] }
    }

    #[test]
    fn an_unknown_caller_may_echo_and_store_and_sees_nothing() {
        let access = access("");
        let caller = access.dicom_caller(&title("CT1"), plain()).unwrap();
        assert!(access.may(&caller, Operation::Store));
        assert!(!access.may(&caller, Operation::Find));
        assert_eq!(access.visible(&caller, Operation::Find), Visible::Nothing);
    }

    #[test]
    fn a_peer_may_what_its_table_says_and_no_more() {
        let access = access("[[peer]]\nae_title = \"V\"\nhost = \"127.0.0.1\"\nport = 104\nallow = [\"find\"]\n");
        let caller = access.dicom_caller(&title("V"), plain()).unwrap();
        assert!(access.may(&caller, Operation::Find));
        assert!(!access.may(&caller, Operation::Store));
    }

    #[test]
    fn a_title_bound_to_a_host_is_refused_from_another() {
        let access = access("[[peer]]\nae_title = \"V\"\nhost = \"192.0.2.1\"\ncheck_host = true\n");
        let refused = access.dicom_caller(&title("V"), plain()).unwrap_err();
        assert!(refused.to_string().contains("192.0.2.1"));
    }

    const TLS: &str = "[dicom.tls]\nbind = \"127.0.0.1:0\"\ncertificate_file = \"c\"\nkey_file = \"k\"\n\
                       client_certificates = \"optional\"\nclient_ca_files = [\"ca\"]\n";

    #[test]
    fn a_bound_title_and_its_certificate_are_good_for_each_other_only() {
        let peers = format!(
            "[[peer]]\nae_title = \"PRINT\"\ntls_certificate_sha256 = [\"{}\"]\n[[peer]]\nae_title = \"NAMED\"\n\
             tls_subject = \"ct.example\"\n[[peer]]\nae_title = \"BOTH\"\ntls_certificate_sha256 = [\"{}\", \"{}\"]\n\
             tls_subject = \"mr.example\"\n[[peer]]\nae_title = \"FREE\"\n",
            "01".repeat(32),
            "05".repeat(32),
            ["0A:0b"; 16].join(":"),
        );
        let access = access(&format!("{TLS}{peers}"));
        let (one, ct, mr) = (certificate(1, "x.example"), certificate(2, "CT.example"), certificate(5, "mr.example"));
        let (half, other) = (certificate(5, "no.example"), certificate(9, "z.example"));
        let ways = [None, Some(&one), Some(&ct), Some(&mr), Some(&half), Some(&other)];
        // Which of the certificates let which title in; what is not bound comes in with none and with one that is nobody's.
        let rows: [(&str, [bool; 6]); 5] = [
            ("PRINT", [false, true, false, false, false, false]),
            ("NAMED", [false, false, true, false, false, false]),
            ("BOTH", [false, false, false, true, false, false]),
            ("FREE", [true, false, false, false, true, true]),
            ("STRANGER", [true, false, false, false, true, true]),
        ];
        for (name, lets_in) in rows {
            for (certificate, let_in) in ways.into_iter().zip(lets_in) {
                let way = Way { is_encrypted: true, certificate, ..plain() };
                let found = access.dicom_caller(&title(name), way);
                assert_eq!(found.is_ok(), let_in, "{name} with {certificate:?}: {found:?}");
            }
            assert_eq!(access.dicom_caller(&title(name), plain()).is_ok(), lets_in[0], "{name} in the clear");
        }
        let words = |name, way| access.dicom_caller(&title(name), way).unwrap_err().to_string();
        assert!(words("PRINT", plain()).contains("call the TLS port"));
        let way = Way { is_encrypted: true, certificate: Some(&other), ..plain() };
        assert!(
            words("PRINT", way).contains(&"09".repeat(32)) && words("PRINT", way).contains("tls_certificate_sha256")
        );
        assert!(words("FREE", Way { certificate: Some(&one), ..way }).contains("AE title PRINT"));
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
        let study = Uid::new("1.2.3").unwrap();
        assert!(visible.shows(Some(&study), Some(account)) && visible.shows(None, Some(account)));
        assert!(!visible.shows(Some(&study), Some(Address::repeat_byte(8))) && !visible.shows(Some(&study), None));
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
    fn what_a_grant_opens_is_the_study_or_one_series_or_neither() {
        let series = B256::repeat_byte(5);
        let allowed = Grant {
            study_id: B256::repeat_byte(1),
            grantee: Address::repeat_byte(2),
            owner: Address::repeat_byte(3),
            source: Address::repeat_byte(4),
            mode: Mode::Full,
            series: B256::ZERO,
            not_before: 10,
            not_after: 20,
            purpose: 0,
            encryption_key: B256::ZERO,
            seq: 1,
            decision: Decision::Allowed,
            asked: Asked::Accepted,
            deny_reason: 0,
            emergency_until: 0,
            tombstoned: false,
            suspended: false,
            version: 1,
            manifest_image: B256::ZERO,
            manifest_root: B256::ZERO,
        };
        let of_series = Grant { series, ..allowed.clone() };
        let previews = Grant { mode: Mode::Preview, ..allowed.clone() };
        let opens = |grant: &Grant, now_s| (opens_whole_study(grant, now_s), opens_one_series(grant, now_s));
        assert_eq!(opens(&allowed, 10), (true, None));
        assert_eq!(opens(&of_series, 20), (false, Some(series)));
        let nothing = [
            previews.clone(),
            Grant { series, ..previews },
            Grant { decision: Decision::Revoked, ..of_series.clone() },
            Grant { suspended: true, ..of_series.clone() },
            Grant { tombstoned: true, ..of_series.clone() },
        ];
        for grant in nothing {
            assert_eq!(opens(&grant, 15), (false, None), "{grant:?}");
        }
        assert_eq!((opens(&of_series, 9), opens(&of_series, 21)), ((false, None), (false, None)), "out of its time");
        let emergency = Grant { emergency_until: 30, ..of_series };
        assert_eq!((opens(&emergency, 15), opens(&emergency, 31)), ((true, None), (false, None)));
    }

    #[test]
    fn nobody_unknown_enters_when_unknown_peers_is_empty() {
        let access = access("[dicom]\nunknown_peers = []\n");
        let refused = access.dicom_caller(&title("X"), plain()).unwrap_err();
        assert!(refused.to_string().contains("add a [[peer]]"));
    }
}
