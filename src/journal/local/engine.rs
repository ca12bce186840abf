//! What every handle of the embedded engine shares, and what is asked of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot, watch};

use super::dedup::IdKey;
use super::store::{OpenReader, Reader};
use super::writer::{Answer, Append, Arriving, Command, Forgotten, Mailbox, Operation, Shared, Waiter};
use crate::admission::{Admitted, Outcome};
use crate::config::Engine;
use crate::journal::event::{NewEvent, digest, millis};
use crate::journal::outcome::{Appended, Refused, State};
use crate::journal::quarantine::Quarantined;
use crate::journal::status::Status;

/// What every handle to an embedded journal shares.
pub(crate) struct Local {
    pub(crate) mailbox: Mailbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) open_reader: OpenReader,
    /// Turns for operators to read; and readers that none of them holds now.
    pub(crate) operators: Semaphore,
    pub(crate) idle: Mutex<Vec<Box<dyn Reader>>>,
    /// Closed when the writer has done everything.
    pub(crate) ended: watch::Receiver<()>,
    pub(crate) key: IdKey,
    pub(crate) engine: Engine,
}

impl Local {
    /// Makes an event durable, or finds it durable already. It is on its way when this is back; dropping the future changes
    /// nothing of that.
    ///
    /// # Errors
    /// [`Refused`]; `admitted` is settled either way, by the writer.
    pub(crate) fn append(
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
    pub(crate) async fn quarantine(
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
    pub(crate) async fn forget(&self, sink: &str) -> Result<bool, Refused> {
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
    pub(crate) async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        let note = Operation::Note(key, text, reply);
        self.mailbox.send_from_operator(Command::Operate(note)).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Back once the writer has come to it. Nothing is written, so that it works on a full disk too.
    ///
    /// # Errors
    /// [`Refused`] when the journal has failed or is closed.
    pub(crate) async fn answers(&self) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send_from_operator(Command::Operate(Operation::Answer(reply))).await;
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    /// Every text kept by [`note`](Self::note), by key. Never waits.
    pub(crate) fn notes(&self) -> BTreeMap<String, String> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text kept under this key. Never waits.
    pub(crate) fn read_note(&self, key: &str) -> Option<String> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The first sequence of the first commit group written at `time` or later; one more than the last sequence when there
    /// is none. Where the clock was set back, it is the first one after one of the moments that come into question.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be read.
    pub(crate) async fn sequence_at(&self, time: SystemTime) -> Result<u64, Refused> {
        // What comes after this is not older.
        let next = self.status().last_sequence + 1;
        let at = millis(time);
        Ok(self.look_up(move |reader| reader.written_since(at)).await?.unwrap_or(next))
    }

    /// The oldest sequence that is kept and the newest one ever given; with none kept, the first is one more than the
    /// last.
    pub(crate) fn range(&self) -> (u64, u64) {
        let status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.first_sequence, status.last_sequence)
    }

    /// Whether events can be stored, now and from now on.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// What is in it, as of the last commit. Never waits.
    pub(crate) fn status(&self) -> Status {
        self.shared.status()
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// Writes and syncs what waits, and closes; a journal that has failed leaves its mark for the next start. Back when
    /// nothing is left to do. What comes later is refused.
    pub(crate) async fn close(&self) {
        self.mailbox.send(Command::Close);
        // Nothing is ever sent: the sender goes with the writer's thread.
        let _ = self.ended.clone().changed().await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("engine", &self.engine).finish_non_exhaustive()
    }
}
