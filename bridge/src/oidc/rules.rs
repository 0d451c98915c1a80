//! For whom somebody stands of whom the issuer says something: the first rule that fits.

use alloy::primitives::Address;
use serde_json::{Map, Value};

use crate::access::{Caller, Principal, Right};
use crate::config::{Config, Mistake, OidcRule};
use crate::tokens::parse_principal;

/// Claims whose text is a list of words (RFC 8693 4.2; Microsoft Entra's `scp`).
const WORD_LISTS: [&str; 2] = ["scope", "scp"];

/// The rules.
#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    claim: String,
    fits: Fits,
    rights: Option<Vec<Right>>,
}

#[derive(Debug)]
enum Fits {
    /// The claim is this, or has it among its values.
    Value(String, Principal),
    /// The claim is the address of an account.
    Account,
}

impl Rules {
    /// The rules as configured, and what is wrong with them.
    pub(super) fn of(rules: &[OidcRule]) -> (Self, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let read = (1..).zip(rules).filter_map(|(number, rule)| {
            read(rule)
                .map_err(|(key, what)| {
                    mistakes.push(Mistake { key: format!("oidc.principal[{number}].{key}"), what });
                })
                .ok()
        });
        (Self(read.collect()), mistakes)
    }

    /// Whom the first rule that fits lets somebody stand for.
    pub(super) fn caller(&self, claims: &Map<String, Value>) -> Option<Caller> {
        self.0.iter().find_map(|rule| {
            let principal = rule.principal(claims)?;
            Some(Caller { principal, narrowed: rule.rights.clone() })
        })
    }
}

impl Rule {
    fn principal(&self, claims: &Map<String, Value>) -> Option<Principal> {
        let said = find(claims, &self.claim)?;
        match &self.fits {
            Fits::Value(wanted, principal) => {
                let is_list = WORD_LISTS.contains(&self.claim.as_str());
                has(said, wanted, is_list).then(|| principal.clone())
            }
            Fits::Account => account(said).map(Principal::Account),
        }
    }
}

/// A claim by its name, or else by the way to it, with dots between (`realm_access.roles`). Names may have dots themselves.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        find(claims.get(first)?.as_object()?, rest)
    })
}

fn has(said: &Value, wanted: &str, is_list: bool) -> bool {
    match said {
        Value::String(text) => text == wanted || is_list && text.split(' ').any(|word| word == wanted),
        Value::Bool(flag) => wanted == if *flag { "true" } else { "false" },
        Value::Array(all) => all.iter().any(|one| one == wanted),
        _ => false,
    }
}

/// An account that is written out; of two nobody can tell which is meant.
fn account(said: &Value) -> Option<Address> {
    let text = match said {
        Value::String(text) => text,
        Value::Array(all) => match all.as_slice() {
            [Value::String(text)] => text,
            _ => return None,
        },
        _ => return None,
    };
    let found: Address = text.starts_with("0x").then(|| text.parse().ok())??;
    (!found.is_zero()).then_some(found)
}

fn read(rule: &OidcRule) -> Result<Rule, (&'static str, String)> {
    let fits = match (rule.stands_for.as_str(), &rule.value) {
        ("account", None) => Fits::Account,
        ("account", Some(_)) => {
            let what = "of no use: as = \"account\" takes the account from the claim; write as = \"account:0x…\" for one account";
            return Err(("value", what.to_owned()));
        }
        (text, value) => {
            let principal = parse_principal(text).ok().filter(|found| !matches!(found, Principal::Shared(_)));
            let Some(principal) = principal else {
                let what = format!(
                    "expected \"operator\", \"peer:AETITLE\", \"account:0x…\" with 40 hexadecimal digits, or \"account\" where the claim \
                     is an account, found \"{text}\""
                );
                return Err(("as", what));
            };
            let Some(value) = value.clone() else {
                return Err(("value", "missing; it says what the claim must be, or have among its values".to_owned()));
            };
            Fits::Value(value, principal)
        }
    };
    let right = |name: &String| {
        Right::from_name(name).ok_or_else(|| {
            let known = Right::ALL.map(|right| format!("\"{}\"", right.name())).join(", ");
            ("rights", format!("expected some of {known}, found \"{name}\""))
        })
    };
    let rights = rule.rights.iter().map(right).collect::<Result<Vec<_>, _>>()?;
    Ok(Rule { claim: rule.claim.clone(), fits, rights: Some(rights).filter(|rights| !rights.is_empty()) })
}

/// What is wrong with the rules of a configuration, all of it.
pub(super) fn mistakes(config: &Config) -> Vec<Mistake> {
    let Some(oidc) = &config.http.oidc else { return Vec::new() };
    let (_, mut found) = Rules::of(&oidc.rules);
    for (number, rule) in (1..).zip(&oidc.rules) {
        if let Ok(Principal::Peer(title)) = parse_principal(&rule.stands_for)
            && !config.peers.iter().any(|peer| peer.ae_title == title)
        {
            let what = format!(
                "no [[peer]] has ae_title = \"{title}\", so nobody would see anything: add one with what it may"
            );
            found.push(Mistake { key: format!("oidc.principal[{number}].as"), what });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const ACCOUNT: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";

    fn rule(claim: &str, value: &str, stands_for: &str, rights: &[&str]) -> OidcRule {
        OidcRule {
            claim: claim.to_owned(),
            value: Some(value.to_owned()).filter(|value| !value.is_empty()),
            stands_for: stands_for.to_owned(),
            rights: rights.iter().map(ToString::to_string).collect(),
        }
    }

    fn rules() -> Rules {
        let (rules, mistakes) = Rules::of(&[
            rule("groups", "radiology", "operator", &["find", "retrieve"]),
            rule("realm_access.roles", "viewer", "peer:VIEWER", &[]),
            rule("https://h.example/roles", "viewer", "peer:DOTTED", &[]),
            rule("scope", "pacs.read", "peer:SCOPED", &[]),
            rule("patient_account", "", "account", &[]),
        ]);
        assert_eq!(mistakes, []);
        rules
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = rules();
        let whom = |claims: Value| rules.caller(claims.as_object().unwrap()).map(|caller| caller.principal);
        let peer = |title: &str| parse_principal(&format!("peer:{title}")).ok();
        assert_eq!(
            whom(json!({ "groups": ["x", "radiology"], "patient_account": ACCOUNT })),
            Some(Principal::Operator)
        );
        assert_eq!(whom(json!({ "groups": "radiology" })), Some(Principal::Operator));
        assert_eq!(whom(json!({ "realm_access": { "roles": ["viewer"] } })), peer("VIEWER"));
        assert_eq!(whom(json!({ "https://h.example/roles": ["viewer"] })), peer("DOTTED"));
        assert_eq!(whom(json!({ "scope": "openid pacs.read" })), peer("SCOPED"));
        assert_eq!(whom(json!({ "patient_account": [ACCOUNT] })), Some(Principal::Account(ACCOUNT.parse().unwrap())));
        for nobody in [
            json!({}),
            json!({ "groups": "radiology2" }),
            json!({ "groups": "x radiology" }),
            json!({ "groups": { "radiology": true } }),
            json!({ "groups": [["radiology"]] }),
            json!({ "groups": null }),
            json!({ "scope": "pacs.readonly" }),
            json!({ "patient_account": "" }),
            json!({ "patient_account": &ACCOUNT[2..] }),
            json!({ "patient_account": [ACCOUNT, ACCOUNT] }),
            json!({ "patient_account": "0x0000000000000000000000000000000000000000" }),
            json!({ "patient_account": 7 }),
        ] {
            assert_eq!(whom(nobody.clone()), None, "{nobody}");
        }
        let narrowed = rules.caller(json!({ "groups": "radiology" }).as_object().unwrap()).unwrap().narrowed;
        assert_eq!(narrowed, Some(vec![Right::Find, Right::Retrieve]));
    }

    #[test]
    fn wrong_rules_say_which_and_what_to_write() {
        for (wrong, key, part) in [
            (rule("groups", "x", "root", &[]), "as", "expected \"operator\""),
            (rule("groups", "x", "account:0x12", &[]), "as", "40 hexadecimal digits"),
            (rule("groups", "x", &format!("study:1.2@{ACCOUNT}"), &[]), "as", "expected"),
            (rule("groups", "", "operator", &[]), "value", "missing"),
            (rule("groups", "x", "account", &[]), "value", "account:0x…"),
            (rule("groups", "x", "operator", &["find", "all"]), "rights", "\"break-glass\""),
        ] {
            let (_, mistakes) = Rules::of(&[rule("a", "b", "operator", &[]), wrong]);
            assert_eq!(mistakes.len(), 1);
            assert_eq!(mistakes[0].key, format!("oidc.principal[2].{key}"));
            assert!(mistakes[0].what.contains(part), "{}", mistakes[0]);
        }
    }
}
