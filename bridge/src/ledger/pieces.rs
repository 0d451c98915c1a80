//! Pieces as calldata: encoding, decoding and what they cost. Pure. It must not know what a piece holds.

use super::client::LedgerError;
use super::node::Transaction;
use super::sender::{Call, TRANSFER_GAS};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall as _;
pub use contracts::PieceMode;
use contracts::{PieceInput, Pieces, SealInput};

/// One piece to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Study id on chain: the label of the image.
    pub study: B256,
    /// Image id on chain.
    pub image: B256,
    /// Position in the image, from 0.
    pub index: u32,
    /// The bytes, never empty.
    pub bytes: Bytes,
}

/// Where a stored piece is. Kept by the reader, so that nothing is ever scanned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceLocation {
    /// Height of the block.
    pub block: u64,
    /// Position of the transaction in the block.
    pub transaction: u64,
    /// Position of the piece in the transaction, from 0.
    pub entry: u32,
}

/// A piece of an image and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Located {
    /// Image id on chain.
    pub image: B256,
    /// Position in the image.
    pub index: u32,
    /// Where its bytes are.
    pub location: PieceLocation,
}

/// What ends an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seal {
    /// Image id on chain.
    pub image: B256,
    /// Number of pieces.
    pub pieces: u32,
    /// Merkle root over the pieces.
    pub root: B256,
}

/// Most bytes of a whole transaction that every node takes.
pub const TRANSACTION_BYTES_MAX: usize = 131_072;
/// Pieces in one transaction at most: each costs up to 240,000 gas besides its bytes.
pub const PIECES_MAX: usize = 48;
/// What encoding adds to the bytes of each piece of a batch, padding included, and to a transaction.
pub const PIECE_OVERHEAD_BYTES: usize = 256;

/// The largest payload of one transaction in a mode: below the transaction limit and, for the modes whose bytes are dear, below the 16.78
/// million gas that Osaka rules allow a transaction.
pub fn payload_bytes_max(mode: PieceMode) -> usize {
    match mode {
        PieceMode::Calldata | PieceMode::Log => TRANSACTION_BYTES_MAX - 2 * PIECE_OVERHEAD_BYTES - 512,
        PieceMode::Code => 62_000,
        PieceMode::Storage => 30_000,
    }
}

/// What a transaction pays for its calldata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalldataRule {
    /// 16 gas for a byte that is not zero (EIP-2028).
    London,
    /// Never less than 40 gas for such a byte, whatever else was done (EIP-7623).
    Prague,
}

/// Bytes of calldata with which a node is asked for its rule.
const RULE_BYTES: usize = 1_000;

/// Programs that were made before Prague: geth that makes blocks with Clique, and the embedded ledger.
const OF_LONDON: [&str; 5] = ["Geth/v1.10.", "Geth/v1.11.", "Geth/v1.12.", "Geth/v1.13.", "pacs-bridge-ledger/"];

impl CalldataRule {
    /// Calldata whose gas tells the rule, sent to an account without code.
    pub fn question() -> Bytes {
        vec![1; RULE_BYTES].into()
    }

    /// The rule of a chain on which [`CalldataRule::question`] needs so much gas. London only where the node's program knows nothing else: a network of others can
    /// change to Prague at any block, after which what waits with too little gas would hold up everything behind it.
    pub fn of(gas: u64, program: &str) -> Self {
        let bytes = RULE_BYTES as u64;
        let is_cheap = gas < TRANSFER_GAS + bytes * (16 + 40) / 2;
        let cannot_change = OF_LONDON.iter().any(|known| program.starts_with(known));
        if is_cheap && cannot_change { Self::London } else { Self::Prague }
    }
}

/// The call that stores pieces: `storePiece` for one, `storePieces` for several.
pub fn store_call(mode: PieceMode, rule: CalldataRule, contract: Address, pieces: &[Piece]) -> Call {
    let data = match pieces {
        [p] => {
            let call = Pieces::storePieceCall { study: p.study, image: p.image, index: p.index, data: p.bytes.clone() };
            call.abi_encode()
        }
        many => {
            let input =
                |p: &Piece| PieceInput { study: p.study, image: p.image, index: p.index, data: p.bytes.clone() };
            Pieces::storePiecesCall { batch: many.iter().map(input).collect() }.abi_encode()
        }
    };
    Call { to: contract, data: data.into(), gas: store_gas(mode, rule, pieces), value: U256::ZERO }
}

/// The call that ends images.
pub fn seal_call(seals: &[Seal]) -> Bytes {
    match seals {
        [s] => Pieces::sealCall { image: s.image, pieces: s.pieces, root: s.root }.abi_encode().into(),
        many => {
            let input = |s: &Seal| SealInput { image: s.image, pieces: s.pieces, root: s.root };
            Pieces::sealImagesCall { batch: many.iter().map(input).collect() }.abi_encode().into()
        }
    }
}

/// A gas limit that is enough to end images of at most 4,096 pieces each, computed because the node cannot tell while their pieces are on their way.
pub fn seal_gas(seals: &[Seal]) -> u64 {
    60_000 + seals.iter().map(|seal| 100_000 + u64::from(seal.pieces) * 4_000).sum::<u64>()
}

/// A gas limit that is enough, and not much more: a block has room for a transaction only while its limit is left, not what it will use. It is computed,
/// not asked for: asking would run every byte through the node once more.
fn store_gas(mode: PieceMode, rule: CalldataRule, pieces: &[Piece]) -> u64 {
    let per_byte = match (mode, rule) {
        // Calldata, and a little for hashing and memory; LOG takes 8 gas a byte.
        (PieceMode::Calldata, CalldataRule::London) => 17,
        (PieceMode::Log, CalldataRule::London) => 26,
        (PieceMode::Calldata | PieceMode::Log, CalldataRule::Prague) => 42,
        (PieceMode::Code, _) => 232,
        (PieceMode::Storage, _) => 740,
    };
    let of_piece = |p: &Piece| {
        let bytes = p.bytes.len() as u64;
        let parts = bytes / 24_575 + 1;
        240_000 + bytes * per_byte + parts * if mode == PieceMode::Code { 60_000 } else { 0 }
    };
    60_000 + pieces.iter().map(of_piece).sum::<u64>()
}

/// The pieces that a transaction stored, in order, or nothing if it is something else.
pub fn pieces_in(transaction: &Transaction, contract: Address) -> Vec<Piece> {
    pieces_of(&transaction.input, transaction.to, contract)
}

/// The pieces that calldata for `to` stores, in order, or nothing if it is something else.
pub fn pieces_of(calldata: &[u8], to: Option<Address>, contract: Address) -> Vec<Piece> {
    if to != Some(contract) {
        return Vec::new();
    }
    if let Ok(call) = Pieces::storePieceCall::abi_decode(calldata) {
        return vec![Piece { study: call.study, image: call.image, index: call.index, bytes: call.data }];
    }
    let Ok(call) = Pieces::storePiecesCall::abi_decode(calldata) else { return Vec::new() };
    let piece = |p: PieceInput| Piece { study: p.study, image: p.image, index: p.index, bytes: p.data };
    call.batch.into_iter().map(piece).collect()
}

/// The one piece that a location names, if it is there.
pub fn piece_at(transaction: &Transaction, contract: Address, wanted: &Located) -> Option<Bytes> {
    let entry = usize::try_from(wanted.location.entry).ok()?;
    let piece = pieces_in(transaction, contract).into_iter().nth(entry)?;
    (piece.image == wanted.image && piece.index == wanted.index).then_some(piece.bytes)
}

/// Refuses a batch that no transaction can carry.
pub fn check_batch(mode: PieceMode, pieces: &[Piece]) -> Result<(), LedgerError> {
    let bytes: usize = pieces.iter().map(|p| p.bytes.len() + PIECE_OVERHEAD_BYTES).sum();
    if pieces.iter().any(|p| p.bytes.is_empty()) {
        return Err(LedgerError::Refused("a piece is empty".into()));
    }
    if bytes > payload_bytes_max(mode) + PIECE_OVERHEAD_BYTES {
        return Err(LedgerError::Refused(format!("{bytes} bytes of pieces do not fit one transaction")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(index: u32, bytes: usize) -> Piece {
        let (study, image) = (B256::with_last_byte(1), B256::with_last_byte(2));
        Piece { study, image, index, bytes: vec![index as u8 + 1; bytes].into() }
    }

    fn transaction(pieces: &[Piece], to: Address) -> Transaction {
        let input = store_call(PieceMode::Calldata, CalldataRule::London, to, pieces).data;
        Transaction { hash: B256::ZERO, from: Address::ZERO, to: Some(to), input }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let to = Address::with_last_byte(9);
        for batch in [vec![piece(0, 1)], vec![piece(0, 33), piece(1, 64), piece(2, 1)]] {
            assert_eq!(pieces_in(&transaction(&batch, to), to), batch);
        }
    }

    #[test]
    fn a_location_must_name_the_piece_it_is_asked_for() {
        let to = Address::with_last_byte(9);
        let batch = [piece(0, 33), piece(1, 64)];
        let at = |index, entry| Located {
            image: batch[0].image,
            index,
            location: PieceLocation { block: 0, transaction: 0, entry },
        };
        let tx = transaction(&batch, to);
        assert_eq!(piece_at(&tx, to, &at(1, 1)), Some(batch[1].bytes.clone()));
        assert_eq!(piece_at(&tx, to, &at(1, 0)), None);
        assert_eq!(piece_at(&tx, to, &at(2, 2)), None);
        assert_eq!(piece_at(&tx, Address::ZERO, &at(1, 1)), None, "another contract");
    }

    #[test]
    fn a_rule_is_known_by_what_calldata_costs() {
        let cost = |a_byte: u64| TRANSFER_GAS + RULE_BYTES as u64 * a_byte;
        let rule = |a_byte, program| CalldataRule::of(cost(a_byte), program);
        for program in ["Geth/v1.13.15-stable/linux-amd64/go1.25.5", "pacs-bridge-ledger/0.1.0"] {
            assert_eq!([16, 17].map(|a_byte| rule(a_byte, program)), [CalldataRule::London; 2]);
            assert_eq!([40, 41].map(|a_byte| rule(a_byte, program)), [CalldataRule::Prague; 2]);
        }
        for program in ["Geth/v1.14.0", "besu/v24.1.0/linux-x86_64/openjdk-java-21", "anvil/v1.7.1", ""] {
            assert_eq!(rule(16, program), CalldataRule::Prague, "{program} may change");
        }
        assert!(CalldataRule::question().iter().all(|byte| *byte != 0));
    }

    #[test]
    fn the_largest_payload_fits_a_transaction() {
        for mode in PieceMode::ALL {
            let full = [piece(0, payload_bytes_max(mode))];
            assert!(check_batch(mode, &full).is_ok());
            let call = store_call(mode, CalldataRule::Prague, Address::ZERO, &full);
            assert!(call.data.len() + 200 < TRANSACTION_BYTES_MAX);
            assert!(mode == PieceMode::Storage || call.gas < 1 << 24, "{mode:?} needs {} gas", call.gas);
        }
    }
}
