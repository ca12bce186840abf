//! Reading from the store: off the runtime's threads, never through the writer.

use std::sync::PoisonError;
use std::time::Duration;

use super::store::{Reader, StoreError};
use super::writer::Command;
use super::{Gone, Inner, Refused, State};

/// How long a read that failed for want of room waits before it is tried again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Operators read so many at a time; the others wait.
pub(super) const OPERATORS: usize = 2;

impl Inner {
    /// Has `job` read for `who`, and again while it fails for want of room. The reader is kept for the next time. Damage
    /// ends the process, so that the next start sees to it; reading on could only skip events.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        who: &str,
        kept: &mut Option<Box<dyn Reader>>,
        job: impl Fn(&mut dyn Reader) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, Gone> {
        loop {
            let opened = match kept.take() {
                Some(reader) => Ok(reader),
                None => (self.open_reader)(),
            };
            let read = match opened {
                Ok(mut reader) => {
                    let job = job.clone();
                    let read = tokio::task::spawn_blocking(move || {
                        let read = job(&mut *reader);
                        (reader, read)
                    });
                    match read.await {
                        Ok((reader, read)) => read.map(|read| (reader, read)),
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => std::panic::resume_unwind(panic),
                            // The runtime is ending.
                            Err(_) => return Err(Gone),
                        },
                    }
                }
                Err(error) => Err(error),
            };
            match read {
                Ok((reader, read)) => {
                    *kept = Some(reader);
                    return Ok(read);
                }
                // Out of file descriptors, say: nothing is damaged.
                Err(StoreError::Full(reason)) => {
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
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        job: impl Fn(&mut dyn Reader) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, Refused> {
        // It is never closed.
        let _turn = self.operators.acquire().await;
        match *self.shared.state.borrow() {
            State::Open | State::Full => {}
            State::Failed => return Err(Refused::Failed),
            State::Closed => return Err(Refused::Closed),
        }
        let mut reader = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let found = self.read("operator", &mut reader, job).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(reader);
        found.map_err(|Gone| Refused::Failed)
    }

    pub(super) fn damaged(&self, error: StoreError) {
        self.mailbox.send(Command::Damaged(error.to_string()));
    }
}
