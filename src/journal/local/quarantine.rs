//! The quarantine: how operators see its bodies, discard them, and let them out as events.

use tokio::sync::oneshot;

use super::engine::Local;
use super::store::Pick;
use super::writer::{Append, Arriving, Command, Operation, Released, Waiter};
use crate::envelope::Envelope;
use crate::journal::event::digest;
use crate::journal::letters::MAX_LIST;
use crate::journal::outcome::Handled;
use crate::journal::outcome::Refused;
use crate::journal::quarantine::{Bodies, QuarantinedBody};

impl Local {
    /// At most `limit` bodies with ids beyond `after`, oldest first. A list may end early, for its bytes: an empty one is
    /// the end.
    ///
    /// # Errors
    /// [`Refused`] when they cannot be read.
    pub(crate) async fn quarantined(&self, after: u64, limit: usize) -> Result<Vec<QuarantinedBody>, Refused> {
        let pick = Pick { after, sink: None, limit: limit.min(MAX_LIST), whole: true };
        let page = self.look_up(move |reader| reader.bodies(&pick)).await?;
        Ok(page.rows.into_iter().map(QuarantinedBody::from).collect())
    }

    /// One body, if there is one of this id.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be read.
    pub(crate) async fn quarantined_body(&self, id: u64) -> Result<Option<QuarantinedBody>, Refused> {
        let found = self.look_up(move |reader| reader.body(id)).await?;
        Ok(found.map(QuarantinedBody::from))
    }

    /// Deletes bodies, in steps between which events are taken in; dropped, it stops between two of them.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub(crate) async fn discard_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        let mut handled = Handled::default();
        let mut ids = Ids::of(which, self);
        while let Some(some) = ids.next(self).await? {
            self.change_ids(some, &Operation::DiscardKept, &mut handled).await?;
        }
        Ok(handled)
    }

    /// Takes bodies in as events, as if they came now, each with its peer, its endpoint and the time it was received. One
    /// that is an event leaves the quarantine in the commit that stores it, or finds it stored already. What is still no
    /// event stays, and so does one whose id is known with other bytes. Feeds that its endpoint does not take pass: that
    /// is the operator's decision. Dropped, it stops between two bodies.
    ///
    /// # Errors
    /// [`Refused`]; what was done before stands.
    pub(crate) async fn retry_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        let mut handled = Handled::default();
        let mut ids = Ids::of(which, self);
        while let Some(some) = ids.next(self).await? {
            for id in some {
                match self.release(id).await? {
                    Ok(()) => handled.done += 1,
                    Err(why) => handled.skip(id, || why),
                }
            }
        }
        Ok(handled)
    }
}

impl Local {
    /// Takes one body in as an event; or says why it stays.
    async fn release(&self, id: u64) -> Result<Result<(), String>, Refused> {
        let Some(kept) = self.look_up(move |reader| reader.body(id)).await? else {
            return Ok(Err("there is no body of this id".to_owned()));
        };
        let envelope = match Envelope::parse(kept.body.clone()) {
            Ok(envelope) => envelope,
            Err(rejection) => return Ok(Err(rejection.to_string())),
        };
        let (reply, answer) = oneshot::channel();
        let append = Append {
            hash: self.key.hash(envelope.event_id()),
            digest: digest(envelope.body()),
            event: Arriving::Released(envelope, kept),
            waiter: Waiter::Release(id, reply),
        };
        self.mailbox.send_from_operator(Command::Append(Box::new(append))).await;
        Ok(match answer.await.unwrap_or(Err(Refused::Closed))? {
            Released::Stored | Released::Duplicate => Ok(()),
            Released::Conflict => Err("its event_id is known with other bytes".to_owned()),
        })
    }
}

/// The ids of bodies, some at a time.
enum Ids {
    Given(Option<Vec<u64>>),
    /// Beyond the first and up to the second; what comes meanwhile is not meant.
    Range(u64, u64),
}

impl Ids {
    fn of(which: Bodies, journal: &Local) -> Self {
        match which {
            Bodies::Ids(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                Self::Given(Some(ids))
            }
            Bodies::All => Self::Range(0, journal.shared.status().quarantine.newest),
        }
    }

    async fn next(&mut self, journal: &Local) -> Result<Option<Vec<u64>>, Refused> {
        let (after, end) = match self {
            Self::Given(ids) => return Ok(ids.take()),
            Self::Range(after, end) => (after, *end),
        };
        if *after >= end {
            return Ok(None);
        }
        let pick = Pick { after: *after, sink: None, limit: MAX_LIST, whole: false };
        let page = journal.look_up(move |reader| reader.bodies(&pick)).await?;
        *after = page.next.unwrap_or(end);
        Ok(Some(page.rows.iter().map(|kept| kept.id).filter(|&id| id <= end).collect()))
    }
}
