//! `[web]`: pages for people, over the port of `[http]`.

use std::collections::BTreeMap;
use std::time::Duration;

use alloy::primitives::Address;
use config::{Value, ValueKind};

use super::Mistake;
use super::reader::{Section, describe, flag, number, text};

/// Longest name of a site.
const NAME_CHARS_MAX: usize = 64;

/// `[web]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// Whether pages are served.
    pub enabled: bool,
    /// How long somebody stays logged in.
    pub session: Duration,
    /// What patients call the sites of the consortium, by their accounts.
    pub site_names: BTreeMap<Address, String>,
}

impl Default for Web {
    fn default() -> Self {
        Self { enabled: true, session: Duration::from_secs(10 * 3600), site_names: BTreeMap::new() }
    }
}

pub(super) fn read_web(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Web {
    let mut s = Section::open("web".into(), value, mistakes);
    let plain = Web::default();
    let minutes = |v: &config::ValueKind| number(1, 7 * 24 * 60)(v).map(|minutes| Duration::from_secs(60 * minutes));
    let web = Web {
        enabled: s.take("enabled", plain.enabled, flag),
        session: s.take("session_min", plain.session, minutes),
        site_names: s.take("site_names", plain.site_names, names),
    };
    s.end();
    web
}

/// A table of names by account.
fn names(value: &ValueKind) -> Result<BTreeMap<Address, String>, String> {
    let ValueKind::Table(table) = value else {
        return Err(format!("expected a table of names by account, found {}", describe(value)));
    };
    let named = table.iter().map(|(account, name)| {
        let account = account.parse::<Address>();
        let account = account.map_err(|_| "expected accounts, 0x and 40 hexadecimal digits, as keys".to_owned())?;
        let name = text(&name.kind)?.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(format!("expected a name of 1 to {NAME_CHARS_MAX} characters for {account}"));
        }
        Ok((account, name))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Config, ConfigError};
    use alloy::primitives::Address;
    use std::collections::HashMap;
    use std::time::Duration;

    #[test]
    fn people_stay_logged_in_for_a_shift_unless_that_is_said_otherwise() {
        let parse = |toml: &str| Config::parse(toml, HashMap::new());
        assert_eq!(parse("").unwrap().http.web.session, Duration::from_secs(36_000));
        assert_eq!(parse("[web]\nsession_min = 5\n").unwrap().http.web.session, Duration::from_secs(300));
        for wrong in ["session_min = 0", "session_min = 10081", "session_h = 1"] {
            let Err(ConfigError::Mistakes(found)) = parse(&format!("[web]\n{wrong}\n")) else { panic!("{wrong}") };
            assert!(found[0].to_string().starts_with("web.session_"), "{found:?}");
        }
    }

    #[test]
    fn sites_have_the_names_that_are_given_to_them() {
        let parse = |toml: &str| Config::parse(&format!("[web.site_names]\n{toml}\n"), HashMap::new());
        let account = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let web = parse(&format!("\"{account}\" = \"St Elsewhere, Radiology\"")).unwrap().http.web;
        assert_eq!(web.site_names[&account.parse::<Address>().unwrap()], "St Elsewhere, Radiology");
        for wrong in ["north = \"North\"", &format!("\"{account}\" = \" \""), &format!("\"{account}\" = 7")] {
            let Err(ConfigError::Mistakes(found)) = parse(wrong) else { panic!("{wrong}") };
            assert!(found[0].to_string().starts_with("web.site_names"), "{found:?}");
        }
    }
}
