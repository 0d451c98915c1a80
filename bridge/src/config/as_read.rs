//! The configuration as it was read, for people: every key that there is, its value, and where that comes from. Secrets are not in it: what they are replaced by says
//! that there is one.
//!
//! Which keys there are and their defaults says the documentation, `conf/bridge.toml`, which a test compares with what is read.

use std::fmt;

use config::{Value, ValueKind};

const DOCUMENTED: &str = include_str!("../../../conf/bridge.toml");
/// What stands where a secret was given.
const HIDDEN: &str = "given, not shown";
/// How keys end whose values are secrets themselves, and not the names of files that hold them.
const SECRETS: [&str; 5] = ["password", "passphrase", "token", "secret", "seed"];
/// Keys of addresses that are called from here. Who hosts a node may have put what opens it into the path.
const CALLED: [&str; 4] = ["ledger.url", "ledger.fallback_urls", "ledger.remote_signer_url", "ipfs.api_url"];
/// How the `config` crate calls the source of a variable.
const ENVIRONMENT: &str = "the environment";

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File,
    /// A variable of the environment.
    Environment,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name in its table.
    pub key: String,
    /// Its value as the file would have it; none where nothing was said and there is no default to tell.
    pub value: Option<String>,
    /// Where that comes from.
    pub origin: Origin,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name as the file has it; one of several of a name is numbered.
    pub name: String,
    /// Its keys, in the order of the documentation.
    pub settings: Vec<Setting>,
}

/// Every table.
#[derive(Clone, Default)]
pub struct AsRead(pub Vec<Table>);

impl fmt::Debug for AsRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsRead({} tables)", self.0.len())
    }
}

/// Two configurations that say the same are the same, wherever it was written.
impl PartialEq for AsRead {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A line of the documentation that names something.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    Table(&'a str),
    /// One of several of its name.
    Several(&'a str),
    Key(&'a str, &'a str),
    /// A key with an example.
    Example(&'a str),
}

fn named(line: &str) -> Option<Named<'_>> {
    let inner = line.trim_start_matches("# ");
    if let Some(name) = inner.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
        return Some(Named::Several(name));
    }
    if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Some(Named::Table(name));
    }
    let (key, value) = inner.split_once(" = ")?;
    let is_key = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let is_said = line.starts_with(key);
    is_key.then_some(if is_said { Named::Key(key, value) } else { Named::Example(key) })
}

/// A table of the documentation: its name, whether there may be several, and its keys with their defaults.
struct Documented<'a> {
    name: &'a str,
    several: bool,
    keys: Vec<(&'a str, Option<&'a str>)>,
}

fn documented() -> Vec<Documented<'static>> {
    let mut tables: Vec<Documented<'static>> = Vec::new();
    for line in DOCUMENTED.lines() {
        match (named(line), tables.last_mut()) {
            (Some(Named::Table(name)), _) => tables.push(Documented { name, several: false, keys: Vec::new() }),
            (Some(Named::Several(name)), _) => tables.push(Documented { name, several: true, keys: Vec::new() }),
            (Some(Named::Key(key, default)), Some(table)) => table.keys.push((key, Some(default))),
            // Elsewhere it is a sentence.
            (Some(Named::Example(key)), Some(table)) if table.several => table.keys.push((key, None)),
            _ => {}
        }
    }
    tables
}

impl AsRead {
    /// What was read: the file with what the environment has put in its place.
    pub(super) fn of(tree: &Value) -> Self {
        let mut tables = Vec::new();
        for known in documented() {
            let given = known.name.split('.').try_fold(tree, |value, part| child(value, part));
            match (known.several, given.map(|value| &value.kind)) {
                (true, Some(ValueKind::Array(rows))) => {
                    let row =
                        |(at, row): (usize, &Value)| table(&known, format!("[[{}]] {}", known.name, at + 1), Some(row));
                    tables.extend(rows.iter().enumerate().map(row));
                }
                (true, _) => {}
                (false, _) => tables.push(table(&known, format!("[{}]", known.name), given)),
            }
        }
        Self(tables)
    }
}

fn child<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    if let ValueKind::Table(table) = &value.kind { table.get(name) } else { None }
}

fn table(known: &Documented<'_>, name: String, given: Option<&Value>) -> Table {
    let setting = |(key, default): &(&str, Option<&str>)| {
        let path = format!("{}.{key}", known.name);
        match given.and_then(|table| child(table, key)) {
            Some(value) => {
                Setting { key: (*key).to_owned(), value: Some(shown(&path, &value.kind)), origin: origin(value) }
            }
            None => Setting { key: (*key).to_owned(), value: default.map(ToOwned::to_owned), origin: Origin::Default },
        }
    };
    Table { name, settings: known.keys.iter().map(setting).collect() }
}

fn origin(value: &Value) -> Origin {
    if value.origin() == Some(ENVIRONMENT) { Origin::Environment } else { Origin::File }
}

/// A value as people may see it.
fn shown(path: &str, value: &ValueKind) -> String {
    let is_secret = path.rsplit(['.', '_']).next().is_some_and(|last| SECRETS.contains(&last));
    match value {
        ValueKind::String(text) if text.is_empty() => "\"\"".to_owned(),
        _ if is_secret => HIDDEN.to_owned(),
        ValueKind::String(text) => format!("\"{}\"", address(path, text)),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| shown(path, &item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Table(_) => "a table".to_owned(),
        other => super::reader::describe(other),
    }
}

/// A text without what opens the address that it may be: name and password, and of what is called from here path and query.
fn address(path: &str, text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| *scheme != "ipc") else {
        return text.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let who = if host.len() < authority.len() { "…@" } else { "" };
    let behind = match behind {
        "" | "/" => behind,
        // A password with a slash in it leaves its end here.
        _ if CALLED.contains(&path) || behind.contains('@') => "/…",
        _ => behind.split(['?', '#']).next().unwrap_or_default(),
    };
    // What is before such a slash would be taken for the host.
    let host = if rest.split_at(end).1.contains('@') { "…" } else { host };
    format!("{scheme}://{who}{host}{behind}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::super::Config;
    use super::*;

    fn read(toml: &str, environment: &[(&str, &str)]) -> AsRead {
        let pairs = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(toml, pairs.collect::<HashMap<_, _>>()).unwrap().as_read
    }

    fn find<'a>(read: &'a AsRead, table: &str, key: &str) -> &'a Setting {
        let found = read.0.iter().find(|found| found.name == table).unwrap();
        found.settings.iter().find(|setting| setting.key == key).unwrap()
    }

    #[test]
    fn every_key_is_there_with_its_default() {
        let read = read("", &[]);
        for (table, key, value) in [
            ("[site]", "data_dir", "\"data\""),
            ("[dicom]", "associations_max", "256"),
            ("[dicom.tls]", "client_certificates", "\"none\""),
            ("[audit]", "anchor_interval_s", "3600"),
            ("[log]", "format", "\"text\""),
            ("[keys]", "password", "\"\""),
        ] {
            let setting = find(&read, table, key);
            assert_eq!((setting.value.as_deref(), setting.origin), (Some(value), Origin::Default), "{table} {key}");
        }
        assert!(read.0.iter().all(|table| !table.settings.is_empty()));
        assert!(read.0.iter().all(|table| !table.name.starts_with("[[")), "none was given");
        // The documentation names no key that the program does not know, so each can be given.
        let all: Vec<String> = read
            .0
            .iter()
            .flat_map(|table| table.settings.iter().map(|setting| format!("{}{}", table.name, setting.key)))
            .collect();
        let once: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(all.len(), once.len());
        assert_eq!(
            all.len(),
            DOCUMENTED.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())).count()
        );
    }

    #[test]
    fn what_was_given_says_where_and_tables_of_one_name_are_numbered() {
        let read = read(
            "[dicom]\nassociations_max = 5\nunknown_peers = [\"echo\"]\n[[peer]]\nae_title = \"A\"\n[[peer]]\nae_title = \"<b>\"\nport = 104\nhost = \"h\"\n",
            &[("PACS_BRIDGE__DICOM__AE_TITLE", "0123"), ("HOME", "/root")],
        );
        let title = find(&read, "[dicom]", "ae_title");
        assert_eq!((title.value.as_deref(), title.origin), (Some("\"0123\""), Origin::Environment));
        let most = find(&read, "[dicom]", "associations_max");
        assert_eq!((most.value.as_deref(), most.origin), (Some("5"), Origin::File));
        assert_eq!(find(&read, "[dicom]", "unknown_peers").value.as_deref(), Some("[\"echo\"]"));
        assert_eq!(find(&read, "[[peer]] 2", "ae_title").value.as_deref(), Some("\"<b>\""));
        let unsaid = find(&read, "[[peer]] 1", "tls_server_name");
        assert_eq!((unsaid.value.as_deref(), unsaid.origin), (None, Origin::Default));
    }

    #[test]
    fn no_secret_is_shown_nor_kept() {
        let read = read(
            "[ledger]\nkind = \"rpc\"\nurl = \"http://me:hunter2@node:8545/v3/hunter2\"\nfallback_urls = [\"http://node/?key=hunter2\"]\n\
             [site]\npublic_url = \"https://a.example/x?hunter2\"\n",
            &[("PACS_BRIDGE__KEYS__PASSWORD", "hunter2")],
        );
        let whole: String =
            read.0.iter().flat_map(|table| &table.settings).map(|setting| format!("{setting:?}\n")).collect();
        assert!(!whole.contains("hunter2"), "{whole}");
        let password = find(&read, "[keys]", "password");
        assert_eq!((password.value.as_deref(), password.origin), (Some(HIDDEN), Origin::Environment));
        assert_eq!(find(&read, "[ledger]", "url").value.as_deref(), Some("\"http://…@node:8545/…\""));
        assert_eq!(find(&read, "[ledger]", "fallback_urls").value.as_deref(), Some("[\"http://node/…\"]"));
        assert_eq!(find(&read, "[site]", "public_url").value.as_deref(), Some("\"https://a.example/x\""));
        for (path, text, expected) in [
            ("site.public_url", "https://u:pa/ss@host/x", "https://…/…"),
            ("ledger.url", "ipc:///srv/geth.ipc", "ipc:///srv/geth.ipc"),
            ("ledger.url", "http://127.0.0.1:8545/", "http://127.0.0.1:8545/"),
            ("keys.password_file", "/run/secrets/password", "/run/secrets/password"),
        ] {
            assert_eq!(address(path, text), expected, "{text}");
        }
        let text = |text: &str| ValueKind::String(text.to_owned());
        assert_eq!(shown("ipfs.api_token", &text("x")), HIDDEN);
        assert_eq!(shown("ipfs.token_file", &text("x")), "\"x\"");
    }
}
