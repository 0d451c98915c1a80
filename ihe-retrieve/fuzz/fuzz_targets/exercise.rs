//! What the fuzzer and `tests/corpus.rs` do with an input.
#![allow(dead_code, unreachable_pub)]

use ihe_retrieve::fault::FaultStatus;
use ihe_retrieve::limits::REQUEST_XML;
use ihe_retrieve::message::{Framing, RequestHead};
use ihe_retrieve::receiver::{ResponsePiece, ResponseReader, read_fault};
use ihe_retrieve::verify::{Policy, verify};
use ihe_retrieve::xml::{Document, exclusive};

/// 2026-11-28T22:00:00Z, when the corpus was signed.
const NOW_MS: i64 = 1_795_903_200_000;

/// A Content-Type, a line end, a body: a request.
pub fn request(input: &[u8]) {
    let end = input.iter().position(|b| *b == b'\n').unwrap_or(input.len());
    let (content_type, body) = (String::from_utf8_lossy(&input[..end]), input.get(end + 1..).unwrap_or_default());
    let head =
        RequestHead { method: "POST", content_type: Some(&content_type), content_encoding: None, content_length: None };
    let policy = Policy { addresses: vec!["https://hospital.example/iti43".into()], imaging: true };
    for framing in [head.admit(true).unwrap_or(Framing::Simple), Framing::Simple] {
        if let Err(refusal) = verify(&framing, body, &policy, NOW_MS) {
            let answer = refusal.fault.answer(FaultStatus::Soap12, refusal.message_id.as_deref());
            let soap = answer.content_type.contains("xml");
            assert_eq!(soap, read_fault(&answer.body).is_some(), "a fault can be read");
        }
    }
}

/// A chunk size, then the body of a response.
pub fn response(input: &[u8]) {
    let Some((size, body)) = input.split_first() else { return };
    let kind =
        "multipart/related; type=\"application/xop+xml\"; boundary=\"pacs-bridge-03030303030303030303030303030303\"";
    let Ok(mut reader) = ResponseReader::new(kind, "urn:uuid:6d296e90-d9a4-4cd8-b0b6-0a5b1cbd2e11") else { return };
    let mut octets = 0;
    for chunk in body.chunks(usize::from(*size).max(1)) {
        reader.push(chunk);
        loop {
            match reader.next_piece() {
                Ok(Some(ResponsePiece::Data(data))) => octets += data.len(),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(octets <= body.len(), "no octet comes out twice");
    let _ = reader.finish();
}

/// A document: what its canonical form is stays so when it is read again.
pub fn xml(input: &[u8]) {
    let Ok(document) = Document::parse(input, &REQUEST_XML) else { return };
    for node in document.elements().take(8) {
        let Ok(canonical) = exclusive(&document, node, &["p", "#default"], 1 << 20) else { continue };
        // Longer than a document may be, perhaps, because namespaces are written more than once.
        let limits = ihe_retrieve::limits::XmlLimits { bytes: 1 << 21, attributes: 256, ..REQUEST_XML };
        let again = Document::parse(&canonical, &limits).expect("a canonical form is well-formed");
        let twice = exclusive(&again, again.root(), &["p", "#default"], 1 << 21).expect("as long as before");
        assert_eq!(canonical, twice, "canonical forms are canonical");
    }
}
