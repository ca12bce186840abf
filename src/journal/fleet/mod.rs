//! The journal of a fleet: a NATS JetStream cluster that all its receivers share. They keep nothing themselves.
//!
//! An event is one message in one stream, published under a hash of its id and acknowledged by the cluster before its 200
//! ([`append`]); the cluster tells duplicates. Its entity decides on its partition. For every sink and partition there is a
//! consumer, which the cluster pins to one receiver at a time, and a **place**: a record of what has been settled, written
//! by compare-and-set ([`share`], [`partition`]). The place is the truth; the consumer is a lease and a feed.
//!
//! | stream | holds |
//! | --- | --- |
//! | `S` | the events |
//! | `S_STATE` | records: the log, sinks, places, retried dead letters, notes, receivers that are alive ([`records`]) |
//! | `S_DEAD_LETTERS`, `S_QUARANTINE` | a message each ([`letters`], [`quarantine`]) |

mod accounts;
pub(super) mod append;
pub(super) mod cluster;
mod cursor;
pub(super) mod delivery;
mod horizon;
mod janitor;
pub(super) mod keeper;
mod known;
pub(super) mod lease;
mod letter_store;
pub(super) mod letters;
pub(super) mod log;
mod notes;
mod once;
mod partition;
pub(super) mod quarantine;
mod release;
pub(super) mod replicas;
mod retries;
mod scan;
pub(super) mod share;
pub(super) mod sink;
mod stock;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{broadcast, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use cluster::error::NatsError;
pub use cluster::streams::{ClusterFindings, examine_cluster};
pub(crate) use cursor::{Cursor, Settler};
pub(crate) use letters::Letters;
pub(crate) use scan::{Scan, Watch};

use super::event::NewEvent;
use super::letters::{Letter, LettersOf, Which};
use super::opening::Report;
use super::outcome::Handled;
use super::outcome::{Appended, Refused, State};
use super::quarantine::Quarantined;
use super::quarantine::{Bodies, QuarantinedBody};
use super::status::{ClusterStatus, Status};
use crate::admission::{Admitted, Outcome};
use crate::config::{self, Config};
use crate::telemetry::Metrics;
use append::Appender;
use cluster::link::{From, Link};
use cluster::records::Records;
use delivery::Delivery;
use janitor::{Ailment, Janitor, Seen};
use keeper::Keeper;
use letters::DeadLetters;
use log::Log;
use notes::Notes;
use once::refused;
use quarantine::Quarantine;

/// Events stored here that a slow [`Watch`] may be behind.
const OWN: usize = 1024;
/// How long publishes under way are waited for at the end.
const LAST: Duration = Duration::from_secs(5);

/// What every handle to the cluster shares.
#[derive(Debug)]
pub(crate) struct Cluster {
    link: Link,
    keeper: Keeper,
    appender: Appender,
    delivery: Delivery,
    dead_letters: DeadLetters,
    quarantine: Quarantine,
    notes: Notes,
    seen: watch::Receiver<Seen>,
    state: watch::Sender<State>,
    /// Appends under way.
    appends: TaskTracker,
    /// Everything else.
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Cluster {
    /// Connects, makes or checks the streams, and starts what a sink needs. Gives a cursor for every enabled sink.
    pub(crate) async fn open(
        config: &Config,
        settings: &config::Nats,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, Vec<Cursor>, Report), NatsError> {
        let link = Link::connect(settings).await?;
        let warnings = cluster::streams::ensure(&link, config).await?;
        let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
        let records = Records::open(&link, &tasks, ending.clone()).await?;
        let info = link.info(link.names().events()).await?;
        let tail = watch::Sender::new(0);
        let full = watch::Sender::new(false);
        let known_lost = cluster::streams::patiently(|| Keeper::lost_before(&records)).await?;
        let keeper = cluster::streams::patiently(|| Keeper::open(&link, &records, &tail)).await?;
        let instance: Arc<str> = uuid::Uuid::new_v4().to_string().into();
        let enabled = config.sinks.iter().filter(|sink| sink.enabled).map(|sink| sink.name.clone());
        replicas::live(&records, &instance, enabled.collect(), &tasks, ending.clone()).await;
        let quarantine =
            Quarantine::new((&link, &records), Arc::clone(&metrics), config.quarantine.max_bytes, ending.clone());
        let both = (&link, &records);
        let dead_letters = DeadLetters::open(both, config, Arc::clone(&instance), &tasks, ending.clone());
        let parts = (&link, &records, &keeper);
        let seen = Janitor::start(parts, (config, Arc::clone(&instance)), &full, &tasks, ending.clone()).await?;
        let part = (&link, &records, &keeper, &dead_letters);
        let (delivery, cursors) = Delivery::start(part, config, Arc::clone(&instance), full.subscribe()).await?;
        let notes = Notes::open(&records, instance, &tasks, ending.clone());
        let counted = count_lost(keeper.subscribe(), known_lost, Arc::clone(&metrics));
        cluster::spawn(&tasks, ending.clone().run_until_cancelled_owned(counted));
        let state = watch::Sender::new(State::Open);
        let appender = Appender {
            link: link.clone(),
            keeper: keeper.clone(),
            quarantine: quarantine.clone(),
            metrics,
            partitions: settings.partitions,
            ack_timeout: settings.ack_timeout,
            answer_within: config.listen.answer_within,
            max_body_bytes: config.listen.max_body_bytes,
            tail,
            full,
            state: state.subscribe(),
            own: broadcast::Sender::new(OWN),
        };
        let report = Report { events: info.state.messages, warnings, ..Report::default() };
        let cluster = Arc::new(Self {
            link,
            keeper,
            appender,
            delivery,
            dead_letters,
            quarantine,
            notes,
            seen,
            state,
            appends: TaskTracker::new(),
            tasks,
            ending,
        });
        cluster::spawn(&cluster.tasks, Arc::clone(&cluster).follow_state());
        Ok((cluster, cursors, report))
    }

    /// As [`Journal::append`](crate::journal::Journal::append): a task of its own, which nobody's going away ends.
    pub(crate) fn append(
        &self,
        event: NewEvent,
        admitted: Admitted,
    ) -> impl Future<Output = Result<Appended, Refused>> + use<> {
        let (reply, answer) = oneshot::channel();
        let appender = self.appender.clone();
        let is_closed = self.ending.is_cancelled() || self.appends.is_closed();
        // A panic in it is counted with what it had admitted, and answered as a failure: no other event's matter.
        self.appends.spawn(async move {
            let appended = if is_closed { Err(Refused::Closed) } else { appender.append(event).await };
            admitted.settle(match &appended {
                Ok(Appended::Stored(_)) => Outcome::Stored,
                Ok(Appended::Duplicate(_)) => Outcome::Duplicate,
                Err(why) => why.outcome(),
            });
            // Whoever asked may be gone.
            let _ = reply.send(appended);
        });
        answer.map(|answer| answer.unwrap_or(Err(Refused::Closed)))
    }

    pub(crate) async fn quarantine(
        &self,
        body: Quarantined,
        admitted: Admitted,
        outcome: Outcome,
    ) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        let quarantine = self.quarantine.clone();
        self.appends.spawn(async move {
            let kept = quarantine.keep(body.into()).await;
            admitted.settle(kept.map_or_else(Refused::outcome, |()| outcome));
            let _ = reply.send(kept);
        });
        answer.await.unwrap_or(Err(Refused::Closed))
    }

    pub(crate) async fn forget(&self, sink: &str) -> Result<bool, Refused> {
        self.delivery.forget(sink).await
    }

    pub(crate) async fn note(&self, key: &'static str, text: Option<String>) -> Result<(), Refused> {
        self.notes.note(key, text).await
    }

    pub(crate) fn notes(&self) -> BTreeMap<String, String> {
        self.notes.all()
    }

    pub(crate) fn read_note(&self, key: &str) -> Option<String> {
        self.notes.read(key)
    }

    pub(crate) async fn number(&self, series: &'static str) -> Result<u64, Refused> {
        self.notes.number(series).await
    }

    pub(crate) async fn adopted(&self) -> Option<(String, String)> {
        self.notes.adopted().await
    }

    /// A cluster that is out of reach is no reason to end this process: another one would not reach it either.
    pub(crate) async fn answers(&self) -> Result<(), Refused> {
        if self.ending.is_cancelled() { Err(Refused::Closed) } else { Ok(()) }
    }

    pub(crate) async fn sequence_at(&self, time: SystemTime) -> Result<u64, Refused> {
        let names = self.link.names();
        // What comes after this is not older.
        let next = *self.appender.tail.borrow() + 1;
        let found = self.link.read(names.events(), &names.subjects(), From::Time(time), 1, 1).await;
        let found = found.map_err(|error| refused(&error))?;
        Ok(found.messages.first().map_or(next, |stored| stored.sequence))
    }

    pub(crate) fn range(&self) -> (u64, u64) {
        (self.seen.borrow().first, *self.appender.tail.borrow())
    }

    pub(crate) fn log_identity(&self) -> String {
        self.keeper.current().identity.clone()
    }

    pub(crate) async fn log_changed(&self, identity: &str) {
        // Its sender is here.
        let _ = self.keeper.subscribe().wait_for(|log| log.identity != identity).await;
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn status(&self) -> Status {
        let tail = *self.appender.tail.borrow();
        let sinks = self.delivery.accounts(tail);
        let seen = self.seen.borrow();
        let server = self.link.client().server_info();
        Status {
            identity: Some(self.log_identity()),
            first_sequence: seen.first,
            last_sequence: tail,
            bytes: seen.bytes,
            oldest: seen.oldest,
            hindered: seen.healthy.as_ref().err().map(|ailment| ailment.text().to_owned()),
            replay_limit: None,
            disk: None,
            log_bytes: None,
            dedup_ids: 0,
            dead_letters: self.dead_letters.status(seen.dead.count, seen.dead.bytes, seen.dead.newest),
            quarantine: self.quarantine.status(seen.quarantine.count, seen.quarantine.bytes, seen.quarantine.newest),
            sinks,
            cluster: Some(ClusterStatus {
                server: server.server_name,
                version: server.version,
                cluster: server.cluster,
                max_payload: self.link.client().max_payload(),
                sync_always: seen.sync_always,
            }),
        }
    }

    /// As the server that this process is connected to says; another one may say otherwise. One that takes too little for
    /// anything is no matter of the size.
    pub(crate) fn largest_body(&self) -> usize {
        self.appender.largest_body().unwrap_or(usize::MAX)
    }

    pub(crate) fn engine(&self) -> config::Engine {
        config::Engine::Nats
    }

    /// Every event from now on, whoever stores it.
    pub(crate) fn watch(&self) -> Watch {
        Watch::All(self.scan(*self.appender.tail.borrow() + 1))
    }

    /// Every event that is stored here from now on.
    pub(crate) fn watch_own(&self) -> Watch {
        Watch::Own { events: self.appender.own.subscribe(), ending: self.ending.clone() }
    }

    pub(crate) fn scan(&self, from: u64) -> Scan {
        Scan::new((self.link.clone(), self.keeper.clone()), self.ending.clone(), from, self.appender.tail.subscribe())
    }

    pub(crate) async fn dead_letters(&self, query: LettersOf) -> Result<Vec<Letter>, Refused> {
        self.dead_letters.list(query).await
    }

    pub(crate) async fn dead_letter(&self, id: u64) -> Result<Option<Letter>, Refused> {
        self.dead_letters.get(id).await
    }

    pub(crate) async fn retry_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        self.dead_letters.retry(which).await
    }

    pub(crate) async fn discard_dead_letters(&self, which: Which) -> Result<Handled, Refused> {
        self.dead_letters.discard(which).await
    }

    pub(crate) async fn quarantined(&self, after: u64, limit: usize) -> Result<Vec<QuarantinedBody>, Refused> {
        self.quarantine.list(after, limit).await
    }

    pub(crate) async fn quarantined_body(&self, id: u64) -> Result<Option<QuarantinedBody>, Refused> {
        self.quarantine.get(id).await
    }

    pub(crate) async fn discard_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        self.quarantine.discard(which).await
    }

    pub(crate) async fn retry_quarantined(&self, which: Bodies) -> Result<Handled, Refused> {
        self.quarantine.retry(which, &self.appender).await
    }

    pub(crate) async fn close(&self) {
        self.appends.close();
        let _ = tokio::time::timeout(LAST, self.appends.wait()).await;
        // Others take over from here on.
        let notes = tokio::time::timeout(LAST, self.notes.finish());
        let _ = futures_util::join!(self.dead_letters.finish(), self.delivery.finish(), notes);
        let _ = tokio::time::timeout(LAST, self.keeper.finish()).await;
        self.state.send_replace(State::Closed);
        self.ending.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(LAST, self.tasks.wait()).await;
    }

    /// Says whether events can be stored, as connection, stream and room come and go.
    async fn follow_state(self: Arc<Self>) {
        let (mut seen, mut connected) = (self.seen.clone(), self.link.connection());
        let mut full = self.appender.full.subscribe();
        let mut largest = self.largest_body();
        loop {
            let largest_before = std::mem::replace(&mut largest, self.largest_body());
            if largest < largest_before {
                tracing::warn!(
                    largest,
                    "this server takes less at once than the one before (max_payload): larger events are answered 413"
                );
            }
            let healthy = match (*connected.borrow_and_update(), &seen.borrow_and_update().healthy) {
                (false, _) => Err(Ailment::Away("not connected to any server".to_owned())),
                (true, healthy) => healthy.clone(),
            };
            let state = match (&healthy, *full.borrow_and_update()) {
                (Err(Ailment::Away(_)), _) => State::Unreachable,
                (Err(Ailment::Unfit(_)), _) => State::Unfit,
                (Ok(()), true) => State::Full,
                (Ok(()), false) => State::Open,
            };
            let before = self.state.send_replace(state);
            match healthy {
                Err(Ailment::Away(reason)) if before != state => {
                    tracing::error!(reason, "the cluster cannot store events now: they are refused until it can");
                }
                Err(Ailment::Unfit(reason)) if before != state => {
                    tracing::error!(
                        reason,
                        "the cluster does not keep what a 200 promises: events are refused until it does"
                    );
                }
                Ok(()) if matches!(before, State::Unreachable | State::Unfit) => {
                    tracing::info!("the cluster stores events again");
                }
                _ => {}
            }
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                changed = full.changed() => if changed.is_err() { return },
                () = self.ending.cancelled() => return,
            }
        }
    }
}

/// Counts the losses that the fleet finds from now on, when `known` were known before.
async fn count_lost(mut log: watch::Receiver<Arc<Log>>, mut known: u64, metrics: Arc<Metrics>) {
    loop {
        let lost = log.borrow_and_update().lost;
        metrics.journal_lost.inc_by(lost.saturating_sub(known));
        // Smaller where the records were lost.
        known = lost;
        if log.changed().await.is_err() {
            return;
        }
    }
}
