//! What is in the journal, as operators see it.

use std::sync::Arc;
use std::time::SystemTime;

use super::disk::Disk;
use super::progress::Account;

/// The journal as `status` shows it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The log identity: sequences are this log's. `None`: not known now.
    pub identity: Option<String>,
    /// The oldest sequence kept; one more than the last when none is.
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Of live events, uncompressed.
    pub bytes: u64,
    /// When the oldest events that are kept were written; up to a second behind.
    pub oldest: Option<SystemTime>,
    /// Why events cannot be stored now; `None` while they can, and of a cluster.
    pub hindered: Option<String>,
    /// Delivered events yield above this many bytes, younger than `journal.retention` too, since the disk was full.
    pub replay_limit: Option<u64>,
    /// Up to a second old; `None` of a journal that has no disk here.
    pub disk: Option<Disk>,
    /// Of the write-ahead log, up to a second old; `None` without one.
    pub log_bytes: Option<u64>,
    pub dedup_ids: usize,
    pub dead_letters: DeadLettersStatus,
    pub quarantine: QuarantineStatus,
    pub sinks: Vec<SinkStatus>,
    /// Of an embedded journal there is none.
    pub cluster: Option<ClusterStatus>,
}

/// The cluster that keeps the events, as its server that this process is connected to, or was last, tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    pub server: String,
    pub version: String,
    /// `None`: a server without a cluster.
    pub cluster: Option<String>,
    /// Bytes that it takes at once.
    pub max_payload: usize,
    /// Whether that server has events on its disk before it acknowledges them; `None`: unknown, for want of
    /// `journal.nats.monitor_url`.
    pub sync_always: Option<bool>,
}

/// The dead letters of all sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeadLettersStatus {
    pub count: u64,
    /// Of these, those that are pending again.
    pub retrying: u64,
    pub bytes: u64,
    /// When they are reached, lanes wait.
    pub max_bytes: u64,
    /// The largest id ever given.
    pub newest: u64,
}

/// The quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuarantineStatus {
    pub count: u64,
    pub bytes: u64,
    /// Beyond these the oldest go.
    pub max_bytes: u64,
    /// The largest id ever given.
    pub newest: u64,
}

/// A sink as the journal knows it.
#[derive(Debug, Clone)]
pub struct SinkStatus {
    pub name: Arc<str>,
    pub account: Account,
    pub enabled: bool,
    pub required: bool,
    /// Not in the settings any more.
    pub gone: bool,
    /// Why some of its events cannot be read from the journal now.
    pub hindered: Option<String>,
}
