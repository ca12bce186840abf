//! The newest committed groups in RAM, for lanes that keep up; lanes that do not read from the store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::journal::event::Group;

/// Bytes of groups held; the newest group stays whatever its size.
const BYTES: u64 = 32 << 20;

#[derive(Debug)]
pub(crate) struct Ring {
    groups: Mutex<Groups>,
    /// The newest durable sequence; lanes wait on it.
    tail: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Groups {
    newest_last: VecDeque<Arc<Group>>,
    bytes: u64,
}

/// Where to read a sequence.
#[derive(Debug)]
pub(crate) enum Found {
    Here(Arc<Group>),
    /// Older than everything held.
    InStore,
    /// Not written yet.
    Nowhere,
}

impl Ring {
    /// A ring for a journal that ends at `tail`.
    pub(crate) fn new(tail: u64) -> Self {
        Self { groups: Mutex::default(), tail: watch::Sender::new(tail) }
    }

    pub(crate) fn tail(&self) -> watch::Receiver<u64> {
        self.tail.subscribe()
    }

    /// Takes in a group that is durable now, and wakes the lanes.
    pub(crate) fn push(&self, group: Arc<Group>) {
        let last = group.last;
        {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            groups.bytes += group.size();
            groups.newest_last.push_back(group);
            while groups.bytes > BYTES && groups.newest_last.len() > 1 {
                let oldest = groups.newest_last.pop_front();
                groups.bytes -= oldest.map_or(0, |group| group.size());
            }
        }
        self.tail.send_replace(last);
    }

    /// The oldest sequence held.
    pub(crate) fn first(&self) -> Option<u64> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.newest_last.front().map(|group| group.first)
    }

    /// The group that holds `sequence`, or else the next one after it.
    pub(crate) fn find(&self, sequence: u64) -> Found {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = &groups.newest_last;
        if sequence > *self.tail.borrow() {
            return Found::Nowhere;
        }
        match groups.front() {
            Some(oldest) if oldest.first <= sequence => {
                let at = groups.partition_point(|group| group.last < sequence);
                groups.get(at).map_or(Found::Nowhere, |group| Found::Here(Arc::clone(group)))
            }
            _ => Found::InStore,
        }
    }
}
