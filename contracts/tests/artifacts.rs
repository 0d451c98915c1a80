//! The committed artifacts are what the committed sources compile to.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = here().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn solidity_files(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            solidity_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Needs no compiler: who changes a source and forgets to build is told here.
#[test]
fn the_compiler_input_holds_the_sources_as_they_are() {
    let input: Value = serde_json::from_str(&read("artifacts/input.json")).unwrap();
    let mut files = Vec::new();
    solidity_files(&here().join("solidity"), &mut files);
    assert!(files.len() >= 9);
    for file in files {
        let name = file.strip_prefix(here()).unwrap().to_str().unwrap().to_owned();
        let compiled = input["sources"][&name]["content"].as_str();
        assert_eq!(compiled, Some(read(&name).as_str()), "{name} changed since `node build.mjs`");
    }
    assert_eq!(input["settings"]["evmVersion"], "london");
    assert_eq!(input["settings"]["metadata"]["bytecodeHash"], "none");
}

/// What the chain will run is what the bindings say.
#[test]
fn artifacts_and_bindings_hold_the_same_code() {
    for contract in contracts::Contract::ALL {
        let artifact: Value = serde_json::from_str(&read(format!("artifacts/{}.json", contract.name()))).unwrap();
        assert_eq!(artifact["bytecode"], contract.creation_code().to_string());
        assert_eq!(artifact["deployedBytecode"], contract.runtime_code().to_string());
        assert!(contract.runtime_code().len() <= 24_576, "{} exceeds EIP-170", contract.name());
        assert!(artifact["compiler"].as_str().unwrap().starts_with("0.8.37+"));
    }
}

/// It is no contract that is deployed, so it is not among those.
#[test]
fn the_validators_in_first_blocks_are_what_was_compiled() {
    let artifact: Value = serde_json::from_str(&read("artifacts/Validators.json")).unwrap();
    assert_eq!(artifact["deployedBytecode"], contracts::validators::runtime_code().to_string());
    assert!(contracts::validators::runtime_code().len() <= 24_576);
}

/// Compiles again with the pinned npm solc and compares every byte of every file.
#[test]
fn artifacts_can_be_rebuilt() {
    match rebuild() {
        Ok(()) => {}
        Err(Missing(what)) => {
            let required = std::env::var("REQUIRE_TOOLS").is_ok_and(|v| v == "1");
            assert!(!required, "{what} missing");
            println!("SKIPPED: {what} missing");
        }
    }
}

struct Missing(&'static str);

fn rebuild() -> Result<(), Missing> {
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !runs("node") {
        return Err(Missing("node"));
    }
    if !here().join("node_modules/solc").is_dir() {
        if !runs("npm") {
            return Err(Missing("npm"));
        }
        let install = ["install", "--no-save", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"];
        let installed = Command::new("npm").args(install).current_dir(here()).output();
        if !installed.is_ok_and(|output| output.status.success()) {
            return Err(Missing("npm packages of contracts/package-lock.json"));
        }
    }
    let check = Command::new("node").args(["build.mjs", "--check"]).current_dir(here()).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    Ok(())
}
