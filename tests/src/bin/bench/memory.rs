//! Peak memory while one very large object goes in, onto the ledger and out again.

use tokio::runtime::Runtime;

use crate::machine::{peak_bytes, reset_peak, sync};
use crate::objects::{MultiFrame, fresh_number, study_uid};
use crate::report::{Report, Table, figure, megabytes_per_second, or_dash};
use crate::servers::{ORTHANC, OURS, Server};
use crate::{Options, client, ledger};

/// Bytes below which our server is meant to stay, whatever the object's size.
const AIM_MB: f64 = 100.0;

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let number = fresh_number();
    let object = MultiFrame::new(number, options.scaled(1000, 10));
    let uid = study_uid(number);
    let uids = (object.sop_class, object.sop_instance);
    let title =
        format!("One multi-frame object of {} MB: peak memory of the server", figure(object.bytes as f64 / 1e6));
    let mut table = Table::new(title, &["system", "while", "peak MB", "MB/s"]);

    let mut worst = 0.0_f64;
    // Every line begins a new peak, so that none hides behind an earlier one.
    let mut resettable = true;
    let mut line = |system: &str, what: &str, pid: u32, rate: Option<f64>| {
        let peak = peak_bytes(pid) as f64 / 1e6;
        table.row(vec![system.into(), what.into(), figure(peak), or_dash(rate)]);
        resettable &= reset_peak(pid);
        peak
    };

    // Publishing begins when storing is over and was measured.
    let mut ours = Server::ours("settle_ms = 3000", &[]);
    let start = line(OURS, "starting", ours.pid(), None);
    sync();
    let stored = runtime.block_on(client::store_stream(&ours.target, uids, object.bytes, &mut object.reader()));
    if let Some(took) = report.keep(&format!("{OURS}, C-STORE"), ours.explain(stored)) {
        worst = worst.max(line(OURS, "storing", ours.pid(), Some(megabytes_per_second(object.bytes, took))));
        let published = ledger::wait_final(ours.bridge());
        if let Some(row) = report.keep(&format!("{OURS}, publishing"), ours.explain(published)) {
            worst = worst.max(line(OURS, "publishing", ours.pid(), Some(row.megabytes_per_second())));
            ours.bridge().json(&["evict", &uid]);
            let got = runtime.block_on(client::get(&ours.target, &uid, object.sop_class, 1, object.bytes));
            if let Some(took) = report.keep(&format!("{OURS}, C-GET from the ledger"), ours.explain(got)) {
                let rate = megabytes_per_second(object.bytes, took);
                worst = worst.max(line(OURS, "retrieving from the ledger", ours.pid(), Some(rate)));
            }
        }
    }
    drop(ours);
    if let Some(orthanc) = Server::orthanc(&[]) {
        line(ORTHANC, "starting", orthanc.pid(), None);
        sync();
        let stored = runtime.block_on(client::store_stream(&orthanc.target, uids, object.bytes, &mut object.reader()));
        if let Some(took) = report.keep(&format!("{ORTHANC}, C-STORE"), orthanc.explain(stored)) {
            line(ORTHANC, "storing", orthanc.pid(), Some(megabytes_per_second(object.bytes, took)));
            let got = runtime.block_on(client::get(&orthanc.target, &uid, object.sop_class, 1, object.bytes));
            if let Some(took) = report.keep(&format!("{ORTHANC}, C-GET"), orthanc.explain(got)) {
                line(ORTHANC, "retrieving", orthanc.pid(), Some(megabytes_per_second(object.bytes, took)));
            }
        }
    }
    table.note("The object is computed while it is sent; neither client nor server has it in memory before. Once, not a median.");
    table.note(format!(
        "{OURS} has its keys derived by a helper process that has ended before it is ready. Here it made the password itself, which needs no stretching; \
         under one that somebody chose scrypt fills 256 MiB there by definition, for about two seconds, which a limit on both together has to allow."
    ));
    if !resettable {
        table.note("This kernel does not let a peak begin anew, so each line includes the ones before it.");
    }
    report.table(&table);
    report.aim("Peak memory with one huge object, MB", AIM_MB, Some(worst).filter(|worst| *worst > 0.0), true);
    report.aim("Peak memory at start, MB", AIM_MB, Some(start), true);
}
