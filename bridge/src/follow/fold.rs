//! What the events of a study, of all sources, or of an account's key, amount to. Pure: a fold in chain order, with the contracts' own rules.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes, keccak256};

use super::event::{Event, Mode, What};
use super::{Asked, Chain, Decision, Envelope, Grant, KeyBinding, SourceInfo, StudyInfo, binding};

/// What was said about one study and one grantee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) mode: Mode,
    pub(super) series: B256,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    pub(super) purpose: u16,
    pub(super) encryption_key: B256,
    pub(super) seq: u32,
    pub(super) decision: Decision,
    pub(super) asked: Asked,
    pub(super) deny_reason: u16,
    pub(super) emergency_until: u64,
    pub(super) request: Option<Request>,
    /// The one-time key of the newest question for keys, until it is answered.
    pub(super) question: Option<Bytes>,
    /// The answer to the newest question that was answered.
    pub(super) envelope: Option<Envelope>,
}

/// The newest request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) number: u32,
    pub(super) mode: Mode,
    pub(super) purpose: u16,
    pub(super) notes: B256,
    pub(super) encryption_key: Bytes,
    pub(super) block: u64,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            mode: Mode::Preview,
            series: B256::ZERO,
            not_before: 0,
            not_after: 0,
            purpose: 0,
            encryption_key: B256::ZERO,
            seq: 0,
            decision: Decision::Unsaid,
            asked: Asked::Nothing,
            deny_reason: 0,
            emergency_until: 0,
            request: None,
            question: None,
            envelope: None,
        }
    }
}

/// A study and everybody who has to do with it.
#[derive(Debug, Default)]
pub(super) struct Study {
    pub(super) info: Option<StudyInfo>,
    pub(super) pairs: BTreeMap<Address, Pair>,
}

/// The owner's words that took something away from a grantee who had it: a revocation, or a grant of less than before. A grant that
/// ends by its own date takes nothing away that was not known to end.
pub(super) fn withdrawals(events: &[Event]) -> Vec<(Address, u32)> {
    let mut held: BTreeMap<Address, (Mode, B256)> = BTreeMap::new();
    let mut taken = Vec::new();
    for event in events {
        let (grantee, seq, now) = match event.what {
            What::Allowed { grantee, seq, mode, series, .. } => (grantee, seq, mode.map(|mode| (mode, series))),
            What::Revoked { grantee, seq, .. } => (grantee, seq, None),
            _ => continue,
        };
        let before = match now {
            Some(now) => held.insert(grantee, now),
            None => held.remove(&grantee),
        };
        let less = |(mode, series): (Mode, B256)| {
            now.is_none_or(|(now, part)| now < mode || (part != series && !part.is_zero()))
        };
        if before.is_some_and(less) {
            taken.push((grantee, seq));
        }
    }
    taken
}

/// Folds the events of one study, in chain order.
pub(super) fn study(events: &[Event]) -> Study {
    let mut study = Study::default();
    for event in events {
        study.take(event);
    }
    study
}

/// Folds the events of one study and what newer blocks say of it, which may be replaced yet: what takes something away counts at once, and of
/// what gives something the owner's word alone, where it is `trusted` ([`super::Consents::in_effect`]).
pub(super) fn study_ahead(events: &[Event], ahead: &[Event], trusted: impl Fn(&Event) -> bool) -> Study {
    let mut study = self::study(events);
    for event in ahead {
        study.take_ahead(event, &trusted);
    }
    study
}

impl Study {
    fn take(&mut self, event: &Event) {
        if let Some(grantee) = event.what.grantee() {
            self.pairs.entry(grantee).or_default().take(event);
            return;
        }
        if let What::Defined { study, source, owner, custodial } = event.what {
            let blank = StudyInfo {
                study_id: study,
                owner,
                source,
                custodial,
                seq: 0,
                version: 0,
                manifest_image: B256::ZERO,
                manifest_root: B256::ZERO,
                tombstoned: false,
            };
            self.info = Some(blank);
        }
        let Some(info) = &mut self.info else { return };
        match event.what {
            What::Amended { version, image, root, .. } => {
                (info.version, info.manifest_image, info.manifest_root) = (version, image, root);
            }
            What::Transferred { owner, custodial, seq, .. } => {
                (info.owner, info.custodial, info.seq) = (owner, custodial, seq);
            }
            What::Tombstoned { seq, .. } => (info.tombstoned, info.seq) = (true, seq),
            What::GuardiansNamed { seq, .. } | What::RecoveryProposed { seq, .. } => info.seq = seq,
            _ => {}
        }
    }
}

impl Study {
    fn take_ahead(&mut self, event: &Event, trusted: &impl Fn(&Event) -> bool) {
        match &event.what {
            // The source's own words, which nobody else can say, and an end.
            What::Defined { .. } | What::Amended { .. } | What::Tombstoned { .. } | What::Revoked { .. } => {
                self.take(event);
            }
            What::Allowed { grantee, owner, .. } => {
                // A study has another owner when that is final.
                let owned = self.info.as_ref().is_some_and(|info| info.owner == *owner);
                let pair = self.pairs.entry(*grantee).or_default();
                match owned && trusted(event) {
                    true => pair.take(event),
                    false => pair.narrow(event),
                }
            }
            What::GlassBroken { source, until, .. } => {
                // A newer emergency takes the place of the one before; it may end sooner.
                let pair = self.pairs.entry(*source).or_default();
                pair.emergency_until = pair.emergency_until.min(*until);
            }
            // Another owner, and what opens nothing.
            _ => {}
        }
    }
}

impl Pair {
    pub(super) fn grant(&self, study: &StudyInfo, grantee: Address, suspended: bool) -> Grant {
        Grant {
            study_id: study.study_id,
            grantee,
            owner: study.owner,
            source: study.source,
            mode: self.mode,
            series: self.series,
            not_before: self.not_before,
            not_after: self.not_after,
            purpose: self.purpose,
            encryption_key: self.encryption_key,
            seq: self.seq,
            decision: self.decision,
            asked: self.asked,
            deny_reason: self.deny_reason,
            emergency_until: self.emergency_until,
            tombstoned: study.tombstoned,
            suspended,
            version: study.version,
            manifest_image: study.manifest_image,
            manifest_root: study.manifest_root,
        }
    }

    /// Leaves of what is open what a newer word of the owner leaves open as well.
    fn narrow(&mut self, newer: &Event) {
        if self.decision != Decision::Allowed {
            return;
        }
        let mut new = self.clone();
        new.take(newer);
        let any = |of: u16| of == 0;
        let series_fit = self.series == new.series || self.series.is_zero() || new.series.is_zero();
        let purposes_fit = self.purpose == new.purpose || any(self.purpose) || any(new.purpose);
        // Who has another key now is not whom the word before was for.
        let keys_fit = self.encryption_key == new.encryption_key;
        if new.decision != Decision::Allowed || !series_fit || !purposes_fit || !keys_fit {
            (self.decision, self.seq) = (Decision::Revoked, new.seq);
            return;
        }
        self.mode = self.mode.min(new.mode);
        self.series = if self.series.is_zero() { new.series } else { self.series };
        self.purpose = if any(self.purpose) { new.purpose } else { self.purpose };
        (self.not_before, self.not_after) = (self.not_before.max(new.not_before), self.not_after.min(new.not_after));
        self.seq = new.seq;
    }

    fn take(&mut self, event: &Event) {
        match &event.what {
            What::Requested { number, mode, purpose, notes, encryption_key, .. } => {
                self.asked = Asked::Open;
                self.request = Some(Request {
                    number: *number,
                    mode: mode.unwrap_or(Mode::Preview),
                    purpose: *purpose,
                    notes: *notes,
                    encryption_key: encryption_key.clone(),
                    block: event.block,
                });
            }
            What::Allowed { seq, series, mode, not_before, not_after, purpose, encryption_key, .. } => {
                self.asked = if self.asked == Asked::Open { Asked::Accepted } else { Asked::Nothing };
                self.seq = *seq;
                // A mode of a later version grants nothing here.
                self.decision = mode.map_or(Decision::Revoked, |_| Decision::Allowed);
                self.mode = mode.unwrap_or(Mode::Preview);
                (self.series, self.purpose, self.encryption_key) = (*series, *purpose, *encryption_key);
                (self.not_before, self.not_after) = (*not_before, *not_after);
            }
            What::Denied { seq, reason, .. } => {
                (self.asked, self.seq, self.deny_reason) = (Asked::Denied, *seq, *reason);
            }
            What::Revoked { seq, .. } => {
                (self.decision, self.seq) = (Decision::Revoked, *seq);
                if self.asked != Asked::Open {
                    self.asked = Asked::Nothing;
                }
            }
            What::GlassBroken { until, .. } => self.emergency_until = *until,
            What::KeysAsked { one_time_key, .. } => self.question = Some(one_time_key.clone()),
            What::KeysDelivered { one_time_key, until, envelope, .. } => {
                let answered = |key: &mut Bytes| keccak256(key) == *one_time_key;
                // An answer to no open question is nothing that anybody waits for.
                if self.question.take_if(answered).is_some() {
                    let (one_time_key, until, bytes) = (*one_time_key, *until, envelope.clone());
                    self.envelope = Some(Envelope { one_time_key, until, bytes });
                }
            }
            _ => {}
        }
    }
}

/// All sources, and who acts for whom.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) sources: BTreeMap<Address, SourceInfo>,
    pub(super) operators: BTreeMap<Address, Address>,
}

/// Folds the events of all sources, in chain order.
pub(super) fn sources(events: &[Event]) -> Sources {
    let mut all = Sources::default();
    for event in events {
        all.take(&event.what);
    }
    for source in all.sources.values_mut() {
        source.active = source.defined && !source.suspended;
    }
    all
}

impl Sources {
    fn source(&mut self, identity: Address) -> &mut SourceInfo {
        self.sources.entry(identity).or_insert_with(|| SourceInfo {
            identity,
            endpoint: String::new(),
            tls_key: [0; 32],
            encryption_key: B256::ZERO,
            openpgp_key: Bytes::new(),
            defined: false,
            suspended: false,
            active: false,
        })
    }

    fn take(&mut self, what: &What) {
        match what {
            What::SourceAdmitted { source } => {
                self.source(*source);
            }
            What::SourceSuspended { source } => self.source(*source).suspended = true,
            What::SourceReinstated { source } => self.source(*source).suspended = false,
            What::SourceDefined { source, endpoint } => {
                let known = self.source(*source);
                known.defined = true;
                known.endpoint.clone_from(endpoint);
                // It becomes its own first operator.
                self.operators.insert(*source, *source);
            }
            What::EndpointChanged { source, endpoint } => self.source(*source).endpoint.clone_from(endpoint),
            What::KeysChanged { source, tls_key, encryption_key } => {
                let known = self.source(*source);
                known.tls_key = tls_key.0;
                known.encryption_key = if encryption_key.is_empty() { B256::ZERO } else { keccak256(encryption_key) };
                known.openpgp_key = encryption_key.clone();
            }
            What::OperatorAccepted { source, operator } => {
                self.operators.insert(*operator, *source);
            }
            What::OperatorRevoked { source, operator } if self.operators.get(operator) == Some(source) => {
                self.operators.remove(operator);
            }
            _ => {}
        }
    }
}

/// What an account's newest word about a key amounts to; none when it unbinds the key, or has no proof that the key's holder agrees.
/// The newest word counts alone, as in the contract: one without proof ends what held before.
pub(super) fn key_binding(chain: &Chain, newest: &Event) -> Option<KeyBinding> {
    let What::KeyBound { account, key, spki, proof, not_after } = &newest.what else { return None };
    let proven = binding::key_of(spki) == Some(*key) && binding::is_proof(chain, *account, spki, proof);
    let (block, log_index) = (newest.block, newest.log_index);
    proven.then_some(KeyBinding { account: *account, key: *key, not_after: *not_after, block, log_index })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUDY: B256 = B256::repeat_byte(1);
    const B: Address = Address::repeat_byte(2);
    const C: Address = Address::repeat_byte(3);

    fn allowed(grantee: Address, seq: u32, mode: Mode, series: B256) -> What {
        What::Allowed {
            study: STUDY,
            grantee,
            owner: Address::ZERO,
            seq,
            series,
            mode: Some(mode),
            not_before: 0,
            not_after: u64::MAX,
            purpose: 0,
            notes: B256::ZERO,
            encryption_key: B256::ZERO,
        }
    }

    fn revoked(grantee: Address, seq: u32) -> What {
        What::Revoked { study: STUDY, grantee, owner: Address::ZERO, seq }
    }

    fn taken(said: Vec<What>) -> Vec<(Address, u32)> {
        let event = |(block, what)| Event { block, block_hash: STUDY, transaction: STUDY, log_index: 0, what };
        withdrawals(&(0..).zip(said).map(event).collect::<Vec<_>>())
    }

    #[test]
    fn what_takes_access_away_is_a_withdrawal_and_nothing_else_is() {
        let (full, preview, all, series) = (Mode::Full, Mode::Preview, B256::ZERO, B256::repeat_byte(9));
        assert_eq!(taken(vec![revoked(B, 1)]), [], "nobody lost anything");
        assert_eq!(taken(vec![allowed(B, 1, full, all), revoked(B, 2), revoked(B, 3)]), [(B, 2)]);
        assert_eq!(taken(vec![allowed(B, 1, preview, all), allowed(B, 2, full, all)]), [], "more than before");
        assert_eq!(taken(vec![allowed(B, 1, full, all), allowed(B, 2, preview, all)]), [(B, 2)]);
        assert_eq!(taken(vec![allowed(B, 1, full, all), allowed(B, 2, full, series)]), [(B, 2)]);
        assert_eq!(taken(vec![allowed(B, 1, full, series), allowed(B, 2, full, all)]), []);
        let said = vec![allowed(B, 1, full, all), allowed(C, 1, full, all), revoked(B, 2), allowed(B, 3, full, all)];
        assert_eq!(taken(said), [(B, 2)], "allowed anew, it was taken away once");
        let said = vec![allowed(B, 1, full, all), revoked(B, 2), allowed(B, 3, full, all), revoked(B, 4)];
        assert_eq!(taken(said), [(B, 2), (B, 4)]);
    }
}
