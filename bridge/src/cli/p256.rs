//! `pacs-bridge keys p256`: P-256 keys that sign retrievals for an account. Their files are those of OpenSSL; a key in a card or an HSM is
//! never seen: its holder signs a challenge with whatever tool goes with it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use alloy::primitives::{B256, Bytes};
use clap::{Args, Subcommand};
use ihe_retrieve::key::RequesterKey;
use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use zeroize::Zeroizing;

use super::Failed;
use super::consent::{Password, moment, open_key, otherwise, tell, write};
use super::output::Output;
use super::together::{Signing, read, refused, signed};
use crate::config::Config;
use crate::control::Reply;
use crate::decide::{Ask, KeyChallenge, KeyPaper, KeyWish, Told};

#[derive(Debug, Subcommand)]
pub(super) enum P256Command {
    /// Write what the key's holder must sign to have it bound, for a card or an HSM: ECDSA with SHA-256 over the file.
    Challenge {
        /// The key: a PEM or DER file with it or with a certificate of it.
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// To whom it is to be bound; this site's account by default.
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
        /// The file; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Bind a key to this site's account, or write what another account must sign for that.
    Bind {
        #[command(flatten)]
        of: KeyFile,
        /// What the key's holder made of the challenge: r and s in 64 octets, or in DER.
        #[arg(long, value_name = "FILE", required_unless_present = "key", conflicts_with = "key")]
        proof: Option<PathBuf>,
        /// Not after: YYYY-MM-DD, seconds since 1970, or a span from now such as 365d; without it until unbound.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        #[command(flatten)]
        elsewhere: Elsewhere,
    },
    /// Unbind a key at once. The key itself is not needed.
    Unbind {
        /// Its SHA-256 as `list` shows it, or a PEM or DER file with it or with a certificate of it.
        key: String,
        #[command(flatten)]
        elsewhere: Elsewhere,
    },
    /// List the keys that an account bound.
    List {
        /// This site's account by default.
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
    },
    /// Sign, as the account, what `--unsigned` wrote. Needs no bridge and no ledger.
    Sign(Signing),
    /// Send what an account signed; the bridge pays.
    Submit {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct KeyFile {
    /// The key: a PEM or DER file with it or with a certificate of it.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// The private key, a PEM file (PKCS #8 or SEC 1), which makes the proof by itself.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Elsewhere {
    /// Another account, which signs the file of --unsigned.
    #[arg(long, value_name = "ACCOUNT", requires = "unsigned")]
    account: Option<String>,
    /// Send nothing: write what the account must sign to this file, for `keys p256 sign`.
    #[arg(long, value_name = "FILE", requires = "account")]
    unsigned: Option<PathBuf>,
}

pub(super) async fn run(
    command: P256Command,
    config: &Config,
    output: &Output,
    password: Password,
) -> Result<(), Failed> {
    let ask = match command {
        P256Command::Challenge { public_key, account, out } => {
            let challenge = challenge(config, account, public_key_in(&public_key)?).await?;
            let fail = |e: std::io::Error| Failed(format!("file {}: {e}", out.display()));
            let mut file = std::fs::File::create_new(&out).map_err(fail)?;
            file.write_all(&challenge.octets).map_err(fail)?;
            let (account, key) = (challenge.account.to_string(), challenge.key.to_string());
            output.done("challenge", &[("file", out.display().to_string()), ("account", account), ("key", key)]);
            return Ok(());
        }
        P256Command::Bind { of, proof, until, elsewhere } => {
            let not_after = moment(until)?.unwrap_or(u64::MAX);
            let (spki, proof) = match (of, proof) {
                (KeyFile { key: Some(file), .. }, _) => {
                    let key = private_key_in(&file)?;
                    let spki = Bytes::from(key.public_key().to_public_key_der()?.into_vec());
                    let challenge = challenge(config, elsewhere.account.clone(), spki.clone()).await?;
                    let proof: Signature = SigningKey::from(key).sign(&challenge.octets);
                    (spki, proof)
                }
                (KeyFile { public_key: Some(file), .. }, Some(proof)) => (public_key_in(&file)?, proof_in(&proof)?),
                _ => return Err(Failed("name the key with --public-key and its --proof, or with --key".into())),
            };
            let proof = Bytes::copy_from_slice(&proof.to_bytes());
            return wished(KeyWish::Bind { spki, proof, not_after }, elsewhere, config, output).await;
        }
        P256Command::Unbind { key, elsewhere } => {
            let key = match key.parse::<B256>() {
                Ok(key) => key,
                Err(_) => name_of(Path::new(&key))?,
            };
            return wished(KeyWish::Unbind { key }, elsewhere, config, output).await;
        }
        P256Command::List { account } => Ask::Keys { account },
        P256Command::Sign(Signing { file, key, password_file }) => {
            let mut paper: KeyPaper = read(&file)?;
            let key = open_key(key, password_file, password).await?;
            paper.sign(&key).map_err(|e| refused("word about a key", &file, &e))?;
            write(&file, &paper)?;
            return signed(output, &paper, &format!("signed by {}: {}", key.address(), paper.in_words()));
        }
        P256Command::Submit { file } => Ask::SubmitKey { paper: Box::new(read(&file)?) },
    };
    output.reply(Reply::Consent(tell(config, ask).await?))
}

async fn challenge(config: &Config, account: Option<String>, spki: Bytes) -> Result<KeyChallenge, Failed> {
    match tell(config, Ask::KeyChallenge { account, spki }).await? {
        Told::KeyChallenge(challenge) => Ok(challenge),
        _ => Err(otherwise()),
    }
}

/// Has it said by this site's account, or writes what another one must sign.
async fn wished(wish: KeyWish, elsewhere: Elsewhere, config: &Config, output: &Output) -> Result<(), Failed> {
    let (Some(account), Some(file)) = (elsewhere.account, elsewhere.unsigned) else {
        return output.reply(Reply::Consent(tell(config, Ask::Key { wish }).await?));
    };
    let told = tell(config, Ask::KeyPaper { account, wish }).await?;
    let Told::KeyPaper(paper) = &told else { return Err(otherwise()) };
    write(&file, paper)?;
    let signer = paper.account;
    output.reply(Reply::Consent(told))?;
    if !output.is_json() {
        println!("to be signed by {signer}: pacs-bridge keys p256 sign {} --key KEYFILE", file.display());
    }
    Ok(())
}

fn contents(file: &Path) -> Result<Zeroizing<Vec<u8>>, Failed> {
    std::fs::read(file).map(Zeroizing::new).map_err(|e| Failed(format!("key file {}: {e}", file.display())))
}

fn requester_key_in(file: &Path) -> Result<RequesterKey, Failed> {
    let contents = contents(file)?;
    let spki =
        SubjectPublicKeyInfoDer::from_pem_slice(&contents).map_or_else(|_| contents.to_vec(), |key| key.to_vec());
    let certificate = CertificateDer::from_pem_slice(&contents).map_or_else(|_| contents.to_vec(), |key| key.to_vec());
    let found = RequesterKey::from_spki(&spki).or_else(|_| RequesterKey::from_certificate(&certificate));
    found.ok().filter(|key| matches!(key, RequesterKey::P256(_))).ok_or_else(|| {
        Failed(format!("{} holds neither a P-256 public key nor a certificate of one, in PEM or DER", file.display()))
    })
}

fn public_key_in(file: &Path) -> Result<Bytes, Failed> {
    Ok(requester_key_in(file)?.spki().into())
}

fn name_of(file: &Path) -> Result<B256, Failed> {
    if !file.is_file() {
        return Err(Failed(format!(
            "\"{}\" is neither a key's SHA-256 (64 hexadecimal digits) nor a file",
            file.display()
        )));
    }
    Ok(requester_key_in(file)?.spki_sha256().into())
}

fn private_key_in(file: &Path) -> Result<SecretKey, Failed> {
    let contents = contents(file)?;
    let key = match PrivateKeyDer::from_pem_slice(&contents) {
        Ok(PrivateKeyDer::Pkcs8(der)) => SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok(),
        Ok(PrivateKeyDer::Sec1(der)) => SecretKey::from_sec1_der(der.secret_sec1_der()).ok(),
        _ => None,
    };
    key.ok_or_else(|| Failed(format!("{} holds no P-256 private key in PEM without a password", file.display())))
}

/// A signature as hardware gives it (64 octets) or as OpenSSL does (DER).
fn proof_in(file: &Path) -> Result<Signature, Failed> {
    let octets = std::fs::read(file).map_err(|e| Failed(format!("proof {}: {e}", file.display())))?;
    let found = if octets.len() == 64 { Signature::from_slice(&octets) } else { Signature::from_der(&octets) };
    found.map_err(|_| Failed(format!("{} holds no ECDSA signature: r and s in 64 octets, or in DER", file.display())))
}
