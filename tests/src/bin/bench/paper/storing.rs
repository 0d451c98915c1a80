//! Time to store and to fetch files through IPFS and in a plain store, by size and by count (Jabarulla and Lee's Figures 10 to 12). The bytes are
//! DICOM objects as a modality sends them: sealing is another matter, and the same for every place where sealed bytes are put.

use std::io::{Cursor, Write as _};
use std::time::{Duration, Instant};

use bridge::config;
use bridge::ipfs::{Ipfs, Reach};
use bridge::payload::cid::{Cid, CidBuilder};
use dicom_scp::Uid;
use futures::StreamExt as _;
use tests::kubo::Swarm;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

use super::figures::{Across, Panel, Series, scatter};
use crate::machine::sync;
use crate::objects::{MultiFrame, deal, fresh_number, slices, study_uid};
use crate::report::{Report, Table, figure, median, ratio};
use crate::servers::{Server, Target};
use crate::{Outcome, client};

/// Frames of half a MiB in a file whose size matters.
const FRAMES: [u32; 6] = [2, 10, 20, 50, 100, 200];
/// Files of half a MiB where their number matters.
const COUNTS: [u32; 5] = [1, 10, 50, 100, 200];
const ROUNDS: usize = 3;
const SIDE: u16 = 512;

/// What the paper says of its own, on other machines and files.
const THEIRS: &str = "Jabarulla and Lee measured 5.31 s to store 100 MB, and 6.19 s to fetch 1,142 images, which took 19.43 s from a cloud PACS.";

const THROUGH_IPFS: &str = "IPFS";
const PLAIN: &str = "plain store (Orthanc)";

/// Objects of one study that are stored and fetched together.
struct Batch {
    study: String,
    class: Uid,
    files: Vec<(Uid, Vec<u8>)>,
}

impl Batch {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// One object of so many frames.
    async fn single(frames: u32) -> Outcome<Self> {
        let number = fresh_number();
        let object = MultiFrame::new(number, frames);
        let mut bytes = Vec::with_capacity(object.bytes as usize);
        object.reader().take(object.bytes).read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
        Ok(Self { study: study_uid(number), class: object.sop_class, files: vec![(object.sop_instance, bytes)] })
    }

    /// So many small objects.
    fn many(count: u32) -> Self {
        let mut objects = slices(count, SIDE);
        let study = study_uid(deal(&mut objects, 1)[0]);
        let class = objects[0].sop_class;
        Self { study, class, files: objects.into_iter().map(|object| (object.sop_instance, object.bytes)).collect() }
    }
}

/// A store, and how long it took to put a batch there and to fetch it.
#[derive(Default)]
struct Times {
    store: Vec<f64>,
    fetch: Vec<f64>,
}

/// Two nodes of one private swarm, those of the hospital that stores and of the hospital that fetches.
struct Nodes {
    source: Ipfs,
    reader: Ipfs,
    _swarm: Swarm,
}

impl Nodes {
    fn start() -> Outcome<Option<Self>> {
        let Some(swarm) = Swarm::start(2) else { return Ok(None) };
        let node = |number: usize| {
            let settings = config::Ipfs {
                api_url: format!("http://127.0.0.1:{}", swarm.api_port(number)),
                token_file: Some(swarm.token_file(number)),
                timeout: Duration::from_secs(60),
                pin_timeout: Duration::from_secs(600),
                pin_granted: false,
                check_interval: Duration::from_secs(3600),
            };
            Ipfs::new(&settings).map_err(|e| e.to_string())
        };
        Ok(Some(Self { source: node(0)?, reader: node(1)?, _swarm: swarm }))
    }

    /// Named, added, pinned and compared, file by file, as the bridge does it.
    async fn store(&self, batch: &Batch) -> Outcome<(f64, Vec<Cid>)> {
        let begun = Instant::now();
        let mut names = Vec::new();
        for (_, bytes) in &batch.files {
            let mut name = CidBuilder::default();
            name.write_all(bytes).map_err(|e| e.to_string())?;
            let (length, cid) = (bytes.len() as u64, name.finish());
            self.source.put(Cursor::new(bytes.clone()), length, cid).await.map_err(|e| e.to_string())?;
            names.push(cid);
        }
        Ok((begun.elapsed().as_secs_f64(), names))
    }

    /// Through the other hospital's node, which has none of it, and named as it comes.
    async fn fetch(&self, names: &[Cid]) -> Outcome<f64> {
        let begun = Instant::now();
        for cid in names {
            let mut bytes = self.reader.get(*cid, Reach::Swarm).await.map_err(|e| e.to_string())?;
            let mut name = CidBuilder::default();
            while let Some(run) = bytes.next().await {
                name.write_all(&run.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            }
            if name.finish() != *cid {
                return Err(format!("{cid} came back as something else"));
            }
        }
        let took = begun.elapsed().as_secs_f64();
        for cid in names {
            self.reader.remove(*cid).await.map_err(|e| e.to_string())?;
        }
        Ok(took)
    }

    async fn run(&self, batch: &Batch, times: &mut Times) -> Outcome<()> {
        sync();
        let (stored, names) = self.store(batch).await?;
        sync();
        times.fetch.push(self.fetch(&names).await?);
        times.store.push(stored);
        for cid in names {
            self.source.remove(cid).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// C-STORE and C-GET over one association each.
async fn plain(target: &Target, batch: &Batch, times: &mut Times) -> Outcome<()> {
    sync();
    let stored = client::store_files(target, batch.class, &batch.files).await?;
    sync();
    let fetched = client::get(target, &batch.study, batch.class, batch.files.len() as u64, batch.bytes()).await?;
    times.store.push(stored.as_secs_f64());
    times.fetch.push(fetched.as_secs_f64());
    Ok(())
}

/// What was measured of one batch: through IPFS, and in a plain store if there is one.
struct Row {
    files: usize,
    bytes: u64,
    ipfs: Times,
    plain: Times,
}

/// Both series, table and figures.
pub(crate) fn run(report: &mut Report, runtime: &Runtime, scale: f64) -> Outcome<()> {
    let nodes = Nodes::start()?.ok_or("kubo is missing: run `make tools`")?;
    let orthanc = Server::orthanc(&[]);
    if orthanc.is_none() {
        report.failure("the plain store is missing: Orthanc is not installed".into());
    }
    let scaled = |count: u32| ((f64::from(count) * scale).round() as u32).max(1);
    let mut by_size = Vec::new();
    for frames in FRAMES {
        by_size.push(runtime.block_on(measure(&nodes, orthanc.as_ref(), || Batch::single(scaled(frames))))?);
    }
    let mut by_count = Vec::new();
    for count in COUNTS {
        let batch = || async { Ok(Batch::many(scaled(count))) };
        by_count.push(runtime.block_on(measure(&nodes, orthanc.as_ref(), batch))?);
    }
    report.table(&table("Jabarulla and Lee: time by size (Figures 10 and 11)", &by_size));
    report.table(&table("Jabarulla and Lee: time by number of files (Figure 12)", &by_count));
    let size = |row: &Row| row.bytes as f64 / 1e6;
    let count = |row: &Row| row.files as f64;
    let heading = "Jabarulla and Lee: store and fetch (Figures 10 to 12)";
    let (sizes, counts) = (Across::SIZE, Across::FILES);
    report.picture(
        heading,
        "paper-ipfs-size.svg",
        picture("One file through IPFS and in a plain store", &by_size, size, sizes),
    );
    report.picture(
        heading,
        "paper-ipfs-count.svg",
        picture("Files of half a MB, one after the other", &by_count, count, counts),
    );
    Ok(())
}

async fn measure<F: Future<Output = Outcome<Batch>>>(
    nodes: &Nodes,
    orthanc: Option<&Server>,
    make: impl Fn() -> F,
) -> Outcome<Row> {
    let mut row = Row { files: 0, bytes: 0, ipfs: Times::default(), plain: Times::default() };
    for round in 0..ROUNDS {
        let batch = make().await?;
        (row.files, row.bytes) = (batch.files.len(), batch.bytes());
        // They take turns in being first.
        for turn in 0..2 {
            match (orthanc, (round + turn) % 2) {
                (_, 0) => nodes.run(&batch, &mut row.ipfs).await?,
                (Some(server), _) => server.explain(plain(&server.target, &batch, &mut row.plain).await)?,
                (None, _) => {}
            }
        }
    }
    Ok(row)
}

fn table(title: &str, rows: &[Row]) -> Table {
    let heads = ["files", "MB", "store, s", "plain, s", "to plain", "fetch, s", "plain, s", "to plain"];
    let mut table = Table::new(title, &heads);
    let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), figure);
    for row in rows {
        let [store, fetch] = [median(&row.ipfs.store), median(&row.ipfs.fetch)];
        let [plain_store, plain_fetch] = [median(&row.plain.store), median(&row.plain.fetch)];
        table.row(vec![
            row.files.to_string(),
            figure(row.bytes as f64 / 1e6),
            shown(store),
            shown(plain_store),
            ratio(plain_store, store),
            shown(fetch),
            shown(plain_fetch),
            ratio(plain_fetch, fetch),
        ]);
    }
    table.note(format!(
        "Medians of {ROUNDS} rounds, in which the two take turns. Store: the file is named, added to the hospital's own kubo with its blocks synced, \
         pinned, and its name compared; plain: C-STORE to Orthanc in its durable setting. Fetch: through the node of another hospital, which has \
         nothing of it, and named again as it comes; plain: C-GET. Nobody shares the plain store with another hospital, which is what it saves."
    ));
    table.note(THEIRS);
    table
}

fn picture(title: &str, rows: &[Row], x: fn(&Row) -> f64, across: Across) -> String {
    let panel = |title: &str, of: fn(&Times) -> &Vec<f64>| {
        let series = |name: &str, times: fn(&Row) -> &Times| Series {
            name: name.into(),
            points: rows.iter().flat_map(|row| of(times(row)).iter().map(move |time| (x(row), *time))).collect(),
        };
        let series = vec![series(THROUGH_IPFS, |row| &row.ipfs), series(PLAIN, |row| &row.plain)];
        Panel { title: title.into(), across, series }
    };
    scatter(title, &[panel("store", |times| &times.store), panel("fetch", |times| &times.fetch)])
}
