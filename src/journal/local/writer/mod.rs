//! The one owner of the journal's tail: a thread that takes whatever waits, decides what is a duplicate, writes one
//! group, syncs once, and only then settles what it took.
//!
//! Because one thread decides, there is no claim to take on an id and none to give back: a copy of an event that is
//! being written is in the same group and shares its fate, or in a later one and finds the id known. A request that was
//! given up on stays in its group and is settled like the others.

mod append;
mod batch;
mod end;
mod letters;
mod mailbox;
mod obstacle;
mod operate;
mod room;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

use super::ballast::Ballast;
use super::bodies::Quarantine;
use super::dedup::Window;
use super::folder::Folder;
use super::mark::{Mark, MarkFile};
use super::retries::Retries;
use super::ring::Ring;
use super::store::{Commit, NewGroup, Note, Store, StoreError, StoreState};
use crate::journal::disk::Disk;
use crate::journal::event::{Group, from_millis};
use crate::journal::identity::LogIdentity;
use crate::journal::outcome::Settled;
use crate::journal::outcome::{Refused, State};
use crate::journal::progress::Place;
use crate::journal::quarantine::word;
use crate::journal::status::{DeadLettersStatus, QuarantineStatus, SinkStatus, Status};
use crate::telemetry::{LineLimit, Metrics};
use batch::Batch;
pub(crate) use letters::Ending;
use letters::Endings;
pub(crate) use mailbox::{Answer, Append, Arriving, Command, Forgotten, Mailbox, Operation, Released, Step, Waiter};
use mailbox::{Answers, Posted};
use obstacle::Obstacle;
use room::{ALARM_EVERY, Ceiling, Room, WARN_EVERY};

/// How long a moved cursor may wait for a group to travel with, before it is written by itself.
const CURSOR_DELAY: Duration = Duration::from_millis(200);
/// How often retention, checkpoints and a full journal are looked at when nothing else happens.
const TICK: Duration = Duration::from_secs(1);
/// The same, when one step could not delete all that may go.
const DELETE_PAUSE: Duration = Duration::from_millis(50);
/// From so many events on a group is worth waiting for: at the pace of one event a commit nothing is ever delayed.
const MANY: usize = 8;
/// How often in a row it is waited for, by letting others have the core.
const YIELDS: u32 = 4;
/// Known ids seen again that wait for the next group, at most. Those beyond are remembered in RAM only.
const TOUCHED: usize = 4096;

/// Bounds the writer keeps.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max_bytes: u64,
    pub(crate) retention: Duration,
    pub(crate) dead_letter_bytes: u64,
    pub(crate) quarantine_bytes: u64,
    pub(crate) dedup_capacity: u64,
    pub(crate) dedup_window: Duration,
}

/// What recovery found, and the writer goes on from.
pub(crate) struct Recovered {
    /// `None`: it could not be written on a full disk, and the next start tries again.
    pub(crate) log: Option<LogIdentity>,
    pub(crate) store: Box<dyn Store>,
    pub(crate) state: StoreState,
    pub(crate) places: BTreeMap<Arc<str>, Place>,
    pub(crate) window: Window,
    pub(crate) quarantine: Quarantine,
    /// The newest sequence ever given.
    pub(crate) tail: u64,
    pub(crate) live_bytes: u64,
    pub(crate) dead_letter_bytes: u64,
    /// Dead letters that are pending again.
    pub(crate) retrying: u64,
    /// The same by sink, oldest first, until the journal is open.
    pub(crate) to_retry: BTreeMap<String, Vec<u64>>,
    pub(crate) notes: Vec<Note>,
    pub(crate) mark: Option<MarkFile>,
    pub(crate) ballast: Option<Ballast>,
    /// The locked folder; the lock stays until the store is closed, or the process has ended.
    pub(crate) lock: Option<Folder>,
}

/// What the writer shares with the handles.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ring: Ring,
    pub(crate) state: watch::Sender<State>,
    /// As of the last commit or settlement; the writer replaces it, `status` reads it even while a sync hangs.
    pub(crate) status: Mutex<Status>,
    pub(crate) retries: Retries,
    /// As of the last commit.
    pub(crate) notes: Mutex<BTreeMap<String, String>>,
}

impl Shared {
    pub(crate) fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, note: &Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        match &note.text {
            Some(text) => notes.insert(note.note.clone(), text.clone()),
            None => notes.remove(&note.note),
        };
    }
}

pub(crate) struct Writer {
    inbox: Receiver<Posted>,
    shared: Arc<Shared>,
    limits: Limits,
    metrics: Arc<Metrics>,
    recovered: Recovered,
    /// The window's clock: seconds, monotonic, far enough from zero for ids older than this process.
    clock: Clock,
    /// Places that moved since they were last written, and since when.
    dirty: BTreeMap<Arc<str>, ()>,
    dirty_since: Option<Instant>,
    touched: Vec<(Box<str>, u32)>,
    /// Events in the last group, and bytes of its block.
    last_group: usize,
    last_block: usize,
    endings: Endings,
    /// When the oldest group was written, as of the last look.
    oldest: Option<SystemTime>,
    /// When housekeeping is due.
    tick_at: Instant,
    /// What keeps events out, and why in words.
    obstacle: Option<(Obstacle, String)>,
    /// Set by a full disk, until it has room again.
    ceiling: Option<Ceiling>,
    /// As of the last look; without one, the store has none.
    disk: Option<Disk>,
    log_bytes: Option<u64>,
    /// Of the warning that a reader holds the log.
    log_warned: LineLimit,
    /// Of evictions.
    alarmed: LineLimit,
    /// [`Command::Close`] has come: nothing is taken after it.
    closing: bool,
}

/// Seconds for the window: monotonic, so that a jump of the wall clock neither forgets ids nor keeps them for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    base: u32,
}

impl Clock {
    /// `base` is the largest age an id from before this process can have.
    pub(crate) fn starting_at(base: u32) -> Self {
        Self { start: Instant::now(), base }
    }

    pub(crate) fn now(self) -> u32 {
        self.base.saturating_add(u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX))
    }
}

impl Writer {
    pub(crate) fn new(
        inbox: Receiver<Posted>,
        shared: Arc<Shared>,
        limits: Limits,
        metrics: Arc<Metrics>,
        recovered: Recovered,
        clock: Clock,
    ) -> Self {
        let mut writer = Self {
            inbox,
            shared,
            limits,
            metrics,
            recovered,
            clock,
            dirty: BTreeMap::new(),
            dirty_since: None,
            touched: Vec::new(),
            last_group: 0,
            last_block: 0,
            endings: Endings::default(),
            oldest: None,
            tick_at: Instant::now() + TICK,
            obstacle: None,
            ceiling: None,
            disk: None,
            log_bytes: None,
            log_warned: LineLimit::new(1, WARN_EVERY),
            alarmed: LineLimit::new(1, ALARM_EVERY),
            closing: false,
        };
        for sink in writer.recovered.places.keys() {
            writer.dirty.insert(Arc::clone(sink), ());
        }
        writer.dirty_since = Some(Instant::now());
        // What cannot be read now is read at the first tick.
        let oldest = writer.recovered.store.oldest(1).unwrap_or_default();
        writer.oldest = oldest.first().map(|head| from_millis(head.at));
        writer.look_at_disk();
        writer.log_bytes = writer.recovered.store.log_bytes();
        // What is final shows with the first write.
        if let Err(error) = writer.disk_has_room(0)
            && let Ok((obstacle, reason)) = writer.obstacle_of(0, error)
        {
            let reason = match obstacle {
                Obstacle::Log(_) => reason,
                _ => format!("not even the room that cursors need on a full disk can be taken: {reason}"),
            };
            writer.stop_at(obstacle, &reason);
        }
        writer.publish();
        writer
    }

    /// Runs until it is closed or fails. The journal's state tells which.
    pub(crate) fn run(mut self) {
        let ended = loop {
            let command = match self.inbox.recv_timeout(self.patience()) {
                Ok(posted) => posted.take(),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Command::Close),
            };
            match self.step(command) {
                Ok(()) if self.closing => break self.close(),
                Ok(()) => {}
                Err(fatal) => break Err(fatal),
            }
        };
        if let Err(reason) = ended {
            self.fail(&reason);
            self.wait_for_close();
        }
    }

    /// How long nothing may come before something else is due.
    fn patience(&self) -> Duration {
        let tick = self.tick_at.saturating_duration_since(Instant::now());
        let since = [self.dirty_since, self.endings.since()].into_iter().flatten().min();
        since.map_or(tick, |since| CURSOR_DELAY.saturating_sub(since.elapsed()).min(tick))
    }

    /// One commit's worth of work. An error is final.
    fn step(&mut self, first: Option<Command>) -> Result<(), String> {
        let mut batch = Batch::default();
        if let Some(command) = first
            && let Err(fatal) = self.gather(command, &mut batch)
        {
            batch.refuse(Refused::Failed);
            return Err(fatal);
        }
        let operation = batch.operation.take();
        let committed = self.commit(batch);
        match operation {
            Some(operation) if committed.is_ok() => self.operate(operation)?,
            Some(operation) => operation.refuse(Refused::Failed),
            None => {}
        }
        committed?;
        if self.endings_are_due() {
            self.commit_endings()?;
        }
        if self.dirty_since.is_some_and(|since| since.elapsed() >= CURSOR_DELAY) {
            match &self.obstacle {
                // They are part of the tick's attempt.
                Some((Obstacle::Write | Obstacle::Busy, _)) => self.dirty_since = Some(Instant::now() + TICK),
                _ => self.commit_places()?,
            }
        }
        if self.tick_at <= Instant::now() {
            self.tick()?;
        }
        self.maintain()?;
        self.publish();
        Ok(())
    }

    /// Takes `first` and whatever waits behind it, as far as the batch has room. When events come in numbers, those whose
    /// requests share this core are let go ahead a few times: a commit costs the same for few as for many. So are they when
    /// there were many the last time, for whatever woke this thread may have come just before them.
    fn gather(&mut self, first: Command, batch: &mut Batch) -> Result<(), String> {
        self.take(first, batch)?;
        let mut yielded = 0;
        while !self.closing && batch.has_room(self.limits.max_bytes) {
            match self.inbox.try_recv() {
                Ok(posted) => {
                    if let Some(command) = posted.take() {
                        self.take(command, batch)?;
                    }
                    yielded = 0;
                }
                Err(_) if yielded == YIELDS || batch.waiting.len().max(self.last_group) < MANY => break,
                Err(_) => {
                    std::thread::yield_now();
                    yielded += 1;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, command: Command, batch: &mut Batch) -> Result<(), String> {
        match command {
            Command::Append(append) => self.take_append(*append, batch),
            Command::Quarantine { kept, admitted, outcome, reply } => {
                if self.recovered.quarantine.knows(kept.digest) {
                    batch.keeping_known.push((admitted, outcome, reply));
                    return Ok(());
                }
                if !batch.keeps(kept.digest) {
                    batch.kept.push(*kept);
                }
                batch.keeping.push((admitted, outcome, reply));
            }
            Command::Settle { sink, from, to, how } => {
                if let Some(place) = self.recovered.places.get_mut(&sink) {
                    place.settle(from, to, how);
                    self.dirty.insert(sink, ());
                    self.dirty_since.get_or_insert_with(Instant::now);
                }
            }
            Command::DeadLetter { letter, reply } => self.take_letter(*letter, reply, batch),
            Command::EndRetry { sink, letter, ending } => self.note_ending(sink, letter, ending),
            Command::Operate(operation) => batch.operation = Some(operation),
            Command::Damaged(reason) => return Err(reason),
            Command::Close => self.closing = true,
        }
        Ok(())
    }

    /// Finds room for the batch's group, or refuses it, and writes what is left.
    fn commit(&mut self, mut batch: Batch) -> Result<(), String> {
        if let Err(fatal) = self.settle_known(&mut batch) {
            batch.refuse(Refused::Failed);
            return Err(fatal);
        }
        if self.is_blocked() {
            // What little room a full disk has belongs to the cursors.
            batch.refuse(self.refusal());
            return Ok(());
        }
        let mut room = Room::default();
        if batch.count > 0 {
            let bytes = batch.block.len() as u64;
            let found = self.room_for(bytes).and_then(|room| self.keeps_back(bytes).map(|()| room));
            match found {
                Ok(Some(found)) => room = found,
                Ok(None) => {
                    self.stop_at(Obstacle::MaxBytes(bytes), "journal.max_bytes is reached");
                    batch.refuse_group(Refused::Full);
                }
                Err(error) => return self.refuse(batch, bytes, error),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.metrics.conflicts.inc_by(batch.contesting.len() as u64);
        for kept in std::mem::take(&mut batch.contesting) {
            if !self.recovered.quarantine.knows(kept.digest) && !batch.keeps(kept.digest) {
                batch.kept.push(kept);
            }
        }
        self.write(batch, &room)
    }

    /// Answers what needs no commit: a duplicate's 200 rests on the files as much as its first copy's.
    fn settle_known(&mut self, batch: &mut Batch) -> Result<(), String> {
        if !batch.known.is_empty() || !batch.keeping_known.is_empty() {
            self.recovered.store.in_place().map_err(|error| error.to_string())?;
            batch.settle_known(&self.metrics);
        }
        Ok(())
    }

    /// Writes the batch, syncs, settles. An error is final; a full disk is not one.
    fn write(&mut self, mut batch: Batch, room: &Room) -> Result<(), String> {
        let first = self.recovered.tail + 1;
        let group = (batch.count > 0).then(|| {
            for (id, digest) in &self.touched {
                batch.ids.push(id, *digest);
            }
            Arc::new(Group {
                first,
                last: self.recovered.tail + batch.count,
                at: SystemTime::now(),
                block: Bytes::from(std::mem::take(&mut batch.block)),
            })
        });
        let mut places = self.recovered.places.clone();
        let mut state = self.recovered.state.clone();
        for letter in &mut batch.letters {
            state.letters += 1;
            letter.id = state.letters;
            if let Some((sink, place)) = places.get_key_value(letter.sink.as_str()) {
                let (sink, mut place) = (Arc::clone(sink), place.clone());
                place.settle(letter.sequence, letter.sequence, Settled::DeadLettered);
                self.dirty.insert(Arc::clone(&sink), ());
                places.insert(sink, place);
            }
        }
        self.apply_room(room, &mut places, &mut state);
        state.dead_letters += batch.letters.len() as u64;
        let released = batch.released();
        let dropped = self.recovered.quarantine.change(&released, &mut batch.kept, &mut state);
        let commit = Commit {
            group: group.as_deref().map(|group| NewGroup { group, ids: batch.ids.as_bytes() }),
            places: self.dirty.keys().filter_map(|sink| Some((&**sink, places.get(sink)?))).collect(),
            dead_letters: std::mem::take(&mut batch.letters),
            quarantine: std::mem::take(&mut batch.kept),
            kept_gone: released,
            quarantine_through: dropped.through,
            groups_through: (room.through > 0).then_some(room.through),
            state: state.changed_from(&self.recovered.state),
            ..Commit::default()
        };
        let started = Instant::now();
        let written = self.recovered.store.commit(&commit);
        self.metrics.journal_commit.observe(started.elapsed().as_secs_f64());
        match written {
            Ok(()) => {}
            Err(error) => {
                self.recovered.quarantine.put_back(&commit.quarantine, dropped);
                drop(commit);
                return self.refuse(batch, group.map_or(0, |group| group.size()), error);
            }
        }
        for kept in &commit.quarantine {
            self.metrics.quarantined.get_or_create(&[("reason", word(&kept.reason))]).inc();
        }
        self.metrics.quarantine_dropped.inc_by(dropped.count());
        self.recovered.dead_letter_bytes += commit.dead_letters.iter().map(|l| l.event.len() as u64).sum::<u64>();
        drop(commit);
        let is_marked = group.is_none() && state.kept == self.recovered.state.kept;
        self.recovered.state = state;
        self.recovered.places = places;
        self.room_made(room);
        self.clean();
        self.recovered.tail = group.as_ref().map_or(self.recovered.tail, |group| group.last);
        if !is_marked {
            self.write_mark();
        }
        if let Some(group) = group {
            self.metrics.journal_groups.inc();
            self.last_group = batch.order.len();
            self.last_block = group.block.len();
            self.touched.clear();
            self.recovered.live_bytes += group.size();
            self.oldest.get_or_insert(group.at);
            let now = self.clock.now();
            for &(hash, digest) in &batch.order {
                self.recovered.window.insert_new(hash, digest, now);
            }
            self.shared.ring.push(group);
        }
        // Before the answers: whoever asks for the status after a 200 finds that event in it.
        self.publish();
        let mut answers = Answers::default();
        for waiting in batch.waiting {
            waiting.settle(&self.metrics, &mut answers);
        }
        drop(answers);
        for (admitted, outcome, reply) in batch.keeping {
            admitted.settle(outcome);
            let _ = reply.send(Ok(()));
        }
        for reply in batch.lettering {
            let _ = reply.send(Ok(()));
        }
        Ok(())
    }

    /// Refuses the whole batch for what kept it from being written.
    fn refuse(&mut self, batch: Batch, bytes: u64, error: StoreError) -> Result<(), String> {
        let found = self.obstacle_of(bytes, error);
        batch.refuse(found.as_ref().map_or(Refused::Failed, |(obstacle, _)| obstacle.refused()));
        let (obstacle, reason) = found?;
        self.hindered_by(obstacle, &reason)
    }

    fn clean(&mut self) {
        self.dirty.clear();
        self.dirty_since = None;
    }

    fn mark(&self) -> Mark {
        let StoreState { floor, kept, .. } = self.recovered.state;
        Mark { format: super::sqlite::FORMAT, last: self.recovered.tail, floor, kept, log: self.recovered.log }
    }

    fn write_mark(&mut self) {
        let mark = self.mark();
        let Some(file) = &mut self.recovered.mark else { return };
        // Without its mark the next start can tell less, but loses nothing.
        if let Err(error) = file.write(mark) {
            tracing::warn!(%error, "cannot write the journal's high-water mark");
        }
    }

    fn publish(&self) {
        let Recovered { places, tail, state, live_bytes, window, dead_letter_bytes, retrying, quarantine, .. } =
            &self.recovered;
        let sinks = places.iter().map(|(name, place)| SinkStatus {
            hindered: None,
            name: Arc::clone(name),
            account: place.account(*tail),
            enabled: place.enabled,
            required: place.required,
            gone: place.gone,
        });
        let mut status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.first_sequence = state.floor;
        status.last_sequence = *tail;
        status.bytes = *live_bytes;
        status.oldest = self.oldest;
        status.hindered = self.obstacle.as_ref().map(|(_, reason)| reason.clone());
        status.replay_limit = self.ceiling.map(|ceiling| ceiling.bytes);
        if status.disk != self.disk {
            status.disk.clone_from(&self.disk);
        }
        status.log_bytes = self.log_bytes;
        status.dedup_ids = window.len();
        status.dead_letters = DeadLettersStatus {
            count: state.dead_letters,
            retrying: *retrying,
            bytes: *dead_letter_bytes,
            max_bytes: self.limits.dead_letter_bytes,
            newest: state.letters,
        };
        status.quarantine = QuarantineStatus {
            count: state.quarantined,
            bytes: quarantine.bytes(),
            max_bytes: self.limits.quarantine_bytes,
            newest: state.kept,
        };
        status.sinks.clear();
        status.sinks.extend(sinks);
    }
}
