//! How fast studies get onto the embedded ledger, in each piece mode.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tests::Bridge;
use tokio::runtime::Runtime;

use crate::machine::sync;
use crate::objects::{deal, slices};
use crate::report::{Report, Table, median, milliseconds, or_dash, quotient, ratio};
use crate::servers::{OURS, Server};
use crate::{Options, Outcome, client};

/// Longest wait for one study to be final.
const PATIENCE: Duration = Duration::from_secs(900);

const MODES: [&str; 4] = ["calldata", "log", "code", "storage"];

/// A study that is final on the ledger.
pub(crate) struct Published {
    pub(crate) bytes: u64,
    pub(crate) sealed_bytes: u64,
    viewable_ms: f64,
    final_ms: f64,
}

impl Published {
    /// Bytes of objects, from the start of publishing until all of them were final.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e3 / self.final_ms
    }

    /// Seconds from the start of publishing until all of it was final.
    pub(crate) fn final_s(&self) -> f64 {
        self.final_ms / 1e3
    }

    fn sealed_megabytes_per_second(&self) -> f64 {
        self.sealed_bytes as f64 / 1e3 / self.final_ms
    }
}

/// Waits until the only study of a site is final.
pub(crate) fn wait_final(bridge: &Bridge) -> Outcome<Published> {
    let begun = Instant::now();
    loop {
        let rows = bridge.json(&["studies"]);
        let row = &rows[0];
        if row["state"] == "final" {
            let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
            let uid = row["uid"].as_str().unwrap_or_default();
            let report = bridge.json(&["study", "show", uid]);
            let images = report["images"].as_array().map(Vec::as_slice).unwrap_or_default();
            return Ok(Published {
                bytes: row["bytes"].as_u64().unwrap_or(0),
                sealed_bytes: images.iter().filter_map(|image| image["bytes"].as_u64()).sum(),
                viewable_ms: number("viewable_after_ms"),
                final_ms: number("final_after_ms"),
            });
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("not final after {} s: {row}", PATIENCE.as_secs()));
        }
        // Asking costs the server a little time, so not too often.
        std::thread::sleep(Duration::from_millis(250));
    }
}

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let mut all: BTreeMap<&str, Vec<Published>> = BTreeMap::new();
    let mut large = Arc::new(slices(options.scaled(100, 4), 512));
    let mut small = Arc::new(slices(options.scaled(8, 2), 512));
    for round in 0..options.rounds as usize {
        for turn in 0..MODES.len() {
            let mode = MODES[(turn + round) % MODES.len()];
            // A word of storage costs a hundred times a word of calldata: the same bytes would take minutes.
            let objects = if mode == "storage" { &mut small } else { &mut large };
            deal(Arc::get_mut(objects).unwrap(), 1);
            let mut ours = Server::ours(&format!("piece_mode = \"{mode}\"\nsettle_ms = 300"), &[]);
            sync();
            let stored = runtime.block_on(client::store(&ours.target, objects, 1));
            let published = stored.and_then(|_| wait_final(ours.bridge()));
            if let Some(published) = report.keep(&format!("{OURS}, {mode}"), ours.explain(published)) {
                all.entry(mode).or_default().push(published);
            }
        }
    }

    let of = |mode: &str, value: fn(&Published) -> f64| -> Option<f64> {
        median(&all.get(mode)?.iter().map(value).collect::<Vec<_>>())
    };
    let rate = |mode: &str| of(mode, Published::megabytes_per_second);
    let heads = [
        "pieces by",
        "objects MB",
        "on the ledger MB",
        "MB/s of objects",
        "MB/s on the ledger",
        "to storage",
        "viewable after",
        "final after",
    ];
    let mut table = Table::new("Embedded ledger: from the start of publishing until final", &heads);
    for mode in MODES {
        table.row(vec![
            mode.into(),
            or_dash(of(mode, |p| p.bytes as f64 / 1e6)),
            or_dash(of(mode, |p| p.sealed_bytes as f64 / 1e6)),
            or_dash(rate(mode)),
            or_dash(of(mode, Published::sealed_megabytes_per_second)),
            ratio(rate(mode), rate("storage")),
            of(mode, |p| p.viewable_ms).map_or_else(|| "-".into(), milliseconds),
            of(mode, |p| p.final_ms).map_or_else(|| "-".into(), milliseconds),
        ]);
    }
    table.note(
        "Compressing, encrypting, splitting, signing, executing and the ledger's own syncs are all in the time. \"Viewable\" \
         means that previews and manifest are final.",
    );
    report.table(&table);
    report.aim("Ledger, calldata, MB/s of objects", 30.0, rate("calldata"), false);
    report.aim("Ledger, calldata to storage", 4.0, quotient(rate("calldata"), rate("storage")), false);
}
