//! Moving along the chain: from the stored cursor to the newest block that counts, and back when blocks left.
//!
//! Near the tip every block is read by its hash, with a parent check, and its events by the same hash: a node that lags, or another
//! one that answers in between, can give nothing or an error but never the events of another branch. Far below the tip heights
//! are read in strides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Ahead, Chain, Consents, FollowError, Head};
use crate::ledger::node::{Backoff, Block, Clock, Logged, Node, NodeError, Span};
use crate::ledger::slots::InFlight;

/// So many blocks below the tip and more, heights stand for blocks.
const NEAR_BLOCKS: u64 = 128;
/// Blocks in one stride far from the tip; Besu answers for 5,000 at most.
const STRIDE_BLOCKS: u64 = 5_000;
/// Blocks that come faster than this are taken together.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait between tries when the node is away.
const RETRY_MS_MAX: u64 = 10_000;

/// What is followed and how.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// The contract of sources and studies.
    pub registry: Address,
    /// The contract of consents.
    pub consent: Address,
    /// The contract of key bindings.
    pub key_bindings: Address,
    /// A block counts when it has this many blocks from the tip, itself included.
    pub depth: u64,
    /// How often the node is asked for a new head without being woken.
    pub poll_ms: u64,
    /// Whether blocks have their time from other clocks than this machine's, so that they tell when it is wrong.
    pub clocks_elsewhere: bool,
    /// What this site itself carries to the ledger.
    pub carried: InFlight,
}

/// How far this machine's clock may be behind the newest block, in seconds. Whether a grant has ended is judged by it: by one that is behind
/// grants would live longer than on the ledger.
const BEHIND_S_MAX: u64 = 60;

/// What a follower remembers from round to round.
#[derive(Default)]
struct Memory {
    begun: bool,
    clock_is_behind: bool,
    /// The newest block of the branch that is known.
    head: B256,
    /// Blocks that do not count yet, by their hashes.
    read: HashMap<B256, Read>,
}

/// A block and what the followed contracts said in it.
#[derive(Clone)]
struct Read {
    block: Block,
    said: Vec<Logged>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the ledger")]
    Node(#[from] NodeError),
    #[error("the consents")]
    Kept(#[from] FollowError),
}

fn not_now(why: &str) -> Trouble {
    Trouble::Node(NodeError::Unavailable(why.to_owned()))
}

/// Follows the chain until told to stop. `wake` may be notified whenever a block was made.
pub async fn follow<N: Node, K: Clock>(
    consents: Consents,
    node: N,
    clock: K,
    config: FollowConfig,
    wake: Arc<Notify>,
    stop: CancellationToken,
) {
    let poll_ms = config.poll_ms;
    let walk = Walk { consents, node, config };
    let mut backoff = Backoff::new(poll_ms.max(1), RETRY_MS_MAX);
    let mut memory = Memory::default();
    loop {
        let wait_ms = match walk.round(&mut memory).await {
            Ok(true) => 0,
            Ok(false) => {
                backoff.reset();
                poll_ms
            }
            Err(trouble) => {
                tracing::debug!(error = %crate::chain_of(&trouble), "cannot follow the consents now");
                backoff.next_ms(&clock)
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = pause(&clock, wait_ms, &wake) => {}
        }
    }
}

async fn pause(clock: &impl Clock, wait_ms: u64, wake: &Notify) {
    if wait_ms == 0 {
        return tokio::task::yield_now().await;
    }
    tokio::select! {
        () = wake.notified() => tokio::time::sleep(PAUSE).await,
        () = clock.sleep_ms(wait_ms) => {}
    }
}

struct Walk<N> {
    consents: Consents,
    node: N,
    config: FollowConfig,
}

impl<N: Node> Walk<N> {
    /// One round; true when there is more to do at once.
    async fn round(&self, memory: &mut Memory) -> Result<bool, Trouble> {
        if !memory.begun {
            let genesis = self.node.block_at(0).await?.ok_or_else(|| not_now("the chain has no block 0"))?;
            let (registry, key_bindings) = (self.config.registry, self.config.key_bindings);
            let chain_id = self.node.chain_id().await?;
            self.consents.begin(&Chain { genesis: genesis.hash, registry, chain_id, key_bindings })?;
            memory.begun = true;
        }
        // What comes while this is read is not covered.
        let asked_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let head = self.node.head().await?;
        self.judge_clock(asked_s, head.timestamp, memory);
        let Some(target) = head.number.checked_sub(self.config.depth.max(1) - 1) else { return Ok(false) };
        let at = match self.settle(target).await? {
            Settled::Behind => return Ok(false),
            Settled::At(at) => at,
        };
        let from = at.map_or(0, |at| at.number + 1);
        if target.saturating_sub(from) >= NEAR_BLOCKS {
            self.stride(from, (from + STRIDE_BLOCKS - 1).min(target - NEAR_BLOCKS)).await?;
            return Ok(true);
        }
        if target >= from || memory.head != head.hash {
            self.steps(at, target, &head, memory).await?;
            memory.head = head.hash;
        }
        self.note_current(asked_s, memory);
        Ok(false)
    }

    fn note_current(&self, asked_s: u64, memory: &Memory) {
        if !memory.clock_is_behind {
            self.consents.note_current(asked_s);
        }
    }

    /// Says when the clock of this machine cannot be right, and when it can be again.
    fn judge_clock(&self, now_s: u64, block_s: u64, memory: &mut Memory) {
        let behind_s = block_s.saturating_sub(now_s);
        let was_behind = memory.clock_is_behind;
        memory.clock_is_behind = self.config.clocks_elsewhere && behind_s > BEHIND_S_MAX;
        match (was_behind, memory.clock_is_behind) {
            (false, true) => tracing::error!(
                behind_s,
                "THE CLOCK OF THIS MACHINE IS BEHIND THE LEDGER: nobody else is let in until it is right, because it cannot tell which grants have ended"
            ),
            (true, false) => tracing::info!("the clock of this machine is as far as the ledger again"),
            _ => {}
        }
    }

    /// Makes the cursor canonical again, taking back what left the chain.
    async fn settle(&self, target: u64) -> Result<Settled, Trouble> {
        let Some(cursor) = self.consents.cursor()? else { return Ok(Settled::At(None)) };
        let mut limit = cursor.number.min(target);
        loop {
            let Some(kept) = self.consents.header_below(limit)? else {
                if target < cursor.number {
                    // A node far behind, or one that holds another chain: the start of the bridge tells them apart.
                    return Ok(Settled::Behind);
                }
                tracing::warn!(
                    "the chain has changed further back than headers are kept; following it from the beginning"
                );
                self.consents.forget()?;
                return Ok(Settled::At(None));
            };
            let found = self.node.block_at(kept.number).await?.ok_or_else(|| not_now("a block is not there"))?;
            if found.hash != kept.hash {
                let Some(lower) = kept.number.checked_sub(1) else {
                    self.consents.forget()?;
                    return Ok(Settled::At(None));
                };
                limit = lower;
                continue;
            }
            if kept.number == cursor.number {
                return Ok(Settled::At(Some(kept)));
            }
            if limit == target && target < cursor.number {
                // The same branch, not as far.
                return Ok(Settled::Behind);
            }
            tracing::info!(from = cursor.number, to = kept.number, "blocks left the chain");
            self.consents.rewind(kept.number)?;
            return Ok(Settled::At(Some(kept)));
        }
    }

    /// Many blocks that nothing will replace any more.
    async fn stride(&self, from: u64, to: u64) -> Result<(), Trouble> {
        let last = self.node.block_at(to).await?.ok_or_else(|| not_now("a block is not there"))?;
        let said = self.node.said(self.contracts(), Span::Heights(from, to)).await?;
        let still = self.node.block_at(to).await?;
        if still.is_none_or(|block| block.hash != last.hash) {
            return Err(not_now("the chain changed while it was read"));
        }
        self.consents.apply(&[head(&last)], &said)?;
        Ok(())
    }

    /// The blocks from the cursor to the target, which count from now on, and those above, by their hashes.
    async fn steps(&self, at: Option<Head>, target: u64, head: &Block, memory: &mut Memory) -> Result<(), Trouble> {
        let from = at.map_or(0, |at| at.number + 1);
        let mut branch = vec![self.read(head.clone(), memory).await?];
        while let Some(oldest) = branch.last().map(|read| &read.block).filter(|block| block.number > from) {
            let parent = oldest.parent;
            branch.push(self.read_by_hash(parent, memory).await?);
        }
        let oldest = branch.last().map(|read| &read.block);
        let joins = oldest.zip(at).is_none_or(|(oldest, at)| match oldest.number {
            number if number == from => oldest.parent == at.hash,
            number => number != at.number || oldest.hash == at.hash,
        });
        if !joins {
            return Err(not_now("the chain changed while it was read"));
        }
        branch.reverse();
        let count = branch.iter().take_while(|read| read.block.number <= target).count();
        let above = branch.split_off(count);
        let heads: Vec<Head> = branch.iter().map(|read| self::head(&read.block)).collect();
        let mut said: Vec<Logged> = Vec::new();
        for Read { block, .. } in branch {
            // Not what was heard when the block was new: another node may have answered then, which did not have it, and some say nothing for a block that
            // they do not know. What counts is asked for when nodes can be expected to have it.
            said.extend(self.said_in(&block).await?);
        }
        let events: Vec<Logged> = above.iter().flat_map(|read| read.said.iter().cloned()).collect();
        let carried = events.iter().map(|event| event.transaction).filter(|hash| self.config.carried.contains(hash));
        let carried = carried.collect();
        self.consents.apply_with(&heads, &said, Ahead { events, carried })?;
        memory.read = above.into_iter().map(|read| (read.block.hash, read)).collect();
        Ok(())
    }

    async fn read_by_hash(&self, hash: B256, memory: &Memory) -> Result<Read, Trouble> {
        if let Some(read) = memory.read.get(&hash) {
            return Ok(read.clone());
        }
        let block = self.node.block(hash).await?.ok_or_else(|| not_now("a block's parent is not there"))?;
        self.read(block, memory).await
    }

    async fn read(&self, block: Block, memory: &Memory) -> Result<Read, Trouble> {
        if let Some(read) = memory.read.get(&block.hash) {
            return Ok(read.clone());
        }
        let said = self.said_in(&block).await?;
        Ok(Read { block, said })
    }

    async fn said_in(&self, block: &Block) -> Result<Vec<Logged>, Trouble> {
        Ok(match block.transactions.is_empty() {
            true => Vec::new(),
            false => self.node.said(self.contracts(), Span::Block(block.hash)).await?,
        })
    }

    fn contracts(&self) -> Vec<Address> {
        vec![self.config.registry, self.config.consent, self.config.key_bindings]
    }
}

enum Settled {
    /// The cursor is canonical; none before the first block.
    At(Option<Head>),
    /// The node is not as far as we are.
    Behind,
}

fn head(block: &Block) -> Head {
    Head { number: block.number, hash: block.hash, parent: block.parent }
}
