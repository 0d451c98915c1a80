//! The two ways of getting bytes onto the network by pieces. *Paper-shaped*: one transaction after the other into storage slots, each
//! waited for until a block has it; read back by one `eth_call` after the other. *Ours*: the bridge's own ledger client with many
//! transactions in flight, each waited for until it is final.

use std::time::Duration;

use alloy::primitives::{B256, Bytes, keccak256};
use alloy::providers::Provider as _;
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall as _;
use bridge::config::piece_bytes_default;
use bridge::ledger::pieces::{CalldataRule, PIECE_OVERHEAD_BYTES, payload_bytes_max, store_call};
use bridge::ledger::{Ledger, LedgerError, Located, Piece, PieceMode, Seal};
use contracts::{Pieces, merkle};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::cohort::PIECE_BYTES;
use crate::Outcome;
use crate::clique::{Network, words};

/// Transactions handed to the ledger client at once; its sender decides how many the node gets.
const AT_ONCE: usize = 64;
/// Pieces in one transaction at most, and images and pieces sealed in one, as the publisher has it.
const PIECES_MAX: usize = 48;
const SEALS_MAX: usize = 64;
const SEALED_PIECES_MAX: u32 = 2_048;

/// Bytes that are stored under one name: an image, the images of a patient, a preview.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Id of the patient on the ledger.
    pub(crate) patient: B256,
    /// Id of the run on the ledger.
    pub(crate) id: B256,
    pub(crate) bytes: Bytes,
}

impl Run {
    pub(crate) fn new(patient: &str, name: &str, bytes: Bytes) -> Self {
        Self { patient: keccak256(patient), id: keccak256(format!("{patient}/{name}")), bytes }
    }

    fn pieces(&self, piece_bytes: usize) -> impl Iterator<Item = Piece> {
        let parts = (0..).zip((0..self.bytes.len()).step_by(piece_bytes));
        parts.map(move |(index, at)| Piece {
            study: self.patient,
            image: self.id,
            index,
            bytes: self.bytes.slice(at..self.bytes.len().min(at + piece_bytes)),
        })
    }

    fn seal(&self, piece_bytes: usize) -> Outcome<Seal> {
        let hashes: Vec<B256> = self.pieces(piece_bytes).map(|piece| merkle::piece_hash(&piece.bytes)).collect();
        let pieces = u32::try_from(hashes.len()).map_err(words)?;
        let root = merkle::root(hashes).ok_or("there is nothing to seal")?;
        Ok(Seal { image: self.id, pieces, root })
    }
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    PaperShaped,
    Ours(PieceMode),
}

impl Way {
    pub(crate) fn name(self) -> String {
        match self {
            Self::PaperShaped => "paper-shaped".into(),
            Self::Ours(mode) => format!("ours, {}", bridge::config::piece_mode_name(mode)),
        }
    }

    pub(crate) fn piece_bytes(self) -> usize {
        match self {
            Self::PaperShaped => PIECE_BYTES,
            Self::Ours(mode) => piece_bytes_default(mode) as usize,
        }
    }

    pub(crate) fn pieces(self, run: &Run) -> usize {
        run.bytes.len().div_ceil(self.piece_bytes())
    }

    /// What goes into one transaction each: in the paper's way a piece, in ours as many as the publisher puts into one.
    fn batches(self, runs: &[Run]) -> Vec<Vec<Piece>> {
        let pieces = runs.iter().flat_map(|run| run.pieces(self.piece_bytes()));
        let Self::Ours(mode) = self else { return pieces.map(|piece| vec![piece]).collect() };
        let mut batches: Vec<Vec<Piece>> = Vec::new();
        let mut bytes = 0;
        for piece in pieces {
            let size = piece.bytes.len() + PIECE_OVERHEAD_BYTES;
            match batches.last_mut() {
                Some(open) if open.len() < PIECES_MAX && bytes + size <= payload_bytes_max(mode) => {
                    open.push(piece);
                    bytes += size;
                }
                _ => {
                    batches.push(vec![piece]);
                    bytes = size;
                }
            }
        }
        batches
    }

    /// Transactions that storing these together takes.
    pub(crate) fn transactions(self, runs: &[Run]) -> usize {
        self.batches(runs).len()
    }
}

/// A way on a network.
pub(crate) enum Open<'a> {
    PaperShaped(&'a Network),
    Ours(Box<Ledger>, PieceMode),
}

impl<'a> Open<'a> {
    pub(crate) async fn on(network: &'a Network, way: Way) -> Outcome<Self> {
        Ok(match way {
            Way::PaperShaped => Self::PaperShaped(network),
            Way::Ours(mode) => Self::Ours(Box::new(network.ledger(mode).await?), mode),
        })
    }

    fn way(&self) -> Way {
        match self {
            Self::PaperShaped(_) => Way::PaperShaped,
            Self::Ours(_, mode) => Way::Ours(*mode),
        }
    }

    /// Stores runs and says where their pieces are, as far as the reader needs it.
    pub(crate) async fn store(&self, runs: &[Run]) -> Outcome<Vec<Located>> {
        let batches = self.way().batches(runs);
        match self {
            Self::PaperShaped(network) => {
                for pieces in batches {
                    let contract = network.addresses().pieces(PieceMode::Storage);
                    let call = store_call(PieceMode::Storage, CalldataRule::London, contract, &pieces);
                    network.send(contract, call.data, call.gas).await?;
                }
                Ok(Vec::new())
            }
            Self::Ours(ledger, _) => {
                let stored = stream::iter(&batches).map(|pieces| patiently(|| ledger.store(pieces)));
                let located: Vec<Vec<Located>> = stored.buffered(AT_ONCE).try_collect().await?;
                Ok(located.concat())
            }
        }
    }

    /// Reads a run back; `stored` is what storing it said.
    pub(crate) async fn load(&self, run: &Run, stored: &[Located]) -> Outcome<Vec<u8>> {
        match self {
            Self::PaperShaped(network) => load_by_calls(network, run.id).await,
            Self::Ours(ledger, mode) => {
                let wanted = stored.iter().filter(|piece| piece.image == run.id).copied().collect();
                let source = ledger.source().await.map_err(words)?;
                let loaded: Vec<_> = ledger.load_pieces(source, *mode, wanted).try_collect().await.map_err(words)?;
                Ok(loaded.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect())
            }
        }
    }

    /// Ends what was stored by a root over its pieces, which the paper's way has not. Returns the number of transactions.
    pub(crate) async fn seal(&self, seals: &[Seal]) -> Outcome<usize> {
        let Self::Ours(ledger, _) = self else { return Ok(0) };
        let together = seal_batches(seals);
        for seals in &together {
            patiently(|| ledger.seal(seals)).await?;
        }
        Ok(together.len())
    }

    /// What ends a run, in our way.
    pub(crate) fn seal_of(&self, run: &Run) -> Outcome<Option<Seal>> {
        let way = self.way();
        (way != Way::PaperShaped).then(|| run.seal(way.piece_bytes())).transpose()
    }
}

/// Asks again while the ledger is not there, as the publisher does: a block may be taken back.
async fn patiently<T, F: Future<Output = Result<T, LedgerError>>>(ask: impl Fn() -> F) -> Outcome<T> {
    const TRIES: u32 = 50;
    for _ in 1..TRIES {
        match ask().await {
            Err(LedgerError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
            other => return other.map_err(words),
        }
    }
    ask().await.map_err(words)
}

/// What is sealed by one transaction each.
fn seal_batches(seals: &[Seal]) -> Vec<Vec<Seal>> {
    let mut batches: Vec<Vec<Seal>> = Vec::new();
    let mut pieces = 0;
    for seal in seals {
        match batches.last_mut() {
            Some(open) if open.len() < SEALS_MAX && pieces + seal.pieces <= SEALED_PIECES_MAX => {
                open.push(*seal);
                pieces += seal.pieces;
            }
            _ => {
                batches.push(vec![*seal]);
                pieces = seal.pieces;
            }
        }
    }
    batches
}

/// How many pieces there are, then one after the other.
async fn load_by_calls(network: &Network, image: B256) -> Outcome<Vec<u8>> {
    let source = network.client();
    let answer = call(network, Pieces::getPiecesCountCall { source, image }.abi_encode()).await?;
    let count = Pieces::getPiecesCountCall::abi_decode_returns(&answer).map_err(words)?;
    let mut bytes = Vec::new();
    for index in 0..count {
        let answer = call(network, Pieces::loadPieceCall { source, image, index }.abi_encode()).await?;
        bytes.extend_from_slice(&Pieces::loadPieceCall::abi_decode_returns(&answer).map_err(words)?);
    }
    Ok(bytes)
}

async fn call(network: &Network, data: Vec<u8>) -> Outcome<Bytes> {
    let contract = network.addresses().pieces(PieceMode::Storage);
    let request = TransactionRequest::default().to(contract).input(Bytes::from(data).into());
    network.provider.call(request).await.map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, bytes: usize) -> Run {
        Run::new("patient", name, vec![7; bytes].into())
    }

    #[test]
    fn a_piece_a_transaction_in_the_paper_s_way() {
        let runs = [run("a", 1), run("b", 30_000), run("c", 30_001), run("d", 584_000)];
        assert_eq!(Way::PaperShaped.transactions(&runs), 1 + 1 + 2 + 20);
        assert_eq!(Way::PaperShaped.pieces(&runs[3]), 20);
    }

    #[test]
    fn as_many_pieces_as_fit_in_ours() {
        let calldata = Way::Ours(PieceMode::Calldata);
        assert_eq!(calldata.transactions(&[run("a", 584_000)]), 5);
        let previews: Vec<Run> = (0..60).map(|n| run(&n.to_string(), 1_000)).collect();
        assert_eq!(calldata.transactions(&previews), 2, "48 and 12");
        assert_eq!(
            Way::Ours(PieceMode::Code).transactions(&[run("a", 90_000)]),
            2,
            "two pieces of 30,000 bytes and one"
        );
        assert_eq!(Way::Ours(PieceMode::Storage).transactions(&[run("a", 90_000)]), 3);
        for pieces in calldata.batches(&previews) {
            bridge::ledger::pieces::check_batch(PieceMode::Calldata, &pieces).unwrap();
        }
    }

    #[test]
    fn pieces_add_up_and_are_sealed_by_their_root() {
        let whole = Run::new("patient", "x", (0..=250).cycle().take(70_000).collect::<Vec<u8>>().into());
        let pieces: Vec<Piece> = whole.pieces(30_000).collect();
        assert_eq!(pieces.iter().map(|piece| piece.bytes.len()).collect::<Vec<_>>(), [30_000, 30_000, 10_000]);
        assert!(pieces.iter().flat_map(|piece| piece.bytes.to_vec()).eq(whole.bytes.to_vec()));
        let seal = whole.seal(30_000).unwrap();
        assert_eq!((seal.image, seal.pieces), (whole.id, 3));
        assert!(run("", 0).seal(30_000).is_err());
    }

    #[test]
    fn seals_go_together_within_limits() {
        let seal = |pieces| Seal { image: B256::ZERO, pieces, root: B256::ZERO };
        let sizes = |seals: Vec<Seal>| seal_batches(&seals).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![seal(1); 65]), [64, 1]);
        assert_eq!(sizes(vec![seal(2_000), seal(48), seal(1), seal(3_000), seal(1)]), [2, 1, 1, 1]);
    }
}
