//! The sinks of a fleet: what each is to have, who delivers which part of it, and what became of it all.
//!
//! A sink is a record, `sink.<name>`, made once by whoever knows it first; a [consumer](super::cluster::consumer) and a record for each
//! partition; and in every receiver whose settings have it enabled, a [`Partition`] each and a lane. A sink that is not in
//! the settings any more keeps its records, and holds what it has not had, until an operator drops it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accounts::Accounts;
use super::cluster::consumer;
use super::cluster::consumer::PIN_TIMEOUT;
use super::cluster::error::NatsError;
use super::cluster::link::{From, Link};
use super::cluster::names;
use super::cluster::names::SINKS;
use super::cluster::records::{PutError, Records};
use super::cluster::spawn;
use super::cluster::streams;
use super::cursor::{Cursor, Shelf};
use super::keeper::Keeper;
use super::lease;
use super::lease::Common;
use super::letters::DeadLetters;
use super::log::{Log, Sight};
use super::partition::Partition;
use super::replicas;
use super::share::Share;
use super::sink;
use super::sink::Sink;
use crate::config::{self, Config, Start};
use crate::journal::outcome::{Refused, Settled};
use crate::journal::status::SinkStatus;
use crate::telemetry::LineLimit;

/// Consumers that are made at a time, and requests of the same kind.
const AT_ONCE: usize = 32;
/// How often it is seen to that every receiver has its part.
const BALANCE: Duration = Duration::from_secs(2);
/// A receiver that has not said for so long that it lives gets nothing.
const SILENT: Duration = Duration::from_secs(5);
/// How often what nobody delivers is looked for, and after how long without progress the consumer is to blame.
const WATCH: Duration = Duration::from_secs(10);
const STARVED: Duration = Duration::from_secs(30);
/// While the stream is full: how often it is looked what has to yield, and what part of the stream that is at most.
const EVICT: Duration = Duration::from_millis(500);
const PART: u64 = 20;
/// Events and bytes that are read at a time to be evicted.
const AT_A_TIME: (usize, usize) = (256, 1 << 20);
/// How often it is looked whether the sinks are in line with the log.
const FOLLOW: Duration = Duration::from_secs(1);
/// How often evictions are logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The deliveries of this receiver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Delivery(Arc<Inner>);

struct Inner {
    link: Link,
    records: Records,
    keeper: Keeper,
    dead: DeadLetters,
    instance: Arc<str>,
    sinks: Vec<config::Sink>,
    partitions: u16,
    lanes: Vec<Arc<Common>>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("instance", &self.0.instance).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Makes what is missing of the sinks in the settings, and starts to deliver to those that are enabled: a cursor for
    /// each. While `full`, events yield that sinks which are not required have not had.
    ///
    /// # Errors
    /// [`NatsError`].
    pub(crate) async fn start(
        (link, records, keeper, dead): (&Link, &Records, &Keeper, &DeadLetters),
        config: &Config,
        instance: Arc<str>,
        full: watch::Receiver<bool>,
    ) -> Result<(Self, Vec<Cursor>), NatsError> {
        let partitions = config.journal.nats.as_ref().map_or(1, |nats| nats.partitions);
        let mut lanes = Vec::new();
        for sink in &config.sinks {
            streams::patiently(|| register((link, records, keeper), sink, &instance, partitions)).await?;
            if sink.enabled {
                let shelf = Arc::new(Shelf::new(sink.name.as_str().into(), partitions, keeper.current().epoch));
                let (link, records, keeper) = (link.clone(), records.clone(), keeper.clone());
                let (instance, evict) = (Arc::clone(&instance), AtomicU64::new(0));
                lanes.push(Arc::new(Common { link, records, instance, shelf, keeper, evict }));
            }
        }
        let cursors = lanes.iter().map(|lane| Cursor::new(Arc::clone(&lane.shelf), dead.clone())).collect();
        let delivery = Self(Arc::new(Inner {
            link: link.clone(),
            records: records.clone(),
            keeper: keeper.clone(),
            dead: dead.clone(),
            instance,
            sinks: config.sinks.clone(),
            partitions,
            lanes,
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        }));
        delivery.deliver(full).await?;
        Ok((delivery, cursors))
    }

    /// Every sink as the fleet's records have it, when the stream ends at `last`. Never waits.
    pub(crate) fn accounts(&self, last: u64) -> Vec<SinkStatus> {
        let Inner { records, keeper, dead, sinks, lanes, .. } = &*self.0;
        let log = keeper.current();
        self.known()
            .into_iter()
            .map(|(name, sink)| {
                let settings = sinks.iter().find(|settings| settings.name == name);
                let mut account = sink.account(&shares(records, &name), &log, last);
                dead.amend(&name, &mut account);
                let lane = lanes.iter().find(|lane| **lane.shelf.sink() == *name);
                SinkStatus {
                    hindered: lane.and_then(|lane| lane.shelf.trouble()),
                    name: name.into(),
                    account,
                    enabled: settings.is_none_or(|settings| settings.enabled),
                    required: settings.map_or(sink.required, |settings| settings.required),
                    gone: settings.is_none(),
                }
            })
            .collect()
    }

    /// Drops a sink that is not in the settings any more, with all that is known of it; false if there is none.
    ///
    /// # Errors
    /// [`Refused`] when that cannot be written; part of it may be done then, and the same goes on.
    pub(crate) async fn forget(&self, name: &str) -> Result<bool, Refused> {
        let Inner { link, records, keeper, dead, sinks, .. } = &*self.0;
        if sinks.iter().any(|sink| sink.name == name) {
            return Ok(false);
        }
        let key = names::sink(name);
        let Some(record) = records.get(&key).await.map_err(late)? else { return Ok(false) };
        let partitions = 0..self.0.partitions;
        let forgotten = stream::iter(partitions).map(|at| async move {
            consumer::delete(link, name, at).await.map_err(late)?;
            let key = names::place(name, at);
            match records.get(&key).await.map_err(late)? {
                Some(record) => records.remove(&key, record.revision).await.map_err(late),
                None => Ok(()),
            }
        });
        forgotten.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        dead.forget(name).await?;
        // Last, so that what breaks off can be asked for again.
        keeper.drops(name).await.map_err(late)?;
        match records.remove(&key, record.revision).await {
            Ok(()) => Ok(true),
            Err(error) => Err(late(error)),
        }
    }

    /// Writes and acknowledges what is settled, and lets the other receivers have this one's partitions. The lanes have
    /// ended before.
    pub(crate) async fn finish(&self) {
        self.0.end.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.lanes.iter().for_each(|lane| lane.shelf.close());
    }

    /// Gives a sink its record, which it must not have yet.
    ///
    /// # Errors
    /// [`PutError`].
    pub(crate) async fn make(records: &Records, name: &str, sink: &Sink) -> Result<(), PutError> {
        let json = sink.write().unwrap_or_default();
        let key = names::sink(name);
        match records.put(&key, 0, json.clone().into()).await {
            // By a run that broke off.
            Err(PutError::Stale) if records.get(&key).await.ok().flatten().is_some_and(|had| had.value == json) => {
                Ok(())
            }
            made => made.map(drop),
        }
    }

    async fn deliver(&self, full: watch::Receiver<bool>) -> Result<(), NatsError> {
        let inner = &*self.0;
        let all = || inner.lanes.iter().flat_map(|lane| (0..inner.partitions).map(move |at| (lane, at)));
        let consumers = stream::iter(all()).map(|(lane, at)| streams::patiently(move || lease::remake(lane, at)));
        consumers.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        for (lane, at) in all() {
            let partition = Partition::new(Arc::clone(lane), at).await?;
            spawn(&inner.tasks, partition.run(inner.end.clone()));
        }
        spawn(&inner.tasks, inner.end.clone().run_until_cancelled_owned(self.clone().balance()));
        spawn(&inner.tasks, inner.end.clone().run_until_cancelled_owned(self.clone().watch()));
        spawn(&inner.tasks, inner.end.clone().run_until_cancelled_owned(self.clone().follow_log()));
        spawn(&inner.tasks, inner.end.clone().run_until_cancelled_owned(self.clone().evict(full)));
        Ok(())
    }

    /// The sinks that the fleet has records of.
    fn known(&self) -> Vec<(String, Sink)> {
        let known = self.0.records.known(SINKS);
        let sinks = known.iter().filter_map(|(key, record)| {
            let sink = Sink::read(&record.value).ok()?;
            Some((key.strip_prefix(SINKS)?.to_owned(), sink))
        });
        sinks.collect()
    }

    /// Gives partitions back as long as this receiver has more than its part, one at a time.
    async fn balance(self) {
        let Inner { records, partitions, lanes, .. } = &*self.0;
        let mut ticks = ticks(BALANCE);
        let mut given = HashMap::new();
        let mut heard: HashMap<String, (u64, Instant)> = HashMap::new();
        loop {
            ticks.tick().await;
            let living = replicas::known(records, None).into_iter().map(|(key, record)| {
                let before = heard.get(&key).filter(|(revision, _)| *revision == record.revision);
                let last = before.map_or_else(Instant::now, |(_, last)| *last);
                (key, (record.revision, last))
            });
            heard = living.collect();
            for lane in lanes {
                // Who does not deliver to a sink takes nothing of it.
                let able = replicas::known(records, Some(lane.shelf.sink()));
                let is_heard = |key: &String| heard.get(key).is_some_and(|(_, last)| last.elapsed() < SILENT);
                let receivers = able.iter().filter(|(key, _)| is_heard(key)).count().max(1);
                lane.shelf.set_others(receivers > 1);
                if lane.shelf.is_finishing() {
                    continue;
                }
                let is_time = given.get(lane.shelf.sink()).is_none_or(|at: &Instant| at.elapsed() >= PIN_TIMEOUT);
                if is_time && lane.shelf.held() > usize::from(*partitions).div_ceil(receivers) {
                    lane.shelf.give_one_back();
                    given.insert(Arc::clone(lane.shelf.sink()), Instant::now());
                }
            }
        }
    }

    /// Brings the sinks in line with a log that has changed, and makes records again that were lost. One receiver does it;
    /// another one if that does not get to it.
    async fn follow_log(self) {
        let Inner { link, records, keeper, instance, sinks, partitions, .. } = &*self.0;
        let accounts = Accounts { link, records, keeper, instance, partitions: *partitions };
        let mut changed = keeper.subscribe();
        let (mut looks, mut registered_for) = (0, 0);
        loop {
            if self.is_first(None)
                && let Err(error) = self.remake_lost(&accounts).await
            {
                tracing::warn!(%error, "the record of a sink is lost, and cannot be made again yet");
            }
            if accounts.are_behind() {
                looks += 1;
                if (self.is_first(None) || looks > 5)
                    && let Err(error) = accounts.reconcile().await
                {
                    tracing::debug!(%error, "the sinks are not in line with the log yet");
                }
            } else {
                looks = 0;
            }
            let log = keeper.current();
            if log.has_lost_records() && registered_for != log.epoch {
                let registered =
                    sinks.iter().map(|sink| register((link, records, keeper), sink, instance, *partitions));
                match futures_util::future::try_join_all(registered).await {
                    Ok(_) => registered_for = log.epoch,
                    Err(error) => tracing::debug!(%error, "sinks have no records yet"),
                }
            }
            let _ = tokio::time::timeout(FOLLOW, changed.changed()).await;
        }
    }

    /// Also of sinks that are not in the settings any more: they hold what they have not had, until an operator drops them.
    async fn remake_lost(&self, accounts: &Accounts<'_>) -> Result<(), NatsError> {
        for name in accounts.lost_sinks().await? {
            let settings = self.0.sinks.iter().find(|sink| sink.name == name);
            accounts.remake(&name, settings.is_some_and(|sink| sink.required)).await?;
        }
        Ok(())
    }

    /// Servers have let consumers starve that had messages (nats-server#8036): then nobody is pinned, and nobody delivers.
    /// One receiver of those with the sink looks for that.
    async fn watch(self) {
        let Inner { partitions, lanes, .. } = &*self.0;
        let mut ticks = ticks(WATCH);
        // The cursor of a partition that has something to deliver, since when it is there.
        let mut stuck: HashMap<(Arc<str>, u16), (u64, Instant)> = HashMap::new();
        loop {
            ticks.tick().await;
            for lane in lanes {
                if !self.is_first(Some(lane.shelf.sink())) {
                    stuck.retain(|(sink, _), _| sink != lane.shelf.sink());
                    continue;
                }
                for at in (0..*partitions).filter(|at| !lane.shelf.holds(*at)) {
                    let key = (Arc::clone(lane.shelf.sink()), at);
                    match self.starving(lane, at).await {
                        Some(Starving { paused: true, .. }) => {
                            stuck.remove(&key);
                            self.revive(lane, at, "was paused, which a sink's `enabled = false` is for,").await;
                        }
                        Some(Starving { cursor, .. }) => {
                            let (was, since) = *stuck.entry(key.clone()).or_insert((cursor, Instant::now()));
                            if was != cursor {
                                stuck.insert(key, (cursor, Instant::now()));
                            } else if since.elapsed() >= STARVED {
                                stuck.remove(&key);
                                self.revive(lane, at, "did not give what it had,").await;
                            }
                        }
                        None => _ = stuck.remove(&key),
                    }
                }
            }
        }
    }

    /// A partition that has something to deliver, of which its consumer says nothing.
    async fn starving(&self, lane: &Common, at: u16) -> Option<Starving> {
        let Inner { link, records, keeper, .. } = &*self.0;
        let record = records.last_known(&names::sink(lane.shelf.sink()))?;
        let sink = Sink::read(&record.value).ok()?;
        let cursor = sink::known_place(records, &keeper.current(), lane.shelf.sink(), &sink, at).cursor();
        let names = link.names();
        let next = From::Sequence(cursor + 1);
        let found = link.read(names.events(), &names.subject(at), next, 1, 1).await.ok()?;
        if found.messages.is_empty() {
            return None;
        }
        let info = consumer::info(link, lane.shelf.sink(), at).await.ok()??;
        (info.paused || info.is_idle()).then_some(Starving { cursor, paused: info.paused })
    }

    async fn revive(&self, lane: &Common, at: u16, why: &str) {
        let (link, sink) = (&self.0.link, lane.shelf.sink());
        tracing::warn!(sink = &**sink, partition = at, "a consumer {why} and is made again");
        let revived = async {
            consumer::delete(link, sink, at).await?;
            lease::remake(lane, at).await
        };
        if let Err(error) = revived.await {
            tracing::warn!(sink = &**sink, partition = at, %error, "a consumer that does not give what it has cannot be made again");
        }
    }

    /// Lets events yield while the stream is full.
    async fn evict(self, mut full: watch::Receiver<bool>) {
        let optional: Vec<&Arc<Common>> = self.0.lanes.iter().filter(|lane| !self.is_required(lane)).collect();
        let mut log_limit = LineLimit::new(1, LOGGED_EVERY);
        while full.wait_for(|full| *full).await.is_ok() {
            let log = self.0.keeper.current();
            let through = self.yields_through(&log).await.unwrap_or(0);
            // Sequences of another log.
            let through = if log.is(&self.0.keeper.current()) { through } else { 0 };
            let idle = self.known().into_iter().filter(|(name, sink)| !sink.required && !self.has_lane(name));
            let idle: Vec<(String, Sink)> = idle.collect();
            let any = !optional.is_empty() || !idle.is_empty();
            if any && through > 0 && log_limit.take().is_some() {
                let lanes = optional.iter().map(|lane| &**lane.shelf.sink());
                let sinks: Vec<&str> = lanes.chain(idle.iter().map(|(name, _)| &**name)).collect();
                tracing::warn!(
                    sinks = sinks.join(" "),
                    "the journal is full: sinks that are not required lose undelivered events, counted as evicted"
                );
            }
            let let_yield = |through| {
                for lane in &optional {
                    lane.evict.store(through, Ordering::Relaxed);
                    lane.shelf.call_all();
                }
            };
            let_yield(through);
            for (name, _) in idle.iter().filter(|_| self.is_first(None)) {
                for at in 0..self.0.partitions {
                    if let Err(error) = self.evict_idle(name, &log, at, through).await {
                        tracing::debug!(sink = name, partition = at, error, "nothing can be evicted");
                    }
                }
            }
            sleep(EVICT).await;
            if !*full.borrow() {
                let_yield(0);
            }
        }
    }

    /// The sequence through which events have to yield: the oldest of the stream, unless a required sink holds them anyway.
    async fn yields_through(&self, log: &Log) -> Result<u64, NatsError> {
        let Inner { link, records, partitions, .. } = &*self.0;
        let names = link.names();
        let state = link.info(names.events()).await?.state;
        let mut through = state.first_sequence + (state.last_sequence + 1).saturating_sub(state.first_sequence) / PART;
        for (name, sink) in self.known().into_iter().filter(|(_, sink)| sink.required) {
            for at in 0..*partitions {
                let cursor = sink::known_place(records, log, &name, &sink, at).cursor();
                if cursor >= through {
                    continue;
                }
                let next = link.read(names.events(), &names.subject(at), From::Sequence(cursor + 1), 1, 1).await?;
                if let Some(next) = next.messages.first() {
                    through = through.min(next.sequence - 1);
                }
                if through < state.first_sequence {
                    return Ok(0);
                }
            }
        }
        Ok(through)
    }

    /// The same for a sink without a lane here. Should another receiver have one, it takes the partition over again.
    async fn evict_idle(&self, sink: &str, log: &Log, at: u16, through: u64) -> Result<(), String> {
        let Inner { link, records, instance, .. } = &*self.0;
        let (names, key) = (link.names(), names::place(sink, at));
        let place = sink::place(records, log, sink, at).await;
        let (mut share, revision, _) = place.map_err(|error| error.to_string())?;
        let mut previous = share.cursor();
        let mut evicted = false;
        while previous < through {
            let next = From::Sequence(previous + 1);
            let read = link.read(names.events(), &names.subject(at), next, AT_A_TIME.0, AT_A_TIME.1).await;
            let batch = read.map_err(|error| error.to_string())?;
            for stored in batch.messages.iter().take_while(|stored| stored.sequence <= through) {
                evicted |= share.settle(previous, stored.sequence, Settled::Evicted);
                previous = stored.sequence;
            }
            if batch.pending == 0 || batch.messages.last().is_none_or(|stored| stored.sequence > previous) {
                break;
            }
        }
        if !evicted {
            return Ok(());
        }
        share.hand_over(instance);
        let json = share.write().map_err(|error| error.to_string())?;
        records.put(&key, revision, json.into()).await.map(drop).map_err(|error| error.to_string())
    }

    fn has_lane(&self, sink: &str) -> bool {
        self.0.lanes.iter().any(|lane| **lane.shelf.sink() == *sink)
    }

    /// Whether this receiver is the one of those that live, and deliver to a sink, which does what one has to do.
    fn is_first(&self, sink: Option<&str>) -> bool {
        replicas::is_first(&self.0.records, sink, &self.0.instance)
    }

    fn is_required(&self, lane: &Common) -> bool {
        self.0.sinks.iter().any(|sink| sink.name == **lane.shelf.sink() && sink.required)
    }
}

/// A partition that nobody delivers.
struct Starving {
    /// Where it stands.
    cursor: u64,
    /// An operator has paused its consumer.
    paused: bool,
}

/// Makes the sink's record, unless there is one.
async fn register(
    (link, records, keeper): (&Link, &Records, &Keeper),
    settings: &config::Sink,
    instance: &str,
    partitions: u16,
) -> Result<(), NatsError> {
    let (name, key) = (&settings.name, names::sink(&settings.name));
    loop {
        let (sink, revision, is_all) = match sink::read(records, name).await? {
            Some((sink, _)) if sink.required == settings.required => return keeper.has_registered(name).await,
            Some((sink, revision)) => (Sink { required: settings.required, ..sink }, revision, false),
            None if keeper.has_sink(name).await? => {
                Accounts { link, records, keeper, instance, partitions }.remake(name, settings.required).await?;
                continue;
            }
            None => {
                // An event that is published from then on says so.
                keeper.registers().await?;
                let log = keeper.current();
                let seen = Sight::of(&link.info(link.names().events()).await?);
                // The record of one that is not new may be lost.
                let is_all = settings.start == Start::Earliest || log.owes(seen.first);
                let first = if is_all { seen.first.max(1) } else { seen.last + 1 };
                (Sink::new(first, settings.required, log.epoch), 0, is_all)
            }
        };
        let json = sink.write().map_err(|error| NatsError::Unavailable(error.to_string()))?;
        match records.put(&key, revision, json.into()).await {
            Ok(made) => {
                if revision == 0 {
                    // Any there are know how far one of that name had come whose record is lost.
                    let deleted = (0..partitions).map(|at| consumer::delete(link, name, at));
                    stream::iter(deleted).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
                }
                if is_all {
                    past_purges(link, records, &key, sink, made).await?;
                }
                return keeper.has_registered(name).await;
            }
            // Somebody else was faster.
            Err(PutError::Stale) => {}
            Err(PutError::Unavailable(reason)) => return Err(NatsError::Unavailable(reason)),
        }
    }
}

/// What was purged while nobody knew of the sink, it cannot have: from its record on, nothing more is.
async fn past_purges(
    link: &Link,
    records: &Records,
    key: &str,
    mut sink: Sink,
    mut revision: u64,
) -> Result<(), NatsError> {
    loop {
        let first = link.info(link.names().events()).await?.state.first_sequence;
        if first <= sink.first {
            return Ok(());
        }
        sink.first = first;
        let json = sink.write().map_err(|error| NatsError::Unavailable(error.to_string()))?;
        revision = match records.put(key, revision, json.into()).await {
            Ok(revision) => revision,
            Err(error) => return Err(NatsError::Unavailable(error.to_string())),
        };
    }
}

/// What is known of a sink's partitions that had an owner.
fn shares(records: &Records, sink: &str) -> Vec<Share> {
    let known = records.known(&format!("place.{sink}."));
    known.iter().filter_map(|(_, record)| Share::read(&record.value).ok()).collect()
}

fn late(error: impl std::fmt::Display) -> Refused {
    tracing::warn!(%error, "what an operator asked for cannot be written");
    Refused::Late
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
