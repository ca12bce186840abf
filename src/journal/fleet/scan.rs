//! Reading the stream by itself, beside the lanes: replays, `tail`, and what looks at the events that come.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::keeper::Keeper;
use super::log::Log;
use crate::journal::event::Event;
use crate::journal::lane::Gone;

/// Events of one read, at most…
const EVENTS: usize = 256;
/// …and about how many bytes of them.
const BYTES: usize = 4 << 20;
/// Before the cluster is asked again, when it could not answer, or a server that lags behind answered.
const AGAIN: Duration = Duration::from_millis(200);

/// Reads the stream from some sequence on, in order.
pub struct Scan {
    link: Link,
    keeper: Keeper,
    ending: CancellationToken,
    next: u64,
    tail: watch::Receiver<u64>,
    /// Of the log whose sequence `next` is.
    epoch: u64,
}

/// Sees events as they come, and rather skips than falls behind.
pub enum Watch {
    /// Those that this process stored.
    Own { events: broadcast::Receiver<Event>, ending: CancellationToken },
    /// Those of all.
    All(Scan),
}

impl Scan {
    pub(crate) fn new(
        (link, keeper): (Link, Keeper),
        ending: CancellationToken,
        next: u64,
        tail: watch::Receiver<u64>,
    ) -> Self {
        let epoch = keeper.current().epoch;
        Self { link, keeper, ending, next, tail, epoch }
    }

    pub(crate) fn caught_up(&self) -> bool {
        self.next > *self.tail.borrow()
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch::All(Self {
            link: self.link.clone(),
            keeper: self.keeper.clone(),
            ending: self.ending.clone(),
            next: self.next,
            tail: self.tail.clone(),
            epoch: self.epoch,
        })
    }

    pub(crate) async fn read(&mut self) -> Result<Vec<Event>, Gone> {
        let ending = self.ending.clone();
        ending.run_until_cancelled(self.read_on()).await.ok_or(Gone)?
    }

    async fn read_on(&mut self) -> Result<Vec<Event>, Gone> {
        let mut log = self.keeper.subscribe();
        loop {
            self.follow(&log.borrow_and_update().clone());
            let next = self.next;
            tokio::select! {
                tail = self.tail.wait_for(|&tail| tail >= next) => drop(tail.map_err(|_| Gone)?),
                changed = log.changed() => {
                    changed.map_err(|_| Gone)?;
                    continue;
                }
            }
            match self.read_some().await {
                Ok((events, Some(last))) => {
                    self.next = last + 1;
                    return Ok(events);
                }
                // Purged, or a server that lags behind was asked.
                Ok((_, None)) => match self.link.info(self.link.names().events()).await {
                    Ok(info) if info.state.first_sequence > next => {
                        self.next = info.state.first_sequence;
                        return Ok(Vec::new());
                    }
                    // Its last messages were deleted by hand.
                    Ok(info) if self.is_none_left(&info).await => {
                        self.next = info.state.last_sequence + 1;
                        return Ok(Vec::new());
                    }
                    _ => tokio::time::sleep(AGAIN).await,
                },
                Err(error) => {
                    tracing::debug!(%error, "the stream cannot be read now");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Whether the stream, which has got farther, has no event from here on, as its leader says.
    async fn is_none_left(&self, info: &Info) -> bool {
        let names = self.link.names();
        let is_past = info.state.last_sequence >= self.next;
        is_past && matches!(self.link.get_next(names.events(), &names.subjects(), self.next).await, Ok(None))
    }

    /// Goes on where another log begins to be another one.
    fn follow(&mut self, log: &Log) {
        if self.epoch != log.epoch {
            self.next = self.next.min(log.kept(self.epoch).saturating_add(1));
            self.epoch = log.epoch;
        }
    }

    /// The next events, and the sequence of the last message that was read.
    async fn read_some(&self) -> Result<(Vec<Event>, Option<u64>), NatsError> {
        let names = self.link.names();
        let batch = self.link.read(names.events(), &names.subjects(), From::Sequence(self.next), EVENTS, BYTES).await?;
        let last = batch.messages.last().map(|stored| stored.sequence);
        let mut events = Vec::with_capacity(batch.messages.len());
        for stored in batch.messages {
            match Event::read_single(stored.sequence, stored.payload) {
                Ok(event) => events.push(event),
                Err(_) => told_foreign(stored.sequence),
            }
        }
        Ok((events, last))
    }
}

/// Says that a message in the stream is none of a receiver's.
pub(crate) fn told_foreign(sequence: u64) {
    tracing::error!(sequence, "a message in the stream of events is no event: only receivers may publish there");
}

impl Watch {
    pub(crate) async fn read(&mut self) -> Result<(Vec<Event>, u64), Gone> {
        match self {
            Self::All(scan) => scan.read().await.map(|events| (events, 0)),
            Self::Own { events, ending } => {
                let ending = ending.clone();
                let mut skipped = 0;
                let first = loop {
                    match ending.run_until_cancelled(events.recv()).await.ok_or(Gone)? {
                        Ok(event) => break event,
                        Err(broadcast::error::RecvError::Lagged(count)) => skipped += count,
                        Err(broadcast::error::RecvError::Closed) => return Err(Gone),
                    }
                };
                let mut some = VecDeque::from([first]);
                while some.len() < EVENTS
                    && let Ok(event) = events.try_recv()
                {
                    some.push_back(event);
                }
                Ok((some.into(), skipped))
            }
        }
    }

    pub(crate) fn skip(&mut self) -> u64 {
        match self {
            Self::All(_) => 0,
            Self::Own { events, .. } => {
                let there = events.len() as u64;
                *events = events.resubscribe();
                there
            }
        }
    }
}
