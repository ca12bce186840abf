//! The dead letters as the cluster has them: their messages, and the records of what has become of them since.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::records::{PutError, Records};
use super::cluster::replies::Stored;
use super::known::{Known, Later, Reader, Told, key};
use super::log::nanoseconds;
use super::once::{foreign, json, refused, unframed};
use crate::journal::event::{Event, from_millis};
use crate::journal::letters::{Letter, LetterState};
use crate::journal::outcome::Refused;

/// Bytes of one list, about.
pub(crate) const LIST_BYTES: usize = 8 << 20;
/// Changes that are under way at a time.
pub(crate) const AT_ONCE: usize = 32;

/// The letters as the cluster has them, for operators and lanes.
pub(crate) struct LetterStore {
    pub(crate) link: Link,
    pub(crate) records: Records,
    /// This receiver, in this life.
    pub(crate) instance: Arc<str>,
    /// Of the sinks in the settings, whether they have a lane.
    pub(crate) sinks: BTreeMap<String, bool>,
    pub(crate) max_bytes: u64,
    pub(crate) known: Reader,
    pub(crate) ending: CancellationToken,
}

/// A message's own part: how the event came to be a dead letter.
#[derive(Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    #[serde(flatten)]
    pub(crate) told: Told,
}

impl LetterStore {
    /// The records of letters as they are known now.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.read(&self.records)
    }

    /// The message of a letter, from the cluster's leader.
    pub(crate) async fn message(&self, id: u64) -> Result<Option<Stored>, NatsError> {
        // The server takes 0 for no sequence at all.
        if id == 0 { Ok(None) } else { self.link.get(self.link.names().dead(), id).await }
    }

    /// Deletes a letter; false if it is gone already.
    pub(crate) async fn delete(&self, id: u64) -> Result<bool, NatsError> {
        if id == 0 { Ok(false) } else { self.link.delete(self.link.names().dead(), id).await }
    }

    /// Deletes a letter whose message was stored then, and no other that has its id now.
    pub(crate) async fn delete_stored_at(&self, id: u64, stored_at: Option<u64>) -> Result<bool, NatsError> {
        if let Some(stored_at) = stored_at {
            let found = self.message(id).await?;
            if found.is_none_or(|stored| nanoseconds(stored.time) != stored_at) {
                return Ok(false);
            }
        }
        self.delete(id).await
    }

    /// The letter as it is now; nothing if it is on its way out.
    pub(crate) fn letter(&self, stored: &Stored, known: &Known) -> Option<Letter> {
        let id = stored.sequence;
        let sink = sink_of(self.link.names().dead(), &stored.subject)?;
        let stored_at = nanoseconds(stored.time);
        if known.is_counted(id, sink, Some(stored_at)) {
            return None;
        }
        let read = unframed::<Head>(&stored.payload);
        let read = read.and_then(|(head, block)| Some((Event::read_single(head.sequence, block).ok()?, head)));
        let Some((event, head)) = read else {
            tracing::error!(
                id,
                sink,
                "a message in the stream of dead letters is none: only receivers may publish there"
            );
            return None;
        };
        let later = known.get(id).map(|(_, later)| Arc::clone(later)).filter(|later| later.is_of(stored_at));
        let is_retried = later.as_ref().is_some_and(|later| later.retrying.is_some());
        let Told { reason, attempts, at } = later.and_then(|later| later.told.clone()).unwrap_or(head.told);
        let state = if is_retried { LetterState::Retrying } else { LetterState::Dead };
        let (sink, sequence, at) = (sink.to_owned(), head.sequence, from_millis(at));
        Some(Letter { id, sink, sequence, reason, attempts, at, state, event })
    }

    /// Messages of letters with larger ids, oldest first.
    pub(crate) async fn page(&self, sink: Option<&str>, after: u64, limit: usize) -> Result<Vec<Stored>, Refused> {
        let names = self.link.names();
        let Some(from) = after.checked_add(1).filter(|_| sink.is_none_or(is_name)) else { return Ok(Vec::new()) };
        let batch = self.link.read(names.dead(), &names.letters(sink), From::Sequence(from), limit, LIST_BYTES).await;
        Ok(batch.map_err(|error| refused(&error))?.messages)
    }

    /// Writes a letter's record.
    pub(crate) async fn write(&self, id: u64, revision: u64, later: &Later) -> Result<u64, PutError> {
        let value = json(later).map_err(|_| PutError::Unavailable("it cannot be written as JSON".to_owned()))?;
        self.records.put(&key(id), revision, value).await
    }

    /// A letter's record and its revision, from the cluster's leader.
    pub(crate) async fn read(&self, id: u64) -> Result<Option<(u64, Later)>, Refused> {
        let Some(record) = self.records.get(&key(id)).await.map_err(|error| refused(&error))? else { return Ok(None) };
        let later = serde_json::from_slice(&record.value).map_err(|_| foreign(&key(id)))?;
        Ok(Some((record.revision, later)))
    }

    pub(crate) fn check_open(&self) -> Result<(), Refused> {
        if self.ending.is_cancelled() { Err(Refused::Closed) } else { Ok(()) }
    }

    pub(crate) fn ending(&self) -> &CancellationToken {
        &self.ending
    }
}

/// Whether a text may be a sink's name; others must not get into a subject.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The sink in a letter's subject.
pub(crate) fn sink_of<'a>(stream: &str, subject: &'a str) -> Option<&'a str> {
    let (sink, _sequence) = subject.strip_prefix(stream)?.strip_prefix('.')?.split_once('.')?;
    Some(sink)
}
