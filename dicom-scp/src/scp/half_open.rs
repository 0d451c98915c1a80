//! Connections that have not become associations yet: so many at most, and when there are more, the one that has been silent
//! longest makes room. So peers that connect and say nothing cannot keep others out until their time is up.
//!
//! Must not know PDUs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// The places for half-open connections.
#[derive(Debug)]
pub(super) struct HalfOpen {
    max: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, CancellationToken)>,
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    half_open: Arc<HalfOpen>,
    number: u64,
    taken: CancellationToken,
}

impl HalfOpen {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(HalfOpen { max: max.max(1), queue: Mutex::default() })
    }

    /// A place for a new connection; the oldest loses its own when there are too many.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let taken = CancellationToken::new();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        if queue.waiting.len() >= self.max
            && let Some((_, oldest)) = queue.waiting.pop_front()
        {
            oldest.cancel();
        }
        queue.waiting.push_back((number, taken.clone()));
        Place { half_open: self.clone(), number, taken }
    }
}

impl Place {
    /// Completes when a newer connection took this place.
    pub(super) async fn lost(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.half_open.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers rise from front to back.
        if let Ok(at) = queue.waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            queue.waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room_and_places_come_back() {
        let half_open = HalfOpen::new(2);
        let first = half_open.enter();
        let second = half_open.enter();
        drop(first);
        let third = half_open.enter();
        assert!(!second.taken.is_cancelled() && !third.taken.is_cancelled());
        let fourth = half_open.enter();
        second.lost().await;
        assert!(!third.taken.is_cancelled() && !fourth.taken.is_cancelled());
        drop((second, third, fourth));
        assert!(half_open.queue.lock().is_ok_and(|queue| queue.waiting.is_empty()));
    }
}
