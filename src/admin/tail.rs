//! `/api/v1/tail`: events as they come, as server-sent events. It settles nothing, and rather skips than falls behind.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::call::{FilterWords, Place, Query};
use super::{Phase, View};
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
    let filter = FilterWords::of(&mut query).filter()?;
    let from = query.one("from", Place::parse, Place::FORM)?;
    query.finish(&format!("from, {}", FilterWords::KNOWN))?;
    let from = match headers.get("last-event-id") {
        Some(last) => Some(Bound::Sequence(after(last.as_bytes())?)),
        None => from.map(|Place(from)| from),
    };
    let insight = view.insight()?;
    if matches!(*view.phase.borrow(), Phase::Draining(_)) {
        return Err(Problem::new(Kind::Unavailable, "draining: no more events will come"));
    }
    let Ok(place) = view.tails.clone().try_acquire_owned() else {
        return Err(Problem::new(Kind::TooMany, format!("{PLACES} tails are open already: end one of them")).closing());
    };
    let source = Source::new(&insight.journal, from).await?;
    let tail = Tail {
        source,
        filter: Filter::new(&filter),
        phase: view.phase.clone(),
        silent_until: Instant::now() + KEEP_ALIVE,
        _place: place,
    };
    let body = stream::unfold((tail, true), |(mut tail, first)| async move {
        // At once, so that the client knows it is being told.
        let chunk = if first { Bytes::from_static(b": tail\n\n") } else { tail.next().await? };
        Some((Ok::<_, Infallible>(chunk), (tail, false)))
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

struct Tail {
    source: Source,
    filter: Filter,
    phase: watch::Receiver<Phase>,
    silent_until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Tail {
    /// What to send next. `None`: there will be no more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let (events, skipped) = tokio::select! {
                // Its sender lives as long as the service.
                _ = self.phase.wait_for(|phase| matches!(phase, Phase::Draining(_))) => return None,
                read = self.source.read() => read.ok()?,
                () = tokio::time::sleep_until(self.silent_until) => {
                    self.silent_until = Instant::now() + KEEP_ALIVE;
                    return Some(Bytes::from_static(b": still here\n\n"));
                }
            };
            let mut text = Vec::new();
            if skipped > 0 {
                text.extend_from_slice(format!("event: skipped\ndata: {{\"skipped\":{skipped}}}\n\n").as_bytes());
            }
            for event in events.iter().filter(|event| self.filter.passes(event)) {
                push(&mut text, event);
            }
            if !text.is_empty() {
                self.silent_until = Instant::now() + KEEP_ALIVE;
                return Some(text.into());
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

enum Source {
    /// What was there before, as fast as the client takes it.
    Past(Box<Scan>),
    Present(Watch),
}

impl Source {
    async fn new(journal: &Journal, from: Option<Bound>) -> Result<Self, Problem> {
        let sequence = match from {
            None | Some(Bound::End) => return Ok(Self::Present(journal.watch())),
            Some(Bound::Sequence(sequence)) => sequence,
            Some(Bound::Time(time)) => journal.sequence_at(time).await?,
        };
        Ok(Self::Past(Box::new(journal.scan(sequence))))
    }

    /// The next events, and how many were skipped before them. Dropped before it is done, it has read nothing.
    async fn read(&mut self) -> Result<(Vec<Event>, u64), Gone> {
        if let Self::Past(scan) = self
            && scan.caught_up()
        {
            *self = Self::Present(scan.watch());
        }
        match self {
            Self::Past(scan) => scan.read().await.map(|events| (events, 0)),
            Self::Present(watch) => watch.read().await,
        }
    }
}
