//! The branch we follow: the last headers, newest last. Pure. It decides, from a head and its ancestors, which blocks joined and
//! which left. It must not know transactions.

use super::node::Block;
use alloy::primitives::B256;
use std::collections::VecDeque;

/// How many headers are kept: the longest reorganisation that is followed block by block.
pub const WINDOW_BLOCKS: usize = 128;

/// A window of consecutive headers.
#[derive(Debug, Default)]
pub struct Follower {
    window: VecDeque<(u64, B256)>,
}

/// What a new head means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Our tip, or a block below it: nothing new, or a node that lags.
    Known,
    /// The ancestor with this hash is needed to say.
    Need(B256),
    /// It joins our branch above the block at this height of the window.
    Joins,
    /// It has no block in common with the window: begin again at the head.
    Lost,
}

impl Follower {
    /// Begins with a branch, newest first.
    pub fn begin(branch: &[Block]) -> Self {
        Self { window: branch.iter().rev().map(|b| (b.number, b.hash)).collect() }
    }

    /// The block of a height, as far as the window reaches.
    pub fn hash_at(&self, number: u64) -> Option<B256> {
        let first = self.window.front()?.0;
        let offset = usize::try_from(number.checked_sub(first)?).ok()?;
        self.window.get(offset).map(|(_, hash)| *hash)
    }

    /// The oldest block of the window, if the window could hold an older one.
    pub fn oldest_of_more(&self) -> Option<(u64, B256)> {
        self.window.front().copied().filter(|(number, _)| *number > 0 && self.window.len() < WINDOW_BLOCKS)
    }

    /// Takes the parent of the oldest block into the window.
    pub fn reach_back(&mut self, parent: B256) {
        if let Some((oldest, _)) = self.oldest_of_more() {
            self.window.push_front((oldest - 1, parent));
        }
    }

    /// The newest block of the branch.
    pub fn tip(&self) -> Option<(u64, B256)> {
        self.window.back().copied()
    }

    fn height_of(&self, hash: B256) -> Option<u64> {
        self.window.iter().rev().find(|(_, h)| *h == hash).map(|(n, _)| *n)
    }

    /// Looks at a branch, given newest first, as far as it is known.
    pub fn look(&self, branch: &[Block]) -> Look {
        let (Some(head), Some(oldest)) = (branch.first(), branch.last()) else { return Look::Known };
        if self.height_of(head.hash).is_some() {
            return Look::Known;
        }
        if self.height_of(oldest.parent).is_some() {
            return Look::Joins;
        }
        let floor = self.window.front().map_or(0, |(n, _)| *n);
        if oldest.number <= floor || branch.len() > WINDOW_BLOCKS { Look::Lost } else { Look::Need(oldest.parent) }
    }

    /// Everything in the window, newest first: what may have left when the branch is given up.
    pub fn all(&self) -> Vec<(u64, B256)> {
        self.window.iter().rev().copied().collect()
    }

    /// Moves to a branch for which [`Follower::look`] said [`Look::Joins`]. Returns heights and hashes of the blocks that left, newest first.
    pub fn join(&mut self, branch: &[Block]) -> Vec<(u64, B256)> {
        let mut removed = Vec::new();
        let Some(oldest) = branch.last() else { return removed };
        while let Some((number, hash)) = self.window.back().copied() {
            if hash == oldest.parent {
                break;
            }
            self.window.pop_back();
            removed.push((number, hash));
        }
        for block in branch.iter().rev() {
            self.window.push_back((block.number, block.hash));
        }
        while self.window.len() > WINDOW_BLOCKS {
            self.window.pop_front();
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64, branch: u8) -> B256 {
        let mut bytes = [branch; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        B256::from(bytes)
    }

    /// Block `n` of branch `b`, whose parent is on branch `p`.
    fn block(n: u64, b: u8, p: u8) -> Block {
        Block {
            number: n,
            hash: hash(n, b),
            parent: hash(n - 1, p),
            timestamp: n,
            base_fee: Some(1),
            transactions: vec![],
        }
    }

    #[test]
    fn follows_a_straight_chain_and_asks_for_what_is_missing() {
        let mut f = Follower::begin(&[block(5, 0, 0)]);
        assert_eq!(f.look(&[block(5, 0, 0)]), Look::Known);
        assert_eq!(f.look(&[block(7, 0, 0)]), Look::Need(hash(6, 0)));
        let branch = [block(7, 0, 0), block(6, 0, 0)];
        assert_eq!(f.look(&branch), Look::Joins);
        assert!(f.join(&branch).is_empty());
        assert_eq!(f.tip(), Some((7, hash(7, 0))));
        assert_eq!(f.look(&[block(6, 0, 0)]), Look::Known, "a lagging node is not a reorganisation");
    }

    #[test]
    fn a_reorganisation_names_the_blocks_that_left() {
        let mut f = Follower::begin(&[block(5, 0, 0)]);
        f.join(&[block(7, 0, 0), block(6, 0, 0)]);
        let branch = [block(7, 1, 1), block(6, 1, 0)];
        assert_eq!(f.look(&branch[..1]), Look::Need(hash(6, 1)));
        assert_eq!(f.look(&branch), Look::Joins);
        assert_eq!(f.join(&branch), vec![(7, hash(7, 0)), (6, hash(6, 0))]);
        assert_eq!(f.tip(), Some((7, hash(7, 1))));
    }

    #[test]
    fn the_window_reaches_back_as_far_as_it_can_hold() {
        let mut f = Follower::begin(&[block(200, 0, 0)]);
        while let Some((oldest, _)) = f.oldest_of_more() {
            f.reach_back(hash(oldest - 1, 0));
        }
        assert_eq!(f.hash_at(200 - WINDOW_BLOCKS as u64 + 1), Some(hash(200 - WINDOW_BLOCKS as u64 + 1, 0)));
        assert_eq!((f.hash_at(200 - WINDOW_BLOCKS as u64), f.tip()), (None, Some((200, hash(200, 0)))));
        let mut from_the_first = Follower::begin(&[block(1, 0, 0)]);
        from_the_first.reach_back(hash(0, 0));
        assert_eq!(from_the_first.oldest_of_more(), None, "nothing is below block 0");
    }

    #[test]
    fn a_branch_from_below_the_window_is_lost() {
        let f = Follower::begin(&[block(5, 0, 0)]);
        assert_eq!(f.look(&[block(5, 1, 1)]), Look::Lost);
        assert_eq!(f.look(&[block(6, 1, 1), block(5, 1, 1)]), Look::Lost);
    }
}
