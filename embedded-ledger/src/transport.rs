//! The ledger as an alloy transport in the same process: no socket, the same answers.

use crate::Core;
use crate::rpc;
use alloy::rpc::json_rpc::{RequestPacket, Response, ResponsePacket, SerializedRequest};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::Service;

/// Answers requests from the ledger in this process. Cheap to clone.
#[derive(Clone)]
pub struct LedgerTransport {
    core: Arc<Core>,
}

impl std::fmt::Debug for LedgerTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerTransport").finish_non_exhaustive()
    }
}

impl LedgerTransport {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

impl Service<RequestPacket> for LedgerTransport {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let core = self.core.clone();
        // Recovering a sender or running a call takes up to milliseconds of computing; the caller's executor is not the place.
        let answered = tokio::task::spawn_blocking(move || match packet {
            RequestPacket::Single(request) => ResponsePacket::Single(answer(&core, &request)),
            RequestPacket::Batch(requests) => {
                ResponsePacket::Batch(requests.iter().map(|request| answer(&core, request)).collect())
            }
        });
        Box::pin(async move { answered.await.map_err(TransportErrorKind::custom) })
    }
}

fn answer(core: &Core, request: &SerializedRequest) -> Response {
    Response { id: request.id().clone(), payload: rpc::answer(core, request.method(), request.params()) }
}
