//! Takes a site from the ledger before to the one that its configuration names now.
//!
//! 1. The ledger before is opened and followed to its end. 2. Every object is opened, so that what was evicted is here again and what is damaged
//!    is mended while that can be done, and everything is sealed once, to prove that it gives the bytes that the manifests name. 3. What
//!    owners said there is kept, to be said again. 4. Whoever was shut out there must not have the key of what is sealed from now on. 5. What
//!    was seen there is forgotten. 6. The ledger's files are set aside.
//!
//! Until 6 the site can go on as before, and the next try begins at 1: nothing of it does harm when it is done twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256};
use alloy::sol_types::SolCall as _;
use alloy::transports::http::reqwest::Url;
use contracts::Studies;

use super::{Config, Core, Following, LedgerKind, StartError, blocking, endpoints, lock, source_account};
use crate::archive::{ArchiveError, Publication, now_ms};
use crate::derive::{DeriveError, Owner};
use crate::follow::{Chain, Consents, FollowError};
use crate::keyring::{Keyring, KeyringError, sync_dir};
use crate::ledger::node::{Ask, At, Node as _, NodeError};
use crate::ledger::pieces::{PIECE_OVERHEAD_BYTES, payload_bytes_max};
use crate::ledger::{Endpoints, Ledger, Watch};
use crate::payload::keys::SessionKey;
use crate::promote::{Word, WordsError, shut_out, words};

/// Directory of the ledger in the data directory.
const LEDGER: &str = "ledger";
/// Longest wait for what is in flight on the ledger before, and for the next block of it to be followed.
const STEP_MAX: Duration = Duration::from_secs(120);
/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Reasons against a promotion that are named.
const NAMED_MAX: usize = 20;

/// Where a site comes from.
#[derive(Debug, Clone, Default)]
pub struct Before {
    /// A node of the ledger before; none for the embedded ledger in the data directory.
    pub url: Option<String>,
    /// Account that administered the consortium there, where that cannot be told.
    pub admin: Option<Address>,
}

/// What a promotion came to.
#[derive(Debug, Clone)]
pub struct Promoted {
    /// Chain id of the ledger before.
    pub chain_id: u64,
    /// Hash of its block 0.
    pub genesis: B256,
    /// Where what is here of it was set aside.
    pub kept: PathBuf,
    /// Studies that are to be published again.
    pub studies: u64,
    /// Their objects, all of which are here and whole.
    pub objects: u64,
    /// Words that are to be said again.
    pub words: u64,
    /// Studies that go to owners elsewhere, whose guardians and devices these have to name again.
    pub elsewhere: u64,
}

/// Why a site stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The operator: it is not said where to go.
    #[error(
        "ledger.kind is \"embedded\": name the ledger to go to in the configuration first (ledger.kind = \"rpc\", ledger.url, ledger.chain_id)"
    )]
    Nowhere,
    /// The operator: there is nothing to come from.
    #[error("there is no embedded ledger at {0}; --from names a node of another ledger to come from")]
    Nothing(PathBuf),
    /// The operator: this site was on no ledger by its node, or has left it.
    #[error("there is no journal in {0}: this site was not on a ledger by its node, or has left it already")]
    NoJournal(PathBuf),
    /// The operator: not a URL.
    #[error("--from {0} is not a URL")]
    Url(String),
    /// A node does not answer.
    #[error("the node of the ledger {which} does not answer: {why}")]
    Away {
        /// `before` or `to go to`.
        which: &'static str,
        /// Why.
        why: String,
    },
    /// The operator: the configuration and the node do not agree.
    #[error("the node at ledger.url has chain id {found}; ledger.chain_id is {wanted}")]
    ChainId {
        /// What the node says.
        found: u64,
        /// What is configured.
        wanted: u64,
    },
    /// The operator: it is there already.
    #[error("ledger.url is a node of the ledger to come from")]
    Same,
    /// The consortium: what was signed for one ledger would be good on the other.
    #[error(
        "both ledgers have chain id {0}, so that what was signed for one is good on the other: make the network with another one"
    )]
    SameId(u64),
    /// The operator: an earlier promotion is not over.
    #[error(
        "{0} words of the ledger before that one are left to be said (`pacs-bridge status`): run the bridge there until they are"
    )]
    Pending(u64),
    /// The operator: the contracts cannot be found.
    #[error(
        "who administered the consortium of the ledger before is not known here; name the account with --from-admin"
    )]
    Admin,
    /// The operator: the ledger before is not finished.
    #[error("the ledger before does not get on: {0}; nothing was changed")]
    Unfinished(&'static str),
    /// The operator: something must be put right first.
    #[error("nothing was changed, because of\n  {}", .0.join("\n  "))]
    Unfit(Vec<String>),
    /// The site cannot be opened on the ledger before.
    #[error("the site cannot be opened on the ledger before; nothing was changed")]
    Open(#[from] Box<StartError>),
    /// The embedded ledger's file cannot be read.
    #[error("the embedded ledger")]
    Embedded(#[from] embedded_ledger::StoreError),
    /// The archive failed.
    #[error("the archive; run this again")]
    Archive(#[from] ArchiveError),
    /// The keyring failed.
    #[error("the keyring; run this again")]
    Keyring(#[from] KeyringError),
    /// The record of derived studies cannot be read.
    #[error("derived studies; run this again")]
    Derived(#[from] DeriveError),
    /// The consents cannot be read.
    #[error("the consents; run this again")]
    Follow(#[from] FollowError),
    /// The words cannot be kept.
    #[error("run this again")]
    Words(#[from] WordsError),
    /// The ledger's files cannot be set aside.
    #[error("cannot move {0}; run this again")]
    SetAside(PathBuf, #[source] std::io::Error),
}

/// One study on its way.
struct Leaving {
    publication: Publication,
    words: Vec<Word>,
    withdrawn: Vec<(Address, u32)>,
    /// Somebody may hold keys who is let in no more.
    shut_out: bool,
    elsewhere: bool,
}

/// The ledger to go to.
struct There {
    node: Endpoints,
    genesis: B256,
    /// Account that administers the consortium; this site's own when none is configured.
    admin: Option<Address>,
}

impl Core {
    /// Takes a site that does not run from the ledger before to the one that is configured.
    ///
    /// # Errors
    /// [`PromoteError`]; the site is where it was then.
    pub async fn promote(config: Config, before: Before) -> Result<Promoted, PromoteError> {
        if config.ledger.kind == LedgerKind::Embedded {
            return Err(PromoteError::Nowhere);
        }
        let dir = config.site.data_dir.clone();
        let closed = lock(&dir).map_err(Box::new)?;
        let there = there(&config).await?;
        let settings = settings_before(&config, &before, there.genesis).await?;
        drop(closed);
        if settings.ledger.chain_id == config.ledger.chain_id {
            return Err(PromoteError::SameId(config.ledger.chain_id));
        }
        let core = Self::open_leaving(settings).await.map_err(Box::new)?;
        let left = core.leave(&there).await;
        core.close().await;
        let promoted = left?;
        // Whoever came between with the ledger before found all of it there, and whoever came with the other one was refused.
        let _lock = lock(&dir).map_err(Box::new)?;
        set_aside(&dir.join(LEDGER), &promoted.kept)?;
        Ok(promoted)
    }

    async fn leave(&self, there: &There) -> Result<Promoted, PromoteError> {
        let away = |why: String| PromoteError::Away { which: "before", why };
        let ledger = self.slot.get().ok_or_else(|| away("no answer in time".into()))?.clone();
        let genesis = genesis(ledger.node()).await.map_err(|e| away(e.to_string()))?;
        let left = self.words.left()?.words;
        if left > 0 && self.words.origin()? != Some(genesis) {
            return Err(PromoteError::Pending(left));
        }
        self.follow_to_the_end(&ledger).await?;
        let leaving = self.leaving()?;
        none_there(there, source_account(&self.config.ledger, &self.keyring), &leaving).await?;
        let objects = self.all_here(&leaving).await?;
        self.all_seals_again(&leaving).await?;
        let said: Vec<(B256, Word)> = leaving
            .iter()
            .flat_map(|study| study.words.iter().map(|word| (study.publication.study_id, word.clone())))
            .collect();
        self.words.replace(genesis, &said)?;
        for study in &leaving {
            begin_keys(&self.keyring, study)?;
        }
        self.forget_granted().await?;
        self.site.archive().publish_again(self.config.publish.piece_mode).await?;
        let chain_id = ledger.chain_id();
        Ok(Promoted {
            chain_id,
            genesis,
            kept: free_name(&self.config.site.data_dir, chain_id, genesis),
            studies: leaving.len() as u64,
            objects,
            words: said.len() as u64,
            elsewhere: leaving.iter().filter(|study| study.elsewhere).count() as u64,
        })
    }

    /// Waits until nothing of this site is in flight and everything that was said is known here.
    async fn follow_to_the_end(&self, ledger: &Ledger) -> Result<(), PromoteError> {
        let in_flight = PromoteError::Unfinished("transactions of this site are in flight");
        tokio::time::timeout(STEP_MAX, ledger.settled()).await.map_err(|_| in_flight)?;
        let follow = Following { consents: self.consents.clone(), wake: self.follow_wake.clone() };
        self.tasks.spawn(follow.run(ledger.clone(), self.background.clone()));
        let followed = self.consents.followed();
        let (mut at, mut since) = (None, Instant::now());
        while !self.consents.is_current(ledger.now_s()) {
            tokio::time::sleep(LOOK).await;
            let now_at = *followed.borrow();
            if now_at != at {
                (at, since) = (now_at, Instant::now());
            } else if since.elapsed() > STEP_MAX {
                return Err(PromoteError::Unfinished("its blocks cannot be read"));
            }
        }
        Ok(())
    }

    /// What every study takes along, if all of them can go.
    fn leaving(&self) -> Result<Vec<Leaving>, PromoteError> {
        let archive = self.site.archive();
        let mut unfit: Vec<String> = Vec::new();
        if !archive.erasures()?.is_empty() {
            unfit.push("an erasure that is not finished: run the bridge on the ledger before until it is".to_owned());
        }
        let mut leaving = Vec::new();
        for publication in archive.publications()? {
            let uid = publication.study_uid;
            match self.leaving_one(publication)? {
                Ok(study) => leaving.push(study),
                Err(why) => unfit.push(format!("study {uid}: {why}")),
            }
        }
        if unfit.is_empty() { Ok(leaving) } else { Err(PromoteError::Unfit(shortened(unfit))) }
    }

    fn leaving_one(&self, publication: Publication) -> Result<Result<Leaving, String>, PromoteError> {
        let (id, uid) = (publication.study_id, publication.study_uid);
        let Some(keys) = self.keyring.study(&uid)? else { return Ok(Err("it has no keys".to_owned())) };
        if self.site.archive().is_in_outbox(&uid)? {
            let why = "it has objects that no version has yet: run the bridge on the ledger before until it is final";
            return Ok(Err(why.to_owned()));
        }
        let needed = self.site.archive().needed_images(&publication)?;
        if needed.iter().any(|image| !image.is_current) {
            let why = "an object of its newest version was replaced by one of another study; send it again, or erase the study";
            return Ok(Err(why.to_owned()));
        }
        let fits = payload_bytes_max(self.config.publish.piece_mode) - PIECE_OVERHEAD_BYTES;
        if needed.iter().any(|image| image.piece_bytes as usize > fits) {
            let why = "its pieces are larger than one transaction of publish.piece_mode takes: keep the mode of before";
            return Ok(Err(why.to_owned()));
        }
        let Some(info) = self.consents.study(id)? else {
            // It had not come as far as the ledger.
            let (words, withdrawn) = (Vec::new(), Vec::new());
            return Ok(Ok(Leaving { publication, words, withdrawn, shut_out: false, elsewhere: false }));
        };
        if info.tombstoned {
            let why =
                format!("its owner has ended it; erase it first (`pacs-bridge erase {uid}`, on the ledger before)");
            return Ok(Err(why));
        }
        let defined_for =
            match self.site.parts().deriver.derived().of_derived(&uid)?.map(|derivation| derivation.owner()) {
                Some(Owner::Research(owner)) => owner,
                None | Some(Owner::Custody | Owner::Elsewhere(_)) => self.keyring.owner(keys.owner_index)?.address(),
            };
        let owner = (info.owner != defined_for).then_some((info.owner, info.custodial));
        let elsewhere = self.keyring.custody_key(keys.owner_index, info.owner)?.is_none();
        let now_s = u64::try_from(now_ms() / 1000).unwrap_or(0);
        let history = self.consents.history(id)?;
        let words = words(&history, &self.consents.grants_of(id)?, owner, now_s);
        let shut_out = shut_out(&history, &words);
        let withdrawn = self.consents.withdrawals(id)?;
        Ok(Ok(Leaving { publication, words, withdrawn, shut_out, elsewhere }))
    }

    /// Opens every object; what is not here or damaged comes from the ledger before. Returns how many there are.
    async fn all_here(&self, leaving: &[Leaving]) -> Result<u64, PromoteError> {
        let (archive, retrieve) = (self.site.archive(), self.site.retrieve());
        let (mut objects, mut unfit) = (0, Vec::new());
        for (number, study) in leaving.iter().enumerate() {
            let instances = archive.received_instances_of(&study.publication.study_uid)?;
            tracing::info!(
                study = number + 1,
                of = leaving.len(),
                objects = instances.len(),
                "looking at a study's objects"
            );
            for stored in instances {
                objects += 1;
                if let Err(error) = retrieve.open_file(&stored).await {
                    unfit.push(format!("object {}: {}", stored.sop_instance, crate::chain_of(&error)));
                }
            }
        }
        retrieve.settle().await;
        // Whatever could not be made durable is not here.
        for study in leaving {
            let instances = archive.received_instances_of(&study.publication.study_uid)?;
            let gone = instances.into_iter().filter(|stored| stored.path.is_none());
            unfit.extend(gone.map(|stored| format!("object {}: its file could not be kept", stored.sop_instance)));
        }
        if unfit.is_empty() { Ok(objects) } else { Err(PromoteError::Unfit(shortened(unfit))) }
    }

    /// Seals everything that is to be published, and compares it with what the manifests name: the ledger before is the last to have it.
    async fn all_seals_again(&self, leaving: &[Leaving]) -> Result<(), PromoteError> {
        let mut unfit = Vec::new();
        for study in leaving {
            let uid = study.publication.study_uid;
            for needed in self.site.archive().needed_images(&study.publication)? {
                let (assembler, image) = (self.assembler.clone(), needed.image);
                let sealed = blocking(move || {
                    let sealed = assembler.open_sealed(&uid, &image).map(drop);
                    assembler.forget_sealed(&[image]);
                    sealed
                });
                if let Err(error) = sealed.await.map_err(Box::new)? {
                    unfit.push(format!("study {uid}: {}", crate::chain_of(&error)));
                    break;
                }
            }
        }
        if unfit.is_empty() { Ok(()) } else { Err(PromoteError::Unfit(shortened(unfit))) }
    }

    /// Takes away what came with grants of the ledger before; where they are said again it comes again.
    async fn forget_granted(&self) -> Result<(), PromoteError> {
        for study in self.site.archive().foreign_studies()? {
            self.site.archive().remove_foreign(study.study_id).await?;
        }
        for study in self.keyring.foreign_studies()? {
            self.keyring.forget_foreign(study)?;
        }
        Ok(())
    }
}

/// Begins an epoch for a study from which somebody was shut out since the last one, or who may hold keys and is let in no more; and forgets by which
/// words epochs began: their numbers begin anew.
fn begin_keys(keyring: &Keyring, study: &Leaving) -> Result<(), PromoteError> {
    let uid = &study.publication.study_uid;
    let before = keyring.study(uid)?.map(|keys| keys.epoch());
    let now = keyring.study_after(uid, &study.withdrawn)?.epoch();
    if study.shut_out && before == Some(now) {
        keyring.begin_epoch(uid, &SessionKey::random())?;
    }
    Ok(keyring.forget_reasons(uid)?)
}

/// Refuses to go where one of the studies is already: there may be newer words about it than those that are carried over, or somebody has taken its name.
async fn none_there(there: &There, own: Address, leaving: &[Leaving]) -> Result<(), PromoteError> {
    let away = |e: NodeError| PromoteError::Away { which: "to go to", why: e.to_string() };
    let studies = contracts::deployment::addresses(there.admin.unwrap_or(own)).studies;
    if there.node.code(studies).await.map_err(away)?.is_empty() {
        // The contracts are not there yet.
        return Ok(());
    }
    let mut unfit = Vec::new();
    for study in leaving {
        let id = study.publication.study_id;
        let call = Studies::getStudyCall { studyId: id };
        let ask = Ask { from: own, to: studies, data: call.abi_encode().into() };
        let answer = there.node.call(ask, At::Latest).await.map_err(away)?;
        let known = Studies::getStudyCall::abi_decode_returns(&answer);
        let known = known.map_err(|e| PromoteError::Away { which: "to go to", why: e.to_string() })?;
        if !known.owner.is_zero() {
            let uid = study.publication.study_uid;
            unfit.push(format!("study {uid}: {id} is on the ledger to go to already, by source {}", known.source));
        }
    }
    if unfit.is_empty() { Ok(()) } else { Err(PromoteError::Unfit(shortened(unfit))) }
}

/// Where the ledger before is set aside, a name that nothing has.
fn free_name(data_dir: &Path, chain_id: u64, genesis: B256) -> PathBuf {
    let name = format!("{LEDGER}-of-chain-{chain_id}-{}", alloy::primitives::hex::encode(&genesis[..4]));
    let names = std::iter::once(name.clone()).chain((2..).map(|number: u32| format!("{name}-{number}")));
    let mut paths = names.map(|name| data_dir.join(name));
    paths.find(|path| !path.exists()).unwrap_or_else(|| data_dir.join(name))
}

fn shortened(mut reasons: Vec<String>) -> Vec<String> {
    let more = reasons.len().saturating_sub(NAMED_MAX);
    reasons.truncate(NAMED_MAX);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    reasons
}

/// The site's configuration as it was on the ledger before, as far as that matters.
async fn settings_before(config: &Config, before: &Before, target: B256) -> Result<Config, PromoteError> {
    let mut settings = config.clone();
    let ledger = &mut settings.ledger;
    // What was said last counts, also where a block could still leave the chain: it is being left.
    (ledger.confirmations, ledger.head_age_max, ledger.deploy) = (1, None, false);
    (ledger.fallback_urls, ledger.rpc_bind, ledger.block_period) = (Vec::new(), None, None);
    match &before.url {
        None => {
            let file = config.site.data_dir.join(LEDGER).join("chain.redb");
            if !file.is_file() {
                return Err(PromoteError::Nothing(file));
            }
            let read = file.clone();
            let found = blocking(move || embedded_ledger::chain_id_of(&read)).await.map_err(Box::new)??;
            ledger.kind = LedgerKind::Embedded;
            ledger.chain_id = found.ok_or(PromoteError::Nothing(file))?;
        }
        Some(url) => {
            let dir = config.site.data_dir.join(LEDGER);
            let is_journal = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("journal");
            if !fs::read_dir(&dir).is_ok_and(|all| all.flatten().any(|entry| is_journal(&entry))) {
                return Err(PromoteError::NoJournal(dir));
            }
            let parsed: Url = url.parse().map_err(|_| PromoteError::Url(url.clone()))?;
            let watch = Watch { timeout: ledger.request_timeout, ..Watch::default() };
            let node = Endpoints::at(&[parsed], watch).map_err(|_| PromoteError::Url(url.clone()))?;
            let away = |e: NodeError| PromoteError::Away { which: "before", why: e.to_string() };
            if genesis(&node).await.map_err(away)? == target {
                return Err(PromoteError::Same);
            }
            ledger.chain_id = node.chain_id().await.map_err(away)?;
            ledger.url = url.clone();
        }
    }
    settings.ledger.admin = admin_before(&settings, before).await?.map(Into::into);
    Ok(settings)
}

/// Who administered the consortium of the ledger before: by the contracts that were followed there. None stands for the site itself.
async fn admin_before(settings: &Config, before: &Before) -> Result<Option<Address>, PromoteError> {
    let (dir, keys) = (settings.site.data_dir.clone(), settings.keys.clone());
    let (keyring, chain) = blocking(move || {
        let chain = Consents::open(&dir.join("consent.sqlite")).and_then(|consents| consents.chain());
        Ok::<_, PromoteError>((Keyring::open(&dir, &keys)?, chain?))
    })
    .await
    .map_err(Box::new)??;
    let own = source_account(&settings.ledger, &keyring);
    let candidates = [before.admin, Some(own), settings.ledger.admin.map(Address::from)];
    let is_it = |chain: &Chain, admin: &Address| contracts::deployment::addresses(*admin).studies == chain.registry;
    match chain {
        None => Ok(before.admin),
        Some(chain) => {
            let found = candidates.into_iter().flatten().find(|admin| is_it(&chain, admin));
            found.map(Some).ok_or(PromoteError::Admin)
        }
    }
}

/// The ledger to go to, whose node answers and is of the chain that is configured.
async fn there(config: &Config) -> Result<There, PromoteError> {
    let node = endpoints(&config.ledger).map_err(Box::new)?;
    let away = |e: NodeError| PromoteError::Away { which: "to go to", why: e.to_string() };
    let found = node.chain_id().await.map_err(away)?;
    if found != config.ledger.chain_id {
        return Err(PromoteError::ChainId { found, wanted: config.ledger.chain_id });
    }
    let genesis = genesis(&node).await.map_err(away)?;
    Ok(There { node, genesis, admin: config.ledger.admin.map(Address::from) })
}

async fn genesis(node: &Endpoints) -> Result<B256, NodeError> {
    let block = node.block_at(0).await?;
    Ok(block.ok_or_else(|| NodeError::Unavailable("the chain has no block 0".into()))?.hash)
}

/// Moves the ledger's directory: all of it or nothing, and for good when this returns.
fn set_aside(from: &Path, to: &Path) -> Result<(), PromoteError> {
    fs::rename(from, to).map_err(|e| PromoteError::SetAside(from.to_owned(), e))?;
    Ok(sync_dir(to.parent().unwrap_or(Path::new(".")))?)
}
