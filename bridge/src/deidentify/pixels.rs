//! Native pixels: blanking regions, and removing what is stored beside the samples (PS3.5 8.1, PS3.3 C.7.6.3).

use dicom_scp::dataset::{DataSet, Tag};

use super::action::is_curve_or_overlay;
use super::refuse::Refusal;
use super::rules::Blanking;

const SAMPLES_PER_PIXEL: Tag = Tag(0x0028, 0x0002);
const PHOTOMETRIC_INTERPRETATION: Tag = Tag(0x0028, 0x0004);
const PLANAR_CONFIGURATION: Tag = Tag(0x0028, 0x0006);
const NUMBER_OF_FRAMES: Tag = Tag(0x0028, 0x0008);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);
const BITS_STORED: Tag = Tag(0x0028, 0x0101);
const HIGH_BIT: Tag = Tag(0x0028, 0x0102);
const FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0008);
const DOUBLE_FLOAT_PIXEL_DATA: Tag = Tag(0x7FE0, 0x0009);

/// How the samples lie.
struct Layout {
    rows: usize,
    columns: usize,
    samples: usize,
    frames: usize,
    bits: usize,
    planar: bool,
    photometric: String,
}

impl Layout {
    fn of(header: &DataSet, tag: Tag) -> Result<Self, Refusal> {
        let number = |tag| header.int(tag).and_then(|value| usize::try_from(value).ok()).filter(|value| *value > 0);
        let needed = |tag, what| number(tag).ok_or(Refusal::PixelData(what));
        Ok(Self {
            rows: needed(ROWS, "no rows")?,
            columns: needed(COLUMNS, "no columns")?,
            samples: number(SAMPLES_PER_PIXEL).unwrap_or(1),
            frames: frames(header),
            bits: match tag {
                FLOAT_PIXEL_DATA => 32,
                DOUBLE_FLOAT_PIXEL_DATA => 64,
                _ => needed(BITS_ALLOCATED, "no bits allocated")?,
            },
            planar: header.int(PLANAR_CONFIGURATION) == Some(1),
            photometric: header.text(PHOTOMETRIC_INTERPRETATION).unwrap_or_default(),
        })
    }

    /// Bytes of all frames.
    fn bytes(&self) -> Result<usize, Refusal> {
        let samples = match self.photometric.as_str() {
            "YBR_FULL_422" | "YBR_PARTIAL_422" => 2,
            _ => self.samples,
        };
        [self.columns, samples, self.frames, self.bits]
            .into_iter()
            .try_fold(self.rows, usize::checked_mul)
            .map(|bits| bits.div_ceil(8))
            .ok_or(Refusal::PixelData("impossible size"))
    }

    /// Where sample `sample` of pixel (x, y) begins within a frame, in bytes.
    fn offset(&self, x: usize, y: usize, sample: usize) -> usize {
        let pixel = y * self.columns + x;
        let index = match self.planar {
            true => sample * self.rows * self.columns + pixel,
            false => pixel * self.samples + sample,
        };
        index * self.bits / 8
    }
}

/// Number of Frames, 1 when absent.
pub(super) fn frames(header: &DataSet) -> usize {
    header.int(NUMBER_OF_FRAMES).and_then(|frames| usize::try_from(frames).ok()).filter(|n| *n > 0).unwrap_or(1)
}

/// Whether overlays lie in unused bits of the pixel cells (retired; PS3.5 8.1.2).
pub(super) fn has_embedded_overlay(header: &DataSet) -> bool {
    header.iter().any(|(tag, _)| {
        let embedded = matches!((tag.1, header.int(*tag)), (0x0100, Some(2..)) | (0x0102, Some(1..)));
        is_curve_or_overlay(*tag) && embedded
    })
}

/// The value with regions blanked, without what follows the last frame, and without overlays in unused bits.
pub(super) fn cleaned(
    header: &DataSet,
    tag: Tag,
    bytes: &[u8],
    blanking: Option<&Blanking>,
) -> Result<Vec<u8>, Refusal> {
    let layout = Layout::of(header, tag)?;
    let expected = layout.bytes()?;
    let mut bytes = bytes.get(..expected).unwrap_or(bytes).to_vec();
    if has_embedded_overlay(header) {
        mask_unused_bits(header, &layout, &mut bytes)?;
    }
    if let Some(blanking) = blanking.filter(|blanking| !blanking.is_nothing()) {
        blank(&layout, blanking, &mut bytes)?;
    }
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    Ok(bytes)
}

fn mask_unused_bits(header: &DataSet, layout: &Layout, bytes: &mut [u8]) -> Result<(), Refusal> {
    let stored = header.int(BITS_STORED).filter(|bits| (1..=16).contains(bits));
    let (Some(stored), 16) = (stored, layout.bits) else {
        return Err(Refusal::PixelData("overlays in pixel cells that are not of 16 bits"));
    };
    let lowest = header.int(HIGH_BIT).unwrap_or(stored - 1) + 1 - stored;
    let lowest = u32::try_from(lowest).ok().filter(|bit| *bit < 16).ok_or(Refusal::PixelData("impossible high bit"))?;
    let mask = (((1_u32 << stored) - 1) << lowest).to_le_bytes();
    for cell in bytes.chunks_exact_mut(2) {
        cell.iter_mut().zip(mask).for_each(|(byte, mask)| *byte &= mask);
    }
    Ok(())
}

/// Sets the covered samples of every frame to 0: black, white in MONOCHROME1, the first entry of a palette.
fn blank(layout: &Layout, blanking: &Blanking, bytes: &mut [u8]) -> Result<(), Refusal> {
    match (layout.photometric.as_str(), layout.samples, layout.bits) {
        ("MONOCHROME1" | "MONOCHROME2" | "PALETTE COLOR", 1, 8 | 16) | ("RGB", 3, 8 | 16) => {}
        _ => return Err(Refusal::PixelData("regions are blanked in 8 or 16 bit grey, palette and RGB images only")),
    }
    if bytes.len() < layout.bytes()? {
        return Err(Refusal::PixelData("shorter than its frames"));
    }
    let (width, frame_bytes) = (layout.bits / 8, layout.bytes()? / layout.frames);
    let covered = covered(layout, blanking);
    for frame in bytes.chunks_exact_mut(frame_bytes) {
        for (x, y) in &covered {
            for sample in 0..layout.samples {
                let at = layout.offset(*x, *y, sample);
                frame[at..at + width].fill(0);
            }
        }
    }
    Ok(())
}

fn covered(layout: &Layout, blanking: &Blanking) -> Vec<(usize, usize)> {
    let all = (0..layout.rows).flat_map(|y| (0..layout.columns).map(move |x| (x, y)));
    // Rows and columns are 16-bit numbers.
    all.filter(|(x, y)| blanking.covers(*x as u32, *y as u32)).collect()
}
