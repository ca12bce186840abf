//! `simulate`: acts as ASAPP.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::serve::Signals;
use super::{Failure, print, tell};
use crate::simulator::sender::{Credentials, Pem};
use crate::simulator::{self, Settings};

/// How long it sends when neither an end nor a number was given.
const UNLESS_TOLD: Duration = Duration::from_secs(10);

/// Act as ASAPP: post realistic events over mutual TLS, one POST an event, with its time-out and retries
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver simulate --url https://localhost:8443/events --ca data/certs/ca.pem \
                        --cert data/certs/client.pem --key data/certs/client-key.pem --rate 100 --duration 30s")]
pub struct Args {
    /// Where to post, https://HOST:PORT/PATH
    #[arg(long)]
    pub url: String,
    /// The CA that signed the receiver's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// The client certificate and its chain (PEM)
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// The client certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Events a second
    #[arg(long, default_value_t = 10.0, value_parser = super::rate)]
    pub rate: f64,
    /// Stop after so many events
    #[arg(long, value_name = "COUNT")]
    pub events: Option<u64>,
    /// Stop after so long; without --events and --duration after 10s
    #[arg(long, value_parser = super::duration)]
    pub duration: Option<Duration>,
    /// Makes a run repeatable; chosen and told when it is not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long to wait for an answer, milliseconds
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// How often to try again before an event is dropped
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,
    /// Connections at a time, at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Sends until done, then prints the summary. Events that were dropped are no failure.
///
/// # Errors
/// When the certificates cannot be used.
pub async fn run(args: Args) -> Result<(), Failure> {
    let credentials =
        Credentials { ca: Pem::File(args.ca), certificate: Pem::File(args.cert), private_key: Pem::File(args.key) };
    let endless = args.events.is_none() && args.duration.is_none();
    let settings = Settings {
        rate: args.rate,
        events: args.events,
        duration: if endless { Some(UNLESS_TOLD) } else { args.duration },
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        timeout_ms: args.timeout_ms,
        retries: args.retries,
        connections: usize::try_from(args.connections).unwrap_or(usize::MAX),
        ..Settings::new(args.url, credentials)
    };
    tell(&format!("simulate: seed {}\n", settings.seed));
    let stop = CancellationToken::new();
    let mut signals = Signals::new()?;
    let mut sending = pin!(simulator::run(settings, stop.clone()));
    let summary = tokio::select! {
        summary = &mut sending => summary,
        () = signals.stop() => {
            stop.cancel();
            sending.await
        }
    };
    let summary = summary.map_err(|error| Failure::from_error(&error))?;
    if args.json { print(&format!("{}\n", summary.json())) } else { print(&format!("{summary}\n")) }
}
