//! What owners' words came to, as words of a new ledger. Pure.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use contracts::{Allowance, messages};
use serde::{Deserialize, Serialize};

use crate::follow::{Decision, Event, Grant, What};
use crate::ledger;

/// The number of the first word to a grantee, or about a study. The ledger takes it only while nothing was said there: neither a
/// revocation nor anything else can be overruled with it, and nothing is said twice.
const FIRST: u32 = 1;

/// What is to be said about a study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// A grantee may see it.
    Allow {
        /// Who.
        grantee: Address,
        /// Zero: the whole study; else the salted hash of a series.
        series: B256,
        /// Number of how much.
        mode: u8,
        /// First second, since 1970.
        not_before: u64,
        /// Last second, since 1970.
        not_after: u64,
        /// Number of a purpose.
        purpose: u16,
        /// Commitment to what was said in words.
        notes: B256,
        /// keccak-256 of the grantee's OpenPGP key.
        encryption_key: B256,
    },
    /// A grantee may not any more. Whoever was shut out is not let in again by a rule.
    Revoke {
        /// Who.
        grantee: Address,
    },
    /// Who guards it.
    NameGuardians {
        /// Their commitment.
        guardians: B256,
    },
    /// Whose it is, when that is somebody else than its source defines.
    Transfer {
        /// The account.
        owner: Address,
        /// Whether somebody holds its key for the patient.
        custodial: bool,
    },
}

/// How much is left to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// So many words.
    pub words: u64,
    /// Why the first that is in trouble is not said.
    pub trouble: Option<String>,
}

impl Word {
    /// To whom it is said; none when it is about the study.
    #[must_use]
    pub fn grantee(&self) -> Option<Address> {
        match self {
            Self::Allow { grantee, .. } | Self::Revoke { grantee } => Some(*grantee),
            Self::NameGuardians { .. } | Self::Transfer { .. } => None,
        }
    }

    /// What is to be said of it at a time, in seconds since 1970: what was allowed until then is taken away, so that nobody takes it for
    /// something that was never said.
    #[must_use]
    pub fn at(self, now_s: u64) -> Self {
        match self {
            Self::Allow { grantee, not_after, .. } if not_after < now_s => Self::Revoke { grantee },
            other => other,
        }
    }

    /// As the owner signs it until `deadline`; `study_seq` numbers what is about the study itself.
    #[must_use]
    pub fn to_sign(&self, study: B256, study_seq: u32, deadline: u64) -> ledger::Word {
        match *self {
            Self::Allow { grantee, series, mode, not_before, not_after, purpose, notes, encryption_key } => {
                ledger::Word::Allow(Allowance {
                    studyId: study,
                    grantee,
                    series,
                    mode,
                    notBefore: not_before,
                    notAfter: not_after,
                    purpose,
                    notes,
                    encryptionKey: encryption_key,
                    seq: FIRST,
                    deadline,
                })
            }
            Self::Revoke { grantee } => {
                ledger::Word::Revoke(messages::Revoke { studyId: study, grantee, seq: FIRST, deadline })
            }
            Self::NameGuardians { guardians } => {
                let (seq, guardians) = (study_seq, guardians);
                ledger::Word::NameGuardians(messages::NameGuardians { studyId: study, guardians, seq, deadline })
            }
            Self::Transfer { owner, custodial } => ledger::Word::Transfer(messages::TransferStudy {
                studyId: study,
                newOwner: owner,
                custodial,
                seq: study_seq,
                deadline,
            }),
        }
    }
}

/// What the words about a study came to, at a time in seconds since 1970: by its history and what that gives to each grantee. `owner` is who owns it,
/// and whether in custody, when that is not who its source defines it for; guardians serve who named them, and are then left to him.
///
/// To whomever the owner said something that is not in force, it is said that he has nothing: a rule that lets groups in must not take him for somebody to whom
/// nothing was said.
#[must_use]
pub fn words(history: &[Event], grants: &[Grant], owner: Option<(Address, bool)>, now_s: u64) -> Vec<Word> {
    let mut allowed = BTreeMap::new();
    let mut guardians = B256::ZERO;
    for event in history {
        match &event.what {
            What::Allowed {
                grantee,
                series,
                mode: Some(mode),
                not_before,
                not_after,
                purpose,
                notes,
                encryption_key,
                ..
            } => {
                let word = Word::Allow {
                    grantee: *grantee,
                    series: *series,
                    mode: mode.number(),
                    not_before: *not_before,
                    not_after: *not_after,
                    purpose: *purpose,
                    notes: *notes,
                    encryption_key: *encryption_key,
                };
                allowed.insert(*grantee, word);
            }
            What::GuardiansNamed { guardians: named, .. } => guardians = *named,
            _ => {}
        }
    }
    let of = |grant: &Grant| {
        let taken_away = (grant.seq > 0).then_some(Word::Revoke { grantee: grant.grantee });
        match grant.decision {
            Decision::Allowed => allowed.get(&grant.grantee).cloned().or(taken_away),
            Decision::Revoked | Decision::Unsaid => taken_away,
        }
    };
    let mut words: Vec<Word> = grants.iter().filter_map(of).map(|word| word.at(now_s)).collect();
    if !guardians.is_zero() && owner.is_none() {
        words.push(Word::NameGuardians { guardians });
    }
    words.extend(owner.map(|(owner, custodial)| Word::Transfer { owner, custodial }));
    words
}

/// Whether somebody was let in by the words of a study who is not let in by these: whoever that is may hold keys, and the ledger that is left is the last
/// that knows.
#[must_use]
pub fn shut_out(history: &[Event], words: &[Word]) -> bool {
    let allowed = |grantee: Address| {
        words.iter().any(|word| matches!(word, Word::Allow { grantee: again, .. } if *again == grantee))
    };
    let let_in = |event: &Event| match event.what {
        What::Allowed { grantee, .. } => Some(grantee),
        What::GlassBroken { source, .. } => Some(source),
        _ => None,
    };
    history.iter().filter_map(let_in).any(|grantee| !allowed(grantee))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::follow::{Asked, Mode};

    const STUDY: B256 = B256::repeat_byte(7);

    fn at(number: u64, what: What) -> Event {
        Event { block: number, block_hash: B256::ZERO, transaction: B256::ZERO, log_index: 0, what }
    }

    fn allowed(number: u64, grantee: u8, not_after: u64) -> Event {
        let what = What::Allowed {
            study: STUDY,
            grantee: Address::repeat_byte(grantee),
            owner: Address::ZERO,
            seq: u32::try_from(number).unwrap(),
            series: B256::repeat_byte(grantee),
            mode: Some(Mode::Preview),
            not_before: 5,
            not_after,
            purpose: 3,
            notes: B256::repeat_byte(9),
            encryption_key: B256::repeat_byte(8),
        };
        at(number, what)
    }

    fn guardians(number: u64, named: u8) -> Event {
        let (study, owner, guardians) = (STUDY, Address::ZERO, B256::repeat_byte(named));
        at(number, What::GuardiansNamed { study, owner, guardians, seq: 1 })
    }

    fn grant(grantee: u8, decision: Decision) -> Grant {
        let seq = if grantee == 5 { 0 } else { 1 };
        Grant {
            study_id: STUDY,
            grantee: Address::repeat_byte(grantee),
            owner: Address::ZERO,
            source: Address::ZERO,
            mode: Mode::Preview,
            series: B256::ZERO,
            not_before: 0,
            not_after: 0,
            purpose: 0,
            encryption_key: B256::ZERO,
            seq,
            decision,
            asked: Asked::Nothing,
            deny_reason: 0,
            emergency_until: 0,
            tombstoned: false,
            suspended: false,
            version: 1,
            manifest_image: B256::ZERO,
            manifest_root: B256::ZERO,
        }
    }

    #[test]
    fn the_last_word_to_each_is_said_again_and_what_is_over_is_taken_away() {
        let history = [allowed(1, 1, 50), allowed(2, 1, 200), allowed(3, 2, 200), allowed(4, 3, 99), guardians(5, 4)];
        let grants = [
            grant(1, Decision::Allowed),
            grant(2, Decision::Revoked),
            grant(3, Decision::Allowed),
            grant(4, Decision::Unsaid),
            grant(5, Decision::Unsaid),
        ];
        let said = words(&history, &grants, None, 100);
        let Word::Allow { grantee, not_after, purpose, notes, series, mode, .. } = &said[0] else { panic!("{said:?}") };
        assert_eq!((*grantee, *not_after, *purpose, *mode), (Address::repeat_byte(1), 200, 3, 1));
        assert_eq!((*notes, *series), (B256::repeat_byte(9), B256::repeat_byte(1)));
        let none = |grantee| Word::Revoke { grantee: Address::repeat_byte(grantee) };
        let rest = [
            none(2),
            // What was allowed is over; what was asked for was denied. Who only asked was told nothing.
            none(3),
            none(4),
            Word::NameGuardians { guardians: B256::repeat_byte(4) },
        ];
        assert_eq!(said[1..], rest);
        assert!(shut_out(&history, &said), "three and two may hold keys");
        assert!(!shut_out(&history[..2], &said), "one still may");
    }

    #[test]
    fn who_owns_it_elsewhere_gets_it_last_and_names_his_guardians_himself() {
        let owner = Address::repeat_byte(6);
        let said =
            words(&[allowed(1, 1, 200), guardians(2, 4)], &[grant(1, Decision::Allowed)], Some((owner, false)), 100);
        assert_eq!(said.len(), 2);
        assert_eq!(said[1], Word::Transfer { owner, custodial: false });
    }

    #[test]
    fn guardians_that_were_named_no_longer_are_not_named_again() {
        assert!(words(&[guardians(1, 4), guardians(2, 0)], &[], None, 100).is_empty());
    }

    #[test]
    fn a_word_is_signed_as_the_first_of_its_kind() {
        let said =
            words(&[allowed(1, 1, 200)], &[grant(1, Decision::Allowed)], Some((Address::repeat_byte(6), false)), 100);
        let ledger::Word::Allow(allowance) = said[0].to_sign(STUDY, 4, 1_000) else { panic!() };
        assert_eq!((allowance.seq, allowance.deadline, allowance.studyId), (1, 1_000, STUDY));
        let ledger::Word::Transfer(transfer) = said[1].to_sign(STUDY, 4, 1_000) else { panic!() };
        assert_eq!((transfer.seq, transfer.newOwner, transfer.custodial), (4, Address::repeat_byte(6), false));
    }
}
