//! The store that forgets (`journal.engine = "memory"`): everything in RAM. For trying things out.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::store::{Commit, DeadLetter, Filed, Head, NewGroup, OpenReader, Page, Pick, Reader, Store, StoreError};
use crate::journal::event::{Group, from_millis, millis};
use crate::journal::quarantine::Kept;

#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    reader: MemoryReader,
}

#[derive(Debug, Clone, Default)]
struct MemoryReader {
    tables: Arc<Mutex<Tables>>,
}

#[derive(Debug, Default)]
struct Tables {
    groups: BTreeMap<u64, (Head, Bytes)>,
    letters: BTreeMap<u64, DeadLetter>,
    kept: BTreeMap<u64, Kept>,
}

impl Store for MemoryStore {
    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let tables = &mut *self.reader.tables();
        if let Some(NewGroup { group, .. }) = commit.group {
            let head = Head { first: group.first, last: group.last, at: millis(group.at), bytes: group.size() };
            tables.groups.insert(group.first, (head, group.block.clone()));
        }
        if let Some(through) = commit.groups_through {
            tables.groups.retain(|_, (head, _)| head.last > through);
        }
        tables.letters.extend(commit.dead_letters.iter().map(|letter| (letter.id, letter.clone())));
        for id in &commit.letters_gone {
            tables.letters.remove(id);
        }
        tables.kept.extend(commit.quarantine.iter().map(|kept| (kept.id, kept.clone())));
        for id in &commit.kept_gone {
            tables.kept.remove(id);
        }
        if let Some(through) = commit.quarantine_through {
            tables.kept.retain(|&id, _| id > through);
        }
        Ok(())
    }

    fn in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn oldest(&mut self, limit: usize) -> Result<Vec<Head>, StoreError> {
        Ok(self.reader.tables().groups.values().take(limit).map(|(head, _)| *head).collect())
    }

    fn oldest_ids(&mut self, _limit: usize) -> Result<Vec<Head>, StoreError> {
        Ok(Vec::new())
    }

    fn reader(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn readers(&self) -> OpenReader {
        let reader = self.reader.clone();
        Arc::new(move || Ok(Box::new(reader.clone())))
    }

    fn maintain(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn log_bytes(&self) -> Option<u64> {
        None
    }

    fn shrink_log(&mut self) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn log_has_room(&mut self, _bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn free_bytes(&mut self) -> Result<u64, StoreError> {
        Ok(u64::MAX)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }

    fn abandon(self: Box<Self>) {}
}

impl MemoryReader {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader for MemoryReader {
    fn group(&mut self, sequence: u64) -> Result<Option<Group>, StoreError> {
        let groups = &self.tables().groups;
        let holding = groups.range(..=sequence).next_back().filter(|(_, (head, _))| head.last >= sequence);
        let found = holding.or_else(|| groups.range(sequence..).next());
        Ok(found.map(|(_, (head, block))| Group {
            first: head.first,
            last: head.last,
            at: from_millis(head.at),
            block: block.clone(),
        }))
    }

    fn written_since(&mut self, at: u64) -> Result<Option<u64>, StoreError> {
        Ok(self.tables().groups.values().find(|(head, _)| head.at >= at).map(|(head, _)| head.first))
    }

    fn letters(&mut self, pick: &Pick) -> Result<Page<DeadLetter>, StoreError> {
        Ok(page(pick, &self.tables().letters))
    }

    fn letter(&mut self, id: u64) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.tables().letters.get(&id).cloned())
    }

    fn bodies(&mut self, pick: &Pick) -> Result<Page<Kept>, StoreError> {
        Ok(page(pick, &self.tables().kept))
    }

    fn body(&mut self, id: u64) -> Result<Option<Kept>, StoreError> {
        Ok(self.tables().kept.get(&id).cloned())
    }
}

fn page<T: Filed>(pick: &Pick, table: &BTreeMap<u64, T>) -> Page<T> {
    let mut page = Page::new();
    for (_, row) in table.range((Excluded(pick.after), Unbounded)) {
        if page.is_full(pick) {
            return page;
        }
        if page.wants(pick, row) {
            page.push(row.clone());
        }
    }
    page.end()
}
