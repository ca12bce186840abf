//! A seat protects a connection from having to make room for others ([`crowd`](super::crowd)).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where a request can take a seat; it is free again when the request's answer has been sent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Seat(Arc<Place>);

#[derive(Debug)]
struct Place {
    seats: Arc<Semaphore>,
    seated: Arc<AtomicU32>,
    taken: OnceLock<OwnedSemaphorePermit>,
}

impl Seat {
    /// One of `seats`; while it is taken, `seated` counts it.
    pub(super) fn new(seats: Arc<Semaphore>, seated: Arc<AtomicU32>) -> Self {
        Self(Arc::new(Place { seats, seated, taken: OnceLock::new() }))
    }

    /// Takes a seat, unless all are taken. Once taken, it stays so.
    #[must_use]
    pub fn take(&self) -> bool {
        let place = &*self.0;
        if place.taken.get().is_some() {
            return true;
        }
        let Ok(permit) = Arc::clone(&place.seats).try_acquire_owned() else { return false };
        if place.taken.set(permit).is_ok() {
            place.seated.fetch_add(1, Relaxed);
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.taken.get().is_some() {
            self.seated.fetch_sub(1, Relaxed);
        }
    }
}
