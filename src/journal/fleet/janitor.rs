//! Looks at the streams every second, and purges what every sink has settled and nobody needs any more. Every receiver does
//! so: twice is the same as once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::Info;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::error::NatsError;
use super::cluster::fitness;
use super::cluster::fitness::Kind;
use super::cluster::link::Link;
use super::cluster::monitor;
use super::cluster::records::Records;
use super::cluster::spawn;
use super::horizon::{Extent, Horizon};
use super::keeper::Keeper;
use super::replicas;
use super::stock;
use crate::config::{self, Config};

const INTERVAL: Duration = Duration::from_secs(1);
/// A stream that does not answer so long stores nothing either.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// All the reads before a purge.
const PURGE_WITHIN: Duration = Duration::from_secs(5);
/// All the reads that compare the log with the stream.
const COMPARE_WITHIN: Duration = Duration::from_secs(10);
/// After so long it is tried again whether there is room, if nothing else shows it.
const FULL_FOR: Duration = Duration::from_secs(5);
const SYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Why events cannot be stored as the journal promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// Nobody answers, or nobody leads.
    Away(String),
    /// A stream or a server was set otherwise, while receivers run.
    Unfit(String),
}

impl Ailment {
    pub(crate) fn text(&self) -> &str {
        let (Self::Away(text) | Self::Unfit(text)) = self;
        text
    }
}

/// The streams as they were a second ago, or longer while they do not answer.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Of the events that are kept; one more than the last when none is.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) bytes: u64,
    /// The stream's limit; 0 is none.
    pub(crate) max_bytes: u64,
    /// When the oldest was stored.
    pub(crate) oldest: Option<SystemTime>,
    /// Whether events can be stored as the journal promises; why not, else.
    pub(crate) healthy: Result<(), Ailment>,
    pub(crate) dead: Stock,
    pub(crate) quarantine: Stock,
    /// Whether a server has events on its disk before it acknowledges them; unknown without `monitor_url`.
    pub(crate) sync_always: Option<bool>,
}

/// What is in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stock {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// The last sequence ever given.
    pub(crate) newest: u64,
}

/// Owned by its task.
pub(crate) struct Janitor {
    link: Link,
    records: Records,
    keeper: Keeper,
    instance: Arc<str>,
    config: Config,
    settings: config::Nats,
    seen: watch::Sender<Seen>,
    full: watch::Sender<bool>,
    /// Since when the stream is full, and how many bytes it had then.
    full_since: Option<(Instant, u64)>,
    /// What was wrong with the streams' settings when it was told last.
    told: Vec<String>,
    /// Of the last look: which connection it was, and who led the stream. Where that changes, the stream may have, too.
    led: Option<(u64, Option<String>)>,
    /// The dead letters and the quarantine as they were seen, until that is counted.
    stock_seen: (Option<stock::Sight>, Option<stock::Sight>),
}

impl Janitor {
    /// Looks for the first time, then goes on until `ending`. `full` is taken back when there may be room again.
    ///
    /// # Errors
    /// When the streams cannot be seen.
    pub(crate) async fn start(
        (link, records, keeper): (&Link, &Records, &Keeper),
        (config, instance): (&Config, Arc<str>),
        full: &watch::Sender<bool>,
        tasks: &TaskTracker,
        ending: CancellationToken,
    ) -> Result<watch::Receiver<Seen>, NatsError> {
        let Some(settings) = config.journal.nats.clone() else {
            return Err(NatsError::Unfit(vec!["journal.nats: is not set".to_owned()]));
        };
        let names = link.names();
        let (events, dead, quarantine) =
            tokio::try_join!(link.info(names.events()), link.info(names.dead()), link.info(names.quarantine()))?;
        let mut first = Seen {
            first: 1,
            last: 0,
            bytes: 0,
            max_bytes: 0,
            oldest: None,
            healthy: Ok(()),
            dead: Stock::of(&dead),
            quarantine: Stock::of(&quarantine),
            sync_always: None,
        };
        first.note_events(&events);
        let (seen, receiver) = watch::channel(first);
        spawn(tasks, ending.clone().run_until_cancelled_owned(follow_sync(settings.clone(), seen.clone())));
        let mut janitor = Self {
            link: link.clone(),
            records: records.clone(),
            keeper: keeper.clone(),
            instance,
            config: config.clone(),
            settings,
            seen,
            full: full.clone(),
            full_since: None,
            told: Vec::new(),
            led: None,
            stock_seen: (Some(stock::Sight::of(&dead)), Some(stock::Sight::of(&quarantine))),
        };
        janitor.count_stock().await?;
        spawn(tasks, ending.run_until_cancelled_owned(janitor.run()));
        Ok(receiver)
    }

    async fn run(mut self) {
        // Not all receivers at once.
        let start = Instant::now() + INTERVAL.mul_f64(fastrand::f64());
        let mut ticks = interval_at(start, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let keeper = self.keeper.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = keeper.suspected() => {}
            }
            let (began, floor) = (Instant::now(), keeper.tail());
            let Some(events) = self.look().await else {
                // Whoever leads it next may have another one.
                self.led = None;
                continue;
            };
            if let Err(error) = self.compare(&events, floor).await {
                tracing::debug!(%error, "the log cannot be compared with the stream now");
                continue;
            }
            if let Err(error) = self.count_stock().await {
                tracing::debug!(%error, "what went from the dead letters and the quarantine is counted later");
            }
            let extent = Extent::of(&events.config, &events.state, *self.full.borrow());
            let purged = timeout(PURGE_WITHIN, self.purge(extent, began)).await;
            let purged = purged.unwrap_or_else(|_| Err(NatsError::Unavailable("no answer in time".to_owned())));
            match purged {
                Ok(None) => {}
                Ok(Some((below, count))) => tracing::debug!(below, count, "purged what every sink has settled"),
                // It is tried again in a second.
                Err(error) => tracing::debug!(%error, "nothing purged now"),
            }
        }
    }

    /// The stream of events, if it answers.
    async fn look(&mut self) -> Option<Info> {
        let names = self.link.names();
        // Each for itself: that one of the others has lost its leader does not keep events out.
        let info = async |name| {
            let late = || Err(NatsError::Unavailable("no answer in time".to_owned()));
            timeout(LOOK_WITHIN, self.link.info(name)).await.unwrap_or_else(|_| late())
        };
        let (events, dead, quarantine, state) =
            tokio::join!(info(names.events()), info(names.dead()), info(names.quarantine()), info(names.state()));
        let mut unfit = Vec::new();
        for (kind, info) in [
            (Kind::Events, &events),
            (Kind::DeadLetters, &dead),
            (Kind::Quarantine, &quarantine),
            (Kind::State, &state),
        ] {
            unfit.extend(info.iter().flat_map(|info| self.problems(kind, info)));
        }
        let healthy = match &events {
            Err(error) => Err(Ailment::Away(error.to_string())),
            Ok(info) => self.health(info),
        };
        self.tell(unfit);
        self.stock_seen = (dead.as_ref().ok().map(stock::Sight::of), quarantine.as_ref().ok().map(stock::Sight::of));
        self.seen.send_modify(|seen| {
            seen.healthy = healthy;
            if let Ok(events) = &events {
                seen.note_events(events);
            }
            if let Ok(dead) = &dead {
                seen.dead = Stock::of(dead);
            }
            if let Ok(quarantine) = &quarantine {
                seen.quarantine = Stock::of(quarantine);
            }
        });
        let events = events.ok()?;
        self.follow_room(&events);
        Some(events)
    }

    /// Whether the stream still holds the log that it held, of which `floor` was known before this look.
    async fn compare(&mut self, events: &Info, floor: u64) -> Result<(), NatsError> {
        let leader = events.cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        let led = Some((self.link.connects(), leader));
        if self.led != led {
            self.keeper.suspect();
        }
        let is_first = replicas::is_first(&self.records, None, &self.instance);
        timeout(COMPARE_WITHIN, self.keeper.look(events, floor, is_first))
            .await
            .unwrap_or_else(|_| Err(NatsError::Unavailable("no answer in time".to_owned())))?;
        self.led = led;
        Ok(())
    }

    /// Counts what went from the other streams by itself. One receiver does it.
    async fn count_stock(&mut self) -> Result<(), NatsError> {
        let older = replicas::have_older(&self.records);
        if !replicas::is_first(&self.records, None, &self.instance) {
            return Ok(());
        }
        if let Some(seen) = self.stock_seen.0.take() {
            let (names, parts) = (self.link.names(), (&self.link, &self.records));
            let stream = names.dead();
            let dead = (stock::DEAD_LETTERS, stream, &*names.letters(None));
            let gone = stock::look(parts, dead, &seen, older).await?;
            if gone > 0 {
                tracing::error!(stream, gone, "dead letters are gone that no receiver has deleted");
                self.keeper.lost(gone).await?;
            }
        }
        if let Some(seen) = self.stock_seen.1.take() {
            let (names, parts) = (self.link.names(), (&self.link, &self.records));
            stock::look(parts, (stock::QUARANTINE, names.quarantine(), &*names.bodies()), &seen, older).await?;
        }
        Ok(())
    }

    fn health(&self, events: &Info) -> Result<(), Ailment> {
        // A server alone has no leader to tell of.
        if events.cluster.as_ref().is_some_and(|cluster| cluster.name.is_some() && cluster.leader.is_none()) {
            return Err(Ailment::Away(format!("{} has no leader", events.config.name)));
        }
        let mut problems = self.problems(Kind::Events, events);
        problems.extend(fitness::of_payload(&self.link.client().server_info(), &self.config));
        if problems.is_empty() { Ok(()) } else { Err(Ailment::Unfit(problems.join("; "))) }
    }

    /// Whoever may change streams may do so while the receiver runs.
    fn problems(&self, kind: Kind, info: &Info) -> Vec<String> {
        let server = self.link.client().server_info();
        fitness::of_stream(kind, self.link.names(), &info.config, &server, &self.config, &self.settings).problems
    }

    fn tell(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.told.contains(problem)) {
            tracing::error!(problem, "a stream was changed, and does not keep the journal's promises any more");
        }
        self.told = problems;
    }

    /// Takes back that the stream is full, when it has fewer bytes than it had then, or when it is time to try again.
    fn follow_room(&mut self, events: &Info) {
        let bytes = events.state.bytes;
        if !*self.full.borrow() {
            self.full_since = None;
            return;
        }
        let (since, then) = *self.full_since.get_or_insert((Instant::now(), bytes));
        let extent = Extent::of(&events.config, &events.state, true);
        // Nothing else may show it: as long as it is full, nobody sends what could be stored.
        let largest = fitness::largest_message(self.config.listen.max_body_bytes);
        let has_room = !extent.is_nearly_full()
            || u64::try_from(largest).is_ok_and(|largest| bytes.saturating_add(largest) < extent.max_bytes);
        if bytes < then || (has_room && since.elapsed() >= FULL_FOR) {
            self.full.send_replace(false);
            self.full_since = None;
        }
    }

    /// Below what sequence and how many events were purged.
    async fn purge(&self, extent: Extent, seen: Instant) -> Result<Option<(u64, u64)>, NatsError> {
        let log = self.keeper.current();
        let horizon = Horizon {
            link: &self.link,
            records: &self.records,
            log: &log,
            partitions: self.settings.partitions,
            retention: self.config.journal.retention,
            window: self.settings.duplicate_window,
        };
        let Some(below) = horizon.find(extent).await? else { return Ok(None) };
        if seen.elapsed() > PURGE_WITHIN {
            // Perhaps the process was stopped: there may be a sink by now that is to have more.
            return Err(NatsError::Unavailable("what was read is too old".to_owned()));
        }
        self.keeper.purges(below).await?;
        if !self.keeper.current().is(&log) {
            return Err(NatsError::Unavailable("the log has changed".to_owned()));
        }
        let count = self.link.purge(self.link.names().events(), None, below).await?;
        Ok(Some((below, count)))
    }
}

impl Seen {
    fn note_events(&mut self, events: &Info) {
        let (config, state) = (&events.config, &events.state);
        self.last = state.last_sequence;
        self.first = if state.messages == 0 { state.last_sequence + 1 } else { state.first_sequence };
        self.bytes = state.bytes;
        self.max_bytes = u64::try_from(config.max_bytes).unwrap_or(0);
        self.oldest = (state.messages > 0).then(|| state.first_timestamp.into());
    }
}

impl Stock {
    fn of(info: &Info) -> Self {
        Self { count: info.state.messages, bytes: info.state.bytes, newest: info.state.last_sequence }
    }
}

async fn follow_sync(settings: config::Nats, seen: watch::Sender<Seen>) {
    loop {
        let sync_always = monitor::sync_always(&settings).await;
        seen.send_if_modified(|seen| std::mem::replace(&mut seen.sync_always, sync_always) != sync_always);
        tokio::time::sleep(SYNC_INTERVAL).await;
    }
}
