//! Brings objects that another site keeps, from there: whole studies by ITI-43, single objects and series by RAD-69.
//!
//! Must not know how what comes is proven and kept.

use alloy::primitives::hex;
use dicom_scp::Uid;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use ihe_retrieve::receiver::{ResponseError, ResponsePiece, RetrieveResponse};
use ihe_retrieve::request::{DocumentRequest, ImagingDocumentRequest, Retrieve as Asked};

use super::ask::{AskError, Asker, Taker};
use crate::archive::{Archive, Stored};
use crate::audit::{Audit, Event};
use crate::exchange::client::Endpoint;
use crate::payload::manifest::{Manifest, ManifestObject};
use crate::retrieve::{Delivery, Errand, Manner, Source, SourceError};
use crate::site::Parts;
use crate::zip::{Unpacked, Unpacker};

/// Objects that one request of RAD-69 names: well below what a bridge takes.
const OBJECTS_A_REQUEST: usize = 256;
/// Objects in a row that a source may have trouble with before it is left.
const TROUBLES_MAX: u32 = 8;
/// Registry errors that may be over soon.
const PASSING: [&str; 2] = ["XDSRepositoryBusy", "XDSRepositoryError"];

/// Asks sources for what they keep.
pub struct FromSources {
    archive: Archive,
    asker: Asker,
    audit: Audit,
}

impl FromSources {
    /// On behalf of a site.
    #[must_use]
    pub(crate) fn new(parts: &Parts) -> Self {
        Self { archive: parts.archive.clone(), asker: Asker::new(parts), audit: parts.audit.clone() }
    }
}

impl Source for FromSources {
    fn bring<'a>(&'a self, errand: &'a Errand, delivery: &'a mut Delivery) -> BoxFuture<'a, Result<(), SourceError>> {
        self.run(errand, delivery).boxed()
    }
}

impl FromSources {
    async fn run(&self, errand: &Errand, delivery: &mut Delivery) -> Result<(), SourceError> {
        let endpoint = self.asker.endpoint(errand.study.source).map_err(SourceError::from)?;
        let manifest = self.manifest(errand)?;
        let whole = errand.manner == Manner::Any && is_worth_the_whole(errand, &manifest);
        let outcome = match errand.manner {
            _ if whole => self.whole(&endpoint, errand, &manifest, delivery).await,
            Manner::Any | Manner::Parts => self.parts(&endpoint, errand, delivery).await,
            Manner::Single => self.each(&endpoint, errand, delivery).await,
        };
        self.record(errand, whole, &outcome);
        outcome
    }

    fn record(&self, errand: &Errand, whole: bool, outcome: &Result<(), SourceError>) {
        let (source, study) = (errand.study.source.to_string(), hex::encode(errand.study.study_id));
        let why = outcome.as_ref().err().map(ToString::to_string);
        self.audit.record(Event::brought(&source, &study, errand.wanted.len(), whole, why.as_deref()));
    }

    async fn parts(&self, endpoint: &Endpoint, errand: &Errand, delivery: &mut Delivery) -> Result<(), SourceError> {
        for objects in errand.wanted.chunks(OBJECTS_A_REQUEST) {
            self.some(endpoint, errand, objects, delivery).await?;
        }
        Ok(())
    }

    /// Object by object, past those that the source has trouble with.
    async fn each(&self, endpoint: &Endpoint, errand: &Errand, delivery: &mut Delivery) -> Result<(), SourceError> {
        let (mut outcome, mut in_a_row) = (Ok(()), 0);
        for object in errand.wanted.chunks(1) {
            match self.some(endpoint, errand, object, delivery).await {
                Ok(()) => in_a_row = 0,
                Err(error @ (SourceError::Broken(_) | SourceError::Refused(_))) if in_a_row < TROUBLES_MAX => {
                    outcome = Err(error);
                    in_a_row += 1;
                }
                Err(error) => return Err(error),
            }
        }
        outcome
    }

    fn manifest(&self, errand: &Errand) -> Result<Manifest, SourceError> {
        let gone = || SourceError::Here("the study's manifest is not here any more".into());
        let first = errand.wanted.first().ok_or_else(gone)?;
        let encoded = self.archive.foreign_manifest(first).map_err(|e| here(&e))?.ok_or_else(gone)?;
        Manifest::decode(&encoded).map_err(|e| here(&e))
    }

    /// The version that is known here, in the order of its manifest.
    async fn whole(
        &self,
        endpoint: &Endpoint,
        errand: &Errand,
        manifest: &Manifest,
        delivery: &mut Delivery,
    ) -> Result<(), SourceError> {
        let document_unique_id = format!("{}^{}", hex::encode(errand.study.study_id), manifest.version);
        let request = DocumentRequest { document_unique_id, ..request_of(errand) };
        let listed = |object: &ManifestObject| (object.sop_instance_uid, object.file_bytes);
        let order: Vec<_> = manifest.objects.iter().map(listed).collect();
        let mut taker =
            ToArchive { delivery, form: Form::Zip { unpacker: Unpacker::default(), order: order.into_iter() } };
        self.asker.ask(endpoint, &Asked::Documents(vec![request]), &mut taker).await?;
        taker.finish()
    }

    /// Some objects, as they were stored.
    async fn some(
        &self,
        endpoint: &Endpoint,
        errand: &Errand,
        objects: &[Stored],
        delivery: &mut Delivery,
    ) -> Result<(), SourceError> {
        let mut objects: Vec<_> = objects.iter().collect();
        // Requests list objects by their series.
        objects.sort_by(|a, b| a.series_uid.as_str().cmp(b.series_uid.as_str()));
        let mut transfer_syntax_uids: Vec<_> =
            objects.iter().map(|stored| stored.transfer_syntax.to_string()).collect();
        transfer_syntax_uids.sort_unstable();
        transfer_syntax_uids.dedup();
        let documents = objects.into_iter().map(|stored| ImagingDocumentRequest {
            study_instance_uid: stored.study_uid.to_string(),
            series_instance_uid: stored.series_uid.to_string(),
            document: DocumentRequest { document_unique_id: stored.sop_instance.to_string(), ..request_of(errand) },
        });
        let asked = Asked::Imaging { documents: documents.collect(), transfer_syntax_uids };
        let mut taker = ToArchive { delivery, form: Form::Objects(None) };
        self.asker.ask(endpoint, &asked, &mut taker).await?;
        taker.finish()
    }
}

/// A request to the source of an errand that names no document yet.
fn request_of(errand: &Errand) -> DocumentRequest {
    DocumentRequest {
        repository_unique_id: format!("{:#x}", errand.study.source),
        document_unique_id: String::new(),
        home_community_id: None,
    }
}

/// Whether to have the whole study sent: when it is granted whole, and half of its bytes or more are wanted.
fn is_worth_the_whole(errand: &Errand, manifest: &Manifest) -> bool {
    let all: u64 = manifest.objects.iter().map(|object| object.file_bytes).sum();
    let wanted: u64 = errand.wanted.iter().map(|stored| stored.file_bytes).sum();
    errand.study.window.series.is_zero() && manifest.series.is_none() && wanted >= all.div_ceil(2)
}

fn here(error: &(dyn std::error::Error + 'static)) -> SourceError {
    SourceError::Here(crate::chain_of(error))
}

impl From<AskError> for SourceError {
    fn from(error: AskError) -> Self {
        let words = crate::chain_of(&error);
        match error {
            AskError::Keyring(_)
            | AskError::Source(_)
            | AskError::NoEndpoint(_)
            | AskError::Sign(_)
            | AskError::Consents(_) => Self::Here(words),
            AskError::Refused { code, .. } if PASSING.contains(&code.as_str()) => Self::Broken(words),
            AskError::Refused { .. } | AskError::Fault(_) => Self::Refused(words),
            AskError::NoLedger | AskError::NotBound | AskError::Exchange(_) => Self::Away(words),
            AskError::BrokenOff(_) | AskError::Status(_) | AskError::Response(ResponseError::Multipart(_)) => {
                Self::Broken(words)
            }
            AskError::Response(_) => Self::Differs,
        }
    }
}

/// Hands the objects of an answer on.
struct ToArchive<'a> {
    delivery: &'a mut Delivery,
    form: Form,
}

/// Objects and the lengths of their files, as the manifest lists them.
type Order = std::vec::IntoIter<(Uid, u64)>;

enum Form {
    /// One archive with all objects of the manifest.
    Zip { unpacker: Unpacker, order: Order },
    /// A document for each object: what the answer says of them, once it came.
    Objects(Option<RetrieveResponse>),
}

impl Taker for ToArchive<'_> {
    type Error = SourceError;

    async fn take(&mut self, piece: ResponsePiece<'_>) -> Result<(), SourceError> {
        match (piece, &mut self.form) {
            (ResponsePiece::Response(said), form) => begin(form, said),
            (ResponsePiece::Document(index), Form::Objects(Some(said))) => {
                let named = said.documents.get(index).and_then(|document| Uid::new(&document.document_unique_id).ok());
                // Nothing else was asked for.
                match self.delivery.begin(&named.ok_or(SourceError::Differs)?).await? {
                    true => Ok(()),
                    false => Err(SourceError::Differs),
                }
            }
            (ResponsePiece::Data(octets), Form::Objects(_)) => self.delivery.write(octets).await,
            (ResponsePiece::DocumentEnd, Form::Objects(_)) => self.delivery.end().await,
            (ResponsePiece::Data(octets), Form::Zip { unpacker, order }) => {
                unpack(octets, unpacker, order, self.delivery).await
            }
            _ => Ok(()),
        }
    }
}

/// Takes note of what an answer says of its documents. Objects that are there come, whatever became of others.
fn begin(form: &mut Form, said: RetrieveResponse) -> Result<(), SourceError> {
    match form {
        Form::Zip { .. } => match (refusal(&said), said.documents.len()) {
            (Some(refused), _) => Err(refused),
            (None, 1) => Ok(()),
            (None, _) => Err(SourceError::Differs),
        },
        Form::Objects(documents) => {
            *documents = Some(said);
            Ok(())
        }
    }
}

/// The first document that is refused, if one is.
fn refusal(said: &RetrieveResponse) -> Option<SourceError> {
    let error = said.errors.first()?;
    Some(AskError::Refused { code: error.code.clone(), context: error.context.clone() }.into())
}

async fn unpack(
    mut octets: &[u8],
    unpacker: &mut Unpacker,
    order: &mut Order,
    delivery: &mut Delivery,
) -> Result<(), SourceError> {
    while let Some(unpacked) = unpacker.next(&mut octets).map_err(|_| SourceError::Differs)? {
        match unpacked {
            Unpacked::File(bytes) => {
                // What is passed over must have its length too, or it could go on for ever.
                let (uid, _) = order.next().filter(|(_, listed)| *listed == bytes).ok_or(SourceError::Differs)?;
                delivery.begin(&uid).await?;
            }
            Unpacked::Data(data) => delivery.write(data).await?,
            Unpacked::FileEnd => delivery.end().await?,
        }
    }
    Ok(())
}

impl ToArchive<'_> {
    /// Whether all was there that the manifest lists.
    fn finish(self) -> Result<(), SourceError> {
        match self.form {
            Form::Zip { unpacker, order } if unpacker.is_done() && order.len() == 0 => Ok(()),
            Form::Objects(Some(said)) => refusal(&said).map_or(Ok(()), Err),
            Form::Zip { .. } | Form::Objects(None) => Err(SourceError::Differs),
        }
    }
}
