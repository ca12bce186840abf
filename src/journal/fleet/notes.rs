//! Notes of a fleet: every receiver keeps its own, and those of one that does not live any more another one adopts.
//!
//! A note is a record, `note.<key>.<receiver that made it>`, that says who has it now. To adopt it is to write oneself into
//! it by compare-and-set: one of those who try has it then, and if that one dies as well, the next one may.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::records::{PutError, Record, Records};
use super::once::{foreign, json, refused, unavailable};
use super::replicas::Vanished;
use crate::journal::outcome::Refused;

/// As the embedded journal's.
const MAX_BYTES: usize = 64 << 10;
const MAX_KEYS: usize = 64;
/// How often notes are looked for whose receiver does not live any more.
const LOOK: Duration = Duration::from_secs(2);
/// Adopted notes that wait for whoever takes them.
const WAITING: usize = 16;

const NOTE: &str = "note.";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Notes {
    inner: Arc<Inner>,
    adopted: Arc<tokio::sync::Mutex<Adopted>>,
}

struct Inner {
    records: Records,
    instance: Arc<str>,
    /// This receiver's own, with the revisions of their records.
    own: Mutex<BTreeMap<String, (u64, String)>>,
    /// One writer at a time.
    writing: tokio::sync::Mutex<()>,
    ending: CancellationToken,
}

struct Adopted {
    notes: mpsc::Receiver<Note>,
    /// Given out last: it is part of another note when the next one is asked for.
    last: Option<Note>,
}

/// A note of a receiver that did not live any more.
struct Note {
    record: String,
    revision: u64,
    key: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// The receiver that has it; empty: none.
    owner: String,
    text: String,
}

impl Notes {
    pub(crate) fn open(records: &Records, instance: Arc<str>, tasks: &TaskTracker, ending: CancellationToken) -> Self {
        let (gives, notes) = mpsc::channel(WAITING);
        let inner = Arc::new(Inner {
            records: records.clone(),
            instance,
            own: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            ending,
        });
        let ending = inner.ending.clone();
        super::cluster::spawn(tasks, ending.run_until_cancelled_owned(Arc::clone(&inner).adopt(gives)));
        Self { inner, adopted: Arc::new(tokio::sync::Mutex::new(Adopted { notes, last: None })) }
    }

    /// As [`Journal::note`](crate::journal::Journal::note), of this receiver alone.
    pub(crate) async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        let Inner { records, instance, ending, .. } = &*self.inner;
        let _one = self.inner.writing.lock().await;
        if ending.is_cancelled() {
            return Err(Refused::Closed);
        }
        let (revision, count) = {
            let own = self.inner.own();
            (own.get(key).map_or(0, |(revision, _)| *revision), own.len())
        };
        let record = format!("{NOTE}{key}.{instance}");
        let written = match &text {
            Some(text) if text.len() > MAX_BYTES || revision == 0 && count >= MAX_KEYS => {
                return Err(Refused::TooLarge);
            }
            Some(text) => {
                let kept = Kept { owner: instance.to_string(), text: text.clone() };
                records.put(&record, revision, json(&kept)?).await
            }
            None if revision == 0 => return Ok(()),
            None => records.remove(&record, revision).await.map(|_| 0),
        };
        match (written, text) {
            (Ok(revision), Some(text)) => self.inner.own().insert(key.to_owned(), (revision, text)),
            (Ok(_), None) => self.inner.own().remove(key),
            // This receiver was taken for dead, and its note adopted: what it says is another one's now. Once that one has
            // removed it, there may be a new one.
            (Err(PutError::Stale), _) => {
                self.inner.own().remove(key);
                tracing::error!(key, "another receiver has taken this one's note over: it was taken for dead");
                return Err(Refused::Failed);
            }
            (Err(PutError::Unavailable(reason)), _) => return Err(unavailable(&reason)),
        };
        Ok(())
    }

    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        self.inner.own().iter().map(|(key, (_, text))| (key.clone(), text.clone())).collect()
    }

    pub(crate) fn read(&self, key: &str) -> Option<String> {
        self.inner.own().get(key).map(|(_, text)| text.clone())
    }

    /// The next note, and its key, of a receiver that does not live any more. Waits for one. To ask for another one says
    /// that the one before is in a note of this receiver: its record goes. `None` once the journal closes.
    pub(crate) async fn adopted(&self) -> Option<(String, String)> {
        let mut adopted = self.adopted.lock().await;
        if let Some(Note { record, revision, .. }) = adopted.last.take() {
            // What is left of it is adopted once more when this receiver does not live any more.
            let _ = self.inner.records.remove(&record, revision).await;
        }
        let note = adopted.notes.recv().await?;
        let said = (note.key.clone(), note.text.clone());
        adopted.last = Some(note);
        Some(said)
    }

    /// The next number of a series that all receivers share, from 1 on.
    pub(crate) async fn number(&self, series: &str) -> Result<u64, Refused> {
        let key = format!("number.{series}");
        loop {
            let found = self.inner.records.get(&key).await.map_err(|error| refused(&error))?;
            let last = match &found {
                Some(record) => serde_json::from_slice::<u64>(&record.value).map_err(|_| foreign(&key))?,
                None => 0,
            };
            match self.inner.records.put(&key, found.map_or(0, |record| record.revision), json(&(last + 1))?).await {
                Ok(_) => return Ok(last + 1),
                Err(PutError::Stale) => {}
                Err(PutError::Unavailable(reason)) => return Err(unavailable(&reason)),
            }
        }
    }

    /// Leaves this receiver's notes to whoever comes next.
    pub(crate) async fn finish(&self) {
        let _one = self.inner.writing.lock().await;
        let own = std::mem::take(&mut *self.inner.own());
        let last = self.adopted.try_lock().ok().and_then(|mut adopted| adopted.last.take());
        let own = own.into_iter().map(|(key, (revision, text))| {
            let record = format!("{NOTE}{key}.{}", self.inner.instance);
            Note { record, revision, key, text }
        });
        for Note { record, revision, text, .. } in own.chain(last) {
            let Ok(value) = json(&Kept { owner: String::new(), text }) else { continue };
            // Otherwise it is adopted once this receiver does not live any more.
            let _ = self.inner.records.put(&record, revision, value).await;
        }
    }
}

impl Inner {
    fn own(&self) -> MutexGuard<'_, BTreeMap<String, (u64, String)>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adopts what receivers leave behind, without end.
    async fn adopt(self: Arc<Self>, gives: mpsc::Sender<Note>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut had, mut vanished) = (BTreeSet::new(), Vanished::default());
        loop {
            look.tick().await;
            for (record, found) in self.records.known(NOTE) {
                if had.contains(&record) {
                    continue;
                }
                if let Some(note) = self.adopt_one(&record, &found, &mut vanished).await {
                    had.insert(record);
                    if gives.send(note).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes a note one's own, if its receiver does not live any more.
    async fn adopt_one(&self, record: &str, found: &Record, vanished: &mut Vanished) -> Option<Note> {
        let (key, _maker) = record.strip_prefix(NOTE)?.rsplit_once('.')?;
        let Kept { owner, text } = serde_json::from_slice(&found.value).map_err(|_| foreign(record)).ok()?;
        let is_free = match &*owner {
            "" => true,
            // Adopted, and not handed out: the answer was lost.
            owner if *owner == *self.instance => !record.ends_with(owner),
            owner => vanished.is_gone(&self.records, owner).await,
        };
        if !is_free {
            return None;
        }
        let value = json(&Kept { owner: self.instance.to_string(), text: text.clone() }).ok()?;
        let revision = self.records.put(record, found.revision, value).await.ok()?;
        tracing::info!(key, "what another receiver was doing is gone on with here");
        Some(Note { record: record.to_owned(), revision, key: key.to_owned(), text })
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}
