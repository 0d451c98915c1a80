//! Look-up tables of a header: modality, VOI and palette (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5, C.7.9).

use dicom_scp::dataset::{DataSet, Tag, VR};

/// A table that maps from `first` on; values beyond its ends take the end's entry.
#[derive(Debug, Clone)]
pub(super) struct Lut {
    first: i64,
    entries: Vec<u16>,
    bits: u32,
}

const LUT_DESCRIPTOR: Tag = Tag(0x0028, 0x3002);
const LUT_DATA: Tag = Tag(0x0028, 0x3006);
const PALETTE_DESCRIPTOR: [Tag; 3] = [Tag(0x0028, 0x1101), Tag(0x0028, 0x1102), Tag(0x0028, 0x1103)];
const PALETTE_DATA: [Tag; 3] = [Tag(0x0028, 0x1201), Tag(0x0028, 0x1202), Tag(0x0028, 0x1203)];
const PALETTE_SEGMENTED: [Tag; 3] = [Tag(0x0028, 0x1221), Tag(0x0028, 0x1222), Tag(0x0028, 0x1223)];
const ENTRIES_MAX: usize = 65_536;

impl Lut {
    /// The first item of a Modality or VOI LUT Sequence. `signed` is how its input is to be taken where the VR does not
    /// say it.
    pub(super) fn of_sequence(holder: &DataSet, sequence: Tag, signed: bool) -> Option<Self> {
        let item = holder.items(sequence)?.first()?;
        Self::of(item, LUT_DESCRIPTOR, item.bytes(LUT_DATA)?, signed)
    }

    fn of(holder: &DataSet, descriptor: Tag, data: &[u8], signed: bool) -> Option<Self> {
        let (length, first, bits) = described(holder, descriptor, signed)?;
        // Tables of 8 bits are packed by some and spread over words by others; the length shows it.
        let packed = bits <= 8 && data.len() < 2 * length;
        let entries: Vec<u16> = match packed {
            true => data.iter().take(length).map(|byte| u16::from(*byte)).collect(),
            false => words(data).take(length).collect(),
        };
        (!entries.is_empty()).then_some(Self { first, entries, bits })
    }

    /// The entry for a value.
    pub(super) fn look_up(&self, value: i64) -> u16 {
        let last = self.entries.len() - 1;
        let at = usize::try_from(value.saturating_sub(self.first)).unwrap_or(0);
        self.entries[at.min(last)]
    }

    /// The first value that is mapped.
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    /// The largest output the descriptor allows for.
    pub(super) fn output_max(&self) -> f64 {
        f64::from((1_u32 << self.bits) - 1)
    }

    /// Entries as eight bits: palettes of 16 bits use the upper byte, unless all of them fit into the lower one.
    fn narrow_to_eight_bits(&mut self) {
        if self.bits > 8 && self.entries.iter().any(|entry| *entry > 0xFF) {
            self.entries.iter_mut().for_each(|entry| *entry >>= 8);
        }
    }
}

/// Number of entries, first value mapped, bits of an entry (PS3.3 C.11.1.1.1).
fn described(holder: &DataSet, descriptor: Tag, signed: bool) -> Option<(usize, i64, u32)> {
    let element = holder.get(descriptor)?;
    let mut numbers = words(holder.bytes(descriptor)?);
    let (length, first, bits) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let length = if length == 0 { ENTRIES_MAX } else { usize::from(length) };
    let first = if signed || element.vr == VR::SS { i64::from(first as i16) } else { i64::from(first) };
    Some((length, first, u32::from(bits).clamp(1, 16)))
}

fn words(data: &[u8]) -> impl Iterator<Item = u16> {
    data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]))
}

/// Red, green and blue tables with entries of eight bits.
#[derive(Debug, Clone)]
pub(super) struct Palette([Lut; 3]);

impl Palette {
    pub(super) fn of(header: &DataSet, signed: bool) -> Option<Self> {
        let table = |channel: usize| {
            let descriptor = PALETTE_DESCRIPTOR[channel];
            let mut lut = match header.bytes(PALETTE_DATA[channel]) {
                Some(data) => Lut::of(header, descriptor, data, signed)?,
                None => segmented(header, descriptor, header.bytes(PALETTE_SEGMENTED[channel])?, signed)?,
            };
            lut.narrow_to_eight_bits();
            Some(lut)
        };
        Some(Self([table(0)?, table(1)?, table(2)?]))
    }

    pub(super) fn colour(&self, value: i64) -> [u8; 3] {
        [0, 1, 2].map(|channel| self.0[channel].look_up(value).min(255) as u8)
    }

    pub(super) fn first(&self) -> i64 {
        self.0[0].first()
    }
}

/// A segmented table (PS3.3 C.7.9.2): discrete runs, straight lines, and references to earlier segments.
fn segmented(holder: &DataSet, descriptor: Tag, data: &[u8], signed: bool) -> Option<Lut> {
    let (length, first, bits) = described(holder, descriptor, signed)?;
    let codes: Vec<u16> =
        if bits <= 8 { data.iter().map(|byte| u16::from(*byte)).collect() } else { words(data).collect() };
    let mut entries = Vec::new();
    expand(&codes, 0, usize::MAX, bits <= 8, length, true, &mut entries)?;
    entries.resize(length, entries.last().copied()?);
    Some(Lut { first, entries, bits })
}

/// Expands `segments` segments from code `at`; returns where it ended. References do not nest.
fn expand(
    codes: &[u16],
    mut at: usize,
    segments: usize,
    bytes: bool,
    length: usize,
    references: bool,
    entries: &mut Vec<u16>,
) -> Option<usize> {
    for _ in 0..segments {
        let (Some(&opcode), Some(&count)) = (codes.get(at), codes.get(at + 1)) else { break };
        if entries.len() >= length {
            break;
        }
        at += 2;
        match opcode {
            0 => {
                entries.extend_from_slice(codes.get(at..at + usize::from(count))?);
                at += usize::from(count);
            }
            1 => {
                let (from, to) = (i64::from(*entries.last()?), i64::from(*codes.get(at)?));
                at += 1;
                let steps = i64::from(count).max(1);
                entries.extend((1..=i64::from(count)).map(|step| (from + (to - from) * step / steps) as u16));
            }
            2 if references => {
                // The offset counts codes and is a 32-bit number, least significant part first.
                let parts = if bytes { 4 } else { 2 };
                let width = if bytes { 8 } else { 16 };
                let offset =
                    codes.get(at..at + parts)?.iter().rev().fold(0, |sum, part| sum << width | usize::from(*part));
                at += parts;
                let offset = if bytes { offset } else { offset / 2 };
                expand(codes, offset, usize::from(count), bytes, length, false, entries)?;
            }
            _ => return None,
        }
    }
    entries.truncate(length);
    Some(at)
}
