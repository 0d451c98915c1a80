//! `[oidc]`: logins and tokens of an OpenID Connect issuer, over the port of `[http]`.

use std::path::PathBuf;
use std::time::Duration;

use config::{Value, ValueKind};

use super::reader::{Section, flag, list, number, text};
use super::{Mistake, is_plain_and_near, milliseconds, optional_path, origin};

/// Longest name of a claim, and longest text that one is compared with.
const TEXT_CHARS_MAX: usize = 256;

/// `[oidc]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oidc {
    /// The issuer, exactly as its tokens name it.
    pub issuer: String,
    /// What people call it.
    pub name: String,
    /// What is needed for logins to the pages, if there are any.
    pub client: Option<OidcClient>,
    /// Whom access tokens must be for, one of them; none: no access tokens.
    pub audiences: Vec<String>,
    /// Authorities that vouch for the issuer, PEM; those that this machine trusts when none is named.
    pub ca_file: Option<PathBuf>,
    /// The claim that tells people apart in the audit trail.
    pub subject_claim: String,
    /// The claim that pages call somebody by.
    pub name_claim: String,
    /// Longest time between an access token's making and its end, if that is limited.
    pub lifetime_max: Option<Duration>,
    /// Longest wait for an answer of the issuer.
    pub timeout: Duration,
    /// `[[oidc.principal]]`, in file order.
    pub rules: Vec<OidcRule>,
}

/// This site, as a client of the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcClient {
    /// `client_id`
    pub id: String,
    /// File whose first line is the client's secret; none for a public client.
    pub secret_file: Option<PathBuf>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// Whether the UserInfo endpoint is asked for what the ID token does not say.
    pub userinfo: bool,
    /// Where browsers find the pages, without a path; empty: by the name that they call.
    pub public_url: String,
}

/// `[[oidc.principal]]`: for whom somebody stands of whom the issuer says something. What `stands_for` and `rights` mean is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcRule {
    /// The claim.
    pub claim: String,
    /// What it must be, or have among its values; none: it is an account itself.
    pub value: Option<String>,
    /// The principal.
    pub stands_for: String,
    /// What is left of its rights; empty: all of them.
    pub rights: Vec<String>,
}

pub(super) fn read_oidc(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Option<Oidc> {
    let mut s = Section::open("oidc".into(), value, mistakes);
    let rules = s.take_value("principal");
    let issuer = s.take("issuer", String::new(), issuer);
    let mut oidc = Oidc {
        name: s.take("name", String::new(), short_text),
        client: read_client(&mut s),
        audiences: s.take("audiences", Vec::new(), list(some_text)),
        ca_file: s.take("ca_file", None, optional_path),
        subject_claim: s.take("subject_claim", "sub".to_owned(), some_text),
        name_claim: s.take("name_claim", "name".to_owned(), some_text),
        lifetime_max: s.take("lifetime_max_s", Some(Duration::from_secs(86_400)), |v| {
            Ok(Some(number(0, 31_536_000)(v)?).filter(|s| *s > 0).map(Duration::from_secs))
        }),
        timeout: s.take("timeout_ms", Duration::from_secs(5), milliseconds),
        rules: Vec::new(),
        issuer,
    };
    let is_used = oidc.client.is_some() || !oidc.audiences.is_empty() || rules.is_some();
    match (oidc.issuer.is_empty(), is_used) {
        (true, true) if s.is_right("issuer") => {
            s.mistake("issuer", "missing; without it the other keys of [oidc] are of no use");
        }
        (false, _) if oidc.client.is_none() && oidc.audiences.is_empty() => {
            let what = "missing, and so is audiences: give client_id for logins to the pages, audiences for access tokens, or both";
            s.mistake("client_id", what);
        }
        (false, _) if rules.is_none() => {
            let what =
                "missing; without a rule nobody stands for anybody: write [[oidc.principal]] with claim, value and as";
            s.mistake("principal", what);
        }
        _ => {}
    }
    s.end();
    oidc.rules = read_rules(rules, mistakes);
    if oidc.name.is_empty() {
        oidc.name = host(&oidc.issuer).to_owned();
    }
    (!oidc.issuer.is_empty()).then_some(oidc)
}

fn read_client(s: &mut Section<'_>) -> Option<OidcClient> {
    let plain = || vec!["openid".to_owned(), "profile".to_owned()];
    let client = OidcClient {
        id: s.take("client_id", String::new(), short_text),
        secret_file: s.take("client_secret_file", None, optional_path),
        scopes: s.take("scopes", plain(), list(scope)),
        userinfo: s.take("userinfo", false, flag),
        public_url: s.take("public_url", String::new(), public_url),
    };
    if client.id.is_empty() {
        if client.secret_file.is_some() || !client.public_url.is_empty() {
            s.mistake("client_id", "missing; client_secret_file and public_url are of no use without it");
        }
        return None;
    }
    if !client.scopes.iter().any(|scope| scope == "openid") {
        s.mistake("scopes", "\"openid\" is missing; without it the issuer says nothing about who somebody is");
    }
    Some(client)
}

fn read_rules(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Vec<OidcRule> {
    let rows = match value.map(|v| v.kind) {
        None => Vec::new(),
        Some(ValueKind::Array(rows)) => rows,
        Some(_) => {
            let what = "expected a list of tables: write [[oidc.principal]] above each".to_owned();
            mistakes.push(Mistake { key: "oidc.principal".into(), what });
            Vec::new()
        }
    };
    let mut rules = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        let mut s = Section::open(format!("oidc.principal[{}]", i + 1), Some(row), mistakes);
        for (key, what) in [
            ("claim", "missing; it names what the issuer says, such as \"groups\""),
            ("as", "missing; write \"operator\", \"peer:AETITLE\", \"account:0x…\" or \"account\""),
        ] {
            if !s.has(key) {
                s.mistake(key, what);
            }
        }
        rules.push(OidcRule {
            claim: s.take("claim", "sub".to_owned(), some_text),
            value: s.take("value", None, |v| short_text(v).map(|text| Some(text).filter(|text| !text.is_empty()))),
            stands_for: s.take("as", String::new(), short_text),
            rights: s.take("rights", Vec::new(), list(text)),
        });
        s.end();
    }
    rules
}

/// An issuer as OpenID Connect Discovery has it (3): nothing behind its path. In the clear on this machine only, since whoever answers in its
/// place says who everybody is.
fn issuer(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let rest = found.strip_prefix("https://").or_else(|| found.strip_prefix("http://")).unwrap_or_default();
    let is_plain = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && !"?#@\"<>\\".contains(c));
    let is_safe = found.starts_with("https://") || is_plain_and_near(&found);
    if found.is_empty() || is_plain && is_safe && !host(&found).is_empty() {
        return Ok(found);
    }
    Err(format!(
        "expected the issuer's https:// URL exactly as its discovery document names it, such as \"https://login.example/realms/hospital\" \
         (http:// on this machine only), found \"{found}\""
    ))
}

fn host(url: &str) -> &str {
    url.split_once("://").map_or("", |(_, rest)| rest).split(['/', '?', '#']).next().unwrap_or_default()
}

fn public_url(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    if found.is_empty() {
        return Ok(found);
    }
    let found = origin(v)?;
    if found.starts_with("https://") || is_plain_and_near(&found) {
        return Ok(found);
    }
    Err(format!("expected https://, since logins come back there, found \"{found}\""))
}

/// A scope token (RFC 6749 3.3).
fn scope(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    let is_one = |c: char| c.is_ascii_graphic() && !"\"\\".contains(c);
    if !found.is_empty() && found.len() <= TEXT_CHARS_MAX && found.chars().all(is_one) {
        return Ok(found);
    }
    Err(format!("expected scopes one by one, such as [\"openid\", \"groups\"], found \"{found}\""))
}

fn short_text(v: &ValueKind) -> Result<String, String> {
    let found = text(v)?;
    if found.chars().count() <= TEXT_CHARS_MAX && !found.chars().any(char::is_control) {
        return Ok(found);
    }
    Err(format!("expected at most {TEXT_CHARS_MAX} characters in one line"))
}

fn some_text(v: &ValueKind) -> Result<String, String> {
    match short_text(v)? {
        found if found.is_empty() => Err("expected a text that is not empty".to_owned()),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Config, ConfigError};
    use super::*;
    use std::collections::HashMap;

    const RULE: &str = "[[oidc.principal]]\nclaim = \"groups\"\nvalue = \"radiology\"\nas = \"operator\"\n";

    fn parse(toml: &str) -> Result<Option<Oidc>, String> {
        match Config::parse(toml, HashMap::new()) {
            Ok(config) => Ok(config.http.oidc),
            Err(ConfigError::Mistakes(all)) => Err(all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn there_is_no_issuer_unless_one_is_named() {
        assert_eq!(parse(""), Ok(None));
        let whole = format!("[oidc]\nissuer = \"https://login.example/realms/x\"\nclient_id = \"pacs\"\n{RULE}");
        let oidc = parse(&whole).unwrap().unwrap();
        assert_eq!((oidc.name.as_str(), oidc.rules.len(), oidc.audiences.len()), ("login.example", 1, 0));
        assert_eq!(oidc.client.unwrap().scopes, ["openid", "profile"]);
    }

    #[test]
    fn mistakes_name_the_key_and_say_what_to_write() {
        let issuer = "issuer = \"https://login.example\"\n";
        for (toml, parts) in [
            ("client_id = \"a\"\n".to_owned(), vec!["oidc.issuer: missing"]),
            (format!("{issuer}{RULE}"), vec!["oidc.client_id: missing, and so is audiences"]),
            (format!("{issuer}client_id = \"a\"\n"), vec!["oidc.principal: missing", "[[oidc.principal]]"]),
            (
                format!("{issuer}client_secret_file = \"a\"\naudiences = [\"b\"]\n{RULE}"),
                vec!["oidc.client_id: missing"],
            ),
            (format!("{issuer}client_id = \"a\"\nscopes = [\"profile\"]\n{RULE}"), vec!["oidc.scopes", "openid"]),
            (
                format!("{issuer}client_id = \"a\"\npublic_url = \"http://pacs.example\"\n{RULE}"),
                vec!["oidc.public_url"],
            ),
            (
                format!("{issuer}client_id = \"a\"\npublic_url = \"https://p.example/ui\"\n{RULE}"),
                vec!["oidc.public_url"],
            ),
            (
                format!("{issuer}client_id = \"a\"\n[[oidc.principal]]\nvalue = \"x\"\n"),
                vec!["principal[1].claim", "principal[1].as"],
            ),
            (format!("{issuer}client_id = \"a\"\nclient_secret = \"x\"\n{RULE}"), vec!["oidc.client_secret: unknown"]),
        ] {
            let found = parse(&format!("[oidc]\n{toml}")).unwrap_err();
            assert!(parts.iter().all(|part| found.contains(part)), "{parts:?} in {found}");
        }
        for wrong in
            ["http://login.example", "login.example", "https://", "https://a@b", "https://a/?b", "https://a/#b"]
        {
            let found = parse(&format!("[oidc]\nissuer = \"{wrong}\"\nclient_id = \"a\"\n{RULE}")).unwrap_err();
            assert!(found.contains("oidc.issuer: expected") && !found.contains("missing"), "{wrong}: {found}");
        }
        for near in ["http://127.0.0.1:3000", "http://[::1]:3000/x", "http://localhost:1"] {
            assert!(parse(&format!("[oidc]\nissuer = \"{near}\"\nclient_id = \"a\"\n{RULE}")).is_ok(), "{near}");
        }
    }
}
