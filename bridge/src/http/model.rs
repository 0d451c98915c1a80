//! What goes over the wire: requests and answers, as the OpenAPI document describes them. Plain values; must not know how an answer
//! is found.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::access::Right;
use crate::decide::{self, Done, RequestRow, SourceRow, TraceRow, TypedData, whole};
use crate::follow::{Decision as Said, Grant as GrantOnLedger};
use crate::payload::manifest::PreviewKind;
use crate::site::{State, StudyRow};

/// Most rows of a page.
pub(super) const PAGE_MAX: u32 = 500;
/// Longest name of a place in a list.
pub(super) const PLACE_CHARS_MAX: usize = 160;

/// Defines an enum of words of the contracts' tables, as JSON has them.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:tt;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub(super) enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            #[cfg(test)]
            const ALL: &'static [&'static str] = &[$($word),*];

            pub(super) fn word(self) -> String {
                match self {
                    $(Self::$variant => $word,)*
                }
                .to_owned()
            }
        }
    };
}

words! {
    /// What access is for: words of HL7 v3 ActReason, value set PurposeOfUse. `ANY` is not stated.
    Purpose {
        Any = "ANY";
        Treatment = "TREAT";
        EmergencyTreatment = "ETREAT";
        Research = "HRESCH";
        PatientRequest = "PATRQT";
        Operations = "HOPERAT";
        Payment = "HPAYMT";
        PublicHealth = "PUBHLTH";
        Legal = "HLEGAL";
        Education = "HEDUCATION";
    }
}

words! {
    /// Why an owner refuses.
    Reason {
        NotStated = "not-stated";
        UnknownGrantee = "unknown-grantee";
        Purpose = "purpose";
        TooBroad = "too-broad";
        NotNow = "not-now";
        Unwanted = "unwanted";
    }
}

words! {
    /// Why somebody lets himself in.
    Emergency {
        LifeThreatening = "life-threatening";
        PatientUnable = "patient-unable";
        PublicSafety = "public-safety";
        LegalOrder = "legal-order";
    }
}

/// What may be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Previews and descriptions.
    Preview,
    /// Everything.
    Full,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RightWord {
    Find,
    Retrieve,
    Store,
    Decide,
    Request,
    BreakGlass,
    Status,
    Sources,
}

impl From<Right> for RightWord {
    fn from(right: Right) -> Self {
        match right {
            Right::Find => Self::Find,
            Right::Retrieve => Self::Retrieve,
            Right::Store => Self::Store,
            Right::Decide => Self::Decide,
            Right::Request => Self::Request,
            Right::BreakGlass => Self::BreakGlass,
            Right::Status => Self::Status,
            Right::Sources => Self::Sources,
        }
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Most rows to answer with; 100 unless stated.
    #[param(minimum = 1, maximum = 500)]
    pub(super) limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 160, pattern = "^[0-9a-zA-Z:]+$")]
    pub(super) after: Option<String>,
}

/// Which object is meant.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfObject {
    /// SOPInstanceUID.
    #[param(max_length = 64, pattern = "^[0-9.]+$")]
    pub(super) instance: String,
}

/// Which requests are wanted.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RequestsPage {
    /// `waiting` (unless stated), or `all`: answered ones too.
    #[param(inline)]
    pub(super) state: Option<Wanted>,
    /// Most rows to answer with; 100 unless stated.
    #[param(minimum = 1, maximum = 500)]
    pub(super) limit: Option<u32>,
    /// `next` of the page before.
    #[param(max_length = 160, pattern = "^[0-9a-zA-Z:]+$")]
    pub(super) after: Option<String>,
}

/// Which requests are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wanted {
    /// Those that nobody answered.
    #[default]
    Waiting,
    /// All.
    All,
}

/// Who asks, and what that caller may do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Me {
    /// `operator`, `peer:` and an AE title, or `account:` and an account of the ledger.
    #[schema(example = "account:0x2222222222222222222222222222222222222222")]
    pub(super) principal: String,
    /// What this token allows.
    pub(super) rights: Vec<RightWord>,
    /// When the token ends, seconds since 1970; null: not by itself.
    pub(super) expires_s: Option<u64>,
}

/// Where a study is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StudyState {
    /// Kept here; publishing is switched off.
    Archived,
    /// Objects may still come.
    Receiving,
    /// Waiting for its turn.
    Queued,
    /// Definition, previews and manifest are going to the ledger.
    Publishing,
    /// It can be looked at; its objects are going to the ledger.
    Viewable,
    /// Every byte is on the ledger.
    Final,
    /// Another site's; its owner lets this site see it.
    Granted,
}

impl From<State> for StudyState {
    fn from(state: State) -> Self {
        match state {
            State::Archived => Self::Archived,
            State::Receiving => Self::Receiving,
            State::Queued => Self::Queued,
            State::Publishing => Self::Publishing,
            State::Viewable => Self::Viewable,
            State::Final => Self::Final,
            State::Granted => Self::Granted,
        }
    }
}

/// A study.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Study {
    /// StudyInstanceUID.
    pub(super) uid: String,
    /// Its name on the ledger, once it has one.
    pub(super) study_id: Option<String>,
    /// PatientName.
    pub(super) patient_name: String,
    /// PatientID.
    pub(super) patient_id: String,
    /// StudyDate.
    pub(super) study_date: String,
    /// StudyDescription.
    pub(super) description: String,
    /// Modalities of its series.
    pub(super) modalities: Vec<String>,
    /// Number of series.
    pub(super) series: u64,
    /// Number of objects.
    pub(super) instances: u64,
    /// Of which have a file here.
    pub(super) local: u64,
    /// Bytes of all objects.
    pub(super) bytes: u64,
    /// Where it is on its way to the ledger.
    pub(super) state: StudyState,
    /// Manifest version planned last; 0 before the first.
    pub(super) version: u32,
    /// Pieces planned.
    pub(super) pieces: u64,
    /// Pieces seen on the ledger.
    pub(super) pieces_seen: u64,
    /// Account of the site that published it, when it is another's.
    pub(super) source: Option<String>,
    /// Why it does not get on, if so; for the site's own people.
    pub(super) trouble: Option<String>,
}

impl Study {
    pub(super) fn of(row: StudyRow, study_id: Option<String>, source: Option<String>, operator: bool) -> Self {
        Self {
            uid: row.uid,
            study_id,
            patient_name: row.patient_name,
            patient_id: row.patient_id,
            study_date: row.study_date,
            description: row.description,
            modalities: row.modalities,
            series: row.series,
            instances: row.instances,
            local: row.local,
            bytes: row.bytes,
            state: row.state.into(),
            version: row.version,
            pieces: row.pieces,
            pieces_seen: row.pieces_seen,
            source,
            trouble: row.trouble.filter(|_| operator),
        }
    }
}

/// A page of studies.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Studies {
    /// In the order of arrival; an owner's in the order of their names on the ledger.
    pub(super) studies: Vec<Study>,
    /// `after` of the next page; null: this was the last.
    pub(super) next: Option<String>,
}

/// What a preview shows.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Shows {
    /// One instance.
    Instance,
    /// A series, by one frame.
    Series,
    /// A series, by a grid of frames.
    ContactSheet,
}

impl From<PreviewKind> for Shows {
    fn from(kind: PreviewKind) -> Self {
        match kind {
            PreviewKind::Instance => Self::Instance,
            PreviewKind::Series => Self::Series,
            PreviewKind::ContactSheet => Self::ContactSheet,
        }
    }
}

/// A preview of a study.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Preview {
    /// Its number, for its URL.
    pub(super) number: usize,
    /// What it shows.
    pub(super) shows: Shows,
    /// UID of the instance or series.
    pub(super) subject: String,
    /// `image/jpeg` or `image/png`.
    pub(super) media_type: String,
    /// In pixels.
    pub(super) width: u32,
    /// In pixels.
    pub(super) height: u32,
    /// SHA-256 of the picture.
    pub(super) sha256: String,
}

/// A study in full.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StudyInFull {
    /// The study.
    pub(super) study: Study,
    /// The account that owns it, once the ledger has it.
    pub(super) owner: Option<String>,
    /// Whether its source holds the owner's key for the patient.
    pub(super) custodial: Option<bool>,
    /// Whether its owner ended it.
    pub(super) tombstoned: bool,
    /// Pictures of its newest version.
    pub(super) previews: Vec<Preview>,
}

/// What was said about a grantee and a study.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GrantRow {
    /// The account that may read, or may not.
    pub(super) grantee: String,
    /// `requested`, `accepted`, `denied`, `authorised`, `not authorised` or `removed`; `emergency` while the glass is broken.
    pub(super) state: String,
    /// What may be seen now; null: nothing.
    pub(super) sees: Option<Mode>,
    /// What was allowed, when something was.
    pub(super) mode: Option<Mode>,
    /// First second of what was allowed, since 1970; null: from when it was allowed.
    pub(super) from_s: Option<u64>,
    /// Last second; null: until it is taken away.
    pub(super) until_s: Option<u64>,
    /// What for.
    pub(super) purpose: String,
    /// Salted hash of the one series; null: the whole study.
    pub(super) series: Option<String>,
    /// Last second of an emergency, if there was one.
    pub(super) emergency_until_s: Option<u64>,
}

impl GrantRow {
    pub(super) fn of(grant: &GrantOnLedger, now_s: u64) -> Self {
        let allowed = grant.decision == Said::Allowed;
        let mode = |mode| if mode == crate::follow::Mode::Full { Mode::Full } else { Mode::Preview };
        Self {
            grantee: grant.grantee.to_string(),
            state: decide::grant_state(grant, now_s).to_owned(),
            sees: grant.mode_at(now_s).map(mode),
            mode: allowed.then(|| mode(grant.mode)),
            from_s: Some(grant.not_before).filter(|from| allowed && *from > 0),
            until_s: Some(grant.not_after).filter(|until| allowed && *until < u64::MAX),
            purpose: decide::purpose_word(grant.purpose),
            series: Some(grant.series).filter(|series| !series.is_zero()).map(|series| series.to_string()),
            emergency_until_s: Some(grant.emergency_until).filter(|until| *until > 0),
        }
    }
}

/// Who may read a study until when, and who may not.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Grants {
    /// One row a grantee, in the order of their accounts.
    pub(super) grants: Vec<GrantRow>,
    /// `after` of the next page; null: this was the last.
    pub(super) next: Option<String>,
}

/// Something that was said about a study on the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventRow {
    /// `created`, `requested`, `accepted`, `denied`, `removed`, `glass broken` and so on.
    event: String,
    /// The grantee, or the new owner.
    account: Option<String>,
    /// What exactly.
    detail: String,
    /// Commitment to what was said in words, if anything was.
    notes: Option<String>,
    /// Seconds since 1970, by the block.
    time_s: Option<u64>,
    /// Hash of the transaction.
    transaction: String,
    /// Height of its block.
    block: u64,
    /// Gas of the whole transaction.
    gas: Option<u64>,
}

impl From<TraceRow> for EventRow {
    fn from(row: TraceRow) -> Self {
        let TraceRow { event, account, detail, notes, time_s, transaction, block, gas } = row;
        Self { event, account, detail, notes, time_s, transaction, block, gas }
    }
}

/// What was said about a study.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    /// In the order of the ledger.
    pub(super) history: Vec<EventRow>,
    /// `after` of the next page; null: this was the last.
    pub(super) next: Option<String>,
}

/// A request for access.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AccessRequest {
    /// The study on the ledger.
    study_id: String,
    /// Its StudyInstanceUID, if this site has it.
    study_uid: Option<String>,
    /// Who asks.
    grantee: String,
    /// Whether that is an active source of the consortium.
    known: bool,
    /// What is asked for: `preview` or `full`.
    mode: String,
    /// What for.
    purpose: String,
    /// How often it has asked.
    number: u32,
    /// `open`, `accepted` or `denied`.
    state: String,
    /// Height of its block.
    block: u64,
}

impl From<RequestRow> for AccessRequest {
    fn from(row: RequestRow) -> Self {
        let RequestRow { study_id, study_uid, grantee, known, mode, purpose, number, state, block } = row;
        Self { study_id, study_uid, grantee, known, mode, purpose, number, state, block }
    }
}

/// A page of requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Requests {
    /// In the order in which they were made.
    pub(super) requests: Vec<AccessRequest>,
    /// `after` of the next page; null: this was the last.
    pub(super) next: Option<String>,
}

/// Asks the owner of a study to let this site in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    /// The study's name on the ledger.
    #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
    pub(super) study: String,
    /// What is asked for.
    pub(super) mode: Mode,
    /// What for.
    #[serde(default)]
    pub(super) purpose: Option<Purpose>,
    /// Commitment to what is said in words.
    #[serde(default)]
    #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
    pub(super) notes: Option<String>,
}

/// Lets this site in for an emergency.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakGlass {
    /// The study's name on the ledger.
    #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
    pub(super) study: String,
    /// Why.
    pub(super) reason: Emergency,
    /// For how long, in seconds: a day at most.
    #[serde(deserialize_with = "whole::deserialize")]
    #[schema(minimum = 1, maximum = 86400)]
    pub(super) seconds: u32,
}

/// A decision about a study.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Decide {
    /// StudyInstanceUID, or the study's name on the ledger.
    #[schema(pattern = "^([0-9.]{1,64}|0x[0-9a-fA-F]{64})$")]
    pub(super) study: String,
    /// What is decided.
    pub(super) decision: Decision,
}

/// What an owner decides.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Decision {
    /// Let a grantee see the study.
    Allow {
        /// The grantee's account.
        #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
        grantee: String,
        /// What it may see.
        mode: Mode,
        /// SeriesInstanceUID, or the salted hash of one, if not the whole study.
        #[serde(default)]
        #[schema(pattern = "^([0-9.]{1,64}|0x[0-9a-fA-F]{64})$")]
        series: Option<String>,
        /// First second, since 1970; without it at once.
        #[serde(default, deserialize_with = "whole::optional")]
        #[schema(minimum = 0, maximum = 253402300799_u64)]
        from_s: Option<u64>,
        /// Last second, since 1970; without it until it is taken away.
        #[serde(default, deserialize_with = "whole::optional")]
        #[schema(minimum = 0, maximum = 253402300799_u64)]
        until_s: Option<u64>,
        /// For this purpose alone.
        #[serde(default)]
        purpose: Option<Purpose>,
        /// keccak-256 of the grantee's OpenPGP key, if not the one of its request or the one that it announced.
        #[serde(default)]
        #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
        encryption_key: Option<String>,
        /// Commitment to what is said in words: keccak-256 of a random salt and the text.
        #[serde(default)]
        #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
        notes: Option<String>,
    },
    /// Refuse what a grantee asked for.
    Deny {
        /// The grantee's account.
        #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
        grantee: String,
        /// Why.
        #[serde(default)]
        reason: Option<Reason>,
        /// Commitment to what is said in words.
        #[serde(default)]
        #[schema(pattern = "^0x[0-9a-fA-F]{64}$")]
        notes: Option<String>,
    },
    /// Take a grantee's access away.
    Revoke {
        /// The grantee's account.
        #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
        grantee: String,
    },
    /// Hand the study to another key.
    Transfer {
        /// The new owner's account.
        #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
        owner: String,
    },
}

impl From<Decision> for decide::Decision {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Allow { grantee, mode, series, from_s, until_s, purpose, encryption_key, notes } => Self::Allow {
                grantee,
                preview_only: mode == Mode::Preview,
                series,
                from_s,
                until_s,
                purpose: purpose.map(Purpose::word),
                encryption_key,
                notes,
            },
            Decision::Deny { grantee, reason, notes } => {
                Self::Deny { grantee, reason: reason.map(Reason::word), notes }
            }
            Decision::Revoke { grantee } => Self::Revoke { grantee },
            Decision::Transfer { owner } => Self::Transfer { owner },
        }
    }
}

/// What was sent to the ledger and what it has come to.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sent {
    /// `allowed`, `denied`, `revoked`, `transferred`, `requested` or `glass broken`.
    action: String,
    /// The study on the ledger.
    study_id: Option<String>,
    /// The grantee, if it is about one.
    account: Option<String>,
    /// The study's state towards the grantee now.
    state: Option<String>,
    /// Hash of the transaction.
    transaction: String,
    /// Height of its block.
    block: u64,
    /// Gas used; this site paid.
    gas: u64,
}

impl From<Done> for Sent {
    fn from(done: Done) -> Self {
        let Done { action, study_id, account, state, transaction, block, gas } = done;
        Self { action, study_id, account, state, transaction, block, gas }
    }
}

/// An action that waits for its owner's signature.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Unsigned {
    /// To be sent back with the signature in `signature`.
    pub(super) action: decide::Pending,
    /// What the owner signs: the second parameter of `eth_signTypedData_v4`.
    #[schema(value_type = Object)]
    pub(super) typed_data: TypedData,
    /// The digest of the same, for keys that sign digests.
    pub(super) digest: String,
    /// The account that must sign.
    pub(super) signer: String,
    /// What it says, for the person who signs.
    pub(super) words: String,
}

/// Takes a study over with a code that the site printed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    /// The code; gaps and small letters do not matter.
    #[schema(min_length = 25, max_length = 64, pattern = "^[0-9A-Za-z -]+$")]
    pub(super) code: String,
    /// The account of the patient's own key.
    #[schema(pattern = "^0x[0-9a-fA-F]{40}$")]
    pub(super) owner: String,
    /// That key's signature (EIP-191, `personal_sign`) over the text `PACS Bridge: take over with ` and the code's 25 characters in
    /// capital letters, without gaps: it shows that somebody has the key.
    #[schema(pattern = "^0x[0-9a-fA-F]{130}$")]
    pub(super) signature: String,
}

/// A study was taken over.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Claimed {
    /// What was sent to the ledger.
    pub(super) sent: Sent,
    /// The study's name on the ledger.
    pub(super) study_id: String,
    /// A bearer token for the new owner; shown once.
    pub(super) token: String,
    /// When it ends, seconds since 1970.
    pub(super) token_expires_s: u64,
}

/// A source of the consortium.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Source {
    /// Its identity.
    source: String,
    /// `admitted`, `active` or `suspended`.
    state: String,
    /// Where it answers.
    endpoint: String,
    /// SHA-256 of its TLS key, if stated.
    tls_key: Option<String>,
    /// keccak-256 of its OpenPGP key, if stated.
    encryption_key: Option<String>,
}

impl From<SourceRow> for Source {
    fn from(row: SourceRow) -> Self {
        let SourceRow { source, state, endpoint, tls_key, encryption_key } = row;
        Self { source, state, endpoint, tls_key, encryption_key }
    }
}

/// A page of sources.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sources {
    /// In the order of their accounts.
    pub(super) sources: Vec<Source>,
    /// `after` of the next page; null: this was the last.
    pub(super) next: Option<String>,
}

/// The state of the site.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// Studies here.
    pub(super) studies: u64,
    /// Objects of them.
    pub(super) instances: u64,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// Bytes of files here.
    pub(super) local_bytes: u64,
    /// Account of this site.
    pub(super) source: String,
    /// The ledger; null while none is connected.
    pub(super) ledger: Option<LedgerStatus>,
    /// What is on its way to the ledger.
    pub(super) backlog: Backlog,
    /// Height of the newest block whose events are known here.
    pub(super) followed: Option<u64>,
    /// Whether that was all there is within the last minute.
    pub(super) current: bool,
}

/// The state of the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LedgerStatus {
    /// `embedded` or `network`.
    pub(super) kind: String,
    /// EIP-155 chain id.
    pub(super) chain_id: u64,
    /// Height of the newest block.
    pub(super) head: Option<u64>,
    /// Its age in seconds.
    pub(super) head_age_s: Option<u64>,
    /// Transactions that are not final.
    pub(super) pending: usize,
    /// What is wrong, if anything.
    pub(super) trouble: Option<String>,
}

/// What is on its way to the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Backlog {
    /// Studies that wait or are on their way.
    pub(super) studies: usize,
    /// Pieces of studies that are on their way and were not seen on the ledger.
    pub(super) pieces: u64,
    /// Transactions on their way.
    pub(super) transactions: usize,
}

/// Whether the site lives, or is ready.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, or `waiting`.
    pub(super) status: String,
    /// What it waits for: `ledger`, `events`.
    pub(super) waits_for: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use contracts::messages::{DenyReason, EmergencyReason, Purpose as PurposeCode};

    #[test]
    fn the_words_are_those_of_the_contracts() {
        let codes = |all: Vec<&'static str>| all;
        assert_eq!(Purpose::ALL, codes(PurposeCode::ALL.iter().map(|code| code.code()).collect()));
        assert_eq!(Reason::ALL, codes(DenyReason::ALL.iter().map(|code| code.code()).collect()));
        assert_eq!(Emergency::ALL, codes(EmergencyReason::ALL.iter().map(|code| code.code()).collect()));
        for right in Right::ALL {
            assert_eq!(serde_json::to_value(RightWord::from(right)).unwrap(), right.name());
        }
    }

    #[test]
    fn a_decision_has_no_fields_but_its_own() {
        let read = |text: &str| serde_json::from_str::<Decide>(text);
        let grantee = "\"grantee\":\"0x2222222222222222222222222222222222222222\"";
        assert!(read(&format!("{{\"study\":\"1.2\",\"decision\":{{\"kind\":\"revoke\",{grantee}}}}}")).is_ok());
        for wrong in [
            format!("{{\"study\":\"1.2\",\"decision\":{{\"kind\":\"revoke\",{grantee},\"mode\":\"full\"}}}}"),
            format!("{{\"study\":\"1.2\",\"x\":1,\"decision\":{{\"kind\":\"revoke\",{grantee}}}}}"),
            format!("{{\"study\":\"1.2\",\"decision\":{{\"kind\":\"tombstone\",{grantee}}}}}"),
            "{\"study\":\"1.2\",\"decision\":{\"kind\":\"revoke\"}}".to_owned(),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
