//! What a receiver has of a partition between a take-over and a loss, and the requests to the cluster that it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cluster::consumer;
use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::names;
use super::cluster::records::{PutError, Records};
use super::cluster::replies::Batch;
use super::cursor::Shelf;
use super::keeper::Keeper;
use super::share::Share;
use super::sink;
use crate::journal::outcome::Settled;

/// Outcomes wait so long for others to be written with…
pub(crate) const GATHER: Duration = Duration::from_millis(50);
/// …unless there are so many.
const MANY: usize = 500;
/// Before the same is tried again, when it failed.
pub(crate) const AGAIN: Duration = Duration::from_millis(500);
/// What has rung may not have come to the replica that is read from; at first, and at most.
pub(crate) const NOT_THERE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What all partitions of a sink have in common.
pub(crate) struct Common {
    pub(crate) link: Link,
    pub(crate) records: Records,
    pub(crate) instance: Arc<str>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) keeper: Keeper,
    /// Up to here undelivered events yield; 0 if none have to, or the sink is required.
    pub(crate) evict: AtomicU64,
}

/// The time between a take-over and a loss.
pub(crate) struct Tenure {
    pub(crate) number: u64,
    pub(crate) share: Share,
    pub(crate) revision: u64,
    /// Read up to here: all of it is settled or in hand.
    pub(crate) read: u64,
    /// In the stream, as far as is known.
    pub(crate) heard: u64,
    pub(crate) more: bool,
    pub(crate) reading: bool,
    /// The last time: it is tried again at `read_at`, not before.
    pub(crate) failed: bool,
    /// Since the lane finishes, everything that was there has been read.
    pub(crate) finished: bool,
    pub(crate) read_at: Instant,
    pub(crate) not_there: Duration,
    /// Read and not settled, with the partition's event before each.
    pub(crate) in_hand: BTreeMap<u64, u64>,
    /// Settled since the last write.
    pub(crate) fresh: Vec<u64>,
    pub(crate) told: Vec<(u64, oneshot::Sender<()>)>,
    pub(crate) gathered_since: Option<Instant>,
    pub(crate) writing: bool,
    pub(crate) leave_until: Option<Instant>,
    /// Ends what is under way.
    pub(crate) end: CancellationToken,
}

/// A job that has ended, with its tenure's number.
pub(crate) enum Done {
    TakenOver(Option<(Share, u64)>),
    Read(u64, Result<Batch, NatsError>),
    Written(u64, Vec<u64>, Result<u64, PutError>),
    Tended,
}

impl Tenure {
    pub(crate) fn new(number: u64, share: Share, revision: u64, heard: u64) -> Self {
        let now = Instant::now();
        Self {
            number,
            read: share.cursor(),
            heard,
            // Unknown yet: it has to be looked.
            more: true,
            share,
            revision,
            reading: false,
            failed: false,
            finished: false,
            read_at: now,
            not_there: NOT_THERE.0,
            in_hand: BTreeMap::new(),
            fresh: Vec::new(),
            told: Vec::new(),
            gathered_since: None,
            writing: false,
            leave_until: None,
            end: CancellationToken::new(),
        }
    }

    pub(crate) fn has_read_all(&self) -> bool {
        !self.more && self.read >= self.heard
    }

    pub(crate) fn settle(&mut self, sequence: u64, how: Settled, unwritten: &mut BTreeMap<u64, Settled>) {
        let Some(previous) = self.in_hand.remove(&sequence) else { return };
        self.share.settle(previous, sequence, how);
        self.fresh.push(sequence);
        self.gathered_since.get_or_insert_with(Instant::now);
        unwritten.insert(sequence, how);
    }

    pub(crate) fn is_to_write(&self, now: Instant) -> bool {
        let is_urgent = self.fresh.len() >= MANY || !self.told.is_empty() || self.leave_until.is_some();
        let since = self.gathered_since.filter(|_| !self.writing);
        since.is_some_and(|since| is_urgent || since + GATHER <= now)
    }

    pub(crate) fn write(&mut self, common: &Arc<Common>, at: u16) -> BoxFuture<'static, Done> {
        (self.writing, self.gathered_since) = (true, None);
        let (number, sequences) = (self.number, std::mem::take(&mut self.fresh));
        let (common, share, revision) = (Arc::clone(common), self.share.clone(), self.revision);
        Box::pin(async move { Done::Written(number, sequences, write(&common, at, &share, revision).await) })
    }

    pub(crate) fn is_to_read(&self, now: Instant, shelf: &Shelf, at: u16) -> bool {
        // What rang and was not found is looked for at `read_at`.
        let rang = self.read < self.heard && self.not_there == NOT_THERE.0;
        let is_wanted = self.more || rang || shelf.is_finishing();
        let is_time = self.read_at <= now || is_wanted && !self.failed;
        !self.reading && !self.finished && self.leave_until.is_none() && is_time && shelf.room(at).is_some()
    }

    pub(crate) fn read(&mut self, common: &Arc<Common>, at: u16) -> BoxFuture<'static, Done> {
        self.reading = true;
        let (number, from, common) = (self.number, From::Sequence(self.read + 1), Arc::clone(common));
        let (count, bytes) = common.shelf.room(at).unwrap_or((1, 1));
        let read = self.end.clone().run_until_cancelled_owned(async move {
            let names = common.link.names();
            common.link.read(names.events(), &names.subject(at), from, count, bytes).await
        });
        Box::pin(async move { Done::Read(number, read.await.unwrap_or_else(|| Ok(Batch::default()))) })
    }
}

/// Writes the record with this receiver as its owner.
pub(crate) async fn take_over(common: Arc<Common>, at: u16) -> Done {
    let key = names::place(common.shelf.sink(), at);
    let take_over = async {
        let log = common.keeper.current();
        let place = sink::place(&common.records, &log, common.shelf.sink(), at).await;
        let (mut share, revision, _) = place.map_err(|error| error.to_string())?;
        share.hand_over(&common.instance);
        let json = share.write().map_err(|error| error.to_string())?;
        let revision = common.records.put(&key, revision, json.into()).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((share, revision))
    };
    let taken = take_over.await;
    common.shelf.set_trouble(at, taken.as_ref().err().cloned());
    match taken {
        Ok(taken) => Done::TakenOver(Some(taken)),
        Err(error) => {
            tracing::warn!(sink = &**common.shelf.sink(), partition = at, error, "a partition cannot be taken over");
            Done::TakenOver(None)
        }
    }
}

/// Writes the record as its owner, however long it takes to know that it is written.
async fn write(common: &Common, at: u16, share: &Share, mut revision: u64) -> Result<u64, PutError> {
    let key = names::place(common.shelf.sink(), at);
    let json = share.write().map_err(|_| PutError::Stale)?;
    let json = Bytes::from(json);
    loop {
        match common.records.put(&key, revision, json.clone()).await {
            Ok(revision) => return Ok(revision),
            Err(PutError::Stale) => {}
            Err(PutError::Unavailable(reason)) => {
                tracing::debug!(
                    sink = &**common.shelf.sink(),
                    partition = at,
                    reason,
                    "what is settled cannot be written yet"
                );
                sleep(AGAIN).await;
            }
        }
        // It may have been written all the same.
        let Ok(found) = common.records.get(&key).await else { continue };
        let Some(record) = found else { return Err(PutError::Stale) };
        let found = Share::read(&record.value).map_err(|_| PutError::Stale)?;
        if found == *share {
            return Ok(record.revision);
        }
        // One of an earlier owner is back out of a backup; nobody has taken the partition over.
        let is_older = found.epoch() < share.epoch() && found.log() == share.log();
        if !is_older && (found.owner(), found.epoch()) != (share.owner(), share.epoch()) {
            return Err(PutError::Stale);
        }
        revision = record.revision;
    }
}

/// Nobody answers for the consumer: makes it again if it is gone, where the record stands. It goes with its stream.
pub(crate) async fn tend(common: Arc<Common>, at: u16) -> Done {
    let sink = common.shelf.sink();
    if let Ok(None) = consumer::info(&common.link, sink, at).await {
        common.keeper.suspect();
        match remake(&common, at).await {
            Ok(()) => tracing::warn!(sink = &**sink, partition = at, "a consumer was gone, and was made again"),
            Err(error) => tracing::warn!(sink = &**sink, partition = at, %error, "a consumer is gone"),
        }
    }
    Done::Tended
}

/// Makes the consumer from where the record stands.
pub(crate) async fn remake(common: &Common, at: u16) -> Result<(), NatsError> {
    let (log, sink) = (common.keeper.current(), common.shelf.sink());
    let (share, ..) = sink::place(&common.records, &log, sink, at).await?;
    consumer::make(&common.link, sink, at, share.cursor() + 1).await
}
