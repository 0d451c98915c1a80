//! STOW-RS of the real binary: what is said to be stored is there after a power cut, each object has an outcome of its own, nobody stores who may not, and
//! what is no study does no harm.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write as _;
use std::path::Path;

use bridge::archive::FileMeta;
use bridge::demo::phantom::Phantom;
use dicom_scp::{TransferSyntax, Uid};
use serde_json::{Value, json};
use tests::dicom::{connect, data_set, slices, subject};
use tests::http::{Answer, Client, address, connect as connect_http, read_answer, send};
use tests::{Bridge, files_below};

const SERVED: &str =
    "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nenabled = false\n[http]\nbind = \"127.0.0.1:0\"\n";
const OBJECTS: &str = "multipart/related; type=\"application/dicom\"; boundary=b";

fn file(phantom: &Phantom) -> Vec<u8> {
    let Phantom { sop_class, sop_instance, transfer_syntax, .. } = phantom;
    let meta = FileMeta { sop_class: *sop_class, sop_instance: *sop_instance, transfer_syntax: *transfer_syntax };
    [meta.encode(), phantom.bytes.clone()].concat()
}

fn message(parts: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in parts {
        body.extend(format!("\r\n--b\r\n{head}\r\n\r\n").into_bytes());
        body.extend_from_slice(content);
    }
    body.extend_from_slice(b"\r\n--b--\r\n");
    body
}

fn objects(files: &[Vec<u8>]) -> Vec<u8> {
    message(&files.iter().map(|file| ("Content-Type: application/dicom", file.clone())).collect::<Vec<_>>())
}

fn post(who: &Client, path: &str, content_type: &str, body: &[u8]) -> Answer {
    let bearer = who.token.as_ref().map(|token| format!("Bearer {token}"));
    let mut headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    headers.extend(who.from.iter().map(|from| ("X-Forwarded-For", from.as_str())));
    headers.push(("Content-Type", content_type));
    send(who.to, "POST", &format!("/dicomweb{path}"), &headers, body)
}

/// The UIDs in a sequence of the answer.
fn named(answer: &Value, sequence: &str) -> Vec<String> {
    let items = answer[sequence]["Value"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["00081155"]["Value"][0].as_str().unwrap_or_default().to_owned()).collect()
}

fn reasons(answer: &Value, sequence: &str) -> Vec<(u64, String)> {
    let items = answer[sequence]["Value"].as_array().cloned().unwrap_or_default();
    let reason = |item: &Value| {
        let comment = item["00000902"]["Value"][0].as_str().unwrap_or_default();
        (item["00081197"]["Value"][0].as_u64().unwrap(), comment.to_owned())
    };
    items.iter().map(reason).collect()
}

fn stored_files(bridge: &Bridge) -> Vec<Vec<u8>> {
    files_below(&bridge.data().join("archive/objects")).iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn what_is_said_to_be_stored_is_there_after_a_kill_and_is_what_comes_over_an_association() {
    let mut bridge = Bridge::start(SERVED);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let phantoms = slices(1, 20, 48);
    let files: Vec<_> = phantoms.iter().map(file).collect();
    let uid = subject(1).study_uid;
    let answer = post(&operator, &format!("/studies/{uid}"), OBJECTS, &objects(&files));
    bridge.kill();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/dicom+json")), "{answer:?}");
    let outcome = answer.json();
    let sent: Vec<String> = phantoms.iter().map(|phantom| phantom.sop_instance.to_string()).collect();
    assert_eq!(named(&outcome, "00081199"), sent, "in the order of the body");
    assert!(outcome["00081190"]["Value"][0].as_str().unwrap().ends_with(&format!("/dicomweb/studies/{uid}")));

    bridge.run();
    bridge.wait_filed(20);
    let mut kept: Vec<_> =
        files_below(&bridge.data().join("archive/objects")).iter().map(|path| data_set(path)).collect();
    let mut expected: Vec<_> = phantoms.iter().map(|phantom| phantom.bytes.clone()).collect();
    kept.sort();
    expected.sort();
    assert!(kept == expected, "the data sets as they were sent");
    // The same object is the same, whichever way it comes, as often as it comes.
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        assert_eq!(tests::dicom::store(&mut open, &phantoms[0]).await, Some(dicom_scp::Status::SUCCESS));
        open.release().await.unwrap();
    });
    let operator = Client { to: address(&bridge), ..operator };
    assert_eq!(post(&operator, "/studies", "application/dicom", &files[1]).status, 200, "one alone");
    assert_eq!(stored_files(&bridge).len(), 20);

    // What came in is in the audit trail once, with who sent it.
    let records = String::from_utf8(bridge.cli(&["audit", "export"]).stdout).unwrap();
    let came =
        records.lines().filter(|line| line.contains("110104") && line.contains(&uid) && line.contains("operator"));
    assert!(came.count() >= 1, "{records}");
}

#[test]
fn each_object_has_an_outcome_of_its_own() {
    let bridge = Bridge::start(SERVED);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let uid = subject(1).study_uid;
    let path = format!("/studies/{uid}");
    let [good, other] = [1, 2].map(|study| slices(study, 1, 48).remove(0));
    let with = |sop_class: &str, transfer_syntax: &str| {
        let meta = FileMeta {
            sop_class: Uid::new(sop_class).unwrap(),
            sop_instance: good.sop_instance,
            transfer_syntax: Uid::new(transfer_syntax).unwrap(),
        };
        [meta.encode(), good.bytes.clone()].concat()
    };
    let explicit = TransferSyntax::EXPLICIT_VR_LE.uid().as_str();
    let ct = good.sop_class.to_string();
    let mut parts: Vec<(&str, Vec<u8>)> = [
        file(&good),
        b"no object at all".to_vec(),
        file(&other),
        with("1.2.840.10008.1.1", explicit),
        with(&ct, "1.2.3.4"),
        with("1.2.840.10008.5.1.4.1.1.4", explicit),
        file(&good)[..600].to_vec(),
    ]
    .into_iter()
    .map(|file| ("Content-Type: application/dicom", file))
    .collect();
    parts.push(("Content-Type: text/plain", b"a letter".to_vec()));
    let answer = post(&operator, &path, OBJECTS, &message(&parts));
    assert_eq!(answer.status, 202, "{answer:?}");
    let outcome = answer.json();
    assert_eq!(named(&outcome, "00081199"), [good.sop_instance.to_string()]);
    let failed = reasons(&outcome, "00081198");
    let codes: Vec<u64> = failed.iter().map(|(code, _)| *code).collect();
    // Of another study; no storage class; no transfer syntax; not of the class that it says; cut short.
    assert_eq!(codes, [0xA900, 0x0122, 0xC122, 0xA900, 0xC000], "{failed:?}");
    assert!(failed[0].1.contains(&subject(2).study_uid) && failed[2].1.contains("1.2.3.4"), "{failed:?}");
    let unnamed = reasons(&outcome, "0008119A");
    assert!(
        unnamed.len() == 2 && unnamed[0].1.contains("DICOM file") && unnamed[1].1.contains("text/plain"),
        "{unnamed:?}"
    );
    bridge.wait_filed(1);
    assert_eq!(stored_files(&bridge).len(), 1, "nothing of the others is left");

    // Nothing stored is a conflict; no objects are a mistake; what is broken off is said beside what was stored.
    let none = post(&operator, &path, OBJECTS, &objects(&[file(&other)]));
    assert!(none.status == 409 && none.json()["00081199"].is_null(), "{none:?}");
    assert_eq!(post(&operator, "/studies", OBJECTS, &message(&[])).status, 400);
    assert_eq!(post(&operator, "/studies", OBJECTS, b"nonsense").status, 400);
    let third = slices(3, 2, 48);
    let mut cut = objects(&[file(&third[0]), file(&third[1])]);
    cut.truncate(cut.len() - 300);
    let cut = post(&operator, "/studies", OBJECTS, &cut);
    assert_eq!((cut.status, named(&cut.json(), "00081199").len()), (202, 1), "{cut:?}");
    assert!(reasons(&cut.json(), "0008119A")[0].1.contains("ends early"), "{cut:?}");
    bridge.wait_filed(2);
    assert_eq!(stored_files(&bridge).len(), 2);
    for (kind, body) in
        [("text/plain", &b"x"[..]), ("multipart/related; type=\"application/dicom+xml\"; boundary=b", b"x"), ("", b"x")]
    {
        assert_eq!(post(&operator, "/studies", kind, body).status, 415, "{kind}");
    }
    let xml = [
        ("Authorization", format!("Bearer {}", operator.token.as_ref().unwrap())),
        ("Accept", "application/dicom+xml".into()),
    ];
    let xml: Vec<_> =
        xml.iter().map(|(name, value)| (*name, value.as_str())).chain([("Content-Type", OBJECTS)]).collect();
    assert_eq!(send(operator.to, "POST", "/dicomweb/studies", &xml, &objects(&[file(&good)])).status, 406);
}

#[test]
fn nobody_stores_who_may_not() {
    let toml = format!(
        "{SERVED}behind_proxy = true\n[[peer]]\nae_title = \"SENDER\"\nallow = [\"store\"]\n[[peer]]\nae_title = \"FINDER\"\nallow = [\"find\", \"get\"]\n\
         [dicomweb]\nanonymous = \"operator\"\nanonymous_from_anywhere = true\n"
    );
    let bridge = Bridge::start(&toml);
    let body = objects(&[file(&slices(1, 1, 48)[0])]);
    let account = format!("account:0x{}", "11".repeat(20));
    let statuses = [
        Client { to: address(&bridge), token: None, from: None },
        Client { to: address(&bridge), token: Some("pbt_0123456789abcdef_00".into()), from: Some("10.0.0.1".into()) },
        Client::with_token(&bridge, &["--as", "peer:FINDER"]),
        Client::with_token(&bridge, &["--as", &account]),
        Client::with_token(&bridge, &["--as", "operator", "--may", "find,retrieve"]),
        Client::with_token(&bridge, &["--as", "operator", "--may", "store"]),
        Client::with_token(&bridge, &["--as", "peer:SENDER"]),
    ]
    .map(|who| {
        ["/studies", &format!("/studies/{}", subject(1).study_uid)].map(|path| post(&who, path, OBJECTS, &body).status)
    });
    assert_eq!(statuses, [[403; 2], [401; 2], [403; 2], [403; 2], [403; 2], [200; 2], [200; 2]]);
}

/// As [`post`], in chunks of no stated length, as programs send what they do not have in memory.
fn post_run_by_run(who: &Client, runs: impl Iterator<Item = Vec<u8>>) -> Answer {
    let mut stream = connect_http(who.to);
    let token = who.token.as_deref().unwrap();
    let head = format!(
        "POST /dicomweb/studies HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {OBJECTS}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        who.to
    );
    stream.write_all(head.as_bytes()).unwrap();
    for run in runs {
        stream.write_all(format!("{:x}\r\n", run.len()).as_bytes()).unwrap();
        stream.write_all(&run).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    read_answer(stream)
}

/// Most memory that the process ever had, in KiB.
fn peak_kib(bridge: &Bridge) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(bridge.pid().to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_large_object_goes_through_and_not_into_memory() {
    const PIXEL_BYTES: usize = 600 << 20;
    let bridge = Bridge::start(SERVED);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let small = slices(1, 1, 48).remove(0);
    assert_eq!(post(&operator, "/studies", OBJECTS, &objects(&[file(&slices(2, 1, 48)[0])])).status, 200);
    let before = peak_kib(&bridge);
    // The same header with other pixels: its last 2 * 48 * 48 octets and the length before them are others.
    let mut head = file(&small);
    head.truncate(head.len() - 2 * 48 * 48 - 4);
    head.extend_from_slice(&u32::try_from(PIXEL_BYTES).unwrap().to_le_bytes());
    let begin = [b"--b\r\nContent-Type: application/dicom\r\n\r\n".to_vec(), head].concat();
    let run = vec![7; 1 << 20];
    let runs = std::iter::once(begin)
        .chain(std::iter::repeat_n(run, PIXEL_BYTES >> 20))
        .chain(std::iter::once(b"\r\n--b--\r\n".to_vec()));
    let answer = post_run_by_run(&operator, runs);
    assert_eq!(answer.status, 200, "{answer:?}");
    let grown = peak_kib(&bridge).saturating_sub(before) >> 10;
    assert!(grown < 200, "{grown} MiB for an object of {} MiB", PIXEL_BYTES >> 20);
    let [large] = &files_below(&bridge.data().join("archive/objects"))
        .iter()
        .filter(|path| path.metadata().unwrap().len() > 1 << 20)
        .cloned()
        .collect::<Vec<_>>()[..]
    else {
        panic!("one file")
    };
    assert!(large.metadata().unwrap().len() as usize > PIXEL_BYTES);
}

#[test]
fn descriptions_are_made_into_objects_or_refused_with_words() {
    const DESCRIBED: &str = "multipart/related; type=\"application/dicom+json\"; boundary=b";
    let bridge = Bridge::start(SERVED);
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let described = |instance: &str, more: Value| {
        let mut set = json!({
            "00080016": { "vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"] },
            "00080018": { "vr": "UI", "Value": [instance] },
            "0020000D": { "vr": "UI", "Value": ["1.2.3"] },
            "0020000E": { "vr": "UI", "Value": ["1.2.3.4"] },
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "Jäger^Anna" }] },
        });
        set.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        set
    };
    let pixels = |uri: &str| json!({ "7FE00010": { "vr": "OW", "BulkDataURI": uri } });
    let several = json!([
        described("1.2.3.4.1", pixels("p/1")),
        described("1.2.3.4.2", pixels("p/9")),
        described("1.2.3.4.3", json!({ "00280010": { "vr": "US", "Value": [-1] } })),
        described(
            "1.2.3.4.4",
            json!({ "00280008": { "vr": "IS", "Value": [2] }, "7FE00010": { "vr": "OB", "BulkDataURI": "p/2" } })
        ),
        described("1.2.3.4.5", json!({})),
    ]);
    let parts = |text: &Value| {
        message(&[
            ("Content-Type: application/dicom+json", text.to_string().into_bytes()),
            ("Content-Type: application/octet-stream\r\nContent-Location: p/1", vec![1, 2, 3, 4]),
            ("Content-Type: image/jpeg\r\nContent-Location: p/2", vec![0xFF, 0xD8, 0xFF]),
        ])
    };
    let answer = post(&operator, "/studies", DESCRIBED, &parts(&several));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(named(&answer.json(), "00081199"), ["1.2.3.4.1", "1.2.3.4.5"]);
    let failed = reasons(&answer.json(), "00081198");
    assert!(failed.len() == 2 && failed[0].1.contains("p/9") && failed[1].1.contains("1 parts"), "{failed:?}");
    assert!(reasons(&answer.json(), "0008119A")[0].1.contains("(0028,0010) is no US"), "{answer:?}");
    bridge.wait_filed(2);
    let stored = stored_files(&bridge);
    assert!(stored.iter().any(|file| file.ends_with(&[0xE0, 0x7F, 0x10, 0, b'O', b'W', 0, 0, 4, 0, 0, 0, 1, 2, 3, 4])));
    assert!(stored.iter().all(|file| file.windows(6).any(|run| run == "Jäger".as_bytes())));

    // No description, one of something else, one that nests without end, and one without end.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for wrong in ["", "{}", "[1]", "nonsense", &deep] {
        let body = message(&[("Content-Type: application/dicom+json", wrong.as_bytes().to_vec())]);
        assert_eq!(post(&operator, "/studies", DESCRIBED, &body).status, 400, "{}", &wrong[..wrong.len().min(20)]);
    }
    let endless = message(&[("Content-Type: application/dicom+json", vec![b' '; 40 << 20])]);
    assert_eq!(post(&operator, "/studies", DESCRIBED, &endless).status, 413);
    assert_eq!(
        post(
            &operator,
            "/studies",
            "application/dicom+json",
            json!([described("1.2.3.4.6", json!({}))]).to_string().as_bytes()
        )
        .status,
        200,
        "alone"
    );
}
