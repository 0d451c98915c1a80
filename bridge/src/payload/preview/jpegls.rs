//! JPEG-LS (ISO/IEC 14495-1, ITU-T T.87), lossless and near-lossless, up to 16 bits and 4 components.
//!
//! Written here because the only maintained decoder that needs no C++ tool chain brings a whole second DICOM stack
//! along. Not covered, and refused: restart intervals, mapping tables and the non-standard colour transforms.

/// A decoded frame: interleaved little endian cells of one byte up to 8 bits, two bytes above.
pub(super) struct Decoded {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) components: u32,
    pub(super) cell_bytes: usize,
    pub(super) data: Vec<u8>,
}

/// Orders of the run length codes, the array J of T.87 A.2.1.
const RUN_ORDER: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const REGULAR_CONTEXTS: usize = 365;

/// Decodes one frame of at most `pixels_max` pixels.
pub(super) fn decode(bytes: &[u8], pixels_max: usize) -> Result<Decoded, String> {
    let mut parser = Parser { bytes, at: 0, header: None, preset: Preset::default() };
    let mut planes: Vec<Vec<u16>> = Vec::new();
    loop {
        match parser.next_marker()? {
            Marker::Frame => {
                let header = parser.header()?;
                if header.width * header.height > pixels_max {
                    return Err("jpeg-ls frame is larger than described".to_owned());
                }
            }
            Marker::Scan(scan) => {
                let header = parser.header()?;
                let coding = Coding::of(&header, &parser.preset, scan.near)?;
                let mut decoder = Decoder::new(coding, header.width, &bytes[parser.at..]);
                planes.extend(decoder.scan(header.height, scan.components, scan.interleave)?);
            }
            Marker::Other => {}
            Marker::End => break,
        }
        if parser.header.is_some_and(|header| planes.len() >= header.components) {
            break;
        }
    }
    let header = parser.header()?;
    if planes.len() != header.components {
        return Err("jpeg-ls scans do not cover all components".to_owned());
    }
    Ok(interleave(&header, &planes))
}

fn interleave(header: &Header, planes: &[Vec<u16>]) -> Decoded {
    let cell_bytes = if header.precision > 8 { 2 } else { 1 };
    let mut data = Vec::with_capacity(header.width * header.height * planes.len() * cell_bytes);
    for pixel in 0..header.width * header.height {
        for plane in planes {
            data.extend_from_slice(&plane[pixel].to_le_bytes()[..cell_bytes]);
        }
    }
    Decoded {
        // Both are 16-bit fields of the frame header.
        width: header.width as u32,
        height: header.height as u32,
        components: planes.len() as u32,
        cell_bytes,
        data,
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    precision: u32,
    width: usize,
    height: usize,
    components: usize,
}

/// Coding parameters from an LSE segment (T.87 C.2.4.1.1); zero means default.
#[derive(Debug, Clone, Copy, Default)]
struct Preset {
    maximum: i32,
    thresholds: [i32; 3],
    reset: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interleave {
    None,
    Line,
    Sample,
}

struct Scan {
    components: usize,
    near: i32,
    interleave: Interleave,
}

enum Marker {
    Frame,
    Scan(Scan),
    Other,
    End,
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    header: Option<Header>,
    preset: Preset,
}

impl Parser<'_> {
    fn header(&self) -> Result<Header, String> {
        self.header.ok_or_else(|| "jpeg-ls data without a frame header".to_owned())
    }

    /// Reads the next marker segment. Entropy-coded data is stepped over: in it, a byte FF is never followed by one
    /// above 7F.
    fn next_marker(&mut self) -> Result<Marker, String> {
        let code = loop {
            match self.bytes.get(self.at..self.at + 2) {
                Some([0xFF, code]) if *code >= 0x80 && *code != 0xFF => break *code,
                Some(_) => self.at += 1,
                None => return Ok(Marker::End),
            }
        };
        self.at += 2;
        match code {
            0xD8 | 0x80..=0xBF => return Ok(Marker::Other),
            0xD9 => return Ok(Marker::End),
            _ => {}
        }
        let cut = || "jpeg-ls marker segment is cut short".to_owned();
        let length = self.bytes.get(self.at..self.at + 2).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
        let segment = self.bytes.get(self.at + 2..self.at + length).ok_or_else(cut)?;
        self.at += length;
        self.segment(code, segment)
    }

    fn segment(&mut self, code: u8, segment: &[u8]) -> Result<Marker, String> {
        let word =
            |at: usize| segment.get(at..at + 2).map_or(0, |word| i32::from(u16::from_be_bytes([word[0], word[1]])));
        let byte = |at: usize| segment.get(at).copied().unwrap_or(0);
        match code {
            0xF7 => {
                let (precision, components) = (u32::from(byte(0)), usize::from(byte(5)));
                let (height, width) = (word(1) as usize, word(3) as usize);
                if !(2..=16).contains(&precision) || !(1..=4).contains(&components) || width == 0 || height == 0 {
                    return Err("impossible jpeg-ls frame header".to_owned());
                }
                self.header = Some(Header { precision, width, height, components });
                Ok(Marker::Frame)
            }
            0xF8 if byte(0) == 1 => {
                self.preset = Preset { maximum: word(1), thresholds: [word(3), word(5), word(7)], reset: word(9) };
                Ok(Marker::Other)
            }
            0xF8 => Err("jpeg-ls mapping tables are not supported".to_owned()),
            0xDD if word(0) != 0 => Err("jpeg-ls restart intervals are not supported".to_owned()),
            0xE8 if segment.starts_with(b"mrfx") && byte(4) != 0 => {
                Err("non-standard jpeg-ls colour transforms are not supported".to_owned())
            }
            0xDA => self.start_of_scan(segment),
            _ => Ok(Marker::Other),
        }
    }

    fn start_of_scan(&self, segment: &[u8]) -> Result<Marker, String> {
        let header = self.header()?;
        let components = usize::from(segment.first().copied().unwrap_or(0));
        let tail = segment.get(1 + 2 * components..).unwrap_or_default();
        let (Some(near), Some(mode)) = (tail.first(), tail.get(1)) else {
            return Err("jpeg-ls scan header is cut short".to_owned());
        };
        let interleave = match mode {
            0 => Interleave::None,
            1 => Interleave::Line,
            2 => Interleave::Sample,
            _ => return Err("unknown jpeg-ls interleave mode".to_owned()),
        };
        let expected = if interleave == Interleave::None { 1 } else { header.components };
        if components != expected {
            return Err("unexpected number of components in a jpeg-ls scan".to_owned());
        }
        Ok(Marker::Scan(Scan { components, near: i32::from(*near), interleave }))
    }
}

/// Everything derived from precision, NEAR and preset parameters (T.87 A.2.1, C.2.4.1.1).
#[derive(Debug, Clone, Copy)]
struct Coding {
    maximum: i32,
    near: i32,
    range: i32,
    bits_of_range: u32,
    limit: u32,
    thresholds: [i32; 3],
    reset: i32,
}

impl Coding {
    fn of(header: &Header, preset: &Preset, near: i32) -> Result<Self, String> {
        let full = (1 << header.precision) - 1;
        let maximum = if preset.maximum == 0 { full } else { preset.maximum };
        let reset = if preset.reset == 0 { 64 } else { preset.reset };
        if !(1..=full).contains(&maximum) || near > maximum / 2 || reset < 3 {
            return Err("impossible jpeg-ls coding parameters".to_owned());
        }
        let range = (maximum + 2 * near) / (2 * near + 1) + 1;
        let bits_for = |values: i32| 32 - (values - 1).leading_zeros();
        let bits = bits_for(maximum + 1).max(2);
        let defaults = default_thresholds(maximum, near);
        let mut thresholds = preset.thresholds;
        for (threshold, default) in thresholds.iter_mut().zip(defaults) {
            if *threshold == 0 {
                *threshold = default;
            }
        }
        Ok(Self {
            maximum,
            near,
            range,
            bits_of_range: bits_for(range),
            limit: 2 * (bits + bits.max(8)),
            thresholds,
            reset,
        })
    }

    fn quantised(&self, gradient: i32) -> i32 {
        let [t1, t2, t3] = self.thresholds;
        let level = match gradient.abs() {
            size if size <= self.near => 0,
            size if size < t1 => 1,
            size if size < t2 => 2,
            size if size < t3 => 3,
            _ => 4,
        };
        level * gradient.signum()
    }

    /// T.87 A.4.4 and A.4.5, decoder's side: from prediction and coded error to the sample.
    fn reconstructed(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let mut sample = predicted + error * step;
        if sample < -self.near {
            sample += self.range * step;
        } else if sample > self.maximum + self.near {
            sample -= self.range * step;
        }
        sample.clamp(0, self.maximum)
    }
}

fn default_thresholds(maximum: i32, near: i32) -> [i32; 3] {
    let clamp = |value: i32, low: i32| if value > maximum || value < low { low } else { value };
    let scaled: [i32; 3] = if maximum >= 128 {
        let factor = (maximum.min(4095) + 128) / 256;
        [factor + 2 + 3 * near, 4 * factor + 3 + 5 * near, 17 * factor + 4 + 7 * near]
    } else {
        let factor = 256 / (maximum + 1);
        [(3 / factor + 3 * near).max(2), (7 / factor + 5 * near).max(3), (21 / factor + 7 * near).max(4)]
    };
    let t1 = clamp(scaled[0], near + 1);
    let t2 = clamp(scaled[1], t1);
    [t1, t2, clamp(scaled[2], t2)]
}

/// Entropy-coded bits: after a byte FF the next byte carries only seven (T.87 A.1).
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    after_ff: bool,
    /// Zero bits handed out behind the end. Some encoders drop trailing zeros, hence a few are let through.
    beyond: u32,
}

impl Bits<'_> {
    const BEYOND_MAX: u32 = 64;

    fn refill(&mut self) {
        while self.count <= 48 {
            let next = self.bytes.get(self.at).copied();
            let Some(byte) = next.filter(|byte| !(self.after_ff && *byte > 0x7F)) else {
                self.held <<= 8;
                self.count += 8;
                self.beyond += 8;
                continue;
            };
            let width = if self.after_ff { 7 } else { 8 };
            self.held = self.held << width | u64::from(byte);
            self.count += width;
            self.after_ff = byte == 0xFF;
            self.at += 1;
        }
    }

    /// Up to 32 bits.
    fn take(&mut self, count: u32) -> Result<u32, String> {
        if count > self.count {
            self.refill();
        }
        self.count -= count;
        if self.beyond > self.count + Self::BEYOND_MAX {
            return Err("jpeg-ls data is cut short".to_owned());
        }
        Ok((self.held >> self.count & ((1 << count) - 1)) as u32)
    }

    /// Zeros up to the next one, which is taken too; an error beyond `limit`.
    fn zeros(&mut self, limit: u32) -> Result<u32, String> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > limit {
                return Err("jpeg-ls code is too long".to_owned());
            }
        }
        Ok(zeros)
    }

    /// A Golomb code of limited length (T.87 A.5.3).
    fn golomb(&mut self, k: u32, limit: u32, bits_of_range: u32) -> Result<i32, String> {
        let escape = limit - bits_of_range - 1;
        let zeros = self.zeros(limit)?;
        if zeros < escape {
            return Ok((zeros << k | self.take(k)?) as i32);
        }
        Ok(self.take(bits_of_range)? as i32 + 1)
    }

    /// As [`golomb`](Self::golomb), refusing what no encoder produces and what would overflow the sums.
    fn code(&mut self, k: u32, limit: u32, coding: &Coding) -> Result<i32, String> {
        match self.golomb(k, limit, coding.bits_of_range)? {
            code if code <= 2 * coding.range => Ok(code),
            _ => Err("impossible jpeg-ls code".to_owned()),
        }
    }
}

/// State of one context (T.87 A.2.2): sums of error sizes and errors, correction, count.
#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

/// State of a run interruption context (T.87 A.7.2).
#[derive(Clone, Copy)]
struct RunContext {
    a: i32,
    n: i32,
    negative: i32,
}

fn golomb_parameter(n: i32, a: i32) -> u32 {
    let mut k = 0;
    while k < 24 && n << k < a {
        k += 1;
    }
    k
}

struct Decoder<'a> {
    coding: Coding,
    bits: Bits<'a>,
    width: usize,
    contexts: Vec<Context>,
    run_contexts: [RunContext; 2],
}

/// Two lines of one component with a border on both sides, and where its runs stand.
struct Lines {
    previous: Vec<i32>,
    current: Vec<i32>,
    run_index: usize,
}

impl Lines {
    fn new(width: usize) -> Self {
        Self { previous: vec![0; width + 2], current: vec![0; width + 2], run_index: 0 }
    }

    /// T.87 A.2.1 figure A.1: beyond the left edge counts what is above, beyond the right edge what is left of it.
    fn begin(&mut self, width: usize) {
        std::mem::swap(&mut self.previous, &mut self.current);
        self.previous[width + 1] = self.previous[width];
        self.current[0] = self.previous[1];
    }

    /// Ra, Rb, Rc, Rd around position `x`, which counts from 1.
    fn neighbours(&self, x: usize) -> [i32; 4] {
        [self.current[x - 1], self.previous[x], self.previous[x - 1], self.previous[x + 1]]
    }
}

impl<'a> Decoder<'a> {
    fn new(coding: Coding, width: usize, bytes: &'a [u8]) -> Self {
        let a = ((coding.range + 32) / 64).max(2);
        Self {
            coding,
            bits: Bits { bytes, at: 0, held: 0, count: 0, after_ff: false, beyond: 0 },
            width,
            contexts: vec![Context { a, b: 0, c: 0, n: 1 }; REGULAR_CONTEXTS],
            run_contexts: [RunContext { a, n: 1, negative: 0 }; 2],
        }
    }

    /// Decodes all lines of a scan; one plane per component.
    fn scan(&mut self, height: usize, components: usize, mode: Interleave) -> Result<Vec<Vec<u16>>, String> {
        let mut lines: Vec<Lines> = (0..components).map(|_| Lines::new(self.width)).collect();
        let mut planes: Vec<Vec<u16>> = vec![Vec::new(); components];
        for _ in 0..height {
            for line in &mut lines {
                line.begin(self.width);
            }
            if mode == Interleave::Sample && components > 1 {
                self.sample_interleaved(&mut lines)?;
            } else {
                for line in &mut lines {
                    self.line(line)?;
                }
            }
            for (plane, line) in planes.iter_mut().zip(&lines) {
                plane.extend(line.current[1..=self.width].iter().map(|sample| *sample as u16));
            }
        }
        Ok(planes)
    }

    fn line(&mut self, line: &mut Lines) -> Result<(), String> {
        let mut x = 1;
        while x <= self.width {
            let around = line.neighbours(x);
            let context = self.context_of(around);
            if context != 0 {
                line.current[x] = self.regular(around, context)?;
                x += 1;
                continue;
            }
            let length = self.run_length(&mut line.run_index, self.width + 1 - x)?;
            line.current[x..x + length].fill(around[0]);
            x += length;
            if x <= self.width {
                let [ra, rb, ..] = line.neighbours(x);
                let same = (ra - rb).abs() <= self.coding.near;
                line.current[x] = self.interruption(ra, rb, same, line.run_index)?;
                line.run_index = line.run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    /// All components of a pixel together: a run only where every component is flat (T.87 B.2.3).
    fn sample_interleaved(&mut self, lines: &mut [Lines]) -> Result<(), String> {
        let mut x = 1;
        while x <= self.width {
            let contexts: Vec<i32> = lines.iter().map(|line| self.context_of(line.neighbours(x))).collect();
            if contexts.iter().any(|context| *context != 0) {
                for (line, context) in lines.iter_mut().zip(contexts) {
                    line.current[x] = self.regular(line.neighbours(x), context)?;
                }
                x += 1;
                continue;
            }
            let mut run_index = lines[0].run_index;
            let length = self.run_length(&mut run_index, self.width + 1 - x)?;
            for line in lines.iter_mut() {
                let ra = line.current[x - 1];
                line.current[x..x + length].fill(ra);
            }
            x += length;
            if x <= self.width {
                for line in lines.iter_mut() {
                    let [ra, rb, ..] = line.neighbours(x);
                    line.current[x] = self.interruption(ra, rb, false, run_index)?;
                }
                run_index = run_index.saturating_sub(1);
                x += 1;
            }
            lines[0].run_index = run_index;
        }
        Ok(())
    }

    /// The signed context number (T.87 A.3.4); zero means run mode.
    fn context_of(&self, [ra, rb, rc, rd]: [i32; 4]) -> i32 {
        let q = |gradient| self.coding.quantised(gradient);
        81 * q(rd - rb) + 9 * q(rb - rc) + q(rc - ra)
    }

    fn regular(&mut self, [ra, rb, rc, _]: [i32; 4], context: i32) -> Result<i32, String> {
        let coding = self.coding;
        let sign = if context < 0 { -1 } else { 1 };
        let state = &mut self.contexts[context.unsigned_abs() as usize];
        let edge = if rc >= ra.max(rb) {
            ra.min(rb)
        } else if rc <= ra.min(rb) {
            ra.max(rb)
        } else {
            ra + rb - rc
        };
        let predicted = (edge + sign * state.c).clamp(0, coding.maximum);
        let k = golomb_parameter(state.n, state.a);
        let mapped = self.bits.code(k, coding.limit, &coding)?;
        let mut error = if mapped & 1 == 0 { mapped >> 1 } else { -((mapped + 1) >> 1) };
        if coding.near == 0 && k == 0 && 2 * state.b <= -state.n {
            // The inverted mapping of T.87 A.5.2.
            error = -error - 1;
        }
        state.update(error, &coding);
        Ok(coding.reconstructed(predicted, sign * error))
    }

    /// Length of a run (T.87 A.7.1), at most `left`.
    fn run_length(&mut self, run_index: &mut usize, left: usize) -> Result<usize, String> {
        let mut length = 0;
        while self.bits.take(1)? == 1 {
            let whole = 1 << RUN_ORDER[*run_index];
            let part = whole.min(left - length);
            length += part;
            if part == whole {
                *run_index = (*run_index + 1).min(31);
            }
            if length == left {
                return Ok(length);
            }
        }
        length += self.bits.take(RUN_ORDER[*run_index])? as usize;
        if length > left { Err("jpeg-ls run is longer than its line".to_owned()) } else { Ok(length) }
    }

    /// The sample that ends a run (T.87 A.7.2); `same` is RItype.
    fn interruption(&mut self, ra: i32, rb: i32, same: bool, run_index: usize) -> Result<i32, String> {
        let coding = self.coding;
        let kind = i32::from(same);
        let state = &mut self.run_contexts[kind as usize];
        let k = golomb_parameter(state.n, state.a + kind * (state.n >> 1));
        let limit = coding.limit - RUN_ORDER[run_index] - 1;
        let coded = self.bits.code(k, limit, &coding)?;
        let sum = coded + kind;
        let map = sum & 1;
        let size = (sum + map) / 2;
        let negative = (k != 0 || 2 * state.negative >= state.n) == (map == 1);
        let error = if negative { -size } else { size };
        state.negative += i32::from(error < 0);
        state.a += (coded + 1 - kind) >> 1;
        if state.n == coding.reset {
            state.a >>= 1;
            state.n >>= 1;
            state.negative >>= 1;
        }
        state.n += 1;
        let (predicted, sign) = if same { (ra, 1) } else { (rb, if ra > rb { -1 } else { 1 }) };
        Ok(coding.reconstructed(predicted, sign * error))
    }
}

impl Context {
    /// T.87 A.6.
    fn update(&mut self, error: i32, coding: &Coding) {
        self.b += error * (2 * coding.near + 1);
        self.a += error.abs();
        if self.n == coding.reset {
            self.a >>= 1;
            self.b >>= 1;
            self.n >>= 1;
        }
        self.n += 1;
        if self.b <= -self.n {
            self.b = (self.b + self.n).max(1 - self.n);
            self.c = (self.c - 1).max(-128);
        } else if self.b > 0 {
            self.b = (self.b - self.n).min(0);
            self.c = (self.c + 1).min(127);
        }
    }
}
