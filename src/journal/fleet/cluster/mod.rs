//! The cluster itself: the connection, its API, the streams and the records that receivers share.

pub(crate) mod consumer;
pub(crate) mod error;
pub(crate) mod fitness;
pub(crate) mod link;
pub(crate) mod login;
pub(crate) mod monitor;
pub(crate) mod names;
pub(crate) mod records;
pub(crate) mod replies;
pub(crate) mod streams;

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

/// Runs a task that others count on: one that is gone without a word would look like one with nothing to do.
pub(crate) fn spawn(tasks: &TaskTracker, task: impl Future + Send + 'static) {
    tasks.spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!("a bug in the journal of the cluster: the process aborts");
            std::process::abort();
        }
    });
}
