//! The dedup window: which event ids were seen lately. Exact least-recently-seen order, bounded by count and age.
//!
//! An id is held as a 128-bit SipHash under a key drawn at start, never as its text: two ids collide once in about
//! 10^27 for a million ids held, and no sender can aim at it without the key. With its place in the order an id costs
//! 32 bytes, plus 5 to 10 in the table: under 45 MiB for a million.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128, SipHasher13};

/// An event id, hashed under the window's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdHash([u64; 2]);

/// A map by [`IdHash`], which needs no hashing once more.
pub(crate) type ById<T> = HashMap<IdHash, T, BuildHasherDefault<AsHashed>>;

/// Takes a hash for what it is.
#[derive(Debug, Default)]
pub(crate) struct AsHashed(u64);

impl Hash for IdHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl Hasher for AsHashed {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Nothing but an [`IdHash`] is hashed with it.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, &byte| hash.rotate_left(8) ^ u64::from(byte));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hashes ids. Shared with whoever hands events to the window, so that the window's owner need not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdKey([u8; 16]);

impl IdKey {
    pub(crate) fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }

    pub(crate) fn hash(self, id: &str) -> IdHash {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(id.as_bytes());
        let hash = hasher.finish128();
        IdHash([hash.h1, hash.h2])
    }
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: IdHash,
    /// Towards the least recently seen.
    older: u32,
    newer: u32,
    /// Seconds on the window's own clock.
    seen: u32,
    /// Of the first copy's bytes, to tell a duplicate from a conflict.
    digest: u32,
}

/// Owned by the journal's writer.
#[derive(Debug)]
pub(crate) struct Window {
    table: HashTable<u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    capacity: usize,
    /// Seconds an id stays after it was last seen.
    max_age: u32,
}

impl Window {
    /// `capacity` ids at most, each for `max_age` seconds after it was last seen.
    pub(crate) fn new(capacity: usize, max_age: u32) -> Self {
        let capacity = capacity.clamp(1, NONE as usize - 1);
        // The table takes its final size at once where that is modest, so that it never holds two copies while it grows.
        let table = HashTable::with_capacity(capacity.min(1 << 21));
        Self { table, entries: Vec::new(), free: Vec::new(), oldest: NONE, newest: NONE, capacity, max_age }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The digest of the first copy's bytes, when `id` is known; it then counts as seen `now`.
    pub(crate) fn touch(&mut self, id: IdHash, now: u32) -> Option<u32> {
        self.expire(now);
        let slot = *self.table.find(id.0[0], |&slot| self.entries[slot as usize].id == id)?;
        self.unlink(slot);
        self.link_newest(slot, now);
        Some(self.entries[slot as usize].digest)
    }

    /// Takes in an id that is durable now. A known one counts as seen.
    pub(crate) fn insert(&mut self, id: IdHash, digest: u32, now: u32) {
        if self.touch(id, now).is_none() {
            self.insert_new(id, digest, now);
        }
    }

    /// Takes in an id that is durable now, and that [`touch`](Self::touch) has just not found.
    pub(crate) fn insert_new(&mut self, id: IdHash, digest: u32, now: u32) {
        if self.table.len() >= self.capacity {
            self.forget_oldest();
        }
        let entry = Entry { id, older: NONE, newer: NONE, seen: now, digest };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                let Ok(slot) = u32::try_from(self.entries.len()) else { return };
                if self.entries.len() == self.entries.capacity() {
                    // Doubling would hold half as much again in vain; an eighth keeps the copying rare enough.
                    let more = (self.entries.len() / 8).max(1024).min(self.capacity - self.entries.len());
                    self.entries.reserve_exact(more.max(1));
                }
                self.entries.push(entry);
                slot
            }
        };
        let entries = &self.entries;
        self.table.insert_unique(id.0[0], slot, |&slot| entries[slot as usize].id.0[0]);
        self.link_newest(slot, now);
    }

    fn expire(&mut self, now: u32) {
        while self.oldest != NONE && now.saturating_sub(self.entries[self.oldest as usize].seen) > self.max_age {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let slot = self.oldest;
        if slot == NONE {
            return;
        }
        let hash = self.entries[slot as usize].id.0[0];
        self.unlink(slot);
        if let Ok(found) = self.table.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        self.free.push(slot);
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { older, newer, .. } = self.entries[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }

    fn link_newest(&mut self, slot: u32, now: u32) {
        let older = self.newest;
        let entry = &mut self.entries[slot as usize];
        (entry.older, entry.newer, entry.seen) = (older, NONE, now);
        match older {
            NONE => self.oldest = slot,
            older => self.entries[older as usize].newer = slot,
        }
        self.newest = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> IdHash {
        IdKey([7; 16]).hash(&n.to_string())
    }

    #[test]
    fn forgets_the_least_recently_seen_first() {
        let mut window = Window::new(3, 100);
        for n in 1..=3 {
            window.insert(id(n), 0, 0);
        }
        assert_eq!(window.touch(id(1), 1), Some(0));
        window.insert(id(4), 0, 2);
        assert_eq!(window.touch(id(2), 2), None);
        assert_eq!([1, 3, 4].map(|n| window.touch(id(n), 2).is_some()), [true; 3]);
    }

    #[test]
    fn forgets_by_age_since_last_seen() {
        let mut window = Window::new(10, 5);
        window.insert(id(1), 9, 0);
        assert_eq!(window.touch(id(1), 5), Some(9));
        assert_eq!(window.touch(id(1), 10), Some(9));
        assert_eq!(window.touch(id(1), 16), None);
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn agrees_with_a_plain_list_over_random_use() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let capacity = random.usize(1..50);
            let mut window = Window::new(capacity, 30);
            // Oldest first: id and when it was last seen.
            let mut list: Vec<(u64, u32)> = Vec::new();
            let mut now = 0;
            for _ in 0..3_000 {
                now += u32::from(random.u8(0..3) == 0);
                let n = random.u64(0..80);
                list.retain(|&(_, seen)| now - seen <= 30);
                let known = list.iter().position(|&(m, _)| m == n);
                assert_eq!(window.touch(id(n), now).is_some(), known.is_some());
                if let Some(at) = known {
                    list.remove(at);
                } else {
                    if list.len() == capacity {
                        list.remove(0);
                    }
                    window.insert(id(n), 0, now);
                }
                list.push((n, now));
                assert_eq!(window.len(), list.len());
            }
        }
    }

    #[test]
    fn a_million_ids_fit_into_64_mib() {
        let mut window = Window::new(1_000_000, 100);
        for n in 0..1_000_100 {
            window.insert(id(n), 0, 0);
        }
        let bytes = window.table.allocation_size()
            + window.entries.capacity() * size_of::<Entry>()
            + window.free.capacity() * size_of::<u32>();
        assert!(bytes < 48 << 20, "{bytes} bytes");
        assert_eq!(window.len(), 1_000_000);
    }
}
