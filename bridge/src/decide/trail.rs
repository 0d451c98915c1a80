//! What of a command about consent goes into the audit trail: what it is, about whom, and what else was said that names nobody.

use super::{Action, Ask, DecideError, Decision, KeyWish};
use crate::audit::{Decided, Event, Party};
use crate::follow::binding::key_of;

/// A command that is recorded, before it is carried out.
pub(super) struct Command {
    what: Decided,
    subject: String,
    details: Vec<(&'static str, String)>,
}

impl Command {
    /// None for those that only read what is no study's, or only make a file.
    pub(super) fn of(ask: &Ask) -> Option<Self> {
        let (what, subject, details) = match ask {
            Ask::Request { study, preview_only, purpose, .. } => {
                (Decided::Request, study.clone(), terms(*preview_only, purpose.as_deref()))
            }
            Ask::Decide { study, decision } => {
                let (what, details) = decided(decision);
                (what, study.clone(), details)
            }
            Ask::Unsigned { study, decision } => {
                let (what, mut details) = decided(decision);
                details.push(("decision", format!("{what:?}").to_lowercase()));
                (Decided::Prepare, study.clone(), details)
            }
            Ask::Submit { action } => {
                let (what, mut details) = signed(&action.action);
                details.push(("signer", action.signer.to_string()));
                (what, action.study().to_string(), details)
            }
            Ask::Trace { study, .. } | Ask::HandOver { study } => (Decided::Trace, study.clone(), Vec::new()),
            Ask::BreakGlass { study, reason, seconds } => {
                (Decided::BreakGlass, study.clone(), vec![("reason", reason.clone()), ("seconds", seconds.to_string())])
            }
            Ask::ApprovedEmergency { emergency } => {
                let operator = vec![("operator", emergency.operator.to_string())];
                (Decided::BreakGlass, emergency.study.to_string(), operator)
            }
            Ask::Admit { source } => (Decided::Admit, source.clone(), Vec::new()),
            Ask::Suspend { source } => (Decided::Suspend, source.clone(), Vec::new()),
            Ask::Reinstate { source } => (Decided::Reinstate, source.clone(), Vec::new()),
            Ask::ProposeRecovery { recovery } => {
                let owner = vec![("owner", recovery.new_owner.to_string())];
                (Decided::ProposeRecovery, recovery.guardians.study.to_string(), owner)
            }
            Ask::CompleteRecovery { study } => (Decided::CompleteRecovery, study.clone(), Vec::new()),
            Ask::EmergencyApproval { required } => {
                (Decided::EmergencyApproval, "this source".to_owned(), vec![("required", required.to_string())])
            }
            Ask::OfferOperator { operator } => (Decided::OfferOperator, operator.clone(), Vec::new()),
            Ask::AcceptOperator { acceptance } => {
                (Decided::AcceptOperator, acceptance.operator.to_string(), Vec::new())
            }
            Ask::DismissOperator { operator } => (Decided::DismissOperator, operator.clone(), Vec::new()),
            Ask::Key { wish } => {
                let (what, details) = of_key(wish);
                (what, "this source".to_owned(), details)
            }
            Ask::SubmitKey { paper } => {
                let (what, details) = of_key(&paper.wish);
                (what, paper.account.to_string(), details)
            }
            Ask::Requests { .. }
            | Ask::KeyChallenge { .. }
            | Ask::KeyPaper { .. }
            | Ask::Keys { .. }
            | Ask::Sources
            | Ask::Guardians { .. }
            | Ask::Recovery { .. }
            | Ask::Emergency { .. } => {
                return None;
            }
        };
        Some(Self { what, subject: named(subject), details })
    }

    /// What became of it.
    pub(super) fn came_to<T>(self, by: &Party, result: &Result<T, DecideError>) -> Event {
        let why = result.as_ref().err().map(words);
        Event::decided(by, self.what, &self.subject, self.details, why.as_deref())
    }
}

/// Why it was not done, without what was typed: that might be anything, a name too.
fn words(error: &DecideError) -> String {
    match error {
        DecideError::Study(_) => "no such study".to_owned(),
        DecideError::NotYet(_) => "the study is not on its way to the ledger yet".to_owned(),
        DecideError::Account(_) => "no such account".to_owned(),
        DecideError::Word { .. } => "a word that is not known".to_owned(),
        DecideError::Asker(_) => "it cannot be done as it was asked for".to_owned(),
        other => crate::chain_of(other),
    }
}

/// A subject as it was typed, unless it is neither a UID nor an id nor an account: then it might be anything, a name too.
fn named(subject: String) -> String {
    let is_id = subject.strip_prefix("0x").is_some_and(|hex| hex.chars().all(|c| c.is_ascii_hexdigit()));
    let is_uid = !subject.is_empty() && subject.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_id || is_uid || subject == "this source" { subject } else { "unreadable".to_owned() }
}

fn terms(preview_only: bool, purpose: Option<&str>) -> Vec<(&'static str, String)> {
    let mode = ("mode", if preview_only { "preview" } else { "full" }.to_owned());
    std::iter::once(mode).chain(purpose.map(|purpose| ("purpose", purpose.to_owned()))).collect()
}

fn decided(decision: &Decision) -> (Decided, Vec<(&'static str, String)>) {
    let grantee = |grantee: &String| vec![("grantee", named(grantee.clone()))];
    match decision {
        Decision::Allow { grantee: to, preview_only, purpose, .. } => {
            (Decided::Allow, [grantee(to), terms(*preview_only, purpose.as_deref())].concat())
        }
        Decision::Deny { grantee: to, .. } => (Decided::Deny, grantee(to)),
        Decision::Revoke { grantee: to } => (Decided::Revoke, grantee(to)),
        Decision::Transfer { owner } => (Decided::Transfer, vec![("owner", named(owner.clone()))]),
        Decision::Tombstone => (Decided::Tombstone, Vec::new()),
        Decision::NameGuardians { .. } => (Decided::Guardians, Vec::new()),
        Decision::VetoRecovery => (Decided::VetoRecovery, Vec::new()),
    }
}

fn of_key(wish: &KeyWish) -> (Decided, Vec<(&'static str, String)>) {
    match wish {
        KeyWish::Bind { spki, .. } => {
            let key = key_of(spki).map_or_else(|| "unreadable".to_owned(), |key| key.to_string());
            (Decided::BindKey, vec![("key", key)])
        }
        KeyWish::Unbind { key } => (Decided::UnbindKey, vec![("key", key.to_string())]),
    }
}

fn signed(action: &Action) -> (Decided, Vec<(&'static str, String)>) {
    match action {
        Action::Allow { grantee, .. } => (Decided::Allow, vec![("grantee", grantee.to_string())]),
        Action::Deny { grantee, .. } => (Decided::Deny, vec![("grantee", grantee.to_string())]),
        Action::Revoke { grantee, .. } => (Decided::Revoke, vec![("grantee", grantee.to_string())]),
        Action::Transfer { new_owner, .. } => (Decided::Transfer, vec![("owner", new_owner.to_string())]),
        Action::Tombstone { .. } => (Decided::Tombstone, Vec::new()),
        Action::NameGuardians { .. } => (Decided::Guardians, Vec::new()),
        Action::VetoRecovery { .. } => (Decided::VetoRecovery, Vec::new()),
    }
}
