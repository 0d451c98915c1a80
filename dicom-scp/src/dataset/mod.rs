//! A tolerant in-memory data set (PS3.5 7).
//!
//! Made for headers, identifiers and command sets: everything a peer can get wrong is either understood or reported as a value, never a
//! panic, and never more memory than the caller's limits. Objects themselves are kept as the bytes received and are not
//! re-encoded through this. Must not know sockets, files or what attributes mean for a service.

mod dictionary;
pub(crate) mod read;
mod scan;
mod write;

pub use dicom_core::{Tag, VR};
pub use dictionary::dictionary_vr;
pub(crate) use dictionary::is_sample_valued;

pub use read::{ReadEnd, ReadError, ReadOptions, read};
pub use scan::{ScanError, Scanned, Scanner};

use crate::{Uid, charset::CharacterSet};
use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};

/// (0008,0005) Specific Character Set.
pub(crate) const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);

/// (0028,0103) Pixel Representation: 1 for signed samples.
pub(crate) const PIXEL_REPRESENTATION: Tag = Tag(0x0028, 0x0103);

/// How a transfer syntax encodes data elements (PS3.5 7.1). Deflated data sets are inflated before this applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Implicit VR, little endian; also of every command set.
    ImplicitLe,
    /// Explicit VR, little endian.
    ExplicitLe,
    /// Explicit VR, big endian (retired).
    ExplicitBe,
}

/// A data set: elements by tag. Text is decoded with the data set's Specific Character Set, which items inherit when they were read.
#[derive(Debug, Clone, Default)]
pub struct DataSet {
    elements: BTreeMap<Tag, Element>,
    /// The character set of the enclosing data set, for items that have no (0008,0005) of their own.
    inherited: CharacterSet,
}

/// One data element without its tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// The value representation: as received, or from the dictionary where what was received said nothing.
    pub vr: VR,
    /// The value.
    pub value: Value,
}

/// The value of an element.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The value field in little endian byte order, padding kept.
    Bytes(Vec<u8>),
    /// The items of a sequence.
    Items(Vec<DataSet>),
    /// A value that was there but not kept: longer than the limit, or encapsulated pixel data (then `length` is FFFFFFFFH). Not written.
    Skipped {
        /// The length field, in bytes.
        length: u32,
    },
}

impl Element {
    /// An element with a plain value; the bytes are in little endian order.
    pub fn bytes(vr: VR, bytes: impl Into<Vec<u8>>) -> Self {
        Element { vr, value: Value::Bytes(bytes.into()) }
    }

    /// A sequence.
    pub fn sequence(items: Vec<DataSet>) -> Self {
        Element { vr: VR::SQ, value: Value::Items(items) }
    }

    /// An element of zero length, as used for universal matching.
    pub fn empty(vr: VR) -> Self {
        if vr == VR::SQ { Self::sequence(Vec::new()) } else { Self::bytes(vr, Vec::new()) }
    }

    /// Whether there is no value, or only padding.
    pub fn is_empty(&self) -> bool {
        match &self.value {
            Value::Bytes(bytes) if is_text(self.vr) => bytes.iter().all(|b| matches!(b, b' ' | 0)),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Items(items) => items.is_empty(),
            Value::Skipped { .. } => false,
        }
    }
}

/// Two data sets are equal when their elements are.
impl PartialEq for DataSet {
    fn eq(&self, other: &Self) -> bool {
        self.elements == other.elements
    }
}

impl DataSet {
    /// An empty data set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The element with this tag.
    pub fn get(&self, tag: Tag) -> Option<&Element> {
        self.elements.get(&tag)
    }

    /// Whether the element is there, empty or not.
    pub fn contains(&self, tag: Tag) -> bool {
        self.elements.contains_key(&tag)
    }

    /// Number of elements, nested ones not counted.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The elements in tag order.
    pub fn iter(&self) -> btree_map::Iter<'_, Tag, Element> {
        self.elements.iter()
    }

    /// The first value as text: decoded, without padding. `None` when absent, empty or not representable as text. Numbers are
    /// printed in decimal.
    pub fn text(&self, tag: Tag) -> Option<String> {
        self.texts(tag).into_iter().next().filter(|text| !text.is_empty())
    }

    /// All values as text, as [`Self::text`]; an empty value between delimiters stays as an empty text.
    pub fn texts(&self, tag: Tag) -> Vec<String> {
        let Some(Element { vr, value: Value::Bytes(bytes) }) = self.elements.get(&tag) else { return Vec::new() };
        if bytes.is_empty() {
            return Vec::new();
        }
        if !is_text(*vr) {
            return match vr {
                VR::FL | VR::FD | VR::OF | VR::OD => floats_of(*vr, bytes).iter().map(f64::to_string).collect(),
                _ => ints_of(*vr, bytes).iter().map(i64::to_string).collect(),
            };
        }
        split_values(*vr, &self.decoded(*vr, bytes)).map(str::to_owned).collect()
    }

    /// Hands out the values of an element of characters one after the other, as [`Self::texts`] has them, without copies. Of other elements there
    /// are none.
    pub fn each_text(&self, tag: Tag, each: impl FnMut(&str)) {
        if let Some(Element { vr, value: Value::Bytes(bytes) }) = self.elements.get(&tag)
            && is_text(*vr)
            && !bytes.is_empty()
        {
            split_values(*vr, &self.decoded(*vr, bytes)).for_each(each);
        }
    }

    fn decoded<'a>(&self, vr: VR, bytes: &'a [u8]) -> Cow<'a, str> {
        // In every character set it is what it looks like, so that need not be found out.
        if CharacterSet::is_plain(bytes)
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return Cow::Borrowed(text);
        }
        Cow::Owned(match is_charset_dependent(vr) {
            true => self.character_set().decode(bytes, vr == VR::PN),
            false => CharacterSet::DEFAULT.decode(bytes, false),
        })
    }

    /// The first value as a UID; `None` when absent or not a valid one.
    pub fn uid(&self, tag: Tag) -> Option<Uid> {
        let bytes = self.bytes(tag)?;
        Uid::from_bytes(bytes.split(|b| *b == b'\\').next()?).ok()
    }

    /// The first value as an integer, whichever numeric or number-string VR it has.
    pub fn int(&self, tag: Tag) -> Option<i64> {
        self.ints(tag).into_iter().next()
    }

    /// All values as integers; text that is no integer is left out.
    pub fn ints(&self, tag: Tag) -> Vec<i64> {
        let Some(Element { vr, value: Value::Bytes(bytes) }) = self.elements.get(&tag) else { return Vec::new() };
        if is_text(*vr) {
            return self.texts(tag).iter().filter_map(|text| parse_int(text)).collect();
        }
        ints_of(*vr, bytes)
    }

    /// The first value as a floating point number, from any numeric or number-string VR.
    pub fn float(&self, tag: Tag) -> Option<f64> {
        self.floats(tag).into_iter().next()
    }

    /// All values as floating point numbers; text that is no number is left out.
    pub fn floats(&self, tag: Tag) -> Vec<f64> {
        let Some(Element { vr, value: Value::Bytes(bytes) }) = self.elements.get(&tag) else { return Vec::new() };
        match vr {
            VR::FL | VR::FD | VR::OF | VR::OD => floats_of(*vr, bytes),
            vr if is_text(*vr) => self.texts(tag).iter().filter_map(|text| text.parse().ok()).collect(),
            _ => ints_of(*vr, bytes).into_iter().map(|i| i as f64).collect(),
        }
    }

    /// The value field as bytes, little endian, padding kept. `None` for sequences and skipped values.
    pub fn bytes(&self, tag: Tag) -> Option<&[u8]> {
        match &self.elements.get(&tag)?.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The items of a sequence.
    pub fn items(&self, tag: Tag) -> Option<&[DataSet]> {
        match &self.elements.get(&tag)?.value {
            Value::Items(items) => Some(items),
            _ => None,
        }
    }

    /// Sets an element.
    pub fn put(&mut self, tag: Tag, element: Element) {
        self.elements.insert(tag, element);
    }

    /// Sets a single text value, padded to even length. Text outside ASCII turns the whole data set into UTF-8
    /// (see [`Self::transcode_to_utf8`]).
    pub fn put_text(&mut self, tag: Tag, vr: VR, text: &str) {
        if !text.is_ascii() && !self.character_set().is_utf8() {
            self.transcode_to_utf8();
        }
        self.elements.insert(tag, Element::bytes(vr, padded(vr, text.as_bytes().to_vec())));
    }

    /// Sets several text values.
    pub fn put_texts<S: AsRef<str>>(&mut self, tag: Tag, vr: VR, texts: &[S]) {
        let joined = texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("\\");
        self.put_text(tag, vr, &joined);
    }

    /// Sets a UID.
    pub fn put_uid(&mut self, tag: Tag, uid: &Uid) {
        self.put_text(tag, VR::UI, uid.as_str());
    }

    /// Sets an element of VR US.
    pub fn put_u16(&mut self, tag: Tag, value: u16) {
        self.put(tag, Element::bytes(VR::US, value.to_le_bytes()));
    }

    /// Removes an element.
    pub fn remove(&mut self, tag: Tag) -> Option<Element> {
        self.elements.remove(&tag)
    }

    /// Adds the elements of another data set that are not here yet.
    pub fn extend(&mut self, other: DataSet) {
        for (tag, element) in other.elements {
            self.elements.entry(tag).or_insert(element);
        }
        self.propagate_character_set();
    }

    /// The data set encoded, in tag order, sequences and items with explicit lengths. Skipped values are left out.
    pub fn write(&self, encoding: Encoding) -> Vec<u8> {
        write::write(self, encoding)
    }

    /// The character set that text in this data set is encoded in.
    pub fn character_set(&self) -> CharacterSet {
        match self.bytes(SPECIFIC_CHARACTER_SET) {
            Some(value) => CharacterSet::parse(value),
            None => self.inherited,
        }
    }

    /// Re-encodes every text value, nested ones too, as UTF-8 and says so in (0008,0005).
    pub fn transcode_to_utf8(&mut self) {
        self.transcode_elements();
        let term = padded(VR::CS, CharacterSet::UTF_8_TERM.as_bytes().to_vec());
        self.put(SPECIFIC_CHARACTER_SET, Element::bytes(VR::CS, term));
        self.propagate_character_set();
    }

    fn transcode_elements(&mut self) {
        let set = self.character_set();
        for element in self.elements.values_mut() {
            match &mut element.value {
                Value::Bytes(bytes) if is_charset_dependent(element.vr) && !set.is_utf8() => {
                    let text = set.decode(bytes, element.vr == VR::PN);
                    *bytes = padded(element.vr, text.into_bytes());
                }
                Value::Items(items) => items.iter_mut().for_each(|item| {
                    item.transcode_elements();
                    item.elements.remove(&SPECIFIC_CHARACTER_SET);
                    item.inherited = CharacterSet::UTF_8;
                }),
                _ => {}
            }
        }
    }

    /// Whether any text, nested ones too, has a byte outside ASCII: whether (0008,0005) is needed at all.
    pub fn needs_character_set(&self) -> bool {
        self.elements.values().any(|element| match &element.value {
            Value::Bytes(bytes) => is_charset_dependent(element.vr) && (!bytes.is_ascii() || bytes.contains(&0x1b)),
            Value::Items(items) => items.iter().any(DataSet::needs_character_set),
            Value::Skipped { .. } => false,
        })
    }

    /// Gives samples that the dictionary leaves open between US and SS their VR by Pixel Representation (0028,0103), which items inherit.
    /// For data sets read without VRs.
    pub(crate) fn resolve_sample_vrs(&mut self, outer_signed: bool) {
        let signed = self.int(PIXEL_REPRESENTATION).map_or(outer_signed, |representation| representation == 1);
        for (tag, element) in &mut self.elements {
            match &mut element.value {
                Value::Items(items) => items.iter_mut().for_each(|item| item.resolve_sample_vrs(signed)),
                _ if signed && element.vr == VR::US && is_sample_valued(*tag) => element.vr = VR::SS,
                _ => {}
            }
        }
    }

    /// Hands the character set down to the items that have none of their own.
    fn propagate_character_set(&mut self) {
        let set = self.character_set();
        for element in self.elements.values_mut() {
            if let Value::Items(items) = &mut element.value {
                for item in items {
                    item.inherited = set;
                    item.propagate_character_set();
                }
            }
        }
    }
}

impl<'a> IntoIterator for &'a DataSet {
    type Item = (&'a Tag, &'a Element);
    type IntoIter = btree_map::Iter<'a, Tag, Element>;

    fn into_iter(self) -> Self::IntoIter {
        self.elements.iter()
    }
}

impl FromIterator<(Tag, Element)> for DataSet {
    fn from_iter<I: IntoIterator<Item = (Tag, Element)>>(elements: I) -> Self {
        let mut data_set = DataSet { elements: elements.into_iter().collect(), inherited: CharacterSet::DEFAULT };
        data_set.propagate_character_set();
        data_set
    }
}

/// Whether values of this VR are characters (PS3.5 6.2).
pub fn is_text(vr: VR) -> bool {
    use VR::*;
    matches!(vr, AE | AS | CS | DA | DS | DT | IS | TM | UI | UR) || is_charset_dependent(vr)
}

/// Whether (0008,0005) applies to values of this VR (PS3.5 6.1.2.3).
fn is_charset_dependent(vr: VR) -> bool {
    matches!(vr, VR::LO | VR::LT | VR::PN | VR::SH | VR::ST | VR::UC | VR::UT)
}

/// VRs whose backslash is not a delimiter (PS3.5 6.2).
fn is_single_valued(vr: VR) -> bool {
    matches!(vr, VR::LT | VR::ST | VR::UT | VR::UR)
}

fn split_values(vr: VR, text: &str) -> impl Iterator<Item = &str> {
    let is_single = is_single_valued(vr);
    let trimmed = move |value: &'_ str| -> std::ops::Range<usize> {
        let end = value.trim_end_matches([' ', '\0']).len();
        // Leading spaces are significant in what has one value.
        let begin = if is_single { 0 } else { end - value[..end].trim_start_matches([' ', '\0']).len() };
        begin..end
    };
    text.split(move |c| c == '\\' && !is_single).map(move |value| &value[trimmed(value)])
}

/// Pads a value field to even length (PS3.5 6.2): UIDs and binary values with NUL, text with a space.
pub(crate) fn padded(vr: VR, mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() % 2 == 1 {
        bytes.push(if is_text(vr) && vr != VR::UI { b' ' } else { 0 });
    }
    bytes
}

/// Size of one value in bytes, the unit of byte swapping (PS3.5 7.3).
pub(crate) fn word_size(vr: VR) -> usize {
    use VR::*;
    match vr {
        US | SS | OW | AT => 2,
        UL | SL | FL | OL | OF => 4,
        FD | SV | UV | OD | OV => 8,
        _ => 1,
    }
}

fn ints_of(vr: VR, bytes: &[u8]) -> Vec<i64> {
    fn words<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        bytes.chunks_exact(N).filter_map(|word| word.try_into().ok()).map(convert).collect()
    }
    use VR::*;
    match vr {
        US | OW => words(bytes, |w| u16::from_le_bytes(w).into()),
        SS => words(bytes, |w| i16::from_le_bytes(w).into()),
        UL | OL => words(bytes, |w| u32::from_le_bytes(w).into()),
        SL => words(bytes, |w| i32::from_le_bytes(w).into()),
        SV => words(bytes, i64::from_le_bytes),
        UV | OV => words(bytes, |w| i64::try_from(u64::from_le_bytes(w)).unwrap_or(i64::MAX)),
        FL | FD | OF | OD => floats_of(vr, bytes).into_iter().map(|f| f as i64).collect(),
        // A tag as one number, group first.
        AT => words(bytes, |[g0, g1, e0, e1]| {
            (i64::from(u16::from_le_bytes([g0, g1])) << 16) | i64::from(u16::from_le_bytes([e0, e1]))
        }),
        _ => Vec::new(),
    }
}

fn floats_of(vr: VR, bytes: &[u8]) -> Vec<f64> {
    match vr {
        VR::FL | VR::OF => bytes
            .chunks_exact(4)
            .filter_map(|word| word.try_into().ok())
            .map(|word| f64::from(f32::from_le_bytes(word)))
            .collect(),
        _ => bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(f64::from_le_bytes).collect(),
    }
}

/// IS, but also the integral DS that some modalities put there.
fn parse_int(text: &str) -> Option<i64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
    })
}

#[cfg(test)]
pub(crate) mod tests;
