//! The answer to a verified request (sections 6 and 8 of the wire contract; ITI TF-2 3.43.4.2, ITI TF-3 4.2.4).

use crate::multipart::{PartPlan, Plan};
use crate::names::{RETRIEVE_DOCUMENT_SET_RESPONSE, RS, SOAP, WSA, XDS, XOP};
use crate::request::DocumentRequest;
use crate::xml;

/// All that was asked for is there.
pub const STATUS_SUCCESS: &str = "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Success";
/// Some of it is.
pub const STATUS_PARTIAL_SUCCESS: &str = "urn:ihe:iti:2007:ResponseStatusType:PartialSuccess";
/// Nothing is.
pub const STATUS_FAILURE: &str = "urn:oasis:names:tc:ebxml-regrep:ResponseStatusType:Failure";
/// The severity of every error here.
const SEVERITY_ERROR: &str = "urn:oasis:names:tc:ebxml-regrep:ErrorSeverityType:Error";

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentType {
    /// ITI-43: a study's files in a ZIP archive.
    Zip,
    /// RAD-69: one PS3.10 file. Also a key object selection document.
    Dicom,
}

impl DocumentType {
    /// Its media type.
    pub fn mime_type(self) -> &'static str {
        match self {
            DocumentType::Zip => "application/zip",
            DocumentType::Dicom => "application/dicom",
        }
    }
}

/// Why one document is not there (ITI TF-3 table 4.2.4.1-2, RAD TF-2 4.69).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryErrorCode {
    /// XDSUnknownRepositoryId: another source.
    UnknownRepositoryId,
    /// XDSDocumentUniqueIdError: unknown, not granted, revoked or not stored, without saying which.
    DocumentUniqueIdError,
    /// XDSUnknownCommunity: a HomeCommunityId was given.
    UnknownCommunity,
    /// XDSRepositoryError: the ledger or the storage failed.
    RepositoryError,
    /// XDSRepositoryBusy: too much to do.
    RepositoryBusy,
    /// XDSIRequestError: study, series and instance do not belong together.
    ImagingRequestError,
    /// XDSIUnknownIdsUid: RAD-69's word for another source.
    UnknownImagingSource,
    /// The instance cannot be had in a transfer syntax of the request. RAD TF-2 4.69.4.2.3 wants an error and names none; this is the name
    /// that DICOM gave it for the same action (PS3.18 2016 6.4.4).
    TransferSyntax,
}

impl RegistryErrorCode {
    /// `@errorCode`
    pub fn code(self) -> &'static str {
        match self {
            RegistryErrorCode::UnknownRepositoryId => "XDSUnknownRepositoryId",
            RegistryErrorCode::DocumentUniqueIdError => "XDSDocumentUniqueIdError",
            RegistryErrorCode::UnknownCommunity => "XDSUnknownCommunity",
            RegistryErrorCode::RepositoryError => "XDSRepositoryError",
            RegistryErrorCode::RepositoryBusy => "XDSRepositoryBusy",
            RegistryErrorCode::ImagingRequestError => "XDSIRequestError",
            RegistryErrorCode::UnknownImagingSource => "XDSIUnknownIdsUid",
            RegistryErrorCode::TransferSyntax => "urn:dicom:wado:0007",
        }
    }

    /// `@codeContext`: one text per code, so that it says nothing the code does not say.
    pub fn context(self) -> &'static str {
        match self {
            RegistryErrorCode::UnknownRepositoryId => "the repository is not served here",
            RegistryErrorCode::DocumentUniqueIdError => {
                "the document is unknown or not available, or the requester is not authorized to have it"
            }
            RegistryErrorCode::UnknownCommunity => "no community is served here",
            RegistryErrorCode::RepositoryError => "the repository failed to process the request",
            RegistryErrorCode::RepositoryBusy => "the repository is busy; try again later",
            RegistryErrorCode::ImagingRequestError => "the request for the image is not valid",
            RegistryErrorCode::UnknownImagingSource => "the imaging document source is not served here",
            RegistryErrorCode::TransferSyntax => "the instance cannot be provided in a transfer syntax of the request",
        }
    }
}

/// The outcome of one document request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The document follows, with exactly so many octets.
    Document(DocumentType, u64),
    /// It does not.
    Error(RegistryErrorCode),
}

/// The whole response but the documents' octets, which follow in the order of the outcomes. Identifiers are those of the requests, as they were
/// written there. `nonce` must be random.
pub fn respond(relates_to: &str, outcomes: &[(&DocumentRequest, Outcome)], nonce: [u8; 16]) -> Plan {
    let mut parts = Vec::new();
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for (request, outcome) in outcomes {
        match outcome {
            Outcome::Document(kind, bytes) => {
                let content_id = format!("{}@pacs-bridge", parts.len() + 1);
                write_document(&mut documents, request, *kind, &content_id);
                parts.push(PartPlan { content_id, content_type: kind.mime_type(), bytes: *bytes });
            }
            Outcome::Error(code) => write_error(&mut errors, request, *code),
        }
    }
    let status = match (parts.is_empty(), errors.is_empty()) {
        (false, true) => STATUS_SUCCESS,
        (false, false) => STATUS_PARTIAL_SUCCESS,
        (true, _) => STATUS_FAILURE,
    };
    Plan::new(nonce, &envelope(relates_to, status, &errors, &documents), parts)
}

fn envelope(relates_to: &str, status: &str, errors: &[u8], documents: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "<env:Envelope xmlns:env=\"{SOAP}\" xmlns:wsa=\"{WSA}\"><env:Header>\
         <wsa:Action env:mustUnderstand=\"true\">{RETRIEVE_DOCUMENT_SET_RESPONSE}</wsa:Action><wsa:RelatesTo>"
    )
    .into_bytes();
    xml::text(&mut out, relates_to);
    let body = format!(
        "</wsa:RelatesTo></env:Header><env:Body><xds:RetrieveDocumentSetResponse xmlns:xds=\"{XDS}\">\
         <rs:RegistryResponse xmlns:rs=\"{RS}\" status=\"{status}\""
    );
    out.extend_from_slice(body.as_bytes());
    if errors.is_empty() {
        out.extend_from_slice(b"/>");
    } else {
        out.extend_from_slice(format!("><rs:RegistryErrorList highestSeverity=\"{SEVERITY_ERROR}\">").as_bytes());
        out.extend_from_slice(errors);
        out.extend_from_slice(b"</rs:RegistryErrorList></rs:RegistryResponse>");
    }
    out.extend_from_slice(documents);
    out.extend_from_slice(b"</xds:RetrieveDocumentSetResponse></env:Body></env:Envelope>");
    out
}

fn write_error(out: &mut Vec<u8>, request: &DocumentRequest, code: RegistryErrorCode) {
    let (name, context) = (code.code(), code.context());
    let start = format!(
        "<rs:RegistryError errorCode=\"{name}\" codeContext=\"{context}\" severity=\"{SEVERITY_ERROR}\" location=\""
    );
    out.extend_from_slice(start.as_bytes());
    xml::attribute(out, &request.document_unique_id);
    out.extend_from_slice(b"\"/>");
}

/// No white space around Include: a reader may take what is beside it for part of the document.
fn write_document(out: &mut Vec<u8>, request: &DocumentRequest, kind: DocumentType, content_id: &str) {
    out.extend_from_slice(b"<xds:DocumentResponse><xds:RepositoryUniqueId>");
    xml::text(out, &request.repository_unique_id);
    out.extend_from_slice(b"</xds:RepositoryUniqueId><xds:DocumentUniqueId>");
    xml::text(out, &request.document_unique_id);
    let end = format!(
        "</xds:DocumentUniqueId><xds:mimeType>{}</xds:mimeType><xds:Document><xop:Include xmlns:xop=\"{XOP}\" \
         href=\"cid:{content_id}\"/></xds:Document></xds:DocumentResponse>",
        kind.mime_type()
    );
    out.extend_from_slice(end.as_bytes());
}
