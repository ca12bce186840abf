//! Everything a journal holds, moved from a folder into a cluster and back. What it was taken from stays as it is.
//!
//! Events move in order, each with its id: a run that broke off is begun again, and what was moved before is found known,
//! as long as the duplicate window lasts. A sink gets what it had not settled; what it had settled counts as delivered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::sync::{broadcast, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Outcome};
use crate::config::{self, Config};
use crate::envelope::Envelope;
use crate::journal::event::Event;
use crate::journal::event::{digest, single};
use crate::journal::fleet::append::{Appender, Published, partition};
use crate::journal::fleet::cluster::error::NatsError;
use crate::journal::fleet::cluster::link::{From, Link};
use crate::journal::fleet::cluster::names;
use crate::journal::fleet::cluster::records::{PutError, Records};
use crate::journal::fleet::cluster::streams;
use crate::journal::fleet::delivery::Delivery;
use crate::journal::fleet::keeper::Keeper;
use crate::journal::fleet::letters::DeadLetters;
use crate::journal::fleet::log::Log;
use crate::journal::fleet::quarantine::Quarantine;
use crate::journal::fleet::replicas;
use crate::journal::fleet::share::Share;
use crate::journal::fleet::sink;
use crate::journal::fleet::sink::Sink;
use crate::journal::letters::{Letter, LettersOf};
use crate::journal::local::Local;
use crate::journal::local::cursor::{Cursor, Scan, Settler};
use crate::journal::local::store::{DeadLetter, Pick};
use crate::journal::local::writer::{Append, Arriving, Command, Released, Waiter};
use crate::journal::open_error::OpenError;
use crate::journal::outcome::{Refused, Settled};
use crate::journal::quarantine::Kept;
use crate::telemetry::Metrics;

/// Rows of one step.
const ROWS: usize = 500;
/// Events that are on their way into a folder at a time.
const AT_A_TIME: usize = 1000;
const BYTES_AT_A_TIME: usize = 16 << 20;

/// The record of a move that is under way.
const BEGUN: &str = "migration";
/// Before a stream that said nothing is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one event is tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    pub events: u64,
    /// Of these, those that were there already.
    pub known: u64,
    pub dead_letters: u64,
    pub quarantined: u64,
}

/// Why not everything was moved. What was moved stays, and is found known the next time.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("receivers are at work on the cluster: end them first, and wait a minute")]
    InUse,
    #[error("the folder holds events already: name an empty one, or one that does not exist yet")]
    NotEmpty,
    #[error("the journal in the folder cannot be read or written: {0}")]
    Folder(Refused),
    #[error("what should be event {0} is none: the journal is damaged")]
    Damaged(u64),
    #[error("event {0} is there with other bytes")]
    Contested(u64),
    #[error("the cluster does not take it: {0}")]
    NotTaken(Refused),
    #[error(
        "there are dead letters of the sink {0}, which is not configured and switched on: write it into the settings"
    )]
    NoSink(String),
    #[error("another program writes to the records of {0}")]
    Fought(String),
    #[error("there is no journal in the folder")]
    Nothing,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Cluster(#[from] NatsError),
}

/// The cluster's side: no sink is served.
#[derive(Debug)]
pub(crate) struct Migration {
    link: Link,
    records: Records,
    keeper: Keeper,
    appender: Appender,
    dead_letters: DeadLetters,
    quarantine: Quarantine,
    _ending: DropGuard,
}

/// A sink on the way into a cluster.
struct Place {
    settled: Vec<(u64, u64)>,
    cursor: u64,
    /// By partition.
    shares: Vec<Share>,
}

impl Migration {
    pub(crate) async fn open(
        config: &Config,
        settings: &config::Nats,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, NatsError> {
        let link = Link::connect(settings).await?;
        streams::ensure(&link, config).await?;
        let ending = CancellationToken::new();
        let records = Records::open(&link, &TaskTracker::new(), ending.clone()).await?;
        let tail = watch::Sender::new(0);
        let keeper = Keeper::open(&link, &records, &tail).await?;
        let quarantine =
            Quarantine::new((&link, &records), Arc::clone(metrics), config.quarantine.max_bytes, ending.clone());
        let appender = Appender {
            link: link.clone(),
            keeper: keeper.clone(),
            quarantine: quarantine.clone(),
            metrics: Arc::clone(metrics),
            partitions: settings.partitions,
            ack_timeout: settings.ack_timeout,
            answer_within: PATIENCE,
            max_body_bytes: config.listen.max_body_bytes,
            tail,
            full: watch::Sender::new(false),
            state: watch::Sender::new(crate::journal::outcome::State::Open).subscribe(),
            own: broadcast::Sender::new(1),
        };
        // No lane runs here.
        let mut idle = config.clone();
        idle.sinks.clear();
        let instance = "migrate".into();
        let dead_letters = DeadLetters::open((&link, &records), &idle, instance, &TaskTracker::new(), ending.clone());
        Ok(Self { link, records, keeper, appender, dead_letters, quarantine, _ending: ending.drop_guard() })
    }

    /// Moves what the folder's journal holds; `sinks` are the cursors of those that are switched on. `told` hears of each
    /// step how many events are done, of how many.
    pub(crate) async fn to_cluster(
        &self,
        source: &Arc<Local>,
        sinks: &[Cursor],
        mut told: impl FnMut(u64, u64),
    ) -> Result<Moved, MigrateError> {
        self.refuse_company().await?;
        let partitions = self.appender.partitions;
        let status = source.status();
        let log = self.keeper.current();
        let base = self.begin(&log).await?;
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for sink in &status.sinks {
            let settled = sinks.iter().find(|cursor| cursor.sink() == &*sink.name);
            let place = Place {
                cursor: sink.account.cursor,
                settled: settled.map(|cursor| cursor.settled().to_vec()).unwrap_or_default(),
                shares: vec![Share::before(base + 1, log.epoch); partitions.into()],
            };
            places.insert(sink.name.to_string(), place);
        }
        let dead = dead_in_folder(source).await?;
        let mut previous = vec![base; partitions.into()];
        let (first, last) = (status.first_sequence, status.last_sequence);
        let total = (last + 1).saturating_sub(first);
        let mut moved = Moved::default();
        let mut scan = Scan::new(Arc::clone(source), Arc::from("migrate"), first);
        while scan.next() <= last {
            let events = scan.read().await.map_err(|_| MigrateError::Folder(Refused::Failed))?;
            let mut by_partition: HashMap<u16, Vec<(Envelope, Event)>> = HashMap::new();
            for event in events {
                let envelope = parsed(&event)?;
                by_partition.entry(partition(&envelope, partitions)).or_default().push((envelope, event));
            }
            // Order is kept within a partition; the partitions go side by side.
            let published = by_partition.into_iter().map(async |(partition, events)| {
                let mut sequences = Vec::with_capacity(events.len());
                for (envelope, event) in events {
                    let old = event.sequence();
                    let published = self.appender.publish(&envelope, single(&event).into()).await;
                    match published.map_err(MigrateError::NotTaken)? {
                        Published::Stored(new) => sequences.push((old, new, false)),
                        Published::Known(new) => sequences.push((old, new, true)),
                        Published::Contested => return Err(MigrateError::Contested(old)),
                    }
                }
                Ok((usize::from(partition), sequences))
            });
            for (partition, sequences) in try_join_all(published).await? {
                for (old, new, known) in sequences {
                    moved.events += 1;
                    moved.known += u64::from(known);
                    for (sink, place) in &mut places {
                        let range = |&(low, high): &(u64, u64)| (low..=high).contains(&old);
                        if old <= place.cursor || place.settled.iter().any(range) {
                            let is_dead = dead.contains(&(sink.clone(), old));
                            let how = if is_dead { Settled::DeadLettered } else { Settled::Delivered };
                            // One that was known may stand before others.
                            place.shares[partition].settle(previous[partition].min(new - 1), new, how);
                        }
                    }
                    previous[partition] = previous[partition].max(new);
                }
            }
            told(moved.events, total);
        }
        if !log.is(&self.keeper.current()) {
            return Err(MigrateError::Fought(self.link.names().events().to_owned()));
        }
        for (sink, place) in &places {
            self.place(sink, Sink::new(base + 1, true, log.epoch), &place.shares).await?;
        }
        self.letters_to_cluster(source, &mut moved).await?;
        self.bodies_to_cluster(source, &mut moved).await?;
        self.end().await?;
        Ok(moved)
    }

    /// The last sequence before the first run: what comes after it was moved by this run, or by one that broke off.
    async fn begin(&self, log: &Log) -> Result<u64, MigrateError> {
        let foreign = |_| MigrateError::Fought(BEGUN.to_owned());
        let mut revision = 0;
        if let Some(record) = self.records.get(BEGUN).await? {
            let begun: Value = serde_json::from_slice(&record.value).map_err(foreign)?;
            // Earlier versions wrote the sequence alone.
            let (base, epoch) = match &begun {
                Value::Number(_) => (Some(&begun), Some(0)),
                begun => (begun.get("base"), begun.get("log").and_then(Value::as_u64)),
            };
            let base = base.and_then(Value::as_u64).ok_or_else(|| MigrateError::Fought(BEGUN.to_owned()))?;
            if epoch.is_some_and(|epoch| log.kept(epoch) == u64::MAX) {
                return Ok(base);
            }
            // Of what was moved then nothing is known any more.
            revision = record.revision;
        }
        let base = self.link.info(self.link.names().events()).await?.state.last_sequence;
        let begun = json!({ "base": base, "log": log.epoch }).to_string();
        let written = self.records.put(BEGUN, revision, begun.into()).await;
        written.map(|_| base).map_err(|error| fought(error, BEGUN))
    }

    async fn end(&self) -> Result<(), MigrateError> {
        match self.records.get(BEGUN).await? {
            Some(record) => self.records.remove(BEGUN, record.revision).await.map_err(|error| fought(error, BEGUN)),
            None => Ok(()),
        }
    }

    /// Moves what the cluster holds into an empty folder; the cursors are those of the sinks in it.
    pub(crate) async fn to_folder(
        &self,
        target: &Arc<Local>,
        cursors: &[Cursor],
        admission: &Admission,
        mut told: impl FnMut(u64, u64),
    ) -> Result<Moved, MigrateError> {
        self.refuse_company().await?;
        if target.status().last_sequence > 0 {
            return Err(MigrateError::NotEmpty);
        }
        let names = self.link.names();
        let partitions = self.appender.partitions;
        let settlers: Vec<Settler> = cursors.iter().map(Cursor::settler).collect();
        let mut shares = Vec::new();
        for settler in &settlers {
            let sink = sink::read(&self.records, settler.sink()).await?;
            let log = self.keeper.current();
            let mut of_sink = Vec::new();
            for partition in 0..partitions {
                let record = self.records.get(&names::place(settler.sink(), partition)).await?;
                let share = record.and_then(|record| Share::read(&record.value).ok());
                // Nobody had any of it to deliver: what lies before the sink's first is not for it.
                let before = || sink.as_ref().map(|(sink, _)| Share::before(sink.first(&log), log.epoch));
                let mut share = share.or_else(before);
                if let Some(share) = &mut share {
                    share.follow(&log);
                }
                of_sink.push(share);
            }
            shares.push(of_sink);
        }
        let mut dead = self.dead_in_cluster().await?;
        let state = self.link.info(names.events()).await?.state;
        let (mut next, last) = (state.first_sequence, state.last_sequence);
        let mut moved = Moved::default();
        while next <= last {
            let from = From::Sequence(next);
            let batch = self.link.read(names.events(), &names.subjects(), from, AT_A_TIME, BYTES_AT_A_TIME).await?;
            let Some(end) = batch.messages.last().map(|stored| stored.sequence) else {
                // A server that lags behind has nothing to say.
                if self.link.get_next(names.events(), &names.subjects(), next).await?.is_none() {
                    break;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let mut waiting = Vec::with_capacity(batch.messages.len());
            for stored in batch.messages {
                let old = stored.sequence;
                let event = Event::read_single(old, stored.payload).map_err(|_| MigrateError::Damaged(old))?;
                let envelope = parsed(&event)?;
                let home = partition(&envelope, partitions);
                waiting.push((old, home, append(target, envelope, event).await));
            }
            for (old, home, answer) in waiting {
                match answer.await.unwrap_or(Err(Refused::Closed)).map_err(MigrateError::Folder)? {
                    Released::Stored => moved.events += 1,
                    // The same id twice in one stream: its first message was older than the duplicate window.
                    Released::Duplicate => {
                        moved.known += 1;
                        continue;
                    }
                    Released::Conflict => return Err(MigrateError::Contested(old)),
                }
                // What is stored in a new journal has the sequences from 1 on.
                let new = moved.events;
                for (settler, shares) in settlers.iter().zip(&shares) {
                    // No place: the sink is new here, and has had nothing.
                    let share = shares.get(usize::from(home)).and_then(Option::as_ref);
                    if let Some(at) = dead.get_mut(&(settler.sink().to_owned(), old)) {
                        *at = new;
                    } else if share.is_some_and(|share| share.is_settled(old)) {
                        settler.settle(new, new, Settled::Delivered).await;
                    }
                }
            }
            next = end + 1;
            told(moved.events, state.messages);
        }
        self.letters_to_folder(&settlers, &dead, &mut moved).await?;
        self.bodies_to_folder(target, admission, &mut moved).await?;
        Ok(moved)
    }

    /// Places that others write to at the same time would be lost.
    async fn refuse_company(&self) -> Result<(), MigrateError> {
        if replicas::known(&self.records, None).is_empty() { Ok(()) } else { Err(MigrateError::InUse) }
    }

    /// Gives a sink its record and its places, which it must not have yet.
    async fn place(&self, sink: &str, made: Sink, shares: &[Share]) -> Result<(), MigrateError> {
        self.keeper.registers().await?;
        for (partition, share) in (0..).zip(shares) {
            let key = names::place(sink, partition);
            let revision = self.records.get(&key).await?.map_or(0, |record| record.revision);
            let value = share.write().unwrap_or_default().into();
            self.records.put(&key, revision, value).await.map_err(|error| fought(error, sink))?;
        }
        Delivery::make(&self.records, sink, &made).await.map_err(|error| fought(error, sink))?;
        Ok(self.keeper.has_registered(sink).await?)
    }

    async fn letters_to_cluster(&self, source: &Local, moved: &mut Moved) -> Result<(), MigrateError> {
        let mut pick = Pick { after: 0, sink: None, limit: ROWS, whole: true };
        loop {
            let wanted = pick.clone();
            let page = source.look_up(move |reader| reader.letters(&wanted)).await.map_err(MigrateError::Folder)?;
            for DeadLetter { sink, sequence, reason, attempts, event, .. } in page.rows {
                let event = Event::read_single(sequence, event).map_err(|_| MigrateError::Damaged(sequence))?;
                self.dead_letters.put(&sink, &event, &reason, attempts).await.map_err(MigrateError::NotTaken)?;
                moved.dead_letters += 1;
            }
            match page.next {
                Some(next) => pick.after = next,
                None => return Ok(()),
            }
        }
    }

    /// The dead letters by sink and sequence; none has another sequence yet.
    async fn dead_in_cluster(&self) -> Result<HashMap<(String, u64), u64>, MigrateError> {
        let mut dead = HashMap::new();
        let mut of = LettersOf { sink: None, after: 0, limit: ROWS };
        loop {
            let letters = self.dead_letters.list(of.clone()).await.map_err(MigrateError::NotTaken)?;
            let Some(last) = letters.last() else { return Ok(dead) };
            of.after = last.id;
            dead.extend(letters.into_iter().map(|letter| ((letter.sink, letter.sequence), 0)));
        }
    }

    /// `moved_to` has the sequences that the letters' events have now; 0 where the event itself was not kept any more.
    async fn letters_to_folder(
        &self,
        settlers: &[Settler],
        moved_to: &HashMap<(String, u64), u64>,
        moved: &mut Moved,
    ) -> Result<(), MigrateError> {
        let mut of = LettersOf { sink: None, after: 0, limit: ROWS };
        loop {
            let letters = self.dead_letters.list(of.clone()).await.map_err(MigrateError::NotTaken)?;
            let Some(last) = letters.last() else { return Ok(()) };
            of.after = last.id;
            for Letter { sink, sequence, reason, attempts, event, .. } in letters {
                let Some(settler) = settlers.iter().find(|settler| settler.sink() == sink) else {
                    return Err(MigrateError::NoSink(sink));
                };
                let now = moved_to.get(&(sink, sequence)).copied().unwrap_or(0);
                let block = single(&event).into();
                let event = Event::read_single(now, block).map_err(|_| MigrateError::Damaged(sequence))?;
                settler.dead_letter(&event, &reason, attempts).await.map_err(MigrateError::Folder)?;
                moved.dead_letters += 1;
            }
        }
    }

    async fn bodies_to_folder(
        &self,
        target: &Local,
        admission: &Admission,
        moved: &mut Moved,
    ) -> Result<(), MigrateError> {
        let mut after = 0;
        loop {
            let bodies = self.quarantine.list(after, ROWS).await.map_err(MigrateError::NotTaken)?;
            let Some(last) = bodies.last() else { return Ok(()) };
            after = last.id;
            for body in bodies {
                let admitted = admission.admit(admission.receive(), 0);
                let admitted = admitted.map_err(|_| MigrateError::Folder(Refused::Full))?;
                let (reply, answer) = oneshot::channel();
                let kept = Box::new(Kept::from(body));
                let outcome = Outcome::Rejected("moved");
                target.mailbox.send(Command::Quarantine { kept, admitted, outcome, reply });
                answer.await.unwrap_or(Err(Refused::Closed)).map_err(MigrateError::Folder)?;
                moved.quarantined += 1;
            }
        }
    }

    async fn bodies_to_cluster(&self, source: &Local, moved: &mut Moved) -> Result<(), MigrateError> {
        let mut pick = Pick { after: 0, sink: None, limit: ROWS, whole: true };
        loop {
            let wanted = pick.clone();
            let page = source.look_up(move |reader| reader.bodies(&wanted)).await.map_err(MigrateError::Folder)?;
            for kept in page.rows {
                self.quarantine.keep(kept).await.map_err(MigrateError::NotTaken)?;
                moved.quarantined += 1;
            }
            match page.next {
                Some(next) => pick.after = next,
                None => return Ok(()),
            }
        }
    }
}

fn fought(error: PutError, record: &str) -> MigrateError {
    match error {
        PutError::Stale => MigrateError::Fought(record.to_owned()),
        PutError::Unavailable(reason) => MigrateError::Cluster(NatsError::Unavailable(reason)),
    }
}

/// The dead letters by sink and sequence.
async fn dead_in_folder(source: &Local) -> Result<HashSet<(String, u64)>, MigrateError> {
    let mut dead = HashSet::new();
    let mut pick = Pick { after: 0, sink: None, limit: ROWS, whole: false };
    loop {
        let wanted = pick.clone();
        let page = source.look_up(move |reader| reader.letters(&wanted)).await.map_err(MigrateError::Folder)?;
        dead.extend(page.rows.into_iter().map(|letter| (letter.sink, letter.sequence)));
        match page.next {
            Some(next) => pick.after = next,
            None => return Ok(dead),
        }
    }
}

fn parsed(event: &Event) -> Result<Envelope, MigrateError> {
    Envelope::parse(event.body_bytes()).map_err(|_| MigrateError::Damaged(event.sequence()))
}

/// Sends an event to the folder's writer; the outcome is to be waited for.
async fn append(target: &Local, envelope: Envelope, event: Event) -> oneshot::Receiver<Result<Released, Refused>> {
    let (reply, answer) = oneshot::channel();
    let append = Append {
        hash: target.key.hash(envelope.event_id()),
        digest: digest(envelope.body()),
        event: Arriving::Moved(envelope, event),
        waiter: Waiter::Move(reply),
    };
    target.mailbox.send_from_operator(Command::Append(Box::new(append))).await;
    answer
}
