//! Looks at the streams every second, and purges what every sink has settled and nobody needs any more. Every receiver does
//! so: twice is the same as once.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::Info;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fitness::{self, Kind};
use super::horizon::{Extent, Horizon};
use super::link::{Link, NatsError};
use super::monitor;
use super::records::Records;
use super::spawn;
use crate::config::{self, Config};

const INTERVAL: Duration = Duration::from_secs(1);
/// A stream that does not answer so long stores nothing either.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// All the reads before a purge.
const PURGE_WITHIN: Duration = Duration::from_secs(5);
/// After so long it is tried again whether there is room, if nothing else shows it.
const FULL_FOR: Duration = Duration::from_secs(5);
const SYNC_INTERVAL: Duration = Duration::from_secs(60);

/// The streams as they were a second ago, or longer while they do not answer.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Of the events that are kept; one more than the last when none is.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) bytes: u64,
    /// The stream's limit; 0 is none.
    pub(super) max_bytes: u64,
    /// When the oldest was stored.
    pub(super) oldest: Option<SystemTime>,
    /// Whether events can be stored as the journal promises; why not, else.
    pub(super) healthy: Result<(), String>,
    pub(super) dead: Stock,
    pub(super) quarantine: Stock,
    /// Whether a server has events on its disk before it acknowledges them; unknown without `monitor_url`.
    pub(super) sync_always: Option<bool>,
}

/// What is in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stock {
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// The last sequence ever given.
    pub(super) newest: u64,
}

/// Owned by its task.
pub(super) struct Janitor {
    link: Link,
    records: Records,
    config: Config,
    settings: config::Nats,
    seen: watch::Sender<Seen>,
    tail: watch::Sender<u64>,
    full: watch::Sender<bool>,
    /// Since when the stream is full, and how many bytes it had then.
    full_since: Option<(Instant, u64)>,
    /// What was wrong with the streams' settings when it was told last.
    told: Vec<String>,
}

impl Janitor {
    /// Looks for the first time, then goes on until `ending`. `tail` follows the stream's last sequence; `full` is taken
    /// back when there may be room again.
    ///
    /// # Errors
    /// When the streams cannot be seen.
    pub(super) async fn start(
        link: &Link,
        records: &Records,
        config: &Config,
        tail: &watch::Sender<u64>,
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
        let janitor = Self {
            link: link.clone(),
            records: records.clone(),
            config: config.clone(),
            settings,
            seen,
            tail: tail.clone(),
            full: full.clone(),
            full_since: None,
            told: Vec::new(),
        };
        spawn(tasks, ending.run_until_cancelled_owned(janitor.run()));
        Ok(receiver)
    }

    async fn run(mut self) {
        // Not all receivers at once.
        let start = Instant::now() + INTERVAL.mul_f64(fastrand::f64());
        let mut ticks = interval_at(start, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            let Some(events) = self.look().await else { continue };
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
            Err(error) => Err(error.to_string()),
            Ok(info) => self.health(info),
        };
        self.tell(unfit);
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
        let last = events.state.last_sequence;
        self.tail.send_if_modified(|tail| {
            let is_newer = *tail < last;
            *tail = last.max(*tail);
            is_newer
        });
        self.follow_room(&events);
        Some(events)
    }

    fn health(&self, events: &Info) -> Result<(), String> {
        // A server alone has no leader to tell of.
        if events.cluster.as_ref().is_some_and(|cluster| cluster.name.is_some() && cluster.leader.is_none()) {
            return Err(format!("{} has no leader", events.config.name));
        }
        match self.problems(Kind::Events, events) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(problems.join("; ")),
        }
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
        let largest = self.config.listen.max_body_bytes.saturating_add(fitness::BESIDE_THE_BODY);
        let has_room = !extent.is_nearly_full()
            || u64::try_from(largest).is_ok_and(|largest| bytes.saturating_add(largest) < extent.max_bytes);
        if bytes < then || (has_room && since.elapsed() >= FULL_FOR) {
            self.full.send_replace(false);
            self.full_since = None;
        }
    }

    /// Below what sequence and how many events were purged.
    async fn purge(&self, extent: Extent, seen: Instant) -> Result<Option<(u64, u64)>, NatsError> {
        let horizon = Horizon {
            link: &self.link,
            records: &self.records,
            partitions: self.settings.partitions,
            retention: self.config.journal.retention,
            window: self.settings.duplicate_window,
        };
        let Some(below) = horizon.find(extent).await? else { return Ok(None) };
        if seen.elapsed() > PURGE_WITHIN {
            // Perhaps the process was stopped: there may be a sink by now that is to have more.
            return Err(NatsError::Unavailable("what was read is too old".to_owned()));
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
