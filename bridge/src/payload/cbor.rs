//! The part of CBOR (RFC 8949) that manifests use, in the one deterministic encoding of its section 4.2.1.
//!
//! Unsigned integers, byte strings, text strings, arrays and maps with small integer keys in rising order; shortest heads,
//! definite lengths. Anything else is refused on reading, so equal manifests are equal bytes. The reader borrows from
//! its input and allocates nothing, whatever lengths a hostile input claims.

/// Major types (RFC 8949 3.1).
const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;

/// Appends encoded values.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        match value {
            0..=23 => self.out.push(major | value as u8),
            24..=0xFF => self.out.extend([major | 24, value as u8]),
            0x100..=0xFFFF => {
                self.out.push(major | 25);
                self.out.extend((value as u16).to_be_bytes());
            }
            0x1_0000..=0xFFFF_FFFF => {
                self.out.push(major | 26);
                self.out.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.out.push(major | 27);
                self.out.extend(value.to_be_bytes());
            }
        }
    }

    pub(super) fn unsigned(&mut self, value: impl Into<u64>) {
        self.head(UNSIGNED, value.into());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    pub(super) fn array(&mut self, items: usize) {
        self.head(ARRAY, items as u64);
    }

    pub(super) fn map(&mut self, entries: usize) {
        self.head(MAP, entries as u64);
    }

    pub(super) fn key(&mut self, key: u8) {
        self.unsigned(key);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Why bytes are not the deterministic encoding of what was expected at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {offset}")]
pub struct CborError {
    /// What is wrong.
    pub reason: &'static str,
    /// Where, counted from the begin of the encoding.
    pub offset: usize,
}

/// Takes encoded values from the front of a slice.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(super) fn error(&self, reason: &'static str) -> CborError {
        CborError { reason, offset: self.offset }
    }

    pub(super) fn bytes_left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], CborError> {
        if count > self.bytes_left() as u64 {
            return Err(self.error("value is cut short"));
        }
        let begin = self.offset;
        self.offset += count as usize;
        Ok(&self.bytes[begin..self.offset])
    }

    fn head(&mut self, major: u8, expected: &'static str) -> Result<u64, CborError> {
        let begin = self.error(expected);
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(begin);
        }
        let width = match first & 0x1F {
            value @ 0..=23 => return Ok(value.into()),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(CborError { reason: "indefinite length", ..begin }),
        };
        let value = self.take(width)?.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        let shortest = match width {
            1 => value > 23,
            2 => value > 0xFF,
            4 => value > 0xFFFF,
            _ => value > 0xFFFF_FFFF,
        };
        if shortest { Ok(value) } else { Err(CborError { reason: "number is not in its shortest form", ..begin }) }
    }

    pub(super) fn unsigned<T: TryFrom<u64>>(&mut self) -> Result<T, CborError> {
        let begin = self.error("number is too large");
        T::try_from(self.head(UNSIGNED, "expected a number")?).map_err(|_| begin)
    }

    pub(super) fn byte_string(&mut self) -> Result<&'a [u8], CborError> {
        let length = self.head(BYTES, "expected a byte string")?;
        self.take(length)
    }

    pub(super) fn digest(&mut self) -> Result<[u8; 32], CborError> {
        let begin = self.error("expected 32 bytes");
        self.byte_string()?.try_into().map_err(|_| begin)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, CborError> {
        let begin = self.error("text is not utf-8");
        let length = self.head(TEXT, "expected a text")?;
        std::str::from_utf8(self.take(length)?).map_err(|_| begin)
    }

    /// The number of items of an array. Every item takes at least one byte, so a claim beyond the bytes left is refused.
    pub(super) fn array(&mut self) -> Result<usize, CborError> {
        let begin = self.error("array is longer than its input");
        let items = self.head(ARRAY, "expected an array")?;
        usize::try_from(items).ok().filter(|items| *items <= self.bytes_left()).ok_or(begin)
    }

    /// Begins a map; its keys are then asked for in rising order.
    pub(super) fn map(&mut self) -> Result<Entries, CborError> {
        Ok(Entries { left: self.head(MAP, "expected a map")? })
    }

    pub(super) fn end(&self) -> Result<(), CborError> {
        if self.bytes_left() == 0 { Ok(()) } else { Err(self.error("bytes after the end")) }
    }
}

/// The entries of a map that have not been read yet.
#[derive(Debug)]
pub(super) struct Entries {
    left: u64,
}

impl Entries {
    /// Expects this key next.
    pub(super) fn key(&mut self, reader: &mut Reader<'_>, key: u8) -> Result<(), CborError> {
        let begin = reader.error("expected another map key");
        if !self.optional_key(reader, key)? {
            return Err(begin);
        }
        Ok(())
    }

    /// Whether this key comes next; takes it if so.
    pub(super) fn optional_key(&mut self, reader: &mut Reader<'_>, key: u8) -> Result<bool, CborError> {
        let before = reader.offset;
        if self.left == 0 {
            return Ok(false);
        }
        if reader.unsigned::<u64>()? != u64::from(key) {
            reader.offset = before;
            return Ok(false);
        }
        self.left -= 1;
        Ok(true)
    }

    /// No entry may be left.
    pub(super) fn end(self, reader: &Reader<'_>) -> Result<(), CborError> {
        if self.left == 0 { Ok(()) } else { Err(reader.error("unexpected map key")) }
    }
}
