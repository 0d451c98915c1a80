//! The pixel digest survives what does not touch the pixels, and nothing else.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use dicom_scp::dataset::{self, DataSet, Element, Encoding, Tag, VR};

use super::describe::{Described, describe};

const IMPLICIT: &str = "1.2.840.10008.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
const JPEG_LS_LOSSY: &str = "1.2.840.10008.1.2.4.81";

fn header() -> DataSet {
    let mut header = DataSet::new();
    header.put_text(Tag(0x0008, 0x0018), VR::UI, "1.2.3.4");
    header.put_text(Tag(0x0010, 0x0010), VR::PN, "Somebody");
    header.put_u16(Tag(0x0028, 0x0100), 16);
    header
}

fn file(syntax: &str, encoding: Encoding, header: &DataSet, pixels: &[u8]) -> Vec<u8> {
    let mut meta = DataSet::new();
    meta.put_text(Tag(0x0002, 0x0010), VR::UI, syntax);
    let parts = [vec![0; 128], b"DICM".to_vec(), meta.write(Encoding::ExplicitLe), header.write(encoding)];
    [parts.concat(), pixels.to_vec()].concat()
}

fn described(file: Vec<u8>) -> Described {
    describe(&mut Cursor::new(file), 64).unwrap()
}

fn native(syntax: &str, encoding: Encoding, header: &DataSet, value: &[u8; 4]) -> [u8; 32] {
    let [a, b, c, d] = *value;
    let pixels = match encoding {
        Encoding::ImplicitLe => vec![0xE0, 0x7F, 0x10, 0, 4, 0, 0, 0, a, b, c, d],
        Encoding::ExplicitLe => vec![0xE0, 0x7F, 0x10, 0, b'O', b'W', 0, 0, 4, 0, 0, 0, a, b, c, d],
        Encoding::ExplicitBe => vec![0x7F, 0xE0, 0, 0x10, b'O', b'W', 0, 0, 0, 0, 0, 4, b, a, d, c],
    };
    described(file(syntax, encoding, header, &pixels)).pixel_sha256.unwrap()
}

fn encapsulated(syntax: &str, items: &[&[u8]]) -> [u8; 32] {
    let mut pixels = b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF".to_vec();
    for item in items {
        pixels.extend(b"\xFE\xFF\x00\xE0");
        pixels.extend((item.len() as u32).to_le_bytes());
        pixels.extend(*item);
    }
    pixels.extend(b"\xFE\xFF\xDD\xE0\0\0\0\0");
    described(file(syntax, Encoding::ExplicitLe, &header(), &pixels)).pixel_sha256.unwrap()
}

#[test]
fn native_pixels_have_one_digest_in_every_uncompressed_syntax_and_under_any_header() {
    let base = native(EXPLICIT, Encoding::ExplicitLe, &header(), &[1, 2, 3, 4]);
    let mut renamed = header();
    renamed.put_text(Tag(0x0010, 0x0010), VR::PN, "Anonymous");
    assert_eq!(base, native(EXPLICIT, Encoding::ExplicitLe, &renamed, &[1, 2, 3, 4]));
    assert_eq!(base, native(IMPLICIT, Encoding::ImplicitLe, &header(), &[1, 2, 3, 4]));
    assert_eq!(base, native(BIG_ENDIAN, Encoding::ExplicitBe, &header(), &[1, 2, 3, 4]));
    assert_ne!(base, native(EXPLICIT, Encoding::ExplicitLe, &header(), &[1, 2, 3, 5]));
    // As the documentation defines it.
    let text: &[u8] = b"pacs-bridge/pixel/1\x007FE00010\0native\0\x01\x02\x03\x04";
    assert_eq!(base, <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(text)));
}

#[test]
fn compressed_pixels_keep_their_digest_when_cut_otherwise_and_change_it_with_the_syntax() {
    let base = encapsulated(JPEG_LS, &[&[], &[1, 2, 3, 4]]);
    assert_eq!(base, encapsulated(JPEG_LS, &[&[], &[1, 2], &[3, 4]]));
    assert_eq!(base, encapsulated(JPEG_LS, &[&[0, 0, 0, 0], &[1, 2, 3, 4]]));
    assert_ne!(base, encapsulated(JPEG_LS_LOSSY, &[&[], &[1, 2, 3, 4]]));
    assert_ne!(base, encapsulated(JPEG_LS, &[&[], &[1, 2, 3, 5]]));
    assert_ne!(base, native(EXPLICIT, Encoding::ExplicitLe, &header(), &[1, 2, 3, 4]));
}

#[test]
fn the_header_keeps_short_values_and_drops_long_ones_at_every_depth() {
    let mut item = DataSet::new();
    item.put_text(Tag(0x0008, 0x0100), VR::SH, "CODE");
    item.put(Tag(0x0042, 0x0011), Element::bytes(VR::OB, vec![7; 66]));
    let mut full = header();
    full.put(Tag(0x0028, 0x1201), Element::bytes(VR::OW, vec![9; 512]));
    full.put(Tag(0x0040, 0x0260), Element::sequence(vec![item]));
    let Described { header: bytes, pixel_sha256, transfer_syntax } =
        described(file(IMPLICIT, Encoding::ImplicitLe, &full, &[]));
    assert_eq!((pixel_sha256, transfer_syntax.as_str()), (None, IMPLICIT));
    let (kept, _) = dataset::read(&bytes, Encoding::ExplicitLe, &dataset::ReadOptions::default()).unwrap();
    assert_eq!(kept.text(Tag(0x0010, 0x0010)).as_deref(), Some("Somebody"));
    assert!(!kept.contains(Tag(0x0028, 0x1201)));
    let items = kept.items(Tag(0x0040, 0x0260)).unwrap();
    assert_eq!(items[0].text(Tag(0x0008, 0x0100)).as_deref(), Some("CODE"));
    assert!(!items[0].contains(Tag(0x0042, 0x0011)));
}
