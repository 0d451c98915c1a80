//! Namespaces, actions and algorithm identifiers, each once.

/// SOAP 1.2.
pub(crate) const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
/// SOAP 1.1.
pub(crate) const SOAP11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// WS-Addressing 1.0.
pub(crate) const WSA: &str = "http://www.w3.org/2005/08/addressing";
/// The only address that responses go to.
pub(crate) const ANONYMOUS: &str = "http://www.w3.org/2005/08/addressing/anonymous";
/// WS-Security 1.0.
pub(crate) const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
/// WS-Security Utility 1.0.
pub(crate) const WSU: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
/// XML Signature.
pub(crate) const DS: &str = "http://www.w3.org/2000/09/xmldsig#";
/// XML Signature 1.1.
pub(crate) const DSIG11: &str = "http://www.w3.org/2009/xmldsig11#";
/// XML-binary Optimized Packaging.
pub(crate) const XOP: &str = "http://www.w3.org/2004/08/xop/include";
/// Both the namespace of InclusiveNamespaces and the identifier of exclusive canonicalisation without comments.
pub(crate) const EXC_C14N: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
/// SHA-256.
pub(crate) const SHA256: &str = "http://www.w3.org/2001/04/xmlenc#sha256";
/// ECDSA over SHA-256.
pub(crate) const ECDSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256";
/// A binary token that is an X.509 certificate.
pub(crate) const X509V3: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3";
/// A binary token as Base64, which is also the default.
pub(crate) const BASE64_BINARY: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary";
/// The header of profile S2, which this crate does not read.
pub(crate) const S2: &str = "urn:x-pacs-bridge:iti43:2026";
/// XDS.b.
pub(crate) const XDS: &str = "urn:ihe:iti:xds-b:2007";
/// XDS-I.b.
pub(crate) const XDSI: &str = "urn:ihe:rad:xdsi-b:2009";
/// ebXML registry services 3.0.
pub(crate) const RS: &str = "urn:oasis:names:tc:ebxml-regrep:xsd:rs:3.0";

/// `wsa:Action` of an ITI-43 request.
pub const RETRIEVE_DOCUMENT_SET: &str = "urn:ihe:iti:2007:RetrieveDocumentSet";
/// `wsa:Action` of a RAD-69 request.
pub const RETRIEVE_IMAGING_DOCUMENT_SET: &str = "urn:ihe:rad:2009:RetrieveImagingDocumentSet";
/// `wsa:Action` of the response to either; RAD-69 has none of its own.
pub const RETRIEVE_DOCUMENT_SET_RESPONSE: &str = "urn:ihe:iti:2007:RetrieveDocumentSetResponse";
