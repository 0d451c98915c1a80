//! C-FIND (PS3.4 C.4.1): one pending response per match, listening for C-CANCEL between them.

use super::{
    Services,
    association::{Association, Attended},
};
use crate::{
    charset::CharacterSet,
    dataset::{DataSet, Element, SPECIFIC_CHARACTER_SET, Tag, VR, padded},
    dimse::{Command, QueryRq, Response},
    matching::{Level, Query},
    negotiation::Context,
    sop_class::Service,
    status::{Failure, Operation, Outcome, Status},
    transport::{Stream, TransportError},
};
use futures::StreamExt;
use std::pin::pin;

const QUERY_RETRIEVE_LEVEL: Tag = Tag(0x0008, 0x0052);
const RETRIEVE_AE_TITLE: Tag = Tag(0x0008, 0x0054);

impl<V: Services, S: Stream> Association<'_, V, S> {
    pub(super) async fn find(
        &mut self,
        context: &Context,
        rq: &QueryRq,
        has_data_set: bool,
    ) -> Result<(), TransportError> {
        self.counts.finds += 1;
        let model = match context.service {
            Service::Find(model) => Some(model),
            _ => None,
        };
        let query = self.identifier(context, rq.sop_class, has_data_set, model, Query::parse).await?;
        let outcome = match query {
            Ok(query) => self.find_matches(context, rq.message_id, query).await?,
            Err(failure) => Err(failure),
        };
        let outcome = outcome.map(Outcome::of).unwrap_or_else(|failure: Failure| {
            self.warn_internal(&failure, Operation::Find);
            Outcome::failed(&failure, Operation::Find)
        });
        self.respond(context, Operation::Find, rq.message_id, outcome).await
    }

    /// The final status, after all pending responses.
    async fn find_matches(
        &mut self,
        context: &Context,
        message_id: u16,
        query: Query,
    ) -> Result<Result<Status, Failure>, TransportError> {
        let level = query.level;
        let (services, session) = (self.services, self.session.clone());
        let found = self.attend(message_id, pin!(services.find(&session, query))).await?;
        let mut matches = match found {
            Attended::Done(Ok(matches)) => matches,
            Attended::Done(Err(failure)) => return Ok(Err(failure)),
            Attended::Cancelled => return Ok(Ok(Status::CANCEL)),
        };
        loop {
            match self.attend(message_id, pin!(matches.next())).await? {
                Attended::Done(Some(Ok(found))) => self.send_match(context, message_id, level, found).await?,
                Attended::Done(Some(Err(failure))) => return Ok(Err(failure)),
                Attended::Done(None) => return Ok(Ok(Status::SUCCESS)),
                Attended::Cancelled => return Ok(Ok(Status::CANCEL)),
            }
        }
    }

    async fn send_match(
        &mut self,
        context: &Context,
        message_id: u16,
        level: Level,
        found: DataSet,
    ) -> Result<(), TransportError> {
        self.counts.matches += 1;
        let reply = complete(found, level, self.request.called.as_str());
        let response = Response {
            operation: Operation::Find,
            responding_to: message_id,
            sop_class: Some(context.abstract_syntax),
            sop_instance: None,
            outcome: Status::PENDING.into(),
            progress: None,
        };
        let command = Command::Response(response).encode(true);
        self.transport.send(context.id, &command, Some(&reply.write(context.transfer_syntax.encoding()))).await
    }
}

/// What every reply has (PS3.4 C.4.1.1.3.2): level, Retrieve AE Title and Specific Character Set. Text outside ASCII is sent as UTF-8
/// whatever it is stored in, because the matches of one query come from objects with different character sets.
fn complete(mut reply: DataSet, level: Level, retrieve_ae_title: &str) -> DataSet {
    reply.put_text(QUERY_RETRIEVE_LEVEL, VR::CS, level.as_str());
    if reply.get(RETRIEVE_AE_TITLE).is_none_or(Element::is_empty) {
        reply.put_text(RETRIEVE_AE_TITLE, VR::AE, retrieve_ae_title);
    }
    if reply.needs_character_set() {
        if !reply.character_set().is_utf8() || !reply.contains(SPECIFIC_CHARACTER_SET) {
            reply.transcode_to_utf8();
        }
    } else {
        let term = padded(VR::CS, CharacterSet::DEFAULT_TERM.as_bytes().to_vec());
        reply.put(SPECIFIC_CHARACTER_SET, Element::bytes(VR::CS, term));
    }
    reply
}
