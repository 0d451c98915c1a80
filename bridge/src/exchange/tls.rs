//! The TLS identity of a site: one key, kept with the other keys, whose SHA-256 is on the ledger. There is no other authority.
//!
//! TLS 1.3 only, no resumption, no early data. The certificate is made anew from the key at every start; nobody reads more of it
//! than the key.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::ExchangeError;

/// The file of the key, beside the other keys.
pub const KEY_FILE: &str = crate::keys::EXCHANGE_TLS;

/// This site's TLS key.
pub struct Identity {
    key: KeyPair,
    spki_sha256: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

fn key_error(error: impl std::fmt::Display) -> ExchangeError {
    ExchangeError::Key(error.to_string())
}

impl Identity {
    /// Reads the key in `keystore`, making it at the first start. Only the owner of the process can read the file.
    ///
    /// # Errors
    /// [`ExchangeError::Key`].
    pub fn open(keystore: &Path) -> Result<Self, ExchangeError> {
        let path = keystore.join(KEY_FILE);
        let key = match fs::read(&path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                KeyPair::try_from(bytes.as_slice()).map_err(key_error)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(key_error)?;
                write_secret(&path, &Zeroizing::new(key.serialize_der())).map_err(key_error)?;
                key
            }
            Err(error) => return Err(key_error(error)),
        };
        let spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
        Ok(Self { key, spki_sha256 })
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo: what the ledger says of it.
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// The key with a certificate around it.
    ///
    /// # Errors
    /// [`ExchangeError::Key`].
    pub fn certified(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), ExchangeError> {
        let params = CertificateParams::new(vec!["pacs-bridge.invalid".to_owned()]).map_err(key_error)?;
        let certificate = params.self_signed(&self.key).map_err(key_error)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Ok((certificate.der().clone(), key))
    }

    /// How this site answers.
    ///
    /// # Errors
    /// [`ExchangeError::Key`].
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, ExchangeError> {
        let (certificate, key) = self.certified()?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(key_error)?;
        let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key).map_err(key_error)?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// How this site connects to the one site that holds the key with this SHA-256.
///
/// # Errors
/// [`ExchangeError::Key`].
pub fn client_config(spki_sha256: [u8; 32]) -> Result<Arc<ClientConfig>, ExchangeError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(key_error)?;
    let pinned = Arc::new(Pinned { spki_sha256, provider: provider() });
    let mut config = builder.dangerous().with_custom_certificate_verifier(pinned).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts one key, whatever the certificate around it says; that the peer holds it is proven by the handshake's signature.
#[derive(Debug)]
struct Pinned {
    spki_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let found: [u8; 32] = Sha256::digest(parsed.subject_public_key_info().as_ref()).into();
        if found == self.spki_sha256 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Writes a file that only we can read, durable before it returns, and never half of it under its name.
fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
