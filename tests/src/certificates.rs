//! Authorities and certificates for tests of TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use sha2::{Digest, Sha256};

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Shown {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub sha256: String,
}

impl Shown {
    fn write(dir: &Path, name: &str, certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        let shown = Self {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
            sha256: hex::encode(Sha256::digest(certificate.der())),
        };
        std::fs::write(&shown.certificate, certificate.pem()).unwrap();
        std::fs::write(&shown.key, key.serialize_pem()).unwrap();
        shown
    }

    /// Lets `path` be what this is, as one who renews a certificate does.
    pub fn copy_to(&self, other: &Self) {
        std::fs::copy(&self.certificate, &other.certificate).unwrap();
        std::fs::copy(&self.key, &other.key).unwrap();
    }
}

/// A kind of certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    Expired,
    /// For servers only.
    ServerOnly,
}

/// An authority.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pub certificate: PathBuf,
    rsa: bool,
}

impl Authority {
    /// An authority whose files are in `dir`. With `rsa` it gives RSA keys, which `openssl` makes.
    pub fn new(dir: &Path, name: &str, rsa: bool) -> Self {
        let key = key(rsa);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        let path = dir.join(format!("{name}.pem"));
        std::fs::write(&path, certificate.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer: Issuer::new(params, key), certificate: path, rsa }
    }

    /// A certificate for these names, or with `name` as its common name where there are none.
    pub fn issue(&self, name: &str, names: &[&str], kind: Kind) -> Shown {
        let key = key(self.rsa);
        let certificate = params(name, names, kind).signed_by(&key, &self.issuer).unwrap();
        Shown::write(&self.dir, name, &certificate, &key)
    }
}

/// A certificate that vouches for itself.
pub fn self_signed(dir: &Path, name: &str, names: &[&str]) -> Shown {
    let key = key(false);
    let certificate = params(name, names, Kind::Good).self_signed(&key).unwrap();
    Shown::write(dir, name, &certificate, &key)
}

fn params(name: &str, names: &[&str], kind: Kind) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if kind != Kind::ServerOnly {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if kind == Kind::Expired {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    }
    params
}

fn key(rsa: bool) -> KeyPair {
    if !rsa {
        return KeyPair::generate().unwrap();
    }
    let made =
        Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output();
    KeyPair::from_pem(&String::from_utf8(made.unwrap().stdout).unwrap()).unwrap()
}
