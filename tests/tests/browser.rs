//! A viewer in a browser, as its authors build it, against the real binary that serves both the viewer and the studies: OHIF in Debian's Chromium.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tests::http::address;
use tests::peers::{python, run};
use tests::{Bridge, browser_tools, files_below, have, here, skip};

/// A browser that draws without a graphics card takes all that a small machine has.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The list and its filters, a study of every kind of image opened, its pictures drawn, and the values of each frame as pydicom's decoders have
/// them; no request failed, none went elsewhere, no error is on the console.
fn an_unmodified_viewer_shows_a_study(version: &str) {
    let Some(python) = python().filter(|_| have("chromium") && have("node")) else { return };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let tools = browser_tools();
    let viewer = tools.join("browser").join(format!("ohif-{version}"));
    if !viewer.join("index.html").is_file() {
        skip("OHIF (.tools/browser)");
        return;
    }
    let bridge = Bridge::start(&format!(
        "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 300\n[http]\nbind = \"127.0.0.1:0\"\n\
         [dicomweb]\nanonymous = \"operator\"\nohif_dir = \"{}\"\n",
        viewer.display()
    ));
    let packages = python.parent().unwrap().parent().unwrap().join("lib");
    let mut files = files_below(&packages);
    files.retain(|file| {
        file.to_string_lossy().contains("pydicom/data/test_files") && file.extension().is_some_and(|e| e == "dcm")
    });
    let port = bridge.dicom.port().to_string();
    let sent = run(Command::new(&python).arg(here("py/one_study.py")).args([port.as_str(), "PACSBRIDGE"]).args(files));
    let expected = bridge.dir.path().join("expected.json");
    std::fs::write(&expected, &sent.stdout).unwrap();
    let objects: Value = serde_json::from_slice(&sent.stdout).unwrap();
    bridge.wait_final(1);

    let base = format!("http://{}", address(&bridge));
    let said = run(Command::new("node").arg(here("browser/ohif.mjs")).arg(&base).arg(&expected).env("TOOLS", &tools));
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(report["wrong"], json!([]), "{report}");
    assert_eq!((&report["drawn"], &report["filtered"]), (&json!(true), &json!(1)), "{report}");
    let comparable =
        objects["objects"].as_array().unwrap().iter().filter(|object| object["values"].is_string()).count();
    assert!(comparable >= 15 && report["frames"] == comparable, "{comparable} to compare: {report}");
    assert!(report["thumbnails"].as_u64().unwrap() >= 30, "{report}");
    for syntax in ["1.2", "1.2.1", "1.2.2", "1.2.4.70", "1.2.4.80", "1.2.4.90", "1.2.5"] {
        let uid = format!("1.2.840.10008.{syntax}");
        assert!(report["syntaxes"].as_array().unwrap().contains(&uid.as_str().into()), "{uid}: {report}");
    }
}

#[test]
fn ohif_3_12() {
    an_unmodified_viewer_shows_a_study("3.12");
}

#[test]
fn ohif_3_13() {
    an_unmodified_viewer_shows_a_study("3.13");
}
