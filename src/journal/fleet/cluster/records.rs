//! What the fleet agrees on: small records by key, each the newest message of its subject in one stream, written by
//! compare-and-set. Every receiver has all of them in memory, kept up to date by a consumer of its own.
//!
//! What is known here may be seconds old. What must not be is read from the leader ([`Records::get`]), or is written with
//! the revision that was read: the stream refuses it when something came between.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID, NATS_MESSAGE_TTL};
use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::error::{NatsError, NotStored};
use super::link::Link;

/// Of one try of a write.
const TRY: Duration = Duration::from_secs(1);
/// The same write is repeated for so long, far less than the stream remembers its id.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// What was removed leaves a mark, which every watcher sees in this time.
const MARK_TTL: Duration = Duration::from_secs(60 * 60);
/// The server says every second that nothing is new; after so long without a word the watcher starts over.
const HEARTBEAT: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(3);
/// How often marks and records whose time is over are dropped.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);
/// How many of the last changes are kept for those that follow them.
const CHANGES: usize = 16 << 10;
/// For the first look at all records.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// A handle to the records; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Records(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    known: Mutex<AllKnown>,
    /// Grows with every change of what is known; changed while `known` is locked.
    version: watch::Sender<u64>,
    /// How often all records were looked at.
    looks: AtomicU64,
    /// All records are to be looked at again.
    again: Notify,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// What a write must expect to replace it.
    pub(crate) revision: u64,
    pub(crate) value: Bytes,
}

/// Why a record may not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PutError {
    /// It is not: somebody else wrote this record.
    #[error("somebody else wrote this record")]
    Stale,
    /// Nobody knows.
    #[error("the record could not be written: {0}")]
    Unavailable(String),
}

/// A record, or the mark of a removed one, which has no value.
#[derive(Debug)]
struct Known {
    record: Record,
    /// The server drops it then, and tells nobody.
    expires: Option<Instant>,
}

/// All records that are known.
#[derive(Debug, Default)]
struct AllKnown {
    records: BTreeMap<String, Known>,
    /// The version of each of the last changes, and its key; the oldest first.
    changes: VecDeque<(u64, String)>,
    /// All changes after this version are in `changes`.
    complete_after: u64,
}

impl Known {
    fn is_there(&self) -> bool {
        !self.record.value.is_empty() && self.expires.is_none_or(|at| Instant::now() < at)
    }
}

impl Records {
    /// Starts to watch, and is back when all records are known.
    ///
    /// # Errors
    /// When they cannot be read within 10 s.
    pub(crate) async fn open(link: &Link, tasks: &TaskTracker, end: CancellationToken) -> Result<Self, NatsError> {
        let (version, again) = (watch::Sender::new(0), Notify::new());
        let inner = Inner { link: link.clone(), known: Mutex::default(), version, looks: AtomicU64::new(0), again };
        let records = Self(Arc::new(inner));
        let (complete, mut is_complete) = watch::channel(None);
        super::spawn(tasks, end.run_until_cancelled_owned(records.clone().watch(complete)));
        match timeout(OPEN_WITHIN, is_complete.wait_for(|state| *state == Some(Ok(())))).await {
            Ok(Ok(_)) => return Ok(records),
            Ok(Err(_)) => return Err(NatsError::Unavailable("the receiver is ending".to_owned())),
            Err(_) => {}
        }
        let unknown = || NatsError::Unavailable(format!("{} cannot be read", link.names().state()));
        Err(is_complete.borrow().clone().and_then(Result::err).unwrap_or_else(unknown))
    }

    /// The stream's name.
    pub(crate) fn stream(&self) -> &str {
        self.0.link.names().state()
    }

    /// The record as the stream's leader has it.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Record>, NatsError> {
        Ok(self.newest(key).await?.filter(|record| !record.value.is_empty()))
    }

    /// Writes a record whose revision is the expected one (0: there must be none), and gives the new one.
    ///
    /// # Errors
    /// [`PutError`].
    pub(crate) async fn put(&self, key: &str, expected_revision: u64, value: Bytes) -> Result<u64, PutError> {
        let put = self.write(key, Some(expected_revision), value.clone(), None).await;
        if expected_revision > 0 || put != Err(PutError::Stale) {
            return put;
        }
        // Where there was one, its mark is there.
        let newest = self.newest(key).await.map_err(|error| PutError::Unavailable(error.to_string()))?;
        match newest {
            Some(mark) if mark.value.is_empty() => self.write(key, Some(mark.revision), value, None).await,
            _ => Err(PutError::Stale),
        }
    }

    /// Writes a record whatever was there; `ttl`, in whole seconds, is after what time it goes by itself. For records that
    /// only one receiver writes.
    ///
    /// # Errors
    /// [`PutError::Unavailable`].
    pub(crate) async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<u64, PutError> {
        self.write(key, None, value, ttl).await
    }

    /// Removes a record whose revision is the expected one.
    ///
    /// # Errors
    /// [`PutError`].
    pub(crate) async fn remove(&self, key: &str, expected_revision: u64) -> Result<(), PutError> {
        self.write(key, Some(expected_revision), Bytes::new(), Some(MARK_TTL)).await.map(drop)
    }

    /// The records whose keys begin so, in the order of their keys.
    pub(crate) fn known(&self, prefix: &str) -> Vec<(String, Record)> {
        let known = self.0.known();
        let from_there = known.records.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let there = from_there.filter(|(_, known)| known.is_there());
        there.map(|(key, known)| (key.clone(), known.record.clone())).collect()
    }

    /// The record of this key, if it is known.
    pub(crate) fn last_known(&self, key: &str) -> Option<Record> {
        self.0.known().records.get(key).filter(|known| known.is_there()).map(|known| known.record.clone())
    }

    /// The keys that begin so, as the stream's leader has them. Of some only the mark of a removed record may be there.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn keys(&self, prefix: &str) -> Result<Vec<String>, NatsError> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            subjects: Option<BTreeMap<String, u64>>,
        }
        let names = self.0.link.names();
        let request = json!({ "subjects_filter": names.record(&format!("{prefix}>")) });
        let info: Info = self.0.link.api(&format!("STREAM.INFO.{}", names.state()), &request).await?;
        let own = names.record("");
        let subjects = info.state.subjects.unwrap_or_default().into_keys();
        Ok(subjects.filter_map(|subject| subject.strip_prefix(&own).map(str::to_owned)).collect())
    }

    /// Grows when all records were looked at again: what is known may be of a stream that was made again, or is older.
    pub(crate) fn looks(&self) -> u64 {
        self.0.looks.load(Ordering::Relaxed)
    }

    /// Looks at all records again, soon: some may have gone without a word.
    pub(crate) fn look_again(&self) {
        self.0.again.notify_one();
    }

    /// The version of what is known, and the keys of the records that have changed since `version`; `None` if all may have.
    /// A record that has changed more than once may be there more than once.
    pub(crate) fn changes_since(&self, version: u64) -> (u64, Option<Vec<String>>) {
        let known = self.0.known();
        let now = *self.0.version.borrow();
        if version < known.complete_after {
            return (now, None);
        }
        let newest_first = known.changes.iter().rev().take_while(|(of, _)| *of > version);
        (now, Some(newest_first.map(|(_, key)| key.clone()).collect()))
    }

    /// Changes when what is known does.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    async fn newest(&self, key: &str) -> Result<Option<Record>, NatsError> {
        let names = self.0.link.names();
        let newest = self.0.link.get_last(names.state(), &names.record(key)).await?;
        Ok(newest.map(|stored| Record { revision: stored.sequence, value: stored.payload }))
    }

    async fn write(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64, PutError> {
        let Inner { link, .. } = &*self.0;
        let (stream, subject) = (link.names().state(), link.names().record(key));
        let mut headers = HeaderMap::new();
        let id = Uuid::new_v4().simple().to_string();
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        if let Some(expected) = expected {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        if let Some(ttl) = ttl {
            headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
        }
        let end = Instant::now() + WRITE_WITHIN;
        let mut repeated = false;
        loop {
            match link.publish(stream, &subject, headers.clone(), value.clone(), TRY).await {
                Ok(ack) => {
                    self.0.note(key.to_owned(), Record { revision: ack.sequence, value }, ttl);
                    return Ok(ack.sequence);
                }
                Err(NotStored::Stale(sequence)) if repeated && self.is_own(sequence, &id).await? => {
                    self.0.note(key.to_owned(), Record { revision: sequence, value }, ttl);
                    return Ok(sequence);
                }
                Err(NotStored::Stale(_)) => return Err(PutError::Stale),
                Err(NotStored::Busy | NotStored::Unavailable(_)) if Instant::now() + PAUSE < end => {
                    repeated = true;
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(PutError::Unavailable(error.to_string())),
            }
        }
    }

    /// Whether an earlier try of the same write got this sequence. The server should know its id and say so, but a frozen
    /// one was seen to refuse it (2.15.1).
    async fn is_own(&self, sequence: u64, id: &str) -> Result<bool, PutError> {
        let found = self.0.link.get(self.0.link.names().state(), sequence).await;
        let found = found.map_err(|error| PutError::Unavailable(error.to_string()))?;
        Ok(found.is_some_and(|stored| stored.headers.get(NATS_MESSAGE_ID).is_some_and(|own| own.as_str() == id)))
    }

    /// Keeps what is known up to date, without end; starts over from all records whenever something may be missing.
    async fn watch(self, complete: watch::Sender<Option<Result<(), NatsError>>>) {
        loop {
            let Err(error) = self.follow(&complete).await;
            tracing::debug!(%error, "watching the fleet's records starts over");
            if *complete.borrow() != Some(Ok(())) {
                complete.send_replace(Some(Err(error)));
            }
            sleep(Duration::from_millis(100).mul_f64(1.0 + fastrand::f64())).await;
        }
    }

    async fn follow(
        &self,
        complete: &watch::Sender<Option<Result<(), NatsError>>>,
    ) -> Result<std::convert::Infallible, NatsError> {
        let Inner { link, .. } = &*self.0;
        let inbox = link.client().new_inbox();
        let messages = link.client().subscribe(inbox.clone()).await;
        let mut messages = messages.map_err(|error| NatsError::Unavailable(error.to_string()))?;
        let mut connection = link.connection();
        connection.mark_unchanged();
        let before = self.0.newest_revision();
        let mut look = Some((HashSet::new(), before));
        let mut sequence = 0;
        if consume(link, inbox).await? == 0 {
            self.0.forget_all_but(look.take());
            complete.send_replace(Some(Ok(())));
        }
        let context = jetstream::new(link.client().clone());
        let mut tidied = Instant::now();
        loop {
            let update = tokio::select! {
                () = self.0.again.notified() => return Err(NatsError::Unavailable("it was asked for".to_owned())),
                _ = connection.changed() => return Err(NatsError::Unavailable("the connection changed".to_owned())),
                update = next(&mut messages, &context) => update?,
            };
            if update.consumer_sequence != sequence + u64::from(update.record.is_some()) {
                return Err(NatsError::Unavailable("an update was missed".to_owned()));
            }
            sequence = update.consumer_sequence;
            if let Some((subject, record, ttl)) = update.record {
                let key = subject.strip_prefix(&link.names().record("")).unwrap_or(&subject).to_owned();
                match &mut look {
                    Some((seen, before)) => {
                        seen.insert(key.clone());
                        self.0.note_looked_up(key, record, ttl, *before);
                    }
                    None => self.0.note(key, record, ttl),
                }
            }
            if tidied.elapsed() > TIDY_INTERVAL {
                self.0.known().records.retain(|_, known| known.expires.is_none_or(|at| Instant::now() < at));
                tidied = Instant::now();
            }
            if update.pending == 0 && look.is_some() {
                self.0.forget_all_but(look.take());
                complete.send_replace(Some(Ok(())));
            }
        }
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, AllKnown> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest_revision(&self) -> u64 {
        self.known().records.values().map(|known| known.record.revision).max().unwrap_or(0)
    }

    fn note(&self, key: String, record: Record, ttl: Option<Duration>) {
        let mut known = self.known();
        if known.records.get(&key).is_some_and(|known| known.record.revision >= record.revision) {
            return;
        }
        known.records.insert(key.clone(), Known { record, expires: ttl.map(|ttl| Instant::now() + ttl) });
        let version = *self.version.borrow() + 1;
        known.changes.push_back((version, key));
        if known.changes.len() > CHANGES
            && let Some((oldest, _)) = known.changes.pop_front()
        {
            known.complete_after = oldest;
        }
        self.version.send_replace(version);
    }

    /// During a look at all records, of which this is one. What was known before counts no more: the stream may have been
    /// made again, or be an older one, and then gives the same revisions once more.
    fn note_looked_up(&self, key: String, record: Record, ttl: Option<Duration>, before: u64) {
        let mut known = self.known();
        if known.records.get(&key).is_some_and(|known| known.record.revision <= before) {
            known.records.remove(&key);
        }
        drop(known);
        self.note(key, record, ttl);
    }

    /// After a look at all records: which keys there are, and how new one must be not to have been looked for.
    fn forget_all_but(&self, look: Option<(HashSet<String>, u64)>) {
        let Some((seen, before)) = look else { return };
        let mut known = self.known();
        let count = known.records.len();
        known.records.retain(|key, known| known.record.revision > before || seen.contains(key));
        self.looks.fetch_add(1, Ordering::Relaxed);
        if known.records.len() != count {
            let version = *self.version.borrow() + 1;
            known.changes.clear();
            known.complete_after = version;
            self.version.send_replace(version);
        }
    }
}

/// A record with its subject and time to live, or a sign of life.
struct Update {
    consumer_sequence: u64,
    pending: u64,
    record: Option<(String, Record, Option<Duration>)>,
}

/// Lets the stream send every subject's newest message to `inbox`, then every new one; says how many there are now.
async fn consume(link: &Link, inbox: String) -> Result<u64, NatsError> {
    #[derive(Deserialize)]
    struct Made {
        num_pending: u64,
    }
    let (stream, name) = (link.names().state(), Uuid::new_v4().simple().to_string());
    let request = json!({
        "stream_name": stream,
        "config": {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "filter_subject": link.names().record(">"),
            "ack_policy": "none",
            "max_deliver": 1,
            "idle_heartbeat": HEARTBEAT.as_nanos(),
            "inactive_threshold": Duration::from_secs(10).as_nanos(),
            "mem_storage": true,
            "num_replicas": 1,
        },
        "action": "create",
    });
    let Made { num_pending } = link.api(&format!("CONSUMER.CREATE.{stream}.{name}"), &request).await?;
    Ok(num_pending)
}

async fn next(messages: &mut Subscriber, context: &Context) -> Result<Update, NatsError> {
    let message = timeout(SILENCE, messages.next()).await;
    let message = message.map_err(|_| NatsError::Unavailable("no sign of life from the stream".to_owned()))?;
    let message = message.ok_or_else(|| NatsError::Unavailable("the connection has ended".to_owned()))?;
    if message.status == Some(StatusCode::IDLE_HEARTBEAT) {
        let last = header(&message, "Nats-Last-Consumer").and_then(|last| last.parse().ok());
        let consumer_sequence = last.ok_or_else(|| NatsError::Unavailable("a sign of life says nothing".to_owned()))?;
        return Ok(Update { consumer_sequence, pending: 0, record: None });
    }
    let ttl = header(&message, "Nats-TTL").and_then(|ttl| humantime::parse_duration(ttl).ok());
    let message = jetstream::Message { message, context: context.clone() };
    let info = message.info().map_err(|error| NatsError::Unavailable(error.to_string()))?;
    let (consumer_sequence, pending, revision) = (info.consumer_sequence, info.pending, info.stream_sequence);
    let jetstream::Message { message: Message { subject, payload, .. }, .. } = message;
    let record = Some((subject.to_string(), Record { revision, value: payload }, ttl));
    Ok(Update { consumer_sequence, pending, record })
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get(name)?.as_str())
}
