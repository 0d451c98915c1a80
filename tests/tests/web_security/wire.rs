//! One message is one request, however it says where it ends.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use tests::http::{Answer, address, connect};
use tests::wait_for;

use crate::world::World;

/// Studies that the second message of each case asks for begin like this; the audit trail would name them.
const MARK: &str = "1.3.6.1.4.1.99999";
/// Longest wait for an end that the site does not bring about.
const ENDS: Duration = Duration::from_secs(20);

/// Octets that would be a request of their own.
fn second(number: usize) -> String {
    format!("GET /api/v1/studies/{MARK}.{number} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// What is to become of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is refused, by one of these, and the connection ends.
    Refused(&'static [u16]),
    /// It is answered once, or refused.
    Once,
}

/// A message in which `@` stands for a second one.
struct Case {
    what: &'static str,
    octets: Vec<u8>,
    fate: Fate,
}

fn case(what: &'static str, head: &str, body: &str, fate: Fate) -> Case {
    Case { what, octets: format!("{head}\r\n\r\n{body}").into_bytes(), fate }
}

/// A POST that reads no body because nobody sent it, with these lines about the body's length; `LENGTH` stands for that of the whole body.
fn posts() -> Vec<Case> {
    use Fate::*;
    const BAD: Fate = Refused(&[400]);
    let lines = [
        ("length, then chunks", "Content-Length: LENGTH\r\nTransfer-Encoding: chunked", Once),
        ("chunks, then length", "Transfer-Encoding: chunked\r\nContent-Length: LENGTH", Once),
        ("a short length, then chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked", Once),
        ("chunks, then a short length", "Transfer-Encoding: chunked\r\nContent-Length: 5", Once),
        ("another coding", "Content-Length: LENGTH\r\nTransfer-Encoding: xchunked", BAD),
        ("no coding", "Content-Length: LENGTH\r\nTransfer-Encoding: identity", BAD),
        ("an empty coding", "Content-Length: LENGTH\r\nTransfer-Encoding:", BAD),
        ("chunks before a coding", "Content-Length: LENGTH\r\nTransfer-Encoding: chunked, identity", BAD),
        (
            "two lines of codings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: LENGTH",
            BAD,
        ),
        ("a coding in quotes", "Content-Length: LENGTH\r\nTransfer-Encoding: \"chunked\"", BAD),
        ("a coding behind a vertical tab", "Content-Length: LENGTH\r\nTransfer-Encoding: \u{b}chunked", BAD),
        ("a coding behind a tab", "Content-Length: LENGTH\r\nTransfer-Encoding:\tchunked", Once),
        ("a name before a space", "Content-Length: LENGTH\r\nTransfer-Encoding : chunked", BAD),
        ("a length before a space", "Content-Length : 5\r\nX: y", BAD),
        ("a name of another letter", "Content-Length: LENGTH\r\nTransfer_Encoding: chunked", Once),
        ("a name after a space", "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: LENGTH", BAD),
        ("a length on the next line", "Content-Length: LENGTH\r\nX: y\r\n\tContent-Length: 5", BAD),
        ("a coding on the next line", "Content-Length: LENGTH\r\nTransfer-Encoding:\r\n chunked", BAD),
        ("a line behind a bare carriage return", "Content-Length: LENGTH\r\nX: y\rTransfer-Encoding: chunked", BAD),
        ("a line behind a bare line feed", "Content-Length: LENGTH\r\nX: y\nTransfer-Encoding: chunked", Once),
        ("two lengths", "Content-Length: 5\r\nContent-Length: LENGTH", BAD),
        ("two lengths, the other way round", "Content-Length: LENGTH\r\nContent-Length: 5", BAD),
        ("a list of lengths", "Content-Length: 5, LENGTH", BAD),
        ("a length twice", "Content-Length: LENGTH\r\nContent-Length: LENGTH", Once),
        ("a length with a sign", "Content-Length: +LENGTH", BAD),
        ("a negative length", "Content-Length: -1", BAD),
        ("a length of zeros first", "Content-Length: 000LENGTH", Once),
        ("a hexadecimal length", "Content-Length: 0x5", BAD),
        ("a length with a point", "Content-Length: 5.0", BAD),
        ("a length and a word", "Content-Length: 5 LENGTH", BAD),
        ("a length of nothing", "Content-Length:", BAD),
        ("a length beyond all numbers", "Content-Length: 18446744073709551621", BAD),
        ("a length beyond all disks", "Content-Length: 18446744073709551615", Refused(&[400, 413, 431])),
        ("nothing in a name", "Content-Length: LENGTH\r\nX\0: y", BAD),
        ("nothing in a value", "Content-Length: LENGTH\r\nX: y\0z", BAD),
        ("a line without a colon", "Content-Length: LENGTH\r\nnonsense", BAD),
        ("a line without a name", "Content-Length: LENGTH\r\n: y", BAD),
        ("two hosts", "Content-Length: LENGTH\r\nHost: y", BAD),
        ("an expectation", "Content-Length: LENGTH\r\nExpect: 100-continue", Once),
        (
            "an upgrade",
            "Content-Length: LENGTH\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            Once,
        ),
    ];
    let bodies = lines.into_iter().flat_map(|(what, lines, fate)| {
        // By chunks the first ends at once, and by its short length after five octets.
        let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lines}");
        ["/api/v1/actions/submit", "/api/v1/decisions"].map(|path| case(what, &head(path), "0\r\n\r\n@", fate))
    });
    bodies.collect()
}

fn chunks() -> Vec<Case> {
    let head = "POST /api/v1/actions/submit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked";
    let sizes = [
        ("a size with a sign", "+2\r\n{}\r\n0\r\n\r\n"),
        ("a negative size", "-2\r\n{}\r\n0\r\n\r\n"),
        ("a size with 0x", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("a size beyond all numbers", "10000000000000002\r\n{}\r\n0\r\n\r\n"),
        ("no size", "\r\n{}\r\n0\r\n\r\n"),
        ("a size that is too small", "1\r\n{}\r\n0\r\n\r\n"),
        ("a size and a bare line feed", "2\n{}\r\n0\r\n\r\n"),
        ("an extension with a line feed", "2;x=\n{}\r\n0\r\n\r\n"),
        ("an extension without an end", "2;xxxxxxxxxxxxxxxx"),
        ("a size of words", "two\r\n{}\r\n0\r\n\r\n"),
    ];
    let refused =
        |(what, body): (&'static str, &str)| case(what, head, &format!("{body}@"), Fate::Refused(&[400, 408]));
    sizes.into_iter().map(refused).collect()
}

fn lines() -> Vec<Case> {
    use Fate::*;
    let live = |line: &str| format!("{line}\r\nHost: x\r\nContent-Length: LENGTH");
    let long = "x".repeat(100_000);
    let mut all = vec![
        case("a body of a GET", &live("GET /api/v1/health/live HTTP/1.1"), "@", Once),
        case("a body of an OPTIONS", &live("OPTIONS * HTTP/1.1"), "@", Once),
        case("a body of a CONNECT", &live("CONNECT x:1 HTTP/1.1"), "@", Once),
        case("a whole URL", &live("GET http://evil.example/api/v1/health/live HTTP/1.1"), "@", Once),
        case("a URL of a file", &live("GET file:///etc/passwd HTTP/1.1"), "@", Once),
        case("no path", &live("GET x:1 HTTP/1.1"), "@", Once),
        case("a path without a slash", &live("GET api/v1/health/live HTTP/1.1"), "@", Once),
        case("an older version", &live("GET /api/v1/health/live HTTP/1.0"), "@", Once),
        case("no version", "GET /api/v1/health/live", "@", Refused(&[400])),
        case("a newer version", "PRI * HTTP/2.0", "SM\r\n\r\n@", Refused(&[400, 505])),
        case("an unknown version", &live("GET /api/v1/health/live HTTP/9.9"), "@", Refused(&[400, 505])),
        case("two versions", &live("GET /api/v1/health/live HTTP/1.1 HTTP/1.1"), "@", Refused(&[400])),
        case("a space in the path", &live("GET /api/v1/health /live HTTP/1.1"), "@", Refused(&[400])),
        case("nothing in the path", &live("GET /api/v1/health/live\0 HTTP/1.1"), "@", Refused(&[400])),
        case("a long path", &live(&format!("GET /{long} HTTP/1.1")), "@", Refused(&[400, 414, 431])),
        case("a long method", &live(&format!("{long} / HTTP/1.1")), "@", Refused(&[400, 431])),
        case("a long header", &format!("{}\r\nX: {long}", live("GET / HTTP/1.1")), "@", Refused(&[400, 431])),
        case("no host", "GET /api/v1/health/live HTTP/1.1\r\nX: y", "", Refused(&[400])),
        case("headers of another protocol", "\u{16}\u{3}\u{1}\u{2}", "@", Refused(&[400])),
    ];
    let many: String = (0..200).map(|number| format!("X-{number}: y\r\n")).collect();
    all.push(case("many headers", &format!("GET / HTTP/1.1\r\n{many}Host: x"), "@", Refused(&[431])));
    all
}

/// Every case beside the others: a connection that is kept ends when nothing more comes.
pub(crate) fn one_message_is_one_request(world: &World) {
    let to = address(&world.bridge);
    // Two good ones are two, so that a second one would be seen.
    let two = [second(0), second(0)].concat();
    assert_eq!(statuses(&converse(to, two.as_bytes())), [401, 401]);
    let cases: Vec<Case> = posts().into_iter().chain(chunks()).chain(lines()).collect();
    let judged: Vec<_> = std::thread::scope(|scope| {
        let begin = |(number, case): (usize, &Case)| {
            let octets = completed(&case.octets, &second(number + 1));
            scope.spawn(move || converse(to, &octets))
        };
        let all: Vec<_> = cases.iter().enumerate().map(begin).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (case, said) in cases.iter().zip(&judged) {
        let found = statuses(said);
        let is_good = match case.fate {
            Fate::Once => found.len() <= 1,
            // Whoever sends what cannot be told apart from nothing may be answered by the end alone.
            Fate::Refused(with) => found.len() <= 1 && found.iter().all(|status| with.contains(status)),
        };
        assert!(
            is_good,
            "{}: {found:?} for {:?}: {}",
            case.what,
            String::from_utf8_lossy(&case.octets),
            String::from_utf8_lossy(said)
        );
        assert!(!said.starts_with(b"HTTP/1.1 5"), "{}: {}", case.what, String::from_utf8_lossy(said));
    }
    // Nothing of the second ones was looked at.
    let trail = || String::from_utf8(world.bridge.cli(&["audit", "export"]).stdout).unwrap();
    wait_for("the record of the good ones", || trail().contains(&format!("{MARK}.0")));
    let trail = trail();
    let followed: Vec<_> = (1..=cases.len()).filter(|number| trail.contains(&format!("{MARK}.{number}"))).collect();
    assert!(
        followed.is_empty(),
        "requests within bodies were followed: {:?}",
        followed.iter().map(|number| cases[number - 1].what).collect::<Vec<_>>()
    );
}

/// A case with its second message, and lengths as they are.
fn completed(octets: &[u8], second: &str) -> Vec<u8> {
    let text = String::from_utf8(octets.to_vec()).unwrap().replace('@', second);
    let length = text.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
    text.replace("LENGTH", &length.to_string()).into_bytes()
}

/// Sends and reads until the other side ends it.
fn converse(to: SocketAddr, octets: &[u8]) -> Vec<u8> {
    let mut stream = connect(to);
    stream.set_read_timeout(Some(ENDS)).unwrap();
    let _ = stream.write_all(octets);
    let mut said = Vec::new();
    let ended = stream.read_to_end(&mut said);
    let is_ended = ended.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true);
    assert!(is_ended, "{ended:?} after {}", String::from_utf8_lossy(octets));
    said
}

fn statuses(said: &[u8]) -> Vec<u16> {
    answers(said).iter().map(|answer| answer.status).filter(|status| *status != 100).collect()
}

/// The answers that stand one after another.
pub(crate) fn answers(mut said: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while !said.is_empty() {
        let Some((status, headers)) = tests::http::read_head(&mut said) else { break };
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let is_none = matches!(status, 100 | 204 | 304);
        let take = if is_none { 0 } else { length.unwrap_or(said.len()).min(said.len()) };
        answer.body = said[..take].to_vec();
        said = &said[take..];
        all.push(answer);
    }
    all
}
