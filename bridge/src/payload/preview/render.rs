//! From numbers to shades and colours, as a viewer would show them (PS3.3 C.7.6.3, C.11, PS3.4 N.2).
//!
//! Grey: modality transformation, then VOI LUT, else window, else the range of the values; MONOCHROME1 inverted; pixel
//! padding black. Colour: palette or YBR to RGB. Pixels that are not square are stretched.

use dicom_scp::dataset::{DataSet, Tag};

use super::super::object::PixelKind;
use super::frame::{Description, Frame, Photometric, Samples};
use super::lut::{Lut, Palette};
use super::picture::{Pixels, Rendered, fit, scale};
use super::{PreviewError, Reason};

const PIXEL_PRESENTATION: Tag = Tag(0x0008, 0x9205);
const PIXEL_SPACING: Tag = Tag(0x0028, 0x0030);
const PIXEL_ASPECT_RATIO: Tag = Tag(0x0028, 0x0034);
const PIXEL_PADDING_VALUE: Tag = Tag(0x0028, 0x0120);
const PIXEL_PADDING_RANGE_LIMIT: Tag = Tag(0x0028, 0x0121);
const FLOAT_PIXEL_PADDING: [Tag; 2] = [Tag(0x0028, 0x0122), Tag(0x0028, 0x0123)];
const FLOAT_PIXEL_PADDING_LIMIT: [Tag; 2] = [Tag(0x0028, 0x0124), Tag(0x0028, 0x0125)];
const WINDOW_CENTER: Tag = Tag(0x0028, 0x1050);
const WINDOW_WIDTH: Tag = Tag(0x0028, 0x1051);
const RESCALE_INTERCEPT: Tag = Tag(0x0028, 0x1052);
const RESCALE_SLOPE: Tag = Tag(0x0028, 0x1053);
const VOI_LUT_FUNCTION: Tag = Tag(0x0028, 0x1056);
const MODALITY_LUT_SEQUENCE: Tag = Tag(0x0028, 0x3000);
const VOI_LUT_SEQUENCE: Tag = Tag(0x0028, 0x3010);
const PIXEL_MEASURES_SEQUENCE: Tag = Tag(0x0028, 0x9110);
const FRAME_VOI_LUT_SEQUENCE: Tag = Tag(0x0028, 0x9132);
const PIXEL_VALUE_TRANSFORMATION_SEQUENCE: Tag = Tag(0x0028, 0x9145);
const SEGMENTATION_TYPE: Tag = Tag(0x0062, 0x0001);
const SHARED_FUNCTIONAL_GROUPS: Tag = Tag(0x5200, 0x9229);
const PER_FRAME_FUNCTIONAL_GROUPS: Tag = Tag(0x5200, 0x9230);

/// A window that is asked for instead of what the object says (PS3.18 8.3.5.1.4, PS3.3 C.11.2.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    center: f64,
    width: f64,
    function: WindowFunction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowFunction {
    Linear,
    LinearExact,
    Sigmoid,
}

impl Window {
    /// Reads `center,width,function`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(',').map(str::trim);
        let mut number = || words.next()?.parse::<f64>().ok().filter(|number| number.is_finite());
        let (center, width) = (number()?, number()?);
        let function = match (words.next(), words.next()) {
            (None | Some("linear"), None) => WindowFunction::Linear,
            (Some("linear-exact"), None) => WindowFunction::LinearExact,
            (Some("sigmoid"), None) => WindowFunction::Sigmoid,
            _ => return None,
        };
        let is_sensible = if function == WindowFunction::Linear { width >= 1.0 } else { width > 0.0 };
        is_sensible.then_some(Self { center, width, function })
    }
}

/// Renders a decoded frame, at most `side_max` pixels on its longer side.
pub(super) fn render(
    header: &DataSet,
    description: &Description,
    index: u32,
    frame: &Frame,
    side_max: u32,
    window: Option<Window>,
) -> Result<Result<Rendered, Reason>, PreviewError> {
    if !frame.is_whole() {
        return Err(PreviewError::Decode("fewer samples than described".to_owned()));
    }
    let groups = Groups { header, index, window };
    let (width, height) = fit(frame.width, frame.height, aspect(&groups), side_max);
    let cells = Cells::of(description);
    let (channels, samples) = match frame.photometric {
        Photometric::Monochrome1 | Photometric::Monochrome2 => {
            let shades = Shades::of(&groups, description, frame, &cells);
            match supplemental_palette(header, description) {
                Some(palette) => (3, draw_supplemental(frame, &cells, &shades, &palette, width, height)),
                None => (1, draw_grey(frame, &shades, width, height)),
            }
        }
        Photometric::Palette => {
            let Some(palette) = Palette::of(header, description.signed) else {
                return Ok(Err(Reason::Unsupported("palette colour without a palette".to_owned())));
            };
            (3, draw_palette(frame, &cells, &palette, width, height))
        }
        _ => (3, draw_colour(frame, &cells, description, width, height)),
    };
    Ok(Ok(Rendered { width, height, pixels: Pixels::of(channels, samples) }))
}

/// Where attributes of one frame are looked for: its functional groups, the shared ones, the header.
struct Groups<'a> {
    header: &'a DataSet,
    index: u32,
    window: Option<Window>,
}

impl<'a> Groups<'a> {
    /// The macro item of this sequence that applies to the frame, else the header itself.
    fn holder(&self, sequence: Tag) -> &'a DataSet {
        let item_of = |group: Option<&'a DataSet>| group?.items(sequence)?.first();
        let per_frame =
            self.header.items(PER_FRAME_FUNCTIONAL_GROUPS).and_then(|groups| groups.get(self.index as usize));
        let shared = self.header.items(SHARED_FUNCTIONAL_GROUPS).and_then(|groups| groups.first());
        item_of(per_frame).or_else(|| item_of(shared)).unwrap_or(self.header)
    }
}

/// Height of a pixel over its width; 1 when unknown, or so close that nobody sees it.
fn aspect(groups: &Groups<'_>) -> f64 {
    let ratio = |values: Vec<f64>| match values[..] {
        [vertical, horizontal, ..] if vertical > 0.0 && horizontal > 0.0 => Some(vertical / horizontal),
        _ => None,
    };
    ratio(groups.header.floats(PIXEL_ASPECT_RATIO))
        .or_else(|| ratio(groups.holder(PIXEL_MEASURES_SEQUENCE).floats(PIXEL_SPACING)))
        .filter(|ratio| (0.05..=20.0).contains(ratio) && (ratio - 1.0).abs() > 0.01)
        .unwrap_or(1.0)
}

/// How a stored cell becomes a number (PS3.5 8.1.1).
struct Cells {
    shift: u32,
    mask: u32,
    sign: u32,
}

impl Cells {
    fn of(description: &Description) -> Self {
        let bits = description.bits_stored.min(32);
        Self {
            shift: (description.high_bit + 1 - bits).min(31),
            mask: u32::MAX >> (32 - bits),
            sign: if description.signed { 1 << (bits - 1) } else { 0 },
        }
    }

    fn number(&self, cell: u32) -> i64 {
        let bits = cell >> self.shift & self.mask;
        let sign = i64::from(self.sign);
        if bits & self.sign != 0 { i64::from(bits) - 2 * sign } else { i64::from(bits) }
    }
}

impl Samples {
    fn cell(data: &[u8], cell_bytes: usize, at: usize) -> u32 {
        match data[at * cell_bytes..(at + 1) * cell_bytes] {
            [a] => u32::from(a),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        }
    }

    /// Integer samples as numbers; floating point ones rounded.
    fn integer(&self, at: usize, cells: &Cells) -> i64 {
        match self {
            Self::Bytes { data, cell_bytes } => cells.number(Self::cell(data, *cell_bytes, at)),
            Self::Values(values) => i64::from(values[at]),
            Self::Floats(_) | Self::Doubles(_) => self.real(at, cells) as i64,
        }
    }

    fn real(&self, at: usize, cells: &Cells) -> f64 {
        match self {
            Self::Floats(data) => match data[4 * at..4 * at + 4] {
                [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
                _ => 0.0,
            },
            Self::Doubles(data) => data[8 * at..8 * at + 8].try_into().map_or(0.0, f64::from_le_bytes),
            Self::Bytes { .. } | Self::Values(_) => self.integer(at, cells) as f64,
        }
    }
}

/// Stored value to manufacturer-independent value (PS3.3 C.11.1).
enum Modality {
    Linear { slope: f64, intercept: f64 },
    Table(Lut),
}

impl Modality {
    fn of(groups: &Groups<'_>, description: &Description) -> Self {
        if let Some(lut) = Lut::of_sequence(groups.header, MODALITY_LUT_SEQUENCE, description.signed) {
            return Self::Table(lut);
        }
        let holder = groups.holder(PIXEL_VALUE_TRANSFORMATION_SEQUENCE);
        let slope = holder.float(RESCALE_SLOPE).filter(|slope| slope.is_finite() && *slope != 0.0).unwrap_or(1.0);
        let intercept = holder.float(RESCALE_INTERCEPT).filter(|intercept| intercept.is_finite()).unwrap_or(0.0);
        Self::Linear { slope, intercept }
    }

    fn apply(&self, stored: f64) -> f64 {
        match self {
            Self::Linear { slope, intercept } => stored * slope + intercept,
            Self::Table(lut) => f64::from(lut.look_up(stored as i64)),
        }
    }

    /// Whether values below zero may come out, for tables that do not say how their input is signed.
    fn is_signed(&self, description: &Description) -> bool {
        match self {
            Self::Linear { intercept, .. } => description.signed || *intercept < 0.0,
            Self::Table(_) => false,
        }
    }
}

/// What turns values of interest into brightness from 0 to 1 (PS3.3 C.11.2).
enum Voi {
    Table(Lut),
    Linear { center: f64, width: f64 },
    LinearExact { center: f64, width: f64 },
    Sigmoid { center: f64, width: f64 },
    Range { low: f64, high: f64 },
}

impl Voi {
    fn apply(&self, value: f64) -> f64 {
        match self {
            Self::Table(lut) => f64::from(lut.look_up(value.round() as i64)) / lut.output_max(),
            // C.11.2.1.2.1
            Self::Linear { center, width } => {
                let (from, over) = (center - 0.5, width - 1.0);
                if value <= from - over / 2.0 {
                    0.0
                } else if value > from + over / 2.0 {
                    1.0
                } else {
                    (value - from) / over + 0.5
                }
            }
            // C.11.2.1.3.2
            Self::LinearExact { center, width } => ((value - center) / width + 0.5).clamp(0.0, 1.0),
            // C.11.2.1.3.1
            Self::Sigmoid { center, width } => 1.0 / (1.0 + (-4.0 * (value - center) / width).exp()),
            Self::Range { low, high } => ((value - low) / (high - low)).clamp(0.0, 1.0),
        }
    }

    /// The table or window that the object asks for, if it is a sensible one.
    fn of(groups: &Groups<'_>, signed: bool) -> Option<Self> {
        if let Some(Window { center, width, function }) = groups.window {
            return Some(match function {
                WindowFunction::Linear => Self::Linear { center, width },
                WindowFunction::LinearExact => Self::LinearExact { center, width },
                WindowFunction::Sigmoid => Self::Sigmoid { center, width },
            });
        }
        let holder = groups.holder(FRAME_VOI_LUT_SEQUENCE);
        let table = |holder| Lut::of_sequence(holder, VOI_LUT_SEQUENCE, signed);
        if let Some(lut) = table(holder).or_else(|| table(groups.header)) {
            return Some(Self::Table(lut));
        }
        let (center, width) = (holder.float(WINDOW_CENTER)?, holder.float(WINDOW_WIDTH)?);
        if !center.is_finite() || !width.is_finite() {
            return None;
        }
        match holder.text(VOI_LUT_FUNCTION).as_deref() {
            Some("LINEAR_EXACT") if width > 0.0 => Some(Self::LinearExact { center, width }),
            Some("SIGMOID") if width > 0.0 => Some(Self::Sigmoid { center, width }),
            Some("LINEAR_EXACT" | "SIGMOID") => None,
            _ => (width >= 1.0).then_some(Self::Linear { center, width }),
        }
    }
}

/// Stored values that are no measurement (PS3.3 C.7.5.1.1.2).
struct Padding {
    low: f64,
    high: f64,
}

impl Padding {
    fn of(header: &DataSet, description: &Description) -> Option<Self> {
        let (value, limit) = match description.kind {
            PixelKind::Integer => {
                // Both have the pixels' signedness, which the VR on the wire may not show.
                let number = |tag| {
                    let value = header.int(tag)?;
                    Some(if description.signed && value > 0x7FFF { value - 0x1_0000 } else { value } as f64)
                };
                (number(PIXEL_PADDING_VALUE)?, number(PIXEL_PADDING_RANGE_LIMIT))
            }
            kind => {
                let which = usize::from(kind == PixelKind::Double);
                (header.float(FLOAT_PIXEL_PADDING[which])?, header.float(FLOAT_PIXEL_PADDING_LIMIT[which]))
            }
        };
        let limit = limit.unwrap_or(value);
        Some(Self { low: value.min(limit), high: value.max(limit) })
    }

    fn holds(&self, stored: f64) -> bool {
        (self.low..=self.high).contains(&stored)
    }
}

/// Everything that makes a shade of a stored value.
struct Tone {
    modality: Modality,
    voi: Voi,
    padding: Option<Padding>,
    inverted: bool,
}

impl Tone {
    fn shade(&self, stored: f64) -> u8 {
        if self.padding.as_ref().is_some_and(|padding| padding.holds(stored)) {
            return 0;
        }
        let brightness = self.voi.apply(self.modality.apply(stored));
        let brightness = if self.inverted { 1.0 - brightness } else { brightness };
        // Rounded, since the rest is cut off; a NaN becomes black.
        ((brightness * 255.0).clamp(0.0, 255.0) + 0.5) as u8
    }
}

/// The shade of every pixel: looked up by cell where there are few different ones, computed otherwise.
enum Shades<'a> {
    Table { data: &'a [u8], cell_bytes: usize, shades: Vec<u8> },
    Computed { samples: &'a Samples, tone: Tone, cells: Cells },
}

impl<'a> Shades<'a> {
    fn of(groups: &Groups<'_>, description: &Description, frame: &'a Frame, cells: &Cells) -> Self {
        let modality = Modality::of(groups, description);
        let padding = Padding::of(groups.header, description);
        let voi = Voi::of(groups, modality.is_signed(description))
            .unwrap_or_else(|| default_voi(groups.header, description, frame, cells, &modality, padding.as_ref()));
        let inverted = frame.photometric == Photometric::Monochrome1;
        let tone = Tone { modality, voi, padding, inverted };
        match &frame.samples {
            Samples::Bytes { data, cell_bytes: cell_bytes @ (1 | 2) } => {
                let count = 1_u32 << (8 * cell_bytes);
                let shades = (0..count).map(|cell| tone.shade(cells.number(cell) as f64)).collect();
                Self::Table { data, cell_bytes: *cell_bytes, shades }
            }
            samples => Self::Computed { samples, tone, cells: Cells { ..*cells } },
        }
    }

    fn at(&self, position: usize) -> u8 {
        match self {
            Self::Table { data, cell_bytes, shades } => shades[Samples::cell(data, *cell_bytes, position) as usize],
            Self::Computed { samples, tone, cells } => tone.shade(samples.real(position, cells)),
        }
    }
}

/// Without a window, images of up to 8 bits are shown as they are; others over the range of their values, padding left
/// out. Label maps number their segments from 1 and would be black otherwise.
fn default_voi(
    header: &DataSet,
    description: &Description,
    frame: &Frame,
    cells: &Cells,
    modality: &Modality,
    padding: Option<&Padding>,
) -> Voi {
    let label_map = header.text(SEGMENTATION_TYPE).as_deref() == Some("LABELMAP");
    let plain = matches!(modality, Modality::Linear { slope: 1.0, intercept: 0.0 });
    if description.kind == PixelKind::Integer && description.bits_stored <= 8 && plain && !label_map {
        let span = f64::from((1_u32 << description.bits_stored) - 1);
        let low = if description.signed { -f64::from(1_u32 << (description.bits_stored - 1)) } else { 0.0 };
        return Voi::Range { low, high: low + span };
    }
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for position in 0..frame.width as usize * frame.height as usize {
        let stored = frame.samples.real(position, cells);
        let value = modality.apply(stored);
        if value.is_finite() && !padding.is_some_and(|padding| padding.holds(stored)) {
            low = low.min(value);
            high = high.max(value);
        }
    }
    // One value only, or none: everything is black, nothing is divided by zero.
    if low < high { Voi::Range { low, high } } else { Voi::Range { low: f64::MAX / 4.0, high: f64::MAX / 2.0 } }
}

fn draw_grey(frame: &Frame, shades: &Shades<'_>, width: u32, height: u32) -> Vec<u8> {
    scale(frame.width, frame.height, width, height, 1, |x, y, out| out[0] = shades.at(frame.position(x, y, 0)))
}

fn draw_palette(frame: &Frame, cells: &Cells, palette: &Palette, width: u32, height: u32) -> Vec<u8> {
    scale(frame.width, frame.height, width, height, 3, |x, y, out| {
        out.copy_from_slice(&palette.colour(frame.samples.integer(frame.position(x, y, 0), cells)));
    })
}

/// A grey image whose upper values are coloured (PS3.3 C.7.6.19).
fn supplemental_palette(header: &DataSet, description: &Description) -> Option<Palette> {
    let coloured = matches!(header.text(PIXEL_PRESENTATION).as_deref(), Some("COLOR" | "MIXED"));
    if coloured { Palette::of(header, description.signed) } else { None }
}

fn draw_supplemental(
    frame: &Frame,
    cells: &Cells,
    shades: &Shades<'_>,
    palette: &Palette,
    width: u32,
    height: u32,
) -> Vec<u8> {
    scale(frame.width, frame.height, width, height, 3, |x, y, out| {
        let position = frame.position(x, y, 0);
        let stored = frame.samples.integer(position, cells);
        if stored >= palette.first() {
            out.copy_from_slice(&palette.colour(stored))
        } else {
            out.fill(shades.at(position))
        }
    })
}

fn draw_colour(frame: &Frame, cells: &Cells, description: &Description, width: u32, height: u32) -> Vec<u8> {
    // What a decoder finished is as wide as described; cells of other widths are scaled to eight bits.
    let full = u64::from(u32::MAX >> (32 - description.bits_stored.clamp(1, 32)));
    let eight_bits = |value: i64| {
        let value = u64::try_from(value).unwrap_or(0).min(full);
        if full == 255 { value as u8 } else { ((value * 255 + full / 2) / full) as u8 }
    };
    let convert = match frame.photometric {
        Photometric::YbrFull | Photometric::YbrFull422 => ybr_full_to_rgb,
        Photometric::YbrPartial => ybr_partial_to_rgb,
        _ => |rgb: [u8; 3]| rgb,
    };
    scale(frame.width, frame.height, width, height, 3, |x, y, out| {
        let sample = |channel| eight_bits(frame.samples.integer(frame.position(x, y, channel), cells));
        out.copy_from_slice(&convert([sample(0), sample(1), sample(2)]));
    })
}

/// PS3.3 C.7.6.3.1.2, the equations of CCIR 601-2 turned around.
fn ybr_full_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
    rgb.map(|value| value.round().clamp(0.0, 255.0) as u8)
}

/// As [`ybr_full_to_rgb`], from the video range of 16 to 235 and 16 to 240.
fn ybr_partial_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = ((f32::from(y) - 16.0) * 1.164_383, f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let rgb = [y + 1.596_027 * cr, y - 0.391_762 * cb - 0.812_968 * cr, y + 2.017_232 * cb];
    rgb.map(|value| value.round().clamp(0.0, 255.0) as u8)
}
