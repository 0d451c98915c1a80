//! C-GET and C-MOVE of a CT study, from local files and from the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::machine::sync;
use crate::objects::{deal, slices, study_uid};
use crate::report::{Report, Table, figure, median, or_dash, quotient, ratio};
use crate::servers::{KEEPER, ORTHANC, OURS, STORESCP, Server};
use crate::{Options, Outcome, client, ledger};

const FROM_LEDGER: &str = "PACS Bridge, from the ledger";

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Get,
    Move,
}

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let mut objects = Arc::new(slices(options.scaled(500, 32), 512));
    let numbers = deal(Arc::get_mut(&mut objects).unwrap(), 1);
    let uid = study_uid(numbers[0]);
    let bytes: u64 = objects.iter().map(|object| object.bytes.len() as u64).sum();
    let (count, class) = (objects.len() as u64, objects[0].sop_class);

    let keeper = Server::storescp();
    let mut servers = vec![Server::ours("settle_ms = 500", keeper.as_ref())];
    servers.extend(Server::orthanc(keeper.as_ref()));
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
        Some(server.explain(match (how, &keeper) {
            (How::Get, _) => runtime.block_on(client::get(&server.target, &uid, class, count, bytes)),
            (How::Move, None) => return None,
            (How::Move, Some(keeper)) => {
                let moved = runtime.block_on(client::r#move(&server.target, &uid, KEEPER, count));
                keeper.forget_received();
                moved
            }
        }))
    };
    for (how, operation) in [(How::Get, "C-GET"), (How::Move, "C-MOVE")] {
        let mut rates = [(OURS, Vec::new()), (ORTHANC, Vec::new()), (FROM_LEDGER, Vec::new())];
        for round in 0..options.rounds as usize {
            for turn in 0..rates.len() {
                let (name, rates) = &mut rates[(turn + round) % 3];
                let of = if *name == FROM_LEDGER { OURS } else { *name };
                let Some(server) = servers.iter_mut().find(|server| server.name == of) else { continue };
                if *name == FROM_LEDGER {
                    server.bridge().json(&["evict", &uid]);
                }
                let Some(outcome) = retrieve(server, how) else { continue };
                if let Some(took) = report.keep(&format!("{name}, {operation}"), outcome) {
                    rates.push(count as f64 / took.as_secs_f64());
                }
            }
        }
        let title = format!("{operation}: a study of {count} CT slices, {} MB", figure(bytes as f64 / 1e6));
        let mut table = Table::new(title, &["system", "objects/s", "MB/s", "to Orthanc"]);
        let medians = rates.map(|(name, rates)| (name, median(&rates)));
        for (name, rate) in medians {
            let megabytes = rate.map(|rate| rate * bytes as f64 / 1e6 / count as f64);
            table.row(vec![name.into(), or_dash(rate), or_dash(megabytes), ratio(rate, medians[1].1)]);
        }
        table.note(match how {
            How::Get => {
                "To our SCU, which counts the bytes and throws them away. Local files come from the page cache.".into()
            }
            How::Move => format!("To DCMTK's {STORESCP}, which writes files and syncs nothing; it bounds all of them."),
        });
        report.table(&table);
        if how == How::Get {
            report.aim("C-GET to Orthanc", 2.0, quotient(medians[0].1, medians[1].1), false);
        }
    }
}
