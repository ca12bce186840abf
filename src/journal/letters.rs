//! Dead letters, as operators and lanes see them.

use std::time::SystemTime;

use super::event::Event;

/// Dead letters or bodies in one list, at most.
pub const MAX_LIST: usize = 1000;

/// An event that a sink did not take.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its number: larger is later, never used twice.
    pub id: u64,
    pub sink: String,
    pub sequence: u64,
    /// What the last attempt said; no value of the event.
    pub reason: String,
    /// Those of its retries included.
    pub attempts: u32,
    /// When it became a dead letter, the last time.
    pub at: SystemTime,
    pub state: LetterState,
    pub event: Event,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    Dead,
    /// An operator has asked for it: pending again, until its sink takes it or it is dead again.
    Retrying,
}

/// Which dead letters to list: by id, oldest first.
#[derive(Debug, Clone, Default)]
pub struct LettersOf {
    /// Of one sink; `None`: of all.
    pub sink: Option<String>,
    /// Those with larger ids: 0, or the last one of the list before.
    pub after: u64,
    /// At most [`MAX_LIST`].
    pub limit: usize,
}

/// Which dead letters to retry or discard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Ids(Vec<u64>),
    Sink(String),
    All,
}
