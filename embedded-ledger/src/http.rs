//! JSON-RPC over HTTP, for other programs on the same machine.
//!
//! Only bodies of type `application/json` are read: a web page can send those to another origin only after a CORS preflight, which is
//! never granted, so a browser on this machine cannot be made to use the ledger.

use crate::Core;
use crate::rpc;
use alloy::rpc::json_rpc::{ErrorPayload, Id, Response, ResponsePayload};
use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Bytes of one request at most, as in geth.
const BODY_BYTES_MAX: usize = 5 << 20;
/// Requests in one batch at most, as in geth.
const BATCH_MAX: usize = 1000;
/// How long a request may take to arrive.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// Requests worked on at once at most; others wait.
const CONCURRENT_MAX: usize = 32;

#[derive(Clone)]
struct Service {
    core: Arc<Core>,
    permits: Arc<Semaphore>,
}

pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
    let service = Service { core, permits: Arc::new(Semaphore::new(CONCURRENT_MAX)) };
    let router = Router::new().route("/", post(handle)).with_state(service);
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn handle(State(service): State<Service>, request: HttpRequest<Body>) -> axum::response::Response {
    let json = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !json.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("application/json")) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let body = match read(request.into_body()).await {
        Ok(body) => body,
        Err(status) => return status.into_response(),
    };
    let Ok(permit) = service.permits.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let answered = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        answer(&service.core, &body)
    });
    match answered.await {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Reads a body that is neither too long nor too slow. One that announces too much is not waited for.
async fn read(body: Body) -> Result<Bytes, StatusCode> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    match tokio::time::timeout(BODY_WAIT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(read) => read.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

#[derive(serde::Deserialize)]
struct Request<'a> {
    id: Option<Id>,
    #[serde(borrow)]
    method: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

fn answer(core: &Core, body: &[u8]) -> String {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        return encode(&answer_one(core, body));
    }
    match serde_json::from_slice::<Vec<&RawValue>>(body) {
        Ok(batch) if batch.is_empty() => encode(&failure(Id::None, ErrorPayload::invalid_request())),
        Ok(batch) if batch.len() > BATCH_MAX => encode(&failure(Id::None, error(-32600, "batch too large"))),
        Ok(batch) => {
            let responses: Vec<Response> = batch.iter().map(|one| answer_one(core, one.get().as_bytes())).collect();
            serde_json::to_string(&responses).unwrap_or_default()
        }
        Err(_) => encode(&failure(Id::None, ErrorPayload::parse_error())),
    }
}

fn answer_one(core: &Core, bytes: &[u8]) -> Response {
    match serde_json::from_slice::<Request<'_>>(bytes) {
        Ok(request) => {
            Response { id: request.id.unwrap_or(Id::None), payload: rpc::answer(core, &request.method, request.params) }
        }
        Err(e) if e.is_data() => failure(Id::None, ErrorPayload::invalid_request()),
        Err(_) => failure(Id::None, ErrorPayload::parse_error()),
    }
}

fn failure(id: Id, error: ErrorPayload) -> Response {
    Response { id, payload: ResponsePayload::Failure(error) }
}

fn error(code: i64, message: &'static str) -> ErrorPayload {
    ErrorPayload { code, message: message.into(), data: None }
}

fn encode(response: &Response) -> String {
    serde_json::to_string(response).unwrap_or_default()
}
