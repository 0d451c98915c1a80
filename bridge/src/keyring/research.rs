//! Keys of research: owner keys that several studies share, one keystore file each, and the keys under which rules make pseudonyms.
//!
//! Both are in the keystore and go with its backup. Must not know rules or studies.

use std::fs;
use std::path::{Path, PathBuf};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use rand::RngCore as _;
use zeroize::Zeroizing;

use super::helper::Helper;
use super::{KEYSTORE, Keyring, KeyringError, open_or_make, password, read_key, write_secret};
use crate::config;
use crate::ledger::owner::HeldKeys;

/// `research-NAME.json`
const RESEARCH: (&str, &str) = ("research-", ".json");
/// `group-NAME.key`
const GROUP: (&str, &str) = ("group-", ".key");

/// Whether a file of the keystore is a research key.
pub(crate) fn is_research_key(file: &str) -> bool {
    name_in(file, RESEARCH).is_some()
}

/// Whether a file of the keystore is the key of a rule's pseudonyms.
pub(crate) fn is_group_key(file: &str) -> bool {
    name_in(file, GROUP).is_some()
}

fn name_in<'a>(file: &'a str, (before, after): (&str, &str)) -> Option<&'a str> {
    let name = file.strip_prefix(before)?.strip_suffix(after)?;
    is_name(name).then_some(name)
}

/// What a research key or a rule may be called; it becomes a part of a file's name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn file_of(dir: &Path, name: &str, (before, after): (&str, &str)) -> PathBuf {
    dir.join(format!("{before}{name}{after}"))
}

impl Keyring {
    /// Makes a research key in `data_dir`, durable before this returns. The bridge may be running.
    ///
    /// # Errors
    /// [`KeyringError::ResearchKeyExists`] and others.
    pub fn new_research_key(data_dir: &Path, config: &config::Keys, name: &str) -> Result<Address, KeyringError> {
        if !is_name(name) {
            return Err(KeyringError::NoResearchKey(name.to_owned()));
        }
        let dir = data_dir.join(KEYSTORE);
        fs::create_dir_all(&dir).map_err(|e| KeyringError::File(dir.clone(), e))?;
        let path = file_of(&dir, name, RESEARCH);
        if path.exists() {
            return Err(KeyringError::ResearchKeyExists(name.to_owned()));
        }
        let password = password(&dir, config)?;
        Ok(open_or_make(&mut Helper::new(), &path, &password)?.address())
    }

    /// Names and accounts of the research keys in `data_dir`, by what their files say of themselves.
    ///
    /// # Errors
    /// [`KeyringError::File`].
    pub fn research_keys(data_dir: &Path) -> Result<Vec<(String, Option<Address>)>, KeyringError> {
        let dir = data_dir.join(KEYSTORE);
        let fail = |e| KeyringError::File(dir.clone(), e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(fail)? {
            let file = entry.map_err(fail)?.file_name();
            if let Some(name) = file.to_str().and_then(|file| name_in(file, RESEARCH)) {
                found.push((name.to_owned(), stated_account(&dir.join(&file))));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Opens a research key and holds it from then on. Blocks while the password is stretched.
    ///
    /// # Errors
    /// [`KeyringError::NoResearchKey`] and others.
    pub fn open_research_key(&self, name: &str) -> Result<Address, KeyringError> {
        let path = file_of(&self.0.dir, name, RESEARCH);
        if !is_name(name) || !path.exists() {
            return Err(KeyringError::NoResearchKey(name.to_owned()));
        }
        let key = read_key(&mut Helper::new(), &path, &self.0.password)?;
        let account = key.address();
        self.0.held.hold(key);
        Ok(account)
    }

    /// Owner keys in custody that follow from no seed, as far as they were opened.
    #[must_use]
    pub fn held_keys(&self) -> HeldKeys {
        self.0.held.clone()
    }

    /// The key in custody with which `account` owns the study with this owner number, if it is here: the study's own, or a research
    /// key. The first use of a research key that no rule names any more stretches its password, which takes a second.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn custody_key(&self, owner_index: u32, account: Address) -> Result<Option<PrivateKeySigner>, KeyringError> {
        let own = self.owner(owner_index)?;
        if own.address() == account {
            return Ok(Some(own));
        }
        if let Some(held) = self.0.held.key(account) {
            return Ok(Some(held));
        }
        let data_dir = self.0.dir.parent().unwrap_or(Path::new("."));
        let named = Self::research_keys(data_dir)?.into_iter().find(|(_, stated)| *stated == Some(account));
        let Some((name, _)) = named else { return Ok(None) };
        self.open_research_key(&name)?;
        Ok(self.0.held.key(account))
    }

    /// The key of pseudonyms of the rule with this name: from a file of the operator's, or from the keystore, where it is made and
    /// durable before this returns if there was none.
    ///
    /// # Errors
    /// [`KeyringError::GroupKey`] and others.
    pub fn group_key(&self, rule: &str, file: Option<&Path>) -> Result<Zeroizing<[u8; 32]>, KeyringError> {
        let path = file.map_or_else(|| file_of(&self.0.dir, rule, GROUP), Path::to_owned);
        if file.is_none() && !path.exists() {
            let mut key = Zeroizing::new([0; 32]);
            rand::rngs::OsRng.fill_bytes(key.as_mut());
            write_secret(&path, Zeroizing::new(format!("{}\n", hex::encode(*key))).as_bytes())?;
            return Ok(key);
        }
        let text = Zeroizing::new(fs::read_to_string(&path).map_err(|e| KeyringError::File(path.clone(), e))?);
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), key.as_mut()).map_err(|_| KeyringError::GroupKey(path))?;
        Ok(key)
    }
}

/// The account that a keystore file says it is for.
fn stated_account(path: &Path) -> Option<Address> {
    let keystore: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    keystore.get("address")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_research_key_is_found_by_its_account_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse("", HashMap::new()).unwrap().keys;
        let account = Keyring::new_research_key(dir.path(), &config, "heart").unwrap();
        assert!(matches!(
            Keyring::new_research_key(dir.path(), &config, "heart"),
            Err(KeyringError::ResearchKeyExists(_))
        ));
        assert!(Keyring::new_research_key(dir.path(), &config, "../heart").is_err());
        assert_eq!(Keyring::research_keys(dir.path()).unwrap(), [("heart".to_owned(), Some(account))]);
        let keyring = Keyring::open(dir.path(), &config).unwrap();
        assert!(matches!(keyring.open_research_key("lung"), Err(KeyringError::NoResearchKey(_))));
        assert_eq!(keyring.custody_key(0, account).unwrap().unwrap().address(), account);
        let own = keyring.owner(0).unwrap().address();
        assert_eq!(keyring.custody_key(0, own).unwrap().unwrap().address(), own);
        assert!(keyring.custody_key(1, own).unwrap().is_none(), "the key of another study");
    }

    #[test]
    fn a_rule_keeps_its_key_of_pseudonyms() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path(), &Config::parse("", HashMap::new()).unwrap().keys).unwrap();
        let key = keyring.group_key("heart", None).unwrap();
        assert_eq!(keyring.group_key("heart", None).unwrap(), key);
        assert_ne!(keyring.group_key("lung", None).unwrap(), key);
        let file = dir.path().join("key");
        assert!(keyring.group_key("heart", Some(&file)).is_err(), "a named file is not made");
        fs::write(&file, "not a key").unwrap();
        assert!(matches!(keyring.group_key("heart", Some(&file)), Err(KeyringError::GroupKey(_))));
    }
}
