//! Between a sink's lane and its partitions: what was read for the lane, and what the lane says became of it.
//!
//! Everything stands on one [`Shelf`], bounded by what each partition may put there; nobody waits for anybody with it in
//! hand.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::letters::{DeadLetters, Letters};
use crate::journal::event::Event;
use crate::journal::lane::{Gone, Lost, Read};
use crate::journal::outcome::{Refused, Settled};

/// Of one partition, read and not yet in the lane: events…
const EVENTS: usize = 256;
/// …and their bytes.
const BYTES: usize = 1 << 20;
/// What a lane is given at a time.
const AT_A_TIME: usize = 256;

/// A sink's events of the partitions that are this receiver's, for its lane.
pub struct Cursor {
    shelf: Arc<Shelf>,
    dead: DeadLetters,
}

/// How the lane says what became of them. Cheap to clone.
#[derive(Clone)]
pub struct Settler {
    shelf: Arc<Shelf>,
    dead: DeadLetters,
}

/// What a sink's lane and its partitions share.
pub(crate) struct Shelf {
    sink: Arc<str>,
    state: Mutex<State>,
    /// For the lane: there may be something to read.
    changed: Notify,
    /// For each partition: there may be something to do.
    calls: Vec<Notify>,
}

struct State {
    slots: Vec<Slot>,
    /// What the lane has in hand, with its partition; also of partitions lost since, until the lane has let go of it.
    out: HashMap<u64, usize>,
    /// What the lane must let go of, before it reads anything else.
    lost: HashSet<u64>,
    finishing: bool,
    closed: bool,
    /// The lane is to look again, though there is nothing to read.
    nudged: bool,
    /// Other receivers live, who can have what is not delivered here.
    has_others: bool,
    /// The epoch of the log whose sequences these are; others are of another log.
    epoch: u64,
    /// The lane has events of an earlier log in hand. Until it has let go of all of them, none of this one comes here: it
    /// knows them by their sequences.
    clearing: bool,
}

/// A partition's place on the shelf.
#[derive(Default)]
struct Slot {
    /// Until when it is known to be this receiver's; `None`: it is not.
    fresh_until: Option<Instant>,
    waiting: VecDeque<Event>,
    bytes: usize,
    out: usize,
    outcomes: Vec<Outcome>,
    caught_up: bool,
    leaves: bool,
    /// Why nobody can have it here, since it was tried last.
    trouble: Option<String>,
}

/// What became of an event.
pub(crate) struct Outcome {
    pub(crate) sequence: u64,
    pub(crate) how: Settled,
    /// Who waits until that is durable.
    pub(crate) told: Option<oneshot::Sender<()>>,
}

impl Cursor {
    pub(crate) fn new(shelf: Arc<Shelf>, dead: DeadLetters) -> Self {
        Self { shelf, dead }
    }

    pub(crate) fn sink(&self) -> &str {
        &self.shelf.sink
    }

    /// Whether nothing is left that this receiver should read, as far as it knows.
    pub(crate) fn caught_up(&self) -> bool {
        let state = self.shelf.state();
        state.lost.is_empty() && state.slots.iter().all(|slot| slot.caught_up && slot.waiting.is_empty())
    }

    /// The smallest sequence that may be read next; 0 while that is not known.
    pub(crate) fn next(&self) -> u64 {
        let state = self.shelf.state();
        let first = state.slots.iter().filter_map(|slot| slot.waiting.front()).map(Event::sequence).min();
        first.unwrap_or(0)
    }

    /// Whether all that the lane has in hand is known to be this receiver's now.
    pub(crate) fn may_deliver(&self) -> bool {
        let (state, now) = (self.shelf.state(), Instant::now());
        let is_stale = |slot: &Slot| slot.out > 0 && slot.fresh_until.is_some_and(|until| until <= now);
        state.lost.is_empty() && !state.slots.iter().any(is_stale)
    }

    pub(crate) fn settler(&self) -> Settler {
        Settler { shelf: Arc::clone(&self.shelf), dead: self.dead.clone() }
    }

    /// The retried dead letters, for the lane; once.
    pub(crate) fn letters(&self) -> Option<Letters> {
        self.dead.letters(&self.shelf.sink)
    }

    /// What comes next. Waits for it. Dropped before it is done, it has read nothing.
    ///
    /// # Errors
    /// [`Gone`] once this receiver is done.
    pub(crate) async fn read(&mut self) -> Result<Read, Gone> {
        loop {
            // Not with the shelf in hand.
            let lost = self.shelf.state().take_lost()?;
            match lost.map(Read::Lost).or_else(|| self.take()) {
                Some(read) => return Ok(read),
                None => self.shelf.changed.notified().await,
            }
        }
    }

    /// What the lane must let go of, alone.
    ///
    /// # Errors
    /// [`Gone`] once this receiver is done.
    pub(crate) async fn lost(&mut self) -> Result<Lost, Gone> {
        loop {
            let lost = self.shelf.state().take_lost()?;
            match lost {
                Some(lost) => return Ok(lost),
                None => self.shelf.changed.notified().await,
            }
        }
    }

    /// From now on nothing is read but what is there now; where there are other receivers, not even that. May be said
    /// again and again.
    pub(crate) fn finish(&mut self) {
        let mut state = self.shelf.state();
        if std::mem::replace(&mut state.finishing, true) {
            return;
        }
        // What that is, the partitions have to find out first.
        let leaves = state.has_others;
        state.slots.iter_mut().for_each(|slot| (slot.caught_up, slot.leaves) = (false, leaves));
        drop(state);
        self.shelf.call_all();
    }

    /// Some of what waits, the oldest first.
    fn take(&self) -> Option<Read> {
        let mut state = self.shelf.state();
        let State { slots, out, nudged, .. } = &mut *state;
        let nudged = std::mem::take(nudged);
        let mut events = Vec::new();
        while events.len() < AT_A_TIME {
            let first = slots.iter().enumerate().filter_map(|(at, slot)| Some((slot.waiting.front()?.sequence(), at)));
            let Some((sequence, at)) = first.min() else { break };
            let slot = &mut slots[at];
            let Some(event) = slot.waiting.pop_front() else { break };
            slot.bytes -= event.body().len();
            if out.insert(sequence, at).is_none() {
                slot.out += 1;
            }
            events.push(event);
            if slot.waiting.len() == EVENTS / 2 || slot.waiting.is_empty() {
                self.shelf.calls[at].notify_one();
            }
        }
        (nudged || !events.is_empty()).then_some(Read::Events(events))
    }
}

impl Settler {
    pub(crate) fn sink(&self) -> &str {
        &self.shelf.sink
    }

    /// Says what became of `from..=to`, all of which was read; what is another's by now is passed over. Written soon, it is
    /// durable a moment later.
    pub(crate) fn settle(&self, from: u64, to: u64, how: Settled) {
        let mut state = self.shelf.state();
        for sequence in from..=to {
            if let Some(at) = state.let_go(sequence)
                && !state.clearing
            {
                state.slots[at].outcomes.push(Outcome { sequence, how, told: None });
                self.shelf.calls[at].notify_one();
            }
        }
        self.shelf.end_clearing(state);
    }

    /// Says that the lane has let go of these, which it had to.
    pub(crate) fn release(&self, sequences: &[u64]) {
        let mut state = self.shelf.state();
        for &sequence in sequences {
            if let Some(at) = state.let_go(sequence) {
                self.shelf.calls[at].notify_one();
            }
        }
        self.shelf.end_clearing(state);
    }

    /// Puts an event into the dead letters, and is back when it is settled so, durably: nothing that must come after it is
    /// delivered before.
    ///
    /// # Errors
    /// [`Refused::Full`] when there is no room for it; [`Refused::Late`] when it is another's by now, or nobody knows.
    pub(crate) async fn dead_letter(&self, event: &Event, reason: &str, attempts: u32) -> Result<(), Refused> {
        let sequence = event.sequence();
        if !self.shelf.state().has_out(sequence) {
            return Err(Refused::Late);
        }
        self.dead.put(&self.shelf.sink, event, reason, attempts).await?;
        let (told, written) = oneshot::channel();
        {
            let mut state = self.shelf.state();
            // It stays in hand until it is written, so that the lane hears of it should the partition be lost.
            let at = state.out.get(&sequence).copied().filter(|_| !state.clearing).ok_or(Refused::Late)?;
            let outcome = Outcome { sequence, how: Settled::DeadLettered, told: Some(told) };
            state.slots[at].outcomes.push(outcome);
            self.shelf.calls[at].notify_one();
        }
        written.await.map_err(|_| Refused::Late)
    }

    pub(crate) async fn letter_delivered(&self, id: u64) {
        self.dead.letter_delivered(&self.shelf.sink, id).await;
    }

    pub(crate) async fn letter_failed(&self, id: u64, reason: &str, attempts: u32) {
        self.dead.letter_failed(&self.shelf.sink, id, reason, attempts).await;
    }
}

/// What partitions do with it.
impl Shelf {
    pub(crate) fn new(sink: Arc<str>, partitions: u16, epoch: u64) -> Self {
        let slots = (0..partitions).map(|_| Slot::default()).collect();
        let state = State {
            slots,
            out: HashMap::new(),
            lost: HashSet::new(),
            finishing: false,
            closed: false,
            nudged: false,
            has_others: false,
            epoch,
            clearing: false,
        };
        let calls = (0..partitions).map(|_| Notify::new()).collect();
        Self { sink, state: Mutex::new(state), changed: Notify::new(), calls }
    }

    pub(crate) fn sink(&self) -> &Arc<str> {
        &self.sink
    }

    /// Whether the partition could be had when it was tried last; why not, else.
    pub(crate) fn set_trouble(&self, at: u16, trouble: Option<String>) {
        self.slot(at, |slot| slot.trouble = trouble);
    }

    /// Why one of the partitions cannot be had.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.state().slots.iter().find_map(|slot| slot.trouble.clone())
    }

    /// Waits until there may be something to do for a partition.
    pub(crate) async fn called(&self, at: u16) {
        self.calls[usize::from(at)].notified().await;
    }

    /// The partition is this receiver's until then, at least.
    pub(crate) fn hold(&self, at: u16, until: Instant) {
        self.slot(at, |slot| slot.fresh_until = Some(until));
    }

    /// It is not any more: nothing of it is delivered that was not begun.
    pub(crate) fn lose(&self, at: u16) {
        self.withdraw(at);
        let finishing = self.is_finishing();
        self.slot(at, |slot| (slot.fresh_until, slot.leaves) = (None, slot.leaves && finishing));
    }

    /// The lane has to let go of what it has of the partition, and gets no more.
    pub(crate) fn withdraw(&self, at: u16) {
        let mut state = self.state();
        let State { slots, out, lost, .. } = &mut *state;
        let slot = &mut slots[usize::from(at)];
        slot.waiting.clear();
        slot.bytes = 0;
        lost.extend(out.iter().filter(|(_, of)| **of == usize::from(at)).map(|(sequence, _)| *sequence));
        drop(state);
        self.changed.notify_one();
    }

    /// The log is another one from here on. The lane has to let go of all that it has; what comes of it counts no more.
    pub(crate) fn start_over(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch {
            return;
        }
        let State { slots, out, lost, .. } = &mut *state;
        for slot in slots {
            (slot.bytes, slot.fresh_until) = (0, None);
            slot.waiting.clear();
            slot.outcomes.clear();
        }
        lost.extend(out.keys());
        (state.epoch, state.clearing) = (epoch, true);
        self.end_clearing(state);
        self.changed.notify_one();
    }

    /// Whether the lane has let go of everything of an earlier log.
    pub(crate) fn is_clear(&self) -> bool {
        !self.state().clearing
    }

    fn end_clearing(&self, mut state: MutexGuard<'_, State>) {
        if state.clearing && state.out.is_empty() {
            (state.clearing, state.lost) = (false, HashSet::new());
            drop(state);
            self.call_all();
        }
    }

    /// These are settled: the lane need not deliver them.
    pub(crate) fn take_back(&self, at: u16, sequences: &HashSet<u64>) {
        let mut state = self.state();
        let slot = &mut state.slots[usize::from(at)];
        slot.waiting.retain(|event| !sequences.contains(&event.sequence()));
        slot.bytes = slot.waiting.iter().map(|event| event.body().len()).sum();
        let in_lane: Vec<u64> = sequences.iter().copied().filter(|sequence| state.out.contains_key(sequence)).collect();
        for sequence in in_lane {
            state.let_go(sequence);
            state.lost.insert(sequence);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Events and bytes that may be put there now; nothing before half of it is free again.
    pub(crate) fn room(&self, at: u16) -> Option<(usize, usize)> {
        self.slot(at, |slot| {
            let (events, bytes) = (EVENTS.saturating_sub(slot.waiting.len()), BYTES.saturating_sub(slot.bytes));
            (events >= EVENTS / 2 && bytes >= BYTES / 2).then_some((events, bytes))
        })
    }

    /// Unless they are of an earlier log.
    pub(crate) fn put(&self, at: u16, epoch: u64, events: Vec<Event>) {
        if self.state().epoch > epoch {
            return;
        }
        self.slot(at, |slot| {
            slot.bytes += events.iter().map(|event| event.body().len()).sum::<usize>();
            slot.waiting.extend(events);
        });
        self.changed.notify_one();
    }

    pub(crate) fn outcomes(&self, at: u16) -> Vec<Outcome> {
        self.slot(at, |slot| std::mem::take(&mut slot.outcomes))
    }

    /// An event that stayed in hand until it was written is.
    pub(crate) fn written(&self, sequence: u64) {
        self.state().let_go(sequence);
    }

    /// Whether nothing more is to be heard from the lane of what it had of the partition.
    pub(crate) fn is_done(&self, at: u16) -> bool {
        self.slot(at, |slot| slot.out == 0 && slot.outcomes.is_empty())
    }

    pub(crate) fn set_caught_up(&self, at: u16, caught_up: bool) {
        let differs = self.slot(at, |slot| std::mem::replace(&mut slot.caught_up, caught_up) != caught_up);
        if differs && caught_up {
            // The lane may wait for just this; what it reads then is nothing.
            self.state().nudged = true;
            self.changed.notify_one();
        }
    }

    pub(crate) fn is_finishing(&self) -> bool {
        self.state().finishing
    }

    /// Whether the partition is given back: to be taken by others.
    pub(crate) fn leaves(&self, at: u16) -> bool {
        self.slot(at, |slot| slot.leaves)
    }

    pub(crate) fn set_others(&self, there_are: bool) {
        self.state().has_others = there_are;
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// There may be something to do for every partition.
    pub(crate) fn call_all(&self) {
        self.calls.iter().for_each(Notify::notify_one);
    }

    /// How many partitions are this receiver's.
    pub(crate) fn held(&self) -> usize {
        self.state().slots.iter().filter(|slot| slot.fresh_until.is_some()).count()
    }

    pub(crate) fn holds(&self, at: u16) -> bool {
        self.slot(at, |slot| slot.fresh_until.is_some())
    }

    /// Bids the partition with the least in hand leave, unless one does already.
    pub(crate) fn give_one_back(&self) {
        let mut state = self.state();
        if state.slots.iter().any(|slot| slot.leaves) {
            return;
        }
        let held = state.slots.iter().enumerate().filter(|(_, slot)| slot.fresh_until.is_some());
        let idlest = held.min_by_key(|(_, slot)| slot.out + slot.waiting.len()).map(|(at, _)| at);
        if let Some(at) = idlest {
            state.slots[at].leaves = true;
            self.calls[at].notify_one();
        }
    }

    fn slot<T>(&self, at: u16, with: impl FnOnce(&mut Slot) -> T) -> T {
        with(&mut self.state().slots[usize::from(at)])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_out(&self, sequence: u64) -> bool {
        !self.clearing && self.out.contains_key(&sequence)
    }

    fn take_lost(&mut self) -> Result<Option<Lost>, Gone> {
        if !self.lost.is_empty() {
            return Ok(Some(Lost(std::mem::take(&mut self.lost))));
        }
        if self.closed { Err(Gone) } else { Ok(None) }
    }

    /// The lane does not have it any more; of which partition it is, if it had it.
    fn let_go(&mut self, sequence: u64) -> Option<usize> {
        let at = self.out.remove(&sequence)?;
        self.slots[at].out -= 1;
        Some(at)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("sink", &self.shelf.sink).finish_non_exhaustive()
    }
}
