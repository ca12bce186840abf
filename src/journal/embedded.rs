//! The embedded engine: one [`writer`](super::writer) thread that owns the tail, over a [`store`](super::store) of this
//! machine.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot, watch};

use super::cursor::{Cursor, Scan, Watch};
use super::group::{digest, millis};
use super::letters::Retries;
use super::recover::{self, OpenError, Report};
use super::ring::Ring;
use super::store::{OpenReader, Reader};
use super::window::IdKey;
use super::writer::{
    Answer, Append, Arriving, Clock, Command, Forgotten, Limits, Mailbox, Operation, Shared, Waiter, Writer,
};
use super::{Appended, NewEvent, Quarantined, Refused, State, Status, reads};
use crate::admission::{Admitted, Outcome};
use crate::config::{Config, Engine};
use crate::telemetry::Metrics;

/// What every handle to an embedded journal shares.
pub(super) struct Inner {
    pub(super) mailbox: Mailbox,
    pub(super) shared: Arc<Shared>,
    pub(super) open_reader: OpenReader,
    /// Turns for operators to read; and readers that none of them holds now.
    pub(super) operators: Semaphore,
    pub(super) idle: Mutex<Vec<Box<dyn Reader>>>,
    /// Closed when the writer has done everything.
    ended: watch::Receiver<()>,
    pub(super) key: IdKey,
    engine: Engine,
}

impl Inner {
    /// Opens or makes the journal and brings it to order: nothing is listened for before this is back. Blocks.
    /// Gives a cursor for every enabled sink.
    ///
    /// # Errors
    /// [`OpenError`], by what an operator has to do.
    pub(super) fn open(config: &Config, metrics: Arc<Metrics>) -> Result<(Arc<Self>, Vec<Cursor>, Report), OpenError> {
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
        let inner = Arc::new(Self {
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

    /// Makes an event durable, or finds it durable already. It is on its way when this is back; dropping the future changes
    /// nothing of that.
    ///
    /// # Errors
    /// [`Refused`]; `admitted` is settled either way, by the writer.
    pub(super) fn append(
        &self,
        event: NewEvent,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Appended, Refused>> + use<> {
        let (reply, answer) = oneshot::channel();
        let hash = self.key.hash(event.envelope.event_id());
        let digest = digest(event.envelope.body());
        let (event, waiter) = (Arriving::New(event), Waiter::Request(admitted, reply));
        self.mailbox.send(Command::Append(Box::new(Append { event, hash, digest, waiter })));
        answer.map(|answer| answer.map_or(Err(Refused::Closed), Answer::result))
    }

    /// Keeps a body in the quarantine, once however often it comes; `outcome` is what to count when it is kept.
    ///
    /// # Errors
    /// [`Refused`] when it could not be kept.
    pub(super) async fn quarantine(
        &self,
        body: Quarantined,
        admitted: Admitted,
        outcome: Outcome,
    ) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Command::Quarantine { kept: Box::new(body.into()), admitted, outcome, reply });
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Drops the place of a sink that is not in the settings any more; false if there is no such sink.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be written.
    pub(super) async fn forget(&self, sink: &str) -> Result<bool, Refused> {
        loop {
            let (reply, answer) = oneshot::channel();
            let forget = Operation::Forget(sink.to_owned(), reply);
            self.mailbox.send_from_operator(Command::Operate(forget)).await;
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
    /// [`Refused`] when it cannot be written; [`Refused::TooLarge`] when it is too long, or one too many.
    pub(super) async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        let note = Operation::Note(key, text, reply);
        self.mailbox.send_from_operator(Command::Operate(note)).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Back once the writer has come to it. Nothing is written, so that it works on a full disk too.
    ///
    /// # Errors
    /// [`Refused`] when the journal has failed or is closed.
    pub(super) async fn answers(&self) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send_from_operator(Command::Operate(Operation::Answer(reply))).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Every text kept by [`note`](Self::note), by key. Never waits.
    pub(super) fn notes(&self) -> BTreeMap<String, String> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text kept under this key. Never waits.
    pub(super) fn read_note(&self, key: &str) -> Option<String> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The first sequence of the first commit group written at `time` or later; one more than the last sequence when there
    /// is none. Where the clock was set back, it is the first one after one of the moments that come into question.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be read.
    pub(super) async fn sequence_at(&self, time: SystemTime) -> Result<u64, Refused> {
        // What comes after this is not older.
        let next = self.status().last_sequence + 1;
        let at = millis(time);
        Ok(self.look_up(move |reader| reader.written_since(at)).await?.unwrap_or(next))
    }

    /// The oldest sequence that is kept and the newest one ever given; with none kept, the first is one more than the
    /// last.
    pub(super) fn range(&self) -> (u64, u64) {
        let status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.first_sequence, status.last_sequence)
    }

    /// Whether events can be stored, now and from now on.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// What is in it, as of the last commit. Never waits.
    pub(super) fn status(&self) -> Status {
        self.shared.status()
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// Every event from now on, for whoever only looks.
    pub(super) fn watch(self: &Arc<Self>) -> Watch {
        Watch::new(Arc::clone(self))
    }

    /// Reads every event that is still kept from this sequence on, in order, and goes on with what comes.
    pub(super) fn scan(self: &Arc<Self>, from: u64) -> Scan {
        Scan::new(Arc::clone(self), Arc::from("scan"), from)
    }

    /// Writes and syncs what waits, and closes; a journal that has failed leaves its mark for the next start. Back when
    /// nothing is left to do. What comes later is refused.
    pub(super) async fn close(&self) {
        self.mailbox.send(Command::Close);
        // Nothing is ever sent: the sender goes with the writer's thread.
        let _ = self.ended.clone().changed().await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("engine", &self.engine).finish_non_exhaustive()
    }
}
