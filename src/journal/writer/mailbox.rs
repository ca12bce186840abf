//! What the writer is asked to do, and how it answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::admission::{Admitted, Outcome};
use crate::journal::place::Settled;
use crate::journal::store::{DeadLetter, Kept};
use crate::journal::window::IdHash;
use crate::journal::{Appended, NewEvent, Refused};

/// Commands of all lanes that may wait at a time; a lane with more to say waits itself.
const FROM_LANES: usize = 512;
/// For commands of operators and of the end.
const OTHERS: usize = 64;

/// The way to the writer. Lanes have a share of their own in it, so that they never take the room of an event.
#[derive(Debug)]
pub(in crate::journal) struct Mailbox {
    commands: SyncSender<Posted>,
    lanes: Arc<Semaphore>,
}

/// A command on its way; what it holds of the lanes' share is free once the writer takes it.
#[derive(Debug)]
pub(in crate::journal) struct Posted {
    pub(super) command: Command,
    _share: Option<OwnedSemaphorePermit>,
}

impl Mailbox {
    /// A mailbox in which `max_in_flight` requests fit.
    pub(in crate::journal) fn new(max_in_flight: usize) -> (Self, Receiver<Posted>) {
        let (commands, inbox) = sync_channel(max_in_flight + FROM_LANES + OTHERS);
        (Self { commands, lanes: Arc::new(Semaphore::new(FROM_LANES)) }, inbox)
    }

    /// For requests, which admission bounds, and for the few others that are no lane's.
    pub(in crate::journal) fn send(&self, command: Command) {
        self.post(Posted { command, _share: None });
    }

    /// For lanes: waits for room in their share.
    pub(in crate::journal) async fn send_from_lane(&self, command: Command) {
        // It is never closed.
        let share = Arc::clone(&self.lanes).acquire_owned().await.ok();
        self.post(Posted { command, _share: share });
    }

    fn post(&self, posted: Posted) {
        match self.commands.try_send(posted) {
            Ok(()) => {}
            // What may wait is bounded at less than the mailbox holds.
            Err(TrySendError::Full(posted)) => turn_away(posted.command, Refused::Failed),
            Err(TrySendError::Disconnected(posted)) => turn_away(posted.command, Refused::Closed),
        }
    }
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(in crate::journal) enum Command {
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
    Forget {
        sink: String,
        reply: oneshot::Sender<Result<bool, Refused>>,
    },
    /// A reader met damage: this process is over, the next one recovers.
    Damaged(String),
    Close,
}

#[derive(Debug)]
pub(in crate::journal) struct Append {
    pub(in crate::journal) event: NewEvent,
    pub(in crate::journal) hash: IdHash,
    pub(in crate::journal) digest: u32,
    pub(in crate::journal) admitted: Admitted,
    pub(in crate::journal) reply: oneshot::Sender<Result<Appended, Refused>>,
}

/// Answers a command that the writer will not carry out.
pub(super) fn turn_away(command: Command, why: Refused) {
    match command {
        Command::Append(append) => settle(append.admitted, append.reply, Err(why)),
        Command::Quarantine { admitted, reply, .. } => {
            admitted.settle(Outcome::Refused(why.word()));
            let _ = reply.send(Err(why));
        }
        Command::DeadLetter { reply, .. } => {
            let _ = reply.send(Err(why));
        }
        Command::Forget { reply, .. } => {
            let _ = reply.send(Err(why));
        }
        Command::Settle { .. } | Command::Damaged(_) | Command::Close => {}
    }
}

/// Counts an append's outcome and tells it to whoever asked.
pub(super) fn settle(
    admitted: Admitted,
    reply: oneshot::Sender<Result<Appended, Refused>>,
    result: Result<Appended, Refused>,
) {
    admitted.settle(match &result {
        Ok(Appended::Stored(_)) => Outcome::Stored,
        Ok(Appended::Duplicate(_)) => Outcome::Duplicate,
        Err(why) => Outcome::Refused(why.word()),
    });
    // Whoever asked may be gone; the outcome stands.
    let _ = reply.send(result);
}
