//! A study goes to its patient's own key, with a code that the site printed. Nobody need be logged in: the code is the authority.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use maud::html;

use super::key::{ACCOUNT_FIELD, SIGNATURE_FIELD, Signed, Way};
use super::visitor::Sent;
use super::{Holder, consent, key, layout, login};
use crate::audit::{Event, Party};
use crate::http::{Api, CLAIM_WORDS, ClientAddress, Problem, take_over};

/// Where that is.
pub(super) const PATH: &str = "/ui/claim";

pub(super) async fn form(State(api): State<Api>) -> Response {
    page(&api, StatusCode::OK, None)
}

pub(super) async fn claim(State(api): State<Api>, Sent { parts, fields }: Sent) -> Result<Response, Problem> {
    let ClientAddress(from) = ClientAddress::taken(&parts)?;
    let (code, account, signature) = (fields.get("code"), fields.get(ACCOUNT_FIELD), fields.get(SIGNATURE_FIELD));
    let taken = match take_over(&api, from, code, account, signature).await {
        Ok(taken) => taken,
        Err(problem) if problem.status() == StatusCode::FORBIDDEN => {
            let why =
                "This code is not good: it was mistyped, used already, or is over. Or the key did not sign for it.";
            return Ok(page(&api, problem.status(), Some(why)));
        }
        Err(problem) => return Err(problem),
    };
    let event = Event::logged_in(&Party::asking(&format!("account:{}", taken.owner), Some(from)), "/claim");
    api.site().audit().durable(vec![event]).await.map_err(|error| Problem::internal(&error))?;
    let notice = "The study is yours: from now on your key alone decides who may see it.";
    Ok(login::begin_telling(&api, &parts.headers, Holder::Owner(taken.owner), consent::PATH, Some(notice)))
}

fn page(api: &Api, status: StatusCode, why: Option<&str>) -> Response {
    let fields = html! {
        label {
            "Code"
            input name="code" required minlength="25" maxlength="64" spellcheck="false" autocapitalize="characters" autofocus placeholder="XXXXX-XXXXX-XXXXX-XXXXX-XXXXX"
                aria-invalid=[why.map(|_| "true")] aria-describedby=[why.map(|_| "why")];
        }
    };
    let ways = [(Way::New, "Make a passkey and begin"), (Way::Passkey, "Use the passkey that I have")];
    let content = html! {
        div class="narrow card" {
            h1 { "Decide about your images yourself" }
            @if let Some(why) = why { p class="notice bad" id="why" role="alert" { (why) } }
            p { "The hospital gave you a code on paper. With it the study becomes yours: then only your key says who may see it." }
            p { "Your key is in a passkey, on your phone, computer or security key. It never comes to the hospital." }
            (key::form(PATH, &layout::site(api.ae_title()), &Signed::Code(CLAIM_WORDS), &fields, &ways))
            p { a href=(login::PATH) { "I have begun already: log in" } }
        }
    };
    layout::bare_with_key(status, Some(api.ae_title()), "Begin with a code", &content)
}
