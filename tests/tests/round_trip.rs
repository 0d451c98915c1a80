//! A study in over C-STORE, onto the ledger, evicted, and out again, with other people's software at both ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;

use bridge::demo::phantom::{chest_xray, mr_series, ultrasound};
use tests::dicom::{data_set, slices, subject, write_files};
use tests::peers::{StoreScp, dcmtk, free_port, python, run};
use tests::{Bridge, files_below, have};

const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n";

/// Data sets of the DICOM files below a directory, by SOP Instance UID.
fn data_sets(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = files_below(dir);
    files.iter().map(|path| (bridge::site::describe_file(path).unwrap().0.to_string(), data_set(path))).collect()
}

fn evict_all(bridge: &Bridge, rows: &serde_json::Value) {
    for row in rows.as_array().unwrap() {
        let evicted = bridge.json(&["evict", row["uid"].as_str().unwrap()]);
        assert_eq!(evicted["files"], row["instances"], "{row}");
    }
    let left = files_below(&bridge.dir.path().join("data/archive/objects"));
    assert!(left.is_empty(), "eviction left {left:?}");
}

#[test]
fn dcmtk_gets_from_the_ledger_what_dcmtk_stored() {
    if !["storescu", "findscu", "getscu", "movescu", "echoscu", "dcmdump"].iter().all(|tool| have(tool)) {
        return;
    }
    let Some(scp) = StoreScp::start("KEEPER") else { return };
    let peer = format!("[[peer]]\nae_title = \"KEEPER\"\nhost = \"127.0.0.1\"\nport = {}\n", scp.address.port());
    let bridge = Bridge::start(&format!("{OPEN}{peer}[publish]\nsettle_ms = 200\n"));
    let (host, port) = (bridge.dicom.ip().to_string(), bridge.dicom.port().to_string());
    run(dcmtk("echoscu").args(["-aec", "PACSBRIDGE", &host, &port]));

    let sent_dir = tempfile::tempdir().unwrap();
    write_files(&sent_dir.path().join("ct"), &slices(1, 12, 128));
    write_files(&sent_dir.path().join("mr"), &mr_series(&subject(2), 5, 64, 2));
    write_files(&sent_dir.path().join("us"), &[ultrasound(&subject(3), 4, 160, 120, 3)]);
    write_files(&sent_dir.path().join("dx"), &[chest_xray(&subject(4), 256, 4)]);
    let sent = data_sets(sent_dir.path());
    assert_eq!(sent.len(), 19);
    run(dcmtk("storescu").args(["-aec", "PACSBRIDGE", "+sd", "+r", &host, &port]).arg(sent_dir.path()));

    bridge.wait_filed(sent.len() as u64);
    let kept = files_below(&bridge.dir.path().join("data/archive/objects"));
    assert_eq!(kept.len(), sent.len());
    run(dcmtk("dcmdump").args(["-q"]).arg(&kept[0]));

    let rows = bridge.wait_final(4);
    evict_all(&bridge, &rows);

    let found = run(dcmtk("findscu").args(["-S", "-aec", "PACSBRIDGE", &host, &port]).args([
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        "PatientName=zyxwquist*",
        "-k",
        "StudyInstanceUID",
        "-k",
        "NumberOfStudyRelatedInstances",
    ]));
    let words = String::from_utf8_lossy(&found.stderr).into_owned() + &String::from_utf8_lossy(&found.stdout);
    for study in 1..=4 {
        assert!(words.contains(&format!("9.7777.{study}")), "study {study} is not found in:\n{words}");
    }

    // C-GET.
    let got_dir = tempfile::tempdir().unwrap();
    for study in 1..=4 {
        run(dcmtk("getscu").args(["-S", "+B", "-aec", "PACSBRIDGE", "-od"]).arg(got_dir.path()).args([
            &host,
            &port,
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            &format!("StudyInstanceUID={}", subject(study).study_uid),
        ]));
    }
    assert!(data_sets(got_dir.path()) == sent, "C-GET brought other bytes");

    // C-MOVE, once more from the ledger.
    evict_all(&bridge, &rows);
    for study in 1..=4 {
        run(dcmtk("movescu").args(["-S", "-aec", "PACSBRIDGE", "-aem", "KEEPER", &host, &port]).args([
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            &format!("StudyInstanceUID={}", subject(study).study_uid),
        ]));
    }
    assert!(data_sets(scp.dir.path()) == sent, "C-MOVE brought other bytes");

    for row in rows.as_array().unwrap() {
        let verdicts = bridge.json(&["verify", row["uid"].as_str().unwrap()]);
        assert!(verdicts.as_array().unwrap().iter().all(|verdict| verdict["proven"] == true), "{verdicts}");
    }
}

/// What comes after a study was published makes its next version, which carries only what is new; and a file that somebody
/// removed by hand is fetched again.
#[test]
fn late_objects_make_the_next_version_and_lost_files_are_fetched_again() {
    // Longer than a busy machine pauses between two objects: what comes in between would be a version of its own.
    let bridge = Bridge::start(&format!("{OPEN}[publish]\nsettle_ms = 2000\n"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let phantoms = slices(1, 9, 64);
    let send = |range: std::ops::Range<usize>| {
        runtime.block_on(async {
            let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
            for phantom in &phantoms[range] {
                assert_eq!(tests::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
            }
        });
    };
    let uid = subject(1).study_uid;
    send(0..6);
    bridge.wait_final(1);
    let first = bridge.json(&["study", "show", &uid]);
    assert_eq!(first["study"]["version"], 1);
    send(6..9);
    tests::wait_for("the second version", || bridge.json(&["study", "show", &uid])["study"]["version"] == 2);
    bridge.wait_final(1);
    let second = bridge.json(&["study", "show", &uid]);
    let objects = |report: &serde_json::Value| {
        report["images"].as_array().unwrap().iter().filter(|image| image["kind"] == "object").count()
    };
    assert_eq!((objects(&first), objects(&second)), (6, 3), "the second version sends only what is new");
    assert_eq!(first["study_id"], second["study_id"]);

    bridge.wait_filed(9);
    let files = files_below(&bridge.dir.path().join("data/archive/objects"));
    std::fs::remove_file(&files[4]).unwrap();
    let sent: BTreeMap<String, Vec<u8>> =
        phantoms.iter().map(|phantom| (phantom.sop_instance.to_string(), phantom.bytes.clone())).collect();
    if !have("getscu") {
        return;
    }
    let got = tempfile::tempdir().unwrap();
    let (host, port) = (bridge.dicom.ip().to_string(), bridge.dicom.port().to_string());
    run(dcmtk("getscu").args(["-S", "+B", "-aec", "PACSBRIDGE", "-od"]).arg(got.path()).args([
        &host,
        &port,
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        &format!("StudyInstanceUID={uid}"),
    ]));
    assert!(data_sets(got.path()) == sent);
}

/// Every test file of pydicom, and the samples when they are there: what is legal comes back bit for bit, by C-GET and by
/// C-MOVE, after it was evicted; what is not is refused.
#[test]
fn every_sample_file_comes_back_bit_for_bit() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("py/objects.py");
    let call = |args: &[&str]| -> serde_json::Value {
        let output = run(std::process::Command::new(&python).arg(&script).args(args));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let pydicom = run(std::process::Command::new(&python)
        .args(["-c", "import pydicom, os; print(os.path.join(os.path.dirname(pydicom.__file__), 'data'))"]));
    let mut directories = vec![String::from_utf8(pydicom.stdout).unwrap().trim().to_owned()];
    directories.extend(std::env::var("PACS_BRIDGE_SAMPLES").ok());
    let directories: Vec<&str> = directories.iter().map(String::as_str).collect();
    let plan = call(&[&["plan"], &directories[..]].concat());

    let port = free_port();
    let peer = format!("[[peer]]\nae_title = \"PYSCP\"\nhost = \"127.0.0.1\"\nport = {port}\n");
    let policy = "[archive]\nduplicates = \"replace\"\n";
    let bridge = Bridge::start(&format!("{OPEN}{peer}{policy}[publish]\nsettle_ms = 300\n"));
    let (host, bridge_port, port) = (bridge.dicom.ip().to_string(), bridge.dicom.port().to_string(), port.to_string());
    let list = bridge.dir.path().join("list.json");

    // What has no place in the patient, study, series hierarchy is refused, and says why.
    let homeless: Vec<_> = plan["illegal"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["illegal"].as_str().is_some_and(|why| why.contains("StudyInstanceUID")))
        .collect();
    assert!(homeless.len() >= 8, "pydicom brings palettes without a study");
    std::fs::write(&list, serde_json::to_string(&homeless).unwrap()).unwrap();
    let refused = call(&["store", &host, &bridge_port, "PACSBRIDGE", list.to_str().unwrap()]);
    for (path, status) in refused.as_object().unwrap() {
        assert_eq!(status, 0xC000, "{path} was answered {status}");
    }
    assert_eq!(bridge.json(&["status"])["instances"], 0);

    let mut compared = 0;
    for entries in plan["rounds"].as_array().unwrap() {
        std::fs::write(&list, entries.to_string()).unwrap();
        let at = [&host, &bridge_port, "PACSBRIDGE", list.to_str().unwrap()].map(|s: &str| s);
        let stored = call(&[&["store"], &at[..]].concat());
        for (path, status) in stored.as_object().unwrap() {
            assert_eq!(status, 0, "{path} was answered {status}");
        }
        let studies: std::collections::BTreeSet<&str> =
            entries.as_array().unwrap().iter().map(|entry| entry["study"].as_str().unwrap()).collect();
        let rows = bridge.json(&["studies"]);
        let rows = bridge.wait_final(rows.as_array().unwrap().len());
        for row in rows.as_array().unwrap() {
            if studies.contains(row["uid"].as_str().unwrap()) {
                bridge.json(&["evict", row["uid"].as_str().unwrap()]);
            }
        }
        for results in [call(&[&["get"], &at[..]].concat()), call(&[&["move"], &at[..], &["PYSCP", &port]].concat())] {
            for (path, result) in results.as_object().unwrap() {
                assert_eq!(result, "same", "{path}");
                compared += 1;
            }
        }
    }
    let legal: usize = plan["rounds"].as_array().unwrap().iter().map(|entries| entries.as_array().unwrap().len()).sum();
    assert_eq!(compared, 2 * legal);
    assert!(legal >= 90, "pydicom brings more legal files than {legal}");
}
