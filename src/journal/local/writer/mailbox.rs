//! What the writer is asked to do, and how it answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::letters::Ending;
use crate::admission::{Admitted, Outcome};
use crate::envelope::Envelope;
use crate::journal::event::NewEvent;
use crate::journal::event::{Event, Parts};
use crate::journal::local::dedup::IdHash;
use crate::journal::local::store::DeadLetter;
use crate::journal::outcome::Settled;
use crate::journal::outcome::{Appended, Refused};
use crate::journal::quarantine::Kept;

/// Commands of all lanes that may wait at a time; a lane with more to say waits itself.
const FROM_LANES: usize = 512;
/// Commands of operators, likewise.
const FROM_OPERATORS: usize = 16;
/// For the end.
const OTHERS: usize = 16;

/// The way to the writer. Lanes and operators have a share of their own in it, so that they never take the room of an
/// event.
#[derive(Debug)]
pub(crate) struct Mailbox {
    commands: SyncSender<Posted>,
    lanes: Arc<Semaphore>,
    operators: Arc<Semaphore>,
}

/// A command on its way; what it holds of a share is free once the writer takes it. One that the writer never
/// takes is answered when it is dropped.
#[derive(Debug)]
pub(crate) struct Posted {
    command: Option<Command>,
    _share: Option<OwnedSemaphorePermit>,
}

impl Posted {
    pub(crate) fn take(mut self) -> Option<Command> {
        self.command.take()
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            turn_away(command, Refused::Closed);
        }
    }
}

impl Mailbox {
    /// A mailbox in which `max_in_flight` requests fit.
    pub(crate) fn new(max_in_flight: usize) -> (Self, Receiver<Posted>) {
        let (commands, inbox) = sync_channel(max_in_flight + FROM_LANES + FROM_OPERATORS + OTHERS);
        let share = |places| Arc::new(Semaphore::new(places));
        (Self { commands, lanes: share(FROM_LANES), operators: share(FROM_OPERATORS) }, inbox)
    }

    /// For requests, which admission bounds, and for the end.
    pub(crate) fn send(&self, command: Command) {
        self.post(Posted { command: Some(command), _share: None });
    }

    /// For lanes: waits for room in their share.
    pub(crate) async fn send_from_lane(&self, command: Command) {
        self.send_within(&self.lanes, command).await;
    }

    /// For operators: waits for room in their share.
    pub(crate) async fn send_from_operator(&self, command: Command) {
        self.send_within(&self.operators, command).await;
    }

    async fn send_within(&self, share: &Arc<Semaphore>, command: Command) {
        // It is never closed.
        let share = Arc::clone(share).acquire_owned().await.ok();
        self.post(Posted { command: Some(command), _share: share });
    }

    fn post(&self, posted: Posted) {
        // Never full, as what may wait is bounded at less than it holds; and closed together with the journal.
        drop(self.commands.try_send(posted));
    }
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Box<Append>),
    Quarantine {
        kept: Box<Kept>,
        admitted: Admitted,
        outcome: Outcome,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    Settle {
        sink: Arc<str>,
        from: u64,
        to: u64,
        how: Settled,
    },
    DeadLetter {
        letter: Box<DeadLetter>,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// What became of a dead letter that was tried again.
    EndRetry {
        sink: Arc<str>,
        letter: u64,
        ending: Ending,
    },
    Operate(Operation),
    /// A reader met damage: this process is over, the next one recovers.
    Damaged(String),
    Close,
}

/// An event on its way into the journal, and whoever waits for what becomes of it.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) event: Arriving,
    pub(crate) hash: IdHash,
    pub(crate) digest: u32,
    pub(crate) waiter: Waiter,
}

#[derive(Debug)]
pub(crate) enum Arriving {
    New(NewEvent),
    /// Out of the quarantine: it was authenticated, and counted, when it came.
    Released(Envelope, Kept),
    /// Out of another journal.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only a build with clusters moves journals"))]
    Moved(Envelope, Event),
}

#[derive(Debug)]
pub(crate) enum Waiter {
    Request(Admitted, oneshot::Sender<Answer>),
    /// An operator lets the body of this id out of the quarantine.
    Release(u64, oneshot::Sender<Result<Released, Refused>>),
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only a build with clusters moves journals"))]
    Move(oneshot::Sender<Result<Released, Refused>>),
}

/// The answer to an append, and those to others, which whoever has this one gives them.
#[derive(Debug)]
pub(crate) struct Answer {
    result: Result<Appended, Refused>,
    others: Others,
}

/// Answers to requests. Dropped, it gives them to one that passes them on: the writer wakes one task and not each of them,
/// which would take its core from it before the next is woken.
#[derive(Debug, Default)]
pub(crate) struct Answers(Vec<(oneshot::Sender<Answer>, Appended)>);

/// Answers to be passed on. Dropped, wherever that is, it does so.
#[derive(Debug, Default)]
struct Others(Vec<(oneshot::Sender<Answer>, Appended)>);

impl Answer {
    fn alone(result: Result<Appended, Refused>) -> Self {
        Self { result, others: Others::default() }
    }

    pub(crate) fn result(self) -> Result<Appended, Refused> {
        self.result
    }
}

impl Answers {
    pub(crate) fn push(&mut self, reply: oneshot::Sender<Answer>, appended: Appended) {
        self.0.push((reply, appended));
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut answers = std::mem::take(&mut self.0);
        while let Some((reply, appended)) = answers.pop() {
            // Whoever asked may be gone; then another one passes them on.
            match reply.send(Answer { result: Ok(appended), others: Others(answers) }) {
                Ok(()) => return,
                Err(mut back) => answers = std::mem::take(&mut back.others.0),
            }
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for (reply, appended) in self.0.drain(..) {
            // Whoever asked may be gone; the outcome stands.
            let _ = reply.send(Answer::alone(Ok(appended)));
        }
    }
}

/// What became of a body that was let out of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    Stored,
    /// The same event was stored before.
    Duplicate,
    /// Its id is known with other bytes: it stays.
    Conflict,
}

/// What an operator wants changed. One that takes ids carries out the first of them, as many as go into one commit.
#[derive(Debug)]
pub(crate) enum Operation {
    RetryLetters(Vec<u64>, oneshot::Sender<Result<Step, Refused>>),
    DiscardLetters(Vec<u64>, oneshot::Sender<Result<Step, Refused>>),
    DiscardKept(Vec<u64>, oneshot::Sender<Result<Step, Refused>>),
    Note(&'static str, Option<String>, oneshot::Sender<Result<(), Refused>>),
    Forget(String, oneshot::Sender<Result<Forgotten, Refused>>),
    /// Nothing but an answer.
    Answer(oneshot::Sender<Result<(), Refused>>),
}

/// What one commit's worth of an operation did.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) changed: u64,
    pub(crate) skipped: Vec<(u64, &'static str)>,
    /// How many ids were dealt with.
    pub(crate) taken: usize,
}

/// Whether a sink's place is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgotten {
    Yes,
    NoSuchSink,
    /// It had dead letters that were tried again, and may have more.
    NotYet,
}

impl Arriving {
    pub(crate) fn envelope(&self) -> &Envelope {
        match self {
            Self::New(event) => &event.envelope,
            Self::Released(envelope, _) | Self::Moved(envelope, _) => envelope,
        }
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        match self {
            Self::New(event) => event.parts(),
            Self::Released(envelope, kept) => kept.parts(envelope),
            Self::Moved(envelope, event) => event.parts(envelope),
        }
    }
}

/// Answers a command that the writer will not carry out.
pub(crate) fn turn_away(command: Command, why: Refused) {
    match command {
        Command::Append(append) => append.waiter.refuse(why),
        Command::Quarantine { admitted, reply, .. } => {
            admitted.settle(why.outcome());
            let _ = reply.send(Err(why));
        }
        Command::DeadLetter { reply, .. } => {
            let _ = reply.send(Err(why));
        }
        Command::Operate(operation) => operation.refuse(why),
        Command::Settle { .. } | Command::EndRetry { .. } | Command::Damaged(_) | Command::Close => {}
    }
}

impl Operation {
    pub(crate) fn refuse(self, why: Refused) {
        // Whoever asked may be gone.
        let _ = match self {
            Self::RetryLetters(_, reply) | Self::DiscardLetters(_, reply) | Self::DiscardKept(_, reply) => {
                reply.send(Err(why)).is_ok()
            }
            Self::Note(_, _, reply) | Self::Answer(reply) => reply.send(Err(why)).is_ok(),
            Self::Forget(_, reply) => reply.send(Err(why)).is_ok(),
        };
    }
}

impl Waiter {
    pub(crate) fn refuse(self, why: Refused) {
        match self {
            Self::Request(admitted, reply) => {
                admitted.settle(why.outcome());
                // Whoever asked may be gone.
                let _ = reply.send(Answer::alone(Err(why)));
            }
            Self::Release(_, reply) | Self::Move(reply) => {
                let _ = reply.send(Err(why));
            }
        }
    }
}
