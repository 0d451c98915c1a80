//! Latency of study-level C-FIND, beside Orthanc with the same studies, alone with a million, and with studies that other sites granted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dicom_scp::dataset::{DataSet, Encoding, Tag, VR};
use dicom_scp::scu::Proposal;
use dicom_scp::sop_class;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::{Connection, params};
use tokio::runtime::Runtime;

use crate::machine::peak_bytes;
use crate::objects::{Person, query_study_uid, subject, tiny};
use crate::report::{Report, Table, figure, median, quantile, quotient, ratio};
use crate::servers::{ORTHANC, OURS, Server};
use crate::{Options, Outcome, client};

/// A kind of query: what it asks for and how many studies answer it.
struct Kind {
    name: &'static str,
    matches: usize,
    /// Queries a round; the last kind reads the whole index and is slow by nature.
    repeats: usize,
    identifier: fn(u32) -> DataSet,
}

const PATIENT_NAME: Tag = Tag(0x0010, 0x0010);

const KINDS: [Kind; 4] = [
    Kind {
        name: "StudyInstanceUID",
        matches: 1,
        repeats: 100,
        identifier: |study| client::study_query(Tag(0x0020, 0x000D), VR::UI, &query_study_uid(study)),
    },
    Kind {
        name: "PatientID",
        matches: 2,
        repeats: 100,
        identifier: |study| client::study_query(Tag(0x0010, 0x0020), VR::LO, &Person::of_study(study).id()),
    },
    Kind {
        name: "PatientName FAMILY01234*",
        matches: 20,
        repeats: 50,
        identifier: |study| client::study_query(PATIENT_NAME, VR::PN, &Person::of_study(study).name_prefix()),
    },
    Kind {
        name: "PatientName *MILY012345^*",
        matches: 2,
        repeats: 2,
        identifier: |study| client::study_query(PATIENT_NAME, VR::PN, &Person::of_study(study).name_inside()),
    },
];

/// Latencies in milliseconds, by kind.
type Samples = [Vec<f64>; KINDS.len()];

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    // Whole tens of patients, so that every prefix has all its matches.
    let studies = options.scaled(100, 1) * 20;
    let ours_small = beside_orthanc(options, runtime, report, studies);
    let many = options.scaled(50_000, 50) * 20;
    at_scale(options, runtime, report, many, &ours_small);
    granted(options, runtime, report, options.scaled(5_000, 50) * 20);
}

fn beside_orthanc(options: &Options, runtime: &Runtime, report: &mut Report, studies: u32) -> [Samples; 2] {
    const INSTANCES: u32 = 10;
    let mut servers = vec![Server::ours("enabled = false", &[])];
    servers.extend(Server::orthanc(&[]));
    let objects = Arc::new((0..studies).flat_map(|study| tiny(study, INSTANCES)).collect::<Vec<_>>());
    let mut loads = Vec::new();
    for server in &servers {
        eprintln!("(loading {} objects into {})", objects.len(), server.name);
        let stored = runtime.block_on(client::store(&server.target, &objects, 8));
        if let Some(took) = report.keep(&format!("{}, loading", server.name), server.explain(stored)) {
            loads.push(format!("{} {:.0}/s", server.name, objects.len() as f64 / took.as_secs_f64()));
        }
    }
    eprintln!("(asking)");
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..options.rounds as usize {
        for turn in 0..servers.len() {
            let which = (turn + round) % servers.len();
            let server = &servers[which];
            let found = runtime.block_on(ask(server, studies, round as u64, &mut samples[which]));
            report.keep(&format!("{}, C-FIND", server.name), server.explain(found));
        }
    }
    let title = format!("C-FIND at study level: {} objects in {studies} studies", objects.len());
    let mut table = latencies(title);
    for (i, kind) in KINDS.iter().enumerate() {
        for (which, name) in [OURS, ORTHANC].into_iter().enumerate() {
            line(&mut table, kind, name, &samples[which][i], &samples[1][i]);
        }
    }
    table.note(
        "Over one association, random studies, from the request to the final response. Only attributes that both keep in \
         their index are asked for. The last kind begins with a wildcard, which no index helps with.",
    );
    table.note(format!("Loading, for the record: {}, tiny objects over 8 associations.", loads.join(", ")));
    report.table(&table);
    for i in 0..2 {
        let faster = quotient(median(&samples[1][i]), median(&samples[0][i]));
        report.aim(&format!("C-FIND by {} to Orthanc", KINDS[i].name), 10.0, faster, false);
    }
    samples
}

fn at_scale(options: &Options, runtime: &Runtime, report: &mut Report, studies: u32, small: &[Samples; 2]) {
    let (mut ours, filled, started) = with_index(studies, Origin::Received);
    let index = ours.bridge().dir.path().join("data/archive/index.sqlite");
    eprintln!("(asking)");
    let mut samples = Samples::default();
    for round in 0..options.rounds {
        let found = runtime.block_on(ask(&ours, studies, u64::from(round), &mut samples));
        report.keep(&format!("{OURS}, C-FIND with {studies} studies"), ours.explain(found));
    }
    let mut table = latencies(format!("C-FIND at study level with {studies} studies in the index"));
    for (i, kind) in KINDS.iter().enumerate() {
        line(&mut table, kind, OURS, &samples[i], &small[1][i]);
    }
    let bytes = std::fs::metadata(&index).map_or(0, |meta| meta.len());
    table.note(format!(
        "The index is synthetic: {studies} studies of one series and one object each, written by SQL in {:.0} s straight into \
         the archive's own schema ({} MB); there are no files behind it. The server was ready {:.1} s after its start and \
         peaked at {} MB.",
        filled.as_secs_f64(),
        figure(bytes as f64 / 1e6),
        started.as_secs_f64(),
        figure(peak_bytes(ours.pid()) as f64 / 1e6)
    ));
    table.note(
        "Orthanc was not filled to that size: it would have to take every object by C-STORE, which takes the better part of an \
         hour, and writing its private tables directly would measure our guess of them. The ratio is to Orthanc with the small \
         set above, which favours it.",
    );
    report.table(&table);
    for i in 0..2 {
        let faster = quotient(median(&small[1][i]), median(&samples[i]));
        report.aim(
            &format!("C-FIND by {} with {studies} studies to Orthanc with few", KINDS[i].name),
            10.0,
            faster,
            false,
        );
    }
}

/// Where the studies of a synthetic index came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Received,
    Granted,
}

/// A site with a synthetic index, how long writing that took, and how long the site's start.
fn with_index(studies: u32, origin: Origin) -> (Server, Duration, Duration) {
    // Cut off from its ledger a site shows what it knows; with one it would find that nobody granted these.
    let cut_off = "enabled = false\n[ledger]\nkind = \"rpc\"\nurl = \"http://127.0.0.1:1\"\n\
                   admin = \"0x1111111111111111111111111111111111111111\"\ndeploy = false";
    let publish = if origin == Origin::Granted { cut_off } else { "enabled = false" };
    let mut ours = Server::ours(publish, &[]);
    assert!(ours.bridge().terminate().success(), "the empty site did not end in order");
    let index = ours.bridge().dir.path().join("data/archive/index.sqlite");
    eprintln!("(writing an index of {studies} studies)");
    let begun = Instant::now();
    fill(&index, studies, origin).unwrap();
    let filled = begun.elapsed();
    let begun = Instant::now();
    ours.bridge().run();
    let started = begun.elapsed();
    ours.target.address = ours.bridge().dicom;
    (ours, filled, started)
}

/// A site with as many studies that others granted as another has received: the one must answer as fast as the other.
fn granted(options: &Options, runtime: &Runtime, report: &mut Report, studies: u32) {
    let servers = [Origin::Received, Origin::Granted].map(|origin| with_index(studies, origin).0);
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..options.rounds as usize {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let found = runtime.block_on(ask(&servers[which], studies, round as u64, &mut samples[which]));
            report.keep(&format!("{OURS}, C-FIND with granted studies"), servers[which].explain(found));
        }
    }
    let heads = ["query", "matches", "received: median ms", "p99 ms", "granted: median ms", "p99 ms", "to received"];
    let mut table =
        Table::new(format!("C-FIND at study level: {studies} studies received, and as many granted by others"), &heads);
    for (i, kind) in KINDS.iter().enumerate() {
        let [received, granted] = [&samples[0][i], &samples[1][i]];
        let value = |samples: &[f64], part| quantile(samples, part).map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
        table.row(vec![
            kind.name.into(),
            kind.matches.to_string(),
            value(received, 0.5),
            value(received, 0.99),
            value(granted, 0.5),
            value(granted, 0.99),
            ratio(median(received), median(granted)),
        ]);
    }
    table.note("Both indexes are synthetic, as above. The site with granted studies is cut off from its ledger, and shows what it knows.");
    report.table(&table);
    let slower = quotient(median(&samples[1][0]), median(&samples[0][0]));
    report.aim(
        &format!("C-FIND by UID with {studies} granted studies, time to that with as many received"),
        1.5,
        slower,
        true,
    );
}

fn latencies(title: String) -> Table {
    Table::new(title, &["query", "matches", "system", "median ms", "p99 ms", "queries", "to Orthanc"])
}

fn line(table: &mut Table, kind: &Kind, name: &str, samples: &[f64], orthanc: &[f64]) {
    let value = |part| quantile(samples, part).map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
    table.row(vec![
        kind.name.into(),
        kind.matches.to_string(),
        name.into(),
        value(0.5),
        value(0.99),
        samples.len().to_string(),
        // Latencies: the smaller the better.
        ratio(median(orthanc), median(samples)),
    ]);
}

/// One round of all kinds over one association.
async fn ask(server: &Server, studies: u32, round: u64, samples: &mut Samples) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(round);
    let mut association = client::connect(&server.target, &[Proposal::plain(sop_class::STUDY_ROOT_FIND)]).await?;
    for (kind, samples) in KINDS.iter().zip(samples) {
        // The first one warms caches and prepared statements up and does not count.
        for repeat in 0..=kind.repeats {
            let identifier = (kind.identifier)(random.gen_range(0..studies));
            let (found, took) = client::find(&mut association, &identifier).await?;
            if found != kind.matches {
                return Err(format!("a query by {} found {found} studies instead of {}", kind.name, kind.matches));
            }
            if repeat > 0 {
                samples.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    association.release().await.map_err(|e| e.to_string())
}

/// Writes studies into the index of a stopped site, with the rows that receiving them would have written.
fn fill(index: &Path, studies: u32, origin: Origin) -> rusqlite::Result<()> {
    let mut db = Connection::open(index)?;
    // Nobody else has the file open, and nothing is lost if this is cut short.
    db.pragma_update(None, "journal_mode", "OFF")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.pragma_update(None, "cache_size", -256_000)?;
    let tx = db.transaction()?;
    let class = "1.2.840.10008.5.1.4.1.1.2";
    {
        let mut study_row = tx.prepare(
            "INSERT INTO study (id, uid, patient_id, patient_issuer, birth_date, study_date, accession, study_number,
               attributes, instances, bytes, received_ms, changed_ms, origin)
             VALUES (?1, ?2, ?3, '', 19700101, ?4, ?5, '1', ?6, 1, 525000, 0, 0, ?7)",
        )?;
        let mut name_row = tx.prepare("INSERT INTO patient_name (folded, study) VALUES (?1, ?2)")?;
        let mut series_row = tx.prepare(
            "INSERT INTO series (id, study, uid, modality, attributes, instances) VALUES (?1, ?1, ?2, 'CT', ?3, 1)",
        )?;
        let mut instance_row = tx.prepare(
            "INSERT INTO instance (id, series, uid, sop_class, transfer_syntax, number, attributes, meta_bytes, file_bytes,
               file_sha256, received_ms, calling_ae, shard, file, origin)
             VALUES (?1, abs(?1), ?2, ?3, '1.2.840.10008.1.2.1', 1, ?4, 400, 525000, zeroblob(32), 0, 'BENCH', 0, ?5, ?6)",
        )?;
        let mut grant_row = tx.prepare(
            "INSERT INTO foreign_study (id, study_id, source, mode, hidden, not_before, not_after, version)
             VALUES (?1, ?2, zeroblob(20), 2, 0, 0, 9223372036854775807, 1)",
        )?;
        for study in 0..studies {
            let subject = subject(study);
            let uid = &subject.study_uid;
            let id = i64::from(study) + 1;
            let date: i64 = subject.study_date.parse().unwrap_or(0);
            let attributes = study_attributes(&subject);
            let granted = origin == Origin::Granted;
            let (from, row) = if granted { (id, -id) } else { (0, id) };
            if granted {
                grant_row.execute(params![id, format!("{study:032}").as_bytes()])?;
            }
            study_row.execute(params![id, uid, subject.patient_id, date, subject.accession, attributes, from])?;
            name_row.execute(params![subject.patient_name.to_lowercase(), id])?;
            series_row.execute(params![id, format!("{uid}.1"), series_attributes(uid)])?;
            instance_row.execute(params![
                row,
                format!("{uid}.1.1"),
                class,
                [0_u8; 0],
                format!("{study:024x}"),
                from
            ])?;
        }
    }
    tx.commit()
}

fn study_attributes(subject: &bridge::demo::phantom::Subject) -> Vec<u8> {
    let mut set = DataSet::default();
    for (tag, vr, text) in [
        (Tag(0x0008, 0x0005), VR::CS, "ISO_IR 192"),
        (Tag(0x0008, 0x0020), VR::DA, subject.study_date.as_str()),
        (Tag(0x0008, 0x0030), VR::TM, "101500"),
        (Tag(0x0008, 0x0050), VR::SH, &subject.accession),
        (Tag(0x0008, 0x0090), VR::PN, ""),
        (Tag(0x0008, 0x1030), VR::LO, &subject.description),
        (PATIENT_NAME, VR::PN, &subject.patient_name),
        (Tag(0x0010, 0x0020), VR::LO, &subject.patient_id),
        (Tag(0x0010, 0x0030), VR::DA, "19700101"),
        (Tag(0x0010, 0x0040), VR::CS, "O"),
        (Tag(0x0020, 0x000D), VR::UI, &subject.study_uid),
        (Tag(0x0020, 0x0010), VR::SH, "1"),
    ] {
        set.put_text(tag, vr, text);
    }
    set.write(Encoding::ExplicitLe)
}

fn series_attributes(study_uid: &str) -> Vec<u8> {
    let mut set = DataSet::default();
    set.put_text(Tag(0x0008, 0x0060), VR::CS, "CT");
    set.put_text(Tag(0x0020, 0x000E), VR::UI, &format!("{study_uid}.1"));
    set.write(Encoding::ExplicitLe)
}
