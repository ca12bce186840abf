//! What the tests stand on: throw-away certificates, the receiver as a child process, and clients in front of it.

pub(crate) mod container;
pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod journal;
pub(crate) mod nginx;
pub(crate) mod pki;
pub(crate) mod programs;
pub(crate) mod receiver;
pub(crate) mod simulator;
pub(crate) mod target;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// Nothing takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Asks `what` again until it has an answer.
#[track_caller]
pub(crate) fn wait_for<T>(description: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = what() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {description}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that this machine does not allow a test. Past the test runner, which would keep it to itself.
pub(crate) fn not_tested(reason: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: not tested: {reason}");
}
