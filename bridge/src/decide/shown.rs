//! What the commands show: rows of tables, the same for people and for programs.

use alloy::primitives::{Address, B256};
use contracts::messages::{DenyReason, EmergencyReason, Purpose};
use serde::{Deserialize, Serialize};

use crate::follow::{AccessRequest, Asked, Event, Grant, Mode, SourceInfo, StudyInfo, Trace, What};

/// What a hand-over file says it is.
pub(super) const HAND_OVER: &str = "pacs-bridge/hand-over/1";

/// What was sent and what it has come to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// `allowed`, `revoked` and so on.
    pub action: String,
    /// The study, if it is about one.
    pub study_id: Option<String>,
    /// The grantee or source, if it is about one.
    pub account: Option<String>,
    /// The study's state towards the grantee now, in the words of `trace`.
    pub state: Option<String>,
    /// Hash of the transaction.
    pub transaction: String,
    /// Height of its block.
    pub block: u64,
    /// Gas used.
    pub gas: u64,
}

/// A request in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RequestRow {
    /// The study.
    pub study_id: String,
    /// Its StudyInstanceUID, if this site has it.
    pub study_uid: Option<String>,
    /// Who asks.
    pub grantee: String,
    /// Whether it is an active source of the consortium.
    pub known: bool,
    /// `preview` or `full`.
    pub mode: String,
    /// What for.
    pub purpose: String,
    /// How often it has asked.
    pub number: u32,
    /// `open`, `accepted` or `denied`.
    pub state: String,
    /// Height of its block.
    pub block: u64,
}

impl RequestRow {
    pub(crate) fn of(request: &AccessRequest, study_uid: Option<String>) -> Self {
        let state = match request.asked {
            Asked::Nothing => "",
            Asked::Open => "open",
            Asked::Accepted => "accepted",
            Asked::Denied => "denied",
        };
        Self {
            study_id: request.study_id.to_string(),
            study_uid,
            grantee: request.grantee.to_string(),
            known: request.known,
            mode: request.mode.code().to_owned(),
            purpose: purpose(request.purpose),
            number: request.number,
            state: state.to_owned(),
            block: request.block,
        }
    }
}

/// A source in a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceRow {
    /// Its identity.
    pub source: String,
    /// `admitted`, `active` or `suspended`.
    pub state: String,
    /// Where it answers.
    pub endpoint: String,
    /// SHA-256 of its TLS key, if stated.
    pub tls_key: Option<String>,
    /// keccak-256 of its OpenPGP key, if stated.
    pub encryption_key: Option<String>,
}

impl SourceRow {
    pub(crate) fn of(source: &SourceInfo) -> Self {
        let state = match (source.suspended, source.defined) {
            (true, _) => "suspended",
            (false, true) => "active",
            (false, false) => "admitted",
        };
        let stated = |word: B256| (!word.is_zero()).then(|| word.to_string());
        Self {
            source: source.identity.to_string(),
            state: state.to_owned(),
            endpoint: source.endpoint.clone(),
            tls_key: stated(B256::from(source.tls_key)),
            encryption_key: stated(source.encryption_key),
        }
    }
}

/// What the new owner of a study needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandOver {
    /// Says what this is.
    pub format: String,
    /// The study on the ledger.
    pub study_id: String,
    /// Its StudyInstanceUID, if this site has it.
    pub study_uid: Option<String>,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The contract that knows whose the study is.
    pub registry: String,
    /// The contract that knows who may see it.
    pub consent: String,
    /// The owner's account.
    pub owner: String,
    /// Whether the site still holds the owner's key.
    pub custodial: bool,
}

/// One thing that was said about a study.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TraceRow {
    /// The paper's word.
    pub event: String,
    /// The grantee, or the new owner.
    pub account: Option<String>,
    /// What exactly.
    pub detail: String,
    /// Commitment to what was said in words, if anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Seconds since 1970, by the block.
    pub time_s: Option<u64>,
    /// Hash of the transaction.
    pub transaction: String,
    /// Height of its block.
    pub block: u64,
    /// Gas of the whole transaction.
    pub gas: Option<u64>,
}

/// A study's state towards a grantee.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TraceState {
    /// Who.
    pub grantee: String,
    /// `requested`, `accepted`, `denied`, `authorised`, `not authorised` or `removed`; `emergency` while the glass is broken.
    pub state: String,
    /// `preview` or `full`, when something may be seen now.
    pub sees: Option<String>,
}

/// What was said about a study, and what it has come to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TraceReport {
    /// The study.
    pub study_id: String,
    /// Its StudyInstanceUID, if this site has it.
    pub study_uid: Option<String>,
    /// Its owner.
    pub owner: String,
    /// Whether its source holds the owner's key.
    pub custodial: bool,
    /// Its source.
    pub source: String,
    /// StudyInstanceUID of the study that it was derived from, where this site can prove the lineage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived_from: Option<String>,
    /// In chain order.
    pub history: Vec<TraceRow>,
    /// Now.
    pub states: Vec<TraceState>,
}

impl TraceReport {
    pub(super) fn of(study: &StudyInfo, study_uid: Option<String>) -> Self {
        Self {
            study_id: study.study_id.to_string(),
            study_uid,
            owner: study.owner.to_string(),
            custodial: study.custodial,
            source: study.source.to_string(),
            derived_from: None,
            history: Vec::new(),
            states: Vec::new(),
        }
    }

    /// Adds the states of grantees; one that was asked for and has none is not authorised.
    pub(super) fn add_states<'a>(
        &mut self,
        grants: impl Iterator<Item = &'a Grant>,
        asked: Option<Address>,
        now_s: u64,
    ) {
        self.states.extend(grants.map(|grant| TraceState {
            grantee: grant.grantee.to_string(),
            state: state(grant, now_s).to_owned(),
            sees: grant.mode_at(now_s).map(|mode| mode.code().to_owned()),
        }));
        if let Some(asked) = asked
            && self.states.is_empty()
        {
            let state = Trace::NotAuthorised.words().to_owned();
            self.states.push(TraceState { grantee: asked.to_string(), state, sees: None });
        }
    }
}

impl TraceRow {
    /// None for events that are no news about consent.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let (word, account, detail) = said(&event.what)?;
        Some(Self {
            event: word.to_owned(),
            account: account.map(|account| account.to_string()),
            detail,
            notes: notes(&event.what),
            time_s: None,
            transaction: event.transaction.to_string(),
            block: event.block,
            gas: None,
        })
    }
}

fn notes(what: &What) -> Option<String> {
    let (What::Requested { notes, .. }
    | What::Allowed { notes, .. }
    | What::Denied { notes, .. }
    | What::GlassBroken { notes, .. }) = what
    else {
        return None;
    };
    (!notes.is_zero()).then(|| notes.to_string())
}

fn said(what: &What) -> Option<(&'static str, Option<Address>, String)> {
    Some(match what {
        What::Defined { owner, custodial, .. } => {
            ("created", Some(*owner), if *custodial { "key in custody".into() } else { "own key".into() })
        }
        What::Derived { from, .. } => ("derived", None, format!("from another study, commitment {from}")),
        What::Transferred { owner, recovered, custodial, .. } => {
            let how = if *recovered { "recovered by guardians" } else { "by the owner" };
            let custody = if *custodial { ", key in custody" } else { "" };
            ("transferred", Some(*owner), format!("{how}{custody}"))
        }
        What::Tombstoned { .. } => ("removed", None, "the study was ended".into()),
        What::RecoveryProposed { new_owner, ready_at, .. } => {
            ("recovery", Some(*new_owner), format!("possible from {}", moment(*ready_at)))
        }
        What::RecoveryEnded { new_owner, .. } => ("recovery ended", Some(*new_owner), String::new()),
        What::GuardiansNamed { guardians, .. } if guardians.is_zero() => ("guardians", None, "nobody any more".into()),
        What::GuardiansNamed { .. } => ("guardians", None, "named by commitment".into()),
        What::Requested { grantee, mode, purpose: number, number: times, .. } => {
            let mode = mode.map_or("?", Mode::code);
            ("requested", Some(*grantee), format!("{mode}, purpose {}, request {times}", purpose(*number)))
        }
        What::Allowed { grantee, mode, not_before, not_after, purpose: number, series, seq, .. } => {
            let mode = mode.map_or("?", Mode::code);
            let part = if series.is_zero() { "" } else { ", one series" };
            let from = if *not_before == 0 { String::new() } else { format!(" from {}", moment(*not_before)) };
            let until = moment(*not_after);
            let detail = format!("{mode}{part},{from} until {until}, purpose {}, number {seq}", purpose(*number));
            ("accepted", Some(*grantee), detail)
        }
        What::Denied { grantee, reason, seq, .. } => {
            let code = DenyReason::from(*reason).code();
            let reason = if code.is_empty() { reason.to_string() } else { code.to_owned() };
            ("denied", Some(*grantee), format!("reason {reason}, number {seq}"))
        }
        What::Revoked { grantee, seq, .. } => ("removed", Some(*grantee), format!("revoked, number {seq}")),
        What::GlassBroken { source, reason, until, approver, .. } => {
            let code = EmergencyReason::from(*reason).code();
            let reason = if code.is_empty() { reason.to_string() } else { code.to_owned() };
            let approved = if approver.is_zero() { String::new() } else { format!(", approved by {approver}") };
            ("glass broken", Some(*source), format!("reason {reason}, until {}{approved}", moment(*until)))
        }
        What::KeysAsked { grantee, .. } => ("keys asked", Some(*grantee), "over the ledger".into()),
        What::KeysDelivered { grantee, until, .. } => {
            ("keys delivered", Some(*grantee), format!("over the ledger, good until {}", moment(*until)))
        }
        _ => return None,
    })
}

/// The paper's word for a grant's state; an emergency is none of its words.
pub(crate) fn state(grant: &Grant, now_s: u64) -> &'static str {
    let trace = grant.trace_at(now_s);
    if trace != Trace::Authorised && grant.emergency_at(now_s) { "emergency" } else { trace.words() }
}

pub(crate) fn purpose(number: u16) -> String {
    let code = Purpose::from(number).code();
    if code.is_empty() { number.to_string() } else { code.to_owned() }
}

/// A time for people, in UTC.
#[must_use]
pub fn moment(unix_s: u64) -> String {
    // 9999-12-31: what lies beyond has no end.
    if unix_s > 253_402_300_799 {
        return "revoked".to_owned();
    }
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970, by counting in eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Seconds since 1970 of a moment given as such a number, as `YYYY-MM-DD` (its first second in UTC), or as a span from `now_s`
/// such as `30d`, `12h` or `15m`.
#[must_use]
pub fn parse_moment(text: &str, now_s: u64) -> Option<u64> {
    if let Ok(unix_s) = text.parse() {
        return Some(unix_s);
    }
    if let Some(span) = parse_span(text) {
        return now_s.checked_add(span);
    }
    let mut parts = text.splitn(3, '-').map(str::parse::<u64>);
    let wanted = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let days = day_of(wanted)?;
    Some(days * 86_400)
}

/// The inverse of [`civil`], by halving the days up to the year 9999.
fn day_of(wanted: (u64, u64, u64)) -> Option<u64> {
    let (mut low, mut high) = (0, 2_932_897);
    while low < high {
        let middle = low + (high - low) / 2;
        match civil(middle).cmp(&wanted) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

/// Seconds of `15m`, `12h` or `30d`.
#[must_use]
pub fn parse_span(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_go_there_and_back() {
        for (day, text) in [(0, "1970-01-01"), (11_016, "2000-02-29"), (19_723, "2024-01-01"), (47_540, "2100-02-28")] {
            assert_eq!(parse_moment(text, 0), Some(day * 86_400));
            assert_eq!(moment(day * 86_400), format!("{text} 00:00:00Z"));
        }
        assert_eq!(parse_moment("2100-02-29", 0), None);
        assert_eq!(parse_moment("30d", 5), Some(30 * 86_400 + 5));
        assert_eq!(parse_moment("1800000000", 5), Some(1_800_000_000));
        assert_eq!(parse_moment("tomorrow", 5), None);
        assert_eq!(moment(u64::MAX), "revoked");
    }
}
