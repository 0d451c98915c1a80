//! Studies that are being compared with the ledger, or were a while ago. That takes as long as it takes to read all of a study, so it goes on
//! while nobody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dicom_scp::Uid;
use tokio::sync::{Semaphore, watch};

use crate::http::{Api, now_s};
use crate::site::Verdict;

/// Comparisons at once; further ones wait.
const AT_ONCE: usize = 2;
/// Comparisons remembered.
const REMEMBERED_MAX: usize = 256;
/// How long whoever asked waits for the end of one.
const ENDS_SOON: Duration = Duration::from_secs(3);

/// A comparison.
#[derive(Debug, Clone)]
pub(super) struct Verification {
    /// When it was asked for, seconds since 1970.
    pub(super) asked_s: u64,
    /// What came of it; none yet.
    pub(super) ended: Option<Ended>,
}

#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// When, seconds since 1970.
    pub(super) at_s: u64,
    /// Of each object; or why there are none.
    pub(super) verdicts: Result<Arc<[Verdict]>, String>,
}

#[derive(Debug)]
pub(super) struct Verifications {
    known: Mutex<HashMap<Uid, Verification>>,
    room: Arc<Semaphore>,
}

impl Default for Verifications {
    fn default() -> Self {
        Self { known: Mutex::default(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Verifications {
    pub(super) fn of(&self, study: &Uid) -> Option<Verification> {
        self.known().get(study).cloned()
    }

    /// Says that a study is being compared; false when it is already, or when too many are.
    fn begin(&self, study: Uid) -> bool {
        let mut known = self.known();
        if known.get(&study).is_some_and(|one| one.ended.is_none()) {
            return false;
        }
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, one| one.ended.is_none());
        }
        if known.len() >= REMEMBERED_MAX {
            return false;
        }
        known.insert(study, Verification { asked_s: now_s(), ended: None });
        true
    }

    fn end(&self, study: &Uid, verdicts: Result<Arc<[Verdict]>, String>) {
        if let Some(one) = self.known().get_mut(study) {
            one.ended = Some(Ended { at_s: now_s(), verdicts });
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Uid, Verification>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a study compared, and waits a little for the end.
pub(super) async fn verify(api: &Api, study: Uid) {
    if !api.pages().verifications.begin(study) {
        return;
    }
    let (done, mut ended) = watch::channel(());
    let here = api.clone();
    api.track(async move {
        let _done = done;
        // A comparison that does not come to its end is not one that goes on.
        let unfinished = Unfinished(here.clone(), study);
        let verifications = &here.pages().verifications;
        let _room = verifications.room.clone().acquire_owned().await;
        let verdicts = here.site().verify(study.as_str()).await;
        verifications.end(&study, verdicts.map(Into::into).map_err(|error| crate::chain_of(&error)));
        drop(unfinished);
    });
    let _ = tokio::time::timeout(ENDS_SOON, ended.changed()).await;
}

struct Unfinished(Api, Uid);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let verifications = &self.0.pages().verifications;
        if verifications.of(&self.1).is_some_and(|one| one.ended.is_none()) {
            verifications.end(&self.1, Err("it did not come to its end".to_owned()));
        }
    }
}
