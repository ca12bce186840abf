//! Retried dead letters on their way through a lane, and what came of them.
//!
//! Every receiver whose lane runs a sink claims letters of it, by compare-and-set on their records, so that each goes to
//! one lane at a time; what a receiver had claimed that does not live any more, another one claims. A delivered letter is
//! counted first, together with its id, and deleted then: whoever finds the id deletes what is left and counts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::cluster::records::PutError;
use super::known::{Later, RETRIED, Retried, Told, key};
use super::letter_store::{AT_ONCE, LetterStore};
use super::log::nanoseconds;
use super::once::json;
use super::replicas::Vanished;
use super::stock;
use crate::journal::lane::Gone;
use crate::journal::letters::Letter;
use crate::journal::progress::Retrying;

/// Dead letters that a lane is given at a time, at most…
const AT_A_TIME: usize = 64;
/// …and about how many bytes of them.
const BYTES_AT_A_TIME: usize = 4 << 20;
/// No more are handed out while so many are neither delivered nor dead again.
const MOST_OUT: usize = 1024;
/// Retries that have ended wait so long for others to be written with…
const GATHER: Duration = Duration::from_millis(50);
/// …unless there are so many.
const MANY_ENDED: usize = 256;
/// While records change all the time, letters are looked for this often.
const LOOK: Duration = Duration::from_millis(20);
/// How often what other receivers left behind is looked for, and what could not be written is written again.
const SWEEP: Duration = Duration::from_secs(2);
/// How long writing is waited for at the end.
const LAST: Duration = Duration::from_secs(5);

/// The retried dead letters of one sink, for its lane.
#[derive(Debug)]
pub struct Letters {
    asks: mpsc::Sender<()>,
    given: mpsc::Receiver<Vec<Letter>>,
    has_asked: bool,
}

impl Letters {
    /// As [`journal::Letters::next`](crate::journal::Letters::next): what is given here is given to no other receiver.
    pub(crate) async fn next(&mut self) -> Result<Vec<Letter>, Gone> {
        if !self.has_asked {
            self.asks.send(()).await.map_err(|_| Gone)?;
            self.has_asked = true;
        }
        let letters = self.given.recv().await.ok_or(Gone)?;
        self.has_asked = false;
        Ok(letters)
    }
}

/// How the retry of a letter ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Delivered,
    /// It is a dead letter again, after so many attempts more.
    Failed(Told),
}

/// The way to the task that looks after one sink's retried letters.
#[derive(Debug)]
pub(crate) struct Lane {
    says: mpsc::Sender<Said>,
    letters: Mutex<Option<Letters>>,
}

#[derive(Debug)]
enum Said {
    Ended(u64, Ending),
    Finish(oneshot::Sender<()>),
}

impl Lane {
    pub(crate) fn start(shared: Arc<LetterStore>, sink: Arc<str>, tasks: &TaskTracker) -> Self {
        let (says, said) = mpsc::channel(MOST_OUT);
        let (asks, asked) = mpsc::channel(1);
        let (gives, given) = mpsc::channel(1);
        let desk = Desk {
            shared,
            sink,
            said,
            asked,
            gives,
            is_asked: false,
            out: BTreeMap::new(),
            ended: BTreeMap::new(),
            due: None,
            dead: BTreeSet::new(),
            vanished: Vanished::default(),
            lost: BTreeSet::new(),
            written: None,
        };
        super::cluster::spawn(tasks, desk.run());
        Self { says, letters: Mutex::new(Some(Letters { asks, given, has_asked: false })) }
    }

    pub(crate) fn take_letters(&self) -> Option<Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) async fn end(&self, id: u64, ending: Ending) {
        // Once it is over, the letter is given to another lane.
        let _ = self.says.send(Said::Ended(id, ending)).await;
    }

    /// Writes what has ended, and gives up the rest.
    pub(crate) async fn finish(&self) {
        let (done, wait) = oneshot::channel();
        let finish = async {
            if self.says.send(Said::Finish(done)).await.is_ok() {
                let _ = wait.await;
            }
        };
        // What is left is claimed by others once this receiver does not live any more.
        let _ = timeout(LAST, finish).await;
    }
}

/// Looks after one sink's retried letters.
struct Desk {
    shared: Arc<LetterStore>,
    sink: Arc<str>,
    said: mpsc::Receiver<Said>,
    asked: mpsc::Receiver<()>,
    gives: mpsc::Sender<Vec<Letter>>,
    /// The lane waits for letters.
    is_asked: bool,
    /// Claimed here, and their end is not written.
    out: BTreeMap<u64, Claim>,
    /// Their end is to be written…
    ended: BTreeMap<u64, Ending>,
    /// …then.
    due: Option<Instant>,
    /// Receivers that do not live any more: what they claimed is free.
    dead: BTreeSet<String>,
    vanished: Vanished,
    /// Claimed here and not handed out: the answer to the claim was lost.
    lost: BTreeSet<u64>,
    /// What was written last of the sink's count, for it may be newer than what is known of it.
    written: Option<(u64, Retried)>,
}

#[derive(Debug)]
struct Claim {
    revision: u64,
    later: Later,
    /// Before this retry.
    attempts: u32,
}

impl Desk {
    async fn run(mut self) {
        let mut changed = self.shared.records.changed();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ending = self.shared.ending().clone();
        loop {
            if self.is_asked {
                self.hand_out().await;
            }
            let due = self.due;
            tokio::select! {
                biased;
                said = self.said.recv() => match said {
                    Some(Said::Ended(id, ending)) => self.note(id, ending).await,
                    Some(Said::Finish(done)) => {
                        self.finish().await;
                        // Whoever waited may have given up.
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                () = ending.cancelled() => return,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.write().await,
                Some(()) = self.asked.recv(), if !self.is_asked => self.is_asked = true,
                _ = sweep.tick() => self.sweep().await,
                found = changed.changed(), if self.is_asked => match found {
                    Ok(()) => sleep(LOOK).await,
                    Err(_) => return,
                },
            }
        }
    }

    async fn note(&mut self, id: u64, ending: Ending) {
        self.ended.insert(id, ending);
        self.due.get_or_insert_with(|| Instant::now() + GATHER);
        if self.ended.len() >= MANY_ENDED {
            self.write().await;
        }
    }

    /// Claims letters that nobody has, and gives them to the lane.
    async fn hand_out(&mut self) {
        let room = MOST_OUT.saturating_sub(self.out.len()).min(AT_A_TIME);
        let free: Vec<(u64, u64, Later)> = {
            let known = self.shared.known();
            let is_free = |id: u64, later: &Later| {
                let claimed_by = later.claimed_by.as_deref();
                known.is_retried(id, later)
                    && !self.out.contains_key(&id)
                    && claimed_by.is_none_or(|by| self.dead.contains(by) || self.lost.contains(&id))
            };
            let free = known.of(&self.sink).filter(|(id, _, later)| is_free(*id, later)).take(room);
            free.map(|(id, revision, later)| (id, revision, (**later).clone())).collect()
        };
        if free.is_empty() {
            return;
        }
        let shared = &self.shared;
        let read = |(id, revision, later): (u64, u64, Later)| async move {
            let found = shared.message(id).await;
            (id, revision, later, found)
        };
        let mut read = stream::iter(free).map(read).buffered(AT_ONCE / 4);
        let (mut had, mut bytes) = (Vec::new(), 0);
        while bytes < BYTES_AT_A_TIME
            && let Some((id, revision, later, found)) = read.next().await
        {
            match found {
                // Of a letter that had this id before.
                Ok(Some(stored)) if !later.is_of(nanoseconds(stored.time)) => {
                    drop(shared.records.remove(&key(id), revision).await);
                }
                Ok(Some(stored)) => {
                    bytes += stored.payload.len();
                    let letter = shared.letter(&stored, &shared.known());
                    had.extend(letter.map(|letter| (letter, revision, later)));
                }
                // Discarded meanwhile. Who is too late to say so finds that another one was not.
                Ok(None) => drop(shared.records.remove(&key(id), revision).await),
                Err(error) => {
                    tracing::debug!(sink = &*self.sink, %error, "retried dead letters cannot be read now");
                    break;
                }
            }
        }
        drop(read);
        let claim = |(letter, revision, later): (Letter, u64, Later)| async move {
            let later = Later { claimed_by: Some(shared.instance.to_string()), ..later };
            let revision = shared.write(letter.id, revision, &later).await.ok()?;
            Some((Claim { revision, later, attempts: letter.attempts }, letter))
        };
        let claimed: Vec<_> = stream::iter(had).map(claim).buffered(AT_ONCE).collect().await;
        let mut letters = Vec::new();
        for (claim, letter) in claimed.into_iter().flatten() {
            self.out.insert(letter.id, claim);
            letters.push(letter);
        }
        if !letters.is_empty() {
            self.is_asked = false;
            // It asked, so there is room; if it is gone, so is this receiver soon.
            let _ = self.gives.try_send(letters);
        }
    }

    /// Writes what became of letters.
    async fn write(&mut self) {
        let (mut failed, mut delivered) = (Vec::new(), Vec::new());
        for (id, ending) in std::mem::take(&mut self.ended) {
            match ending {
                Ending::Delivered => delivered.push(id),
                Ending::Failed(told) => failed.push((id, told)),
            }
        }
        self.write_failed(failed).await;
        if !delivered.is_empty() {
            if self.count(&delivered).await {
                self.remove(&delivered).await;
            } else {
                self.ended.extend(delivered.into_iter().map(|id| (id, Ending::Delivered)));
            }
        }
        self.due = (!self.ended.is_empty()).then(|| Instant::now() + SWEEP);
    }

    async fn write_failed(&mut self, failed: Vec<(u64, Told)>) {
        let shared = &self.shared;
        // One that is not out is another receiver's by now.
        let failed: Vec<_> = failed.into_iter().filter_map(|(id, told)| Some((id, told, self.out.get(&id)?))).collect();
        let write = |(id, told, claim): (u64, Told, &Claim)| {
            let attempts = claim.attempts.saturating_add(told.attempts.max(1));
            let (sink, stored_at) = (claim.later.sink.clone(), claim.later.stored_at);
            let dead = Later { sink, retrying: None, claimed_by: None, told: None, stored_at };
            let (dead, revision) = (Later { told: Some(Told { attempts, ..told.clone() }), ..dead }, claim.revision);
            async move { (id, told, shared.write(id, revision, &dead).await) }
        };
        let written: Vec<_> = stream::iter(failed).map(write).buffer_unordered(AT_ONCE).collect().await;
        for (id, told, written) in written {
            match written {
                Ok(_) | Err(PutError::Stale) => {
                    self.out.remove(&id);
                }
                Err(PutError::Unavailable(reason)) => {
                    tracing::debug!(sink = &*self.sink, id, reason, "it is written later that a retry has failed");
                    self.ended.insert(id, Ending::Failed(told));
                }
            }
        }
    }

    /// Counts letters as delivered, each once, whoever says so; false if that cannot be written now.
    async fn count(&mut self, delivered: &[u64]) -> bool {
        let key = format!("{RETRIED}{}", self.sink);
        let mut changed = self.shared.records.changed();
        let end = Instant::now() + LAST;
        while Instant::now() < end {
            changed.borrow_and_update();
            let (revision, retried) = {
                let known = self.shared.known();
                let states = [known.retried.get(&*self.sink), self.written.as_ref()];
                let newest = states.into_iter().flatten().max_by_key(|(revision, _)| *revision);
                let (revision, before) = newest.cloned().unwrap_or_default();
                let mut retried = before.clone();
                // Every id in it was in the records before: one that is not there now is gone for good.
                retried.ids.retain(|id| known.get(*id).is_some());
                retried.stored_at.retain(|id, _| known.get(*id).is_some());
                for id in delivered {
                    let is_retried = |later: &Later| *later.sink == *self.sink && later.retrying.is_some();
                    if let Some((_, later)) = known.get(*id).filter(|(_, later)| is_retried(later))
                        && retried.adds(*id, later.stored_at)
                        && later.retrying == Some(Retrying::Counted)
                    {
                        retried.delivered += 1;
                    }
                }
                if retried == before {
                    return true;
                }
                (revision, retried)
            };
            let Ok(value) = json(&retried) else { return false };
            match self.shared.records.put(&key, revision, value).await {
                Ok(revision) => {
                    self.written = Some((revision, retried));
                    return true;
                }
                // What another one wrote comes soon.
                Err(PutError::Stale) => drop(timeout(Duration::from_secs(1), changed.changed()).await),
                Err(PutError::Unavailable(reason)) => {
                    tracing::debug!(sink = &*self.sink, reason, "delivered dead letters are counted later");
                    return false;
                }
            }
        }
        false
    }

    /// Deletes what is counted; what that does not reach now, a later sweep does.
    async fn remove(&mut self, counted: &[u64]) {
        let shared = &self.shared;
        if counted.is_empty() {
            return;
        }
        if let Err(error) = stock::take(&shared.records, stock::DEAD_LETTERS, counted.len() as u64).await {
            tracing::debug!(sink = &*self.sink, %error, "delivered dead letters are deleted later");
            return;
        }
        let letters: Vec<(u64, Option<u64>, Option<u64>)> = {
            let known = shared.known();
            let stored_at = |id: u64| known.get(id).and_then(|(_, later)| later.stored_at);
            let of = |id: &u64| (*id, stored_at(*id), self.out.remove(id).map(|claim| claim.revision));
            counted.iter().map(of).collect()
        };
        let remove = |(id, stored_at, revision)| async move {
            if shared.delete_stored_at(id, stored_at).await.is_err() {
                return;
            }
            let mut revision = revision;
            loop {
                if let Some(revision) = revision
                    && !matches!(shared.records.remove(&key(id), revision).await, Err(PutError::Stale))
                {
                    return;
                }
                // Somebody has written to it since.
                revision = match shared.read(id).await {
                    Ok(Some((revision, _))) => Some(revision),
                    _ => return,
                };
            }
        };
        stream::iter(letters).map(remove).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// Looks after what receivers left behind that do not live any more.
    async fn sweep(&mut self) {
        let of_sink: Vec<(u64, Arc<Later>)> = {
            let known = self.shared.known();
            let all = known.of(&self.sink);
            let not_here = all.filter(|(id, _, _)| !self.out.contains_key(id) && !self.ended.contains_key(id));
            not_here.map(|(id, _, later)| (id, Arc::clone(later))).collect()
        };
        let others: BTreeSet<&str> = of_sink
            .iter()
            .filter_map(|(_, later)| later.claimed_by.as_deref())
            .filter(|by| **by != *self.shared.instance)
            .collect();
        let mut dead = BTreeSet::new();
        for instance in others {
            if self.dead.contains(instance) || self.vanished.is_gone(&self.shared.records, instance).await {
                dead.insert(instance.to_owned());
            }
        }
        self.dead = dead;
        let is_own = |later: &Later| later.claimed_by.as_deref() == Some(&*self.shared.instance);
        self.lost = of_sink.iter().filter(|(_, later)| is_own(later)).map(|(id, _)| *id).collect();
        let is_left =
            |later: &Later| is_own(later) || later.claimed_by.as_deref().is_none_or(|by| self.dead.contains(by));
        let left: Vec<u64> = {
            let known = self.shared.known();
            let is_counted = |id: u64, later: &Later| known.is_counted(id, &later.sink, later.stored_at);
            let left = of_sink.iter().filter(|(id, later)| is_counted(*id, later) && is_left(later));
            left.map(|(id, _)| *id).collect()
        };
        self.remove(&left).await;
    }

    async fn finish(&mut self) {
        self.said.close();
        while let Some(Said::Ended(id, ending)) = self.said.recv().await {
            self.ended.insert(id, ending);
        }
        // Those that cannot be written now are tried once more by whoever comes next.
        self.write().await;
        let shared = &self.shared;
        let release = |(id, claim): (u64, Claim)| async move {
            let free = Later { claimed_by: None, ..claim.later };
            // Otherwise it is claimed once this receiver does not live any more.
            let _ = shared.write(id, claim.revision, &free).await;
        };
        let left = std::mem::take(&mut self.out);
        stream::iter(left).map(release).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}
