//! `[journal]`, and what else the journal remembers and keeps.

use std::path::PathBuf;
use std::time::Duration;

use super::nats::{Nats, nats};
use crate::about::Feature;
use crate::settings::{KIB, SECOND, Section, Use, YEAR};

/// `[journal]`.
#[derive(Debug, Clone)]
pub struct Journal {
    pub engine: Engine,
    /// The journal's folder (not a file).
    pub path: PathBuf,
    pub max_bytes: u64,
    pub retention: Duration,
    /// Read only for [`Engine::Nats`].
    pub nats: Option<Nats>,
}

impl Journal {
    /// Bytes of live events that the engine may hold.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.nats.as_ref().map_or(self.max_bytes, |nats| nats.max_bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    /// Needs `journal.allow_loss = true`.
    Memory,
    /// A NATS JetStream cluster, which all receivers of a fleet share.
    Nats,
}

/// `[dedup]`: how many event ids are remembered, and how long.
#[derive(Debug, Clone)]
pub struct Dedup {
    pub capacity: usize,
    pub window: Duration,
}

/// `[quarantine]`: room for bodies that could not be accepted.
#[derive(Debug, Clone)]
pub struct Quarantine {
    pub max_bytes: u64,
}

/// `[dead_letters]`: room for events that a sink could not deliver.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    pub max_bytes: u64,
}

pub(super) fn journal(mut s: Section<'_, '_>) -> Journal {
    let engines = [("sqlite", Engine::Sqlite), ("memory", Engine::Memory), ("nats", Engine::Nats)];
    let engine = s.choice("engine", &engines, Engine::Sqlite);
    s.needs("engine", engine == Engine::Nats, Feature::Nats);
    let nats = nats(s.section("nats"), engine == Engine::Nats);
    let owned = (engine == Engine::Sqlite).then_some(Use::Owns);
    let journal = Journal {
        engine,
        nats,
        path: s.needed_file("path", owned, "name the journal's folder"),
        max_bytes: s.size("max_bytes", 4 * KIB..=u64::MAX),
        retention: s.duration("retention", Duration::ZERO..=YEAR),
    };
    let memory = journal.engine == Engine::Memory;
    let allow_loss = s.flag("allow_loss");
    s.contradiction(
        &["engine", "allow_loss"],
        memory && !allow_loss,
        "the engine \"memory\" loses every event at the end of the process",
        "use \"sqlite\", or write allow_loss = true",
    );
    s.doubt(&["engine"], memory, "\"memory\" loses every event at the end of the process");
    s.finish();
    journal
}

pub(super) fn dedup(mut s: Section<'_, '_>) -> Dedup {
    let dedup = Dedup { capacity: s.number("capacity", 1..=100_000_000), window: s.duration("window", SECOND..=YEAR) };
    s.finish();
    dedup
}

pub(super) fn quarantine(s: Section<'_, '_>) -> Quarantine {
    Quarantine { max_bytes: max_bytes(s, 0) }
}

pub(super) fn dead_letters(s: Section<'_, '_>) -> DeadLetters {
    DeadLetters { max_bytes: max_bytes(s, 4 * KIB) }
}

fn max_bytes(mut s: Section<'_, '_>, least: u64) -> u64 {
    let max_bytes = s.size("max_bytes", least..=u64::MAX);
    s.finish();
    max_bytes
}
