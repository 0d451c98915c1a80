//! `[[custody]]`: where the bytes of which objects are kept for other sites. And what rules of any kind pick objects by.

use config::{Value, ValueKind};
use dicom_scp::{AeTitle, Uid};

use super::ae_title;
use super::derive::rows;
use super::reader::{Mistake, Section, list, one_of, parsed, text};

/// Which objects a rule is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Modalities (0008,0060); any when empty.
    pub modalities: Vec<String>,
    /// AE titles that sent them; any when empty.
    pub calling_ae: Vec<AeTitle>,
    /// Their SOP classes; any when empty.
    pub sop_classes: Vec<Uid>,
}

impl Selection {
    pub(super) fn read(s: &mut Section<'_>) -> Self {
        Self {
            modalities: s.take("modalities", Vec::new(), list(text)),
            calling_ae: s.take("calling_ae", Vec::new(), list(ae_title)),
            sop_classes: s.take("sop_classes", Vec::new(), list(parsed("a UID"))),
        }
    }

    /// Whether an object fits all that is named.
    #[must_use]
    pub fn takes(&self, modality: &str, calling_ae: &str, sop_class: &Uid) -> bool {
        let Self { modalities, calling_ae: senders, sop_classes } = self;
        let sender = AeTitle::new(calling_ae.trim()).ok();
        (modalities.is_empty() || modalities.iter().any(|known| known == modality))
            && (senders.is_empty() || sender.is_some_and(|sender| senders.contains(&sender)))
            && (sop_classes.is_empty() || sop_classes.contains(sop_class))
    }
}

/// Where an object's bytes are kept for other sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Custody {
    /// Encrypted, in pieces on the ledger.
    OnChain,
    /// Encrypted, in the IPFS nodes of this site and of those that may see them; their name is on the ledger.
    Ipfs,
    /// In this site's archive alone, which hands them out over ITI-43 and RAD-69.
    AtSource,
}

const WORDS: [(&str, Custody); 3] =
    [("on-chain", Custody::OnChain), ("ipfs", Custody::Ipfs), ("at-source", Custody::AtSource)];

/// `[[custody]]`: a rule that keeps some objects elsewhere than `publish.custody` says.
#[derive(Debug, Clone, PartialEq)]
pub struct CustodyRule {
    /// Which objects.
    pub selection: Selection,
    /// Where.
    pub keep: Custody,
}

pub(super) fn custody(value: &ValueKind) -> Result<Custody, String> {
    one_of(&WORDS)(value)
}

/// Reads `[[custody]]`.
pub(super) fn read_custody(value: Option<Value>, mistakes: &mut Vec<Mistake>) -> Vec<CustodyRule> {
    let mut rules = Vec::new();
    for (i, row) in rows("custody", value, mistakes).into_iter().enumerate() {
        let mut s = Section::open(format!("custody[{}]", i + 1), Some(row), mistakes);
        if !s.has("keep") {
            s.mistake("keep", "missing; \"on-chain\", \"ipfs\" or \"at-source\"");
        }
        let selection = Selection::read(&mut s);
        rules.push(CustodyRule { selection, keep: s.take("keep", Custody::OnChain, custody) });
        s.end();
    }
    rules
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::super::{Config, ConfigError};
    use super::*;

    const SERVED: &str = "[exchange]\nbind = \"127.0.0.1:0\"\n[xds]\nenabled = true\n";

    fn mistakes(toml: &str) -> String {
        match Config::parse(toml, HashMap::new()) {
            Err(ConfigError::Mistakes(found)) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let toml = format!(
            "{SERVED}[publish]\ncustody = \"on-chain\"\n[[custody]]\nkeep = \"on-chain\"\ncalling_ae = [\"SMALL\"]\n\
             [[custody]]\nkeep = \"at-source\"\nmodalities = [\"XA\"]\n"
        );
        let publish = Config::parse(&toml, HashMap::new()).unwrap().publish;
        let class = Uid::new("1.2.840.10008.5.1.4.1.1.12.1").unwrap();
        assert_eq!(publish.custody_of("XA", "CATH", &class), Custody::AtSource);
        assert_eq!(publish.custody_of("XA", " SMALL ", &class), Custody::OnChain);
        assert_eq!(publish.custody_of("CT", "CATH", &class), Custody::OnChain);
    }

    #[test]
    fn what_nobody_could_ever_fetch_is_a_mistake() {
        for toml in ["[publish]\ncustody = \"at-source\"\n", "[[custody]]\nkeep = \"at-source\"\n"] {
            assert!(mistakes(toml).contains("xds.enabled"), "{toml}");
            let archive_only = toml.replace("[publish]\n", "") + "[publish]\nenabled = false\n";
            if toml.starts_with("[[") {
                assert!(Config::parse(&archive_only, HashMap::new()).is_ok());
            }
        }
        assert!(mistakes("[[custody]]\nmodalities = [\"CT\"]\n").contains("custody[1].keep"));
        assert!(mistakes("[[custody]]\nkeep = \"ftp\"\n").contains("at-source"));
        let in_ipfs = "[[custody]]\nkeep = \"ipfs\"\n";
        assert!(mistakes(in_ipfs).contains("ipfs.api_url"));
        assert!(
            Config::parse(&format!("{in_ipfs}[ipfs]\napi_url = \"http://127.0.0.1:5001\"\n"), HashMap::new()).is_ok()
        );
    }
}
