//! What is called how in the cluster.

use xxhash_rust::xxh3::xxh3_64;

/// Where the records of sinks begin.
pub(crate) const SINKS: &str = "sink.";

/// Of a sink's record.
pub(crate) fn sink(name: &str) -> String {
    format!("{SINKS}{name}")
}

/// Of a place's record.
pub(crate) fn place(sink: &str, at: u16) -> String {
    format!("place.{sink}.{at}")
}

/// The names of streams, subjects and consumers.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    events: String,
    state: String,
    dead: String,
    quarantine: String,
}

impl Names {
    pub(crate) fn new(stream: &str) -> Self {
        Self {
            events: stream.to_owned(),
            state: format!("{stream}_STATE"),
            dead: format!("{stream}_DEAD_LETTERS"),
            quarantine: format!("{stream}_QUARANTINE"),
        }
    }

    /// The stream of events.
    pub(crate) fn events(&self) -> &str {
        &self.events
    }

    /// The stream of records.
    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// The stream of dead letters.
    pub(crate) fn dead(&self) -> &str {
        &self.dead
    }

    pub(crate) fn quarantine(&self) -> &str {
        &self.quarantine
    }

    /// Of the events of a partition.
    pub(crate) fn subject(&self, partition: u16) -> String {
        format!("{}.p.{partition}", self.events)
    }

    /// Of all events.
    pub(crate) fn subjects(&self) -> String {
        format!("{}.p.*", self.events)
    }

    pub(crate) fn record(&self, key: &str) -> String {
        format!("{}.{key}", self.state)
    }

    /// Of the dead letter of an event at a sink. The id is in it, for a sequence is another event's in another stream: one
    /// that a letter was moved from, or that stood here before.
    pub(crate) fn letter(&self, sink: &str, sequence: u64, event_id: &str) -> String {
        format!("{}.{sink}.{sequence}-{:016x}", self.dead, xxh3_64(event_id.as_bytes()))
    }

    /// Of all dead letters, or those of one sink.
    pub(crate) fn letters(&self, sink: Option<&str>) -> String {
        match sink {
            Some(sink) => format!("{}.{sink}.*", self.dead),
            None => format!("{}.*.*", self.dead),
        }
    }

    /// Of a quarantined body, by its digest.
    pub(crate) fn body(&self, digest: u64) -> String {
        format!("{}.{digest:016x}", self.quarantine)
    }

    /// Of all quarantined bodies.
    pub(crate) fn bodies(&self) -> String {
        format!("{}.*", self.quarantine)
    }

    pub(crate) fn consumer(&self, sink: &str, partition: u16) -> String {
        format!("{sink}-{partition}")
    }
}
