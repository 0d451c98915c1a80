//! Rules, as they were configured: what they take, how it is cleaned, whose it is, who is let in. Pure but for [`Rule::open`].

use std::fs;

use alloy::primitives::Address;
use contracts::Allowance;

use super::DeriveError;
use super::store::Owner;
use crate::archive::Derivable;
use crate::config::{Derive, DeriveOwner, Group};
use crate::deidentify::{Deidentifier, Key, Options, Rules as Regions};
use crate::follow::Mode;
use crate::keyring::Keyring;

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// Somebody whom a rule lets in, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grantee {
    /// Its account.
    pub account: Address,
    /// What it sees.
    pub mode: Mode,
    /// Number of a purpose.
    pub purpose: u16,
    /// Seconds until the grant ends; none when it does not.
    pub lasts_s: Option<u64>,
}

impl Grantee {
    /// The owner's first word to this grantee about a study. Its number is 1, which the ledger takes only from an owner who has said
    /// nothing to the grantee yet: neither a revocation nor anything else can be overruled with it.
    #[must_use]
    pub fn first_word(
        &self,
        study: alloy::primitives::B256,
        encryption_key: alloy::primitives::B256,
        now_s: u64,
        deadline: u64,
    ) -> Allowance {
        Allowance {
            studyId: study,
            grantee: self.account,
            series: Default::default(),
            mode: self.mode.number(),
            notBefore: 0,
            notAfter: self.lasts_s.map_or(u64::MAX, |lasts| now_s.saturating_add(lasts)),
            purpose: self.purpose,
            notes: Default::default(),
            encryptionKey: encryption_key,
            seq: 1,
            deadline,
        }
    }
}

/// A rule, ready for use.
#[derive(Debug, Clone)]
pub struct Rule {
    settings: Derive,
    options: Options,
    regions: Regions,
    grantees: Vec<Grantee>,
}

/// A rule with its keys.
#[derive(Debug)]
pub(super) struct OpenRule {
    pub(super) rule: Rule,
    pub(super) deidentifier: Deidentifier,
    pub(super) owner: Owner,
}

impl Rule {
    /// Checks what the configuration alone cannot: the options and the regions.
    ///
    /// # Errors
    /// [`DeriveError::Rule`].
    pub fn new(settings: &Derive, groups: &[Group]) -> Result<Self, DeriveError> {
        let fail = |error: &(dyn std::error::Error + 'static)| DeriveError::Rule {
            rule: settings.name.clone(),
            words: crate::chain_of(error),
        };
        let options = Options::from_names(settings.options.iter().map(String::as_str)).map_err(|e| fail(&e))?;
        let regions = match &settings.regions {
            None => Regions::default(),
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|e| DeriveError::Io(file.clone(), e))?;
                Regions::parse(&text).map_err(|e| fail(&e))?
            }
        };
        let of_rule = groups.iter().filter(|group| settings.groups.contains(&group.name));
        let grantees = of_rule.flat_map(|group| {
            group.grantees.iter().map(|account| Grantee {
                account: Address::from(*account),
                mode: if group.preview_only { Mode::Preview } else { Mode::Full },
                purpose: group.purpose,
                lasts_s: (group.days > 0).then(|| u64::from(group.days) * DAY_S),
            })
        });
        Ok(Self { grantees: grantees.collect(), settings: settings.clone(), options, regions })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether it is applied without a command.
    #[must_use]
    pub fn is_automatic(&self) -> bool {
        self.settings.automatic
    }

    /// Who is let in.
    #[must_use]
    pub fn grantees(&self) -> &[Grantee] {
        &self.grantees
    }

    pub(super) fn lineage_on_ledger(&self) -> bool {
        self.settings.lineage_on_ledger
    }

    /// Whether an object is one of those that the rule takes.
    #[must_use]
    pub fn takes(&self, object: &Derivable) -> bool {
        self.settings.selection.takes(&object.modality, &object.calling_ae, &object.stored.sop_class)
    }

    /// Opens the keys that it needs. Blocks.
    pub(super) fn open(self, keyring: &Keyring) -> Result<OpenRule, DeriveError> {
        let key = keyring.group_key(&self.settings.name, self.settings.key_file.as_deref())?;
        let owner = match &self.settings.owner {
            DeriveOwner::Custody => Owner::Custody,
            DeriveOwner::Account(account) => Owner::Elsewhere(Address::from(*account)),
            DeriveOwner::Research(name) => Owner::Research(keyring.open_research_key(name)?),
        };
        let deidentifier = Deidentifier::new(Key::from_bytes(*key), self.options.clone(), self.regions.clone());
        Ok(OpenRule { rule: self, deidentifier, owner })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use alloy::primitives::B256;
    use dicom_scp::Uid;

    use super::*;
    use crate::archive::Stored;
    use crate::config::Config;

    const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

    fn rule(lines: &str) -> Result<Rule, DeriveError> {
        let toml = format!(
            "[[group]]\nname = \"near\"\ngrantees = [\"0x{:040x}\"]\ndays = 2\n[[group]]\nname = \"far\"\n\
             grantees = [\"0x{:040x}\"]\nmode = \"preview\"\ndays = 0\n[[derive]]\nname = \"r\"\n{lines}",
            1, 2
        );
        let config = Config::parse(&toml, HashMap::new()).unwrap();
        Rule::new(&config.derive[0], &config.groups)
    }

    fn object(modality: &str, calling_ae: &str, sop_class: &str) -> Derivable {
        let uid = |text| Uid::new(text).unwrap();
        let stored = Stored {
            id: 1,
            origin: 0,
            study_uid: uid("1.2"),
            series_uid: uid("1.2.3"),
            sop_class: uid(sop_class),
            sop_instance: uid("1.2.3.4"),
            transfer_syntax: uid("1.2.840.10008.1.2.1"),
            meta_bytes: 0,
            file_bytes: 0,
            file_sha256: [0; 32],
            file_crc32: None,
            path: None,
        };
        Derivable { stored, modality: modality.into(), calling_ae: calling_ae.into() }
    }

    #[test]
    fn an_object_is_taken_when_it_fits_all_that_is_named() {
        let all = rule("").unwrap();
        assert!(all.takes(&object("XX", "ANYBODY", "1.2.3.4.5")));
        let narrow = rule(&format!(
            "modalities = [\"CT\", \"MR\"]\ncalling_ae = [\"CT1\", \"CT 2\"]\nsop_classes = [\"{CT}\"]\n"
        ))
        .unwrap();
        assert!(narrow.takes(&object("CT", "CT1", CT)) && narrow.takes(&object("MR", "CT 2 ", CT)));
        for other in
            [object("US", "CT1", CT), object("CT", "CT3", CT), object("CT", "", CT), object("CT", "CT1", "1.2.3")]
        {
            assert!(!narrow.takes(&other), "{other:?}");
        }
    }

    #[test]
    fn only_groups_that_a_rule_names_are_let_in_and_only_with_the_owners_first_word() {
        assert!(rule("").unwrap().grantees().is_empty());
        let both = rule("groups = [\"far\", \"near\"]\n").unwrap();
        let words: Vec<_> =
            both.grantees().iter().map(|grantee| grantee.first_word(B256::ZERO, B256::ZERO, 1_000, 9)).collect();
        assert_eq!(words.iter().map(|word| word.seq).collect::<Vec<_>>(), [1, 1]);
        assert_eq!((words[0].mode, words[0].notAfter, words[0].purpose), (2, 1_000 + 2 * DAY_S, 3));
        assert_eq!((words[1].mode, words[1].notAfter), (1, u64::MAX));
    }

    #[test]
    fn what_deidentification_does_not_know_is_refused_before_anything_starts() {
        assert!(rule("options = [\"retain-names\"]\n").unwrap_err().to_string().contains("retain-names"));
        assert!(rule("regions = \"/nowhere/regions.toml\"\n").is_err());
        assert!(rule("options = [\"retain-modified-dates\", \"clean-descriptors\"]\n").is_ok());
    }
}
