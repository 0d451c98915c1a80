//! Who may see a patient's images: who asks, who may now, and who could before. What the patient decides here his own key signs; this site sends it to the
//! ledger and pays for it. In a patient's words: nothing of chains, gas or accounts but where they must be told apart.

use alloy::primitives::{Address, B256, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use contracts::messages::Purpose;
use maud::{Markup, html};

use super::key::{SIGNATURE_FIELD, Signed, Way};
use super::layout::{self, Place, badge, form_token};
use super::names::Names;
use super::visitor::{Fields, Form, Visitor};
use super::words::{self, Tone, count, date, day_of, short, span, time};
use super::{key, to};
use crate::access::Right;
use crate::decide::{Action, Decision, Pending};
use crate::follow::{AccessRequest, Asked, Decision as Said, Grant, Mode, SourceInfo, StudyInfo};
use crate::http::{Api, Problem, blocking, now_s, relay, unsigned};

/// Where that is.
pub(super) const PATH: &str = "/ui/consent";
/// Where a choice is put into the words that are signed.
pub(super) const CHOICES_PATH: &str = "/ui/consent/choices";
/// Where what was signed goes.
pub(super) const SIGNED_PATH: &str = "/ui/consent/signed";

/// Studies on the page; more are counted.
const STUDIES_MAX: u32 = 500;
/// What is over, on the page.
const EARLIER_MAX: usize = 100;
/// Days for which access is offered.
const OFFERED_DAYS: u64 = 30;
/// From here on a last second means "until it is stopped": the end of the year 9999.
const FOR_EVER_S: u64 = 253_402_300_799;

/// A study of the patient that is here.
struct Owned {
    info: StudyInfo,
    uid: String,
    title: String,
    grants: Vec<Grant>,
    requests: Vec<AccessRequest>,
}

/// All that the page shows.
struct Everything {
    studies: Vec<Owned>,
    /// Others of the patient are elsewhere, and decided about there.
    elsewhere: usize,
    more: bool,
    sources: Vec<SourceInfo>,
    names: Names,
}

pub(super) async fn show(State(api): State<Api>, visitor: Visitor) -> Result<Response, Problem> {
    let owner = owner(&api, &visitor)?;
    let here = api.clone();
    let all = blocking(move || gather(&here, owner)).await??;
    let now = now_s();
    let content = html! {
        div data-live="study" {
            h1 { "Who may see my images" }
            p class="dim" { "What you decide here is signed with your key and written to the ledger that the hospitals share." }
            @if all.studies.is_empty() {
                p { "No study here belongs to your key." (elsewhere(&all)) }
            } @else {
                div class="two" {
                    div { (waiting(&visitor, &all, now)) (offer(&visitor, &all, now)) }
                    div { (allowed(&visitor, &all, now)) (earlier(&all, now)) }
                }
                (studies(&all))
                p class="dim" { (elsewhere(&all)) }
            }
            (own_key(&api, &visitor, &all, owner))
        }
    };
    Ok(layout::page_with_key(&api, &visitor, Place::Consent, "Who may see my images", &content))
}

/// The patient who looks. Others decide where the study is shown, with keys in custody.
fn owner(api: &Api, visitor: &Visitor) -> Result<Address, Problem> {
    visitor.known.must(api, Right::Decide)?;
    visitor.owner().ok_or_else(|| Problem::forbidden("this page is for patients who decide with their own key"))
}

/// Blocks.
fn gather(api: &Api, owner: Address) -> Result<Everything, Problem> {
    let consents = api.site().consents();
    let mut ids = consents.studies_of(owner, None, STUDIES_MAX + 1)?;
    let more = ids.len() > STUDIES_MAX as usize;
    ids.truncate(STUDIES_MAX as usize);
    let known = ids.into_iter().map(|id| owned(api, id)).collect::<Result<Vec<_>, _>>()?;
    let (count, studies) = (known.len(), known.into_iter().flatten().collect::<Vec<_>>());
    let sources = consents.sources()?;
    let names = names(api, &sources);
    Ok(Everything { elsewhere: count - studies.len(), studies, more, sources, names })
}

/// What patients call the sites; this one is called as its pages are, unless it has a name.
fn names(api: &Api, sources: &[SourceInfo]) -> Names {
    let mut configured = api.settings().web.site_names.clone();
    if let Ok(ours) = api.site().parts().source.parse::<Address>() {
        configured.entry(ours).or_insert_with(|| layout::site(api.ae_title()));
    }
    Names::new(&configured, sources)
}

fn owned(api: &Api, id: B256) -> Result<Option<Owned>, Problem> {
    let (consents, archive) = (api.site().consents(), api.site().archive());
    let (Some(info), Some(names)) = (consents.study(id)?, archive.names_of_id(&id)?) else { return Ok(None) };
    let uid = names.uid.to_string();
    let (grants, mut requests) = (consents.grants_of(id)?, consents.requests(Some(id))?);
    requests.retain(|request| request.asked == Asked::Open);
    let title = title(api, id, Some(&uid))?;
    Ok(Some(Owned { info, uid, title, grants, requests }))
}

/// What a patient calls a study.
fn title(api: &Api, id: B256, uid: Option<&str>) -> Result<String, Problem> {
    let summary = uid.map(|uid| api.site().archive().summary(uid)).transpose()?.flatten();
    let Some(study) = summary else { return Ok(format!("the study {}", short(&id.to_string()))) };
    let kinds = if study.modalities.is_empty() { "study".to_owned() } else { study.modalities.join(", ") };
    let described = if study.description.is_empty() { String::new() } else { format!(" ({})", study.description) };
    Ok(format!("{kinds} of {}{described}", date(&study.study_date)))
}

fn waiting(visitor: &Visitor, all: &Everything, now: u64) -> Markup {
    let asked: Vec<_> =
        all.studies.iter().flat_map(|study| study.requests.iter().map(move |one| (study, one))).collect();
    html! {
        h2 { "Waiting for you (" (asked.len()) ")" }
        @if asked.is_empty() { p { "Nobody asks for your images." } }
        @for (study, request) in asked {
            div class="card req" {
                p { (all.names.of(request.grantee)) " asks to see " b { (study.title) } "." }
                @if !request.known { p { (badge(Tone::Bad, "unknown")) " This is no hospital that the others know." } }
                dl {
                    dt { "Wants" } dd { (sees(request.mode)) }
                    dt { "Reason" } dd { (layout::sentence(words::purpose(request.purpose))) }
                }
                (choice(visitor, "allow", study.info.study_id, Some(request.grantee), &html! {
                    input type="hidden" name="purpose" value=(Purpose::from(request.purpose).code());
                    (what(request.mode))
                    (until(now))
                    button class="primary" { "Allow" }
                }))
                (choice(visitor, "deny", study.info.study_id, Some(request.grantee), &html! { button class="danger" { "Do not allow" } }))
            }
        }
    }
}

fn allowed(visitor: &Visitor, all: &Everything, now: u64) -> Markup {
    let current =
        |grant: &&Grant| grant.mode_at(now).is_some() || (grant.decision == Said::Allowed && now < grant.not_before);
    let all_current: Vec<_> =
        all.studies.iter().flat_map(|study| study.grants.iter().filter(current).map(move |one| (study, one))).collect();
    html! {
        h2 { "Allowed now (" (all_current.len()) ")" }
        @if all_current.is_empty() { p { "Nobody but the hospital that made them sees your images." } }
        @for (study, grant) in all_current {
            div class="card req" {
                p { (all.names.of(grant.grantee)) " · " b { (study.title) } }
                dl {
                    dt { "Sees" } dd { @if grant.series.is_zero() || grant.emergency_at(now) { (sees(grant.mode_at(now).unwrap_or(grant.mode))) } @else { "one series" } }
                    dt { "Until" } dd { (ends(grant, now)) }
                    @if grant.purpose != 0 { dt { "For" } dd { (words::purpose(grant.purpose)) } }
                }
                @if grant.emergency_at(now) {
                    p { (badge(Tone::Bad, "emergency")) " They said that it was an emergency and did not wait for you. It ends by itself." }
                }
                @if grant.decision == Said::Allowed {
                    details {
                        summary { "Stop" }
                        p { "From then on they get no more of it from any hospital. What they have copied already cannot be called back." }
                        (choice(visitor, "revoke", study.info.study_id, Some(grant.grantee), &html! { button class="danger" { "Stop access" } }))
                    }
                }
            }
        }
    }
}

fn ends(grant: &Grant, now: u64) -> Markup {
    let last = if grant.emergency_at(now) { grant.emergency_until } else { grant.not_after };
    html! {
        @if last >= FOR_EVER_S { "you stop it" } @else { (time(last)) ", " (span(last.saturating_sub(now))) " left" }
        @if now < grant.not_before { ", not before " (time(grant.not_before)) }
    }
}

/// What is over: each hospital and study once, as it ended.
fn earlier(all: &Everything, now: u64) -> Markup {
    let ended = |grant: &Grant| -> Option<(Tone, String)> {
        let is_open = grant.asked == Asked::Open && grant.seq == 0;
        match grant.decision {
            _ if grant.mode_at(now).is_some() || is_open => None,
            Said::Allowed if grant.not_after < now => {
                Some((Tone::Waiting, format!("ran out {}", time(grant.not_after))))
            }
            Said::Allowed if grant.suspended => Some((Tone::Bad, "shut out by the hospitals".to_owned())),
            Said::Allowed => None,
            Said::Revoked => Some((Tone::Bad, "stopped".to_owned())),
            Said::Unsaid if grant.asked == Asked::Denied => Some((Tone::Bad, "not allowed".to_owned())),
            Said::Unsaid if grant.emergency_until != 0 => {
                Some((Tone::Waiting, format!("emergency until {}", time(grant.emergency_until))))
            }
            Said::Unsaid => None,
        }
    };
    let over = all.studies.iter().flat_map(|study| study.grants.iter().map(move |grant| (study, grant)));
    let over: Vec<_> = over.filter_map(|(study, grant)| Some((study, grant, ended(grant)?))).collect();
    html! {
        @if !over.is_empty() {
            h2 { "Earlier" }
            div class="scroll" tabindex="0" role="region" aria-label="Earlier decisions" {
                table {
                    thead { tr { th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "Ended" } } }
                    tbody {
                        @for (study, grant, (tone, how)) in over.iter().take(EARLIER_MAX) {
                            tr { td { (all.names.of(grant.grantee)) } td { (study.title) } td { (badge(*tone, how)) } }
                        }
                    }
                }
            }
            @if over.len() > EARLIER_MAX { p class="dim" { "And " (over.len() - EARLIER_MAX) " more." } }
        }
    }
}

/// A form that lets a hospital in that has not asked.
fn offer(visitor: &Visitor, all: &Everything, now: u64) -> Markup {
    let open: Vec<&Owned> = all.studies.iter().filter(|study| !study.info.tombstoned).collect();
    let made_all = |site: &SourceInfo| open.iter().all(|study| study.info.source == site.identity);
    let can = |site: &&SourceInfo| site.active && !site.encryption_key.is_zero() && !made_all(site);
    let sites: Vec<&SourceInfo> = all.sources.iter().filter(can).collect();
    html! {
        @if !sites.is_empty() && !open.is_empty() {
            details class="card" {
                summary { "Let a hospital see them that has not asked" }
                form class="stack" method="post" action=(CHOICES_PATH) {
                    (form_token(visitor))
                    input type="hidden" name="kind" value="allow";
                    label {
                        "Study"
                        select name="study" { @for study in &open { option value=(study.info.study_id) { (study.title) } } }
                    }
                    label {
                        "Hospital"
                        select name="grantee" { @for site in &sites { option value=(site.identity) { (all.names.text(site.identity)) } } }
                    }
                    (what(Mode::Full))
                    (until(now))
                    button class="primary" { "Allow" }
                }
            }
        }
    }
}

fn studies(all: &Everything) -> Markup {
    html! {
        h2 { "My studies (" (all.studies.len()) @if all.more { " of more" } ")" }
        div class="scroll" tabindex="0" role="region" aria-label="My studies" {
            table {
                thead { tr { th scope="col" { "Study" } th scope="col" { "Made by" } th scope="col" { "Its name, for a hospital that wants to ask" } } }
                tbody {
                    @for study in &all.studies {
                        tr {
                            td { a href=(format!("/ui/studies/{}", study.uid)) { (study.title) } }
                            td { (all.names.of(study.info.source)) }
                            td class="mono long" { (study.info.study_id) }
                        }
                    }
                }
            }
        }
    }
}

fn elsewhere(all: &Everything) -> Markup {
    let studies = count(all.elsewhere as u64, "study of yours is", "studies of yours are");
    html! { @if all.elsewhere > 0 { " " (studies) " at other hospitals, whose pages have them." } }
}

/// What can be done about the key itself.
fn own_key(api: &Api, visitor: &Visitor, all: &Everything, owner: Address) -> Markup {
    html! {
        h2 { "My key" }
        div class="card" {
            p { "Your key is " span class="mono" { (owner) } ". Who loses it can decide nothing any more, and nobody can make it again." }
            details data-scripted hidden {
                summary { "Write my key down" }
                p { "Who has this paper decides in your place. Keep it as you keep money, and show it to nobody, nor to a hospital." }
                div class="stack" data-paper-of=(owner) data-site=(layout::site(api.ae_title())) {
                    button type="button" data-show { "Show the key of my passkey" }
                    output class="mono" data-written {}
                    p class="said" role="status" data-said {}
                }
            }
            @if !all.studies.is_empty() {
                details {
                    summary { "Hand a study to another key" }
                    p { "For a new passkey, or for somebody who is to decide from now on. You cannot take it back." }
                    form class="stack" method="post" action=(CHOICES_PATH) {
                        (form_token(visitor))
                        input type="hidden" name="kind" value="transfer";
                        label { "Study" select name="study" { @for study in &all.studies { option value=(study.info.study_id) { (study.title) } } } }
                        label { "The other key" input name="owner" required spellcheck="false" placeholder="0x…" pattern="0x[0-9a-fA-F]{40}"; }
                        button class="danger" { "Hand over" }
                    }
                }
            }
        }
    }
}

/// A form that begins a decision.
fn choice(visitor: &Visitor, kind: &str, study: B256, grantee: Option<Address>, rest: &Markup) -> Markup {
    html! {
        form class="row" method="post" action=(CHOICES_PATH) {
            (form_token(visitor))
            input type="hidden" name="kind" value=(kind);
            input type="hidden" name="study" value=(study);
            @if let Some(grantee) = grantee { input type="hidden" name="grantee" value=(grantee); }
            (rest)
        }
    }
}

fn what(asked: Mode) -> Markup {
    html! {
        label {
            "They see"
            select name="mode" {
                option value="full" selected[asked == Mode::Full] { (sees(Mode::Full)) }
                option value="preview" selected[asked == Mode::Preview] { (sees(Mode::Preview)) }
            }
        }
    }
}

fn sees(mode: Mode) -> &'static str {
    match mode {
        Mode::Full => "all images",
        Mode::Preview => "small pictures only",
    }
}

fn until(now: u64) -> Markup {
    html! {
        label { "Until" input type="date" name="until" required min=(day_of(now)) value=(day_of(now + OFFERED_DAYS * 86_400)); }
    }
}

/// Puts a choice into the words that are signed, and asks for the signature.
pub(super) async fn choose(State(api): State<Api>, Form { visitor, fields }: Form) -> Result<Response, Problem> {
    owner(&api, &visitor)?;
    let decision = decision(&fields)?;
    let pending = match unsigned(&api, &visitor.known, fields.get("study"), decision.clone()).await {
        Err(problem) if problem.status() == StatusCode::CONFLICT => {
            can_be_encrypted_to(&api, &decision, fields.get("study")).await?;
            return Err(problem);
        }
        other => other?,
    };
    let words = in_words(&api, &pending).await?;
    let action = serde_json::to_string(&pending)?;
    let fields = html! {
        (form_token(&visitor))
        input type="hidden" name="action" value=(action);
    };
    let (data, signer) = (pending.typed_data(), pending.signer.to_string());
    let signed = Signed::Typed(&data, &signer);
    let site = layout::site(api.ae_title());
    let content = html! {
        div class="narrow card" {
            h1 { "Is this what you want?" }
            p class="words" { (words) "." }
            (key::form(SIGNED_PATH, &site, &signed, &fields, &[(Way::Passkey, "Yes, sign with my passkey")]))
            details { summary { "What exactly is signed" } p class="mono" { (pending.action.in_words()) } }
            p { a class="btn" href=(PATH) { "No, back" } }
        }
    };
    Ok(layout::page_with_key(&api, &visitor, Place::Consent, "Is this what you want?", &content))
}

/// What was chosen; for the purpose that was asked for, and no other.
fn decision(fields: &Fields) -> Result<Decision, Problem> {
    if fields.get("kind") == "transfer" {
        return Ok(Decision::Transfer { owner: fields.get("owner").to_owned() });
    }
    let (mut decision, _) = super::actions::decision(fields, now_s())?;
    if let Decision::Allow { purpose, .. } = &mut decision {
        *purpose = Some(fields.get("purpose").to_owned()).filter(|purpose| !purpose.is_empty());
    }
    Ok(decision)
}

/// Refuses an allowance for somebody who never said a key, in a patient's words: it must ask first.
async fn can_be_encrypted_to(api: &Api, decision: &Decision, study: &str) -> Result<(), Problem> {
    let Decision::Allow { grantee, .. } = decision else { return Ok(()) };
    // What is no account or no study is refused as such.
    let (Ok(grantee), Ok(study)) = (grantee.parse::<Address>(), study.parse::<B256>()) else { return Ok(()) };
    let consents = api.site().consents().clone();
    let known = blocking(move || {
        let asked = consents.requests(Some(study))?.iter().any(|request| request.grantee == grantee);
        let announced = consents.source(grantee)?.is_some_and(|source| !source.encryption_key.is_zero());
        Ok::<_, Problem>(asked || announced)
    });
    if known.await?? {
        Ok(())
    } else {
        Err(Problem::conflict("they must ask first: nobody knows yet how to encrypt for them"))
    }
}

/// Sends what was signed.
pub(super) async fn submit(State(api): State<Api>, Form { visitor, fields }: Form) -> Result<Response, Problem> {
    owner(&api, &visitor)?;
    let action: Result<Pending, _> = serde_json::from_str(fields.get("action"));
    let mut pending = action.map_err(|_| Problem::bad_request("this is no decision: open the page again"))?;
    let signature = fields.get(SIGNATURE_FIELD).parse::<Bytes>().ok().filter(|signature| !signature.is_empty());
    pending.signature = Some(signature.ok_or_else(|| Problem::bad_request("the signature is missing, or is none"))?);
    let words = in_words(&api, &pending).await?;
    relay(&api, visitor.known.address(), pending).await.map_err(|problem| match problem.status() {
        StatusCode::FORBIDDEN => Problem::forbidden("another key signed than the one that the study belongs to"),
        _ => problem,
    })?;
    api.pages().sessions().tell(visitor.key, &format!("Done: {words}. It is on the ledger."));
    Ok(to(PATH))
}

/// What an action says, for the patient.
async fn in_words(api: &Api, pending: &Pending) -> Result<String, Problem> {
    let (here, id, action) = (api.clone(), pending.study(), pending.action.clone());
    blocking(move || {
        let uid = here.site().archive().names_of_id(&id)?.map(|names| names.uid.to_string());
        let title = title(&here, id, uid.as_deref())?;
        let sources = here.site().consents().sources()?;
        Ok(said(&action, &title, &names(&here, &sources)))
    })
    .await?
}

fn said(action: &Action, title: &str, names: &Names) -> String {
    match action {
        Action::Allow { grantee, mode, not_after, not_before, purpose, series, .. } => {
            let mode = Mode::from_number(*mode).map_or("nothing", sees);
            let until = if *not_after >= FOR_EVER_S { "you stop it".to_owned() } else { time(*not_after) };
            let from = if *not_before == 0 { String::new() } else { format!(" from {}", time(*not_before)) };
            let purpose = if *purpose == 0 { String::new() } else { format!(", for {}", words::purpose(*purpose)) };
            let part = if series.is_zero() { "" } else { " one series of" };
            format!("{} may see{part} {title}: {mode},{from} until {until}{purpose}", names.text(*grantee))
        }
        Action::Deny { grantee, .. } => format!("{} may not see {title}", names.text(*grantee)),
        Action::Revoke { grantee, .. } => format!("{} may not see {title} any more", names.text(*grantee)),
        Action::Transfer { new_owner, .. } => {
            format!("{title} goes to the key {new_owner}, which alone decides from then on")
        }
        Action::Tombstone { .. } | Action::NameGuardians { .. } | Action::VetoRecovery { .. } => action.in_words(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patient_reads_what_is_signed() {
        let (grantee, study) = (Address::repeat_byte(2), B256::repeat_byte(1));
        let names = Names::new(&[(grantee, "St Elsewhere".to_owned())].into(), &[]);
        let allow = |not_after| Action::Allow {
            study,
            grantee,
            series: B256::ZERO,
            mode: Mode::Preview.number(),
            not_before: 0,
            not_after,
            purpose: 1,
            encryption_key: B256::ZERO,
            notes: B256::ZERO,
            seq: 1,
            deadline: 0,
        };
        assert_eq!(
            said(&allow(86_399), "CT of 1 Jan 2020", &names),
            "St Elsewhere may see CT of 1 Jan 2020: small pictures only, until 1970-01-01 23:59:59 UTC, for treatment"
        );
        assert!(said(&allow(u64::MAX), "x", &names).contains("until you stop it"));
        let revoke = Action::Revoke { study, grantee, seq: 1, deadline: 0 };
        assert_eq!(said(&revoke, "x", &names), "St Elsewhere may not see x any more");
    }
}
