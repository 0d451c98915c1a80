//! The signature profile S1 (WS-Security X.509 token), and what only a verified message can become.
//!
//! The order is that of section 5: limits before any tree, shape and addressing, key and signature value, digests, coverage, then address and
//! time. Nothing is looked up by name after that: the values of a [`VerifiedRequest`] come from the very nodes whose digests were compared.
//! Not known here: replay, grants, repositories; those are the caller's steps 5 to 8.

use std::collections::{HashMap, HashSet, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::envelope::{self, Addressing, Envelope, Transaction};
use crate::fault::Fault;
use crate::key::RequesterKey;
use crate::limits::{
    CANONICAL_BYTES_MAX, CLOCK_SKEW_MS, INCLUSIVE_PREFIXES_MAX, REFERENCES_MAX, REQUEST_XML, TOKEN_BYTES_MAX,
    VALIDITY_MS_MAX,
};
use crate::message::{Framing, Message};
use crate::multipart::content_id_of_url;
use crate::names::{BASE64_BINARY, DS, DSIG11, ECDSA_SHA256, EXC_C14N, SHA256, SOAP, WSSE, WSU, X509V3, XOP};
use crate::request::{self, Retrieve};
use crate::time;
use crate::xml::{Document, NodeId, exclusive, is_nc_name, is_space};

/// What this endpoint is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The values of `wsa:To` that are accepted.
    pub addresses: Vec<String>,
    /// Whether RAD-69 is served.
    pub imaging: bool,
}

/// A message that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct Refusal {
    /// Why.
    #[source]
    pub fault: Fault,
    /// Its `wsa:MessageID`, unverified, where it was read: what the fault relates to.
    pub message_id: Option<String>,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal { fault, message_id: None }
    }
}

/// A request whose signature, coverage, address and time are right. There is no other way to make one than [`verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRequest {
    transaction: Transaction,
    to: String,
    message_id: String,
    created_ms: i64,
    expires_ms: i64,
    key: RequesterKey,
    signature_digest: [u8; 32],
    retrieve: Retrieve,
}

impl VerifiedRequest {
    /// Which transaction; `wsa:Action` is [`Transaction::action`] of it.
    pub fn transaction(&self) -> Transaction {
        self.transaction
    }

    /// `wsa:To`, one of the addresses of the policy.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// `wsa:MessageID`, which together with the account must be new.
    pub fn message_id(&self) -> &str {
        &self.message_id
    }

    /// `wsu:Created` in milliseconds since 1970.
    pub fn created_ms(&self) -> i64 {
        self.created_ms
    }

    /// `wsu:Expires` in milliseconds since 1970.
    pub fn expires_ms(&self) -> i64 {
        self.expires_ms
    }

    /// The key that signed. A P-256 key says nothing until the caller has found a binding for it.
    pub fn key(&self) -> &RequesterKey {
        &self.key
    }

    /// SHA-256 of the canonical SignedInfo: what was signed, the same for both forms (r, s) and (r, n−s) of a signature.
    pub fn signature_digest(&self) -> [u8; 32] {
        self.signature_digest
    }

    /// What is asked for.
    pub fn retrieve(&self) -> &Retrieve {
        &self.retrieve
    }
}

/// Steps 1 to 4 of the processing order over a whole body. `now_ms` is milliseconds since 1970.
pub fn verify(framing: &Framing, body: &[u8], policy: &Policy, now_ms: i64) -> Result<VerifiedRequest, Refusal> {
    let mut message = Message::read(framing, body)?;
    let root = std::mem::take(&mut message.root);
    let mut document = Document::parse(&root, &REQUEST_XML).map_err(Fault::from)?;
    let (header, body) = envelope::frame(&document)?;
    let message_id = envelope::message_id(&document, header)?;
    let known = message_id.value.clone();
    verify_envelope(&mut document, message, (header, body), message_id, policy, now_ms)
        .map_err(|fault| Refusal { fault, message_id: Some(known) })
}

fn verify_envelope(
    document: &mut Document<'_>,
    message: Message,
    frame: (NodeId, NodeId),
    message_id: Addressing,
    policy: &Policy,
    now_ms: i64,
) -> Result<VerifiedRequest, Fault> {
    let envelope = envelope::address(document, frame, message_id, policy.imaging)?;
    let security = security(document, &envelope)?;
    include_token(document, security.node, message)?;
    let ids = unique_ids(document)?;
    let signature = Signature::read(document, security.signature)?;
    let key = signature.key(document, security.node, &ids)?;
    let signature_digest = signature.check_value(document, &key)?;
    let covered = signature.check_references(document, &ids)?;
    let required =
        [envelope.body, security.timestamp, envelope.action.node, envelope.to.node, envelope.message_id.node];
    if !required.iter().all(|node| covered.contains(node)) {
        return Err(Fault::Coverage);
    }
    if !policy.addresses.contains(&envelope.to.value) {
        return Err(Fault::DestinationUnreachable);
    }
    let (created_ms, expires_ms) = lifetime(document, security.timestamp)?;
    check_time(created_ms, expires_ms, now_ms)?;
    let retrieve = request::read(document, envelope.request, envelope.transaction)?;
    Ok(VerifiedRequest {
        transaction: envelope.transaction,
        to: envelope.to.value,
        message_id: envelope.message_id.value,
        created_ms,
        expires_ms,
        key,
        signature_digest,
        retrieve,
    })
}

/// The security header and what must be in it.
struct Security {
    node: NodeId,
    timestamp: NodeId,
    signature: NodeId,
}

/// Exactly one Security, Timestamp and Signature in the whole document, each where it belongs. One more anywhere, also where nobody would
/// look, is refused: that leaves nothing to confuse one with.
fn security(document: &Document<'_>, envelope: &Envelope) -> Result<Security, Fault> {
    let node = only(document, WSSE, "Security")?;
    let timestamp = only(document, WSU, "Timestamp")?;
    let signature = only(document, DS, "Signature")?;
    let placed = document.parent(node) == Some(envelope.header)
        && [timestamp, signature].iter().all(|child| document.parent(*child) == Some(node));
    if !placed || document.attribute(node, SOAP, "role").is_some() || !document.has_only_elements(node) {
        return Err(Fault::InvalidSecurity);
    }
    Ok(Security { node, timestamp, signature })
}

fn only(document: &Document<'_>, namespace: &str, local: &str) -> Result<NodeId, Fault> {
    let mut found = document.elements().filter(|id| document.is(*id, namespace, local));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(Fault::InvalidSecurity),
    }
}

/// Puts the octets of the token's part where `xop:Include` stands, in Base64, so that what follows sees the infoset that XOP stands for.
/// An Include anywhere else is refused: octets by reference are not what a request is made of.
fn include_token(document: &mut Document<'_>, security: NodeId, mut message: Message) -> Result<(), Fault> {
    let includes: Vec<NodeId> = document.elements().filter(|id| document.name(*id).0 == XOP).collect();
    for include in includes {
        let token = document.parent(include).ok_or(Fault::Envelope)?;
        let placed = document.is(token, WSSE, "BinarySecurityToken") && document.parent(token) == Some(security);
        if !placed || !document.is(include, XOP, "Include") || !document.is_sole_child(include) {
            return Err(Fault::Envelope);
        }
        let id = document.attribute(include, "", "href").and_then(content_id_of_url).ok_or(Fault::Envelope)?;
        // A part stands for one element only, so it is used up.
        let at = message.attachments.iter().position(|(known, _)| *known == id);
        let (_, octets) = message.attachments.swap_remove(at.ok_or(Fault::SecurityTokenUnavailable)?);
        if !document.replace_empty_element(include, STANDARD.encode(octets)) {
            return Err(Fault::Envelope);
        }
    }
    Ok(())
}

/// All ids of the document, `Id`, `ID` or `id` in any namespace, must differ. Only `wsu:Id` can be referred to.
struct Ids(HashMap<String, NodeId>);

fn unique_ids(document: &Document<'_>) -> Result<Ids, Fault> {
    let mut seen = HashSet::new();
    let mut referable = HashMap::new();
    for node in document.elements() {
        for (local, value) in document.attribute_values(node) {
            if matches!(local, "Id" | "ID" | "id") && !seen.insert(value) {
                return Err(Fault::DuplicateId);
            }
        }
        if let Some(id) = document.attribute(node, WSU, "Id") {
            referable.insert(id.to_owned(), node);
        }
    }
    Ok(Ids(referable))
}

impl Ids {
    /// The element that `#id` names; nothing else is a reference.
    fn find(&self, uri: &str) -> Option<NodeId> {
        self.0.get(uri.strip_prefix('#')?).copied()
    }
}

/// A `ds:Reference`: where to, and what it must digest to.
struct Reference {
    uri: String,
    prefixes: Vec<String>,
    digest: Vec<u8>,
}

/// A `ds:Signature` of the form and with the algorithms of the profile.
struct Signature {
    signed_info: NodeId,
    prefixes: Vec<String>,
    references: Vec<Reference>,
    value: Vec<u8>,
    key_info: NodeId,
}

impl Signature {
    /// SignedInfo, SignatureValue and KeyInfo, and no Object, which could only hold something to be confused with.
    fn read(document: &Document<'_>, signature: NodeId) -> Result<Signature, Fault> {
        let parts = exactly(document, signature, &["SignedInfo", "SignatureValue", "KeyInfo"])?;
        let (signed_info, key_info) = (parts[0], parts[2]);
        let mut children = structured(document, signed_info)?;
        let canonicalization = child(document, &mut children, "CanonicalizationMethod")?;
        let prefixes = exclusive_prefixes(document, canonicalization)?;
        let method = child(document, &mut children, "SignatureMethod")?;
        check_algorithm(document, method, ECDSA_SHA256)?;
        let mut references = Vec::new();
        for reference in children {
            if references.len() == REFERENCES_MAX {
                return Err(Fault::TooComplex);
            }
            references.push(Reference::read(document, reference)?);
        }
        let value = document.text(parts[1]).and_then(|text| base64(&text)).ok_or(Fault::Signature)?;
        Ok(Signature { signed_info, prefixes, references, value, key_info })
    }

    fn key(&self, document: &Document<'_>, security: NodeId, ids: &Ids) -> Result<RequesterKey, Fault> {
        let mut children = structured(document, self.key_info)?.into_iter();
        let (Some(form), None) = (children.next(), children.next()) else {
            return Err(Fault::UnsupportedSecurityToken);
        };
        match document.name(form) {
            (WSSE, "SecurityTokenReference") => RequesterKey::from_certificate(&token(document, form, security, ids)?),
            (DSIG11, "DEREncodedKeyValue") => RequesterKey::from_spki(&octets(document, form)?),
            (DS, "KeyValue") => elliptic_curve_key(document, form),
            _ => Err(Fault::UnsupportedSecurityToken),
        }
    }

    /// Compares the signature value, and returns the digest it is over.
    fn check_value(&self, document: &Document<'_>, key: &RequesterKey) -> Result<[u8; 32], Fault> {
        let canonical = canonical(document, self.signed_info, &self.prefixes, CANONICAL_BYTES_MAX)?;
        let digest = Sha256::digest(canonical).into();
        if key.verifies(&digest, &self.value) { Ok(digest) } else { Err(Fault::Signature) }
    }

    /// Compares every digest, and returns the elements that are covered.
    fn check_references(&self, document: &Document<'_>, ids: &Ids) -> Result<HashSet<NodeId>, Fault> {
        let mut covered = HashSet::new();
        let mut left = CANONICAL_BYTES_MAX;
        for reference in &self.references {
            let target = ids.find(&reference.uri).filter(|target| covered.insert(*target)).ok_or(Fault::Coverage)?;
            let canonical = canonical(document, target, &reference.prefixes, left)?;
            left -= canonical.len();
            if Sha256::digest(canonical)[..] != reference.digest[..] {
                return Err(Fault::Digest);
            }
        }
        Ok(covered)
    }
}

impl Reference {
    fn read(document: &Document<'_>, reference: NodeId) -> Result<Reference, Fault> {
        if !document.is(reference, DS, "Reference") {
            return Err(Fault::InvalidSecurity);
        }
        let mut children = structured(document, reference)?;
        // Without Transforms the octets would be those of another canonicalisation.
        let transforms = child(document, &mut children, "Transforms").map_err(|_| Fault::UnsupportedAlgorithm)?;
        let digest_method = child(document, &mut children, "DigestMethod")?;
        let digest_value = child(document, &mut children, "DigestValue")?;
        if !children.is_empty() {
            return Err(Fault::InvalidSecurity);
        }
        let mut transforms = structured(document, transforms)?;
        let transform = child(document, &mut transforms, "Transform")?;
        if !transforms.is_empty() {
            return Err(Fault::UnsupportedAlgorithm);
        }
        let prefixes = exclusive_prefixes(document, transform)?;
        check_algorithm(document, digest_method, SHA256)?;
        let digest = document.text(digest_value).and_then(|text| base64(&text)).ok_or(Fault::Digest)?;
        let uri = document.attribute(reference, "", "URI").ok_or(Fault::Coverage)?.to_owned();
        Ok(Reference { uri, prefixes, digest })
    }
}

fn canonical(document: &Document<'_>, apex: NodeId, prefixes: &[String], bytes_max: usize) -> Result<Vec<u8>, Fault> {
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    Ok(exclusive(document, apex, &prefixes, bytes_max)?)
}

/// The child elements of an element that must have no text of its own.
fn structured(document: &Document<'_>, id: NodeId) -> Result<VecDeque<NodeId>, Fault> {
    if !document.has_only_elements(id) {
        return Err(Fault::InvalidSecurity);
    }
    Ok(document.children(id).collect())
}

/// Takes the next child, which must have this name.
fn child(document: &Document<'_>, children: &mut VecDeque<NodeId>, local: &str) -> Result<NodeId, Fault> {
    children.pop_front().filter(|child| document.is(*child, DS, local)).ok_or(Fault::InvalidSecurity)
}

/// The children, which must be these and no more.
fn exactly(document: &Document<'_>, id: NodeId, locals: &[&str]) -> Result<Vec<NodeId>, Fault> {
    let mut children = structured(document, id)?;
    let found = locals.iter().map(|local| child(document, &mut children, local)).collect::<Result<_, _>>()?;
    if children.is_empty() { Ok(found) } else { Err(Fault::InvalidSecurity) }
}

/// An algorithm without parameters.
fn check_algorithm(document: &Document<'_>, method: NodeId, expected: &str) -> Result<(), Fault> {
    let plain = document.text(method).is_some_and(|text| text.chars().all(is_space));
    let known = document.attribute(method, "", "Algorithm") == Some(expected);
    if plain && known { Ok(()) } else { Err(Fault::UnsupportedAlgorithm) }
}

/// The prefixes listed in a CanonicalizationMethod or Transform that must be exclusive canonicalisation without comments.
fn exclusive_prefixes(document: &Document<'_>, method: NodeId) -> Result<Vec<String>, Fault> {
    let known = document.attribute(method, "", "Algorithm") == Some(EXC_C14N);
    let mut children = document.children(method);
    let (parameter, extra) = (children.next(), children.next());
    if !known || extra.is_some() || !document.has_only_elements(method) {
        return Err(Fault::UnsupportedAlgorithm);
    }
    let Some(parameter) = parameter else { return Ok(Vec::new()) };
    let list = document.attribute(parameter, "", "PrefixList");
    let listed = list.filter(|_| document.is(parameter, EXC_C14N, "InclusiveNamespaces"));
    let prefixes: Vec<String> = listed
        .ok_or(Fault::UnsupportedAlgorithm)?
        .split(is_space)
        .filter(|p| !p.is_empty())
        .map(str::to_owned)
        .collect();
    if prefixes.len() > INCLUSIVE_PREFIXES_MAX {
        return Err(Fault::TooComplex);
    }
    let valid = prefixes.iter().all(|prefix| prefix == "#default" || is_nc_name(prefix));
    if valid { Ok(prefixes) } else { Err(Fault::UnsupportedAlgorithm) }
}

/// The certificate that a SecurityTokenReference means: a BinarySecurityToken of the same security header.
fn token(document: &Document<'_>, form: NodeId, security: NodeId, ids: &Ids) -> Result<Vec<u8>, Fault> {
    let children = structured(document, form)?;
    let direct = children.front().filter(|child| children.len() == 1 && document.is(**child, WSSE, "Reference"));
    let reference = *direct.ok_or(Fault::UnsupportedSecurityToken)?;
    let of_kind = |id, local, expected, absent| document.attribute(id, "", local).map_or(absent, |v| v == expected);
    let uri = document.attribute(reference, "", "URI").unwrap_or_default();
    if !uri.starts_with('#') || !of_kind(reference, "ValueType", X509V3, true) {
        return Err(Fault::UnsupportedSecurityToken);
    }
    let is_token =
        |id: &NodeId| document.is(*id, WSSE, "BinarySecurityToken") && document.parent(*id) == Some(security);
    let token = ids.find(uri).filter(is_token).ok_or(Fault::SecurityTokenUnavailable)?;
    if !of_kind(token, "ValueType", X509V3, false) || !of_kind(token, "EncodingType", BASE64_BINARY, true) {
        return Err(Fault::UnsupportedSecurityToken);
    }
    octets(document, token)
}

/// XML Signature 1.1 section 4.5.2.3, with a named curve.
fn elliptic_curve_key(document: &Document<'_>, key_value: NodeId) -> Result<RequesterKey, Fault> {
    let values = structured(document, key_value)?;
    let value = values.front().filter(|value| values.len() == 1 && document.is(**value, DSIG11, "ECKeyValue"));
    let fields = structured(document, *value.ok_or(Fault::UnsupportedSecurityToken)?)?;
    let (Some(curve), Some(point), 2) = (fields.front(), fields.back(), fields.len()) else {
        return Err(Fault::InvalidSecurityToken);
    };
    if !document.is(*curve, DSIG11, "NamedCurve") {
        return Err(Fault::UnsupportedSecurityToken);
    }
    let urn = document.attribute(*curve, "", "URI").ok_or(Fault::InvalidSecurityToken)?;
    if !document.is(*point, DSIG11, "PublicKey") {
        return Err(Fault::InvalidSecurityToken);
    }
    RequesterKey::from_named_curve(urn, &octets(document, *point)?)
}

/// The octets that a key's element holds in Base64.
fn octets(document: &Document<'_>, id: NodeId) -> Result<Vec<u8>, Fault> {
    let octets = document.text(id).and_then(|text| base64(&text)).ok_or(Fault::InvalidSecurityToken)?;
    if octets.len() > TOKEN_BYTES_MAX { Err(Fault::TooComplex) } else { Ok(octets) }
}

/// `xs:base64Binary`: white space anywhere, padding required.
fn base64(text: &str) -> Option<Vec<u8>> {
    let compact: String = text.split(is_space).collect();
    STANDARD.decode(compact).ok()
}

/// Created and Expires, in that order and nothing else.
fn lifetime(document: &Document<'_>, timestamp: NodeId) -> Result<(i64, i64), Fault> {
    let children = structured(document, timestamp)?;
    let (Some(created), Some(expires), 2) = (children.front(), children.back(), children.len()) else {
        return Err(Fault::InvalidSecurity);
    };
    if !document.is(*created, WSU, "Created") || !document.is(*expires, WSU, "Expires") {
        return Err(Fault::InvalidSecurity);
    }
    let read = |id| document.text(id).and_then(|text| time::parse(text.trim_matches(is_space)));
    read(*created).zip(read(*expires)).ok_or(Fault::InvalidSecurity)
}

/// Section 5, step 4.
fn check_time(created_ms: i64, expires_ms: i64, now_ms: i64) -> Result<(), Fault> {
    let started = created_ms <= now_ms.saturating_add(CLOCK_SKEW_MS);
    let lasting = expires_ms > now_ms.saturating_sub(CLOCK_SKEW_MS);
    let short = (0..=VALIDITY_MS_MAX).contains(&(expires_ms - created_ms));
    if started && lasting && short { Ok(()) } else { Err(Fault::MessageExpired) }
}
