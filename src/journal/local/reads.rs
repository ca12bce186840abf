//! Reading from the store: off the runtime's threads, never through the writer.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::engine::Local;
use super::store::{Reader, StoreError};
use super::writer::Command;
use crate::blocking::joined;
use crate::journal::lane::Gone;
use crate::journal::outcome::{Refused, State};

/// How long a read that failed for a passing reason waits before it is tried again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Operators read so many at a time; the others wait.
pub(crate) const OPERATORS: usize = 2;

/// What is kept from one read to the next.
pub(crate) struct Reading<T> {
    pub(crate) reader: Option<Box<dyn Reader>>,
    /// A read that goes on though whoever asked for it was dropped: the next one gets its outcome.
    under_way: Option<JoinHandle<Read<T>>>,
}

type Read<T> = Result<(Box<dyn Reader>, T), StoreError>;

impl<T> Reading<T> {
    pub(crate) fn with(reader: Option<Box<dyn Reader>>) -> Self {
        Self { reader, under_way: None }
    }
}

impl Local {
    /// Has `job` read for `who`, and again while it fails for a passing reason. Dropped before it is done, it goes on with the
    /// same job the next time. Damage ends the process, so that the next start sees to it; reading on could only skip
    /// events.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        who: &str,
        kept: &mut Reading<T>,
        job: impl Fn(&mut dyn Reader) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, Gone> {
        loop {
            if kept.under_way.is_none() {
                let (open, reader, job) = (Arc::clone(&self.open_reader), kept.reader.take(), job.clone());
                kept.under_way = Some(tokio::task::spawn_blocking(move || {
                    let mut reader = reader.map_or_else(|| open(), Ok)?;
                    let read = job(&mut *reader)?;
                    Ok((reader, read))
                }));
            }
            let Some(under_way) = &mut kept.under_way else { continue };
            let read = under_way.await;
            kept.under_way = None;
            match joined(read).ok_or(Gone)? {
                Ok((reader, read)) => {
                    kept.reader = Some(reader);
                    return Ok(read);
                }
                // Out of file descriptors, say: nothing is damaged.
                Err(StoreError::Passing { reason, .. }) => {
                    tracing::warn!(reader = who, reason, "cannot read the journal now");
                    tokio::time::sleep(READ_AGAIN).await;
                }
                Err(error) => {
                    self.damaged(error);
                    return Err(Gone);
                }
            }
        }
    }

    /// The same for an operator.
    pub(crate) async fn look_up<T: Send + 'static>(
        &self,
        job: impl Fn(&mut dyn Reader) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, Refused> {
        // It is never closed.
        let _turn = self.operators.acquire().await;
        match *self.shared.state.borrow() {
            State::Open | State::Full | State::WriteError | State::Busy | State::Unreachable | State::Unfit => {}
            State::Failed => return Err(Refused::Failed),
            State::Closed => return Err(Refused::Closed),
        }
        let mut reading = Reading::with(self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop());
        let found = self.read("operator", &mut reading, job).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(reading.reader);
        found.map_err(|Gone| Refused::Failed)
    }

    pub(crate) fn damaged(&self, error: StoreError) {
        self.mailbox.send(Command::Damaged(error.to_string()));
    }
}
