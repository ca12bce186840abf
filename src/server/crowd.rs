//! A port that is never full: when all its connections are in use, the one that has been idle longest makes room for the
//! next. Anyone can open connections to the operators' port, and a probe must get its answer all the same.
//!
//! A request that may take long (one with a valid token) takes a [`Seat`], which protects its connection from being
//! ended. There are fewer seats than connections; the rest stay for newcomers, and so for probes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::seat::Seat;

/// How long a newcomer has for its first request before it can make room for others: its task must have looked at what it
/// sent. No longer, or a flood would fill the port faster than it makes room.
const BEGINNING: Duration = Duration::from_millis(20);

/// The open connections of a port.
#[derive(Debug)]
pub(super) struct Crowd {
    seats: Arc<Semaphore>,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    open: BTreeMap<u64, Guest>,
}

#[derive(Debug, Clone)]
struct Guest {
    activity: Arc<Activity>,
    seated: Arc<AtomicU32>,
    end: CancellationToken,
}

/// One open connection, until dropped.
#[derive(Debug)]
pub(super) struct Visit {
    crowd: Arc<Crowd>,
    id: u64,
    guest: Guest,
}

impl Crowd {
    pub(super) fn new(seats: usize) -> Arc<Self> {
        Arc::new(Self { seats: Arc::new(Semaphore::new(seats)), guests: Mutex::default() })
    }

    /// A connection is open; it has to begin its first request within this time.
    pub(super) fn enter(self: &Arc<Self>, first_within: Duration) -> Visit {
        let guest = Guest {
            activity: Activity::new(false, first_within),
            seated: Arc::default(),
            end: CancellationToken::new(),
        };
        let id = {
            let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
            let id = guests.next;
            guests.next += 1;
            guests.open.insert(id, guest.clone());
            id
        };
        Visit { crowd: Arc::clone(self), id, guest }
    }

    /// Ends the connection that has been without a request longest; if all have one, that which has waited longest among
    /// those without a seat. With it go the next of the longest idle, up to `most` and some, as long as they have never sent
    /// a request: in a flood of them the accepting task would else wait for one after the other. Nobody goes who has just
    /// come. How many went.
    ///
    /// Their number is small: they are sorted anew each time.
    pub(super) fn make_room(&self, most: usize, now: Instant) -> usize {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let open = guests.open.values().filter(|guest| !guest.end.is_cancelled() && guest.seated.load(Relaxed) == 0);
        let mut open: Vec<&Guest> = open.collect();
        // Each is looked at once: what changes while it is sorted is no order, and a sort that notices panics.
        open.sort_by_cached_key(|guest| (guest.activity.has_requests(), guest.activity.idle_since()));
        let most = most.max(open.len() / 8);
        let has_just_come = |guest: &Guest| {
            !guest.activity.has_begun() && now.saturating_duration_since(guest.activity.idle_since()) < BEGINNING
        };
        let going = open.iter().take(most).take_while(|guest| !has_just_come(guest)).enumerate();
        let going = going.filter(|(at, guest)| *at == 0 || !guest.activity.has_begun());
        going.map(|(_, guest)| guest.end.cancel()).count()
    }
}

impl Visit {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.guest.activity
    }

    /// For one request.
    pub(super) fn seat(&self) -> Seat {
        Seat::new(Arc::clone(&self.crowd.seats), Arc::clone(&self.guest.seated))
    }

    /// Back when the connection has to make room.
    pub(super) async fn ended(&self) {
        self.guest.end.cancelled().await;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.crowd.guests.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_just_come_makes_no_room() {
        let crowd = Crowd::new(1);
        let came = Instant::now();
        let first = crowd.enter(Duration::from_secs(1));
        assert_eq!(crowd.make_room(1, came), 0);
        assert!(!first.guest.end.is_cancelled());
        let later = Instant::now() + BEGINNING;
        assert_eq!(crowd.make_room(1, later), 1);
        assert!(first.guest.end.is_cancelled());
    }
}
