//! Which pieces are in transactions on their way. After a start or a failure the publisher plans anew what it has not seen on the chain, and puts it into other
//! transactions than before; whoever stores a piece that is on its way already waits for that one instead of paying for it twice.
//!
//! Nothing is noted down: what is on its way is what the sender has in its journal, and what a transaction carries stands in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use alloy::primitives::{B256, keccak256};
use futures::future::try_join_all;

use super::client::{Client, LedgerError};
use super::node::{Clock, Node};
use super::pieces::{self, Located, Piece, PieceLocation};
use super::sender::SendError;

/// What the calls in flight carry, by their ids ([`super::sender::Call::id`]).
pub(super) type Cargo = HashMap<B256, Arc<HashMap<(B256, u32), Entry>>>;

/// A piece in a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    position: u32,
    hash: B256,
}

/// Pieces that are on their way already, by the call that carries them.
pub(super) type Aboard = BTreeMap<B256, Vec<(u32, Piece)>>;

impl<N: Node, K: Clock> Client<N, K> {
    /// Parts pieces into those that are on their way, and the others, in their order. To be asked before the chain is: what is no longer on its way then
    /// is on the chain now.
    pub(super) async fn part_by_carrier(&self, pieces: Vec<Piece>) -> (Aboard, Vec<Piece>) {
        let sender = self.sender();
        // Before the journal is read nobody knows what is on its way.
        sender.in_flight().loaded().await;
        let cargo = self.cargo();
        let carrier = |piece: &Piece| {
            let entry = |(call, entries): (&B256, &Arc<HashMap<_, Entry>>)| {
                entries.get(&(piece.image, piece.index)).map(|entry| (*call, *entry))
            };
            let (call, entry) = cargo.iter().find_map(entry)?;
            (entry.hash == keccak256(&piece.bytes)).then_some((call, entry.position))
        };
        let (mut aboard, mut others) = (Aboard::new(), Vec::new());
        for piece in pieces {
            match carrier(&piece) {
                Some((call, position)) => aboard.entry(call).or_default().push((position, piece)),
                None => others.push(piece),
            }
        }
        (aboard, others)
    }

    /// Waits until what carries pieces is final, and says where they are.
    pub(super) async fn wait_for_carriers(&self, aboard: Aboard) -> Result<Vec<Located>, LedgerError> {
        let waits = aboard.into_iter().map(|(call, pieces)| self.wait_for_carrier(call, pieces));
        Ok(try_join_all(waits).await?.into_iter().flatten().collect())
    }

    async fn wait_for_carrier(&self, call: B256, pieces: Vec<(u32, Piece)>) -> Result<Vec<Located>, LedgerError> {
        let placed = match self.sender().wait_for(call).await {
            Ok(placed) if placed.succeeded => placed,
            Ok(_) => return Err(LedgerError::Unavailable("what carried pieces has reverted".into())),
            // It has become final meanwhile, if it has not been given up.
            Err(SendError::NotInFlight) => {
                let mut located = Vec::with_capacity(pieces.len());
                for (_, piece) in &pieces {
                    located.push(self.locate(piece).await?);
                }
                return Ok(located);
            }
            // Nobody can tell whether what is sent now would be refused as well.
            Err(SendError::Refused(why)) => return Err(LedgerError::Unavailable(why)),
            Err(other) => return Err(other.into()),
        };
        let at = |(entry, piece): (u32, Piece)| Located {
            image: piece.image,
            index: piece.index,
            location: PieceLocation { block: placed.block_number, transaction: placed.index, entry },
        };
        Ok(pieces.into_iter().map(at).collect())
    }

    /// Each transaction is read once, as long as it is on its way.
    fn cargo(&self) -> Cargo {
        let (sender, contract) = (self.sender(), self.pieces_contract(self.mode()));
        let mut known = self.inner.cargo.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = |raw| {
            let call = sender.read(raw);
            let pieces = call.map(|call| pieces::pieces_of(&call.data, Some(call.to), contract)).unwrap_or_default();
            let entry = |(position, piece): (u32, Piece)| {
                ((piece.image, piece.index), Entry { position, hash: keccak256(&piece.bytes) })
            };
            Arc::new((0..).zip(pieces).map(entry).collect())
        };
        let calls = sender.in_flight().calls();
        let read = calls.iter().map(|(call, raw)| (*call, known.get(call).cloned().unwrap_or_else(|| entries(raw))));
        *known = read.collect();
        known.clone()
    }
}
