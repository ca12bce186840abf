//! Tells a service manager how the process is: systemd's notification protocol (`Type=notify`, sd_notify(3)).
//!
//! It is twenty lines on the standard library, which knows abstract sockets; the small crates for it do not.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use crate::journal::Journal;

/// Who started this process and wants to know how it is; nobody, mostly.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// It wants a sign of life this often.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` and `WATCHDOG_USEC` tell of. One that cannot be reached is as good as none: it is
    /// warned about, for the process would serve well without it.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let connected = connect(&name);
            connected
                .inspect_err(|error| tracing::warn!(%error, "the service manager cannot be told: check NOTIFY_SOCKET"))
                .ok()
        });
        Self { socket, watchdog: watchdog() }
    }

    /// Nobody, whatever the environment says.
    #[must_use]
    pub fn nobody() -> Self {
        Self { socket: None, watchdog: None }
    }

    /// Events are taken from now on: after the start, and after a reload.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=taking events");
    }

    /// The settings are being read again. [`ready`](Self::ready) has to follow, whatever comes of it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The process is about to end by itself.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    /// Gives the signs of life that it wants, as long as the journal's writer answers. A writer that hangs for longer than
    /// the watchdog's time refuses every event; then the service manager ends the process, and the next one recovers.
    pub async fn keep_alive(&self, journal: &Journal) -> Infallible {
        let Some(within) = self.watchdog else { return std::future::pending().await };
        loop {
            // A closed journal is the drain's last step.
            if journal.answers().await.is_ok() {
                self.tell("WATCHDOG=1");
            }
            sleep(within / 3).await;
        }
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::warn!(%error, "the service manager was not told");
        }
    }
}

/// A path, or, with `@` in front, a name in the abstract namespace.
fn connect(name: &OsString) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read holds nobody up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// None also when it is meant for another process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0).map(Duration::from_micros)
}
