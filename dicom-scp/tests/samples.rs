//! Files of real devices, where there are some: set `PACS_BRIDGE_SAMPLES` to a directory with DICOM files.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use dicom_scp::{
    Encoding, Tag, TransferSyntax,
    dataset::{ReadEnd, ReadOptions, Scanned, Scanner, read},
};
use std::path::{Path, PathBuf};

const SOP_INSTANCE: Tag = Tag(0x0008, 0x0018);
const PIXEL_DATA: Tag = Tag(0x7fe0, 0x0010);

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The transfer syntax and data set bytes of a Part 10 file.
fn part10(file: &[u8]) -> Option<(TransferSyntax, &[u8])> {
    let body = file.get(132..).filter(|_| file.get(128..132) == Some(b"DICM"))?;
    // (0002,0000) UL 4: how long the rest of group 0002 is (PS3.10 7.1).
    let length: [u8; 4] = body.strip_prefix(b"\x02\0\0\0UL\x04\0")?.first_chunk().copied()?;
    let (meta, data_set) = body.split_at_checked(12 + u32::from_le_bytes(length) as usize)?;
    let (meta, _) = read(meta, Encoding::ExplicitLe, &ReadOptions::default()).ok()?;
    Some((TransferSyntax::of(&meta.uid(Tag(0x0002, 0x0010))?)?, data_set))
}

#[test]
fn heads_are_read_whole_and_in_pieces() {
    let Ok(directory) = std::env::var("PACS_BRIDGE_SAMPLES") else {
        eprintln!("SKIPPED: PACS_BRIDGE_SAMPLES is not set");
        return;
    };
    let (mut heads, mut images) = (0, 0);
    for path in files_below(Path::new(&directory)) {
        let file = std::fs::read(&path).unwrap();
        let Some((syntax, bytes)) = part10(&file) else { continue };
        let options = ReadOptions { stop_at: Some(PIXEL_DATA), ..ReadOptions::default() };
        let mut scanner = Scanner::new(syntax, options, 64 << 20);
        for chunk in bytes.chunks(16_378) {
            scanner.push(chunk).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        }
        let (head, end) = scanner.finish();
        assert!(!head.is_empty(), "{}", path.display());
        heads += 1;
        images += usize::from(matches!(end, Scanned::Stopped { .. }));
        if !syntax.is_deflated() {
            let whole = read(bytes, syntax.encoding(), &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(whole.0, head, "{}", path.display());
            let everything =
                read(bytes, syntax.encoding(), &ReadOptions { elements_max: 1_000_000, ..Default::default() });
            let complete = matches!(everything, Ok((_, ReadEnd::Complete)));
            if !complete {
                eprintln!("{}: not read to its end: {:?}", path.display(), everything.map(|(_, end)| end));
            }
        }
        for encoding in [Encoding::ImplicitLe, Encoding::ExplicitLe, Encoding::ExplicitBe] {
            let again = read(&head.write(encoding), encoding, &options).unwrap().0;
            assert_eq!(again.text(SOP_INSTANCE), head.text(SOP_INSTANCE));
        }
        let mut utf8 = head.clone();
        utf8.transcode_to_utf8();
        assert_eq!(utf8.text(Tag(0x0010, 0x0010)), head.text(Tag(0x0010, 0x0010)), "{}", path.display());
    }
    eprintln!("{heads} heads, {images} with pixel data");
    assert!(heads > 0);
}
