//! `[[derive]]` and `[[group]]`: which studies are de-identified by themselves into studies of their own, whose those are, and who
//! is let in to them.

use std::path::PathBuf;

use config::{Value, ValueKind};
use contracts::messages::Purpose;

use super::custody::Selection;
use super::reader::{Mistake, Section, describe, flag, list, number, one_of, text};
use super::{account, optional_path, to_u32};

/// Longest name of a rule, a group or a research key, in characters.
const NAME_CHARS_MAX: usize = 32;
/// Longest grant of a group, in days: a hundred years.
const DAYS_MAX: u64 = 36_525;

/// `[[derive]]`: a rule by which studies are de-identified into studies of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct Derive {
    /// Its name, unique among rules. What was derived remembers it.
    pub name: String,
    /// Derive whatever matches as soon as it is final on the ledger; otherwise only when a command says so.
    pub automatic: bool,
    /// The objects that are taken.
    pub selection: Selection,
    /// Options of PS3.15 E.3, by the names of `pacs-bridge deidentify`.
    pub options: Vec<String>,
    /// File with the regions to blank.
    pub regions: Option<PathBuf>,
    /// File with the key of pseudonyms and UIDs, if it is not the one in the keystore.
    pub key_file: Option<PathBuf>,
    /// Who owns what is derived.
    pub owner: DeriveOwner,
    /// Commit to the lineage on the ledger.
    pub lineage_on_ledger: bool,
    /// Whether it is confidential; else everybody who reads the ledger can open it.
    pub encrypted: bool,
    /// Names of groups that are let in.
    pub groups: Vec<String>,
}

/// Who owns derived studies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeriveOwner {
    /// A key of each study's own, held by this site.
    Custody,
    /// A research key of this name, held by this site.
    Research(String),
    /// An account elsewhere.
    Account([u8; 20]),
}

/// `[[group]]`: sites that are let in together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, unique among groups.
    pub name: String,
    /// Accounts of its sites.
    pub grantees: Vec<[u8; 20]>,
    /// They see previews only.
    pub preview_only: bool,
    /// Number of a purpose ([`Purpose`]).
    pub purpose: u16,
    /// Days until a grant ends by itself; 0: never.
    pub days: u32,
}

/// Lower-case letters, digits and hyphens: such a name is a part of a file's name.
fn name(value: &ValueKind) -> Result<String, String> {
    let found = text(value)?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match (1..=NAME_CHARS_MAX).contains(&found.len()) && found.chars().all(fits) {
        true => Ok(found),
        false => {
            Err(format!("expected 1 to {NAME_CHARS_MAX} lower-case letters, digits and hyphens, found \"{found}\""))
        }
    }
}

fn owner(value: &ValueKind) -> Result<DeriveOwner, String> {
    let found = text(value)?;
    if found == "custody" {
        return Ok(DeriveOwner::Custody);
    }
    if let Some(key) = found.strip_prefix("research:") {
        return name(&ValueKind::String(key.to_owned())).map(DeriveOwner::Research);
    }
    account(value).map(DeriveOwner::Account).map_err(|_| {
        format!("expected \"custody\", \"research:NAME\" or an account of 40 hexadecimal digits, found \"{found}\"")
    })
}

fn purpose(value: &ValueKind) -> Result<u16, String> {
    let found = text(value)?;
    Purpose::from_code(&found).map(u16::from).ok_or_else(|| {
        let known: Vec<_> = Purpose::ALL.iter().map(|known| known.code()).collect();
        format!("expected one of {}, found \"{found}\"", known.join(", "))
    })
}

pub(super) fn rows(table: &str, value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Vec<Value> {
    match value.map(|v| v.kind) {
        None => Vec::new(),
        Some(ValueKind::Array(rows)) => rows,
        Some(other) => {
            let what = format!("expected a list of tables ([[{table}]] above each), found {}", describe(&other));
            mistakes.push(Mistake { key: table.into(), what });
            Vec::new()
        }
    }
}

/// Reads `[[group]]`.
pub(super) fn read_groups(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, row) in rows("group", value, mistakes).into_iter().enumerate() {
        let mut s = Section::open(format!("group[{}]", i + 1), Some(row), mistakes);
        for key in ["name", "grantees"] {
            if !s.has(key) {
                s.mistake(key, "missing");
            }
        }
        let group = Group {
            name: s.take("name", String::new(), name),
            grantees: s.take("grantees", Vec::new(), list(account)),
            preview_only: s.take("mode", false, one_of(&[("full", false), ("preview", true)])),
            purpose: s.take("purpose", Purpose::Research.into(), purpose),
            days: s.take("days", 365, |v| number(0, DAYS_MAX)(v).map(to_u32)),
        };
        if !group.name.is_empty() && groups.iter().any(|other| other.name == group.name) {
            s.mistake("name", format!("\"{}\" is named twice", group.name));
        }
        s.end();
        groups.push(group);
    }
    groups
}

/// Reads `[[derive]]`; `groups` are those that may be named.
pub(super) fn read_derive(
    value: Option<Value>,
    groups: &[Group],
    publishing: bool,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Derive> {
    let mut rules: Vec<Derive> = Vec::new();
    for (i, row) in rows("derive", value, mistakes).into_iter().enumerate() {
        let mut s = Section::open(format!("derive[{}]", i + 1), Some(row), mistakes);
        if !s.has("name") {
            s.mistake("name", "missing; what is derived remembers its rule by it");
        }
        let rule = read_rule(&mut s);
        check_rule(&mut s, &rule, &rules, groups, publishing);
        s.end();
        rules.push(rule);
    }
    rules
}

fn read_rule(s: &mut Section<'_>) -> Derive {
    Derive {
        name: s.take("name", String::new(), name),
        automatic: s.take("automatic", true, flag),
        selection: Selection::read(s),
        options: s.take("options", Vec::new(), list(text)),
        regions: s.take("regions", None, optional_path),
        key_file: s.take("key_file", None, optional_path),
        owner: s.take("owner", DeriveOwner::Custody, owner),
        lineage_on_ledger: s.take("lineage", true, one_of(&[("ledger", true), ("local", false)])),
        encrypted: s.take("encryption", true, one_of(&[("on", true), ("off", false)])),
        groups: s.take("groups", Vec::new(), list(name)),
    }
}

fn check_rule(s: &mut Section<'_>, rule: &Derive, before: &[Derive], groups: &[Group], publishing: bool) {
    if !rule.name.is_empty() && before.iter().any(|other| other.name == rule.name) {
        s.mistake("name", format!("\"{}\" is named twice", rule.name));
    }
    // Two rules with one key would make the same UIDs, for two studies of different content.
    if rule.key_file.is_some() && before.iter().any(|other| other.key_file == rule.key_file) {
        s.mistake("key_file", "is that of another rule; each rule needs a key of its own");
    }
    if rule.options.iter().any(|option| option == "retain-uids") {
        s.mistake("options", "retain-uids: a derived study needs UIDs of its own");
    }
    for unknown in rule.groups.iter().filter(|wanted| !groups.iter().any(|group| group.name == **wanted)) {
        s.mistake("groups", format!("no [[group]] is named \"{unknown}\""));
    }
    let mut grantees: Vec<_> =
        groups.iter().filter(|group| rule.groups.contains(&group.name)).flat_map(|group| &group.grantees).collect();
    grantees.sort_unstable();
    if grantees.windows(2).any(|pair| pair[0] == pair[1]) {
        s.mistake("groups", "one account is in them twice, and may be let in in one way only");
    }
    if !publishing {
        s.mistake("name", "is of no use while publish.enabled is false");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::super::{Config, ConfigError};
    use super::*;

    const GROUP: &str = "[[group]]\nname = \"registry\"\ngrantees = [\"0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266\"]\n";

    fn mistakes(toml: &str) -> String {
        match Config::parse(toml, HashMap::new()) {
            Err(ConfigError::Mistakes(found)) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn a_rule_is_read_with_its_group() {
        let toml = format!(
            "{GROUP}mode = \"preview\"\npurpose = \"HEDUCATION\"\ndays = 0\n[[derive]]\nname = \"heart\"\nmodalities = [\"CT\", \"MR\"]\n\
             calling_ae = [\"CT1\"]\nowner = \"research:heart-2026\"\nlineage = \"local\"\ngroups = [\"registry\"]\n"
        );
        let config = Config::parse(&toml, HashMap::new()).unwrap();
        let (rule, group) = (&config.derive[0], &config.groups[0]);
        assert_eq!((group.preview_only, group.purpose, group.days), (true, 9, 0));
        assert_eq!(group.grantees[0][..2], [0xf3, 0x9f]);
        assert_eq!(rule.owner, DeriveOwner::Research("heart-2026".into()));
        assert!(rule.automatic && !rule.lineage_on_ledger && rule.selection.modalities == ["CT", "MR"]);
    }

    #[test]
    fn what_would_let_in_the_wrong_ones_or_nobody_is_a_mistake() {
        let rule = "[[derive]]\nname = \"heart\"\n";
        for (toml, word) in [
            ("[[derive]]\n".to_owned(), "derive[1].name"),
            ("[[derive]]\nname = \"../heart\"\n".into(), "lower-case letters"),
            (format!("{rule}{rule}"), "named twice"),
            (format!("{rule}groups = [\"registry\"]\n"), "no [[group]]"),
            (
                format!("{GROUP}{}{rule}groups = [\"registry\", \"other\"]\n", GROUP.replace("registry", "other")),
                "twice",
            ),
            (format!("{rule}options = [\"retain-uids\"]\n"), "UIDs of its own"),
            (format!("{rule}key_file = \"k\"\n{}key_file = \"k\"\n", rule.replace("heart", "lung")), "another rule"),
            (format!("{rule}owner = \"me\"\n"), "derive[1].owner"),
            (format!("{rule}gruops = []\n"), "did you mean `groups`"),
            (format!("[publish]\nenabled = false\n{rule}"), "publish.enabled"),
            ("[[group]]\nname = \"registry\"\ngrantees = [\"0x12\"]\n".into(), "group[1].grantees"),
            (format!("{GROUP}purpose = \"FUN\"\n"), "HRESCH"),
        ] {
            assert!(mistakes(&toml).contains(word), "{toml}: {}", mistakes(&toml));
        }
    }
}
