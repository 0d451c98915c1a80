//! Believable synthetic studies: real DICOM objects of nobody.
//!
//! Every pixel is computed, so the demonstration and the tests need no image files. The same seed gives the same bytes.

use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR};
use dicom_scp::{TransferSyntax, Uid};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One object, ready to be sent.
#[derive(Debug, Clone)]
pub struct Phantom {
    /// SOP Class UID.
    pub sop_class: Uid,
    /// SOP Instance UID.
    pub sop_instance: Uid,
    /// Explicit VR Little Endian.
    pub transfer_syntax: Uid,
    /// The data set, encoded in that syntax.
    pub bytes: Vec<u8>,
}

/// What a study of phantoms is about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// PatientName (0010,0010).
    pub patient_name: String,
    /// PatientID (0010,0020).
    pub patient_id: String,
    /// StudyDate (0008,0020), `YYYYMMDD`.
    pub study_date: String,
    /// StudyDescription (0008,1030).
    pub description: String,
    /// AccessionNumber (0008,0050).
    pub accession: String,
    /// StudyInstanceUID (0020,000D); series and instances are numbered below it.
    pub study_uid: String,
}

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const DX: &str = "1.2.840.10008.5.1.4.1.1.1.1";
const US_MULTI_FRAME: &str = "1.2.840.10008.5.1.4.1.1.3.1";
const MR: &str = "1.2.840.10008.5.1.4.1.1.4";

/// A chest CT: `slices` axial images of `side` x `side` pixels, 16 bits, in Hounsfield units by rescale.
#[must_use]
pub fn ct_series(subject: &Subject, slices: u32, side: u16, seed: u64) -> Vec<Phantom> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..slices)
        .map(|slice| {
            let z = f64::from(slice) / f64::from(slices.max(2) - 1);
            let pixels = grid(side, side, |x, y| {
                let noise = f64::from(rng.gen_range(-12_i16..=12));
                to_u16(chest_hounsfield(x, y, z) + noise + 1024.0)
            });
            let mut set = header(subject, CT, "CT", 1, slice + 1, "Thorax 1.5 mm");
            let position = f64::from(slice) * 1.5 - 75.0;
            image_module(&mut set, side, side, 16, 12, "MONOCHROME2");
            put(&mut set, (0x0018, 0x0050), VR::DS, "1.5");
            put(&mut set, (0x0020, 0x0032), VR::DS, &format!("-180\\-180\\{position}"));
            put(&mut set, (0x0020, 0x0037), VR::DS, "1\\0\\0\\0\\1\\0");
            put(&mut set, (0x0020, 0x0052), VR::UI, &format!("{}.9", subject.study_uid));
            put(&mut set, (0x0020, 0x1041), VR::DS, &position.to_string());
            put(&mut set, (0x0028, 0x0030), VR::DS, "0.703125\\0.703125");
            put(&mut set, (0x0028, 0x1050), VR::DS, "40\\-600");
            put(&mut set, (0x0028, 0x1051), VR::DS, "400\\1500");
            put(&mut set, (0x0028, 0x1052), VR::DS, "-1024");
            put(&mut set, (0x0028, 0x1053), VR::DS, "1");
            put(&mut set, (0x0028, 0x1054), VR::LO, "HU");
            finish(set, VR::OW, pixels)
        })
        .collect()
}

/// A chest radiograph of `side` x `side` pixels, stored bright-is-dense inverted (MONOCHROME1), as many detectors do.
#[must_use]
pub fn chest_xray(subject: &Subject, side: u16, seed: u64) -> Phantom {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pixels = grid(side, side, |x, y| {
        // The ray's path: what the CT phantom holds from front to back, summed.
        let depth: f64 = (0..12).map(|i| chest_hounsfield(x, f64::from(i) / 5.5 - 1.0, (y + 1.0) / 2.0) + 1000.0).sum();
        to_u16(4095.0 - depth / 4.0 + f64::from(rng.gen_range(-20_i16..=20)))
    });
    let mut set = header(subject, DX, "DX", 2, 1, "Chest PA");
    image_module(&mut set, side, side, 16, 12, "MONOCHROME1");
    put(&mut set, (0x0008, 0x0068), VR::CS, "FOR PRESENTATION");
    put(&mut set, (0x0018, 0x5101), VR::CS, "PA");
    put(&mut set, (0x0028, 0x1050), VR::DS, "2048");
    put(&mut set, (0x0028, 0x1051), VR::DS, "3000");
    put(&mut set, (0x2050, 0x0020), VR::CS, "INVERSE");
    finish(set, VR::OW, pixels)
}

/// A moving ultrasound sector: `frames` colour frames in one object.
#[must_use]
pub fn ultrasound(subject: &Subject, frames: u16, columns: u16, rows: u16, seed: u64) -> Phantom {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut pixels = Vec::with_capacity(usize::from(frames) * usize::from(columns) * usize::from(rows) * 3);
    for frame in 0..frames {
        let beat = (f64::from(frame) / 8.0 * std::f64::consts::TAU).sin();
        for row in 0..rows {
            for column in 0..columns {
                let x = f64::from(column) / f64::from(columns) * 2.0 - 1.0;
                let y = f64::from(row) / f64::from(rows);
                let speckle = rng.r#gen::<u8>();
                pixels.extend_from_slice(&sector(x, y, beat, speckle));
            }
        }
    }
    let mut set = header(subject, US_MULTI_FRAME, "US", 3, 1, "Heart, four chambers");
    image_module(&mut set, rows, columns, 8, 8, "RGB");
    set.put_u16(Tag(0x0028, 0x0002), 3);
    set.put_u16(Tag(0x0028, 0x0006), 0);
    put(&mut set, (0x0028, 0x0008), VR::IS, &frames.to_string());
    put(&mut set, (0x0018, 0x1063), VR::DS, "33.3");
    set.put(Tag(0x0028, 0x0009), Element::bytes(VR::AT, [0x18, 0x00, 0x63, 0x10]));
    finish(set, VR::OB, pixels)
}

/// A brain MR: `slices` images of `side` x `side` pixels.
#[must_use]
pub fn mr_series(subject: &Subject, slices: u32, side: u16, seed: u64) -> Vec<Phantom> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..slices)
        .map(|slice| {
            let z = f64::from(slice) / f64::from(slices.max(2) - 1) * 2.0 - 1.0;
            let pixels = grid(side, side, |x, y| to_u16(brain_signal(x, y, z) + f64::from(rng.gen_range(0_u16..24))));
            let mut set = header(subject, MR, "MR", 4, slice + 1, "T2 axial");
            image_module(&mut set, side, side, 16, 12, "MONOCHROME2");
            put(&mut set, (0x0018, 0x0020), VR::CS, "SE");
            put(&mut set, (0x0018, 0x0080), VR::DS, "4000");
            put(&mut set, (0x0018, 0x0081), VR::DS, "90");
            put(&mut set, (0x0020, 0x0032), VR::DS, &format!("-115\\-115\\{}", z * 70.0));
            put(&mut set, (0x0020, 0x0037), VR::DS, "1\\0\\0\\0\\1\\0");
            put(&mut set, (0x0028, 0x0030), VR::DS, "0.9\\0.9");
            put(&mut set, (0x0028, 0x1050), VR::DS, "700");
            put(&mut set, (0x0028, 0x1051), VR::DS, "1400");
            finish(set, VR::OW, pixels)
        })
        .collect()
}

fn ellipse(x: f64, y: f64, cx: f64, cy: f64, rx: f64, ry: f64) -> bool {
    ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2) <= 1.0
}

/// Hounsfield units at a point of a stylised chest; `x` left to right and `y` front to back in -1..1, `z` 0 at the top.
fn chest_hounsfield(x: f64, y: f64, z: f64) -> f64 {
    let girth = 0.72 + 0.18 * z;
    if !ellipse(x, y, 0.0, 0.0, girth, girth * 0.68) {
        return -1000.0;
    }
    if ellipse(x, y, 0.0, 0.42, 0.10, 0.10) {
        return 420.0;
    }
    let rib =
        ellipse(x, y, 0.0, 0.0, girth * 0.93, girth * 0.62) && !ellipse(x, y, 0.0, 0.0, girth * 0.87, girth * 0.57);
    if rib && ((x.atan2(y) * 3.0 + z * 42.0).sin() > 0.35) {
        return 510.0;
    }
    let heart = (1.0 - ((z - 0.62) / 0.26).powi(2)).max(0.0).sqrt();
    if ellipse(x, y, 0.12, -0.10, 0.26 * heart + 1e-9, 0.22 * heart + 1e-9) {
        return 45.0 + 20.0 * (x * 9.0).sin();
    }
    let lung = (1.0 - ((z - 0.5) / 0.55).powi(2)).max(0.0).sqrt();
    for side in [-1.0, 1.0] {
        if ellipse(x, y, side * 0.36, 0.0, 0.26 * lung + 1e-9, 0.40 * lung + 1e-9) {
            let vessels = ((x * 31.0 + z * 17.0).sin() * (y * 27.0 - z * 23.0).cos()).abs();
            return if vessels > 0.93 { 20.0 } else { -840.0 + 90.0 * vessels };
        }
    }
    if ellipse(x, y, 0.0, 0.0, girth * 0.84, girth * 0.55) { 38.0 } else { -95.0 }
}

fn brain_signal(x: f64, y: f64, z: f64) -> f64 {
    let size = (1.0 - (z * 0.8).powi(2)).max(0.0).sqrt() * 0.85;
    if !ellipse(x, y, 0.0, 0.0, size * 0.82, size) {
        return 0.0;
    }
    if !ellipse(x, y, 0.0, 0.0, size * 0.76, size * 0.94) {
        return 900.0;
    }
    if ellipse(x.abs(), y, 0.11, -0.05, 0.07 * size, 0.24 * size) {
        return 1500.0;
    }
    let folds = ((x * 22.0).sin() + (y * 26.0 + x * 6.0).cos() + z * 2.0).sin();
    if ellipse(x, y, 0.0, 0.0, size * 0.58, size * 0.74) { 520.0 + 30.0 * folds } else { 700.0 + 160.0 * folds }
}

fn sector(x: f64, y: f64, beat: f64, speckle: u8) -> [u8; 3] {
    let (radius, angle) = ((x * x + y * y).sqrt(), x.atan2(y));
    if !(0.08..0.98).contains(&radius) || angle.abs() > 0.75 {
        return [0, 0, 0];
    }
    let chamber =
        |cx: f64, cy: f64, r: f64| ellipse(x, y, cx, cy, r * (1.0 + 0.12 * beat), r * 1.4 * (1.0 - 0.10 * beat));
    let blood = chamber(-0.16, 0.42, 0.12)
        || chamber(0.14, 0.42, 0.11)
        || chamber(-0.13, 0.74, 0.10)
        || chamber(0.15, 0.74, 0.10);
    let tissue = if blood { 0.08 } else { 0.75 - 0.35 * radius };
    let grey = (f64::from(speckle) * tissue) as u8;
    // A jet in colour Doppler where blood moves.
    if blood && (x * 14.0 + y * 9.0 + beat * 3.0).sin() > 0.8 { [40, 60, 200] } else { [grey, grey, grey] }
}

fn grid(columns: u16, rows: u16, mut value: impl FnMut(f64, f64) -> u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(usize::from(columns) * usize::from(rows) * 2);
    for row in 0..rows {
        let y = f64::from(row) / f64::from(rows) * 2.0 - 1.0;
        for column in 0..columns {
            let x = f64::from(column) / f64::from(columns) * 2.0 - 1.0;
            out.extend_from_slice(&value(x, y).to_le_bytes());
        }
    }
    out
}

fn to_u16(value: f64) -> u16 {
    value.clamp(0.0, 4095.0) as u16
}

fn put(set: &mut DataSet, tag: (u16, u16), vr: VR, text: &str) {
    set.put_text(Tag(tag.0, tag.1), vr, text);
}

fn header(subject: &Subject, sop_class: &str, modality: &str, series: u32, number: u32, series_name: &str) -> DataSet {
    let mut set = DataSet::default();
    let series_uid = format!("{}.{series}", subject.study_uid);
    put(&mut set, (0x0008, 0x0005), VR::CS, "ISO_IR 192");
    put(&mut set, (0x0008, 0x0008), VR::CS, "ORIGINAL\\PRIMARY\\AXIAL");
    put(&mut set, (0x0008, 0x0016), VR::UI, sop_class);
    put(&mut set, (0x0008, 0x0018), VR::UI, &format!("{series_uid}.{number}"));
    for tag in [0x0020, 0x0021, 0x0023] {
        put(&mut set, (0x0008, tag), VR::DA, &subject.study_date);
    }
    for tag in [0x0030, 0x0031, 0x0033] {
        put(&mut set, (0x0008, tag), VR::TM, "101500");
    }
    put(&mut set, (0x0008, 0x0050), VR::SH, &subject.accession);
    put(&mut set, (0x0008, 0x0060), VR::CS, modality);
    put(&mut set, (0x0008, 0x0070), VR::LO, "PACS Bridge phantoms");
    put(&mut set, (0x0008, 0x0090), VR::PN, "");
    put(&mut set, (0x0008, 0x1030), VR::LO, &subject.description);
    put(&mut set, (0x0008, 0x103E), VR::LO, series_name);
    put(&mut set, (0x0010, 0x0010), VR::PN, &subject.patient_name);
    put(&mut set, (0x0010, 0x0020), VR::LO, &subject.patient_id);
    put(&mut set, (0x0010, 0x0030), VR::DA, "19700101");
    put(&mut set, (0x0010, 0x0040), VR::CS, "O");
    put(&mut set, (0x0020, 0x000D), VR::UI, &subject.study_uid);
    put(&mut set, (0x0020, 0x000E), VR::UI, &series_uid);
    put(&mut set, (0x0020, 0x0010), VR::SH, "1");
    put(&mut set, (0x0020, 0x0011), VR::IS, &series.to_string());
    put(&mut set, (0x0020, 0x0013), VR::IS, &number.to_string());
    set
}

fn image_module(set: &mut DataSet, rows: u16, columns: u16, allocated: u16, stored: u16, photometric: &str) {
    set.put_u16(Tag(0x0028, 0x0002), 1);
    put(set, (0x0028, 0x0004), VR::CS, photometric);
    set.put_u16(Tag(0x0028, 0x0010), rows);
    set.put_u16(Tag(0x0028, 0x0011), columns);
    set.put_u16(Tag(0x0028, 0x0100), allocated);
    set.put_u16(Tag(0x0028, 0x0101), stored);
    set.put_u16(Tag(0x0028, 0x0102), stored - 1);
    // Unsigned throughout: the CT's rescale intercept takes the place of a sign.
    set.put_u16(Tag(0x0028, 0x0103), 0);
}

fn finish(mut set: DataSet, vr: VR, mut pixels: Vec<u8>) -> Phantom {
    if pixels.len() % 2 == 1 {
        pixels.push(0);
    }
    set.put(Tag(0x7FE0, 0x0010), Element::bytes(vr, pixels));
    let uid = |tag| set.uid(tag).unwrap_or_else(|| unreachable!("every phantom names its class and instance"));
    Phantom {
        sop_class: uid(Tag(0x0008, 0x0016)),
        sop_instance: uid(Tag(0x0008, 0x0018)),
        transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
        bytes: set.write(Encoding::ExplicitLe),
    }
}
