//! Consent: who asks, what is decided, actions that owners sign themselves, and the sources of the consortium. Commands go the way
//! of the command line's.

use std::net::IpAddr;

use alloy::primitives::{Address as Account, B256, Signature};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use zeroize::Zeroizing;

use super::caller::{Address, Asked, Json, Known};
use super::model::{
    AccessRequest, Ask, BreakGlass, Claim, Claimed, Decide, Page, Requests, RequestsPage, Sent, Source, Sources,
    Unsigned, Wanted,
};
use super::problem::Problem;
use super::studies::find;
use super::{Api, blocking, now_s, page, place, rows, tagged};
use crate::access::{Caller, Principal, Right, Visible};
use crate::audit::Party;
use crate::decide::{self, Pending, RequestRow, Told};
use crate::follow::{self, Asked as Answered};
use crate::tokens::plain_code;

/// How long the token of somebody who took a study over is good: 90 days.
const CLAIMED_TOKEN_S: u64 = 90 * 86_400;

/// What a command came to.
async fn tell(api: &Api, known: &Known, ask: decide::Ask) -> Result<Sent, Problem> {
    done(api, known, ask).await.map(Sent::from)
}

/// Carries a command out, also when its caller goes away.
async fn done(api: &Api, known: &Known, ask: decide::Ask) -> Result<decide::Done, Problem> {
    let (site, by) = (api.site().clone(), known.party());
    // Who it was; about what is on the ledger.
    tracing::info!(token = known.token.id, "a command about consent over HTTP");
    let told = api.finish(async move { Ok(decide::answer(&site, ask, &by).await?) }).await?;
    match told {
        Told::Done(done) => Ok(done),
        _ => Err(answered_otherwise()),
    }
}

fn json<T: serde::Serialize>(value: T) -> axum::Json<T> {
    axum::Json(value)
}

/// Where a list of requests goes on: block, study, grantee.
type Place = (u64, B256, Account);

fn place_of(request: &follow::AccessRequest) -> Place {
    (request.block, request.study_id, request.grantee)
}

fn parse_place(text: &str) -> Option<Place> {
    let mut parts = text.splitn(3, ':');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Who asks for studies that the caller sees.
#[utoipa::path(get, path = "/requests", operation_id = "listRequests", tag = "consent", params(RequestsPage),
    responses((status = 200, description = "a page of requests", body = Requests), (status = 304, description = "as known")))]
pub(super) async fn requests(
    State(api): State<Api>,
    known: Known,
    Asked(asked): Asked<RequestsPage>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must_see_consent(&api)?;
    let (limit, after) = (rows(asked.limit)?, place(asked.after)?);
    let after = match after.as_deref().map(parse_place) {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => return Err(Problem::not_found()),
    };
    let visible = api.access().sees(known.caller(), Right::Find);
    let all = asked.state.unwrap_or_default() == Wanted::All;
    let found = blocking({
        let api = api.clone();
        move || listed(&api, visible, all, after, limit)
    });
    tagged(&headers, &found.await??)
}

fn listed(api: &Api, visible: Visible, all: bool, after: Option<Place>, limit: u32) -> Result<Requests, Problem> {
    let (consents, archive) = (api.site().consents(), api.site().archive());
    let requests = match visible {
        Visible::OwnedBy(owner) => consents.requests_to(owner)?,
        Visible::Nothing | Visible::Shared(_) => Vec::new(),
        Visible::Everything | Visible::All => consents.requests(None)?,
    };
    let mut found = Vec::new();
    for request in requests {
        let is_wanted =
            (all || request.asked == Answered::Open) && after.is_none_or(|after| place_of(&request) > after);
        if !is_wanted {
            continue;
        }
        let names = archive.names_of_id(&request.study_id)?;
        // An owner's are the owner's by the query.
        if !matches!(visible, Visible::OwnedBy(_)) && !visible.shows(names.as_ref().map(|names| &names.uid), None) {
            continue;
        }
        let (block, study, grantee) = place_of(&request);
        let row = RequestRow::of(&request, names.map(|names| names.uid.to_string()));
        found.push((format!("{block}:{study}:{grantee}"), AccessRequest::from(row)));
        if found.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            break;
        }
    }
    let (requests, next) = page(found, limit);
    Ok(Requests { requests, next })
}

/// Ask the owner of another site's study to let this site in.
#[utoipa::path(post, path = "/requests", operation_id = "requestAccess", tag = "consent", request_body = Ask,
    responses((status = 200, description = "it is on the ledger", body = Sent)))]
pub(super) async fn ask(
    State(api): State<Api>,
    known: Known,
    Json(ask): Json<Ask>,
) -> Result<axum::Json<Sent>, Problem> {
    let preview_only = ask.mode == super::model::Mode::Preview;
    let purpose = ask.purpose.map(super::model::Purpose::word);
    ask_for(&api, &known, &ask.study, preview_only, purpose, ask.notes).await.map(|done| json(done.into()))
}

/// Asks the owner of a study to let this site in, for somebody who may.
pub(crate) async fn ask_for(
    api: &Api,
    known: &Known,
    study: &str,
    preview_only: bool,
    purpose: Option<String>,
    notes: Option<String>,
) -> Result<decide::Done, Problem> {
    known.must(api, Right::Request)?;
    let study = on_ledger(api, known, Right::Request, study).await?;
    done(api, known, decide::Ask::Request { study: study.to_string(), preview_only, purpose, notes }).await
}

/// A study that the ledger knows and the caller sees.
async fn on_ledger(api: &Api, known: &Known, right: Right, given: &str) -> Result<B256, Problem> {
    let found = find(api, known, right, given).await?;
    found.info.map(|info| info.study_id).ok_or_else(Problem::not_found)
}

/// Decide with the key in custody.
#[utoipa::path(post, path = "/decisions", operation_id = "decide", tag = "consent", request_body = Decide,
    responses((status = 200, description = "it is on the ledger", body = Sent)))]
pub(super) async fn decide(
    State(api): State<Api>,
    known: Known,
    Json(asked): Json<Decide>,
) -> Result<axum::Json<Sent>, Problem> {
    in_custody(&api, &known, &asked.study, asked.decision.into()).await.map(|done| json(done.into()))
}

/// A decision about a study with the key in custody, by somebody who may have it sign.
pub(crate) async fn in_custody(
    api: &Api,
    known: &Known,
    study: &str,
    decision: decide::Decision,
) -> Result<decide::Done, Problem> {
    known.must(api, Right::Decide)?;
    if !api.access().signs_in_custody(known.caller()) {
        return Err(Problem::forbidden(
            "only the site's own people use keys in custody; make an action and sign it yourself",
        ));
    }
    let study = on_ledger(api, known, Right::Decide, study).await?;
    done(api, known, decide::Ask::Decide { study: study.to_string(), decision }).await
}

/// Make an action for the owner's own key: what it says in words, and what is to be signed.
#[utoipa::path(post, path = "/actions", operation_id = "makeAction", tag = "consent", request_body = Decide,
    responses((status = 200, description = "the action, not signed", body = Unsigned)))]
pub(super) async fn action(
    State(api): State<Api>,
    known: Known,
    Json(asked): Json<Decide>,
) -> Result<axum::Json<Unsigned>, Problem> {
    let pending = unsigned(&api, &known, &asked.study, asked.decision.into()).await?;
    Ok(json(Unsigned {
        typed_data: pending.typed_data(),
        digest: pending.digest().to_string(),
        signer: pending.signer.to_string(),
        words: pending.action.in_words(),
        action: pending,
    }))
}

/// An action for the owner's own key, by somebody who may decide about the study.
pub(crate) async fn unsigned(
    api: &Api,
    known: &Known,
    study: &str,
    decision: decide::Decision,
) -> Result<Pending, Problem> {
    known.must(api, Right::Decide)?;
    let study = on_ledger(api, known, Right::Decide, study).await?;
    let ask = decide::Ask::Unsigned { study: study.to_string(), decision };
    let Told::Unsigned(pending) = decide::answer(api.site(), ask, &known.party()).await? else {
        return Err(Problem::not_found());
    };
    Ok(*pending)
}

/// Send an action that its owner signed; this site pays. The signature is the authority: no token is needed.
#[utoipa::path(post, path = "/actions/submit", operation_id = "submitAction", tag = "consent", request_body = Pending,
    security(()), responses((status = 200, description = "it is on the ledger", body = Sent)))]
pub(super) async fn submit(
    State(api): State<Api>,
    Address(from): Address,
    Json(action): Json<Pending>,
) -> Result<axum::Json<Sent>, Problem> {
    relay(&api, from, action).await.map(|done| json(done.into()))
}

/// Sends what an owner signed, whoever brings it.
pub(crate) async fn relay(api: &Api, from: IpAddr, action: Pending) -> Result<decide::Done, Problem> {
    if !api.0.relays.take(from) {
        return Err(Problem::too_many());
    }
    let (site, signed) = (api.site().clone(), action.clone());
    let checked = blocking(move || decide::check_signed(&site, &signed)).await?;
    checked.map_err(|error| match error {
        decide::DecideError::Study(_) => Problem::not_the_owners_word(),
        other => other.into(),
    })?;
    if !api.0.owners.take(action.signer) {
        return Err(Problem::too_many());
    }
    // Two at once would both look good and one would be paid for in vain.
    let one_at_a_time = api.0.relaying.take(action.study());
    let one_at_a_time =
        one_at_a_time.ok_or_else(|| Problem::conflict("another action about this study is on its way"))?;
    let site = api.site().clone();
    let by = Party::asking(&action.signer.to_string(), Some(from));
    let told = api.finish(async move {
        let _held = one_at_a_time;
        Ok(decide::answer(&site, decide::Ask::Submit { action: Box::new(action) }, &by).await?)
    });
    match told.await? {
        Told::Done(done) => Ok(done),
        _ => Err(answered_otherwise()),
    }
}

fn answered_otherwise() -> Problem {
    Problem::internal(&std::io::Error::other("a command was answered by something else"))
}

/// Take a study over with a code that the site printed: from then on the patient's own key decides. The code is the authority.
#[utoipa::path(post, path = "/claims", operation_id = "claim", tag = "consent", request_body = Claim,
    security(()), responses((status = 200, description = "it is on the ledger", body = Claimed)))]
pub(super) async fn claim(
    State(api): State<Api>,
    Address(from): Address,
    Json(claim): Json<Claim>,
) -> Result<axum::Json<Claimed>, Problem> {
    let taken = take_over(&api, from, &claim.code, &claim.owner, &claim.signature).await?;
    let tokens = api.tokens().clone();
    let (caller, now) = (Caller { principal: Principal::Account(taken.owner), narrowed: None }, now_s());
    let made = blocking(move || tokens.create("claimed", &caller, now, Some(now + CLAIMED_TOKEN_S)));
    let (_, token) = made.await??;
    Ok(json(Claimed {
        sent: taken.done.into(),
        study_id: taken.study.to_string(),
        token: token.to_string(),
        token_expires_s: now + CLAIMED_TOKEN_S,
    }))
}

/// A study that went to its patient's own key.
pub(crate) struct Taken {
    pub(crate) owner: Account,
    study: B256,
    done: decide::Done,
}

/// Hands the study of a code to the account whose key signed that it takes it.
pub(crate) async fn take_over(
    api: &Api,
    from: IpAddr,
    code: &str,
    owner: &str,
    signature: &str,
) -> Result<Taken, Problem> {
    if !api.0.relays.take(from) {
        return Err(Problem::too_many());
    }
    let owner = signed_for(code, owner, signature).ok_or_else(Problem::no_claim)?;
    let (tokens, code) = (api.tokens().clone(), Zeroizing::new(code.to_owned()));
    let study = blocking(move || tokens.claimed_by(&code, now_s())).await??.ok_or_else(Problem::no_claim)?;
    let held = api.0.relaying.take(study);
    let held = held.ok_or_else(|| Problem::conflict("something about this study is on its way"))?;
    let (site, tokens) = (api.site().clone(), api.tokens().clone());
    let told = api.finish(async move {
        let _held = held;
        let decision = decide::Decision::Transfer { owner: owner.to_string() };
        let by = Party::asking(&owner.to_string(), Some(from));
        let told = decide::answer(&site, decide::Ask::Decide { study: study.to_string(), decision }, &by).await?;
        blocking(move || tokens.use_claim(study, now_s())).await??;
        Ok(told)
    });
    match told.await? {
        Told::Done(done) => Ok(Taken { owner, study, done }),
        _ => Err(answered_otherwise()),
    }
}

/// What a key signs before a code without gaps.
pub(crate) const CLAIM_WORDS: &str = "PACS Bridge: take over with ";

/// The account whose key signed that it takes the code.
fn signed_for(code: &str, owner: &str, signature: &str) -> Option<Account> {
    let owner: Account = owner.parse().ok()?;
    let signature: Signature = signature.parse().ok()?;
    let text = format!("{CLAIM_WORDS}{}", *plain_code(code));
    let signer = signature.recover_address_from_msg(text.as_bytes()).ok()?;
    (signer == owner && !owner.is_zero()).then_some(owner)
}

/// Let this site in for an emergency. Everybody on the ledger sees it, the owner first.
#[utoipa::path(post, path = "/break-glass", operation_id = "breakGlass", tag = "consent", request_body = BreakGlass,
    responses((status = 200, description = "it is on the ledger", body = Sent)))]
pub(super) async fn break_glass(
    State(api): State<Api>,
    known: Known,
    Json(asked): Json<BreakGlass>,
) -> Result<axum::Json<Sent>, Problem> {
    known.must(&api, Right::BreakGlass)?;
    if !(1..=86_400).contains(&asked.seconds) {
        return Err(Problem::bad_request("seconds must be from 1 to 86400"));
    }
    let study = on_ledger(&api, &known, Right::BreakGlass, &asked.study).await?;
    let (study, reason, seconds) = (study.to_string(), asked.reason.word(), asked.seconds.into());
    tell(&api, &known, decide::Ask::BreakGlass { study, reason, seconds }).await.map(json)
}

/// The sources of the consortium.
#[utoipa::path(get, path = "/sources", operation_id = "listSources", tag = "consent", params(Page),
    responses((status = 200, description = "a page of sources", body = Sources), (status = 304, description = "as known")))]
pub(super) async fn sources(
    State(api): State<Api>,
    known: Known,
    Asked(asked): Asked<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    known.must(&api, Right::Sources)?;
    let (limit, after) = (rows(asked.limit)?, place(asked.after)?);
    let after = match after.map(|after| after.parse::<Account>()) {
        None => None,
        Some(Ok(after)) => Some(after),
        Some(Err(_)) => return Err(Problem::not_found()),
    };
    let site = api.site().clone();
    let mut all = blocking(move || site.consents().sources()).await??;
    all.retain(|source| after.is_none_or(|after| source.identity > after));
    let named = all.iter().map(|s| (s.identity.to_string(), Source::from(decide::SourceRow::of(s)))).collect();
    let (sources, next) = page(named, limit);
    tagged(&headers, &Sources { sources, next })
}
