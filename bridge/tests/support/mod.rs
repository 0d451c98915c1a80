//! An outbox and a source in memory, and anvil. For tests of the ledger client and the publisher over real nodes.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs)]

use alloy::primitives::{B256, keccak256};
use bridge::ledger::{Located, StudyOwner};
use bridge::publish::{
    ImageKind, Outbox, OutboxError, Plan, PlannedImage, Progress, SealedPieces, Seen, Source, SourceError, StudyJob,
};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Bytes that depend on nothing but the image and do not compress.
pub fn noise(image: B256, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    let mut state = u64::from_be_bytes(image[..8].try_into().unwrap());
    while out.len() < len {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_be_bytes());
    }
    out.truncate(len);
    out
}

pub fn id(text: &str) -> B256 {
    keccak256(text)
}

/// Studies made of noise.
#[derive(Default)]
pub struct MemorySource {
    pub plans: BTreeMap<StudyJob, Plan>,
}

impl MemorySource {
    /// Adds a version of a study. Objects keep their image id over versions; the manifest has one per version.
    pub fn add(&mut self, name: &str, index: u32, version: u32, piece_bytes: u32, previews: &[u64], objects: &[u64]) {
        let study = id(name);
        let image = |kind: ImageKind, label: String, bytes: u64| {
            let image = id(&label);
            let hashes = noise(image, bytes as usize)
                .chunks(piece_bytes as usize)
                .map(contracts::merkle::piece_hash)
                .collect::<Vec<_>>();
            let root = contracts::merkle::root(hashes.iter().copied()).unwrap();
            PlannedImage { image, kind, pieces: hashes.len() as u32, bytes, piece_bytes, root, elsewhere: false }
        };
        let mut images = Vec::new();
        for (i, bytes) in previews.iter().enumerate() {
            images.push(image(ImageKind::Preview, format!("{name}/preview/{i}"), *bytes));
        }
        images.push(image(ImageKind::Manifest, format!("{name}/manifest/{version}"), 2_000 + u64::from(version)));
        for (i, bytes) in objects.iter().enumerate() {
            images.push(image(ImageKind::Object, format!("{name}/object/{i}"), *bytes));
        }
        let plan =
            Plan { study, version, owner: StudyOwner::Custodial { index }, derived_from: Default::default(), images };
        self.plans.insert(StudyJob { study, version }, plan);
    }
}

pub struct MemoryPieces {
    bytes: Vec<u8>,
    at: usize,
    piece_bytes: usize,
}

impl SealedPieces for MemoryPieces {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let end = self.bytes.len().min(self.at + self.piece_bytes);
        let piece = &self.bytes[self.at..end];
        self.at = end;
        Ok((!piece.is_empty()).then(|| Bytes::copy_from_slice(piece)))
    }
}

impl Source for MemorySource {
    type Pieces = MemoryPieces;

    async fn plan(&self, job: &StudyJob) -> Result<Plan, SourceError> {
        self.plans.get(job).cloned().ok_or_else(|| SourceError::Broken("no such study".into()))
    }

    async fn open(&self, _: &StudyJob, image: &PlannedImage) -> Result<MemoryPieces, SourceError> {
        let bytes = noise(image.image, image.bytes as usize);
        Ok(MemoryPieces { bytes, at: 0, piece_bytes: image.piece_bytes as usize })
    }
}

/// Survives the publisher, as a database would.
#[derive(Default)]
pub struct MemoryOutbox {
    pub jobs: Mutex<Vec<StudyJob>>,
    pub seen: Mutex<HashMap<B256, Vec<Seen>>>,
}

impl MemoryOutbox {
    /// Recorded locations of an image by index.
    pub fn located(&self, study: B256, image: B256) -> BTreeMap<u32, Located> {
        let seen = self.seen.lock().unwrap();
        let stored = seen.get(&study).into_iter().flatten().filter_map(|s| match s {
            Seen::Stored(pieces) => Some(pieces),
            _ => None,
        });
        stored.flatten().filter(|l| l.image == image).map(|l| (l.index, *l)).collect()
    }

    fn fold(&self, study: B256) -> Progress {
        let mut progress = Progress::default();
        self.seen.lock().unwrap().get(&study).into_iter().flatten().for_each(|s| progress.apply(s));
        progress
    }

    pub fn finished(&self) -> bool {
        self.jobs.lock().unwrap().iter().all(|j| self.fold(j.study).finished >= j.version)
    }
}

impl Outbox for MemoryOutbox {
    async fn due(&self) -> Result<Vec<StudyJob>, OutboxError> {
        let jobs = self.jobs.lock().unwrap().clone();
        Ok(jobs.into_iter().filter(|j| self.fold(j.study).finished < j.version).collect())
    }

    fn wants(&self, _: &StudyJob) -> bool {
        true
    }

    async fn progress(&self, job: &StudyJob) -> Result<Progress, OutboxError> {
        Ok(self.fold(job.study))
    }

    async fn record(&self, job: &StudyJob, seen: &[Seen]) -> Result<(), OutboxError> {
        self.seen.lock().unwrap().entry(job.study).or_default().extend_from_slice(seen);
        Ok(())
    }
}

/// A test that needs a tool says so when it is missing, and fails instead when `REQUIRE_TOOLS=1`.
pub fn skipped(tool: &str) {
    assert!(std::env::var_os("REQUIRE_TOOLS").is_none_or(|v| v != "1"), "{tool} is required and missing");
    println!("SKIPPED: {tool} missing");
}

/// anvil under London rules on a free port of 127.0.0.1. Ends with the value.
pub struct Anvil {
    child: Child,
    pub url: String,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Key of the first account that anvil funds.
pub const ANVIL_KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
pub const ANVIL_CHAIN_ID: u64 = 31337;

impl Anvil {
    /// Starts anvil from `ANVIL`, the path, or the contracts' npm modules; none if it is nowhere.
    pub fn start(more: &[&str]) -> Option<Self> {
        let modules =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
        let named = std::env::var("ANVIL").ok();
        let mut child = [named.as_deref(), Some("anvil"), Some(modules)].into_iter().flatten().find_map(|program| {
            Command::new(program)
                .args(["--port", "0", "--gas-limit", "40000000", "--no-request-size-limit"])
                .args(if more.contains(&"--hardfork") { &[][..] } else { &["--hardfork", "london"] })
                .args(more)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .ok()
        })?;
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let listening = lines.find_map(|line| line.ok()?.strip_prefix("Listening on ").map(str::to_owned))?;
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, url: format!("http://{listening}") })
    }
}

/// Shared handles for lives of a publisher.
pub struct World {
    pub outbox: Arc<MemoryOutbox>,
    pub source: Arc<MemorySource>,
}
