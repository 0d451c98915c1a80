//! Figures of PACS Bridge beside Orthanc and DCMTK's storescp, in one run on one machine, alternating in every round.
//!
//! Every system gets the same objects from the same client over loopback, and the settings that serve it best. What a system
//! does not manage is printed, not left out. Must not know how any of them works inside; the one exception is the synthetic
//! index of the `find` section, which is written with the archive's own schema.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod client;
mod clique;
mod consent;
mod documents;
mod find;
mod ledger;
mod machine;
mod memory;
mod network;
mod objects;
mod paper;
mod report;
mod retrieve;
mod servers;
mod sink;
mod store;
mod web;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};
use report::{Report, section, with_section};
use tokio::runtime::Runtime;

/// What a system under test did not manage, in words.
type Outcome<T> = Result<T, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Store,
    Memory,
    Find,
    Retrieve,
    Ledger,
    Consent,
    Documents,
    Network,
    Dicomweb,
}

#[derive(Debug, Clone, Subcommand)]
enum Other {
    Paper(paper::PaperOptions),
}

/// Measures PACS Bridge beside Orthanc and DCMTK.
///
/// Everything is kept below the temporary directory (TMPDIR), which has to be on a real disk: on tmpfs a sync costs nothing.
#[derive(Debug, Clone, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only this section; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Section>,
    /// Multiplies the number of objects, frames and studies.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Rounds; every figure is their median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Write the tables here as Markdown. A run of all sections, or of one that has a part of its own, without --scale writes docs/benchmarks.md by itself.
    #[arg(long)]
    out: Option<PathBuf>,
}

type Run = fn(&Options, &Runtime, &mut Report);

/// What has a part of its own in the file, below a heading, and can be measured anew without everything else.
const APART: [(Section, &str, Run); 2] =
    [(Section::Network, "A network", network::run), (Section::Dicomweb, "DICOMweb", web::run)];

impl Options {
    /// `count` scaled, but at least `least`.
    fn scaled(&self, count: u32, least: u32) -> u32 {
        ((f64::from(count) * self.scale).round() as u32).max(least)
    }

    fn runs(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }

    /// Whether something is measured that has no part of its own in the file.
    fn runs_what_goes_together(&self) -> bool {
        let has_own = |section: &Section| APART.iter().any(|(apart, ..)| apart == section);
        self.only.is_empty() || !self.only.iter().all(has_own)
    }

    fn out(&self) -> Option<PathBuf> {
        let whole = self.only.is_empty() || !self.runs_what_goes_together();
        let whole = whole && (self.scale - 1.0).abs() < f64::EPSILON;
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
        self.out.clone().or_else(|| whole.then(usual))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Other::Paper(options)) = &options.other {
        return paper::run(options);
    }
    let runtime = Runtime::new().unwrap();
    let sections: [(Section, Run); 7] = [
        (Section::Store, store::run),
        (Section::Memory, memory::run),
        (Section::Find, find::run),
        (Section::Retrieve, retrieve::run),
        (Section::Ledger, ledger::run),
        (Section::Consent, consent::run),
        (Section::Documents, documents::run),
    ];
    let mut document = options.out().map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let mut failed = false;
    if options.runs_what_goes_together() {
        let mut report = begin_report(servers::settings());
        for (section, run) in sections {
            measure(&options, &runtime, section, run, &mut report);
        }
        report.finish();
        failed |= report.has_failures();
        document = document.map(|old| with_others(&old, &report));
    }
    for (section, heading, run) in APART.into_iter().filter(|(section, ..)| options.runs(*section)) {
        let settings = if section == Section::Dicomweb { web::settings() } else { Vec::new() };
        let mut report = begin_report(settings);
        measure(&options, &runtime, section, run, &mut report);
        report.finish();
        failed |= report.has_failures();
        document = document.map(|old| with_section(&old, heading, report.body()));
    }
    if let (Some(path), Some(document)) = (options.out(), document) {
        std::fs::write(&path, document).unwrap();
        eprintln!("written to {}", path.display());
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn begin_report(settings: Vec<String>) -> Report {
    let mut report = Report::new();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    report.facts(machine::facts(&format!("make bench ARGS=\"{}\"", arguments.join(" "))));
    report.facts(settings);
    report
}

fn measure(
    options: &Options,
    runtime: &Runtime,
    section: Section,
    run: fn(&Options, &Runtime, &mut Report),
    report: &mut Report,
) {
    if !options.runs(section) {
        return;
    }
    let begun = Instant::now();
    // A server that does not start panics in its handle; the other sections still have something to say.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(options, runtime, report))) {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        report.failure(format!("section {section:?} broke off: {words}"));
    }
    eprintln!("({section:?} took {:.0} s)", begun.elapsed().as_secs_f64());
}

/// The report, and what other runs wrote into the same file before.
fn with_others(old: &str, report: &Report) -> String {
    let keep = |new: String, name| match section(old, name) {
        Some(body) => with_section(&new, name, body),
        None => new,
    };
    APART.into_iter().map(|(_, heading, _)| heading).chain([paper::SECTION]).fold(report.markdown(), keep)
}
