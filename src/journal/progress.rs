//! Where a sink stands in the journal, and its account.
//!
//! From its first sequence on, by event: `stored = delivered + filtered + dead_lettered + evicted + pending`. Events that
//! damage took away before the sink had them are `lost`, and stand outside that sum: they are not stored any more.
//! A dead letter that is tried again is settled as far as the cursor goes, and pending in the account.

use serde::{Deserialize, Serialize};

use super::outcome::Settled;

/// A sink's place: everything up to the cursor is settled, and so are the ranges ahead of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// The first sequence this sink is to have.
    first: u64,
    cursor: u64,
    /// Settled ranges beyond the cursor: in order, apart, both ends included.
    ahead: Vec<(u64, u64)>,
    delivered: u64,
    filtered: u64,
    dead_lettered: u64,
    evicted: u64,
    lost: u64,
    pub(crate) enabled: bool,
    pub(crate) required: bool,
    /// Not in the settings any more; it keeps its place until an operator drops it.
    #[serde(default)]
    pub(crate) gone: bool,
    /// Dead letters with smaller ids were never counted here: they are of an earlier sink of that name.
    #[serde(default)]
    letters_from: u64,
    /// Grows with every retry of a dead letter and with its end, which are no progress.
    #[serde(default)]
    revision: u64,
}

/// Whether a dead letter that is tried again is pending in its sink's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Retrying {
    Counted,
    /// The account has never counted it as dead-lettered: it is of an earlier sink of that name, or damage took the count.
    Uncounted,
}

/// A sink's account, as `status` and the metrics show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub stored: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub dead_lettered: u64,
    pub evicted: u64,
    pub lost: u64,
    pub pending: u64,
    pub cursor: u64,
}

impl Place {
    /// A new sink's place, in front of sequence `first`; `letters` is the newest id ever given to a dead letter.
    pub(crate) fn before(first: u64, letters: u64) -> Self {
        Self {
            first,
            cursor: first.saturating_sub(1),
            ahead: Vec::new(),
            delivered: 0,
            filtered: 0,
            dead_lettered: 0,
            evicted: 0,
            lost: 0,
            enabled: true,
            required: true,
            gone: false,
            letters_from: letters + 1,
            revision: 0,
        }
    }

    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The settled ranges beyond the cursor.
    pub(crate) fn ahead(&self) -> &[(u64, u64)] {
        &self.ahead
    }

    pub(crate) fn is_settled(&self, sequence: u64) -> bool {
        sequence <= self.cursor || self.ahead.iter().any(|&(low, high)| (low..=high).contains(&sequence))
    }

    /// The last sequence it says anything about.
    pub(crate) fn reach(&self) -> u64 {
        self.ahead.last().map_or(self.cursor, |&(_, high)| high)
    }

    /// Of two copies of a sink's place, the one with more progress is the later one.
    pub(crate) fn progress(&self) -> (u64, u64, u64) {
        (self.first, self.settled(), self.revision)
    }

    /// How many events it has settled, those included that are pending again as retried dead letters.
    fn settled(&self) -> u64 {
        let ahead: u64 = self.ahead.iter().map(|(low, high)| high - low + 1).sum();
        (self.cursor + 1).saturating_sub(self.first) + ahead
    }

    /// Whether a lane is at work on it.
    pub(crate) fn has_lane(&self) -> bool {
        self.enabled && !self.gone
    }

    /// How many dead letters are pending again.
    pub(crate) fn retrying(&self) -> u64 {
        let counted = self.delivered + self.filtered + self.dead_lettered + self.evicted + self.lost;
        self.settled().saturating_sub(counted)
    }

    /// A dead letter is pending again; whether that shows in the account.
    pub(crate) fn retry(&mut self, letter: u64) -> Retrying {
        if letter < self.letters_from || self.dead_lettered == 0 {
            return Retrying::Uncounted;
        }
        self.dead_lettered -= 1;
        self.revision += 1;
        Retrying::Counted
    }

    /// What became of a retried dead letter.
    pub(crate) fn end_retry(&mut self, retrying: Retrying, how: Settled) {
        if retrying == Retrying::Counted {
            self.end_retries(1, how);
        }
    }

    /// The same of so many that are counted.
    pub(crate) fn end_retries(&mut self, count: u64, how: Settled) {
        *self.counter(how) += count;
        self.revision += count;
    }

    /// Damage took up to `most` of its dead letters, of which `left` are still there; how many it took, as far as the
    /// account can tell: those that were discarded are missing as well.
    pub(crate) fn lose_letters(&mut self, left: &[u64], most: u64) -> u64 {
        let left = left.iter().filter(|letter| **letter >= self.letters_from).count() as u64;
        let lost = self.dead_lettered.saturating_sub(left).min(most);
        self.dead_lettered -= lost;
        self.end_retries(lost, Settled::Lost);
        lost
    }

    /// Whether all of `from..=to` is settled.
    pub(crate) fn has_settled(&self, from: u64, to: u64) -> bool {
        let from = from.max(self.cursor + 1);
        from > to || self.ahead.iter().any(|&(low, high)| low <= from && to <= high)
    }

    /// Settles `from..=to`. What was settled before stays as it was, so nothing is counted twice.
    pub(crate) fn settle(&mut self, from: u64, to: u64, how: Settled) {
        let from = from.max(self.cursor + 1);
        if from > to {
            return;
        }
        let mut settled = 0;
        let mut next = from;
        let mut merged = (from, to);
        let mut kept = Vec::with_capacity(self.ahead.len() + 1);
        for &(low, high) in &self.ahead {
            if high + 1 < from || low > to.saturating_add(1) {
                kept.push((low, high));
                continue;
            }
            // It touches or overlaps: count the hole before it, and grow over it.
            if low > next {
                settled += low.min(to + 1) - next;
            }
            next = next.max(high + 1);
            merged = (merged.0.min(low), merged.1.max(high));
        }
        if next <= to {
            settled += to - next + 1;
        }
        if merged.0 == self.cursor + 1 {
            self.cursor = merged.1;
        } else {
            kept.push(merged);
            kept.sort_unstable();
        }
        self.ahead = kept;
        *self.counter(how) += settled;
    }

    fn counter(&mut self, how: Settled) -> &mut u64 {
        match how {
            Settled::Delivered => &mut self.delivered,
            Settled::Filtered => &mut self.filtered,
            Settled::DeadLettered => &mut self.dead_lettered,
            Settled::Evicted => &mut self.evicted,
            Settled::Lost => &mut self.lost,
        }
    }

    /// The account when the journal ends at `tail`.
    pub(crate) fn account(&self, tail: u64) -> Account {
        let stored = (tail + 1).saturating_sub(self.first).saturating_sub(self.lost);
        let settled = self.delivered + self.filtered + self.dead_lettered + self.evicted;
        Account {
            stored,
            delivered: self.delivered,
            filtered: self.filtered,
            dead_lettered: self.dead_lettered,
            evicted: self.evicted,
            lost: self.lost,
            pending: stored.saturating_sub(settled),
            cursor: self.cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_retried_dead_letter_is_pending_until_its_end() {
        let mut place = Place::before(3, 7);
        place.settle(3, 4, Settled::Delivered);
        place.settle(6, 6, Settled::DeadLettered);
        let sums = |place: &Place| {
            let account = place.account(8);
            let settled = account.delivered + account.filtered + account.dead_lettered + account.evicted;
            assert_eq!(account.stored, settled + account.pending, "{account:?}");
            (account.delivered, account.dead_lettered, account.pending, place.retrying())
        };
        assert_eq!(sums(&place), (2, 1, 3, 0));
        let before = place.progress();
        // Of an earlier sink of that name.
        assert_eq!(place.retry(7), Retrying::Uncounted);
        assert_eq!(sums(&place), (2, 1, 3, 0));
        assert_eq!(place.retry(8), Retrying::Counted);
        assert_eq!(sums(&place), (2, 0, 4, 1));
        // Damage has taken the count of that one.
        assert_eq!(place.retry(9), Retrying::Uncounted);
        place.end_retry(Retrying::Uncounted, Settled::Delivered);
        assert_eq!(sums(&place), (2, 0, 4, 1));
        place.end_retry(Retrying::Counted, Settled::DeadLettered);
        assert_eq!(sums(&place), (2, 1, 3, 0));
        place.retry(8);
        place.end_retry(Retrying::Counted, Settled::Delivered);
        assert_eq!(sums(&place), (3, 0, 3, 0));
        assert!(place.progress() > before, "the later copy of the two");
    }

    #[test]
    fn agrees_with_a_plain_map_over_random_use() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let first = random.u64(1..5);
            let mut place = Place::before(first, 0);
            let mut map = BTreeMap::new();
            for _ in 0..60 {
                let from = random.u64(1..60);
                let to = from + random.u64(0..8);
                let how = if random.bool() { Settled::Delivered } else { Settled::Evicted };
                place.settle(from, to, how);
                for sequence in from.max(first)..=to {
                    map.entry(sequence).or_insert(how);
                }
                let cursor = (first..).find(|sequence| !map.contains_key(sequence)).unwrap() - 1;
                let account = place.account(100);
                assert_eq!(account.cursor, cursor, "seed {seed}");
                assert_eq!(account.delivered, map.values().filter(|how| **how == Settled::Delivered).count() as u64);
                assert_eq!(account.evicted, map.values().filter(|how| **how == Settled::Evicted).count() as u64);
                assert_eq!(account.stored, account.delivered + account.evicted + account.pending);
                let ahead: u64 = place.ahead().iter().map(|(low, high)| high - low + 1).sum();
                assert_eq!(ahead, map.keys().filter(|sequence| **sequence > cursor).count() as u64);
            }
        }
    }
}
