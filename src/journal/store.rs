//! What an embedded journal needs of a store, and the store that forgets (`journal.engine = "memory"`).
//!
//! The writer owns a [`Store`] and commits to it, one [`Commit`] at a time, each whole or not at all. Lanes that have
//! fallen behind the ring read through a [`Reader`] of their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::group::{Group, checksum, from_millis, millis};
use super::place::Place;

/// One step of the journal, atomic and durable once [`Store::commit`] is back.
#[derive(Debug, Default)]
pub(super) struct Commit<'a> {
    pub(super) group: Option<NewGroup<'a>>,
    /// Places that moved, by sink.
    pub(super) places: Vec<(&'a str, &'a Place)>,
    pub(super) forgotten: Vec<&'a str>,
    pub(super) dead_letters: Vec<DeadLetter>,
    pub(super) quarantine: Vec<Kept>,
    /// Delete quarantined bodies up to this id.
    pub(super) quarantine_through: Option<u64>,
    /// Delete groups up to this sequence.
    pub(super) groups_through: Option<u64>,
    /// Delete ids of groups up to this sequence.
    pub(super) ids_through: Option<u64>,
    /// The state after this commit, if it changes.
    pub(super) state: Option<&'a StoreState>,
}

/// A group about to be written.
#[derive(Debug)]
pub(super) struct NewGroup<'a> {
    pub(super) group: &'a Group,
    pub(super) ids: &'a [u8],
}

/// What a store knows of itself besides its rows; lets the next start see that rows are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreState {
    /// The oldest sequence kept; with no group at all, the next one to be given.
    pub(super) floor: u64,
    /// The oldest sequence whose id is kept.
    pub(super) ids_floor: u64,
    pub(super) dead_letters: u64,
    pub(super) quarantined: u64,
    /// Acknowledged sequences that damage took, oldest first.
    pub(super) losses: Vec<Loss>,
}

/// Sequences that damage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Loss {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Milliseconds since 1970.
    pub(super) found_at: u64,
    pub(super) reason: String,
}

impl Default for StoreState {
    fn default() -> Self {
        Self { floor: 1, ids_floor: 1, dead_letters: 0, quarantined: 0, losses: Vec::new() }
    }
}

/// An event a sink could not deliver, with the reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DeadLetter {
    #[serde(skip)]
    pub(super) id: u64,
    pub(super) sink: String,
    pub(super) sequence: u64,
    pub(super) reason: String,
    pub(super) attempts: u32,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    /// The event alone, as a group's block would hold it.
    #[serde(skip)]
    pub(super) event: Bytes,
}

/// A quarantined body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    #[serde(skip)]
    pub(super) id: u64,
    pub(super) reason: String,
    pub(super) detail: String,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) peer: String,
    pub(super) endpoint: String,
    /// Of reason and body, so that a retry is not kept again.
    pub(super) digest: u64,
    #[serde(skip)]
    pub(super) body: Bytes,
}

/// A group's head, for deciding what to delete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// What a failure means for the process.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Nothing was changed; it may work again when there is room.
    #[error("cannot write: {0}")]
    Full(String),
    /// What is on disk is not known any more: never write to this file again.
    #[error("{0}")]
    Fatal(String),
}

/// The writer's side.
pub(super) trait Store: Send {
    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError>;
    /// The oldest groups, at most `limit`.
    fn oldest(&mut self, limit: usize) -> Result<Vec<Head>, StoreError>;
    /// The oldest rows of ids, at most `limit`.
    fn oldest_ids(&mut self, limit: usize) -> Result<Vec<Head>, StoreError>;
    /// Opens readers, from any thread.
    fn readers(&self) -> OpenReader;
    /// Work that may wait until nothing else does; called after commits.
    fn maintain(&mut self) -> Result<(), StoreError>;
    /// Lets what commits have grown start over, as far as readers allow.
    fn checkpoint(&mut self) -> Result<(), StoreError>;
    /// Leaves everything synced and in order.
    fn close(self: Box<Self>) -> Result<(), StoreError>;
    /// Lets go without touching the files again, after a fatal error.
    fn abandon(self: Box<Self>);
}

pub(super) type OpenReader = Box<dyn Fn() -> Result<Box<dyn Reader>, StoreError> + Send + Sync>;

/// A lane's side.
pub(super) trait Reader: Send {
    /// The group that holds `sequence`, or else the next one after it.
    fn group(&mut self, sequence: u64) -> Result<Option<Group>, StoreError>;
}

/// Keeps everything in RAM. For trying things out: a restart forgets.
#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    groups: Arc<Mutex<BTreeMap<u64, Head>>>,
    blocks: Arc<Mutex<HashMap<u64, Bytes>>>,
}

impl Store for MemoryStore {
    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(NewGroup { group, .. }) = commit.group {
            let head = Head { first: group.first, last: group.last, at: millis(group.at), bytes: group.size() };
            groups.insert(group.first, head);
            blocks.insert(group.first, group.block.clone());
        }
        if let Some(through) = commit.groups_through {
            groups.retain(|_, head| head.last > through);
            blocks.retain(|first, _| groups.contains_key(first));
        }
        Ok(())
    }

    fn oldest(&mut self, limit: usize) -> Result<Vec<Head>, StoreError> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(groups.values().take(limit).copied().collect())
    }

    fn oldest_ids(&mut self, _limit: usize) -> Result<Vec<Head>, StoreError> {
        Ok(Vec::new())
    }

    fn readers(&self) -> OpenReader {
        let (groups, blocks) = (Arc::clone(&self.groups), Arc::clone(&self.blocks));
        Box::new(move || Ok(Box::new(MemoryReader { groups: Arc::clone(&groups), blocks: Arc::clone(&blocks) })))
    }

    fn maintain(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }

    fn abandon(self: Box<Self>) {}
}

#[derive(Debug)]
struct MemoryReader {
    groups: Arc<Mutex<BTreeMap<u64, Head>>>,
    blocks: Arc<Mutex<HashMap<u64, Bytes>>>,
}

impl Reader for MemoryReader {
    fn group(&mut self, sequence: u64) -> Result<Option<Group>, StoreError> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let holding = groups.range(..=sequence).next_back().filter(|(_, head)| head.last >= sequence);
        let Some((_, head)) = holding.or_else(|| groups.range(sequence..).next()) else { return Ok(None) };
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let block = blocks.get(&head.first).cloned();
        Ok(block.map(|block| Group { first: head.first, last: head.last, at: from_millis(head.at), block }))
    }
}

/// A group as a row holds it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Milliseconds since 1970.
    pub(super) at: u64,
    pub(super) checksum: u64,
    /// LZ4, its length in front.
    pub(super) block: Vec<u8>,
}

impl Row {
    pub(super) fn of(group: &Group) -> Self {
        let (first, last, at) = (group.first, group.last, millis(group.at));
        let block = lz4_flex::compress_prepend_size(&group.block);
        Self { first, last, at, checksum: checksum(first, last, at, &block), block }
    }

    /// The group, if every bit of the row is as it was written.
    pub(super) fn group(&self) -> Option<Group> {
        self.is_sound().then_some(())?;
        let block = lz4_flex::decompress_size_prepended(&self.block).ok()?;
        Some(Group { first: self.first, last: self.last, at: from_millis(self.at), block: block.into() })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.first <= self.last && checksum(self.first, self.last, self.at, &self.block) == self.checksum
    }
}
