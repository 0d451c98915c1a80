//! The site's keys as the ops person moves them: backup and restore, import and export, rotation, also when it is interrupted.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dicom_scp::Status;
use rand::Rng as _;
use tests::dicom::{connect, get_study, slices, store, subject};
use tests::{Bridge, binary, files_below};

const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"get\"]\n[publish]\nsettle_ms = 100\n";
/// The account of the words that every Ethereum tool uses for tests.
const TEST_WORDS: &str = "test test test test test test test test test test test junk";
const TEST_ACCOUNT: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

fn command(config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--config").arg(config).args(args).stdin(Stdio::null());
    command
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `pacs-bridge keys …` with the password of the other file in the environment.
fn keys(config: &Path, password: &str, args: &[&str]) -> Output {
    command(config, &[&["keys"], args].concat()).env("PACS_BRIDGE_FILE_PASSWORD", password).output().unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", words(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output, why: &str) {
    assert!(!output.status.success(), "{}", words(output));
    assert!(words(output).contains(why), "no word of {why:?} in: {}", words(output));
}

/// A site that exists only as a configuration.
fn site(dir: &Path) -> std::path::PathBuf {
    let config = dir.join("bridge.toml");
    std::fs::write(&config, format!("[site]\ndata_dir = {:?}\n", dir.join("data"))).unwrap();
    config
}

fn shown(config: &Path) -> serde_json::Value {
    let output = command(config, &["--json", "keys", "show"]).output().unwrap();
    serde_json::from_str(&done(&output)).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn secrets_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = site(dir.path());
    done(&command(&config, &["keys", "new"]).output().unwrap());
    let data = dir.path().join("data");
    let secrets = files_below(&data.join("keystore")).into_iter().chain([data.join("keys.sqlite")]);
    for path in secrets {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

fn send(bridge: &Bridge, study: u32) -> BTreeMap<String, Vec<u8>> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let phantoms = slices(study, 4, 48);
    runtime.block_on(async {
        let mut open = connect(bridge.dicom, "CT1").await.unwrap();
        for phantom in &phantoms {
            assert_eq!(store(&mut open, phantom).await, Some(Status::SUCCESS));
        }
    });
    phantoms.into_iter().map(|phantom| (phantom.sop_instance.to_string(), phantom.bytes)).collect()
}

fn get(bridge: &Bridge, study: u32) -> BTreeMap<String, Vec<u8>> {
    tokio::runtime::Runtime::new().unwrap().block_on(get_study(bridge.dicom, "PACSBRIDGE", study))
}

#[test]
fn what_a_backup_holds_opens_evicted_studies_again() {
    let mut bridge = Bridge::start(&format!("{OPEN}[exchange]\nbind = \"127.0.0.1:0\"\n"));
    let answers_with = |bridge: &Bridge| std::fs::read(bridge.data().join("keystore/exchange-tls.pkcs8")).unwrap();
    let key = answers_with(&bridge);
    let sent = send(&bridge, 1);
    bridge.wait_final(1);
    bridge.json(&["evict", &subject(1).study_uid]);
    let before = shown(&bridge.config());

    // While the bridge runs.
    let file = bridge.dir.path().join("keys.backup");
    let to = file.to_str().unwrap();
    done(&keys(&bridge.config(), "a good password", &["backup", "--to", to]));
    assert_eq!(mode(&file), 0o600);
    refused(&keys(&bridge.config(), "a good password", &["backup", "--to", to]), "exists and is not overwritten");
    bridge.terminate();
    let text = std::fs::read(&file).unwrap();
    for secret in ["source.json", "ciphertext", &subject(1).study_uid] {
        assert!(!text.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} can be read in the backup");
    }

    // Nothing that exists is overwritten, and the right keys are no obstacle.
    std::fs::write(bridge.data().join("keystore/owner-words.json"), "other").unwrap();
    refused(&keys(&bridge.config(), "a good password", &["restore", "--from", to]), "exists and is not overwritten");

    std::fs::remove_dir_all(bridge.data().join("keystore")).unwrap();
    std::fs::remove_file(bridge.data().join("keys.sqlite")).unwrap();
    refused(&keys(&bridge.config(), "another password", &["restore", "--from", to]), "wrong password");
    let mut damaged = text.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let broken = bridge.dir.path().join("broken");
    std::fs::write(&broken, damaged).unwrap();
    refused(&keys(&bridge.config(), "a good password", &["restore", "--from", broken.to_str().unwrap()]), "damaged");
    refused(&keys(&bridge.config(), "x", &["restore", "--from", bridge.config().to_str().unwrap()]), "not a backup");
    assert!(!bridge.data().join("keystore/source.json").exists(), "a refused restore leaves nothing");

    done(&keys(&bridge.config(), "a good password", &["restore", "--from", to]));
    for path in files_below(&bridge.data().join("keystore")).into_iter().chain([bridge.data().join("keys.sqlite")]) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    done(&keys(&bridge.config(), "a good password", &["restore", "--from", to]));
    assert_eq!(shown(&bridge.config()), before);
    bridge.run();
    assert!(answers_with(&bridge) == key, "other bridges would take the restored site for an impostor");
    assert!(get(&bridge, 1) == sent, "the evicted study did not come back byte for byte");
    send(&bridge, 2);
    bridge.wait_final(2);
}

#[test]
fn keys_come_from_elsewhere_and_go_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let site_of = |name: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        site(&dir.path().join(name))
    };
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // Words of a wallet make a source.
    let (first, wallet) = (site_of("first"), file("wallet", &format!("{}\n", TEST_WORDS.replace(' ', "  "))));
    refused(&keys(&first, "", &["import", "source", "--words", &file("typo", "test test test")]), "recovery words");
    done(&keys(&first, "", &["import", "source", "--words", &wallet]));
    assert_eq!(shown(&first)["source"], TEST_ACCOUNT);
    refused(&keys(&first, "", &["import", "source", "--words", &wallet]), "exists and is not overwritten");
    // 12 words are no owner seed.
    refused(&keys(&site_of("short"), "", &["import", "owner", "--words", &wallet]), "24 recovery words, these are 12");

    // Out as a keystore, in as a keystore; the password is not that of the site.
    let exported = dir.path().join("exported.json");
    let to = exported.to_str().unwrap();
    done(&keys(&first, "travel password", &["export", "source", "--to", to]));
    assert_eq!(mode(&exported), 0o600);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(&exported).unwrap()).unwrap()["crypto"]["kdfparams"]
            ["n"],
        262_144
    );
    refused(&keys(&first, "travel password", &["export", "source", "--to", to]), "exists and is not overwritten");
    let second = site_of("second");
    refused(&keys(&second, "wrong", &["import", "source", "--keystore", to]), "wrong password");
    let password = file("password", "travel password\n");
    let by_file = command(&second, &["keys", "import", "source", "--keystore", to, "--password-file", &password]);
    done(&{ by_file }.output().unwrap());
    assert_eq!(shown(&second)["source"], TEST_ACCOUNT);

    // A naked key only for whoever asks for it, with a warning beside it.
    let secret = keys(&second, "", &["export", "source", "--print-secret"]);
    assert!(words(&secret).contains("can write to the ledger as this site"));
    let naked = done(&secret).trim().to_owned();
    assert_eq!(naked, "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
    let third = site_of("third");
    refused(&keys(&third, "", &["import", "source", "--hex", &file("no-hex", "0xhello")]), "64 hexadecimal digits");
    done(&keys(&third, "", &["import", "source", "--hex", &file("hex", &format!("0x{naked}\n"))]));
    assert_eq!(shown(&third)["source"], TEST_ACCOUNT);

    // The owner seed as 24 words, to another site and out of it again.
    let owner = done(&keys(&third, "", &["export", "owner", "--print-secret"]));
    assert_eq!(owner.split_whitespace().count(), 24);
    let fourth = site_of("fourth");
    let mut by_input = command(&fourth, &["keys", "import", "owner", "--words", "-"]);
    let mut child = by_input.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), owner.as_bytes()).unwrap();
    done(&child.wait_with_output().unwrap());
    assert_eq!(done(&keys(&fourth, "", &["export", "owner", "--print-secret"])), owner);

    // Passwords are never taken from the command line, and one that nobody gave is said to be missing.
    refused(&keys(&fourth, "x", &["export", "owner", "--to", "x", "--password", "hush"]), "unexpected argument");
    let none = command(&fourth, &["keys", "export", "owner", "--to", "x"]).output().unwrap();
    refused(&none, "--password-file");
    for path in files_below(dir.path()).iter().filter(|path| path.to_string_lossy().contains("/keystore/")) {
        assert_eq!(mode(path), 0o600, "{}", path.display());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(!text.contains(&naked) && !text.contains(owner.trim()), "{} is naked", path.display());
    }
}

#[test]
fn a_rotated_key_signs_and_the_old_one_is_retired() {
    let mut bridge = Bridge::start(OPEN);
    let sent = send(&bridge, 1);
    bridge.wait_final(1);
    refused(&bridge.cli(&["keys", "rotate"]), "another bridge runs");
    bridge.terminate();
    let backup = bridge.dir.path().join("keys.backup");
    let backup = backup.to_str().unwrap();
    done(&keys(&bridge.config(), "p", &["backup", "--to", backup]));
    let source = shown(&bridge.config())["source"].clone();
    let mut operators = vec![source.clone()];
    for study in 2..4 {
        let rotated = bridge.json(&["keys", "rotate"]);
        assert_eq!((&rotated["source"], &rotated["retired"]), (&source, operators.last().unwrap()), "{rotated}");
        assert!(!operators.contains(&rotated["operator"]), "{rotated}");
        operators.push(rotated["operator"].clone());
        assert_eq!(shown(&bridge.config())["operator"], rotated["operator"]);
        bridge.run();
        send(&bridge, study);
        bridge.wait_final(study as usize);
        bridge.terminate();
    }
    // What the old keys stored is the source's as before.
    bridge.run();
    bridge.json(&["evict", &subject(1).study_uid]);
    assert!(get(&bridge, 1) == sent);
    let verdicts = bridge.json(&["verify", &subject(1).study_uid]);
    assert!(verdicts.as_array().unwrap().iter().all(|verdict| verdict["proven"] == true), "{verdicts}");
    // A backup from before the rotation holds a key that signs no longer; it is enough to rotate once more.
    bridge.terminate();
    std::fs::remove_dir_all(bridge.data().join("keystore")).unwrap();
    std::fs::remove_file(bridge.data().join("keys.sqlite")).unwrap();
    done(&keys(&bridge.config(), "p", &["restore", "--from", backup]));
    refused(&bridge.cli(&["serve"]), "does not sign for one");
    bridge.json(&["keys", "rotate"]);
    bridge.run();
    send(&bridge, 4);
    tests::wait_for("the study to be final", || {
        bridge.json(&["studies"]).as_array().unwrap().iter().all(|row| row["state"] == "final")
    });
    // Nobody becomes a new source because a file is missing.
    bridge.terminate();
    std::fs::rename(bridge.data().join("keystore/source.json"), bridge.dir.path().join("source.json")).unwrap();
    refused(&bridge.cli(&["serve"]), "source.json");
}

#[test]
fn a_rotation_that_is_killed_anywhere_is_finished_by_running_it_again() {
    let mut bridge = Bridge::start(OPEN);
    send(&bridge, 1);
    bridge.wait_final(1);
    bridge.terminate();
    let old = shown(&bridge.config())["source"].clone();
    let begun = std::time::Instant::now();
    let whole = bridge.dir.path().join("whole");
    // How long a rotation takes is learnt on a copy.
    assert!(Command::new("cp").arg("-a").arg(bridge.data()).arg(&whole).status().unwrap().success());
    let config = bridge.dir.path().join("whole.toml");
    std::fs::write(&config, format!("[site]\ndata_dir = {whole:?}\n")).unwrap();
    done(&command(&config, &["keys", "rotate"]).output().unwrap());
    let longest = begun.elapsed();

    let mut finished = None;
    for attempt in 0..6 {
        let mut child = command(&bridge.config(), &["--json", "keys", "rotate"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(longest.mul_f64(rand::thread_rng().gen_range(0.2..1.0)));
        let ended = child.try_wait().unwrap();
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if ended.is_some_and(|status| status.success()) {
            finished = Some(output);
            break;
        }
        if attempt == 2 {
            // In the middle of a rotation the site works.
            bridge.run();
            send(&bridge, 2);
            bridge.wait_final(2);
            bridge.terminate();
        }
    }
    let output = finished.unwrap_or_else(|| command(&bridge.config(), &["--json", "keys", "rotate"]).output().unwrap());
    let rotated: serde_json::Value = serde_json::from_str(&done(&output)).unwrap();
    assert_eq!(rotated["source"], old);
    assert_eq!(shown(&bridge.config())["operator"], rotated["operator"]);
    let left: Vec<_> = files_below(&bridge.data().join("keystore"));
    assert!(
        !left.iter().any(|path| path.to_string_lossy().contains("next") || path.to_string_lossy().contains("retiring")),
        "{left:?}"
    );
    bridge.run();
    send(&bridge, 3);
    tests::wait_for("the study to be final", || {
        let rows = bridge.json(&["studies"]);
        rows.as_array().unwrap().iter().all(|row| row["state"] == "final")
    });
}

/// Keys and a copy of the ledger are a site again, as far as its studies are on the ledger.
#[test]
fn a_copy_of_the_ledger_brings_it_back() {
    let mut site = Bridge::start(OPEN);
    let sent = send(&site, 1);
    site.wait_final(1);
    let uid = subject(1).study_uid;
    site.wait_filed(sent.len() as u64);
    site.json(&["evict", &uid]);
    let copy = site.dir.path().join("ledger.copy");
    let written = site.json(&["ledger", "export", copy.to_str().unwrap()]);
    assert_eq!(written["bytes"], std::fs::metadata(&copy).unwrap().len());
    let again = site.cli(&["ledger", "export", copy.to_str().unwrap()]);
    assert!(!again.status.success(), "what is there is not overwritten");
    let import =
        |site: &Bridge, file: &std::path::Path| site.cli(&["--json", "ledger", "import", file.to_str().unwrap()]);
    let refused = import(&site, &copy);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("runs"), "{refused:?}");
    assert!(site.terminate().success());
    let refused = import(&site, &copy);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not overwritten"), "{refused:?}");

    std::fs::remove_dir_all(site.data().join("ledger")).unwrap();
    let cut = site.dir.path().join("cut");
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    assert!(!import(&site, &cut).status.success());
    let imported = import(&site, &copy);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let imported: serde_json::Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!((&imported["number"], &imported["hash"]), (&written["number"], &written["hash"]));
    site.run();
    assert_eq!(get(&site, 1), sent);
    // And it goes on.
    send(&site, 2);
    site.wait_final(2);
}
