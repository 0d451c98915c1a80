//! C-STORE of CT slices at 1, 4 and 16 associations, beside a bare loop that writes and syncs the same bytes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::machine::{PeakWatch, cpu_ms, peak_bytes, reset_peak, sync};
use crate::objects::{Object, deal, slices};
use crate::report::{Report, Table, figure, median, megabytes_per_second, or_dash, quotient, ratio};
use crate::servers::{ORTHANC, OURS, STORESCP, Server};
use crate::{Options, Outcome, client};

const ASSOCIATIONS: [usize; 3] = [1, 4, 16];
const LOOP: &str = "bare loop";
const PUBLISHING: &str = "PACS Bridge, while publishing";

/// Figures of one system at one number of associations, a value a round.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    megabytes: Vec<f64>,
    cpu: Vec<f64>,
}

type All = BTreeMap<(&'static str, usize), Figures>;

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let mut objects = Arc::new(slices(options.scaled(500, 32), 512));
    let bytes = total(&objects);
    let mut servers = vec![Server::ours("enabled = false", &[])];
    servers.extend(Server::orthanc(&[]));
    servers.extend(Server::storescp());
    // Starting has a peak of its own, which must not hide what storing takes.
    let starts: Vec<u64> = servers.iter().map(|server| peak_bytes(server.pid())).collect();
    let reset = servers.iter().all(|server| reset_peak(server.pid()));
    let watches: Vec<PeakWatch> = servers.iter().map(|server| PeakWatch::start(server.pid())).collect();

    let mut all = All::new();
    for round in 0..options.rounds as usize {
        for associations in ASSOCIATIONS {
            // Whoever was first in the last round is last in this one.
            for turn in 0..=servers.len() {
                let turn = (turn + round) % (servers.len() + 1);
                deal(Arc::get_mut(&mut objects).unwrap(), associations);
                sync();
                let Some(server) = servers.get(turn) else {
                    let took = write_and_sync(&objects, associations);
                    note(&mut all, LOOP, associations, objects.len(), bytes, took, None);
                    continue;
                };
                let before = cpu_ms(server.pid());
                let stored = runtime.block_on(client::store(&server.target, &objects, associations));
                let cpu = cpu_ms(server.pid()) - before;
                let who = format!("{}, C-STORE over {associations} associations", server.name);
                if let Some(took) = report.keep(&who, server.explain(stored)) {
                    note(&mut all, server.name, associations, objects.len(), bytes, took, Some(cpu));
                }
                server.forget_received();
            }
        }
    }
    let mut memory = Table::new("C-STORE: peak memory of the server", &["system", "starting MB", "storing MB"]);
    for ((server, start), watch) in servers.iter().zip(starts).zip(&watches) {
        let mb = |bytes: u64| figure(bytes as f64 / 1e6);
        memory.row(vec![server.name.into(), mb(start), mb(watch.bytes())]);
    }
    memory.note(
        "VmHWM over all rounds and association counts; storescp: the sum over its processes that lived at the same time.",
    );
    if !reset {
        memory.note("This kernel does not let a peak begin anew, so storing includes starting.");
    }
    drop((watches, servers));
    while_publishing(runtime, report, &mut objects, &mut all);

    for associations in ASSOCIATIONS {
        table(report, &all, associations, objects.len(), bytes);
    }
    report.table(&memory);
    sustained(options, runtime, report);
    for associations in ASSOCIATIONS {
        let rate = |name| all.get(&(name, associations)).and_then(|figures: &Figures| median(&figures.rates));
        let s = if associations == 1 { "" } else { "s" };
        let to_orthanc = quotient(rate(OURS), rate(ORTHANC));
        report.aim(&format!("C-STORE to Orthanc, {associations} association{s}"), 2.0, to_orthanc, false);
        let to_loop = quotient(rate(OURS), rate(LOOP));
        report.aim(&format!("C-STORE to the bare loop, {associations} association{s}"), 0.8, to_loop, false);
    }
}

fn total(objects: &[Object]) -> u64 {
    objects.iter().map(|object| object.bytes.len() as u64).sum()
}

fn note(
    all: &mut All,
    name: &'static str,
    associations: usize,
    objects: usize,
    bytes: u64,
    took: Duration,
    cpu: Option<f64>,
) {
    let figures = all.entry((name, associations)).or_default();
    figures.rates.push(objects as f64 / took.as_secs_f64());
    figures.megabytes.push(megabytes_per_second(bytes, took));
    figures.cpu.extend(cpu.map(|cpu| cpu / objects as f64));
}

/// The bound: as many writers, each creating, writing and syncing one file an object, and nothing else.
fn write_and_sync(objects: &[Object], writers: usize) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let size = objects.len().div_ceil(writers);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (writer, part) in objects.chunks(size).enumerate() {
            let dir = dir.path();
            scope.spawn(move || {
                for (i, object) in part.iter().enumerate() {
                    let mut file = std::fs::File::create_new(dir.join(format!("{writer}-{i}"))).unwrap();
                    file.write_all(&object.bytes).unwrap();
                    file.sync_all().unwrap();
                }
            });
        }
    });
    begun.elapsed()
}

/// Once: what comes in while what came before is on its way to the ledger.
fn while_publishing(runtime: &Runtime, report: &mut Report, objects: &mut Arc<Vec<Object>>, all: &mut All) {
    let bytes = total(objects);
    let mut server = Server::ours("settle_ms = 200", &[]);
    let mut store = |associations: usize| -> Outcome<Duration> {
        deal(Arc::get_mut(objects).unwrap(), associations);
        runtime.block_on(client::store(&server.target, objects, associations))
    };
    let mut results = vec![(0, store(4))];
    // The quiet time, and the publisher's start.
    std::thread::sleep(Duration::from_secs(1));
    results.extend(ASSOCIATIONS.map(|associations| (associations, store(associations))));
    let rows = server.bridge().json(&["studies"]);
    let done = rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "final"));
    for (associations, result) in results {
        let who = format!("{PUBLISHING}, C-STORE over {associations} associations");
        let Some(took) = report.keep(&who, server.explain(result)) else { continue };
        if associations > 0 && !done {
            note(all, PUBLISHING, associations, objects.len(), bytes, took, None);
        }
    }
    if done {
        report.failure(format!(
            "{PUBLISHING}: everything was on the ledger before the last object came; nothing to show"
        ));
    }
}

/// More than any log or cache in front of the files takes up, at one go.
fn sustained(options: &Options, runtime: &Runtime, report: &mut Report) {
    const WRITERS: usize = 4;
    let mut objects = Arc::new(slices(options.scaled(4000, 64), 512));
    deal(Arc::get_mut(&mut objects).unwrap(), WRITERS);
    let (count, bytes) = (objects.len(), total(&objects));
    let mut rates = Vec::new();
    for server in [Some(Server::ours("enabled = false", &[])), Server::orthanc(&[])].into_iter().flatten() {
        sync();
        let stored = runtime.block_on(client::store(&server.target, &objects, WRITERS));
        let took = report.keep(&format!("{}, sustained C-STORE", server.name), server.explain(stored));
        rates.extend(took.map(|took| (server.name, took)));
    }
    sync();
    rates.push((LOOP, write_and_sync(&objects, WRITERS)));
    let title = format!(
        "C-STORE, sustained: {count} CT slices, {} MB, over {WRITERS} associations",
        figure(bytes as f64 / 1e6)
    );
    let mut table = Table::new(title, &["system", "objects/s", "MB/s", "to Orthanc", "to the bare loop"]);
    let per_second = |took: Duration| count as f64 / took.as_secs_f64();
    let rate = |name: &str| rates.iter().find(|(known, _)| *known == name).map(|(_, took)| per_second(*took));
    for (name, took) in &rates {
        table.row(vec![
            (*name).into(),
            figure(per_second(*took)),
            figure(megabytes_per_second(bytes, *took)),
            ratio(rate(name), rate(ORTHANC)),
            ratio(rate(name), rate(LOOP)),
        ]);
    }
    table.note(
        "Four times the intake log, once: behind it every object is written a second time, into its file, while the next arrive.",
    );
    report.table(&table);
}

fn table(report: &mut Report, all: &All, associations: usize, objects: usize, bytes: u64) {
    let s = if associations == 1 { "" } else { "s" };
    let title =
        format!("C-STORE: {objects} CT slices, {} MB, over {associations} association{s}", figure(bytes as f64 / 1e6));
    let heads =
        ["system", "objects/s", "MB/s", "server CPU ms/object", "to Orthanc", "to storescp", "to the bare loop"];
    let mut table = Table::new(title, &heads);
    let rate = |name| all.get(&(name, associations)).and_then(|figures| median(&figures.rates));
    for name in [OURS, PUBLISHING, ORTHANC, STORESCP, LOOP] {
        let Some(figures) = all.get(&(name, associations)) else { continue };
        table.row(vec![
            name.into(),
            or_dash(median(&figures.rates)),
            or_dash(median(&figures.megabytes)),
            or_dash(median(&figures.cpu)),
            ratio(rate(name), rate(ORTHANC)),
            ratio(rate(name), rate(STORESCP)),
            ratio(rate(name), rate(LOOP)),
        ]);
    }
    table.note(format!(
        "The bare loop is the bound: {associations} thread{s} creating, writing and syncing one file an object. storescp syncs \
         nothing. \"While publishing\" was measured once, with earlier studies on their way to the embedded ledger."
    ));
    report.table(&table);
}
