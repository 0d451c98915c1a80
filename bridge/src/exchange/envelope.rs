//! Keys by way of the ledger, for sites that cannot reach each other: a grantee asks there, the source answers there.
//!
//! What travels is a [`crate::payload::envelope`]: it opens with the key that the owner signed for and with one that the grantee made for
//! this answer and destroys once it has opened it. So what stays on the ledger opens to nobody later. Must not know how the
//! chain is followed.

use std::collections::HashSet;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, keccak256};
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

/// How long an answer may be opened.
#[derive(Debug, Clone, Copy)]
pub struct Answering {
    /// Seconds, at most [`contracts::messages::ENVELOPE_S_MAX`].
    pub valid_s: u64,
}

/// Answers whoever asks on the ledger for keys of this site's studies, until `stop`.
pub async fn answer(desk: Desk, consents: Consents, slot: LedgerSlot, how: Answering, stop: CancellationToken) {
    let mut changed = consents.changed();
    let mut refused = HashSet::new();
    loop {
        changed.borrow_and_update();
        if let Some(ledger) = slot.get()
            && let Err(error) = answer_all(&desk, &consents, ledger, how, &mut refused).await
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

async fn answer_all(
    desk: &Desk,
    consents: &Consents,
    ledger: &Ledger,
    how: Answering,
    refused: &mut HashSet<(B256, Address, B256)>,
) -> Result<(), Trouble> {
    let me = ledger.source().await.map_err(|e| ExchangeError::Away(crate::chain_of(&e)))?;
    for question in consents.questions_to(me)? {
        let named = (question.study_id, question.grantee, question.key_hash());
        let (desk, asked) = (desk.clone(), question.clone());
        let made = tokio::task::spawn_blocking(move || desk.envelope(&asked, now_s())).await;
        match made.map_err(|e| ExchangeError::Away(e.to_string()))? {
            Ok(envelope) => deliver(ledger, &question, envelope, how).await?,
            Err(why) => {
                if refused.len() >= REFUSED_MAX {
                    refused.clear();
                }
                if refused.insert(named) {
                    let (study_id, grantee) = (question.study_id, question.grantee);
                    tracing::info!(%study_id, %grantee, why, "refused the keys of a study that were asked for on the ledger");
                }
            }
        }
    }
    Ok(())
}

async fn deliver(ledger: &Ledger, question: &Question, envelope: Vec<u8>, how: Answering) -> Result<(), ExchangeError> {
    let (study, grantee) = (question.study_id, question.grantee);
    let until = ledger.now_s().saturating_add(how.valid_s);
    let delivery = Delivery { study, grantee, one_time_key: question.key_hash(), until, envelope: envelope.into() };
    // Refused: what was granted is over since, and the ledger will say so.
    ledger.deliver_keys(delivery).await.map_err(|e| ExchangeError::Away(crate::chain_of(&e)))?;
    tracing::info!(study_id = %study, %grantee, "delivered the keys of a study over the ledger");
    Ok(())
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
