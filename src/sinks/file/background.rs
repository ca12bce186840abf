//! What a file sink does beside delivering: sync once a second, and see to rotated files.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::rotated::Rotated;
use super::settings::Sync;

/// How old what was written may become before it is synced.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The tasks of one sink. Dropped, they end: what is not yet synced is synced at once, compression is left for the next
/// start.
#[derive(Debug)]
pub(super) struct Background {
    _tasks: TaskTracker,
    _stop: DropGuard,
}

/// What the writer asks for.
#[derive(Debug)]
pub(super) struct Orders {
    /// A file was rotated: see to it.
    rotated: Arc<Notify>,
    /// `None` unless `sync = "interval"`.
    syncs: Option<Syncs>,
}

#[derive(Debug)]
struct Syncs {
    /// Holds the file of the next sync.
    written: mpsc::Sender<Arc<File>>,
    failed: mpsc::Receiver<io::Error>,
}

impl Background {
    pub(super) fn start(files: Rotated, sync: Sync) -> (Self, Orders) {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let rotated = Arc::new(Notify::new());
        // A crash may have left something to finish.
        rotated.notify_one();
        let tidying = tidy(files, Arc::clone(&rotated), stop.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(tidying));
        let syncs = (sync == Sync::Interval).then(|| {
            let (written, files) = mpsc::channel(1);
            let (report, failed) = mpsc::channel(1);
            tasks.spawn(sync_each_second(files, report, stop.clone()));
            Syncs { written, failed }
        });
        (Self { _tasks: tasks, _stop: stop.drop_guard() }, Orders { rotated, syncs })
    }
}

impl Orders {
    /// A file has been given a name of its own.
    pub(super) fn rotated(&self) {
        self.rotated.notify_one();
    }

    /// Something was written that is to be synced within the second.
    pub(super) fn written(&self, file: &Arc<File>) {
        if let Some(syncs) = &self.syncs {
            // No room: a sync that has not begun yet covers this.
            let _ = syncs.written.try_send(Arc::clone(file));
        }
    }

    /// Why a sync failed since this was last asked.
    pub(super) fn sync_failure(&mut self) -> Option<io::Error> {
        self.syncs.as_mut()?.failed.try_recv().ok()
    }
}

/// One run at a time; a rotation during it makes it run once more.
async fn tidy(files: Rotated, rotated: Arc<Notify>, stop: CancellationToken) {
    loop {
        rotated.notified().await;
        let (files, stop) = (files.clone(), stop.clone());
        // It tells its errors itself.
        let _ = spawn_blocking(move || files.tidy(&|| stop.is_cancelled())).await;
    }
}

async fn sync_each_second(
    mut files: mpsc::Receiver<Arc<File>>,
    report: mpsc::Sender<io::Error>,
    stop: CancellationToken,
) {
    while let Some(file) = files.recv().await {
        tokio::select! {
            () = tokio::time::sleep(SYNC_INTERVAL) => {}
            () = stop.cancelled() => {}
        }
        if let Ok(Err(error)) = spawn_blocking(move || file.sync_data()).await {
            // No room: one that nobody has heard of yet is told.
            let _ = report.try_send(error);
        }
    }
}
