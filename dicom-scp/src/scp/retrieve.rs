//! C-GET (PS3.4 C.4.3) and C-MOVE (PS3.4 C.4.2): sub-operations, their counts, and C-CANCEL between them.

use super::{
    Destination, Selected, Services,
    association::{Association, Attended, is_cancel},
};
use crate::{
    TransferSyntax, Uid,
    dataset::{DataSet, VR},
    dimse::{Command, MoveOriginator, MoveRq, Priority, Progress, QueryRq, Response, StoreRq},
    matching::Query,
    message::{Part, ProtocolError},
    negotiation::Context,
    object::ObjectStream,
    scu::{self, CONTEXTS_MAX, FAILED_INSTANCES, Proposal, StoreRequest},
    sop_class::Service,
    status::{Failure, Operation, Outcome, Reason, Status, StatusKind},
    transcode::Transcoder,
    transport::{Received, Stream, Transport, TransportError, context_for_object},
};
use futures::future::{MaybeDone, maybe_done};
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

/// With many sub-operations, pending responses come no more often than this.
const PENDING_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// With at most so many, there is one after each.
const PENDING_EACH_MAX: usize = 100;

/// The sub-operations of one C-GET or C-MOVE.
struct Tally {
    operation: Operation,
    message_id: u16,
    total: usize,
    completed: usize,
    warning: usize,
    failed: Vec<Uid>,
    cancelled: bool,
    last_pending: Instant,
}

impl Tally {
    fn new(operation: Operation, message_id: u16, total: usize) -> Self {
        Tally {
            operation,
            message_id,
            total,
            completed: 0,
            warning: 0,
            failed: Vec::new(),
            cancelled: false,
            last_pending: Instant::now(),
        }
    }

    fn count(&mut self, sop_instance: &Uid, outcome: &Outcome) {
        match outcome.status.kind() {
            StatusKind::Success => self.completed += 1,
            StatusKind::Warning => self.warning += 1,
            _ => self.failed.push(*sop_instance),
        }
    }

    fn remaining(&self) -> usize {
        self.total.saturating_sub(self.completed + self.warning + self.failed.len())
    }

    /// The counts are of VR US and stop at 65535.
    fn progress(&self, with_remaining: bool) -> Progress {
        let us = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        Progress {
            remaining: with_remaining.then(|| us(self.remaining())),
            completed: us(self.completed),
            failed: us(self.failed.len()),
            warning: us(self.warning),
        }
    }

    fn final_status(&self) -> Status {
        if self.cancelled {
            Status::CANCEL
        } else if self.failed.is_empty() && self.warning == 0 {
            Status::SUCCESS
        } else if self.failed.len() == self.total {
            Status::CANNOT_PERFORM_SUBOPERATIONS
        } else {
            Status::SUBOPERATIONS_WITH_FAILURES
        }
    }

    fn is_pending_due(&self) -> bool {
        self.remaining() > 0 && (self.total <= PENDING_EACH_MAX || self.last_pending.elapsed() >= PENDING_INTERVAL_MIN)
    }
}

impl<'s, V: Services, S: Stream> Association<'s, V, S> {
    pub(super) async fn get(
        &mut self,
        context: &Context,
        rq: &QueryRq,
        has_data_set: bool,
    ) -> Result<(), TransportError> {
        self.counts.retrieves += 1;
        let model = match context.service {
            Service::Get(model) => Some(model),
            _ => None,
        };
        let query = self.identifier(context, rq.sop_class, has_data_set, model, Query::parse_retrieve).await?;
        let selected = match query {
            Ok(query) => self.select(rq.message_id, Operation::Get, query).await?,
            Err(failure) => Err(failure),
        };
        let selected = match selected {
            Ok(selected) => selected,
            Err(failure) => return self.respond_failed(context, Operation::Get, rq.message_id, &failure).await,
        };
        let Some(selected) = selected else {
            return self.respond(context, Operation::Get, rq.message_id, Status::CANCEL.into()).await;
        };
        let mut tally = Tally::new(Operation::Get, rq.message_id, selected.len());
        let mut ahead = self.opening(selected.first());
        for (at, object) in selected.iter().enumerate() {
            let outcome = match ahead.take() {
                None => no_context(),
                Some(opening) => match self.attend_pending(context, &mut tally, pin!(opened(opening))).await? {
                    Err(failure) => Outcome::failed(&failure, Operation::Store),
                    Ok(stream) => {
                        ahead = self.opening(selected.get(at + 1));
                        alongside(self.get_one(object, stream, &mut tally), &mut ahead).await?
                    }
                },
            };
            tally.count(&object.sop_instance, &outcome);
            if tally.cancelled {
                break;
            }
            self.pending_if_due(context, &mut tally).await?;
            if ahead.is_none() {
                ahead = self.opening(selected.get(at + 1));
            }
        }
        self.respond_final(context, &tally).await
    }

    /// Begins to open an object, unless it could not be sent over this association anyway: opening may mean fetching it from far
    /// away.
    fn opening<'o>(&self, object: Option<&'o Selected<V::Handle>>) -> Option<Opening<'o>>
    where
        's: 'o,
    {
        let object = object?;
        let allowed = self.contexts.iter().filter(|context| self.may_send(context, &object.sop_class));
        let wanted = wanted(object, |syntax| context_for_object(allowed.clone(), syntax).is_some())?;
        Some(opening(self.services, self.session.clone(), object, wanted))
    }

    /// One C-STORE sub-operation over this association.
    async fn get_one(
        &mut self,
        object: &Selected<V::Handle>,
        mut stream: ObjectStream,
        tally: &mut Tally,
    ) -> Result<Outcome, TransportError> {
        let Some(context) = self.sending_context(&object.sop_class, &stream) else { return Ok(no_context()) };
        self.last_message_id = self.last_message_id.wrapping_add(1).max(1);
        let message_id = self.last_message_id;
        let command = Command::StoreRq(StoreRq {
            message_id,
            sop_class: object.sop_class,
            sop_instance: object.sop_instance,
            priority: Priority::Medium,
            move_originator: None,
        });
        self.transport.send_content(&context, &command.encode(true), &mut stream).await?;
        drop(stream);
        self.counts.sent += 1;
        self.store_response(message_id, tally).await
    }

    /// The C-STORE-RSP, before which a C-CANCEL of the C-GET may come.
    async fn store_response(&mut self, message_id: u16, tally: &mut Tally) -> Result<Outcome, TransportError> {
        loop {
            let received = self.transport.receive_within(self.options.dimse_timeout(), "c-store response").await?;
            match received {
                Received::Part(Part::Command { command, has_data_set, .. })
                    if matches!(*command, Command::Response(_)) =>
                {
                    let Command::Response(response) = *command else { continue };
                    if response.operation != Operation::Store || response.responding_to != message_id {
                        return Err(ProtocolError::UnexpectedMessage("response to nothing we asked").into());
                    }
                    if has_data_set {
                        self.transport.drain_data_set(self.options.dimse_timeout()).await?;
                    }
                    return Ok(response.outcome);
                }
                other => tally.cancelled |= is_cancel(other, tally.message_id)?,
            }
        }
    }

    fn may_send(&self, context: &Context, sop_class: &Uid) -> bool {
        let role = context.requestor_roles.map_or(self.options.get_without_roles, |roles| roles.scp);
        context.service == Service::Storage && context.abstract_syntax == *sop_class && role
    }

    fn sending_context(&self, sop_class: &Uid, stream: &ObjectStream) -> Option<Context> {
        let allowed = self.contexts.iter().filter(|context| self.may_send(context, sop_class));
        context_for_object(allowed, &stream.transfer_syntax)
    }

    pub(super) async fn r#move(
        &mut self,
        context: &Context,
        rq: &MoveRq,
        has_data_set: bool,
    ) -> Result<(), TransportError> {
        self.counts.retrieves += 1;
        let model = match context.service {
            Service::Move(model) => Some(model),
            _ => None,
        };
        let query = self.identifier(context, rq.sop_class, has_data_set, model, Query::parse_retrieve).await?;
        let prepared = match query {
            Ok(query) => self.prepare_move(rq, query).await?,
            Err(failure) => Err(failure),
        };
        let (destination, selected) = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return self.respond(context, Operation::Move, rq.message_id, Status::CANCEL.into()).await,
            Err(failure) => return self.respond_failed(context, Operation::Move, rq.message_id, &failure).await,
        };
        let mut tally = Tally::new(Operation::Move, rq.message_id, selected.len());
        for batch in batches(&selected) {
            if tally.cancelled {
                break;
            }
            self.move_batch(context, &destination, &batch, &mut tally).await?;
        }
        self.respond_final(context, &tally).await
    }

    /// The destination first: an unknown one is answered without looking anything up. `None` when cancelled.
    #[allow(clippy::type_complexity)]
    async fn prepare_move(
        &mut self,
        rq: &MoveRq,
        query: Query,
    ) -> Result<Result<Option<(Destination, Vec<Selected<V::Handle>>)>, Failure>, TransportError> {
        let (services, session) = (self.services, self.session.clone());
        let looked_up = self.attend(rq.message_id, pin!(services.destination(&session, &rq.destination))).await?;
        let destination = match looked_up {
            Attended::Done(Ok(destination)) => destination,
            Attended::Done(Err(failure)) => return Ok(Err(failure)),
            Attended::Cancelled => return Ok(Ok(None)),
        };
        let selected = self.select(rq.message_id, Operation::Move, query).await?;
        Ok(selected.map(|selected| selected.map(|selected| (destination, selected))))
    }

    /// `None` when cancelled.
    #[allow(clippy::type_complexity)]
    async fn select(
        &mut self,
        message_id: u16,
        operation: Operation,
        query: Query,
    ) -> Result<Result<Option<Vec<Selected<V::Handle>>>, Failure>, TransportError> {
        let (services, session) = (self.services, self.session.clone());
        Ok(match self.attend(message_id, pin!(services.select(&session, operation, query))).await? {
            Attended::Done(selected) => selected.map(Some),
            Attended::Cancelled => Ok(None),
        })
    }

    /// Sends one batch over one sub-association. What happens to the sub-association never harms the primary one.
    async fn move_batch(
        &mut self,
        context: &Context,
        destination: &Destination,
        batch: &Batch<'_, V::Handle>,
        tally: &mut Tally,
    ) -> Result<(), TransportError> {
        let options = &destination.options;
        let mut association = self.connect(context, destination, batch, tally).await?;
        let mut ahead = None;
        for (at, object) in batch.objects.iter().enumerate() {
            if tally.cancelled {
                break;
            }
            let moved = match &mut association {
                Some(open) => {
                    let first = ahead.take().or_else(|| self.moving(open, Some(object)));
                    let next = batch.objects.get(at + 1).copied();
                    self.move_over(context, object, first, open, tally, (&mut ahead, next)).await?
                }
                None => Ok(unreachable_destination()),
            };
            let outcome = match moved {
                Ok(outcome) => outcome,
                Err(error) => {
                    let is_ours = matches!(error, scu::ScuError::Transport(TransportError::Source(_)));
                    let error = super::association::chain(&error);
                    warn!(destination = %options.called, error, "association with move destination broken");
                    // Where an object could not be read to its end, the destination is as good as before for the others.
                    association = match is_ours && at + 1 < batch.objects.len() {
                        true => self.connect(context, destination, batch, tally).await?,
                        false => None,
                    };
                    unreachable_destination()
                }
            };
            self.counts.sent += u64::from(scu::is_stored(&outcome));
            tally.count(&object.sop_instance, &outcome);
            self.pending_if_due(context, tally).await?;
        }
        if let Some(association) = association {
            let released = self.attend_pending(context, tally, pin!(association.release())).await?;
            if let Err(error) = released {
                debug!(destination = %options.called, %error, "release of sub-association failed");
            }
        }
        Ok(())
    }

    /// The sub-association, if the destination grants it.
    async fn connect(
        &mut self,
        context: &Context,
        destination: &Destination,
        batch: &Batch<'_, V::Handle>,
        tally: &mut Tally,
    ) -> Result<Option<scu::Association>, TransportError> {
        let Destination { host, port, options } = destination;
        let connecting = pin!(scu::Association::connect(host, *port, options, &batch.proposals));
        let connected = self.attend_pending(context, tally, connecting).await?;
        Ok(connected.map_or_else(
            |error| {
                let error = super::association::chain(&error);
                warn!(destination = %options.called, error, "cannot associate with move destination");
                None
            },
            Some,
        ))
    }

    /// Begins to open an object, unless the destination has not accepted its kind.
    fn moving<'o>(&self, association: &scu::Association, object: Option<&'o Selected<V::Handle>>) -> Option<Opening<'o>>
    where
        's: 'o,
    {
        let object = object?;
        let wanted = wanted(object, |syntax| association.can_store(&object.sop_class, syntax))?;
        Some(opening(self.services, self.session.clone(), object, wanted))
    }

    /// The outer error ends the primary association, the inner one the sub-association. While the object is sent, the next one is
    /// opened.
    async fn move_over<'o>(
        &mut self,
        context: &Context,
        object: &Selected<V::Handle>,
        first: Option<Opening<'o>>,
        association: &mut scu::Association,
        tally: &mut Tally,
        (ahead, next): (&mut Option<Opening<'o>>, Option<&'o Selected<V::Handle>>),
    ) -> Result<Result<Outcome, scu::ScuError>, TransportError>
    where
        's: 'o,
    {
        let Some(first) = first else { return Ok(Ok(no_context())) };
        let stream = match self.attend_pending(context, tally, pin!(opened(first))).await? {
            Ok(stream) => stream,
            Err(failure) => return Ok(Ok(Outcome::failed(&failure, Operation::Store))),
        };
        *ahead = self.moving(association, next);
        let originator = MoveOriginator { ae_title: self.request.calling.clone(), message_id: tally.message_id };
        let moving = pin!(alongside(move_one(object, stream, association, originator), ahead));
        self.attend_pending(context, tally, moving).await
    }

    /// Waits for `work` while listening to the peer and telling it every now and then that we are still there.
    async fn attend_pending<T>(
        &mut self,
        context: &Context,
        tally: &mut Tally,
        mut work: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> Result<T, TransportError> {
        let interval = Duration::from_millis(self.options.pending_interval_ms);
        loop {
            tokio::select! {
                biased;
                received = self.transport.receive() => tally.cancelled |= is_cancel(received?, tally.message_id)?,
                done = &mut work => return Ok(done),
                () = sleep_until(tally.last_pending + interval) => self.pending(context, tally).await?,
            }
        }
    }

    async fn pending_if_due(&mut self, context: &Context, tally: &mut Tally) -> Result<(), TransportError> {
        if tally.is_pending_due() { self.pending(context, tally).await } else { Ok(()) }
    }

    async fn pending(&mut self, context: &Context, tally: &mut Tally) -> Result<(), TransportError> {
        tally.last_pending = Instant::now();
        send_progress(&mut self.transport, context, tally, Status::PENDING, None).await
    }

    /// PS3.4 C.4.2.1.6: counts, and which instances failed. Remaining only when cancelled.
    async fn respond_final(&mut self, context: &Context, tally: &Tally) -> Result<(), TransportError> {
        let status = tally.final_status();
        let identifier = (!tally.failed.is_empty()).then(|| {
            let failed: Vec<&str> = tally.failed.iter().map(Uid::as_str).collect();
            let mut identifier = DataSet::new();
            identifier.put_texts(FAILED_INSTANCES, VR::UI, &failed);
            identifier.write(context.transfer_syntax.encoding())
        });
        send_progress(&mut self.transport, context, tally, status, identifier.as_deref()).await
    }

    async fn respond_failed(
        &mut self,
        context: &Context,
        operation: Operation,
        message_id: u16,
        failure: &Failure,
    ) -> Result<(), TransportError> {
        self.warn_internal(failure, operation);
        self.respond(context, operation, message_id, Outcome::failed(failure, operation)).await
    }
}

async fn send_progress<S: Stream>(
    transport: &mut Transport<S>,
    context: &Context,
    tally: &Tally,
    status: Status,
    identifier: Option<&[u8]>,
) -> Result<(), TransportError> {
    let with_remaining = matches!(status.kind(), StatusKind::Pending | StatusKind::Cancel);
    let response = Command::Response(Response {
        operation: tally.operation,
        responding_to: tally.message_id,
        sop_class: Some(context.abstract_syntax),
        sop_instance: None,
        outcome: status.into(),
        progress: Some(tally.progress(with_remaining)),
    });
    transport.send(context.id, &response.encode(identifier.is_some()), identifier).await
}

/// One C-STORE sub-operation over the sub-association. An error means that the sub-association is broken.
async fn move_one<H>(
    object: &Selected<H>,
    mut stream: ObjectStream,
    association: &mut scu::Association,
    originator: MoveOriginator,
) -> Result<Outcome, scu::ScuError> {
    let request = StoreRequest {
        sop_class: object.sop_class,
        sop_instance: object.sop_instance,
        transfer_syntax: stream.transfer_syntax,
        bytes: stream.bytes,
        priority: Priority::Medium,
        move_originator: Some(originator),
    };
    match association.store_stream(&request, &mut stream).await {
        Err(scu::ScuError::NoContext(_)) => Ok(no_context()),
        other => other,
    }
}

/// An object being opened. The one after the next is not, so that an association holds two at most.
type Opening<'o> = MaybeDone<Pin<Box<dyn Future<Output = Result<ObjectStream, Failure>> + Send + 'o>>>;

fn opening<'o, V: Services>(
    services: &'o V,
    session: impl std::ops::Deref<Target = V::Session> + Send + Sync + 'o,
    object: &'o Selected<V::Handle>,
    wanted: TransferSyntax,
) -> Opening<'o> {
    maybe_done(Box::pin(async move { services.open(&session, &object.handle, &wanted).await }))
}

/// In which transfer syntax to open an object: as it is stored if that can be sent, transcoded on the way or not, which is the least work.
fn wanted<H>(object: &Selected<H>, can_send: impl Fn(&TransferSyntax) -> bool) -> Option<TransferSyntax> {
    std::iter::once(&object.transfer_syntax).chain(&object.others).find(|syntax| can_send(syntax)).copied()
}

async fn opened(mut opening: Opening<'_>) -> Result<ObjectStream, Failure> {
    (&mut opening).await;
    let done = Pin::new(&mut opening).take_output();
    done.unwrap_or_else(|| Err(Failure::new(Reason::Internal, "opened twice")))
}

/// Does `work`, and opens the next object on the side.
async fn alongside<T>(work: impl Future<Output = T>, ahead: &mut Option<Opening<'_>>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Some(opening @ MaybeDone::Future(_)) = ahead {
            // Whether it is ready is asked when it is needed.
            let _ = Pin::new(opening).poll(context);
        }
        work.as_mut().poll(context)
    })
    .await
}

fn no_context() -> Outcome {
    Outcome::of(Status::CLASS_NOT_SUPPORTED)
}

fn unreachable_destination() -> Outcome {
    Outcome::of(Status::CANNOT_PERFORM_SUBOPERATIONS)
}

/// Objects that go over one sub-association, and the presentation contexts they need.
struct Batch<'a, H> {
    proposals: Vec<Proposal>,
    objects: Vec<&'a Selected<H>>,
}

/// Splits the selection so that no association needs more than [`CONTEXTS_MAX`] presentation contexts, in the order given.
fn batches<H>(selected: &[Selected<H>]) -> Vec<Batch<'_, H>> {
    let mut batches: Vec<Batch<'_, H>> = Vec::new();
    for object in selected {
        let needed = needed_contexts(object);
        let missing = |batch: &Batch<'_, H>| needed.iter().filter(|p| !batch.proposals.contains(p)).count();
        let fitting = batches.iter_mut().find(|batch| batch.proposals.len() + missing(batch) <= CONTEXTS_MAX);
        let batch = match fitting {
            Some(batch) => batch,
            None => {
                batches.push(Batch { proposals: Vec::new(), objects: Vec::new() });
                let Some(new) = batches.last_mut() else { continue };
                new
            }
        };
        for proposal in needed {
            if !batch.proposals.contains(&proposal) {
                batch.proposals.push(proposal);
            }
        }
        batch.objects.push(object);
    }
    batches
}

/// One context per SOP class and stored transfer syntax, because the acceptor picks only one transfer syntax of those in a context; one for each
/// other that it can be opened in; and for uncompressed little endian objects one with the other encoding, into which they can be transcoded.
fn needed_contexts<H>(object: &Selected<H>) -> Vec<Proposal> {
    let plain = [TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE];
    let plain = plain.iter().filter(|other| Transcoder::new(&object.transfer_syntax, other).is_some());
    let mut syntaxes = vec![object.transfer_syntax];
    for other in plain.chain(&object.others) {
        if !syntaxes.contains(other) {
            syntaxes.push(*other);
        }
    }
    syntaxes.into_iter().map(|syntax| Proposal::new(object.sop_class, [syntax])).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn selected(class: u32, syntax: TransferSyntax) -> Selected<u32> {
        Selected {
            sop_class: Uid::new(&format!("1.2.{class}")).unwrap(),
            sop_instance: Uid::literal("1.2.3"),
            transfer_syntax: syntax,
            others: Vec::new(),
            handle: class,
        }
    }

    #[test]
    fn an_object_is_opened_as_it_is_stored_unless_that_cannot_be_sent() {
        let jpeg = TransferSyntax::of(&Uid::literal("1.2.840.10008.1.2.4.70")).unwrap();
        let (explicit, implicit) = (TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE);
        let object = Selected { others: vec![explicit, implicit], ..selected(1, jpeg) };
        let opened = |accepted: &[TransferSyntax]| wanted(&object, |syntax| accepted.contains(syntax));
        assert_eq!(opened(&[implicit, explicit, jpeg]), Some(jpeg));
        assert_eq!(opened(&[implicit, explicit]), Some(explicit));
        assert_eq!(opened(&[implicit]), Some(implicit));
        assert_eq!(opened(&[TransferSyntax::EXPLICIT_VR_BE]), None);
        let proposed: Vec<Proposal> =
            [jpeg, explicit, implicit].map(|syntax| Proposal::new(object.sop_class, [syntax])).into();
        assert_eq!(needed_contexts(&object), proposed);
        assert_eq!(needed_contexts(&selected(1, jpeg)).len(), 1, "what nobody can decode is not promised");
    }

    #[test]
    fn batches_keep_below_the_context_limit_and_lose_nothing() {
        let jpeg = TransferSyntax::of(&Uid::literal("1.2.840.10008.1.2.4.70")).unwrap();
        let objects: Vec<_> = (0..300)
            .flat_map(|i| [i % 100, i % 100])
            .zip([jpeg, TransferSyntax::EXPLICIT_VR_LE].into_iter().cycle())
            .map(|(class, syntax)| selected(class, syntax))
            .collect();
        let batches = batches(&objects);
        assert_eq!(batches.len(), 3, "300 distinct pairs in associations of at most 128");
        assert_eq!(batches.iter().map(|batch| batch.objects.len()).sum::<usize>(), objects.len());
        for batch in &batches {
            assert!(batch.proposals.len() <= CONTEXTS_MAX);
            for object in &batch.objects {
                assert!(batch.proposals.contains(&Proposal::new(object.sop_class, [object.transfer_syntax])));
            }
        }
    }

    #[test]
    fn final_status_tells_none_some_and_all_failed() {
        let uid = Uid::literal("1.2");
        let tally = |outcomes: &[Status]| {
            let mut tally = Tally::new(Operation::Move, 1, outcomes.len());
            outcomes.iter().for_each(|status| tally.count(&uid, &(*status).into()));
            tally.final_status()
        };
        let (ok, warn, bad) = (Status::SUCCESS, Status::ELEMENTS_DISCARDED, Status::DATA_SET_MISMATCH);
        assert_eq!(tally(&[]), Status::SUCCESS);
        assert_eq!(tally(&[ok, ok]), Status::SUCCESS);
        assert_eq!(tally(&[ok, warn]), Status::SUBOPERATIONS_WITH_FAILURES);
        assert_eq!(tally(&[ok, bad]), Status::SUBOPERATIONS_WITH_FAILURES);
        assert_eq!(tally(&[bad, bad]), Status::CANNOT_PERFORM_SUBOPERATIONS);
    }
}
