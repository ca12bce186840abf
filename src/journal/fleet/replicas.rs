//! Which receivers of the fleet live: each renews a record, `replica.<instance>`, that the cluster forgets after a while.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::error::NatsError;
use super::cluster::records::{Record, Records};

/// How often a receiver says that it lives…
const RENEW: Duration = Duration::from_secs(2);
/// …and how long that is believed.
const TTL: Duration = Duration::from_secs(6);
/// One whose record was not there in all this time is gone. After an outage of the cluster it takes a moment until all
/// have renewed theirs.
const ABSENT: Duration = Duration::from_secs(5);
/// If nobody looked for so long, absence begins anew.
const FORGOTTEN: Duration = Duration::from_secs(30);

fn key(instance: &str) -> String {
    format!("replica.{instance}")
}

/// What a receiver says of itself.
#[derive(Serialize, Deserialize)]
struct Said {
    /// Those that it delivers to.
    sinks: Vec<String>,
    /// It notes what it purges; older receivers do not.
    #[serde(default)]
    notes_purges: bool,
}

/// The records of those that were said to live and to deliver to a sink; the receivers of all sinks, without one.
pub(crate) fn known(records: &Records, sink: Option<&str>) -> Vec<(String, Record)> {
    let mut known = records.known("replica.");
    if let Some(sink) = sink {
        let has = |said: Said| said.sinks.iter().any(|of| of == sink);
        known.retain(|(_, record)| serde_json::from_slice(&record.value).is_ok_and(has));
    }
    known
}

/// Whether a receiver is said to live that purges without a note of it.
pub(crate) fn have_older(records: &Records) -> bool {
    let all = known(records, None);
    all.iter().any(|(_, record)| serde_json::from_slice(&record.value).is_ok_and(|said: Said| !said.notes_purges))
}

/// Whether this receiver is the one of those that live, and deliver to a sink, which does what one has to do.
pub(crate) fn is_first(records: &Records, sink: Option<&str>, instance: &str) -> bool {
    known(records, sink).first().is_none_or(|(key, _)| key.ends_with(instance))
}

/// Says that this receiver lives, and which sinks it delivers to, until `ending`, and then that it does not.
pub(crate) async fn live(
    records: &Records,
    instance: &str,
    sinks: Vec<String>,
    tasks: &TaskTracker,
    ending: CancellationToken,
) {
    let (records, key) = (records.clone(), key(instance));
    let said = Bytes::from(serde_json::to_vec(&Said { sinks, notes_purges: true }).unwrap_or_default());
    // Whoever looks from now on finds it; if not, the next beat is close.
    let mut last = beat(&records, &key, &said).await;
    super::cluster::spawn(tasks, async move {
        let mut renew = interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while ending.run_until_cancelled(renew.tick()).await.is_some() {
            last = ending.run_until_cancelled(beat(&records, &key, &said)).await.flatten().or(last);
        }
        if let Some(revision) = last {
            // Otherwise it is forgotten soon.
            let _ = records.remove(&key, revision).await;
        }
    });
}

async fn beat(records: &Records, key: &str, said: &Bytes) -> Option<u64> {
    let beat = records.set(key, said.clone(), Some(TTL)).await;
    beat.inspect_err(|reason| tracing::debug!(%reason, "the cluster does not hear that this receiver lives")).ok()
}

/// Whether a receiver has said so lately.
pub(crate) async fn lives(records: &Records, instance: &str) -> Result<bool, NatsError> {
    Ok(records.get(&key(instance)).await?.is_some())
}

/// What one of those who look knows of the others.
#[derive(Debug, Default)]
pub(crate) struct Vanished {
    /// When a receiver was found absent first, and last.
    absent: BTreeMap<String, (Instant, Instant)>,
}

impl Vanished {
    /// Whether a receiver is gone, as far as is known now. To be asked again and again: at first nobody is.
    pub(crate) async fn is_gone(&mut self, records: &Records, instance: &str) -> bool {
        let lives = lives(records, instance).await;
        let now = Instant::now();
        self.absent.retain(|_, (_, last)| now.duration_since(*last) < FORGOTTEN);
        if !matches!(lives, Ok(false)) {
            // A cluster that does not answer says nothing about receivers.
            self.absent.remove(instance);
            return false;
        }
        let (first, last) = self.absent.entry(instance.to_owned()).or_insert((now, now));
        *last = now;
        now.duration_since(*first) >= ABSENT
    }
}
