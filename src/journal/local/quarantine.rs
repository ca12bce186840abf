//! The quarantine: how operators see its bodies, discard them, and let them out as events; and what the writer knows of
//! it: which bodies are in it, and which to let go of when it is full.

use std::collections::{HashSet, VecDeque};

use tokio::sync::oneshot;

use super::engine::Local;
use super::store::{Pick, StoreState};
use super::writer::{Append, Arriving, Command, Operation, Released, Waiter};
use crate::envelope::Envelope;
use crate::journal::event::digest;
use crate::journal::letters::MAX_LIST;
use crate::journal::outcome::Handled;
use crate::journal::outcome::Refused;
use crate::journal::quarantine::{Bodies, Kept, QuarantinedBody};

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

/// What a row takes besides its body, about.
const ROW_BYTES: u64 = 256;

#[derive(Debug)]
pub(crate) struct Quarantine {
    max_bytes: u64,
    bytes: u64,
    next_id: u64,
    oldest_first: VecDeque<Entry>,
    digests: HashSet<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u64,
    digest: u64,
    bytes: u64,
}

/// Entries that go, if the commit goes through.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// Delete rows up to this id: a full quarantine lets go of them.
    pub(crate) through: Option<u64>,
    entries: Vec<Entry>,
    /// Those that were asked to go.
    asked: usize,
}

impl Dropped {
    /// How many a full quarantine lets go of.
    pub(crate) fn count(&self) -> u64 {
        (self.entries.len() - self.asked) as u64
    }
}

impl Quarantine {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, bytes: 0, next_id: 1, oldest_first: VecDeque::new(), digests: HashSet::new() }
    }

    /// Takes in a row found at start; oldest first.
    pub(crate) fn recover(&mut self, id: u64, digest: u64, body: usize) {
        self.add(Entry { id, digest, bytes: body as u64 + ROW_BYTES });
    }

    /// The newest may be gone from it: no id comes again.
    pub(crate) fn go_on_after(&mut self, id: u64) {
        self.next_id = self.next_id.max(id + 1);
    }

    pub(crate) fn knows(&self, digest: u64) -> bool {
        self.digests.contains(&digest)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn holds(&self, id: u64) -> bool {
        self.oldest_first.binary_search_by_key(&id, |entry| entry.id).is_ok()
    }

    /// Takes out what is asked to go, numbers the new bodies, and makes room for them, oldest out first.
    pub(crate) fn change(&mut self, gone: &[u64], kept: &mut [Kept], state: &mut StoreState) -> Dropped {
        let mut dropped = self.take_out(gone);
        for kept in kept.iter_mut() {
            kept.id = self.next_id;
            self.add(Entry { id: kept.id, digest: kept.digest, bytes: kept.body.len() as u64 + ROW_BYTES });
        }
        // What came with this commit stays, whatever its size.
        while self.bytes > self.max_bytes && self.oldest_first.len() > kept.len().max(1) {
            let Some(entry) = self.oldest_first.pop_front() else { break };
            self.bytes -= entry.bytes;
            self.digests.remove(&entry.digest);
            dropped.through = Some(entry.id);
            dropped.entries.push(entry);
        }
        state.quarantined = self.oldest_first.len() as u64;
        state.kept = self.next_id - 1;
        state.kept_floor = self.oldest_first.front().map_or(self.next_id, |oldest| oldest.id);
        dropped
    }

    fn take_out(&mut self, gone: &[u64]) -> Dropped {
        let mut dropped = Dropped::default();
        if gone.is_empty() {
            return dropped;
        }
        let gone: HashSet<u64> = gone.iter().copied().collect();
        self.oldest_first.retain(|entry| {
            let goes = gone.contains(&entry.id);
            if goes {
                self.bytes -= entry.bytes;
                self.digests.remove(&entry.digest);
                dropped.entries.push(*entry);
            }
            !goes
        });
        dropped.asked = dropped.entries.len();
        dropped
    }

    /// Takes a failed commit's changes back.
    pub(crate) fn put_back(&mut self, kept: &[Kept], dropped: Dropped) {
        for _ in kept {
            if let Some(entry) = self.oldest_first.pop_back() {
                self.bytes -= entry.bytes;
                self.digests.remove(&entry.digest);
            }
        }
        for entry in dropped.entries {
            self.bytes += entry.bytes;
            self.digests.insert(entry.digest);
            let at = self.oldest_first.partition_point(|other| other.id < entry.id);
            self.oldest_first.insert(at, entry);
        }
    }

    fn add(&mut self, entry: Entry) {
        self.next_id = self.next_id.max(entry.id + 1);
        self.bytes += entry.bytes;
        self.digests.insert(entry.digest);
        self.oldest_first.push_back(entry);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn body(digest: u64, bytes: usize) -> Kept {
        Kept {
            id: 0,
            reason: "malformed".to_owned(),
            detail: String::new(),
            at: 0,
            peer: String::new(),
            endpoint: String::new(),
            digest,
            body: Bytes::from(vec![b'x'; bytes]),
        }
    }

    #[test]
    fn a_commit_that_fails_leaves_it_as_it_was() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut quarantine = Quarantine::new(20_000);
        let mut state = StoreState::default();
        for digest in 0..2_000 {
            let ids = |quarantine: &Quarantine| {
                quarantine.oldest_first.iter().map(|entry| (entry.id, entry.digest)).collect::<Vec<_>>()
            };
            let before = (ids(&quarantine), quarantine.bytes, quarantine.digests.clone());
            let gone: Vec<u64> = before.0.iter().map(|(id, _)| *id).filter(|_| random.u8(..) < 20).collect();
            let mut new = [body(digest, random.usize(..4_000))];
            let mut after = state.clone();
            let dropped = quarantine.change(&gone, &mut new, &mut after);
            assert!(gone.iter().all(|id| !quarantine.holds(*id)) && quarantine.knows(digest));
            assert_eq!(after.quarantined, quarantine.oldest_first.len() as u64);
            assert_eq!(after.kept_floor, quarantine.oldest_first[0].id);
            let left = ids(&quarantine).len() + gone.len();
            assert_eq!((before.0.len() + 1 - left) as u64, dropped.count());
            if random.bool() {
                quarantine.put_back(&new, dropped);
                assert_eq!((ids(&quarantine), quarantine.bytes, quarantine.digests.clone()), before);
            } else {
                state = after;
            }
        }
        assert!(quarantine.bytes() <= 20_000);
        assert!(state.kept < quarantine.next_id);
    }
}
