//! Keys by way of the ledger, for sites that cannot reach each other: a grantee asks there, the source answers there.
//!
//! What travels is a [`crate::payload::envelope`]: it opens with the key that the owner signed for and with one that the grantee made for
//! this answer and destroys once it has opened it. So what stays on the ledger opens to nobody later. Must not know how the
//! chain is followed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, keccak256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::server::{Desk, now_s};
use super::task::Trouble;
use super::{ExchangeError, KeyDelivery};
use crate::follow::{Consents, Question};
use crate::keyring::Keyring;
use crate::ledger::{Delivery, Ledger, LedgerSlot};

/// Wait for the ledger to be connected, and for questions that could not be answered to be looked at again.
const RETRY: Duration = Duration::from_secs(30);
/// Refused questions that are remembered, so that each is logged once.
const REFUSED_MAX: usize = 4096;
/// Answers about one study to one grantee within [`ANSWERS_WINDOW`].
const ANSWERS_MAX: u32 = 12;
const ANSWERS_WINDOW: Duration = Duration::from_secs(3600);

/// How long an answer may be opened.
#[derive(Debug, Clone, Copy)]
pub struct Answering {
    /// Seconds, at most [`contracts::messages::ENVELOPE_S_MAX`].
    pub valid_s: u64,
}

/// Answers whoever asks on the ledger for keys of this site's studies, until `stop`.
pub async fn answer(desk: Desk, consents: Consents, slot: LedgerSlot, how: Answering, stop: CancellationToken) {
    let mut changed = consents.changed();
    let mut clerk = Clerk { desk, consents, how, refused: HashSet::new(), answered: HashMap::new() };
    loop {
        changed.borrow_and_update();
        if let Some(ledger) = slot.get()
            && let Err(error) = clerk.answer_all(ledger).await
        {
            tracing::warn!(error = %crate::chain_of(&error), "questions for keys on the ledger cannot be answered yet");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            alive = changed.changed() => if alive.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct Clerk {
    desk: Desk,
    consents: Consents,
    how: Answering,
    /// Questions that were refused: study, grantee and key.
    refused: HashSet<(B256, Address, B256)>,
    /// How many answers about a study a grantee got since when.
    answered: HashMap<(B256, Address), (Instant, u32)>,
}

impl Clerk {
    async fn answer_all(&mut self, ledger: &Ledger) -> Result<(), Trouble> {
        let me = ledger.source().await.map_err(|e| ExchangeError::Away(crate::chain_of(&e)))?;
        for question in self.consents.questions_to(me)? {
            let (desk, asked) = (self.desk.clone(), question.clone());
            let made = tokio::task::spawn_blocking(move || desk.envelope(&asked, now_s())).await;
            match made.map_err(|e| ExchangeError::Away(e.to_string()))? {
                Ok(envelope) if self.may_answer(&question) => self.deliver(ledger, &question, envelope).await,
                Ok(_) => self.refuse(&question, "it has asked too often within the hour"),
                Err(why) => self.refuse(&question, &why),
            }
        }
        Ok(())
    }

    /// An answer costs the source more than the question costs the grantee.
    fn may_answer(&mut self, question: &Question) -> bool {
        let now = Instant::now();
        self.answered.retain(|_, (since, _)| now.duration_since(*since) < ANSWERS_WINDOW);
        let (_, count) = self.answered.entry((question.study_id, question.grantee)).or_insert((now, 0));
        *count += 1;
        *count <= ANSWERS_MAX
    }

    async fn deliver(&self, ledger: &Ledger, question: &Question, envelope: Vec<u8>) {
        let (study, grantee) = (question.study_id, question.grantee);
        let until = ledger.now_s().saturating_add(self.how.valid_s);
        let delivery = Delivery { study, grantee, one_time_key: question.key_hash(), until, envelope: envelope.into() };
        match ledger.deliver_keys(delivery).await {
            Ok(_) => tracing::info!(study_id = %study, %grantee, "delivered the keys of a study over the ledger"),
            // What was granted may be over since; the others are not to wait for that.
            Err(error) => {
                let error = crate::chain_of(&error);
                tracing::warn!(study_id = %study, %grantee, error, "the keys of a study did not go over the ledger");
            }
        }
    }

    /// Once a question, since it stays open.
    fn refuse(&mut self, question: &Question, why: &str) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        let (study_id, grantee) = (question.study_id, question.grantee);
        if self.refused.insert((study_id, grantee, question.key_hash())) {
            tracing::info!(%study_id, %grantee, why, "refused the keys of a study that were asked for on the ledger");
        }
    }
}

/// What the ledger holds for a grantee who asked: the delivery, or the reason why there is none yet, having asked if nobody had.
pub(super) async fn collect(
    study_id: B256,
    grantee: Address,
    consents: &Consents,
    keyring: &Keyring,
    ledger: &Ledger,
) -> Result<KeyDelivery, Trouble> {
    let one_time = keyring.one_time_key(study_id)?;
    let hash = keccak256(&one_time);
    if let Some(envelope) = consents.envelope(study_id, grantee)?.filter(|envelope| envelope.one_time_key == hash) {
        if envelope.until < now_s() {
            keyring.forget_one_time_key(study_id)?;
            return Err(ExchangeError::Lapsed.into());
        }
        let opened = keyring.open_envelope(study_id, &envelope.bytes)?;
        return Ok(serde_json::from_slice(&opened).map_err(|_| ExchangeError::Disagrees("not the agreed form"))?);
    }
    let open = consents.question(study_id, grantee)?;
    if open.is_none_or(|question| question.key_hash() != hash) {
        let asked = ledger.ask_keys(study_id, Bytes::from(one_time)).await;
        asked.map_err(|e| ExchangeError::Away(crate::chain_of(&e)))?;
    }
    Err(ExchangeError::Asked.into())
}
