#![allow(clippy::unwrap_used)]
use super::*;
use crate::TransferSyntax;
use proptest::prelude::*;

const PIXEL_DATA: Tag = Tag(0x7fe0, 0x0010);
const PATIENT_NAME: Tag = Tag(0x0010, 0x0010);
const ENCODINGS: [Encoding; 3] = [Encoding::ImplicitLe, Encoding::ExplicitLe, Encoding::ExplicitBe];

fn all(bytes: &[u8], encoding: Encoding) -> DataSet {
    let (data_set, end) = read(bytes, encoding, &ReadOptions::default()).unwrap();
    assert_eq!(end, ReadEnd::Complete);
    data_set
}

/// Values in the form the reader gives back: even length, VR as in the dictionary.
fn arbitrary_element() -> impl Strategy<Value = (Tag, Element)> {
    let text = |tag, vr| "[ -~]{0,20}".prop_map(move |s| (tag, Element::bytes(vr, padded(vr, s.into_bytes()))));
    let words = |tag, vr, size: usize| {
        proptest::collection::vec(any::<u8>(), 0..5)
            .prop_map(move |v| (tag, Element::bytes(vr, v.repeat(size).into_iter().collect::<Vec<u8>>())))
    };
    prop_oneof![
        text(PATIENT_NAME, VR::PN),
        text(Tag(0x0008, 0x0060), VR::CS),
        text(Tag(0x0008, 0x1030), VR::LO),
        text(Tag(0x0020, 0x000d), VR::UI),
        text(Tag(0x0020, 0x0013), VR::IS),
        words(Tag(0x0028, 0x0010), VR::US, 2),
        words(Tag(0x0018, 0x6020), VR::SL, 4),
        words(Tag(0x0018, 0x9074), VR::DT, 2),
        words(Tag(0x0018, 0x9087), VR::FD, 8),
        words(Tag(0x0009, 0x1001), VR::UN, 2),
        words(Tag(0x0028, 0x3006), VR::OW, 2),
        words(Tag(0x0000, 0x0901), VR::AT, 4),
    ]
}

pub(crate) fn arbitrary_data_set() -> impl Strategy<Value = DataSet> {
    let leaf = proptest::collection::vec(arbitrary_element(), 0..6).prop_map(DataSet::from_iter);
    leaf.prop_recursive(4, 40, 4, |inner| {
        (proptest::collection::vec(arbitrary_element(), 0..6), proptest::collection::vec(inner, 0..4)).prop_map(
            |(elements, items)| {
                let mut data_set = DataSet::from_iter(elements);
                data_set.put(Tag(0x0008, 0x1140), Element::sequence(items));
                data_set
            },
        )
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(data_set in arbitrary_data_set()) {
        for encoding in ENCODINGS {
            prop_assert_eq!(&all(&data_set.write(encoding), encoding), &data_set);
        }
    }

    #[test]
    fn a_prefix_yields_only_true_elements_and_can_be_continued(data_set in arbitrary_data_set(), cut in any::<prop::sample::Index>()) {
        for encoding in ENCODINGS {
            let bytes = data_set.write(encoding);
            let cut = cut.index(bytes.len() + 1);
            let (mut head, end) = read(&bytes[..cut], encoding, &ReadOptions::default()).unwrap();
            for (tag, element) in &head {
                prop_assert_eq!(data_set.get(*tag), Some(element));
            }
            let offset = match end {
                ReadEnd::Complete => cut,
                ReadEnd::NeedMore { offset } => offset,
                ReadEnd::Stopped { .. } => unreachable!("no stop was asked for"),
            };
            head.extend(all(&bytes[offset..], encoding));
            prop_assert_eq!(&head, &data_set);
        }
    }

    #[test]
    fn the_scanner_sees_the_same_however_the_bytes_are_cut(data_set in arbitrary_data_set(), size in 1usize..50) {
        for syntax in [TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_BE] {
            let bytes = data_set.write(syntax.encoding());
            let mut scanner = Scanner::new(syntax, ReadOptions::default(), 1 << 20);
            for chunk in bytes.chunks(size) {
                scanner.push(chunk).unwrap();
            }
            prop_assert_eq!(&scanner.finish().0, &data_set);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), depth in any::<u8>()) {
        let options = ReadOptions { depth_max: depth, value_bytes_max: 16, ..ReadOptions::default() };
        for encoding in ENCODINGS {
            if let Ok((data_set, _)) = read(&bytes, encoding, &options) {
                for (tag, _) in &data_set {
                    data_set.texts(*tag);
                    data_set.ints(*tag);
                    data_set.floats(*tag);
                }
                data_set.clone().transcode_to_utf8();
                data_set.write(encoding);
            }
        }
    }
}

/// (0008,0016) UI "1.2" in explicit little endian, for what follows it.
const SOP_CLASS: &[u8] = b"\x08\x00\x16\x00UI\x04\x001.2\0";

fn explicit(rest: &[&[u8]]) -> Vec<u8> {
    [&[SOP_CLASS], rest].concat().concat()
}

#[test]
fn un_of_undefined_length_holds_implicit_items() {
    // CP-246: a private sequence relayed as UN; the item and its content are implicit little endian.
    let bytes = explicit(&[
        b"\x01\x20\x10\x10UN\0\0\xff\xff\xff\xff",
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"\x10\x00\x10\x00\x04\x00\x00\x00A^B ",
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\x10\x20\x10\x00CS\x02\x00AB",
    ]);
    let data_set = all(&bytes, Encoding::ExplicitLe);
    let items = data_set.items(Tag(0x2001, 0x1010)).unwrap();
    assert_eq!(items[0].text(PATIENT_NAME).unwrap(), "A^B");
    assert_eq!(data_set.text(Tag(0x2010, 0x0010)).unwrap(), "AB");
}

#[test]
fn standard_attributes_sent_as_un_get_their_own_vr() {
    let bytes = explicit(&[
        b"\x28\x00\x10\x00UN\0\0\x02\0\0\0\x00\x02",
        b"\x0c\x30\x02\x00UN\0\0\x14\0\0\0",
        b"\xfe\xff\x00\xe0\x0c\0\0\0",
        b"\x08\x00\x55\x11\x04\0\0\x001.3\0",
    ]);
    let data_set = all(&bytes, Encoding::ExplicitLe);
    assert_eq!(data_set.int(Tag(0x0028, 0x0010)), Some(512));
    let referenced = data_set.items(Tag(0x300c, 0x0002)).unwrap();
    assert_eq!(referenced[0].uid(Tag(0x0008, 0x1155)).unwrap(), "1.3");
}

#[test]
fn the_encoding_is_recognised_when_the_sender_lies() {
    let mut data_set = DataSet::new();
    data_set.put_text(Tag(0x0008, 0x0016), VR::UI, "1.2");
    data_set.put_text(PATIENT_NAME, VR::PN, "A^B");
    assert_eq!(all(&data_set.write(Encoding::ExplicitLe), Encoding::ImplicitLe), data_set);
    assert_eq!(all(&data_set.write(Encoding::ImplicitLe), Encoding::ExplicitLe), data_set);
}

#[test]
fn an_odd_length_and_an_unknown_vr_are_read() {
    let bytes = explicit(&[
        b"\x10\x00\x10\x00PN\x03\x00A^B",
        b"\x10\x00\x20\x00ZZ\0\0\x02\0\0\x00ID",
        b"\x10\x00\x30\x00DA\x08\x0020260102",
    ]);
    let data_set = all(&bytes, Encoding::ExplicitLe);
    assert_eq!(data_set.text(PATIENT_NAME).unwrap(), "A^B");
    assert_eq!(data_set.text(Tag(0x0010, 0x0020)).unwrap(), "ID");
    assert_eq!(data_set.text(Tag(0x0010, 0x0030)).unwrap(), "20260102");
}

#[test]
fn reading_stops_before_pixel_data_and_says_where() {
    let bytes = explicit(&[b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0"]);
    let options = ReadOptions { stop_at: Some(PIXEL_DATA), ..ReadOptions::default() };
    let (data_set, end) = read(&bytes, Encoding::ExplicitLe, &options).unwrap();
    assert_eq!(end, ReadEnd::Stopped { tag: PIXEL_DATA, offset: SOP_CLASS.len() });
    assert_eq!(data_set.len(), 1);
}

#[test]
fn encapsulated_pixel_data_and_long_values_are_skipped() {
    let bytes = explicit(&[
        b"\x29\x00\x10\x10OB\0\0\x04\0\0\x00abcd",
        b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff",
        b"\xfe\xff\x00\xe0\0\0\0\0",
        b"\xfe\xff\x00\xe0\x02\0\0\0xy",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
    ]);
    let options = ReadOptions { value_bytes_max: 3, ..ReadOptions::default() };
    let (data_set, end) = read(&bytes, Encoding::ExplicitLe, &options).unwrap();
    assert_eq!(end, ReadEnd::Complete);
    assert_eq!(data_set.get(Tag(0x0029, 0x1010)).unwrap().value, Value::Skipped { length: 4 });
    assert_eq!(data_set.get(PIXEL_DATA).unwrap().value, Value::Skipped { length: u32::MAX });
}

#[test]
fn a_skipped_value_need_not_be_there() {
    let bytes = explicit(&[b"\xe0\x7f\x10\x00OW\0\0\0\0\0\x40"]);
    let (_, end) = read(&bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap();
    assert_eq!(end, ReadEnd::NeedMore { offset: bytes.len() + 0x4000_0000 });
}

#[test]
fn limits_are_errors() {
    let nested = |levels: usize| {
        let mut data_set = DataSet::new();
        for _ in 0..levels {
            let mut outer = DataSet::new();
            outer.put(Tag(0x0008, 0x1140), Element::sequence(vec![data_set]));
            data_set = outer;
        }
        data_set.write(Encoding::ImplicitLe)
    };
    let options = ReadOptions { depth_max: 5, ..ReadOptions::default() };
    assert!(read(&nested(5), Encoding::ImplicitLe, &options).is_ok());
    assert!(matches!(read(&nested(6), Encoding::ImplicitLe, &options), Err(ReadError::TooDeep { .. })));

    // An item that claims more than its sequence has.
    let overrun = explicit(&[b"\x08\x00\x40\x11SQ\0\0\x08\0\0\0", b"\xfe\xff\x00\xe0\x09\0\0\0", SOP_CLASS]);
    assert!(matches!(read(&overrun, Encoding::ExplicitLe, &ReadOptions::default()), Err(ReadError::Overrun { .. })));
    let options = ReadOptions { elements_max: 2, ..ReadOptions::default() };
    assert!(matches!(read(&[SOP_CLASS; 3].concat(), Encoding::ExplicitLe, &options), Err(ReadError::TooMany { .. })));
}

#[test]
fn items_inherit_the_character_set() {
    let bytes = [
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100".as_slice(),
        b"\x08\x00\x40\x11SQ\0\0\x12\0\0\0",
        b"\xfe\xff\x00\xe0\x0a\0\0\0",
        b"\x10\x00\x10\x00PN\x02\x00\xe9 ",
    ]
    .concat();
    let mut data_set = all(&bytes, Encoding::ExplicitLe);
    let name = |data_set: &DataSet| data_set.items(Tag(0x0008, 0x1140)).unwrap()[0].text(PATIENT_NAME).unwrap();
    assert_eq!(name(&data_set), "é");
    assert!(data_set.needs_character_set());
    data_set.transcode_to_utf8();
    assert_eq!(name(&data_set), "é");
    assert_eq!(data_set.text(SPECIFIC_CHARACTER_SET).unwrap(), "ISO_IR 192");
    assert_eq!(all(&data_set.write(Encoding::ExplicitLe), Encoding::ExplicitLe), data_set);
}

#[test]
fn text_is_decoded_trimmed_and_split() {
    let mut data_set = DataSet::new();
    data_set.put_texts(Tag(0x0008, 0x0061), VR::CS, &["CT", "", "MR "]);
    data_set.put_text(Tag(0x0020, 0x4000), VR::LT, " a\\b ");
    data_set.put_text(Tag(0x0010, 0x0010), VR::PN, "Müller^Ä");
    data_set.put_text(Tag(0x0020, 0x0013), VR::IS, "+7");
    data_set.put_text(Tag(0x0018, 0x0050), VR::DS, "1.5\\2");
    assert_eq!(data_set.texts(Tag(0x0008, 0x0061)), ["CT", "", "MR"]);
    assert_eq!(data_set.text(Tag(0x0020, 0x4000)).unwrap(), " a\\b");
    assert_eq!(data_set.text(PATIENT_NAME).unwrap(), "Müller^Ä");
    assert_eq!(data_set.int(Tag(0x0020, 0x0013)), Some(7));
    assert_eq!(data_set.floats(Tag(0x0018, 0x0050)), [1.5, 2.0]);
    assert_eq!(data_set.ints(Tag(0x0018, 0x0050)), [2]);
    assert!(data_set.character_set().is_utf8());
    assert_eq!(data_set.text(Tag(0x0040, 0x0001)), None);
}

#[test]
fn the_scanner_inflates() {
    use std::io::Write;
    let mut data_set = DataSet::new();
    for element in 0x1001..0x1200 {
        data_set.put(Tag(0x0009, element), Element::bytes(VR::LO, format!("{element:08}").into_bytes()));
    }
    data_set.put(PIXEL_DATA, Element::bytes(VR::OW, vec![0; 100_000]));
    let plain = data_set.write(Encoding::ExplicitLe);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).unwrap();
    let deflated = encoder.finish().unwrap();
    let syntax = TransferSyntax::of(&Uid::literal("1.2.840.10008.1.2.1.99")).unwrap();
    let options = ReadOptions { stop_at: Some(PIXEL_DATA), ..ReadOptions::default() };
    let mut scanner = Scanner::new(syntax, options, 1 << 16);
    for byte in deflated.chunks(7) {
        scanner.push(byte).unwrap();
    }
    let (head, end) = scanner.finish();
    assert_eq!(end, Scanned::Stopped { tag: PIXEL_DATA, offset: plain.len() as u64 - 100_012 });
    data_set.remove(PIXEL_DATA);
    assert_eq!(head, data_set);
}

#[test]
fn the_scanner_bounds_its_memory() {
    let endless = explicit(&[b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff", &b"\xfe\xff\x00\xe0\0\0\0\0".repeat(200)]);
    let mut scanner = Scanner::new(TransferSyntax::EXPLICIT_VR_LE, ReadOptions::default(), 1000);
    assert_eq!(scanner.push(&endless), Err(ScanError::TooLong { pending_bytes_max: 1000 }));
}
