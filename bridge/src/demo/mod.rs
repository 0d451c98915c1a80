//! The demonstration: a whole site on this machine, then two sites and a patient, with studies of nobody. Nothing in it is special to the demonstration
//! but the data: the bridge is the one that `serve` runs, spoken to over DICOM.

pub mod phantom;
mod receiver;
mod two_sites;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dicom_scp::dataset::{DataSet, Tag, VR};
use dicom_scp::dimse::Priority;
use dicom_scp::scp::{ScpOptions, serve};
use dicom_scp::scu::{Association, Proposal, ScuError, ScuOptions, StoreRequest, is_stored};
use dicom_scp::{AeTitle, TransferSyntax, sop_class};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Core, StartError};
use crate::cli::{size, table};
use crate::config::{Config, ConfigError};
use crate::site::{SiteError, State, StudyRow, Verdict};
use phantom::{Phantom, Subject};
use receiver::{Received, Receiver};

/// How the demonstration runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// End when everything was shown, instead of staying up for a viewer.
    #[arg(long)]
    exit: bool,
    /// Slices of the CT series.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    slices: u32,
    /// Keep the site's data in this directory instead of a temporary one.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Why the demonstration could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or socket of this machine.
    #[error("{0}")]
    Io(&'static str, #[source] std::io::Error),
    /// The demonstration's own configuration is wrong.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// The site did not start.
    #[error("the site")]
    Start(#[from] StartError),
    /// The site did not answer.
    #[error("the site")]
    Site(#[from] SiteError),
    /// DICOM failed.
    #[error("dicom")]
    Dicom(#[from] ScuError),
    /// Something was not as it must be.
    #[error("{0}")]
    Wrong(String),
}

/// Longest wait for the ledger.
const PATIENCE: Duration = Duration::from_secs(600);
const VIEWER: &str = "VIEWER";
/// Slices of the study that two sites share, at most.
const TWO_SITES_SLICES: u32 = 40;

/// Runs the demonstration.
///
/// # Errors
/// [`DemoError`]: whatever is not as it must be ends it.
pub async fn run(options: Options) -> Result<ExitCode, DemoError> {
    let temporary = tempfile::tempdir().map_err(|e| DemoError::Io("making a temporary directory", e))?;
    let dir = options.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let viewer = listen().await?;
    let viewer_port = viewer.local_addr().map_err(|e| DemoError::Io("a free port", e))?.port();
    let config =
        parse(&dir.join("site"), viewer_port, "[publish]\nsettle_ms = 500\n[ledger]\nrpc_bind = \"127.0.0.1:0\"\n")?;
    crate::cli::start_logging(&config);

    say("PACS Bridge: one site, its embedded ledger, and studies of nobody");
    let received = Received::default();
    let shutdown = CancellationToken::new();
    let viewer =
        tokio::spawn(serve(viewer, ScpOptions::default(), Arc::new(Receiver(received.clone())), shutdown.clone()));
    let app = App::start(Core::open(config).await?, None).await?;
    println!("   {}", app.ready_line());
    let mut shown = show(&app, &options, &received).await;
    if shown.is_ok() {
        let slices = options.slices.min(TWO_SITES_SLICES);
        let study = phantom::ct_series(&subject(5, "Phantom^Paula", "CT of the knee"), slices, 512, 5);
        shown = two_sites::show(&dir, viewer_port, study, &received).await;
    }
    if shown.is_ok() && !options.exit {
        stay(&app, &dir).await?;
    }
    shutdown.cancel();
    let _ = viewer.await;
    app.drain().await;
    shown.map(|()| ExitCode::SUCCESS)
}

async fn listen() -> Result<TcpListener, DemoError> {
    TcpListener::bind("127.0.0.1:0").await.map_err(|e| DemoError::Io("listening on a free loopback port", e))
}

/// A site's configuration: everybody on this machine may do everything, and C-MOVE to the viewer works.
fn parse(data_dir: &Path, viewer_port: u16, lines: &str) -> Result<Config, DemoError> {
    let toml = format!(
        "[site]\ndata_dir = {data_dir:?}\n[dicom]\nbind = \"127.0.0.1:0\"\ncheck_called_ae = false\n\
         unknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n\
         [[peer]]\nae_title = \"{VIEWER}\"\nhost = \"127.0.0.1\"\nport = {viewer_port}\n\
         [archive]\nfree_bytes_min = 0\n[log]\nlevel = \"error\"\n{lines}"
    );
    Ok(Config::parse(&toml, HashMap::new())?)
}

async fn show(app: &App, options: &Options, received: &Received) -> Result<(), DemoError> {
    say("1. Making a CT series, a chest X-ray, a moving ultrasound and an MR");
    let slices = options.slices;
    let studies = tokio::task::spawn_blocking(move || studies(slices))
        .await
        .map_err(|e| DemoError::Wrong(format!("making phantoms: {e}")))?;
    let objects: usize = studies.iter().map(Vec::len).sum();
    let bytes: u64 = studies.iter().flatten().map(|phantom| phantom.bytes.len() as u64).sum();
    println!("   {objects} objects, {}", size(bytes));

    say("2. Sending them by C-STORE, as modalities do; every answer means that the object is on disk");
    let begun = Instant::now();
    for study in &studies {
        send(app, study).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "   {objects} objects in {seconds:.2} s: {:.0} objects/s, {}/s",
        objects as f64 / seconds,
        size((bytes as f64 / seconds) as u64)
    );

    say(
        "3. The bridge seals them and brings them onto the ledger: definition, manifest, then the objects piece by piece",
    );
    let rows = wait_final(app, studies.len()).await?;
    print!("{}", indent(&state_table(&rows)));

    say("4. Removing the local copies: from here on the ledger is the only place that has them");
    for row in &rows {
        let (files, bytes) = app.site().evict(&row.uid).await?;
        println!("   {files:4} files, {:>9} of {}", size(bytes), row.description);
    }

    say("5. Asking by C-FIND, as a viewer does");
    let found = find(app).await?;
    print!("{}", indent(&found));

    say("6. Retrieving by C-MOVE: pieces are read from the ledger, merged, decrypted and checked");
    let begun = Instant::now();
    for row in &rows {
        r#move(app, &row.uid).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("   {objects} objects in {seconds:.2} s: {}/s", size((bytes as f64 / seconds) as u64));

    say("7. Comparing every byte with what was sent, and the ledger's copy with what was received");
    compare(&studies, received)?;
    println!("   {objects} of {objects} objects came back byte for byte");
    for row in &rows {
        let verdicts = app.site().verify(&row.uid).await?;
        if let Some(wrong) = verdicts.iter().find(|verdict: &&Verdict| !verdict.proven) {
            return Err(DemoError::Wrong(format!(
                "{} is not proven: {} / {}",
                wrong.sop_instance, wrong.file, wrong.ledger
            )));
        }
        println!("   {:4} objects of {} proven against the ledger", verdicts.len(), row.description);
    }
    Ok(())
}

fn say(words: &str) {
    println!("\n{words}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

fn subject(number: u32, name: &str, description: &str) -> Subject {
    Subject {
        patient_name: name.to_owned(),
        patient_id: format!("DEMO-{number}"),
        study_date: "20260105".to_owned(),
        description: description.to_owned(),
        accession: format!("A{number:04}"),
        study_uid: format!("2.25.3141592653589793238462643383279502{number}"),
    }
}

fn studies(slices: u32) -> Vec<Vec<Phantom>> {
    vec![
        phantom::ct_series(&subject(1, "Phantom^Clara", "CT chest"), slices, 512, 1),
        vec![phantom::chest_xray(&subject(2, "Phantom^Ravi", "Chest X-ray"), 1024, 2)],
        vec![phantom::ultrasound(&subject(3, "Phantom^Ursula", "Ultrasound of the heart"), 40, 640, 480, 3)],
        phantom::mr_series(&subject(4, "Phantom^Mario", "MR of the head"), 24, 256, 4),
    ]
}

fn dicom_of(app: &App) -> Result<std::net::SocketAddr, DemoError> {
    app.dicom_address().ok_or_else(|| DemoError::Wrong("the site serves no plain DICOM".into()))
}

async fn associate(app: &App, proposals: &[Proposal]) -> Result<Association, DemoError> {
    let title = |text: &str| AeTitle::new(text).map_err(|e| DemoError::Wrong(e.to_string()));
    let address = dicom_of(app)?;
    let options = ScuOptions::new(title("DEMO")?, title("PACSBRIDGE")?);
    Ok(Association::connect(&address.ip().to_string(), address.port(), &options, proposals).await?)
}

async fn send(app: &App, study: &[Phantom]) -> Result<(), DemoError> {
    let Some(first) = study.first() else { return Ok(()) };
    let proposal = Proposal::new(first.sop_class, vec![TransferSyntax::EXPLICIT_VR_LE]);
    let mut association = associate(app, &[proposal]).await?;
    for phantom in study {
        let request = StoreRequest {
            sop_class: phantom.sop_class,
            sop_instance: phantom.sop_instance,
            transfer_syntax: TransferSyntax::EXPLICIT_VR_LE,
            bytes: phantom.bytes.len() as u64,
            priority: Priority::Medium,
            move_originator: None,
        };
        let outcome = association.store(&request, &mut phantom.bytes.as_slice()).await?;
        if !is_stored(&outcome) {
            return Err(DemoError::Wrong(format!("C-STORE was answered {}", outcome.status)));
        }
    }
    Ok(association.release().await?)
}

/// Shows the ledger filling up until every study is final.
async fn wait_final(app: &App, studies: usize) -> Result<Vec<StudyRow>, DemoError> {
    let bar = if std::io::stdout().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("   {bar:40} {pos}/{len} pieces  {msg}") {
        bar.set_style(style);
    }
    let begun = Instant::now();
    loop {
        let rows = app.site().studies()?;
        let states: Vec<String> = rows.iter().map(|row| format!("{:?}", row.state).to_lowercase()).collect();
        bar.set_length(rows.iter().map(|row| row.pieces).sum::<u64>().max(1));
        bar.set_position(rows.iter().map(|row| row.pieces_seen).sum());
        bar.set_message(states.join(", "));
        if rows.len() == studies && rows.iter().all(|row| row.state == State::Final) {
            bar.finish_and_clear();
            return Ok(rows);
        }
        if begun.elapsed() > PATIENCE {
            return Err(DemoError::Wrong(format!("the studies did not become final: {}", states.join(", "))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn state_table(rows: &[StudyRow]) -> String {
    let cells = rows.iter().map(|row| {
        let seconds = row.final_after_ms.unwrap_or(0) as f64 / 1000.0;
        let rate = if seconds > 0.0 { row.bytes as f64 / seconds } else { 0.0 };
        vec![
            row.description.clone(),
            row.instances.to_string(),
            size(row.bytes),
            format!("{:?}", row.state).to_lowercase(),
            format!("{}/{}", row.pieces_seen, row.pieces),
            row.viewable_after_ms.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
            format!("{seconds:.2} s"),
            format!("{}/s", size(rate as u64)),
        ]
    });
    table(&["STUDY", "OBJECTS", "SIZE", "STATE", "PIECES", "LISTED AFTER", "FINAL AFTER", "RATE"], cells.collect())
}

async fn find(app: &App) -> Result<String, DemoError> {
    const KEYS: [(Tag, VR); 6] = [
        (Tag(0x0010, 0x0010), VR::PN),
        (Tag(0x0008, 0x0020), VR::DA),
        (Tag(0x0008, 0x0061), VR::CS),
        (Tag(0x0008, 0x1030), VR::LO),
        (Tag(0x0020, 0x1208), VR::IS),
        (Tag(0x0008, 0x0056), VR::CS),
    ];
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, "");
    for (tag, vr) in KEYS {
        identifier.put_text(tag, vr, "");
    }
    identifier.put_text(Tag(0x0010, 0x0010), VR::PN, "phantom^*");
    let mut association = associate(app, &[Proposal::plain(sop_class::STUDY_ROOT_FIND)]).await?;
    let mut rows = Vec::new();
    association
        .find(&sop_class::STUDY_ROOT_FIND, &identifier, |answer| {
            rows.push(KEYS.iter().map(|(tag, _)| answer.texts(*tag).join("/")).collect());
            ControlFlow::Continue(())
        })
        .await?;
    association.release().await?;
    Ok(table(&["PATIENT", "DATE", "MODALITY", "DESCRIPTION", "OBJECTS", "AVAILABILITY"], rows))
}

async fn r#move(app: &App, study_uid: &str) -> Result<(), DemoError> {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, study_uid);
    let destination = AeTitle::new(VIEWER).map_err(|e| DemoError::Wrong(e.to_string()))?;
    let mut association = associate(app, &[Proposal::plain(sop_class::STUDY_ROOT_MOVE)]).await?;
    let moved = association
        .r#move(&sop_class::STUDY_ROOT_MOVE, &destination, &identifier, |_| ControlFlow::Continue(()))
        .await?;
    association.release().await?;
    if moved.progress.failed > 0 || !is_stored(&moved.outcome) {
        return Err(DemoError::Wrong(format!(
            "C-MOVE was answered {}, {} failed",
            moved.outcome.status, moved.progress.failed
        )));
    }
    Ok(())
}

fn compare(studies: &[Vec<Phantom>], received: &Received) -> Result<(), DemoError> {
    let received = received.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for phantom in studies.iter().flatten() {
        let sent: [u8; 32] = Sha256::digest(&phantom.bytes).into();
        match received.get(phantom.sop_instance.as_str()) {
            Some(digest) if *digest == sent => {}
            Some(_) => return Err(DemoError::Wrong(format!("{} came back with other bytes", phantom.sop_instance))),
            None => return Err(DemoError::Wrong(format!("{} did not come back", phantom.sop_instance))),
        }
    }
    Ok(())
}

async fn stay(app: &App, dir: &Path) -> Result<(), DemoError> {
    let address = dicom_of(app)?;
    say("The site stays up. Point a viewer or modality at it:");
    println!("   AE title PACSBRIDGE, host {}, port {} (any called or calling title)", address.ip(), address.port());
    println!("   echoscu {} {}", address.ip(), address.port());
    println!(
        "   findscu -S -k QueryRetrieveLevel=STUDY -k PatientName -k StudyInstanceUID {} {}",
        address.ip(),
        address.port()
    );
    println!("   its data is in {}", dir.display());
    println!("   Ctrl-C ends it.");
    tokio::signal::ctrl_c().await.map_err(|e| DemoError::Io("waiting for Ctrl-C", e))
}
