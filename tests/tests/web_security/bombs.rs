//! Bodies that are more than they look, and bodies that never end: the site stays as large as it was and goes on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bridge::archive::FileMeta;
use bridge::demo::phantom::Phantom;
use dicom_scp::Uid;
use dicom_scp::dataset::{Element, Encoding, ReadOptions, Tag, VR, read};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde_json::{Value, json};
use tests::Bridge;
use tests::dicom::{slices, subject};
use tests::http::{Answer, Client, PREFIX, address, connect, read_answer, send};
use tests::xds::peak_kib;

const OBJECTS: &str = "multipart/related; type=\"application/dicom\"; boundary=b";
const DESCRIBED: &str = "multipart/related; type=\"application/dicom+json\"; boundary=b";
const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
const RLE: &str = "1.2.840.10008.1.2.5";
const JPEG: &str = "1.2.840.10008.1.2.4.50";
const MIB: usize = 1 << 20;

const TOML: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n[http]\nbind = \"127.0.0.1:0\"\n\
                    receive_timeout_ms = 2000\nrequests_per_minute = 1000000\n";

/// A site, and how large it was when nothing had happened.
struct Site {
    bridge: Bridge,
    operator: Client,
    at_first: u64,
}

impl Site {
    fn new() -> Self {
        let bridge = Bridge::start(TOML);
        let operator = Client::with_token(&bridge, &["--as", "operator"]);
        let mut site = Self { bridge, operator, at_first: 0 };
        // What a site needs in any case.
        let good: Vec<_> = slices(1, 4, 64).iter().map(file).collect();
        assert_eq!(site.store(OBJECTS, &parts("application/dicom", &good)).status, 200);
        site.bridge.wait_final(1);
        let path = format!("/dicomweb/studies/{}/rendered?accept=multipart/related", subject(1).study_uid);
        assert_eq!(site.ask("GET", &path, &[], b"").status, 200);
        site.at_first = peak_kib(site.bridge.pid());
        site.forget_peak();
        site
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = format!("Bearer {}", self.operator.token.as_ref().unwrap());
        let all = [&[("Authorization", bearer.as_str())], headers].concat();
        send(self.operator.to, method, path, &all, body)
    }

    fn store(&self, kind: &str, body: &[u8]) -> Answer {
        self.ask("POST", "/dicomweb/studies", &[("Content-Type", kind)], body)
    }

    /// The status of what may break off.
    fn begins_with(&self, path: &str) -> u16 {
        let mut stream = connect(self.operator.to);
        let token = self.operator.token.as_deref().unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nAccept: */*\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut begin = Vec::new();
        let mut run = vec![0; MIB];
        while let Ok(count @ 1..) = stream.read(&mut run) {
            begin.extend_from_slice(&run[..count.min(4096_usize.saturating_sub(begin.len()))]);
        }
        crate::wire::answers(&begin).first().map_or(0, |answer| answer.status)
    }

    /// Sends in chunks until it is answered, the other side ends it, or there is no more; returns how much was sent, and the answer.
    fn store_endlessly(&self, kind: &str, begin: &[u8], run: &[u8], runs: usize) -> (usize, Option<Answer>) {
        let mut stream = connect(self.operator.to);
        let token = self.operator.token.as_deref().unwrap();
        let head = format!(
            "POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            begin.len()
        );
        stream.write_all(&[head.as_bytes(), begin, b"\r\n"].concat()).unwrap();
        let chunk = [format!("{:x}\r\n", run.len()).as_bytes(), run, b"\r\n"].concat();
        let sent = (0..runs).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        if sent == runs {
            return (sent * run.len(), None);
        }
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        (sent * run.len(), crate::wire::answers(&said).pop())
    }

    /// From now on the peak is that of what comes now (proc(5), clear_refs).
    fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.bridge.pid()), "5").unwrap();
    }

    /// No more than so many MiB more than at first since it was asked last, and alive.
    fn is_no_larger(&self, what: &str, mib: u64) {
        let grown = peak_kib(self.bridge.pid()).saturating_sub(self.at_first) >> 10;
        println!("{what}: {grown} MiB more at most");
        assert!(grown < mib, "{what}: {grown} MiB");
        self.forget_peak();
        assert_eq!(self.ask("GET", &format!("{PREFIX}/health/live"), &[], b"").status, 200, "{what}");
    }
}

fn file_of(phantom: &Phantom, transfer_syntax: &str, set: &[u8]) -> Vec<u8> {
    let meta = FileMeta {
        sop_class: phantom.sop_class,
        sop_instance: phantom.sop_instance,
        transfer_syntax: Uid::new(transfer_syntax).unwrap(),
    };
    [meta.encode(), set.to_vec()].concat()
}

fn file(phantom: &Phantom) -> Vec<u8> {
    file_of(phantom, phantom.transfer_syntax.as_str(), &phantom.bytes)
}

fn parts(kind: &str, contents: &[Vec<u8>]) -> Vec<u8> {
    let head = format!("\r\n--b\r\nContent-Type: {kind}\r\n\r\n").into_bytes();
    let all = contents.iter().flat_map(|content| [head.clone(), content.clone()].concat());
    all.chain(*b"\r\n--b--\r\n").collect()
}

pub(crate) fn bodies_that_are_bombs_do_not_go_off() {
    let site = Site::new();
    let timed = |what: &str, bomb: &dyn Fn(&Site)| {
        let begun = Instant::now();
        bomb(&site);
        println!("{what}: {:.1} s", begun.elapsed().as_secs_f32());
    };
    timed("kinds", &kinds);
    timed("parts", &broken_parts);
    timed("endless", &endless);
    timed("nested", &nested);
    timed("deflated", &deflated);
    timed("pictures", &pictures);
    timed("descriptions", &descriptions);
    let log = site.bridge.log();
    assert!(!log.contains("panicked"), "{log}");
    // What was good is as it was.
    let study = format!("/dicomweb/studies/{}/instances", subject(1).study_uid);
    assert_eq!(site.ask("GET", &study, &[], b"").json().as_array().unwrap().len(), 4);
}

/// What is of another kind is not looked at: compressed bodies, XML, whatever it says inside.
fn kinds(site: &Site) {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&vec![b' '; 64 * MIB]).unwrap();
    let gzip = gzip.finish().unwrap();
    for coding in ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "gzip, identity", "nonsense", ""] {
        for (path, kind) in [
            ("/dicomweb/studies", OBJECTS),
            ("/dicomweb/studies", "application/dicom"),
            ("/dicomweb/studies", "application/dicom+json"),
            ("/api/v1/decisions", "application/json"),
            ("/api/v1/claims", "application/json"),
            ("/ui/login", "application/x-www-form-urlencoded"),
        ] {
            let answer = site.ask("POST", path, &[("Content-Type", kind), ("Content-Encoding", coding)], &gzip);
            assert_eq!((answer.status, answer.header("accept-encoding")), (415, Some("identity")), "{path} {coding}");
        }
    }
    let plain = [("Content-Type", "application/dicom"), ("Content-Encoding", "Identity")];
    assert_eq!(site.ask("POST", "/dicomweb/studies", &plain, &file(&slices(1, 1, 64)[0])).status, 200);
    for kind in [
        "application/dicom+xml",
        "multipart/related; type=\"application/dicom+xml\"; boundary=b",
        "multipart/related; type=\"text/xml\"; boundary=b",
        "text/xml",
        "application/soap+xml",
        "application/xop+xml",
        "multipart/form-data; boundary=b",
        "multipart/mixed; boundary=b",
        "application/zip",
        "application/gzip",
    ] {
        let answer = site.store(kind, laughs().as_bytes());
        assert_eq!(answer.status, 415, "{kind}: {}", String::from_utf8_lossy(&answer.body));
    }
    // An object in a part that says that it is compressed is none.
    let inner = b"\r\n--b\r\nContent-Type: application/dicom\r\nContent-Encoding: gzip\r\n\r\n".to_vec();
    let answer = site.store(OBJECTS, &[inner, gzip, b"\r\n--b--\r\n".to_vec()].concat());
    assert_eq!(answer.status, 409, "{answer:?}");
    site.is_no_larger("other kinds", 64);
}

/// Messages of parts that are none.
fn broken_parts(site: &Site) {
    let good = file(&slices(1, 1, 64)[0]);
    let with = |boundary: &str| format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
    for boundary in ["", "\"\"", "\"a b\"", "\"b", &"x".repeat(71), &"x".repeat(9000), "\"\u{e9}\"", "\";\""] {
        let answer = site.store(&with(boundary), &parts("application/dicom", std::slice::from_ref(&good)));
        assert!(matches!(answer.status, 400 | 415), "boundary {boundary:?}: {answer:?}");
    }
    let whole = parts("application/dicom", std::slice::from_ref(&good));
    let many = b"--b\r\n\r\n\r\n".repeat(200_000);
    let many_named = b"--b\r\nContent-Type: application/dicom\r\n\r\nx\r\n".repeat(20_000);
    let nested = b"--b\r\nContent-Type: multipart/related; boundary=c\r\n\r\n--c\r\n".repeat(1000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("another boundary", String::from_utf8_lossy(b"--c\r\n\r\nx\r\n--c--\r\n").into_owned().into_bytes()),
        ("no end", whole[..whole.len() - 9].to_vec()),
        ("half a head", b"--b\r\nContent-Ty".to_vec()),
        ("a head without an end", [b"--b\r\nX: ".to_vec(), vec![b'x'; 4 * MIB]].concat()),
        ("a head of many lines", [b"--b\r\n".to_vec(), b"X: y\r\n".repeat(500_000)].concat()),
        ("nothing before the first part", vec![b'\n'; 8 * MIB]),
        ("zeros", vec![0; 8 * MIB]),
        ("an end first", b"--b--\r\n".to_vec()),
        ("parts in parts", nested),
        ("many parts of nothing", many),
        ("many parts of little", many_named),
    ];
    for (what, body) in cases {
        let begun = Instant::now();
        let answer = site.store(OBJECTS, &body);
        println!(
            "{what}: {} after {:.1} s, {} MiB",
            answer.status,
            begun.elapsed().as_secs_f32(),
            peak_kib(site.bridge.pid()) >> 10
        );
        assert!(matches!(answer.status, 400 | 409 | 413), "{what}: {}", answer.status);
        assert!(
            answer.body.len() < 16 * MIB && begun.elapsed() < Duration::from_secs(20),
            "{what}: {:?}",
            begun.elapsed()
        );
    }
    site.is_no_larger("parts", 256);
}

/// Bodies that do not end, or say that they are as long as no disk.
fn endless(site: &Site) {
    for length in ["4611686018427387904", "1000000000000", "9223372036854775807"] {
        let mut stream = connect(site.operator.to);
        let token = site.operator.token.as_deref().unwrap();
        let head = format!(
            "POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/dicom\r\n\
             Content-Length: {length}\r\n\r\nno object"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP/1.1 2"), "{length}: {}", String::from_utf8_lossy(&said));
    }
    let files = || tests::files_below(&site.bridge.data().join("archive/objects")).len();
    let before = files();
    let run = vec![7; MIB];
    let (head, json) = ("Content-Type: application/dicom\r\n\r\n", "Content-Type: application/dicom+json\r\n\r\n");
    // What is no object is passed over as long as it comes; an object goes into a file.
    let object = file(&slices(5, 1, 64)[0]);
    let object = [format!("--b\r\n{head}").into_bytes(), endless_value(&object)].concat();
    for (what, kind, begin, mib) in [
        ("no object", OBJECTS, format!("--b\r\n{head}").into_bytes(), 384),
        ("no part", OBJECTS, b"preamble".to_vec(), 256),
        ("an object", OBJECTS, object, 96),
        ("a description", DESCRIBED, format!("--b\r\n{json}[").into_bytes(), 256),
        ("bulk data", DESCRIBED, format!("--b\r\n{json}[]\r\n--b\r\nContent-Location: x\r\n\r\n").into_bytes(), 600),
    ] {
        let (sent, answer) = site.store_endlessly(kind, &begin, &run, mib);
        println!("{what}: {} of {mib} MiB, {:?}", sent / MIB, answer.as_ref().map(|answer| answer.status));
        assert!(answer.is_none_or(|answer| answer.status >= 400), "{what}");
    }
    tests::wait_for("what broke off to be gone", || files() == before);
    // Bulk data is in memory until its objects are stored, and memory that grows is copied.
    site.is_no_larger("endless bodies", 600);
}

/// The beginning of an object whose pixel data is longer than it will be.
fn endless_value(object: &[u8]) -> Vec<u8> {
    let pixels = b"\xE0\x7F\x10\x00OW\0\0";
    let at = object.windows(pixels.len()).rposition(|window| window == pixels).unwrap() + pixels.len();
    [&object[..at], &0xFFFF_FFF0_u32.to_le_bytes()].concat()
}

/// Sequences in sequences without end.
fn nested(site: &Site) {
    let open = |explicit: bool| match explicit {
        true => b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff".to_vec(),
        false => b"\x08\x00\x40\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff".to_vec(),
    };
    let unknown = b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff".to_vec();
    let phantom = &slices(6, 1, 64)[0];
    let bodies = [
        ("explicit", "1.2.840.10008.1.2.1", open(true).repeat(200_000)),
        ("implicit", "1.2.840.10008.1.2", open(false).repeat(200_000)),
        ("unknown", "1.2.840.10008.1.2.1", unknown.repeat(200_000)),
        ("after what is needed", "1.2.840.10008.1.2.1", [phantom.bytes.clone(), open(true).repeat(200_000)].concat()),
    ];
    for (what, syntax, bytes) in bodies {
        let answer = site.store("application/dicom", &file_of(phantom, syntax, &bytes));
        println!("nested, {what}: {}", answer.status);
        assert!(matches!(answer.status, 200 | 409), "{what}: {answer:?}");
    }
    look_at(site, 6);
    site.is_no_larger("sequences in sequences", 200);
}

/// Asks for everything that is made of a study, whatever comes of it.
fn look_at(site: &Site, number: u32) -> Vec<u16> {
    let study = format!("/dicomweb/studies/{}", subject(number).study_uid);
    let phantom = &slices(number, 1, 64)[0];
    let series = phantom.sop_instance.as_str().rsplit_once('.').unwrap().0.to_owned();
    let instance = format!("{study}/series/{series}/instances/{}", phantom.sop_instance);
    let paths = [
        format!("{study}/metadata"),
        format!("{study}/thumbnail"),
        format!("{instance}/rendered?viewport=16384,16384"),
        format!("{instance}/frames/1"),
        format!("{instance}/frames/2147483647"),
        format!("{instance}/bulkdata/7FE00010"),
        format!("{instance}/bulkdata/00091010"),
        format!("{instance}?accept=application/dicom;transfer-syntax=1.2.840.10008.1.2"),
    ];
    paths.iter().map(|path| site.begins_with(path)).collect()
}

/// A few megabytes that are gigabytes: before everything that the index needs, and as pixel data.
fn deflated(site: &Site) {
    const BYTES: u32 = 1 << 30;
    let [before, pixels] = [7, 8].map(|number| slices(number, 1, 64).remove(0));
    let long = |head: &[u8]| [head, &BYTES.to_le_bytes()].concat();
    let split = before.bytes.windows(4).position(|window| window == b"\x10\x00\x10\x00").unwrap();
    let (begin, end) = before.bytes.split_at(split);
    let private = [begin.to_vec(), b"\x09\x00\x10\x00LO\x02\x00x ".to_vec(), long(b"\x09\x00\x10\x10OB\0\0")].concat();
    let bomb = deflate(&private, BYTES as usize, end);
    let small = read(&pixels.bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0;
    let small: dicom_scp::DataSet = small
        .iter()
        .filter(|(tag, _)| **tag != Tag(0x7FE0, 0x0010))
        .map(|(tag, element)| (*tag, element.clone()))
        .collect();
    let header = [small.write(Encoding::ExplicitLe), long(b"\xe0\x7f\x10\x00OW\0\0")].concat();
    let of_pixels = deflate(&header, BYTES as usize, b"");
    assert!(bomb.len() < 16 * MIB && of_pixels.len() < 16 * MIB, "{} {}", bomb.len(), of_pixels.len());
    for (phantom, bytes, number) in [(&before, bomb, 7), (&pixels, of_pixels, 8)] {
        let begun = Instant::now();
        let answer = site.store("application/dicom", &file_of(phantom, DEFLATED, &bytes));
        println!("deflated: {} after {:.1} s", answer.status, begun.elapsed().as_secs_f32());
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        site.is_no_larger("deflated, stored", 200);
        println!("deflated: {:?}", look_at(site, number));
        // The door for bulk data inflates as much as it serves.
        site.is_no_larger("deflated, looked at", 1100);
    }
}

fn deflate(begin: &[u8], zeros: usize, end: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(begin).unwrap();
    let run = vec![0; MIB];
    (0..zeros / MIB).for_each(|_| encoder.write_all(&run).unwrap());
    encoder.write_all(end).unwrap();
    encoder.finish().unwrap()
}

/// Headers that say that a picture is as large as no memory.
fn pictures(site: &Site) {
    let claimed = |number: u32, syntax: &str, pixels: &[u8], frames: &str| {
        let phantom = slices(number, 1, 64).remove(0);
        let mut set = read(&phantom.bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap().0;
        set.put_u16(Tag(0x0028, 0x0010), 65_535);
        set.put_u16(Tag(0x0028, 0x0011), 65_535);
        set.put_text(Tag(0x0028, 0x0008), VR::IS, frames);
        set.put(Tag(0x7FE0, 0x0010), Element::bytes(VR::OW, pixels.to_vec()));
        let mut bytes = set.write(Encoding::ExplicitLe);
        if syntax != phantom.transfer_syntax.as_str() {
            set.remove(Tag(0x7FE0, 0x0010));
            bytes = set.write(Encoding::ExplicitLe);
            bytes.extend_from_slice(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0");
            bytes.extend_from_slice(&(pixels.len() as u32).to_le_bytes());
            bytes.extend_from_slice(pixels);
            bytes.extend_from_slice(b"\xfe\xff\xdd\xe0\0\0\0\0");
        }
        file_of(&phantom, syntax, &bytes)
    };
    // RLE: two segments, of runs of 128 octets each.
    let mut rle = vec![0; 64];
    (rle[0], rle[4], rle[8]) = (2, 64, 128);
    rle.resize(64 + 4096, 0x81);
    // JPEG: SOI, SOF0 of 65,500 by 65,500, and nothing of them.
    let jpeg = b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xdc\xff\xdc\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00\xff\xd9\x00";
    let native = "1.2.840.10008.1.2.1";
    let all = [
        (21, native, vec![0; 64], "1"),
        (22, native, vec![0; 64], "2147483647"),
        (23, RLE, rle, "1"),
        (24, JPEG, jpeg.to_vec(), "1"),
        (25, JPEG, jpeg.to_vec(), "2147483647"),
    ];
    for (number, syntax, pixels, frames) in all {
        let answer = site.store("application/dicom", &claimed(number, syntax, &pixels, frames));
        assert_eq!(answer.status, 200, "{number}: {answer:?}");
        println!("a picture as large as none, {number}: {:?}", look_at(site, number));
        site.is_no_larger("pictures", 200);
    }
}

/// Descriptions in JSON that are larger than they look.
fn descriptions(site: &Site) {
    let described = |instance: &str, more: Value| {
        let mut set = json!({
            "00080016": { "vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"] },
            "00080018": { "vr": "UI", "Value": [instance] },
            "0020000D": { "vr": "UI", "Value": ["1.2.3"] },
            "0020000E": { "vr": "UI", "Value": ["1.2.3.4"] },
        });
        set.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        set
    };
    let deep = |depth: usize| {
        let (open, close) = ("{\"00081140\":{\"vr\":\"SQ\",\"Value\":[", "]}}");
        format!("[{}{{}}{}]", open.repeat(depth), close.repeat(depth))
    };
    let keys: String = (0..900_000).map(|number| format!("\"{:08X}\":{{}},", 0x0011_1000 + number)).collect();
    let long = |text: &str| format!("[{}]", text.repeat(30 * MIB / text.len()).trim_end_matches(','));
    let numbers = |number: &str, count: usize| {
        let values = vec![number; count].join(",");
        format!("[{{\"00181041\":{{\"vr\":\"DS\",\"Value\":[{values}]}},\"00080018\":{{\"vr\":\"UI\"}}}}]")
    };
    for (what, text) in [
        ("deep", deep(100_000)),
        ("deep, and whole", deep(40)),
        ("as many keys as may be", format!("[{{{}\"0\":0}}]", keys)),
        ("more keys than may be", format!("[{{{keys}{keys}\"0\":0}}]")),
        ("small objects", long("{\"0\":0},")),
        ("empty lists", long("[],")),
        ("small numbers", format!("[{{\"00181041\":{}}}]", long("0,"))),
        ("numbers beyond all numbers", numbers(&"9".repeat(5000), 100)),
        ("long numbers", numbers("1.2345678901234567e300", 200_000)),
        ("infinite numbers", numbers("1e999999999", 10)),
        ("a long text", format!("[\"{}\"]", "x".repeat(30 * MIB))),
        ("the same key", format!("[{{{}}}]", vec!["\"00100010\":{\"vr\":\"PN\"}"; 500_000].join(","))),
        ("half a letter", "[\"\\ud800\"]".to_owned()),
    ] {
        let begun = Instant::now();
        let answer = site.store("application/dicom+json", text.as_bytes());
        println!("{what}: {} after {:.1} s", answer.status, begun.elapsed().as_secs_f32());
        assert!(matches!(answer.status, 400 | 409 | 413), "{what}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {:?}", begun.elapsed());
        site.is_no_larger(what, 600);
    }
    // A few octets that name many, many times; within one object, and by many.
    let bulk = |tag: u32| (format!("{tag:08X}"), json!({ "vr": "OB", "BulkDataURI": "p" }));
    let many: Value = Value::Object((0..2000).map(|number| bulk(0x0011_1000 + number)).collect());
    let each: Vec<Value> =
        (0..500).map(|number| described(&format!("1.2.3.4.{number}"), json!({ "7FE00010": bulk(0).1 }))).collect();
    for (what, text) in [("in one object", json!([described("1.2.3.4.1", many)])), ("in many objects", json!(each))] {
        let body = [
            b"--b\r\nContent-Type: application/dicom+json\r\n\r\n".to_vec(),
            text.to_string().into_bytes(),
            b"\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Location: p\r\n\r\n".to_vec(),
            vec![0; 16 * MIB],
            b"\r\n--b--\r\n".to_vec(),
        ]
        .concat();
        let answer = site.store(DESCRIBED, &body);
        println!("bulk data named often {what}: {}", answer.status);
        assert!(matches!(answer.status, 202 | 409), "{what}: {answer:?}");
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(said.contains("octets of bulk data"), "{what}: {said}");
        site.is_no_larger(what, 700);
    }
}

/// Whether something came, or the end.
fn is_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let is_nothing = matches!(stream.peek(&mut [0]), Err(ref error) if error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    !is_nothing
}

/// A head, a body of the API and an upload that stand still, or come octet by octet.
pub(crate) fn what_stands_still_is_ended() {
    // One address gets an eighth of the connections.
    let bridge = Bridge::start(&format!("{TOML}connections_max = 1000\n"));
    let operator = Client::with_token(&bridge, &["--as", "operator"]);
    let to = address(&bridge);
    let bearer = format!("Authorization: Bearer {}", operator.token.as_ref().unwrap());
    let upload = format!(
        "POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{bearer}\r\nContent-Type: {OBJECTS}\r\nContent-Length: 1000000\r\n\r\n--b\r\n"
    );
    // One more than there is room for: it is told so, and the place is free when they have ended.
    let begun = Instant::now();
    let mut still: Vec<_> = (0..33).map(|_| connect(to)).collect();
    still.iter_mut().for_each(|stream| stream.write_all(upload.as_bytes()).unwrap());
    tests::wait_for("no room for one of the uploads", || still.iter().any(is_answered));
    let one = still.iter().position(is_answered).unwrap();
    assert_eq!(read_answer(still.remove(one)).status, 503);
    let stored = || {
        send(
            to,
            "POST",
            "/dicomweb/studies",
            &[("Authorization", &bearer["Authorization: ".len()..]), ("Content-Type", "application/dicom")],
            b"x",
        )
        .status
    };
    assert_eq!(stored(), 503);
    let slow = |head: &str, octets: &str| {
        let mut stream = connect(to);
        stream.write_all(head.as_bytes()).unwrap();
        let begun = Instant::now();
        for octet in octets.bytes().cycle() {
            // Until nobody takes any more.
            if stream.write_all(&[octet]).is_err() || begun.elapsed() > Duration::from_secs(20) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            if is_answered(&stream) {
                break;
            }
        }
        (begun.elapsed(), stream)
    };
    let json = format!("POST {PREFIX}/decisions HTTP/1.1\r\nHost: x\r\n{bearer}\r\nContent-Type: application/json\r\n");
    let form = "POST /ui/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    for (what, head, octets) in [
        ("a head", "GET / HTTP/1.1\r\n".to_owned(), "X: y\r\n"),
        ("a request line", "GET /".to_owned(), "x"),
        ("a body", format!("{json}Content-Length: 1000\r\n\r\n"), " "),
        ("chunks", format!("{json}Transfer-Encoding: chunked\r\n\r\n"), "1\r\n \r\n"),
        ("a form", format!("{form}Content-Length: 1000\r\n\r\n"), "x"),
    ] {
        let (took, stream) = slow(&head, octets);
        assert!(took < Duration::from_secs(15), "{what} took {took:?}");
        let mut said = Vec::new();
        let _ = { stream }.read_to_end(&mut said);
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{what}: {}", String::from_utf8_lossy(&said));
    }
    for stream in still {
        assert_eq!(read_answer(stream).status, 408);
    }
    let took = begun.elapsed();
    assert!((Duration::from_secs(50)..Duration::from_secs(100)).contains(&took), "{took:?}");
    tests::wait_for("room for uploads", || stored() == 409);
}

/// Entities that are entities of entities.
fn laughs() -> String {
    let mut text = "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a0 \"ha\">".to_owned();
    for number in 1..30 {
        let before = number - 1;
        text.push_str(&format!("<!ENTITY a{number} \"{}\">", format!("&a{before};").repeat(10)));
    }
    text + "]><x>&a29;</x>"
}

/// The door for signed retrieval reads XML: no entity is followed, none is opened, and nothing is called.
pub(crate) fn soap_has_no_entities() {
    let bridge = tests::xds::start();
    let to: std::net::SocketAddr = bridge.ready("xds=").parse().unwrap();
    let tls_key = bridge::exchange::tls::Identity::open(&bridge.data().join("keystore")).unwrap().spki_sha256();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let called = listener.local_addr().unwrap();
    let secret = bridge.dir.path().join("secret.txt");
    std::fs::write(&secret, crate::world::SECRET).unwrap();
    let envelope = |prolog: &str, body: &str| {
        format!(
            "{prolog}<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Header/><s:Body>{body}</s:Body></s:Envelope>"
        )
    };
    let file = secret.display();
    let doctype = |inner: &str| format!("<!DOCTYPE s:Envelope [{inner}]>");
    let messages = [
        ("laughs", laughs()),
        ("laughs in an envelope", envelope(laughs().split("<x>").next().unwrap(), "&a29;")),
        ("a file", envelope(&doctype(&format!("<!ENTITY e SYSTEM \"file://{file}\">")), "&e;")),
        ("a call", envelope(&doctype(&format!("<!ENTITY e SYSTEM \"http://{called}/e\">")), "&e;")),
        ("a call of a DTD", envelope(&format!("<!DOCTYPE x SYSTEM \"http://{called}/d\">"), "")),
        ("a parameter", envelope(&doctype(&format!("<!ENTITY % p SYSTEM \"http://{called}/p\"> %p;")), "")),
        ("a style sheet", envelope(&format!("<?xml-stylesheet href=\"http://{called}/s\"?>"), "")),
        (
            "an inclusion",
            envelope("", &format!("<xi:include xmlns:xi=\"http://www.w3.org/2001/XInclude\" href=\"file://{file}\"/>")),
        ),
        (
            "an attachment elsewhere",
            envelope(
                "",
                &format!(
                    "<xop:Include xmlns:xop=\"http://www.w3.org/2004/08/xop/include\" href=\"http://{called}/a\"/>"
                ),
            ),
        ),
        ("depth", envelope("", &"<x>".repeat(100_000))),
        (
            "attributes",
            envelope("", &format!("<x {}/>", (0..50_000).map(|n| format!("a{n}=\"\" ")).collect::<String>())),
        ),
        ("names", envelope("", &format!("<{}/>", "x".repeat(100_000)))),
        ("an unknown entity", envelope("", "&e;")),
        ("characters beyond", envelope("", "&#x110000;&#0;&#xFFFFFFFFFFFFFFFF;")),
        ("another encoding", envelope("<?xml version=\"1.0\" encoding=\"UTF-7\"?>", "")),
        ("nothing", String::new()),
        ("no XML", "\u{0}\u{1}garbage".to_owned()),
    ];
    let before = peak_kib(bridge.pid());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mtom = "multipart/related; type=\"application/xop+xml\"; start=\"<a>\"; start-info=\"application/soap+xml\"; boundary=b";
    for (what, message) in &messages {
        let part = format!(
            "--b\r\nContent-Type: application/xop+xml; type=\"application/soap+xml\"\r\nContent-ID: <a>\r\n\r\n{message}\r\n--b--\r\n"
        );
        for request in [tests::xds::post(mtom, &part), tests::xds::post("application/soap+xml", message)] {
            let begun = Instant::now();
            let said = runtime.block_on(async {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut stream = tests::retrieval::connect(to, tls_key).await;
                let _ = stream.write_all(&request).await;
                let mut said = Vec::new();
                let _ = stream.read_to_end(&mut said).await;
                said
            });
            let text = String::from_utf8_lossy(&said).into_owned();
            assert!(["400", "413", "415", "500"].contains(&&text[9..12]), "{what}: {text}");
            assert!(
                !text.contains(crate::world::SECRET) && !text.contains("hahaha") && text.len() < 20_000,
                "{what}: {text}"
            );
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", begun.elapsed());
        }
    }
    assert!(listener.accept().is_err(), "somebody was called");
    let grown = peak_kib(bridge.pid()).saturating_sub(before) >> 10;
    assert!(grown < 64, "{grown} MiB");
    assert!(!bridge.log().contains("panicked"), "{}", bridge.log());
}
