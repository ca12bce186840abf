//! A partition's consumer at the cluster: the lease, and the bell that says that something is there.
//!
//! Its messages carry no bodies: events are read from the stream, in order and as there is room for them. The cluster gives
//! a consumer's messages to one receiver at a time, the one pinned, as long as that one goes on asking. Asking is what a
//! pull is for here, whether or not there is room.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Message, Subject, Subscriber};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::error::NatsError;
use super::link::Link;

/// Without a pull for so long a receiver loses its pin.
pub(crate) const PIN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long the cluster keeps a pull.
const PULL_FOR: Duration = Duration::from_secs(2);
/// So much later its answer was lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Before another pull, when the consumer has no leader.
const PAUSE: Duration = Duration::from_millis(250);
/// Messages of a pull.
const BATCH: usize = 64;
/// What is not acknowledged comes again after that, and wakes whoever is the next owner.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// How many are not acknowledged at a time. No bound for events, which are read without them.
pub(crate) const MAX_ACK_PENDING: usize = 256;
/// Pulls whose answers may still come.
const MOST_OPEN: usize = 4;
const GROUP: &str = "lane";

const EXISTS: [u64; 2] = [10148, 10013];
const NOT_FOUND: u64 = 10014;
/// A file of the server's was not there: seen when two make a consumer at the same time that has only just been deleted. The
/// server knows of it then, and has no files of it.
const NOT_MADE: u64 = 10012;
/// So often it is tried then.
const TRIES: u32 = 5;

/// What is known of a consumer.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    num_pending: u64,
    num_ack_pending: u64,
    /// By somebody else: receivers pause none.
    #[serde(default)]
    pub(crate) paused: bool,
    config: Value,
}

impl Info {
    /// Nothing of it is on its way to anybody, or will be.
    pub(crate) fn is_idle(&self) -> bool {
        self.num_pending == 0 && self.num_ack_pending == 0
    }
}

/// Makes the consumer of a sink's partition, from sequence `start` on, if there is none.
///
/// # Errors
/// [`NatsError::Unfit`] when there is another of its name.
pub(crate) async fn make(link: &Link, sink: &str, partition: u16, start: u64) -> Result<(), NatsError> {
    let (stream, name) = (link.names().events(), link.names().consumer(sink, partition));
    let wanted = json!({
        "durable_name": name,
        "description": "made by asapp-receiver",
        "filter_subject": link.names().subject(partition),
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start.max(1),
        "ack_policy": "explicit",
        "ack_wait": nanoseconds(ACK_WAIT),
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
        "headers_only": true,
        "replay_policy": "instant",
        "priority_policy": "pinned_client",
        "priority_groups": [GROUP],
        "priority_timeout": nanoseconds(PIN_TIMEOUT),
    });
    let request = json!({ "stream_name": stream, "config": wanted, "action": "create" });
    let subject = format!("CONSUMER.CREATE.{stream}.{name}.{}", link.names().subject(partition));
    let mut made: Result<Value, _> = link.api(&subject, &request).await;
    for _ in 1..TRIES {
        if !matches!(made, Err(NatsError::Refused { code: NOT_MADE, .. })) {
            break;
        }
        delete(link, sink, partition).await?;
        sleep(PAUSE + Duration::from_millis(fastrand::u64(..250))).await;
        made = link.api(&subject, &request).await;
    }
    match made {
        Ok(_) => Ok(()),
        Err(NatsError::Refused { code, .. }) if EXISTS.contains(&code) => check(link, &name, &wanted).await,
        Err(error) => Err(error),
    }
}

/// Whether there is one of this name that does what is wanted, from wherever it began.
async fn check(link: &Link, name: &str, wanted: &Value) -> Result<(), NatsError> {
    let Some(Info { config, .. }) = look(link, name).await? else {
        return Err(NatsError::Unavailable(format!("consumer {name} comes and goes")));
    };
    let Some(wanted) = wanted.as_object() else { return Ok(()) };
    let began = ["deliver_policy", "opt_start_seq"];
    let differs = wanted.iter().filter(|(key, value)| !began.contains(&key.as_str()) && config.get(key) != Some(value));
    let differs: Vec<&str> = differs.map(|(key, _)| key.as_str()).collect();
    if differs.is_empty() {
        return Ok(());
    }
    let stream = link.names().events();
    Err(NatsError::Unfit(vec![format!(
        "the consumer {name} of stream {stream} has another {}: delete it (`nats consumer rm {stream} {name}`), and it is \
         made anew where its sink stands",
        differs.join(", ")
    )]))
}

/// Makes it once more, from sequence `start` on, whatever the one there knows.
pub(crate) async fn make_again(link: &Link, sink: &str, partition: u16, start: u64) -> Result<(), NatsError> {
    delete(link, sink, partition).await?;
    make(link, sink, partition, start).await
}

pub(crate) async fn info(link: &Link, sink: &str, partition: u16) -> Result<Option<Info>, NatsError> {
    look(link, &link.names().consumer(sink, partition)).await
}

async fn look(link: &Link, name: &str) -> Result<Option<Info>, NatsError> {
    match link.api(&format!("CONSUMER.INFO.{}.{name}", link.names().events()), &json!({})).await {
        Ok(info) => Ok(Some(info)),
        Err(NatsError::Refused { code: NOT_FOUND, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes it, if it is there.
pub(crate) async fn delete(link: &Link, sink: &str, partition: u16) -> Result<(), NatsError> {
    let name = link.names().consumer(sink, partition);
    match link.api::<Value>(&format!("CONSUMER.DELETE.{}.{name}", link.names().events()), &json!({})).await {
        Ok(_) | Err(NatsError::Refused { code: NOT_FOUND, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets another receiver have it at once. Servers before 2.12.5 may not do it: then the pin runs out.
pub(crate) async fn unpin(link: &Link, sink: &str, partition: u16) -> Result<(), NatsError> {
    let name = link.names().consumer(sink, partition);
    let subject = format!("CONSUMER.UNPIN.{}.{name}", link.names().events());
    link.api::<Value>(&subject, &json!({ "group": GROUP })).await.map(drop)
}

/// The pulls of one partition, and what comes of them.
pub(crate) struct Pulls {
    link: Link,
    context: Context,
    /// Where to pull.
    subject: String,
    inbox: String,
    answers: Subscriber,
    number: u64,
    /// Sent and not answered to the end, the oldest first.
    open: VecDeque<Pull>,
    not_before: Instant,
}

struct Pull {
    number: u64,
    sent: Instant,
    left: usize,
    pin: Option<String>,
}

/// What the cluster says.
pub(crate) enum Heard {
    /// There is an event. Whoever gets this was pinned some time after `asked`; `None`: perhaps long ago.
    Bell {
        sequence: u64,
        reply: Subject,
        pin: String,
        asked: Option<Instant>,
    },
    /// Whoever pulled with this pin had it after `asked`.
    Pinned {
        pin: String,
        asked: Instant,
    },
    /// This pin is none any more.
    NotPinned {
        pin: String,
    },
    /// Nobody answers for the consumer; it may be gone.
    Nobody,
    Nothing,
}

impl Pulls {
    pub(crate) async fn of(link: &Link, sink: &str, partition: u16) -> Result<Self, NatsError> {
        let inbox = link.client().new_inbox();
        let answers = link.client().subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| NatsError::Unavailable(error.to_string()))?;
        let consumer = link.names().consumer(sink, partition);
        Ok(Self {
            context: jetstream::new(link.client().clone()),
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", link.names().events()),
            link: link.clone(),
            inbox,
            answers,
            number: 0,
            open: VecDeque::new(),
            // Not all at the same time.
            not_before: Instant::now() + Duration::from_millis(fastrand::u64(..200)),
        })
    }

    /// When the next pull is due.
    pub(crate) fn due(&self) -> Instant {
        let answered = self.open.back().map_or(self.not_before, |pull| pull.sent + PULL_FOR + ANSWER_WITHIN);
        answered.max(self.not_before)
    }

    /// Asks again, if it is time to.
    pub(crate) async fn go_on(&mut self, pin: Option<&str>) {
        let now = Instant::now();
        if self.due() > now {
            return;
        }
        if !self.link.is_connected() {
            // What is queued now would be sent too late.
            self.open.clear();
            self.not_before = now + PAUSE.mul_f64(1.0 + fastrand::f64());
            return;
        }
        let mut request = json!({ "batch": BATCH, "expires": nanoseconds(PULL_FOR), "group": GROUP });
        if let Some(pin) = pin {
            request["id"] = pin.into();
        }
        self.number += 1;
        self.open.push_back(Pull { number: self.number, sent: now, left: BATCH, pin: pin.map(str::to_owned) });
        if self.open.len() > MOST_OPEN {
            self.open.pop_front();
        }
        let reply = format!("{}.{}", self.inbox, self.number);
        // What is not sent is not answered, and sent again.
        let sent = self.link.client().publish_with_reply(self.subject.clone(), reply, request.to_string().into());
        let _ = tokio::time::timeout(ANSWER_WITHIN, sent).await;
    }

    /// Waits for the next answer. Dropped before it is done, it has heard nothing.
    pub(crate) async fn next(&mut self) -> Heard {
        let Some(message) = self.answers.next().await else {
            // The connection was closed for good; what comes of that is others' to say.
            return std::future::pending().await;
        };
        match message.status.map(|status| status.as_u16()) {
            None => self.bell(message),
            Some(408) => match self.answered(&message) {
                Some(Pull { pin: Some(pin), sent, .. }) => Heard::Pinned { pin, asked: sent },
                _ => Heard::Nothing,
            },
            Some(423) => match self.answered(&message) {
                Some(Pull { pin: Some(pin), .. }) => Heard::NotPinned { pin },
                _ => Heard::Nothing,
            },
            Some(100) => Heard::Nothing,
            status => {
                self.answered(&message);
                self.not_before = Instant::now() + PAUSE.mul_f64(1.0 + fastrand::f64());
                let text = message.description.as_deref().unwrap_or_default();
                tracing::debug!(consumer = self.subject, status, text, "a pull was not answered");
                let is_gone = status == Some(503) || text.contains("Deleted");
                if is_gone { Heard::Nobody } else { Heard::Nothing }
            }
        }
    }

    fn bell(&mut self, message: Message) -> Heard {
        let pin = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Pin-Id"));
        let pin = pin.map(|pin| pin.as_str().to_owned());
        // It does not say which pull it answers; the oldest one promises the least.
        let asked = self.open.front().map(|pull| pull.sent);
        if let Some(pull) = self.open.front_mut() {
            pull.left = pull.left.saturating_sub(1);
            if pull.left == 0 {
                self.open.pop_front();
            }
        }
        let message = jetstream::Message { message, context: self.context.clone() };
        let sequence = message.info().ok().map(|info| info.stream_sequence);
        match (sequence, message.message.reply, pin) {
            (Some(sequence), Some(reply), Some(pin)) => Heard::Bell { sequence, reply, pin, asked },
            _ => Heard::Nothing,
        }
    }

    /// The pull that this ends, and with it those before.
    fn answered(&mut self, message: &Message) -> Option<Pull> {
        let number: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
        let at = self.open.iter().position(|pull| pull.number == number)?;
        self.open.drain(..=at).next_back()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
