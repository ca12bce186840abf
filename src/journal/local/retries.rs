//! Which dead letters are to be tried again: put in by the writer, taken out by the lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Dead letters that a lane is given at a time, at most.
const AT_A_TIME: usize = 64;
/// No more are handed out while so many are neither delivered nor dead again.
const MOST_OUT: usize = 1024;

/// Dead letters that are pending again and were not handed out yet in this process: by sink, put in by the writer, taken
/// out by the lane.
#[derive(Debug)]
pub(crate) struct Retries {
    queues: Mutex<BTreeMap<String, Queue>>,
    /// Grows whenever a lane may find more.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<u64>,
    /// Handed out, and their end is not written yet.
    out: usize,
}

impl Retries {
    /// What was being retried when the last process ended: it is handed out again.
    pub(crate) fn new(found: BTreeMap<String, Vec<u64>>) -> Self {
        let queue = |(sink, ids): (_, Vec<u64>)| (sink, Queue { waiting: ids.into_iter().collect(), out: 0 });
        Self { queues: Mutex::new(found.into_iter().map(queue).collect()), changed: watch::Sender::new(0) }
    }

    /// Changes whenever a lane may find more.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn add(&self, letters: &[(u64, String)]) {
        let mut queues = self.queues();
        for (id, sink) in letters {
            queues.entry(sink.clone()).or_default().waiting.insert(*id);
        }
        drop(queues);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Those will not be handed out.
    pub(crate) fn remove(&self, letters: &[(u64, String)]) {
        let mut queues = self.queues();
        for (id, sink) in letters {
            if let Some(queue) = queues.get_mut(sink) {
                queue.waiting.remove(id);
            }
        }
    }

    /// The retry of one that was handed out has ended.
    pub(crate) fn ended(&self, sink: &str) {
        if let Some(queue) = self.queues().get_mut(sink) {
            queue.out = queue.out.saturating_sub(1);
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The oldest waiting ones of a sink, at most `limit`.
    pub(crate) fn waiting(&self, sink: &str, limit: usize) -> Vec<u64> {
        self.queues().get(sink).map_or_else(Vec::new, |queue| queue.waiting.iter().take(limit).copied().collect())
    }

    pub(crate) fn first(&self, sink: &str) -> Vec<u64> {
        let room = self.queues().get(sink).map_or(0, |queue| MOST_OUT.saturating_sub(queue.out));
        self.waiting(sink, room.min(AT_A_TIME))
    }

    /// The first of a sink, `through`, are had; so many of them were handed out.
    pub(crate) fn hand_out(&self, sink: &str, through: &[u64], count: usize) {
        if let Some(queue) = self.queues().get_mut(sink) {
            for id in through {
                queue.waiting.remove(id);
            }
            queue.out += count;
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
