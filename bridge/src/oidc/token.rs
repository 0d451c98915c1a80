//! What a token must say to be taken: for this site, from this issuer, now, and of the kind that it is shown as. A token of one kind is never good as
//! another.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::errors::{Error, ErrorKind};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq as _;

use super::keys::Signed;

/// How far the issuer's clock and ours may be apart, in seconds.
const LEEWAY_S: u64 = 30;

/// Why a token is not good. Said to the log, and not to who shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is no JWT, or too long.
    #[error("it is no JWT, or a longer one than is looked at")]
    Form,
    /// `alg` is none that issuers may sign with.
    #[error("its algorithm is not taken (taken are RS, PS and ES with 256 and 384, RS512, PS512 and EdDSA)")]
    Algorithm,
    /// No key of the issuer is the one that it names.
    #[error("the issuer publishes no such key")]
    Key,
    /// Somebody else signed it, or changed it.
    #[error("its signature is not the issuer's")]
    Signature,
    /// `iss` is another.
    #[error("its iss is not oidc.issuer")]
    Issuer,
    /// `aud` does not name us.
    #[error("its aud is not for this site (oidc.audiences; oidc.client_id for logins)")]
    Audience,
    /// It names another client as the one that it was made for.
    #[error("its azp is not oidc.client_id")]
    Party,
    /// A time that is none, or none where there must be one.
    #[error("its exp, nbf or iat is missing or no number")]
    Time,
    /// `exp` is past.
    #[error("it is over (exp)")]
    Over,
    /// `nbf` or `iat` is to come.
    #[error("it is not good yet (nbf, iat): are the clocks right?")]
    NotYet,
    /// It is good for longer than is taken.
    #[error("it is good for longer than oidc.lifetime_max_s")]
    TooLong,
    /// An ID token that was shown as an access token, the reverse, or a token of yet another kind.
    #[error("it is a token of another kind")]
    Kind,
    /// It answers another login.
    #[error("its nonce is not that of this login")]
    Nonce,
    /// It was not made with this access token.
    #[error("its at_hash is not that of the access token that came with it")]
    Hash,
    /// Nobody can be told by it.
    #[error("it has no sub, another than the UserInfo endpoint says, or no claim oidc.subject_claim that is a text")]
    Subject,
}

/// What the library says of a token, in our words.
pub(super) fn wrong(error: &Error) -> Wrong {
    match error.kind() {
        ErrorKind::InvalidSignature => Wrong::Signature,
        ErrorKind::InvalidAlgorithm => Wrong::Algorithm,
        _ => Wrong::Form,
    }
}

/// What holds for every token: who made it, and when it is good. Returns when it ends.
pub(super) fn check(claims: &Map<String, Value>, issuer: &str, now_s: u64) -> Result<u64, Wrong> {
    if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
        return Err(Wrong::Issuer);
    }
    let end = time(claims, "exp")?.ok_or(Wrong::Time)?;
    if end.saturating_add(LEEWAY_S) <= now_s {
        return Err(Wrong::Over);
    }
    for start in [time(claims, "nbf")?, time(claims, "iat")?].into_iter().flatten() {
        if start > now_s.saturating_add(LEEWAY_S) {
            return Err(Wrong::NotYet);
        }
    }
    Ok(end)
}

/// What holds for access tokens besides (RFC 9068 4). What can be told to be an ID token is refused even where its audience is taken: ID tokens get
/// into addresses and logs.
pub(super) fn check_access(
    signed: &Signed,
    audiences: &[String],
    lifetime_max_s: Option<u64>,
    (now_s, end_s): (u64, u64),
) -> Result<(), Wrong> {
    let claims = &signed.claims;
    let is_plain = signed.header.typ.is_none() || is_typed(signed, &["jwt", "application/jwt"]);
    let of_logins = ["nonce", "at_hash", "c_hash", "s_hash"].iter().any(|name| claims.contains_key(*name));
    let is_access = match claims.get("typ") {
        // Keycloak says it there, and before its version 25 had the nonce in access tokens too.
        Some(kind) => is_plain && kind == "Bearer",
        None => is_plain && !of_logins,
    };
    if !is_access && !is_typed(signed, &["at+jwt", "application/at+jwt"]) {
        return Err(Wrong::Kind);
    }
    if !audience(claims).iter().any(|one| audiences.iter().any(|ours| ours == one)) {
        return Err(Wrong::Audience);
    }
    let begun = time(claims, "iat")?.unwrap_or(now_s);
    match lifetime_max_s {
        Some(max) if end_s.saturating_sub(begun) > max => Err(Wrong::TooLong),
        _ => Ok(()),
    }
}

/// What holds for ID tokens besides (OpenID Connect Core 3.1.3.7): it is for this client and answers this login.
pub(super) fn check_id(signed: &Signed, client: &str, nonce: &str, access_token: Option<&str>) -> Result<(), Wrong> {
    let claims = &signed.claims;
    let is_plain = signed.header.typ.is_none() || is_typed(signed, &["jwt", "application/jwt"]);
    if !is_plain || claims.get("typ").is_some_and(|kind| kind != "ID") {
        return Err(Wrong::Kind);
    }
    let audience = audience(claims);
    if !audience.contains(&client) {
        return Err(Wrong::Audience);
    }
    match claims.get("azp") {
        Some(party) if party == client => {}
        None if audience.len() == 1 => {}
        _ => return Err(Wrong::Party),
    }
    if time(claims, "iat")?.is_none() {
        return Err(Wrong::Time);
    }
    let answered = claims.get("nonce").and_then(Value::as_str).unwrap_or_default();
    if nonce.is_empty() || !bool::from(answered.as_bytes().ct_eq(nonce.as_bytes())) {
        return Err(Wrong::Nonce);
    }
    match (claims.get("at_hash"), access_token) {
        (Some(hash), Some(token)) if *hash != half_hash(signed.header.alg, token) => Err(Wrong::Hash),
        _ => Ok(()),
    }
}

fn is_typed(signed: &Signed, kinds: &[&str]) -> bool {
    let kind = signed.header.typ.as_deref().unwrap_or_default();
    kinds.iter().any(|known| known.eq_ignore_ascii_case(kind))
}

/// Seconds since 1970 (RFC 7519 2), which may have a fraction; what is something else is not passed over.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Wrong> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let whole = number.as_f64().filter(|seconds| (0.0..1e15).contains(seconds)).map(f64::trunc);
            // Below 2^53, so exact.
            let seconds = whole.and_then(|seconds| format!("{seconds:.0}").parse().ok());
            seconds.map(Some).ok_or(Wrong::Time)
        }
        Some(_) => Err(Wrong::Time),
    }
}

fn audience(claims: &Map<String, Value>) -> Vec<&str> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The left half of a hash, of the kind that the algorithm has (OpenID Connect Core 3.1.3.6).
fn half_hash(algorithm: Algorithm, token: &str) -> String {
    let token = token.as_bytes();
    let whole = match algorithm {
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => Sha384::digest(token).to_vec(),
        Algorithm::RS512 | Algorithm::PS512 | Algorithm::EdDSA => Sha512::digest(token).to_vec(),
        _ => Sha256::digest(token).to_vec(),
    };
    URL_SAFE_NO_PAD.encode(&whole[..whole.len() / 2])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const NOW: u64 = 1_800_000_000;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn signed(typ: Option<&str>, claims: &Value) -> Signed {
        let mut header = jsonwebtoken::Header::new(Algorithm::RS256);
        header.typ = typ.map(str::to_owned);
        Signed { header, claims: map(claims) }
    }

    #[test]
    fn a_token_is_of_its_issuer_and_of_now() {
        let base = json!({ "iss": "https://a", "exp": NOW + 60 });
        let with = |name: &str, value: Value| {
            let mut changed = base.clone();
            changed[name] = value;
            check(&map(&changed), "https://a", NOW)
        };
        assert_eq!(check(&map(&base), "https://a", NOW), Ok(NOW + 60));
        assert_eq!(with("exp", json!(1_800_000_000.5)), Ok(NOW));
        assert_eq!(with("exp", json!(NOW - LEEWAY_S + 1)), Ok(NOW - LEEWAY_S + 1));
        for (name, value, expected) in [
            ("iss", json!("https://a/"), Wrong::Issuer),
            ("iss", json!(["https://a"]), Wrong::Issuer),
            ("iss", Value::Null, Wrong::Issuer),
            ("exp", json!(NOW - LEEWAY_S), Wrong::Over),
            ("exp", json!("1900000000"), Wrong::Time),
            ("exp", json!(-5), Wrong::Time),
            ("exp", json!(1e300), Wrong::Time),
            ("exp", Value::Null, Wrong::Time),
            ("nbf", json!(NOW + LEEWAY_S + 1), Wrong::NotYet),
            ("nbf", json!("0"), Wrong::Time),
            ("iat", json!(NOW + LEEWAY_S + 1), Wrong::NotYet),
        ] {
            assert_eq!(with(name, value.clone()), Err(expected), "{name} {value}");
        }
        assert_eq!(with("nbf", json!(NOW + LEEWAY_S)), Ok(NOW + 60));
        assert_eq!(check(&map(&json!({ "iss": "https://a" })), "https://a", NOW), Err(Wrong::Time));
    }

    #[test]
    fn a_token_of_one_kind_is_not_good_as_another() {
        let ours = ["api".to_owned()];
        let access =
            |typ: Option<&str>, claims: Value| check_access(&signed(typ, &claims), &ours, Some(3600), (NOW, NOW + 60));
        for (typ, claims) in [
            (None, json!({ "aud": "api" })),
            (Some("JWT"), json!({ "aud": ["other", "api"], "typ": "Bearer" })),
            (Some("JWT"), json!({ "aud": "api", "typ": "Bearer", "nonce": "n" })),
            (Some("at+jwt"), json!({ "aud": "api", "nonce": "n" })),
            (Some("application/AT+JWT"), json!({ "aud": "api" })),
        ] {
            assert_eq!(access(typ, claims.clone()), Ok(()), "{typ:?} {claims}");
        }
        for (typ, claims, expected) in [
            (Some("JWT"), json!({ "aud": "client" }), Wrong::Audience),
            (Some("JWT"), json!({ "aud": "API" }), Wrong::Audience),
            (Some("JWT"), json!({}), Wrong::Audience),
            (Some("JWT"), json!({ "aud": { "api": 1 } }), Wrong::Audience),
            (Some("JWT"), json!({ "aud": "api", "nonce": "n" }), Wrong::Kind),
            (Some("JWT"), json!({ "aud": "api", "at_hash": "n" }), Wrong::Kind),
            (Some("JWT"), json!({ "aud": "api", "typ": "ID" }), Wrong::Kind),
            (Some("JWT"), json!({ "aud": "api", "typ": "Refresh" }), Wrong::Kind),
            (Some("logout+jwt"), json!({ "aud": "api" }), Wrong::Kind),
            (Some("dpop+jwt"), json!({ "aud": "api" }), Wrong::Kind),
            (None, json!({ "aud": "api", "iat": NOW - 3600 }), Wrong::TooLong),
        ] {
            assert_eq!(access(typ, claims.clone()), Err(expected), "{typ:?} {claims}");
        }
    }

    #[test]
    fn an_id_token_answers_one_login_of_one_client() {
        let id = |typ: Option<&str>, claims: Value| check_id(&signed(typ, &claims), "me", "n1", Some("token"));
        let hash = half_hash(Algorithm::RS256, "token");
        for claims in [
            json!({ "aud": "me", "nonce": "n1", "iat": NOW }),
            json!({ "aud": ["me"], "nonce": "n1", "iat": NOW, "typ": "ID", "at_hash": hash }),
            json!({ "aud": ["me", "api"], "azp": "me", "nonce": "n1", "iat": NOW }),
        ] {
            assert_eq!(id(Some("JWT"), claims.clone()), Ok(()), "{claims}");
        }
        for (typ, claims, expected) in [
            (Some("at+jwt"), json!({ "aud": "me", "nonce": "n1", "iat": NOW }), Wrong::Kind),
            (None, json!({ "aud": "me", "nonce": "n1", "iat": NOW, "typ": "Bearer" }), Wrong::Kind),
            (None, json!({ "aud": "api", "nonce": "n1", "iat": NOW }), Wrong::Audience),
            (None, json!({ "aud": ["me", "api"], "nonce": "n1", "iat": NOW }), Wrong::Party),
            (None, json!({ "aud": "me", "azp": "other", "nonce": "n1", "iat": NOW }), Wrong::Party),
            (None, json!({ "aud": "me", "nonce": "n2", "iat": NOW }), Wrong::Nonce),
            (None, json!({ "aud": "me", "iat": NOW }), Wrong::Nonce),
            (None, json!({ "aud": "me", "nonce": "n1" }), Wrong::Time),
            (None, json!({ "aud": "me", "nonce": "n1", "iat": NOW, "at_hash": "x" }), Wrong::Hash),
        ] {
            assert_eq!(id(typ, claims.clone()), Err(expected), "{typ:?} {claims}");
        }
        let nothing = signed(None, &json!({ "aud": "me", "nonce": "", "iat": NOW }));
        assert_eq!(check_id(&nothing, "me", "", None), Err(Wrong::Nonce));
    }

    #[test]
    fn half_hashes_are_those_of_the_specification() {
        // OpenID Connect Core A.3.
        let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
        assert_eq!(half_hash(Algorithm::RS256, token), "77QmUPtjPfzWtF2AnpK9RQ");
    }
}
