//! Several endpoints of one ledger, each of which is cut, stalls, lags, talks nonsense or turns into another chain: the publisher
//! reaches the end all the same, what comes back is what was sent, and nothing of it looks like a reorganisation.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{B256, U256};
use alloy::rpc::client::RpcClient;
use alloy::signers::local::PrivateKeySigner;
use alloy::transports::http::reqwest::Url;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bridge::ledger::forks::{FORKS_FILE, ForkLog, Forks, Seen, keep};
use bridge::ledger::node::{Node as _, NodeError, SystemClock};
use bridge::ledger::owner::OwnerSeed;
use bridge::ledger::rpc::RpcNode;
use bridge::ledger::sender::SenderConfig;
use bridge::ledger::{
    Endpoints, Ledger, LedgerConfig, LedgerKind, OpenError, PieceMode, StudyOwner, Watch, open_endpoints,
};
use bridge::publish::{PublishConfig, Publisher};
use embedded_ledger::EmbeddedLedger;
use futures::TryStreamExt as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{ANVIL_CHAIN_ID, ANVIL_KEY, Anvil, MemoryOutbox, MemorySource, noise, skipped};
use tokio_util::sync::CancellationToken;

const CHAIN_ID: u64 = 1337;
/// Long enough for a machine that does other things besides, where an endpoint is meant to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Where endpoints stall again and again.
const SHORT_TIMEOUT: Duration = Duration::from_millis(300);
/// Longest time in which nothing gets on.
const STANDSTILL_MAX: Duration = Duration::from_secs(120);

/// How an endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// The connection ends in the middle of the answer.
    Cut,
    /// Nothing ever comes back.
    Stalled,
    /// A proxy's error page.
    Nonsense,
    /// It has no block above this height.
    Lags(u64),
    /// Another chain's node answers.
    Foreign,
}

#[derive(Clone)]
struct Front {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<String>>>,
    client: RpcClient,
}

/// An HTTP endpoint in front of a node.
struct Door {
    url: Url,
    front: Front,
    _stop: tokio_util::sync::DropGuard,
}

impl Door {
    async fn open(client: RpcClient) -> Self {
        let front = Front { mood: Arc::new(Mutex::new(Mood::Well)), asked: Arc::default(), client };
        let router = axum::Router::new().fallback(answer).with_state(front.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router).into_future() => served.unwrap(),
                () = stopped => {}
            }
        });
        Self { url, front, _stop: stop.drop_guard() }
    }

    fn set(&self, mood: Mood) {
        *self.front.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.front.asked.lock().unwrap().len()
    }

    fn name(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }
}

async fn answer(State(front): State<Front>, body: axum::body::Bytes) -> axum::response::Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let (method, mut params) = (request["method"].as_str().unwrap().to_owned(), request["params"].clone());
    front.asked.lock().unwrap().push(method.clone());
    let mood = *front.mood.lock().unwrap();
    let result = match mood {
        Mood::Cut => {
            let broken = futures::stream::iter([Ok("{"), Err(std::io::Error::other("cut"))]);
            return axum::body::Body::from_stream(broken).into_response();
        }
        Mood::Stalled => std::future::pending().await,
        Mood::Nonsense => return (StatusCode::BAD_GATEWAY, "<html>nothing behind me</html>").into_response(),
        Mood::Foreign if method == "eth_chainId" => Ok(json!("0x1")),
        Mood::Lags(height) => lagging(&front, &method, &mut params, height).await,
        Mood::Well | Mood::Foreign => forward(&front, &method, &params).await,
    };
    let mut response = json!({ "jsonrpc": "2.0", "id": request["id"] });
    match result {
        Ok(result) => response["result"] = result,
        Err(error) => response["error"] = error,
    }
    axum::Json(response).into_response()
}

async fn forward(front: &Front, method: &str, params: &Value) -> Result<Value, Value> {
    let answered = front.client.request::<Value, Value>(method.to_owned(), params.clone()).await;
    answered.map_err(|error| serde_json::to_value(error.as_error_resp().expect("the node itself is well")).unwrap())
}

/// A node that has not got the newest blocks: its latest block is an older one, and it has never heard of what came later.
async fn lagging(front: &Front, method: &str, params: &mut Value, height: u64) -> Result<Value, Value> {
    let mut beyond = false;
    for param in params.as_array_mut().into_iter().flatten() {
        if *param == json!("latest") {
            *param = json!(format!("{height:#x}"));
        }
    }
    if matches!(method, "eth_getBlockByNumber" | "eth_getTransactionByBlockNumberAndIndex") {
        beyond = number(&params[0]).is_some_and(|n| n > height);
    }
    let answer = forward(front, method, params).await?;
    let of_block = ["number", "blockNumber"].iter().find_map(|key| number(&answer[key]));
    let first = number(&answer[0]["blockNumber"]);
    let too_new = of_block.or(first).is_some_and(|n| n > height) && method != "eth_sendRawTransaction";
    Ok(if beyond || too_new { Value::Null } else { answer })
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

fn embedded(path: &Path, key: &PrivateKeySigner) -> EmbeddedLedger {
    with_period(path, key, None)
}

fn with_period(path: &Path, key: &PrivateKeySigner, block_period_ms: Option<u64>) -> EmbeddedLedger {
    let mut config = embedded_ledger::LedgerConfig::new(path, CHAIN_ID)
        .with_code(contracts::deployment::DEPLOYER, contracts::deployment::DEPLOYER_CODE)
        .with_balance(key.address(), U256::from(10).pow(U256::from(30)));
    config.block_period_ms = block_period_ms;
    EmbeddedLedger::open(config).unwrap()
}

fn key() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
}

fn config(chain_id: u64, key: &PrivateKeySigner, journal: &Path) -> LedgerConfig {
    LedgerConfig {
        kind: LedgerKind::Network,
        chain_id,
        admin: key.address(),
        deploy: true,
        mode: PieceMode::Calldata,
        journal: journal.to_owned(),
        owner_seed: Some(OwnerSeed::new(vec![5; 32])),
        held_keys: Default::default(),
        identity: None,
        read_parallel: 4,
        sender: SenderConfig { poll_ms: 20, resend_ms: 300, ..SenderConfig::default() },
    }
}

fn watch() -> Watch {
    Watch { timeout: TIMEOUT, head_age_max: None, look_every: Duration::from_millis(50) }
}

fn urls(doors: &[Door]) -> Vec<Url> {
    doors.iter().map(|door| door.url.clone()).collect()
}

async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done().await {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What was logged, so that a test can see what the program believed.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Of this thread, which runs the whole test.
    fn here() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn count(&self, words: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(words).count()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn studies(name: &str) -> Arc<MemorySource> {
    let mut source = MemorySource::default();
    for study in 0..5 {
        source.add(&format!("{name}/{study}"), study, 1, 60_000, &[900, 1_800], &[180_001, 1, 60_000, 777, 240_000]);
    }
    Arc::new(source)
}

async fn check_everything(ledger: &Ledger, outbox: &MemoryOutbox, source: &MemorySource) {
    let site = ledger.source().await.unwrap();
    for (job, plan) in &source.plans {
        for image in &plan.images {
            let located: Vec<_> = outbox.located(job.study, image.image).into_values().collect();
            let mut loaded = Vec::new();
            // An answer may be late on a machine that does other things besides.
            eventually("the pieces of an image", async || {
                let pieces = ledger.load_pieces(site, PieceMode::Calldata, located.clone());
                pieces.try_collect().await.map(|pieces: Vec<_>| loaded = pieces).is_ok()
            })
            .await;
            let bytes: Vec<u8> = loaded.iter().flat_map(|(_, b)| b.to_vec()).collect();
            assert!(bytes == noise(image.image, image.bytes as usize), "what comes back is what was sent");
        }
    }
    eventually("nothing to be pending", async || ledger.status().await.pending == 0).await;
}

fn thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_publisher_reaches_the_end_whatever_becomes_of_the_endpoints() {
    let (log, _guard) = Log::here();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    thread().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let chain = embedded(&dir.path().join("chain.redb"), &key());
        let mut doors = Vec::new();
        for _ in 0..3 {
            doors.push(Door::open(chain.rpc_client()).await);
        }
        let node = Endpoints::at(&urls(&doors), Watch { timeout: SHORT_TIMEOUT, ..watch() }).unwrap();
        let config = config(CHAIN_ID, &key(), &dir.path().join("journal.sqlite"));
        let ledger = open_endpoints(node, key(), config, Arc::default()).await.unwrap();
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        let (outbox, source) = (Arc::new(MemoryOutbox::default()), studies("moods"));
        // A study at a time, every few changes, so that a fast machine meets as many of them as a slow one.
        let mut jobs: Vec<_> = source.plans.keys().copied().collect();
        let publish = PublishConfig { scan_ms: 50, ..PublishConfig::default() };
        let publisher = Publisher::new(outbox.clone(), source.clone(), ledger.clone(), SystemClock, publish);
        tokio::spawn(publisher.run(CancellationToken::new()));
        let mut changes = 0;
        // How long it takes depends on the machine and on the moods; that it gets on does not.
        let (mut reached, mut since) = (0, std::time::Instant::now());
        while !jobs.is_empty() || !outbox.finished() {
            if changes % 3 == 2
                && let Some(job) = jobs.pop()
            {
                outbox.jobs.lock().unwrap().push(job);
            }
            let height = chain.head().number;
            if height > reached {
                (reached, since) = (height, std::time::Instant::now());
            }
            assert!(since.elapsed() < STANDSTILL_MAX, "seed {seed}: it stands still at {height}\n{}", log.text());
            for door in &doors {
                door.set(match rng.gen_range(0..9) {
                    0 => Mood::Cut,
                    1 => Mood::Stalled,
                    2 => Mood::Nonsense,
                    3 => Mood::Lags(height.saturating_sub(rng.gen_range(1..4))),
                    4 => Mood::Lags(height / 2),
                    5 => Mood::Foreign,
                    _ => Mood::Well,
                });
            }
            changes += 1;
            tokio::time::sleep(Duration::from_millis(rng.gen_range(5..150))).await;
        }
        doors.iter().for_each(|door| door.set(Mood::Well));
        check_everything(&ledger, &outbox, &source).await;
        for words in ["a block left the chain", "from a new place", "taken this nonce", "filling a gap"] {
            assert_eq!(log.count(words), 0, "seed {seed}: it saw what never happened:\n{}", log.text());
        }
        assert!(chain.verify().unwrap().is_sound());
    });
}

#[test]
fn the_preferred_endpoint_is_left_when_it_fails_and_used_again_when_it_recovers() {
    let (log, _guard) = Log::here();
    thread().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let chain = embedded(&dir.path().join("chain.redb"), &key());
        let doors = [Door::open(chain.rpc_client()).await, Door::open(chain.rpc_client()).await];
        let node = Endpoints::at(&urls(&doors), watch()).unwrap();
        let config = config(CHAIN_ID, &key(), &dir.path().join("journal.sqlite"));
        let ledger = open_endpoints(node, key(), config, Arc::default()).await.unwrap();
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        let (node, height) = (ledger.node().clone(), chain.head().number);
        for mood in [Mood::Cut, Mood::Stalled, Mood::Nonsense, Mood::Lags(height - 1), Mood::Lags(0)] {
            eventually("the preferred endpoint", async || node.endpoint() == Some(doors[0].name())).await;
            doors[0].set(mood);
            assert_eq!(node.head().await.unwrap().number, height, "{mood:?}: the other endpoint answers");
            eventually("the other endpoint", async || node.endpoint() == Some(doors[1].name())).await;
            assert_eq!(ledger.status().await.endpoint, Some(doors[1].name()));
            doors[0].set(Mood::Well);
        }
        eventually("the preferred endpoint", async || node.endpoint() == Some(doors[0].name())).await;
        assert!(log.count("asked at another endpoint") >= 10, "{}", log.text());

        // Neither is fit: it says so and waits, and nothing lower than what was seen is ever shown.
        doors[0].set(Mood::Lags(height - 1));
        doors[1].set(Mood::Cut);
        for _ in 0..20 {
            match node.head().await {
                Err(NodeError::Unreachable(why)) => assert!(why.contains("127.0.0.1"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        doors[1].set(Mood::Well);
        eventually("an endpoint that has all blocks", async || node.head().await.is_ok_and(|h| h.number == height))
            .await;
        assert_eq!(log.count("a block left the chain") + log.count("from a new place"), 0, "{}", log.text());
    });
}

/// A fallback of another chain, or of the same chain id with other blocks, is worse than none.
#[test]
fn a_stranger_is_never_asked_for_anything_but_who_it_is() {
    thread().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let chain = embedded(&dir.path().join("chain.redb"), &key());
        let other_key = PrivateKeySigner::from_bytes(&B256::repeat_byte(8)).unwrap();
        let other = embedded(&dir.path().join("other.redb"), &other_key);
        let doors = [Door::open(chain.rpc_client()).await, Door::open(other.rpc_client()).await];
        let settings = config(CHAIN_ID, &key(), &dir.path().join("journal.sqlite"));
        let ledger =
            open_endpoints(Endpoints::at(&urls(&doors), watch()).unwrap(), key(), settings, Arc::default()).await;
        let ledger = ledger.unwrap();
        doors[0].set(Mood::Cut);
        let node = ledger.node();
        for _ in 0..20 {
            let answer = node.balance(key().address()).await;
            assert!(matches!(answer, Err(NodeError::Unreachable(_))), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asked = doors[1].front.asked.lock().unwrap().clone();
        let harmless = ["eth_chainId", "eth_getBlockByNumber", "eth_getCode"];
        assert!(asked.iter().all(|method| harmless.contains(&method.as_str())), "{asked:?}");
        assert!(doors[1].asked() > 0, "it was looked at");

        // The only endpoint turns into another chain after a failure: it is not believed either.
        doors[0].set(Mood::Foreign);
        eventually("the stranger to be named", async || {
            let answer = node.balance(key().address()).await;
            matches!(answer, Err(NodeError::Unreachable(why)) if why.contains("chain id 1,"))
        })
        .await;
        doors[0].set(Mood::Well);
        eventually("our own ledger", async || node.balance(key().address()).await.is_ok()).await;

        // From the start: the stranger is left out; with nothing else it is named.
        doors[0].set(Mood::Foreign);
        let settings = config(CHAIN_ID, &key(), &dir.path().join("new.sqlite"));
        let only = Endpoints::at(&urls(&doors[..1]), watch()).unwrap();
        let error = open_endpoints(only, key(), settings, Arc::default()).await.unwrap_err();
        assert!(matches!(&error, OpenError::WrongChain { found: 1, .. }), "{error}");
        assert!(error.to_string().contains(&doors[0].name()), "{error}");
    });
}

/// A chain that stands still is said to once, left for one that moves, and said to have recovered once.
#[test]
fn an_old_head_is_a_sign_of_trouble() {
    let (log, _guard) = Log::here();
    thread().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let chain = with_period(&dir.path().join("chain.redb"), &key(), Some(100));
        let doors = [Door::open(chain.rpc_client()).await, Door::open(chain.rpc_client()).await];
        let watch = Watch { head_age_max: Some(Duration::from_secs(2)), ..watch() };
        let node = Endpoints::at(&urls(&doors), watch).unwrap();
        let config = config(CHAIN_ID, &key(), &dir.path().join("journal.sqlite"));
        let ledger = open_endpoints(node, key(), config, Arc::default()).await.unwrap();
        let node = ledger.node();

        // The preferred node stands still while the chain goes on.
        doors[0].set(Mood::Lags(chain.head().number));
        eventually("the endpoint that moves", async || node.endpoint() == Some(doors[1].name())).await;
        assert!(chain.head().number - node.head().await.unwrap().number < 20);
        doors[0].set(Mood::Well);
        eventually("the preferred endpoint", async || node.endpoint() == Some(doors[0].name())).await;
        eventually("the recovery to be noticed", async || {
            log.count("makes blocks again") == log.count("newest block is old")
        })
        .await;

        // Both stand still: there is nowhere to go, it is said once, and what can be asked is answered.
        let (before, height) = (log.count("newest block is old"), chain.head().number);
        doors.iter().for_each(|door| door.set(Mood::Lags(height)));
        eventually("the age to be noticed", async || log.count("newest block is old") == before + 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(node.head().await.unwrap().number, height);
        assert_eq!(log.count("newest block is old"), before + 1, "{}", log.text());
        doors.iter().for_each(|door| door.set(Mood::Well));
        eventually("the recovery to be noticed", async || log.count("makes blocks again") == before + 1).await;
    });
}

#[test]
fn errors_name_the_endpoint_and_keep_its_credentials() {
    thread().block_on(async {
        // Nobody listens on a port that was given back.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url: Url = format!("http://scout:s3cret@{free}/v3/0123456789abcdef?key=qwertz").parse().unwrap();
        let node = Endpoints::at(&[url], watch()).unwrap();
        let words = format!("{} {node:?}", node.head().await.unwrap_err());
        assert!(words.contains(&format!("http://{free}")), "{words}");
        for secret in ["scout", "s3cret", "0123456789abcdef", "qwertz"] {
            assert!(!words.contains(secret), "{words}");
        }
    });
}

/// Two real nodes of different chains with one chain id, and the preferred one ends: its ledger is not continued elsewhere.
#[test]
fn anvil_ends_and_another_anvil_is_no_replacement() {
    let (Some(first), Some(second)) = (Anvil::start(&[]), Anvil::start(&["--timestamp", "1700000000"])) else {
        return skipped("anvil");
    };
    thread().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let key: PrivateKeySigner = ANVIL_KEY.parse().unwrap();
        let urls: Vec<Url> = [&first, &second].map(|anvil| anvil.url.parse().unwrap()).to_vec();
        let settings = config(ANVIL_CHAIN_ID, &key, &dir.path().join("journal.sqlite"));
        let watch = Watch { timeout: Duration::from_secs(10), ..watch() };
        let ledger =
            open_endpoints(Endpoints::at(&urls, watch).unwrap(), key.clone(), settings, Arc::default()).await.unwrap();
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        drop(first);
        let answer = ledger.node().balance(key.address()).await;
        assert!(matches!(answer, Err(NodeError::Unreachable(_))), "{answer:?}");
    });
}

/// Hands bytes on between whoever connects and a server.
struct Relay {
    port: u16,
    to: Arc<Mutex<String>>,
    fault: tokio::sync::watch::Sender<Fault>,
    connections: Arc<AtomicUsize>,
}

/// What becomes of the connections that stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// They end.
    Broken,
    /// They stay, and nothing goes over them any more.
    Stalled,
}

impl Relay {
    async fn before(to: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, faults) = tokio::sync::watch::channel(Fault::None);
        let relay = Self { port, to: Arc::new(Mutex::new(to.to_owned())), fault, connections: Arc::default() };
        let (to, connections) = (relay.to.clone(), relay.connections.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (to, mut faults) = (to.lock().unwrap().clone(), faults.clone());
                faults.mark_unchanged();
                tokio::spawn(async move {
                    let far = tokio::net::TcpStream::connect(to).await.unwrap();
                    let (mut near, mut far) = (near, far);
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = faults.changed() => {}
                    }
                    let stalled = *faults.borrow() == Fault::Stalled;
                    if stalled {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        relay
    }

    fn url(&self) -> Url {
        Url::parse(&format!("ws://127.0.0.1:{}", self.port)).unwrap()
    }

    /// From now on who connects is led elsewhere.
    fn lead_to(&self, to: &str) {
        *self.to.lock().unwrap() = to.to_owned();
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn address(anvil: &Anvil) -> String {
    anvil.url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// A ledger client that hardly ever polls, over one endpoint.
async fn unpolled(url: Url, journal: &Path, timeout: Duration) -> (Endpoints, Ledger) {
    let key: PrivateKeySigner = ANVIL_KEY.parse().unwrap();
    let mut settings = config(ANVIL_CHAIN_ID, &key, journal);
    // An hour: whoever polls comes too late.
    settings.sender = SenderConfig { poll_ms: 3_600_000, ..SenderConfig::default() };
    let node = Endpoints::at(&[url], Watch { timeout, ..watch() }).unwrap();
    let ledger = open_endpoints(node.clone(), key, settings, Arc::default());
    let ledger = tokio::time::timeout(Duration::from_secs(180), ledger).await;
    (node, ledger.expect("the contracts are deployed without a poll").unwrap())
}

async fn define(ledger: &Ledger, name: &str, index: u32) {
    let said = async {
        ledger.ensure_source_defined("https://site.example/pacs").await.unwrap();
        ledger.define_study(support::id(name), &StudyOwner::Custodial { index }, B256::ZERO).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(180), said).await.expect("nobody has to ask");
}

#[test]
fn a_node_that_tells_of_its_blocks_is_not_polled_and_a_line_that_broke_or_stalls_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a socket");
    let Some(anvil) = Anvil::start(&["--ipc", socket.to_str().unwrap()]) else { return skipped("anvil") };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let ipc = Url::parse(&format!("ipc://{}", socket.to_str().unwrap().replace(' ', "%20"))).unwrap();
        let (node, ledger) = unpolled(ipc, &dir.path().join("ipc"), Duration::from_secs(10)).await;
        assert!(node.endpoint().unwrap().starts_with("ipc:///"));
        define(&ledger, "over ipc", 0).await;
        drop((node, ledger));

        let relay = Relay::before(&address(&anvil)).await;
        let (node, ledger) = unpolled(relay.url(), &dir.path().join("ws"), Duration::from_secs(2)).await;
        define(&ledger, "over ws", 1).await;
        for (fault, index) in [(Fault::Broken, 2), (Fault::Stalled, 3)] {
            let before = relay.connections();
            relay.fault.send_replace(fault);
            eventually("a new line", async || node.head().await.is_ok() && relay.connections() > before).await;
            define(&ledger, &format!("{fault:?}"), index).await;
        }
        assert_eq!(relay.connections(), 3, "as many lines as were needed");

        let nobody = Endpoints::at(&["ipc:///nowhere/geth.ipc".parse().unwrap()], watch()).unwrap();
        let error = nobody.head().await.unwrap_err().to_string();
        assert!(error.contains("ipc:///nowhere/geth.ipc") && error.contains("No such file"), "{error}");
    });
}

#[test]
fn a_line_that_leads_to_another_chain_after_it_broke_is_not_used() {
    let (Some(first), Some(second)) = (Anvil::start(&[]), Anvil::start(&["--timestamp", "1700000000"])) else {
        return skipped("anvil");
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::before(&address(&first)).await;
        let (node, ledger) = unpolled(relay.url(), &dir.path().join("journal"), Duration::from_secs(5)).await;
        define(&ledger, "here", 1).await;
        relay.lead_to(&address(&second));
        relay.fault.send_replace(Fault::Broken);
        eventually("the line to break", async || node.head().await.is_err()).await;
        for _ in 0..3 {
            let error = node.nonce(PrivateKeySigner::random().address()).await.unwrap_err().to_string();
            assert!(error.contains("another genesis block"), "{error}");
        }
        relay.lead_to(&address(&first));
        relay.fault.send_replace(Fault::None);
        relay.fault.send_replace(Fault::Broken);
        eventually("the line to lead back", async || node.head().await.is_ok()).await;
    });
}

/// What the follower names is kept with its header as far as the node has that, and crossed out if it stands after all.
#[tokio::test]
async fn blocks_that_left_are_written_down_and_those_that_came_back_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = embedded(&dir.path().join("chain"), &key());
    let node = RpcNode::embedded(&ledger);
    let genesis = node.block_at(0).await.unwrap().unwrap().hash;
    let path = dir.path().join(FORKS_FILE);
    let log = ForkLog::open(&path, genesis).unwrap();
    let (tell, seen) = tokio::sync::mpsc::unbounded_channel();
    tell.send(Seen::Begin(3)).unwrap();
    // It stands; the node has never had it; the node has it, and it does not stand there.
    let gone = B256::repeat_byte(9);
    for (number, hash, depth) in [(0, genesis, 1), (0, gone, 4), (9, genesis, 2)] {
        tell.send(Seen::Left { number, hash, depth }).unwrap();
    }
    drop(tell);
    keep(node, log, seen).await;
    let kept = Forks::read(&path).unwrap();
    let rows: Vec<_> =
        kept.left.iter().map(|left| (left.number, left.hash, left.depth, left.header.is_some())).collect();
    assert_eq!((kept.since, rows), (Some(3), vec![(0, gone, 4, false), (9, genesis, 2, false)]));
}
