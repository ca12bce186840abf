//! How a run is ended early, and how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// Ends a run early and tells how far it is; clones are the same control.
#[derive(Debug, Clone, Default)]
pub struct Control {
    stop: CancellationToken,
    broken_off: CancellationToken,
    pub(super) settled: Arc<AtomicU64>,
}

impl Control {
    /// No event and no attempt is begun any more; those under way are seen to their end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// What is under way is given up, as dropped.
    pub fn break_off(&self) {
        self.stop.cancel();
        self.broken_off.cancel();
    }

    /// Sendings whose outcome is known.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(super) async fn unless_stopped<F: Future>(&self, work: F) -> Option<F::Output> {
        self.stop.run_until_cancelled(work).await
    }

    pub(super) async fn unless_broken_off<F: Future>(&self, work: F) -> Option<F::Output> {
        self.broken_off.run_until_cancelled(work).await
    }
}
