//! A remote signer that works, is away, hangs, refuses, signs with another key or talks nonsense. It is our own small server for
//! Web3Signer's two requests: no Web3Signer was at hand.
#![allow(clippy::unwrap_used)]

use alloy::primitives::{Address, B256, U256, hex, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolStruct as _;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use bridge::app::Core;
use bridge::config::Config;
use bridge::ledger::node::Node as _;
use bridge::ledger::sender::SenderConfig;
use bridge::ledger::{
    Ledger, LedgerConfig, LedgerError, LedgerKind, PieceMode, RemoteConfig, RemoteSigner, Signer, SignerError, open,
};
use contracts::messages;
use embedded_ledger::EmbeddedLedger;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zeroize::Zeroizing;

const CHAIN_ID: u64 = 1337;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// v as 0 or 1, and s in the upper half, as some hardware gives it.
    HighS,
    Away,
    Hangs,
    WrongKey,
    Nonsense,
    Flood,
    KeyGone,
    WantsToken,
}

#[derive(Clone)]
struct Vault {
    mood: Arc<Mutex<Mood>>,
    signed: Arc<Mutex<usize>>,
    key: PrivateKeySigner,
}

fn public_key(key: &PrivateKeySigner) -> String {
    hex::encode_prefixed(Signer::from(key.clone()).public_key())
}

fn other_key() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(9)).unwrap()
}

impl Vault {
    async fn open() -> (Self, String) {
        let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
        let vault = Self { mood: Arc::new(Mutex::new(Mood::Well)), signed: Arc::default(), key };
        let router = axum::Router::new()
            .route("/api/v1/eth1/publicKeys", axum::routing::get(keys))
            .route("/api/v1/eth1/sign/{identifier}", axum::routing::post(sign))
            .with_state(vault.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        (vault, url)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }
}

async fn keys(State(vault): State<Vault>, headers: HeaderMap) -> axum::response::Response {
    if vault.mood() == Mood::WantsToken && headers.get("authorization").is_none_or(|v| v != "Bearer letmein") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    axum::Json(json!([public_key(&other_key()), public_key(&vault.key)])).into_response()
}

async fn sign(
    State(vault): State<Vault>,
    UrlPath(identifier): UrlPath<String>,
    body: String,
) -> axum::response::Response {
    assert_eq!(identifier, public_key(&vault.key));
    let body: Value = serde_json::from_str(&body).unwrap();
    let data = hex::decode(body["data"].as_str().unwrap()).unwrap();
    *vault.signed.lock().unwrap() += 1;
    let by = |key: &PrivateKeySigner| key.sign_hash_sync(&keccak256(&data)).unwrap();
    let bytes = match vault.mood() {
        Mood::Well | Mood::WantsToken => by(&vault.key).as_bytes(),
        Mood::WrongKey => by(&other_key()).as_bytes(),
        Mood::HighS => {
            let low = by(&vault.key);
            let order = U256::from_str_radix("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16);
            let mut bytes = low.as_bytes();
            bytes[32..64].copy_from_slice(&(order.unwrap() - low.s()).to_be_bytes::<32>());
            bytes[64] = u8::from(!low.v());
            bytes
        }
        Mood::Away => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::Hangs => std::future::pending().await,
        Mood::Nonsense => return "<html>hello</html>".into_response(),
        Mood::Flood => return "0".repeat(1 << 20).into_response(),
        Mood::KeyGone => return StatusCode::NOT_FOUND.into_response(),
    };
    hex::encode_prefixed(bytes).into_response()
}

fn remote(url: &str, address: Address) -> RemoteConfig {
    RemoteConfig { url: url.parse().unwrap(), address, token: None, timeout: Duration::from_millis(300) }
}

async fn open_ledger(embedded: &EmbeddedLedger, signer: RemoteSigner, dir: &Path) -> Ledger {
    let config = LedgerConfig {
        kind: LedgerKind::Network,
        chain_id: CHAIN_ID,
        admin: Signer::from(signer.clone()).address(),
        deploy: true,
        mode: PieceMode::Calldata,
        journal: dir.join("journal.sqlite"),
        owner_seed: None,
        held_keys: Default::default(),
        identity: None,
        read_parallel: 1,
        sender: SenderConfig { poll_ms: 10, ..SenderConfig::default() },
    };
    open(embedded.rpc_client(), signer, config, Arc::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_signed_elsewhere_and_nothing_wrong_is_sent() {
    let (vault, url) = Vault::open().await;
    let account = vault.key.address();
    let dir = tempfile::tempdir().unwrap();
    let config = embedded_ledger::LedgerConfig::new(dir.path().join("chain.redb"), CHAIN_ID)
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE)
        .with_balance(account, U256::from(10).pow(U256::from(30)));
    let embedded = EmbeddedLedger::open(config).unwrap();
    let signer = RemoteSigner::connect(remote(&url, account)).await.unwrap();
    let ledger = open_ledger(&embedded, signer, dir.path()).await;
    assert_eq!(ledger.ensure_source_defined("https://site.example/0").await.unwrap(), account);
    assert!(*vault.signed.lock().unwrap() > 3, "contracts and definition were signed there");

    let mut round = 0;
    for (mood, passing, words) in [
        (Mood::Away, true, "HTTP status 503"),
        (Mood::Hangs, true, "does not answer"),
        (Mood::WrongKey, false, "nothing was sent"),
        (Mood::Nonsense, false, "<html>"),
        (Mood::Flood, false, "too much"),
        (Mood::KeyGone, false, "no key of account"),
    ] {
        vault.set(mood);
        let nonce = ledger.node().nonce(account).await.unwrap();
        round += 1;
        let endpoint = format!("https://site.example/{round}");
        let error = ledger.ensure_source_defined(&endpoint).await.unwrap_err();
        assert_eq!(matches!(error, LedgerError::Unavailable(_)), passing, "{mood:?}: {error}");
        let said = error.to_string();
        assert!(said.contains(words) && said.contains("127.0.0.1"), "{mood:?}: {said}");
        assert_eq!(ledger.node().nonce(account).await.unwrap(), nonce, "{mood:?}: nothing reached the ledger");
        // The next call is as if nothing had happened.
        vault.set(if round % 2 == 0 { Mood::Well } else { Mood::HighS });
        ledger.ensure_source_defined(&endpoint).await.unwrap();
        assert_eq!(ledger.node().nonce(account).await.unwrap(), nonce + 1);
    }
}

#[tokio::test]
async fn typed_data_is_signed_by_the_key_that_was_named() {
    let (vault, url) = Vault::open().await;
    let signer = Signer::from(RemoteSigner::connect(remote(&url, vault.key.address())).await.unwrap());
    let message = messages::DefineStudy {
        studyId: B256::repeat_byte(1),
        owner: Address::ZERO,
        source: Address::ZERO,
        custodial: true,
        derivedFrom: B256::ZERO,
        deadline: 5,
    };
    let domain = messages::studies_domain(CHAIN_ID, Address::repeat_byte(2));
    let signature = signer.sign_typed_data(domain.separator(), message.eip712_hash_struct()).await.unwrap();
    let digest = message.eip712_signing_hash(&domain);
    assert_eq!(signature.recover_address_from_prehash(&digest).unwrap(), vault.key.address());
    assert_eq!(signature, vault.key.sign_hash_sync(&digest).unwrap(), "as the local key signs");
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_said_in_words() {
    let (vault, url) = Vault::open().await;
    let stranger = Address::repeat_byte(3);
    let error = RemoteSigner::connect(remote(&url, stranger)).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, SignerError::NoKey { .. }) && said.contains(&other_key().address().to_string()), "{said}");
    vault.set(Mood::WrongKey);
    let error = RemoteSigner::connect(remote(&url, vault.key.address())).await.unwrap_err();
    assert!(matches!(error, SignerError::WrongKey { found, .. } if found == other_key().address()), "{error}");
    vault.set(Mood::WantsToken);
    let error = RemoteSigner::connect(remote(&url, vault.key.address())).await.unwrap_err();
    assert!(matches!(error, SignerError::NotAllowed { status: 401, .. }), "{error}");
    let token = Some(Zeroizing::new("letmein".to_owned()));
    RemoteSigner::connect(RemoteConfig { token, ..remote(&url, vault.key.address()) }).await.unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = format!("http://user:s3cret@{nobody}/");
    let error = RemoteSigner::connect(remote(&secret, stranger)).await.unwrap_err();
    assert!(matches!(error, SignerError::Away { .. }), "{error}");
    assert!(error.to_string().contains(&nobody.to_string()) && !error.to_string().contains("s3cret"), "{error}");
}

/// The whole site: its source is the account of the remote key, and what it needs from the ledger is signed there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_is_the_account_of_its_remote_key() {
    let (vault, url) = Vault::open().await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "letmein\n").unwrap();
    let toml = format!(
        "[site]\ndata_dir = {:?}\n[ledger]\nremote_signer_url = \"{url}\"\nremote_signer_address = \"{}\"\n\
         remote_signer_token_file = {token:?}\n",
        dir.path().join("data"),
        vault.key.address()
    );
    vault.set(Mood::WantsToken);
    let core = Core::open(Config::parse(&toml, HashMap::new()).unwrap()).await.unwrap();
    let status = core.site.status().await.unwrap();
    assert_eq!(status.source, vault.key.address().to_string());
    assert_eq!(status.ledger.unwrap().trouble, None);
    core.close().await;
    let rotated = Core::rotate(Config::parse(&toml, HashMap::new()).unwrap()).await.unwrap_err();
    assert!(rotated.to_string().contains("remote signer"), "{rotated}");
}
