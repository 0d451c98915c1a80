//! The keys that an issuer publishes (RFC 7517), and what they verify.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde_json::{Map, Value};

use super::crypto::ALGORITHMS;
use super::token::Wrong;

/// Keys looked at in a document.
const KEYS_MAX: usize = 100;

/// A key.
struct Key {
    id: Option<String>,
    fits: Vec<Algorithm>,
    key: DecodingKey,
}

/// The keys of an issuer.
pub(super) struct Keys(Vec<Key>);

/// What is in a token whose signature is good.
pub(super) struct Signed {
    pub(super) header: Header,
    pub(super) claims: Map<String, Value>,
}

impl Keys {
    /// The keys in a JWK Set that can be used; others, of later kinds, are passed over.
    pub(super) fn of(document: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Value = serde_json::from_slice(document)?;
        let listed = document.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(Self(listed.iter().take(KEYS_MAX).filter_map(key).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Verifies a token's signature. [`Wrong::Key`] when none of these keys is the one that it names.
    pub(super) fn verify(&self, token: &str) -> Result<Signed, Wrong> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Wrong::Form)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Wrong::Algorithm);
        }
        let mut found = Wrong::Key;
        for key in self.0.iter().filter(|key| key.is_for(&header)) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &alone(header.alg)) {
                Ok(read) => return Ok(Signed { header: read.header, claims: read.claims }),
                Err(error) => found = super::token::wrong(&error),
            }
        }
        Err(found)
    }
}

impl Key {
    /// A token that names no key may be signed by any that fits.
    fn is_for(&self, header: &Header) -> bool {
        self.fits.contains(&header.alg) && header.kid.as_ref().is_none_or(|id| self.id.as_ref() == Some(id))
    }
}

/// Has the library judge the signature; claims are judged by [`super::token`], which knows what a token is for.
fn alone(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_aud) = (false, false);
    validation
}

fn key(value: &Value) -> Option<Key> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let has_verify = |all: &Vec<Value>| all.iter().any(|one| one == "verify");
    let is_for_signatures = text("use").is_none_or(|purpose| purpose == "sig")
        && value.get("key_ops").is_none_or(|all| all.as_array().is_some_and(has_verify));
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    let kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &ALGORITHMS[..6],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        // Secrets among them: what everybody can read is none.
        _ => return None,
    };
    let named = text("alg").map(|name| if name == "Ed25519" { "EdDSA" } else { name });
    let is_meant = |algorithm: &Algorithm| named.is_none_or(|name| name == format!("{algorithm:?}"));
    let fits: Vec<_> = kind.iter().copied().filter(is_meant).collect();
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (is_for_signatures && !fits.is_empty()).then(|| Key { id: text("kid").map(str::to_owned), fits, key })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn only_public_keys_for_signatures_are_taken() {
        let point = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let rsa = json!({ "kty": "RSA", "kid": "r", "n": point, "e": "AQAB" });
        let with = |base: &Value, name: &str, value: Value| {
            let mut changed = base.clone();
            changed[name] = value;
            changed
        };
        assert_eq!(key(&rsa).unwrap().fits.len(), 6);
        assert_eq!(key(&with(&rsa, "alg", json!("PS256"))).unwrap().fits, [Algorithm::PS256]);
        for wrong in [
            with(&rsa, "use", json!("enc")),
            with(&rsa, "alg", json!("HS256")),
            with(&rsa, "alg", json!("RSA-OAEP")),
            with(&rsa, "alg", json!("ES256")),
            with(&rsa, "key_ops", json!(["encrypt"])),
            json!({ "kty": "oct", "kid": "o", "k": point }),
            json!({ "kty": "OKP", "crv": "X25519", "x": point }),
            json!({ "kty": "EC", "crv": "secp256k1", "x": point, "y": point }),
            json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": point }),
            json!("x"),
            json!({}),
        ] {
            assert!(key(&wrong).is_none(), "{wrong}");
        }
        let curve = json!({ "kty": "EC", "crv": "P-256", "x": point, "y": point });
        assert_eq!(key(&curve).unwrap().fits, [Algorithm::ES256]);
        let edwards = json!({ "kty": "OKP", "crv": "Ed25519", "x": point, "alg": "Ed25519" });
        assert_eq!(key(&edwards).unwrap().fits, [Algorithm::EdDSA]);
        // What cannot be read hides nothing else.
        let set = json!({ "keys": ["x", { "kty": "AKP" }, rsa] }).to_string();
        assert_eq!(Keys::of(set.as_bytes()).unwrap().0.len(), 1);
        assert!(Keys::of(b"{}").unwrap().is_empty() && Keys::of(b"<html>").is_err());
    }
}
