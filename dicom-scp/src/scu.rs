//! DICOM as a client: C-ECHO, C-STORE, C-FIND, C-MOVE and C-GET over one association, one operation at a time.
//!
//! Must not know what objects or identifiers mean, nor where destinations are configured.

use crate::{
    AeTitle, DataSet, TransferSyntax, Uid,
    dataset::{Encoding, ReadEnd, ReadOptions, read},
    dimse::{Command, EchoRq, MoveOriginator, MoveRq, Priority, Progress, QueryRq, Response, StoreRq},
    handshake::{self, HandshakeError},
    message::{Assembler, Inbox, Part, ProtocolError},
    negotiation::{
        APPLICATION_CONTEXT, Context, Rejection, Roles, UserIdentity, UserIdentityKind, own_variables, read_accept,
    },
    object::{ObjectStream, StoreHead, StoreSink, receive_object, without_data_set},
    sop_class::{self, Service},
    status::{Failure, Operation, Outcome, Status, StatusKind},
    transport::{AbortSource, Received, Stream, Transport, TransportError, context_for_object},
};
use bytes::BytesMut;
use dicom_ul::pdu::{
    AssociationRQ, Pdu, PresentationContextProposed, RequestorRoles, UserIdentityType, UserVariableItem,
};
use futures::future::BoxFuture;
use std::{collections::HashSet, future::Future, io, net::SocketAddr, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::{io::AsyncRead, net::TcpStream, time::timeout};

/// The most presentation contexts an association can have: odd ids from 1 to 255 (PS3.8 9.3.2.2).
pub const CONTEXTS_MAX: usize = 128;

/// Who we are for a peer, and how long we wait for it.
#[derive(Debug, Clone)]
pub struct ScuOptions {
    /// Our AE title.
    pub calling: AeTitle,
    /// The peer's AE title.
    pub called: AeTitle,
    /// For the TCP connection.
    pub connect_timeout_ms: u64,
    /// For the answer to A-ASSOCIATE-RQ and A-RELEASE-RQ.
    pub association_timeout_ms: u64,
    /// For each response, and for each PDU that we send.
    pub dimse_timeout_ms: u64,
    /// The longest P-DATA-TF PDU we accept, in bytes.
    pub pdu_bytes_max: u32,
    /// User identity to present.
    pub user_identity: Option<UserIdentity>,
    /// What encrypts the connection; without it, DICOM over plain TCP.
    pub secure: Option<Arc<dyn Secure>>,
}

/// Makes of a TCP connection the stream that carries an association, such as TLS.
pub trait Secure: std::fmt::Debug + Send + Sync {
    /// Does the handshake, with a time limit around it.
    fn secure(&self, tcp: TcpStream) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;
}

impl ScuOptions {
    /// The defaults: 10 s to connect, 30 s to associate, 60 s for a response, PDUs of 128 KiB.
    pub fn new(calling: AeTitle, called: AeTitle) -> Self {
        ScuOptions {
            calling,
            called,
            connect_timeout_ms: 10_000,
            association_timeout_ms: 30_000,
            dimse_timeout_ms: 60_000,
            pdu_bytes_max: 131_072,
            user_identity: None,
            secure: None,
        }
    }

    fn dimse_timeout(&self) -> Duration {
        Duration::from_millis(self.dimse_timeout_ms)
    }
}

/// A presentation context to propose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The SOP class.
    pub abstract_syntax: Uid,
    /// The transfer syntaxes, best first.
    pub transfer_syntaxes: Vec<TransferSyntax>,
    /// Role selection, for C-GET: we are SCP of the storage classes then.
    pub roles: Option<Roles>,
}

impl Proposal {
    /// Without role selection.
    pub fn new(abstract_syntax: Uid, transfer_syntaxes: impl Into<Vec<TransferSyntax>>) -> Self {
        Proposal { abstract_syntax, transfer_syntaxes: transfer_syntaxes.into(), roles: None }
    }

    /// With explicit and implicit VR little endian, as for everything but objects.
    pub fn plain(abstract_syntax: Uid) -> Self {
        Self::new(abstract_syntax, [TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE])
    }

    /// For objects to be received over C-GET.
    pub fn receiving(abstract_syntax: Uid, transfer_syntaxes: impl Into<Vec<TransferSyntax>>) -> Self {
        let roles = Some(Roles { scu: false, scp: true });
        Proposal { roles, ..Self::new(abstract_syntax, transfer_syntaxes) }
    }
}

/// Why an operation did not come to a response.
#[derive(Debug, thiserror::Error)]
pub enum ScuError {
    /// No connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection cannot be encrypted, or not with whom it should.
    #[error("cannot secure the connection")]
    Secure(#[source] io::Error),
    /// The peer does not answer in time.
    #[error("timed out waiting for {0}")]
    Timeout(&'static str),
    /// The peer refuses the association.
    #[error("association rejected")]
    Rejected(#[source] Rejection),
    /// The association phase failed.
    #[error("association failed")]
    Handshake(#[from] HandshakeError),
    /// The peer accepted the association with terms that we cannot work with.
    #[error("association accepted on impossible terms")]
    Terms,
    /// No accepted presentation context fits; the association is still good.
    #[error("no presentation context for {} with {:?}", .0.abstract_syntax, .0.transfer_syntax)]
    NoContext(Box<MissingContext>),
    /// The association broke. It has been aborted.
    #[error("association broken")]
    Transport(#[from] TransportError),
}

/// A presentation context that would have been needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingContext {
    /// The SOP class.
    pub abstract_syntax: Uid,
    /// The transfer syntax needed, for objects.
    pub transfer_syntax: Option<Uid>,
}

/// An object to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRequest {
    /// SOP class.
    pub sop_class: Uid,
    /// SOP instance.
    pub sop_instance: Uid,
    /// The transfer syntax of the bytes. A context with exactly this one is preferred; implicit and explicit VR little endian
    /// are transcoded into each other when the peer took only the other one.
    pub transfer_syntax: TransferSyntax,
    /// Length of the data set, in bytes.
    pub bytes: u64,
    /// Priority.
    pub priority: Priority,
    /// The C-MOVE that this is a sub-operation of.
    pub move_originator: Option<MoveOriginator>,
}

/// Takes the objects that a C-GET brings.
pub trait Receiver: Send {
    /// Takes the bytes of one object.
    type Sink: StoreSink;

    /// An object begins.
    ///
    /// # Errors
    /// The failure answers the C-STORE sub-operation.
    fn begin(&mut self, head: &StoreHead) -> impl Future<Output = Result<Self::Sink, Failure>> + Send;
}

/// How a C-MOVE or C-GET ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retrieved {
    /// The final status.
    pub outcome: Outcome,
    /// The final counts, as far as the peer gave them.
    pub progress: Progress,
    /// Failed SOP Instance UID List (0008,0058).
    pub failed_instances: Vec<Uid>,
}

/// An association that we requested. Dropping it closes the connection without ceremony; prefer [`Association::release`].
pub struct Association<S = Box<dyn Stream>> {
    transport: Transport<S>,
    contexts: Vec<Context>,
    options: ScuOptions,
    peer: SocketAddr,
    last_message_id: u16,
}

impl Association {
    /// Connects over TCP, encrypts where the options say so, and negotiates. At most [`CONTEXTS_MAX`] proposals; more are refused as [`ScuError::Terms`].
    ///
    /// # Errors
    /// When there is no association.
    pub async fn connect(
        host: &str,
        port: u16,
        options: &ScuOptions,
        proposals: &[Proposal],
    ) -> Result<Self, ScuError> {
        let limit = Duration::from_millis(options.connect_timeout_ms);
        let stream = timeout(limit, TcpStream::connect((host, port)))
            .await
            .map_err(|_| ScuError::Timeout("the connection"))?
            .map_err(ScuError::Connect)?;
        // Without this, a response of two segments waits for the delayed acknowledgement of the first.
        stream.set_nodelay(true).map_err(ScuError::Connect)?;
        let peer = stream.peer_addr().map_err(ScuError::Connect)?;
        let stream: Box<dyn Stream> = match &options.secure {
            None => Box::new(stream),
            Some(secure) => timeout(limit, secure.secure(stream))
                .await
                .map_err(|_| ScuError::Timeout("the TLS handshake"))?
                .map_err(ScuError::Secure)?,
        };
        Self::establish(stream, peer, options, proposals).await
    }
}

impl<S: Stream> Association<S> {
    /// Negotiates over an established connection, such as TLS.
    ///
    /// # Errors
    /// When there is no association.
    pub async fn establish(
        mut stream: S,
        peer: SocketAddr,
        options: &ScuOptions,
        proposals: &[Proposal],
    ) -> Result<Self, ScuError> {
        if proposals.is_empty() || proposals.len() > CONTEXTS_MAX {
            return Err(ScuError::Terms);
        }
        let limit = Duration::from_millis(options.association_timeout_ms);
        let mut buffer = BytesMut::new();
        let negotiation = async {
            handshake::write(&mut stream, &Pdu::AssociationRQ(request(options, proposals))).await?;
            handshake::read(&mut stream, &mut buffer).await
        };
        let answer = timeout(limit, negotiation).await.map_err(|_| ScuError::Timeout("the association"))??;
        if answer.kind != 0x02 {
            return Err(match answer.decode()? {
                Pdu::AssociationRJ(rejection) => ScuError::Rejected(Rejection::of_pdu(&rejection)),
                Pdu::AbortRQ { .. } => TransportError::Aborted.into(),
                _ => ScuError::Handshake(HandshakeError::Malformed),
            });
        }
        let accepted = read_accept(answer.body()).ok_or(HandshakeError::Malformed)?;
        let fragment_size = accepted.variables.fragment_size().ok_or(ScuError::Terms)?;
        let contexts = accepted
            .contexts
            .iter()
            .map(|(id, syntax)| accepted_context(*id, syntax, proposals, &accepted.variables))
            .collect::<Option<Vec<Context>>>()
            .ok_or(ScuError::Terms)?;
        let transport = Transport::new(
            stream,
            Inbox::with_buffer(options.pdu_bytes_max, buffer),
            Assembler::new(contexts.iter().map(|context| context.id)),
            fragment_size,
            options.dimse_timeout(),
        );
        Ok(Association { transport, contexts, options: options.clone(), peer, last_message_id: 0 })
    }

    /// The accepted presentation contexts.
    pub fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// Whether an object of this class and transfer syntax can be sent.
    pub fn can_store(&self, sop_class: &Uid, transfer_syntax: &TransferSyntax) -> bool {
        self.store_context(sop_class, transfer_syntax).is_ok()
    }

    /// C-ECHO.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn echo(&mut self) -> Result<Outcome, ScuError> {
        let context = self.context(&sop_class::VERIFICATION)?;
        let message_id = self.next_message_id();
        let command = Command::EchoRq(EchoRq { message_id, sop_class: sop_class::VERIFICATION });
        let outcome = self.exchange(context, &command, None, Operation::Echo, message_id).await;
        Ok(self.checked(outcome).await?.outcome)
    }

    /// C-STORE of one object. The outcome may be a warning or failure; the association stays good.
    ///
    /// # Errors
    /// When there is no fitting context, or no response. After a failing source the association is aborted, since half an object cannot
    /// be taken back.
    pub async fn store(
        &mut self,
        object: &StoreRequest,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Result<Outcome, ScuError> {
        let (context, message_id, command) = self.store_command(object)?;
        let sent = self.transport.send_object(&context, &command, &object.transfer_syntax, source, object.bytes).await;
        self.stored(sent, message_id).await
    }

    /// As [`Self::store`], with the data set where it is.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub async fn store_stream(
        &mut self,
        object: &StoreRequest,
        stream: &mut ObjectStream,
    ) -> Result<Outcome, ScuError> {
        let (context, message_id, command) = self.store_command(object)?;
        let sent = self.transport.send_content(&context, &command, stream).await;
        self.stored(sent, message_id).await
    }

    /// The context for an object, the message id and the encoded command.
    fn store_command(&mut self, object: &StoreRequest) -> Result<(Context, u16, Vec<u8>), ScuError> {
        let context = self.store_context(&object.sop_class, &object.transfer_syntax)?;
        let message_id = self.next_message_id();
        let command = Command::StoreRq(StoreRq {
            message_id,
            sop_class: object.sop_class,
            sop_instance: object.sop_instance,
            priority: object.priority,
            move_originator: object.move_originator.clone(),
        });
        Ok((context, message_id, command.encode(true)))
    }

    async fn stored(&mut self, sent: Result<(), TransportError>, message_id: u16) -> Result<Outcome, ScuError> {
        let response = match sent {
            Ok(()) => self.response(Operation::Store, message_id).await.map(|(response, _)| response),
            Err(error) => Err(error),
        };
        Ok(self.checked(response).await?.outcome)
    }

    /// C-FIND. Every match goes to `on_match`, which may break off; a C-CANCEL is sent then and the outcome is the peer's answer to it.
    ///
    /// # Errors
    /// When there is no fitting context or no final response.
    pub async fn find(
        &mut self,
        sop_class: &Uid,
        identifier: &DataSet,
        on_match: impl FnMut(DataSet) -> ControlFlow<()> + Send,
    ) -> Result<Outcome, ScuError> {
        let context = self.context(sop_class)?;
        let message_id = self.next_message_id();
        let command = Command::FindRq(QueryRq { message_id, sop_class: *sop_class, priority: Priority::Medium });
        let found = self.find_on(context, message_id, &command, identifier, on_match).await;
        self.checked(found).await
    }

    async fn find_on(
        &mut self,
        context: Context,
        message_id: u16,
        command: &Command,
        identifier: &DataSet,
        mut on_match: impl FnMut(DataSet) -> ControlFlow<()> + Send,
    ) -> Result<Outcome, TransportError> {
        let encoding = context.transfer_syntax.encoding();
        let identifier = identifier.write(encoding);
        self.transport.send(context.id, &command.encode(true), Some(&identifier)).await?;
        let mut cancelled = false;
        loop {
            let (response, data_set) = self.response(Operation::Find, message_id).await?;
            if response.outcome.status.kind() != StatusKind::Pending {
                return Ok(response.outcome);
            }
            let found = data_set.map(|bytes| decode(&bytes, encoding)).unwrap_or_default();
            if !cancelled && on_match(found).is_break() {
                cancelled = true;
                self.cancel(context, message_id).await?;
            }
        }
    }

    /// C-MOVE. Every pending response goes to `on_progress`, which may break off as in [`Self::find`].
    ///
    /// # Errors
    /// When there is no fitting context or no final response.
    pub async fn r#move(
        &mut self,
        sop_class: &Uid,
        destination: &AeTitle,
        identifier: &DataSet,
        mut on_progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Retrieved, ScuError> {
        let context = self.context(sop_class)?;
        let message_id = self.next_message_id();
        let (sop_class, destination) = (*sop_class, destination.clone());
        let command = Command::MoveRq(MoveRq { message_id, sop_class, priority: Priority::Medium, destination });
        let identifier = identifier.write(context.transfer_syntax.encoding());
        let moved = async {
            self.transport.send(context.id, &command.encode(true), Some(&identifier)).await?;
            let mut cancelled = false;
            loop {
                let (response, data_set) = self.response(Operation::Move, message_id).await?;
                if response.outcome.status.kind() != StatusKind::Pending {
                    return Ok(retrieved(response, data_set, context.transfer_syntax.encoding()));
                }
                if !cancelled && on_progress(response.progress.unwrap_or_default()).is_break() {
                    cancelled = true;
                    self.cancel(context, message_id).await?;
                }
            }
        };
        let moved = moved.await;
        self.checked(moved).await
    }

    /// C-GET. Objects go to `receiver`; the storage contexts must have been proposed with [`Proposal::receiving`].
    ///
    /// # Errors
    /// When there is no fitting context or no final response.
    pub async fn get(
        &mut self,
        sop_class: &Uid,
        identifier: &DataSet,
        receiver: &mut impl Receiver,
    ) -> Result<Retrieved, ScuError> {
        let context = self.context(sop_class)?;
        let message_id = self.next_message_id();
        let command = Command::GetRq(QueryRq { message_id, sop_class: *sop_class, priority: Priority::Medium });
        let encoding = context.transfer_syntax.encoding();
        let identifier = identifier.write(encoding);
        let got = async {
            self.transport.send(context.id, &command.encode(true), Some(&identifier)).await?;
            loop {
                match self.command().await? {
                    (id, Command::StoreRq(rq), has_data_set) => {
                        self.receive_suboperation(id, rq, has_data_set, receiver).await?;
                    }
                    (_, Command::Response(response), has_data_set)
                        if response.operation == Operation::Get && response.responding_to == message_id =>
                    {
                        let data_set = self.response_data_set(has_data_set).await?;
                        if response.outcome.status.kind() != StatusKind::Pending {
                            return Ok(retrieved(response, data_set, encoding));
                        }
                    }
                    _ => return Err(unexpected()),
                }
            }
        };
        let got = got.await;
        self.checked(got).await
    }

    async fn receive_suboperation(
        &mut self,
        context_id: u8,
        rq: StoreRq,
        has_data_set: bool,
        receiver: &mut impl Receiver,
    ) -> Result<(), TransportError> {
        let context = self.contexts.iter().find(|context| context.id == context_id).ok_or_else(unexpected)?;
        let head = StoreHead {
            sop_class: rq.sop_class,
            sop_instance: rq.sop_instance,
            transfer_syntax: context.transfer_syntax,
            move_originator: rq.move_originator,
            calling: self.options.called.clone(),
            called: self.options.calling.clone(),
            peer: self.peer,
            message_id: rq.message_id,
        };
        let begun = if has_data_set { receiver.begin(&head).await } else { Err(without_data_set()) };
        let stored = receive_object(&mut self.transport, begun, self.options.dimse_timeout()).await?;
        let response = Command::Response(Response {
            operation: Operation::Store,
            responding_to: rq.message_id,
            sop_class: Some(rq.sop_class),
            sop_instance: Some(rq.sop_instance),
            outcome: match stored {
                Ok(stored) => stored.status.into(),
                Err(failure) => Outcome::failed(&failure, Operation::Store),
            },
            progress: None,
        });
        self.transport.send(context_id, &response.encode(false), None).await
    }

    /// A-RELEASE.
    ///
    /// # Errors
    /// When the peer does not agree; the association is over anyway.
    pub async fn release(mut self) -> Result<(), ScuError> {
        let limit = Duration::from_millis(self.options.association_timeout_ms);
        let release = async {
            self.transport.send_release_rq().await?;
            match self.transport.receive_within(limit, "the release").await? {
                Received::ReleaseRp => Ok(()),
                // Release collision (PS3.8 9.2.2): both wanted the same.
                Received::ReleaseRq => self.transport.send_release_rp().await,
                Received::Part(_) => Err(unexpected()),
            }
        };
        let released = release.await;
        self.checked(released).await
    }

    /// A-ABORT.
    pub async fn abort(mut self) {
        self.transport.abort(AbortSource::ServiceUser).await;
    }

    fn next_message_id(&mut self) -> u16 {
        self.last_message_id = self.last_message_id.wrapping_add(1).max(1);
        self.last_message_id
    }

    fn context(&self, abstract_syntax: &Uid) -> Result<Context, ScuError> {
        let found = self.contexts.iter().find(|context| context.abstract_syntax == *abstract_syntax).copied();
        found.ok_or_else(|| missing(abstract_syntax, None))
    }

    fn store_context(&self, sop_class: &Uid, transfer_syntax: &TransferSyntax) -> Result<Context, ScuError> {
        let of_class = self.contexts.iter().filter(|context| context.abstract_syntax == *sop_class);
        context_for_object(of_class, transfer_syntax).ok_or_else(|| missing(sop_class, Some(*transfer_syntax.uid())))
    }

    async fn exchange(
        &mut self,
        context: Context,
        command: &Command,
        data_set: Option<&[u8]>,
        operation: Operation,
        message_id: u16,
    ) -> Result<Response, TransportError> {
        self.transport.send(context.id, &command.encode(data_set.is_some()), data_set).await?;
        self.response(operation, message_id).await.map(|(response, _)| response)
    }

    async fn cancel(&mut self, context: Context, message_id: u16) -> Result<(), TransportError> {
        let command = Command::CancelRq { responding_to: message_id };
        self.transport.send(context.id, &command.encode(false), None).await
    }

    async fn command(&mut self) -> Result<(u8, Command, bool), TransportError> {
        match self.transport.receive_within(self.options.dimse_timeout(), "a response").await? {
            Received::Part(Part::Command { context_id, command, has_data_set }) => {
                Ok((context_id, *command, has_data_set))
            }
            Received::Part(Part::Data { .. }) | Received::ReleaseRp => Err(unexpected()),
            Received::ReleaseRq => Err(TransportError::Released),
        }
    }

    /// The response to the message under way, with its data set.
    async fn response(
        &mut self,
        operation: Operation,
        message_id: u16,
    ) -> Result<(Response, Option<Vec<u8>>), TransportError> {
        match self.command().await? {
            (_, Command::Response(response), has_data_set)
                if response.operation == operation && response.responding_to == message_id =>
            {
                Ok((response, self.response_data_set(has_data_set).await?))
            }
            _ => Err(unexpected()),
        }
    }

    async fn response_data_set(&mut self, has_data_set: bool) -> Result<Option<Vec<u8>>, TransportError> {
        const BYTES_MAX: usize = 16 << 20;
        if !has_data_set {
            return Ok(None);
        }
        self.transport.receive_data_set(self.options.dimse_timeout(), BYTES_MAX).await
    }

    /// After an error nobody knows where in the protocol we are, so the association is aborted.
    async fn checked<T>(&mut self, result: Result<T, TransportError>) -> Result<T, ScuError> {
        if let Err(error) = &result
            && let Some(source) = AbortSource::answering(error)
        {
            self.transport.abort(source).await;
        }
        Ok(result?)
    }
}

fn missing(abstract_syntax: &Uid, transfer_syntax: Option<Uid>) -> ScuError {
    ScuError::NoContext(Box::new(MissingContext { abstract_syntax: *abstract_syntax, transfer_syntax }))
}

fn unexpected() -> TransportError {
    ProtocolError::UnexpectedMessage("a message that answers nothing we asked").into()
}

fn request(options: &ScuOptions, proposals: &[Proposal]) -> AssociationRQ {
    let presentation_contexts = proposals.iter().zip((1..=255).step_by(2)).map(|(proposal, id)| {
        let transfer_syntaxes = proposal.transfer_syntaxes.iter().map(|syntax| syntax.uid().to_string()).collect();
        PresentationContextProposed { id, abstract_syntax: proposal.abstract_syntax.to_string(), transfer_syntaxes }
    });
    let mut user_variables = own_variables(options.pdu_bytes_max);
    let mut with_roles = HashSet::new();
    for proposal in proposals {
        // One role selection item per SOP class, however many contexts it has (PS3.7 D.3.3.4).
        if let Some(roles) = proposal.roles.filter(|_| with_roles.insert(proposal.abstract_syntax)) {
            let roles = RequestorRoles { scu: roles.scu, scp: roles.scp };
            let class = proposal.abstract_syntax.to_string();
            user_variables.push(UserVariableItem::ScuScpRoleSelectionSubItem(class, roles));
        }
    }
    user_variables.extend(options.user_identity.as_ref().map(identity_item));
    AssociationRQ {
        protocol_version: 1,
        calling_ae_title: options.calling.to_string(),
        called_ae_title: options.called.to_string(),
        application_context_name: APPLICATION_CONTEXT.to_owned(),
        presentation_contexts: presentation_contexts.collect(),
        user_variables,
    }
}

fn identity_item(identity: &UserIdentity) -> UserVariableItem {
    let kind = match identity.kind {
        UserIdentityKind::Username => UserIdentityType::Username,
        UserIdentityKind::UsernamePasscode => UserIdentityType::UsernamePassword,
        UserIdentityKind::Kerberos => UserIdentityType::KerberosServiceTicket,
        UserIdentityKind::Saml => UserIdentityType::SamlAssertion,
        UserIdentityKind::Jwt => UserIdentityType::Jwt,
    };
    UserVariableItem::UserIdentityItem(dicom_ul::pdu::UserIdentity::new(
        identity.positive_response_requested,
        kind,
        identity.primary.clone(),
        identity.secondary.clone(),
    ))
}

/// An accepted context, if it is one of ours with one of the transfer syntaxes proposed.
fn accepted_context(
    id: u8,
    syntax: &Uid,
    proposals: &[Proposal],
    variables: &crate::negotiation::UserVariables,
) -> Option<Context> {
    let proposal = proposals.get(usize::from(id / 2)).filter(|_| id % 2 == 1)?;
    let transfer_syntax = proposal.transfer_syntaxes.iter().find(|proposed| proposed.uid() == syntax)?;
    Some(Context {
        id,
        abstract_syntax: proposal.abstract_syntax,
        transfer_syntax: *transfer_syntax,
        service: sop_class::service(&proposal.abstract_syntax).unwrap_or(Service::Storage),
        requestor_roles: proposal.roles.and(variables.roles(&proposal.abstract_syntax)),
        relational: false,
        combined_date_time: false,
    })
}

/// A match that cannot be decoded counts as an empty one: the peer meant something, and the operation goes on.
fn decode(bytes: &[u8], encoding: Encoding) -> DataSet {
    match read(bytes, encoding, &ReadOptions::default()) {
        Ok((data_set, ReadEnd::Complete)) => data_set,
        _ => DataSet::default(),
    }
}

fn retrieved(response: Response, data_set: Option<Vec<u8>>, encoding: Encoding) -> Retrieved {
    let identifier = data_set.map(|bytes| decode(&bytes, encoding)).unwrap_or_default();
    let failed_instances = identifier.texts(FAILED_INSTANCES).iter().filter_map(|uid| Uid::new(uid).ok()).collect();
    Retrieved { outcome: response.outcome, progress: response.progress.unwrap_or_default(), failed_instances }
}

/// (0008,0058) Failed SOP Instance UID List.
pub(crate) const FAILED_INSTANCES: crate::Tag = crate::Tag(0x0008, 0x0058);

/// Whether an outcome means that the object is there now.
pub fn is_stored(outcome: &Outcome) -> bool {
    outcome.status == Status::SUCCESS || outcome.status.kind() == StatusKind::Warning
}
