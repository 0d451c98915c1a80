//! Threads for work that nobody waits for: publishing, and the embedded ledger's blocks. While a modality sends or a viewer
//! reads, those have the cores; what is left over, and at least a quarter of them, is for this.
//!
//! Must not know what the work is.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Nice value of the threads: on Linux it is a thread's own, and threads started by it inherit it.
const NICE: i32 = 5;

/// A runtime of its own with threads of low priority. Dropping it lets tasks that block end by themselves.
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start() -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("background")
            .on_thread_start(give_way)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// For starting tasks on it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Runs what blocks on one of its threads.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.handle().spawn_blocking(work).await.map_err(io::Error::other)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Dropping a runtime waits, which a task of another runtime must not.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn give_way() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "background work runs at the usual priority");
    }
}
