//! Reads the response to a request as it arrives: first what the root part says, then the octets of each document.

use crate::envelope;
use crate::limits::{RESPONSE_PARTS_MAX, RESPONSE_ROOT_BYTES_MAX, RESPONSE_XML};
use crate::media_type::MediaType;
use crate::multipart::{MultipartError, PartHead, Reader, Step, content_id_of_url};
use crate::names::{RETRIEVE_DOCUMENT_SET_RESPONSE, RS, SOAP, SOAP11, WSA, XDS, XOP};
use crate::xml::{Document, NodeId, XmlError};

/// What a repository says about one document that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    /// `@errorCode`
    pub code: String,
    /// `@codeContext`
    pub context: String,
    /// `@location`, which by the wire contract is the DocumentUniqueId.
    pub location: String,
}

/// A document that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentResponse {
    /// RepositoryUniqueId as requested.
    pub repository_unique_id: String,
    /// DocumentUniqueId as requested.
    pub document_unique_id: String,
    /// mimeType
    pub mime_type: String,
    content_id: String,
}

/// The root part of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrieveResponse {
    /// `rs:RegistryResponse/@status`
    pub status: String,
    /// What is not there.
    pub errors: Vec<RegistryError>,
    /// What is there, in the order of the root part; the parts may come in another.
    pub documents: Vec<DocumentResponse>,
}

/// A SOAP fault, of either version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoapFault {
    /// Code or faultcode, with whatever prefix it has.
    pub code: String,
    /// Subcode, with whatever prefix it has; empty when there is none.
    pub subcode: String,
    /// Reason or faultstring.
    pub reason: String,
}

/// Why a response is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The Content-Type is not that of MTOM.
    #[error("the response is not multipart/related of type application/xop+xml")]
    MediaType,
    /// The MIME structure is broken.
    #[error("the multipart message cannot be read")]
    Multipart(#[from] MultipartError),
    /// The root part is not XML that is taken here.
    #[error("the root part cannot be read")]
    Xml(#[from] XmlError),
    /// The root part is longer than the limit.
    #[error("the root part is too long")]
    TooLong,
    /// The root part is not the response of the transaction.
    #[error("the root part is not a response to RetrieveDocumentSet")]
    Shape,
    /// A response to another message.
    #[error("the response relates to another message")]
    Unrelated,
    /// A fault in the place of a response.
    #[error("the repository answered with a fault: {0:?}")]
    Fault(SoapFault),
    /// Parts and documents do not correspond one to one.
    #[error("parts and documents do not correspond")]
    Parts,
}

/// What comes next in a response.
#[derive(Debug, PartialEq, Eq)]
pub enum ResponsePiece<'r> {
    /// The root part was read.
    Response(RetrieveResponse),
    /// The octets of the document with this index follow.
    Document(usize),
    /// Octets of it.
    Data(&'r [u8]),
    /// All of them were there.
    DocumentEnd,
    /// The response is over.
    End,
}

/// Takes a response apart: [`ResponseReader::push`] octets, then call [`ResponseReader::next_piece`] until it wants more.
#[derive(Debug)]
pub struct ResponseReader {
    reader: Reader,
    message_id: String,
    root: Vec<u8>,
    /// By document, the Content-ID that is still to come.
    awaited: Option<Vec<Option<String>>>,
    ended: bool,
}

impl ResponseReader {
    /// A reader for the response with this Content-Type to the request with this message id.
    pub fn new(content_type: &str, message_id: &str) -> Result<ResponseReader, ResponseError> {
        let field = MediaType::parse(content_type).ok_or(ResponseError::MediaType)?;
        let xop = field.parameter("type").is_some_and(|kind| kind.eq_ignore_ascii_case("application/xop+xml"));
        let boundary = field.parameter("boundary").ok_or(ResponseError::MediaType)?;
        if field.essence() != "multipart/related" || !xop {
            return Err(ResponseError::MediaType);
        }
        let reader = Reader::new(boundary, RESPONSE_PARTS_MAX)?;
        Ok(ResponseReader { reader, message_id: message_id.to_owned(), root: Vec::new(), awaited: None, ended: false })
    }

    /// Takes the next octets of the body.
    pub fn push(&mut self, octets: &[u8]) {
        self.reader.push(octets);
    }

    /// The next piece, or `None` when more octets are needed.
    pub fn next_piece(&mut self) -> Result<Option<ResponsePiece<'_>>, ResponseError> {
        while let Some(step) = self.reader.step()? {
            match (step, self.awaited.is_some()) {
                (Step::Part(head), true) => return self.begin(head).map(|at| Some(ResponsePiece::Document(at))),
                (Step::Part(_), false) => {}
                (Step::Data(range), true) => return Ok(Some(ResponsePiece::Data(self.reader.data(range)))),
                (Step::Data(range), false) => self.root.extend_from_slice(self.reader.data(range)),
                (Step::PartEnd, true) => return Ok(Some(ResponsePiece::DocumentEnd)),
                (Step::PartEnd, false) => return self.read_root().map(|root| Some(ResponsePiece::Response(root))),
                (Step::End, _) => return self.end().map(|()| Some(ResponsePiece::End)),
            }
            if self.root.len() > RESPONSE_ROOT_BYTES_MAX {
                return Err(ResponseError::TooLong);
            }
        }
        Ok(None)
    }

    /// Whether the body may end here: every document was there, whole.
    pub fn finish(&self) -> Result<(), ResponseError> {
        self.reader.finish()?;
        if self.ended { Ok(()) } else { Err(ResponseError::Parts) }
    }

    fn read_root(&mut self) -> Result<RetrieveResponse, ResponseError> {
        let response = read_response(&std::mem::take(&mut self.root), &self.message_id)?;
        let awaited: Vec<_> = response.documents.iter().map(|document| Some(document.content_id.clone())).collect();
        self.awaited = Some(awaited);
        Ok(response)
    }

    fn begin(&mut self, head: PartHead) -> Result<usize, ResponseError> {
        let slots = self.awaited.as_mut().ok_or(ResponseError::Parts)?;
        let id = head.content_id.ok_or(ResponseError::Parts)?;
        let at = slots.iter().position(|slot| slot.as_ref() == Some(&id)).ok_or(ResponseError::Parts)?;
        slots[at] = None;
        Ok(at)
    }

    fn end(&mut self) -> Result<(), ResponseError> {
        self.ended = self.awaited.as_ref().is_some_and(|slots| slots.iter().all(Option::is_none));
        if self.ended { Ok(()) } else { Err(ResponseError::Parts) }
    }
}

fn read_response(root: &[u8], message_id: &str) -> Result<RetrieveResponse, ResponseError> {
    if let Some(fault) = read_fault(root) {
        return Err(ResponseError::Fault(fault));
    }
    let document = Document::parse(root, &RESPONSE_XML)?;
    let (header, body) = envelope::frame(&document).map_err(|_| ResponseError::Shape)?;
    if header_text(&document, header, "Action").as_deref() != Some(RETRIEVE_DOCUMENT_SET_RESPONSE) {
        return Err(ResponseError::Shape);
    }
    if header_text(&document, header, "RelatesTo").as_deref() != Some(message_id) {
        return Err(ResponseError::Unrelated);
    }
    read_body(&document, body).ok_or(ResponseError::Shape)
}

/// The text of the one addressing header of this name.
fn header_text(document: &Document<'_>, header: NodeId, local: &str) -> Option<String> {
    only_child(document, header, WSA, local).and_then(|node| text(document, node))
}

fn read_body(document: &Document<'_>, body: NodeId) -> Option<RetrieveResponse> {
    let response = only_child(document, body, XDS, "RetrieveDocumentSetResponse")?;
    let registry = only_child(document, response, RS, "RegistryResponse")?;
    let status = document.attribute(registry, "", "status")?.to_owned();
    let lists = document.children(registry).filter(|id| document.is(*id, RS, "RegistryErrorList"));
    let errors = lists.flat_map(|list| document.children(list)).filter(|id| document.is(*id, RS, "RegistryError"));
    let attribute = |id, local| document.attribute(id, "", local).unwrap_or_default().to_owned();
    let errors = errors.map(|id| RegistryError {
        code: attribute(id, "errorCode"),
        context: attribute(id, "codeContext"),
        location: attribute(id, "location"),
    });
    let documents = document.children(response).filter(|id| document.is(*id, XDS, "DocumentResponse"));
    let documents = documents.map(|id| read_document(document, id)).collect::<Option<Vec<_>>>()?;
    Some(RetrieveResponse { status, errors: errors.collect(), documents })
}

/// A DocumentResponse whose document is a part of its own. One inline, as Base64, is not taken: section 6 says MTOM always.
fn read_document(document: &Document<'_>, response: NodeId) -> Option<DocumentResponse> {
    let field = |local| only_child(document, response, XDS, local).and_then(|id| text(document, id));
    let content = only_child(document, response, XDS, "Document")?;
    let include = only_child(document, content, XOP, "Include").filter(|include| document.is_sole_child(*include))?;
    Some(DocumentResponse {
        repository_unique_id: field("RepositoryUniqueId")?,
        document_unique_id: field("DocumentUniqueId")?,
        mime_type: field("mimeType")?,
        content_id: document.attribute(include, "", "href").and_then(content_id_of_url)?,
    })
}

/// The one child of this name.
fn only_child(document: &Document<'_>, parent: NodeId, namespace: &str, local: &str) -> Option<NodeId> {
    let mut found = document.children(parent).filter(|id| document.is(*id, namespace, local));
    found.next().filter(|_| found.next().is_none())
}

fn text(document: &Document<'_>, id: NodeId) -> Option<String> {
    document.text(id).map(|text| text.trim_matches(crate::xml::is_space).to_owned())
}

/// Reads a SOAP fault of either version, such as the body of an answer with status 400 or 500; `None` when it is something else.
pub fn read_fault(octets: &[u8]) -> Option<SoapFault> {
    let document = Document::parse(octets, &RESPONSE_XML).ok()?;
    let (namespace, _) = document.name(document.root());
    let namespace = [SOAP, SOAP11].into_iter().find(|known| *known == namespace)?;
    let body = only_child(&document, document.root(), namespace, "Body")?;
    let fault = only_child(&document, body, namespace, "Fault")?;
    let child = |parent, namespace, local| only_child(&document, parent, namespace, local);
    let text_of = |id: Option<NodeId>| id.and_then(|id| text(&document, id)).unwrap_or_default();
    if namespace == SOAP11 {
        let (code, reason) = (text_of(child(fault, "", "faultcode")), text_of(child(fault, "", "faultstring")));
        return Some(SoapFault { code, subcode: String::new(), reason });
    }
    let code = child(fault, SOAP, "Code");
    let subcode = code.and_then(|code| child(code, SOAP, "Subcode"));
    let reason = child(fault, SOAP, "Reason").and_then(|reason| document.children(reason).next());
    Some(SoapFault {
        code: text_of(code.and_then(|code| child(code, SOAP, "Value"))),
        subcode: text_of(subcode.and_then(|subcode| child(subcode, SOAP, "Value"))),
        reason: text_of(reason),
    })
}
