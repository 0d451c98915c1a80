//! Sequential DCT-based JPEG with 12 bits a sample (ITU-T T.81, extended process 4): transfer syntax .51 as CT and MR
//! archives of the nineties hold it.
//!
//! Written here because the JPEG decoders for Rust stop at 8 bits. Not covered, and refused: progressive and arithmetic coding.

/// A decoded frame: planes of 12-bit values, all of the frame's size.
pub(super) struct Decoded {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) planes: Vec<Vec<u16>>,
}

/// Figure A.6 of T.81, as row and column numbers read off in order.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];
const PRECISION: u8 = 12;
const VALUE_MAX: f32 = 4095.0;
const LEVEL_SHIFT: f32 = 2048.0;

/// Decodes one frame that is described as `width` × `height` pixels of `components` samples.
pub(super) fn decode(bytes: &[u8], width: u32, height: u32, components: u32) -> Result<Decoded, String> {
    let mut decoder = Decoder { bytes, ..Decoder::default() };
    let mut at = 2;
    while let Some([0xFF, code, high, low]) = bytes.get(at..at + 4) {
        let length = usize::from(u16::from_be_bytes([*high, *low])).max(2);
        let segment = bytes.get(at + 4..at + 2 + length).ok_or("jpeg marker segment is cut short")?;
        at += 2 + length;
        match code {
            0xC0 | 0xC1 => {
                decoder.frame(segment)?;
                if (decoder.width, decoder.height, decoder.components.len()) != (width, height, components as usize) {
                    return Err("jpeg frame is not as described".to_owned());
                }
                decoder.allocate();
            }
            0xC4 => decoder.huffman_tables(segment)?,
            0xDB => decoder.quantisation_tables(segment)?,
            0xDD => {
                decoder.restart_interval = segment.get(..2).map_or(0, |w| usize::from(u16::from_be_bytes([w[0], w[1]])))
            }
            0xDA => at = decoder.scan(segment, at)?,
            0xC2..=0xCF => return Err("only sequential huffman coding is supported with 12 bits".to_owned()),
            _ => {}
        }
        // Between scans there may be fill bytes.
        while bytes.get(at..at + 2) == Some(&[0xFF, 0xFF]) {
            at += 1;
        }
        if bytes.get(at..at + 2) == Some(&[0xFF, 0xD9]) {
            break;
        }
    }
    if decoder.components.is_empty() || decoder.components.iter().any(|component| !component.scanned) {
        return Err("jpeg scans do not cover all components".to_owned());
    }
    Ok(Decoded { width, height, planes: decoder.planes() })
}

#[derive(Default)]
struct Component {
    id: u8,
    horizontal: usize,
    vertical: usize,
    table: usize,
    /// Blocks in a row and in a column, filled up to whole MCUs.
    columns: usize,
    rows: usize,
    samples: Vec<u16>,
    prediction: i32,
    scanned: bool,
}

/// A Huffman table in the canonical form of T.81 annex F.2.2.3.
#[derive(Clone, Default)]
struct Huffman {
    /// Per code length from 1: one above the largest code, and what to add to a code to get its value's place.
    limits: [(i32, i32); 16],
    values: Vec<u8>,
}

#[derive(Default)]
struct Decoder<'a> {
    bytes: &'a [u8],
    width: u32,
    height: u32,
    components: Vec<Component>,
    quantisation: [Option<[u16; 64]>; 4],
    /// DC tables, then AC tables.
    huffman: [[Option<Huffman>; 4]; 2],
    restart_interval: usize,
}

impl Decoder<'_> {
    fn frame(&mut self, segment: &[u8]) -> Result<(), String> {
        let impossible = || "impossible jpeg frame header".to_owned();
        let [precision, h1, h0, w1, w0, count] = *segment.first_chunk::<6>().ok_or_else(impossible)?;
        if precision != PRECISION || !self.components.is_empty() || !(1..=3).contains(&count) {
            return Err(impossible());
        }
        self.height = u32::from(u16::from_be_bytes([h1, h0]));
        self.width = u32::from(u16::from_be_bytes([w1, w0]));
        for [id, sampling, table] in segment[6..].as_chunks::<3>().0.iter().take(count.into()) {
            let (horizontal, vertical, table) =
                (usize::from(sampling >> 4), usize::from(sampling & 15), usize::from(*table));
            if !(1..=4).contains(&horizontal) || !(1..=4).contains(&vertical) || table > 3 {
                return Err(impossible());
            }
            self.components.push(Component { id: *id, horizontal, vertical, table, ..Component::default() });
        }
        if self.components.len() != usize::from(count) || self.width == 0 || self.height == 0 {
            return Err(impossible());
        }
        Ok(())
    }

    fn sampling_max(&self) -> (usize, usize) {
        let max = |of: fn(&Component) -> usize| self.components.iter().map(of).max().unwrap_or(1);
        (max(|component| component.horizontal), max(|component| component.vertical))
    }

    /// MCUs in a row and in a column of an interleaved scan.
    fn mcus(&self) -> (usize, usize) {
        let (horizontal, vertical) = self.sampling_max();
        ((self.width as usize).div_ceil(8 * horizontal), (self.height as usize).div_ceil(8 * vertical))
    }

    fn allocate(&mut self) {
        let (across, down) = self.mcus();
        for component in &mut self.components {
            (component.columns, component.rows) = (across * component.horizontal, down * component.vertical);
            component.samples = vec![0; component.columns * component.rows * 64];
        }
    }

    fn quantisation_tables(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let Some((head, rest)) = segment.split_first() {
            let width = if head >> 4 == 0 { 1 } else { 2 };
            let values = rest.get(..64 * width).ok_or("jpeg quantisation table is cut short")?;
            let mut table = [0; 64];
            for (entry, value) in table.iter_mut().zip(values.chunks_exact(width)) {
                *entry = value.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            }
            let place =
                self.quantisation.get_mut(usize::from(head & 15)).ok_or("jpeg has too many quantisation tables")?;
            *place = Some(table);
            segment = &rest[64 * width..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let Some((head, rest)) = segment.split_first() {
            let counts = rest.first_chunk::<16>().ok_or("jpeg huffman table is cut short")?;
            let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
            let values = rest.get(16..16 + total).ok_or("jpeg huffman table is cut short")?.to_vec();
            let mut limits = [(0, 0); 16];
            let (mut code, mut place) = (0_i32, 0_i32);
            for (limit, count) in limits.iter_mut().zip(counts) {
                code <<= 1;
                *limit = (code + i32::from(*count), place - code);
                code += i32::from(*count);
                place += i32::from(*count);
            }
            let (class, index) = (usize::from(head >> 4), usize::from(head & 15));
            let tables = self.huffman.get_mut(class).and_then(|tables| tables.get_mut(index));
            *tables.ok_or("jpeg has too many huffman tables")? = Some(Huffman { limits, values });
            segment = &rest[16 + total..];
        }
        Ok(())
    }

    /// Decodes a scan whose data begins at `at`; returns where it ends.
    fn scan(&mut self, segment: &[u8], at: usize) -> Result<usize, String> {
        let count = usize::from(*segment.first().ok_or("jpeg scan header is cut short")?);
        let mut chosen = Vec::new();
        for [id, tables] in segment[1..].as_chunks::<2>().0.iter().take(count) {
            let which = self.components.iter().position(|component| component.id == *id);
            let which = which.ok_or("jpeg scan names an unknown component")?;
            let table = |class: usize, index: u8| self.huffman[class].get(usize::from(index)).cloned().flatten();
            let (dc, ac) = (table(0, tables >> 4), table(1, tables & 15));
            let quantisation = self.quantisation[self.components[which].table];
            let (Some(dc), Some(ac), Some(quantisation)) = (dc, ac, quantisation) else {
                return Err("jpeg scan uses a table that is not there".to_owned());
            };
            chosen.push(Chosen { which, dc, ac, quantisation });
        }
        if chosen.is_empty() || chosen.len() != count {
            return Err("jpeg scan without components".to_owned());
        }
        let mut bits = Bits { bytes: self.bytes, at, held: 0, count: 0, marker: false };
        let mcus = self.units(&chosen);
        for (number, mcu) in mcus.enumerate() {
            if self.restart_interval > 0 && number > 0 && number % self.restart_interval == 0 {
                bits.restart();
                self.components.iter_mut().for_each(|component| component.prediction = 0);
            }
            self.mcu(&chosen, mcu, &mut bits)?;
        }
        for Chosen { which, .. } in &chosen {
            self.components[*which].scanned = true;
            self.components[*which].prediction = 0;
        }
        Ok(bits.marker_at())
    }

    /// The MCUs of a scan as (column, row); of a single component they are its blocks (T.81 A.2).
    fn units(&self, chosen: &[Chosen]) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (across, down) = match chosen {
            [Chosen { which, .. }] => {
                let component = &self.components[*which];
                let (horizontal, vertical) = self.sampling_max();
                let blocks = |size: u32, own: usize, max: usize| (size as usize * own).div_ceil(max).div_ceil(8);
                (
                    blocks(self.width, component.horizontal, horizontal),
                    blocks(self.height, component.vertical, vertical),
                )
            }
            _ => self.mcus(),
        };
        (0..down).flat_map(move |row| (0..across).map(move |column| (column, row)))
    }

    fn mcu(&mut self, chosen: &[Chosen], (column, row): (usize, usize), bits: &mut Bits<'_>) -> Result<(), String> {
        let single = chosen.len() == 1;
        for Chosen { which, dc, ac, quantisation } in chosen {
            let component = &mut self.components[*which];
            let (across, down) = if single { (1, 1) } else { (component.horizontal, component.vertical) };
            for y in 0..down {
                for x in 0..across {
                    let coefficients = block(bits, dc, ac, quantisation, &mut component.prediction)?;
                    let place = ((row * down + y) * 8 * component.columns + column * across + x) * 8;
                    inverse_dct(&coefficients, &mut component.samples[place..], component.columns * 8);
                }
            }
        }
        Ok(())
    }

    /// The components at full size, subsampled ones repeated.
    fn planes(&self) -> Vec<Vec<u16>> {
        let (horizontal, vertical) = self.sampling_max();
        let plane = |component: &Component| {
            let mut plane = Vec::with_capacity(self.width as usize * self.height as usize);
            for y in 0..self.height as usize {
                let row = y * component.vertical / vertical * component.columns * 8;
                plane.extend(
                    (0..self.width as usize).map(|x| component.samples[row + x * component.horizontal / horizontal]),
                );
            }
            plane
        };
        self.components.iter().map(plane).collect()
    }
}

struct Chosen {
    which: usize,
    dc: Huffman,
    ac: Huffman,
    quantisation: [u16; 64],
}

/// Entropy-coded bits; a stuffed zero follows every FF (T.81 F.1.2.3). Behind the end come zeros, as for a cut file.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u32,
    count: u32,
    marker: bool,
}

impl Bits<'_> {
    fn bit(&mut self) -> i32 {
        if self.count == 0 {
            self.held = self.next_byte().into();
            self.count = 8;
        }
        self.count -= 1;
        (self.held >> self.count & 1) as i32
    }

    fn next_byte(&mut self) -> u8 {
        match self.bytes.get(self.at..self.at + 2) {
            _ if self.marker => 0,
            Some([0xFF, 0]) => {
                self.at += 2;
                0xFF
            }
            Some([0xFF, _]) | None => {
                self.marker = true;
                0
            }
            Some(bytes) => {
                self.at += 1;
                bytes[0]
            }
        }
    }

    /// T.81 F.2.2.1, EXTEND of RECEIVE.
    fn signed(&mut self, size: u32) -> i32 {
        let value = (0..size).fold(0, |value, _| value << 1 | self.bit());
        if size > 0 && value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    fn symbol(&mut self, table: &Huffman) -> Result<u8, String> {
        let mut code = 0;
        for (limit, offset) in table.limits {
            code = code << 1 | self.bit();
            if code < limit
                && let Some(value) = usize::try_from(code + offset).ok().and_then(|place| table.values.get(place))
            {
                return Ok(*value);
            }
        }
        Err("impossible jpeg huffman code".to_owned())
    }

    /// Where the next marker is.
    fn marker_at(&self) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let marker = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7 | 0xFF));
        marker.map_or(self.bytes.len(), |by| self.at + by)
    }

    /// Goes on behind the next restart marker.
    fn restart(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let marker = rest.windows(2).position(|pair| pair[0] == 0xFF && matches!(pair[1], 0xD0..=0xD7));
        if let Some(by) = marker {
            self.at += by + 2;
            self.marker = false;
        }
        self.count = 0;
    }
}

/// One block's dequantised coefficients in natural order (T.81 F.2.2).
fn block(
    bits: &mut Bits<'_>,
    dc: &Huffman,
    ac: &Huffman,
    quantisation: &[u16; 64],
    prediction: &mut i32,
) -> Result<[f32; 64], String> {
    let mut coefficients = [0.0; 64];
    let size = bits.symbol(dc)?;
    if size > 15 {
        return Err("impossible jpeg coefficient".to_owned());
    }
    *prediction = prediction.wrapping_add(bits.signed(size.into()));
    coefficients[0] = *prediction as f32 * f32::from(quantisation[0]);
    let mut place = 1;
    while place < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                break;
            }
            place += 16;
            continue;
        }
        place += run;
        let Some(natural) = ZIGZAG.get(place) else { return Err("jpeg block is too long".to_owned()) };
        coefficients[usize::from(*natural)] = bits.signed(size) as f32 * f32::from(quantisation[place]);
        place += 1;
    }
    Ok(coefficients)
}

/// T.81 A.3.3, one dimension after the other, shifted and clamped to 12 bits.
fn inverse_dct(coefficients: &[f32; 64], out: &mut [u16], stride: usize) {
    use std::sync::OnceLock;
    static BASIS: OnceLock<[[f32; 8]; 8]> = OnceLock::new();
    let basis = BASIS.get_or_init(|| {
        std::array::from_fn(|x| {
            std::array::from_fn(|u| {
                let scale = if u == 0 { 0.5 / std::f32::consts::SQRT_2 } else { 0.5 };
                scale * ((2 * x + 1) as f32 * u as f32 * std::f32::consts::PI / 16.0).cos()
            })
        })
    });
    let mut rows = [0.0_f32; 64];
    for (row, coefficients) in rows.chunks_exact_mut(8).zip(coefficients.chunks_exact(8)) {
        for (sample, basis) in row.iter_mut().zip(basis) {
            *sample = basis.iter().zip(coefficients).map(|(b, c)| b * c).sum();
        }
    }
    for (y, basis) in basis.iter().enumerate() {
        for x in 0..8 {
            let value: f32 = (0..8).map(|v| basis[v] * rows[8 * v + x]).sum();
            out[y * stride + x] = (value + LEVEL_SHIFT).round().clamp(0.0, VALUE_MAX) as u16;
        }
    }
}
