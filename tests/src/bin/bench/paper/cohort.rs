//! Images as Li and Kuo had them: as many, of as many patients, of the same sizes. What is in them is noise, which like a compressed
//! radiograph cannot be made smaller; previews are those that the bridge makes of a radiograph. Everything follows from the seed.

use std::io::Cursor;

use alloy::primitives::Bytes;
use bridge::archive::FileMeta;
use bridge::demo::phantom::{Subject, chest_xray};
use bridge::payload::preview::{FrameChoice, Outcome as Picture, encode, render};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::statistics::normal_quantile;
use crate::Outcome;

/// Li and Kuo (2021): images, patients, and sizes in KB of 1,000 bytes. (With 1,024 their 18,396 pieces of 30,000 bytes do not come out.)
pub(crate) const IMAGES: u32 = 920;
pub(crate) const PATIENTS: u32 = 450;
pub(crate) const MIN_KB: f64 = 10.0;
pub(crate) const MAX_KB: f64 = 18_497.0;
pub(crate) const MEDIAN_KB: f64 = 221.0;
pub(crate) const MEAN_KB: f64 = 584.0;
/// Their pieces, and how long one is.
pub(crate) const PIECES: u32 = 18_396;
pub(crate) const PIECE_BYTES: usize = 30_000;

/// Pixels on the longer side of a preview, as the bridge makes them.
const PREVIEW_SIDE: u32 = 512;

/// One image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    /// Position in the whole set; its content follows from it.
    pub(crate) number: u32,
    pub(crate) bytes: usize,
}

/// A patient and their images, never none.
pub(crate) type Patient = Vec<Image>;

/// What a run stores.
pub(crate) struct Cohort {
    pub(crate) patients: Vec<Patient>,
    /// By the images' numbers.
    previews: Vec<Bytes>,
    seed: u64,
}

impl Cohort {
    pub(crate) fn new(patients: Vec<Patient>, seed: u64) -> Outcome<Self> {
        let mut images = patients.concat();
        images.sort_by_key(|image| image.number);
        let previews = images.iter().map(|image| image.preview(seed)).collect::<Outcome<_>>()?;
        Ok(Self { patients, previews, seed })
    }

    /// What is in an image.
    pub(crate) fn content(&self, image: &Image) -> Bytes {
        image.content(self.seed)
    }

    pub(crate) fn preview(&self, image: &Image) -> Bytes {
        self.previews[image.number as usize].clone()
    }
}

/// The sizes of `count` images, in bytes, rising: the evenly spaced quantiles of a lognormal distribution, cut off at the smallest and
/// largest size of the paper. Its median is the paper's; its width is chosen such that the mean of all 920 is the paper's too.
pub(crate) fn sizes(count: u32) -> Vec<usize> {
    let width = width();
    (0..count).map(|rank| (size_kb(rank, count, width) * 1_000.0).round() as usize).collect()
}

fn size_kb(rank: u32, count: u32, width: f64) -> f64 {
    let part = (f64::from(rank) + 0.5) / f64::from(count);
    (MEDIAN_KB.ln() + width * normal_quantile(part)).exp().clamp(MIN_KB, MAX_KB)
}

/// Standard deviation of the logarithm, by bisection: the mean rises with it.
fn width() -> f64 {
    let (mut low, mut high) = (0.5, 2.5);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        let mean = (0..IMAGES).map(|rank| size_kb(rank, IMAGES, middle)).sum::<f64>() / f64::from(IMAGES);
        if mean < MEAN_KB { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// `count` images of patients: all, or every so many-th by size, with patients in the paper's proportion. `scale` multiplies every size.
pub(crate) fn patients(count: u32, scale: f64, seed: u64) -> Vec<Patient> {
    let all = sizes(IMAGES);
    let rank = |nth: u32| ((f64::from(nth) + 0.5) * f64::from(IMAGES) / f64::from(count)) as usize;
    let scaled = |bytes: usize| ((bytes as f64 * scale).round() as usize).max(1);
    let mut sizes: Vec<usize> = (0..count).map(|nth| scaled(all[rank(nth)])).collect();
    let mut random = StdRng::seed_from_u64(seed);
    sizes.shuffle(&mut random);
    let share = f64::from(count) * f64::from(PATIENTS) / f64::from(IMAGES);
    let mut patients: Vec<Patient> = vec![Vec::new(); (share.round() as usize).max(1)];
    for (number, bytes) in (0..count).zip(sizes) {
        // One each first, so that nobody is without; then by chance.
        let first = number as usize;
        let whose = if first < patients.len() { first } else { random.gen_range(0..patients.len()) };
        patients[whose].push(Image { number, bytes });
    }
    patients
}

impl Image {
    /// What is in it.
    fn content(&self, seed: u64) -> Bytes {
        let mut bytes = vec![0; self.bytes];
        StdRng::seed_from_u64(seed.wrapping_add(u64::from(self.number) + 1)).fill_bytes(&mut bytes);
        bytes.into()
    }

    /// The preview that the bridge makes of a radiograph of this number, within one piece.
    fn preview(&self, seed: u64) -> Outcome<Bytes> {
        let subject = Subject {
            patient_name: "Paper^Phantom".into(),
            patient_id: format!("PAPER{}", self.number),
            study_date: "20200102".into(),
            description: "Chest".into(),
            accession: String::new(),
            study_uid: format!("1.2.826.0.1.3680043.9.7779.{}", self.number),
        };
        let object = chest_xray(&subject, PREVIEW_SIDE as u16, seed.wrapping_add(u64::from(self.number)));
        let meta = FileMeta {
            sop_class: object.sop_class,
            sop_instance: object.sop_instance,
            transfer_syntax: object.transfer_syntax,
        };
        let mut file = Cursor::new([meta.encode(), object.bytes].concat());
        let rendered = render(&mut file, FrameChoice::Middle, PREVIEW_SIDE).map_err(|e| e.to_string())?;
        let Picture::Picture(picture) = rendered else { return Err("a radiograph shows nothing".into()) };
        let preview = encode(&picture, PIECE_BYTES).map_err(|e| e.to_string())?;
        Ok(preview.bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::statistics::Summary;

    fn kilobytes(sizes: &[usize]) -> Summary {
        Summary::of(&sizes.iter().map(|bytes| *bytes as f64 / 1e3).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_sizes_are_the_paper_s() {
        let all = sizes(IMAGES);
        let found = kilobytes(&all);
        assert_eq!((found.count, found.min, found.max), (920, MIN_KB, MAX_KB));
        assert!((found.mean / MEAN_KB - 1.0).abs() < 1e-4, "{found:?}");
        assert!((found.median / MEDIAN_KB - 1.0).abs() < 1e-3, "{found:?}");
        // Not fitted, and all the same within one per cent of what the paper counted.
        let pieces: usize = all.iter().map(|bytes| bytes.div_ceil(PIECE_BYTES)).sum();
        assert!((pieces as f64 / f64::from(PIECES) - 1.0).abs() < 0.01, "{pieces} pieces");
    }

    #[test]
    fn a_sample_has_the_same_middle_and_the_same_proportions() {
        let all = patients(IMAGES, 1.0, 1);
        assert_eq!((all.len(), all.iter().map(Vec::len).sum::<usize>()), (450, 920));
        let sample = patients(46, 1.0, 1);
        assert_eq!((sample.len(), sample.iter().map(Vec::len).sum::<usize>()), (23, 46));
        assert!(sample.iter().all(|patient| !patient.is_empty()));
        let found = kilobytes(&sample.concat().iter().map(|image| image.bytes).collect::<Vec<_>>());
        assert!((found.median / MEDIAN_KB - 1.0).abs() < 0.05, "{found:?}");
        assert!((found.mean / MEAN_KB - 1.0).abs() < 0.15, "the largest few are rarely in a sample: {found:?}");
    }

    #[test]
    fn everything_follows_from_the_seed() {
        assert_eq!(patients(46, 1.0, 7), patients(46, 1.0, 7));
        assert_ne!(patients(46, 1.0, 7), patients(46, 1.0, 8));
        let image = Image { number: 3, bytes: 1_000 };
        assert_eq!(image.content(7), image.content(7));
        assert_ne!(image.content(7), image.content(8));
        assert_ne!(image.content(7), Image { number: 4, bytes: 1_000 }.content(7));
    }

    #[test]
    fn a_preview_is_a_picture_and_fits_one_piece() {
        let image = Image { number: 3, bytes: 1_000 };
        let preview = image.preview(7).unwrap();
        assert!(preview.starts_with(&[0xFF, 0xD8]) && preview.len() <= PIECE_BYTES, "{} bytes", preview.len());
        assert_eq!(image.preview(7).unwrap(), preview);
    }
}
