//! What the writer knows of the quarantine: which bodies are in it, and which to let go of when it is full.

use std::collections::{HashSet, VecDeque};

use super::store::StoreState;
use crate::journal::quarantine::Kept;

/// What a row takes besides its body, about.
const ROW_BYTES: u64 = 256;

#[derive(Debug)]
pub(crate) struct Quarantine {
    max_bytes: u64,
    bytes: u64,
    next_id: u64,
    oldest_first: VecDeque<Entry>,
    digests: HashSet<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u64,
    digest: u64,
    bytes: u64,
}

/// Entries that go, if the commit goes through.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// Delete rows up to this id: a full quarantine lets go of them.
    pub(crate) through: Option<u64>,
    entries: Vec<Entry>,
    /// Those that were asked to go.
    asked: usize,
}

impl Dropped {
    /// How many a full quarantine lets go of.
    pub(crate) fn count(&self) -> u64 {
        (self.entries.len() - self.asked) as u64
    }
}

impl Quarantine {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, bytes: 0, next_id: 1, oldest_first: VecDeque::new(), digests: HashSet::new() }
    }

    /// Takes in a row found at start; oldest first.
    pub(crate) fn recover(&mut self, id: u64, digest: u64, body: usize) {
        self.add(Entry { id, digest, bytes: body as u64 + ROW_BYTES });
    }

    /// The newest may be gone from it: no id comes again.
    pub(crate) fn go_on_after(&mut self, id: u64) {
        self.next_id = self.next_id.max(id + 1);
    }

    pub(crate) fn knows(&self, digest: u64) -> bool {
        self.digests.contains(&digest)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.oldest_first.binary_search_by_key(&id, |entry| entry.id).is_ok()
    }

    /// Takes out what is asked to go, numbers the new bodies, and makes room for them, oldest out first.
    pub(crate) fn change(&mut self, gone: &[u64], kept: &mut [Kept], state: &mut StoreState) -> Dropped {
        let mut dropped = self.take_out(gone);
        for kept in kept.iter_mut() {
            kept.id = self.next_id;
            self.add(Entry { id: kept.id, digest: kept.digest, bytes: kept.body.len() as u64 + ROW_BYTES });
        }
        // What came with this commit stays, whatever its size.
        while self.bytes > self.max_bytes && self.oldest_first.len() > kept.len().max(1) {
            let Some(entry) = self.oldest_first.pop_front() else { break };
            self.bytes -= entry.bytes;
            self.digests.remove(&entry.digest);
            dropped.through = Some(entry.id);
            dropped.entries.push(entry);
        }
        state.quarantined = self.oldest_first.len() as u64;
        state.kept = self.next_id - 1;
        state.kept_floor = self.oldest_first.front().map_or(self.next_id, |oldest| oldest.id);
        dropped
    }

    fn take_out(&mut self, gone: &[u64]) -> Dropped {
        let mut dropped = Dropped::default();
        if gone.is_empty() {
            return dropped;
        }
        let gone: HashSet<u64> = gone.iter().copied().collect();
        self.oldest_first.retain(|entry| {
            let goes = gone.contains(&entry.id);
            if goes {
                self.bytes -= entry.bytes;
                self.digests.remove(&entry.digest);
                dropped.entries.push(*entry);
            }
            !goes
        });
        dropped.asked = dropped.entries.len();
        dropped
    }

    /// Takes a failed commit's changes back.
    pub(crate) fn put_back(&mut self, kept: &[Kept], dropped: Dropped) {
        for _ in kept {
            if let Some(entry) = self.oldest_first.pop_back() {
                self.bytes -= entry.bytes;
                self.digests.remove(&entry.digest);
            }
        }
        for entry in dropped.entries {
            self.bytes += entry.bytes;
            self.digests.insert(entry.digest);
            let at = self.oldest_first.partition_point(|other| other.id < entry.id);
            self.oldest_first.insert(at, entry);
        }
    }

    fn add(&mut self, entry: Entry) {
        self.next_id = self.next_id.max(entry.id + 1);
        self.bytes += entry.bytes;
        self.digests.insert(entry.digest);
        self.oldest_first.push_back(entry);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn body(digest: u64, bytes: usize) -> Kept {
        Kept {
            id: 0,
            reason: "malformed".to_owned(),
            detail: String::new(),
            at: 0,
            peer: String::new(),
            endpoint: String::new(),
            digest,
            body: Bytes::from(vec![b'x'; bytes]),
        }
    }

    #[test]
    fn a_commit_that_fails_leaves_it_as_it_was() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut quarantine = Quarantine::new(20_000);
        let mut state = StoreState::default();
        for digest in 0..2_000 {
            let ids = |quarantine: &Quarantine| {
                quarantine.oldest_first.iter().map(|entry| (entry.id, entry.digest)).collect::<Vec<_>>()
            };
            let before = (ids(&quarantine), quarantine.bytes, quarantine.digests.clone());
            let gone: Vec<u64> = before.0.iter().map(|(id, _)| *id).filter(|_| random.u8(..) < 20).collect();
            let mut new = [body(digest, random.usize(..4_000))];
            let mut after = state.clone();
            let dropped = quarantine.change(&gone, &mut new, &mut after);
            assert!(gone.iter().all(|id| !quarantine.holds(*id)) && quarantine.knows(digest));
            assert_eq!(after.quarantined, quarantine.oldest_first.len() as u64);
            assert_eq!(after.kept_floor, quarantine.oldest_first[0].id);
            let left = ids(&quarantine).len() + gone.len();
            assert_eq!((before.0.len() + 1 - left) as u64, dropped.count());
            if random.bool() {
                quarantine.put_back(&new, dropped);
                assert_eq!((ids(&quarantine), quarantine.bytes, quarantine.digests.clone()), before);
            } else {
                state = after;
            }
        }
        assert!(quarantine.bytes() <= 20_000);
        assert!(state.kept < quarantine.next_id);
    }
}
