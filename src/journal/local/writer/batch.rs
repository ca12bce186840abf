//! What one commit will hold, and who waits for it.

use tokio::sync::oneshot;

use super::mailbox::{Answers, Operation, Released, Waiter};
use crate::admission::{Admitted, Outcome};
use crate::journal::event::Ids;
use crate::journal::local::dedup::{ById, IdHash};
use crate::journal::local::store::DeadLetter;
use crate::journal::outcome::{Appended, Receipt, Refused};
use crate::journal::quarantine::Kept;
use crate::telemetry::Metrics;

/// A group holds at most this many events…
const GROUP_EVENTS: usize = 1024;
/// …and takes no further event once its block has this many bytes, or this part of `journal.max_bytes`: a group is
/// stored or refused as one.
const GROUP_BYTES: usize = 4 << 20;
const GROUP_PART: u64 = 8;

/// Tells whoever asked that it is done.
pub(crate) type Done = oneshot::Sender<Result<(), Refused>>;

/// A body for the quarantine, and what to count once it is kept.
pub(crate) type Keeping = (Admitted, Outcome, Done);

/// What one commit will hold, and who waits for it.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) block: Vec<u8>,
    pub(crate) ids: Ids,
    pub(crate) count: u64,
    /// Ids new in this group, with the digests of their bytes.
    pub(crate) fresh: ById<u32>,
    pub(crate) order: Vec<(IdHash, u32)>,
    pub(crate) waiting: Vec<Waiting>,
    /// Those that need no commit, only that what is durable still is: appends, and bodies that are kept already.
    pub(crate) known: Vec<Waiting>,
    pub(crate) keeping_known: Vec<Keeping>,
    pub(crate) kept: Vec<Kept>,
    /// Bodies that came under the id of another one in this group: conflicts if that one is stored, else nothing.
    pub(crate) contesting: Vec<Kept>,
    pub(crate) keeping: Vec<Keeping>,
    pub(crate) letters: Vec<DeadLetter>,
    pub(crate) lettering: Vec<Done>,
    /// Carried out in a commit of its own, when this one is written.
    pub(crate) operation: Option<Operation>,
}

/// An append whose fate hangs on the commit.
pub(crate) struct Waiting {
    pub(crate) event_id: Box<str>,
    pub(crate) role: Role,
    pub(crate) waiter: Waiter,
}

/// What an append is, if the commit goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    First,
    /// Of an event in this group.
    Copy,
    /// Has the id of an event in this group, and other bytes.
    Contest,
    /// Has the id of a durable event and other bytes, which wait for the quarantine only.
    Conflict,
    /// Of a durable event; its copy in the quarantine goes.
    Known,
    /// Needs no commit: a duplicate of a durable event, or a conflict that is kept already.
    Settled,
}

impl Waiting {
    /// The commit went through, or none was needed: counts that, and leaves it to `answers` to tell whoever waits.
    pub(crate) fn settle(self, metrics: &Metrics, answers: &mut Answers) {
        let Self { event_id, role, waiter } = self;
        match waiter {
            Waiter::Request(admitted, reply) => {
                let receipt = Receipt::of(event_id);
                let (outcome, appended) = match role {
                    Role::First => (Outcome::Stored, Appended::Stored(receipt)),
                    _ => (Outcome::Duplicate, Appended::Duplicate(receipt)),
                };
                admitted.settle(outcome);
                answers.push(reply, appended);
            }
            Waiter::Release(_, reply) => {
                let released = role.released();
                metrics.quarantine_released.inc_by(u64::from(released != Released::Conflict));
                // Whoever asked may be gone; it is done.
                let _ = reply.send(Ok(released));
            }
            Waiter::Move(reply) => {
                let _ = reply.send(Ok(role.released()));
            }
        }
    }
}

impl Role {
    fn released(self) -> Released {
        match self {
            Self::First => Released::Stored,
            Self::Copy | Self::Known => Released::Duplicate,
            Self::Contest | Self::Conflict | Self::Settled => Released::Conflict,
        }
    }
}

impl Batch {
    pub(crate) fn has_room(&self, max_bytes: u64) -> bool {
        let most = usize::try_from(max_bytes / GROUP_PART).unwrap_or(GROUP_BYTES).min(GROUP_BYTES);
        self.operation.is_none()
            && self.waiting.len() + self.keeping.len() + self.letters.len() < GROUP_EVENTS
            && self.known.len() + self.keeping_known.len() < GROUP_EVENTS
            && self.block.len() < most
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.keeping.is_empty() && self.letters.is_empty()
    }

    /// Whether these bytes go into the quarantine with this batch.
    pub(crate) fn keeps(&self, digest: u64) -> bool {
        self.kept.iter().any(|kept| kept.digest == digest)
    }

    /// Answers what needed no commit.
    pub(crate) fn settle_known(&mut self, metrics: &Metrics) {
        let mut answers = Answers::default();
        for waiting in self.known.drain(..) {
            waiting.settle(metrics, &mut answers);
        }
        drop(answers);
        for (admitted, outcome, reply) in self.keeping_known.drain(..) {
            admitted.settle(outcome);
            let _ = reply.send(Ok(()));
        }
    }

    /// Refuses the events of the group; whatever else is in the batch stays.
    pub(crate) fn refuse_group(&mut self, why: Refused) {
        let of_group = |waiting: &mut Waiting| !matches!(waiting.role, Role::Conflict | Role::Known);
        for Waiting { waiter, .. } in self.waiting.extract_if(.., of_group) {
            waiter.refuse(why);
        }
        self.block.clear();
        self.ids = Ids::default();
        self.order.clear();
        self.contesting.clear();
        self.count = 0;
    }

    /// Refuses all of it.
    pub(crate) fn refuse(self, why: Refused) {
        for Waiting { waiter, .. } in self.waiting.into_iter().chain(self.known) {
            waiter.refuse(why);
        }
        for (admitted, _, reply) in self.keeping.into_iter().chain(self.keeping_known) {
            admitted.settle(why.outcome());
            let _ = reply.send(Err(why));
        }
        for reply in self.lettering {
            let _ = reply.send(Err(why));
        }
        if let Some(operation) = self.operation {
            operation.refuse(why);
        }
    }

    /// Bodies in quarantine that leave it with this batch.
    pub(crate) fn released(&self) -> Vec<u64> {
        let released = |waiting: &Waiting| match (&waiting.waiter, waiting.role) {
            (Waiter::Release(kept, _), Role::First | Role::Copy | Role::Known) => Some(*kept),
            _ => None,
        };
        self.waiting.iter().filter_map(released).collect()
    }
}
