//! Association negotiation (PS3.7 annex D, PS3.8 7.1): what is proposed, what is accepted and why not.
//!
//! Pure decisions over dicom-ul's PDU types. Unlike dicom-ul's own association options this chooses transfer syntaxes per presentation
//! context, knows private syntaxes, tells the acceptor who is asking from where, and never gives up on a whole request because of one odd item.

use crate::{
    AeTitle, TransferSyntax, Uid,
    message::FragmentSize,
    sop_class::{self, Service},
};
use dicom_ul::pdu::{
    AssociationAC, AssociationRJ, AssociationRJResult, AssociationRJServiceProviderASCEReason,
    AssociationRJServiceProviderPresentationReason, AssociationRJServiceUserReason, AssociationRJSource, AssociationRQ,
    PresentationContextProposed, PresentationContextResult, PresentationContextResultReason, RequestorRoles,
    UserIdentityType, UserVariableItem,
};
use std::{collections::HashMap, net::SocketAddr};

/// Our Implementation Class UID (PS3.7 D.3.3.2), below the UUID-derived root 2.25.
pub const IMPLEMENTATION_CLASS_UID: Uid = Uid::literal("2.25.214417392605193284672198436150873299514");
/// Our Implementation Version Name (PS3.7 D.3.3.2).
pub const IMPLEMENTATION_VERSION_NAME: &str = "PACSBRIDGE_01";

/// The DICOM application context (PS3.7 A.2.1).
pub(crate) const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
/// What a peer that is silent about its maximum length gets.
const PEER_PDU_BYTES_DEFAULT: u32 = 16 * 1024;
/// User identity negotiation, acceptor's answer (PS3.7 D.3.3.7.2).
const USER_IDENTITY_RESPONSE: u8 = 0x59;

/// Who asks for an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationRequest {
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// The calling AE title.
    pub calling: AeTitle,
    /// The called AE title, as the peer spells it.
    pub called: AeTitle,
    /// User identity (PS3.7 D.3.3.7).
    pub user_identity: Option<UserIdentity>,
    /// The peer's Implementation Class UID.
    pub implementation_class_uid: Option<Uid>,
    /// The peer's Implementation Version Name.
    pub implementation_version_name: Option<String>,
    /// Whether the association is carried by an encrypted stream.
    pub is_encrypted: bool,
    /// The peer's verified TLS certificate in DER, where there is one.
    pub peer_certificate: Option<Vec<u8>>,
}

/// User identity (PS3.7 D.3.3.7).
#[derive(Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// What the fields are.
    pub kind: UserIdentityKind,
    /// User name, ticket, assertion or token.
    pub primary: Vec<u8>,
    /// Passcode, for [`UserIdentityKind::UsernamePasscode`].
    pub secondary: Vec<u8>,
    /// The requestor wants to know that it was understood.
    pub positive_response_requested: bool,
}

/// Secrets stay out of logs.
impl std::fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserIdentity").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// User-Identity-Type (PS3.7 table D.3-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserIdentityKind {
    /// 1
    Username,
    /// 2
    UsernamePasscode,
    /// 3
    Kerberos,
    /// 4
    Saml,
    /// 5
    Jwt,
}

/// Why an association is refused (PS3.8 9.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Permanent, service user, no reason given.
    #[error("no reason given")]
    NoReason,
    /// Permanent, service user.
    #[error("application context name not supported")]
    ApplicationContext,
    /// Permanent, service user.
    #[error("calling ae title not recognized")]
    CallingAeTitle,
    /// Permanent, service user.
    #[error("called ae title not recognized")]
    CalledAeTitle,
    /// Permanent, service provider (ACSE).
    #[error("protocol version not supported")]
    ProtocolVersion,
    /// Transient, service provider (presentation).
    #[error("temporary congestion")]
    TemporaryCongestion,
    /// Transient, service provider (presentation).
    #[error("local limit exceeded")]
    LocalLimitExceeded,
    /// A reason we do not know, from a peer.
    #[error("rejected for an unknown reason")]
    Other,
}

impl Rejection {
    pub(crate) fn to_pdu(self) -> AssociationRJ {
        use AssociationRJServiceProviderPresentationReason as Presentation;
        use AssociationRJServiceUserReason as User;
        use AssociationRJSource::*;
        let (result, source) = match self {
            Rejection::NoReason | Rejection::Other => {
                (AssociationRJResult::Permanent, ServiceUser(User::NoReasonGiven))
            }
            Rejection::ApplicationContext => {
                (AssociationRJResult::Permanent, ServiceUser(User::ApplicationContextNameNotSupported))
            }
            Rejection::CallingAeTitle => {
                (AssociationRJResult::Permanent, ServiceUser(User::CallingAETitleNotRecognized))
            }
            Rejection::CalledAeTitle => (AssociationRJResult::Permanent, ServiceUser(User::CalledAETitleNotRecognized)),
            Rejection::ProtocolVersion => (
                AssociationRJResult::Permanent,
                ServiceProviderASCE(AssociationRJServiceProviderASCEReason::ProtocolVersionNotSupported),
            ),
            Rejection::TemporaryCongestion => {
                (AssociationRJResult::Transient, ServiceProviderPresentation(Presentation::TemporaryCongestion))
            }
            Rejection::LocalLimitExceeded => {
                (AssociationRJResult::Transient, ServiceProviderPresentation(Presentation::LocalLimitExceeded))
            }
        };
        AssociationRJ { result, source }
    }

    pub(crate) fn of_pdu(pdu: &AssociationRJ) -> Self {
        use AssociationRJServiceProviderPresentationReason as Presentation;
        use AssociationRJServiceUserReason as User;
        match &pdu.source {
            AssociationRJSource::ServiceUser(User::NoReasonGiven) => Rejection::NoReason,
            AssociationRJSource::ServiceUser(User::ApplicationContextNameNotSupported) => Rejection::ApplicationContext,
            AssociationRJSource::ServiceUser(User::CallingAETitleNotRecognized) => Rejection::CallingAeTitle,
            AssociationRJSource::ServiceUser(User::CalledAETitleNotRecognized) => Rejection::CalledAeTitle,
            AssociationRJSource::ServiceProviderASCE(
                AssociationRJServiceProviderASCEReason::ProtocolVersionNotSupported,
            ) => Rejection::ProtocolVersion,
            AssociationRJSource::ServiceProviderPresentation(Presentation::TemporaryCongestion) => {
                Rejection::TemporaryCongestion
            }
            AssociationRJSource::ServiceProviderPresentation(Presentation::LocalLimitExceeded) => {
                Rejection::LocalLimitExceeded
            }
            _ => Rejection::Other,
        }
    }
}

/// What an acceptor offers. Which services exist is a decision of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Accept storage presentation contexts.
    pub storage: bool,
    /// Accept C-FIND presentation contexts.
    pub find: bool,
    /// Accept C-MOVE presentation contexts.
    pub r#move: bool,
    /// Accept C-GET presentation contexts.
    pub get: bool,
    /// Relational queries (PS3.4 C.5.2.1.1.2) when the peer asks for them.
    pub relational_queries: bool,
    /// Storage SOP classes beyond those of the standard.
    pub private_storage_classes: Vec<Uid>,
    /// Transfer syntaxes beyond those of [`TransferSyntax::of`].
    pub private_transfer_syntaxes: Vec<TransferSyntax>,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            storage: true,
            find: true,
            r#move: true,
            get: true,
            relational_queries: false,
            private_storage_classes: Vec::new(),
            private_transfer_syntaxes: Vec::new(),
        }
    }
}

/// An accepted presentation context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Its id, odd.
    pub id: u8,
    /// The SOP class.
    pub abstract_syntax: Uid,
    /// The transfer syntax accepted.
    pub transfer_syntax: TransferSyntax,
    /// The service the SOP class belongs to.
    pub service: Service,
    /// The roles the requestor negotiated for itself; `None` without role selection, which means SCU only.
    pub requestor_roles: Option<Roles>,
    /// Relational queries were negotiated.
    pub relational: bool,
    /// Combined date-time matching was negotiated.
    pub combined_date_time: bool,
}

/// SCP/SCU role selection (PS3.7 D.3.3.4), as seen from the requestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// The requestor is an SCU.
    pub scu: bool,
    /// The requestor is an SCP.
    pub scp: bool,
}

/// The outcome of a successful negotiation.
#[derive(Debug)]
pub(crate) struct Negotiated {
    pub(crate) contexts: Vec<Context>,
    pub(crate) answer: AssociationAC,
    pub(crate) fragment_size: FragmentSize,
}

impl Offer {
    /// Whether objects of a SOP class are taken in.
    #[must_use]
    pub fn stores(&self, class: &Uid) -> bool {
        self.storage && self.service(class) == Some(Service::Storage)
    }

    fn service(&self, class: &Uid) -> Option<Service> {
        let service = sop_class::service(class)
            .or_else(|| self.private_storage_classes.contains(class).then_some(Service::Storage))?;
        let offered = match service {
            Service::Verification => true,
            Service::Storage => self.storage,
            Service::Find(_) => self.find,
            Service::Move(_) => self.r#move,
            Service::Get(_) => self.get,
        };
        // C-GET sends objects over storage contexts, with the roles turned around.
        (offered || service == Service::Storage && self.get).then_some(service)
    }

    fn transfer_syntax(&self, uid: &str, service: Service) -> Option<TransferSyntax> {
        let uid = Uid::new(uid).ok()?;
        let private = || self.private_transfer_syntaxes.iter().find(|ts| *ts.uid() == uid).copied();
        let syntax = TransferSyntax::of(&uid).or_else(private).filter(TransferSyntax::is_for_associations)?;
        // Only objects are ever compressed; everything else is encoded here and must be readable for any peer.
        let native = !syntax.is_encapsulated() && !syntax.is_deflated();
        let plain = native && (!syntax.is_retired() || syntax == TransferSyntax::EXPLICIT_VR_BE);
        (service == Service::Storage || plain && TransferSyntax::of(&uid).is_some()).then_some(syntax)
    }
}

/// What the peer sent beside its presentation contexts.
#[derive(Debug, Default)]
pub(crate) struct UserVariables {
    pub(crate) pdu_bytes_max: Option<u32>,
    roles: HashMap<String, Roles>,
    extended: HashMap<String, Vec<u8>>,
    identity: Option<UserIdentity>,
    implementation_class_uid: Option<Uid>,
    implementation_version_name: Option<String>,
}

impl UserVariables {
    pub(crate) fn read(items: &[UserVariableItem]) -> Self {
        let mut read = UserVariables::default();
        for item in items {
            match item {
                UserVariableItem::MaxLength(bytes) => read.pdu_bytes_max = Some(*bytes),
                UserVariableItem::ImplementationClassUID(uid) => read.implementation_class_uid = Uid::new(uid).ok(),
                UserVariableItem::ImplementationVersionName(name) => {
                    read.implementation_version_name =
                        Some(name.chars().filter(|c| !c.is_control()).take(16).collect());
                }
                UserVariableItem::ScuScpRoleSelectionSubItem(class, roles) => {
                    read.roles.insert(trimmed(class).to_owned(), Roles { scu: roles.scu, scp: roles.scp });
                }
                UserVariableItem::SopClassExtendedNegotiationSubItem(class, data) => {
                    read.extended.insert(trimmed(class).to_owned(), data.clone());
                }
                UserVariableItem::UserIdentityItem(identity) => read.identity = user_identity(identity),
                UserVariableItem::Unknown(..) => {}
            }
        }
        read
    }

    /// How we may fragment, or `None` for a peer that cannot be served.
    pub(crate) fn fragment_size(&self) -> Option<FragmentSize> {
        FragmentSize::for_peer(self.pdu_bytes_max.unwrap_or(PEER_PDU_BYTES_DEFAULT))
    }

    pub(crate) fn roles(&self, class: &Uid) -> Option<Roles> {
        self.roles.get(class.as_str()).copied()
    }
}

fn user_identity(identity: &dicom_ul::pdu::UserIdentity) -> Option<UserIdentity> {
    let kind = match identity.identity_type() {
        UserIdentityType::Username => UserIdentityKind::Username,
        UserIdentityType::UsernamePassword => UserIdentityKind::UsernamePasscode,
        UserIdentityType::KerberosServiceTicket => UserIdentityKind::Kerberos,
        UserIdentityType::SamlAssertion => UserIdentityKind::Saml,
        UserIdentityType::Jwt => UserIdentityKind::Jwt,
        _ => return None,
    };
    Some(UserIdentity {
        kind,
        primary: identity.primary_field(),
        secondary: identity.secondary_field(),
        positive_response_requested: identity.positive_response_requested(),
    })
}

fn trimmed(uid: &str) -> &str {
    uid.trim_matches(['\0', ' '])
}

/// The part of the request that decides whether there is an association at all.
pub(crate) fn association_request(rq: &AssociationRQ, peer: SocketAddr) -> Result<AssociationRequest, Rejection> {
    if rq.protocol_version & 1 == 0 {
        return Err(Rejection::ProtocolVersion);
    }
    if trimmed(&rq.application_context_name) != APPLICATION_CONTEXT {
        return Err(Rejection::ApplicationContext);
    }
    let variables = UserVariables::read(&rq.user_variables);
    Ok(AssociationRequest {
        peer,
        calling: AeTitle::new(&rq.calling_ae_title).map_err(|_| Rejection::CallingAeTitle)?,
        called: AeTitle::new(&rq.called_ae_title).map_err(|_| Rejection::CalledAeTitle)?,
        user_identity: variables.identity,
        implementation_class_uid: variables.implementation_class_uid,
        implementation_version_name: variables.implementation_version_name,
        is_encrypted: false,
        peer_certificate: None,
    })
}

/// Answers the presentation contexts and user variables of a request that is admitted.
pub(crate) fn negotiate(rq: &AssociationRQ, offer: &Offer, pdu_bytes_max: u32) -> Result<Negotiated, Rejection> {
    let variables = UserVariables::read(&rq.user_variables);
    let fragment_size = variables.fragment_size().ok_or(Rejection::NoReason)?;
    let mut contexts: Vec<Context> = Vec::new();
    let mut results = Vec::new();
    for proposed in &rq.presentation_contexts {
        let duplicate = results.iter().any(|r: &PresentationContextResult| r.id == proposed.id);
        if duplicate || proposed.id.is_multiple_of(2) {
            // PS3.8 9.3.2.2: ids are odd and unique. Nothing sensible can be built on such a request.
            return Err(Rejection::NoReason);
        }
        let judged = judge(proposed, offer, &variables);
        results.push(result(proposed, &judged));
        contexts.extend(judged.ok());
    }
    let answer = AssociationAC {
        protocol_version: 1,
        calling_ae_title: rq.calling_ae_title.clone(),
        called_ae_title: rq.called_ae_title.clone(),
        application_context_name: APPLICATION_CONTEXT.to_owned(),
        presentation_contexts: results,
        user_variables: answered_variables(&contexts, &variables, offer, pdu_bytes_max),
    };
    Ok(Negotiated { contexts, answer, fragment_size })
}

fn judge(
    proposed: &PresentationContextProposed,
    offer: &Offer,
    variables: &UserVariables,
) -> Result<Context, PresentationContextResultReason> {
    let unsupported = PresentationContextResultReason::AbstractSyntaxNotSupported;
    let abstract_syntax = Uid::new(&proposed.abstract_syntax).map_err(|_| unsupported.clone())?;
    let service = offer.service(&abstract_syntax).ok_or(unsupported)?;
    let transfer_syntax = proposed
        .transfer_syntaxes
        .iter()
        .find_map(|uid| offer.transfer_syntax(uid, service))
        .ok_or(PresentationContextResultReason::TransferSyntaxesNotSupported)?;
    let requestor_roles = match service {
        Service::Storage => variables
            .roles(&abstract_syntax)
            .map(|roles| Roles { scu: roles.scu && offer.storage, scp: roles.scp && offer.get }),
        _ => None,
    };
    let extended = variables.extended.get(abstract_syntax.as_str());
    let granted = extended.map(|asked| extended_answer(asked, offer)).unwrap_or_default();
    Ok(Context {
        id: proposed.id,
        abstract_syntax,
        transfer_syntax,
        service,
        requestor_roles,
        relational: granted.first() == Some(&1),
        combined_date_time: granted.get(1) == Some(&1),
    })
}

fn result(
    proposed: &PresentationContextProposed,
    judged: &Result<Context, PresentationContextResultReason>,
) -> PresentationContextResult {
    match judged {
        Ok(context) => PresentationContextResult {
            id: context.id,
            reason: PresentationContextResultReason::Acceptance,
            transfer_syntax: context.transfer_syntax.uid().to_string(),
        },
        // The transfer syntax is not significant then, but some peers insist that the sub-item is there.
        Err(reason) => PresentationContextResult {
            id: proposed.id,
            reason: reason.clone(),
            transfer_syntax: TransferSyntax::IMPLICIT_VR_LE.uid().to_string(),
        },
    }
}

fn answered_variables(
    contexts: &[Context],
    asked: &UserVariables,
    offer: &Offer,
    pdu_bytes_max: u32,
) -> Vec<UserVariableItem> {
    let mut items = own_variables(pdu_bytes_max);
    let mut answered: Vec<Uid> = Vec::new();
    for context in contexts {
        let class = context.abstract_syntax;
        if answered.contains(&class) {
            continue;
        }
        answered.push(class);
        if let Some(roles) = context.requestor_roles {
            let roles = RequestorRoles { scu: roles.scu, scp: roles.scp };
            items.push(UserVariableItem::ScuScpRoleSelectionSubItem(class.to_string(), roles));
        }
        let queries = matches!(context.service, Service::Find(_) | Service::Move(_) | Service::Get(_));
        if let Some(asked) = asked.extended.get(class.as_str()).filter(|_| queries) {
            let bytes = extended_answer(asked, offer);
            items.push(UserVariableItem::SopClassExtendedNegotiationSubItem(class.to_string(), bytes));
        }
    }
    if asked.identity.as_ref().is_some_and(|identity| identity.positive_response_requested) {
        // Server-response-length 0: user names and passcodes are only acknowledged.
        items.push(UserVariableItem::Unknown(USER_IDENTITY_RESPONSE, vec![0, 0]));
    }
    items
}

/// PS3.4 C.5.2.1.1: relational queries as offered; combined date-time matching is always done; fuzzy matching, time zone adjustment
/// and enhanced multi-frame conversion are not.
fn extended_answer(asked: &[u8], offer: &Offer) -> Vec<u8> {
    let supported = [offer.relational_queries, true];
    let answer = |(i, byte): (usize, &u8)| u8::from(*byte == 1 && supported.get(i).copied().unwrap_or(false));
    asked.iter().enumerate().map(answer).collect()
}

/// An A-ASSOCIATE-AC as far as a requestor needs it (PS3.8 9.3.3).
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    /// Ids and transfer syntaxes of the accepted presentation contexts.
    pub(crate) contexts: Vec<(u8, Uid)>,
    pub(crate) variables: UserVariables,
}

/// Reads the variable items of an A-ASSOCIATE-AC, given the PDU without its header. Read by hand because dicom-ul refuses the whole PDU
/// when a *rejected* context omits its transfer syntax, which is not significant there and left out by several products.
pub(crate) fn read_accept(body: &[u8]) -> Option<Accepted> {
    let mut accepted = Accepted::default();
    for (kind, item) in Items(body.get(ASSOCIATE_FIXED_BYTES..)?) {
        let item = item?;
        match kind {
            0x21 => {
                let (&[id, _, reason, _], sub_items) = item.split_first_chunk::<4>()?;
                if reason == 0 {
                    let (_, syntax) = Items(sub_items).find(|(kind, _)| *kind == 0x40)?;
                    accepted.contexts.push((id, Uid::from_bytes(syntax?).ok()?));
                }
            }
            0x50 => accepted.variables = read_accepted_variables(item)?,
            _ => {}
        }
    }
    Some(accepted)
}

fn read_accepted_variables(items: &[u8]) -> Option<UserVariables> {
    let mut variables = UserVariables::default();
    for (kind, item) in Items(items) {
        let item = item?;
        match kind {
            0x51 => variables.pdu_bytes_max = Some(u32::from_be_bytes(*item.first_chunk::<4>()?)),
            0x54 => {
                let (&[a, b], rest) = item.split_first_chunk::<2>()?;
                let (class, roles) = rest.split_at_checked(usize::from(u16::from_be_bytes([a, b])))?;
                let &[scu, scp, ..] = roles else { return None };
                let class = Uid::from_bytes(class).ok()?;
                variables.roles.insert(class.to_string(), Roles { scu: scu != 0, scp: scp != 0 });
            }
            _ => {}
        }
    }
    Some(variables)
}

/// Of A-ASSOCIATE-RQ and -AC before the variable items: protocol version, reserved, the two AE titles and 32 reserved bytes.
pub(crate) const ASSOCIATE_FIXED_BYTES: usize = 2 + 2 + 16 + 16 + 32;

/// Type, reserved byte, length, content; the content is `None` when cut short.
pub(crate) struct Items<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = (u8, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((&[kind, _, a, b], rest)) = self.0.split_first_chunk::<4>() else {
            self.0 = &[];
            return Some((0, None));
        };
        let length = usize::from(u16::from_be_bytes([a, b]));
        let (content, rest) = rest.split_at_checked(length).map_or((None, &[][..]), |(c, r)| (Some(c), r));
        self.0 = rest;
        Some((kind, content))
    }
}

/// What we say of ourselves in every association.
pub(crate) fn own_variables(pdu_bytes_max: u32) -> Vec<UserVariableItem> {
    vec![
        UserVariableItem::MaxLength(pdu_bytes_max),
        UserVariableItem::ImplementationClassUID(IMPLEMENTATION_CLASS_UID.to_string()),
        UserVariableItem::ImplementationVersionName(IMPLEMENTATION_VERSION_NAME.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
    const JPEG: &str = "1.2.840.10008.1.2.4.70";
    const IMPLICIT: &str = "1.2.840.10008.1.2";
    const EXPLICIT: &str = "1.2.840.10008.1.2.1";

    fn request(contexts: &[(u8, &str, &[&str])], variables: Vec<UserVariableItem>) -> AssociationRQ {
        AssociationRQ {
            protocol_version: 1,
            calling_ae_title: "SCU".into(),
            called_ae_title: "SCP".into(),
            application_context_name: APPLICATION_CONTEXT.into(),
            presentation_contexts: contexts
                .iter()
                .map(|(id, class, syntaxes)| PresentationContextProposed {
                    id: *id,
                    abstract_syntax: (*class).into(),
                    transfer_syntaxes: syntaxes.iter().map(|s| (*s).into()).collect(),
                })
                .collect(),
            user_variables: variables,
        }
    }

    fn accepted(rq: &AssociationRQ, offer: &Offer) -> Vec<(u8, String)> {
        let negotiated = negotiate(rq, offer, 131_072).unwrap();
        negotiated.contexts.iter().map(|c| (c.id, c.transfer_syntax.uid().to_string())).collect()
    }

    #[test]
    fn storage_takes_the_first_known_syntax_and_queries_only_plain_ones() {
        let find = sop_class::STUDY_ROOT_FIND;
        let rq = request(
            &[
                (1, CT, &["1.2.3.4", JPEG, IMPLICIT]),
                (3, find.as_str(), &[JPEG, EXPLICIT]),
                (5, find.as_str(), &[JPEG]),
            ],
            vec![],
        );
        assert_eq!(accepted(&rq, &Offer::default()), [(1, JPEG.to_owned()), (3, EXPLICIT.to_owned())]);
        let reasons: Vec<_> = negotiate(&rq, &Offer::default(), 131_072)
            .unwrap()
            .answer
            .presentation_contexts
            .into_iter()
            .map(|r| r.reason)
            .collect();
        use PresentationContextResultReason::*;
        assert_eq!(reasons, [Acceptance, Acceptance, TransferSyntaxesNotSupported]);
    }

    #[test]
    fn private_classes_and_syntaxes_need_configuration() {
        let rq = request(&[(1, "1.3.12.2.1107.5.9.1", &[IMPLICIT]), (3, CT, &["1.2.3.4"])], vec![]);
        assert_eq!(accepted(&rq, &Offer::default()), []);
        let offer = Offer {
            private_storage_classes: vec![Uid::literal("1.3.12.2.1107.5.9.1")],
            private_transfer_syntaxes: vec![TransferSyntax::private(
                Uid::literal("1.2.3.4"),
                crate::Encoding::ExplicitLe,
                true,
                false,
            )],
            ..Offer::default()
        };
        assert_eq!(accepted(&rq, &offer), [(1, IMPLICIT.to_owned()), (3, "1.2.3.4".to_owned())]);
    }

    #[test]
    fn ids_are_odd_and_unique() {
        let even = request(&[(2, CT, &[IMPLICIT])], vec![]);
        assert_eq!(negotiate(&even, &Offer::default(), 131_072).unwrap_err(), Rejection::NoReason);
        let twice = request(&[(1, CT, &[IMPLICIT]), (1, CT, &[EXPLICIT])], vec![]);
        assert_eq!(negotiate(&twice, &Offer::default(), 131_072).unwrap_err(), Rejection::NoReason);
    }

    #[test]
    fn tiny_pdus_are_refused() {
        let rq = request(&[(1, CT, &[IMPLICIT])], vec![UserVariableItem::MaxLength(512)]);
        assert_eq!(negotiate(&rq, &Offer::default(), 131_072).unwrap_err(), Rejection::NoReason);
    }

    #[test]
    fn roles_are_answered_for_storage_only() {
        let both = RequestorRoles { scu: false, scp: true };
        let find = sop_class::STUDY_ROOT_FIND;
        let rq = request(
            &[(1, CT, &[IMPLICIT]), (3, find.as_str(), &[IMPLICIT])],
            vec![
                UserVariableItem::ScuScpRoleSelectionSubItem(CT.into(), both),
                UserVariableItem::ScuScpRoleSelectionSubItem(find.to_string(), both),
            ],
        );
        let answer = negotiate(&rq, &Offer::default(), 131_072).unwrap().answer;
        let roles: Vec<_> = answer
            .user_variables
            .iter()
            .filter_map(|v| match v {
                UserVariableItem::ScuScpRoleSelectionSubItem(class, roles) => Some((class.as_str(), roles.scp)),
                _ => None,
            })
            .collect();
        assert_eq!(roles, [(CT, true)]);
    }

    #[test]
    fn requests_that_are_not_dicom_are_rejected() {
        let peer = "127.0.0.1:1".parse().unwrap();
        let good = request(&[], vec![]);
        assert_eq!(association_request(&good, peer).unwrap().calling.as_str(), "SCU");
        let rq = AssociationRQ { protocol_version: 2, ..good.clone() };
        assert_eq!(association_request(&rq, peer), Err(Rejection::ProtocolVersion));
        let rq = AssociationRQ { application_context_name: "1.2".into(), ..good.clone() };
        assert_eq!(association_request(&rq, peer), Err(Rejection::ApplicationContext));
        let rq = AssociationRQ { calling_ae_title: "  ".into(), ..good.clone() };
        assert_eq!(association_request(&rq, peer), Err(Rejection::CallingAeTitle));
        // Several version bits and a padded context name are fine.
        let rq =
            AssociationRQ { protocol_version: 3, application_context_name: format!("{APPLICATION_CONTEXT}\0"), ..good };
        assert!(association_request(&rq, peer).is_ok());
    }

    #[test]
    fn every_rejection_survives_the_wire() {
        use Rejection::*;
        for rejection in [
            NoReason,
            ApplicationContext,
            CallingAeTitle,
            CalledAeTitle,
            ProtocolVersion,
            TemporaryCongestion,
            LocalLimitExceeded,
        ] {
            assert_eq!(Rejection::of_pdu(&rejection.to_pdu()), rejection);
        }
    }
}
