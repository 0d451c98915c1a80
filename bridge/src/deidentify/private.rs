//! Private attributes that are known to identify nobody (PS3.15 E.3.10).
//!
//! A short list of measurements, all of them numbers, and only numbers are let through.

use dicom_scp::dataset::{DataSet, Element, Tag, VR, Value};

/// Private creator, group, element without its block, VR.
const SAFE: &[(&str, u16, u8, VR)] = &[
    ("Philips PET Private Group", 0x7053, 0x00, VR::DS), // SUV factor
    ("Philips PET Private Group", 0x7053, 0x09, VR::DS), // activity concentration factor
    ("Philips Imaging DD 001", 0x2001, 0x03, VR::FL),    // diffusion b-factor
    ("SIEMENS MR HEADER", 0x0019, 0x0C, VR::IS),         // diffusion b-value
    ("SIEMENS MR HEADER", 0x0019, 0x0E, VR::FD),         // diffusion gradient direction
    ("SIEMENS MR HEADER", 0x0019, 0x27, VR::FD),         // diffusion matrix
    ("GEMS_ACQU_01", 0x0019, 0x23, VR::DS),              // table speed
    ("GEMS_ACQU_01", 0x0019, 0x27, VR::DS),              // rotation speed
    ("GEMS_PARM_01", 0x0043, 0x27, VR::SH),              // scan pitch ratio
    ("GEMS_PARM_01", 0x0043, 0x39, VR::IS),              // b-value
    ("GEMS_HELIOS_01", 0x0045, 0x01, VR::SS),            // number of macro rows in the detector
];

/// The element as it may be kept; `None` when it is not on the list or no number.
pub(super) fn kept(data_set: &DataSet, tag: Tag, element: &Element) -> Option<Element> {
    let block = tag.1 >> 8;
    if block < 0x10 {
        return creator_kept(data_set, tag);
    }
    let creator = data_set.text(Tag(tag.0, block))?;
    let vr = listed(&creator, tag)?;
    let Value::Bytes(bytes) = &element.value else { return None };
    (matches!(element.vr, VR::UN) || element.vr == vr).then_some(())?;
    is_number(vr, bytes).then(|| Element::bytes(vr, bytes.clone()))
}

fn listed(creator: &str, tag: Tag) -> Option<VR> {
    let element = tag.1.to_le_bytes()[0];
    SAFE.iter().find(|safe| (safe.0, safe.1, safe.2) == (creator, tag.0, element)).map(|safe| safe.3)
}

fn is_number(vr: VR, bytes: &[u8]) -> bool {
    match vr {
        VR::FD => bytes.len().is_multiple_of(8),
        VR::FL => bytes.len().is_multiple_of(4),
        VR::SS => bytes.len().is_multiple_of(2),
        _ => {
            bytes.len() <= 64
                && bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b':' | b'\\' | b' '))
        }
    }
}

/// The creator of a block from which an element is kept: the name on the list, not the text that was received.
fn creator_kept(data_set: &DataSet, tag: Tag) -> Option<Element> {
    let is_needed = data_set.iter().any(|(other, element)| {
        other.0 == tag.0 && other.1 >> 8 == tag.1 && tag.1 >= 0x10 && kept(data_set, *other, element).is_some()
    });
    let name = data_set.text(tag).filter(|_| is_needed)?;
    let name = SAFE.iter().map(|safe| safe.0).find(|safe| *safe == name)?;
    let padding = if name.len() % 2 == 1 { " " } else { "" };
    Some(Element::bytes(VR::LO, format!("{name}{padding}")))
}
