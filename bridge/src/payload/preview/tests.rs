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
        assert!(expected.samples() == found.samples(), "{} differs", coded.display());
        pairs += 1;
    }
    pairs
}

#[test]
fn every_lossless_codec_gives_the_pixels_that_went_in() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/preview/fixtures");
    assert!(compare_pairs(&fixtures) >= 20);
    if let Some(more) = std::env::var_os("PACS_BRIDGE_CODEC_PAIRS") {
        println!("{} more pairs agree", compare_pairs(Path::new(&more)));
    }
}
