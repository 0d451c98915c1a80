//! Puts the head of the log onto the ledger, as often as configured and when the site stops.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::B256;
use tokio_util::sync::CancellationToken;

use super::Audit;
use super::verify::Anchor;
use crate::ledger::{Ledger, LedgerError, LedgerKind};

/// What a last anchor may take when the site stops.
const LAST_MAX: Duration = Duration::from_secs(5);

/// Anchors until `stop`, every `interval` when something was recorded since, and on an embedded ledger once more at the end: there it
/// waits for nobody else.
pub async fn run(audit: Audit, ledger: Ledger, interval: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(interval) => once(&audit, &ledger).await,
        }
    }
    if ledger.kind() == LedgerKind::Embedded {
        let _ = tokio::time::timeout(LAST_MAX, once(&audit, &ledger)).await;
    }
}

async fn once(audit: &Audit, ledger: &Ledger) {
    let head = audit.heads().borrow().1;
    let covered = audit.0.shared.status().anchored.unwrap_or(0);
    if head.records == 0 || covered == head.records {
        return;
    }
    let anchored = ledger.anchor(B256::from(head.log), B256::from(head.digest), head.records).await;
    let mut status = audit.0.shared.status();
    match anchored {
        Ok(()) => {
            status.anchored = Some(head.records);
            status.anchored_s = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
            status.anchor_trouble = None;
            tracing::info!(records = head.records, "the audit log is anchored on the ledger");
        }
        Err(error) => {
            let words = crate::chain_of(&error);
            tracing::error!(error = words, "the audit log cannot be anchored on the ledger");
            status.anchor_trouble = Some(words);
        }
    }
}

/// Every anchor that the ledger holds of this source.
///
/// # Errors
/// [`LedgerError`].
pub async fn all(ledger: &Ledger) -> Result<Vec<Anchor>, LedgerError> {
    let anchors = ledger.anchors().await?;
    let plain = |anchor: crate::ledger::AnchorOnChain| Anchor {
        log: anchor.log,
        head: anchor.head,
        records: anchor.records,
        time_s: anchor.time_s,
    };
    Ok(anchors.into_iter().map(plain).collect())
}
