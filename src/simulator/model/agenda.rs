//! What happens when, on the model's own clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::{agent, queue};

/// Whose turn it is, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// A new issue.
    Arrival,
    Issue(usize),
    Agent(usize, agent::Act),
    Queue(usize, queue::Act),
}

/// Tells the entries of an agenda apart. Later entries have higher tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Ticket(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Since the start.
    pub(super) at: Duration,
    pub(super) ticket: Ticket,
    pub(super) turn: Turn,
}

/// Entries by time, those of the same time in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    now: Duration,
    made: u64,
    entries: BinaryHeap<Reverse<Entry>>,
}

impl Agenda {
    /// The time of the entry taken last.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn after(&mut self, delay: Duration, turn: Turn) -> Ticket {
        let entry = Entry { at: self.now.saturating_add(delay), ticket: self.ticket(), turn };
        self.entries.push(Reverse(entry));
        entry.ticket
    }

    /// A ticket that no entry has.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.made += 1;
        Ticket(self.made)
    }

    pub(super) fn take(&mut self) -> Option<Entry> {
        let Reverse(entry) = self.entries.pop()?;
        self.now = entry.at;
        Some(entry)
    }
}
