//! What opening a journal found.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::identity::LogIdentity;

/// What recovery found, for the log, `status` and the metrics.
#[derive(Debug, Default)]
pub struct Report {
    pub events: u64,
    /// Acknowledged events that damage took, found at this start; a dead letter counts as one.
    pub lost_events: u64,
    /// What was damaged, how, and where it was set aside.
    pub damage: Option<Damage>,
    /// Another log stands here than events were acknowledged in last.
    pub replaced: Option<Replaced>,
    pub warnings: Vec<String>,
    pub(crate) places_lost: bool,
}

/// The log that events were acknowledged in last is not the one that was found.
#[derive(Debug)]
pub struct Replaced {
    /// By the mark.
    pub expected: LogIdentity,
    /// `None`: it is of an older program, which knew no identities.
    pub found: Option<LogIdentity>,
    /// What the expected one held last, delivered or not: the first and the last sequence. The first is beyond the last
    /// when it held nothing.
    pub lost: (u64, u64),
}

/// What was found to be wrong at start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Damage {
    pub reason: String,
    /// The folder that holds the damaged files as they were found.
    pub set_aside: PathBuf,
    /// Ranges of sequences that are gone.
    pub lost: Vec<(u64, u64)>,
    /// Dead letters that are gone: their events are lost to their sinks.
    #[serde(default)]
    pub lost_letters: u64,
    /// What else is gone, in words.
    pub(crate) also: Vec<String>,
}
