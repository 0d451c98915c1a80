//! The papers' tables of what was measured, with the papers' own figures beside.

use super::cohort::{IMAGES, MAX_KB, MEAN_KB, MEDIAN_KB, MIN_KB, PATIENTS, PIECE_BYTES, PIECES, Patient, sizes};
use super::figures::{Across, Panel, Series, scatter};
use super::measure::{AtOnce, Level, Measured, Method, Time};
use super::statistics::{Line, PairedTest, Summary};
use super::ways::Way;
use crate::report::{Report, Table, figure, ratio};

/// Means of Li and Kuo (2021), in seconds per image or patient, where we know them. Theirs ran on two virtual machines of AWS.
fn published(method: Method, time: Time) -> Option<f64> {
    match (method, time) {
        (Method::Image, Time::Store) => Some(83.5),
        (Method::ImagePreview, Time::Store) => Some(89.8),
        (Method::Image, Time::Load) => Some(0.52),
        (Method::ImagePreview, Time::Load) => Some(0.70),
        (Method::Image, Time::Viewable) => Some(84.1),
        (Method::ImagePreview, Time::Viewable) => Some(6.1),
        (Method::Patient, Time::Store) => Some(172.8),
        (Method::PatientPreview, Time::Store) => Some(185.1),
        (Method::Patient | Method::PatientPreview, Time::Load) => None,
        (Method::Patient, Time::Viewable) => Some(179.8),
        (Method::PatientPreview, Time::Viewable) => Some(12.3),
    }
}

/// How much sooner something is viewable with previews, by the paper.
fn published_saving(level: Level) -> f64 {
    match level {
        Level::Image => 92.7,
        Level::Patient => 93.2,
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), figure)
}

/// Everything measured in a run.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) all: Vec<Measured>,
    pub(crate) at_once: Vec<AtOnce>,
}

impl Results {
    fn of(&self, way: Way, method: Method) -> Option<&Measured> {
        self.all.iter().find(|one| one.way == way && one.method == method)
    }

    fn ways(&self) -> Vec<Way> {
        let mut ways: Vec<Way> = Vec::new();
        for one in &self.all {
            if !ways.contains(&one.way) {
                ways.push(one.way);
            }
        }
        ways
    }

    fn mean(&self, way: Way, method: Method, time: Time) -> Option<f64> {
        Summary::of(&self.of(way, method)?.seconds(time)).map(|summary| summary.mean)
    }
}

pub(crate) fn cohort(report: &mut Report, patients: &[Patient], scale: f64) {
    let mut table = Table::new(
        "The images",
        &["set", "images", "patients", "min KB", "median KB", "mean KB", "max KB", "pieces of 30,000 bytes"],
    );
    let row = |name: &str, patients: usize, bytes: &[usize]| -> Vec<String> {
        let sizes: Vec<f64> = bytes.iter().map(|bytes| *bytes as f64 / 1e3).collect();
        let found = Summary::of(&sizes);
        let value = |of: fn(&Summary) -> f64| shown(found.as_ref().map(of));
        let pieces: usize = bytes.iter().map(|bytes| bytes.div_ceil(PIECE_BYTES)).sum();
        let sizes = [value(|s| s.min), value(|s| s.median), value(|s| s.mean), value(|s| s.max)];
        [vec![name.into(), bytes.len().to_string(), patients.to_string()], sizes.into(), vec![pieces.to_string()]]
            .concat()
    };
    let images = [IMAGES.to_string(), PATIENTS.to_string()];
    let kilobytes = [MIN_KB, MEDIAN_KB, MEAN_KB, MAX_KB].map(figure);
    table.row([vec!["Li and Kuo".into()], images.into(), kilobytes.into(), vec![PIECES.to_string()]].concat());
    table.row(row("ours, whole", PATIENTS as usize, &sizes(IMAGES)));
    let used: Vec<usize> = patients.iter().flatten().map(|image| image.bytes).collect();
    table.row(row("ours, this run", patients.len(), &used));
    table.note(
        "Sizes are evenly spaced quantiles of a lognormal distribution that is cut off at the paper's smallest and largest size, has its median, and \
         is as wide as makes the mean of 920 the paper's; the number of pieces was not fitted. A run with fewer images takes every so many-th by \
         size, so the largest few are mostly not in it. Contents are noise, which neither way compresses or encrypts; both store the same bytes.",
    );
    if (scale - 1.0).abs() > f64::EPSILON {
        table.note(format!(
            "Sizes of this run are multiplied by {scale}, so nothing below is comparable with the paper."
        ));
    }
    report.table(&table);
}

/// Tables 2 and 3: times of each patient, and of each image.
pub(crate) fn times(report: &mut Report, results: &Results, level: Level) {
    let name = level.name();
    let heads = ["way", "preview", "time", "mean", "SD", "min", "median", "max", "Li and Kuo, mean", "to paper-shaped"];
    let title = format!("Li and Kuo: {name} level, seconds per {name} (Tables 2 and 3)");
    let mut table = Table::new(title, &heads);
    for method in Method::ALL.into_iter().filter(|method| method.level() == level) {
        for time in Time::ALL {
            for way in results.ways() {
                let Some(measured) = results.of(way, method) else { continue };
                let Some(found) = Summary::of(&measured.seconds(time)) else { continue };
                let beside = if way == Way::PaperShaped { published(method, time) } else { None };
                let paper = results.mean(Way::PaperShaped, method, time);
                let cells =
                    [found.mean.into(), found.deviation, found.min.into(), found.median.into(), found.max.into()];
                let head = [way.name(), if method.previews() { "with" } else { "without" }.into(), time.name().into()];
                let beside = beside.map_or_else(|| "-".into(), |seconds| seconds.to_string());
                let ratio = ratio(paper, Some(found.mean));
                table.row([head.into(), cells.map(shown).to_vec(), vec![beside, ratio]].concat());
            }
        }
    }
    if table.is_empty() {
        return;
    }
    table.note(
        "As we read the paper: at patient level the images of a patient are one run of pieces under the patient, at image level each is a run of its own; \
         previews go before, a transaction each, and a patient is viewable when all of theirs are. Of the paper's tables we know the means that are \
         cited here.",
    );
    table.note(
        "The paper-shaped way waits for a receipt after every piece; ours counts nothing as stored before it is final, which is a block more, and \
         stores no piece of an image before its previews are final. \"First viewable\" is from the start of storing until previews are stored and \
         read back, or without previews everything. Times in our way are without the transactions that seal images; they are in the next table. \
         Li and Kuo's means were measured on their own network of two cloud machines. A ratio above 1 means faster than paper-shaped.",
    );
    report.table(&table);
}

/// How much sooner something can be viewed with previews.
pub(crate) fn savings(report: &mut Report, results: &Results) {
    let heads = ["way", "level", "without, mean s", "with, mean s", "sooner", "Li and Kuo"];
    let mut table = Table::new("Li and Kuo: first viewable, with previews and without", &heads);
    for way in results.ways() {
        for (level, without, with) in [
            (Level::Patient, Method::Patient, Method::PatientPreview),
            (Level::Image, Method::Image, Method::ImagePreview),
        ] {
            let mean = |method| results.mean(way, method, Time::Viewable);
            let (Some(without), Some(with)) = (mean(without), mean(with)) else { continue };
            let saved = format!("{:.1} %", (1.0 - with / without) * 100.0);
            let theirs = if way == Way::PaperShaped { format!("{:.1} %", published_saving(level)) } else { "-".into() };
            table.row(vec![way.name(), level.name().into(), figure(without), figure(with), saved, theirs]);
        }
    }
    if !table.is_empty() {
        report.table(&table);
    }
}

pub(crate) fn transactions(report: &mut Report, results: &Results) {
    let heads = [
        "way",
        "method",
        "transactions",
        "by the sizes",
        "pieces",
        "previews",
        "seals",
        "gas",
        "gas a byte",
        "storing s",
        "MB/s",
        "to paper-shaped",
    ];
    let mut table = Table::new("Li and Kuo: transactions, gas and rate of each method", &heads);
    let rate = |one: &Measured| one.bytes as f64 / 1e6 / one.storing_s;
    for one in &results.all {
        table.row(vec![
            one.way.name(),
            one.method.name(),
            one.counted.transactions.to_string(),
            one.expected.to_string(),
            one.pieces.to_string(),
            one.previews.to_string(),
            one.seals.to_string(),
            one.counted.gas.to_string(),
            figure(one.counted.gas as f64 / one.bytes as f64),
            figure(one.storing_s),
            format!("{:.3}", rate(one)),
            ratio(Some(rate(one)), results.of(Way::PaperShaped, one.method).map(rate)),
        ]);
    }
    table.note(
        "Transactions and gas are counted in the blocks' receipts; \"by the sizes\" is what they have to be. Patients or images one after the other, \
         seals included. Gas a byte is of the images' bytes, whatever else was stored. In the paper previews were 4.8 % of the transactions.",
    );
    report.table(&table);
}

/// The rate of our way with all images under way together, beside the paper's way, which knows no such thing.
pub(crate) fn at_once(report: &mut Report, results: &Results) {
    let heads = ["way", "MB", "transactions", "by the sizes", "gas a byte", "storing s", "MB/s", "to paper-shaped"];
    let mut table = Table::new("All images at once", &heads);
    let paper = results.of(Way::PaperShaped, Method::Image).map(|one| one.bytes as f64 / 1e6 / one.storing_s);
    for one in &results.at_once {
        let rate = one.bytes as f64 / 1e6 / one.seconds;
        table.row(vec![
            one.way.name(),
            figure(one.bytes as f64 / 1e6),
            one.counted.transactions.to_string(),
            one.expected.to_string(),
            figure(one.counted.gas as f64 / one.bytes as f64),
            figure(one.seconds),
            format!("{rate:.3}"),
            ratio(Some(rate), paper),
        ]);
    }
    table.note(
        "All images of the run handed to the ledger client together, without previews, until they are final and sealed, as the publisher does with \
         what waits. The paper-shaped way beside it is that of the image level without preview, one transaction after the other.",
    );
    report.table(&table);
}

/// Two series of measurements that belong together pair by pair.
struct Pairing {
    what: String,
    first: Vec<f64>,
    second: Vec<f64>,
}

pub(crate) fn tests(report: &mut Report, results: &Results) {
    let heads = ["first, second", "pairs", "mean of first less second, s", "t", "degrees of freedom", "p, two-sided"];
    let mut table = Table::new("Li and Kuo: paired t-tests between methods", &heads);
    for pairing in pairings(results) {
        let cells = match PairedTest::of(&pairing.first, &pairing.second) {
            Some(test) => {
                let p = if test.p < 1e-4 { "< 0.0001".into() } else { format!("{:.4}", test.p) };
                let (difference, t) = (format!("{:.3}", test.mean_difference), format!("{:.2}", test.t));
                vec![test.pairs.to_string(), difference, t, test.degrees.to_string(), p]
            }
            None => [vec![pairing.first.len().to_string()], vec!["-".into(); 4]].concat(),
        };
        table.row([vec![pairing.what], cells].concat());
    }
    table.note(
        "Pairs are the same image or patient in both. At image level the times of a patient's images are added up where they are compared with patient \
         level. Where all differences are the same, or there is one pair, there is no test.",
    );
    report.table(&table);
}

/// Ways whose methods are compared with each other and drawn: the paper's and the first of ours.
const SHOWN: usize = 2;

fn pairings(results: &Results) -> Vec<Pairing> {
    let ways = results.ways();
    let mut out = Vec::new();
    for way in ways.iter().take(SHOWN) {
        for time in Time::ALL {
            for (first, second) in [
                (Method::Image, Method::ImagePreview),
                (Method::Patient, Method::PatientPreview),
                (Method::Image, Method::Patient),
                (Method::ImagePreview, Method::PatientPreview),
            ] {
                let (Some(a), Some(b)) = (results.of(*way, first), results.of(*way, second)) else { continue };
                let together = first.level() != second.level();
                let of = |one: &Measured| if together { by_patient(one, time) } else { one.seconds(time) };
                let names = format!("{}, {}: {} - {}", way.name(), time.name(), first.name(), second.name());
                out.push(Pairing { what: names, first: of(a), second: of(b) });
            }
        }
    }
    for way in ways.iter().filter(|way| **way != Way::PaperShaped) {
        for method in Method::ALL {
            let (Some(a), Some(b)) = (results.of(Way::PaperShaped, method), results.of(*way, method)) else { continue };
            let what = format!("store, {}: paper-shaped - {}", method.name(), way.name());
            out.push(Pairing { what, first: a.seconds(Time::Store), second: b.seconds(Time::Store) });
        }
    }
    out
}

/// Sums over each patient's units, in the patients' order.
fn by_patient(measured: &Measured, time: Time) -> Vec<f64> {
    let patients = measured.units.iter().map(|unit| unit.patient + 1).max().unwrap_or(0);
    let mut sums = vec![0.0; patients];
    for unit in &measured.units {
        sums[unit.patient] += unit.seconds(time);
    }
    sums
}

/// Sizes in MB with times.
fn points(measured: &Measured, time: Time) -> Vec<(f64, f64)> {
    measured.units.iter().map(|unit| (unit.bytes as f64 / 1e6, unit.seconds(time))).collect()
}

pub(crate) fn correlations(report: &mut Report, results: &Results) {
    let heads = ["way", "method", "time", "pairs", "Pearson's r", "seconds a MB", "seconds at none"];
    let mut table = Table::new("Li and Kuo: size and time", &heads);
    for one in &results.all {
        for time in Time::ALL {
            let points = points(one, time);
            let line = Line::of(&points);
            let of = |value: fn(&Line) -> Option<f64>| {
                line.as_ref().and_then(value).map_or_else(|| "-".into(), |value| format!("{value:.3}"))
            };
            let head = vec![one.way.name(), one.method.name(), time.name().into(), points.len().to_string()];
            let fit = vec![of(|l| l.correlation), of(|l| Some(l.slope)), of(|l| Some(l.intercept))];
            table.row([head, fit].concat());
        }
    }
    table.note("The last two columns are the line of least squares, as in the figures.");
    report.table(&table);
}

/// Figures 5 and 6: time against size, the paper-shaped way and the first of ours. File names and pictures.
pub(crate) fn pictures(results: &Results) -> Vec<(String, String)> {
    let ways: Vec<Way> = results.ways().into_iter().take(SHOWN).collect();
    let panel = |level: Level, time: Time| -> Panel {
        let mut series = Vec::new();
        for way in &ways {
            for method in Method::ALL.into_iter().filter(|method| method.level() == level) {
                let Some(measured) = results.of(*way, method) else { continue };
                let preview = if method.previews() { "with" } else { "without" };
                series.push(Series {
                    name: format!("{}, {preview} preview", way.name()),
                    points: points(measured, time),
                });
            }
        }
        Panel { title: format!("{} level", level.name()), across: Across::SIZE, series }
    };
    let picture = |time: Time| {
        let title = format!("Time to {} against size", if time == Time::Viewable { "first view" } else { time.name() });
        let file = format!("paper-{}.svg", time.name().replace(' ', "-"));
        let panels = [Level::Patient, Level::Image].map(|level| panel(level, time)).into_iter();
        (file, scatter(&title, &panels.filter(|panel| !panel.series.is_empty()).collect::<Vec<_>>()))
    };
    Time::ALL.map(picture).into()
}
