//! Connections that have not proved who they are yet. When there is no room for a newcomer, they make it: anyone can open
//! them by the thousand, and say a byte or two on each.
//!
//! The silent ones go first, for a client that means it says something at once. When it is known of all that they are
//! not silent, those go that have had the time of a handshake, the oldest first; nobody goes before that, or a flood
//! would end the handshakes of good clients too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a client that means it needs at most, from far away too: a round trip, and a share of a busy processor.
const HANDSHAKE: Duration = Duration::from_millis(300);

/// All of a server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Unproven(Arc<All>);

#[derive(Debug, Default)]
struct All {
    waiting: Mutex<Waiting>,
    /// One is silent, or has spoken.
    decided: Notify,
}

/// Each by the order in which they came.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// It is not known yet whether they are silent.
    undecided: BTreeMap<u64, CancellationToken>,
    silent: BTreeMap<u64, CancellationToken>,
    /// With the time when they came.
    speaking: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Trial {
    all: Unproven,
    number: u64,
    came: Instant,
    silent: AtomicBool,
    dismissed: CancellationToken,
}

impl Unproven {
    /// From its acceptance on, so that a search for room finds it.
    pub(super) fn enter(&self) -> Trial {
        let dismissed = CancellationToken::new();
        let mut waiting = self.waiting();
        let (number, came) = (waiting.next, Instant::now());
        waiting.next += 1;
        waiting.undecided.insert(number, dismissed.clone());
        Trial { all: self.clone(), number, came, silent: AtomicBool::new(false), dismissed }
    }

    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        waiting.undecided.is_empty() && waiting.silent.is_empty() && waiting.speaking.is_empty()
    }

    /// Ends as many as that, or all that have to go by now; how many. Their room is free a moment later.
    pub(super) fn dismiss(&self, most: usize, now: Instant) -> usize {
        let mut waiting = self.waiting();
        let mut next = || {
            if let Some((_, dismissed)) = waiting.silent.pop_first() {
                return Some(dismissed);
            }
            if !waiting.undecided.is_empty() {
                return None;
            }
            let oldest = waiting.speaking.first_entry()?;
            let had_its_time = now.saturating_duration_since(oldest.get().0) >= HANDSHAKE;
            had_its_time.then(|| oldest.remove().1)
        };
        (0..most).map_while(|_| next()).map(|dismissed| dismissed.cancel()).count()
    }

    /// Back when it is known of one more whether it is silent. For one waiter.
    pub(super) async fn decided(&self) {
        self.0.decided.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial {
    /// Back once its room is needed.
    pub(super) async fn dismissed(&self) {
        self.dismissed.cancelled().await;
    }

    /// It says nothing, or nothing more, though it had the time to.
    pub(super) fn fall_silent(&self) {
        let mut waiting = self.all.waiting();
        let spoke = waiting.speaking.remove(&self.number).map(|(_, dismissed)| dismissed);
        if let Some(dismissed) = spoke.or_else(|| waiting.undecided.remove(&self.number)) {
            waiting.silent.insert(self.number, dismissed);
            self.silent.store(true, Relaxed);
            self.all.0.decided.notify_one();
        }
    }

    /// It has spoken. Once it is dismissed, that changes nothing.
    pub(super) fn speak(&self) {
        let mut waiting = self.all.waiting();
        let silent = waiting.silent.remove(&self.number);
        if let Some(dismissed) = silent.or_else(|| waiting.undecided.remove(&self.number)) {
            waiting.speaking.insert(self.number, (self.came, dismissed));
            self.silent.store(false, Relaxed);
            self.all.0.decided.notify_one();
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut waiting = self.all.waiting();
        waiting.undecided.remove(&self.number);
        waiting.silent.remove(&self.number);
        waiting.speaking.remove(&self.number);
        self.all.0.decided.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_one_makes_room_at_once() {
        let all = Unproven::default();
        let [first, second, third, fourth, fifth] = [(); 5].map(|()| all.enter());
        for silent in [&second, &third, &fourth, &fifth] {
            silent.fall_silent();
        }
        third.speak();
        drop(fourth);
        let now = Instant::now();
        assert_eq!(all.dismiss(1, now), 1);
        assert!(second.dismissed.is_cancelled() && second.is_silent() && !fifth.dismissed.is_cancelled());
        // What it says then changes nothing.
        second.speak();
        assert_eq!(all.dismiss(9, now), 1);
        assert!(fifth.dismissed.is_cancelled());
        first.speak();
        assert!(!first.dismissed.is_cancelled() && !third.dismissed.is_cancelled() && !third.is_silent());
        assert!(!all.is_empty());
        drop((first, third));
        assert!(all.is_empty());
    }

    #[test]
    fn one_that_has_spoken_makes_room_once_it_has_had_its_time() {
        let all = Unproven::default();
        let [first, second] = [(); 2].map(|()| all.enter());
        let due = second.came + HANDSHAKE;
        first.speak();
        // The other one may be silent, and would go before it.
        assert_eq!(all.dismiss(1, due), 0);
        second.speak();
        assert_eq!(all.dismiss(1, first.came + HANDSHAKE / 2), 0);
        assert_eq!(all.dismiss(1, due), 1);
        assert!(first.dismissed.is_cancelled() && !first.is_silent() && !second.dismissed.is_cancelled());
        // A newer one that is silent goes before it.
        let third = all.enter();
        assert_eq!(all.dismiss(1, due), 0);
        third.fall_silent();
        assert_eq!(all.dismiss(1, due), 1);
        assert!(third.dismissed.is_cancelled() && !second.dismissed.is_cancelled());
        assert_eq!(all.dismiss(9, due), 1);
        assert!(second.dismissed.is_cancelled() && all.is_empty());
    }
}
