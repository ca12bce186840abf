//! What one commit will hold, and who waits for it.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::mailbox::settle;
use crate::admission::{Admitted, Outcome};
use crate::journal::group::Ids;
use crate::journal::store::{DeadLetter, Kept};
use crate::journal::window::IdHash;
use crate::journal::{Appended, Refused};

/// A group holds at most this many events…
const GROUP_EVENTS: usize = 1024;
/// …and takes no further event once its block has this many bytes.
const GROUP_BYTES: usize = 4 << 20;

/// Tells whoever asked that it is done.
pub(super) type Done = oneshot::Sender<Result<(), Refused>>;

/// What one commit will hold, and who waits for it.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) block: Vec<u8>,
    pub(super) ids: Ids,
    pub(super) count: u64,
    /// Ids new in this group, with the digests of their bytes.
    pub(super) fresh: HashMap<IdHash, u32>,
    pub(super) order: Vec<(IdHash, u32)>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) kept: Vec<Kept>,
    pub(super) keeping: Vec<(Admitted, Outcome, Done)>,
    pub(super) letters: Vec<DeadLetter>,
    pub(super) lettering: Vec<Done>,
    pub(super) close: bool,
}

/// An append whose fate hangs on the commit.
pub(super) struct Waiting {
    pub(super) event_id: Box<str>,
    pub(super) duplicate: bool,
    pub(super) admitted: Admitted,
    pub(super) reply: oneshot::Sender<Result<Appended, Refused>>,
}

impl Batch {
    pub(super) fn has_room(&self) -> bool {
        !self.close
            && self.waiting.len() + self.kept.len() + self.letters.len() < GROUP_EVENTS
            && self.block.len() < GROUP_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.keeping.is_empty() && self.letters.is_empty() && self.kept.is_empty()
    }
}

/// Refuses the batch's events; whatever else it holds stays.
pub(super) fn refuse_events(batch: &mut Batch, why: Refused) {
    for Waiting { admitted, reply, .. } in batch.waiting.drain(..) {
        settle(admitted, reply, Err(why));
    }
    batch.block.clear();
    batch.ids = Ids::default();
    batch.order.clear();
    batch.count = 0;
}

pub(super) fn refuse(mut batch: Batch, why: Refused) {
    refuse_events(&mut batch, why);
    for (admitted, _, reply) in batch.keeping {
        admitted.settle(Outcome::Refused(why.word()));
        let _ = reply.send(Err(why));
    }
    for reply in batch.lettering {
        let _ = reply.send(Err(why));
    }
}
