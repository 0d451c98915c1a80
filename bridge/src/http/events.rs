//! What changes, as it happens: server-sent events of what a caller may see.
//!
//! One task looks while anybody listens, and compares what it sees with what it saw; every listener gets what its principal may see
//! of that. Events say that something changed and what it is now; they are no log: who was away asks again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::Event;
use dicom_scp::Uid;
use futures::Stream;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use utoipa::ToSchema;

use super::caller::Known;
use super::limits::{Held, Hold};
use super::listen::CONNECTION_MAX;
use super::model::StudyState;
use super::problem::Problem;
use super::{Api, now_s};
use crate::access::{Right, Visible};
use crate::archive::ArchiveError;
use crate::follow::{self, FollowError, What};
use crate::site::Site;

/// Listeners at once, and of one token.
const LISTENERS_MAX: usize = 64;
const LISTENERS_PER_TOKEN_MAX: usize = 8;
/// Changes that a slow listener may be behind.
const BEHIND_MAX: usize = 1024;
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a listener hears that it is still connected, and its token is looked at again.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Studies and events looked at in one go; more are announced as "look again".
const LOOKED_AT_MAX: u32 = 1000;
/// How many looks a study is watched after something was said about it.
const LINGER_LOOKS: u32 = 60;

/// Events about what was said of a study.
const CONSENT: &str = "consent";

/// What listeners share.
pub(super) struct Events {
    sender: broadcast::Sender<Arc<Change>>,
    listened: Notify,
    all: Arc<Held<()>>,
    by_token: Arc<Held<String>>,
}

/// A change, and who may see it.
#[derive(Debug)]
struct Change {
    kind: &'static str,
    /// What the index here shows it as.
    here: Option<Uid>,
    owner: Option<Address>,
    /// For everybody who listens: says nothing.
    everybody: bool,
    data: String,
}

impl Events {
    pub(super) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(BEHIND_MAX),
            listened: Notify::new(),
            all: Held::new(LISTENERS_MAX),
            by_token: Held::new(LISTENERS_PER_TOKEN_MAX),
        }
    }

    fn tell(&self, change: Change) {
        // Nobody may be there any more.
        let _ = self.sender.send(Arc::new(change));
    }
}

/// Something changed about a study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct StudyChanged {
    /// StudyInstanceUID.
    uid: String,
    /// Its name on the ledger, once it has one.
    study_id: Option<String>,
    /// Where it is; null: it is no longer here.
    state: Option<StudyState>,
    /// Number of objects.
    instances: u64,
    /// Manifest version.
    version: u32,
    /// Pieces planned.
    pieces: u64,
    /// Pieces seen on the ledger.
    pieces_seen: u64,
}

/// Something was said about a study on the ledger.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct ConsentChanged {
    /// What, such as `requested`, `allowed`, `denied`, `revoked` or `transferred`.
    said: &'static str,
    /// The study's name on the ledger.
    study_id: String,
    /// StudyInstanceUID, if this site has it.
    study_uid: Option<String>,
    /// Height of the block.
    block: u64,
}

/// Changes of what the caller sees, as server-sent events: `study` (a state of a study), `consent` (something was said on the ledger
/// about access to one) and `look-again` (more changed than is told; ask for the lists anew). Comments keep the connection open.
#[utoipa::path(get, path = "/events", operation_id = "listen", tag = "site",
    responses((status = 200, description = "a stream of events, until the caller closes it", content_type = "text/event-stream",
        body = String)))]
pub(super) async fn stream(
    State(api): State<Api>,
    known: Known,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    known.must(&api, Right::Find)?;
    let holds = (api.events().all.take(()), api.events().by_token.take(known.token.id.clone()));
    let (Some(all), Some(own)) = holds else { return Err(Problem::too_many()) };
    let changes = api.events().sender.subscribe();
    api.events().listened.notify_one();
    let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let left = known.token.expires_s.map_or(CONNECTION_MAX, |end| Duration::from_secs(end.saturating_sub(now_s())));
    let end = Instant::now() + CONNECTION_MAX.min(left);
    let listener = Listener { api, known, changes, beat, end, greeted: false, _holds: (all, own) };
    Ok(Sse::new(futures::stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    })))
}

struct Listener {
    api: Api,
    known: Known,
    changes: broadcast::Receiver<Arc<Change>>,
    beat: tokio::time::Interval,
    end: Instant,
    greeted: bool,
    _holds: (Hold<()>, Hold<String>),
}

impl Listener {
    /// None at the end: of the server, of the token, or of the connection's time.
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            self.greeted = true;
            return Some(Event::default().comment("listening").retry(Duration::from_secs(2)));
        }
        let stop = self.api.stop().clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                _ = self.beat.tick() => {
                    return self.known.is_still_good(&self.api).await.then(|| Event::default().comment("still here"));
                }
                change = self.changes.recv() => match change {
                    Ok(change) if self.may_see(&change) => {
                        return Some(Event::default().event(change.kind).data(&change.data));
                    }
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return Some(look_again()),
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }
    }

    fn may_hear(&self, change: &Change) -> bool {
        change.kind != CONSENT || self.api.access().sees_consent(self.known.caller())
    }

    fn may_see(&self, change: &Change) -> bool {
        let visible = self.api.access().sees(self.known.caller(), Right::Find);
        visible != Visible::Nothing
            && (change.everybody || self.may_hear(change) && visible.shows(change.here.as_ref(), change.owner))
    }
}

fn look_again() -> Event {
    Event::default().event("look-again").data("{}")
}

/// Looks for changes while anybody listens.
pub(super) async fn watch(api: Api) {
    let stop = api.stop().clone();
    let mut said = api.site().consents().changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = api.events().listened.notified() => {}
        }
        let mut seen = Seen::default();
        let mut is_first = true;
        while api.events().sender.receiver_count() > 0 {
            let (site, before) = (api.site().clone(), std::mem::take(&mut seen));
            let looked = tokio::task::spawn_blocking(move || before.look(&site, is_first)).await;
            match looked {
                Ok(Ok((after, changes))) => {
                    seen = after;
                    is_first = false;
                    changes.into_iter().for_each(|change| api.events().tell(change));
                }
                // What was seen is lost with the look: there is nothing to compare with any more.
                Ok(Err(error)) => {
                    tracing::warn!(error = %crate::chain_of(&error), "cannot look for changes");
                    is_first = true;
                    api.events().tell(everything());
                }
                Err(error) => {
                    tracing::error!(%error, "looking for changes failed");
                    is_first = true;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = said.changed() => {}
            }
        }
    }
}

/// Why it cannot be looked.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Follow(#[from] FollowError),
}

/// What was seen the last time.
#[derive(Debug, Default)]
struct Seen {
    /// Studies that may change, with what was told of them and how many more looks they are worth when nothing is in work.
    studies: HashMap<Uid, (StudyChanged, u32)>,
    /// Studies on the ledger about which something was said, and that may come here yet.
    awaited: HashMap<B256, u32>,
    height: u64,
    /// Of the block of that height, where it was the newest.
    hash: Option<B256>,
}

impl Seen {
    /// Looks once more. The first time there is nothing to compare with.
    fn look(mut self, site: &Site, is_first: bool) -> Result<(Self, Vec<Change>), LookError> {
        let mut changes = Vec::new();
        let newest = site.consents().cursor()?;
        let height = newest.map_or(0, |head| head.number);
        let left = |hash| site.consents().has_left(self.height, hash);
        if is_first {
            self.height = height;
        } else if height < self.height || self.hash.map(left).transpose()?.unwrap_or(false) {
            // Blocks were taken back, and what was said in them.
            changes.push(everything());
        }
        self.height = self.height.min(height);
        let events = site.consents().events_above(self.height, LOOKED_AT_MAX)?;
        for event in &events {
            changes.extend(self.consent_change(site, event)?);
            self.height = self.height.max(event.block);
        }
        if events.len() < LOOKED_AT_MAX as usize {
            self.height = height;
        } else {
            changes.push(everything());
        }
        self.hash = newest.filter(|newest| newest.number == self.height).map(|newest| newest.hash);
        self.study_changes(site, is_first, &mut changes)?;
        Ok((self, changes))
    }

    fn consent_change(&mut self, site: &Site, event: &follow::Event) -> Result<Option<Change>, LookError> {
        let Some((said, study)) = said(&event.what).zip(event.what.study()) else { return Ok(None) };
        if self.awaited.len() < LOOKED_AT_MAX as usize {
            self.awaited.insert(study, LINGER_LOOKS);
        }
        let names = site.archive().names_of_id(&study)?;
        let owner = site.consents().study(study)?.map(|info| info.owner);
        let here = names.map(|names| names.uid);
        let uid = here.map(|uid| uid.to_string());
        let data = ConsentChanged { said, study_id: study.to_string(), study_uid: uid, block: event.block };
        Ok(Some(Change { kind: CONSENT, here, owner, everybody: false, data: json!(data).to_string() }))
    }

    fn study_changes(&mut self, site: &Site, is_first: bool, changes: &mut Vec<Change>) -> Result<(), LookError> {
        let mut look_at: HashMap<Uid, u32> = self.studies.iter().map(|(uid, (_, looks))| (*uid, *looks)).collect();
        for (study, looks) in std::mem::take(&mut self.awaited) {
            if let Some(names) = site.archive().names_of_id(&study)? {
                look_at.insert(names.uid, looks);
            }
            if looks > 1 {
                self.awaited.insert(study, looks - 1);
            }
        }
        for uid in site.archive().studies_in_work(LOOKED_AT_MAX)? {
            look_at.insert(uid, LINGER_LOOKS);
        }
        let before = std::mem::take(&mut self.studies);
        for (uid, looks) in look_at {
            let (now, owner) = state_of(site, &uid)?;
            let told = before.get(&uid).map(|(told, _)| told);
            if !is_first && told != Some(&now) && (told.is_some() || now.state.is_some()) {
                let here = (now.state.is_some() || told.is_some()).then_some(uid);
                changes.push(Change { kind: "study", here, owner, everybody: false, data: json!(now).to_string() });
            }
            if looks > 1 && now.state.is_some() {
                self.studies.insert(uid, (now, looks - 1));
            }
        }
        Ok(())
    }
}

fn everything() -> Change {
    Change { kind: "look-again", here: None, owner: None, everybody: true, data: "{}".to_owned() }
}

fn state_of(site: &Site, uid: &Uid) -> Result<(StudyChanged, Option<Address>), LookError> {
    let Some(summary) = site.archive().summary(uid.as_str())? else {
        let (uid, zero) = (uid.to_string(), 0);
        let gone = StudyChanged {
            uid,
            study_id: None,
            state: None,
            instances: zero,
            version: 0,
            pieces: zero,
            pieces_seen: zero,
        };
        return Ok((gone, None));
    };
    let study_id = summary.study_id;
    let owner = site.consents().study(study_id.unwrap_or_default())?.map(|info| info.owner);
    let row = site.row_of(summary);
    let now = StudyChanged {
        uid: row.uid,
        study_id: study_id.map(|id| id.to_string()),
        state: Some(row.state.into()),
        instances: row.instances,
        version: row.version,
        pieces: row.pieces,
        pieces_seen: row.pieces_seen,
    };
    Ok((now, owner))
}

fn said(what: &What) -> Option<&'static str> {
    Some(match what {
        What::Defined { .. } => "defined",
        What::Transferred { .. } => "transferred",
        What::Tombstoned { .. } => "tombstoned",
        What::GuardiansNamed { .. } => "guardians",
        What::RecoveryProposed { .. } => "recovery",
        What::RecoveryEnded { .. } => "recovery-ended",
        What::Requested { .. } => "requested",
        What::Allowed { .. } => "allowed",
        What::Denied { .. } => "denied",
        What::Revoked { .. } => "revoked",
        What::GlassBroken { .. } => "glass-broken",
        _ => return None,
    })
}
