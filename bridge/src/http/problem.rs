//! Errors as RFC 9457 problem details: one function for each kind of error. What a caller must not learn, such as paths or whether
//! something exists that it may not see, is not in them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::archive::ArchiveError;
use crate::decide::{DecideError, PendingError};
use crate::follow::FollowError;
use crate::ledger::LedgerError;
use crate::proof::ProofError;
use crate::site::SiteError;
use crate::tokens::TokenError;

/// Media type of problem details.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";
/// Seconds after which to ask again when the ledger is away.
const RETRY_LEDGER_S: u64 = 10;
/// Seconds after which to ask again when there were too many requests.
const RETRY_RATE_S: u64 = 60;

/// Why a request was not answered as asked (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Names the kind of problem; the same for every problem of this kind.
    #[serde(rename = "type")]
    #[schema(example = "urn:pacs-bridge:problem:not-found")]
    kind: String,
    /// The kind in words.
    title: String,
    /// The HTTP status code.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What exactly, for the person who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip)]
    retry_s: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &str) -> Self {
        let kind = format!("urn:pacs-bridge:problem:{kind}");
        Self { kind, title: title.to_owned(), status: status.as_u16(), detail: None, retry_s: None }
    }

    pub(crate) fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_s = Some(seconds);
        self
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "the request cannot be understood").with(detail)
    }

    /// No token, or none that is good. The same for every reason.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "a bearer token that is good now is needed")
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "this caller may not do that").with(detail)
    }

    /// Absent, or not to be seen: the same for both.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "there is nothing here")
    }

    /// The HTTP status code.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The kind of problem in words.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// What exactly, for the person who asks.
    pub(crate) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Whether there is nothing, or nothing in such a form, for somebody who can do without.
    pub(crate) fn is_absence(&self) -> bool {
        [StatusCode::NOT_FOUND, StatusCode::NOT_ACCEPTABLE].iter().any(|status| self.status == status.as_u16())
    }

    pub(crate) fn not_acceptable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "there is no such form of this resource").with(detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "what is asked for cannot be had now")
            .with(detail)
            .retry_after(RETRY_LEDGER_S)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this resource has no such method")
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the request did not arrive in time")
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "the state of things does not allow that").with(detail)
    }

    pub(crate) fn too_large(bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large")
            .with(format!("at most {bytes_max} bytes are taken"))
    }

    pub(crate) fn media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "the body must be application/json")
    }

    /// A body of a kind that is not taken here.
    pub(crate) fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "the body is of no kind that is taken here")
            .with(detail)
    }

    pub(crate) fn too_many() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "too many requests").retry_after(RETRY_RATE_S)
    }

    pub(crate) fn ledger_away() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ledger-away", "the ledger does not answer")
            .retry_after(RETRY_LEDGER_S)
    }

    pub(crate) fn timed_out() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timed-out", "it takes longer than a request may")
            .with("what was sent to the ledger may still happen: look before trying again")
    }

    /// A fault here: the causes go to the log.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %crate::chain_of(error), "a request over HTTP failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "something failed here; the log says what")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry) = (self.status(), self.retry_s);
        let mut response = (status, Json(&self)).into_response();
        // For who says it in another way, such as pages.
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pacs-bridge\""));
        }
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<DecideError> for Problem {
    fn from(error: DecideError) -> Self {
        let words = || crate::chain_of(&error);
        match &error {
            DecideError::Study(_) => Self::not_found(),
            DecideError::Account(_)
            | DecideError::Word { .. }
            | DecideError::Guardians(_)
            | DecideError::Emergency(_)
            | DecideError::Key(_) => Self::bad_request(words()),
            DecideError::Asker(_) | DecideError::NotYet(_) => Self::conflict(words()),
            DecideError::OwnersKey { .. } => {
                Self::conflict("the study's owner holds the key: make an action, let the owner sign it, and submit it")
            }
            DecideError::Pending(PendingError::Unsigned(_)) => Self::bad_request("the action is not signed"),
            DecideError::Pending(_) => Self::not_the_owners_word(),
            DecideError::Away => Self::ledger_away(),
            DecideError::Ledger(error) => Self::ledger(error),
            DecideError::Follow(_)
            | DecideError::Archive(_)
            | DecideError::Keyring(_)
            | DecideError::Derived(_)
            | DecideError::Signing(_) => Self::internal(&error),
        }
    }
}

impl Problem {
    /// For every reason that an action is not the word of the owner of a study here, and for studies that nobody has.
    pub(crate) fn not_the_owners_word() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "not-the-owners-word",
            "this is not signed by the owner of a study of this ledger, or was changed after it was signed",
        )
    }

    /// For every reason that a code cannot be used by this key.
    pub(crate) fn no_claim() -> Self {
        Self::new(StatusCode::FORBIDDEN, "no-claim", "this code is not good, was used, or the key did not sign for it")
    }

    fn ledger(error: &LedgerError) -> Self {
        match error {
            LedgerError::Unavailable(_) => Self::ledger_away(),
            LedgerError::Refused(why) => Self::conflict(why.clone()),
            LedgerError::NotAdmitted(_) => Self::conflict(error.to_string()),
            LedgerError::Differs(_) => Self::internal(error),
        }
    }
}

macro_rules! internal {
    ($($error:ty),*) => {
        $(impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                Self::internal(&error)
            }
        })*
    };
}
internal!(ArchiveError, FollowError, TokenError, serde_json::Error, tokio::task::JoinError);

impl From<ProofError> for Problem {
    fn from(error: ProofError) -> Self {
        match &error {
            ProofError::Unknown(_) => Self::not_found(),
            // Whoever sees the object may know.
            ProofError::NoImage(_) => Self::not_found().with(error.to_string()),
            ProofError::NotFinal(_) => Self::conflict(error.to_string()),
            ProofError::Away => Self::ledger_away(),
            ProofError::Ledger(error) => Self::ledger(error),
            ProofError::Node(_) => Self::unavailable(error.to_string()),
            ProofError::Archive(_) | ProofError::Keyring(_) | ProofError::Wrong(_) => Self::internal(&error),
        }
    }
}

impl From<SiteError> for Problem {
    fn from(error: SiteError) -> Self {
        match error {
            SiteError::NotAUid(_) | SiteError::Unknown(_) => Self::not_found(),
            other => Self::internal(&other),
        }
    }
}
