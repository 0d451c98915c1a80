//! The root that seals an image: the Rust twin of `PiecesBase._reduce`.
//!
//! For the pieces of one image in order, with `h(i) = keccak256(bytes of piece i)`:
//!
//! ```text
//! leaf(i)    = keccak256(h(i))          over 32 bytes
//! node(l, r) = keccak256(l ‖ r)         over 64 bytes
//! ```
//!
//! The tree has the shape of RFC 9162 section 2.1.1: a list of n leaves is split at the largest power of two below n. That is the same as
//! pairing neighbours level by level and carrying an odd last node up unchanged, which is what the contract does. Leaves and
//! nodes hash inputs of different length, so neither can be passed off as the other. An image has at least one piece.
//!
//! This module must not know where pieces come from or how they are stored.

use alloy::primitives::{B256, keccak256};

/// Most pieces of one image: `PiecesBase.PIECES_MAX`.
pub const PIECES_MAX: u32 = 1 << 20;
/// Pieces folded by one call of `fold`: `PiecesBase.CHUNK_PIECES`.
pub const CHUNK_PIECES: u32 = 1024;
/// Most pieces that `seal` hashes itself: `PiecesBase.SEAL_PIECES_MAX`.
pub const SEAL_PIECES_MAX: u32 = 4096;

/// How often `fold` must be called before an image of `pieces` pieces can be sealed. Zero for images up to 4,096 pieces.
pub fn folds_needed(pieces: u32) -> u32 {
    pieces.saturating_sub(SEAL_PIECES_MAX).div_ceil(CHUNK_PIECES)
}

/// The hash of one piece's bytes, as the contract records it.
pub fn piece_hash(bytes: &[u8]) -> B256 {
    keccak256(bytes)
}

/// The root over piece hashes in order; `None` when there are none.
pub fn root(piece_hashes: impl IntoIterator<Item = B256>) -> Option<B256> {
    let mut accumulator = Accumulator::default();
    for hash in piece_hashes {
        accumulator.push(hash);
    }
    accumulator.root()
}

/// Computes the root piece by piece in memory logarithmic in their number.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    /// Roots of whole subtrees, largest first; their sizes are the binary digits of `count`.
    peaks: Vec<B256>,
    count: u64,
}

impl Accumulator {
    /// Adds the next piece by its hash.
    pub fn push(&mut self, piece_hash: B256) {
        let mut node = keccak256(piece_hash);
        // Each trailing one of the count is a subtree of the same size that now pairs up.
        for _ in 0..self.count.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = join(left, node);
            }
        }
        self.peaks.push(node);
        self.count += 1;
    }

    /// Number of pieces added.
    pub fn pieces(&self) -> u64 {
        self.count
    }

    /// The root over the pieces added so far; `None` when there are none.
    pub fn root(&self) -> Option<B256> {
        self.peaks.iter().rev().copied().reduce(|right, left| join(left, right))
    }
}

fn join(left: B256, right: B256) -> B256 {
    let mut both = [0; 64];
    both[..32].copy_from_slice(left.as_slice());
    both[32..].copy_from_slice(right.as_slice());
    keccak256(both)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hashes(n: u32) -> Vec<B256> {
        (0..n).map(|i| keccak256(i.to_be_bytes())).collect()
    }

    /// RFC 9162 2.1.1 word for word.
    fn by_definition(hashes: &[B256]) -> B256 {
        match hashes.len() {
            1 => keccak256(hashes[0]),
            n => {
                let k = n.next_power_of_two() / 2;
                join(by_definition(&hashes[..k]), by_definition(&hashes[k..]))
            }
        }
    }

    /// The contract's way: level by level.
    fn by_levels(hashes: &[B256]) -> B256 {
        let mut nodes: Vec<B256> = hashes.iter().map(keccak256).collect();
        while nodes.len() > 1 {
            nodes = nodes.chunks(2).map(|pair| if let [l, r] = pair { join(*l, *r) } else { pair[0] }).collect();
        }
        nodes[0]
    }

    #[test]
    fn three_ways_agree() {
        for n in (1..=130).chain([1023, 1024, 1025, 4097]) {
            let hashes = hashes(n);
            assert_eq!(root(hashes.clone()), Some(by_definition(&hashes)), "{n} pieces");
            assert_eq!(by_levels(&hashes), by_definition(&hashes), "{n} pieces");
        }
    }

    #[test]
    fn no_pieces_have_no_root() {
        assert_eq!(root([]), None);
    }

    #[test]
    fn one_piece_is_hashed_twice() {
        assert_eq!(root([piece_hash(b"abc")]), Some(keccak256(keccak256(b"abc"))));
    }

    #[test]
    fn folds() {
        let needed: Vec<u32> = [1, 4096, 4097, 5120, 5121, PIECES_MAX].map(folds_needed).to_vec();
        assert_eq!(needed, [0, 0, 1, 1, 2, 1020]);
    }
}
