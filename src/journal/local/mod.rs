//! The embedded engine: one [`writer`] thread that owns the tail, over a [`store`] of this machine.

mod ballast;
mod bodies;
pub(super) mod cursor;
mod dedup;
mod engine;
mod folder;
mod guard;
mod layout;
mod letters;
mod mark;
mod memory;
mod named;
mod quarantine;
mod reads;
pub(super) mod recover;
mod repair;
mod retries;
mod ring;
mod rows;
mod sqlite;
pub(super) mod store;
pub(super) mod writer;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, watch};

pub(crate) use cursor::{Cursor, Scan, Settler, Watch};
pub(super) use engine::Local;
pub use folder::{FolderError, denied, holder, unusable_files, volatile_file_system};
#[cfg(feature = "nats")]
pub(crate) use layout::DATABASE;
pub(crate) use letters::Letters;
pub use recover::OpenError;
pub use recover::foreign_journal;

use super::opening::Report;
use super::outcome::State;
use super::status::Status;
use crate::config::Config;
use crate::telemetry::Metrics;
use dedup::IdKey;
use retries::Retries;
use ring::Ring;
use writer::{Clock, Limits, Mailbox, Shared, Writer};

/// Opens or makes the journal and brings it to order: nothing is listened for before this is back. Blocks.
/// Gives a cursor for every enabled sink.
///
/// # Errors
/// [`OpenError`], by what an operator has to do.
pub(crate) fn open(config: &Config, metrics: Arc<Metrics>) -> Result<(Arc<Local>, Vec<Cursor>, Report), OpenError> {
    let key = IdKey::random();
    let window = u32::try_from(config.dedup.window.as_secs()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
    let clock = Clock::starting_at(window + 1);
    let (mut recovered, report) = recover::open(config, key, clock, window)?;
    let limits = Limits {
        max_bytes: config.journal.max_bytes,
        retention: config.journal.retention,
        dead_letter_bytes: config.dead_letters.max_bytes,
        quarantine_bytes: config.quarantine.max_bytes,
        dedup_capacity: config.dedup.capacity as u64,
        dedup_window: config.dedup.window,
    };
    metrics.journal_lost.inc_by(report.lost_events);
    let shared = Arc::new(Shared {
        ring: Ring::new(recovered.tail),
        state: watch::Sender::new(State::Open),
        status: Mutex::new(Status { identity: recovered.log.map(String::from), ..Status::default() }),
        retries: Retries::new(std::mem::take(&mut recovered.to_retry)),
        notes: Mutex::default(),
    });
    for note in &recovered.notes {
        shared.note(note);
    }
    let (mailbox, inbox) = Mailbox::new(config.listen.max_in_flight);
    let (running, ended) = watch::channel(());
    let inner = Arc::new(Local {
        mailbox,
        shared: Arc::clone(&shared),
        open_reader: recovered.store.readers(),
        operators: Semaphore::new(reads::OPERATORS),
        idle: Mutex::default(),
        ended,
        key,
        engine: config.journal.engine,
    });
    let enabled: HashMap<&str, bool> = config.sinks.iter().map(|s| (s.name.as_str(), s.enabled)).collect();
    let places = recovered.places.iter().filter(|(sink, _)| enabled.get(&***sink) == Some(&true));
    let cursors = places
        .map(|(sink, place)| {
            Cursor::new(Arc::clone(&inner), Arc::clone(sink), place.cursor() + 1, place.ahead().to_vec())
        })
        .collect();
    let writer = Writer::new(inbox, shared, limits, metrics, recovered, clock);
    let run = move || {
        let _running = running;
        // Half a writer would be worse than none: the process ends, and the next one recovers.
        if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
            tracing::error!("a bug in the journal's writer: the process aborts");
            std::process::abort();
        }
    };
    let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(run);
    thread.map_err(|source| OpenError::Thread { source })?;
    Ok((inner, cursors, report))
}
