//! The dead letters of a fleet: a stream of their own, a subject a letter, so that an event dies once however often that
//! is said.
//!
//! A letter's message never changes. What has become of it since stands in a record, `letter.<id>`: that an operator has
//! retried it, which receiver's lane has it, and what that lane's target said ([`retries`](super::retries)). What retries
//! have delivered stands in `retried.<sink>`, for the sink's account.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::link::Link;
use super::cluster::records::{PutError, Records};
use super::known::{Later, RETRIED, Reader, Retried, Told, key};
use super::letter_store::{AT_ONCE, Head, LetterStore, sink_of};
use super::log::nanoseconds;
use super::once::{framed, json, refused, store_once, unavailable};
use super::replicas;
pub(crate) use super::retries::Letters;
use super::retries::{Ending, Lane};
use super::stock;
use crate::config::Config;
use crate::journal::event::{Event, millis, single};
use crate::journal::letters::{Letter, LettersOf, MAX_LIST, Which};
use crate::journal::outcome::Handled;
use crate::journal::outcome::Refused;
use crate::journal::progress::Account;
use crate::journal::progress::Retrying;
use crate::journal::status::DeadLettersStatus;

const UNKNOWN: &str = "there is no dead letter of this id";

/// The dead letters of all sinks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DeadLetters {
    shared: Arc<LetterStore>,
    lanes: Arc<BTreeMap<String, Lane>>,
}

#[derive(Clone, Copy)]
enum Change {
    Retry,
    Discard,
}

/// The sink of a letter, and when its message was stored, nanoseconds since 1970.
type Of = (String, u64);

/// A change is made, or there is a reason why not.
type Outcome = Result<(), &'static str>;

impl DeadLetters {
    /// With a lane for every enabled sink.
    pub(crate) fn open(
        (link, records): (&Link, &Records),
        config: &Config,
        instance: Arc<str>,
        tasks: &TaskTracker,
        ending: CancellationToken,
    ) -> Self {
        let sinks: BTreeMap<String, bool> = config.sinks.iter().map(|sink| (sink.name.clone(), sink.enabled)).collect();
        let enabled = sinks.iter().filter(|(_, enabled)| **enabled).map(|(sink, _)| sink.clone());
        let enabled: Vec<String> = enabled.collect();
        let shared = Arc::new(LetterStore {
            link: link.clone(),
            records: records.clone(),
            instance,
            sinks,
            max_bytes: config.dead_letters.max_bytes,
            known: Reader::default(),
            ending,
        });
        let lane = |sink: String| (sink.clone(), Lane::start(Arc::clone(&shared), sink.into(), tasks));
        let lanes = enabled.into_iter().map(lane).collect();
        Self { shared, lanes: Arc::new(lanes) }
    }

    /// Keeps an event that a sink did not take, once for each sink and sequence.
    pub(crate) async fn put(&self, sink: &str, event: &Event, reason: &str, attempts: u32) -> Result<(), Refused> {
        let told = Told { reason: reason.to_owned(), attempts, at: millis(SystemTime::now()) };
        let payload = framed(&Head { sequence: event.sequence(), told }, &single(event))?;
        let names = self.shared.link.names();
        let subject = names.letter(sink, event.sequence(), event.event_id());
        store_once(&self.shared.link, names.dead(), &subject, payload).await?;
        Ok(())
    }

    /// The letters of a sink that are retried, for its lane; once. `None` if it has no lane, or they were taken before.
    pub(crate) fn letters(&self, sink: &str) -> Option<Letters> {
        self.lanes.get(sink)?.take_letters()
    }

    /// Says that a retried letter was delivered, which ends it. Waits while the cluster is behind.
    pub(crate) async fn letter_delivered(&self, sink: &str, id: u64) {
        self.end(sink, id, Ending::Delivered).await;
    }

    /// Says that a retried letter is a dead one again, after so many attempts more.
    pub(crate) async fn letter_failed(&self, sink: &str, id: u64, reason: &str, attempts: u32) {
        let told = Told { reason: reason.to_owned(), attempts, at: millis(SystemTime::now()) };
        self.end(sink, id, Ending::Failed(told)).await;
    }

    async fn end(&self, sink: &str, id: u64, ending: Ending) {
        if let Some(lane) = self.lanes.get(sink) {
            lane.end(id, ending).await;
        }
    }

    /// Writes what became of retried letters, and leaves the others to whoever comes next. Nothing is handed out any more.
    pub(crate) async fn finish(&self) {
        futures_util::future::join_all(self.lanes.values().map(Lane::finish)).await;
    }

    pub(crate) async fn list(&self, query: LettersOf) -> Result<Vec<Letter>, Refused> {
        self.shared.check_open()?;
        let LettersOf { sink, after, limit } = query;
        let mut from = after;
        loop {
            let found = self.shared.page(sink.as_deref(), from, limit.clamp(1, MAX_LIST)).await?;
            let Some(last) = found.last() else { return Ok(Vec::new()) };
            from = last.sequence;
            let letters: Vec<Letter> = {
                let known = self.shared.known();
                found.iter().filter_map(|stored| self.shared.letter(stored, &known)).collect()
            };
            if !letters.is_empty() {
                return Ok(letters);
            }
        }
    }

    pub(crate) async fn get(&self, id: u64) -> Result<Option<Letter>, Refused> {
        self.shared.check_open()?;
        let found = self.shared.message(id).await.map_err(|error| refused(&error))?;
        Ok(found.and_then(|stored| self.shared.letter(&stored, &self.shared.known())))
    }

    /// As [`Journal::retry_dead_letters`](crate::journal::Journal::retry_dead_letters): lanes of any receiver get them.
    pub(crate) async fn retry(&self, which: Which) -> Result<Handled, Refused> {
        self.shared.change(which, Change::Retry).await
    }

    pub(crate) async fn discard(&self, which: Which) -> Result<Handled, Refused> {
        self.shared.change(which, Change::Discard).await
    }

    /// Gives up the retries of a sink that is gone, and its part in their account: what is left of them is an earlier sink's.
    pub(crate) async fn forget(&self, sink: &str) -> Result<(), Refused> {
        self.shared.forget(sink).await
    }

    pub(crate) fn status(&self, count: u64, bytes: u64, newest: u64) -> DeadLettersStatus {
        let retrying = self.shared.known().retrying() as u64;
        DeadLettersStatus { count, retrying, bytes, max_bytes: self.shared.max_bytes, newest }
    }

    /// What retries change of an account that the sink's places add up to.
    pub(crate) fn amend(&self, sink: &str, account: &mut Account) {
        let known = self.shared.known();
        let is_counted =
            |id: u64, later: &Later| later.retrying == Some(Retrying::Counted) && known.is_retried(id, later);
        let pending = known.of(sink).filter(|(id, _, later)| is_counted(*id, later)).count() as u64;
        let delivered = known.retried.get(sink).map_or(0, |(_, retried)| retried.delivered);
        // A letter is there a moment before its place counts it.
        let delivered = delivered.min(account.dead_lettered);
        let pending = pending.min(account.dead_lettered - delivered);
        account.dead_lettered -= delivered + pending;
        account.delivered += delivered;
        account.pending += pending;
    }
}

impl LetterStore {
    async fn change(&self, which: Which, change: Change) -> Result<Handled, Refused> {
        self.check_open()?;
        let mut handled = Handled::default();
        let sink = match which {
            Which::Ids(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                let letters = ids.into_iter().map(|id| (id, None)).collect();
                self.change_some(letters, change, &mut handled).await?;
                return Ok(handled);
            }
            Which::Sink(sink) => Some(sink),
            Which::All => None,
        };
        // What dies from now on is not meant: without this end, a sink that rejects everything would go round for ever.
        let info = self.link.info(self.link.names().dead()).await;
        let end = info.map_err(|error| refused(&error))?.state.last_sequence;
        let mut after = 0;
        loop {
            let found = self.page(sink.as_deref(), after, MAX_LIST).await?;
            let Some(last) = found.last() else { return Ok(handled) };
            after = last.sequence;
            let letters = {
                let known = self.known();
                let letters = found.into_iter().filter(|stored| stored.sequence <= end).filter_map(|stored| {
                    let sink = sink_of(self.link.names().dead(), &stored.subject)?;
                    let at = nanoseconds(stored.time);
                    (!known.is_counted(stored.sequence, sink, Some(at)))
                        .then(|| (stored.sequence, Some((sink.to_owned(), at))))
                });
                letters.collect()
            };
            self.change_some(letters, change, &mut handled).await?;
            if after >= end {
                return Ok(handled);
            }
        }
    }

    /// Changes letters whose sinks and times may be known, some at a time.
    async fn change_some(
        &self,
        letters: Vec<(u64, Option<Of>)>,
        change: Change,
        handled: &mut Handled,
    ) -> Result<(), Refused> {
        if let Change::Discard = change {
            let taken = stock::take(&self.records, stock::DEAD_LETTERS, letters.len() as u64).await;
            taken.map_err(|error| refused(&error))?;
        }
        let one = |(id, of): (u64, Option<Of>)| async move {
            let outcome = match change {
                Change::Retry => self.retry_one(id, of).await,
                Change::Discard => self.discard_one(id, of).await,
            };
            (id, outcome)
        };
        let mut outcomes = stream::iter(letters).map(one).buffered(AT_ONCE);
        while let Some((id, outcome)) = outcomes.next().await {
            match outcome? {
                Ok(()) => handled.done += 1,
                Err(why) => handled.skip(id, || why.to_owned()),
            }
        }
        Ok(())
    }

    /// The sink of a letter, and when its message was stored; `None` if it is gone.
    async fn of(&self, id: u64) -> Result<Option<Of>, Refused> {
        let Some(stored) = self.message(id).await.map_err(|error| refused(&error))? else { return Ok(None) };
        let sink = sink_of(self.link.names().dead(), &stored.subject);
        Ok(sink.map(|sink| (sink.to_owned(), nanoseconds(stored.time))))
    }

    /// Makes a letter pending again.
    async fn retry_one(&self, id: u64, of: Option<Of>) -> Result<Outcome, Refused> {
        let of = match of {
            Some(of) => Some(of),
            None => self.of(id).await?,
        };
        let Some((sink, stored_at)) = of else { return Ok(Err(UNKNOWN)) };
        let (retrying, mut found) = {
            let known = self.known();
            if known.is_counted(id, &sink, Some(stored_at)) {
                return Ok(Err(UNKNOWN));
            }
            let found = known.get(id).map(|(revision, later)| (*revision, (**later).clone()));
            (Some(known.counts(id, &sink, stored_at)), found)
        };
        loop {
            let (revision, told) = match found {
                // Of a letter that had this id before.
                Some((revision, later)) if !later.is_of(stored_at) => (revision, None),
                Some((_, Later { retrying: Some(_), .. })) => return Ok(Err("it is being retried already")),
                Some((revision, later)) => (revision, later.told),
                None => (0, None),
            };
            match self.sinks.get(&sink) {
                Some(true) => {}
                Some(false) => return Ok(Err("its sink is switched off")),
                None => return Ok(Err("its sink is not in the settings")),
            }
            let stored_at = Some(stored_at);
            let later = Later { sink: sink.clone(), retrying, claimed_by: None, told, stored_at };
            match self.write(id, revision, &later).await {
                Ok(_) => return Ok(Ok(())),
                Err(PutError::Stale) => found = self.read(id).await?,
                Err(PutError::Unavailable(reason)) => return Err(unavailable(&reason)),
            }
        }
    }

    /// Deletes a dead letter. One that is retried stays, unless nobody would ever end its retry.
    async fn discard_one(&self, id: u64, of: Option<Of>) -> Result<Outcome, Refused> {
        let of = match of {
            Some(of) => Some(of),
            None => self.of(id).await?,
        };
        let mut found = self.known().get(id).map(|(revision, later)| (*revision, (**later).clone()));
        while let Some((revision, later)) = found {
            let is_its = of.as_ref().is_some_and(|(_, stored_at)| later.is_of(*stored_at));
            if is_its && later.retrying.is_some() && self.is_at_work_on(&later).await? {
                return Ok(Err("it is being retried"));
            }
            match self.records.remove(&key(id), revision).await {
                Ok(_) => break,
                Err(PutError::Stale) => found = self.read(id).await?,
                Err(PutError::Unavailable(reason)) => return Err(unavailable(&reason)),
            }
        }
        let deleted = self.delete(id).await.map_err(|error| refused(&error))?;
        Ok(if deleted { Ok(()) } else { Err(UNKNOWN) })
    }

    /// Whether a lane has it, or may get it.
    async fn is_at_work_on(&self, later: &Later) -> Result<bool, Refused> {
        match &later.claimed_by {
            _ if self.sinks.get(&later.sink) == Some(&true) => Ok(true),
            Some(by) => replicas::lives(&self.records, by).await.map_err(|error| refused(&error)),
            None => Ok(false),
        }
    }

    async fn forget(&self, sink: &str) -> Result<(), Refused> {
        let info = self.link.info(self.link.names().dead()).await;
        let state = info.map_err(|error| refused(&error))?.state;
        let (letters_from, through) = (state.last_sequence + 1, nanoseconds(state.last_timestamp.into()));
        let retried: Vec<(u64, u64, Arc<Later>)> = {
            let known = self.known();
            let retried = known.of(sink).filter(|(_, _, later)| later.retrying.is_some());
            retried.map(|(id, revision, later)| (id, revision, Arc::clone(later))).collect()
        };
        for (id, revision, later) in retried {
            let dead = Later { retrying: None, claimed_by: None, ..(*later).clone() };
            match self.write(id, revision, &dead).await {
                // Another receiver has it still; the account that it is in goes all the same.
                Ok(_) | Err(PutError::Stale) => {}
                Err(PutError::Unavailable(reason)) => return Err(unavailable(&reason)),
            }
        }
        let key = format!("{RETRIED}{sink}");
        loop {
            let found = self.records.get(&key).await.map_err(|error| refused(&error))?;
            let ids = found.as_ref().and_then(|record| serde_json::from_slice::<Retried>(&record.value).ok());
            let Retried { ids, stored_at, .. } = ids.unwrap_or_default();
            let retried = Retried { delivered: 0, ids, stored_at, letters_from, letters_through: Some(through) };
            match self.records.put(&key, found.map_or(0, |record| record.revision), json(&retried)?).await {
                Ok(_) => return Ok(()),
                Err(PutError::Stale) => {}
                Err(PutError::Unavailable(reason)) => return Err(unavailable(&reason)),
            }
        }
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").finish_non_exhaustive()
    }
}
