//! Signed ITI-43 retrieval by a consumer made of other people's software: Open eHealth IPF on Apache CXF, signatures by WSS4J, keys of the
//! ledger by Bouncy Castle and P-256 keys by the JDK alone (tests/java).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;
use tests::certificates::{Authority, Kind};
use tests::dicom::{slices, subject};
use tests::xds::{KEY_HASH, Person, UNAVAILABLE, World, digest, unzipped};
use tests::{Bridge, files_below, have, skip, wait_for};

/// What `make tools` built of the client.
fn java() -> Option<Command> {
    let tools = std::env::var_os("TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools"), PathBuf::from);
    let built = tools.join("java");
    let Ok(libraries) = std::fs::read_to_string(built.join("classpath")) else {
        skip("the Java client (.tools/java)");
        return None;
    };
    if !have("java") {
        return None;
    }
    let mut command = Command::new("java");
    let classes = built.join("classes");
    command.args(["-cp", &format!("{}:{}", classes.display(), libraries.trim()), "tests.Iti43Client"]);
    Some(command)
}

/// The site, and where the client finds it and what it trusts.
struct Site {
    world: World,
    authority: PathBuf,
}

impl Site {
    fn start(dir: &Path) -> Option<Self> {
        let authority = Authority::new(dir, "authority", false);
        let server = authority.issue("server", &["127.0.0.1"], Kind::Good);
        let toml = format!(
            "[publish]\nsettle_ms = 200\n[xds]\nenabled = true\nbind = \"127.0.0.1:0\"\ntls_certificate_file = {:?}\ntls_key_file = {:?}\n",
            server.certificate, server.key
        );
        Some(Self { world: World::new(|| Bridge::start(&toml))?, authority: authority.certificate })
    }

    /// What the client says that is given this key.
    fn ask(&self, key: &str, document: &str, more: &[&str]) -> Value {
        let save = self.world.dir.path().to_str().unwrap().to_owned();
        let mut command = java().unwrap();
        command.args(key.split(' ')).args(more);
        command.args([
            format!("url=https://{}/iti43", self.world.address()),
            format!("authority={}", self.authority.display()),
            format!("repository={}", self.world.repository()),
            format!("document={document}"),
            format!("save={save}"),
        ]);
        let said = tests::peers::run(&mut command);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    /// Asserts that the client got the files that were received.
    fn served(&self, key: &str, document: &str) {
        let said = self.ask(key, document, &[]);
        assert_eq!(said["documents"][0]["mime_type"], "application/zip", "{said}");
        let archive = self.world.dir.path().join("1.bin");
        let stored = files_below(&self.world.a.data().join("archive/objects"));
        let stored: BTreeSet<String> = stored.iter().map(|file| digest(&std::fs::read(file).unwrap())).collect();
        let got: BTreeSet<String> =
            unzipped(&self.world.python, &archive).into_iter().map(|(_, digest)| digest).collect();
        assert_eq!(got, stored, "{said}");
        std::fs::remove_file(archive).unwrap();
    }
}

#[test]
fn a_consumer_of_another_vendor_gets_what_its_key_was_let_in_to() {
    let Some(mut signs) = java() else { return };
    if !have("keytool") || !have("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let Some(site) = Site::start(dir.path()) else { return };
    let world = &site.world;
    world.store(&slices(1, 3, 64));
    world.a.wait_final(1);
    let study = world.study(1);

    // A key of the ledger.
    let person = Person::new(dir.path(), "person");
    let ledger_key = format!("secp256k1={}", person.key.display());
    let refused = |key: &str| {
        let said = site.ask(key, &study, &[]);
        assert_eq!(said["errors"][0]["code"], UNAVAILABLE, "{said}");
    };
    refused(&ledger_key);
    world.allow(1, &person, &[]);
    site.served(&ledger_key, &study);
    let spoilt = site.ask(&ledger_key, &study, &["spoil=true", "fault400=true"]);
    assert_eq!(spoilt["fault"]["subcode"], "FailedCheck", "{spoilt}");
    world.revoke(1, &person);
    refused(&ledger_key);

    // A P-256 key as any JDK makes it, which an account binds that no bridge has.
    let make =
        "-genkeypair -alias card -keyalg EC -groupname secp256r1 -dname CN=card -storetype PKCS12 -storepass password";
    tests::peers::run(Command::new("keytool").args(make.split(' ')).args(["-keystore", &file("card.p12")]));
    let export = ["-exportcert", "-rfc", "-alias", "card", "-storepass", "password", "-keystore", &file("card.p12")];
    tests::peers::run(Command::new("keytool").args(export).args(["-file", &file("card.pem")]));
    let public =
        tests::peers::run(Command::new("openssl").args(["x509", "-pubkey", "-noout", "-in", &file("card.pem")]));
    std::fs::write(file("card.pub"), public.stdout).unwrap();
    let card = format!("store={} alias=card", file("card.p12"));
    let fault = site.ask(&card, &study, &["fault400=true"]);
    assert_eq!(fault["fault"]["subcode"], "UnsupportedSecurityToken", "{fault}");

    let patient = PrivateKeySigner::random();
    let account = patient.address().to_string();
    let keys = |command: &[&str]| world.a.json(&[&["keys", "p256"], command].concat());
    keys(&["challenge", "--public-key", &file("card.pub"), "--account", &account, "--out", &file("challenge")]);
    signs.args(card.split(' ')).args([format!("sign={}", file("challenge")), format!("to={}", file("proof"))]);
    tests::peers::run(&mut signs);
    std::fs::write(file("patient.json"), bridge::ledger::keystore::encrypt(&patient, "words").unwrap()).unwrap();
    std::fs::write(file("password"), "words\n").unwrap();
    let wish = ["bind", "--public-key", &file("card.pub"), "--proof", &file("proof"), "--until", "1h"];
    keys(&[&wish[..], &["--account", &account, "--unsigned", &file("paper.json")]].concat());
    keys(&["sign", &file("paper.json"), "--key", &file("patient.json"), "--password-file", &file("password")]);
    keys(&["submit", &file("paper.json")]);
    world.a.json(&["allow", &subject(1).study_uid, &account, "--encryption-key", KEY_HASH]);
    wait_for("the card's account to be known", || site.ask(&card, &study, &["fault400=true"])["fault"].is_null());
    std::fs::remove_file(world.dir.path().join("1.bin")).unwrap();
    site.served(&card, &study);
}
