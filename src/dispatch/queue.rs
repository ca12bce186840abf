//! What waits in a lane, and what may go next. Knows order, batches and pauses; neither sinks nor journals, and no clock
//! of its own.
//!
//! Everything that must keep its order forms a **chain**: all of a lane, the events of one entity, or an event alone. Of a
//! chain at most one **parcel** (a batch with what is known of its attempts) is under way or waiting for its next attempt;
//! other chains go ahead meanwhile, up to `max_ahead` sequences past the oldest event that is not settled.

mod pace;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::config::Retry;
use crate::sinks::{Blame, FailureKind, Plan};

/// Bytes of events that a lane holds before it reads on.
const HELD_BYTES: usize = 64 << 20;
/// How long the dead letters, once full, are left alone.
const BURY_AGAIN: Duration = Duration::from_secs(1);
/// Failed attempts after which a batch is divided if the target takes others meanwhile.
const SUSPICIOUS: u32 = 3;

/// What keeps its order among itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Chain {
    /// Everything that comes from the journal.
    Lane,
    /// The events of one entity, by its hash. Two entities of one hash merely wait for each other.
    Entity(u64),
    /// An event without order, by its sequence.
    Alone(u64),
    /// A dead letter that is tried again, by its id.
    Letter(u64),
    /// Copies that an operator wants once more. They go when nothing else can.
    Replay,
}

/// An event's place in the queue.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) sequence: u64,
    pub(super) chain: Chain,
    bytes: usize,
    arrived: Instant,
    /// Attempts so far, of which the first one began then.
    attempts: u32,
    began: Option<Instant>,
    /// The largest batch it may be in: smaller after it was in one that had to be divided.
    most: usize,
}

/// A batch, on its way or before its next attempt.
#[derive(Debug)]
pub(super) struct Parcel<T> {
    pub(super) items: Vec<Item>,
    /// In the order of `items`.
    pub(super) loads: Vec<T>,
    /// No more attempts: into the dead letters, for this reason.
    pub(super) bury: Option<String>,
    /// Once it had to go there, and while there is no room: when it is worth another attempt all the same.
    again: Option<Instant>,
    /// Attempts that failed.
    pub(super) attempts: u32,
    began: Instant,
    /// How many deliveries had succeeded before its first attempt.
    successes: u64,
    /// It failed while the target took nothing at all.
    hopeless: bool,
}

#[derive(Debug)]
struct Line<T> {
    waiting: VecDeque<(Item, T)>,
    /// A parcel holds some of this chain.
    busy: bool,
}

/// Where a line stands among those that may go: whether it is of replays, the sequence of its first, its chain.
type Turn = (bool, u64, Chain);

fn turn(chain: Chain, first: u64) -> Turn {
    (chain == Chain::Replay, first, chain)
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    plan: Plan,
    retry: Retry,
    lines: HashMap<Chain, Line<T>>,
    /// The lines that may go, in order of arrival, replays last.
    ready: BTreeSet<Turn>,
    /// Parcels before their next attempt, by when it is due and a number that tells them apart.
    resting: BTreeMap<(Instant, u64), Parcel<T>>,
    rested: u64,
    /// Parcels under way that failed before.
    failing_under_way: usize,
    /// Sequences from the journal that are not settled.
    unsettled: BTreeSet<u64>,
    /// Those of them that were withdrawn while under way; and those that have ended so since they were last asked for.
    withdrawn: HashSet<u64>,
    given_up: Vec<u64>,
    held_bytes: usize,
    letters: usize,
    replayed: usize,
    successes: u64,
    /// Parcels that go to the dead letters, resting or being written there; those that are being written; and until when the
    /// dead letters, being full, are left alone.
    to_bury: usize,
    burying: usize,
    full_until: Option<Instant>,
    /// The target took the last of them that was tried again.
    mended: bool,
    /// The target wants a pause.
    pause_until: Option<Instant>,
    /// First attempts that failed in a row, while `limit` parcels were failing; and when the next one may be made.
    fresh_failures: u32,
    fresh_after: Option<Instant>,
}

impl<T> Parcel<T> {
    /// Takes out the first `count` of it.
    fn take_first(&mut self, count: usize) -> Vec<Item> {
        let count = count.min(self.items.len());
        self.loads.drain(..count);
        self.items.drain(..count).collect()
    }
}

impl<T> Queue<T> {
    pub(super) fn new(plan: Plan, retry: Retry) -> Self {
        Self {
            plan,
            retry,
            lines: HashMap::new(),
            ready: BTreeSet::new(),
            resting: BTreeMap::new(),
            rested: 0,
            failing_under_way: 0,
            unsettled: BTreeSet::new(),
            withdrawn: HashSet::new(),
            given_up: Vec::new(),
            held_bytes: 0,
            letters: 0,
            replayed: 0,
            successes: 0,
            to_bury: 0,
            burying: 0,
            full_until: None,
            mended: false,
            pause_until: None,
            fresh_failures: 0,
            fresh_after: None,
        }
    }

    /// Takes in an event behind those of its chain. What comes from the journal comes in order of its partition.
    pub(super) fn push(&mut self, sequence: u64, chain: Chain, bytes: usize, load: T, now: Instant) {
        match chain {
            Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => {
                if self.withdrawn.remove(&sequence) {
                    // It is back before its delivery has ended, which counts again.
                    return;
                }
                self.unsettled.insert(sequence);
            }
            Chain::Letter(_) => self.letters += 1,
            Chain::Replay => self.replayed += 1,
        }
        self.held_bytes += bytes;
        let most = self.plan.max_events;
        let item = Item { sequence, chain, bytes, arrived: now, attempts: 0, began: None, most };
        let line = self.lines.entry(chain).or_insert_with(|| Line { waiting: VecDeque::new(), busy: false });
        line.waiting.push_back((item, load));
        if !line.busy && line.waiting.len() == 1 {
            self.ready.insert(turn(chain, sequence));
        }
    }

    /// Whether more should be read from the journal.
    pub(super) fn has_room(&self, next: u64) -> bool {
        self.held_bytes < HELD_BYTES
            && self.oldest().is_none_or(|oldest| next.saturating_sub(oldest) <= self.plan.max_ahead)
    }

    /// Dead letters being tried again.
    pub(super) fn letters(&self) -> usize {
        self.letters
    }

    pub(super) fn replayed(&self) -> usize {
        self.replayed
    }

    /// Parcels whose last attempt failed.
    pub(super) fn failing(&self) -> usize {
        self.resting.len() + self.failing_under_way
    }

    /// Whether the dead letters had no room for an event that has to go there.
    pub(super) fn waits_for_room(&self) -> bool {
        self.to_bury > 0 && self.full_until.is_some()
    }

    /// The oldest sequence from the journal that is not settled.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.unsettled.first().copied()
    }

    /// The next parcel to deliver or to bury, or when to ask again. `last` is the end of a lane: nothing waits for company,
    /// and what has failed is left for the next life.
    pub(super) fn next(&mut self, now: Instant, last: bool) -> Result<Parcel<T>, Option<Instant>> {
        if let Some(until) = self.pause_until.filter(|&until| until > now) {
            return Err(Some(until));
        }
        self.pause_until = None;
        if let Some(parcel) = self.pop_due(now, last) {
            let count = if parcel.bury.is_some() { &mut self.burying } else { &mut self.failing_under_way };
            *count += 1;
            return Ok(parcel);
        }
        let due = self.resting.first_key_value().map(|(&(due, _), _)| due);
        match self.fresh_from(now, last) {
            Ok(replay) => {
                // One of them at a time, until it is known what came of it.
                self.fresh_after =
                    (self.failing() >= self.limit()).then(|| now + self.retry.max_backoff.max(BURY_AGAIN));
                Ok(self.put_together(replay, now))
            }
            Err(later) => Err(due.into_iter().chain(later).min()),
        }
    }

    /// The parcel was delivered.
    pub(super) fn delivered(&mut self, parcel: &Parcel<T>, now: Instant) {
        self.back(parcel);
        self.successes += 1;
        self.mended |= parcel.again.is_some();
        self.fresh_after = None;
        // The target is there again: what found it gone need not wait any longer.
        if std::mem::take(&mut self.fresh_failures) > 0 {
            let hopeless = self.resting.extract_if(.., |_, parcel| parcel.hopeless).collect::<Vec<_>>();
            for (_, mut parcel) in hopeless {
                parcel.hopeless = false;
                self.rest(parcel, now);
            }
        }
        self.settle(&parcel.items);
        self.free(&parcel.items);
    }

    /// The parcel was not delivered, its first `delivered` events excepted: those are given back, settled. The others are
    /// tried again, apart from each other, or buried, by the kind of the failure.
    pub(super) fn failed(
        &mut self,
        mut parcel: Parcel<T>,
        delivered: usize,
        kind: FailureKind,
        reason: &str,
        now: Instant,
    ) -> Vec<Item> {
        self.back(&parcel);
        let fresh = parcel.attempts == 0;
        let delivered = parcel.take_first(delivered);
        if !delivered.is_empty() {
            self.successes += 1;
            self.settle(&delivered);
            // Of the first one left nothing is known yet but this.
            (parcel.attempts, parcel.began) = (0, now);
        }
        parcel.attempts += 1;
        for item in &mut parcel.items {
            (item.attempts, item.began) = (parcel.attempts, Some(parcel.began));
        }
        let kept: Vec<Chain> = parcel.items.iter().map(|item| item.chain).collect();
        for item in delivered.iter().filter(|item| !kept.contains(&item.chain)) {
            self.let_go(item.chain);
        }
        let withdrawn = self.take_withdrawn(&mut parcel);
        self.given_up.extend(withdrawn);
        if parcel.items.is_empty() {
            return delivered;
        }
        if kind == FailureKind::Reject {
            self.fresh_after = None;
        }
        match kind {
            FailureKind::Reject if parcel.items.len() > 1 => {
                // In smaller company it may do: this was none of the attempts that are counted.
                parcel.items.iter_mut().for_each(|item| item.attempts -= 1);
                self.divide(parcel);
            }
            FailureKind::Reject => self.bury(parcel, reason, now),
            FailureKind::Retry { after, blame } => {
                self.count_against_target(fresh, now);
                let divisible = parcel.items.len() > 1 && blame == Blame::Batch;
                let is_over = self.is_over(&parcel, now);
                let suspicious = parcel.attempts >= SUSPICIOUS && self.successes > parcel.successes;
                if divisible && (is_over || suspicious) {
                    self.divide(parcel);
                } else if is_over {
                    self.bury(parcel, reason, now);
                } else {
                    let after = after.map(|after| now + after.min(self.longest_pause()));
                    if blame == Blame::Target {
                        self.pause_until = self.pause_until.max(after);
                    }
                    let mut backoff = self.backoff(parcel.attempts);
                    if self.fresh_failures > 0 {
                        // It is away: however many are tried again, they share the pace of a few.
                        backoff = backoff.saturating_mul(self.crowd());
                        parcel.hopeless = true;
                    }
                    let due = now + backoff;
                    self.rest(parcel, after.map_or(due, |after| due.max(after)));
                }
            }
        }
        delivered
    }

    /// The first `buried` events of the parcel are in the dead letters; there was no room for the others.
    pub(super) fn buried(&mut self, mut parcel: Parcel<T>, buried: usize, now: Instant) {
        self.burying -= 1;
        let gone = parcel.take_first(buried);
        self.full_until = (!parcel.items.is_empty()).then(|| now + BURY_AGAIN);
        self.settle(&gone);
        let kept: Vec<Chain> = parcel.items.iter().map(|item| item.chain).collect();
        for item in gone.iter().filter(|item| !kept.contains(&item.chain)) {
            self.let_go(item.chain);
        }
        let withdrawn = self.take_withdrawn(&mut parcel);
        self.given_up.extend(withdrawn);
        if parcel.items.is_empty() {
            self.to_bury -= 1;
        } else {
            self.rest(parcel, now + BURY_AGAIN);
        }
    }

    /// Lets go of the replayed copies that are not under way.
    pub(super) fn drop_replay(&mut self) {
        if let Some(line) = self.lines.get_mut(&Chain::Replay) {
            let gone: Vec<Item> = line.waiting.drain(..).map(|(item, _)| item).collect();
            self.ready.retain(|&(_, _, chain)| chain != Chain::Replay);
            self.settle(&gone);
        }
        let of_replay = |parcel: &Parcel<T>| parcel.items.iter().any(|item| item.chain == Chain::Replay);
        let resting: Vec<_> = self.resting.extract_if(.., |_, parcel| of_replay(parcel)).collect();
        for (_, parcel) in resting {
            self.to_bury -= usize::from(parcel.bury.is_some());
            self.settle(&parcel.items);
            self.free(&parcel.items);
        }
    }

    /// A parcel that has rested. While the dead letters are full those that have to go there rest on, and are tried again
    /// at times: the target may be mended.
    fn pop_due(&mut self, now: Instant, last: bool) -> Option<Parcel<T>> {
        loop {
            let entry = self.resting.first_entry()?;
            let (due, _) = *entry.key();
            if due > now || last && entry.get().bury.is_none() {
                return None;
            }
            let mut parcel = entry.remove();
            let Some(until) = self.full_until.filter(|_| parcel.bury.is_some()) else { return Some(parcel) };
            if !last && (self.mended || parcel.again.is_some_and(|again| again <= now)) {
                parcel.bury = None;
                self.to_bury -= 1;
                return Some(parcel);
            }
            // One of them finds out whether there is room again.
            if until <= now && self.burying == 0 {
                return Some(parcel);
            }
            self.rest(parcel, if until > now { until } else { now + BURY_AGAIN });
        }
    }

    /// Which first attempt may begin, replays or others, or when to ask again.
    fn fresh_from(&mut self, now: Instant, last: bool) -> Result<bool, Option<Instant>> {
        let replay = self.ready.last().is_some_and(|&(replay, _, _)| replay);
        let furthest = self.furthest();
        let first = self
            .ready
            .first()
            .filter(|&&(replay, first, chain)| !replay && (first <= furthest || chain == Chain::Lane));
        if first.is_none() && !replay {
            return Err(None);
        }
        // A target that takes nothing is not asked about event after event.
        if self.failing() >= self.limit() && (last || self.fresh_after.is_some_and(|after| after > now)) {
            return Err(self.fresh_after.filter(|_| !last));
        }
        let Some((_, _, chain)) = first else { return Ok(true) };
        if last || self.plan.max_wait.is_zero() {
            return Ok(false);
        }
        let first = self.lines.get(chain).and_then(|line| line.waiting.front());
        let patience = first.map_or(now, |(item, _)| item.arrived + self.plan.max_wait);
        if patience <= now || self.is_batch_full() {
            return Ok(false);
        }
        // What waits for company leaves the way to those that have theirs.
        if replay { Ok(true) } else { Err(Some(patience)) }
    }

    /// The last sequence that may go. Letters are older than all, and replays are bound by nothing.
    fn furthest(&self) -> u64 {
        self.oldest().map_or(u64::MAX, |oldest| oldest.saturating_add(self.plan.max_ahead))
    }

    /// Whether what may go, replays aside, fills a batch.
    fn is_batch_full(&self) -> bool {
        let (mut events, mut bytes) = (0, 0);
        for (item, _) in self
            .ready
            .iter()
            .filter(|entry| !entry.0)
            .filter_map(|(_, _, chain)| self.lines.get(chain))
            .flat_map(|line| &line.waiting)
        {
            (events, bytes) = (events + 1, bytes + item.bytes);
            // A divided one goes in small company.
            if events >= self.plan.max_events.min(item.most) || bytes >= self.plan.max_bytes {
                return true;
            }
        }
        false
    }

    /// A parcel of replays or others that may go, the oldest first; there is something.
    fn put_together(&mut self, replay: bool, now: Instant) -> Parcel<T> {
        let mut parcel = Parcel {
            items: Vec::new(),
            loads: Vec::new(),
            bury: None,
            again: None,
            attempts: 0,
            began: now,
            successes: self.successes,
            hopeless: false,
        };
        let (mut bytes, mut most) = (0, self.plan.max_events);
        let furthest = self.furthest();
        let ready: Vec<_> = self.ready.iter().filter(|entry| entry.0 == replay).take(most).copied().collect();
        'chains: for entry in ready {
            let (_, first, chain) = entry;
            let Some(line) = self.lines.get_mut(&chain) else { continue };
            // What is all one chain is delivered as it came: an older event of another partition waits behind.
            let furthest =
                if chain == Chain::Lane { furthest.max(first.saturating_add(self.plan.max_ahead)) } else { furthest };
            while let Some((item, _)) = line.waiting.front() {
                if !replay && item.sequence > furthest {
                    break 'chains;
                }
                if let Some(first) = parcel.items.first() {
                    let full = parcel.items.len() >= most.min(item.most) || bytes + item.bytes > self.plan.max_bytes;
                    if full {
                        break 'chains;
                    }
                    if item.attempts != first.attempts {
                        break;
                    }
                }
                let Some((item, load)) = line.waiting.pop_front() else { break };
                (bytes, most) = (bytes + item.bytes, most.min(item.most));
                if !line.busy {
                    line.busy = true;
                    self.ready.remove(&entry);
                }
                parcel.attempts = item.attempts;
                parcel.began = item.began.map_or(parcel.began, |began| began.min(parcel.began));
                parcel.items.push(item);
                parcel.loads.push(load);
            }
        }
        self.failing_under_way += usize::from(parcel.attempts > 0);
        parcel
    }

    /// The parcel is not under way any more.
    fn back(&mut self, parcel: &Parcel<T>) {
        self.failing_under_way -= usize::from(parcel.attempts > 0);
    }

    fn rest(&mut self, parcel: Parcel<T>, due: Instant) {
        self.rested += 1;
        self.resting.insert((due, self.rested), parcel);
    }

    fn bury(&mut self, mut parcel: Parcel<T>, reason: &str, now: Instant) {
        parcel.bury = Some(reason.to_owned());
        self.mended &= parcel.again.is_none();
        // However many they are, they share the pace of a few.
        let wait = self.backoff(parcel.attempts).saturating_mul(self.crowd()).clamp(BURY_AGAIN, self.longest_pause());
        parcel.again = Some(now + wait);
        self.to_bury += 1;
        self.rest(parcel, now);
    }

    /// Lets the events of a parcel go on in batches of half its size.
    fn divide(&mut self, parcel: Parcel<T>) {
        let most = parcel.items.len().div_ceil(2);
        let chains: Vec<Chain> = parcel.items.iter().map(|item| item.chain).collect();
        for (mut item, load) in parcel.items.into_iter().zip(parcel.loads).rev() {
            item.most = most;
            if let Some(line) = self.lines.get_mut(&item.chain) {
                line.waiting.push_front((item, load));
            }
        }
        for chain in chains {
            self.let_go(chain);
        }
    }

    /// The chains of these events may go again.
    fn free(&mut self, items: &[Item]) {
        for item in items {
            self.let_go(item.chain);
        }
    }

    fn let_go(&mut self, chain: Chain) {
        let Some(line) = self.lines.get_mut(&chain).filter(|line| line.busy) else { return };
        line.busy = false;
        match line.waiting.front() {
            Some((first, _)) => _ = self.ready.insert(turn(chain, first.sequence)),
            None => _ = self.lines.remove(&chain),
        }
    }

    fn settle(&mut self, items: &[Item]) {
        for item in items {
            self.held_bytes -= item.bytes;
            match item.chain {
                Chain::Letter(_) => self.letters -= 1,
                Chain::Replay => self.replayed -= 1,
                Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => {
                    self.unsettled.remove(&item.sequence);
                    self.withdrawn.remove(&item.sequence);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
