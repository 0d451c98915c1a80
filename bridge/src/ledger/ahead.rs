//! Everything that makes a study viewable, sent at once. The calls of one key are carried out in the order of their nonces, so a call may count on those
//! before it without anybody waiting for their blocks: a study is there after the time of one call instead of four or more.
//!
//! Nothing is taken for granted: what came of it is looked at when all of it is deep enough, and whoever sent it goes on step by step where
//! something is missing. Must not know what images hold.

use super::client::{Amendment, Client, LedgerError, StudyOwner, is_sealed};
use super::node::{Ask, At, Clock, Node, NodeError};
use super::pieces::{self, Located, PIECE_OVERHEAD_BYTES, Piece, PieceLocation, Seal};
use super::sender::Call;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use futures::future::try_join_all;
use std::collections::HashMap;
use tokio::sync::watch;

/// Gas that announcing a manifest may take: three words of storage, of which it needs half.
const AMEND_GAS: u64 = 250_000;

/// Images, in pieces and with what ends them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Pieces that were not seen stored, in order.
    pub pieces: Vec<Piece>,
    /// What ends the images, none of more than 4,096 pieces.
    pub seals: Vec<Seal>,
}

/// A study on its way to be viewable, and what else of it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Study id on chain.
    pub study: B256,
    /// Who owns it, if it is not defined yet.
    pub owner: StudyOwner,
    /// Commits to the study that it was made from; zero for none.
    pub derived_from: B256,
    /// What must be there before it is announced.
    pub urgent: Part,
    /// The announcement.
    pub amendment: Amendment,
    /// What comes after that.
    pub rest: Part,
}

/// Studies with their owners.
pub type Definitions = HashMap<B256, Address>;

/// The definition of a study while it is on its way.
struct OnItsWay<'a> {
    definitions: &'a watch::Sender<Definitions>,
    study: B256,
}

impl OnItsWay<'_> {
    fn begin(&self, owner: Address) {
        self.definitions.send_modify(|all| {
            all.insert(self.study, owner);
        });
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.definitions.send_if_modified(|all| all.remove(&self.study).is_some());
    }
}

/// Calls in their order.
#[derive(Default)]
struct Calls {
    calls: Vec<Call>,
    /// Which call stores which pieces.
    stores: Vec<(usize, Vec<Piece>)>,
    /// Pieces that some earlier call stored, or will have stored before any of these calls.
    there: Vec<Piece>,
}

impl<N: Node, K: Clock> Client<N, K> {
    /// Defines a study, stores and ends its images and announces its manifest, whatever of that is not there yet, all at once; says where the pieces are
    /// when all of it was seen at the configured depth.
    ///
    /// # Errors
    /// [`LedgerError`]. Anything that comes before the failure may be there, or be on its way; nothing is when it is not `wanted` any more.
    pub async fn open(
        &self,
        opening: &Opening,
        wanted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Located>, LedgerError> {
        let mut calls = Calls::default();
        let definition = self.definition_ahead(opening).await?;
        let defined_here = definition.as_ref().map(|(owner, _)| *owner);
        calls.calls.extend(definition.map(|(_, call)| call));
        self.add_part(&opening.urgent, &mut calls).await?;
        let announced = self.study_at(opening.study, At::Latest).await?.map_or(0, |known| known.version);
        if announced < opening.amendment.version {
            let to = self.addresses().studies;
            calls.calls.push(Call { to, data: opening.amendment.call(), gas: AMEND_GAS, value: U256::ZERO });
        }
        self.add_part(&opening.rest, &mut calls).await?;
        let Calls { calls, stores, there } = calls;
        if !wanted() {
            return Err(LedgerError::Unavailable("the study is gone".into()));
        }
        let mut placed = Vec::with_capacity(calls.len());
        let definition = OnItsWay { definitions: &self.inner.definitions, study: opening.study };
        let taken = || defined_here.into_iter().for_each(|owner| definition.begin(owner));
        let answers = self.sender().send_all(calls, taken).await;
        drop(definition);
        for answer in answers {
            let one = answer?;
            if !one.succeeded {
                return Err(LedgerError::Unavailable("a call that was sent ahead reverted".into()));
            }
            placed.push(one);
        }
        let mut located = Vec::new();
        for (call, batch) in stores {
            let Some(at) = placed.get(call) else { continue };
            located.extend((0..).zip(&batch).map(|(entry, piece)| Located {
                image: piece.image,
                index: piece.index,
                location: PieceLocation { block: at.block_number, transaction: at.index, entry },
            }));
        }
        for piece in &there {
            located.push(self.locate(piece).await?);
        }
        self.check_opened(opening).await?;
        Ok(located)
    }

    /// The owner and the call.
    async fn definition_ahead(&self, opening: &Opening) -> Result<Option<(Address, Call)>, LedgerError> {
        if let Some(known) = self.study_at(opening.study, At::Latest).await? {
            self.check_ours(&known).await?;
            return Ok(None);
        }
        let to = self.addresses().studies;
        let (owner, data) = self.definition(opening.study, &opening.owner, opening.derived_from).await?;
        // What refuses the definition refuses everything after it.
        let gas = self.gas_of(to, data.clone()).await?;
        Ok(Some((owner, Call { to, data, gas, value: U256::ZERO })))
    }

    /// Studies whose definition is on its way at once with what counts on it, and their owners. What is sent from then on comes after it.
    pub fn on_their_way(&self) -> watch::Receiver<Definitions> {
        self.inner.definitions.subscribe()
    }

    async fn add_part(&self, part: &Part, calls: &mut Calls) -> Result<(), LedgerError> {
        let contract = self.pieces_contract(self.mode());
        let (aboard, others) = self.part_by_carrier(part.pieces.clone()).await;
        calls.there.extend(aboard.into_values().flatten().map(|(_, piece)| piece));
        let known = part.seals.iter().map(|seal| self.image_at(seal.image, At::Latest));
        let known = try_join_all(known).await?;
        let mut missing = Vec::new();
        for piece in others {
            let at = part.seals.iter().position(|seal| seal.image == piece.image);
            // One question for an image of which nothing is there, and that is nearly all of them.
            if at.and_then(|at| known.get(at)).is_some_and(|image| image.stored == 0) {
                missing.push(piece);
                continue;
            }
            match self.hash_of(piece.image, piece.index, At::Latest).await? {
                B256::ZERO => missing.push(piece),
                stored if stored == keccak256(&piece.bytes) => calls.there.push(piece),
                _ => return Err(super::client::differs(piece.image, piece.index)),
            }
        }
        let rule = self.calldata_rule().await;
        for batch in batches(missing, self.payload_bytes_max()) {
            pieces::check_batch(self.mode(), &batch)?;
            calls.calls.push(pieces::store_call(self.mode(), rule, contract, &batch));
            calls.stores.push((calls.calls.len() - 1, batch));
        }
        let mut open = Vec::new();
        for (seal, image) in part.seals.iter().zip(&known) {
            if !is_sealed(image, seal)? {
                open.push(*seal);
            }
        }
        if !open.is_empty() {
            let (data, gas) = (pieces::seal_call(&open), pieces::seal_gas(&open));
            calls.calls.push(Call { to: contract, data, gas, value: U256::ZERO });
        }
        Ok(())
    }

    /// Whether all of it is there at the configured depth.
    async fn check_opened(&self, opening: &Opening) -> Result<(), LedgerError> {
        let not_yet = || LedgerError::Unavailable("what was sent ahead is not there".into());
        let deep = self.deep().await?;
        let known = self.study_at(opening.study, deep).await?.ok_or_else(not_yet)?;
        self.check_ours(&known).await?;
        let wanted = &opening.amendment;
        if known.version != wanted.version || known.manifest_image != wanted.image {
            return Err(not_yet());
        }
        for seal in opening.urgent.seals.iter().chain(&opening.rest.seals) {
            if !is_sealed(&self.image_at(seal.image, deep).await?, seal)? {
                return Err(not_yet());
            }
        }
        Ok(())
    }

    /// Gas for a call now, with some to spare.
    async fn gas_of(&self, to: Address, data: Bytes) -> Result<u64, LedgerError> {
        match self.node().estimate(Ask { from: self.account(), to, data }).await {
            Ok(gas) => Ok(gas.saturating_add(gas / 4)),
            Err(NodeError::Reverted { reason, data }) => {
                Err(LedgerError::Refused(super::client::explain(&reason, &data)))
            }
            Err(other) => Err(other.into()),
        }
    }
}

/// Pieces in transactions' worth, in order.
fn batches(pieces: Vec<Piece>, bytes_max: usize) -> Vec<Vec<Piece>> {
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        let size = piece.bytes.len() + PIECE_OVERHEAD_BYTES;
        match batches.last_mut().filter(|batch| bytes + size <= bytes_max && batch.len() < pieces::PIECES_MAX) {
            Some(batch) => {
                bytes += size;
                batch.push(piece);
            }
            None => {
                bytes = size;
                batches.push(vec![piece]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_into_as_few_transactions_as_they_fit_in_order() {
        let piece = |index: u32, bytes: usize| Piece {
            study: B256::ZERO,
            image: B256::ZERO,
            index,
            bytes: vec![1; bytes].into(),
        };
        let pieces = [100, 700, 300, 2_000, 1].iter().zip(0..).map(|(bytes, index)| piece(index, *bytes)).collect();
        let cut = batches(pieces, 1_400);
        let indices: Vec<Vec<u32>> = cut.iter().map(|batch| batch.iter().map(|piece| piece.index).collect()).collect();
        assert_eq!(indices, [vec![0, 1], vec![2], vec![3], vec![4]]);
        let many = (0..100).map(|index| piece(index, 1)).collect();
        assert_eq!(batches(many, usize::MAX).iter().map(Vec::len).collect::<Vec<_>>(), [48, 48, 4]);
    }
}
