//! A requester with a fixed key and clock, a repository's policy, and the judge in Python.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ihe_retrieve::fault::Fault;
use ihe_retrieve::key::RequesterKey;
use ihe_retrieve::message::{Framing, RequestHead};
use ihe_retrieve::request::{DocumentRequest, Retrieve};
use ihe_retrieve::requester::{SignedRequest, TokenPlacement, UnsignedRequest, certificate, sign};
use ihe_retrieve::verify::{Policy, VerifiedRequest, verify};
use ihe_retrieve::xml::{Document, exclusive};
use k256::ecdsa::signature::hazmat::PrehashSigner;
use sha2::{Digest, Sha256};

/// 2026-11-28T22:00:00Z
pub const NOW_MS: i64 = 1_795_903_200_000;
pub const TO: &str = "https://hospital.example/iti43";
pub const MESSAGE_ID: &str = "urn:uuid:6d296e90-d9a4-4cd8-b0b6-0a5b1cbd2e11";

pub const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
pub const WSA: &str = "http://www.w3.org/2005/08/addressing";
pub const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
pub const WSU: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
pub const DS: &str = "http://www.w3.org/2000/09/xmldsig#";
pub const DSIG11: &str = "http://www.w3.org/2009/xmldsig11#";
pub const EXC_C14N: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
pub const SHA256: &str = "http://www.w3.org/2001/04/xmlenc#sha256";
pub const ECDSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256";
pub const X509V3: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-x509-token-profile-1.0#X509v3";
pub const XDS: &str = "urn:ihe:iti:xds-b:2007";

pub fn policy() -> Policy {
    Policy { addresses: vec!["https://other.example/".into(), TO.into()], imaging: true }
}

pub fn key() -> k256::ecdsa::SigningKey {
    k256::ecdsa::SigningKey::from_slice(&[0x42; 32]).unwrap()
}

pub fn public_key() -> k256::PublicKey {
    k256::PublicKey::from(key().verifying_key())
}

pub fn p256_key() -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[0x42; 32]).unwrap()
}

pub fn sign_k256(digest: &[u8; 32]) -> [u8; 64] {
    let signature: k256::ecdsa::Signature = key().sign_prehash(digest).unwrap();
    signature.to_bytes().into()
}

pub fn sign_p256(digest: &[u8; 32]) -> [u8; 64] {
    let signature: p256::ecdsa::Signature = p256_key().sign_prehash(digest).unwrap();
    signature.to_bytes().into()
}

pub fn document(number: u8) -> DocumentRequest {
    DocumentRequest {
        repository_unique_id: format!("0x{}", "Aa".repeat(20)),
        document_unique_id: hex::encode([number; 32]),
        home_community_id: None,
    }
}

pub fn retrieve() -> Retrieve {
    Retrieve::Documents(vec![document(1), document(2)])
}

pub fn unsigned(retrieve: &Retrieve) -> UnsignedRequest<'_> {
    UnsignedRequest { to: TO, message_id: MESSAGE_ID, created_ms: NOW_MS, expires_ms: NOW_MS + 300_000, retrieve }
}

pub fn token() -> Vec<u8> {
    let key = RequesterKey::Secp256k1(public_key());
    certificate(&key, &key.account().unwrap(), |digest| Ok::<_, ()>(sign_k256(digest))).unwrap()
}

/// A request that the library signs itself.
pub fn signed(retrieve: &Retrieve, placement: TokenPlacement) -> SignedRequest {
    sign(&unsigned(retrieve), &token(), placement, [9; 16], |digest| Ok::<_, ()>(sign_k256(digest))).unwrap()
}

pub fn admit(content_type: &str) -> Result<Framing, Fault> {
    let head =
        RequestHead { method: "POST", content_type: Some(content_type), content_encoding: None, content_length: None };
    head.admit(false)
}

pub fn receive(request: &SignedRequest) -> Result<VerifiedRequest, Fault> {
    let framing = admit(&request.content_type)?;
    verify(&framing, &request.body, &policy(), NOW_MS).map_err(|refusal| refusal.fault)
}

/// Judges an envelope without MIME around it.
pub fn receive_envelope(envelope: &str) -> Result<VerifiedRequest, Fault> {
    verify(&Framing::Simple, envelope.as_bytes(), &policy(), NOW_MS).map_err(|refusal| refusal.fault)
}

/// Everything about an envelope that tests vary. What `envelope` writes is not what the library's requester writes: other prefixes,
/// declarations elsewhere, white space between.
#[derive(Clone)]
pub struct Message {
    pub envelope_attributes: String,
    pub action: String,
    pub to: String,
    pub message_id: String,
    pub more_headers: String,
    pub timestamp: String,
    pub before_signature: String,
    pub body: String,
    pub key_info: String,
    pub signed: Vec<(String, String)>,
    pub signed_info_prefixes: String,
    pub signer: fn(&[u8; 32]) -> [u8; 64],
}

impl Message {
    /// A valid one with an EC key by name.
    pub fn new() -> Message {
        let document = |id: &str, n: u8| {
            format!(
                "\n  <x:DocumentRequest>\n<x:RepositoryUniqueId>0x{}</x:RepositoryUniqueId><x:DocumentUniqueId>{id}{}\
                 </x:DocumentUniqueId></x:DocumentRequest>",
                "aA".repeat(20),
                hex::encode([n; 32])
            )
        };
        Message {
            envelope_attributes: String::new(),
            action: "<a:Action u:Id=\"ac\">urn:ihe:iti:2007:RetrieveDocumentSet</a:Action>".into(),
            to: format!("<a:To u:Id=\"to\" s:mustUnderstand=\"1\">{TO}</a:To>"),
            message_id: format!("<a:MessageID u:Id=\"id\">{MESSAGE_ID}</a:MessageID>"),
            more_headers:
                "<a:ReplyTo><a:Address>http://www.w3.org/2005/08/addressing/anonymous</a:Address></a:ReplyTo>".into(),
            timestamp: timestamp("2026-11-28T22:00:00Z", "2026-11-28T22:05:00Z"),
            before_signature: String::new(),
            body: format!(
                "<s:Body u:Id=\"bo\"><x:RetrieveDocumentSetRequest xmlns:x=\"{XDS}\">{}{}\n</x:RetrieveDocumentSetRequest></s:Body>",
                document("0x", 1),
                document("", 2)
            ),
            key_info: named_curve_key("urn:oid:1.3.132.0.10", &sec1()),
            signed: ["bo", "ts", "ac", "to", "id"].iter().map(|id| ((*id).to_owned(), String::new())).collect(),
            signed_info_prefixes: String::new(),
            signer: sign_k256,
        }
    }

    pub fn around(&self, signature: &str) -> String {
        format!(
            "<?xml version='1.0' encoding='UTF-8'?>\n<s:Envelope xmlns:s=\"{SOAP}\" xmlns:u=\"{WSU}\" xmlns:a=\"{WSA}\"{}>\n <s:Header>\n  \
             {}{}{}{}\n  <w:Security xmlns:w=\"{WSSE}\" s:mustUnderstand=\"true\">{}{}{signature}</w:Security>\n </s:Header>\n {}\n</s:Envelope>\n",
            self.envelope_attributes,
            self.action,
            self.to,
            self.message_id,
            self.more_headers,
            self.timestamp,
            self.before_signature,
            self.body
        )
    }

    pub fn signed_info(&self) -> String {
        let plain = self.around("");
        let references: String =
            self.signed.iter().map(|(id, prefixes)| reference(id, prefixes, &digest(&plain, id, prefixes))).collect();
        format!(
            "<ds:SignedInfo xmlns:ds=\"{DS}\"><ds:CanonicalizationMethod Algorithm=\"{EXC_C14N}\">{}</ds:CanonicalizationMethod>\
             <ds:SignatureMethod Algorithm=\"{ECDSA_SHA256}\"/>{references}</ds:SignedInfo>",
            inclusive(&self.signed_info_prefixes)
        )
    }

    /// Signs whatever SignedInfo says.
    pub fn with_signed_info(&self, signed_info: &str) -> String {
        self.around(&signature(signed_info, &self.value(signed_info), &self.key_info))
    }

    pub fn value(&self, signed_info: &str) -> [u8; 64] {
        // In its place, because listed prefixes may be declared around it.
        let document = self.around(&signature(signed_info, &[0; 64], &self.key_info));
        (self.signer)(&canonical_digest(&document, "SignedInfo", &self.signed_info_prefixes))
    }

    pub fn sign(&self) -> String {
        self.with_signed_info(&self.signed_info())
    }
}

pub fn timestamp(created: &str, expires: &str) -> String {
    format!("<u:Timestamp u:Id=\"ts\"><u:Created>{created}</u:Created><u:Expires>{expires}</u:Expires></u:Timestamp>")
}

pub fn sec1() -> Vec<u8> {
    key().verifying_key().to_encoded_point(false).as_bytes().to_vec()
}

pub fn named_curve_key(urn: &str, point: &[u8]) -> String {
    format!(
        "<ds:KeyInfo><ds:KeyValue><d:ECKeyValue xmlns:d=\"{DSIG11}\"><d:NamedCurve URI=\"{urn}\"/><d:PublicKey>{}</d:PublicKey>\
         </d:ECKeyValue></ds:KeyValue></ds:KeyInfo>",
        STANDARD.encode(point)
    )
}

pub fn der_key(spki: &[u8]) -> String {
    let spki = STANDARD.encode(spki);
    format!("<ds:KeyInfo><d:DEREncodedKeyValue xmlns:d=\"{DSIG11}\">{spki}</d:DEREncodedKeyValue></ds:KeyInfo>")
}

pub fn binary_token(content: &str) -> String {
    format!("<w:BinarySecurityToken u:Id=\"tok\" ValueType=\"{X509V3}\">{content}</w:BinarySecurityToken>")
}

pub fn token_reference(uri: &str) -> String {
    format!(
        "<ds:KeyInfo><w:SecurityTokenReference><w:Reference URI=\"{uri}\" ValueType=\"{X509V3}\"/></w:SecurityTokenReference></ds:KeyInfo>"
    )
}

pub fn inclusive(prefixes: &str) -> String {
    if prefixes.is_empty() {
        return String::new();
    }
    format!("<ec:InclusiveNamespaces xmlns:ec=\"{EXC_C14N}\" PrefixList=\"{prefixes}\"/>")
}

pub fn reference(id: &str, prefixes: &str, digest: &[u8]) -> String {
    format!(
        "<ds:Reference URI=\"#{id}\"><ds:Transforms><ds:Transform Algorithm=\"{EXC_C14N}\">{}</ds:Transform></ds:Transforms>\
         <ds:DigestMethod Algorithm=\"{SHA256}\"/><ds:DigestValue>{}</ds:DigestValue></ds:Reference>",
        inclusive(prefixes),
        STANDARD.encode(digest)
    )
}

pub fn signature(signed_info: &str, value: &[u8], key_info: &str) -> String {
    format!(
        "<ds:Signature xmlns:ds=\"{DS}\">{signed_info}<ds:SignatureValue>{}</ds:SignatureValue>{key_info}</ds:Signature>",
        STANDARD.encode(value)
    )
}

/// SHA-256 over the canonical form of the first element with this `wsu:Id`, in document order.
pub fn digest(envelope: &str, id: &str, prefixes: &str) -> [u8; 32] {
    let limits = ihe_retrieve::limits::RESPONSE_XML;
    let parsed = Document::parse(envelope.as_bytes(), &limits).unwrap();
    let Some(node) = parsed.elements().find(|node| parsed.attribute(*node, WSU, "Id") == Some(id)) else {
        return [0; 32];
    };
    let listed: Vec<&str> = prefixes.split_whitespace().collect();
    Sha256::digest(exclusive(&parsed, node, &listed, usize::MAX).unwrap()).into()
}

fn canonical_digest(envelope: &str, local: &str, prefixes: &str) -> [u8; 32] {
    let limits = ihe_retrieve::limits::RESPONSE_XML;
    let parsed = Document::parse(envelope.as_bytes(), &limits).unwrap();
    let node = parsed.elements().find(|node| parsed.is(*node, DS, local)).unwrap();
    let listed: Vec<&str> = prefixes.split_whitespace().collect();
    Sha256::digest(exclusive(&parsed, node, &listed, usize::MAX).unwrap()).into()
}

/// xorshift: enough to choose, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn seeded(number: u64) -> Random {
        Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A few random edits: cut, flip, set, repeat, splice, remove.
    pub fn mutated(&mut self, seed: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = at + self.below((bytes.len() - at).min(200) + 1);
            match self.below(8) {
                0 if self.below(4) == 0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => bytes[at] = b"\0\xff<>&'\" \n/:="[self.below(12)],
                3 => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                4 if self.below(4) == 0 => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                5 => {
                    let inside = self.one(&[
                        " ",
                        "\t",
                        "\r\n",
                        "<!---->",
                        "<![CDATA[]]>",
                        "&#32;",
                        "&amp;",
                        "<a/>",
                        "xmlns:p='urn:p'",
                    ]);
                    bytes.splice(at..at, inside.bytes());
                }
                _ => drop(bytes.drain(at..end)),
            }
        }
        bytes
    }

    pub fn one<'c>(&mut self, choices: &[&'c str]) -> &'c str {
        choices[self.below(choices.len())]
    }
}

/// The Python environment with lxml and xmlsec; `None`, and said so, when it is missing.
pub fn python() -> Option<PathBuf> {
    let venv =
        std::env::var_os("VENV").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv"), PathBuf::from);
    let python = venv.join("bin/python");
    let imports = ["-c", "import lxml, xmlsec, cryptography"];
    let complete =
        python.is_file() && Command::new(&python).args(imports).stderr(Stdio::null()).status().unwrap().success();
    if !complete {
        let required = std::env::var("REQUIRE_TOOLS").as_deref() == Ok("1");
        assert!(!required, "lxml and xmlsec in .venv are missing and REQUIRE_TOOLS=1");
        eprintln!("SKIPPED: lxml and xmlsec in .venv are missing; run `make tools`");
    }
    complete.then_some(python)
}

/// Asks the judge; `None` when there is none.
pub fn judge(commands: &[String]) -> Option<Vec<String>> {
    let python = python()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py/judge.py");
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = commands.join("\n") + "\n";
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the judge failed");
    let answers: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), commands.len(), "one answer for each question");
    Some(answers)
}
