//! What is recorded: the events of DICOM PS3.15 A.5.3 and those of our own, with their codes. Pure.
//!
//! Nothing here can hold a patient's name by its type: callers give titles, addresses, UIDs, accounts, counts and reasons of ours. What comes
//! from a peer as free text is cut to [`TEXT_CHARS_MAX`] characters.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Stands for a name of a study that is none.
const UNREADABLE: &str = "unreadable";
/// Longest text of a peer's or an error's that is taken over, in characters.
const TEXT_CHARS_MAX: usize = 256;

/// A coded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// csd-code
    pub value: &'static str,
    /// codeSystemName
    pub system: &'static str,
    /// originalText
    pub meaning: &'static str,
}

/// Codes of DICOM PS3.16, context groups 400 to 404.
const fn dcm(value: &'static str, meaning: &'static str) -> Code {
    Code { value, system: "DCM", meaning }
}

/// Codes of our own; docs/AUDIT.md lists them.
const fn own(value: &'static str, meaning: &'static str) -> Code {
    Code { value, system: "PACSBRIDGE", meaning }
}

const APPLICATION_ACTIVITY: Code = dcm("110100", "Application Activity");
const AUDIT_LOG_USED: Code = dcm("110101", "Audit Log Used");
const BEGIN_TRANSFERRING: Code = dcm("110102", "Begin Transferring DICOM Instances");
const INSTANCES_ACCESSED: Code = dcm("110103", "DICOM Instances Accessed");
const INSTANCES_TRANSFERRED: Code = dcm("110104", "DICOM Instances Transferred");
const STUDY_DELETED: Code = dcm("110105", "DICOM Study Deleted");
const EXPORT: Code = dcm("110106", "Export");
const IMPORT: Code = dcm("110107", "Import");
const QUERY: Code = dcm("110112", "Query");
const SECURITY_ALERT: Code = dcm("110113", "Security Alert");
const USER_AUTHENTICATION: Code = dcm("110114", "User Authentication");
const APPLICATION_START: Code = dcm("110120", "Application Start");
const APPLICATION_STOP: Code = dcm("110121", "Application Stop");
const LOGIN: Code = dcm("110122", "Login");
const LOGOUT: Code = dcm("110123", "Logout");
const NODE_AUTHENTICATION: Code = dcm("110126", "Node Authentication");
const OVERRIDE_STARTED: Code = dcm("110127", "Emergency Override Started");
const SECURITY_CONFIGURATION: Code = dcm("110129", "Security Configuration");
const RESTRICTED_FUNCTION: Code = dcm("110132", "Use of Restricted Function");
const RECORDING_STOPPED: Code = dcm("110133", "Audit Recording Stopped");
const OBJECT_SECURITY_CHANGED: Code = dcm("110135", "Object Security Attributes Changed");
const ROLES_CHANGED: Code = dcm("110136", "Security Roles Changed");
const USER_SECURITY_CHANGED: Code = dcm("110137", "User Security Attributes Changed");
const APPLICATION: Code = dcm("110150", "Application");
const DESTINATION: Code = dcm("110152", "Destination Role ID");
const SOURCE: Code = dcm("110153", "Source Role ID");
const STUDY_INSTANCE_UID: Code = dcm("110180", "Study Instance UID");
const SOP_CLASS_UID: Code = dcm("110181", "SOP Class UID");

/// ITI TF-2 3.43.
const ITI_43: Code = Code { value: "ITI-43", system: "IHE Transactions", meaning: "Retrieve Document Set" };
const RAD_69: Code = Code { value: "RAD-69", system: "IHE Transactions", meaning: "Retrieve Imaging Document Set" };
/// RFC 3881 5.5.4.
const REPORT_NUMBER: Code = Code { value: "9", system: "RFC-3881", meaning: "Report Number" };
const URI: Code = Code { value: "12", system: "RFC-3881", meaning: "URI" };

const STUDY_ID: Code = own("study-id", "Study id on the ledger");
const KEYS_HANDED_OUT: Code = own("study-keys", "Study keys handed out");
const HTTP_REQUEST: Code = own("http-api", "Request of the HTTP API");
const EVICTED: Code = own("evict", "Local copies removed");
const PROVEN: Code = own("verify", "Compared with the ledger");
const SHOWN: Code = own("show", "Shown to the operator");
const ARRIVED: Code = own("arrive", "Study of another site here, as its owner allows");
const WITHDRAWN: Code = own("withdraw", "Study of another site removed, as its owner does not allow it");
const DERIVED: Code = own("derive", "De-identified into another study");

/// EventActionCode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `C`
    Create,
    /// `R`
    Read,
    /// `U`
    Update,
    /// `D`
    Delete,
    /// `E`
    Execute,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "C",
            Self::Read => "R",
            Self::Update => "U",
            Self::Delete => "D",
            Self::Execute => "E",
        })
    }
}

/// EventOutcomeIndicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Outcome {
    /// It was done.
    Success = 0,
    /// It was refused, or not all of it was done.
    MinorFailure = 4,
    /// It could not be done.
    SeriousFailure = 8,
    /// This application is not what it was.
    MajorFailure = 12,
}

/// Somebody or something that takes part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Party {
    /// UserID
    pub id: String,
    /// AlternativeUserID
    pub alternative: Option<String>,
    /// UserIsRequestor
    pub is_requestor: bool,
    /// NetworkAccessPointID: an address, or a host's name.
    pub address: Option<String>,
}

impl Party {
    /// Somebody who takes part without having asked.
    #[must_use]
    pub fn named(id: &str) -> Self {
        Self { id: short(id), alternative: None, is_requestor: false, address: None }
    }

    /// Who asks, from where.
    #[must_use]
    pub fn asking(id: &str, from: Option<IpAddr>) -> Self {
        let address = from.map(|from| from.to_canonical().to_string());
        Self { is_requestor: true, address, ..Self::named(id) }
    }

    /// The same, and by whose word: who that is for an OpenID Connect issuer, besides for whom he stands here.
    #[must_use]
    pub fn vouched_for(self, subject: &str) -> Self {
        Self { alternative: Some(format!("{VOUCHED}{}", short(subject))), ..self }
    }

    /// A DICOM application entity that asks.
    #[must_use]
    pub fn calling(title: &str, from: IpAddr) -> Self {
        Self { alternative: Some(format!("AETITLES={}", short(title))), ..Self::asking(title, Some(from)) }
    }

    /// A DICOM application entity that is called.
    #[must_use]
    pub fn called(title: &str, host: &str) -> Self {
        let (alternative, address) = (Some(format!("AETITLES={}", short(title))), Some(short(host)));
        Self { alternative, address, ..Self::named(title) }
    }

    /// The person at this machine, by the number that the operating system has for him.
    #[must_use]
    pub fn at_this_machine() -> Self {
        let user = rustix::process::getuid().as_raw();
        Self::asking(&format!("operator (user {user} of this machine)"), None)
    }
}

/// What an issuer's word for somebody begins with.
pub(super) const VOUCHED: &str = "oidc=";

/// A participant: another, or one of our own faces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Another.
    Party(Party),
    /// This DICOM node.
    Node,
    /// This process.
    Process,
    /// This process as what answers at a URL.
    Endpoint(String),
}

/// ParticipantObjectIdentification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// ParticipantObjectID
    pub id: String,
    /// ParticipantObjectIDTypeCode
    pub id_type: Code,
    /// ParticipantObjectTypeCode: 1 person, 2 system object, 3 organization.
    pub kind: u8,
    /// ParticipantObjectTypeCodeRole
    pub role: u8,
    /// ParticipantObjectDataLifeCycle
    pub life_cycle: Option<u8>,
    /// ParticipantObjectQuery
    pub query: Option<Vec<u8>>,
    /// ParticipantObjectDetail: type and value.
    pub details: Vec<(&'static str, String)>,
    /// SOP classes and how many instances of each.
    pub classes: BTreeMap<String, u64>,
}

impl Object {
    fn new(id: &str, id_type: Code, role: u8) -> Self {
        let (life_cycle, query, details) = (None, None, Vec::new());
        Self { id: short(id), id_type, kind: 2, role, life_cycle, query, details, classes: BTreeMap::new() }
    }

    /// A study, by its StudyInstanceUID or its id on the ledger.
    fn study(name: &str) -> Self {
        let bare = name.strip_prefix("0x").unwrap_or(name);
        let on_ledger = bare.len() == 64 && bare.chars().all(|c| c.is_ascii_hexdigit());
        let is_uid = !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_digit() || c == '.');
        // What is neither was typed by somebody and might be anything, a name too.
        let name = if on_ledger || is_uid { name } else { UNREADABLE };
        Self::new(name, if on_ledger { STUDY_ID } else { STUDY_INSTANCE_UID }, 3)
    }

    fn detail(mut self, kind: &'static str, value: impl Into<String>) -> Self {
        self.details.push((kind, value.into()));
        self
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub(super) id: Code,
    pub(super) types: Vec<Code>,
    pub(super) action: Action,
    pub(super) outcome: Outcome,
    pub(super) why: Option<String>,
    pub(super) participants: Vec<(Who, Option<Code>)>,
    pub(super) objects: Vec<Object>,
}

/// Instances of one study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instances {
    /// StudyInstanceUID; none where it is not known.
    pub study: Option<String>,
    /// SOP Class UIDs and how many of each.
    pub classes: BTreeMap<String, u64>,
}

/// Between whom instances go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// From a peer to us.
    In(Party),
    /// From us to the peer that asks.
    Out(Party),
    /// From us to the second, because the first asks.
    Onward(Party, Party),
}

impl Route {
    fn participants(&self) -> Vec<(Who, Option<Code>)> {
        let party = |party: &Party| Who::Party(party.clone());
        match self {
            Self::In(peer) => vec![(party(peer), Some(SOURCE)), (Who::Node, Some(DESTINATION))],
            Self::Out(peer) => vec![(Who::Node, Some(SOURCE)), (party(peer), Some(DESTINATION))],
            Self::Onward(asks, receives) => {
                vec![(Who::Node, Some(SOURCE)), (party(receives), Some(DESTINATION)), (party(asks), None)]
            }
        }
    }
}

/// A change of who may see what, as somebody decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// A site asks for access.
    Request,
    /// Access is given.
    Allow,
    /// A request is refused.
    Deny,
    /// Access is taken away.
    Revoke,
    /// A study gets another owner.
    Transfer,
    /// A study's owner ends it.
    Tombstone,
    /// Guardians are named, or named no longer.
    Guardians,
    /// Guardians propose a new owner.
    ProposeRecovery,
    /// The owner objects to that.
    VetoRecovery,
    /// The new owner takes over.
    CompleteRecovery,
    /// A site lets itself in.
    BreakGlass,
    /// Whether two must agree to that.
    EmergencyApproval,
    /// An account is offered to act for this source.
    OfferOperator,
    /// It accepts.
    AcceptOperator,
    /// It acts no longer.
    DismissOperator,
    /// A source is admitted.
    Admit,
    /// A source is suspended.
    Suspend,
    /// A suspension is lifted.
    Reinstate,
    /// Somebody reads what was said about a study.
    Trace,
    /// An action is prepared for an owner to sign.
    Prepare,
    /// A P-256 key signs for an account from now on.
    BindKey,
    /// It does no longer.
    UnbindKey,
}

impl Decided {
    fn code(self) -> Code {
        match self {
            Self::Request => own("request", "Access asked for"),
            Self::Allow => own("allow", "Access given"),
            Self::Deny => own("deny", "Request for access refused"),
            Self::Revoke => own("revoke", "Access taken away"),
            Self::Transfer => own("transfer", "Study handed to another owner"),
            Self::Tombstone => own("tombstone", "Study ended by its owner"),
            Self::Guardians => own("guardians", "Guardians named"),
            Self::ProposeRecovery => own("propose-recovery", "Guardians propose a new owner"),
            Self::VetoRecovery => own("veto-recovery", "Owner objects to a new owner"),
            Self::CompleteRecovery => own("complete-recovery", "New owner by guardians"),
            Self::BreakGlass => own("break-glass", "Site lets itself in for an emergency"),
            Self::EmergencyApproval => own("emergency-approval", "Approval of emergencies demanded or waived"),
            Self::OfferOperator => own("offer-operator", "Account offered to act for this source"),
            Self::AcceptOperator => own("accept-operator", "Account begins to act for this source"),
            Self::DismissOperator => own("dismiss-operator", "Account acts for this source no longer"),
            Self::Admit => own("admit", "Source admitted"),
            Self::Suspend => own("suspend", "Source suspended"),
            Self::Reinstate => own("reinstate", "Source reinstated"),
            Self::Trace => own("trace", "History of a study read"),
            Self::Prepare => own("prepare", "Action prepared for its owner to sign"),
            Self::BindKey => own("bind-key", "P-256 key bound to an account"),
            Self::UnbindKey => own("unbind-key", "P-256 key unbound from its account"),
        }
    }

    /// What of DICOM's it is a case of.
    fn general(self) -> Code {
        match self {
            Self::BreakGlass => OVERRIDE_STARTED,
            Self::OfferOperator | Self::AcceptOperator | Self::DismissOperator => ROLES_CHANGED,
            Self::BindKey | Self::UnbindKey => ROLES_CHANGED,
            Self::Admit | Self::Suspend | Self::Reinstate | Self::EmergencyApproval => ROLES_CHANGED,
            _ => OBJECT_SECURITY_CHANGED,
        }
    }
}

/// What is done with keys and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyUse {
    /// New keys.
    New,
    /// A key from elsewhere.
    Import,
    /// A key to elsewhere.
    Export,
    /// Another key signs from now on.
    Rotate,
    /// Everything into a file.
    Backup,
    /// Everything from a file.
    Restore,
    /// A research key.
    Research,
    /// A bearer token.
    TokenNew,
    /// It is good no longer.
    TokenRevoke,
    /// A code with which a study is taken over.
    ClaimCode,
}

impl KeyUse {
    fn code(self) -> Code {
        match self {
            Self::New => own("keys-new", "Keys of the site made"),
            Self::Import => own("keys-import", "Key brought in"),
            Self::Export => own("keys-export", "Key taken out"),
            Self::Rotate => own("keys-rotate", "Signing key replaced"),
            Self::Backup => own("keys-backup", "Keys backed up"),
            Self::Restore => own("keys-restore", "Keys restored"),
            Self::Research => own("keys-research", "Research key made"),
            Self::TokenNew => own("token-new", "Bearer token made"),
            Self::TokenRevoke => own("token-revoke", "Bearer token revoked"),
            Self::ClaimCode => own("token-claim", "Claim code made"),
        }
    }

    fn general(self) -> Code {
        match self {
            Self::TokenNew | Self::TokenRevoke | Self::ClaimCode => USER_SECURITY_CHANGED,
            _ => SECURITY_CONFIGURATION,
        }
    }
}

/// What somebody does with a study besides sending it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Its local copies go.
    Evict,
    /// It is compared with the ledger.
    Verify,
    /// Another is made of it.
    Derive,
    /// It is looked at in full.
    Show,
}

impl Event {
    fn new(id: Code, action: Action, outcome: Outcome) -> Self {
        let (types, participants, objects) = (Vec::new(), Vec::new(), Vec::new());
        Self { id, types, action, outcome, why: None, participants, objects }
    }

    fn typed(mut self, code: Code) -> Self {
        self.types.push(code);
        self
    }

    fn by(mut self, who: Who, role: Option<Code>) -> Self {
        self.participants.push((who, role));
        self
    }

    fn about(mut self, object: Object) -> Self {
        self.objects.push(object);
        self
    }

    /// The reason, in words of ours: EventOutcomeDescription.
    #[must_use]
    pub fn because(mut self, why: &str) -> Self {
        self.why = Some(short(why));
        self
    }

    fn perhaps_because(self, why: Option<&str>) -> Self {
        match why {
            Some(why) => self.because(why),
            None => self,
        }
    }

    /// How it went.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    fn alert(kind: Code, outcome: Outcome) -> Self {
        Self::new(SECURITY_ALERT, Action::Execute, outcome).typed(kind)
    }

    /// The application started (A.5.3.1).
    #[must_use]
    pub fn started() -> Self {
        let event = Self::new(APPLICATION_ACTIVITY, Action::Execute, Outcome::Success).typed(APPLICATION_START);
        event.by(Who::Process, Some(APPLICATION))
    }

    /// The application stopped (A.5.3.1).
    #[must_use]
    pub fn stopped() -> Self {
        let event = Self::new(APPLICATION_ACTIVITY, Action::Execute, Outcome::Success).typed(APPLICATION_STOP);
        event.by(Who::Process, Some(APPLICATION))
    }

    /// Certificates and keys of the doors were read again, or could not be.
    #[must_use]
    pub fn reconfigured(why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        Self::alert(SECURITY_CONFIGURATION, outcome).by(Who::Process, None).perhaps_because(why)
    }

    /// The log is not as it was: what a crash left was cut off, it was damaged, or events could not be recorded.
    #[must_use]
    pub fn log_trouble(outcome: Outcome, why: &str) -> Self {
        Self::alert(RECORDING_STOPPED, outcome).by(Who::Process, None).because(why)
    }

    /// Somebody read or examined the audit log (A.5.3.2).
    #[must_use]
    pub fn log_used(by: &Party, what: &str) -> Self {
        let log = Object { role: 13, ..Object::new("audit log of this site", URI, 13) };
        let event = Self::new(AUDIT_LOG_USED, Action::Read, Outcome::Success);
        event.by(Who::Party(by.clone()), None).about(log).because(what)
    }

    /// An association was refused (A.5.3.11, Node Authentication).
    #[must_use]
    pub fn association_refused(caller: &Party, why: &str) -> Self {
        let event = Self::alert(NODE_AUTHENTICATION, Outcome::MinorFailure).because(why);
        event.by(Who::Node, None).by(Who::Party(caller.clone()), None)
    }

    /// Somebody asked for what he may not have done.
    #[must_use]
    pub fn not_allowed(caller: &Party, what: &str) -> Self {
        let event = Self::alert(RESTRICTED_FUNCTION, Outcome::MinorFailure).because(what);
        event.by(Who::Node, None).by(Who::Party(caller.clone()), None)
    }

    /// A C-FIND (A.5.3.10). `identifier` is the query in `transfer_syntax`, without whatever may name a patient.
    #[must_use]
    pub fn query(
        caller: &Party,
        sop_class: &str,
        identifier: Vec<u8>,
        transfer_syntax: &str,
        why: Option<&str>,
    ) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let object = Object { query: Some(identifier), ..Object::new(sop_class, SOP_CLASS_UID, 3) };
        let event = Self::new(QUERY, Action::Execute, outcome).by(Who::Party(caller.clone()), Some(SOURCE));
        let event = event.by(Who::Node, Some(DESTINATION)).about(object.detail("TransferSyntax", transfer_syntax));
        event.perhaps_because(why)
    }

    fn transfer(id: Code, action: Action, outcome: Outcome, route: &Route, instances: &Instances) -> Self {
        let study = instances
            .study
            .as_deref()
            .map(|study| Object { classes: instances.classes.clone(), ..Object::study(study) });
        let objects = study.into_iter().collect();
        Self { participants: route.participants(), objects, ..Self::new(id, action, outcome) }
    }

    /// Instances of a study are about to go from one node to another (A.5.3.3).
    #[must_use]
    pub fn transfer_begins(route: &Route, instances: &Instances) -> Self {
        Self::transfer(BEGIN_TRANSFERRING, Action::Execute, Outcome::Success, route, instances)
    }

    /// They have gone (A.5.3.7): those in `instances`, and `failed` not.
    #[must_use]
    pub fn transferred(route: &Route, instances: &Instances, failed: u64) -> Self {
        let action = if matches!(route, Route::In(_)) { Action::Create } else { Action::Read };
        let none = instances.classes.values().sum::<u64>() == 0;
        let outcome = match failed {
            0 => Outcome::Success,
            _ if none => Outcome::SeriousFailure,
            _ => Outcome::MinorFailure,
        };
        let why = (failed > 0).then(|| format!("{failed} instances were not transferred"));
        let event = Self::transfer(INSTANCES_TRANSFERRED, action, outcome, route, instances);
        event.perhaps_because(why.as_deref())
    }

    /// A document was handed to an account by ITI-43, or refused to it (ITI TF-2 3.43.6.2, Export).
    #[must_use]
    pub fn documents(url: &str, to: &Party, repository: &[String], documents: &[String], why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let mut event = Self::new(EXPORT, Action::Read, outcome).typed(ITI_43).perhaps_because(why);
        event = event.by(Who::Endpoint(url.to_owned()), Some(SOURCE)).by(Who::Party(to.clone()), Some(DESTINATION));
        for (document, repository) in documents.iter().zip(repository) {
            let object = Object::new(document, REPORT_NUMBER, 3);
            event = event.about(object.detail("Repository Unique ID", short(repository)));
        }
        event
    }

    /// Instances of a study were handed to an account by RAD-69, or refused to it (RAD TF-2 4.69.5.1).
    #[must_use]
    pub fn instances(url: &str, to: &Party, study: &str, instances: usize, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let event = Self::new(EXPORT, Action::Read, outcome).typed(RAD_69).perhaps_because(why);
        let event = event.by(Who::Endpoint(url.to_owned()), Some(SOURCE)).by(Who::Party(to.clone()), Some(DESTINATION));
        event.about(Object::study(study).detail("instances", instances.to_string()))
    }

    /// Objects that another site keeps came from there because somebody here asked for them, or did not come (Import).
    #[must_use]
    pub fn brought(from: &str, study: &str, instances: usize, whole: bool, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let transaction = if whole { ITI_43 } else { RAD_69 };
        let event = Self::new(IMPORT, Action::Create, outcome).typed(transaction).perhaps_because(why);
        let event = event.by(Who::Party(Party::named(from)), Some(SOURCE)).by(Who::Process, Some(DESTINATION));
        event.about(Object::study(study).detail("instances", instances.to_string()))
    }

    /// A version of another site's study is here to be found, because its owner lets this site see it (Import).
    #[must_use]
    pub fn arrived(from: &str, study: &str, version: u32) -> Self {
        let event = Self::new(IMPORT, Action::Create, Outcome::Success).typed(ARRIVED);
        let event = event.by(Who::Party(Party::named(from)), Some(SOURCE)).by(Who::Process, Some(DESTINATION));
        event.about(Object::study(study).detail("version", version.to_string()))
    }

    /// Another site's study, or a part of it, is not here any more, because its owner does not let this site see it.
    #[must_use]
    pub fn withdrawn(study: &str) -> Self {
        let event = Self::new(INSTANCES_ACCESSED, Action::Delete, Outcome::Success).typed(WITHDRAWN);
        event.by(Who::Process, None).about(Object::study(study))
    }

    /// A message of ITI-43 whose signature, time or novelty is not good, or that cannot be read at all.
    #[must_use]
    pub fn documents_alert(url: &str, from: &Party, why: &str) -> Self {
        let event = Self::alert(NODE_AUTHENTICATION, Outcome::MinorFailure).typed(ITI_43).because(why);
        event.by(Who::Endpoint(url.to_owned()), None).by(Who::Party(from.clone()), None)
    }

    /// This site fetched a study from another by ITI-43, or did not get it (Import).
    #[must_use]
    pub fn fetched(by: &Party, from: &str, study: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let event = Self::new(IMPORT, Action::Create, outcome).typed(ITI_43).perhaps_because(why);
        let event = event.by(Who::Party(Party::named(from)), Some(SOURCE)).by(Who::Process, Some(DESTINATION));
        event.by(Who::Party(by.clone()), None).about(Object::study(study))
    }

    /// The keys of a study were handed to an account, over TLS or over the ledger.
    #[must_use]
    pub fn keys_handed_out(to: &Party, study: &str, way: &'static str) -> Self {
        let event = Self::new(EXPORT, Action::Read, Outcome::Success).typed(KEYS_HANDED_OUT);
        let event = event.by(Who::Process, Some(SOURCE)).by(Who::Party(to.clone()), Some(DESTINATION));
        event.about(Object::study(study).detail("way", way))
    }

    /// They were refused.
    #[must_use]
    pub fn keys_refused(to: &Party, study: Option<&str>, way: &'static str, why: &str) -> Self {
        let event = Self::alert(RESTRICTED_FUNCTION, Outcome::MinorFailure).typed(KEYS_HANDED_OUT).because(why);
        let mut event = event.by(Who::Process, None).by(Who::Party(to.clone()), None);
        event.objects.extend(study.map(|study| Object::study(study).detail("way", way)));
        event
    }

    /// A study or a preview of it was read over HTTP.
    #[must_use]
    pub fn read(by: &Party, study: &str, what: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let event = Self::new(INSTANCES_ACCESSED, Action::Read, outcome).typed(HTTP_REQUEST).perhaps_because(why);
        event.by(Who::Party(by.clone()), None).by(Who::Process, None).about(Object::study(study).detail("path", what))
    }

    /// A list was read over HTTP; `keys` are the names of its conditions.
    #[must_use]
    pub fn listed(by: &Party, path: &str, keys: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let object = Object { query: Some(keys.as_bytes().to_vec()), ..Object::new(path, URI, 24) };
        let event = Self::new(QUERY, Action::Execute, outcome).typed(HTTP_REQUEST).perhaps_because(why);
        event.by(Who::Party(by.clone()), Some(SOURCE)).by(Who::Process, Some(DESTINATION)).about(object)
    }

    /// A caller of the HTTP API showed no good token (A.5.3.12).
    #[must_use]
    pub fn login_failed(from: &Party, path: &str) -> Self {
        let event = Self::new(USER_AUTHENTICATION, Action::Execute, Outcome::MinorFailure).typed(LOGIN);
        event.by(Who::Party(from.clone()), None).by(Who::Process, None).about(Object::new(path, URI, 13))
    }

    /// Somebody showed a good token to the pages, which remember that (A.5.3.12).
    #[must_use]
    pub fn logged_in(by: &Party, path: &str) -> Self {
        let event = Self::new(USER_AUTHENTICATION, Action::Execute, Outcome::Success).typed(LOGIN);
        event.by(Who::Party(by.clone()), None).by(Who::Process, None).about(Object::new(path, URI, 13))
    }

    /// The same person had them forget it.
    #[must_use]
    pub fn logged_out(by: &Party, path: &str) -> Self {
        let event = Self::new(USER_AUTHENTICATION, Action::Execute, Outcome::Success).typed(LOGOUT);
        event.by(Who::Party(by.clone()), None).by(Who::Process, None).about(Object::new(path, URI, 13))
    }

    /// Somebody decided about access, or tried to. `subject` is the study, or the account that it is about.
    #[must_use]
    pub fn decided(
        by: &Party,
        what: Decided,
        subject: &str,
        details: Vec<(&'static str, String)>,
        why: Option<&str>,
    ) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let is_account = subject.strip_prefix("0x").is_some_and(|hex| hex.len() == 40);
        let object = match is_account {
            true => Object { kind: 3, ..Object::new(subject, own("account", "Account on the ledger"), 11) },
            false => Object::study(subject),
        };
        let event = match what {
            Decided::Trace => Self::new(INSTANCES_ACCESSED, Action::Read, outcome),
            _ => Self::alert(what.general(), outcome),
        };
        let event = event.typed(what.code()).perhaps_because(why).by(Who::Process, None);
        event.by(Who::Party(by.clone()), None).about(Object { details, ..object })
    }

    /// A study was erased, or could not be (A.5.3.5).
    #[must_use]
    pub fn erased(by: &Party, study: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let object = Object { life_cycle: Some(15), ..Object::study(study) };
        let event = Self::new(STUDY_DELETED, Action::Delete, outcome).perhaps_because(why);
        event.by(Who::Party(by.clone()), None).by(Who::Process, None).about(object)
    }

    /// Something else was done with a study by the person at this machine.
    #[must_use]
    pub fn handled(by: &Party, what: Handling, study: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let (action, code) = match what {
            Handling::Evict => (Action::Delete, EVICTED),
            Handling::Verify => (Action::Read, PROVEN),
            Handling::Derive => (Action::Create, DERIVED),
            Handling::Show => (Action::Read, SHOWN),
        };
        let event = Self::new(INSTANCES_ACCESSED, action, outcome).typed(code).perhaps_because(why);
        event.by(Who::Party(by.clone()), None).by(Who::Process, None).about(Object::study(study))
    }

    /// Keys or tokens were made, moved or ended.
    #[must_use]
    pub fn keys_used(by: &Party, what: KeyUse, about: &str, why: Option<&str>) -> Self {
        let outcome = if why.is_some() { Outcome::MinorFailure } else { Outcome::Success };
        let event = Self::alert(what.general(), outcome).typed(what.code()).perhaps_because(why);
        let object = Object::new(about, own("key", "Key or token"), 13);
        event.by(Who::Process, None).by(Who::Party(by.clone()), None).about(object)
    }
}

/// At most so many characters of it.
fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}
