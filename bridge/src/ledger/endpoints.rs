//! Several endpoints of one ledger as one [`Node`]: every request goes to the most preferred endpoint that is fit, and another
//! takes over when it is not.
//!
//! An endpoint is fit when it answers in time, has our chain id, our genesis block and our contracts' code, and has every block that
//! any endpoint has shown us. That last rule is what keeps a change of endpoint from looking like a reorganisation: a node that
//! lags is *not yet* there, so its lower head is never handed up and its older state never asked. Below that, mixing is harmless:
//! whoever follows the chain asks for blocks and receipts by hash, and a node that does not have them says so.
//!
//! It must not know transactions, keys or contracts' meaning: only the addresses and code hashes that it was told to expect.

use super::line::{Line, NoLine, Wakes};
use super::node::{Ask, At, Block, Event, EventFilter, Logged, Node, NodeError, Offer, Receipt, Span, Transaction};
use super::rpc::RpcNode;
use alloy::consensus::Header;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::transports::http::reqwest::Url;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::sync::Notify;

/// So many looks in a row must find a more preferred endpoint fit before it is used again.
const FIT_LOOKS: u32 = 2;

/// What the only endpoint is called when it has no address; its errors need no name.
const ONLY: &str = "the ledger";

/// At the start nodes are asked at slightly different moments: the preferred one may be so far behind the newest.
const BEGIN_BEHIND_BLOCKS: u64 = 3;

/// How endpoints are watched.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Longest wait for an answer; then another endpoint is asked.
    pub timeout: Duration,
    /// A newest block older than this is a sign of trouble. `None` for chains that make no block without a transaction.
    pub head_age_max: Option<Duration>,
    /// Time between looks at endpoints that are not in use, and before one that failed is asked again.
    pub look_every: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(15), head_age_max: None, look_every: Duration::from_secs(1) }
    }
}

/// Why no endpoint can be begun with.
#[derive(Debug, Error)]
pub enum BeginError {
    /// None answers; the text says what each said.
    #[error("{0}")]
    Unavailable(String),
    /// Those that answer are of another chain.
    #[error("{endpoint} has chain id {found}")]
    WrongChain {
        /// The first of them.
        endpoint: String,
        /// Its chain id.
        found: u64,
    },
}

/// What tells our ledger from every other.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Hash of block 0.
    pub genesis: B256,
    /// Addresses and keccak-256 of their runtime code.
    pub code: Vec<(Address, B256)>,
}

/// The endpoints of one ledger. Clones are the same endpoints.
#[derive(Clone)]
pub struct Endpoints(Arc<Inner>);

struct Inner {
    all: Vec<Endpoint>,
    wakes: Arc<Wakes>,
    watch: Watch,
    current: AtomicUsize,
    /// Height of the newest block that anybody was shown.
    seen: AtomicU64,
    chain_id: OnceLock<u64>,
    identity: OnceLock<Identity>,
    switching: tokio::sync::Mutex<()>,
    stale: AtomicBool,
}

struct Endpoint {
    name: String,
    /// What its errors may quote and nobody shall read.
    secret: Vec<String>,
    node: RpcNode,
    /// Set when it was found unfit: it is looked at before it is used again, and not before this.
    unfit_until: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.all.iter().map(|e| &e.name)).finish()
    }
}

impl Endpoints {
    /// One endpoint behind any JSON-RPC client, such as the ledger inside this process.
    #[must_use]
    pub fn single(node: impl Into<RpcNode>) -> Self {
        let watch = Watch { timeout: RpcNode::ANSWER_MAX, ..Watch::default() };
        let node = node.into().with_timeout(watch.timeout);
        let only = Endpoint { name: ONLY.into(), secret: Vec::new(), node, unfit_until: Mutex::default() };
        Self::of(vec![only], watch, Arc::default())
    }

    /// Endpoints at URLs, the preferred one first: `http://`, `ws://`, or `ipc:///path/of/the/socket`. Must be called inside a tokio runtime. At
    /// least one is expected; without any, every request fails.
    ///
    /// # Errors
    /// [`NoLine`] for a URL of another kind.
    pub fn at(urls: &[Url], watch: Watch) -> Result<Self, NoLine> {
        let wakes = Arc::default();
        let all = urls.iter().map(|url| Endpoint::at(url, watch.timeout, &wakes)).collect::<Result<_, _>>()?;
        let endpoints = Self::of(all, watch, wakes);
        if endpoints.0.all.len() > 1 {
            tokio::spawn(look_around(Arc::downgrade(&endpoints.0)));
        }
        Ok(endpoints)
    }

    /// From now on `wake` is notified of every new block that an endpoint tells of by itself, as those over WebSocket and IPC do.
    pub fn wakes(&self, wake: &Arc<Notify>) {
        self.0.wakes.add(wake);
    }

    fn of(all: Vec<Endpoint>, watch: Watch, wakes: Arc<Wakes>) -> Self {
        Self(Arc::new(Inner {
            all,
            wakes,
            watch,
            current: AtomicUsize::new(0),
            seen: AtomicU64::new(0),
            chain_id: OnceLock::new(),
            identity: OnceLock::new(),
            switching: tokio::sync::Mutex::new(()),
            stale: AtomicBool::new(false),
        }))
    }

    /// Begins with the most preferred endpoint of this chain that has about as many blocks as the others. What else is wrong is
    /// found out by the caller, who then calls [`Self::trust`].
    ///
    /// # Errors
    /// [`BeginError`] when there is none.
    pub async fn begin(&self, chain_id: u64) -> Result<(), BeginError> {
        let _ = self.0.chain_id.set(chain_id);
        let heads = self.0.all.iter().map(|endpoint| endpoint.introduce());
        let heads = futures::future::join_all(heads).await;
        let (mut words, mut stranger, mut known) = (Vec::new(), None, Vec::new());
        for (i, (endpoint, head)) in self.0.all.iter().zip(heads).enumerate() {
            match head {
                Ok((found, height)) if found == chain_id => known.push((i, height)),
                Ok((found, _)) => {
                    endpoint.unfit(&self.0.watch, &format!("it has chain id {found}, configured is {chain_id}"));
                    stranger.get_or_insert((endpoint.name.clone(), found));
                }
                Err(error) => {
                    let error = endpoint.named(error).to_string();
                    endpoint.unfit(&self.0.watch, &error);
                    words.push(error);
                }
            }
        }
        let newest = known.iter().map(|(_, height)| *height).max().unwrap_or_default();
        if let Some((i, height)) = known.into_iter().find(|(_, height)| height + BEGIN_BEHIND_BLOCKS >= newest) {
            self.0.current.store(i, Ordering::SeqCst);
            self.0.seen.store(height, Ordering::SeqCst);
            return Ok(());
        }
        match stranger {
            Some((endpoint, found)) if words.is_empty() => Err(BeginError::WrongChain { endpoint, found }),
            _ => Err(BeginError::Unavailable(words.join("; "))),
        }
    }

    /// From now on an endpoint must be this ledger before it is used; the one in use is looked at now.
    ///
    /// # Errors
    /// [`NodeError`] when it is another, or does not answer.
    pub async fn trust(&self, identity: Identity) -> Result<(), NodeError> {
        let _ = self.0.identity.set(identity);
        let current = self.0.current();
        self.0.look_at(current).await.map_err(|why| NodeError::Unreachable(why.to_string()))
    }

    async fn ask<T, R>(&self, request: impl Fn(RpcNode) -> R + Send + Sync) -> Result<T, NodeError>
    where
        R: Future<Output = Result<T, NodeError>> + Send,
    {
        self.0.ask(request).await.map(|(answer, _)| answer)
    }
}

/// Why an endpoint is not used.
#[derive(Debug, Error)]
#[error("{0}")]
struct Unfit(String);

impl Endpoint {
    fn at(url: &Url, timeout: Duration, wakes: &Arc<Wakes>) -> Result<Self, NoLine> {
        let node = RpcNode::over(Line::to(url, wakes)?).with_timeout(timeout);
        Ok(Self { name: name_of(url), secret: secrets_of(url), node, unfit_until: Mutex::default() })
    }

    /// Chain id and height.
    async fn introduce(&self) -> Result<(u64, u64), NodeError> {
        Ok((self.node.chain_id().await?, self.node.head().await?.number))
    }

    /// Says which endpoint an error is of, and nothing that its URL keeps secret.
    fn named(&self, error: NodeError) -> NodeError {
        let words = |text: String| {
            let clean = self.secret.iter().fold(text, |text, secret| text.replace(secret, &self.name));
            if self.name == ONLY { clean } else { format!("{}: {clean}", self.name) }
        };
        match error {
            NodeError::Unreachable(text) => NodeError::Unreachable(words(text)),
            NodeError::Unavailable(text) => NodeError::Unavailable(words(text)),
            NodeError::Refused(text) => NodeError::Refused(words(text)),
            reverted @ NodeError::Reverted { .. } => reverted,
        }
    }

    fn until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.unfit_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is unfit; says so when it was fit until now.
    fn unfit(&self, watch: &Watch, why: &str) {
        let before = self.until().replace(Instant::now() + watch.look_every);
        if before.is_none() {
            tracing::warn!(endpoint = %self.name, %why, "a ledger endpoint is not fit for use");
        }
    }

    fn fit(&self) {
        if self.until().take().is_some() {
            tracing::info!(endpoint = %self.name, "a ledger endpoint is fit again");
        }
    }

    fn is_suspect(&self) -> bool {
        self.until().is_some()
    }

    fn may_be_looked_at(&self) -> bool {
        self.until().is_none_or(|until| until <= Instant::now())
    }
}

/// Scheme, host and port: paths and queries hold access keys as often as the part before the host does. A socket is its path.
pub(super) fn name_of(url: &Url) -> String {
    if url.scheme() == "ipc" {
        return format!("ipc://{}", url.path());
    }
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{host}{port}", url.scheme())
}

fn secrets_of(url: &Url) -> Vec<String> {
    if url.scheme() == "ipc" {
        return Vec::new();
    }
    let mut bare = url.clone();
    // A URL with a host takes both.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    let mut secrets = vec![url.to_string(), bare.to_string()];
    secrets.extend(url.password().filter(|p| !p.is_empty()).map(str::to_owned));
    secrets.extend(Some(url.path().trim_matches('/').to_owned()).filter(|p| p.len() > 3));
    secrets.extend(url.query().map(str::to_owned));
    secrets
}

impl Inner {
    fn current(&self) -> usize {
        self.current.load(Ordering::SeqCst)
    }

    /// The answer and the endpoint that gave it. Each endpoint is tried once at most.
    async fn ask<T, R>(&self, request: impl Fn(RpcNode) -> R + Send + Sync) -> Result<(T, usize), NodeError>
    where
        R: Future<Output = Result<T, NodeError>> + Send,
    {
        let mut last = NodeError::Unreachable("no endpoint is configured".into());
        for _ in 0..self.all.len() {
            let i = self.current();
            let Some(endpoint) = self.all.get(i) else { break };
            let answer = match self.look_if_suspect(i).await {
                Ok(()) => request(endpoint.node.clone()).await.map_err(|error| endpoint.named(error)),
                Err(why) => Err(NodeError::Unreachable(why.to_string())),
            };
            match answer {
                Err(error @ NodeError::Unreachable(_)) => {
                    endpoint.unfit(&self.watch, &error.to_string());
                    last = error;
                    if !self.fail_over(i).await {
                        break;
                    }
                }
                Ok(answer) => return Ok((answer, i)),
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    /// After a failure the endpoint may be another node than before.
    async fn look_if_suspect(&self, i: usize) -> Result<(), Unfit> {
        if self.all[i].is_suspect() {
            self.look_at(i).await?;
            self.all[i].fit();
        }
        Ok(())
    }

    /// Moves away from an endpoint, to the most preferred that is fit. `false` when there is none.
    async fn fail_over(&self, from: usize) -> bool {
        let _one_at_a_time = self.switching.lock().await;
        if self.current() != from {
            return true;
        }
        for (i, endpoint) in self.all.iter().enumerate() {
            if i == from || !endpoint.may_be_looked_at() {
                continue;
            }
            match self.look_at(i).await {
                Ok(()) => {
                    self.switch_to(i);
                    return true;
                }
                Err(why) => endpoint.unfit(&self.watch, &why.to_string()),
            }
        }
        false
    }

    fn switch_to(&self, i: usize) {
        self.all[i].fit();
        let before = self.current.swap(i, Ordering::SeqCst);
        let (from, to) = (&self.all[before].name, &self.all[i].name);
        tracing::warn!(%from, %to, "the ledger is asked at another endpoint");
    }

    /// Whether an endpoint is fit: ours, up to date, and alive.
    async fn look_at(&self, i: usize) -> Result<(), Unfit> {
        let endpoint = &self.all[i];
        let seen = self.seen.load(Ordering::SeqCst);
        let unfit = |what: String| Unfit(format!("{}: {what}", endpoint.name));
        let failed = |error| Unfit(endpoint.named(error).to_string());
        if let Some(wanted) = self.chain_id.get() {
            let found = endpoint.node.chain_id().await.map_err(failed)?;
            if found != *wanted {
                return Err(unfit(format!("it has chain id {found}, configured is {wanted}")));
            }
        }
        if let Some(identity) = self.identity.get() {
            let genesis = endpoint.node.block_at(0).await.map_err(failed)?.map(|block| block.hash);
            if genesis != Some(identity.genesis) {
                return Err(unfit("it follows a chain with another genesis block".into()));
            }
            for (address, hash) in &identity.code {
                if keccak256(endpoint.node.code(*address).await.map_err(failed)?) != *hash {
                    return Err(unfit(format!("the code at {address} is not ours")));
                }
            }
        }
        let head = endpoint.node.head().await.map_err(failed)?;
        if self.all.len() > 1 && head.number < seen {
            return Err(unfit(format!("it is at block {}, block {seen} was seen", head.number)));
        }
        // With one endpoint, or when it is the one in use, an old head is reported and lived with.
        let elsewhere = self.all.len() > 1 && i != self.current();
        match self.age_over_limit(&head).filter(|_| elsewhere) {
            Some(age) => Err(unfit(format!("its newest block is {} s old", age.as_secs()))),
            None => Ok(()),
        }
    }

    fn age_over_limit(&self, head: &Block) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = now.saturating_sub(Duration::from_secs(head.timestamp));
        self.watch.head_age_max.and_then(|max| (age > max).then_some(age))
    }

    /// The newest block, never one below a block that was shown before while there are endpoints to choose from.
    async fn head(&self) -> Result<Block, NodeError> {
        for _ in 0..self.all.len() {
            let seen = self.seen.load(Ordering::SeqCst);
            let (head, i) = self.ask(|node| async move { node.head().await }).await?;
            if self.all.len() == 1 || head.number >= seen {
                self.seen.fetch_max(head.number, Ordering::SeqCst);
                self.judge_age(&head, i);
                return Ok(head);
            }
            let why = format!("it is at block {}, block {seen} was seen", head.number);
            self.all[i].unfit(&self.watch, &why);
            if !self.fail_over(i).await {
                return Err(NodeError::Unreachable(format!("{}: {why}", self.all[i].name)));
            }
        }
        Err(NodeError::Unreachable("no endpoint has the newest block that was seen".into()))
    }

    fn judge_age(&self, head: &Block, i: usize) {
        let over = self.age_over_limit(head);
        let was = self.stale.swap(over.is_some(), Ordering::SeqCst);
        let endpoint = &self.all[i].name;
        match over {
            Some(age) if !was => {
                tracing::warn!(%endpoint, height = head.number, age_s = age.as_secs(), "the ledger's newest block is old: does the chain stand still?");
            }
            None if was => tracing::info!(%endpoint, height = head.number, "the ledger makes blocks again"),
            _ => {}
        }
    }

    /// One look at the endpoints that are not in use: leaves an endpoint that is unfit or stands still, returns to a better one.
    async fn look_around(&self, fit_looks: &mut Vec<u32>) {
        let current = self.current();
        if self.stale.load(Ordering::SeqCst) || self.all[current].is_suspect() {
            self.fail_over(current).await;
        }
        fit_looks.resize(self.all.len(), 0);
        for (i, looks) in fit_looks.iter_mut().enumerate().take(self.current()) {
            match self.look_at(i).await {
                Ok(()) => *looks += 1,
                Err(why) => {
                    *looks = 0;
                    self.all[i].unfit(&self.watch, &why.to_string());
                }
            }
            if *looks >= FIT_LOOKS {
                *looks = 0;
                let _one_at_a_time = self.switching.lock().await;
                if self.current() > i {
                    self.switch_to(i);
                }
                return;
            }
        }
    }
}

/// Looks at the endpoints until nobody uses them any more.
async fn look_around(endpoints: Weak<Inner>) {
    let mut fit_looks = Vec::new();
    loop {
        let Some(every) = endpoints.upgrade().map(|inner| inner.watch.look_every) else { return };
        tokio::time::sleep(every).await;
        let Some(inner) = endpoints.upgrade() else { return };
        inner.look_around(&mut fit_looks).await;
    }
}

impl Node for Endpoints {
    fn endpoint(&self) -> Option<String> {
        let current = self.0.all.get(self.0.current());
        current.map(|endpoint| endpoint.name.clone()).filter(|name| name != ONLY)
    }

    async fn chain_id(&self) -> Result<u64, NodeError> {
        self.ask(|node| async move { node.chain_id().await }).await
    }

    async fn head(&self) -> Result<Block, NodeError> {
        self.0.head().await
    }

    async fn block(&self, hash: B256) -> Result<Option<Block>, NodeError> {
        self.ask(|node| async move { node.block(hash).await }).await
    }

    async fn header(&self, hash: B256) -> Result<Option<Header>, NodeError> {
        self.ask(|node| async move { node.header(hash).await }).await
    }

    async fn block_at(&self, number: u64) -> Result<Option<Block>, NodeError> {
        self.ask(|node| async move { node.block_at(number).await }).await
    }

    async fn receipts(&self, block: B256) -> Result<Option<Vec<Receipt>>, NodeError> {
        self.ask(|node| async move { node.receipts(block).await }).await
    }

    async fn encoded_receipts(&self, block: B256) -> Result<Option<Vec<Bytes>>, NodeError> {
        self.ask(|node| async move { node.encoded_receipts(block).await }).await
    }

    async fn block_signature(&self, number: u64) -> Result<Option<Bytes>, NodeError> {
        self.ask(|node| async move { node.block_signature(number).await }).await
    }

    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, NodeError> {
        self.ask(|node| async move { node.receipt(transaction).await }).await
    }

    async fn nonce(&self, account: Address) -> Result<u64, NodeError> {
        self.ask(|node| async move { node.nonce(account).await }).await
    }

    async fn balance(&self, account: Address) -> Result<U256, NodeError> {
        self.ask(|node| async move { node.balance(account).await }).await
    }

    async fn code(&self, account: Address) -> Result<Bytes, NodeError> {
        self.ask(|node| async move { node.code(account).await }).await
    }

    async fn call(&self, ask: Ask, at: At) -> Result<Bytes, NodeError> {
        self.ask(|node| {
            let ask = ask.clone();
            async move { node.call(ask, at).await }
        })
        .await
    }

    async fn version(&self) -> Result<String, NodeError> {
        self.ask(|node| async move { node.version().await }).await
    }

    async fn estimate(&self, ask: Ask) -> Result<u64, NodeError> {
        self.ask(|node| {
            let ask = ask.clone();
            async move { node.estimate(ask).await }
        })
        .await
    }

    async fn offer(&self, raw: Bytes) -> Result<Offer, NodeError> {
        // An endpoint that took it and failed before it said so makes no difference: another gets the same bytes.
        self.ask(|node| {
            let raw = raw.clone();
            async move { node.offer(raw).await }
        })
        .await
    }

    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, NodeError> {
        self.ask(|node| {
            let filter = filter.clone();
            async move { node.events(filter).await }
        })
        .await
    }

    async fn said(&self, contracts: Vec<Address>, span: Span) -> Result<Vec<Logged>, NodeError> {
        self.ask(|node| {
            let contracts = contracts.clone();
            async move { node.said(contracts, span).await }
        })
        .await
    }

    async fn transaction_at(&self, block: u64, index: u64) -> Result<Option<Transaction>, NodeError> {
        self.ask(|node| async move { node.transaction_at(block, index).await }).await
    }
}
