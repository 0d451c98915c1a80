//! The cryptography of JWTs: signatures verified by ring, which verifies certificates here too. Nothing is signed, and there are no shared secrets.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature as scheme;
use signature::Verifier;

/// What issuers may sign with (RFC 7518 3.1, RFC 8037 3.1), each with a key of its own kind. `none` and the HMACs are not among them: a public key
/// must never be taken for a secret.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(Error::from(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: |algorithm, key| Ok(Box::new(Judge { algorithm: *algorithm, key: key.clone() })),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has the library verify by this.
pub(super) fn install() {
    // Somebody did before: it was this.
    let _ = PROVIDER.install_default();
}

struct Judge {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Judge {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Judge {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        verify(self.algorithm, self.key.kind(), message, signature).ok_or_else(signature::Error::new)
    }
}

/// Some when a signature is good. RSA keys below 2048 bits are none to ring.
fn verify(algorithm: Algorithm, key: &DecodingKeyKind, message: &[u8], signature: &[u8]) -> Option<()> {
    let rsa: &scheme::RsaParameters = match algorithm {
        Algorithm::RS256 => &scheme::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &scheme::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &scheme::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &scheme::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &scheme::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &scheme::RSA_PSS_2048_8192_SHA512,
        other => {
            let other: &dyn scheme::VerificationAlgorithm = match other {
                Algorithm::ES256 => &scheme::ECDSA_P256_SHA256_FIXED,
                Algorithm::ES384 => &scheme::ECDSA_P384_SHA384_FIXED,
                Algorithm::EdDSA => &scheme::ED25519,
                _ => return None,
            };
            let DecodingKeyKind::SecretOrDer(bytes) = key else { return None };
            return scheme::UnparsedPublicKey::new(other, bytes).verify(message, signature).ok();
        }
    };
    let DecodingKeyKind::RsaModulusExponent { n, e } = key else { return None };
    scheme::RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).ok()
}
