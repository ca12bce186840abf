//! Events that are another receiver's now: what becomes of those that wait here, and of those under way.

use std::collections::VecDeque;

use super::{Chain, Item, Parcel, Queue, turn};

impl<T> Queue<T> {
    /// Lets go of the events from the journal that are `gone`, and gives back which. Those under way are not tried again:
    /// they end as delivered, or [given up](Self::take_given_up).
    pub(in crate::dispatch) fn withdraw(&mut self, gone: impl Fn(u64) -> bool) -> Vec<u64> {
        self.withdrawn.extend(self.unsettled.iter().filter(|&&sequence| gone(sequence)));
        let mut waited = Vec::new();
        for (&chain, line) in &mut self.lines {
            if matches!(chain, Chain::Letter(_) | Chain::Replay) {
                continue;
            }
            let before = line.waiting.front().map(|(item, _)| item.sequence);
            let all = std::mem::take(&mut line.waiting);
            let (left, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|(item, _)| gone(item.sequence));
            line.waiting = kept;
            waited.extend(left.into_iter().map(|(item, _)| item));
            let after = line.waiting.front().map(|(item, _)| item.sequence);
            if !line.busy && before != after {
                before.map(|first| self.ready.remove(&turn(chain, first)));
                after.map(|first| self.ready.insert(turn(chain, first)));
            }
        }
        self.lines.retain(|_, line| line.busy || !line.waiting.is_empty());
        let mut sequences: Vec<u64> = waited.iter().map(|item| item.sequence).collect();
        self.settle(&waited);
        for (due, mut parcel) in std::mem::take(&mut self.resting) {
            sequences.extend(self.take_withdrawn(&mut parcel));
            if parcel.items.is_empty() {
                self.to_bury -= usize::from(parcel.bury.is_some());
            } else {
                self.resting.insert(due, parcel);
            }
        }
        sequences
    }

    /// Events that were withdrawn while under way and have ended undelivered since this was last asked.
    pub(in crate::dispatch) fn take_given_up(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.given_up)
    }

    /// Takes those out of a parcel that were withdrawn, and lets their chains go.
    pub(super) fn take_withdrawn(&mut self, parcel: &mut Parcel<T>) -> Vec<u64> {
        let is_withdrawn = |item: &Item| match item.chain {
            Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => self.withdrawn.contains(&item.sequence),
            Chain::Letter(_) | Chain::Replay => false,
        };
        if self.withdrawn.is_empty() || !parcel.items.iter().any(is_withdrawn) {
            return Vec::new();
        }
        let loads = std::mem::take(&mut parcel.loads);
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut parcel.items).into_iter().zip(loads).partition(|(item, _)| is_withdrawn(item));
        (parcel.items, parcel.loads) = kept.into_iter().unzip();
        let gone: Vec<Item> = gone.into_iter().map(|(item, _)| item).collect();
        self.settle(&gone);
        let kept: Vec<Chain> = parcel.items.iter().map(|item| item.chain).collect();
        for item in gone.iter().filter(|item| !kept.contains(&item.chain)) {
            self.let_go(item.chain);
        }
        gone.iter().map(|item| item.sequence).collect()
    }
}
