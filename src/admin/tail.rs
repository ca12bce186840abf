//! `/api/v1/tail`: events as they come, as server-sent events. It settles nothing, and rather skips than falls behind. One
//! that has an end says so with its last message, so that its client can tell the end from a broken connection.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::call::{FilterWords, Place, Query};
use super::view::{Phase, View};
use crate::dispatch::{Bound, Filter};
use crate::journal::{Event, Gone, Journal, Scan, Watch};
use crate::problem::{Kind, Problem};
use crate::shape::push_line;

/// How many may look on at a time.
pub(super) const PLACES: usize = 16;

/// So that what is between knows the connection is alive, and a client that is gone is found out.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// From now on, or from a place in the journal on; a client that lost its connection goes on where it was.
pub(super) async fn tail(State(view): State<View>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let mut query = Query::of(&uri);
    let filter = FilterWords::of(&mut query);
    let from = query.one("from", Place::parse, Place::FORM)?;
    let to = query.one("to", Place::parse, Place::FORM)?.map(|Place(to)| to);
    let limit = query.one("limit", |text| text.parse().ok().filter(|&limit| limit > 0), "a number from 1 on")?;
    let follow = query.one("follow", |text| text.parse::<bool>().ok(), "true or false")?.unwrap_or(true);
    query.finish(&format!("from, to, limit, follow, {}", FilterWords::KNOWN))?;
    let from = match headers.get("last-event-id") {
        Some(last) => Some(Bound::Sequence(after(last.as_bytes())?)),
        // One that ends has begun somewhere: with the oldest event there is.
        None if from.is_none() && (to.is_some() || !follow) => Some(Bound::Sequence(1)),
        None => from.map(|Place(from)| from),
    };
    let insight = view.insight()?;
    if matches!(*view.phase.borrow(), Phase::Draining(_)) {
        return Err(Problem::new(Kind::Unavailable, "draining: no more events will come"));
    }
    let Ok(place) = view.tails.clone().try_acquire_owned() else {
        return Err(Problem::new(Kind::TooMany, format!("{PLACES} tails are open already: end one of them")).closing());
    };
    let (_, filter) = filter.compiled().await?;
    let end = End::new(&insight.journal, to, limit, follow).await?;
    let source = Source::new(&insight.journal, from).await?;
    let tail = Tail {
        source,
        end,
        journal: insight.journal,
        filter,
        phase: view.phase.clone(),
        silent_until: Instant::now() + KEEP_ALIVE,
        _place: place,
    };
    let body = stream::unfold(Part::First(tail), |state| async move {
        let (chunk, next) = match state {
            // At once, so that the client knows that the stream has begun.
            Part::First(tail) => (Bytes::from_static(b": tail\n\n"), Part::Events(tail)),
            Part::Events(mut tail) => match tail.next().await? {
                Next::Events(text) => (text, Part::Events(tail)),
                Next::Over(reason) => (format!("event: end\ndata: {{\"reason\":\"{reason}\"}}\n\n").into(), Part::Last),
            },
            Part::Last => return None,
        };
        Some((Ok::<_, Infallible>(chunk), next))
    });
    // Proxies such as nginx would hold it back.
    let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn after(last_event_id: &[u8]) -> Result<u64, Problem> {
    let sequence = std::str::from_utf8(last_event_id).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let next = sequence.and_then(|sequence| sequence.checked_add(1));
    next.ok_or_else(|| Problem::new(Kind::Invalid, "Last-Event-ID has to be the id of an event of this stream"))
}

/// What the stream sends next.
enum Part {
    First(Tail),
    Events(Tail),
    Last,
}

enum Next {
    Events(Bytes),
    /// The word for why there is no more.
    Over(&'static str),
}

struct Tail {
    source: Source,
    end: End,
    journal: Journal,
    filter: Filter,
    phase: watch::Receiver<Phase>,
    silent_until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Tail {
    /// What to send next. `None`: the receiver is being stopped.
    async fn next(&mut self) -> Option<Next> {
        loop {
            if let Some(reason) = self.end.is_reached(self.source.position()) {
                return Some(Next::Over(reason));
            }
            let (events, skipped) = tokio::select! {
                // Its sender lives as long as the service.
                _ = self.phase.wait_for(|phase| matches!(phase, Phase::Draining(_))) => return None,
                read = self.source.read() => read.ok()?,
                () = self.end.time() => {
                    self.end.last_is(self.journal.range().1);
                    continue;
                }
                () = tokio::time::sleep_until(self.silent_until) => {
                    self.silent_until = Instant::now() + KEEP_ALIVE;
                    return Some(Next::Events(Bytes::from_static(b": still here\n\n")));
                }
            };
            let mut text = Vec::new();
            if skipped > 0 {
                text.extend_from_slice(format!("event: skipped\ndata: {{\"skipped\":{skipped}}}\n\n").as_bytes());
            }
            for event in events.iter().filter(|event| self.filter.passes(event)) {
                if !self.end.admits(event) {
                    continue;
                }
                push(&mut text, event);
            }
            if !text.is_empty() {
                self.silent_until = Instant::now() + KEEP_ALIVE;
                return Some(Next::Events(text.into()));
            }
            // A filter that passes little must not keep the thread.
            tokio::task::yield_now().await;
        }
    }
}

/// One message.
fn push(text: &mut Vec<u8>, event: &Event) {
    text.extend_from_slice(format!("id: {}\ndata: ", event.sequence()).as_bytes());
    push_line(text, event.body());
    text.extend_from_slice(b"\n\n");
}

/// Where a tail ends.
struct End {
    /// The last sequence, once it is certain.
    last: Option<u64>,
    /// Received at this time at the latest.
    received_to: Option<SystemTime>,
    /// When that time has come, for as long as `last` is not certain because of it.
    comes_at: Option<Instant>,
    /// Events still to send.
    left: Option<u64>,
}

impl End {
    /// How long after its receipt an event may become durable: an answer is given well within that time.
    const SETTLED_WITHIN: Duration = Duration::from_secs(60);

    async fn new(journal: &Journal, to: Option<Bound>, left: Option<u64>, follow: bool) -> Result<Self, Problem> {
        let newest = journal.range().1;
        let mut end = Self { last: (!follow).then_some(newest), received_to: None, comes_at: None, left };
        match to {
            None | Some(Bound::End) => {}
            Some(Bound::Sequence(to)) => end.last_is(to),
            Some(Bound::Time(to)) => {
                end.received_to = Some(to);
                match to.duration_since(SystemTime::now()) {
                    Ok(ahead) => end.comes_at = Instant::now().checked_add(ahead + Duration::from_secs(1)),
                    Err(_) => {
                        // Nothing that came until then is further on.
                        let beyond = journal.sequence_at(to + Self::SETTLED_WITHIN).await?;
                        end.last_is(newest.min(beyond.saturating_sub(1)));
                    }
                }
            }
        }
        Ok(end)
    }

    fn last_is(&mut self, last: u64) {
        self.last = Some(self.last.map_or(last, |other| other.min(last)));
        self.comes_at = None;
    }

    /// `position` is the next sequence.
    fn is_reached(&self, position: u64) -> Option<&'static str> {
        match (self.left, self.last) {
            (Some(0), _) => Some("limit"),
            (_, Some(last)) if position > last => Some("range"),
            _ => None,
        }
    }

    /// Takes an event that passes the filter into account; whether it is to be sent.
    fn admits(&mut self, event: &Event) -> bool {
        let in_range = self.last.is_none_or(|last| event.sequence() <= last)
            && self.received_to.is_none_or(|to| event.received_at() <= to);
        if !in_range || self.left == Some(0) {
            return false;
        }
        self.left = self.left.map(|left| left - 1);
        true
    }

    /// Back when the time of the end has come.
    async fn time(&self) {
        match self.comes_at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

enum Source {
    /// What was there before, as fast as the client takes it.
    Past(Box<Scan>),
    Present {
        watch: Watch,
        /// The sequence after the last one that was seen.
        next: u64,
    },
}

impl Source {
    async fn new(journal: &Journal, from: Option<Bound>) -> Result<Self, Problem> {
        let sequence = match from {
            None | Some(Bound::End) => {
                let watch = journal.watch();
                return Ok(Self::Present { watch, next: journal.range().1 + 1 });
            }
            Some(Bound::Sequence(sequence)) => sequence,
            Some(Bound::Time(time)) => journal.sequence_at(time).await?,
        };
        Ok(Self::Past(Box::new(journal.scan(sequence))))
    }

    /// The next sequence, as far as it is known.
    fn position(&self) -> u64 {
        match self {
            Self::Past(scan) => scan.next(),
            Self::Present { next, .. } => *next,
        }
    }

    /// The next events, and how many were skipped before them. Dropped before it is done, it has read nothing.
    async fn read(&mut self) -> Result<(Vec<Event>, u64), Gone> {
        if let Self::Past(scan) = self
            && scan.caught_up()
        {
            *self = Self::Present { watch: scan.watch(), next: scan.next() };
        }
        match self {
            Self::Past(scan) => scan.read().await.map(|events| (events, 0)),
            Self::Present { watch, next } => {
                let (events, skipped) = watch.read().await?;
                *next = events.last().map_or(*next + skipped, |event| event.sequence() + 1);
                Ok((events, skipped))
            }
        }
    }
}
