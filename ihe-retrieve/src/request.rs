//! What a request asks for, read from its body (ITI TF-2 3.43.4.1, RAD TF-2 4.69.4.1).

use std::collections::HashSet;

use crate::envelope::Transaction;
use crate::fault::Fault;
use crate::identifier::{DocumentUniqueId, RepositoryUniqueId};
use crate::limits::{DOCUMENTS_MAX, IMAGING_DOCUMENTS_MAX, LONG_NAME_CHARS_MAX, TRANSFER_SYNTAXES_MAX};
use crate::names::{XDS, XDSI};
use crate::xml::{Document, NodeId};

/// One `DocumentRequest`, each identifier as the requester wrote it, which is how the response says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DocumentRequest {
    /// RepositoryUniqueId.
    pub repository_unique_id: String,
    /// DocumentUniqueId; of RAD-69 the SOP Instance UID.
    pub document_unique_id: String,
    /// HomeCommunityId, where there is one.
    pub home_community_id: Option<String>,
}

/// One instance of RAD-69 with the study and series it is said to be of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImagingDocumentRequest {
    /// `StudyRequest/@studyInstanceUID`
    pub study_instance_uid: String,
    /// `SeriesRequest/@seriesInstanceUID`
    pub series_instance_uid: String,
    /// The instance.
    pub document: DocumentRequest,
}

/// What is asked for. Requests for the same thing are there once, the first of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retrieve {
    /// ITI-43.
    Documents(Vec<DocumentRequest>),
    /// RAD-69.
    Imaging {
        /// The instances, in the order of the request.
        documents: Vec<ImagingDocumentRequest>,
        /// Transfer syntaxes that the requester takes, in its order.
        transfer_syntax_uids: Vec<String>,
    },
}

pub(crate) fn read(document: &Document<'_>, request: NodeId, transaction: Transaction) -> Result<Retrieve, Fault> {
    check_structure(document, request)?;
    match transaction {
        Transaction::RetrieveDocumentSet => {
            let mut documents = read_documents(document, request, DOCUMENTS_MAX)?;
            keep_first(&mut documents, same_document);
            Ok(Retrieve::Documents(documents))
        }
        Transaction::RetrieveImagingDocumentSet => read_imaging(document, request),
    }
}

fn read_documents(
    document: &Document<'_>,
    parent: NodeId,
    documents_max: usize,
) -> Result<Vec<DocumentRequest>, Fault> {
    let mut documents = Vec::new();
    for child in document.children(parent) {
        if !document.is(child, XDS, "DocumentRequest") {
            return Err(Fault::Body);
        }
        if documents.len() == documents_max {
            return Err(Fault::TooComplex);
        }
        documents.push(read_document(document, child)?);
    }
    if documents.is_empty() { Err(Fault::Body) } else { Ok(documents) }
}

fn read_document(document: &Document<'_>, request: NodeId) -> Result<DocumentRequest, Fault> {
    check_structure(document, request)?;
    let (mut home, mut repository, mut unique) = (None, None, None);
    for child in document.children(request) {
        let field = match document.name(child) {
            (XDS, "HomeCommunityId") => &mut home,
            (XDS, "RepositoryUniqueId") => &mut repository,
            (XDS, "DocumentUniqueId") => &mut unique,
            _ => return Err(Fault::Body),
        };
        let text = document.text(child).ok_or(Fault::Body)?;
        if field.replace(long_name(&text)?).is_some() {
            return Err(Fault::Body);
        }
    }
    Ok(DocumentRequest {
        repository_unique_id: repository.ok_or(Fault::Body)?,
        document_unique_id: unique.ok_or(Fault::Body)?,
        home_community_id: home,
    })
}

fn read_imaging(document: &Document<'_>, request: NodeId) -> Result<Retrieve, Fault> {
    let (mut documents, mut syntaxes) = (Vec::new(), None);
    for child in document.children(request) {
        match document.name(child) {
            (XDSI, "StudyRequest") if syntaxes.is_none() => read_study(document, child, &mut documents)?,
            (XDSI, "TransferSyntaxUIDList") if syntaxes.is_none() => syntaxes = Some(read_syntaxes(document, child)?),
            _ => return Err(Fault::Body),
        }
    }
    if documents.is_empty() {
        return Err(Fault::Body);
    }
    keep_first(&mut documents, |d: &ImagingDocumentRequest| {
        (d.study_instance_uid.clone(), d.series_instance_uid.clone(), d.document.clone())
    });
    Ok(Retrieve::Imaging { documents, transfer_syntax_uids: syntaxes.ok_or(Fault::Body)? })
}

fn read_study(document: &Document<'_>, study: NodeId, into: &mut Vec<ImagingDocumentRequest>) -> Result<(), Fault> {
    check_structure(document, study)?;
    let study_instance_uid = uid_attribute(document, study, "studyInstanceUID")?;
    for series in document.children(study) {
        if !document.is(series, XDSI, "SeriesRequest") {
            return Err(Fault::Body);
        }
        check_structure(document, series)?;
        let series_instance_uid = uid_attribute(document, series, "seriesInstanceUID")?;
        for request in read_documents(document, series, IMAGING_DOCUMENTS_MAX - into.len())? {
            into.push(ImagingDocumentRequest {
                study_instance_uid: study_instance_uid.clone(),
                series_instance_uid: series_instance_uid.clone(),
                document: request,
            });
        }
    }
    Ok(())
}

fn read_syntaxes(document: &Document<'_>, list: NodeId) -> Result<Vec<String>, Fault> {
    check_structure(document, list)?;
    let mut syntaxes = Vec::new();
    for child in document.children(list) {
        let text = document.text(child).filter(|_| document.is(child, XDSI, "TransferSyntaxUID"));
        if syntaxes.len() == TRANSFER_SYNTAXES_MAX {
            return Err(Fault::TooComplex);
        }
        syntaxes.push(long_name(&text.ok_or(Fault::Body)?)?);
    }
    if syntaxes.is_empty() { Err(Fault::Body) } else { Ok(syntaxes) }
}

fn uid_attribute(document: &Document<'_>, id: NodeId, local: &str) -> Result<String, Fault> {
    long_name(document.attribute(id, "", local).ok_or(Fault::Body)?)
}

/// Section 2: trimmed, at most 256 characters. Everything else about it is the caller's to know or not to know.
fn long_name(text: &str) -> Result<String, Fault> {
    let trimmed = text.trim_matches(crate::xml::is_space);
    if trimmed.chars().count() > LONG_NAME_CHARS_MAX { Err(Fault::Body) } else { Ok(trimmed.to_owned()) }
}

fn check_structure(document: &Document<'_>, id: NodeId) -> Result<(), Fault> {
    if document.has_only_elements(id) { Ok(()) } else { Err(Fault::Body) }
}

/// What a request is about, whatever its spelling.
fn same_document(request: &DocumentRequest) -> (String, String, Option<String>) {
    let repository = RepositoryUniqueId::parse(&request.repository_unique_id).map(|r| hex::encode(r.address()));
    let document = DocumentUniqueId::parse(&request.document_unique_id).map(|d| d.canonical());
    (
        repository.unwrap_or_else(|| request.repository_unique_id.clone()),
        document.unwrap_or_else(|| request.document_unique_id.clone()),
        request.home_community_id.clone(),
    )
}

fn keep_first<T, K: Eq + std::hash::Hash>(requests: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut seen = HashSet::new();
    requests.retain(|request| seen.insert(key(request)));
}
