//! Writing data sets (PS3.5 7): tag order, even lengths, sequences and items with explicit lengths.

use super::{DataSet, Element, Encoding, Tag, VR, Value, padded, read};

pub(super) fn write(data_set: &DataSet, encoding: Encoding) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, element) in data_set {
        element_to(&mut out, *tag, element, encoding);
    }
    out
}

fn element_to(out: &mut Vec<u8>, tag: Tag, element: &Element, encoding: Encoding) {
    let (vr, bytes) = match &element.value {
        Value::Skipped { .. } => return,
        Value::Items(items) => (VR::SQ, items_of(items, encoding)),
        Value::Bytes(bytes) => (element.vr, padded(element.vr, bytes.clone())),
    };
    // A value too long for the VR's two byte length field goes as UN (PS3.5 6.2.2).
    let vr = if read::has_short_length(vr) && bytes.len() > usize::from(u16::MAX) { VR::UN } else { vr };
    header_to(out, tag, vr, bytes.len(), encoding);
    match encoding {
        Encoding::ExplicitBe => out.extend(read::swapped(vr, &bytes)),
        _ => out.extend(bytes),
    }
}

fn items_of(items: &[DataSet], encoding: Encoding) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let content = write(item, encoding);
        tag_to(&mut out, Tag(0xfffe, 0xe000), encoding);
        u32_to(&mut out, length_field(content.len()), encoding);
        out.extend(content);
    }
    out
}

fn header_to(out: &mut Vec<u8>, tag: Tag, vr: VR, length: usize, encoding: Encoding) {
    tag_to(out, tag, encoding);
    if encoding == Encoding::ImplicitLe {
        return u32_to(out, length_field(length), encoding);
    }
    out.extend(vr.to_bytes());
    if read::has_short_length(vr) {
        u16_to(out, length as u16, encoding);
    } else {
        out.extend([0, 0]);
        u32_to(out, length_field(length), encoding);
    }
}

/// Nothing that is written here comes near 4 GiB: values are bounded when read, and replies are small.
fn length_field(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX - 1)
}

fn tag_to(out: &mut Vec<u8>, tag: Tag, encoding: Encoding) {
    u16_to(out, tag.0, encoding);
    u16_to(out, tag.1, encoding);
}

fn u16_to(out: &mut Vec<u8>, value: u16, encoding: Encoding) {
    match encoding {
        Encoding::ExplicitBe => out.extend(value.to_be_bytes()),
        _ => out.extend(value.to_le_bytes()),
    }
}

fn u32_to(out: &mut Vec<u8>, value: u32, encoding: Encoding) {
    match encoding {
        Encoding::ExplicitBe => out.extend(value.to_be_bytes()),
        _ => out.extend(value.to_le_bytes()),
    }
}
