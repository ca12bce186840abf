//! A sink's cursor in an embedded journal: how its lane reads it and says what became of each event.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{oneshot, watch};

use super::engine::Local;
use super::letters::Letters;
use super::reads::Reading;
use super::ring::Found;
use super::store::{DeadLetter, Reader, StoreError};
use super::writer::{Command, Ending};
use crate::journal::event::{Event, Group, millis, single};
use crate::journal::lane::Gone;
use crate::journal::outcome::Refused;
use crate::journal::outcome::Settled;

/// Owned by one lane. Reading runs ahead of settling; what was settled in an earlier life is skipped.
pub struct Cursor {
    scan: Scan,
    sink: Arc<str>,
    /// Ranges settled before this process began.
    settled: Vec<(u64, u64)>,
}

/// Reads the journal from some sequence on, in order, and settles nothing.
pub struct Scan {
    inner: Arc<Local>,
    /// For the log.
    reader_name: Arc<str>,
    /// The next sequence to read.
    next: u64,
    tail: watch::Receiver<u64>,
    /// Has a reader open while the scan is behind the ring. A read that finds nothing says up to where there was nothing: what
    /// was durable when it began, for it may go on while its scan is not asked.
    reading: Reading<Result<Group, u64>>,
}

/// How a lane says what became of its events. Cheap to clone.
#[derive(Clone)]
pub struct Settler {
    inner: Arc<Local>,
    sink: Arc<str>,
}

impl Cursor {
    pub(crate) fn new(inner: Arc<Local>, sink: Arc<str>, next: u64, settled: Vec<(u64, u64)>) -> Self {
        let scan = Scan::new(inner, Arc::clone(&sink), next);
        Self { scan, sink, settled }
    }

    #[must_use]
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Whether everything durable now has been read.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.scan.caught_up()
    }

    /// The next sequence to read.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.scan.next()
    }

    /// Ranges past [`next`](Self::next) that were settled before this process began.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only a build with clusters moves journals"))]
    pub(crate) fn settled(&self) -> &[(u64, u64)] {
        &self.settled
    }

    /// A handle by which to settle what was read.
    #[must_use]
    pub fn settler(&self) -> Settler {
        Settler { inner: Arc::clone(&self.scan.inner), sink: Arc::clone(&self.sink) }
    }

    /// The sink's dead letters that an operator has retried. For its lane alone, once.
    #[must_use]
    pub fn letters(&self) -> Letters {
        Letters::new(Arc::clone(&self.scan.inner), Arc::clone(&self.sink))
    }

    /// The next events in order, one commit group's worth at most; none where those that were there are gone, or were
    /// settled before. Waits for them. Dropped before it is done, it has read nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn read(&mut self) -> Result<Vec<Event>, Gone> {
        let mut events = self.scan.read().await?;
        if let Some(first) = events.first().map(Event::sequence) {
            self.settled.retain(|&(_, high)| high >= first);
            events.retain(|event| !self.settled.iter().any(|&(low, high)| (low..=high).contains(&event.sequence())));
        }
        Ok(events)
    }
}

impl Settler {
    #[must_use]
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Says what became of `from..=to`. Waits while the writer is behind.
    pub async fn settle(&self, from: u64, to: u64, how: Settled) {
        let command = Command::Settle { sink: Arc::clone(&self.sink), from, to, how };
        self.inner.mailbox.send_from_lane(command).await;
    }

    /// Puts an event into the dead letters, which settles it.
    ///
    /// # Errors
    /// [`Refused::Full`] when there is no room for it: the lane keeps it and comes again.
    pub async fn dead_letter(&self, event: &Event, reason: &str, attempts: u32) -> Result<(), Refused> {
        let letter = DeadLetter {
            id: 0,
            sink: self.sink.to_string(),
            sequence: event.sequence(),
            reason: reason.to_owned(),
            attempts,
            at: millis(SystemTime::now()),
            retrying: None,
            event: single(event).into(),
        };
        let (reply, answer) = oneshot::channel();
        self.inner.mailbox.send_from_lane(Command::DeadLetter { letter: Box::new(letter), reply }).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Says that a retried dead letter was delivered, which ends it. Waits while the writer is behind. It is written soon:
    /// after a crash before that, the letter is tried once more.
    pub async fn letter_delivered(&self, id: u64) {
        self.end_retry(id, Ending::Delivered).await;
    }

    /// Says that a retried dead letter is one again, after so many attempts more. It always has room: it never left.
    pub async fn letter_failed(&self, id: u64, reason: &str, attempts: u32) {
        let at = millis(SystemTime::now());
        self.end_retry(id, Ending::Failed { reason: reason.to_owned(), attempts, at }).await;
    }

    async fn end_retry(&self, letter: u64, ending: Ending) {
        let command = Command::EndRetry { sink: Arc::clone(&self.sink), letter, ending };
        self.inner.mailbox.send_from_lane(command).await;
    }
}

impl Scan {
    pub(crate) fn new(inner: Arc<Local>, reader_name: Arc<str>, next: u64) -> Self {
        let tail = inner.shared.ring.tail();
        Self { inner, reader_name, next, tail, reading: Reading::with(None) }
    }

    /// Whether everything durable now has been read.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.next > *self.tail.borrow()
    }

    /// The next sequence to read.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Sees the same events from here on, but rather skips than falls behind.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { inner: Arc::clone(&self.inner), next: self.next, tail: self.tail.clone() }
    }

    /// The next events in order, one commit group's worth at most; none where those that were there are gone, or were
    /// settled before. Waits for them. Dropped before it is done, it has read nothing.
    ///
    /// # Errors
    /// [`Gone`] once the journal can give nothing more.
    pub async fn read(&mut self) -> Result<Vec<Event>, Gone> {
        loop {
            let group = match self.inner.shared.ring.find(self.next) {
                Found::Here(group) => {
                    self.reading.reader = None;
                    group
                }
                Found::InStore => {
                    let (next, durable) = (self.next, *self.tail.borrow());
                    let read = move |reader: &mut dyn Reader| Ok(reader.group(next)?.ok_or(durable));
                    match self.inner.read(&self.reader_name, &mut self.reading, read).await? {
                        Ok(group) => Arc::new(group),
                        Err(durable) => {
                            // Nothing is left of it: deleted, evicted or lost, and accounted for.
                            self.next = self.next.max(durable + 1);
                            return Ok(Vec::new());
                        }
                    }
                }
                Found::Nowhere => {
                    let next = self.next;
                    self.tail.wait_for(|&tail| tail >= next).await.map_err(|_| Gone)?;
                    continue;
                }
            };
            let Ok(events) = group.events(self.next) else {
                self.inner.damaged(StoreError::Fatal(format!("the group at sequence {} is damaged", group.first)));
                return Err(Gone);
            };
            self.next = group.last + 1;
            return Ok(events);
        }
    }
}

/// Sees every event from some moment on, settles nothing, and rather skips than falls behind.
pub struct Watch {
    inner: Arc<Local>,
    next: u64,
    tail: watch::Receiver<u64>,
}

impl Watch {
    pub(crate) fn new(inner: Arc<Local>) -> Self {
        let tail = inner.shared.ring.tail();
        let next = *tail.borrow() + 1;
        Self { inner, next, tail }
    }

    /// The next events, and how many were skipped before them because they had left the ring.
    ///
    /// # Errors
    /// [`Gone`] once there will be no more.
    pub async fn read(&mut self) -> Result<(Vec<Event>, u64), Gone> {
        let mut skipped = 0;
        loop {
            match self.inner.shared.ring.find(self.next) {
                Found::Here(group) => {
                    let events = group.events(self.next).map_err(|_| Gone)?;
                    self.next = group.last + 1;
                    return Ok((events, skipped));
                }
                Found::InStore => {
                    let first = self.inner.shared.ring.first().unwrap_or(self.next + 1);
                    skipped += first - self.next;
                    self.next = first;
                }
                Found::Nowhere => {
                    let next = self.next;
                    self.tail.wait_for(|&tail| tail >= next).await.map_err(|_| Gone)?;
                }
            }
        }
    }

    /// Passes over what is there now; says how many events that is.
    pub fn skip(&mut self) -> u64 {
        let next = *self.tail.borrow() + 1;
        let skipped = next.saturating_sub(self.next);
        self.next += skipped;
        skipped
    }
}
