//! Previews of synthetic objects with exact expected pixels, and of sample files against another implementation.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
    found.sort();
}

/// Every sample either renders or gives a reason, and where pydicom decodes the same file the shades agree.
#[test]
fn sample_files_render_or_say_why_not_and_agree_with_pydicom() {
    let Some(samples) = std::env::var_os("PACS_BRIDGE_SAMPLES") else {
        println!("SKIPPED: PACS_BRIDGE_SAMPLES is not set");
        return;
    };
    let mut files = Vec::new();
    files_below(Path::new(&samples), &mut files);
    let out = tempfile::tempdir().unwrap();
    let mut index = File::create(out.path().join("index.tsv")).unwrap();
    for (number, path) in files.iter().enumerate() {
        let (mut file, name) = (File::open(path).unwrap(), path.display());
        // Side 65535: nothing is made smaller, so every pixel can be compared.
        let rendered = match render(&mut file, FrameChoice::Middle, 65_535) {
            Ok(Outcome::Picture(rendered)) => rendered,
            Ok(Outcome::Nothing(reason)) => {
                println!("nothing: {name}: {reason}");
                continue;
            }
            Err(error) => {
                println!("failed: {name}: {}", crate::chain_of(&error));
                continue;
            }
        };
        let object = crate::payload::object::Object::open(&mut file).unwrap();
        let description = frame::Description::of(&object.header, object.pixels.unwrap().kind).unwrap();
        let Rendered { width, height, .. } = rendered;
        let (frame, channels) = (description.frames / 2, rendered.channels());
        writeln!(index, "{}\t{frame}\t{width}\t{height}\t{channels}\t{number}.raw", path.display()).unwrap();
        fs::write(out.path().join(format!("{number}.raw")), rendered.samples()).unwrap();
        let preview = encode(&rendered.fitted(512), 100_000).unwrap();
        assert!(preview.bytes.len() <= 100_000);
        if let Some(pictures) = std::env::var_os("PACS_BRIDGE_PICTURES") {
            let stem = path.file_name().unwrap().to_string_lossy().into_owned();
            let kind = preview.media_type.strip_prefix("image/").unwrap();
            fs::write(Path::new(&pictures).join(format!("{number}-{stem}.{kind}")), &preview.bytes).unwrap();
        }
    }
    let Some(python) = std::env::var_os("PACS_BRIDGE_PYTHON") else {
        println!("SKIPPED: PACS_BRIDGE_PYTHON does not name a python with pydicom");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/samples_against_pydicom.py");
    let compared = Command::new(python).arg(script).arg(out.path()).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&compared.stdout), String::from_utf8_lossy(&compared.stderr));
    assert!(compared.status.success());
}

/// Each `name.dcm` below holds, compressed, the pixels of `name.native.dcm`: made with CharLS, OpenJPEG, OpenJPH, libjxl and
/// other encoders that share no code with the decoders used here.
fn compare_pairs(directory: &Path) -> usize {
    let mut files = Vec::new();
    files_below(directory, &mut files);
    let mut pairs = 0;
    for native in files.iter().filter(|path| path.to_string_lossy().ends_with(".native.dcm")) {
        let coded = PathBuf::from(native.to_string_lossy().replace(".native.dcm", ".dcm"));
        let [expected, found] = [native, &coded].map(|path| {
            let outcome = render(&mut File::open(path).unwrap(), FrameChoice::Middle, 65_535);
            outcome.unwrap_or_else(|error| panic!("{}: {}", path.display(), crate::chain_of(&error)))
        });
        let (Outcome::Picture(expected), Outcome::Picture(found)) = (expected, found) else {
            panic!("{} was not rendered", coded.display());
        };
        // Decoders of lossy codings round differently.
        let name = coded.file_name().unwrap().to_string_lossy().into_owned();
        let allowed =
            [("jpeg12", 1), ("jpeg8", 4)].iter().find(|(codec, _)| name.starts_with(codec)).map_or(0, |c| c.1);
        let worst = expected.samples().iter().zip(found.samples()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= allowed, "{} differs by {worst}", coded.display());
        pairs += 1;
    }
    pairs
}

#[test]
fn every_codec_gives_the_pixels_that_other_decoders_give() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/fixtures");
    assert!(compare_pairs(&fixtures) >= 20);
    if let Some(more) = std::env::var_os("PACS_BRIDGE_CODEC_PAIRS") {
        println!("{} more pairs agree", compare_pairs(Path::new(&more)));
    }
}

mod synthetic {
    //! Objects made by hand, with the shades worked out by hand.

    use std::io::{Cursor, Read, Seek, SeekFrom};

    use dicom_scp::dataset::{DataSet, Element, Encoding, ReadEnd, ReadOptions, Tag, VR};
    use proptest::prelude::*;

    use super::*;

    const EXPLICIT: &str = "1.2.840.10008.1.2.1";
    const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
    const RLE: &str = "1.2.840.10008.1.2.5";

    /// A small object under construction: attributes, and the pixel data element as it stands in the file.
    #[derive(Clone)]
    struct Made {
        header: DataSet,
        syntax: &'static str,
        encoding: Encoding,
        pixels: Vec<u8>,
    }

    impl Made {
        fn new(rows: u16, columns: u16, bits_allocated: u16, photometric: &str) -> Self {
            let mut header = DataSet::new();
            header.put_text(Tag(0x0008, 0x0018), VR::UI, "1.2.3.4");
            header.put_u16(Tag(0x0028, 0x0002), 1);
            header.put_text(Tag(0x0028, 0x0004), VR::CS, photometric);
            header.put_u16(Tag(0x0028, 0x0010), rows);
            header.put_u16(Tag(0x0028, 0x0011), columns);
            header.put_u16(Tag(0x0028, 0x0100), bits_allocated);
            header.put_u16(Tag(0x0028, 0x0101), bits_allocated);
            header.put_u16(Tag(0x0028, 0x0102), bits_allocated - 1);
            header.put_u16(Tag(0x0028, 0x0103), 0);
            Self { header, syntax: EXPLICIT, encoding: Encoding::ExplicitLe, pixels: Vec::new() }
        }

        fn u16(mut self, group: u16, element: u16, value: u16) -> Self {
            self.header.put_u16(Tag(group, element), value);
            self
        }

        fn text(mut self, group: u16, element: u16, vr: VR, text: &str) -> Self {
            self.header.put_text(Tag(group, element), vr, text);
            self
        }

        fn items(mut self, group: u16, element: u16, items: Vec<DataSet>) -> Self {
            self.header.put(Tag(group, element), Element::sequence(items));
            self
        }

        fn words(mut self, group: u16, element: u16, vr: VR, words: &[u16]) -> Self {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.header.put(Tag(group, element), Element::bytes(vr, bytes));
            self
        }

        fn window(self, center: &str, width: &str) -> Self {
            self.text(0x0028, 0x1050, VR::DS, center).text(0x0028, 0x1051, VR::DS, width)
        }

        fn frames(self, frames: u16) -> Self {
            self.text(0x0028, 0x0008, VR::IS, &frames.to_string())
        }

        /// Native pixel data from bytes.
        fn native(self, bytes: &[u8]) -> Self {
            self.element(0x0010, b"OW", bytes)
        }

        fn native_words(self, words: &[u16]) -> Self {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.native(&bytes)
        }

        fn element(mut self, element: u8, vr: &[u8; 2], bytes: &[u8]) -> Self {
            self.pixels = vec![0xE0, 0x7F, element, 0, vr[0], vr[1], 0, 0];
            self.pixels.extend((bytes.len() as u32).to_le_bytes());
            self.pixels.extend(bytes);
            self
        }

        /// Encapsulated pixel data: offset table, then fragments.
        fn encapsulated(mut self, syntax: &'static str, table: &[u32], fragments: &[&[u8]]) -> Self {
            self.syntax = syntax;
            self.pixels = b"\xE0\x7F\x10\x00OB\0\0\xFF\xFF\xFF\xFF".to_vec();
            let table: Vec<u8> = table.iter().flat_map(|offset| offset.to_le_bytes()).collect();
            for item in [table.as_slice()].iter().chain(fragments) {
                self.pixels.extend(b"\xFE\xFF\x00\xE0");
                self.pixels.extend((item.len() as u32).to_le_bytes());
                self.pixels.extend(*item);
            }
            self.pixels.extend(b"\xFE\xFF\xDD\xE0\0\0\0\0");
            self
        }

        fn file(&self) -> Vec<u8> {
            let mut meta = DataSet::new();
            meta.put_text(Tag(0x0002, 0x0010), VR::UI, self.syntax);
            let data_set = [self.header.write(self.encoding), self.pixels.clone()].concat();
            [vec![0; 128], b"DICM".to_vec(), meta.write(Encoding::ExplicitLe), data_set].concat()
        }

        fn rendered(&self, choice: FrameChoice) -> Rendered {
            match render(&mut Cursor::new(self.file()), choice, 512).unwrap() {
                Outcome::Picture(rendered) => rendered,
                Outcome::Nothing(reason) => panic!("{reason}"),
            }
        }

        fn shades(&self) -> Vec<u8> {
            self.rendered(FrameChoice::Middle).samples().to_vec()
        }
    }

    fn item(build: impl FnOnce(&mut DataSet)) -> DataSet {
        let mut item = DataSet::new();
        build(&mut item);
        item
    }

    #[test]
    fn eight_bits_without_a_window_are_shown_as_they_are() {
        let made = Made::new(2, 2, 8, "MONOCHROME2").native(&[0, 1, 128, 255]);
        assert_eq!(made.shades(), [0, 1, 128, 255]);
        let inverse = Made::new(2, 2, 8, "MONOCHROME1").native(&[0, 1, 128, 255]);
        assert_eq!(inverse.shades(), [255, 254, 127, 0]);
    }

    #[test]
    fn twelve_bits_are_masked_out_of_their_cells_and_spread_over_their_range() {
        // Overlay bits above the stored ones must not be seen.
        let made = Made::new(1, 4, 16, "MONOCHROME2").u16(0x28, 0x101, 12).u16(0x28, 0x102, 11);
        assert_eq!(made.clone().native_words(&[0xF000, 0x0400, 0x0800, 0x3FFF]).shades(), [0, 64, 128, 255]);
        // The same values in the upper bits.
        let upper = made.u16(0x28, 0x102, 15).native_words(&[0x0003, 0x4001, 0x8002, 0xFFF3]);
        assert_eq!(upper.shades(), [0, 64, 128, 255]);
    }

    #[test]
    fn signed_values_are_rescaled_and_windowed_by_the_linear_function() {
        // Hounsfield units from -1024 on; C.11.2.1.2.1 with c = 40, w = 401: -160.5 .. 239.5.
        let made = Made::new(1, 5, 16, "MONOCHROME2")
            .u16(0x28, 0x103, 1)
            .text(0x28, 0x1052, VR::DS, "-1000")
            .text(0x28, 0x1053, VR::DS, "2")
            .window("40", "401")
            .native_words(&[0xFFFF, 400, 420, 520, 700]);
        // Values -1002, -200, -160, 40, 400: (-160 - 39.5) / 400 + 0.5 = 0.00125; (40 - 39.5) / 400 + 0.5 = 0.50125.
        assert_eq!(made.shades(), [0, 0, 0, 128, 255]);
    }

    #[test]
    fn the_three_window_functions() {
        let made = Made::new(1, 4, 16, "MONOCHROME2").window("100\\7", "100\\7").native_words(&[50, 51, 100, 150]);
        // (51 - 99.5) / 99 + 0.5 = 0.0101; (100 - 99.5) / 99 + 0.5 = 0.50505; 150 is above 149.
        assert_eq!(made.shades(), [0, 3, 129, 255]);
        // (51 - 100) / 100 + 0.5 = 0.01; 0.5; 1.
        assert_eq!(made.clone().text(0x28, 0x1056, VR::CS, "LINEAR_EXACT").shades(), [0, 3, 128, 255]);
        // 1 / (1 + e^2) = 0.1192; 1 / (1 + e^1.96) = 0.1235; 0.5; 0.8808.
        assert_eq!(made.text(0x28, 0x1056, VR::CS, "SIGMOID").shades(), [30, 31, 128, 225]);
    }

    #[test]
    fn look_up_tables_for_modality_and_values_of_interest() {
        let table = |first: u16, data: &[u16]| {
            let data: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
            item(|item| {
                let descriptor: Vec<u8> = [4, first, 8].iter().flat_map(|word: &u16| word.to_le_bytes()).collect();
                item.put(Tag(0x28, 0x3002), Element::bytes(VR::US, descriptor));
                item.put(Tag(0x28, 0x3006), Element::bytes(VR::OW, data));
            })
        };
        let made = Made::new(1, 4, 16, "MONOCHROME2").native_words(&[9, 10, 12, 99]);
        // Values below and above a table take its ends.
        let voi = made.clone().items(0x28, 0x3010, vec![table(10, &[5, 6, 7, 255])]);
        assert_eq!(voi.shades(), [5, 5, 7, 255]);
        let both = made.items(0x28, 0x3000, vec![table(10, &[1, 2, 3, 0])]).items(
            0x28,
            0x3010,
            vec![table(0, &[9, 80, 70, 60])],
        );
        assert_eq!(both.shades(), [80, 80, 60, 9]);
    }

    #[test]
    fn a_frame_uses_its_own_functional_group() {
        let window = |center: &str| {
            item(|group| {
                let voi = item(|voi| {
                    voi.put_text(Tag(0x28, 0x1050), VR::DS, center);
                    voi.put_text(Tag(0x28, 0x1051), VR::DS, "1");
                });
                group.put(Tag(0x28, 0x9132), Element::sequence(vec![voi]));
            })
        };
        let made = Made::new(1, 2, 8, "MONOCHROME2").frames(2).native(&[10, 20, 10, 20]);
        let made = made.items(0x5200, 0x9230, vec![window("100"), window("15")]);
        assert_eq!(made.rendered(FrameChoice::Index(0)).samples(), [0, 0]);
        assert_eq!(made.rendered(FrameChoice::Index(1)).samples(), [0, 255]);
        assert_eq!(made.shades(), [0, 255], "the middle of two frames is the second");
    }

    #[test]
    fn padding_is_black_and_does_not_stretch_the_range() {
        let made = Made::new(1, 4, 16, "MONOCHROME2").u16(0x28, 0x103, 1).native_words(&[0x8000, 0, 50, 100]);
        assert_eq!(made.clone().words(0x28, 0x120, VR::US, &[0x8000]).shades(), [0, 0, 128, 255]);
        let inverse = made.words(0x28, 0x120, VR::SS, &[0x8000]).text(0x28, 0x4, VR::CS, "MONOCHROME1");
        assert_eq!(inverse.shades(), [0, 255, 128, 0]);
    }

    #[test]
    fn thirty_two_bits_floats_and_doubles() {
        let words = [0_u32, 1 << 30, 1 << 31, u32::MAX].map(u32::to_le_bytes).concat();
        assert_eq!(Made::new(1, 4, 32, "MONOCHROME2").native(&words).shades(), [0, 64, 128, 255]);
        let floats = [-1.0_f32, f32::NAN, 0.0, 1.0].map(f32::to_le_bytes).concat();
        assert_eq!(Made::new(1, 4, 32, "MONOCHROME2").element(8, b"OF", &floats).shades(), [0, 0, 128, 255]);
        let doubles = [-1.0_f64, f64::INFINITY, 0.0, 1.0].map(f64::to_le_bytes).concat();
        assert_eq!(Made::new(1, 4, 64, "MONOCHROME2").element(9, b"OD", &doubles).shades(), [0, 255, 128, 255]);
    }

    #[test]
    fn single_bits_run_on_from_frame_to_frame() {
        // Three pixels a frame, least significant bit first: frames 101, 110, 011 are the bits 0b110_011_101.
        let made = Made::new(1, 3, 1, "MONOCHROME2").frames(3).native(&[0b1001_1101, 0b0000_0001]);
        let frame = |index| made.rendered(FrameChoice::Index(index)).samples().to_vec();
        assert_eq!(frame(0), [255, 0, 255]);
        assert_eq!(frame(1), [255, 255, 0]);
        assert_eq!(frame(2), [0, 255, 255]);
    }

    #[test]
    fn palettes_of_sixteen_and_eight_bits_and_segmented() {
        let made = Made::new(1, 3, 8, "PALETTE COLOR").native(&[0, 1, 9, 0]);
        let table = |made: Made, channel: u16, data: &[u16]| {
            made.words(0x28, 0x1101 + channel, VR::US, &[2, 0, 16]).words(0x28, 0x1201 + channel, VR::OW, data)
        };
        let wide = table(table(table(made.clone(), 0, &[0x1000, 0xFF00]), 1, &[0x2000, 0]), 2, &[0x3000, 0x8000]);
        assert_eq!(wide.shades(), [16, 32, 48, 255, 0, 128, 255, 0, 128]);
        // A discrete entry 0, then a line to 200 in four steps.
        let segments = |made: Made, channel: u16| {
            made.words(0x28, 0x1101 + channel, VR::US, &[5, 0, 16]).words(
                0x28,
                0x1221 + channel,
                VR::OW,
                &[0, 1, 0, 1, 4, 200],
            )
        };
        let segmented = segments(segments(segments(made, 0), 1), 2);
        assert_eq!(segmented.shades(), [0, 0, 0, 50, 50, 50, 200, 200, 200]);
    }

    #[test]
    fn colour_by_pixel_by_plane_and_from_luminance_and_chroma() {
        let colour = |photometric: &str| Made::new(1, 2, 8, photometric).u16(0x28, 2, 3).u16(0x28, 6, 0);
        assert_eq!(colour("RGB").native(&[1, 2, 3, 4, 5, 6]).shades(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(colour("RGB").u16(0x28, 6, 1).native(&[1, 4, 2, 5, 3, 6]).shades(), [1, 2, 3, 4, 5, 6]);
        // Red and mid grey.
        assert_eq!(colour("YBR_FULL").native(&[76, 85, 255, 128, 128, 128]).shades(), [254, 0, 0, 128, 128, 128]);
        assert_eq!(colour("YBR_FULL_422").native(&[76, 149, 85, 255]).shades(), [254, 0, 0, 255, 73, 73]);
        let deep = Made::new(1, 1, 16, "RGB").u16(0x28, 2, 3).native_words(&[0xFFFF, 0x8000, 0]);
        assert_eq!(deep.shades(), [255, 128, 0]);
    }

    #[test]
    fn run_length_coded_luminance_and_chroma_is_converted() {
        let segment = |byte: u8| [0_u8, byte];
        let mut frame = vec![3_u32, 64, 66, 68];
        frame.resize(16, 0);
        let mut frame: Vec<u8> = frame.iter().flat_map(|word| word.to_le_bytes()).collect();
        frame.extend([segment(76), segment(85), segment(255)].concat());
        let made = Made::new(1, 1, 8, "YBR_FULL").u16(0x28, 2, 3).encapsulated(RLE, &[], &[&frame]);
        assert_eq!(made.shades(), [254, 0, 0]);
    }

    #[test]
    fn big_endian_words_implicit_headers_and_deflated_data_sets() {
        let mut big = Made::new(1, 2, 16, "MONOCHROME2");
        (big.syntax, big.encoding) = (BIG_ENDIAN, Encoding::ExplicitBe);
        big.pixels = b"\x7F\xE0\x00\x10OW\0\0\0\0\0\x04\x00\x01\x02\x00".to_vec();
        assert_eq!(big.shades(), [0, 255]);
        let mut implicit = Made::new(1, 2, 16, "MONOCHROME2");
        (implicit.syntax, implicit.encoding) = ("1.2.840.10008.1.2", Encoding::ImplicitLe);
        implicit.pixels = b"\xE0\x7F\x10\x00\x04\0\0\0\x01\x00\x00\x02".to_vec();
        assert_eq!(implicit.shades(), [0, 255]);
        let plain = Made::new(1, 2, 8, "MONOCHROME2").native(&[7, 9]);
        let data_set = [plain.header.write(Encoding::ExplicitLe), plain.pixels.clone()].concat();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&data_set).unwrap();
        let mut deflated = Made { header: DataSet::new(), syntax: "1.2.840.10008.1.2.1.99", ..plain };
        deflated.pixels = encoder.finish().unwrap();
        assert_eq!(deflated.shades(), [7, 9]);
    }

    #[test]
    fn an_implicit_sequence_of_unknown_vr_before_the_pixels_does_not_hide_them() {
        // CP-246: UN of undefined length holds implicit items, in an explicit data set.
        let mut made = Made::new(1, 2, 8, "MONOCHROME2").native(&[7, 9]);
        let private = b"\x01\x70\x01\x10UN\0\0\xFF\xFF\xFF\xFF\xFE\xFF\x00\xE0\xFF\xFF\xFF\xFF\x08\0\x60\0\x02\0\0\0CT\
            \xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";
        made.pixels = [private.as_slice(), &made.pixels].concat();
        assert_eq!(made.shades(), [7, 9]);
    }

    #[test]
    fn frames_are_found_by_table_by_count_and_by_start_marker() {
        let fixture = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/fixtures").join(name);
            let bytes = fs::read(path).unwrap();
            // The only fragment, behind the empty or 4-byte offset table.
            let at = bytes.windows(4).rposition(|window| window == [0xFE, 0xFF, 0x00, 0xE0]).unwrap();
            let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            bytes[at + 8..at + 8 + length].to_vec()
        };
        let (one, two) = (fixture("jls-grey8-30x40-k0-n0.dcm"), fixture("jls-grey8-near2.dcm"));
        let made = Made::new(30, 40, 8, "MONOCHROME2");
        let syntax = "1.2.840.10008.1.2.4.80";
        let single = |code: &[u8]| made.clone().encapsulated(syntax, &[], &[code]).shades();
        let (first, second) = (single(&one), single(&two));
        assert_ne!(first, second);
        let (one_a, one_b) = one.split_at(one.len() / 4 * 2);
        let at = (one.len() + 16) as u32;
        let made = made.frames(2);
        for object in [
            made.clone().encapsulated(syntax, &[0, (8 + one.len()) as u32], &[&one, &two]),
            made.clone().encapsulated(syntax, &[], &[&one, &two]),
            made.clone().encapsulated(syntax, &[0, at], &[one_a, one_b, &two]),
            made.clone().encapsulated(syntax, &[], &[one_a, one_b, &two]),
            // A table that points nowhere is not believed.
            made.clone().encapsulated(syntax, &[0, 5], &[one_a, one_b, &two]),
        ] {
            assert_eq!(object.rendered(FrameChoice::Index(0)).samples(), first);
            assert_eq!(object.rendered(FrameChoice::Index(1)).samples(), second);
        }
    }

    /// A frame of RLE, one segment a plane, no run in it.
    fn run_length_coded(planes: &[&[u8]]) -> Vec<u8> {
        let mut segments = Vec::new();
        let mut head = vec![planes.len() as u32];
        for plane in planes {
            head.push((64 + segments.len()) as u32);
            segments.push(plane.len() as u8 - 1);
            segments.extend_from_slice(plane);
            segments.resize(segments.len().next_multiple_of(2), 0x80);
        }
        head.resize(16, 0);
        head.iter().flat_map(|word| word.to_le_bytes()).chain(segments).collect()
    }

    /// What an object becomes when it is decoded: all its elements.
    fn decoded(made: &Made, encoding: Encoding) -> DataSet {
        let mut native = Native::open(Cursor::new(made.file()), encoding).unwrap().unwrap();
        let mut bytes = Vec::new();
        native.read_to_end(&mut bytes).unwrap();
        let options = ReadOptions { value_bytes_max: u32::MAX - 1, ..ReadOptions::default() };
        let (set, end) = dicom_scp::dataset::read(&bytes, encoding, &options).unwrap();
        assert_eq!(end, ReadEnd::Complete);
        // Read in pieces it is the same.
        let mut again = Native::open(Cursor::new(made.file()), encoding).unwrap().unwrap();
        let mut pieces = vec![0; bytes.len()];
        pieces.chunks_mut(7).for_each(|piece| again.read_exact(piece).unwrap());
        assert!(pieces == bytes && again.read(&mut [0]).unwrap() == 0);
        set
    }

    const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
    const TRAILING_PADDING: Tag = Tag(0xFFFC, 0xFFFC);
    const LONG: Tag = Tag(0x0029, 0x1010);

    #[test]
    fn a_decoded_object_is_the_same_but_for_its_pixel_data() {
        let (one, two, three) = ([1, 2, 3], [4, 5, 6], [7, 8, 250]);
        let made = Made::new(1, 3, 8, "MONOCHROME2").frames(3).text(0x10, 0x10, VR::PN, "A^B");
        let mut made = made.words(0x29, 0x1010, VR::UN, &[7; 600_000]);
        made.header.put(Tag(0x7FE0, 0x0001), Element::bytes(VR::OV, vec![0; 24]));
        let icon = item(|icon| icon.put(PIXEL_DATA, Element::bytes(VR::OB, vec![1, 2])));
        let made = made.items(0x88, 0x200, vec![icon]);
        let frames = [one, two, three].map(|frame| run_length_coded(&[&frame]));
        let mut coded = made.clone().encapsulated(RLE, &[], &frames.each_ref().map(Vec::as_slice));
        coded.pixels.extend(b"\xFC\xFF\xFC\xFFOB\0\0\x02\0\0\0\0\0");
        for encoding in [Encoding::ExplicitLe, Encoding::ImplicitLe] {
            let set = decoded(&coded, encoding);
            // Three frames of three bytes, and one to be even.
            assert_eq!(set.bytes(PIXEL_DATA), Some(&[1, 2, 3, 4, 5, 6, 7, 8, 250, 0][..]));
            assert_eq!(set.bytes(LONG).map(<[u8]>::len), Some(1_200_000), "nothing is too long to be kept");
            assert_eq!(set.bytes(TRAILING_PADDING), Some(&[0, 0][..]));
            assert!(!set.contains(Tag(0x7FE0, 0x0001)), "there are no fragments any more");
            assert!(set.contains(Tag(0x0088, 0x0200)));
            assert_eq!(set.len(), made.header.len() + 1);
        }
        assert_eq!(decoded(&coded, Encoding::ExplicitLe).get(PIXEL_DATA).unwrap().vr, VR::OB);
    }

    #[test]
    fn a_decoded_object_says_what_its_colour_is_and_that_something_was_lost() {
        let planes = [[76_u8, 76], [85, 85], [255, 255]];
        let frame = run_length_coded(&planes.each_ref().map(|plane| &plane[..]));
        let made = Made::new(1, 2, 8, "YBR_FULL_422").u16(0x28, 2, 3).u16(0x28, 6, 1).encapsulated(RLE, &[], &[&frame]);
        let set = decoded(&made, Encoding::ExplicitLe);
        assert_eq!(set.text(Tag(0x0028, 0x0004)).unwrap(), "YBR_FULL", "nothing is subsampled any more");
        assert_eq!(set.bytes(PIXEL_DATA), Some(&[76, 76, 85, 85, 255, 255][..]), "its planes stay apart");
        assert!(!set.contains(Tag(0x0028, 0x2110)));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/fixtures");
        let mut files = Vec::new();
        files_below(&path, &mut files);
        let jpeg = files
            .iter()
            .find(|file| file.to_string_lossy().ends_with(".dcm") && file.to_string_lossy().contains("/jpeg8"));
        let mut native = Native::open(File::open(jpeg.unwrap()).unwrap(), Encoding::ExplicitLe).unwrap().unwrap();
        let mut bytes = Vec::new();
        native.read_to_end(&mut bytes).unwrap();
        let (set, _) = dicom_scp::dataset::read(&bytes, Encoding::ExplicitLe, &ReadOptions::default()).unwrap();
        assert_eq!(set.text(Tag(0x0028, 0x2110)).as_deref(), Some("01"));
    }

    #[test]
    fn a_fragmented_icon_goes_and_so_do_the_words_of_big_endian() {
        let mut coded = Made::new(1, 2, 8, "MONOCHROME2").encapsulated(RLE, &[], &[&run_length_coded(&[&[5, 6]])]);
        // (0088,0200) with one item whose pixel data is in fragments.
        let icon = b"\x88\0\0\x02SQ\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF\xE0\x7F\x10\0OB\0\0\xFF\xFF\xFF\xFF\
            \xFE\xFF\0\xE0\0\0\0\0\xFE\xFF\0\xE0\x02\0\0\0\x01\x02\xFE\xFF\xDD\xE0\0\0\0\0\xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";
        coded.pixels = [icon.as_slice(), &coded.pixels].concat();
        let set = decoded(&coded, Encoding::ExplicitLe);
        assert!(!set.contains(Tag(0x0088, 0x0200)) && set.bytes(PIXEL_DATA) == Some(&[5, 6][..]));
        let mut big = Made::new(1, 2, 16, "MONOCHROME2");
        (big.syntax, big.encoding) = (BIG_ENDIAN, Encoding::ExplicitBe);
        big.pixels = b"\x7F\xE0\x00\x10OW\0\0\0\0\0\x04\x00\x01\x02\x00".to_vec();
        let set = decoded(&big, Encoding::ImplicitLe);
        assert_eq!((set.int(Tag(0x0028, 0x0010)), set.bytes(PIXEL_DATA)), (Some(1), Some(&[1, 0, 0, 2][..])));
    }

    #[test]
    fn what_cannot_be_decoded_is_said_before_anything_is_given() {
        let open = |made: &Made| Native::open(Cursor::new(made.file()), Encoding::ExplicitLe);
        let frame = run_length_coded(&[&[0; 100]]);
        let long = Made::new(10, 10, 8, "MONOCHROME2").text(0x28, 8, VR::IS, "42949673");
        assert!(matches!(open(&long.encapsulated(RLE, &[], &[&frame])), Ok(Err(Reason::Unsupported(_)))), "4 GiB");
        let bits = Made::new(10, 10, 1, "MONOCHROME2").encapsulated(RLE, &[], &[&frame]);
        assert!(matches!(open(&bits), Ok(Err(Reason::Unsupported(_)))));
        let garbage = Made::new(10, 10, 8, "MONOCHROME2").encapsulated(RLE, &[], &[&[1; 70]]);
        assert!(open(&garbage).is_err());
        // Nobody fills the memory with what stands before the pixel data.
        let mut wide = Made::new(10, 10, 8, "MONOCHROME2");
        (0x1010..0x1020).for_each(|element| {
            wide.header.put(Tag(0x0029, element), Element::bytes(VR::UN, vec![7; 1 << 20]));
        });
        let wide = wide.encapsulated(RLE, &[], &[&frame]);
        assert!(matches!(open(&wide), Err(PreviewError::Object(ObjectError::LongHeader { .. }))));
        // One that is damaged behind the first is found when it is its turn.
        let two = Made::new(10, 10, 8, "MONOCHROME2").frames(2).encapsulated(RLE, &[], &[&frame, &[1; 70]]);
        assert!(open(&two).unwrap().unwrap().read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn pixels_that_are_not_square_are_stretched_and_large_frames_shrink() {
        let tall = Made::new(2, 4, 8, "MONOCHROME2").text(0x28, 0x34, VR::IS, "2\\1").native(&[0, 0, 9, 9, 5, 5, 7, 7]);
        let rendered = tall.rendered(FrameChoice::Middle);
        assert_eq!((rendered.width, rendered.height), (4, 4));
        assert_eq!(rendered.samples(), [0, 0, 9, 9, 0, 0, 9, 9, 5, 5, 7, 7, 5, 5, 7, 7]);
        let made = Made::new(2, 4, 8, "MONOCHROME2").native(&[0, 10, 20, 30, 40, 50, 60, 70]);
        let Outcome::Picture(small) = render(&mut Cursor::new(made.file()), FrameChoice::Middle, 2).unwrap() else {
            panic!("not rendered")
        };
        assert_eq!((small.width, small.height, small.samples()), (2, 1, [25, 45].as_slice()));
    }

    #[test]
    fn objects_without_pixels_or_codec_say_so() {
        let report = Made { pixels: Vec::new(), ..Made::new(1, 1, 8, "MONOCHROME2") };
        let outcome = |made: &Made| render(&mut Cursor::new(made.file()), FrameChoice::Middle, 512).unwrap();
        assert_eq!(outcome(&report), Outcome::Nothing(Reason::NoPixels));
        let video = Made::new(1, 1, 8, "YBR_PARTIAL_420").u16(0x28, 2, 3);
        let video = video.encapsulated("1.2.840.10008.1.2.4.102", &[], &[&[0, 0]]);
        assert!(matches!(outcome(&video), Outcome::Nothing(Reason::Codec(_))));
        let cmyk = Made::new(1, 1, 8, "CMYK").u16(0x28, 2, 4).native(&[0; 4]);
        assert!(matches!(outcome(&cmyk), Outcome::Nothing(Reason::Unsupported(_))));
    }

    #[test]
    fn impossible_descriptions_are_errors() {
        let failure = |made: &Made| render(&mut Cursor::new(made.file()), FrameChoice::Middle, 512).unwrap_err();
        let made = Made::new(2, 2, 8, "MONOCHROME2").native(&[1, 2, 3, 4]);
        assert!(matches!(failure(&made.clone().u16(0x28, 0x10, 0)), PreviewError::Description(_)));
        let huge = made.clone().u16(0x28, 0x10, 0xFFFF).u16(0x28, 0x11, 0xFFFF);
        assert!(matches!(failure(&huge), PreviewError::TooLarge));
        let wide = made.clone().u16(0x28, 2, 4).u16(0x28, 0x100, 32).u16(0x28, 0x10, 8000).u16(0x28, 0x11, 8000);
        assert!(
            render(&mut Cursor::new(wide.file()), FrameChoice::Middle, 512)
                .is_ok_and(|o| matches!(o, Outcome::Nothing(_)))
        );
        let frame = render(&mut Cursor::new(made.file()), FrameChoice::Index(1), 512);
        assert!(matches!(frame, Err(PreviewError::Frame { frames: 1, frame: 1 })));
        let behind = made.frames(1000);
        assert!(matches!(failure(&behind), PreviewError::Object(_)));
    }

    #[test]
    fn what_a_truncated_file_lacks_is_black() {
        let made = Made::new(2, 2, 8, "MONOCHROME2").native(&[1, 2, 3, 4]);
        let mut file = made.file();
        file.truncate(file.len() - 2);
        let Outcome::Picture(rendered) = render(&mut Cursor::new(file), FrameChoice::Middle, 512).unwrap() else {
            panic!("not rendered")
        };
        assert_eq!(rendered.samples(), [1, 2, 0, 0]);
    }

    /// A multi-frame object of half a gigabyte that exists only as a rule, counting what is read of it.
    struct Endless {
        head: Vec<u8>,
        length: u64,
        at: u64,
        read: u64,
    }

    impl Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let count = out.len().min((self.length - self.at) as usize).min(64 * 1024);
            for byte in &mut out[..count] {
                *byte = self.head.get(self.at as usize).copied().unwrap_or((self.at / 524_288) as u8);
                self.at += 1;
            }
            self.read += count as u64;
            Ok(count)
        }
    }

    impl Seek for Endless {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.at = match to {
                SeekFrom::Start(at) => at,
                SeekFrom::End(by) => self.length.saturating_add_signed(by),
                SeekFrom::Current(by) => self.at.saturating_add_signed(by),
            };
            Ok(self.at)
        }
    }

    #[test]
    fn one_frame_of_half_a_gigabyte_costs_one_frame() {
        let mut made = Made::new(512, 1024, 8, "MONOCHROME2").frames(1000);
        made.pixels = b"\xE0\x7F\x10\x00OW\0\0\0\0\x40\x1F".to_vec();
        let head = made.file();
        let length = head.len() as u64 + 524_288_000;
        let mut source = Endless { head, length, at: 0, read: 0 };
        let Outcome::Picture(rendered) = render(&mut source, FrameChoice::Middle, 512).unwrap() else {
            panic!("not rendered")
        };
        assert_eq!((rendered.width, rendered.height), (512, 256));
        assert!(source.read < 2_000_000, "{} bytes were read", source.read);
    }

    fn fixture_files() -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/fixtures"), &mut files);
        // Only formats that are decoded here: what other decoders do with damage is theirs, and guarded.
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("jls") || name.starts_with("jpeg12") || name.contains("native")
        };
        files.into_iter().filter(ours).map(|path| fs::read(path).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn damaged_objects_never_panic(
            which: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let files = fixture_files();
            let mut file = files[which.index(files.len())].clone();
            for (at, value) in changes {
                let at = 132 + at.index(file.len() - 132);
                file[at] = value;
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len()));
            }
            let outcome = render(&mut Cursor::new(file), FrameChoice::Middle, 64);
            prop_assert!(!matches!(outcome, Err(PreviewError::Panicked)));
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_picture_fits_the_limit(width in 1_u32..700, height in 1_u32..700, seed: u8, colour: bool, limit in 2000_usize..40_000) {
            let channels = if colour { 3 } else { 1 };
            let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed;
            let samples = (0..width * height * channels).map(noise).collect();
            let pixels = if colour { Pixels::Rgb(samples) } else { Pixels::Gray(samples) };
            let preview = encode(&Rendered { width, height, pixels }, limit).unwrap();
            prop_assert!(preview.bytes.len() <= limit);
            let back = image::load_from_memory(&preview.bytes).unwrap();
            prop_assert_eq!((back.width(), back.height()), (preview.width, preview.height));
        }
    }

    #[test]
    fn a_contact_sheet_places_thumbnails_in_order_and_turns_to_colour_when_needed() {
        let grey = |shade| Rendered { width: 4, height: 2, pixels: Pixels::Gray(vec![shade; 8]) };
        let mut sheet = ContactSheet::new(3, 4);
        assert!(sheet.add(&grey(10)));
        assert!(sheet.add(&Rendered { width: 1, height: 1, pixels: Pixels::Rgb(vec![1, 2, 3]) }));
        assert!(sheet.add(&grey(30)));
        assert!(sheet.add(&grey(40)));
        assert!(!sheet.add(&grey(50)), "two by two is full");
        let sheet = sheet.finish().unwrap();
        assert_eq!((sheet.width, sheet.height), (8, 8));
        let at = |x: usize, y: usize| &sheet.samples()[(y * 8 + x) * 3..][..3];
        assert_eq!((at(0, 0), at(0, 1), at(3, 2), at(0, 3)), (&[0; 3][..], &[10; 3][..], &[10; 3][..], &[0; 3][..]));
        assert_eq!((at(5, 1), at(0, 5), at(7, 6)), (&[1, 2, 3][..], &[30; 3][..], &[40; 3][..]));
        assert_eq!(ContactSheet::new(4, 8).finish(), None);
    }

    #[test]
    fn representatives_are_spread_evenly() {
        assert_eq!((representative(0), representative(1), representative(100)), (None, Some(0), Some(50)));
        assert_eq!(evenly_spaced(100, 4), [12, 37, 62, 87]);
        assert_eq!(evenly_spaced(3, 10), [0, 1, 2]);
        assert_eq!(evenly_spaced(0, 10), [0_usize; 0]);
    }
}

/// Previews of other sites are decoded here too: nobody makes them as large as to fill the memory of those who look.
#[test]
fn a_picture_too_large_for_a_preview_is_not_decoded() {
    for (width, sound) in [(2048, true), (2049, false)] {
        let rendered = Rendered { width, height: 1, pixels: Pixels::Gray(vec![7; width as usize]) };
        let preview = encode(&rendered, 1 << 20).unwrap();
        assert_eq!(
            decode(preview.media_type, &preview.bytes).is_ok_and(|picture| picture == rendered),
            sound,
            "{width}"
        );
    }
    assert!(decode("image/gif", b"GIF89a").is_err());
    assert!(decode("image/png", b"not a picture").is_err());
}
