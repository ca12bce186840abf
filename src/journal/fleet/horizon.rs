//! Up to where the stream of events is purged. Nothing in the cluster protects what a sink has not had: this does.

use std::time::{Duration, SystemTime};

use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::names;
use super::cluster::records::Records;
use super::log::Log;
use super::share::Share;
use super::sink;
use super::sink::Sink;
use async_nats::jetstream::stream;

/// The stream as it was seen before anything else was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// None: 0.
    pub(crate) max_bytes: u64,
    /// An event was refused for want of room.
    pub(crate) full: bool,
}

/// The first sequences that are younger than events are kept, and than ids are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Young {
    kept: u64,
    remembered: u64,
}

pub(crate) struct Horizon<'a> {
    pub(crate) link: &'a Link,
    pub(crate) records: &'a Records,
    pub(crate) log: &'a Log,
    pub(crate) partitions: u16,
    pub(crate) retention: Duration,
    pub(crate) window: Duration,
}

impl Horizon<'_> {
    /// The sequence below which everything may go; none if nothing may, or as long as something is not known.
    pub(crate) async fn find(&self, extent: Extent) -> Result<Option<u64>, NatsError> {
        if extent.messages == 0 {
            return Ok(None);
        }
        let now = SystemTime::now();
        let remembered = self.first_since(now, self.window, extent).await?;
        let kept = if self.retention > self.window {
            self.first_since(now, self.retention, extent).await?
        } else {
            remembered
        };
        let wanted = extent.wanted(Young { kept, remembered });
        if wanted <= extent.first {
            return Ok(None);
        }
        let settled = self.settled_below(wanted, extent).await?;
        Ok(settled.filter(|settled| *settled > extent.first))
    }

    /// The first sequence that was stored at most `age` ago. Any replica answers, and one that is behind tells of too late
    /// a one; so what would go first is looked at where it is known.
    async fn first_since(&self, now: SystemTime, age: Duration, extent: Extent) -> Result<u64, NatsError> {
        let Some(since) = now.checked_sub(age) else { return Ok(extent.first) };
        let names = self.link.names();
        let found = self.link.read(names.events(), &names.subjects(), From::Time(since), 1, 1).await?;
        let first = found.messages.first().map_or(extent.last + 1, |stored| stored.sequence.min(extent.last + 1));
        if first <= extent.first {
            return Ok(extent.first);
        }
        let oldest_kept = self.link.get(names.events(), first - 1).await?;
        Ok(if oldest_kept.is_none_or(|stored| stored.time <= since) { first } else { extent.first })
    }

    /// The least of `wanted` and what a sink has yet to settle.
    async fn settled_below(&self, wanted: u64, extent: Extent) -> Result<Option<u64>, NatsError> {
        // From the leader: what is known here may be of before one was made.
        let sinks = sink::all(self.records).await?;
        // One that has no record, and should have one, is to have what is kept.
        let is_lost = self.log.names().any(|name| !sinks.contains_key(name));
        if sinks.is_empty() || is_lost {
            return Ok(None);
        }
        let mut settled = wanted;
        for (name, record) in &sinks {
            let Ok(sink) = Sink::read(&record.value) else { return Ok(unreadable(&names::sink(name))) };
            if sink.log != self.log.epoch {
                // What a change of the log has cost it is counted by what is in the stream.
                return Ok(None);
            }
            for partition in 0..self.partitions {
                let key = names::place(name, partition);
                let place = match self.records.last_known(&key) {
                    // It may be of a sink of the same name that was dropped.
                    Some(place) if place.revision < record.revision => self.records.get(&key).await?,
                    known => known,
                };
                let cursor = match place.map(|place| Share::read(&place.value)) {
                    None => sink.first(self.log).saturating_sub(1),
                    Some(Ok(mut share)) => {
                        // One of another log says nothing of the events of this one.
                        share.follow(self.log);
                        share.cursor()
                    }
                    Some(Err(_)) => return Ok(unreadable(&key)),
                };
                // What is known may be old; a cursor only grows.
                if cursor + 1 < settled {
                    let next = self.next_after(cursor, partition).await?;
                    settled = next.map_or(settled, |next| next.min(settled));
                }
                if settled <= extent.first {
                    return Ok(None);
                }
            }
        }
        // One that was made since must not lose anything.
        Ok((sink::all(self.records).await? == sinks).then_some(settled))
    }

    /// The first event of a partition after this sequence, from the stream's leader: a replica that is behind would not
    /// know it.
    async fn next_after(&self, cursor: u64, partition: u16) -> Result<Option<u64>, NatsError> {
        let names = self.link.names();
        let found = self.link.get_next(names.events(), &names.subject(partition), cursor + 1).await?;
        Ok(found.map(|stored| stored.sequence))
    }
}

fn unreadable(key: &str) -> Option<u64> {
    tracing::error!(key, "a record cannot be read, so nothing is purged: was it written by a newer version?");
    None
}

impl Extent {
    pub(crate) fn of(config: &stream::Config, state: &stream::State, full: bool) -> Self {
        Self {
            first: state.first_sequence,
            last: state.last_sequence,
            messages: state.messages,
            bytes: state.bytes,
            max_bytes: u64::try_from(config.max_bytes).unwrap_or(0),
            full,
        }
    }

    /// Below what sequence events should go that all sinks have settled: those that are old enough; when room is short, as
    /// many as it takes, but what ids are remembered by only once events are refused.
    fn wanted(self, young: Young) -> u64 {
        let aged = young.kept.min(young.remembered);
        if !self.full && !self.is_nearly_full() {
            return aged;
        }
        let limit = if self.full { self.last + 1 } else { young.remembered };
        aged.max(limit.min(self.first + self.surplus()))
    }

    /// Nine tenths of what it may have are used.
    pub(crate) fn is_nearly_full(self) -> bool {
        self.max_bytes > 0 && u128::from(self.bytes) * 10 >= u128::from(self.max_bytes) * 9
    }

    /// About how many events are beyond eight tenths; a tenth at least, for the servers' disks may be full before that.
    fn surplus(self) -> u64 {
        let over = match self.max_bytes {
            0 => 0,
            max => (u128::from(self.bytes)).saturating_sub(u128::from(max) * 8 / 10),
        };
        let events = u128::from(self.messages) * over / u128::from(self.bytes.max(1));
        u64::try_from(events).unwrap_or(u64::MAX).max(self.messages / 10).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Extent = Extent { first: 101, last: 200, messages: 100, bytes: 1000, max_bytes: 2000, full: false };

    #[test]
    fn with_room_only_age_counts() {
        let wanted = |kept, remembered| STREAM.wanted(Young { kept, remembered });
        assert_eq!(wanted(150, 180), 150);
        assert_eq!(wanted(180, 150), 150);
        assert_eq!(wanted(101, 201), 101);
        assert_eq!(Extent { max_bytes: 0, ..STREAM }.wanted(Young { kept: 150, remembered: 180 }), 150);
    }

    #[test]
    fn short_of_room_events_go_young_but_not_those_whose_ids_are_remembered() {
        let short = Extent { bytes: 1900, ..STREAM };
        // 300 bytes too many, of 19 each.
        assert_eq!(short.wanted(Young { kept: 101, remembered: 201 }), 101 + 15);
        assert_eq!(short.wanted(Young { kept: 101, remembered: 103 }), 103);
        assert_eq!(short.wanted(Young { kept: 150, remembered: 201 }), 150);
    }

    #[test]
    fn once_events_are_refused_any_age_goes() {
        let full = Extent { bytes: 2000, full: true, ..STREAM };
        assert_eq!(full.wanted(Young { kept: 101, remembered: 101 }), 101 + 20);
        // The disk is full, not the stream.
        let disk = Extent { full: true, ..STREAM };
        assert_eq!(disk.wanted(Young { kept: 101, remembered: 101 }), 101 + 10);
        let one = Extent { first: 200, messages: 1, ..disk };
        assert_eq!(one.wanted(Young { kept: 200, remembered: 200 }), 201);
    }
}
