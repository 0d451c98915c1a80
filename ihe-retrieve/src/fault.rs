//! What a requester is told when its message is not answered: one constant text per condition, and its place in SOAP 1.2 and in HTTP.
//!
//! Nothing of a message is repeated in a fault but its id and, as SOAP 1.2 section 5.4.8 wants it, the names of headers not understood.

use crate::names::{SOAP, SOAP11, WSA, WSSE, WSU};
use crate::xml;

/// Which status faults of the sender carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FaultStatus {
    /// SOAP 1.2 part 2, table 20: 400 for Sender, 500 for others.
    #[default]
    Soap12,
    /// 500 for every fault, for clients that read no fault on 400.
    Always500,
}

/// Why a message is refused, sorted as the wire contract sorts it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another method than POST: plain HTTP.
    #[error("only POST is served here")]
    MethodNotAllowed,
    /// More octets than the limit: plain HTTP.
    #[error("the request is too large")]
    TooLarge,
    /// Not MTOM, or encoded: plain HTTP.
    #[error("the request must be multipart/related of type application/xop+xml")]
    UnsupportedMediaType,
    /// The MIME structure is broken.
    #[error("the multipart message cannot be read")]
    Multipart,
    /// Not UTF-8 or not well-formed.
    #[error("the message is not well-formed XML in UTF-8")]
    NotWellFormed,
    /// A document type declaration, a processing instruction or an entity.
    #[error("the message contains what SOAP does not allow in XML")]
    ForbiddenMarkup,
    /// A count above its limit.
    #[error("the message is too complex")]
    TooComplex,
    /// Not exactly Header and Body in an Envelope, or octets by reference where none belong.
    #[error("the message is not a SOAP envelope of one header and one body")]
    Envelope,
    /// The body is not the one that the action names.
    #[error("the body is not a valid request")]
    Body,
    /// A SOAP 1.1 envelope.
    #[error("SOAP 1.2 is required")]
    Soap11,
    /// An Envelope of an unknown version.
    #[error("the version of the envelope is not supported")]
    VersionMismatch,
    /// Mandatory headers that nobody here understands: namespace and local name of each.
    #[error("a mandatory header is not understood")]
    MustUnderstand(Vec<(String, String)>),
    /// `wsa:Action` is another.
    #[error("the action is not supported")]
    ActionNotSupported,
    /// `wsa:Action`, `wsa:To` or `wsa:MessageID` is missing.
    #[error("a required addressing header is missing")]
    AddressingHeaderRequired,
    /// An addressing header is there twice or not what it should be.
    #[error("an addressing header is repeated or invalid")]
    InvalidAddressingHeader,
    /// Responses go back on the same connection and nowhere else.
    #[error("only anonymous reply and fault addresses are supported")]
    OnlyAnonymousAddressSupported,
    /// `wsa:To` is not an address of this endpoint.
    #[error("the destination is not served here")]
    DestinationUnreachable,
    /// Not exactly one Security, Signature and Timestamp of the right form.
    #[error("the security header is not valid")]
    InvalidSecurity,
    /// An id is there twice.
    #[error("an identifier is not unique")]
    DuplicateId,
    /// The signature value does not verify.
    #[error("the signature is not valid")]
    Signature,
    /// What is signed is not what is there.
    #[error("a signed part was altered")]
    Digest,
    /// Something that must be signed is not, or a reference is not to one element of this message.
    #[error("the signature does not cover the required parts")]
    Coverage,
    /// The message was seen before; the caller's to find.
    #[error("the message was received before")]
    Replay,
    /// Another algorithm or transform than those of the profile.
    #[error("an algorithm or transform is not supported")]
    UnsupportedAlgorithm,
    /// A form of key, or a curve, that is not of the profile. Also the caller's, for keys that its contract does not admit.
    #[error("the kind of key is not supported")]
    UnsupportedSecurityToken,
    /// A key of a known form with a content that is none.
    #[error("the key cannot be read")]
    InvalidSecurityToken,
    /// The key is referred to, and not there.
    #[error("the key is missing")]
    SecurityTokenUnavailable,
    /// Created or Expires is out of bounds.
    #[error("the message is expired, too new, or valid for too long")]
    MessageExpired,
}

/// A fault ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultAnswer {
    /// HTTP status.
    pub status: u16,
    /// Content-Type of the body.
    pub content_type: &'static str,
    /// The Allow field, which goes with 405.
    pub allow: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
}

const SOAP12_TYPE: &str = "application/soap+xml; charset=utf-8";
const SOAP11_TYPE: &str = "text/xml; charset=utf-8";
const PLAIN_TYPE: &str = "text/plain; charset=utf-8";

impl Fault {
    /// The answer; `relates_to` is the message id, where it could be read.
    pub fn answer(&self, status: FaultStatus, relates_to: Option<&str>) -> FaultAnswer {
        match self {
            Fault::MethodNotAllowed => FaultAnswer { allow: Some("POST"), ..self.plain(405) },
            Fault::TooLarge => self.plain(413),
            Fault::UnsupportedMediaType => self.plain(415),
            Fault::Soap11 => self.in_soap11(),
            _ => self.in_soap12(status, relates_to),
        }
    }

    /// The qualified name of the SOAP 1.2 Code, without prefix.
    pub fn code(&self) -> &'static str {
        match self {
            Fault::Soap11 | Fault::VersionMismatch => "VersionMismatch",
            Fault::MustUnderstand(_) => "MustUnderstand",
            _ => "Sender",
        }
    }

    /// The Subcode with the prefixes `wsa`, `wsse` and `wsu`, where there is one.
    pub fn subcode(&self) -> Option<&'static str> {
        Some(match self {
            Fault::ActionNotSupported => "wsa:ActionNotSupported",
            Fault::AddressingHeaderRequired => "wsa:MessageAddressingHeaderRequired",
            Fault::InvalidAddressingHeader => "wsa:InvalidAddressingHeader",
            Fault::OnlyAnonymousAddressSupported => "wsa:OnlyAnonymousAddressSupported",
            Fault::DestinationUnreachable => "wsa:DestinationUnreachable",
            Fault::InvalidSecurity | Fault::DuplicateId => "wsse:InvalidSecurity",
            Fault::Signature | Fault::Digest | Fault::Coverage | Fault::Replay => "wsse:FailedCheck",
            Fault::UnsupportedAlgorithm => "wsse:UnsupportedAlgorithm",
            Fault::UnsupportedSecurityToken => "wsse:UnsupportedSecurityToken",
            Fault::InvalidSecurityToken => "wsse:InvalidSecurityToken",
            Fault::SecurityTokenUnavailable => "wsse:SecurityTokenUnavailable",
            Fault::MessageExpired => "wsu:MessageExpired",
            _ => return None,
        })
    }

    /// The constant text of the condition.
    fn text(&self) -> String {
        self.to_string()
    }

    fn plain(&self, status: u16) -> FaultAnswer {
        let body = format!("{}\n", self.text()).into_bytes();
        FaultAnswer { status, content_type: PLAIN_TYPE, allow: None, body }
    }

    fn in_soap12(&self, status: FaultStatus, relates_to: Option<&str>) -> FaultAnswer {
        let body = self.envelope(relates_to);
        let sender = self.code() == "Sender" && status == FaultStatus::Soap12;
        FaultAnswer { status: if sender { 400 } else { 500 }, content_type: SOAP12_TYPE, allow: None, body }
    }

    fn envelope(&self, relates_to: Option<&str>) -> Vec<u8> {
        let addressing = self.subcode().is_some_and(|s| s.starts_with("wsa:"));
        let action = if addressing { "fault" } else { "soap/fault" };
        let mut out = format!(
            "<env:Envelope xmlns:env=\"{SOAP}\" xmlns:wsa=\"{WSA}\"><env:Header><wsa:Action>{WSA}/{action}</wsa:Action>"
        )
        .into_bytes();
        if let Some(id) = relates_to {
            out.extend_from_slice(b"<wsa:RelatesTo>");
            xml::text(&mut out, id);
            out.extend_from_slice(b"</wsa:RelatesTo>");
        }
        self.headers(&mut out);
        let code = format!("</env:Header><env:Body><env:Fault><env:Code><env:Value>env:{}</env:Value>", self.code());
        out.extend_from_slice(code.as_bytes());
        if let Some(subcode) = self.subcode() {
            let subcode = format!(
                "<env:Subcode><env:Value xmlns:wsse=\"{WSSE}\" xmlns:wsu=\"{WSU}\">{subcode}</env:Value></env:Subcode>"
            );
            out.extend_from_slice(subcode.as_bytes());
        }
        let reason = format!(
            "</env:Code><env:Reason><env:Text xml:lang=\"en\">{}</env:Text></env:Reason></env:Fault></env:Body></env:Envelope>",
            self.text()
        );
        out.extend_from_slice(reason.as_bytes());
        out
    }

    /// SOAP 1.2 sections 5.4.7 and 5.4.8.
    fn headers(&self, out: &mut Vec<u8>) {
        match self {
            Fault::MustUnderstand(names) => {
                for (namespace, local) in names {
                    out.extend_from_slice(b"<env:NotUnderstood qname=\"q:");
                    xml::attribute(out, local);
                    out.extend_from_slice(b"\" xmlns:q=\"");
                    xml::attribute(out, namespace);
                    out.extend_from_slice(b"\"/>");
                }
            }
            Fault::VersionMismatch => out.extend_from_slice(upgrade().as_bytes()),
            _ => {}
        }
    }

    /// SOAP 1.2 appendix A: an old client is answered in its own version and told which one is served.
    fn in_soap11(&self) -> FaultAnswer {
        let body = format!(
            "<env11:Envelope xmlns:env11=\"{SOAP11}\" xmlns:env=\"{SOAP}\"><env11:Header>{}</env11:Header><env11:Body><env11:Fault>\
             <faultcode>env11:VersionMismatch</faultcode><faultstring>{}</faultstring></env11:Fault></env11:Body></env11:Envelope>",
            upgrade(),
            self.text()
        );
        FaultAnswer { status: 500, content_type: SOAP11_TYPE, allow: None, body: body.into_bytes() }
    }
}

fn upgrade() -> String {
    format!("<env:Upgrade><env:SupportedEnvelope qname=\"v:Envelope\" xmlns:v=\"{SOAP}\"/></env:Upgrade>")
}

impl From<xml::XmlError> for Fault {
    fn from(error: xml::XmlError) -> Fault {
        use xml::XmlError::*;
        match error {
            Encoding | Malformed => Fault::NotWellFormed,
            Dtd | ProcessingInstruction | Entity => Fault::ForbiddenMarkup,
            TooLong | TooDeep | TooManyElements | TooManyAttributes => Fault::TooComplex,
        }
    }
}

impl From<xml::CanonicalError> for Fault {
    fn from(_: xml::CanonicalError) -> Fault {
        Fault::TooComplex
    }
}
