//! What keeps one caller from taking everything: requests a minute, and things held at once. Must not know what is asked for.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::exchange::server::network_of;

/// Networks or accounts remembered.
const REMEMBERED_MAX: usize = 16_384;
/// What limits are counted over.
const WINDOW: Duration = Duration::from_secs(60);

/// Whose network an address is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(network_of(address))
    }
}

/// Counts what each network or account does, in windows of a minute.
#[derive(Debug)]
pub(super) struct Rate<K: Eq + Hash> {
    max: u32,
    seen: Mutex<HashMap<K, (Instant, u32)>>,
}

impl<K: Eq + Hash> Rate<K> {
    pub(super) fn new(max: u32) -> Self {
        Self { max, seen: Mutex::default() }
    }

    /// Counts one more, and says whether it is within the limit. While more keys than can be remembered are busy, newcomers are
    /// refused.
    pub(super) fn take(&self, key: impl Into<K>) -> bool {
        self.take_at(key.into(), Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| now.duration_since(since) >= WINDOW;
        if !seen.contains_key(&key) && seen.len() >= REMEMBERED_MAX {
            seen.retain(|_, (since, _)| !is_over(*since));
            if seen.len() >= REMEMBERED_MAX {
                return false;
            }
        }
        let (since, count) = seen.entry(key).or_insert((now, 0));
        if is_over(*since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.max
    }

    /// Whether the limit was passed already.
    pub(super) fn is_exhausted(&self, key: impl Into<K>) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.get(&key.into());
        known.is_some_and(|(since, count)| since.elapsed() < WINDOW && *count >= self.max)
    }
}

/// Counts what each key holds at the moment.
#[derive(Debug)]
pub(super) struct Held<K: Eq + Hash> {
    max: usize,
    counts: Mutex<HashMap<K, usize>>,
}

/// One thing held; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold<K: Eq + Hash> {
    key: K,
    of: Arc<Held<K>>,
}

impl<K: Eq + Hash + Clone> Held<K> {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default() })
    }

    pub(super) fn take(self: &Arc<Self>, key: K) -> Option<Hold<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Hold { key, of: self.clone() })
    }
}

impl<K: Eq + Hash> Drop for Hold<K> {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_minute_later_the_count_begins_anew() {
        let rate = Rate::<Network>::new(2);
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        let (here, now) = (network("2001:db8::1"), Instant::now());
        assert!(rate.take_at(here, now) && !rate.is_exhausted(here) && rate.take_at(network("2001:db8::2"), now));
        assert!(rate.is_exhausted(here) && !rate.take_at(here, now));
        assert!(rate.take_at(network("2001:db8:0:1::1"), now), "another network");
        assert!(rate.take_at(network("192.0.2.1"), now));
        assert!(rate.take_at(here, now + WINDOW));
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let held = Held::new(2);
        let first = held.take("a").unwrap();
        let _second = held.take("a").unwrap();
        assert!(held.take("a").is_none() && held.take("b").is_some());
        drop(first);
        assert!(held.take("a").is_some());
    }
}
