//! The quarantine of a fleet: a stream of its own, a subject a body, so that each is kept once however often it comes. When
//! it is full, the cluster lets go of the oldest; how many those were follows from how many operators have taken out.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::cluster::link::{From, Link};
use super::cluster::records::Records;
use super::cluster::replies::Stored;
use super::letter_store::{AT_ONCE, LIST_BYTES};
use super::once::{framed, refused, store_once, unframed};
use super::stock;
use crate::journal::event::from_millis;
use crate::journal::letters::MAX_LIST;
use crate::journal::outcome::Handled;
use crate::journal::outcome::Refused;
use crate::journal::quarantine::Kept;
use crate::journal::quarantine::{Bodies, QuarantinedBody, word};
use crate::journal::status::QuarantineStatus;
use crate::telemetry::Metrics;

/// What a message takes besides its payload, at most.
const AROUND: u64 = 512;

pub(crate) const UNKNOWN: &str = "there is no body of this id";

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Quarantine {
    link: Link,
    records: Records,
    pub(crate) metrics: Arc<Metrics>,
    max_bytes: u64,
    /// How many the cluster had let go of when that was counted last.
    dropped: Arc<Mutex<Option<u64>>>,
    ending: CancellationToken,
}

/// What a message says besides the body.
#[derive(Serialize, Deserialize)]
struct Head {
    reason: String,
    detail: String,
    /// Milliseconds since 1970.
    at: u64,
    peer: String,
    endpoint: String,
}

impl Quarantine {
    pub(crate) fn new(
        (link, records): (&Link, &Records),
        metrics: Arc<Metrics>,
        max_bytes: u64,
        ending: CancellationToken,
    ) -> Self {
        let (link, records) = (link.clone(), records.clone());
        Self { link, records, metrics, max_bytes, dropped: Arc::default(), ending }
    }

    /// Keeps a body, unless it is kept already.
    pub(crate) async fn keep(&self, kept: Kept) -> Result<(), Refused> {
        let Kept { id: _, reason, detail, at, peer, endpoint, digest, body } = kept;
        let word = word(&reason);
        let payload = framed(&Head { reason, detail, at, peer, endpoint }, &body)?;
        let names = self.link.names();
        let fits = payload.len() as u64 + AROUND <= self.max_bytes;
        // The cluster would let go of all the others, and then of this one.
        let is_new = !fits || store_once(&self.link, names.quarantine(), &names.body(digest), payload).await?;
        if is_new {
            self.metrics.quarantined.get_or_create(&[("reason", word)]).inc();
            self.metrics.quarantine_dropped.inc_by(u64::from(!fits));
        }
        Ok(())
    }

    pub(crate) async fn list(&self, after: u64, limit: usize) -> Result<Vec<QuarantinedBody>, Refused> {
        self.check_open()?;
        let mut from = after;
        loop {
            let found = self.page(from, limit.clamp(1, MAX_LIST)).await?;
            let Some(last) = found.last() else { return Ok(Vec::new()) };
            from = last.sequence;
            let bodies: Vec<QuarantinedBody> = found.iter().filter_map(body).collect();
            if !bodies.is_empty() {
                return Ok(bodies);
            }
        }
    }

    pub(crate) async fn get(&self, id: u64) -> Result<Option<QuarantinedBody>, Refused> {
        self.check_open()?;
        // The server takes 0 for no sequence at all.
        if id == 0 {
            return Ok(None);
        }
        let found = self.link.get(self.link.names().quarantine(), id).await;
        Ok(found.map_err(|error| refused(&error))?.as_ref().and_then(body))
    }

    pub(crate) async fn discard(&self, which: Bodies) -> Result<Handled, Refused> {
        self.check_open()?;
        let mut handled = Handled::default();
        match self.ids(which).await? {
            Ids::Given(ids) => {
                self.take(ids.len() as u64).await?;
                let delete = |id| async move { (id, self.delete(id).await) };
                let mut deleted = stream::iter(ids).map(delete).buffered(AT_ONCE);
                while let Some((id, deleted)) = deleted.next().await {
                    match deleted? {
                        true => handled.done += 1,
                        false => handled.skip(id, || UNKNOWN.to_owned()),
                    }
                }
            }
            Ids::Through(end) => {
                let info = self.link.info(self.link.names().quarantine()).await.map_err(|error| refused(&error))?;
                self.take(info.state.messages).await?;
                let purged = self.link.purge(self.link.names().quarantine(), None, end.saturating_add(1)).await;
                handled.done = purged.map_err(|error| refused(&error))?;
            }
        }
        Ok(handled)
    }

    /// Counts what the cluster has let go of since it was asked for last.
    pub(crate) fn status(&self, count: u64, bytes: u64, newest: u64) -> QuarantineStatus {
        let dropped = stock::known(&self.records, stock::QUARANTINE).map_or(0, |stock| stock.gone());
        let mut before = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.quarantine_dropped.inc_by(dropped.saturating_sub(before.unwrap_or(dropped)));
        *before = Some(before.map_or(dropped, |before| before.max(dropped)));
        QuarantineStatus { count, bytes, max_bytes: self.max_bytes, newest }
    }

    /// Says that so many are taken out by an operator: otherwise they count as let go.
    pub(crate) async fn take(&self, count: u64) -> Result<(), Refused> {
        stock::take(&self.records, stock::QUARANTINE, count).await.map_err(|error| refused(&error))
    }

    pub(crate) async fn page(&self, after: u64, limit: usize) -> Result<Vec<Stored>, Refused> {
        let Some(from) = after.checked_add(1) else { return Ok(Vec::new()) };
        let names = self.link.names();
        let batch = self.link.read(names.quarantine(), &names.bodies(), From::Sequence(from), limit, LIST_BYTES).await;
        Ok(batch.map_err(|error| refused(&error))?.messages)
    }

    pub(crate) async fn ids(&self, which: Bodies) -> Result<Ids, Refused> {
        match which {
            Bodies::Ids(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                Ok(Ids::Given(ids))
            }
            Bodies::All => {
                let info = self.link.info(self.link.names().quarantine()).await;
                Ok(Ids::Through(info.map_err(|error| refused(&error))?.state.last_sequence))
            }
        }
    }

    pub(crate) async fn delete(&self, id: u64) -> Result<bool, Refused> {
        if id == 0 {
            return Ok(false);
        }
        self.link.delete(self.link.names().quarantine(), id).await.map_err(|error| refused(&error))
    }

    pub(crate) fn check_open(&self) -> Result<(), Refused> {
        if self.ending.is_cancelled() { Err(Refused::Closed) } else { Ok(()) }
    }
}

pub(crate) enum Ids {
    Given(Vec<u64>),
    /// All up to this one; what comes meanwhile is not meant.
    Through(u64),
}

fn body(stored: &Stored) -> Option<QuarantinedBody> {
    let id = stored.sequence;
    let Some((head, body)) = unframed::<Head>(&stored.payload) else {
        tracing::error!(id, "a message in the stream of the quarantine is none: only receivers may publish there");
        return None;
    };
    let Head { reason, detail, at, peer, endpoint } = head;
    Some(QuarantinedBody { id, reason, detail, at: from_millis(at), peer, endpoint, body })
}
