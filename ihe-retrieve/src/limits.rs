//! Every limit on what a peer sends, by name. They are those of the wire contract; what is not in it says why it is needed.

/// Octets of a request: the whole HTTP body.
pub const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Nesting of elements.
pub const DEPTH_MAX: usize = 32;
/// Elements of a request.
pub const ELEMENTS_MAX: usize = 2_000;
/// Attributes of one element, namespace declarations included.
pub const ATTRIBUTES_MAX: usize = 64;
/// `ds:Reference` elements of the signature.
pub const REFERENCES_MAX: usize = 16;
/// Prefixes in an `ec:InclusiveNamespaces/@PrefixList`.
pub const INCLUSIVE_PREFIXES_MAX: usize = 32;
/// Document requests of ITI-43.
pub const DOCUMENTS_MAX: usize = 16;
/// Document requests of RAD-69, which names every instance of a study; the limit on elements is reached at about as many.
pub const IMAGING_DOCUMENTS_MAX: usize = 512;
/// Transfer syntaxes that a RAD-69 request lists.
pub const TRANSFER_SYNTAXES_MAX: usize = 64;
/// MIME parts of a request.
pub const PARTS_MAX: usize = 3;
/// Octets of a security token, as a MIME part or decoded from the text of its element.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Octets of the headers of one MIME part, and of a Content-Type field.
pub const HEADER_BYTES_MAX: usize = 4 * 1024;
/// Characters of RepositoryUniqueId, DocumentUniqueId and HomeCommunityId (`rim:LongName`).
pub const LONG_NAME_CHARS_MAX: usize = 256;
/// Characters of a `wsa:MessageID`: it is kept in the replay cache and echoed, so it must be short.
pub const MESSAGE_ID_CHARS_MAX: usize = 256;
/// Headers that a MustUnderstand fault names: the first of them, so that an answer is not longer than what it answers.
pub const NOT_UNDERSTOOD_MAX: usize = 16;
/// Canonical octets that all references of a message may amount to. A namespace name declared once is written again at every element that
/// uses it, so without this limit 128 KiB can become hundreds of megabytes to digest.
pub const CANONICAL_BYTES_MAX: usize = 8 * REQUEST_BYTES_MAX;

/// How far a clock of the requester may be from ours, in milliseconds.
pub const CLOCK_SKEW_MS: i64 = 60_000;
/// How long a request may be valid by its own words, in milliseconds.
pub const VALIDITY_MS_MAX: i64 = 600_000;

/// Octets of the root part of a response.
pub const RESPONSE_ROOT_BYTES_MAX: usize = 1024 * 1024;
/// Elements of the root part of a response: six for each of as many documents as RAD-69 may ask for, and as many errors.
pub const RESPONSE_ELEMENTS_MAX: usize = 8_000;
/// MIME parts of a response.
pub const RESPONSE_PARTS_MAX: usize = IMAGING_DOCUMENTS_MAX + 1;

/// What a document may count; `xml` enforces it before any tree is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XmlLimits {
    /// Octets.
    pub bytes: usize,
    /// Nesting of elements. Canonicalisation recurses as deep.
    pub depth: usize,
    /// Elements.
    pub elements: usize,
    /// Attributes of one element, namespace declarations included.
    pub attributes: usize,
}

/// The limits of a request.
pub const REQUEST_XML: XmlLimits =
    XmlLimits { bytes: REQUEST_BYTES_MAX, depth: DEPTH_MAX, elements: ELEMENTS_MAX, attributes: ATTRIBUTES_MAX };
/// The limits of the root part of a response.
pub const RESPONSE_XML: XmlLimits = XmlLimits {
    bytes: RESPONSE_ROOT_BYTES_MAX,
    depth: DEPTH_MAX,
    elements: RESPONSE_ELEMENTS_MAX,
    attributes: ATTRIBUTES_MAX,
};
