//! Sealed bytes in pieces: splitting on the way out, collecting and verifying on the way in.
//!
//! All pieces of an image have the same size except the last, which is 1 to that many bytes long. The pieces' keccak-256
//! digests form the Merkle root that seals the image on the ledger; the rule is [`contracts::merkle`]'s, not repeated
//! here. This file must not know how pieces travel.

use std::io::{self, Read, Seek, SeekFrom, Write};

use alloy::primitives::{B256, Bytes};
use contracts::merkle;

/// How an image's bytes are split, and the root that names exactly these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceMap {
    /// Number of pieces, 1 to [`merkle::PIECES_MAX`].
    pub pieces: u32,
    /// Total length of all pieces.
    pub sealed_bytes: u64,
    /// Length of every piece but the last.
    pub piece_bytes: u32,
    /// Merkle root over the pieces' keccak-256 digests.
    pub root: B256,
}

/// Why pieces and their map do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    /// The numbers of a map contradict each other or exceed what the ledger takes.
    #[error("piece map is inconsistent")]
    Map,
    /// There is nothing to split, or more than fits into the largest number of pieces.
    #[error("image of {sealed_bytes} bytes cannot be split into pieces of {piece_bytes}")]
    Size {
        /// Length of the image so far.
        sealed_bytes: u64,
        /// Piece size asked for.
        piece_bytes: u32,
    },
    /// The index is not one of the image's.
    #[error("there is no piece {index}")]
    Index {
        /// The index given.
        index: u32,
    },
    /// A piece has the wrong length or digest.
    #[error("piece {index} is not the one that was recorded")]
    Differs {
        /// The piece's index.
        index: u32,
    },
    /// The image is not complete yet.
    #[error("{missing} pieces are missing")]
    Missing {
        /// How many.
        missing: u32,
    },
    /// All pieces are there, but they are not the image that the root names.
    #[error("pieces do not add up to the recorded root")]
    Root,
    /// Bytes could not be read or written.
    #[error("piece bytes could not be moved")]
    Io(#[from] io::Error),
}

impl PieceMap {
    /// Checks the numbers against each other; a map from outside is checked before it is used.
    ///
    /// # Errors
    /// [`PieceError::Map`].
    pub fn check(&self) -> Result<(), PieceError> {
        let fits = self.piece_bytes > 0
            && self.sealed_bytes > 0
            && (1..=merkle::PIECES_MAX).contains(&self.pieces)
            && self.sealed_bytes.div_ceil(u64::from(self.piece_bytes)) == u64::from(self.pieces);
        if fits { Ok(()) } else { Err(PieceError::Map) }
    }

    /// Where piece `index` begins in the image, and its length. `None` beyond the last piece.
    #[must_use]
    pub fn range(&self, index: u32) -> Option<(u64, u32)> {
        if index >= self.pieces {
            return None;
        }
        let begin = u64::from(index) * u64::from(self.piece_bytes);
        let left = self.sealed_bytes.checked_sub(begin)?;
        // The minimum is at most piece_bytes, a u32.
        Some((begin, left.min(u64::from(self.piece_bytes)) as u32))
    }
}

/// Cuts what is written to it into pieces and hands each on; holds one piece in memory.
///
/// Whether the pieces may be published is decided by whoever writes: [`seal`](super::container::seal) must have
/// returned `Ok`.
pub struct Splitter<F> {
    piece: Vec<u8>,
    piece_bytes: u32,
    sealed_bytes: u64,
    tree: merkle::Accumulator,
    sink: F,
}

impl<F: FnMut(u32, &[u8]) -> io::Result<()>> Splitter<F> {
    /// Splits into pieces of `piece_bytes`; `sink` gets each with its index, in order.
    ///
    /// # Errors
    /// [`PieceError::Size`] if `piece_bytes` is zero.
    pub fn new(piece_bytes: u32, sink: F) -> Result<Self, PieceError> {
        if piece_bytes == 0 {
            return Err(PieceError::Size { sealed_bytes: 0, piece_bytes });
        }
        Ok(Self { piece: Vec::new(), piece_bytes, sealed_bytes: 0, tree: merkle::Accumulator::default(), sink })
    }

    fn hand_on(&mut self) -> io::Result<()> {
        let index = u32::try_from(self.tree.pieces()).ok().filter(|index| *index < merkle::PIECES_MAX);
        let index = index.ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "too many pieces"))?;
        (self.sink)(index, &self.piece)?;
        self.tree.push(merkle::piece_hash(&self.piece));
        self.piece.clear();
        Ok(())
    }

    /// Hands on the last piece and returns the map.
    ///
    /// # Errors
    /// [`PieceError::Size`] if nothing was written; [`PieceError::Io`] if the sink refuses.
    pub fn finish(mut self) -> Result<PieceMap, PieceError> {
        if !self.piece.is_empty() {
            self.hand_on()?;
        }
        let (sealed_bytes, piece_bytes) = (self.sealed_bytes, self.piece_bytes);
        let root = self.tree.root().ok_or(PieceError::Size { sealed_bytes, piece_bytes })?;
        // hand_on keeps the number below PIECES_MAX.
        Ok(PieceMap { pieces: self.tree.pieces() as u32, sealed_bytes, piece_bytes, root })
    }
}

impl<F: FnMut(u32, &[u8]) -> io::Result<()>> Write for Splitter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.piece.len() == self.piece_bytes as usize {
            self.hand_on()?;
        }
        let count = bytes.len().min(self.piece_bytes as usize - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        self.sealed_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Splits everything that `sealed` yields.
///
/// # Errors
/// As [`Splitter`].
pub fn split<R: Read>(
    sealed: &mut R,
    piece_bytes: u32,
    sink: impl FnMut(u32, &[u8]) -> io::Result<()>,
) -> Result<PieceMap, PieceError> {
    let mut splitter = Splitter::new(piece_bytes, sink)?;
    io::copy(sealed, &mut splitter)?;
    splitter.finish()
}

/// What became of a piece given to a [`Merger`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It was written.
    New,
    /// The same bytes were there already.
    Repeated,
}

/// Collects an image's pieces in any order into a staging place and proves them against the root.
///
/// When the pieces' digests are known beforehand, as they are from the ledger's events, a wrong piece is refused at
/// once and the right one can still come; without them a forged piece shows only at [`finish`](Self::finish).
#[derive(Debug)]
pub struct Merger<W> {
    map: PieceMap,
    out: W,
    seen: Vec<Option<B256>>,
    expected: Option<Vec<B256>>,
    missing: u32,
}

impl<W: Write + Seek> Merger<W> {
    /// Begins to collect the image described by `map` into `out`, from its position 0.
    ///
    /// # Errors
    /// [`PieceError::Map`].
    pub fn new(map: PieceMap, out: W) -> Result<Self, PieceError> {
        map.check()?;
        Ok(Self { map, out, seen: vec![None; map.pieces as usize], expected: None, missing: map.pieces })
    }

    /// As [`new`](Self::new), with the digest of every piece, which must add up to the map's root.
    ///
    /// # Errors
    /// [`PieceError::Map`] or [`PieceError::Root`].
    pub fn with_hashes(map: PieceMap, hashes: Vec<B256>, out: W) -> Result<Self, PieceError> {
        let mut merger = Self::new(map, out)?;
        if hashes.len() != map.pieces as usize || merkle::root(hashes.iter().copied()) != Some(map.root) {
            return Err(PieceError::Root);
        }
        merger.expected = Some(hashes);
        Ok(merger)
    }

    /// Takes one piece.
    ///
    /// # Errors
    /// [`PieceError::Index`], [`PieceError::Differs`] or [`PieceError::Io`]; after any of them the merger can still be
    /// used, and a piece whose writing failed counts as missing.
    pub fn put(&mut self, index: u32, bytes: &[u8]) -> Result<Merged, PieceError> {
        let (begin, length) = self.map.range(index).ok_or(PieceError::Index { index })?;
        let hash = merkle::piece_hash(bytes);
        let recorded = self.expected.as_ref().map(|hashes| hashes[index as usize]).or(self.seen[index as usize]);
        if bytes.len() != length as usize || recorded.is_some_and(|recorded| recorded != hash) {
            return Err(PieceError::Differs { index });
        }
        if self.seen[index as usize].is_some() {
            return Ok(Merged::Repeated);
        }
        self.out.seek(SeekFrom::Start(begin))?;
        self.out.write_all(bytes)?;
        self.seen[index as usize] = Some(hash);
        self.missing -= 1;
        Ok(Merged::New)
    }

    /// The pieces that have not come yet, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.seen).filter(|(_, hash)| hash.is_none()).map(|(index, _)| index)
    }

    /// The complete, proven image.
    ///
    /// # Errors
    /// [`PieceError::Missing`] or [`PieceError::Root`]; what was collected must then be discarded.
    pub fn finish(mut self) -> Result<W, PieceError> {
        if self.missing > 0 {
            return Err(PieceError::Missing { missing: self.missing });
        }
        if merkle::root(self.seen.iter().copied().flatten()) != Some(self.map.root) {
            return Err(PieceError::Root);
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// An image's pieces as they come, in order, as one reader; nothing is staged. What it yields counts only after
/// [`finish`](Self::finish) said so.
pub struct Joiner<F> {
    map: PieceMap,
    next: F,
    piece: Bytes,
    tree: merkle::Accumulator,
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Joiner<F> {
    /// Begins to read the image described by `map`; `next` gives its pieces from the first on.
    ///
    /// # Errors
    /// [`PieceError::Map`].
    pub fn new(map: PieceMap, next: F) -> Result<Self, PieceError> {
        map.check()?;
        Ok(Self { map, next, piece: Bytes::new(), tree: merkle::Accumulator::default() })
    }

    /// Takes the next piece; `false` after the last.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(piece) = (self.next)()? else { return Ok(false) };
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a piece has a wrong length");
        let index = u32::try_from(self.tree.pieces()).map_err(|_| wrong())?;
        let (_, length) = self.map.range(index).ok_or_else(wrong)?;
        if piece.len() != length as usize {
            return Err(wrong());
        }
        self.tree.push(merkle::piece_hash(&piece));
        self.piece = piece;
        Ok(true)
    }

    /// Reads what is left and proves the whole against the root.
    ///
    /// # Errors
    /// [`PieceError::Missing`], [`PieceError::Root`] or [`PieceError::Io`]; then nothing of what was read counts.
    pub fn finish(mut self) -> Result<(), PieceError> {
        while self.advance()? {}
        match u32::try_from(self.tree.pieces()).ok().and_then(|pieces| self.map.pieces.checked_sub(pieces)) {
            Some(0) if self.tree.root() == Some(self.map.root) => Ok(()),
            Some(0) | None => Err(PieceError::Root),
            Some(missing) => Err(PieceError::Missing { missing }),
        }
    }
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Read for Joiner<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.advance()? {
            return Ok(0);
        }
        let count = out.len().min(self.piece.len());
        out[..count].copy_from_slice(&self.piece[..count]);
        self.piece = self.piece.slice(count..);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn pieces_of(bytes: &[u8], piece_bytes: u32) -> (PieceMap, Vec<Vec<u8>>) {
        let mut pieces = Vec::new();
        let map = split(&mut &*bytes, piece_bytes, |index, piece| {
            assert_eq!(index as usize, pieces.len());
            pieces.push(piece.to_vec());
            Ok(())
        });
        (map.unwrap(), pieces)
    }

    fn hashes(pieces: &[Vec<u8>]) -> Vec<B256> {
        pieces.iter().map(|piece| merkle::piece_hash(piece)).collect()
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_with_repeats_make_the_image(
            bytes in prop::collection::vec(any::<u8>(), 1..3000),
            piece_bytes in 1_u32..400,
            order in any::<u64>(),
            known: bool,
        ) {
            let (map, pieces) = pieces_of(&bytes, piece_bytes);
            prop_assert!(map.check().is_ok());
            prop_assert_eq!(pieces.concat(), bytes.clone());
            prop_assert_eq!(Some(map.root), merkle::root(hashes(&pieces)));
            let out = Cursor::new(Vec::new());
            let mut merger = if known {
                Merger::with_hashes(map, hashes(&pieces), out).unwrap()
            } else {
                Merger::new(map, out).unwrap()
            };
            let mut indexes: Vec<u32> = (0..map.pieces).chain(0..map.pieces).collect();
            indexes.sort_by_key(|index| (u64::from(*index) + 1).wrapping_mul(order | 1).rotate_left(17));
            for index in indexes {
                merger.put(index, &pieces[index as usize]).unwrap();
            }
            prop_assert_eq!(merger.missing().count(), 0);
            prop_assert_eq!(merger.finish().unwrap().into_inner(), bytes);
        }
    }

    /// Joins pieces and says whether what came out is proven.
    fn join(map: PieceMap, pieces: &[Vec<u8>]) -> (Vec<u8>, Result<(), PieceError>) {
        let mut pieces = pieces.iter().cloned();
        let mut joiner = Joiner::new(map, || Ok(pieces.next().map(Bytes::from))).unwrap();
        let mut bytes = Vec::new();
        let read = joiner.read_to_end(&mut bytes);
        (bytes, read.map_err(PieceError::from).and_then(|_| joiner.finish()))
    }

    #[test]
    fn joined_pieces_are_the_image_or_are_not_proven() {
        for length in [1, 99, 100, 101, 250, 300] {
            let (map, pieces) = pieces_of(&(0..length).map(|i| i as u8).collect::<Vec<_>>(), 100);
            let (bytes, proven) = join(map, &pieces);
            assert_eq!(bytes, pieces.concat());
            proven.unwrap();
            for at in 0..pieces.len() {
                let mut bad = pieces.clone();
                bad[at][0] ^= 1;
                assert!(matches!(join(map, &bad).1, Err(PieceError::Root)), "piece {at} changed");
                bad[at].pop();
                assert!(join(map, &bad).1.is_err(), "piece {at} cut short");
                bad = pieces.clone();
                bad.remove(at);
                assert!(join(map, &bad).1.is_err(), "piece {at} left out");
            }
            assert!(join(map, &[pieces, vec![vec![0]]].concat()).1.is_err(), "one too many");
        }
        let (map, mut pieces) = pieces_of(&(0..200).map(|i| i as u8).collect::<Vec<_>>(), 100);
        pieces.swap(0, 1);
        assert!(matches!(join(map, &pieces).1, Err(PieceError::Root)));
    }

    #[test]
    fn lengths_around_a_piece_boundary() {
        for (length, pieces, last) in [(1, 1, 1), (99, 1, 99), (100, 1, 100), (101, 2, 1), (199, 2, 99), (200, 2, 100)]
        {
            let (map, parts) = pieces_of(&vec![5; length], 100);
            assert_eq!((map.pieces, map.range(pieces - 1).unwrap().1), (pieces, last));
            assert_eq!(parts.len(), pieces as usize);
            assert_eq!(map.range(pieces), None);
        }
        assert!(matches!(split(&mut io::empty(), 100, |_, _| Ok(())), Err(PieceError::Size { .. })));
    }

    #[test]
    fn wrong_pieces_are_refused() {
        let (map, pieces) = pieces_of(&(0..250).map(|i| i as u8).collect::<Vec<_>>(), 100);
        let mut merger = Merger::with_hashes(map, hashes(&pieces), Cursor::new(Vec::new())).unwrap();
        assert!(matches!(merger.put(1, &pieces[0]), Err(PieceError::Differs { index: 1 })));
        assert!(matches!(merger.put(2, &pieces[0][..49]), Err(PieceError::Differs { index: 2 })));
        assert!(matches!(merger.put(3, &pieces[2]), Err(PieceError::Index { index: 3 })));
        assert_eq!(merger.missing().collect::<Vec<_>>(), [0, 1, 2]);
        assert!(matches!(merger.finish(), Err(PieceError::Missing { missing: 3 })));
    }

    #[test]
    fn swapped_pieces_show_at_the_end_when_no_digests_are_known() {
        let (map, pieces) = pieces_of(&(0..200).map(|i| i as u8).collect::<Vec<_>>(), 100);
        let mut merger = Merger::new(map, Cursor::new(Vec::new())).unwrap();
        merger.put(0, &pieces[1]).unwrap();
        assert!(matches!(merger.put(0, &pieces[0]), Err(PieceError::Differs { index: 0 })));
        merger.put(1, &pieces[0]).unwrap();
        assert!(matches!(merger.finish(), Err(PieceError::Root)));
        let mut wrong = hashes(&pieces);
        wrong.swap(0, 1);
        assert!(matches!(Merger::with_hashes(map, wrong, Cursor::new(Vec::new())), Err(PieceError::Root)));
    }

    #[test]
    fn impossible_maps_are_refused_before_memory_is_taken() {
        let good = PieceMap { pieces: 3, sealed_bytes: 250, piece_bytes: 100, root: B256::ZERO };
        assert!(good.check().is_ok());
        for bad in [
            PieceMap { pieces: 0, ..good },
            PieceMap { pieces: 2, ..good },
            PieceMap { pieces: 4, ..good },
            PieceMap { piece_bytes: 0, ..good },
            PieceMap { sealed_bytes: 0, ..good },
            PieceMap { pieces: u32::MAX, sealed_bytes: u64::from(u32::MAX), piece_bytes: 1, ..good },
        ] {
            assert!(matches!(bad.check(), Err(PieceError::Map)));
        }
    }
}
