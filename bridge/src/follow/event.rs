//! What the Registry, Consent and KeyBindings contracts say, as values. Pure; must not know how an event was fetched or where it is kept.

use alloy::primitives::{Address, B256, Bytes};
use alloy::sol_types::SolEventInterface as _;
use contracts::{Consent, KeyBindings, Sources, Studies};

/// What a grantee may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Previews and descriptions.
    Preview,
    /// Everything.
    Full,
}

impl Mode {
    /// From the contract's number; none for "nothing" and for numbers that this version does not know.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Preview),
            2 => Some(Self::Full),
            _ => None,
        }
    }

    /// The contract's number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Preview => 1,
            Self::Full => 2,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Preview => "preview",
            Self::Full => "full",
        }
    }
}

/// An event of a study, of a source or of an account's key, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Height of its block.
    pub block: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Hash of its transaction.
    pub transaction: B256,
    /// Position among all events of the block.
    pub log_index: u64,
    /// What was said.
    pub what: What,
}

/// What was said. Accounts and studies are the chain's pseudonyms.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the contracts' events, documented in IConsent, IStudies, ISources and IKeyBindings.
pub enum What {
    /// A study exists.
    Defined { study: B256, source: Address, owner: Address, custodial: bool },
    /// It was made from another study.
    Derived { study: B256, source: Address, from: B256 },
    /// Its manifest has a new version.
    Amended { study: B256, version: u32, image: B256, root: B256 },
    /// It has a new owner key, by the owner's word or by its guardians'.
    Transferred { study: B256, previous: Address, owner: Address, custodial: bool, seq: u32, recovered: bool },
    /// It must not be served any more.
    Tombstoned { study: B256, owner: Address, seq: u32 },
    /// The owner named guardians by their commitment.
    GuardiansNamed { study: B256, owner: Address, guardians: B256, seq: u32 },
    /// Guardians want another owner from a time on.
    RecoveryProposed { study: B256, owner: Address, new_owner: Address, ready_at: u64, seq: u32 },
    /// That is off.
    RecoveryEnded { study: B256, new_owner: Address },
    /// A grantee asked.
    Requested {
        study: B256,
        grantee: Address,
        number: u32,
        mode: Option<Mode>,
        purpose: u16,
        notes: B256,
        encryption_key: Bytes,
    },
    /// The owner allowed.
    Allowed {
        study: B256,
        grantee: Address,
        owner: Address,
        seq: u32,
        series: B256,
        mode: Option<Mode>,
        not_before: u64,
        not_after: u64,
        purpose: u16,
        notes: B256,
        encryption_key: B256,
    },
    /// The owner refused the open request.
    Denied { study: B256, grantee: Address, owner: Address, seq: u32, reason: u16, notes: B256 },
    /// The owner took access away.
    Revoked { study: B256, grantee: Address, owner: Address, seq: u32 },
    /// A source let itself in.
    GlassBroken {
        study: B256,
        source: Address,
        owner: Address,
        operator: Address,
        approver: Address,
        reason: u16,
        notes: B256,
        until: u64,
    },
    /// A grantee asks for the keys of a study, in an envelope that this key opens as well.
    KeysAsked { study: B256, grantee: Address, one_time_key: Bytes },
    /// The study's source answered.
    KeysDelivered { study: B256, grantee: Address, one_time_key: B256, until: u64, envelope: Bytes },
    /// The consortium admitted a source.
    SourceAdmitted { source: Address },
    /// The consortium suspended a source.
    SourceSuspended { source: Address },
    /// The consortium lifted a suspension.
    SourceReinstated { source: Address },
    /// A source defined itself.
    SourceDefined { source: Address, endpoint: String },
    /// A source moved.
    EndpointChanged { source: Address, endpoint: String },
    /// A source has other keys.
    KeysChanged { source: Address, tls_key: B256, encryption_key: Bytes },
    /// An account began to act for a source.
    OperatorAccepted { source: Address, operator: Address },
    /// An account no longer acts for a source, or the offer to it was withdrawn.
    OperatorRevoked { source: Address, operator: Address },
    /// An account says that a P-256 key signs for it, with what shall prove that the key's holder agrees.
    KeyBound { account: Address, key: B256, spki: Bytes, proof: Bytes, not_after: u64 },
    /// An account says that a key does not sign for it.
    KeyUnbound { account: Address, key: B256 },
}

impl What {
    /// The study that it is about.
    #[must_use]
    pub fn study(&self) -> Option<B256> {
        match self {
            Self::Defined { study, .. }
            | Self::Derived { study, .. }
            | Self::Amended { study, .. }
            | Self::Transferred { study, .. }
            | Self::Tombstoned { study, .. }
            | Self::GuardiansNamed { study, .. }
            | Self::RecoveryProposed { study, .. }
            | Self::RecoveryEnded { study, .. }
            | Self::Requested { study, .. }
            | Self::Allowed { study, .. }
            | Self::Denied { study, .. }
            | Self::Revoked { study, .. }
            | Self::GlassBroken { study, .. }
            | Self::KeysAsked { study, .. }
            | Self::KeysDelivered { study, .. } => Some(*study),
            _ => None,
        }
    }

    /// The account and the key that it is about.
    #[must_use]
    pub fn binding(&self) -> Option<(Address, B256)> {
        match self {
            Self::KeyBound { account, key, .. } | Self::KeyUnbound { account, key } => Some((*account, *key)),
            _ => None,
        }
    }

    /// The grantee that it is about; a source that broke the glass is one too.
    #[must_use]
    pub fn grantee(&self) -> Option<Address> {
        match self {
            Self::Requested { grantee, .. }
            | Self::Allowed { grantee, .. }
            | Self::Denied { grantee, .. }
            | Self::Revoked { grantee, .. }
            | Self::KeysAsked { grantee, .. }
            | Self::KeysDelivered { grantee, .. } => Some(*grantee),
            Self::GlassBroken { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// What a followed contract said; none for events that change nothing here.
    #[must_use]
    pub fn decode(topics: &[B256], data: &[u8]) -> Option<Self> {
        if let Ok(said) = Consent::ConsentEvents::decode_raw_log(topics, data) {
            return consent(said);
        }
        if let Ok(said) = Studies::StudiesEvents::decode_raw_log(topics, data) {
            return Some(studies(said));
        }
        if let Ok(said) = KeyBindings::KeyBindingsEvents::decode_raw_log(topics, data) {
            return Some(key_bindings(said));
        }
        sources(Sources::SourcesEvents::decode_raw_log(topics, data).ok()?)
    }
}

fn consent(said: Consent::ConsentEvents) -> Option<What> {
    use Consent::ConsentEvents as E;
    Some(match said {
        E::AccessRequested(e) => What::Requested {
            study: e.studyId,
            grantee: e.grantee,
            number: e.number,
            mode: Mode::from_number(e.mode),
            purpose: e.purpose,
            notes: e.notes,
            encryption_key: e.encryptionKey,
        },
        E::AccessAllowed(e) => What::Allowed {
            study: e.studyId,
            grantee: e.grantee,
            owner: e.owner,
            seq: e.seq,
            series: e.series,
            mode: Mode::from_number(e.mode),
            not_before: e.notBefore,
            not_after: e.notAfter,
            purpose: e.purpose,
            notes: e.notes,
            encryption_key: e.encryptionKey,
        },
        E::AccessDenied(e) => What::Denied {
            study: e.studyId,
            grantee: e.grantee,
            owner: e.owner,
            seq: e.seq,
            reason: e.reason,
            notes: e.notes,
        },
        E::AccessRevoked(e) => What::Revoked { study: e.studyId, grantee: e.grantee, owner: e.owner, seq: e.seq },
        E::GlassBroken(e) => What::GlassBroken {
            study: e.studyId,
            source: e.source,
            owner: e.owner,
            operator: e.operator,
            approver: e.approver,
            reason: e.reason,
            notes: e.notes,
            until: e.until,
        },
        E::KeysAsked(e) => What::KeysAsked { study: e.studyId, grantee: e.grantee, one_time_key: e.oneTimeKey },
        E::KeysDelivered(e) => What::KeysDelivered {
            study: e.studyId,
            grantee: e.grantee,
            one_time_key: e.oneTimeKey,
            until: e.until,
            envelope: e.envelope,
        },
        E::EmergencyApprovalChanged(_) => return None,
    })
}

fn studies(said: Studies::StudiesEvents) -> What {
    use Studies::StudiesEvents as E;
    match said {
        E::StudyDefined(e) => {
            What::Defined { study: e.studyId, source: e.source, owner: e.owner, custodial: e.custodial }
        }
        E::StudyAmended(e) => {
            What::Amended { study: e.studyId, version: e.version, image: e.manifestImage, root: e.manifestRoot }
        }
        E::StudyTransferred(e) => What::Transferred {
            study: e.studyId,
            previous: e.previousOwner,
            owner: e.newOwner,
            custodial: e.custodial,
            seq: e.seq,
            recovered: false,
        },
        E::StudyRecovered(e) => What::Transferred {
            study: e.studyId,
            previous: e.previousOwner,
            owner: e.newOwner,
            custodial: e.custodial,
            seq: e.seq,
            recovered: true,
        },
        E::StudyTombstoned(e) => What::Tombstoned { study: e.studyId, owner: e.owner, seq: e.seq },
        E::GuardiansNamed(e) => {
            What::GuardiansNamed { study: e.studyId, owner: e.owner, guardians: e.guardians, seq: e.seq }
        }
        E::RecoveryProposed(e) => What::RecoveryProposed {
            study: e.studyId,
            owner: e.owner,
            new_owner: e.newOwner,
            ready_at: e.readyAt,
            seq: e.seq,
        },
        E::RecoveryEnded(e) => What::RecoveryEnded { study: e.studyId, new_owner: e.newOwner },
        E::StudyDerived(e) => What::Derived { study: e.studyId, source: e.source, from: e.derivedFrom },
    }
}

fn key_bindings(said: KeyBindings::KeyBindingsEvents) -> What {
    use KeyBindings::KeyBindingsEvents as E;
    match said {
        E::KeyBound(e) => {
            What::KeyBound { account: e.account, key: e.key, spki: e.spki, proof: e.proof, not_after: e.notAfter }
        }
        E::KeyUnbound(e) => What::KeyUnbound { account: e.account, key: e.key },
    }
}

fn sources(said: Sources::SourcesEvents) -> Option<What> {
    use Sources::SourcesEvents as E;
    Some(match said {
        E::SourceAdmitted(e) => What::SourceAdmitted { source: e.source },
        E::SourceSuspended(e) => What::SourceSuspended { source: e.source },
        E::SourceReinstated(e) => What::SourceReinstated { source: e.source },
        E::SourceDefined(e) => What::SourceDefined { source: e.source, endpoint: e.endpoint },
        E::EndpointChanged(e) => What::EndpointChanged { source: e.source, endpoint: e.endpoint },
        E::KeysChanged(e) => What::KeysChanged { source: e.source, tls_key: e.tlsKey, encryption_key: e.encryptionKey },
        E::OperatorAccepted(e) => What::OperatorAccepted { source: e.source, operator: e.operator },
        E::OperatorRevoked(e) => What::OperatorRevoked { source: e.source, operator: e.operator },
        E::OperatorAuthorized(_) | E::AdminNominated(_) | E::AdminChanged(_) => return None,
    })
}
