//! A requester that shares no code with us, `tests/py/iti43_client.py` (lxml, libxmlsec1, OpenSSL): its requests are taken here, our responses
//! and faults are read there.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use ihe_retrieve::fault::{Fault, FaultStatus};
use ihe_retrieve::request::Retrieve;
use ihe_retrieve::requester::SignedRequest;
use ihe_retrieve::response::{DocumentType, Outcome, RegistryErrorCode, respond};
use support::*;

struct Client {
    python: std::path::PathBuf,
    directory: tempfile::TempDir,
}

impl Client {
    fn new() -> Option<Client> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), "42".repeat(32)).unwrap();
        Some(Client { python: python()?, directory })
    }

    fn run(&self, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/py/iti43_client.py");
        let output =
            Command::new(&self.python).arg(script).args(arguments).current_dir(self.directory.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn request(&self, more: &[&str]) -> SignedRequest {
        let (now, id) = ((NOW_MS / 1000).to_string(), hex::encode([1; 32]));
        let common = [
            "--url",
            TO,
            "--key",
            "key",
            "--now",
            &now,
            "--repository",
            "r",
            "--document",
            &id,
            "--document",
            "other",
            "--message-id",
            MESSAGE_ID,
            "--write",
            "request",
        ];
        self.run(&[&common, more].concat());
        let written = std::fs::read(self.directory.path().join("request")).unwrap();
        let end = written.iter().position(|b| *b == b'\n').unwrap();
        let content_type = String::from_utf8(written[..end].to_vec()).unwrap();
        SignedRequest { content_type, body: written[end + 1..].to_vec() }
    }

    fn read(&self, content_type: &str, body: &[u8]) -> String {
        let answer = [content_type.as_bytes(), b"\n", body].concat();
        std::fs::write(self.directory.path().join("answer"), answer).unwrap();
        self.run(&["--read", "answer", "--message-id", MESSAGE_ID, "--save", "."])
    }
}

#[test]
fn its_requests_are_taken() {
    let Some(client) = Client::new() else { return };
    let account = receive_envelope(&Message::new().sign()).unwrap().key().account();
    for token in ["part", "inline", "named-curve", "der"] {
        for curve in ["secp256k1", "p256"] {
            let request = client.request(&["--token", token, "--curve", curve]);
            let verified = receive(&request).unwrap_or_else(|fault| panic!("{token} {curve}: {fault}"));
            assert_eq!(verified.key().account(), account.filter(|_| curve == "secp256k1"));
            assert_eq!((verified.to(), verified.message_id(), verified.created_ms()), (TO, MESSAGE_ID, NOW_MS));
            let Retrieve::Documents(documents) = verified.retrieve() else { panic!("ITI-43") };
            let named: Vec<_> = documents.iter().map(|d| d.document_unique_id.as_str()).collect();
            assert_eq!(named, [&hex::encode([1; 32]), "other"]);
        }
    }
    assert_eq!(receive(&client.request(&["--alter", ">other<", ">another<"])), Err(Fault::Digest));
    let home = receive(&client.request(&["--home", "urn:oid:1.2"])).unwrap();
    let Retrieve::Documents(documents) = home.retrieve() else { panic!("ITI-43") };
    assert_eq!(documents[0].home_community_id.as_deref(), Some("urn:oid:1.2"));
}

#[test]
fn it_reads_our_answers() {
    let Some(client) = Client::new() else { return };
    let (there, missing) = (document(1), document(2));
    let content: Vec<u8> = (0..100_000u32).flat_map(|n| [n as u8, b'\r', b'\n', b'-', b'-']).collect();
    let outcomes = [
        (&there, Outcome::Document(DocumentType::Zip, content.len() as u64)),
        (&missing, Outcome::Error(RegistryErrorCode::DocumentUniqueIdError)),
    ];
    let plan = respond(MESSAGE_ID, &outcomes, [3; 16]);
    let said = client.read(&plan.content_type(), &plan.assemble(&[&content]).unwrap());
    for expected in [
        "\"status\": \"urn:ihe:iti:2007:ResponseStatusType:PartialSuccess\"",
        "\"relates\": true",
        "\"action\": \"urn:ihe:iti:2007:RetrieveDocumentSetResponse\"",
        "\"errorCode\": \"XDSDocumentUniqueIdError\"",
        &format!("\"location\": \"{}\"", hex::encode([2; 32])),
        &format!("\"document\": \"{}\"", hex::encode([1; 32])),
        "\"mime_type\": \"application/zip\", \"bytes\": 500000",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert_eq!(std::fs::read(client.directory.path().join("1.bin")).unwrap(), content);
    for (fault, code, subcode) in [
        (Fault::Replay, "env:Sender", "\"wsse:FailedCheck\""),
        (Fault::Soap11, "env11:VersionMismatch", "null"),
        (Fault::MustUnderstand(vec![("urn:e".into(), "Some".into())]), "env:MustUnderstand", "null"),
    ] {
        let answer = fault.answer(FaultStatus::Soap12, Some(MESSAGE_ID));
        let said = client.read(answer.content_type, &answer.body);
        let expected = format!("\"fault\": {{\"code\": \"{code}\", \"subcode\": {subcode}, \"reason\": \"{fault}\"}}");
        assert!(said.contains(&expected), "{expected} in {said}");
    }
}
