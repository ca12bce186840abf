//! What a connection reads, measured: the other side has no say in how much work an exchange is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::heads::Heads;

/// Bytes that one exchange may bring, TLS and its handshake included: a head, as much of a body as is read, and then some.
const EXCHANGE_BYTES: usize = 256 << 10;

/// What the exchange under way has brought so far. The connection's stream writes it, the exchange reads it.
#[derive(Debug)]
pub(super) struct Meter(Mutex<Reading>);

#[derive(Debug)]
struct Reading {
    left: usize,
    heads: Heads,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer is endless: more than {} KiB", EXCHANGE_BYTES >> 10)]
struct Endless;

impl Meter {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Reading { left: EXCHANGE_BYTES, heads: Heads::default() }))
    }

    /// Another exchange begins. What comes between two counts for the one before.
    pub(super) fn begin(&self) {
        *self.reading() = Reading { left: EXCHANGE_BYTES, heads: Heads::default() };
    }

    /// The final status of the exchange under way, once its line was read.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.reading().heads.status()
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let mut reading = self.reading();
        reading.left = reading.left.checked_sub(bytes).ok_or_else(|| io::Error::other(Endless))?;
        Ok(())
    }

    fn see(&self, bytes: &[u8]) -> io::Result<()> {
        self.reading().heads.see(bytes).map_err(io::Error::other)
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Below TLS: counts bytes, so that records without content count too.
pub(super) struct Metered<S> {
    pub(super) stream: S,
    pub(super) meter: Arc<Meter>,
}

/// Above TLS: sees the heads of answers, and reads on when nothing can be written any more.
pub(super) struct Wire<S> {
    stream: S,
    meter: Arc<Meter>,
    /// Why nothing can be written.
    broken: Option<io::Error>,
    is_broken: bool,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter, broken: None, is_broken: false }
    }

    /// An answer may come before the whole request went out, and the end of the connection with it: what cannot be
    /// written is dropped, and reading decides what became of the exchange.
    fn written(&mut self, outcome: io::Result<usize>, all: usize) -> io::Result<usize> {
        outcome.or_else(|error| {
            (self.is_broken, self.broken) = (true, Some(error));
            Ok(all)
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.meter.spend(buf.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let bytes = &buf.filled()[before..];
        if bytes.is_empty()
            && let Some(error) = self.broken.take()
        {
            // It says more than that there is nothing to read.
            return Poll::Ready(Err(error));
        }
        Poll::Ready(self.meter.see(bytes))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_broken {
            return Poll::Ready(Ok(buf.len()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.written(outcome, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_broken {
            return Poll::Ready(Ok(all));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(outcome, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_broken {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_flush(cx)).map(|()| 0);
        Poll::Ready(self.written(outcome, 0).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
