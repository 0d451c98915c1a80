//! How the site is run: which application entities it knows and whether they answer, what waits, what room there is, and the configuration as it was read. Must not
//! know how any of this work is done; who is called is named by the configuration and by nobody else.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use tokio::sync::Semaphore;

use super::layout::{self, Place, badge, form_token};
use super::ledger::{self, Backlog};
use super::to;
use super::visitor::{Form, Visitor};
use super::words::{Tone, bytes, count, time};
use crate::archive::{Evictable, Queues, Room};
use crate::config::{AsRead, Operation, Origin, Peer, Setting};
use crate::dicom::echo::{Echoed, echo_peer, words};
use crate::http::{Api, Problem, blocking, now_s};
use crate::site::SiteStatus;

/// Where the page is, and where C-ECHO is asked for.
pub(super) const PATH: &str = "/ui/operations";
pub(super) const ECHO_PATH: &str = "/ui/operations/echo";

/// C-ECHOs at once; further ones wait.
const ECHOES_AT_ONCE: usize = 4;
/// How long it is remembered what eviction could give back: that looks at every object.
const EVICTABLE_KEPT: Duration = Duration::from_secs(60);

/// What came of the last C-ECHO to a peer.
#[derive(Debug, Clone)]
struct Tried {
    /// When, seconds since 1970.
    at_s: u64,
    worked: bool,
    words: String,
}

/// What the page remembers.
pub(super) struct Remembered {
    /// When the configuration was read, seconds since 1970.
    begun_s: u64,
    /// By AE title.
    tried: Mutex<HashMap<String, Tried>>,
    echoing: Semaphore,
    evictable: Mutex<Option<(Instant, Evictable)>>,
}

impl Default for Remembered {
    fn default() -> Self {
        let echoing = Semaphore::new(ECHOES_AT_ONCE);
        Self { begun_s: now_s(), tried: Mutex::default(), echoing, evictable: Mutex::default() }
    }
}

impl Remembered {
    fn tried(&self) -> MutexGuard<'_, HashMap<String, Tried>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that the page shows.
struct Shown {
    tried: HashMap<String, Tried>,
    status: SiteStatus,
    backlog: Backlog,
    queues: Queues,
    room: Result<Room, String>,
    evictable: Evictable,
}

fn must_run(api: &Api, visitor: &Visitor) -> Result<(), Problem> {
    if api.access().runs_the_site(visitor.known.caller()) {
        return Ok(());
    }
    Err(Problem::forbidden("this page is for the people who run this site"))
}

pub(super) async fn show(State(api): State<Api>, visitor: Visitor) -> Result<Response, Problem> {
    must_run(&api, &visitor)?;
    let (status, backlog) = (api.site().status().await?, ledger::backlog(&api).await?);
    let tried = api.pages().operations.tried().clone();
    let here = api.clone();
    let shown = blocking(move || {
        let archive = here.site().archive();
        let room = archive.room().map_err(|error| error.to_string());
        let (queues, evictable) = (archive.queues()?, evictable(&here)?);
        Ok::<_, Problem>(Shown { tried, status, backlog, queues, room, evictable })
    })
    .await??;
    let content = html! {
        h1 { "Operations" }
        (peers(&api, &visitor, &shown.tried))
        div class="two" {
            div { (queues(&shown)) }
            div { (disk(&shown)) }
        }
        (configuration(api.as_read(), api.pages().operations.begun_s))
    };
    Ok(layout::page(&api, &visitor, Place::Operations, "Operations", &content))
}

/// Blocks.
fn evictable(api: &Api) -> Result<Evictable, Problem> {
    let mut kept = api.pages().operations.evictable.lock().unwrap_or_else(PoisonError::into_inner);
    match *kept {
        Some((at, known)) if at.elapsed() < EVICTABLE_KEPT => Ok(known),
        _ => {
            let known = api.site().archive().evictable()?;
            *kept = Some((Instant::now(), known));
            Ok(known)
        }
    }
}

/// Calls a peer of the configuration.
pub(super) async fn echo(State(api): State<Api>, Form { visitor, fields }: Form) -> Result<Response, Problem> {
    must_run(&api, &visitor)?;
    let title = fields.get("peer");
    let peer = api.access().peers().iter().find(|peer| peer.ae_title.as_str() == title);
    let peer = peer.ok_or_else(|| Problem::bad_request(format!("no [[peer]] has the AE title \"{title}\"")))?;
    if peer.port == 0 {
        return Err(Problem::bad_request(format!("the [[peer]] \"{title}\" has no port: it only calls us")));
    }
    let remembered = &api.pages().operations;
    let Ok(_room) = remembered.echoing.acquire().await else { return Err(Problem::unavailable("the bridge ends")) };
    let tried = tried(echo_peer(api.calling(), peer).await);
    let notice = format!("C-ECHO to {title}: {}.", tried.words);
    remembered.tried().insert(title.to_owned(), tried);
    api.pages().sessions().tell(visitor.key, &notice);
    Ok(to(&format!("{PATH}#peers")))
}

fn tried(result: Result<Echoed, crate::dicom::echo::EchoError>) -> Tried {
    let (worked, words) = match &result {
        Ok(echoed) if echoed.is_success() => (true, format!("success, {} ms", echoed.after.as_millis().max(1))),
        Ok(echoed) => (false, format!("it answers with status {}", echoed.status)),
        Err(error) => (false, words(error)),
    };
    Tried { at_s: now_s(), worked, words }
}

fn peers(api: &Api, visitor: &Visitor, tried: &HashMap<String, Tried>) -> Markup {
    let known = api.access().peers();
    html! {
        h2 id="peers" { "Application entities" }
        @if known.is_empty() {
            p { "The configuration names no " code { "[[peer]]" } "." }
        } @else {
            div class="scroll" tabindex="0" role="region" aria-label="Application entities" {
                table {
                    thead {
                        tr { @for head in ["AE title", "Address", "May", "Known by", "C-ECHO"] { th scope="col" { (head) } } }
                    }
                    tbody { @for peer in known { (one_peer(visitor, peer, tried.get(peer.ae_title.as_str()))) } }
                }
            }
        }
        p class="dim" { "This node is " b { (api.ae_title()) } ". Whoever is not in the table may " (may(api.access().unknown_peers())) "." }
    }
}

fn one_peer(visitor: &Visitor, peer: &Peer, tried: Option<&Tried>) -> Markup {
    let title = peer.ae_title.as_str();
    let encrypted = if peer.tls.is_some() { ", TLS" } else { "" };
    html! {
        tr {
            th scope="row" { (title) }
            td class="mono" { @if peer.port == 0 { "only calls us" } @else { (peer.host) ":" (peer.port) (encrypted) } }
            td { (may(&peer.allow)) }
            td { (known_by(peer)) }
            td {
                @if peer.port != 0 {
                    form class="row" method="post" action=(ECHO_PATH) {
                        (form_token(visitor))
                        input type="hidden" name="peer" value=(title);
                        button aria-label=(format!("C-ECHO to {title}")) { "C-ECHO" }
                    }
                }
                @if let Some(Tried { at_s, worked, words }) = tried {
                    div { (badge(if *worked { Tone::Good } else { Tone::Bad }, words)) }
                    div class="dim" { (time(*at_s)) }
                }
            }
        }
    }
}

fn may(allowed: &[Operation]) -> String {
    let names: Vec<_> = allowed.iter().map(|operation| operation.name()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// What shows that a caller of a title is who it says.
fn known_by(peer: &Peer) -> &'static str {
    match (peer.is_bound(), peer.check_host) {
        (true, true) => "certificate and address",
        (true, false) => "certificate",
        (false, true) => "address",
        (false, false) => "its word",
    }
}

fn queues(shown: &Shown) -> Markup {
    let Shown { queues, backlog, status, .. } = shown;
    let missing = queues.pieces.saturating_sub(queues.pieces_seen);
    let studies = |number| count(number, "study", "studies");
    html! {
        h2 { "Queues" }
        div class="card" {
            dl {
                dt { "Receiving" } dd { (studies(queues.receiving)) " whose quiet time is not over" }
                dt { "Waiting to be published" } dd { (studies(queues.due)) }
                dt { "On the way to the ledger" }
                dd {
                    (studies(queues.publishing)) ", " (count(missing, "piece", "pieces")) " of " (queues.pieces) " to be written"
                    @if missing > 0 { div class="dim" { (ledger::estimate(backlog)) "." } }
                }
                @if let Some(ledger) = &status.ledger { dt { "Transactions" } dd { (ledger.pending) " not final yet" } }
                @if let Some(left) = &status.promotion {
                    dt { "To be said again" } dd { (count(left.words, "decision", "decisions")) " of an earlier ledger" }
                }
                dt { "Of other sites" }
                dd {
                    (count(queues.not_fetched, "object", "objects")) " not here, fetched when asked for or ahead; "
                    (count(queues.previews_missing, "preview", "previews")) " to be fetched"
                }
                @if status.ipfs.is_some() {
                    dt { "IPFS" }
                    dd { (count(queues.not_pinned, "file", "files")) " to be kept, " (queues.to_unpin) " to be let go" }
                }
                dt { "Intake log" } dd { (bytes(queues.unfiled_bytes)) " without files of their own yet" }
                @if let Some(repository) = status.audit.as_ref().and_then(|audit| audit.repository.as_ref()) {
                    dt { "Audit repository" }
                    dd {
                        (count(repository.backlog, "record", "records")) " to be sent to " span class="mono" { (repository.address) }
                        @if let Some(trouble) = &repository.trouble { " " (badge(Tone::Bad, trouble)) }
                    }
                }
            }
        }
    }
}

fn disk(shown: &Shown) -> Markup {
    html! {
        h2 { "Disk" }
        div class="card" {
            dl {
                @match &shown.room {
                    Err(why) => { dt { "Free" } dd { (badge(Tone::Bad, why)) } }
                    Ok(room) => (room_left(room)),
                }
                dt { "Eviction could free" }
                dd {
                    (bytes(shown.evictable.bytes)) " of studies that are whole on the ledger or at another site"
                    @if shown.evictable.in_ipfs_bytes > 0 {
                        "; " (bytes(shown.evictable.in_ipfs_bytes)) " more, once this site's IPFS node is seen to keep them"
                    }
                }
            }
        }
    }
}

fn room_left(room: &Room) -> Markup {
    let Room { free_bytes, used_bytes, limits } = room;
    html! {
        dt { "Free" }
        dd {
            @if *free_bytes < limits.free_bytes_min { (badge(Tone::Bad, "too little: new objects are refused")) " " }
            (bytes(*free_bytes)) "; under " (bytes(limits.free_bytes_min)) " new objects are refused"
        }
        dt { "Objects here" }
        dd {
            (bytes(*used_bytes))
            @if limits.quota_bytes == 0 { ", without a quota" } @else { " of " (bytes(limits.quota_bytes)) }
            @if limits.quota_bytes > 0 && *used_bytes >= limits.quota_bytes { " " (badge(Tone::Bad, "the quota is used up")) }
        }
        dt { "Intake log" } dd { @if limits.intake_log_bytes == 0 { "none" } @else { (bytes(limits.intake_log_bytes)) } }
    }
}

fn configuration(as_read: &AsRead, read_s: u64) -> Markup {
    let changed =
        as_read.0.iter().flat_map(|table| &table.settings).filter(|one| one.origin != Origin::Default).count();
    html! {
        h2 { "Configuration" }
        p { "Read at the start, " (time(read_s)) ": " (count(changed as u64, "key", "keys")) " given, the others have their defaults. Secrets are not shown." }
        details {
            summary { "Every key" }
            div class="scroll" tabindex="0" role="region" aria-label="Configuration" {
                table {
                    thead { tr { th scope="col" { "Key" } th scope="col" { "Value" } th scope="col" { "From" } } }
                    @for table in &as_read.0 {
                        tbody {
                            tr { th colspan="3" scope="rowgroup" { (table.name) } }
                            @for one in &table.settings { (setting(one)) }
                        }
                    }
                }
            }
        }
    }
}

fn setting(one: &Setting) -> Markup {
    let from = match one.origin {
        Origin::Default => "default",
        Origin::File => "the file",
        Origin::Environment => "the environment",
    };
    html! {
        tr {
            td { code { (one.key) } }
            td { @match &one.value { Some(value) => code { (value) }, None => "–" } }
            td { @if one.origin == Origin::Default { span class="dim" { (from) } } @else { b { (from) } } }
        }
    }
}
