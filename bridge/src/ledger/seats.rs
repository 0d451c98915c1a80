//! What sites have brought in, and the seats that it gives them where a contract decides who makes the blocks (QBFT). Must not know of studies or pages.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use contracts::{Sources, Validators, validators};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::client::{Client, LedgerError};
use super::node::{At, Clock, Node};

/// Questions at a time.
const READ_PARALLEL: usize = 8;

/// What the ledger says of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Studies that it defined: its stake.
    pub stake: u64,
    /// How many of them the contract has credited to it, where there is the contract.
    pub credited: Option<u64>,
    /// How many of its nodes make blocks, where there is the contract.
    pub seats: Option<usize>,
}

/// What the ledger says of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standings {
    /// By the account of the site.
    pub of: BTreeMap<Address, Standing>,
    /// Seats that are taken, where a contract gives them.
    pub seats: Option<usize>,
}

impl<N: Node, K: Clock> Client<N, K> {
    /// Stake and seats of sources, at the configured depth.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn standings(&self, sources: &[Address]) -> Result<Standings, LedgerError> {
        let at = self.deep().await?;
        let seats = self.seats(at).await?;
        let one = |source: Address| self.standing(source, seats.as_ref(), at);
        let of = futures::stream::iter(sources.iter().copied()).map(one).buffered(READ_PARALLEL);
        Ok(Standings { of: of.try_collect().await?, seats: seats.map(|seats| seats.values().sum()) })
    }

    async fn standing(
        &self,
        source: Address,
        seats: Option<&BTreeMap<Address, usize>>,
        at: At,
    ) -> Result<(Address, Standing), LedgerError> {
        let stake = self.ask_sources(Sources::stakeOfCall { source }, at).await?;
        let credited = match seats {
            None => None,
            Some(_) => {
                let call = Validators::standingOfCall { site: source };
                Some(self.ask(validators::ADDRESS, call, at).await?.credited)
            }
        };
        let seats = seats.map(|seats| seats.get(&source).copied().unwrap_or_default());
        Ok((source, Standing { stake: stake.saturating_to(), credited, seats }))
    }

    /// How many validators each site has in the next block; none where no contract says so.
    async fn seats(&self, at: At) -> Result<Option<BTreeMap<Address, usize>>, LedgerError> {
        if self.node().code(validators::ADDRESS).await?.is_empty() {
            return Ok(None);
        }
        let list = self.ask(validators::ADDRESS, Validators::getValidatorsCall {}, at).await?;
        let site_of = |key: Address| self.ask(validators::ADDRESS, Validators::siteOfCall { key }, at);
        let sites = futures::stream::iter(list).map(site_of).buffered(READ_PARALLEL);
        let mut seats = BTreeMap::new();
        for site in sites.try_collect::<Vec<Address>>().await? {
            *seats.entry(site).or_default() += 1;
        }
        Ok(Some(seats))
    }
}
