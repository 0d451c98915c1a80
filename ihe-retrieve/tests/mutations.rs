//! The strongest thing to say about a verifier: whatever is done to a message, either it is refused or it says exactly what was signed.
//! `MUTATIONS` sets how many are tried, 4000 by default.
#![allow(clippy::unwrap_used)]

mod support;

use ihe_retrieve::request::Retrieve;
use ihe_retrieve::requester::{SignedRequest, TokenPlacement};
use ihe_retrieve::verify::VerifiedRequest;
use support::*;

fn count() -> u64 {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(4000)
}

/// Valid requests as they are on the wire, of several shapes.
fn originals() -> Vec<SignedRequest> {
    let mut messages = vec![signed(&retrieve(), TokenPlacement::Part), signed(&retrieve(), TokenPlacement::Inline)];
    let mut listed = Message::new();
    listed.signed_info_prefixes = "s a u".into();
    listed.signed.iter_mut().for_each(|(_, prefixes)| *prefixes = "s w a #default".into());
    for envelope in [Message::new().sign(), listed.sign()] {
        let body =
            format!("--b\r\nContent-Type: application/xop+xml\r\nContent-ID: <r>\r\n\r\n{envelope}\r\n--b--\r\n");
        let content_type =
            "multipart/related; type=\"application/xop+xml\"; start-info=\"application/soap+xml\"; boundary=b";
        messages.push(SignedRequest { content_type: content_type.into(), body: body.into_bytes() });
    }
    messages
}

/// From `<` of a start tag to `>` of its end tag, for every element of a message that has neither comments nor CDATA sections.
fn elements(message: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut open, mut found, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(from) = message[at..].iter().position(|b| *b == b'<').map(|found| found + at) {
        let Some(end) = message[from..].iter().position(|b| *b == b'>').map(|found| found + from + 1) else { break };
        match message[from + 1] {
            b'/' => found.extend(open.pop().map(|start| start..end)),
            b'?' => {}
            _ if message[end - 2] == b'/' => found.push(from..end),
            c if c.is_ascii_alphabetic() => open.push(from),
            _ => {}
        }
        at = end;
    }
    found
}

/// Copies, moves, removes, wraps or renames elements: what wrapping attacks are made of.
fn rearranged(message: &[u8], random: &mut Random) -> Vec<u8> {
    let mut message = message.to_vec();
    for _ in 0..=random.below(3) {
        let elements = elements(&message);
        if elements.is_empty() {
            return message;
        }
        let (source, place) =
            (elements[random.below(elements.len())].clone(), elements[random.below(elements.len())].clone());
        let copy = message[source.clone()].to_vec();
        let to = if random.below(2) == 0 { place.start } else { place.end };
        match random.below(6) {
            0 => drop(message.splice(to..to, copy)),
            1 => drop(message.splice(source, [])),
            2 => drop(message.splice(place, copy)),
            3 if to <= source.start => {
                message.drain(source);
                message.splice(to..to, copy);
            }
            4 => {
                let wrapped = [b"<e:E xmlns:e='urn:e'>", copy.as_slice(), b"</e:E>"].concat();
                message.splice(source, wrapped);
            }
            _ => {
                let inside = [
                    "<!-- -->",
                    " ",
                    "\n",
                    "<![CDATA[]]>",
                    " xml:lang='en'",
                    " xmlns='urn:e'",
                    " u:Id='bo'",
                    " Id='body'",
                ];
                let text = random.one(&inside);
                let end_of_tag =
                    source.start + message[source.start..].iter().position(|b| b">/ ".contains(b)).unwrap();
                let at = if text.starts_with(" x") || text.contains("Id") { end_of_tag } else { to };
                message.splice(at..at, text.bytes());
            }
        }
    }
    message
}

fn compare(number: u64, original: &VerifiedRequest, mutant: &SignedRequest) -> bool {
    let judged = std::panic::catch_unwind(|| receive(mutant));
    let shown = || String::from_utf8_lossy(&mutant.body);
    let judged = judged.unwrap_or_else(|_| panic!("mutation {number} panics: {}", shown()));
    if let Ok(request) = &judged {
        assert_eq!(request, original, "mutation {number} says something else: {}", shown());
    }
    judged.is_ok()
}

#[test]
fn no_mutant_says_anything_that_was_not_signed() {
    let originals = originals();
    let verified: Vec<_> = originals.iter().map(|original| receive(original).unwrap()).collect();
    let bodies: Vec<_> = originals.iter().map(|original| original.body.clone()).collect();
    let (mut taken, mut changed) = (0, 0);
    for number in 1..=count() {
        let mut random = Random::seeded(number);
        let at = random.below(originals.len());
        let body =
            if number % 2 == 0 { rearranged(&bodies[at], &mut random) } else { random.mutated(&bodies[at], &bodies) };
        changed += u64::from(body != bodies[at]);
        let mutant = SignedRequest { body, ..originals[at].clone() };
        // Splicing may make one whole original out of another.
        let same = bodies.iter().position(|body| *body == mutant.body).unwrap_or(at);
        taken += u64::from(compare(number, &verified[same], &mutant));
    }
    // Some change nothing that counts, such as white space between headers; if none did, the test would prove little.
    assert!(taken > count() / 100, "{taken} of {} were taken", count());
    assert!(changed > count() / 2, "{changed} of {} differ", count());
}

/// The requester may send anything, and sign it: nothing panics, and what is read is what a request with these values would say.
#[test]
fn whatever_is_signed_is_read_the_same_way() {
    let mut taken = 0;
    for number in 1..=count() / 2 {
        let mut random = Random::seeded(number);
        let mut message = Message::new();
        let bodies = [message.body.clone().into_bytes()];
        let mutated =
            if number % 2 == 0 { rearranged(&bodies[0], &mut random) } else { random.mutated(&bodies[0], &bodies) };
        let Ok(body) = String::from_utf8(mutated) else { continue };
        message.body = body;
        let limits = ihe_retrieve::limits::REQUEST_XML;
        if ihe_retrieve::xml::Document::parse(message.around("").as_bytes(), &limits).is_err() {
            continue;
        }
        let judged = std::panic::catch_unwind(|| receive_envelope(&message.sign()));
        let Ok(request) = judged.unwrap_or_else(|_| panic!("mutation {number} panics: {}", message.body)) else {
            continue;
        };
        taken += 1;
        let Retrieve::Documents(documents) = request.retrieve() else { panic!("ITI-43") };
        assert!((1..=16).contains(&documents.len()));
        let again = receive(&signed(request.retrieve(), TokenPlacement::Part)).unwrap();
        assert_eq!(again.retrieve(), request.retrieve(), "mutation {number}: {}", message.body);
    }
    assert!(taken > 20, "{taken} were taken");
}
