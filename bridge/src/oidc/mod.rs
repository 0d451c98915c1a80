//! Who somebody is by the word of an OpenID Connect issuer: access tokens, and logins to the pages.
//!
//! * [`fetch`]: how the issuer is asked. [`keys`]: what it publishes to verify its word. [`token`]: what a token must say. [`rules`]: for whom
//!   its bearer stands. [`crypto`]: who verifies signatures.
//!
//! What an issuer publishes is fetched when it is needed and kept: one that is away stops nobody whose keys are known. Must not know who
//! may do what, nor pages and requests.

mod crypto;
mod fetch;
mod keys;
mod rules;
mod token;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::access::Caller;
use crate::config::{Config, Mistake, Oidc, OidcClient};
use crate::tls::TlsError;
use fetch::{FetchError, Fetcher, is_safe};
use keys::{Keys, Signed};
use rules::Rules;
pub use token::Wrong;

/// Longest access token that is looked at; the head of a request is no longer either.
const ACCESS_BYTES_MAX: usize = 16 * 1024;
/// Longest ID token, which comes from the issuer itself.
const ID_BYTES_MAX: usize = 64 * 1024;
/// Longest document of the issuer.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Longest ID token that is put into an address, to say who logs out.
const HINT_BYTES_MAX: usize = 4096;
/// How long what was fetched is used without asking again.
const FRESH: Duration = Duration::from_secs(600);
/// How long it is used when the issuer does not answer.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The issuer is asked no more often than this, whatever is shown.
const ASKED_EVERY: Duration = Duration::from_secs(10);
/// Longest name of somebody, and longest word of the issuer that is shown.
const TEXT_CHARS_MAX: usize = 255;

/// Why there is no issuer to ask.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// Nobody can vouch for it.
    #[error("oidc.ca_file")]
    Authorities(#[from] TlsError),
    /// The file of the client's secret.
    #[error("oidc.client_secret_file {0}")]
    Secret(PathBuf, #[source] std::io::Error),
    /// A file with nothing in its first line.
    #[error("oidc.client_secret_file {0} has nothing in its first line")]
    NoSecret(PathBuf),
    /// A rule cannot be read.
    #[error("{0}")]
    Rule(Mistake),
}

/// Why what the issuer publishes cannot be had.
#[derive(Debug, thiserror::Error)]
enum Unpublished {
    #[error("{0}")]
    Fetch(&'static str, #[source] FetchError),
    #[error("the discovery document is not readable")]
    Discovery(#[source] serde_json::Error),
    #[error(
        "the discovery document is of issuer \"{0}\", not of oidc.issuer: write it exactly like this if it is the right one"
    )]
    Other(String),
    #[error("the discovery document has no {0} with https://")]
    Endpoint(&'static str),
    #[error("the keys are not readable")]
    Keys(#[source] serde_json::Error),
    #[error("there is no key among the keys that can be used")]
    NoKeys,
    #[error("it was asked less than {} s ago", ASKED_EVERY.as_secs())]
    JustAsked,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What he shows is not good.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// He is known to the issuer, and stands for nobody here.
    #[error("no [[oidc.principal]] fits what the issuer says of him")]
    Nobody {
        /// Who.
        subject: String,
    },
    /// The issuer does not give tokens for what he brings.
    #[error("the issuer gives no token: {0}")]
    Refused(String),
    /// The issuer does not answer, or not as one.
    #[error("the issuer does not answer")]
    Away,
}

/// Somebody whom the issuer knows, and who stands for somebody here.
#[derive(Clone)]
pub struct Person {
    /// The issuer's word for him, by `subject_claim`.
    pub subject: String,
    /// What pages call him.
    pub name: String,
    /// For whom he stands.
    pub caller: Caller,
    /// When that is over, in seconds since 1970: with the access token; logins end otherwise.
    pub ends_s: Option<u64>,
    /// Tells the issuer who logs out.
    hint: Option<Zeroizing<String>>,
}

impl Person {
    /// What tells him apart where his name must not be.
    #[must_use]
    pub fn id(&self) -> String {
        format!("oidc-{}", hex::encode(&Sha256::digest(self.subject.as_bytes())[..8]))
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Person").field("id", &self.id()).field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// The same person, whatever was shown for him.
impl PartialEq for Person {
    fn eq(&self, other: &Self) -> bool {
        self.subject == other.subject
    }
}

impl Eq for Person {}

/// A login that is begun: what goes to the issuer through the browser.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Where the browser comes back to.
    pub redirect_uri: &'a str,
    /// What it brings back.
    pub state: &'a str,
    /// What the ID token will have.
    pub nonce: &'a str,
    /// What the code will be redeemed with (RFC 7636).
    pub verifier: &'a str,
}

/// The document of OpenID Connect Discovery (3), as far as it matters here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Discovered {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: String,
    end_session_endpoint: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    authorization_response_iss_parameter_supported: bool,
}

/// What an issuer publishes.
struct Published {
    document: Discovered,
    keys: Keys,
    at: Instant,
}

/// An issuer. Cheap to clone.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    settings: Oidc,
    secret: Option<Zeroizing<String>>,
    rules: Rules,
    fetcher: Fetcher,
    known: RwLock<Option<Arc<Published>>>,
    /// Held by whoever asks, so that one does for all.
    asking: tokio::sync::Mutex<()>,
    asked: Mutex<Option<Instant>>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Issuer").field(&self.0.settings.issuer).finish()
    }
}

/// What is wrong with `[oidc]` besides what the configuration sees by itself: its rules and its files.
#[must_use]
pub fn mistakes(config: &Config) -> Vec<Mistake> {
    let mut found = rules::mistakes(config);
    if let Some(oidc) = &config.http.oidc
        && let Err(error) = secret(oidc)
    {
        found.push(Mistake { key: "oidc.client_secret_file".to_owned(), what: crate::chain_of(&error) });
    }
    found
}

fn secret(settings: &Oidc) -> Result<Option<Zeroizing<String>>, OidcError> {
    let Some(file) = settings.client.as_ref().and_then(|client| client.secret_file.clone()) else { return Ok(None) };
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => return Err(OidcError::Secret(file, error)),
    };
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Some(Zeroizing::new(line.to_owned()))),
        None => Err(OidcError::NoSecret(file)),
    }
}

impl Issuer {
    /// The issuer that a configuration names. Does not ask it anything.
    ///
    /// # Errors
    /// [`OidcError`].
    pub fn new(settings: &Oidc) -> Result<Self, OidcError> {
        crypto::install();
        let (rules, mistakes) = Rules::of(&settings.rules);
        if let Some(mistake) = mistakes.into_iter().next() {
            return Err(OidcError::Rule(mistake));
        }
        Ok(Self(Arc::new(Inner {
            secret: secret(settings)?,
            rules,
            fetcher: Fetcher::new(settings.ca_file.as_deref(), settings.timeout)?,
            known: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            asked: Mutex::default(),
            settings: settings.clone(),
        })))
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.settings.name
    }

    /// This site as its client, if there are logins.
    #[must_use]
    pub fn client(&self) -> Option<&OidcClient> {
        self.0.settings.client.as_ref()
    }

    /// Whether access tokens are taken, and this could be one: three parts, of which the first is an object of JSON.
    #[must_use]
    pub fn may_have_made(&self, shown: &str) -> bool {
        !self.0.settings.audiences.is_empty() && shown.starts_with("ey") && shown.matches('.').count() == 2
    }

    /// Asks for what it publishes, so that its first user need not wait, and says in the log how that went.
    pub async fn prepare(&self) {
        let issuer = &self.0.settings.issuer;
        if self.published().await.is_ok() {
            tracing::info!(issuer, "the issuer of logins answers");
        }
    }

    /// Who shows an access token.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn bearer(&self, shown: &str, now_s: u64) -> Result<Person, Refusal> {
        let settings = &self.0.settings;
        let signed = self.signed(shown, ACCESS_BYTES_MAX).await?;
        let end_s = token::check(&signed.claims, &settings.issuer, now_s)?;
        let lifetime_max_s = settings.lifetime_max.map(|max| max.as_secs());
        token::check_access(&signed, &settings.audiences, lifetime_max_s, (now_s, end_s))?;
        self.person(&signed.claims, Some(end_s), None)
    }

    /// Where a browser is sent that wants to log in.
    ///
    /// # Errors
    /// [`Refusal::Away`].
    pub async fn login_url(&self, asking: &Asking<'_>) -> Result<String, Refusal> {
        let client = self.client().ok_or(Refusal::Away)?;
        let published = self.published().await?;
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(asking.verifier.as_bytes()));
        Ok(with_query(
            &published.document.authorization_endpoint,
            &[
                ("response_type", "code"),
                ("client_id", &client.id),
                ("redirect_uri", asking.redirect_uri),
                ("scope", &client.scopes.join(" ")),
                ("state", asking.state),
                ("nonce", asking.nonce),
                ("code_challenge", &challenge),
                ("code_challenge_method", "S256"),
            ],
        ))
    }

    /// Whether an answer that a browser brings is this issuer's, by the `iss` in it (RFC 9207 2.4).
    ///
    /// # Errors
    /// [`Refusal::Away`].
    pub async fn answers(&self, issuer: Option<&str>) -> Result<bool, Refusal> {
        let published = self.published().await?;
        Ok(match issuer {
            Some(named) => named == self.0.settings.issuer,
            None => !published.document.authorization_response_iss_parameter_supported,
        })
    }

    /// Who logged in, by the code that a browser brought.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn redeem(&self, code: &str, asking: &Asking<'_>, now_s: u64) -> Result<Person, Refusal> {
        #[derive(Deserialize)]
        struct Tokens {
            id_token: Option<String>,
            access_token: Option<String>,
        }
        let client = self.client().ok_or(Refusal::Away)?;
        let answer = self.token_answer(client, code, asking).await?;
        let tokens: Tokens = serde_json::from_slice(&answer).map_err(|error| {
            tracing::warn!(%error, "what the issuer's token endpoint answers is not readable");
            Refusal::Away
        })?;
        let id_token = tokens
            .id_token
            .map(Zeroizing::new)
            .ok_or_else(|| Refusal::Refused("its answer has no ID token".to_owned()))?;
        let signed = self.signed(&id_token, ID_BYTES_MAX).await?;
        token::check(&signed.claims, &self.0.settings.issuer, now_s)?;
        let access_token = tokens.access_token.map(Zeroizing::new);
        let access_token = access_token.as_ref().map(|token| token.as_str());
        token::check_id(&signed, &client.id, asking.nonce, access_token)?;
        let mut claims = signed.claims;
        if client.userinfo {
            let access_token =
                access_token.ok_or_else(|| Refusal::Refused("its answer has no access token".to_owned()))?;
            self.add_userinfo(&mut claims, access_token).await?;
        }
        self.person(&claims, None, Some(id_token).filter(|token| token.len() <= HINT_BYTES_MAX))
    }

    /// Adds what the issuer says of somebody at its UserInfo endpoint only (OpenID Connect Core 5.3). What the ID token says stays.
    async fn add_userinfo(&self, claims: &mut Map<String, Value>, access_token: &str) -> Result<(), Refusal> {
        let published = self.published().await?;
        let bearer = Zeroizing::new(format!("Bearer {access_token}"));
        let url = &published.document.userinfo_endpoint;
        let answer = self.0.fetcher.get(url, DOCUMENT_BYTES_MAX, Some(&bearer)).await.map_err(|error| {
            tracing::warn!(error = %crate::chain_of(&error), "the issuer's UserInfo endpoint cannot be asked");
            Refusal::Away
        })?;
        let said: Map<String, Value> = serde_json::from_slice(&answer).map_err(|error| {
            tracing::warn!(%error, "what the issuer's UserInfo endpoint answers is not readable");
            Refusal::Away
        })?;
        if said.get("sub") != claims.get("sub") {
            return Err(Wrong::Subject.into());
        }
        for (name, value) in said {
            claims.entry(name).or_insert(value);
        }
        Ok(())
    }

    /// Where somebody logs out at the issuer too, if that can be (OpenID Connect RP-Initiated Logout), and comes back to `back` from.
    #[must_use]
    pub fn logout_url(&self, person: &Person, back: &str) -> Option<String> {
        let (client, published) = (self.client()?, self.known()?);
        let endpoint = Some(&published.document.end_session_endpoint).filter(|url| is_safe(url))?;
        let mut pairs = vec![("client_id", client.id.as_str()), ("post_logout_redirect_uri", back)];
        pairs.extend(person.hint.as_ref().map(|hint| ("id_token_hint", hint.as_str())));
        Some(with_query(endpoint, &pairs))
    }

    /// Redeems a code (OpenID Connect Core 3.1.3). A client with a secret shows it as the issuer wants it.
    async fn token_answer(&self, client: &OidcClient, code: &str, asking: &Asking<'_>) -> Result<Vec<u8>, Refusal> {
        let published = self.published().await?;
        let methods = published.document.token_endpoint_auth_methods_supported.as_deref();
        let in_head = methods.is_none_or(|all| all.iter().any(|method| method == "client_secret_basic"));
        let mut pairs = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", asking.redirect_uri),
            ("code_verifier", asking.verifier),
        ];
        let authorization = match &self.0.secret {
            Some(secret) if in_head => Some(basic(&client.id, secret)),
            Some(secret) => {
                pairs.extend([("client_id", client.id.as_str()), ("client_secret", secret.as_str())]);
                None
            }
            None => {
                pairs.push(("client_id", &client.id));
                None
            }
        };
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let (url, shown) = (&published.document.token_endpoint, authorization.as_ref().map(|text| text.as_str()));
        match self.0.fetcher.post_form(url, DOCUMENT_BYTES_MAX, form, shown).await {
            Ok((StatusCode::OK, body)) => Ok(body.to_vec()),
            Ok((status, body)) => {
                let why = refused(&body).unwrap_or_else(|| format!("status {status}"));
                tracing::warn!(why, "the issuer gives no token for a code");
                Err(Refusal::Refused(why))
            }
            Err(error) => {
                tracing::warn!(error = %crate::chain_of(&error), "the issuer's token endpoint cannot be asked");
                Err(Refusal::Away)
            }
        }
    }

    /// What is in a token that the issuer signed. For a key that is not known it is asked once more, but not by everybody.
    async fn signed(&self, shown: &str, bytes_max: usize) -> Result<Signed, Refusal> {
        if shown.len() > bytes_max {
            return Err(Wrong::Form.into());
        }
        let published = self.published().await?;
        match published.keys.verify(shown) {
            Err(Wrong::Key) => match self.published_after(&published).await {
                Ok(newer) => Ok(newer.keys.verify(shown)?),
                Err(Unpublished::JustAsked) => Err(Wrong::Key.into()),
                Err(_) => Err(Refusal::Away),
            },
            judged => Ok(judged?),
        }
    }

    fn person(
        &self,
        claims: &Map<String, Value>,
        ends_s: Option<u64>,
        hint: Option<Zeroizing<String>>,
    ) -> Result<Person, Refusal> {
        let settings = &self.0.settings;
        text(claims, "sub").ok_or(Wrong::Subject)?;
        let subject = text(claims, &settings.subject_claim).ok_or(Wrong::Subject)?;
        match self.0.rules.caller(claims) {
            Some(caller) => {
                let name = text(claims, &settings.name_claim).unwrap_or_else(|| subject.clone());
                Ok(Person { subject, name, caller, ends_s, hint })
            }
            None => Err(Refusal::Nobody { subject }),
        }
    }

    fn known(&self) -> Option<Arc<Published>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the issuer publishes: what is known while it is fresh, or while nothing newer can be had.
    async fn published(&self) -> Result<Arc<Published>, Refusal> {
        let known = self.known().filter(|known| known.at.elapsed() < KEPT);
        match known {
            Some(known) if known.at.elapsed() < FRESH => Ok(known),
            Some(known) => {
                // Who asks has the newer; the others do not wait for him.
                let Ok(_asking) = self.0.asking.try_lock() else { return Ok(known) };
                Ok(self.ask().await.unwrap_or(known))
            }
            None => {
                let _asking = self.0.asking.lock().await;
                if let Some(known) = self.known().filter(|known| known.at.elapsed() < FRESH) {
                    return Ok(known);
                }
                self.ask().await.map_err(|_| Refusal::Away)
            }
        }
    }

    /// What it publishes later than what was seen.
    async fn published_after(&self, seen: &Published) -> Result<Arc<Published>, Unpublished> {
        let _asking = self.0.asking.lock().await;
        match self.known().filter(|known| known.at > seen.at) {
            Some(newer) => Ok(newer),
            None => self.ask().await,
        }
    }

    /// Asks, unless that was just done. The caller holds `asking`.
    async fn ask(&self) -> Result<Arc<Published>, Unpublished> {
        {
            let mut asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.is_some_and(|at| at.elapsed() < ASKED_EVERY) {
                return Err(Unpublished::JustAsked);
            }
            *asked = Some(Instant::now());
        }
        let fetched = self.fetch().await;
        // Whoever waited for a slow one does not begin again at once.
        *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let published = fetched.map(Arc::new).inspect_err(|error| {
            let issuer = &self.0.settings.issuer;
            tracing::warn!(issuer, error = %crate::chain_of(error), "what the issuer of logins publishes cannot be had");
        })?;
        *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = Some(published.clone());
        Ok(published)
    }

    async fn fetch(&self) -> Result<Published, Unpublished> {
        let issuer = &self.0.settings.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let document = self.0.fetcher.get(&url, DOCUMENT_BYTES_MAX, None).await;
        let document = document.map_err(|error| Unpublished::Fetch("the discovery document", error))?;
        let document: Discovered = serde_json::from_slice(&document).map_err(Unpublished::Discovery)?;
        if document.issuer != *issuer {
            return Err(Unpublished::Other(shown(&document.issuer)));
        }
        let for_logins = self.client().is_some();
        for (name, url, is_needed) in [
            ("jwks_uri", &document.jwks_uri, true),
            ("authorization_endpoint", &document.authorization_endpoint, for_logins),
            ("token_endpoint", &document.token_endpoint, for_logins),
            ("userinfo_endpoint", &document.userinfo_endpoint, self.client().is_some_and(|client| client.userinfo)),
        ] {
            if is_needed && !is_safe(url) {
                return Err(Unpublished::Endpoint(name));
            }
        }
        let keys = self.0.fetcher.get(&document.jwks_uri, DOCUMENT_BYTES_MAX, None).await;
        let keys = keys.map_err(|error| Unpublished::Fetch("the keys (jwks_uri)", error))?;
        let keys = Keys::of(&keys).map_err(Unpublished::Keys)?;
        if keys.is_empty() {
            return Err(Unpublished::NoKeys);
        }
        Ok(Published { document, keys, at: Instant::now() })
    }
}

/// A claim that is a text to be shown.
fn text(claims: &Map<String, Value>, name: &str) -> Option<String> {
    let found = claims.get(name)?.as_str()?;
    (!found.is_empty() && found.chars().count() <= TEXT_CHARS_MAX && !found.chars().any(char::is_control))
        .then(|| found.to_owned())
}

/// A word of somebody else, as it may be shown.
#[must_use]
pub fn shown(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

/// What a token endpoint says when it gives no token (RFC 6749 5.2).
fn refused(body: &[u8]) -> Option<String> {
    let said: Value = serde_json::from_slice(body).ok()?;
    let error = said.get("error")?.as_str()?;
    Some(match said.get("error_description").and_then(Value::as_str) {
        Some(description) => shown(&format!("{error}: {description}")),
        None => shown(error),
    })
}

/// RFC 6749 2.3.1.
fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    let escaped = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let both = Zeroizing::new(format!("{}:{}", escaped(id), escaped(secret)));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(both.as_bytes())))
}

/// An address with more in its query.
fn with_query(url: &str, pairs: &[(&str, &str)]) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_queries_are_escaped() {
        assert_eq!(*basic("a:b", "c d%"), format!("Basic {}", STANDARD.encode("a%3Ab:c+d%25")));
        assert_eq!(with_query("https://a/x?y=1#z", &[("b", "c&d")]), "https://a/x?y=1&b=c%26d");
        assert_eq!(with_query("https://a/x", &[("b", "ü")]), "https://a/x?b=%C3%BC");
        assert_eq!(shown("a\r\nb"), "ab");
        assert_eq!(refused(br#"{"error":"invalid_grant","error_description":"x"}"#), Some("invalid_grant: x".into()));
    }
}
