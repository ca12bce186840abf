//! Random use on a clock that is set by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::sinks::Ordering;

const MS: Duration = Duration::from_millis(1);

fn plan() -> Plan {
    Plan {
        concurrency: 1,
        max_events: 1,
        max_bytes: 1 << 20,
        max_wait: Duration::ZERO,
        max_ahead: 10_000,
        ordering: Ordering::Entity,
    }
}

fn retry() -> Retry {
    Retry { initial_backoff: 100 * MS, max_backoff: 1_000 * MS, max_attempts: None, max_age: None }
}

const TARGET: FailureKind = FailureKind::Retry { after: None, blame: Blame::Target };
const BATCH: FailureKind = FailureKind::Retry { after: None, blame: Blame::Batch };

/// A target's mood, and what came of it.
struct World {
    random: fastrand::Rng,
    now: Instant,
    queue: Queue<u64>,
    under_way: Vec<Parcel<u64>>,
    burying: Vec<Parcel<u64>>,
    /// What became of each event, by chain, in order.
    delivered: BTreeMap<Chain, Vec<u64>>,
    buried: BTreeSet<u64>,
    /// Events the target never takes, and events over which it stumbles.
    poison: BTreeSet<u64>,
    stumble: BTreeSet<u64>,
    /// It may take the first event of a batch and then break off, as a file does.
    breaks_off: bool,
    attempts: u64,
}

impl World {
    /// Sends what can be sent; when to look again.
    fn send(&mut self, last: bool) -> Option<Instant> {
        while self.under_way.len() < self.queue.plan.concurrency {
            match self.queue.next(self.now, last) {
                Ok(parcel) if parcel.bury.is_some() => {
                    self.check_chains(&parcel);
                    self.burying.push(parcel);
                }
                Ok(parcel) => {
                    self.check(&parcel);
                    self.attempts += 1;
                    self.under_way.push(parcel);
                }
                Err(later) => return later,
            }
        }
        None
    }

    fn check(&self, parcel: &Parcel<u64>) {
        let Plan { max_events, max_bytes, max_ahead, .. } = self.queue.plan;
        let bytes: usize = parcel.items.iter().map(|item| item.bytes).sum();
        assert!(!parcel.items.is_empty() && parcel.items.len() <= max_events);
        assert!(bytes <= max_bytes || parcel.items.len() == 1, "{bytes}");
        assert!(parcel.items.iter().map(|item| item.sequence).eq(parcel.loads.iter().copied()));
        let oldest = self.queue.oldest().unwrap();
        // One that was tried before was near enough then.
        assert!(parcel.attempts > 0 || parcel.loads.iter().all(|sequence| sequence - oldest <= max_ahead));
        self.check_chains(parcel);
    }

    fn check_chains(&self, parcel: &Parcel<u64>) {
        for other in self.under_way.iter().chain(&self.burying) {
            let chains: BTreeSet<Chain> = other.items.iter().map(|item| item.chain).collect();
            assert!(parcel.items.iter().all(|item| !chains.contains(&item.chain)), "a chain is under way twice");
        }
    }

    /// One burial ends. Now and then the dead letters are full.
    fn end_burial(&mut self) {
        let parcel = self.burying.swap_remove(self.random.usize(..self.burying.len()));
        let room = if self.random.u8(..4) == 0 { 0 } else { parcel.items.len() };
        self.buried.extend(&parcel.loads[..room]);
        self.queue.buried(parcel, room, self.now);
    }

    /// One delivery under way ends.
    fn end_one(&mut self, up: bool) {
        let parcel = self.under_way.swap_remove(self.random.usize(..self.under_way.len()));
        let has = |set: &BTreeSet<u64>| parcel.loads.iter().any(|load| set.contains(load));
        let kind = match () {
            () if !up => Some(TARGET),
            () if has(&self.poison) => Some(FailureKind::Reject),
            () if has(&self.stumble) => Some(BATCH),
            () => match self.random.u8(..20) {
                0 => Some(BATCH),
                1 => Some(FailureKind::Retry { after: Some(50 * MS), blame: Blame::Target }),
                _ => None,
            },
        };
        let done = match kind {
            None => {
                self.queue.delivered(&parcel, self.now);
                parcel.items
            }
            Some(kind) => {
                let some = usize::from(kind == TARGET && self.breaks_off && self.random.u8(..4) == 0);
                self.queue.failed(parcel, some, kind, "a test", self.now)
            }
        };
        for item in done {
            self.delivered.entry(item.chain).or_default().push(item.sequence);
        }
    }
}

#[test]
fn everything_is_delivered_once_in_the_order_of_its_chain_or_buried() {
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let plan = Plan {
            concurrency: random.usize(1..6),
            max_events: [1, 1, 2, 7, 50][random.usize(..5)],
            max_bytes: [50, 1_000, 1 << 20][random.usize(..3)],
            max_wait: MS * random.u32(..2) * 30,
            max_ahead: [5, 100, 10_000][random.usize(..3)],
            ..plan()
        };
        let ordering = random.u8(..3);
        let some = |random: &mut fastrand::Rng| (0..random.usize(..4)).map(|_| random.u64(1..300)).collect();
        let (poison, stumble): (BTreeSet<u64>, BTreeSet<u64>) = (some(&mut random), some(&mut random));
        let mut world = World {
            random,
            now: Instant::now(),
            queue: Queue::new(plan, retry()),
            under_way: Vec::new(),
            burying: Vec::new(),
            delivered: BTreeMap::new(),
            buried: BTreeSet::new(),
            poison,
            stumble,
            breaks_off: true,
            attempts: 0,
        };
        let mut pushed: BTreeMap<Chain, Vec<u64>> = BTreeMap::new();
        let (mut next, mut up, mut idle) = (1, true, 0);
        while next <= 300 || !world.queue.lines.is_empty() {
            // In the end the target is there, and takes even what it stumbled over.
            up = next > 300 || if world.random.u8(..30) == 0 { !up } else { up };
            if next > 300 && world.attempts > 20_000 {
                world.stumble.clear();
            }
            if next <= 300 && world.queue.has_room(next) && world.random.bool() {
                for _ in 0..world.random.u8(1..20) {
                    let chain = match ordering {
                        0 => Chain::Lane,
                        1 if world.random.u8(..10) > 0 => Chain::Entity(world.random.u64(..20)),
                        _ => Chain::Alone(next),
                    };
                    pushed.entry(chain).or_default().push(next);
                    world.queue.push(next, chain, world.random.usize(1..60), next, world.now);
                    next += 1;
                }
            }
            let later = world.send(false);
            let works = !world.under_way.is_empty() || !world.burying.is_empty();
            if !works || world.random.u8(..3) == 0 {
                let asleep = !works && later.is_none();
                idle = if asleep { idle + 1 } else { 0 };
                assert!(idle < 100 || world.queue.lines.is_empty(), "seed {seed}: nothing moves any more");
                world.now = later.filter(|later| *later > world.now).unwrap_or(world.now + MS);
            }
            if !world.under_way.is_empty() && world.random.bool() {
                world.end_one(up);
            }
            if !world.burying.is_empty() && world.random.bool() {
                world.end_burial();
            }
            if next > 300 && world.attempts > 200_000 {
                panic!("seed {seed}: no end");
            }
            if next > 300 && world.attempts > 5_000 {
                world.stumble.clear();
            }
        }
        assert!(world.buried.iter().all(|sequence| world.poison.contains(sequence)), "seed {seed}");
        for (chain, sequences) in pushed {
            let expected: Vec<u64> =
                sequences.into_iter().filter(|sequence| !world.buried.contains(sequence)).collect();
            let delivered = world.delivered.remove(&chain).unwrap_or_default();
            assert_eq!(delivered, expected, "seed {seed}, {chain:?}");
        }
        let queue = world.queue;
        assert_eq!((queue.held_bytes, world.under_way.len(), queue.failing_under_way), (0, 0, 0), "seed {seed}");
        assert_eq!((queue.to_bury, queue.burying, world.burying.len()), (0, 0, 0), "seed {seed}");
        assert!(queue.unsettled.is_empty() && queue.ready.is_empty() && queue.resting.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_target_that_takes_nothing_is_asked_ever_less_often() {
    let now = Instant::now();
    let mut world = World {
        random: fastrand::Rng::with_seed(1),
        now,
        queue: Queue::new(Plan { concurrency: 4, ..plan() }, retry()),
        under_way: Vec::new(),
        burying: Vec::new(),
        delivered: BTreeMap::new(),
        buried: BTreeSet::new(),
        poison: BTreeSet::new(),
        stumble: BTreeSet::new(),
        breaks_off: false,
        attempts: 0,
    };
    (1..=5_000).for_each(|sequence| world.queue.push(sequence, Chain::Alone(sequence), 10, sequence, now));
    while world.now < now + Duration::from_secs(600) {
        let later = world.send(false);
        while !world.under_way.is_empty() {
            world.end_one(false);
        }
        world.now = later.unwrap_or(world.now).max(world.now + MS);
    }
    // Not 5,000 every half second: the pace of eight, the first attempts of one more each half second, and their retries.
    assert!((2_000..20_000).contains(&world.attempts), "{}", world.attempts);
    assert!(world.queue.failing() < 1_500, "{}", world.queue.failing());
    // It is back: no one waits for the end of a pause.
    let back = world.now;
    while !world.queue.lines.is_empty() {
        let later = world.send(false);
        while !world.under_way.is_empty() {
            let parcel = world.under_way.swap_remove(0);
            world.queue.delivered(&parcel, world.now);
        }
        world.now = later.unwrap_or(world.now).max(world.now + MS / 10);
    }
    assert!(world.now - back < Duration::from_secs(3), "{:?}", world.now - back);
}

#[test]
fn one_bad_event_of_a_batch_is_found() {
    let now = Instant::now();
    let retry = Retry { max_attempts: Some(2), ..retry() };
    for kind in [FailureKind::Reject, BATCH] {
        let mut queue = Queue::new(Plan { max_events: 64, ..plan() }, retry.clone());
        (1..=64).for_each(|sequence| queue.push(sequence, Chain::Entity(sequence % 5), 10, sequence, now));
        let (mut delivered, mut buried, mut clock) = (0, Vec::new(), now);
        loop {
            match queue.next(clock, false) {
                Ok(parcel) if parcel.bury.is_some() => {
                    buried.extend(parcel.loads.clone());
                    queue.buried(parcel, 1, clock);
                }
                Ok(parcel) if parcel.loads.contains(&40) => _ = queue.failed(parcel, 0, kind, "a test", clock),
                Ok(parcel) => {
                    delivered += parcel.loads.len();
                    queue.delivered(&parcel, clock);
                }
                Err(Some(later)) => clock = later,
                Err(None) => break,
            }
        }
        assert_eq!((delivered, buried), (63, vec![40]), "{kind:?}");
    }
}

/// Of a target that cannot be reached, no event is to blame.
#[test]
fn a_batch_stays_whole_while_its_target_is_away() {
    let now = Instant::now();
    let mut queue = Queue::new(Plan { max_events: 10, ..plan() }, retry());
    (1..=10).for_each(|sequence| queue.push(sequence, Chain::Alone(sequence), 10, sequence, now));
    let mut clock = now;
    for _ in 0..50 {
        match queue.next(clock, false) {
            Ok(parcel) => {
                assert_eq!(parcel.loads.len(), 10);
                queue.failed(parcel, 0, TARGET, "a test", clock);
            }
            Err(later) => clock = later.unwrap(),
        }
    }
}

#[test]
fn a_pause_that_the_target_wants_is_kept_and_capped() {
    let now = Instant::now();
    for (after, expected) in [(Duration::from_secs(7), 7), (Duration::from_secs(1_000_000), 300)] {
        let mut queue = Queue::new(plan(), retry());
        (1..=3).for_each(|sequence| queue.push(sequence, Chain::Alone(sequence), 10, sequence, now));
        let parcel = queue.next(now, false).unwrap();
        let kind = FailureKind::Retry { after: Some(after), blame: Blame::Target };
        queue.failed(parcel, 0, kind, "a test", now);
        assert_eq!(queue.next(now, false).unwrap_err(), Some(now + Duration::from_secs(expected)));
    }
}

#[test]
fn a_batch_waits_for_company_as_long_as_it_may() {
    let now = Instant::now();
    let mut queue = Queue::new(Plan { max_events: 3, max_wait: 100 * MS, ..plan() }, retry());
    queue.push(1, Chain::Alone(1), 10, 1, now);
    assert_eq!(queue.next(now, false).unwrap_err(), Some(now + 100 * MS));
    queue.push(2, Chain::Alone(2), 10, 2, now + 50 * MS);
    assert_eq!(queue.next(now + 60 * MS, false).unwrap_err(), Some(now + 100 * MS));
    assert_eq!(queue.next(now + 100 * MS, false).unwrap().loads, [1, 2]);
    (3..=5).for_each(|sequence| queue.push(sequence, Chain::Alone(sequence), 10, sequence, now + 110 * MS));
    assert_eq!(queue.next(now + 110 * MS, false).unwrap().loads, [3, 4, 5]);
    queue.push(6, Chain::Alone(6), 10, 6, now + 110 * MS);
    assert_eq!(queue.next(now + 110 * MS, true).unwrap().loads, [6], "the end waits for nobody");
}

#[test]
fn replays_go_last_and_alone() {
    let now = Instant::now();
    let mut queue = Queue::new(Plan { max_events: 10, concurrency: 2, ..plan() }, retry());
    (1..=3).for_each(|sequence| queue.push(sequence, Chain::Replay, 10, sequence, now));
    (11..=12).for_each(|sequence| queue.push(sequence, Chain::Alone(sequence), 10, sequence, now));
    queue.push(5, Chain::Letter(1), 10, 5, now);
    assert_eq!(queue.next(now, false).unwrap().loads, [5, 11, 12]);
    let replayed = queue.next(now, false).unwrap();
    assert_eq!(replayed.loads, [1, 2, 3]);
    queue.push(4, Chain::Replay, 10, 4, now);
    assert_eq!(queue.next(now, false).unwrap_err(), None, "one parcel of replays at a time");
    queue.failed(replayed, 0, TARGET, "a test", now);
    queue.drop_replay();
    assert_eq!(queue.replayed(), 0);
}

/// Partitions that come and go: their events merge out of order, are withdrawn, and come again.
#[test]
fn what_is_withdrawn_and_comes_again_keeps_its_order() {
    const PARTITIONS: u64 = 4;
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let plan = Plan {
            concurrency: random.usize(1..6),
            max_events: [1, 2, 7][random.usize(..3)],
            max_ahead: [20, 10_000][random.usize(..2)],
            ..plan()
        };
        let some: BTreeSet<u64> = (0..random.usize(..4)).map(|_| random.u64(1..200)).collect();
        let mut world = World {
            random,
            now: Instant::now(),
            queue: Queue::new(plan, retry()),
            under_way: Vec::new(),
            burying: Vec::new(),
            delivered: BTreeMap::new(),
            buried: BTreeSet::new(),
            poison: some,
            stumble: BTreeSet::new(),
            breaks_off: true,
            attempts: 0,
        };
        let chain = |sequence: u64| Chain::Entity(sequence % 12);
        // Where each partition is read on, if it is held.
        let mut next: Vec<Option<u64>> = (0..PARTITIONS).map(|partition| Some(partition + PARTITIONS)).collect();
        let mut settled: BTreeSet<u64> = BTreeSet::new();
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 1_000_000, "seed {seed}: no end");
            let partition = world.random.usize(..next.len());
            match next[partition] {
                Some(from) if from < 200 && world.queue.has_room(from) => {
                    if !settled.contains(&from) {
                        let bytes = 10;
                        world.queue.push(from, chain(from), bytes, from, world.now);
                    }
                    next[partition] = Some(from + PARTITIONS);
                }
                Some(_) if steps < 1_000 && world.random.u8(..50) == 0 => {
                    let gone = |sequence: u64| sequence % PARTITIONS == partition as u64;
                    let before: BTreeSet<u64> = world.queue.unsettled.iter().copied().filter(|s| gone(*s)).collect();
                    let left = world.queue.withdraw(gone);
                    let under_way: BTreeSet<u64> =
                        world.under_way.iter().chain(&world.burying).flat_map(|parcel| parcel.loads.clone()).collect();
                    assert!(left.iter().all(|sequence| before.contains(sequence) && !under_way.contains(sequence)));
                    assert!(before.iter().all(|s| left.contains(s) || under_way.contains(s)), "seed {seed}");
                    next[partition] = None;
                }
                None if world.random.bool() => next[partition] = Some(partition as u64 + PARTITIONS),
                _ => {}
            }
            let later = world.send(false);
            for parcel in &world.under_way {
                assert!(parcel.attempts > 0 || parcel.loads.iter().all(|load| !settled.contains(load)), "seed {seed}");
            }
            if !world.burying.is_empty() && world.random.u8(..8) == 0 {
                world.end_burial();
            }
            if world.under_way.is_empty() {
                world.now = later.filter(|later| *later > world.now).unwrap_or(world.now + MS);
            } else if world.random.u8(..8) == 0 {
                let up = steps > 1_000 || world.random.u8(..5) > 0;
                world.end_one(up);
            }
            settled.extend(world.delivered.values().flatten());
            settled.extend(&world.buried);
            for given_up in world.queue.take_given_up() {
                assert!(!world.queue.unsettled.contains(&given_up) && !settled.contains(&given_up), "seed {seed}");
            }
            let all_read = next.iter().all(|next| next.is_some_and(|next| next >= 200));
            if all_read && world.queue.lines.is_empty() {
                break;
            }
        }
        assert_eq!(settled, (PARTITIONS..200).collect(), "seed {seed}");
        for (chain, sequences) in world.delivered {
            assert!(sequences.is_sorted_by(|a, b| a < b), "seed {seed}, {chain:?}: {sequences:?}");
        }
        let queue = world.queue;
        assert_eq!((queue.held_bytes, queue.failing_under_way), (0, 0), "seed {seed}");
        assert_eq!((queue.to_bury, queue.burying, world.burying.len()), (0, 0, 0), "seed {seed}");
        assert!(queue.unsettled.is_empty() && queue.ready.is_empty() && queue.resting.is_empty(), "seed {seed}");
        assert!(queue.withdrawn.is_empty(), "seed {seed}");
    }
}

#[test]
fn an_older_event_behind_newer_ones_holds_up_no_lane_that_is_one_chain() {
    let now = Instant::now();
    let mut queue = Queue::new(Plan { max_ahead: 10, ..plan() }, retry());
    [50_000, 50_001, 100].into_iter().for_each(|sequence| queue.push(sequence, Chain::Lane, 10, sequence, now));
    for expected in [50_000, 50_001, 100] {
        let parcel = queue.next(now, false).unwrap();
        assert_eq!(parcel.loads, [expected]);
        queue.delivered(&parcel, now);
    }
}
