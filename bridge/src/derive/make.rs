//! From the objects of a study to those of the derived one: first all are de-identified, then all are stored.
//!
//! What was made is not kept in between: an object is made once to be judged and once to be stored, so that nothing
//! lies around of a study that is refused, and one object at a time is in memory.

use std::io::Read as _;

use alloy::primitives::B256;
use dicom_scp::Uid;
use rand::RngCore as _;
use sha2::{Digest, Sha256};

use super::{Begun, Derivation, DeriveError, Deriver, Lineage, MadeObjects, OpenRule, Outcome, Parts};
use crate::archive::{Accepted, ArchiveError, Derivable, FileMeta, ObjectHead, Stored};
use crate::deidentify::Deidentifier;
use crate::retrieve::Content;

/// Longest object that is derived, in bytes: it is in memory as a whole, twice.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// A de-identified object.
struct Made {
    file: Vec<u8>,
    sha256: [u8; 32],
    sop_instance: Uid,
    study: Uid,
}

impl Deriver {
    /// Derives the objects that the rule takes. Whatever is refused is remembered for this version of the study.
    pub(super) async fn derive_study(
        &self,
        rule: &OpenRule,
        study: &Uid,
        version: u32,
    ) -> Result<Outcome, DeriveError> {
        let _alone = self.0.parts.derived.pause().await;
        let derived = self.derive_alone(rule, study, version).await;
        if let Err(error) = &derived
            && error.is_refusal()
        {
            self.0.parts.derived.refuse(rule.rule.name(), study, version, &crate::chain_of(error))?;
        }
        derived
    }

    async fn derive_alone(&self, rule: &OpenRule, study: &Uid, version: u32) -> Result<Outcome, DeriveError> {
        let Parts { archive, derived, .. } = &self.0.parts;
        let name = rule.rule.name();
        if derived.of_rule(name, study)?.is_some_and(|known| known.is_ended()) {
            return Err(DeriveError::Ended { rule: name.to_owned(), study: *study });
        }
        let objects: Vec<Derivable> =
            archive.derivable(study)?.into_iter().filter(|object| rule.rule.takes(object)).collect();
        let (into, made) = self.judge(rule, study, &objects).await?;
        let known = derived.begin(&Begun {
            rule: name,
            parent: *study,
            derived: into,
            owner: rule.owner,
            lineage: self.lineage(rule, study)?,
            objects: &made,
        })?;
        let new = self.store(rule, &known, &objects).await?;
        derived.finish(&known, version)?;
        self.say_later(&known);
        Ok(Outcome { rule: name.to_owned(), study: into.to_string(), objects: made.len(), new })
    }

    /// De-identifies every object, and keeps nothing but what is to be known of the results.
    async fn judge(
        &self,
        rule: &OpenRule,
        study: &Uid,
        objects: &[Derivable],
    ) -> Result<(Uid, MadeObjects), DeriveError> {
        let (mut into, mut all) = (None, MadeObjects::new());
        for object in objects {
            let made = self.make(&rule.deidentifier, &object.stored).await?;
            if *into.get_or_insert(made.study) != made.study {
                return Err(DeriveError::Unfit("the objects would become several studies".into()));
            }
            all.insert((made.sop_instance, made.sha256));
        }
        let nothing = || DeriveError::NothingTaken { rule: rule.rule.name().to_owned(), study: *study };
        let into = into.ok_or_else(nothing)?;
        self.check_new_name(rule, study, &into)?;
        self.check_same_content(&all)?;
        Ok((into, all))
    }

    /// A derived study must not get mixed up with another.
    fn check_new_name(&self, rule: &OpenRule, study: &Uid, into: &Uid) -> Result<(), DeriveError> {
        let Parts { archive, derived, .. } = &self.0.parts;
        if into == study {
            return Err(DeriveError::Unfit(
                "the study was de-identified under the rule's key before it came here".into(),
            ));
        }
        match derived.of_derived(into)? {
            Some(known) if known.rule() == rule.rule.name() && known.parent() == Some(study) => Ok(()),
            Some(known) => {
                let of =
                    known.parent().map_or_else(|| "a study that was erased".to_owned(), |of| format!("study {of}"));
                Err(DeriveError::Unfit(format!("study {into} was derived from {of} by rule {}", known.rule())))
            }
            None if archive.derivable(into)?.is_empty() => Ok(()),
            None => Err(DeriveError::Unfit(format!("study {into} was received from elsewhere"))),
        }
    }

    /// The same name must not stand for two contents, unless the archive was told to let the new one take the old one's place.
    fn check_same_content(&self, all: &MadeObjects) -> Result<(), DeriveError> {
        for (sop_instance, sha256) in all {
            let stored = self.0.parts.archive.received_instance(sop_instance)?;
            if stored.is_some_and(|stored| stored.file_sha256 != *sha256) && !self.0.parts.archive.replaces() {
                return Err(DeriveError::Differs(*sop_instance));
            }
        }
        Ok(())
    }

    fn lineage(&self, rule: &OpenRule, study: &Uid) -> Result<Option<Lineage>, DeriveError> {
        if !rule.rule.lineage_on_ledger() {
            return Ok(None);
        }
        let publication = self.0.parts.archive.publication(study)?.ok_or(DeriveError::NotFinal(*study))?;
        let mut salt = B256::ZERO;
        rand::rngs::OsRng.fill_bytes(&mut salt.0);
        Ok(Some(Lineage { parent: publication.study_id, salt }))
    }

    /// Stores every object that is not here yet; returns how many that were.
    async fn store(&self, rule: &OpenRule, known: &Derivation, objects: &[Derivable]) -> Result<usize, DeriveError> {
        let announced = self.0.parts.derived.objects(known)?;
        let mut new = 0;
        for object in objects {
            let made = self.make(&rule.deidentifier, &object.stored).await?;
            if !announced.contains(&(made.sop_instance, made.sha256)) {
                return Err(DeriveError::Differs(made.sop_instance));
            }
            let stored = self.0.parts.archive.received_instance(&made.sop_instance)?;
            // An object that was evicted stays so.
            if stored.is_none_or(|stored| stored.file_sha256 != made.sha256) {
                new += usize::from(self.take_in(&made).await? != Accepted::Same);
            }
        }
        Ok(new)
    }

    async fn take_in(&self, made: &Made) -> Result<Accepted, DeriveError> {
        let unreadable = |e| ArchiveError::Undecodable(crate::chain_of(&e));
        let (meta, begin) = FileMeta::read(&mut made.file.as_slice()).map_err(unreadable)?;
        let head = ObjectHead {
            sop_class: meta.sop_class,
            sop_instance: meta.sop_instance,
            transfer_syntax: meta.transfer_syntax,
            calling_ae: self.0.parts.ae_title.clone(),
        };
        let mut incoming = self.0.parts.archive.begin_made(head)?;
        incoming.append(made.file.get(usize::try_from(begin).unwrap_or(usize::MAX)..).unwrap_or_default())?;
        Ok(incoming.finish().await?)
    }

    /// Reads an object, proven to be what was received, and de-identifies it.
    async fn make(&self, deidentifier: &Deidentifier, stored: &Stored) -> Result<Made, DeriveError> {
        if stored.file_bytes > OBJECT_BYTES_MAX {
            let words = format!("object {} is longer than {OBJECT_BYTES_MAX} bytes", stored.sop_instance);
            return Err(DeriveError::Unfit(words));
        }
        let opened = self.0.parts.retrieve.open(stored).await?;
        let (deidentifier, stored) = (deidentifier.clone(), stored.clone());
        let work = tokio::task::spawn_blocking(move || {
            let file = whole_file(&stored, opened.content)?;
            let refused = |why| DeriveError::Refused { object: stored.sop_instance, why };
            let (file, report) = deidentifier.file(&file).map_err(refused)?;
            let no_study = || DeriveError::Unfit(format!("object {} has no study", stored.sop_instance));
            Ok(Made {
                sha256: Sha256::digest(&file).into(),
                sop_instance: report.sop_instance,
                study: report.study_instance.ok_or_else(no_study)?,
                file,
            })
        });
        work.await.map_err(|_| DeriveError::Gone)?
    }
}

fn whole_file(stored: &Stored, content: Content) -> Result<Vec<u8>, DeriveError> {
    let meta = FileMeta {
        sop_class: stored.sop_class,
        sop_instance: stored.sop_instance,
        transfer_syntax: stored.transfer_syntax,
    };
    let mut file = meta.encode();
    match content {
        Content::Whole(bytes) => file.extend_from_slice(&bytes),
        Content::File(mut from) => {
            let read = from.read_to_end(&mut file);
            read.map_err(|e| ArchiveError::Io("reading an object".to_owned(), e))?;
        }
    }
    Ok(file)
}
