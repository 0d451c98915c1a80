//! One established association: the loop that takes commands and answers them.

use super::{End, SHUTDOWN_ABORT, ScpOptions, Services};
use crate::{
    AssociationRequest,
    dataset::{DataSet, ReadEnd, ReadOptions, read},
    dimse::{Command, InvalidRq, Response, StoreRq, UnknownRq},
    matching::{Query, QueryContext},
    message::{Part, ProtocolError},
    negotiation::Context,
    object::{StoreHead, receive_object, without_data_set},
    sop_class::{Model, Service},
    status::{Failure, Operation, Outcome, Reason, Status, StatusKind},
    transport::{AbortSource, Received, Stream, Transport, TransportError},
};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) struct Association<'a, V: Services, S> {
    pub(super) services: &'a V,
    /// Shared so that work on it can go on while the association listens to its peer.
    pub(super) session: Arc<V::Session>,
    pub(super) options: &'a ScpOptions,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) transport: Transport<S>,
    pub(super) contexts: Vec<Context>,
    pub(super) request: AssociationRequest,
    pub(super) counts: Counts,
    /// Of our own requests, the C-STORE sub-operations of C-GET.
    pub(super) last_message_id: u16,
}

/// For the closing log line.
#[derive(Default)]
pub(super) struct Counts {
    echoes: u64,
    stored: u64,
    store_failures: u64,
    pub(super) finds: u64,
    pub(super) matches: u64,
    pub(super) retrieves: u64,
    pub(super) sent: u64,
}

/// What came of waiting for something of our own while listening to the peer.
pub(super) enum Attended<T> {
    Done(T),
    Cancelled,
}

/// The outcome of reading an identifier: the outer error ends the association, the inner one answers the request.
type Identified = Result<Result<Query, Failure>, TransportError>;

impl<V: Services, S: Stream> Association<'_, V, S> {
    /// Serves the association to its end. What is left is a connection that the peer should close (PS3.8 9.2, state 13), if it was released.
    pub(super) async fn run(mut self) -> Option<Transport<S>> {
        let started = Instant::now();
        let (peer, calling, called) = (self.request.peer, self.request.calling.clone(), self.request.called.clone());
        info!(%peer, %calling, %called, contexts = self.contexts.len(), "association opened");
        let end = self.operations().await;
        let how = match &end {
            Ok(End::Released) => "released".to_owned(),
            Ok(End::Shutdown) => "shut down".to_owned(),
            Err(error) => chain(error),
        };
        let released = matches!(end, Ok(End::Released));
        match end {
            Ok(End::Released) => {}
            Ok(End::Shutdown) => self.transport.abort(SHUTDOWN_ABORT).await,
            Err(error) => {
                if let Some(source) = AbortSource::answering(&error) {
                    self.transport.abort(source).await;
                }
            }
        }
        let Counts { echoes, stored, store_failures, finds, matches, retrieves, sent } = self.counts;
        let (bytes_received, bytes_sent) = (self.transport.bytes_received, self.transport.bytes_sent);
        let duration_ms = started.elapsed().as_millis() as u64;
        info!(
            %peer, %calling, %called, end = how, echoes, stored, store_failures, finds, matches, retrieves, sent,
            bytes_received, bytes_sent, duration_ms, "association ended"
        );
        released.then_some(self.transport)
    }

    async fn operations(&mut self) -> Result<End, TransportError> {
        let idle = Duration::from_millis(self.options.idle_timeout_ms);
        loop {
            let shutdown = self.shutdown;
            let received = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(End::Shutdown),
                received = self.transport.receive_within(idle, "the next request") => received?,
            };
            match received {
                Received::ReleaseRq => {
                    self.transport.send_release_rp().await?;
                    return Ok(End::Released);
                }
                Received::Part(Part::Command { context_id, command, has_data_set }) => {
                    self.operation(context_id, *command, has_data_set).await?;
                }
                Received::Part(Part::Data { .. }) => {
                    return Err(ProtocolError::OutOfOrder("data set without a command").into());
                }
                Received::ReleaseRp => return Err(ProtocolError::UnexpectedMessage("release nobody asked for").into()),
            }
        }
    }

    async fn operation(&mut self, context_id: u8, command: Command, has_data_set: bool) -> Result<(), TransportError> {
        let found = self.contexts.iter().find(|context| context.id == context_id).copied();
        let context = found.ok_or(ProtocolError::UnknownContext(context_id))?;
        match command {
            Command::EchoRq(rq) => {
                self.transport.drain_data_set(self.options.dimse_timeout()).await?;
                self.counts.echoes += 1;
                let supported = context.service == Service::Verification && rq.sop_class == context.abstract_syntax;
                let outcome = if supported { Status::SUCCESS } else { Status::CLASS_NOT_SUPPORTED };
                self.respond(&context, Operation::Echo, rq.message_id, outcome.into()).await
            }
            Command::StoreRq(rq) => self.store(&context, rq, has_data_set).await,
            Command::FindRq(rq) => self.find(&context, &rq, has_data_set).await,
            Command::GetRq(rq) => self.get(&context, &rq, has_data_set).await,
            Command::MoveRq(rq) => self.r#move(&context, &rq, has_data_set).await,
            Command::Invalid(rq) => self.refuse_invalid(&context, rq).await,
            Command::Unknown(rq) => self.refuse_unknown(&context, rq).await,
            // For an operation that was finished when the peer sent it.
            Command::CancelRq { .. } => Ok(()),
            Command::Response(_) => Err(ProtocolError::UnexpectedMessage("response to nothing we asked").into()),
        }
    }

    async fn store(&mut self, context: &Context, rq: StoreRq, has_data_set: bool) -> Result<(), TransportError> {
        let head = StoreHead {
            sop_class: rq.sop_class,
            sop_instance: rq.sop_instance,
            transfer_syntax: context.transfer_syntax,
            move_originator: rq.move_originator,
            calling: self.request.calling.clone(),
            called: self.request.called.clone(),
            peer: self.request.peer,
            message_id: rq.message_id,
        };
        let begun = if context.service != Service::Storage || rq.sop_class != context.abstract_syntax {
            let comment = "presentation context is not for this sop class";
            Err(Failure::new(Reason::ClassNotSupported, comment))
        } else if !self.options.offer.storage {
            Err(Failure::new(Reason::ClassNotSupported, "storage is not offered"))
        } else if !has_data_set {
            Err(without_data_set())
        } else {
            self.services.begin_store(&self.session, &head).await
        };
        let stored = receive_object(&mut self.transport, begun, self.options.dimse_timeout()).await?;
        let outcome = match stored {
            Ok(stored) => stored.status.into(),
            Err(failure) => {
                debug!(reason = ?failure.reason, comment = failure.comment, "object refused");
                Outcome::failed(&failure, Operation::Store)
            }
        };
        match outcome.status.kind() {
            StatusKind::Failure => self.counts.store_failures += 1,
            _ => self.counts.stored += 1,
        }
        let response = Response {
            operation: Operation::Store,
            responding_to: rq.message_id,
            sop_class: Some(rq.sop_class),
            sop_instance: Some(rq.sop_instance),
            outcome,
            progress: None,
        };
        self.transport.send(context.id, &Command::Response(response).encode(false), None).await
    }

    async fn refuse_invalid(&mut self, context: &Context, rq: InvalidRq) -> Result<(), TransportError> {
        self.transport.drain_data_set(self.options.dimse_timeout()).await?;
        let outcome = Outcome::failed(&rq.failure, rq.operation);
        self.respond(context, rq.operation, rq.message_id, outcome).await
    }

    async fn refuse_unknown(&mut self, context: &Context, rq: UnknownRq) -> Result<(), TransportError> {
        self.transport.drain_data_set(self.options.dimse_timeout()).await?;
        debug!(field = rq.field, "unrecognized operation");
        self.transport.send(context.id, &rq.refusal(), None).await
    }

    /// A final response without data set or counts.
    pub(super) async fn respond(
        &mut self,
        context: &Context,
        operation: Operation,
        message_id: u16,
        outcome: Outcome,
    ) -> Result<(), TransportError> {
        let response = Response {
            operation,
            responding_to: message_id,
            sop_class: Some(context.abstract_syntax),
            sop_instance: None,
            outcome,
            progress: None,
        };
        self.transport.send(context.id, &Command::Response(response).encode(false), None).await
    }

    /// Reads the identifier of a query or retrieve to its end, whatever is wrong with it, and parses it.
    pub(super) async fn identifier(
        &mut self,
        context: &Context,
        sop_class: crate::Uid,
        has_data_set: bool,
        model: Option<Model>,
        parse: impl Fn(&DataSet, &QueryContext) -> Result<Query, Failure>,
    ) -> Identified {
        let mut bytes = Some(Vec::new());
        if has_data_set {
            let (limit, bytes_max) = (self.options.dimse_timeout(), self.options.identifier_bytes_max);
            bytes = self.transport.receive_data_set(limit, bytes_max).await?;
        }
        let Some(model) = model.filter(|_| sop_class == context.abstract_syntax) else {
            let comment = "presentation context is not for this operation";
            return Ok(Err(Failure::new(Reason::ClassNotSupported, comment)));
        };
        let Some(bytes) = bytes else {
            return Ok(Err(Failure::new(Reason::OutOfResources, "identifier too long")));
        };
        let query_context =
            QueryContext { model, relational: context.relational, combined_date_time: context.combined_date_time };
        Ok(decode_identifier(&bytes, context).and_then(|identifier| parse(&identifier, &query_context)))
    }

    /// Waits for `work` while listening to the peer, who may cancel this operation or leave.
    pub(super) async fn attend<T>(
        &mut self,
        message_id: u16,
        mut work: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Result<Attended<T>, TransportError> {
        loop {
            tokio::select! {
                biased;
                received = self.transport.receive() => {
                    if is_cancel(received?, message_id)? {
                        return Ok(Attended::Cancelled);
                    }
                }
                done = &mut work => return Ok(Attended::Done(done)),
            }
        }
    }

    pub(super) fn warn_internal(&self, failure: &Failure, operation: Operation) {
        if failure.reason == Reason::Internal {
            warn!(?operation, comment = failure.comment, "operation failed");
        }
    }
}

/// What may come while an operation is in hand: its C-CANCEL, or a late one for another. Everything else breaks the protocol, as we
/// did not negotiate asynchronous operations.
pub(super) fn is_cancel(received: Received, message_id: u16) -> Result<bool, TransportError> {
    match received {
        Received::Part(Part::Command { command, .. }) if matches!(*command, Command::CancelRq { .. }) => {
            Ok(*command == Command::CancelRq { responding_to: message_id })
        }
        Received::ReleaseRq => Err(TransportError::Released),
        Received::Part(_) | Received::ReleaseRp => {
            Err(ProtocolError::UnexpectedMessage("message within an operation").into())
        }
    }
}

fn decode_identifier(bytes: &[u8], context: &Context) -> Result<DataSet, Failure> {
    let options = ReadOptions { depth_max: 8, elements_max: 10_000, ..ReadOptions::default() };
    match read(bytes, context.transfer_syntax.encoding(), &options) {
        Ok((identifier, ReadEnd::Complete)) => Ok(identifier),
        _ => Err(Failure::new(Reason::CannotUnderstand, "undecodable identifier")),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
