//! A study by ITI-43 beside a plain HTTPS download of a file of the same length, and what it costs to find out that a request is good.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::signers::local::PrivateKeySigner;
use bridge::config::Config;
use bridge::exchange::tls::Identity;
use bridge::keyring::Keyring;
use futures::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use ihe_retrieve::message::RequestHead;
use ihe_retrieve::verify::{Policy, verify};
use tests::retrieval::{connect, converse, document, request};
use tests::wait_for;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::machine::{peak_bytes, reset_peak, sync};
use crate::objects::{deal, slices, study_uid};
use crate::report::{Report, Table, figure, median, megabytes_per_second, or_dash, quantile, quotient, ratio};
use crate::servers::{OURS, Server};
use crate::{Options, client, ledger};

const TO: &str = "https://bench.example/iti43";
const KEY_HASH: &str = "0x5555555555555555555555555555555555555555555555555555555555555555";
const PLAIN: &str = "plain HTTPS download";
const SLICE_BYTES: f64 = 525e3;
/// Octets read and sent at once by the plain server.
const RUN_BYTES: usize = 64 * 1024;

/// A site with a study that somebody was let in to.
struct Site {
    server: Server,
    address: SocketAddr,
    tls_key: [u8; 32],
    repository: String,
    study: String,
    requester: PrivateKeySigner,
}

impl Site {
    fn start(runtime: &Runtime, report: &mut Report, count: u32) -> Option<Self> {
        let more = format!(
            "settle_ms = 500\n[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\npublic_urls = [\"{TO}\"]"
        );
        let mut server = Server::ours(&more, &[]);
        let mut objects = Arc::new(slices(count, 512));
        let uid = study_uid(deal(Arc::get_mut(&mut objects)?, 1)[0]);
        let stored = runtime.block_on(client::store(&server.target, &objects, 1));
        report.keep("C-STORE", server.explain(stored))?;
        let published = ledger::wait_final(server.bridge());
        report.keep("publishing", server.explain(published))?;
        let requester = PrivateKeySigner::random();
        let bridge = server.bridge();
        bridge.json(&["allow", &uid, &requester.address().to_string(), "--encryption-key", KEY_HASH]);
        let keyring = Keyring::open(bridge.data(), &Config::parse("", Default::default()).ok()?.keys).ok()?;
        let keys = keyring.study(&dicom_scp::Uid::new(&uid).ok()?).ok()??;
        let study = hex::encode(bridge::study::study_id(&keys.salt, &uid));
        let repository = keyring.source().address().to_string();
        let tls_key = Identity::open(&bridge.data().join("keystore")).ok()?.spki_sha256();
        let address = bridge.ready("xds=").parse().ok()?;
        Some(Self { server, address, tls_key, repository, study, requester })
    }

    /// Asks for a document. Returns the length of the answer and how long it took from connecting on.
    async fn get(&self, name: &str) -> (u64, Duration) {
        let (message, _) = request(&self.requester, TO, &document(&self.repository, name));
        self.send(&message).await
    }

    async fn send(&self, message: &[u8]) -> (u64, Duration) {
        let begun = Instant::now();
        let mut stream = connect(self.address, self.tls_key).await;
        let head = converse(&mut stream, message, |_, _| {}).await;
        (head.bytes, begun.elapsed())
    }
}

/// A server of one file, over TLS and HTTP as the bridge speaks them.
struct Plain {
    address: SocketAddr,
    tls_key: [u8; 32],
    _dir: tempfile::TempDir,
}

impl Plain {
    fn start(runtime: &Runtime, bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let content: Vec<u8> = (0_u32..1 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut out = std::fs::File::create(&file).unwrap();
        let mut left = bytes;
        while left > 0 {
            let now = left.min(content.len() as u64);
            out.write_all(&content[..now as usize]).unwrap();
            left -= now;
        }
        let identity = Identity::open(dir.path()).unwrap();
        let acceptor = TlsAcceptor::from(identity.server_config().unwrap());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let file = file.clone();
                tokio::spawn(async move {
                    let answer = service_fn(move |_: Request<Incoming>| {
                        let file = file.clone();
                        async move { Ok::<_, Infallible>(serve(file, bytes)) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), answer).await
                });
            }
        });
        Self { address, tls_key: identity.spki_sha256(), _dir: dir }
    }

    async fn get(&self) -> (u64, Duration) {
        let begun = Instant::now();
        let mut stream = connect(self.address, self.tls_key).await;
        let head = converse(&mut stream, b"GET /file HTTP/1.1\r\nHost: a.example\r\n\r\n", |_, _| {}).await;
        (head.bytes, begun.elapsed())
    }
}

/// A file, run by run.
fn serve(file: PathBuf, bytes: u64) -> Response<BoxBody<Bytes, std::io::Error>> {
    let runs = stream::unfold(None, move |open: Option<std::fs::File>| {
        let file = file.clone();
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut open = match open {
                    Some(open) => open,
                    None => std::fs::File::open(file)?,
                };
                let mut run = vec![0; RUN_BYTES];
                let count = open.read(&mut run)?;
                run.truncate(count);
                Ok::<_, std::io::Error>((run, open))
            });
            let (run, open) = read.await.ok()?.ok()?;
            (!run.is_empty()).then(|| (Ok(Frame::data(Bytes::from(run))), Some(open)))
        }
    });
    let mut response = Response::new(BoxBody::new(StreamBody::new(runs)));
    response.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    response
}

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let count = options.scaled(760, 8);
    let Some(mut site) = Site::start(runtime, report, count) else { return };
    // What storing and publishing took is not to be counted.
    site.server.restart();
    site.address = site.server.bridge().ready("xds=").parse().unwrap();
    let whole = |bytes: u64| bytes as f64 > f64::from(count) * SLICE_BYTES * 0.9;
    let mut bytes = 0;
    wait_for("the study to be handed out", || {
        bytes = runtime.block_on(site.get(&site.study)).0;
        whole(bytes)
    });
    let pid = site.server.pid();
    let idle = peak_bytes(pid);
    let resettable = reset_peak(pid);
    let plain = Plain::start(runtime, bytes);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..2 * options.rounds {
        sync();
        let (got, took) =
            runtime.block_on(async { if round % 2 == 0 { site.get(&site.study).await } else { plain.get().await } });
        let rates = if round % 2 == 0 { &mut ours } else { &mut theirs };
        match got == bytes {
            true => rates.push(megabytes_per_second(bytes, took)),
            false => report.failure(format!("an answer of {got} bytes instead of {bytes}")),
        }
    }
    let peak = peak_bytes(pid);
    let title = format!("ITI-43: a study of {count} CT slices, {} MB, in one answer", figure(bytes as f64 / 1e6));
    let mut table = Table::new(title, &["system", "MB/s", "to the plain download", "peak MB"]);
    let (ours, theirs) = (median(&ours), median(&theirs));
    table.row(vec![OURS.into(), or_dash(ours), ratio(ours, theirs), figure(peak as f64 / 1e6)]);
    table.row(vec![PLAIN.into(), or_dash(theirs), ratio(theirs, theirs), "-".into()]);
    table.note(
        "One client, which counts the octets and throws them away; from connecting to the last octet, TLS 1.3 both ways. The plain download is a file of the \
         same length from a server inside the bench process with the same TLS, HTTP and reads of 64 KiB, and nothing else. Files come from the page cache.",
    );
    table.note(format!(
        "Peak memory (VmHWM) of the daemon while it answers; {} MB after the first answer.{}",
        figure(idle as f64 / 1e6),
        if resettable { "" } else { " This kernel does not let a peak begin anew, so it counts from the start." }
    ));
    report.table(&table);
    report.aim("ITI-43 to a plain HTTPS download", 0.7, quotient(ours, theirs), false);
    authorising(options, runtime, report, &site);
}

/// What a request costs that is refused: everything but the answer's documents.
fn authorising(options: &Options, runtime: &Runtime, report: &mut Report, site: &Site) {
    let times = options.scaled(200, 20);
    let unknown = document(&site.repository, &"ab".repeat(32));
    let (mut refused, mut nothing, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    for _ in 0..times {
        let (message, _) = request(&site.requester, TO, &unknown);
        refused.push(ms(runtime.block_on(site.send(&message)).1));
        let elsewhere = b"POST /elsewhere HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        nothing.push(ms(runtime.block_on(site.send(elsewhere)).1));
        verified.push(ms(verification(&message)));
    }
    let mut table = Table::new("ITI-43: until it is decided", &["what", "requests", "median ms", "p99 ms"]);
    for (what, all) in [
        ("a signed request for a study that is not granted", &refused),
        ("a request for another path, which is not looked at", &nothing),
        ("the signature alone, in this process", &verified),
    ] {
        table.row(vec![what.into(), times.to_string(), or_dash(median(all)), or_dash(quantile(all, 0.99))]);
    }
    let cost = median(&refused).zip(median(&nothing)).map(|(refused, nothing)| refused - nothing);
    table.note(
        "Each on a connection of its own, from connecting to the last octet, one after the other. The first less the second is what a request takes to be read, \
         verified, looked up (replay, ledger, grants) and refused; a granted one also waits until its message id and its audit record are durable.",
    );
    report.table(&table);
    report.aim("Verify and authorise an ITI-43 request, median, ms", 1.0, cost, true);
}

/// How long the wire crate takes to verify a message.
fn verification(message: &[u8]) -> Duration {
    let at = message.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&message[..at]).unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: "));
    let head = RequestHead { method: "POST", content_type: kind, content_encoding: None, content_length: None };
    let policy = Policy { addresses: vec![TO.into()], imaging: true };
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let begun = Instant::now();
    let framing = head.admit(false).unwrap();
    let request = verify(&framing, &message[at + 4..], &policy, now_ms).unwrap();
    assert!(request.key().account().is_some());
    begun.elapsed()
}
