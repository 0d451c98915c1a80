//! A viewer in a browser, as its authors build it, against the real binary that serves both the viewer and the studies: OHIF in Debian's Chromium.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tests::consortium::{Consortium, keyring};
use tests::http::address;
use tests::peers::{python, run};
use tests::{Bridge, browser_tools, files_below, have, here, skip, wait_for};

/// A browser that draws without a graphics card takes all that a small machine has.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Where a viewer of this version is, and Python; none when something is missing.
fn equipped(version: &str) -> Option<(PathBuf, PathBuf)> {
    let python = python().filter(|_| have("chromium") && have("node"))?;
    let viewer = browser_tools().join("browser").join(format!("ohif-{version}"));
    if viewer.join("index.html").is_file() {
        return Some((python, viewer));
    }
    skip("OHIF (.tools/browser)");
    None
}

fn served(viewer: &Path) -> String {
    let folder = viewer.display();
    format!("[http]\nbind = \"127.0.0.1:0\"\n[dicomweb]\nanonymous = \"operator\"\nohif_dir = \"{folder}\"\n")
}

/// Sends every kind of image as series of one study; returns what pydicom's decoders make of each.
fn send_every_kind(python: &Path, to: &Bridge) -> Value {
    let packages = python.parent().unwrap().parent().unwrap().join("lib");
    let mut files = files_below(&packages);
    files.retain(|file| {
        file.to_string_lossy().contains("pydicom/data/test_files") && file.extension().is_some_and(|e| e == "dcm")
    });
    let port = to.dicom.port().to_string();
    let sent = run(Command::new(python).arg(here("py/one_study.py")).args([port.as_str(), "PACSBRIDGE"]).args(files));
    serde_json::from_slice(&sent.stdout).unwrap()
}

/// The list and its filters, a study of every kind of image opened, its pictures drawn, and the values of each frame as pydicom's decoders have
/// them; no request failed, none went elsewhere, no error is on the console.
fn an_unmodified_viewer_shows(bridge: &Bridge, objects: &Value) {
    let expected = bridge.dir.path().join("expected.json");
    std::fs::write(&expected, objects.to_string()).unwrap();
    let base = format!("http://{}", address(bridge));
    let tools = browser_tools();
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

fn at_the_site_that_received_it(version: &str) {
    let Some((python, viewer)) = equipped(version) else { return };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let bridge = Bridge::start(&format!(
        "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 300\n{}",
        served(&viewer)
    ));
    let objects = send_every_kind(&python, &bridge);
    bridge.wait_final(1);
    an_unmodified_viewer_shows(&bridge, &objects);
}

#[test]
fn ohif_3_12() {
    at_the_site_that_received_it("3.12");
}

#[test]
fn ohif_3_13() {
    at_the_site_that_received_it("3.13");
}

/// A site that was let in has no pixel yet when somebody opens the study: the list, its metadata and thumbnails are there, and frames come from the ledger.
#[test]
fn ohif_at_a_site_whose_pixels_are_still_on_the_ledger_alone() {
    let Some((python, viewer)) = equipped("3.13") else { return };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let consortium = Consortium::found();
    let a = consortium.join(true);
    let b = consortium.join_with(&format!("[exchange]\nbind = \"127.0.0.1:0\"\n{}", served(&viewer)));
    let objects = send_every_kind(&python, &a);
    a.wait_final(1);
    let account = keyring(&b).source().address().to_string();
    a.wait_for_key_of(&account);
    a.json(&["allow", objects["study"].as_str().unwrap(), &account]);
    let whole = objects["objects"].as_array().unwrap().len();
    wait_for("the study at the site that was let in", || {
        b.json(&["studies"]).as_array().unwrap().first().is_some_and(|row| row["instances"] == whole)
    });
    assert_eq!(b.json(&["studies"])[0]["local"], 0, "no pixel is here before somebody asks");
    an_unmodified_viewer_shows(&b, &objects);
    assert_ne!(b.json(&["studies"])[0]["local"], 0);
}
