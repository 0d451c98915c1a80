//! The site itself: who calls, how it is, whether it lives, and the document that describes all this.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::caller::Known;
use super::model::{Backlog, Health, LedgerStatus, Me, Status};
use super::problem::Problem;
use super::{Api, blocking, now_s};
use crate::access::Right;
use crate::tokens::principal_text;

/// Studies counted in the backlog.
const BACKLOG_MAX: u32 = 100_000;

/// Who the token says the caller is, and what it allows.
#[utoipa::path(get, path = "/me", operation_id = "getMe", tag = "site",
    responses((status = 200, description = "the caller", body = Me)))]
pub(super) async fn me(State(api): State<Api>, known: Known) -> axum::Json<Me> {
    axum::Json(Me {
        principal: principal_text(&known.caller().principal),
        rights: api.access().rights(known.caller()).into_iter().map(Into::into).collect(),
        expires_s: known.token.expires_s,
    })
}

/// Totals, the ledger's health, and what is on its way to it.
#[utoipa::path(get, path = "/status", operation_id = "getStatus", tag = "site",
    responses((status = 200, description = "the state of the site", body = Status)))]
pub(super) async fn status(State(api): State<Api>, known: Known) -> Result<axum::Json<Status>, Problem> {
    known.must(&api, Right::Status)?;
    let site = api.site();
    let status = site.status().await?;
    let here = site.clone();
    let waiting = blocking(move || here.archive().studies_in_work(BACKLOG_MAX)).await??;
    let publishing = site.parts().publisher.get().map(|publisher| publisher.borrow().clone()).unwrap_or_default();
    let missing = publishing.studies.values().map(|study| study.pieces.saturating_sub(study.pieces_seen));
    Ok(axum::Json(Status {
        studies: status.studies,
        instances: status.instances,
        bytes: status.bytes,
        local_bytes: status.local_bytes,
        source: status.source,
        ledger: status.ledger.map(|ledger| LedgerStatus {
            kind: ledger.kind,
            chain_id: ledger.chain_id,
            head: ledger.head,
            head_age_s: ledger.head_age_s,
            pending: ledger.pending,
            trouble: ledger.trouble,
        }),
        backlog: Backlog { studies: waiting.len(), pieces: missing.sum(), transactions: publishing.transactions },
        followed: *site.consents().followed().borrow(),
        current: site.consents().is_current(now_s()),
    }))
}

/// Whether the program answers at all.
#[utoipa::path(get, path = "/health/live", operation_id = "isLive", tag = "site", security(()),
    responses((status = 200, description = "it lives", body = Health)))]
pub(super) async fn live() -> axum::Json<Health> {
    axum::Json(Health { status: "ok".into(), waits_for: Vec::new() })
}

/// Whether it can do everything: the ledger is connected, and what it says has come here lately.
#[utoipa::path(get, path = "/health/ready", operation_id = "isReady", tag = "site", security(()),
    responses((status = 200, description = "it is ready", body = Health), (status = 503, description = "not yet", body = Health)))]
pub(super) async fn ready(State(api): State<Api>) -> Response {
    let site = api.site();
    let mut waits_for = Vec::new();
    if site.parts().ledger.get().is_none() {
        waits_for.push("ledger".to_owned());
    }
    if !site.consents().is_current(now_s()) {
        waits_for.push("events".to_owned());
    }
    let ready = waits_for.is_empty();
    let (code, status) = if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "waiting") };
    (code, axum::Json(Health { status: status.into(), waits_for })).into_response()
}

/// The OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "getDocument", tag = "site", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")))]
pub(super) async fn document(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.0.document.clone()).into_response()
}
