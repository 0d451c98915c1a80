//! From an HTTP request to the octets of an envelope and of what came with it (MTOM, section 3 of the wire contract).

use crate::fault::Fault;
use crate::limits::{PARTS_MAX, REQUEST_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::media_type::MediaType;
use crate::multipart::{PartHead, Piece, Reader, bracketed};

/// What a daemon knows of a request before it reads the body.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a str,
    /// The Content-Type field.
    pub content_type: Option<&'a str>,
    /// The Content-Encoding field.
    pub content_encoding: Option<&'a str>,
    /// The Content-Length field; without one the daemon counts while it reads and answers [`Fault::TooLarge`] itself.
    pub content_length: Option<u64>,
}

/// How an admitted request's body is to be taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// multipart/related.
    Mtom {
        /// Between the parts.
        boundary: String,
        /// Content-ID of the root part, where it is said; the root part is the first all the same.
        start: Option<String>,
    },
    /// The envelope and nothing else.
    Simple,
}

impl RequestHead<'_> {
    /// Judges a request before its body is read. The SOAPAction field and the `action` parameter are nobody's business.
    pub fn admit(&self, accept_simple_soap: bool) -> Result<Framing, Fault> {
        if self.method != "POST" {
            return Err(Fault::MethodNotAllowed);
        }
        if self.content_encoding.is_some() {
            return Err(Fault::UnsupportedMediaType);
        }
        if self.content_length.is_some_and(|length| length > REQUEST_BYTES_MAX as u64) {
            return Err(Fault::TooLarge);
        }
        let framing =
            self.content_type.and_then(MediaType::parse).and_then(|field| framing(&field, accept_simple_soap));
        framing.ok_or(Fault::UnsupportedMediaType)
    }
}

fn framing(field: &MediaType, accept_simple_soap: bool) -> Option<Framing> {
    match field.essence() {
        "multipart/related" => {
            let xop = MediaType::parse(field.parameter("type")?)?.essence() == "application/xop+xml";
            if !xop || !is_soap(field.parameter("start-info")?) {
                return None;
            }
            let start = field.parameter("start").map(|start| bracketed(start).unwrap_or(start).to_owned());
            Some(Framing::Mtom { boundary: field.parameter("boundary")?.to_owned(), start })
        }
        "application/soap+xml" if accept_simple_soap && is_utf8(field) => Some(Framing::Simple),
        _ => None,
    }
}

/// SOAP 1.2, or SOAP 1.1, which is let in as far as to its envelope, where it is told the version.
fn is_soap(value: &str) -> bool {
    MediaType::parse(value).is_some_and(|t| matches!(t.essence(), "application/soap+xml" | "text/xml"))
}

fn is_utf8(field: &MediaType) -> bool {
    field.parameter("charset").is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8"))
}

/// An envelope's octets, and parts by Content-ID.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) root: Vec<u8>,
    pub(crate) attachments: Vec<(String, Vec<u8>)>,
}

impl Message {
    pub(crate) fn read(framing: &Framing, body: &[u8]) -> Result<Message, Fault> {
        if body.len() > REQUEST_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        match framing {
            Framing::Simple => Ok(Message { root: body.to_vec(), attachments: Vec::new() }),
            Framing::Mtom { boundary, start } => Message::read_parts(boundary, start.as_deref(), body),
        }
    }

    fn read_parts(boundary: &str, start: Option<&str>, body: &[u8]) -> Result<Message, Fault> {
        let mut reader = Reader::new(boundary, PARTS_MAX).map_err(|_| Fault::Multipart)?;
        reader.push(body);
        let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::with_capacity(PARTS_MAX);
        while let Some(piece) = reader.next_piece().map_err(|_| Fault::Multipart)? {
            match piece {
                Piece::Part(head) => parts.push((head, Vec::new())),
                Piece::Data(octets) => parts.last_mut().ok_or(Fault::Multipart)?.1.extend_from_slice(octets),
                Piece::PartEnd | Piece::End => {}
            }
        }
        reader.finish().map_err(|_| Fault::Multipart)?;
        let mut parts = parts.into_iter();
        let (head, root) = parts.next().filter(|(head, _)| is_root(head, start)).ok_or(Fault::Multipart)?;
        let mut message = Message { root, attachments: Vec::new() };
        for (part, octets) in parts {
            message.attach(head.content_id.as_deref(), part, octets)?;
        }
        Ok(message)
    }

    /// Parts without an id, which nothing can refer to, are dropped.
    fn attach(&mut self, root_id: Option<&str>, head: PartHead, octets: Vec<u8>) -> Result<(), Fault> {
        let Some(id) = head.content_id else { return Ok(()) };
        if root_id == Some(&id) || self.attachments.iter().any(|(known, _)| *known == id) {
            return Err(Fault::Multipart);
        }
        if octets.len() > TOKEN_BYTES_MAX {
            return Err(Fault::TooComplex);
        }
        self.attachments.push((id, octets));
        Ok(())
    }
}

/// The first part must be the one that `start` names, and say that it is a SOAP envelope in XOP.
fn is_root(head: &PartHead, start: Option<&str>) -> bool {
    let named = start.is_none_or(|start| head.content_id.as_deref() == Some(start));
    let typed = head.content_type.as_ref().is_some_and(|field| {
        field.essence() == "application/xop+xml" && is_utf8(field) && field.parameter("type").is_none_or(is_soap)
    });
    named && typed
}
