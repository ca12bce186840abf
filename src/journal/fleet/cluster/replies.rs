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

use super::error::NatsError;

/// For each message of a batch.
const NEXT_WITHIN: Duration = Duration::from_secs(5);

/// Messages of a stream, in order and without a gap in what matches.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) messages: Vec<Stored>,
    /// How many more match.
    pub(crate) pending: u64,
}

/// A message as it is in a stream. Its headers have the server's own of that answer too.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    pub(crate) time: SystemTime,
}

/// Who waits for which answer.
pub(crate) struct Replies {
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Message>>>,
}

impl Replies {
    pub(crate) fn new(inbox: String) -> Self {
        Self { inbox, next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// What to subscribe to.
    pub(crate) fn subjects(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Waits for so many answers at most.
    pub(crate) fn ticket(&self, answers: usize) -> Ticket<'_> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(answers);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, sender);
        Ticket { replies: self, token, answers: receiver }
    }

    /// Gives each answer to whoever waits for it, without end.
    pub(crate) async fn hand_out(self: Arc<Self>, mut answers: Subscriber) {
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
    pub(crate) fn give_up(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A place in the table of those who wait. Its end takes the entry away.
pub(crate) struct Ticket<'a> {
    replies: &'a Replies,
    token: u64,
    answers: mpsc::Receiver<Message>,
}

impl Ticket<'_> {
    pub(crate) fn subject(&self) -> String {
        format!("{}.{}", self.replies.inbox, self.token)
    }

    /// The next answer.
    pub(crate) async fn next(&mut self, end: Instant) -> Result<Message, NatsError> {
        match timeout_at(end, self.answers.recv()).await {
            Ok(answer) => answer.ok_or_else(connection_lost),
            Err(_) => Err(NatsError::Unavailable("no answer in time".to_owned())),
        }
    }

    /// The messages of a batch, until the answer that ends it.
    pub(crate) async fn batch(mut self) -> Result<Batch, NatsError> {
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
                    // Of the message before in this batch, 0 for its first: those may be missing as well.
                    let before = number(&answer, "Nats-Last-Sequence");
                    if before != Some(batch.messages.last().map_or(0, |stored| stored.sequence)) {
                        return Err(incomplete());
                    }
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

#[cfg(test)]
mod tests {
    use async_nats::StatusCode;

    use super::*;

    /// What a server says before the end of a batch: sequence, the one before, how many more.
    const BATCH: [(u64, u64, u64); 3] = [(22, 0, 4), (25, 22, 3), (31, 25, 2)];

    fn answer(status: Option<StatusCode>, headers: &[(&str, String)]) -> Message {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, value.as_str()));
        let (payload, subject) = (Bytes::new(), "_INBOX.0".into());
        Message { subject, reply: None, payload, headers: Some(map), status, description: None, length: 0 }
    }

    async fn batch(messages: &[(u64, u64, u64)]) -> Result<Vec<u64>, NatsError> {
        let replies = Replies::new("_INBOX".to_owned());
        let ticket = replies.ticket(messages.len() + 1);
        let waiter = replies.waiting.lock().unwrap().values().next().cloned().unwrap();
        for (sequence, before, pending) in messages {
            let headers = [
                ("Nats-Sequence", sequence.to_string()),
                ("Nats-Last-Sequence", before.to_string()),
                ("Nats-Num-Pending", pending.to_string()),
                ("Nats-Subject", "S.p.1".to_owned()),
                ("Nats-Time-Stamp", "2026-01-01T00:00:00Z".to_owned()),
            ];
            waiter.try_send(answer(None, &headers)).unwrap();
        }
        let end = [("Nats-Num-Pending", "2".to_owned()), ("Nats-Last-Sequence", "31".to_owned())];
        waiter.try_send(answer(StatusCode::from_u16(204).ok(), &end)).unwrap();
        let batch = ticket.batch().await?;
        Ok(batch.messages.iter().map(|stored| stored.sequence).collect())
    }

    #[tokio::test]
    async fn a_batch_is_taken_whole_or_not_at_all() {
        assert_eq!(batch(&BATCH).await.unwrap(), [22, 25, 31]);
        for missing in [&BATCH[1..], &BATCH[2..], &[BATCH[0], BATCH[2]], &BATCH[..2]] {
            assert!(batch(missing).await.is_err(), "{missing:?} came");
        }
    }
}
