//! Which events are new: the one place where that is decided.

use super::batch::{Batch, Role, Waiting};
use super::mailbox::{Append, Arriving};
use super::{TOUCHED, Writer};
use crate::journal::event::{ENCODED_OVERHEAD, encode};
use crate::journal::quarantine::Kept;

impl Writer {
    /// Puts an event into the batch, or finds it known.
    pub(crate) fn take_append(&mut self, append: Append, batch: &mut Batch) {
        let Append { event, hash, digest, waiter } = append;
        let event_id: Box<str> = event.envelope().event_id().into();
        let durable = self.recovered.window.touch(hash, self.clock.now());
        let known = durable.or_else(|| batch.fresh.get(&hash).copied());
        let Some(first_digest) = known else {
            let room = event.envelope().body().len() + ENCODED_OVERHEAD;
            // As much as the last group took is likely to be needed again.
            batch.block.reserve(if batch.count == 0 { room.max(self.last_block) } else { room });
            encode(&mut batch.block, &event.parts());
            batch.ids.push(&event_id, digest);
            batch.fresh.insert(hash, digest);
            batch.order.push((hash, digest));
            batch.count += 1;
            batch.waiting.push(Waiting { event_id, role: Role::First, waiter });
            return;
        };
        if durable.is_some() && self.touched.len() < TOUCHED {
            self.touched.push((event_id.clone(), first_digest));
        }
        let is_same = first_digest == digest;
        let role = match (event, durable) {
            (Arriving::New(_), Some(_)) if is_same => Role::Settled,
            (Arriving::New(event), Some(_)) => {
                self.metrics.conflicts.inc();
                let kept = Kept::conflicting(event);
                if self.recovered.quarantine.knows(kept.digest) {
                    Role::Settled
                } else {
                    if !batch.keeps(kept.digest) {
                        batch.kept.push(kept);
                    }
                    Role::Conflict
                }
            }
            (Arriving::New(event), None) => {
                batch.contesting.extend((!is_same).then(|| Kept::conflicting(event)));
                Role::Copy
            }
            (_, Some(_)) if is_same => Role::Known,
            (_, Some(_)) => Role::Settled,
            (_, None) if is_same => Role::Copy,
            (_, None) => Role::Contest,
        };
        let waiting = Waiting { event_id, role, waiter };
        if role == Role::Settled { batch.known.push(waiting) } else { batch.waiting.push(waiting) }
    }
}
