//! Reading data sets from bytes (PS3.5 7), tolerantly and within limits.
//!
//! Understood beyond the standard's letter: `UN` of undefined length holds implicit little endian items (CP-246); standard attributes
//! sent as `UN` get their dictionary VR; an unknown VR code is read in the long form; explicit data in an implicit transfer syntax and
//! the other way round is recognised at the first element; odd lengths; stray delimiters; group lengths are dropped; of a repeated tag the first counts.

use super::{DataSet, Element, Encoding, Tag, VR, Value, dictionary_vr, word_size};

/// Limits and stopping point of [`read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Stop before the first top-level element with this tag or a later one.
    pub stop_at: Option<Tag>,
    /// Values longer than this many bytes become [`Value::Skipped`].
    pub value_bytes_max: u32,
    /// How deep sequences may nest; the top level is 0.
    pub depth_max: u8,
    /// How many elements there may be, nested ones and items counted.
    pub elements_max: u32,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { stop_at: None, value_bytes_max: 1 << 20, depth_max: 32, elements_max: 100_000 }
    }
}

/// How far [`read`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadEnd {
    /// All bytes were used.
    Complete,
    /// An element with `stop_at` or a later tag begins at `offset`.
    Stopped {
        /// The tag found.
        tag: Tag,
        /// Where its element begins, in bytes.
        offset: usize,
    },
    /// The bytes end within an element. Reading can go on with the bytes from `offset`, which is the begin of that element or, when
    /// only a skipped value is cut off, the end of that value and so beyond the bytes given. If there are no more bytes, the data
    /// set is truncated.
    NeedMore {
        /// Where to go on, in bytes.
        offset: usize,
    },
}

/// Why bytes are not a data set that we accept. Offsets are in bytes from the begin of the slice given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// An element reaches beyond the item or sequence that it is in.
    #[error("element {tag} at {offset} is longer than what encloses it")]
    Overrun {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// Something other than an item inside a sequence, or an item outside of one.
    #[error("misplaced {tag} at {offset}")]
    Misplaced {
        /// What was found.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// An item or element with an undefined length that cannot have one.
    #[error("undefined length of {tag} at {offset}")]
    UndefinedLength {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// Sequences nested deeper than `depth_max`.
    #[error("sequences nested too deeply at {offset}")]
    TooDeep {
        /// Where the limit was passed.
        offset: usize,
    },
    /// More elements than `elements_max`.
    #[error("too many elements at {offset}")]
    TooMany {
        /// Where the limit was passed.
        offset: usize,
    },
}

const ITEM: Tag = Tag(0xfffe, 0xe000);
const ITEM_DELIMITATION: Tag = Tag(0xfffe, 0xe00d);
const SEQUENCE_DELIMITATION: Tag = Tag(0xfffe, 0xe0dd);
const UNDEFINED: u32 = u32::MAX;

/// Reads the elements of a data set from the front of `bytes`.
///
/// # Errors
/// When the bytes cannot be a data set within the limits. Running out of bytes is no error but [`ReadEnd::NeedMore`], with the elements read so
/// far.
pub fn read(bytes: &[u8], encoding: Encoding, options: &ReadOptions) -> Result<(DataSet, ReadEnd), ReadError> {
    read_as(bytes, actual_encoding(bytes, encoding), options)
}

/// As [`read`], in exactly this encoding.
pub(super) fn read_as(
    bytes: &[u8],
    encoding: Encoding,
    options: &ReadOptions,
) -> Result<(DataSet, ReadEnd), ReadError> {
    let mut reader = Reader { bytes, options, elements: 0 };
    let mut data_set = DataSet::default();
    let mut offset = 0;
    let end = loop {
        if offset == bytes.len() {
            break ReadEnd::Complete;
        }
        let header = match reader.header(offset, bytes.len(), encoding) {
            Ok(header) => header,
            Err(_) => break ReadEnd::NeedMore { offset },
        };
        if options.stop_at.is_some_and(|stop| header.tag >= stop && header.tag.0 != 0xfffe) {
            break ReadEnd::Stopped { tag: header.tag, offset };
        }
        match reader.element(offset, header, bytes.len(), encoding, 0) {
            Ok((element, next)) => {
                keep(&mut data_set, header.tag, element);
                offset = next;
                if offset > bytes.len() {
                    break ReadEnd::NeedMore { offset };
                }
            }
            Err(Stop::More) => break ReadEnd::NeedMore { offset },
            Err(Stop::Error(error)) => return Err(error),
        }
    };
    data_set.propagate_character_set();
    Ok((data_set, end))
}

/// Group lengths and delimiters are dropped, the first of several elements with the same tag is kept.
fn keep(data_set: &mut DataSet, tag: Tag, element: Option<Element>) {
    if let Some(element) = element {
        data_set.elements.entry(tag).or_insert(element);
    }
}

/// Some senders negotiate one kind of little endian and send the other. The first element tells: its tag is below (0009,0000) and either
/// there are two capital letters naming its VR where a VR would be, or there are not.
pub(crate) fn actual_encoding(bytes: &[u8], declared: Encoding) -> Encoding {
    let Some(&[g0, g1, e0, e1, v0, v1, ..]) = bytes.first_chunk::<8>() else { return declared };
    let tag = Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
    if tag.0 > 0x0008 || tag.0 == 0 {
        return declared;
    }
    let vr = VR::from_binary([v0, v1]);
    match declared {
        // As an implicit length these letters would mean more than 16 KiB in the first element.
        Encoding::ImplicitLe if vr.is_some() && vr == dictionary_vr(tag) => Encoding::ExplicitLe,
        Encoding::ExplicitLe if !is_vr_code([v0, v1]) => Encoding::ImplicitLe,
        declared => declared,
    }
}

pub(crate) fn is_vr_code(code: [u8; 2]) -> bool {
    code.iter().all(u8::is_ascii_uppercase)
}

/// VRs with a two byte length field in explicit encodings (PS3.5 7.1.2).
pub(crate) fn has_short_length(vr: VR) -> bool {
    use VR::*;
    matches!(vr, AE | AS | AT | CS | DA | DS | DT | FL | FD | IS | LO | LT | PN | SH | SL | SS | ST | TM | UI | UL | US)
}

/// Why reading stopped inside an element.
enum Stop {
    More,
    Error(ReadError),
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Stop::Error(error)
    }
}

/// An element's tag, VR and length field.
#[derive(Clone, Copy)]
struct Header {
    tag: Tag,
    vr: VR,
    length: u32,
    /// Bytes of the header itself.
    size: usize,
    /// The VR was `UN` on the wire.
    was_unknown: bool,
}

struct Reader<'a> {
    bytes: &'a [u8],
    options: &'a ReadOptions,
    elements: u32,
}

impl<'a> Reader<'a> {
    /// The header at `offset`; nothing at or after `end` belongs to it.
    fn header(&self, offset: usize, end: usize, encoding: Encoding) -> Result<Header, Stop> {
        let rest = self.bytes.get(offset..end).unwrap_or_default();
        let Some((&head, rest)) = rest.split_first_chunk::<8>() else { return Err(self.cut_short(offset, end)) };
        let [g0, g1, e0, e1, a, b, c, d] = head;
        let (tag, long, short) = match encoding {
            Encoding::ExplicitBe => (
                Tag(u16::from_be_bytes([g0, g1]), u16::from_be_bytes([e0, e1])),
                u32::from_be_bytes([a, b, c, d]),
                u16::from_be_bytes([c, d]),
            ),
            _ => (
                Tag(u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1])),
                u32::from_le_bytes([a, b, c, d]),
                u16::from_le_bytes([c, d]),
            ),
        };
        // Items and delimiters have no VR in any encoding (PS3.5 7.5); a peer that mixes encodings leaves it out elsewhere too.
        if encoding == Encoding::ImplicitLe || tag.0 == 0xfffe || !is_vr_code([a, b]) {
            let vr = implicit_vr(tag, long);
            return Ok(Header { tag, vr, length: long, size: 8, was_unknown: false });
        }
        let vr = VR::from_binary([a, b]).unwrap_or(VR::UN);
        let was_unknown = vr == VR::UN;
        if has_short_length(vr) {
            return Ok(Header { tag, vr, length: short.into(), size: 8, was_unknown });
        }
        let Some(&length) = rest.first_chunk::<4>() else { return Err(self.cut_short(offset, end)) };
        let length = match encoding {
            Encoding::ExplicitBe => u32::from_be_bytes(length),
            _ => u32::from_le_bytes(length),
        };
        Ok(Header { tag, vr, length, size: 12, was_unknown })
    }

    /// Running out of bytes inside a bounded item is the item's fault, at the end of the slice it is the slice's.
    fn cut_short(&self, offset: usize, end: usize) -> Stop {
        if end >= self.bytes.len() {
            return Stop::More;
        }
        Stop::Error(ReadError::Overrun { tag: Tag(0, 0), offset })
    }

    /// The element whose header is at `offset`, and where the next one begins. `None` for what is not kept.
    fn element(
        &mut self,
        offset: usize,
        header: Header,
        end: usize,
        encoding: Encoding,
        depth: u8,
    ) -> Result<(Option<Element>, usize), Stop> {
        self.count(offset)?;
        let Header { tag, vr, length, size, .. } = header;
        let value_at = offset + size;
        if matches!(tag, ITEM_DELIMITATION | SEQUENCE_DELIMITATION) {
            // A stray delimiter carries nothing (its length is zero).
            return Ok((None, value_at));
        }
        if tag.0 == ITEM.0 {
            return Err(ReadError::Misplaced { tag, offset }.into());
        }
        if length == UNDEFINED {
            return self.undefined_length(offset, header, end, encoding, depth);
        }
        let Some(value_end) = value_at.checked_add(length as usize) else { return Err(Stop::More) };
        if end < self.bytes.len() && value_end > end {
            return Err(ReadError::Overrun { tag, offset }.into());
        }
        if tag.1 == 0 && tag.0 != 0x0000 {
            return self.skip_bytes(value_end, end).map(|()| (None, value_end));
        }
        if vr == VR::SQ {
            let element = self.known_length_sequence(offset, header, encoding, depth)?;
            return Ok((Some(element), value_end));
        }
        if length > self.options.value_bytes_max {
            let skipped = Element { vr, value: Value::Skipped { length } };
            if depth > 0 {
                self.skip_bytes(value_end, end)?;
            }
            return Ok((Some(skipped), value_end));
        }
        let Some(bytes) = self.bytes.get(value_at..value_end) else { return Err(Stop::More) };
        Ok((Some(self.plain(header, bytes, encoding, depth)), value_end))
    }

    fn skip_bytes(&self, value_end: usize, end: usize) -> Result<(), Stop> {
        if value_end > end { Err(Stop::More) } else { Ok(()) }
    }

    fn count(&mut self, offset: usize) -> Result<(), ReadError> {
        self.elements += 1;
        if self.elements > self.options.elements_max {
            return Err(ReadError::TooMany { offset });
        }
        Ok(())
    }

    /// A value of known length that is not a sequence on the wire.
    fn plain(&mut self, header: Header, bytes: &[u8], encoding: Encoding, depth: u8) -> Element {
        let Header { tag, mut vr, was_unknown, .. } = header;
        if was_unknown && let Some(known) = dictionary_vr(tag) {
            if known == VR::SQ {
                return self.unknown_sequence(bytes, depth);
            }
            vr = known;
        }
        // What a relay turned into UN is in little endian implicit encoding, whatever surrounds it (PS3.5 6.2.2 note 2).
        let swap = encoding == Encoding::ExplicitBe && !was_unknown;
        Element::bytes(vr, if swap { swapped(vr, bytes) } else { bytes.to_vec() })
    }

    /// A sequence whose bytes are all there, so that running out of them is its own fault. Where only the dictionary said that it is a
    /// sequence and it is none, the bytes are kept.
    fn known_length_sequence(
        &mut self,
        offset: usize,
        header: Header,
        encoding: Encoding,
        depth: u8,
    ) -> Result<Element, Stop> {
        let Header { tag, length, size, .. } = header;
        let value_at = offset + size;
        let value_end = value_at + length as usize;
        let Some(bytes) = self.bytes.get(value_at..value_end) else { return Err(Stop::More) };
        match self.sequence(value_at, value_end, encoding, depth) {
            Err(Stop::Error(error @ (ReadError::TooDeep { .. } | ReadError::TooMany { .. }))) => Err(error.into()),
            Err(_) if encoding == Encoding::ImplicitLe && length > self.options.value_bytes_max => {
                Ok(Element { vr: VR::UN, value: Value::Skipped { length } })
            }
            Err(_) if encoding == Encoding::ImplicitLe => Ok(Element::bytes(VR::UN, bytes)),
            Err(Stop::More) => Err(ReadError::Overrun { tag, offset }.into()),
            other => other,
        }
    }

    /// A standard sequence that came as `UN` with a length. If its content is not items after all, the bytes are kept.
    fn unknown_sequence(&mut self, bytes: &[u8], depth: u8) -> Element {
        let mut inner = Reader { bytes, options: self.options, elements: self.elements };
        match inner.sequence(0, bytes.len(), Encoding::ImplicitLe, depth) {
            Ok(element) => {
                self.elements = inner.elements;
                element
            }
            Err(_) => Element::bytes(VR::UN, bytes),
        }
    }

    fn undefined_length(
        &mut self,
        offset: usize,
        header: Header,
        end: usize,
        encoding: Encoding,
        depth: u8,
    ) -> Result<(Option<Element>, usize), Stop> {
        let value_at = offset + header.size;
        match header.vr {
            VR::OB | VR::OW | VR::OD | VR::OF | VR::OL | VR::OV => {
                let next = self.fragments(value_at, end, encoding)?;
                Ok((Some(Element { vr: header.vr, value: Value::Skipped { length: UNDEFINED } }), next))
            }
            vr if has_short_length(vr) && encoding != Encoding::ImplicitLe => {
                Err(ReadError::UndefinedLength { tag: header.tag, offset }.into())
            }
            _ => {
                // CP-246: UN of undefined length is an implicit little endian sequence, whatever the encoding around it.
                let inner = if header.was_unknown { Encoding::ImplicitLe } else { encoding };
                let (items, next) = self.items_until_delimiter(value_at, end, inner, depth)?;
                Ok((Some(Element::sequence(items)), next))
            }
        }
    }

    /// Skips the fragments of encapsulated pixel data (PS3.5 A.4) and returns the offset after them.
    fn fragments(&mut self, mut offset: usize, end: usize, encoding: Encoding) -> Result<usize, Stop> {
        loop {
            let header = self.header(offset, end, encoding)?;
            match header.tag {
                SEQUENCE_DELIMITATION => return Ok(offset + header.size),
                ITEM if header.length != UNDEFINED => {
                    let next = (offset + header.size).checked_add(header.length as usize).ok_or(Stop::More)?;
                    if next > end {
                        return Err(self.beyond(header.tag, offset, end));
                    }
                    offset = next;
                }
                tag => return Err(ReadError::Misplaced { tag, offset }.into()),
            }
        }
    }

    fn beyond(&self, tag: Tag, offset: usize, end: usize) -> Stop {
        if end >= self.bytes.len() { Stop::More } else { Stop::Error(ReadError::Overrun { tag, offset }) }
    }

    /// A sequence of known length.
    fn sequence(&mut self, mut offset: usize, end: usize, encoding: Encoding, depth: u8) -> Result<Element, Stop> {
        if end > self.bytes.len() {
            return Err(Stop::More);
        }
        let mut items = Vec::new();
        while offset < end {
            let (item, next) = self.item(offset, end, encoding, depth)?;
            items.extend(item);
            offset = next;
        }
        Ok(Element::sequence(items))
    }

    fn items_until_delimiter(
        &mut self,
        mut offset: usize,
        end: usize,
        encoding: Encoding,
        depth: u8,
    ) -> Result<(Vec<DataSet>, usize), Stop> {
        let mut items = Vec::new();
        loop {
            let header = self.header(offset, end, encoding)?;
            if header.tag == SEQUENCE_DELIMITATION {
                return Ok((items, offset + header.size));
            }
            let (item, next) = self.item(offset, end, encoding, depth)?;
            items.extend(item);
            offset = next;
        }
    }

    /// One item of a sequence that is `depth` deep. Delimiters in place of an item are stepped over.
    fn item(
        &mut self,
        offset: usize,
        end: usize,
        encoding: Encoding,
        depth: u8,
    ) -> Result<(Option<DataSet>, usize), Stop> {
        self.count(offset)?;
        if depth >= self.options.depth_max {
            return Err(ReadError::TooDeep { offset }.into());
        }
        let header = self.header(offset, end, encoding)?;
        let content = offset + header.size;
        match header.tag {
            SEQUENCE_DELIMITATION | ITEM_DELIMITATION => return Ok((None, content)),
            ITEM => {}
            tag => return Err(ReadError::Misplaced { tag, offset }.into()),
        }
        if header.length == UNDEFINED {
            let (data_set, next) = self.item_content(content, end, true, encoding, depth)?;
            return Ok((Some(data_set), next));
        }
        let item_end = content.checked_add(header.length as usize).ok_or(Stop::More)?;
        if item_end > end {
            return Err(self.beyond(ITEM, offset, end));
        }
        let (data_set, _) = self.item_content(content, item_end, false, encoding, depth)?;
        Ok((Some(data_set), item_end))
    }

    fn item_content(
        &mut self,
        mut offset: usize,
        end: usize,
        delimited: bool,
        encoding: Encoding,
        depth: u8,
    ) -> Result<(DataSet, usize), Stop> {
        let mut data_set = DataSet::default();
        while delimited || offset < end {
            let header = self.header(offset, end, encoding)?;
            if delimited && header.tag == ITEM_DELIMITATION {
                return Ok((data_set, offset + header.size));
            }
            let (element, next) = self.element(offset, header, end, encoding, depth + 1)?;
            if next > end {
                return Err(self.beyond(header.tag, offset, end));
            }
            keep(&mut data_set, header.tag, element);
            offset = next;
        }
        Ok((data_set, offset))
    }
}

/// The VR in implicit encodings: from the dictionary; an undefined length outside pixel data can only be a sequence.
fn implicit_vr(tag: Tag, length: u32) -> VR {
    match dictionary_vr(tag) {
        Some(vr) if length != UNDEFINED || vr == VR::SQ || tag == Tag(0x7fe0, 0x0010) => vr,
        _ if length == UNDEFINED => VR::SQ,
        _ => VR::UN,
    }
}

/// The bytes of a value with each word in the other byte order.
pub(super) fn swapped(vr: VR, bytes: &[u8]) -> Vec<u8> {
    let size = word_size(vr);
    let mut swapped = bytes.to_vec();
    if size > 1 {
        swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    swapped
}
