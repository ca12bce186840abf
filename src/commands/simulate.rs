//! `simulate`: acts as ASAPP.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::serve::Signals;
use super::{Failure, print, tell};
use crate::simulator::sender::{Credentials, Pem};
use crate::simulator::{self, Settings, verify};

/// How long it sends when neither an end nor a number was given.
const UNLESS_TOLD: Duration = Duration::from_secs(10);

/// Act as ASAPP: post realistic events over mutual TLS, one POST an event, with its time-out and retries
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver simulate --url https://localhost:8443/events --ca data/certs/ca.pem \
                        --cert data/certs/client.pem --key data/certs/client-key.pem --rate 100 --duration 30s")]
pub struct Args {
    /// Where to post, https://HOST:PORT/PATH
    #[arg(long, required_unless_present = "verify")]
    pub url: Option<String>,
    /// The CA that signed the receiver's certificate (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    pub ca: Option<PathBuf>,
    /// The client certificate and its chain (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    pub cert: Option<PathBuf>,
    /// The client certificate's private key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    pub key: Option<PathBuf>,
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
    #[command(flatten)]
    pub verify: Verify,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Send nothing: tell whether every event that this ledger has as acknowledged was delivered, unaltered and once
    #[arg(long, value_name = "LEDGER", requires = "against", conflicts_with_all = ["url", "ca", "cert", "key"])]
    pub verify: Option<PathBuf>,
    /// Where it was delivered to: the files of a sink with the format `raw`, rotated ones too, or - for standard input
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "verify")]
    pub against: Vec<PathBuf>,
    /// Of a run with crashes: lines may be repeated or broken off
    #[arg(long, requires = "verify")]
    pub allow_repeats: bool,
}

/// Findings of each kind that a person is shown.
const SHOWN: usize = 20;

/// Sends until done, then prints the summary. Events that were dropped are no failure. Or verifies.
///
/// # Errors
/// When the certificates cannot be used; when what was delivered is not what the ledger says.
pub async fn run(args: Args) -> Result<(), Failure> {
    if let Some(ledger) = args.verify.verify {
        return verify(ledger, args.verify.against, args.verify.allow_repeats, args.json);
    }
    let (Some(url), Some(ca), Some(cert), Some(key)) = (args.url, args.ca, args.cert, args.key) else {
        return Err(Failure::usage("--url, --ca, --cert and --key are needed"));
    };
    let credentials = Credentials { ca: Pem::File(ca), certificate: Pem::File(cert), private_key: Pem::File(key) };
    let endless = args.events.is_none() && args.duration.is_none();
    let settings = Settings {
        rate: args.rate,
        events: args.events,
        duration: if endless { Some(UNLESS_TOLD) } else { args.duration },
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        timeout_ms: args.timeout_ms,
        retries: args.retries,
        connections: usize::try_from(args.connections).unwrap_or(usize::MAX),
        ..Settings::new(url, credentials)
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

fn verify(ledger: PathBuf, against: Vec<PathBuf>, allow_repeats: bool, json: bool) -> Result<(), Failure> {
    let keep = if json { usize::MAX } else { SHOWN };
    let report = verify::verify(&verify::Settings { ledger, against, allow_repeats, keep })
        .map_err(|error| Failure::from_error(&error))?;
    if json {
        print(&format!("{}\n", serde_json::json!(report)))?
    } else {
        print(&format!("{report}\n"))?
    }
    if report.good { Ok(()) } else { Err(Failure::failed("what was delivered is not what the ledger says")) }
}
