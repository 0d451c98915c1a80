//! Connections that have not asked for anything that they may have: so many of one network at most, and when there is one more, the oldest makes
//! room. So whoever connects and says nothing, or asks for what is not his, keeps nobody out but himself. Must not know requests.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// The places of all networks.
#[derive(Debug)]
pub(super) struct Places {
    /// Of one network.
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// By network, the oldest first; none is empty.
    waiting: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
}

/// A place, given back when the last copy is dropped or when it is not needed any more.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    places: Arc<Places>,
    network: IpAddr,
    number: u64,
}

impl Places {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), taken: Mutex::default() })
    }

    /// A place for a connection that `cut` ends, which happens when it is the oldest of too many.
    pub(super) fn enter(self: &Arc<Self>, network: IpAddr, cut: CancellationToken) -> Place {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.next;
        taken.next += 1;
        let waiting = taken.waiting.entry(network).or_default();
        if waiting.len() >= self.max
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.cancel();
        }
        waiting.push_back((number, cut));
        Place(Arc::new(Held { places: self.clone(), network, number }))
    }

    fn leave(&self, network: IpAddr, number: u64) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = taken.waiting.get_mut(&network) else { return };
        // Numbers rise from front to back.
        if let Ok(at) = waiting.binary_search_by_key(&number, |(number, _)| *number) {
            waiting.remove(at);
        }
        if waiting.is_empty() {
            taken.waiting.remove(&network);
        }
    }
}

impl Place {
    /// From here on no newer connection takes it.
    pub(super) fn keep(&self) {
        self.0.places.leave(self.0.network, self.0.number);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.places.leave(self.network, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_network_makes_room_unless_it_was_let_in_and_others_keep_theirs() {
        let places = Places::new(2);
        let [one, other]: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let enter = |network| {
            let cut = CancellationToken::new();
            (places.enter(network, cut.clone()), cut)
        };
        let (first, second, elsewhere) = (enter(one), enter(one), enter(other));
        first.0.keep();
        let third = enter(one);
        let cut = |all: &[&(Place, CancellationToken)]| all.iter().map(|one| one.1.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(cut(&[&first, &second, &third, &elsewhere]), [false; 4]);
        let fourth = enter(one);
        assert_eq!(cut(&[&first, &second, &third, &fourth, &elsewhere]), [false, true, false, false, false]);
        let copy = third.0.clone();
        drop(third);
        let fifth = enter(one);
        assert!(!fifth.1.is_cancelled() && !fourth.1.is_cancelled(), "a place counts until its last copy is gone");
        drop((copy, first, second, fourth, fifth, elsewhere));
        assert!(places.taken.lock().is_ok_and(|taken| taken.waiting.is_empty()));
    }
}
