//! What an embedded journal needs of a store.
//!
//! The writer owns a [`Store`] and commits to it, one [`Commit`] at a time, each whole or not at all. Lanes that have
//! fallen behind the ring, and operators, read through a [`Reader`] of their own.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::journal::event::{Group, checksum, from_millis, millis};
use crate::journal::progress::{Place, Retrying};
use crate::journal::quarantine::Kept;

/// One step of the journal, atomic and durable once [`Store::commit`] is back.
#[derive(Debug, Default)]
pub(crate) struct Commit<'a> {
    pub(crate) group: Option<NewGroup<'a>>,
    /// Places that moved, by sink.
    pub(crate) places: Vec<(&'a str, &'a Place)>,
    pub(crate) forgotten: Vec<&'a str>,
    /// New ones, and ones that changed.
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// Ids of dead letters to delete.
    pub(crate) letters_gone: Vec<u64>,
    pub(crate) quarantine: Vec<Kept>,
    /// Ids of quarantined bodies to delete.
    pub(crate) kept_gone: Vec<u64>,
    /// Delete quarantined bodies up to this id.
    pub(crate) quarantine_through: Option<u64>,
    pub(crate) note: Option<&'a Note>,
    /// Delete groups up to this sequence.
    pub(crate) groups_through: Option<u64>,
    /// Delete ids of groups up to this sequence.
    pub(crate) ids_through: Option<u64>,
    /// The state after this commit, if it changes.
    pub(crate) state: Option<&'a StoreState>,
}

/// A group about to be written.
#[derive(Debug)]
pub(crate) struct NewGroup<'a> {
    pub(crate) group: &'a Group,
    pub(crate) ids: &'a [u8],
}

/// What a store knows of itself besides its rows; lets the next start see that rows are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreState {
    /// The oldest sequence kept; with no group at all, the next one to be given.
    pub(crate) floor: u64,
    /// The oldest sequence whose id is kept.
    pub(crate) ids_floor: u64,
    pub(crate) dead_letters: u64,
    /// The oldest dead letter kept.
    #[serde(default)]
    pub(crate) letters_floor: u64,
    /// The newest id ever given to a dead letter.
    #[serde(default)]
    pub(crate) letters: u64,
    pub(crate) quarantined: u64,
    /// The oldest body kept in quarantine.
    #[serde(default)]
    pub(crate) kept_floor: u64,
    /// The newest id ever given in quarantine.
    pub(crate) kept: u64,
    #[serde(default)]
    pub(crate) notes: u64,
    /// Grows whenever any of it changes: of two copies, the larger is the later one.
    #[serde(default)]
    pub(crate) revision: u64,
    /// Acknowledged sequences that damage took, oldest first.
    pub(crate) losses: Vec<Loss>,
}

/// Sequences that damage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loss {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Milliseconds since 1970.
    pub(crate) found_at: u64,
    pub(crate) reason: String,
}

impl Default for StoreState {
    fn default() -> Self {
        Self {
            floor: 1,
            ids_floor: 1,
            dead_letters: 0,
            letters_floor: 1,
            letters: 0,
            quarantined: 0,
            kept_floor: 1,
            kept: 0,
            notes: 0,
            revision: 0,
            losses: Vec::new(),
        }
    }
}

impl StoreState {
    /// This state, if it is another one than `before`: the later of the two.
    pub(crate) fn changed_from(&mut self, before: &Self) -> Option<&Self> {
        (self != before).then(|| {
            self.revision = before.revision + 1;
            &*self
        })
    }
}

/// An event a sink could not deliver, with the reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    #[serde(skip)]
    pub(crate) id: u64,
    pub(crate) sink: String,
    pub(crate) sequence: u64,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    /// It is on its way to the sink again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retrying: Option<Retrying>,
    /// The event alone, as a group's block would hold it.
    #[serde(skip)]
    pub(crate) event: Bytes,
}

/// A text that another part of the receiver keeps with the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    #[serde(skip)]
    pub(crate) id: u64,
    pub(crate) note: String,
    /// None once it was taken back; the row stays, so that no older copy can pose as it.
    pub(crate) text: Option<String>,
    /// Grows with every change.
    pub(crate) revision: u64,
}

/// What a dead letter and a quarantined body have in common: a number, bytes, and what is said about them (JSON).
pub(crate) trait Filed: Clone + Serialize + DeserializeOwned {
    /// Where they stand, and how the column of their bytes is called.
    const TABLE: (&'static str, &'static str);
    fn id(&self) -> u64;
    fn bytes(&self) -> &Bytes;
    fn put(&mut self, id: u64, bytes: Bytes);
    fn is_of(&self, sink: &str) -> bool;
}

impl Filed for DeadLetter {
    const TABLE: (&'static str, &'static str) = ("dead_letters", "event");

    fn id(&self) -> u64 {
        self.id
    }

    fn bytes(&self) -> &Bytes {
        &self.event
    }

    fn put(&mut self, id: u64, bytes: Bytes) {
        (self.id, self.event) = (id, bytes);
    }

    fn is_of(&self, sink: &str) -> bool {
        self.sink == sink
    }
}

impl Filed for Kept {
    const TABLE: (&'static str, &'static str) = ("quarantine", "body");

    fn id(&self) -> u64 {
        self.id
    }

    fn bytes(&self) -> &Bytes {
        &self.body
    }

    fn put(&mut self, id: u64, bytes: Bytes) {
        (self.id, self.body) = (id, bytes);
    }

    fn is_of(&self, _sink: &str) -> bool {
        false
    }
}

/// Which of them to read, by their numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pick {
    pub(crate) after: u64,
    /// Of this sink only.
    pub(crate) sink: Option<String>,
    pub(crate) limit: usize,
    /// With their bytes; else without, and unverified.
    pub(crate) whole: bool,
}

/// Some of them, in order.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) rows: Vec<T>,
    /// After which number to go on; `None` at the end.
    pub(crate) next: Option<u64>,
    bytes: usize,
    looked_at: usize,
}

/// A page ends once it holds so many bytes…
const PAGE_BYTES: usize = 8 << 20;
/// …or so many rows were looked at for it.
const PAGE_ROWS: usize = 10_000;

impl<T: Filed> Page<T> {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new(), next: None, bytes: 0, looked_at: 0 }
    }

    /// Asked before each row, as only then there is something to go on with.
    pub(crate) fn is_full(&self, pick: &Pick) -> bool {
        self.rows.len() >= pick.limit.max(1) || self.bytes >= PAGE_BYTES || self.looked_at >= PAGE_ROWS
    }

    /// Whether the next row is wanted.
    pub(crate) fn wants(&mut self, pick: &Pick, row: &T) -> bool {
        self.looked_at += 1;
        self.next = Some(row.id());
        pick.sink.as_ref().is_none_or(|sink| row.is_of(sink))
    }

    pub(crate) fn push(&mut self, row: T) {
        self.bytes += row.bytes().len();
        self.rows.push(row);
    }

    /// There are no more rows.
    pub(crate) fn end(self) -> Self {
        Self { next: None, ..self }
    }
}

/// A group's head, for deciding what to delete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// What a failure means for the process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Nothing was changed; the same may work again.
    #[error("{reason}")]
    Passing { why: Passing, reason: String },
    /// What is on disk is not known any more: never write to this file again.
    #[error("{0}")]
    Fatal(String),
}

/// What keeps a store from its work for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The disk has no room, or a quota is used up.
    NoRoom,
    /// The log cannot be copied back while somebody reads in it, and what is left of the disk is kept for that.
    LogHeld,
    /// The disk did not take a write. A quota that is used up shows as this too.
    Write,
    /// Another process has locked the database, or there is no memory or no file descriptor.
    Busy,
}

/// The writer's side.
pub(crate) trait Store: Send {
    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError>;

    /// Whether everything committed so far is still where the next start looks for it. Asked before anything is answered
    /// that needs no commit; each commit asks by itself.
    fn in_place(&mut self) -> Result<(), StoreError>;
    /// The oldest groups, at most `limit`.
    fn oldest(&mut self, limit: usize) -> Result<Vec<Head>, StoreError>;
    /// The oldest rows of ids, at most `limit`.
    fn oldest_ids(&mut self, limit: usize) -> Result<Vec<Head>, StoreError>;
    /// The writer's own.
    fn reader(&mut self) -> &mut dyn Reader;
    /// Opens readers, from any thread.
    fn readers(&self) -> OpenReader;
    /// Work that may wait until nothing else does; called after commits.
    fn maintain(&mut self) -> Result<(), StoreError>;
    /// Lets what commits have grown start over, as far as readers allow.
    fn checkpoint(&mut self) -> Result<(), StoreError>;
    /// What the log takes on the disk; `None` without one.
    fn log_bytes(&self) -> Option<u64>;
    /// Lets a log that has grown start over, and gives its room back to the disk. False while a reader holds it. Waits for
    /// nobody.
    fn shrink_log(&mut self) -> Result<bool, StoreError>;
    /// Whether a log that a reader keeps from being copied back still could be after `bytes` more. Each commit asks by itself.
    fn log_has_room(&mut self, bytes: u64) -> Result<(), StoreError>;
    /// Room inside the store, for which the disk need not give any.
    fn free_bytes(&mut self) -> Result<u64, StoreError>;
    /// Leaves everything synced and in order.
    fn close(self: Box<Self>) -> Result<(), StoreError>;
    /// Lets go without touching the files again, after a fatal error.
    fn abandon(self: Box<Self>);
}

pub(crate) type OpenReader = Arc<dyn Fn() -> Result<Box<dyn Reader>, StoreError> + Send + Sync>;

/// A lane's side, and an operator's. Sees what was committed last.
pub(crate) trait Reader: Send {
    /// The group that holds `sequence`, or else the next one after it.
    fn group(&mut self, sequence: u64) -> Result<Option<Group>, StoreError>;
    /// The first sequence of the first group written at `at` (milliseconds since 1970) or later. Where the clock was set
    /// back, it is the first one after one of the moments that come into question.
    fn written_since(&mut self, at: u64) -> Result<Option<u64>, StoreError>;
    fn letters(&mut self, pick: &Pick) -> Result<Page<DeadLetter>, StoreError>;
    fn letter(&mut self, id: u64) -> Result<Option<DeadLetter>, StoreError>;
    fn bodies(&mut self, pick: &Pick) -> Result<Page<Kept>, StoreError>;
    fn body(&mut self, id: u64) -> Result<Option<Kept>, StoreError>;
}

/// A group as a row holds it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) checksum: u64,
    /// LZ4, its length in front.
    pub(crate) block: Vec<u8>,
}

impl Row {
    /// `buffer` is the memory to use for its block.
    pub(crate) fn of(group: &Group, mut buffer: Vec<u8>) -> Self {
        const LENGTH: usize = size_of::<u32>();
        let (first, last, at) = (group.first, group.last, millis(group.at));
        // A group is far smaller than 4 GiB.
        let length = u32::try_from(group.block.len()).unwrap_or(u32::MAX);
        buffer.resize(LENGTH + lz4_flex::block::get_maximum_output_size(group.block.len()), 0);
        let (head, packed) = buffer.split_at_mut(LENGTH);
        head.copy_from_slice(&length.to_le_bytes());
        match lz4_flex::block::compress_into(&group.block, packed) {
            Ok(packed) => buffer.truncate(LENGTH + packed),
            // There is room for whatever comes of it; should that ever be wrong, it is made.
            Err(_) => buffer = lz4_flex::compress_prepend_size(&group.block),
        }
        Self { first, last, at, checksum: checksum(first, last, at, &buffer), block: buffer }
    }

    /// The group, if every bit of the row is as it was written.
    pub(crate) fn group(&self) -> Option<Group> {
        self.is_sound().then_some(())?;
        let block = lz4_flex::decompress_size_prepended(&self.block).ok()?;
        Some(Group { first: self.first, last: self.last, at: from_millis(self.at), block: block.into() })
    }

    /// Bytes of the group, uncompressed.
    pub(crate) fn size(&self) -> Option<u64> {
        self.block.first_chunk().map(|length| u64::from(u32::from_le_bytes(*length)))
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.first <= self.last && checksum(self.first, self.last, self.at, &self.block) == self.checksum
    }
}
