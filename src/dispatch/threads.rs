//! The threads that deliveries run on, apart from the door's.
//!
//! A target decides how much work its answers are, and a batch or its compression may be large. Whatever goes on here, no
//! request waits for one of these threads: it takes its turn of the machine, not of the door's runtime.

use std::io;
use std::num::NonZero;

use tokio::runtime::{Builder, Handle, Runtime};

/// Ends what runs on it when it is dropped.
#[derive(Debug)]
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    /// As many as half of the processors, one at least.
    pub(super) fn start() -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name("delivery").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// For tasks to run here, or on the caller's runtime once these are gone.
    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A thread may be stuck in a write that nobody reads, and whoever drops it may be a task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
