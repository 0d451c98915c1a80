//! Reproduces the tables and figures of two papers beside our own way, in one run on one network of geth: Li and Kuo (2021), who store
//! images on a ledger by pieces, and Jabarulla and Lee (2021), whose contract keeps consent. Their ways are run as they describe them, on our
//! machine; their own figures are cited beside.

mod cohort;
mod figures;
mod measure;
mod pcim;
mod statistics;
mod storing;
mod tables;
pub(crate) mod ways;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bridge::ledger::PieceMode;
use clap::{Parser, ValueEnum};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::clique::Network;
use crate::machine;
use crate::report::{Report, with_section};
use cohort::Cohort;
use measure::{Level, Method};
use tables::Results;
use ways::{Open, Way};

/// Li and Kuo's network has two.
const SIGNERS: usize = 2;
/// The report's section in docs/benchmarks.md.
pub(crate) const SECTION: &str = "The papers";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Li and Kuo.
    Pieces,
    /// Jabarulla and Lee: gas of the functions.
    Gas,
    /// Jabarulla and Lee: files through IPFS and in a plain store.
    Ipfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Calldata,
    Log,
    Code,
    Storage,
}

impl From<Mode> for PieceMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Calldata => Self::Calldata,
            Mode::Log => Self::Log,
            Mode::Code => Self::Code,
            Mode::Storage => Self::Storage,
        }
    }
}

/// Reproduces the tables and figures of two papers beside our own way.
///
/// A piece in the paper's way takes two blocks of a second, so an image of the paper's mean size takes 40 seconds in each of the four methods: the
/// default takes about four hours, the whole set days.
#[derive(Debug, Clone, Parser)]
pub(crate) struct PaperOptions {
    /// Images, of the 920 that the paper has; a twentieth by default.
    #[arg(long, default_value_t = cohort::IMAGES / 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(cohort::IMAGES)))]
    images: u32,
    /// All images of the paper.
    #[arg(long, conflicts_with = "images")]
    full: bool,
    /// What sizes, patients and contents follow from.
    #[arg(long, default_value_t = 2021)]
    seed: u64,
    /// Only this paper's part; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Only these of the paper's methods; may be repeated.
    #[arg(long, value_enum)]
    method: Vec<Method>,
    /// Our way only with pieces by these means; may be repeated.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Multiplies the size of every image; for trying the command out.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Put the section into this file of Markdown, and the figures into the folder `figures` beside it. A run of both parts with all
    /// methods and modes and without --scale writes docs/benchmarks.md by itself.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// These, or all when none is named.
fn chosen<T: Copy>(named: &[T], all: &[T]) -> Vec<T> {
    if named.is_empty() { all.to_vec() } else { named.to_vec() }
}

impl PaperOptions {
    fn parts(&self) -> Vec<Part> {
        chosen(&self.only, Part::value_variants())
    }

    fn methods(&self) -> Vec<Method> {
        chosen(&self.method, &Method::ALL)
    }

    fn ways(&self) -> Vec<Way> {
        let modes = chosen(&self.mode, Mode::value_variants());
        [vec![Way::PaperShaped], modes.into_iter().map(|mode| Way::Ours(mode.into())).collect()].concat()
    }

    fn out(&self) -> Option<PathBuf> {
        let whole = self.only.is_empty() && self.method.is_empty() && self.mode.is_empty();
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
        self.out.clone().or_else(|| (whole && (self.scale - 1.0).abs() < f64::EPSILON).then(usual))
    }

    fn cohort(&self) -> Outcome<Cohort> {
        let images = if self.full { cohort::IMAGES } else { self.images };
        Cohort::new(cohort::patients(images, self.scale, self.seed), self.seed)
    }
}

pub(crate) fn run(options: &PaperOptions) -> ExitCode {
    let runtime = Runtime::new().unwrap();
    let mut report = Report::new();
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let command =
        if arguments.is_empty() { "make paper".into() } else { format!("make paper ARGS=\"{}\"", arguments.join(" ")) };
    report.facts(machine::facts(&command));
    if cfg!(debug_assertions) {
        report.facts(vec!["Build: not optimised, so times of our way are not what they could be".into()]);
    }
    let Some(network) = Network::start(SIGNERS) else {
        eprintln!("geth is missing: run `make tools`");
        return ExitCode::FAILURE;
    };
    report.facts(runtime.block_on(network.facts()));
    report.facts(vec![format!(
        "Final, in our way: {} blocks, the transaction's own included; its ledger client is the bridge's, with the bridge's settings",
        network.confirmations()
    )]);
    let founded = runtime.block_on(network.found());
    if report.keep("founding the consortium", founded).is_some() {
        for part in options.parts() {
            match part {
                Part::Pieces => pieces(options, &runtime, &network, &mut report),
                Part::Gas => {
                    let gas = runtime.block_on(pcim::gas(&network));
                    if let Some(gas) = report.keep("gas", gas) {
                        pcim::table(&mut report, gas);
                    }
                }
                Part::Ipfs => {
                    let stored = storing::run(&mut report, &runtime, options.scale);
                    report.keep("files through IPFS", stored);
                }
            }
        }
    }
    report.finish();
    if let Some(path) = options.out() {
        write(&path, &report).unwrap();
        eprintln!("written to {}", path.display());
    }
    if report.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The section into its file, and the pictures beside it.
fn write(path: &Path, report: &Report) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(".")).join("figures");
    for (name, picture) in report.pictures() {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), picture)?;
    }
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let body = format!(
        "Written by `make paper`; do not edit. Ratios above 1 mean that the row is better.\n\n{}",
        report.body()
    );
    std::fs::write(path, with_section(&old, SECTION, &body))
}

fn pieces(options: &PaperOptions, runtime: &Runtime, network: &Network, report: &mut Report) {
    let Some(cohort) = report.keep("making the images", options.cohort()) else { return };
    tables::cohort(report, &cohort.patients, options.scale);
    let mut results = Results::default();
    for way in options.ways() {
        let measured = runtime.block_on(in_way(options, network, way, &cohort, &mut results));
        report.keep(&way.name(), measured);
    }
    let counts = results.all.iter().map(|one| (one.way, one.method.name(), one.counted.transactions, one.expected));
    let at_once = results.at_once.iter().map(|one| (one.way, "at once".into(), one.counted.transactions, one.expected));
    for (way, what, found, wanted) in counts.chain(at_once).filter(|(_, _, found, wanted)| found != wanted) {
        report.failure(format!("{}, {what}: {found} transactions, not {wanted}", way.name()));
    }
    for level in [Level::Patient, Level::Image] {
        tables::times(report, &results, level);
    }
    tables::savings(report, &results);
    tables::transactions(report, &results);
    tables::at_once(report, &results);
    tables::tests(report, &results);
    tables::correlations(report, &results);
    for (name, picture) in tables::pictures(&results) {
        report.picture("Li and Kuo: time against size (Figures 5 and 6)", &name, picture);
    }
}

/// All methods in one way, which has the network for itself.
async fn in_way(
    options: &PaperOptions,
    network: &Network,
    way: Way,
    cohort: &Cohort,
    results: &mut Results,
) -> Outcome<()> {
    let open = Open::on(network, way).await?;
    for method in options.methods() {
        let measured = measure::measure(network, &open, way, method, cohort).await?;
        eprintln!("({}, {}: {:.0} s of storing)", way.name(), method.name(), measured.storing_s);
        results.all.push(measured);
    }
    if way != Way::PaperShaped {
        results.at_once.push(measure::at_once(network, &open, way, cohort).await?);
    }
    Ok(())
}
