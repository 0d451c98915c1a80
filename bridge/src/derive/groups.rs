//! Lets the groups of rules in, and hands studies over to owners elsewhere.
//!
//! Each step looks at what the ledger says first, so it can be stopped anywhere and repeated. Nothing is said while the ledger is
//! not followed, nothing to whom the owner has said something before, nothing where the owner's key is not here, and nothing
//! about a study of which any object was not derived here.

use std::sync::PoisonError;

use alloy::primitives::{B256, Bytes, hex};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use contracts::messages;

use super::{DeriveError, Deriver, Grantee, Owner, Parts, Rule};
use crate::audit::{Decided, Event, Party};
use crate::ledger::{Ledger, Word};

/// How long a word signed with a key in custody is good.
const CUSTODY_S: u64 = 3600;

/// Whether anything is left to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    All,
    /// The ledger, a grantee's key or the study's definition is waited for.
    NotAll,
}

impl Deriver {
    /// Says what is left to say about derived studies; true when something is waited for.
    pub(super) async fn let_groups_in(&self) -> bool {
        let left = self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if left.is_empty() {
            return false;
        }
        let mut waits = false;
        for id in left {
            match self.let_in(id).await {
                Ok(Said::All) => {
                    self.0.unsaid.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                }
                Ok(Said::NotAll) => waits = true,
                Err(error) => {
                    tracing::warn!(error = %crate::chain_of(&error), "groups are not let in to a derived study yet");
                    waits = true;
                }
            }
        }
        waits
    }

    /// Lets those in whom the rule of a derivation names. Nothing but a derivation leads here.
    async fn let_in(&self, derivation: i64) -> Result<Said, DeriveError> {
        let Parts { archive, consents, keyring, ledger, derived, .. } = &self.0.parts;
        let Some(known) = derived.by_id(derivation)?.filter(|known| !known.is_ended()) else { return Ok(Said::All) };
        let (Some(study), Some(rule)) = (known.derived(), self.rule(known.rule())) else { return Ok(Said::All) };
        let (Some(ledger), Some(publication)) = (ledger.get(), archive.publication(study)?) else {
            return Ok(Said::NotAll);
        };
        let id = publication.study_id;
        let current = consents.is_current(ledger.now_s());
        let Some(info) = consents.study(id)?.filter(|_| current) else { return Ok(Said::NotAll) };
        if info.tombstoned {
            return Ok(Said::All);
        }
        // What was said on a ledger before comes first: who was shut out there stays out.
        if self.0.parts.words.wait(id)? {
            return Ok(Said::NotAll);
        }
        let Some(keys) = keyring.study(study)? else { return Ok(Said::All) };
        // Whose key is elsewhere decides himself.
        let Some(key) = keyring.custody_key(keys.owner_index, info.owner)? else { return Ok(Said::All) };
        if let Some(stranger) = super::stranger(archive, derived, &known)? {
            return Err(DeriveError::Unfit(format!("object {stranger} of a derived study was not derived here")));
        }
        let mut said = Said::All;
        for grantee in rule.rule.grantees() {
            if self.let_one_in(ledger, id, &key, grantee, &rule.rule).await? == Said::NotAll {
                said = Said::NotAll;
            }
        }
        if let Owner::Elsewhere(account) = known.owner()
            && account != info.owner
        {
            hand_over(ledger, id, &key, account).await?;
            self.record_word(&rule.rule, Decided::Transfer, id, vec![("owner", account.to_string())]);
            return Ok(Said::All);
        }
        Ok(said)
    }

    async fn let_one_in(
        &self,
        ledger: &Ledger,
        study: B256,
        key: &PrivateKeySigner,
        grantee: &Grantee,
        rule: &Rule,
    ) -> Result<Said, DeriveError> {
        let before = ledger.consent_of(study, grantee.account).await?;
        if before.seq != 0 {
            return Ok(Said::All);
        }
        let announced = self.0.parts.consents.source(grantee.account)?.map(|source| source.encryption_key);
        let asked = Some(before.requestedKey).filter(|key| !key.is_zero());
        let Some(encryption_key) = asked.or(announced.filter(|key| !key.is_zero())) else {
            tracing::debug!(grantee = %grantee.account, "is let in when it has announced an OpenPGP key");
            return Ok(Said::NotAll);
        };
        let now_s = ledger.now_s();
        let word = grantee.first_word(study, encryption_key, now_s, ledger.ledger_s().saturating_add(CUSTODY_S));
        say(ledger, &Word::Allow(word), key).await?;
        self.record_word(rule, Decided::Allow, study, vec![("grantee", grantee.account.to_string())]);
        tracing::info!(%study, grantee = %grantee.account, rule = rule.name(), "a group was let in to a derived study");
        Ok(Said::All)
    }

    /// What a rule said by itself in a study's owner's name.
    fn record_word(&self, rule: &Rule, what: Decided, study: B256, details: Vec<(&'static str, String)>) {
        let by = Party::named(&format!("rule {}", rule.name()));
        self.0.parts.audit.record(Event::decided(&by, what, &hex::encode(study), details, None));
    }
}

async fn hand_over(
    ledger: &Ledger,
    study: B256,
    key: &PrivateKeySigner,
    owner: alloy::primitives::Address,
) -> Result<(), DeriveError> {
    let seq = ledger.next_study_seq(study).await?;
    let deadline = ledger.ledger_s().saturating_add(CUSTODY_S);
    let word = messages::TransferStudy { studyId: study, newOwner: owner, custodial: false, seq, deadline };
    say(ledger, &Word::Transfer(word), key).await?;
    tracing::info!(%study, %owner, "a derived study was handed over to its owner");
    Ok(())
}

async fn say(ledger: &Ledger, word: &Word, key: &PrivateKeySigner) -> Result<(), DeriveError> {
    let signature = key.sign_hash_sync(&ledger.digest(word))?;
    ledger.say(word, Bytes::copy_from_slice(&signature.as_bytes())).await?;
    Ok(())
}
