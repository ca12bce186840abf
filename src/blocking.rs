//! Jobs that may block, off the runtime's threads: what comes of them.

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// What a job gave; `None` when the runtime is ending and the job was never run. Its panic goes on here.
pub(crate) fn joined<T>(job: Result<T, JoinError>) -> Option<T> {
    match job {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => None,
        },
    }
}
