//! Li and Kuo's four methods in one way: stores and loads every patient or image, one after the other, and compares every byte.

use std::time::Instant;

use clap::ValueEnum;

use super::cohort::{Cohort, Image, Patient};
use super::ways::{Open, Run, Way};
use crate::Outcome;
use crate::clique::{Count, Network};

/// The paper's methods. As we read it: at patient level the images of a patient are one run of pieces under the patient, at image level each is
/// a run of its own; with previews, those of the patient or the image go before, a transaction each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    Patient,
    PatientPreview,
    Image,
    ImagePreview,
}

impl Method {
    pub(crate) const ALL: [Self; 4] = [Self::Patient, Self::PatientPreview, Self::Image, Self::ImagePreview];

    pub(crate) fn previews(self) -> bool {
        matches!(self, Self::PatientPreview | Self::ImagePreview)
    }

    pub(crate) fn level(self) -> Level {
        match self {
            Self::Patient | Self::PatientPreview => Level::Patient,
            Self::Image | Self::ImagePreview => Level::Image,
        }
    }

    pub(crate) fn name(self) -> String {
        let level = self.level().name();
        format!("{level} level, {} preview", if self.previews() { "with" } else { "without" })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Patient,
    Image,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Image => "image",
        }
    }

    /// What is stored as a whole, with the number of its patient.
    fn units(self, patients: &[Patient]) -> Vec<(usize, Vec<Image>)> {
        let numbered = patients.iter().enumerate();
        match self {
            Self::Patient => numbered.map(|(patient, images)| (patient, images.clone())).collect(),
            Self::Image => {
                numbered.flat_map(|(patient, images)| images.iter().map(move |image| (patient, vec![*image]))).collect()
            }
        }
    }
}

/// What is measured of a patient or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Store,
    Load,
    /// From the start of storing until the first picture could be shown: the previews stored and loaded, or without them everything.
    Viewable,
}

impl Time {
    pub(crate) const ALL: [Self; 3] = [Self::Store, Self::Load, Self::Viewable];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Load => "load",
            Self::Viewable => "first viewable",
        }
    }
}

/// Times of one patient or image, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) patient: usize,
    /// Without previews.
    pub(crate) bytes: usize,
    store: f64,
    load: f64,
    viewable: f64,
}

impl Taken {
    pub(crate) fn seconds(&self, time: Time) -> f64 {
        match time {
            Time::Store => self.store,
            Time::Load => self.load,
            Time::Viewable => self.viewable,
        }
    }
}

/// What came of a method.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) way: Way,
    pub(crate) method: Method,
    pub(crate) units: Vec<Taken>,
    /// Storing everything, end to end.
    pub(crate) storing_s: f64,
    pub(crate) bytes: usize,
    pub(crate) pieces: usize,
    pub(crate) previews: usize,
    /// Transactions as the sizes say, of which `seals` end images.
    pub(crate) expected: usize,
    pub(crate) seals: usize,
    /// What the blocks hold.
    pub(crate) counted: Count,
}

impl Measured {
    pub(crate) fn seconds(&self, time: Time) -> Vec<f64> {
        self.units.iter().map(|unit| unit.seconds(time)).collect()
    }
}

/// A unit's runs, made before any clock starts.
struct Unit {
    patient: usize,
    previews: Vec<Run>,
    whole: Run,
}

impl Unit {
    fn new(way: Way, method: Method, patient: usize, images: &[Image], cohort: &Cohort) -> Self {
        // Each method stores under names of its own: what is on the ledger already would not be stored again.
        let owner = format!("{}/{method:?}/{patient}", way.name());
        let preview = |image: &Image| Run::new(&owner, &format!("preview {}", image.number), cohort.preview(image));
        let previews = if method.previews() { images.iter().map(preview).collect() } else { Vec::new() };
        let bytes: Vec<u8> = images.iter().flat_map(|image| cohort.content(image)).collect();
        let name = match method.level() {
            Level::Patient => "images".into(),
            Level::Image => format!("image {}", images[0].number),
        };
        Self { patient, previews, whole: Run::new(&owner, &name, bytes.into()) }
    }

    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.previews.iter().chain([&self.whole])
    }

    fn transactions(&self, way: Way) -> usize {
        way.transactions(&self.previews) + way.transactions(std::slice::from_ref(&self.whole))
    }

    /// Stores previews first and then the rest, as the publisher does, and reads all back.
    async fn measure(&self, open: &Open<'_>) -> Outcome<Taken> {
        let begun = Instant::now();
        let at_previews = if self.previews.is_empty() { Vec::new() } else { open.store(&self.previews).await? };
        let previews_stored = begun.elapsed().as_secs_f64();
        let at_whole = open.store(std::slice::from_ref(&self.whole)).await?;
        let store = begun.elapsed().as_secs_f64();

        let begun = Instant::now();
        let mut loaded = Vec::new();
        for preview in &self.previews {
            loaded.push(open.load(preview, &at_previews).await?);
        }
        let previews_loaded = begun.elapsed().as_secs_f64();
        loaded.push(open.load(&self.whole, &at_whole).await?);
        let load = begun.elapsed().as_secs_f64();

        if let Some((run, _)) = self.runs().zip(&loaded).find(|(run, bytes)| run.bytes != **bytes) {
            return Err(format!("run {} comes back with other bytes", run.id));
        }
        let viewable = if self.previews.is_empty() { store + load } else { previews_stored + previews_loaded };
        Ok(Taken { patient: self.patient, bytes: self.whole.bytes.len(), store, load, viewable })
    }
}

/// Runs a method over everything.
pub(crate) async fn measure(
    network: &Network,
    open: &Open<'_>,
    way: Way,
    method: Method,
    cohort: &Cohort,
) -> Outcome<Measured> {
    let from = network.head().await?;
    let (mut units, mut seals) = (Vec::new(), Vec::new());
    let (mut pieces, mut previews, mut expected, mut storing_s) = (0, 0, 0, 0.0);
    for (patient, images) in method.level().units(&cohort.patients) {
        let unit = Unit::new(way, method, patient, &images, cohort);
        let taken = unit.measure(open).await?;
        pieces += way.pieces(&unit.whole);
        previews += unit.previews.len();
        expected += unit.transactions(way);
        storing_s += taken.store;
        for run in unit.runs() {
            seals.extend(open.seal_of(run)?);
        }
        units.push(taken);
    }
    let begun = Instant::now();
    let sealing = open.seal(&seals).await?;
    storing_s += begun.elapsed().as_secs_f64();
    let account = if way == Way::PaperShaped { network.client() } else { network.site() };
    let counted = network.count(account, from).await?;
    let bytes = units.iter().map(|unit| unit.bytes).sum();
    let expected = expected + sealing;
    Ok(Measured { way, method, units, storing_s, bytes, pieces, previews, expected, seals: sealing, counted })
}

/// What came of handing over all images at once, in our way.
#[derive(Debug)]
pub(crate) struct AtOnce {
    pub(crate) way: Way,
    pub(crate) bytes: usize,
    /// Until all are final and sealed.
    pub(crate) seconds: f64,
    pub(crate) expected: usize,
    pub(crate) counted: Count,
}

/// Stores all images together, as the publisher does with what waits: the ledger client has work for every block.
pub(crate) async fn at_once(network: &Network, open: &Open<'_>, way: Way, cohort: &Cohort) -> Outcome<AtOnce> {
    let from = network.head().await?;
    let name = |image: &Image| format!("image {}", image.number);
    let owner = format!("{}/at once", way.name());
    let images = cohort.patients.iter().flatten();
    let runs: Vec<Run> = images.map(|image| Run::new(&owner, &name(image), cohort.content(image))).collect();
    let seals: Vec<_> = runs.iter().filter_map(|run| open.seal_of(run).transpose()).collect::<Outcome<_>>()?;
    let begun = Instant::now();
    let stored = open.store(&runs).await?;
    let sealing = open.seal(&seals).await?;
    let seconds = begun.elapsed().as_secs_f64();
    for run in &runs {
        if open.load(run, &stored).await? != run.bytes {
            return Err(format!("run {} comes back with other bytes", run.id));
        }
    }
    let counted = network.count(network.site(), from).await?;
    let bytes = runs.iter().map(|run| run.bytes.len()).sum();
    Ok(AtOnce { way, bytes, seconds, expected: way.transactions(&runs) + sealing, counted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_s_units_are_all_images_once() {
        let image = |number| Image { number, bytes: 10 };
        let patients = vec![vec![image(0), image(2)], vec![image(1)]];
        let units = Level::Image.units(&patients);
        assert_eq!(units.iter().map(|(patient, _)| *patient).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(units.iter().all(|(_, images)| images.len() == 1));
        assert_eq!(Level::Patient.units(&patients).len(), 2);
    }

    #[test]
    fn a_unit_s_transactions() {
        let images = [Image { number: 0, bytes: 50_000 }, Image { number: 1, bytes: 40_000 }];
        let cohort = Cohort::new(vec![images.to_vec()], 1).unwrap();
        let count = |way: Way, method| Unit::new(way, method, 0, &images, &cohort).transactions(way);
        assert_eq!(count(Way::PaperShaped, Method::Patient), 3, "90,000 bytes are one run");
        assert_eq!(count(Way::PaperShaped, Method::PatientPreview), 5);
        let calldata = Way::Ours(bridge::ledger::PieceMode::Calldata);
        assert_eq!(count(calldata, Method::PatientPreview), 2, "both previews in one, the images in one");
    }
}
