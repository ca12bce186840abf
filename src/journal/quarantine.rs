//! What the writer knows of the quarantine: which bodies are in it, and which to let go of when it is full.

use std::collections::{HashSet, VecDeque};

use super::store::{Kept, StoreState};

/// What a row takes besides its body, about.
const ROW_BYTES: u64 = 256;

#[derive(Debug)]
pub(super) struct Quarantine {
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

/// Entries a full quarantine lets go of, if the commit goes through.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Delete rows up to this id.
    pub(super) through: Option<u64>,
    entries: Vec<Entry>,
}

impl Dropped {
    pub(super) fn count(&self) -> u64 {
        self.entries.len() as u64
    }
}

impl Quarantine {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, bytes: 0, next_id: 1, oldest_first: VecDeque::new(), digests: HashSet::new() }
    }

    /// Takes in a row found at start; oldest first.
    pub(super) fn recover(&mut self, id: u64, digest: u64, body: usize) {
        self.add(Entry { id, digest, bytes: body as u64 + ROW_BYTES });
    }

    /// The newest may be gone from it: no id comes again.
    pub(super) fn go_on_after(&mut self, id: u64) {
        self.next_id = self.next_id.max(id + 1);
    }

    pub(super) fn knows(&self, digest: u64) -> bool {
        self.digests.contains(&digest)
    }

    /// Numbers the new bodies and makes room for them, oldest out first.
    pub(super) fn take_in(&mut self, kept: &mut [Kept], state: &mut StoreState) -> Dropped {
        for kept in kept.iter_mut() {
            kept.id = self.next_id;
            self.add(Entry { id: kept.id, digest: kept.digest, bytes: kept.body.len() as u64 + ROW_BYTES });
        }
        let mut dropped = Dropped::default();
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
        dropped
    }

    /// Takes a failed commit's changes back.
    pub(super) fn put_back(&mut self, kept: &[Kept], dropped: Dropped) {
        for _ in kept {
            if let Some(entry) = self.oldest_first.pop_back() {
                self.bytes -= entry.bytes;
                self.digests.remove(&entry.digest);
            }
        }
        for entry in dropped.entries.into_iter().rev() {
            self.bytes += entry.bytes;
            self.digests.insert(entry.digest);
            self.oldest_first.push_front(entry);
        }
    }

    fn add(&mut self, entry: Entry) {
        self.next_id = self.next_id.max(entry.id + 1);
        self.bytes += entry.bytes;
        self.digests.insert(entry.digest);
        self.oldest_first.push_back(entry);
    }
}
