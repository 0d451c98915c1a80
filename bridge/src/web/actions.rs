//! What people do about a study: have it compared with the ledger, decide who may read it, with the key in custody, and make a code for its patient.

use axum::extract::State;
use axum::response::Response;
use maud::html;

use super::layout::{self, Place};
use super::visitor::{Fields, Form};
use super::words::{short, time};
use super::{claim, to, verification};
use crate::access::Right;
use crate::audit::{Event, KeyUse};
use crate::decide::{Decision, parse_moment};
use crate::http::{Api, At, Problem, blocking, in_custody, now_s};

/// Compares every object of a study with the ledger.
pub(super) async fn verify(
    State(api): State<Api>,
    At(study): At<String>,
    Form { visitor, .. }: Form,
) -> Result<Response, Problem> {
    let (uid, _) = visitor.study(&api, Right::Retrieve, &study).await?;
    let event = Event::read(&visitor.known.party(), uid.as_str(), "/studies/*/verification", None);
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))?;
    verification::verify(&api, uid).await;
    Ok(to(&format!("/ui/studies/{uid}#verification")))
}

/// Lets somebody read a study until a day, or no longer.
pub(super) async fn decide(
    State(api): State<Api>,
    At(study): At<String>,
    Form { visitor, fields }: Form,
) -> Result<Response, Problem> {
    let (uid, _) = visitor.study(&api, Right::Decide, &study).await?;
    let (decision, words) = decision(&fields, now_s())?;
    let done = in_custody(&api, &visitor.known, uid.as_str(), decision).await?;
    let (transaction, block) = (short(&done.transaction), done.block);
    api.pages()
        .sessions()
        .tell(visitor.key, &format!("{words}. It is on the ledger: transaction {transaction}, block {block}."));
    Ok(to(&format!("/ui/studies/{uid}")))
}

/// How long a code is good: two weeks.
const CODE_S: u64 = 14 * 86_400;

/// Makes a code with which the patient takes the study over, on a page to be printed. It is shown once.
pub(super) async fn code(
    State(api): State<Api>,
    At(study): At<String>,
    Form { visitor, .. }: Form,
) -> Result<Response, Problem> {
    let (uid, found) = visitor.study(&api, Right::Decide, &study).await?;
    if !api.access().signs_in_custody(visitor.known.caller()) {
        return Err(Problem::forbidden("only the site's own people make codes"));
    }
    let info = found.info.filter(|info| info.custodial && !info.tombstoned);
    let info =
        info.ok_or_else(|| Problem::conflict("the study's owner has a key of his own already, or it has ended"))?;
    let (tokens, ends_s) = (api.tokens().clone(), now_s() + CODE_S);
    let code = blocking(move || tokens.create_claim(info.study_id, now_s(), ends_s)).await??;
    let about = info.study_id.to_string();
    let event = Event::keys_used(&visitor.known.party(), KeyUse::ClaimCode, &about, None);
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))?;
    let content = html! {
        p { a href=(format!("/ui/studies/{uid}")) { "Back to the study" } }
        div class="narrow card" {
            h1 { "A code for the patient" }
            p { "Print this page and give it to the patient, and to nobody else: whoever has the code can take the study over. It is shown once and good until " (time(ends_s)) "." }
            p class="code mono" { (*code) }
            ol {
                li { "Open the page " span class="mono" { (claim::PATH) } " of this bridge, under the address by which the hospital has it." }
                li { "Type in the code." }
                li { "Make a passkey on your phone, computer or security key. From then on it alone decides who may see these images." }
            }
            p { "Name of the study, for another hospital that wants to ask for it:" }
            p class="mono" { (about) }
        }
    };
    Ok(layout::page(&api, &visitor, Place::Studies, "A code for the patient", &content))
}

/// A decision as the forms of a study's page have it, and what to say when it is done.
pub(super) fn decision(fields: &Fields, now_s: u64) -> Result<(Decision, String), Problem> {
    let grantee = fields.get("grantee").to_owned();
    let who = short(&grantee);
    match fields.get("kind") {
        "revoke" => Ok((Decision::Revoke { grantee }, format!("{who} may not read this study any more"))),
        "deny" => {
            Ok((Decision::Deny { grantee, reason: None, notes: None }, format!("The request of {who} is refused")))
        }
        "allow" => {
            let until_s = last_second(fields.get("until"), now_s)?;
            let preview_only = match fields.get("mode") {
                "full" => false,
                "preview" => true,
                _ => return Err(Problem::bad_request("it must be said what may be read")),
            };
            let decision = Decision::Allow {
                grantee,
                preview_only,
                series: None,
                from_s: None,
                until_s: Some(until_s),
                purpose: None,
                encryption_key: None,
                notes: None,
            };
            Ok((decision, format!("{who} may read this study until {}", fields.get("until"))))
        }
        _ => Err(Problem::bad_request("it must be said what is decided")),
    }
}

/// The last second of a day in UTC, which must not be over.
pub(super) fn last_second(day: &str, now_s: u64) -> Result<u64, Problem> {
    let is_day = day.len() == 10 && day.contains('-');
    let first = parse_moment(day, now_s).filter(|_| is_day);
    let first = first.ok_or_else(|| Problem::bad_request("the last day must be written as year-month-day"))?;
    let last = first + 86_399;
    if last < now_s { Err(Problem::bad_request("the last day is over already")) } else { Ok(last) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_day_is_meant_to_its_end() {
        let now = 1_700_000_000;
        assert_eq!(last_second("2023-11-14", now).unwrap(), 1_700_006_399);
        for wrong in ["2023-11-13", "", "30d", "1800000000", "2023-02-30", "14.11.2023"] {
            assert!(last_second(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_the_forms_have_is_decided() {
        let of = |text: &str| decision(&Fields::parse(text.as_bytes()), 0);
        assert!(matches!(of("kind=revoke&grantee=0x1").unwrap().0, Decision::Revoke { grantee } if grantee == "0x1"));
        let (allowed, words) = of("kind=allow&grantee=0x1&mode=preview&until=2030-01-31").unwrap();
        assert!(
            matches!(allowed, Decision::Allow { preview_only: true, until_s: Some(1_896_134_399), .. }),
            "{allowed:?}"
        );
        assert_eq!(words, "0x1 may read this study until 2030-01-31");
        for wrong in ["kind=transfer&owner=0x1", "kind=tombstone", "", "kind=allow&grantee=0x1&until=2030-01-31"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
