//! What DICOMweb leaves in the audit trail. A viewer asks for a study in hundreds of requests: that somebody reads it is recorded before the
//! first of them is answered, and again while he goes on, not hundreds of times.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dicom_scp::Uid;

use crate::audit::{Audit, Event, Party};
use crate::http::Problem;

/// How long requests of the same caller for the same study are one reading.
const ONE_READING: Duration = Duration::from_secs(60);
/// Readings remembered; more are recorded each time.
const REMEMBERED_MAX: usize = 16_384;

/// Who reads what at the moment.
#[derive(Debug, Default)]
pub(crate) struct Trail(Mutex<HashMap<(Party, Uid), Instant>>);

impl Trail {
    /// Records that somebody reads a study. Returns when that is on the disk.
    pub(crate) async fn reads(&self, audit: &Audit, by: &Party, study: &Uid, path: &str) -> Result<(), Problem> {
        if self.is_known(by, study, Instant::now()) {
            return Ok(());
        }
        let event = Event::read(by, study.as_str(), path, None);
        audit.durable(vec![event]).await.map_err(|error| Problem::internal(&error))?;
        // Only now: whoever asks meanwhile is not answered before it is recorded either.
        self.remember(by, study, Instant::now());
        Ok(())
    }

    fn is_known(&self, by: &Party, study: &Uid, now: Instant) -> bool {
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = readings.get(&(by.clone(), *study));
        since.is_some_and(|since| now.duration_since(*since) < ONE_READING)
    }

    fn remember(&self, by: &Party, study: &Uid, now: Instant) {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if readings.len() >= REMEMBERED_MAX {
            readings.retain(|_, since| now.duration_since(*since) < ONE_READING);
        }
        if readings.len() < REMEMBERED_MAX {
            readings.insert((by.clone(), *study), now);
        }
    }
}
