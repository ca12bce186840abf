//! Sends events as ASAPP does: one POST each, a 200 in time or another attempt, and after the last one it is dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::control::Control;
use super::faults::{Break, Sending};
use super::ledger::{self, Digest, Outcome};
pub use super::link::{Failure, Protocol};
use super::link::{Line, Target};

/// ASAPP does not say how long it waits before it tries again; this doubles with every attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Events that wait for another attempt without a connection; more of them keep theirs while they wait.
const MAX_WAITING: usize = 10_000;

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub outcome: Outcome,
    /// POSTs tried, at least 1.
    pub attempts: u32,
    /// Those of them that this side broke off on purpose.
    pub aborted: u32,
    /// What the last failed attempt met.
    pub failure: Option<Failure>,
}

/// What the senders of a run have in common.
pub(super) struct Manner {
    pub(super) target: Target,
    /// For one attempt, connecting included.
    pub(super) timeout: Duration,
    /// Attempts after the first one.
    pub(super) retries: u32,
    /// Whether a ledger wants to know what was sent.
    pub(super) digests: bool,
    pub(super) control: Control,
    waiting: Arc<Semaphore>,
    pauses: TaskTracker,
}

/// A sending on its way to its end.
pub(super) struct Job {
    sending: Sending,
    due: Instant,
    /// When the first attempt was begun.
    begun: Option<Instant>,
    /// So far.
    settled: Settled,
    /// Where it goes for another attempt: the queue lasts as long as there is a job.
    queue: mpsc::Sender<Job>,
}

/// A sending at its end.
pub(super) struct Settlement {
    pub(super) sending: Sending,
    pub(super) due: Instant,
    /// When the first attempt was begun.
    pub(super) begun: Instant,
    pub(super) settled: Settled,
    /// From `due`.
    pub(super) latency: Duration,
    pub(super) sha256: Option<Digest>,
}

/// One of those that empty the queue; makes one attempt at a time.
pub(super) struct Sender {
    pub(super) manner: Arc<Manner>,
    pub(super) line: Line,
    pub(super) queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    pub(super) settled: mpsc::Sender<Settlement>,
}

impl Manner {
    pub(super) fn new(target: Target, timeout: Duration, retries: u32, digests: bool, control: Control) -> Self {
        let (waiting, pauses) = (Arc::new(Semaphore::new(MAX_WAITING)), TaskTracker::new());
        Self { target, timeout, retries, digests, control, waiting, pauses }
    }
}

impl Job {
    pub(super) fn new(sending: Sending, due: Instant, queue: mpsc::Sender<Self>) -> Self {
        let settled = Settled { outcome: Outcome::Dropped, attempts: 0, aborted: 0, failure: None };
        Self { sending, due, begun: None, settled, queue }
    }
}

impl Sender {
    /// Until the queue has ended.
    pub(super) async fn work(mut self) {
        loop {
            let next = self.queue.lock().await.recv().await;
            if next.is_none() {
                return;
            }
            let mut job = next;
            while let Some(now) = job {
                job = self.attempt(now).await;
            }
        }
    }

    /// Gives back what is to be attempted at once. Once the run is to stop no attempt is begun: an event that
    /// had none is as if it had never been due.
    async fn attempt(&mut self, mut job: Job) -> Option<Job> {
        let Manner { target, timeout, retries, control, .. } = &*self.manner;
        if control.is_stopping() {
            if job.begun.is_some() {
                self.settle(job).await;
            }
            return None;
        }
        job.begun.get_or_insert_with(Instant::now);
        job.settled.attempts += 1;
        let breaks = job.sending.breaks.filter(|how: &Break| job.settled.attempts <= how.attempts);
        let post = self.line.post(target, &job.sending.body, breaks, *timeout);
        match control.unless_broken_off(post).await {
            Some(Ok((StatusCode::OK, answer))) => {
                job.settled.outcome = if says_duplicate(&answer) { Outcome::Duplicate } else { Outcome::Stored };
            }
            Some(done) => {
                let failure = done.map_or_else(|failure| failure, |(status, _)| Failure::Status(status));
                job.settled.aborted += u32::from(failure == Failure::BrokenOff);
                job.settled.failure = Some(failure);
                if job.settled.attempts <= *retries {
                    return self.pause(job).await;
                }
            }
            None => {}
        }
        let copy = job.sending.again.then(|| Job::new(job.sending.copy(), Instant::now(), job.queue.clone()));
        self.settle(job).await;
        copy
    }

    /// Has the job come back to the queue after a while, in which the connection is free for others.
    async fn pause(&self, job: Job) -> Option<Job> {
        let pause = FIRST_PAUSE.saturating_mul(1 << (job.settled.attempts - 1).min(6));
        let control = self.manner.control.clone();
        // Once the run is to stop, whoever takes the job settles it.
        let paused = async move { control.unless_stopped(tokio::time::sleep(pause)).await };
        let Ok(place) = Arc::clone(&self.manner.waiting).try_acquire_owned() else {
            paused.await;
            return Some(job);
        };
        self.manner.pauses.spawn(async move {
            paused.await;
            let queue = job.queue.clone();
            // Nobody is there any more when the run was dropped.
            let _ = queue.send(job).await;
            drop(place);
        });
        None
    }

    async fn settle(&self, job: Job) {
        let Job { sending, due, begun, mut settled, queue: _ } = job;
        if let (Outcome::Dropped, Some(Failure::Status(status))) = (settled.outcome, &settled.failure)
            && status.is_client_error()
        {
            settled.outcome = Outcome::Rejected;
        }
        let sha256 = self.manner.digests.then(|| ledger::digest(&sending.body));
        let begun = begun.unwrap_or(due);
        let settlement = Settlement { latency: due.elapsed(), sending, due, begun, settled, sha256 };
        // Nobody is there any more when the run has failed.
        let _ = self.settled.send(settlement).await;
    }
}

/// Another receiver may answer whatever it likes with its 200.
fn says_duplicate(answer: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        status: &'a str,
    }
    serde_json::from_slice::<Answer<'_>>(answer).is_ok_and(|answer| answer.status == "duplicate")
}
