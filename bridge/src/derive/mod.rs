//! Derived studies: what was received here, de-identified by a rule into a study of its own, owned as the rule says and open to whom
//! the rule lets in.
//!
//! A study that is final on the ledger is looked at once for every version of it. All objects that a rule takes are de-identified
//! first and stored only when none was refused; the record ([`Derived`]) names them before the first is stored, keeps the study
//! from being published until the last is, and lets whatever was begun be gone on with after a crash. The archive takes them in
//! like any others, and the publisher brings them onto the ledger like any others.
//!
//! Letting in is for derived studies alone: it begins with a [`Derivation`], which only the record makes, and compares the study's
//! objects with those that were derived. The owner's word is said with its first number, which the ledger takes from an owner
//! who has said nothing to that grantee before.
//!
//! Must not know the command line, the control socket or wire protocols.

mod groups;
mod make;
mod rule;
mod store;

pub use rule::{Grantee, Rule};
pub use store::{Derivation, Derived, Lineage, MadeObjects, Owner};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use dicom_scp::Uid;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, Stored};
use crate::audit::{Audit, Event, Handling, Party};
use crate::config;
use crate::deidentify::FileError;
use crate::follow::{Consents, FollowError};
use crate::keyring::{Keyring, KeyringError};
use crate::ledger::{LedgerError, LedgerSlot};
use crate::promote::{Words, WordsError};
use crate::retrieve::{Retrieve, RetrieveError};
use rule::OpenRule;
use store::Begun;

/// Studies looked at in one go.
const CANDIDATES_MAX: u32 = 4096;
/// Longest sleep while something waits for others; it is woken earlier when a study becomes final or the ledger says something.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time for which a study that could not be derived is left alone.
const POSTPONED_MAX: Duration = Duration::from_secs(600);

/// Why a study was not derived, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// What is left to say of what was said on a ledger before cannot be read.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The asker: there is no such study.
    #[error("no study \"{0}\" was received here")]
    Unknown(String),
    /// The asker: there is no such rule.
    #[error("no rule is named \"{0}\"; [[derive]] in the configuration makes one")]
    NoRule(String),
    /// The asker: which rule?
    #[error("name the rule with --rule: {0}")]
    WhichRule(String),
    /// The asker: the study is one already.
    #[error("study {0} was derived itself")]
    Itself(Uid),
    /// Nobody: it will be.
    #[error("study {0} is not final on the ledger yet")]
    NotFinal(Uid),
    /// Nobody: the rule is about something else.
    #[error("rule {rule} takes none of the objects of study {study}")]
    NothingTaken {
        /// The rule.
        rule: String,
        /// The study.
        study: Uid,
    },
    /// The operator: what was derived was erased.
    #[error("what rule {rule} derived from study {study} was erased, and is not derived again")]
    Ended {
        /// The rule.
        rule: String,
        /// The study.
        study: Uid,
    },
    /// The operator: an object is not what it was when it was derived before.
    #[error("object {0} was derived before with another content; what the rule says of cleaning must not change")]
    Differs(Uid),
    /// The operator: one object must not be de-identified, so none was.
    #[error("object {object} is refused, and the study with it")]
    Refused {
        /// The object, by its own UID.
        object: Uid,
        /// Why.
        #[source]
        why: FileError,
    },
    /// The operator: the objects do not make up a study that could be derived.
    #[error("{0}")]
    Unfit(String),
    /// The operator: the rule cannot be used.
    #[error("rule {rule}: {words}")]
    Rule {
        /// The rule.
        rule: String,
        /// Why.
        words: String,
    },
    /// A file of a rule cannot be used.
    #[error("file {0}")]
    Io(PathBuf, #[source] std::io::Error),
    /// The archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// An object could not be read.
    #[error("reading an object")]
    Retrieve(#[from] RetrieveError),
    /// The keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The record failed.
    #[error("the record of derived studies")]
    Database(#[from] rusqlite::Error),
    /// The record was written by another version.
    #[error("the record of derived studies has format {0}, this program knows 1")]
    Version(i64),
    /// The ledger did not do it.
    #[error("the ledger")]
    Ledger(#[from] LedgerError),
    /// The database of consents failed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// A word could not be signed.
    #[error("signing with the key in custody")]
    Signing(#[from] alloy::signers::Error),
    /// The work was given up.
    #[error("given up")]
    Gone,
}

impl DeriveError {
    /// Whether the same objects under the same rule would be refused again.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unfit(_) | Self::Differs(_))
    }

    /// Whether there is nothing to do, as opposed to nothing that could be done.
    fn is_idle(&self) -> bool {
        matches!(self, Self::NothingTaken { .. } | Self::Ended { .. } | Self::Itself(_) | Self::Unknown(_))
    }
}

/// Asks for a study to be derived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// StudyInstanceUID, or the study's id on the ledger.
    pub study: String,
    /// The rule, where there are several.
    pub rule: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The rule.
    pub rule: String,
    /// StudyInstanceUID of the derived study.
    pub study: String,
    /// Objects in it.
    pub objects: usize,
    /// Of which are new.
    pub new: usize,
}

/// A derivation in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DerivedRow {
    /// The rule.
    pub rule: String,
    /// StudyInstanceUID of the study that it was made from, unless that was erased.
    pub parent: Option<String>,
    /// StudyInstanceUID of the derived study, once there is one.
    pub study: Option<String>,
    /// `storing`, `made`, `refused` or `erased`.
    pub state: String,
    /// Why it was refused, if so.
    pub trouble: Option<String>,
    /// Who owns it: `custody`, `research` or `elsewhere`.
    pub owner: String,
    /// What commits to the lineage on the ledger, if anything does.
    pub lineage: Option<String>,
    /// Grantees of the rule to whom the owner has said something.
    pub let_in: usize,
    /// Grantees of the rule.
    pub grantees: usize,
}

/// What deriving works on.
pub struct Parts {
    /// Objects and index.
    pub archive: Archive,
    /// Keys.
    pub keyring: Keyring,
    /// Opens objects.
    pub retrieve: Retrieve,
    /// What the ledger says.
    pub consents: Consents,
    /// The ledger, once it is connected.
    pub ledger: LedgerSlot,
    /// What was derived from what.
    pub derived: Derived,
    /// What is left to say of what was said on a ledger before; nothing else is said about a study until then.
    pub words: Words,
    /// Where it is recorded what rules did by themselves.
    pub audit: Audit,
    /// Our AE title, which stands as the sender of what is made here.
    pub ae_title: String,
}

/// Derives studies. Cheap to clone.
#[derive(Clone)]
pub struct Deriver(Arc<Inner>);

struct Inner {
    parts: Parts,
    rules: Vec<OpenRule>,
    /// Derived studies to whose groups something may be left to say.
    unsaid: Mutex<BTreeSet<i64>>,
    /// By rule and study, what could not be derived: when it is tried again, and how long that was put off.
    postponed: Mutex<BTreeMap<(String, Uid), (Instant, Duration)>>,
    wake: Arc<Notify>,
}

/// Checks what the configuration alone cannot.
///
/// # Errors
/// [`DeriveError`].
pub fn check(config: &config::Config) -> Result<Vec<Rule>, DeriveError> {
    config.derive.iter().map(|settings| Rule::new(settings, &config.groups)).collect()
}

/// An object of a derived study that was not derived into it.
///
/// # Errors
/// [`DeriveError`].
pub fn stranger(archive: &Archive, derived: &Derived, known: &Derivation) -> Result<Option<Uid>, DeriveError> {
    let Some(study) = known.derived() else { return Ok(None) };
    let made = derived.objects(known)?;
    let strange = |stored: &Stored| !made.contains(&(stored.sop_instance, stored.file_sha256));
    Ok(archive.received_instances_of(study)?.into_iter().find(strange).map(|stored| stored.sop_instance))
}

impl Deriver {
    /// Opens the rules' keys and joins the parts; `wake` is notified when a study became final. Blocks.
    ///
    /// # Errors
    /// [`DeriveError`] when a rule cannot be used: a bridge that should let nobody in by mistake does not start then.
    pub fn open(parts: Parts, rules: Vec<Rule>, wake: Arc<Notify>) -> Result<Self, DeriveError> {
        let rules = rules.into_iter().map(|rule| rule.open(&parts.keyring)).collect::<Result<Vec<_>, _>>()?;
        let known = parts.derived.all()?;
        // What a rule began is defined with its key also when the rule is gone from the configuration.
        let research = known.iter().filter_map(|known| match known.owner() {
            Owner::Research(account) => Some(account),
            Owner::Custody | Owner::Elsewhere(_) => None,
        });
        for account in research.collect::<BTreeSet<_>>() {
            if parts.keyring.custody_key(0, account)?.is_none() {
                tracing::warn!(%account, "the research key of derived studies is not here");
            }
        }
        let unsaid = Mutex::new(known.iter().map(Derivation::id).collect());
        Ok(Self(Arc::new(Inner { parts, rules, unsaid, postponed: Mutex::default(), wake })))
    }

    /// What was derived from what.
    #[must_use]
    pub fn derived(&self) -> &Derived {
        &self.0.parts.derived
    }

    /// Derives whatever becomes final and lets groups in, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut changed = self.0.parts.consents.changed();
        loop {
            changed.borrow_and_update();
            let waits = tokio::select! {
                () = stop.cancelled() => return,
                waits = self.work() => waits,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wake.notified() => {}
                _ = changed.changed() => {}
                () = tokio::time::sleep(RETRY), if waits => {}
            }
        }
    }

    /// Does what can be done now; true when something waits for others.
    async fn work(&self) -> bool {
        let mut waits = self.finish_begun().await;
        waits |= self.look_at_candidates().await;
        waits |= self.let_groups_in().await;
        waits
    }

    /// Goes on with what was begun before a crash or a failure.
    async fn finish_begun(&self) -> bool {
        let mut waits = false;
        for known in self.0.parts.derived.begun().unwrap_or_default() {
            let Some(parent) = known.parent() else { continue };
            let Some(rule) = self.rule(known.rule()) else {
                tracing::warn!(rule = known.rule(), %parent, "a derivation was begun by a rule that is not configured any more");
                continue;
            };
            waits |= self.attempt(rule, parent).await;
        }
        waits
    }

    async fn look_at_candidates(&self) -> bool {
        let derived = &self.0.parts.derived;
        let candidates = match derived.candidates(CANDIDATES_MAX) {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::error!(error = %crate::chain_of(&error), "studies to derive from cannot be looked for");
                return true;
            }
        };
        let mut waits = false;
        for study in candidates {
            let mut left = false;
            for rule in self.0.rules.iter().filter(|rule| rule.rule.is_automatic()) {
                left |= self.attempt(rule, &study).await;
            }
            if !left && let Err(error) = derived.drop_candidate(&study) {
                tracing::error!(error = %crate::chain_of(&error), "a study that was derived from is looked at again");
            }
            waits |= left;
        }
        waits
    }

    /// Derives a study by a rule, unless that was done for its newest version; true when it must be tried again.
    async fn attempt(&self, rule: &OpenRule, study: &Uid) -> bool {
        let what = (rule.rule.name().to_owned(), *study);
        if self.is_postponed(&what) {
            return true;
        }
        let derived = self.derive_newest(rule, study).await;
        self.postpone(what, derived.as_ref().err());
        match derived {
            Ok(Some(outcome)) => {
                self.record(rule, study, None);
                tracing::info!(
                    rule = outcome.rule,
                    objects = outcome.objects,
                    new = outcome.new,
                    "a study was derived"
                );
                false
            }
            Ok(None) => false,
            Err(error) if error.is_idle() => {
                tracing::debug!(error = %crate::chain_of(&error), "nothing to derive");
                false
            }
            Err(error) if error.is_refusal() => {
                self.record(rule, study, Some("an object was refused"));
                tracing::warn!(rule = rule.rule.name(), %study, error = %crate::chain_of(&error), "a study is not derived");
                false
            }
            Err(error) => {
                tracing::warn!(rule = rule.rule.name(), %study, error = %crate::chain_of(&error), "a study is not derived yet");
                true
            }
        }
    }

    /// What a rule did by itself, or may not do.
    fn record(&self, rule: &OpenRule, study: &Uid, why: Option<&str>) {
        let by = Party::named(&format!("rule {}", rule.rule.name()));
        self.0.parts.audit.record(Event::handled(&by, Handling::Derive, study.as_str(), why));
    }

    fn is_postponed(&self, what: &(String, Uid)) -> bool {
        let postponed = self.0.postponed.lock().unwrap_or_else(PoisonError::into_inner);
        postponed.get(what).is_some_and(|(until, _)| Instant::now() < *until)
    }

    /// A study that could not be derived is tried again, less and less often.
    fn postpone(&self, what: (String, Uid), error: Option<&DeriveError>) {
        let mut postponed = self.0.postponed.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            None | Some(DeriveError::NotFinal(_)) => drop(postponed.remove(&what)),
            Some(error) if error.is_idle() => drop(postponed.remove(&what)),
            Some(_) => {
                let wait = postponed.get(&what).map_or(RETRY, |(_, wait)| (*wait * 2).min(POSTPONED_MAX));
                postponed.insert(what, (Instant::now() + wait, wait));
            }
        }
    }

    async fn derive_newest(&self, rule: &OpenRule, study: &Uid) -> Result<Option<Outcome>, DeriveError> {
        let Parts { archive, derived, .. } = &self.0.parts;
        if derived.knows(study) {
            return Err(DeriveError::Itself(*study));
        }
        if archive.publication(study)?.is_none() {
            return Err(DeriveError::Unknown(study.to_string()));
        }
        let version = archive.final_version(study)?.ok_or(DeriveError::NotFinal(*study))?;
        let known = derived.of_rule(rule.rule.name(), study)?;
        if known.is_some_and(|known| known.version() >= version && !known.is_storing()) {
            return Ok(None);
        }
        self.derive_study(rule, study, version).await.map(Some)
    }

    /// Derives a study, or derives it again.
    ///
    /// # Errors
    /// [`DeriveError`]; nothing new is stored when an object is refused.
    pub async fn derive(&self, ask: Ask) -> Result<Outcome, DeriveError> {
        let Parts { archive, derived, .. } = &self.0.parts;
        let unknown = || DeriveError::Unknown(ask.study.clone());
        let study = match ask.study.parse::<B256>() {
            Ok(study_id) => archive.study_of_id(&study_id)?,
            Err(_) => Uid::new(&ask.study).ok(),
        };
        let study = study.ok_or_else(unknown)?;
        let rule = self.wanted(ask.rule.as_deref())?;
        if derived.knows(&study) {
            return Err(DeriveError::Itself(study));
        }
        if archive.derivable(&study)?.is_empty() {
            return Err(unknown());
        }
        let version = archive.final_version(&study)?.ok_or(DeriveError::NotFinal(study))?;
        let (this, name) = (self.clone(), rule.rule.name().to_owned());
        // A command that is given up must not leave half of this to the next look.
        let work = tokio::spawn(async move {
            let rule = this.rule(&name).ok_or(DeriveError::NoRule(name))?;
            this.derive_study(rule, &study, version).await
        });
        let outcome = work.await.map_err(|_| DeriveError::Gone)?;
        self.0.wake.notify_one();
        outcome
    }

    fn wanted(&self, name: Option<&str>) -> Result<&OpenRule, DeriveError> {
        match (name, self.0.rules.as_slice()) {
            (Some(name), _) => self.rule(name).ok_or_else(|| DeriveError::NoRule(name.to_owned())),
            (None, [only]) => Ok(only),
            (None, []) => Err(DeriveError::NoRule(String::new())),
            (None, several) => {
                let names: Vec<_> = several.iter().map(|rule| rule.rule.name()).collect();
                Err(DeriveError::WhichRule(names.join(", ")))
            }
        }
    }

    fn rule(&self, name: &str) -> Option<&OpenRule> {
        self.0.rules.iter().find(|rule| rule.rule.name() == name)
    }

    /// Everything that was derived or refused.
    ///
    /// # Errors
    /// [`DeriveError`].
    pub fn rows(&self) -> Result<Vec<DerivedRow>, DeriveError> {
        self.0.parts.derived.all()?.iter().map(|known| self.row(known)).collect()
    }

    /// What has to do with a study: what it was derived from, or what was derived from it.
    ///
    /// # Errors
    /// [`DeriveError`].
    pub fn rows_of(&self, study: &Uid) -> Result<Vec<DerivedRow>, DeriveError> {
        let derived = &self.0.parts.derived;
        let mut known = derived.of_parent(study)?;
        known.extend(derived.of_derived(study)?);
        known.iter().map(|known| self.row(known)).collect()
    }

    fn row(&self, known: &Derivation) -> Result<DerivedRow, DeriveError> {
        let grantees = self.rule(known.rule()).map_or(&[][..], |rule| rule.rule.grantees());
        let state = match () {
            () if known.is_ended() => "erased",
            () if known.is_storing() => "storing",
            () if !known.refusal().is_empty() => "refused",
            () => "made",
        };
        let owner = match known.owner() {
            Owner::Custody => "custody",
            Owner::Research(_) => "research",
            Owner::Elsewhere(_) => "elsewhere",
        };
        Ok(DerivedRow {
            rule: known.rule().to_owned(),
            parent: known.parent().map(ToString::to_string),
            study: known.derived().map(ToString::to_string),
            state: state.to_owned(),
            trouble: Some(known.refusal().to_owned()).filter(|words| !words.is_empty()),
            owner: owner.to_owned(),
            lineage: known.lineage().map(|lineage| lineage.commitment().to_string()),
            let_in: self.spoken_to(known, grantees)?,
            grantees: grantees.len(),
        })
    }

    fn spoken_to(&self, known: &Derivation, grantees: &[Grantee]) -> Result<usize, DeriveError> {
        let Parts { archive, consents, .. } = &self.0.parts;
        let publication = known.derived().map(|study| archive.publication(study)).transpose()?.flatten();
        let Some(publication) = publication else { return Ok(0) };
        let said = |grantee: &&Grantee| {
            consents
                .grant(publication.study_id, grantee.account)
                .is_ok_and(|said| said.is_some_and(|said| said.seq > 0))
        };
        Ok(grantees.iter().filter(said).count())
    }

    fn say_later(&self, known: &Derivation) {
        self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner).insert(known.id());
    }
}
