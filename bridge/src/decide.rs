//! What patients, grantees and the consortium do about consent, as the commands do it: decisions made, signed here with a key in
//! custody or elsewhere with the patient's own, sent, and shown.
//!
//! An owner's decision leaves this machine as a [`Pending`] action: a small file that says everything that is signed and nothing
//! that identifies a patient. Must not know the command line or the control socket.

mod emergency;
mod guardians;
mod keys;
pub mod note;
mod numbers;
mod pending;
mod shown;
mod trail;
mod typed;

pub use emergency::{EmergencyError, EmergencyPaper};
pub use guardians::{GuardianError, GuardianPaper, Recovery};
pub use keys::{KeyChallenge, KeyError, KeyPaper, KeyRow, KeyWish, end as key_end};
pub(crate) use numbers::whole;
pub use pending::{Action, Pending, PendingError};
pub use shown::{
    Done, HandOver, RequestRow, SourceRow, TraceReport, TraceRow, TraceState, moment, parse_moment, parse_span,
};
pub(crate) use shown::{purpose as purpose_word, state as grant_state};
pub use typed::{TypedData, TypedDomain, TypedField};

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::SignerSync as _;
use contracts::messages::{self, Purpose};
use contracts::{Emergency, Grant};
use dicom_scp::Uid;
use serde::{Deserialize, Serialize};

use crate::archive::ArchiveError;
use crate::audit::Party;
use crate::derive::DeriveError;
use crate::follow::{Asked, FollowError, Mode, StudyInfo, What};
use crate::keyring::KeyringError;
use crate::ledger::consent::{Sent, Wish};
use crate::ledger::node::Node as _;
use crate::ledger::operators::Acceptance;
use crate::ledger::{Ledger, LedgerError, LedgerKind};
use crate::site::Site;

/// How long a signature of a key in custody is good.
const CUSTODY_S: u64 = 3600;
/// How long a signature made elsewhere is good, unless stated.
const PENDING_S: u64 = 7 * 24 * 3600;
/// What a new source gets on an embedded ledger, where wei have no price.
const EMBEDDED_GIFT_WEI: u128 = 1_000_000_000_000_000_000_000_000_000_000;
/// How long a decision about a study that was received waits, after the study's quiet time, until its definition is on its way.
const DEFINED_WITHIN: Duration = Duration::from_secs(10);
/// Longest quiet time that is waited for.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// How long a command waits until what it sent shows in the followed state.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// Why something was not done, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The asker: this is no study.
    #[error("\"{0}\" is neither a study known here nor a study id on the ledger (0x and 64 hexadecimal digits)")]
    Study(String),
    /// The asker: later.
    #[error(
        "study {0} was received and is not on its way to the ledger yet; `pacs-bridge study show` tells how far it is"
    )]
    NotYet(String),
    /// The asker: this is no account.
    #[error("\"{0}\" is not an account (0x and 40 hexadecimal digits)")]
    Account(String),
    /// The asker: the word is not in the table.
    #[error("\"{given}\" is not one of {known}")]
    Word {
        /// What was given.
        given: String,
        /// What may be given.
        known: String,
    },
    /// The asker: something is missing or impossible.
    #[error("{0}")]
    Asker(String),
    /// The study's owner: only that key can say it.
    #[error(
        "study {study} belongs to {owner}, whose key is not here: make a file with --unsigned, sign it with that key, and submit it"
    )]
    OwnersKey {
        /// The study.
        study: B256,
        /// Its owner.
        owner: Address,
    },
    /// The pending action is not fit to be sent.
    #[error("the action")]
    Pending(#[from] PendingError),
    /// The file about guardians is not fit for what is wanted.
    #[error("the file")]
    Guardians(#[from] GuardianError),
    /// The file about an emergency is not fit for what is wanted.
    #[error("the request")]
    Emergency(#[from] EmergencyError),
    /// The key, or the file about it, is not fit to be bound.
    #[error("the key")]
    Key(#[from] KeyError),
    /// The operator: no ledger is connected.
    #[error("the ledger is away")]
    Away,
    /// The ledger did not do it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The database of consents failed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The record of derived studies failed.
    #[error("the record of derived studies")]
    Derived(#[from] DeriveError),
    /// Signing failed.
    #[error("signing")]
    Signing(#[from] alloy::signers::Error),
}

/// What an owner decides, before numbers and keys are filled in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Let a grantee see the study.
    Allow {
        /// Who.
        grantee: String,
        /// Previews only.
        preview_only: bool,
        /// SeriesInstanceUID, or the salted hash of one; none for the whole study.
        series: Option<String>,
        /// First second, since 1970.
        from_s: Option<u64>,
        /// Last second, since 1970.
        until_s: Option<u64>,
        /// A word of [`Purpose`].
        purpose: Option<String>,
        /// keccak-256 of the grantee's OpenPGP key, if it is not to be taken from its request or its announcement.
        encryption_key: Option<String>,
        /// Commitment to what is said in words ([`note::Note::commitment`]).
        notes: Option<String>,
    },
    /// Refuse what a grantee asked for.
    Deny {
        /// Who.
        grantee: String,
        /// A word of [`messages::DenyReason`].
        reason: Option<String>,
        /// Commitment to what is said in words.
        notes: Option<String>,
    },
    /// Take access away.
    Revoke {
        /// Who.
        grantee: String,
    },
    /// Hand the study to another key.
    Transfer {
        /// The new owner.
        owner: String,
    },
    /// End the study. Its source says so itself only when it erases the study.
    Tombstone,
    /// Name who may recover the study, instead of those named before.
    NameGuardians {
        /// [`GuardianPaper::commitment`]; nobody when there is none.
        commitment: Option<B256>,
    },
    /// Object to a recovery that guardians proposed.
    VetoRecovery,
}

/// What can be asked about consent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Requests that wait, or all.
    Requests {
        /// Answered ones too.
        all: bool,
    },
    /// Ask for access for this source.
    Request {
        /// The study's id on the ledger.
        study: String,
        /// Previews only.
        preview_only: bool,
        /// A word of [`Purpose`].
        purpose: Option<String>,
        /// Commitment to what is said in words.
        notes: Option<String>,
    },
    /// Decide as the owner with the key in custody.
    Decide {
        /// The study.
        study: String,
        /// What.
        decision: Decision,
    },
    /// Make a pending action for the owner's own key.
    Unsigned {
        /// The study.
        study: String,
        /// What.
        decision: Decision,
    },
    /// Send a signed action.
    Submit {
        /// The action.
        action: Box<Pending>,
    },
    /// What was said about a study.
    Trace {
        /// The study.
        study: String,
        /// To or about this grantee alone.
        grantee: Option<String>,
    },
    /// Let this source in for an emergency.
    BreakGlass {
        /// The study's id on the ledger.
        study: String,
        /// A word of [`EmergencyReason`].
        reason: String,
        /// Seconds until it ends.
        seconds: u64,
    },
    /// The sources of the consortium.
    Sources,
    /// Admit a source.
    Admit {
        /// Its identity.
        source: String,
    },
    /// Suspend a source.
    Suspend {
        /// Its identity.
        source: String,
    },
    /// Lift a suspension.
    Reinstate {
        /// Its identity.
        source: String,
    },
    /// What the new owner of a study needs to know.
    HandOver {
        /// The study.
        study: String,
    },
    /// Make the file that owner and guardians keep; nothing is sent.
    Guardians {
        /// The study.
        study: String,
        /// Accounts.
        guardians: Vec<String>,
        /// So many must agree.
        need: u8,
        /// So many seconds the owner has to object.
        delay_s: u32,
    },
    /// Make the file that guardians sign for a new owner; nothing is sent.
    Recovery {
        /// What the owner gave them.
        guardians: GuardianPaper,
        /// The new owner.
        owner: String,
        /// Seconds until it cannot be sent any more.
        good_s: u64,
    },
    /// Propose a new owner on the word of guardians.
    ProposeRecovery {
        /// What they signed.
        recovery: Box<Recovery>,
    },
    /// Complete a recovery to which the owner did not object in time.
    CompleteRecovery {
        /// The study.
        study: String,
    },
    /// Make the file that a second operator approves before the glass is broken; nothing is sent.
    Emergency {
        /// The study's id on the ledger.
        study: String,
        /// A word of [`messages::EmergencyReason`].
        reason: String,
        /// Seconds until it ends.
        seconds: u64,
    },
    /// Break the glass as a second operator approved.
    ApprovedEmergency {
        /// What was approved.
        emergency: EmergencyPaper,
    },
    /// Say on the ledger whether one operator alone may break the glass.
    EmergencyApproval {
        /// Two must agree.
        required: bool,
    },
    /// Let another account act for this source, once it accepts.
    OfferOperator {
        /// The account.
        operator: String,
    },
    /// Send what that account signed.
    AcceptOperator {
        /// The offer, signed.
        acceptance: Acceptance,
    },
    /// An account acts for this source no longer.
    DismissOperator {
        /// The account.
        operator: String,
    },
    /// What the holder of a P-256 key must sign to have it bound; nothing is sent.
    KeyChallenge {
        /// To whom; this site's account by default.
        account: Option<String>,
        /// The key's SubjectPublicKeyInfo.
        spki: Bytes,
    },
    /// Bind a P-256 key to this site's account, or unbind it.
    Key {
        /// What.
        wish: KeyWish,
    },
    /// Make the file about a key that another account signs; nothing is sent.
    KeyPaper {
        /// The account.
        account: String,
        /// What.
        wish: KeyWish,
    },
    /// Send what another account signed about a key.
    SubmitKey {
        /// The file.
        paper: Box<KeyPaper>,
    },
    /// The keys that an account bound.
    Keys {
        /// This site's account by default.
        account: Option<String>,
    },
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// To [`Ask::Requests`].
    Requests(Vec<RequestRow>),
    /// To everything that sent something.
    Done(Done),
    /// To [`Ask::Unsigned`].
    Unsigned(Box<Pending>),
    /// To [`Ask::Trace`].
    Trace(Box<TraceReport>),
    /// To [`Ask::Sources`].
    Sources(Vec<SourceRow>),
    /// To [`Ask::HandOver`].
    HandOver(HandOver),
    /// To [`Ask::Guardians`].
    Guardians(GuardianPaper),
    /// To [`Ask::Recovery`].
    Recovery(Box<Recovery>),
    /// To [`Ask::Emergency`].
    Emergency(EmergencyPaper),
    /// To [`Ask::OfferOperator`].
    Offer(Acceptance),
    /// To [`Ask::KeyChallenge`].
    KeyChallenge(KeyChallenge),
    /// To [`Ask::KeyPaper`].
    KeyPaper(Box<KeyPaper>),
    /// To [`Ask::Keys`].
    Keys(Vec<KeyRow>),
}

/// Answers, and records who asked for what and what came of it.
///
/// # Errors
/// [`DecideError`], whose text is for the asker.
pub async fn answer(site: &Site, ask: Ask, by: &Party) -> Result<Told, DecideError> {
    let command = trail::Command::of(&ask);
    let told = carry_out(site, ask).await;
    if let Some(command) = command {
        // What was decided is decided: access must be taken away also while the log cannot be written, which its writer reports.
        let _ = site.audit().durable(vec![command.came_to(by, &told)]).await;
    }
    told
}

async fn carry_out(site: &Site, ask: Ask) -> Result<Told, DecideError> {
    let desk = Desk { site };
    match ask {
        Ask::Requests { all } => desk.requests(all).map(Told::Requests),
        Ask::Sources => desk.sources().map(Told::Sources),
        Ask::Trace { study, grantee } => desk.trace(&study, grantee.as_deref()).await.map(|t| Told::Trace(Box::new(t))),
        Ask::HandOver { study } => desk.hand_over(&study).map(Told::HandOver),
        Ask::Request { study, preview_only, purpose, notes } => {
            desk.request(&study, preview_only, purpose, notes).await.map(Told::Done)
        }
        Ask::Decide { study, decision } => desk.decide(&study, decision).await.map(Told::Done),
        Ask::Unsigned { study, decision } => {
            desk.pending(&study, decision, PENDING_S).await.map(|pending| Told::Unsigned(Box::new(pending)))
        }
        Ask::Submit { action } => desk.submit(*action).await.map(Told::Done),
        Ask::BreakGlass { study, reason, seconds } => desk.break_glass(&study, &reason, seconds).await.map(Told::Done),
        Ask::Admit { source } => desk.admit(&source).await.map(Told::Done),
        Ask::Suspend { source } => desk.suspend(&source, true).await.map(Told::Done),
        Ask::Reinstate { source } => desk.suspend(&source, false).await.map(Told::Done),
        Ask::Guardians { study, guardians, need, delay_s } => {
            desk.guardians(&study, &guardians, need, delay_s).map(Told::Guardians)
        }
        Ask::Recovery { guardians, owner, good_s } => {
            desk.recovery(guardians, &owner, good_s).await.map(|made| Told::Recovery(Box::new(made)))
        }
        Ask::ProposeRecovery { recovery } => desk.propose_recovery(&recovery).await.map(Told::Done),
        Ask::CompleteRecovery { study } => desk.complete_recovery(&study).await.map(Told::Done),
        Ask::Emergency { study, reason, seconds } => {
            desk.emergency(&study, &reason, seconds).await.map(Told::Emergency)
        }
        Ask::ApprovedEmergency { emergency } => desk.approved_emergency(&emergency).await.map(Told::Done),
        Ask::EmergencyApproval { required } => desk.emergency_approval(required).await.map(Told::Done),
        Ask::OfferOperator { operator } => desk.offer_operator(&operator).await.map(Told::Offer),
        Ask::AcceptOperator { acceptance } => desk.accept_operator(&acceptance).await.map(Told::Done),
        Ask::DismissOperator { operator } => desk.dismiss_operator(&operator).await.map(Told::Done),
        Ask::KeyChallenge { account, spki } => desk.key_challenge(account.as_deref(), &spki).map(Told::KeyChallenge),
        Ask::Key { wish } => desk.say_of_key(wish).await.map(Told::Done),
        Ask::KeyPaper { account, wish } => {
            desk.key_paper(Some(&account), wish).await.map(|paper| Told::KeyPaper(Box::new(paper)))
        }
        Ask::SubmitKey { paper } => desk.submit_key(&paper).await.map(Told::Done),
        Ask::Keys { account } => desk.keys_of(account.as_deref()).map(Told::Keys),
    }
}

/// Says whether a signed action is the word of the owner of a study that is shown here, by what is known here, before the ledger
/// is asked anything.
///
/// # Errors
/// [`DecideError::Pending`] or [`DecideError::Study`] when it is not.
pub fn check_signed(site: &Site, action: &Pending) -> Result<(), DecideError> {
    let ledger = site.parts().ledger.get().ok_or(DecideError::Away)?;
    let contract = action.action.word().contract(ledger.addresses());
    action.checked_signature(ledger.chain_id(), contract)?;
    let study = action.study();
    let unknown = || DecideError::Study(study.to_string());
    let known = site.consents().study(study)?.ok_or_else(unknown)?;
    if known.owner != action.signer {
        return Err(PendingError::Signature { needed: known.owner, found: Some(action.signer) }.into());
    }
    site.archive().names_of_id(&study)?.map(drop).ok_or_else(unknown)
}

/// What commits to a note; zero when nothing is said.
fn commitment(given: Option<String>) -> Result<B256, DecideError> {
    let Some(given) = given else { return Ok(B256::ZERO) };
    given.parse().map_err(|_| DecideError::Asker(format!("\"{given}\" is no commitment to a note: 0x and 64 digits")))
}

/// The site, for one command.
struct Desk<'a> {
    site: &'a Site,
}

impl Desk<'_> {
    fn ledger(&self) -> Result<&Ledger, DecideError> {
        self.site.parts().ledger.get().ok_or(DecideError::Away)
    }

    /// A study's id on the ledger, from that or from a StudyInstanceUID known here.
    fn study_id(&self, given: &str) -> Result<B256, DecideError> {
        if let Ok(id) = given.parse::<B256>() {
            return Ok(id);
        }
        let unknown = || DecideError::Study(given.to_owned());
        let uid = Uid::new(given).map_err(|_| unknown())?;
        let publication = self.site.archive().publication(&uid)?;
        Ok(publication.ok_or_else(unknown)?.study_id)
    }

    /// The StudyInstanceUID of a study that this site has.
    fn uid_of(&self, study: B256) -> Result<Option<String>, DecideError> {
        Ok(self.site.archive().names_of_id(&study)?.map(|known| known.uid.to_string()))
    }

    fn study(&self, given: &str) -> Result<StudyInfo, DecideError> {
        let id = self.study_id(given)?;
        self.site.consents().study(id)?.ok_or_else(|| DecideError::Study(given.to_owned()))
    }

    /// A study and its owner: as followed, or as this site is defining the study at this moment. What was just received is waited for.
    async fn owned(&self, given: &str) -> Result<(B256, Address), DecideError> {
        let ledger = self.ledger()?;
        let (mut followed, mut defining) = (self.site.consents().changed(), ledger.on_their_way());
        let quiet = self.site.archive().settle().min(QUIET_MAX);
        let until = tokio::time::Instant::now() + quiet + DEFINED_WITHIN;
        loop {
            followed.borrow_and_update();
            let on_their_way = defining.borrow_and_update().clone();
            match self.study(given) {
                Ok(known) => return Ok((known.study_id, known.owner)),
                Err(unknown @ DecideError::Study(_)) => {
                    let coming = self.study_id(given).ok().and_then(|id| on_their_way.get_key_value(&id));
                    if let Some((study, owner)) = coming {
                        return Ok((*study, *owner));
                    }
                    if !self.is_received(given)? {
                        return Err(unknown);
                    }
                    let news = async {
                        tokio::select! { _ = followed.changed() => {} _ = defining.changed() => {} }
                    };
                    let is_coming = self.site.parts().publishing;
                    if !is_coming || tokio::time::timeout_at(until, news).await.is_err() {
                        return Err(DecideError::NotYet(given.to_owned()));
                    }
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Whether this site received objects of a study with this UID.
    fn is_received(&self, given: &str) -> Result<bool, DecideError> {
        let Ok(uid) = Uid::new(given) else { return Ok(false) };
        Ok(!self.site.archive().received_instances_of(&uid)?.is_empty())
    }

    /// Fills in numbers, keys and deadline.
    async fn pending(&self, given: &str, decision: Decision, good_s: u64) -> Result<Pending, DecideError> {
        let ledger = self.ledger()?;
        let (study, owner) = self.owned(given).await?;
        let deadline = ledger.ledger_s().saturating_add(good_s);
        let next = |said: &Grant| said.seq.saturating_add(1);
        let action = match decision {
            Decision::Allow { grantee, preview_only, series, from_s, until_s, purpose, encryption_key, notes } => {
                let grantee = account(&grantee)?;
                let said = ledger.consent_of(study, grantee).await?;
                Action::Allow {
                    study,
                    grantee,
                    series: self.series(study, series)?,
                    mode: if preview_only { Mode::Preview } else { Mode::Full }.number(),
                    not_before: from_s.unwrap_or(0),
                    not_after: until_s.unwrap_or(u64::MAX),
                    purpose: purpose_number(purpose)?,
                    encryption_key: self.encryption_key(grantee, &said, encryption_key)?,
                    notes: commitment(notes)?,
                    seq: next(&said),
                    deadline,
                }
            }
            Decision::Deny { grantee, reason, notes } => {
                let grantee = account(&grantee)?;
                let seq = next(&ledger.consent_of(study, grantee).await?);
                Action::Deny { study, grantee, reason: deny_number(reason)?, notes: commitment(notes)?, seq, deadline }
            }
            Decision::Revoke { grantee } => {
                let grantee = account(&grantee)?;
                Action::Revoke { study, grantee, seq: next(&ledger.consent_of(study, grantee).await?), deadline }
            }
            Decision::Transfer { owner } => {
                let seq = ledger.next_study_seq(study).await?;
                Action::Transfer { study, new_owner: account(&owner)?, seq, deadline }
            }
            Decision::Tombstone => {
                let seq = ledger.next_study_seq(study).await?;
                Action::Tombstone { study, seq, deadline }
            }
            Decision::NameGuardians { commitment } => {
                let (seq, guardians) = (ledger.next_study_seq(study).await?, commitment.unwrap_or_default());
                Action::NameGuardians { study, guardians, seq, deadline }
            }
            Decision::VetoRecovery => {
                let seq = ledger.next_study_seq(study).await?;
                Action::VetoRecovery { study, seq, deadline }
            }
        };
        let contract = action.word().contract(ledger.addresses());
        Ok(Pending::new(ledger.chain_id(), contract, owner, action))
    }

    fn series(&self, study: B256, given: Option<String>) -> Result<B256, DecideError> {
        let Some(given) = given else { return Ok(B256::ZERO) };
        if let Ok(hash) = given.parse::<B256>() {
            return Ok(hash);
        }
        let no_salt = || DecideError::Asker("a series can be named by its UID only for studies of this site".into());
        let uid = Uid::new(&self.uid_of(study)?.ok_or_else(no_salt)?).map_err(|_| no_salt())?;
        let keys = self.site.parts().keyring.study(&uid)?.ok_or_else(no_salt)?;
        let series = Uid::new(&given).map_err(|_| DecideError::Asker(format!("\"{given}\" is not a UID")))?;
        Ok(messages::salted(B256::from(*keys.salt.as_bytes()), series.as_str().as_bytes()))
    }

    /// The key that a grant is for: as asked for, else as announced by the source.
    fn encryption_key(&self, grantee: Address, said: &Grant, given: Option<String>) -> Result<B256, DecideError> {
        if let Some(given) = given {
            let bad = || DecideError::Asker(format!("\"{given}\" is not a keccak-256 (0x and 64 hexadecimal digits)"));
            return given.parse().map_err(|_| bad());
        }
        if !said.requestedKey.is_zero() {
            return Ok(said.requestedKey);
        }
        let announced = self.site.consents().source(grantee)?.map(|source| source.encryption_key);
        announced.filter(|key| !key.is_zero()).ok_or_else(|| {
            DecideError::Asker(format!(
                "{grantee} has neither asked nor announced an OpenPGP key: let it ask first, or name the key with --encryption-key"
            ))
        })
    }

    async fn decide(&self, given: &str, decision: Decision) -> Result<Done, DecideError> {
        if matches!(decision, Decision::Tombstone) {
            return Err(DecideError::Asker("`pacs-bridge erase` ends a study".into()));
        }
        let mut pending = self.pending(given, decision, CUSTODY_S).await?;
        let elsewhere = DecideError::OwnersKey { study: pending.study(), owner: pending.signer };
        let Some(uid) = self.uid_of(pending.study())? else { return Err(elsewhere) };
        let uid = Uid::new(&uid).map_err(|_| DecideError::Study(uid.clone()))?;
        let Some(keys) = self.site.parts().keyring.study(&uid)? else { return Err(elsewhere) };
        let (keyring, signer) = (self.site.parts().keyring.clone(), pending.signer);
        // A key that nobody used since the start may take a second to open.
        let found = tokio::task::spawn_blocking(move || keyring.custody_key(keys.owner_index, signer)).await;
        let Some(key) = found.unwrap_or(Ok(None))? else { return Err(elsewhere) };
        pending.signature = Some(Bytes::copy_from_slice(&key.sign_hash_sync(&pending.digest())?.as_bytes()));
        self.submit(pending).await
    }

    async fn submit(&self, pending: Pending) -> Result<Done, DecideError> {
        let ledger = self.ledger()?;
        let word = pending.action.word();
        let signature = pending.checked_signature(ledger.chain_id(), word.contract(ledger.addresses()))?;
        let sent = ledger.say(&word, signature).await?;
        let grantee = pending.action.grantee();
        self.done(pending.action.verb(), Some(word.study()), grantee, sent).await
    }

    async fn request(
        &self,
        given: &str,
        preview_only: bool,
        purpose: Option<String>,
        notes: Option<String>,
    ) -> Result<Done, DecideError> {
        let (ledger, study) = (self.ledger()?, self.study_id(given)?);
        let wish = Wish {
            study,
            mode: if preview_only { Mode::Preview } else { Mode::Full }.number(),
            purpose: purpose_number(purpose)?,
            notes: commitment(notes)?,
            encryption_key: self.site.certificate_for(study)?.into(),
        };
        let sent = ledger.request_access(wish).await?;
        self.done("requested", Some(study), Some(ledger.source().await?), sent).await
    }

    async fn break_glass(&self, given: &str, reason: &str, seconds: u64) -> Result<Done, DecideError> {
        let (ledger, study) = (self.ledger()?, self.study_id(given)?);
        let reason = emergency::reason(reason)?;
        let now = ledger.now_s();
        let emergency = Emergency {
            studyId: study,
            reason: reason.into(),
            notes: B256::ZERO,
            until: now.saturating_add(seconds.min(messages::EMERGENCY_S_MAX)),
            approver: Address::ZERO,
            deadline: now.saturating_add(CUSTODY_S),
        };
        let sent = ledger.break_glass(emergency, Bytes::new()).await?;
        tracing::warn!("this source broke the glass; the study's owner sees it on the ledger");
        self.done("glass broken", Some(study), Some(ledger.source().await?), sent).await
    }

    async fn admit(&self, given: &str) -> Result<Done, DecideError> {
        let (ledger, source) = (self.ledger()?, account(given)?);
        let sent = ledger.admit(source).await?;
        if ledger.kind() == LedgerKind::Embedded {
            ledger.fund(source, U256::from(EMBEDDED_GIFT_WEI)).await?;
        }
        self.done("admitted", None, Some(source), sent).await
    }

    async fn suspend(&self, given: &str, suspend: bool) -> Result<Done, DecideError> {
        let (ledger, source) = (self.ledger()?, account(given)?);
        let (verb, sent) = if suspend {
            ("suspended", ledger.suspend(source).await?)
        } else {
            ("reinstated", ledger.reinstate(source).await?)
        };
        self.done(verb, None, Some(source), sent).await
    }

    /// Waits until what was sent shows in the followed state, and says what it has come to.
    async fn done(
        &self,
        verb: &str,
        study: Option<B256>,
        grantee: Option<Address>,
        sent: Sent,
    ) -> Result<Done, DecideError> {
        let mut followed = self.site.consents().followed();
        let seen = followed.wait_for(|at| at.is_some_and(|at| at >= sent.block));
        // Where no follower runs, as in a command without a daemon, the transaction is final all the same.
        let _ = tokio::time::timeout(SEEN_WITHIN, seen).await;
        let now = self.ledger()?.now_s();
        let grant = match (study, grantee) {
            (Some(study), Some(grantee)) => self.site.consents().grant(study, grantee)?,
            _ => None,
        };
        Ok(Done {
            action: verb.to_owned(),
            study_id: study.map(|id| id.to_string()),
            account: grantee.map(|account| account.to_string()),
            state: grant.map(|grant| shown::state(&grant, now).to_owned()),
            transaction: sent.transaction.to_string(),
            block: sent.block,
            gas: sent.gas,
        })
    }

    fn requests(&self, all: bool) -> Result<Vec<RequestRow>, DecideError> {
        let requests = self.site.consents().requests(None)?;
        let wanted = requests.into_iter().filter(|request| all || request.asked == Asked::Open);
        wanted.map(|request| Ok(RequestRow::of(&request, self.uid_of(request.study_id)?))).collect()
    }

    fn sources(&self) -> Result<Vec<SourceRow>, DecideError> {
        Ok(self.site.consents().sources()?.iter().map(SourceRow::of).collect())
    }

    fn hand_over(&self, given: &str) -> Result<HandOver, DecideError> {
        let (ledger, known) = (self.ledger()?, self.study(given)?);
        Ok(HandOver {
            format: shown::HAND_OVER.to_owned(),
            study_id: known.study_id.to_string(),
            study_uid: self.uid_of(known.study_id)?,
            chain_id: ledger.chain_id(),
            registry: ledger.addresses().studies.to_string(),
            consent: ledger.addresses().consent.to_string(),
            owner: known.owner.to_string(),
            custodial: known.custodial,
        })
    }

    /// The study that one was derived from, if the ledger commits to that lineage and this site can open it.
    fn parent_of(&self, study: &StudyInfo) -> Result<Option<String>, DecideError> {
        let Some(uid) = self.uid_of(study.study_id)?.and_then(|uid| Uid::new(&uid).ok()) else { return Ok(None) };
        let known = self.site.parts().deriver.derived().of_derived(&uid)?;
        let Some((known, lineage)) = known.and_then(|known| known.lineage().map(|lineage| (known, lineage))) else {
            return Ok(None);
        };
        let said = self
            .site
            .consents()
            .history(study.study_id)?
            .into_iter()
            .any(|event| matches!(event.what, What::Derived { from, .. } if from == lineage.commitment()));
        Ok(known.parent().filter(|_| said).map(ToString::to_string))
    }

    async fn trace(&self, given: &str, grantee: Option<&str>) -> Result<TraceReport, DecideError> {
        let ledger = self.ledger()?;
        let study = self.study(given)?;
        let grantee = grantee.map(account).transpose()?;
        let mut report = TraceReport::of(&study, self.uid_of(study.study_id)?);
        report.derived_from = self.parent_of(&study)?;
        let about = |about: Option<Address>| grantee.is_none() || about.is_none() || about == grantee;
        for event in self.site.consents().history(study.study_id)?.iter().filter(|e| about(e.what.grantee())) {
            let Some(mut row) = TraceRow::of(event) else { continue };
            let receipt = ledger.node().receipt(event.transaction).await.map_err(LedgerError::from)?;
            row.gas = receipt.map(|receipt| receipt.gas_used);
            let block = ledger.node().block(event.block_hash).await.map_err(LedgerError::from)?;
            row.time_s = block.map(|block| block.timestamp);
            report.history.push(row);
        }
        let now = ledger.now_s();
        let grants = self.site.consents().grants_of(study.study_id)?;
        report.add_states(grants.iter().filter(|grant| about(Some(grant.grantee))), grantee, now);
        Ok(report)
    }
}

fn account(given: &str) -> Result<Address, DecideError> {
    given.parse().map_err(|_| DecideError::Account(given.to_owned()))
}

fn purpose_number(given: Option<String>) -> Result<u16, DecideError> {
    let Some(given) = given else { return Ok(0) };
    let known = || Purpose::ALL.iter().map(|purpose| purpose.code()).collect::<Vec<_>>().join(", ");
    let found = Purpose::from_code(&given.to_uppercase());
    found.map(u16::from).ok_or_else(|| DecideError::Word { given, known: known() })
}

fn deny_number(given: Option<String>) -> Result<u16, DecideError> {
    let Some(given) = given else { return Ok(0) };
    let known = || messages::DenyReason::ALL.iter().map(|reason| reason.code()).collect::<Vec<_>>().join(", ");
    let found = messages::DenyReason::from_code(&given);
    found.map(u16::from).ok_or_else(|| DecideError::Word { given, known: known() })
}
