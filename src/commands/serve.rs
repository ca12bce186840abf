//! `serve`: runs the receiver until SIGTERM or SIGINT, then drains.

use std::convert::Infallible;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::Failure;
use crate::config::Config;
use crate::notify::ServiceManager;
use crate::service::{JournalFailed, Running, Service, StartError};
use crate::telemetry;

/// Run the receiver until SIGTERM or SIGINT, then drain
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver --config /etc/asapp-receiver/production.toml serve")]
pub struct Args {}

/// Serves until told to stop.
///
/// # Errors
/// Settings that cannot be used, a start that did not work out, a journal that failed.
pub async fn run(_: Args, files: &[PathBuf]) -> Result<(), Failure> {
    // First of all, so that from the first moment on no SIGHUP ends the process.
    let mut signals = Signals::new()?;
    let (config, warnings) = Config::load(files)?;
    telemetry::init_logging(&config.log).map_err(|error| Failure::failed(error.to_string()))?;
    for warning in warnings {
        tracing::warn!(key = warning.key, source = warning.source, "settings: {}", warning.what);
    }
    let manager = ServiceManager::from_environment();
    let running = tokio::select! {
        started = Service::start(config) => started?,
        () = signals.stop.recv() => return Ok(()),
    };
    manager.ready();
    let journal = running.journal().clone();
    tokio::select! {
        ended = run_until_stopped(running, &mut signals, &manager) => ended,
        never = manager.keep_alive(&journal) => match never {},
    }
}

/// Serves until a signal or a failed journal ends it; SIGHUP makes it look at its settings and TLS files. The manager is
/// told of both.
pub(super) async fn run_until_stopped(
    running: Running,
    signals: &mut Signals,
    manager: &ServiceManager,
) -> Result<(), Failure> {
    let Signals { stop, hangup } = signals;
    let mut reloads = async || -> Infallible {
        // One that came during the start is waiting here.
        while hangup.recv().await.is_some() {
            manager.reloading();
            running.reload().await;
            manager.ready();
        }
        std::future::pending().await
    };
    let failed = tokio::select! {
        () = stop.recv() => false,
        () = running.failed() => true,
        never = reloads() => match never {},
    };
    manager.stopping();
    if failed {
        running.abandon().await;
        return Err(Failure::from_error(&JournalFailed));
    }
    tokio::select! {
        drained = running.drain() => drained.map_err(|failed| Failure::from_error(&failed)),
        () = stop.recv() => Err(Failure::failed("stopped by a second signal before the drain was done")),
    }
}

/// The signals a service manager sends.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) stop: Stop,
    /// SIGHUP, which ends nothing as long as this lives, and afterwards neither.
    hangup: Signal,
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot handle signals: {error}")));
        let stop = Stop { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? };
        Ok(Self { stop, hangup: listen(SignalKind::hangup())? })
    }
}

impl Stop {
    /// Waits for one of them.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let told = Self::from_error(&error);
        match error {
            StartError::Settings(_) | StartError::Tls(_) | StartError::Gate(_) => {
                Self::configuration(told.text().into_owned())
            }
            _ => told,
        }
    }
}
