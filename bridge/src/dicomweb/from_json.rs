//! Data sets out of the DICOM JSON model (PS3.18 annex F): the other way of [`super::json`]. Must not know where bulk data comes from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, is_text};
use serde_json::{Map, Value as Json};

use super::made::PIXEL_DATA;

const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
/// Longest DS, in characters (PS3.5 6.2).
const DS_CHARS_MAX: usize = 16;

/// Octets of a value that a description names.
pub(super) struct Bulk(pub(super) Vec<u8>);

/// Why a description is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    #[error("\"{0}\" is no tag: eight hexadecimal digits")]
    Tag(String),
    #[error("{0} has no value representation that is known")]
    Vr(Place),
    #[error("{0} is no {1}")]
    Value(Place, VrName),
    #[error("{0} names bulk data that no part has")]
    Bulk(Place),
    #[error("{0} is no object with vr and value")]
    Element(Place),
}

/// An attribute, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(Tag);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({:04X},{:04X})", self.0.0, self.0.1)
    }
}

/// A value representation, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VrName(VR);

impl std::fmt::Display for VrName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.to_string())
    }
}

/// The data set, and by what name pixel data is to be found that is not in it.
///
/// # Errors
/// [`JsonError`] names the attribute.
pub(super) fn read(
    object: &Map<String, Json>,
    bulk: &dyn Fn(&str) -> Option<Bulk>,
) -> Result<(DataSet, Option<String>), JsonError> {
    let mut reader = Reader { bulk, pixels: None, is_ascii: true };
    let mut set = reader.object(object, true)?;
    let is_stated = object.contains_key("00080005");
    if !reader.is_ascii || is_stated {
        // JSON is in UTF-8, and so is what is made of it, whatever it says.
        set.put_text(SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    }
    Ok((set, reader.pixels))
}

struct Reader<'a> {
    bulk: &'a dyn Fn(&str) -> Option<Bulk>,
    pixels: Option<String>,
    is_ascii: bool,
}

impl Reader<'_> {
    fn object(&mut self, object: &Map<String, Json>, is_outermost: bool) -> Result<DataSet, JsonError> {
        let mut elements = Vec::with_capacity(object.len());
        for (name, attribute) in object {
            let tag = tag(name).ok_or_else(|| JsonError::Tag(name.chars().take(20).collect()))?;
            // Group lengths and group 0002 are written with the file.
            if tag.1 == 0 || tag.0 <= 0x0002 || tag == SPECIFIC_CHARACTER_SET {
                continue;
            }
            let fields = attribute.as_object().ok_or(JsonError::Element(Place(tag)))?;
            elements.push((tag, self.element(tag, fields, is_outermost)?));
        }
        Ok(elements.into_iter().collect())
    }

    fn element(&mut self, tag: Tag, fields: &Map<String, Json>, is_outermost: bool) -> Result<Element, JsonError> {
        let place = Place(tag);
        let vr: VR =
            fields.get("vr").and_then(Json::as_str).and_then(|vr| vr.parse().ok()).ok_or(JsonError::Vr(place))?;
        let wrong = || JsonError::Value(place, VrName(vr));
        if let Some(uri) = fields.get("BulkDataURI") {
            let uri = uri.as_str().ok_or_else(wrong)?;
            if tag == PIXEL_DATA && is_outermost {
                self.pixels = Some(uri.to_owned());
                return Ok(Element::empty(vr));
            }
            let Bulk(octets) = (self.bulk)(uri).ok_or(JsonError::Bulk(place))?;
            return Ok(Element::bytes(vr, octets));
        }
        if let Some(inline) = fields.get("InlineBinary") {
            let octets = inline.as_str().and_then(|text| STANDARD.decode(text).ok()).ok_or_else(wrong)?;
            return Ok(Element::bytes(vr, octets));
        }
        let values = match fields.get("Value") {
            None | Some(Json::Null) => &[][..],
            Some(Json::Array(values)) => values,
            Some(_) => return Err(wrong()),
        };
        if vr == VR::SQ {
            let items = values.iter().map(|item| match item {
                Json::Object(item) => self.object(item, false),
                Json::Null => Ok(DataSet::new()),
                _ => Err(wrong()),
            });
            return Ok(Element::sequence(items.collect::<Result<_, _>>()?));
        }
        let octets = if is_text(vr) { self.text(vr, values) } else { binary(vr, values) };
        octets.map(|octets| Element::bytes(vr, octets)).ok_or_else(wrong)
    }

    fn text(&mut self, vr: VR, values: &[Json]) -> Option<Vec<u8>> {
        let one = |value: &Json| match (vr, value) {
            (_, Json::Null) => Some(String::new()),
            (_, Json::String(text)) => Some(text.clone()),
            (VR::PN, Json::Object(groups)) => person(groups),
            (VR::DS, Json::Number(number)) => Some(decimal(number)),
            (VR::IS, Json::Number(number)) if number.is_i64() => Some(number.to_string()),
            (VR::IS, Json::Number(number)) => {
                number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e12).map(|n| format!("{n:.0}"))
            }
            _ => None,
        };
        let texts: Vec<String> = values.iter().map(one).collect::<Option<_>>()?;
        let joined = texts.join("\\");
        self.is_ascii &= joined.is_ascii();
        Some(joined.into_bytes())
    }
}

fn tag(name: &str) -> Option<Tag> {
    let plain = name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u32::from_str_radix(name, 16).ok().filter(|_| plain)?;
    Some(Tag((number >> 16) as u16, (number & 0xFFFF) as u16))
}

/// The component groups, as far as there are any after each (PS3.5 6.2.1).
fn person(groups: &Map<String, Json>) -> Option<String> {
    let group = |name: &str| match groups.get(name) {
        None | Some(Json::Null) => Some(""),
        Some(text) => text.as_str(),
    };
    let all = [group("Alphabetic")?, group("Ideographic")?, group("Phonetic")?];
    Some(all.join("=").trim_end_matches('=').to_owned())
}

/// A number as short as DS is, as near as that can be.
fn decimal(number: &serde_json::Number) -> String {
    let shortest = number.to_string();
    let Some(value) = number.as_f64().filter(|_| shortest.len() > DS_CHARS_MAX) else { return shortest };
    let fits = |text: &String| text.len() <= DS_CHARS_MAX;
    // More digits before the point than there is room for are not tried.
    let fixed =
        (0..DS_CHARS_MAX).rev().filter(|_| value.abs() < 1e16).map(|digits| format!("{value:.digits$}")).find(fits);
    let scientific = (0..DS_CHARS_MAX).rev().map(|digits| format!("{value:.digits$e}")).find(fits);
    let error = |text: &String| text.parse::<f64>().map_or(f64::INFINITY, |near| (near - value).abs());
    [fixed, scientific].into_iter().flatten().min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or(shortest)
}

/// Values of a fixed length, in little endian order.
fn binary(vr: VR, values: &[Json]) -> Option<Vec<u8>> {
    let values = values.iter().filter(|value| !value.is_null());
    let each = |value: &Json| -> Option<Vec<u8>> {
        Some(match vr {
            VR::AT => {
                let Tag(group, element) = tag(value.as_str()?)?;
                [group.to_le_bytes(), element.to_le_bytes()].concat()
            }
            VR::US => u16::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::SS => i16::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::UL => u32::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::SL => i32::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::UV => u64::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::SV => i64::try_from(integer(value)?).ok()?.to_le_bytes().to_vec(),
            VR::FL => (float(value)? as f32).to_le_bytes().to_vec(),
            VR::FD => float(value)?.to_le_bytes().to_vec(),
            // Octets are inline or elsewhere, never values.
            _ => return None,
        })
    };
    Some(values.map(each).collect::<Option<Vec<_>>>()?.concat())
}

/// Those that JavaScript would round are text (PS3.18 F.2.3).
fn integer(value: &Json) -> Option<i128> {
    match value {
        Json::Number(number) => {
            let whole = |number: &f64| number.fract() == 0.0 && number.abs() < 9e15;
            number.as_i128().or_else(|| number.as_f64().filter(whole).map(|number| number as i128))
        }
        Json::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn float(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dicomweb::json;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(value: Json) -> Result<(DataSet, Option<String>), JsonError> {
        let Json::Object(object) = value else { panic!() };
        read(&object, &|uri| (uri == "bulk/1").then(|| Bulk(vec![1, 2])))
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let model = json!({
            "00080005": { "vr": "CS", "Value": ["ISO_IR 192"] },
            "00080008": { "vr": "CS", "Value": ["ORIGINAL", null, "AXIAL"] },
            "00080050": { "vr": "SH" },
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
            "00280030": { "vr": "DS", "Value": [0.5, 0.25] },
            "00283000": { "vr": "SQ", "Value": [{}, { "00283006": { "vr": "OW", "InlineBinary": "AQI=" } }] },
        });
        let (set, pixels) = parsed(model.clone()).unwrap();
        assert_eq!(pixels, None);
        let mut text = Vec::new();
        json::write(&set, None, &mut text);
        assert_eq!(serde_json::from_slice::<Json>(&text).unwrap(), model);
    }

    #[test]
    fn bulk_data_is_put_in_and_pixels_are_named() {
        let (set, pixels) = parsed(json!({
            "00281201": { "vr": "OW", "BulkDataURI": "bulk/1" },
            "7FE00010": { "vr": "OB", "BulkDataURI": "bulk/9" },
            "00020010": { "vr": "UI", "Value": ["1.2"] },
        }))
        .unwrap();
        assert_eq!(set.bytes(Tag(0x0028, 0x1201)), Some(&[1, 2][..]));
        assert_eq!(pixels.as_deref(), Some("bulk/9"));
        assert!(!set.contains(Tag(0x0002, 0x0010)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (wrong, words) in [
            (json!({ "x": {} }), "\"x\" is no tag"),
            (json!({ "00280010": 7 }), "(0028,0010) is no object"),
            (json!({ "00280010": { "Value": [1] } }), "(0028,0010) has no value representation"),
            (json!({ "00280010": { "vr": "US", "Value": [65536] } }), "(0028,0010) is no US"),
            (json!({ "00280010": { "vr": "US", "Value": [1.5] } }), "(0028,0010) is no US"),
            (json!({ "00281201": { "vr": "OW", "BulkDataURI": "bulk/2" } }), "(0028,1201) names bulk data"),
            (json!({ "00091001": { "vr": "UN", "InlineBinary": "%" } }), "(0009,1001) is no UN"),
            (json!({ "00081110": { "vr": "SQ", "Value": [1] } }), "(0008,1110) is no SQ"),
            (json!({ "00100010": { "vr": "PN", "Value": [{ "Alphabetic": 1 }] } }), "(0010,0010) is no PN"),
        ] {
            let error = parsed(wrong.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_decimal_string_is_short_and_near(value in any::<f64>().prop_filter("a number", |v| v.is_finite())) {
            let text = decimal(&serde_json::Number::from_f64(value).unwrap());
            prop_assert!(text.len() <= DS_CHARS_MAX, "{}", text);
            let near: f64 = text.parse().unwrap();
            prop_assert!((near - value).abs() <= value.abs() * 1e-7, "{} for {}", text, value);
        }
    }
}
