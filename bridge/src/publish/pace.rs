//! How fast pieces have come onto the ledger lately, for an honest guess of how long those that wait will take. Pure; the caller has the clock.
//!
//! Only time counts in which there was something to write: a site that was idle all night is not slow.

use std::collections::VecDeque;

use super::{PublishStatus, StudyStatus};

/// What lies longer ago says nothing about now, in milliseconds.
const LATELY_MS: u64 = 5 * 60_000;
/// What is counted together, in milliseconds.
const SLOT_MS: u64 = 10_000;
/// Less than this was not measured, in milliseconds.
const MEASURED_MS_MIN: u64 = 3_000;

#[derive(Debug, Clone, Copy)]
struct Slot {
    begun_ms: u64,
    busy_ms: u64,
    pieces: u64,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at_ms: u64,
    stored: u64,
    busy: bool,
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    slots: VecDeque<Slot>,
    last: Option<Look>,
}

impl Pace {
    /// Takes a look at the publisher, at a time that never falls. To be called every second or so.
    pub fn look(&mut self, now_ms: u64, status: &PublishStatus) {
        let waits = |study: &StudyStatus| study.trouble.is_none() && study.pieces_seen < study.pieces;
        let busy = status.transactions > 0 || status.studies.values().any(waits);
        let look = Look { at_ms: now_ms, stored: status.stored, busy };
        if let Some(last) = self.last.replace(look) {
            let pieces = look.stored.saturating_sub(last.stored);
            let was_busy = last.busy || busy || pieces > 0;
            let busy_ms = if was_busy { now_ms.saturating_sub(last.at_ms) } else { 0 };
            self.add(last.at_ms, busy_ms, pieces);
        }
        while self.slots.front().is_some_and(|slot| slot.begun_ms + LATELY_MS < now_ms) {
            self.slots.pop_front();
        }
    }

    fn add(&mut self, begun_ms: u64, busy_ms: u64, pieces: u64) {
        match self.slots.back_mut().filter(|slot| begun_ms < slot.begun_ms + SLOT_MS) {
            Some(slot) => {
                slot.busy_ms += busy_ms;
                slot.pieces += pieces;
            }
            None => self.slots.push_back(Slot { begun_ms, busy_ms, pieces }),
        }
    }

    /// Pieces in a time of that many milliseconds; none while too little was measured to say anything, or while nothing came onto the ledger.
    fn measured(&self) -> Option<(u64, u64)> {
        let pieces = self.slots.iter().map(|slot| slot.pieces).sum();
        let busy_ms = self.slots.iter().map(|slot| slot.busy_ms).sum();
        (pieces > 0 && busy_ms >= MEASURED_MS_MIN).then_some((pieces, busy_ms))
    }

    /// Pieces a second, as measured lately.
    #[must_use]
    pub fn pieces_per_second(&self) -> Option<f64> {
        self.measured().map(|(pieces, busy_ms)| pieces as f64 * 1000.0 / busy_ms as f64)
    }

    /// How long so many pieces would take at that rate, in seconds.
    #[must_use]
    pub fn seconds_for(&self, pieces: u64) -> Option<u64> {
        let (written, busy_ms) = self.measured()?;
        let ms = u128::from(pieces) * u128::from(busy_ms) / u128::from(written);
        Some(u64::try_from(ms.div_ceil(1000)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(stored: u64, transactions: usize) -> PublishStatus {
        PublishStatus { stored, transactions, ..PublishStatus::default() }
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        let mut pace = Pace::default();
        assert_eq!((pace.seconds_for(10), pace.pieces_per_second()), (None, None));
        // What was stored before the first look was not stored since.
        pace.look(0, &status(1000, 1));
        assert_eq!(pace.seconds_for(10), None);
        pace.look(1_000, &status(1002, 1));
        assert_eq!(pace.seconds_for(10), None, "a second is too little");
        pace.look(60_000, &status(1002, 0));
        pace.look(61_000, &status(1002, 0));
        let mut stuck = Pace::default();
        (0..60).for_each(|second| stuck.look(second * 1000, &status(7, 1)));
        assert_eq!(stuck.seconds_for(10), None, "nothing comes, so it cannot be said when");
    }

    #[test]
    fn idle_time_does_not_count_and_the_past_is_forgotten() {
        let mut pace = Pace::default();
        let mut stored = 0;
        // Four pieces a second for ten seconds, then nothing to do for two minutes.
        for second in 0..=10 {
            pace.look(second * 1000, &status(stored, 1));
            stored += 4;
        }
        for second in 11..130 {
            pace.look(second * 1000, &status(stored - 4, 0));
        }
        let rate = pace.pieces_per_second().unwrap_or_default();
        assert!((3.5..=4.0).contains(&rate), "{rate}");
        assert!(matches!(pace.seconds_for(40), Some(10..=12)));
        for second in 130..700 {
            pace.look(second * 1000, &status(stored - 4, 0));
        }
        assert_eq!(pace.seconds_for(40), None, "that was long ago");
    }
}
