//! One sink's lane: reads on behalf of its sink, delivers, and says what became of each event.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::filter::Filter;
use super::health::Health;
use super::queue::{Chain, Item, Parcel, Queue};
use super::replay::{Copies, Done};
use super::told::{NotTaken, Told};
use crate::config::Retry;
use crate::journal::{Cursor, Event, Gone, Letter, Letters, Lost, Read, Refused, Settled, Settler};
use crate::shape;
use crate::sinks::{Failure, FailureKind, Ordering, Plan, Sink};
use crate::telemetry::Metrics;
use crate::traces::Deliveries;

/// Bytes an event takes in a request besides its own: the format, and what stands between two events.
const AROUND_EVENT: usize = 512;
/// Parcels that are written into the dead letters at a time, at most…
const MOST_BURYING: usize = 256;
/// …and events of one of them.
const AT_ONCE: usize = 32;
/// How soon a lane that may not deliver asks again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Lane<S> {
    cursor: Cursor,
    settler: Settler,
    /// Dead letters that an operator wants to be tried again.
    letters: Letters,
    /// Those that deliver nothing now.
    idle: Vec<S>,
    under_way: FuturesUnordered<BoxFuture<'static, Attempt<S>>>,
    /// Parcels that are being written into the dead letters.
    burying: FuturesUnordered<BoxFuture<'static, Burial>>,
    queue: Queue<Event>,
    ordering: Ordering,
    filter: Arc<Filter>,
    /// Hashes entities.
    hasher: RandomState,
    /// When the unsettled events in the queue were received, by sequence.
    received: BTreeMap<u64, SystemTime>,
    /// What an operator wants to be delivered once more, and what of it is under way.
    copies: mpsc::Receiver<Copies>,
    copying: Option<(oneshot::Sender<Done>, Done)>,
    finish: CancellationToken,
    health: Health,
    told: Told,
    /// The reason of the attempt that failed last, until nothing fails any more; and of the last dead letter that failed.
    failure: Option<String>,
    /// Why the event that was refused or given up last became a dead letter, until another one is delivered.
    refused: Option<String>,
    no_room: Option<String>,
    metrics: Arc<Metrics>,
    spans: Deliveries,
}

/// What came of a delivery.
struct Attempt<S> {
    sink: S,
    parcel: Parcel<Event>,
    result: Result<(), Failure>,
}

/// What came of writing a parcel into the dead letters: its first `buried` events are there.
struct Burial {
    parcel: Parcel<Event>,
    buried: usize,
    refused: Option<Refused>,
}

impl<S: Sink> Lane<S> {
    /// A lane with as many sinks as it may have deliveries under way.
    pub(super) fn new(
        cursor: Cursor,
        sinks: Vec<S>,
        (plan, retry): (Plan, Retry),
        filter: Arc<Filter>,
        (health, metrics, spans): (Health, Arc<Metrics>, Deliveries),
        copies: mpsc::Receiver<Copies>,
        finish: CancellationToken,
    ) -> Self {
        Self {
            told: Told::new(cursor.sink().into()),
            failure: None,
            refused: None,
            no_room: None,
            settler: cursor.settler(),
            letters: cursor.letters(),
            cursor,
            idle: sinks,
            under_way: FuturesUnordered::new(),
            burying: FuturesUnordered::new(),
            ordering: plan.ordering,
            queue: Queue::new(plan, retry),
            filter,
            hasher: RandomState::new(),
            received: BTreeMap::new(),
            copies,
            copying: None,
            finish,
            health,
            metrics,
            spans,
        }
    }

    /// Runs until the journal closes, or the lane is told to finish and has delivered what can be delivered.
    pub(super) async fn run(mut self) {
        loop {
            let wake = self.send_out();
            self.end_copies();
            self.tell();
            let finishing = self.finish.is_cancelled();
            if finishing {
                self.cursor.finish();
            }
            let reads = self.queue.has_room(self.cursor.next()) && !(finishing && self.cursor.caught_up());
            if finishing && self.under_way.is_empty() && self.burying.is_empty() && !reads {
                return;
            }
            tokio::select! {
                Some(attempt) = self.under_way.next() => self.judge(attempt).await,
                Some(burial) = self.burying.next() => self.buried(burial),
                read = read(&mut self.cursor, reads) => match read {
                    Ok(Read::Events(events)) => self.take_in(events).await,
                    Ok(Read::Lost(lost)) => self.withdraw(&lost),
                    Err(_) => return,
                },
                letters = self.letters.next(), if self.queue.letters() == 0 && !finishing => match letters {
                    Ok(letters) => self.take_letters(letters),
                    Err(_) => return,
                },
                Some(copies) = self.copies.recv(), if self.copying.is_none() && !finishing => self.take_copies(copies),
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
                () = self.finish.cancelled(), if !finishing => {}
            }
        }
    }

    /// Starts every delivery that may start; when to look again.
    fn send_out(&mut self) -> Option<Instant> {
        loop {
            if self.idle.is_empty() || self.burying.len() >= MOST_BURYING {
                return None;
            }
            if !self.cursor.may_deliver() {
                return Some(Instant::now() + ASK_AGAIN);
            }
            match self.queue.next(Instant::now(), self.finish.is_cancelled()) {
                Ok(parcel) if parcel.bury.is_some() => self.burying.push(Box::pin(bury(self.settler.clone(), parcel))),
                Ok(parcel) => {
                    let mut sink = self.idle.pop()?;
                    if self.under_way.is_empty() {
                        self.health.set(|condition| condition.moved = Some(Instant::now()));
                    }
                    let span = self.spans.attempt(parcel.attempts + 1, &parcel.loads);
                    self.under_way.push(Box::pin(async move {
                        let result = span.around(sink.deliver(&parcel.loads)).await;
                        span.ended(result.as_ref().err().map(|failed| (failed.kind.word(), &*failed.reason)));
                        Attempt { sink, parcel, result }
                    }));
                }
                Err(later) => return later,
            }
        }
    }

    /// Queues what passes the filter, settles the rest.
    async fn take_in(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        let mut left_out: Option<(u64, u64)> = None;
        for event in events {
            let sequence = event.sequence();
            if self.filter.passes(&event) {
                let chain = self.chain(&event);
                self.received.insert(sequence, event.received_at());
                self.enqueue(chain, event, now);
                continue;
            }
            match &mut left_out {
                Some((_, last)) if *last + 1 == sequence => *last = sequence,
                _ => {
                    if let Some((first, last)) = left_out.replace((sequence, sequence)) {
                        self.settler.settle(first, last, Settled::Filtered).await;
                    }
                }
            }
        }
        if let Some((first, last)) = left_out {
            self.settler.settle(first, last, Settled::Filtered).await;
        }
    }

    /// Lets go of what is another's now, but for what is under way.
    fn withdraw(&mut self, lost: &Lost) {
        let gone = self.queue.withdraw(|sequence| lost.contains(sequence));
        self.settler.release(&gone);
        if self.queue.failing() == 0 {
            self.recovered();
        }
    }

    /// Queues what passed the filter before and is tried again.
    fn take_letters(&mut self, letters: Vec<Letter>) {
        let now = Instant::now();
        for Letter { id, event, .. } in letters {
            self.enqueue(Chain::Letter(id), event, now);
        }
    }

    /// Queues what is to be delivered once more.
    fn take_copies(&mut self, Copies { events, done }: Copies) {
        let now = Instant::now();
        for event in events {
            self.enqueue(Chain::Replay, event, now);
        }
        self.copying = Some((done, Done::default()));
    }

    fn enqueue(&mut self, chain: Chain, event: Event, now: Instant) {
        let bytes = event.body().len() + AROUND_EVENT;
        self.queue.push(event.sequence(), chain, bytes, event, now);
    }

    /// Tells what became of the copies under way once nothing is left of them; drops them when nobody wants them any more.
    fn end_copies(&mut self) {
        if self.copying.as_ref().is_some_and(|(done, _)| done.is_closed()) {
            self.queue.drop_replay();
        }
        if self.queue.replayed() == 0
            && let Some((done, outcome)) = self.copying.take()
        {
            // Whoever has gone away does not count.
            let _ = done.send(outcome);
        }
    }

    fn chain(&self, event: &Event) -> Chain {
        match self.ordering {
            Ordering::Strict => Chain::Lane,
            Ordering::None => Chain::Alone(event.sequence()),
            Ordering::Entity => match shape::entity(event) {
                Some(entity) => Chain::Entity(self.hasher.hash_one((entity.feed, &*entity.id))),
                None => Chain::Alone(event.sequence()),
            },
        }
    }

    async fn judge(&mut self, Attempt { sink, parcel, result }: Attempt<S>) {
        self.idle.push(sink);
        let now = Instant::now();
        let busy = !self.under_way.is_empty();
        self.health.set(|condition| condition.moved = busy.then_some(now));
        match result {
            Ok(()) => {
                self.queue.delivered(&parcel, now);
                self.refused = None;
                if self.queue.failing() == 0 {
                    self.recovered();
                }
                // Before it counts: who reads that everything is delivered reads of no trouble that is over.
                self.tell();
                self.settle(&parcel.items, Settled::Delivered).await;
            }
            Err(Failure { delivered, kind, reason }) => {
                self.note(kind, &reason, parcel.attempts + 1);
                let delivered = self.queue.failed(parcel, delivered, kind, &reason, now);
                if !delivered.is_empty() {
                    self.refused = None;
                }
                self.settle(&delivered, Settled::Delivered).await;
                self.settler.release(&self.queue.take_given_up());
            }
        }
    }

    /// Notes what came of a burial; while the dead letters are full, what is left of the parcel waits.
    fn buried(&mut self, Burial { parcel, buried, refused }: Burial) {
        let reason = parcel.bury.clone().unwrap_or_default();
        for item in &parcel.items[..buried] {
            let not_taken =
                |letter| NotTaken { sequence: item.sequence, letter, reason: &reason, attempts: parcel.attempts };
            match item.chain {
                Chain::Replay => {
                    // It is no dead letter: its first copy was delivered, or is one.
                    if let Some((_, done)) = &mut self.copying {
                        done.rejected += 1;
                    }
                    self.told.not_taken(not_taken(None), "replayed event not taken");
                }
                Chain::Letter(id) => self.told.not_taken(not_taken(Some(id)), "dead letter not taken again"),
                Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => {
                    self.told.not_taken(not_taken(None), "event dead-lettered");
                }
            }
        }
        if let Some(why) = refused {
            let why = match why {
                Refused::Full => "the dead letters are full (`dead_letters.max_bytes`), or the disk is: retry or \
                                  discard some, or make room"
                    .to_owned(),
                Refused::TooLarge => {
                    "the event is larger than the cluster takes as a dead letter now: raise max_payload in its \
                     servers' settings"
                        .to_owned()
                }
                other => format!("no dead letter can be written: {other}"),
            };
            self.no_room = Some(format!("{why}. What has to go there: {reason}"));
        }
        if buried > 0 {
            self.refused = Some(reason);
        }
        self.queue.buried(parcel, buried, Instant::now());
        self.settler.release(&self.queue.take_given_up());
        if self.queue.failing() == 0 {
            self.recovered();
        }
    }

    /// Says what became of events, wherever they came from.
    async fn settle(&mut self, items: &[Item], how: Settled) {
        let mut sequences = Vec::with_capacity(items.len());
        for item in items {
            match item.chain {
                Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => sequences.push(item.sequence),
                Chain::Letter(id) => self.settler.letter_delivered(id).await,
                Chain::Replay => {
                    if let Some((_, done)) = &mut self.copying {
                        done.delivered += 1;
                    }
                }
            }
        }
        // In order already, but for a batch of several entities some of which had to wait.
        sequences.sort_unstable();
        // A filtered or skipped sequence may lie between two of them, so each run of neighbours by itself.
        for run in sequences.chunk_by(|a, b| a + 1 == *b) {
            if let (Some(&first), Some(&last)) = (run.first(), run.last()) {
                self.settler.settle(first, last, how).await;
            }
        }
    }

    /// Nothing fails any more.
    fn recovered(&mut self) {
        self.failure = None;
        self.told.recovered();
    }

    fn note(&mut self, kind: FailureKind, reason: &str, attempts: u32) {
        let sink = self.settler.sink().to_owned();
        let labels = vec![("sink".to_owned(), sink), ("reason".to_owned(), kind.word().to_owned())];
        self.metrics.sink_failures.get_or_create(&labels).inc();
        if kind == FailureKind::Reject {
            // The sink works; what becomes of the event is told when it is known.
            tracing::debug!(sink = self.settler.sink(), reason, attempts, "delivery rejected");
            return;
        }
        self.told.failure(reason, attempts);
        self.failure = Some(reason.to_owned());
    }

    /// Lets `status` know what is amiss, and how far behind the lane is.
    fn tell(&mut self) {
        let waiting = self.queue.waits_for_room();
        // Full dead letters have a remedy of their own, and their text says the other reason too. What fails now says more
        // than what was refused before.
        let rejecting = !waiting && self.failure.is_none() && self.refused.is_some();
        let error =
            if waiting { &self.no_room } else { self.failure.as_ref().map_or(&self.refused, |_| &self.failure) };
        self.told.waits_for_room(waiting);
        let oldest = self.queue.oldest();
        while let Some(first) = self.received.first_entry()
            && oldest.is_none_or(|oldest| *first.key() < oldest)
        {
            first.remove();
        }
        let oldest = self.received.first_key_value().map(|(_, &received_at)| received_at);
        let is_known = oldest.is_some() || self.cursor.caught_up();
        self.health.set(|condition| {
            condition.waiting = waiting;
            condition.rejecting = rejecting;
            condition.last_error.clone_from(error);
            if is_known {
                condition.oldest = oldest;
            }
        });
    }
}

/// Writes a parcel into the dead letters, its events side by side, up to the first that is refused. One behind it that was
/// written all the same is found there when it is written again.
async fn bury(settler: Settler, parcel: Parcel<Event>) -> Burial {
    let reason = parcel.bury.as_deref().unwrap_or_default();
    let bury_one = |(item, event): (&Item, &Event)| {
        let (settler, event, chain) = (settler.clone(), event.clone(), item.chain);
        async move {
            match chain {
                Chain::Replay => Ok(()),
                Chain::Letter(id) => {
                    settler.letter_failed(id, reason, parcel.attempts).await;
                    Ok(())
                }
                Chain::Lane | Chain::Entity(_) | Chain::Alone(_) => {
                    settler.dead_letter(&event, reason, parcel.attempts).await
                }
            }
        }
    };
    let mut outcomes = stream::iter(parcel.items.iter().zip(&parcel.loads)).map(bury_one).buffered(AT_ONCE);
    let (mut buried, mut refused) = (0, None);
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(()) => buried += 1,
            Err(why) => {
                refused = Some(why);
                break;
            }
        }
    }
    drop(outcomes);
    Burial { parcel, buried, refused }
}

/// What comes next; without `room` for events, what else there is to know.
async fn read(cursor: &mut Cursor, room: bool) -> Result<Read, Gone> {
    if room { cursor.read().await } else { cursor.lost().await.map(Read::Lost) }
}
