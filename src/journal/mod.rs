//! The durable order of events: dedup, cursors, dead letters, quarantine. One interface, engines behind it; the only
//! code that touches the data folder.
//!
//! A [`Journal`] takes events in ([`append`](Journal::append)) and gives each lane a [`Cursor`] to read them by. Operators
//! see through it what was not delivered ([`letters`]) or not accepted ([`quarantine`]), and try it again. What is behind
//! it is the embedded engine: one [`writer`] thread that owns the tail, over a [`store`] (SQLite, or RAM for trying things
//! out). [`recover`] brings a store back to order before the first event.

mod ballast;
mod carry;
mod cursor;
mod examine;
mod folder;
mod group;
mod letters;
mod memory;
mod nats;
mod place;
mod quarantine;
mod reads;
mod recover;
mod remains;
mod ring;
mod rows;
mod salvage;
mod sqlite;
mod store;
mod window;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot, watch};

pub use cursor::{Cursor, Gone, Scan, Settler, Watch};
pub use folder::{FolderError, holder, volatile_file_system};
pub use group::Event;
pub(crate) use group::{from_millis, millis};
pub use letters::{Handled, Letter, LetterState, Letters, LettersOf, MAX_LIST, Which};
pub use place::{Account, Settled};
pub use quarantine::{Bodies, QuarantinedBody};
pub use recover::{OpenError, Report};

use crate::admission::{Admitted, Outcome};
use crate::config::{self, Config};
use crate::envelope::Envelope;
use crate::telemetry::Metrics;
use crate::tls::PeerIdentity;
use group::digest;
use letters::Retries;
use store::{Kept, OpenReader, Reader};
use window::IdKey;
use writer::{Answer, Append, Arriving, Clock, Command, Forgotten, Limits, Mailbox, Operation, Shared, Waiter, Writer};

/// A handle to the journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    mailbox: Mailbox,
    shared: Arc<Shared>,
    open_reader: OpenReader,
    /// Turns for operators to read; and readers that none of them holds now.
    operators: Semaphore,
    idle: Mutex<Vec<Box<dyn Reader>>>,
    key: IdKey,
    engine: config::Engine,
}

/// An event on its way in.
#[derive(Debug)]
pub struct NewEvent {
    pub envelope: Envelope,
    pub received_at: SystemTime,
    pub peer: PeerIdentity,
    pub endpoint: Arc<config::Endpoint>,
    pub traceparent: Option<Box<str>>,
}

/// A body that could not be accepted, kept for a person to look at.
#[derive(Debug)]
pub struct Quarantined {
    /// `malformed`, `incomplete`, `unsupported-media` or `conflict`.
    pub reason: &'static str,
    /// What and where, without any value of the body.
    pub detail: String,
    pub received_at: SystemTime,
    pub peer: PeerIdentity,
    pub endpoint: Arc<config::Endpoint>,
    pub body: Bytes,
}

/// Proof that the event with this id survives a crash. Only the journal makes one.
#[derive(Debug, Clone)]
pub struct Receipt {
    event_id: Box<str>,
}

impl Receipt {
    #[must_use]
    pub fn event_id(&self) -> &str {
        &self.event_id
    }
}

/// A durable event: new, or known already.
#[derive(Debug, Clone)]
pub enum Appended {
    Stored(Receipt),
    Duplicate(Receipt),
}

/// The journal could not take it now. Nothing is used up: the same id may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the journal is full")]
    Full,
    #[error("the journal has failed")]
    Failed,
    #[error("the journal is closed")]
    Closed,
    #[error("the journal did not answer in time")]
    Late,
}

impl Refused {
    /// The word under which it is counted.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Closed => "closed",
            Self::Late => "late",
        }
    }
}

/// Whether events can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// `journal.max_bytes` is reached, or the disk is full; it goes on by itself when there is room.
    Full,
    /// Final for this process.
    Failed,
    Closed,
}

/// The journal as `status` shows it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The oldest sequence kept; one more than the last when none is.
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Of live events, uncompressed.
    pub bytes: u64,
    /// When the oldest events that are kept were written; up to a second behind.
    pub oldest: Option<SystemTime>,
    pub dedup_ids: usize,
    pub dead_letters: DeadLettersStatus,
    pub quarantine: QuarantineStatus,
    pub sinks: Vec<SinkStatus>,
}

/// The dead letters of all sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeadLettersStatus {
    pub count: u64,
    /// Of these, those that are pending again.
    pub retrying: u64,
    pub bytes: u64,
    /// When they are reached, lanes wait.
    pub max_bytes: u64,
    /// The largest id ever given.
    pub newest: u64,
}

/// The quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuarantineStatus {
    pub count: u64,
    pub bytes: u64,
    /// Beyond these the oldest go.
    pub max_bytes: u64,
    /// The largest id ever given.
    pub newest: u64,
}

/// A sink as the journal knows it.
#[derive(Debug, Clone)]
pub struct SinkStatus {
    pub name: Arc<str>,
    pub account: Account,
    pub enabled: bool,
    pub required: bool,
    /// Not in the settings any more.
    pub gone: bool,
}

impl Journal {
    /// Opens or makes the journal and brings it to order: nothing is listened for before this is back. Blocks.
    /// Gives a cursor for every enabled sink.
    ///
    /// # Errors
    /// [`OpenError`], by what an operator has to do.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<(Self, Vec<Cursor>, Report), OpenError> {
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
            ring: ring::Ring::new(recovered.tail),
            state: watch::Sender::new(State::Open),
            status: Mutex::default(),
            retries: Retries::new(std::mem::take(&mut recovered.to_retry)),
            notes: Mutex::default(),
        });
        for note in &recovered.notes {
            shared.note(note);
        }
        let (mailbox, inbox) = Mailbox::new(config.listen.max_in_flight);
        let inner = Arc::new(Inner {
            mailbox,
            shared: Arc::clone(&shared),
            open_reader: recovered.store.readers(),
            operators: Semaphore::new(reads::OPERATORS),
            idle: Mutex::default(),
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
            // Half a writer would be worse than none: the process ends, and the next one recovers.
            if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                tracing::error!("a bug in the journal's writer: the process aborts");
                std::process::abort();
            }
        };
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(run);
        thread.map_err(|source| OpenError::Thread { source })?;
        Ok((Self { inner }, cursors, report))
    }

    /// Makes an event durable, or finds it durable already. It is on its way when this is back; dropping the future changes
    /// nothing of that.
    ///
    /// # Errors
    /// [`Refused`]; `admitted` is settled either way, by the writer.
    pub fn append(
        &self,
        event: NewEvent,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Appended, Refused>> + use<> {
        let (reply, answer) = oneshot::channel();
        let hash = self.inner.key.hash(event.envelope.event_id());
        let digest = digest(event.envelope.body());
        let (event, waiter) = (Arriving::New(event), Waiter::Request(admitted, reply));
        self.inner.mailbox.send(Command::Append(Box::new(Append { event, hash, digest, waiter })));
        answer.map(|answer| answer.map_or(Err(Refused::Closed), Answer::result))
    }

    /// Keeps a body in the quarantine, once however often it comes; `outcome` is what to count when it is kept.
    ///
    /// # Errors
    /// [`Refused`] when it could not be kept.
    pub async fn quarantine(&self, body: Quarantined, admitted: Admitted, outcome: Outcome) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.inner.mailbox.send(Command::Quarantine { kept: Box::new(body.into()), admitted, outcome, reply });
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Drops the place of a sink that is not in the settings any more; false if there is no such sink.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be written.
    pub async fn forget(&self, sink: &str) -> Result<bool, Refused> {
        loop {
            let (reply, answer) = oneshot::channel();
            let forget = Operation::Forget(sink.to_owned(), reply);
            self.inner.mailbox.send_from_operator(Command::Operate(forget)).await;
            match answer.await.unwrap_or(Err(Refused::Closed))? {
                Forgotten::Yes => return Ok(true),
                Forgotten::NoSuchSink => return Ok(false),
                Forgotten::NotYet => {}
            }
        }
    }

    /// Keeps a text with the journal under this key, durably; none takes it back. At most 64 KiB, for 64 keys.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be written: [`Refused::Full`] also when it is too long.
    pub async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        let note = Operation::Note(key, text, reply);
        self.inner.mailbox.send_from_operator(Command::Operate(note)).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Back once the writer has come to it. Nothing is written, so that it works on a full disk too.
    ///
    /// # Errors
    /// [`Refused`] when the journal has failed or is closed.
    pub async fn answers(&self) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.inner.mailbox.send_from_operator(Command::Operate(Operation::Answer(reply))).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Every text kept by [`note`](Self::note), by key. Never waits.
    #[must_use]
    pub fn notes(&self) -> BTreeMap<String, String> {
        self.inner.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text kept under this key. Never waits.
    #[must_use]
    pub fn read_note(&self, key: &str) -> Option<String> {
        self.inner.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The first sequence of the first commit group written at `time` or later; one more than the last sequence when there
    /// is none. Where the clock was set back, it is the first one after one of the moments that come into question.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be read.
    pub async fn sequence_at(&self, time: SystemTime) -> Result<u64, Refused> {
        // What comes after this is not older.
        let next = self.status().last_sequence + 1;
        let at = millis(time);
        Ok(self.inner.look_up(move |reader| reader.written_since(at)).await?.unwrap_or(next))
    }

    /// The oldest sequence that is kept and the newest one ever given; with none kept, the first is one more than the
    /// last.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        let status = self.inner.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.first_sequence, status.last_sequence)
    }

    /// Whether events can be stored, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.shared.state.subscribe()
    }

    /// What is in it, as of the last commit. Never waits.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.shared.status()
    }

    #[must_use]
    pub fn engine(&self) -> config::Engine {
        self.inner.engine
    }

    /// Every event from now on, for whoever only looks.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::new(Arc::clone(&self.inner))
    }

    /// Reads every event that is still kept from this sequence on, in order, and goes on with what comes.
    #[must_use]
    pub fn scan(&self, from: u64) -> Scan {
        Scan::new(Arc::clone(&self.inner), Arc::from("scan"), from)
    }

    /// Writes and syncs what waits, and closes. What comes later is refused.
    pub async fn close(&self) {
        let mut state = self.state();
        self.inner.mailbox.send(Command::Close);
        // The sender of the state lives as long as the journal.
        let _ = state.wait_for(|state| matches!(state, State::Closed | State::Failed)).await;
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl From<Quarantined> for Kept {
    fn from(body: Quarantined) -> Self {
        let mut digest = xxhash_rust::xxh3::Xxh3::with_seed(body.body.len() as u64);
        digest.update(body.reason.as_bytes());
        digest.update(&body.body);
        Self {
            id: 0,
            reason: body.reason.to_owned(),
            detail: body.detail,
            at: millis(body.received_at),
            peer: body.peer.subject().to_string(),
            endpoint: body.endpoint.name.clone(),
            digest: digest.digest(),
            body: body.body,
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("engine", &self.engine).finish_non_exhaustive()
    }
}
