//! DICOMweb beside Orthanc with its plugin: searches, metadata, frames, pictures, and storing, over one connection that stays open.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use bridge::archive::FileMeta;
use dicom_scp::TransferSyntax;
use tests::PATIENCE;
use tokio::runtime::Runtime;

use crate::machine::sync;
use crate::objects::{Object, Person, deal, query_study_uid, slices, study_uid, tiny};
use crate::report::{Report, Table, figure, median, or_dash, quotient, ratio};
use crate::servers::{ORTHANC, OURS, Server};
use crate::{Options, Outcome, client, ledger};

/// Ours, without a record on the disk before each answer: what the audit trail costs.
const UNRECORDED: &str = "PACS Bridge, audit trail off";
const JSON: &str = "application/dicom+json";
const FRAMES: &str = "multipart/related; type=\"application/octet-stream\"; transfer-syntax=*";
const JPEG: &str = "image/jpeg";
const BOUNDARY: &str = "bench-boundary-0123456789";
/// Times that a search, the metadata and a picture are asked for in a round.
const SEARCHES: u32 = 200;
const METADATA: u32 = 5;
const PICTURES: u32 = 50;
/// Times that a study is opened.
const OPENINGS: u32 = 5;

/// A server, its port for HTTP, and where DICOMweb is.
struct Web {
    server: Server,
    to: SocketAddr,
    root: &'static str,
}

/// What is measured, and what is aimed at: so many times the peer's rate, or at most so many ms.
struct Case {
    title: String,
    unit: &'static str,
    aim: (&'static str, Aim),
    note: &'static str,
    /// How many of the unit a measurement has.
    of: fn(&Set) -> u32,
    run: fn(&Web, &Set, u32) -> Outcome<f64>,
}

#[derive(Clone, Copy)]
enum Aim {
    Times(f64),
    Ms(f64),
}

/// What is asked for.
struct Set {
    studies: u32,
    /// Of the series: study, series and instances.
    study: String,
    series: String,
    instances: Vec<String>,
    /// Files to be stored, under new names in each round.
    files: std::sync::Mutex<Vec<Object>>,
}

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let mut all = vec![ours(OURS, ""), ours(UNRECORDED, "\n[audit]\nenabled = false")];
    all.extend(Server::orthanc_web().map(|(server, to)| Web { server, to, root: "/dicom-web" }));
    let set = prepare(options, runtime, report, &mut all);
    let Some(set) = set else { return };
    for case in cases(&set) {
        measure(options, report, &mut all, &set, &case);
    }
}

fn ours(name: &'static str, rest: &str) -> Web {
    let more = "settle_ms = 500\n[http]\nbind = \"127.0.0.1:0\"\n[dicomweb]\nanonymous = \"operator\"\nrequests_per_minute = 10000000";
    let mut server = Server::ours(&format!("{more}{rest}"), &[]);
    server.name = name;
    let to = tests::http::address(server.bridge());
    Web { server, to, root: "/dicomweb" }
}

/// The same studies and the same series in every server. Nothing goes on in the background any more when this returns.
fn prepare(options: &Options, runtime: &Runtime, report: &mut Report, all: &mut [Web]) -> Option<Set> {
    let studies = options.scaled(2000, 20);
    let small: Arc<Vec<Object>> = Arc::new((0..studies).flat_map(|study| tiny(study, 1)).collect());
    let mut series = Arc::new(slices(options.scaled(500, 16), 512));
    let study = study_uid(deal(Arc::get_mut(&mut series)?, 1)[0]);
    for web in all.iter_mut() {
        for objects in [&small, &series] {
            let stored = runtime.block_on(client::store(&web.server.target, objects, 4));
            report.keep(&format!("{}, C-STORE", web.server.name), web.server.explain(stored))?;
        }
    }
    for web in all.iter_mut().filter(|web| web.server.ours_if().is_some()) {
        let published = ledger::wait_final(web.server.bridge());
        report.keep("publishing", web.server.explain(published))?;
    }
    let found = all[0].connect().and_then(|mut line| line.get(&format!("/dicomweb/studies/{study}/series"), JSON));
    let found = report.keep("the series", found)?;
    let found: serde_json::Value = serde_json::from_slice(&found).ok()?;
    let uid = found[0]["0020000E"]["Value"][0].as_str()?.to_owned();
    let instances = series.iter().map(|object| object.sop_instance.to_string()).collect();
    let files = slices(options.scaled(500, 16), 512).into();
    Some(Set { studies, study, series: uid, instances, files })
}

fn cases(set: &Set) -> Vec<Case> {
    let instances = set.instances.len();
    vec![
        Case {
            title: format!("DICOMweb: searches by StudyInstanceUID in {} studies", set.studies + 1),
            unit: "searches/s",
            aim: ("QIDO-RS by UID to Orthanc", Aim::Times(10.0)),
            note: "Each for another study, with the attributes that OHIF asks for.",
            of: |_| SEARCHES,
            run: |web, set, round| {
                web.searches(set, round, |study| format!("StudyInstanceUID={}", query_study_uid(study)))
            },
        },
        Case {
            title: format!("DICOMweb: searches by PatientID in {} studies", set.studies + 1),
            unit: "searches/s",
            aim: ("QIDO-RS by patient to Orthanc", Aim::Times(10.0)),
            note: "Each for another patient, who has two studies.",
            of: |_| SEARCHES,
            run: |web, set, round| {
                web.searches(set, round, |study| format!("PatientID={}", Person::of_study(study).id()))
            },
        },
        Case {
            title: format!("DICOMweb: metadata of a series of {instances} instances"),
            unit: "series/s",
            aim: ("Metadata of a series to Orthanc", Aim::Times(5.0)),
            note: "Orthanc's SeriesMetadata is Full, so that both tell every attribute.",
            of: |_| METADATA,
            run: Web::metadata,
        },
        Case {
            title: format!("DICOMweb: all {instances} frames of a series, one a request"),
            unit: "frames/s",
            aim: ("Frames of a series to Orthanc", Aim::Times(2.0)),
            note: "512 x 512 x 16 bits, as stored.",
            of: |set| set.instances.len() as u32,
            run: Web::frames,
        },
        Case {
            title: format!("DICOMweb: to the first of {instances} images, as OHIF asks"),
            unit: "openings/s",
            aim: ("Server's share of the time to the first image, ms", Aim::Ms(150.0)),
            note: "The list, the study, its series, their metadata, and the first frame, one after the other.",
            of: |_| OPENINGS,
            run: Web::opens,
        },
        Case {
            title: "DICOMweb: a small picture of an instance".to_owned(),
            unit: "pictures/s",
            aim: ("Thumbnail to Orthanc", Aim::Times(5.0)),
            note: "Ours: the thumbnail resource, which shows the preview of the series where the instance has none. Orthanc's plugin of this version has no thumbnails: \
                   rendered, which is what viewers fall back to.",
            of: |_| PICTURES,
            run: Web::pictures,
        },
        Case {
            title: "DICOMweb: storing 500 CT slices in one request".to_owned(),
            unit: "objects/s",
            aim: ("STOW-RS to Orthanc", Aim::Times(2.0)),
            note: "Both have synced every object when they answer.",
            of: |set| set.instances.len() as u32,
            run: Web::stores,
        },
    ]
}

fn measure(options: &Options, report: &mut Report, all: &mut [Web], set: &Set, case: &Case) {
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
    let systems = all.len();
    // The first is not counted: nobody's caches are warm.
    for round in 0..=options.rounds {
        for turn in 0..systems {
            let index = (turn + round as usize) % systems;
            let web = &all[index];
            sync();
            let took = web.server.explain((case.run)(web, set, round));
            if let Some(took) = report.keep(&format!("{}, {}", web.server.name, case.title), took)
                && round > 0
            {
                rates[index].push(f64::from((case.of)(set)) / took);
            }
        }
    }
    let medians: Vec<Option<f64>> = rates.iter().map(|rates| median(rates)).collect();
    let of = |name| all.iter().zip(&medians).find(|(web, _)| web.server.name == name).and_then(|(_, rate)| *rate);
    let mut table = Table::new(case.title.clone(), &["system", case.unit, "ms each", "to Orthanc"]);
    for (web, rate) in all.iter().zip(&medians) {
        let each = rate.map(|rate| 1000.0 / rate);
        table.row(vec![web.server.name.into(), or_dash(*rate), or_dash(each), ratio(*rate, of(ORTHANC))]);
    }
    table.note(case.note);
    report.table(&table);
    match case.aim.1 {
        Aim::Times(wanted) => report.aim(case.aim.0, wanted, quotient(of(OURS), of(ORTHANC)), false),
        Aim::Ms(wanted) => report.aim(case.aim.0, wanted, of(OURS).map(|rate| 1000.0 / rate), true),
    }
}

impl Web {
    fn connect(&self) -> Outcome<Line> {
        Line::open(self.to)
    }

    fn searches(&self, set: &Set, round: u32, condition: impl Fn(u32) -> String) -> Outcome<f64> {
        let mut line = self.connect()?;
        let begun = Instant::now();
        for number in 0..SEARCHES {
            let study = (number * 7 + round * 1009) % set.studies;
            let path = format!("{}/studies?{}&includefield=00081030,00080060", self.root, condition(study));
            let found = line.get(&path, JSON)?;
            if !found.windows(8).any(|run| run == b"0020000D") {
                return Err(format!("nothing was found by {path}"));
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn metadata(&self, set: &Set, _: u32) -> Outcome<f64> {
        let mut line = self.connect()?;
        let path = format!("{}/studies/{}/series/{}/metadata", self.root, set.study, set.series);
        let begun = Instant::now();
        let mut told = Vec::new();
        for _ in 0..METADATA {
            told = line.get(&path, JSON)?;
        }
        let took = begun.elapsed().as_secs_f64();
        let told: Vec<serde_json::Value> = serde_json::from_slice(&told).map_err(|error| error.to_string())?;
        let whole = told.len() == set.instances.len() && told.iter().all(|one| one["00200032"]["Value"].is_array());
        if whole { Ok(took) } else { Err(format!("metadata of {} instances, not all whole", told.len())) }
    }

    fn instance(&self, set: &Set, instance: &str) -> String {
        format!("{}/studies/{}/series/{}/instances/{instance}", self.root, set.study, set.series)
    }

    fn frames(&self, set: &Set, _: u32) -> Outcome<f64> {
        let mut line = self.connect()?;
        let begun = Instant::now();
        for instance in &set.instances {
            let frame = line.get(&format!("{}/frames/1", self.instance(set, instance)), FRAMES)?;
            if frame.len() < 512 * 512 * 2 {
                return Err(format!("a frame of {} bytes", frame.len()));
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn opens(&self, set: &Set, _: u32) -> Outcome<f64> {
        let Set { study, series, .. } = set;
        let root = self.root;
        let mut line = self.connect()?;
        let begun = Instant::now();
        for _ in 0..OPENINGS {
            let fields = "includefield=00081030,00080060";
            line.get(&format!("{root}/studies?limit=101&offset=0&fuzzymatching=false&{fields}"), JSON)?;
            line.get(&format!("{root}/studies?limit=101&offset=0&StudyInstanceUID={study}&{fields}"), JSON)?;
            line.get(&format!("{root}/studies/{study}/series"), JSON)?;
            line.get(&format!("{root}/studies/{study}/series/{series}/metadata"), JSON)?;
            let first = set.instances.first().ok_or("no instance")?;
            let frame = line.get(&format!("{}/frames/1", self.instance(set, first)), FRAMES)?;
            if frame.len() < 512 * 512 * 2 {
                return Err(format!("a frame of {} bytes", frame.len()));
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn pictures(&self, set: &Set, round: u32) -> Outcome<f64> {
        let mut line = self.connect()?;
        let resource = if self.server.ours_if().is_some() { "thumbnail" } else { "rendered" };
        let begun = Instant::now();
        for number in 0..PICTURES {
            let instance = &set.instances[(number * 7 + round) as usize % set.instances.len()];
            let picture = line.get(&format!("{}/{resource}", self.instance(set, instance)), JPEG)?;
            if !picture.starts_with(&[0xFF, 0xD8]) {
                return Err("no JPEG".to_owned());
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn stores(&self, set: &Set, _: u32) -> Outcome<f64> {
        let mut files = set.files.lock().map_err(|error| error.to_string())?;
        deal(&mut files, 1);
        let mut body = Vec::new();
        for Object { sop_class, sop_instance, bytes, .. } in files.iter() {
            let transfer_syntax = *TransferSyntax::EXPLICIT_VR_LE.uid();
            let meta = FileMeta { sop_class: *sop_class, sop_instance: *sop_instance, transfer_syntax }.encode();
            body.extend_from_slice(format!("--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n").as_bytes());
            body.extend_from_slice(&meta);
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        // Ours takes no uploads from anybody: it has a token, and Orthanc looks at none.
        let kind = format!("multipart/related; type=\"application/dicom\"; boundary={BOUNDARY}");
        let mut line = self.connect()?;
        let token = self.token()?;
        let begun = Instant::now();
        let outcome = line.post(&format!("{}/studies", self.root), &kind, &token, &body)?;
        let took = begun.elapsed().as_secs_f64();
        let outcome: serde_json::Value = serde_json::from_slice(&outcome).map_err(|error| error.to_string())?;
        let stored = outcome["00081199"]["Value"].as_array().map_or(0, Vec::len);
        if stored == files.len() { Ok(took) } else { Err(format!("{stored} of {} were stored", files.len())) }
    }

    fn token(&self) -> Outcome<String> {
        match self.server.ours_if() {
            Some(bridge) => {
                let made = bridge.json(&["token", "new", "--name", "bench", "--as", "operator"]);
                made["token"].as_str().map(str::to_owned).ok_or_else(|| "no token".to_owned())
            }
            None => Ok(String::new()),
        }
    }
}

/// A connection that stays open.
struct Line {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Line {
    fn open(to: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(to).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(PATIENCE))).map_err(|e| e.to_string())?;
        Ok(Self { stream: BufReader::with_capacity(1 << 20, stream), host: to })
    }

    fn get(&mut self, path: &str, accept: &str) -> Outcome<Vec<u8>> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: {accept}\r\n\r\n", self.host);
        self.converse(&[head.as_bytes()]).map_err(|error| format!("{path}: {error}"))
    }

    fn post(&mut self, path: &str, kind: &str, token: &str, body: &[u8]) -> Outcome<Vec<u8>> {
        let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAccept: {JSON}\r\n{bearer}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.converse(&[head.as_bytes(), body]).map_err(|error| format!("{path}: {error}"))
    }

    fn converse(&mut self, request: &[&[u8]]) -> Outcome<Vec<u8>> {
        let io = |error: std::io::Error| error.to_string();
        for part in request {
            self.stream.get_mut().write_all(part).map_err(io)?;
        }
        let (status, headers) = tests::http::read_head(&mut self.stream).ok_or("no answer")?;
        let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let mut body = Vec::new();
        match header("content-length").and_then(|length| length.parse::<u64>().ok()) {
            Some(length) => drop(self.stream.by_ref().take(length).read_to_end(&mut body).map_err(io)?),
            None if header("transfer-encoding") == Some("chunked") => self.chunks(&mut body).map_err(io)?,
            None => return Err("an answer without a length".to_owned()),
        }
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(format!("status {status}: {}", String::from_utf8_lossy(&body[..body.len().min(200)])))
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            self.stream.by_ref().take(length).read_to_end(body)?;
            self.stream.read_exact(&mut [0; 2])?;
            if length == 0 {
                return Ok(());
            }
        }
    }
}

/// What was measured, in words.
pub(crate) fn settings() -> Vec<String> {
    let figure = figure(f64::from(SEARCHES));
    vec![format!(
        "{ORTHANC} with its DICOMweb plugin (Debian's), its HTTP server on with KeepAlive and TcpNoDelay, its metadata Full, everything else as for the other tables; \
         {OURS} with its defaults. One connection that stays open, one request after the other; {figure} searches a round; the first round is not counted"
    )]
}
