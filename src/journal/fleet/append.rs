//! How an event gets into the cluster: one publish under its id, acknowledged before anybody is told.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use aws_lc_rs::digest::{SHA256, digest as sha};
use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::cluster::error::{NatsError, NotStored};
use super::cluster::fitness;
use super::cluster::link::{Ack, Link};
use super::keeper::{Keeper, SINKS_HEADER};
use super::quarantine::Quarantine;
use crate::envelope::{self, Envelope};
use crate::journal::event::{ENCODED_OVERHEAD, Parts, encode};
use crate::journal::event::{Event, NewEvent};
use crate::journal::outcome::{Appended, Receipt, Refused, State};
use crate::journal::quarantine::Kept;
use crate::telemetry::Metrics;

/// Before the same id is sent again: while its first copy is on its way into the stream…
const BUSY: Duration = Duration::from_millis(20);
/// …and while nobody takes it.
const AWAY: Duration = Duration::from_millis(50);
/// Bytes of the hash by which the cluster knows an event id.
const ID_BYTES: usize = 16;

/// Publishes events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Appender {
    pub(crate) link: Link,
    pub(crate) keeper: Keeper,
    pub(crate) quarantine: Quarantine,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) partitions: u16,
    pub(crate) ack_timeout: Duration,
    /// How long an event is tried.
    pub(crate) answer_within: Duration,
    pub(crate) max_body_bytes: usize,
    /// The newest sequence that is known.
    pub(crate) tail: watch::Sender<u64>,
    /// The stream is full.
    pub(crate) full: watch::Sender<bool>,
    /// Whether the cluster keeps what a 200 promises.
    pub(crate) state: watch::Receiver<State>,
    /// Of what was stored here.
    pub(crate) own: broadcast::Sender<Event>,
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Stored(u64),
    /// The id is known, at this sequence: by these bytes, or nothing is kept any more to compare with.
    Known(u64),
    /// The id is known by other bytes.
    Contested,
}

/// What is left of the event that has used up an id.
enum FirstCopy {
    Stored(Bytes),
    /// Receivers have purged it, for every sink had it.
    Settled,
    /// It was purged by hand: it has to be stored again.
    Missing,
}

impl Appender {
    pub(crate) async fn append(&self, event: NewEvent) -> Result<Appended, Refused> {
        let payload = encoded(&event.parts());
        let event_id = event.envelope.event_id();
        let receipt = Receipt::of(event_id.into());
        match self.publish(&event.envelope, payload).await? {
            Published::Stored(_) => Ok(Appended::Stored(receipt)),
            Published::Known(_) => Ok(Appended::Duplicate(receipt)),
            Published::Contested => {
                self.metrics.conflicts.inc();
                self.quarantine.keep(Kept::conflicting(event)).await?;
                Ok(Appended::Duplicate(receipt))
            }
        }
    }

    /// What the server that this process is connected to takes ([`fitness::largest_body`]).
    pub(crate) fn largest_body(&self) -> Option<usize> {
        fitness::largest_body(self.link.client().max_payload(), self.max_body_bytes)
    }

    /// Takes a body out of the quarantine in as the event it is; false if its id is known with other bytes.
    pub(crate) async fn release(&self, envelope: &Envelope, kept: &Kept) -> Result<bool, Refused> {
        let published = self.publish(envelope, encoded(&kept.parts(envelope))).await?;
        Ok(published != Published::Contested)
    }

    /// Stores the event in `payload` under its id, once, however often the publish has to be repeated.
    pub(crate) async fn publish(&self, envelope: &Envelope, payload: Bytes) -> Result<Published, Refused> {
        if *self.state.borrow() == State::Unfit {
            return Err(Refused::Unfit);
        }
        let started = Instant::now();
        let published = tokio::time::timeout(self.answer_within, self.repeat(envelope, payload)).await;
        self.metrics.journal_commit.observe(started.elapsed().as_secs_f64());
        published.unwrap_or(Err(Refused::Late))
    }

    async fn repeat(&self, envelope: &Envelope, payload: Bytes) -> Result<Published, Refused> {
        let subject = self.link.names().subject(partition(envelope, self.partitions));
        let stream = self.link.names().events();
        let (log, floor) = (self.keeper.current(), self.keeper.tail());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, message_id(envelope.event_id()));
        headers.insert(NATS_EXPECTED_STREAM, stream);
        headers.insert(SINKS_HEADER, log.sinks.to_string());
        let mut repeated = false;
        loop {
            let sent = self.link.publish(stream, &subject, headers.clone(), payload.clone(), self.ack_timeout).await;
            match sent {
                Ok(Ack { sequence, duplicate: false }) => return Ok(self.stored((sequence, floor), payload)),
                Ok(Ack { sequence, duplicate: true }) => {
                    let stored = match self.first_copy(sequence).await {
                        Ok(FirstCopy::Stored(payload)) => Some(payload),
                        Ok(FirstCopy::Settled) => None,
                        Ok(FirstCopy::Missing) => {
                            // The cluster knows the id all the same.
                            let id = format!("{}.{sequence}", message_id(envelope.event_id()));
                            headers.insert(NATS_MESSAGE_ID, id);
                            repeated = false;
                            continue;
                        }
                        Err(error) => {
                            tracing::debug!(%error, "the first copy of an event cannot be read now");
                            tokio::time::sleep(AWAY).await;
                            continue;
                        }
                    };
                    return Ok(match stored {
                        // An earlier try of this very publish, whose answer was lost.
                        Some(first) if repeated && first == payload => self.stored((sequence, floor), payload),
                        Some(first) if is_other(sequence, &first, envelope) => Published::Contested,
                        _ => Published::Known(sequence),
                    });
                }
                Err(NotStored::Busy) => tokio::time::sleep(BUSY).await,
                Err(NotStored::Unavailable(reason)) => {
                    tracing::debug!(reason, "an event is published again");
                    repeated = true;
                    tokio::time::sleep(AWAY).await;
                }
                Err(NotStored::Full(reason)) => {
                    if !self.full.send_replace(true) {
                        tracing::error!(reason, "the cluster's stream is full: events are refused");
                    }
                    return Err(Refused::Full);
                }
                Err(NotStored::TooLarge(_)) if self.largest_body().is_some() => return Err(Refused::TooLarge),
                // Nobody has taken notice yet that it takes too little for anything.
                Err(NotStored::TooLarge(_)) => return Err(Refused::Unfit),
                Err(NotStored::Stale(_)) => return Err(Refused::Failed),
                Err(NotStored::Refused(reason)) => {
                    tracing::error!(reason, "the cluster does not take an event");
                    return Err(Refused::Unfit);
                }
            }
        }
    }

    async fn first_copy(&self, sequence: u64) -> Result<FirstCopy, NatsError> {
        match self.link.get(self.link.names().events(), sequence).await? {
            Some(stored) => Ok(FirstCopy::Stored(stored.payload)),
            None if self.keeper.misses(sequence).await? => Ok(FirstCopy::Missing),
            None => Ok(FirstCopy::Settled),
        }
    }

    /// `floor`: the last sequence that was known when it was published.
    fn stored(&self, (sequence, floor): (u64, u64), payload: Bytes) -> Published {
        self.full.send_if_modified(std::mem::take);
        self.keeper.stored(sequence, floor);
        if self.own.receiver_count() > 0
            && let Ok(event) = Event::read_single(sequence, payload)
        {
            // Nobody may be looking.
            let _ = self.own.send(event);
        }
        Published::Stored(sequence)
    }
}

/// One event as a message holds it.
fn encoded(parts: &Parts) -> Bytes {
    let mut block = Vec::with_capacity(parts.envelope.body().len() + ENCODED_OVERHEAD);
    encode(&mut block, parts);
    block.into()
}

/// Where an event goes: all events of an entity go the same way. One without entity goes by its id.
pub(crate) fn partition(envelope: &Envelope, partitions: u16) -> u16 {
    let feed = envelope.feed();
    let entity = envelope::entity(feed, envelope.body()).map(|id| [feed.short(), "\0", &id].concat());
    let hash = match &entity {
        Some(entity) => xxh3_64(entity.as_bytes()),
        None => xxh3_64(envelope.event_id().as_bytes()),
    };
    // Smaller than the number of partitions.
    u16::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

/// The same on every receiver, and fit for a header whatever the id holds.
fn message_id(event_id: &str) -> String {
    let hash = sha(&SHA256, event_id.as_bytes());
    // There are more bytes than that.
    let half: [u8; ID_BYTES] = hash.as_ref().first_chunk().copied().unwrap_or_default();
    format!("{:032x}", u128::from_be_bytes(half))
}

fn is_other(sequence: u64, stored: &Bytes, envelope: &Envelope) -> bool {
    Event::read_single(sequence, stored.clone()).is_ok_and(|first| first.body() != &envelope.body()[..])
}
