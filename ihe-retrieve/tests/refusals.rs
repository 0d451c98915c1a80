//! What is refused, and with which fault. Every case starts from a message that is accepted, so that it can only fail for its own reason.
#![allow(clippy::unwrap_used)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ihe_retrieve::fault::{Fault, FaultStatus};
use ihe_retrieve::message::{Framing, RequestHead};
use ihe_retrieve::receiver::read_fault;
use ihe_retrieve::request::Retrieve;
use ihe_retrieve::requester::{TokenPlacement, sign};
use ihe_retrieve::verify::verify;
use support::*;

/// Replaces what must be there exactly once.
fn swap(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    text.replace(from, to)
}

/// From one text to another, both included.
fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    let start = text.find(from).unwrap();
    &text[start..start + text[start..].find(to).unwrap() + to.len()]
}

fn body_of(envelope: &str) -> &str {
    between(envelope, "<s:Body", "</s:Body>")
}

#[track_caller]
fn refused(envelope: &str, expected: Fault) {
    assert_eq!(receive_envelope(envelope).err(), Some(expected), "{envelope}");
}

#[track_caller]
fn accepted(envelope: &str) {
    let request = receive_envelope(envelope).unwrap_or_else(|fault| panic!("{fault}: {envelope}"));
    let Retrieve::Documents(documents) = request.retrieve() else { panic!("ITI-43") };
    let named: Vec<_> = documents.iter().map(|d| d.document_unique_id.as_str()).collect();
    assert_eq!(named, [format!("0x{}", hex::encode([1; 32])), hex::encode([2; 32])]);
    assert_eq!((request.to(), request.message_id()), (TO, MESSAGE_ID));
}

#[test]
fn the_message_all_others_come_from_is_accepted() {
    accepted(&Message::new().sign());
}

#[test]
fn unsigned_and_altered() {
    let message = Message::new();
    let valid = message.sign();
    refused(&message.around(""), Fault::InvalidSecurity);
    refused(&swap(&valid, &hex::encode([2; 32]), &hex::encode([3; 32])), Fault::Digest);
    refused(&swap(&valid, MESSAGE_ID, "urn:uuid:other"), Fault::Digest);
    refused(&swap(&valid, TO, "https://other.example/"), Fault::Digest);
    refused(&swap(&valid, "22:05:00Z", "22:06:00Z"), Fault::Digest);
    refused(
        &swap(&valid, "urn:ihe:iti:2007:RetrieveDocumentSet<", "urn:ihe:rad:2009:RetrieveImagingDocumentSet<"),
        Fault::Body,
    );
    // White space inside what is signed counts, outside it does not.
    refused(&swap(&valid, "\n</x:RetrieveDocumentSetRequest>", "</x:RetrieveDocumentSetRequest>"), Fault::Digest);
    accepted(&swap(&valid, "\n <s:Header>", "<s:Header>"));
    refused(&swap(&valid, "<ds:SignatureMethod", " <ds:SignatureMethod"), Fault::Signature);
    let other_key = k256::SecretKey::from_slice(&[1; 32]).unwrap().public_key().to_sec1_bytes();
    let other = swap(&valid, &STANDARD.encode(sec1()), &STANDARD.encode(other_key));
    refused(&other, Fault::Signature);
}

/// The signed elements are somewhere, and others are where they should be.
#[test]
fn signature_wrapping() {
    let valid = Message::new().sign();
    let body = body_of(&valid);
    let forged = swap(body, &hex::encode([2; 32]), &hex::encode([3; 32]));
    let without_id = swap(&forged, " u:Id=\"bo\"", "");
    let header_end = "\n </s:Header>";
    let in_header = |inside: &str| format!("<e:Wrapper xmlns:e=\"urn:evil\">{inside}</e:Wrapper>{header_end}");
    let moved = |forged: &str, original: &str| swap(&swap(&valid, body, forged), header_end, &in_header(original));

    // 1-6: the body is kept in the header.
    refused(&moved(&forged, body), Fault::DuplicateId);
    refused(&moved(&without_id, body), Fault::Coverage);
    refused(&moved(&swap(&forged, "u:Id=\"bo\"", "u:Id=\"other\""), body), Fault::Coverage);
    refused(&moved(&swap(&forged, "u:Id=\"bo\"", "Id=\"bo\""), body), Fault::DuplicateId);
    refused(&moved(&swap(&forged, "u:Id=\"bo\"", "xml:id=\"bo\""), body), Fault::DuplicateId);
    refused(&moved(&swap(&forged, "u:Id=\"bo\"", "ID=\"bo\""), body), Fault::DuplicateId);
    // 7-8: in the security header, before and after the signature.
    let secured = swap(&valid, body, &without_id);
    refused(&swap(&secured, "</w:Security>", &format!("{body}</w:Security>")), Fault::Coverage);
    refused(&swap(&secured, "<u:Timestamp", &format!("{body}<u:Timestamp")), Fault::Coverage);
    // 9: in an Object of the signature.
    let object = format!("<ds:Object>{body}</ds:Object></ds:Signature>");
    refused(&swap(&secured, "</ds:Signature>", &object), Fault::InvalidSecurity);
    // 10: in the forged body, below the forged request.
    let nested =
        swap(&without_id, "\n</x:RetrieveDocumentSetRequest>", &format!("{body}</x:RetrieveDocumentSetRequest>"));
    refused(&swap(&valid, body, &nested), Fault::Coverage);
    // 11-14: beside the forged body, before and after, and with the header in between or twice.
    refused(&swap(&valid, body, &format!("{without_id}{body}")), Fault::Envelope);
    refused(&swap(&valid, body, &format!("{body}{without_id}")), Fault::Envelope);
    refused(&swap(&valid, "<s:Header>", &format!("{without_id}<s:Header>")), Fault::Envelope);
    refused(&swap(&valid, "<s:Header>", "<s:Header/><s:Header>"), Fault::Envelope);
    // 15: in an envelope within the envelope, with all that belongs to it.
    let whole = between(&valid, "<s:Envelope", "</s:Envelope>");
    refused(&moved(&without_id, whole), Fault::InvalidSecurity);
    // 16-17: the other signed headers, kept in a wrapper while a forged one is in place.
    for (element, local, text) in [
        ("<a:To u:Id", "</a:To>", TO),
        ("<a:MessageID", "</a:MessageID>", MESSAGE_ID),
        ("<a:Action", "</a:Action>", "urn:ihe:iti:2007:RetrieveDocumentSet"),
    ] {
        let original = between(&valid, element, local);
        let forged = format!("{}>{text}{local}", element.split(' ').next().unwrap());
        refused(&swap(&swap(&valid, original, &forged), header_end, &in_header(original)), Fault::Coverage);
        // One after the other.
        refused(&swap(&valid, original, &format!("{forged}{original}")), Fault::InvalidAddressingHeader);
    }
    // 18-20: the time, twice, elsewhere, or twice with the second one elsewhere.
    let original = between(&valid, "<u:Timestamp", "</u:Timestamp>");
    let forged = timestamp("2026-11-28T22:00:00Z", "2026-11-28T22:09:00Z").replace(" u:Id=\"ts\"", "");
    refused(&swap(&valid, original, &format!("{forged}{original}")), Fault::InvalidSecurity);
    refused(&swap(&swap(&valid, original, ""), header_end, &in_header(original)), Fault::InvalidSecurity);
    refused(&swap(&swap(&valid, original, &forged), header_end, &in_header(original)), Fault::InvalidSecurity);
    // 21-22: the signature elsewhere, or in a second security header for somebody else.
    let signature = between(&valid, "<ds:Signature", "</ds:Signature>");
    refused(&swap(&swap(&valid, signature, ""), header_end, &in_header(signature)), Fault::InvalidSecurity);
    let second = format!("<w:Security xmlns:w=\"{WSSE}\" s:role=\"urn:other\"/>{header_end}");
    refused(&swap(&valid, header_end, &second), Fault::InvalidSecurity);
    refused(&swap(&valid, "<w:Security ", "<w:Security s:role=\"urn:other\" "), Fault::InvalidSecurity);
    // 23-24: another SignedInfo, before or after the signed one.
    let info = between(&valid, "<ds:SignedInfo", "</ds:SignedInfo>");
    refused(&swap(&valid, info, &format!("{info}{info}")), Fault::InvalidSecurity);
    refused(&swap(&valid, "</ds:KeyInfo>", &format!("</ds:KeyInfo>{info}")), Fault::InvalidSecurity);
    // 25-26: a body, or a request, of another namespace.
    refused(&swap(&valid, "<s:Body u:Id", "<s:Body xmlns:s=\"urn:evil\" u:Id"), Fault::Envelope);
    refused(&swap(&valid, XDS, "urn:evil"), Fault::Body);
    // 27: a second request in the signed body.
    refused(
        &swap(&valid, "</s:Body>", "<x:RetrieveDocumentSetRequest xmlns:x=\"urn:ihe:iti:xds-b:2007\"/></s:Body>"),
        Fault::Body,
    );
    // 28: ids that only a DTD makes ids.
    let dtd = "<!DOCTYPE s:Envelope [<!ATTLIST s:Body u:Id ID #FIXED 'bo'>]>\n<s:Envelope";
    refused(&swap(&valid, "<s:Envelope", dtd), Fault::ForbiddenMarkup);
}

#[test]
fn ids_and_signatures_are_unique() {
    let valid = Message::new().sign();
    refused(&swap(&valid, "<a:ReplyTo>", "<a:ReplyTo u:Id=\"to\">"), Fault::DuplicateId);
    refused(&swap(&valid, "<a:ReplyTo>", "<a:ReplyTo id=\"z\" xmlns:e=\"urn:e\" e:ID=\"z\">"), Fault::DuplicateId);
    accepted(&swap(&valid, "<a:ReplyTo>", "<a:ReplyTo id=\"z\" xmlns:e=\"urn:e\" e:ID=\"y\">"));
    let signature = between(&valid, "<ds:Signature", "</ds:Signature>");
    refused(&swap(&valid, signature, &format!("{signature}{signature}")), Fault::InvalidSecurity);
    let header = format!("{}</s:Header>", signature);
    refused(&swap(&valid, "</s:Header>", &header), Fault::InvalidSecurity);
    let security = between(&valid, "<w:Security", "</w:Security>");
    refused(&swap(&valid, security, ""), Fault::InvalidSecurity);
    refused(&swap(&valid, security, &format!("{security}<w:Security xmlns:w=\"{WSSE}\"/>")), Fault::InvalidSecurity);
    for part in ["SignatureValue", "KeyInfo", "SignedInfo"] {
        let part = between(&valid, &format!("<ds:{part}"), &format!("</ds:{part}>"));
        refused(&swap(&valid, part, ""), Fault::InvalidSecurity);
    }
    refused(&swap(&valid, "<ds:SignedInfo", "text<ds:SignedInfo"), Fault::InvalidSecurity);
    let s2 = "<e:EthereumSignature xmlns:e=\"urn:x-pacs-bridge:iti43:2026\"/></s:Header>";
    refused(&swap(&valid, "</s:Header>", s2), Fault::InvalidSecurity);
}

#[test]
fn everything_that_counts_must_be_covered() {
    for left_out in 0..5 {
        let mut message = Message::new();
        message.signed.remove(left_out);
        refused(&message.sign(), Fault::Coverage);
    }
    let mut message = Message::new();
    message.signed.clear();
    refused(&message.sign(), Fault::Coverage);
    // The request is signed, and so is all of the body's content, but not the body.
    let mut message = Message::new();
    message.body = swap(&swap(&message.body, " u:Id=\"bo\"", ""), "Request xmlns:x", "Request u:Id=\"bo\" xmlns:x");
    refused(&message.sign(), Fault::Coverage);
    // More may be signed, and every way of listing prefixes is one.
    let mut message = Message::new();
    message.more_headers = "<e:Other xmlns:e=\"urn:other\" u:Id=\"more\"/>".into();
    message.signed.push(("more".into(), "a s w unknown #default".into()));
    message.signed_info_prefixes = "s u".into();
    accepted(&message.sign());
}

#[test]
fn references_are_to_elements_of_the_message_by_wsu_id() {
    let message = Message::new();
    let info = message.signed_info();
    for uri in [
        "",
        "bo",
        "#",
        "#nothing",
        "#xpointer(/)",
        "#xpointer(id('bo'))",
        "cid:bo",
        "http://example.org/#bo",
        "file:///etc/hostname",
        "##bo",
        "#bo ",
    ] {
        refused(&message.with_signed_info(&swap(&info, "URI=\"#bo\"", &format!("URI=\"{uri}\""))), Fault::Coverage);
    }
    refused(&message.with_signed_info(&swap(&info, " URI=\"#bo\"", "")), Fault::Coverage);
    // Two references to one element.
    let body = between(&info, "<ds:Reference URI=\"#bo\"", "</ds:Reference>");
    refused(&message.with_signed_info(&swap(&info, body, &format!("{body}{body}"))), Fault::Coverage);
    // An element whose id is not a wsu:Id.
    let mut plain = Message::new();
    plain.body = swap(&plain.body, "u:Id", "Id");
    refused(&plain.sign(), Fault::Coverage);
    // What a reference says about its target's type makes no difference: a manifest is not followed.
    let manifest = "URI=\"#bo\" Type=\"http://www.w3.org/2000/09/xmldsig#Manifest\"";
    accepted(&message.with_signed_info(&swap(&info, "URI=\"#bo\"", manifest)));
    let wrong =
        swap(&info, between(body, "<ds:DigestValue>", "</ds:DigestValue>"), "<ds:DigestValue>AAAA</ds:DigestValue>");
    refused(&message.with_signed_info(&wrong), Fault::Digest);
    let wrong =
        swap(&info, between(body, "<ds:DigestValue>", "</ds:DigestValue>"), "<ds:DigestValue>?</ds:DigestValue>");
    refused(&message.with_signed_info(&wrong), Fault::Digest);
}

#[test]
fn algorithms_are_pinned() {
    let message = Message::new();
    let info = message.signed_info();
    let change = |from: &str, to: &str| message.with_signed_info(&info.replacen(from, to, 1));
    let c14n = format!("Algorithm=\"{EXC_C14N}\"");
    for other in [
        "http://www.w3.org/TR/2001/REC-xml-c14n-20010315",
        "http://www.w3.org/2006/12/xml-c14n11",
        "http://www.w3.org/2001/10/xml-exc-c14n#WithComments",
        "",
    ] {
        refused(&change(&c14n, &format!("Algorithm=\"{other}\"")), Fault::UnsupportedAlgorithm);
    }
    for other in [
        "http://www.w3.org/2000/09/xmldsig#rsa-sha1",
        "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
        "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256",
    ] {
        refused(&change(ECDSA_SHA256, other), Fault::UnsupportedAlgorithm);
    }
    for other in ["http://www.w3.org/2000/09/xmldsig#sha1", "http://www.w3.org/2001/04/xmlenc#sha512"] {
        refused(&change(SHA256, other), Fault::UnsupportedAlgorithm);
    }
    let parameter = format!(
        "<ds:SignatureMethod Algorithm=\"{ECDSA_SHA256}\"><ds:HMACOutputLength>0</ds:HMACOutputLength></ds:SignatureMethod>"
    );
    refused(
        &change(&format!("<ds:SignatureMethod Algorithm=\"{ECDSA_SHA256}\"/>"), &parameter),
        Fault::UnsupportedAlgorithm,
    );
    // Transforms: none, two, another, one with something inside.
    let transform = format!("<ds:Transform Algorithm=\"{EXC_C14N}\"></ds:Transform>");
    refused(&change(&format!("<ds:Transforms>{transform}</ds:Transforms>"), ""), Fault::UnsupportedAlgorithm);
    refused(&change(&transform, &transform.repeat(2)), Fault::UnsupportedAlgorithm);
    for other in [
        "http://www.w3.org/TR/1999/REC-xpath-19991116",
        "http://www.w3.org/TR/1999/REC-xslt-19991116",
        "http://www.w3.org/2002/06/xmldsig-filter2",
        "http://www.w3.org/2000/09/xmldsig#base64",
        "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
        "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#STR-Transform",
    ] {
        refused(&change(&transform, &transform.replace(EXC_C14N, other)), Fault::UnsupportedAlgorithm);
    }
    for inside in [
        "<ds:XPath>1</ds:XPath>",
        &inclusive("a b").repeat(2),
        &inclusive("a:b"),
        &inclusive("a&#160;b"),
        "text",
        &inclusive("a").replace("PrefixList", "Prefixes"),
    ] {
        let with = transform.replace("></ds", &format!(">{inside}</ds"));
        refused(&change(&transform, &with), Fault::UnsupportedAlgorithm);
    }
    let prefixes: Vec<_> = (0..33).map(|n| format!("p{n}")).collect();
    let mut many = Message::new();
    many.signed[0].1 = prefixes.join(" ");
    refused(&many.sign(), Fault::TooComplex);
    many.signed[0].1 = prefixes[1..].join(" ");
    accepted(&many.sign());
}

#[test]
fn both_forms_of_a_signature_are_the_same_message() {
    let message = Message::new();
    let info = message.signed_info();
    let value = message.value(&info);
    let parsed = k256::ecdsa::Signature::from_slice(&value).unwrap();
    let (r, s) = parsed.split_scalars();
    let high = k256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
    let twin = message.around(&signature(&info, &high.to_bytes(), &message.key_info));
    let first = receive_envelope(&message.sign()).unwrap();
    assert_ne!(value.as_slice(), high.to_bytes().as_slice());
    assert_eq!(receive_envelope(&twin).unwrap(), first);
    // What is no signature at all.
    let zero = [0; 64];
    let der = parsed.to_der();
    for wrong in [&value[..63], &[&value[..], &[0]].concat(), &zero, der.as_bytes(), &[]] {
        refused(&message.around(&signature(&info, wrong, &message.key_info)), Fault::Signature);
    }
}

#[test]
fn keys_in_all_forms() {
    let mut message = Message::new();
    let account = receive_envelope(&message.sign()).unwrap().key().account();
    let spki = receive_envelope(&message.sign()).unwrap().key().spki();
    let compressed = key().verifying_key().to_encoded_point(true);
    let info_with = |key_info: String, before: String| {
        let mut message = Message::new();
        message.key_info = key_info;
        message.before_signature = before;
        message.sign()
    };
    let token64 = STANDARD.encode(token());
    for (key_info, before) in [
        (der_key(&spki), String::new()),
        (named_curve_key("urn:oid:1.3.132.0.10", compressed.as_bytes()), String::new()),
        (token_reference("#tok"), binary_token(&token64)),
        (token_reference("#tok"), binary_token(&format!("\n{}\n{}", &token64[..64], &token64[64..]))),
    ] {
        let request = receive_envelope(&info_with(key_info, before)).unwrap();
        assert_eq!((request.key().account(), request.key().spki()), (account, spki.clone()));
    }
    // P-256: no account, and always the same SHA-256.
    message.signer = sign_p256;
    let point = |compress| p256_key().verifying_key().to_encoded_point(compress).as_bytes().to_vec();
    for compress in [true, false] {
        message.key_info = named_curve_key("urn:oid:1.2.840.10045.3.1.7", &point(compress));
        let request = receive_envelope(&message.sign()).unwrap();
        assert_eq!(request.key().account(), None);
        let expected = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        assert_eq!(hex::encode(request.key().spki()), format!("{expected}{}", hex::encode(point(false))));
    }
}

#[test]
fn keys_that_are_none() {
    let with = |key_info: &str, before: &str| {
        let mut message = Message::new();
        message.key_info = key_info.into();
        message.before_signature = before.into();
        message.sign()
    };
    let token64 = STANDARD.encode(token());
    let good = binary_token(&token64);
    let spki = ihe_retrieve::key::RequesterKey::Secp256k1(public_key()).spki();
    use Fault::{InvalidSecurityToken, SecurityTokenUnavailable, UnsupportedSecurityToken};
    // Forms that are not of the profile.
    let inside = |inside: &str| format!("<ds:KeyInfo>{inside}</ds:KeyInfo>");
    for form in [
        "",
        "<ds:KeyName>k</ds:KeyName>",
        "<ds:X509Data/>",
        "<ds:RetrievalMethod URI=\"#tok\"/>",
        "<ds:KeyValue><ds:RSAKeyValue/></ds:KeyValue>",
        "<ds:KeyValue/>",
        "<w:SecurityTokenReference><w:KeyIdentifier/></w:SecurityTokenReference>",
        "<w:SecurityTokenReference/>",
        "<d:KeyInfoReference xmlns:d=\"http://www.w3.org/2009/xmldsig11#\" URI=\"#tok\"/>",
        "<ds:KeyValue><d:ECKeyValue xmlns:d=\"http://www.w3.org/2009/xmldsig11#\"><d:ECParameters/><d:PublicKey/></d:ECKeyValue></ds:KeyValue>",
        "<ds:KeyName>k</ds:KeyName><ds:KeyName>k</ds:KeyName>",
    ] {
        refused(&with(&inside(form), &good), UnsupportedSecurityToken);
    }
    for uri in ["", "tok", "cid:tok", "https://example.org/cert"] {
        refused(&with(&token_reference(uri), &good), UnsupportedSecurityToken);
    }
    refused(&with(&named_curve_key("urn:oid:1.3.132.0.34", &sec1()), ""), UnsupportedSecurityToken);
    refused(&with(&token_reference("#tok"), &good.replace("#X509v3", "#X509PKIPathv1")), UnsupportedSecurityToken);
    refused(&with(&token_reference("#tok"), &good.replace("ValueType", "V")), UnsupportedSecurityToken);
    refused(&with(&token_reference("#tok").replace("#X509v3", "#PKCS7"), &good), UnsupportedSecurityToken);
    refused(
        &with(&token_reference("#tok"), &good.replace(" u:Id", " EncodingType=\"urn:hex\" u:Id")),
        UnsupportedSecurityToken,
    );
    // Missing.
    refused(&with(&token_reference("#tok"), ""), SecurityTokenUnavailable);
    refused(&with(&token_reference("#to"), &good), SecurityTokenUnavailable);
    let elsewhere = swap(
        &with(&token_reference("#tok"), ""),
        "<a:ReplyTo>",
        &format!("<e:E xmlns:e=\"urn:e\" xmlns:w=\"{WSSE}\">{good}</e:E><a:ReplyTo>"),
    );
    refused(&elsewhere, SecurityTokenUnavailable);
    // Unreadable.
    for content in ["", "!", "AAAA", &token64[..400], &token64[1..], &STANDARD.encode(&spki)] {
        refused(&with(&token_reference("#tok"), &binary_token(content)), InvalidSecurityToken);
    }
    let mut off_curve = sec1();
    off_curve[64] ^= 1;
    let compact = [&[5], &sec1()[1..33]].concat();
    for point in [&off_curve[..], &[0], &sec1()[..64], &[], &[6; 65], &compact] {
        refused(&with(&named_curve_key("urn:oid:1.3.132.0.10", point), ""), InvalidSecurityToken);
    }
    for wrong in [&spki[1..], &[&spki[..], &[0]].concat(), &[]] {
        refused(&with(&der_key(wrong), ""), InvalidSecurityToken);
    }
    // An RSA key, in DER.
    let rsa = hex::decode("301a300d06092a864886f70d01010105000309003006020107020103").unwrap();
    refused(&with(&der_key(&rsa), ""), UnsupportedSecurityToken);
    refused(&with(&token_reference("#tok"), &binary_token(&STANDARD.encode(vec![0x30; 8193]))), Fault::TooComplex);
}

#[test]
fn tokens_in_a_part_of_their_own() {
    let request = signed(&retrieve(), TokenPlacement::Part);
    let inline = signed(&retrieve(), TokenPlacement::Inline);
    let (a, b) = (receive(&request).unwrap(), receive(&inline).unwrap());
    assert_eq!(
        (a.key(), a.retrieve(), a.created_ms(), a.expires_ms()),
        (b.key(), b.retrieve(), NOW_MS, NOW_MS + 300_000)
    );
    let text = |change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let mut changed = request.clone();
        changed.body = change(changed.body);
        receive(&changed).err()
    };
    let replace = |from: &'static str, to: &'static str| {
        move |body: Vec<u8>| -> Vec<u8> {
            let at = body.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            [&body[..at], to.as_bytes(), &body[at + from.len()..]].concat()
        }
    };
    let include = "<xop:Include xmlns:xop=\"http://www.w3.org/2004/08/xop/include\" href=\"cid:token@pacs-bridge\"/>";
    for (from, to, fault) in [
        ("cid:token@", "cid:other@", Fault::SecurityTokenUnavailable),
        ("cid:token@", "http:token@", Fault::Envelope),
        ("Content-ID: <token@pacs-bridge>", "Content-ID: <x>", Fault::SecurityTokenUnavailable),
        ("Content-ID: <token@pacs-bridge>", "X: y", Fault::SecurityTokenUnavailable),
        ("Content-ID: <token@pacs-bridge>", "Content-ID: <root@pacs-bridge>", Fault::Multipart),
        (" href=\"cid", " hreF=\"cid", Fault::Envelope),
        (
            include,
            " <xop:Include xmlns:xop=\"http://www.w3.org/2004/08/xop/include\" href=\"cid:token@pacs-bridge\"/>",
            Fault::Envelope,
        ),
        (
            include,
            "<xop:Include xmlns:xop=\"http://www.w3.org/2004/08/xop/include\" href=\"cid:token@pacs-bridge\"> </xop:Include>",
            Fault::Envelope,
        ),
        (
            "<wsu:Created>",
            "<wsu:Created><xop:Include xmlns:xop=\"http://www.w3.org/2004/08/xop/include\" href=\"cid:token@pacs-bridge\"/>",
            Fault::Envelope,
        ),
    ] {
        assert_eq!(text(&replace(from, to)), Some(fault), "{from} {to}");
    }
    // `%40` is `@`.
    assert_eq!(text(&replace("cid:token@", "cid:token%40")), None);
    // A signed token is signed as what it stands for.
    let mut message = Message::new();
    let token64 = STANDARD.encode(token());
    message.before_signature = binary_token(&token64);
    message.key_info = token_reference("#tok");
    message.signed.push(("tok".into(), String::new()));
    let included = swap(&message.sign(), &token64, &include.replace("@pacs-bridge", ""));
    let mut body =
        format!("--b\r\nContent-Type: application/xop+xml\r\n\r\n{included}\r\n--b\r\nContent-ID: <token>\r\n\r\n")
            .into_bytes();
    body.extend_from_slice(&token());
    body.extend_from_slice(b"\r\n--b--");
    let framing = Framing::Mtom { boundary: "b".into(), start: None };
    verify(&framing, &body, &policy(), NOW_MS).unwrap();
}

#[test]
fn http_and_mime() {
    let valid = signed(&retrieve(), TokenPlacement::Part);
    let xop = "multipart/related; type=\"application/xop+xml\"; start-info=\"application/soap+xml\"; boundary=b";
    assert!(admit(xop).is_ok());
    for other in [
        "application/soap+xml",
        "text/xml",
        "multipart/mixed; boundary=b",
        "multipart/related; boundary=b",
        "nonsense",
        "",
        "multipart/related; type=\"text/xml\"; start-info=\"application/soap+xml\"; boundary=b",
        "multipart/related; type=\"application/xop+xml\"; start-info=\"application/json\"; boundary=b",
        "multipart/related; type=\"application/xop+xml\"; start-info=\"application/soap+xml\"",
        "multipart/related; type=\"application/xop+xml\"; boundary=b",
        "multipart/related; type=\"application/xop+xml\"; start-info=\"application/soap+xml\"; boundary=b; boundary=c",
    ] {
        assert_eq!(admit(other), Err(Fault::UnsupportedMediaType), "{other}");
    }
    // As CXF, Axis2, WCF and gSOAP write it.
    for known in [
        "multipart/related; type=\"application/xop+xml\"; boundary=\"uuid:f693220a-ef9b\"; start=\"<root.message@cxf.apache.org>\"; start-info=\"application/soap+xml\"",
        "multipart/related; type=\"application/xop+xml\"; boundary=\"uuid:1\"; start=\"<r>\"; start-info=\"application/soap+xml; action=\\\"urn:a\\\"\"; action=\"urn:a\"",
        "multipart/related; boundary=\"MIMEBoundary_4693e5ce\"; type=\"application/xop+xml\"; start=\"<0.5693@apache.org>\"; start-info=\"application/soap+xml\"; action=\"urn:a\"",
        "multipart/related; type=\"application/xop+xml\";start=\"<http://tempuri.org/0>\";boundary=\"uuid:0ca0e16e+id=1\";start-info=\"application/soap+xml\"",
        "multipart/related; charset=utf-8; boundary=\"==abc/d=:==\"; type=\"application/xop+xml\"; start=\"<SOAP-ENV:Envelope>\"; start-info=\"application/soap+xml; charset=utf-8\"",
    ] {
        let Ok(Framing::Mtom { boundary, start: Some(start) }) = admit(known) else { panic!("{known}") };
        assert!(!start.contains(['<', '>']) && ihe_retrieve::multipart::Reader::new(&boundary, 3).is_ok());
    }
    let head =
        RequestHead { method: "POST", content_type: Some(xop), content_encoding: None, content_length: Some(131_072) };
    assert!(head.admit(false).is_ok());
    assert_eq!(RequestHead { method: "GET", ..head }.admit(false), Err(Fault::MethodNotAllowed));
    assert_eq!(RequestHead { content_encoding: Some("gzip"), ..head }.admit(false), Err(Fault::UnsupportedMediaType));
    assert_eq!(RequestHead { content_length: Some(131_073), ..head }.admit(false), Err(Fault::TooLarge));
    assert_eq!(RequestHead { content_type: None, ..head }.admit(false), Err(Fault::UnsupportedMediaType));
    let simple = RequestHead { content_type: Some("application/soap+xml; charset=utf-8; action=\"x\""), ..head };
    assert_eq!(simple.admit(true), Ok(Framing::Simple));
    assert_eq!(simple.admit(false), Err(Fault::UnsupportedMediaType));
    let latin = RequestHead { content_type: Some("application/soap+xml; charset=latin1"), ..head };
    assert_eq!(latin.admit(true), Err(Fault::UnsupportedMediaType));

    // The body's parts.
    let envelope = Message::new().sign();
    let framing = Framing::Mtom { boundary: "b".into(), start: Some("r".into()) };
    let judge = |body: &str| verify(&framing, body.as_bytes(), &policy(), NOW_MS).err().map(|refusal| refusal.fault);
    let root = format!(
        "--b\r\nContent-ID: <r>\r\nContent-Type: application/xop+xml; charset=UTF-8; type=\"application/soap+xml\"\r\n\r\n{envelope}\r\n"
    );
    let part = |id: &str| format!("--b\r\nContent-ID: <{id}>\r\n\r\nx\r\n");
    assert_eq!(judge(&format!("{root}--b--")), None);
    assert_eq!(judge(&format!("{root}{}{}--b--", part("1"), part("2"))), None);
    for wrong in [
        format!("{root}{}{}{}--b--", part("1"), part("2"), part("3")),
        format!("{}{root}--b--", part("1")),
        format!("{root}{}{}--b--", part("1"), part("1")),
        root.clone(),
        format!("{root}--c--"),
        format!("preamble\r\n{root}--b--"),
        format!("{}--b--", root.replace("<r>", "<q>")),
        format!("{}--b--", root.replace("application/xop+xml", "text/plain")),
        format!("{}--b--", root.replace("UTF-8; type", "UTF-16; type")),
        format!("{}--b--", root.replace("Content-ID", "Content-Transfer-Encoding: base64\r\nContent-ID")),
        String::new(),
    ] {
        assert_eq!(judge(&wrong), Some(Fault::Multipart), "{wrong}");
    }
    assert_eq!(
        judge(&format!("{root}--b\r\nContent-ID: <t>\r\n\r\n{}\r\n--b--", "x".repeat(8193))),
        Some(Fault::TooComplex)
    );
    let long = format!("{}{}", String::from_utf8_lossy(&valid.body), " ".repeat(131_072));
    assert_eq!(judge(&long), Some(Fault::TooLarge));
}

#[test]
fn shape_version_and_addressing() {
    let message = Message::new();
    let valid = message.sign();
    for (from, to, fault) in [
        (SOAP, "http://schemas.xmlsoap.org/soap/envelope/", Fault::Soap11),
        (SOAP, "urn:soap:1.3", Fault::VersionMismatch),
        ("Envelope", "Envelop", Fault::Envelope),
        ("<s:Header>", "text<s:Header>", Fault::Envelope),
        ("</s:Header>", "text</s:Header>", Fault::Envelope),
        ("</s:Body>", "text</s:Body>", Fault::Envelope),
        (" s:mustUnderstand=\"1\"", " s:mustUnderstand=\"yes\"", Fault::Envelope),
        ("RetrieveDocumentSet<", "RegistryStoredQuery<", Fault::ActionNotSupported),
        ("<a:ReplyTo>", "<a:ReplyTo/><a:ReplyTo>", Fault::InvalidAddressingHeader),
        (
            "<a:ReplyTo>",
            "<a:FaultTo><a:Address>http://www.w3.org/2005/08/addressing/none</a:Address></a:FaultTo><a:ReplyTo>",
            Fault::OnlyAnonymousAddressSupported,
        ),
        ("addressing/anonymous", "addressing/none", Fault::OnlyAnonymousAddressSupported),
        ("<a:Address>http://www.w3.org/2005/08/addressing/anonymous</a:Address>", "", Fault::InvalidAddressingHeader),
        ("<a:To ", "<a:To s:role=\"urn:other\" ", Fault::InvalidAddressingHeader),
        (MESSAGE_ID, "", Fault::InvalidAddressingHeader),
        (MESSAGE_ID, "a b", Fault::InvalidAddressingHeader),
        (MESSAGE_ID, "a\u{a0}", Fault::InvalidAddressingHeader),
        (MESSAGE_ID, "<b/>", Fault::InvalidAddressingHeader),
    ] {
        refused(&valid.replace(from, to), fault);
    }
    let long = "x".repeat(257);
    refused(&swap(&valid, MESSAGE_ID, &long), Fault::InvalidAddressingHeader);
    for header in ["Action", "To", "MessageID"] {
        let element = between(&valid, &format!("<a:{header} "), &format!("</a:{header}>")).to_owned();
        refused(&swap(&valid, &element, ""), Fault::AddressingHeaderRequired);
        refused(&swap(&valid, &element, &element.repeat(2)), Fault::InvalidAddressingHeader);
    }
    // Mandatory headers that nobody knows, for us and for others.
    let extra = |attributes: &str| {
        let mut message = Message::new();
        message.more_headers = format!("<e:Some xmlns:e=\"urn:e\" {attributes}/>");
        message.sign()
    };
    let unknown = Fault::MustUnderstand(vec![("urn:e".into(), "Some".into())]);
    refused(&extra("s:mustUnderstand=\"true\""), unknown.clone());
    refused(&extra("s:mustUnderstand=\"1\" s:role=\"http://www.w3.org/2003/05/soap-envelope/role/next\""), unknown);
    for attributes in
        ["", "s:mustUnderstand=\"0\"", "s:mustUnderstand=\"true\" s:role=\"urn:other\"", "mustUnderstand=\"true\""]
    {
        accepted(&extra(attributes));
    }
    let many = swap(
        &extra(""),
        "<e:Some ",
        &format!("{}<e:Some ", "<e:E xmlns:e=\"urn:e\" s:mustUnderstand=\"1\"/>".repeat(100)),
    );
    assert!(matches!(receive_envelope(&many), Err(Fault::MustUnderstand(names)) if names.len() == 16));
    // A destination that is signed and is not ours, which is found only after the signature.
    let mut elsewhere = Message::new();
    elsewhere.to = swap(&elsewhere.to, TO, "https://hospital.example/iti43/");
    refused(&elsewhere.sign(), Fault::DestinationUnreachable);
    let mut no_imaging = policy();
    no_imaging.imaging = false;
    let imaging = imaging_request();
    let framing = admit(&imaging.content_type).unwrap();
    let refusal = verify(&framing, &imaging.body, &no_imaging, NOW_MS).unwrap_err();
    assert_eq!((refusal.fault, refusal.message_id.as_deref()), (Fault::ActionNotSupported, Some(MESSAGE_ID)));
}

fn imaging_request() -> ihe_retrieve::requester::SignedRequest {
    let instance = |series: &str, n: u8| ihe_retrieve::request::ImagingDocumentRequest {
        study_instance_uid: "1.2.3".into(),
        series_instance_uid: series.into(),
        document: document(n),
    };
    let documents =
        vec![instance("1.2.3.1", 1), instance("1.2.3.1", 2), instance("1.2.3.2", 3), instance("1.2.3.2", 3)];
    let transfer_syntax_uids = vec!["1.2.840.10008.1.2.1".into(), "1.2.840.10008.1.2".into()];
    signed(&Retrieve::Imaging { documents, transfer_syntax_uids }, TokenPlacement::Part)
}

#[test]
fn imaging_requests() {
    let request = receive(&imaging_request()).unwrap();
    let Retrieve::Imaging { documents, transfer_syntax_uids } = request.retrieve() else { panic!("RAD-69") };
    let series: Vec<_> = documents.iter().map(|d| d.series_instance_uid.as_str()).collect();
    assert_eq!(series, ["1.2.3.1", "1.2.3.1", "1.2.3.2"]);
    assert_eq!(transfer_syntax_uids, &["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]);
    let mut message = Message::new();
    message.action = message.action.replace("iti:2007:RetrieveDocumentSet", "rad:2009:RetrieveImagingDocumentSet");
    let documents = "<x:DocumentRequest><x:RepositoryUniqueId>a</x:RepositoryUniqueId><x:DocumentUniqueId>b</x:DocumentUniqueId></x:DocumentRequest>";
    let series = format!("<r:SeriesRequest seriesInstanceUID=\"1\">{documents}</r:SeriesRequest>");
    let study = format!("<r:StudyRequest studyInstanceUID=\"1\">{series}</r:StudyRequest>");
    let list = "<r:TransferSyntaxUIDList><r:TransferSyntaxUID>1</r:TransferSyntaxUID></r:TransferSyntaxUIDList>";
    let mut judge = |inside: &str| {
        message.body = format!(
            "<s:Body u:Id=\"bo\"><r:RetrieveImagingDocumentSetRequest xmlns:r=\"urn:ihe:rad:xdsi-b:2009\" xmlns:x=\"{XDS}\">{inside}</r:RetrieveImagingDocumentSetRequest></s:Body>"
        );
        receive_envelope(&message.sign()).err()
    };
    assert_eq!(judge(&format!("{study}{list}")), None);
    for wrong in [
        study.clone(),
        list.to_owned(),
        format!("{list}{study}"),
        format!("{study}{list}{list}"),
        format!("{study}<r:TransferSyntaxUIDList/>"),
        format!("{}{list}", study.replace(" studyInstanceUID=\"1\"", "")),
        format!("{}{list}", study.replace(" seriesInstanceUID=\"1\"", "")),
        format!("{}{list}", study.replace(documents, "")),
        format!("{}{list}", study.replace(&series, documents)),
        format!("{study}text{list}"),
    ] {
        assert_eq!(judge(&wrong), Some(Fault::Body), "{wrong}");
    }
    let many = format!("{}{list}", study.replace(documents, &documents.repeat(400)));
    assert_eq!(judge(&many), None);
    let too_many = format!("{}{list}", study.replace(documents, &documents.repeat(513)));
    assert_eq!(judge(&too_many), Some(Fault::TooComplex));
    let syntaxes = list.replace(
        "<r:TransferSyntaxUID>1</r:TransferSyntaxUID>",
        &"<r:TransferSyntaxUID>1</r:TransferSyntaxUID>".repeat(65),
    );
    assert_eq!(judge(&format!("{study}{syntaxes}")), Some(Fault::TooComplex));
}

#[test]
fn bodies() {
    let mut message = Message::new();
    let document = |inside: &str| format!("<x:DocumentRequest>{inside}</x:DocumentRequest>");
    let repository = "<x:RepositoryUniqueId>r</x:RepositoryUniqueId>";
    let unique = |id: &str| format!("<x:DocumentUniqueId>{id}</x:DocumentUniqueId>");
    let home = "<x:HomeCommunityId>urn:oid:1.2</x:HomeCommunityId>";
    let mut judge = |inside: &str| {
        message.body = format!(
            "<s:Body u:Id=\"bo\"><x:RetrieveDocumentSetRequest xmlns:x=\"{XDS}\">{inside}</x:RetrieveDocumentSetRequest></s:Body>"
        );
        receive_envelope(&message.sign()).map(|request| match request.retrieve() {
            Retrieve::Documents(documents) => documents.clone(),
            Retrieve::Imaging { .. } => panic!("ITI-43"),
        })
    };
    let long = "x".repeat(257);
    for wrong in [
        String::new(),
        document(""),
        document(repository),
        document(&unique("a")),
        document(&format!("{repository}{repository}{}", unique("a"))),
        document(&format!("{repository}{}text", unique("a"))),
        document(&format!("{repository}{}<x:Other/>", unique("a"))),
        document(&format!("{repository}{}", unique("<y/>"))),
        document(&format!("{repository}{}", unique(&long))),
        format!("{}text", document(&format!("{repository}{}", unique("a")))),
        "<x:Other/>".into(),
        document(&format!("{repository}{}", unique("a"))).replace("x:DocumentUniqueId", "DocumentUniqueId"),
    ] {
        assert_eq!(judge(&wrong), Err(Fault::Body), "{wrong}");
    }
    let valid = judge(&document(&format!("{home}{repository}{}", unique(&format!("\n {} ", &long[1..]))))).unwrap();
    assert_eq!(valid[0].home_community_id.as_deref(), Some("urn:oid:1.2"));
    assert_eq!(valid[0].document_unique_id, long[1..]);
    // Sixteen, and no more; whether they are the same does not matter for that.
    let each =
        |n: usize| (0..n).map(|n| document(&format!("{repository}{}", unique(&n.to_string())))).collect::<String>();
    assert_eq!(judge(&each(16)).unwrap().len(), 16);
    assert_eq!(judge(&each(17)), Err(Fault::TooComplex));
    // One study in three spellings, of one source in two.
    let (key, id) = (hex::encode(sec1()), "ab".repeat(32));
    let account = hex::encode(ihe_retrieve::key::RequesterKey::Secp256k1(public_key()).account().unwrap());
    let spelled = |repository: &str, id: &str| {
        document(&format!("<x:RepositoryUniqueId>{repository}</x:RepositoryUniqueId>{}", unique(id)))
    };
    let twice = [
        spelled(&key, &id.to_uppercase()),
        spelled(&format!("0x{account}"), &format!("0x{id}")),
        spelled(&key, &format!("{id}^1")),
        spelled(&key, &id),
    ]
    .concat();
    let found = judge(&twice).unwrap();
    assert_eq!(
        found.iter().map(|d| d.document_unique_id.clone()).collect::<Vec<_>>(),
        [id.to_uppercase(), format!("{id}^1")]
    );
}

#[test]
fn comments_and_sections_inside_values_change_nothing() {
    let valid = Message::new().sign();
    let original = receive_envelope(&valid).unwrap();
    for inside in ["<!-- c -->", "<!---->", "<![CDATA[]]>"] {
        for (value, at) in
            [(MESSAGE_ID.to_owned(), 9), (TO.to_owned(), 8), (hex::encode([2; 32]), 32), ("22:05:00Z".to_owned(), 3)]
        {
            let split = format!("{}{inside}{}", &value[..at], &value[at..]);
            assert_eq!(receive_envelope(&swap(&valid, &value, &split)).as_ref(), Ok(&original), "{split}");
        }
    }
    // What is commented out is not there, for the digest and for us.
    refused(&swap(&valid, &hex::encode([2; 32]), &format!("<!--{}-->", hex::encode([2; 32]))), Fault::Digest);
    accepted(&swap(&valid, &hex::encode([2; 32]), &format!("<![CDATA[{}]]>", hex::encode([2; 32]))));
    accepted(&swap(&valid, MESSAGE_ID, &MESSAGE_ID.replace('u', "&#x75;")));
}

#[test]
fn namespace_tricks() {
    let valid = Message::new().sign();
    // What is declared around and not used does not matter; what is used does.
    accepted(&swap(&valid, "<s:Envelope ", "<s:Envelope xmlns=\"urn:e\" xmlns:zz=\"urn:z\" "));
    accepted(&swap(&valid, "<s:Envelope ", &format!("<s:Envelope xmlns:x=\"{XDS}\" ")));
    refused(
        &swap(&valid, " xmlns:x=\"urn:ihe:iti:xds-b:2007\"", " xmlns:x=\"urn:ihe:iti:xds-b:2007 \""),
        Fault::NotWellFormed,
    );
    // Other prefixes are other octets, although the names are the same.
    refused(
        &swap(&valid, "<a:MessageID u:Id", "<u2:MessageID xmlns:u2=\"http://www.w3.org/2005/08/addressing\" u:Id")
            .replace("</a:MessageID>", "</u2:MessageID>"),
        Fault::Digest,
    );
    // A listed prefix is signed even where nothing uses it.
    let mut listed = Message::new();
    listed.envelope_attributes = " xmlns:l=\"urn:l\"".into();
    listed.signed[0].1 = "l".into();
    accepted(&listed.sign());
    refused(&swap(&listed.sign(), "urn:l", "urn:m"), Fault::Digest);
    for (from, to) in [
        ("xmlns:u=", "xmlns:v="),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:xmlns=\"urn:p\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:xml=\"urn:p\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"http://www.w3.org/XML/1998/namespace\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"http://www.w3.org/2000/xmlns/\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"relative\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"urn:p\" xmlns:p=\"urn:p\" "),
        ("<s:Envelope ", "<s:Envelope xmlns:p=\"urn:p\" xmlns:q=\"urn:p\" p:a=\"\" q:a=\"\" "),
        ("<s:Envelope ", "<s:Envelope p:a=\"\" "),
        ("<s:Envelope ", "<s:Envelope a:b:c=\"\" "),
    ] {
        refused(&swap(&valid, from, to), Fault::NotWellFormed);
    }
}

#[test]
fn xml_that_is_not_taken() {
    let valid = Message::new().sign();
    let prolog = "<?xml version='1.0' encoding='UTF-8'?>";
    for (from, to, fault) in [
        (prolog, "<?xml version='1.0' encoding='UTF-16'?>", Fault::NotWellFormed),
        (prolog, "<?xml version='1.1'?>", Fault::NotWellFormed),
        (prolog, "<?xml encoding='UTF-8'?>", Fault::NotWellFormed),
        (prolog, "<?xml?>", Fault::ForbiddenMarkup),
        (prolog, " <?xml version='1.0'?>", Fault::ForbiddenMarkup),
        (prolog, "<!DOCTYPE s:Envelope>", Fault::ForbiddenMarkup),
        (prolog, "<!DOCTYPE s:Envelope SYSTEM 'http://127.0.0.1/x'>", Fault::ForbiddenMarkup),
        (prolog, "<!DOCTYPE a [<!ENTITY a 'a'><!ENTITY b '&a;&a;&a;&a;'>]>", Fault::ForbiddenMarkup),
        (prolog, "<?xml-stylesheet href='x'?>", Fault::ForbiddenMarkup),
        ("<s:Header>", "<s:Header><?php ?>", Fault::ForbiddenMarkup),
        (MESSAGE_ID, "&a;", Fault::ForbiddenMarkup),
        (MESSAGE_ID, "&a", Fault::ForbiddenMarkup),
        (MESSAGE_ID, "&nbsp;", Fault::ForbiddenMarkup),
        (MESSAGE_ID, "&#0;", Fault::NotWellFormed),
        (MESSAGE_ID, "&#xD800;", Fault::NotWellFormed),
        (MESSAGE_ID, "&#x110000;", Fault::NotWellFormed),
        (MESSAGE_ID, "&#+9;", Fault::NotWellFormed),
        (MESSAGE_ID, "\u{1}", Fault::NotWellFormed),
        (MESSAGE_ID, "]]>", Fault::NotWellFormed),
        (MESSAGE_ID, "<!-- a -- b -->", Fault::NotWellFormed),
        (MESSAGE_ID, "<!-- a --->", Fault::NotWellFormed),
        ("</s:Header>", "</s:header>", Fault::NotWellFormed),
        ("</s:Header>", "", Fault::NotWellFormed),
        ("<s:Header>", "<s:Header a=b>", Fault::NotWellFormed),
        ("<s:Header>", "<s:Header a='<'>", Fault::NotWellFormed),
        ("<s:Header>", "<s:Header a='b'c='d'>", Fault::NotWellFormed),
        ("<s:Header>", "< s:Header>", Fault::NotWellFormed),
        ("</s:Envelope>", "</s:Envelope><s:Envelope/>", Fault::NotWellFormed),
        ("</s:Envelope>", "</s:Envelope>text", Fault::NotWellFormed),
    ] {
        refused(&swap(&valid, from, to), fault);
    }
    for cut in [0, 10, 100, valid.len() / 2, valid.len() - 10] {
        refused(&valid[..cut], Fault::NotWellFormed);
    }
    let mut octets = valid.clone().into_bytes();
    octets[60] = 0xff;
    let refusal = verify(&Framing::Simple, &octets, &policy(), NOW_MS).unwrap_err();
    assert_eq!(refusal.fault, Fault::NotWellFormed);
    accepted(&format!("\u{feff}{valid}"));
    accepted(&swap(&valid, prolog, ""));
}

#[test]
fn limits_and_floods() {
    let valid = Message::new().sign();
    let header = |inside: &str| swap(&valid, "<a:ReplyTo>", &format!("{inside}<a:ReplyTo>"));
    let attributes = |n: usize| format!("<e {}/>", (0..n).map(|n| format!("a{n}='' ")).collect::<String>());
    let declarations =
        |n: usize| format!("<e {}/>", (0..n).map(|n| format!("xmlns:a{n}='urn:a' ")).collect::<String>());
    for (flood, allowed) in [(attributes(65), attributes(64)), (declarations(65), declarations(64))] {
        refused(&header(&flood), Fault::TooComplex);
        accepted(&header(&allowed));
    }
    // Two elements are around, so thirty more make the limit.
    refused(&header(&format!("{}{}", "<e>".repeat(31), "</e>".repeat(31))), Fault::TooComplex);
    accepted(&header(&format!("{}{}", "<e>".repeat(30), "</e>".repeat(30))));
    refused(&header(&"<e/>".repeat(2000)), Fault::TooComplex);
    accepted(&header(&"<e/>".repeat(1900)));
    refused(&header(&"&amp;".repeat(30_000)), Fault::TooLarge);
    refused(&header(&format!("<e>{}</e>", "&lol;".repeat(10_000))), Fault::ForbiddenMarkup);
    accepted(&header(&format!("<e>{}</e>", "&amp;".repeat(20_000))));
    refused(&header(&format!("<e a='{}'/>", "x".repeat(131_072))), Fault::TooLarge);
    // References: sixteen are many enough.
    let with = |more: usize| {
        let mut message = Message::new();
        for n in 0..more {
            message.more_headers.push_str(&format!("<e:E xmlns:e='urn:e' u:Id='e{n}'/>"));
            message.signed.push((format!("e{n}"), String::new()));
        }
        message.sign()
    };
    accepted(&with(11));
    refused(&with(12), Fault::TooComplex);
    // A long namespace name, declared once and written again by every element that uses it: 90 KiB would become 90 MiB.
    let mut flood = Message::new();
    flood.envelope_attributes = format!(" xmlns:l=\"urn:{}\"", "l".repeat(90_000));
    flood.more_headers = format!("<e xmlns='urn:e' u:Id='e'>{}</e>", "<l:e/>".repeat(1000));
    flood.signed.push(("e".into(), String::new()));
    refused(&flood.sign(), Fault::TooComplex);
}

#[test]
fn time() {
    let at = |created: &str, expires: &str| {
        let mut message = Message::new();
        message.timestamp = timestamp(created, expires);
        receive_envelope(&message.sign()).err()
    };
    // Now is 22:00:00. Created at most a minute later, Expires less than a minute ago, at most ten minutes between.
    for (created, expires, fault) in [
        ("2026-11-28T22:01:00Z", "2026-11-28T22:05:00Z", None),
        ("2026-11-28T22:01:00.001Z", "2026-11-28T22:05:00Z", Some(Fault::MessageExpired)),
        ("2026-11-28T21:55:00Z", "2026-11-28T21:59:00.001Z", None),
        ("2026-11-28T21:55:00Z", "2026-11-28T21:59:00Z", Some(Fault::MessageExpired)),
        ("2026-11-28T21:55:00Z", "2026-11-28T22:05:00Z", None),
        ("2026-11-28T21:55:00Z", "2026-11-28T22:05:00.001Z", Some(Fault::MessageExpired)),
        ("2026-11-28T22:00:00Z", "2026-11-28T22:00:00Z", None),
        ("2026-11-28T22:00:00.001Z", "2026-11-28T22:00:00Z", Some(Fault::MessageExpired)),
        ("2026-11-28T23:00:00+01:00", "2026-11-28T17:01:00-05:00", None),
        ("2026-11-28T22:00:00", "2026-11-28T22:05:00Z", Some(Fault::InvalidSecurity)),
        ("yesterday", "tomorrow", Some(Fault::InvalidSecurity)),
        ("", "", Some(Fault::InvalidSecurity)),
    ] {
        assert_eq!(at(created, expires), fault, "{created} {expires}");
    }
    let mut message = Message::new();
    let complete = message.timestamp.clone();
    for (from, to) in [
        ("<u:Created>2026-11-28T22:00:00Z</u:Created>", ""),
        ("<u:Expires>2026-11-28T22:05:00Z</u:Expires>", ""),
        ("</u:Timestamp>", "<u:Created>2026-11-28T22:00:00Z</u:Created></u:Timestamp>"),
        ("</u:Timestamp>", "text</u:Timestamp>"),
    ] {
        message.timestamp = swap(&complete, from, to);
        refused(&message.sign(), Fault::InvalidSecurity);
    }
}

#[test]
fn faults_on_the_wire() {
    let text = |fault: &Fault, status| {
        let answer = fault.answer(status, Some("urn:<&>"));
        (answer.status, answer.content_type, answer.allow, String::from_utf8(answer.body).unwrap())
    };
    let (status, kind, allow, _) = text(&Fault::MethodNotAllowed, FaultStatus::Soap12);
    assert_eq!((status, kind, allow), (405, "text/plain; charset=utf-8", Some("POST")));
    assert_eq!(text(&Fault::TooLarge, FaultStatus::Always500).0, 413);
    assert_eq!(text(&Fault::UnsupportedMediaType, FaultStatus::Always500).0, 415);
    for (fault, status, code, subcode) in [
        (Fault::Multipart, 400, "env:Sender", ""),
        (Fault::NotWellFormed, 400, "env:Sender", ""),
        (Fault::ForbiddenMarkup, 400, "env:Sender", ""),
        (Fault::TooComplex, 400, "env:Sender", ""),
        (Fault::Envelope, 400, "env:Sender", ""),
        (Fault::Body, 400, "env:Sender", ""),
        (Fault::ActionNotSupported, 400, "env:Sender", "wsa:ActionNotSupported"),
        (Fault::AddressingHeaderRequired, 400, "env:Sender", "wsa:MessageAddressingHeaderRequired"),
        (Fault::InvalidAddressingHeader, 400, "env:Sender", "wsa:InvalidAddressingHeader"),
        (Fault::OnlyAnonymousAddressSupported, 400, "env:Sender", "wsa:OnlyAnonymousAddressSupported"),
        (Fault::DestinationUnreachable, 400, "env:Sender", "wsa:DestinationUnreachable"),
        (Fault::InvalidSecurity, 400, "env:Sender", "wsse:InvalidSecurity"),
        (Fault::DuplicateId, 400, "env:Sender", "wsse:InvalidSecurity"),
        (Fault::Signature, 400, "env:Sender", "wsse:FailedCheck"),
        (Fault::Digest, 400, "env:Sender", "wsse:FailedCheck"),
        (Fault::Coverage, 400, "env:Sender", "wsse:FailedCheck"),
        (Fault::Replay, 400, "env:Sender", "wsse:FailedCheck"),
        (Fault::UnsupportedAlgorithm, 400, "env:Sender", "wsse:UnsupportedAlgorithm"),
        (Fault::UnsupportedSecurityToken, 400, "env:Sender", "wsse:UnsupportedSecurityToken"),
        (Fault::InvalidSecurityToken, 400, "env:Sender", "wsse:InvalidSecurityToken"),
        (Fault::SecurityTokenUnavailable, 400, "env:Sender", "wsse:SecurityTokenUnavailable"),
        (Fault::MessageExpired, 400, "env:Sender", "wsu:MessageExpired"),
        (Fault::VersionMismatch, 500, "env:VersionMismatch", ""),
        (Fault::MustUnderstand(vec![("urn:&".into(), "Some".into())]), 500, "env:MustUnderstand", ""),
        (Fault::Soap11, 500, "env11:VersionMismatch", ""),
    ] {
        let (soap12, kind, allow, body) = text(&fault, FaultStatus::Soap12);
        assert_eq!((soap12, allow), (status, None), "{fault:?}");
        assert_eq!(text(&fault, FaultStatus::Always500).0, 500, "{fault:?}");
        let read = read_fault(body.as_bytes()).unwrap_or_else(|| panic!("{body}"));
        assert_eq!((read.code.as_str(), read.subcode.as_str()), (code, subcode), "{body}");
        assert_eq!(read.reason, fault.to_string());
        let old = fault == Fault::Soap11;
        assert_eq!(kind, if old { "text/xml; charset=utf-8" } else { "application/soap+xml; charset=utf-8" });
        assert_eq!(body.contains("<wsa:RelatesTo>urn:&lt;&amp;&gt;</wsa:RelatesTo>"), !old);
        let upgrade = matches!(fault, Fault::Soap11 | Fault::VersionMismatch);
        assert_eq!(body.contains("<env:Upgrade><env:SupportedEnvelope qname=\"v:Envelope\" xmlns:v="), upgrade);
        let unknown = matches!(fault, Fault::MustUnderstand(_));
        assert_eq!(body.contains("<env:NotUnderstood qname=\"q:Some\" xmlns:q=\"urn:&amp;\"/>"), unknown);
    }
}

#[test]
fn a_request_that_cannot_be_is_not_made() {
    let odd = Retrieve::Documents(vec![ihe_retrieve::request::DocumentRequest {
        document_unique_id: "\u{0}".into(),
        ..document(1)
    }]);
    let made =
        sign(&unsigned(&odd), &token(), TokenPlacement::Inline, [0; 16], |digest| Ok::<_, ()>(sign_k256(digest)));
    assert!(matches!(made, Err(ihe_retrieve::requester::SignError::Unwritable)));
    let failing = retrieve();
    let made = sign(&unsigned(&failing), &token(), TokenPlacement::Inline, [0; 16], |_| Err("locked"));
    assert!(matches!(made, Err(ihe_retrieve::requester::SignError::Signer("locked"))));
}
