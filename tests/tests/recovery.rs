//! A patient loses the key: guardians give the study to a new one, by the program's commands on a node whose clock can be moved, because
//! the owner has a day at least to object.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::anvil::{ANVIL_CHAIN_ID, ANVIL_KEY, Anvil};
use tests::dicom::{slices, subject};
use tests::{Bridge, binary};

const DAY_S: u64 = 86_400;
const GRANTEE: &str = "0x2222222222222222222222222222222222222222";
const OTHER: &str = "0x4444444444444444444444444444444444444444";
const KEY_HASH: &str = "0x3333333333333333333333333333333333333333333333333333333333333333";

/// A site whose source key has funds on anvil and which founds the consortium there.
fn site(anvil: &Anvil) -> Bridge {
    let dir = tempfile::tempdir().unwrap();
    let (data, key, config) = (dir.path().join("data"), dir.path().join("key"), dir.path().join("import.toml"));
    std::fs::write(&key, ANVIL_KEY).unwrap();
    std::fs::write(&config, format!("[site]\ndata_dir = {data:?}\n")).unwrap();
    let mut import = Command::new(binary());
    import.arg("--config").arg(&config).args(["keys", "import", "source", "--hex"]).arg(&key);
    assert!(import.output().unwrap().status.success());
    let toml = format!(
        "[dicom]\nunknown_peers = [\"echo\", \"store\"]\n[publish]\nsettle_ms = 100\n\
         [ledger]\nkind = \"rpc\"\nurl = \"{}\"\nchain_id = {ANVIL_CHAIN_ID}\n",
        anvil.url
    );
    let mut bridge = Bridge::prepare(dir, data, &toml, Vec::new());
    bridge.run();
    bridge
}

/// Somebody with a key in a file; its account and the file.
struct Somebody {
    account: String,
    file: String,
}

struct Case {
    bridge: Bridge,
    uid: String,
    password: String,
}

impl Case {
    fn begin(anvil: &Anvil) -> Self {
        let bridge = site(anvil);
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let mut open = tests::dicom::connect(bridge.dicom, "CT1").await.unwrap();
            assert_eq!(tests::dicom::store(&mut open, &slices(1, 1, 32)[0]).await, Some(dicom_scp::Status::SUCCESS));
        });
        bridge.wait_final(1);
        let password = bridge.dir.path().join("password").to_str().unwrap().to_owned();
        std::fs::write(&password, "a key of mine\n").unwrap();
        Self { bridge, uid: subject(1).study_uid, password }
    }

    fn file(&self, name: &str) -> String {
        self.bridge.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn somebody(&self, name: &str) -> Somebody {
        let key = alloy::signers::local::PrivateKeySigner::random();
        let file = self.file(name);
        std::fs::write(&file, bridge::ledger::keystore::encrypt(&key, "a key of mine").unwrap()).unwrap();
        Somebody { account: key.address().to_string(), file }
    }

    /// An action in a file, signed; what it says. The study goes by its UID.
    fn signed(&self, name: &str, by: &Somebody, action: &[&str]) -> String {
        let file = self.unsigned(name, action);
        self.bridge.json(&["sign", &file, "--key", &by.file, "--password-file", &self.password]);
        file
    }

    fn unsigned(&self, name: &str, action: &[&str]) -> String {
        let file = self.file(name);
        self.bridge.json(&[action, &["--unsigned", &file]].concat());
        file
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.bridge.cli(args);
        assert!(!output.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Names guardians in a file that the owner signs.
    fn name_guardians(&self, owner: &Somebody, guardians: &[Somebody], paper: &str) {
        let mut args = vec!["guardians", "set", &self.uid, "--need", "2", "--delay", "1d", "--paper", paper];
        guardians.iter().for_each(|guardian| args.extend(["--guardian", guardian.account.as_str()]));
        let named = self.signed(&format!("named by {}", owner.account), owner, &args);
        assert_eq!(self.bridge.json(&["submit", &named])["action"], "guardians named");
    }

    /// Two guardians sign for a new owner, and the recovery is proposed.
    fn propose(&self, paper: &str, guardians: &[Somebody], owner: &Somebody) {
        let recovery = self.file(&format!("recovery for {}", owner.account));
        self.bridge.json(&["recover", "propose", paper, "--owner", &owner.account, "--out", &recovery]);
        for guardian in &guardians[..2] {
            let key = ["--key", &guardian.file, "--password-file", &self.password];
            self.bridge.json(&[&["recover", "approve", recovery.as_str()][..], &key].concat());
        }
        assert_eq!(self.bridge.json(&["recover", "submit", &recovery])["action"], "recovery proposed");
    }

    fn owner(&self) -> String {
        self.bridge.json(&["study", "show", &self.uid])["owner"].as_str().unwrap().to_lowercase()
    }

    fn events(&self) -> Vec<String> {
        let trace = self.bridge.json(&["trace", &self.uid]);
        let history = trace["history"].as_array().unwrap();
        history.iter().map(|row| row["event"].as_str().unwrap().to_owned()).collect()
    }
}

fn account_in(keystore: &Path) -> String {
    let keystore: Value = serde_json::from_str(&std::fs::read_to_string(keystore).unwrap()).unwrap();
    format!("0x{}", keystore["address"].as_str().unwrap().trim_start_matches("0x"))
}

#[test]
fn guardians_give_a_study_to_a_new_key_and_an_owner_who_objects_keeps_it() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Behind by what will pass, so that the chain never runs ahead of the bridge's own clock.
    let Some(anvil) = Anvil::start_at(now - 3 * DAY_S) else { return };
    let case = Case::begin(&anvil);
    let (bridge, uid) = (&case.bridge, case.uid.as_str());

    // The patient takes the study over, names guardians, signs something that nobody sends, and loses the key.
    let key = case.file("patient.json");
    let claim =
        ["claim", uid, "--new-key", &key, "--password-file", &case.password, "--hand-over", &case.file("paper")];
    bridge.json(&claim);
    let patient = Somebody { account: account_in(Path::new(&key)), file: key.clone() };
    let guardians: Vec<_> = ["g1", "g2", "g3"].iter().map(|name| case.somebody(name)).collect();
    let paper = case.file("guardians");
    case.name_guardians(&patient, &guardians, &paper);
    let allow = ["allow", uid, OTHER, "--encryption-key", KEY_HASH];
    let unsent = case.signed("unsent", &patient, &allow);

    let next = case.somebody("next.json");
    case.propose(&paper, &guardians, &next);
    let words = case.refused(&["recover", "complete", uid]);
    assert!(words.contains("may object until"), "{words}");
    anvil.pass(DAY_S / 2);
    let words = case.refused(&["recover", "complete", uid]);
    assert!(words.contains("may object until"), "half a day is not enough: {words}");
    assert_eq!(case.owner(), patient.account.to_lowercase());
    anvil.pass(DAY_S / 2);
    let done = bridge.json(&["recover", "complete", uid]);
    assert_eq!(done["action"], "recovered", "{done}");
    assert!(done["account"].as_str().unwrap().eq_ignore_ascii_case(&next.account), "{done}");
    assert_eq!(case.owner(), next.account.to_lowercase());

    // The old key is worth nothing any more: neither what it signed before nor what it would sign now.
    let words = case.refused(&["submit", &unsent]);
    assert!(words.contains("signature") || words.contains("signed"), "{words}");
    let fresh = case.unsigned("fresh", &["allow", uid, GRANTEE, "--encryption-key", KEY_HASH]);
    let words = case.refused(&["sign", &fresh, "--key", &patient.file, "--password-file", &case.password]);
    assert!(words.contains("must be signed by"), "{words}");
    bridge.json(&["sign", &fresh, "--key", &next.file, "--password-file", &case.password]);
    let done = bridge.json(&["submit", &fresh]);
    assert_eq!(done["action"], "allowed", "{done}");
    assert_eq!(bridge.json(&["trace", uid, OTHER])["states"][0]["state"], "not authorised");

    // Guardians survive a recovery. This time the owner still has the key and objects; the one before cannot.
    let thief = case.somebody("thief.json");
    case.propose(&paper, &guardians, &thief);
    let veto = case.unsigned("veto", &["recover", "veto", uid]);
    let words = case.refused(&["sign", &veto, "--key", &patient.file, "--password-file", &case.password]);
    assert!(words.contains("must be signed by"), "{words}");
    bridge.json(&["sign", &veto, "--key", &next.file, "--password-file", &case.password]);
    assert_eq!(bridge.json(&["submit", &veto])["action"], "recovery vetoed");
    anvil.pass(2 * DAY_S - 600);
    let words = case.refused(&["recover", "complete", uid]);
    assert!(words.contains("no recovery"), "{words}");
    assert_eq!(case.owner(), next.account.to_lowercase());

    // By now the chain is where the bridge's clock is, and what the new key allowed holds.
    let state = &bridge.json(&["trace", uid, GRANTEE])["states"][0];
    assert_eq!(state["state"], "authorised", "{state}");
    let expected =
        ["created", "transferred", "guardians", "recovery", "transferred", "accepted", "recovery", "recovery ended"];
    assert_eq!(case.events(), expected);
}
