//! Keeps the studies of other sites here as their owners' grants say: brings what is granted, takes away what is not any more.
//!
//! Every pass begins with what must not be seen any more, and hides all of it before anything else is done. What is brought is
//! brought by one task a study, that waits and tries again while its source or the ledger is away; when the grant ends the task
//! is ended before anything is removed. So it can be stopped anywhere: the next start looks at the grants and at what is here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, hex, keccak256};
use contracts::messages;
use dicom_scp::Uid;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{self, Asker, Endpoint};
use super::server::now_s;
use super::{ExchangeError, KeyDelivery, Place, envelope};
use crate::archive::{Archive, ArchiveError, ForeignMode, ForeignStudy, ForeignVersion, Image, Window};
use crate::audit::{Audit, Event};
use crate::follow::{Consents, FollowError, Grant, Mode};
use crate::keyring::{ForeignKey, ForeignKeys, Keyring, KeyringError};
use crate::ledger::{LedgerError, LedgerSlot, Signer};
use crate::payload::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::retrieve::{PREVIEW_BYTES_MAX, Retrieve, RetrieveError, Sealed};
use crate::study::{ImageKind, Salt, study_id, study_id_plain};

/// First and longest wait before something that failed is tried again. The first is short because a grantee often hears of a grant a
/// moment before the study's source does.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// So many new blocks at most have something tried again at once.
const WOKEN_MAX: u32 = 16;
/// Shortest wait for an answer over the ledger, unless it comes.
const ANSWER_MIN: Duration = Duration::from_secs(5);
/// Studies brought at once.
const JOBS_MAX: usize = 4;
/// Longest sleep between two looks, in seconds.
const LOOK_S_MAX: u64 = 3600;
/// Wait for the ledger to be connected.
const LEDGER_RETRY: Duration = Duration::from_millis(500);
/// Last second that the index can hold.
const FOR_EVER: u64 = i64::MAX as u64;
/// Previews kept in one transaction.
const PREVIEW_BATCH: usize = 64;

/// How studies are brought.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Longest wait for another bridge's answer.
    pub request_timeout: Duration,
    /// Fetch objects before anybody asks for them.
    pub fetch_ahead: bool,
    /// Ask on the ledger where the source cannot be reached.
    pub envelopes: bool,
}

/// Why something could not be brought here or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The source: away, or it says something else than the ledger.
    #[error("the source")]
    Exchange(#[from] ExchangeError),
    /// The operator: the archive failed.
    #[error("the archive")]
    Archive(#[from] ArchiveError),
    /// The operator: the keyring failed.
    #[error("the keyring")]
    Keyring(#[from] KeyringError),
    /// The operator: the database of consents failed.
    #[error("the consents")]
    Consents(#[from] FollowError),
    /// Nobody: the ledger is away, or a piece is not there yet.
    #[error("the ledger")]
    Retrieve(#[from] RetrieveError),
    /// The source: its manifest cannot be read.
    #[error("the manifest")]
    Manifest(#[from] ManifestError),
}

/// What the task works on.
#[derive(Clone)]
pub struct Parts {
    /// What holds now.
    pub consents: Consents,
    /// Where studies are kept.
    pub archive: Archive,
    /// Where keys are kept.
    pub keyring: Keyring,
    /// Where it is recorded what came and went.
    pub audit: Audit,
    /// Reads the ledger.
    pub retrieve: Retrieve,
    /// The ledger, once it is connected.
    pub ledger: LedgerSlot,
    /// How.
    pub settings: Settings,
}

/// Keeps what is here as the grants say until `stop`.
pub async fn run(parts: Parts, signer: Signer, stop: CancellationToken) {
    let mut changed = parts.consents.changed();
    let mut keeper = None;
    loop {
        changed.borrow_and_update();
        let keeper = match &mut keeper {
            Some(keeper) => keeper,
            none => match Bring::begin(&parts, &signer).await {
                Some(bring) => none.insert(Keeper::new(Shelf::of(&bring), bring)),
                None => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(LEDGER_RETRY) => continue,
                    }
                }
            },
        };
        let wait = match keeper.pass(now_s()).await {
            Ok(next_s) => Duration::from_secs(next_s.saturating_sub(now_s()).clamp(1, LOOK_S_MAX)),
            Err(trouble) => {
                tracing::error!(error = %crate::chain_of(&trouble), "granted studies cannot be kept as the grants say");
                RETRY_MIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            alive = changed.changed() => if alive.is_err() { break },
            () = keeper.ended.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Some(keeper) = keeper {
        keeper.end().await;
    }
}

/// What a grant lets this site have now, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The grant.
    pub grant: Grant,
    /// How much, and when.
    pub window: Window,
}

impl Wanted {
    fn now(grant: Grant, now_s: u64) -> Option<Self> {
        let scope = grant.scope_at(now_s)?;
        let mode = match scope.mode {
            Mode::Full => ForeignMode::Everything,
            Mode::Preview => ForeignMode::Previews,
        };
        // The archive looks at the clock itself, so nothing is seen a second longer even when nobody comes to hide it.
        let not_after = grant.next_change(now_s).map_or(u64::MAX, |next| next - 1).min(FOR_EVER);
        Some(Self { grant, window: Window { mode, series: scope.series, not_before: 0, not_after } })
    }

    /// What decides what is brought.
    fn goal(&self) -> Goal {
        (self.grant.version, self.grant.manifest_image, self.window.mode, self.window.series)
    }
}

/// Version and manifest of the study, how much of it, and of which series.
type Goal = (u32, B256, ForeignMode, B256);

struct Job {
    goal: Goal,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

/// Brings granted studies here, from wherever they are.
pub trait Bringing: Clone + Send + Sync + 'static {
    /// Tries until the study is here as far as it is wanted. It may be dropped at any time.
    fn until_done(&self, wanted: &Wanted) -> impl Future<Output = ()> + Send;

    /// Ends when nothing that was fetched before will be filed any more.
    fn settle(&self) -> impl Future<Output = ()> + Send;
}

/// What is kept, and for whom.
#[derive(Clone)]
pub struct Shelf {
    /// The account that owners let in.
    pub grantee: Address,
    /// What holds now.
    pub consents: Consents,
    /// Where studies are kept.
    pub archive: Archive,
    /// Where keys are kept.
    pub keyring: Keyring,
    /// Where it is recorded what went.
    pub audit: Audit,
}

impl Shelf {
    fn of(bring: &Bring) -> Self {
        let Parts { consents, archive, keyring, audit, .. } = bring.parts.clone();
        Self { grantee: bring.asker.grantee, consents, archive, keyring, audit }
    }
}

/// Keeps a shelf as the grants say.
pub struct Keeper<B> {
    shelf: Shelf,
    bring: B,
    jobs: HashMap<B256, Job>,
    ended: Arc<Notify>,
}

impl<B: Bringing> Keeper<B> {
    /// Begins with what is there.
    #[must_use]
    pub fn new(shelf: Shelf, bring: B) -> Self {
        Self { shelf, bring, jobs: HashMap::new(), ended: Arc::default() }
    }

    /// Makes what is here agree with the grants, as far as that needs nobody else, and begins what does. Returns when the next
    /// grant begins or ends by itself. Times are in seconds since 1970.
    ///
    /// # Errors
    /// [`Trouble`]; to be tried again.
    pub async fn pass(&mut self, now: u64) -> Result<u64, Trouble> {
        let me = self.shelf.grantee;
        let grants = self.shelf.consents.open_to(me)?;
        let next = grants.iter().filter_map(|grant| grant.next_change(now)).min().unwrap_or(u64::MAX);
        // What this site published itself is here anyway.
        let others = grants.into_iter().filter(|grant| grant.source != me);
        let wanted: HashMap<B256, Wanted> =
            others.filter_map(|grant| Some((grant.study_id, Wanted::now(grant, now)?))).collect();
        let here = self.shelf.archive.foreign_studies()?;
        self.take_away(&wanted, &here).await?;
        let known: HashMap<B256, &ForeignStudy> = here.iter().map(|study| (study.study_id, study)).collect();
        for (study_id, wanted) in wanted {
            self.keep(study_id, wanted, known.get(&study_id).copied()).await?;
        }
        Ok(next)
    }

    /// Hides everything that is not granted any more, and then removes it with its keys.
    async fn take_away(&mut self, wanted: &HashMap<B256, Wanted>, here: &[ForeignStudy]) -> Result<(), Trouble> {
        let shelf = self.shelf.clone();
        // Less than before is granted: what is here is too much, and comes again as far as it may.
        let too_much = |study: &&ForeignStudy| match wanted.get(&study.study_id) {
            None => true,
            Some(wanted) => {
                let (wanted_window, window) = (wanted.window, study.window);
                wanted_window.mode < window.mode
                    || wanted_window.series != window.series
                    || wanted.grant.source != study.source
            }
        };
        let mut going: HashSet<B256> = here.iter().filter(too_much).map(|study| study.study_id).collect();
        for study in here.iter().filter(|study| going.contains(&study.study_id) && !study.hidden) {
            shelf.archive.hide_foreign(study.study_id).await?;
        }
        // Keys can be here before anything else is.
        going.extend(shelf.keyring.foreign_studies()?.into_iter().filter(|study| !wanted.contains_key(study)));
        going.extend(self.jobs.keys().filter(|study| !wanted.contains_key(*study)));
        if going.is_empty() {
            return Ok(());
        }
        for study_id in &going {
            self.end_job(*study_id).await;
            shelf.keyring.erase_foreign(*study_id)?;
        }
        self.bring.settle().await;
        for study_id in going {
            shelf.archive.remove_foreign(study_id).await?;
            shelf.audit.record(Event::withdrawn(&hex::encode(study_id)));
            tracing::info!(%study_id, "a study of another site is granted no more and was removed");
        }
        Ok(())
    }

    async fn keep(&mut self, study_id: B256, wanted: Wanted, here: Option<&ForeignStudy>) -> Result<(), Trouble> {
        let archive = &self.shelf.archive;
        let here = here.filter(|study| {
            let (window, more) = (study.window, wanted.window);
            window.mode <= more.mode && window.series == more.series && study.source == wanted.grant.source
        });
        if here.is_none_or(|study| study.hidden || study.window != wanted.window) {
            archive.show_foreign(study_id, wanted.grant.source, wanted.window).await?;
        }
        let more = here.is_none_or(|study| study.window.mode != wanted.window.mode);
        let goal = wanted.goal();
        let running = self.jobs.get(&study_id);
        if wanted.grant.version == 0 || running.is_some_and(|job| job.goal == goal) && !more {
            return Ok(());
        }
        self.end_job(study_id).await;
        let (bring, stop, ended) = (self.bring.clone(), CancellationToken::new(), self.ended.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = bring.until_done(&wanted) => ended.notify_one(),
            }
        });
        self.jobs.insert(study_id, Job { goal, task, stop });
        Ok(())
    }

    async fn end_job(&mut self, study_id: B256) {
        if let Some(job) = self.jobs.remove(&study_id) {
            job.stop.cancel();
            let _ = job.task.await;
        }
    }

    /// Ends what is under way.
    pub async fn end(mut self) {
        for study_id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end_job(study_id).await;
        }
    }
}

/// Brings one study here.
#[derive(Clone)]
struct Bring {
    parts: Parts,
    asker: Asker,
    room: Arc<Semaphore>,
}

impl Bringing for Bring {
    async fn settle(&self) {
        self.parts.retrieve.settle().await;
    }

    async fn until_done(&self, wanted: &Wanted) {
        let study_id = wanted.grant.study_id;
        let mut wait = RETRY_MIN;
        let (mut followed, mut woken) = (self.parts.consents.followed(), 0);
        loop {
            let Ok(permit) = self.room.acquire().await else { return };
            let tried = self.once(wanted).await;
            drop(permit);
            let Err(trouble) = tried else { return };
            let error = crate::chain_of(&trouble);
            tracing::info!(%study_id, error, "a granted study is not here yet");
            if matches!(trouble, Trouble::Exchange(ExchangeError::Asked)) {
                self.answered(wanted, wait).await;
            } else {
                // A source that waits until the owner's word is final refuses until then.
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    Ok(()) = followed.changed(), if woken < WOKEN_MAX => woken += 1,
                }
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
}

impl Bring {
    /// Begins once the ledger says who this site is.
    async fn begin(parts: &Parts, signer: &Signer) -> Option<Self> {
        let ledger = parts.ledger.get()?;
        let grantee = ledger.source().await.ok()?;
        let asker = Asker {
            grantee,
            signer: signer.clone(),
            encryption_key: parts.keyring.payload_certificate().ok()?.into(),
            place: Place::of(ledger),
        };
        Some(Self { parts: parts.clone(), asker, room: Arc::new(Semaphore::new(JOBS_MAX)) })
    }

    async fn once(&self, wanted: &Wanted) -> Result<(), Trouble> {
        let Parts { archive, keyring, retrieve, settings, .. } = &self.parts;
        let study_id = wanted.grant.study_id;
        let version = archive.foreign_study(study_id)?.map_or(0, |study| study.version);
        let keys = match keyring.foreign(study_id)? {
            Some(keys) if version >= wanted.grant.version && suffice(&keys, wanted.window) => keys,
            _ => self.bring_keys_and_manifest(wanted).await?,
        };
        self.bring_previews(wanted, &keys).await?;
        if settings.fetch_ahead && wanted.window.mode == ForeignMode::Everything {
            let objects = archive.foreign_instances(study_id)?;
            retrieve.fetch_ahead(objects, CancellationToken::new()).await;
        }
        Ok(())
    }

    async fn bring_keys_and_manifest(&self, wanted: &Wanted) -> Result<ForeignKeys, Trouble> {
        let study_id = wanted.grant.study_id;
        let delivery = match self.ask(wanted).await {
            Err(error @ (ExchangeError::Away(_) | ExchangeError::Unreachable(_))) if self.parts.settings.envelopes => {
                tracing::debug!(%study_id, error = %crate::chain_of(&error), "asking on the ledger instead");
                let Parts { consents, keyring, ledger, .. } = &self.parts;
                let ledger = ledger.get().ok_or(RetrieveError::NoLedger)?;
                envelope::collect(study_id, self.asker.grantee, consents, keyring, ledger).await?
            }
            other => other?,
        };
        let taken = self.take_in(wanted, &delivery).await;
        // An envelope that was of no use is asked for anew; one that was is not to be opened again by anybody.
        if matches!(&taken, Ok(_) | Err(Trouble::Exchange(ExchangeError::Disagrees(_)))) {
            self.parts.keyring.forget_one_time_key(study_id)?;
        }
        taken
    }

    async fn ask(&self, wanted: &Wanted) -> Result<KeyDelivery, ExchangeError> {
        let Parts { consents, settings, .. } = &self.parts;
        let source = consents.source(wanted.grant.source).map_err(|e| ExchangeError::Away(crate::chain_of(&e)))?;
        let source = source.ok_or(ExchangeError::Unreachable("endpoint"))?;
        let endpoint = Endpoint { url: source.endpoint, tls_key: source.tls_key };
        client::ask(&endpoint, &self.asker_for(&wanted.grant)?, wanted.grant.study_id, settings.request_timeout).await
    }

    /// Asks for the key that the owner signed for, if that is this site's own for this study alone.
    fn asker_for(&self, grant: &Grant) -> Result<Asker, ExchangeError> {
        let of_study = self.parts.keyring.study_certificate(grant.study_id);
        let of_study = of_study.map_err(|e| ExchangeError::Key(crate::chain_of(&e)))?;
        let meant = of_study.filter(|certificate| keccak256(certificate) == grant.encryption_key);
        let encryption_key = meant.map_or_else(|| self.asker.encryption_key.clone(), Bytes::from);
        Ok(Asker { encryption_key, ..self.asker.clone() })
    }

    /// Waits until the source has answered on the ledger, or for as long.
    async fn answered(&self, wanted: &Wanted, longest: Duration) {
        let consents = &self.parts.consents;
        let mut changed = consents.changed();
        let open = || consents.question(wanted.grant.study_id, self.asker.grantee).is_ok_and(|open| open.is_some());
        let answered = async {
            // What was just said may not have been followed yet.
            while changed.changed().await.is_ok() && open() {}
        };
        let _ = tokio::time::timeout(longest.max(ANSWER_MIN), answered).await;
    }

    async fn take_in(&self, wanted: &Wanted, delivery: &KeyDelivery) -> Result<ForeignKeys, Trouble> {
        let Parts { archive, keyring, .. } = &self.parts;
        let grant = &wanted.grant;
        let keys = self.check(grant, delivery)?;
        if !suffice(&keys, wanted.window) {
            return Err(ExchangeError::Disagrees("the keys open something else than is granted").into());
        }
        let manifest = self.manifest(grant, delivery, &keys).await?;
        keyring.keep_foreign(grant.study_id, &keys)?;
        let piece_mode = delivery.manifest.piece_mode().ok_or(ExchangeError::Disagrees("unknown piece mode"))?;
        let (image, map) = (delivery.manifest.image, delivery.manifest.map());
        let version = ForeignVersion { version: grant.version, manifest, image, map, piece_mode };
        archive.import_manifest(grant.study_id, version).await?;
        let (source, study) = (grant.source.to_string(), hex::encode(grant.study_id));
        self.parts.audit.record(Event::arrived(&source, &study, grant.version));
        tracing::info!(study_id = %grant.study_id, version = grant.version, "a study of another site is here");
        Ok(keys)
    }

    /// What was delivered must be about this study and agree with the ledger, whatever the source says.
    fn check(&self, grant: &Grant, delivery: &KeyDelivery) -> Result<ForeignKeys, Trouble> {
        let salt = Salt::from_bytes(delivery.salt.0);
        let names = [study_id(&salt, &delivery.study_uid), study_id_plain(&delivery.study_uid)];
        if !names.contains(&grant.study_id) {
            return Err(ExchangeError::Disagrees("the study has another name").into());
        }
        let series = delivery.series.as_deref().map(Uid::new).transpose();
        let series = series.map_err(|_| ExchangeError::Disagrees("not a UID"))?;
        let (manifest, version) = (&delivery.manifest, delivery.version);
        let named = (manifest.image, manifest.root) == (grant.manifest_image, grant.manifest_root);
        // The ledger names the manifests of studies. Those of series are known by who stored them.
        if version != grant.version || !(named || series.is_some()) {
            return Err(ExchangeError::Disagrees("the manifest is another one").into());
        }
        let mut epochs = Vec::with_capacity(delivery.keys.len());
        for key in &delivery.keys {
            let opened = self.parts.keyring.unwrap_for(grant.study_id, &key.wrapped)?;
            let opened = if key.preview_only { ForeignKey::Preview(opened) } else { ForeignKey::Session(opened) };
            epochs.push((key.epoch, opened));
        }
        Ok(ForeignKeys { salt, series, epochs })
    }

    async fn manifest(&self, grant: &Grant, delivery: &KeyDelivery, keys: &ForeignKeys) -> Result<Manifest, Trouble> {
        let subject = Uid::new(&delivery.study_uid).map_err(|_| ExchangeError::Disagrees("not a UID"))?;
        let mode = delivery.manifest.piece_mode().ok_or(ExchangeError::Disagrees("unknown piece mode"))?;
        let mut last = None;
        let series = keys.series;
        let kind = if series.is_some() { ImageKind::SeriesManifest } else { ImageKind::Manifest };
        // The manifest is sealed with the key that was the newest; which one that was is not said.
        for (epoch, _) in keys.epochs.iter().rev() {
            let Some(key) = keys.opening(kind, series.as_ref(), *epoch) else { continue };
            let image = Image {
                id: delivery.manifest.image,
                kind,
                subject: series.unwrap_or(subject),
                series,
                version: grant.version,
                epoch: *epoch,
                map: delivery.manifest.map(),
                link: None,
                mode,
                media_type: String::new(),
            };
            let sealed = Sealed { image, key, source: Some(grant.source) };
            match self.parts.retrieve.plain(&sealed, MANIFEST_BYTES_MAX as u64).await {
                Ok(bytes) => {
                    let manifest = Manifest::decode(&bytes)?;
                    let version_fits = match series {
                        None => manifest.version == grant.version,
                        // The series may have changed last in a version before.
                        Some(_) => manifest.version <= grant.version,
                    };
                    if manifest.study_uid != subject || manifest.series != series || !version_fits {
                        return Err(ExchangeError::Disagrees("the manifest is of another study").into());
                    }
                    return Ok(manifest);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| ExchangeError::Disagrees("no key opens the manifest").into(), Trouble::from))
    }

    /// Previews come at once: they are what somebody looks at first.
    async fn bring_previews(&self, wanted: &Wanted, keys: &ForeignKeys) -> Result<(), Trouble> {
        let Parts { archive, retrieve, .. } = &self.parts;
        let missing = archive.previews_missing(wanted.grant.study_id)?;
        let digests = archive.preview_digests(wanted.grant.study_id)?;
        for batch in missing.chunks(PREVIEW_BATCH) {
            let mut pictures = Vec::with_capacity(batch.len());
            for image in batch {
                let Some(key) = keys.opening(ImageKind::Preview, image.series.as_ref(), image.epoch) else { continue };
                let sealed = Sealed { image: image.clone(), key, source: Some(wanted.grant.source) };
                let picture = retrieve.plain(&sealed, PREVIEW_BYTES_MAX).await?;
                if digests.get(&image.id) != Some(&<[u8; 32]>::from(Sha256::digest(&picture))) {
                    return Err(ExchangeError::Disagrees("a preview is another one than the manifest names").into());
                }
                pictures.push((image.id, picture));
            }
            archive.keep_previews(pictures).await?;
            if wanted.window.mode == ForeignMode::Previews {
                archive.present_previews(wanted.grant.study_id).await?;
            }
        }
        match wanted.window.mode {
            // Those of an earlier run that was cut off.
            ForeignMode::Previews => archive.present_previews(wanted.grant.study_id).await?,
            ForeignMode::Everything => archive.withdraw_captures(wanted.grant.study_id).await?,
        }
        Ok(())
    }
}

/// Whether keys open as much as is granted, and no more.
fn suffice(keys: &ForeignKeys, granted: Window) -> bool {
    let count = |preview: bool| keys.epochs.iter().filter(|(_, key)| key.is_preview() == preview).count();
    let (of_previews, of_objects) = (count(true), count(false));
    let salt = B256::from(*keys.salt.as_bytes());
    let named = keys.series.map_or(B256::ZERO, |series| messages::salted(salt, series.as_str().as_bytes()));
    named == granted.series
        && match (granted.mode, keys.series) {
            (ForeignMode::Everything, None) => of_objects > 0 && of_previews == 0,
            (ForeignMode::Everything, Some(_)) => of_objects > 0 && of_objects == of_previews,
            (ForeignMode::Previews, _) => of_previews > 0 && of_objects == 0,
        }
}

/// How this site is known to others, besides its OpenPGP key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announcement {
    /// SHA-256 of the key that it answers TLS with; zeros when it does not answer.
    pub tls_key: [u8; 32],
    /// Where it answers, when that is not in the configuration.
    pub endpoint: Option<String>,
}

/// States on the ledger how this site is known to others, and tries until that is so.
pub async fn announce(ledger: LedgerSlot, keyring: Keyring, announcement: Announcement, stop: CancellationToken) {
    let tls_key = announcement.tls_key;
    // Others wait for this: it is said as soon as there is a ledger, however long that took.
    while ledger.get().is_none() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_MIN) => {}
        }
    }
    let mut wait = RETRY_MIN;
    let mut is_said = false;
    loop {
        let stated = async {
            let ledger = ledger.get().ok_or_else(|| LedgerError::Unavailable("it is not connected".into()))?;
            if let Some(endpoint) = &announcement.endpoint {
                ledger.move_endpoint(endpoint).await?;
            }
            let certificate = keyring.payload_certificate().map_err(|e| LedgerError::Refused(crate::chain_of(&e)))?;
            ledger.change_keys(B256::from(tls_key), certificate.into()).await
        };
        // What was sent and not seen is in the ledger's journal, so it may be left at any moment.
        let stated = tokio::select! {
            () = stop.cancelled() => return,
            stated = stated => stated,
        };
        match stated {
            Ok(sent) => {
                if sent.is_some() {
                    tracing::info!(tls_key = hex::encode(tls_key), "stated this site's keys on the ledger");
                }
                return;
            }
            // Somebody has to act, so it is said, once.
            Err(LedgerError::Refused(error)) if !is_said => {
                tracing::warn!(error, "this site's endpoint or keys cannot be stated on the ledger");
                is_said = true;
            }
            Err(error) => tracing::debug!(%error, "this site's keys are not on the ledger yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
        }
    }
}
