//! `[web]`: pages for people, over the port of `[http]`.

use std::time::Duration;

use config::Value;

use super::Mistake;
use super::reader::{Section, flag, number};

/// `[web]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// Whether pages are served.
    pub enabled: bool,
    /// How long somebody stays logged in.
    pub session: Duration,
}

impl Default for Web {
    fn default() -> Self {
        Self { enabled: true, session: Duration::from_secs(10 * 3600) }
    }
}

pub(super) fn read_web(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Web {
    let mut s = Section::open("web".into(), value, mistakes);
    let plain = Web::default();
    let minutes = |v: &config::ValueKind| number(1, 7 * 24 * 60)(v).map(|minutes| Duration::from_secs(60 * minutes));
    let web =
        Web { enabled: s.take("enabled", plain.enabled, flag), session: s.take("session_min", plain.session, minutes) };
    s.end();
    web
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Config, ConfigError};
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
}
