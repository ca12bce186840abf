//! Answers of the cluster: one subscription for all, told apart by a number in their subjects.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::link::NatsError;

/// For each message of a batch.
const NEXT_WITHIN: Duration = Duration::from_secs(5);

/// Messages of a stream, in order and without a gap in what matches.
#[derive(Debug, Default)]
pub(in crate::journal) struct Batch {
    pub(in crate::journal) messages: Vec<Stored>,
    /// How many more match.
    pub(in crate::journal) pending: u64,
}

/// A message as it is in a stream. Its headers have the server's own of that answer too.
#[derive(Debug, Clone)]
pub(in crate::journal) struct Stored {
    pub(in crate::journal) sequence: u64,
    pub(in crate::journal) subject: String,
    pub(in crate::journal) headers: HeaderMap,
    pub(in crate::journal) payload: Bytes,
    pub(in crate::journal) time: SystemTime,
}

/// Who waits for which answer.
pub(super) struct Replies {
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Message>>>,
}

impl Replies {
    pub(super) fn new(inbox: String) -> Self {
        Self { inbox, next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// What to subscribe to.
    pub(super) fn subjects(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Waits for so many answers at most.
    pub(super) fn ticket(&self, answers: usize) -> Ticket<'_> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(answers);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, sender);
        Ticket { replies: self, token, answers: receiver }
    }

    /// Gives each answer to whoever waits for it, without end.
    pub(super) async fn hand_out(self: Arc<Self>, mut answers: Subscriber) {
        while let Some(answer) = answers.next().await {
            let token = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok());
            let Some(token) = token else { continue };
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(waiter) = waiting.get(&token) {
                // Room for all that are due; nobody asked for more.
                let _ = waiter.try_send(answer);
            }
        }
    }

    /// No answer to what was asked before comes any more.
    pub(super) fn give_up(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A place in the table of those who wait. Its end takes the entry away.
pub(super) struct Ticket<'a> {
    replies: &'a Replies,
    token: u64,
    answers: mpsc::Receiver<Message>,
}

impl Ticket<'_> {
    pub(super) fn subject(&self) -> String {
        format!("{}.{}", self.replies.inbox, self.token)
    }

    /// The next answer.
    pub(super) async fn next(&mut self, end: Instant) -> Result<Message, NatsError> {
        match timeout_at(end, self.answers.recv()).await {
            Ok(answer) => answer.ok_or_else(connection_lost),
            Err(_) => Err(NatsError::Unavailable("no answer in time".to_owned())),
        }
    }

    /// The messages of a batch, until the answer that ends it.
    pub(super) async fn batch(mut self) -> Result<Batch, NatsError> {
        let mut batch = Batch::default();
        let mut due = None;
        loop {
            let answer = self.next(Instant::now() + NEXT_WITHIN).await?;
            let pending = number(&answer, "Nats-Num-Pending");
            match answer.status.map(|status| status.as_u16()) {
                None => {
                    let pending = pending.ok_or_else(incomplete)?;
                    if due.is_some_and(|due| due != pending) {
                        return Err(incomplete());
                    }
                    due = pending.checked_sub(1);
                    batch.messages.push(Stored::read(answer)?);
                }
                // The end of the batch; a missing last message shows in its count.
                Some(204) => {
                    batch.pending = pending.unwrap_or(0);
                    let complete = due.map_or(0, |due| due + 1) == batch.pending || batch.messages.is_empty();
                    return if complete { Ok(batch) } else { Err(incomplete()) };
                }
                Some(404) => return Ok(Batch::default()),
                Some(503) => return Err(NatsError::Unavailable("nobody is there to answer a read".to_owned())),
                Some(code) => {
                    let text = answer.description.unwrap_or_default();
                    return Err(NatsError::Refused { code: code.into(), text });
                }
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.replies.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

impl Stored {
    /// Out of a direct read's answer.
    fn read(answer: Message) -> Result<Self, NatsError> {
        let header = |name| answer.headers.as_ref()?.get_last(name).map(|value| value.as_str());
        let sequence = header("Nats-Sequence").and_then(|text| text.parse().ok()).ok_or_else(incomplete)?;
        let subject = header("Nats-Subject").ok_or_else(incomplete)?.to_owned();
        let time = header("Nats-Time-Stamp").and_then(|text| humantime::parse_rfc3339(text).ok());
        let time = time.ok_or_else(incomplete)?;
        let Message { headers, payload, .. } = answer;
        Ok(Self { sequence, subject, headers: headers.unwrap_or_default(), payload, time })
    }
}

fn number(answer: &Message, header: &str) -> Option<u64> {
    answer.headers.as_ref()?.get_last(header)?.as_str().parse().ok()
}

fn incomplete() -> NatsError {
    NatsError::Unavailable("a batch came with gaps".to_owned())
}

fn connection_lost() -> NatsError {
    NatsError::Unavailable("the connection was lost".to_owned())
}
