//! What people call the sites of a consortium: as the configuration says, else by the host at which they answer, else by their account.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use maud::{Markup, html};

use super::words::short;
use crate::follow::SourceInfo;

/// The names of some sites.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Address, String>);

impl Names {
    /// `configured` names come first.
    pub(super) fn new(configured: &BTreeMap<Address, String>, sources: &[SourceInfo]) -> Self {
        let stated = sources.iter().filter_map(|source| Some((source.identity, host(&source.endpoint)?.to_owned())));
        let mut names: BTreeMap<_, _> = stated.collect();
        names.extend(configured.iter().map(|(account, name)| (*account, name.clone())));
        Self(names)
    }

    /// A site's name. Two may call themselves the same: whoever wants to be sure sees the account.
    pub(super) fn text(&self, account: Address) -> String {
        let account_text = account.to_string();
        match self.0.get(&account) {
            Some(name) if self.0.values().filter(|other| *other == name).count() == 1 => name.clone(),
            Some(name) => format!("{name} ({})", short(&account_text)),
            None => short(&account_text),
        }
    }

    pub(super) fn of(&self, account: Address) -> Markup {
        html! { b title=(account) { (self.text(account)) } }
    }
}

/// The host and port of a URL with a host.
fn host(endpoint: &str) -> Option<&str> {
    let (_, rest) = endpoint.split_once("://")?;
    rest.split(['/', '?', '#']).next().filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{B256, Bytes};

    fn source(number: u8, endpoint: &str) -> SourceInfo {
        SourceInfo {
            identity: Address::repeat_byte(number),
            endpoint: endpoint.to_owned(),
            tls_key: [0; 32],
            encryption_key: B256::ZERO,
            openpgp_key: Bytes::new(),
            defined: true,
            suspended: false,
            active: true,
        }
    }

    #[test]
    fn names_are_those_that_people_know() {
        let configured = BTreeMap::from([(Address::repeat_byte(1), "North".to_owned())]);
        let sources = [
            source(1, "https://one.example:8443/x"),
            source(2, "https://two.example/y"),
            source(3, "https://same.example"),
            source(4, "https://same.example"),
            source(5, "urn:none"),
        ];
        let names = Names::new(&configured, &sources);
        let of = |number| names.text(Address::repeat_byte(number));
        assert_eq!((of(1), of(2)), ("North".into(), "two.example".into()));
        assert_ne!(of(3), of(4), "two that call themselves the same are told apart");
        assert_eq!((of(5), of(6)), ("0x0505…0505".into(), "0x0606…0606".into()));
    }
}
