//! How a node is talked to: over HTTP, over WebSocket, or through the socket that it has on this machine (IPC). The latter two stay open, and
//! the node says by itself when it has a new block: whoever waits for one is woken. A line that broke fails one question, so that whoever asks looks
//! again at whom he speaks to, and is made anew by the next.
//!
//! It must not know what is asked, nor judge answers.

use alloy::primitives::B256;
use alloy::pubsub::{ConnectionHandle, PubSubConnect, RawSubscription};
use alloy::rpc::client::{ClientBuilder, RpcClient};
use alloy::rpc::json_rpc::RpcError;
use alloy::transports::http::reqwest::Url;
use alloy::transports::ipc::IpcConnect;
use alloy::transports::ws::{WebSocketConfig, WsConnect};
use alloy::transports::{TransportErrorKind, TransportResult};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

/// An address at which no node can be asked. None of those that can is encrypted: a node is on this machine, or behind something here that leads to it.
#[derive(Debug, Error)]
#[error("a node is asked at an http:// or ws:// URL or at ipc:///path/of/its/socket, not at {0}")]
pub struct NoLine(String);

/// Who wants to know that there is a new block.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<Vec<Weak<Notify>>>);

impl Wakes {
    pub(super) fn add(&self, wake: &Arc<Notify>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(wake));
    }

    fn wake_all(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|wake| wake.upgrade().inspect(|wake| wake.notify_one()).is_some());
    }
}

/// A node's address that keeps a line open.
#[derive(Debug, Clone)]
enum Kept {
    WebSocket(WsConnect),
    Ipc(PathBuf),
}

impl PubSubConnect for Kept {
    fn is_local(&self) -> bool {
        true
    }

    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        let handle = match self {
            Self::WebSocket(to) => to.connect().await?,
            Self::Ipc(path) => IpcConnect::new(path.clone()).connect().await?,
        };
        Ok(handle.with_max_retries(1))
    }

    /// Never by itself, nor with what was asked before: who answers there now may be another, and whoever asks decides when to try again and
    /// whether to ask somebody else.
    async fn try_reconnect(&self) -> TransportResult<ConnectionHandle> {
        Err(TransportErrorKind::backend_gone())
    }
}

/// The way to a node. Clones are the same way.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<Way>);

#[derive(Debug)]
enum Way {
    /// Whatever the caller brought.
    Fixed(RpcClient),
    Kept {
        to: Box<Kept>,
        open: tokio::sync::Mutex<Option<Open>>,
        wakes: Arc<Wakes>,
    },
}

/// A line that stands, until `ended` says that it does not.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// What questions go through.
    pub(super) client: RpcClient,
    ended: Arc<AtomicBool>,
}

impl From<RpcClient> for Line {
    fn from(client: RpcClient) -> Self {
        Self(Arc::new(Way::Fixed(client)))
    }
}

impl Line {
    /// The way to an address; nobody is asked yet.
    pub(super) fn to(url: &Url, wakes: &Arc<Wakes>) -> Result<Self, NoLine> {
        let to = match url.scheme() {
            "http" => return Ok(RpcClient::new_http(url.clone()).into()),
            "ws" => Kept::WebSocket(WsConnect::new(url.as_str()).with_config(message_limits())),
            "ipc" => Kept::Ipc(socket_of(url).ok_or_else(|| NoLine(url.to_string()))?),
            other => return Err(NoLine(format!("{other}://"))),
        };
        Ok(Self(Arc::new(Way::Kept { to: Box::new(to), open: tokio::sync::Mutex::default(), wakes: wakes.clone() })))
    }

    /// What a question goes through: the line that stands, or a new one.
    ///
    /// # Errors
    /// When a line broke since the last question, or none can be made.
    pub(super) async fn open(&self) -> Result<Open, RpcError<TransportErrorKind>> {
        match &*self.0 {
            Way::Fixed(client) => Ok(Open { client: client.clone(), ended: Arc::default() }),
            Way::Kept { to, open, wakes } => {
                let mut open = open.lock().await;
                match open.take_if(|line| line.ended.load(Ordering::SeqCst)) {
                    Some(_) => return Err(TransportErrorKind::backend_gone()),
                    None => {
                        if let Some(line) = open.as_ref() {
                            return Ok(line.clone());
                        }
                    }
                }
                // Boxed, because every question's future holds it.
                let line = Box::pin(connect(Kept::clone(to), wakes)).await?;
                Ok(open.insert(line).clone())
            }
        }
    }

    /// This line is of no use any more: it broke, or nothing comes back. What others still wait for on it may come.
    pub(super) async fn give_up(&self, line: &Open) {
        if let Way::Kept { open, .. } = &*self.0 {
            open.lock().await.take_if(|standing| Arc::ptr_eq(&standing.ended, &line.ended));
        }
    }
}

/// As large as an answer may be, in bytes; geth sends each as one frame.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// How long a node may take to say whether it tells of new blocks.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(30);

fn message_limits() -> WebSocketConfig {
    WebSocketConfig::default().max_frame_size(Some(ANSWER_BYTES_MAX)).max_message_size(Some(ANSWER_BYTES_MAX))
}

/// The path of an `ipc:` URL.
fn socket_of(url: &Url) -> Option<PathBuf> {
    if url.has_host() {
        return None;
    }
    // Only this scheme's path is decoded by the library.
    let file: Url = format!("file://{}", url.path()).parse().ok()?;
    file.to_file_path().ok().filter(|path| path.file_name().is_some())
}

async fn connect(to: Kept, wakes: &Arc<Wakes>) -> Result<Open, RpcError<TransportErrorKind>> {
    let client = ClientBuilder::default().pubsub(to).await?;
    let ended = Arc::new(AtomicBool::new(false));
    tokio::spawn(listen(client.clone(), Arc::downgrade(wakes), ended.clone()));
    Ok(Open { client, ended })
}

/// Wakes whoever waits at every new block, until the line breaks.
async fn listen(client: RpcClient, wakes: Weak<Wakes>, ended: Arc<AtomicBool>) {
    let subscribed = tokio::time::timeout(SUBSCRIBE_MAX, subscribe(client)).await;
    let mut blocks = match subscribed {
        Ok(Ok(blocks)) => blocks,
        Ok(Err(RpcError::Transport(error))) if error.is_backend_gone() => return ended.store(true, Ordering::SeqCst),
        Ok(Err(error)) => {
            return tracing::info!(%error, "the ledger's node does not tell of new blocks; it is asked for them");
        }
        Err(_) => {
            return tracing::info!(
                "the ledger's node does not say whether it tells of new blocks; it is asked for them"
            );
        }
    };
    // Nobody's client is held here any more: the line ends with the last who asks. What came before it was listened to is not told of again.
    let wake_all = || wakes.upgrade().map(|wakes| wakes.wake_all()).is_some();
    while wake_all() && matches!(blocks.recv().await, Ok(_) | Err(RecvError::Lagged(_))) {}
    ended.store(true, Ordering::SeqCst);
}

async fn subscribe(client: RpcClient) -> Result<RawSubscription, RpcError<TransportErrorKind>> {
    let name: B256 = client.request("eth_subscribe", ("newHeads",)).await?;
    let front = client.pubsub_frontend().ok_or_else(TransportErrorKind::backend_gone)?;
    front.get_subscription(name).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read_and_those_that_lead_nowhere_are_refused() {
        let line = |url: &str| Line::to(&url.parse().unwrap(), &Arc::default()).map_err(|error| error.to_string());
        for good in ["http://127.0.0.1:8545/key", "ws://node:8546", "ipc:///var/lib/geth/geth.ipc"] {
            line(good).unwrap();
        }
        for bad in ["https://node", "wss://node", "ipc://host/geth.ipc", "ipc:///", "file:///geth.ipc"] {
            assert!(
                line(bad).unwrap_err().starts_with("a node is asked at an http:// or ws:// URL or at ipc:///"),
                "{bad}"
            );
        }
        let path = socket_of(&"ipc:///srv/two%20words/geth.ipc".parse().unwrap());
        assert_eq!(path, Some(PathBuf::from("/srv/two words/geth.ipc")));
    }
}
