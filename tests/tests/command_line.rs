//! The program as the ops person meets it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Stdio};

use tests::dicom::{connect, slices, store, subject, write_files};
use tests::{Bridge, binary};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_says_every_mistake_at_once_and_binds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, "[dicom]\nbind = \"nowhere\"\nae_titel = \"X\"\n[ledger]\nkind = \"rpc\"\n").unwrap();
    for command in ["check", "serve"] {
        let output = Command::new(binary()).arg("--config").arg(&path).arg(command).output().unwrap();
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}");
        for part in ["dicom.bind", "did you mean `ae_title`", "ledger.url"] {
            assert!(words.contains(part), "no word of {part} in:\n{words}");
        }
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(binary())
        .args(["--json", "check"])
        .current_dir(dir.path())
        .env("PACS_BRIDGE__DICOM__AE_TITLE", "0123")
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ae_title"], "0123");
}

#[test]
fn one_data_directory_has_one_bridge() {
    let bridge = Bridge::start("");
    let second = Command::new(binary()).arg("--config").arg(bridge.config()).arg("serve").output().unwrap();
    assert!(!second.status.success());
    assert!(text(&second.stderr).contains("another bridge runs"), "{}", text(&second.stderr));
}

#[test]
fn a_wrong_password_is_said_to_be_one() {
    let mut bridge = Bridge::start("");
    bridge.terminate();
    let output = Command::new(binary())
        .arg("--config")
        .arg(bridge.config())
        .arg("serve")
        .env("PACS_BRIDGE__KEYS__PASSWORD", "not this one")
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("password"), "{}", text(&output.stderr));
}

#[test]
fn a_study_goes_in_by_send_is_found_by_find_and_proven_by_verify() {
    let peer = "[[peer]]\nae_title = \"SELF\"\nhost = \"127.0.0.1\"\nport = 1\n";
    let bridge = Bridge::start(&format!(
        "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\"]\n{peer}[publish]\nsettle_ms = 60000\n"
    ));
    let me = format!("PACSBRIDGE@{}", bridge.dicom);
    assert_eq!(bridge.json(&["echo", &me])["status"], "0000H");
    let files = tempfile::tempdir().unwrap();
    let paths = write_files(files.path(), &slices(5, 4, 32));
    let sent = bridge.json(&["send", &me, files.path().to_str().unwrap()]);
    assert_eq!(sent["sent"], 4, "{sent}");
    let found = bridge.json(&["find", &me, "PatientID=MRN-7390-5"]);
    assert_eq!(found[0]["StudyInstanceUID"], subject(5).study_uid);
    assert_eq!(found[0]["NumberOfStudyRelatedInstances"], "4");

    // Its quiet time is not over, so its files are the only copy.
    let uid = subject(5).study_uid;
    let refused = bridge.cli(&["evict", &uid]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("not final"), "{}", text(&refused.stderr));
    let unproven = bridge.cli(&["verify", &uid]);
    assert_eq!(unproven.status.code(), Some(1), "{}", text(&unproven.stdout));
    drop(bridge);

    let bridge = Bridge::start("[publish]\nsettle_ms = 100\n");
    let me = format!("PACSBRIDGE@{}", bridge.dicom);
    bridge.json(&["send", &me, files.path().to_str().unwrap()]);
    bridge.wait_final(1);
    assert_eq!(bridge.json(&["verify", paths[0].to_str().unwrap()])[0]["proven"], true);
    let mut altered = std::fs::read(&paths[0]).unwrap();
    *altered.last_mut().unwrap() ^= 1;
    std::fs::write(&paths[0], altered).unwrap();
    let output = bridge.cli(&["--json", "verify", paths[0].to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("differs"));
    let shown = bridge.json(&["study", "show", &uid]);
    assert!(shown["study_id"].as_str().unwrap().starts_with("0x"), "{shown}");
}

#[test]
fn offline_commands_work_without_a_running_bridge() {
    let mut bridge = Bridge::start("[publish]\nsettle_ms = 100\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in slices(1, 2, 32) {
            assert_eq!(store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
    });
    bridge.wait_final(1);
    bridge.terminate();
    assert_eq!(bridge.json(&["studies"])[0]["state"], "final");
    assert_eq!(bridge.json(&["verify", &subject(1).study_uid])[0]["proven"], true);
    assert_eq!(bridge.json(&["keys", "show"])["source"], bridge.json(&["status"])["source"]);
}

#[test]
fn the_demonstration_ends_well() {
    let output = Command::new(binary()).args(["demo", "--exit", "--slices", "10"]).output().unwrap();
    let words = text(&output.stdout);
    assert!(output.status.success(), "{words}{}", text(&output.stderr));
    assert!(words.contains("36 of 36 objects came back byte for byte"), "{words}");
    let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap();
    assert!(last.contains("B's viewer finds nothing any more") && last.contains("(stopped)"), "{words}");
}

#[test]
fn measurements_are_a_program_beside_this_one() {
    let output = Command::new(binary()).args(["bench", "paper", "--help"]).output().unwrap();
    let words = text(&output.stdout);
    assert!(
        output.status.success() && words.contains("Reproduces the tables and figures"),
        "{words}{}",
        text(&output.stderr)
    );
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("pacs-bridge");
    std::fs::copy(binary(), &alone).unwrap();
    let output = Command::new(alone).args(["bench", "--only", "store"]).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("make bench"), "{}", text(&output.stderr));
}

#[test]
fn deriving_keys_does_not_weigh_on_the_daemon() {
    // Twice: keys are made by the first start and opened by the second. Passwords that the program makes itself are not stretched.
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "chosen by somebody").unwrap();
    let mut bridge = Bridge::start(&format!("[keys]\npassword_file = \"{}\"\n", password.display()));
    for _ in 0..2 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", bridge.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 200 * 1024, "scrypt's 256 MiB were in this process: {kib} KiB at its peak");
        assert!(!bridge.log().contains("no helper process"), "{}", bridge.log());
        bridge.terminate();
        bridge.run();
    }
    let help = text(&Command::new(binary()).arg("--help").output().unwrap().stdout);
    assert!(!help.contains("key-helper"), "{help}");
}
