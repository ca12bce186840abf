//! Dead letters: new ones, and those that are tried again or discarded.
//!
//! A retried dead letter keeps its row, which is the only durable copy of its event: the row says that it is retried, and
//! its sink's account counts it as pending. Both change in one commit, at the retry and at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::batch::{Batch, Done};
use super::mailbox::{Forgotten, Step};
use super::{CURSOR_DELAY, TICK, Writer};
use crate::journal::local::store::{Commit, DeadLetter, Pick, StoreError};
use crate::journal::outcome::Refused;
use crate::journal::outcome::Settled;
use crate::journal::progress::Place;
use crate::journal::progress::Retrying;

/// Rows that one commit changes, at most…
const STEP_ROWS: usize = 1000;
/// …and about how many bytes of events: lanes and requests wait for that.
const STEP_BYTES: usize = 4 << 20;
/// So many retries that have ended are written at once.
const MANY_ENDED: usize = 256;

/// How the retry of a dead letter ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Delivered,
    /// It is a dead letter again.
    Failed {
        reason: String,
        attempts: u32,
        /// Milliseconds since 1970.
        at: u64,
    },
}

/// Retries that have ended and are to be written. As many as were handed out to the lanes, at most.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    by_letter: BTreeMap<u64, (Arc<str>, Ending)>,
    /// When the first of them came, or when it is worth trying again.
    since: Option<Instant>,
}

/// A change to dead letters, one commit's worth.
#[derive(Default)]
struct Change {
    letters: Vec<DeadLetter>,
    gone: BTreeSet<u64>,
    gone_bytes: u64,
    /// Places that change with them.
    places: BTreeMap<Arc<str>, Place>,
    /// Retries that begin, and that end.
    began: u64,
    ended: u64,
    bytes: usize,
}

impl Endings {
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }
}

impl Writer {
    /// Puts an event that a sink did not take into the batch, if there is room for it.
    pub(crate) fn take_letter(&self, letter: DeadLetter, reply: Done, batch: &mut Batch) {
        // Evicted while it was tried: it is in the account already.
        if self.recovered.places.get(&*letter.sink).is_some_and(|place| place.is_settled(letter.sequence)) {
            let _ = reply.send(Ok(()));
            return;
        }
        let waiting: usize = batch.letters.iter().map(|letter| letter.event.len()).sum();
        let needed = self.recovered.dead_letter_bytes + (waiting + letter.event.len()) as u64;
        if needed > self.limits.dead_letter_bytes {
            let _ = reply.send(Err(Refused::Full));
        } else {
            batch.letters.push(letter);
            batch.lettering.push(reply);
        }
    }

    /// What became of a retried letter; it is written soon.
    pub(crate) fn note_ending(&mut self, sink: Arc<str>, letter: u64, ending: Ending) {
        self.endings.by_letter.insert(letter, (sink, ending));
        self.endings.since.get_or_insert_with(Instant::now);
    }

    pub(crate) fn endings_are_due(&self) -> bool {
        let waited = self.endings.since.is_some_and(|since| since.elapsed() >= CURSOR_DELAY);
        waited || self.endings.by_letter.len() >= MANY_ENDED && !self.is_blocked()
    }

    /// Writes what became of retried letters, one step of it. On a disk that has no room for it, it is tried again.
    pub(crate) fn commit_endings(&mut self) -> Result<(), String> {
        match self.write_endings() {
            Ok(ended) => {
                for letter in ended {
                    if let Some((sink, _)) = self.endings.by_letter.remove(&letter) {
                        self.shared.retries.ended(&sink);
                    }
                }
                self.endings.since = self.endings.by_letter.first_key_value().map(|_| Instant::now());
                Ok(())
            }
            Err(error) => {
                self.endings.since = Some(Instant::now() + TICK);
                self.hindered(0, error)
            }
        }
    }

    /// The same, all of it, before the journal closes.
    pub(crate) fn commit_all_endings(&mut self) -> Result<(), String> {
        loop {
            let left = self.endings.by_letter.len();
            if left > 0 {
                self.commit_endings()?;
            }
            // None are left, or the disk has no room: then they are tried again in the next life.
            if self.endings.by_letter.len() == left {
                return Ok(());
            }
        }
    }

    /// The letters whose end is written.
    fn write_endings(&mut self) -> Result<Vec<u64>, StoreError> {
        let mut change = Change::default();
        let mut ended = Vec::new();
        for (&id, (sink, ending)) in &self.endings.by_letter {
            if change.is_full() {
                break;
            }
            ended.push(id);
            let Some(mut letter) = self.recovered.store.reader().letter(id)? else { continue };
            let Some(retrying) = letter.retrying.take() else { continue };
            match ending {
                Ending::Delivered => {
                    change.end_retry(&self.recovered.places, sink, retrying, Settled::Delivered);
                    change.delete(&letter);
                }
                Ending::Failed { reason, attempts, at } => {
                    change.end_retry(&self.recovered.places, sink, retrying, Settled::DeadLettered);
                    letter.reason.clone_from(reason);
                    letter.attempts = letter.attempts.saturating_add((*attempts).max(1));
                    letter.at = *at;
                    change.write(letter);
                }
            }
        }
        self.apply(change)?;
        Ok(ended)
    }

    /// Makes dead letters pending again.
    pub(crate) fn retry_letters(&mut self, ids: &[u64]) -> Result<Step, StoreError> {
        let (mut step, mut change) = (Step::default(), Change::default());
        for &id in ids {
            if change.is_full() || step.taken == STEP_ROWS {
                break;
            }
            step.taken += 1;
            let Some(mut letter) = self.recovered.store.reader().letter(id)? else {
                step.skipped.push((id, "there is no dead letter of this id"));
                continue;
            };
            let why = match self.recovered.places.get(letter.sink.as_str()) {
                _ if letter.retrying.is_some() => "it is being retried already",
                Some(place) if place.has_lane() => {
                    let place = change.place(&self.recovered.places, &letter.sink);
                    letter.retrying = place.map(|place| place.retry(id));
                    change.began += 1;
                    change.write(letter);
                    continue;
                }
                Some(place) if !place.gone => "its sink is switched off",
                _ => "its sink is not in the settings",
            };
            step.skipped.push((id, why));
        }
        step.changed = change.began;
        let began: Vec<(u64, String)> = change.letters.iter().map(|letter| (letter.id, letter.sink.clone())).collect();
        self.apply(change)?;
        self.shared.retries.add(&began);
        Ok(step)
    }

    /// Deletes dead letters. The account goes on counting them: that is what became of their events.
    pub(crate) fn discard_letters(&mut self, ids: &[u64]) -> Result<Step, StoreError> {
        let (mut step, mut change) = (Step::default(), Change::default());
        let mut waited = Vec::new();
        for &id in ids {
            if change.is_full() || step.taken == STEP_ROWS {
                break;
            }
            step.taken += 1;
            let Some(letter) = self.recovered.store.reader().letter(id)? else {
                step.skipped.push((id, "there is no dead letter of this id"));
                continue;
            };
            if let Some(retrying) = letter.retrying {
                if self.recovered.places.get(letter.sink.as_str()).is_some_and(Place::has_lane) {
                    step.skipped.push((id, "it is being retried"));
                    continue;
                }
                // Nobody would ever end its retry.
                change.end_retry(&self.recovered.places, &letter.sink, retrying, Settled::DeadLettered);
                waited.push((id, letter.sink.clone()));
            }
            change.delete(&letter);
        }
        step.changed = change.gone.len() as u64;
        self.apply(change)?;
        self.shared.retries.remove(&waited);
        Ok(step)
    }

    /// Drops the place of a sink that is gone from the settings. Before that its retried dead letters, which no lane
    /// will ever have, become dead ones again, a step at a time.
    pub(crate) fn forget(&mut self, sink: &str) -> Result<Forgotten, StoreError> {
        if !self.recovered.places.get(sink).is_some_and(|place| place.gone) {
            return Ok(Forgotten::NoSuchSink);
        }
        let waiting = self.shared.retries.waiting(sink, STEP_ROWS);
        if !waiting.is_empty() {
            self.give_up_retries(sink, &waiting)?;
            return Ok(Forgotten::NotYet);
        }
        self.recovered.store.commit(&Commit { forgotten: vec![sink], ..Commit::default() })?;
        self.recovered.places.remove(sink);
        self.dirty.remove(sink);
        Ok(Forgotten::Yes)
    }

    fn give_up_retries(&mut self, sink: &str, waiting: &[u64]) -> Result<(), StoreError> {
        let mut change = Change::default();
        let mut given_up = Vec::new();
        for &id in waiting {
            if change.is_full() {
                break;
            }
            given_up.push((id, sink.to_owned()));
            let Some(mut letter) = self.recovered.store.reader().letter(id)? else { continue };
            let Some(retrying) = letter.retrying.take() else { continue };
            change.end_retry(&self.recovered.places, sink, retrying, Settled::DeadLettered);
            change.write(letter);
        }
        self.apply(change)?;
        self.shared.retries.remove(&given_up);
        Ok(())
    }

    fn apply(&mut self, change: Change) -> Result<(), StoreError> {
        if change.letters.is_empty() && change.gone.is_empty() {
            return Ok(());
        }
        let mut state = self.recovered.state.clone();
        state.dead_letters = state.dead_letters.saturating_sub(change.gone.len() as u64);
        while change.gone.contains(&state.letters_floor) {
            let next = Pick { after: state.letters_floor, limit: 1, ..Pick::default() };
            let next = self.recovered.store.reader().letters(&next)?.rows;
            state.letters_floor = next.first().map_or(state.letters + 1, |letter| letter.id);
        }
        let commit = Commit {
            places: change.places.iter().map(|(sink, place)| (&**sink, place)).collect(),
            dead_letters: change.letters,
            letters_gone: change.gone.into_iter().collect(),
            state: state.changed_from(&self.recovered.state),
            ..Commit::default()
        };
        self.recovered.store.commit(&commit)?;
        drop(commit);
        self.recovered.state = state;
        self.recovered.places.extend(change.places);
        self.recovered.dead_letter_bytes = self.recovered.dead_letter_bytes.saturating_sub(change.gone_bytes);
        self.recovered.retrying = (self.recovered.retrying + change.began).saturating_sub(change.ended);
        Ok(())
    }
}

impl Change {
    fn is_full(&self) -> bool {
        self.bytes >= STEP_BYTES || self.letters.len() + self.gone.len() >= STEP_ROWS
    }

    fn write(&mut self, letter: DeadLetter) {
        self.bytes += letter.event.len();
        self.letters.push(letter);
    }

    fn delete(&mut self, letter: &DeadLetter) {
        self.bytes += letter.event.len();
        self.gone_bytes += letter.event.len() as u64;
        self.gone.insert(letter.id);
    }

    fn end_retry(&mut self, places: &BTreeMap<Arc<str>, Place>, sink: &str, retrying: Retrying, how: Settled) {
        self.ended += 1;
        if let Some(place) = self.place(places, sink) {
            place.end_retry(retrying, how);
        }
    }

    /// The sink's place as it will be.
    fn place(&mut self, places: &BTreeMap<Arc<str>, Place>, sink: &str) -> Option<&mut Place> {
        if !self.places.contains_key(sink) {
            let (name, place) = places.get_key_value(sink)?;
            self.places.insert(Arc::clone(name), place.clone());
        }
        self.places.get_mut(sink)
    }
}
