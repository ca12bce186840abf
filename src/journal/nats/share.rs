//! Where a sink stands in one partition: the record that decides what is settled, and whose turn it is.
//!
//! A partition's events are sparse in the stream. What is covered is told in sequences all the same, an event together with
//! the sequences before it that belong to other partitions, so that covered ranges grow together.

use serde::{Deserialize, Serialize};

use crate::journal::Settled;

/// Written by compare-and-set only: whoever finds it changed has lost the partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Share {
    /// Grows with every owner.
    epoch: u64,
    /// The instance that may write; empty before the first one.
    owner: String,
    /// Everything of the partition up to here is settled.
    cursor: u64,
    /// Covered ranges beyond the cursor: in order, apart, both ends included. All of the partition in them is settled.
    ahead: Vec<(u64, u64)>,
    delivered: u64,
    filtered: u64,
    dead_lettered: u64,
    evicted: u64,
}

impl Share {
    /// Of a sink whose first sequence is `first`, before it has an owner.
    pub(super) fn before(first: u64) -> Self {
        Self {
            epoch: 0,
            owner: String::new(),
            cursor: first.saturating_sub(1),
            ahead: Vec::new(),
            delivered: 0,
            filtered: 0,
            dead_lettered: 0,
            evicted: 0,
        }
    }

    pub(super) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Gives it to another owner, which fences the one before.
    pub(super) fn hand_over(&mut self, instance: &str) {
        self.epoch += 1;
        instance.clone_into(&mut self.owner);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn filtered(&self) -> u64 {
        self.filtered
    }

    pub(super) fn dead_lettered(&self) -> u64 {
        self.dead_lettered
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn is_settled(&self, sequence: u64) -> bool {
        let at = self.ahead.partition_point(|&(_, high)| high < sequence);
        sequence <= self.cursor || self.ahead.get(at).is_some_and(|&(low, _)| low <= sequence)
    }

    /// Settles the event at `sequence`, before which the partition's last one is at `previous`; false, and counted once
    /// only, if it was settled before.
    pub(super) fn settle(&mut self, previous: u64, sequence: u64, how: Settled) -> bool {
        let is_new = !self.is_settled(sequence);
        if is_new && let Some(counter) = self.counter(how) {
            *counter += 1;
        }
        self.cover(previous, sequence);
        is_new
    }

    /// Says that nothing unsettled lies after `previous` up to `sequence`: also of an event found settled, for what stood
    /// before it may be gone.
    pub(super) fn cover(&mut self, previous: u64, sequence: u64) {
        let (mut low, mut high) = (previous.max(self.cursor) + 1, sequence);
        if low > high {
            return;
        }
        // Those that overlap or touch it.
        let from = self.ahead.partition_point(|&(_, end)| end + 1 < low);
        let to = self.ahead.partition_point(|&(start, _)| start <= high.saturating_add(1));
        if let Some(&(start, _)) = self.ahead[..to].get(from) {
            low = low.min(start);
        }
        if let Some(&(_, end)) = self.ahead[from..to].last() {
            high = high.max(end);
        }
        let merged = (low > self.cursor + 1).then_some((low, high));
        self.ahead.splice(from..to, merged);
        if merged.is_none() {
            self.cursor = high;
        }
    }

    fn counter(&mut self, how: Settled) -> Option<&mut u64> {
        match how {
            Settled::Delivered => Some(&mut self.delivered),
            Settled::Filtered => Some(&mut self.filtered),
            Settled::DeadLettered => Some(&mut self.dead_lettered),
            Settled::Evicted => Some(&mut self.evicted),
            // A cluster keeps copies; nothing is told as lost.
            Settled::Lost => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const HOW: [Settled; 4] = [Settled::Delivered, Settled::Filtered, Settled::DeadLettered, Settled::Evicted];

    /// The partition's last event before this one, or what lies before its first.
    fn previous(events: &BTreeSet<u64>, sequence: u64, first: u64) -> u64 {
        events.range(..sequence).next_back().copied().unwrap_or(first - 1)
    }

    #[test]
    fn agrees_with_a_plain_map_over_random_use() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let first = random.u64(1..6);
            let events: BTreeSet<u64> = (0..40).map(|_| random.u64(first..200)).collect();
            let all: Vec<u64> = events.iter().copied().collect();
            let mut share = Share::before(first);
            let mut map: BTreeMap<u64, Settled> = BTreeMap::new();
            for _ in 0..120 {
                let sequence = all[random.usize(..all.len())];
                let how = HOW[random.usize(..HOW.len())];
                let is_new = share.settle(previous(&events, sequence, first), sequence, how);
                assert_eq!(is_new, !map.contains_key(&sequence), "seed {seed}");
                map.entry(sequence).or_insert(how);
                if random.u8(..10) == 0 {
                    let epoch = share.epoch();
                    share = Share::read(&share.write().unwrap()).unwrap();
                    share.hand_over("another");
                    assert_eq!((share.epoch(), share.owner()), (epoch + 1, "another"));
                }
                let unsettled = events.iter().find(|sequence| !map.contains_key(sequence));
                let cursor = unsettled.map_or(all[all.len() - 1], |&next| previous(&events, next, first));
                assert_eq!(share.cursor(), cursor, "seed {seed}");
                for sequence in &events {
                    assert_eq!(share.is_settled(*sequence), map.contains_key(sequence), "seed {seed}: {sequence}");
                }
                let count = |how| map.values().filter(|settled| **settled == how).count() as u64;
                assert_eq!(
                    HOW.map(count),
                    [share.delivered(), share.filtered(), share.dead_lettered(), share.evicted()]
                );
                let apart = share.ahead.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0);
                assert!(apart && share.ahead.iter().all(|&(low, high)| low <= high && low > cursor + 1), "{share:?}");
            }
        }
    }

    #[test]
    fn what_was_deleted_by_hand_holds_nothing_up() {
        let mut share = Share::before(1);
        share.settle(5, 7, Settled::Delivered);
        share.settle(0, 3, Settled::Delivered);
        assert_eq!((share.cursor(), share.is_settled(7)), (3, true));
        // Of 5 nothing is left: reading on from the cursor finds 7.
        share.cover(3, 7);
        assert_eq!((share.cursor(), share.ahead.len(), share.delivered()), (7, 0, 2));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = String::from_utf8(Share::before(4).write().unwrap()).unwrap();
        assert!(Share::read(json.as_bytes()).is_ok());
        assert!(Share::read(json.replacen('{', "{\"later\":1,", 1).as_bytes()).is_err());
    }
}
