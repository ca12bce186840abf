//! What happens when, on the model's own clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Whose turn it is, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// A new issue.
    Arrival,
    Issue(usize),
    Agent(usize, AgentAct),
    Queue(usize, QueueAct),
}

/// What an agent does or tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AgentAct {
    /// The first of those by which an agent logs in.
    Introduce,
    Capacity,
    Membership,
    /// Goes over to the next status.
    Turn,
    Previous,
    Status,
    Load,
    Utilization,
}

/// What a queue tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum QueueAct {
    Info,
    Hours,
    Holidays,
    Capping,
    /// Whether a mitigation closes the queue.
    Mitigation(bool),
    Size,
    Estimate,
    Availability,
    /// One of the settings, which may have changed.
    Upkeep,
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
