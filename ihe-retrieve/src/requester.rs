//! The other side: signs a request as profile S1 wants it, with the key in a certificate container (the form that Java stacks take too).
//!
//! The key itself stays with the caller, who signs digests. Not known here: where a request is sent, and what time it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::der;
use crate::key::RequesterKey;
use crate::limits::{REQUEST_BYTES_MAX, REQUEST_XML};
use crate::multipart::{PartPlan, Plan};
use crate::names::{
    BASE64_BINARY, DS, ECDSA_SHA256, EXC_C14N, RETRIEVE_DOCUMENT_SET, RETRIEVE_IMAGING_DOCUMENT_SET, SHA256, SOAP, WSA,
    WSSE, WSU, X509V3, XDS, XDSI, XOP,
};
use crate::request::{DocumentRequest, ImagingDocumentRequest, Retrieve};
use crate::time;
use crate::xml::{self, Document, exclusive};

/// What is to be signed and sent.
#[derive(Debug, Clone)]
pub struct UnsignedRequest<'a> {
    /// The repository's address, as it is stated on the ledger.
    pub to: &'a str,
    /// A message id nobody used before, such as a random `urn:uuid:`.
    pub message_id: &'a str,
    /// When it is signed, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it ends; at most ten minutes later.
    pub expires_ms: i64,
    /// What is asked for.
    pub retrieve: &'a Retrieve,
}

/// Where the certificate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPlacement {
    /// As Base64 in its element.
    Inline,
    /// As a part of its own that `xop:Include` refers to.
    Part,
}

/// An HTTP request's Content-Type and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRequest {
    /// Content-Type.
    pub content_type: String,
    /// Body.
    pub body: Vec<u8>,
}

/// Why a request was not made.
#[derive(Debug, thiserror::Error)]
pub enum SignError<E> {
    /// The signer said no.
    #[error("the signer failed")]
    Signer(#[source] E),
    /// Text that no XML can hold, or more than a request may have.
    #[error("the request cannot be written")]
    Unwritable,
}

/// A certificate that contains a key and says nothing else: its subject is the account for which the key signs, it does not end, and it is
/// signed by the key itself. `sign` gets a SHA-256 digest and returns r and s.
pub fn certificate<E>(
    key: &RequesterKey,
    account: &[u8; 20],
    sign: impl FnOnce(&[u8; 32]) -> Result<[u8; 64], E>,
) -> Result<Vec<u8>, E> {
    let spki = key.spki();
    let algorithm = der::element(der::SEQUENCE, &[&der::element(der::OID, &[der::ECDSA_WITH_SHA256])]);
    let common_name = der::element(der::UTF8_STRING, &[format!("0x{}", hex::encode(account)).as_bytes()]);
    let attribute = der::element(der::SEQUENCE, &[&der::element(der::OID, &[der::COMMON_NAME]), &common_name]);
    let name = der::element(der::SEQUENCE, &[&der::element(der::SET, &[&attribute])]);
    let validity = der::element(
        der::SEQUENCE,
        &[
            &der::element(der::UTC_TIME, &[b"200101000000Z"]),
            &der::element(der::GENERALIZED_TIME, &[b"99991231235959Z"]),
        ],
    );
    let version = der::element(der::VERSION, &[&der::unsigned(&[2])]);
    // From the key, so that the same key always gives the same serial number.
    let serial = der::unsigned(&Sha256::digest(&spki)[..16]);
    let tbs = der::element(der::SEQUENCE, &[&version, &serial, &algorithm, &name, &validity, &name, &spki]);
    let signature = sign(&Sha256::digest(&tbs).into())?;
    let (r, s) = signature.split_at(32);
    let signature = der::element(der::SEQUENCE, &[&der::unsigned(r), &der::unsigned(s)]);
    Ok(der::element(der::SEQUENCE, &[&tbs, &algorithm, &der::element(der::BIT_STRING, &[&[0], &signature])]))
}

/// Writes and signs a request. `sign` gets a SHA-256 digest and returns r and s, 32 octets each; `nonce` must be random.
pub fn sign<E>(
    request: &UnsignedRequest<'_>,
    certificate: &[u8],
    placement: TokenPlacement,
    nonce: [u8; 16],
    sign: impl FnOnce(&[u8; 32]) -> Result<[u8; 64], E>,
) -> Result<SignedRequest, SignError<E>> {
    let (before, after) = unsigned(request, certificate, placement);
    let plain = [before.as_slice(), &after].concat();
    let signed_info = signed_info(&plain).ok_or(SignError::Unwritable)?;
    let canonical = canonical(signed_info.as_bytes(), None).ok_or(SignError::Unwritable)?;
    let value = sign(&Sha256::digest(canonical).into()).map_err(SignError::Signer)?;
    let signature = format!(
        "<ds:Signature xmlns:ds=\"{DS}\">{signed_info}<ds:SignatureValue>{}</ds:SignatureValue><ds:KeyInfo>\
         <wsse:SecurityTokenReference><wsse:Reference URI=\"#token\" ValueType=\"{X509V3}\"/></wsse:SecurityTokenReference>\
         </ds:KeyInfo></ds:Signature>",
        STANDARD.encode(value)
    );
    let root = [before.as_slice(), signature.as_bytes(), &after].concat();
    packed(&root, certificate, placement, nonce).ok_or(SignError::Unwritable)
}

fn packed(root: &[u8], certificate: &[u8], placement: TokenPlacement, nonce: [u8; 16]) -> Option<SignedRequest> {
    let token = PartPlan {
        content_id: TOKEN_ID.into(),
        content_type: "application/octet-stream",
        bytes: certificate.len() as u64,
    };
    let (parts, documents): (_, &[&[u8]]) = match placement {
        TokenPlacement::Inline => (Vec::new(), &[]),
        TokenPlacement::Part => (vec![token], &[certificate]),
    };
    let plan = Plan::new(nonce, root, parts);
    let body = plan.assemble(documents).filter(|body| body.len() <= REQUEST_BYTES_MAX)?;
    Some(SignedRequest { content_type: plan.content_type(), body })
}

/// Content-ID of the token's part.
const TOKEN_ID: &str = "token@pacs-bridge";
/// The ids of what is signed.
const SIGNED: [&str; 5] = ["body", "timestamp", "action", "to", "message-id"];

/// The envelope up to where the signature goes, and from there on.
fn unsigned(request: &UnsignedRequest<'_>, certificate: &[u8], placement: TokenPlacement) -> (Vec<u8>, Vec<u8>) {
    let action = match request.retrieve {
        Retrieve::Documents(_) => RETRIEVE_DOCUMENT_SET,
        Retrieve::Imaging { .. } => RETRIEVE_IMAGING_DOCUMENT_SET,
    };
    let mut out = format!(
        "<env:Envelope xmlns:env=\"{SOAP}\" xmlns:wsa=\"{WSA}\" xmlns:wsu=\"{WSU}\"><env:Header>\
         <wsa:Action env:mustUnderstand=\"true\" wsu:Id=\"action\">{action}</wsa:Action>"
    )
    .into_bytes();
    for (tag, id, value) in [("To", "to", request.to), ("MessageID", "message-id", request.message_id)] {
        out.extend_from_slice(format!("<wsa:{tag} wsu:Id=\"{id}\">").as_bytes());
        xml::text(&mut out, value);
        out.extend_from_slice(format!("</wsa:{tag}>").as_bytes());
    }
    let token = match placement {
        TokenPlacement::Inline => STANDARD.encode(certificate),
        TokenPlacement::Part => format!("<xop:Include xmlns:xop=\"{XOP}\" href=\"cid:{TOKEN_ID}\"/>"),
    };
    let security = format!(
        "<wsse:Security xmlns:wsse=\"{WSSE}\" env:mustUnderstand=\"true\"><wsu:Timestamp wsu:Id=\"timestamp\">\
         <wsu:Created>{}</wsu:Created><wsu:Expires>{}</wsu:Expires></wsu:Timestamp><wsse:BinarySecurityToken \
         ValueType=\"{X509V3}\" EncodingType=\"{BASE64_BINARY}\" wsu:Id=\"token\">{token}</wsse:BinarySecurityToken>",
        time::format(request.created_ms),
        time::format(request.expires_ms)
    );
    out.extend_from_slice(security.as_bytes());
    let mut after = b"</wsse:Security></env:Header><env:Body wsu:Id=\"body\">".to_vec();
    write_body(&mut after, request.retrieve);
    after.extend_from_slice(b"</env:Body></env:Envelope>");
    (out, after)
}

fn write_body(out: &mut Vec<u8>, retrieve: &Retrieve) {
    match retrieve {
        Retrieve::Documents(documents) => {
            out.extend_from_slice(format!("<xds:RetrieveDocumentSetRequest xmlns:xds=\"{XDS}\">").as_bytes());
            documents.iter().for_each(|document| write_document(out, document));
            out.extend_from_slice(b"</xds:RetrieveDocumentSetRequest>");
        }
        Retrieve::Imaging { documents, transfer_syntax_uids } => {
            let start = format!("<rad:RetrieveImagingDocumentSetRequest xmlns:rad=\"{XDSI}\" xmlns:xds=\"{XDS}\">");
            out.extend_from_slice(start.as_bytes());
            documents.chunk_by(|a, b| a.study_instance_uid == b.study_instance_uid).for_each(|s| write_study(out, s));
            out.extend_from_slice(b"<rad:TransferSyntaxUIDList>");
            transfer_syntax_uids.iter().for_each(|uid| write_text(out, "rad:TransferSyntaxUID", uid));
            out.extend_from_slice(b"</rad:TransferSyntaxUIDList></rad:RetrieveImagingDocumentSetRequest>");
        }
    }
}

fn write_study(out: &mut Vec<u8>, documents: &[ImagingDocumentRequest]) {
    let start = |out: &mut Vec<u8>, tag: &str, name: &str, uid: &str| {
        out.extend_from_slice(format!("<rad:{tag} {name}=\"").as_bytes());
        xml::attribute(out, uid);
        out.extend_from_slice(b"\">");
    };
    start(out, "StudyRequest", "studyInstanceUID", &documents[0].study_instance_uid);
    for series in documents.chunk_by(|a, b| a.series_instance_uid == b.series_instance_uid) {
        start(out, "SeriesRequest", "seriesInstanceUID", &series[0].series_instance_uid);
        series.iter().for_each(|request| write_document(out, &request.document));
        out.extend_from_slice(b"</rad:SeriesRequest>");
    }
    out.extend_from_slice(b"</rad:StudyRequest>");
}

fn write_document(out: &mut Vec<u8>, request: &DocumentRequest) {
    out.extend_from_slice(b"<xds:DocumentRequest>");
    if let Some(home) = &request.home_community_id {
        write_text(out, "xds:HomeCommunityId", home);
    }
    write_text(out, "xds:RepositoryUniqueId", &request.repository_unique_id);
    write_text(out, "xds:DocumentUniqueId", &request.document_unique_id);
    out.extend_from_slice(b"</xds:DocumentRequest>");
}

fn write_text(out: &mut Vec<u8>, tag: &str, value: &str) {
    out.extend_from_slice(format!("<{tag}>").as_bytes());
    xml::text(out, value);
    out.extend_from_slice(format!("</{tag}>").as_bytes());
}

/// The SignedInfo over an envelope; `None` when that cannot be read back. Exclusive canonicalisation makes it no difference that the
/// signature is not in it yet.
fn signed_info(envelope: &[u8]) -> Option<String> {
    let mut out = format!(
        "<ds:SignedInfo xmlns:ds=\"{DS}\"><ds:CanonicalizationMethod Algorithm=\"{EXC_C14N}\"/>\
         <ds:SignatureMethod Algorithm=\"{ECDSA_SHA256}\"/>"
    );
    for id in SIGNED {
        let digest = STANDARD.encode(Sha256::digest(canonical(envelope, Some(id))?));
        out.push_str(&format!(
            "<ds:Reference URI=\"#{id}\"><ds:Transforms><ds:Transform Algorithm=\"{EXC_C14N}\"/></ds:Transforms>\
             <ds:DigestMethod Algorithm=\"{SHA256}\"/><ds:DigestValue>{digest}</ds:DigestValue></ds:Reference>"
        ));
    }
    out.push_str("</ds:SignedInfo>");
    Some(out)
}

/// The canonical form of the element with this `wsu:Id`, or of the whole document.
fn canonical(octets: &[u8], id: Option<&str>) -> Option<Vec<u8>> {
    let document = Document::parse(octets, &REQUEST_XML).ok()?;
    let apex = match id {
        None => document.root(),
        Some(id) => document.elements().find(|node| document.attribute(*node, WSU, "Id") == Some(id))?,
    };
    exclusive(&document, apex, &[], usize::MAX).ok()
}
