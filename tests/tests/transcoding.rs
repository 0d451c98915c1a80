//! What receivers get that have no codec: every object whose pixels are decoded here, as they were coded, and everything else as it is stored.
//! Judged by pynetdicom, pydicom's decoders, dciodvfy and DCMTK.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::peers::{StoreScp, dcmtk, dicom_files, python, run};
use tests::{Bridge, files_below, have, here};

/// Anybody may store, find and get, and nothing goes onto the ledger meanwhile.
const OPEN: &str =
    "[publish]\nsettle_ms = 3600000\n[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\", \"move\"]\n";

#[test]
fn a_receiver_of_implicit_little_endian_gets_every_object_that_can_be_decoded() {
    let Some(python) = python() else { return };
    if !have("dciodvfy") {
        return;
    }
    let bridge = Bridge::start(OPEN);
    let judge = Command::new(&python)
        .arg(here("py/implicit_only.py"))
        .args([bridge.dicom.port().to_string(), "PACSBRIDGE".to_owned()])
        .args(dicom_files(&python))
        .output()
        .unwrap();
    assert!(judge.status.success(), "{}", String::from_utf8_lossy(&judge.stderr));
    let report: Value = serde_json::from_slice(&judge.stdout).unwrap();
    assert_eq!(report["wrong"], json!([]), "{report}");
    for (what, least) in [("came", 60), ("decoded", 40), ("decoded like pydicom", 30), ("verified", 40)] {
        assert!(report[what].as_u64().unwrap() >= least, "{what}: {report}");
    }
}

/// A test file of the pydicom package.
fn of_pydicom(python: &Path, name: &str) -> PathBuf {
    let packages = python.parent().unwrap().parent().unwrap().join("lib");
    let is_it = |file: &PathBuf| file.ends_with(Path::new("pydicom/data/test_files").join(name));
    files_below(&packages).into_iter().find(is_it).unwrap()
}

/// A copy under UIDs of its own whose one frame cannot be decoded. It is stored and kept all the same.
fn damage(file: &Path, copy: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let items: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..at + 4] == [0xFE, 0xFF, 0x00, 0xE0]).collect();
    // Behind the table of offsets; the number of segments comes first.
    let frame = items.last().unwrap() + 8;
    bytes[frame..frame + 4].copy_from_slice(&[0xFF; 4]);
    std::fs::write(copy, bytes).unwrap();
    run(dcmtk("dcmodify").args(["-nb", "-gst", "-gse", "-gin"]).arg(copy));
}

#[test]
fn a_move_to_a_destination_without_codecs_brings_what_can_be_decoded_and_counts_the_rest() {
    let Some(python) = python() else { return };
    if !have("storescu") {
        return;
    }
    let plain = StoreScp::start_with("PLAIN", &["+xi"]).unwrap();
    let peer = format!("[[peer]]\nae_title = \"PLAIN\"\nhost = \"127.0.0.1\"\nport = {}\n", plain.address.port());
    let bridge = Bridge::start(&format!("{OPEN}{peer}"));
    let port = bridge.dicom.port().to_string();
    let damaged = plain.dir.path().with_extension("damaged");
    damage(&of_pydicom(&python, "MR_small_RLE.dcm"), &damaged);
    let sent = [
        ("-xr", of_pydicom(&python, "MR_small_RLE.dcm"), true),
        ("-xr", damaged.clone(), false),
        ("-xs", of_pydicom(&python, "SC_rgb_jpeg_gdcm.dcm"), true),
        ("-xw", of_pydicom(&python, "JPEG2000.dcm"), true),
    ];
    let mut arrived = 0;
    for (syntax, file, is_decodable) in sent {
        let name = file.display();
        run(dcmtk("storescu").args([syntax, "-aec", "PACSBRIDGE", "127.0.0.1", &port]).arg(&file));
        let dumped = run(dcmtk("dcmdump").args(["+P", "0020,000d", "-s"]).arg(&file));
        let dumped = String::from_utf8_lossy(&dumped.stdout).into_owned();
        let study = dumped.split(['[', ']']).nth(1).unwrap().to_owned();
        let key = format!("StudyInstanceUID={study}");
        let level = "QueryRetrieveLevel=STUDY";
        let moved = dcmtk("movescu")
            .args([
                "-v",
                "-S",
                "-aet",
                "PLAIN",
                "-aec",
                "PACSBRIDGE",
                "-aem",
                "PLAIN",
                "127.0.0.1",
                &port,
                "-k",
                level,
                "-k",
                &key,
            ])
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&moved.stdout), String::from_utf8_lossy(&moved.stderr));
        arrived += usize::from(is_decodable);
        let files = files_below(plain.dir.path());
        assert_eq!(files.len(), arrived, "{name}: {said}");
        assert_eq!(said.contains("(Success)"), is_decodable, "{name}: {said}");
    }
    for file in files_below(plain.dir.path()) {
        let dumped = run(dcmtk("dcmdump").args(["+P", "0002,0010"]).arg(&file));
        assert!(String::from_utf8_lossy(&dumped.stdout).contains("LittleEndianImplicit"), "{}", file.display());
    }
    std::fs::remove_file(damaged).unwrap();
}
