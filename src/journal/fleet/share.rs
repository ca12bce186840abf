//! Where a sink stands in one partition: the record that decides what is settled, and whose turn it is.
//!
//! A partition's events are sparse in the stream. What is covered is told in sequences all the same, an event together with
//! the sequences before it that belong to other partitions, so that covered ranges grow together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::log::Log;
use crate::journal::outcome::Settled;

/// Written by compare-and-set only: whoever finds it changed has lost the partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
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
    /// The epoch of the [`Log`] whose sequences these are.
    #[serde(default, skip_serializing_if = "is_zero")]
    log: u64,
    /// As it was in the epoch before this one, from which follows what the change has cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    was: Option<Box<Was>>,
    /// What a newer receiver wrote.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// A place in an earlier epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Was {
    log: u64,
    pub(crate) cursor: u64,
    pub(crate) ahead: Vec<(u64, u64)>,
    /// How many events were settled.
    pub(crate) settled: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Share {
    /// Of a sink whose first sequence is `first`, before it has an owner; in the log of this epoch.
    pub(crate) fn before(first: u64, log: u64) -> Self {
        Self {
            epoch: 0,
            owner: String::new(),
            cursor: first.saturating_sub(1),
            ahead: Vec::new(),
            delivered: 0,
            filtered: 0,
            dead_lettered: 0,
            evicted: 0,
            log,
            was: None,
            more: BTreeMap::new(),
        }
    }

    pub(crate) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Gives it to another owner, which fences the one before.
    pub(crate) fn hand_over(&mut self, instance: &str) {
        self.epoch += 1;
        instance.clone_into(&mut self.owner);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn filtered(&self) -> u64 {
        self.filtered
    }

    pub(crate) fn dead_lettered(&self) -> u64 {
        self.dead_lettered
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn log(&self) -> u64 {
        self.log
    }

    /// How many events are settled, whatever became of them.
    pub(crate) fn settled(&self) -> u64 {
        self.delivered + self.filtered + self.dead_lettered + self.evicted
    }

    /// The last sequence it says anything about.
    pub(crate) fn reach(&self) -> u64 {
        self.ahead.last().map_or(self.cursor, |&(_, high)| high)
    }

    /// The covered ranges beyond the cursor.
    pub(crate) fn ahead(&self) -> &[(u64, u64)] {
        &self.ahead
    }

    /// How it was in that epoch, if that was the last one before this.
    pub(crate) fn before_change(&self, epoch: u64) -> Option<&Was> {
        self.was.as_deref().filter(|was| was.log == epoch)
    }

    /// Takes back what is settled of sequences that the log gives again; false if it is of this epoch already. What was
    /// counted stays counted.
    pub(crate) fn follow(&mut self, log: &Log) -> bool {
        if self.log == log.epoch {
            return false;
        }
        let kept = log.kept(self.log);
        let (cursor, ahead, settled) = (self.cursor, self.ahead.clone(), self.settled());
        self.was = Some(Box::new(Was { log: self.log, cursor, ahead, settled }));
        self.cursor = self.cursor.min(kept);
        self.ahead.retain(|&(low, _)| low <= kept);
        self.ahead.iter_mut().for_each(|(_, high)| *high = kept.min(*high));
        self.log = log.epoch;
        true
    }

    pub(crate) fn is_settled(&self, sequence: u64) -> bool {
        let at = self.ahead.partition_point(|&(_, high)| high < sequence);
        sequence <= self.cursor || self.ahead.get(at).is_some_and(|&(low, _)| low <= sequence)
    }

    /// Settles the event at `sequence`, before which the partition's last one is at `previous`; false, and counted once
    /// only, if it was settled before.
    pub(crate) fn settle(&mut self, previous: u64, sequence: u64, how: Settled) -> bool {
        let is_new = !self.is_settled(sequence);
        if is_new && let Some(counter) = self.counter(how) {
            *counter += 1;
        }
        self.cover(previous, sequence);
        is_new
    }

    /// Says that nothing unsettled lies after `previous` up to `sequence`: also of an event found settled, for what stood
    /// before it may be gone.
    pub(crate) fn cover(&mut self, previous: u64, sequence: u64) {
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
            // What is lost is counted for all partitions together.
            Settled::Lost => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::journal::fleet::log::{Checked, Sight};

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
            let mut share = Share::before(first, 0);
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
        let mut share = Share::before(1, 0);
        share.settle(5, 7, Settled::Delivered);
        share.settle(0, 3, Settled::Delivered);
        assert_eq!((share.cursor(), share.is_settled(7)), (3, true));
        // Of 5 nothing is left: reading on from the cursor finds 7.
        share.cover(3, 7);
        assert_eq!((share.cursor(), share.ahead.len(), share.delivered()), (7, 0, 2));
    }

    #[test]
    fn what_a_newer_version_wrote_is_kept_and_an_older_one_is_read() {
        let json = String::from_utf8(Share::before(4, 0).write().unwrap()).unwrap();
        assert!(!json.contains("log"), "older receivers refuse what they do not know: {json}");
        let share = Share::read(json.replacen('{', "{\"later\":1,", 1).as_bytes()).unwrap();
        assert_eq!((share.cursor(), share.log()), (3, 0));
        assert!(String::from_utf8(share.write().unwrap()).unwrap().contains("\"later\":1"));
    }

    #[test]
    fn of_another_log_only_what_is_the_same_counts() {
        let seen = |created, last, last_time| Sight { created, first: 1, last, last_time, deleted: 0 };
        let log = Log::found(&seen(7, 100, 10), ["web".to_owned()].into());
        let now = std::time::SystemTime::now();
        let cut = log.judge(&seen(7, 60, 5), 100, Checked { verified: 60, differs: true, same: 60 }, now).unwrap();
        let made_again = cut.judge(&seen(9, 0, 0), 60, Checked { verified: 0, differs: true, same: 0 }, now).unwrap();
        for (settled, at) in [(20..21, 21), (20..70, 60), (90..95, 60)] {
            let mut share = Share::before(21, 0);
            for last in settled.clone() {
                share.settle(last, last + 1, Settled::Delivered);
            }
            let (before, counted) = (share.clone(), share.delivered());
            assert!(!share.follow(&log));
            assert_eq!(share, before);
            assert!(share.follow(&cut) && !share.follow(&cut));
            assert!(share.reach() <= 60.max(at), "{share:?}");
            assert_eq!((share.cursor() <= 60, share.is_settled(61), share.delivered()), (true, false, counted));
            share.follow(&made_again);
            assert_eq!((share.cursor(), share.reach(), share.log()), (0, 0, made_again.epoch));
        }
        let mut of_lost_records = Share::before(50, made_again.epoch + 1);
        of_lost_records.follow(&made_again);
        assert_eq!(of_lost_records.cursor(), 0);
    }
}
