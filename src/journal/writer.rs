//! The one owner of the journal's tail: a thread that takes whatever waits, decides what is a duplicate, writes one
//! group, syncs once, and only then settles what it took.
//!
//! Because one thread decides, there is no claim to take on an id and none to give back: a copy of an event that is
//! being written is in the same group and shares its fate, or in a later one and finds the id known. A request that was
//! given up on stays in its group and is settled like the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::ballast::Ballast;
use super::folder::{Folder, Mark, MarkFile};
use super::group::{ENCODED_OVERHEAD, Group, Ids, digest, encode, millis};
use super::place::{Place, Settled};
use super::quarantine::Quarantine;
use super::ring::Ring;
use super::store::{Commit, DeadLetter, Head, Kept, NewGroup, Store, StoreError, StoreState};
use super::window::{IdHash, Window};
use super::{Appended, NewEvent, Receipt, Refused, SinkStatus, State, Status};
use crate::admission::{Admitted, Outcome};
use crate::telemetry::Metrics;

/// A group holds at most this many events…
const GROUP_EVENTS: usize = 1024;
/// …and takes no further event once its block has this many bytes.
const GROUP_BYTES: usize = 4 << 20;
/// How long a moved cursor may wait for a group to travel with, before it is written by itself.
const CURSOR_DELAY: Duration = Duration::from_millis(200);
/// How often retention, checkpoints and a full journal are looked at when nothing else happens.
const TICK: Duration = Duration::from_secs(1);
/// Rows deleted in one step, at most…
const DELETE_ROWS: usize = 1000;
/// …and when there are more, the time to the next step.
const DELETE_PAUSE: Duration = Duration::from_millis(50);
/// Known ids seen again that wait for the next group, at most. Those beyond are remembered in RAM only.
const TOUCHED: usize = 4096;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Append(Box<Append>),
    Quarantine {
        kept: Box<Kept>,
        admitted: Admitted,
        outcome: Outcome,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    Settle {
        sink: Arc<str>,
        from: u64,
        to: u64,
        how: Settled,
    },
    DeadLetter {
        letter: Box<DeadLetter>,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    Forget {
        sink: String,
        reply: oneshot::Sender<Result<bool, Refused>>,
    },
    /// A reader met damage: this process is over, the next one recovers.
    Damaged(String),
    Close,
}

#[derive(Debug)]
pub(super) struct Append {
    pub(super) event: NewEvent,
    pub(super) hash: IdHash,
    pub(super) digest: u32,
    pub(super) admitted: Admitted,
    pub(super) reply: oneshot::Sender<Result<Appended, Refused>>,
}

/// Bounds the writer keeps.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) max_bytes: u64,
    pub(super) retention: Duration,
    pub(super) dead_letter_bytes: u64,
    pub(super) dedup_capacity: u64,
    pub(super) dedup_window: Duration,
}

/// What recovery found, and the writer goes on from.
pub(super) struct Recovered {
    pub(super) store: Box<dyn Store>,
    pub(super) state: StoreState,
    pub(super) places: BTreeMap<Arc<str>, Place>,
    pub(super) window: Window,
    pub(super) quarantine: Quarantine,
    /// The newest sequence ever given.
    pub(super) tail: u64,
    pub(super) live_bytes: u64,
    pub(super) dead_letter_bytes: u64,
    pub(super) next_dead_letter: u64,
    pub(super) mark: Option<MarkFile>,
    pub(super) ballast: Option<Ballast>,
    /// The locked folder; the lock stays until the store is closed, or the process has ended.
    pub(super) lock: Option<Folder>,
}

/// What the writer shares with the handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ring: Ring,
    pub(super) state: watch::Sender<State>,
    /// As of the last commit or settlement; the writer replaces it, `status` reads it even while a sync hangs.
    pub(super) status: Mutex<Status>,
}

pub(super) struct Writer {
    inbox: Receiver<Command>,
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
    /// When housekeeping is due.
    tick_at: Instant,
    full: Option<Full>,
}

/// What refused the last group, and how many bytes it was.
#[derive(Debug, Clone, Copy)]
enum Full {
    /// `journal.max_bytes`.
    Bytes(u64),
    Disk(u64),
}

/// Seconds for the window: monotonic, so that a jump of the wall clock neither forgets ids nor keeps them for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    base: u32,
}

impl Clock {
    /// `base` is the largest age an id from before this process can have.
    pub(super) fn starting_at(base: u32) -> Self {
        Self { start: Instant::now(), base }
    }

    pub(super) fn now(self) -> u32 {
        self.base.saturating_add(u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX))
    }
}

/// Tells whoever asked that it is done.
type Done = oneshot::Sender<Result<(), Refused>>;

/// What one commit will hold, and who waits for it.
#[derive(Default)]
struct Batch {
    block: Vec<u8>,
    ids: Ids,
    count: u64,
    /// Ids new in this group, with the digests of their bytes.
    fresh: HashMap<IdHash, u32>,
    order: Vec<(IdHash, u32)>,
    waiting: Vec<Waiting>,
    kept: Vec<Kept>,
    keeping: Vec<(Admitted, Outcome, Done)>,
    letters: Vec<DeadLetter>,
    lettering: Vec<Done>,
    close: bool,
}

/// An append whose fate hangs on the commit.
struct Waiting {
    event_id: Box<str>,
    duplicate: bool,
    admitted: Admitted,
    reply: oneshot::Sender<Result<Appended, Refused>>,
}

impl Batch {
    fn has_room(&self) -> bool {
        !self.close
            && self.waiting.len() + self.kept.len() + self.letters.len() < GROUP_EVENTS
            && self.block.len() < GROUP_BYTES
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.keeping.is_empty() && self.letters.is_empty() && self.kept.is_empty()
    }
}

/// Groups that go to make room.
#[derive(Default)]
struct Room {
    /// Delete up to here; zero: nothing.
    through: u64,
    bytes: u64,
    /// Undelivered ones are among them.
    evicts: bool,
}

impl Writer {
    pub(super) fn new(
        inbox: Receiver<Command>,
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
            tick_at: Instant::now() + TICK,
            full: None,
        };
        for sink in writer.recovered.places.keys() {
            writer.dirty.insert(Arc::clone(sink), ());
        }
        writer.dirty_since = Some(Instant::now());
        writer.publish();
        writer
    }

    /// Runs until it is closed or fails. The journal's state tells which.
    pub(super) fn run(mut self) {
        let ended = loop {
            let command = match self.inbox.recv_timeout(self.patience()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Command::Close),
            };
            match self.step(command) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(fatal) => break Err(fatal),
            }
        };
        match ended.and_then(|()| self.close()) {
            Ok(()) => {}
            Err(reason) => self.fail(&reason),
        }
    }

    /// How long nothing may come before something else is due.
    fn patience(&self) -> Duration {
        let tick = self.tick_at.saturating_duration_since(Instant::now());
        match self.dirty_since {
            Some(since) => CURSOR_DELAY.saturating_sub(since.elapsed()).min(tick),
            None => tick,
        }
    }

    /// One commit's worth of work; true when the journal is to close. An error is final.
    fn step(&mut self, first: Option<Command>) -> Result<bool, String> {
        let mut batch = Batch::default();
        if let Some(command) = first {
            self.take(command, &mut batch)?;
            while batch.has_room() {
                let Ok(command) = self.inbox.try_recv() else { break };
                self.take(command, &mut batch)?;
            }
        }
        let close = batch.close;
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        if self.dirty_since.is_some_and(|since| since.elapsed() >= CURSOR_DELAY) {
            self.commit_places()?;
        }
        if self.tick_at <= Instant::now() {
            let more = self.tick()?;
            self.tick_at = Instant::now() + if more { DELETE_PAUSE } else { TICK };
        }
        self.maintain()?;
        self.publish();
        Ok(close)
    }

    fn take(&mut self, command: Command, batch: &mut Batch) -> Result<(), String> {
        match command {
            Command::Append(append) => self.take_append(*append, batch),
            Command::Quarantine { kept, admitted, outcome, reply } => {
                if self.recovered.quarantine.knows(kept.digest) || batch.kept.iter().any(|k| k.digest == kept.digest) {
                    admitted.settle(outcome);
                    let _ = reply.send(Ok(()));
                } else {
                    batch.kept.push(*kept);
                    batch.keeping.push((admitted, outcome, reply));
                }
            }
            Command::Settle { sink, from, to, how } => {
                if let Some(place) = self.recovered.places.get_mut(&sink) {
                    place.settle(from, to, how);
                    self.dirty.insert(sink, ());
                    self.dirty_since.get_or_insert_with(Instant::now);
                }
            }
            Command::DeadLetter { letter, reply } => {
                let waiting: usize = batch.letters.iter().map(|letter| letter.event.len()).sum();
                let needed = self.recovered.dead_letter_bytes + (waiting + letter.event.len()) as u64;
                if needed > self.limits.dead_letter_bytes {
                    let _ = reply.send(Err(Refused::Full));
                } else {
                    batch.letters.push(*letter);
                    batch.lettering.push(reply);
                }
            }
            Command::Forget { sink, reply } => {
                let _ = reply.send(self.forget(&sink)?);
            }
            Command::Damaged(reason) => return Err(reason),
            Command::Close => batch.close = true,
        }
        Ok(())
    }

    fn take_append(&mut self, append: Append, batch: &mut Batch) {
        let Append { event, hash, digest, admitted, reply } = append;
        let event_id: Box<str> = event.envelope.event_id().into();
        let durable = self.recovered.window.touch(hash, self.clock.now());
        let known = durable.or_else(|| batch.fresh.get(&hash).copied());
        let Some(first_digest) = known else {
            batch.block.reserve(event.envelope.body().len() + ENCODED_OVERHEAD);
            encode(&mut batch.block, &event);
            batch.ids.push(&event_id, digest);
            batch.fresh.insert(hash, digest);
            batch.order.push((hash, digest));
            batch.count += 1;
            batch.waiting.push(Waiting { event_id, duplicate: false, admitted, reply });
            return;
        };
        let conflict = first_digest != digest;
        if conflict {
            self.metrics.conflicts.inc();
            let kept = conflicting(event);
            if !self.recovered.quarantine.knows(kept.digest) && !batch.kept.iter().any(|k| k.digest == kept.digest) {
                batch.kept.push(kept);
            }
        }
        if durable.is_some() && self.touched.len() < TOUCHED {
            self.touched.push((event_id.clone(), first_digest));
        }
        if durable.is_some() && !conflict {
            settle(admitted, reply, Ok(Appended::Duplicate(Receipt { event_id })));
        } else {
            batch.waiting.push(Waiting { event_id, duplicate: true, admitted, reply });
        }
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), String> {
        if batch.count > 0 {
            let bytes = batch.block.len() as u64;
            let room = match self.room_for(bytes)? {
                Some(room) => room,
                None => {
                    self.set_full(Full::Bytes(bytes), "journal.max_bytes is reached");
                    refuse_events(&mut batch, Refused::Full);
                    Room::default()
                }
            };
            return self.write(batch, &room);
        }
        self.write(batch, &Room::default())
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
        for letter in &mut batch.letters {
            letter.id = self.recovered.next_dead_letter;
            self.recovered.next_dead_letter += 1;
            if let Some((sink, place)) = places.get_key_value(letter.sink.as_str()) {
                let (sink, mut place) = (Arc::clone(sink), place.clone());
                place.settle(letter.sequence, letter.sequence, Settled::DeadLettered);
                self.dirty.insert(Arc::clone(&sink), ());
                places.insert(sink, place);
            }
        }
        let mut state = self.recovered.state.clone();
        self.apply_room(room, &mut places, &mut state);
        state.dead_letters += batch.letters.len() as u64;
        let dropped = self.recovered.quarantine.take_in(&mut batch.kept, &mut state);
        let commit = Commit {
            group: group.as_deref().map(|group| NewGroup { group, ids: batch.ids.as_bytes() }),
            places: self.dirty.keys().filter_map(|sink| Some((&**sink, places.get(sink)?))).collect(),
            dead_letters: std::mem::take(&mut batch.letters),
            quarantine: std::mem::take(&mut batch.kept),
            quarantine_through: dropped.through,
            groups_through: (room.through > 0).then_some(room.through),
            state: (state != self.recovered.state).then_some(&state),
            ..Commit::default()
        };
        let started = Instant::now();
        let written = self.recovered.store.commit(&commit);
        self.metrics.journal_commit.observe(started.elapsed().as_secs_f64());
        match written {
            Ok(()) => {}
            Err(StoreError::Full(reason)) => {
                self.recovered.quarantine.put_back(&commit.quarantine, dropped);
                drop(commit);
                refuse(batch, Refused::Full);
                self.set_full(Full::Disk(group.map_or(0, |group| group.size())), &reason);
                return self.make_the_best_of_a_full_disk();
            }
            Err(StoreError::Fatal(reason)) => {
                refuse(batch, Refused::Failed);
                return Err(reason);
            }
        }
        for kept in &commit.quarantine {
            self.metrics.quarantined.get_or_create(&[("reason", word(&kept.reason))]).inc();
        }
        self.metrics.quarantine_dropped.inc_by(dropped.count());
        self.recovered.dead_letter_bytes += commit.dead_letters.iter().map(|l| l.event.len() as u64).sum::<u64>();
        drop(commit);
        self.recovered.state = state;
        self.recovered.places = places;
        self.recovered.live_bytes = self.recovered.live_bytes.saturating_sub(room.bytes);
        self.clean();
        if let Some(group) = group {
            self.metrics.journal_groups.inc();
            self.touched.clear();
            self.recovered.tail = group.last;
            self.recovered.live_bytes += group.size();
            self.write_mark();
            let now = self.clock.now();
            for &(hash, digest) in &batch.order {
                self.recovered.window.insert(hash, digest, now);
            }
            self.shared.ring.push(group);
            self.set_open();
        }
        // Before the answers: whoever asks for the status after a 200 finds that event in it.
        self.publish();
        for Waiting { event_id, duplicate, admitted, reply } in batch.waiting {
            let receipt = Receipt { event_id };
            let appended = if duplicate { Appended::Duplicate(receipt) } else { Appended::Stored(receipt) };
            settle(admitted, reply, Ok(appended));
        }
        for (admitted, outcome, reply) in batch.keeping {
            admitted.settle(outcome);
            let _ = reply.send(Ok(()));
        }
        for reply in batch.lettering {
            let _ = reply.send(Ok(()));
        }
        Ok(())
    }

    /// Writes the places alone: cursors, and evictions if `room` holds any.
    fn commit_places(&mut self) -> Result<(), String> {
        self.dirty_since = None;
        self.delete(&Room::default(), None).map(|_| ())
    }

    /// Deletes what `room` and `ids_through` say, and writes every place that moved. False if the disk is full.
    fn delete(&mut self, room: &Room, ids_through: Option<u64>) -> Result<bool, String> {
        let mut places = self.recovered.places.clone();
        let mut state = self.recovered.state.clone();
        self.apply_room(room, &mut places, &mut state);
        if let Some(through) = ids_through {
            state.ids_floor = through + 1;
        }
        let commit = Commit {
            places: self.dirty.keys().filter_map(|sink| Some((&**sink, places.get(sink)?))).collect(),
            groups_through: (room.through > 0).then_some(room.through),
            ids_through,
            state: (state != self.recovered.state).then_some(&state),
            ..Commit::default()
        };
        match self.recovered.store.commit(&commit) {
            Ok(()) => {}
            Err(StoreError::Full(_)) => return Ok(false),
            Err(StoreError::Fatal(reason)) => return Err(reason),
        }
        drop(commit);
        let moved_floor = state.floor != self.recovered.state.floor;
        self.recovered.state = state;
        self.recovered.places = places;
        self.recovered.live_bytes = self.recovered.live_bytes.saturating_sub(room.bytes);
        self.clean();
        if moved_floor {
            self.write_mark();
        }
        Ok(true)
    }

    fn clean(&mut self) {
        self.dirty.clear();
        self.dirty_since = None;
    }

    fn apply_room(&mut self, room: &Room, places: &mut BTreeMap<Arc<str>, Place>, state: &mut StoreState) {
        if room.through == 0 {
            return;
        }
        state.floor = room.through + 1;
        if !room.evicts {
            return;
        }
        for (sink, place) in places.iter_mut().filter(|(_, place)| !place.required) {
            if place.cursor() < room.through {
                place.settle(1, room.through, Settled::Evicted);
                self.dirty.insert(Arc::clone(sink), ());
                tracing::warn!(%sink, through = room.through, "the journal is full: undelivered events evicted");
            }
        }
    }

    /// What has to go so that `bytes` more fit; `None` when not enough may go. Delivered events go first, then those
    /// that only sinks that are not required still want.
    fn room_for(&mut self, bytes: u64) -> Result<Option<Room>, String> {
        let wanted = (self.recovered.live_bytes + bytes).saturating_sub(self.limits.max_bytes);
        if wanted == 0 {
            return Ok(Some(Room::default()));
        }
        let delivered = self.settled_everywhere(|_| true);
        let required = self.settled_everywhere(|place| place.required);
        let mut room = Room::default();
        for Head { last, bytes, .. } in fatal(self.recovered.store.oldest(DELETE_ROWS))? {
            if room.bytes >= wanted || last > delivered.max(required) {
                break;
            }
            room.evicts |= last > delivered;
            room.through = last;
            room.bytes += bytes;
        }
        Ok((room.bytes >= wanted).then_some(room))
    }

    /// Up to where every sink of the kind is settled.
    fn settled_everywhere(&self, which: impl Fn(&Place) -> bool) -> u64 {
        let cursors = self.recovered.places.values().filter(|place| which(place)).map(Place::cursor);
        cursors.min().unwrap_or(self.recovered.tail).min(self.recovered.tail)
    }

    /// The disk is full: let delivered events go, so that their pages can be used again, and write the cursors, with the
    /// ballast's room if need be.
    fn make_the_best_of_a_full_disk(&mut self) -> Result<(), String> {
        let delivered = self.settled_everywhere(|_| true);
        let mut room = Room::default();
        for head in fatal(self.recovered.store.oldest(DELETE_ROWS))? {
            if head.last > delivered {
                break;
            }
            room.through = head.last;
            room.bytes += head.bytes;
        }
        if self.delete(&room, None)? {
            return Ok(());
        }
        if let Some(ballast) = &mut self.recovered.ballast {
            ballast.drop();
        }
        self.delete(&Room::default(), None).map(|_| ())
    }

    /// Housekeeping; true if there is more of it to do soon.
    fn tick(&mut self) -> Result<bool, String> {
        let more = self.retain()?;
        let has_room = match self.full {
            None => false,
            Some(Full::Bytes(bytes)) => self.room_for(bytes)?.is_some(),
            Some(Full::Disk(bytes)) => self.recovered.ballast.as_mut().is_none_or(|ballast| ballast.has_room(bytes)),
        };
        if has_room {
            self.set_open();
        }
        Ok(more)
    }

    /// Lets go of what was delivered long enough ago, and of ids that left the window. True if more could go.
    fn retain(&mut self) -> Result<bool, String> {
        let age = |keep: Duration| {
            millis(SystemTime::now()).saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        let (old, expired) = (age(self.limits.retention), age(self.limits.dedup_window));
        let delivered = self.settled_everywhere(|_| true);
        let (tail, capacity) = (self.recovered.tail, self.limits.dedup_capacity);
        let may_go = |head: &Head| head.last <= delivered && head.at < old;
        let ids_may_go = |head: &Head| tail - head.last >= capacity || head.at < expired;
        let store = &mut self.recovered.store;
        let mut groups = Vec::new();
        // Most times the oldest one has to stay, and no other needs to be looked at.
        if fatal(store.oldest(1))?.iter().any(may_go) {
            groups = fatal(store.oldest(DELETE_ROWS))?.into_iter().take_while(may_go).collect();
        }
        let mut ids = Vec::new();
        if fatal(store.oldest_ids(1))?.iter().any(ids_may_go) {
            ids = fatal(store.oldest_ids(DELETE_ROWS))?.into_iter().take_while(ids_may_go).collect();
        }
        if groups.is_empty() && ids.is_empty() {
            return Ok(false);
        }
        let room = Room {
            through: groups.last().map_or(0, |head| head.last),
            bytes: groups.iter().map(|head| head.bytes).sum(),
            evicts: false,
        };
        self.delete(&room, ids.last().map(|head| head.last))?;
        Ok(groups.len().max(ids.len()) == DELETE_ROWS)
    }

    fn maintain(&mut self) -> Result<(), String> {
        match self.recovered.store.maintain() {
            Ok(()) => Ok(()),
            Err(StoreError::Full(reason)) => {
                self.set_full(Full::Disk(0), &reason);
                Ok(())
            }
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    fn forget(&mut self, sink: &str) -> Result<Result<bool, Refused>, String> {
        if !self.recovered.places.get(sink).is_some_and(|place| place.gone) {
            return Ok(Ok(false));
        }
        let commit = Commit { forgotten: vec![sink], ..Commit::default() };
        match self.recovered.store.commit(&commit) {
            Ok(()) => {
                self.recovered.places.remove(sink);
                Ok(Ok(true))
            }
            Err(StoreError::Full(_)) => Ok(Err(Refused::Full)),
            Err(StoreError::Fatal(reason)) => Err(reason),
        }
    }

    fn set_full(&mut self, full: Full, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", "full")]).inc();
        if self.full.replace(full).is_none() {
            tracing::error!(reason, "the journal cannot take events: they are answered 503 until there is room");
            self.shared.state.send_replace(State::Full);
        }
    }

    fn set_open(&mut self) {
        if self.full.take().is_some() {
            tracing::info!("the journal takes events again");
            self.shared.state.send_replace(State::Open);
        }
    }

    fn write_mark(&self) {
        let Some(file) = &self.recovered.mark else { return };
        let mark = Mark { format: super::sqlite::FORMAT, last: self.recovered.tail, floor: self.recovered.state.floor };
        // Without its mark the next start can tell less, but loses nothing.
        if let Err(error) = file.write(mark) {
            tracing::warn!(%error, "cannot write the journal's high-water mark");
        }
    }

    fn publish(&self) {
        let Recovered { places, tail, state, live_bytes, window, .. } = &self.recovered;
        let sinks = places.iter().map(|(name, place)| SinkStatus {
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
        status.dedup_ids = window.len();
        status.sinks.clear();
        status.sinks.extend(sinks);
    }

    fn close(&mut self) -> Result<(), String> {
        self.commit_places()?;
        let store = std::mem::replace(&mut self.recovered.store, Box::new(super::store::MemoryStore::default()));
        match store.close() {
            Ok(()) => {}
            // Everything acknowledged is in the synced log; the next start carries it over.
            Err(StoreError::Full(reason)) => tracing::warn!(reason, "the journal was closed on a full disk"),
            Err(StoreError::Fatal(reason)) => return Err(reason),
        }
        if let Some(mark) = &self.recovered.mark {
            // As above: only the next start's knowledge hangs on it.
            let _ = mark.sync();
        }
        self.recovered.lock = None;
        self.shared.state.send_replace(State::Closed);
        self.turn_away(Refused::Closed);
        Ok(())
    }

    /// After a failed sync nothing on this disk may be trusted again by this process: every event is refused from now on.
    fn fail(mut self, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", "io")]).inc();
        tracing::error!(reason, "the journal has failed: the process must end, recovery starts from the files");
        self.shared.state.send_replace(State::Failed);
        let store = std::mem::replace(&mut self.recovered.store, Box::new(super::store::MemoryStore::default()));
        store.abandon();
        self.turn_away(Refused::Failed);
        while let Ok(command) = self.inbox.recv() {
            if matches!(command, Command::Close) {
                break;
            }
            turn_away(command, Refused::Failed);
        }
        self.turn_away(Refused::Failed);
    }

    fn turn_away(&self, why: Refused) {
        while let Ok(command) = self.inbox.try_recv() {
            turn_away(command, why);
        }
    }
}

pub(super) fn turn_away(command: Command, why: Refused) {
    match command {
        Command::Append(append) => settle(append.admitted, append.reply, Err(why)),
        Command::Quarantine { admitted, reply, .. } => {
            admitted.settle(Outcome::Refused(why.word()));
            let _ = reply.send(Err(why));
        }
        Command::DeadLetter { reply, .. } => {
            let _ = reply.send(Err(why));
        }
        Command::Forget { reply, .. } => {
            let _ = reply.send(Err(why));
        }
        Command::Settle { .. } | Command::Damaged(_) | Command::Close => {}
    }
}

/// The event with a known id but other bytes, for the quarantine.
fn conflicting(event: NewEvent) -> Kept {
    super::Quarantined {
        reason: "conflict",
        detail: "the event_id is known with other bytes; the first copy stands".to_owned(),
        received_at: event.received_at,
        peer: event.peer,
        endpoint: event.endpoint,
        body: event.envelope.body().clone(),
    }
    .into()
}

fn settle(admitted: Admitted, reply: oneshot::Sender<Result<Appended, Refused>>, result: Result<Appended, Refused>) {
    admitted.settle(match &result {
        Ok(Appended::Stored(_)) => Outcome::Stored,
        Ok(Appended::Duplicate(_)) => Outcome::Duplicate,
        Err(why) => Outcome::Refused(why.word()),
    });
    // Whoever asked may be gone; the outcome stands.
    let _ = reply.send(result);
}

/// Refuses the batch's events; whatever else it holds stays.
fn refuse_events(batch: &mut Batch, why: Refused) {
    for Waiting { admitted, reply, .. } in batch.waiting.drain(..) {
        settle(admitted, reply, Err(why));
    }
    batch.block.clear();
    batch.ids = Ids::default();
    batch.order.clear();
    batch.count = 0;
}

fn refuse(mut batch: Batch, why: Refused) {
    refuse_events(&mut batch, why);
    for (admitted, _, reply) in batch.keeping {
        admitted.settle(Outcome::Refused(why.word()));
        let _ = reply.send(Err(why));
    }
    for reply in batch.lettering {
        let _ = reply.send(Err(why));
    }
}

/// The quarantine's words are a closed set; this finds the label for one.
fn word(reason: &str) -> &'static str {
    ["malformed", "incomplete", "unsupported-media", "conflict"]
        .into_iter()
        .find(|word| *word == reason)
        .unwrap_or("other")
}

fn fatal<T>(result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// The digest under which an event's bytes are compared.
pub(super) fn body_digest(event: &NewEvent) -> u32 {
    digest(event.envelope.body())
}
