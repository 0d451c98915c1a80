//! What a network of several sites allows and what we get of it: three nodes of geth with Clique, a block a second, 40 million gas a block.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::{B256, Bytes, keccak256};
use bridge::ledger::{Ledger, Located, Piece, PieceMode};
use dicom_scp::Uid;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rand::{Rng as _, RngCore as _};
use tests::consortium::{Consortium, Nodes};
use tests::{Bridge, PATIENCE};
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Runtime;

use crate::clique::{Count, Network, words};
use crate::consent::wait_preview;
use crate::ledger::{Published, wait_final};
use crate::objects::{MultiFrame, deal, fresh_number, query_study_uid, slices, study_uid, tiny};
use crate::paper::ways::{Open, Run, Way};
use crate::report::{Report, Table, figure, median, or_dash, quantile};
use crate::servers::{OURS, Target};
use crate::{Options, Outcome, client};

const SIGNERS: usize = 3;
/// Time between blocks.
const BLOCK_MS: u64 = 1_000;
const PIECE_BYTES: usize = 120_000;
/// Pieces that are handed to the ledger client at once.
const AT_ONCE: usize = 256;
/// Mean size of Li and Kuo's images.
const IMAGE_BYTES: usize = 584_000;
/// Times that one such image is stored.
const IMAGES: u32 = 9;
/// Times that it is stored in the paper's way, which takes two blocks a piece.
const PAPER_IMAGES: u32 = 2;
/// How often the site is asked whether a study can be allowed yet.
const ALLOW_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let Some(network) = Network::start(SIGNERS) else {
        report.failure("geth is missing: run `make tools`".into());
        return;
    };
    let founded = runtime.block_on(network.found());
    if report.keep("founding the consortium", founded).is_some() {
        let measured = runtime.block_on(pieces(&network, options));
        if let Some(measured) = report.keep("pieces on a network", measured) {
            rate(report, &measured, &runtime.block_on(network.facts()));
            one_image(report, &measured);
        }
    }
    drop(network);
    match Consortium::found_on(Nodes::Geth(SIGNERS)) {
        Some(consortium) => {
            let waits = until_previews(&consortium, runtime, options.scaled(15, 2));
            if let Some(waits) = report.keep("from C-STORE to the preview elsewhere", waits) {
                latency(report, &waits);
            }
            let large = large_studies(&consortium, runtime, options);
            if let Some(large) = report.keep("large studies on a network", large) {
                large_table(report, &large);
            }
        }
        None => report.failure("geth is missing: run `make tools`".into()),
    }
}

/// What was measured of pieces as calldata.
struct Measured {
    bytes: usize,
    seconds: f64,
    /// Blocks from the first with pieces of ours to the last.
    blocks: u64,
    counted: Count,
    gas_limit: u64,
    period_s: u64,
    /// Seconds until an image was in blocks, of each.
    stored: Vec<f64>,
    /// Seconds until an image was final, of each.
    images: Vec<f64>,
    /// Seconds until an image was stored in the paper's way, of each.
    paper_shaped: Vec<f64>,
}

async fn pieces(network: &Network, options: &Options) -> Outcome<Measured> {
    let ledger = network.ledger(PieceMode::Calldata).await?;
    let batch = noise("sustained", PIECE_BYTES * options.scaled(1_500, 20) as usize);
    let (from, begun) = (network.head().await?, Instant::now());
    let located = store(&ledger, &batch).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let counted = network.count(network.site(), from).await?;
    let place = |piece: &Located| piece.location.block;
    let first = located.iter().map(place).min().ok_or("nothing was stored")?;
    let last = located.iter().map(place).max().ok_or("nothing was stored")?;
    let times = options.scaled(IMAGES, 3);
    let images = images_by(&ledger, "final", times).await?;
    // A key has one sender: this one has nothing on its way any more.
    drop(ledger);
    let stored = images_by(&network.ledger_at(PieceMode::Calldata, 1).await?, "stored", times).await?;
    let paper_shaped = images_as_in_the_paper(network, options.scaled(PAPER_IMAGES, 1)).await?;
    let (gas_limit, period_s) = (network.gas_limit().await?, network.period_s());
    let bytes = batch.iter().map(|piece| piece.bytes.len()).sum();
    Ok(Measured {
        bytes,
        seconds,
        blocks: last - first + 1,
        counted,
        gas_limit,
        period_s,
        stored,
        images,
        paper_shaped,
    })
}

/// Seconds until images of the paper's mean size are as deep as the ledger client wants, one after the other.
async fn images_by(ledger: &Ledger, name: &str, times: u32) -> Outcome<Vec<f64>> {
    let mut seconds = Vec::new();
    for number in 0..times {
        let image = noise(&format!("image {name} {number}"), IMAGE_BYTES);
        let begun = Instant::now();
        store(ledger, &image).await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Seconds until images of that size are stored as Li and Kuo store them: in pieces of 30,000 bytes in storage slots, each waited for.
async fn images_as_in_the_paper(network: &Network, times: u32) -> Outcome<Vec<f64>> {
    let way = Open::on(network, Way::PaperShaped).await?;
    let mut seconds = Vec::new();
    for number in 0..times {
        let mut content = vec![0; IMAGE_BYTES];
        rand::thread_rng().fill_bytes(&mut content);
        let image = Run::new("a patient of the network", &number.to_string(), content.into());
        let begun = Instant::now();
        way.store(&[image]).await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// An image in pieces.
fn noise(name: &str, bytes: usize) -> Vec<Piece> {
    let mut content = vec![0; bytes];
    rand::thread_rng().fill_bytes(&mut content);
    let (content, image): (Bytes, B256) = (content.into(), keccak256(name));
    let part = |at: usize| -> Range<usize> { at..bytes.min(at + PIECE_BYTES) };
    let parts = (0..).zip((0..bytes).step_by(PIECE_BYTES));
    parts.map(|(index, at)| Piece { study: keccak256("study"), image, index, bytes: content.slice(part(at)) }).collect()
}

/// A piece a transaction, as many in flight as the ledger client lets.
async fn store(ledger: &Ledger, pieces: &[Piece]) -> Outcome<Vec<Located>> {
    let stored = stream::iter(pieces).map(|piece| ledger.store(std::slice::from_ref(piece))).buffered(AT_ONCE);
    let located: Vec<Vec<Located>> = stored.try_collect().await.map_err(words)?;
    Ok(located.concat())
}

fn rate(report: &mut Report, measured: &Measured, facts: &[String]) {
    let gas_a_byte = measured.counted.gas as f64 / measured.bytes as f64;
    let allowed = measured.gas_limit as f64 / measured.period_s as f64 / gas_a_byte / 1e6;
    let reached = measured.bytes as f64 / 1e6 / measured.seconds;
    let filled = measured.counted.gas as f64 / (measured.blocks * measured.gas_limit) as f64;
    let heads = [
        "pieces by",
        "MB",
        "MB/s",
        "the gas limit allows, MB/s",
        "of that",
        "blocks",
        "of their gas",
        "to paper-shaped",
    ];
    let mut table = Table::new("Network of three sites: sustained rate", &heads);
    let part = |part: f64| format!("{:.0} %", part * 100.0);
    let of_paper = median(&measured.paper_shaped).map(|seconds| IMAGE_BYTES as f64 / 1e6 / seconds);
    table.row(vec![
        "calldata".into(),
        figure(measured.bytes as f64 / 1e6),
        figure(reached),
        figure(allowed),
        part(reached / allowed),
        measured.blocks.to_string(),
        part(filled),
        of_paper.map_or("-".into(), |paper| format!("{:.0}x", reached / paper)),
    ]);
    let dashes = || "-".to_owned();
    table.row(vec![
        "paper-shaped".into(),
        figure(measured.paper_shaped.len() as f64 * IMAGE_BYTES as f64 / 1e6),
        or_dash(of_paper),
        dashes(),
        dashes(),
        dashes(),
        dashes(),
        "1x".into(),
    ]);
    table.note(
        "Noise in pieces of 120,000 bytes by the bridge's ledger client, from the first piece until the last is final. The bound is the gas of a block \
         over what a byte costs, by the receipts, and the period. The last column is of the blocks from the first with such a piece to the last.",
    );
    facts.iter().for_each(|fact| table.note(format!("{fact}.")));
    report.table(&table);
    report.aim("Network, sustained rate, of what the gas limit allows", 0.9, Some(reached / allowed), false);
}

fn one_image(report: &mut Report, measured: &Measured) {
    let heads = ["image of 584 KB", "times", "median s", "worst s", "median in block times", "to paper-shaped"];
    let mut table = Table::new("Network of three sites: an image of 584 KB", &heads);
    let of_paper = median(&measured.paper_shaped);
    let rows =
        [("stored", &measured.stored), ("final", &measured.images), ("paper-shaped, stored", &measured.paper_shaped)];
    for (until, waits) in rows {
        let middle = median(waits);
        let periods = middle.map(|seconds| seconds / measured.period_s as f64);
        let (worst, count) = (quantile(waits, 1.0), waits.len().to_string());
        if until == "stored" {
            report.aim("Network, an image of 584 KB stored, median in block times", 2.0, periods, true);
        }
        let to_paper = of_paper.zip(middle).map_or("-".into(), |(paper, ours)| format!("{:.1}x", paper / ours));
        table.row(vec![until.into(), count, or_dash(middle), or_dash(worst), or_dash(periods), to_paper]);
    }
    table.note(
        "Ours: five pieces at once, each image after the one before. Paper-shaped: 20 pieces of 30,000 bytes in storage slots, one after the other. Stored is what the paper waits for, a receipt of each; final is two blocks, their own included. geth fills a block when the one before it comes, so what is sent after that waits for the next but one.",
    );
    report.table(&table);
}

/// Milliseconds from the last C-STORE response until a preview is at the other site, of each study.
fn until_previews(consortium: &Consortium, runtime: &Runtime, studies: u32) -> Outcome<Vec<f64>> {
    let (a, b) = (consortium.join(true), consortium.join(true));
    let grantee = b.json(&["keys", "show"])["source"].as_str().unwrap_or_default().to_owned();
    let begun = Instant::now();
    // Nothing can be allowed to B before it has stated its key.
    while !a.json(&["sources"]).to_string().to_lowercase().contains(&stated(&b).to_lowercase()) {
        if begun.elapsed() > PATIENCE {
            return Err("B does not state its key".into());
        }
        std::thread::sleep(ALLOW_EVERY);
    }
    (0..studies).map(|study| until_preview(runtime, &a, &b, &grantee, study)).collect()
}

/// keccak-256 of a site's OpenPGP key, as it states it.
fn stated(site: &Bridge) -> String {
    let certificate = tests::consortium::keyring(site).payload_certificate().unwrap_or_default();
    keccak256(certificate).to_string()
}

fn until_preview(runtime: &Runtime, a: &Bridge, b: &Bridge, grantee: &str, study: u32) -> Outcome<f64> {
    let (target, uid) = (Target { address: a.dicom, called: "PACSBRIDGE" }, query_study_uid(study));
    // A modality knows nothing of blocks; without this each study would begin when a block has just come.
    std::thread::sleep(Duration::from_millis(rand::thread_rng().gen_range(0..2 * BLOCK_MS)));
    runtime.block_on(client::store(&target, &Arc::new(tiny(study, 3)), 1))?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let allowing = scope.spawn(|| allow(a, &uid, grantee));
        let came = wait_preview(b, &uid, begun);
        allowing.join().map_err(|_| "allowing failed".to_owned())??;
        Ok(came?.as_secs_f64() * 1e3)
    })
}

/// Allows a study as soon as it is on the ledger.
fn allow(a: &Bridge, uid: &str, grantee: &str) -> Outcome<()> {
    let begun = Instant::now();
    loop {
        let said = a.cli(&["allow", uid, grantee]);
        if said.status.success() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(String::from_utf8_lossy(&said.stderr).into_owned());
        }
        std::thread::sleep(ALLOW_EVERY);
    }
}

/// A study beyond what the paper can store: onto the network, evicted, and back from there.
struct Large {
    name: String,
    objects: u64,
    published: Published,
    read_s: f64,
}

/// Each at a site of its own, which asks its node in another way.
fn large_studies(consortium: &Consortium, runtime: &Runtime, options: &Options) -> Outcome<Vec<Large>> {
    let number = fresh_number();
    let one = MultiFrame::new(number, options.scaled(200, 4));
    let site = consortium.join(false);
    runtime.block_on(client::store_stream(
        &target_of(&site),
        (one.sop_class, one.sop_instance),
        one.bytes,
        &mut one.reader().take(one.bytes),
    ))?;
    let single = there_and_back(runtime, &site, "one object", &study_uid(number), one.sop_class, (1, one.bytes))?;
    drop(site);

    let mut objects = Arc::new(slices(options.scaled(1_000, 10), 64));
    let uid = study_uid(deal(Arc::get_mut(&mut objects).ok_or("nobody else has them")?, 1)[0]);
    let site = consortium.join(false);
    runtime.block_on(client::store(&target_of(&site), &objects, 1))?;
    let bytes = objects.iter().map(|object| object.bytes.len() as u64).sum();
    let all = (objects.len() as u64, bytes);
    let many = there_and_back(runtime, &site, "many instances", &uid, objects[0].sop_class, all)?;
    Ok(vec![single, many])
}

fn target_of(site: &Bridge) -> Target {
    Target { address: site.dicom, called: "PACSBRIDGE" }
}

fn there_and_back(
    runtime: &Runtime,
    site: &Bridge,
    name: &str,
    uid: &str,
    class: Uid,
    (objects, bytes): (u64, u64),
) -> Outcome<Large> {
    let published = wait_final(site)?;
    site.json(&["evict", uid]);
    let read = runtime.block_on(client::get(&target_of(site), uid, class, objects, bytes))?;
    Ok(Large { name: name.to_owned(), objects, published, read_s: read.as_secs_f64() })
}

fn large_table(report: &mut Report, large: &[Large]) {
    let heads = [
        "study",
        "objects",
        "MB",
        "on the ledger MB",
        "final after s",
        "MB/s on the ledger",
        "read back s",
        "MB/s read back",
    ];
    let mut table = Table::new("Network of three sites: studies that the paper's way cannot store, and back", &heads);
    for one in large {
        let (megabytes, sealed) = (one.published.bytes as f64 / 1e6, one.published.sealed_bytes as f64 / 1e6);
        table.row(vec![
            one.name.clone(),
            one.objects.to_string(),
            figure(megabytes),
            figure(sealed),
            figure(one.published.final_s()),
            figure(sealed / one.published.final_s()),
            figure(one.read_s),
            figure(sealed / one.read_s),
        ]);
    }
    table.note(
        "One run each. Stored by C-STORE, published, evicted and got by C-GET, for which every byte comes from the ledger through the site's node, is compared, \
         decrypted and unpacked. Both rates are of bytes on the ledger.",
    );
    report.table(&table);
    // A thousand small objects are a matter of requests, not of bytes.
    let one = large.first().map(|one| one.published.sealed_bytes as f64 / 1e6 / one.read_s);
    report.aim("Network, reading one large object back, MB/s", 20.0, one, false);
}

fn latency(report: &mut Report, waits: &[f64]) {
    let heads = ["system", "studies", "median ms", "worst ms", "block ms"];
    let mut table = Table::new("Network of three sites: from C-STORE to the first preview at another site", &heads);
    let middle_ms = median(waits);
    let (middle, worst) = (or_dash(middle_ms), or_dash(quantile(waits, 1.0)));
    table.row(vec![OURS.into(), waits.len().to_string(), middle, worst, BLOCK_MS.to_string()]);
    table.note(
        "From the last C-STORE response at A, at a random moment, until the picture is in B's index. In it: 200 ms in which A waits for more of the study; its definition, \
         previews, manifest and announcement, sent at once, and the allowance, said when the last response has come, which follows the definition; until a \
         block has all of it; then B asks A for the study's keys and reads manifest and preview. geth fills a block when the \
         one before it comes, so what is known to the block's maker in between waits between one and two block times, one and a half in the mean. Transactions above \
         4,096 bytes, as those with pieces are, are only announced between nodes of geth, which wait half a second before they ask for one.",
    );
    report.table(&table);
    report.aim("Network, from C-STORE to the first preview at another site, median ms", 2_300.0, middle_ms, true);
}
