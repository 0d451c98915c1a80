//! `[dicomweb]`: studies for viewers, over the port of `[http]`.

use std::path::PathBuf;

use config::{Value, ValueKind};
use dicom_scp::AeTitle;

use super::reader::{Section, flag, number, text};
use super::{Mistake, optional_path, to_u32};

/// Whom clients without a token stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anonymous {
    /// The ops person: they see everything.
    Operator,
    /// A `[[peer]]`, with what that may.
    Peer(AeTitle),
}

/// `[dicomweb]`
#[derive(Debug, Clone, PartialEq)]
pub struct Dicomweb {
    /// Whether it is served.
    pub enabled: bool,
    /// Where clients find it, without a slash at the end; empty: wherever they found it.
    pub public_url: String,
    /// Whom a client without a token stands for, if anybody.
    pub anonymous: Option<Anonymous>,
    /// Requests of one address a minute.
    pub requests_per_minute: u32,
    /// A folder of OHIF that is served beside it.
    pub ohif_dir: Option<PathBuf>,
}

impl Default for Dicomweb {
    fn default() -> Self {
        Self { enabled: true, public_url: String::new(), anonymous: None, requests_per_minute: 60_000, ohif_dir: None }
    }
}

/// `is_near`: only this machine reaches the port.
pub(super) fn read_dicomweb(value: Option<Value>, is_near: bool, mistakes: &mut Vec<Mistake>) -> Dicomweb {
    let mut s = Section::open("dicomweb".into(), value, mistakes);
    let plain = Dicomweb::default();
    let dicomweb = Dicomweb {
        enabled: s.take("enabled", plain.enabled, flag),
        public_url: s.take("public_url", plain.public_url, public_url),
        anonymous: s.take("anonymous", plain.anonymous, anonymous),
        requests_per_minute: s
            .take("requests_per_minute", plain.requests_per_minute, |v| number(1, 10_000_000)(v).map(to_u32)),
        ohif_dir: s.take("ohif_dir", plain.ohif_dir, optional_path),
    };
    let anywhere = s.take("anonymous_from_anywhere", false, flag);
    if dicomweb.anonymous.is_some() && !is_near && !anywhere {
        let what = "whoever reaches http.bind sees studies without a token, and that is not this machine alone; set \
                    anonymous_from_anywhere = true if that is meant, such as on a network of viewers alone";
        s.mistake("anonymous", what);
    }
    s.end();
    dicomweb
}

fn public_url(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let rest = found.strip_prefix("https://").or_else(|| found.strip_prefix("http://"));
    let plain = |rest: &str| {
        !rest.is_empty()
            && !rest.ends_with('/')
            && rest.chars().all(|c| c.is_ascii_graphic() && !"?#\"<>\\".contains(c))
    };
    match (found.is_empty(), rest.is_some_and(plain)) {
        (true, _) | (_, true) => Ok(found),
        _ => Err(format!(
            "expected a URL such as \"https://pacs.example/dicomweb\", without a slash at its end, found \"{found}\""
        )),
    }
}

fn anonymous(v: &ValueKind) -> Result<Option<Anonymous>, String> {
    let found = text(v)?;
    match found.split_once(':') {
        None if found.is_empty() => Ok(None),
        None if found == "operator" => Ok(Some(Anonymous::Operator)),
        Some(("peer", title)) => {
            AeTitle::new(title).map(|title| Some(Anonymous::Peer(title))).map_err(|error| error.to_string())
        }
        _ => Err(format!("expected \"operator\" or peer:AETITLE, found \"{found}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use std::collections::HashMap;

    fn mistakes(toml: &str) -> Vec<String> {
        match Config::parse(toml, HashMap::new()) {
            Err(ConfigError::Mistakes(all)) => all.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn nobody_is_let_in_without_a_token_from_elsewhere_unless_that_is_said() {
        assert!(mistakes("[dicomweb]\nanonymous = \"peer:VIEWER\"\n")[0].contains("[[peer]]"));
        let anonymous = "[dicomweb]\nanonymous = \"operator\"\n";
        for near in ["", "[http]\nbind = \"127.0.0.1:8080\"\n", "[http]\nbind = \"[::1]:0\"\n"] {
            assert_eq!(mistakes(&format!("{near}{anonymous}")), Vec::<String>::new());
        }
        for far in [
            "[http]\nbind = \"127.0.0.1:8080\"\nbehind_proxy = true\n",
            "[http]\nbind = \"0.0.0.0:8080\"\nbehind_proxy = true\n",
        ] {
            let found = mistakes(&format!("{far}{anonymous}"));
            assert!(found.len() == 1 && found[0].contains("anonymous_from_anywhere"), "{found:?}");
            assert_eq!(mistakes(&format!("{far}{anonymous}anonymous_from_anywhere = true\n")), Vec::<String>::new());
        }
        assert!(mistakes("[dicomweb]\nanonymous = \"everybody\"\n")[0].contains("operator"));
        for wrong in ["pacs.example", "https://", "https://a/", "ftp://a", "https://a/?b"] {
            assert!(mistakes(&format!("[dicomweb]\npublic_url = \"{wrong}\"\n"))[0].contains("slash"), "{wrong}");
        }
    }
}
