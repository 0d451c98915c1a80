//! Chain events turned into local state: which study is whose, who may see it, who the sources are, and which P-256 keys sign for whom.
//!
//! [`Consents`] keeps every canonical event of the Registry, Consent and KeyBindings contracts in a database of its own and derives all else from
//! them: a grant is what folding a study's events gives. A block that leaves the chain takes its events along, and what was
//! derived from them is derived again; so the state is that of one branch at any time, whatever was followed before. Every
//! change is one transaction with the cursor, so it can be stopped anywhere and takes the same block twice without harm.
//!
//! What counts is final. Of blocks that may be replaced yet it is known beside that what they say ([`Ahead`]): who is let in now is judged by both
//! ([`Consents::in_effect`]), and nothing else is.
//!
//! [`follow`] moves along the chain. Must not know DICOM, keys or the archive; a study is 32 bytes here.

pub mod binding;
mod event;
mod fold;
mod store;
mod task;

pub use crate::ledger::node::Logged;
pub use event::{Event, Mode, What};
pub use store::{Ahead, CURRENT_S_MAX, Consents};
pub use task::{FollowConfig, follow};

use alloy::primitives::{Address, B256, Bytes};

/// Why the state cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The database failed.
    #[error("the database of consents")]
    Database(#[from] rusqlite::Error),
    /// It was written by another version.
    #[error("the database of consents has format {0}, this program knows 3")]
    Version(i64),
    /// The block given does not follow the newest one: rewind first.
    #[error("block {given} does not follow block {cursor}")]
    Gap {
        /// Height of the newest block applied.
        cursor: u64,
        /// Height of the block given.
        given: u64,
    },
}

/// Which ledger is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Hash of block 0.
    pub genesis: B256,
    /// The contract of sources and studies, from whose address all others follow.
    pub registry: Address,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract of key bindings: what proves a binding names it.
    pub key_bindings: Address,
}

/// A P-256 key that an account bound to itself, with a proof that the key's holder agrees. Whether it holds depends on the time and on older
/// bindings of the same key: [`Consents::account_of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBinding {
    /// For whom it signs.
    pub account: Address,
    /// SHA-256 of its SubjectPublicKeyInfo ([`binding::key_of`]).
    pub key: B256,
    /// Last second, since 1970.
    pub not_after: u64,
    /// Height of the block in which the account said so.
    pub block: u64,
    /// Position among all events of the block.
    pub log_index: u64,
}

/// A block as far as following it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    /// Hash of its header.
    pub hash: B256,
    /// Hash of the block before.
    pub parent: B256,
}

/// What the owner said last about access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nothing: the grantee broke the glass, or only asked.
    Unsaid,
    /// Allowed.
    Allowed,
    /// Taken away.
    Revoked,
}

/// What became of the newest request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asked {
    /// There was none, or it was overtaken.
    Nothing,
    /// It waits for the owner.
    Open,
    /// The owner allowed something.
    Accepted,
    /// The owner denied it.
    Denied,
}

/// What somebody may see, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// How much.
    pub mode: Mode,
    /// Zero: of the whole study; else of the series with this salted hash.
    pub series: B256,
}

/// What is recorded about a study and a grantee, with what the study's other events say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The study.
    pub study_id: B256,
    /// Who may see it, perhaps.
    pub grantee: Address,
    /// The study's owner today.
    pub owner: Address,
    /// The study's source.
    pub source: Address,
    /// What the grantee may see while the grant holds.
    pub mode: Mode,
    /// Zero: the whole study; else the salted hash of a series.
    pub series: B256,
    /// First second of the grant, since 1970.
    pub not_before: u64,
    /// Last second of the grant, since 1970.
    pub not_after: u64,
    /// Number of a purpose; 0 is any ([`contracts::messages::Purpose`]).
    pub purpose: u16,
    /// keccak-256 of the OpenPGP key that the owner signed for.
    pub encryption_key: B256,
    /// Newest number used by the owner towards this grantee.
    pub seq: u32,
    /// The owner's last word.
    pub decision: Decision,
    /// The newest request.
    pub asked: Asked,
    /// Reason of the last denial, 0 if none.
    pub deny_reason: u16,
    /// Last second of the newest emergency, 0 if there was none.
    pub emergency_until: u64,
    /// The owner wants the study served no more.
    pub tombstoned: bool,
    /// The consortium suspended the grantee.
    pub suspended: bool,
    /// Newest manifest version, 0 before the first.
    pub version: u32,
    /// Its image id.
    pub manifest_image: B256,
    /// Its Merkle root.
    pub manifest_root: B256,
}

impl Grant {
    /// What the grantee may see at a time, in seconds since 1970, of the granted series and for the granted purpose: the rule of
    /// `Consent.isAllowed`. `None` when nothing. An emergency opens the whole study.
    #[must_use]
    pub fn mode_at(&self, now_s: u64) -> Option<Mode> {
        self.mode_for(now_s, self.series, self.purpose)
    }

    /// As [`Grant::mode_at`], for a series (zero: the whole study) and a purpose, as `Consent.isAllowed` is asked.
    #[must_use]
    pub fn mode_for(&self, now_s: u64, series: B256, purpose: u16) -> Option<Mode> {
        if self.tombstoned || self.suspended {
            return None;
        }
        let fits = (self.series.is_zero() || self.series == series) && (self.purpose == 0 || self.purpose == purpose);
        let granted = (fits && self.in_force(now_s)).then_some(self.mode);
        // An emergency adds what the grant leaves out.
        if self.emergency_at(now_s) { Some(Mode::Full) } else { granted }
    }

    /// What the grantee may see at a time, in seconds since 1970, and of what; `None` when nothing.
    #[must_use]
    pub fn scope_at(&self, now_s: u64) -> Option<Scope> {
        let mode = self.mode_at(now_s)?;
        // An emergency opens the whole study, also to whom a series was granted.
        let series = if self.emergency_at(now_s) { B256::ZERO } else { self.series };
        Some(Scope { mode, series })
    }

    /// Whether an emergency of the grantee lasts.
    #[must_use]
    pub fn emergency_at(&self, now_s: u64) -> bool {
        !self.tombstoned && !self.suspended && self.emergency_until != 0 && now_s <= self.emergency_until
    }

    /// When what may be seen now will change by itself, seconds since 1970: the first second of the next state.
    #[must_use]
    pub fn next_change(&self, now_s: u64) -> Option<u64> {
        let after = |last: u64| last.checked_add(1);
        let allowed = self.decision == Decision::Allowed;
        let marks = [
            allowed.then_some(self.not_before),
            after(self.not_after).filter(|_| allowed),
            after(self.emergency_until),
        ];
        marks.into_iter().flatten().filter(|mark| *mark > now_s).min()
    }

    fn in_force(&self, now_s: u64) -> bool {
        self.decision == Decision::Allowed && (self.not_before..=self.not_after).contains(&now_s)
    }

    /// The state in the words of the PCIM paper, as `Consent.trace`.
    #[must_use]
    pub fn trace_at(&self, now_s: u64) -> Trace {
        if self.seq == 0 && self.asked == Asked::Nothing {
            return Trace::NotAuthorised;
        }
        match self.asked {
            _ if self.tombstoned => Trace::Removed,
            _ if self.in_force(now_s) => Trace::Authorised,
            _ if self.decision == Decision::Allowed && now_s < self.not_before => Trace::Accepted,
            Asked::Open => Trace::Requested,
            Asked::Denied => Trace::Denied,
            _ if self.decision == Decision::Revoked => Trace::Removed,
            _ => Trace::NotAuthorised,
        }
    }
}

/// The state of a study towards a grantee, in the words of the PCIM paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trace {
    /// Nothing was asked or granted, or what was granted is over.
    NotAuthorised,
    /// A request waits for the owner.
    Requested,
    /// The newest request was denied.
    Denied,
    /// Access was granted and has not begun.
    Accepted,
    /// Access is granted now.
    Authorised,
    /// Access was taken away, or the study was.
    Removed,
}

impl Trace {
    /// The paper's words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::NotAuthorised => "not authorised",
            Self::Requested => "requested",
            Self::Denied => "denied",
            Self::Accepted => "accepted",
            Self::Authorised => "authorised",
            Self::Removed => "removed",
        }
    }

    /// The contract's number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::NotAuthorised => 0,
            Self::Requested => 1,
            Self::Denied => 2,
            Self::Accepted => 3,
            Self::Authorised => 4,
            Self::Removed => 5,
        }
    }
}

/// A study as its events have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StudyInfo {
    /// The study.
    pub study_id: B256,
    /// Its owner today.
    pub owner: Address,
    /// Its source.
    pub source: Address,
    /// Whether the source holds the owner's key for the patient.
    pub custodial: bool,
    /// Newest number about the study itself that an event names. A veto's is in none: ask the contract which one comes next.
    pub seq: u32,
    /// Newest manifest version, 0 before the first.
    pub version: u32,
    /// Its image id.
    pub manifest_image: B256,
    /// Its Merkle root.
    pub manifest_root: B256,
    /// The owner wants it served no more.
    pub tombstoned: bool,
}

/// A source as its events have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInfo {
    /// Its identity.
    pub identity: Address,
    /// The URL at which it answers; empty before it defined itself.
    pub endpoint: String,
    /// SHA-256 of the SubjectPublicKeyInfo of its TLS key; zeros if none was stated.
    pub tls_key: [u8; 32],
    /// keccak-256 of its OpenPGP key; zero if none was stated.
    pub encryption_key: B256,
    /// The OpenPGP key itself; empty if none was stated.
    pub openpgp_key: Bytes,
    /// Whether it defined itself.
    pub defined: bool,
    /// Whether the consortium suspended it.
    pub suspended: bool,
    /// Admitted, defined and not suspended.
    pub active: bool,
}

/// A question for the keys of a study that waits for its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The study.
    pub study_id: B256,
    /// Who asks.
    pub grantee: Address,
    /// The OpenPGP key that the answer must need besides the one of the grant.
    pub one_time_key: Bytes,
}

impl Question {
    /// The keccak-256 of its key, by which the answer names it.
    #[must_use]
    pub fn key_hash(&self) -> B256 {
        alloy::primitives::keccak256(&self.one_time_key)
    }
}

/// The answer to a question for keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The keccak-256 of the question's key.
    pub one_time_key: B256,
    /// Last second, since 1970, at which it should be opened.
    pub until: u64,
    /// What opens with both keys.
    pub bytes: Bytes,
}

/// A request that waits, or waited, for the owner: the newest of a grantee for a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRequest {
    /// The study.
    pub study_id: B256,
    /// Who asks.
    pub grantee: Address,
    /// How many requests of this grantee for this study there were.
    pub number: u32,
    /// What is asked for.
    pub mode: Mode,
    /// Number of a purpose.
    pub purpose: u16,
    /// Commitment to what was said in words.
    pub notes: B256,
    /// The OpenPGP key to encrypt to.
    pub encryption_key: Bytes,
    /// What became of it.
    pub asked: Asked,
    /// Height of its block.
    pub block: u64,
    /// Whether the grantee is an active source of the consortium; requests of strangers are shown apart.
    pub known: bool,
}
