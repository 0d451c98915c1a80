//! Pages for people: studies, what happened to each and who may read it, and how the ledger is. Written on the server, at `/ui` over the port of the
//! HTTP API; everything works without a script.
//!
//! * [`session`], [`visitor`], [`login`], [`issuer`], [`challenge`]: who looks, and which forms are taken. [`layout`], [`words`], [`names`], [`assets`]: what every page has.
//! * [`consent`], [`claim`], [`key`]: what patients decide, with keys of their own. [`requests`]: what this site asks other sites' patients for. [`links`]: one study for somebody without a login.
//! * [`studies`], [`study`], [`actions`], [`ledger`], [`audit`], [`operations`]: the pages. [`picture`], [`verification`], [`csv`]: what they show.
//!
//! Who may do and see what is asked of [`crate::access`] as everywhere; what somebody may not see is absent. Decisions go the way of the API's. Must not know
//! SQL, pieces or keys.

mod actions;
mod assets;
mod audit;
mod challenge;
mod claim;
mod consent;
mod csv;
mod issuer;
mod key;
mod layout;
mod ledger;
mod links;
mod login;
mod names;
mod operations;
mod picture;
mod requests;
mod session;
mod studies;
mod study;
mod verification;
mod visitor;
mod words;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};

use crate::config::Http;
use crate::http::{Api, Problem, Routes};
use crate::site::Site;
use audit::Examinations;
use challenge::Challenges;
use issuer::Begun;
use ledger::Measured;
pub(crate) use ledger::watch;
use operations::Remembered;
use picture::Blurs;
pub(crate) use session::{Holder, Key, Sessions};
use verification::Verifications;

/// Where every page is.
pub(crate) const PREFIX: &str = "/ui";

/// What the pages remember.
pub(crate) struct Pages {
    sessions: Sessions,
    blurs: Blurs,
    verifications: Verifications,
    challenges: Challenges,
    begun: Begun,
    examinations: Examinations,
    operations: Remembered,
    measured: Measured,
}

impl Pages {
    pub(crate) fn new(settings: &Http, site: &Site) -> Self {
        let secure = settings.tls.is_some() || settings.behind_proxy;
        Self {
            sessions: Sessions::new(&site.parts().source, secure, settings.web.session),
            blurs: Blurs::default(),
            verifications: Verifications::default(),
            challenges: Challenges::new(&site.parts().source),
            begun: Begun::new(&site.parts().source, secure),
            examinations: Examinations::default(),
            operations: Remembered::default(),
            measured: Measured::default(),
        }
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }
}

/// The pages, and what they load, which say problems in words.
pub(crate) fn router() -> Router<Api> {
    let router = routes().router().method_not_allowed_fallback(async || Problem::method_not_allowed());
    router.layer(middleware::from_fn(in_words))
}

/// Where each of them is.
pub(crate) fn routes() -> Routes {
    const STUDY: &str = "/ui/studies/{study}";
    Routes::new()
        .route("/ui", get(async || to(START)))
        .route(START, get(studies::list))
        .route(login::PATH, get(login::form).post(login::login))
        .route(login::KEY_PATH, post(login::by_key))
        .route(issuer::BEGIN_PATH, get(issuer::begin))
        .route(issuer::CALLBACK_PATH, get(issuer::callback))
        .route(claim::PATH, get(claim::form).post(claim::claim))
        .route(consent::PATH, get(consent::show))
        .route(consent::CHOICES_PATH, post(consent::choose))
        .route(consent::SIGNED_PATH, post(consent::submit))
        .route(requests::PATH, get(requests::show).post(requests::ask))
        .route("/ui/logout", post(login::logout))
        .route(STUDY, get(study::show))
        .route(&format!("{STUDY}/verification"), post(actions::verify))
        .route(&format!("{STUDY}/decisions"), post(actions::decide))
        .route(&format!("{STUDY}/code"), post(actions::code))
        .route(&format!("{STUDY}/links"), post(links::make))
        .route(&format!("{STUDY}/links/{{link}}"), post(links::stop))
        .route(links::PATH, get(links::open))
        .route(&format!("{STUDY}/pictures/{{picture}}"), get(picture::serve))
        .route("/ui/ledger", get(ledger::show))
        .route(audit::PATH, get(audit::list))
        .route(audit::CSV_PATH, get(audit::download))
        .route(audit::VERIFICATION_PATH, post(audit::examine))
        .route(operations::PATH, get(operations::show))
        .route(operations::ECHO_PATH, post(operations::echo))
        .route("/ui/assets/{name}", get(assets::serve))
        .route("/ui/{*nowhere}", any(async || Problem::not_found()))
}

/// The first page.
const START: &str = "/ui/";

/// Leads to the first page.
pub(crate) fn start() -> Response {
    to(START)
}

/// What a request to the pages reads, for the audit trail; `path` is below [`PREFIX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads<'a> {
    /// The list of studies.
    List,
    /// A page about one.
    Study(&'a str),
    /// A picture of one, which is recorded once for many.
    Picture(&'a str),
    /// Nothing about anybody.
    Nobody,
}

pub(crate) fn reads(path: &str) -> Reads<'_> {
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.next(), segments.next()) {
        (Some("" | "consent" | "requests"), None, None) => Reads::List,
        (Some("studies"), Some(study), None) => Reads::Study(study),
        (Some("studies"), Some(study), Some("pictures")) => Reads::Picture(study),
        _ => Reads::Nobody,
    }
}

/// Whether a path is a page's own, of which nobody needs hundreds a minute: no picture and no file.
pub(crate) fn is_page(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| {
        (rest.is_empty() || rest.starts_with('/')) && !rest.starts_with("/assets/") && !rest.contains("/pictures/")
    })
}

/// See there (RFC 9110 15.4.4).
fn to(path: &str) -> Response {
    let Ok(place) = HeaderValue::from_str(path) else { return Problem::not_found().into_response() };
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}

/// Says problems as a page does; who is not logged in is led to where he logs in, and back from there.
async fn in_words(request: Request, next: Next) -> Response {
    let (uri, method) = (request.uri().clone(), request.method().clone());
    let mut response = next.run(request).await;
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    if problem.status() == StatusCode::UNAUTHORIZED && uri.path() != login::PATH {
        // A form cannot be sent again from there: its page can be opened.
        let back = if matches!(method, Method::GET | Method::HEAD) { uri.to_string() } else { START.to_owned() };
        return to(&login::leading_to(&back));
    }
    let mut page = layout::problem(&problem);
    if let Some(retry) = response.headers_mut().remove(header::RETRY_AFTER) {
        page.headers_mut().insert(header::RETRY_AFTER, retry);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_told_by_the_path() {
        assert_eq!(
            (reads("/"), reads("/login"), reads("/ledger"), reads("")),
            (Reads::List, Reads::Nobody, Reads::Nobody, Reads::Nobody)
        );
        assert_eq!(
            (reads("/consent"), reads("/consent/choices"), reads("/claim")),
            (Reads::List, Reads::Nobody, Reads::Nobody)
        );
        assert_eq!(
            (reads("/studies/1.2"), reads("/studies/1.2/pictures/0x1")),
            (Reads::Study("1.2"), Reads::Picture("1.2"))
        );
        assert!(is_page("/ui") && is_page("/ui/login") && is_page("/ui/studies/1.2"));
        assert!(
            !is_page("/uix")
                && !is_page("/ui/assets/a.css")
                && !is_page("/ui/studies/1/pictures/2")
                && !is_page("/dicomweb/ui")
        );
    }
}
