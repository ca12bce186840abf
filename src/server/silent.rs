//! Connections that have said nothing yet. When there is no room for a newcomer, they make it, the oldest first: anyone
//! can open them by the thousand, and a client that means it says something at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// All of a server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Silent(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By the order in which they came.
    connections: BTreeMap<u64, CancellationToken>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Silence {
    all: Silent,
    number: u64,
    dismissed: CancellationToken,
}

impl Silent {
    /// From its acceptance on, so that whoever looks for room finds it.
    pub(super) fn enter(&self) -> Silence {
        let dismissed = CancellationToken::new();
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, dismissed.clone());
        Silence { all: self.clone(), number, dismissed }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting().connections.is_empty()
    }

    /// Ends as many of the oldest ones, or all there are; how many. Their room is free a moment later.
    pub(super) fn dismiss(&self, most: usize) -> usize {
        let mut waiting = self.waiting();
        let oldest = (0..most).map_while(|_| waiting.connections.pop_first());
        oldest.map(|(_, dismissed)| dismissed.cancel()).count()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Silence {
    /// Back once its room is needed.
    pub(super) async fn dismissed(&self) {
        self.dismissed.cancelled().await;
    }

    /// It has spoken, and is not dismissed any more.
    pub(super) fn end(&self) {
        self.all.waiting().connections.remove(&self.number);
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::Silent;

    #[test]
    fn the_oldest_silent_one_makes_room() {
        let silent = Silent::default();
        let [first, second, third, fourth] = [(); 4].map(|()| silent.enter());
        second.end();
        drop(third);
        assert_eq!(silent.dismiss(1), 1);
        assert!(first.dismissed.is_cancelled() && !fourth.dismissed.is_cancelled());
        assert!(!silent.is_empty());
        assert_eq!(silent.dismiss(9), 1);
        assert!(fourth.dismissed.is_cancelled() && !second.dismissed.is_cancelled());
        assert!(silent.is_empty());
        assert_eq!(silent.dismiss(1), 0);
    }
}
