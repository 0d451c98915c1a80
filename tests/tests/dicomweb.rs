//! DICOMweb of the real binary: what other programs get back of what they sent, who sees what over every route, what viewers ask, and a site
//! that has a study's previews and none of its pixels.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::signers::local::PrivateKeySigner;
use bridge::access::{Caller, Principal};
use bridge::tokens::{DATABASE, Tokens};
use dicom_scp::Status;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::consortium::{Consortium, keyring, objects_here};
use tests::dicom::{connect, slices, subject};
use tests::http::{Answer, Client, address, send};
use tests::peers::{dicom_files, python};
use tests::{Bridge, files_below, wait_for};

const ANY_FRAME: &str = "multipart/related; type=application/octet-stream; transfer-syntax=*";
const SERVED: &str =
    "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n";

/// Somebody's requests below `/dicomweb`.
struct Viewer(Client);

impl Viewer {
    fn new(bridge: &Bridge, principal: &str) -> Self {
        Self(Client::with_token(bridge, &["--as", principal]))
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let bearer = self.0.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut all: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        all.extend(self.0.from.iter().map(|from| ("X-Forwarded-For", from.as_str())));
        all.extend(headers);
        send(self.0.to, method, &format!("/dicomweb{path}"), &all, &[])
    }

    fn get(&self, path: &str, accept: &str) -> Answer {
        let headers: &[(&str, &str)] = if accept.is_empty() { &[] } else { &[("Accept", accept)] };
        self.ask("GET", path, headers)
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path, "application/dicom+json");
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("application/dicom+json"));
        answer.json()
    }
}

/// Head and content of each part of an answer, which must be well formed.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let kind = answer.header("content-type").unwrap();
    let boundary = format!("\r\n--{}", kind.split("boundary=").nth(1).unwrap_or_else(|| panic!("{kind}")));
    let at = |from: usize, wanted: &[u8]| {
        (from..answer.body.len())
            .find(|at| answer.body[*at..].starts_with(wanted))
            .unwrap_or_else(|| panic!("no {wanted:?}"))
    };
    let (mut found, mut begin) = (Vec::new(), at(0, boundary.as_bytes()) + boundary.len());
    while !answer.body[begin..].starts_with(b"--\r\n") {
        let content = at(begin, b"\r\n\r\n") + 4;
        let end = at(content, boundary.as_bytes());
        let head = String::from_utf8(answer.body[begin + 2..content].to_vec()).unwrap();
        found.push((head, answer.body[content..end].to_vec()));
        begin = end + boundary.len();
    }
    assert_eq!(begin + 4, answer.body.len(), "nothing comes after the end");
    found
}

fn send_studies(bridge: &Bridge, studies: &[(u32, u32)]) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for (study, count) in studies {
            for phantom in &slices(*study, *count, 48) {
                assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(Status::SUCCESS));
            }
        }
        open.release().await.unwrap();
    });
}

/// Other people's client, parser and decoders get every object back as it was sent: found, described, whole, and frame by frame.
#[test]
fn another_program_gets_back_what_it_sent() {
    let Some(python) = python() else { return };
    let bridge = Bridge::start(SERVED);
    let viewer = Viewer::new(&bridge, "operator");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/dicomweb_judge.py");
    let mut judge = Command::new(&python)
        .arg(script)
        .args([format!("http://{}/dicomweb", viewer.0.to), bridge.dicom.port().to_string(), "PACSBRIDGE".to_owned()])
        .args(dicom_files(&python))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(judge.stdin.take().unwrap(), "{}", viewer.0.token.as_ref().unwrap()).unwrap();
    let said = judge.wait_with_output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(report["wrong"], json!([]), "{report}");
    let all = [
        ("objects", 60),
        ("over http", 30),
        ("described", 50),
        ("attributes", 5_000),
        ("stored frames", 30),
        ("native frames", 50),
        ("decoded", 40),
        ("decoded like pydicom", 30),
        ("re-encoded", 20),
    ];
    for (what, least) in all {
        assert!(report[what].as_u64().unwrap() >= least, "{what}: {report}");
    }
}

#[test]
fn every_route_asks_who_calls_and_tells_nobody_else() {
    let toml = format!(
        "{SERVED}requests_per_minute = 1000000\n[[peer]]\nae_title = \"FINDER\"\nallow = [\"find\"]\n\
         [[peer]]\nae_title = \"FETCHER\"\nallow = [\"get\"]\n"
    );
    // Wrong tokens are counted by address.
    let bridge = Bridge::start(&toml.replace("[http]\n", "[http]\nbehind_proxy = true\n"));
    send_studies(&bridge, &[(1, 2), (2, 1)]);
    bridge.wait_final(2);
    let patient = |number: u32| {
        let account = PrivateKeySigner::random().address().to_string();
        bridge.json(&["claim", &subject(number).study_uid, "--owner", &account]);
        Viewer::new(&bridge, &format!("account:{account}"))
    };
    let (own, other) = (patient(1), patient(2));
    let tokens = Tokens::open(&bridge.data().join(DATABASE)).unwrap();
    let caller = Caller { principal: Principal::Operator, narrowed: None };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expired = tokens.create("old", &caller, now - 100, Some(now - 1)).unwrap().1.to_string();
    let to = address(&bridge);
    let stranger = |token: Option<String>| Viewer(Client { to, token, from: None });
    let strangers = [stranger(None), stranger(Some("pbt_0123456789abcdef_00".into())), stranger(Some(expired))];
    let seeing = ["operator", "peer:FINDER", "peer:FETCHER"].map(|principal| Viewer::new(&bridge, principal));

    let object = &slices(1, 2, 48)[0];
    let study = format!("/studies/{}", subject(1).study_uid);
    let series = format!(
        "{study}/series/{}",
        seeing[0].json(&format!("{study}/series"))[0]["0020000E"]["Value"][0].as_str().unwrap()
    );
    let instance = format!("{series}/instances/{}", object.sop_instance);
    let mut searches = vec![format!("{study}/series"), format!("{study}/instances"), format!("{series}/instances")];
    searches.extend(
        ["/studies", "/series", "/instances"].map(|all| format!("{all}?StudyInstanceUID={}", subject(1).study_uid)),
    );
    let mut objects = vec![
        format!("{instance}/frames/1"),
        format!("{instance}/frames/1/rendered"),
        format!("{instance}/frames/1/thumbnail"),
    ];
    objects.push(format!("{instance}/bulkdata/7FE00010"));
    for level in [&study, &series, &instance] {
        objects.extend(
            ["", "/metadata", "/thumbnail", "/rendered?accept=multipart/related"].map(|rest| format!("{level}{rest}")),
        );
    }
    // Nobody may tell a study that he may not see from one that is not there.
    let absent = |path: &String| path.replace(&subject(1).study_uid, &format!("{}.999", subject(1).study_uid));
    let status = |viewer: &Viewer, path: &str| viewer.get(path, "").status;
    for path in searches.iter().chain(&objects) {
        for (number, stranger) in strangers.iter().enumerate() {
            let from = Some(format!("10.0.{number}.{}", path.len()));
            assert_eq!(status(&Viewer(Client { from, ..stranger.0.clone() }), path), 401, "{path}");
        }
        assert_eq!(status(&seeing[0], path), 200, "the operator at {path}");
        assert_eq!(status(&own, path), 200, "the owner at {path}");
        let takes_objects = path == &study || path.starts_with("/studies?");
        let refused = if takes_objects { 415 } else { 405 };
        assert_eq!(seeing[0].ask("POST", path, &[]).status, refused, "{path}");
    }
    for path in &searches {
        assert_eq!([&seeing[1], &seeing[2], &other].map(|who| status(who, path)), [200, 403, 204], "{path}");
        assert_eq!(other.get(path, "").body, other.get(&absent(path), "").body, "{path}");
    }
    for path in &objects {
        assert_eq!([&seeing[1], &seeing[2], &other].map(|who| status(who, path)), [403, 200, 404], "{path}");
        assert_eq!(other.get(path, "").body, other.get(&absent(path), "").body, "{path}");
        assert_eq!(status(&seeing[0], &absent(path)), 404, "{path}");
    }
    assert_eq!(other.json("/studies").as_array().unwrap().len(), 1, "his own");
    assert_eq!(own.json("/instances").as_array().unwrap().len(), 2);
    assert_eq!(seeing[0].json("/studies").as_array().unwrap().len(), 2);

    // Who is anybody without a token, once that is said, and what he may then.
    let mut bridge = bridge;
    bridge.terminate();
    bridge.reconfigure(&format!("{toml}[dicomweb]\nanonymous = \"peer:FINDER\"\n"), Vec::new());
    bridge.run();
    let anybody = Viewer(Client { to: address(&bridge), token: None, from: None });
    assert_eq!([status(&anybody, &searches[0]), status(&anybody, &objects[0])], [200, 403]);
    let wrong = Viewer(Client { token: Some("pbt_0123456789abcdef_00".into()), ..anybody.0.clone() });
    assert_eq!(status(&wrong, &searches[0]), 401, "who shows a token means somebody");
    assert_eq!(anybody.0.get("/studies").status, 401, "of the other API nobody is anybody");
}

/// A page whose own name was made to lead to this machine has a browser that reaches the port; it is not answered as anybody.
#[test]
fn who_calls_by_a_name_that_is_not_ours_needs_a_token() {
    let toml =
        format!("{SERVED}[dicomweb]\nanonymous = \"operator\"\npublic_url = \"https://pacs.example/dicomweb\"\n");
    let bridge = Bridge::start(&toml);
    send_studies(&bridge, &[(1, 1)]);
    let to = address(&bridge);
    let token = Client::with_token(&bridge, &["--as", "operator"]).token.unwrap();
    let status = |host: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let mut stream = tests::http::connect(to);
        let request = format!("GET /dicomweb/studies HTTP/1.1\r\nHost: {host}\r\n{bearer}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        tests::http::read_answer(stream).status
    };
    let port = to.port();
    for ours in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "pacs.example".to_owned()] {
        assert_eq!(status(&ours, None), 200, "{ours}");
    }
    for other in [format!("evil.example:{port}"), "127.0.0.1.evil.example".to_owned(), "pacs.example.evil".to_owned()] {
        assert_eq!(status(&other, None), 401, "{other}");
        assert_eq!(status(&other, Some(&token)), 200, "who shows a token was let in by somebody: {other}");
    }
}

#[test]
fn what_viewers_ask_is_answered_as_the_standard_says() {
    let toml = format!("{SERVED}allowed_origins = [\"https://viewer.example\"]\n");
    let bridge = Bridge::start(&toml);
    send_studies(&bridge, &[(1, 3), (2, 1)]);
    bridge.wait_final(2);
    let viewer = Viewer::new(&bridge, "operator");
    let (uid, patient) = (subject(1).study_uid, subject(1).patient_id);

    // The list, and what narrows it, by names and numbers.
    let list = "/studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060";
    let rows = viewer.json(list);
    assert_eq!(rows.as_array().unwrap().len(), 2, "{rows}");
    assert_eq!(rows[0]["00080061"]["Value"], json!(["CT"]));
    assert_eq!(rows[0]["00081030"]["Value"], json!([subject(1).description]));
    let url = format!("http://{}/dicomweb/studies/{uid}", viewer.0.to);
    assert_eq!(rows[0]["00081190"]["Value"], json!([url]));
    for narrowed in [
        format!("00100020=%2A{patient}%2A"),
        format!("PatientID={patient}&StudyDate=19700101-19991231"),
        format!("PatientName=zyx*1&StudyInstanceUID={uid},1.2.3"),
        format!("AccessionNumber={}&ModalitiesInStudy=CT", subject(1).accession),
    ] {
        let found = viewer.json(&format!("/studies?{narrowed}"));
        assert_eq!(found.as_array().unwrap().len(), 1, "{narrowed}: {found}");
        assert_eq!(found[0]["0020000D"]["Value"], json!([uid]));
    }
    assert_eq!(viewer.get("/studies?PatientName=Nobody", "").status, 204);
    let cut = viewer.get("/instances?limit=1&offset=1", "");
    assert!(cut.json().as_array().unwrap().len() == 1 && cut.header("warning").unwrap().starts_with("299 "), "{cut:?}");
    let fuzzy = viewer.get("/studies?fuzzymatching=true", "");
    assert!(fuzzy.header("warning").unwrap().contains("Only literal matching"), "{fuzzy:?}");
    for (wrong, words) in [("Modality=CT", "ModalitiesInStudy"), ("Nonsense=1", "neither"), ("limit=x", "number")] {
        let refused = viewer.get(&format!("/studies?{wrong}"), "");
        assert!(refused.status == 400 && refused.json()["detail"].as_str().unwrap().contains(words), "{refused:?}");
    }
    assert_eq!(viewer.get("/studies", "application/dicom+xml").status, 406);

    // Metadata, which another request need not carry again.
    let series =
        viewer.json(&format!("/studies/{uid}/series?includefield=0008103E"))[0]["0020000E"]["Value"][0].clone();
    let series = format!("/studies/{uid}/series/{}", series.as_str().unwrap());
    let metadata = viewer.get(&format!("{series}/metadata"), "application/dicom+json");
    let described = metadata.json();
    assert_eq!(described.as_array().unwrap().len(), 3);
    let first = &described[0];
    assert_eq!(
        (&first["00280010"]["Value"], &first["00083002"]["Value"]),
        (&json!([48]), &json!(["1.2.840.10008.1.2.1"]))
    );
    let tag = metadata.header("etag").unwrap();
    let again = viewer.ask("GET", &format!("{series}/metadata"), &[("If-None-Match", tag)]);
    assert!(again.status == 304 && again.body.is_empty(), "{again:?}");

    // Objects: in parts, alone, recoded, in an archive.
    let instance = format!("{series}/instances/{}", first["00080018"]["Value"][0].as_str().unwrap());
    let stored: Vec<Vec<u8>> =
        files_below(&bridge.data().join("archive/objects")).iter().map(|file| std::fs::read(file).unwrap()).collect();
    let digests: Vec<_> = stored.iter().map(Sha256::digest).collect();
    let whole = viewer.get(&series, "multipart/related; type=\"application/dicom\"; transfer-syntax=*");
    let got = parts(&whole);
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|(_, file)| digests.contains(&Sha256::digest(file))), "the bytes that were received");
    assert!(
        got[0].0.contains("Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\n"),
        "{}",
        got[0].0
    );
    let alone = viewer.get(&instance, "application/dicom");
    assert!(alone.status == 200 && digests.contains(&Sha256::digest(&alone.body)));
    assert_eq!(viewer.get(&series, "application/dicom").status, 406, "three objects are no one body");
    let implicit = viewer.get(&instance, "application/dicom; transfer-syntax=1.2.840.10008.1.2");
    assert_eq!(implicit.header("content-type"), Some("application/dicom; transfer-syntax=1.2.840.10008.1.2"));
    assert!(implicit.body != alone.body && implicit.body.ends_with(&alone.body[alone.body.len() - 4096..]));
    assert_eq!(viewer.get(&instance, "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90").status, 406);
    let part = viewer.ask("GET", &instance, &[("Accept", "application/dicom"), ("Range", "bytes=128-131")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &b"DICM"[..]));
    assert_eq!(part.header("content-range"), Some(format!("bytes 128-131/{}", alone.body.len()).as_str()));
    let zip = viewer.get(&series, "application/zip");
    assert!(zip.status == 200 && zip.body.starts_with(b"PK"));

    // Frames and bulk data are the pixels.
    let pixels = &alone.body[alone.body.len() - 2 * 48 * 48..];
    let frame = parts(&viewer.get(&format!("{instance}/frames/1"), ANY_FRAME));
    assert!(frame.len() == 1 && frame[0].1 == pixels, "one frame");
    assert!(frame[0].0.contains("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"), "{}", frame[0].0);
    for (wrong, status) in [("2", 404), ("0", 400), ("x", 400), ("1,,2", 400)] {
        assert_eq!(viewer.get(&format!("{instance}/frames/{wrong}"), ANY_FRAME).status, status, "{wrong}");
    }
    assert_eq!(viewer.get(&format!("{instance}/frames/1"), "image/jp2").status, 406);
    let named = first["7FE00010"]["BulkDataURI"].as_str().unwrap().strip_prefix("/dicomweb").unwrap();
    let bulk = parts(&viewer.get(named, "multipart/related; type=\"application/octet-stream\""));
    assert!(bulk.len() == 1 && bulk[0].1 == pixels, "bulk data");
    assert_eq!(viewer.get(named, "application/octet-stream").body, pixels);
    for wrong in ["7FE00011", "nonsense", "../../../../../etc/passwd", "00081140/0/00081150"] {
        assert_eq!(viewer.get(&format!("{instance}/bulkdata/{wrong}"), "").status, 404, "{wrong}");
    }

    // Thumbnails as pages and scripts ask for them: the query parameter wins.
    let script = "multipart/related; type=\"application/octet-stream\"";
    for path in [
        format!("/studies/{uid}/thumbnail"),
        format!("{series}/thumbnail"),
        format!("{instance}/thumbnail"),
        format!("{instance}/rendered"),
        format!("{instance}/frames/1/rendered"),
    ] {
        let picture = viewer.get(&format!("{path}?accept=image/jpeg"), script);
        assert_eq!((picture.status, picture.header("content-type")), (200, Some("image/jpeg")), "{path}");
        assert!(picture.body.starts_with(&[0xFF, 0xD8, 0xFF]), "{path}");
        assert!(viewer.get(&path, "image/png").body.starts_with(b"\x89PNG"), "{path}");
        assert_eq!(viewer.get(&path, script).status, 406, "{path}");
    }
    let bright = viewer.get(&format!("{instance}/rendered?window=-2000,1,linear&accept=image/png"), "");
    let dark = viewer.get(&format!("{instance}/rendered?window=9000,1,linear&accept=image/png"), "");
    assert!(bright.status == 200 && dark.status == 200 && bright.body != dark.body, "the window is used");
    for wrong in ["window=1", "viewport=a", "quality=0", "annotation=patient"] {
        assert_eq!(viewer.get(&format!("{instance}/rendered?{wrong}"), "").status, 400, "{wrong}");
    }

    // A viewer of another origin asks first.
    let asks = [
        ("Origin", "https://viewer.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "accept"),
    ];
    let preflight = viewer.ask("OPTIONS", named, &asks);
    assert!(preflight.status == 204 && preflight.header("access-control-allow-headers").unwrap().contains("accept"));
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://viewer.example"));

    // Each study that was read is in the audit trail, with who read it, and not once for every frame.
    let records = String::from_utf8(bridge.cli(&["audit", "export"]).stdout).unwrap();
    let accessed = |line: &&str| {
        line.contains("110103") && line.contains(&uid) && line.contains("EventOutcomeIndicator=\\\"0\\\"")
    };
    let read = records.lines().filter(accessed).count();
    assert!((1..=3).contains(&read), "{read} records of reading the study:\n{records}");
}

/// What the owner allowed is described and shown at the other site before one pixel is there, and frames bring what they need.
#[test]
fn a_site_without_the_pixels_describes_and_shows_a_study_and_brings_frames_when_they_are_asked_for() {
    let consortium = Consortium::found();
    let a = consortium.join(true);
    let b = consortium.join_with("[http]\nbind = \"127.0.0.1:0\"\n");
    send_studies(&a, &[(1, 3)]);
    a.wait_final(1);
    let account = keyring(&b).source().address().to_string();
    let uid = subject(1).study_uid;
    let viewer = Viewer::new(&b, "operator");
    assert_eq!(viewer.get(&format!("/studies/{uid}/metadata"), "").status, 404, "nothing is granted yet");
    a.wait_for_key_of(&account);
    a.json(&["allow", &uid, &account]);
    wait_for("the study's picture at B", || {
        viewer.get(&format!("/studies/{uid}/thumbnail"), "image/jpeg").status == 200
    });
    let described = viewer.json(&format!("/studies/{uid}/metadata"));
    let own = Viewer(Client::with_token(&b, &["--as", "operator"]));
    assert_eq!(described.as_array().unwrap().len(), 3);
    assert!(
        described.as_array().unwrap().iter().all(|object| object["7FE00010"]["BulkDataURI"].is_string()),
        "{described}"
    );
    assert_eq!(objects_here(&b), 0, "no pixel is here");
    assert_eq!(own.json(&format!("/studies/{uid}/series"))[0]["00080056"]["Value"], json!(["NEARLINE"]));

    let text = |object: &Value, tag: &str| object[tag]["Value"][0].as_str().unwrap().to_owned();
    let first = &described[0];
    let frame =
        format!("/studies/{uid}/series/{}/instances/{}/frames/1", text(first, "0020000E"), text(first, "00080018"));
    let phantom =
        slices(1, 3, 48).into_iter().find(|one| one.sop_instance.as_str() == text(first, "00080018")).unwrap();
    let got = parts(&viewer.get(&frame, ANY_FRAME));
    assert!(got[0].1 == phantom.bytes[phantom.bytes.len() - 2 * 48 * 48..], "the pixels as they were sent");

    a.json(&["revoke", &uid, &account]);
    wait_for("the study to be gone at B", || viewer.get(&frame, ANY_FRAME).status == 404);
    for path in ["", "/metadata", "/thumbnail"] {
        assert_eq!(viewer.get(&format!("/studies/{uid}{path}"), "").status, 404, "{path}");
    }
    assert_eq!(viewer.get("/studies", "").status, 204);
}
