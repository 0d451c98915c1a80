//! Responses there and back: what `respond` plans is what `ResponseReader` reads, in chunks of any size, and nothing else is taken.
#![allow(clippy::unwrap_used)]

mod support;

use ihe_retrieve::fault::{Fault, FaultStatus};
use ihe_retrieve::receiver::{ResponseError, ResponsePiece, ResponseReader, RetrieveResponse, read_fault};
use ihe_retrieve::request::DocumentRequest;
use ihe_retrieve::response::*;
use support::{MESSAGE_ID, document};

/// A document's place in the response, and its octets.
type Documents = Vec<(usize, Vec<u8>)>;

fn documents(content_type: &str, body: &[u8], chunk: usize) -> Result<(RetrieveResponse, Documents), ResponseError> {
    let mut reader = ResponseReader::new(content_type, MESSAGE_ID)?;
    let (mut response, mut documents, mut open) = (None, Vec::new(), false);
    for octets in body.chunks(chunk) {
        reader.push(octets);
        while let Some(piece) = reader.next_piece()? {
            match piece {
                ResponsePiece::Response(read) => assert_eq!(response.replace(read), None),
                ResponsePiece::Document(at) => {
                    documents.push((at, Vec::new()));
                    open = true;
                }
                ResponsePiece::Data(data) => documents.last_mut().unwrap().1.extend_from_slice(data),
                ResponsePiece::DocumentEnd => assert!(std::mem::take(&mut open)),
                ResponsePiece::End => assert!(!open),
            }
        }
    }
    reader.finish().map(|()| (response.unwrap(), documents))
}

fn odd(text: &str) -> DocumentRequest {
    DocumentRequest {
        repository_unique_id: format!(" <{text}> "),
        document_unique_id: format!("&\"{text}'>"),
        ..document(0)
    }
}

#[test]
fn everything_that_is_planned_is_read() {
    let (a, b, c) = (odd("a"), odd("b"), odd("c"));
    let first = b"PK\r\n--pacs-bridge-\r\n\r\n--\r".to_vec();
    let second: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let outcomes = [
        (&a, Outcome::Document(DocumentType::Zip, first.len() as u64)),
        (&b, Outcome::Error(RegistryErrorCode::DocumentUniqueIdError)),
        (&c, Outcome::Document(DocumentType::Dicom, second.len() as u64)),
    ];
    let plan = respond(MESSAGE_ID, &outcomes, [3; 16]);
    let body = plan.assemble(&[&first, &second]).unwrap();
    assert_eq!(body.len() as u64, plan.content_length());
    for chunk in [1, 2, 3, 17, 1000, 70_000, body.len()] {
        let (response, read) = documents(&plan.content_type(), &body, chunk).unwrap();
        assert_eq!(response.status, STATUS_PARTIAL_SUCCESS);
        let named: Vec<_> =
            response.documents.iter().map(|d| (d.document_unique_id.as_str(), d.mime_type.as_str())).collect();
        assert_eq!(named, [("&\"a'>", "application/zip"), ("&\"c'>", "application/dicom")]);
        assert_eq!(response.documents[0].repository_unique_id, "<a>");
        let error = &response.errors[0];
        assert_eq!((error.code.as_str(), error.location.as_str()), ("XDSDocumentUniqueIdError", "&\"b'>"));
        assert!(error.context.contains("not authorized"));
        assert_eq!(read, [(0, first.clone()), (1, second.clone())], "chunks of {chunk}");
    }
}

#[test]
fn status_says_how_much_is_there() {
    let request = document(1);
    let (there, missing) =
        (Outcome::Document(DocumentType::Zip, 0), Outcome::Error(RegistryErrorCode::UnknownRepositoryId));
    for (outcomes, status) in [
        (vec![there.clone()], STATUS_SUCCESS),
        (vec![there, missing.clone()], STATUS_PARTIAL_SUCCESS),
        (vec![missing.clone(), missing], STATUS_FAILURE),
    ] {
        let parts = outcomes.iter().filter(|o| matches!(o, Outcome::Document(..))).count();
        let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| (&request, outcome)).collect();
        let plan = respond(MESSAGE_ID, &outcomes, [3; 16]);
        let body = plan.assemble(&vec![&b""[..]; parts]).unwrap();
        assert_eq!(documents(&plan.content_type(), &body, 100).unwrap().0.status, status);
    }
}

/// Whoever asks for a study must not learn whether it is there.
#[test]
fn errors_of_one_code_differ_in_their_location_only() {
    let code = RegistryErrorCode::DocumentUniqueIdError;
    let answer = |n| {
        String::from_utf8(respond(MESSAGE_ID, &[(&document(n), Outcome::Error(code))], [3; 16]).head().to_vec())
            .unwrap()
    };
    assert_eq!(answer(1).replace(&hex::encode([1; 32]), &hex::encode([2; 32])), answer(2));
    let text = answer(1);
    assert!(
        text.contains(&format!("location=\"{}\"/></rs:RegistryErrorList>", hex::encode([1; 32]))),
        "empty content: {text}"
    );
    for absent in ["requestId", "ResponseSlotList", "HomeCommunityId"] {
        assert!(!text.contains(absent));
    }
}

#[test]
fn responses_that_are_not_taken() {
    let request = document(1);
    let plan = respond(MESSAGE_ID, &[(&request, Outcome::Document(DocumentType::Zip, 3))], [3; 16]);
    let body = String::from_utf8(plan.assemble(&[b"zip"]).unwrap()).unwrap();
    let kind = plan.content_type();
    let part = &body[body.rfind("\r\n--pacs-bridge").map(|end| body[..end].rfind("\r\n--pacs").unwrap()).unwrap()
        ..body.rfind("\r\n--pacs").unwrap()];
    let judge = |body: &str| documents(&kind, body.as_bytes(), 1000).err();
    assert_eq!(judge(&body), None);
    assert_eq!(judge(&body.replace(MESSAGE_ID, "urn:uuid:other")), Some(ResponseError::Unrelated));
    for (from, to) in [
        ("RetrieveDocumentSetResponse<", "RetrieveDocumentSet<"),
        ("<xds:RetrieveDocumentSetResponse ", "<xds:Retrieve "),
        ("rs:RegistryResponse ", "xds:RegistryResponse "),
        (" status=", " statuS="),
        ("><xop:Include", "> <xop:Include"),
        ("cid:", "http:"),
        ("<xds:mimeType>application/zip</xds:mimeType>", ""),
        ("<xds:Document>", "<xds:Document>UEs="),
    ] {
        let changed = body.replace(from, to).replace(
            "</xds:RetrieveDocumentSetResponse>",
            if to.contains("xds:Retrieve ") { "</xds:Retrieve>" } else { "</xds:RetrieveDocumentSetResponse>" },
        );
        assert_eq!(judge(&changed), Some(ResponseError::Shape), "{from} {to}");
    }
    assert_eq!(judge(&body.replace(part, "")), Some(ResponseError::Parts));
    assert_eq!(judge(&body.replace(part, &part.repeat(2))), Some(ResponseError::Parts));
    assert_eq!(judge(&body.replace("Content-ID: <1@", "Content-ID: <2@")), Some(ResponseError::Parts));
    assert!(matches!(judge(&body[..body.len() - 10]), Some(ResponseError::Multipart(_))));
    assert!(matches!(judge(&body.replace("<env:Body>", "<env:Body>&x;")), Some(ResponseError::Xml(_))));
    let padded = body.replace("<env:Body>", &format!("<env:Body>{}", " ".repeat(1 << 20)));
    assert_eq!(judge(&padded), Some(ResponseError::TooLong));
    for other in [
        "text/xml",
        "multipart/related; type=\"application/xop+xml\"",
        "multipart/related; boundary=b; type=\"text/xml\"",
    ] {
        assert_eq!(ResponseReader::new(other, MESSAGE_ID).err(), Some(ResponseError::MediaType), "{other}");
    }
}

#[test]
fn faults_are_read_as_such() {
    let fault = Fault::Replay.answer(FaultStatus::Soap12, Some(MESSAGE_ID));
    let read = read_fault(&fault.body).unwrap();
    assert_eq!((read.code.as_str(), read.subcode.as_str()), ("env:Sender", "wsse:FailedCheck"));
    let body = [b"--b\r\n\r\n", fault.body.as_slice(), b"\r\n--b--"].concat();
    let kind = "multipart/related; type=\"application/xop+xml\"; boundary=b";
    assert_eq!(documents(kind, &body, 50).err(), Some(ResponseError::Fault(read)));
    assert_eq!(read_fault(b"<html/>"), None);
    assert_eq!(read_fault(b"not xml"), None);
}
