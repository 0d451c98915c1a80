//! Shape, version, mandatory headers and addressing of an envelope: step 2 of the processing order. Nothing here is trusted yet;
//! `verify` asks that the nodes named here are the signed ones.

use crate::fault::Fault;
use crate::limits::{MESSAGE_ID_CHARS_MAX, NOT_UNDERSTOOD_MAX};
use crate::names::{
    ANONYMOUS, RETRIEVE_DOCUMENT_SET, RETRIEVE_IMAGING_DOCUMENT_SET, S2, SOAP, SOAP11, WSA, WSSE, XDS, XDSI,
};
use crate::xml::{Document, NodeId, is_space};

/// An addressing header: its element, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addressing {
    pub(crate) node: NodeId,
    pub(crate) value: String,
}

/// The two transactions of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// ITI-43 Retrieve Document Set.
    RetrieveDocumentSet,
    /// RAD-69 Retrieve Imaging Document Set.
    RetrieveImagingDocumentSet,
}

impl Transaction {
    /// The `wsa:Action` of its request.
    pub fn action(self) -> &'static str {
        match self {
            Transaction::RetrieveDocumentSet => RETRIEVE_DOCUMENT_SET,
            Transaction::RetrieveImagingDocumentSet => RETRIEVE_IMAGING_DOCUMENT_SET,
        }
    }

    /// Namespace and local name of its request.
    pub(crate) fn request(self) -> (&'static str, &'static str) {
        match self {
            Transaction::RetrieveDocumentSet => (XDS, "RetrieveDocumentSetRequest"),
            Transaction::RetrieveImagingDocumentSet => (XDSI, "RetrieveImagingDocumentSetRequest"),
        }
    }
}

/// The parts of an envelope that matter.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) header: NodeId,
    pub(crate) body: NodeId,
    pub(crate) request: NodeId,
    pub(crate) transaction: Transaction,
    pub(crate) action: Addressing,
    pub(crate) to: Addressing,
    pub(crate) message_id: Addressing,
}

const ROLE_NEXT: &str = "http://www.w3.org/2003/05/soap-envelope/role/next";
const ROLE_ULTIMATE: &str = "http://www.w3.org/2003/05/soap-envelope/role/ultimateReceiver";

/// Header and Body, whose version and headers are understood.
pub(crate) fn frame(document: &Document<'_>) -> Result<(NodeId, NodeId), Fault> {
    let root = document.root();
    match document.name(root) {
        (SOAP, "Envelope") => {}
        (SOAP11, "Envelope") => return Err(Fault::Soap11),
        (_, "Envelope") => return Err(Fault::VersionMismatch),
        _ => return Err(Fault::Envelope),
    }
    let mut children = document.children(root);
    let (Some(header), Some(body), None) = (children.next(), children.next(), children.next()) else {
        return Err(Fault::Envelope);
    };
    let named = document.is(header, SOAP, "Header") && document.is(body, SOAP, "Body");
    if !named || ![root, header, body].iter().all(|id| document.has_only_elements(*id)) {
        return Err(Fault::Envelope);
    }
    check_mandatory(document, header)?;
    Ok((header, body))
}

/// The addressing headers, of which none is believed yet, and the request that the action promises.
pub(crate) fn address(
    document: &Document<'_>,
    (header, body): (NodeId, NodeId),
    message_id: Addressing,
    imaging: bool,
) -> Result<Envelope, Fault> {
    let action = required(document, header, "Action")?;
    let to = required(document, header, "To")?;
    let transaction = match action.value.as_str() {
        RETRIEVE_DOCUMENT_SET => Transaction::RetrieveDocumentSet,
        RETRIEVE_IMAGING_DOCUMENT_SET if imaging => Transaction::RetrieveImagingDocumentSet,
        _ => return Err(Fault::ActionNotSupported),
    };
    for endpoint in ["ReplyTo", "FaultTo"] {
        check_anonymous(document, header, endpoint)?;
    }
    let mut children = document.children(body);
    let (namespace, local) = transaction.request();
    let request = children.next().filter(|request| document.is(*request, namespace, local)).ok_or(Fault::Body)?;
    if children.next().is_some() {
        return Err(Fault::Body);
    }
    Ok(Envelope { header, body, request, transaction, action, to, message_id })
}

/// `wsa:MessageID`, first of all, so that a fault can name the message it is about.
pub(crate) fn message_id(document: &Document<'_>, header: NodeId) -> Result<Addressing, Fault> {
    let id = required(document, header, "MessageID")?;
    let odd = |c: char| c.is_whitespace() || c.is_control();
    let valid = id.value.chars().count() <= MESSAGE_ID_CHARS_MAX && !id.value.contains(odd);
    if valid { Ok(id) } else { Err(Fault::InvalidAddressingHeader) }
}

/// SOAP 1.2 sections 5.2.2 and 5.2.3. Headers for other roles are not ours to understand.
fn check_mandatory(document: &Document<'_>, header: NodeId) -> Result<(), Fault> {
    let mut unknown = Vec::new();
    for block in document.children(header) {
        let mandatory = match document.attribute(block, SOAP, "mustUnderstand").map(trim) {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(Fault::Envelope),
        };
        let (namespace, local) = document.name(block);
        let known = is_understood(namespace, local) || !is_for_us(document, block);
        if mandatory && !known && unknown.len() < NOT_UNDERSTOOD_MAX {
            unknown.push((namespace.to_owned(), local.to_owned()));
        }
    }
    if !unknown.is_empty() {
        return Err(Fault::MustUnderstand(unknown));
    }
    // Profile S2 beside S1 is two signatures, whether the header insists on being understood or not.
    let both = document.children(header).any(|block| document.is(block, S2, "EthereumSignature"));
    if both { Err(Fault::InvalidSecurity) } else { Ok(()) }
}

fn is_understood(namespace: &str, local: &str) -> bool {
    match namespace {
        WSA => matches!(local, "Action" | "To" | "MessageID" | "ReplyTo" | "FaultTo" | "From" | "RelatesTo"),
        WSSE => local == "Security",
        _ => false,
    }
}

fn is_for_us(document: &Document<'_>, block: NodeId) -> bool {
    document.attribute(block, SOAP, "role").is_none_or(|role| matches!(trim(role), "" | ROLE_NEXT | ROLE_ULTIMATE))
}

/// The one header of this name, or none. One for somebody else is refused rather than overlooked.
fn single(document: &Document<'_>, header: NodeId, local: &str) -> Result<Option<NodeId>, Fault> {
    let mut found = document.children(header).filter(|block| document.is(*block, WSA, local));
    let (first, second) = (found.next(), found.next());
    if second.is_some() || first.is_some_and(|block| !is_for_us(document, block)) {
        return Err(Fault::InvalidAddressingHeader);
    }
    Ok(first)
}

fn required(document: &Document<'_>, header: NodeId, local: &str) -> Result<Addressing, Fault> {
    let node = single(document, header, local)?.ok_or(Fault::AddressingHeaderRequired)?;
    let value = trim(&document.text(node).ok_or(Fault::InvalidAddressingHeader)?).to_owned();
    if value.is_empty() { Err(Fault::InvalidAddressingHeader) } else { Ok(Addressing { node, value }) }
}

/// An endpoint reference must be absent or anonymous (WS-Addressing SOAP binding section 5.1).
fn check_anonymous(document: &Document<'_>, header: NodeId, local: &str) -> Result<(), Fault> {
    let Some(endpoint) = single(document, header, local)? else { return Ok(()) };
    let mut addresses = document.children(endpoint).filter(|child| document.is(*child, WSA, "Address"));
    let (Some(address), None) = (addresses.next(), addresses.next()) else {
        return Err(Fault::InvalidAddressingHeader);
    };
    let anonymous = document.text(address).is_some_and(|text| trim(&text) == ANONYMOUS);
    if anonymous { Ok(()) } else { Err(Fault::OnlyAnonymousAddressSupported) }
}

fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}
