//! Bodies in quarantine that an operator lets in as events.

use super::append::Appender;
use super::quarantine::{Ids, Quarantine, UNKNOWN};
use crate::envelope::Envelope;
use crate::journal::event::millis;
use crate::journal::letters::MAX_LIST;
use crate::journal::outcome::{Handled, Refused};
use crate::journal::quarantine::{Bodies, Kept, QuarantinedBody};

impl Quarantine {
    /// Takes bodies in as events: `append` stores one, or finds it stored; false if its id is known with other bytes.
    pub(crate) async fn retry(&self, which: Bodies, append: &Appender) -> Result<Handled, Refused> {
        self.check_open()?;
        let mut handled = Handled::default();
        let (mut after, end) = match self.ids(which).await? {
            Ids::Given(ids) => {
                for id in ids {
                    self.release(id, append, &mut handled).await?;
                }
                return Ok(handled);
            }
            Ids::Through(end) => (0, end),
        };
        while after < end {
            let found = self.page(after, MAX_LIST).await?;
            let Some(last) = found.last() else { break };
            after = last.sequence;
            for id in found.iter().map(|stored| stored.sequence).filter(|&id| id <= end) {
                self.release(id, append, &mut handled).await?;
            }
        }
        Ok(handled)
    }

    /// `append` takes one body in, and then it is deleted; one that is left in between is found stored the next time.
    async fn release(&self, id: u64, append: &Appender, handled: &mut Handled) -> Result<(), Refused> {
        let Some(QuarantinedBody { id, reason, detail, at, peer, endpoint, body }) = self.get(id).await? else {
            handled.skip(id, || UNKNOWN.to_owned());
            return Ok(());
        };
        let envelope = match Envelope::parse(body.clone()) {
            Ok(envelope) => envelope,
            Err(rejection) => {
                handled.skip(id, || rejection.to_string());
                return Ok(());
            }
        };
        let at = millis(at);
        let kept = Kept { id, reason, detail, at, peer, endpoint, digest: 0, body };
        if append.release(&envelope, &kept).await? {
            self.metrics.quarantine_released.inc();
            self.take(1).await?;
            self.delete(id).await?;
            handled.done += 1;
        } else {
            handled.skip(id, || "its event_id is known with other bytes".to_owned());
        }
        Ok(())
    }
}
