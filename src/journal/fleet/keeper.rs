//! Keeps the fleet's record of the [`Log`] and compares it with the stream: at the start, every second, at once when an
//! answer contradicts it, and event by event when the stream may have changed hands.
//!
//! Whichever receiver finds a difference first writes the next epoch, by compare-and-set; the others follow.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::stream::Info;
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::names::SINKS;
use super::cluster::records::{PutError, Records};
use super::log::{Checked, Log, Sight, nanoseconds};
use super::replicas;
use super::share::Share;
use super::sink;
use super::sink::Sink;

const KEY: &str = "log";
/// Of an event: how many sinks had a record when it was published. Shows records that are older than the log.
pub(crate) const SINKS_HEADER: &str = "Asapp-Receiver-Sinks";
/// Receivers that write the record at the same time.
const TRIES: u32 = 10;
/// So long after an older receiver was there, what was purged may have been purged by it.
const OLDER_RECEIVER: Duration = Duration::from_secs(15);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    records: Records,
    current: watch::Sender<Arc<Log>>,
    /// The last sequence that is known to have been given in this log.
    tail: watch::Sender<u64>,
    /// Something contradicts the log, or the stream may have changed hands.
    suspect: AtomicBool,
    suspected: Notify,
    /// When a receiver was seen that does not note what it purges.
    older_receiver: Mutex<Option<Instant>>,
}

impl Keeper {
    /// Makes the record where there is none, and compares it with the stream. `tail` is where the stream ends, then.
    ///
    /// # Errors
    /// When the cluster does not answer, or the record is none.
    pub(crate) async fn open(link: &Link, records: &Records, tail: &watch::Sender<u64>) -> Result<Self, NatsError> {
        let seen = Sight::of(&link.info(link.names().events()).await?);
        let inner = Inner {
            link: link.clone(),
            records: records.clone(),
            current: watch::Sender::new(Arc::new(Log::found(&seen, BTreeSet::new()))),
            tail: tail.clone(),
            suspect: AtomicBool::new(true),
            suspected: Notify::new(),
            older_receiver: Mutex::default(),
        };
        let keeper = Self(Arc::new(inner));
        if let Some((_, log)) = keeper.read().await? {
            keeper.0.current.send_replace(Arc::new(log));
        }
        keeper.compare(true).await?;
        keeper.look_for_older_records().await?;
        if !keeper.current().tells_names() {
            let names = sink::all(records).await?.into_keys().collect();
            keeper.change(|log| log.with_names(&names)).await?;
        }
        Ok(keeper)
    }

    /// How many events the fleet knows to be lost.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub(crate) async fn lost_before(records: &Records) -> Result<u64, NatsError> {
        let record = records.get(KEY).await?;
        Ok(record.and_then(|record| Log::read(&record.value).ok()).map_or(0, |log| log.lost))
    }

    /// The log as far as this receiver knows.
    pub(crate) fn current(&self) -> Arc<Log> {
        Arc::clone(&self.0.current.borrow())
    }

    /// Changes with the log.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Log>> {
        self.0.current.subscribe()
    }

    /// The last sequence that is known to have been given. An event that is published now gets a larger one.
    pub(crate) fn tail(&self) -> u64 {
        *self.0.tail.borrow()
    }

    /// An event was stored at `sequence`, when the last one that was known was at `floor`.
    pub(crate) fn stored(&self, sequence: u64, floor: u64) {
        if sequence <= floor {
            self.suspect();
        }
        // What another log gives is not its end.
        if !self.0.suspect.load(Ordering::Acquire) {
            self.raise(sequence);
        }
    }

    /// The log has to be compared, event by event.
    pub(crate) fn suspect(&self) {
        if !self.0.suspect.swap(true, Ordering::AcqRel) {
            self.0.suspected.notify_one();
        }
    }

    /// Waits until the log has to be compared.
    pub(crate) async fn suspected(&self) {
        self.0.suspected.notified().await;
    }

    /// Compares the log with the stream as it was seen, when `floor` had been its end before; thoroughly, where that does not
    /// agree. `marks`: this receiver is the one to note where the stream ends.
    ///
    /// # Errors
    /// When that could not be done. Nothing must be purged then.
    pub(crate) async fn look(&self, events: &Info, floor: u64, marks: bool) -> Result<(), NatsError> {
        self.follow();
        let (log, seen) = (self.current(), Sight::of(events));
        let is_suspect = self.0.suspect.load(Ordering::Acquire);
        let is_to_mark = marks && seen.last > log.newest_mark();
        if !is_suspect && log.agrees(&seen, floor) && !is_to_mark {
            self.raise(seen.last);
            return Ok(());
        }
        self.compare(marks).await
    }

    /// Whether an event that is not in the stream should be.
    ///
    /// # Errors
    /// When that is not known now.
    pub(crate) async fn misses(&self, sequence: u64) -> Result<bool, NatsError> {
        Ok(self.read().await?.is_none_or(|(_, log)| log.misses(sequence)))
    }

    /// Says that everything below is about to be purged, which every sink has settled.
    ///
    /// # Errors
    /// When it may not be purged.
    pub(crate) async fn purges(&self, below: u64) -> Result<(), NatsError> {
        self.change(|log| log.purged_below(below)).await
    }

    /// Says that a sink gets a record.
    ///
    /// # Errors
    /// When it may not get one.
    pub(crate) async fn registers(&self) -> Result<(), NatsError> {
        self.change(|log| Some(log.with_sink())).await
    }

    /// Says that a sink has a record.
    ///
    /// # Errors
    /// When it could not be said.
    pub(crate) async fn has_registered(&self, name: &str) -> Result<(), NatsError> {
        self.change(|log| log.with_name(name)).await
    }

    /// Says that a sink's record is about to go, for an operator drops it.
    ///
    /// # Errors
    /// When it could not be said: it has to stay.
    pub(crate) async fn drops(&self, name: &str) -> Result<(), NatsError> {
        self.change(|log| log.without_name(name)).await
    }

    /// Whether a sink should have a record. Where it has none, that was lost, if it was looked for before.
    ///
    /// # Errors
    /// When that is not known now.
    pub(crate) async fn has_sink(&self, name: &str) -> Result<bool, NatsError> {
        Ok(self.read().await?.is_some_and(|(_, log)| log.has_sink(name)))
    }

    /// Says that events are lost.
    ///
    /// # Errors
    /// When it could not be said.
    pub(crate) async fn lost(&self, lost: u64) -> Result<(), NatsError> {
        self.change(|log| (lost > 0).then(|| log.with_lost(lost))).await
    }

    /// Notes where the stream ends, as well as it can be done now.
    pub(crate) async fn finish(&self) {
        if let Err(error) = self.compare(true).await {
            tracing::debug!(%error, "where the log ends is not noted");
        }
    }

    /// Takes over what another receiver has found.
    fn follow(&self) {
        let Some(record) = self.0.records.last_known(KEY) else { return };
        if let Ok(log) = Log::read(&record.value)
            && log.epoch >= self.current().epoch
        {
            self.adopt(log);
        }
    }

    fn adopt(&self, log: Log) {
        let before = self.current();
        if *before == log {
            return;
        }
        if !before.is(&log) {
            let kept = log.kept(before.epoch);
            self.0.tail.send_if_modified(|tail| {
                let is_shorter = kept < *tail;
                *tail = kept.min(*tail);
                is_shorter
            });
            // They may be others, too.
            self.0.records.look_again();
        }
        self.0.current.send_replace(Arc::new(log));
    }

    fn raise(&self, last: u64) {
        self.0.tail.send_if_modified(|tail| {
            let is_newer = *tail < last;
            *tail = last.max(*tail);
            is_newer
        });
    }

    /// Compares the record with the stream, as their leaders have them, until they agree.
    async fn compare(&self, marks: bool) -> Result<(), NatsError> {
        let Inner { link, suspect, .. } = &*self.0;
        for _ in 0..TRIES {
            // What comes meanwhile has to be looked for again.
            suspect.store(false, Ordering::Release);
            let compared = self.compare_once(marks).await;
            match compared {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    suspect.store(true, Ordering::Release);
                    return Err(error);
                }
            }
        }
        suspect.store(true, Ordering::Release);
        let (events, state) = (link.names().events(), link.names().state());
        Err(NatsError::Unavailable(format!("{events} and its records in {state} change all the time")))
    }

    /// False if it has to be done once more.
    async fn compare_once(&self, marks: bool) -> Result<bool, NatsError> {
        let Inner { link, records, .. } = &*self.0;
        // Known before the stream is asked, so that it cannot be ahead of an answer.
        let before = self.current();
        let floor = self.tail().max(self.reach(before.epoch));
        let seen = Sight::of(&link.info(link.names().events()).await?);
        let now = SystemTime::now();
        let Some((revision, log)) = self.read().await? else {
            let sinks: BTreeSet<String> = sink::all(records).await?.into_keys().collect();
            let log = match (sinks.is_empty(), seen.last) {
                (true, 0) => Log::fresh(&seen, now),
                (true, _) => {
                    tracing::error!(
                        events = link.names().events(),
                        state = link.names().state(),
                        "where the sinks stand is lost: each goes on from the oldest event that is kept"
                    );
                    Log::orphaned(&seen, now)
                }
                (false, _) => {
                    // Versions without this record wrote no epoch.
                    let known = records.known(SINKS);
                    if known.iter().any(|(_, record)| Sink::read(&record.value).is_ok_and(|sink| sink.log > 0)) {
                        tracing::error!(
                            key = KEY,
                            state = link.names().state(),
                            "the record by which the log is known is lost: each sink goes on from the oldest event that is \
                             kept"
                        );
                    }
                    Log::found(&seen, sinks)
                }
            };
            let is_written = self.write(0, log).await?;
            self.raise(seen.last);
            return Ok(is_written);
        };
        if !log.is(&before) {
            self.adopt(log);
            return Ok(false);
        }
        let checked = self.check(&log, &seen).await?;
        let log = if self.are_purges_noted() { log } else { log.purged_below(seen.first).unwrap_or(log) };
        if let Some(changed) = log.judge(&seen, floor, checked, now) {
            let (kept, epoch) = (changed.kept(log.epoch), changed.epoch);
            if !self.write(revision, changed).await? {
                return Ok(false);
            }
            if kept == u64::MAX {
                let first = seen.first;
                tracing::error!(epoch, first, "events were purged from the stream, and not by a receiver");
            } else {
                tracing::error!(
                    epoch,
                    kept,
                    known_through = floor.max(log.newest_mark()),
                    first = seen.first,
                    last = seen.last,
                    "the stream of events is not what it was: it was made again, restored or cut short. Sinks go on \
                     after the last event that is known to be the same"
                );
            }
            self.raise(seen.last);
            return Ok(true);
        }
        let marked = log.marked(&seen).filter(|_| marks);
        if let Some(marked) = marked
            && !self.write(revision, marked).await?
        {
            return Ok(false);
        }
        self.raise(seen.last);
        Ok(true)
    }

    /// Which of the marks are in the stream.
    async fn check(&self, log: &Log, seen: &Sight) -> Result<Checked, NatsError> {
        let mut checked = Checked::default();
        for mark in log.marks() {
            let is_there = if mark.sequence > seen.last {
                Some(false)
            } else if mark.sequence < seen.first {
                // Purged, and all before it.
                break;
            } else if mark.sequence == seen.last {
                Some(seen.last_time == mark.time)
            } else {
                let found = self.0.link.get(self.0.link.names().events(), mark.sequence).await?;
                // Purged meanwhile, or by its subject.
                found.map(|stored| nanoseconds(stored.time) == mark.time)
            };
            match is_there {
                Some(true) => {
                    checked.verified = mark.sequence;
                    break;
                }
                Some(false) => checked.differs = true,
                None => {}
            }
        }
        checked.same = checked.verified;
        if let Some(newest) = log.marks().next().filter(|newest| checked.verified < newest.sequence) {
            let names = self.0.link.names();
            let after = UNIX_EPOCH + Duration::from_nanos(newest.time + 1);
            let found = self.0.link.read(names.events(), &names.subjects(), From::Time(after), 1, 1).await?;
            checked.same = found.messages.first().map_or(seen.last, |stored| stored.sequence - 1);
        }
        Ok(checked)
    }

    /// Whether all receivers note what they purge. Those before this version do not.
    fn are_purges_noted(&self) -> bool {
        let mut seen = self.0.older_receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if replicas::have_older(&self.0.records) {
            *seen = Some(Instant::now());
        }
        seen.is_none_or(|at| at.elapsed() > OLDER_RECEIVER)
    }

    /// The last sequence of which a sink's place of this epoch says anything.
    fn reach(&self, epoch: u64) -> u64 {
        let places = self.0.records.known("place.");
        let places = places.iter().filter_map(|(_, record)| Share::read(&record.value).ok());
        places.filter(|share| share.log() == epoch).map(|share| share.reach()).max().unwrap_or(0)
    }

    /// Whether the newest event was published when there were sinks of which nothing is known now: the records were
    /// restored from a backup, or cut short.
    async fn look_for_older_records(&self) -> Result<(), NatsError> {
        let link = &self.0.link;
        let seen = Sight::of(&link.info(link.names().events()).await?);
        if seen.first > seen.last {
            return Ok(());
        }
        let Some(newest) = link.get(link.names().events(), seen.last).await? else { return Ok(()) };
        let said = newest.headers.get(SINKS_HEADER).and_then(|said| said.as_str().parse::<u64>().ok());
        let Some(sinks) = said else { return Ok(()) };
        if sinks > self.current().sinks {
            tracing::error!(
                state = link.names().state(),
                "where the sinks stand is older than the events: a sink without a place goes on from the oldest event that \
                 is kept"
            );
        }
        self.change(|log| log.with_sinks_unknown(sinks, &seen)).await
    }

    /// Writes what `change` makes of the record, unless that is nothing.
    async fn change(&self, change: impl Fn(&Log) -> Option<Log>) -> Result<(), NatsError> {
        for _ in 0..TRIES {
            let Some((revision, log)) = self.read().await? else { break };
            let Some(changed) = change(&log) else {
                self.adopt(log);
                return Ok(());
            };
            if self.write(revision, changed).await? {
                return Ok(());
            }
        }
        Err(NatsError::Unavailable(format!("the record {KEY} cannot be changed now")))
    }

    async fn read(&self) -> Result<Option<(u64, Log)>, NatsError> {
        let Some(record) = self.0.records.get(KEY).await? else { return Ok(None) };
        let log = Log::read(&record.value).map_err(|error| {
            NatsError::Unfit(vec![format!(
                "the record {KEY} of stream {} cannot be read ({error}): use the version of asapp-receiver that wrote it",
                self.0.link.names().state()
            )])
        })?;
        Ok(Some((record.revision, log)))
    }

    /// False if another receiver was faster.
    async fn write(&self, revision: u64, log: Log) -> Result<bool, NatsError> {
        let json = serde_json::to_vec(&log).map_err(|error| NatsError::Unavailable(error.to_string()))?;
        match self.0.records.put(KEY, revision, Bytes::from(json)).await {
            Ok(_) => {
                self.adopt(log);
                Ok(true)
            }
            Err(PutError::Stale) => Ok(false),
            Err(PutError::Unavailable(reason)) => Err(NatsError::Unavailable(reason)),
        }
    }
}
