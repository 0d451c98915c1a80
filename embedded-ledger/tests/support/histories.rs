//! Random histories of consent, a model that says what must come of them, and a world of real contracts in which they happen.
//!
//! Owners, sources, operators, guardians and strangers do random things, right and wrong: signed by the right key, by others and
//! for another chain, too late, replayed and out of order, while time passes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs, non_snake_case)]

use crate::chain::*;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::DynProvider;
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use contracts::messages::{self, Allow, DefineStudy, Deny, NameGuardians, RecoverStudy, Revoke};
use contracts::messages::{TombstoneStudy, TransferStudy, VetoRecovery};
use contracts::{Addresses, Allowance, Consent, Emergency, GuardianSet, Sources, Studies};
use embedded_ledger::EmbeddedLedger;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const START: u64 = 1_800_000_000;
pub const STUDIES: std::ops::RangeInclusive<u8> = 1..=3;
/// Sources 2 and 3 (for which 4 and 5 operate), a researcher and a stranger.
pub const GRANTEES: [u8; 4] = [2, 3, 6, 7];
pub const GUARDIANS: [u8; 3] = [21, 22, 23];
pub const DELAY: u32 = messages::RECOVERY_DELAY_MIN_S;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// 0 is the whole study.
    pub series: u8,
    pub mode: u8,
    pub from: u64,
    pub to: u64,
    pub purpose: u16,
}

/// `seq` and `deadline` are absolute in a step that is taken; the strategy makes them relative.
#[derive(Clone, Debug)]
pub enum Step {
    Request {
        by: u8,
        study: u8,
    },
    Allow {
        by: u8,
        study: u8,
        grantee: u8,
        signer: u8,
        seq: u32,
        deadline: u64,
        terms: Terms,
    },
    Deny {
        by: u8,
        study: u8,
        grantee: u8,
        signer: u8,
        seq: u32,
    },
    Revoke {
        by: u8,
        study: u8,
        grantee: u8,
        signer: u8,
        seq: u32,
        deadline: u64,
    },
    /// `source` is whom the sender acts for when this is signed.
    BreakGlass {
        by: u8,
        source: u8,
        study: u8,
        until: u64,
        approver: u8,
        signer: u8,
    },
    DemandApproval {
        by: u8,
        required: bool,
    },
    Transfer {
        by: u8,
        study: u8,
        signer: u8,
        seq: u32,
        deadline: u64,
        to: u8,
    },
    Tombstone {
        by: u8,
        study: u8,
        signer: u8,
        seq: u32,
    },
    NameGuardians {
        by: u8,
        study: u8,
        signer: u8,
        seq: u32,
        some: bool,
    },
    Propose {
        by: u8,
        study: u8,
        signers: u8,
        seq: u32,
        to: u8,
    },
    Veto {
        by: u8,
        study: u8,
        signer: u8,
        seq: u32,
    },
    Complete {
        by: u8,
        study: u8,
    },
    /// The sender's source names a newer version of the manifest.
    Amend {
        by: u8,
        study: u8,
        version: u32,
    },
    /// A source offers to let an account act for it.
    Offer {
        by: u8,
        operator: u8,
    },
    Accept {
        by: u8,
        source: u8,
    },
    /// A source takes the offer, or the power, back.
    Dismiss {
        by: u8,
        operator: u8,
    },
    Suspend {
        source: u8,
    },
    Reinstate {
        source: u8,
    },
    Wait {
        seconds: u64,
    },
    /// Again what somebody signed earlier, byte for byte.
    Replay {
        nth: usize,
    },
}

impl Step {
    /// The study that it is about; none when it may be about all.
    pub fn study(&self) -> Option<u8> {
        match *self {
            Self::Request { study, .. }
            | Self::Allow { study, .. }
            | Self::Deny { study, .. }
            | Self::Revoke { study, .. }
            | Self::BreakGlass { study, .. }
            | Self::Transfer { study, .. }
            | Self::Tombstone { study, .. }
            | Self::NameGuardians { study, .. }
            | Self::Propose { study, .. }
            | Self::Veto { study, .. }
            | Self::Amend { study, .. }
            | Self::Complete { study, .. } => Some(study),
            _ => None,
        }
    }
}

pub fn step() -> impl Strategy<Value = Step> {
    let (by, study, grantee) = (2u8..8, STUDIES, prop::sample::select(&GRANTEES[..]));
    // Mostly whoever owns the study (0), now and then one of the owners' keys.
    // Above 100: that key's signature for another chain.
    let signer = prop_oneof![12 => Just(0u8), 3 => 11u8..14, 1 => Just(2u8), 1 => 111u8..114];
    let ahead = prop_oneof![1 => Just(0u32), 6 => Just(1), 1 => 2u32..9];
    let modes = prop_oneof![1 => Just(0u8), 4 => 1u8..3];
    // Short, so that they end while somebody looks, or long, so that there is something to be taken away.
    let lengths = prop_oneof![0u64..120, 5 * 86_400u64..20 * 86_400];
    let terms = (prop_oneof![3 => Just(0u8), 1 => 1u8..3], modes, 0u64..40, lengths, prop_oneof![Just(0u16), Just(3)])
        .prop_map(|(series, mode, from, length, purpose)| Terms { series, mode, from, to: from + length, purpose });
    let owned = (by.clone(), study.clone(), signer.clone(), ahead.clone());
    let granted = (by.clone(), study.clone(), grantee, signer, ahead);
    let wait = prop_oneof![8 => 1u64..60, 2 => Just(u64::from(DELAY) - 30), 1 => Just(u64::from(DELAY))];
    prop_oneof![
        9 => (by.clone(), study.clone()).prop_map(|(by, study)| Step::Request { by, study }),
        24 => (granted.clone(), 0u64..90, terms).prop_map(|((by, study, grantee, signer, seq), deadline, terms)| {
            Step::Allow { by, study, grantee, signer, seq, deadline, terms }
        }),
        3 => granted.clone().prop_map(|(by, study, grantee, signer, seq)| Step::Deny { by, study, grantee, signer, seq }),
        9 => (granted, 0u64..40).prop_map(|((by, study, grantee, signer, seq), deadline)| {
            Step::Revoke { by, study, grantee, signer, seq, deadline }
        }),
        4 => (2u8..8, study.clone(), prop_oneof![0u64..100, 86_390u64..86_410], 2u8..8, 2u8..8, 0u8..3)
            .prop_map(|(by, study, until, approver, signer, kind)| Step::BreakGlass {
                by,
                source: 0,
                study,
                until,
                approver: if kind == 0 { 0 } else { approver },
                signer: if kind == 1 { approver } else { signer },
            }),
        1 => (2u8..5, any::<bool>()).prop_map(|(by, required)| Step::DemandApproval { by, required }),
        4 => (owned.clone(), 11u8..14, 0u64..40).prop_map(|((by, study, signer, seq), to, deadline)| {
            Step::Transfer { by, study, signer, seq, deadline, to }
        }),
        4 => (2u8..8, study.clone(), 0u32..4).prop_map(|(by, study, version)| Step::Amend { by, study, version }),
        2 => (2u8..5, 3u8..7).prop_map(|(by, operator)| Step::Offer { by, operator }),
        3 => (3u8..7, 2u8..4).prop_map(|(by, source)| Step::Accept { by, source }),
        2 => (2u8..4, 3u8..7).prop_map(|(by, operator)| Step::Dismiss { by, operator }),
        1 => (owned.clone(), 0u8..4).prop_map(|((by, study, signer, seq), rare)| match rare {
            0 => Step::Tombstone { by, study, signer, seq },
            _ => Step::NameGuardians { by, study, signer, seq, some: true },
        }),
        3 => (owned.clone(), prop::bool::weighted(0.9))
            .prop_map(|((by, study, signer, seq), some)| Step::NameGuardians { by, study, signer, seq, some }),
        4 => (owned.clone(), 1u8..8, 11u8..14)
            .prop_map(|((by, study, _, seq), signers, to)| Step::Propose { by, study, signers, seq, to }),
        1 => owned.prop_map(|(by, study, signer, seq)| Step::Veto { by, study, signer, seq }),
        3 => (by, study).prop_map(|(by, study)| Step::Complete { by, study }),
        1 => (2u8..4).prop_map(|source| Step::Suspend { source }),
        5 => (2u8..4).prop_map(|source| Step::Reinstate { source }),
        7 => wait.prop_map(|seconds| Step::Wait { seconds }),
        5 => any::<usize>().prop_map(|nth| Step::Replay { nth }),
    ]
}

// ---- the model -----------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug, Default)]
pub struct Study {
    pub source: u8,
    pub version: u32,
    pub owner: u8,
    pub seq: u32,
    pub dead: bool,
    pub guarded: bool,
    pub recovery: Option<(u8, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    #[default]
    Nothing,
    Open,
    Accepted,
    Denied,
}

/// What was said about one study and one grantee.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub seq: u32,
    pub requests: u32,
    pub asked: Asked,
    pub terms: Option<Terms>,
    pub revoked: bool,
}

#[derive(Debug, Default)]
pub struct Model {
    pub now: u64,
    pub studies: BTreeMap<u8, Study>,
    pub said: BTreeMap<(u8, u8), Said>,
    pub glass: BTreeMap<(u8, u8), u64>,
    pub approval: BTreeSet<u8>,
    pub suspended: BTreeSet<u8>,
    /// Who acts for which source, suspended or not.
    pub operators: BTreeMap<u8, u8>,
    /// (source, account): may begin to act for it.
    pub offers: BTreeSet<(u8, u8)>,
}

impl Model {
    pub fn acts_for(&self, account: u8) -> Option<u8> {
        self.operators.get(&account).copied().filter(|source| !self.suspended.contains(source))
    }

    pub fn living(&mut self, study: u8) -> Option<&mut Study> {
        self.studies.get_mut(&study).filter(|s| !s.dead)
    }

    /// What the owner's word needs about a study.
    pub fn owners_word(&mut self, study: u8, signer: u8, seq: u32) -> Option<&mut Study> {
        let known = self.living(study).filter(|s| s.owner == signer && seq > s.seq)?;
        known.seq = seq;
        Some(known)
    }

    /// What the owner's word needs about a grantee.
    pub fn consent(&mut self, study: u8, grantee: u8, signer: u8, seq: u32) -> Option<&mut Said> {
        self.living(study).filter(|s| s.owner == signer)?;
        Some(self.said.entry((study, grantee)).or_default()).filter(|said| seq > said.seq)
    }

    /// Takes one step; `None` when the contracts must refuse it, and then nothing changes.
    pub fn take(&mut self, step: &Step) -> Option<()> {
        let must = |holds: bool| holds.then_some(());
        let now = self.now;
        match *step {
            Step::Request { by, study } => {
                self.living(study)?;
                let grantee = self.acts_for(by).unwrap_or(by);
                let said = self.said.entry((study, grantee)).or_default();
                (said.requests, said.asked) = (said.requests + 1, Asked::Open);
            }
            Step::Allow { study, grantee, signer, seq, deadline, terms, .. } => {
                must(now <= deadline && now <= terms.to && terms.mode > 0)?;
                let said = self.consent(study, grantee, signer, seq)?;
                let asked = if said.asked == Asked::Open { Asked::Accepted } else { Asked::Nothing };
                (said.seq, said.asked, said.terms, said.revoked) = (seq, asked, Some(terms), false);
            }
            Step::Deny { study, grantee, signer, seq, .. } => {
                let said = self.consent(study, grantee, signer, seq).filter(|s| s.asked == Asked::Open)?;
                (said.seq, said.asked) = (seq, Asked::Denied);
            }
            Step::Revoke { study, grantee, signer, seq, deadline, .. } => {
                must(now <= deadline)?;
                let said = self.consent(study, grantee, signer, seq)?;
                let asked = if said.asked == Asked::Open { Asked::Open } else { Asked::Nothing };
                (said.seq, said.asked, said.terms, said.revoked) = (seq, asked, None, true);
            }
            Step::BreakGlass { by, source: signed_for, study, until, approver, signer } => {
                let source = self.acts_for(by)?;
                self.living(study)?;
                let opened = self.glass.get(&(study, source)).copied().unwrap_or_default();
                must(until > now && until <= now + messages::EMERGENCY_S_MAX && until > opened)?;
                let approved = approver != by
                    && signer == approver
                    && source == signed_for
                    && self.acts_for(approver) == Some(source);
                must(if approver == 0 { !self.approval.contains(&source) } else { approved })?;
                self.glass.insert((study, source), until);
            }
            Step::DemandApproval { by, required } => {
                must(by < 4 && !self.suspended.contains(&by))?;
                if required {
                    self.approval.insert(by)
                } else {
                    self.approval.remove(&by)
                };
            }
            Step::Transfer { study, signer, seq, deadline, to, .. } => {
                must(now <= deadline)?;
                let known = self.owners_word(study, signer, seq)?;
                (known.owner, known.guarded, known.recovery) = (to, false, None);
            }
            Step::Tombstone { study, signer, seq, .. } => self.owners_word(study, signer, seq)?.dead = true,
            Step::NameGuardians { study, signer, seq, some, .. } => {
                let known = self.owners_word(study, signer, seq)?;
                (known.guarded, known.recovery) = (some, None);
            }
            Step::Propose { study, signers, seq, to, .. } => {
                let known = self.living(study)?;
                must(known.guarded && seq == known.seq + 1 && signers.count_ones() >= 2)?;
                (known.seq, known.recovery) = (seq, Some((to, now + u64::from(DELAY))));
            }
            Step::Veto { study, signer, seq, .. } => {
                must(self.living(study)?.recovery.is_some())?;
                self.owners_word(study, signer, seq)?.recovery = None;
            }
            Step::Complete { study, .. } => {
                let known = self.living(study)?;
                let (to, ready_at) = known.recovery?;
                must(now >= ready_at)?;
                (known.owner, known.recovery, known.seq) = (to, None, known.seq + 1);
            }
            Step::Amend { by, study, version } => {
                let source = self.acts_for(by);
                let known = self.living(study)?;
                must(Some(known.source) == source && version > known.version)?;
                known.version = version;
            }
            Step::Offer { by, operator } => {
                must(by < 4)?;
                self.offers.insert((by, operator));
            }
            Step::Accept { by, source } => {
                must(self.offers.contains(&(source, by)) && !self.operators.contains_key(&by))?;
                must(by > 3 || by == source)?;
                self.offers.remove(&(source, by));
                self.operators.insert(by, source);
            }
            Step::Dismiss { by, operator } => {
                let acts = self.operators.get(&operator) == Some(&by);
                must(self.offers.remove(&(by, operator)) || acts)?;
                if acts {
                    self.operators.remove(&operator);
                }
            }
            Step::Suspend { source } => must(self.suspended.insert(source))?,
            Step::Reinstate { source } => must(self.suspended.remove(&source))?,
            Step::Wait { seconds } => self.now += seconds,
            Step::Replay { .. } => unreachable!("resolved before"),
        }
        Some(())
    }

    /// (mode, emergency), as the contract's `isAllowed`.
    pub fn allowed(&self, study: u8, series: u8, grantee: u8, purpose: u16) -> (u8, bool) {
        let (now, none) = (self.now, Said::default());
        if self.studies[&study].dead || self.suspended.contains(&grantee) {
            return (0, false);
        }
        let fits = |t: &Terms| (t.series == 0 || t.series == series) && (t.purpose == 0 || t.purpose == purpose);
        let terms = self.said.get(&(study, grantee)).unwrap_or(&none).terms;
        let mode = terms.filter(|t| fits(t) && t.from <= now && now <= t.to).map_or(0, |t| t.mode);
        let opened = self.glass.get(&(study, grantee)).is_some_and(|until| now <= *until);
        if mode < 2 && opened { (2, true) } else { (mode, false) }
    }

    /// The contract's `trace`, as its number.
    pub fn trace(&self, study: u8, grantee: u8) -> u8 {
        let Some(said) = self.said.get(&(study, grantee)).filter(|s| s.seq > 0 || s.requests > 0) else { return 0 };
        match (said.terms, said.asked) {
            _ if self.studies[&study].dead => 5,
            (Some(t), _) if t.from <= self.now && self.now <= t.to => 4,
            (Some(t), _) if self.now < t.from => 3,
            (_, Asked::Open) => 1,
            (_, Asked::Denied) => 2,
            _ if said.revoked => 5,
            _ => 0,
        }
    }

    /// Makes relative numbers absolute and "the owner" a key.
    pub fn resolve(&self, step: &Step, history: &[Step]) -> Step {
        let mut step = match step {
            Step::Replay { nth } if !history.is_empty() => return history[nth % history.len()].clone(),
            Step::Replay { .. } => Step::Wait { seconds: 1 },
            other => other.clone(),
        };
        let now = self.now;
        match &mut step {
            Step::Allow { study, grantee, seq, .. }
            | Step::Deny { study, grantee, seq, .. }
            | Step::Revoke { study, grantee, seq, .. } => {
                *seq += self.said.get(&(*study, *grantee)).map_or(0, |said| said.seq);
            }
            Step::Transfer { study, seq, .. }
            | Step::Tombstone { study, seq, .. }
            | Step::NameGuardians { study, seq, .. }
            | Step::Propose { study, seq, .. }
            | Step::Veto { study, seq, .. } => *seq += self.studies[study].seq,
            Step::Amend { study, version, .. } => *version += self.studies[study].version,
            Step::BreakGlass { by, source, until, .. } => {
                (*source, *until) = (self.operators.get(by).copied().unwrap_or(3), *until + now);
            }
            _ => {}
        }
        match &mut step {
            Step::Allow { study, signer, .. }
            | Step::Deny { study, signer, .. }
            | Step::Revoke { study, signer, .. }
            | Step::Transfer { study, signer, .. }
            | Step::Tombstone { study, signer, .. }
            | Step::NameGuardians { study, signer, .. }
            | Step::Veto { study, signer, .. }
                if *signer == 0 =>
            {
                *signer = self.studies[study].owner;
            }
            _ => {}
        }
        match &mut step {
            Step::Allow { deadline, terms, .. } => {
                *deadline += now;
                (terms.from, terms.to) = (terms.from + now - 10, terms.to + now - 10);
            }
            Step::Revoke { deadline, .. } | Step::Transfer { deadline, .. } => *deadline += now - 1,
            _ => {}
        }
        step
    }
}

// ---- the ledger ----------------------------------------------------------------------------------------------------------

pub fn study(n: u8) -> B256 {
    keccak256([n])
}

/// Salt of every study, as far as a test knows more of them than the ledger does.
pub const SALT: B256 = B256::repeat_byte(9);

pub fn series_uid(n: u8) -> String {
    format!("1.2.826.0.1.999.{n}")
}

pub fn series(n: u8) -> B256 {
    if n == 0 { B256::ZERO } else { messages::salted(SALT, series_uid(n).as_bytes()) }
}

pub fn address(n: u8) -> Address {
    if n == 0 { Address::ZERO } else { key(n).address() }
}

/// The image that carries a version of a study's manifest.
pub fn manifest(n: u8, version: u32) -> B256 {
    keccak256([n, 0, u8::try_from(version).unwrap_or(u8::MAX)])
}

pub fn guardian_set() -> GuardianSet {
    messages::guardian_set(&GUARDIANS.map(address), 2, DELAY, keccak256("salt")).unwrap()
}

pub struct World {
    pub provider: DynProvider,
    pub at: Addresses,
    pub accounts: BTreeMap<u8, Account>,
    pub clock: Arc<AtomicU64>,
    pub ledger: EmbeddedLedger,
    /// OpenPGP keys of grantees; random bytes where none is given.
    pub certificates: BTreeMap<u8, Bytes>,
}

impl World {
    /// Two sources at work, two operators of the second, three studies of two owners.
    pub async fn new(path: &Path, start: u64, certificates: BTreeMap<u8, Bytes>, model: &mut Model) -> Self {
        let clock = Arc::new(AtomicU64::new(start));
        let mut config = config(path);
        config.clock = Some(clock.clone());
        let ledger = EmbeddedLedger::open(config).unwrap();
        let provider = provider(&ledger);
        let mut accounts: BTreeMap<u8, Account> = (1..8).map(|seed| (seed, Account::new(seed))).collect();
        let at = deploy(&provider, accounts.get_mut(&ADMIN).unwrap()).await;
        let mut world = Self { provider, at, accounts, clock, ledger, certificates };
        for source in [2, 3] {
            let call = Sources::admitCall { source: address(source) };
            assert!(world.send(ADMIN, at.sources, call).await);
            let call = Sources::defineSourceCall { publicKey: public_key(&key(source)), endpoint: "https://x".into() };
            assert!(world.send(source, at.sources, call).await);
        }
        for operator in [4, 5] {
            let call = Sources::authorizeOperatorCall { operator: address(operator) };
            assert!(world.send(3, at.sources, call).await);
            assert!(world.send(operator, at.sources, Sources::acceptOperatorCall { source: address(3) }).await);
        }
        model.now = start;
        model.operators.extend([(2, 2), (3, 3), (4, 3), (5, 3)]);
        for (n, owner, source) in [(1, 11, 2), (2, 12, 2), (3, 11, 3)] {
            world.define(n, owner, source).await;
            model.studies.insert(n, Study { owner, source, ..Study::default() });
        }
        world
    }

    pub async fn define(&mut self, n: u8, owner: u8, source: u8) {
        let (studyId, custodial, derivedFrom, deadline) = (study(n), false, B256::ZERO, u64::MAX);
        let (signer, owner, by) = (owner, address(owner), source);
        let message = DefineStudy { studyId, owner, source: address(by), custodial, derivedFrom, deadline };
        let ownerSignature = self.sign(signer, &self.studies(), &message);
        let call = Studies::defineStudyCall { studyId, owner, custodial, derivedFrom, deadline, ownerSignature };
        assert!(self.send(by, self.at.studies, call).await);
    }

    pub async fn send(&mut self, by: u8, to: Address, call: impl SolCall) -> bool {
        self.accounts.get_mut(&by).unwrap().send(&self.provider, to, call).await.status()
    }

    pub fn studies(&self) -> Eip712Domain {
        messages::studies_domain(CHAIN_ID, self.at.studies)
    }

    /// The OpenPGP key of a grantee.
    pub fn certificate(&self, grantee: u8) -> Bytes {
        self.certificates.get(&grantee).cloned().unwrap_or_else(|| vec![grantee; 64].into())
    }

    pub fn sign(&self, signer: u8, domain: &Eip712Domain, message: &impl SolStruct) -> Bytes {
        if signer > 100 {
            let elsewhere = Eip712Domain { chain_id: Some(U256::from(CHAIN_ID + 1)), ..domain.clone() };
            return self.sign(signer - 100, &elsewhere, message);
        }
        key(signer).sign_hash_sync(&message.eip712_signing_hash(domain)).unwrap().as_bytes().to_vec().into()
    }

    pub fn sign_consent(&self, signer: u8, message: &impl SolStruct) -> Bytes {
        self.sign(signer, &messages::consent_domain(CHAIN_ID, self.at.consent), message)
    }

    /// Takes one step; whether the contracts accepted it.
    pub async fn take(&mut self, step: &Step) -> bool {
        let (Addresses { sources, studies, consent, .. }, deadline) = (self.at, u64::MAX);
        match *step {
            Step::Request { by, study: n } => {
                let (studyId, encryptionKey) = (study(n), self.certificate(by));
                let call = Consent::requestCall { studyId, mode: 2, purpose: 3, notes: B256::ZERO, encryptionKey };
                self.send(by, consent, call).await
            }
            Step::Allow { by, study: n, grantee, signer, seq, deadline, terms } => {
                let allowance = Allowance {
                    studyId: study(n),
                    grantee: address(grantee),
                    series: series(terms.series),
                    mode: terms.mode,
                    notBefore: terms.from,
                    notAfter: terms.to,
                    purpose: terms.purpose,
                    notes: B256::ZERO,
                    encryptionKey: keccak256(self.certificate(grantee)),
                    seq,
                    deadline,
                };
                let ownerSignature = self.sign_consent(signer, &Allow::from(&allowance));
                self.send(by, consent, Consent::allowCall { allowance, ownerSignature }).await
            }
            Step::Deny { by, study: n, grantee, signer, seq } => {
                let (studyId, grantee, reason, notes) = (study(n), address(grantee), 4, B256::ZERO);
                let message = Deny { studyId, grantee, reason, notes, seq, deadline };
                let ownerSignature = self.sign_consent(signer, &message);
                let call = Consent::denyCall { studyId, grantee, reason, notes, seq, deadline, ownerSignature };
                self.send(by, consent, call).await
            }
            Step::Revoke { by, study: n, grantee, signer, seq, deadline } => {
                let (studyId, grantee) = (study(n), address(grantee));
                let ownerSignature = self.sign_consent(signer, &Revoke { studyId, grantee, seq, deadline });
                self.send(by, consent, Consent::revokeCall { studyId, grantee, seq, deadline, ownerSignature }).await
            }
            Step::BreakGlass { by, source, study: n, until, approver, signer } => {
                let approver = address(approver);
                let emergency =
                    Emergency { studyId: study(n), reason: 1, notes: B256::ZERO, until, approver, deadline };
                let message = messages::approve_emergency(&emergency, address(source), address(by));
                let approverSignature = self.sign_consent(signer, &message);
                self.send(by, consent, Consent::breakGlassCall { emergency, approverSignature }).await
            }
            Step::DemandApproval { by, required } => {
                self.send(by, consent, Consent::setEmergencyApprovalCall { required }).await
            }
            Step::Transfer { by, study: n, signer, seq, deadline, to } => {
                let (studyId, newOwner, custodial) = (study(n), address(to), false);
                let message = TransferStudy { studyId, newOwner, custodial, seq, deadline };
                let ownerSignature = self.sign(signer, &self.studies(), &message);
                let call = Studies::transferCall { studyId, newOwner, custodial, seq, deadline, ownerSignature };
                self.send(by, studies, call).await
            }
            Step::Tombstone { by, study: n, signer, seq } => {
                let studyId = study(n);
                let ownerSignature = self.sign(signer, &self.studies(), &TombstoneStudy { studyId, seq, deadline });
                self.send(by, studies, Studies::tombstoneCall { studyId, seq, deadline, ownerSignature }).await
            }
            Step::NameGuardians { by, study: n, signer, seq, some } => {
                let studyId = study(n);
                let named = messages::guardian_commitment(studyId, &guardian_set());
                let guardians = if some { named } else { B256::ZERO };
                let message = NameGuardians { studyId, guardians, seq, deadline };
                let ownerSignature = self.sign(signer, &self.studies(), &message);
                let call = Studies::nameGuardiansCall { studyId, guardians, seq, deadline, ownerSignature };
                self.send(by, studies, call).await
            }
            Step::Propose { by, study: n, signers, seq, to } => {
                let (studyId, newOwner, custodial, set) = (study(n), address(to), false, guardian_set());
                let message = RecoverStudy { studyId, newOwner, custodial, seq, deadline };
                let signature = |guardian: &Address| {
                    let index = GUARDIANS.iter().position(|g| address(*g) == *guardian).unwrap();
                    let agrees = signers >> index & 1 == 1;
                    if agrees { self.sign(GUARDIANS[index], &self.studies(), &message) } else { Bytes::new() }
                };
                let signatures = set.guardians.iter().map(signature).collect();
                let call = Studies::proposeRecoveryCall { studyId, newOwner, custodial, deadline, set, signatures };
                self.send(by, studies, call).await
            }
            Step::Veto { by, study: n, signer, seq } => {
                let studyId = study(n);
                let ownerSignature = self.sign(signer, &self.studies(), &VetoRecovery { studyId, seq, deadline });
                self.send(by, studies, Studies::vetoRecoveryCall { studyId, seq, deadline, ownerSignature }).await
            }
            Step::Complete { by, study: n } => {
                self.send(by, studies, Studies::completeRecoveryCall { studyId: study(n) }).await
            }
            Step::Amend { by, study: n, version } => {
                let (manifestImage, manifestRoot) = (manifest(n, version), keccak256(version.to_be_bytes()));
                let call = Studies::amendCall { studyId: study(n), version, manifestImage, manifestRoot };
                self.send(by, studies, call).await
            }
            Step::Offer { by, operator } => {
                self.send(by, sources, Sources::authorizeOperatorCall { operator: address(operator) }).await
            }
            Step::Accept { by, source } => {
                self.send(by, sources, Sources::acceptOperatorCall { source: address(source) }).await
            }
            Step::Dismiss { by, operator } => {
                self.send(by, sources, Sources::revokeOperatorCall { operator: address(operator) }).await
            }
            Step::Suspend { source } => {
                self.send(ADMIN, sources, Sources::suspendCall { source: address(source) }).await
            }
            Step::Reinstate { source } => {
                self.send(ADMIN, sources, Sources::reinstateCall { source: address(source) }).await
            }
            Step::Wait { seconds } => {
                self.clock.fetch_add(seconds, Ordering::Relaxed);
                // Views are answered as of the newest block: there must be one of this time.
                self.send(ADMIN, sources, Sources::adminCall {}).await
            }
            Step::Replay { .. } => unreachable!("resolved before"),
        }
    }

    /// Everybody sees on the ledger what the model says, of these studies.
    pub async fn compare(&self, model: &Model, studies: std::ops::RangeInclusive<u8>, step: &Step) {
        let consent = self.at.consent;
        for (n, grantee) in studies.clone().flat_map(|n| GRANTEES.map(|g| (n, g))) {
            for (part, purpose) in [(0, 0), (1, 3)] {
                let (studyId, grantee_, series) = (study(n), address(grantee), series(part));
                let call = Consent::isAllowedCall { studyId, series, grantee: grantee_, purpose };
                let found = view(&self.provider, consent, call).await.unwrap();
                let expected = model.allowed(n, part, grantee, purpose);
                assert_eq!(
                    (found.mode, found.emergency),
                    expected,
                    "study {n}, grantee {grantee}, {step:?}\n{model:#?}"
                );
            }
            let call = Consent::traceCall { studyId: study(n), grantee: address(grantee) };
            let found = view(&self.provider, consent, call).await.unwrap();
            assert_eq!(found.state, model.trace(n, grantee), "study {n}, grantee {grantee}, {step:?}\n{model:#?}");
            assert_eq!(found.seq, model.said.get(&(n, grantee)).map_or(0, |said| said.seq));
        }
        for (n, known) in model.studies.range(studies) {
            let studyId = study(*n);
            let found = view(&self.provider, self.at.studies, Studies::getStudyCall { studyId }).await.unwrap();
            assert_eq!((found.owner, found.seq, found.tombstoned), (address(known.owner), known.seq, known.dead));
            let image = if known.version == 0 { B256::ZERO } else { manifest(*n, known.version) };
            assert_eq!((found.version, found.manifestImage), (known.version, image), "{step:?}");
            let found = view(&self.provider, self.at.studies, Studies::recoveryOfCall { studyId }).await.unwrap();
            let named = messages::guardian_commitment(studyId, &guardian_set());
            let guardians = view(&self.provider, self.at.studies, Studies::guardiansOfCall { studyId }).await.unwrap();
            assert_eq!(guardians, if known.guarded { named } else { B256::ZERO });
            let (to, ready_at) = known.recovery.filter(|_| !known.dead).unwrap_or_default();
            assert_eq!((found.newOwner, found.readyAt), (address(to), ready_at));
        }
        for account in 2..8 {
            let call = Sources::sourceOfCall { operator: address(account) };
            let found = view(&self.provider, self.at.sources, call).await.unwrap();
            assert_eq!(found, address(model.acts_for(account).unwrap_or(0)), "account {account}, {step:?}");
        }
    }
}
