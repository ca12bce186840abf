//! Brings the sinks in line with a log that has changed: takes back what their places say of sequences that are given again,
//! lets the consumers begin there, and counts what no sink can have any more.
//!
//! How many events of a sink are settled and how many are left to it, as far as some sequence: the sum of both does not
//! change while lanes are at work. So each partition can be counted by itself, and what is missing from the sum is lost.

use std::time::Duration;

use tokio::time::sleep;

use super::cluster::consumer;
use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::names;
use super::cluster::names::SINKS;
use super::cluster::records::{PutError, Records};
use super::keeper::Keeper;
use super::log::Log;
use super::share::Share;
use super::sink;
use super::sink::{Sink, signed};

/// Replicas that lag behind are waited for so often…
const TRIES: u32 = 20;
/// …each time so long.
const PAUSE: Duration = Duration::from_millis(100);
/// So often the events of a partition are counted while others come to it.
const COUNTS: u32 = 200;

pub(crate) struct Accounts<'a> {
    pub(crate) link: &'a Link,
    pub(crate) records: &'a Records,
    pub(crate) keeper: &'a Keeper,
    pub(crate) instance: &'a str,
    pub(crate) partitions: u16,
}

impl Accounts<'_> {
    /// Whether a sink's record is of an earlier epoch, as far as is known.
    pub(crate) fn are_behind(&self) -> bool {
        let epoch = self.keeper.current().epoch;
        let known = self.records.known(SINKS);
        known.iter().any(|(_, record)| Sink::read(&record.value).is_ok_and(|sink| sink.log != epoch))
    }

    /// Brings all sinks in line. May be done again and again, and by several receivers.
    ///
    /// # Errors
    /// [`NatsError`]; what was done stays, and the rest is to be done again.
    pub(crate) async fn reconcile(&self) -> Result<(), NatsError> {
        let log = self.keeper.current();
        let mut most = 0;
        let mut result = Ok(());
        for key in self.records.keys(SINKS).await? {
            let name = key.trim_start_matches(SINKS);
            match self.reconcile_sink(name, &log).await {
                Ok(0) => {}
                Ok(lost) => {
                    tracing::error!(
                        sink = name,
                        lost,
                        epoch = log.epoch,
                        "events that the sink had not had are gone from the stream"
                    );
                    most = most.max(lost);
                }
                Err(error) => result = Err(error),
            }
        }
        // What one sink has lost, another may have had, or lost as well.
        self.keeper.lost(most).await?;
        result
    }

    /// How many events the sink has lost.
    async fn reconcile_sink(&self, name: &str, log: &Log) -> Result<u64, NatsError> {
        let Some((found, revision)) = sink::read(self.records, name).await? else { return Ok(0) };
        if found.log == log.epoch {
            return Ok(0);
        }
        let is_cut = log.kept(found.log) != u64::MAX;
        let mut shares = Vec::new();
        for at in 0..self.partitions {
            let share = self.take_back(name, log, at).await?;
            if is_cut && consumer::info(self.link, name, at).await?.is_some() {
                consumer::make_again(self.link, name, at, share.cursor() + 1).await?;
            }
            shares.push((at, share));
        }
        // After that, so that nothing beyond is settled in them.
        let last = self.caught_up().await?;
        // Where only one thing has happened, what it took away can be told from what it gives again.
        let change = log.one_change(found.log);
        let (mut sum, mut had) = (0, Some(0));
        for (at, share) in shares {
            sum += share.settled() + self.left(at, (share.cursor(), share.ahead()), last).await?;
            let before = match share.before_change(found.log) {
                None if share.settled() == 0 => Some((0, found.first.saturating_sub(1), &[][..])),
                before => before.map(|was| (was.settled, was.cursor, &was.ahead[..])),
            };
            had = match (had, before, change) {
                (Some(had), Some((settled, cursor, ahead)), Some((_, same))) => {
                    Some(had + settled + self.left(at, (cursor, ahead), same.min(last)).await?)
                }
                _ => None,
            };
        }
        let lost = match (had, change) {
            (Some(had), Some((end, _))) => signed(end.unwrap_or(last)) + found.carried() - signed(had),
            _ => signed(last) + found.carried() + signed(log.replaced(found.log)) - signed(sum),
        };
        let lost = u64::try_from(lost).unwrap_or(0);
        let sink = Sink {
            first: found.first(log),
            log: log.epoch,
            carried: Some(signed(sum) - signed(last)),
            lost: found.lost + lost,
            ..found
        };
        let json = sink.write().map_err(|error| NatsError::Unavailable(error.to_string()))?;
        match self.records.put(&names::sink(name), revision, json.into()).await {
            Ok(_) => Ok(lost),
            Err(error) => Err(NatsError::Unavailable(error.to_string())),
        }
    }

    /// Makes the record of a sink again that is lost. The sink goes on from its places; in a partition where there is none,
    /// from the oldest event that is kept.
    pub(crate) async fn remake(&self, name: &str, required: bool) -> Result<(), NatsError> {
        let log = self.keeper.current();
        let first = self.link.info(self.link.names().events()).await?.state.first_sequence.max(1);
        let mut sink = Sink::new(first, required, log.epoch);
        let mut shares = Vec::new();
        for at in 0..self.partitions {
            let (share, ..) = sink::place_of(self.records, &log, (name, &sink), at).await?;
            shares.push((at, share));
        }
        let last = self.caught_up().await?;
        let mut sum = 0;
        for (at, share) in &shares {
            sum += share.settled() + self.left(*at, (share.cursor(), share.ahead()), last).await?;
        }
        sink.carried = Some(signed(sum) - signed(last));
        let json = sink.write().map_err(|error| NatsError::Unavailable(error.to_string()))?;
        match self.records.put(&names::sink(name), 0, json.into()).await {
            Ok(_) => tracing::error!(
                sink = name,
                state = self.records.stream(),
                "the record of the sink was lost, and is made again: it goes on from where it stood in each partition, or \
                 from the oldest event that is kept where that is lost too"
            ),
            // Another receiver was faster.
            Err(PutError::Stale) => return Ok(()),
            Err(PutError::Unavailable(reason)) => return Err(NatsError::Unavailable(reason)),
        }
        for (at, share) in shares {
            // Those there are know how far it had come.
            consumer::make_again(self.link, name, at, share.cursor() + 1).await?;
        }
        Ok(())
    }

    /// The sinks whose record is lost. What is known here does not show it: of a message that is purged, nobody hears.
    pub(crate) async fn lost_sinks(&self) -> Result<Vec<String>, NatsError> {
        let (log, there) = (self.keeper.current(), self.records.keys(SINKS).await?);
        let mut lost = Vec::new();
        for name in log.names().filter(|name| !there.contains(&names::sink(name))) {
            // First the one, then the other, for whoever drops a sink takes its name out before.
            if sink::read(self.records, name).await?.is_none() && self.keeper.has_sink(name).await? {
                lost.push(name.to_owned());
            }
        }
        Ok(lost)
    }

    /// The place in this log; written, so that whoever owned it before lets go.
    async fn take_back(&self, name: &str, log: &Log, at: u16) -> Result<Share, NatsError> {
        loop {
            let (mut share, revision, is_behind) = sink::place(self.records, log, name, at).await?;
            if revision == 0 || !is_behind {
                return Ok(share);
            }
            share.hand_over(self.instance);
            let json = share.write().map_err(|error| NatsError::Unavailable(error.to_string()))?;
            match self.records.put(&names::place(name, at), revision, json.into()).await {
                Ok(_) => return Ok(share),
                Err(PutError::Stale) => {}
                Err(PutError::Unavailable(reason)) => return Err(NatsError::Unavailable(reason)),
            }
        }
    }

    /// The events of a partition up to `last` that a place leaves to be settled.
    async fn left(&self, at: u16, (cursor, ahead): (u64, &[(u64, u64)]), last: u64) -> Result<u64, NatsError> {
        let mut left = self.between(at, cursor + 1, last).await?;
        for &(low, high) in ahead {
            left = left.saturating_sub(self.between(at, low, high.min(last)).await?);
        }
        Ok(left)
    }

    /// The events of a partition in these sequences. Only those from a sequence on can be asked for, and others come
    /// meanwhile: so it is looked how many those are at most, until only one answer is left.
    async fn between(&self, at: u16, first: u64, last: u64) -> Result<u64, NatsError> {
        if first > last {
            return Ok(0);
        }
        let (events, subject) = (self.link.names().events(), self.link.names().subject(at));
        let (mut least, mut most) = (0, u64::MAX);
        let mut before = self.link.count(events, &subject).await?;
        for _ in 0..COUNTS {
            // Any replica answers, and knows what was counted before.
            self.caught_up().await?;
            let (all, later) = (self.from(at, first).await?, self.from(at, last + 1).await?);
            let after = self.link.count(events, &subject).await?;
            let (found, came) = (all.saturating_sub(later), after.saturating_sub(before));
            (least, most) = (least.max(found.saturating_sub(came)), most.min(found.saturating_add(came)));
            if least >= most {
                return Ok(most);
            }
            before = after;
        }
        Err(NatsError::Unavailable(format!("events come too fast to {subject} to be counted")))
    }

    async fn from(&self, at: u16, first: u64) -> Result<u64, NatsError> {
        let names = self.link.names();
        let found = self.link.read(names.events(), &names.subject(at), From::Sequence(first), 1, 1).await?;
        Ok(found.messages.len() as u64 + found.pending)
    }

    /// The stream's last sequence, once all replicas that answer reads have everything up to there.
    async fn caught_up(&self) -> Result<u64, NatsError> {
        let events = self.link.names().events();
        let last = self.link.info(events).await?.state.last_sequence;
        for _ in 0..TRIES {
            let info = self.link.info(events).await?;
            let replicas = info.cluster.map(|cluster| cluster.replicas).unwrap_or_default();
            let lag = |replica: &async_nats::jetstream::stream::PeerInfo| match replica.lag {
                None if !replica.current => u64::MAX,
                lag => lag.unwrap_or(0),
            };
            let behind = replicas.iter().filter(|replica| !replica.offline).map(lag).max().unwrap_or(0);
            if info.state.last_sequence.saturating_sub(behind) >= last {
                return Ok(last);
            }
            sleep(PAUSE).await;
        }
        Err(NatsError::Unavailable(format!("the replicas of {events} lag behind")))
    }
}
