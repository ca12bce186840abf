//! The connection to the cluster: requests that leave nothing behind when they are not answered, and what the other parts
//! ask of streams.
//!
//! `async-nats` has requests too, but keeps an entry of each that is never answered, and does not end those under way when
//! the connection is lost.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::connection::State;
use async_nats::jetstream::stream;
use async_nats::{Client, ConnectErrorKind, Event, HeaderMap, Message, ServerAddr, StatusCode};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::error::{ApiError, NO_MESSAGE, NO_SEQUENCE, NOT_DELETED, NatsError, NotStored, OVER_MAX_PAYLOAD};
use super::login;
use super::names::Names;
use super::replies::{Batch, Replies, Stored, Ticket};
use crate::config;

/// For the first connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For an answer of the API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers count nanoseconds in 63 bits: in 2262 they begin anew.
const LAST_TIME: Duration = Duration::from_secs(9_000_000_000);
/// How late a change of the connection is seen, should its event have been lost.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A handle to the connection; cheap to clone. It ends with the last one.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    client: Client,
    names: Names,
    replies: Arc<Replies>,
    connection: watch::Receiver<bool>,
    connects: Arc<AtomicU64>,
    /// Of the tasks that read answers and watch the connection.
    _tasks: (TaskTracker, DropGuard),
}

/// What the cluster did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Of a duplicate, its first copy's.
    pub(crate) sequence: u64,
    pub(crate) duplicate: bool,
}

/// Where a batch begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    Sequence(u64),
    Time(SystemTime),
}

impl Link {
    /// Connects, within 10 s. From then on the connection mends itself.
    ///
    /// # Errors
    /// When a file of the settings cannot be used, when no server answers, or when they do not let the receiver in.
    pub(crate) async fn connect(settings: &config::Nats) -> Result<Self, NatsError> {
        let (changed, connects) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let client = connect(settings, (&changed, &connects)).await?;
        let replies = Arc::new(Replies::new(client.new_inbox()));
        let answers = client.subscribe(replies.subjects()).await;
        let answers = answers.map_err(|error| NatsError::Unavailable(error.to_string()))?;
        let (state, connection) = watch::channel(true);
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        super::spawn(&tracker, end.clone().run_until_cancelled_owned(Arc::clone(&replies).hand_out(answers)));
        let watched = watch_connection(client.clone(), changed, state, Arc::clone(&replies));
        super::spawn(&tracker, end.clone().run_until_cancelled_owned(watched));
        tracker.close();
        let names = Names::new(&settings.stream);
        Ok(Self(Arc::new(Inner { client, names, replies, connection, connects, _tasks: (tracker, end.drop_guard()) })))
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.client.connection_state() == State::Connected
    }

    pub(crate) fn connection(&self) -> watch::Receiver<bool> {
        self.0.connection.clone()
    }

    /// How often it was made, up to now.
    pub(crate) fn connects(&self) -> u64 {
        self.0.connects.load(Ordering::Relaxed)
    }

    /// Tries once to store a message. The caller gives it an id (`Nats-Msg-Id`), and repeats the same after
    /// [`NotStored::Unavailable`] and [`NotStored::Busy`].
    ///
    /// # Errors
    /// [`NotStored`].
    pub(crate) async fn publish(
        &self,
        stream: &str,
        subject: &str,
        mut headers: HeaderMap,
        payload: Bytes,
        within: Duration,
    ) -> Result<Ack, NotStored> {
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, stream);
        let end = Instant::now() + within;
        let answer = self.ask(subject.to_owned(), Some(headers), payload, end).await.map_err(|error| match error {
            NatsError::Unavailable(text) => NotStored::Unavailable(text),
            NatsError::Refused { code: OVER_MAX_PAYLOAD, text } => NotStored::TooLarge(text),
            other => NotStored::Refused(other.to_string()),
        })?;
        let parsed: Result<Published, _> = serde_json::from_slice(&answer.payload);
        match parsed {
            Ok(Published { error: Some(error), .. }) => Err(error.not_stored()),
            Ok(Published { seq, duplicate, .. }) if seq > 0 => Ok(Ack { sequence: seq, duplicate }),
            _ => Err(NotStored::Unavailable(format!("{subject} was answered by something that is no stream"))),
        }
    }

    /// Asks the API; `subject` is what comes after `$JS.API.`.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        request: &impl Serialize,
    ) -> Result<T, NatsError> {
        let payload = serde_json::to_vec(request).map_err(|error| NatsError::Unavailable(error.to_string()))?;
        let end = Instant::now() + API_TIMEOUT;
        let answer = self.ask(format!("$JS.API.{subject}"), None, payload.into(), end).await?;
        let unreadable = |error| NatsError::Unavailable(format!("the answer to {subject} cannot be read: {error}"));
        let Answer { error } = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
        if let Some(error) = error {
            return Err(error.into());
        }
        serde_json::from_slice(&answer.payload).map_err(unreadable)
    }

    /// Reads up to `count` messages whose subjects match, or `max_bytes` (of one message at least). Any replica answers,
    /// which may not have the newest yet. The stream must allow direct reads.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`], also when a message of the answer is missing, and [`NatsError::Refused`].
    pub(crate) async fn read(
        &self,
        stream: &str,
        filter: &str,
        from: From,
        count: usize,
        max_bytes: usize,
    ) -> Result<Batch, NatsError> {
        let mut request = json!({ "batch": count, "max_bytes": max_bytes, "next_by_subj": filter });
        match from {
            From::Sequence(sequence) => request["seq"] = sequence.max(1).into(),
            From::Time(time) => {
                // What is beyond is before or after every message all the same.
                let time = time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_TIME);
                request["start_time"] = humantime::format_rfc3339_nanos(time).to_string().into();
            }
        }
        let ticket = self.0.replies.ticket(count + 1);
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        self.send(subject, &ticket, None, request.to_string().into(), Instant::now() + API_TIMEOUT).await?;
        ticket.batch().await
    }

    /// A message by its sequence, from the stream's leader.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn get(&self, stream: &str, sequence: u64) -> Result<Option<Stored>, NatsError> {
        self.get_by(stream, json!({ "seq": sequence })).await
    }

    /// The newest message of a subject, from the stream's leader.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn get_last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, NatsError> {
        self.get_by(stream, json!({ "last_by_subj": subject })).await
    }

    /// The first message of a subject at this sequence or after, from the stream's leader.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn get_next(&self, stream: &str, subject: &str, from: u64) -> Result<Option<Stored>, NatsError> {
        self.get_by(stream, json!({ "seq": from, "next_by_subj": subject })).await
    }

    /// Deletes a message; false if there is none of this sequence.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn delete(&self, stream: &str, sequence: u64) -> Result<bool, NatsError> {
        #[derive(Deserialize)]
        struct Deleted {
            success: bool,
        }
        let request = json!({ "seq": sequence, "no_erase": true });
        match self.api(&format!("STREAM.MSG.DELETE.{stream}"), &request).await {
            Ok(Deleted { success }) => Ok(success),
            Err(NatsError::Refused { code: NO_MESSAGE | NO_SEQUENCE, .. }) => Ok(false),
            // Beyond the stream's end, or before its first message. The code stands for a lack of rights too.
            Err(NatsError::Refused { code: NOT_DELETED, text })
                if text.ends_with("EOF") || text.contains("no message found") =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes all messages, or those that match, below a sequence; says how many.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn purge(&self, stream: &str, filter: Option<&str>, below: u64) -> Result<u64, NatsError> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let request = match filter {
            Some(filter) => json!({ "seq": below, "filter": filter }),
            None => json!({ "seq": below }),
        };
        let Purged { purged } = self.api(&format!("STREAM.PURGE.{stream}"), &request).await?;
        Ok(purged)
    }

    /// A stream's settings and state.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`], with the code [`NO_STREAM`] when there is none.
    pub(crate) async fn info(&self, stream: &str) -> Result<stream::Info, NatsError> {
        self.api(&format!("STREAM.INFO.{stream}"), &json!({})).await
    }

    /// How many messages of a subject the stream's leader has.
    ///
    /// # Errors
    /// [`NatsError::Unavailable`] and [`NatsError::Refused`].
    pub(crate) async fn count(&self, stream: &str, subject: &str) -> Result<u64, NatsError> {
        #[derive(Deserialize)]
        struct Got {
            state: Counts,
        }
        #[derive(Deserialize)]
        struct Counts {
            /// There is none where the stream has no such message.
            #[serde(default)]
            subjects: HashMap<String, u64>,
        }
        let got: Got = self.api(&format!("STREAM.INFO.{stream}"), &json!({ "subjects_filter": subject })).await?;
        Ok(got.state.subjects.values().sum())
    }

    async fn get_by(&self, stream: &str, request: serde_json::Value) -> Result<Option<Stored>, NatsError> {
        #[derive(Deserialize)]
        struct Got {
            message: stream::RawMessage,
        }
        let got: Got = match self.api(&format!("STREAM.MSG.GET.{stream}"), &request).await {
            Ok(got) => got,
            Err(NatsError::Refused { code: NO_MESSAGE, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let message = async_nats::jetstream::message::StreamMessage::try_from(got.message);
        let message = message.map_err(|error| NatsError::Unavailable(error.to_string()))?;
        Ok(Some(Stored {
            sequence: message.sequence,
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
            time: message.time.into(),
        }))
    }

    /// One answer to one request.
    async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        end: Instant,
    ) -> Result<Message, NatsError> {
        let mut ticket = self.0.replies.ticket(1);
        self.send(subject, &ticket, headers, payload, end).await?;
        let answer = ticket.next(end).await?;
        match answer.status {
            Some(StatusCode::NO_RESPONDERS) => {
                Err(NatsError::Unavailable("nobody is there to answer: no leader, or no such stream".to_owned()))
            }
            _ => Ok(answer),
        }
    }

    async fn send(
        &self,
        subject: String,
        ticket: &Ticket<'_>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        end: Instant,
    ) -> Result<(), NatsError> {
        if !self.is_connected() {
            return Err(NatsError::Unavailable("not connected to any server".to_owned()));
        }
        let headers = headers.unwrap_or_default();
        let sent = self.0.client.publish_with_reply_and_headers(subject, ticket.subject(), headers, payload);
        match timeout_at(end, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == async_nats::PublishErrorKind::Send => {
                Err(NatsError::Unavailable(error.to_string()))
            }
            Ok(Err(error)) if error.kind() == async_nats::PublishErrorKind::MaxPayloadExceeded => {
                Err(NatsError::Refused { code: OVER_MAX_PAYLOAD, text: error.to_string() })
            }
            Ok(Err(error)) => Err(NatsError::Refused { code: 0, text: error.to_string() }),
            Err(_) => Err(NatsError::Unavailable("it could not be sent in time".to_owned())),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("stream", &self.0.names.events()).finish_non_exhaustive()
    }
}

async fn connect(
    settings: &config::Nats,
    (changed, connects): (&Arc<Notify>, &Arc<AtomicU64>),
) -> Result<Client, NatsError> {
    let servers: Result<Vec<ServerAddr>, _> = settings.servers.iter().map(|server| server.parse()).collect();
    let servers = servers.map_err(|error| NatsError::Unfit(vec![format!("journal.nats.servers: {error}")]))?;
    let shown = settings.servers.join(", ");
    let end = Instant::now() + CONNECT_WITHIN;
    let mut last = "no answer within 10 s".to_owned();
    loop {
        let (changed, connects) = (Arc::clone(changed), Arc::clone(connects));
        let options = login::options(settings)?.event_callback(move |event| {
            tell(&event);
            if matches!(event, Event::Connected) {
                connects.fetch_add(1, Ordering::Relaxed);
            }
            changed.notify_one();
            std::future::ready(())
        });
        // Its own pause comes before each address.
        let Ok(connected) = timeout_at(end, options.connect(servers.clone())).await else {
            return Err(NatsError::Unavailable(format!("no connection to {shown}: {last}")));
        };
        let error = match connected {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        last = with_causes(&error);
        let remedy = match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                "let the certificate, the credentials_file or the nkey_file be one that the cluster knows"
            }
            _ if is_of_tls(&error) => {
                "let ca be who signs the servers' certificates, these be for the names in servers, and \
                                       certificate one that the cluster trusts"
            }
            _ => continue,
        };
        return Err(NatsError::Unfit(vec![format!(
            "journal.nats.servers: no connection to {shown}: {last}: {remedy}"
        )]));
    }
}

fn tell(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("disconnected from NATS"),
        Event::LameDuckMode => tracing::info!("the NATS server is going down; others are tried"),
        Event::SlowConsumer(_) => tracing::warn!("messages from NATS were dropped unread; they are asked for again"),
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server told an error"),
        Event::ClientError(error) => tracing::warn!(%error, "no connection to NATS"),
        Event::Draining | Event::Closed => {}
    }
}

/// Tells whether there is a connection, and ends what waits when there is none any more.
async fn watch_connection(client: Client, changed: Arc<Notify>, state: watch::Sender<bool>, replies: Arc<Replies>) {
    loop {
        // Events can be lost; the state cannot.
        let _ = timeout(LOOK_AGAIN, changed.notified()).await;
        let connected = client.connection_state() == State::Connected;
        let differs = state.send_if_modified(|was| std::mem::replace(was, connected) != connected);
        if differs && !connected {
            replies.give_up();
        }
    }
}

/// Whether one side does not like the other's certificate, or how it speaks.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    chain.any(|error| {
        let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        error.is::<rustls::Error>() || io.is_some_and(|inner| inner.is::<rustls::Error>())
    })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[derive(Deserialize)]
struct Published {
    error: Option<ApiError>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct Answer {
    error: Option<ApiError>,
}
