//! C-GET and C-MOVE of a CT study, from local files and from the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::machine::sync;
use crate::objects::{deal, slices, study_uid};
use crate::report::{Report, Table, figure, median, or_dash, quotient, ratio};
use crate::servers::{KEEPER, ORTHANC, OURS, SINK, STORESCP, Server};
use crate::sink::Sink;
use crate::{Options, Outcome, client, ledger};

const FROM_LEDGER: &str = "PACS Bridge, from the ledger";
const RESTARTED: &str = "PACS Bridge, after a restart";

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Get,
    MoveTo(&'static str),
}

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let mut objects = Arc::new(slices(options.scaled(500, 32), 512));
    let numbers = deal(Arc::get_mut(&mut objects).unwrap(), 1);
    let uid = study_uid(numbers[0]);
    let bytes: u64 = objects.iter().map(|object| object.bytes.len() as u64).sum();
    let (count, class) = (objects.len() as u64, objects[0].sop_class);

    let (keeper, sink) = (Server::storescp(), Sink::start(runtime));
    let mut destinations = vec![(SINK, sink.address)];
    destinations.extend(keeper.as_ref().map(|keeper| (KEEPER, keeper.target.address)));
    let mut servers = vec![Server::ours("settle_ms = 500", &destinations)];
    servers.extend(Server::orthanc(&destinations));
    for server in &servers {
        let stored = runtime.block_on(client::store(&server.target, &objects, 1));
        report.keep(&format!("{}, C-STORE", server.name), server.explain(stored));
    }
    drop(objects);
    // Nothing goes on in the background any more when retrieving is measured.
    let published = ledger::wait_final(servers[0].bridge());
    report.keep(&format!("{OURS}, publishing"), servers[0].explain(published));

    let retrieve = |server: &Server, how: How| -> Option<Outcome<Duration>> {
        sync();
        let outcome = match how {
            How::Get => runtime.block_on(client::get(&server.target, &uid, class, count, bytes)),
            How::MoveTo(KEEPER) => {
                let keeper = keeper.as_ref()?;
                let moved = runtime.block_on(client::r#move(&server.target, &uid, KEEPER, count));
                keeper.forget_received();
                moved
            }
            How::MoveTo(destination) => {
                sink.take_bytes();
                let moved = runtime.block_on(client::r#move(&server.target, &uid, destination, count));
                let came = sink.take_bytes();
                moved.and_then(|took| match came.abs_diff(bytes) < 4096 * count {
                    true => Ok(took),
                    false => Err(format!("{came} bytes came where {bytes} were stored")),
                })
            }
        };
        Some(server.explain(outcome))
    };
    for (how, operation) in
        [(How::Get, "C-GET"), (How::MoveTo(SINK), "C-MOVE to a sink"), (How::MoveTo(KEEPER), "C-MOVE to storescp")]
    {
        let mut rates = vec![(OURS, Vec::new()), (ORTHANC, Vec::new()), (FROM_LEDGER, Vec::new())];
        if how == How::Get {
            rates.push((RESTARTED, Vec::new()));
        }
        let systems = rates.len();
        for round in 0..options.rounds as usize {
            for turn in 0..systems {
                let (name, rates) = &mut rates[(turn + round) % systems];
                let of = if *name == ORTHANC { ORTHANC } else { OURS };
                let Some(server) = servers.iter_mut().find(|server| server.name == of) else { continue };
                match *name {
                    FROM_LEDGER => drop(server.bridge().json(&["evict", &uid])),
                    RESTARTED => server.restart(),
                    _ => {}
                }
                let Some(outcome) = retrieve(server, how) else { continue };
                if let Some(took) = report.keep(&format!("{name}, {operation}"), outcome) {
                    rates.push(count as f64 / took.as_secs_f64());
                }
            }
        }
        let title = format!("{operation}: a study of {count} CT slices, {} MB", figure(bytes as f64 / 1e6));
        let mut table = Table::new(title, &["system", "objects/s", "MB/s", "to Orthanc"]);
        let medians: Vec<_> = rates.into_iter().map(|(name, rates)| (name, median(&rates))).collect();
        for (name, rate) in &medians {
            let megabytes = rate.map(|rate| rate * bytes as f64 / 1e6 / count as f64);
            table.row(vec![(*name).into(), or_dash(*rate), or_dash(megabytes), ratio(*rate, medians[1].1)]);
        }
        table.note(match how {
            How::Get => format!(
                "To our SCU, which counts the bytes and throws them away. Local files come from the page cache. {OURS} \
                 compares every object before it sends it: with its SHA-256 once after a start, with a CRC-32 afterwards."
            ),
            How::MoveTo(KEEPER) => {
                format!("To DCMTK's {STORESCP}, which writes files and syncs nothing; it bounds all of them.")
            }
            How::MoveTo(_) => "To a receiver inside the bench process, which counts the bytes and throws them away.".into(),
        });
        report.table(&table);
        match how {
            How::Get => report.aim("C-GET to Orthanc", 2.0, quotient(medians[0].1, medians[1].1), false),
            How::MoveTo(SINK) => {
                report.aim("C-MOVE to Orthanc, to a sink", 2.0, quotient(medians[0].1, medians[1].1), false);
            }
            How::MoveTo(_) => {}
        }
    }
}
