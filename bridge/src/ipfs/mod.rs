//! The site's IPFS node (kubo): sealed objects are put there, pinned, fetched and let go.
//!
//! The node is the site's own, on this machine, and part of a private swarm; but nothing that it says is believed. What is put there
//! must come back under the name that was computed here, and what is fetched is named again as it comes
//! ([`CidBuilder`](crate::payload::cid::CidBuilder)). Must not know what the bytes are, nor whose.

mod keeper;
mod rpc;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config;
use crate::payload::cid::{Cid, CidBuilder, LEAF_BYTES, LINKS_MAX};
pub use keeper::{Keeper, Wants};
use rpc::Api;

/// What a node may take to store a file: so long, and as long as it takes at the lowest rate, in bytes a second.
const SLOWEST: Duration = Duration::from_secs(60);
const SLOWEST_RATE: u64 = 1 << 20;

/// Longest line about one pin, in bytes.
const PIN_BYTES_MAX: usize = 64 << 10;

/// Why the node did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpfsError {
    /// The operator: it cannot be reached. To be tried again.
    #[error("the IPFS node at ipfs.api_url does not answer: {0}")]
    Away(String),
    /// The operator: it was reached, and broke off. To be tried again.
    #[error("the IPFS node broke off: {0}")]
    Broken(String),
    /// Nobody, or the operator: it was asked and says nothing for so many seconds. To be tried again.
    #[error("the IPFS node says nothing for {0} s: perhaps no node of its swarm has what was asked for now")]
    Silent(u64),
    /// The operator: the token is wrong, or there is none.
    #[error("the IPFS node does not let us in: is ipfs.token_file one of its API.Authorizations?")]
    Forbidden,
    /// The operator: what is there is no kubo.
    #[error("what answers at ipfs.api_url is no RPC API of kubo: status {0}")]
    Status(u16),
    /// The operator: what the node says went wrong there. To be tried again.
    #[error("the IPFS node says: {0}")]
    Said(String),
    /// The operator: it returns, or has stored, other bytes than it was asked for.
    #[error("the IPFS node has other bytes under {0}")]
    Differs(Cid),
    /// The operator: it does not keep what it was given, so that it may throw it away.
    #[error("the IPFS node does not keep {0}")]
    Unpinned(Cid),
    /// The operator: its answer is not what kubo's would be.
    #[error("the IPFS node's answer is not understood")]
    Answer,
    /// This site: a file that was to be put there could not be read.
    #[error("reading what was to be put into IPFS: {0}")]
    Read(String),
}

impl IpfsError {
    fn away(error: impl std::error::Error + 'static) -> Self {
        Self::Away(crate::chain_of(&error))
    }
}

/// The node. Cheap to clone.
#[derive(Clone)]
pub struct Ipfs(Arc<Inner>);

struct Inner {
    api: Api,
    /// Held while a file is given up for what the node has, and while what it has is replaced.
    alone: tokio::sync::Mutex<()>,
    pin_timeout: Duration,
}

#[derive(Deserialize)]
struct Added {
    #[serde(rename = "Hash")]
    hash: String,
}

#[derive(Deserialize)]
struct Pinned {
    #[serde(rename = "Cid")]
    cid: String,
}

impl Ipfs {
    /// A node as configured. Does not ask it anything.
    ///
    /// # Errors
    /// When the file of the token cannot be read.
    pub fn new(settings: &config::Ipfs) -> io::Result<Self> {
        let token =
            settings.token_file.as_ref().map(|path| std::fs::read_to_string(path).map(Zeroizing::new)).transpose()?;
        let token = token.as_ref().map(|text| text.lines().next().unwrap_or_default().trim());
        let api = Api::new(&settings.api_url, token, settings.timeout);
        Ok(Self(Arc::new(Inner { api, alone: tokio::sync::Mutex::default(), pin_timeout: settings.pin_timeout })))
    }

    /// While this is held, nobody else relies on what the node has in place of a file, or replaces it.
    pub async fn alone(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.alone.lock().await
    }

    /// What the node calls its version.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn version(&self) -> Result<String, IpfsError> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "Version")]
            version: String,
        }
        let said = self.0.api.ask("version").await?;
        Ok(serde_json::from_slice::<Version>(&said).map_err(|_| IpfsError::Answer)?.version)
    }

    /// Puts a file of `bytes` bytes there and pins it. It is there, under the name that it must have, when this returns.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn put<R: Read + Send + 'static>(&self, file: R, bytes: u64, cid: Cid) -> Result<(), IpfsError> {
        // All that decides the name is said, because what is not said changes between releases of kubo.
        let command = format!(
            "add?cid-version=1&hash=sha2-256&raw-leaves=true&chunker=size-{LEAF_BYTES}&max-file-links={LINKS_MAX}\
             &trickle=false&inline=false&wrap-with-directory=false&pin=true&progress=false&quieter=true"
        );
        let limit = SLOWEST + Duration::from_secs(bytes / SLOWEST_RATE);
        let added = self.0.api.send(&command, file, limit).await?;
        let last = lines::<Added>(&added)?.pop().ok_or(IpfsError::Answer)?;
        if last.hash == cid.to_string() {
            return Ok(());
        }
        if let Ok(other) = last.hash.parse() {
            // Nobody here will ever ask for that.
            self.remove(other).await?;
        }
        Err(IpfsError::Differs(cid))
    }

    /// The bytes of a file as they come, from this node or through it from others of its swarm. They are not believed: whoever takes
    /// them must name them ([`Named`]).
    ///
    /// # Errors
    /// [`IpfsError`], also in the stream.
    pub async fn get(&self, cid: Cid, from: Reach) -> Result<BoxStream<'static, Result<Bytes, IpfsError>>, IpfsError> {
        let offline = from == Reach::Here;
        self.0.api.open(&format!("cat?arg={cid}&offline={offline}&progress=false")).await
    }

    /// Makes the node keep a file, which it fetches from others if it must. Returns when it has all of it.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn pin(&self, cid: Cid) -> Result<(), IpfsError> {
        self.0.api.ask_within(&format!("pin/add?arg={cid}&recursive=true"), self.0.pin_timeout).await.map(drop)
    }

    /// Whether the node was made to keep a file as a whole.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn is_pinned(&self, cid: Cid) -> Result<bool, IpfsError> {
        match self.0.api.ask(&format!("pin/ls?arg={cid}&type=recursive")).await {
            Ok(_) => Ok(true),
            Err(IpfsError::Said(said)) if said.contains("not pinned") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets a file go; one that is not pinned is none to let go. Its bytes are removed from the node, as far as no other pin needs them.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn remove(&self, cid: Cid) -> Result<(), IpfsError> {
        match self.0.api.ask(&format!("pin/rm?arg={cid}&recursive=true")).await {
            Ok(_) => {}
            Err(IpfsError::Said(said)) if said.contains("not pinned") => {}
            Err(error) => return Err(error),
        }
        self.remove_blocks(cid).await
    }

    /// kubo keeps what is not pinned until it runs short of room or is told to collect garbage. This does not wait for either.
    async fn remove_blocks(&self, cid: Cid) -> Result<(), IpfsError> {
        #[derive(Deserialize)]
        struct Reference {
            #[serde(rename = "Ref")]
            cid: String,
            #[serde(rename = "Err", default)]
            error: String,
        }
        let listed = match self.0.api.ask(&format!("refs?arg={cid}&recursive=true&unique=true&offline=true")).await {
            Ok(listed) => listed,
            // Its first block is gone already, so that nobody can tell which the others were.
            Err(IpfsError::Said(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let references = lines::<Reference>(&listed)?;
        let below = references.iter().filter(|one| one.error.is_empty()).filter_map(|one| one.cid.parse::<Cid>().ok());
        // The root goes last: without it the others are not found again.
        for block in below.chain([cid]) {
            // A block that another file needs is pinned through that, and stays.
            self.0.api.ask(&format!("block/rm?arg={block}&force=true&quiet=true")).await?;
        }
        Ok(())
    }

    /// Everything that the node was made to keep as a whole.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn pins(&self) -> Result<HashSet<Cid>, IpfsError> {
        let mut said = self.0.api.open("pin/ls?type=recursive&stream=true").await?;
        let (mut pins, mut line) = (HashSet::new(), Vec::new());
        while let Some(run) = said.next().await {
            for part in run?.split_inclusive(|octet| *octet == b'\n') {
                line.extend_from_slice(part);
                if line.len() > PIN_BYTES_MAX {
                    return Err(IpfsError::Answer);
                }
                if line.ends_with(b"\n") {
                    // Others may use the node too, with names of other kinds.
                    pins.extend(lines::<Pinned>(&line)?.iter().filter_map(|pinned| pinned.cid.parse::<Cid>().ok()));
                    line.clear();
                }
            }
        }
        Ok(pins)
    }

    /// Reads a file from this node alone and compares it with its name: whether the node has all of it, and keeps it.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn prove(&self, cid: Cid, bytes: u64) -> Result<(), IpfsError> {
        if !self.is_pinned(cid).await? {
            return Err(IpfsError::Unpinned(cid));
        }
        self.compare(cid, bytes, Reach::Here).await
    }

    /// Makes the node keep a file of `bytes` bytes that others have, after it was seen to be that file and no more.
    ///
    /// # Errors
    /// [`IpfsError`].
    pub async fn fetch_and_pin(&self, cid: Cid, bytes: u64) -> Result<(), IpfsError> {
        self.compare(cid, bytes, Reach::Swarm).await?;
        self.pin(cid).await
    }

    /// Reads a file and compares it with its name and length.
    async fn compare(&self, cid: Cid, bytes: u64, reach: Reach) -> Result<(), IpfsError> {
        let mut stream = self.get(cid, reach).await?;
        let mut found = CidBuilder::default();
        while let Some(run) = stream.next().await {
            found.write_all(&run?).map_err(|error| IpfsError::Read(error.to_string()))?;
            if found.bytes() > bytes {
                return Err(IpfsError::Differs(cid));
            }
        }
        if found.bytes() == bytes && found.finish() == cid { Ok(()) } else { Err(IpfsError::Differs(cid)) }
    }
}

/// From where a file may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From this node alone.
    Here,
    /// From any node of the swarm.
    Swarm,
}

/// Names what is read through it.
pub struct Named<R> {
    from: R,
    name: CidBuilder,
    bytes_max: u64,
}

impl<R: Read> Named<R> {
    /// Reads no more than `bytes_max` bytes.
    pub fn new(from: R, bytes_max: u64) -> Self {
        Self { from, name: CidBuilder::default(), bytes_max }
    }

    /// Reads what is left, and returns how much there was and its name.
    ///
    /// # Errors
    /// As the source of the bytes.
    pub fn finish(mut self) -> io::Result<(u64, Cid)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.name.bytes(), self.name.finish()))
    }
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(out)?;
        self.name.write_all(&out[..count])?;
        if self.name.bytes() > self.bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more bytes than the manifest lists"));
        }
        Ok(count)
    }
}

/// The objects of an answer of one JSON object a line.
fn lines<T: for<'a> Deserialize<'a>>(said: &[u8]) -> Result<Vec<T>, IpfsError> {
    serde_json::Deserializer::from_slice(said).into_iter().collect::<Result<_, _>>().map_err(|_| IpfsError::Answer)
}
