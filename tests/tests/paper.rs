//! `bench paper` on a network of geth, with a handful of small images and files: the tables and figures are there, every image comes back (or the command
//! fails), and the blocks hold as many transactions as the sizes say. Never how long anything took.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;

use tests::{have, our_tool};

/// Runs the command with an output in a folder of its own; returns what it wrote.
fn paper(dir: &Path, arguments: &[&str]) -> String {
    let out = dir.join("benchmarks.md");
    std::fs::write(&out, "# Benchmarks\n\n## Before\n\nkept\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = command.arg("paper").args(arguments).arg("--out").arg(&out).output().unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", words(&output.stdout), words(&output.stderr));
    let written = std::fs::read_to_string(out).unwrap();
    assert!(written.starts_with("# Benchmarks\n\n## Before\n\nkept\n\n## The papers\n"), "{written}");
    written
}

/// The rows of a table, cell by cell.
fn rows<'a>(document: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let (_, table) =
        document.split_once(&format!("### {title}")).unwrap_or_else(|| panic!("no table {title}: {document}"));
    let lines = table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &'a str| line.trim_matches('|').split(" | ").map(str::trim).collect();
    lines.skip(2).map(cells).collect()
}

#[test]
fn pieces_in_the_paper_s_way_and_in_ours() {
    if our_tool("geth").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Two images of one patient, of about 4 and 28 KB.
    let chosen = ["--method", "patient-preview", "--method", "image", "--mode", "calldata", "--only", "pieces"];
    let written = paper(dir.path(), &[&["--images", "2", "--scale", "0.05"], &chosen[..]].concat());

    let images = rows(&written, "The images");
    assert_eq!(images.iter().map(|row| row[0]).collect::<Vec<_>>(), ["Li and Kuo", "ours, whole", "ours, this run"]);
    assert_eq!(images[0][1..], ["920", "450", "10.0", "221", "584", "18497", "18396"]);
    assert_eq!(images[1][1..7], ["920", "450", "10.0", "221", "584", "18497"]);
    assert_eq!(images[2][1..3], ["2", "1"]);

    // The patient's 32 KB are two pieces of 30,000 bytes, or one of ours; previews are a transaction each, or one in ours; seals are another.
    let found = rows(&written, "Li and Kuo: transactions, gas and rate of each method");
    let counts: Vec<_> = found.iter().map(|row| [row[0], row[1], row[2], row[3], row[4], row[5], row[6]]).collect();
    let (patient, image) = ("patient level, with preview", "image level, without preview");
    let wanted = [
        ["paper-shaped", patient, "4", "4", "2", "2", "0"],
        ["paper-shaped", image, "2", "2", "2", "0", "0"],
        ["ours, calldata", patient, "3", "3", "1", "2", "1"],
        ["ours, calldata", image, "3", "3", "2", "0", "1"],
    ];
    assert_eq!(counts, wanted);
    // Both images in one transaction, and their seals in another.
    let at_once = rows(&written, "All images at once");
    assert_eq!(at_once.iter().map(|row| row[2..4].to_vec()).collect::<Vec<_>>(), [["2", "2"]]);
    let gas = |row: usize| found[row][7].parse::<u64>().unwrap();
    assert!(gas(0) > 10 * gas(2) && gas(1) > 5 * gas(3), "storage slots are dear: {found:?}");

    for (level, units) in [("patient", 1), ("image", 2)] {
        let times = rows(&written, &format!("Li and Kuo: {level} level, seconds per {level}"));
        assert_eq!(times.len(), 3 * 2, "three times in two ways: {times:?}");
        for row in times {
            let seconds = |cell: usize| row[cell].parse::<f64>().unwrap();
            // Of a fast machine the least may round to nothing.
            let ordered = seconds(5) <= seconds(6) && seconds(6) <= seconds(7);
            assert!(ordered && (row[4] == "-") == (units == 1), "{row:?}");
        }
    }
    let tests = rows(&written, "Li and Kuo: paired t-tests between methods");
    assert_eq!(tests.iter().map(|row| row[1]).collect::<Vec<_>>(), ["1", "2"], "one for each method: {tests:?}");
    assert_eq!(rows(&written, "Li and Kuo: size and time").len(), 2 * 2 * 3);
    for name in ["paper-store.svg", "paper-load.svg", "paper-first-viewable.svg"] {
        assert!(written.contains(&format!("](figures/{name})")), "{written}");
        let picture = std::fs::read_to_string(dir.path().join("figures").join(name)).unwrap();
        // For each way a patient and two images, and a mark in the legend of each.
        assert_eq!(picture.matches("<circle").count(), 2 * (1 + 2) + 2 * 2, "{picture}");
    }
}

#[test]
fn gas_of_pcim_s_functions() {
    if our_tool("geth").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = paper(dir.path(), &["--only", "gas"]);
    let found = rows(&written, "Jabarulla and Lee: gas of each function (Table 1)");
    assert_eq!(found.iter().map(|row| row[0]).collect::<Vec<_>>(), ["create", "request", "approve", "trace", "remove"]);
    for row in found {
        let (ours, theirs) = (row[1].parse::<u64>().unwrap(), row[2].parse::<u64>().unwrap());
        assert!((21_000..200_000).contains(&ours), "{row:?}");
        assert_eq!(row[3], format!("{:.2}x", ours as f64 / theirs as f64));
    }
}

#[test]
fn files_through_ipfs_and_in_a_plain_store() {
    if our_tool("geth").is_none() || our_tool("ipfs").is_none() || !have("Orthanc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = paper(dir.path(), &["--only", "ipfs", "--scale", "0.02"]);
    // A fiftieth of 1 to 105 MB and of 1 to 200 files, but never less than a frame and a file.
    let by_size = rows(&written, "Jabarulla and Lee: time by size");
    let shape = |rows: &[Vec<&str>]| rows.iter().map(|row| format!("{} {}", row[0], row[1])).collect::<Vec<_>>();
    assert_eq!(shape(&by_size), ["1 0.53", "1 0.53", "1 0.53", "1 0.53", "1 1.05", "1 2.10"]);
    let by_count = rows(&written, "Jabarulla and Lee: time by number of files");
    assert_eq!(shape(&by_count), ["1 0.53", "1 0.53", "1 0.53", "2 1.05", "4 2.10"]);
    assert!(by_size.iter().chain(&by_count).all(|row| !row.contains(&"-")), "each was stored and fetched: {written}");
    for (name, points) in [("paper-ipfs-size.svg", 6 * 3), ("paper-ipfs-count.svg", 5 * 3)] {
        assert!(written.contains(&format!("](figures/{name})")), "{written}");
        let picture = std::fs::read_to_string(dir.path().join("figures").join(name)).unwrap();
        assert_eq!(picture.matches("<circle").count(), 4 * (points + 1), "{picture}");
    }
}
