//! TLS of the doors, from files: certificates and keys read and compared, settings for servers and clients made of them, and read
//! again while they run.
//!
//! TLS 1.2 and 1.3 with the cipher suites of rustls, which are all of BCP 195 (RFC 9325 4.2): forward secrecy and authenticated
//! encryption only. No session is resumed and no data is early, so every connection shows its certificates anew. Must not know who
//! may do what, nor what is spoken over it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::config::{
    AuditTransport, ClientCertificate, ClientCertificates, Config, DicomTls, Mistake, PeerTls, TlsFiles, Xds,
};

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not what it should be.
    #[error("{0}")]
    File(PathBuf, #[source] rustls::pki_types::pem::Error),
    /// A file without the certificate it is there for.
    #[error("{0} holds no certificate")]
    Empty(PathBuf),
    /// What is in a file is no certificate of an authority that can be used.
    #[error("{0} holds a certificate that no other can be checked with")]
    Authority(PathBuf, #[source] rustls::Error),
    /// Certificate and key do not go together, or are of a kind that is not spoken.
    #[error("{} is not the key of the certificate in {}, or one of them is of a kind that is not spoken", .0.key.display(), .0.certificate.display())]
    Pair(TlsFiles, #[source] rustls::Error),
    /// The name that a peer's certificate must bear cannot be one.
    #[error("\"{0}\" is neither a host name nor an address")]
    Name(String),
    /// Nobody on the web is known to this machine.
    #[error(
        "this machine trusts no authority: install its certificates (Debian: ca-certificates), or name a file of authorities"
    )]
    NoAuthorities,
    /// No settings can be made of it all.
    #[error("settings")]
    Settings(#[source] rustls::Error),
    /// Nobody's certificates can be checked.
    #[error("authorities")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl TlsError {
    /// Whether the key's file is to be looked at rather than the certificate's.
    fn is_about_key(&self, files: &TlsFiles) -> bool {
        matches!(self, Self::File(path, _) if *path == files.key) || matches!(self, Self::Pair(..))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What DICOM needs (PS3.15 B.12), and secure nodes of IHE (ITI TF-2 3.19.6.2): 1.3 is preferred, 1.2 spoken.
const BOTH_VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| TlsError::File(path.to_owned(), error))?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}

/// A certificate and its key that are in no file.
pub struct OwnKey {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Whose certificates a server asks its clients for, and whether each must show one.
struct Clients<'a> {
    authorities: &'a [PathBuf],
    required: bool,
}

/// A certificate chain and the key of its first, compared with each other.
fn certified(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File(files.key.clone(), error))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| TlsError::Pair(files.clone(), error))
}

fn authorities(files: &[PathBuf]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for path in files {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| TlsError::Authority(path.clone(), error))?;
        }
    }
    Ok(Arc::new(roots))
}

/// How to answer over HTTP: TLS 1.3, and callers show no certificate.
///
/// # Errors
/// [`TlsError`].
pub fn http_server(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Settings)?
        .with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified(files)?)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// How to answer over DICOM.
///
/// # Errors
/// [`TlsError`].
pub fn dicom_server(files: &TlsFiles, settings: &DicomTls) -> Result<ServerConfig, TlsError> {
    let asked = settings.client_certificates;
    let clients = Clients { authorities: &settings.client_ca_files, required: asked == ClientCertificates::Required };
    server(certified(files)?, (asked != ClientCertificates::None).then_some(clients))
}

/// How to answer requests for documents: with the configured certificate, or else with the site's own key.
///
/// # Errors
/// [`TlsError`].
pub fn xds_server(settings: &Xds, own: &OwnKey) -> Result<ServerConfig, TlsError> {
    let certified = match &settings.tls {
        Some(files) => certified(files)?,
        None => CertifiedKey::from_der(vec![own.certificate.clone()], own.key.clone_key(), &provider())
            .map_err(TlsError::Settings)?,
    };
    let required = settings.client_certificate == ClientCertificate::Required;
    let clients = settings.client_ca.as_ref().map(|file| Clients { authorities: std::slice::from_ref(file), required });
    let mut config = server(certified, clients)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS 1.3 and 1.2, each connection anew.
fn server(certified: CertifiedKey, clients: Option<Clients<'_>>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(BOTH_VERSIONS)
        .map_err(TlsError::Settings)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(clients.authorities)?, provider());
            let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    // A resumed session would be a certificate that was looked at another day.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// How to call a peer over DICOM: with its authorities, its name, and where fingerprints are listed, one of these certificates.
///
/// # Errors
/// [`TlsError`].
pub fn dicom_client(
    settings: &PeerTls,
    fingerprints: &[[u8; 32]],
) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
    let name = ServerName::try_from(settings.server_name.clone());
    let name = name.map_err(|_| TlsError::Name(settings.server_name.clone()))?;
    let web = if settings.ca_files.is_empty() {
        None
    } else {
        let roots = authorities(&settings.ca_files)?;
        Some(WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?)
    };
    let verifier = Arc::new(Known { web, fingerprints: fingerprints.to_vec(), provider: provider() });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(BOTH_VERSIONS)
        .map_err(TlsError::Settings)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let certified = certified(files)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(config), name))
}

/// How to call somebody else who speaks TLS: known by his authorities and his name.
///
/// # Errors
/// [`TlsError`].
pub fn client(settings: &PeerTls) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
    dicom_client(settings, &[])
}

/// How to call web servers: known by the authorities in a file, or else by those that this machine trusts, and by their names.
///
/// # Errors
/// [`TlsError`].
pub fn web_client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match ca_file {
        Some(file) => authorities(std::slice::from_ref(&file.to_owned()))?,
        None => {
            let mut roots = RootCertStore::empty();
            // Machines have authorities among theirs that rustls cannot use; the others are enough.
            let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if usable == 0 {
                return Err(TlsError::NoAuthorities);
            }
            Arc::new(roots)
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(BOTH_VERSIONS)
        .map_err(TlsError::Settings)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A peer that is called: vouched for by an authority, listed by its fingerprint, or both where both are configured. One of them
/// always is: the configuration sees to it, and nobody is known by neither.
#[derive(Debug)]
struct Known {
    web: Option<Arc<WebPkiServerVerifier>>,
    fingerprints: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let listed = self.fingerprints.contains(&Sha256::digest(end_entity.as_ref()).into());
        if !listed && (self.web.is_none() || !self.fingerprints.is_empty()) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        match &self.web {
            Some(web) => web.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
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

/// The settings of a port, which can be read again while it is open.
pub struct Server {
    read: Box<dyn Fn() -> Result<ServerConfig, TlsError> + Send + Sync>,
    current: RwLock<Arc<ServerConfig>>,
}

impl Server {
    /// Reads the settings for the first time.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        read: impl Fn() -> Result<ServerConfig, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Arc::new(read()?));
        Ok(Arc::new(Self { read: Box::new(read), current }))
    }

    /// For the next connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Reads the files again, for connections from now on.
    ///
    /// # Errors
    /// [`TlsError`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new((self.read)()?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

/// What is wrong with the files that a configuration names for TLS, all of it.
#[must_use]
pub fn mistakes(config: &Config) -> Vec<Mistake> {
    let mut found = Vec::new();
    let tls = &config.dicom.tls;
    examine_files("dicom.tls.certificate_file", "dicom.tls.key_file", tls.files.as_ref(), &mut found);
    examine_authorities("dicom.tls.client_ca_files", &tls.client_ca_files, &mut found);
    let keys = ("http.tls_certificate_file", "http.tls_key_file");
    examine_files(keys.0, keys.1, config.http.tls.as_ref(), &mut found);
    let keys = ("xds.tls_certificate_file", "xds.tls_key_file");
    examine_files(keys.0, keys.1, config.xds.tls.as_ref(), &mut found);
    examine_authorities("xds.client_ca_file", config.xds.client_ca.as_slice(), &mut found);
    if let Some(AuditTransport::Tls(settings)) = config.audit.repository.as_ref().map(|found| &found.transport) {
        examine_authorities("audit.ca_files", &settings.ca_files, &mut found);
        if ServerName::try_from(settings.server_name.as_str()).is_err() {
            let what = TlsError::Name(settings.server_name.clone()).to_string();
            found.push(Mistake { key: "audit.server_name".to_owned(), what });
        }
        let keys = ("audit.client_certificate_file", "audit.client_key_file");
        examine_files(keys.0, keys.1, settings.client.as_ref(), &mut found);
    }
    if let Some(oidc) = &config.http.oidc {
        examine_authorities("oidc.ca_file", oidc.ca_file.as_slice(), &mut found);
    }
    for (number, peer) in (1..).zip(&config.peers) {
        let Some(settings) = &peer.tls else { continue };
        let key = |name: &str| format!("peer[{number}].{name}");
        examine_authorities(&key("tls_ca_files"), &settings.ca_files, &mut found);
        if ServerName::try_from(settings.server_name.as_str()).is_err() {
            let what = TlsError::Name(settings.server_name.clone()).to_string();
            found.push(Mistake { key: key("tls_server_name"), what });
        }
        // What it has from [dicom.tls] was looked at above.
        let own = settings.client.as_ref().filter(|files| Some(*files) != tls.files.as_ref());
        examine_files(&key("tls_client_certificate_file"), &key("tls_client_key_file"), own, &mut found);
    }
    found
}

fn examine_files(certificate: &str, key: &str, files: Option<&TlsFiles>, found: &mut Vec<Mistake>) {
    let Some(files) = files else { return };
    let Err(error) = certified(files) else { return };
    let at_fault = if error.is_about_key(files) { key } else { certificate };
    found.push(Mistake { key: at_fault.to_owned(), what: crate::chain_of(&error) });
    // A certificate that cannot be read must not hide that the key cannot be either.
    if at_fault == certificate
        && let Err(error) = PrivateKeyDer::from_pem_file(&files.key)
    {
        let error = TlsError::File(files.key.clone(), error);
        found.push(Mistake { key: key.to_owned(), what: crate::chain_of(&error) });
    }
}

fn examine_authorities(key: &str, files: &[PathBuf], found: &mut Vec<Mistake>) {
    let wrong = files.iter().filter_map(|file| authorities(std::slice::from_ref(file)).err());
    found.extend(wrong.map(|error| Mistake { key: key.to_owned(), what: crate::chain_of(&error) }));
}

/// Whom a certificate names: its dNSNames (RFC 5280 4.2.1.6), or the common names of its subject where it has none (RFC 6125 6.4.4).
/// Nothing for what is no certificate.
#[must_use]
pub fn names(certificate: &[u8]) -> Vec<String> {
    let der = CertificateDer::from(certificate);
    let Ok(parsed) = webpki::EndEntityCert::try_from(&der) else { return Vec::new() };
    let dns: Vec<String> = parsed.valid_dns_names().map(str::to_owned).collect();
    if dns.is_empty() { common_names(parsed.subject()) } else { dns }
}

/// The common names in a subject, given as the content of its RDNSequence (RFC 5280 4.1.2.4).
fn common_names(subject: &[u8]) -> Vec<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const OID: u8 = 0x06;
    /// 2.5.4.3
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    /// UTF8String and PrintableString; the others are not written any more.
    const TEXTS: [u8; 2] = [0x0C, 0x13];
    let mut found = Vec::new();
    for (_, set) in elements(subject).filter(|(tag, _)| *tag == SET) {
        for (_, attribute) in elements(set).filter(|(tag, _)| *tag == SEQUENCE) {
            let mut parts = elements(attribute);
            if parts.next() != Some((OID, &COMMON_NAME)) {
                continue;
            }
            let text = parts.next().filter(|(tag, _)| TEXTS.contains(tag));
            found.extend(text.and_then(|(_, bytes)| std::str::from_utf8(bytes).ok()).map(str::to_owned));
        }
    }
    found
}

/// The elements of a DER value, up to the first that is not well-formed or longer than 65,535 bytes.
fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7F => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(n, rest)| (usize::from(*n), rest))?,
            0x82 => rest.split_first_chunk::<2>().map(|(n, rest)| (usize::from(u16::from_be_bytes(*n)), rest))?,
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        der = rest;
        Some((tag, content))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    fn written(names: &[&str], common: &[DnValue]) -> Vec<u8> {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "common.example");
        for name in common {
            params.distinguished_name.push(DnType::CommonName, name.clone());
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_are_those_of_the_extension_or_else_the_common_name() {
        let common = DnValue::Utf8String("Röntgen 1".into());
        assert_eq!(
            names(&written(&["ct.example", "ct2.example"], std::slice::from_ref(&common))),
            ["ct.example", "ct2.example"]
        );
        assert_eq!(names(&written(&[], &[common])), ["Röntgen 1"]);
        assert_eq!(names(&written(&[], &[DnValue::PrintableString("CT1".try_into().unwrap())])), ["CT1"]);
        assert_eq!(names(&written(&[], &[])), [""; 0], "an organisation is no name of a host");
        assert_eq!(names(&written(&["ct.example"], &[])), ["ct.example"]);
        assert_eq!(names(b"no certificate"), [""; 0]);
    }

    #[test]
    fn a_damaged_subject_names_nobody() {
        let whole = written(&[], &[DnValue::Utf8String("a name".into())]);
        for at in 0..whole.len() {
            let mut cut = whole.clone();
            cut.truncate(at);
            assert!(names(&cut).is_empty());
            // No byte that is changed makes it panic.
            let mut changed = whole.clone();
            changed[at] ^= 0xFF;
            let _ = (names(&changed), common_names(&changed), common_names(&whole[at..]));
        }
    }
}
