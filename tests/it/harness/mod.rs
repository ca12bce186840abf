//! What the tests stand on: throw-away certificates, the receiver as a child process, and clients in front of it.

pub(crate) mod chains;
pub(crate) mod clock;
pub(crate) mod container;
pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod haproxy;
pub(crate) mod hostile;
pub(crate) mod journal;
#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod nginx;
pub(crate) mod pki;
pub(crate) mod programs;
pub(crate) mod receiver;
pub(crate) mod simulator;
pub(crate) mod target;
pub(crate) mod wire;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

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

/// A port of this host for whoever cannot take port 0, or has to come back to it. Below the ones that systems give away by
/// themselves, so that nobody takes it in between.
/// This run gives each port to one test only: whoever has it need not listen yet.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    // Bound only, for a process that another test is just starting may hold a copy for a moment: that keeps nobody out.
    let free = |port: &u16| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], *port).into()).is_ok()
    };
    let given = |port: &u16| GIVEN.lock().unwrap().insert(*port);
    std::iter::repeat_with(|| fastrand::u16(10_000..30_000)).find(|port| free(port) && given(port)).unwrap()
}

/// Says that this machine does not allow a test. Past the test runner, which would keep it to itself.
pub(crate) fn not_tested(reason: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: not tested: {reason}");
}
