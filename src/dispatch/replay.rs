//! Replays: events that are still kept go to one sink once more, because an operator wants it.
//!
//! A replay reads the journal by itself and hands its events to the sink's lane, which delivers them when it has nothing
//! else to do, marked as replayed. They are counted here and not in the sink's account. How far it has come is kept with
//! the journal, so that it goes on after a restart; then the copies of a second may come once more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Filter;
use crate::config;
use crate::journal::{Event, Journal, Refused, Scan, millis};

/// Where the journal keeps the replays.
const NOTE: &str = "replays";
/// Replays that are remembered after their end.
const REMEMBERED: usize = 20;
/// Events handed to the lane at a time, at most…
const AT_A_TIME: usize = 100;
/// …and about how many bytes of them are read for it.
const BYTES_AT_A_TIME: usize = 4 << 20;
/// How often progress is written down.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Events a second, unless told otherwise.
pub const DEFAULT_RATE: f64 = 1000.0;

/// Events for a lane to deliver once more.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) events: Vec<Event>,
    /// Dropped when nobody wants them any more.
    pub(super) done: oneshot::Sender<Done>,
}

/// What became of [`Copies`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) delivered: u64,
    /// The target will never take them, or the attempts have ended.
    pub(super) rejected: u64,
}

/// What to replay.
#[derive(Debug, Clone)]
pub struct Request {
    pub sink: String,
    pub from: Bound,
    /// The last one, included.
    pub to: Bound,
    /// On top of the sink's own filter.
    pub filter: config::Filter,
    /// Events a second, at most.
    pub rate: f64,
}

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The oldest event that is kept, or the newest one now.
    End,
    Sequence(u64),
    /// Of receipt.
    Time(SystemTime),
}

/// How a replay is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub id: u64,
    pub sink: String,
    pub state: State,
    /// The range, both ends included.
    pub first: u64,
    pub last: u64,
    /// Everything before this sequence is done.
    pub next: u64,
    pub delivered: u64,
    /// Left out by a filter.
    pub filtered: u64,
    /// Not taken by the target; they are no dead letters.
    pub rejected: u64,
    /// Not kept any more when their turn came.
    pub gone: u64,
    /// Events a second, at most.
    pub rate: f64,
    /// Milliseconds since 1970.
    pub started_at: u64,
    pub ended_at: Option<u64>,
    /// Received in this time, milliseconds since 1970, both ends included.
    received_from: Option<u64>,
    received_to: Option<u64>,
    filter: config::Filter,
    /// The identity of the log whose sequences these are, where there can be others.
    #[serde(default)]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
    Done,
    Cancelled,
}

/// Why there is no such replay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("no sink of this name is running: it has to be configured and enabled")]
    NoSink,
    #[error("replay {0} to this sink is not at its end yet: resume it, or cancel it first")]
    Busy(u64),
    #[error("the range holds no event that is still kept")]
    Empty,
    #[error("there is no replay of this number")]
    Unknown,
    #[error("it is at its end")]
    Ended,
    #[error(transparent)]
    Journal(#[from] Refused),
}

/// The way to a lane.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) sink: String,
    pub(super) copies: mpsc::Sender<Copies>,
    /// The sink's own.
    pub(super) filter: Arc<Filter>,
}

/// All replays. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replays {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    lanes: Vec<Way>,
    tracker: TaskTracker,
    finish: CancellationToken,
    known: Mutex<BTreeMap<u64, Known>>,
    /// One writer of the note at a time, so that an older state never follows a newer one.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    progress: Progress,
    /// Stops the task that runs it; `None` while there is no such task.
    stop: Option<CancellationToken>,
}

impl Replays {
    /// Goes on with what was running when the last process ended.
    pub(super) fn new(journal: Journal, lanes: Vec<Way>, tracker: TaskTracker, finish: CancellationToken) -> Self {
        let note = journal.read_note(NOTE);
        let found: Vec<Progress> = note.and_then(|note| serde_json::from_str(&note).ok()).unwrap_or_default();
        let known = found.into_iter().map(|progress| (progress.id, Known { progress, stop: None }));
        let inner = Inner {
            known: Mutex::new(known.collect()),
            journal,
            lanes,
            tracker,
            finish,
            writing: tokio::sync::Mutex::default(),
        };
        let replays = Self { inner: Arc::new(inner) };
        for progress in replays.list().into_iter().filter(|progress| progress.state == State::Running) {
            if let Err(error) = replays.run(progress.id) {
                tracing::warn!(replay = progress.id, sink = progress.sink, %error, "a replay does not go on");
                replays.inner.known().entry(progress.id).and_modify(|known| known.progress.state = State::Paused);
            }
        }
        let adopting = replays.clone().adopt();
        let finish = replays.inner.finish.clone();
        replays.inner.tracker.spawn(finish.run_until_cancelled_owned(adopting));
        replays
    }

    /// Goes on with the replays of receivers that do not live any more, as long as there can be any.
    async fn adopt(self) {
        while let Some((key, text)) = self.inner.journal.adopted().await {
            if key != NOTE {
                continue;
            }
            let found: Vec<Progress> = serde_json::from_str(&text).unwrap_or_default();
            loop {
                found.iter().filter(|progress| !progress.is_over()).for_each(|progress| self.go_on_with(progress));
                // To ask for the next note says that this one is written down.
                let Err(error) = self.write().await else { break };
                tracing::warn!(%error, "cannot write down the replays of another receiver");
                tokio::time::sleep(WRITE_EVERY).await;
            }
        }
    }

    /// Goes on with another receiver's replay, unless it is known here.
    fn go_on_with(&self, progress: &Progress) {
        let (id, runs) = (progress.id, progress.state == State::Running);
        let paused = Progress { state: State::Paused, ..progress.clone() };
        self.inner.known().entry(id).or_insert(Known { progress: paused, stop: None });
        if runs && let Err(error) = self.run(id) {
            tracing::warn!(replay = id, %error, "a replay of another receiver does not go on");
        }
    }

    /// Begins a replay.
    ///
    /// # Errors
    /// [`ReplayError`] says what stands in the way.
    pub async fn start(&self, request: Request) -> Result<Progress, ReplayError> {
        let Request { sink, from, to, filter, rate } = request;
        self.inner.lane(&sink)?;
        let log = self.inner.journal.log_identity();
        let status = self.inner.journal.status();
        let (oldest, newest) = (status.first_sequence, status.last_sequence);
        let first = match from {
            Bound::End => oldest,
            Bound::Sequence(sequence) => sequence.max(oldest),
            Bound::Time(time) => self.inner.journal.sequence_at(time).await?.max(oldest),
        };
        let last = match to {
            // What came in until then may have been written a little later; each event's own time is looked at.
            Bound::End | Bound::Time(_) => newest,
            Bound::Sequence(sequence) => sequence.min(newest),
        };
        let time = |bound| if let Bound::Time(time) = bound { Some(millis(time)) } else { None };
        if first > last {
            return Err(ReplayError::Empty);
        }
        busy_with(&self.inner.known(), &sink)?;
        let shared = self.inner.journal.number(NOTE).await?;
        let progress = {
            let mut known = self.inner.known();
            busy_with(&known, &sink)?;
            let id = shared.unwrap_or_else(|| known.keys().next_back().map_or(1, |last| last + 1));
            let progress = Progress {
                id,
                sink,
                state: State::Paused,
                first,
                last,
                next: first,
                delivered: 0,
                filtered: 0,
                rejected: 0,
                gone: 0,
                rate,
                started_at: millis(SystemTime::now()),
                ended_at: None,
                received_from: time(from),
                received_to: time(to),
                filter,
                log,
            };
            known.insert(id, Known { progress: progress.clone(), stop: None });
            let over: Vec<u64> =
                known.iter().filter(|(_, known)| known.progress.is_over()).map(|(&id, _)| id).collect();
            for id in over.iter().take(over.len().saturating_sub(REMEMBERED)) {
                known.remove(id);
            }
            progress
        };
        let started = self.resume(progress.id).await;
        if started.is_err() {
            self.let_go(|id| id == progress.id);
        }
        started
    }

    /// All that are remembered, by their ids.
    #[must_use]
    pub fn list(&self) -> Vec<Progress> {
        self.inner.known().values().map(|known| known.progress.clone()).collect()
    }

    /// Stops a replay where it is.
    ///
    /// # Errors
    /// [`ReplayError::Unknown`], [`ReplayError::Ended`], or that this cannot be written down.
    pub async fn pause(&self, id: u64) -> Result<Progress, ReplayError> {
        self.stop(id, State::Paused).await
    }

    /// Stops a replay for good.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub async fn cancel(&self, id: u64) -> Result<Progress, ReplayError> {
        self.stop(id, State::Cancelled).await
    }

    /// Goes on with a replay that was paused; one that is running goes on running.
    ///
    /// # Errors
    /// As [`pause`](Self::pause), or that its sink is not there.
    pub async fn resume(&self, id: u64) -> Result<Progress, ReplayError> {
        self.run(id)?;
        self.write().await?;
        self.progress(id)
    }

    /// How far one is.
    ///
    /// # Errors
    /// [`ReplayError::Unknown`].
    pub fn progress(&self, id: u64) -> Result<Progress, ReplayError> {
        self.inner.known().get(&id).map(|known| known.progress.clone()).ok_or(ReplayError::Unknown)
    }

    /// Starts the task of a replay.
    fn run(&self, id: u64) -> Result<(), ReplayError> {
        let (run, stop) = {
            let mut known = self.inner.known();
            let Known { progress, stop } = known.get_mut(&id).ok_or(ReplayError::Unknown)?;
            if progress.is_over() {
                return Err(ReplayError::Ended);
            }
            if stop.is_some() {
                return Ok(());
            }
            let way = self.inner.lane(&progress.sink)?.clone();
            let token = stop.insert(self.inner.finish.child_token()).clone();
            progress.state = State::Running;
            let wanted = Filter::new(&progress.filter);
            (Run { replays: self.clone(), progress: progress.clone(), wanted, way }, token)
        };
        self.inner.tracker.spawn(async move {
            // What a lane or the journal cannot give any more goes on in the next life.
            let _ = stop.run_until_cancelled(run.run()).await;
        });
        Ok(())
    }

    async fn stop(&self, id: u64, state: State) -> Result<Progress, ReplayError> {
        {
            let mut known = self.inner.known();
            let Known { progress, stop } = known.get_mut(&id).ok_or(ReplayError::Unknown)?;
            if progress.is_over() {
                return Err(ReplayError::Ended);
            }
            if let Some(stop) = stop.take() {
                stop.cancel();
            }
            progress.state = state;
            progress.ended_at = (state == State::Cancelled).then(|| millis(SystemTime::now()));
        }
        self.write().await?;
        self.progress(id)
    }

    /// Lets others see how far a replay is, unless it was stopped meanwhile.
    fn show(&self, progress: &Progress) {
        if let Some(known) = self.inner.known().get_mut(&progress.id)
            && known.progress.state == State::Running
        {
            known.progress = progress.clone();
        }
    }

    /// Writes down how far all of them are.
    async fn write(&self) -> Result<(), Refused> {
        let _one = self.inner.writing.lock().await;
        let note = serde_json::to_string(&self.list()).ok();
        let written = self.inner.journal.note(NOTE, note).await;
        if written == Err(Refused::Failed) {
            // Another receiver goes on with them, or the next process does.
            self.let_go(|_| true);
        }
        written
    }

    /// Stops and forgets these, unless they are over.
    fn let_go(&self, which: impl Fn(u64) -> bool) {
        let mut known = self.inner.known();
        for (_, Known { stop, .. }) in known.extract_if(.., |id, known| which(*id) && !known.progress.is_over()) {
            stop.iter().for_each(CancellationToken::cancel);
        }
    }
}

impl Inner {
    fn lane(&self, sink: &str) -> Result<&Way, ReplayError> {
        self.lanes.iter().find(|way| way.sink == sink).ok_or(ReplayError::NoSink)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One replay a sink at a time.
fn busy_with(known: &BTreeMap<u64, Known>, sink: &str) -> Result<(), ReplayError> {
    let busy = known.values().find(|known| known.progress.sink == sink && !known.progress.is_over());
    busy.map_or(Ok(()), |busy| Err(ReplayError::Busy(busy.progress.id)))
}

/// A replay under way.
struct Run {
    replays: Replays,
    progress: Progress,
    wanted: Filter,
    way: Way,
}

/// The lane or the journal has ended.
struct Ended;

impl Run {
    async fn run(mut self) -> Result<(), Ended> {
        let mut scan = self.replays.inner.journal.scan(self.progress.next);
        let mut pace = Pace::new(self.progress.rate);
        let mut written = Instant::now();
        'log: while self.progress.next <= self.progress.last {
            let mut events = Vec::new();
            // Events that came one by one would go one by one, each after the answer to the one before.
            let mut bytes = 0;
            while events.len() < pace.at_a_time && bytes < BYTES_AT_A_TIME && scan.next() <= self.progress.last {
                let Some(some) = self.read(&mut scan).await? else {
                    // These sequences are other events'.
                    self.pass_over(self.progress.last + 1);
                    break 'log;
                };
                bytes += some.iter().map(|event| event.body().len()).sum::<usize>();
                events.extend(some);
            }
            events.retain(|event| event.sequence() <= self.progress.last);
            for events in events.chunks(pace.at_a_time) {
                self.copy(events, &mut pace).await?;
                self.replays.show(&self.progress);
                if written.elapsed() >= WRITE_EVERY {
                    written = Instant::now();
                    self.write_down().await;
                }
            }
            self.pass_over(scan.next().min(self.progress.last + 1));
        }
        self.progress.ended_at = Some(millis(SystemTime::now()));
        self.progress.state = State::Done;
        self.replays.show(&self.progress);
        self.write_down().await;
        let Progress { id, sink, delivered, filtered, rejected, gone, .. } = &self.progress;
        tracing::info!(replay = id, sink, delivered, filtered, rejected, gone, "replay done");
        Ok(())
    }

    /// What comes next; `None` once the log is another one.
    async fn read(&self, scan: &mut Scan) -> Result<Option<Vec<Event>>, Ended> {
        let journal = &self.replays.inner.journal;
        let log = self.progress.log.as_deref();
        tokio::select! {
            biased;
            () = journal.log_changed(log) => Ok(None),
            some = scan.read() => some.map(Some).map_err(|_| Ended),
        }
    }

    /// Has the lane deliver those that are wanted.
    async fn copy(&mut self, events: &[Event], pace: &mut Pace) -> Result<(), Ended> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        self.pass_over(first.sequence());
        self.progress.gone += last.sequence() + 1 - first.sequence() - events.len() as u64;
        let wanted =
            |event: &&Event| self.progress.wants(event) && self.wanted.passes(event) && self.way.filter.passes(event);
        let copies: Vec<Event> = events.iter().filter(wanted).map(|event| event.clone().replay()).collect();
        self.progress.filtered += (events.len() - copies.len()) as u64;
        if !copies.is_empty() {
            pace.wait(copies.len()).await;
            let (done, outcome) = oneshot::channel();
            self.way.copies.send(Copies { events: copies, done }).await.map_err(|_| Ended)?;
            let Done { delivered, rejected } = outcome.await.map_err(|_| Ended)?;
            self.progress.delivered += delivered;
            self.progress.rejected += rejected;
        }
        self.progress.next = last.sequence() + 1;
        Ok(())
    }

    /// Goes on at `next`; what lies between is not kept any more.
    fn pass_over(&mut self, next: u64) {
        self.progress.gone += next.saturating_sub(self.progress.next);
        self.progress.next = self.progress.next.max(next);
    }

    async fn write_down(&self) {
        if let Err(error) = self.replays.write().await {
            tracing::warn!(replay = self.progress.id, %error, "cannot write down how far a replay is");
        }
    }
}

/// Keeps to a number of events a second.
struct Pace {
    per_event: Duration,
    at_a_time: usize,
    due: Instant,
}

impl Pace {
    fn new(rate: f64) -> Self {
        let per_event = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        // Ten steps a second at least look even enough.
        let tenth = Duration::from_millis(100).as_nanos() / per_event.as_nanos().max(1);
        let at_a_time = usize::try_from(tenth).unwrap_or(AT_A_TIME).clamp(1, AT_A_TIME);
        Self { per_event, at_a_time, due: Instant::now() }
    }

    async fn wait(&mut self, events: usize) {
        tokio::time::sleep_until(self.due).await;
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        self.due = self.due.max(Instant::now()) + self.per_event.saturating_mul(events);
    }
}

impl Progress {
    fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Cancelled)
    }

    fn wants(&self, event: &Event) -> bool {
        let received = millis(event.received_at());
        self.received_from.is_none_or(|from| from <= received) && self.received_to.is_none_or(|to| received <= to)
    }
}
