//! Data sets in the DICOM JSON model (PS3.18 annex F).
//!
//! Written as text at once, because the metadata of a long series is many megabytes of it. Must not know where data sets come from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, Value, is_text};

/// (0008,0005): what text is encoded in, which is UTF-8 here whatever the object says (PS3.18 F.2.1).
const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
/// Integers beyond this are no longer exact in a receiver that counts in floating point.
const EXACT_MAX: u64 = 1 << 53;
const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Appends a data set as one JSON object. Values that were left out ([`Value::Skipped`]) are named by `bulk` and their place in the data set
/// (see [`Place`]); without `bulk` they are not mentioned.
pub(super) fn write(set: &DataSet, bulk: Option<&str>, out: &mut Vec<u8>) {
    Writer { bulk, out, place: String::new() }.object(set);
}

/// A tag as it names an attribute: eight hexadecimal digits (PS3.18 F.2.2).
pub(super) fn name(tag: Tag) -> String {
    format!("{:04X}{:04X}", tag.0, tag.1)
}

/// (0000,0902) Error Comment, which is said of objects that are not stored.
const ERROR_COMMENT: Tag = Tag(0x0000, 0x0902);

/// Group lengths and the file's own meta information are no part of it (PS3.18 F.2).
fn is_shown(tag: Tag) -> bool {
    tag.1 != 0 && tag.0 > 0x0002 || tag == ERROR_COMMENT
}

struct Writer<'a> {
    bulk: Option<&'a str>,
    out: &'a mut Vec<u8>,
    /// Of the item that is written: tags and item numbers from 0, each with a slash after it.
    place: String,
}

impl Writer<'_> {
    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn object(&mut self, set: &DataSet) {
        self.raw("{");
        let mut first = true;
        for (tag, element) in set.iter().filter(|(tag, _)| is_shown(**tag)) {
            if matches!(element.value, Value::Skipped { .. }) && self.bulk.is_none() {
                continue;
            }
            if !std::mem::take(&mut first) {
                self.raw(",");
            }
            self.attribute(set, *tag, element);
        }
        self.raw("}");
    }

    fn attribute(&mut self, set: &DataSet, tag: Tag, element: &Element) {
        self.raw("\"");
        self.tag(tag);
        self.raw("\":{\"vr\":\"");
        self.raw(element.vr.to_string());
        self.raw("\"");
        match &element.value {
            Value::Items(items) if items.is_empty() => {}
            Value::Items(items) => self.items(tag, items),
            Value::Skipped { .. } => self.reference(tag),
            Value::Bytes(bytes) if bytes.is_empty() => {}
            Value::Bytes(_) if tag == SPECIFIC_CHARACTER_SET => self.raw(",\"Value\":[\"ISO_IR 192\"]"),
            Value::Bytes(bytes) => self.values(set, tag, element.vr, bytes),
        }
        self.raw("}");
    }

    fn tag(&mut self, tag: Tag) {
        for shift in [12, 8, 4, 0] {
            self.out.push(DIGITS[usize::from(tag.0 >> shift & 0xF)]);
        }
        for shift in [12, 8, 4, 0] {
            self.out.push(DIGITS[usize::from(tag.1 >> shift & 0xF)]);
        }
    }

    fn items(&mut self, tag: Tag, items: &[DataSet]) {
        self.raw(",\"Value\":[");
        for (number, item) in items.iter().enumerate() {
            if number > 0 {
                self.raw(",");
            }
            let outer = self.place.len();
            self.place.push_str(&format!("{}/{number}/", name(tag)));
            self.object(item);
            self.place.truncate(outer);
        }
        self.raw("]");
    }

    fn reference(&mut self, tag: Tag) {
        let Some(bulk) = self.bulk else { return };
        let uri = format!("{bulk}/{}{}", self.place, name(tag));
        self.raw(",\"BulkDataURI\":");
        self.text(&uri);
    }

    fn values(&mut self, set: &DataSet, tag: Tag, vr: VR, bytes: &[u8]) {
        match vr {
            VR::PN => self.texts(set, tag, Self::person),
            VR::IS | VR::DS => self.texts(set, tag, Self::number_or_text),
            VR::AT => {
                let tags =
                    |word: &[u8]| Tag(u16::from_le_bytes([word[0], word[1]]), u16::from_le_bytes([word[2], word[3]]));
                let tags: Vec<Tag> = bytes.chunks_exact(4).map(tags).collect();
                self.list(&tags, |this, tag| this.text(&name(*tag)));
            }
            VR::US | VR::SS | VR::UL | VR::SL | VR::SV => {
                self.list(&set.ints(tag), |this, number| this.integer(*number))
            }
            VR::UV => self.list(&words(bytes, u64::from_le_bytes), |this, number| this.unsigned(*number)),
            VR::FL => {
                let numbers = words(bytes, f32::from_le_bytes);
                self.list(&numbers, |this, number| this.float(f64::from(*number), &number.to_string()));
            }
            VR::FD => {
                let numbers = words(bytes, f64::from_le_bytes);
                self.list(&numbers, |this, number| this.float(*number, &number.to_string()));
            }
            vr if is_text(vr) => self.texts(set, tag, |this, text| match text {
                "" => this.raw("null"),
                text => this.text(text),
            }),
            _ => {
                self.raw(",\"InlineBinary\":\"");
                let encoded = STANDARD.encode(bytes);
                self.raw(&encoded);
                self.raw("\"");
            }
        }
    }

    /// The values of characters.
    fn texts(&mut self, set: &DataSet, tag: Tag, one: impl Fn(&mut Self, &str)) {
        self.values_by(|this| {
            let mut first = true;
            set.each_text(tag, |value| {
                if !std::mem::take(&mut first) {
                    this.raw(",");
                }
                one(this, value);
            });
        });
    }

    fn list<T>(&mut self, values: &[T], mut one: impl FnMut(&mut Self, &T)) {
        self.values_by(|this| {
            for (number, value) in values.iter().enumerate() {
                if number > 0 {
                    this.raw(",");
                }
                one(this, value);
            }
        });
    }

    /// The values; an attribute of nothing but padding has none.
    fn values_by(&mut self, all: impl FnOnce(&mut Self)) {
        let begin = self.out.len();
        self.raw(",\"Value\":[");
        let empty = self.out.len();
        all(self);
        if matches!(&self.out[empty..], b"" | b"null") {
            self.out.truncate(begin);
        } else {
            self.raw("]");
        }
    }

    /// The groups of a person's name that are there (PS3.18 F.2.2).
    fn person(&mut self, name: &str) {
        if name.is_empty() {
            return self.raw("null");
        }
        let mut first = true;
        self.raw("{");
        for (group, text) in ["Alphabetic", "Ideographic", "Phonetic"].into_iter().zip(name.split('=')) {
            if text.is_empty() {
                continue;
            }
            if !std::mem::take(&mut first) {
                self.raw(",");
            }
            self.raw("\"");
            self.raw(group);
            self.raw("\":");
            self.text(text);
        }
        self.raw("}");
    }

    /// A number as the sender wrote it where JSON writes numbers like that, else its value, else the text (PS3.18 F.2.3).
    fn number_or_text(&mut self, text: &str) {
        if text.is_empty() {
            return self.raw("null");
        }
        if is_plain_number(text.as_bytes()) || serde_json::from_str::<serde_json::Number>(text).is_ok() {
            return self.raw(text);
        }
        match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
            Some(number)
                if number.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() < EXACT_MAX as f64) =>
            {
                self.raw(&format!("{}", number.as_f64().unwrap_or_default()));
            }
            Some(number) => self.raw(&number.to_string()),
            None => self.text(text),
        }
    }

    fn integer(&mut self, number: i64) {
        match number.unsigned_abs() {
            0..=EXACT_MAX => self.raw(&number.to_string()),
            _ => self.text(&number.to_string()),
        }
    }

    fn unsigned(&mut self, number: u64) {
        match number {
            0..=EXACT_MAX => self.raw(&number.to_string()),
            _ => self.text(&number.to_string()),
        }
    }

    /// JSON has no numbers that are none (PS3.18 F.2.3).
    fn float(&mut self, number: f64, shortest: &str) {
        if number.is_finite() {
            self.raw(shortest);
        } else if number.is_nan() {
            self.text("NaN");
        } else {
            self.text(if number > 0.0 { "inf" } else { "-inf" });
        }
    }

    fn text(&mut self, text: &str) {
        // Text in memory is always written.
        let _ = serde_json::to_writer(&mut *self.out, text);
    }
}

/// Whether it is a number as JSON writes those without an exponent (RFC 8259 6), of a length that is exact enough for anybody: what most numbers are.
fn is_plain_number(text: &[u8]) -> bool {
    const BYTES_MAX: usize = 16;
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let digits = |run: &[u8]| !run.is_empty() && run.iter().all(u8::is_ascii_digit);
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    text.len() <= BYTES_MAX
        && digits(whole)
        && (whole.len() == 1 || whole[0] != b'0')
        && parts.next().is_none_or(digits)
}

fn words<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).filter_map(|word| word.try_into().ok()).map(read).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn model(set: &DataSet, bulk: Option<&str>) -> serde_json::Value {
        let mut out = Vec::new();
        write(set, bulk, &mut out);
        serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(&out)))
    }

    #[test]
    fn each_kind_of_value_is_written_as_the_standard_says() {
        let mut set = DataSet::new();
        set.put_text(Tag(0x0008, 0x0005), VR::CS, "ISO_IR 100");
        set.put(Tag(0x0010, 0x0010), Element::bytes(VR::PN, *b"J\xe4ger^Anna==x "));
        set.put_text(Tag(0x0020, 0x0013), VR::IS, "+7");
        set.put_text(Tag(0x0028, 0x0030), VR::DS, "0.50\\.25\\abc\\");
        set.put(Tag(0x0028, 0x0010), Element::bytes(VR::US, 512_u16.to_le_bytes()));
        set.put(Tag(0x0028, 0x0009), Element::bytes(VR::AT, [0x18, 0, 0x63, 0x10]));
        set.put(Tag(0x0018, 0x9073), Element::bytes(VR::FD, [f64::NAN.to_le_bytes(), 1.5_f64.to_le_bytes()].concat()));
        set.put(Tag(0x0018, 0x9074), Element::bytes(VR::FL, 0.1_f32.to_le_bytes()));
        set.put(Tag(0x0008, 0x040C), Element::bytes(VR::UV, u64::MAX.to_le_bytes()));
        set.put(Tag(0x0009, 0x1001), Element::bytes(VR::UN, [1, 2, 3, 255]));
        set.put(Tag(0x0008, 0x0050), Element::empty(VR::SH));
        set.put_text(Tag(0x0008, 0x0060), VR::CS, " ");
        set.put_text(Tag(0x0020, 0x4000), VR::LT, "a\\b");
        set.put_text(Tag(0x0008, 0x0008), VR::CS, "ORIGINAL\\\\AXIAL");
        set.put(Tag(0x0008, 0x1110), Element::empty(VR::SQ));
        let inner: DataSet =
            [(Tag(0x0028, 0x3006), Element { vr: VR::OW, value: Value::Skipped { length: 9 } })].into_iter().collect();
        set.put(Tag(0x0028, 0x3000), Element::sequence(vec![DataSet::new(), inner]));
        set.put(Tag(0x7FE0, 0x0010), Element { vr: VR::OB, value: Value::Skipped { length: u32::MAX } });
        set.put(Tag(0x0002, 0x0010), Element::bytes(VR::UI, *b"1.2"));
        let expected = json!({
            "00080005": { "vr": "CS", "Value": ["ISO_IR 192"] },
            "00080008": { "vr": "CS", "Value": ["ORIGINAL", null, "AXIAL"] },
            "00080050": { "vr": "SH" },
            "00080060": { "vr": "CS" },
            "0008040C": { "vr": "UV", "Value": ["18446744073709551615"] },
            "00081110": { "vr": "SQ" },
            "00091001": { "vr": "UN", "InlineBinary": "AQID/w==" },
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "Jäger^Anna", "Phonetic": "x" }] },
            "00189073": { "vr": "FD", "Value": ["NaN", 1.5] },
            "00189074": { "vr": "FL", "Value": [0.1] },
            "00200013": { "vr": "IS", "Value": [7] },
            "00204000": { "vr": "LT", "Value": ["a\\b"] },
            "00280009": { "vr": "AT", "Value": ["00181063"] },
            "00280010": { "vr": "US", "Value": [512] },
            "00280030": { "vr": "DS", "Value": [0.50, 0.25, "abc", null] },
            "00283000": { "vr": "SQ", "Value": [{}, { "00283006": { "vr": "OW", "BulkDataURI": "b/00283000/1/00283006" } }] },
            "7FE00010": { "vr": "OB", "BulkDataURI": "b/7FE00010" },
        });
        assert_eq!(model(&set, Some("b")), expected);
        assert_eq!(model(&set, None).get("7FE00010"), None);
    }

    #[test]
    fn what_is_passed_on_as_a_number_is_one() {
        for number in ["0", "-0", "7", "512", "-3.25", "0.50", "10.0", "123456789.123456"] {
            assert!(is_plain_number(number.as_bytes()), "{number}");
            serde_json::from_str::<serde_json::Number>(number).unwrap();
        }
        for other in ["", "-", ".", "1.", ".5", "01", "+1", "1e5", "1.2.3", "--1", "1 ", "NaN", "12345678901234567"] {
            assert!(!is_plain_number(other.as_bytes()), "{other}");
        }
    }

    proptest! {
        /// Whatever a sender wrote, it is JSON, with every attribute.
        #[test]
        fn it_is_json_whatever_the_values_are(
            elements in proptest::collection::vec((3_u16.., 1_u16.., 0_usize..VRS.len(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let set: DataSet = elements
                .iter()
                .map(|(group, element, vr, bytes)| (Tag(*group, *element), Element::bytes(VRS[*vr], bytes.clone())))
                .collect();
            prop_assert_eq!(model(&set, Some("b")).as_object().unwrap().len(), set.len());
        }
    }

    const VRS: [VR; 31] = [
        VR::AE,
        VR::AS,
        VR::AT,
        VR::CS,
        VR::DA,
        VR::DS,
        VR::DT,
        VR::FL,
        VR::FD,
        VR::IS,
        VR::LO,
        VR::LT,
        VR::OB,
        VR::OD,
        VR::OF,
        VR::OL,
        VR::OV,
        VR::OW,
        VR::PN,
        VR::SH,
        VR::SL,
        VR::SS,
        VR::ST,
        VR::SV,
        VR::TM,
        VR::UC,
        VR::UI,
        VR::UL,
        VR::UN,
        VR::UR,
        VR::UV,
    ];
}
