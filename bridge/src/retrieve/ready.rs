//! Restored files that no row names yet: served at once, made durable and filed many at a time behind the back of whoever
//! asked for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::archive::{Archive, ArchiveError, Restored, Restorer, Stored};

/// So many are filed at once without waiting longer.
const BATCH: usize = 256;
/// So many may wait; further ones wait before they are fetched.
const WAITING_MAX: usize = 1024;
/// The longest wait to be filed.
const WAIT: Duration = Duration::from_secs(1);

pub(super) struct Ready {
    archive: Archive,
    restorer: OnceCell<Restorer>,
    room: Arc<Semaphore>,
    state: Mutex<State>,
    enough: Notify,
    filing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<i64, (Arc<Restored>, OwnedSemaphorePermit)>,
    /// Whether a task looks after them.
    attended: bool,
}

impl Ready {
    pub(super) fn new(archive: Archive) -> Self {
        Self {
            archive,
            restorer: OnceCell::new(),
            room: Arc::new(Semaphore::new(WAITING_MAX)),
            state: Mutex::default(),
            enough: Notify::new(),
            filing: tokio::sync::Mutex::default(),
        }
    }

    /// What restores objects.
    pub(super) async fn restorer(&self) -> Result<&Restorer, ArchiveError> {
        self.restorer.get_or_try_init(|| async { self.archive.restorer() }).await
    }

    /// Waits for room for one more; nothing when there will be none.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object with its restored file, if that is not filed yet.
    pub(super) fn get(&self, row: i64) -> Option<Stored> {
        self.state().waiting.get(&row).map(|(restored, _)| restored.stored().clone())
    }

    /// Takes a restored file; it will be filed soon.
    pub(super) fn add(self: &Arc<Self>, restored: Restored, room: OwnedSemaphorePermit) {
        let row = restored.stored().id;
        let mut state = self.state();
        state.waiting.insert(row, (Arc::new(restored), room));
        if state.waiting.len() >= BATCH {
            self.enough.notify_one();
        }
        if !std::mem::replace(&mut state.attended, true) {
            tokio::spawn(self.clone().attend());
        }
    }

    async fn attend(self: Arc<Self>) {
        loop {
            let _ = tokio::time::timeout(WAIT, self.enough.notified()).await;
            self.file_all().await;
            let mut state = self.state();
            if state.waiting.is_empty() {
                state.attended = false;
                return;
            }
        }
    }

    /// Files all that wait now. What cannot be filed is given up; it is on the ledger.
    pub(super) async fn file_all(&self) {
        let _one_at_a_time = self.filing.lock().await;
        let batch: Vec<Arc<Restored>> = self.state().waiting.values().map(|(restored, _)| restored.clone()).collect();
        if batch.is_empty() {
            return;
        }
        let filed = match self.restorer().await {
            Ok(restorer) => restorer.file(&batch).await,
            Err(error) => Err(error),
        };
        if let Err(error) = filed {
            tracing::warn!(error = %crate::chain_of(&error), objects = batch.len(), "fetched objects could not be kept");
        }
        let mut state = self.state();
        for filed in batch {
            let row = filed.stored().id;
            if state.waiting.get(&row).is_some_and(|(waiting, _)| Arc::ptr_eq(waiting, &filed)) {
                state.waiting.remove(&row);
            }
        }
    }
}
