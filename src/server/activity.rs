//! What a connection is doing, and since when: what its deadlines are judged by.
//!
//! hyper's own head time-out also runs while a connection is idle and sets a timer for each request; here the IO and the
//! requests leave marks, and one timer for each connection looks at them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::Frames;
use super::limits::Limits;
use super::seat::Seat;

/// How long a peer may go on sending after its last answer. Closing while its bytes lie unread would reset the connection
/// and could take the answer with it.
const LINGER: Duration = Duration::from_secs(2);
/// What it may send meanwhile. A client that looks for its answer stops long before.
const MOST_UNREAD: usize = 16 * 1024 * 1024;

/// Written by the connection's IO and requests, read by its supervisor. Mostly one task, so nothing needs an order.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    http2: bool,
    /// How long the peer may take to begin its first request.
    first_within: Duration,
    begun: AtomicBool,
    /// Requests from head to the end of their answer's body.
    requests: AtomicU32,
    /// Those of them whose answer is on its way.
    answers: AtomicU32,
    idle_since: AtomicU64,
    /// Marks in nanoseconds since `epoch`; 0 for none.
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// When an answer last got on.
    answering_since: AtomicU64,
    lingering_since: AtomicU64,
    /// The next answer is the last.
    last: AtomicBool,
    /// Nothing is on its way to the peer, so there is nothing to linger for.
    abrupt: AtomicBool,
    /// What the peer did that ends the connection: the word it is counted under.
    fault: OnceLock<&'static str>,
}

/// Whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Head,
    Idle,
    Write,
    Linger,
}

impl Activity {
    pub(super) fn new(http2: bool, first_within: Duration) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            http2,
            first_within,
            begun: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            answering_since: AtomicU64::new(0),
            lingering_since: AtomicU64::new(0),
            last: AtomicBool::new(false),
            abrupt: AtomicBool::new(false),
            fault: OnceLock::new(),
        })
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        self.begun.store(true, Relaxed);
        Busy { activity: Arc::clone(self), answers: false, seat: None }
    }

    /// When the last request ended; before the first one, when the connection began.
    pub(super) fn idle_since(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.idle_since.load(Relaxed))
    }

    /// Whether there has been a request at all.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Relaxed)
    }

    pub(super) fn make_last(&self) {
        self.last.store(true, Relaxed);
    }

    pub(super) fn is_last(&self) -> bool {
        self.last.load(Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    pub(super) fn do_not_linger(&self) {
        self.abrupt.store(true, Relaxed);
    }

    pub(super) fn fault(&self) -> Option<&'static str> {
        self.fault.get().copied()
    }

    /// No request under way, nor the beginning of one.
    pub(super) fn is_idle(&self) -> bool {
        !self.has_requests() && self.head_since.load(Relaxed) == 0
    }

    pub(super) fn has_requests(&self) -> bool {
        self.requests.load(Relaxed) > 0
    }

    /// The next deadline, if the peer is being waited for.
    pub(super) fn due(&self, limits: &Limits) -> Option<(Due, Instant)> {
        let at = |mark: u64, within: Duration| self.epoch + Duration::from_nanos(mark) + within;
        match self.lingering_since.load(Relaxed) {
            0 => {}
            since => return Some((Due::Linger, at(since, LINGER))),
        }
        let write = match self.blocked_since.load(Relaxed) {
            // In HTTP/2 a peer can take bytes, but none of an answer: it has a window for each.
            0 if self.http2 && self.answers.load(Relaxed) > 0 => {
                Some((Due::Write, at(self.answering_since.load(Relaxed), limits.write_timeout)))
            }
            0 => None,
            since => Some((Due::Write, at(since, limits.write_timeout))),
        };
        let read = if self.requests.load(Relaxed) > 0 {
            None
        } else {
            Some(match self.head_since.load(Relaxed) {
                0 if self.begun.load(Relaxed) => (Due::Idle, at(self.idle_since.load(Relaxed), limits.idle_timeout)),
                0 => (Due::Idle, self.epoch + self.first_within.min(limits.idle_timeout)),
                since => (Due::Head, at(since, limits.header_timeout)),
            })
        };
        write.into_iter().chain(read).min_by_key(|(_, at)| *at)
    }

    /// A request's first bytes that came along with the one before count as idle until more come.
    fn read(&self) {
        // In HTTP/2 bytes can be anything: only requests count.
        if !self.http2 && self.requests.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    fn wrote(&self) {
        if self.blocked_since.load(Relaxed) != 0 {
            self.blocked_since.store(0, Relaxed);
        }
    }

    fn blocked(&self) {
        if self.blocked_since.load(Relaxed) == 0 {
            self.blocked_since.store(self.now(), Relaxed);
        }
    }

    fn got_on(&self) {
        if self.http2 {
            self.answering_since.store(self.now(), Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// A request under way, until dropped.
#[derive(Debug)]
pub(super) struct Busy {
    activity: Arc<Activity>,
    answers: bool,
    /// On a port where requests take seats: kept until the answer is sent.
    seat: Option<Seat>,
}

impl Busy {
    pub(super) fn keep(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }

    pub(super) fn is_last(&self) -> bool {
        self.activity.is_last()
    }

    /// The request is one that ends its connection; in HTTP/2 only the stream.
    pub(super) fn fault(&self, reason: &'static str) {
        if !self.activity.http2 {
            // The first one has ended it already.
            let _ = self.activity.fault.set(reason);
        }
    }

    /// The request's answer, which now waits for its peer.
    pub(super) fn answer(mut self, body: Body) -> Answer {
        self.answers = true;
        self.activity.got_on();
        self.activity.answers.fetch_add(1, Relaxed);
        Answer { body, busy: self }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.answers {
            self.activity.got_on();
            self.activity.answers.fetch_sub(1, Relaxed);
        }
        self.activity.idle_since.store(self.activity.now(), Relaxed);
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

/// An answer's body, which keeps its request under way until it is sent.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    busy: Busy,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.busy.activity.got_on();
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's IO, leaving marks.
#[derive(Debug)]
pub(super) struct Watched<IO> {
    io: IO,
    activity: Arc<Activity>,
    /// Of HTTP/2.
    frames: Option<Frames>,
    /// Bytes that came after the last answer.
    unread: usize,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        let Some(read) = buf.filled().get(before..).filter(|read| !read.is_empty()) else { return Poll::Ready(result) };
        self.activity.read();
        if let Some(frames) = &mut self.frames
            && let Err(flood) = frames.pass(read)
        {
            let _ = self.activity.fault.set("flood");
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        Poll::Ready(result)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.mark(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.mark(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.mark(polled)
    }

    /// Ends our side, then reads on until the peer has ended its own, has sent [`MOST_UNREAD`], or [`LINGER`] is over
    /// (which the supervisor sees to).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.lingering_since.load(Relaxed) == 0 {
            let polled = Pin::new(&mut self.io).poll_shutdown(cx);
            ready!(self.mark(polled))?;
            if self.activity.abrupt.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            self.activity.lingering_since.store(self.activity.now(), Relaxed);
        }
        loop {
            let mut unread = [0; 4096];
            let mut buf = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                // A flood goes on after its goodbye.
                Ok(()) if !buf.filled().is_empty() => {
                    self.unread += buf.filled().len();
                    let counted = self.frames.as_mut().map_or(Ok(()), |frames| frames.pass(buf.filled()));
                    if counted.is_err() || self.unread > MOST_UNREAD {
                        return Poll::Ready(Ok(()));
                    }
                }
                // Gone, one way or another.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO> Watched<IO> {
    pub(super) fn http1(io: IO, activity: &Arc<Activity>) -> Self {
        Self { io, activity: Arc::clone(activity), frames: None, unread: 0 }
    }

    /// Its bytes are looked at for a flood, too.
    pub(super) fn http2(io: IO, activity: &Arc<Activity>) -> Self {
        Self { io, activity: Arc::clone(activity), frames: Some(Frames::new()), unread: 0 }
    }

    fn mark<T>(&self, polled: Poll<T>) -> Poll<T> {
        if polled.is_ready() {
            self.activity.wrote();
        } else {
            self.activity.blocked();
        }
        polled
    }
}
