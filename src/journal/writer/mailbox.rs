//! What the writer is asked to do, and how it answers.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::admission::{Admitted, Outcome};
use crate::journal::place::Settled;
use crate::journal::store::{DeadLetter, Kept};
use crate::journal::window::IdHash;
use crate::journal::{Appended, NewEvent, Refused};

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
pub(in crate::journal) fn turn_away(command: Command, why: Refused) {
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
