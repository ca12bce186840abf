//! What the fleet knows of a sink: the record `sink.<name>`, and where it stands in its partitions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cluster::error::NatsError;
use super::cluster::names;
use super::cluster::records::{Record, Records};
use super::log::Log;
use super::share::{Share, is_zero};
use crate::journal::progress::Account;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sink {
    /// The first sequence it is to have.
    pub(crate) first: u64,
    pub(crate) required: bool,
    /// The epoch of the [`Log`] whose sequence that is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) log: u64,
    /// How many events it was to have, less the log's last sequence. `None`: those from its first sequence on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) carried: Option<i64>,
    /// Those that went from the log before it had them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) lost: u64,
    /// What a newer receiver wrote.
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, Value>,
}

impl Sink {
    pub(crate) fn new(first: u64, required: bool, log: u64) -> Self {
        Self { first, required, log, carried: None, lost: 0, more: BTreeMap::new() }
    }

    pub(crate) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The first sequence of this log that it is to have.
    pub(crate) fn first(&self, log: &Log) -> u64 {
        if self.log == log.epoch { self.first } else { self.first.min(log.kept(self.log).saturating_add(1)) }
    }

    /// How many events it was to have, less the log's last sequence.
    pub(crate) fn carried(&self) -> i64 {
        self.carried.unwrap_or_else(|| 1 - signed(self.first))
    }

    /// What became of its events, when this log ends at `last`.
    pub(crate) fn account(&self, shares: &[Share], log: &Log, last: u64) -> Account {
        let sum = |count: fn(&Share) -> u64| shares.iter().map(count).sum();
        let (delivered, filtered): (u64, u64) = (sum(Share::delivered), sum(Share::filtered));
        let (dead_lettered, evicted): (u64, u64) = (sum(Share::dead_lettered), sum(Share::evicted));
        let settled = delivered + filtered + dead_lettered + evicted;
        // Until it is known what is lost, it is pending.
        let replaced = if self.log == log.epoch { 0 } else { signed(log.replaced(self.log)) };
        // Records may be newer than `last`.
        let stored = u64::try_from(signed(last) + self.carried() + replaced).unwrap_or(0).max(settled);
        let pending = stored - settled;
        let furthest = shares.iter().map(Share::cursor).max().unwrap_or(0);
        let nearest = shares.iter().map(Share::cursor).min().unwrap_or(0);
        let cursor = if pending == 0 { last.max(furthest) } else { nearest.max(self.first.saturating_sub(1)) };
        Account { stored, delivered, filtered, dead_lettered, evicted, lost: self.lost, pending, cursor }
    }
}

/// Sequences are far below that.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The sink's record as the stream's leader has it, and its revision.
///
/// # Errors
/// [`NatsError`]; [`NatsError::Unfit`] when it is none.
pub(crate) async fn read(records: &Records, name: &str) -> Result<Option<(Sink, u64)>, NatsError> {
    let key = names::sink(name);
    let Some(record) = records.get(&key).await? else { return Ok(None) };
    let sink = Sink::read(&record.value).map_err(|error| {
        NatsError::Unfit(vec![format!(
            "the record {key} of stream {} cannot be read ({error}): use the version of asapp-receiver that wrote it",
            records.stream()
        )])
    })?;
    Ok(Some((sink, record.revision)))
}

/// The records of all sinks, by name, as the stream's leader has them.
///
/// # Errors
/// [`NatsError`].
pub(crate) async fn all(records: &Records) -> Result<BTreeMap<String, Record>, NatsError> {
    let mut sinks = BTreeMap::new();
    for key in records.keys(names::SINKS).await? {
        // Of one that was dropped, only a mark is left.
        if let Some(record) = records.get(&key).await? {
            sinks.insert(key.trim_start_matches(names::SINKS).to_owned(), record);
        }
    }
    Ok(sinks)
}

/// Where a sink stands in a partition of this log, as the stream's leader has it; the record's revision; and whether the
/// record is of another epoch.
///
/// # Errors
/// [`NatsError`]; also when there is no such sink any more.
pub(crate) async fn place(records: &Records, log: &Log, name: &str, at: u16) -> Result<(Share, u64, bool), NatsError> {
    let gone = || {
        NatsError::Unavailable(format!(
            "the sink {name} has no record: if an operator has dropped it, only a restart makes it again"
        ))
    };
    let (sink, _) = read(records, name).await?.ok_or_else(gone)?;
    place_of(records, log, (name, &sink), at).await
}

/// The same, when the sink's record is known, or is about to be made.
///
/// # Errors
/// [`NatsError`].
pub(crate) async fn place_of(
    records: &Records,
    log: &Log,
    (name, sink): (&str, &Sink),
    at: u16,
) -> Result<(Share, u64, bool), NatsError> {
    let key = names::place(name, at);
    let Some(record) = records.get(&key).await? else {
        return Ok((Share::before(sink.first(log), log.epoch), 0, false));
    };
    let mut share = Share::read(&record.value).map_err(|error| {
        let stream = records.stream();
        NatsError::Unfit(vec![format!(
            "the record {key} of stream {stream} cannot be read ({error}): use the version of asapp-receiver that wrote it, \
             or, if nobody knows it, purge it (`nats stream purge {stream} --subject={stream}.{key}`): what is kept of that \
             partition is delivered again then"
        )])
    })?;
    let is_behind = share.follow(log);
    Ok((share, record.revision, is_behind))
}

/// What is known of a sink's place in a partition of this log.
pub(crate) fn known_place(records: &Records, log: &Log, name: &str, sink: &Sink, at: u16) -> Share {
    let known = records.last_known(&names::place(name, at));
    let share = known.and_then(|record| Share::read(&record.value).ok());
    let mut share = share.unwrap_or_else(|| Share::before(sink.first(log), log.epoch));
    share.follow(log);
    share
}
